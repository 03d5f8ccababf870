/* What a request asks of the logits before temperature: penalties and a grammar's mask, with the bits of adjust.py. */
#include "math_cpu.h"

#define TOKENS 64
#define PRODUCED 2 /* what a produced token adds to a count; the lowest bit says that it is in the prompt */

static inline float penalised(float z, int32_t count, float repetition, float frequency, float presence) {
    float repeated = z > 0 ? z / repetition : z * repetition;
    int32_t produced = count >> 1;
    z = count > 0 ? repeated : z;
    z = z - frequency * (float)produced;
    return z - presence * (produced > 0 ? 1.0f : 0.0f);
}

/* one row: what its slot counts, and its path's tokens, of which the n are not in the count */
static inline __attribute__((always_inline)) void adjust_row(const void *row, int64_t V, const int32_t *count,
                                                             const int64_t *path, int64_t n, float repetition,
                                                             float frequency, float presence, const int32_t *allowed,
                                                             float *restrict z, int dtype) {
    for (int64_t i = 0; i < V; i++) z[i] = dtype ? from_bf16(((const uint16_t *)row)[i]) : ((const float *)row)[i];
    if (count) {
        for (int64_t i = 0; i < V; i++) z[i] = penalised(z[i], count[i], repetition, frequency, presence);
        for (int64_t i = 0; i < n; i++) {
            int32_t one = count[path[i]];
            for (int64_t j = 0; j < n; j++) one += path[j] == path[i] ? PRODUCED : 0;
            float plain = dtype ? from_bf16(((const uint16_t *)row)[path[i]]) : ((const float *)row)[path[i]];
            z[path[i]] = penalised(plain, one, repetition, frequency, presence);
        }
    }
    for (int64_t i = 0; allowed && i < V; i++)
        z[i] = ((uint32_t)allowed[i >> 5] >> (i & 31)) & 1 ? z[i] : -INFINITY;
}

/* logits [R, V], the rows' slot [R], path [R, W] and token [R], and by slot first_row, the penalties and count [S, V];
 * allowed [R, ceil(V / 32)] -> z [R, V].  count or allowed may be left out. */
void adjust_rows(const void *logits, const int64_t *slot, const int64_t *path, const int64_t *token,
                 const int64_t *first_row, const float *repetition, const float *frequency, const float *presence,
                 const int32_t *count, const int32_t *allowed, float *z, int64_t R, int64_t V, int64_t W, int dtype) {
    int64_t words = (V + 31) / 32;
#pragma omp parallel for if (R * V >= 16384)
    for (int64_t r = 0; r < R; r++) {
        int64_t s = slot[r], above[W], n = 0;
        /* the root is committed text already; a padding row's slot may begin behind the last row */
        for (int64_t w = 1; count && w < W; w++)
            if (path[r * W + w] >= 0) {
                int64_t at = first_row[s] + path[r * W + w], one = token[at < R ? at : R - 1];
                if (one >= 0 && one < V) above[n++] = one;
            }
        int neutral = !count || (repetition[s] == 1 && frequency[s] == 0 && presence[s] == 0);
        const int32_t *own = neutral ? 0 : count + s * V, *mask = allowed ? allowed + r * words : 0;
        const char *row = (const char *)logits + r * V * (dtype ? 2 : 4);
        float by = count ? repetition[s] : 1, often = count ? frequency[s] : 0, once = count ? presence[s] : 0;
        if (dtype) adjust_row(row, V, own, above, n, by, often, once, mask, z + r * V, 1);
        else adjust_row(row, V, own, above, n, by, often, once, mask, z + r * V, 0);
    }
}
