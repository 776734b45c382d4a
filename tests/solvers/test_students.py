"""Samplers of students: the exact flow, the marginals, and the numbers of diffusers' schedulers with their noise."""

import math

import numpy as np
import pytest
import torch
from support.flowmaps import flow, flow_map, std

import diffsolve as ds
from diffsolve import paths
from diffsolve.solvers import FlowMap

df = pytest.importorskip("diffusers")

NAMES = ["consistency", "flow-map", "lcm", "scm", "tcd"]
PATHS = ["condot", "vp", "edm", "ddpm(zero_terminal_snr=True)", "rectified", "ve", "cosine"]


def start(path, t):
    return std(path, torch.tensor(t, dtype=torch.float64)) * ds.Key(0).normal((4, 3), dtype=torch.float64)


@pytest.mark.parametrize("nfe", [1, 2, 5])
@pytest.mark.product({"path": PATHS, "jumps": ["straight", "trig", "native"]}, each=2)
def test_with_exact_jumps_a_run_is_the_exact_flow_for_any_number_of_calls(path, jumps, nfe):
    if path == "ve" and jumps == "native":
        return  # its clock is infinite at the data
    model = flow_map(path, "v", jumps)
    run = ds.solve(model, noise=start(model.path, model.path.t_noise), solver="flow-map", nfe=nfe)
    exact = flow(model.path, start(model.path, model.path.t_noise), model.path.t_noise, model.path.t_data)
    assert run.nfe == nfe
    assert torch.allclose(run.x, exact, rtol=1e-9, atol=1e-12)


def test_of_a_network_told_one_time_it_is_ddim():
    model = ds.reference.mixture_model(ds.reference.ring(), "vp", "v")
    kept = [ds.sample(model, (4, 2), solver=s, steps=5, grid="karras", seed=0) for s in ("flow-map", "ddim")]
    assert torch.allclose(*kept, rtol=1e-12)


def test_encoding_is_the_flow_too():
    model = flow_map("condot", "velocity", "straight")
    data = start(model.path, 1.0)
    noise = ds.encode(model, data, solver="flow-map", steps=2)
    assert torch.allclose(noise, flow(model.path, data, 1.0, 0.0), rtol=1e-9)


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("solver", ["flow-map(gamma=0.6)", "lcm", "tcd", "scm"])
def test_with_exact_jumps_noise_keeps_the_marginals(path, solver):
    model = flow_map(path, "v", "straight")
    tableau = ds.plan(model, solver, steps=4)
    for i in range(4):
        times = tableau.times[i], tableau.to[i], tableau.times[i + 1]
        s, d, t = torch.tensor(times, dtype=torch.float64)
        x = start(model.path, float(s))
        out = model(x, s, d)
        p, q = (torch.as_tensor(w) for w in model.landing(model.path.at(s), model.path.at(d)))
        clean = flow(model.path, x, s, d)
        ratio = model.path.alpha(t) / model.path.alpha(d)
        assert torch.allclose(p * x + q * out, clean, rtol=1e-9)
        variance = (ratio * std(model.path, d)) ** 2 + tableau.weights[i, 1, -1] ** 2
        assert torch.allclose(variance, std(model.path, t) ** 2, rtol=1e-9)


@pytest.mark.parametrize("path", ["edm", "vp", "ve"])
def test_a_node_at_the_last_time_is_jumped_to(path):
    """Where a consistency network is the identity there is no noise to add: the step is that of gamma = 0."""
    p = paths.named(path)
    grid = [p.t_noise, (p.t_noise + p.t_last) / 2, p.t_last, p.t_data]
    part, none = (ds.plan(path, f"consistency(gamma={gamma})", grid=grid) for gamma in (0.3, 0.0))
    assert part.weights[0, 1, -1] > 0
    np.testing.assert_array_equal(part.weights[1:], none.weights[1:])


