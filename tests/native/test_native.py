"""The compiled loop: bit for bit what the chain does, used where it may be and nowhere else, compiled once."""

import ctypes
import os
import platform
import shutil
import stat
import subprocess
import sys
import threading
import warnings
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from support.solvers import KINDS
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd import forward_ad
from torch.utils._python_dispatch import TorchDispatchMode

import diffsolve as ds
from diffsolve.execute import Executor
from diffsolve.kernels import Guided, Row, loop, update
from diffsolve.kernels.terms import OUT, D, S, Y, Z, terms
from diffsolve.native import flags
from diffsolve.native import loader as native
from diffsolve.noise import Draw, Key, Stream

F16, BF16, F32, F64 = torch.float16, torch.bfloat16, torch.float32, torch.float64
OWN = ["ddim(eta=1.0)", "rk4(frame='trig')", "heun(frame='noise')", "ab-3(corrector=3)"]

pytestmark = pytest.mark.skipif(native.found(F32) is None, reason="needs a C compiler")


@pytest.fixture(autouse=True)
def by_default(monkeypatch):
    """And whatever a wheel brought is not for this processor."""
    monkeypatch.delenv("DIFFSOLVE_KERNELS", raising=False)
    monkeypatch.setattr(native, "NEEDED", dict.fromkeys(flags.LEVELS, frozenset({"a flag of tomorrow"})))


@pytest.fixture
def loops(monkeypatch):
    """What the loop was given and whether it could do it, call by call; `stop` keeps every row from it."""

    class Seen(list):
        stop = False

    seen = Seen()

    def run(made, inputs, results, draw):
        done = not seen.stop and loop.run_recipe(made, inputs, results, draw)
        seen.append((len(made.places), len(results), draw is not None, done))
        return done

    monkeypatch.setattr(update, "run_recipe", run)
    return seen


def normal(*shape, dtype=F32, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=F64).to(dtype)


# The same bits


@pytest.mark.product(
    {
        "solver": [*ds.solvers.names(), *OWN],
        "path, predicts": [("edm", "noise"), ("condot", "velocity"), ("edm", "edm"), ("vp", "v")],
        "dtype": [F32, F64],
    },
    some={"solver": [*KINDS, *OWN]},
)
def test_the_chain_and_the_loop_agree_bit_for_bit(solver, path, predicts, dtype, loops):
    model = ds.adapt(lambda x, t: torch.tanh(x) * 0.7, path, predicts)
    for shape in ((1, 1), (3, 7), (5, 3, 67), (2, 1, 1100)):
        found = []
        for loops.stop in (False, True):
            loops.clear()
            start = normal(*shape, dtype=dtype)
            found.append(ds.sample(model, noise=start, solver=solver, steps=6, seed=0))
            assert all(done == (not loops.stop) for *_, done in loops)
        assert torch.equal(*found), shape


@pytest.mark.parametrize("solver", ["unipc-3", "dopri8", "ddim(eta=1.0)"])
def test_a_sample_does_not_depend_on_its_batch_or_the_threads(solver):
    model = ds.adapt(lambda x, t: x * 0.3, "edm", "denoised")
    run = lambda shape, index: ds.sample(model, shape, solver=solver, steps=5, seed=1, index=index)  # noqa: E731
    for inner in ((1,), (3, 7), (5, 241), (16, 1100)):
        whole = run((5, *inner), 0)
        for i in range(5):
            assert torch.equal(run((1, *inner), i), whole[i : i + 1])
        torch.set_num_threads(2)
        try:
            assert torch.equal(run((5, *inner), 0), whole)
        finally:
            torch.set_num_threads(1)


