"""Requests of any kind in one batch: rows of many runs, one network call."""

from diffsolve.serving.engine import StepExecution
from diffsolve.serving.stepper import Stepper
from diffsolve.serving.threads import Gathered, ThreadSafe
from diffsolve.serving.ticket import Served, Ticket

__all__ = ["Gathered", "Served", "StepExecution", "Stepper", "ThreadSafe", "Ticket"]
