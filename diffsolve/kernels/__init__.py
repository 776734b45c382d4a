"""The few fused operations between two network calls: torch functions, and the Triton kernels that equal them."""

from diffsolve.kernels.combine import combine
from diffsolve.kernels.dispatch import fused
from diffsolve.kernels.reduce import probe, probe_dot, sample_norms
from diffsolve.kernels.rk import rk_error
from diffsolve.kernels.update import Guided, Row, Terms, backend_for, linear_update
from diffsolve.kernels.window import window_update

__all__ = [
    "Guided",
    "Row",
    "Terms",
    "backend_for",
    "combine",
    "fused",
    "linear_update",
    "probe",
    "probe_dot",
    "rk_error",
    "sample_norms",
    "window_update",
]
