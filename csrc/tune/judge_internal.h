/* What the files of the judge share. */
#ifndef KG_TUNE_JUDGE_INTERNAL_H
#define KG_TUNE_JUDGE_INTERNAL_H

#include "tune/judge.h"
#include "tune/judge_device.h"
#include "tune/slots.h"
#include "tune/worker_client.h"

enum {
    KG_MAX_INPUTS = KG_MAX_ARGS + KG_MAX_CAPTURED,
    KG_STACK = 512 << 10,
    /* Frames between the thread's start and the Candidate, and the C library's own part of a stack.
     */
    KG_STACK_OURS = 64 << 10
};

typedef struct kg_set {
    char *name;
    const void *inputs[KG_MAX_INPUTS];
    /* Whose memory an argument is given: its own, or another's with the same values. */
    uint8_t owner[KG_MAX_INPUTS];
    bool shares; /* some argument has another's */
    const void *oracles[KG_MAX_OUTPUTS];
    kg_errors torch_errors[KG_MAX_OUTPUTS];
    kg_errors slack[KG_MAX_OUTPUTS]; /* on top of the tolerance */
} kg_set;

/* One tensor that the worker reads: an argument or a captured tensor. */
typedef struct kg_input {
    bool present;
    int arg, captured; /* index of the one or the other; -1 */
    const char *name;
    kg_tensor shape;
    size_t bytes, align;
} kg_input;

typedef struct kg_judged_case {
    kg_case *c;
    kg_dims dims;
    size_t ninputs, noutputs;
    kg_input inputs[KG_MAX_INPUTS];
    kg_tensor outputs[KG_MAX_OUTPUTS]; /* data NULL */
    int64_t reduction, bytes;          /* of the Case; bytes that must move */
    int64_t footprint;                 /* bytes of all inputs and outputs */
    int64_t output_bytes;              /* of the outputs that are wanted */
    bool bytes_given;                  /* by kg_judge_set_limits */
    double flops;                      /* 0: not stated */
    double slowest_baseline_ns;
    char *disagreement; /* between contract and reference; NULL: none */
    kg_set *sets;
    size_t nsets, sets_cap;
} kg_judged_case;

struct kg_judge {
    const kg_judge_device *device;
    void *state;          /* the device's own */
    kg_profiler profiler; /* or NULL */
    void *profiler_ctx;
    kg_op *op;
    kg_judge_options options;
    kg_constants constants;
    size_t threads; /* of the judge's own loops */
    bool reads_all; /* the Op needs every element of its inputs */
    kg_judged_case *cases;
    size_t ncases, cases_cap;
    kg_slot inputs[KG_MAX_INPUTS];
    kg_slot outputs[2][KG_MAX_OUTPUTS]; /* two, so that two runs can be compared */
    kg_slot workspace[KG_MAX_WORKSPACE];
    /* What the input slots hold now, and its hashes where the device takes any. */
    size_t resident_case, resident_set;
    kg_hash128 resident_hash[KG_MAX_INPUTS];
};

typedef struct kg_case_report {
    bool judged; /* else not for this Case (why), or not reached */
    bool reached;
    kg_verdict verdict;
    char *why;
    double norm_err, max_err, torch_norm_err, torch_max_err;
    bool allclose, timed;
    size_t sets;
    kg_summary time;
    kg_summary warm;  /* with what the call before left in the caches; n 0: not measured */
    kg_json *measure; /* what its kernels use and how it was timed; NULL: nothing to tell */
    double floor_ns;  /* 0: too small to have one */
    kg_hash128 image;
} kg_case_report;

struct kg_judge_report {
    kg_verdict verdict;
    kg_buf message;
    kg_json *details; /* an object, or NULL */
    char id[65], arch[24], name[128];
    const char *op; /* the judge's */
    kg_json *tunables;
    size_t ncases;
    kg_case_report *cases;
    const kg_judge *judge; /* borrowed, for the Record */
    unsigned flags;
    double compile_ms, run_ms;
};

/* One Candidate at work: read-only while it is judged. */
typedef struct kg_candidate {
    const kg_judge_request *request;
    kg_plan *plan;
    kg_tuning tuning;
} kg_candidate;

/* A Candidate bound to a Case, with a worker that has it loaded. Buffers of the worker: inputs,
 * then outputs A, then outputs B, then workspace; absent ones are -1. */
