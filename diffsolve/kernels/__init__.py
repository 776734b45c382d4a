"""The few fused operations between two network calls: torch functions, and the Triton kernels that equal them."""

from diffsolve.kernels.combine import combine
from diffsolve.kernels.dispatch import fused
from diffsolve.kernels.reduce import deviation_ratio
from diffsolve.kernels.requests import Turn, update_requests
from diffsolve.kernels.terms import Terms, terms, weighted_sum
from diffsolve.kernels.update import Guided, Row, backend_for, linear_update
from diffsolve.kernels.window import window_update

__all__ = [
    "Guided",
    "Row",
    "Terms",
    "Turn",
    "backend_for",
    "combine",
    "deviation_ratio",
    "fused",
    "linear_update",
    "terms",
    "update_requests",
    "weighted_sum",
    "window_update",
]
