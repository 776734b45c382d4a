r"""Times that align with the SDE: the least bound on how far a run's law is from it (Sabour et al., 2404.14507).

A step that holds the denoised estimate of its first call fixed follows another SDE than the path's, and by Girsanov's
theorem the divergence of the two laws is at most (eq. 9; in q = alpha^2 / (2 sigma^2), with rho = sigma / alpha)

.. math:: \sum_i \int_{q_i}^{q_{i+1}} E |D(x_q, q) - D(x_{q_i}, q_i)|^2 dq, \quad
    dq = d\rho / \rho^3 \text{ in size},

x_q and the noisier x_{q_i} of one path of the noising process. The paper lowers it by descent on the times. Here D is
measured once on such paths, at M levels, and the N steps of the least sum are found by dynamic programming, as those of
`diffsolve.tuning.gits` are: the least there is among times at the levels.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from diffsolve.common.tensors import flat
from diffsolve.models import Model
from diffsolve.noise import Key
from diffsolve.tuning.linear import output
from diffsolve.tuning.runs import Noises

__all__ = ["bounds"]


@torch.no_grad()
def bounds(model: Model, noises: Noises, ends: Tensor, times: np.ndarray, key: Key) -> np.ndarray:
    """c (M + 1, M + 1): the share of the bound of a step from the i-th of M times to the j-th; M is the end of the run.

    Args:
        ends: (n, ...), samples of the data, with the conditions and guidance of `noises`.
        times: (M,), from the noise to the data, at which the network may be called. What is below the last counts for
            nothing.
    """
    at = model.path.nodes(times)
    with np.errstate(divide="ignore"):
        q = (at.alpha / at.sigma) ** 2 / 2
    denoised = _denoised(model, noises, ends, times, key)
    count = len(times)
    found = np.full((count + 1, count + 1), np.inf)
    for i in range(count):
        off = ((denoised[i:] - denoised[i]).square().sum(-1).mean(-1)).numpy()  # E |D_k - D_i|^2, k = i, ..
        gathered = np.append(0.0, np.cumsum((off[:-1] + off[1:]) / 2 * np.diff(q[i:])))
        found[i, i + 1 : count] = gathered[1:]
        found[i, count] = gathered[-1]
    return found


def _denoised(model: Model, noises: Noises, ends: Tensor, times: np.ndarray, key: Key) -> Tensor:
    """(M, n, D): the estimates along paths of the noising process, from the data on, float64."""
    at = model.path.nodes(times)
    found, x, before = [], ends, (1.0, 0.0)
    for k in reversed(range(len(times))):
        alpha, sigma = float(at.alpha[k]), float(at.sigma[k])
        ratio = alpha / before[0]
        fresh = math.sqrt(max(0.0, sigma**2 - (ratio * before[1]) ** 2))
        z = key.normal(ends.shape, row=2 + k, dtype=ends.dtype, device=ends.device)
        x, before = ratio * x + fresh * z, (alpha, sigma)
        t = torch.full((len(x),), float(times[k]), dtype=torch.float64)
        found.append(flat(output(model, noises, x, t, "denoised")).cpu().double())
    return torch.stack(found[::-1])
