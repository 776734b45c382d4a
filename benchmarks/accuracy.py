r"""Error against network calls, on targets whose exact answer is known.

From the same noise, in float64: the mean over particles of |x - x*| over the root mean square norm of the data,
where the run stops. x* is the probability flow of an exact mixture, solved to 1e-12.

    python benchmarks/accuracy.py --quick            # minutes: the named solvers and the peers, two targets
    python benchmarks/accuracy.py                    # everything: also the family of multistep methods, crossed

| path | start          | stop          |
|------|----------------|---------------|
| ve   | sigma = 80     | sigma = 0.002 |
| vp   | row 999        | row 0         |  (the linear table of 1000 betas)
| flow | t = 0, noise   | t = 1, data   |  (CondOT)

Configurations are chosen on the targets marked `tune` and reported on the others. The peers are in `peers.py`.
"""

from __future__ import annotations

import argparse
import functools
import itertools
import json
import math
import os
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path as FilePath

import numpy as np
import torch
from torch import Tensor

from diffsolve import grids, paths, solvers
from diffsolve.grids import Grid
from diffsolve.paths import Path
from diffsolve.reference.mixture import GaussianMixture, anisotropic, random_means, ring
from diffsolve.solvers import Multistep, Solver
from diffsolve.tableau import Tableau

HERE = FilePath(__file__).resolve().parent
BUDGETS = (5, 6, 8, 10, 15, 20, 30, 50)


# Problems ----------------------------------------------------------------------------------------------------


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
    "aniso16": (functools.partial(anisotropic, 16, seed=1), "tune"),
    "iso64": (functools.partial(random_means, 64, seed=0), "report"),
    "iso1024": (functools.partial(random_means, 1024, seed=2), "report"),
    "plane": (functools.partial(random_means, 2, modes=6, std=0.15, seed=3), "report"),
    "aniso8": (functools.partial(anisotropic, 8, seed=0), "report"),
    "aniso64": (functools.partial(anisotropic, 64, seed=0), "report"),
    "spectrum1024": (spectrum, "report"),
}
TUNE = [name for name, (_, role) in TARGETS.items() if role == "tune"]
REPORT = [name for name, (_, role) in TARGETS.items() if role == "report"]


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


# Ours --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Asinh(grids.Warp):
    """Even steps in asinh(rho / scale): linear in rho below the scale, logarithmic above."""

    scale: float = 0.3

    def forward(self, path: Path, t: np.ndarray) -> np.ndarray:
        p = path.nodes(t)
        return np.asarray(np.arcsinh(p.sigma / p.alpha / self.scale))

    def inverse(self, path: Path, w: np.ndarray) -> np.ndarray:
        return path.time(-np.log(self.scale * np.sinh(w))).numpy()


@dataclass(frozen=True)
class Angle(grids.Warp):
    """Even steps in atan(rho / scale), to a power: theta for data of that scale."""

    scale: float = 1.0
    power: float = 1.0

    def forward(self, path: Path, t: np.ndarray) -> np.ndarray:
        p = path.nodes(t)
        return np.asarray(np.arctan2(p.sigma, self.scale * p.alpha) ** (1 / self.power))

    def inverse(self, path: Path, w: np.ndarray) -> np.ndarray:
        theta = np.minimum(w**self.power, np.pi / 2)  # where the power's rounding would step beyond
        return path.time(-np.log(self.scale * np.tan(theta))).numpy()


