r"""Does guidance ask for another order? Error against network calls of guided runs, for the rule behind `auto`.

A mixture whose modes belong to three or four classes, and particles that each want one of them:
D = D_u + w (D_c - D_u), with both networks exact; w = 1 is the class alone. The exact end of each guided flow is
solved for to 1e-10. The error is the mean of |x - x*| over the root mean square of x*, which strong guidance
carries beyond the data.

    python benchmarks/guidance.py               # writes results/guidance.md
    python benchmarks/guidance.py --digits      # results/guidance_digits.md: the digits network instead
"""

from __future__ import annotations

import argparse
import functools
import math
from collections.abc import Iterable, Sequence
from pathlib import Path as FilePath

import torch
from endpoint.ours import POINTS, Pair
from endpoint.problems import COURSES, Course, FastMixture, Problem
from endpoint.runner import measure
from endpoint.tables import mean_log
from record import Recorder
from torch import Tensor
from torchdiffeq import odeint

import diffsolve as ds
from diffsolve.reference.mixture import GaussianMixture

BUDGETS = (5, 8, 10, 15, 20, 30, 50)
STUDIES = {
    "chosen on": (("ring", "iso16", "aniso8"), (1.0, 2.0, 4.0, 7.5)),
    "held out": (("plane", "iso64", "aniso16"), (1.5, 3.0, 5.0, 10.0)),
}
"""Targets and scales that the rule was chosen on, and others."""

OTHERS: list[Pair] = [
    *((f"ab-{p}(frame='denoised', variable='theta', corrector={p + 1})", "angle") for p in (2, 3)),
    *((f"ab-{p}(variable='theta')", "angle") for p in (1, 2)),
    *((name, "angle") for name in ("dpmpp-2m", "unipc-2", "unipc-3")),
    *((name, "exponential") for name in ("dpmpp-2m", "unipc-2")),
]
"""Another frame, no corrector, and what others use, to compare."""


class Guided:
    """Both posterior means under guidance; row i wants class i mod their number."""

    shared = False

    def __init__(self, mixture: GaussianMixture, scale: float) -> None:
        self.scale, self.all = scale, FastMixture(mixture)
        members = torch.arange(len(mixture.means)).chunk(4)
        self.each = [FastMixture(part(mixture, chosen)) for chosen in members]

    def __call__(self, x: Tensor, alpha: float, sigma: float) -> tuple[Tensor, Tensor]:
        free = self.all(x, alpha, sigma)
        wanted = [torch.empty_like(x), torch.empty_like(x)]
        count = len(self.each)
        for c, mixture in enumerate(self.each):
            for all_rows, found in zip(wanted, mixture(x[c::count], alpha, sigma), strict=True):
                all_rows[c::count] = found
        data, noise = (torch.lerp(u, w, self.scale) for u, w in zip(free, wanted, strict=True))
        return data, noise


def part(mixture: GaussianMixture, chosen: Tensor) -> GaussianMixture:
    """The modes of one class."""
    basis = None if mixture.basis is None else mixture.basis[chosen]
    return GaussianMixture(mixture.weights[chosen], mixture.means[chosen], mixture.std[chosen], basis)


class GuidedProblem(Problem):
    """A target under guidance; of 60 particles, a multiple of the classes."""

    def __init__(self, name: str, scale: float, tol: float = 1e-10) -> None:
        super().__init__(name, 60, FilePath())
        self.target, self.name, self.tol = name, f"{name}, w={scale:g}", tol
        self.fast = Guided(self.mixture, scale)

    @functools.cache  # noqa: B019
    def exact(self, course: Course, to: tuple[float, float] | None = None) -> Tensor:
        """The guided flow from the start of the course to its end, in the angle, where both ends are regular."""
        (alpha, sigma), (alpha_t, sigma_t) = course.start, course.end
        begin, end = math.atan2(sigma, alpha), math.atan2(sigma_t, alpha_t)

        def slope(u: Tensor, z: Tensor) -> Tensor:
            theta = begin + float(u) * (end - begin)
            data, noise = self.fast(z, math.cos(theta), math.sin(theta))
            return (end - begin) * (math.cos(theta) * noise - math.sin(theta) * data)

        u = torch.tensor([0.0, 1.0], dtype=torch.float64)
        options = {"norm": lambda e: e.abs().max(), "step_t": u[1:], "first_step": 0.01}
        z = self.start(course) / math.hypot(alpha, sigma)
        x: Tensor = odeint(slope, z, u, rtol=self.tol, atol=self.tol, method="dopri8", options=options)[-1]
        return x * math.hypot(alpha_t, sigma_t)

    def error(self, course: Course, x: Tensor) -> Tensor:
        exact = self.exact(course)
        return (x - exact).norm(dim=-1).mean(-1) / exact.norm(dim=-1).square().mean().sqrt()