@pytest.mark.parametrize("size", [1, 3, 31, 32, 33, 64, 1023, 1024, 1025, 5000])
@pytest.mark.parametrize("dtype", [F32, F64])
def test_sums_in_place_are_the_fused_sums(size, dtype):
    """Results that stand where inputs stood, with results as terms; the truth is fused in float64 and wider."""
    a, b, c = (normal(2, size, dtype=dtype, seed=i) for i in range(3))
    wide = [x.numpy().astype(np.longdouble) for x in (a, b, c)]
    narrow = a.numpy().dtype.type
    w = [narrow(x) for x in (0.3, -1.7, 2.5, 0.9, -0.4)]

    def fused(total, weight, x):  # rounded once: a product of two float64 takes more bits than long double has
        return (total.astype(np.longdouble) + np.longdouble(weight) * x.astype(np.longdouble)).astype(narrow)

    first = fused((np.longdouble(w[0]) * wide[0]).astype(narrow), w[1], wide[1])
    second = fused((np.longdouble(w[2]) * first.astype(np.longdouble)).astype(narrow), w[3], wide[2])
    second = fused(second, w[4], wide[0])
    made = loop.recipe([0, 1, 2], [[(0, w[0]), (1, w[1])], [(3, w[2]), (2, w[3]), (0, w[4])]])
    assert loop.run_recipe(made, [a, b, c], [b, a], None)
    for found, true in ((b, first), (a, second)):
        if dtype == F32:
            np.testing.assert_array_equal(found.numpy(), true)
        else:
            np.testing.assert_allclose(found.numpy(), true, rtol=1e-15, atol=1e-16)


@pytest.mark.parametrize("one", [True, False])
def test_any_row_at_all(one):
    """Rows that no solver writes: any terms, unit weights among them, in any place of the order."""
    draw = np.random.default_rng(0)
    for trial in range(200):
        noise = bool(draw.integers(2))
        keep = [None, (0.7, 1.0), (1.0, 0.0), (0.0, 1.0)][draw.integers(4)]
        places = [S, OUT, *([] if one else [Y]), *([Z] if noise else []), *([D] if keep else []), D + 1, D + 2]

        def side(places=places):
            weights = {p: draw.choice([0.0, 1.0, -1.0, 0.3, -2.5]) for p in places}
            return terms({p: w for p, w in weights.items() if w})

        row = Row(keep, None if draw.integers(2) else side(), side(), noise)
        found = []
        for way in (update._loop_recipe(row, one), None):
            s, y, out, *history = (normal(2, 37, seed=100 * trial + i) for i in range(6))
            live = [s, s if one else y, out, Draw(Key(trial), 1, Stream.ROW), *history]
            scratch = None if one else normal(2, 37)
            s2, y2, left = update.linear_update(live, replace(row, recipe=way), scratch)
            found.append((s2, y2, *history))
            kept = [None if left is None else next(i for i, x in enumerate([s, y, scratch]) if x is left)]
            found[-1] += (torch.tensor([-1 if k is None else k for k in kept]), torch.tensor(s2 is y2))
        assert all(torch.equal(a, b) for a, b in zip(*found, strict=True)), row


def test_noise_is_always_the_loops():
    assert update._loop_recipe(Row(None, None, ((S, 1.0), (Z, 0.5)), True), True) is not None
    assert update._loop_recipe(Row(None, None, ((S, 1.0), (OUT, 0.5)), False), True) is None


def test_noise_alone_and_in_the_update_is_the_same():
    for key in (Key(7, index=2**32 - 9), Key([5, 2**64 - 1, 2**63])):
        for size in (1, 5, 1021, 3000):
            draw, x, y = Draw(key, 2**32 - 1, Stream.ROW), torch.ones(3, size), torch.empty(3, size)
            assert loop.run_recipe(loop.recipe([0, 1], [[(1, 1.0)]]), [x], [y], draw)
            assert torch.equal(y, draw.tensor(y))


