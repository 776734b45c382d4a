"""Sweeps: what they measure, that they go on where they stopped, and the command line."""

import json
import math
import os
import subprocess
import sys
from dataclasses import replace

import pytest
import torch

import diffsolve as ds
from diffsolve import metrics
from diffsolve.common.fingerprint import describe
from diffsolve.metrics import Statistics, Table, sweep
from diffsolve.reference.mixture import GaussianMixture, ring

REFERENCE = Statistics.of(ring().sample(400, seed=0))
SMALL = {"nfe": [4, 6], "num": 40, "batch": 16, "exact": 16, "fine": 40}


@pytest.fixture(scope="module")
def model():
    return ds.load("mixture-2d")


def run(model, **options):
    return sweep(model, (2,), **{"reference": REFERENCE, **SMALL, **options})


def scores(table):
    return [(row.solver, row.nfe, row.seed, row.calls, row.scores) for row in table.rows]


def test_a_cell_is_what_its_parts_say(model):
    """Against the library called by hand, in one batch."""
    table = run(model, solvers=["unipc-3", "heun"], seeds=[3])
    for solver, nfe in (("unipc-3", 6), ("heun", 4)):
        found = ds.solve(model, (40, 2), solver=solver, nfe=nfe, seed=3)
        samples = Statistics.of(found.x)
        (row,) = (row for row in table.rows if (row.solver, row.nfe) == (solver, nfe))
        assert row.calls == found.nfe
        assert row.seed == 3
        assert row.method == found.tableau.solver
        value, stderr = metrics.kid(samples, REFERENCE)
        fine, coarse = (ds.sample(model, (16, 2), nfe=n, seed=3) for n in (40, 20))
        expected = {
            "FD": metrics.frechet(samples, REFERENCE),
            "FD inf": metrics.frechet_infinity(samples, REFERENCE),
            "KID": value,
            "KID stderr": stderr,
            "endpoint error": float((found.x[:16] - fine).square().mean().sqrt()),
        }
        assert row.scores.keys() == expected.keys()
        assert row.scores == pytest.approx(expected, rel=1e-4)
        assert row.floor == pytest.approx(float((fine - coarse).square().mean().sqrt()), rel=1e-4)
        assert row.seconds > 0


def test_shards_are_the_whole(model):
    whole, sharded = (run(model, solvers=["heun", "ddim(eta=1.0)"], batch=batch) for batch in (40, 7))
    for a, b in zip(whole.rows, sharded.rows, strict=True):
        assert a.scores == pytest.approx(b.scores, rel=1e-3, abs=1e-5)


def test_the_endpoint_error_falls_with_the_order_and_needs_no_reference(model):
    smooth = ds.reference.mixture_model(GaussianMixture.isotropic([[1.0, 0.0], [-1.0, 0.5]], 1.0))
    table = sweep(
        smooth, (2,), solvers=["heun", "rk4", "ddim(eta=0.5)"], nfe=[32, 64], num=20, exact=20, fine=400,
        dtype=torch.float64,
    )  # fmt: skip
    assert table.measures == ["endpoint error"]
    error = {(row.solver, row.nfe): row.scores for row in table.rows}
    for solver, order in (("heun", 2), ("rk4", 4)):
        slope = math.log2(error[solver, 32]["endpoint error"] / error[solver, 64]["endpoint error"])
        assert slope == pytest.approx(order, abs=0.4)
    assert error["ddim(eta=0.5)", 32] == {}  # no exact endpoint
    assert all(row.floor < error["rk4", 64]["endpoint error"] / 2 for row in table.rows if row.floor)


def test_a_grid_for_all_solvers_is_not_that_of_the_endpoints(model):
    plain, karras = (run(model, solvers=["heun"], **grid).rows[0] for grid in ({}, {"grid": "karras"}))
    assert plain.floor == karras.floor
    assert plain.table != karras.table
    x = ds.sample(model, (16, 2), solver="heun", nfe=4, grid="karras", seed=0)
    error = (x - ds.sample(model, (16, 2), nfe=40, seed=0)).square().mean().sqrt()
    assert karras.scores["endpoint error"] == pytest.approx(float(error), rel=1e-4)


