r"""Langevin dynamics at a noise level, and its use as a corrector.

One step at the path's time t, with s = grad log p_t and standard normals z:

.. math:: x' = x + h\, s(x) + \sqrt{2 h}\, z .

The step is h = `step` sigma_t^2, or set by a signal-to-noise ratio, h = 2 (snr |z| / |s|)^2 with the norms of each
sample. Since the Jacobian of s is nowhere below -1 / sigma_t^2, any `step` < 2 is stable where p_t is log-concave.

References:
    Roberts and Tweedie, "Exponential convergence of Langevin distributions and their discrete approximations",
    Bernoulli 2, 1996 (ULA and MALA). Song and Ermon, 1907.05600 and 2006.09011 (annealed). Song et al., 2011.13456,
    algorithms 4 and 5 (the corrector; there the norms are means over the batch, here each sample has its own).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from diffsolve import grids
from diffsolve.common.checks import exactly_one, integer, number, required
from diffsolve.common.deprecation import deprecated_alias
from diffsolve.common.result import Status, one_line
from diffsolve.common.tensors import flat, per_sample
from diffsolve.models import Model
from diffsolve.noise import Key, SeedLike, Stream

__all__ = ["Chain", "Langevin", "annealed_langevin", "langevin"]


@dataclass(frozen=True)
class Langevin:
    """How to make Langevin steps; as `ds.solve(..., corrector=ds.Langevin(snr=0.16))` a predictor-corrector sampler.

    Args:
        steps: the number of steps at each node.
        step: > 0, without unit: h = step sigma^2, where x has the unit of sigma. Or
        snr: > 0, without unit: h = 2 (snr |z| / |score|)^2, sample by sample (2011.13456 uses 0.16 for VE, 0.01
            to 0.05 for VP).

    Raises:
        ValueError: if an option is out of range, or not exactly one of step and snr is given.
    """

    steps: int = 1
    step: float | None = None
    snr: float | None = None

    def __post_init__(self) -> None:
        integer("steps", self.steps, 1)
        given = exactly_one(step=self.step, snr=self.snr)
        number(given, getattr(self, given), above=0)

    def move(self, x: Tensor, score: Tensor, z: Tensor, sigma: float) -> Tensor:
        """x + h score + sqrt(2 h) z, with one h for all samples or one for each."""
        if self.step is not None:
            h = self.step * sigma**2
            return torch.add(x, score, alpha=h).add_(z, alpha=math.sqrt(2 * h))
        assert self.snr is not None
        # A score of 0 is at a mode, where the ratio gives no step: x stays.
        ratio = _norm(z) / _norm(score).where(_norm(score) > 0, math.inf)
        h_root = per_sample(math.sqrt(2) * self.snr * ratio, x)  # sqrt(h)
        return x + h_root**2 * score + math.sqrt(2) * h_root * z


@dataclass(frozen=True, repr=False)
class Chain:
    """What `langevin` returns."""

    x: Tensor
    nfe: int
    """Network calls made."""
    seed: Key
    """The key of its noise: `seed=chain.seed` repeats the chain."""
    acceptance: Tensor | None
    """(B,): the fraction of each sample's proposals that was accepted; None without a `log_density`."""

    key = deprecated_alias("seed")

    def __repr__(self) -> str:
        return one_line(self)

    @property
    def done(self) -> bool:
        """Whether every step has been made: a chain makes all of them."""
        return True

    @property
    def status(self) -> tuple[Status, ...]:
        """How each sample's chain ended."""
        return (Status.DONE,) * len(self.x)