def test_how_far_a_call_jumps():
    grid = [1.0, 0.5, 0.0]
    for gamma, by, down in ((0.0, "noise", 0.5), (1.0, "noise", 0.0), (0.3, "time", 0.35), (1.0, "time", 0.0)):
        assert FlowMap(gamma, by)(paths.VP(), grid).to.tolist() == pytest.approx([down, 0.0])
    path = paths.EDM()
    assert FlowMap(0.6)(path, [80.0, 1.0, 0.0]).to.tolist() == pytest.approx([0.8, 0.0])
    assert FlowMap(1.0, floor=True)(path, [80.0, 1.0, 0.0]).weights[0, 1, -1] == math.sqrt(1 - 0.002**2)
    table = ds.plan("ddpm", "tcd(gamma=0.3)", steps=4)
    assert table.times.tolist() == [999, 759, 499, 259, -1]
    assert table.to.tolist() == [531, 349, 181, -1]  # whole rows


def network(x, t):
    return torch.tanh(x * 0.7) + 0.1 * torch.cos(t.to(x)).view(-1, *[1] * (x.dim() - 1)) * x


def host_run(scheduler, net, x, noises, monkeypatch, module, scale=False, **step):
    """A host's loop in float64 with given noise."""
    drawn = iter(noises)
    monkeypatch.setattr(module, "randn_tensor", lambda shape, **_: next(drawn).clone())
    for t in scheduler.timesteps[: len(noises)]:
        inside = scheduler.scale_model_input(x, t) if scale else x
        out = net(inside, torch.as_tensor(t).double().expand(len(x)))
        x = scheduler.step(out, t, x, **step).prev_sample
    return x


def our_run(model, x, tableau, noises):
    """Our run with that noise in the place of the rows' own."""
    ex = ds.begin(model, noise=x, solver=tableau, seed=0)
    while not ex.done:
        i = ex.call
        ex.advance(model.call(*ex.inputs(), {}))
        ex.correct(ex.y + float(tableau.weights[i, 1, -1]) * (noises[i] - ex.noise(i + 1)))
    return ex.y


def draws(count):
    return [ds.Key(7).normal((2, 3, 4), row=i, dtype=torch.float64) for i in range(count)]


def x_start():
    return ds.Key(3).normal((2, 3, 4), dtype=torch.float64)


KINDS = {"epsilon": "noise", "sample": "denoised", "v_prediction": "v"}


@pytest.mark.parametrize(("prediction", "predicts"), KINDS.items())
@pytest.mark.parametrize("steps", [1, 4])
def test_lcm(prediction, predicts, steps, monkeypatch):
    from diffusers.schedulers import scheduling_lcm as module

    host = df.LCMScheduler(prediction_type=prediction, clip_sample=False)
    host.set_timesteps(steps)
    host.alphas_cumprod = host.alphas_cumprod.double()
    path = paths.Discrete(1 - host.alphas_cumprod / torch.cat([torch.ones(1).double(), host.alphas_cumprod[:-1]]))
    theirs = host_run(host, network, x_start(), draws(steps), monkeypatch, module)
    plain = ds.adapt(network, path, predicts)

    def function(x, t):  # with the skip connection that makes it the identity at the data
        (skip, out), denoised = host.get_scalings_for_boundary_condition_discrete(t[0]), plain.denoised(x, t[0])
        return skip * x + out * denoised

    tableau = ds.plan(path, "lcm", steps=steps)
    assert tableau.times[:-1].tolist() == host.timesteps.tolist()
    ours = our_run(ds.adapt(function, path, "denoised"), x_start(), tableau, draws(steps))
    assert torch.allclose(ours, theirs, rtol=1e-6, atol=1e-6)


