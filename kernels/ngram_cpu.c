/* Prompt lookup for CPUs (ngram.py has the rule): what in torch is a hundred small ops is one walk over the text.
 *
 * A depth costs a scan for the places that read like the end of the text, and a look at each of them.  Votes are
 * integers and probabilities are multiplied in the twin's order, so tokens, parents and scores are the twin's to the
 * bit.  Built by fused_cpu.py, called by trees_cpu.py; the twin is ngram_twin.
 */
#include <math.h>
#include <stdint.h>
#include <string.h>

#define RUN 6 /* these four as ngram.py has them */
#define BRANCH 8
#define MAX_DEPTH 8
#define SHIFT 20 /* a key is votes << SHIFT | column */
#define WINDOW 2048 /* columns at most */
#define STRIDE 32 /* places that a scan looks at together */

/* What is the same in all slots. */
typedef struct {
    const int64_t *weight; /* [RUN] vote of a run of 1, 2 ... */
    int64_t recent, recent_weight, escape, columns, depths, nodes;
} Rule;

/* A slot's text, of which place i is column i + shift; what lies before the text are columns too, of no votes. */
typedef struct {
    int32_t token[WINDOW + STRIDE]; /* -1 behind the end */
    int32_t votes[WINDOW];          /* those that do not depend on the end, at the newest place of their token */
    int32_t more[WINDOW];           /* those that do, of the depth at hand */
    int32_t touched[WINDOW];        /* places of which more is not 0 */
    int64_t length, shift, total;
} Text;

/* put key into the descending list of the BRANCH best */
static void keep(int64_t *best, int64_t key) {
    if (key <= best[BRANCH - 1]) return;
    int k = BRANCH - 1;
    for (; k && best[k - 1] < key; k--) best[k] = best[k - 1];
    best[k] = key;
}

static inline int64_t key_of(const Text *x, int64_t place) {
    return (int64_t)(x->votes[place] + x->more[place]) << SHIFT | (place + x->shift);
}

/* The votes of the newest tokens, and the best keys there are without any other. */
static void begin(Text *x, const Rule *rule, const int32_t *newest, int64_t *best) {
    int64_t n = x->length, first = n - rule->recent > 1 ? n - rule->recent : 1;
    int voted = 0;
    memset(x->votes, 0, n * sizeof *x->votes);
    memset(x->more, 0, n * sizeof *x->more);
    x->total = 0;
    for (int64_t i = first; i < n; i++) {
        int32_t place = newest[x->token[i]];
        if (!x->votes[place]) x->touched[voted++] = place;
        x->votes[place] += rule->recent_weight;
        x->total += rule->recent_weight;
    }
    for (int k = 0; k < BRANCH; k++) best[k] = -1;
    for (int v = 0; v < voted; v++) keep(best, key_of(x, x->touched[v]));
    /* no votes: the newest columns, so the first BRANCH of them are enough */
    int64_t column = rule->columns - 1;
    for (int left = BRANCH; left && column > 0; column--) {
        int64_t place = column - x->shift;
        if (place >= 0 && x->votes[place]) continue;
        keep(best, column);
        left--;
    }
}

/* Votes of the token behind place, where the text up to there reads like the end, of which context has the last ones:
 * its weight, and whether the newest place of that token has to be remembered. */
static void vote(Text *x, const Rule *rule, const int32_t *newest, const int32_t *end, int64_t place, int *count) {
    int run = 1;
    while (run < RUN && place - run >= 0 && x->token[place - run] == end[-run]) run++;
    int32_t to = newest[x->token[place + 1]], weight = rule->weight[run - 1];
    if (!x->more[to]) x->touched[(*count)++] = to;
    x->more[to] += weight;
    x->total += weight;
}

/* The best keys of a depth: all places with votes of this depth's compete with the best of the others. */
static int64_t rank(Text *x, const Rule *rule, const int32_t *newest, const int32_t *end, const int64_t *base,
                    int64_t *best) {
    int64_t before = x->total, total;
    int count = 0;
    for (int64_t i = 0; i < x->length - 1; i += STRIDE) {
        int found = 0;
        for (int j = 0; j < STRIDE; j++) found += x->token[i + j] == *end;
        for (int j = 0; found && j < STRIDE && i + j < x->length - 1; j++)
            if (x->token[i + j] == *end) vote(x, rule, newest, end, i + j, &count);
    }
    for (int k = 0; k < BRANCH; k++) best[k] = -1;
    for (int t = 0; t < count; t++) keep(best, key_of(x, x->touched[t]));
    for (int k = 0; k < BRANCH; k++) {
        int64_t place = (base[k] & ((1 << SHIFT) - 1)) - x->shift;
        if (place < 0 || !x->more[place]) keep(best, base[k]);
    }
    for (int t = 0; t < count; t++) x->more[x->touched[t]] = 0;
    total = x->total, x->total = before;
    return total;
}

