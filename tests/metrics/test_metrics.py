"""Distances between sets of features, against closed forms and plain loops."""

import math
import sys

import numpy as np
import pytest
import scipy.linalg
import torch

from diffsolve import metrics
from diffsolve.metrics import Statistics, frechet, frechet_infinity, kid
from diffsolve.metrics import statistics as module

D = torch.float64


def draw(count, size, seed=0, scale=1.0, dtype=D):
    """Correlated numbers around a mean that is large beside their spread."""
    generator = torch.Generator().manual_seed(seed)
    mix = torch.randn(size, size, generator=torch.Generator().manual_seed(9), dtype=D)
    rows = torch.randn(count, size, generator=generator, dtype=D) @ mix * scale + 5
    return rows.to(dtype)


def gaussian(mean, cov):
    return Statistics(None, torch.as_tensor(mean, dtype=D), torch.as_tensor(cov, dtype=D))


# ------------------------------------------------------------------------------------------------ statistics


@pytest.mark.parametrize("count", [2, 5, 300])
def test_moments_are_numpys(count):
    rows = draw(count, 7)
    found = Statistics.of(rows, batch=64)
    assert found.count == count
    np.testing.assert_allclose(found.mean, rows.numpy().mean(0), rtol=1e-13)
    np.testing.assert_allclose(found.cov, np.cov(rows.numpy(), rowvar=False), rtol=1e-11, atol=1e-13)
    assert torch.equal(found.rows, rows)


def test_one_image_has_no_covariance():
    found = Statistics.of(torch.ones(1, 3, 2))
    assert torch.equal(found.cov, torch.zeros(6, 6, dtype=D))
    assert frechet(found, found) == 0
    assert frechet(found, Statistics.of(torch.zeros(1, 3, 2))) == 6


@pytest.mark.parametrize("cuts", [[300], [1, 299], [150, 150], [7, 1, 1, 91, 200], [1] * 300])
def test_shards_of_any_sizes_add_up_to_the_whole(cuts):
    rows = draw(300, 5)
    whole = Statistics.of(rows, batch=300)
    shards = [Statistics.of(part) for part in rows.split(cuts)]
    added = shards[0]
    for shard in shards[1:]:
        added = added + shard
    streamed = Statistics.of(iter(rows.split(cuts)))
    for found in (added, streamed):
        assert found.count == 300
        torch.testing.assert_close(found.mean, whole.mean, rtol=1e-14, atol=0)
        torch.testing.assert_close(found.cov, whole.cov, rtol=1e-12, atol=1e-12)
        assert torch.equal(found.rows, rows)


def test_a_mean_far_from_zero_costs_no_digits():
    """Where uncentred sums would: the spread is 1e-6 of the mean."""
    rows = draw(400, 3) + 1e6
    exact = np.cov((rows - 1e6).numpy(), rowvar=False)
    np.testing.assert_allclose(Statistics.of(rows, batch=33).cov, exact, rtol=1e-8)


def test_batches_with_labels_and_what_is_kept():
    images, labels = torch.randn(10, 1, 2, 2), torch.arange(10)
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(images, labels), batch_size=4)
    found = Statistics.of(loader, keep=5)
    assert found.count == 10
    assert torch.equal(found.rows, images[:5].flatten(1))
    assert found.rows.dtype == torch.float32
    torch.testing.assert_close(found.cov, torch.cov(images.double().flatten(1).T))
    assert Statistics.of(images, keep=0).rows is None
    assert (found + Statistics.of(images, keep=0)).rows is None
    assert str(found) == "Statistics(count=10, features=4, rows=5)"


def test_features_are_called_without_gradients_in_batches():
    sizes = []

    def features(images):
        assert not torch.is_grad_enabled()
        sizes.append(len(images))
        return images.sum((1, 2, 3))[:, None].half()

    found = Statistics.of(torch.ones(11, 3, 2, 2), features, batch=4)
    assert sizes == [4, 4, 3]
    assert found.mean.tolist() == [12]
    assert found.rows.dtype == torch.float32
    assert found.features is features


