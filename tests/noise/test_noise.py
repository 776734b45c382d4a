"""The noise is one fixed function of its address, the same however the work is cut up, and it is normal."""

import math
import os
import subprocess
import sys
import textwrap
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from diffsolve import native
from diffsolve.noise import Key, Stream
from diffsolve.noise import key as noise
from diffsolve.noise.key import philox

FULL = 2**32 - 1


@pytest.fixture(autouse=True, scope="module", params=["torch", "native"])
def both(request):
    """Everything here holds for the noise of the compiled loop and for that of NumPy and torch."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DIFFSOLVE_KERNELS", request.param)
        if request.param == "native" and native.found(torch.float32) is None:
            pytest.skip("needs a C compiler")
        yield


# From Random123's kat_vectors, philox4x32 with 10 rounds. The third is digits of pi.
KNOWN = [
    ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
    ((FULL,) * 4, (FULL,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
    (
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
        (0xA4093822, 0x299F31D0),
        (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
    ),
]


def reference_words(counter, key):
    """Philox4x32-10 in plain integers, with the paper's key schedule k + r W written out."""
    a, b, c, d = counter
    for r in range(10):
        k0, k1 = (key[0] + r * 0x9E3779B9) % 2**32, (key[1] + r * 0xBB67AE85) % 2**32
        (h0, l0), (h1, l1) = divmod(0xD2511F53 * a, 2**32), divmod(0xCD9E8D57 * c, 2**32)
        a, b, c, d = h1 ^ b ^ k0, l1, h0 ^ d ^ k1, l0
    return a, b, c, d


