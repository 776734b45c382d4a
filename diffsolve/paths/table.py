"""Paths given by a table: discrete betas."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from diffsolve.common.checks import required
from diffsolve.paths.base import UnitVariance, float64

__all__ = ["Discrete"]


class Discrete(UnitVariance):
    """A table of `betas` (Ho et al., 2006.11239): alpha(k)^2 = prod_{j <= k} (1 - beta_j), k = 0..T-1.

    The clock is the index k. Between two indices lambda is linear in k (as in k-diffusion), so that alpha and
    sigma are continuous and their derivatives, hence "velocity" on this clock, jump at the indices. In a
    segment with an infinite end (from index 0 to the data at k = -1, and the last one of a table with zero
    terminal SNR) the angle atan2(sigma, alpha) is linear instead.

    Args:
        betas: the T variances, each in [0, 1); the last may be 1 (zero terminal SNR).
        zero_terminal_snr: rescale the table so that alpha(T - 1) = 0 (Lin et al., 2305.08891, algorithm 1).
    """

    integer = True
    grid = "trailing"
    t_data = -1.0
    t_last = 0.0

    def __init__(self, betas: Sequence[float] | np.ndarray | Tensor, *, zero_terminal_snr: bool = False) -> None:
        table = float64(betas).detach().cpu().numpy()
        required(table.ndim == 1 and len(table) >= 2, "betas", table, "a list of at least 2 numbers")
        bad = ~((table > 0) & (table < 1))
        bad[-1] &= table[-1] != 1
        for where in np.flatnonzero(bad)[:1]:
            required(False, f"betas[{where}]", float(table[where]), "between 0 and 1 (the last may be 1)")
        with np.errstate(divide="ignore"):
            log_alpha2 = np.cumsum(np.log1p(-table))
        if zero_terminal_snr:
            alpha = np.exp(log_alpha2 / 2)
            alpha = (alpha - alpha[-1]) * (alpha[0] / (alpha[0] - alpha[-1]))
            with np.errstate(divide="ignore"):
                log_alpha2 = 2 * np.log(alpha)
        with np.errstate(divide="ignore"):
            lam = (log_alpha2 - np.log(-np.expm1(log_alpha2))) / 2
        self._lam = torch.from_numpy(lam)
        self.t_noise = float(len(table) - 1)

    @classmethod
    def linear(
        cls, start: float = 1e-4, end: float = 0.02, count: int = 1000, zero_terminal_snr: bool = False
    ) -> Discrete:
        """Linear betas (Ho et al., 2006.11239)."""
        return cls(np.linspace(start, end, count), zero_terminal_snr=zero_terminal_snr)

    @classmethod
    def scaled_linear(
        cls, start: float = 0.00085, end: float = 0.012, count: int = 1000, zero_terminal_snr: bool = False
    ) -> Discrete:
        """Betas whose square roots are linear (Stable Diffusion)."""
        return cls(np.linspace(start**0.5, end**0.5, count) ** 2, zero_terminal_snr=zero_terminal_snr)

    @classmethod
    def cosine(
        cls, s: float = 0.008, max_beta: float = 0.999, count: int = 1000, zero_terminal_snr: bool = False
    ) -> Discrete:
        """The cosine table with clipped betas (Nichol and Dhariwal, 2102.09672)."""
        level = np.cos((np.arange(count + 1) / count + s) / (1 + s) * math.pi / 2) ** 2
        betas = np.minimum(1 - level[1:] / level[:-1], max_beta)
        return cls(betas, zero_terminal_snr=zero_terminal_snr)

    def __len__(self) -> int:
        return len(self._lam)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Discrete) and torch.equal(self._lam, other._lam)

    def __hash__(self) -> int:
        return hash((Discrete, self._lam.numpy().tobytes()))

    def __repr__(self) -> str:
        lam = self._lam
        return f"Discrete({len(self)} steps, lambda {float(lam[-1]):.4g} to {float(lam[0]):.4g})"

    def _segments(self, t: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The row k before each t, and lambda at the ends of its segment; the last may be -inf."""
        lam = self._lam.to(t.device)
        k = torch.nan_to_num(t.detach()).floor().clamp(0, len(self) - 2).long()
        return k, lam[k], lam[k + 1]

    def _angles(self, t: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """For each t: whether the angle is linear here, the angle from the data or the noise end, and lambda."""
        k, left, right = self._segments(t)
        at_noise = torch.isinf(right) & (t > k)  # the last segment, if the table ends at alpha = 0
        at_data = t < 0
        right = torch.where(torch.isinf(right), left, right)
        linear = left + (t - k) * (right - left)
        from_noise = (k + 1 - t) * torch.atan(left.exp())  # pi / 2 - theta
        from_data = (t + 1) * self._first_angle(t)
        return at_noise, at_data, torch.where(at_noise, from_noise, from_data), linear

    def _first_angle(self, t: Tensor) -> Tensor:
        """The angle atan(sigma / alpha) of row 0."""
        return torch.atan((-self._lam[0].to(t.device)).exp())

    def _alpha(self, t: Tensor) -> Tensor:
        at_noise, at_data, angle, lam = self._angles(t)
        value = torch.where(at_noise, torch.sin(angle), torch.sigmoid(2 * lam).sqrt())
        return torch.where(at_data, torch.cos(angle), value)

    def _sigma(self, t: Tensor) -> Tensor:
        at_noise, at_data, angle, lam = self._angles(t)
        value = torch.where(at_noise, torch.cos(angle), torch.sigmoid(-2 * lam).sqrt())
        return torch.where(at_data, torch.sin(angle), value)

    def _slopes(self, t: Tensor, alpha: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
        # (alpha, sigma) = (cos, sin) of an angle; where lambda is linear, angle' = -alpha sigma lambda'. At an index
        # it is the slope of the segment that begins there.
        _, left, right = self._segments(t)
        turn = torch.where(torch.isinf(right), torch.atan(left.exp()), alpha * sigma * (left - right))
        turn = torch.where(t < 0, self._first_angle(t), turn)
        return -sigma * turn, alpha * turn

    def _time(self, lam: Tensor) -> Tensor:
        table = self._lam.to(lam.device)
        # The table falls from lambda(0); searchsorted wants it rising.
        k = (torch.searchsorted(-table, -lam, right=True) - 1).clamp(0, len(self) - 2)
        left, right = table[k], table[k + 1]
        t = k + (left - lam) / (left - torch.where(torch.isinf(right), left - 1, right))
        noise = k + 1 - torch.atan(lam.exp()) / torch.atan(left.exp())
        t = torch.where(torch.isinf(right), noise, t)
        data = torch.atan((-lam).exp()) / torch.atan((-table[0]).exp()) - 1
        return torch.where(lam > table[0], data, t)
