import math

import mpmath
import numpy as np
import pytest
import torch
from support import PATHS

from diffsolve import paths


def inside(path: paths.Path, count: int = 41) -> torch.Tensor:
    """Times strictly between the noise end and the last call."""
    return torch.linspace(path.t_noise, path.t_last, count + 2, dtype=torch.float64)[1:-1]


@pytest.mark.parametrize("name", PATHS)
def test_lambda_rises_to_the_data_and_inverts(name):
    path = paths.named(name)
    t = inside(path)
    assert (path.lam(t).diff() > 0).all()
    assert torch.allclose(path.time(path.lam(t)), t, rtol=1e-11, atol=1e-11)
    torch.testing.assert_close(path.rho(t), torch.exp(-path.lam(t)))


@pytest.mark.parametrize("name", PATHS)
def test_ends(name):
    path = paths.named(name)
    assert path.sigma(path.t_data) == 0
    assert path.alpha(path.t_data) == pytest.approx(1, abs=1e-15)
    assert float(path.time(math.inf)) == path.t_data
    assert float(path.time(path.lam(path.t_noise))) == path.t_noise
    assert path.lam(path.t_last) > path.lam(path.t_noise)
    assert path.within([path.t_noise, path.t_last, path.t_data])
    assert path.prior_std() == pytest.approx(float(path.sigma(path.t_noise)), rel=0.003)


