"""Where a run inside a diffusers pipeline may begin."""

import pytest
import torch

import diffsolve as ds

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:diffusers")


@pytest.fixture
def scheduler(df):
    """Heun, two calls a step: calls 0, 2, 4 .. stand at nodes 0, 1, 2 .., the others between nodes."""
    from diffsolve.integrations.diffusers import Scheduler

    scheduler = Scheduler(df.DDIMScheduler(clip_sample=False), "heun")
    scheduler.set_timesteps(4)
    return scheduler


def test_the_first_call_is_a_beginning_too(scheduler):
    """`set_begin_index(0)`, as pipelines say it for a whole run, changes nothing."""
    x = ds.Key(0).normal((2, 1, 4, 4))

    def run():
        y = x
        for t in scheduler.timesteps:
            y = scheduler.step(torch.tanh(scheduler.scale_model_input(y, t)), t, y, return_dict=False)[0]
        return y

    plain = run()
    scheduler.set_timesteps(4)
    scheduler.set_begin_index(0)
    assert torch.equal(run(), plain)


def test_a_run_may_begin_at_any_call(scheduler):
    """Between nodes too, where a pipeline's strength does not fall on one."""
    plan = scheduler._plan
    calls = len(scheduler.timesteps)
    assert [plan.node(call) for call in range(calls)][:5] == [0, -1, 1, -1, 2]
    # Calls 1 and 2 are told the same; the number means the one that begins a step.
    assert [scheduler.index_for_timestep(float(scheduler.timesteps[call])) for call in range(5)] == [0, 2, 2, 4, 4]
    for call in range(calls):
        scheduler.set_begin_index(call)
        assert scheduler.begin_index == call
    for call in (-1, calls, 0.5):
        with pytest.raises(ValueError, match=f"begin_index.*{call}"):
            scheduler.set_begin_index(call)
