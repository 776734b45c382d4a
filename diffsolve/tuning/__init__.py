"""Learning a tableau for one network and one number of calls."""

from diffsolve.tuning.fit import Tuning, fit, tune

__all__ = ["Tuning", "fit", "tune"]
