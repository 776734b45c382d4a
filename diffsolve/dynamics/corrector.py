"""Langevin steps at the grid nodes of a run: predictor-corrector sampling."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from diffsolve.common.checks import instance
from diffsolve.dynamics.chains import Langevin
from diffsolve.execute import Executor, conversion
from diffsolve.models import Guidance, Model
from diffsolve.noise import Stream
from diffsolve.tableau import Tableau
from diffsolve.tableau.frames import PREDICTIONS

__all__ = ["Correction"]


class Correction:
    """Langevin steps at the grid nodes of a run, for `ds.solve`: before the network call at every node but the first.

    The corrected state must be all that the next step starts from, up to kept predictions: one-step methods and
    multistep methods without a corrector of their own. Others, whose state at a node is two tensors, are refused.

    Raises:
        ValueError: if the tableau is such a one, or the network does not determine the score at a node.
        TypeError: if `how` is not a `ds.Langevin`.
    """

    def __init__(self, how: Langevin, model: Model, tableau: Tableau, guidance: Guidance) -> None:
        instance("corrector", how, Langevin, "a ds.Langevin")
        self.how, self.calls, self.network = how, 0, guidance.around(model, tableau)
        nodes = [i for i in range(tableau.nfe - 1) if tableau.node[i] >= 0]
        split = [i for i in nodes if (tableau.weights[i, 0] != tableau.weights[i, 1]).any()]
        if split:
            raise ValueError(
                "solver must be a one-step method, or a multistep method without a corrector of its own, with "
                f"corrector={how}, got {tableau.solver}: it carries two states past node {tableau.node[split[0]]}, "
                "which would not be corrected together"
            )
        at = model.path.nodes(tableau.calls[:, 0])
        with np.errstate(divide="ignore"):
            score = PREDICTIONS["score"](at, model.sigma_data)
        p, q = conversion(score, model, at)
        # Keyed by the call before the node; the score is that of the call at the node.
        self.weights = {i: (float(p[i + 1]), float(q[i + 1]), float(at.sigma[i + 1])) for i in nodes}
        for i, weights in self.weights.items():
            if not all(map(math.isfinite, weights)):
                raise ValueError(
                    f"grid must have no node where the network does not determine the score with corrector={how}, got "
                    f"t={at.t[i + 1]:.6g}"
                )

    def __call__(self, ex: Executor, cond: Mapping[str, Any]) -> None:
        """Correct the executor's state in place if it has just reached a node."""
        row = ex.call - 1
        if row not in self.weights:
            return
        p, q, sigma = self.weights[row]
        for j in range(self.how.steps):
            y = ex.y
            out = self.network(ex.call, *ex.inputs(), cond)
            score = torch.add(y * p, out.to(y.dtype), alpha=q)
            z = ex.key.normal(
                y.shape, row=row * self.how.steps + j, stream=Stream.LANGEVIN, dtype=y.dtype, device=y.device
            )
            ex.correct(self.how.move(y, score, z, sigma))
            self.calls += 1
