"""Networks as `Model`s: a callable, the path it was trained on and its prediction type; and guidance."""

from diffsolve.models.adapters import ADAPTERS, adapt, as_model, register_adapter
from diffsolve.models.conditions import Shared
from diffsolve.models.guidance import Guidance, Perturbed
from diffsolve.models.model import CLOCKS, Model, undetermined
from diffsolve.models.outputs import LearnedVariance

__all__ = [
    "ADAPTERS",
    "CLOCKS",
    "Guidance",
    "LearnedVariance",
    "Model",
    "Perturbed",
    "Shared",
    "adapt",
    "as_model",
    "register_adapter",
    "undetermined",
]
