r"""A learned stochastic run: how much noise each step renews, with the deterministic part that follows from it.

For every tau(lambda) >= 0 the SDE of `diffsolve.solvers.sde` has the marginals of the path, so its size is free to be
learned: a tau for each step, piecewise constant in lambda (`Pieces`), from which the solver writes its weights. What
comes out keeps the marginals whatever was learned, as far as a solver of its order does.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from diffsolve.common.checks import required
from diffsolve.models import Model
from diffsolve.solvers import Pieces, Solver
from diffsolve.solvers.sde import tau_named
from diffsolve.tableau import Tableau
from diffsolve.tuning.nodes import Nodes

__all__ = ["SAMPLERS", "NoisyStudent"]

SAMPLERS = ("ab-1(frame='denoised', tau=1.0)", "dpmpp-2m-sde", "sa-2", "sa-3")
"""Where learning begins if no solver is named: of different orders, with and without a corrector."""
MOST = 5.0
"""tau beyond which a step keeps nothing of its noise anyway."""


class NoisyStudent(Nodes):
    """A stochastic run whose times and taus are parameters: `logits` and `log_tau` (N,), one for each step.

    Args:
        method: the solver, with a field `tau` and a call for each step; its tau is where learning begins.
        name: of the learned tableau.

    Raises:
        ValueError: if the solver is another.
    """

    def __init__(self, model: Model, start: Tableau, method: Solver, times: bool, name: str) -> None:
        self.method: Any = method
        fits = "tau" in vars(method) and start.stochastic and start.nfe == start.steps
        wanted = "a stochastic one with tau and one call a step, as 'sa-2', with method='differences'"
        required(fits, "solver", start.solver, wanted)
        super().__init__(model, start, times)
        self.name = name
        at = model.path.nodes(start.calls[:, 0])
        tau = np.sqrt(tau_named(vars(method)["tau"]).square(model.path, at))
        self.log_tau = torch.from_numpy(np.log(np.clip(tau, 0.05, MOST))).requires_grad_(True)

    @property
    def parameters(self) -> dict[str, Tensor]:
        """What is learned, by name."""
        named = {"logits": self.logits, "log_tau": self.log_tau}
        return {name: p for name, p in named.items() if p.requires_grad}

    def tableau(self) -> Tableau:
        """The present run as a tableau."""
        with torch.no_grad():
            times = self.times().numpy()
            taus = self.log_tau.exp().clamp(max=MOST).tolist()
        levels = self.model.path.nodes(times[1:-1]).lam
        method = replace(self.method, tau=Pieces(tuple(taus), tuple(np.asarray(levels).tolist())))
        table: Tableau = method(self.model.path, times, call_last=self.model.determined(float(times[-1])))
        return replace(table, solver=self.name)
