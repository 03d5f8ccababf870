/* Matrix product with a fixed bf16 weight for CPUs that multiply bf16 (AVX512-BF16): few rows, each with its own bits.
 *
 * A weight is laid out once in blocks of COLUMNS outputs, in which pairs of its inner dimension follow one another, so
 * that a product reads it from end to end.  A row's result in a column is one sum over these pairs, in order, whatever
 * rows are multiplied with it, so its bits depend on nothing else.  The twin is torch's own product; linear_cpu.py
 * packs and calls.
 */
#include <stddef.h>

#include "math_cpu.h"

/* where there are tiles, the library uses them, and they are better from some 16 rows on */
#if defined(__AVX512BF16__) && defined(__AVX512BW__) && defined(__AVX512VL__) && !defined(__AMX_BF16__)
#include <immintrin.h>

#define COLUMNS 32 /* two vectors of sums */
#define MOST 12    /* rows at a time: 24 vectors of sums, two of weights, one of a row */
#define AHEAD 8192 /* bytes that are asked for before their turn, past the end of a block into the next */

/* bits of two neighbours of a row, in all lanes */
static inline __m512bh both(const uint16_t *x) {
    int32_t pair;
    memcpy(&pair, x, 4);
    return (__m512bh)_mm512_set1_epi32(pair);
}

static inline __m512 wide(const uint16_t *from, __mmask16 mask) {
    return (__m512)_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(mask, from)), 16);
}

/* count rows of x [., inner] times one block [inner / 2, COLUMNS, 2] -> columns of y [., outputs], `left` of them */
static inline __attribute__((always_inline)) void block(const uint16_t *restrict x, const uint16_t *restrict weight,
                                                        const uint16_t *bias, const uint16_t *residual,
                                                        uint16_t *restrict y, int64_t inner, int64_t outputs,
                                                        int64_t left, int count) {
    __m512 sum[MOST][2];
#pragma GCC unroll 12
    for (int r = 0; r < count; r++) sum[r][0] = sum[r][1] = _mm512_setzero_ps();
    for (int64_t k = 0; k < inner; k += 2) {
        const uint16_t *pair = weight + k * COLUMNS;
        _mm_prefetch((const char *)pair + AHEAD, _MM_HINT_T1);
        _mm_prefetch((const char *)pair + AHEAD + 64, _MM_HINT_T1);
        __m512bh low = (__m512bh)_mm512_loadu_si512(pair), high = (__m512bh)_mm512_loadu_si512(pair + COLUMNS);
#pragma GCC unroll 12
        for (int r = 0; r < count; r++) {
            __m512bh row = both(x + r * inner + k);
            sum[r][0] = _mm512_dpbf16_ps(sum[r][0], low, row);
            sum[r][1] = _mm512_dpbf16_ps(sum[r][1], high, row);
        }
    }
    for (int h = 0; h < 2; h++) {
        int64_t here = left - 16 * h;
        if (here <= 0) break;
        __mmask16 mask = here >= 16 ? 0xFFFF : (__mmask16)((1 << here) - 1);
        __m512 add = bias ? wide(bias + 16 * h, mask) : _mm512_setzero_ps();
#pragma GCC unroll 12
        for (int r = 0; r < count; r++) {
            __m512 total = _mm512_add_ps(sum[r][h], add);
            if (residual) total = _mm512_add_ps(total, wide(residual + r * outputs + 16 * h, mask));
            _mm256_mask_storeu_epi16(y + r * outputs + 16 * h, mask, (__m256i)_mm512_cvtneps_pbh(total));
        }
    }
}

/* weight [outputs, inner] -> packed [ceil(outputs / COLUMNS), inner / 2, COLUMNS, 2]; absent columns are 0 */
void linear_pack(const uint16_t *restrict weight, uint16_t *restrict packed, int64_t outputs, int64_t inner) {
    int64_t blocks = (outputs + COLUMNS - 1) / COLUMNS;
#pragma omp parallel for
    for (int64_t b = 0; b < blocks; b++)
        for (int64_t k = 0; k < inner; k++)
            for (int64_t c = 0; c < COLUMNS; c++) {
                int64_t n = b * COLUMNS + c;
                packed[b * COLUMNS * inner + (k & ~(int64_t)1) * COLUMNS + 2 * c + (k & 1)] =
                    n < outputs ? weight[n * inner + k] : 0;
            }
}

/* x [rows, inner] times packed, plus bias [outputs] and residual [rows, outputs] where they are not NULL -> y */
void linear_product(const uint16_t *x, const uint16_t *packed, const uint16_t *bias, const uint16_t *residual,
                    uint16_t *y, int64_t rows, int64_t outputs, int64_t inner) {
    int64_t blocks = (outputs + COLUMNS - 1) / COLUMNS;
#pragma omp parallel for schedule(static)
    for (int64_t b = 0; b < blocks; b++) {
        const uint16_t *weight = packed + b * COLUMNS * inner, *add = bias ? bias + b * COLUMNS : NULL;
        int64_t left = outputs - b * COLUMNS;
        for (int64_t first = 0; first < rows;) {
            /* rest in equal parts: 16 rows are twice 8, not 12 and 4 */
            int64_t rest = rows - first, parts = (rest + MOST - 1) / MOST, count = (rest + parts - 1) / parts;
            const uint16_t *from = x + first * inner, *more = residual ? residual + first * outputs + b * COLUMNS : NULL;
            uint16_t *to = y + first * outputs + b * COLUMNS;
#define ROWS(n)                                                      \
    case n:                                                          \
        block(from, weight, add, more, to, inner, outputs, left, n); \
        break;
            switch (count) {
                ROWS(1) ROWS(2) ROWS(3) ROWS(4) ROWS(5) ROWS(6) ROWS(7) ROWS(8) ROWS(9) ROWS(10) ROWS(11) ROWS(12)
            }
#undef ROWS
            first += count;
        }
    }
}

int linear_is_here(void) { return 1; }
#else
void linear_pack(const uint16_t *weight, uint16_t *packed, int64_t outputs, int64_t inner) {}
void linear_product(const uint16_t *x, const uint16_t *packed, const uint16_t *bias, const uint16_t *residual,
                    uint16_t *y, int64_t rows, int64_t outputs, int64_t inner) {}
int linear_is_here(void) { return 0; }
#endif
