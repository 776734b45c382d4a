"""What every scheduler of diffusers promises a pipeline, for some solvers of each kind and for each prediction.

The properties are those that diffusers asks of its own schedulers: shapes and dtypes, one result however it is asked
for, and a configuration that can be changed, saved and read back.
"""

import math

import pytest
import torch

import diffsolve as ds

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning:diffusers"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]

SOLVERS = ["ddim", "dpmpp-2m", "unipc-3", "heun", "plms", "rk4", "ddim(eta=1)", "dpmpp-2s-ancestral"]
PREDICTIONS = {
    "noise": ("DDIMScheduler", {"prediction_type": "epsilon", "clip_sample": False}),
    "clipped": ("DDIMScheduler", {"prediction_type": "sample", "clip_sample": True}),
    "v": ("DPMSolverMultistepScheduler", {"prediction_type": "v_prediction"}),
    "flow": ("FlowMatchEulerDiscreteScheduler", {"shift": 2.0}),
}
X = ds.Key(0).normal((2, 3, 4, 4)) * 0.3
cases = pytest.mark.parametrize(
    ("solver", "prediction"), [(solver, prediction) for solver in SOLVERS for prediction in PREDICTIONS]
)


@pytest.fixture(scope="module")
def make(df):
    from diffsolve.integrations.diffusers import Scheduler

    def make(solver, prediction, **options):
        host, given = PREDICTIONS[prediction]
        return Scheduler(getattr(df, host)(**{**given, **options}), solver, seed=3)

    return make


def net(x, t):
    """Some network, told the time."""
    return 0.5 * x + 0.1 * torch.sin(torch.as_tensor(t).float() / 100).to(x.dtype)


def run(scheduler, x=X, steps=5, **options):
    scheduler.set_timesteps(steps)
    for t in scheduler.timesteps:
        x = scheduler.step(net(scheduler.scale_model_input(x, t), t), t, x, **options).prev_sample
    return x


@cases
def test_a_step_keeps_shape_and_dtype(make, solver, prediction):
    for dtype in (torch.float32, torch.float64, torch.float16):
        scheduler, x = make(solver, prediction), X.to(dtype)
        scheduler.set_timesteps(5)
        for t in scheduler.timesteps:
            assert scheduler.scale_model_input(x, t).dtype == dtype
            out = scheduler.step(net(x, t), t, x)
            x = out.prev_sample
            assert x.shape == X.shape
            assert x.dtype == dtype
            assert out.pred_original_sample.shape == X.shape
            assert out.pred_original_sample.dtype == dtype
        assert x.isfinite().all()


@cases
def test_one_result_as_a_tuple_or_by_name_and_every_time(make, solver, prediction):
    named = run(make(solver, prediction))
    scheduler = make(solver, prediction)
    for _ in range(2):
        scheduler.set_timesteps(5)
        x, seen = X, []
        for t in scheduler.timesteps:
            before = x.clone()
            result = scheduler.step(net(x, t), t, x, return_dict=False)
            assert isinstance(result, tuple)
            assert torch.equal(x, before)  # what a pipeline holds is not written to
            x = result[0]
            seen.append(t)
        assert torch.equal(x, named)
        assert len(seen) == len(scheduler.timesteps)


@cases
def test_the_timesteps_fall_and_are_as_many_as_the_calls(make, solver, prediction):
    scheduler = make(solver, prediction)
    for steps in (1, 2, 12):
        scheduler.set_timesteps(steps)
        assert scheduler.num_inference_steps == steps
        assert len(scheduler.sigmas) == len(scheduler.timesteps) + 1
        assert bool((scheduler.timesteps.diff() <= 0).all())
        assert bool((scheduler.sigmas.diff() <= 0).all())
        assert float(scheduler.sigmas[-1]) == 0
        assert float(scheduler.timesteps.max()) <= len(scheduler)
        assert len(scheduler.timesteps) >= steps


