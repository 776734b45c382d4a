"""The rule behind `solver="auto"`: what it depends on, and what not."""

from pathlib import Path

import numpy as np
import pytest
import torch

import diffsolve as ds
from diffsolve.reference import imperfect_model, mixture_model
from diffsolve.reference.mixture import GaussianMixture, random_means, ring
from diffsolve.solvers import Auto, Designed, DPMpp, Multistep
from diffsolve.solvers.designed import ArcOf


def net(x, t, label=None):
    return 0.5 * x if label is None else 0.5 * x + label.view(-1, 1)


FEW, MANY = (1, 6), 40  # calls that every prediction has designed weights for, and that none has


@pytest.mark.parametrize("predicts", ["noise", "score", "denoised", "edm", "v", "velocity"])
def test_the_rule(predicts):
    for steps in FEW:
        assert Auto(predicts=predicts).method(steps) == Designed(1.0, predicts)
        # Guided, in the world of the root of the scale.
        assert Auto(4.0, predicts).method(steps) == Designed(2.0, predicts)
        assert Auto(-3.0, predicts).method(steps) == Designed(2.0, predicts)  # u + w (c - u), either way
    long = Auto(predicts=predicts).method(MANY)
    if predicts in ("noise", "score", "denoised"):
        points, corrector = (4, 5) if predicts == "denoised" else (3, 3)
        assert long == Multistep(points, "straight", "lambda", corrector=corrector)
        if predicts == "denoised":  # n / sqrt(w) = 6, 9, and 9.5
            for w, n, p in ((1.0, 7, 3), (4.0, 18, 3), (4.0, 19, 4)):
                assert Auto(w, predicts).method(n) == Multistep(p, "straight", "lambda", corrector=p + 1)
        assert Auto(7.5, predicts).method(5) == DPMpp(1, "denoised")
        assert Auto(7.5, predicts).method(6) == Auto(7.5, predicts).method(1000) == DPMpp(2, "denoised")
        return
    assert Auto(predicts=predicts).method(17) == Multistep(3, "straight", "theta", corrector=4)
    assert long == Multistep(4, "straight", "theta", corrector=5)
    # n / sqrt(w) = 5, 5.5, 17, 17.5, and below two no corrector
    for w, n, points, corrector in ((9.0, 15, 1, 2), (9.0, 16, 2, 3), (9.0, 51, 3, 4), (9.0, 52, 4, 5), (9.0, 5, 1, 0)):
        for scale in (w, 1 - w):
            assert Auto(scale, predicts).method(n) == Multistep(points, "straight", "theta", corrector)


@pytest.mark.parametrize("predicts", ["edm", "v", "velocity"])
def test_of_large_samples_only_what_errs_at_an_end_is_designed(predicts):
    assert Auto(predicts=predicts, size=200).method(12) == Designed(1.0, predicts)
    for n, points in ((3, 1), (5, 1), (9, 2), (12, 3), (18, 4)):
        adams = Multistep(points, "straight", "theta", corrector=points + 1)
        assert Auto(predicts=predicts, size=201).method(n) == Auto(4.0, predicts, size=201).method(2 * n) == adams
    assert Auto(predicts="denoised", size=201).method(6) == Designed(1.0, "denoised")


def test_the_table_in_the_docs():
    """docs/accuracy.md, "The rule", cell by cell."""
    text = (Path(__file__).resolve().parents[2] / "docs" / "accuracy.md").read_text()
    table = text[text.index("| prediction | grid |") :].split("\n\n")[0].splitlines()[2:]
    cells = {row.split("|")[1].strip(): [cell.strip(" `") for cell in row.split("|")[2:-1]] for row in table}
    assert list(cells) == ["noise", "score", "denoised", "raw EDM", "v", "velocity"]
    for name, (grid, end, most, few, adams) in cells.items():
        predicts = "edm" if name == "raw EDM" else name
        auto, path, last = Auto(predicts=predicts), ds.paths.named("edm"), int(most)
        assert (auto.grid(path, 20) == ds.grids.named(grid)(path, 20)).all()
        level = path.lam(path.t_last) if end == "the path's" else eval(end.replace(" (", " * ("), {"n": 4})
        assert float(path.lam(auto.grid(path, 4)[-2])) == pytest.approx(float(level))
        assert auto.method(last) == Designed(1.0, predicts)
        assert few == "designed"
        for p, steps in ((3, last + 1), (4, 1000)):
            spec = adams.replace("ab-p", f"ab-{p}").replace("p + 1", str(p + 1))
            assert auto.method(steps) == ds.solvers.named(spec)


