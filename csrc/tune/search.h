/* The search over one Op's Cases: numbers by successive halving over the tunables of the sources at
 * hand.
 *
 * The engine knows neither device nor judge: it asks an evaluator, so that the same code drives CPU
 * and GPU and is tested against a made-up one. Everything that was learnt is in the journal before
 * it is used; a Run that was killed goes on from there and asks nothing twice. */
#ifndef KG_TUNE_SEARCH_H
#define KG_TUNE_SEARCH_H

#include "tune/journal.h"
#include "tune/propose.h"
#include "tune/verdict.h"

#define KG_MAX_CASES 64
#define KG_MAX_LANES 16

typedef enum kg_level {
    KG_LEVEL_QUICK, /* one input set, and a short timing: enough to drop the slow half */
    KG_LEVEL_LONG,  /* one input set, and a longer timing */
    KG_LEVEL_FULL   /* every input set, and the timing that the Record shows */
} kg_level;

/* What the evaluator found. Everything but verdict may be absent. */
typedef struct kg_outcome {
    kg_verdict verdict;
    double time_ns[KG_MAX_CASES]; /* median a Case; 0: not for this Case, or not timed */
    kg_json *record;              /* at KG_LEVEL_FULL: a Record without version; the caller's */
    char message[4096];
} kg_outcome;

typedef struct kg_evaluator {
    void *ctx;
    size_t ncases;
    size_t lanes; /* how many Candidates can be judged at once; 0 and 1: one */
    /* Whether the values are for some Case, without compiling: KG_OK or KG_ENOTFOUND. NULL: all
     * are. */
    int (*fits)(void *ctx, const kg_source *source, const kg_tuning *tuning, kg_error *err);
    /* Compiles ahead; several threads call it at once. Failure shows again when it is judged.
     * KG_ENOTFOUND: `require` holds for no Case, and the Candidate is dropped without a verdict. */
    int (*prepare)(void *ctx, const kg_source *source, const kg_tuning *tuning, kg_error *err);
    /* lane < lanes: calls of one lane never overlap. */
    int (*judge)(void *ctx, size_t lane, const kg_source *source, const kg_tuning *tuning,
                 kg_level level, kg_outcome *out, kg_error *err);
    /* Appends lines of a list: what a profiler says of the Candidate with this id, which passed at
     * KG_LEVEL_FULL; nothing: it says nothing. NULL: there is no profiler. */
    int (*profile)(void *ctx, const char *id, kg_buf *out, kg_error *err);
    /* Appends the machine code in words, or why there is none. NULL: this evaluator has none. */
    int (*listing)(void *ctx, const kg_source *source, const kg_tuning *tuning, kg_buf *out,
                   kg_error *err);
} kg_evaluator;

typedef struct kg_search_options {
    int64_t budget_ms; /* wall clock for this Op over all lives of the Run; what is under way is
                          finished */
    /* Of whoever searches many times within one budget: kg_now_ns when this life of the Run began,
     * and the seconds that earlier lives spent. 0: this search keeps the clock itself. */
    int64_t began_ns;
    double spent_s;
    size_t max_candidates; /* a source; 0: 96 */
    int compile_jobs;      /* threads that prepare; 0: the CPUs of this process */
    /* Every journal entry of this search, as canonical JSON; also what was resumed. May be NULL. */
    void (*progress)(void *ctx, const char *entry);
    void *progress_ctx;
} kg_search_options;

/* The best Candidate for one Case; source < 0: none passed. */
typedef struct kg_winner {
    int source;
    kg_tuning tuning;
    char id[65];
    double time_ns;
    kg_json *record; /* borrowed from the result */
} kg_winner;

typedef struct kg_search_result {
    size_t ncases;
    kg_winner winners[KG_MAX_CASES];
    size_t judged, resumed,
        dropped; /* Candidates judged now, taken from the journal, not for any Case */
    size_t verdicts[KG_VERDICT_COUNT];
    bool out_of_time;
    double spent_s;               /* of the budget, earlier lives of the Run included */
    int64_t compile_ns, judge_ns; /* wall clock of this search; the rest of it is its own */
    kg_json **records;
    size_t nrecords;
} kg_search_result;

/* op names the Op in the journal. Ends after the present Candidate with KG_EINTR once
 * kg_stop_wanted() (base/stop.h), and leaves *out as far as it came. */
int kg_search(const char *op, const kg_sources *sources, const kg_evaluator *evaluator,
              kg_journal *journal, const kg_search_options *options, kg_search_result *out,
              kg_error *err);
void kg_search_result_free(kg_search_result *r);

#endif
