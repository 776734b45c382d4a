"""The few fused operations between two network calls."""

from diffsolve.kernels.update import Terms, linear_update

__all__ = ["Terms", "linear_update"]
