"""`fit`: what it trains, writes and resumes; on a network with dropout, conditions and a buffer."""

import json
import math
import os
import random
import signal
import time
from functools import partial

import numpy as np
import pytest
import safetensors.torch
import torch
from scipy.integrate import quad
from torch.utils.data import DataLoader, TensorDataset

import diffsolve as ds
from diffsolve import training
from diffsolve.common.records import read
from diffsolve.training import average, schedule
from diffsolve.training.average import KEY

fit = training.fit
X = torch.randn(50, 2, generator=torch.Generator().manual_seed(0))
LABEL = torch.arange(50) % 3
LABELS = {"drop": 0.1, "uncond": {"label": 3}}


class Net(torch.nn.Module):
    def __init__(self, width=16, dropout=0.3):
        super().__init__()
        self.label = torch.nn.Embedding(4, 2)
        self.layers = torch.nn.Sequential(
            torch.nn.Linear(3, width), torch.nn.SiLU(), torch.nn.Dropout(dropout), torch.nn.Linear(width, 2)
        )
        self.register_buffer("calls", torch.zeros((), dtype=torch.int64))

    def forward(self, x, t, label=None):
        if self.training:
            self.calls += 1
        x = x if label is None else x + self.label(label)
        return self.layers(torch.cat([x, t[:, None].to(x)], 1))


def model_of(seed=0, **options):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return ds.adapt(Net(**options), "condot", "velocity")


def run(out, data=(X, {"label": LABEL}), **options):
    settings = {"steps": 7, "batch": 6, "seed": 3, "objective": LABELS, **options}
    return fit(settings.pop("model", None) or model_of(), data, out, **settings)


class Break(Exception):
    pass


def broken(at):
    """The loss with labels, failing at step `at`: of the same name always, so that a checkpoint is of the same run."""

    def loss(model, x0, *, step, **key):
        if step == at:
            raise Break
        return training.objective(model, x0, step=step, **key, **LABELS)

    return loss


def plain(path):
    """Weights without what is counted, which a network with parts of a batch counts otherwise."""
    return {name: v for name, v in safetensors.torch.load_file(path).items() if name != "calls"}


def test_it_writes_one_file_and_leaves_the_random_state(tmp_path):
    out, before, model = tmp_path / "w.safetensors", torch.get_rng_state(), model_of()
    report = run(out, model=model, note={"who": "me"}, dtype=torch.float16)
    assert torch.equal(torch.get_rng_state(), before)
    assert os.listdir(tmp_path) == [out.name]
    assert report["finished"]
    assert (report["steps"], report["out"]) == (7, str(out))
    assert report["parameters"] == sum(p.numel() for p in model.net.parameters())
    assert 0 < report["loss"] < 10
    weights = safetensors.torch.load_file(out)
    assert {t.dtype for t in weights.values()} == {torch.float16, torch.int64}
    assert not model.net.training
    for name, value in model.net.state_dict().items():  # the network has the averaged weights, as the file
        torch.testing.assert_close(weights[name].to(value.dtype), value, rtol=1e-3, atol=1e-6)
    with safetensors.safe_open(out, "pt") as file:
        note = json.loads(file.metadata()[KEY])
    assert (note["who"], note["steps"], note["loss"], note["path"]) == ("me", 7, report["loss"], str(model.path))


@pytest.mark.parametrize("at", [1, 4, 6])
def test_a_broken_training_resumed_is_an_unbroken_one(tmp_path, at):
    """Dropout, augmentation, labels and the log too."""
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    report = run(whole, objective=broken(None), log=tmp_path / "whole.jsonl")
    with pytest.raises(Break):
        run(parts, objective=broken(at), checkpoint_every=0, log=tmp_path / "parts.jsonl")
    assert not parts.exists()
    torch.rand(5)  # the global random state has no part in it
    assert run(parts, objective=broken(None), model=model_of(1), log=tmp_path / "parts.jsonl")["loss"] == report["loss"]
    assert parts.read_bytes() == whole.read_bytes()
    logs = [[{**entry, "seconds": 0} for entry in read(tmp_path / f"{n}.jsonl")[1]] for n in ("whole", "parts")]
    assert logs[0] == logs[1]
    assert [entry["step"] for entry in logs[0]] == list(range(1, 8))


