import copy
import json
import math
import pickle
from dataclasses import FrozenInstanceError, fields, replace

import numpy as np
import pytest
from support import PATHS
from support.product import shares, shown

import diffsolve as ds
from diffsolve import paths
from diffsolve.tableau import Draft

SOLVERS = [*ds.solvers.names(), "ddim(eta=0.7)", "rk4(frame='trig')", "ab-3(frame='noise', variable='t')"]


@pytest.mark.product({"path": PATHS, "solver": SOLVERS}, over="path")
def test_json_keeps_every_bit(solver, path, tmp_path):
    tableau = ds.plan(path, solver, steps=5)
    again = ds.Tableau.from_json(tableau.to_json())
    assert again == tableau
    assert hash(again) == hash(tableau)
    assert again.weights.tobytes() == tableau.weights.tobytes()
    file = tmp_path / "mine.json"
    tableau.save(file)
    assert ds.Tableau.load(file) == tableau
    assert [f.name for f in tmp_path.iterdir()] == ["mine.json"]


def test_a_failed_save_leaves_the_old_file(tmp_path, monkeypatch):
    file = tmp_path / "mine.json"
    ds.plan("edm", "euler", steps=3).save(file)
    before = file.read_text()
    monkeypatch.setattr(ds.Tableau, "to_json", lambda self: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        ds.plan("edm", "heun", steps=3).save(file)
    assert file.read_text() == before
    assert len(list(tmp_path.iterdir())) == 1


def test_equality_is_of_values():
    one, two = ds.plan("edm", "heun", steps=4), ds.plan("edm", "heun", steps=4)
    assert one == two
    weights = one.weights.copy()
    weights[0, 1, 0] = np.nextafter(weights[0, 1, 0], 2)
    assert replace(one, weights=weights) != one
    assert one != ds.plan("edm", "heun", steps=5)
    assert one != "heun"


def test_immutable():
    tableau = ds.plan("edm", "heun", steps=4)
    with pytest.raises(ValueError, match="read-only"):
        tableau.weights[0, 0, 0] = 3
    with pytest.raises(FrozenInstanceError):
        tableau.solver = "mine"
    for twin in (copy.copy(tableau), copy.deepcopy(tableau), pickle.loads(pickle.dumps(tableau))):
        assert twin == tableau
        assert hash(twin) == hash(tableau)
        assert not any(getattr(twin, f.name).flags.writeable for f in fields(twin) if f.type == "np.ndarray")


def test_repr_is_one_line():
    tableau = ds.plan("edm", "heun", steps=4)
    assert repr(tableau) == (
        "Tableau(solver=\"RungeKutta(heun, frame='straight')\", path='EDM(sigma_min=0.002, sigma_max=80.0)', steps=4, "
        "nfe=7, order=2, history=1)"
    )
    assert len(max(map(repr, map(ds.solvers.named, ds.solvers.names())), key=len)) < 130
    assert repr(ds.solvers.named("heun")) == "RungeKutta(heun, frame='straight')"
    assert repr(ds.solvers.RungeKutta().method) == "Butcher('heun', stages=2, order=2)"


@pytest.mark.parametrize("solvers", shares(ds.solvers.names(), 4))
def test_the_check_catches_a_wrong_weight(solvers):
    for solver in shown(solvers):
        tableau = ds.plan("vp", solver, grid=[0.9, 0.7, 0.4, 0.2])
        for i, side, column in np.argwhere(tableau.weights[:, :, :-1]):  # of noise the mean says nothing
            if i + 1 == tableau.nfe and side == 0:
                continue
            if tableau.stochastic and tableau.frame[i] == "noise" and column >= 2:
                continue  # nor of eps
            weights = tableau.weights.copy()
            # A point's mean is alpha, which may be small: what noise leaves of it needs a larger error to be seen.
            weights[i, side, column] += 1e-5 if tableau.stochastic else 1e-6
            if np.array_equal(tableau.weights[i, 0], tableau.weights[i, 1]):
                weights[i] = weights[i, side]
            with pytest.raises(ValueError, match="is off by .* for a constant prediction"):
                replace(tableau, weights=weights)


def test_prints_as_a_table():
    text = str(ds.plan("edm", "dpmpp-2m", steps=3))
    lines = text.splitlines()
    assert "3 steps, 3 network calls, order 2, history 2, d = denoised" in lines[0]
    assert lines[1].split() == ["call", "t", "alpha", "sigma", "s", "y", "d", "d-1", "z"]
    assert len(lines) == 2 + 3 + 1
    assert lines[2].split()[:4] == ["0", "80", "1", "80"]
    assert lines[-1].split() == ["end", "0", "1", "0"]
    # UniPC keeps the corrected state beside the predicted input: two lines a call but the last.
    assert sum("s'" in line for line in str(ds.plan("edm", "unipc-2", steps=4)).splitlines()) == 3


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda plain: plain.update(format="other"), "not a diffsolve.tableau/1 file"),
        (lambda plain: plain.pop("weights"), "not a diffsolve.tableau/1 file"),
        (lambda plain: plain.update(extra=1), "not a diffsolve.tableau/1 file"),
        (
            lambda plain: plain.update(d=[[1.0, 0.0]]),
            r"d must be of shape \(3, 2\) for 3 calls, got ndarray of shape \(1, 2\)",
        ),
        (lambda plain: plain.update(frame=["denoised"]), "frame must be one of .* for each of 3 calls"),
        (lambda plain: plain.update(frame=["cube"] * 3), "one of denoised, noise"),
        (lambda plain: plain["weights"][0][1].__setitem__(0, 9.0), "is off by"),
    ],
)
def test_a_bad_file_is_an_error(change, says):
    plain = json.loads(ds.plan("edm", "euler(frame='denoised')", steps=3).to_json())
    change(plain)
    with pytest.raises(ValueError, match=says):
        ds.Tableau.from_json(json.dumps(plain))
    with pytest.raises(ValueError, match="not a diffsolve"):
        ds.Tableau.from_json("[]")


