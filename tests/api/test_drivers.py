"""No option is ever dropped: every driver honours an option, proven by its effect, or refuses it by name."""

import inspect

import numpy as np
import pytest
import torch
from support.product import shown
from support.recorder import Recorder

import diffsolve as ds
from diffsolve.api.drivers import DRIVERS, driver_for
from diffsolve.api.options import SolveOptions
from diffsolve.execute import graph

B, SHAPE = 3, (3, 2)
NAMES = list(SolveOptions.__annotations__)


def net(x, t, shift=0.0):
    return -x.tanh() + shift + 0.1 * t.view(-1, 1).to(x)


def model(network=net):
    return ds.adapt(network, "condot", "velocity")


BASE = {
    "log_prob='model'": {"log_prob": "model", "solver": "rk4", "steps": 4},
    "an adaptive SDE solver": {"solver": ds.AdaptiveSDE(rtol=0.1, atol=0.1)},
    "an adaptive solver": {"solver": ds.Adaptive(rtol=1e-3, atol=1e-3)},
    "gradient": {"gradient": "direct", "solver": "ddim(eta=1)", "steps": 4},
    "parallel": {"parallel": ds.Picard(window=4), "solver": "ddim(eta=1)", "steps": 4},
    "graph": {"graph": True, "solver": "ddim(eta=1)", "steps": 4},
    "a sequential run": {"solver": "ddim(eta=1)", "steps": 4},
}
OTHER_SOLVER = {
    "log_prob='model'": {"solver": "heun"},
    "an adaptive SDE solver": {"solver": ds.AdaptiveSDE(rtol=0.01, atol=0.01)},
    "an adaptive solver": {"solver": ds.Adaptive("bosh3", rtol=0.1, atol=0.1)},
}
HALF = torch.tensor([[0.3, -1.0], [1.0, 0.5], [0.0, 2.0]])
SEED = {"seed": 5}


def x_of(options, shape=SHAPE, network=net):
    return ds.solve(model(network), None if "noise" in options or "state" in options else shape, **options).x


def changes(extra, before=None):
    """That the samples change with the option."""

    def effect(base, monkeypatch):
        one = {**SEED, **base, **(before or {})}
        assert not torch.equal(x_of(one).double(), x_of({**one, **extra}).double())

    return effect


def honoured_budget(base, monkeypatch):
    base = {name: value for name, value in base.items() if name != "steps"}
    base["solver"] = "midpoint"
    assert not torch.equal(x_of({**SEED, **base, "nfe": 4}), x_of({**SEED, **base, "nfe": 8}))


def honoured_noise(base, monkeypatch):
    assert not torch.equal(x_of({**SEED, **base, "noise": HALF}), x_of({**SEED, **base, "noise": HALF + 1}))


def honoured_index(base, monkeypatch):
    whole, part = x_of({**SEED, **base}), x_of({**SEED, **base, "index": 1}, (2, 2))
    torch.testing.assert_close(part, whole[1:])


def honoured_dtype(base, monkeypatch):
    assert x_of({**SEED, **base, "dtype": torch.float64}).dtype == torch.float64


def honoured_device(base, monkeypatch):
    with pytest.raises(ValueError, match="device must be one of this machine's, .* got 'nonsense'"):
        x_of({**SEED, **base, "device": "nonsense"})


def honoured_progress(base, monkeypatch):
    counted = []
    monkeypatch.setattr("tqdm.auto.tqdm.update", lambda self, n=1: counted.append((n, self.disable)))
    x_of({**SEED, **base, "progress": True})
    assert sum(n for n, _ in counted) > 0
    assert not any(disabled for _, disabled in counted)


def honoured_check(base, monkeypatch):
    def bad(x, t):
        return torch.where(t.view(-1, 1) > 0.4, torch.nan, -x)

    with pytest.raises(FloatingPointError, match="net returned .* non-finite values"):
        x_of({**SEED, **base, "check": True}, network=bad)


