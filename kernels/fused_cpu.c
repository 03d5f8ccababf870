/* The small row-wise ops of a decoder layer for CPUs, fused: what torch does in about forty calls a layer takes three.
 *
 * Every sum is written out over LANES partial sums in a fixed order and nothing is left to the compiler to reorder
 * (-ffp-contract=off, no -ffast-math), so a row's bits depend on that row alone: not on its neighbours, not on the
 * vector width.  Built by fused_cpu.py; the plain-torch twin is layer_ops.py's TorchOps.
 *
 * dtype: 0 is fp32, 1 is bf16.  All arrays are row-major and contiguous.
 */
#include <math.h>
#include <stdint.h>
#include <string.h>

#include "math_cpu.h"

/* 1 / sqrt(mean(x^2) + eps) */
static float inverse_rms(const float *restrict x, int64_t n, float eps) {
    float part[LANES] = {0};
    int64_t i = 0;
    for (; i + LANES <= n; i += LANES)
        for (int j = 0; j < LANES; j++) part[j] += x[i + j] * x[i + j];
    for (int j = 0; i + j < n; j++) part[j] += x[i + j] * x[i + j];
    return 1.0f / sqrtf(add_lanes(part) / (float)n + eps);
}

/* x [rows, n], weight [n] fp32 -> out [rows, n]; scratch [n] */
void rms_norm(const void *x, const float *weight, void *out, float *restrict scratch, int64_t rows, int64_t n, float eps,
              int dtype) {
    int64_t size = dtype ? 2 : 4;
    for (int64_t r = 0; r < rows; r++) {
        load(scratch, (const char *)x + r * n * size, n, dtype);
        float inverse = inverse_rms(scratch, n, eps);
        for (int64_t i = 0; i < n; i++) scratch[i] = scratch[i] * inverse * weight[i];
        store((char *)out + r * n * size, scratch, n, dtype);
    }
}

/* qkv [rows, q_heads + 2 kv_heads, dim]; cos, sin [positions, dim] with the sign of rotate_half in sin; norm
 * [q_heads + kv_heads, dim] fp32 or NULL.  Rotated queries, times scale, go to q [rows, q_heads, dim] fp32, rotated keys
 * and values to key and value [cells, kv_heads, dim] fp32 at the row's cell; scratch [(q_heads + 2 kv_heads) dim]. */
void rope_and_cache(const void *qkv, const float *cos, const float *sin, const float *norm, const int64_t *position,
                    const int64_t *cell, float *restrict q, float *restrict key, float *restrict value,
                    float *restrict scratch, int64_t rows, int64_t q_heads, int64_t kv_heads, int64_t dim, float scale,
                    float eps, int dtype) {
    int64_t heads = q_heads + kv_heads, width = (heads + kv_heads) * dim, half = dim / 2, size = dtype ? 2 : 4;
    for (int64_t r = 0; r < rows; r++) {
        load(scratch, (const char *)qkv + r * width * size, width, dtype);
        const float *c = cos + position[r] * dim, *s = sin + position[r] * dim;
        for (int64_t h = 0; h < heads; h++) {
            float *restrict x = scratch + h * dim;
            if (norm) {
                float inverse = inverse_rms(x, dim, eps);
                for (int64_t i = 0; i < dim; i++) x[i] = x[i] * inverse * norm[h * dim + i];
            }
            int query = h < q_heads;
            float *restrict to = query ? q + (r * q_heads + h) * dim : key + (cell[r] * kv_heads + h - q_heads) * dim;
            float factor = query ? scale : 1.0f;
            for (int64_t i = 0; i < half; i++) to[i] = (x[i] * c[i] + x[i + half] * s[i]) * factor;
            for (int64_t i = half; i < dim; i++) to[i] = (x[i] * c[i] + x[i - half] * s[i]) * factor;
        }
        memcpy(value + cell[r] * kv_heads * dim, scratch + heads * dim, kv_heads * dim * 4);
    }
}

/* gate_up [rows, 2 n] -> silu(gate) * up [rows, n]; scratch [2 n], of which each thread has its part.  The exponential
 * makes this the one op here that takes long enough for threads: from some ten rows on. */
void swiglu(const void *gate_up, void *out, float *restrict scratch, int64_t rows, int64_t n, int dtype) {
    int64_t size = dtype ? 2 : 4;
#pragma omp parallel if (rows * n >= 16384 && n >= LANES * omp_get_max_threads())
    {
        int64_t part = n / omp_get_num_threads();
        float *restrict gate = scratch + omp_get_thread_num() * 2 * part, *restrict up = gate + part;
#pragma omp for
        for (int64_t r = 0; r < rows; r++)
            for (int64_t first = 0; first < n; first += part) {
                int64_t count = n - first < part ? n - first : part;
                const char *from = (const char *)gate_up + (r * 2 * n + first) * size;
                load(gate, from, count, dtype);
                load(up, from + n * size, count, dtype);
                for (int64_t i = 0; i < count; i++) {
                    float x = gate[i], e = exp_negative(-fabsf(x));
                    gate[i] = x * (x < 0.0f ? e : 1.0f) / (1.0f + e) * up[i];
                }
                store((char *)out + (r * n + first) * size, gate, count, dtype);
            }
    }
}
