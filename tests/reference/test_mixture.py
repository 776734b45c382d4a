import copy
import math
import pickle

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.integrate import solve_ivp
from scipy.special import logsumexp
from scipy.stats import multivariate_normal
from support.product import shown

from diffsolve.reference.mixture import GaussianMixture, anisotropic, random_means, ring

LEVELS = [(1.0, 80.0), (1.0, 0.4), (1.0, 0.002), (0.6, 0.8), (0.0, 1.0), (1.0, 0.0), (0.3, 0.0)]


def randn(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def noised(mixture, n, alpha, sigma, seed=0):
    return alpha * mixture.sample(n, seed=seed) + sigma * randn(n, mixture.dim, seed=seed + 1)


def lopsided():
    """Isotropic, with a different deviation and weight in every mode."""
    return GaussianMixture.isotropic(randn(5, 3), [0.1, 0.2, 0.4, 0.8, 1.6], [5, 1, 2, 3, 4])


def stretched():
    return GaussianMixture.diagonal(randn(4, 3, seed=2), 0.1 + randn(4, 3, seed=3).abs(), [1, 2, 3, 4])


TARGETS = {"ring": ring, "lopsided": lopsided, "stretched": stretched, "anisotropic": lambda: anisotropic(3, 4, 1)}


@pytest.fixture(params=TARGETS)
def mixture(request):
    return TARGETS[request.param]()


def covariances(mixture):
    root = mixture.std[:, None] * (torch.eye(mixture.dim) if mixture.basis is None else mixture.basis)
    return root @ root.mT


# The density


def test_log_prob_is_that_of_scipy(mixture):
    for alpha, sigma in shown(LEVELS):
        x = noised(mixture, 20, alpha, sigma)
        parts = [
            math.log(w) + multivariate_normal(alpha * m, alpha**2 * C + sigma**2 * np.eye(len(m))).logpdf(x)
            for w, m, C in zip(
                mixture.weights.tolist(), mixture.means.numpy(), covariances(mixture).numpy(), strict=True
            )
        ]
        np.testing.assert_allclose(mixture.log_prob(x, alpha, sigma), logsumexp(parts, axis=0), rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize(("alpha", "sigma"), [(1.0, 0.0), (0.7, 0.5)])
@pytest.mark.parametrize("make", [lambda: ring(std=0.5), lambda: anisotropic(2, 3)])
def test_density_integrates_to_one(make, alpha, sigma):
    axis = torch.arange(-9, 9, 0.03, dtype=torch.float64)
    density = make().log_prob(torch.cartesian_prod(axis, axis), alpha, sigma).exp()
    assert density.sum().item() * 0.03**2 == pytest.approx(1, abs=1e-10)


def test_score_is_the_gradient_of_log_prob(mixture):
    for alpha, sigma in shown(LEVELS):
        x = noised(mixture, 20, alpha, sigma).requires_grad_()
        (gradient,) = torch.autograd.grad(mixture.log_prob(x, alpha, sigma).sum(), x)
        score = mixture.score(x, alpha, sigma)
        torch.testing.assert_close(score, gradient, rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(mixture.expectations(x, alpha, sigma)[1], -sigma * score, rtol=1e-14, atol=0)


def test_derivatives_by_torch_func():
    mixture, x = anisotropic(3, 4, 1), randn(5, 3)

    def score(y):
        return mixture.score(y, 0.6, 0.8)

    jacobian = torch.func.vmap(torch.func.jacfwd(lambda row: score(row[None])[0]))(x)
    torch.testing.assert_close(torch.func.jvp(score, (x,), (torch.ones_like(x),))[1], jacobian.sum(-1))
    torch.testing.assert_close(torch.func.jacrev(score)(x).sum(2), jacobian)
    torch.testing.assert_close(torch.func.hessian(lambda y: mixture.log_prob(y, 0.6, 0.8).sum())(x).sum(2), jacobian)


# The posterior means


@pytest.mark.parametrize(("alpha", "sigma"), [(1.0, 2.0), (0.6, 0.8), (0.9, 0.1), (0.0, 1.0)])
@pytest.mark.parametrize("make", [lambda: GaussianMixture.isotropic([[-1.0], [2.0]], [0.3, 0.6], [1, 2]),
                                  lambda: anisotropic(2, 3)])  # fmt: skip
def test_expectations_are_those_of_bayes_by_quadrature(make, alpha, sigma):
    mixture = make()
    step = 0.004 if mixture.dim == 1 else 0.02
    axis = torch.arange(-8, 8, step, dtype=torch.float64)
    x0 = axis[:, None] if mixture.dim == 1 else torch.cartesian_prod(axis, axis)
    prior = mixture.log_prob(x0)
    for x in noised(mixture, 4, alpha, sigma):
        eps = (x - alpha * x0) / sigma
        posterior = (prior - 0.5 * eps.square().sum(1)).softmax(0)
        expected = posterior @ x0, posterior @ eps
        for ours, theirs in zip(mixture.expectations(x[None], alpha, sigma), expected, strict=True):
            torch.testing.assert_close(ours[0], theirs, rtol=1e-9, atol=1e-9)


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(sorted(TARGETS)), st.floats(0, math.pi / 2), st.floats(-3, 3), st.integers(0, 99))
def test_expectations_add_up_to_x(name, angle, magnitude, seed):
    mixture = TARGETS[name]()
    alpha, sigma = 10**magnitude * math.cos(angle), 10**magnitude * math.sin(angle)
    x = noised(mixture, 10, alpha, sigma, seed)
    x0, eps = mixture.expectations(x, alpha, sigma)
    assert (alpha * x0 + sigma * eps - x).abs().max() <= 1e-12 * x.abs().max()


def exact_expectations(mixture, x, alpha, sigma):
    """The formulas of the module in 40 digits, for isotropic components."""
    mp = pytest.importorskip("mpmath")
    with mp.workdps(40):
        mu, x = mp.matrix(mixture.means.tolist()), mp.matrix([x.tolist()])
        alpha, sigma = mp.mpf(alpha), mp.mpf(sigma)
        residual = [x - alpha * mu[k, :] for k in range(mu.rows)]
        C = [alpha**2 * mp.mpf(s) ** 2 + sigma**2 for s in mixture.std[:, 0].tolist()]
        r = [w * mp.exp(-mp.norm(d) ** 2 / (2 * c)) / c ** (mp.mpf(mixture.dim) / 2)
             for w, d, c in zip(mixture.weights.tolist(), residual, C, strict=True)]  # fmt: skip
        eps = sum((p * sigma / c * d for p, c, d in zip(r, C, residual, strict=True)), x * 0) / sum(r)
        x0 = sum((p / c * (sigma**2 * mu[k, :] + (c - sigma**2) / (alpha or 1) * x)
                  for k, (p, c) in enumerate(zip(r, C, strict=True))), x * 0) / sum(r)  # fmt: skip
        return [torch.tensor([float(v) for v in y], dtype=torch.float64) for y in (x0, eps)]


@pytest.mark.product(
    {
        "make": [ring, lopsided, lambda: ring(std=0.01), lambda: ring(std=0.0), random_means],
        "alpha, sigma": [(1.0, 80.0), (1.0, 0.4), (1.0, 0.03), (0.6, 0.8)],
    },
    each=2,
)
def test_expectations_to_rounding(make, alpha, sigma):
    mixture = make()
    x = noised(mixture, 3, alpha, sigma)
    x[0] = alpha * (0.5 * mixture.means[0] + 0.5 * mixture.means[1]) + 0.1 * sigma  # torn between two modes
    for i in range(3):
        x0, eps = exact_expectations(mixture, x[i], alpha, sigma)
        ours, noise = (y[i] for y in mixture.expectations(x, alpha, sigma))
        assert (ours - x0).abs().max() <= 1e-14 * mixture.means.abs().max()
        assert (noise - eps).abs().max() <= 2e-13


def test_expectations_keep_their_digits_far_from_the_origin():
    means, x = (randn(n, 3, seed=n).mul(2**20).round() / 2**20 for n in (4, 20))  # so that adding 1024 is exact
    near, far = GaussianMixture.isotropic(means, 0.3), GaussianMixture.isotropic(means + 1024, 0.3)
    x0, eps = near.expectations(x, 1.0, 0.2)
    torch.testing.assert_close(far.expectations(x + 1024, 1.0, 0.2), (x0 + 1024, eps), rtol=1e-15, atol=1e-14)


def test_ends(mixture):
    x = noised(mixture, 10, 0.5, 1.0)
    x0, eps = mixture.expectations(x, 0.0, 2.0)
    torch.testing.assert_close(x0, mixture.mean.expand_as(x0), rtol=1e-13, atol=1e-13)
    torch.testing.assert_close(eps, x / 2, rtol=1e-14, atol=0)
    x0, eps = mixture.expectations(x, 0.5, 0.0)
    torch.testing.assert_close(x0, 2 * x, rtol=1e-13, atol=1e-13)
    assert torch.equal(eps, torch.zeros_like(x))
    for end, near in [((0.0, 1.0), (1e-10, 1.0)), ((1.0, 0.0), (1.0, 1e-10))]:
        for at, by in zip(mixture.expectations(x, *end), mixture.expectations(x, *near), strict=True):
            torch.testing.assert_close(at, by, rtol=0, atol=1e-6)


def test_singular_components_need_noise():
    points = GaussianMixture.isotropic([[-1.0, 0.0], [1.0, 0.0]], 0.0)
    x0, eps = points.expectations(torch.tensor([[0.3, 0.5]], dtype=torch.float64), 1.0, 0.5)
    torch.testing.assert_close(x0, torch.tensor([[math.tanh(0.3 / 0.25), 0.0]], dtype=torch.float64))
    torch.testing.assert_close(eps, (torch.tensor([[0.3, 0.5]], dtype=torch.float64) - x0) / 0.5)
    direction = randn(1, 4)
    line = GaussianMixture.full(torch.zeros(1, 4), direction.T @ direction)  # rank 1: the others are rounding
    assert (line.std > 0).sum() == 1
    x0, eps = line.expectations(direction + 1e-3, 1.0, 1e-6)
    torch.testing.assert_close(x0, (direction + 1e-3) @ direction.T @ direction / direction.norm() ** 2)
    for singular in (points, line):
        x = torch.zeros(2, singular.dim)
        with pytest.raises(ValueError, match="sigma must be > 0"):
            singular.expectations(x, 1.0, torch.tensor([0.0, 0.1]))
        with pytest.raises(ValueError, match="stop sigma must be > 0"):
            singular.flow(x, (0.0, 1.0), (1.0, 0.0))


# Shapes, dtypes, levels


@pytest.mark.parametrize(("alpha", "sigma"), LEVELS)
def test_the_three_kinds_agree(alpha, sigma):
    means, weights = randn(5, 3), [5, 1, 2, 3, 4]
    std = torch.tensor([0.1, 0.2, 0.4, 0.8, 1.6], dtype=torch.float64)
    isotropic = GaussianMixture.isotropic(means, std, weights)
    diagonal = GaussianMixture.diagonal(means, std[:, None].expand(5, 3), weights)
    full = GaussianMixture.full(means, std[:, None, None] ** 2 * torch.eye(3), weights)
    turned = GaussianMixture.full(means, covariances(isotropic), weights)
    x = noised(isotropic, 20, alpha, sigma)
    for other in (diagonal, full, turned):
        torch.testing.assert_close(other.covariance, isotropic.covariance)
        torch.testing.assert_close(other.log_prob(x, alpha, sigma), isotropic.log_prob(x, alpha, sigma))
        torch.testing.assert_close(other.expectations(x, alpha, sigma), isotropic.expectations(x, alpha, sigma))
    with_axes, by_matrix = stretched(), GaussianMixture.full(stretched().means, covariances(stretched()), [1, 2, 3, 4])
    torch.testing.assert_close(by_matrix.expectations(x, alpha, sigma), with_axes.expectations(x, alpha, sigma))


def test_one_value_is_shared_by_all_components():
    means = randn(4, 2)
    C = torch.tensor([[1.0, 0.3], [0.3, 0.5]], dtype=torch.float64)
    for shared, each in [
        (GaussianMixture.isotropic(means, 0.3), GaussianMixture.isotropic(means, [0.3] * 4)),
        (GaussianMixture.diagonal(means, [0.3, 0.4]), GaussianMixture.diagonal(means, [[0.3, 0.4]] * 4)),
        (GaussianMixture.full(means, C), GaussianMixture.full(means, C.expand(4, 2, 2))),
    ]:
        assert torch.equal(shared.log_prob(means, 0.6, 0.8), each.log_prob(means, 0.6, 0.8))


def test_a_level_per_sample(mixture):
    alpha, sigma = (torch.tensor(v, dtype=torch.float64) for v in ([1.0, 0.0, 0.6, 1.0], [0.0, 1.0, 0.8, 80.0]))
    x = noised(mixture, 4, 0.6, 0.8)
    x0, eps = mixture.expectations(x, alpha, sigma)
    density, end = mixture.log_prob(x, alpha, sigma), mixture.flow(x, (alpha, sigma), (1.0, 0.1), tol=1e-9)
    for i in range(4):
        row, level = x[i : i + 1], (alpha[i].item(), sigma[i : i + 1])
        torch.testing.assert_close((x0[i : i + 1], eps[i : i + 1]), mixture.expectations(row, *level))
        torch.testing.assert_close(density[i : i + 1], mixture.log_prob(row, *level))
        torch.testing.assert_close(end[i : i + 1], mixture.flow(row, level, (1.0, 0.1), tol=1e-9), rtol=1e-7, atol=1e-7)


@pytest.mark.parametrize("batch", [0, 1, 6])
def test_events_of_any_rank(batch):
    mixture, x = random_means(12), randn(batch, 12)
    for event in [(12,), (3, 4), (3, 2, 2), (1, 3, 2, 2)]:
        shaped = x.reshape(batch, *event)
        for ours, flat in zip(mixture.expectations(shaped, 0.6, 0.8), mixture.expectations(x, 0.6, 0.8), strict=True):
            assert ours.shape == shaped.shape
            assert torch.equal(ours.reshape(batch, 12), flat)
        assert (
            mixture.score(shaped, 0.6, 0.8).shape == mixture.flow(shaped, (0.6, 0.8), (0.8, 0.6)).shape == shaped.shape
        )
        assert mixture.log_prob(shaped, 0.6, 0.8).shape == (batch,)
    scalars = GaussianMixture.isotropic([[0.0], [1.0]], 0.5)
    assert scalars.score(torch.zeros(3)).shape == (3,)


@pytest.mark.parametrize(("dtype", "tol"), [(torch.float32, 2e-6), (torch.float16, 2e-3), (torch.bfloat16, 2e-2)])
def test_dtypes(dtype, tol):
    mixture = anisotropic(3, 4, 1)
    x = noised(mixture, 50, 0.6, 0.8).to(dtype)
    exact = mixture.expectations(x.double(), 0.6, 0.8), mixture.log_prob(x.double(), 0.6, 0.8)
    x0, eps = mixture.expectations(x, torch.tensor(0.6, dtype=torch.float64), 0.8)
    assert x0.dtype == eps.dtype == mixture.score(x, 0.6, 0.8).dtype == dtype
    torch.testing.assert_close((x0.double(), eps.double()), exact[0], rtol=tol, atol=tol)
    assert mixture.log_prob(x, 0.6, 0.8).dtype == torch.float32
    torch.testing.assert_close(mixture.log_prob(x, 0.6, 0.8).double(), exact[1], rtol=1e-5, atol=1e-5)
    end = mixture.flow(x, (0.6, 0.8), (1.0, 0.1), tol=1e-8)
    assert end.dtype == dtype
    assert torch.equal(end, mixture.flow(x.double(), (0.6, 0.8), (1.0, 0.1), tol=1e-8).to(dtype))


# Sampling


def test_sample_has_the_moments_of_the_mixture(mixture):
    x = mixture.sample(400_000, seed=3)
    torch.testing.assert_close(x.mean(0), mixture.mean, rtol=0, atol=0.02)
    torch.testing.assert_close(x.T.cov(correction=0), mixture.covariance, rtol=0.02, atol=0.02)


def test_sample_follows_weights_and_seed():
    mixture = GaussianMixture.isotropic([[0.0], [1.0], [2.0], [3.0]], 0.0, [0, 1, 3, 0])
    x = mixture.sample(100_000, seed=0)
    assert x.unique().tolist() == [1.0, 2.0]
    assert x.mean().item() == pytest.approx(1.75, abs=0.01)
    assert torch.equal(x, mixture.sample(100_000, seed=torch.Generator().manual_seed(0)))
    assert not torch.equal(x, mixture.sample(100_000, seed=1))
    assert mixture.sample(0, seed=0).shape == (0, 1)
    assert mixture.sample(3, seed=0, dtype=torch.float32).dtype == torch.float32


def test_global_random_state_is_untouched():
    state = torch.get_rng_state()
    for mixture in (ring(), random_means(3, seed=1), anisotropic(3, 4, 1)):
        x = mixture.sample(5, seed=0)
        mixture.expectations(mixture.flow(x, (1.0, 0.1), (0.0, 1.0)), 0.0, 1.0)
    assert torch.equal(state, torch.get_rng_state())


# The flow


def condot(t):
    return (t, 1 - t), (1.0, -1.0)


def ve(log_sigma):
    return (1.0, math.exp(log_sigma)), (0.0, math.exp(log_sigma))


def vp(t):
    log_alpha, slope = -0.05 * t - 4.975 * t**2, -0.05 - 9.95 * t
    alpha, sigma = math.exp(log_alpha), math.sqrt(-math.expm1(2 * log_alpha))
    return (alpha, sigma), (slope * alpha, -slope * alpha**2 / sigma)


PATHS = {"condot": (condot, 0.0, 1.0), "ve": (ve, math.log(80), math.log(0.002)), "vp": (vp, 1.0, 1e-3)}


@pytest.mark.parametrize("path", PATHS)
def test_flow_of_one_gaussian_is_known(path):
    level, s, t = PATHS[path]
    (alpha_s, sigma_s), (alpha_t, sigma_t) = level(s)[0], level(t)[0]
    mixture = anisotropic(4, 1, 0)
    Q, mu = mixture.basis[0], mixture.means
    gain = (((alpha_t * mixture.std) ** 2 + sigma_t**2) / ((alpha_s * mixture.std) ** 2 + sigma_s**2)).sqrt()
    x_s = noised(mixture, 30, alpha_s, sigma_s)
    x_t = alpha_t * mu + (x_s - alpha_s * mu) @ Q * gain @ Q.T
    torch.testing.assert_close(mixture.flow(x_s, level(s)[0], level(t)[0]), x_t, rtol=0, atol=1e-11)
    torch.testing.assert_close(mixture.flow(x_t, level(t)[0], level(s)[0]), x_s, rtol=0, atol=1e-10 * (1 + sigma_s))


FLOWS = [
    (ring, "condot"),
    (ring, "ve"),
    (ring, "vp"),
    (lambda: random_means(16), "ve"),
    (lambda: anisotropic(3, 4, 1), "condot"),
]


@pytest.mark.product({"make, path": FLOWS}, some={"make, path": [FLOWS[2], FLOWS[4]]})
def test_flow_agrees_with_another_integrator_in_another_frame(make, path):
    mixture, (level, s, t) = make(), PATHS[path]
    x = noised(mixture, 6, *level(s)[0])
    x[0] = level(s)[0][1] * torch.ones(mixture.dim) + 1e-2  # close to a ridge of the ring, where paths part

    def velocity(time, flat):
        (alpha, sigma), (d_alpha, d_sigma) = level(time)
        x0, eps = mixture.expectations(torch.from_numpy(flat).reshape(x.shape), alpha, sigma)
        return (d_alpha * x0 + d_sigma * eps).flatten().numpy()

    solution = solve_ivp(velocity, (s, t), x.flatten().numpy(), method="DOP853", rtol=3e-14, atol=1e-14)
    expected = torch.from_numpy(solution.y[:, -1]).reshape(x.shape)
    scale = mixture.means.abs().max().item()
    start, stop = level(s)[0], level(t)[0]
    ours = mixture.flow(x, start, stop)
    torch.testing.assert_close(ours, expected, rtol=0, atol=1e-11 * scale)
    torch.testing.assert_close(mixture.flow(ours, stop, start), x, rtol=0, atol=1e-10 * (scale + start[1]))


def test_flow_resolves_the_hardest_sample_of_a_batch():
    x = torch.cat([torch.tensor([[120.0, 49.8]], dtype=torch.float64), randn(300, 2)])
    sigma = torch.full((301,), 0.5, dtype=torch.float64)
    sigma[0] = 80.0  # only the first sample moves: the others would dilute a mean error
    alone, exact = (ring().flow(x[:1], (1.0, 80.0), (1.0, 0.5), tol=tol) for tol in (1e-6, 1e-13))
    together = ring().flow(x, (1.0, sigma), (1.0, 0.5), tol=1e-6)
    torch.testing.assert_close(together[:1], alone, rtol=0, atol=1e-10)
    torch.testing.assert_close(together[1:], x[1:], rtol=1e-13, atol=0)
    torch.testing.assert_close(alone, exact, rtol=0, atol=1e-5)
    torch.testing.assert_close(ring().flow(x[:1], (1.0, 80.0), (1.0, 0.5)), exact, rtol=0, atol=5e-11)


def test_flow_does_not_look_outside_its_interval(monkeypatch):
    seen, posterior = [], GaussianMixture._posterior

    def watch(self, x, alpha, sigma):
        seen.append(torch.atan2(sigma, alpha).item())
        return posterior(self, x, alpha, sigma)

    monkeypatch.setattr(GaussianMixture, "_posterior", watch)
    unit = GaussianMixture.isotropic([[1e-3]], 1.0)  # its flow is nearly at rest: steps are as long as they may be
    for start, stop in [((1.0, 3.0), (1.0, 0.5)), ((1.0, 0.5), (1.0, 3.0))]:
        unit.flow(randn(3, 1), start, stop)
        assert math.atan(0.5) - 1e-12 <= min(seen) <= max(seen) <= math.atan(3) + 1e-12


def test_flow_is_invariant_to_the_unit_of_data():
    z, reference = randn(5, 2), ring().flow(randn(5, 2), (0.0, 1.0), (1.0, 0.0))
    for unit in (1e-6, 1e6):
        end = ring(radius=4 * unit, std=0.2 * unit).flow(z, (0.0, 1.0), (1.0, 0.0))
        torch.testing.assert_close(end / unit, reference, rtol=1e-10, atol=1e-10)


# Named targets, values, errors


def test_named_targets():
    assert torch.allclose(ring(3, 2.0).means.norm(dim=1), torch.tensor(2.0, dtype=torch.float64))
    assert ring().means[0].tolist() == [4.0, 0.0]
    assert ring().means[2].tolist() == pytest.approx([0.0, 4.0])
    assert ring().std.unique().tolist() == [0.2]
    standard = random_means()
    assert standard.means.shape == (8, 64)
    assert standard.std.unique().tolist() == [0.3]
    torch.testing.assert_close(standard.mean, torch.zeros(64, dtype=torch.float64))
    torch.testing.assert_close(standard.covariance.diagonal(), torch.ones(64, dtype=torch.float64))
    spread = anisotropic(5, 3)
    eigenvalues = torch.linalg.eigvalsh(covariances(spread))
    assert eigenvalues[:, 0].tolist() == pytest.approx([0.05**2] * 3)
    assert eigenvalues[:, -1].tolist() == pytest.approx([1.0] * 3)
    assert not torch.allclose(covariances(spread)[0], covariances(spread)[1])
    assert spread.weights.tolist() == pytest.approx([2 / 9, 3 / 9, 4 / 9])
    for make in (random_means, anisotropic):
        assert torch.equal(make(6, seed=1).means, make(6, seed=1).means)
        assert not torch.equal(make(6, seed=1).means, make(6, seed=2).means)


def test_a_mixture_is_a_value():
    means, weights = randn(3, 2), torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64)
    mixture = GaussianMixture.isotropic(means, 0.5, weights)
    before = mixture.log_prob(means.clone())
    x = means.clone()
    means.zero_(), weights.zero_()
    assert torch.equal(mixture.log_prob(x), before)
    with pytest.raises(AttributeError):
        mixture.means = means
    for twin in (copy.deepcopy(mixture), pickle.loads(pickle.dumps(mixture))):
        assert torch.equal(twin.log_prob(x), before)
    assert repr(mixture) == "GaussianMixture.isotropic(modes=3, dim=2)"
    assert repr(anisotropic()) == "GaussianMixture.full(modes=4, dim=8)"


M = [[0.0, 0.0], [1.0, 1.0]]
X = torch.zeros(3, 2)


@pytest.mark.parametrize(
    ("error", "message", "call"),
    [
        (
            ValueError,
            r"means must be of shape \(K, D\).*got shape \(2,\)",
            lambda: GaussianMixture.isotropic([0.0, 1.0], 1.0),
        ),
        (ValueError, "means must be finite, got nan", lambda: GaussianMixture.isotropic([[math.nan]], 1.0)),
        (TypeError, "means must be numbers, got 'ring'", lambda: GaussianMixture.isotropic("ring", 1.0)),
        (
            ValueError,
            r"std must be of shape \(\) or \(2,\), got shape \(3,\)",
            lambda: GaussianMixture.isotropic(M, [1, 1, 1]),
        ),
        (ValueError, "std must be finite and >= 0, got -1.0", lambda: GaussianMixture.isotropic(M, -1)),
        (ValueError, r"std must be .*got shape \(\)", lambda: GaussianMixture.diagonal(M, 1.0)),
        (ValueError, r"covariance must be .*got shape \(2,\)", lambda: GaussianMixture.full(M, [1.0, 1.0])),
        (ValueError, "covariance must be symmetric", lambda: GaussianMixture.full(M, [[1.0, 0.5], [0.4, 1.0]])),
        (ValueError, "eigenvalues >= 0, got -1", lambda: GaussianMixture.full(M, [[1.0, 2.0], [2.0, 1.0]])),
        (ValueError, "eigenvalues >= 0, got -1", lambda: GaussianMixture.full(M, [[-1.0, 0.0], [0.0, -1.0]])),
        (ValueError, r"weights must be of shape \(2,\)", lambda: GaussianMixture.isotropic(M, 1, [1.0])),
        (ValueError, "weights must be .*got -1.0", lambda: GaussianMixture.isotropic(M, 1, [2.0, -1.0])),
        (ValueError, "weights must have a positive sum", lambda: GaussianMixture.isotropic(M, 1, [0.0, 0.0])),
        (TypeError, r"x must be a floating-point tensor, got \[\[", lambda: ring().score([[0.0, 0.0]])),
        (TypeError, "x must be .*int64", lambda: ring().score(X.long())),
        (ValueError, r"x must be .*2 numbers, got .*\(3, 3\)", lambda: ring().score(torch.zeros(3, 3))),
        (ValueError, "alpha must be .*got -1.0", lambda: ring().score(X, -1.0, 1.0)),
        (ValueError, "sigma must be .*got nan", lambda: ring().score(X, 1.0, math.nan)),
        (ValueError, r"sigma must be .*\(3,\), got shape \(2,\)", lambda: ring().score(X, 1.0, torch.ones(2))),
        (TypeError, "alpha must be numbers, got None", lambda: ring().score(X, None, 1.0)),
        (ValueError, "alpha or sigma must be > 0, got both 0", lambda: ring().score(X, 0.0, 0.0)),
        (ValueError, "n must be an integer >= 0, got -1", lambda: ring().sample(-1, seed=0)),
        (TypeError, "start must be a pair", lambda: ring().flow(X, 1.0, (1.0, 0.0))),
        (ValueError, "stop sigma must be .*got -1.0", lambda: ring().flow(X, (1.0, 1.0), (1.0, -1.0))),
        (ValueError, "x must be finite", lambda: ring().flow(X / 0, (1.0, 1.0), (1.0, 0.0))),
        (ValueError, "tol must be .*1e-20", lambda: ring().flow(X, (1.0, 1.0), (1.0, 0.0), tol=1e-20)),
        (ValueError, "modes must be an integer >= 1, got 0", lambda: ring(0)),
        (ValueError, "modes must be an integer >= 2, got 1", lambda: random_means(4, 1)),
        (ValueError, "std must be .*got 1.0", lambda: random_means(4, std=1.0)),
        (ValueError, "dim must be .*got 0", lambda: anisotropic(0)),
    ],
)
def test_errors_name_the_argument(error, message, call):
    with pytest.raises(error, match=message):
        call()