def our_grids(course: Course) -> list[Grid]:
    """Every grid worth trying on a course."""
    common = [
        "uniform-lambda", "uniform-u", "uniform-theta",
        "polynomial(power=1.5, variable='theta')", "polynomial(power=2, variable='theta')",
        "polynomial(power=1.5, variable='u')", "polynomial(power=2, variable='u')",
    ]  # fmt: skip
    karras = [f"karras(rho={rho})" for rho in (2, 3, 5, 7, 10)]
    own = {
        "ve": karras,
        "vp": [*karras, "uniform-t", "quadratic", "trailing", "polynomial(power=1.5)"],
        "flow": [
            "karras(rho=7)",
            *(f"shifted(shift={shift})" for shift in (0.5, 0.7, 1.5, 2, 3)),
            "polynomial(power=0.7)", "polynomial(power=1.25)", "beta",
            "polynomial(power=0.75, variable='theta')", "polynomial(power=1.25, variable='theta')",
        ],
    }[course.name]  # fmt: skip
    extra: list[Grid] = [Angle(0.5), Angle(2.0), Angle(2.0, 1.5)]
    if course.name != "flow":
        extra += [Asinh(0.1), Asinh(0.3), Asinh(1.0), Angle(0.3), Angle(4.0, 1.5)]
    return [*map(grids.named, [*common, *own]), *extra]


def label(grid: Grid) -> str:
    return str(grid)


FRAME_VARIABLES = {
    "denoised": ("lambda", "theta", "u", "rho7"),
    "noise": (None, "lambda", "theta", "u", "rho7"),
    "straight": (None, "lambda", "theta", "rho7", "log-u"),  # None is u
    "trig": (None, "lambda", "u", "rho7", "log-u"),  # None is theta
}


def family() -> list[Multistep]:
    """Multistep methods: frame, variable, points and corrector crossed."""
    found = [Multistep(1, "straight"), Multistep(1, "trig")]  # the other frames' first order is straight's
    for points, corrector in ((1, 2), (2, 0), (2, 3), (3, 0), (3, 4), (4, 0), (4, 5)):
        for frame, variables in FRAME_VARIABLES.items():
            found += [Multistep(points, frame, variable, corrector) for variable in variables]
    return found


NAMED = [
    "ddim", "ab-2", "ab-3", "ab-4", "dpmpp-2m", "dpmpp-3m", "heun", "midpoint", "rk4", "unipc-2", "unipc-3",
    "unipc-3(lower_final=False)", "unipc-3(frame='noise', lower_final=False)", "ab-3(frame='trig')",
    "ab-3(frame='noise', variable='lambda')", "midpoint(frame='lambda')",
]  # fmt: skip


@functools.lru_cache(maxsize=256)
def nodes(course: Course, grid: Grid, steps: int) -> np.ndarray:
    """The grid's times, kept: hundreds of methods ask for the same."""
    return grid(course.path, steps, stop=course.stop)


def fitted(course: Course, method: Solver, grid: Grid, nfe: int) -> Tableau | None:
    """The longest tableau of at most `nfe` calls; None if there is none, or it leaves more than a step unused."""
    most = nfe if method.calls == 1 else nfe // method.calls + 1
    for steps in range(most, 0, -1):
        try:
            times = nodes(course, grid, steps)
        except ValueError:
            return None
        tableau = method(course.path, times, call_last=True)
        if tableau.nfe <= nfe:
            return tableau
    return None


@torch.no_grad()
def run_together(tableaux: Sequence[Tableau], problem: Problem, x: Tensor) -> Tensor:
    """(C, B, d): what each tableau makes of x (B, d). They must call the network at the same places.

    The executor of the library runs one tableau; this runs the same weights for all of them, one network call
    serving all. `--check` compares the two.
    """
    first, C = tableaux[0], len(tableaux)
    K = max(t.history for t in tableaux)
    W = np.zeros((C, first.nfe, 2, K + 2))
    for c, t in enumerate(tableaux):
        assert np.array_equal(t.calls, first.calls)
        W[c, :, :, : t.history + 2] = t.weights[..., :-1]
    weights = torch.from_numpy(W)[..., None, None]  # (C, N, 2, K + 2, 1, 1)
    on_data, on_noise = (torch.from_numpy(np.stack([t.d[:, j] for t in tableaux]))[..., None, None] for j in (0, 1))
    s = y = x.expand(C, *x.shape)
    history: list[Tensor] = []
    for i, (_, alpha, sigma) in enumerate(first.calls.tolist()):
        data, noise = problem.fast(y.reshape(-1, x.shape[-1]), alpha, sigma)
        d = on_data[:, i] * data.view(s.shape) + on_noise[:, i] * noise.view(s.shape)
        history = [d, *history[: K - 1]]
        live = [s, y, *history]
        used = np.abs(W[:, i]).max(0) > 0
        sums = []
        for side in (0, 1):
            terms = [weights[:, i, side, j] * live[j] for j in range(len(live)) if used[side, j]]
            total = terms[0]
            for term in terms[1:]:
                total += term
            sums.append(total)
        s, y = sums
    return y


