"""A Scheduler saved and loaded as every scheduler of diffusers is, and the rest of what pipelines read from one."""

import copy
import json
import pickle

import pytest
import torch

import diffsolve as ds

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning:diffusers"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
]

X, OUT = ds.Key(0).normal((2, 3, 4, 4)), ds.Key(1).normal((2, 3, 4, 4))


@pytest.fixture(scope="module")
def kind(df):
    from diffsolve.integrations.diffusers import Scheduler

    return Scheduler


def run(scheduler, steps=4):
    scheduler.set_timesteps(steps)
    x = X
    for t in scheduler.timesteps:
        x = scheduler.step(torch.sin(x + OUT), t, x, return_dict=False)[0]
    return x


@pytest.mark.parametrize(
    ("host", "options"),
    [
        ("DDIMScheduler", {"prediction_type": "v_prediction", "timestep_spacing": "trailing"}),
        ("DPMSolverMultistepScheduler", {"use_karras_sigmas": True, "beta_schedule": "squaredcos_cap_v2"}),
        ("DDPMScheduler", {"trained_betas": [0.1, 0.2, 0.3, 0.4, 0.5], "num_train_timesteps": 5}),
        ("FlowMatchEulerDiscreteScheduler", {"shift": 3.0}),
        ("EDMEulerScheduler", {"sigma_max": 40.0}),
        ("CogVideoXDDIMScheduler", {"rescale_betas_zero_snr": True, "prediction_type": "v_prediction"}),
    ],
)
def test_a_saved_scheduler_is_the_same(df, kind, tmp_path, host, options):
    made = {"solver": "ddim(eta=0.5)", "seed": [3, 4], "guidance": 2.0}
    scheduler = kind(getattr(df, host)(**options), **made)
    scheduler.save_pretrained(tmp_path)
    loaded = kind.from_pretrained(tmp_path)
    assert type(loaded.scheduler) is getattr(df, host)
    saved = [{k: v for k, v in s.config.items() if k != "_use_default_values"} for s in (loaded, scheduler)]
    assert saved[0] == saved[1]
    assert (loaded.solver, loaded.seed, loaded.guidance) == (scheduler.solver, [3, 4], 2.0)
    assert torch.equal(run(loaded), run(scheduler))
    again = kind.from_config(loaded.config, solver="dpmpp-2m", seed=7)
    assert (again.solver, again.seed) == (ds.solvers.named("dpmpp-2m"), 7)
    # And the inner class reads it as its own.
    inner = getattr(df, host).from_pretrained(tmp_path)
    assert all(inner.config[name] == value for name, value in options.items())


def test_grids_are_saved_and_objects_are_not(df, kind, tmp_path):
    host = df.DDIMScheduler()
    for grid in ("karras(rho=5)", [999.0, 500.0, 20.0, -1.0]):
        kind(host, "dpmpp-2m", grid=grid).save_config(tmp_path)
        assert kind.from_pretrained(tmp_path).grid == grid
    assert torch.equal(run(kind.from_pretrained(tmp_path)), run(kind(host, "dpmpp-2m", grid=grid)))
    for given, words in [
        ({"solver": ds.solvers.DDIM()}, r"solver=DDIM\(\)"),
        ({"grid": ds.grids.named("karras")}, "grid=Karras|grid=.*"),
        ({"seed": ds.Key(3)}, "seed=Key"),
    ]:
        with pytest.raises(
            ValueError, match=f"solver, grid and seed must be names or numbers to be saved, got {words}"
        ):
            kind(host, **given).save_pretrained(tmp_path)


def test_a_saved_pipeline(df, kind, tmp_path):
    torch.manual_seed(0)
    net = df.UNet2DModel(
        sample_size=8, in_channels=1, out_channels=1, block_out_channels=(8, 16), layers_per_block=1,
        norm_num_groups=4, down_block_types=("DownBlock2D", "DownBlock2D"), up_block_types=("UpBlock2D", "UpBlock2D"),
    )  # fmt: skip
    pipe = df.DDPMPipeline(net, kind(df.DDIMScheduler(timestep_spacing="trailing"), "unipc-3"))
    pipe.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "model_index.json").read_text())["scheduler"][1] == "Scheduler"
    images = []
    for p in (pipe, df.DDPMPipeline.from_pretrained(tmp_path), pipe):
        p.set_progress_bar_config(disable=True)
        g = torch.Generator().manual_seed(0)
        images.append(p(generator=g, num_inference_steps=4, output_type="pt").images)
    assert torch.equal(images[2], images[0])
    torch.testing.assert_close(images[1], images[0], rtol=0, atol=1e-4)  # weights lie elsewhere in memory
    assert type(p.scheduler) is kind