def test_a_training_in_sittings(tmp_path):
    run(tmp_path / "whole", optimizer=partial(torch.optim.SGD, momentum=0.9))
    for step in range(1, 8):
        report = run(tmp_path / "parts", optimizer=partial(torch.optim.SGD, momentum=0.9), minutes=1e-9)
        assert report["steps"] == step
        assert report["finished"] == (step == 7) == (tmp_path / "parts").exists()
    assert (tmp_path / "parts").read_bytes() == (tmp_path / "whole").read_bytes()


class Flipped(torch.utils.data.Dataset):
    """Draws from torch's generator, as augmentations do."""

    def __len__(self):
        return len(X)

    def __getitem__(self, i):
        return X[i] * (2 * torch.randint(2, ()) - 1), int(LABEL[i])


LOADERS = {
    "dataset": lambda: Flipped(),
    "loader": lambda: DataLoader(Flipped(), 16, shuffle=True, drop_last=True),
    "batches": lambda: Batches(),
}


class Batches:
    def __iter__(self):
        return iter([(X[:8], {"label": LABEL[:8]}), (X[8:20], {"label": LABEL[8:20]})])


@pytest.mark.parametrize("kind", LOADERS)
def test_data_of_any_kind_go_on_where_they_were(tmp_path, kind):
    run(tmp_path / "whole", LOADERS[kind]())
    while not run(tmp_path / "parts", LOADERS[kind](), minutes=1e-9)["finished"]:
        pass
    assert (tmp_path / "parts").read_bytes() == (tmp_path / "whole").read_bytes()


def test_every_update_has_its_own_dropout(tmp_path):
    masks, model = [], model_of()
    model.net.layers[2].register_forward_hook(lambda *args: masks.append(tuple((args[2] == 0).flatten().tolist())))
    run(tmp_path / "w", model=model)
    assert len(set(masks)) == 7


def test_seeds_differ(tmp_path):
    run(tmp_path / "a", steps=2, seed=0)
    run(tmp_path / "b", steps=2, seed=1)
    assert (tmp_path / "a").read_bytes() != (tmp_path / "b").read_bytes()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="kills forks of this process")
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
@pytest.mark.parametrize("kills", [2, pytest.param(10, marks=pytest.mark.slow)])
def test_killed_at_random_moments_it_ends_with_the_same_bits(tmp_path, kills):
    how = {"steps": 25, "checkpoint_every": 0}
    began = time.monotonic()
    run(tmp_path / "whole", **how)
    life, moments = time.monotonic() - began, random.Random(1)
    for _ in range(kills):
        child = os.fork()
        if child == 0:
            run(tmp_path / "parts", **how)
            os._exit(0)
        time.sleep(moments.uniform(0, life / 2))
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    assert run(tmp_path / "parts", **how)["finished"]
    assert (tmp_path / "parts").read_bytes() == (tmp_path / "whole").read_bytes()
    assert {file.name for file in tmp_path.iterdir() if file.suffix != ".partial"} == {"parts", "whole"}


def test_checkpoints_of_other_runs_are_errors(tmp_path):
    run(tmp_path / "w", minutes=1e-9)
    with pytest.raises(ValueError, match=r"lr=0.002 there: delete it or pass resume=False"):
        run(tmp_path / "w", lr=0.5)
    with pytest.raises(ValueError, match="objective=.* there"):
        run(tmp_path / "w", objective={**LABELS, "times": "logit-normal"})
    with pytest.raises(ValueError, match="data=.* there"):
        run(tmp_path / "w", (X + 1, {"label": LABEL}))
    with pytest.raises(ValueError, match="must be of shape"):
        run(tmp_path / "w", model=model_of(width=8))
    assert run(tmp_path / "w", lr=0.5, resume=False)["finished"]


