"""Networks without the derivatives that a density or a gradient needs: handled, or named; never a derivative of 0."""

import numpy as np
import pytest
import torch
from torch import nn

import diffsolve as ds
from diffsolve.likelihood import traces
from diffsolve.models.derivative import unwrapped


def adapted(net):
    return ds.adapt(net, "condot", "velocity")


def detached(x, t):
    return -x.detach()


@torch.no_grad()
def without_graph(x, t):
    return -x


def ignoring(x, t):
    return torch.zeros_like(x) + t.view(-1, *[1] * (x.dim() - 1))


def rotating(x, t):
    return torch.stack([-x[:, 1], x[:, 0]], 1)  # its trace is 0


def nearest(x, t):
    data = torch.tensor([[1.0, 0.0], [-1.0, 2.0]])
    return data[torch.cdist(x.detach(), data).argmin(1)]  # a derivative of 0 almost everywhere


WRONG = "net must have a derivative in x"
SOLVERS = [{"solver": ds.Adaptive()}, {"solver": "rk4", "steps": 6}]


@pytest.mark.parametrize("trace", ["exact", "hutchinson(probes=2)", "exact(mode='reverse')"])
@pytest.mark.parametrize("solver", SOLVERS)
def test_a_density_of_a_detached_network_is_an_error(solver, trace):
    with pytest.raises(ValueError, match=WRONG):
        ds.log_prob(adapted(detached), torch.ones(1, 1), trace=trace, **solver)
    with pytest.raises(ValueError, match=WRONG):
        ds.sample_with_log_prob(adapted(detached), (2, 2), seed=0, trace=trace, **solver)


@pytest.mark.parametrize("net", [ignoring, rotating, nearest])
@pytest.mark.parametrize("trace", ["exact", "hutchinson(probes=2)", "exact(mode='reverse')"])
def test_a_trace_of_zero_is_legal_where_it_is_right(net, trace):
    x = torch.tensor([[0.3, -1.2], [1.0, 0.2]])
    found = ds.log_prob(adapted(net), x, solver="rk4", steps=20, trace=trace)
    if net is not rotating or trace != "hutchinson(probes=2)":
        expected = -found.latent.double().square().sum(1) / 2 - np.log(2 * np.pi)
        torch.testing.assert_close(found.value, expected)


GRADIENTS = [
    {"solver": "rk4", "steps": 10, "gradient": gradient} for gradient in ("direct", "checkpoint", "adjoint")
] + [{"solver": ds.Adaptive(), "gradient": gradient} for gradient in ("direct", "checkpoint", "adjoint")]


@pytest.mark.parametrize("net", [detached, without_graph])
@pytest.mark.parametrize("options", [*GRADIENTS, {"solver": "reversible-heun", "steps": 8, "gradient": "adjoint"}])
def test_a_gradient_through_a_network_without_one_is_an_error(net, options):
    z = torch.ones(1, 1, requires_grad=True)
    with pytest.raises(ValueError, match=WRONG):
        ds.sample(adapted(net), noise=z, **options)


@pytest.mark.parametrize("options", GRADIENTS)
def test_the_gradient_of_a_network_that_ignores_x(options):
    for net in (ignoring, lambda x, t: torch.tanh(x) - 2 * x):
        z = torch.full((2, 2), 0.5, requires_grad=True)
        x = ds.sample(adapted(net), noise=z, **options)
        (found,) = torch.autograd.grad(x.sum(), z)
        h = 1e-3
        ends = [ds.sample(adapted(net), noise=z.detach() + s * h, solver="rk4", steps=10).sum() for s in (1, -1)]
        assert found.sum() == pytest.approx(float(ends[0] - ends[1]) / (2 * h), rel=1e-2)


class Attention(nn.Module):
    """Two heads of fused attention over 4 tokens of 4 numbers."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.qkv = nn.Linear(4, 12)

    def forward(self, x, t):
        q, k, v = self.qkv(x).reshape(len(x), 4, 3, 2, 2).permute(2, 0, 3, 1, 4)
        y = nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(x.shape)
        return y + torch.tanh(x) * t.view(-1, 1, 1)


class Square(torch.autograd.Function):
    """A function of the old kind, which torch.func does not take."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x.square()

    @staticmethod
    def backward(ctx, gradient):
        return 2 * ctx.saved_tensors[0] * gradient


def with_function(x, t):
    return -Square.apply(x).flip(-1) / 10 - torch.sin(x)


def with_branch(x, t):
    return -x * 0.5 if float(x.detach().sum()) > 1e9 else -torch.tanh(x)


def columns(model, x, **options):
    """The exact log-density, with the trace taken column by column of a whole Jacobian by autograd."""

    class Plain(traces.Exact):
        def __call__(self, net, x, directions):
            jacobian = torch.autograd.functional.jacobian(net, x).reshape(len(x), x[0].numel(), len(x), x[0].numel())
            trace = torch.einsum("bibi->b", jacobian.double())
            return net(x).detach(), trace[:, None]

    return ds.log_prob(model, x, trace=Plain(), **options).value