def test_every_uniform_makes_the_normal_of_the_definition(tmp_path):
    """ln, cos and sin over all 2^24 values that they can be given, to the last bit or so."""
    source = Path(native.__file__).with_name("loops.c")
    wrapper = tmp_path / "parts.c"
    wrapper.write_text(
        f'#define REAL float\n#include "{source}"\n'
        "void parts(int64_t n, const uint32_t *r, const uint32_t *s, float *l, float *a, float *b) {\n"
        "    for (int64_t i = 0; i < n; i++) l[i] = ln(unit(r[i])), pair(s[i], r[i], a + i, b + i);\n}\n"
    )
    compiler = [*os.environ.get("CC", "cc").split(), *flags.FLAGS, "-march=native"]
    subprocess.run([*compiler, str(wrapper), "-o", str(tmp_path / "parts.so")], check=True)
    parts = ctypes.CDLL(str(tmp_path / "parts.so")).parts
    n = 2**20
    radius = np.sqrt(50 * np.log(2))  # that of the smallest uniform, 2^-25
    for part in range(16):
        r = (np.arange(part * n, (part + 1) * n, dtype=np.int64) * 256).astype(np.uint32)
        made = [r, np.zeros(n, np.uint32), *np.empty((3, n), np.float32)]
        parts(ctypes.c_int64(n), *(x.ctypes.data_as(ctypes.c_void_p) for x in made))
        u = (((r >> 8).astype(np.float32) + np.float32(0.5)) / np.float32(2**24)).astype(float)
        log, a, b = (x.astype(float) for x in made[2:])
        assert np.all(np.abs(log - np.log(u)) <= 1.25e-7 * np.abs(np.log(u)))
        for found, true in ((a, np.cos(2 * np.pi * u)), (b, np.sin(2 * np.pi * u))):
            assert np.abs(found / radius - true).max() < 1.25e-7


# Where it is used


MODEL = ds.adapt(lambda x, t: x * 0.5, "condot", "velocity")


@pytest.mark.parametrize(
    ("solver", "taken"),
    [
        ("euler", "......"),  # one operation: y += h out
        ("ddim", "..x..."),  # y = a y + b out; a = 1 where the path runs straight
        ("ab-2", ".xxxxx"),
        ("dpmpp-2m", "..xxx."),
        ("heun", ".x.x.x.x.x."),
        ("unipc-3", "..xxx."),
        ("ddim(eta=1.0)", ".xxxx."),
    ],
)
def test_which_rows_take_the_loop(solver, taken):
    """All but those that are one operation of the chain, and noise always; the row decides, not the batch."""
    for shape in ((1, 1), (64, 7)):
        rows = ds.begin(MODEL, noise=normal(*shape), solver=solver, steps=5, seed=0)._rows
        assert "".join(".x"[row.recipe is not None] for row in rows) == taken


def test_who_asks_for_what(monkeypatch):
    def taken(dtype=F32):
        rows = ds.begin(MODEL, noise=normal(2, 3, dtype=dtype), solver="ab-2", steps=3, seed=0)._rows
        return any(row.recipe is not None for row in rows)

    assert taken()
    assert taken(F64)
    monkeypatch.setenv("DIFFSOLVE_KERNELS", "native")
    assert taken()
    monkeypatch.setenv("DIFFSOLVE_KERNELS", "torch")
    assert not taken()
    assert native.library() is None


@pytest.mark.parametrize("dtype", [F16, BF16])
def test_half_precision_is_the_chains(dtype, loops):
    ds.sample(MODEL, (3, 5), solver="ab-2", steps=4, seed=0, dtype=dtype)
    assert not loops
    half = ds.adapt(lambda x, t: (x * 0.5).to(dtype), "condot", "velocity")
    found = []
    for loops.stop in (False, True):
        found.append(ds.sample(half, (3, 5), solver="ddim(eta=1)", steps=4, seed=0))
    assert torch.equal(*found)
    assert not any(done for *_, done in loops)