def sweep(
    course: Course, methods: Sequence[Solver], grid: Grid, nfe: int, problems: Sequence[Problem]
) -> dict[str, list[float]]:
    """problem -> the error of each method on one grid with one budget; nan where it does not fit."""
    found = [fitted(course, method, grid, nfe) for method in methods]
    groups: dict[bytes, list[int]] = {}
    for c, tableau in enumerate(found):
        if tableau is not None:
            groups.setdefault(tableau.calls.tobytes(), []).append(c)
    errors = {problem.name: [math.nan] * len(methods) for problem in problems}
    for problem, group in itertools.product(problems, groups.values()):
        # As many at once as stay in the cache.
        chunk = max(1, int(6e5 / (problem.noise.numel() * (1 if problem.fast.shared else len(problem.full.means)))))
        for members in (group[j : j + chunk] for j in range(0, len(group), chunk)):
            x = run_together([found[c] for c in members], problem, problem.start(course))
            for c, error in zip(members, problem.error(course, x).tolist(), strict=True):
                errors[problem.name][c] = error if math.isfinite(error) else math.inf
    return errors


def cross(
    course: Course,
    methods: Sequence[Solver],
    where: Sequence[Grid],
    budgets: Sequence[int],
    problems: Sequence[Problem],
    note: str = "",
) -> dict[str, np.ndarray]:
    """problem -> (budgets, grids, methods) errors."""
    errors = {p.name: np.full((len(budgets), len(where), len(methods)), np.nan) for p in problems}
    began = time.perf_counter()
    for (b, nfe), (g, grid) in itertools.product(enumerate(budgets), enumerate(where)):
        for name, row in sweep(course, methods, grid, nfe, problems).items():
            errors[name][b, g] = row
        if g == len(where) - 1:
            print(f"{course.name} {note} nfe {nfe}: {time.perf_counter() - began:.0f} s", flush=True)
    return errors


# The study ---------------------------------------------------------------------------------------------------

PARTICLES = 128
SMALL = {"aniso64": 64, "spectrum1024": 32}
"""Targets with fewer particles, as they cost more."""

AUTO: dict[str, tuple[Grid, dict[int, int]]] = {
    "auto": (Angle(3.0, 2.0), {5: 1, 9: 2, 12: 3, 17: 4, 40: 5, 10**9: 6}),
    "auto, wide": (Angle(5.0, 2.0), {6: 1, 12: 2, 17: 3, 25: 4, 10**9: 5}),
    "auto, mild": (Angle(2.0, 1.5), {9: 2, 17: 3, 35: 4, 10**9: 5}),
    "auto, uniform-u": (grids.named("uniform-u"), {9: 2, 17: 3, 35: 4, 10**9: 5}),
}
"""Rules for every path: a grid, and up to so many calls, so many points."""


def auto(nfe: int, points: dict[int, int]) -> Multistep:
    """Adams PEC on the straight velocity, interpolated in theta, with more points for more calls."""
    count = next(count for most, count in points.items() if nfe <= most)
    return Multistep(count, "straight", "theta", count + 1)


Table = dict[str, dict[str, list[float]]]
"""target -> configuration -> an error per budget."""


def add(table: Table, target: str, name: str, errors: Iterable[float]) -> None:
    table.setdefault(target, {})[name] = [float(e) for e in errors]


