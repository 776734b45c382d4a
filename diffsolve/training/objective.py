r"""The loss of a network, whatever it predicts and on whatever path: one regression.

At :math:`x_t = \alpha x_0 + \sigma \varepsilon` a network that predicts :math:`a x_0 + b \varepsilon` minimises

.. math:: E\, w(t)\, | o(x_t, t) - (a x_0 + b \varepsilon) |^2 / D,

and its best output is the posterior mean of what it predicts. Denoising score matching (Vincent 2011), the noise of
DDPM (2006.11239), v (2202.00512), EDM's raw output (2206.00364) and conditional flow matching (2210.02747) are this
with their own (a, b), law of t and weight w.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from diffsolve.common.checks import required
from diffsolve.common.tensors import column
from diffsolve.grids import Warp
from diffsolve.models import Model
from diffsolve.noise import Stream
from diffsolve.training import couplings, laws, weights
from diffsolve.training.couplings import Coupling
from diffsolve.training.laws import TimeLaw
from diffsolve.training.update import Update, check_drop
from diffsolve.training.weights import Weight

__all__ = ["Parts", "objective"]


class Parts(NamedTuple):
    """What a loss was made of."""

    times: Tensor
    """(B,): on the path's clock, float64."""
    x: Tensor
    """(B, ...): the noised samples."""
    output: Tensor
    """(B, ...): the network's output."""
    target: Tensor
    """(B, ...): what it should have been."""
    weight: Tensor
    """(B,): of the mean squared error of each sample."""


def objective(
    model: Model,
    x0: Tensor,
    *,
    seed: int,
    step: int,
    index: int = 0,
    cond: Mapping[str, Any] | None = None,
    times: str | TimeLaw | Warp = "uniform-t",
    weight: str | Weight = "none",
    noise: Tensor | None = None,
    coupling: str | Coupling = "independent",
    drop: float = 0.0,
    uncond: Mapping[str, Any] | None = None,
) -> tuple[Tensor, Parts]:
    """The loss of each sample of a batch, with a graph back to the network's parameters.

        loss, parts = ds.training.objective(model, x0, cond={"label": label}, seed=0, step=step)
        loss.mean().backward()

    Everything random depends on (seed, step, index + i) alone: the same call gives the same loss again, and a batch
    split over ranks draws what one rank would, with `index` the number of its first sample.

    Args:
        model: of `ds.adapt`; its network is called once, on its own clock and scaling.
        x0: (B, ...), data, floating.
        seed: any integer, of the whole training.
        step: the number of the update, in [0, 2**32).
        index: of the first sample.
        cond: of the network, as in `ds.solve`; tensors whose first axis is B have a row per sample.
        times: the law of t: "uniform-t", "log-normal(mean=-1.2, std=1.2)", "logit-normal", or a grid, as dense as whose
            nodes the times are ("uniform-lambda"). A batch is spread evenly over the law, for less variance.
        weight: "none", "snr", "min-snr(gamma=5)", "edm", "sigmoid(bias=0)": see `diffsolve.training.weights`.
        noise: (B, ...), the other end of each pair, in place of drawn normals: for given pairs, another source
            distribution. Of the size that sigma multiplies.
        coupling: "independent", "ot" or "sinkhorn(reg=0.05)": which noise of this batch goes with which data. Of a
            split batch each part is coupled by itself.
        drop: the share of samples whose conditions are replaced by `uncond`, for guidance.
        uncond: name -> value of the conditions to replace; one for all, or a row per sample.

    Returns:
        (B,), float32 or wider; and the `Parts`.

    Raises:
        ValueError: if an argument is out of range or of another shape, or `drop` is given without `uncond`.
        TypeError: if x0 is not floating, or the model is no Model.
    """
    check_drop(drop, uncond)
    update, law = Update.of(model, x0, cond, seed, step, index, noise), laws.named(times)
    t = law(update.even(Stream.TRAIN_TIME).clamp(1e-9, 1 - 1e-9), model.path)
    p, noise = model.path.at(t.to(x0.device)), update.noise
    coupled = couplings.named(coupling)
    if not isinstance(coupled, couplings.Independent):
        noise = noise[coupled.partners(x0, noise, update.uniform(Stream.TRAIN_COUPLE))]
    a, b = (torch.as_tensor(c, dtype=torch.float64, device=x0.device).expand(len(x0)) for c in model.coefficients(p))
    x = column(p.alpha, x0) * x0 + column(p.sigma, x0) * noise
    target = column(a, x0) * x0 + column(b, x0) * noise
    conditions = update.conditions(drop, uncond)
    output = model(x, t.to(x0.device), **conditions)
    factor = weights.named(weight).of_output(p, a, b)
    required(bool(factor.isfinite().all()), "weight", weight, f"finite at all times of {model.path} that the law draws")
    wide = torch.promote_types(output.dtype, torch.float32)
    error = (output.to(wide) - target.to(wide)).square().flatten(1).mean(1) if x0.dim() > 1 else (output - target) ** 2
    return factor.to(error.dtype) * error, Parts(t, x, output, target, factor)
