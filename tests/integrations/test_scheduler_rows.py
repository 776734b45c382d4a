"""Where a pipeline's run begins, what its network is told, and that it ends on the data.

The network is exact for data at one point, so every run must end there.
"""

import copy
import math
import threading

import numpy as np
import pytest
import torch

import diffsolve as ds

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:diffusers")

POINT, NOISE = torch.tensor([[0.7, -1.3]]), torch.tensor([[0.3, 1.1]])
SCALED = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}
FLOW = {"use_flow_sigmas": True, "prediction_type": "flow_prediction"}
SOLVERS = [
    "ddim", "euler", "dpmpp-2m", "dpmpp-3m(lower_final=15)", "unipc-3", "abm-3", "heun", "heun(frame='noise')", "rk4",
    "dpm-2s", "dpmpp-2s", "res-3s", "plms", "pndm", "ipndm-4", "restart", "auto", "designed", "ddpm", "sa-3",
    "dpmpp-2s-ancestral", "reversible-heun",
]  # fmt: skip
TABLE = ds.paths.Discrete.scaled_linear()


@pytest.fixture(scope="module")
def make(df):
    from diffsolve.integrations.diffusers import Scheduler

    def make(host="DDIMScheduler", solver="ddim", options=None, **given):
        kind = getattr(df, host)
        table = {} if host.startswith(("FlowMatch", "EDM")) or options is FLOW else SCALED
        clip = {"clip_sample": False} if host.startswith("DD") else {}
        return Scheduler(kind(**{**table, **clip, **(options or {})}), solver, seed=0, **given)

    return make


def network(scheduler):
    """Exact for the data, told what the pipeline tells it."""
    if scheduler.model.predicts == "velocity":
        count = scheduler.config.num_train_timesteps

        def velocity(x, t):
            sigma = float(t) / count
            return ((x.double() - POINT) / sigma).float() if sigma else NOISE - POINT

        return velocity

    def noise(x, t):
        at = scheduler.model.path.at(float(t))
        return ((x.double() - at.alpha * POINT) / at.sigma).float()

    return noise


def run(scheduler, timesteps, net=None, **options):
    net = network(scheduler) if net is None else net
    x = scheduler.add_noise(POINT, NOISE, timesteps[:1])
    for t in timesteps:
        x = scheduler.step(net(x, t), t, x, **options).prev_sample
    return x


def is_point(x):
    torch.testing.assert_close(x, POINT, rtol=0, atol=1e-4)


@pytest.mark.parametrize("solver", SOLVERS)
def test_a_slice_of_the_timesteps_begins_where_it_begins(make, solver):
    """With `set_begin_index` or without, from every call that the solver can begin at; all planned calls are made."""
    scheduler = make(solver=solver, options={"timestep_spacing": "linspace"})
    scheduler.set_timesteps(5)
    begun = 0
    for k in range(5):
        first = k * scheduler.order
        for said in (True, False):
            scheduler.set_timesteps(5)
            if said:
                scheduler.set_begin_index(first)
            ts = scheduler.timesteps[first:]
            is_point(run(scheduler, ts))
            assert scheduler._mine.run.ex.done
            assert scheduler.step_index == len(scheduler.timesteps)
            # What the run was begun on is what the pipeline noised the image to.
            assert scheduler._mine.run.takes[0]
            begun += 1
    assert begun == 10