def test_it_is_told_the_prediction_of_the_run():
    for predicts in ("noise", "velocity"):
        tableau = ds.plan(ds.adapt(net, "vp", predicts), nfe=5)
        assert tableau == ds.plan("vp", f"auto(predicts={predicts!r})", nfe=5)
        assert tableau == ds.plan("vp", nfe=5, predicts=predicts)
        assert repr(predicts) in tableau.solver
    assert ds.plan("vp", nfe=5) == ds.plan("vp", "auto(predicts='v')", nfe=5)
    with pytest.raises(ValueError, match="predicts='v' cannot be given with a Model"):
        ds.plan(ds.adapt(net, "vp", "noise"), nfe=5, predicts="v")
    with pytest.raises(ValueError, match="predicts must be"):
        ds.plan("vp", nfe=5, predicts="data")


@pytest.mark.parametrize("predicts", ["noise", "denoised", "v"])
def test_the_error_falls_where_the_network_errs(predicts):
    """From one budget to the next, on a mixture and a field that the rule was not chosen on."""
    path = {"noise": "ddpm", "denoised": "edm", "v": "cosine"}[predicts]
    model = imperfect_model(random_means(5, modes=3, std=0.2, seed=9), path, predicts, delta=0.05, seed=7)
    x = torch.randn((64, 5), dtype=torch.float64, generator=torch.Generator().manual_seed(0)) * model.path.prior_std()
    exact = ds.sample(model, noise=x, solver="unipc-3", grid=f"arc(power={0.5 if predicts == 'v' else 0.2})", nfe=400)

    def error(**options):  # of the middle one: a single particle may go to another mode
        return float((ds.sample(model, noise=x, **options) - exact).norm(dim=1).median())

    errors = [error(nfe=n) for n in (5, 8, 12, 20, 30, 60)]
    assert all(after < 1.1 * before for before, after in zip(errors, errors[1:], strict=False)), errors
    assert errors[3] < 0.01 * exact.norm(dim=1).mean(), errors
    assert errors[3] < error(nfe=20, solver="unipc-3", grid="uniform-lambda")


def test_it_is_told_the_scale_of_the_run():
    model, x = ds.adapt(net, "vp", "v"), torch.randn(2, 3)
    expected = ds.plan(model, "auto(guidance=7.5)", steps=20)
    assert expected.solver != ds.plan(model, steps=20).solver
    cond = {"label": torch.ones(2)}
    for guidance in (7.5, ds.Guidance(7.5)):
        assert ds.solve(model, noise=x, steps=20, cond=cond, guidance=guidance).tableau.solver == expected.solver
    assert ds.begin(model, noise=x, steps=20, guidance=7.5).tableau.solver == expected.solver
    explicit = ds.solve(model, noise=x, steps=20, solver="auto(guidance=1)", cond=cond, guidance=7.5).tableau
    assert explicit.solver == ds.plan(model, steps=20).solver
    other = ds.plan(model, "unipc-3", steps=20, guidance=7.5)
    assert other.solver == ds.plan(model, "unipc-3", steps=20).solver
    run = lambda solver: ds.encode(model, x, solver=solver, steps=20, cond=cond, guidance=7.5)  # noqa: E731
    assert torch.equal(run("auto"), run("auto(guidance=7.5)"))
    assert not torch.equal(run("auto"), run("auto(guidance=1)"))