def test_from_another_scheduler_s_configuration_and_back(df, kind):
    host = df.DPMSolverMultistepScheduler(prediction_type="v_prediction", beta_end=0.03)
    scheduler = kind.from_config(host.config, solver="heun")
    assert type(scheduler.scheduler) is type(host)
    assert scheduler.model.predicts == "v"
    assert scheduler.config.beta_end == 0.03
    assert scheduler.compatibles == host.compatibles or {*scheduler.compatibles} == {*host.compatibles}
    for other in scheduler.compatibles:
        theirs = other.from_config(scheduler.config)
        if "beta_end" in theirs.config:
            assert theirs.config.beta_end == 0.03
        if not other.__name__.startswith("EDM"):  # of v it is refused
            back = kind.from_config(theirs.config)
            assert type(back.scheduler) is other
            assert back.solver == scheduler.solver
            back, unused = kind.from_config(theirs.config, return_unused_kwargs=True, nonsense=3, beta_end=0.04)
            assert unused["nonsense"] == 3
            assert back.config.beta_end == 0.04
    for name in ("DDIM", "DDPM", "EulerDiscrete", "FlowMatchEulerDiscrete", "UniPCMultistep", "EDMEuler"):
        inner = getattr(df, f"{name}Scheduler")
        assert type(kind.from_config(inner().config).scheduler) is inner
    with pytest.raises(ValueError, match="_class_name of config must be that of a scheduler of diffusers, got 'None2'"):
        kind.from_config({"_class_name": "None2"})
    with pytest.raises(TypeError, match="config must be a configuration"):
        kind.from_config("no-such-place")


def test_copies_and_pickles(df, kind):
    scheduler = kind(df.DDIMScheduler(), "unipc-3")
    wanted = run(scheduler)
    for other in (copy.copy(scheduler), copy.deepcopy(scheduler), pickle.loads(pickle.dumps(scheduler))):
        assert torch.equal(other.timesteps, scheduler.timesteps)
        assert torch.equal(run(other), wanted)


def test_the_face_of_a_table(df, kind):
    host = df.DDIMScheduler()
    scheduler = kind(df.DDIMScheduler(), "ddim")
    assert torch.equal(scheduler.timesteps, host.timesteps)
    assert torch.equal(scheduler.alphas_cumprod, host.alphas_cumprod)
    assert float(scheduler.final_alpha_cumprod) == 1
    assert not hasattr(scheduler, "set_shift")
    assert len(scheduler) == 1000
    assert isinstance(scheduler, df.SchedulerMixin)
    t = torch.tensor([3, 500])
    torch.testing.assert_close(
        scheduler.get_velocity(X, OUT, t), df.DDPMScheduler().get_velocity(X, OUT, t)
    ) if hasattr(host, "get_velocity") else None
    torch.testing.assert_close(scheduler.add_noise(X, OUT, t), host.add_noise(X, OUT, t))
    torch.testing.assert_close(
        scheduler.sigmas, ((1 - host.alphas_cumprod) / host.alphas_cumprod).sqrt().flip(0), rtol=1e-3, atol=1e-4
    )
    with pytest.warns(FutureWarning, match="beta_start"):
        assert scheduler.beta_start == host.config.beta_start
    with pytest.raises(AttributeError, match="no_such_thing"):
        _ = scheduler.no_such_thing
    assert scheduler.begin_index is scheduler.step_index is scheduler.num_inference_steps is None
    # What pipelines say before they set the timesteps.
    scheduler.set_begin_index(0)
    assert scheduler.scale_model_input(X, 0.0) is X
    with pytest.raises(ValueError, match="call set_timesteps first"):
        scheduler.step(OUT, 0, X)


@pytest.mark.parametrize("solver", ["ddim", "heun", "dpm-2s"])
@pytest.mark.parametrize("host", ["EulerDiscreteScheduler", "DPMSolverMultistepScheduler", "EDMEulerScheduler",
                                  "FlowMatchEulerDiscreteScheduler", "HeunDiscreteScheduler"])  # fmt: skip
def test_sigmas_and_indices_are_the_host_s(df, kind, host, solver):
    theirs = getattr(df, host)()
    scheduler = kind(getattr(df, host)(), solver)
    for s in (theirs, scheduler):
        s.set_timesteps(6)
    assert len(scheduler.sigmas) == len(scheduler.timesteps) + 1
    nodes = theirs.sigmas.unique().sort(descending=True).values
    mine = scheduler.sigmas.unique().sort(descending=True).values
    near = (mine[:, None] - nodes).abs().min(0).values
    assert float((near / (nodes + 1e-3)).max()) < 1e-4  # every level of theirs is one of ours
    if solver == "ddim":
        torch.testing.assert_close(mine, nodes, rtol=1e-4, atol=1e-5)
    t = scheduler.timesteps[scheduler.order * 2]
    index = scheduler.index_for_timestep(t)
    assert scheduler.timesteps[index] == t
    assert scheduler._plan.node(index) >= 0 or solver == "dpm-2s"  # whose stages stand elsewhere
    by_value = scheduler.index_for_timestep(float(t))
    assert scheduler.timesteps[by_value] == t
    with pytest.raises(ValueError, match="timestep must be one of the scheduler's timesteps"):
        scheduler.index_for_timestep(12345.0)
    scheduler.set_begin_index(2)
    assert scheduler.begin_index == 2
    scheduler.set_timesteps(6)
    assert scheduler.begin_index is None
    if solver == "ddim" and host != "EDMEulerScheduler":
        assert torch.equal(scheduler.scale_model_input(X, t), X)