def test_conditions_are_cycled_over_the_samples():
    seen = []

    def net(x, t, label, scale, more=None):
        seen.append(label.tolist())
        assert scale == 2.0
        assert more is None or (len(more["pooled"]) == len(x) and more["kept"] == "a")
        return -x

    model = ds.adapt(net, "condot", "velocity")
    cond = {"label": torch.arange(3), "scale": 2.0}
    more = {"more": {"pooled": torch.ones(1, 5), "kept": "a"}}
    sweep(model, (2,), reference=REFERENCE, nfe=[1], num=8, batch=5, cond=cond | more, exact=0)
    assert seen == [[0, 1, 2, 0, 1], [2, 0, 1]]
    seen.clear()
    guidance = ds.Guidance(2.0, uncond={"label": torch.tensor([7, 8]), "scale": 2.0})
    sweep(model, (2,), reference=REFERENCE, nfe=[1], num=4, batch=3, cond=cond, exact=0, guidance=guidance)
    assert sorted(seen) == sorted([[0, 1, 2], [7, 8, 7], [0], [8]])


def test_guidance_reaches_samples_and_endpoints():
    model = ds.load("digits")
    options = {"cond": {"label": torch.tensor([3])}, "nfe": [20], "num": 2, "exact": 2, "fine": 40}
    plain, guided = (sweep(model, (1, 8, 8), guidance=w, **options) for w in (None, 3.0))
    label = {"label": torch.tensor([3, 3])}
    x, fine = (ds.sample(model, (2, 1, 8, 8), nfe=n, seed=0, guidance=3.0, cond=label) for n in (20, 40))
    expected = float((x - fine).square().mean().sqrt())
    assert guided.rows[0].scores["endpoint error"] == pytest.approx(expected, rel=1e-3)
    assert guided.rows[0].scores != plain.rows[0].scores


def test_several_references_own_scores_and_decoding(model):
    norms = Statistics.of(ring().sample(100, seed=0), lambda x: x.norm(dim=1, keepdim=True), keep=0)
    table = run(
        model,
        nfe=[4],
        reference={"points": REFERENCE, "norms": norms},
        decode=lambda x: x + 1,
        scores={"shift": lambda found, data: float((found.mean - data.mean).norm()), "FD": metrics.frechet},
    )
    x = ds.sample(model, (40, 2), nfe=4, seed=0) + 1
    (row,) = table.rows
    assert list(row.scores) == ["points shift", "points FD", "norms shift", "norms FD", "endpoint error"]
    assert row.scores["points shift"] == pytest.approx(float((x.mean(0) - REFERENCE.mean).norm()), rel=1e-4)
    assert row.scores["norms FD"] == pytest.approx(
        metrics.frechet(Statistics.of(x, norms.features), norms), rel=1e-3, abs=1e-5
    )
    assert row.scores["endpoint error"] < 10  # of the samples, not of what they are decoded to


def test_scores_that_would_mean_nothing_are_left_out(model):
    assert run(model, num=7, nfe=[4]).measures == ["FD", "KID", "endpoint error"]
    bare = Statistics(None, REFERENCE.mean, REFERENCE.cov)
    assert run(model, nfe=[4], reference=bare, exact=0).measures == ["FD", "FD inf"]


def test_solvers_with_a_budget_of_their_own(model):
    table = run(
        model,
        solvers={
            "dopri5": ds.Adaptive("dopri5", rtol=1e-2, atol=1e-2),
            "table": ds.plan("condot", "heun", steps=3),
            "karras": {"solver": "heun", "grid": "karras"},
            "sde": ds.AdaptiveSDE(rtol=0.3, atol=0.3),
        },
        nfe=[5],
        num=10,
        exact=4,
    )
    by = {row.solver: row for row in table.rows}
    assert [by[name].nfe for name in ("dopri5", "table", "karras", "sde")] == [None, None, 5, None]
    adaptive = ds.solve(model, (10, 2), solver=ds.Adaptive("dopri5", rtol=1e-2, atol=1e-2), seed=0)
    assert by["dopri5"].calls == pytest.approx(adaptive.nfe.mean())
    assert by["table"].calls == ds.plan("condot", "heun", steps=3).nfe
    assert "endpoint error" in by["dopri5"].scores
    assert "endpoint error" not in by["sde"].scores
    assert by["karras"].table != run(model, solvers={"karras": "heun"}, nfe=[5], num=10).rows[0].table
    assert "own" in str(table)


