"""Runs held against an accurate one, where they were not learned."""

import pytest
import torch
from support.learning import RING, Net, noise

import diffsolve as ds
from diffsolve.tuning import carries, compare, fit


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


def test_a_gain_is_of_the_same_noises():
    model = ds.adapt(Net(), "condot", "velocity")
    runs = {"auto": ds.plan(model, nfe=4), "euler": ds.plan(model, "euler", nfe=6)}
    x = noise(10)
    found = compare(model, runs, noise=x, teacher=30)
    ends = ds.sample(model, noise=x, nfe=30)
    size = float(ends.square().sum(1).mean()) ** 0.5
    auto, euler = ((ds.sample(model, noise=x, solver=run) - ends).norm(dim=1) / size for run in runs.values())
    assert found.gains["euler"].value == pytest.approx(float((auto - euler).mean()), rel=1e-9)
    assert found.gains["euler"].stderr == pytest.approx(float((auto - euler).std()) / 10**0.5, rel=1e-9)
    first, second = str(found).splitlines()
    assert first == f"auto   {found['auto']}"
    assert second == f"euler  {found['euler']}  nearer than auto by {found.gains['euler']}"


def test_how_far_a_learned_run_carries():
    """Its weights are those of one scale of guidance: with another one it is far less near."""
    model = ds.adapt(Net(), "condot", "velocity")
    guidance, other = (ds.Guidance(scale, {"shift": 0.5}) for scale in (1.5, 6.0))
    how = {"cond": {"shift": -0.5}, "guidance": guidance, "teacher": 20, "dtype": torch.float64}
    tuning = fit(model, (24, 3), nfe=3, solver="unipc-3", iterations=4, seed=0, **how)
    elsewhere = {"scale 6": {"guidance": other}, "shift 2": {"cond": {"shift": 2.0}}}
    found = carries(model, tuning, (16, 3), elsewhere, seed=1, **how)
    assert [*found.places] == ["held out", "new noises", "scale 6", "shift 2"]
    runs = {"start": tuning.start, "tuned": tuning.tableau}
    wanted = compare(model, runs, (16, 3), seed=1, **{**how, "guidance": other})
    assert found.places["scale 6"].errors == wanted.errors
    assert found.places["held out"]["tuned"] == tuning.after
    ratio = found.overfitted("scale 6")
    assert ratio.value == pytest.approx(wanted["tuned"].value / tuning.learning)
    assert ratio.stderr == pytest.approx(wanted["tuned"].stderr / tuning.learning)
    assert ratio.value > 3 * found.overfitted("new noises").value
    lines = str(found).splitlines()
    assert len(lines) == 6
    assert lines[1].split() == ["where", "it", "learned", f"{tuning.learning:.2e}", "1"]
    assert lines[4].startswith(f"scale 6           {wanted['start']}  {wanted['tuned']}  {wanted.gains['tuned']}")


def test_its_arguments_are_checked():
    run = ds.plan(RING, nfe=3)
    for runs, message in (
        ({}, "runs must be at least one tableau"),
        ({"a": "euler"}, r"runs\['a'\] must be a Tableau"),
        ({"a": run, "b": ds.plan(RING, nfe=3, stop=0.5)}, "between the same times"),
    ):
        with pytest.raises((ValueError, TypeError), match=message):
            compare(RING, runs, (4, 2))
