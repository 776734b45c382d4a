"""Any network as a `Model`: a callable, the path it was trained on, and what its output means; and its guidance."""

from diffsolve.models.adapters import ADAPTERS, adapt, as_model, register_adapter
from diffsolve.models.guidance import Guidance
from diffsolve.models.model import CLOCKS, Model, undetermined

__all__ = ["ADAPTERS", "CLOCKS", "Guidance", "Model", "adapt", "as_model", "register_adapter", "undetermined"]
