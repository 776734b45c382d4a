"""Networks that err: the size of the error, on what is predicted, and what becomes of it in another prediction."""

import pytest
import torch

from diffsolve.reference import imperfect_model, mixture_model
from diffsolve.reference.mixture import random_means

MIXTURE = random_means(8, modes=3)


def outputs(path, predicts, delta, t, seed=0, what=None):
    x = torch.randn((2048, 8), dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    model = imperfect_model(MIXTURE, path, predicts, delta=delta, seed=seed)
    exact = mixture_model(MIXTURE, path, predicts)
    x = x * float(model.path.sigma(t) + model.path.alpha(t))
    what = what or predicts
    if what == "edm":
        return model(x, t), exact(x, t), model.path.at(t)
    return model.predict(what, x, t), exact.predict(what, x, t), model.path.at(t)


@pytest.mark.parametrize(("path", "predicts", "t"), [
    ("ddpm", "noise", 500.0), ("edm", "denoised", 1.0), ("edm", "edm", 1.0), ("condot", "velocity", 0.4),
    ("cosine", "v", 0.6), ("ve", "score", 0.5),
])  # fmt: skip
def test_the_error_has_the_size_and_is_on_the_prediction(path, predicts, t):
    sizes = []
    for seed in range(6):
        erring, exact, p = outputs(path, predicts, 0.1, t, seed)
        error = (erring - exact) * (float(p.sigma) if predicts == "score" else 1.0)
        sizes.append(float(error.square().mean()))
    assert 0.08 < (sum(sizes) / len(sizes)) ** 0.5 < 0.12
    zero, exact, _ = outputs(path, predicts, 0.0, t)
    assert torch.equal(zero, exact)


def test_another_prediction_has_it_multiplied():
    """An error of the noise is 1/alpha times sigma as large in the data, and grows towards the noise end."""
    for t in (200.0, 900.0):
        noise, exact, p = outputs("ddpm", "noise", 0.1, t)
        data, exact_data, _ = outputs("ddpm", "noise", 0.1, t, what="denoised")
        torch.testing.assert_close(data - exact_data, -(p.sigma / p.alpha) * (noise - exact), rtol=1e-9, atol=1e-9)


def test_another_seed_is_another_field_and_the_same_seed_the_same():
    first, again, other = (outputs("condot", "velocity", 0.1, 0.5, seed)[0] for seed in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.allclose(first, other)


def test_the_error_is_a_twentieth_if_nothing_is_said():
    x = torch.randn((4, 8), dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    default, said = (imperfect_model(MIXTURE, **options)(x, 0.5) for options in ({}, {"delta": 0.05, "seed": 0}))
    assert torch.equal(default, said)


@pytest.mark.parametrize("delta", [-0.1, float("nan"), "big"])
def test_errors_name_what_is_wrong(delta):
    with pytest.raises(ValueError, match="delta must be"):
        imperfect_model(MIXTURE, delta=delta)
