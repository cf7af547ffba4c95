/* The state of a loop, which is a fold over the journal, and what a strategy is. */
#ifndef KG_TUNE_LOOP_INTERNAL_H
#define KG_TUNE_LOOP_INTERNAL_H

#include "tune/answer.h"
#include "tune/loop.h"

enum { KG_NONE = -1, KG_MAX_LINES = 64 };

/* What verdicts say that are in the journal, before the search that gave them is over. */
typedef struct kg_evidence {
    bool any, full;
    int verdict;
    char *message;
    char *profile; /* what its kernels use, in words; NULL: the judge does not tell */
    double time_ns[KG_MAX_CASES], tuned_ns[KG_MAX_CASES];
} kg_evidence;

/* One Candidate's source with the defaults of its tunables. */
typedef struct kg_attempt {
    int exchange;
    int source;      /* in loop.sources; KG_NONE: its plan was refused */
    int same_as;     /* an earlier attempt with the same text, or KG_NONE */
    char name[160];  /* "<answer>.<i>.c" */
    char id[65];     /* of the Candidate; of the bare text when the plan was refused */
    char parent[65]; /* that it was edited from, or empty */
    char *text;
    char *message, *profile;
    char *counters; /* what a profiler says of its kernels; NULL: was not asked, or said nothing */
    bool judged, noted;
    bool profiled; /* a profiler was asked in this life */
    int verdict;   /* kg_verdict */
    bool full;
    double time_ns[KG_MAX_CASES];  /* as written */
    double tuned_ns[KG_MAX_CASES]; /* the best of its tunings */
    /* Becomes the above when the entry `judged` or `tuned` says that the search is over: a Run that
     * was stopped within it goes on from the same knowledge. */
    kg_evidence next;
} kg_attempt;

typedef enum kg_exchange_state { KG_ASKED, KG_ANSWERED, KG_GONE } kg_exchange_state;

/* A prompt and what came of it. */
typedef struct kg_exchange {
    char id[64];
    kg_prompt_kind kind;
    int line;   /* refine: which thread; branch: which round */
    int turn;   /* 0: the first of its line or idea */
    int parent; /* the attempt that it mends, or KG_NONE */
    int idea;   /* or KG_NONE */
    char *user;
    kg_exchange_state state;
    bool settled, followed; /* followed: a later exchange mends it */
    bool sent, told;        /* in this life */
    kg_buf complaint;
    /* Candidates whose machine code the answers ask for; what came of the first nlisted. */
    char (*wants)[65];
    size_t nwants, nlisted;
    kg_buf listings;
    bool listings_shown; /* in a later prompt */
} kg_exchange;

typedef struct kg_idea {
    char *text;
    int round, asked; /* implementations that were asked for */
} kg_idea;

/* Refine's thread. */
typedef struct kg_line {
    bool waiting;
    int turn, stale, last, exchange; /* last: the attempt to go on from; exchange: the newest */
    int reach;                       /* kg_loop_reach of the furthest */
    double best;
} kg_line;

typedef struct kg_loop_state kg_loop_state;

/* What is asked next. */
typedef struct kg_request {
    kg_prompt_kind kind;
    int line, turn, parent, idea;
} kg_request;

/* A strategy. It keeps its state in the loop's, changes it in `asked` and `settled` alone, and so
 * is what the journal makes it; an evolutionary one (islands, migration) would be a third of its
 * kind. */
typedef struct kg_strategy {
    const char *name;
    bool (*next)(const kg_loop_state *l, kg_request *out); /* false: wait for what is open */
    void (*asked)(kg_loop_state *l, int exchange);
    void (*settled)(kg_loop_state *l, int exchange);
    /* Whether numbers should be tuned now, before anything more is asked. */
    bool (*pause)(const kg_loop_state *l);
} kg_strategy;

extern const kg_strategy kg_strategy_refine, kg_strategy_branch;

struct kg_loop_state {
    const char *op_name;
    const kg_op *op;
    const kg_prompt *prompt;
    const kg_prompt_case *known; /* or NULL */
    size_t ncases;
    kg_journal *journal;
    const kg_loop_options *options;
    const kg_strategy *strategy;
    size_t slots;

    kg_exchange *exchanges;
    size_t nexchanges, exchanges_cap;
    kg_attempt *attempts;
    size_t nattempts, attempts_cap;
    kg_sources sources;
    kg_idea *ideas;
    size_t nideas;

    kg_line lines[KG_MAX_LINES]; /* refine */
    int round;                   /* branch: the present one; 0: none yet */
    int barren;                  /* beginnings or rounds since the last better Candidate */
    double best;                 /* cost of the best attempt; INFINITY */
    double best_at_round;
    int tuned_best;  /* the attempt whose numbers were tuned last, or KG_NONE */
    size_t failures; /* in a row, of questions that got no answer */
    size_t answers, failed;
    size_t read; /* journal entries that are folded in */
    size_t verdicts[KG_VERDICT_COUNT];
    int64_t began_ns, deadline_ns;
    double spent_before;
};

/* --- loop_state.c --- */
int kg_loop_begin(kg_loop_state *l, kg_error *err); /* folds the whole journal in */
void kg_loop_state_free(kg_loop_state *l);
/* A new prompt: into the journal and so into the state. */
int kg_loop_ask(kg_loop_state *l, const kg_request *r, kg_error *err);
/* Takes in what was added to the journal since: prompts, answers, verdicts, whoever added them. The
 * state changes here and in kg_loop_settle alone. */
int kg_loop_read(kg_loop_state *l, kg_error *err);
/* Settles what is answered and judged. */
void kg_loop_settle(kg_loop_state *l);
bool kg_loop_all_judged(const kg_loop_state *l, int exchange);
int kg_loop_find(const kg_loop_state *l, const char *prompt); /* or KG_NONE */
double kg_loop_spent(const kg_loop_state *l);
int kg_loop_note(kg_loop_state *l, const char *kind, kg_json *fields, kg_error *err);
void kg_loop_tell(const kg_loop_state *l, const kg_json *entry);

/* Whether the listings of an exchange are for the prompts of a line that is asked next. */
bool kg_loop_lists(const kg_loop_state *l, const kg_exchange *x, int line);
const kg_attempt *kg_loop_attempt_of(const kg_loop_state *l, const char *id); /* or NULL */

/* --- loop_prompt.c --- */
int kg_loop_text(const kg_loop_state *l, const kg_request *r, kg_buf *out, kg_error *err);
/* What came of an attempt, in one line. */
void kg_loop_result_line(const kg_loop_state *l, const kg_attempt *a, kg_buf *out);
/* Attempts that passed, the best first; at most n. */
size_t kg_loop_rank(const kg_loop_state *l, int *out, size_t n);
/* Lower is better: the mean over the Cases of log2 of time over floor (or of time alone); INFINITY
 * when it did not pass. */
double kg_loop_cost(const kg_loop_state *l, const kg_attempt *a);
/* What a Record says of the device: registers, spills, shared memory, occupancy, in words for a
 * prompt. The caller frees it; NULL: nothing. */
char *kg_loop_profile(const kg_json *record);
/* How far an attempt came: 0 its plan was refused, 1 it did not compile, 2 it ran, 3 it passed. */
int kg_loop_reach(const kg_attempt *a);
/* The attempt of an exchange that came furthest, or KG_NONE. */
int kg_loop_furthest(const kg_loop_state *l, int exchange);

#endif
