"""The times of a learned run's calls, as parameters."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from diffsolve.models import Model
from diffsolve.tableau import Tableau

__all__ = ["LEAST", "Nodes", "angles"]

LEAST = 1e-4
"""The shortest step, as a fraction of an even one, which keeps nodes apart and before the last possible call."""


class Nodes:
    """N calls between the times of a tableau, from its own times on.

    The steps in the angle theta = atan(sigma / alpha), from the start to the last time at which the network may be
    called, are a softmax of `logits`, so that the times stay ordered.

    Args:
        start: whose times they begin with.
        times: whether they are learned, or stay.
    """

    def __init__(self, model: Model, start: Tableau, times: bool) -> None:
        self.model, self.calls = model, start.nfe
        self._ends = float(start.times[0]), float(start.times[-1])
        n, path = self.calls, self.model.path
        self.fixed = None if times else torch.tensor([*start.calls[:, 0], self._ends[1]], dtype=torch.float64)
        ends_on_data = self._ends[1] == path.t_data
        last = path.nodes([path.t_last if ends_on_data else self._ends[1]])[0]
        self.first, self.last = float(angles(start.calls[0])), float(np.arctan2(last.sigma, last.alpha))
        self._still = torch.tensor([*angles(start.calls), self.last], dtype=torch.float64)
        shares = -np.diff(self._still.numpy()) / (self.first - self.last)
        # A last call at the last possible time (on paths that stop before the data) must be free to move too.
        shares = np.maximum(shares, 100 * LEAST / n)
        shares = (shares / shares.sum() - LEAST / n) / (1 - LEAST)
        self.logits = torch.from_numpy(np.log(shares)).requires_grad_(times)

    def theta(self) -> Tensor:
        """(N + 1,): the angles of the calls, and the last one that may be called at."""
        if self.fixed is not None:
            return self._still
        shares = LEAST / self.calls + (1 - LEAST) * self.logits.softmax(0)
        left = shares.flip(0).cumsum(0).flip(0)[1:]
        first, last = (torch.tensor([end], dtype=torch.float64) for end in (self.first, self.last))
        return torch.cat([first, self.last + (self.first - self.last) * left, last])

    def times_at(self, theta: Tensor) -> Tensor:
        """The path's times at angles, differentiable in them."""
        t = self.model.path.time(-theta.detach().tan().log())
        p = self.model.path.at(t)
        slope = (p.alpha * p.dsigma - p.sigma * p.dalpha) / (p.alpha**2 + p.sigma**2)  # dtheta/dt: `time` has none
        return t + (theta - theta.detach()) / slope

    def times(self) -> Tensor:
        """(N + 1,): the nodes on the path's clock, float64, differentiable in the logits."""
        if self.fixed is not None:
            return self.fixed
        first, last = (torch.tensor([end], dtype=torch.float64) for end in self._ends)
        return torch.cat([first, self.times_at(self.theta()[1:-1]), last])


def angles(calls: np.ndarray) -> np.ndarray:
    angles: np.ndarray = np.arctan2(calls[..., 2], calls[..., 1])
    return angles