def test_parts_of_a_batch_are_the_batch(tmp_path):
    run(tmp_path / "one", model=model_of(dropout=0.0))
    run(tmp_path / "parts", model=model_of(dropout=0.0), accumulate=3)
    one, parts = plain(tmp_path / "one"), plain(tmp_path / "parts")
    for name in one:
        torch.testing.assert_close(parts[name], one[name], rtol=0, atol=1e-6)


def test_a_long_gradient_is_shortened(tmp_path):
    before = torch.cat([p.detach().flatten() for p in model_of().net.parameters()])
    sgd = {"steps": 1, "optimizer": torch.optim.SGD, "schedule": "constant(warmup=0)", "lr": 0.5}
    for clip, norm in ((1e-3, 0.5e-3), (None, None)):
        model = model_of()
        run(tmp_path / "w", model=model, clip=clip, log=tmp_path / f"{clip}.jsonl", **sgd)
        moved = torch.cat([p.detach().flatten() for p in model.net.parameters()]) - before
        logged = read(tmp_path / f"{clip}.jsonl")[1][0]["norm"]  # the norm before it is shortened
        assert float(moved.norm()) == pytest.approx(norm or 0.5 * logged, rel=1e-3)


def test_autocast_computes_in_bfloat16(tmp_path):
    seen = []
    model = model_of()
    model.net.layers[0].register_forward_hook(lambda *args: seen.append(args[2].dtype))
    assert math.isfinite(run(tmp_path / "w", model=model, autocast=torch.bfloat16, steps=2)["loss"])
    assert set(seen) == {torch.bfloat16}
    assert {t.dtype for t in plain(tmp_path / "w").values()} == {torch.float32}


def test_a_look_at_the_averaged_weights(tmp_path):
    seen = {}

    def look(model, step):
        torch.rand(1)
        seen[step] = model.net.layers[0].weight.clone()
        assert not model.net.training

    run(tmp_path / "looked", look=look)
    run(tmp_path / "not")
    assert (tmp_path / "looked").read_bytes() == (tmp_path / "not").read_bytes()
    assert list(seen) == list(range(1, 8))
    assert torch.equal(seen[7], plain(tmp_path / "not")["layers.0.weight"])


def test_the_log_is_drawn(tmp_path):
    pytest.importorskip("matplotlib")
    run(tmp_path / "w", log=tmp_path / "w.jsonl")
    training.plot(tmp_path / "w.jsonl", tmp_path / "w.svg")
    assert "<svg" in (tmp_path / "w.svg").read_text()
    (tmp_path / "other.jsonl").write_text('{"a": 1}\n')
    with pytest.raises(ValueError, match="log must be a log of `fit`"):
        training.plot(tmp_path / "other.jsonl", tmp_path / "x.png")


class Gain(torch.nn.Module):
    """(1 + theta) times the best velocity for N(0, 0.36), t x_0 + (1 - t) eps."""

    def __init__(self):
        super().__init__()
        self.theta = torch.nn.Parameter(torch.tensor(0.4))

    def forward(self, x, t):
        gain = (0.36 * t - (1 - t)) / (0.36 * t**2 + (1 - t) ** 2)
        return (1 + self.theta) * gain[:, None] * x


def test_the_optimum_of_gaussian_data_is_found(tmp_path):
    x0 = 0.6 * torch.randn(4000, 3, generator=torch.Generator().manual_seed(1))
    model = ds.adapt(Gain(), "condot", "velocity")
    fit(model, x0, tmp_path / "w", steps=60, batch=200, lr=0.05, schedule="cosine(warmup=0)", ema=0.9)
    assert abs(model.net.theta.item()) < 0.04


