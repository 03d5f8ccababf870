/* What the CPU kernels in C share: threads, bf16, sums in a fixed order, the exponential, products in registers. */
#ifndef REDRAFT_MATH_CPU_H
#define REDRAFT_MATH_CPU_H

#include <math.h>
#include <stdint.h>
#include <string.h>

/* GCC's -fopenmp; without it one thread does everything */
#ifdef _OPENMP
#include <omp.h>
#else
static inline int omp_get_thread_num(void) { return 0; }
static inline int omp_get_num_threads(void) { return 1; }
static inline int omp_get_max_threads(void) { return 1; }
#endif

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

/* Vectors of the machine's width.  They only decide which independent sums are worked on together. */
#if defined(__AVX512F__)
#define WIDTH 16
#define EACH(f, s)                                                                                               \
    f(0, s), f(1, s), f(2, s), f(3, s), f(4, s), f(5, s), f(6, s), f(7, s), f(8, s), f(9, s), f(10, s), f(11, s), \
        f(12, s), f(13, s), f(14, s), f(15, s)
#elif defined(__AVX__)
#define WIDTH 8
#define EACH(f, s) f(0, s), f(1, s), f(2, s), f(3, s), f(4, s), f(5, s), f(6, s), f(7, s)
#else
#define WIDTH 4
#define EACH(f, s) f(0, s), f(1, s), f(2, s), f(3, s)
#endif

typedef float vec __attribute__((vector_size(4 * WIDTH), aligned(4)));
typedef int32_t ints __attribute__((vector_size(4 * WIDTH)));

#define BLOCK (2 * WIDTH)
#define TILE 6 /* rows of a product, times BLOCK: 12 sums in registers, enough to hide the latency of an FMA */

static inline __attribute__((always_inline)) vec fma_vec(vec a, vec b, vec c) {
    vec r;
    for (int j = 0; j < WIDTH; j++) r[j] = __builtin_fmaf(a[j], b[j], c[j]);
    return r;
}

/* Asks for memory into the L2 cache, one line at a time between other work: a head's part of a cell is too short for
 * the hardware to see a stream, and a burst of requests, or any into L1, waits for the few buffers of L1's misses. */
#define FETCH(place) __builtin_prefetch(place, 0, 2)

/* Keeps x in a register: the compiler would rather load it again in every FMA, and loads are what it waits for. */
#if defined(__x86_64__)
#define HOLD(x) __asm__("" : "+v"(x))
#else
#define HOLD(x)
#endif

static inline vec spread(float x) { return x - (vec){0}; }

/* a [count, steps] times b [steps, wide * WIDTH] -> out, or onto what is there: each sum over steps, in order.  Asks
 * for what lies ahead of b. */
static inline __attribute__((always_inline)) void product(float *restrict out, int64_t out_row, const float *restrict a,
                                                          int64_t a_row, const float *restrict b, int64_t b_row,
                                                          int64_t steps, int onto, int64_t ahead, int count, int wide) {
    vec sum[TILE][2] = {{{0}}};
    if (onto) {
#pragma GCC unroll 6
        for (int g = 0; g < count; g++)
#pragma GCC unroll 2
            for (int w = 0; w < wide; w++) sum[g][w] = *(const vec *)(out + g * out_row + w * WIDTH);
    }
    for (int64_t k = 0; k < steps; k++) {
        vec row[2];
#pragma GCC unroll 2
        for (int w = 0; w < wide; w++) {
            FETCH(b + k * b_row + w * WIDTH + ahead);
            vec x = *(const vec *)(b + k * b_row + w * WIDTH);
            HOLD(x);
            row[w] = x;
        }
#pragma GCC unroll 6
        for (int g = 0; g < count; g++)
#pragma GCC unroll 2
            for (int w = 0; w < wide; w++) sum[g][w] = fma_vec(spread(a[g * a_row + k]), row[w], sum[g][w]);
    }
#pragma GCC unroll 6
    for (int g = 0; g < count; g++)
#pragma GCC unroll 2
        for (int w = 0; w < wide; w++) *(vec *)(out + g * out_row + w * WIDTH) = sum[g][w];
}

/* the same for any count, wide 1 or 2: the sizes are constants inside, so that sums stay in registers */
static __attribute__((unused)) void products(float *out, int64_t out_row, const float *a, int64_t a_row, const float *b,
                                             int64_t b_row, int64_t steps, int onto, int64_t ahead, int64_t count,
                                             int64_t wide) {
#define PRODUCT(n, w) product(out, out_row, a, a_row, b, b_row, steps, onto, ahead, n, w)
#define CASE(n)                       \
    case n:                           \
        if (wide == 2) PRODUCT(n, 2); \
        else PRODUCT(n, 1);           \
        break;
    for (; count > 0; count -= TILE, out += TILE * out_row, a += TILE * a_row, ahead = 0)
        switch (count < TILE ? count : TILE) { CASE(1) CASE(2) CASE(3) CASE(4) CASE(5) CASE(6) }
}

/* WIDTH rows of dim, at from, transposed in registers by swapping ever larger blocks: out [dim, BLOCK] */
static __attribute__((unused)) void transpose(float *restrict out, const float *const *from, int64_t ahead,
                                              int64_t dim) {
#ifdef __clang__
#define SHUFFLE(a, b, pick, s) __builtin_shufflevector(a, b, EACH(pick, s))
#else
#define SHUFFLE(a, b, pick, s) __builtin_shuffle(a, b, (ints){EACH(pick, s)})
#endif
#define LOW(j, s) (j & s ? WIDTH + j - s : j)
#define HIGH(j, s) (j & s ? WIDTH + j : j + s)
#define SWAP(s)                                                              \
    _Pragma("GCC unroll 16") for (int i = 0; i < WIDTH; i++) if (!(i & s)) { \
        vec low = x[i], high = x[i + s];                                     \
        x[i] = SHUFFLE(low, high, LOW, s);                                   \
        x[i + s] = SHUFFLE(low, high, HIGH, s);                              \
    }
    for (int64_t d = 0; d < dim; d += WIDTH) {
        vec x[WIDTH];
#pragma GCC unroll 16
        for (int j = 0; j < WIDTH; j++) {
            FETCH(from[j] + d + ahead);
            x[j] = *(const vec *)(from[j] + d);
        }
        SWAP(1)
        SWAP(2)
#if WIDTH > 4
        SWAP(4)
#endif
#if WIDTH > 8
        SWAP(8)
#endif
#pragma GCC unroll 16
        for (int j = 0; j < WIDTH; j++) *(vec *)(out + (d + j) * BLOCK) = x[j];
    }
}

#endif
