"""Files that are broken, cut short or of something else: one ValueError that names the file and what is wrong."""

import json
import math

import numpy as np
import pytest
import torch

import diffsolve as ds
from diffsolve.common.files import FileError, read_tensors, write_tensors
from diffsolve.metrics import Statistics
from diffsolve.metrics.table import Table
from diffsolve.reference import classifier, digits
from diffsolve.training.digits import train

RING = ds.load("mixture-2d")


def state():
    return ds.solve(RING, (3, 2), solver="unipc-3", nfe=8, seed=0, max_calls=4).state


def statistics():
    return Statistics.of(torch.randn(9, 2, generator=torch.Generator().manual_seed(0)))


FILES = {
    "t.json": (lambda file: ds.plan("ve", "heun", nfe=4).save(file), ds.Tableau.load),
    "s.safetensors": (lambda file: state().save(file), ds.State.load),
    "m.safetensors": (lambda file: statistics().save(file), Statistics.load),
    "m.npz": (lambda file: statistics().save(file), Statistics.load),
    "c.safetensors": (lambda file: write_tensors(file, classifier.load().state_dict()), classifier.load),
    "d.safetensors": (lambda file: write_tensors(file, digits.load().state_dict()), digits.load),
}


@pytest.mark.parametrize("name", FILES)
def test_any_damage_is_an_error_that_names_the_file_or_does_no_harm(tmp_path, name):
    save, load = FILES[name]
    file = tmp_path / name
    save(file)
    load(file)
    whole = file.read_bytes()
    random = np.random.default_rng(0)
    places = [0, 1, *random.integers(0, min(len(whole), 4000), 60).tolist(), len(whole) - 1]
    damaged = [whole[:place] for place in places]
    damaged += [whole[:place] + bytes([whole[place] ^ 0xFF]) + whole[place + 1 :] for place in places]
    damaged += [b"[" * 100_000, b'{"a":' * 100_000, b"1", b"null", b"[]", b"{}", b"\xff\xfe", b"PK\x03\x04", whole * 2]
    said = []
    for contents in damaged:
        file.write_bytes(contents)
        try:
            load(file)
        except FileError as error:
            said.append(str(error))
        assert file.read_bytes() == contents
    assert len(said) > len(damaged) / 2
    assert all(str(file) in message for message in said)
    for missing in (tmp_path / f"no-{name}", tmp_path):
        with pytest.raises((OSError, ValueError), match=str(missing)):
            load(missing)


GOOD = json.loads(ds.plan("condot", "heun", nfe=4).to_json())


@pytest.mark.parametrize("name", GOOD)
@pytest.mark.parametrize("bad", [None, 1.5, True, [], {}, [[1.0]], math.nan, [math.nan], ["x"], [[1, "2", 3]]])
def test_an_entry_of_a_tableau_of_the_wrong_kind(tmp_path, name, bad):
    (tmp_path / "t.json").write_text(json.dumps({**GOOD, name: bad}))
    with pytest.raises(FileError, match=rf"must be one that Tableau.save wrote, got .*t.json.*{name}"):
        ds.Tableau.load(tmp_path / "t.json")


@pytest.mark.parametrize("name", ["grid", "calls", "d", "entry", "weights", "clock", "node"])
@pytest.mark.parametrize("bad", [math.nan, math.inf, 10**400, "1.0", None])
def test_a_number_of_a_tableau_that_is_none(tmp_path, name, bad):
    changed = json.loads(json.dumps(GOOD))
    row = changed[name]
    while isinstance(row[-1], list):
        row = row[-1]
    row[-1] = bad
    (tmp_path / "t.json").write_text(json.dumps(changed))
    with pytest.raises(FileError, match="t.json"):
        ds.Tableau.load(tmp_path / "t.json")


def test_a_node_that_the_grid_does_not_have():
    with pytest.raises(ValueError, match="node must be -1 or a node of the grid, to 2"):
        ds.Tableau.from_json(json.dumps({**GOOD, "node": [-1, 1, -1, 3]}))


def test_infinite_times_are_strict_json():
    """The clock of `ve` is log sigma, which ends at -inf; older files have the token -Infinity."""
    tableau = ds.plan("ve", "heun", nfe=4)
    assert tableau.times[-1] == -math.inf
    text = tableau.to_json()
    json.loads(text, parse_constant=lambda token: pytest.fail(token))
    assert ds.Tableau.from_json(text) == tableau
    assert ds.Tableau.from_json(text.replace('"-inf"', "-Infinity")) == tableau


X = torch.zeros(3, 2)
NOTE = {"format": "diffsolve.state/2", "call": 1, "seed": 0, "index": 0, "antithetic": False, "shared": False}


@pytest.mark.parametrize(
    ("note", "tensors", "says"),
    [
        ({"format": "x"}, {"s": X}, "format must be"),
        ({"call": "x"}, {"s": X}, "call must be an integer >= 0, got 'x'"),
        ({"call": -1}, {"s": X}, "call must be"),
        ({"call": None}, {"s": X}, "call must be"),
        ({"seed": "abc"}, {"s": X}, r"seed\[0\] must be an integer"),
        ({"seed": None}, {"s": X}, ""),
        ({"index": 0.5}, {"s": X}, "index must be"),
        ({"shared": 1}, {"s": X}, "shared must be"),
        ({"run": [1]}, {"s": X}, "run must be the texts"),
        ({}, {"y": X}, "it has no 's'"),
        ({}, {"s": X, "y": X[:1] + 0}, "y must be of the shape"),
        ({}, {"s": X, "history.0": X[0] + 0}, r"history\[0\] must be of the shape"),
        ({}, {"s": X, "history.0": X.double()}, r"history\[0\] must be of the shape .* dtype torch.float32"),
        ({}, {"s": X, "history.3": X + 0}, "it has no 'history.0'"),
        ({}, {"s": X.long()}, "s must be a floating tensor"),
        ({}, {"s": X[0, 0] + 0}, "s must be a floating tensor"),
    ],
)
def test_states_are_checked(tmp_path, note, tensors, says):
    write_tensors(tmp_path / "s", tensors, "state", {**NOTE, **note})
    with pytest.raises(FileError, match=f"one that State.save wrote, got .*{says}"):
        ds.State.load(tmp_path / "s")


