"""Learning shared by two gloo ranks: what one process learns, bit for bit where batches are dealt out."""

import os
import subprocess
import sys

import pytest
import torch
from support.learning import RING, Net, noise
from support.ranks import FORKS, ranks

import diffsolve as ds
from diffsolve.tuning import fit

pytestmark = FORKS

SMALL = {"solver": "unipc-3", "teacher": 12, "seed": 0, "dtype": torch.float64, "iterations": 2, "batch": 5}


def learn(out=None, nfe=3, **options):
    return fit(RING, (24, 2), nfe=nfe, out=out, **{**SMALL, **options})


def told(tuning):
    return [tuning.tableau.to_json(), tuning.losses, tuning.validation, tuning.before, tuning.after, tuning.calls]


def test_two_ranks_are_one_and_the_first_writes(tmp_path):
    alone, here = learn(nfe=[2, 3]), tmp_path / "f.json"

    def work(rank):
        found = learn(here, nfe=[2, 3], checkpoint=tmp_path / "c", cache=tmp_path)
        return [told(found[nfe]) for nfe in found]

    (tmp_path / "x").mkdir()
    first, second = ranks(tmp_path / "x", work)
    assert first == second
    for nfe, found in zip(alone, first, strict=True):
        wanted = told(alone[nfe])
        assert found[:2] == [wanted[0], list(wanted[1])]
        assert found[2:] == [[[*pair] for pair in wanted[2]], list(wanted[3]), list(wanted[4]), wanted[5]]
    assert ds.Family.load(here).tableaux == {nfe: tuning.tableau for nfe, tuning in alone.items()}
    assert sorted(file.suffix for file in tmp_path.iterdir() if file.is_file()) == [".json", ".safetensors"]


def test_each_rank_runs_its_own_noises(tmp_path):
    """Half of the batches each, or a few more."""

    def work(rank):
        sizes = []

        def net(x, t):
            sizes.append(len(x))
            return RING.net(x, t)

        model = ds.adapt(net, "condot", "velocity")
        fit(model, (24, 2), nfe=3, **{**SMALL, "batch": 8, "iterations": 1})
        return sum(sizes)

    alone, shared = work(0), ranks(tmp_path, work)
    assert sum(shared) == alone
    assert max(shared) < 0.75 * alone


def test_adam_sees_all_ends_of_a_batch(tmp_path):
    """A loss that is no mean over samples has the gradient of one process too."""
    model = ds.adapt(Net(), "condot", "velocity")

    def loss(x, ends):
        return (x.var(0) - ends.var(0)).square().sum()

    def work(rank):
        found = fit(model, noise=noise(24), nfe=3, method="adam", loss=loss, **{**SMALL, "batch": 9})
        return [found.losses, found.tableau.weights.ravel().tolist()]

    alone = work(0)
    first, second = ranks(tmp_path, work)
    assert first == second
    assert first[0] == pytest.approx(list(alone[0]), rel=1e-9)
    assert first[1] == pytest.approx(alone[1], rel=1e-9, abs=1e-9)


def test_ranks_that_differ_are_told_in_what(tmp_path):
    def work(rank):
        learn(teacher=12 + rank, seed=0)

    for message in ranks(tmp_path, work):
        assert message == "RuntimeError: the ranks differ in teacher; each must make the same call, got others"


def test_without_a_seed_all_have_the_first_ones(tmp_path):
    def work(rank):
        return learn(seed=None).tableau.to_json()

    first, second = ranks(tmp_path, work)
    assert first == second


@pytest.mark.slow
def test_under_torchrun(tmp_path):
    script, out = tmp_path / "script.py", tmp_path / "t.json"
    script.write_text(
        "import sys; sys.path.insert(0, sys.argv[1])\n"
        "import test_ranks as t; import torch.distributed as dist\n"
        "t.learn(sys.argv[2]); assert not dist.is_initialized()\n"
    )
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", str(script)]
    subprocess.run([*command, os.path.dirname(__file__), str(out)], check=True, timeout=300)
    assert ds.Tableau.load(out) == learn().tableau