@pytest.mark.parametrize("solver", ["heun(frame='noise')", "heun", "rk4", "dpm-2s", "dpmpp-2s", "pndm", "unipc-3"])
def test_a_slice_of_a_flow_s_timesteps(make, solver):
    """At alpha = 0 some take a first step of one call, so that pairs of calls are not steps."""
    scheduler = make("FlowMatchEulerDiscreteScheduler", solver, {"shift": 3.0})
    for first in range(9):
        scheduler.set_timesteps(4)
        if first >= len(scheduler.timesteps):
            continue
        if scheduler._plan.clock[first] == 0:
            with pytest.raises(ValueError, match=f"begin_index must be a call from which .*, got {first}"):
                scheduler.set_begin_index(first)
        else:
            scheduler.set_begin_index(first)
            is_point(run(scheduler, scheduler.timesteps[first:]))
            assert scheduler._mine.run.ex.done
    zero_snr = make(solver=solver, options={"rescale_betas_zero_snr": True, "prediction_type": "v_prediction",
                                            "timestep_spacing": "trailing"})  # fmt: skip
    zero_snr.set_timesteps(4)
    first = 2 * zero_snr.order
    zero_snr.set_begin_index(first)

    def v(x, t):
        at = zero_snr.model.path.at(float(t))
        noise = (x.double() - at.alpha * POINT) / at.sigma
        return (at.alpha * noise - at.sigma * POINT).float()

    is_point(run(zero_snr, zero_snr.timesteps[first:], v))


def test_the_rest_of_a_run_is_the_run_on_the_rest_of_the_grid(make):
    scheduler = make(solver="unipc-3")
    scheduler.set_timesteps(10)
    x = scheduler.add_noise(POINT, NOISE, scheduler.timesteps[4:5])
    net = lambda x, t: torch.sin(3 * x) + t.float() / 1000  # noqa: E731
    y = x
    for t in scheduler.timesteps[4:]:
        y = scheduler.step(net(y, t), t, y)[0]
    model = ds.adapt(lambda x, t: torch.sin(3 * x) + t[:, None] / 1000, scheduler.model.path, "noise")
    assert torch.equal(y, ds.sample(model, noise=x, solver="unipc-3", grid=scheduler._plan.times[4:]))


def test_timesteps_as_numbers_and_between_rows(make):
    """A loop by hand gives numbers, skips rows, or begins at a time of its own."""
    for solver in ("ddim", "dpmpp-3m", "heun"):
        scheduler = make(solver=solver)
        scheduler.set_timesteps(10)
        net = network(scheduler)
        for times in (scheduler.timesteps.tolist(), [850, *scheduler.timesteps[-2:].tolist()], [333.5]):
            x = scheduler.add_noise(POINT, NOISE, torch.tensor(times[:1]))
            for t in times:
                x = scheduler.step(net(x, t), t, x).prev_sample
            if len(times) > 3:
                is_point(x)
        for bad in (-1, 1000, math.nan):
            with pytest.raises(ValueError, match="timestep must be on the network's clock"):
                scheduler.step(x, bad, x)
    for host, values in (("EDMEulerScheduler", (9.0, -99.0, math.nan)), ("FlowMatchEulerDiscreteScheduler", (0, 1001))):
        scheduler = make(host)
        scheduler.set_timesteps(10)
        for bad in values:
            with pytest.raises(ValueError, match="timestep must be on the network's clock, as"):
                scheduler.step(NOISE, bad, NOISE)
    scheduler = make()
    scheduler.set_timesteps(10)
    x = scheduler.add_noise(POINT, NOISE, torch.tensor([333.5]))
    wanted = scheduler.model.path.at([333.5, 300.0])
    mine = scheduler.step(network(scheduler)(x, 333.5), 333.5, x).prev_sample
    torch.testing.assert_close(mine, (wanted.alpha[1] * POINT + wanted.sigma[1] * NOISE).float())


ENDING = [
    (f"{name}Scheduler", options)
    for name in ("DEISMultistep", "DPMSolverMultistep", "DPMSolverSinglestep", "UniPCMultistep", "SASolver")
    for options in ({}, {"final_sigmas_type": "sigma_min"}, {"use_karras_sigmas": True}, FLOW)
    if not (name.startswith(("DEIS", "SAS")) and "final_sigmas_type" in options)
] + [
    (f"{name}Scheduler", options)
    for name in ("KDPM2Discrete", "KDPM2AncestralDiscrete", "HeunDiscrete", "DPMSolverSDE", "EulerDiscrete",
                 "LMSDiscrete", "EulerAncestralDiscrete", "DDIM", "DDIMParallel", "DDPM", "PNDM")
    for options in ({}, {"use_karras_sigmas": True})
    if not options or (name[:2] not in ("DD", "PN") and "EulerA" not in name)
]  # fmt: skip


