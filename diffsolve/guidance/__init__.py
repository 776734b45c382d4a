"""How the outputs of a network with and without its condition are combined, where it is no linear combination.

`ds.Guidance(5.0, rule="apg(threshold=10)")`; a Guidance without a rule is classifier-free guidance.
"""

from __future__ import annotations

from diffsolve.common.deprecation import deprecated_names
from diffsolve.common.registry import Registry
from diffsolve.guidance.base import Rule
from diffsolve.guidance.frequencies import FrequencyDecoupled
from diffsolve.guidance.projections import AdaptiveProjected, Tangential, ZeroStar
from diffsolve.guidance.sizes import MagnitudeAware

__all__ = [
    "AdaptiveProjected",
    "FrequencyDecoupled",
    "MagnitudeAware",
    "Rule",
    "Tangential",
    "ZeroStar",
    "named",
    "names",
    "register",
]

registry: Registry[Rule] = Registry(
    "rule",
    Rule,
    {
        "apg": AdaptiveProjected,
        "cfg-zero": ZeroStar,
        "fdg": FrequencyDecoupled,
        "mambo-g": MagnitudeAware,
        "tcfg": Tangential,
    },
    group="diffsolve.guidance",
)
__getattr__ = deprecated_names("diffsolve.guidance", {"Guidance": "diffsolve.models:Guidance"})

named, names, register = registry.resolve, registry.names, registry.register
