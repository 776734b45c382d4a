r"""Gaussian mixtures: distributions whose score, posterior means and probability flow are known exactly.

For :math:`x_0 \sim \sum_k w_k N(\mu_k, \Sigma_k)`, noised as :math:`x = \alpha x_0 + \sigma \varepsilon`,

.. math::
    p(x) = \sum_k w_k N(x; \alpha \mu_k, C_k), \qquad C_k = \alpha^2 \Sigma_k + \sigma^2 I

and with the responsibilities :math:`r_k(x) = w_k N(x; \alpha \mu_k, C_k) / p(x)`

.. math::
    E[x_0 | x]         &= \sum_k r_k (\mu_k + \alpha \Sigma_k C_k^{-1} (x - \alpha \mu_k)) \\
    E[\varepsilon | x] &= \sum_k r_k \sigma C_k^{-1} (x - \alpha \mu_k)
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from diffsolve.common.checks import described, integer, number, required

__all__ = ["GaussianMixture", "anisotropic", "random_means", "ring"]

Level = float | Tensor  # alpha or sigma: one number, or one per sample with shape (B,)


@dataclass(frozen=True, eq=False, repr=False)
class GaussianMixture:
    r"""The mixture of :math:`N(\mu_k, Q_k \mathrm{diag}(s_k^2) Q_k^T)` with weights :math:`w_k`, immutable.

    Build it with :meth:`isotropic`, :meth:`diagonal` or :meth:`full`, which check and copy their arguments.
    Methods take `x` of shape (B, *event), where an event has D numbers in any shape, and levels `alpha`,
    `sigma` >= 0, numbers or tensors of shape () or (B,). They compute on the device and in the dtype of `x`
    (half precision: in float32, then cast back) and are differentiable in `x` and the levels.

    Nothing is divided by `alpha` or `sigma`: results at alpha = 0 and sigma = 0 are as accurate as in between.
    A component may be singular (std = 0 is a point mass) wherever sigma > 0; at sigma = 0 that is an error.
    """

    weights: Tensor  # (K,), summing to 1; all four are float64 on the CPU
    means: Tensor  # (K, D)
    std: Tensor  # (K, 1) or (K, D): square roots of the eigenvalues of the covariances
    basis: Tensor | None  # (K, D, D): their eigenvectors, as columns; None is the identity
    _copies: dict[Any, Any] = field(default_factory=dict, init=False)

    @classmethod
    def isotropic(cls, means: Any, std: Any, weights: Any = None) -> GaussianMixture:
        """Components N(mu_k, std_k^2 I). `means` has shape (K, D), `std` is a number or has shape (K,)."""
        means, weights = _centres(means, weights)
        std = _parameter("std", std, [(), weights.shape], least=0.0)
        return cls(weights, means, std.expand_as(weights)[:, None], None)

    @classmethod
    def diagonal(cls, means: Any, std: Any, weights: Any = None) -> GaussianMixture:
        """Components N(mu_k, diag(std_k^2)). `means` has shape (K, D), `std` (K, D) or (D,)."""
        means, weights = _centres(means, weights)
        std = _parameter("std", std, [means.shape, means.shape[1:]], least=0.0)
        return cls(weights, means, std.expand_as(means), None)

    @classmethod
    def full(cls, means: Any, covariance: Any, weights: Any = None) -> GaussianMixture:
        """Components N(mu_k, Sigma_k). `means` has shape (K, D), `covariance` (K, D, D) or (D, D).

        Eigenvalues within rounding of 0 (D * 2.2e-16 of the largest) become 0: that component is singular.
        """
        means, weights = _centres(means, weights)
        K, D = means.shape
        covariance = _parameter("covariance", covariance, [(K, D, D), (D, D)])
        skew = (covariance - covariance.mT).abs().max().item()
        if skew > 1e-8 * covariance.abs().max().item():
            raise ValueError(f"covariance must be symmetric, got |S - S^T| up to {skew:.1e}")
        variances, basis = torch.linalg.eigh(covariance.expand(K, D, D))
        largest = variances[:, -1:].clamp(min=0)
        if (variances < -1e-8 * largest).any():
            raise ValueError(f"covariance must have eigenvalues >= 0, got {variances.min().item():.3e}")
        variances = variances.where(variances > D * torch.finfo(torch.float64).eps * largest, 0.0)
        return cls(weights, means, variances.sqrt(), basis)

    def __repr__(self) -> str:
        kind = "full" if self.basis is not None else "isotropic" if self.std.shape[1] == 1 else "diagonal"
        return f"GaussianMixture.{kind}(modes={len(self.means)}, dim={self.dim})"

    @property
    def dim(self) -> int:
        return self.means.shape[1]

    @property
    def mean(self) -> Tensor:
        """The mean of x0, with shape (D,)."""
        return self.weights.matmul(self.means)

    @property
    def covariance(self) -> Tensor:
        """The covariance of x0, with shape (D, D)."""
        spread = self.means - self.mean
        root = self.std[:, None] * (torch.eye(self.dim).to(self.std) if self.basis is None else self.basis)
        return torch.einsum("k,kij,klj->il", self.weights, root, root).addmm(self.weights * spread.T, spread)

    def sample(self, n: int, *, seed: int | torch.Generator, dtype: torch.dtype = torch.float64) -> Tensor:
        """Draw x0, with shape (n, D), from a seed or a CPU generator; the global random state is not used."""
        n = integer("n", n, 0)
        generator = seed if isinstance(seed, torch.Generator) else torch.Generator().manual_seed(seed)
        edges = self.weights.cumsum(0)
        u = torch.rand(n, generator=generator, dtype=torch.float64, device="cpu")
        k = torch.searchsorted(edges / edges[-1], u, right=True)
        offset = self.std[k] * _randn(n, self.dim, generator=generator)
        if self.basis is not None:
            for j, Q in enumerate(self.basis):
                offset[k == j] = offset[k == j] @ Q.T
        return (self.means[k] + offset).to(dtype)

    def given(self, A: Any, y: Any, noise: float) -> GaussianMixture:
        r"""The law of x_0 given the observation y = A x_0 + noise z, z standard normal: again a mixture.

        With :math:`V_k = A \Sigma_k A^T + \mathrm{noise}^2 I` and :math:`K_k = \Sigma_k A^T V_k^{-1}`

        .. math::
            w_k' \propto w_k N(y; A \mu_k, V_k), \qquad \mu_k' = \mu_k + K_k (y - A \mu_k), \qquad
            \Sigma_k' = \Sigma_k - K_k A \Sigma_k

        Args:
            A: (M, D).
            y: (M,).
            noise: its standard deviation, > 0.
        """
        A = _parameter("A", A, None)
        required(A.dim() == 2 and A.shape[1] == self.dim, "A", A, f"of shape (M, {self.dim})")
        y = _parameter("y", y, [A.shape[:1]])
        root = self.std[:, None] * (torch.eye(self.dim).to(self.std) if self.basis is None else self.basis)
        covariance = root @ root.mT
        V = A @ covariance @ A.T + number("noise", noise, above=0) ** 2 * torch.eye(len(y)).to(A)
        gain = torch.linalg.solve(V, A @ covariance).mT
        apart = y - self.means @ A.T
        seen = -(torch.linalg.solve(V, apart) * apart).sum(-1) / 2 - torch.linalg.slogdet(V)[1] / 2
        weights = (self.weights.log() + seen).softmax(0)
        left = covariance - gain @ A @ covariance
        return GaussianMixture.full(self.means + (gain @ apart[..., None])[..., 0], (left + left.mT) / 2, weights)

    def expectations(self, x: Tensor, alpha: Level, sigma: Level) -> tuple[Tensor, Tensor]:
        r"""The posterior means :math:`E[x_0 | x]` and :math:`E[\varepsilon | x]`, each in the shape of `x`.

        alpha E[x0|x] + sigma E[eps|x] = x to rounding, but neither is computed from the other.
        """
        rows, alpha, sigma = self._inputs(x, alpha, sigma)
        x0, force = self._posterior(rows, alpha, sigma)
        return x0.to(x.dtype).reshape(x.shape), (sigma * force).to(x.dtype).reshape(x.shape)

    def score(self, x: Tensor, alpha: Level = 1.0, sigma: Level = 0.0) -> Tensor:
        r"""The gradient of :meth:`log_prob`: :math:`-\sum_k r_k C_k^{-1} (x - \alpha \mu_k)`."""
        _, force = self._posterior(*self._inputs(x, alpha, sigma))
        return (-force).to(x.dtype).reshape(x.shape)

    def log_prob(self, x: Tensor, alpha: Level = 1.0, sigma: Level = 0.0) -> Tensor:
        """The natural log of the density of alpha x0 + sigma eps, with shape (B,), in float32 or float64."""
        return self._log_joint(*self._inputs(x, alpha, sigma))[0].logsumexp(0)

    @torch.no_grad()
    def flow(self, x: Tensor, start: tuple[Level, Level], stop: tuple[Level, Level], *, tol: float = 1e-12) -> Tensor:
        r"""Follow the probability-flow ODE from the levels `start` = (alpha, sigma) to `stop`, in either direction.

        With L the root mean square of the data, :math:`c^2 = (L \alpha)^2 + \sigma^2` and
        :math:`\tan \theta = \sigma / (L \alpha)`, the state z = x / c obeys

        .. math:: dz / d\theta = -\sin\theta \, E[x_0 | x] / L + \cos\theta \, E[\varepsilon | x]

        which is bounded and smooth from end to end on every path. torchdiffeq's dopri8 solves it in float64, each
        number of each step within `tol` (1 + |z|). The result has the dtype of `x` and no gradient.

        Raises:
            ValueError: if `x` is not finite or of another shape, a level is negative, or `tol` is not in [1e-14, 1).
            TypeError: if `x` is not a floating-point tensor, or an end is not a pair.
        """
        from torchdiffeq import odeint

        tol = number("tol", tol, low=1e-14, below=1)
        L = (self.weights @ (self.std.square().mean(1) + self.means.square().mean(1))).sqrt().item() or 1.0
        ends = []
        for name, level in (("start", start), ("stop", stop)):
            pair = isinstance(level, tuple) and len(level) == 2
            required(pair, name, level, "a pair (alpha, sigma)", TypeError)
            rows, alpha, sigma = self._inputs(x, *level, dtype=torch.float64, of=name + " ")
            ends += [torch.atan2(sigma, L * alpha), torch.hypot(sigma, L * alpha)]
        theta_s, c_s, theta_t, c_t = ends
        if not rows.isfinite().all():
            raise ValueError("x must be finite, got inf or nan")
        if len(x) == 0:
            return x.clone()

        def velocity(u: Tensor, z: Tensor) -> Tensor:
            theta = theta_s.lerp(theta_t, u)
            cos, sin = theta.cos(), theta.sin()
            x0, force = self._posterior(z, cos / L, sin)  # the levels at which c = 1 and x = z
            return (theta_t - theta_s) * sin * (cos * force - x0 / L)

        # Three defaults would cost accuracy: a norm over the batch lets one hard sample go wrong, without `step_t`
        # the solve overshoots and interpolates back with order 4, the search for a first step may look outside.
        u = rows.new_tensor([0.0, 1.0])
        options = {"norm": lambda error: error.abs().max(), "step_t": u[1:], "first_step": 0.01}
        z: Tensor = odeint(velocity, rows / c_s, u, rtol=tol, atol=tol, method="dopri8", options=options)[1]
        return c_t.mul(z).to(x.dtype).reshape(x.shape)

    def _inputs(
        self, x: Tensor, alpha: Level, sigma: Level, dtype: torch.dtype | None = None, of: str = ""
    ) -> tuple[Tensor, Tensor, Tensor]:
        """`x` as rows (B, D) and the levels with shape (B, 1) or (1, 1), in the dtype to compute in."""
        required(isinstance(x, Tensor) and x.is_floating_point(), "x", x, "a floating-point tensor", TypeError)
        fits = x.dim() > 0 and x.shape[1:].numel() == self.dim
        required(fits, "x", x, f"of shape (B, *event) with events of {self.dim} numbers")
        dtype = dtype or torch.promote_types(x.dtype, torch.float32)
        shapes = [(), (1,), x.shape[:1]]
        a, s = (
            _tensor(of + name, level, shapes, 0.0, dtype, x.device).reshape(-1, 1)
            for name, level in (("alpha", alpha), ("sigma", sigma))
        )
        if ((a == 0) & (s == 0)).any():
            raise ValueError(f"{of}alpha or {of}sigma must be > 0, got both 0")
        if (s == 0).any() and (self.std == 0).any():
            raise ValueError(f"{of}sigma must be > 0 where a component with std = 0 has no density, got 0")
        return x.to(dtype).reshape(len(x), self.dim), a, s

    def _log_joint(self, x: Tensor, alpha: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """log w_k + log N(x; alpha mu_k, C_k) with shape (K, B), C_k^(-1/2) (x - alpha mu_k), and C_k^(1/2)."""
        log_weights, means, std, basis = self._on(x)
        # Subtracted, then squared: |x|^2 - 2 alpha x.mu + |alpha mu|^2 would lose (|x| / s)^2 units of rounding.
        residual = x - alpha * means if basis is None else (x - alpha * means) @ basis
        s = torch.hypot(alpha * std, sigma)
        white = residual / s
        log_det = (s.log() + 0.5 * math.log(2 * math.pi)).sum(-1) * (self.dim // s.shape[-1])
        return log_weights - log_det - 0.5 * white.square().sum(-1), white, s

    def _posterior(self, x: Tensor, alpha: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
        """E[x0|x], and the mean of C_k^-1 (x - alpha mu_k) over the responsibilities: minus the score."""
        log_joint, white, s = self._log_joint(x, alpha, sigma)
        _, means, std, basis = self._on(x)
        r = log_joint.softmax(0)[..., None]
        white = r * white
        pull, force = white * (alpha * std / s * std), white / s
        if basis is not None:
            pull, force = pull @ basis.mT, force @ basis.mT
        return (r * means + pull).sum(0), force.sum(0)

    def _on(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
        """log w_k (K, 1), means (K, 1, D), std (K, 1, 1 or D) and basis, on the device and in the dtype of `x`."""
        if (key := (x.dtype, x.device)) not in self._copies:
            parts = self.weights.log()[:, None], self.means[:, None], self.std[:, None], self.basis
            self._copies[key] = tuple(part if part is None else part.to(x) for part in parts)
        return self._copies[key]  # type: ignore[no-any-return]


def ring(modes: int = 8, radius: float = 4.0, std: float = 0.2) -> GaussianMixture:
    """Isotropic modes evenly spaced on a circle in 2-D, the first on the positive first axis."""
    modes = integer("modes", modes, 1)
    angle = torch.arange(modes, dtype=torch.float64) * (2 * math.pi / modes)
    return GaussianMixture.isotropic(radius * torch.stack([angle.cos(), angle.sin()], 1), std)


def random_means(dim: int = 64, modes: int = 8, std: float = 0.3, seed: int = 0) -> GaussianMixture:
    """Isotropic modes at random means, shifted and scaled so that every dimension has mean 0 and variance 1."""
    dim, modes, std = integer("dim", dim, 1), integer("modes", modes, 2), number("std", std, low=0, below=1)
    means = _randn(modes, dim, generator=torch.Generator().manual_seed(seed))
    means = (means - means.mean(0)) / means.std(0, correction=0)
    return GaussianMixture.isotropic(math.sqrt(1 - std**2) * means, std)


def anisotropic(dim: int = 8, modes: int = 4, seed: int = 0) -> GaussianMixture:
    """Modes with standard normal means, weights in ratio 1 to 2, and random axes, different for each mode.

    Along its axes the standard deviations of a mode go from 0.05 to 1, evenly in the logarithm.
    """
    dim, modes = integer("dim", dim, 1), integer("modes", modes, 1)
    generator = torch.Generator().manual_seed(seed)
    means, gaussian = _randn(modes, dim, generator=generator), _randn(modes, dim, dim, generator=generator)
    std = torch.logspace(math.log10(0.05), 0.0, dim, dtype=torch.float64).expand(modes, dim)
    means, weights = _centres(means, torch.linspace(1.0, 2.0, modes, dtype=torch.float64))
    return GaussianMixture(weights, means, std, torch.linalg.qr(gaussian).Q)


def _randn(*shape: int, generator: torch.Generator) -> Tensor:
    return torch.randn(shape, generator=generator, dtype=torch.float64, device="cpu")


def _tensor(name: str, value: Any, shapes: Any, least: float, dtype: torch.dtype, device: Any) -> Tensor:
    try:
        tensor = torch.as_tensor(value, dtype=dtype, device=device)
    except (TypeError, ValueError, RuntimeError) as error:
        raise TypeError(f"{name} must be numbers, got {described(value)}") from error
    if shapes is not None and tensor.shape not in shapes:
        accepted = " or ".join(str(tuple(shape)) for shape in shapes)
        raise ValueError(f"{name} must be of shape {accepted}, got shape {tuple(tensor.shape)}")
    good = tensor.isfinite() & (tensor >= least)
    if not good.all():
        bound = "" if least == -math.inf else f" and >= {least:g}"
        raise ValueError(f"{name} must be finite{bound}, got {tensor[~good][0].item()}")
    return tensor


def _parameter(name: str, value: Any, shapes: Any, least: float = -math.inf) -> Tensor:
    return _tensor(name, value, shapes, least, torch.float64, "cpu").detach().clone()


def _centres(means: Any, weights: Any) -> tuple[Tensor, Tensor]:
    """The means and the weights, divided by their sum; None is equal weights."""
    means = _parameter("means", means, None)
    if means.dim() != 2 or means.numel() == 0:
        raise ValueError(f"means must be of shape (K, D) with K, D >= 1, got shape {tuple(means.shape)}")
    weights = torch.ones(len(means)) if weights is None else weights
    weights = _parameter("weights", weights, [means.shape[:1]], least=0.0)
    if weights.sum() == 0:
        raise ValueError(f"weights must have a positive sum, got {weights.tolist()}")
    return means, weights / weights.sum()
