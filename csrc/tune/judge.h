/* The judge: an Op, Cases, input sets with their oracles; Candidates come and get a Verdict with
 * its evidence.
 *
 * The Candidate runs in kgen-worker. The judge owns the inputs, the oracles, the buffers (lent to
 * the worker), the poison and the clock's use; oracles are never mapped into a worker. One kg_judge
 * is of one thread at a time, but for kg_judge_prepare. kg_stop_wanted ends any call with KG_EINTR.
 */
#ifndef KG_TUNE_JUDGE_H
#define KG_TUNE_JUDGE_H

#include "tune/compare.h"
#include "tune/contract.h"
#include "tune/listing.h"
#include "tune/timing.h"
#include "tune/verdict.h"

typedef struct kg_judge kg_judge;

typedef struct kg_judge_options {
    int device;         /* kg_device; Cases and Candidates must be of it */
    int index;          /* of the GPU, as torch counts them */
    uint32_t threads;   /* of a CPU's worker; 0: the CPUs that this process may use */
    char arch[24];      /* "x86-64-v3"; empty: the device's own, which a GPU's must be */
    char worker[512];   /* kgen-worker; empty: $KGEN_WORKER, else beside this library */
    int64_t timeout_ms; /* the most that one call may take; 0: 10 s, or more where the baseline is
                           slow */
    int64_t memory; /* bytes of outputs and workspace of one call; 0: half of what the device has
                       free */
} kg_judge_options;

int kg_judge_open(const char *op_json, size_t n, const char *what, const kg_judge_options *options,
                  kg_judge **out, kg_error *err);
void kg_judge_close(kg_judge *j);
const kg_op *kg_judge_op(const kg_judge *j);
const kg_constants *kg_judge_constants(const kg_judge *j);
const char *kg_judge_arch(const kg_judge *j);
int kg_judge_target(const kg_judge *j); /* kg_device */

int kg_judge_add_case(kg_judge *j, const char *case_json, size_t n, const char *what, size_t *index,
                      kg_error *err);
size_t kg_judge_cases(const kg_judge *j);
const kg_case *kg_judge_case(const kg_judge *j, size_t index);
/* What the contract says that outputs are (data NULL); n of them. */
int kg_judge_outputs(const kg_judge *j, size_t index, kg_tensor out[KG_MAX_OUTPUTS], size_t *n,
                     kg_error *err);
/* The slowest baseline (for `too_slow`) and the bytes that must move (for `implausible`; 0: all
 * inputs and outputs). */
int kg_judge_set_limits(kg_judge *j, size_t index, double slowest_baseline_ns, int64_t bytes,
                        kg_error *err);

/* One input set with its oracle. Everything is borrowed until the sets are cleared or the judge is
 * closed. A GPU's judge takes addresses of the host and of its own device, which must be written
 * out (synchronised) before they come here. */
typedef struct kg_judge_set {
    const char *name; /* "uniform"; copied */
    /* One for each tensor argument of the contract in order (NULL: absent), then one for each
     * captured tensor: the address of the first element, laid out with the Case's strides.
     * Arguments of one dtype, shape and strides at one address are one memory for the Candidate,
     * too; such a set is never timed. */
    const void *const *inputs;
    size_t ninputs;
    /* One for each output, in the output's own memory order: doubles for floating outputs, int64
     * for integers and bool. NULL: an optional output that is not wanted (the same ones in every
     * set of a Case). */
    const void *const *oracles;
    size_t noutputs;
    const kg_errors *torch_errors; /* one for each output; NULL: none known, taken as 0 */
    const kg_errors *slack; /* what each output may err beyond the tolerance, because of how its
                             * inputs are conditioned; NULL: nothing */
    /* What the reference gave (dtype and sizes), held against the contract; NULL: not known. */
    const kg_tensor *reference;
} kg_judge_set;

int kg_judge_add_set(kg_judge *j, size_t index, const kg_judge_set *set, kg_error *err);
void kg_judge_clear_sets(kg_judge *j, size_t index);

typedef struct kg_judge_request {
    const char *text; /* the source */
    size_t n;
    const char *name;          /* "softmax.c", for messages */
    const kg_tuning *tuning;   /* NULL: the defaults, or tunables */
    const char *tunables_json; /* NULL: the defaults */
    bool any_size;             /* build for any size: nothing is specialised */
    bool all_sets;             /* else the first of each Case */
    uint32_t reps;             /* timed calls; 0: no timing */
} kg_judge_request;

typedef struct kg_judge_report kg_judge_report;

/* The Candidate's Verdict. A bad Candidate is no error of this call. */
int kg_judge_run(kg_judge *j, const kg_judge_request *request, kg_judge_report **out,
                 kg_error *err);
void kg_judge_report_free(kg_judge_report *r);
kg_verdict kg_judge_verdict(const kg_judge_report *r);
const char *kg_judge_message(const kg_judge_report *r);
/* Median of a Case's times, in ns; 0 when it was not timed or is not for this Case. */
double kg_judge_time(const kg_judge_report *r, size_t index);
/* A Record without version; the caller's. */
int kg_judge_record(const kg_judge_report *r, kg_json **out, kg_error *err);

/* Compiles into the cache what kg_judge_run will need. Several threads may call it at once, while
 * no Case is added. A Candidate that fails is KG_OK: it fails again when it is judged.
 * KG_ENOTFOUND: it is for none of the Cases. */
int kg_judge_prepare(const kg_judge *j, const kg_judge_request *request, kg_error *err);

/* Appends the machine code that a Candidate comes to for the first Case that it is for, or in words
 * why there is none: it does not compile, or no disassembler is here. As kg_judge_prepare for
 * threads. */
int kg_judge_listing(const kg_judge *j, const kg_judge_request *request,
                     const kg_listing_options *o, kg_buf *out, kg_error *err);

/* What a search asks about its best Candidate: text (size bytes) gets lines of a list, or stays
 * empty. Called on the thread that searches, between judging. */
typedef int (*kg_profiler)(void *ctx, const char *id, char *text, size_t size);
void kg_judge_set_profiler(kg_judge *j, kg_profiler profiler, void *ctx); /* NULL: none */
bool kg_judge_has_profiler(const kg_judge *j);
int kg_judge_profile(const kg_judge *j, const char *id, kg_buf *out, kg_error *err);

/* Whether a plan with these values is for some Case: KG_ENOTFOUND when `require` comes out 0 for
 * all, else KG_OK, also where binding fails (judging says how). Compiles nothing. */
int kg_judge_fits(const kg_judge *j, const kg_plan *plan, const kg_tuning *tuning, kg_error *err);

/* Trivial answers that would pass on some input set of a Case: a JSON list of objects {"answer",
 * "output", "set"}. When it is not empty, the Task is degenerate. */
int kg_judge_trivial(const kg_judge *j, size_t index, kg_json **out, kg_error *err);

/* How far n elements are from their oracle, measured where the judge's device reaches both. */
int kg_judge_errors(kg_judge *j, int dtype, const void *out, const void *oracle, size_t n,
                    kg_comparison *result, kg_error *err);

#endif
