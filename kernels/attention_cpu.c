/* Attention of packed rows over paged fp32 KV for CPUs, each row along its own path through a tree.
 *
 * A row's keys are visited in the order of their absolute positions, and every sum has one order that depends on the
 * row's own path alone: a score runs over the head's dimensions, the softmax over LANES partial sums, the result over
 * positions.  Tiles, threads and vectors only decide which of these independent sums are worked on together.  So the
 * bits are those of plain decoding whatever tree, batch or padding surrounds the row (drafters-and-kernels.md 6.3).
 * Built by fused_cpu.py; the twin is tree_attention.py's.
 */
#include <stdlib.h>

#include "math_cpu.h"

#define PAGE 128 /* cells of a page: CHUNK in tree_attention.py; a multiple of BLOCK */
#define ROWS 8   /* rows of a request that share transposed keys and the values in the L1 cache */
#define STEPS 64 /* positions combined before the next queries have their turn: their values fit L1 */

/* What is the same in all layers of a pass; attention_cpu.py fills it in. */
typedef struct {
    const int64_t *slot, *position, *depth; /* [rows] */
    const int64_t *path;                    /* [rows, width] */
    const int64_t *page_table;              /* [slots + 1, pages] */
    int64_t *tile;                          /* [rows, 4] first row, end, positions in order for all, work */
    float *scratch;                         /* [threads, floats] */
    int64_t rows, width, slots, pages, lanes, kv_heads, group, dim, threads, floats, dtype, first;
    int64_t tiles, split; /* set by attention_plan */
} Pass;

/* One tile's rows against one KV head, and a thread's room for it. */
typedef struct {
    const Pass *pass;
    const float *key, *value; /* of the head, in cell 0 */
    int64_t first, end, in_order, longest, head, count, lanes, stride; /* longest: in whole blocks */
    float *query, *keys, *sums, *scores; /* [count, dim], [dim, BLOCK], [count, dim], [count, lanes] */
} Work;

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

/* the cell of row r's key at a position, in committed order where the path does not reach */
static inline int64_t cell_of(const Pass *p, int64_t r, int64_t at) {
    int64_t depth = p->depth[r], root = p->position[r] - depth, step = at - root;
    if (step >= 0 && step <= depth) at = root + p->path[r * p->width + step];
    return p->page_table[p->slot[r] * p->pages + at / PAGE] * PAGE + at % PAGE;
}

/* A tile: rows of one request.  Up to in_order, all of them have their keys in the cells of the positions. */
static void fill_tile(const Pass *p, int64_t *tile, int64_t first, int64_t end) {
    tile[0] = first, tile[1] = end, tile[2] = INT64_MAX, tile[3] = 0;
    for (int64_t r = first; r < end; r++) {
        int64_t step = 0;
        while (step <= p->depth[r] && p->path[r * p->width + step] == step) step++;
        int64_t in_order = p->position[r] - p->depth[r] + step;
        if (in_order < tile[2]) tile[2] = in_order;
        tile[3] += p->position[r] + 1;
    }
}

static int more_work(const void *a, const void *b) {
    int64_t x = ((const int64_t *)a)[3], y = ((const int64_t *)b)[3];
    return (x < y) - (x > y);
}

/* Cut the rows into tiles, the longest first; say which pairs of tile and KV head all threads are to share, for the
 * others go whole to one thread each, and whether threads pay at all: from alone multiply-adds. */
