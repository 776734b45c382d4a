"""A model of what was observed: any model, conditioned on y = A x_0 + noise without training."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from diffsolve.common.checks import instance, number, required
from diffsolve.common.fingerprint import describe
from diffsolve.common.registry import Registry
from diffsolve.common.tensors import column
from diffsolve.conditioning.estimate import Estimate
from diffsolve.conditioning.methods import DPS, MMPS, TMPD, Method, PiGDM, Replacement
from diffsolve.conditioning.operators import Operator
from diffsolve.models import Model, as_model

__all__ = ["posterior", "registry"]

registry: Registry[Method] = Registry(
    "method",
    Method,
    {"dps": DPS, "mmps": MMPS, "pigdm": PiGDM, "replacement": Replacement, "tmpd": TMPD},
    group="diffsolve.conditioning",
)


class _Posterior(nn.Module):
    """The network of the posterior, in the prediction of the model's own: (x, t) on the path's clock."""

    def __init__(
        self,
        model: Model,
        operator: Operator,
        observed: Tensor | None,
        method: Method,
        settings: Mapping[str, float],
    ) -> None:
        super().__init__()
        if isinstance(model.net, nn.Module):
            self.net = model.net  # so that its parameters, device and mode are seen
        self.register_buffer("observed", observed, persistent=False)
        self.model, self.operator, self.method, self.settings = model, operator, method, dict(settings)

    def forward(self, x: Tensor, t: Tensor, observed: Tensor | None = None, **cond: Any) -> Tensor:
        """The model's output at x, changed as the data are by what was observed."""
        model, noise = self.model, self.settings["noise"]
        levels = {"rho_max": self.settings["rho_max"], "sigma_data": self.settings["sigma_data"]}
        estimate = Estimate(model, x, t, cond, derivative=self.method.derivative, **levels)
        y = self._given(observed, self.operator(x))
        change = self.method.change(estimate, self.operator, y, noise**2)
        if model.predicts == "edm":
            return estimate.denoised + change
        # At the same x, data that are more by c are noise that is less by alpha c / sigma; at the data nothing is left.
        at, (a, b) = estimate.at, model.coefficients(estimate.at)
        known = at.sigma > 0
        gain = torch.where(known, a - b * at.alpha / torch.where(known, at.sigma, 1.0), 0.0)
        return estimate.out + column(gain, x) * change

    def __fingerprint__(self) -> dict[str, Any]:
        """All that its outputs depend on."""
        parts = {"model": self.model, "operator": self.operator, "observed": self.observed, "method": self.method}
        return {"type": type(self).__name__, **{name: describe(part) for name, part in parts.items()}, **self.settings}

    def _given(self, observed: Tensor | None, seen: Tensor) -> Tensor:
        """The observations for a batch, of the shape of what the operator sees of its states."""
        y = self.observed if observed is None else observed
        required(y is not None, "observed", y, "given, to `posterior` or in cond")
        instance("observed", y, Tensor, "a tensor")
        assert isinstance(y, Tensor)
        fits = y.shape[1:] == seen.shape[1:] and len(y) in (1, len(seen))
        wanted = f"of the shape {tuple(seen.shape)} of A x, or of one for all; one for each sample goes in cond"
        required(fits, "observed", y, wanted)
        return y.to(seen)


def posterior(
    model: Any,
    operator: Operator,
    observed: Tensor | None = None,
    *,
    noise: float = 0.0,
    method: str | Method = "mmps",
    rho_max: float = 10.0,
    sigma_data: float = 1.0,
) -> Model:
    r"""The model of x_0 given y = A x_0 + noise z: a Model like any other, for every path, solver and driver.

        known = ds.conditioning.Mask(mask)
        x = ds.sample(ds.conditioning.posterior(model, known, known(image)), (16, 3, 32, 32), nfe=20, seed=0)

    Args:
        model: a Model, or what `ds.adapt` takes; not a student that is told two times.
        operator: A: `Mask`, `Blur`, `Downscale`, `Linear`, or an `Operator` of your own.
        observed: y, (1, ...) for all samples or (B, ...). Where a run picks samples from its batch (adaptive solvers,
            `parallel`, batched guidance), one for each sample must be given in `cond`, as `cond={"observed": y}`,
            which precedes what is given here.
        noise: its standard deviation.
        method: a name in `ds.conditioning.names()` with options, as "mmps(iterations=3)", or a Method.
        rho_max: the sigma / alpha beyond which the network's derivative is not trusted: the covariance of x_0 given x_t
            is then that of data N(0, sigma_data^2 I).
        sigma_data: the standard deviation of the data, for that and for PiGDM.

    Returns:
        A Model of the same path that predicts as the given one does ("denoised" in the place of "edm"). It asks for a
        derivative inside, so the network must have one, unless the method is "replacement".

    Raises:
        ValueError: if noise, rho_max or sigma_data is out of range, method unknown, or the model is told two times; in
            a run, if `observed` is missing or not of the shape of A x.
        TypeError: if operator is not an Operator, or observed not a tensor.
    """
    model = as_model(model)
    required(model.jumps is None, "model", model, "one told one time, without jumps=")
    instance("operator", operator, Operator, "an Operator, such as ds.conditioning.Linear(A)")
    if observed is not None:
        instance("observed", observed, Tensor, "a tensor")
    settings = {
        "noise": number("noise", noise, low=0),
        "rho_max": number("rho_max", rho_max, above=0),
        "sigma_data": number("sigma_data", sigma_data, above=0),
    }
    net = _Posterior(model, operator, observed, registry.resolve(method), settings)
    net.train(net.net.training if isinstance(model.net, nn.Module) else False)
    conditioned: Model = replace(
        model,
        net=net,
        predicts="denoised" if model.predicts == "edm" else model.predicts,
        clock="index" if model.clock == "index" else "t",
        dtype=torch.float64 if model.dtype == torch.float64 else None,
        learned=model.learned or ("edm" if model.predicts == "edm" else None),
    )
    return conditioned
