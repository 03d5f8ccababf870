/* Sampled rows on a CPU: filters and keyed noise with the bits of filters.py and noise.py.  dtype: 0 is fp32, 1 is bf16.
 *
 * A token's word u bounds its noise, g <= -log(u), so only a handful of a row can win, and those alone get the logarithms
 * of noise.py; the others are told apart by the exponent of u, which is below its logarithm. */
#include "logits_cpu.h"

#define LOWEST (-2.82f) /* bounds of the noise */
#define HIGHEST 22.19f

static inline float gumbel(uint32_t word) {
    float u = (float)((int64_t)word + 1) * 0x1p-32f, most = 1.0f - 0x1p-24f;
    u = u > most ? most : u;
    float y = 1.0f - u, lost = (1.0f - y) - u;
    return -logarithm(-(logarithm(y) + lost));
}

static inline int64_t measure(int64_t key, float z_max, int weighed) {
    return weighed ? (int64_t)weight(of_bits(order((int32_t)(key >> 32))) - z_max) : 1;
}

/* Of n distinct keys, in descending order, the one with which weights, or counts, add up to wanted.  Any key may be the
 * next pivot: what a mask or a smooth row leaves in order would make the middle one a bad choice again and again. */
static int64_t prefix_end(int64_t *key, int64_t n, int64_t wanted, float z_max, int weighed) {
    int64_t low = 0, high = n;
    uint32_t random = 1;
    while (high - low > 1) {
        random = random * 1664525 + 1013904223;
        int64_t last = high - 1, place = low + (int64_t)(((uint64_t)random * (uint64_t)(high - low)) >> 32);
        int64_t pivot = key[place], at = low, above = 0;
        key[place] = key[last], key[last] = pivot;
        for (int64_t i = low; i < last; i++) {
            int64_t one = key[i];
            if (one < pivot) continue;
            key[i] = key[at], key[at++] = one;
            above += measure(one, z_max, weighed);
        }
        int64_t with = above + measure(pivot, z_max, weighed);
        if (above >= wanted) {
            high = at;
        } else if (with >= wanted) {
            return pivot;
        } else { /* the pivot belongs behind what is above it, and is done with like these */
            key[last] = key[at], key[at] = pivot;
            wanted -= with, low = at + 1;
        }
    }
    return key[low];
}

/* cutoff_twin, of which only the tokens near the largest are read until they suffice; scratch [V] */
static inline __attribute__((always_inline)) int64_t cutoff(const void *row, int64_t V, float temperature, float z_max,
                                                            float top_p, float min_p, int64_t top_k, int64_t *scratch,
                                                            int dtype) {
    float floor = -INFINITY, least = 0x1p-126f;
    if (min_p > 0) floor = z_max + logarithm(min_p < least ? least : min_p > 1 ? 1 : min_p) + 0.0f;
    if (!(top_p < 1) && !top_k) return first_key(floor);
    int64_t total = top_k ? 0 : mass(row, V, temperature, z_max, floor, dtype);
    const float near[3] = {6, 12, INFINITY};
    for (int step = 0;; step++) {
        float edge = z_max - near[step];
        edge = edge > floor ? edge : floor;
        int64_t n = 0, sum = 0;
        for (int64_t first = 0; first < V; first += TOKENS) {
            float z[TOKENS];
            if (!read(z, row, first, V, temperature, edge, dtype)) continue;
            for (int i = 0; i < TOKENS && first + i < V; i++)
                if (z[i] >= edge) scratch[n++] = key_of(z[i], first + i);
        }
        int whole = step == 2 || edge == floor; /* there are no others */
        if (!whole && n < top_k) continue;
        int64_t last = first_key(edge);
        if (top_k && top_k < n) last = prefix_end(scratch, n, top_k, z_max, 0);
        if (!(top_p < 1)) return last;
        int64_t kept = 0;
        for (int64_t i = 0; i < n; i++)
            if (scratch[i] >= last) scratch[kept++] = scratch[i];
        n = kept;
        for (int64_t i = 0; i < n; i++) sum += measure(scratch[i], z_max, 1);
        int64_t needed = (int64_t)ceil((double)top_p * (double)(top_k ? sum : total));
        needed = needed < 1 ? 1 : needed;
        if (sum >= needed || whole) return prefix_end(scratch, n, needed, z_max, 1);
    }
}

typedef uint64_t words __attribute__((vector_size(64)));
#ifdef __clang__
#define PAIRS(a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
#else
#define PAIRS(a, b, ...) __builtin_shuffle(a, b, (words){__VA_ARGS__})
#endif

