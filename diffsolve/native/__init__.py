"""Loops in C, compiled once where there is a compiler."""

from diffsolve.native.loader import INPUTS, RESULTS, bare, found, library, record, threads, written

__all__ = ["INPUTS", "RESULTS", "bare", "found", "library", "record", "threads", "written"]