def test_the_input_scale_of_edm_follows_the_timestep(df, kind):
    theirs, scheduler = df.EDMEulerScheduler(), kind(df.EDMEulerScheduler(), "ddim")
    theirs.set_timesteps(5)
    scheduler.set_timesteps(5)
    for i in (3, 1):  # in no order, and nothing was begun
        theirs._step_index = None
        wanted = theirs.scale_model_input(X, theirs.timesteps[i])
        torch.testing.assert_close(scheduler.scale_model_input(X, scheduler.timesteps[i]), wanted, rtol=1e-5, atol=1e-6)
    for at in (None, scheduler.timesteps[0]):
        torch.testing.assert_close(scheduler.scale_model_input(X, at), X / (80**2 + 0.25) ** 0.5)


def test_a_shift_set_later(df, kind):
    theirs, scheduler = df.FlowMatchEulerDiscreteScheduler(), kind(df.FlowMatchEulerDiscreteScheduler(), "euler")
    for s in (theirs, scheduler):
        s.set_shift(5.0)
        s.set_timesteps(4)
    assert scheduler.shift == 5.0
    assert torch.equal(scheduler.timesteps, theirs.timesteps)


def test_what_a_step_returns(df, kind):
    theirs = df.DDIMScheduler(clip_sample=False)
    theirs.set_timesteps(5)
    for solver in ("ddim", "unipc-3", "heun"):
        scheduler = kind(df.DDIMScheduler(clip_sample=False), solver)
        scheduler.set_timesteps(5)
        t = scheduler.timesteps[0]
        pair = scheduler.step(OUT, t, X, return_dict=False)
        scheduler.set_timesteps(5)
        named = scheduler.step(OUT, t, X)
        assert torch.equal(pair[0], named.prev_sample)
        assert torch.equal(pair[1], named.pred_original_sample)
        wanted = theirs.step(OUT, theirs.timesteps[0], X)
        torch.testing.assert_close(named.pred_original_sample, wanted.pred_original_sample, rtol=1e-4, atol=1e-4)
        if solver == "ddim":
            torch.testing.assert_close(named.prev_sample, wanted.prev_sample, rtol=1e-4, atol=1e-4)


def test_the_eta_of_a_step(df, kind):
    """DDIM's, where the solver is DDIM without one of its own; pipelines pass 0 when nobody asked."""

    def made(solver, **options):
        scheduler = kind(df.DDIMScheduler(clip_sample=False), solver, seed=5)
        scheduler.set_timesteps(5)
        x = X
        for t in scheduler.timesteps:
            x = scheduler.step(torch.sin(x + OUT), t, x, **options).prev_sample
        return x

    assert torch.equal(made("ddim", eta=0.5), made("ddim(eta=0.5)"))
    assert torch.equal(made("ddim(eta=0.5)", eta=0.0), made("ddim(eta=0.5)"))
    assert torch.equal(made("ddim(eta=0.5)", eta=0.7), made("ddim(eta=0.5)"))
    assert not torch.equal(made("ddim", eta=0.5), made("ddim"))
    with pytest.raises(ValueError, match="eta must be 0 for a solver without that option"):
        made("dpmpp-2m", eta=0.5)


def test_ddim_s_own_pipeline_with_an_eta(df, kind):
    torch.manual_seed(0)
    net = df.UNet2DModel(
        sample_size=8, in_channels=1, out_channels=1, block_out_channels=(8, 16), layers_per_block=1,
        norm_num_groups=4, down_block_types=("DownBlock2D", "DownBlock2D"), up_block_types=("UpBlock2D", "UpBlock2D"),
    )  # fmt: skip
    pipe = df.DDIMPipeline(net, df.DDIMScheduler())
    pipe.set_progress_bar_config(disable=True)
    images = []
    for scheduler in (pipe.scheduler, kind(df.DDIMScheduler(), "ddim")):
        pipe.scheduler = scheduler
        for clipped in (None, True):
            g = torch.Generator().manual_seed(0)
            images.append(pipe(generator=g, num_inference_steps=6, output_type="pt", use_clipped_model_output=clipped))
        pipe(generator=g, num_inference_steps=3, eta=1.0)
    plain, clipped = images[0].images, images[1].images
    torch.testing.assert_close(images[2].images, plain, rtol=0, atol=1e-5)
    torch.testing.assert_close(images[3].images, clipped, rtol=0, atol=1e-5)
    assert float((plain - clipped).abs().max()) > 1e-3
