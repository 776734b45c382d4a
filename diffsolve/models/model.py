"""`Model`: a network, the path it was trained on, and its prediction type."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import import_module
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from diffsolve.common.deprecation import deprecated_alias
from diffsolve.models.conditions import told
from diffsolve.paths import Path, Position
from diffsolve.tableau.ends import last_call, may_call
from diffsolve.tableau.frames import FRAMES, PREDICTIONS, check_prediction, convert, landing

__all__ = ["CLOCKS", "Clock", "Model", "first_parameter", "undetermined"]

Clock = Callable[[Tensor], Tensor]

CLOCKS: dict[str, Callable[[Path, Tensor], Tensor]] = {
    "t": lambda path, t: t,
    "1-t": lambda path, t: 1 - t,
    "1000t": lambda path, t: 1000 * t,
    "index": lambda path, t: t.round(),
    "sigma": lambda path, t: path.sigma(t),
    "rho": lambda path, t: path.rho(t),
    "c_noise": lambda path, t: path.rho(t).log() / 4,
    "lambda": lambda path, t: path.lam(t),
}
"""The time that the network gets, as a function of the path's clock t:

1-t      the clock reversed                         1000t    0 to 1000, as diffusers' flow models
index    t rounded to a row of the table (*)       sigma    the weight of the noise
rho      sigma / alpha: k-diffusion's sigma        c_noise  log(rho) / 4, as raw EDM networks
lambda   log(alpha / sigma)

