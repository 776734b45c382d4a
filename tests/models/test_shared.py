"""Conditions per sample and shared ones, at any depth, in every way of running; and networks with one output buffer."""

from typing import NamedTuple

import numpy as np
import pytest
import torch

import diffsolve as ds
from diffsolve.models.conditions import conditions, joined, picked, told

NOISE = torch.tensor([[0.1, 3.0], [2.0, -1.0]])
SCALE = torch.tensor([0.5, 2.0])
RUNS = {
    "sequential": {"solver": "rk4", "steps": 6},
    "picard": {"solver": "rk4", "steps": 6, "parallel": ds.Picard(tol=0.0, max_batch=3)},
    "parareal": {"solver": "rk4", "steps": 6, "parallel": ds.Parareal(tol=0.0)},
    "adaptive": {"solver": ds.Adaptive()},
    "adaptive sde": {"solver": ds.AdaptiveSDE()},
    "density": {"solver": ds.Adaptive(), "log_prob": "model"},
    "direct": {"solver": "rk4", "steps": 6, "gradient": "direct"},
    "adjoint": {"solver": "rk4", "steps": 6, "gradient": "adjoint"},
    "adaptive adjoint": {"solver": ds.Adaptive(), "gradient": "adjoint"},
}


class Pair(NamedTuple):
    scale: object
    name: str


def by_column(x, t, scale=torch.ones(2)):  # noqa: B008
    return -torch.tanh(x) * scale


def by_row(x, t, pair):
    (part,) = pair.scale
    return -torch.tanh(x) * part["k"][:, None]


def test_a_shared_condition_of_the_batch_size_in_a_density():
    model = ds.adapt(by_column, "condot", "velocity")
    found = ds.log_prob(model, NOISE, cond={"scale": ds.Shared(SCALE)}).value
    alone = [ds.log_prob(model, x, cond={"scale": SCALE}).value for x in NOISE.split(1)]
    assert torch.equal(found, torch.cat(alone))
    assert found[1] == pytest.approx(-8.7292, abs=1e-4)


@pytest.mark.product({"run": list(RUNS), "guided": [None, "plain", "batched"]})
def test_a_shared_condition_stays_whole(run, guided):
    guidance = {}
    if guided:
        uncond = {"scale": ds.Shared(SCALE)} if guided == "batched" else {}
        guidance = {"guidance": ds.Guidance(2.0, uncond=uncond, batched=guided == "batched")}
    model, options = ds.adapt(by_column, "condot", "velocity"), {**RUNS[run], **guidance}
    found = ds.solve(model, noise=NOISE, seed=[1, 2], cond={"scale": ds.Shared(SCALE)}, **options).x
    for i in range(2):
        cond = {"scale": ds.Shared(SCALE)}
        alone = ds.solve(model, noise=NOISE[i : i + 1], seed=[i + 1], cond=cond, **options).x
        torch.testing.assert_close(found[i : i + 1], alone)


@pytest.mark.parametrize("run", RUNS)
def test_conditions_per_sample_are_picked_at_any_depth(run):
    model = ds.adapt(by_row, "condot", "velocity")

    def solved(rows, seeds):
        cond = {"pair": Pair([{"k": SCALE[rows]}], "row")}
        return ds.solve(model, noise=NOISE[rows], seed=seeds, cond=cond, **RUNS[run]).x

    found = solved([0, 1], [1, 2])
    for i in range(2):
        torch.testing.assert_close(found[i : i + 1], solved([i], [i + 1]))


def test_picking_and_telling_leave_the_rest_alone():
    given = {"a": ds.Shared(SCALE), "b": [SCALE, (torch.ones(3), "word", None)], "c": Pair(SCALE, "x")}
    some = picked(given, torch.tensor([1]), 2)
    assert some["a"] is given["a"]
    assert some["b"][0].tolist() == [2.0]
    assert some["b"][1][0] is given["b"][1][0]
    assert isinstance(some["c"], Pair)
    assert told(some)["a"] is SCALE
    plain = {"k": SCALE}
    assert told(plain) is plain
    with pytest.raises(TypeError, match="value must be a tensor, got 2"):
        ds.Shared(2)


