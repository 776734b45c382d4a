"""The rule for the ends of a path, all of it: which call stands in where a frame is singular, and where calls are made.

A frame may be singular where sigma = 0 or alpha = 0. The step from or to such an end is then one first-order call,

    x_t = (sigma_t / sigma_s) x_s + (alpha_t - alpha_s sigma_t / sigma_s) D       out of sigma_s > 0,
    x_t = (alpha_t / alpha_s) x_s + (sigma_t - sigma_s alpha_t / alpha_s) eps     out of sigma_s = 0,

which is finite at both ends; into sigma_t = 0 it is x = D. A sigma next to 0 counts as the data: the second formula
leads from it to more noise. Where the network may not be called at an end either, the last (first) call is made at the
path's own last time, or else at lambda = CUT (-CUT).
"""

from __future__ import annotations

import math

from diffsolve.paths import Path, Position
from diffsolve.tableau.frames import FRAMES, Frame

__all__ = [
    "CUT", "TINY", "end_frame", "first_call", "first_order_frame", "last_call", "leaves_data", "may_call",
    "next_to_data", "singular",
]  # fmt: skip

CUT = math.log(1000.0)
"""|lambda| of the first and last call of a path that has no time for them: 1000 times more noise than data, or less."""

TINY = 1e-6
"""sigma / alpha of times that count as the data: the noise (x - alpha D) / sigma is float32's rounding there."""


def next_to_data(p: Position[float]) -> bool:
    """Whether p counts as the data though sigma is not 0 there: no noise can be told from a call at p."""
    return bool(0 < p.sigma <= TINY * p.alpha)


def leaves_data(s: Position[float], t: Position[float]) -> bool:
    """Whether the step from s to t leads out of the data, where D says nothing of the noise."""
    return bool(s.sigma == 0 or (next_to_data(s) and t.sigma > s.sigma))


def singular(frame: Frame, path: Path, p: Position[float]) -> bool:
    """Whether the frame cannot be used at p: at sigma = 0, or next to it, or alpha = 0, and as the frame declares."""
    regular = path.regular and frame.lam is None
    if next_to_data(p):
        return True
    return bool((p.sigma == 0 and not (frame.at_data or regular)) or (p.alpha == 0 and not (frame.at_noise or regular)))


def first_order_frame(s: Position[float], t: Position[float]) -> Frame:
    """The frame of a first-order call at s that is finite wherever the step to t leads."""
    return FRAMES["noise" if leaves_data(s, t) else "denoised"]


def end_frame(frame: Frame, path: Path, s: Position[float], t: Position[float], *, called: bool = True) -> Frame | None:
    """The frame of the one first-order call that replaces the method's step where `frame` is singular, else None.

    A step out of a regular point stays in an exponential frame, where the first-order step is that same formula.

    Args:
        called: whether the network will be called at t; if not, only sigma = 0 is singular there, and not its vicinity.
    """
    there = singular(frame, path, t) and (called or not next_to_data(t))
    if not singular(frame, path, s) and not there:
        return None
    if frame.name in ("denoised", "noise") and not singular(frame, path, s):
        return frame
    return first_order_frame(s, t)


def may_call(path: Path, t: float) -> bool:
    """Whether the path lets the network be called at t: anywhere but at a data end beyond its last time."""
    return t != path.t_data or path.t_last == path.t_data


def last_call(path: Path, cut: float = CUT) -> float:
    """The time of the last call before a data end where none can be made; at lambda = `cut` if the path names none."""
    return path.t_last if path.t_last != path.t_data else float(path.time(cut))


def first_call(path: Path) -> float:
    """The time of the first call after a noise end where none can be made."""
    return float(path.time(-CUT))
