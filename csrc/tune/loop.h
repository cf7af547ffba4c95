/* The closed loop over one Op: a proposer writes Candidates, the evaluator judges them, a strategy
 * decides what is asked next; the numbers of the best structures are tuned by kg_search.
 *
 * Everything is in the journal before it is used, and a loop that begins reads the journal first:
 * what was asked, answered and judged in an earlier life of the Run is not asked, paid or judged
 * again. */
#ifndef KG_TUNE_LOOP_H
#define KG_TUNE_LOOP_H

#include "tune/prompt.h"
#include "tune/propose.h"
#include "tune/search.h"

typedef struct kg_loop_options {
    const char *strategy; /* "refine", "branch" */
    int64_t budget_ms;    /* over all lives of the Run */
    int compile_jobs;
    size_t max_candidates; /* of the last tuning, a source; 0: 96 */
    int ideas, per_idea;   /* branch: a round; 0: 4 and 2 */
    int patience; /* refine: answers of a line without progress, before it begins anew; 0: 4 */
    int barren;   /* beginnings (refine) or rounds (branch) without a better Candidate,
                     before it ends; 0: 6 and 3 */
    double target_share; /* it ends when the best takes at most floor / this; 0: 0.95 */
    const char *about;   /* JSON for the journal: who is asked and what of the Run's text it gets */
    void (*progress)(void *ctx, const char *entry); /* as in kg_search_options */
    void *progress_ctx;
} kg_loop_options;

/* Where the wall clock of a life went, in ns. What is none of wait, compile and judge is the
 * engine's own: reading answers, writing prompts, the journal. */
typedef struct kg_loop_clock {
    int64_t all;
    int64_t wait;           /* for answers, with nothing to judge */
    int64_t compile, judge; /* while questions were out and while none was */
} kg_loop_clock;
kg_json *kg_loop_clock_json(const kg_loop_clock *c); /* life_s, wait_s, compile_s, judge_s */

typedef struct kg_loop_result {
    /* The sources that came to the last tuning; their texts are borrowed from `all`. */
    kg_sources finalists, all;
    kg_search_result search; /* winners index finalists; verdicts are those of the whole loop */
    size_t prompts, answers, failed, candidates;
    size_t open, unjudged; /* prompts without an answer, Candidates without a verdict */
    kg_loop_clock clock;   /* of this life */
    bool over;             /* nothing more is to be asked; ended_by says why */
    char ended_by[512];    /* why it ended, for people */
} kg_loop_result;

/* known: ncases of the evaluator, or NULL. KG_EINTR leaves *out as far as it came. A proposer that
 * cannot be asked at all is KG_EINVAL with its message, unless there are Candidates already. */
int kg_loop(const char *op_name, const kg_op *op, const kg_prompt *prompt,
            const kg_prompt_case *known, kg_proposer *proposer, const kg_evaluator *evaluator,
            kg_journal *journal, const kg_loop_options *options, kg_loop_result *out,
            kg_error *err);
void kg_loop_result_free(kg_loop_result *r);

/* The stages of a loop, for machines that have either a network or a device. Each reads the
 * journal, adds to it and ends; a Run in which they take turns is the Run that kg_loop would have
 * made. */
typedef enum kg_stage {
    KG_STAGE_ADVANCE,  /* decides what is asked next: neither proposer nor evaluator */
    KG_STAGE_PROPOSE,  /* asks what is open: a proposer */
    KG_STAGE_EVALUATE, /* judges what came, tunes between rounds: an evaluator */
    KG_STAGE_FINISH    /* the last tuning: an evaluator; out has winners as kg_loop gives them */
} kg_stage;

/* slots: prompts open at once. What a stage does without may be NULL. */
int kg_loop_stage(kg_stage stage, const char *op_name, const kg_op *op, const kg_prompt *prompt,
                  const kg_prompt_case *known, size_t ncases, size_t slots, kg_proposer *proposer,
                  const kg_evaluator *evaluator, kg_journal *journal,
                  const kg_loop_options *options, kg_loop_result *out, kg_error *err);

/* What would be asked next, without asking: system, a blank line and the user's part, appended to
 * out. KG_ENOTFOUND: nothing would be. */
int kg_loop_preview(const char *op_name, const kg_op *op, const kg_prompt *prompt,
                    const kg_prompt_case *known, size_t ncases, kg_journal *journal,
                    const kg_loop_options *options, kg_buf *out, kg_error *err);

/* When the budget of time ends for this life of the Run (kg_now_ns): what the journal says earlier
 * lives spent is taken off. *spent_s may be NULL. */
/* The last part of it (of budget_ms) is kept for tuning numbers: nothing is asked then. */
int64_t kg_loop_tail_ns(int64_t budget_ms);
int64_t kg_loop_deadline(const kg_journal *journal, const char *op, int64_t budget_ms,
                         double *spent_s);

#endif
