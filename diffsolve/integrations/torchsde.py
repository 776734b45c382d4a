r"""torchsde: a model as an SDE for `sdeint` and `sdeint_adjoint`, and torchsde's Brownian motions for our solvers.

    sde = model.as_sde(tau=1.0, shape=(3, 32, 32))
    w = ds.Brownian((16, 3 * 32 * 32), seed=0, t0=sde.span()[0])
    y = torchsde.sdeint(sde, sde.flatten(x_T), sde.span(), bm=w, dt=1e-2, method="euler")
    x = sde.unflatten(y[-1])

A `ds.Brownian` can be passed as `bm` directly. It has no Levy areas, which torchsde's methods "srk" (its default for
an Ito SDE) and "log_ode" need; for noise that does not depend on the state "euler" and "milstein" are the same method.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from diffsolve.common.checks import choice, number, required
from diffsolve.models import Model, undetermined
from diffsolve.models.conditions import conditions
from diffsolve.noise.brownian import Times
from diffsolve.tableau.frames import convert

__all__ = ["SDE", "BrownianAdapter"]


class SDE(nn.Module):
    r"""The family of SDEs with a path's marginals, from noise to data, as a torchsde SDE; see `Model.as_sde`.

    .. math:: dx = \Big[\dot\alpha\, E[x_0|x] + \dot\sigma\, E[\varepsilon|x]
                   + \tau^2 \sigma^2 \dot\lambda\, \nabla \log p(x)\Big] ds + \tau \sigma \sqrt{2 \dot\lambda}\, dW

    with dots for d/ds. tau = 0 is the probability-flow ODE, tau = 1 the reverse of the diffusion with the same path
    (Song et al., 2011.13456, eq. 6; Karras et al., 2206.00364, eq. 6). torchsde's time must increase, so s is the
    path's clock t, or -t where t decreases from noise to data.

    Args:
        model: a Model; the parameters of its network are parameters of this module.
        tau: noise level >= 0, as above.
        shape: of one sample; torchsde's states are (B, d). None if x has that shape already.
        cond: keyword arguments for the network.
        sde_type: "ito" or "stratonovich": the same equation here, as the noise does not depend on x, but torchsde has
            different methods for each.

    Raises:
        ValueError: if tau or sde_type is not as above; from `f` and `g`, where the drift or the diffusion is not finite
            or not determined by the network (alpha = 0 with tau > 0, sigma = 0 for a noise or score network): start
            later, or stop earlier.
        TypeError: if cond is not a mapping.
    """

    noise_type = "diagonal"

    def __init__(
        self,
        model: Model,
        tau: float = 1.0,
        *,
        shape: Sequence[int] | None = None,
        cond: Mapping[str, Any] | None = None,
        sde_type: str = "ito",
    ) -> None:
        super().__init__()
        self.model, self.tau = model, number("tau", tau, low=0)
        self.sde_type = choice("sde_type", sde_type, ("ito", "stratonovich"))
        self.event = None if shape is None else tuple(shape)
        self.cond = dict(conditions("cond", cond))
        self.sign = 1.0 if model.path.t_data > model.path.t_noise else -1.0
        if isinstance(model.net, nn.Module):
            self.net = model.net  # where `sdeint_adjoint` finds the parameters

    def span(self, start: float | None = None, stop: float | None = None) -> Tensor:
        """(2,), float64: the path's times `start` and `stop` (default: noise end and `t_last`) as torchsde's s."""
        path = self.model.path
        ends = [path.t_noise if start is None else start, path.t_last if stop is None else stop]
        required(path.within(ends), "start and stop", (start, stop), f"from {path.t_noise} to {path.t_data}")
        span = self.sign * torch.tensor(ends, dtype=torch.float64)
        required(bool(span[0] < span[1]), "start and stop", (start, stop), "different times, the noisier one first")
        return span

    def flatten(self, x: Tensor) -> Tensor:
        """(B, d): x as torchsde's state."""
        if self.event is not None and x.shape[1:] != self.event:
            raise ValueError(f"x must be of shape (B, {', '.join(map(str, self.event))}), got shape {tuple(x.shape)}")
        return x.flatten(1)

    def unflatten(self, y: Tensor) -> Tensor:
        """The inverse of `flatten`, for one state or a stack of states."""
        return y if self.event is None else y.reshape(*y.shape[:-1], *self.event)

    def f(self, s: Tensor, y: Tensor) -> Tensor:
        """The drift, (B, d)."""
        t, p = self._at(s)
        with np.errstate(all="ignore"):
            rate = p.dalpha / p.alpha - p.dsigma / p.sigma if self.tau else 0.0
            target = p.dalpha, p.dsigma - self.tau**2 * p.sigma * rate
            on_x, on_out = convert(target, self.model.coefficients(p), p.alpha, p.sigma)
        if not (np.isfinite(on_x) and np.isfinite(on_out)):
            raise undetermined(self.model.predicts, f"drift at tau={self.tau:g}", t)
        x = self.unflatten(y)
        out = self.model(x, t, **self.cond)
        return self.sign * (float(on_x) * x + float(on_out) * out).to(y.dtype).flatten(1)

    def g(self, s: Tensor, y: Tensor) -> Tensor:
        """The diffusion, (B, d): the same number everywhere."""
        t, p = self._at(s)
        with np.errstate(all="ignore"):
            square = 2 * p.sigma * (p.sigma * p.dalpha / p.alpha - p.dsigma) * self.sign if self.tau else 0.0
        if not np.isfinite(square):
            raise undetermined(self.model.predicts, f"diffusion at tau={self.tau:g}", t)
        return torch.full_like(y, self.tau * math.sqrt(max(square, 0.0)))

    def _at(self, s: Any) -> tuple[float, Any]:
        """The path's time and position at s, clamped to the ends, which s may exceed by float32 rounding."""
        path = self.model.path
        low, high = sorted((path.t_noise, path.t_data))
        t = min(max(self.sign * float(s), low), high)
        with np.errstate(all="ignore"):
            return t, path.nodes([t])[0]