@pytest.mark.product({"host, options": ENDING, "solver": ["ddim", "dpmpp-2m", "heun"]})
def test_every_host_ends_on_the_data(df, make, host, options, solver):
    """Whatever its last sigma is, and where it names a node twice."""
    scheduler = make(host, solver, options)
    theirs = getattr(df, host).from_config(scheduler.scheduler.config)
    for steps in (1, 6):
        scheduler.set_timesteps(steps)
        if host != "PNDMScheduler":
            theirs.set_timesteps(steps)
            assert {*scheduler.timesteps.tolist()} <= {*theirs.timesteps.tolist()} or solver == "heun"
            if solver == "ddim" and scheduler.scheduler.order == 1:
                assert torch.equal(scheduler.timesteps, theirs.timesteps)
                assert scheduler.timesteps.dtype == theirs.timesteps.dtype
        model, plan = scheduler.model, scheduler._plan
        clock = iter(plan.clock)

        def net(x, t, model=model, clock=clock):  # of the exact time: what is told may be rounded
            at = model.path.at(float(next(clock)))
            noise = (x.double() - at.alpha * POINT) / at.sigma
            return (noise - POINT if model.predicts == "velocity" else noise).float()

        x = scheduler.model.path.at(plan.times[:1])
        x = (x.alpha * POINT + x.sigma * NOISE).float()
        for t in scheduler.timesteps:
            x = scheduler.step(net(x, t) if len(plan.clock) else x, t, x).prev_sample
        if not any(value == 0 for value in plan.tableau.calls[:, 2]):  # a flow's may be called on the data
            is_point(x)


def test_a_shifted_table_is_the_host_s(df, make):
    options = {"rescale_betas_zero_snr": True, "prediction_type": "v_prediction", "snr_shift_scale": 3.0}
    host = df.CogVideoXDDIMScheduler(**options)
    scheduler = make("CogVideoXDDIMScheduler", options={**options, "beta_schedule": "scaled_linear",
                                                        "beta_end": 0.0120, "clip_sample": True})  # fmt: skip
    for t in (0, 1, 250, 500, 998, 999):
        t = torch.tensor([t])
        wanted = host.add_noise(POINT, NOISE, t)
        torch.testing.assert_close(scheduler.add_noise(POINT, NOISE, t), wanted, rtol=1e-5, atol=1e-5)
        wanted = host.get_velocity(POINT, NOISE, t)
        torch.testing.assert_close(scheduler.get_velocity(POINT, NOISE, t), wanted)
    torch.testing.assert_close(scheduler.alphas_cumprod, host.alphas_cumprod)


def test_what_a_flow_s_network_is_told(df, make):
    """The host's timesteps, however it counts and whatever a pipeline gives."""
    sigmas = [1.0, 0.75, 0.5, 0.25]
    for count in (1, 100, 1000):
        scheduler = make("FlowMatchEulerDiscreteScheduler", "heun", {"num_train_timesteps": count})
        scheduler.set_timesteps(sigmas=sigmas)
        told = [count * s for s in (1, 0.75, 0.75, 0.5, 0.5, 0.25, 0.25, 0)]
        assert scheduler.timesteps.tolist() == pytest.approx(told)
        t = torch.tensor([0.25 * count])
        torch.testing.assert_close(scheduler.scale_noise(POINT, t, NOISE), 0.75 * POINT + 0.25 * NOISE)
    own = {"timesteps": [1000.0, 750.0, 500.0, 250.0]}
    host = df.FlowMatchEulerDiscreteScheduler(shift=3.0)
    host.set_timesteps(**own)
    scheduler = make("FlowMatchEulerDiscreteScheduler", "euler", {"shift": 3.0})
    scheduler.set_timesteps(**own)
    assert torch.equal(scheduler.timesteps, host.timesteps)
    torch.testing.assert_close(scheduler.sigmas, host.sigmas)
    t = scheduler.timesteps[1:2]
    torch.testing.assert_close(scheduler.add_noise(POINT, NOISE, t), 0.1 * POINT + 0.9 * NOISE)
    host = df.FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True)
    host.set_timesteps(timesteps=own["timesteps"], sigmas=sigmas, mu=0.9)
    scheduler = make("FlowMatchEulerDiscreteScheduler", "euler", {"use_dynamic_shifting": True})
    scheduler.set_timesteps(timesteps=own["timesteps"], sigmas=sigmas, mu=0.9)
    assert torch.equal(scheduler.timesteps, host.timesteps)


