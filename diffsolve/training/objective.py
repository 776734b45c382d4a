r"""The loss of a network, whatever it predicts and on whatever path: one regression.

At :math:`x_t = \alpha x_0 + \sigma \varepsilon` a network that predicts :math:`a x_0 + b \varepsilon` minimises

.. math:: E\, w(t)\, | o(x_t, t) - (a x_0 + b \varepsilon) |^2 / D,

and its best output is the posterior mean of what it predicts. Denoising score matching (Vincent 2011), the noise of
DDPM (2006.11239), v (2202.00512), EDM's raw output (2206.00364) and conditional flow matching (2210.02747) are this
with their own (a, b), law of t and weight w.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from diffsolve.common.checks import integer, mapping, number, required
from diffsolve.grids import Warp
from diffsolve.models import Model
from diffsolve.noise import Key, Stream
from diffsolve.training import couplings, laws, weights
from diffsolve.training.couplings import Coupling
from diffsolve.training.laws import TimeLaw
from diffsolve.training.weights import Weight

__all__ = ["Parts", "objective"]

GOLDEN = (math.sqrt(5) - 1) / 2
"""Multiples of it are the most even sequence in (0, 1) that grows by one: as times of a batch of any size."""


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
    _check(model, x0, noise, drop, uncond)
    key, step = Key.of(integer("seed", seed), index), integer("step", step, 0, 2**32 - 1)
    B, law = len(x0), laws.named(times)
    start = float(_uniform(Key.of(seed), 1, step, Stream.TRAIN_TIME))
    u = (start + GOLDEN * torch.arange(index, index + B, dtype=torch.float64)) % 1
    t = law(u.clamp(1e-9, 1 - 1e-9), model.path)
    p = model.path.at(t.to(x0.device))
    if noise is None:
        noise = key.normal(x0.shape, row=step, stream=Stream.TRAIN_NOISE, dtype=x0.dtype, device=x0.device)
    partners = couplings.named(coupling).partners
    noise = noise[partners(x0, noise, _uniform(key, B, step, Stream.TRAIN_COUPLE))]
    a, b = (torch.as_tensor(c, dtype=torch.float64, device=x0.device).expand(B) for c in model.coefficients(p))
    x = _weights(p.alpha, x0) * x0 + _weights(p.sigma, x0) * noise
    target = _weights(a, x0) * x0 + _weights(b, x0) * noise
    conditions = dict(mapping("cond", cond))
    if drop:
        dropped = _uniform(key, B, step, Stream.TRAIN_DROP) < drop
        conditions = {name: _replaced(conditions, name, uncond, dropped, x0) for name in conditions}
    output = model(x, t.to(x0.device), **conditions)
    factor = weights.named(weight).of_output(p, a, b)
    required(bool(factor.isfinite().all()), "weight", weight, f"finite at all times of {model.path} that the law draws")
    wide = torch.promote_types(output.dtype, torch.float32)
    error = (output.to(wide) - target.to(wide)).square().flatten(1).mean(1) if x0.dim() > 1 else (output - target) ** 2
    return factor.to(error.dtype) * error, Parts(t, x, output, target, factor)


def _check(model: Model, x0: Tensor, noise: Tensor | None, drop: float, uncond: Mapping[str, Any] | None) -> None:
    required(isinstance(model, Model), "model", model, "a Model, of ds.adapt(net, path, predicts)", TypeError)
    floating = isinstance(x0, Tensor) and x0.is_floating_point()
    required(floating, "x0", x0, "a floating tensor", TypeError)
    required(x0.dim() > 0 and len(x0) > 0, "x0", x0, "of shape (B, ...) with at least one sample")
    if noise is not None:
        fits = isinstance(noise, Tensor) and noise.shape == x0.shape
        required(fits, "noise", noise, f"a tensor of the shape of x0, {tuple(x0.shape)}")
    number("drop", drop, low=0, high=1)
    required(not drop or bool(uncond), "uncond", uncond, f"given with drop={drop}, what takes a condition's place")


def _uniform(key: Key, count: int, step: int, stream: Stream) -> Tensor:
    """(count,) uniform draws, float64."""
    uniform: Tensor = torch.special.ndtr(key.normal((count,), row=step, stream=stream, dtype=torch.float64))
    return uniform


def _replaced(cond: Mapping[str, Any], name: str, uncond: Mapping[str, Any] | None, dropped: Tensor, x0: Tensor) -> Any:
    """A condition with the dropped samples' rows replaced; one that `uncond` does not name stays."""
    value = cond[name]
    if uncond is None or name not in uncond:
        return value
    per_sample = isinstance(value, Tensor) and value.dim() > 0 and len(value) == len(x0)
    required(per_sample, f"cond[{name!r}]", value, f"a tensor of {len(x0)} rows, to drop some of them")
    null = torch.as_tensor(uncond[name], dtype=value.dtype, device=value.device)
    return torch.where(_rows(dropped.to(value.device), value), null, value)


def _rows(values: Tensor, like: Tensor) -> Tensor:
    """(B,) reshaped to go with (B, ...)."""
    return values.view(-1, *[1] * (like.dim() - 1))


def _weights(values: Tensor, like: Tensor) -> Tensor:
    """The same, in its dtype."""
    return _rows(values, like).to(like.dtype)