def named_solvers(course: Course, budgets: Sequence[int], problems: Sequence[Problem]) -> Table:
    """Every named solver on the grids that suit it."""
    where = {
        "ve": ["karras", "uniform-lambda", "uniform-u"],
        "vp": ["uniform-lambda", "trailing", "uniform-u"],
        "flow": ["uniform-t", "shifted(shift=0.7)"],
    }[course.name]
    table: Table = {}
    for grid in where:
        methods = list(map(solvers.named, NAMED))
        errors = cross(course, methods, [grids.named(grid)], budgets, problems, note=f"named, {grid},")
        for target, name in itertools.product(errors, range(len(NAMED))):
            add(table, target, f"{NAMED[name]} @ {grid}", errors[target][:, 0, name])
    return table


def refined() -> list[Multistep]:
    """The neighbourhood of what the family's crossing finds best."""
    near = (("straight", None), ("straight", "theta"), ("trig", None), ("trig", "u"), ("denoised", "theta"))
    found = [Multistep(p, frame, variable, p + 1) for p in range(1, 7) for frame, variable in near]
    found += [Multistep(p, "straight", "theta", p + 2) for p in range(1, 5)]
    found += [Multistep(p, "straight", "theta", p) for p in range(2, 5)]
    return found + [Multistep(p, "straight", v, p + 1) for p in (1, 2, 3) for v in ("lambda", "rho7", "log-u")]


def refined_grids() -> list[Grid]:
    near = [
        "uniform-u", "uniform-theta", "polynomial(power=1.25, variable='u')", "polynomial(power=1.5, variable='u')",
        "shifted(shift=0.7, variable='u')", "shifted(shift=1.4, variable='u')",
        "polynomial(power=1.5, variable='theta')",
    ]  # fmt: skip
    angles = itertools.product((1.0, 1.5, 2.0, 3.0, 5.0), (1.25, 1.5, 2.0))
    return [*map(grids.named, near), *itertools.starmap(Angle, angles)]


def shortlist(course: Course, budgets: Sequence[int], cache: FilePath, keep: int = 5) -> list[tuple[Multistep, Grid]]:
    """The best of the family on the targets for tuning: over all of them, and on each, per budget."""
    problems = [Problem(name, 64, cache) for name in TUNE]
    stages = [
        ("family", family(), our_grids(course), [b for b in budgets if b <= 20]),
        ("refined", refined(), refined_grids(), list(budgets)),
    ]
    chosen: dict[tuple[Multistep, Grid], None] = {}
    for stage, methods, where, wanted in stages:
        for nfe in wanted:
            file = cache / f"{stage}-{course.name}-{nfe}.npz"
            if not file.exists():
                np.savez(file, **cross(course, methods, where, [nfe], problems, note=stage))
            stored = np.load(file)
            errors = np.stack([stored[name][0] for name in TUNE])  # (targets, grids, methods)
            logs = np.log(np.where(np.isfinite(errors), errors, 1e3))
            ranked = [np.argsort(logs.mean(0), axis=None)[:keep]]
            ranked += [np.argsort(row, axis=None)[:1] for row in logs]
            for index in np.concatenate(ranked):
                g, m = np.unravel_index(index, logs.shape[1:])
                chosen[methods[m], where[g]] = None
    return list(chosen)


def best_of_family(course: Course, budgets: Sequence[int], problems: Sequence[Problem], cache: FilePath) -> Table:
    """The shortlist, on every target with every budget."""
    pairs = shortlist(course, budgets, cache)
    for p, grid in itertools.product(range(1, 7), (grid for grid, _ in AUTO.values())):
        if (pair := (Multistep(p, "straight", "theta", p + 1), grid)) not in pairs:
            pairs.append(pair)
    table: Table = {}
    for grid in dict.fromkeys(grid for _, grid in pairs):
        methods = [method for method, at in pairs if at == grid]
        errors = cross(course, methods, [grid], budgets, problems, note=f"shortlist, {grid},")
        for target, m in itertools.product(errors, range(len(methods))):
            add(table, target, f"{short(methods[m])} @ {grid}", errors[target][:, 0, m])
    return table


