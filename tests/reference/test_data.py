"""Fashion-MNIST's files and the sets of points."""

from __future__ import annotations

import gzip
import math
from pathlib import Path

import pytest
import torch
from support.idx import clothes, idx

from diffsolve.reference import data


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return clothes(tmp_path)


@pytest.mark.parametrize(("part", "count"), [("train", 2), ("test", 1)])
def test_images_and_labels(folder, part, count):
    images, labels = data.fashion(part, folder)
    assert (images.shape, images.dtype) == ((count, 1, 28, 28), torch.float32)
    assert (labels.tolist(), labels.dtype) == (list(range(count)), torch.int64)
    assert images[0, 0, 0, :3].tolist() == pytest.approx([-1, 1 / 127.5 - 1, 2 / 127.5 - 1])
    assert images[0, 0, 9, 3] == 1  # row 9, column 3: the byte 255


def test_folder_of_the_environment(folder, monkeypatch):
    monkeypatch.setenv("DIFFSOLVE_FASHION", str(folder))
    assert len(data.fashion()[0]) == 2
    (folder / "train-images-idx3-ubyte.gz").unlink()
    with pytest.raises(FileNotFoundError, match=r"has no train-images-idx3-ubyte .*install .*dataset-fashion-mnist"):
        data.fashion()


def test_unknown_part_is_an_error():
    with pytest.raises(ValueError, match="part must be 'train' or 'test', got 'validation'"):
        data.fashion("validation")


@pytest.mark.parametrize(
    "content",
    [b"", b"\x00\x00\x08\x01\x00\x00", idx(3)[:-1], idx(3) + b"0", idx(1, 3), bytes((0, 0, 13, 1)) + idx(3)[4:]],
    ids=["empty", "head", "cut", "long", "dimensions", "floats"],
)
@pytest.mark.parametrize("packed", [False, True])
def test_broken_files_are_errors(tmp_path, content, packed):
    file = tmp_path / ("broken.gz" if packed else "broken")
    file.write_bytes(gzip.compress(content) if packed else content)
    with pytest.raises(ValueError, match=r"file must be an idx file of unsigned bytes, got .*broken"):
        data.read_idx(file, 1)


def test_files_that_are_no_gzip_are_errors(tmp_path):
    file = tmp_path / "broken.gz"
    file.write_bytes(idx(3))
    with pytest.raises((ValueError, OSError)):
        data.read_idx(file, 1)


def test_labels_and_images_must_be_as_many(folder):
    (folder / "t10k-labels-idx1-ubyte").write_bytes(idx(2))
    with pytest.raises(ValueError, match="labels must be as many as images, 1, got 2"):
        data.fashion("test", folder)


# ------------------------------------------------------------------------------------------------- points


@pytest.mark.parametrize("name", data.POINTS)
def test_points(name):
    x = data.points(name, 4000, seed=3)
    assert (x.shape, x.dtype) == ((4000, 2), torch.float32)
    assert torch.equal(x, data.points(name, 4000, seed=3))
    assert not torch.equal(x, data.points(name, 4000, seed=4))
    assert 0.3 < x.std() < 1.5
    assert x.mean(0).abs().max() < 0.35


def test_checkerboard():
    """Uniform on eight squares, no two of which share a side."""
    x = data.points("checkerboard", 8000) + 2
    assert ((x >= 0) & (x <= 4)).all()
    square = x.floor().long().clamp(max=3)
    assert (square.sum(1) % 2 == 0).all()
    counts = torch.bincount(4 * square[:, 0] + square[:, 1], minlength=16)
    assert (counts > 0).sum() == 8
    assert counts[counts > 0].float().std() < 100


def test_moons_are_half_circles():
    x = data.points("moons", 4000)
    upper, lower = x - torch.tensor([-0.5, -0.25]), x - torch.tensor([0.5, 0.25])
    off = torch.stack([(upper.norm(dim=1) - 1).abs(), (lower.norm(dim=1) - 1).abs()]).amin(0)
    assert off.max() < 0.25
    assert off.mean() < 0.06


def test_spirals_are_two_arms():
    """The second arm is the first turned by half a turn; the roll is one arm of one and a half turns."""
    for name, arms in (("spirals", 2), ("swiss-roll", 1)):
        x = data.points(name, 4000)
        radius = x.norm(dim=1)
        turn = (torch.atan2(x[:, 1], x[:, 0]) - 3 * math.pi * radius) % (2 * math.pi)
        far = radius > 0.4
        phases = torch.stack([torch.cos(arms * turn), torch.sin(arms * turn)])[:, far].mean(1)
        assert phases.norm() > 0.8  # one phase, of the arms' multiple
        assert phases[0] > 0.8
        if arms == 2:
            assert torch.cos(turn[far]).mean().abs() < 0.1


@pytest.mark.parametrize(("name", "count", "message"), [("rings", 5, "name must be one of"), ("moons", 0, "count")])
def test_wrong_points_are_errors(name, count, message):
    with pytest.raises(ValueError, match=message):
        data.points(name, count)