@pytest.mark.parametrize("solver", ["unipc-3", "ddim(eta=1.0)"])
def test_other_layouts(solver, loops):
    x = normal(4, 3, 6, 5)
    for start in (x.transpose(0, 3), x.to(memory_format=torch.channels_last), x[..., ::2], x[:1].expand(4, 3, 6, 5)):
        found = []
        for loops.stop in (False, True):
            found.append(ds.sample(MODEL, noise=start, solver=solver, steps=5, seed=0))
        assert torch.equal(*found)
    for part in (
        lambda x: torch.cat([x, x], -1)[..., ::2],
        lambda x: x[:, :1].expand(x.shape),
        lambda x: x.transpose(0, 3).contiguous().transpose(0, 3),
    ):
        model = ds.adapt(lambda x, t: part(x * 0.1), "condot", "velocity")  # noqa: B023
        found = []
        for loops.stop in (False, True):
            found.append(ds.sample(model, noise=x, solver=solver, steps=5, seed=0))
        assert torch.equal(*found)


def test_outputs_that_do_not_fit_are_refused():
    """Never a look beyond the memory."""
    for wrong in (normal(2, 5), normal(1, 5), torch.empty(3, 5, device="meta")):
        ex = ds.begin(MODEL, noise=normal(3, 5), solver="ab-2", steps=5)
        with pytest.raises((ValueError, RuntimeError)):
            ex.advance(wrong)


def test_guided_outputs(loops):
    cond, uncond = normal(3, 50, seed=1), normal(3, 50, seed=2)
    found = []
    for loops.stop in (False, True):
        ex = ds.begin(MODEL, noise=normal(3, 50), solver="dpmpp-2m", steps=5)
        while not ex.done:
            ex.advance(Guided(cond, uncond, 4.5, 0.7))
        found.append(ex.y)
    assert torch.equal(*found)
    assert any(done for *_, done in loops)


class Subclass(torch.Tensor):
    pass


class Mode(TorchDispatchMode):
    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        return func(*args, **(kwargs or {}))


def test_memory_is_not_touched_while_something_looks_on():
    x = normal(2, 3)
    assert native.is_plain(x, torch.nn.Parameter(x).detach())
    with torch.no_grad():
        assert native.is_plain(torch.nn.Parameter(x))
    with torch.inference_mode():
        assert native.is_plain(x.clone())
    assert not native.is_plain(torch.nn.Parameter(x))
    assert native.is_plain(torch.nn.Parameter(x), graph=True)
    assert not native.is_plain(x.as_subclass(Subclass))
    assert not native.is_plain(torch.view_as_complex(normal(3, 2)).conj().imag)  # whose sign is still to be turned
    assert not native.is_plain(x.to_sparse())
    with Mode():
        assert not native.is_plain(x)
    with FakeTensorMode():
        assert not native.is_plain(torch.empty(3))
    with forward_ad.dual_level():
        assert native.is_plain(x)
        assert not native.is_plain(x, forward_ad.make_dual(x, x))
    seen = []
    torch.func.jvp(lambda x: seen.append(native.is_plain(torch.ones(3))) or x, (x,), (x,))
    torch.func.vmap(lambda x: seen.append(native.is_plain(x)) or x)(x)
    torch.func.grad(lambda x: seen.append(native.is_plain(x)) or x.sum())(x)
    torch.jit.trace(lambda x: seen.append(native.is_plain(x)) or x + 1, x, check_trace=False)
    torch.compile(lambda x: x + native.is_plain(x), backend="eager", fullgraph=True)(x)
    assert not any(seen)
    assert len(seen) == 4
    assert torch.equal(torch.compile(lambda x: x + native.is_plain(x), backend="eager", fullgraph=True)(x), x)


@pytest.mark.parametrize("choice", ["native", "torch"])
def test_bits_do_not_depend_on_what_another_thread_differentiates(choice, monkeypatch):
    """PyTorch counts the levels of forward-mode differentiation for the process, not for each thread."""
    monkeypatch.setenv("DIFFSOLVE_KERNELS", choice)
    model = ds.adapt(lambda x, t: x * 0.3, "edm", "denoised")

    def run():
        return ds.sample(model, (3, 150), solver="ddim(eta=1.0)", steps=3, seed=0)

    alone, entered, leave = run(), threading.Event(), threading.Event()

    def differentiate(x):
        entered.set()
        assert leave.wait(60)
        return x.sin()

    other = threading.Thread(target=lambda: torch.func.jvp(differentiate, (torch.ones(3),), (torch.ones(3),)))
    other.start()
    try:
        assert entered.wait(60)
        assert forward_ad._current_level >= 0
        meanwhile = run()
    finally:
        leave.set()
        other.join()
    assert torch.equal(meanwhile, alone)


