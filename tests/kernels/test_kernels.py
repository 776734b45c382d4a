"""Every Triton kernel, in Triton's interpreter, against the torch function beside it.

Tolerance: against float64, a kernel may be off by twice what torch is off by in the same dtype, and by two roundings.
"""

import os
import shutil
import subprocess
import sys
from functools import partial

import numpy as np
import pytest
import torch
import triton
import triton.language as tl
from support.product import shares, shown
from support.solvers import KINDS

import diffsolve as ds
from diffsolve import kernels
from diffsolve.kernels import device, dispatch, launch
from diffsolve.kernels.layout import seeds_on
from diffsolve.kernels.terms import D, Y, Z
from diffsolve.noise import Draw, Key, Stream
from diffsolve.noise.key import philox

F16, BF16, F32, F64 = torch.float16, torch.bfloat16, torch.float32, torch.float64
SIZES = (0, 1, 7, 16, 1021, 1024, 2500)
KEYS = (Key(7, index=2**32 - 9), Key([5, 2**64 - 1, 2**63]))


compiler = pytest.mark.skipif(shutil.which(os.environ.get("CC", "cc")) is None, reason="needs a C compiler")
BOTH = pytest.mark.parametrize("choice", ["triton", pytest.param("native", marks=compiler)])


def both(monkeypatch, work, choice="triton"):
    """What a fused implementation makes, and what torch makes."""
    found = []
    for one in (choice, "torch"):
        monkeypatch.setenv("DIFFSOLVE_KERNELS", one)
        found.append(work())
    return found


def assert_as_good(found, torch_, exact, what=""):
    """The error against float64 is at most twice torch's, and two roundings of the largest value."""
    assert found.dtype == torch_.dtype
    assert found.shape == torch_.shape
    if found.numel() == 0:
        return
    error = (found.double() - exact).abs().max()
    allowed = 2 * (torch_.double() - exact).abs().max() + 2 * torch.finfo(found.dtype).eps * exact.abs().max()
    assert error <= allowed, f"{what}: off by {error:.3g}, allowed {allowed:.3g}"


def draws(*shape, dtype=F32, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=F64).to(dtype)


@pytest.mark.product({"size": SIZES, "per_sample": [False, True]})
@BOTH
def test_combine(size, per_sample, monkeypatch, choice):
    for count, into, dtypes in (
        (1, 1, [F32]),
        (3, 2, [F32, BF16, F16]),
        (5, 3, [BF16, F16]),
        (12, 4, [F32, F64]),
        (2, 12, [F32]),
    ):
        xs = [draws(3, size, dtype=dtypes[k % len(dtypes)], seed=k) for k in range(count)]
        outs = [dtypes[m % len(dtypes)] for m in range(into)]
        weights = draws(*([3] if per_sample else []), into, count, dtype=F64, seed=99)
        ours, theirs = both(monkeypatch, lambda: kernels.combine(xs, weights, dtypes=outs), choice)  # noqa: B023
        exact = torch.einsum("bmk,kbe->mbe", weights.expand(3, into, count), torch.stack([x.double() for x in xs]))
        for one, two, true in zip(ours, theirs, exact, strict=True):
            assert_as_good(one, two, true, f"{count} to {into}")


@BOTH
def test_combine_of_other_layouts(monkeypatch, choice):
    x = draws(4, 6, 5, 3)
    given = [
        x.permute(0, 3, 1, 2), draws(4, 3, 6, 5), draws(4, 3, 6, 10)[..., ::2], draws(1, 3, 6, 5).expand(4, 3, 6, 5),
    ]  # fmt: skip
    for order in (given, given[::-1], given[1:]):
        weights = draws(2, len(order), dtype=F64)
        for one, two in zip(*both(monkeypatch, lambda: kernels.combine(order, weights), choice), strict=True):  # noqa: B023
            torch.testing.assert_close(one, two, rtol=1e-6, atol=1e-6)