def test_samples_that_are_not_finite_are_told():
    model = ds.adapt(lambda x, t: x * math.inf, "condot", "velocity")
    table = sweep(model, (2,), reference=REFERENCE, nfe=[2, 3], num=8)
    assert all(value is None for row in table.rows for value in row.scores.values())
    assert "not finite" in str(table)
    json.dumps([row.scores for row in table.rows], allow_nan=False)


# --------------------------------------------------------------------------------------------- the file


class Stop(Exception):
    pass


def interrupted(model, calls):
    """The model, which fails at that call."""
    left = [calls]

    def net(x, t):
        left[0] -= 1
        if left[0] < 0:
            raise Stop
        return model.net(x, t)

    net.__qualname__ = "net"
    return ds.adapt(net, model.path, model.predicts)


def test_a_sweep_that_was_stopped_goes_on(model, tmp_path):
    options = {"solvers": ["heun", "ddim(eta=1.0)"], "seeds": 2}
    whole = run(interrupted(model, 10**9), out=tmp_path / "whole.jsonl", **options)
    made = []
    for _ in range(50):
        net = interrupted(model, 80)
        try:
            table = run(net, out=tmp_path / "part.jsonl", **options)
            break
        except Stop:
            made.append((tmp_path / "part.jsonl").read_bytes())
            (tmp_path / "part.jsonl").write_bytes(made[-1] + b'{"solver": "heun", "nf')  # a line cut short
    assert len(made) >= 2
    assert len({len(m.splitlines()) for m in made}) >= 2  # it got on
    assert scores(table) == scores(whole)
    lines = [(tmp_path / name).read_text().splitlines() for name in ("whole.jsonl", "part.jsonl")]
    assert len(lines[0]) == 1 + len(whole.rows) == len(lines[1])
    assert lines[0][0] == lines[1][0]
    again = run(interrupted(model, 0), out=tmp_path / "part.jsonl", **options)  # without a call
    assert again == table
    assert Table.read(tmp_path / "part.jsonl").rows == table.rows


def test_more_cells_join_and_the_table_has_those_asked_for(model, tmp_path):
    out = tmp_path / "s.jsonl"
    first = run(model, solvers="heun", out=out)
    more = run(model, solvers=["unipc-3", "heun"], nfe=[6, 8], seeds=2, batch=9, out=out, device="cpu")
    assert [row.seed for row in more.rows] == [0] * 4 + [1] * 4  # a seed for all before the next
    assert first.rows[1] in more.rows
    assert first.rows[0] not in more.rows
    everything = Table.read(out)
    assert len(everything.rows) == 2 + 7
    assert everything.budgets == [4, 6, 8]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num": 41}, "num=40 there and 41 here"),
        ({"guidance": 2.0}, "guidance="),
        ({"reference": Statistics.of(ring().sample(400, seed=1))}, "reference="),
        ({"exact": 8}, "exact=16 there and 8 here"),
        ({"grid": "karras"}, "options={} there"),
        ({"cond": {"label": torch.arange(3)}}, "cond="),
        ({"decode": torch.nn.Identity()}, "decode=None there"),
        ({"scores": {"FD": metrics.frechet}}, "scores="),
        ({"solvers": {"heun": {"solver": "heun", "grid": "karras"}}}, "solver 'heun' with nfe=4"),
        ({"solvers": {"heun": "heun(frame='noise')"}}, "label of its own"),
    ],
)
def test_a_file_of_other_settings_is_refused_by_name(model, tmp_path, change, message):
    out = tmp_path / "s.jsonl"
    run(model, solvers=["heun"], nfe=[4], out=out)
    before = out.read_bytes()
    with pytest.raises(ValueError, match="other settings") as refused:
        run(model, **{"solvers": ["heun"], "nfe": [4], "out": out, **change})
    assert message in str(refused.value)
    assert out.read_bytes() == before


