/* The vector loops under compare.c. */
#ifndef KG_TUNE_COMPARE_KERNELS_H
#define KG_TUNE_COMPARE_KERNELS_H

#include <stdbool.h>
#include <stddef.h>

/* What a block adds up to. */
typedef struct kg_block {
    double d2, r2;       /* sums of squares: of the difference, of the oracle */
    double worst, scale; /* largest magnitudes: of the difference, of the oracle */
    size_t far;          /* outside of |d| <= close + close * |oracle| */
    bool odd;            /* something is not finite: go through it element by element */
} kg_block;

/* n is a multiple of 8; adds to *to. */
typedef void (*kg_block_loop)(const void *out, const double *oracle, size_t n, double close,
                              kg_block *to);

typedef struct kg_loops {
    kg_block_loop f32, f64, f16, bf16;
} kg_loops;

/* The fastest for this CPU. */
const kg_loops *kg_compare_loops(void);

#endif