@triton.jit
def words_kernel(
    out, keys, first: tl.int64, row: tl.int64, stream, start: tl.int64, LISTED: tl.constexpr, N: tl.constexpr
):
    b = tl.arange(0, 4)[:, None].to(tl.int64)
    e = start + tl.arange(0, N)[None, :]
    r = device.words(b, e, b < 3, keys, first, row, stream, LISTED)
    for j in tl.static_range(4):
        tl.store(out + (b * N + tl.arange(0, N)[None, :]) * 4 + j, r[j].to(tl.int64), mask=b < 3)


@pytest.mark.parametrize("key", KEYS, ids=str)
@pytest.mark.parametrize("start", [0, 2**31 - 3, 2**32 - 8])
def test_words_equal_bit_for_bit(key, start):
    seeds, first, row, stream, listed = seeds_on(Draw(key, 2**32 - 1, Stream.ROW), torch.device("cpu"))
    found = torch.empty(3, 8, 4, dtype=torch.int64)
    words_kernel[(1,)](found, seeds, first, row, stream, start, LISTED=listed, N=8)
    words, sample = key.words(0, 3, torch.device("cpu"))
    element = torch.arange(start, start + 8)
    r = philox((element, sample, torch.tensor([2**32 - 1]), int(Stream.ROW)), words)
    assert torch.equal(found, torch.stack(torch.broadcast_tensors(*r), -1))


@pytest.mark.product({"size": [1, 3, 4, 37, 2500], "dtype": [F32, BF16, F64], "key": KEYS}, each=2)
@BOTH
def test_noise_made_in_the_kernel(key, size, dtype, monkeypatch, choice):
    x, draw = draws(3, size, dtype=dtype), Draw(key, 16, Stream.ROW)
    weights = torch.tensor([[0.5, 2.0], [0.0, 1.0]], dtype=F64)
    ours, theirs = both(monkeypatch, lambda: kernels.combine([x], weights, draw=draw), choice)
    noise = key.normal(x.shape, row=16, stream=Stream.ROW, dtype=F64)
    for one, two, true in zip(ours, theirs, (0.5 * x.double() + 2 * noise, noise), strict=True):
        # log, sin and cos differ in their last bits; a normal is at most 5.9.
        torch.testing.assert_close(one.double(), true, rtol=torch.finfo(dtype).eps, atol=4e-6)
        torch.testing.assert_close(one, two, rtol=2 * torch.finfo(dtype).eps, atol=4e-6)


@triton.jit
def tile_kernel(
    out,
    program: tl.int64,
    batch: tl.int64,
    size: tl.int64,
    blocks: tl.int64,
    FLAT: tl.constexpr,
    R: tl.constexpr,
    C: tl.constexpr,
):
    _, at, mask, block = device.tile(tl.zeros((), tl.int64) + program, batch, size, blocks, FLAT, R, C)
    slot = tl.arange(0, R)[:, None] * C + tl.arange(0, C)[None, :]
    tl.store(out + slot, tl.where(mask, at, -1))
    tl.store(out + R * C + slot, tl.zeros((R, C), tl.int64) + block)


