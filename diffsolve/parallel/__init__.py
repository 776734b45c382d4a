"""Parallel in time: many network calls of one run at once.

A run is a strictly lower-triangular system: call i of the network depends on earlier calls alone. So it has one
solution, and iterations that guess all calls of a window at once reach it in finitely many rounds. This works for *any*
tableau, multistep and stochastic ones included, because the noise is a function of its row and known beforehand.
"""

from diffsolve.common.deprecation import deprecated_names
from diffsolve.execute.results import Rounds
from diffsolve.parallel.anderson import Anderson
from diffsolve.parallel.base import Parallel
from diffsolve.parallel.distributed import Ranks
from diffsolve.parallel.independent import Independent
from diffsolve.parallel.parareal import Parareal
from diffsolve.parallel.picard import Picard

__all__ = ["Anderson", "Independent", "Parallel", "Parareal", "Picard", "Ranks", "Rounds"]

__getattr__ = deprecated_names(__name__, {"Statistics": "diffsolve.execute.results:Rounds"})
