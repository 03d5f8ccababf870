/* The ops over trees for CPUs: a few nodes each, for which torch's calls take many times as long as the work.
 *
 * Each does what the twin beside its Triton kernel says (block_tree.py, accept.py, pack_tree.py, merge_trees.py), to
 * the bit but for exponentials.  Built by fused_cpu.py, called by trees_cpu.py.  All return 0, or 1 where a number
 * would lead outside the tensors or beyond what there is room for: inputs are then as they were, outputs mean nothing,
 * and the twin takes it.
 */
#include <float.h>
#include <math.h>
#include <stdint.h>
#include <string.h>

#define MAX_NODES 64  /* with the root, of block_tree */
#define MAX_WIDTH 512 /* of a tree that is merged */

/* block_tree's node, and the best child of it that is not taken yet */
typedef struct {
    float cost, next_cost;
    int64_t depth, candidate, next;
} Node;

/* The best of K candidates behind cost that comes after the one taken last, by cost, then by number. */
static void next_child(Node *node, const float *logprob, int64_t K) {
    float last = node->next_cost, best = INFINITY;
    int64_t after = node->next, next = -1;
    for (int64_t k = 0; k < K; k++) {
        /* the difference makes no -0; NaN is never less */
        float cost = node->cost + (logprob[k] > 0.0f ? 0.0f : 0.0f - logprob[k]);
        if (cost < best && (cost > last || (cost == last && k > after))) best = cost, next = k;
    }
    node->next_cost = best, node->next = next;
}

/* anchor [N], top_token [N, D, K], logprob [N, D, K] or, if paired, [N, D, K, K] -> token, parent and score
 * [N, nodes + 1].  Best first: a step takes the best child of all nodes taken before. */
int block_tree(const int64_t *anchor, const int64_t *top_token, const float *logprob, int64_t N, int64_t D, int64_t K,
               int64_t paired, int64_t nodes, int64_t *token, int64_t *parent, float *score) {
    Node node[MAX_NODES];
    if (nodes >= MAX_NODES) return 1;
    for (int64_t n = 0; n < N; n++, token += nodes + 1, parent += nodes + 1, score += nodes + 1) {
        const int64_t *candidate = top_token + n * D * K;
        const float *rows = logprob + n * D * K * (paired ? K : 1);
        int64_t made = 1;
        token[0] = anchor[n], parent[0] = 0, score[0] = 1.0f;
        node[0] = (Node){.cost = 0.0f, .next_cost = -1.0f};
        next_child(node, rows, K);
        for (; made <= nodes; made++) {
            int64_t from = 0;
            for (int64_t j = 1; j < made; j++)
                if (node[j].next_cost < node[from].next_cost ||
                    (node[j].next_cost == node[from].next_cost && node[j].depth < node[from].depth))
                    from = j;
            Node *above = node + from, *child = node + made;
            if (!(above->next_cost < INFINITY)) break;
            *child = (Node){above->next_cost, INFINITY, above->depth + 1, above->next, -1};
            token[made] = candidate[above->depth * K + child->candidate];
            parent[made] = from;
            /* in double precision, so that the result is the nearest fp32 */
            score[made] = (float)exp(-(double)child->cost);
            int64_t row = above->depth * (paired ? K : 1) + (paired ? above->candidate : 0);
            next_child(above, rows + row * K, K);
            if (child->depth == D) continue;
            child->next_cost = -1.0f;
            row = child->depth * (paired ? K : 1) + (paired ? child->candidate : 0);
            next_child(child, rows + row * K, K);
        }
        for (; made <= nodes; made++) token[made] = parent[made] = 0, score[made] = -INFINITY;
    }
    return 0;
}

/* accept, which is a name of libc's: rows' token, parent [R], first_row, row_count [slots] and choice [R]; the slots'
 * tokens [slots, T], length, limit, active [slots] and ends [slots, E], whose rows are stride apart -> out
 * [2, slots, W]: tokens, path_row; number [4, slots]: count, accepted, drafted, finish. */