def test_a_file_of_another_checkpoint_is_refused(tmp_path):
    net = torch.nn.Linear(2, 2)

    class Net(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = net

        def forward(self, x, t):
            return self.layer(x)

    model, out = ds.adapt(Net(), "condot", "velocity"), tmp_path / "s.jsonl"
    run(model, nfe=[2], num=8, out=out)
    run(ds.adapt(Net(), "condot", "velocity"), nfe=[2], num=8, out=out)  # the same weights in another object
    with torch.no_grad():
        net.bias += 1e-3
    with pytest.raises(ValueError, match="other settings: model="):
        run(model, nfe=[2], num=8, out=out)


def test_what_is_found_again_with_another_rounding_is_the_same(tmp_path):
    """Statistics from other batches, a tableau whose weights differ in the last bit; not what differs by more."""
    images = torch.randn(100, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    whole, parts = (Statistics.of(images, batch=n) for n in (100, 7))
    assert not torch.equal(whole.cov, parts.cov)
    assert describe(whole) == describe(parts)
    assert describe(whole) != describe(Statistics.of(images * (1 + 1e-4)))
    assert describe(whole) != describe(Statistics.of(images, lambda x: x))
    table = ds.plan("condot", "unipc-3", nfe=8)
    close, far = (replace(table, weights=table.weights * (1 + h)) for h in (1e-15, 1e-10))
    assert describe(table) == describe(close) == describe(far)
    assert describe(table) != describe(ds.plan("condot", "unipc-2", nfe=8))
    assert describe(table) != describe(ds.plan("condot", "unipc-3", nfe=8, grid="karras"))


def test_what_stands_for_values():
    assert describe(ds.paths.named("edm")) != describe(ds.paths.named("edm(sigma_max=70)"))
    betas = torch.linspace(1e-4, 0.02, 50)
    assert describe(ds.paths.Discrete(betas)) == describe(ds.paths.Discrete(betas.clone()))
    assert describe(ds.paths.Discrete(betas)) != describe(ds.paths.Discrete(betas * 1.01))
    assert describe({"a": (1, None, "x", torch.float64)}) == {"a": [1, None, "x", "torch.float64"]}
    assert describe(lambda x: x).endswith("<lambda>")
    assert describe(torch.ones(2, dtype=torch.bfloat16)) != describe(torch.ones(2))
    assert describe(torch.zeros(0)) == describe(torch.zeros(0))
    net = torch.nn.Linear(300, 2)
    before = describe(net)
    with torch.no_grad():
        net.weight[0, 0] += 1
    assert describe(net) != before
    json.dumps(describe(ds.Guidance(2.0)), allow_nan=False)


def test_broken_files_are_told_by_line(model, tmp_path):
    out = tmp_path / "s.jsonl"
    run(model, nfe=[4], out=out)
    good = out.read_text()
    for bad, message in (
        ("{}}\n", "line 3 must be a JSON object"),
        ("[1]\n", "line 3 must be a JSON object"),
        ('{"a": 1}\n', "line 3 must be a record of this kind, got {'a': 1}: it has no 'solver'"),
        (good.splitlines()[1].replace('"seed": 0', '"seed": -1') + "\n", "must have results of a sweep, .*: seed must"),
        (good.splitlines()[1].replace('"seed": 0', '"seed": []') + "\n", "line 3 must be a record of this kind"),
        ("[" * 100_000 + "\n", "line 3 must be a JSON object"),
    ):
        out.write_text(good + bad)
        with pytest.raises(ValueError, match=message):
            run(model, nfe=[4], out=out)
    with pytest.raises(FileNotFoundError, match="in a folder that exists"):
        run(model, out=tmp_path / "nowhere" / "s.jsonl")


# -------------------------------------------------------------------------------------------- the table


def table_of(values, **about):
    rows = [
        metrics.table.ResultRow("a", "m", None, 5, seed, 5.0, 0.1, {"FD": value, "KID": value, "KID stderr": 1.0}, None)
        for seed, value in enumerate(values)
    ]
    return Table(tuple(rows), about)


def test_means_and_their_errors():
    assert table_of([1.0, 2.0, 6.0]).cell("FD", "a", 5) == pytest.approx((3.0, math.sqrt(14 / 2 / 3), 5.0))
    mean, error, _ = table_of([2.0]).cell("FD", "a", 5)
    assert mean == 2.0
    assert math.isnan(error)
    assert math.isnan(table_of([2.0, None]).cell("FD", "a", 5)[0])
    assert table_of([2.0]).cell("FD", "b", 5) is None
    assert table_of([2.0]).measures == ["FD", "KID"]


@pytest.mark.parametrize(
    ("values", "text"),
    [
        ([2.0], "2"),
        ([1.0, 2.0, 6.0], "3.0 ± 1.5"),
        ([1e-4, 3e-4], "2.00e-04 ± 1e-04"),
        ([100.0, 500.0], "300 ± 200"),
        ([None], "not finite"),
    ],
)
def test_cells_are_rounded_by_their_errors(values, text):
    lines = str(table_of(values, num=7)).splitlines()
    assert lines[0].startswith("FD against network calls (7 samples")
    assert lines[2:5] == ["| solver | 5 |", "| -- | -- |", f"| a | {text} |"]


def test_calls_that_are_not_the_budget_are_told(model):
    text = str(run(model, solvers=["heun"], nfe=[4, 5], scores={"FD": metrics.frechet}))
    assert [ds.plan("condot", "heun", nfe=n).nfe for n in (4, 5)] == [4, 4]
    row = next(line for line in text.splitlines() if line.startswith("| heun"))
    assert [cell.endswith(" (4)") for cell in row.strip("| ").split(" | ")[1:]] == [False, True]
    assert "endpoint error against network calls (16 samples; the endpoints themselves are known to" in text


def test_plot(model, tmp_path):
    pytest.importorskip("matplotlib")
    table = run(model, solvers=["heun", "auto"], seeds=2)
    own = replace(table.rows[0], solver="own", nfe=None, scores={"FD": None, "KID": -1.0})
    for name, rows in (("many", (*table.rows, own)), ("own", (own,)), ("none", ())):
        Table(rows, {}).plot(tmp_path / f"{name}.png")
        assert (tmp_path / f"{name}.png").read_bytes().startswith(b"\x89PNG")
    assert len((tmp_path / "many.png").read_bytes()) > len((tmp_path / "own.png").read_bytes())


def test_plots_without_matplotlib(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ImportError, match=r"diffsolve\[metrics\]"):
        table_of([1.0]).plot("s.png")


def test_files_of_several_machines(model, tmp_path):
    one, two, other = (tmp_path / name for name in ("1.jsonl", "2.jsonl", "3.jsonl"))
    rows = [run(model, seeds=[seed], out=file).rows for seed, file in ((0, one), (1, two))]
    assert Table.read(one, two).rows == rows[0] + rows[1]
    run(model, num=8, nfe=[4], out=other)
    with pytest.raises(ValueError, match="files must be of the same settings"):
        Table.read(one, other)


# -------------------------------------------------------------------------------------------------- errors


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"solvers": ["unipc3"]}, ValueError, "did you mean 'unipc-3'"),
        ({"solvers": ["rk4"], "nfe": [1]}, ValueError, "nfe must be at least"),
        ({"solvers": []}, ValueError, "solvers must be at least one"),
        ({"solvers": ["heun", "heun"]}, ValueError, "more than once"),
        ({"solvers": {"a": {"grid": "karras"}}}, ValueError, "must be a mapping with 'solver'"),
        ({"solvers": {"a": {"solver": "heun", "stop": 0.5}}}, ValueError, "'stop'"),
        ({"solvers": {"a": {"solver": "heun", "seed": 1}}}, ValueError, "options of ds.solve .*, got 'seed'"),
        ({"log_prob": "model"}, ValueError, "options of ds.solve .*, got 'log_prob'"),
        ({"start": 0.5}, ValueError, "options of ds.solve .*, got 'start'"),
        ({"nfe": [0]}, ValueError, "nfe must be an integer >= 1, got 0"),
        ({"nfe": []}, ValueError, "nfe must be at least one budget"),
        ({"num": 0}, ValueError, "num must be an integer >= 1, got 0"),
        ({"batch": 0}, ValueError, "batch must be an integer >= 1, got 0"),
        ({"seeds": 0}, ValueError, "seeds must be an integer >= 1, got 0"),
        ({"seeds": []}, ValueError, r"seeds must be .*, got \[\]"),
        ({"seeds": [1, 1]}, ValueError, r"seeds must be .* different ones, got \[1, 1\]"),
        ({"exact": -1}, ValueError, "exact must be an integer >= 0, got -1"),
        ({"cond": 3}, TypeError, "cond must be a mapping .*, got 3"),
        ({"fine": 1}, ValueError, "fine must be an integer >= 2, got 1"),
        ({"reference": None, "exact": 0}, ValueError, "reference must be given with exact=0"),
        ({"reference": torch.ones(3)}, TypeError, "reference must be Statistics, .*, got Tensor"),
        ({"reference": {"a": torch.ones(3)}}, TypeError, r"reference\['a'\] must be Statistics, got Tensor"),
    ],
)
def test_errors_name_what_is_wrong(model, tmp_path, options, error, message):
    with pytest.raises(error, match=message):
        run(model, out=tmp_path / "s.jsonl", **options)
    assert not (tmp_path / "s.jsonl").exists()


