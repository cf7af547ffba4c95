/* What the comparisons of instantiated Programs share: reading elements, choosing rows, and copies
 * of what lies on a device. Internal to sample*.c. */
#ifndef KG_RUNTIME_SAMPLE_INTERNAL_H
#define KG_RUNTIME_SAMPLE_INTERNAL_H

#include "runtime/sample.h"

enum { KG_SAMPLE_COPIED = 512 << 20 };

/* Element `at` of a floating tensor on the host. */
double kg_sample_load(const kg_tensor *t, int64_t at);
/* Row i of n samples over total rows: both ends, and between them steps that share no factor with
 * tile sizes. */
int64_t kg_sample_pick(int64_t i, int64_t n, int64_t total);

/* A mirror is address space as large as the tensor; pages come with what is copied. */
typedef struct kg_mirror {
    const kg_tensor *of;
    size_t bytes; /* mapped; 0: none */
    kg_tensor view;
} kg_mirror;

size_t kg_mirror_extent(const kg_tensor *t); /* bytes from the first to the last element */
int kg_mirror_open(kg_mirror *m, const kg_tensor *t, kg_error *err);
void kg_mirror_close(kg_mirror *m);
/* Copies elements first to last. */
int kg_mirror_fetch(kg_mirror *m, kg_sample_copy copy, void *ctx, int64_t first, int64_t last,
                    kg_error *err);

#endif