def short(method: Multistep) -> str:
    variable = f" in {method.variable}" if method.variable else ""
    corrector = f", corrector {method.corrector}" if method.corrector else ""
    return f"{method.points} points, {method.frame}{variable}{corrector}"


def autos(course: Course, budgets: Sequence[int], problems: Sequence[Problem]) -> Table:
    """The rules proposed for `solver="auto"`."""
    table: Table = {}
    for name, (grid, points) in AUTO.items():
        found = [sweep(course, [auto(nfe, points)], grid, nfe, problems) for nfe in budgets]
        for problem in problems:
            add(table, problem.name, name, [row[problem.name][0] for row in found])
    return table


# Tables ------------------------------------------------------------------------------------------------------


def best(table: dict[str, list[float]], b: int) -> tuple[float, str]:
    """(error, name) of the best configuration for budget b."""
    return min(((e[b], name) for name, e in table.items() if math.isfinite(e[b])), default=(math.nan, "none"))


def mean_log(values: Iterable[float]) -> float:
    """The geometric mean."""
    logs = [math.log(v) for v in values if math.isfinite(v) and v > 0]
    return math.exp(sum(logs) / len(logs)) if logs else math.nan


def ratios(study: dict[str, Table], kind: str, name: str, targets: Sequence[str], b: int) -> list[float]:
    """Of one configuration to the best peer, per target."""
    found = []
    for target in targets:
        error = study[kind][target].get(name, [math.nan] * (b + 1))[b]
        found.append((error if math.isfinite(error) else 1e3) / best(study["peers"][target], b)[0])
    return found


def choose(study: dict[str, Table], budgets: Sequence[int]) -> dict[str, object]:
    """Chosen on the tuning targets, reported on the others: per budget, smoothed over budgets, and one for all."""
    tune = [t for t in TUNE if t in study["family"]]
    report = [t for t in REPORT if t in study["family"]] or tune
    names = list(study["family"][tune[0]])
    columns = range(len(budgets))
    score = np.log([[mean_log(ratios(study, "family", name, tune, b)) for b in columns] for name in names])
    smooth = np.array([score[:, max(0, b - 1) : b + 2].mean(1) for b in columns]).T
    one = names[int(score.mean(1).argmin())]
    found: dict[str, object] = {
        "one for all": {
            "name": one,
            "held out": {n: mean_log(ratios(study, "family", one, report, b)) for b, n in enumerate(budgets)},
        }
    }
    for title, table in (("per budget", score), ("smoothed", smooth)):
        found[title] = {}
        for b, nfe in enumerate(budgets):
            name = names[int(table[:, b].argmin())]
            found[title][nfe] = {  # type: ignore[index]
                "name": name,
                "tuned": mean_log(ratios(study, "family", name, tune, b)),
                "held out": mean_log(ratios(study, "family", name, report, b)),
            }
    found["top"] = {
        n: [[names[i], round(math.exp(score[i, b]), 3)] for i in score[:, b].argsort()[:5]]
        for b, n in enumerate(budgets)
    }
    return found


def markdown(course: Course, study: dict[str, Table], budgets: Sequence[int]) -> str:
    """One table per target, then the summary."""
    lines = [f"# {course.name}: {course.path}, {course.start} to {course.end}", ""]
    targets = [t for t in TARGETS if t in study["peers"]]
    for target in targets:
        role = TARGETS[target][1]
        lines += [f"## {target} ({role})", "",
                  "| NFE | best peer | | best named | | best of the family | | auto | auto / peer |",
                  "|--|--|--|--|--|--|--|--|--|"]  # fmt: skip
        for b, nfe in enumerate(budgets):
            cells = [str(nfe)]
            for kind in ("peers", "named", "family"):
                error, name = best(study[kind].get(target, {}), b)
                cells += [f"{error:.2e}", name]
            peer, own = best(study["peers"][target], b)[0], study["auto"][target]["auto"][b]
            cells += [f"{own:.2e}", f"{own / peer:.2f}"]
            lines.append("| " + " | ".join(cells) + " |")
        lines.append("")
    rules = study["auto"][targets[0]]
    heads = [f"{rule}, {role}" for rule in rules for role in ("tune", "report")]
    heads = ["NFE", *heads, "family, report", "named, report"]
    lines += ["## Geometric means of the ratio to the best peer of each cell", ""]
    lines += ["| " + " | ".join(heads) + " |", "|--" * len(heads) + "|"]
    for b, nfe in enumerate(budgets):
        cells = [str(nfe)]
        roles = {role: [t for t in targets if TARGETS[t][1] == role] for role in ("tune", "report")}
        for name in study["auto"][targets[0]]:
            cells += [f"{mean_log(ratios(study, 'auto', name, roles[role], b)):.2f}" for role in roles]
        for kind in ("family", "named"):
            pairs = [(best(study[kind].get(t, {}), b)[0], best(study["peers"][t], b)[0]) for t in roles["report"]]
            cells.append(f"{mean_log(ours / theirs for ours, theirs in pairs):.2f}")
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join([*lines, ""])