@torch.no_grad()
def langevin(
    model: Model,
    x: Tensor,
    t: float,
    *,
    steps: int,
    step: float | None = None,
    snr: float | None = None,
    log_density: Callable[[Tensor], Tensor] | None = None,
    seed: SeedLike | None = None,
    index: int = 0,
    first: int = 0,
    cond: Mapping[str, Any] | None = None,
) -> Chain:
    r"""Langevin dynamics at the noise level of the path's time t: ULA, or MALA where a log-density is given.

    The unadjusted chain (ULA) keeps p_t up to a bias: variance v of a Gaussian becomes v / (1 - h / 2v). With a
    log-density the proposal y is accepted with probability

    .. math:: \min\Big(1, \frac{p(y)}{p(x)} \exp\big(\tfrac12 |z|^2 - \tfrac1{4h} |x - y - h s(y)|^2\big)\Big),

    which keeps that density exactly, whatever the step, and even where the network's score is not its gradient.

    Args:
        x: (B, *): the start; it is not modified.
        t: on the path's clock; sigma(t) must be above 0.
        steps, step, snr: as in `ds.Langevin`. snr makes the step depend on x, so it excludes `log_density`.
        log_density: of x, up to a constant, with shape (B,): `lambda x: mixture.log_prob(x, alpha, sigma)`, say.
        seed, index: as in `ds.solve`; sample i depends on its own key alone.
        first: the number of the first step: a chain of 5 steps, and 3 more with `first=5`, are a chain of 8.
        cond: keyword arguments for the network.

    Raises:
        ValueError: if an option is out of range, sigma(t) is 0, snr is given with log_density, or log_density returns
            another shape.
    """
    how = Langevin(steps, step, snr)
    sigma = _level(model, t)
    if log_density is not None and snr is not None:
        raise ValueError(
            f"snr must be None with log_density, as a step that depends on x is not reversible, got {snr!r}; use step="
        )
    key, cond = Key.of(seed, index), cond or {}

    def draw(i: int, stream: Stream, shape: Sequence[int]) -> Tensor:
        return key.normal(shape, row=first + i, stream=stream, dtype=x.dtype, device=x.device)

    if log_density is None:
        for i in range(steps):
            x = how.move(x, model.score(x, t, **cond), draw(i, Stream.LANGEVIN, x.shape), sigma)
        return Chain(x, steps, key, None)

    assert step is not None
    h = step * sigma**2
    accepted = torch.zeros(len(x), device=x.device)
    score = model.score(x, t, **cond).clone()  # the network may overwrite its last output
    density = _density(log_density, x)
    for i in range(steps):
        z = draw(i, Stream.LANGEVIN, x.shape)
        y = how.move(x, score, z, sigma)
        score_y, density_y = model.score(y, t, **cond), _density(log_density, y)
        back = torch.add(x - y, score_y, alpha=-h)
        gain = density_y - density + (_norm(z) ** 2 / 2 - _norm(back) ** 2 / (4 * h)).to(density.dtype)
        # log u of a uniform u: that of the probability below a standard normal.
        u = torch.special.log_ndtr(draw(i, Stream.ACCEPT, (len(x),)).to(density.dtype))
        take = u < gain  # False for a NaN, so that a proposal out of the density's support is refused
        x, score = (torch.where(per_sample(take, x), new, old) for new, old in ((y, x), (score_y, score)))
        density = torch.where(take, density_y, density)
        accepted += take
    return Chain(x, steps + 1, key, accepted / steps)


@torch.no_grad()
def annealed_langevin(
    model: Model,
    shape: Sequence[int],
    *,
    levels: int | Sequence[float] = 10,
    steps: int = 100,
    step: float = 0.1,
    denoise: bool = True,
    seed: SeedLike | None = None,
    index: int = 0,
    cond: Mapping[str, Any] | None = None,
) -> Chain:
    """Samples by Langevin dynamics at falling noise levels (Song and Ermon, 1907.05600, algorithm 1), on any path.

    At each level `steps` steps of h = step sigma^2: theirs are of epsilon sigma_i^2 / sigma_L^2 = 2 h, so their
    epsilon is 2 step sigma_L^2. From one level to the next x / alpha is kept, as on their path (alpha = 1).

    Args:
        shape: of the batch, which starts from the same noise as in `ds.sample`.
        levels: times on the path's clock, noise first; or their number, evenly spaced in lambda from the noise end.
        denoise: end with the denoised estimate at the last level (2006.09011), at the cost of one more call.
        seed, index, cond: as in `ds.solve`.

    Raises:
        ValueError: if an option is out of range, or the levels are not in order from the noise to the data.
    """
    path = model.path
    if isinstance(levels, int):
        times = grids.named("uniform-lambda")(path, integer("levels", levels, 1))[:-1].tolist()
    else:
        times = [float(t) for t in levels]
    sigmas = [_level(model, t) for t in times]
    lams = path.lam(times).tolist()
    rising = all(a < b for a, b in zip(lams, lams[1:], strict=False))
    required(rising, "levels", times, "times in order from the noise to the data")
    key = Key.of(seed, index)
    x = key.normal(shape, stream=Stream.PRIOR, dtype=model.state_dtype, device=model.device).mul_(
        path.prior_std(times[0])
    )
    alphas, calls = path.alpha(times).tolist(), 0
    for i, t in enumerate(times):
        if i:
            # Where alpha = 0 all is noise, and x / sigma is kept.
            x = x * (alphas[i] / alphas[i - 1] if alphas[i - 1] else sigmas[i] / sigmas[i - 1])
        chain = langevin(model, x, t, steps=steps, step=step, seed=key, first=i * steps, cond=cond)
        x, calls = chain.x, calls + chain.nfe
    if denoise:
        x, calls = model.denoised(x, times[-1], **(cond or {})), calls + 1
    return Chain(x, calls, key, None)


def _level(model: Model, t: float) -> float:
    required(model.path.within(t), "t", t, f"from {model.path.t_noise} to {model.path.t_data}")
    sigma = float(model.path.sigma(t))
    required(sigma != 0, "t", t, "noisier: sigma is 0 there, and the score not determined")
    return sigma


def _density(log_density: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    values = log_density(x)
    fits = isinstance(values, Tensor) and values.shape == x.shape[:1]
    required(fits, "what log_density returns", values, f"a tensor of shape ({len(x)},)")
    return values


def _norm(x: Tensor) -> Tensor:
    return flat(x).square().sum(1).sqrt()