@pytest.mark.parametrize(
    ("size", "batch", "R", "C"),
    [(2**31 + 11, 3, 1, 64), (2**40 + 1, 1, 1, 64), (37, 2**30, 16, 64), (1, 2**33, 16, 16)],
)
def test_offsets_past_two_to_the_31(size, batch, R, C):
    """The index arithmetic of every kernel, without the memory: first and last programs against Python's integers."""
    blocks = -(-size // C)
    programs = -(-batch // R) * blocks
    for flat in (False, True) if batch == 1 else (False,):
        for program in (0, 1, blocks - 1, blocks, 2**31 // C, programs - 2, programs - 1):
            if not 0 <= program < programs:
                continue
            out = torch.empty(2, R, C, dtype=torch.int64)
            tile_kernel[(1,)](out, program, batch, size, blocks, FLAT=flat, R=R, C=C)
            b = [program // blocks * R + i for i in range(R)]
            e = [program % blocks * C + j for j in range(C)]
            want = [[i * size + j if i < batch and j < size else -1 for j in e] for i in b]
            assert out[0].tolist() == want
            assert bool((out[1] == program % blocks).all())


NETWORKS = [("edm", "noise"), ("condot", "velocity"), ("edm", "edm")]
# New names last: each keeps its network. dopri8 on (edm, noise) in float32 would lose all to cancellation.
NEW = ["designed", "consistency", "flow-map", "lcm", "scm", "tcd", "designed-sde"]
NAMES = [*(name for name in ds.solvers.names() if name not in NEW), *NEW]
RUNS = [(name, *NETWORKS[i % 3]) for i, name in enumerate(NAMES)]


SOME = [run for run in RUNS if run[0] in KINDS][::2]


@pytest.mark.product({"runs": shares(RUNS, 5)}, some={"runs": shares(SOME, 5)})
@BOTH
def test_every_solver(runs, monkeypatch, choice):
    """A whole run, one launch per call, against the chain; the truth is the run in float64."""
    for solver, path, predicts in shown(runs):
        model = ds.adapt(lambda x, t: torch.tanh(x) * 0.7, path, predicts)
        run = partial(ds.sample, model, (3, 2, 5), solver=solver, steps=4, seed=[3, 1, 4])
        monkeypatch.setenv("DIFFSOLVE_KERNELS", "torch")
        exact = run(dtype=F64)
        for dtype in (F32, BF16):
            ours, theirs = both(monkeypatch, partial(run, dtype=dtype), choice)
            error, allowed = ((x.double() - exact).norm() for x in (ours, theirs))
            assert error <= 2 * allowed + 64 * torch.finfo(dtype).eps * exact.norm()


@pytest.mark.parametrize("dtype", [F16, BF16, F64])
@BOTH
def test_the_networks_input_is_scaled_and_cast_on_the_way(dtype, monkeypatch, choice):
    seen = []

    def net(x, t):
        seen.append(x.clone())
        return torch.tanh(x)

    model = ds.adapt(net, "edm", "edm", dtype=dtype)
    both(monkeypatch, lambda: ds.sample(model, (2, 9), solver="unipc-2", steps=4, seed=0), choice)
    assert {x.dtype for x in seen} == {dtype}
    half = len(seen) // 2
    scale = model.input_scale(model.path.nodes(ds.plan(model, "unipc-2", steps=4).calls[:, 0]))
    start = Key(0).normal((2, 9)) * model.path.prior_std(model.path.t_noise)
    torch.testing.assert_close(seen[half].double(), start.double() * scale[0], rtol=torch.finfo(dtype).eps, atol=1e-7)
    for one, two in zip(seen[:half], seen[half:], strict=True):
        torch.testing.assert_close(one, two, rtol=8 * torch.finfo(dtype).eps, atol=1e-5)


@pytest.mark.parametrize("rescale", [0.0, 0.7])
@pytest.mark.parametrize("dtype", [F32, BF16])
@BOTH
def test_guidance_in_the_update(rescale, dtype, monkeypatch, choice):
    cond, uncond = draws(3, 2, 50, dtype=dtype, seed=1), draws(3, 2, 50, dtype=dtype, seed=2)
    model = ds.adapt(lambda x, t: x, "edm", "noise")

    def run():
        ex = ds.begin(model, noise=draws(3, 2, 50), solver="dpmpp-2m", steps=3)
        while not ex.done:
            ex.query()
            ex.advance(kernels.Guided(cond, uncond, 4.5, rescale))
        return ex.y

    ours, theirs = both(monkeypatch, run, choice)
    torch.testing.assert_close(ours, theirs, rtol=2e-6 if dtype == F32 else 2e-2, atol=1e-5 if dtype == F32 else 5e-2)
    c, u = cond.double(), uncond.double()
    guided = u + 4.5 * (c - u)
    ratio = c.flatten(1).std(1) / guided.flatten(1).std(1)
    for factor in both(monkeypatch, lambda: kernels.Guided(cond, uncond, 4.5, 1.0).factor(), choice):
        torch.testing.assert_close(factor.double(), ratio, rtol=1e-5, atol=0)
    exact = (1 - rescale + rescale * ratio)[:, None, None] * guided
    torch.testing.assert_close(
        kernels.Guided(c, u, 4.5, rescale).tensor(), exact, rtol=1e-12, atol=1e-12
    )  # fmt: skip


@pytest.mark.product(
    {
        "layout": ["transposed", "channels last", "sliced output", "expanded output"],
        "solver": ["unipc-3", "ddim(eta=1.0)"],
    }
)
@BOTH
def test_runs_of_other_layouts(layout, solver, monkeypatch, choice):
    x = draws(4, 3, 6, 5)
    start = {"transposed": x.transpose(0, 3), "channels last": x.to(memory_format=torch.channels_last)}.get(layout, x)
    out = {
        "sliced output": lambda x: torch.cat([x, x], -1)[..., ::2] * 0.1,
        "expanded output": lambda x: (x[:, :1] * 0.1).expand(x.shape),
    }.get(layout, lambda x: x * 0.1)
    model = ds.adapt(lambda x, t: out(x), "edm", "denoised")
    ours, theirs = both(monkeypatch, lambda: ds.sample(model, noise=start, solver=solver, steps=5, seed=0), choice)
    assert ours.stride() == theirs.stride()
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-4)


def test_a_run_on_paper(monkeypatch):
    """Without memory (device "meta" raises at any look at a value): one launch per call, each operand once, no sync."""
    launches = []

    class Recorded:
        def __getitem__(self, grid):
            return lambda *args, **options: launches.append((grid, args, options))

    monkeypatch.setattr(device, "combine_kernel", Recorded())
    for module in (dispatch, kernels, sys.modules["diffsolve.kernels.update"]):
        monkeypatch.setattr(module, "fused", lambda where, what: getattr(launch, what))
    big = (3, 2**15, 2**15 + 16)  # 2^31.6 elements
    for solver in ds.solvers.names():
        launches.clear()
        model = ds.adapt(lambda x, t: torch.empty_like(x), "edm", "denoised", dtype=BF16)
        run = ds.solve(model, noise=torch.empty(big, device="meta"), solver=solver, steps=6, seed=0)
        assert len(launches) == run.nfe + 1, solver
        for grid, args, options in launches:
            xs, ys = args[0], args[1]
            assert len({id(x) for x in xs}) == len(xs), f"{solver} reads an operand twice"
            assert len({id(y) for y in ys}) == len(ys)
            assert len(xs) <= 2 + run.tableau.history + 1
            batch, size, blocks = args[10:13]
            assert batch * size == np.prod(big)
            assert blocks * options["C"] >= size
            assert grid == (-(-batch // options["R"]) * blocks,)
            assert grid[0] < 2**31
            assert sum(masks == 0 for masks in options["MASKS"]) == 0, f"{solver} writes zeros"


@pytest.mark.product(
    {
        "L, K, size": [(1, 1, 1), (5, 2, 37), (3, 4, 1500), (3, 4, 0), (9, 3, 16)],
        "dtype": [F32, F64, BF16],
        "one": [False, True],
    },
    each=2,
)
def test_window_update(dtype, one, L, K, size, monkeypatch):
    """Against the recurrence in float64, with columns that are never used, with and without noise and a state apart."""
    shape = (L, 3, size)
    y, s, d = (
        draws(3, size, dtype=dtype),
        draws(3, size, dtype=dtype, seed=1),
        draws(K - 1, 3, size, dtype=dtype, seed=2),
    )
    f, z, old = (draws(*shape, dtype=dtype, seed=seed) for seed in (3, 4, 5))
    weights, keep = draws(L, 3, 2, K + 3, dtype=F64, seed=6) / (K + 3), draws(L, 3, 2, dtype=F64, seed=7)
    acc = F64 if dtype == F64 else F32
    used = [[c % 3 != 1 for c in range(K + 3)], [c != 3 for c in range(K + 3)]]
    weights[:, :, 0, [c for c in range(K + 3) if c % 3 == 1]] = weights[:, :, 1, 3] = 0.0
    weights, keep = weights.to(acc), keep.to(acc)

    for noise in (z, None):

        def work(noise=noise):
            return kernels.window_update(weights, keep, None if one else s, y, d, f, noise, old, used=used)

        ours, theirs = both(monkeypatch, work)
        ss, ys, ds_ = [(y if one else s).double()], [y.double()], [*d.double()]
        for i in range(L):
            p, q = keep[i].double()[..., None].unbind(1)
            ds_.append(p * ys[i] + q * f[i].double())
            live = torch.stack(
                [ss[i], ys[i], *ds_[-1 : -K - 1 : -1], f[i].double() * 0 if noise is None else z[i].double()]
            )
            new_s, new_y = torch.einsum("bmc,cbe->mbe", weights[i].double(), live)
            ys.append(new_y)
            ss.append(new_y if one else new_s)
        for found, torch_, exact in zip(ours[:3], theirs[:3], (ss, ys, ds_), strict=True):
            assert_as_good(found, torch_, torch.stack(exact))
        for ss_, ys_, _, change in (ours, theirs):
            assert (ss_ is ys_) == one
            assert change.dtype == acc
            assert change.shape == (L, 3)
            exact = (ys_[1:].double() - old.double()).square().sum(-1)
            torch.testing.assert_close(change.double(), exact, rtol=1e-5, atol=1e-12)
        assert kernels.window_update(weights, keep, None, y, d, f)[3] is None


@pytest.mark.parametrize("per_sample", [False, True])
@BOTH
def test_gradients(per_sample, monkeypatch, choice):
    xs = [draws(2, 2, dtype=F64, seed=k).requires_grad_() for k in range(2)]
    weights = draws(*([2] if per_sample else []), 2, 3, dtype=F64, seed=9).requires_grad_()
    draw = Draw(Key(3), 1, Stream.ROW)
    work = lambda w, *x: kernels.combine(x, w, draw=draw)  # noqa: E731
    monkeypatch.setenv("DIFFSOLVE_KERNELS", choice)
    assert torch.autograd.gradcheck(work, (weights, *xs), fast_mode=True)
    assert torch.autograd.gradgradcheck(work, (weights, *xs), fast_mode=True)
    single = [x.detach().float().requires_grad_() for x in xs]
    ours, theirs = both(
        monkeypatch,
        lambda: torch.autograd.grad(sum((o * o).sum() for o in work(weights, *single)), (weights, *single)),
        choice,
    )
    for one, two in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, two, rtol=1e-5, atol=1e-5)


def test_fold_reads_each_place_once():
    row = kernels.Row((0.5, 1.0), None, ((0, 2.0), (Y, 1.0), (D, 3.0), (D + 1, -1.0), (Z, 0.25)), True, 0.1)
    fold = sys.modules["diffsolve.kernels.update"]._fold
    places, lines = fold(row, single=False)
    assert places == [0, 1, 2, 5, 3]
    np.testing.assert_allclose(lines, [[2, 2.5, 3, -1, 0.25], [0, 0.5, 1, 0, 0], [0.2, 0.25, 0.3, -0.1, 0.025]])
    places, lines = fold(row, single=True)
    assert places == [0, 2, 5, 3]
    np.testing.assert_allclose(lines, [[4.5, 3, -1, 0.25], [0.5, 1, 0, 0], [0.45, 0.3, -0.1, 0.025]])


def test_choice(monkeypatch):
    cpu, cuda = torch.device("cpu"), torch.device("cuda")
    monkeypatch.delenv("DIFFSOLVE_KERNELS", raising=False)
    assert dispatch.fused(cpu, "combine") is None
    assert dispatch.fused(cuda, "combine") is launch.combine
    monkeypatch.setenv("DIFFSOLVE_KERNELS", "torch")
    assert dispatch.fused(cuda, "combine") is None
    monkeypatch.setenv("DIFFSOLVE_KERNELS", "triton")
    assert dispatch.fused(cpu, "moments") is launch.moments
    monkeypatch.setenv("DIFFSOLVE_KERNELS", "native")
    assert dispatch.fused(cpu, "combine").__module__ == "diffsolve.kernels.loop"
    assert dispatch.fused(cpu, "moments") is None
    with pytest.raises(ValueError, match="the device must be the CPU with DIFFSOLVE_KERNELS=native, got cuda"):
        dispatch.fused(cuda, "combine")
    monkeypatch.setenv("DIFFSOLVE_KERNELS", "cuda")
    with pytest.raises(ValueError, match="DIFFSOLVE_KERNELS must be torch, triton, native or unset, got 'cuda'"):
        dispatch.fused(cpu, "combine")
    monkeypatch.setenv("DIFFSOLVE_KERNELS", "triton")
    monkeypatch.delenv("TRITON_INTERPRET")
    with pytest.raises(
        ValueError, match="the device must be a CUDA or ROCm device with DIFFSOLVE_KERNELS=triton.* got cpu"
    ):
        dispatch.fused(cpu, "combine")


def test_a_broken_triton_warns_once_and_falls_back(monkeypatch):
    def broken(name):
        raise ImportError("libcuda is of another century")

    monkeypatch.delenv("DIFFSOLVE_KERNELS", raising=False)
    monkeypatch.setattr(dispatch.importlib, "import_module", broken)
    dispatch._module.cache_clear()
    try:
        with pytest.warns(RuntimeWarning, match="ImportError: libcuda is of another century") as seen:
            found = [dispatch.fused(torch.device("cuda"), "combine") for _ in range(2)]
        assert found == [None, None]
        assert len(seen) == 1
    finally:
        dispatch._module.cache_clear()


def test_a_cpu_run_never_imports_triton():
    code = (
        "import sys, torch, diffsolve as ds; ds.sample(ds.adapt(lambda x, t: x, 'edm', 'denoised'), (2, 3), nfe=4); "
        "sys.exit('triton' in sys.modules)"
    )
    quiet = {k: v for k, v in os.environ.items() if k not in ("TRITON_INTERPRET", "DIFFSOLVE_KERNELS")}
    assert subprocess.run([sys.executable, "-c", code], env=quiet, check=False).returncode == 0


X = torch.ones(2, 3)


def window(**other):
    """One call of two samples, with some operand replaced."""
    given = {"weights": torch.ones(1, 2, 2, 4), "keep": torch.ones(1, 2, 2), "s": X, "y": X, "f": X[None]}
    return kernels.window_update(**{**given, "d": X.new_empty(0, 2, 3), **other})


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (
            lambda: kernels.combine([X] * 13, torch.ones(1, 13)),
            "inputs must be 1 to 12 tensors, the noise of draw counted, got 13",
        ),
        (lambda: kernels.combine([X, X[:1]], torch.ones(1, 2)), "one shape"),
        (lambda: kernels.combine([X, X.to("meta")], torch.ones(1, 2)), "inputs must be on one device, got .*meta"),
        (lambda: kernels.combine([X], torch.ones(1, 2)), r"weights must be of shape \(M, 1\)"),
        (lambda: kernels.combine([X], torch.ones(3, 1, 1)), r"weights must be of shape \(2, M, 1\)"),
        (lambda: kernels.combine([X], torch.ones(2, 1), dtypes=[F32]), "dtypes must be 2, one for each output"),
        (lambda: window(weights=torch.ones(1, 2, 2, 5)), r"weights must be of shape \(1, 2, 2, 4\) .*\(1, 2, 2, 5\)"),
        (lambda: window(keep=torch.ones(2, 2)), r"keep must be of shape \(1, 2, 2\) .*shape \(2, 2\)"),
        (lambda: window(old=X), r"old must be of shape \(1, 2, 3\) .*shape \(2, 3\)"),
        (lambda: window(s=X[:1]), r"s must be of shape \(2, 3\) .*shape \(1, 3\)"),
    ],
)
def test_errors_name_what_is_wrong(make, says):
    with pytest.raises(ValueError, match=says):
        make()
