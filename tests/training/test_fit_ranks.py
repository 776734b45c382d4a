"""`fit` on two gloo ranks, forks of this process: the weights of one rank, and nothing lost with a rank."""

import os
from functools import partial

import pytest
import safetensors.torch
import torch
from support.ranks import FORKS, ranks
from torch.nn.parallel import DistributedDataParallel

import diffsolve as ds
from diffsolve import training
from diffsolve.training import trainer as trainers
from diffsolve.training.distributed import World, world

pytestmark = FORKS

X = torch.randn(40, 2, generator=torch.Generator().manual_seed(0))
LABEL = torch.arange(40) % 3


class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.label = torch.nn.Embedding(4, 2)
        self.layers = torch.nn.Sequential(torch.nn.Linear(3, 8), torch.nn.SiLU(), torch.nn.Linear(8, 2))

    def forward(self, x, t, label):
        return self.layers(torch.cat([x + self.label(label), t[:, None].to(x)], 1))


def run(out, seed=0, **options):
    torch.manual_seed(seed)
    how = {"steps": 6, "batch": 8, "objective": {"drop": 0.2, "uncond": {"label": 3}, "times": "logit-normal"}}
    return training.fit(ds.adapt(Net(), "condot", "velocity"), (X, {"label": LABEL}), out, **{**how, **options})


def sharded(net):
    from torch.distributed.fsdp import fully_shard

    return fully_shard(net)


def same(one, two):
    one, two = safetensors.torch.load_file(one), safetensors.torch.load_file(two)
    for name in one:
        torch.testing.assert_close(two[name], one[name], rtol=0, atol=2e-6)


OPTIONS = {
    "ddp": {},
    "parts": {"accumulate": 2, "parallel": partial(DistributedDataParallel, broadcast_buffers=False)},
    "fsdp": {"parallel": sharded, "accumulate": 2},
}


@pytest.mark.parametrize("kind", ["ddp", *(pytest.param(kind, marks=pytest.mark.slow) for kind in ("parts", "fsdp"))])
def test_two_ranks_are_one_and_go_on_where_they_were(tmp_path, kind):
    how, seen = OPTIONS[kind], []
    alone = run(tmp_path / "one")["loss"]

    def work(rank):
        out = tmp_path / "two"  # each rank starts from other weights: the first one's count
        first = run(out, seed=rank, minutes=1e-9, **how)
        last = run(out, seed=7 * rank, log=tmp_path / "log.jsonl", look=lambda _, step: seen.append(step), **how)
        return [first["steps"], last["finished"], last["loss"], seen]

    first, second = ranks(tmp_path, work)
    assert first[:2] == [1, True]
    assert first[2] == second[2] == pytest.approx(alone, rel=1e-5)
    assert first[3] == [2, 3, 4, 5, 6]
    assert second[3] == (first[3] if kind == "fsdp" else [])  # sharded weights are looked at together
    same(tmp_path / "one", tmp_path / "two")


def test_a_rank_that_dies_loses_nothing(tmp_path):
    """The other one says so, and keeps its state as it was before the update."""
    run(tmp_path / "one")

    def work(rank):
        update = trainers.Trainer.update

        def dying(self, *arguments):
            if rank == 1 and self.step == 3:
                (tmp_path / "found1").write_text("1")
                os._exit(0)
            return update(self, *arguments)

        trainers.Trainer.update = dying
        run(tmp_path / "two")

    assert "ConnectionError: every rank must answer within the group's time limit" in ranks(tmp_path, work)[0]
    report = run(tmp_path / "two", minutes=1e-9)  # and one rank goes on
    assert report["steps"] == 4
    run(tmp_path / "two")
    same(tmp_path / "one", tmp_path / "two")


def test_what_the_first_rank_raises_all_raise(tmp_path):
    assert (
        ranks(tmp_path, lambda rank: World(rank, 2).once(lambda: 1 / 0)) == ["ZeroDivisionError: division by zero"] * 2
    )


def test_one_process_is_a_world_of_its_own():
    with world(torch.device("cpu")) as one:
        assert one == World(0, 1)
        assert one.first
        assert one.part(6) == slice(0, 6)
        assert one.mean([3.0, 4.0], torch.device("cpu")) == [3, 4]
        assert one.once(lambda: 5) == 5
    assert World(1, 3).part(6) == slice(2, 4)
    with pytest.raises(ValueError, match="batch must be a multiple of the number of ranks, 4, got 6"):
        World(1, 4).part(6)


@pytest.mark.slow
def test_torchrun_makes_the_group(tmp_path):
    """fit makes and closes it, as `torchrun --nproc-per-node 2` runs it."""
    import subprocess
    import sys

    script = tmp_path / "script.py"
    script.write_text(
        "import sys, torch; sys.path.insert(0, sys.argv[1])\n"
        "import test_fit_ranks as t; import torch.distributed as dist\n"
        "t.run(sys.argv[2], seed=int(__import__('os').environ['RANK'])); assert not dist.is_initialized()\n"
    )
    run(tmp_path / "one")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", str(script)]
    subprocess.run([*command, os.path.dirname(__file__), str(tmp_path / "two")], check=True, timeout=300)
    same(tmp_path / "one", tmp_path / "two")
