"""Sweeps with cells that have no value, and with numbers of NumPy and torch in their options."""

import json

import numpy as np
import pytest
import torch

import diffsolve as ds
from diffsolve.common.fingerprint import describe
from diffsolve.metrics import Estimate, Statistics, sweep
from diffsolve.reference.mixture import ring

REFERENCE = Statistics.of(ring().sample(400, seed=0))
SMALL = {"nfe": 4, "num": 40, "batch": 16, "exact": 0, "scores": ["frechet"]}


@pytest.fixture(scope="module")
def model():
    return ds.load("mixture-2d")


def run(model, **options):
    return sweep(model, (2,), **{"reference": REFERENCE, **SMALL, **options})


@pytest.mark.filterwarnings("ignore:.*stopped early:RuntimeWarning")
@pytest.mark.parametrize("solver", [ds.Adaptive(max_nfe=10), ds.AdaptiveSDE(max_nfe=10)])
def test_a_run_that_ended_short_has_no_score(model, solver):
    (row,) = run(model, solvers=[solver], exact=8).rows
    assert set(row.scores.values()) == {None}
    assert row.calls <= 10


def test_a_feature_that_is_not_finite_leaves_its_cell_without_a_score(model, tmp_path):
    calls = []

    def broken(images):
        calls.append(len(images))
        return torch.where(torch.arange(len(images))[:, None] == 3, torch.inf, images)

    bad = Statistics(REFERENCE.count, REFERENCE.mean, REFERENCE.cov, None, broken)
    for _ in range(2):  # measured, and read from the file
        table = run(model, reference={"good": REFERENCE, "bad": bad}, solvers=["euler"], out=tmp_path / "a.jsonl")
        (row,) = table.rows
        assert row.scores["bad frechet"] is None
        assert row.scores["good frechet"] > 0
        assert sum(calls) == 40
    assert "not finite" in str(table)


@pytest.mark.parametrize("array", [np.array, torch.tensor])
def test_numbers_of_numpy_and_torch_are_those_of_python(model, tmp_path, array):
    """Each writes the file that the other continues."""
    plain = {"nfe": [4, 6], "seeds": [0, 1], "num": 40, "exact": 8, "fine": 20, "guidance": 1.0}
    given = {**plain, "nfe": array([4, 6]), "seeds": array([0, 1])}
    given |= {"num": np.int64(40), "exact": np.int64(8), "fine": np.int64(20), "guidance": np.float64(1.0)}
    first = run(model, solvers=["euler"], out=tmp_path / "a.jsonl", **given)
    again = run(model, solvers=["euler"], out=tmp_path / "a.jsonl", **plain)
    assert first == again
    assert len((tmp_path / "a.jsonl").read_text().splitlines()) == 5
    assert run(model, solvers=["euler"], nfe=array(4)).rows[0].nfe == 4
    assert sweep(model, array([2]), reference=REFERENCE, **SMALL).rows


def test_scores_of_numpy_and_torch_are_written(model, tmp_path):
    scores = {
        "a": lambda found, reference: np.float32(0.5),
        "b": lambda found, reference: torch.tensor(2.0),
        "c": lambda found, reference: Estimate(torch.tensor(3.0), np.float32(0.25)),
        "d": lambda found, reference: torch.tensor(torch.nan),
    }
    run(model, solvers=["euler"], scores=scores, out=tmp_path / "a.jsonl")
    entry = json.loads((tmp_path / "a.jsonl").read_text().splitlines()[1])
    assert entry["scores"] == {"a": 0.5, "b": 2.0, "c": 3.0, "c stderr": 0.25, "d": None}


def test_conditions_are_cycled_at_any_depth_unless_they_are_shared(tmp_path):
    seen = []

    def net(x, t, deep, scale):
        seen.append((deep["k"][0].tolist(), scale.tolist()))
        return -x * scale

    model = ds.adapt(net, "condot", "velocity")
    cond = {"deep": {"k": [torch.arange(3)]}, "scale": ds.Shared(torch.tensor([1.0, 2.0]))}
    run(model, solvers=["euler"], nfe=1, num=4, batch=2, cond=cond, out=tmp_path / "a.jsonl")
    assert seen == [([0, 1], [1.0, 2.0]), ([2, 0], [1.0, 2.0])]


def test_a_number_of_numpy_stands_for_itself():
    assert describe(np.float32(0.5)) == 0.5
    assert describe({"a": np.int64(3), "b": (np.bool_(True), np.nan)}) == {"a": 3, "b": [True, "nan"]}
    with pytest.raises(ValueError, match="nfe must be an integer >= 1, got 0.5"):
        sweep(ds.load("mixture-2d"), (2,), reference=REFERENCE, nfe=np.array([0.5]))