def honoured_trajectory(base, monkeypatch):
    times = {"grid": [0.0, 0.5, 1.0]} if isinstance(base["solver"], ds.Adaptive) else {}
    run = ds.solve(model(), SHAPE, **SEED, **base, **times, trajectory=True)
    assert run.trajectory.shape == (3 if times else 5, *SHAPE)
    torch.testing.assert_close(run.trajectory[-1], run.x)


def honoured_grid(base, monkeypatch):
    if isinstance(base["solver"], ds.Adaptive):
        return honoured_trajectory(base, monkeypatch)
    return changes({"grid": "uniform-lambda"})(base, monkeypatch)


def honoured_gradient(base, monkeypatch):
    noise = HALF.clone().requires_grad_()
    run = ds.solve(model(), **{**base, "noise": noise, "gradient": "direct"}, seed=5)
    (slope,) = torch.autograd.grad(run.x.sum(), noise)
    assert slope.abs().max() > 0


def honoured_callback(base, monkeypatch):
    steps = []
    run = ds.solve(model(), SHAPE, **SEED, **base, callback=steps.append)
    assert [step.call for step in steps] == list(range(run.nfe))
    assert torch.equal(steps[-1].x, run.x)


def honoured_hook(base, monkeypatch):
    x = x_of({**SEED, **base, "hook": lambda step: step.denoised * 0})
    assert torch.equal(x, torch.zeros(SHAPE))  # the last estimate is the result


def honoured_log_prob(base, monkeypatch):
    run = ds.solve(model(), SHAPE, **SEED, **base, log_prob=True)
    assert run.log_prob.shape == (run.nfe, B)


def honoured_max_calls(base, monkeypatch):
    run = ds.solve(model(), SHAPE, **SEED, **base, max_calls=2)
    assert run.nfe == 2
    assert not run.done


def honoured_state(base, monkeypatch):
    run = ds.solve(model(), SHAPE, **SEED, **base, max_calls=2)
    assert torch.equal(x_of({**base, "state": run.state}), x_of({**SEED, **base}))


def honoured_variance(base, monkeypatch):
    wide = ds.adapt(lambda x, t: torch.cat([net(x, t), x], 1), "condot", "velocity", output=ds.models.LearnedVariance())
    plain, learned = (ds.sample(wide, SHAPE, **SEED, **base, variance=kind) for kind in (None, "learned"))
    assert not torch.equal(plain, learned)


FROM_PART_WAY = {"noise": HALF, "start": 0.25}
EFFECTS = {
    "noise": honoured_noise,
    "steps": changes({"steps": 5}),
    "nfe": honoured_budget,
    "grid": honoured_grid,
    "seed": changes({"seed": 6}),
    "index": honoured_index,
    "start": changes({"start": 0.5}, FROM_PART_WAY),
    "stop": changes({"stop": 0.75}),
    "cond": changes({"cond": {"shift": 1.0}}),
    "guidance": changes({"guidance": 3.0}, {"cond": {"shift": 1.0}}),
    "corrector": changes({"corrector": ds.Langevin(step=0.1)}),
    "brownian": changes({"brownian": ds.Brownian(SHAPE, 3)}),
    "dtype": honoured_dtype,
    "device": honoured_device,
    "progress": honoured_progress,
    "check": honoured_check,
    "trajectory": honoured_trajectory,
    "gradient": honoured_gradient,
    "callback": honoured_callback,
    "hook": honoured_hook,
    "log_prob": honoured_log_prob,
    "max_calls": honoured_max_calls,
    "state": honoured_state,
    "variance": honoured_variance,
}
VALUES = {
    "steps": 3,
    "nfe": 4,
    "grid": "uniform-t",
    "start": 0.5,
    "stop": 0.9,
    "corrector": ds.Langevin(step=0.1),
    "hook": lambda step: None,
    "callback": lambda step: None,
    "trajectory": True,
    "log_prob": True,
    "brownian": ds.Brownian(SHAPE, 0),
    "max_calls": 2,
    "graph": True,
    "parallel": ds.Picard(window=2),
    "gradient": "direct",
    "state": ds.solve(model(), SHAPE, solver="euler", steps=4, seed=0, max_calls=1).state,
    "variance": "learned",
}
"""A good value of every option that some driver refuses."""


