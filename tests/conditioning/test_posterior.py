"""Conditioned models against posteriors in closed form: of Gaussians exactly, of mixtures within stated bounds."""

import pytest
import torch
from torch import nn

import diffsolve as ds
from diffsolve.common.fingerprint import describe
from diffsolve.conditioning import DPS, Blur, Downscale, Linear, Mask
from diffsolve.noise import Key, Stream
from diffsolve.reference import mixture_model
from diffsolve.reference.mixture import GaussianMixture

PREDICTS = {
    "condot": "velocity", "rectified": "velocity", "vp": "noise", "edm": "edm", "ddpm": "v", "cosine": "denoised",
    "ve": "score",
}  # fmt: skip


def normal(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def gaussian(D=6):
    root = normal(D, D) / 2
    return GaussianMixture.full(normal(1, D, seed=1) / 3, root @ root.T + 0.05 * torch.eye(D))


def isotropic(D=6):
    return GaussianMixture.isotropic(normal(1, D, seed=1) / 3, 0.8)


def diagonal(D=6):
    return GaussianMixture.diagonal(normal(1, D, seed=1) / 3, torch.linspace(0.3, 1.2, D))


DENSE = normal(3, 6, seed=2)
ROWS = torch.eye(6, dtype=torch.float64)[[0, 2, 3]]
"""A mask, as a matrix without rows of zeros."""
Y = normal(3, seed=3)
EXACT = {
    "mmps(iterations=6)": (gaussian(), DENSE),
    "mmps(iterations=3)": (gaussian(), DENSE),  # as many as there are observations
    "pigdm": (isotropic(), DENSE),
    "tmpd": (diagonal(), ROWS),
}


def conditioned(model, matrix, method, noise=0.3, **options):
    options = {"rho_max": 1e3, "sigma_data": 0.8, **options}
    operator = Linear(lambda x: x @ matrix.to(x).T)
    return ds.conditioning.posterior(model, operator, Y[None], noise=noise, method=method, **options)


@pytest.mark.product({"method": list(EXACT), "path": list(PREDICTS)})
def test_exact_on_gaussian_data(method, path):
    """E[x_0 | x_t, y] to rounding, whatever is predicted."""
    mixture, matrix = EXACT[method]
    model = mixture_model(mixture, path, PREDICTS[path])
    truth = mixture_model(mixture.given(matrix, Y, 0.3), path, PREDICTS[path])
    found = conditioned(model, matrix, method)
    for rho in (8.0, 1.0, 0.1):
        t = float(model.path.time(-torch.tensor(rho).double().log()))
        alpha, sigma = float(model.path.alpha(t)), float(model.path.sigma(t))
        x = alpha * mixture.sample(5, seed=1) + sigma * normal(5, 6, seed=4)
        torch.testing.assert_close(found.denoised(x, t), truth.denoised(x, t), rtol=1e-7, atol=1e-8)
        torch.testing.assert_close(found.noise(x, t), truth.noise(x, t), rtol=1e-6, atol=1e-7)


def test_mixtures_given_an_observation():
    """Against importance weights of the mixture's own samples."""
    mixture = GaussianMixture.full(
        [[1.0, 0.0], [-1.0, 0.5]], [[[0.3, 0.1], [0.1, 0.2]], [[0.2, 0.0], [0.0, 0.4]]], [1.0, 2.0]
    )
    A, y, noise = torch.tensor([[1.0, -0.5]]).double(), torch.tensor([0.2]).double(), 0.4
    x = mixture.sample(400_000, seed=0)
    weights = (-(((x @ A.T - y) / noise) ** 2).sum(1) / 2).softmax(0)
    mean = weights @ x
    spread = ((x - mean) * weights[:, None]).T @ (x - mean)
    given = mixture.given(A, y, noise)
    torch.testing.assert_close(given.mean, mean, atol=0.01, rtol=0)
    torch.testing.assert_close(given.covariance, spread, atol=0.01, rtol=0)


# ------------------------------------------------------------------------------------------------- drivers

DRIVERS = {
    "sequential": {"solver": "unipc-3", "steps": 6},
    "stochastic": {"solver": "ddim(eta=1)", "steps": 6, "seed": 2},
    "adaptive": {"solver": ds.Adaptive(rtol=0.05, atol=0.05)},
    "parallel": {"solver": "unipc-3", "steps": 6, "parallel": ds.Picard(window=6, tol=1e-7)},
    "gradient": {"solver": "unipc-3", "steps": 6, "gradient": "direct"},
    "checkpoint": {"solver": "euler", "steps": 2, "gradient": "checkpoint"},
    "adjoint": {"solver": "euler", "steps": 2, "gradient": "adjoint"},
}


@pytest.mark.parametrize("how", DRIVERS)
def test_every_driver_samples_the_posterior(how):
    """The run of the conditioned model is that of the closed form, with one observation for each sample in cond."""
    mixture = gaussian()
    y = torch.cat([Y[None], Y[None] + 1])
    model = conditioned(mixture_model(mixture, "condot", "velocity"), DENSE, "mmps(iterations=3)")
    run = {"start": 0.05, **DRIVERS[how]}
    found = ds.sample(model, noise=normal(2, 6, seed=5), cond={"observed": y}, **run)
    for i in range(2):
        truth = mixture_model(mixture.given(DENSE, y[i], 0.3), "condot", "velocity")
        wanted = ds.sample(truth, noise=normal(2, 6, seed=5)[i : i + 1], index=i, **run)
        torch.testing.assert_close(found[i : i + 1], wanted, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("trace", ["exact", "exact(mode='reverse')"])
def test_the_density_of_the_posterior(trace):
    """Forward and reverse derivatives of what has a derivative inside."""
    mixture = gaussian()
    found = conditioned(mixture_model(mixture, "vp", "noise"), DENSE, "mmps(iterations=3)")
    truth = mixture_model(mixture.given(DENSE, Y, 0.3), "vp", "noise")
    x = mixture.given(DENSE, Y, 0.3).sample(2, seed=0)
    one, two = (ds.log_prob(m, x, solver="heun", steps=2, trace=trace).value for m in (found, truth))
    torch.testing.assert_close(one, two, atol=1e-5, rtol=1e-5)


def test_gradients_reach_the_network_and_the_observation():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(normal(6, 6) / 4)

        def forward(self, x, t):
            return torch.tanh(x @ self.weight)

    net = Net()
    model = conditioned(ds.adapt(net, "condot", "velocity"), DENSE, "mmps(iterations=2)", rho_max=10.0)
    assert model.device == net.weight.device
    y = (Y[None] + 0.1).requires_grad_()

    def end():
        noise = normal(2, 6, seed=1)
        return ds.sample(model, noise=noise, steps=3, solver="euler", gradient="direct", cond={"observed": y}).sum()

    weight, seen = torch.autograd.grad(end(), [net.weight, y])
    for leaf, slope in ((net.weight, weight[0, 1]), (y, seen[0, 2])):
        place = (0, 1) if leaf is net.weight else (0, 2)
        found = []
        for step in (1e-6, -1e-6):
            with torch.no_grad():
                leaf[place] += step
                found.append(float(end()))
                leaf[place] -= step
        assert float(slope) == pytest.approx((found[0] - found[1]) / 2e-6, rel=1e-5)


# ------------------------------------------------------------------------------- replacement, RePaint and DPS

KNOWN = torch.tensor([True, False, True, False])


def test_replacement_holds_what_is_known():
    """At every call the known part is alpha y + sigma z, and y in the end, on solvers of any kind."""
    mixture, y = gaussian(4), torch.tensor([[0.4, 0.0, -0.3, 0.0]]).double()
    for path, solver in (("condot", "unipc-3"), ("vp", "dpmpp-2m"), ("edm", "heun(frame='noise')"), ("ddpm", "euler")):
        model = ds.conditioning.posterior(mixture_model(mixture, path, PREDICTS[path]), Mask(KNOWN), y,
                                          method="replacement")  # fmt: skip
        run = ds.solve(model, (3, 4), solver=solver, steps=8, seed=0, trajectory="calls", dtype=torch.float64)
        alpha, sigma = (torch.from_numpy(run.tableau.calls[:, k].copy()).view(-1, 1, 1) for k in (1, 2))
        z = (run.trajectory[0] - alpha[0] * y) / sigma[0]
        torch.testing.assert_close((run.trajectory[:-1] - alpha * y - sigma * z)[..., KNOWN], 0 * z[None][..., KNOWN]
                                   .expand(run.nfe, -1, -1), atol=2e-9, rtol=0)  # fmt: skip
        torch.testing.assert_close(run.x[:, KNOWN], y[:, KNOWN].expand(3, -1), atol=1e-9, rtol=0)


def test_replacement_is_the_range_null_space_decomposition():
    mixture = gaussian(16)
    for operator in (Downscale(2), Mask(torch.arange(16).view(4, 4) % 3 == 0)):
        x = normal(2, 1, 4, 4, seed=6)
        y = operator(normal(1, 1, 4, 4, seed=7))
        plain = mixture_model(mixture, "condot", "velocity")
        found = ds.conditioning.posterior(plain, operator, y, method="replacement").denoised(x, 0.5)
        torch.testing.assert_close(operator(found), y.expand_as(operator(x)))
        null = lambda v, A=operator: v - A.transpose(A(v), v) * (4 if isinstance(A, Downscale) else 1)  # noqa: E731
        torch.testing.assert_close(null(found), null(plain.denoised(x, 0.5)))


def published_dps(model, mask, y, zeta, rows, x, seed):
    """2209.14687, algorithm 1, with the small variance; z of row i as a run draws it."""
    betas = torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64)
    bars = (1 - betas).cumprod(0)
    for i in range(rows, -1, -1):
        bar, before = bars[i], bars[i - 1] if i else torch.ones(()).double()
        x = x.detach().requires_grad_()
        score = model.score(x, float(i))
        data = (x + (1 - bar) * score) / bar.sqrt()
        size = (y - mask * data).flatten(1).norm(dim=1).sum()
        (slope,) = torch.autograd.grad(size, x)
        z = Key(seed).normal(x.shape, row=rows - i + 1, stream=Stream.ROW, dtype=torch.float64)
        mean = (1 - betas[i]).sqrt() * (1 - before) / (1 - bar) * x + before.sqrt() * betas[i] / (1 - bar) * data
        x = (mean + (betas[i] * (1 - before) / (1 - bar)).sqrt() * z - zeta * slope).detach()
    return x


def test_dps_is_the_published_loop():
    """From row 20 of 1000, with the same noise; and it is the same method on another path."""
    mixture = GaussianMixture.isotropic(normal(3, 4), 0.3)
    mask, y = KNOWN.double(), torch.tensor([[0.4, 0.0, -0.3, 0.0]]).double()
    plain = mixture_model(mixture, "ddpm", "noise")
    model = ds.conditioning.posterior(plain, Mask(KNOWN), y, method="dps(zeta=0.3)")
    x = normal(3, 4, seed=8)
    grid = [float(row) for row in range(20, -2, -1)]
    run = ds.sample(model, noise=x, solver="ddpm", grid=grid, seed=11)
    torch.testing.assert_close(run, published_dps(plain, mask, y, 0.3, 20, x, 11), rtol=1e-7, atol=1e-8)
    rate = {
        path: DPS()._rate(ds.paths.named(path).at(torch.tensor(t))) for path, t in (("edm", 0.7), ("condot", 1 / 1.7))
    }
    torch.testing.assert_close(rate["edm"], rate["condot"])


def test_repaint_goes_back_as_its_code_does():
    """The rows of `get_schedule_jump`, written anew: down by one, up by `jump`, `resamples` - 1 times at each place."""
    for steps, jump, resamples in ((12, 3, 2), (10, 1, 3), (9, 4, 1), (5, 5, 4)):
        left = {row: resamples - 1 for row in range(0, steps - jump, jump)}
        rows, row = [], steps
        while row >= 1:
            row -= 1
            rows.append(row)
            if left.get(row, 0) > 0:
                left[row] -= 1
                row += jump
                rows += range(rows[-1] + 1, row + 1)
        calls = [above for above, below in zip(rows, [*rows[1:], -1], strict=True) if below < above]
        plan = ds.plan("ddpm", ds.solvers.Repaint(jump=jump, resamples=resamples), grid=range(steps - 1, -2, -1))
        assert plan.calls[:, 0].tolist() == calls
        assert sorted(node for node in plan.node if node >= 0) == list(range(1, steps + 1))


# --------------------------------------------------------------------------------- mixtures, within bounds

PAIR = GaussianMixture.full(
    [[0.6, 0.4], [-0.5, -0.15], [0.1, -0.6]],
    [[[0.2, 0.12], [0.12, 0.16]], [[0.1, -0.05], [-0.05, 0.3]], [[0.25, 0.0], [0.0, 0.04]]],
)
SEEN = torch.tensor([[1.0, 0.0]]).double()
SDE = {"solver": "ddim(eta=1)", "steps": 30}
RUNS = {
    # method: the run, and the largest errors of the mean and of the covariance, where the prior is off by 0.23, 0.38
    "mmps(iterations=1)": (SDE, 0.08, 0.06),
    "tmpd": (SDE, 0.08, 0.06),
    "pigdm": (SDE, 0.1, 0.1),
    "replacement": (SDE, 0.1, 0.06),
    "repaint": ({"solver": "repaint(resamples=8)", "steps": 10}, 0.06, 0.08),
    "dps(zeta=0.07, steps=40)": ({"solver": "ddpm", "steps": 40}, 0.1, 0.1),
}


def test_the_formulas_on_a_mixture():
    """C A^T V^-1 (y - A D) with dense matrices: C from finite differences of the mixture's own mean."""
    A, noise, sigma_data = torch.tensor([[1.0, 0.3], [0.2, 1.0]]).double(), 0.2, 0.7
    model, t = mixture_model(PAIR, "vp", "noise"), 0.4
    y = torch.tensor([[0.3, -0.2]]).double()
    alpha, sigma = float(model.path.alpha(t)), float(model.path.sigma(t))
    x = alpha * PAIR.sample(3, seed=2) + sigma * normal(3, 2)
    step = 1e-5 * torch.eye(2, dtype=torch.float64)
    slopes = [(model.denoised(x + h, t) - model.denoised(x - h, t)) / 2e-5 for h in step]
    C = sigma**2 / alpha * torch.stack(slopes, -1)
    apart = y - model.denoised(x, t) @ A.T
    r2 = sigma**2 * sigma_data**2 / (sigma**2 + alpha**2 * sigma_data**2)
    own = noise**2 * torch.eye(2, dtype=torch.float64)
    V = {
        "mmps(iterations=2)": A @ C @ A.T + own,
        "tmpd": torch.diag_embed((A @ C @ A.T).sum(-1).clamp(min=0)) + own,
        "pigdm": (r2 * A @ A.T + own).expand(3, 2, 2),
    }
    for method, matrix in V.items():
        found = ds.conditioning.posterior(
            model, Linear(lambda x: x @ A.T), y, noise=noise, method=method, sigma_data=sigma_data
        )
        change = (C @ A.T @ torch.linalg.solve(matrix, apart[..., None]))[..., 0]
        if method == "tmpd":  # which V does not keep from going too far
            moved, most = (change @ A.T).norm(dim=1), apart.norm(dim=1)
            assert bool((moved < most).all())
        torch.testing.assert_close(found.denoised(x, t), model.denoised(x, t) + change, rtol=1e-6, atol=1e-7)
    far = ds.conditioning.posterior(
        model, Linear(lambda x: x @ A.T), y, noise=noise, sigma_data=sigma_data, rho_max=0.9 * sigma / alpha
    )
    gain = r2 * A.T @ torch.linalg.solve(r2 * A @ A.T + own, apart.T)
    torch.testing.assert_close(far.denoised(x, t), model.denoised(x, t) + gain.T, rtol=1e-7, atol=1e-8)


def test_a_change_never_goes_beyond_what_was_observed():
    """A network whose derivative is no covariance: A D moves by at most what it is apart from y."""
    model = ds.adapt(lambda x, t: torch.stack([3 * x[:, 1] - x[:, 0], x[:, 0]], 1), "edm", "denoised")
    x, y = normal(4, 2), torch.tensor([[0.5, -0.5]]).double()
    for method in ("mmps", "tmpd"):
        found = ds.conditioning.posterior(model, Linear(lambda x: x), y, noise=0.01, method=method)
        D = model.denoised(x, 0.7)
        moved = (found.denoised(x, 0.7) - D).norm(dim=1)
        assert bool((moved <= (y - D).norm(dim=1) * (1 + 1e-9)).all())
        assert bool((moved > 0).any())


def test_sums_below_zero_are_no_variance():
    """TMPD's V is then the noise's alone."""
    model = ds.adapt(lambda x, t: -x, "edm", "denoised")
    x, y = normal(4, 2), torch.tensor([[0.5, -0.5]]).double()
    found = ds.conditioning.posterior(model, Linear(lambda x: x), y, noise=2.0, method="tmpd")
    torch.testing.assert_close(found.denoised(x, 0.7), -x - 0.49 * (y + x) / 4)


@pytest.mark.parametrize("method", RUNS)
def test_the_posterior_of_a_mixture(method):
    run, mean, spread = RUNS[method]
    y, noise = torch.tensor([0.3]).double(), 0.1
    truth = PAIR.given(SEEN, y, noise)
    known = Linear(lambda x: x[:, :1], lambda v: torch.cat([v, torch.zeros_like(v)], 1))
    name = "replacement" if method == "repaint" else method
    model = ds.conditioning.posterior(mixture_model(PAIR, "vp", "noise"), known, y[None], noise=noise, method=name)
    x = ds.sample(model, (500, 2), seed=0, dtype=torch.float64, **run)
    off = (x.mean(0) - truth.mean).abs().max(), (x.T.cov() - truth.covariance).abs().max()
    assert off[0] < mean, off
    assert off[1] < spread, off


# ------------------------------------------------------------------------------------------------ operators


def test_transposes():
    kernel = normal(3, 5)
    images, rows = torch.zeros(2, 3, 8, 8).double(), torch.zeros(2, 6).double()
    mask = torch.arange(64).view(8, 8) % 2 == 0
    for operator in (Mask(mask), Blur(kernel), Downscale(2)):
        ds.conditioning.check_transpose(operator, images, 1e-12)
    ds.conditioning.check_transpose(Linear(lambda x: x @ DENSE.T), rows, 1e-12)
    ds.conditioning.check_transpose(Linear(lambda x: x @ DENSE.T, lambda y: y @ DENSE), rows, 1e-12)
    with pytest.raises(ValueError, match="transpose must be that of forward"):
        ds.conditioning.check_transpose(Linear(lambda x: x @ DENSE.T, lambda y: 1.01 * y @ DENSE), rows)
    with pytest.raises(ValueError, match="transpose must be of the shape of the states"):
        ds.conditioning.check_transpose(Linear(lambda x: x @ DENSE.T, lambda y: y), rows)


def test_what_was_observed_is_part_of_the_fingerprint():
    """So that no file of a sweep or a tuning is continued with another observation."""
    model, mask = ds.adapt(nn.Identity(), "edm", "denoised"), torch.tensor([1, 0])
    y = torch.zeros(1, 2)
    made = [
        ds.conditioning.posterior(model, Mask(mask), y),
        ds.conditioning.posterior(model, Mask(mask), y + 1),
        ds.conditioning.posterior(model, Mask(1 - mask), y),
        ds.conditioning.posterior(model, Mask(mask), y, method="tmpd"),
        ds.conditioning.posterior(model, Mask(mask), y, noise=0.1),
    ]
    assert len({str(describe(posterior)) for posterior in made}) == len(made)
    assert describe(made[0]) == describe(ds.conditioning.posterior(model, Mask(mask), y))


def test_blur_is_what_it_says():
    image = torch.zeros(1, 2, 5, 5)
    image[0, 1, 2, 1] = 1
    kernel = torch.arange(9.0).view(3, 3)
    torch.testing.assert_close(Blur(kernel)(image)[0, 1, 1:4, 0:3], kernel.flip(0, 1))
    assert not Blur(kernel)(image)[0, 0].any()


def test_conjugate_gradients_stop_where_they_must():
    from diffsolve.conditioning.linear import conjugate_gradients

    diagonal = torch.tensor([[1.0, 2.0, 4.0], [1.0, 0.0, 4.0], [-1.0, -1.0, -1.0]]).double()
    b = torch.tensor([[1.0, 1.0, 1.0], [1.0, 0.0, 1.0], [1.0, 1.0, 1.0]]).double()
    u = conjugate_gradients(lambda v: diagonal * v, b, 7)
    torch.testing.assert_close(u[0], 1 / diagonal[0])
    torch.testing.assert_close(u[1], torch.tensor([1.0, 0.0, 0.25]).double())  # singular, b in its range
    assert not u[2].any()  # negative: no step at all
    assert not conjugate_gradients(lambda v: v, torch.zeros(2, 3), 3).any()
    half = torch.full((1, 3), 0.5).double()
    assert not conjugate_gradients(lambda v: half * v, half, 3, least=0.6).any()  # below what there can be
    torch.testing.assert_close(conjugate_gradients(lambda v: half * v, half, 3, least=0.4), 2 * half)


def test_errors():
    model, known = ds.adapt(lambda x, t: -x, "condot", "velocity"), Mask(torch.tensor([1, 0]))
    posterior, y = ds.conditioning.posterior, torch.zeros(1, 2)
    with pytest.raises(TypeError, match="operator must be an Operator"):
        posterior(model, lambda x: x, y)
    with pytest.raises(ValueError, match=r"noise must be a finite number >= 0, got -1"):
        posterior(model, known, y, noise=-1)
    with pytest.raises(ValueError, match="method must be one of 'dps', 'mmps', .* got 'nothing'"):
        posterior(model, known, y, method="nothing")
    with pytest.raises(ValueError, match="mask must be of ones"):
        Mask(torch.tensor([0.5]))
    with pytest.raises(ValueError, match="observed must be given"):
        ds.sample(posterior(model, known), (2, 2), solver="euler", nfe=2)
    with pytest.raises(ValueError, match=r"observed must be of the shape \(2, 2\) of A x"):
        ds.sample(posterior(model, known, torch.zeros(3, 2)), (2, 2), solver="euler", nfe=2)
    still = ds.adapt(lambda x, t: torch.tanh(x.detach()), "condot", "velocity")
    with pytest.raises(ValueError, match="net must have a derivative in x for this method of conditioning"):
        ds.sample(posterior(still, known, y), (4, 2), solver="euler", nfe=2)
    assert ds.sample(posterior(still, known, y, method="replacement"), (4, 2), solver="euler", nfe=2).shape == (4, 2)
    student = ds.adapt(lambda x, t, s: x, "condot", "velocity", jumps="straight")
    with pytest.raises(ValueError, match="model must be one told one time"):
        posterior(student, known, y)