@pytest.mark.parametrize(
    ("arrays", "says"),
    [
        ({"count": -5}, "count must be an integer >= 1"),
        ({"count": 2, "rows": np.zeros((3, 2))}, "count must be an integer >= 3"),
        ({"count": np.array([1, 2])}, "count must be one integer"),
        ({"count": np.nan}, "count must be one integer"),
        ({"rows": np.full((3, 2), np.nan)}, "rows must be finite"),
        ({"sigma": -np.eye(2)}, "sigma must be a covariance"),
        ({"mu": np.zeros(2, complex)}, "mu must be of real numbers"),
        ({"mu": np.array(["a", "b"])}, "str_"),
        ({"mu": np.zeros(0), "sigma": np.zeros((0, 0))}, "with F >= 1"),
        ({"mu": np.zeros((2, 1))}, "shapes must be"),
    ],
)
def test_statistics_are_checked(tmp_path, arrays, says):
    file = tmp_path / "m.npz"
    np.savez(file, **{"mu": np.zeros(2), "sigma": np.eye(2), **arrays})
    with pytest.raises(FileError, match=f"must be an .npz or .safetensors of statistics, got .*m.npz.*{says}"):
        Statistics.load(file)


@pytest.mark.parametrize("module", [classifier, digits])
def test_weights_are_those_of_the_network(tmp_path, module):
    state = module.load().state_dict()
    first = next(iter(state))
    for changed, says in (
        ({name: value for name, value in state.items() if name != first}, f"only one of the two has {first}"),
        ({**state, "more": X}, "only one of the two has more"),
        ({**state, first: state[first] * math.nan}, f"{first} must be finite"),
        ({**state, first: state[first].flatten()[:1]}, f"{first} must be floating-point of shape"),
        ({**state, first: state[first].long()}, f"{first} must be floating-point"),
    ):
        write_tensors(tmp_path / "w.safetensors", changed)
        with pytest.raises(FileError, match=f"w.safetensors.*{says}"):
            module.load(tmp_path / "w.safetensors")


def test_checkpoints_of_a_training_are_checked(tmp_path):
    pytest.importorskip("sklearn")
    out, how = tmp_path / "w.safetensors", {"steps": 4, "batch": 2}
    train(out, minutes=1e-9, **how)
    checkpoint = tmp_path / "w.safetensors.checkpoint"
    tensors, note = read_tensors(checkpoint, digits.KEY)
    for change, says in (
        ({"done": 99}, "done must be an integer from 1 to 3, got 99"),
        ({"done": True}, "done must be"),
        ({"loss": None}, "loss must be a finite number"),
        ({"seconds": -1}, "seconds must be"),
        ({"config": 3}, "config must be a mapping"),
    ):
        write_tensors(checkpoint, tensors, digits.KEY, {**note, **change})
        with pytest.raises(FileError, match=f"must be the checkpoint of a training, got .*{says}"):
            train(out, **how)
    for change, says in (
        ({"weights/head.2.weight": torch.zeros(3)}, "a tensor must be of shape"),
        ({"optimizer/0/exp_avg": torch.zeros(3)}, "a tensor must be of shape"),
        ({"average/module.head.2.bias": tensors["average/module.head.2.bias"] * math.nan}, "must be finite"),
        ({"more": X}, "only one of the two has more"),
    ):
        write_tensors(checkpoint, {**tensors, **change}, digits.KEY, note)
        with pytest.raises(FileError, match=says):
            train(out, **how)
    write_tensors(checkpoint, tensors, digits.KEY, note)
    with pytest.raises(ValueError, match=r"with steps=4 there: delete it or pass resume=False \(--no-resume\)"):
        train(out, steps=5, batch=2)
    assert train(out, **how)["finished"]


ROW = {"solver": "a", "method": "a", "table": 3, "nfe": 1, "seed": 0, "calls": 1.0, "seconds": 1.0}
REST = {"scores": {"FD": 1.0}, "floor": None}


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"calls": math.nan}, "calls must be a finite number >= 0"),
        ({"scores": {"FD": math.inf}}, "FD must be a finite number"),
        ({"scores": []}, "scores must be a mapping"),
        ({"nfe": "a"}, "nfe must be an integer"),
        ({"seed": None}, "seed must be an integer"),
        ({"solver": 1}, "solver must be a text"),
        ({"floor": "z"}, "floor must be a finite number"),
        ({"more": 1}, "more"),
    ],
)
def test_records_of_a_sweep_are_checked(tmp_path, change, says):
    file = tmp_path / "r.jsonl"
    file.write_text(json.dumps({}) + "\n" + json.dumps({**ROW, **REST}) + "\n")
    assert len(Table.read(file).rows) == 1
    file.write_text(json.dumps({}) + "\n" + json.dumps({**ROW, **REST, **change}) + "\n")
    with pytest.raises(ValueError, match=f"r.jsonl.*must have results of a sweep, got .*{says}"):
        Table.read(file)
