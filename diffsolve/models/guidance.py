"""Guidance: outputs of a network with and without a condition, and of weaker networks, combined before the update."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any
from weakref import ref

import numpy as np
import torch
from torch import Tensor

from diffsolve.common.checks import described, instance, number, required, single
from diffsolve.common.fingerprint import describe
from diffsolve.common.tensors import column, per_sample
from diffsolve.guidance import Rule, named
from diffsolve.kernels import Guided, deviation_ratio
from diffsolve.models.buffers import note, reuses, same_memory
from diffsolve.models.conditions import Told, conditions, joined, told
from diffsolve.models.model import Model
from diffsolve.tableau import Tableau

__all__ = ["Guidance", "Memory", "Perturbed"]

Given = Mapping[str, Any]
"""What a guidance brings for samples: "uncond", and "scale" and "perturbed" where it has them; see `Guidance.given`."""


@dataclass
class Memory:
    """What a rule with momentum carries from call to call: the differences so far."""

    difference: Tensor | None = None


@dataclass(frozen=True)
class Perturbed:
    """A third output p, of a network whose attention is perturbed or whose layers are skipped: + scale (c - p).

    That is perturbed-attention (2403.17377), smoothed-energy (2408.00760) and skip-layer guidance, each in addition to
    the guidance of the condition.

    Args:
        scale: 0 is none. (diffusers counts one more where nothing else guides.)
        net: the perturbed network, called as the model's is; None for the model's own, which `cond` tells to perturb.
        cond: arguments of the perturbed call, beside those of the condition.
        interval: (low, high) of rho = sigma / alpha within which it is applied.
    """

    scale: float
    net: Callable[..., Tensor] | None = None
    cond: Mapping[str, Any] = field(default_factory=dict)
    interval: tuple[float, float] = (0.0, math.inf)

    def __post_init__(self) -> None:
        single("scale", self.scale)
        object.__setattr__(self, "cond", conditions("cond", self.cond))
        required(self.net is None or callable(self.net), "net", self.net, "a network", TypeError)
        required(self.net is not None or bool(self.cond), "cond", self.cond, "what perturbs the network, without net=")
        _check_interval(self.interval)

    def active(self, rho: np.ndarray) -> np.ndarray:
        """Whether it is applied at each noise level."""
        return _within(self.interval, rho) & (self.scale != 0)


@dataclass(frozen=True)
class Guidance:
    """out = uncond + scale (cond - uncond) (Ho and Salimans, 2207.12598; there w = scale - 1), and what grew from it.

    Every prediction is linear in the network's output at given x, so the result does not depend on the prediction type,
    unless there is a rule or a rescaling. A guided call evaluates the network two or three times but counts as one;
    where the scale is 1 the network is evaluated once.

    Args:
        scale: 1 is no guidance. A number; a tensor (B,), one per sample; or a function of the noise levels rho, (N,)
            float64, infinite where alpha is 0, that returns as many scales, for a schedule.
        uncond: the keyword arguments of the unconditional call, or of the negative prompt; none by default, for
            networks that have defaults.
        interval: (low, high) of rho = sigma / alpha within which guidance is applied (Kynkaanniemi et al., 2404.07724).
        batched: evaluate both in one call with twice the batch; cond and uncond must have the same names, and tensors
            one entry per sample, or be a `ds.Shared` of one value in both.
        rescale: phi in [0, 1]: scale each sample's output this fraction of the way to the standard deviation of its
            conditional output (Lin et al., 2305.08891, section 3.4). An output that is constant over the sample, or of
            one number, is left as it is.
        rule: another combination than the linear one: a name in `ds.guidance.names()` with options, or a
            `ds.guidance.Rule`.
        weak: a weaker network in the place of the unconditional call (autoguidance, Karras et al., 2406.02507), with
            the conditions of `uncond`, or those of the sample where there is none. A callable as the model's own.
        perturbed: a third output, beside these.
        plus: CFG++ (Chung et al., 2406.08070): the data of a step are guided, and its noise is the unconditional one.
            Each call gives a D_guided + b eps_uncond, and a step begins at alpha D_guided + sigma eps_uncond, so that
            every solver has it. Runs call after call alone.

    Raises:
        ValueError: if scale, interval, rescale or rule is out of range.
        TypeError: if uncond is not a mapping.
    """

    scale: float | Tensor | Callable[[np.ndarray], np.ndarray]
    uncond: Mapping[str, Any] = field(default_factory=dict)
    interval: tuple[float, float] = (0.0, math.inf)
    batched: bool = False
    rescale: float = 0.0
    rule: str | Rule | None = None
    weak: Callable[..., Tensor] | None = None
    perturbed: Perturbed | None = None
    plus: bool = False

    def __post_init__(self) -> None:
        if isinstance(self.scale, Tensor):
            fits = self.scale.dim() == 1 and self.scale.is_floating_point() and bool(self.scale.isfinite().all())
            required(fits, "scale", self.scale, "finite and floating, of shape (B,), one per sample")
        elif not callable(self.scale):
            single("scale", self.scale)
        number("rescale", self.rescale, low=0, high=1)
        object.__setattr__(self, "uncond", conditions("uncond", self.uncond))
        _check_interval(self.interval)
        object.__setattr__(self, "rule", None if self.rule is None else named(self.rule))
        required(self.weak is None or callable(self.weak), "weak", self.weak, "a network", TypeError)
        required(self.weak is None or not self.batched, "batched", self.batched, "False with a weak network")
        instance("perturbed", self.perturbed, (Perturbed, type(None)), "a ds.Perturbed")
        required(self.plus is False or self.plus is True, "plus", self.plus, "True or False")

    def __fingerprint__(self) -> dict[str, Any]:
        """All options; of the newer ones only those in use, so that what was written without them stays valid."""
        old = {name: describe(getattr(self, name)) for name in ("scale", "uncond", "interval", "batched", "rescale")}
        return {"type": type(self).__name__, **old, **self.newer}

    @property
    def newer(self) -> dict[str, Any]:
        """The options in use that came after the first five, described."""
        options = {"rule": self.rule, "weak": self.weak, "perturbed": self.perturbed, "plus": self.plus or None}
        return {name: describe(value) for name, value in options.items() if value is not None}

    def key(self, tableau: Tableau) -> Hashable:
        """What the work of a run with this guidance depends on, beside the tensors of `given`."""
        nets = [self.weak, None if self.perturbed is None else self.perturbed.net]
        alive = tuple(None if net is None else ref(net) for net in nets)  # equal only while they live
        third = self.perturbed and self.perturbed.scale
        kinds, scales = self.kinds(tableau).tobytes(), self.schedule(tableau).tobytes()
        return kinds, scales, self.batched, self.rescale, self.rule, third, alive

    @staticmethod
    def of(value: float | Guidance | None) -> Guidance:
        """The Guidance that `guidance=` gives: a scale, a Guidance, or None."""
        return value if isinstance(value, Guidance) else Guidance(1.0 if value is None else value)

    @property
    def level(self) -> float:
        """The scale as one number, the largest of several; of a schedule that at rho = 1. Solvers are chosen by it."""
        if isinstance(self.scale, Tensor):
            return float(self.scale.max()) if len(self.scale) else 1.0
        return float(self._scales(np.ones(1))[0])

    @property
    def in_step(self) -> str | None:
        """Why all samples must be at the same call, one after another; None if they need not."""
        if self.plus:
            return "plus=True"
        if isinstance(self.rule, Rule) and (self.rule.momentum or self.rule.by_call):
            return f"rule={self.rule}"
        return None

    @property
    def given(self) -> Given:
        """All that has entries for samples, in one structure, of which samples can be picked."""
        given: dict[str, Any] = {"uncond": self.uncond}
        if isinstance(self.scale, Tensor):
            given["scale"] = self.scale
        if self.perturbed is not None:
            given["perturbed"] = self.perturbed.cond
        return given

    def mapped(self, change: Callable[[Given], Given]) -> Guidance:
        """The guidance with `given` changed, as to that of some of the samples."""
        new = change(self.given)
        perturbed = self.perturbed and replace(self.perturbed, cond=new["perturbed"])
        return replace(self, uncond=new["uncond"], scale=new.get("scale", self.scale), perturbed=perturbed)

    def kinds(self, tableau: Tableau) -> np.ndarray:
        """(N,): what each call of a run evaluates: 0 the condition alone, else 1 with the other, and 2 the third."""
        rho = _levels(tableau)
        kinds: np.ndarray = (self.schedule(tableau) != 1).astype(np.int64)
        if isinstance(self.rule, Rule):
            kinds[: self.rule.forced] = 1
        kinds[self._perturbs(rho)] += 2
        return kinds

    def scheduled(self, tableau: Tableau) -> bool:
        """Whether calls of a run have scales of their own."""
        return callable(self.scale) or "guides" in tableau.unusual

    def schedule(self, tableau: Tableau) -> np.ndarray:
        """(N,): the scale of each call of a run.

        Raises:
            ValueError: if the tableau has scales of its own, and samples too.
        """
        if "guides" not in tableau.unusual:
            return self.scales(_levels(tableau))
        own = f"one for all samples with {tableau.solver}, which has a scale for each call"
        required(not isinstance(self.scale, Tensor), "scale", self.scale, own)
        return np.asarray(1 + tableau.guides * (self.scales(_levels(tableau)) - 1))

    def scales(self, rho: np.ndarray) -> np.ndarray:
        """The scale at each noise level; 1, no guidance, outside the interval; NaN where samples have their own."""
        return np.where(_within(self.interval, rho), self._scales(rho), 1.0)

    def _scales(self, rho: np.ndarray) -> np.ndarray:
        """`scales` without the interval."""
        if not callable(self.scale):
            return np.full(len(rho), math.nan if isinstance(self.scale, Tensor) else self.scale)
        scales = np.asarray(self.scale(rho), dtype=np.float64)
        fits = scales.shape == rho.shape and bool(np.isfinite(scales).all())
        required(fits, "what scale returns", scales, f"as many finite scales as levels, {rho.shape}")
        return scales

    def _perturbs(self, rho: np.ndarray) -> np.ndarray:
        return np.zeros(len(rho), bool) if self.perturbed is None else self.perturbed.active(rho)

    def outputs(self, model: Model, tableau: Tableau, memory: Memory | None = None) -> Callable[..., Tensor | Guided]:
        """The guided network of a run: (call number, x, clock, cond) -> the output, or a `Guided` pair to combine.

        What stands in the place of `given` may follow cond.
        """
        kinds, scales, plain = self.kinds(tableau).tolist(), self.schedule(tableau), (Told(), Told())
        own, memory = self.given, Memory() if memory is None else memory

        def call(i: int, x: Tensor, network_time: Tensor, cond: Mapping[str, Any], given: Given = own) -> Any:
            if not kinds[i]:
                return model.call(x, network_time, plain[0](cond))
            if not self.batched:  # which tells what is shared from what is not
                cond, given = plain[0](cond), plain[1](given)
            outs = self._streams(model, x, network_time, cond, given, bool(kinds[i] & 1), bool(kinds[i] & 2))
            scale = float(scales[i]) if "scale" not in given or scales[i] == 1 else _each(given["scale"], x)
            return self._combined(*outs, scale, i, memory)

        return call

    def around(self, model: Model, tableau: Tableau) -> Callable[..., Tensor]:
        """`outputs`, with the pair combined into one tensor, for samples that need not be in step.

        Raises:
            ValueError: if they must be.
        """
        self.check_free("a network that is called for some samples at a time")
        outputs = self.outputs(model, tableau)

        def call(*given: Any) -> Tensor:
            out = outputs(*given)
            return out if isinstance(out, Tensor) else out.tensor()

        return call

    def check_free(self, where: str) -> None:
        """Raise a ValueError unless samples need not be in step."""
        if self.in_step is not None:
            raise ValueError(f"guidance with {self.in_step} cannot be given with {where}")

    def check_pair(self, where: str) -> None:
        """Raise a ValueError unless it is a linear combination of the model's outputs with and without a condition, by
        a number for each call."""
        for name in (*self.newer, *(["scale"] if isinstance(self.scale, Tensor) else [])):
            raise ValueError(f"guidance with {name}={described(getattr(self, name))} cannot be given with {where}")

    def output(
        self,
        model: Model,
        x: Tensor,
        network_time: Tensor,
        rho: np.ndarray,
        cond: Mapping[str, Any],
        given: Given,
    ) -> Tensor:
        """The guided output for samples each at its own noise level rho (B,)."""
        self.check_free("a solver whose samples have times of their own")
        scales, perturbs = self.scales(rho), self._perturbs(rho)
        if (scales == 1).all() and not perturbs.any():
            return model.call(x, network_time, told(cond))
        if not self.batched:
            cond, given = told(cond), told(given)
        with_, without, third = self._streams(
            model, x, network_time, cond, given, bool((scales != 1).any()), bool(perturbs.any())
        )
        one = torch.from_numpy(scales).to(with_.device, with_.dtype)
        if "scale" in given:
            one = torch.where(one.isnan(), _each(given["scale"], x).to(one), one)
        out = without + per_sample(one, with_) * (with_ - without)
        if isinstance(self.rule, Rule):
            ruled = self.rule(with_, without, with_ - without, one, 0)
            out = torch.where(per_sample(one == 1, with_), with_, ruled)
        if third is not None and self.perturbed:
            out = out + column(np.where(perturbs, self.perturbed.scale, 0.0), with_) * (with_ - third)
        return self._rescaled(with_, out)  # by 1 where there is no guidance

    def _combined(
        self, c: Tensor, u: Tensor, third: Tensor | None, scale: float | Tensor, i: int, memory: Memory
    ) -> Tensor | Guided:
        """The output of call i from its parts; a pair of which the update makes it where that is linear."""
        if self.rule is None and not isinstance(scale, Tensor):
            if third is None:
                return Guided(c, u, scale, self.rescale)
            if self.perturbed and not (self.plus or self.rescale):
                # u + w (c - u) + v (c - third) as guidance of one other output, away from which v + w leads.
                both = scale + self.perturbed.scale
                if abs(1 - both) > 1e-3:
                    others = torch.add(u * ((1 - scale) / (1 - both)), third, alpha=self.perturbed.scale / (both - 1))
                    return Guided(c, others, both)
        if isinstance(self.rule, Rule) and c is not u:
            difference = c - u
            if self.rule.momentum:
                before = memory.difference
                difference = difference if before is None else difference + self.rule.momentum * before
                memory.difference = difference
            out = self.rule(c, u, difference, scale, i)
        else:
            w = per_sample(scale.to(c), c) if isinstance(scale, Tensor) else scale
            out = u + w * (c - u)
        if third is not None and self.perturbed:
            out = out + self.perturbed.scale * (c - third)
        out = self._rescaled(c, out)
        return Guided(out, u, 1.0) if self.plus else out

    def _rescaled(self, c: Tensor, out: Tensor) -> Tensor:
        """The output brought by `rescale` towards the deviation of the conditional one."""
        if not self.rescale:
            return out
        ratio = deviation_ratio(c, out)
        return out * per_sample(torch.lerp(torch.ones_like(ratio), ratio, self.rescale), out)

    def _streams(
        self,
        model: Model,
        x: Tensor,
        network_time: Tensor,
        cond: Mapping[str, Any],
        given: Given,
        guides: bool,
        perturbs: bool,
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """The outputs with and without the condition, the same where nothing guides; and the perturbed one, or None."""
        uncond = given["uncond"]
        if guides:
            c, u = self.pair(model, x, network_time, cond, uncond)
        else:
            c = u = model.call(x, network_time, told(cond))
        if not perturbs or self.perturbed is None:
            return c, u, None
        net = model if self.perturbed.net is None else replace(model, net=self.perturbed.net)
        if net.net is model.net and reuses(model.net):
            c, u = c.clone(), u.clone()
        return c, u, net.call(x, network_time, {**told(cond), **told(given["perturbed"])})

    def pair(
        self, model: Model, x: Tensor, network_time: Tensor, cond: Mapping[str, Any], uncond: Mapping[str, Any]
    ) -> tuple[Tensor, Tensor]:
        """The network's outputs with and without the condition, or with it and of the weaker network."""
        if self.weak is not None:
            c = model.call(x, network_time, cond)
            c = c.clone() if self.weak is model.net else c
            return c, replace(model, net=self.weak).call(x, network_time, uncond or cond)
        if not self.batched:
            with_ = model.call(x, network_time, cond)
            if reuses(model.net):
                return with_.clone(), model.call(x, network_time, uncond)
            without = model.call(x, network_time, uncond)
            if not same_memory(with_, without):
                return with_, without
            note(model.net)  # which has overwritten its first output: once more
            without = without.clone()
            return model.call(x, network_time, cond), without
        both = joined(cond, uncond, len(x))
        with_, without = model.call(torch.cat([x, x]), torch.cat([network_time, network_time]), both).chunk(2)
        return with_, without


def _levels(tableau: Tableau) -> np.ndarray:
    with np.errstate(divide="ignore"):
        rho: np.ndarray = tableau.calls[:, 2] / tableau.calls[:, 1]
    return rho


def _each(scale: Tensor, x: Tensor) -> Tensor:
    """The scales, of which there must be one per sample."""
    required(len(scale) == len(x), "scale", scale, f"one per sample of the batch, {len(x)}")
    return scale


def _within(interval: tuple[float, float], rho: np.ndarray) -> np.ndarray:
    low, high = interval
    return np.asarray((rho >= low) & (rho <= high))


def _check_interval(interval: tuple[float, float]) -> None:
    levels = len(interval) == 2 and 0 <= interval[0] < interval[1]
    required(levels, "interval", interval, "two noise levels, 0 <= low < high")