def moved(problems: Iterable[GuidedProblem]) -> float:
    """The most that an exact end moves if it is solved to 1e-12 instead, in units of the error."""
    pairs = [(p, GuidedProblem(p.target, p.fast.scale, 1e-12)) for p in problems]
    return max(float(p.error(course, finer.exact(course))) for p, finer in pairs for course in COURSES.values())


def study(recorder: Recorder, title: str, targets: Sequence[str], scale: float) -> str:
    """One scale: a row for each configuration."""
    problems = [GuidedProblem(target, scale) for target in targets]
    pairs = [("auto", "angle"), (f"auto(guidance={scale:g})", "angle"), *POINTS, *OTHERS]
    found = [measure(course, pairs, BUDGETS, problems, "").values() for course in COURSES.values()]
    tables = [table for tables in found for table in tables]
    names = [f"{solver} @ {grid}" for solver, grid in pairs]
    table = recorder.table(title, ["configuration"], {str(nfe): ".1e" for nfe in BUDGETS})
    for name in names:
        table.add([f"`{name}`"], [mean_log(t[name][b] for t in tables) for b in range(len(BUDGETS))], live=False)
    return "\n".join([*table.markdown(), "", f"Exact to {moved(problems):.0e}.\n"])


DIGITS = ("auto", "auto(guidance=1)", "dpmpp-2m", "unipc-3")


def digits(recorder: Recorder) -> str:
    """The digits network, four images of each class, against a run of 400 steps; each solver on its own grid."""
    model = ds.load("digits")
    x = torch.randn((40, 1, 8, 8), generator=torch.Generator().manual_seed(0))
    cond = {"label": torch.arange(40) % 10}
    table, halved = recorder.table("digits", ["w", "solver"], {str(nfe): ".1e" for nfe in BUDGETS}), 0.0
    for scale in (1.0, 2.0, 4.0, 7.5):
        run = functools.partial(ds.sample, model, noise=x, cond=cond, guidance=scale)
        exact, half = (run(solver="ab-3(variable='theta', corrector=4)", grid="angle", steps=n) for n in (400, 200))

        def error(found: Tensor, exact: Tensor = exact) -> float:
            return float((found - exact).flatten(1).norm(dim=1).mean() / exact.flatten(1).norm(dim=1).mean())

        halved = max(halved, error(half))
        for solver in DIGITS:
            table.add([scale, f"`{solver}`"], [error(run(solver=solver, nfe=nfe)) for nfe in BUDGETS], live=False)
    halves = f"Half of its steps move the run measured against by at most {halved:.0e}."
    return "\n".join([*table.markdown(), "", halves, ""])


def main() -> None:
    torch.set_num_threads(1)
    parser = argparse.ArgumentParser(description="Error of guided runs against network calls.")
    parser.add_argument("--digits", action="store_true", help="the digits network")
    results = FilePath(__file__).parent / "results"
    if parser.parse_args().digits:
        text = f"# Guidance on the digits network\n\n{digits.__doc__}\n\n{digits(Recorder('guidance_digits'))}"
        (results / "guidance_digits.md").write_text(text)
        return
    text = ["# Guidance: error against network calls", "", *(__doc__ or "").splitlines()[2:]]
    recorder = Recorder("guidance")
    for role, (targets, scales) in STUDIES.items():
        for scale in scales:
            title = f"w = {scale:g}, {role}: geometric means over {', '.join(targets)} and all paths"
            text += [f"\n## {title}\n", study(recorder, title, targets, scale)]
    (results / "guidance.md").write_text("\n".join(text))


if __name__ == "__main__":
    main()