def test_what_batched_guidance_joins():
    a, b = torch.zeros(2, 1), torch.ones(2, 1)
    both = joined({"k": [a, 3], "s": ds.Shared(SCALE)}, {"k": [b, 3], "s": ds.Shared(SCALE.clone())}, 2)
    assert both["k"][0].flatten().tolist() == [0, 0, 1, 1]
    assert both["k"][1] == 3
    assert torch.equal(both["s"], SCALE)
    for one, other, says in (
        ({"k": torch.ones(1)}, {"k": torch.ones(1)}, r"cond\['k'\] must have one entry per sample, 2 of them"),
        ({"k": ds.Shared(a)}, {"k": ds.Shared(b)}, r"cond\['k'\] must be the same with and without the condition"),
        ({"k": ds.Shared(a)}, {"k": a}, "must be the same"),
        ({"k": 1}, {"k": 2}, "must be the same"),
        ({"k": a}, {}, "uncond must have the arguments of cond"),
    ):
        with pytest.raises(ValueError, match=says):
            joined(one, other, 2)


def test_gradients_reach_a_shared_condition():
    for gradient in ("direct", "adjoint"):
        scale = SCALE.clone().requires_grad_()
        model = ds.adapt(by_column, "condot", "velocity")
        x = ds.sample(
            model, noise=NOISE, solver="rk4", steps=20, cond={"scale": ds.Shared(scale)}, gradient=gradient
        )  # fmt: skip
        (found,) = torch.autograd.grad(x.sum(), scale)
        assert found.abs().min() > 0.1


def buffered():
    """A network that returns one output buffer, as the replay of a CUDA graph does."""
    calls, buffers = [], {}

    def net(x, t, k=0.0):
        calls.append(len(x))
        buffer = buffers.setdefault("out", torch.empty(64, 2))[: len(x)]
        return buffer.copy_(-x + k)

    return net, calls


def test_guidance_of_a_network_with_one_output_buffer():
    net, calls = buffered()
    noise = torch.tensor([[0.3, 1.1]])
    for more in (0, 1, 0):
        calls.clear()
        x = ds.sample(
            ds.adapt(net, "condot", "velocity"), noise=noise, solver="euler", steps=1, guidance=3.0, cond={"k": 0.2}
        )  # fmt: skip
        torch.testing.assert_close(x, torch.tensor([[0.6, 0.6]]))
        assert len(calls) == 2 + (not more and calls == [1, 1, 1])


@pytest.mark.parametrize("run", [name for name in RUNS if "density" not in name and "ad" not in name[:3]])
@pytest.mark.parametrize("guidance", [None, 3.0])
def test_every_run_of_a_network_with_one_output_buffer(run, guidance):
    options = {k: v for k, v in RUNS[run].items() if k != "gradient"}
    plain = ds.adapt(lambda x, t, k=0.0: -x + k, "condot", "velocity")
    model = ds.adapt(buffered()[0], "condot", "velocity")
    given = {"noise": NOISE, "seed": 0, "cond": {"k": 0.2}, "guidance": guidance, **options}
    torch.testing.assert_close(ds.solve(model, **given).x, ds.solve(plain, **given).x)


def test_mala_with_a_score_network_with_one_output_buffer():
    net, _ = buffered()
    runs = [
        ds.langevin(ds.adapt(f, "condot", "score"), NOISE, 0.5, steps=5, step=0.3, seed=0,
                    log_density=lambda x: -x.square().sum(1) / 2).x
        for f in (net, lambda x, t: -x)
    ]  # fmt: skip
    assert torch.equal(*runs)


@pytest.mark.parametrize("run", RUNS)
def test_arrays_are_conditions_as_tensors_are(run):
    """One entry per sample, at any depth, and shared, in both arms of guidance; what holds no numbers is left."""
    array = SCALE.numpy()[:, None]
    model = ds.adapt(lambda x, t, k, name=None: -torch.tanh(x) * k["parts"][0], "condot", "velocity")
    options = {"noise": NOISE, "seed": [1, 2], **RUNS[run]}
    found, wanted = (
        ds.solve(
            model, cond={"k": {"parts": (value,)}}, guidance=ds.Guidance(2.0, {"k": {"parts": [value / 2]}}), **options
        )
        for value in (array, torch.from_numpy(array))
    )
    assert torch.equal(found.x, wanted.x)


def test_arrays_that_hold_no_numbers_are_left():
    names = np.array(["a", "b"])
    given = conditions("cond", {"k": [np.arange(2), names], "rest": 3})
    assert torch.equal(given["k"][0], torch.arange(2))
    assert given["k"][1] is names
    assert conditions("cond", None) == {}
    plain = {"k": SCALE}
    assert conditions("cond", plain) is plain
    with pytest.raises(TypeError, match="cond must be a mapping of keyword arguments, got 3"):
        conditions("cond", 3)
