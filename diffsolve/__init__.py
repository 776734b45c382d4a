"""diffsolve: numerical ODE and SDE solvers for sampling from diffusion, score and flow-matching networks.

Names are imported when they are first used, so that `import diffsolve` costs nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from diffsolve.common import deprecation

if TYPE_CHECKING:
    from diffsolve import (
        conditioning,
        distill,
        grids,
        guidance,
        integrations,
        likelihood,
        metrics,
        models,
        paths,
        reference,
        serving,
        solvers,
    )
    from diffsolve.adaptive import Adaptive, AdaptiveRun, AdaptiveSDE, Status
    from diffsolve.api import diffuse, encode, reversible, sample, sample_with_log_prob, solve
    from diffsolve.common.result import Result
    from diffsolve.dynamics import Chain, Langevin, annealed_langevin, langevin
    from diffsolve.execute.clip import Clip
    from diffsolve.execute.executor import Executor, State
    from diffsolve.execute.plan import plan
    from diffsolve.execute.results import Run, Step
    from diffsolve.execute.start import begin
    from diffsolve.likelihood import BitsPerDim, LogProb, bits_per_dim, log_prob, transition_log_prob
    from diffsolve.models import Guidance, Model, Perturbed, Shared, adapt
    from diffsolve.noise import Brownian, Key
    from diffsolve.parallel import Anderson, Independent, Parareal, Picard, Ranks
    from diffsolve.reference import load
    from diffsolve.serving import Stepper
    from diffsolve.solvers.skip import skip
    from diffsolve.tableau import Tableau
    from diffsolve.tuning import Choice, Choices, Family, Tuning, choose, tune

__version__ = "0.1.0"

deprecation.install()

_HOME = {
    "adaptive": ("Adaptive", "AdaptiveRun", "AdaptiveSDE", "Status"),
    "api": ("diffuse", "encode", "reversible", "sample", "sample_with_log_prob", "solve"),
    "common.result": ("Result",),
    "dynamics": ("Chain", "Langevin", "annealed_langevin", "langevin"),
    "execute.clip": ("Clip",),
    "execute.executor": ("Executor", "State"),
    "execute.plan": ("plan",),
    "execute.results": ("Run", "Step"),
    "execute.start": ("begin",),
    "likelihood": ("BitsPerDim", "LogProb", "bits_per_dim", "log_prob", "transition_log_prob"),
    "models": ("Guidance", "Model", "Perturbed", "Shared", "adapt"),
    "noise": ("Brownian", "Key"),
    "parallel": ("Anderson", "Independent", "Parareal", "Picard", "Ranks"),
    "reference": ("load",),
    "serving": ("Stepper",),
    "solvers.skip": ("skip",),
    "tableau": ("Tableau",),
    "tuning": ("Choice", "Choices", "Family", "Tuning", "choose", "tune"),
}
_MODULE_OF = {name: module for module, names in _HOME.items() for name in names}
_MODULES = (
    "conditioning",
    "distill",
    "grids",
    "guidance",
    "integrations",
    "likelihood",
    "metrics",
    "models",
    "paths",
    "reference",
    "serving",
    "solvers",
    "training",
)

__all__ = [
    "Adaptive",
    "AdaptiveRun",
    "AdaptiveSDE",
    "Anderson",
    "BitsPerDim",
    "Brownian",
    "Chain",
    "Choice",
    "Choices",
    "Clip",
    "Executor",
    "Family",
    "Guidance",
    "Independent",
    "Key",
    "Langevin",
    "LogProb",
    "Model",
    "Parareal",
    "Perturbed",
    "Picard",
    "Ranks",
    "Result",
    "Run",
    "Shared",
    "State",
    "Status",
    "Step",
    "Stepper",
    "Tableau",
    "Tuning",
    "__version__",
    "adapt",
    "annealed_langevin",
    "begin",
    "bits_per_dim",
    "choose",
    "conditioning",
    "diffuse",
    "distill",
    "encode",
    "grids",
    "guidance",
    "integrations",
    "langevin",
    "likelihood",
    "load",
    "log_prob",
    "metrics",
    "models",
    "paths",
    "plan",
    "reference",
    "reversible",
    "sample",
    "sample_with_log_prob",
    "serving",
    "skip",
    "solve",
    "solvers",
    "training",
    "transition_log_prob",
    "tune",
]


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return import_module(f"diffsolve.{name}")
    if name not in _MODULE_OF:
        raise AttributeError(f"module 'diffsolve' has no attribute {name!r}")
    import_module("diffsolve.integrations")  # which teaches `adapt` the objects of other libraries
    value = getattr(import_module(f"diffsolve.{_MODULE_OF[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