@pytest.mark.parametrize("path", ["edm", "condot"])
def test_strong_guidance(path):
    """The rule with and without guidance, from the same noise: eight modes on a circle, of which two are wanted."""
    everything = ring()
    free = mixture_model(everything, path, "v").net
    one = mixture_model(GaussianMixture.isotropic(everything.means[:2], 0.2), path, "v").net
    model = ds.adapt(lambda x, t, wanted=False: (one if wanted else free)(x, t), path, "v")
    x = torch.randn((32, 2), dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    x = x * model.path.prior_std()
    stop = None if path == "condot" else 0.01

    def run(**options):
        return ds.sample(model, noise=x, stop=stop, cond={"wanted": True}, guidance=7.5, **options)

    exact = run(solver="dopri8(frame='trig')", steps=80, grid="angle")
    assert (run(solver="dopri8(frame='trig')", steps=40, grid="angle") - exact).norm() < 1e-5 * exact.norm()
    for steps, bound in ((10, 0.03), (20, 0.004)):
        network_time, untold = ((run(solver=s, steps=steps) - exact).norm() for s in ("auto", "auto(guidance=1)"))
        assert network_time < bound * exact.norm()
        assert network_time < 0.3 * untold


@pytest.mark.product({"path": ["edm", "vp", "ddpm", "condot"], "nfe": [5, 10, 30]})
def test_an_exact_network_may_predict_anything(path, nfe):
    """With one rule the runs are equal to rounding: a prediction enters the weights by one exact conversion."""
    mixture = random_means(16)
    predictions = ["denoised", "v", "velocity", "edm"]
    if path != "condot":  # at alpha = 0 they say nothing of the data
        predictions += ["noise", "score"]
    models = [mixture_model(mixture, path, predicts) for predicts in predictions]
    x = torch.randn((8, 16), dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    solver = "auto(predicts='v')"
    first, *others = (ds.sample(m, noise=x * m.path.prior_std(), nfe=nfe, solver=solver) for m in models)
    for other in others:
        torch.testing.assert_close(other, first, rtol=0, atol=1e-12)


@pytest.mark.parametrize("value", ["strong", True, float("inf"), float("nan")])
def test_errors_name_what_is_wrong(value):
    with pytest.raises(ValueError, match=f"guidance must be a finite number, got {value!r}"):
        Auto(guidance=value)


@pytest.mark.parametrize("solver", ["auto", "designed"])
@pytest.mark.parametrize("predicts", ["v", "noise"])
def test_the_size_of_a_sample_moves_the_steps_to_more_noise(solver, predicts):
    """Of images: their largest directions are decided at a noise in proportion to the root of their pixels."""
    model = ds.adapt(lambda x, t: 0.5 * x, "ddpm", predicts)
    run = ds.solve(model, (2, 4, 8, 8), solver=solver, nfe=12)
    small, image = (ds.plan(model, solver, nfe=12, shape=shape) for shape in (None, (1, 16, 16)))
    assert run.tableau == image != small
    assert image == ds.plan(model, f"{solver}(size=256)", nfe=12)
    few = ds.plan(model, solver, nfe=12, shape=(5, 25))
    assert small.weights.tolist() == few.weights.tolist()
    lam = [model.path.lam(tableau.times[:-1]).numpy() for tableau in (image, small)]
    assert (lam[0][1:-1] < lam[1][1:-1]).all()
    # Even steps of the grid whose scale is that of the prediction times (256 / 25)^length.
    scale, power, even, length = {"v": (0.6, 0.6, 0.0, 0.2), "noise": (0.8, 0.9, 0.48, 0.4)}[predicts]
    along = np.arctan((np.exp(-lam[0]) / (scale * (256 / 25) ** length)) ** power) - even * lam[0]
    np.testing.assert_allclose(np.diff(along), (along[-1] - along[0]) / (len(along) - 1), rtol=1e-6)
    largest, larger = (ds.plan(model, solver, nfe=12, shape=(1, n)).times.tolist() for n in (3600, 90000))
    assert largest == larger


@pytest.mark.parametrize(("path", "predicts"), [("ddpm", "noise"), ("ve", "score")])
@pytest.mark.parametrize("nfe", [5, 12, 30])
def test_noise_and_scores_of_images_go_by_two_values_on_the_steps_of_edm(path, predicts, nfe):
    where = ds.paths.named(path)
    steps = ArcOf(predicts, 257)(where, nfe)
    if nfe > 5:
        assert (steps == ds.grids.named("karras")(where, nfe)).all()
    else:  # the last of five calls is at lambda = 1.8
        few = ds.grids.named("karras").nodes(where, 4, where.t_noise, float(where.time(1.8)))
        np.testing.assert_allclose(steps, [*few, where.t_data], atol=1e-12)
    image = ds.plan(path, nfe=nfe, predicts=predicts, shape=(2, 257))
    assert image == ds.plan(path, "ab-2(frame='straight', variable='lambda', corrector=2)", grid=steps)
    designed = ds.plan(path, "designed", nfe=nfe, predicts=predicts, shape=(2, 257))
    assert designed.times.tolist() == image.times.tolist()
    strong = ds.plan(path, nfe=nfe, predicts=predicts, shape=(2, 257), guidance=7.5)
    assert strong == ds.plan(path, DPMpp(1 if nfe == 5 else 2, "denoised"), grid=steps)


def test_every_way_of_running_asks_for_the_size():
    model = ds.adapt(lambda x, t: 0.5 * x, "condot", "velocity")
    x = torch.zeros(2, 1, 20, 20)
    image = ds.plan(model, nfe=6, shape=x.shape)
    assert image != ds.plan(model, nfe=6)
    assert ds.sample(model, noise=x + 1, nfe=6).equal(ds.sample(model, noise=x + 1, solver=image))
    named = "auto(size=400, predicts='velocity')"
    back = ds.solvers.named(named)(model.path, image.times[::-1])
    assert ds.encode(model, x + 1, nfe=6).equal(ds.sample(model, noise=x + 1, solver=back))
    of_size, of_shape = (ds.log_prob(model, x, solver=solver, nfe=6) for solver in (named, "auto"))
    assert of_size.value.equal(of_shape.value)
