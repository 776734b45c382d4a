"""Runs as CUDA graphs, as far as they can be tested without a GPU; and what torch.compile makes of a run."""

import gc

import pytest
import torch
from support.recorder import Recorder
from torch._dynamo.testing import CompileCounter

import diffsolve as ds
from diffsolve import kernels
from diffsolve.execute import Executor, graph


class Net(torch.nn.Module):
    def forward(self, x, t, shift=0.0, label=None):
        return torch.tanh(x + shift) * 0.3


EXACT = tuple(map(int, torch.__version__.split(".")[:2])) >= (2, 7)
TRACED = {"rtol": 0, "atol": 0} if EXACT else {"rtol": 1e-6, "atol": 1e-6}  # PyTorch 2.6 traces weights as float32


@pytest.fixture
def recorded(monkeypatch):
    record = Recorder()
    monkeypatch.setattr("diffsolve.api.drivers.replay", lambda *a: graph.replay(*a, record=record))
    return record.made


SOLVERS = ("euler", "dpmpp-2m", "unipc-3", "rk4", "ddim(eta=1.0)")


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("guidance", [None, 3.0])
def test_a_replay_is_the_run(solver, guidance, recorded):
    model = ds.adapt(Net(), "edm", "noise")
    options = {"solver": solver, "steps": 5, "guidance": guidance}
    for seed, shift in ((0, 0.5), (0, -1.0), (0, 2.0)):
        cond = {"shift": torch.full((3, 2), shift), "label": "a"}
        want = ds.sample(model, (3, 2), seed=seed, cond=cond, **options)
        assert torch.equal(ds.sample(model, (3, 2), seed=seed, cond=cond, graph=True, **options), want)
    assert len(recorded) == 1
    start = torch.randn(3, 2) * 80
    want = ds.sample(model, noise=start, cond=cond, seed=0, **options)
    assert torch.equal(ds.sample(model, noise=start, cond=cond, seed=0, graph=True, **options), want)
    assert len(recorded) == 1


def test_what_is_recorded_anew(recorded):
    net = Net()
    model = ds.adapt(net, "edm", "noise")

    def run(solver="euler", shape=(3, 2), model=model, seed=0, **options):
        steps = options.pop("steps", 4)
        same = dict(solver=solver, steps=steps, seed=seed, **options)
        assert torch.equal(ds.sample(model, shape, graph=True, **same), ds.sample(model, shape, **same))
        return len(recorded)

    assert [run(), run(), run(seed=5)] == [1, 1, 1]  # the seed of a deterministic solver is not recorded
    assert run(shape=(4, 2)) == 2
    assert run(steps=5) == 3
    assert run(dtype=torch.float64) == 4
    assert run(model=ds.adapt(net, "edm", "denoised")) == 5
    assert run(solver="ddim(eta=1.0)") == 6
    assert run(solver="ddim(eta=1.0)", seed=1) == 7  # that of a stochastic one is
    assert run(solver="ddim(eta=1.0)", seed=1) == 7
    assert run(cond={"label": "b"}) == 8
    assert run(cond={"label": "c"}) == 9
    assert len(graph._captures[net]) == graph.KEPT


def test_a_result_outlives_the_next_replay(recorded):
    model = ds.adapt(Net(), "edm", "noise")
    one = ds.solve(model, (3, 2), solver="euler", steps=3, seed=0, graph=True)
    kept = one.x.clone()
    ds.solve(model, (3, 2), solver="euler", steps=3, seed=1, graph=True)
    assert torch.equal(one.x, kept)
    assert one.done
    assert one.nfe == 3
    assert torch.equal(one.state.y, kept)


def test_captures_go_with_their_network(monkeypatch):
    def record(work):  # as a CUDA graph, it keeps the memory and not the work
        return work(), lambda: None

    monkeypatch.setattr("diffsolve.api.drivers.replay", lambda *a: graph.replay(*a, record=record))
    model = ds.adapt(Net(), "edm", "noise")
    gc.collect()
    before = len(graph._captures)
    ds.sample(model, (3, 2), solver="euler", steps=3, seed=0, graph=True)
    assert len(graph._captures) == before + 1
    del model
    gc.collect()
    assert len(graph._captures) == before


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({}, "device must be a CUDA device with graph=True, got cpu"),
        ({"hook": lambda step: None}, "hook=.* cannot be given with graph"),
        ({"trajectory": True}, "trajectory=True cannot be given with graph"),
        ({"max_calls": 2}, "max_calls=2 cannot be given with graph"),
    ],
)
def test_refused(options, says):
    with pytest.raises(ValueError, match=says):
        ds.solve(ds.adapt(Net(), "edm", "noise"), (3, 2), solver="euler", steps=3, graph=True, **options)


