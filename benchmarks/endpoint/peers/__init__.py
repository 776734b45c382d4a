"""Other libraries' samplers on our problems: each at the calls it makes, from the same noise, in float64.

Most of them step in rho = sigma / alpha with x / alpha, where VE, VP and EDM are one problem. So each method gets
each of its library's grids, as float64 levels in the place of its float32 ones: what is measured is the method.
Where a scheduler cannot start at the noise end or stop at the end, it gets the exact state at its own start and
is compared with the exact state at its own stop.

EDMEuler, EulerDiscrete, DDIM, HeunDiscrete, LMSDiscrete, KDPM2 and EDMDPMSolverMultistep of diffusers are left out:
they are the methods of k-diffusion's euler, heun, lms, dpm_2 and of DPMSolverMultistep.
"""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Sequence

from endpoint.peers.azula import azula
from endpoint.peers.base import Peer, run
from endpoint.peers.diffusers import diffusers
from endpoint.peers.k_diffusion import k_diffusion
from endpoint.peers.torchdiffeq import torchdiffeq
from endpoint.problems import Bundle, Course
from endpoint.runner import Table


def all_peers(course: Course) -> list[Peer]:
    """Every peer that is installed."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return [p for group in (k_diffusion, diffusers, azula, torchdiffeq) for p in group(course)]


def errors(course: Course, problem: Bundle, budgets: Sequence[int]) -> Table:
    """The error of each peer; nan where it has no run. An adaptive one counts where it fits."""
    found: Table = {p.name: {} for p in problem.problems}
    began = time.perf_counter()
    peers = all_peers(course)
    for peer in peers:
        if peer.adaptive:  # each problem chooses its own steps
            for part in problem.parts():
                result = run(peer, course, part, max(budgets))
                made = [result is not None and result[1] <= nfe for nfe in budgets]
                found[part.problems[0].name][peer.name] = [result[0][0] if ok and result else math.nan for ok in made]
            continue
        results = [run(peer, course, problem, nfe) for nfe in budgets]
        for j, part in enumerate(problem.problems):
            found[part.name][peer.name] = [math.nan if result is None else result[0][j] for result in results]
    print(f"{course.name}: peers, {len(peers)} configurations, {time.perf_counter() - began:.0f} s", flush=True)
    return found
