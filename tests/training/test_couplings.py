"""Couplings, pairs of a flow's ends, and how straight a flow is."""

import itertools
import math
import os

import numpy as np
import pytest
import torch
from scipy.integrate import quad

import diffsolve as ds
from diffsolve import training
from diffsolve.reference import mixture_model
from diffsolve.reference.mixture import GaussianMixture
from diffsolve.training import couplings

B = 7


def ends(seed=0, event=(2,)):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(B, *event, generator=generator, dtype=torch.float64) for _ in range(2)]


def uniform(count=B, seed=0):
    return torch.rand(count, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_the_optimal_matching_is_the_best_of_all():
    pytest.importorskip("ot")
    x0, noise = ends()
    row = couplings.named("ot").partners(x0, noise, uniform())
    costs = {p: float((x0 - noise[list(p)]).square().sum()) for p in itertools.permutations(range(B))}
    assert tuple(row.tolist()) == min(costs, key=costs.get)


@pytest.mark.parametrize(("reg", "like", "draws"), [(0.02, "ot", 9), (1e4, None, 60)])
def test_sinkhorn_lies_between_the_optimum_and_independence(reg, like, draws):
    pytest.importorskip("ot")
    x0, noise = ends(event=(2, 2))
    drawn = [couplings.Sinkhorn(reg).partners(x0, noise, uniform(seed=k)) for k in range(draws)]
    counts = torch.stack([torch.bincount(rows, minlength=B) for rows in torch.stack(drawn, 1)])
    if like:
        assert torch.equal(counts.argmax(1), couplings.named(like).partners(x0, noise, uniform()))
        assert (counts.max(1).values > 6).all()
    else:
        assert (counts - draws / B).abs().max() < 4 * math.sqrt(draws / B)


def test_data_keep_their_conditions_and_the_noises_are_those_of_the_batch():
    pytest.importorskip("ot")
    seen = []

    def net(x, t, label):
        seen.append(label)
        return x

    model = ds.adapt(net, "condot", "velocity", dtype=torch.float64)
    x0, label, how = ends()[0], torch.arange(B), {"seed": 2, "step": 5}
    plain, parts = (
        training.objective(model, x0, cond={"label": label}, coupling=coupling, **how)[1]
        for coupling in ("independent", "ot")
    )
    assert all(torch.equal(one, label) for one in seen)
    noises = [x0 - part.target for part in (plain, parts)]
    torch.testing.assert_close(noises[0].sort(0).values, noises[1].sort(0).values)
    assert (x0 - noises[1]).square().sum() < 0.8 * (x0 - noises[0]).square().sum()
    assert torch.equal(plain.times, parts.times)


@pytest.mark.parametrize(
    ("coupling", "says"),
    [("optimal", "coupling must be one of"), ("sinkhorn(reg=0)", "reg must be a finite number >= 0.01, got 0")],
)
def test_errors_name_what_is_wrong(coupling, says):
    model = ds.adapt(lambda x, t: x, "condot", "velocity")
    with pytest.raises(ValueError, match=says):
        training.objective(model, torch.ones(4, 2), seed=0, step=0, coupling=coupling)


# ------------------------------------------------------------------------------------------------- reflow

S = 0.6


class Best(torch.nn.Module):
    """The exact velocity of N(0, S^2) on CondOT; shifted for label 1."""

    def __init__(self):
        super().__init__()
        self.size = torch.nn.Parameter(torch.tensor(S, dtype=torch.float64))

    def forward(self, x, t, label=None):
        t = t.view(-1, *[1] * (x.dim() - 1))
        shift = 0 if label is None else 2.0 * label.view(t.shape)
        x = x - t * shift
        return (self.size**2 * t - (1 - t)) / (self.size**2 * t**2 + (1 - t) ** 2) * x + shift


def best():
    return ds.adapt(Best(), "condot", "velocity")


def test_pairs_are_the_ends_of_the_flow(tmp_path):
    label = torch.arange(10) % 2
    pairs = training.reflow(best(), (10, 3), tmp_path, nfe=40, solver="heun", seed=4, batch=4, cond={"label": label})
    end = S * pairs.cond["noise"] + 2.0 * label[:, None]  # x_1 = s x_0 of a Gaussian
    torch.testing.assert_close(pairs.x0, end, rtol=0, atol=5e-3)
    assert torch.equal(pairs.cond["label"], label)
    assert len(set(pairs.cond["noise"].flatten().tolist())) == 30
    assert sorted(os.listdir(tmp_path)) == [*(f"pairs-0000{i}.safetensors" for i in range(3)), "pairs.jsonl"]
    noisy = {"nfe": 6, "solver": "ddim(eta=1.0)", "seed": 4}
    again = training.reflow(best(), (10, 3), tmp_path / "noisy", batch=4, **noisy)
    torch.testing.assert_close(again.x0, ds.sample(best(), (10, 3), **noisy))  # in shards or at once
    run = ds.solve(best(), (10, 3), nfe=40, solver="heun", seed=4, cond={"label": label})
    torch.testing.assert_close(pairs.x0, run.x)  # the same noises as those of ds.solve


def test_pairs_broken_off_go_on(tmp_path):
    how = {"nfe": 4, "batch": 3, "seed": 1}
    whole = training.reflow(best(), (9, 2), tmp_path / "whole", **how)
    training.reflow(best(), (9, 2), tmp_path / "parts", **how)
    file = tmp_path / "parts" / "pairs.jsonl"
    lines = file.read_text().splitlines(keepends=True)
    file.write_text("".join(lines[:2]))  # the settings and one shard
    before = os.stat(tmp_path / "parts" / "pairs-00000.safetensors").st_mtime_ns
    with pytest.raises(ValueError, match="folder must be one of 9 pairs, all of them made: 3 are"):
        training.Pairs(tmp_path / "parts")
    again = training.reflow(best(), (9, 2), tmp_path / "parts", **how)
    assert os.stat(tmp_path / "parts" / "pairs-00000.safetensors").st_mtime_ns == before
    assert torch.equal(again.x0, whole.x0)
    for change in ({"seed": 2}, {"nfe": 5}, {"guidance": 2.0, "cond": {"label": torch.zeros(9)}}):
        with pytest.raises(ValueError, match="must be of the same settings"):
            training.reflow(best(), (9, 2), tmp_path / "parts", **{**how, **change})
    other = best()
    other.net.size.data += 0.1
    with pytest.raises(ValueError, match="network="):
        training.reflow(other, (9, 2), tmp_path / "parts", **how)
    assert not torch.equal(training.reflow(other, (9, 2), tmp_path / "parts", force=True, **how).x0, whole.x0)


def test_a_broken_shard_is_named(tmp_path):
    training.reflow(best(), (4, 2), tmp_path, nfe=2)
    (tmp_path / "pairs-00000.safetensors").write_bytes(b"broken")
    with pytest.raises(ValueError, match=r"a shard of pairs, got .*pairs-00000"):
        training.Pairs(tmp_path)


@pytest.mark.parametrize("path", ["condot", "vp"])
def test_straightness_is_the_integral(path):
    """Of N(0, S^2) in two dimensions: x(u) = g(u) z / g(0) with g^2 = (alpha S)^2 + sigma^2 and E|z|^2 = 2 g(0)^2."""
    where = ds.paths.named(path)
    target = GaussianMixture.isotropic(torch.zeros(1, 2, dtype=torch.float64), [S], [1.0])
    model = mixture_model(target, path, "velocity")

    def g(u):
        p = where.at(torch.tensor([where.t_noise + u * (where.t_data - where.t_noise)], dtype=torch.float64))
        return math.hypot(S * float(p.alpha), float(p.sigma))

    def off(u, h=1e-5):
        u = min(max(u, h), 1 - h)
        return ((g(u + h) - g(u - h)) / (2 * h) - (g(1) - g(0))) ** 2

    expected = 2 * quad(off, 0, 1, limit=200)[0] * where.prior_std() ** 2 / g(0) ** 2
    found = training.straightness(model, (4000, 2), steps=80, seed=0)
    assert found == pytest.approx(expected, rel=0.06)


def test_the_lines_of_a_shift_are_straight():
    model = ds.adapt(lambda x, t: torch.full_like(x, 3.0), "condot", "velocity", dtype=torch.float64)
    assert training.straightness(model, (8, 2, 2), steps=5) == pytest.approx(0, abs=1e-20)


def test_a_path_without_a_finite_clock_has_no_straightness():
    with pytest.raises(ValueError, match="path must be one whose clock is finite at both ends"):
        training.straightness(ds.load("mixture-2d(path='ve')"), (8, 2))


class Shift(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.by = torch.nn.Parameter(torch.zeros(2))

    def forward(self, x, t):
        return self.by.expand_as(x)


NOISES = {
    "tensor": lambda: torch.full((20, 2), 2.0),
    "law": lambda: torch.distributions.Independent(torch.distributions.Normal(torch.full((2,), 2.0), 0.01), 1),
}


@pytest.mark.parametrize("kind", NOISES)
def test_any_noise_end_may_be_given(tmp_path, kind):
    """From around 2 to -1: the velocity is -3; and it goes on where it was, with the same bits."""
    how = {"steps": 30, "batch": 10, "lr": 0.5, "noise": NOISES[kind](), "ema": 0.5}
    data = -torch.ones(30, 2)
    model = ds.adapt(Shift(), "condot", "velocity")
    training.fit(model, data, tmp_path / "whole", **how)
    np.testing.assert_allclose(model.net.by.detach(), -3, atol=0.1)
    for _ in range(3):
        training.fit(ds.adapt(Shift(), "condot", "velocity"), data, tmp_path / "parts", minutes=1e-9, **how)
    training.fit(ds.adapt(Shift(), "condot", "velocity"), data, tmp_path / "parts", **how)
    assert (tmp_path / "whole").read_bytes() == (tmp_path / "parts").read_bytes()


def test_given_pairs_are_trained_on(tmp_path):
    """Pairs x_0 = noise + 5: the velocity is 5 whatever the noise."""
    noise = torch.randn(30, 2, generator=torch.Generator().manual_seed(0))
    model = ds.adapt(Shift(), "condot", "velocity")
    report = training.fit(model, (noise + 5, {"noise": noise}), tmp_path / "w", steps=60, batch=8, lr=0.5, ema=0.5)
    assert report["loss"] < 30
    np.testing.assert_allclose(model.net.by.detach(), 5, atol=0.2)
