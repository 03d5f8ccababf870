/* Rows of logits on a CPU: the largest, and the likeliest with their share.  dtype: 0 is fp32, 1 is bf16. */
#include "logits_cpu.h"

#define MOST 64 /* columns kept of a row: MAX_KEPT in marginals.py */

/* fp32's bits as an integer that orders as numbers do: -0 is 0, NaN is -inf */
static inline int32_t comparable(int32_t bits) {
    int32_t size = bits & 0x7FFFFFFF;
    bits = size > 0x7F800000 ? (int32_t)0xFF800000 : size ? bits : 0;
    return order(bits);
}

static inline int32_t comparable_at(const void *row, int64_t i, int dtype) {
    int32_t bits;
    if (dtype) bits = (int32_t)((uint32_t)((const uint16_t *)row)[i] << 16);
    else memcpy(&bits, (const float *)row + i, 4);
    return comparable(bits);
}

static inline __attribute__((always_inline)) int64_t largest(const void *row, int64_t columns, int dtype) {
    int32_t best = INT32_MIN;
    for (int64_t i = 0; i < columns; i++) {
        int32_t one = comparable_at(row, i, dtype);
        best = one > best ? one : best;
    }
    int64_t i = 0;
    while (comparable_at(row, i, dtype) != best) i++;
    return i;
}

/* logits [rows, columns] -> the lowest column with a row's largest, NaN counting as -inf */
void greedy(const void *logits, int64_t *choice, int64_t rows, int64_t columns, int dtype) {
#pragma omp parallel for if (rows * columns >= 65536)
    for (int64_t r = 0; r < rows; r++)
        choice[r] = dtype ? largest((const uint16_t *)logits + r * columns, columns, 1)
                          : largest((const float *)logits + r * columns, columns, 0);
}

static inline __attribute__((always_inline)) float tops(const void *row, int64_t columns, float scale, int64_t kept,
                                                        float *z, int64_t *column, int dtype) {
    int64_t count = 0;
    for (int64_t i = 0; i < columns; i += LANES) {
        float here[LANES], best = -INFINITY;
        int64_t n = columns - i < LANES ? columns - i : LANES;
        if (n == LANES) {
            for (int j = 0; j < LANES; j++) here[j] = scaled(row, i + j, scale, dtype);
        } else {
            for (int j = 0; j < LANES; j++) here[j] = -INFINITY;
            for (int j = 0; j < n; j++) here[j] = scaled(row, i + j, scale, dtype);
        }
        for (int j = 0; j < LANES; j++) best = here[j] > best ? here[j] : best;
        if (count == kept && !(best > z[kept - 1])) continue;
        for (int64_t j = 0; j < n; j++) {
            if (count == kept && !(here[j] > z[kept - 1])) continue;
            int64_t at = count < kept ? count++ : kept - 1;
            for (; at && here[j] > z[at - 1]; at--) z[at] = z[at - 1], column[at] = column[at - 1];
            z[at] = here[j], column[at] = i + j;
        }
    }
    if (z[0] == -INFINITY) return -INFINITY;
    float part[LANES] = {0};
    int64_t i = 0;
    for (; i + LANES <= columns; i += LANES)
        for (int j = 0; j < LANES; j++) part[j] += exp_negative(scaled(row, i + j, scale, dtype) - z[0]);
    for (int j = 0; i + j < columns; j++) part[j] += exp_negative(scaled(row, i + j, scale, dtype) - z[0]);
    return z[0] + logf(add_lanes(part));
}

/* logits [rows, columns], of which row r is divided by scale[r % depths] -> the kept best of each row, best first and
 * equals in order, z and column [rows, kept], and the logarithm of the sum of all exponentials, total [rows] */
void best_of_rows(const void *logits, const float *scale, float *z, int64_t *column, float *total, int64_t rows,
                  int64_t depths, int64_t columns, int64_t kept, int dtype) {
#pragma omp parallel for if (rows * columns >= 16384)
    for (int64_t r = 0; r < rows; r++) {
        const char *row = (const char *)logits + r * columns * (dtype ? 2 : 4);
        float *to = z + r * kept, by = scale[r % depths];
        total[r] = dtype ? tops(row, columns, by, kept, to, column + r * kept, 1)
                         : tops(row, columns, by, kept, to, column + r * kept, 0);
    }
}
