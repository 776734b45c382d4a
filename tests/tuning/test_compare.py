"""Runs held against an accurate one, where they were not learned."""

import pytest
import torch
from support.learning import RING, Net, noise

import diffsolve as ds
from diffsolve.tuning import compare


def test_against_the_library_called_by_hand():
    model = ds.adapt(Net(), "condot", "velocity")
    runs = {"auto": ds.plan(model, nfe=4), "euler": ds.plan(model, "euler", nfe=6)}
    x, shift = noise(10), torch.linspace(-1, 1, 10, dtype=torch.float64)[:, None]
    how = {"cond": {"shift": shift}, "guidance": ds.Guidance(2.0, {"shift": -shift})}
    found = compare(model, runs, noise=x, teacher=30, batch=4, **how)
    ends = ds.sample(model, noise=x, nfe=30, **how)
    size = float(ends.square().sum(1).mean()) ** 0.5
    for name, run in runs.items():
        far = (ds.sample(model, noise=x, solver=run, **how) - ends).norm(dim=1) / size
        assert found[name].value == pytest.approx(float(far.mean()), rel=1e-9)
        assert found[name].stderr == pytest.approx(float(far.std()) / 10**0.5, rel=1e-9)


def test_its_arguments_are_checked():
    run = ds.plan(RING, nfe=3)
    for runs, message in (
        ({}, "runs must be at least one tableau"),
        ({"a": "euler"}, r"runs\['a'\] must be a Tableau"),
        ({"a": run, "b": ds.plan(RING, nfe=3, stop=0.5)}, "between the same times"),
    ):
        with pytest.raises((ValueError, TypeError), match=message):
            compare(RING, runs, (4, 2))
