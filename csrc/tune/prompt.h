/* Puts together what a proposer is asked: the texts of kernels/prompts, the Task, what the search
 * knows (kernels/prompts/README.md has the order, and what goes first when it does not fit).
 *
 * A kg_prompt is read-only after it was opened. It reads files of the Task and of the prompts
 * folder, and whatever the caller gives as text; nothing else of the machine gets into a prompt. */
#ifndef KG_TUNE_PROMPT_H
#define KG_TUNE_PROMPT_H

#include "tune/contract.h"
#include "tune/search.h"

/* What the search knows of a Case; 0: not known. */
typedef struct kg_prompt_case {
    double floor_ns, bytes, flops;
    double torch_ns; /* a call of the reference itself, eager */
} kg_prompt_case;

typedef struct kg_prompt_task {
    const char *prompts_dir, *task_dir;
    const kg_op *op;
    int target;                  /* kg_device */
    const char *machine;         /* the hardware's numbers, in words; or NULL */
    const char *notes;           /* the user's own instruction; or NULL */
    const char *knowledge;       /* text of knowledge files; or NULL */
    const kg_prompt_case *cases; /* ncases of them; or NULL */
    size_t ncases;
    size_t max_tokens; /* of a whole prompt; 0: 24000 */
} kg_prompt_task;

/* A Candidate that is shown. All is borrowed. */
typedef struct kg_prompt_shown {
    const char *id, *text, *verdict, *message;
    const char *profile;   /* lines of a list: what its kernels use; or NULL */
    const char *counters;  /* lines of a list: what a profiler says of them; or NULL */
    const double *time_ns; /* a Case; NULL or 0: not timed */
    bool full;             /* judged on every input set */
} kg_prompt_shown;

typedef struct kg_prompt_idea {
    const char *text, *result;
} kg_prompt_idea;

typedef enum kg_prompt_kind {
    KG_PROMPT_FRESH,
    KG_PROMPT_REFINE,
    KG_PROMPT_IDEAS,
    KG_PROMPT_IMPLEMENT
} kg_prompt_kind;

typedef struct kg_prompt_state {
    kg_prompt_kind kind;
    const kg_prompt_shown *last; /* KG_PROMPT_REFINE: the attempt to mend; may be NULL */
    const char *complaint;       /* what of the last answer could not be used; or NULL */
    const char *listings;        /* machine code that was asked for; or NULL */
    const kg_prompt_shown *best; /* best first */
    size_t nbest;
    const kg_prompt_idea *ideas; /* all earlier ones, oldest first */
    size_t nideas;
    const char *idea; /* KG_PROMPT_IMPLEMENT */
    int count;        /* KG_PROMPT_IDEAS: how many */
} kg_prompt_state;

typedef struct kg_prompt kg_prompt;

int kg_prompt_open(const kg_prompt_task *task, kg_prompt **out, kg_error *err);
void kg_prompt_close(kg_prompt *p);
/* The part that is the same for all prompts of the Op. */
const char *kg_prompt_system(const kg_prompt *p);
/* The other part, appended to out. */
int kg_prompt_user(const kg_prompt *p, const kg_prompt_state *s, kg_buf *out, kg_error *err);
/* kgen's own count, for budgets of prompts and for comparing strategies: a token for three bytes,
 * rounded up, which is near what code takes and above what prose takes. */
size_t kg_prompt_tokens(size_t bytes);

const char *kg_prompt_kind_name(kg_prompt_kind kind); /* "fresh", "refine", "ideas", "implement" */
int kg_prompt_kind_parse(const char *name);           /* or -1 */

/* prompt_case.c: a time as people write it: "812 us", "28.6 ms". */
void kg_prompt_time(kg_buf *out, double ns);
/* One Case in words. json: cases/<i>.json. */
int kg_prompt_case_text(const kg_op *op, const char *json, size_t n, size_t index,
                        const kg_prompt_case *known, kg_buf *out, kg_error *err);

#endif
