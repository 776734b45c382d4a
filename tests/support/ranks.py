"""Two gloo ranks that are forks of the process under test."""

import json
import os
from datetime import timedelta

import pytest
import torch
import torch.distributed as dist

__all__ = ["FORKS", "ranks"]

FORKS = [
    pytest.mark.skipif(not dist.is_available() or not dist.is_gloo_available(), reason="needs gloo"),
    pytest.mark.skipif(not hasattr(os, "fork"), reason="the ranks are forks of this process"),
    pytest.mark.skipif(torch.backends.cuda.is_built(), reason="a CUDA build's autograd does not work in a fork"),
    pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning"),
]
"""Marks of a file with such tests."""


def ranks(folder, work):
    """What the work of each of two ranks returned, or how it failed."""
    store = f"file://{folder}/store{len(os.listdir(folder))}"
    children = []
    for rank in range(2):
        child = os.fork()
        if child == 0:
            found = None
            try:
                dist.init_process_group(
                    "gloo", init_method=store, rank=rank, world_size=2, timeout=timedelta(seconds=30)
                )
                found = work(rank)
            except BaseException as error:
                found = f"{type(error).__name__}: {error}"
            (folder / f"found{rank}").write_text(json.dumps(found))
            os._exit(0)
        children.append(child)
    assert [os.waitpid(child, 0)[1] for child in children] == [0, 0]
    return [json.loads((folder / f"found{rank}").read_text()) for rank in range(2)]