def plot(studies: dict[str, dict[str, Table]], budgets: Sequence[int], file: FilePath) -> None:
    """Error against calls: ours, the best peer of each cell, and the popular ones."""
    try:
        import matplotlib
    except ImportError:
        print("no plot: matplotlib is not installed")
        return
    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    shown = [t for t in ("ring", "iso64", "aniso64", "spectrum1024") if all(t in s["peers"] for s in studies.values())]
    popular = {
        "k-diffusion dpmpp_2m karras": "DPM++(2M), Karras", "k-diffusion heun karras": "Heun, Karras",
        "diffusers unipc3 data bh2 lowered karras": "UniPC-3, Karras", "k-diffusion lms4 karras": "LMS-4, Karras",
        "diffusers unipc3 data bh2 lowered shift=1": "UniPC-3",
        "diffusers dpm++2m midpoint lowered shift=1": "DPM++(2M)",
        "diffusers FlowMatchEuler shift=1": "Euler", "torchdiffeq midpoint uniform": "midpoint",
    }  # fmt: skip
    figure, axes = plt.subplots(len(studies), len(shown), figsize=(3.6 * len(shown), 3.1 * len(studies)), squeeze=False)
    for row, (path, study) in zip(axes, studies.items(), strict=True):
        for axis, target in zip(row, shown, strict=True):
            peers = study["peers"][target]
            for name, title in popular.items():
                if name in peers:
                    axis.loglog(budgets, peers[name], "o-", ms=2, lw=0.8, alpha=0.7, label=title)
            envelope = [best(peers, b)[0] for b in range(len(budgets))]
            axis.loglog(budgets, envelope, "k--", lw=1.2, label="best peer of each cell")
            axis.loglog(budgets, study["auto"][target]["auto"], "r.-", lw=1.8, label="diffsolve auto")
            axis.set_title(f"{path}, {target}", fontsize=9)
            axis.set_xticks(budgets, map(str, budgets), fontsize=7)
            axis.minorticks_off()
            axis.set_ylim(top=3)
            axis.grid(alpha=0.3)
        row[0].set_ylabel("relative error")
        row[0].legend(fontsize=6)
    for axis in axes[-1]:
        axis.set_xlabel("network calls")
    figure.tight_layout()
    figure.savefig(file, dpi=110)


# The command -------------------------------------------------------------------------------------------------


