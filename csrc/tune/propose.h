/* Proposers: where Candidates come from. A source is one file; with values for its tunables it is a
 * Candidate. */
#ifndef KG_TUNE_PROPOSE_H
#define KG_TUNE_PROPOSE_H

#include "tune/contract.h"

typedef struct kg_source {
    char *name; /* "softmax/rows.c", for people and for #line */
    char *text;
    size_t n;
    kg_plan *plan;
} kg_source;

typedef struct kg_sources {
    kg_source *items;
    size_t n, cap;
} kg_sources;

void kg_sources_free(kg_sources *s);

/* Adds one file; the error says what is wrong with its plan. */
int kg_sources_add_file(kg_sources *s, const char *path, const char *name, const kg_op *op,
                        kg_error *err);

/* The templates in <kernels_dir>/<family>/ whose plan is for this Op, target and at most this
 * architecture, in the order of their names. None is not an error: the Op has no template. A
 * template that cannot be read is one: kgen ships them. */
int kg_propose_builtin(const char *kernels_dir, const kg_op *op, int target,
                       const kg_constants *constants, kg_sources *out, kg_error *err);

/* Every combination of the plan's tunables, in the order of the plan's lists, thinned evenly to at
 * most `most`; the first is the default. The caller frees *out. */
int kg_tunings(const kg_plan *plan, size_t most, kg_tuning **out, size_t *n, kg_error *err);

/* "x86-64-v3" and "sm_90" against constants->arch; NULL fits. */
bool kg_arch_fits(const char *min_arch, int target, const kg_constants *constants);

#endif
