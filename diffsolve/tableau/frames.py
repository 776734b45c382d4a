r"""Predictions and frames: what a network's output means, and in which coordinates a solver steps.

Every prediction is a combination `a x_0 + b eps` of the two posterior means, with (a, b) known from the path;
so is the state, `x = alpha x_0 + sigma eps`. Any two of them determine a third: all conversions are one 2x2
determinant (`convert`).

A *frame* rescales the state and names a variable to step in: z = x / c, dz/dv = d, where d is again such a
combination. A method that is exact for constant d takes the step

    x_t = (c_t / c_s) x_s + c_t (v_t - v_s) d            (`Frame.step`)

| frame    | c                        | v                   | d = dz/dv                     | singular where        |
|----------|--------------------------|---------------------|-------------------------------|-----------------------|
| denoised | sigma                    | alpha / sigma       | x_0                           | sigma = 0             |
| noise    | alpha                    | rho = sigma / alpha | eps                           | sigma = 0, alpha = 0  |
| lambda   | alpha                    | lambda              | -rho eps                      | sigma = 0, alpha = 0  |
| straight | alpha + sigma            | u = sigma / c       | eps - x_0                     | nowhere               |
| trig     | sqrt(alpha^2 + sigma^2)  | theta = atan(rho)   | cos(theta) eps - sin(theta) x_0 | nowhere             |
| native   | 1                        | t                   | dx/dt                         | unless `path.regular` |

`denoised` and `noise` are the coordinates of the exponential integrators DPM-Solver++ (2211.01095) and DEIS
(2204.13902); `straight` turns every path into CondOT, `trig` into a rotation.

A network told two times, t and s, predicts the *average* of a frame's d over the stretch between them: with it that
step is exact, however long it is (`landing`). Its output is written as one of the predictions by the conversion at t,
so that at s = t it is that prediction. In the frames denoised, noise and straight (`STRAIGHT`), where a constant d is
constant data and noise, all averages are the same x_s = alpha_s x_0 + sigma_s eps: the consistency function
(2303.01469) at s = data, CTM's g (2310.02279) as "denoised", MeanFlow's u (2505.13447) as "velocity" on a straight
path, sCM's F (2410.11081) as "v" on a circular one. In the others the average is another number.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch

from diffsolve.common.checks import choice
from diffsolve.paths import Path, Position
from diffsolve.paths.base import Array

__all__ = [
    "DRIFT",
    "FRAMES",
    "PREDICTIONS",
    "STRAIGHT",
    "VARIABLES",
    "Along",
    "Coefficients",
    "Frame",
    "averaged",
    "check_prediction",
    "convert",
    "landing",
]

Coefficients = tuple[Any, Any]
"""(a, b) of a combination a x_0 + b eps; floats, arrays or tensors alike."""


class Along(Protocol):
    """A quantity at each position of a path."""

    def __call__(self, p: Position[Array], /) -> Array: ...


class PairAlong(Protocol):
    """(a, b) of a combination at each position of a path."""

    def __call__(self, p: Position[Array], /) -> tuple[Array, Array]: ...


class Prediction(Protocol):
    """(a, b) of what a network predicts, given sigma_data."""

    def __call__(self, p: Position[Array], sigma_data: float, /) -> tuple[Array, Array]: ...


def _edm(p: Position[Array], sigma_data: float) -> tuple[Array, Array]:
    # F = (x_0 - c_skip x / alpha) / c_out, multiplied out so that both ends are finite.
    scale = (p.sigma**2 + (sigma_data * p.alpha) ** 2) ** 0.5
    return p.sigma / (sigma_data * scale), -sigma_data * p.alpha / scale


PREDICTIONS: dict[str, Prediction] = {
    "denoised": lambda p, _: (p.alpha * 0 + 1, p.alpha * 0),
    "noise": lambda p, _: (p.alpha * 0, p.alpha * 0 + 1),
    "score": lambda p, _: (p.alpha * 0, -1 / p.sigma),
    "velocity": lambda p, _: (p.dalpha, p.dsigma),
    "v": lambda p, _: (-p.sigma, p.alpha),
    "edm": _edm,
}
"""name -> (a, b) at a position, given sigma_data:

