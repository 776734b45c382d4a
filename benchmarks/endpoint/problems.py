"""Targets, paths, and the exact flow between them."""

from __future__ import annotations

import functools
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path as FilePath

import numpy as np
import torch
from torch import Tensor

from diffsolve import paths
from diffsolve.paths import Path
from diffsolve.reference.mixture import GaussianMixture, anisotropic, random_means, ring


@dataclass(frozen=True)
class Course:
    """A path, and where on it a run starts and stops."""

    name: str
    path: Path
    stop: float | None

    def level(self, t: float) -> tuple[float, float]:
        p = self.path.nodes(np.array([t]))
        return float(p.alpha[0]), float(p.sigma[0])

    @property
    def start(self) -> tuple[float, float]:
        """(alpha, sigma) at the noise end."""
        return self.level(self.path.t_noise)

    @property
    def end(self) -> tuple[float, float]:
        """(alpha, sigma) where a run stops."""
        return self.level(self.path.t_data if self.stop is None else self.stop)


COURSES = {
    "ve": Course("ve", paths.EDM(), 0.002),
    "vp": Course("vp", paths.Discrete.linear(), 0.0),
    "flow": Course("flow", paths.CondOT(), None),
}


def spectrum(dim: int = 1024, modes: int = 8, rms: float = 0.5, seed: int = 0) -> GaussianMixture:
    """Modes that share a covariance with variances ~ 1 / j, as the spectra of images fall; `rms` is per dimension."""
    generator = torch.Generator().manual_seed(seed)
    std = torch.arange(1, dim + 1, dtype=torch.float64) ** -0.5
    std *= rms / math.sqrt(1.25 * float(std.square().mean()))
    means = torch.randn((modes, dim), generator=generator, dtype=torch.float64) * std
    return GaussianMixture.diagonal(means, 0.5 * std)


TARGETS = {
    "ring": (ring, "tune"),
    "iso16": (functools.partial(random_means, 16, seed=1), "tune"),
    "iso64b": (functools.partial(random_means, 64, seed=1), "tune"),
    "iso512": (functools.partial(random_means, 512, seed=4), "tune"),
    "aniso16": (functools.partial(anisotropic, 16, seed=1), "tune"),
    "spectrum256": (functools.partial(spectrum, 256, seed=1), "tune"),
    "iso64": (functools.partial(random_means, 64, seed=0), "report"),
    "iso1024": (functools.partial(random_means, 1024, seed=2), "report"),
    "plane": (functools.partial(random_means, 2, modes=6, std=0.15, seed=3), "report"),
    "aniso8": (functools.partial(anisotropic, 8, seed=0), "report"),
    "aniso64": (functools.partial(anisotropic, 64, seed=0), "report"),
    "spectrum1024": (spectrum, "report"),
}
TUNE = [name for name, (_, role) in TARGETS.items() if role == "tune"]
REPORT = [name for name, (_, role) in TARGETS.items() if role == "report"]
PARTICLES = {"aniso64": 64, "spectrum256": 32, "spectrum1024": 32}
"""Targets with fewer particles than the others, as they cost more."""


class Problem:
    """A target, its noise, and the exact flow, kept on disk.

    A mixture of isotropic modes is solved in fewer dimensions: a sample never leaves the span of its noise and
    the means, so that its coordinates there and the length of the rest are all of it. Linear methods commute with
    that rotation, and lengths are kept.
    """

    def __init__(self, name: str, particles: int, cache: FilePath) -> None:
        self.name, self.cache, self.particles = name, cache, particles
        self.full: GaussianMixture = TARGETS[name][0]()
        self.dim = self.full.dim
        generator = torch.Generator().manual_seed(7)
        z = torch.randn((particles, self.dim), generator=generator, dtype=torch.float64)
        self.mixture, self.noise = reduced(self.full, z)
        self.rms = math.sqrt(float((self.full.mean**2).sum() + trace(self.full)))
        self.fast = FastMixture(self.mixture)
        self.known: dict[tuple[str, float, float], Tensor] = {}

    def exact(self, course: Course, to: tuple[float, float] | None = None) -> Tensor:
        """The flow from the start of the course to a level, or to the course's end."""
        alpha, sigma = course.end if to is None else to
        if (alpha, sigma) == course.start:
            return course.start[1] * self.noise if course.name == "ve" else self.noise
        if (course.name, alpha, sigma) in self.known:
            return self.known[course.name, alpha, sigma]
        key = f"{self.name}-{course.name}-{self.particles}-{alpha:.12g}-{sigma:.12g}.npy"
        file = self.cache / key
        if not file.exists():
            x = self.mixture.flow(
                self.start(course), course.start, (alpha, sigma), tol=1e-10 if self.dim > 64 else 1e-12
            )
            self.cache.mkdir(parents=True, exist_ok=True)
            partial = file.with_suffix(f".{os.getpid()}.npy")
            np.save(partial, x.numpy())
            os.replace(partial, file)
        self.known[course.name, alpha, sigma] = torch.from_numpy(np.load(file))
        return self.known[course.name, alpha, sigma]

    def start(self, course: Course) -> Tensor:
        """The state at the noise end, at the prior's scale."""
        return self.noise * course.path.prior_std()

    def error(self, course: Course, x: Tensor) -> Tensor:
        """The mean error of x (.., particles, d): one number per leading index."""
        return (x - self.exact(course)).norm(dim=-1).mean(-1) / self.rms


