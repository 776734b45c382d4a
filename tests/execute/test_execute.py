"""The executor, driven by `solve` and from outside."""

import threading
import weakref
from functools import partial

import numpy as np
import pytest
import torch
from support.product import shares, shown
from support.solvers import KINDS
from torch.utils._python_dispatch import TorchDispatchMode

import diffsolve as ds
from diffsolve import kernels
from diffsolve.noise import Stream
from diffsolve.reference import mixture_model

OWN = ["ddim(eta=1.0)", "rk4(frame='trig')", "heun(frame='noise')", "ab-3(corrector=3)", "abm-2(mode='pece')"]
EVERY, SOME = [*ds.solvers.names(), *OWN], [*KINDS, *OWN]
MULTI = ["ab-3", "dpmpp-2m", "dpmpp-3m", "unipc-3", "rk4", "heun", "ddim(eta=1.0)"]


class Counting:
    """A network that counts its calls and remembers what it was told."""

    def __init__(self):
        self.times = []

    def __call__(self, x, t, **cond):
        assert t.shape == (len(x),)
        self.times.append(t.clone())
        return torch.tanh(x) * 0.3 - 0.1 * x


@pytest.mark.product(
    {"path": ["edm", "condot", "ddpm"], "solvers": [EVERY]},
    some={"solvers": shares(SOME, 3)},
)
def test_calls_made_are_calls_declared(solvers, path):
    for solver in shown(solvers):
        net = Counting()
        run = ds.solve(ds.adapt(net, path, "v"), (3, 2), solver=solver, steps=6, seed=0)
        assert len(net.times) == run.nfe == run.tableau.nfe
        assert run.done
        np.testing.assert_allclose([float(t[0]) for t in net.times], run.tableau.calls[:, 0], rtol=1e-6)
        assert run.x.isfinite().all()