@pytest.mark.product({"net": [Attention(), with_function, with_branch], "solver": SOLVERS})
def test_networks_without_forward_derivatives(net, solver):
    x = torch.randn(3, 4, 4, generator=torch.Generator().manual_seed(0)) / 2
    expected = columns(adapted(net), x, **solver)
    for trace in ("exact", "exact(mode='reverse')", "exact(chunk=5)"):
        torch.testing.assert_close(
            ds.log_prob(adapted(net), x, trace=trace, **solver).value, expected, rtol=0, atol=2e-4
        )


def test_attention_by_itself_needs_another_mode():
    x = torch.randn(3, 4, 4, generator=torch.Generator().manual_seed(0))
    with pytest.raises(NotImplementedError, match="forward AD"):
        ds.log_prob(adapted(Attention()), x, trace="exact(mode='forward')", solver="rk4", steps=3)
    both = [ds.log_prob(adapted(Attention()), x, trace=f"exact(mode={mode!r})", solver="rk4", steps=3).value
            for mode in ("math", "reverse")]  # fmt: skip
    torch.testing.assert_close(*both)
    with pytest.raises(ValueError, match="mode must be 'auto', 'forward', 'math' or 'reverse', got 'back'"):
        traces.Exact(mode="back")


class TransposedNorm(torch.nn.Module):
    """Group normalisation of images that lie in memory as channels last."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.mix, self.norm = torch.nn.Conv2d(4, 4, 3, padding=1), torch.nn.GroupNorm(2, 4)

    def forward(self, x, t):
        return torch.tanh(self.norm(self.mix(x).movedim(1, -1).contiguous().movedim(-1, 1)))


def test_group_normalisation_of_channels_last_has_forward_derivatives_in_plain_operations():
    """They are those of a backward pass, and what is found automatically is the same."""
    model = ds.adapt(TransposedNorm(), "condot", "velocity")
    x = torch.randn(3, 4, 2, 2, generator=torch.Generator().manual_seed(0))
    with pytest.raises(RuntimeError, match="view"):
        ds.log_prob(model, x, trace="exact(mode='forward')", solver="rk4", steps=3)
    found = [
        ds.log_prob(model, x, trace=trace, solver="rk4", steps=3).value
        for trace in ("exact(mode='math')", "exact(mode='reverse')", "exact")
    ]
    torch.testing.assert_close(found[0], found[1])
    assert torch.equal(found[0], found[2])


@pytest.mark.parametrize("trace", [traces.Hutchinson(4), traces.HutchPP(6), traces.Deflated(6)])
def test_every_trace_by_backward_passes(trace):
    """Of a symmetric Jacobian J^T v is J v, so that the two modes agree estimate by estimate."""
    weight = torch.randn(6, 6, generator=torch.Generator().manual_seed(0)) / 3
    net = lambda x, t: -torch.tanh(x @ weight) @ weight.T  # noqa: E731
    x = torch.randn(3, 6, generator=torch.Generator().manual_seed(1))
    values = [
        ds.log_prob(adapted(net), x, trace=type(trace)(trace.probes, mode=mode), solver="rk4", steps=4, seed=3)
        for mode in ("forward", "reverse")
    ]
    torch.testing.assert_close(values[0].value, values[1].value, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(values[0].stderr, values[1].stderr, rtol=1e-3, atol=1e-4)


def test_a_density_by_backward_passes_has_a_gradient():
    net, x = Attention(), torch.randn(2, 4, 4, generator=torch.Generator().manual_seed(0))
    found = []
    for mode in ("math", "reverse"):
        z = x.clone().requires_grad_()
        value = ds.log_prob(adapted(net), z, trace=f"exact(mode={mode!r})", solver="rk4", steps=2, gradient=True).value
        found.append(torch.autograd.grad(value.sum(), [z, *net.parameters()]))
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4)


def test_wrapped_networks_are_differentiated_inside(monkeypatch):
    net = Attention()
    compiled = torch.compile(net, backend="eager")
    assert unwrapped(compiled, gradient=True) is net
    assert unwrapped(nn.DataParallel(compiled), gradient=False) is net
    parallel = nn.DataParallel(net)
    assert unwrapped(parallel, gradient=True) is parallel
    x = torch.randn(2, 4, 4, generator=torch.Generator().manual_seed(0))
    values = [ds.log_prob(adapted(n), x, solver="rk4", steps=3).value for n in (net, compiled, nn.DataParallel(net))]
    assert torch.equal(values[0], values[1])
    assert torch.equal(values[0], values[2])


def test_an_error_of_the_network_is_its_own():
    def broken(x, t):
        raise RuntimeError("out of tokens")

    with pytest.raises(RuntimeError, match="out of tokens"):
        ds.log_prob(adapted(broken), torch.ones(2, 2))
