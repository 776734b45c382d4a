"""Noise whose variance the network has learned, element by element, in the rows of `ds.solvers.DDPM`."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from diffsolve.common.checks import required
from diffsolve.models import Model
from diffsolve.models.outputs import LearnedVariance, Picked
from diffsolve.tableau import Tableau

__all__ = ["Learned"]


class Learned:
    """A network's learned variances in one run; it keeps those of the last call.

    With q^2 = sigma_s^2 - a^2 sigma_t^2 the variance that the path adds from t to s, a step of DDPM has the variance
    q^2 (large) or q^2 sigma_t^2 / sigma_s^2 (small), and a learned one between the two.

    Raises:
        ValueError: if the network has learned none, or a row is no step of DDPM.
    """

    def __init__(self, model: Model, tableau: Tableau) -> None:
        net = model.net.net if isinstance(model.net, Picked) else None
        output = model.net.output if isinstance(model.net, Picked) else None
        accepted = "left out for a network without output=ds.models.LearnedVariance() in ds.adapt"
        required(isinstance(output, LearnedVariance), "variance", "learned", accepted)
        assert net is not None
        assert isinstance(output, LearnedVariance)
        self._net, self._output, self._v = net, output, list[Tensor]()
        self.model = replace(model, net=self)
        """The model to call in this run."""
        at = np.concatenate([tableau.calls[:, 1:], tableau.grid[-1:, 1:]])
        alpha, sigma = at.T
        added = sigma[:-1] ** 2 - (alpha[:-1] / alpha[1:] * sigma[1:]) ** 2
        large = np.sqrt(added.clip(0))
        small = large * sigma[1:] / sigma[:-1]
        self._std = tableau.weights[:, 1, -1]
        either = np.isclose(self._std, small, rtol=1e-9) | np.isclose(self._std, large, rtol=1e-9) | (self._std == 0)
        plain = tableau.history == 1 and bool((tableau.weights[:, 0] == tableau.weights[:, 1]).all())
        required(
            plain and bool(either.all()) and not tableau.entry[0, 1],
            "solver",
            tableau.solver,
            "'ddpm' with variance='learned'",
        )
        with np.errstate(divide="ignore"):
            self._log = np.log(small), np.log(large)

    def __call__(self, x: Tensor, *times: Tensor, **cond: Any) -> Tensor:
        """The network's prediction; of the calls of one step the first, with the condition, tells the variance."""
        prediction, v = self._output.halves(self._net(x, *times, **cond))
        self._v.append(v)
        return prediction

    def spread(self, i: int, y: Tensor) -> Tensor | None:
        """What the noise of the row after call i is multiplied by, of the shape of y; None if it has none."""
        v = self._v[0][: len(y)].to(y.dtype)  # batched guidance has two to a sample
        self._v.clear()
        if not self._std[i]:
            return None
        if self._output.kind == "log":
            return torch.exp(v / 2) / float(self._std[i])
        small, large = (float(log[i]) for log in self._log)
        return torch.exp((v + 1) / 2 * large + (1 - v) / 2 * small) / float(self._std[i])