@pytest.fixture(autouse=True)
def graphs_on_the_cpu(monkeypatch):
    monkeypatch.setattr("diffsolve.api.drivers.replay", lambda *a: graph.replay(*a, record=Recorder()))


def test_every_driver_is_walked():
    assert [driver.name for driver in DRIVERS] == list(BASE)
    for driver in DRIVERS:
        assert driver_for(BASE[driver.name]) is driver
        assert driver.accepts <= {*NAMES, "trace"}


def honoured_or_refused(driver, name, monkeypatch):
    base = dict(BASE[driver.name])
    if name == "solver":
        changes(OTHER_SOLVER.get(driver.name, {"solver": "ddim"}))(base, monkeypatch)
        return
    if name == "log_prob" and base.get("log_prob"):
        assert isinstance(ds.solve(model(), SHAPE, **SEED, **base).log_prob, ds.LogProb)
    elif name in driver.accepts and name in EFFECTS:
        EFFECTS[name](base, monkeypatch)
        return
    options = {**base, name: VALUES[name]}
    chosen = next(d for d in DRIVERS if d.wanted(options))
    if name in chosen.accepts:  # it chose another driver, which honours it, or it is the one that chose this
        assert chosen is not driver or name in base
    else:
        with pytest.raises(ValueError, match=rf"(?s){name}=.* cannot be given with {chosen.name}"):
            ds.solve(model(), SHAPE, **options)


@pytest.mark.parametrize("driver", DRIVERS, ids=lambda driver: driver.name)
def test_an_option_is_honoured_or_refused(driver):
    for name in shown(NAMES):
        with pytest.MonkeyPatch.context() as monkeypatch:
            honoured_or_refused(driver, name, monkeypatch)


COND = {"cond": {"shift": 1.0}}
FREE = {
    "a rule": ds.Guidance(3.0, rule="apg"),
    "a scale per sample": ds.Guidance(torch.tensor([3.0, 1.0, 2.0])),
    "a schedule": ds.Guidance(lambda rho: 1 + 1 / (1 + rho)),
    "a weaker network": ds.Guidance(3.0, weak=lambda x, t, shift=0.0: -x),
    "a third output": ds.Guidance(3.0, perturbed=ds.Perturbed(2.0, cond={"shift": -1.0})),
}
IN_STEP = {
    "plus=True": ds.Guidance(3.0, plus=True),
    "rule=.*momentum": ds.Guidance(3.0, rule="apg(momentum=-0.5)"),
    "rule=ZeroStar": ds.Guidance(3.0, rule="cfg-zero"),
}


@pytest.mark.parametrize("driver", DRIVERS, ids=lambda driver: driver.name)
def test_guidance_of_every_kind_is_honoured_or_refused(driver):
    options = {**SEED, **BASE[driver.name], **COND}
    plain = x_of({**options, "guidance": 3.0}).double()
    for kind, guidance in FREE.items():
        assert not torch.equal(plain, x_of({**options, "guidance": guidance}).double()), kind
    for kind, guidance in IN_STEP.items():
        if driver.in_step:
            assert not torch.equal(plain, x_of({**options, "guidance": guidance}).double()), kind
        else:
            with pytest.raises(ValueError, match=f"guidance with {kind}.* cannot be given with {driver.name}"):
                x_of({**options, "guidance": guidance})


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"trajectory": "nonsense"}, r"trajectory must be False, True or 'calls', got 'nonsense'"),
        ({"log_prob": "both"}, r"log_prob must be False, True or 'model', got 'both'"),
        ({"gradient": "exact"}, r"gradient must be None, 'direct', 'checkpoint' or 'adjoint', got 'exact'"),
        ({"check": 1}, r"check must be True or False, got 1"),
        ({"hook": 3}, r"hook must be callable, got 3"),
        ({"corrector": 0.1}, r"corrector must be a ds.Langevin, got 0.1"),
        ({"parallel": 4}, r"parallel must be a ds.Picard, a ds.Parareal or a ds.Independent, got 4"),
        ({"max_calls": 0}, r"max_calls must be an integer >= 1, got 0"),
        ({"stepps": 3}, r"solve\(\) got an unknown option 'stepps'; did you mean 'steps'\?"),
    ],
)
@pytest.mark.parametrize("driver", DRIVERS, ids=lambda driver: driver.name)
def test_bad_values_are_refused_by_every_driver(driver, options, error):
    with pytest.raises((ValueError, TypeError), match=error):
        ds.solve(model(), SHAPE, **{**BASE[driver.name], **options})


