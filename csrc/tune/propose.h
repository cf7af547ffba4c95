/* Proposers: where Candidates come from. A source is one file; with values for its tunables it is a
 * Candidate. */
#ifndef KG_TUNE_PROPOSE_H
#define KG_TUNE_PROPOSE_H

#include "tune/contract.h"
#include "tune/journal.h"
#include "tune/llm.h"

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

/* The same of a text. */
int kg_sources_add_text(kg_sources *s, const char *text, size_t n, const char *name,
                        const kg_op *op, kg_error *err);

/* The templates in <kernels_dir>/<family>/ whose plan is for this Op, target and at most this
 * architecture, in the order of their names. None is not an error: the Op has no template. A
 * template that cannot be read is one: kgen ships them. */
int kg_propose_builtin(const char *kernels_dir, const kg_op *op, int target,
                       const kg_constants *constants, kg_sources *out, kg_error *err);

/* Every combination of the plan's tunables, in the order of the plan's lists, thinned evenly to at
 * most `most`; the first is the default. The caller frees *out. */
int kg_tunings(const kg_plan *plan, size_t most, kg_tuning **out, size_t *n, kg_error *err);

/* A proposer that is asked: a model behind an endpoint, or whoever writes files. What it is asked
 * and what it answers is in the journal before it is used. */
typedef struct kg_proposal {
    char prompt[64];    /* the id of what was asked */
    bool answered;      /* it is in the journal; else message says why not */
    bool again;         /* unanswered for now: a later life of the Run may ask it again */
    bool fatal;         /* nothing more can be asked */
    bool unreachable;   /* of fatal: there is no way to whoever answers from this machine */
    bool out_of_budget; /* not even one more */
    bool done;          /* whoever answers will answer nothing more; prompt is empty */
    char message[512];
} kg_proposal;

typedef struct kg_proposer {
    void *ctx;
    size_t slots; /* prompts that are worth having open at once */
    int (*ask)(void *ctx, const char *id, const char *system, const char *user, kg_error *err);
    /* KG_OK: *out is an answer or a failure; KG_ETIMEOUT: none within wait_ms. */
    int (*collect)(void *ctx, int wait_ms, kg_proposal *out, kg_error *err);
    /* What came of an answer, in words; may be NULL. */
    void (*told)(void *ctx, const char *answer, const char *text);
    void (*close)(void *ctx); /* may be NULL */
} kg_proposer;

/* "x86-64-v3" and "sm_90" against constants->arch; NULL fits. */
bool kg_arch_fits(const char *min_arch, int target, const kg_constants *constants);

/* What is odd about an answer, in words for the next prompt; "" when nothing is. */
const char *kg_answer_oddity(bool tool_calls, const char *finish);

/* propose_llm.c: options are borrowed. What earlier lives of the Run spent on this Op is taken from
 * the journal. */
int kg_propose_llm(const char *op, const kg_llm_options *options, kg_journal *journal,
                   int64_t deadline_ns, kg_proposer *out, kg_error *err);
/* What a Run spent on an Op: what was charged, and the worst case of what was sent and never came
 * back. */
kg_spend kg_journal_spent(const kg_journal *journal, const char *op);

/* propose_files.c: prompts to <run>/prompts, answers from <run>/answers; slots: how many prompts
 * are open at once. agent_md: the text of the README that is put beside the prompts. anew: whoever
 * goes on with the Run wants more, so an end mark of an earlier life goes. */
int kg_propose_files(const char *op, const char *run_dir, const char *agent_md, size_t slots,
                     bool anew, kg_journal *journal, kg_proposer *out, kg_error *err);
/* Of it only what tells: verdicts to <run>/verdicts, for a stage that asks nothing. */
int kg_propose_nothing(const char *run_dir, kg_proposer *out, kg_error *err);

#endif