/* Of depths * BRANCH nodes the best, in order of their numbers: spine from the top, then each spine node's siblings. */
static void choose(const float *score, const int64_t *drafted, const Rule *rule, int64_t *token, int64_t *parent,
                   float *out) {
    int64_t depths = rule->depths, all = depths * BRANCH, made = 1;
    for (int64_t i = 0; i < all; i++) {
        int ahead = 0;
        for (int64_t j = 0; j < i; j++) ahead += score[j] >= score[i];
        for (int64_t j = i + 1; j < all; j++) ahead += score[j] > score[i];
        if (ahead >= rule->nodes) continue;
        token[made] = drafted[i];
        parent[made] = i < depths ? i : (i - depths) / (BRANCH - 1);
        out[made++] = score[i] > 0.0f ? score[i] : -INFINITY;
    }
}

static void draft(Text *x, const Rule *rule, const int32_t *newest, int64_t *token, int64_t *parent, float *out) {
    int64_t base[BRANCH], best[BRANCH], drafted[MAX_DEPTH * BRANCH];
    float score[MAX_DEPTH * BRANCH];
    /* the end of the text and what the spine adds; nothing in the text is -2 */
    int32_t context[RUN + MAX_DEPTH];
    for (int i = 0; i < RUN; i++) context[i] = x->length >= RUN - i ? x->token[x->length - RUN + i] : -2;
    begin(x, rule, newest, base);
    double reach = 1.0;
    for (int64_t d = 0; d < rule->depths; d++) {
        double total = (double)(rank(x, rule, newest, context + RUN - 1 + d, base, best) + rule->escape), below = reach;
        for (int64_t k = 0; k < BRANCH; k++) {
            int64_t place = (best[k] & ((1 << SHIFT) - 1)) - x->shift;
            int64_t node = k ? rule->depths + d * (BRANCH - 1) + k - 1 : d;
            double probability = (double)(best[k] >> SHIFT) / total;
            drafted[node] = place < 0 ? 0 : x->token[place];
            score[node] = (float)(probability * reach);
            if (!k) below = probability * reach, context[RUN + d] = drafted[node];
        }
        reach = below;
    }
    token[0] = x->token[x->length - 1], parent[0] = 0, out[0] = 1.0f;
    choose(score, drafted, rule, token, parent, out);
}

/* tokens [slots, T], length, active [slots] -> token, parent, score [slots, nodes + 1]; newest [V] is scratch.  Without
 * a tree (token and parent 0, score -inf) where not active.  Returns 0, or 1 where a number does not fit the tensors;
 * what was written then means nothing. */
int ngram(const int64_t *tokens, const int64_t *length, const uint8_t *active, int32_t *newest, const Rule *rule,
          int64_t slots, int64_t T, int64_t V, int64_t *token, int64_t *parent, float *score) {
    Text x;
    int64_t width = rule->nodes + 1;
    if (rule->columns > WINDOW || rule->depths > MAX_DEPTH) return 1;
    for (int64_t s = 0; s < slots; s++, token += width, parent += width, score += width) {
        if (!active[s]) {
            for (int64_t i = 0; i < width; i++) token[i] = parent[i] = 0, score[i] = -INFINITY;
            continue;
        }
        if (length[s] < 1 || length[s] > T) return 1;
        x.length = length[s] < rule->columns ? length[s] : rule->columns;
        x.shift = rule->columns - x.length;
        const int64_t *text = tokens + s * T + length[s] - x.length;
        int strange = 0;
        for (int64_t i = 0; i < x.length; i++) strange |= (uint64_t)text[i] >= (uint64_t)V;
        if (strange) return 1;
        for (int64_t i = 0; i < x.length; i++) x.token[i] = (int32_t)text[i];
        for (int i = 0; i < STRIDE; i++) x.token[x.length + i] = -1;
        for (int64_t i = 0; i < x.length; i++) newest[x.token[i]] = (int32_t)i;
        draft(&x, rule, newest, token, parent, score);
    }
    return 0;
}