@pytest.mark.parametrize("suffix", [".npz", ".safetensors"])
@pytest.mark.parametrize("keep", [0, 3, None])
def test_files_round_trip(tmp_path, suffix, keep):
    stored = Statistics.of(draw(20, 4), keep=keep)
    stored.save(tmp_path / f"s{suffix}")
    found = Statistics.load(tmp_path / f"s{suffix}", str)
    assert found.count == 20
    assert found.features is str
    assert torch.equal(found.mean, stored.mean)
    torch.testing.assert_close(found.cov, stored.cov, rtol=1e-15, atol=1e-15)
    assert (found.rows is None) if keep == 0 else torch.equal(found.rows, stored.rows)


def test_npz_files_of_other_libraries(tmp_path):
    rows = draw(50, 4).numpy()
    mu, sigma = rows.mean(0), np.cov(rows, rowvar=False)
    np.savez(tmp_path / "theirs.npz", mu=mu, sigma=sigma, arr_0=np.zeros((2, 8, 8, 3), np.uint8))  # guided-diffusion's
    found = Statistics.load(tmp_path / "theirs.npz")
    assert found.count is None
    assert found.rows is None
    assert frechet(found, Statistics.of(torch.from_numpy(rows))) < 1e-12
    found.save(tmp_path / "ours.npz")
    with np.load(tmp_path / "ours.npz") as file:  # as pytorch-fid, clean-fid and EDM read it
        np.testing.assert_array_equal(file["mu"], mu)
        np.testing.assert_allclose(file["sigma"], sigma, rtol=1e-15)
    np.savez(tmp_path / "single.npz", mu=mu.astype(np.float32), sigma=sigma.astype(np.float32))
    assert frechet(Statistics.load(tmp_path / "single.npz"), found) < 1e-6


# -------------------------------------------------------------------------------------------- Frechet distance


def test_numbers_on_a_line():
    for mean, std, other, spread in ((0, 1, 3, 2), (1, 0, 1, 5), (-2, 3, -2, 3), (0, 1e-9, 0, 1)):
        found = frechet(gaussian([mean], [[std**2]]), gaussian([other], [[spread**2]]))
        assert found == pytest.approx((mean - other) ** 2 + (std - spread) ** 2, abs=1e-14)


@pytest.mark.parametrize("size", [2, 30])
def test_the_closed_form_by_matrix_roots(size):
    a, b = Statistics.of(draw(100, size)), Statistics.of(draw(80, size, 1, 1.5) + 0.3)
    root = scipy.linalg.sqrtm(a.cov.numpy())
    middle = scipy.linalg.sqrtm(root @ b.cov.numpy() @ root)
    expected = float((a.mean - b.mean).square().sum() + a.cov.trace() + b.cov.trace()) - 2 * np.trace(middle).real
    assert frechet(a, b) == pytest.approx(expected, rel=1e-9)
    assert frechet(b, a) == pytest.approx(expected, rel=1e-9)


def test_covariances_that_commute():
    """|m|^2 + sum (s_i - t_i)^2, turned by a rotation, with directions that one or both lack."""
    basis = torch.linalg.qr(draw(6, 6))[0]
    s, t = torch.tensor([1.0, 2, 0, 0, 3, 1e-3], dtype=D), torch.tensor([2.0, 2, 0, 1, 0, 1e-4], dtype=D)
    a, b = (gaussian(m * torch.ones(6, dtype=D), basis * v**2 @ basis.T) for m, v in ((0, s), (0.5, t)))
    assert frechet(a, b) == pytest.approx(6 * 0.25 + float((s - t).square().sum()), rel=1e-12)


def test_point_masses_are_equal_to_the_distance_of_their_means():
    a, b = gaussian([1.0, 2], torch.zeros(2, 2)), gaussian([4.0, 6], torch.zeros(2, 2))
    assert frechet(a, b) == 25
    assert frechet(a, gaussian([1.0, 2], 4 * torch.eye(2))) == pytest.approx(8)


@pytest.mark.parametrize("count", [2, 5, 40])
def test_fewer_images_than_features(count):
    """Singular covariances: to the same set, to one of another rank, and through a change of coordinates."""
    rows, others = draw(count, 60), draw(30, 60, 1)
    a, b = Statistics.of(rows), Statistics.of(others)
    assert a.root.shape == (60, count - 1)
    assert 0 <= frechet(a, a) < 1e-12 * float(a.cov.trace())
    # The same distance from the nuclear norm of the centred rows, without any eigenvalues.
    x = (rows - rows.mean(0)) / math.sqrt(count - 1)
    y = (others - others.mean(0)) / math.sqrt(29)
    nuclear = float(torch.linalg.matrix_norm(x @ y.T, "nuc"))
    expected = float((a.mean - b.mean).square().sum() + x.square().sum() + y.square().sum()) - 2 * nuclear
    assert frechet(a, b) == pytest.approx(expected, rel=1e-11)