def test_features_that_are_not_the_references_are_told_after_one_batch(model, tmp_path):
    calls = []
    counted = ds.adapt(lambda x, t: calls.append(len(x)) or model.net(x, t), "condot", "velocity")
    reference = Statistics(None, torch.zeros(3), torch.eye(3))
    with pytest.raises(ValueError, match="must have features of 2 numbers, .*, got 3"):
        run(counted, reference=reference, nfe=4, out=tmp_path / "s.jsonl")
    assert calls == [16] * 4
    assert not (tmp_path / "s.jsonl").exists()


def test_the_shape_is_of_one_sample(model):
    for shape in ((), (0,), 2, "2"):
        with pytest.raises(ValueError, match=r"shape(\[0\])? must be"):
            sweep(model, shape)
    with pytest.raises(TypeError, match="model must be a Model"):
        sweep("digits", (1, 8, 8))


def test_nothing_heavy_is_imported():
    code = "import sys, diffsolve.metrics.data; print(*sys.modules)"
    modules = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout.split()
    assert not {"scipy", "ot", "matplotlib", "sklearn", "diffusers"} & set(modules)


def test_foreign_models_are_recognised():
    diffusers = pytest.importorskip("diffusers")
    unet = diffusers.UNet2DModel(
        sample_size=8, in_channels=1, out_channels=1, block_out_channels=(4,), norm_num_groups=2, layers_per_block=1,
        down_block_types=("DownBlock2D",), up_block_types=("UpBlock2D",), attention_head_dim=4,
    )  # fmt: skip
    pipe = diffusers.DDPMPipeline(unet, diffusers.DDPMScheduler())
    table = sweep(pipe, (1, 8, 8), solvers=["ddim"], nfe=[2], num=2, exact=2, fine=4)
    assert table.rows[0].calls == 2


