"""How the loops are compiled: on the user's machine by `loader`, and ahead for a wheel by hatch_build.py.

Nothing is imported here, so that a build may run it without PyTorch.
"""

FLAGS = ("-O3", "-fno-math-errno", "-ffp-contract=fast", "-shared", "-fPIC")
REALS = ("float", "double")
LEVELS = {"x86_64": "x86-64-v3", "aarch64": "armv8-a"}
"""Of each machine, what the loops in a wheel are compiled for (-march)."""
NEEDED = {"x86_64": frozenset({"abm", "avx2", "bmi1", "bmi2", "f16c", "fma", "movbe"}), "aarch64": frozenset[str]()}
"""What /proc/cpuinfo must list among a processor's flags for them to run."""


def file_name(machine: str, real: str) -> str:
    """The name of a wheel's file of loops."""
    return f"loops-{LEVELS[machine]}-{real}.so"