# ------------------------------------------------------------------------------ averages and schedules


@pytest.mark.parametrize("ema", [0.9, training.Power(0.1)])
def test_the_average_is_its_recursion(ema):
    net, (kind,) = torch.nn.Linear(2, 2).double(), average.named(ema)
    mean, expected = average.averaged(net, kind), None
    for t in range(1, 30):
        with torch.no_grad():
            net.weight += torch.randn(2, 2, dtype=torch.float64)
        mean.update_parameters(net)
        beta = min(0.9, t / (t + 9)) if ema == 0.9 else (1 - 1 / t) ** (kind.gamma + 1)
        now = net.weight.detach().clone()
        expected = now if t == 1 else beta * expected + (1 - beta) * now
        torch.testing.assert_close(mean.module.weight, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(("length", "gamma"), [(0.05, 16.97), (0.10, 6.94)])
def test_a_power_average_has_its_length(length, gamma):
    """The weights of theta_1 .. theta_T are as t^gamma, whose deviation is `length` T (2312.02696, section 3.1)."""
    kind, T = training.Power(length), 4000
    assert kind.gamma == pytest.approx(gamma, abs=0.02)
    weights = torch.ones(1, dtype=torch.float64)
    for t in range(2, T + 1):
        beta = kind.decay(t)
        weights = torch.cat([weights * beta, torch.tensor([1 - beta], dtype=torch.float64)])
    t = torch.arange(1, T + 1, dtype=torch.float64) / T
    mean = (weights * t).sum()
    assert float(weights.sum()) == pytest.approx(1)
    assert float((weights * (t - mean) ** 2).sum().sqrt()) == pytest.approx(length, rel=2e-3)


def test_profiles_are_fitted_by_their_products():
    """The products of 2312.02696, algorithm 3, by quadrature; a profile among the given ones is that one."""
    times, gammas = [0.3, 0.6, 1.0, 1.0], [6.94, 16.97, 6.94, 16.97]

    def product(a, b):
        profiles = [lambda x, t=t, g=g: (g + 1) * x**g / t ** (g + 1) for t, g in (a, b)]
        return quad(lambda x: profiles[0](x) * profiles[1](x), 0, min(a[0], b[0]))[0]

    given = list(zip(times, gammas, strict=True))
    matrix = [[product(a, b) for b in given] for a in given]
    right = [product(a, (1.0, 10.0)) for a in given]
    found = average.weights_of_profiles([1000 * t for t in times], gammas, 1000, 10.0)
    np.testing.assert_allclose(found, np.linalg.solve(matrix, right), rtol=1e-6)
    np.testing.assert_allclose(average.weights_of_profiles(times, gammas, 1.0, 6.94), [0, 0, 1, 0], atol=1e-9)


def test_averages_of_two_lengths_make_a_third(tmp_path):
    """As if it had been followed in the training: the weights of `Power(0.08)`."""
    how = {"steps": 80, "lr": 0.02, "schedule": "constant"}
    run(tmp_path / "w", ema=(training.Power(0.05), training.Power(0.10)), snapshots=8, **how)
    run(tmp_path / "wanted", ema=training.Power(0.08), **how)
    files = sorted(tmp_path.glob("w-*"))
    assert len(files) == 16
    assert plain(tmp_path / "w-0.05-80").keys() == plain(tmp_path / "w").keys()
    found, wanted = training.combine(files, 0.08), plain(tmp_path / "wanted")
    one = plain(tmp_path / "w-0.05-80")
    off, apart = (sum(float((v[n] - wanted[n]).square().sum()) for n in wanted) ** 0.5 for v in (found, one))
    assert off < 0.1 * apart
    assert found["calls"] == 80
    with pytest.raises(ValueError, match="must be a power average of a training"):
        training.combine([tmp_path / "w"], 0.08)


def test_schedules_are_their_formulas():
    cosine, constant, root = map(schedule.named, ("cosine(warmup=4)", "constant", "inverse-root(decay=10,warmup=0)"))
    assert [cosine(k, 80) for k in (0, 3, 40)] == pytest.approx([0.25, 0.5 * (1 + math.cos(3 * math.pi / 80)), 0.5])
    assert [constant(k, 9999) for k in (0, 99, 500)] == [1 / 200, 0.5, 1]
    assert [constant(k, 20) for k in (0, 1, 2)] == [0.5, 1, 1]  # a tenth at most
    assert [root(k, 8) for k in (0, 10, 40)] == [1, 1, 0.5]


# -------------------------------------------------------------------------------------------------- errors


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"steps": 0}, "steps must be an integer >= 1, got 0"),
        ({"batch": 0.5}, "batch must be an integer >= 1, got 0.5"),
        ({"lr": 0.0}, "lr must be a finite number > 0"),
        ({"ema": 1.0}, "ema must be a finite number >= 0 and < 1"),
        ({"ema": training.Power}, "ema must be a finite number"),
        ({"ema": 0.9, "snapshots": 2}, r"ema must be ds.training.Power\(length\), for snapshots"),
        ({"seed": -1}, "seed must be an integer from 0"),
        ({"clip": 0}, "clip must be"),
        ({"accumulate": 4}, "accumulate must be a divisor of the batch, 6, got 4"),
        ({"minutes": 0.0}, "minutes must be"),
        ({"checkpoint_every": -1}, "checkpoint_every must be"),
        ({"workers": -1}, "workers must be"),
        ({"schedule": "linear"}, "schedule must be one of"),
        ({"objective": 3}, "objective must be a mapping"),
        ({"data": 3}, "data must be a tensor x0, a pair .*, got 3"),
        ({"data": [3]}, "data must be a tensor x0, a pair"),
        ({"data": (X, LABEL)}, r"data\[1\] must be a mapping of conditions"),
        ({"data": (X, {"label": LABEL[:4]})}, r"cond\['label'\] must be a tensor of 50 rows"),
        ({"data": TensorDataset(X[:0])}, "data must be a Dataset with at least one sample"),
        ({"data": TensorDataset(X, X, X)}, r"a batch of data must be x, \(x, label\)"),
        ({"data": X.long()}, "x0 must be a floating tensor"),
        ({"model": torch.nn.Linear(2, 2)}, "model must be a Model, of ds.adapt"),
        ({"model": ds.adapt(lambda x, t: x, "condot", "velocity")}, "model.net must be a torch module"),
        ({"model": ds.adapt(torch.nn.Identity(), "condot", "velocity")}, "model.net must be a module with parameters"),
        ({"out": "no/such/w"}, "out must be in a folder that exists"),
        ({"out": "."}, "out must be a file, got the folder"),
        ({"lr": 1e30, "steps": 50}, "lower lr"),
        ({"learning_rate": 1}, "unknown option 'learning_rate'"),
    ],
)
def test_errors_name_what_is_wrong(tmp_path, monkeypatch, options, says):
    monkeypatch.chdir(tmp_path)
    errors = (ValueError, TypeError, OSError, FloatingPointError)
    with pytest.raises(errors, match=says):
        run(**{"out": "w", **options})
    assert os.listdir(tmp_path) == []


def test_two_at_once_are_refused(tmp_path):
    def look(model, step):
        with pytest.raises(BlockingIOError):
            run(tmp_path / "w")

    assert run(tmp_path / "w", steps=1, look=look)["finished"]


def test_failed_writes_leave_what_was_there(tmp_path, monkeypatch):
    (tmp_path / "w").write_bytes(b"before")

    def full(*_):
        raise OSError("no space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("os.fsync", full)
        with pytest.raises(OSError, match="no space"):
            run(tmp_path / "w", steps=1)
    assert os.listdir(tmp_path) == ["w"]
    assert (tmp_path / "w").read_bytes() == b"before"