@pytest.mark.parametrize("name", PATHS)
def test_derivatives(name):
    path = paths.named(name)
    t = inside(path) + 0.3 * path.integer  # tables have kinks at the integers
    t = t[(t > min(path.t_noise, path.t_last)) & (t < max(path.t_noise, path.t_last))]
    h = 1e-5 * abs(path.t_noise - path.t_last)
    for value, slope in zip((path.alpha, path.sigma), path.derivatives(t), strict=True):
        torch.testing.assert_close(slope, (value(t + h) - value(t - h)) / (2 * h), rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("name", PATHS)
def test_values_are_values(name):
    one, two = paths.named(name), paths.named(name)
    assert one == two
    assert hash(one) == hash(two)
    assert one != paths.EDM(sigma_max=7.0)
    t = inside(one)
    assert torch.equal(one.alpha(t), two.alpha(t))
    assert one.alpha(0.5 if one.within(0.5) else one.t_noise).dtype == torch.float64


def test_closed_forms():
    t = torch.linspace(0, 1, 7, dtype=torch.float64)
    vp = paths.VP(0.1, 20.0)
    torch.testing.assert_close(vp.alpha(t) ** 2, torch.exp(-(0.1 * t + 0.5 * 19.9 * t**2)))
    torch.testing.assert_close(vp.alpha(t) ** 2 + vp.sigma(t) ** 2, torch.ones_like(t))
    sub = paths.SubVP(0.1, 20.0)
    torch.testing.assert_close(sub.sigma(t), 1 - vp.alpha(t) ** 2)
    torch.testing.assert_close(paths.VE(0.01, 50.0).sigma(t), 0.01 * 5000.0**t)
    cosine = paths.Cosine(0.008)
    level = torch.cos((t + 0.008) / 1.008 * math.pi / 2) ** 2
    torch.testing.assert_close(cosine.alpha(t) ** 2, level / level[0], atol=1e-15, rtol=1e-12)
    assert cosine.alpha(1.0) == 0
    assert paths.CondOT().lam(0.25) == pytest.approx(math.log(1 / 3))
    assert paths.Rectified().sigma(0.25) == 0.25


def test_small_sigma_keeps_its_digits():
    # sigma = sqrt(1 - alpha^2) computed that way has no digit left here.
    t = 1e-12
    assert float(paths.VP().sigma(t)) == pytest.approx(math.sqrt(0.1 * t), rel=1e-9)
    assert float(paths.Cosine().sigma(t)) == pytest.approx(
        math.sqrt(t * math.pi / 2.016 * math.sin(math.pi / 1.008 * 0.008)) / math.cos(math.pi / 2 * 0.008 / 1.008),
        rel=1e-6,
    )


def _exact(path):
    """alpha and sigma from their formulas, of 50 digits."""
    number = mpmath.mpf

    def log_alpha(t):
        return -t * t * (number(path.beta_max) - number(path.beta_min)) / 4 - t * number(path.beta_min) / 2

    def phi(t):
        return mpmath.pi / 2 * (t + number(path.s)) / (1 + number(path.s))

    def lam(t):
        k = int(t)
        left, right = (number(float(path._lam[i])) for i in (k, k + 1))
        return left + (t - k) * (right - left)

    alpha, sigma = {
        paths.VP: (lambda t: mpmath.exp(log_alpha(t)), lambda t: mpmath.sqrt(1 - mpmath.exp(2 * log_alpha(t)))),
        paths.SubVP: (lambda t: mpmath.exp(log_alpha(t)), lambda t: 1 - mpmath.exp(2 * log_alpha(t))),
        paths.VE: (lambda t: number(1), lambda t: path.sigma_min * (number(path.sigma_max) / path.sigma_min) ** t),
        paths.Cosine: (
            lambda t: mpmath.cos(phi(t)) / mpmath.cos(phi(0)),
            lambda t: mpmath.sqrt(1 - (mpmath.cos(phi(t)) / mpmath.cos(phi(0))) ** 2),
        ),
        paths.Discrete: (
            lambda t: 1 / mpmath.sqrt(1 + mpmath.exp(-2 * lam(t))),
            lambda t: 1 / mpmath.sqrt(1 + mpmath.exp(2 * lam(t))),
        ),
    }[type(path)]
    return alpha, sigma


@pytest.mark.parametrize("name", ["vp", "subvp", "ve", "cosine", "ddpm", "ddpm-cosine", "ddpm-scaled-linear"])
def test_derivatives_to_the_last_digits(name):
    """Of the closed forms, against finite differences in 50 digits: to a few units of rounding, near sigma = 0 too."""
    path = paths.named(name)
    t = torch.cat([inside(path, 12) + 0.3 * path.integer, torch.tensor([path.t_last + 1e-4], dtype=torch.float64)])
    t = t[t < path.t_noise]
    with mpmath.workdps(50):
        for function, slopes in zip(_exact(path), path.derivatives(t), strict=True):
            for at, slope in zip(t.tolist(), slopes.tolist(), strict=True):
                assert slope == pytest.approx(float(mpmath.diff(function, mpmath.mpf(at), h=1e-20)), rel=4e-15, abs=0)


def test_derivatives_at_the_ends():
    t = torch.tensor(0.0, dtype=torch.float64)
    for path in (paths.VP(), paths.Cosine()):
        assert path.derivatives(t)[1] == math.inf
    assert paths.Cosine(s=0.0).derivatives(t)[1] == pytest.approx(math.pi / 2)
    assert paths.SubVP().derivatives(t)[1] == pytest.approx(0.1)
    assert [float(slope) for slope in paths.VE().derivatives(-math.inf)] == [0, 0]
    # A table: in the segments of a linear angle, at the first index of each.
    table = paths.Discrete.scaled_linear(zero_terminal_snr=True)
    angle = torch.atan2(table.sigma([-1.0, 0.0, 998.0, 999.0]), table.alpha([-1.0, 0.0, 998.0, 999.0])).diff()
    for at, turn in ((-1.0, angle[0]), (998.0, angle[2]), (999.0, angle[2])):
        dalpha, dsigma = table.derivatives(at)
        assert float(dalpha) == pytest.approx(float(-table.sigma(at) * turn))
        assert float(dsigma) == pytest.approx(float(table.alpha(at) * turn))


def test_table():
    betas = np.linspace(1e-4, 0.02, 1000)
    path = paths.Discrete(betas)
    assert path == paths.named("ddpm")
    np.testing.assert_allclose(path.alpha(np.arange(1000.0)) ** 2, np.cumprod(1 - betas), rtol=1e-12)
    np.testing.assert_allclose(path.sigma(np.arange(1000.0)) ** 2, 1 - np.cumprod(1 - betas), rtol=1e-11)
    # Between rows lambda is linear; from row 0 to the data the angle is.
    assert float(path.lam(10.25)) == pytest.approx(0.75 * float(path.lam(10.0)) + 0.25 * float(path.lam(11.0)))
    angle = math.asin(0.01)
    assert float(path.sigma(-0.5)) == pytest.approx(math.sin(angle / 2))
    assert len(path) == 1000


def test_zero_terminal_snr():
    path = paths.Discrete.scaled_linear(zero_terminal_snr=True)
    plain = paths.Discrete.scaled_linear()
    assert path.alpha(999.0) == 0
    assert path.sigma(999.0) == 1
    assert float(path.alpha(0.0)) == pytest.approx(float(plain.alpha(0.0)), rel=1e-12)
    a = plain.alpha(np.arange(1000.0)).numpy()
    np.testing.assert_allclose(
        path.alpha(np.arange(1000.0)), (a - a[-1]) * a[0] / (a[0] - a[-1]), rtol=1e-9, atol=1e-15
    )
    t = torch.linspace(998, 999, 9, dtype=torch.float64)
    assert (path.alpha(t).diff() < 0).all()
    torch.testing.assert_close(path.time(path.lam(t)), t)


def test_users_own_path():
    own = paths.Custom(lambda t: torch.cos(t * math.pi / 2), lambda t: torch.sin(t * math.pi / 2))
    t = torch.linspace(0.05, 0.95, 19, dtype=torch.float64)
    torch.testing.assert_close(own.time(own.lam(t)), t, rtol=1e-13, atol=1e-14)
    torch.testing.assert_close(own.derivatives(t)[1], torch.cos(t * math.pi / 2) * math.pi / 2)
    assert own.t_last == 0.0
    constant = paths.Custom(torch.ones_like, lambda t: 3 * t, t_last=0.01)
    assert (constant.derivatives(t)[0] == 0).all()
    assert constant.prior_std() == 3


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: paths.named("edmm"), r"path must be one of 'condot', .*, got 'edmm'; did you mean 'edm'"),
        (
            lambda: paths.named("edm(sigma_mox=3)"),
            "path=.* has no option 'sigma_mox'; did you mean 'sigma_max'. its options are sigma_min, sigma_max",
        ),
        (lambda: paths.named("edm(3)"), "path must be written name or name"),
        (lambda: paths.named(3), "path must be a name or a Path"),
        (
            lambda: paths.EDM(sigma_min=2.0, sigma_max=1.0),
            r"\(sigma_min, sigma_max\) must be positive, finite and rising, got \(2.0, 1.0\)",
        ),
        (lambda: paths.VP(beta_min=-1.0), "beta_min"),
        (lambda: paths.Rectified(shift=0.0), "shift must be a finite number > 0, got 0.0"),
        (lambda: paths.Discrete([0.1, 1.2, 0.3]), r"betas\[1\] must be between 0 and 1 .*, got 1.2"),
        (lambda: paths.Discrete([[0.1]]), "betas must be a list of at least 2 numbers, got ndarray of shape"),
        (
            lambda: paths.Custom(lambda t: 1 - t * 0, lambda t: (t - 0.5) ** 2 - 0.25 * (t == 0)),
            "strictly rising|finite and >= 0",
        ),
        (lambda: paths.Custom(lambda t: 1 - t, lambda t: t + 0.1), r"sigma\(t_data=0.0\) must be 0, the data end"),
        (
            lambda: paths.Custom(lambda t: 1 - t, lambda t: torch.zeros(3)),
            r"sigma\(t\) must be of shape \(1001,\) .*, got Tensor of shape \(3,\)",
        ),
        (lambda: paths.EDM().time([0.0, -9.0]), "lam must be between -4.38.* and inf, the ends of EDM"),
        (lambda: paths.EDM().time(float("nan")), "lam must be between -4.38.* and inf, the ends of EDM"),
    ],
)
def test_errors_name_what_is_wrong(make, says):
    with pytest.raises((ValueError, TypeError), match=says):
        make()
