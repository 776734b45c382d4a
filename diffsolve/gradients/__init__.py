"""Gradients through runs: of fixed grids, and of adaptive solves."""

from diffsolve.gradients.fixed import GRADIENTS, differentiable

__all__ = ["GRADIENTS", "differentiable"]
