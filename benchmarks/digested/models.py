"""What digests.py runs: networks, and what is asked of their runs."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn

import diffsolve as ds

Runs = Iterator[tuple[str, Callable[[], Any]]]
"""Names, and what makes each run; it is called before the next name is asked for."""

PATHS = ("edm", "ddpm", "condot", "vp", "ve", "rectified", "cosine", "subvp")
EVERYWHERE = ("denoised", "velocity", "v", "edm")
"""Predictions that any path allows; noise and score say nothing where alpha = 0."""
NOISE_ALONE = ("condot", "rectified", "cosine")
"""Paths that begin at alpha = 0."""
PAIRS = [
    (path, predicts)
    for path in PATHS
    for predicts in (*EVERYWHERE, *(() if path in NOISE_ALONE else ("noise", "score")))
]


def mixture(path: str = "condot", predicts: str = "velocity") -> ds.Model:
    """The ring of eight Gaussians with its exact network."""
    return ds.load(f"mixture-2d(path={path!r}, predicts={predicts!r})")


class Toy(nn.Module):
    """A small network with random weights, and conditions: a label, and a tensor that is added."""

    def __init__(self, numbers: int, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.inner = nn.Linear(numbers + 1, 16)
        self.label = nn.Embedding(5, 16)
        self.outer = nn.Linear(16, numbers)
        self.to(dtype)

    def forward(self, x: Tensor, t: Tensor, label: Tensor | None = None, shift: Tensor | None = None) -> Tensor:
        clock = (t / (1 + t.abs())).to(x.dtype)
        h = self.inner(torch.cat([x.flatten(1), clock[:, None]], 1))
        if label is not None:
            h = h + self.label(label)
        out = self.outer(torch.tanh(h)).view_as(x)
        return out if shift is None else out + shift.to(x.dtype)


class Conv(nn.Module):
    """Two convolutions, for images of one channel."""

    def __init__(self, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.inner = nn.Conv2d(1, 8, 3, padding=1)
        self.outer = nn.Conv2d(8, 1, 3, padding=1)
        self.to(dtype)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        clock = (t / (1 + t.abs())).to(x.dtype)[:, None, None, None]
        out: Tensor = self.outer(nn.functional.silu(self.inner(x) + clock))
        return out


def toy(path: str = "condot", predicts: str = "velocity", numbers: int = 6, dtype: Any = torch.float32) -> ds.Model:
    """The same weights at each call."""
    torch.manual_seed(1)
    return ds.adapt(Toy(numbers, dtype), path, predicts)


def conv(path: str = "condot", predicts: str = "velocity", dtype: torch.dtype = torch.float32) -> ds.Model:
    torch.manual_seed(2)
    return ds.adapt(Conv(dtype), path, predicts)


def plain(path: Any = "condot", predicts: str = "velocity") -> ds.Model:
    """A network of a few elementwise operations, for any shape."""
    return ds.adapt(lambda x, t: x * -0.5 + 0.25 * x.square().clamp(max=1), path, predicts)


@lru_cache(maxsize=1)
def digits() -> ds.Model:
    return ds.load("digits")


def normal(*shape: int, seed: int = 7, scale: float = 1.0, dtype: torch.dtype = torch.float32) -> Tensor:
    """Numbers for states and conditions, of PyTorch's generator: not of the library."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype) * scale


def of_run(run: Any) -> list[Any]:
    """What a run of a table of weights returns."""
    return [run.x, run.nfe, run.times, run.trajectory, run.log_prob, run.done]


def of_state(state: Any) -> list[Any]:
    """Of a run between two calls."""
    return [state.call, state.s, state.y, *state.history]


def of_parallel(run: Any) -> list[Any]:
    found = run.parallel
    return [
        *of_run(run), found.rounds, found.calls, found.wasted, found.depth, found.each, found.converged
    ]  # fmt: skip


def of_adaptive(run: Any) -> list[Any]:
    return [run.x, run.status, run.nfe, run.t, run.h, run.trajectory]


def of_density(found: Any) -> list[Any]:
    arrays = [found.value, found.stderr, found.latent, found.nfe, found.jvps, found.solver_error]
    return [*arrays, found.status, found.bits_per_dim(), found.stop]


def of_chain(chain: Any) -> list[Any]:
    return [chain.x, chain.nfe, chain.acceptance]


def solved(model: Any, shape: Sequence[int] | None = (8, 2), **options: Any) -> list[Any]:
    return of_run(ds.solve(model, shape, **{"seed": 0, **options}))


def in_parallel(model: Any, shape: Sequence[int] = (4, 2), **options: Any) -> list[Any]:
    return of_parallel(ds.solve(model, shape, **{"seed": 0, **options}))


def adaptive(model: Any, shape: Sequence[int] | None = (6, 2), **options: Any) -> list[Any]:
    return of_adaptive(ds.solve(model, shape, **{"seed": 0, **options}))


def pulled(result: Tensor, *leaves: Tensor) -> list[Any]:
    """A result and the gradients of the sum of its squares; None for what it does not depend on."""
    return [result, *torch.autograd.grad(result.double().square().sum(), leaves, allow_unused=True)]


def parameters(model: Any) -> list[Tensor]:
    return list(model.net.parameters()) if isinstance(model.net, nn.Module) else []
