/* Noise and the update on a CPU, block by block through the caches. Compiled by loader.py, once for REAL = float and
   once for REAL = double. Every element is computed alike, wherever it stands in a block and however large the batch.
   All functions take one record of 64-bit words, since one argument is what a call from Python costs least with. */

#include <stdint.h>
#include <string.h>

#define BLOCK 1024 /* elements of a sample in one go */
#if defined(__AVX512F__)
#define BYTES 64 /* of a vector: the machine's own, as a compiler that splits longer ones keeps them in memory */
#elif defined(__AVX__)
#define BYTES 32
#else
#define BYTES 16
#endif
#define WIDE 4     /* vectors in registers at once */
#define CHUNK (WIDE * BYTES / (int)sizeof(REAL))
#define INPUTS 32  /* as loader.py has them */
#define RESULTS 12

typedef REAL vec __attribute__((vector_size(BYTES), aligned(__alignof__(REAL)), may_alias));

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

/* Who draws: row b of the batch has the seed `seed`, or seeds[b] if there are such, and is sample first + b, masked. */
typedef struct {
    int64_t seed;
    const int64_t *seeds;
    int64_t first, mask, row, stream;
} Draw;

/* Normals of sample b from element 4 e on; the last block may hold up to 3 more than are wanted. */
static void normals(float *z, int64_t e, int64_t n, int64_t b, const Draw *draw) {
    uint32_t r[4][BLOCK / 4];
    uint64_t seed = (uint64_t)(draw->seeds ? draw->seeds[b] : draw->seed);
    uint32_t sample = (uint32_t)((b + draw->first) & draw->mask);
    int64_t count = (n + 3) / 4;
    for (int64_t i = 0; i < count; i++) {
        uint32_t w[4];
        words((uint32_t)(e + i), sample, (uint32_t)draw->row, (uint32_t)draw->stream, (uint32_t)seed,
              (uint32_t)(seed >> 32), w);
        r[0][i] = w[0], r[1][i] = w[1], r[2][i] = w[2], r[3][i] = w[3];
    }
    for (int64_t i = 0; i < count; i++) {
        pair(r[0][i], r[1][i], z + 4 * i, z + 4 * i + 1);
        pair(r[2][i], r[3][i], z + 4 * i + 2, z + 4 * i + 3);
    }
}

/* What the results are made of: result m is the sum of the next counts[m] terms, the first a product, the others
   fused to it in their order. A place below K is an input, K + j is result j, which is then already known. */
typedef struct {
    int K, M;
    const int64_t *counts, *places;
} Rule;

static inline __attribute__((always_inline)) void
chunk(const Rule *rule, const REAL *const *xs, REAL *const *ys, const double *w, int64_t at) {
    vec made[RESULTS][WIDE];
    int t = 0;
    for (int m = 0; m < rule->M; m++) {
        vec sum[WIDE];
        for (int v = 0; v < WIDE; v++) sum[v] = (vec){0};
        for (int first = t, end = t + (int)rule->counts[m]; t < end; t++) {
            int64_t k = rule->places[t];
            const vec *x = k < rule->K ? (const vec *)(xs[k] + at) : made[k - rule->K];
            REAL c = (REAL)w[t];
            if (t == first)
                for (int v = 0; v < WIDE; v++) sum[v] = c * x[v];
            else
                for (int v = 0; v < WIDE; v++) sum[v] += c * x[v];
        }
        for (int v = 0; v < WIDE; v++) made[m][v] = sum[v];
    }
    /* Only now: a result may stand where an input stood. */
    for (int m = 0; m < rule->M; m++)
        for (int v = 0; v < WIDE; v++) ((vec *)(ys[m] + at))[v] = made[m][v];
}

