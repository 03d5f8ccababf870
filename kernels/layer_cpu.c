/* A whole decoder layer in one call: at a few rows, calling its parts from Python takes as long as half of them.
 *
 * The parts are those that can be called alone, so the bits are theirs.  bf16, with packed weights (linear_cpu.c).
 */
#include "math_cpu.h"

void rms_norm(const void *, const float *, void *, float *, int64_t, int64_t, float, int);
void rope_and_cache(const void *, const float *, const float *, const float *, const int64_t *, const int64_t *, float *,
                    float *, float *, float *, int64_t, int64_t, int64_t, int64_t, float, float, int);
void swiglu(const void *, void *, float *, int64_t, int64_t, int);
void tree_attention(const void *, const float *, const float *, const float *, void *);
void linear_product(const uint16_t *, const uint16_t *, const uint16_t *, const uint16_t *, uint16_t *, int64_t, int64_t,
                    int64_t);

/* Biases and qk_norm may be NULL; layer_cpu.py fills both structs in. */
typedef struct {
    const float *input_norm, *qk_norm, *post_norm;
    const uint16_t *qkv, *qkv_bias, *output, *output_bias, *gate_up, *gate_up_bias, *down, *down_bias;
} Weights;

/* What is the same in all layers of a pass: sizes, tables, and room for what lies between the parts. */
typedef struct {
    const float *cos, *sin;
    const int64_t *position, *cell;
    const void *attention; /* the Pass of attention_cpu.c */
    float *scratch, *q;    /* q [rows, q_heads, dim] */
    uint16_t *narrow;      /* [rows, the widest of hidden, intermediate and queries] */
    uint16_t *wide;        /* [rows, the wider of projections and gate with up] */
    uint16_t *middle;      /* [rows, hidden] */
    int64_t rows, hidden, intermediate, q_heads, kv_heads, dim;
    float scale, eps;
} Shape;

/* x [rows, hidden] -> out [rows, hidden]; keys and values go to key and value [cells, kv_heads, dim] */
void decoder_layer(const Weights *w, const Shape *s, const uint16_t *x, float *key, float *value, uint16_t *out) {
    int64_t rows = s->rows, queries = s->q_heads * s->dim;
    rms_norm(x, w->input_norm, s->narrow, s->scratch, rows, s->hidden, s->eps, 1);
    linear_product(s->narrow, w->qkv, w->qkv_bias, NULL, s->wide, rows, queries + 2 * s->kv_heads * s->dim, s->hidden);
    rope_and_cache(s->wide, s->cos, s->sin, w->qk_norm, s->position, s->cell, s->q, key, value, s->scratch, rows,
                   s->q_heads, s->kv_heads, s->dim, s->scale, s->eps, 1);
    tree_attention(s->attention, s->q, key, value, s->narrow);
    linear_product(s->narrow, w->output, w->output_bias, x, s->middle, rows, s->hidden, queries);
    rms_norm(s->middle, w->post_norm, s->narrow, s->scratch, rows, s->hidden, s->eps, 1);
    linear_product(s->narrow, w->gate_up, w->gate_up_bias, NULL, s->wide, rows, 2 * s->intermediate, s->hidden);
    swiglu(s->wide, s->narrow, s->scratch, rows, s->intermediate, 1);
    linear_product(s->narrow, w->down, w->down_bias, s->middle, out, rows, s->hidden, s->intermediate);
}
