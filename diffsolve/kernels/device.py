"""The Triton kernels. Imported only where they run, by `diffsolve.kernels.launch`.

Every kernel works on tiles of R samples by C elements: R = 1 for images, more for small samples, so that per-sample
weights, reductions over a sample and noise counters need no division. Offsets are int64 from the first product on.
All loads of a tile come before its first store: an output may be one of the inputs.
"""

import triton
import triton.language as tl


@triton.jit
def tile(program, batch, size, blocks, FLAT: tl.constexpr, R: tl.constexpr, C: tl.constexpr):
    """(samples [R, 1], offsets [R, C], mask, number of the block within the samples) of a program."""
    if FLAT:  # one sample: its offsets are the elements, and so is their alignment
        block = program
        b = tl.zeros((R, 1), tl.int64)
    else:
        block = program % blocks
        b = (program // blocks) * R + tl.arange(0, R)[:, None]
    e = block * C + tl.arange(0, C)[None, :]
    mask = (b < batch) & (e < size)
    return b, b * size + e, mask, block


@triton.jit
def words(b, e, mask, keys, first, row, stream, LISTED: tl.constexpr):
    """The four Philox words of counters e ([1, C]) of samples b ([R, 1]), as `noise.Key.normal` counts them."""
    if LISTED:  # one seed per sample, and sample word 0
        seed = tl.load(keys + b, mask=mask, other=0)
        sample = b * 0
    else:
        seed = tl.load(keys)
        sample = b + first
    zero = (b + e) * 0
    c0 = (zero + e).to(tl.uint32)
    c1 = (zero + sample).to(tl.uint32)
    c2 = (zero + row).to(tl.uint32)
    c3 = (zero + stream).to(tl.uint32)
    return tl.philox(seed, c0, c1, c2, c3)


@triton.jit
def pair(r0, r1):
    """Two normals from two words, by Box and Muller."""
    u = ((r0 >> 8).to(tl.float32) + 0.5) * (2.0**-24)
    radius = tl.sqrt_rn(-2.0 * tl.log(u))
    # cos and sin of 2 pi v by quadrants: the reduction is exact, and the series end below half an ulp at pi / 4.
    # The library's cos would bring a slow path, in local memory, for angles that cannot occur.
    v = ((r1 >> 8).to(tl.float32) + 0.5) * (2.0**-24)
    quadrant = tl.floor(v * 4.0 + 0.5)
    x = (v - quadrant * 0.25) * 6.283185307179586
    q = quadrant.to(tl.int32)
    xx = x * x
    s = x + x * xx * (-1 / 6 + xx * (1 / 120 + xx * (-1 / 5040 + xx * (1 / 362880))))
    c = 1.0 + xx * (-1 / 2 + xx * (1 / 24 + xx * (-1 / 720 + xx * (1 / 40320 - xx * (1 / 3628800)))))
    swap = (q & 1) == 1
    cos = tl.where(swap, s, c)
    sin = tl.where(swap, c, s)
    cos = tl.where((q == 1) | (q == 2), -cos, cos)
    sin = tl.where((q == 2) | (q == 3), -sin, sin)
    return radius * cos, radius * sin


@triton.jit
def normals(b, block, batch, keys, first, row, stream, LISTED: tl.constexpr, R: tl.constexpr, C: tl.constexpr):
    """Standard normals of a tile, float32 [R, C]: four from each counter."""
    e = block * (C // 4) + tl.arange(0, C // 4)[None, :]
    r0, r1, r2, r3 = words(b, e, b < batch, keys, first, row, stream, LISTED)
    n0, n1 = pair(r0, r1)
    n2, n3 = pair(r2, r3)
    return tl.reshape(tl.join(tl.join(n0, n2), tl.join(n1, n3)), (R, C))


@triton.jit
def combine_tile(
    xs,
    ys,
    weights,
    uncond,
    guidance,
    factor,
    z,
    b,
    at,
    mask,
    batch,
    MASKS: tl.constexpr,
    GUIDED: tl.constexpr,
    PER_SAMPLE: tl.constexpr,
    ACC: tl.constexpr,
    R: tl.constexpr,
    C: tl.constexpr,
):
    """One tile of `combine_kernel`; z is its noise, or None, and so is the mask of a tile that is whole."""
    K: tl.constexpr = len(xs) + (z is not None)
    M: tl.constexpr = len(ys)
    values = ()
    for k in tl.static_range(len(xs)):
        v = tl.load(xs[k] + at, mask=mask).to(ACC)
        if k == GUIDED:
            u = tl.load(uncond + at, mask=mask).to(ACC)
            v = u + tl.full((1, 1), guidance, ACC) * (v - u)
            if factor is not None:
                v = v * tl.load(factor + b, mask=b < batch).to(ACC)
        values = values + (v,)
    if z is not None:
        values = values + (z.to(ACC),)
    sums = ()
    for m in tl.static_range(M):
        acc = tl.zeros((R, C), ACC)
        for k in tl.static_range(K):
            if (MASKS[m] >> k) & 1:
                if PER_SAMPLE:
                    w = tl.load(weights + b * (M * K) + (m * K + k), mask=b < batch)
                else:
                    w = tl.load(weights + (m * K + k))
                acc += w.to(ACC) * values[k]
        sums = sums + (acc,)
    for m in tl.static_range(M):
        tl.store(ys[m] + at, sums[m].to(ys[m].dtype.element_ty), mask=mask)


@triton.jit(do_not_specialize=["row", "first"])
def combine_kernel(
    xs,
    ys,
    weights,
    uncond,
    guidance: tl.float64,
    factor,
    keys,
    first: tl.int64,
    row: tl.int64,
    stream,
    batch,
    size,
    blocks,
    MASKS: tl.constexpr,
    GUIDED: tl.constexpr,
    NOISE: tl.constexpr,
    LISTED: tl.constexpr,
    PER_SAMPLE: tl.constexpr,
    FLAT: tl.constexpr,
    RAGGED: tl.constexpr,
    ACC: tl.constexpr,
    R: tl.constexpr,
    C: tl.constexpr,
):
    """ys[m] = sum over k of weights[m, k] v_k, where v_k is xs[k], or for the column GUIDED the guided output

    factor (uncond + guidance (xs[k] - uncond)), and for the last column, with NOISE, standard normals.
    MASKS[m] has bit k set where the weight is not zero: the others are not even multiplied. RAGGED is for a flat size
    that is no multiple of 16: a mask that may end anywhere makes narrow accesses, so whole tiles go without one.
    """
    b, at, mask, block = tile(tl.program_id(0).to(tl.int64), batch, size, blocks, FLAT, R, C)
    z = None
    if NOISE:
        z = normals(b, block, batch, keys, first, row, stream, LISTED, R, C)
    if RAGGED:
        if (block + 1) * C <= size:
            combine_tile(
                xs, ys, weights, uncond, guidance, factor, z, b, at, None, batch, MASKS, GUIDED, PER_SAMPLE, ACC, R, C
            )
        else:
            combine_tile(
                xs, ys, weights, uncond, guidance, factor, z, b, at, mask, batch, MASKS, GUIDED, PER_SAMPLE, ACC, R, C
            )
    else:
        combine_tile(
            xs, ys, weights, uncond, guidance, factor, z, b, at, mask, batch, MASKS, GUIDED, PER_SAMPLE, ACC, R, C
        )


@triton.jit
def window_kernel(
    weights,
    keep,
    f,
    z,
    old,
    ss,
    ys,
    ds,
    partial,
    batch,
    steps,
    size,
    blocks,
    K: tl.constexpr,
    MASKS: tl.constexpr,
    ACC: tl.constexpr,
    C: tl.constexpr,
):
    """Over the steps i: d = p y + q f; s and y from W_i [s, y, d_i, .., d_{i-K+1}, z]; |y - old|^2 over a block.

    ss and ys begin with the start, ds with the K - 1 derivatives before; ss is None if s is y. A program reads what it
    wrote itself of ds, by the same threads: no barrier is needed. MASKS[m] has bit c set where column c is read.
    """
    program = tl.program_id(0).to(tl.int64)
    b = program // blocks
    block = program % blocks
    e = block * C + tl.arange(0, C)
    inside = e < size
    at = b * size + e
    row = tl.zeros((), tl.int64) + batch * size
    y = tl.load(ys + at, mask=inside, other=0).to(ACC)
    s = y
    if ss is not None:
        s = tl.load(ss + at, mask=inside, other=0).to(ACC)
    for i in range(steps):
        p = tl.load(keep + (i * batch + b) * 2).to(ACC)
        q = tl.load(keep + (i * batch + b) * 2 + 1).to(ACC)
        here = row * i + at
        fresh = (p * y + q * tl.load(f + here, mask=inside, other=0).to(ACC)).to(ds.dtype.element_ty)
        tl.store(ds + here + row * (K - 1), fresh, mask=inside)
        d = fresh.to(ACC)
        w = weights + (i * batch + b) * (2 * (K + 3))
        new_s = tl.zeros((C,), ACC)
        new_y = tl.zeros((C,), ACC)
        for c in tl.static_range(K + 3):
            if ((MASKS[0] | MASKS[1]) >> c) & 1:
                if c == 0:
                    x = s
                elif c == 1:
                    x = y
                elif c == 2:
                    x = d
                elif c < K + 2:
                    x = tl.load(ds + here + row * (K + 1 - c), mask=inside, other=0).to(ACC)
                else:
                    x = tl.load(z + here, mask=inside, other=0).to(ACC)
                if (MASKS[0] >> c) & 1:
                    new_s += tl.load(w + c).to(ACC) * x
                if (MASKS[1] >> c) & 1:
                    new_y += tl.load(w + (K + 3) + c).to(ACC) * x
        after = new_y.to(ys.dtype.element_ty)
        tl.store(ys + here + row, after, mask=inside)
        y = after.to(ACC)
        s = y
        if ss is not None:
            state = new_s.to(ss.dtype.element_ty)
            tl.store(ss + here + row, state, mask=inside)
            s = state.to(ACC)
        if old is not None:
            change = tl.where(inside, y - tl.load(old + here, mask=inside, other=0).to(ACC), 0)
            tl.store(partial + (block * steps + i) * batch + b, tl.sum(change * change, axis=0))


@triton.jit
def requests_kernel(
    memory,
    outputs,
    table,
    numbers,
    factor,
    stream,
    size,
    blocks,
    COLUMNS: tl.constexpr,
    GUIDED: tl.constexpr,
    NOISE: tl.constexpr,
    ACC: tl.constexpr,
    C: tl.constexpr,
):
    """A turn of each of many requests: `diffsolve.kernels.requests.table_of` has the words of the table.

    Nothing is read where there is nothing (-1), so that what stands in the memory by chance, or an output that is not
    finite, stays out of the sums of others. The table's numbers are its words, as float64.
    """
    WORDS: tl.constexpr = 4 * COLUMNS + 7
    program = tl.program_id(0).to(tl.int64)
    turn = program // blocks
    block = program % blocks
    words = table + turn * WORDS
    e = block * C + tl.arange(0, C)[None, :]
    inside = e < size
    values = ()
    for k in tl.static_range(COLUMNS - 2):
        place = tl.load(words + k)
        values = values + (tl.load(memory + place * size + e, mask=inside & (place >= 0), other=0).to(ACC),)
    if outputs is not None:
        place = tl.load(words + (COLUMNS - 2))
        v = tl.load(outputs + place * size + e, mask=inside & (place >= 0), other=0).to(ACC)
        if GUIDED:
            place = tl.load(words + (COLUMNS + 2))
            u = tl.load(outputs + place * size + e, mask=inside & (place >= 0), other=0).to(ACC)
            scale = tl.load(numbers + turn * WORDS + (COLUMNS + 6)).to(ACC)
            guided = u + scale * (v - u)
            if factor is not None:
                guided = guided * tl.load(factor + turn).to(ACC)
            v = tl.where(place >= 0, guided, v)
    else:
        v = tl.zeros((1, C), ACC)
    values = values + (v,)
    if NOISE:
        first = tl.load(words + (COLUMNS + 4))
        row = tl.load(words + (COLUMNS + 5))
        one = tl.zeros((1, 1), tl.int64)
        z = normals(one, block, 1, words + (COLUMNS + 3), first, row, stream, 0, 1, C).to(ACC)
    else:
        z = tl.zeros((1, C), ACC)
    values = values + (z,)
    sums = ()
    for m in tl.static_range(3):
        acc = tl.zeros((1, C), ACC)
        for k in tl.static_range(COLUMNS):
            w = tl.load(numbers + turn * WORDS + (COLUMNS + 7 + m * COLUMNS + k)).to(ACC)
            acc += w * tl.where(w != 0, values[k], 0)  # whose product and sum are one operation, as elsewhere
        sums = sums + (acc,)
    for m in tl.static_range(3):
        place = tl.load(words + (COLUMNS - 1 + m))
        tl.store(memory + place * size + e, sums[m].to(memory.dtype.element_ty), mask=inside & (place >= 0))


@triton.jit
def moments_kernel(
    cond,
    uncond,
    guidance: tl.float64,
    partial,
    batch,
    size,
    blocks,
    ACC: tl.constexpr,
    R: tl.constexpr,
    C: tl.constexpr,
):
    """Sums over a block of x and x^2, for x = cond and for the guided output."""
    b, at, mask, block = tile(tl.program_id(0).to(tl.int64), batch, size, blocks, False, R, C)
    first = tl.load(cond + at, mask=mask, other=0).to(ACC)
    second = tl.load(uncond + at, mask=mask, other=0).to(ACC)
    guided = second + tl.full((1, 1), guidance, ACC) * (first - second)
    where = partial + block * 4 * batch + b
    tl.store(where, tl.sum(first, axis=1)[:, None], mask=b < batch)
    tl.store(where + batch, tl.sum(first * first, axis=1)[:, None], mask=b < batch)
    tl.store(where + 2 * batch, tl.sum(guided, axis=1)[:, None], mask=b < batch)
    tl.store(where + 3 * batch, tl.sum(guided * guided, axis=1)[:, None], mask=b < batch)
