"""Every scheduler class of diffusers is the name of a solver here, or an error says what it is for."""

import pytest

import diffsolve as ds
from diffsolve import grids
from diffsolve.integrations.diffusers_meaning import REFUSED
from diffsolve.solvers.aliases import PURPOSES


@pytest.fixture(scope="module")
def classes(df):
    from diffusers import schedulers

    found = {name: getattr(schedulers, name, None) for name in dir(schedulers) if name.endswith("Scheduler")}
    return {name: kind for name, kind in found.items() if isinstance(kind, type)}


def test_each_name_resolves_or_is_refused(classes):
    known, refused = {}, {}
    for name in classes:
        try:
            solver, grid = ds.solvers.resolve(name)
        except ValueError as error:
            refused[name] = str(error)
            continue
        known[name] = solver
        if grid is not None:
            grids.named(grid)
    for name, message in refused.items():
        assert f"solver={name!r} is n" in message  # not offered, or no solver
        assert "the nearest that is: " in message or "it is for " in message, name
    assert set(PURPOSES) <= set(refused), "a purpose is only for what no solver stands for"
    assert set(refused) - set(PURPOSES) == {
        "DPMSolverSinglestepScheduler", "LTXEulerAncestralRFScheduler", "UnCLIPScheduler",
    }  # fmt: skip
    assert len(known) >= 34
    for solver in known.values():
        assert ds.plan("edm", solver, steps=3).nfe >= 3


def test_what_is_refused_exists(classes):
    assert set(REFUSED) <= set(classes)


@pytest.mark.parametrize(("name", "says"), [
    ("AmusedScheduler", "solver='AmusedScheduler' is no solver here: it is for tokens, which have no noise levels"),
    ("ddiminversescheduler", "it is for runs from the data to the noise: ds.encode, with any solver"),
    ("UnCLIPScheduler", "is not offered; the nearest that is: 'ddpm'"),
])  # fmt: skip
def test_what_it_says(name, says):
    with pytest.raises(ValueError, match=says):
        ds.plan("vp", name, steps=3)


def test_the_scheduler_says_the_same(df):
    from diffsolve.integrations.diffusers import Scheduler

    for kind, says in (
        (df.VQDiffusionScheduler(num_vec_classes=8), "got VQDiffusionScheduler, which is for tokens"),
        (df.ScoreSdeVeScheduler(), "got ScoreSdeVeScheduler, of which the path is 've'"),
        (df.DDIMInverseScheduler(), "which is for runs from the data to the noise: ds.encode"),
    ):
        with pytest.raises(ValueError, match=says):
            Scheduler(kind)