def test_frechet_is_invariant_under_motions_and_quadratic_under_scaling():
    turn = torch.linalg.qr(draw(8, 8))[0]
    a, b = draw(50, 8), draw(60, 8, 1)
    before = frechet(Statistics.of(a), Statistics.of(b))
    assert frechet(Statistics.of(a @ turn + 3), Statistics.of(b @ turn + 3)) == pytest.approx(before, rel=1e-9)
    assert frechet(Statistics.of(3 * a), Statistics.of(3 * b)) == pytest.approx(9 * before, rel=1e-9)
    assert frechet(Statistics.of(a.flip(0)), Statistics.of(b)) == pytest.approx(before, rel=1e-9)


def test_the_bias_falls_as_one_over_the_samples_and_extrapolation_removes_it():
    """For samples of the reference itself the distance is all bias; over many draws the slope of it is -1."""
    size = 4
    truth = gaussian(torch.zeros(size), torch.eye(size))
    means, extrapolated, errors = [], [], []
    for count in (200, 800):
        draws = [torch.randn(count, size, generator=torch.Generator().manual_seed(s), dtype=D) for s in range(60)]
        means.append(np.mean([frechet(Statistics.of(x), truth) for x in draws]))
        found = [frechet_infinity(Statistics.of(x), truth) for x in draws]
        extrapolated.append(np.mean(found))
        errors.append(np.std(found) / math.sqrt(len(found)))
    assert math.log(means[0] / means[1]) / math.log(4) == pytest.approx(1, abs=0.2)
    for bias, left, error in zip(means, extrapolated, errors, strict=True):
        assert abs(left) < 0.05 * bias + 4 * error
        assert 4 * error < 0.5 * bias  # so that it says something


def test_extrapolation_is_of_the_kept_rows():
    rows, reference = draw(40, 3), Statistics.of(draw(30, 3, 1))
    order = torch.randperm(40, generator=torch.Generator().manual_seed(0))
    d = [frechet(Statistics.of(part), reference) for part in (rows, rows[order[:20]], rows[order[20:]])]
    assert frechet_infinity(Statistics.of(rows), reference) == pytest.approx(2 * d[0] - (d[1] + d[2]) / 2, rel=1e-11)
    more = Statistics.of(torch.cat([rows, rows + 1]), keep=40)
    assert frechet_infinity(more, reference) == pytest.approx(2 * d[0] - (d[1] + d[2]) / 2, rel=1e-11)


def test_extrapolation_bears_samples_in_the_order_of_their_classes():
    """Halves in order would be of one class each, far from the data."""
    torch.manual_seed(0)
    rows = torch.cat([torch.randn(500, 2, dtype=D) + shift for shift in (0.0, 20.0)])
    reference = Statistics.of(torch.cat([torch.randn(5000, 2, dtype=D) + shift for shift in (0.0, 20.0)]))
    assert abs(frechet_infinity(Statistics.of(rows), reference)) < 2


# ------------------------------------------------------------------------------------------- kernel, sliced


def plain_kid(x, y):
    def k(a, b):
        return (sum(u * v for u, v in zip(a, b, strict=True)) / len(a) + 1) ** 3

    x, y = x.tolist(), y.tolist()
    m, n = len(x), len(y)
    xx = sum(k(x[i], x[j]) for i in range(m) for j in range(m) if i != j) / (m * (m - 1))
    yy = sum(k(y[i], y[j]) for i in range(n) for j in range(n) if i != j) / (n * (n - 1))
    return xx + yy - 2 * sum(k(a, b) for a in x for b in y) / (m * n)


