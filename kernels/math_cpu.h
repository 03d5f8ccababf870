/* What the CPU kernels in C share: bf16, sums in a fixed order, the exponential. */
#ifndef REDRAFT_MATH_CPU_H
#define REDRAFT_MATH_CPU_H

#include <math.h>
#include <stdint.h>
#include <string.h>

#define LANES 16

static inline float from_bf16(uint16_t bits) {
    uint32_t wide = (uint32_t)bits << 16;
    float value;
    memcpy(&value, &wide, 4);
    return value;
}

/* round to nearest even; NaN stays NaN */
static inline uint16_t to_bf16(float value) {
    uint32_t bits;
    memcpy(&bits, &value, 4);
    uint32_t rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16;
    return value != value ? 0x7FC0 : (uint16_t)rounded;
}

static inline void load(float *restrict out, const void *restrict in, int64_t n, int dtype) {
    if (dtype) {
        const uint16_t *half = in;
        for (int64_t i = 0; i < n; i++) out[i] = from_bf16(half[i]);
    } else {
        memcpy(out, in, n * 4);
    }
}

static inline void store(void *restrict out, const float *restrict in, int64_t n, int dtype) {
    if (dtype) {
        uint16_t *half = out;
        for (int64_t i = 0; i < n; i++) half[i] = to_bf16(in[i]);
    } else {
        memcpy(out, in, n * 4);
    }
}

/* the sum of LANES partial sums, in a fixed order; part is used up */
static inline float add_lanes(float *part) {
    for (int step = LANES / 2; step; step /= 2)
        for (int j = 0; j < step; j++) part[j] += part[j + step];
    return part[0];
}

/* e^x for x <= 0 by range reduction and a degree-6 polynomial (error below 2 ulp); 0 below -87 */
static inline float exp_negative(float x) {
    float clamped = x < -87.0f ? -87.0f : x;
    float n = floorf(clamped * 1.44269504f + 0.5f);
    float r = (clamped - n * 0.693359375f) - n * -2.12194440e-4f;
    float p = 1.9875691e-4f;
    p = p * r + 1.3981999e-3f;
    p = p * r + 8.3334519e-3f;
    p = p * r + 4.1665796e-2f;
    p = p * r + 1.6666665e-1f;
    p = p * r + 5.0000000e-1f;
    p = p * r * r + r + 1.0f;
    int32_t bits = ((int32_t)n + 127) << 23;
    float power;
    memcpy(&power, &bits, 4);
    return x < -87.0f ? 0.0f : p * power;
}

#endif