@pytest.mark.parametrize("solver", ["ab-2", "ddim(eta=1.0)"])
def test_runs_that_something_looks_on_are_the_same_runs(solver):
    x = normal(3, 5)
    plain = ds.sample(MODEL, noise=x, solver=solver, steps=5, seed=0)
    with Mode():
        torch.testing.assert_close(ds.sample(MODEL, noise=x, solver=solver, steps=5, seed=0), plain)
    with torch.inference_mode():
        assert torch.equal(ds.sample(MODEL, noise=x, solver=solver, steps=5, seed=0), plain)
    first = ds.begin(MODEL, noise=x, solver=solver, steps=5, seed=0)
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        ex = Executor(first.program, mode.from_tensor(x), first.key)
        while not ex.done:
            ex.advance(MODEL.net(*ex.query()))
        assert type(ex.y).__name__ == "FakeTensor"
    # Forward derivatives pass through the rows: the run is linear in x.
    with forward_ad.dual_level():
        ex = ds.begin(MODEL, noise=x, solver=solver, steps=5, seed=0)
        ex._s = ex._y = forward_ad.make_dual(ex.y, torch.ones_like(x))
        while not ex.done:
            ex.advance(MODEL.net(*ex.query()))
        value, slope = forward_ad.unpack_dual(ex.y)
    torch.testing.assert_close(value, plain)
    other = ds.sample(MODEL, noise=x + 1, solver=solver, steps=5, seed=0)
    torch.testing.assert_close(slope, other - plain, rtol=1e-4, atol=1e-5)


def test_autograd_learns_of_what_was_overwritten():
    """A graph that kept the network's input must not be followed after the loop has written there."""
    weight = torch.ones(3, 5, requires_grad=True)
    ex = ds.begin(MODEL, noise=normal(3, 5), solver="ab-2", steps=5)
    out = ex.query()[0] * weight
    ex.advance(out)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        out.sum().backward()
    z = torch.ones(2, 3)
    product = (z * torch.ones(2, 3, requires_grad=True)).sum()
    Key(1).normal((2, 3), out=z)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        product.backward()


# Compiled once


COMPILER = """#!/bin/sh
echo compile >> {log}
{more}
exec cc "$@"
"""
WORK = """
import warnings; warnings.simplefilter("error")
import diffsolve as ds
print(ds.sample(ds.adapt(lambda x, t: x * 0.5, "edm", "denoised"), (2, 3), solver="ddim(eta=1)", steps=4, seed=0))
"""


class Elsewhere:
    """A cache and a compiler of one's own."""

    def __init__(self, folder, patch):
        self.cache, self.log, self.cc, self.patch = folder / "cache", folder / "log", folder / "cc", patch
        self.becomes("")
        self.set(XDG_CACHE_HOME=str(self.cache), CC=str(self.cc))

    def set(self, **environment):
        for name, value in environment.items():
            self.patch.setenv(name, value)

    def becomes(self, more):
        """The compiler does this before it compiles; to all appearances it is the same compiler."""
        self.cc.write_text(COMPILER.format(log=self.log, more=more).ljust(1000))
        self.cc.chmod(0o755)
        os.utime(self.cc, ns=(0, 0))

    def find(self, asked=False):
        """Whether there are loops, for a process that has not looked before, and that they work."""
        found = native._found.__wrapped__(F32, asked)
        if found is not None:
            made, y = torch.zeros(1, 9), Key(3).normal((1, 9))
            _, who = Key(3).address()
            found.fill(native.record(1, 9, 1, *who, 0, int(Stream.PRIOR), made.data_ptr()))
            assert torch.equal(made, y)
        return found is not None

    @property
    def compilations(self):
        return len(self.log.read_text().split()) if self.log.exists() else 0

    @property
    def files(self):
        return [f.suffix for f in (self.cache / "diffsolve").glob("*")]