denoised   x_0                             E[x_0 | x_t]
noise      eps                             E[eps | x_t]
score      -eps / sigma                    grad log p_t(x_t)
velocity   alpha' x_0 + sigma' eps         dx/dt of the probability-flow ODE on the path's own clock
v          alpha eps - sigma x_0           Salimans and Ho, 2202.00512
edm        (x_0 - c_skip x/alpha) / c_out  the raw output of an EDM network, Karras et al., 2206.00364, eq. 7
"""

ELSEWHERE = {
    **dict.fromkeys(("eps", "epsilon", "noise_prediction", "epsilon_prediction"), "noise"),
    **dict.fromkeys(("x0", "x_0", "x", "x_start", "sample", "data", "x0_prediction", "denoiser"), "denoised"),
    **dict.fromkeys(("flow", "flow_prediction", "flow_matching", "u", "vector_field", "rectified_flow"), "velocity"),
    **dict.fromkeys(("v_prediction", "v-prediction", "v_pred", "vpred"), "v"),
}
"""What other libraries call a prediction -> its name here."""


def check_prediction(argument: str, name: Any) -> None:
    """Check that this is the name of a prediction.

    Raises:
        ValueError: if not, with the name here of what other libraries call so.
    """
    choice(argument, name, PREDICTIONS, ELSEWHERE)


def convert(target: Coefficients, source: Coefficients, alpha: Any, sigma: Any) -> tuple[Any, Any]:
    """(p, q) with target = p x + q source, where x = alpha x_0 + sigma eps.

    Solves p (alpha, sigma) + q (a_source, b_source) = (a_target, b_target). Where the source does not determine
    the target (at alpha = 0 noise does not give x_0, at sigma = 0 x_0 does not give eps) p and q are not finite:
    the caller, who knows the names, raises.
    """
    (a, b), (a_target, b_target) = source, target
    det = alpha * b - sigma * a
    return (a_target * b - b_target * a) / det, (alpha * b_target - sigma * a_target) / det


@dataclass(frozen=True)
class Frame:
    """Coordinates to step in: z = x / c, dz/dv = d. The table at the top of this file lists them all."""

    name: str
    c: Along
    """The rescaling c of the state."""
    v: Along
    """The variable that the steps are made in."""
    d: PairAlong
    """(a, b) of the derivative d = dz/dv."""
    slope: Along
    """dv/dtheta along the path, theta = atan(sigma / alpha): the measure of integrals over v."""
    lam: Callable[[np.ndarray], np.ndarray] | None
    """lambda as a function of v; None where v is the path's own clock."""
    at_data: bool = False
    """Whether the frame is regular at sigma = 0."""
    at_noise: bool = False
    """Whether the frame is regular at alpha = 0."""

    def step(self, s: Position[Array], t: Position[Array]) -> tuple[Array, Array]:
        """(ratio, gain) of the step x_t = ratio x_s + gain d that is exact for constant d."""
        c_s, c_t = self.c(s), self.c(t)
        return c_t / c_s, c_t * (self.v(t) - self.v(s))

    def noise(self, s: Position[float], t: Position[float]) -> float:
        """The standard deviation of the noise that a step from s to t adds: none, but in the frame of an SDE."""
        return 0.0

    def clock(self, s: Position[float], t: Position[float]) -> tuple[float, float]:
        """The stretch of the clock of a Brownian motion whose increment that noise is; (0, 0) if there is none."""
        return 0.0, 0.0

    def time(self, path: Path, v: np.ndarray) -> np.ndarray:
        """The path's clock where the variable has the value v."""
        if self.lam is None:
            return v
        with np.errstate(divide="ignore"):
            return path.time(self.lam(v)).numpy()


@dataclass(frozen=True)
class _Exponential(Frame):
    """c is alpha or sigma itself: c_t v_t is then the other one, also where v_t is infinite."""

    def step(self, s: Position[Array], t: Position[Array]) -> tuple[Array, Array]:
        c_s, c_t = self.c(s), self.c(t)
        other_s, other_t = (s.alpha, t.alpha) if self.name == "denoised" else (s.sigma, t.sigma)
        return c_t / c_s, other_t - other_s * (c_t / c_s)


def _angle(p: Position[Any]) -> Any:
    atan2 = torch.atan2 if isinstance(p.sigma, torch.Tensor) else np.arctan2
    return atan2(p.sigma, p.alpha)


def _square(p: Position[Array]) -> Array:
    square: Array = p.alpha**2 + p.sigma**2
    return square


def _norm(p: Position[Array]) -> Array:
    norm: Array = _square(p) ** 0.5
    return norm


