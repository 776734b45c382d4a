"""Models from a bare network, or from another library's object that knows its own path."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from diffsolve.common.checks import choice, number, required
from diffsolve.common.registry import plugins
from diffsolve.models.model import CLOCKS, Clock, Model, first_parameter
from diffsolve.models.outputs import Picked
from diffsolve.paths import Path
from diffsolve.paths import named as path_named
from diffsolve.tableau.frames import FRAMES, check_prediction

__all__ = ["ADAPTERS", "Adapter", "adapt", "as_model", "register_adapter"]

Adapter = Callable[[Any], "Model | None"]
"""object -> Model, or None if the adapter does not know the object."""

ADAPTERS: list[Adapter] = []
"""The adapters that `as_model` tries, in order; `diffsolve.integrations` and other packages add theirs."""


def register_adapter(adapter: Adapter) -> Adapter:
    """Let `ds.adapt` and every function that takes a model recognise objects of another library.

    @ds.models.register_adapter
    def mine(thing):
        return ds.adapt(thing.net, "edm", "denoised") if isinstance(thing, MyDenoiser) else None
    """
    required(callable(adapter), "adapter", adapter, "a function of one object", TypeError)
    if adapter not in ADAPTERS:
        ADAPTERS.append(adapter)
    return adapter


def adapt(
    net: Callable[..., Tensor],
    path: str | Path | None = None,
    predicts: str | None = None,
    *,
    clock: str | Clock = "t",
    sigma_data: float = 0.5,
    dtype: torch.dtype | None = None,
    learned: str | None = None,
    jumps: str | None = None,
    output: Callable[[Any], Tensor] | None = None,
) -> Model:
    """Make any callable `net(x, t, **cond)` a Model that `ds.sample` accepts.

    Args:
        net: gets x of the state's shape and the clock as a float tensor of shape (B,) on x's device, and
            returns a tensor of x's shape. It must not write to x. Alone, without path and predicts, an object that
            knows them: a diffusers pipeline, a k-diffusion denoiser, a network of the EDM code base, a flow_matching
            `ModelWrapper`; see `diffsolve.integrations`.
        path: the Gaussian path it was trained on: a name such as "condot", "edm", "ddpm", or a `ds.paths` object.
        predicts: "noise", "denoised", "score", "velocity" (dx/dt along the path's own clock), "v" (Salimans and
            Ho) or "edm" (the raw output of an EDM network, which sees x scaled by c_in and the clock c_noise).
        clock: the time that the network gets: a name in `diffsolve.models.CLOCKS` or a function of the path's t
            (float64). The default is t itself, or c_noise for a raw EDM network. A network that looks t up in a table
            wants "index", which tells whole rows, as floats (`t.long()` at the table).
        sigma_data: the standard deviation of the data, in the units of x, with which a raw EDM network was
            preconditioned; only predicts="edm" uses it.
        dtype: of the network's input x. By default that of its first floating parameter, or, without parameters,
            the state's. Times are never rounded to half precision.
        learned: what the network inside was trained to predict, if `net` converts it to what it predicts (a wrapper
            that returns the denoised of a network of noise): "auto" chooses by it.
        jumps: for a network told two times, `net(x, t, s, **cond)`, both on its clock: the frame over whose variable
            what it returns is averaged from t to s; a key of `diffsolve.tableau.frames.FRAMES`. Of "velocity" on a
            straight path with "straight" it is the mean of dx/dt, MeanFlow's u; of "denoised" with "denoised" it is
            CTM's g. At s = t it predicts as a network told one time.
        output: what of the network's return value is its prediction: a function of it, as `lambda out: out[0]` or
            `lambda out: out.sample`; or `ds.models.LearnedVariance()` for twice the channels.

    Raises:
        ValueError: if path, predicts, clock, sigma_data, learned or jumps is not as above.
        TypeError: if net is not callable, only one of path and predicts is given, or dtype is not a floating dtype.
    """
    if path is None and predicts is None:
        if clock != "t" or sigma_data != 0.5 or (dtype, learned, jumps, output) != (None,) * 4:
            given = (
                f"clock={clock!r}, sigma_data={sigma_data!r}, dtype={dtype!r}, learned={learned!r}, jumps={jumps!r}, "
                f"output={output!r}"
            )
            raise ValueError(f"path and predicts must be given with other options, got {given} alone")
        return as_model(net)
    required(callable(net), "net", net, "a callable net(x, t, **cond)", TypeError)
    if path is None or predicts is None:
        raise TypeError(
            "path and predicts must both be given, or neither of an object that knows them, got "
            f"path={path!r}, predicts={predicts!r}"
        )
    check_prediction("predicts", predicts)
    if learned is not None:
        check_prediction("learned", learned)
    if jumps is not None:
        choice("jumps", jumps, FRAMES)
    if isinstance(clock, str):
        choice("clock", clock, CLOCKS)
    else:
        required(callable(clock), "clock", clock, "a name or a function of t", TypeError)
    number("sigma_data", sigma_data, above=0)
    if dtype is None:
        parameter = first_parameter(net)
        dtype = None if parameter is None else parameter.dtype
    else:
        floating = isinstance(dtype, torch.dtype) and dtype.is_floating_point
        required(floating, "dtype", dtype, "a floating torch.dtype", TypeError)
    if predicts == "edm" and clock == "t":
        clock = "c_noise"
    if output is not None:
        required(callable(output), "output", output, "a function of what net returns", TypeError)
        net = Picked(net, output)
    return Model(net, path_named(path), predicts, clock, float(sigma_data), dtype, learned, jumps)


def as_model(model: object) -> Model:
    """A Model unchanged, or another library's object as a Model.

    If no registered adapter knows the object, the entry points of the group "diffsolve.models" of installed packages
    are loaded and tried; each is a function as for `register_adapter`.

    Raises:
        TypeError: if no adapter knows the object.
    """
    if isinstance(model, Model):
        return model
    for adapter in ADAPTERS:
        adapted = adapter(model)
        if adapted is not None:
            return adapted
    for point in plugins("diffsolve.models"):
        adapted = register_adapter(point.load())(model)
        if adapted is not None:
            return adapted
    raise TypeError(
        "model must be a Model (ds.adapt(net, path, predicts) makes one), a diffusers pipeline, a k-diffusion "
        "denoiser, a network of the EDM code base or a flow_matching ModelWrapper, got one of type "
        f"{type(model).__name__}"
    )