(*) For networks that know whole rows only: the nodes of a run are whole rows too, so that only calls between nodes (of
`midpoint`, `rk4`, ..) and times that you list yourself are told a rounded time.
"""


@dataclass(frozen=True, repr=False)
class Model:
    """A network with its path and prediction; `adapt` makes one. Immutable and hashable.

    The network is called as `net(x, c, **cond)`, with c of shape (B,): the clock of each sample. With `jumps` it is
    told two times, `net(x, c, c_s, **cond)`, and predicts the average over the stretch between them.
    """

    net: Callable[..., Tensor]
    path: Path
    predicts: str
    clock: str | Clock
    sigma_data: float
    """The standard deviation of the data, in the units of x, for predicts="edm"."""
    dtype: torch.dtype | None
    """The dtype of the network's input x; None for the state's."""
    learned: str | None = None
    """What was learned, and so what it errs on, where `net` converts it to what it predicts; None where they agree."""

    jumps: str | None = None
    """The frame over whose variable the network averages, if it is told two times; see `tableau.frames.landing`."""

    told = deprecated_alias("network_time")

    def __repr__(self) -> str:
        net = getattr(self.net, "__name__", type(self.net).__name__)
        clock = "" if self.clock == "t" else f", clock={getattr(self.clock, '__name__', self.clock)!r}"
        jumps = "" if self.jumps is None else f", jumps={self.jumps!r}"
        return f"Model({net}, path={self.path}, predicts={self.predicts!r}{clock}{jumps})"

    @property
    def state_dtype(self) -> torch.dtype:
        """The default dtype of a run's state: float64 if the network computes in it, else float32.

        For a network without a dtype torch's default dtype decides.
        """
        wanted = torch.get_default_dtype() if self.dtype is None else self.dtype
        return torch.float64 if wanted == torch.float64 else torch.float32

    @property
    def device(self) -> torch.device:
        """The device of the network's first parameter; the CPU for a network without parameters."""
        parameter = first_parameter(self.net)
        return torch.device("cpu") if parameter is None else parameter.device

    def coefficients(self, p: Position[Any]) -> tuple[Any, Any]:
        """(a, b) of the network's prediction a x_0 + b eps at p."""
        return PREDICTIONS[self.predicts](p, self.sigma_data)

    def determined(self, t: float) -> bool:
        """Whether the network may be called at t and its output there determines both the data and the noise."""
        if not may_call(self.path, t):
            return False
        p = self.path.nodes(np.array([t]))
        with np.errstate(all="ignore"):
            a, b = self.coefficients(p)
            det = p.alpha * b - p.sigma * a
        return bool(np.isfinite(det).all() and (det != 0).all())

    def network_time(self, t: Tensor, s: Tensor | None = None) -> Tensor:
        """The network's clock, float64, at the path's times t, of any shape; (.., 2) for a network told t and s.

        Without s it is told t twice: it predicts at t. Where its clock is infinite at the data (log sigma), s is told
        as the last time at which the network may be called.
        """
        if self.jumps is None:
            return self._clock(t)
        second = self._clock(t if s is None else s)
        last = self._clock(torch.tensor(last_call(self.path), dtype=torch.float64, device="cpu"))
        second = torch.where(second.isfinite(), second, last.to(second.device))
        return torch.stack([self._clock(t), second], -1)

    def _clock(self, t: Tensor) -> Tensor:
        if not isinstance(self.clock, str):
            return torch.as_tensor(self.clock(t), dtype=torch.float64)
        return CLOCKS[self.clock](self.path, t)

    def input_scale(self, p: Position[Any]) -> Any:
        """The factor on the network's input x: c_in / alpha for a raw EDM network, else None."""
        if self.predicts != "edm":
            return None
        return (p.sigma**2 + (self.sigma_data * p.alpha) ** 2) ** -0.5

    def time_dtype(self, state: torch.dtype) -> torch.dtype:
        """The dtype of the network's times: float64 if it computes in that, else float32; never half precision."""
        return torch.float64 if (self.dtype or state) == torch.float64 else torch.float32

    def __call__(self, x: Tensor, t: float | Tensor, *s: float | Tensor, **cond: Any) -> Tensor:
        """The network's output at x (B, ...) and the path's times t, () or (B,); and s, if it is told two times.

        Raises:
            TypeError: if s is given for a network told one time.
        """
        t = _times(t, x)
        if s and self.jumps is None:
            raise TypeError("s must be left out for a network told one time, without jumps=, got it")
        scale = self.input_scale(self.path.at(t))
        if scale is not None:
            x = x * _like(scale, x)
        network_time = self.network_time(t, *(_times(second, x) for second in s))
        return self.call(x, network_time.to(x.device, self.time_dtype(x.dtype)), told(cond))

    def jump(self, x: Tensor, t: float | Tensor, s: float | Tensor, **cond: Any) -> Tensor:
        r"""x_s from x_t = x in one call: the flow itself for a network told two times; x where s = t.

        For a network told t alone the first-order step, with data and noise as it predicts them at t: at s = data the
        function of a consistency network.

        Args:
            x: (B, ...).
            t, s: on the path's clock, () or (B,), in either direction.

        Raises:
            ValueError: if the output does not determine x_s, as noise at alpha = 0.
        """
        t, s = _times(t, x), _times(s, x)
        on_x, on_out = self.landing(self.path.at(t), self.path.at(s))
        if not bool((on_x.isfinite() & on_out.isfinite()).all()):
            raise undetermined(self.predicts, "x_s", t)
        out = self(x, t, s, **cond) if self.jumps else self(x, t, **cond)
        return _like(on_x, x) * x + _like(on_out, x) * out

    def landing(self, t: Position[Tensor], s: Position[Tensor]) -> tuple[Tensor, Tensor]:
        """(p, q) of `jump`, x_s = p x_t + q out; (1, 0) where s = t, whether the output determines it or not."""
        p, q = landing(FRAMES[self.jumps or "straight"], self.coefficients(t), t, s)
        stays = s.t == t.t
        return torch.where(stays, torch.ones_like(p), p), torch.where(stays, torch.zeros_like(q), q)

    def call(self, x: Tensor, network_time: Tensor, cond: Mapping[str, Any]) -> Tensor:
        """The network's output at an input already scaled and times on its own clock, checked for shape and dtype.

        Args:
            network_time: (B,), or (B, 2) for a network told two times.

        Raises:
            TypeError: if the output is not a floating-point tensor.
            ValueError: if its shape is not that of x.
        """
        times = (network_time,) if self.jumps is None else network_time.unbind(-1)
        out = self.net(x if self.dtype in (None, x.dtype) else x.to(self.dtype), *times, **cond)
        if not isinstance(out, Tensor):
            raise TypeError(
                f"output of net must be a tensor of shape {tuple(x.shape)}, got {type(out).__name__}; output= of "
                "ds.adapt takes the prediction out of what a network returns"
            )
        if out.shape != x.shape:
            both = out.shape[1:2] == (2 * x.shape[1],) if x.dim() > 1 else False
            hint = (
                "; a network that also predicts a variance has output=ds.models.LearnedVariance() in ds.adapt"
                if both
                else ""
            )
            shapes = f"{tuple(x.shape)}, got shape {tuple(out.shape)}{hint}"
            raise ValueError(f"output of net must have the shape of x, {shapes}")
        if not out.is_floating_point():
            raise TypeError(f"output of net must have a floating dtype, got {out.dtype}")
        return out

    def predict(self, what: str, x: Tensor, t: float | Tensor, **cond: Any) -> Tensor:
        """The network's prediction converted to `what`, one of `diffsolve.tableau.frames.PREDICTIONS`.

        Raises:
            ValueError: if `what` is unknown, or the network does not determine it: at alpha = 0 the noise does not give
                the denoised estimate, at sigma = 0 the denoised estimate does not give the noise.
        """
        check_prediction("what", what)
        t = _times(t, x)
        out = self(x, t, **cond)
        if what == self.predicts:
            return out
        p = self.path.at(t)
        on_x, on_out = convert(PREDICTIONS[what](p, self.sigma_data), self.coefficients(p), p.alpha, p.sigma)
        if not bool((on_x.isfinite() & on_out.isfinite()).all()):
            raise undetermined(self.predicts, what, t)
        return _like(on_x, x) * x + _like(on_out, x) * out

    def denoised(self, x: Tensor, t: float | Tensor, **cond: Any) -> Tensor:
        """E[x_0 | x_t = x]."""
        return self.predict("denoised", x, t, **cond)

    def noise(self, x: Tensor, t: float | Tensor, **cond: Any) -> Tensor:
        """E[eps | x_t = x]."""
        return self.predict("noise", x, t, **cond)

    def score(self, x: Tensor, t: float | Tensor, **cond: Any) -> Tensor:
        """grad log p_t(x)."""
        return self.predict("score", x, t, **cond)

    def velocity(self, x: Tensor, t: float | Tensor, **cond: Any) -> Tensor:
        """dx/dt of the probability-flow ODE on the path's clock."""
        return self.predict("velocity", x, t, **cond)

    def as_ode(self, **cond: Any) -> nn.Module:
        """dx/dt as a module f(t, x) for `torchdiffeq.odeint` and `odeint_adjoint`, in either direction."""
        module: nn.Module = _integration("torchdiffeq").ODE(self, cond)
        return module

    def as_sde(self, tau: float = 1.0, **options: Any) -> nn.Module:
        """The SDE with this path's marginals, for `torchsde.sdeint`: see `diffsolve.integrations.torchsde.SDE`."""
        module: nn.Module = _integration("torchsde").SDE(self, tau, **options)
        return module


