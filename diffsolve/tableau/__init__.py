"""A run as a table of weights: frames (what is extrapolated, in which coordinates), the table, and its writing."""

from diffsolve.tableau.draft import Call, Combination, Draft
from diffsolve.tableau.frames import FRAMES, PREDICTIONS, VARIABLES, Frame, convert
from diffsolve.tableau.tableau import DRIFT, Tableau

__all__ = [
    "DRIFT",
    "FRAMES",
    "PREDICTIONS",
    "VARIABLES",
    "Call",
    "Combination",
    "Draft",
    "Frame",
    "Tableau",
    "convert",
]
