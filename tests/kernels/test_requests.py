"""The update of many requests at once: by the chain, by the loop in C and by one launch, it is what each does alone."""

import os
import shutil

import numpy as np
import pytest
import torch

import diffsolve as ds
from diffsolve.execute import bind
from diffsolve.kernels import requests
from diffsolve.kernels.requests import Turn, table_of, update_requests
from diffsolve.noise import Draw, Key, Stream

SOLVERS = ("euler", "dpmpp-2m", "unipc-3", "rk4", "ddim(eta=1.0)", "sa-2", "reversible-heun", "dpmpp-2s")
compiler = pytest.mark.skipif(shutil.which(os.environ.get("CC", "cc")) is None, reason="needs a C compiler")


def turns(size, dtype, calls=5, history=4):
    """(memory, outputs, turns at `calls` of eight runs), all the memory full of numbers; a third of them guided."""
    model = ds.adapt(lambda x, t: x, "vp", "noise")
    width, made = 3 + history, []
    memory = torch.randn(len(SOLVERS) * width, size, dtype=dtype, generator=torch.Generator().manual_seed(0))
    outputs = torch.randn(2 * len(SOLVERS), size, dtype=dtype, generator=torch.Generator().manual_seed(1))
    for i, solver in enumerate(SOLVERS):
        program = bind(ds.plan(model, solver, steps=8), model)
        rows, base = program.rows_on(memory, together=True), i * width
        s, y, free, slots = base, base, (base + 1, base + 2), list[int]()
        for call in range(calls + 1):
            if call and program.depth:
                full = len(slots) == program.depth
                slots.insert(0, slots.pop() if full else base + 3 + len(slots))
            draw = Draw(Key(7 + i), call, Stream.ROW) if rows[call].noise else None
            guided = (len(SOLVERS) + i, 1.5 + i, 0.25 * (i % 2)) if i % 3 == 0 else None
            turn = Turn(rows[call], s, y, free, tuple(slots), i, guided, draw)
            s, y, free = turn.after
        made.append(turn)
    return memory, outputs, made


@pytest.mark.parametrize("choice", ["triton", pytest.param("native", marks=compiler)])
@pytest.mark.product(
    {"size, dtype": [(64, torch.float32), (1500, torch.float32), (7, torch.float64)], "calls": [4, 5, 7]}
)
def test_it_is_the_chain_of_each(choice, size, dtype, calls, monkeypatch):
    """The loop to the last bit where nothing is drawn (as `test_native` says of noise); a launch to rounding."""
    monkeypatch.setenv("DIFFSOLVE_KERNELS", "torch")
    want, outputs, chain = turns(size, dtype, calls)
    before = want.clone()
    update_requests(want, outputs, chain)
    monkeypatch.setenv("DIFFSOLVE_KERNELS", choice)
    found, outputs, lot = turns(size, dtype, calls)
    assert torch.equal(found, before)
    said = outputs.clone()
    update_requests(found, outputs, lot)
    assert torch.equal(outputs, said)
    width = len(found) // len(SOLVERS)
    for i, turn in enumerate(lot):
        s, y, free = turn.after
        assert sorted({s, y, *free}) == [i * width + j for j in range(3)]
        live = [s, y, *turn.history]
        kind = "noise" if turn.draw else SOLVERS[i]
        if choice == "native" and turn.draw is None:
            assert torch.equal(found[live], want[live]), kind
        torch.testing.assert_close(found[live], want[live], rtol=1e-5, atol=2e-5, msg=kind)
    changed = (found != before).any(1).nonzero().flatten().tolist()
    assert set(changed) <= {row for t in lot for row in (*t.after[:2], *t.history[:1])}


@compiler
def test_one_call_of_the_loop_makes_all_turns(monkeypatch):
    """Also those that are one operation of the chain; only what it cannot do is left to that."""
    memory, outputs, lot = turns(64, torch.float32)
    left = []
    monkeypatch.setattr(requests, "_chain", lambda *a: left.append(a[2]))
    update_requests(memory, outputs, lot)
    assert not left
    update_requests(memory, outputs.half(), lot)
    assert len(left) == len(lot)


def test_a_launch_reads_nothing_that_is_not_there(monkeypatch):
    """What stands in unused rows, and outputs that a turn does not use, may be NaN; a turn of -1 does nothing."""
    monkeypatch.setenv("DIFFSOLVE_KERNELS", "triton")
    memory, outputs, lot = turns(40, torch.float32)
    used = {row for t in lot for row in (t.s, t.y, *t.history)}
    want, dirty = memory.clone(), memory.clone()
    update_requests(want, outputs, lot)
    for row in set(range(len(memory))) - used:
        dirty[row] = torch.nan
    table = table_of(lot, 5)
    idle = np.zeros_like(table)
    idle[:, : 5 + 6] = -1
    both = torch.from_numpy(np.concatenate([table, idle]))
    factor = torch.cat([requests.factors(outputs, lot), torch.ones(len(lot))])
    requests.launch_table(dirty, outputs, both, factor)
    for turn in lot:
        live = [*turn.after[:2], *turn.history]
        torch.testing.assert_close(dirty[live], want[live], rtol=0, atol=0)


def test_nothing_to_do():
    memory = torch.ones(4, 3)
    update_requests(memory, None, [])
    assert torch.equal(memory, torch.ones(4, 3))
