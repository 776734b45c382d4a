"""Loops in C, compiled once where there is a compiler."""

from diffsolve.native.loader import INPUTS, RESULTS, found, is_plain, library, mark_mutated, record, threads

__all__ = ["INPUTS", "RESULTS", "found", "is_plain", "library", "mark_mutated", "record", "threads"]
