r"""Times without a gradient: the cheapest way through a measured cost matrix (GITS, Chen et al., 2405.11326, sec. 4).

Along accurate runs the network's output is known at M times. What a first-order step from the i-th of them to the j-th
would be off by is then known without a further call: in the straight frame

    c_ij = mean |x_j - c_j (z_i + (u_j - u_i) v_i)|.

The N steps of the least sum are found by dynamic programming, and a solver of higher order uses their times. What
becomes of an error on the way is left out: on separated modes, where early errors grow, that is worth little.
"""

from __future__ import annotations

import numpy as np
import torch

from diffsolve.common.tensors import flat
from diffsolve.execute.plan import plan
from diffsolve.models import Model
from diffsolve.tableau import Tableau
from diffsolve.tableau.frames import FRAMES
from diffsolve.tuning.pilot import Start
from diffsolve.tuning.runs import Noises
from diffsolve.tuning.tracks import tracked

__all__ = ["SOLVERS", "cheapest", "costs", "starts"]

SOLVERS = ("ddim", "dpmpp-2m", "unipc-3", "ab-1(frame='straight', corrector=2)", "ab-2(frame='straight')")
"""What the times are tried with, where no solver is named."""


@torch.no_grad()
def costs(model: Model, noises: Noises, teacher: Tableau) -> np.ndarray:
    """c (M + 1, M + 1) between the M calls of a teacher's runs and their end; infinite where j <= i."""
    tracks, M = tracked(model, noises, teacher), teacher.nfe
    at = model.path.nodes(np.append(teacher.calls[:, 0], teacher.times[-1]))
    c, u = np.broadcast_to(FRAMES["straight"].c(at), at.t.shape), tracks.u
    z, v = (torch.stack([flat(part).double() for part in parts]) for parts in (tracks.z, tracks.v))
    found = np.full((M + 1, M + 1), np.inf)
    for i in range(M):
        for j in range(i + 1, M + 1):
            off = z[j] - z[i] - v[i] * float(u[j] - u[i])
            found[i, j] = float(c[j] * off.norm(dim=1).mean())
    return found


def cheapest(cost: np.ndarray, steps: int) -> list[int]:
    """The N + 1 places, from the first to the last, with the least sum of c."""
    least, after = cost[:, -1].copy(), []
    for _ in range(steps - 1):
        through = cost + least
        after.append(through.argmin(1))
        least = through.min(1)
    places = [0]
    for step in reversed(after):
        places.append(int(step[places[-1]]))
    return [*places, len(cost) - 1]


def starts(
    model: Model, cost: np.ndarray, teacher: Tableau, nfe: int, solvers: tuple[str, ...], name: str
) -> list[Start]:
    """Runs of `nfe` calls at the times of a teacher that are the cheapest, by each of the solvers."""
    times = np.append(teacher.calls[:, 0], teacher.times[-1])[cheapest(cost, nfe)]
    return [Start(plan(model, solver, grid=times), f"{name}, {solver}") for solver in solvers]
