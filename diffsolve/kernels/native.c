/* The update on a CPU: one pass over memory, block by block through the caches. Compiled by native.py, once for
   REAL = float and once for REAL = double. Every element is computed alike, wherever it stands in a block. */

#include <stdint.h>
#include <string.h>

#define BLOCK 1024
#define CHUNK 64
#define LIMIT 12

static void words(uint32_t e, uint32_t sample, uint32_t row, uint32_t stream, uint32_t k0, uint32_t k1, uint32_t r[4]) {
    uint32_t c0 = e, c1 = sample, c2 = row, c3 = stream;
    for (int i = 0; i < 10; i++) {
        uint64_t p0 = (uint64_t)c0 * 0xD2511F53u, p1 = (uint64_t)c2 * 0xCD9E8D57u;
        c0 = (uint32_t)(p1 >> 32) ^ c1 ^ k0;
        c1 = (uint32_t)p1;
        c2 = (uint32_t)(p0 >> 32) ^ c3 ^ k1;
        c3 = (uint32_t)p0;
        k0 += 0x9E3779B9u;
        k1 += 0xBB67AE85u;
    }
    r[0] = c0, r[1] = c1, r[2] = c2, r[3] = c3;
}

static inline float unit(uint32_t r) { return ((float)(r >> 8) + 0.5f) * 0x1p-24f; }

/* ln u for u in [2^-25, 1]: u = 2^k m with m in [sqrt(1/2), sqrt(2)), and ln m = 2 atanh(s), s = (m - 1) / (m + 1);
   the series of atanh ends below half an ulp of s. */
static inline float ln(float u) {
    int32_t bits;
    memcpy(&bits, &u, 4);
    int32_t k = (bits - 0x3F3504F3) >> 23;
    bits -= k << 23;
    float m;
    memcpy(&m, &bits, 4);
    float s = (m - 1.0f) / (m + 1.0f), ss = s * s;
    float tail = ss * (1.0f / 3 + ss * (1.0f / 5 + ss * (1.0f / 7 + ss * (1.0f / 9))));
    return (float)k * 0.693147180559945f + 2.0f * (s + s * tail);
}

/* Two normals by Box and Muller; cos and sin of 2 pi v by quadrants, exactly reduced, as in device.py. */
static inline void pair(uint32_t r0, uint32_t r1, float *a, float *b) {
    float radius = __builtin_sqrtf(-2.0f * ln(unit(r0)));
    float v = unit(r1);
    int32_t q = (int32_t)(v * 4.0f + 0.5f);
    float x = (v - (float)q * 0.25f) * 6.283185307179586f, xx = x * x;
    float s = x + x * xx * (-1.0f / 6 + xx * (1.0f / 120 + xx * (-1.0f / 5040 + xx * (1.0f / 362880))));
    float c = 1.0f + xx * (-0.5f + xx * (1.0f / 24 + xx * (-1.0f / 720 + xx * (1.0f / 40320 - xx * (1.0f / 3628800)))));
    float cosine = q & 1 ? s : c, sine = q & 1 ? c : s;
    *a = radius * (q == 1 || q == 2 ? -cosine : cosine);
    *b = radius * (q == 2 || q == 3 ? -sine : sine);
}

/* n normals from counter e on; the last block may hold up to 3 more than are wanted. */
static void normals(float *z, int64_t e, int64_t n, uint32_t sample, uint32_t row, uint32_t stream, uint64_t seed) {
    uint32_t r[4][BLOCK / 4];
    int64_t count = (n + 3) / 4;
    for (int64_t i = 0; i < count; i++) {
        uint32_t w[4];
        words((uint32_t)(e + i), sample, row, stream, (uint32_t)seed, (uint32_t)(seed >> 32), w);
        r[0][i] = w[0], r[1][i] = w[1], r[2][i] = w[2], r[3][i] = w[3];
    }
    for (int64_t i = 0; i < count; i++) {
        pair(r[0][i], r[1][i], z + 4 * i, z + 4 * i + 1);
        pair(r[2][i], r[3][i], z + 4 * i + 2, z + 4 * i + 3);
    }
}

static inline __attribute__((always_inline)) void
chunk(int n, int K, int M, const REAL **xs, REAL **ys, const double *w, const int32_t *masks, const REAL *z, int64_t at) {
    REAL sums[LIMIT][CHUNK];
    for (int m = 0; m < M; m++) {
        REAL sum[CHUNK];
        for (int i = 0; i < n; i++) sum[i] = 0;
        for (int k = 0; k < K; k++) {
            if (!(masks[m] >> k & 1)) continue;
            const REAL *x = z && k == K - 1 ? z : xs[k] + at;
            REAL c = (REAL)w[m * K + k];
            for (int i = 0; i < n; i++) sum[i] += c * x[i];
        }
        for (int i = 0; i < n; i++) sums[m][i] = sum[i];
    }
    for (int m = 0; m < M; m++)
        for (int i = 0; i < n; i++) ys[m][at + i] = sums[m][i];
}

/* ys[m] = sum over k of w[m, k] xs[k] for `batch` samples of `size` elements; with `noise` the last k is standard
   normals. All of a chunk is summed before any of it is written: an output may be one of the inputs. */
void combine(int64_t batch, int64_t size, int K, int M, const REAL **xs, REAL **ys, const double *weights,
             int64_t stride, const int32_t *masks, int noise, const int64_t *seeds, int listed, int64_t first,
             int64_t row, int64_t stream, int threads) {
    int64_t blocks = (size + BLOCK - 1) / BLOCK;
#pragma omp parallel for num_threads(threads) if (threads > 1)
    for (int64_t t = 0; t < batch * blocks; t++) {
        int64_t b = t / blocks, e = t % blocks * BLOCK, n = size - e < BLOCK ? size - e : BLOCK, at = b * size + e;
        const double *w = weights + b * stride;
        REAL z[BLOCK];
        if (noise) {
            float drawn[BLOCK];
            uint64_t seed = (uint64_t)seeds[listed ? b : 0];
            normals(drawn, e / 4, n, listed ? 0 : (uint32_t)(b + first), (uint32_t)row, (uint32_t)stream, seed);
            for (int64_t i = 0; i < n; i++) z[i] = drawn[i];
        }
        int64_t i = 0;
        for (; i + CHUNK <= n; i += CHUNK) chunk(CHUNK, K, M, xs, ys, w, masks, noise ? z + i : 0, at + i);
        if (i < n) chunk((int)(n - i), K, M, xs, ys, w, masks, noise ? z + i : 0, at + i);
    }
}