# ----------------------------------------------------------------------------------- digits, command line


def test_the_digits_classifier(tmp_path):
    pytest.importorskip("sklearn")
    from diffsolve.reference import classifier

    net, (_, (images, labels)) = classifier.load(), classifier.split()
    assert (net.logits(images).argmax(1) == labels).float().mean() > 0.96
    assert net(images).shape == (450, 32)
    assert not any(p.requires_grad for p in net.parameters())
    state = torch.get_rng_state()
    again = classifier.train(tmp_path / "c.safetensors", steps=120)
    assert torch.equal(torch.get_rng_state(), state)
    assert (again.logits(images).argmax(1) == labels).float().mean() > 0.8
    other = classifier.train(tmp_path / "d.safetensors", steps=120)
    assert (tmp_path / "c.safetensors").read_bytes() == (tmp_path / "d.safetensors").read_bytes()
    assert torch.equal(other(images), again(images))


def test_samples_of_the_digits_get_closer_to_the_digits():
    pytest.importorskip("sklearn")
    from diffsolve.metrics.data import DATA

    reference = DATA["digits"]()
    table = sweep(
        ds.load("digits"), (1, 8, 8), reference=reference, solvers=["auto", "ddim"], nfe=[4, 10], num=200,
        cond={"label": torch.arange(10)}, exact=0,
    )  # fmt: skip
    fd = {(row.solver, row.nfe): row.scores["FD"] for row in table.rows}
    assert fd["auto", 4] < fd["ddim", 10] < fd["ddim", 4]
    assert fd["auto", 10] < fd["ddim", 10]  # 4 calls of auto are as near as 200 samples can tell
    noise = Statistics.of(torch.randn(200, 1, 8, 8, generator=torch.Generator().manual_seed(0)), reference.features)
    assert fd["ddim", 4] < metrics.frechet(noise, reference)