@pytest.mark.parametrize(("m", "n"), [(2, 2), (3, 3), (9, 6), (4, 11)])
def test_kid_is_the_plain_double_loop_and_its_error_the_plain_jackknife(m, n, monkeypatch):
    monkeypatch.setattr(module, "ENTRIES", 20)
    x, y = draw(m, 3) - 5, draw(n, 3, 1) - 4
    found = kid(Statistics.of(x), Statistics.of(y))
    assert found.value == pytest.approx(plain_kid(x, y), rel=1e-10)
    if min(m, n) < 3:
        assert math.isnan(found.stderr)
        return
    left = [[plain_kid(torch.cat([x[:i], x[i + 1 :]]), y) for i in range(m)]]
    left += [[plain_kid(x, torch.cat([y[:i], y[i + 1 :]])) for i in range(n)]]
    variance = sum((len(v) - 1) / len(v) * sum((u - np.mean(v)) ** 2 for u in v) for v in left)
    assert found.stderr == pytest.approx(math.sqrt(variance), rel=1e-8)


def test_kid_is_unbiased_and_its_error_is_the_spread_over_draws():
    """200 draws of few samples, for a distance that is not zero and known from many."""
    y = torch.randn(200, 300, 2, generator=torch.Generator().manual_seed(0), dtype=D)
    x = torch.randn(200, 20, 2, generator=torch.Generator().manual_seed(1), dtype=D) + 0.5
    found = [kid(Statistics.of(a), Statistics.of(b)) for a, b in zip(x, y, strict=True)]
    values = np.array([f.value for f in found])
    assert values.mean() == pytest.approx(mmd(0.5), abs=4 * values.std() / math.sqrt(200))
    assert values.std() == pytest.approx(math.sqrt(np.mean([f.stderr**2 for f in found])), rel=0.3)