/* The same for the n < CHUNK elements that are left, by way of whole chunks, so that they are rounded alike. */
static void rest(int64_t n, const Rule *rule, const REAL *const *xs, REAL *const *ys, const double *w, int64_t at) {
    REAL in[INPUTS][CHUNK], out[RESULTS][CHUNK];
    const REAL *from[INPUTS];
    REAL *to[RESULTS];
    for (int k = 0; k < rule->K; k++) {
        memset(in[k], 0, sizeof in[k]);
        memcpy(in[k], xs[k] + at, (size_t)n * sizeof(REAL));
        from[k] = in[k];
    }
    for (int m = 0; m < rule->M; m++) to[m] = out[m];
    chunk(rule, from, to, w, 0);
    for (int m = 0; m < rule->M; m++) memcpy(ys[m] + at, out[m], (size_t)n * sizeof(REAL));
}

/* Block t of an update, of all blocks of all its samples. */
static void block(const int64_t *record, int64_t t) {
    int64_t size = record[1], stride = record[6], noise = record[7], terms = 0;
    Draw draw = {record[8], (const int64_t *)record[9], record[10], record[11], record[12], record[13]};
    const int64_t *inputs = record + 14, *results = inputs + record[2];
    Rule rule = {(int)record[2], (int)record[3], results + record[3], results + 2 * record[3]};
    for (int m = 0; m < rule.M; m++) terms += rule.counts[m];
    const double *weights = (const double *)(record[5] ? (const void *)record[5] : rule.places + terms);
    int64_t blocks = (size + BLOCK - 1) / BLOCK;
    int64_t b = t / blocks, e = t % blocks * BLOCK, n = size - e < BLOCK ? size - e : BLOCK, i = 0;
    const double *w = weights + b * stride;
    const REAL *xs[INPUTS];
    REAL *ys[RESULTS], z[BLOCK];
    for (int k = 0; k < rule.K; k++) xs[k] = (const REAL *)inputs[k] + b * size + e;
    for (int m = 0; m < rule.M; m++) ys[m] = (REAL *)results[m] + b * size + e;
    if (noise) {
        float drawn[BLOCK];
        normals(drawn, e / 4, n, b, &draw);
        for (int64_t j = 0; j < n; j++) z[j] = drawn[j];
        xs[rule.K - 1] = z;
    }
    for (; i + CHUNK <= n; i += CHUNK) chunk(&rule, xs, ys, w, i);
    if (i < n) rest(n - i, &rule, xs, ys, w, i);
}

/* record: batch, size, K, M, threads; where the weights are, if not in the record, and their stride from sample to
   sample; whether input K - 1 is noise, and the draw's six words; K inputs, M results; the rule's counts and places,
   and the weights. Samples are dense, one after the other. */
void update(const int64_t *record) {
    int64_t threads = record[4], blocks = record[0] * ((record[1] + BLOCK - 1) / BLOCK);
#pragma omp parallel for num_threads(threads) if (threads > 1)
    for (int64_t t = 0; t < blocks; t++) block(record, t);
}

/* Many updates of one sample each, all of one size. record: how many, that size, threads; for each the word at which
   its own record begins, as `update` has it; and these records. */
void updates(const int64_t *record) {
    int64_t threads = record[2], blocks = (record[1] + BLOCK - 1) / BLOCK, all = record[0] * blocks;
#pragma omp parallel for num_threads(threads) if (threads > 1)
    for (int64_t t = 0; t < all; t++) block(record + record[3 + t / blocks], t % blocks);
}

/* record: batch, size, threads, the draw's six words, and where the normals go, sample after sample. */
void fill(const int64_t *record) {
    int64_t batch = record[0], size = record[1], threads = record[2];
    Draw draw = {record[3], (const int64_t *)record[4], record[5], record[6], record[7], record[8]};
    float *z = (float *)record[9];
    int64_t blocks = (size + BLOCK - 1) / BLOCK;
#pragma omp parallel for num_threads(threads) if (threads > 1)
    for (int64_t t = 0; t < batch * blocks; t++) {
        int64_t b = t / blocks, e = t % blocks * BLOCK, n = size - e < BLOCK ? size - e : BLOCK;
        float drawn[BLOCK];
        normals(drawn, e / 4, n, b, &draw);
        memcpy(z + b * size + e, drawn, (size_t)n * sizeof(float));
    }
}