def reference_normal(seed, sample, element, row, stream):
    """One normal from the definition: in float64 but for u, which the definition has in float32."""
    counter = (element // 4, sample, row, stream)
    pair, side = divmod(element % 4, 2)
    r = reference_words(counter, (seed % 2**32, seed // 2**32))
    even, odd = (float(np.float32((w >> 8) + 0.5)) / 2**24 for w in r[2 * pair : 2 * pair + 2])
    return math.sqrt(-2 * math.log(even)) * (math.cos, math.sin)[side](2 * math.pi * odd)


def close(n, expected):
    """Within the rounding of an angle up to 2 pi and a radius up to 5.9 in float32."""
    return abs(n - expected) < 4e-6


# The integers


@pytest.mark.parametrize(("counter", "key", "words"), KNOWN)
def test_known_answers(counter, key, words):
    assert reference_words(counter, key) == words
    assert philox(counter, key) == words
    for one in (lambda w: torch.tensor([w]), lambda w: np.array([w])):
        for keys in (key, [one(k) for k in key]):
            assert tuple(w.item() for w in philox([one(c) for c in counter], keys)) == words


def test_tensors_arrays_and_integers_agree():
    g = np.random.default_rng(0)
    words = g.integers(0, 2**32, (6, 500), dtype=np.int64)
    words[:, :64] = np.array([[0, FULL][i >> j & 1] for j in range(6) for i in range(64)]).reshape(6, 64)
    arrays = philox(words[:4], words[4:])
    tensors = philox(torch.from_numpy(words[:4]).unbind(), torch.from_numpy(words[4:]).unbind())
    for j in range(500):
        w = [int(v) for v in words[:, j]]
        expected = reference_words(w[:4], w[4:])
        assert tuple(int(a[j]) for a in arrays) == tuple(int(t[j]) for t in tensors) == expected


def test_triton_draws_the_same_integers(tmp_path):
    pytest.importorskip("triton")
    script = tmp_path / "draw.py"  # a file, since Triton reads a kernel's source
    script.write_text(
        textwrap.dedent("""
        import torch, triton, triton.language as tl
        from diffsolve.noise.key import philox

        @triton.jit
        def kernel(out, seed, element, sample, row, stream, n: tl.constexpr):
            i = tl.arange(0, n)
            zero = tl.zeros([n], tl.uint32)
            c0 = (element + i).to(tl.uint32)
            c1, c2, c3 = zero + sample.to(tl.uint32), zero + row.to(tl.uint32), zero + stream.to(tl.uint32)
            r0, r1, r2, r3 = tl.philox(seed, c0, c1, c2, c3, n_rounds=10)
            tl.store(out + i, r0.to(tl.int64))
            tl.store(out + n + i, r1.to(tl.int64))
            tl.store(out + 2 * n + i, r2.to(tl.int64))
            tl.store(out + 3 * n + i, r3.to(tl.int64))

        n, seeds = 64, (1, 2**31 + 5, 2**32, 0x123456789ABCDEF0, 2**63 - 1)
        for k, seed in enumerate(seeds):
            element, sample, row, stream = ((0, 0, 0, 0), (2**31 - 7, 2**32 - 2, 999, 1))[k % 2]
            out = torch.empty(4, n, dtype=torch.int64)
            word = lambda v: torch.tensor(v)
            kernel[(1,)](out, seed, element, sample, row, stream, n)
            c = (torch.arange(element, element + n), word(sample), word(row), word(stream))
            assert torch.equal(out, torch.stack(philox(c, (seed % 2**32, seed >> 32)))), hex(seed)
        print("equal")
        """)
    )
    root = str(Path(noise.__file__).parents[2])
    env = {**os.environ, "TRITON_INTERPRET": "1", "PYTHONPATH": root}
    done = subprocess.run([sys.executable, script], env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "equal"


# The normals


@pytest.mark.parametrize("seed", [0, 1, 2**32 - 1, 2**32, 0xFEDCBA9876543210, 2**64 - 1])
def test_normals_are_the_definition(seed):
    x = Key(seed, index=2**32 - 3).normal((3, 2, 7), row=2**32 - 1, stream=Stream.ROW).view(3, 14)
    for i in range(3):
        for e in range(14):
            assert close(float(x[i, e]), reference_normal(seed, 2**32 - 3 + i, e, 2**32 - 1, 1))
    y = Key([5, seed]).normal((2, 5))
    assert all(close(float(y[1, e]), reference_normal(seed, 0, e, 0, 0)) for e in range(5))


def test_recorded_values():
    """What a seed means does not change from one release to the next."""
    x = Key(2024).normal((2, 3), row=7, stream=Stream.ROW)
    expected = [[reference_normal(2024, i, e, 7, 1) for e in range(3)] for i in range(2)]
    recorded = [[0.5294837, -0.3709315, 0.260838], [1.3123124, 1.6362574, 0.5475997]]
    torch.testing.assert_close(x, torch.tensor(recorded), rtol=0, atol=2e-6)
    torch.testing.assert_close(torch.tensor(expected), torch.tensor(recorded), rtol=0, atol=2e-6)
    assert [s.value for s in (Stream.PRIOR, Stream.ROW)] == [0, 1]


@pytest.mark.parametrize("first", [2**31 - 2, 2**31 + 3, 2**32 - 4])
def test_far_elements_are_addressed_without_wrapping(first):
    sample = torch.tensor([[2**32 - 1]])
    n = noise._normals((3, 4), (first, first + 4), sample, 1, 0)
    for e in range(16):
        assert close(float(n[0, e]), reference_normal(3 + 2**34, 2**32 - 1, 4 * first + e, 1, 0))


def test_every_uniform_gives_a_finite_normal(monkeypatch):
    """All 2**24 values of u, u = 1 included: it arises by rounding, and must give 0 and not a NaN."""
    sample = torch.zeros(1, 1, dtype=torch.int64)
    largest = 0.0
    for r in (torch.arange(2**24) << 8 | 0xFF).split(2**20):
        monkeypatch.setattr(noise, "philox", lambda c, k, r=r: (r[None].numpy(),) * 4)
        n = noise._normals((0, 0), (0, len(r)), sample, 0, 0)
        assert torch.isfinite(n).all()
        largest = max(largest, float(n.abs().max()))
    assert n[0, -4:].abs().max() == 0
    assert 5.88 < largest < math.sqrt(50 * math.log(2)) + 1e-6


@pytest.mark.parametrize("name", ["log", "cos", "sin"])
def test_transcendentals_do_not_depend_on_place(name):
    """The bits of a normal are the same in the body and in the tail of a vector loop, and on every thread."""
    f = getattr(torch, name)
    u = (torch.arange(0, 2**24, 2**24 // 300_007) + 0.5) * 2**-24
    x = u if name == "log" else u * (2 * math.pi)
    whole = f(x)
    for cut in (1, 3, 7, 13, 31, 2047):
        n = 3000 * cut if cut < 100 else len(x)
        assert torch.equal(torch.cat([f(part) for part in x[:n].split(cut)]), whole[:n]), cut
    assert torch.equal(f(torch.cat([x[:5], x]))[5:], whole)


# Cutting the work differently

SHAPES = [(1,), (2,), (3,), (4,), (5,), (7,), (13,), (3, 5, 7), (2, 65_537)]


@pytest.mark.parametrize("inner", [(), *SHAPES])
def test_a_row_does_not_depend_on_its_batch(inner):
    seven = Key(11).normal((7, *inner), row=3, stream=Stream.ROW)
    for i in range(7):
        assert torch.equal(Key(11, index=i).normal((1, *inner), row=3, stream=Stream.ROW)[0], seven[i])
    assert torch.equal(Key(11, index=2).normal((4, *inner), row=3, stream=Stream.ROW), seven[2:6])
    if len(inner) == 1:
        assert torch.equal(Key(11).normal((64, *inner), row=3, stream=Stream.ROW)[:7], seven)


def test_a_row_of_its_own_seed_does_not_depend_on_the_others():
    seeds = [3, 2**40, 3, 0, 2**64 - 1, 17, 2**63]
    order = [4, 0, 6, 2, 5, 1, 3]
    x = Key(seeds).normal((7, 3, 11), row=1)
    assert torch.equal(Key([seeds[j] for j in order]).normal((7, 3, 11), row=1), x[order])
    assert torch.equal(x[0], x[2])
    large = Key(seeds).normal((7, 3, 7001))  # two blocks of samples
    for j, s in enumerate(seeds):
        assert torch.equal(Key(s).normal((1, 3, 7001))[0], large[j])
        assert torch.equal(Key([s]).normal((1, 3, 11), row=1)[0], x[j])
        assert torch.equal(Key(s).normal((1, 3, 11), row=1)[0], x[j])


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 2**64 - 1),
    index=st.integers(0, 2**32 - 40),
    inner=st.lists(st.integers(0, 9), max_size=3),
    data=st.data(),
)
def test_any_cut_of_any_batch_agrees(seed, index, inner, data):
    batch = data.draw(st.integers(0, 12))
    start = data.draw(st.integers(0, batch))
    stop = data.draw(st.integers(start, batch))
    row = data.draw(st.integers(0, 2**32 - 1))
    stream = data.draw(st.sampled_from(Stream))
    x = Key(seed, index).normal((batch, *inner), row=row, stream=stream)
    assert x.shape == (batch, *inner)
    part = Key(seed, index + start).normal((stop - start, *inner), row=row, stream=stream)
    assert torch.equal(part, x[start:stop])
    flat = x.reshape(batch, -1) if x.numel() else x.new_empty(0, 0)
    if x.numel():
        few = data.draw(st.integers(0, flat.shape[1]))  # an element does not depend on how many there are
        assert torch.equal(Key(seed, index).normal((batch, few), row=row, stream=stream), flat[:, :few])
        i, e = data.draw(st.integers(0, batch - 1)), data.draw(st.integers(0, flat.shape[1] - 1))
        assert close(float(flat[i, e]), reference_normal(seed, index + i, e, row, stream))


@pytest.mark.parametrize("inner", [(), (3,), (70_001,)])
def test_antithetic_and_shared_rows(inner):
    plain = Key(3).normal((6, *inner), row=2, stream=Stream.ROW)
    draw = lambda count, **how: Key(3, **how).normal((count, *inner), row=2, stream=Stream.ROW)  # noqa: E731
    pairs = draw(6, antithetic=True)
    assert torch.equal(pairs[::2], plain[::2])
    assert torch.equal(pairs[1::2], -plain[::2])
    assert torch.equal(draw(3, index=3, antithetic=True), pairs[3:])
    assert torch.equal(draw(2, index=2, antithetic=True), pairs[2:4])
    shared = draw(4, index=5, shared=True)
    assert torch.equal(shared, plain[:1].expand_as(shared))
    both = draw(4, index=1, antithetic=True, shared=True)
    assert torch.equal(both, torch.stack([-plain[0], plain[0]] * 2))
    x = torch.empty(6, *inner, 2)[..., 0]
    assert torch.equal(Key(3, antithetic=True).normal(x.shape, row=2, stream=Stream.ROW, out=x), pairs)


def test_blocks_and_threads_leave_no_trace():
    size = 4 * 2**14 * 2 + 3  # over two blocks
    x = Key(5).normal((2, size))
    assert torch.equal(Key(5).normal((2, size // 3)), x[:, : size // 3])
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1 if threads > 1 else 2)
        assert torch.equal(Key(5).normal((2, size)), x)
    finally:
        torch.set_num_threads(threads)


def test_blocks_are_of_any_size(monkeypatch):
    monkeypatch.setenv("DIFFSOLVE_KERNELS", "torch")
    x = Key(5).normal((2, 2**17 + 3))
    parts = [noise._normals((5, 0), (e, e + 997), torch.tensor([[1]]), 0, 0) for e in range(0, 2**15, 997)]
    assert torch.equal(torch.cat(parts, 1)[0, : 2**17], x[1, : 2**17])


def test_arrays_and_tensors_give_the_same_normals(monkeypatch):
    """A CPU computes the integers in NumPy, any other device in PyTorch, with the very same lines."""
    monkeypatch.setenv("DIFFSOLVE_KERNELS", "torch")
    draws = [
        lambda: Key(2**64 - 1, index=2**32 - 2).normal((2, 3001), row=2**32 - 1, stream=Stream.ROW),
        lambda: Key([1, 2**64 - 1, 2**31]).normal((3, 4, 5), row=2**31),
        lambda: Key(3).normal((1, 1)),
        lambda: Key(3).normal((40, 1500)),
    ]
    arrays = [draw() for draw in draws]
    kinds = set()
    monkeypatch.setattr(noise, "philox", lambda c, k: kinds.update(map(type, c)) or philox(c, k))
    monkeypatch.setattr(noise, "IN_NUMPY", set())
    tensors = [draw() for draw in draws]
    assert kinds == {torch.Tensor, int}
    assert all(torch.equal(a, b) for a, b in zip(arrays, tensors, strict=True))


def test_many_threads_share_a_key():
    key, single = Key([4, 5, 6]), Key([4, 5, 6]).normal((3, 1000), row=9)
    with ThreadPoolExecutor(4) as pool:
        draws = list(pool.map(lambda row: key.normal((3, 1000), row=row), [9] * 8))
    assert all(torch.equal(x, single) for x in draws)


# Destinations


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_other_dtypes_are_the_rounded_float32(dtype):
    x = Key(1).normal((3, 4099))
    assert x.dtype == torch.float32
    y = Key(1).normal((3, 4099), dtype=dtype)
    assert y.dtype == dtype
    assert torch.equal(y, x.to(dtype))
    out = torch.full((3, 4099), math.nan, dtype=dtype)
    assert Key(1).normal((3, 4099), out=out) is out
    assert torch.equal(out, y)


def test_the_default_dtype_and_inference_mode_change_nothing():
    x = Key([1, 2]).normal((2, 9))
    torch.set_default_dtype(torch.float64)
    try:
        y = Key([1, 2]).normal((2, 9))
    finally:
        torch.set_default_dtype(torch.float32)
    with torch.inference_mode():
        z = Key([1, 2]).normal((2, 9))
    assert y.dtype == torch.float32
    assert torch.equal(x, y)
    assert torch.equal(x, z)
    assert torch.equal(x, Key([1, 2]).normal((2, 9)))


def test_out_may_have_any_strides():
    x = Key(1).normal((2, 3, 4, 5))
    for out in (
        torch.empty(2, 3, 4, 5).to(memory_format=torch.channels_last),
        torch.empty(5, 4, 3, 2).permute(3, 2, 1, 0),
        torch.empty(4, 3, 4, 5)[::2],
    ):
        assert torch.equal(Key(1).normal((2, 3, 4, 5), out=out), x)
        assert torch.equal(out, x)


@pytest.mark.parametrize("shape", [(0,), (0, 3), (3, 0), (2, 0, 5)])
def test_empty(shape):
    assert Key(1).normal(shape).shape == shape
    assert Key(list(range(shape[0]))).normal(shape).shape == shape


def test_scratch_memory_is_bounded():
    import tracemalloc  # NumPy reports to it: the integers are most of the scratch

    out = torch.empty(3, 400_000)
    tracemalloc.start()
    Key(1).normal(out.shape, out=out)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 4e6


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_the_gpu_agrees_and_does_not_synchronise():
    alone = Key(2**40 + 1, index=5).normal((1, 3, 111, 113), row=2, device="cuda")[0]
    assert torch.equal(Key(2**40 + 1).normal((64, 3, 111, 113), row=2, device="cuda")[5], alone)
    for key in (Key(2**40 + 1, index=3), Key([2**40 + 1, 5, 6, 7])):
        shape = (4, 3, 111, 113)
        x = key.normal(shape, row=2)
        y = key.normal(shape, row=2, device="cuda")
        torch.testing.assert_close(y.cpu(), x, rtol=0, atol=5e-6)
        torch.cuda.set_sync_debug_mode("error")
        try:
            key.normal(shape, row=3, out=y)
        finally:
            torch.cuda.set_sync_debug_mode("default")


# Statistics


def test_normality():
    x = Key(7).normal((50, 20_000)).double().flatten()
    n = len(x)
    assert stats.kstest(x[::5].numpy(), "norm").pvalue > 1e-3
    z, variance = x.numpy(), [1, 2, 15, 96, 945]  # of x, x^2, x^3, x^4, x^5 for a normal
    for power, mean, var in zip(range(1, 6), [0, 1, 0, 3, 0], variance, strict=True):
        assert abs((z**power).mean() - mean) < 5 * math.sqrt(var / n), power
    for side in range(4):  # each place in a block, and the tail
        assert stats.kstest(x[side::20].numpy(), "norm").pvalue > 1e-3
    assert abs((abs(z) > 4).mean() - 2 * stats.norm.sf(4)) < 5 * math.sqrt(2 * stats.norm.sf(4) / n)


def test_different_addresses_are_uncorrelated():
    n = 100_000
    draws = {
        "seed 1": Key(1).normal((1, n)),
        "seed 2": Key(2).normal((1, n)),
        "high half of the seed": Key(1 + 2**32).normal((1, n)),
        "sample 1": Key(1, index=1).normal((1, n)),
        "row 1": Key(1).normal((1, n), row=1),
        "row 0 of the stream ROW": Key(1).normal((1, n), stream=Stream.ROW),
        "row 1 of the stream ROW": Key(1).normal((1, n), row=1, stream=Stream.ROW),
        "a seed like a sample": Key([1 + 2**33]).normal((1, n)),
    }
    x = torch.cat(list(draws.values())).double()
    x = torch.cat([x, x[:1].roll(1), x[:1].roll(2), x[:1].roll(4)])  # and neighbours within a sample
    for y in (x, x**2, x.abs()):
        r = torch.corrcoef(y).fill_diagonal_(0)
        assert r.abs().max() < 5 / math.sqrt(n)


def test_many_small_samples_are_independent():
    """Across 50 000 rows of two elements, as in a 2-D toy: the sample word mixes like the element word."""
    x = Key(3).normal((50_000, 2)).double()
    assert stats.kstest(x[:, 0].numpy(), "norm").pvalue > 1e-3
    r = torch.corrcoef(torch.stack([x[:-1, 0], x[1:, 0], x[:-1, 1], x[1:, 1]])).fill_diagonal_(0)
    assert r.abs().max() < 5 / math.sqrt(50_000)


def test_global_state_is_untouched():
    torch.manual_seed(0)
    before = torch.get_rng_state()
    Key(1).normal((3, 1000))
    Key([1, 2, 3]).normal((3, 1000))
    assert torch.equal(torch.get_rng_state(), before)
    a = Key(1).normal((1, 4))
    torch.manual_seed(1)
    assert torch.equal(Key(1).normal((1, 4)), a)