def mmd(shift):
    """The exact squared discrepancy of N(0, 1) and N(shift, 1) in two dimensions, by Gauss-Hermite sums."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(6)
    weights = weights / weights.sum()
    points = np.stack(np.meshgrid(nodes, nodes), -1).reshape(-1, 2)
    mass = np.outer(weights, weights).ravel()

    def mean(a, b):
        return mass @ ((points + a) @ (points + b).T / 2 + 1) ** 3 @ mass

    return mean(0, 0) + mean(shift, shift) - 2 * mean(0, shift)


def test_sliced_wasserstein():
    pytest.importorskip("ot")
    x = draw(64, 5)
    a = Statistics.of(x)
    assert metrics.sliced_wasserstein(a, a) == pytest.approx(0, abs=1e-12)
    shift = torch.tensor([1.0, -2, 0, 0.5, 3], dtype=D)
    moved = metrics.sliced_wasserstein(a, Statistics.of(x + shift), projections=4000)
    assert moved == pytest.approx(float(shift.norm()) / math.sqrt(5), rel=0.03)  # E (u . shift)^2 = |shift|^2 / F
    b = Statistics.of(draw(64, 5, 1))
    assert metrics.sliced_wasserstein(a, b) == metrics.sliced_wasserstein(a, b)
    assert metrics.sliced_wasserstein(a, b) != metrics.sliced_wasserstein(a, b, seed=1)
    line, other = Statistics.of(x[:, :1]), Statistics.of(draw(64, 5, 1)[:, :1])
    plain = (line.rows.sort(0).values - other.rows.sort(0).values).square().mean().sqrt()
    assert metrics.sliced_wasserstein(line, other) == pytest.approx(float(plain), rel=1e-12)


def test_sliced_wasserstein_without_pot(monkeypatch):
    monkeypatch.setitem(sys.modules, "ot", None)
    a = Statistics.of(draw(4, 2))
    with pytest.raises(ImportError, match=r"diffsolve\[metrics\]"):
        metrics.sliced_wasserstein(a, a)


@pytest.mark.parametrize("distance", [lambda a, b: kid(a, b).value, frechet])
def test_distances_go_to_zero_with_the_difference(distance):
    x = torch.randn(400, 4, generator=torch.Generator().manual_seed(0), dtype=D)
    reference = Statistics.of(x)
    floor = distance(reference, reference)
    excess = [distance(Statistics.of(x + shift), reference) - floor for shift in (0.4, 0.2, 0.1)]
    assert excess[0] / excess[1] == pytest.approx(4, rel=0.15)  # both are squares
    assert excess[1] / excess[2] == pytest.approx(4, rel=0.15)


# ------------------------------------------------------------------------------------------------- errors


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: Statistics.of(torch.empty(0, 3)), ValueError, "images must be at least one"),
        (lambda: Statistics.of([]), ValueError, "images must be at least one"),
        (lambda: Statistics.of(["a"]), TypeError, "images must be tensors"),
        (lambda: Statistics.of(torch.ones(3, 2), keep=-1), ValueError, "keep must be an integer >= 0, got -1"),
        (lambda: Statistics.of(torch.ones(3, 2), batch=0), ValueError, "batch must be an integer >= 1, got 0"),
        (
            lambda: Statistics.of(torch.ones(3, 2).long()),
            TypeError,
            "output of features must be a floating tensor .* dtype torch.int64",
        ),
        (
            lambda: Statistics.of(torch.ones(3, 2), lambda x: "x"),
            TypeError,
            "output of features must be a floating tensor .* got 'x'",
        ),
        (
            lambda: Statistics.of(torch.ones(3, 2), lambda x: x[0]),
            ValueError,
            r"must be of shape \(3, F\), got Tensor of shape \(2,\)",
        ),
        (
            lambda: Statistics.of(torch.ones(3, 2), lambda x: x[:2]),
            ValueError,
            r"must be of shape \(3, F\), got Tensor of shape \(2, 2\)",
        ),
        (lambda: Statistics.of(torch.ones(3, 2) * math.nan), ValueError, "must be finite, got 6"),
        (
            lambda: Statistics.of(draw(3, 2)) + Statistics.of(draw(3, 4)),
            ValueError,
            "features must be of the same size, got 2 and 4",
        ),
        (lambda: Statistics.of(draw(3, 2)) + gaussian([0, 0], torch.eye(2)), ValueError, "count must be known"),
        (lambda: Statistics.of(draw(3, 2)) + 1, TypeError, "unsupported operand"),
        (
            lambda: frechet(Statistics.of(draw(3, 2)), Statistics.of(draw(3, 4))),
            ValueError,
            "features must be of the same size, got 2 and 4",
        ),
        (lambda: kid(Statistics.of(draw(3, 2)), gaussian([0, 0], torch.eye(2))), ValueError, "rows must be kept"),
        (lambda: kid(Statistics.of(draw(1, 2)), Statistics.of(draw(3, 2))), ValueError, "at least 2 rows each"),
        (lambda: frechet_infinity(Statistics.of(draw(3, 2)), Statistics.of(draw(3, 2))), ValueError, "at least 4"),
        (lambda: Statistics.of(draw(3, 2)).save("x.pt"), ValueError, ".npz or .safetensors"),
        (lambda: Statistics.load("x.pt"), ValueError, ".npz or .safetensors"),
    ],
)
def test_errors_name_what_is_wrong(make, error, message):
    with pytest.raises(error, match=message):
        make()


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"mu": np.zeros(2)}, "mu and sigma"),
        ({"mu": np.zeros(2), "sigma": np.eye(3)}, "must be an .npz or .safetensors of .* must be mu"),
        (
            {"mu": np.zeros(2), "sigma": np.eye(2), "rows": np.zeros((4, 3))},
            "must be an .npz or .safetensors of .* must be mu",
        ),
        ({"mu": np.zeros(2), "sigma": np.full((2, 2), np.nan)}, "sigma must be finite"),
        ({"mu": np.zeros(2), "sigma": np.array([[1.0, 2], [0, 1]])}, "sigma must be symmetric"),
        ({"mu": np.array([{}]), "sigma": np.eye(1)}, "must be an .npz or .safetensors of statistics, got .*bad.npz"),
    ],
)
def test_bad_files(tmp_path, arrays, message):
    np.savez(tmp_path / "bad.npz", **arrays)
    with pytest.raises(ValueError, match=message):
        Statistics.load(tmp_path / "bad.npz")


def test_files_that_are_no_such_files(tmp_path):
    (tmp_path / "x.safetensors").write_bytes(b"nothing")
    (tmp_path / "x.npz").write_bytes(b"nothing")
    for name in ("x.safetensors", "x.npz"):
        with pytest.raises(ValueError, match=f"file must be .*{name}"):
            Statistics.load(tmp_path / name)
    with pytest.raises(FileNotFoundError):
        Statistics.load(tmp_path / "y.npz")