def check(cache: FilePath) -> None:
    """That the shortcuts taken here change nothing: against the library's executor and the full dimension."""
    import diffsolve as ds
    from diffsolve.reference import mixture_model

    for course, name in itertools.product(COURSES.values(), ("iso64", "aniso8")):
        problem = Problem(name, 64, cache)
        generator = torch.Generator().manual_seed(7)
        x = torch.randn((64, problem.dim), generator=generator, dtype=torch.float64) * course.path.prior_std()
        model = mixture_model(problem.full, course.path, "velocity" if course.name == "flow" else "noise")
        exact = problem.full.flow(x, course.start, course.end, tol=1e-10)
        for method in (auto(10, {10: 3}), solvers.named("heun"), solvers.named("unipc-3")):
            grid = grids.named("uniform-theta")
            found = ds.sample(model, noise=x, solver=method, nfe=10, grid=grid, stop=course.stop)
            library = float((found - exact).norm(dim=-1).mean() / problem.rms)
            here = sweep(course, [method], grid, 10, [problem])[name][0]
            assert abs(library - here) < 1e-6 * library + 1e-8, (course.name, name, method, library, here)
    print("the shortcuts agree with the library")


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Error against network calls, ours and the peers'.")
    parser.add_argument("--quick", action="store_true", help="auto and the peers: two targets, four budgets")
    parser.add_argument("--check", action="store_true", help="only check the shortcuts taken here against the library")
    parser.add_argument("--paths", nargs="+", choices=list(COURSES), default=list(COURSES))
    parser.add_argument("--targets", nargs="+", choices=list(TARGETS))
    parser.add_argument("--budgets", nargs="+", type=int)
    parser.add_argument("--particles", type=int, default=PARTICLES)
    parser.add_argument("--out", type=FilePath, default=HERE / "results")
    parser.add_argument("--cache", type=FilePath, default=HERE / ".cache")
    parser.add_argument("--join", action="store_true", help="only the tables and the plot, from results in the cache")
    options = parser.parse_args(argv)
    torch.set_num_threads(1)
    if options.check:
        return check(options.cache)
    budgets = options.budgets or ([5, 10, 20, 50] if options.quick else list(BUDGETS))
    targets = options.targets or (["ring", "iso64"] if options.quick else list(TARGETS))
    particles = {t: min(options.particles, SMALL.get(t, options.particles)) for t in targets}
    out = options.out / "quick" if options.quick else options.out
    out.mkdir(parents=True, exist_ok=True)
    options.cache.mkdir(parents=True, exist_ok=True)
    (options.cache / ".gitignore").write_text("*\n")
    studies = {}
    for name in options.paths:
        stored = options.cache / f"study-{name}{'-quick' if options.quick else ''}.json"
        if not options.join:
            study = run_study(
                COURSES[name], budgets, [Problem(t, particles[t], options.cache) for t in targets], options
            )
            stored.write_text(json.dumps(study))
        studies[name] = json.loads(stored.read_text())
        text = markdown(COURSES[name], studies[name], budgets)
        (out / f"{name}.md").write_text(text)
        print(text)
    summary = {
        "budgets": budgets, "particles": particles, "tuned on": TUNE,
        "cells": {name: cells(study, budgets) for name, study in studies.items()},
        "chosen": {name: choose(study, budgets) for name, study in studies.items() if study["family"]},
    }  # fmt: skip
    (out / "accuracy.json").write_text(json.dumps(summary, indent=1) + "\n")
    plot(studies, budgets, out / "accuracy.png")


def run_study(
    course: Course, budgets: Sequence[int], problems: Sequence[Problem], options: argparse.Namespace
) -> dict[str, Table]:
    """kind (auto, named, family, peers) -> table."""
    import peers

    study: dict[str, Table] = {"auto": autos(course, budgets, problems), "named": {}, "family": {}}
    study["peers"] = peers.errors(course, Bundle(problems), budgets)
    if not options.quick:
        study["family"] = best_of_family(course, budgets, problems, options.cache)
        study["named"] = named_solvers(course, budgets, problems)
    return study


def cells(study: dict[str, Table], budgets: Sequence[int]) -> dict[str, dict[int, dict[str, object]]]:
    """target -> budget -> the best of each kind, and the rules for auto."""
    found: dict[str, dict[int, dict[str, object]]] = {}
    for target in study["peers"]:
        found[target] = {}
        for b, nfe in enumerate(budgets):
            row: dict[str, object] = {k: best(study[k].get(target, {}), b)[::-1] for k in ("peers", "named", "family")}
            row.update({name: errors[b] for name, errors in study["auto"][target].items()})
            found[target][nfe] = row
    return found


if __name__ == "__main__":
    main()