@pytest.fixture
def command(tmp_path, monkeypatch):
    testing = pytest.importorskip("typer.testing")
    from diffsolve.cli import app as cli

    monkeypatch.chdir(tmp_path)

    def invoke(*arguments, code=0):
        result = testing.CliRunner().invoke(cli.app, ["bench", *map(str, arguments)])
        assert result.exit_code == code, result.output
        return result.output

    return invoke


def test_the_command_prints_the_tables_and_goes_on(command):
    arguments = ("--model", "mixture-2d", "--solver", "auto", "--solver", "unipc-3", "--nfe", 2, "--nfe", 3)
    text = command(*arguments, "--num", 20, "--exact", 4, "--out", "s.jsonl", "--plot", "s.png")
    for title in ("FD against network calls (20 samples; no error", "KID against", "endpoint error against"):
        assert title in text
    assert "| solver | 2 | 3 |" in text
    assert sorted(os.listdir()) == ["s.jsonl", "s.png"]
    before = os.stat("s.jsonl").st_size
    assert command(*arguments, "--num", 20, "--exact", 4, "--out", "s.jsonl") == text
    assert os.stat("s.jsonl").st_size == before
    refused = command(*arguments, "--num", 21, "--exact", 4, "--out", "s.jsonl", code=2)
    assert "num=20 there and 21 here" in " ".join(refused.split())


def test_the_command_is_the_library_on_the_digits(command):
    pytest.importorskip("sklearn")
    from diffsolve.metrics.data import DATA
    from diffsolve.reference import digits

    text = command("--nfe", 2, "--num", 8, "--exact", 0, "--guidance", 2.0, "--class", 3, "--seeds", 2, "--batch", 5)
    table = sweep(
        ds.load("digits"),
        (1, 8, 8),
        reference=DATA["digits"]("3"),
        nfe=[2],
        num=8,
        seeds=2,
        guidance=2.0,
        exact=0,
        batch=5,
        cond={"label": torch.tensor([3])},
    )
    assert text == f"{table}\n"
    assert "8 samples of each of 2 seeds; fewer than 4 for each of 32 features: too large" in text
    assert "no error bars" not in text
    images, labels = digits.load_data()
    assert DATA["digits"]("3").count == int((labels == 3).sum()) < DATA["digits"]("none").count == len(images)


def test_the_command_starts_anew(command):
    arguments = ("--model", "mixture-2d", "--nfe", 2, "--exact", 4, "--out", "s.jsonl")
    command(*arguments, "--num", 20)
    assert "start anew" in " ".join(command(*arguments, "--num", 21, code=2).split())
    command(*arguments, "--num", 21, "--force")
    command(*arguments, "--num", 21)


def test_the_command_on_points_in_the_plane(command):
    text = command("--model", "mixture-2d(path='edm')", "--nfe", 4, "--num", 50, "--exact", 8, "--grid", "karras")
    assert "| auto | " in text
    assert os.listdir() == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--model", "cats"), "'fashion-student', 'mixture-2d', got 'cats'"),
        (("--solver", "unipc3", "--model", "mixture-2d"), "did you mean 'unipc-3' or"),
        (("--nfe", 0, "--model", "mixture-2d"), "nfe must be an integer >= 1, got 0"),
        (("--out", "s.txt"), "out must be a file ending in .jsonl"),
        (("--plot", "s.jpg"), "out must be a file ending in .png"),
        (("--model", "mixture-2d", "--class", 3), "class must be all for a model without classes"),
        (("--model", "mixture-2d", "--guidance", 2.0), "guidance must be left out for a model without classes"),
        (("--class", 10), "class must be 'all', 'none'"),
    ],
)
def test_bad_values_are_one_line(command, arguments, message):
    assert message in " ".join(command(*arguments, code=2).split())
    assert os.listdir() == []
