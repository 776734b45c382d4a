"""A Brownian path is one fixed function of its address and the time, whatever was asked before, and it is Brownian."""

import math
import sys
import threading
import tracemalloc

import numpy as np
import pytest
import torch
from scipy import stats

import diffsolve as ds
from diffsolve.noise import Key, Stream, nodes
from diffsolve.noise.brownian import Brownian
from diffsolve.noise.key import philox
from diffsolve.noise.nodes import NodeNormals

QUANTILES = stats.norm.ppf((np.arange(2**16) + 0.5) / 2**16)
QUANTILES /= math.sqrt(np.mean(QUANTILES**2))

TIMES = [0.3, 0.5, 1.0, 1.7, 2.0, 3.1415, 1e-6, 0.75, 5.0, 40.0, 0.30001, 0.6]


def reference_word(z):
    """SplitMix64's output, in plain integers."""
    z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9 % 2**64
    z = (z ^ z >> 27) * 0x94D049BB133111EB % 2**64
    return z ^ z >> 31


def reference_normal(seed, sample, element, octave, node):
    r = philox((octave % 2**32, sample, node, int(Stream.BROWNIAN)), (seed % 2**32, seed >> 32))
    z = reference_word((r[0] + (r[1] << 32) + (element // 4 + 1) * 0x9E3779B97F4A7C15) % 2**64)
    return float(QUANTILES[z >> 16 * (element % 4) & 0xFFFF])


def reference_path(seed, sample, element, t, depth):
    """W(t) by its definition: octaves summed from far below, then one bridge after another down to t."""
    normal = lambda octave, node: reference_normal(seed, sample, element, octave, node)  # noqa: E731
    k = math.frexp(t)[1] - 1
    w = sum(2 ** (j / 2) * normal(j, 0) for j in range(k - 110, k))
    left, right, low, high, cell = w, w + 2 ** (k / 2) * normal(k, 0), 2.0**k, 2.0 ** (k + 1), 0
    for level in range(depth + 1):
        h = high - low
        at = low + h / 2 if level < depth else t
        u = (at - low) / h
        value = (1 - u) * left + u * right + math.sqrt(u * (1 - u) * h) * normal(k, 2**level + cell)
        if t == low or at == t:
            return left if t == low else value
        left, right, low, high, cell = (
            (left, value, low, at, 2 * cell) if t < at else (value, right, at, high, 2 * cell + 1)
        )
    return value


@pytest.mark.parametrize("depth", [0, 1, 3, 14])
def test_values_are_the_definition(depth):
    seed = 2**40 + 7
    path = Brownian((2, 5), seed, index=3, depth=depth, dtype=torch.float64)
    times = [0.3, 1.0, 1.5, 1.75, 3.1, 1e-9, 96.0]
    found = path(times)
    for n, t in enumerate(times):
        for i, e in ((0, 0), (1, 4), (1, 2)):
            expected = reference_path(seed, 3 + i, e, t, depth)
            assert abs(float(found[n, i, e]) - expected) < 1e-12 * (1 + math.sqrt(t)), (t, i, e)


def test_recorded_values():
    """What a seed means does not change from one release to the next."""
    assert int(Stream.BROWNIAN) == 2
    x = Brownian((2, 2), 2024)([0.3, 1.7])
    recorded = [reference_path(2024, i, e, t, 14) for t in (0.3, 1.7) for i in range(2) for e in range(2)]
    torch.testing.assert_close(x.flatten(), torch.tensor(recorded, dtype=torch.float32), rtol=0, atol=2e-6)
    torch.testing.assert_close(x.flatten(), torch.tensor(RECORDED), rtol=0, atol=2e-6)


RECORDED = [0.29316276, -0.08840452, 0.76063734, 0.07387578, -0.50406373, 0.59869087, -0.70611590, 1.36049151]


@pytest.mark.parametrize("shape", [(3, 2), (2, 1, 70, 70)])
def test_values_do_not_depend_on_the_order_of_queries(shape):
    together = Brownian(shape, 0)(TIMES)
    scale = max(TIMES) ** 0.5
    g = np.random.default_rng(0)
    for order in (range(len(TIMES)), reversed(range(len(TIMES))), g.permutation(len(TIMES))):
        path = Brownian(shape, 0)
        for i in order:
            assert (path(TIMES[i]) - together[i]).abs().max() < 1e-6 * scale
    some = g.random((300, 2)) * 4
    path = Brownian((3, 2), 1, dtype=torch.float64)
    many = path(some[:, 0], some[:, 1])
    for i in g.permutation(300)[:60]:
        s, t = some[i].tolist()
        assert (path(s, t) - many[i]).abs().max() < 1e-13
        assert (Brownian((3, 2), 1, dtype=torch.float64)(s, t) - many[i]).abs().max() < 1e-13
        assert (path(t) - path(s) - many[i]).abs().max() < 1e-13


@pytest.mark.parametrize("depth", [1, 3, 6])
def test_any_walk_over_nodes_and_between_them(depth):
    """Times at nodes of all levels, several inside one cell, repeated, in batches of any size."""
    g = np.random.default_rng(depth)
    fresh = {}
    path = Brownian((2, 3), 1, depth=depth, dtype=torch.float64)
    for _ in range(60):
        level = g.integers(0, depth + 3, 1 + g.integers(0, 6))
        times = 2.0 ** g.integers(-2, 2, len(level)) * (1 + np.floor(g.random(len(level)) * 2**level) / 2.0**level)
        for t, w in zip(times.tolist(), path(times), strict=True):
            if t not in fresh:
                fresh[t] = Brownian((2, 3), 1, depth=depth, dtype=torch.float64)(t)
            assert (w - fresh[t]).abs().max() < 1e-13


def test_an_interrupted_query_leaves_no_trace(monkeypatch):
    path = Brownian((2, 3), 0)
    path(0.3)
    add, count = torch.Tensor.add_, []

    def interrupted(*args, **options):
        count.append(1)
        if len(count) == 9:
            raise KeyboardInterrupt
        return add(*args, **options)

    with monkeypatch.context() as patch:
        patch.setattr(torch.Tensor, "add_", interrupted)
        with pytest.raises(KeyboardInterrupt):
            path(0.6)
    for t in (0.3, 0.35, 0.6):
        torch.testing.assert_close(path(t), Brownian((2, 3), 0)(t), rtol=0, atol=1e-6)


def test_a_run_forward_and_backward_meets_the_same_increments():
    path, grid = Brownian((4, 3), 5), np.linspace(0.01, 3, 41).tolist()
    forward = [path(s, t) for s, t in zip(grid, grid[1:], strict=False)]
    backward = [path(t, s) for s, t in zip(grid[-2::-1], grid[:0:-1], strict=True)]
    assert all((a + b).abs().max() < 2e-6 for a, b in zip(forward, reversed(backward), strict=True))
    assert (sum(forward) - Brownian((4, 3), 5)(0.01, 3.0)).abs().max() < 3e-6


def test_the_cache_is_bounded_and_spares_nodes(monkeypatch):
    path, drawn = Brownian((2, 8), 0), []
    starts = NodeNormals.starts
    monkeypatch.setattr(NodeNormals, "starts", lambda self, k, n: drawn.append(len(n)) or starts(self, k, n))
    grid = np.linspace(1.0, 1.999, 301)
    for s, t in zip(grid, grid[1:], strict=False):
        path(s, t)
    # A chain of steps draws its new end, about depth - log2(300) + 2 nodes of it, and the start's last one again.
    assert sum(drawn) / 300 < path.depth - math.log2(300) + 4
    assert len(path._way[1]) <= path.depth + 1
    drawn.clear()
    path(1.5)
    Brownian((2, 8), 0)(1.0, 1.5)  # a power of two: the octave and its middle
    assert drawn[-1] == 2


# Rows


@pytest.mark.parametrize("inner", [(), (1,), (3,), (2, 5), (33,)])
def test_rows_depend_on_their_key_alone(inner):
    times = [0.2, 1.3]
    seven = Brownian((7, *inner), 11)(times)
    assert torch.equal(Brownian((3, *inner), 11, index=2)(times), seven[:, 2:5])
    assert torch.equal(Brownian((3, *inner), Key(11, index=2))(times), seven[:, 2:5])
    assert torch.equal(Brownian((64, *inner), 11)(times)[:, :7], seven)
    assert torch.equal(Brownian((7, math.prod(inner)), 11)(times).view(seven.shape), seven)
    seeds = [5, 2**64 - 1, 5, 9]
    own = Brownian((4, *inner), seeds)(times)
    assert torch.equal(own[:, 0], own[:, 2])
    assert torch.equal(Brownian((2, *inner), [seeds[3], seeds[1]])(times), own[:, [3, 1]])
    assert torch.equal(Brownian((1, *inner), 5)(times), own[:, :1])


def test_antithetic_and_shared():
    plain = Brownian((6, 3), 4)([0.3, 2.0])
    pairs = Brownian((6, 3), Key(4, antithetic=True))([0.3, 2.0])
    assert torch.equal(pairs[:, ::2], plain[:, ::2])
    assert torch.equal(pairs[:, 1::2], -plain[:, ::2])
    assert torch.equal(Brownian((3, 3), Key(4, 3, antithetic=True))([0.3, 2.0]), pairs[:, 3:])
    shared = Brownian((6, 3), Key(4, 2, shared=True))([0.3, 2.0])
    assert torch.equal(shared, plain[:, :1].expand_as(shared))
    torch.testing.assert_close(Brownian((6, 3), Key(4, antithetic=True))(0.3), pairs[0], rtol=0, atol=1e-6)
    alone = Brownian((1, 3), 4).normal_between(0.3, 1)
    assert torch.equal(Brownian((5, 3), Key(4, 1, antithetic=True)).normal_between(0.3, 1)[:1], -alone)


def test_tensors_draw_the_same_bits_as_arrays(monkeypatch):
    queries = [lambda p: p(TIMES), lambda p: p(0.3, 7.1), lambda p: p(0.7)]
    makes = [lambda: Brownian((3, 5), [1, 2**64 - 1, 7]), lambda: Brownian((2, 9), 3, index=2**32 - 2)]
    arrays = [query(make()) for make in makes for query in queries]
    monkeypatch.setattr(nodes, "IN_NUMPY", set())
    nodes._gammas.cache_clear()
    tensors = [query(make()) for make in makes for query in queries]
    nodes._gammas.cache_clear()
    assert all(torch.equal(a, b) for a, b in zip(arrays, tensors, strict=True))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_dtypes(dtype):
    x, y = Brownian((3, 7), 0)(TIMES), Brownian((3, 7), 0, dtype=dtype)(TIMES)
    assert y.dtype == dtype
    torch.testing.assert_close(y.float(), x, rtol=0, atol=max(float(torch.finfo(dtype).eps), 1e-6) * 20)
    if dtype != torch.float64:
        assert torch.equal(y, x.to(dtype))


def test_shapes_and_kinds_of_times():
    path = Brownian((2, 3), 0, t0=-1.0)
    assert path(0.5).shape == (2, 3)
    assert path([0.5]).shape == (1, 2, 3)
    x = path([0.5, -1.0, 0.25])
    assert torch.equal(path(torch.tensor([0.5, -1.0, 0.25])), x)
    assert torch.equal(path(np.array([0.5, -1.0, 0.25])), x)
    assert torch.equal(path(torch.tensor(0.5)), path(0.5))
    assert x[1].abs().max() == 0
    assert path([]).shape == (0, 2, 3)
    assert path(0.3, 0.3).abs().max() == 0
    assert torch.equal(path(0.5, 0.2), -path(0.2, 0.5))
    assert (Brownian((2, 3), 0)(1.5) - path(0.5)).abs().max() == 0
    for shape in ((0,), (0, 3), (3, 0)):
        assert Brownian(shape, 0)([0.1, 0.2]).shape == (2, *shape)
    before = torch.random.get_rng_state()
    path(0.77)
    assert torch.equal(torch.random.get_rng_state(), before)


# The law


def normals(x):
    assert stats.kstest(x.double().flatten().numpy(), "norm").pvalue > 1e-3
    z, n = x.double().flatten(), x.numel()
    for power, mean, variance in ((1, 0, 1), (2, 1, 2), (3, 0, 15), (4, 3, 96)):
        assert abs(float((z**power).mean()) - mean) < 4.5 * math.sqrt(variance / n), power


@pytest.mark.parametrize("t", [0.3, 1.0, 1.5, 2.0, 1e-20, 7e15])
def test_values_are_normal(t):
    normals(Brownian((2000, 50), 1)(t) / math.sqrt(t))


@pytest.mark.parametrize(
    ("s", "t"), [(0, 1), (0.3, 0.9), (1, 2), (1.9, 2.1), (1, 1.0002), (1.33, 1.3302), (1.2, 900.0), (1e-9, 1)]
)
def test_increments_are_normal(s, t):
    normals(Brownian((2000, 50), 2).normal_between(s, t))


def test_disjoint_increments_are_independent():
    edges = np.concatenate([[0, 1e-3], 1 + np.cumsum(np.r_[0, 1e-4, 0.02, 0.3, 0.1, 0.7, 2.0, 5.5]), [1e3]])
    z = Brownian((1000, 40), 3).normal_between(edges[:-1], edges[1:]).flatten(1).double()
    corr = z @ z.T / z.shape[1]
    assert (corr - torch.eye(len(z))).abs().max() < 4.5 * math.sqrt(2 / z.shape[1])
    squares = torch.corrcoef(z**2 - 1) - torch.eye(len(z))
    assert squares.abs().max() < 5 / math.sqrt(z.shape[1])
    elements = Brownian((1000, 40), 3).normal_between(0.3, 0.8)
    for a, b in ((elements[:, :-1], elements[:, 1:]), (elements[:-1], elements[1:])):
        assert abs(float((a * b).mean())) < 4.5 / math.sqrt(a.numel())


def test_covariance_is_min_s_t():
    times = torch.tensor([0.2, 0.41, 0.9, 1.3, 1.31, 3.7], dtype=torch.float64)
    w = Brownian((1000, 100), 4, dtype=torch.float64)(times).flatten(1)
    found, exact = w @ w.T / w.shape[1], torch.minimum(times[:, None], times)
    error = ((times[:, None] * times + exact**2) / w.shape[1]).sqrt()
    assert ((found - exact).abs() < 4.5 * error).all()


@pytest.mark.parametrize(("s", "u", "t"), [(1, 1.5, 2), (0.2, 0.37, 0.95), (1.1, 1.1003, 1.101), (0.0, 0.9, 30.0)])
def test_bridge_law(s, u, t):
    """Given W(s) and W(t), W(u) is normal about the line between them, with variance (u - s)(t - u)/(t - s)."""
    path = Brownian((1000, 50), 5, dtype=torch.float64)
    left, whole = path(s, u), path(s, t)
    rest = left - (u - s) / (t - s) * whole
    normals(rest / math.sqrt((u - s) * (t - u) / (t - s)))
    assert abs(float((rest * whole).mean())) < 4.5 * math.sqrt((u - s) * (t - u) / rest.numel())


@pytest.mark.parametrize("steps", [64, 1000])
def test_quadratic_variation(steps):
    grid = np.linspace(0.5, 3.0, steps + 1)
    dw = Brownian((20, 10), 6)(grid[:-1], grid[1:]).double()
    sums = (dw**2).sum(0)
    assert (sums - 2.5).abs().max() < 5 * 2.5 * math.sqrt(2 / steps)
    assert abs(float(sums.mean()) - 2.5) < 4.5 * 2.5 * math.sqrt(2 / steps / sums.numel())


def test_additivity_and_scaling():
    g = np.random.default_rng(0)
    s, t, u = np.sort(g.random((3, 200)) * 5, axis=0)
    path = Brownian((2, 3), 7)
    assert (path(s, t) + path(t, u) - path(s, u)).abs().max() < 3e-6
    short, long = path.normal_between(s, t), path.normal_between(t, u)
    a, b = (torch.from_numpy(np.sqrt(d / (u - s))).float().view(-1, 1, 1) for d in (t - s, u - t))
    assert (a * short + b * long - path.normal_between(s, u)).abs().max() < 2e-4  # near ends divide by sqrt(t - s)
    exact = Brownian((2, 3), 7, dtype=torch.float64)
    assert (a * exact.normal_between(s, t) + b * exact.normal_between(t, u)
            - exact.normal_between(s, u)).abs().max() < 1e-6  # fmt: skip


def test_finer_steps_make_up_the_coarse_one_over_many_orders_of_magnitude():
    """A run of 5 steps and one of 320 between q = 1e-45 and 1e45 meet the same noise, in float32."""
    path = Brownian((500, 4), 8)
    every = np.logspace(-45, 45, 50)
    together = path.normal_between(every[:-1], every[1:])  # in one call as in many
    alone = torch.stack([path.normal_between(s, t) for s, t in zip(every, every[1:], strict=False)])
    torch.testing.assert_close(together, alone, rtol=0, atol=1e-5)
    coarse = np.concatenate([[0.0], np.logspace(-45, 45, 6)])
    for s, t in zip(coarse, coarse[1:], strict=False):
        fine = np.linspace(0, t, 9) if s == 0 else np.geomspace(s, t, 65)
        fine[0], fine[-1] = s, t
        z = path.normal_between(fine[:-1], fine[1:])
        weights = torch.from_numpy(np.sqrt(np.diff(fine) / (t - s))).float().view(-1, 1, 1)
        whole = path.normal_between(s, t)
        assert ((weights * z).sum(0) - whole).abs().max() < 1e-5
        normals(whole)


def test_a_deeper_path_agrees_where_the_shallower_has_nodes():
    shallow, deep = (Brownian((50, 4), 9, depth=depth, dtype=torch.float64) for depth in (6, 20))
    nodes = [1.25, 1 + 3 / 64, 3.0, 0.7 * 0 + 1 + 5 / 128, 6.5]
    assert (shallow(nodes) - deep(nodes)).abs().max() < 1e-13  # a finest cell's own middle among them
    between = [1 + 3 / 256, 1.3]
    assert (shallow(between) - deep(between)).abs().max() > 1e-3
    normals(torch.cat([shallow(1.3) / 1.3**0.5, deep(1.3) / 1.3**0.5]).flatten()[:200])


def test_inside_a_finest_cell_the_path_is_continuous():
    path = Brownian((20, 5), 10, depth=4, dtype=torch.float64)
    t = 1 + np.linspace(0.25, 0.3125, 2001)
    w = path(t)
    assert (w[1:] - w[:-1]).abs().max() < 0.02  # about sqrt(1/16/2000) at the ends of the cell, times 4


# Costs


@pytest.mark.slow
def test_memory_does_not_grow_with_the_number_of_queries():
    peaks = []
    for n in (2000, 6000):
        t = np.random.default_rng(0).random(n)
        path = Brownian((64,), 0)
        tracemalloc.start()
        path(t)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] - peaks[0] < 4000 * 100  # a few numbers per time, not its nodes
    deepest = Brownian((64,), 0, depth=30)
    assert deepest(np.random.default_rng(0).random(3)).isfinite().all()


@pytest.mark.parametrize(
    ("make", "error", "words"),
    [
        (lambda: Brownian((2,), -1), ValueError, ["seed must be", "got -1"]),
        (lambda: Brownian((2,), [1]), ValueError, ["seed must be one, or 2", "got 1"]),
        (lambda: Brownian(3, 1), TypeError, ["shape must be a tuple of integers, got 3"]),
        (lambda: Brownian((2,), Key(1), index=1), ValueError, ["index must be 0", "got 1"]),
        (lambda: Brownian((2,), 1, depth=31), ValueError, ["depth must be an integer from 0 to 30, got 31"]),
        (lambda: Brownian((2,), 1, depth=True), ValueError, ["depth must be", "got True"]),
        (lambda: Brownian((2,), 1, t0=math.inf), ValueError, ["t0 must be a finite number, got inf"]),
        (
            lambda: Brownian((2,), 1, dtype=torch.int32),
            ValueError,
            ["dtype must be a real floating type, got torch.int32"],
        ),
        (lambda: Brownian((2,), 1)(-0.1), ValueError, ["-0.1", "t0=0.0"]),
        (lambda: Brownian((2,), 1)([0.1, math.nan]), ValueError, ["t must be finite", "nan"]),
        (lambda: Brownian((2,), 1)([[0.1]]), ValueError, ["(1, 1)"]),
        (lambda: Brownian((2,), 1)("soon"), TypeError, ["soon"]),
        (lambda: Brownian((2,), 1)([0.1], [0.2, 0.3]), ValueError, ["s and t must be of one length, got 1 and 2"]),
        (lambda: Brownian((2,), 1).normal_between(0.5, 0.5), ValueError, ["0.5"]),
        (lambda: Brownian((2,), 1)(0.1, 0.2, return_U=True), ValueError, ["return_U"]),
    ],
)
def test_errors(make, error, words):
    with pytest.raises(error) as caught:
        make()
    assert all(word in str(caught.value) for word in words), caught.value


def test_public_name():
    assert ds.Brownian is Brownian
    assert "seed=3" in repr(ds.Brownian((2,), 3))


def test_words_of_64_bits_are_signed_from_the_middle():
    assert nodes._signed(2**63 - 1) == 2**63 - 1
    assert nodes._signed(2**63) == -(2**63)
    assert nodes._signed(2**64 - 1) == -1


@pytest.mark.slow
def test_threads_share_a_path():
    times = np.random.default_rng(0).uniform(0.01, 1.0, (4, 150))
    path, found = ds.Brownian((64, 3), seed=0), {}
    start = threading.Barrier(4)

    def ask(i):
        start.wait()
        found[i] = [path(t) for t in times[i].tolist()]

    interval, threads = sys.getswitchinterval(), [threading.Thread(target=ask, args=(i,)) for i in range(4)]
    sys.setswitchinterval(1e-6)
    try:
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        sys.setswitchinterval(interval)
    alone = ds.Brownian((64, 3), seed=0)
    for i in range(4):
        for t, w in zip(times[i].tolist(), found[i], strict=True):
            torch.testing.assert_close(w, alone(t), rtol=0, atol=1e-5)