typedef struct kg_bench {
    kg_judge *j;
    kg_judged_case *jc;
    const kg_candidate *cand;
    kg_instance *inst;
    kg_worker *worker;
    size_t nslots;
    kg_slot *slots[KG_W_MAX_BUFFERS];
    const char *names[KG_W_MAX_BUFFERS];
    const kg_tensor *shapes[KG_W_MAX_BUFFERS]; /* NULL for workspace */
    uint64_t at[KG_W_MAX_BUFFERS];
    int input[KG_MAX_INPUTS], output[2][KG_MAX_OUTPUTS], workspace[KG_MAX_WORKSPACE];
    uint64_t poison[2][KG_MAX_OUTPUTS];
    size_t left[2]; /* the outputs hold the results of this set and one; 0: nothing that is known */
    char programs[KG_W_MAX_PROGRAMS];
    size_t programs_bytes;
    int64_t limit_ms;     /* one call is killed after it */
    double slow_ns;       /* and is too slow after this */
    size_t set;           /* the one that runs, for messages */
    const kg_buf *loaded; /* the image that the worker has, where it may be needed again */
    bool slow_once;       /* the last call took too long, and is being made again */
    bool diagnosing;      /* a second run after a death: only what it shows counts */
    double least_ns;      /* what no time is believed below 0.9 of */
    bool floor_counts;    /* it is large enough to hold a time against */
    kg_judge_report *report;
    kg_case_report *cr;
} kg_bench;

/* How a call is made. */
typedef struct kg_mode {
    uint32_t split; /* KG_SPLIT_* */
    uint32_t warm;  /* untimed calls before the timed one */
    bool cold;      /* the device's caches are emptied before it */
    bool graph;     /* the timed call is a replay of a graph */
    bool stale;     /* outputs hold the results of another set, where there are any, not poison */
    bool keep;      /* workspace, stacks and registers are as the call before left them */
} kg_mode;

/* --- judge.c --- */
void kg_fake_addresses(const kg_judged_case *jc, kg_call *call);

/* --- judge_candidate.c: from a source to images --- */
int kg_candidate_read(const kg_judge *j, const kg_judge_request *r, kg_candidate *out,
                      kg_error *err);
void kg_candidate_clear(kg_candidate *c);
/* KG_ENOTFOUND: the plan is not for this Case. */
int kg_candidate_bind(const kg_judge *j, const kg_candidate *c, const kg_judged_case *jc,
                      kg_instance **out, kg_error *err);

/* --- judge_bench.c: buffers, worker, runs. A negative status is ours; otherwise *ok says whether
 * the Candidate is still in, and when not its verdict is in the report --- */
int kg_bench_open(kg_bench *b, const kg_buf *image, bool *ok, kg_error *err);
/* well: the worker did all that it was asked for. */
void kg_bench_close(kg_bench *b, bool well);
/* Puts the set's inputs into the buffers. */
int kg_bench_inputs(kg_bench *b, size_t set, kg_error *err);
/* Poisons outputs `side` and the workspace, runs, looks for death and for broken guards. */
int kg_bench_run(kg_bench *b, int side, const kg_mode *mode, kg_call_time *time, bool *ok,
                 kg_error *err);
/* Compares outputs `side` with the oracle of the present set. */
int kg_bench_compare(kg_bench *b, int side, bool *ok, kg_error *err);
/* Both sides hold outputs of the same inputs. */
int kg_bench_same(kg_bench *b, bool *ok, kg_error *err);

/* --- judge_elsewhere.c: as other machines and callers would call it --- */
int kg_bench_elsewhere(kg_bench *b, const kg_buf *image, bool *ok, kg_error *err);

/* --- judge_time.c: what timing has in common --- */
enum { KG_MAX_REPS = 1024 };
/* n timed calls, each on a set at random, each compared as a whole. */
int kg_time_calls(kg_bench *b, const kg_mode *mode, kg_call_time *times, size_t n, bool *ok,
                  kg_error *err);
/* Whether the time can be true: no floor that counts, or at least 0.9 of it. */
bool kg_time_plausible(const kg_bench *b);
int kg_bench_time(kg_bench *b, bool *ok, kg_error *err);

/* --- judge_verdict.c: words --- */
/* Sets the report's verdict and message: "case 0, set 1 (uniform): " and the text. */
void kg_condemn(kg_bench *b, kg_verdict v, const char *fmt, ...)
    __attribute__((format(printf, 3, 4)));
int kg_condemn_values(kg_bench *b, kg_verdict v, size_t output, int side, const kg_comparison *c,
                      kg_tolerance t, const char *what, kg_error *err);
/* What an output may err on a set. scale: of its oracle, as in kg_comparison. */
kg_tolerance kg_set_tolerance(const kg_judged_case *jc, size_t set, size_t output, double scale);
const char *kg_set_label(const kg_bench *b, char *out, size_t n);

#endif