def test_a_flow_counted_from_the_noise(df, make):
    """Mochi's sigmas are the weight of the data, and its network's velocity leads there."""
    scheduler = make("FlowMatchEulerDiscreteScheduler", "dpmpp-2m", {"invert_sigmas": True})
    host = df.FlowMatchEulerDiscreteScheduler(invert_sigmas=True)
    for s in (scheduler, host):
        s.set_timesteps(sigmas=[1.0, 0.7, 0.4, 0.2])
    torch.testing.assert_close(scheduler.timesteps, host.timesteps)
    torch.testing.assert_close(scheduler.sigmas, host.sigmas)
    x = y = NOISE
    for t in scheduler.timesteps:
        x = scheduler.step(POINT - NOISE, t, x)[0]
        y = host.step(POINT - NOISE, t, y)[0]
    is_point(x)
    is_point(y)


def test_the_next_run_begins_anew(make):
    """Without `set_timesteps`, after the last call, after a loop that broke off, and with a begin index."""
    for solver in ("unipc-3", "heun", "pndm"):
        scheduler = make(solver=solver)
        scheduler.set_timesteps(8)
        net = lambda x, t: torch.sin(3 * x) + t / 1000  # noqa: E731
        first = run(scheduler, scheduler.timesteps, net)
        assert torch.equal(run(scheduler, scheduler.timesteps, net), first)
        run(scheduler, scheduler.timesteps[:3], net)
        assert torch.equal(run(scheduler, scheduler.timesteps, net), first)
        begin = 2 * scheduler.order
        scheduler.set_begin_index(begin)
        part = run(scheduler, scheduler.timesteps[begin:], net)
        run(scheduler, scheduler.timesteps[begin : begin + 3], net)
        assert torch.equal(run(scheduler, scheduler.timesteps[begin:], net), part)