/* Philox4x32-10 of TOKENS tokens from the first of a group on, in their order; a word a lane of 64 bits */
static inline __attribute__((always_inline)) void words_of(uint32_t *restrict out, uint32_t group, uint32_t t,
                                                           uint64_t seed) {
    const words step = {0, 1, 2, 3, 4, 5, 6, 7}, low_word = (words){0} + 0xFFFFFFFFu;
    words a[PARTS], b[PARTS], c[PARTS], d[PARTS];
    uint32_t low = (uint32_t)seed, high = (uint32_t)(seed >> 32);
    for (int i = 0; i < PARTS; i++) a[i] = step + group + 8 * i, b[i] = (words){0} + t, c[i] = d[i] = (words){0};
#pragma GCC unroll 10
    for (int round = 0; round < 10; round++) {
#pragma GCC unroll 4
        for (int i = 0; i < PARTS; i++) {
            words first = a[i] * 0xD2511F53u, second = c[i] * 0xCD9E8D57u;
            a[i] = (second >> 32) ^ b[i] ^ low;
            c[i] = (first >> 32) ^ d[i] ^ high;
            b[i] = second & low_word, d[i] = first & low_word;
        }
        low += 0x9E3779B9u, high += 0xBB67AE85u;
    }
    for (int i = 0; i < PARTS; i++) {
        /* of a group of four tokens, two words each, the first in the lower half */
        words front = a[i] | b[i] << 32, back = c[i] | d[i] << 32;
        words pair[2] = {PAIRS(front, back, 0, 8, 1, 9, 2, 10, 3, 11), PAIRS(front, back, 4, 12, 5, 13, 6, 14, 7, 15)};
        memcpy(out + 32 * i, pair, sizeof pair);
    }
}

/* the lowest id with the largest z + noise among keys of at least cut; 0 where all are -inf */
static inline __attribute__((always_inline)) int64_t draw(const void *row, int64_t V, float temperature, float z_max,
                                                          int64_t cut, uint64_t seed, uint32_t t, int dtype) {
    float size = z_max < 0 ? -z_max : z_max;
    /* more than the rounding of sums and of the bounds themselves */
    float slack = 1e-3f + size * 0x1p-20f, bound = z_max + LOWEST - slack, best = -INFINITY;
    int64_t winner = 0;
    for (int64_t first = 0; first < V; first += TOKENS) {
        float z[TOKENS];
        uint32_t word[TOKENS];
        if (!read(z, row, first, V, temperature, bound - HIGHEST, dtype)) continue;
        int any = 0;
        words_of(word, (uint32_t)(first / 4), t, seed);
        int32_t may[TOKENS];
        for (int i = 0; i < TOKENS; i++) {
            float exponent = (float)bits_of((float)word[i]) * 0x1p-23f - (127 + 32);
            may[i] = exponent <= (z[i] - bound) * 1.44269504f;
            any |= may[i];
        }
        for (int i = 0; any && i < TOKENS && first + i < V; i++) {
            if (!may[i] || key_of(z[i], first + i) < cut) continue;
            float value = z[i] + gumbel(word[i]);
            if (value > best) best = value, winner = first + i; /* ids rise, so of equals the first stays */
            bound = best - slack > bound ? best - slack : bound;
        }
    }
    return winner;
}

static inline __attribute__((always_inline)) int64_t sampled(const void *row, int64_t V, float temperature, float top_p,
                                                             float min_p, int64_t top_k, uint64_t seed, uint32_t t,
                                                             int64_t *scratch, int dtype) {
    int64_t first;
    greedy(row, &first, 1, V, dtype);
    float z_max = scaled(row, first, temperature, dtype); /* division keeps the order */
    if (z_max == -INFINITY) return 0;
    int64_t cut = INT64_MIN;
    if (scratch) cut = cutoff(row, V, temperature, z_max, top_p, min_p, top_k, scratch, dtype);
    return draw(row, V, temperature, z_max, cut, seed, t, dtype);
}

/* sample.sample: logits [R, V], slot and position [R] and the table's columns -> choice [R].  scratch [threads, V] is given
 * where some row filters. */
void sample_rows(const void *logits, const int64_t *slot, const int64_t *position, const float *temperature,
                 const float *top_p, const float *min_p, const int64_t *top_k, const int64_t *seed, int64_t *scratch,
                 int64_t *choice, int64_t rows, int64_t V, int64_t threads, int dtype) {
#pragma omp parallel for schedule(dynamic) num_threads((int)threads) if (rows * V >= 16384)
    for (int64_t r = 0; r < rows; r++) {
        const char *row = (const char *)logits + r * V * (dtype ? 2 : 4);
        int64_t s = slot[r], *own = scratch ? scratch + omp_get_thread_num() * V : 0;
        uint32_t t = (uint32_t)(position[r] + 1);
        if (!(temperature[s] >= 1e-5f))
            greedy(row, choice + r, 1, V, dtype);
        else if (dtype)
            choice[r] = sampled(row, V, temperature[s], top_p[s], min_p[s], top_k[s], (uint64_t)seed[s], t, own, 1);
        else
            choice[r] = sampled(row, V, temperature[s], top_p[s], min_p[s], top_k[s], (uint64_t)seed[s], t, own, 0);
    }
}

/* noise.gumbel: seed and t [rows], ids [rows, n] -> out [rows, n] */
void gumbel_ids(const int64_t *seed, const int64_t *t, const int64_t *ids, float *out, int64_t rows, int64_t n) {
    for (int64_t i = 0; i < rows * n; i++) {
        uint32_t word[TOKENS];
        words_of(word, (uint32_t)(ids[i] >> 2), (uint32_t)t[i / n], (uint64_t)seed[i / n]);
        out[i] = gumbel(word[ids[i] & 3]);
    }
}
