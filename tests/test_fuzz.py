"""Any run that can be asked for, and any that cannot: properties of random ones.

    pytest tests/test_fuzz.py                                    # 25 of each, some seconds
    DIFFSOLVE_FUZZ=20000 pytest tests/test_fuzz.py -n auto       # about an hour on one core

A run is refused by a ValueError or TypeError with a message, or it is finite, makes the calls that it declared, gives
each sample what the sample has alone, goes on from any call to the same bits, and leaves the process as it was.
"""

import contextlib
import os
import random
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import diffsolve as ds
from diffsolve.models import Model

EXAMPLES = int(os.environ.get("DIFFSOLVE_FUZZ", "25"))
FUZZ = settings(
    max_examples=EXAMPLES, deadline=None, derandomize=EXAMPLES == 25, suppress_health_check=list(HealthCheck)
)

PATHS = [
    *(name for name in ds.paths.names()), "ddpm(zero_terminal_snr=True)", "rectified(shift=3.0)", "vp(beta_max=8.0)",
    "edm(sigma_max=10.0)", "ve(sigma_max=5.0)",
]  # fmt: skip
PREDICTS = ["noise", "denoised", "v", "velocity", "score"]
SOLVERS = [
    *ds.solvers.names(), *ds.solvers.aliases(), "ddim(eta=0.7)", "ab-3(frame='trig', corrector=2)",
    "ab-4(start='rk4')", "unipc-3(frame='noise', lower_final=False)", "heun(frame='lambda')", "rk4(frame='noise')",
    "abm-2(mode='pece')", "designed(history=2, delta=0.1)", "sa-3(tau=0.4)", "designed(modes=(0.0,))",
    "auto(size=5000)",
]  # fmt: skip
GRIDS = [None, *ds.grids.names(), "karras(rho=3)", "leading(offset=1)", "arc(scale=3, power=0.2)"]
EVENTS = [(), (1,), (3,), (2, 2), (1, 2, 3)]


def network(path: str, predicts: str, dtype: torch.dtype) -> Model:
    """Exact for N(k, 1/4), with k of each sample or 0; in float64 inside, and nothing but arithmetic."""
    where = ds.paths.named(path)

    def net(x: torch.Tensor, t: torch.Tensor, k: torch.Tensor | None = None) -> torch.Tensor:
        p = where.at(t.double().expand(len(x)))
        wide = [len(x)] + [1] * (x.dim() - 1)
        alpha, sigma, dalpha, dsigma = (v.reshape(wide) for v in (p.alpha, p.sigma, p.dalpha, p.dsigma))
        if k is not None and len(k) not in (1, len(x)):
            raise ValueError(f"k must have a row for each of {len(x)} samples or one for all")
        mean = 0.0 if k is None else k.double().reshape(-1, *wide[1:])
        q = alpha**2 / 4 + sigma**2
        rest = x.double() - alpha * mean
        x0, eps = mean + alpha / 4 * rest / q, sigma * rest / q
        out = {
            "noise": lambda: eps,
            "denoised": lambda: x0,
            "v": lambda: alpha * eps - sigma * x0,
            "velocity": lambda: dalpha * x0 + dsigma * eps,
            "score": lambda: -rest / q,
        }[predicts]()
        return out.to(x.dtype)

    return ds.adapt(net, path, predicts, dtype=dtype)


@dataclass(frozen=True)
class Asked:
    """A run that is asked for."""

    path: str
    predicts: str
    dtype: torch.dtype
    shape: tuple[int, ...]
    options: dict[str, Any]
    conditions: bool

    @property
    def cond(self) -> dict[str, torch.Tensor]:
        return {"k": torch.linspace(-1, 1, self.shape[0])} if self.conditions else {}

    def model(self) -> Model:
        return network(self.path, self.predicts, self.dtype)

    def solve(self, **more: Any) -> Any:
        given = {"cond": self.cond, **self.options, **more}
        return ds.solve(self.model(), None if "noise" in given or "state" in given else self.shape, **given)


@st.composite
def asked(draw: st.DrawFn) -> Asked:
    path = draw(st.sampled_from(PATHS))
    options: dict[str, Any] = {"solver": draw(st.sampled_from(SOLVERS)), "seed": draw(st.integers(0, 2**40))}
    options[draw(st.sampled_from(["steps", "nfe"]))] = draw(st.integers(1, 14))
    if grid := draw(st.sampled_from(GRIDS)):
        options["grid"] = grid
    if draw(st.booleans()):
        where = ds.paths.named(path)
        share = draw(st.floats(0.1, 0.9))
        stop = where.t_noise + share * (where.t_last - where.t_noise)
        options["stop"] = round(stop) if where.integer else stop
    conditions = draw(st.booleans())
    if conditions and draw(st.booleans()):
        options["guidance"] = draw(st.sampled_from([0.0, 0.5, 1.0, 3.0, 8.0]))
    shape = (draw(st.integers(1, 3)), *draw(st.sampled_from(EVENTS)))
    dtype = draw(st.sampled_from([torch.float32, torch.float64]))
    return Asked(path, draw(st.sampled_from(PREDICTS)), dtype, shape, options, conditions)


