"""What `bench` and `choose` are about: a reference model by name, or anybody's by `package.module:factory`."""

from __future__ import annotations

import ast
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import typer

from diffsolve.cli.options import LABELLED, batch_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

    from diffsolve.metrics import Statistics
    from diffsolve.models import Guidance, Model

__all__ = ["Cond", "Data", "Decode", "FeaturesSpec", "ModelArgs", "Shape", "Subject", "reference_of", "subject_of"]

ModelArgs = Annotated[
    list[str] | None,
    typer.Option("--model-args", help="name=value for the factory of --model; may be repeated."),
]
Data = Annotated[
    str | None,
    typer.Option(
        help="The data: a folder of images, an .npz of images or of mu and sigma, or package.module:loader, a function "
        "that returns a tensor or batches. [default: the reference model's own]"
    ),
]
FeaturesSpec = Annotated[
    str | None,
    typer.Option(
        "--features",
        help="pixels, inception, dinov2 or clip, or package.module:factory. [default: pixels; a small classifier's for "
        "the reference models]",
    ),
]
Shape = Annotated[
    str | None, typer.Option(help="Of one sample, as 3,32,32. [default: that of the data, or the reference model's]")
]
Cond = Annotated[
    str | None,
    typer.Option(
        help="Conditions: package.module:function, which returns a mapping; sample i gets entry i of its tensors, in "
        "turn."
    ),
]
Decode = Annotated[
    str | None, typer.Option(help="package.module:function from samples to images, as a decoder of latents.")
]


class Subject(NamedTuple):
    """A model, and what belongs to it."""

    model: Model
    shape: tuple[int, ...]
    """Of one sample."""
    cond: Mapping[str, Any] | None
    decode: Callable[[Tensor], Tensor] | None
    name: str | None
    """Of a reference model; None for others."""

    def guidance(self, text: str | None) -> float | Guidance | None:
        """A scale, or what `package.module:function` returns.

        Raises:
            ValueError: if it is neither, or the model knows no classes.
        """
        from diffsolve.common.imports import named_object

        if text is None:
            return None
        if self.name is not None and self.name not in LABELLED:
            raise ValueError(f"guidance must be left out for a model without classes, got {text!r}")
        if ":" in text:
            made: float | Guidance = named_object("guidance", text)()
            return made
        try:
            return float(text)
        except ValueError:
            raise ValueError(f"guidance must be a number or package.module:function, got {text!r}") from None


def subject_of(
    model: str,
    model_args: Sequence[str] | None,
    shape: str | None,
    label: str,
    num: int,
    cond: str | None,
    decode: str | None,
    data: str | None = None,
) -> Subject:
    """The subject that the options name.

    Raises:
        ValueError: if there is no such model, or its sample's shape is not known.
    """
    import torch

    import diffsolve as ds
    from diffsolve.common.imports import named_object
    from diffsolve.models import as_model

    decoder = None if decode is None else named_object("decode", decode)
    conditions = None if cond is None else named_object("cond", cond)()
    if ":" in model and "(" not in model:
        made = named_object("model", model)
        if not isinstance(made, ds.Model | torch.nn.Module):
            made = made(**_arguments(model_args))
        sizes = _shape(shape) if shape is not None else _shape_of(data)
        if label != "all":
            raise ValueError(
                f"class must be left out for a model of one's own, whose conditions --cond has, got {label!r}"
            )
        return Subject(as_model(made), sizes, conditions, decoder, None)
    for option, value in (("model-args", model_args), ("shape", shape)):
        if value is not None:
            raise ValueError(f"{option} must be left out for a reference model, got {value!r}")
    net = ds.load(model)
    torch.set_num_threads(1)  # these networks are too small to gain from more, and lose much on busy cores
    (_, *own_sizes), labels = batch_of(model, label, num)
    own = getattr(net.net, "decode", None)
    name = model.partition("(")[0].strip().lower()
    return Subject(net, tuple(own_sizes), conditions or labels, decoder or own, name)


def reference_of(subject: Subject, data: str | None, features: str | None, label: str, batch: int) -> Statistics | None:
    """The statistics of the data; None where there are no data."""
    from diffsolve.metrics import Statistics, batches, is_statistics
    from diffsolve.metrics.data import DATA, KEPT
    from diffsolve.metrics.features import named

    if data is None:
        if features is not None:
            raise ValueError(f"features must be given together with data, got {features!r} alone")
        return None if subject.name is None else DATA[subject.name](label)
    extractor = named("pixels" if features is None else features)
    if is_statistics(data):
        return Statistics.load(data, extractor)
    return Statistics.of(batches(data, batch), extractor, keep=KEPT)


def _arguments(given: Sequence[str] | None) -> dict[str, Any]:
    """name -> value: a Python literal, or else a text."""
    arguments = {}
    for entry in given or ():
        name, equals, text = entry.partition("=")
        if not equals or not name.isidentifier():
            raise ValueError(f"model-args must be name=value, got {entry!r}")
        try:
            arguments[name] = ast.literal_eval(text)
        except (ValueError, SyntaxError):
            arguments[name] = text
    return arguments


def _shape(text: str) -> tuple[int, ...]:
    try:
        sizes = tuple(int(part) for part in text.split(","))
    except ValueError:
        sizes = ()
    if not sizes or min(sizes) < 1:
        raise ValueError(f"shape must be sizes >= 1 as 3,32,32, got {text!r}")
    return sizes


def _shape_of(data: str | None) -> tuple[int, ...]:
    from diffsolve.metrics import batches, is_statistics

    if data is None or is_statistics(data):
        raise ValueError(f"shape must be given where the data do not show it, got data={data!r}")
    return tuple(next(iter(batches(data, 1))).shape[1:])