DETERMINISTIC, STOCHASTIC = ("euler", "dpmpp-2m", "unipc-2", "heun"), ("ddim(eta=1.0)", "seeds-2", "sa-2")


TRACES = [
    *((solver, 0) for solver in DETERMINISTIC + STOCHASTIC),
    *(("ddpm", seed) for seed in ([7, 2**64 - 1, 0], ds.Key(3, antithetic=True))),
]


@pytest.mark.product({"solver, seed": TRACES}, some={"solver, seed": TRACES[2::2] + TRACES[7:8]})
def test_a_run_traces_as_one_graph(solver, seed, monkeypatch):
    """torch.compile(fullgraph=True) takes a whole run, noise and all, and does not compile again for another start."""
    torch._dynamo.reset()
    net = Net()
    model = ds.adapt(net, "edm", "noise")
    first = ds.begin(model, (3, 2), solver=solver, steps=3, seed=seed)
    monkeypatch.setenv("DIFFSOLVE_KERNELS", "torch")  # what is traced is torch, whatever runs otherwise

    def run(x):
        ex = Executor(first.program, x, first.key, network_time=first._clock)
        while not ex.done:
            ex.advance(net(*ex.query()))
        return ex.y

    counter = CompileCounter()
    compiled = torch.compile(run, backend=counter, fullgraph=True)
    with torch.no_grad():
        for x in (torch.randn(3, 2), torch.randn(3, 2) * 9):
            found = compiled(x)
            torch.testing.assert_close(found, ds.sample(model, noise=x, solver=solver, steps=3, seed=seed), **TRACED)
    assert counter.frame_count == 1


@pytest.mark.slow
@pytest.mark.parametrize("solver", ["unipc-3", "ddpm"])
def test_a_run_traces_without_a_word_in_the_environment(solver):
    """The compiled loop steps aside by itself, and its graph is functional enough for ahead-of-time autograd."""
    net = Net()
    model = ds.adapt(net, "edm", "noise")
    first = ds.begin(model, (3, 2), solver=solver, steps=3, seed=0)

    @torch.compile(backend="aot_eager", fullgraph=True)
    def run(x):
        ex = Executor(first.program, x, first.key, network_time=first._clock)
        while not ex.done:
            ex.advance(net(*ex.query()))
        return ex.y

    with torch.no_grad():
        x = torch.randn(3, 2)
        torch.testing.assert_close(run(x), ds.sample(model, noise=x, solver=solver, steps=3, seed=0))


def test_a_network_that_hands_its_input_back_traces_too():
    model = ds.adapt(lambda x, t: x, "condot", "velocity")
    first = ds.begin(model, (3, 2), solver="ab-2", steps=4, seed=0)

    @torch.compile(backend="eager", fullgraph=True)
    def run(x):
        ex = Executor(first.program, x, first.key, network_time=first._clock)
        while not ex.done:
            ex.advance(ex.query()[0])
        return ex.y

    x = torch.randn(3, 2)
    torch.testing.assert_close(run(x), ds.sample(model, noise=x, solver="ab-2", steps=4), **TRACED)


def test_steps_of_one_form_are_compiled_once():
    """A step as a combination whose weights are data: one compilation, whatever the step."""
    tableau = ds.plan("edm", "dpmpp-2m", steps=8)
    table = torch.from_numpy(tableau.weights[:, 1].copy()).float()
    counter = CompileCounter()

    @torch.compile(backend=counter, fullgraph=True)
    def step(y, out, before, weights):
        return kernels.combine([y, y, out, before, y], weights[None])[0]

    y, d = torch.randn(2, 3, 2)
    for i in range(1, 8):
        out, before = torch.tanh(y), d
        new = step(y, out, before, table[i])
        s, y_, d0, d1, z = table[i].tolist()
        torch.testing.assert_close(new, (s + y_ + z) * y + d0 * out + d1 * before)
        y, d = new, out
    assert counter.frame_count == 1


def test_conditions_at_any_depth_are_copied_into_a_replay(recorded):
    def net(x, t, added, scale):
        return -x * added["k"][0][:, None] * scale

    model = ds.adapt(net, "condot", "velocity")
    for k in (1.0, 2.0, 3.0):
        given = {
            "noise": torch.ones(2, 2), "solver": "euler", "steps": 2,
            "cond": {"added": {"k": [torch.tensor([k, 1.0])]}, "scale": ds.Shared(torch.tensor([k, 0.5]))},
        }  # fmt: skip
        assert torch.equal(ds.sample(model, graph=True, **given), ds.sample(model, **given))
    assert len(recorded) == 1