class BrownianAdapter:
    """A torchsde Brownian motion with the interface of `ds.Brownian`.

    Args:
        bm: a `torchsde.BrownianInterval` or similar; times must be in its range. Its values may depend on the order of
            the queries (see its `halfway_tree`).
        shape: of the values; that of `bm` if None.

    Raises:
        ValueError: if `shape` has another number of elements than `bm`.
    """

    def __init__(self, bm: Any, shape: Sequence[int] | None = None) -> None:
        self.bm, self.shape = bm, tuple(bm.shape if shape is None else shape)
        fits = math.prod(self.shape) == math.prod(bm.shape)
        required(fits, "shape", self.shape, f"one of {math.prod(bm.shape)} numbers, as bm's {tuple(bm.shape)}")
        self.dtype, self.device = bm.dtype, bm.device

    def __call__(self, ta: Times, tb: Times | None = None) -> Tensor:
        """W(ta), or the increment from ta to tb, as `ds.Brownian` gives it."""
        alone, starts = np.ndim(ta) == 0, np.ravel(np.asarray(ta)).tolist()
        stops = [None] * len(starts) if tb is None else np.ravel(np.asarray(tb)).tolist()
        values = [self._increment(s, t).reshape(self.shape) for s, t in zip(starts, stops, strict=True)]
        return values[0] if alone else torch.stack(values)

    def normal_between(self, s: Times, t: Times) -> Tensor:
        """(W(t) - W(s)) / sqrt(|t - s|), a standard normal.

        Raises:
            ValueError: if s and t are equal.
        """
        gap = torch.as_tensor(np.asarray(t, dtype=np.float64) - np.asarray(s, dtype=np.float64))
        required(bool((gap != 0).all()), "s and t", (s, t), "different times")
        scale = gap.abs().rsqrt().to(self.device, self.dtype)
        return self(s, t) * scale.view((*scale.shape, *[1] * (len(self.shape) if scale.dim() else 0)))

    def _increment(self, s: float, t: float | None) -> Tensor:
        value: Tensor = self.bm(s) if t is None else self.bm(s, t) if s <= t else -self.bm(t, s)
        return value
