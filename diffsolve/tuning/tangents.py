r"""The derivative of a run's end by its parameters, carried along with the run: forward mode, call after call.

A student's run is y_{i+1} = R_i0 x + sum_{j <= i} R_{i,j+1} v_j, with v_j = v(y_j, t_j) from the network. A parameter p
moves rows, times or both, so that

    dy_{i+1} = sum_j dR_ij (x, v)_j + sum_j R_{i,j+1} dv_j,    dv_j = v(y_j, t_j)'(dy_j, dt_j).

The time that the network is told, the scale of its guidance and the blur are inputs of v beside the time of the state.

Only the last is the network's: its directional derivative in as many directions as parameters have acted so far, a
third of all of them on average. It is taken by differences, of states that are moved a little: any network has them,
without a graph, in what a batch of that many calls costs. Forward-mode differentiation gives the same to four digits
and more, but takes 1.2 to 2.2 times as long on the networks here.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from diffsolve.common.tensors import column
from diffsolve.execute.blur import blurred
from diffsolve.models.conditions import picked
from diffsolve.tableau.frames import convert
from diffsolve.tuning.runs import Noises
from diffsolve.tuning.student import STRAIGHT, Lines, Student, V
from diffsolve.tuning.tracks import Tracks

__all__ = ["along", "differences", "linearised"]

TOGETHER = 32
"""Directions at once."""


def differences(
    f: Callable[..., Tensor],
    primals: Sequence[Tensor],
    tangents: Sequence[Tensor],
    dtype: torch.dtype | None = None,
) -> tuple[Tensor, Tensor]:
    """f(primals), and its derivative in K directions: by steps that move the primals by the root of their rounding.

    Args:
        f: a function of the primals (B, ...), and of `copies` of them one after another.
        tangents: (K, B, ...), the directions.
        dtype: that f computes in, where it is not that of the primals.
    """
    value = f(*primals)
    kinds = (primals[0].dtype, dtype or primals[0].dtype)
    K, rounding = len(tangents[0]), max(torch.finfo(kind).eps for kind in kinds)
    moves = sum(_size(t.flatten(1)) / _unit(p.flatten()) for p, t in zip(primals, tangents, strict=True))
    step = rounding**0.5 / torch.as_tensor(moves).clamp(min=rounding)
    slopes = []
    for some in torch.split(torch.arange(K), TOGETHER):
        h = step[some]
        moved = [
            (p + h.to(t).view(-1, *[1] * p.dim()) * t[some]).flatten(0, 1)
            for p, t in zip(primals, tangents, strict=True)
        ]
        difference = f(*moved, copies=len(some)).view(len(some), *value.shape) - value
        slopes.append(difference / h.to(value).view(-1, *[1] * value.dim()))
    return value, torch.cat(slopes)


def _size(x: Tensor) -> Tensor:
    return x.float().square().mean(-1).sqrt().cpu()


def _unit(x: Tensor) -> Tensor:
    """The size of what is moved; 1 of a time at 0."""
    size = _size(x)
    return torch.where(size > 0, size, torch.ones_like(size))


class _Velocity:
    """v = eps - x_0 as the guided network says it, at a call's states y (B, ...) and times t (B,) of the path.

    The network is told the times `told` (B,), and guided by the part `guides` (B,) of the scale; `blurs` (B,) is the
    share of v that is blurred.
    """

    def __init__(self, student: Student, noises: Noises) -> None:
        self.model, self.noises = student.model, noises
        tableau = student.tableau()
        self.outputs = noises.guidance.around(student.model, tableau)
        self.blurring = student.blurring
        plain = replace(tableau, guides=np.ones(tableau.nfe))
        self.scales = noises.guidance.schedule(plain) if student.guides.requires_grad else None

    def at(self, i: int) -> Callable[..., Tensor]:
        """The function of (y, t, told, guides, blurs) at call i; for `copies` of the noises one after another."""
        model, size = self.model, len(self.noises.x)

        def velocity(y: Tensor, t: Tensor, told: Tensor, guides: Tensor, blurs: Tensor, copies: int = 1) -> Tensor:
            given: tuple[Any, Any] = (self.noises.cond, self.noises.guidance.given)
            if copies > 1:
                given = picked(given, torch.arange(size).repeat(copies), size)
            if self.scales is not None:
                given = given[0], {**given[1], "scale": (1 + guides * (self.scales[i] - 1)).to(y)}
            at = model.path.at(t)
            scale = model.input_scale(at)
            x = y if scale is None else y * column(scale, y)
            network_time = model.network_time(told).to(y.device, model.time_dtype(y.dtype))
            out = self.outputs(i, x, network_time, *given).to(y.dtype)
            p, q = convert(V, model.coefficients(at), at.alpha, at.sigma)
            v = column(p, y) * y + column(q, y) * out
            return blurred(v, column(blurs, v)) if self.blurring else v

        return velocity


@torch.no_grad()
def linearised(student: Student, noises: Noises) -> tuple[Tensor, Tensor]:
    """The end x (B, ...) of the run from some noises, and its derivative (P, B, ...) by the student's parameters."""
    lines = student.lines()
    y, dy = deque(_followed(student, noises, lines), maxlen=1).pop()
    return y, torch.tensordot(lines.onto.to(y), dy, 1)


