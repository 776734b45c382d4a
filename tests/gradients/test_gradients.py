"""Gradients through runs: their values, exactness and memory."""

import subprocess
import sys

import pytest
import torch
from support.live import live_numbers
from support.nets import Net, noise

import diffsolve as ds
from diffsolve.adaptive import Adaptive
from diffsolve.api import reversible
from diffsolve.tableau.augmented import augmented


def gradients(model, gradient, solver="rk4", steps=8, **options):
    x, shift = noise().requires_grad_(), torch.tensor([[0.3], [-0.2]], dtype=torch.float64, requires_grad=True)
    options = {"steps": steps, **options} if steps else options
    run = ds.solve(model, noise=x, solver=solver, cond={"shift": shift}, gradient=gradient, seed=0, **options)
    return run, torch.autograd.grad(run.x.square().sum(), [x, shift, model.net.weight])


NETWORKS = [("condot", "velocity"), ("vp", "v"), ("edm", "edm")]


@pytest.mark.product(
    {
        "solver": ["euler", "rk4", "unipc-3", "dpmpp-3m", "ddim(eta=1.0)", "abm-3", "res-3s", "ab-5", "tsit5"],
        "path, predicts": NETWORKS,
    }
)
def test_values_are_the_executors_and_checkpoints_change_nothing(path, predicts, solver):
    model = ds.adapt(Net(), path, predicts)
    plain = ds.sample(
        model,
        noise=noise(),
        solver=solver,
        steps=7,
        cond={"shift": torch.tensor([[0.3], [-0.2]], dtype=torch.float64)},
        seed=0,
    )
    one, direct = gradients(model, "direct", solver, 7)
    two, kept = gradients(model, "checkpoint", solver, 7)
    assert torch.equal(one.x.detach(), plain)
    assert torch.equal(two.x.detach(), plain)
    assert one.done
    for a, b in zip(direct, kept, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("gradient", ["direct", "checkpoint"])
def test_gradcheck(gradient):
    net = Net(2)

    def result(x, weight, shift):
        model = ds.adapt(lambda x, t, shift: torch.tanh(x @ weight + shift), "vp", "v")
        return ds.solve(model, noise=x, solver="unipc-2", steps=4, cond={"shift": shift}, gradient=gradient).x

    x = torch.randn(2, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(1)).requires_grad_()
    shift = torch.zeros(2, 1, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(result, (x, net.weight, shift))


@pytest.mark.parametrize(("path", "predicts"), [("condot", "velocity"), ("vp", "v"), ("edm", "edm")])
def test_the_adjoint_converges_to_the_exact_gradient(path, predicts):
    """With the order of the solver: 4 for rk4."""
    model = ds.adapt(Net(), path, predicts)
    errors = []
    for steps in (20, 40):
        (run, exact), (other, found) = (gradients(model, g, "rk4", steps, grid="angle") for g in ("direct", "adjoint"))
        assert torch.equal(run.x, other.x)
        errors.append(max((a - b).abs().max() / a.abs().max() for a, b in zip(exact, found, strict=True)))
    assert errors[1] < 1e-3
    assert errors[1] < errors[0] / 8


NAMES = [name for name in ds.solvers.names() if not ds.plan("vp", name, steps=4).stochastic]
SOME = ["ab-3", "dpmpp-2m", "heun", "res-3s"]


@pytest.mark.product({"solver": NAMES, "path, predicts": NETWORKS}, some={"solver": SOME}, each=2)
def test_an_adjoint_converges_or_is_refused(path, predicts, solver):
    """Never silently wrong: where the way back has no limit, the error says what to use instead."""
    model = ds.adapt(Net(), path, predicts)

    def error(steps):
        (_, exact), (_, found) = (gradients(model, g, solver, steps, grid="angle") for g in ("direct", "adjoint"))
        return max((a - b).abs().max() / a.abs().max() for a, b in zip(exact, found, strict=True))

    try:
        coarse, fine = error(40), error(160)
    except ValueError as refused:
        with pytest.raises(ValueError, match="gradient='direct' and 'checkpoint' take any solver"):
            raise refused
        return
    assert fine < 0.8 * coarse or fine < 1e-9  # methods of first order are only on the way to their slope here


@pytest.mark.product(
    {"path, predicts": [*NETWORKS, ("vp", "noise"), ("condot", "denoised")], "steps": [1, 2, 9, 60]}, each=2
)
def test_the_adjoint_of_a_reversible_solver_is_exact(path, predicts, steps):
    """At any step size: its steps are undone, and those at the ends that cannot be have graphs of their own."""
    model = ds.adapt(Net(), path, predicts)
    (run, exact), (other, found) = (gradients(model, g, "reversible-heun", steps) for g in ("direct", "adjoint"))
    assert torch.equal(run.x, other.x)
    assert torch.equal(run.state.s, other.state.s)
    for a, b in zip(exact, found, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-11)
    wrong = gradients(model, "adjoint", "heun", steps)[1]  # which has the adjoint's own error
    assert steps == 1 or max((a - b).abs().max() for a, b in zip(exact, wrong, strict=True)) > 1e-8


def test_a_reversible_solver_in_float32_and_half():
    """What is undone is undone to the state's rounding; a network in half precision too, as it says the same again."""
    for dtype, bound in ((torch.float32, 1e-4), (torch.bfloat16, 1e-2)):
        model = ds.adapt(Net().to(dtype), "condot", "velocity")
        found = []
        for gradient in ("direct", "adjoint"):
            x = noise(4).float().requires_grad_()
            run = ds.solve(model, noise=x, solver="reversible-heun", steps=40, gradient=gradient)
            found.append(torch.autograd.grad(run.x.square().sum(), x)[0])
        assert found[0].dtype == torch.float32
        assert (found[0] - found[1]).abs().max() < bound * found[0].abs().max()


MEMORY = """
import resource, sys, torch, diffsolve as ds
torch.set_num_threads(1)
class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones((), dtype=torch.float64))

    def forward(self, x, t):
        return torch.tanh(x * self.weight)

model = ds.adapt(Net(), "condot", "velocity")
size = 2**19
x = torch.linspace(-1, 1, size, dtype=torch.float64).view(1, size).requires_grad_()
def peak(steps, gradient):
    torch.autograd.grad(ds.solve(model, noise=x, solver="euler", steps=steps, gradient=gradient).x.sum(), x)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (size * 8 / 1024)
peak(4, sys.argv[1])
print(peak(16, sys.argv[1]), peak(64, sys.argv[1]))
"""


@pytest.mark.parametrize(
    ("solver", "gradient", "growth"),
    [("rk4", "direct", 1), ("rk4", "checkpoint", 0.5), ("rk4", "adjoint", 0), ("reversible-heun", "adjoint", 0)],
)
def test_numbers_kept(solver, gradient, growth):
    """The most numbers alive at once: 4 times the calls keep 4, 2 and 1 times as many."""
    model = ds.adapt(lambda x, t: torch.tanh(x), "condot", "velocity")
    x = torch.linspace(-1, 1, 1000, dtype=torch.float64).view(1, -1).requires_grad_()
    peaks = []
    for steps in (4, 16, 64):
        with live_numbers(1000) as live:
            torch.autograd.grad(ds.solve(model, noise=x, solver=solver, steps=steps, gradient=gradient).x.sum(), x)
        peaks.append(live.peak)
    assert (peaks[2] - peaks[1]) / max(peaks[1] - peaks[0], 1) == pytest.approx(4**growth if growth else 0, rel=0.2)


@pytest.mark.slow
def test_memory_is_as_promised():
    """How many more states 64 calls need than 16, at the peak: N, sqrt N and 1, times the few that a call keeps."""
    grown = {}
    for gradient in ("direct", "checkpoint", "adjoint"):
        done = subprocess.run([sys.executable, "-c", MEMORY, gradient], check=True, capture_output=True, text=True)
        few, many = map(float, done.stdout.split())
        grown[gradient] = many - few
    assert grown["direct"] > 48
    assert grown["checkpoint"] < 0.45 * grown["direct"]
    assert grown["adjoint"] < 8


def test_adaptive_runs():
    model = ds.adapt(Net(), "condot", "velocity")
    solver = Adaptive(rtol=1e-9, atol=1e-9)
    run, found = gradients(model, "direct", solver, None)
    assert run.done
    for a, b in zip(found, gradients(model, "direct", "rk4", 100, grid="angle")[1], strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-6)


@pytest.mark.product(
    {
        "gradient": ["direct", "checkpoint", "adjoint"],
        "shape": [(3,), (3, 2, 2), (2, 1, 3, 2)],
        "dtype": [torch.float32, torch.float64],
    },
    each=3,
)
def test_any_rank_and_dtype(shape, dtype, gradient):
    """dx/dt = -x: every element's gradient is that of the solver's own step, (1 - h + h^2 / 2)^4."""
    model = ds.adapt(lambda x, t: -x, "condot", "velocity")
    x = torch.randn(shape, dtype=dtype, generator=torch.Generator().manual_seed(0)).requires_grad_()
    run = ds.solve(model, noise=x, solver="heun(frame='native')", steps=4, gradient=gradient)
    (on_x,) = torch.autograd.grad(run.x.sum(), x)
    assert on_x.dtype == dtype
    torch.testing.assert_close(on_x, torch.full_like(on_x, (1 - 0.25 + 0.25**2 / 2) ** 4))


def test_guidance_and_nested_conditions():
    """Gradients in what the guided and the unguided call are given, at any depth; one tensor in both counts twice."""

    class Guided(torch.nn.Module):
        def forward(self, x, t, given):
            return torch.tanh(x + given["shift"][0]) - x

    model, found = ds.adapt(Guided(), "condot", "velocity"), []
    one, two = (torch.full((1, 3), value, dtype=torch.float64, requires_grad=True) for value in (0.5, -0.3))
    for solver, gradient in (
        *(("reversible-heun", gradient) for gradient in ("direct", "checkpoint", "adjoint")),
        *(("rk4", gradient) for gradient in ("direct", "adjoint")),
    ):
        x = noise().requires_grad_()
        guidance = ds.Guidance(2.0, uncond={"given": {"shift": [two, one]}}, rescale=0.5)
        cond = {"given": {"shift": [one]}}
        run = ds.solve(model, noise=x, solver=solver, steps=40, cond=cond, guidance=guidance, gradient=gradient)
        found.append(torch.autograd.grad(run.x.square().sum(), [x, one, two]))
    for a, b, c, d, e in zip(*found, strict=True):
        assert a.any()
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(a, c, rtol=1e-10, atol=1e-10)
        torch.testing.assert_close(d, e, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("solver", "gradient"),
    [
        *(("rk4", gradient) for gradient in ("direct", "checkpoint", "adjoint")),
        ("reversible-heun", "adjoint"),
        (Adaptive(rtol=1e-8, atol=1e-8), "adjoint"),
    ],
)
def test_an_inversion_objective(solver, gradient):
    """d/dx |encode(x)|^2 of a linear flow in closed form, with x used once more beside it, twice through one graph."""
    model = ds.adapt(lambda x, t: -x, "condot", "velocity")
    x = noise().requires_grad_()
    steps = {} if isinstance(solver, Adaptive) else {"steps": 40}
    z = ds.encode(model, x, solver=solver, gradient=gradient, **steps)
    assert torch.equal(z.detach(), ds.encode(model, x.detach(), solver=solver, **steps))
    loss = z.square().sum() + x.sum()
    for _ in range(2):
        (found,) = torch.autograd.grad(loss, x, retain_graph=True)
        torch.testing.assert_close(found, 2 * torch.e**2 * x.detach() + 1, rtol=2e-3, atol=2e-3)


def test_a_network_that_no_adjoint_would_reach_is_refused():
    net = Net()
    for solver in ("rk4", "reversible-heun"):
        with pytest.raises(
            ValueError, match=r"depends on a tensor of shape \(3, 3\) that is neither in cond nor among"
        ):
            ds.solve(
                ds.adapt(lambda x, t: net(x, t), "vp", "v"), noise=noise(), solver=solver, steps=3, gradient="adjoint"
            )
    frozen = ds.adapt(Net().requires_grad_(False), "vp", "v")
    x = noise().requires_grad_()
    run = ds.solve(frozen, noise=x, solver="rk4", steps=20, gradient="adjoint")
    assert torch.autograd.grad(run.x.sum(), x)[0].all()


def test_noise_drawn_from_a_seed_and_guidance():
    model = ds.adapt(Net(), "vp", "v")
    shift = {"shift": torch.ones(1, dtype=torch.float64)}
    plain = ds.sample(model, (2, 3), solver="unipc-3", steps=5, seed=0, cond=shift, guidance=2.0, dtype=torch.float64)
    run = ds.solve(
        model,
        (2, 3),
        solver="unipc-3",
        steps=5,
        seed=0,
        cond=shift,
        guidance=2.0,
        dtype=torch.float64,
        gradient="direct",
    )
    assert torch.equal(run.x.detach(), plain)
    assert run.x.requires_grad
    assert not ds.solve(model, (2, 3), solver="unipc-3", steps=5, dtype=torch.float64).x.requires_grad


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"gradient": "reverse"}, "gradient must be None, 'direct', 'checkpoint' or 'adjoint', got 'reverse'"),
        ({"gradient": "adjoint", "solver": "ddim(eta=1.0)"}, "which draws noise, got 'adjoint'"),
        ({"gradient": "direct", "trajectory": True}, "trajectory=True cannot be given with gradient"),
        (
            {"gradient": "adjoint", "solver": ds.plan("vp", "heun", steps=3), "steps": None},
            "solver must be a solver, or its name",
        ),
        (
            {"gradient": "adjoint", "solver": Adaptive(), "steps": None, "grid": [1.0, 0.0], "trajectory": True},
            "gradient must be 'direct' or 'checkpoint' with a trajectory",
        ),
        (
            {"gradient": "direct", "solver": ds.AdaptiveSDE(), "steps": None},
            "gradient='direct' cannot be given with an adaptive SDE",
        ),
        (
            {"gradient": "adjoint", "solver": ds.AdaptiveSDE(), "steps": None},
            "gradient='adjoint' cannot be given with an adaptive SDE",
        ),
    ],
)
def test_errors_name_what_is_wrong(options, says):
    with pytest.raises(ValueError, match=says.replace("(", r"\(")):
        ds.solve(ds.adapt(Net(), "vp", "v"), (2, 3), **{"steps": 3, "dtype": torch.float64, **options})


def test_pairs_have_no_gradient():
    with pytest.raises(ValueError, match="gradient='direct' cannot be given with reversible.encode"):
        reversible.encode(ds.adapt(Net(), "condot", "velocity"), noise(), steps=3, gradient="direct")


@pytest.mark.parametrize("solver", ["rk4", "ab-4", "unipc-3", "dopri8", "plms"])
def test_shares_are_what_the_rows_make_of_a_quantity(solver):
    """q = sum w_i k_i, against the recurrence itself, one call at a time."""
    rows = augmented(ds.plan("vp", solver, steps=7, stop=0.1))
    units = torch.eye(rows.tableau.nfe, dtype=torch.float64)
    (q,) = rows.run(lambda i, _: (units[i],), (torch.zeros(rows.tableau.nfe, dtype=torch.float64),))
    torch.testing.assert_close(torch.from_numpy(rows.shares.copy()), q, rtol=1e-12, atol=1e-14)
