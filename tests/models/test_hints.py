"""Errors of a network that name the option of the run, and the warning for one in training mode."""

import warnings

import pytest
import torch
from torch import nn

import diffsolve as ds
from diffsolve.metrics import Statistics

LABELS = {"label": torch.tensor([0, 1])}
RUNS = [
    {"solver": "euler", "steps": 2},
    {"solver": "euler", "steps": 2, "parallel": ds.Picard()},
    {"solver": ds.Adaptive()},
    {"solver": ds.AdaptiveSDE()},
    {"solver": "euler", "steps": 2, "gradient": "direct"},
    {"solver": "rk4", "steps": 2, "log_prob": "model"},
]


def labelled(x, t, label):
    return -x * label[:, None]


@pytest.mark.parametrize("options", RUNS)
def test_guidance_of_a_network_that_needs_its_label(options):
    model = ds.adapt(labelled, "condot", "velocity")
    with pytest.raises(TypeError, match=r"uncond must be given .* guidance=ds.Guidance\(3, uncond={'label': ...}\)"):
        ds.solve(model, (2, 2), seed=0, guidance=3.0, cond=LABELS, **options)
    with pytest.raises(TypeError, match="uncond must be given"):
        ds.log_prob(model, torch.ones(2, 2), guidance=3.0, cond=LABELS)
    guidance = ds.Guidance(3.0, uncond={"label": torch.zeros(2)})
    assert ds.solve(model, (2, 2), seed=0, guidance=guidance, cond=LABELS, **options).x.isfinite().all()


@pytest.mark.parametrize("options", RUNS)
def test_guidance_of_a_network_with_a_default(options):
    model = ds.adapt(lambda x, t, label=None: -x if label is None else -x * label[:, None], "condot", "velocity")
    assert ds.solve(model, (2, 2), seed=0, guidance=3.0, cond=LABELS, **options).x.isfinite().all()


def test_an_argument_that_is_missing_from_both_is_the_networks_own_error():
    with pytest.raises(TypeError, match=r"^labelled\(\) missing 1 required"):
        ds.sample(ds.adapt(labelled, "condot", "velocity"), (2, 2), steps=2)


@pytest.mark.parametrize("look", [nn.Embedding(1000, 2), nn.Embedding(1000, 2).weight.__getitem__])
def test_a_table_of_times_names_the_clock(look):
    for clock in ("t", "index"):
        with pytest.raises(TypeError, match="net must take the time as a float tensor.*t.long()") as error:
            ds.sample(ds.adapt(lambda x, t: look(t), "ddpm", "noise", clock=clock), (2, 2), solver="ddim", steps=3)
        assert ("clock='index'" in str(error.value)) == (clock == "t")
    seen = []
    net = lambda x, t: seen.append(t) or look(t.long())  # noqa: E731
    ds.sample(ds.adapt(net, "ddpm", "noise", clock="index"), (2, 2), solver="ddim", steps=7, grid="karras")
    assert all(bool((t == t.round()).all()) for t in seen)


class Net(nn.Module):
    def __init__(self, *parts):
        super().__init__()
        self.parts = nn.Sequential(nn.Linear(2, 2), *parts)

    def forward(self, x, t):
        return self.parts(x)


STARTS = [
    lambda model: ds.sample(model, (4, 2), steps=2, seed=0),
    lambda model: ds.sample(model, (4, 2), solver=ds.Adaptive(max_nfe=8), seed=0),
    lambda model: ds.begin(model, (4, 2), solver="euler", steps=2, seed=0),
]
RANDOM = [nn.Dropout(0.1), nn.BatchNorm1d(2), nn.AlphaDropout(0.2), nn.RReLU()]


@pytest.mark.filterwarnings("ignore:.*stopped early:RuntimeWarning")
@pytest.mark.parametrize("part", RANDOM, ids=lambda part: type(part).__name__)
@pytest.mark.parametrize("start", STARTS)
def test_a_network_in_training_mode_is_told_once(start, part):
    model = ds.adapt(Net(part.train()), "condot", "velocity")
    with pytest.warns(RuntimeWarning, match=rf"net is in training mode, with {type(part).__name__} inside.*net.eval"):
        start(model)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", ".*stopped early")
        start(model)
        start(ds.adapt(Net(part).eval(), "condot", "velocity"))


def test_what_is_no_reason_to_warn():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for part in (nn.Dropout(0.0), nn.LayerNorm(2), nn.Identity()):
            ds.sample(ds.adapt(Net(part).train(), "condot", "velocity"), (4, 2), steps=2, seed=0)
        training = ds.adapt(Net(nn.Dropout(0.5)), "condot", "velocity")
        ds.sample(training, (4, 2), solver="euler", steps=2, seed=0, gradient="direct")


def test_densities_and_features_warn_too():
    with pytest.warns(RuntimeWarning, match="net is in training mode, with BatchNorm1d"):
        ds.log_prob(ds.adapt(Net(nn.BatchNorm1d(2)), "condot", "velocity"), torch.randn(4, 2), solver="euler", steps=2)
    features = nn.Sequential(nn.Linear(2, 3), nn.Dropout(0.5))
    with pytest.warns(RuntimeWarning, match="features is in training mode, with Dropout"):
        Statistics.of(torch.randn(8, 2), features)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        Statistics.of(torch.randn(8, 2), features)
