/* The seam between the judge and a kind of device.
 *
 * The core (judge.c, judge_bench.c, judge_run.c, judge_verdict.c) knows no device: it asks through
 * one table, and judge_cpu*.c and judge_cuda*.c are the two that there are. Addresses (of a slot's
 * data, of a set's inputs and oracles) are the device's own or the host's; the core never looks
 * behind one, it asks `view`. Functions return a status, which is ours: what a Candidate did wrong
 * is a verdict in the report. */
#ifndef KG_TUNE_JUDGE_DEVICE_H
#define KG_TUNE_JUDGE_DEVICE_H

#include "base/hash.h"
#include "tune/judge.h"
#include "tune/slots.h"
#include "tune/worker_client.h"

struct kg_bench;
struct kg_candidate;
struct kg_judged_case;

/* A guard band that is not whole. */
typedef struct kg_broken {
    bool broken;
    size_t slot;   /* index in the list that was asked about */
    int64_t where; /* offset from the data's begin: negative before it, at least `bytes` after it */
} kg_broken;

typedef struct kg_judge_device {
    int target;             /* kg_device */
    size_t output_align;    /* as torch's allocator gives */
    const char *second_run; /* how the second of two runs differed from the first, for messages */
    const char *source;     /* "kernel.c": the file's name in the registry */

    /* Settles options, constants and threads; keeps what it needs in j->state. */
    int (*open)(kg_judge *j, kg_error *err);
    void (*close)(kg_judge *j);
    /* Whether Candidates can be compiled here; else who is missing. */
    int (*ready)(const kg_judge *j, kg_error *err);

    /* --- memory --- */
    int (*place)(kg_judge *j, kg_slot *s, size_t bytes, size_t align, kg_error *err);
    void (*drop)(kg_judge *j, kg_slot *s);
    /* Slots of which a worker cannot write a byte are left out. */
    int (*guards)(kg_judge *j, const kg_slot *const *slots, size_t n, kg_broken *out,
                  kg_error *err);
    int (*copy)(kg_judge *j, void *to, const void *from, size_t n, kg_error *err);
    int (*fill)(kg_judge *j, void *to, int dtype, size_t n, uint64_t pattern, kg_error *err);
    /* NULL: a worker cannot write an input at all. */
    int (*hash)(kg_judge *j, const void *from, size_t n, kg_hash128 *out, kg_error *err);
    int (*compare)(kg_judge *j, int dtype, const void *out, const void *oracle, size_t n,
                   uint64_t poison, kg_comparison *result, kg_error *err);
    /* The first byte that differs, or -1. */
    int (*differ)(kg_judge *j, const void *a, const void *b, size_t n, int64_t *at, kg_error *err);
    /* n bytes for the host to read: at `from` itself, or copied to scratch (room for n). */
    int (*view)(const kg_judge *j, const void *from, size_t n, void *scratch, const void **out,
                kg_error *err);
    /* The sets' memory may go away now; may be NULL. */
    void (*forget)(kg_judge *j);

    /* --- a Candidate on a Case --- */
    /* KG_ECOMPILE, KG_EUNSUPPORTED: it is out, messages says why. */
    int (*image)(const kg_judge *j, const struct kg_candidate *c, const struct kg_judged_case *jc,
                 const kg_instance *inst, kg_buf *image, kg_buf *messages, kg_error *err);
    /* Around everything that runs on the device. KG_EINTR: kg_stop_wanted. */
    int (*begin)(kg_judge *j, kg_error *err);
    void (*end)(kg_judge *j);
    int (*worker)(struct kg_bench *b, kg_worker **out, kg_error *err);
    /* Of the Candidate: a worker that is well, to be had again for its next Case; and the end of
     * its last. NULL: each Case has a worker of its own. */
    void (*keep)(kg_judge *j, kg_worker *w);
    void (*done)(kg_judge *j);
    /* Loads the image into b->worker; *ok false: the verdict is in the report. */
    int (*load)(struct kg_bench *b, const kg_buf *image, bool *ok, kg_error *err);
    /* The worker died (b->worker says how): the verdict, and the device as it was before. */
    int (*died)(struct kg_bench *b, kg_error *err);
    /* Times the Candidate into b->cr; *ok false: the verdict is in the report. */
    int (*time)(struct kg_bench *b, bool *ok, kg_error *err);

    /* What a Record says of the machine: device, driver, compiler, flags. */
    void (*environment)(const kg_judge *j, unsigned flags, kg_json *o);
} kg_judge_device;

extern const kg_judge_device kg_judge_cpu, kg_judge_cuda;

#endif