void attention_plan(Pass *p, int64_t alone) {
    int64_t total = 0, pairs;
    p->tiles = p->split = 0;
    for (int64_t first = 0, end; first < p->rows; first = end) {
        for (end = first + 1; end < p->rows && p->slot[end] == p->slot[first];) end++;
        if (p->slot[first] >= p->slots) continue;
        int64_t parts = (end - first + ROWS - 1) / ROWS, rows = (end - first + parts - 1) / parts;
        for (int64_t r = first; r < end; r += rows) {
            fill_tile(p, p->tile + 4 * p->tiles, r, r + rows < end ? r + rows : end);
            total += p->tile[4 * p->tiles++ + 3];
        }
    }
    qsort(p->tile, p->tiles, 4 * sizeof *p->tile, more_work);
    if (total * p->kv_heads * p->group * p->dim * 2 < alone) p->threads = 1;
    /* a whole pair must be a small part of a thread's share, unless what is left comes out even */
    for (total *= p->kv_heads, pairs = p->tiles * p->kv_heads; p->threads > 1 && p->split < pairs; p->split++) {
        int64_t work = p->tile[4 * (p->split / p->kv_heads) + 3], least = p->tile[4 * p->tiles - 1];
        if (work * p->threads * 4 <= total) break;
        if ((pairs - p->split) % p->threads == 0 && work - least <= work / 8) break;
        total -= work;
    }
}

static void begin(Work *w, const Pass *p, const float *q, const float *key, const float *value, int64_t pair) {
    const int64_t *tile = p->tile + 4 * (pair / p->kv_heads), size = p->group * p->dim;
    w->pass = p, w->first = tile[0], w->end = tile[1], w->in_order = tile[2], w->head = pair % p->kv_heads;
    w->count = (w->end - w->first) * p->group, w->stride = p->kv_heads * p->dim;
    w->lanes = p->lanes + LANES; /* an odd number of cache lines, so that queries do not meet in one set */
    w->key = key + w->head * p->dim, w->value = value + w->head * p->dim;
    w->longest = 0;
    for (int64_t r = w->first; r < w->end; r++) {
        memcpy(w->query + (r - w->first) * size, q + (r * p->kv_heads + w->head) * size, size * sizeof *q);
        if (p->position[r] >= w->longest) w->longest = (p->position[r] / BLOCK + 1) * BLOCK;
    }
}

/* scores in lanes from .. to, multiples of BLOCK */
static void score(const Work *w, int64_t from, int64_t to) {
    const Pass *p = w->pass;
    const float *place[BLOCK];
    for (int64_t i = from; i < to; i += BLOCK) {
        int64_t shown[BLOCK], own[BLOCK];
        if (i + BLOCK <= w->in_order) {
            const float *start = w->key + cell_of(p, w->first, i) * w->stride;
            for (int j = 0; j < BLOCK; j++) place[j] = start + j * w->stride;
            int64_t ahead = i + BLOCK < to ? cell_of(p, w->first, i + BLOCK) * w->stride - (start - w->key) : 0;
            for (int j = 0; j < BLOCK; j += WIDTH) transpose(w->keys + j, place + j, ahead, p->dim);
            products(w->scores + i, w->lanes, w->query, p->dim, w->keys, BLOCK, p->dim, 0, 0, w->count, 2);
            continue;
        }
        shown[0] = -1;
        for (int64_t r = w->first; r < w->end; r++) {
            if (p->position[r] < i) continue;
            for (int j = 0; j < BLOCK; j++) own[j] = cell_of(p, r, i + j);
            if (memcmp(shown, own, sizeof own)) {
                memcpy(shown, own, sizeof own);
                for (int j = 0; j < BLOCK; j++) place[j] = w->key + own[j] * w->stride;
                for (int j = 0; j < BLOCK; j += WIDTH) transpose(w->keys + j, place + j, 0, p->dim);
            }
            int64_t at = (r - w->first) * p->group;
            products(w->scores + at * w->lanes + i, w->lanes, w->query + at * p->dim, p->dim, w->keys, BLOCK, p->dim, 0,
                     0, p->group, 2);
        }
    }
}

/* scores of queries from .. to become weights; positions before the pass's first count for none but their own rows */
static void weigh(const Work *w, int64_t from, int64_t to) {
    for (int64_t m = from; m < to; m++) {
        float *scores = w->scores + m * w->lanes;
        int64_t position = w->pass->position[w->first + m / w->pass->group];
        for (int64_t i = 0; i < w->pass->first && i < position; i++) scores[i] = -INFINITY;
        softmax(scores, position + 1);
    }
}