def _integration(name: str) -> Any:
    """A module of `diffsolve.integrations`, imported late since the integrations import the models."""
    return import_module(f"diffsolve.integrations.{name}")


def undetermined(source: str, target: str, t: Any) -> ValueError:
    """The error for a conversion that is singular at an end of the path."""
    return ValueError(
        f"a network that predicts {source!r} does not determine {target!r} at t={np.ravel(t).tolist()[:4]}: at "
        "alpha = 0 noise says nothing of the data, and at sigma = 0 the data says nothing of noise or score. Start "
        "or stop short of that end, or use a network that predicts 'v' or 'velocity'"
    )


def first_parameter(net: object) -> Tensor | None:
    if not isinstance(net, nn.Module):
        return None
    return next((p for p in net.parameters() if p.is_floating_point()), None)


def _times(t: float | Tensor, x: Tensor) -> Tensor:
    times = torch.as_tensor(t, dtype=torch.float64, device=t.device if isinstance(t, Tensor) else "cpu")
    if times.dim() > 1 or (times.dim() == 1 and len(times) not in (1, len(x))):
        raise ValueError(f"t must have shape () or ({len(x)},) for a batch of {len(x)}, got shape {tuple(times.shape)}")
    return times.expand(len(x))


def _like(weight: Tensor, x: Tensor) -> Tensor:
    """Weights (B,) reshaped to multiply x (B, ...)."""
    return weight.to(x.device, x.dtype).view(-1, *[1] * (x.dim() - 1))