def test_signatures_list_every_option():
    for function, but in (
        (ds.solve, ()),
        (ds.sample, ("trajectory", "log_prob")),
        (ds.encode, ("trajectory", "log_prob")),
    ):
        assert set(NAMES) - set(but) <= set(inspect.signature(function).parameters)
    assert inspect.signature(ds.sample).parameters["solver"].default == "auto"
    assert "guidance" in inspect.signature(ds.bits_per_dim).parameters


def test_sample_refuses_what_only_a_run_can_hold():
    with pytest.raises(ValueError, match="trajectory is not an option of sample, .* use ds.solve"):
        ds.sample(model(), SHAPE, nfe=4, trajectory=True)


def test_samples_with_their_log_densities():
    options = {"solver": "rk4", "steps": 6, "seed": 0}
    x, log_prob = ds.sample_with_log_prob(model(), SHAPE, **options)
    run = ds.solve(model(), SHAPE, log_prob="model", **options)
    assert torch.equal(x, run.x)
    assert torch.equal(log_prob.value, run.log_prob.value)
    _, estimated = ds.sample_with_log_prob(model(), SHAPE, trace="hutchinson(probes=4, kind='gaussian')", **options)
    assert estimated.stderr.min() > 0
    with pytest.raises(ValueError, match="hook=.* cannot be given with log_prob='model'"):
        ds.sample_with_log_prob(model(), SHAPE, hook=lambda step: None, **options)


@pytest.mark.parametrize("solver", ["rk4", ds.Adaptive(rtol=1e-7, atol=1e-7)], ids=["fixed", "adaptive"])
def test_encode_goes_from_and_to_any_time(solver):
    steps = {"steps": 40} if solver == "rk4" else {}
    options = {"solver": solver, "dtype": torch.float64, **steps}
    x = HALF.double()
    middle = ds.encode(model(), x, stop=0.5, **options)
    z = ds.encode(model(), middle, start=0.5, **options)
    torch.testing.assert_close(z, ds.encode(model(), x, **options), atol=1e-5, rtol=1e-5)
    back = ds.sample(model(), noise=middle, start=0.5, **options)
    torch.testing.assert_close(back, x, atol=1e-5, rtol=1e-5)
    with pytest.raises(ValueError, match="(?s)noise=.* cannot be given with encode"):
        ds.encode(model(), x, noise=x, **options)


def test_a_callback_sees_a_checkpointed_run_once():
    steps = []
    noise = HALF.clone().requires_grad_()
    run = ds.solve(model(), noise=noise, solver="heun", steps=6, gradient="checkpoint", callback=steps.append)
    run.x.sum().backward()
    assert [step.call for step in steps] == list(range(run.nfe))


@pytest.mark.parametrize("index", [torch.ones(2), np.array([0, 1]), 0.0, "0"])
def test_an_index_that_is_none_is_refused_by_name(index):
    model = ds.adapt(lambda x, t: -x, "condot", "velocity")
    for how in ({"steps": 2}, {"solver": ds.Adaptive()}, {"steps": 2, "parallel": ds.Picard()}):
        with pytest.raises(TypeError, match=r"index must be an integer in \[0, 2\*\*32\), got "):
            ds.solve(model, (2, 2), index=index, seed=0, **how)