int accept_rows(const int64_t *token, const int64_t *parent, const int64_t *first_row, const int64_t *row_count,
                const int64_t *choice, int64_t *tokens, int64_t *length, const int64_t *limit, uint8_t *active,
                const int64_t *ends, int64_t *out, int64_t *number, int64_t slots, int64_t T, int64_t R, int64_t W,
                int64_t E, int64_t stride) {
    for (int64_t s = 0; s < slots; s++)
        if (active[s] && row_count[s] > 0 && (first_row[s] < 0 || first_row[s] > R - row_count[s] || length[s] < 0))
            return 1;
    for (int64_t i = 0; i < 2 * slots * W; i++) out[i] = -1;
    for (int64_t s = 0; s < slots; s++) {
        int64_t *made = out + s * W, *path = out + (slots + s) * W, steps = 0, count, accepted, finish = 0;
        number[s] = number[slots + s] = number[2 * slots + s] = number[3 * slots + s] = 0;
        if (!active[s] || row_count[s] <= 0) continue;
        int64_t row = first_row[s], end = row + row_count[s], before_end = 0;
        while (row < end && steps < W) {
            int64_t node = row++;
            path[steps] = node, made[steps++] = choice[node];
            while (row < end && (parent[row] != node || token[row] != choice[node])) row++;
        }
        for (int found = 0; before_end < steps; before_end++) {
            for (int64_t e = 0; e < E; e++) found |= made[before_end] == ends[s * stride + e];
            if (found) break;
        }
        int64_t room = (limit[s] < T ? limit[s] : T) - length[s];
        count = before_end < steps ? before_end + 1 : steps;
        if (count >= room) count = room > 0 ? room : 0, finish = 2;
        if (before_end < count) finish = 1;
        accepted = steps - 1 < count ? steps - 1 : count;
        memcpy(tokens + s * T + length[s], made, count * sizeof *tokens);
        for (int64_t j = count; j < steps; j++) made[j] = -1;
        for (int64_t j = accepted + 1; j < steps; j++) path[j] = -1;
        length[s] += count, active[s] = !finish;
        number[s] = count, number[slots + s] = accepted, number[2 * slots + s] = row_count[s] - 1;
        number[3 * slots + s] = finish;
    }
    return 0;
}

/* What pack_tree orders nodes by: larger for the better score, 0 for what is absent. */
static uint32_t rank_of(float score) {
    uint32_t bits;
    if (!(score > -INFINITY)) return 0;
    score = score == 0.0f ? 0.0f : score;
    memcpy(&bits, &score, 4);
    return bits ^ (bits >> 31 ? 0xFFFFFFFF : 0x80000000);
}

/* The highest rank that at least R nodes reach; 0 where all of them fit. */
static uint32_t threshold_of(const uint32_t *rank, int64_t count, int64_t R) {
    uint32_t threshold = 0;
    for (uint32_t bit = 0x80000000; bit; bit >>= 1) {
        int64_t reached = 0;
        for (int64_t i = 0; i < count; i++) reached += rank[i] >= (threshold | bit);
        if (reached >= R) threshold |= bit;
    }
    return threshold;
}

/* A slot's chosen nodes, of which row_of [W] has rows or -1, to rows from first on -> the row behind them.  Columns of
 * row [6, R]: token, slot, position, depth, parent, index. */
static int64_t fill(const int64_t *token, const int64_t *parent, int64_t s, int64_t root, int64_t first,
                    int64_t *row_of, int64_t W, int64_t R, int64_t *row, int64_t *path) {
    int64_t at = first;
    for (int64_t i = 0; i < W; i++) {
        if (row_of[i] < 0) continue;
        int64_t above = i ? row_of[parent[i]] : at, depth = i ? row[3 * R + above] + 1 : 0;
        row_of[i] = at;
        row[at] = token[i], row[R + at] = s, row[2 * R + at] = root + depth, row[3 * R + at] = depth;
        row[4 * R + at] = above, row[5 * R + at] = at - first;
        for (int64_t j = 0; j < W; j++) path[at * W + j] = j < depth ? path[above * W + j] : -1;
        path[at * W + depth] = at - first;
        at++;
    }
    return at;
}

/* token, parent, score [S + 1, W], active, length [S + 1] -> row [6, R] as above, path [R, W], of_slot [2, S + 1]:
 * first_row, row_count.  scratch is [S + 1, W]. */