class Bundle:
    """Several problems as one: a state of shape (1, total), since every linear method treats numbers one by one."""

    def __init__(self, problems: Sequence[Problem]) -> None:
        self.problems = list(problems)
        self.shapes = [p.noise.shape for p in problems]

    def parts(self) -> list[Bundle]:
        """Each problem alone."""
        return [Bundle([p]) for p in self.problems]

    @property
    def shrunk(self) -> float:
        """Dimensions of the first problem's state, over those of its target."""
        return self.shapes[0][1] / self.problems[0].dim

    def start(self, course: Course) -> Tensor:
        return _joined([p.start(course) for p in self.problems])

    def exact(self, course: Course, level: tuple[float, float] | None = None) -> Tensor:
        return _joined([p.exact(course, level) for p in self.problems])

    def split(self, x: Tensor) -> list[Tensor]:
        pieces = x.reshape(-1).split([shape.numel() for shape in self.shapes])
        return [piece.view(shape) for piece, shape in zip(pieces, self.shapes, strict=True)]

    def fast(self, x: Tensor, alpha: float, sigma: float) -> tuple[Tensor, Tensor]:
        pairs = [p.fast(piece, alpha, sigma) for p, piece in zip(self.problems, self.split(x), strict=True)]
        return _joined([data for data, _ in pairs]), _joined([noise for _, noise in pairs])

    def errors(self, course: Course, x: Tensor, level: tuple[float, float] | None) -> list[float]:
        """The error on each problem, against the exact state at a level or at the course's end."""
        found = []
        for p, piece in zip(self.problems, self.split(x), strict=True):
            error = float((piece - p.exact(course, level)).norm(dim=-1).mean() / p.rms)
            found.append(error if math.isfinite(error) else math.inf)
        return found


def _joined(pieces: Sequence[Tensor]) -> Tensor:
    return torch.cat([piece.reshape(1, -1) for piece in pieces], -1)


def trace(mixture: GaussianMixture) -> float:
    """The trace of the mixture's covariance."""
    spread = (mixture.means - mixture.mean).square().sum(-1)
    within = mixture.std.square().sum(-1) * (mixture.dim // mixture.std.shape[1])
    return float(mixture.weights @ (spread + within))


def reduced(mixture: GaussianMixture, z: Tensor) -> tuple[GaussianMixture, Tensor]:
    """The same problem in the span of the means and one more dimension, if that is smaller and modes are isotropic."""
    rank = len(mixture.means)
    if mixture.basis is not None or mixture.std.shape[1] != 1 or mixture.dim <= rank + 1:
        return mixture, z
    if float(mixture.std.max() - mixture.std.min()) > 0:
        return mixture, z  # the determinants would need the full dimension
    basis = torch.linalg.qr(mixture.means.T).Q
    inside = z @ basis
    rest = (z - inside @ basis.T).norm(dim=-1, keepdim=True)
    means = torch.cat([mixture.means @ basis, torch.zeros(rank, 1, dtype=torch.float64)], -1)
    return GaussianMixture.isotropic(means, mixture.std[:, 0], mixture.weights), torch.cat([inside, rest], -1)


class FastMixture:
    """`GaussianMixture.expectations` at one level for many rows, by matrix products; equal to about 1e-12."""

    def __init__(self, mixture: GaussianMixture) -> None:
        self.mixture = mixture
        self.shared = mixture.basis is None and bool((mixture.std == mixture.std[:1]).all())
        self.means, self.variance = mixture.means, mixture.std.square()
        self.log_weights = mixture.weights.log()
        if mixture.basis is not None:
            k, d, _ = mixture.basis.shape
            self.into = mixture.basis.permute(1, 0, 2).reshape(d, k * d)  # x @ into: x in every mode's axes
            self.out = self.into.T.contiguous()
            self.centres = (self.means[:, None] @ mixture.basis).reshape(k * d)

    def __call__(self, x: Tensor, alpha: float, sigma: float) -> tuple[Tensor, Tensor]:
        """(E[x_0 | x], E[eps | x]) for x (rows, d)."""
        C = alpha**2 * self.variance + sigma**2
        if self.shared:
            inverse = 1 / C[0]
            on = self.means * (alpha * inverse)
            logits = torch.addmm(self.log_weights - 0.5 * alpha * (on * self.means).sum(-1), x, on.T)
            centre = logits.softmax(-1) @ self.means
            residual = torch.sub(x, centre, alpha=alpha).mul_(inverse)
            return centre.addcmul_(residual, alpha * self.variance[0].expand_as(residual)), residual.mul(sigma)
        if self.mixture.basis is None:
            return self.mixture.expectations(x, alpha, sigma)
        k, d = C.shape
        residual = torch.addmm(-alpha * self.centres, x, self.into).view(-1, k, d)
        force = residual / C
        logits = self.log_weights - 0.5 * C.log().sum(-1) - 0.5 * (residual * force).sum(-1)
        r = logits.softmax(-1)
        force *= r[..., None]
        eps = (force.view(-1, k * d) @ self.out).mul_(sigma)
        data = ((force * (alpha * self.variance)).view(-1, k * d) @ self.out).addmm_(r, self.means)
        return data, eps