def test_threads_and_copies_have_their_own_run(make):
    scheduler = make(solver="unipc-3")
    net = lambda x, t: torch.sin(3 * x) + t / 1000  # noqa: E731

    def wanted(steps):
        alone = make(solver="unipc-3")
        alone.set_timesteps(steps)
        return run(alone, alone.timesteps, net)

    found, gate = {}, threading.Barrier(4)

    def work(steps):
        gate.wait()
        scheduler.set_timesteps(steps)
        gate.wait()
        found[steps] = run(scheduler, scheduler.timesteps, net)

    threads = [threading.Thread(target=work, args=(steps,)) for steps in (5, 6, 7, 8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(torch.equal(found[steps], wanted(steps)) for steps in (5, 6, 7, 8))

    scheduler.set_timesteps(6)
    x = scheduler.add_noise(POINT, NOISE, scheduler.timesteps[:1])
    for t in scheduler.timesteps[:3]:
        x = scheduler.step(net(x, t), t, x)[0]
    other, y = copy.deepcopy(scheduler), x.clone()
    for t in scheduler.timesteps[3:]:
        x = scheduler.step(net(x, t), t, x)[0]
    for t in other.timesteps[3:]:
        y = other.step(net(y, t), t, y)[0]
    torch.testing.assert_close(y, x)
    # A thread that set nothing has what was set last.
    worker = threading.Thread(target=lambda: found.update(late=run(scheduler, scheduler.timesteps, net)))
    worker.start()
    worker.join()
    assert torch.equal(found["late"], wanted(6))


def test_what_makes_no_schedule(df, make):
    flow = "FlowMatchEulerDiscreteScheduler"
    for scheduler, given, words in [
        (make(), {"num_inference_steps": 0}, "num_inference_steps must be an integer >= 1, got 0"),
        (make(), {"num_inference_steps": 2.5}, "num_inference_steps must be an integer >= 1, got 2.5"),
        (make(), {}, "num_inference_steps must be .*, got None"),
        (make(solver="ddim", grid="karras"), {"num_inference_steps": 0}, "num_inference_steps must be"),
        (make(flow, options={"shift_terminal": 0.1}), {"num_inference_steps": 1}, "sigmas must be finite"),
        (make(flow), {"sigmas": [1.0, 0.5, 0.0]}, "sigmas must be positive"),
        (make(flow), {"sigmas": [1.0, math.nan]}, "sigmas must be a list of finite numbers"),
        (make(flow), {"sigmas": [0.5, 1.0]}, "times must be strictly"),
    ]:
        with pytest.raises(ValueError, match=words):
            scheduler.set_timesteps(**given)
    for options in ({}, FLOW):
        scheduler = make(flow if options is not FLOW else "UniPCMultistepScheduler", "ddim", options)
        listed, array = [], np.array([0.9, 0.5, 0.2])
        for sigmas in (array, array.tolist(), torch.from_numpy(array)):
            scheduler.set_timesteps(sigmas=sigmas)
            listed.append(scheduler.sigmas)
        assert torch.equal(listed[0], listed[1])
        assert torch.equal(listed[0], listed[2])


def test_a_scheduler_of_a_scheduler(make):
    inner = make("DPMSolverMultistepScheduler", "dpmpp-2m")
    outer = type(inner)(inner, "ddim")
    outer.set_timesteps(5)
    inner.set_timesteps(5)
    assert torch.equal(outer.timesteps, inner.timesteps)
    assert outer.scheduler is inner.scheduler


def test_what_a_pipeline_writes_into_the_configuration_is_used(make):
    """Stable Diffusion's corrects an old `steps_offset` when it is made."""
    from diffusers.configuration_utils import FrozenDict

    scheduler = make()
    scheduler._internal_dict = FrozenDict({**scheduler.config, "steps_offset": 1})
    scheduler.set_timesteps(4)
    assert scheduler.timesteps.tolist() == [751, 501, 251, 1]


def test_every_scheduler_of_diffusers_works_or_is_refused_by_name(df, make):
    from diffusers import schedulers

    accepted = []
    for name in sorted(dir(schedulers)):
        kind = getattr(schedulers, name, None)
        if not (isinstance(kind, type) and issubclass(kind, df.SchedulerMixin) and name.endswith("Scheduler")):
            continue
        given = {"mask_token_id": 0} if name == "AmusedScheduler" else {}
        try:
            host = kind(**given)
        except TypeError:  # with arguments of its own, for proteins
            continue
        try:
            scheduler = type(make())(host, "ddim")
        except ValueError as error:
            assert name in str(error)  # noqa: PT017
            continue
        scheduler.set_timesteps(3)
        x = NOISE
        for t in scheduler.timesteps:
            x = scheduler.step(torch.zeros_like(x), t, x)[0]
        assert x.isfinite().all()
        accepted.append(name.removesuffix("Scheduler"))
    assert accepted == [
        "CogVideoXDDIM", "CogVideoXDPM", "DDIMParallel", "DDIM", "DDPMParallel", "DDPM", "DEISMultistep",
        "DPMSolverMultistep", "DPMSolverSDE", "DPMSolverSinglestep", "EDMDPMSolverMultistep", "EDMEuler",
        "EulerAncestralDiscrete", "EulerDiscrete", "FlowMatchEulerDiscrete", "FlowMatchHeunDiscrete", "FlowMatchLCM",
        "HeunDiscrete", "KDPM2AncestralDiscrete", "KDPM2Discrete", "LCM", "LMSDiscrete", "LTXEulerAncestralRF", "PNDM",
        "SASolver", "TCD", "UniPCMultistep",
    ]  # fmt: skip
    with pytest.raises(TypeError, match="scheduler must be a diffusers scheduler, got 3"):
        type(make())(3)


def test_constants_stay_on_the_cpu_under_another_default_device(df, make):
    """`torch.set_default_device("cuda")` moves what is made without a device; "meta" shows it without one."""
    hosts = ("DDIMScheduler", "FlowMatchEulerDiscreteScheduler", "EDMEulerScheduler")
    made = [make(host, "unipc-3") for host in hosts]
    with torch.device("meta"):
        for path in ("ddpm", "vp", "edm", "condot", "rectified", "cosine"):
            model = ds.adapt(lambda x, t: x * t[:, None], path, "v")
            assert ds.sample(model, noise=NOISE, solver="sa-3", steps=4, seed=0).isfinite().all()
        assert ds.paths.Custom(torch.cos, torch.sin, 1.5, 0.0).t_noise == 1.5
        for scheduler in made:
            scheduler.set_timesteps(4, device="cpu")
            x = scheduler.add_noise(POINT, NOISE, scheduler.timesteps[:1])
            for t in scheduler.timesteps:
                x = scheduler.step(0.1 * x, t, scheduler.scale_model_input(x, t))[0]
            assert x.device.type == "cpu"
            both = scheduler.add_noise(POINT.expand(2, 2), NOISE, scheduler.timesteps[1:3])
            assert both.isfinite().all()


def test_a_list_of_sigmas_with_its_end(df, make):
    """Hosts with a table take the end with the list, as published lists have it; flows add it; EDM's are a ramp."""
    steps = [14.615, 6.315, 3.771, 2.181, 1.342, 0.862, 0.555, 0.380, 0.234, 0.113, 0.0]
    host, scheduler = df.EulerDiscreteScheduler(**SCALED), make("EulerDiscreteScheduler", "euler")
    for s in (host, scheduler):
        s.set_timesteps(sigmas=steps)
    assert torch.equal(scheduler.timesteps, host.timesteps)
    torch.testing.assert_close(scheduler.sigmas, host.sigmas, rtol=1e-4, atol=0)
    is_point(run(scheduler, scheduler.timesteps))
    for bad in ([14.6, 0.0, 0.1, 0.0], [14.6, -1.0, 0.0], [0.0]):
        with pytest.raises(ValueError, match="sigmas must be positive"):
            scheduler.set_timesteps(sigmas=bad)
    host, scheduler = df.EDMEulerScheduler(), make("EDMEulerScheduler", "euler")
    host.set_timesteps(sigmas=torch.tensor([0.0, 0.2, 0.5, 1.0]), num_inference_steps=4)
    scheduler.set_timesteps(sigmas=[0.0, 0.2, 0.5, 1.0], num_inference_steps=4)
    torch.testing.assert_close(scheduler.sigmas, host.sigmas, rtol=1e-4, atol=0)


@pytest.mark.parametrize("host", ["DDPMScheduler", "EulerDiscreteScheduler", "HeunDiscreteScheduler"])
def test_hosts_with_timesteps_from_the_start_run_over_all_rows(make, host):
    options = {"num_train_timesteps": 20, "beta_end": 0.2}
    wanted = make(host, "ddim", options)
    wanted.set_timesteps(20)
    scheduler = make(host, "ddim", options)
    assert torch.equal(run(scheduler, wanted.timesteps), run(wanted, wanted.timesteps))
    assert scheduler.num_inference_steps == 20


def test_the_begin_index_counts_whatever_the_timestep_says(df, make):
    """As in the host: a pipeline that set it may tell the network another time than that row's."""
    scheduler = make("FlowMatchEulerDiscreteScheduler", "euler", {"shift": 2.0})
    theirs = df.FlowMatchEulerDiscreteScheduler(shift=2.0)
    for s in (theirs, scheduler):
        s.set_timesteps(8)
        s.set_begin_index(4)
    out, x = POINT - NOISE, NOISE
    for told in (2, 6, 6):
        mine = scheduler.step(out, scheduler.timesteps[told], x).prev_sample
        x = theirs.step(out, theirs.timesteps[told], x).prev_sample
        torch.testing.assert_close(mine, x)
    assert scheduler.step_index == theirs.step_index == 7