@pytest.fixture
def elsewhere(tmp_path, monkeypatch):
    return Elsewhere(tmp_path, monkeypatch)


def python(code):
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout


@pytest.mark.slow
def test_compiled_by_the_first_process_and_by_no_other(elsewhere):
    python("import diffsolve, diffsolve.cli")
    assert elsewhere.compilations == 0
    first = python(WORK)
    assert elsewhere.compilations == 1
    assert elsewhere.files == [".so"]
    assert stat.S_IMODE((elsewhere.cache / "diffsolve").stat().st_mode) == 0o700
    assert python(WORK) == first
    assert elsewhere.compilations == 1


@pytest.mark.slow
def test_many_processes_at_once(elsewhere):
    with ThreadPoolExecutor(3) as pool:
        assert len(set(pool.map(python, [WORK] * 3))) == 1
    assert elsewhere.compilations >= 1
    assert elsewhere.files == [".so"]


def test_a_file_that_was_cut_off_is_made_again(elsewhere):
    assert elsewhere.find()
    (made,) = (elsewhere.cache / "diffsolve").iterdir()
    whole = made.read_bytes()
    made.unlink()  # what is loaded stays as it is
    made.write_bytes(whole[:1000])
    assert elsewhere.find()
    assert elsewhere.compilations == 2
    assert made.read_bytes() == whole
    assert elsewhere.find()
    assert elsewhere.compilations == 2


@pytest.mark.parametrize("what", ["open to others", "a file in its place", "no home"])
def test_a_cache_that_cannot_be_trusted_is_not_used(what, elsewhere):
    if what == "open to others":
        (elsewhere.cache / "diffsolve").mkdir(parents=True)
        (elsewhere.cache / "diffsolve").chmod(0o777)
    elif what == "a file in its place":
        elsewhere.cache.write_text("")
    else:
        elsewhere.set(XDG_CACHE_HOME="relative", HOME="/proc/nothing")
    for count in (1, 2):
        assert elsewhere.find()
        assert elsewhere.compilations == count
    assert elsewhere.files == []


def test_a_library_that_others_could_write_is_not_loaded(elsewhere):
    assert elsewhere.find()
    (made,) = (elsewhere.cache / "diffsolve").iterdir()
    made.chmod(0o777)
    assert elsewhere.find()
    assert elsewhere.compilations == 2
    assert not made.stat().st_mode & 0o022


@pytest.mark.parametrize(
    ("cc", "why"),
    [
        ("/nowhere/cc", "there is no compiler /nowhere/cc"),
        ("false", "cannot compile loops.c"),
        (None, "cannot compile loops.c: too old"),
        ("'", 'CC must be a command, got "\'": No closing quotation'),
        ("true", "No such file"),
    ],
)
def test_without_a_compiler(cc, why, elsewhere):
    """Not a word unless it was asked for; then one warning that says why."""
    elsewhere.becomes("echo too old >&2; exit 1")
    if cc:
        elsewhere.set(CC=cc)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert not elsewhere.find()
    with pytest.warns(RuntimeWarning, match=why):
        assert not elsewhere.find(asked=True)


