"""Which solvers a test runs: every name, or one of each kind."""

import diffsolve as ds

POINTS = {
    *(f"ab-{p}" for p in (5, 6)),
    *(f"abm-{p}" for p in (1, 2, 4, 5, 6)),
    *("deis-1", "deis-2", "deis-3", "plms", "res-2m", "res-3m"),
    *(f"ipndm-{p}" for p in (1, 2, 3, 4)),
    *(f"unip-{p}" for p in (1, 2, 3, 4, 5, 6)),
    *("unipc-5", "unipc-6"),
    *(f"{kind}-{p}" for kind in ("tab", "rhoab") for p in (1, 2, 3, 4) if (kind, p) != ("tab", 3)),
}
"""Members of the multistep families that test_multistep proves; the others stand for them elsewhere."""

STUDENTS = {"consistency", "lcm", "scm", "tcd"}
"""Samplers of networks that jump: of others they are no approximation. tests/solvers/test_students.py has them."""

POLICY = {"cps", "dance-sde", "flow-sde"}
"""Steps of training with rewards, with the noise that their codes have. tests/solvers/test_policy.py has them."""

NAMES = [name for name in ds.solvers.names() if name not in POINTS]


def _kinds() -> list[str]:
    """Of each (class, noise or not, calls), what tells runs apart for whatever drives them, the longest history."""
    kinds: dict[object, tuple[int, str]] = {}
    for name in ds.solvers.names():
        plan = ds.plan("vp", name, steps=12)
        kind = type(ds.solvers.named(name)), plan.stochastic, plan.nfe
        kinds[kind] = max(kinds.get(kind, (0, "")), (plan.history, name))
    return [name for _, name in kinds.values()]


KINDS = _kinds()
"""A solver of each kind: enough for tests of what drives it."""
