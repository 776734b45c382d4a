r"""CFG++ for every solver: the data of a call are guided, its noise is that of the unconditional output.

With D and eps as the guided and the unconditional output g and u tell them, :math:`x = \alpha D_u + \sigma
\varepsilon_u`. Two changes make a solver's step one of CFG++:

- its d is :math:`a D_g + b \varepsilon_u = d_u + a (D_g - D_u)`, which is d at the output :math:`u + r (g - u)`;
- where a step begins, the state becomes :math:`\alpha D_g + \sigma \varepsilon_u = x + \alpha (D_g - D_u)`, which
  is consistent with that d. What a change of x there makes of the states after the call is in the tableau.

Of DDIM that is :math:`x_t = \alpha_t D_g + \sigma_t \varepsilon_u`, the method of the paper; r is 1 for a solver that
extrapolates the denoised, 0 for one that extrapolates the noise.

References:
    | CFG++: Manifold-constrained Classifier Free Guidance for Diffusion Models (Chung et al., 2024),
      https://arxiv.org/abs/2406.08070
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from torch import Tensor

from diffsolve.execute.network import conversion, derivatives
from diffsolve.kernels import Guided
from diffsolve.models import Model
from diffsolve.tableau import Tableau

__all__ = ["Apart"]


@dataclass(frozen=True)
class Apart:
    """What CFG++ does with the pair of outputs of each call of a run."""

    share: np.ndarray
    """(N,): r, how much of g - u reaches d."""
    shifts: np.ndarray
    """(N, 2): what the states s and y after each call get of g - u."""

    @classmethod
    def of(cls, tableau: Tableau, model: Model) -> Apart:
        """For a tableau run with the outputs of a model."""
        at = model.path.nodes(tableau.calls[:, 0])
        target = derivatives(model, tableau)
        _, on_d = conversion(target, model, at)
        _, on_data = conversion((at.alpha, np.zeros_like(at.alpha)), model, at)  # alpha D
        on_data = np.where(np.isfinite(on_data), on_data, 0.0)  # at alpha = 0 there is none
        with np.errstate(all="ignore"):
            share = np.where(target[0] == 0, 0.0, target[0] / at.alpha * on_data / on_d)
        share = np.where(np.isfinite(share), share, 1.0)
        return cls(share, _responses(tableau) * on_data[:, None])

    def __call__(self, i: int, out: Guided) -> tuple[Guided, Tensor | None]:
        """The output that the row of call i takes, and g - u if a step begins there."""
        shifted = bool(self.shifts[i].any())
        share = float(self.share[i])
        if out.rescale:
            out = Guided(out.tensor(), out.uncond, 1.0)
        difference = (out.cond - out.uncond).mul_(out.scale) if shifted else None
        return replace(out, scale=out.scale * share), difference

    def shift(self, i: int) -> tuple[float, float]:
        """What s and y get of the difference after call i."""
        on_s, on_y = self.shifts[i].tolist()
        return on_s, on_y


def _responses(tableau: Tableau) -> np.ndarray:
    """(N, 2): what the states s and y after each call change by, for a change of 1 of the state where a step begins; 0
    at other calls.

    A step begins at a call where the two states are one, or at a node. There the state may be a corrected one, which no
    row names: it is followed as that of a run without derivatives and noise, which is a multiple of it.
    """
    W, n = tableau.weights, tableau.nfe
    followed = np.empty((n + 1, 2))
    followed[0] = tableau.entry[:, 0]
    for i in range(n):
        followed[i + 1] = W[i, :, :2] @ followed[i]
    single = [bool((side[0] == side[1]).all()) for side in (tableau.entry, *W[:-1])]
    made = np.zeros((n, 2))
    for i in range(n):
        time = tableau.calls[i, 0]
        last = time == tableau.times[-1] or (i + 1 < n and tableau.calls[i + 1, 0] == time)  # corrected once more
        if single[i]:
            made[i] = 0.0 if last else W[i, :, :2].sum(1)
        elif i and tableau.node[i - 1] >= 0 and not last and followed[i, 1]:
            made[i] = followed[i + 1] / followed[i, 1]
    return made