def ask(run: Asked, **more: Any) -> Any:
    """The run, or None where it is refused with a message."""
    try:
        return run.solve(**more)
    except (ValueError, TypeError) as error:
        return None if str(error).strip() else pytest.fail("refused without a message")


@FUZZ
@given(asked())
def test_a_run_is_finite_and_makes_the_calls_that_it_declared(asked):
    run = ask(asked)
    if run is None:
        return
    assert run.x.shape == asked.shape
    assert run.x.isfinite().all()
    assert run.nfe == run.tableau.nfe
    assert run.done
    if "nfe" in asked.options:
        assert run.nfe <= asked.options["nfe"]
    else:
        assert run.tableau.steps == asked.options["steps"]


@FUZZ
@given(asked(), st.integers(0, 2))
def test_a_sample_alone_is_the_sample_in_its_batch(asked, row):
    run = ask(asked)
    if run is None or row >= asked.shape[0]:
        return
    cond = {name: value[row : row + 1] for name, value in asked.cond.items()}
    alone = ds.solve(asked.model(), (1, *asked.shape[1:]), index=row, **{**asked.options, "cond": cond})
    assert torch.equal(alone.x[0], run.x[row])


@FUZZ
@given(asked(), st.floats(0, 1))
def test_a_run_goes_on_from_any_call_to_the_same_bits(asked, share):
    run = ask(asked)
    if run is None or asked.options.get("guidance", 1.0) != 1.0:
        return
    model = asked.model()
    ex = ds.begin(model, asked.shape, solver=run.tableau, seed=asked.options["seed"])
    for _ in range(round(share * run.nfe)):
        x, t = ex.query()
        ex.advance(model.net(x, t, **asked.cond))
    ended = ds.solve(model, solver=run.tableau, state=ex.state, cond=asked.cond)
    assert torch.equal(ended.x, run.x)


@FUZZ
@given(asked())
def test_the_loop_in_c_is_the_chain_of_torch_bit_for_bit(asked):
    """But for the noise, which each draws with its own logarithm and sine."""
    noise = torch.randn(asked.shape, dtype=asked.dtype, generator=torch.Generator().manual_seed(0))
    run = ask(asked, noise=noise)
    if run is None or run.tableau.stochastic:
        return
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DIFFSOLVE_KERNELS", "torch")
        assert torch.equal(asked.solve(noise=noise).x, run.x)


@FUZZ
@given(asked())
def test_the_process_is_left_as_it_was(asked):
    def process() -> tuple[Any, ...]:
        return (
            torch.get_default_dtype(), torch.is_grad_enabled(), torch.get_num_threads(),
            torch.is_inference_mode_enabled(), torch.are_deterministic_algorithms_enabled(),
            torch.get_rng_state().tolist(), random.getstate(), np.random.get_state()[1].tolist(),  # noqa: NPY002
        )  # fmt: skip

    before = process()
    ask(asked)
    assert process() == before


@FUZZ
@given(asked())
def test_parallel_rounds_end_where_the_run_ends(asked):
    """In float64: tables reach alpha = 1e-5, by which a rounding of the noise is divided on both ways."""
    asked = replace(asked, dtype=torch.float64)
    run = ask(asked)
    if run is None:
        return
    window = ask(asked, parallel=ds.Picard(window=run.nfe, tol=0.0))
    if window is not None:
        # Weights of high orders on uneven steps reach 1e8 and cancel; on its way to d a prediction is divided by a
        # level.
        levels = run.tableau.calls[:, 1:]
        amplified = np.abs(run.tableau.weights).max() / levels[levels > 0].min()
        allowed = 1e-9 + 8 * np.finfo(float).eps * amplified
        torch.testing.assert_close(window.x, run.x, rtol=1e-9, atol=allowed * float(1 + run.x.abs().max()))


WRONG = st.one_of(
    st.none(), st.booleans(), st.integers(-5, 5), st.floats(), st.text(max_size=8), st.lists(st.floats(), max_size=3),
    st.just(torch.ones(2)), st.just(object()), st.binary(max_size=3), st.complex_numbers(),
)  # fmt: skip
NAMES = [
    "solver", "grid", "steps", "nfe", "start", "stop", "seed", "index", "cond", "guidance", "dtype", "device", "noise",
    "state", "trajectory", "gradient", "parallel", "graph", "check", "callback", "brownian", "log_prob", "corrector",
    "variance",
]  # fmt: skip


@FUZZ
@given(asked(), st.sampled_from(NAMES), WRONG)
def test_bad_input_is_a_value_error_or_a_type_error(asked, name, value):
    with contextlib.suppress(ValueError, TypeError):
        asked.solve(**{name: value})


@FUZZ
@given(st.sampled_from(["solver", "grid"]), st.text("abcdefimnpstuvz-0123456789(),.='+*[]{} \"", max_size=24))
def test_any_text_is_a_name_or_is_refused(kind, text):
    with contextlib.suppress(ValueError, TypeError):
        (ds.solvers if kind == "solver" else ds.grids).named(text)