@cases
def test_a_changed_configuration_is_used_and_saved(make, solver, prediction, tmp_path):
    changes = {"shift": 5.0} if prediction == "flow" else {"beta_end": 0.03, "beta_schedule": "scaled_linear"}
    scheduler = make(solver, prediction, **changes)
    wanted = run(scheduler)
    assert not torch.equal(wanted, run(make(solver, prediction)))
    scheduler.save_config(tmp_path)
    kind = type(scheduler)
    for other in (
        kind.from_pretrained(tmp_path),
        kind.from_config(scheduler.config),
        kind.from_config(make(solver, prediction).config, **changes),
    ):
        assert torch.equal(run(other), wanted)
        assert all(other.config[name] == value for name, value in changes.items())


@cases
def test_noise_is_added_at_the_levels_of_the_steps(make, solver, prediction):
    """And a run begun from noised data is the rest of the run."""
    scheduler, noise = make(solver, prediction), ds.Key(1).normal(X.shape)
    scheduler.set_timesteps(8)
    first = 3 * scheduler.order
    if math.isinf(float(scheduler.sigmas[0])):
        first = max(first, 1)
    t = scheduler.timesteps[first : first + 1]
    noisy = scheduler.add_noise(X, noise, t)
    assert torch.equal(noisy, scheduler.scale_noise(X, t, noise))
    clock = float(scheduler._plan.clock[first])
    alpha, sigma = (float(weight(clock)) for weight in (scheduler.model.path.alpha, scheduler.model.path.sigma))
    torch.testing.assert_close(noisy, alpha * X + sigma * noise)
    both = scheduler.add_noise(X, noise, scheduler.timesteps[[first, first]])
    torch.testing.assert_close(both, noisy)
    results = []
    for said in (True, False):
        scheduler.set_timesteps(8)
        if said:
            scheduler.set_begin_index(first)
        x = noisy
        for t in scheduler.timesteps[first:]:
            x = scheduler.step(net(x, t), t, x).prev_sample
        results.append(x)
    assert torch.equal(*results)
    assert scheduler.step_index == len(scheduler.timesteps)


@cases
def test_noise_comes_from_the_generator_alone(df, make, solver, prediction):
    scheduler = type(make(solver, prediction))(make(solver, prediction), solver)
    state = torch.get_rng_state()
    a, b, c = (run(scheduler, generator=torch.Generator().manual_seed(seed)) for seed in (0, 0, 1))
    assert torch.equal(a, b)
    assert torch.equal(a, c) == (not scheduler._plan.tableau.stochastic)
    assert torch.equal(state, torch.get_rng_state())


@cases
def test_a_step_before_the_timesteps_and_the_state_between_runs(make, solver, prediction):
    scheduler = make(solver, prediction)
    with pytest.raises(ValueError, match="call set_timesteps first"):
        scheduler.step(X, scheduler.timesteps[0], X)
    assert scheduler.step_index is None
    first = run(scheduler)
    run(scheduler, steps=3)
    assert torch.equal(run(scheduler), first)


@cases
def test_thresholds_hold_the_denoised(make, solver, prediction):
    options = {} if prediction == "flow" else {"thresholding": True, "sample_max_value": 1.2}
    scheduler = make(solver, prediction, **options)
    scheduler.set_timesteps(4)
    t = scheduler.timesteps[0]
    out = scheduler.step(20 * net(X, t), t, X).pred_original_sample
    assert (float(out.abs().max()) <= 1) == bool(options)


@pytest.mark.parametrize(
    "host", ["EulerDiscreteScheduler", "LMSDiscreteScheduler", "DDIMScheduler", "FlowMatchEulerDiscreteScheduler"]
)
def test_what_pipelines_ask_of_the_start(df, host):
    """Its size is of the host's type, and arguments of other schedulers' inputs do no harm."""
    from diffsolve.integrations.diffusers import Scheduler

    theirs = getattr(df, host)()
    scheduler = Scheduler(theirs, "ddim")
    scheduler.set_timesteps(4)
    own = getattr(theirs, "init_noise_sigma", 1.0)  # a flow's scheduler has none
    assert isinstance(scheduler.init_noise_sigma, type(own))
    assert float(scheduler.init_noise_sigma) == 1.0
    t = scheduler.timesteps[0]
    assert torch.equal(scheduler.scale_model_input(X, t, generator=torch.Generator()), X)