int pack_tree(const int64_t *token, const int64_t *parent, const float *score, const uint8_t *active,
              const int64_t *length, int64_t S, int64_t W, int64_t R, int64_t *row, int64_t *path, int64_t *of_slot,
              int64_t *scratch) {
    int64_t *row_of = scratch, count = 0, room = R, at = 0;
    uint32_t *rank = (uint32_t *)(scratch + W); /* half of [S, W] */
    if (active[S]) return 1;
    /* of a node the lowest on its way from the root; ranks of active slots lie together */
    for (int64_t s = 0; s < S; s++) {
        if (!active[s]) continue;
        uint32_t *own = rank + count;
        own[0] = UINT32_MAX;
        for (int64_t i = 1; i < W; i++) {
            int64_t above = parent[s * W + i];
            if (above < 0 || above >= i) return 1;
            own[i] = rank_of(score[s * W + i] > FLT_MAX ? FLT_MAX : score[s * W + i]);
            if (own[above] < own[i]) own[i] = own[above];
        }
        count += W;
    }
    uint32_t threshold = threshold_of(rank, count, R);
    for (int64_t i = 0; i < count; i++) room -= rank[i] > threshold;
    for (int64_t s = 0; s <= S; s++) {
        of_slot[s] = at;
        if (active[s]) {
            for (int64_t i = 0; i < W; i++, rank++) {
                int tied = *rank && *rank == threshold && room > 0;
                row_of[i] = *rank > threshold || tied ? 0 : -1;
                room -= tied;
            }
            at = fill(token + s * W, parent + s * W, s, length[s] - 1, at, row_of, W, R, row, path);
        }
        of_slot[S + 1 + s] = at - of_slot[s];
    }
    for (; at < R; at++) {
        row[at] = row[2 * R + at] = row[3 * R + at] = row[5 * R + at] = 0, row[R + at] = S, row[4 * R + at] = at;
        for (int64_t j = 0; j < W; j++) path[at * W + j] = j ? -1 : 0;
    }
    return 0;
}

/* The lowest of the first tree's nodes below `upto` that is present, carries token and hangs on lowest node `above`, or
 * -1; lowest [A] has for each of these nodes the lowest of the same path, or -1. */
static int32_t find(const int64_t *token_a, const int64_t *parent_a, const int32_t *lowest, int64_t upto, int64_t token,
                    int32_t above) {
    for (int64_t a = 1; a < upto; a++)
        if (token_a[a] == token && lowest[a] == a && lowest[parent_a[a]] == above) return (int32_t)a;
    return -1;
}

/* token, parent, score [N, A] and [N, B] -> the same of [N, A + B - 1] */
int merge_trees(const int64_t *token_a, const int64_t *parent_a, const float *score_a, const int64_t *token_b,
                const int64_t *parent_b, const float *score_b, int64_t *token, int64_t *parent, float *score, int64_t N,
                int64_t A, int64_t B) {
    int32_t lowest[MAX_WIDTH], number[MAX_WIDTH];
    if (A > MAX_WIDTH || B > MAX_WIDTH) return 1;
    for (int64_t n = 0; n < N; n++) {
        memcpy(token, token_a, A * sizeof *token);
        memcpy(parent, parent_a, A * sizeof *parent);
        memcpy(score, score_a, A * sizeof *score);
        lowest[0] = number[0] = 0;
        /* roots are the same whatever their scores; a NaN stays one */
        if (*score_b > *score || *score_b != *score_b) *score = *score_b;
        for (int64_t a = 1; a < A; a++) {
            if (parent_a[a] < 0 || parent_a[a] >= a) return 1;
            int32_t above = lowest[parent_a[a]];
            lowest[a] = -1;
            if (above < 0 || !(score_a[a] > -INFINITY)) continue;
            int32_t same = find(token_a, parent_a, lowest, a, token_a[a], above);
            lowest[a] = same < 0 ? (int32_t)a : same;
        }
        for (int64_t b = 1; b < B; b++) {
            if (parent_b[b] < 0 || parent_b[b] >= b) return 1;
            int32_t above = number[parent_b[b]], same = -1;
            if (above < A && score_b[b] > -INFINITY) same = find(token_a, parent_a, lowest, A, token_b[b], above);
            int64_t own = A + b - 1;
            number[b] = same < 0 ? (int32_t)own : same;
            token[own] = token_b[b], parent[own] = same < 0 ? above : 0, score[own] = same < 0 ? score_b[b] : -INFINITY;
            if (same >= 0 && score_b[b] > score[same]) score[same] = score_b[b];
        }
        token_a += A, parent_a += A, score_a += A, token_b += B, parent_b += B, score_b += B;
        token += A + B - 1, parent += A + B - 1, score += A + B - 1;
    }
    return 0;
}
