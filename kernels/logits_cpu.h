/* Logits as filters.py and noise.py have them, to the bit: scaled, ordered by keys, weighed.  dtype: 0 is fp32, 1 is bf16. */
#ifndef REDRAFT_LOGITS_CPU_H
#define REDRAFT_LOGITS_CPU_H

#include "math_cpu.h"

#define LARGEST 3.4028234663852886e38f
#define PARTS 2             /* vectors of eight Philox counters at a time */
#define TOKENS (32 * PARTS) /* of which each has four */

void greedy(const void *logits, int64_t *choice, int64_t rows, int64_t columns, int dtype);

static inline int32_t bits_of(float x) {
    int32_t bits;
    memcpy(&bits, &x, 4);
    return bits;
}

static inline float of_bits(int32_t bits) {
    float x;
    memcpy(&x, &bits, 4);
    return x;
}

/* scale_logits */
static inline float scaled(const void *row, int64_t i, float temperature, int dtype) {
    float x = (dtype ? from_bf16(((const uint16_t *)row)[i]) : ((const float *)row)[i]) / temperature;
    x = x != x ? -INFINITY : x;
    return (x > LARGEST ? LARGEST : x) + 0.0f;
}

static inline int32_t order(int32_t bits) { return bits ^ ((bits >> 31) & 0x7FFFFFFF); }

static inline int64_t key_of(float z, int64_t id) {
    return (int64_t)((uint64_t)order(bits_of(z)) << 32) + (0xFFFFFFFF - id);
}

/* at most the key of any token with this z, and above that of any with less */
static inline int64_t first_key(float z) { return (int64_t)((uint64_t)order(bits_of(z)) << 32); }

/* log_fp32 */
static inline float logarithm(float x) {
    int32_t bits = bits_of(x), exponent = (bits - 0x3F3504F3) >> 23;
    float f = of_bits(bits - (int32_t)((uint32_t)exponent << 23)) - 1.0f;
    float s = f / (f + 2.0f), z = s * s;
    float series = ((z * (float)(2.0 / 9) + (float)(2.0 / 7)) * z + (float)(2.0 / 5)) * z + (float)(2.0 / 3);
    float e = (float)exponent;
    return e * 0.693359375f + (e * -2.12194440e-4f + (s * 2.0f + s * (z * series)));
}

/* softmax_weight of z - max z <= 0, before it is cut off to an integer */
static inline float weight(float distance) {
    float x = distance < -30.0f ? -30.0f : distance;
    float n = floorf(x * 1.4426950408889634f + 0.5f);
    float r = (x - n * 0.693359375f) - n * -2.12194440e-4f;
    float series = r * (float)(1.0 / 5040) + (float)(1.0 / 720);
    series = series * r + (float)(1.0 / 120);
    series = series * r + (float)(1.0 / 24);
    series = series * r + (float)(1.0 / 6);
    series = series * r + 0.5f;
    series = series * r + 1.0f;
    series = series * r + 1.0f;
    return series * of_bits(((int32_t)n + 167) << 23);
}

/* z of the TOKENS tokens from the first on, -inf beyond the last; whether any is at least so large */
static inline __attribute__((always_inline)) int read(float *restrict z, const void *row, int64_t first, int64_t V,
                                                      float temperature, float least, int dtype) {
    int any = 0;
    if (first + TOKENS <= V)
        for (int i = 0; i < TOKENS; i++) z[i] = scaled(row, first + i, temperature, dtype);
    else
        for (int i = 0; i < TOKENS; i++) z[i] = first + i < V ? scaled(row, first + i, temperature, dtype) : -INFINITY;
    for (int i = 0; i < TOKENS; i++) any |= z[i] >= least;
    return any;
}

/* the weights of all tokens with z of at least floor, together */
static inline __attribute__((always_inline)) int64_t mass(const void *row, int64_t V, float temperature, float z_max,
                                                          float floor, int dtype) {
    int64_t total = 0;
    float heavy = z_max - 28 > floor ? z_max - 28 : floor; /* what is further below weighs nothing */
    for (int64_t first = 0; first < V; first += TOKENS) {
        float z[TOKENS];
        if (!read(z, row, first, V, temperature, heavy, dtype)) continue;
        for (int i = 0; i < TOKENS; i++) z[i] = z[i] >= heavy ? weight(z[i] - z_max) : 0;
        for (int i = 0; i < TOKENS; i++) total += (int64_t)z[i];
    }
    return total;
}

#endif