@pytest.mark.product(
    {"solver": MULTI, "predicts": ["denoised", "noise", "score", "velocity", "v", "edm"]},
    each=2,
)
def test_what_the_network_predicts_does_not_matter(solver, predicts, mixture):
    """The conversions are folded into the weights; the answer is that of the denoiser."""
    x = 80 * torch.randn(4, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    one = ds.sample(mixture_model(mixture, "edm", "denoised"), noise=x, solver=solver, steps=7, seed=0)
    two = ds.sample(mixture_model(mixture, "edm", predicts), noise=x, solver=solver, steps=7, seed=0)
    torch.testing.assert_close(two, one, rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize(
    ("other", "says"),
    [
        ({"solver": "ddim"}, "solver \"UniPC.*, here 'DDIM"),
        ({"solver": "unipc-2"}, "solver "),
        ({"grid": "uniform-lambda"}, "another grid and other weights"),
        ({"nfe": 9}, "another grid and other weights"),
        ({"model": "mixture-2d(path='edm')"}, "path 'CondOT.*', here 'EDM"),
        ({"model": "mixture-2d(predicts='v')"}, "prediction 'velocity', here 'v'"),
        ({"hook": lambda step: None}, "prediction 'velocity', here 'denoised'"),
        ({"guidance": 2.0, "solver": "auto"}, "state must be of the run"),
    ],
)
def test_a_state_continues_its_own_run_alone(other, says, tmp_path):
    how = {"solver": "unipc-3", "nfe": 8}
    part = ds.solve(ds.load("mixture-2d"), (3, 2), seed=0, max_calls=4, **how)
    part.state.save(tmp_path / "state")
    given = {**how, **other}
    model = ds.load(given.pop("model", "mixture-2d"))
    for state in (part.state, ds.State.load(tmp_path / "state")):
        with pytest.raises(ValueError, match=f"state must be of the run that continues it, got one of .*{says}|{says}"):
            ds.solve(model, state=state, **given)
        assert ds.solve(ds.load("mixture-2d"), state=state, **how).done  # planned again


def test_a_state_of_an_older_file_is_not_checked_and_says_so(tmp_path):
    from diffsolve.common.files import read_tensors, write_tensors

    part = ds.solve(ds.load("mixture-2d"), (3, 2), solver="ddim", nfe=4, seed=0, max_calls=2)
    part.state.save(tmp_path / "state")
    tensors, note = read_tensors(tmp_path / "state", "state")
    del note["run"]
    write_tensors(tmp_path / "state", tensors, "state", {**note, "format": "diffsolve.state/1"})
    with pytest.warns(UserWarning, match="of diffsolve 0.1, .* is not checked"):
        state = ds.State.load(tmp_path / "state")
    whole = ds.sample(ds.load("mixture-2d"), (3, 2), solver="ddim", nfe=4, seed=0)
    assert torch.equal(ds.solve(ds.load("mixture-2d"), solver="ddim", nfe=4, state=state).x, whole)


def test_driven_with_the_denoised_estimate(mixture):
    """A program that has only D, as ComfyUI does, drives a model of any prediction."""
    model = mixture_model(mixture, "vp", "noise")
    ex = ds.begin(model, (5, 2), solver="unipc-2", nfe=8, seed=1, dtype=torch.float64, prediction="denoised")
    while not ex.done:
        x, t = ex.query()
        ex.advance(model.denoised(x, t))
    torch.testing.assert_close(ex.y, ds.sample(model, (5, 2), solver="unipc-2", nfe=8, seed=1, dtype=torch.float64))


@pytest.mark.product({"solver": EVERY, "stop": [1, 3, 5]}, some={"solver": SOME})
def test_a_resumed_run_is_the_unbroken_run(solver, stop, tmp_path):
    model = ds.adapt(Counting(), "edm", "denoised")
    whole = ds.solve(model, (3, 2), solver=solver, steps=6, seed=[5, 6, 7])
    part = ds.solve(model, (3, 2), solver=solver, steps=6, seed=[5, 6, 7], max_calls=stop)
    assert part.nfe == stop
    assert not part.done
    part.state.save(tmp_path / "state")
    for state in (part.state, ds.State.load(tmp_path / "state")):
        rest = ds.solve(model, solver=part.tableau, state=state)
        assert rest.nfe == whole.nfe - stop
        assert torch.equal(rest.x, whole.x)
    assert [f.name for f in tmp_path.iterdir()] == ["state"]


@pytest.mark.parametrize("solver", ["dpmpp-2m", "unipc-3", "ddim(eta=1.0)"])
def test_a_sample_depends_on_its_seed_alone(solver):
    # An elementwise network: one that multiplies matrices may itself round differently in another batch.
    model = ds.adapt(Counting(), "edm", "denoised")
    run = partial(ds.sample, model, solver=solver, nfe=7)
    whole = run((64, 3, 5), seed=9)
    assert torch.equal(run((1, 3, 5), seed=9), whole[:1])
    assert torch.equal(run((7, 3, 5), seed=9), whole[:7])
    assert torch.equal(run((7, 3, 5), seed=9, index=20), whole[20:27])
    seeds = list(range(100, 108))
    listed = run((8, 3, 5), seed=seeds)
    order = [5, 2, 7, 0, 1, 3, 4, 6]
    assert torch.equal(run((8, 3, 5), seed=[seeds[i] for i in order]), listed[order])
    assert torch.equal(run((1, 3, 5), seed=[103]), listed[3:4])
    assert not torch.equal(listed[0], listed[1])


def test_the_global_random_state_is_untouched():
    before = torch.get_rng_state()
    run = ds.solve(ds.adapt(Counting(), "edm", "denoised"), (3, 2), solver="ddim(eta=1.0)", nfe=5)
    assert torch.equal(torch.get_rng_state(), before)
    again = ds.solve(ds.adapt(Counting(), "edm", "denoised"), (3, 2), solver="ddim(eta=1.0)", nfe=5, seed=run.seed)
    assert torch.equal(again.x, run.x)
    assert ds.solve(ds.adapt(Counting(), "edm", "denoised"), (3, 2), nfe=5).seed != run.seed


def test_the_given_noise_is_not_written_to():
    x = torch.randn(3, 2)
    before = x.clone()
    for net in (lambda x, t: x, lambda x, t: x[:], lambda x, t: x.clone()):  # also networks that return their input
        results = [
            ds.sample(ds.adapt(net, "condot", "velocity"), noise=x, solver=s, steps=4)
            for s in ("euler", "ab-3", "heun", "rk4")
        ]
        assert torch.equal(x, before)
        torch.testing.assert_close(results[0], x * 1.25**4)
        torch.testing.assert_close(results[3], x * np.e, rtol=1e-4, atol=1e-4)


def test_a_network_that_reuses_its_output_buffer():
    """As a captured CUDA graph does: the history must not be a view of it."""
    buffer = torch.empty(3, 2)

    def net(x, t):
        return buffer.copy_(torch.tanh(x) * 0.3)

    for predicts in ("denoised", "noise"):
        for solver in MULTI:
            reused = ds.sample(ds.adapt(net, "edm", predicts), (3, 2), solver=solver, steps=6, seed=0)
            fresh = ds.sample(
                ds.adapt(lambda x, t: torch.tanh(x) * 0.3, "edm", predicts), (3, 2), solver=solver, steps=6, seed=0
            )
            assert torch.equal(reused, fresh)


def peak_of_states(solver):
    """(how many states are alive at most between two calls, the run)."""
    alive = []

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            out = func(*args, **(kwargs or {}))
            for t in out if isinstance(out, (tuple, list)) else (out,):
                if isinstance(t, torch.Tensor) and t.numel() == 6000:
                    alive.append(weakref.ref(t.untyped_storage()))
            return out

    peak = 0

    def net(x, t):
        nonlocal peak
        peak = max(peak, len({s.data_ptr() for s in (ref() for ref in alive) if s is not None}))
        return -x

    model = ds.adapt(net, "edm", "noise")
    with Watch():
        run = ds.solve(model, (2, 3000), solver=solver, steps=9, seed=0)
    return peak, run


@pytest.mark.product({"solvers": shares(EVERY, 5)}, some={"solvers": shares(SOME, 5)})
def test_live_states(solvers):
    """At most K + 2 states, one scratch and the network's output are alive between two calls."""
    for solver in shown(solvers):
        peak, run = peak_of_states(solver)
        assert peak <= run.tableau.history + 2 + 1


class NoSync(TorchDispatchMode):
    """Raises where a GPU would have to be waited for."""

    FORBIDDEN = ("_local_scalar_dense", "nonzero", "is_nonzero", "equal", "masked_select", "item")

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        assert not any(name in str(func) for name in self.FORBIDDEN), f"{func} waits for the device"
        return func(*args, **(kwargs or {}))


@pytest.mark.product({"solvers": shares(EVERY, 5)}, some={"solvers": shares(SOME, 5)})
def test_driven_from_outside_and_without_host_synchronisation(solvers):
    """Bit for bit the same run; once more under a mode that looks on, which keeps the compiled loop away."""
    model = ds.adapt(Counting(), "condot", "velocity")
    for solver in shown(solvers):
        plain, watched = (ds.begin(model, (3, 2), solver=solver, steps=6, seed=4) for _ in range(2))
        while not plain.done:
            plain.advance(model.net(*plain.query()))
        assert torch.equal(plain.y, ds.sample(model, (3, 2), solver=solver, steps=6, seed=4))
        assert plain.call == plain.tableau.nfe
        with NoSync():
            while not watched.done:
                watched.advance(model.net(*watched.query()))


def test_a_host_synchronisation_is_seen():
    with pytest.raises(AssertionError, match="waits"), NoSync():
        bool(torch.ones(()).isfinite())


def test_callback_sees_every_step(mixture):
    model = mixture_model(mixture, "edm", "noise")
    steps = []
    run = ds.solve(model, (3, 2), solver="heun", steps=4, seed=0, callback=steps.append, trajectory=True)
    assert [s.call for s in steps] == list(range(7))
    assert {s.calls for s in steps} == {7}
    np.testing.assert_allclose([s.t for s in steps], run.tableau.calls[:, 0])
    assert steps[-1].x is run.x
    torch.testing.assert_close(steps[-1].denoised, run.x)  # the last update is the denoised estimate


def test_trajectory(mixture):
    model = mixture_model(mixture, "vp", "v")
    run = ds.solve(model, (3, 2), solver="unipc-2", steps=5, seed=0, trajectory=True)
    assert run.trajectory.shape == (6, 3, 2)
    assert len(run.times) == 6
    assert torch.equal(run.trajectory[-1], run.x)
    prior = ds.Key(0).normal((3, 2), stream=Stream.PRIOR)
    assert torch.equal(run.trajectory[0], prior)
    rk = ds.solve(model, (3, 2), solver="rk4", steps=5, seed=0, trajectory=True, stop=0.1)
    assert rk.trajectory.shape == (6, 3, 2)


def test_hook_changes_the_denoised_estimate(mixture):
    model = mixture_model(mixture, "edm", "noise")
    same = ds.sample(model, (3, 2), solver="dpmpp-2m", steps=6, seed=0, dtype=torch.float64)
    seen = []

    def look(step):
        seen.append(step.denoised.clone())

    torch.testing.assert_close(
        ds.sample(model, (3, 2), solver="dpmpp-2m", steps=6, seed=0, dtype=torch.float64, hook=look), same
    )
    assert len(seen) == 6
    clipped = ds.sample(
        model, (3, 2), solver="dpmpp-2m", steps=6, seed=0, hook=lambda step: step.denoised.clamp(-0.1, 0.1)
    )
    assert clipped.abs().max() <= 0.1 + 1e-6
    # The same as a network that clips by itself.
    own = ds.adapt(lambda x, t: model.denoised(x, t.double()).clamp(-0.1, 0.1), "edm", "denoised")
    torch.testing.assert_close(
        clipped, ds.sample(own, (3, 2), solver="dpmpp-2m", steps=6, seed=0), rtol=1e-4, atol=1e-5
    )
    with pytest.raises(ValueError, match="hook must return None or a tensor of shape .*, got float"):
        ds.sample(model, (3, 2), solver="euler", steps=3, seed=0, hook=lambda step: 1.0)


def test_conditioning_reaches_the_network():
    got = []

    def net(x, t, label, scale=1.0):
        got.append((label, scale))
        return x

    label = torch.tensor([1, 2])
    ds.sample(ds.adapt(net, "condot", "velocity"), (2, 3), steps=2, solver="euler", cond={"label": label, "scale": 3.0})
    assert len(got) == 2
    assert got[0][0] is label
    assert got[0][1] == 3.0


def test_image_to_image(mixture):
    """From part-way: the start has the analytic deviation, and the run ends exactly at `stop`."""
    model = mixture_model(mixture, "ddpm", "noise")
    data = mixture.sample(20000, seed=0)
    x = ds.diffuse(model, data, 500.0, seed=3)
    path = model.path
    var = path.alpha(500.0) ** 2 * mixture.covariance + path.sigma(500.0) ** 2 * torch.eye(2, dtype=torch.float64)
    torch.testing.assert_close(torch.cov(x.T), var, rtol=0.04, atol=0.02)
    run = ds.solve(model, noise=x[:50], solver="dpmpp-2m", steps=60, start=500.0, stop=100.0)
    assert run.times[0] == 500
    assert run.times[-1] == 100
    pair = lambda t: (float(path.alpha(t)), float(path.sigma(t)))  # noqa: E731
    exact = mixture.flow(x[:50], pair(500.0), pair(100.0))
    torch.testing.assert_close(run.x, exact, rtol=0, atol=5e-3)
    assert run.x.dtype == torch.float64


@pytest.mark.product(
    {
        "path, predicts": [
            *(("condot", "velocity"), ("edm", "denoised"), ("ddpm", "noise"), ("vp", "v"), ("condot", "denoised"))
        ],
        "solver": ["rk4", "unipc-3", "dpmpp-2m", "ab-3"],
    }
)
def test_encode_is_the_way_back(path, predicts, solver, mixture):
    model = mixture_model(mixture, path, predicts)
    x = mixture.sample(20, seed=1)
    z = ds.encode(model, x, solver=solver, steps=200)
    back = ds.sample(model, noise=z, solver=solver, steps=200)
    assert z.isfinite().all()
    assert (back - x).abs().max() < 0.05
    exact = mixture.flow(
        x, (1.0, 1e-3), tuple(float(f(model.path.t_noise)) for f in (model.path.alpha, model.path.sigma))
    )
    assert (z - exact).abs().max() / exact.abs().max() < 0.05


def test_dtypes():
    model = ds.adapt(Counting(), "edm", "denoised")
    for given, state in (
        (torch.float16, torch.float32),
        (torch.bfloat16, torch.float32),
        (torch.float64, torch.float64),
    ):
        assert ds.sample(model, noise=torch.ones(2, 2, dtype=given), solver="euler", steps=2).dtype == state
    for solver in MULTI:
        for dtype in (torch.bfloat16, torch.float16):
            x = ds.sample(model, (4, 3), solver=solver, steps=9, seed=0, dtype=dtype)
            assert x.dtype == dtype
            assert x.isfinite().all()
    wide = ds.adapt(lambda x, t: x.double(), "edm", "denoised")  # a network of higher precision than the state
    assert ds.sample(wide, (4, 3), solver="unipc-3", steps=9, seed=0).dtype == torch.float32


def test_half_precision_output_is_not_rounded_further(mixture):
    """A bf16 network under an fp32 state: the error is that of its rounding, not of the update's."""
    exact = mixture_model(mixture, "edm", "denoised")
    half = ds.adapt(lambda x, t: exact.net(x, t).bfloat16(), "edm", "denoised")
    rounded = ds.adapt(lambda x, t: exact.net(x, t).bfloat16().float(), "edm", "denoised")
    for solver in MULTI:
        one, two = (ds.sample(m, (64, 2), solver=solver, steps=12, seed=0) for m in (half, rounded))
        torch.testing.assert_close(one, two, rtol=2e-6, atol=2e-6)


def test_any_shape():
    model = ds.adapt(Counting(), "edm", "denoised")
    for shape in ((1,), (5,), (2, 1), (1, 3, 1, 7), (2, 2, 2, 2, 2, 2), (0, 3)):
        assert ds.sample(model, shape, solver="unipc-3", steps=4, seed=0).shape == shape
    channels_last = torch.randn(2, 3, 4, 4).to(memory_format=torch.channels_last)
    assert ds.sample(model, noise=channels_last, solver="ab-2", steps=3).is_contiguous(
        memory_format=torch.channels_last
    )
    strided = torch.randn(3, 4).T
    plain = ds.sample(model, noise=strided.contiguous(), solver="unipc-3", steps=4)
    torch.testing.assert_close(ds.sample(model, noise=strided, solver="unipc-3", steps=4), plain)


def test_no_graph_is_kept():
    net = torch.nn.Linear(2, 2)
    x = ds.sample(
        ds.adapt(lambda x, t: net(x), "edm", "denoised"),
        noise=torch.ones(3, 2, requires_grad=True),
        solver="ab-2",
        steps=3,
    )
    assert not x.requires_grad
    assert torch.is_grad_enabled()


def test_one_solver_in_two_threads():
    model = ds.adapt(Counting(), "edm", "denoised")
    solver = ds.solvers.named("unipc-3")
    shapes = [(3, 2), (5, 4, 2), (3, 2), (1, 7)]
    alone = [ds.sample(model, s, solver=solver, nfe=8, seed=0) for s in shapes]
    found = [None] * len(shapes)

    def work(i):
        for _ in range(5):
            found[i] = ds.sample(model, shapes[i], solver=solver, nfe=8, seed=0)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(len(shapes))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(torch.equal(a, b) for a, b in zip(alone, found, strict=True))


def test_progress_shows_a_bar(capsys):
    model = ds.adapt(Counting(), "edm", "denoised")
    ds.sample(model, (1, 2), solver="euler", steps=3, seed=0)
    assert capsys.readouterr().err == ""
    ds.sample(model, (1, 2), solver="euler", steps=3, seed=0, progress=True)
    assert "3/3" in capsys.readouterr().err


def test_prior_and_step_noises_are_uncorrelated():
    key = ds.Key(11)
    draws = [key.normal((1, 100000), stream=Stream.PRIOR)] + [
        key.normal((1, 100000), row=i, stream=Stream.ROW) for i in range(4)
    ]
    corr = torch.corrcoef(torch.cat(draws)) - torch.eye(5)
    assert corr.abs().max() < 5 / 100000**0.5


def nan_at(call):
    calls = []

    def net(x, t):
        calls.append(1)
        return x * float("nan") if len(calls) == call + 1 else x * 0.1

    return net


OK = ds.adapt(lambda x, t: x * 0.1, "edm", "denoised")
TAB = ds.plan("edm", "euler", steps=2)


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: ds.sample(lambda x, t: x, (1, 2), nfe=3), "model must be a Model .* got one of type function"),
        (lambda: ds.sample(OK, (1, 2)), "exactly one of steps and nfe must be given, got none of them"),
        (lambda: ds.sample(OK, (1, 2), steps=3, nfe=3), "exactly one"),
        (lambda: ds.sample(OK, (1, 2), steps=True), "steps must be an integer >= 1, got True"),
        (lambda: ds.sample(OK, (1, 2), steps=3, solver="eulr"), "did you mean 'euler'"),
        (lambda: ds.sample(OK, (1, 2), steps=3, solver=3), "solver must be a name or a Solver, got 3"),
        (lambda: ds.sample(OK, (1, 2), steps=3, grid="karas"), "did you mean 'karras'"),
        (lambda: ds.sample(OK, steps=3), "exactly one of shape and noise must be given"),
        (lambda: ds.sample(OK, (1, 2), noise=torch.ones(1, 2), steps=3), "exactly one of shape and noise must be"),
        (
            lambda: ds.sample(OK, noise=torch.ones(1, 2, dtype=torch.int64), steps=3),
            "noise must be a floating tensor, got Tensor of shape .* and dtype torch.int64",
        ),
        (lambda: ds.sample(OK, noise=np.ones((1, 2)), steps=3), "noise must be a floating tensor, got ndarray"),
        (lambda: ds.sample(OK, noise=torch.ones(()), steps=3), r"noise must be of shape \(B, ...\)"),
        (lambda: ds.sample(OK, (1, 2.5), steps=3), "shape"),
        (lambda: ds.sample(OK, (1, -2), steps=3), "shape"),
        (lambda: ds.sample(OK, 4, steps=3), "shape"),
        (lambda: ds.sample(OK, (1, 2), steps=3, seed=-1), "seed must be .*, got -1"),
        (lambda: ds.sample(OK, (1, 2), steps=3, seed=1.5), "seed must be .*, got 1.5"),
        (lambda: ds.sample(OK, (3, 2), steps=3, seed=[1, 2]), "seed"),
        (lambda: ds.sample(OK, (1, 2), steps=3, dtype=torch.int32), "dtype must be a floating torch.dtype"),
        (lambda: ds.sample(OK, (1, 2), steps=3, start=1.0), "noise must be given with start=1.0"),
        (lambda: ds.sample(OK, noise=torch.ones(1, 2), steps=3, start=1.0, stop=2.0), "noisier side"),
        (lambda: ds.sample(OK, noise=torch.ones(1, 2), steps=3, start=100.0), "start must be between"),
        (lambda: ds.sample(OK, (1, 2), solver=TAB, steps=3), "steps=3 cannot be given with a tableau"),
        (lambda: ds.sample(OK, (1, 2), solver=TAB, state=3), "state must be a ds.State, got 3"),
        (lambda: ds.sample(OK, (1, 2), steps=3, max_calls=-1), "max_calls must be an integer >= 1, got -1"),
        (
            lambda: ds.sample(ds.adapt(lambda x, t: x, "condot", "noise"), (1, 2), steps=3),
            "predicts 'noise' does not determine",
        ),
        (
            lambda: ds.sample(ds.adapt(lambda x, t: x[:, :1], "edm", "noise"), (1, 2), steps=3),
            r"output of net must have the shape of x, .* got shape \(1, 1\)",
        ),
        (lambda: ds.diffuse(OK, torch.ones(1, 2), 99.0), "t must be from 80.0 to 0.0 on"),
        (lambda: ds.sample(OK, (1, 2), steps=3, cond=[1]), "cond must be a mapping of keyword arguments"),
    ],
)  # fmt: skip
def test_errors_name_what_is_wrong(make, says):
    with pytest.raises((ValueError, TypeError), match=says):
        make()