@torch.no_grad()
def along(student: Student, noises: Noises, tracks: Tracks) -> tuple[Tensor, Tensor]:
    """What the run is off from tracks after each call (B, N, ...), in the straight frame; and (P, B, N, ...)."""
    lines, times = student.lines(), student.times().detach()
    found, slopes = [], []
    for k, (y, dy) in enumerate(_followed(student, noises, lines), 1):
        p = student.model.path.at(times[k])
        c, u = float(STRAIGHT.c(p)), float(STRAIGHT.v(p))
        z, slope = tracks.at(u)
        off = dy.new_zeros(len(lines.begins), *y.shape)
        off[: len(dy)] = dy / c
        if k < student.calls:  # its time may move: y / c moves with 1 / c, and the track along itself
            dc = float(p.dalpha + p.dsigma)
            du = float(p.dsigma * p.alpha - p.sigma * p.dalpha) / c**2
            moved = lines.moves[0, :, k].to(y).view(-1, *[1] * y.dim())
            off -= moved * (y * (dc / c**2) + slope * du)
        found.append(y / c - z)
        slopes.append(torch.tensordot(lines.onto.to(y), off, 1))
    return torch.stack(found, 1), torch.stack(slopes, 2)


def _followed(student: Student, noises: Noises, lines: Lines) -> Iterator[tuple[Tensor, Tensor]]:
    """After each call y (B, ...) and its derivative along the directions that have acted so far."""
    x = noises.x
    velocity = _Velocity(student, noises)
    known, slopes = [x], list[Tensor]()
    y, dy = x, x.new_zeros(0, *x.shape)
    for i, row in enumerate(lines.rows.tolist()):
        primals = (y, *lines.inputs[:, i, None].repeat(1, len(x)))
        acting = int((lines.begins <= 2 * i).sum())
        if acting:
            dy = torch.cat([dy, x.new_zeros(acting - len(dy), *x.shape)])
            moves = lines.moves[:, :acting, i, None].repeat(1, 1, len(x))
            v, dv = differences(velocity.at(i), primals, (dy, *moves), student.model.dtype)
        else:
            v, dv = velocity.at(i)(*primals), dy
        known.append(v)
        slopes.append(dv)
        active = int((lines.begins <= 2 * i + 1).sum())
        dy = torch.tensordot(lines.slopes[:active, i, : i + 2].to(x), torch.stack(known), 1)
        for weight, slope in zip(row[1:], slopes, strict=False):
            dy[: len(slope)].add_(slope, alpha=weight)
        y = torch.tensordot(lines.rows[i, : i + 2].to(x), torch.stack(known), 1)
        yield y, dy
