r"""Log-probabilities of a stochastic run: what policy-gradient training of a sampler needs.

A row of a tableau that adds noise is a Gaussian transition from all network inputs so far to the next,

    p(y_{i+1} | y_0 .. y_i) = N(mean_i, w_i^2),
    log p = -|y_{i+1} - mean_i|^2 / (2 w_i^2) - n log w_i - (n / 2) log 2 pi,

with w_i the weight of the row's noise in y and n the elements of a sample. A row without noise is a function of what
came before, and counts 0. The sum over rows is the log-density of the path of network inputs, which is
what DDPO (Black et al., 2305.13301, eq. 4) and Flow-GRPO (Liu et al., 2505.05470) differentiate.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from diffsolve.common.checks import required
from diffsolve.common.tensors import normal_log_density
from diffsolve.execute import Network, bind, conversion, derivatives
from diffsolve.models import Model
from diffsolve.models.guidance import Guidance
from diffsolve.tableau import Tableau

__all__ = ["transition_log_prob"]


def transition_log_prob(
    model: Model,
    trajectory: Tensor,
    tableau: Tableau,
    *,
    rows: Sequence[int] | None = None,
    cond: Mapping[str, Any] | None = None,
    guidance: float | Guidance | None = None,
) -> Tensor:
    """log p(y_{i+1} | y_0 .. y_i) of a stored run, recomputed with gradients.

        run = ds.solve(model, shape, solver="ddim(eta=1.0)", steps=10, seed=0, trajectory="calls", log_prob=True)
        now = ds.transition_log_prob(model, run.trajectory, run.tableau)      # == run.log_prob, with gradients
        ratio = (now - run.log_prob).exp()

    The trajectory is data: gradients go to the network's parameters (and to tensors in `cond`), through the
    predictions that a row uses, those of a multistep history included.

    Args:
        trajectory: (N + 1, B, ...), every network input and the result: `Run.trajectory` of `trajectory="calls"`.
        tableau: `Run.tableau`.
        rows: only these rows, in rising order. The network is called for them and for the rows they depend on: none for
            methods of one call and no history, all earlier ones for others.
        cond, guidance: as in `solve`.

    Returns:
        (N, B), or (len(rows), B): 0 in rows without noise.

    Raises:
        ValueError: if the trajectory does not have N + 1 states, a row does not exist, or the tableau does not fit.
    """
    n = tableau.nfe
    whole = isinstance(trajectory, Tensor) and trajectory.dim() > 1 and len(trajectory) == n + 1
    required(whole, "trajectory", trajectory, f"the {n + 1} network inputs that trajectory='calls' keeps")
    wanted = list(range(n)) if rows is None else list(rows)
    rising = all(isinstance(i, int) and 0 <= i < n for i in wanted) and wanted == sorted(set(wanted))
    required(rising, "rows", rows, f"rising integers from 0 to {n - 1}")
    bind(tableau, model)  # its errors
    network = Network.of(model, tableau, Guidance.of(guidance), trajectory)
    p, q = conversion(derivatives(model, tableau), model, model.path.nodes(tableau.calls[:, 0]))

    alone = tableau.history == 1 and bool((tableau.weights[:, 0] == tableau.weights[:, 1]).all())
    s = trajectory[0]
    history: list[Tensor] = []
    log_probs: list[Tensor] = []
    for i in wanted if alone else range(max(wanted, default=-1) + 1):
        y, after = trajectory[i], trajectory[i + 1]
        out = network(i, y, cond or {}).to(y.dtype)
        history = [float(p[i]) * y + float(q[i]) * out, *history[: tableau.history - 1]]
        live = [y if alone else s, y, *history]
        on_s, on_y = tableau.weights[i]
        seen = not on_s[-1] or bool(on_y[-1])
        required(seen, "tableau", tableau.solver, f"one whose noise of call {i} is seen in its next network input")
        mean, std = _combined(on_y, live), float(on_y[-1])
        z = (after - mean) / std if std else torch.zeros_like(after)
        s = _combined(on_s, live) + float(on_s[-1]) * z
        if i in wanted:
            log_probs.append(normal_log_density(z, std) if std else normal_log_density(z, 1.0) * 0)
    return torch.stack(log_probs) if log_probs else trajectory.new_zeros(0, trajectory.shape[1])


def _combined(weights: np.ndarray, live: Sequence[Tensor]) -> Tensor:
    """The row without its noise. Each product is rounded separately, unlike in the executor's fused sums."""
    products = [weight * tensor for weight, tensor in zip(weights[:-1].tolist(), live, strict=False) if weight]
    return sum(products, torch.zeros_like(live[0]))
