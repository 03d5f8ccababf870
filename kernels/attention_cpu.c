/* Attention of packed rows over paged fp32 KV for CPUs, each row along its own path through a tree.
 *
 * A row's keys are visited in the order of their absolute positions, by way of a table of cells, and every sum has one
 * order that depends on the row's own path alone.  So the bits are those of plain decoding whatever tree, batch or
 * padding surrounds the row (drafters-and-kernels.md 6.3).  Built by fused_cpu.py; the twin is tree_attention.py's.
 */
#include "math_cpu.h"

typedef float vec __attribute__((vector_size(4 * LANES), aligned(4)));

#define TILE 4 /* queries of a group that share a load */
#define ROWS 8 /* rows that share transposed keys */

static inline vec fma_vec(vec a, vec b, vec c) {
    vec r;
    for (int j = 0; j < LANES; j++) r[j] = __builtin_fmaf(a[j], b[j], c[j]);
    return r;
}

static inline vec spread(float x) { return x - (vec){0}; }

/* keys of LANES positions, transposed: out [dim, LANES] */
static void transpose(float *restrict out, const float *restrict key, const int64_t *cell, int64_t stride, int64_t dim) {
    const float *from[LANES];
    for (int j = 0; j < LANES; j++) from[j] = key + cell[j] * stride;
    for (int64_t d = 0; d < dim; d++)
        for (int j = 0; j < LANES; j++) out[d * LANES + j] = from[j][d];
}

/* scores of count queries q [count, dim] against LANES keys, each summed over dim in order -> out, lanes apart */
static inline __attribute__((always_inline)) void score(float *restrict out, int64_t lanes, const float *restrict q,
                                                        const float *restrict keys, int64_t dim, int count) {
    vec sum[TILE] = {{0}};
    for (int64_t d = 0; d < dim; d++) {
        vec k = *(const vec *)(keys + d * LANES);
#pragma GCC unroll 4
        for (int g = 0; g < count; g++) sum[g] = fma_vec(spread(q[g * dim + d]), k, sum[g]);
    }
#pragma GCC unroll 4
    for (int g = 0; g < count; g++) *(vec *)(out + g * lanes) = sum[g];
}

/* scores of which the first n count -> weights that sum to one, zero beyond n */
static void softmax(float *restrict s, int64_t n) {
    float best[LANES], part[LANES] = {0}, top;
    int64_t lanes = (n + LANES - 1) / LANES * LANES;
    for (int64_t i = n; i < lanes; i++) s[i] = -INFINITY;
    memcpy(best, s, sizeof best);
    for (int64_t i = 0; i < lanes; i += LANES)
        for (int j = 0; j < LANES; j++) best[j] = s[i + j] > best[j] ? s[i + j] : best[j];
    top = best[0];
    for (int j = 1; j < LANES; j++) top = best[j] > top ? best[j] : top;
    for (int64_t i = 0; i < lanes; i += LANES)
        for (int j = 0; j < LANES; j++) {
            s[i + j] = exp_negative(s[i + j] - top);
            part[j] += s[i + j];
        }
    float inverse = 1.0f / add_lanes(part);
    for (int64_t i = 0; i < lanes; i++) s[i] *= inverse;
}

/* weights of count queries times the values along the path, in order of position, wide times LANES columns of them */
static inline __attribute__((always_inline)) void combine(float *restrict out, int64_t dim, const float *restrict weight,
                                                          int64_t lanes, const float *restrict value,
                                                          const int64_t *cell, int64_t n, int64_t stride, int count,
                                                          int wide) {
    vec sum[TILE][2] = {{{0}}};
    for (int64_t i = 0; i < n; i++) {
        const float *v = value + cell[i] * stride;
#pragma GCC unroll 2
        for (int d = 0; d < wide; d++) {
            vec column = *(const vec *)(v + d * LANES);
#pragma GCC unroll 4
            for (int g = 0; g < count; g++) sum[g][d] = fma_vec(spread(weight[g * lanes + i]), column, sum[g][d]);
        }
    }
#pragma GCC unroll 4
    for (int g = 0; g < count; g++)
#pragma GCC unroll 2
        for (int d = 0; d < wide; d++) *(vec *)(out + g * dim + d * LANES) = sum[g][d];
}

/* one tile of a group: the sizes are constants inside, so that sums stay in registers */
#define TILED(count, call)         \
    switch (count) {               \
        case 1: call(1); break;    \
        case 2: call(2); break;    \
        case 3: call(3); break;    \
        default: call(4); break;   \
    }

/* Rows first .. last of q [rows, kv_heads * group, dim] fp32, scaled already; key, value [cells, kv_heads, dim];
 * cell [rows, lanes] of each position; visible [rows] positions a row sees, 0 for padding -> out [rows, kv_heads *
 * group, dim] of dtype (0 fp32, 1 bf16).  lanes and dim are multiples of LANES.
 * scratch: LANES * dim + ROWS * group * lanes + group * dim floats. */
void tree_attention(const float *q, const float *key, const float *value, const int64_t *cell, const int64_t *visible,
                    void *out, float *scratch, int64_t first, int64_t last, int64_t lanes, int64_t kv_heads,
                    int64_t group, int64_t dim, int dtype) {
    int64_t stride = kv_heads * dim, size = dtype ? 2 : 4;
    float *keys = scratch, *scores = keys + LANES * dim, *sums = scores + ROWS * group * lanes;
    for (int64_t start = first; start < last; start += ROWS)
        for (int64_t h = 0; h < kv_heads; h++) {
            int64_t end = start + ROWS < last ? start + ROWS : last;
            for (int64_t i = 0; i < lanes; i += LANES) {
                const int64_t *shown = 0;
                for (int64_t r = start; r < end; r++) {
                    const int64_t *own = cell + r * lanes + i;
                    if (visible[r] <= i) continue;
                    if (!shown || memcmp(shown, own, LANES * sizeof *own))
                        transpose(keys, key + h * dim, shown = own, stride, dim);
                    for (int64_t g = 0; g < group; g += TILE) {
                        float *to = scores + ((r - start) * group + g) * lanes + i;
                        const float *query = q + ((r * kv_heads + h) * group + g) * dim;
#define SCORE(count) score(to, lanes, query, keys, dim, count)
                        TILED(group - g, SCORE)
                    }
                }
            }
            for (int64_t r = start; r < end; r++) {
                int64_t n = visible[r], head = (r * kv_heads + h) * group;
                float *weights = scores + (r - start) * group * lanes;
                for (int64_t g = 0; n && g < group; g++) softmax(weights + g * lanes, n);
                for (int64_t g = 0; g < group; g += TILE)
                    for (int64_t d = 0; d < dim; d += 2 * LANES) {
                        float *to = sums + g * dim + d;
                        const float *from = value + h * dim + d, *w = weights + g * lanes;
                        const int64_t *own = cell + r * lanes;
#define NARROW(count) combine(to, dim, w, lanes, from, own, n, stride, count, 1)
#define WIDE(count) combine(to, dim, w, lanes, from, own, n, stride, count, 2)
                        if (dim - d < 2 * LANES) {
                            TILED(group - g, NARROW)
                        } else {
                            TILED(group - g, WIDE)
                        }
                    }
                store((char *)out + head * dim * size, sums, group * dim, dtype);
            }
        }
}
