/* Log-probabilities of chosen tokens and of the likeliest ones, with the bits of logprobs.py. */
#include "logits_cpu.h"

#define MOST 64 /* of the likeliest, as vocab_cpu.py has it */

static inline __attribute__((always_inline)) void scores(const void *row, int64_t V, int64_t choice, int64_t top,
                                                         float *chosen, int64_t *rank, int64_t *token, float *value,
                                                         int dtype) {
    int64_t best, kept = 0, key[MOST], ahead = 1;
    greedy(row, &best, 1, V, dtype);
    float z_max = scaled(row, best, 1, dtype), mine = scaled(row, choice, 1, dtype);
    z_max = z_max < -LARGEST ? -LARGEST : z_max;
    for (int64_t first = 0; first < V; first += TOKENS) {
        float z[TOKENS];
        read(z, row, first, V, 1, 0, dtype);
        int before = 0, any = kept < top;
        for (int i = 0; i < TOKENS; i++) before += z[i] > mine;
        ahead += before;
        for (int i = 0; i < TOKENS && first + i < choice; i++) ahead += z[i] == mine;
        float least = kept && kept == top ? of_bits(order((int32_t)(key[top - 1] >> 32))) : INFINITY;
        for (int i = 0; i < TOKENS; i++) any |= z[i] > least;
        for (int i = 0; any && i < TOKENS && first + i < V; i++) {
            int64_t one = key_of(z[i], first + i);
            if (kept == top && one <= key[top - 1]) continue;
            int64_t at = kept < top ? kept++ : top - 1;
            for (; at && one > key[at - 1]; at--) key[at] = key[at - 1];
            key[at] = one;
        }
    }
    int64_t total = mass(row, V, 1, z_max, -INFINITY, dtype);
    float base = logarithm((float)(total < 1 ? 1 : total) * 0x1p-40f);
    *chosen = mine - z_max - base;
    *rank = ahead;
    for (int64_t i = 0; i < kept; i++) {
        token[i] = 0xFFFFFFFF - (key[i] & 0xFFFFFFFF);
        value[i] = of_bits(order((int32_t)(key[i] >> 32))) - z_max - base;
    }
}

/* logprobs.logprobs: logits [rows, V], choice [rows] -> chosen, rank [rows], token, value [rows, top] */
void log_probabilities(const void *logits, const int64_t *choice, float *chosen, int64_t *rank, int64_t *token,
                       float *value, int64_t rows, int64_t V, int64_t top, int dtype) {
#pragma omp parallel for if (rows * V >= 16384)
    for (int64_t r = 0; r < rows; r++) {
        const char *row = (const char *)logits + r * V * (dtype ? 2 : 4);
        int64_t *ids = token + r * top;
        float *values = value + r * top;
        if (dtype) scores(row, V, choice[r], top, chosen + r, rank + r, ids, values, 1);
        else scores(row, V, choice[r], top, chosen + r, rank + r, ids, values, 0);
    }
}