def test_nan_is_found_where_it_appeared():
    with pytest.raises(FloatingPointError, match=r"net returned 6 non-finite values of 6 in call 2 of 5, at t=2\.5152"):
        ds.sample(ds.adapt(nan_at(2), "edm", "denoised"), (3, 2), solver="euler", steps=5, seed=0, check=True)
    x = ds.sample(ds.adapt(nan_at(2), "edm", "denoised"), (3, 2), solver="euler", steps=5, seed=0)
    assert x.isnan().all()


def test_a_key_makes_noise_antithetic_or_shared(tmp_path):
    model, options = ds.load("mixture-2d"), {"solver": "ddim(eta=1)", "steps": 6}
    key = ds.Key(3, antithetic=True)
    run = ds.solve(model, (6, 2), seed=key, **options)
    assert run.seed == key
    plain = ds.sample(model, (6, 2), seed=3, **options)
    assert torch.equal(run.x[::2], plain[::2])
    shard = ds.sample(model, (3, 2), seed=ds.Key(3, index=3, antithetic=True), **options)
    torch.testing.assert_close(shard, run.x[3:], rtol=1e-5, atol=1e-5)
    # The ring is symmetric about the origin, so the opposite noise makes the opposite sample.
    torch.testing.assert_close(run.x[1::2], -run.x[::2], rtol=1e-3, atol=1e-3)
    half = ds.solve(model, (6, 2), seed=key, max_calls=3, **options)
    half.state.save(tmp_path / "state")
    state = ds.State.load(tmp_path / "state")
    assert state.key == key
    rest = ds.solve(model, solver=run.tableau, state=state)
    assert rest.seed == key
    assert torch.equal(rest.x, run.x)
    shared = ds.sample(model, (3, 2), seed=ds.Key(3, shared=True), **options)
    torch.testing.assert_close(shared, plain[:1].expand(3, 2), rtol=1e-5, atol=1e-5)
    with pytest.raises(ValueError, match="index must be 0 with seed=Key"):
        ds.sample(model, (3, 2), seed=key, index=2, **options)