_FRAMES = (
    _Exponential(
        "denoised",
        c=lambda p: p.sigma,
        v=lambda p: p.alpha / p.sigma,
        d=lambda p: (p.alpha * 0 + 1, p.alpha * 0),
        slope=lambda p: -_square(p) / p.sigma**2,
        lam=np.log,
        at_noise=True,
    ),
    _Exponential(
        "noise",
        c=lambda p: p.alpha,
        v=lambda p: p.sigma / p.alpha,
        d=lambda p: (p.alpha * 0, p.alpha * 0 + 1),
        slope=lambda p: _square(p) / p.alpha**2,
        lam=lambda v: -np.log(v),
    ),
    Frame(
        "lambda",
        c=lambda p: p.alpha,
        v=lambda p: p.lam,
        d=lambda p: (p.alpha * 0, -p.sigma / p.alpha),
        slope=lambda p: -_square(p) / (p.alpha * p.sigma),
        lam=lambda v: v,
    ),
    Frame(
        "straight",
        c=lambda p: p.alpha + p.sigma,
        v=lambda p: p.sigma / (p.alpha + p.sigma),
        d=lambda p: (p.alpha * 0 - 1, p.alpha * 0 + 1),
        slope=lambda p: _square(p) / (p.alpha + p.sigma) ** 2,
        lam=lambda v: np.log1p(-v) - np.log(v),
        at_data=True,
        at_noise=True,
    ),
    Frame(
        "trig",
        c=_norm,
        v=_angle,
        d=lambda p: (-p.sigma / _norm(p), p.alpha / _norm(p)),
        slope=lambda p: p.alpha * 0 + 1,
        lam=lambda v: -np.log(np.tan(v)),
        at_data=True,
        at_noise=True,
    ),
    Frame(
        "native",
        c=lambda p: p.alpha * 0 + 1,
        v=lambda p: p.t,
        d=lambda p: (p.dalpha, p.dsigma),
        slope=lambda p: _square(p) / (p.alpha * p.dsigma - p.sigma * p.dalpha),
        lam=None,
    ),
)
FRAMES: dict[str, Frame] = {frame.name: frame for frame in _FRAMES}

DRIFT = "drift"
"""In the place of a frame: d is the drift of an SDE on the path's clock, c = 1, v = t."""

STRAIGHT = frozenset({"denoised", "noise", "straight"})
"""Frames in which a constant d is constant data and noise."""


def landing(frame: Frame, source: Coefficients, t: Position[Any], s: Position[Any]) -> tuple[Any, Any]:
    """(p, q) of x_s = p x_t + q out, for the output a x_0 + b eps of a network told t and s that averages over `frame`.

    It is the step of the frame that is exact for constant d, with d converted from the output at t. Not finite where
    the output does not determine it.
    """
    if frame.name in STRAIGHT:  # also where c or v of the frame are not finite
        return convert((s.alpha, s.sigma), source, t.alpha, t.sigma)
    ratio, gain = frame.step(t, s)
    p, q = convert(frame.d(t), source, t.alpha, t.sigma)
    return ratio + gain * p, gain * q


def averaged(target: Frame, frame: Frame, t: Position[Any], s: Position[Any]) -> Coefficients:
    """(a, b) of the average of the target's d over the stretch from t to s, of which the average of `frame`'s is known.

    Both steps lead to the same x_s: r x_t + g D = r' x_t + g' D', and x_t is (alpha, sigma) at t. In two frames of
    `STRAIGHT` it is the target's own d.
    """
    (a, b) = frame.d(t)
    (ratio, gain), (own_ratio, own_gain) = frame.step(t, s), target.step(t, s)
    rest, share = (ratio - own_ratio) / own_gain, gain / own_gain
    return rest * t.alpha + share * a, rest * t.sigma + share * b


VARIABLES: dict[str, Along] = {
    "lambda": lambda p: p.lam,
    "theta": _angle,
    "arc": lambda p: np.arctan2(p.sigma**0.5, p.alpha**0.5),
    "u": lambda p: p.sigma / (p.alpha + p.sigma),
    "log-u": lambda p: np.log(p.sigma / (p.alpha + p.sigma)),
    "rho": lambda p: p.sigma / p.alpha,
    "rho7": lambda p: (p.sigma / p.alpha) ** (1 / 7),
    "t": lambda p: p.t,
}
"""Variables in which a multistep method may interpolate d; the integrals are over the frame's v all the same."""
