"""Conditions follow the samples that stay in the batch of an adaptive solve, at any depth."""

import torch

import diffsolve as ds

K = torch.tensor([0.01, 1.0, 30.0])  # how stiff each sample is: they leave the batch one after another


def net(x, t, added):
    return -added["k"].view(-1, 1) * torch.tanh(x)


def test_nested_conditions_are_picked_with_their_samples():
    model = ds.adapt(net, "condot", "velocity")
    noise = torch.tensor([[1.0, -2.0], [0.5, 1.0], [2.0, 0.1]])
    run = ds.solve(model, noise=noise, solver=ds.Adaptive(rtol=1e-6, atol=1e-6), cond={"added": {"k": K}})
    assert len(set(run.nfe.tolist())) > 1
    for i in range(3):
        alone = ds.solve(
            model, noise=noise[i : i + 1], solver=ds.Adaptive(rtol=1e-6, atol=1e-6), cond={"added": {"k": K[i : i + 1]}}
        )
        assert torch.equal(run.x[i : i + 1], alone.x)
        assert run.nfe[i] == alone.nfe[0]