def test_a_tableau_by_hand():
    """What a new solver writes: Euler in ten lines."""
    path = paths.EDM()
    draft = Draft(path, path.nodes([80.0, 3.0, 0.0]))
    g = draft.grid
    for i in range(draft.steps):
        s, t = g[i], g[i + 1]
        draft.call(s, "noise", y={"y": 1.0, i: t.sigma - s.sigma}, node=i + 1)
    mine = draft.build("mine", order=1)
    expected = ds.plan(path, "euler(frame='noise')", grid=[80.0, 3.0, 0.0])
    np.testing.assert_array_equal(mine.weights, expected.weights)
    assert mine.history == 1
    assert mine.steps == mine.nfe == 2
    assert math.isinf(ds.plan("ve", "euler", steps=2).times[-1])


def test_written_for_another_path():
    tableau = ds.plan("edm", "euler", steps=3)
    model = ds.adapt(
        lambda x, t: x, paths.Custom(lambda t: 1 + 0 * t, lambda t: 2 * t, t_noise=90.0, t_last=0.001), "denoised"
    )
    with pytest.raises(ValueError, match="was written for EDM"):
        ds.sample(model, (1, 2), solver=tableau, seed=0)
    same = ds.adapt(
        lambda x, t: 0 * x, paths.Custom(lambda t: 1 + 0 * t, lambda t: t, t_noise=80.0, t_last=0.002), "denoised"
    )
    assert (ds.sample(same, (1, 2), solver=tableau, seed=0) == 0).all()


def test_a_run_from_data_at_an_infinite_time_survives_its_file(tmp_path):
    back = ds.solvers.named("euler")(ds.paths.named("ve"), ds.plan("ve", "ddpm", steps=3).times[::-1])
    assert back.calls[0, 0] == -np.inf
    back.save(tmp_path / "t.json")
    assert ds.Tableau.load(tmp_path / "t.json") == back
