"""A learned table runs unchanged wherever a solver does."""

import numpy as np
import pytest
import torch
from support.learning import Net, family_of, moved, noise

import diffsolve as ds


def learned(path="condot", predicts="velocity", size=3, nfe=5):
    """A model, and a table such as a learning gives."""
    model = ds.adapt(Net(size), path, predicts)
    return model, moved(model, nfe=nfe).tableau()


def test_in_parallel_windows():
    model, table = learned()
    x = noise(6)
    found = ds.sample(model, noise=x, solver=table, parallel=ds.Picard(window=3, tol=0))
    torch.testing.assert_close(found, ds.sample(model, noise=x, solver=table), rtol=1e-12, atol=1e-12)


def test_with_the_density_of_what_it_draws():
    model = ds.adapt(Net(), "condot", "velocity")
    table = moved(model, nfe=8, scale=0.001).tableau()
    x, found = ds.sample_with_log_prob(model, (2, 3), solver=table, seed=0)
    z = ds.Key(0).normal((2, 3), dtype=torch.float64)
    torch.testing.assert_close(x, ds.sample(model, noise=z, solver=table), rtol=1e-12, atol=1e-12)
    _, fine = ds.sample_with_log_prob(model, (2, 3), solver="rk4", steps=40, seed=0)  # with the same probes
    torch.testing.assert_close(found.value, fine.value, rtol=0, atol=0.02)


def test_in_a_stepper_with_others():
    model, table = learned()
    stepper, x = ds.Stepper(model, max_history=5), noise(2)
    tickets = [stepper.submit(noise=x[0], solver=table), stepper.submit(noise=x[1], solver="ddim", steps=7)]
    stepper.run()
    assert torch.equal(stepper.result(tickets[0]).x, ds.sample(model, noise=x[:1], solver=table)[0])


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_in_a_scheduler_of_diffusers(df):
    from diffsolve.integrations.diffusers import Scheduler

    model, table = learned("rectified", size=4)
    scheduler = Scheduler(df.FlowMatchEulerDiscreteScheduler(), family_of(table))
    x = wanted = noise(2, 4)[:, None, None]
    scheduler.set_timesteps(5)
    for t in scheduler.timesteps:
        x = scheduler.step(model.net(x, (t / 1000).expand(2)[:, None, None]), t, x).prev_sample
    wanted = ds.sample(model, noise=wanted.flatten(1), solver=table)
    torch.testing.assert_close(x.flatten(1), wanted, rtol=1e-5, atol=1e-5)


def test_in_the_sampling_function_of_comfyui():
    from diffsolve.integrations.k_diffusion import sampler

    model, table = learned("edm", "denoised")
    sigmas = torch.from_numpy(table.times.copy()).float()
    x = noise(4) * 80
    found = sampler(family_of(table), seed=0)(model.net, x, sigmas, disable=True)
    torch.testing.assert_close(found, ds.sample(model, noise=x, solver=table), rtol=1e-5, atol=1e-5)
    with pytest.raises(ValueError, match="grid must be left out, as Family"):
        sampler(family_of(table), seed=0)(model.net, x, sigmas * 0.9, disable=True)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_at_another_dtype_and_with_gradients(dtype):
    model, table = learned()
    net = Net(dtype=torch.bfloat16)
    half = ds.adapt(net, "condot", "velocity")
    x = noise(3)
    found = ds.sample(half, noise=x.to(dtype), solver=table)
    assert found.dtype == dtype
    wanted = ds.sample(model, noise=x, solver=table)
    assert float((found - wanted).norm() / wanted.norm()) < 0.05
    leaf = x.clone().requires_grad_()
    out = ds.sample(model, noise=leaf, solver=table, gradient="direct")
    out.sum().backward()
    h = 1e-6
    moved_ends = [ds.sample(model, noise=x + side * torch.eye(3, dtype=x.dtype)[0], solver=table) for side in (h, -h)]
    slope = (moved_ends[0] - moved_ends[1]).sum(1) / (2 * h)
    np.testing.assert_allclose(leaf.grad[:, 0], slope, rtol=1e-6)
