"""Gradients through runs: their values, exactness and memory."""

import subprocess
import sys

import pytest
import torch

import diffsolve as ds
from diffsolve.adaptive import Adaptive


class Net(torch.nn.Module):
    """Small and smooth."""

    def __init__(self, size=3):
        super().__init__()
        self.weight = torch.nn.Parameter(
            0.5 * torch.randn(size, size, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
        )

    def forward(self, x, t, shift=0.0):
        return torch.tanh(x @ self.weight + shift) * (1 + t[:, None].to(x))


def noise(n=2):
    return torch.randn(n, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def gradients(model, gradient, solver="rk4", steps=8, **options):
    x, shift = noise().requires_grad_(), torch.tensor([[0.3], [-0.2]], dtype=torch.float64, requires_grad=True)
    options = {"steps": steps, **options} if steps else options
    run = ds.solve(model, noise=x, solver=solver, cond={"shift": shift}, gradient=gradient, seed=0, **options)
    return run, torch.autograd.grad(run.x.square().sum(), [x, shift, model.net.weight])


@pytest.mark.parametrize(
    "solver", ["euler", "rk4", "unipc-3", "dpmpp-3m", "ddim(eta=1.0)", "abm-3", "res-3s", "ab-5", "tsit5"]
)
@pytest.mark.parametrize(("path", "predicts"), [("condot", "velocity"), ("vp", "v"), ("edm", "edm")])
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


MEMORY = """
import resource, sys, torch, diffsolve as ds
torch.set_num_threads(1)
weight = torch.ones((), dtype=torch.float64, requires_grad=True)
model = ds.adapt(lambda x, t: torch.tanh(x * weight), "condot", "velocity")
size = 2**19
x = torch.linspace(-1, 1, size, dtype=torch.float64).view(1, size).requires_grad_()
def peak(steps, gradient):
    torch.autograd.grad(ds.solve(model, noise=x, solver="euler", steps=steps, gradient=gradient).x.sum(), x)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (size * 8 / 1024)
peak(4, sys.argv[1])
print(peak(16, sys.argv[1]), peak(64, sys.argv[1]))
"""


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
        ({"gradient": "reverse"}, "gradient='reverse' is unknown; accepted: direct, checkpoint, adjoint"),
        ({"gradient": "adjoint", "solver": "ddim(eta=1.0)"}, "draws noise on the way"),
        ({"gradient": "direct", "trajectory": True}, "trajectory=True cannot be given with gradient"),
        (
            {"gradient": "adjoint", "solver": Adaptive(), "steps": None, "grid": [1.0, 0.0], "trajectory": True},
            "gradient='adjoint' with trajectory=True: 'direct' and 'checkpoint'",
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