def test_flow_match_lcm(monkeypatch):
    from diffusers.schedulers import scheduling_flow_match_lcm as module

    host = df.FlowMatchLCMScheduler(shift=3.0)
    host.set_timesteps(4)
    theirs = host_run(host, lambda x, t: network(x, t / 1000), x_start(), draws(4), monkeypatch, module)
    model = ds.adapt(network, "rectified", "velocity")
    tableau = ds.plan(model, "lcm", grid=host.sigmas.double())
    assert torch.allclose(our_run(model, x_start(), tableau, draws(4)), theirs.double(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("eta", [0.0, 0.3, 1.0])
def test_tcd(eta, monkeypatch):
    from diffusers.schedulers import scheduling_tcd as module

    host = df.TCDScheduler()
    host.set_timesteps(4)
    host.alphas_cumprod = host.alphas_cumprod.double()
    path = paths.Discrete(1 - host.alphas_cumprod / torch.cat([torch.ones(1).double(), host.alphas_cumprod[:-1]]))
    theirs = host_run(host, network, x_start(), draws(4), monkeypatch, module, eta=eta)
    model = ds.adapt(network, path, "noise")
    grid = [*host.timesteps.double(), 0.0]  # it ends at row 0
    tableau = ds.plan(path, f"tcd(gamma={eta})", grid=grid)
    assert torch.allclose(our_run(model, x_start(), tableau, draws(4)), theirs, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("steps", [1, 2, 4])
def test_scm(steps, monkeypatch):
    from diffusers.schedulers import scheduling_scm as module

    host = df.SCMScheduler(sigma_data=0.5)
    host.set_timesteps(steps, intermediate_timesteps=1.3 if steps == 2 else None)
    host.timesteps = host.timesteps.double()
    theirs = host_run(host, network, 0.5 * x_start(), draws(steps), monkeypatch, module)
    path = paths.Custom(torch.cos, lambda t: 0.5 * torch.sin(t), math.pi / 2, 0.0, regular=True)
    model = ds.adapt(lambda x, t: network(x, t), path, "velocity")  # sigma_data F is dx/dt on this path
    tableau = ds.plan(path, "scm", grid=host.timesteps.clamp(max=math.pi / 2))
    assert torch.allclose(our_run(model, 0.5 * x_start(), tableau, draws(steps)), theirs, rtol=1e-5, atol=2e-6)
    if steps == 4:
        assert np.allclose(ds.plan("condot", "scm", steps=4).times, 1 / (1 + np.tan(np.linspace(np.pi / 2, 0, 5))))


def test_consistency_models(monkeypatch):
    from diffusers.schedulers import scheduling_consistency_models as module

    host = df.CMStochasticIterativeScheduler(clip_denoised=False)
    host.set_timesteps(3)
    host.sigmas = host.sigmas.double()
    theirs = host_run(host, network, 80 * x_start(), draws(3), monkeypatch, module, scale=True)

    def function(x, sigma):
        skip, out = (w.view(-1, 1, 1) for w in host.get_scalings_for_boundary_condition(sigma))
        inside = x / (sigma.view(-1, 1, 1) ** 2 + 0.25) ** 0.5
        return skip * x + out * network(inside, 250 * sigma.log())

    path = paths.EDM()
    model = ds.adapt(function, path, "denoised")
    grid = [80.0, *host.sigmas[1:-1], 0.0]
    ours = our_run(model, 80 * x_start(), ds.plan(path, "consistency", grid=grid), draws(3))
    assert torch.allclose(ours, theirs, rtol=1e-5, atol=1e-6)


def test_flow_map_euler():
    host = df.FlowMapEulerDiscreteScheduler(shift=3.0)
    host.set_timesteps(4)
    net = lambda x, t, s: network(x, t) * (1 + s.view(-1, 1, 1))  # noqa: E731
    x = x_start()
    for t, r in zip(host.sigmas, host.sigmas[1:], strict=False):
        out = net(x, t.expand(2), r.expand(2))
        x = host.step(out, t * 1000, x, r * 1000).prev_sample
    model = ds.adapt(net, "rectified", "velocity", jumps="straight")
    ours = ds.sample(model, noise=x_start(), solver="flow-map", grid=host.sigmas)
    assert torch.allclose(ours, x, rtol=1e-9, atol=1e-12)


def test_refused():
    with pytest.raises(ValueError, match="gamma must be a finite number >= 0 and <= 1"):
        ds.solvers.named("flow-map(gamma=1.5)")
    with pytest.raises(ValueError, match="by must be 'noise' or 'time'"):
        ds.solvers.named("tcd(by='step')")
    with pytest.raises(ValueError, match="on the way from the noise to the data only"):
        ds.solvers.named("lcm")(paths.VP(), [0.1, 0.5])


def test_names_are_points():
    kinds = {name: ds.solvers.named(name) for name in NAMES}
    assert all(isinstance(kind, FlowMap) for kind in kinds.values())
    assert len({kinds[name] for name in ("flow-map", "lcm", "tcd", "scm", "consistency")}) == 5
    assert ds.solvers.named("flow-map(gamma=1.0, grid='distilled')") == kinds["lcm"]


HOSTS = {
    "LCMScheduler": ("lcm", {"prediction_type": "epsilon"}),
    "TCDScheduler": ("tcd", {"clip_sample": True}),
    "FlowMatchLCMScheduler": ("lcm", {"shift": 3.0}),
}


@pytest.mark.parametrize("name", HOSTS)
def test_our_scheduler_runs_a_student_as_its_own_does(name, monkeypatch):
    """In the place of the host's, with its timesteps, its clipping, its skip connection and its noise."""
    from diffsolve.integrations.diffusers import Scheduler

    solver, options = HOSTS[name]
    host = getattr(df, name)(**options)
    module = __import__(type(host).__module__, fromlist=["randn_tensor"])
    mine = Scheduler(host, solver, seed=0)
    mine.set_timesteps(4)
    host.set_timesteps(4)
    assert torch.allclose(mine.timesteps.double(), host.timesteps.double())
    net = lambda x, t: network(x, t / 1000).to(x.dtype)  # noqa: E731
    x, noises = x_start().float(), []
    for t in mine.timesteps:
        before = mine._mine.run
        out = net(x, t.expand(2))
        x = mine.step(out, t, x).prev_sample
        ex = mine._mine.run.ex
        noises.append(ex.noise(ex.call).double())
        assert before is None or before is mine._mine.run
    theirs = host_run(host, net, x_start().float(), [z.float() for z in noises], monkeypatch, module)
    assert torch.allclose(x, theirs, rtol=1e-5, atol=1e-5)


def test_our_scheduler_takes_the_eta_of_tcd():
    from diffsolve.integrations.diffusers import Scheduler

    mine = Scheduler(df.TCDScheduler(), "TCDScheduler", seed=0)
    mine.set_timesteps(4)
    outs = [mine.step(x_start(), mine.timesteps[0], x_start(), eta=eta).prev_sample for eta in (0.0, 0.3, 0.8)]
    assert torch.equal(outs[0], outs[1])  # 0 is "not given"; its own is 0.3
    assert not torch.equal(outs[1], outs[2])


def test_comfyui_samples_students():
    """ComfyUI's "lcm": the denoised, then noise of the next sigma; in our sampling function with keyed noise."""
    from diffsolve.integrations.k_diffusion import sampler

    denoise = lambda x, sigma: x / (1 + sigma[:, None, None] ** 2)  # noqa: E731
    sigmas = torch.tensor([14.0, 3.0, 0.5, 0.0], dtype=torch.float64)
    got = sampler("lcm", seed=5)(denoise, 14 * x_start(), sigmas, disable=True)
    x = 14 * x_start()
    for i, (sigma, after) in enumerate(zip(sigmas, sigmas[1:], strict=False)):
        x = denoise(x, sigma.expand(2)) + after * ds.Key(5).normal(x.shape, row=i + 1, stream=1, dtype=torch.float64)
    assert torch.allclose(got, x, rtol=1e-9)
