"""Shared by all tests: one thread, so that results repeat and runs side by side do not fight over cores."""

import os
import re
import threading

os.environ["TRITON_INTERPRET"] = "1"  # read when Triton is imported: here its kernels run on the CPU, or not at all

import pytest
import torch
from support import peers
from support.product import cases, named
from tqdm import tqdm

from diffsolve.reference.mixture import GaussianMixture

torch.set_num_threads(1)
# tqdm's own lock is shared with forks: one that a test kills while it has it would leave this process waiting for ever.
tqdm.set_lock(threading.RLock())


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Cases of `@pytest.mark.product`: see support/product.py. The rest of a product is not even collected."""
    full = re.search(r"(?<!not )\bfull\b", metafunc.config.getoption("markexpr")) is not None
    for mark in metafunc.definition.iter_markers("product"):
        (axes,) = mark.args
        names = [name.strip() for axis in axes for name in axis.split(",")]
        marks = [pytest.mark.full] if full else []
        chosen = cases(axes, full, **{"some": {}, **mark.kwargs})
        metafunc.parametrize(names, [pytest.param(*case, marks=marks, id=named(case)) for case in chosen])


@pytest.fixture(scope="session")
def mixture() -> GaussianMixture:
    """Three wide Gaussians in the plane: smooth enough to reach asymptotic orders with few steps."""
    means = torch.randn(3, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return GaussianMixture.isotropic(means, 0.5)


@pytest.fixture(scope="session")
def kd():
    """k-diffusion's samplers."""
    try:
        return peers.k_diffusion("sampling")
    except ImportError as error:
        pytest.skip(f"k-diffusion is not installed: {error}")


@pytest.fixture(scope="session")
def df():
    return pytest.importorskip("diffusers")