@pytest.mark.skipif(platform.machine() not in flags.LEVELS or sys.platform != "linux", reason="no wheel brings loops")
def test_loops_that_a_wheel_brought(elsewhere, monkeypatch, tmp_path):
    """Used where there is no compiler and the processor has what they need; they draw the noise of this machine's."""
    machine, source = platform.machine(), Path(native.__file__).with_name("loops.c")
    built = tmp_path / flags.file_name(machine, "float")
    command = ["cc", *flags.FLAGS, f"-march={flags.LEVELS[machine]}", "-DREAL=float", str(source), "-o", str(built)]
    subprocess.run(command, check=True, env={**os.environ, "PATH": os.defpath})
    elsewhere.set(CC="/nowhere/cc")
    monkeypatch.setattr(native, "__file__", str(tmp_path / "loader.py"))
    assert not elsewhere.find()
    monkeypatch.setattr(native, "NEEDED", flags.NEEDED)
    assert elsewhere.find()
    assert elsewhere.compilations == 0


@pytest.mark.parametrize("cc", [" ", "\t"])
def test_an_empty_command_is_the_usual_compiler(cc, elsewhere, monkeypatch):
    made = []
    monkeypatch.setattr(native, "_compiled", lambda command, *_: made.append(command[0]))
    monkeypatch.setattr(native, "_opened", lambda file: None)
    elsewhere.set(CC=cc)
    native._load(F32)
    assert made == [shutil.which("cc")]


def test_a_compiler_that_speaks_another_encoding(elsewhere):
    elsewhere.becomes(r"printf '\377\376 zu alt' >&2; exit 1")
    with pytest.warns(RuntimeWarning, match="cannot compile loops.c: .* zu alt") as seen:
        assert not elsewhere.find(asked=True)
    assert len(seen) == 1


def test_a_library_without_the_loops(elsewhere, tmp_path):
    (tmp_path / "other.c").write_text("int other(void) { return 1; }")
    elsewhere.becomes(f'for last; do :; done; exec {shutil.which("cc")} -shared -fPIC {tmp_path}/other.c -o "$last"')
    with pytest.warns(RuntimeWarning, match="has no loops: .*update") as seen:
        assert not elsewhere.find(asked=True)
    assert len(seen) == 1


def test_what_runs_without_a_compiler(monkeypatch):
    """The chain and the noise of torch, to the bit; asked for, with one warning in all."""
    model = ds.adapt(lambda x, t: x * 0.5, "edm", "denoised")
    run = lambda: ds.sample(model, (2, 3), solver="ddim(eta=1)", steps=4, seed=0)  # noqa: E731
    monkeypatch.setenv("DIFFSOLVE_KERNELS", "torch")
    want = run()
    monkeypatch.delenv("DIFFSOLVE_KERNELS")
    assert not torch.equal(run(), want)  # the noise is another in its last bits
    monkeypatch.setenv("CC", "/nowhere/cc")
    native._found.cache_clear()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert torch.equal(run(), want)
        monkeypatch.setenv("DIFFSOLVE_KERNELS", "native")
        with pytest.warns(RuntimeWarning, match="there is no compiler") as seen:
            found = run(), run()
        assert len(seen) == 1
        assert all(torch.equal(x, want) for x in found)
    finally:
        native._found.cache_clear()


def test_a_compiler_without_openmp(elsewhere):
    elsewhere.becomes('case "$*" in *-fopenmp*) echo unsupported >&2; exit 1;; esac')
    assert elsewhere.find()
    assert elsewhere.find()
    assert elsewhere.compilations == 2


def test_the_name_says_what_the_code_depends_on(elsewhere, monkeypatch):
    names = []
    monkeypatch.setattr(native, "_compiled", lambda command, source, folder, name: names.append(name))
    monkeypatch.setattr(native, "_opened", lambda file: None)
    native._load(F32)
    native._load(F32)
    assert names[0] == names[1]
    native._load(F64)
    monkeypatch.setattr(native, "FLAGS", (*native.FLAGS, "-g"))
    native._load(F32)
    monkeypatch.setattr(native, "_processor", lambda: "another")
    native._load(F32)
    elsewhere.cc.write_text("a newer compiler")
    elsewhere.cc.chmod(0o755)
    native._load(F32)
    monkeypatch.setattr(Path, "read_text", lambda self: "other source")
    native._load(F32)
    assert len(set(names)) == 6