def test_a_network_of_whole_rows_is_told_the_times_of_its_steps():
    told = []

    def net(x, t):
        told.append(float(t[0]))
        return 0.5 * x

    model = ds.adapt(net, "ddpm", "noise", clock="index")
    for grid in (None, "uniform-lambda", "karras"):
        told.clear()
        run = ds.solve(model, (2, 3), solver="unipc-2", steps=12, grid=grid)
        assert told == run.tableau.calls[:, 0].tolist()
        assert told == [round(t) for t in told]
        told.clear()
        back = ds.solve(model, noise=run.x, solver="ab-2", grid=[0.0, 10.5, 500.0])  # your own times stay
        assert back.tableau.times.tolist() == [0.0, 10.5, 500.0]
    assert ds.plan("ddpm", steps=12, predicts="noise").times[3] % 1 != 0
    told.clear()
    ds.encode(model, torch.zeros(2, 3), steps=9)
    assert told == [round(t) for t in told]


def test_an_output_of_another_shape_or_of_integers_is_refused():
    ex = ds.begin(ds.adapt(lambda x, t: -x, "condot", "velocity"), (3, 2), solver="euler", steps=1, seed=0)
    y = ex.y.clone()
    for out in (torch.ones(1, 2), torch.ones(3, 1), torch.ones(()), kernels.Guided(torch.ones(1, 2), y, 2.0)):
        with pytest.raises(ValueError, match=r"out must be of the shape of the state, \(3, 2\), got"):
            ex.advance(out)
    for out in (torch.ones(3, 2, dtype=torch.long), y.tolist(), kernels.Guided(y, torch.ones(3, 2).int(), 2.0)):
        with pytest.raises(TypeError, match="out must be a floating tensor, got"):
            ex.advance(out)
    assert torch.equal(ex.y, y)
    assert ex.call == 0
    ex.advance(-y)
    for call in (ex.query, lambda: ex.advance(y)):
        with pytest.raises(ValueError, match="must be called before the run is done, got it after the last of 1"):
            call()


def test_a_hook_that_returns_integers_is_refused():
    model = ds.adapt(lambda x, t: -x, "condot", "velocity")
    with pytest.raises(TypeError, match="what hook returns must be a floating tensor"):
        ds.sample(model, (3, 2), solver="euler", steps=2, seed=0, hook=lambda step: torch.ones(3, 2).int())


def test_a_correction_has_the_state_s_shape():
    model = ds.adapt(lambda x, t: -x, "condot", "velocity")
    ex = ds.begin(model, (2, 3), solver="dpmpp-2m", steps=4, seed=0)
    for wrong in (torch.zeros(1, 3), torch.zeros(3), torch.zeros(()), torch.zeros(2, 3, 1)):
        with pytest.raises(ValueError, match=r"y must be of the shape of the state, \(2, 3\), got"):
            ex.correct(wrong)
    for wrong in (torch.zeros(2, 3, dtype=torch.long), 0.0, np.zeros((2, 3))):
        with pytest.raises(TypeError, match="y must be a floating tensor, got"):
            ex.correct(wrong)
    ex.correct(torch.ones(2, 3, dtype=torch.float64))
    assert torch.equal(ex.y, torch.ones(2, 3))
