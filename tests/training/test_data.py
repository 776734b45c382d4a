"""What a training reads, and in which order."""

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader, TensorDataset

from diffsolve import training
from diffsolve.training.data import Batch, batch_of, source

X = torch.arange(12.0)[:, None]
ALL = slice(0, 5)


def numbers(data, steps=12, part=ALL, batch=5, seed=0, start=0):
    return [b.x0[:, 0].int().tolist() for b in source(data, batch, (seed,)).batches(start, steps, part)]


class Draws(torch.utils.data.Dataset):
    def __len__(self):
        return 12

    def __getitem__(self, i):
        return X[i] + torch.rand(())


@pytest.mark.parametrize("data", [X, TensorDataset(X)], ids=["tensor", "dataset"])
def test_every_epoch_is_a_new_order_of_all(data):
    order = numbers(data)
    flat = [number for batch in order for number in batch]
    epochs = [flat[i : i + 12] for i in range(0, 60, 12)]
    assert all(sorted(epoch) == list(range(12)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 5
    assert numbers(data, start=7) == order[7:]  # of (seed, step) alone
    parts = [numbers(data, part=slice(0, 2)), numbers(data, part=slice(2, 5))]
    assert [a + b for a, b in zip(*parts, strict=True)] == order
    assert numbers(data, seed=1) != order
    assert numbers(data) == numbers(X)


def test_a_batch_may_be_larger_than_the_data():
    (order,) = numbers(X, steps=1, batch=30, part=slice(0, 30))
    assert sorted(order[:12]) == sorted(order[12:24]) == list(range(12))


def test_what_a_dataset_draws_is_keyed_by_the_sample():
    whole = [b.x0 for b in source(Draws(), 5, (0,)).batches(0, 6, ALL)]
    later = [b.x0 for b in source(Draws(), 5, (0,)).batches(4, 6, ALL)]
    assert torch.equal(torch.cat(later), torch.cat(whole[4:]))
    assert len(set(torch.cat(whole).flatten().tolist())) == 30


@pytest.mark.slow
def test_workers_read_the_same():
    one, two = ([b.x0 for b in source(Draws(), 5, (0,), workers).batches(0, 6, ALL)] for workers in (0, 2))
    assert torch.equal(torch.cat(one), torch.cat(two))


def test_a_loader_is_taken_as_it_comes_and_begins_again():
    order = numbers(DataLoader(TensorDataset(X), 4))
    assert order == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 10, 11]] * 4
    shuffled = DataLoader(TensorDataset(X), 4, shuffle=True)
    assert numbers(shuffled, start=5) == numbers(shuffled)[5:]
    index = [b.index for b in source(DataLoader(X, 4), 8, (0,)).batches(0, 2, slice(4, 8))]
    assert index == [4, 4]  # of the second of two ranks


@pytest.mark.parametrize(
    ("items", "cond", "noise"),
    [
        (X, {}, None),
        ([X], {}, None),
        ((X, X[:, 0]), {"label": X[:, 0]}, None),
        ((X, {"text": X, "noise": -X}), {"text": X}, -X),
    ],
)
def test_what_a_loader_gives(items, cond, noise):
    batch = batch_of(items)
    assert batch.cond.keys() == cond.keys()
    assert all(torch.equal(batch.cond[name], cond[name]) for name in cond)
    assert (batch.noise is None) == (noise is None)
    assert noise is None or torch.equal(batch.noise, noise)


def test_parts_of_a_batch():
    batch = Batch(X, {"label": X, "scale": 2.0, "table": torch.ones(3)}, 24, -X)
    parts = batch.parts(3)
    assert [part.index for part in parts] == [24, 28, 32]
    assert torch.equal(torch.cat([part.noise for part in parts]), -X)
    assert torch.equal(torch.cat([part.cond["label"] for part in parts]), X)
    assert all(part.cond["scale"] == 2.0 and len(part.cond["table"]) == 3 for part in parts)
    with pytest.raises(ValueError, match="accumulate must be a divisor of the batch, 12, got 5"):
        batch.parts(5)


def painted(file, size=(4, 4), mode="RGB", value=0):
    file.parent.mkdir(exist_ok=True)
    Image.fromarray(np.full((size[1], size[0], 3) if mode == "RGB" else size[::-1], value, np.uint8)).save(file)


def test_a_folder_of_images(tmp_path):
    for k, name in enumerate(("cat/1.png", "cat/2.png", "ant/1.png")):
        painted(tmp_path / name, value=(0, 255, 51)[k])
    (tmp_path / "notes.txt").write_text("no image")
    images = training.Images(tmp_path)
    assert len(images) == 3
    assert images.classes == ["ant", "cat"]
    found = [images[i] for i in range(3)]
    assert (found[0][0].shape, found[0][0].dtype) == ((3, 4, 4), torch.float32)
    assert [round(float(x.mean()), 5) for x, _ in found] == [-0.6, -1, 1]
    assert [label for _, label in found] == [0, 1, 1]
    batch = next(source(tmp_path, 3, (0,)).batches(0, 1, slice(0, 3)))
    assert sorted(batch.cond["label"].tolist()) == [0, 1, 1]


def test_images_are_cut_to_squares(tmp_path):
    pixels = np.zeros((4, 8), np.uint8)
    pixels[:, 2:6] = 255
    Image.fromarray(pixels).save(tmp_path / "wide.png")
    painted(tmp_path / "small.png", (2, 2), "L", 255)
    x = training.Images(tmp_path, size=2)
    assert torch.equal(x[0], torch.ones(1, 2, 2))
    assert torch.equal(x[1], torch.ones(1, 2, 2))
    with pytest.raises(ValueError, match=r"images must be of one size, got \(2, 2\) and \(8, 4\) of 'wide.png'"):
        training.Images(tmp_path)[1]


def test_folders_without_images_are_errors(tmp_path):
    with pytest.raises(ValueError, match="data must be a folder with images"):
        training.Images(tmp_path)
    with pytest.raises(NotADirectoryError, match="which is no folder"):
        training.Images(tmp_path / "none")