/* values times weights, dimensions from .. to (multiples of BLOCK, or the end): first the positions that all rows have
 * in order, then what is left of each */
static void combine(const Work *w, void *out, int64_t from, int64_t to) {
    const Pass *p = w->pass;
    int64_t size = p->dtype ? 2 : 4, limit = w->in_order, group = p->group;
    memset(w->sums, 0, w->count * p->dim * sizeof *w->sums);
    for (int64_t i = 0, steps; i < limit; i += steps) {
        steps = limit - i < STEPS ? limit - i : STEPS;
        const float *value = w->value + cell_of(p, w->first, i) * w->stride;
        int64_t ahead = i + steps < limit ? cell_of(p, w->first, i + steps) * w->stride - (value - w->value) : 0;
        for (int64_t d = from; d < to; d += BLOCK)
            products(w->sums + d, p->dim, w->scores + i, w->lanes, value + d, w->stride, steps, 1, ahead, w->count,
                     to - d < BLOCK ? 1 : 2);
    }
    for (int64_t r = w->first; r < w->end; r++) {
        int64_t at = (r - w->first) * group;
        for (int64_t i = limit; i <= p->position[r]; i++) {
            const float *value = w->value + cell_of(p, r, i) * w->stride;
            for (int64_t d = from; d < to; d += BLOCK)
                products(w->sums + at * p->dim + d, p->dim, w->scores + at * w->lanes + i, w->lanes, value + d, 0, 1, 1,
                         0, group, to - d < BLOCK ? 1 : 2);
        }
        for (int64_t g = 0; g < group; g++)
            store((char *)out + (((r * p->kv_heads + w->head) * group + g) * p->dim + from) * size,
                  w->sums + (at + g) * p->dim + from, to - from, p->dtype);
    }
}

/* part me of team of what comes in units, as from .. to */
#define SHARE(total, unit) \
    ((total) / (unit) * me / team * (unit)), (me + 1 == team ? (total) : (total) / (unit) * (me + 1) / team * (unit))

/* q [rows, kv_heads * group, dim] fp32, scaled already; key, value [cells, kv_heads, dim] -> out [rows, kv_heads *
 * group, dim] of the pass's dtype (0 fp32, 1 bf16), zero for padding.  lanes is a multiple of 32, dim of LANES. */
void tree_attention(const Pass *p, const float *q, const float *key, const float *value, void *out) {
    int64_t wide = p->kv_heads * p->group * p->dim * (p->dtype ? 2 : 4), most = ROWS * p->group;
    for (int64_t r = 0; r < p->rows; r++)
        if (p->slot[r] >= p->slots) memset((char *)out + r * wide, 0, wide);
#pragma omp parallel num_threads(p->threads) if (p->threads > 1)
    {
        int64_t me = omp_get_thread_num(), team = omp_get_num_threads(), pairs = p->tiles * p->kv_heads;
        float *own = p->scratch + me * p->floats;
        Work w = {.query = own, .sums = own + most * p->dim, .keys = own + 2 * most * p->dim};
        int64_t skip = (2 * most + BLOCK) * p->dim;
        w.scores = p->scratch + skip;
        for (int64_t pair = 0; pair < p->split; pair++) {
            begin(&w, p, q, key, value, pair);
            score(&w, SHARE(w.longest, BLOCK));
#pragma omp barrier
            weigh(&w, SHARE(w.count, 1));
#pragma omp barrier
            combine(&w, out, SHARE(p->dim, BLOCK));
#pragma omp barrier
        }
        w.scores = own + skip;
#pragma omp for schedule(dynamic) nowait
        for (int64_t pair = p->split; pair < pairs; pair++) {
            begin(&w, p, q, key, value, pair);
            score(&w, 0, w.longest);
            weigh(&w, 0, w.count);
            combine(&w, out, 0, p->dim);
        }
    }
}
