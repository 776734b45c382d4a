"""Requests of any kind in one batch: rows of many runs, one network call."""

from diffsolve.serving.stepper import Stepper
from diffsolve.serving.ticket import Served, Ticket

__all__ = ["Served", "Stepper", "Ticket"]
