/* The judge's side of worker/protocol.h: one worker, from its start to its death.
 *
 * A worker is for one Candidate and on a CPU for one Case, and is never used again after it: what a
 * Candidate spoils dies with it. A GPU's takes the Candidate's Cases in turn, since a context takes
 * longer to make than most Cases to judge: between two its image and its buffers go, and what it
 * could have kept is what it could have kept between two calls. All calls are of one thread.
 * Nothing that a worker sends is believed beyond its numbers. */
#ifndef KG_TUNE_WORKER_CLIENT_H
#define KG_TUNE_WORKER_CLIENT_H

#include <sys/types.h>

#include "runtime/plan.h"
#include "tune/slots.h"
#include "worker/protocol.h"

typedef struct kg_worker kg_worker;

typedef struct kg_worker_options {
    const char *path; /* kgen-worker; NULL: $KGEN_WORKER, else beside this library */
    int device;       /* kg_device */
    uint32_t index;   /* of the GPU */
    uint32_t threads;
    uint64_t stack; /* bytes a thread */
    int64_t cpu_s;  /* the most processor time of the process; 0: none */
} kg_worker_options;

/* How a worker ended. */
typedef struct kg_death {
    bool timed_out;       /* it did not answer in time and was killed */
    bool device_reported; /* its GPU failed (stage, launch, result, name, asked) */
    uint32_t stage, launch, result;
    char name[64], asked[400];
    bool reported; /* it said what happened (the fields up to `address`) */
    uint32_t signal, code, access, stack_guard, system_call;
    uint64_t address;
    int exit_signal, exit_code; /* as the kernel tells */
} kg_death;

typedef struct kg_run_arg {
    uint8_t kind;    /* KG_WA_* */
    uint32_t buffer; /* or tensor map */
    int64_t i;
    double f;
} kg_run_arg;

typedef struct kg_run_launch {
    uint32_t entry;
    int64_t range, grain;                          /* CPU */
    int64_t grid[3], block[3], cluster[3], shared; /* GPU */
    bool cooperative, pdl;
    size_t nargs;
    kg_run_arg args[KG_MAX_LAUNCH_ARGS];
} kg_run_launch;

typedef struct kg_run {
    uint32_t split, warm, timed;
    bool cold, graph; /* GPU */
    bool stale;       /* CPU */
    bool keep;
    size_t nclear;
    uint32_t clear[KG_W_MAX_BUFFERS];
    size_t programs_bytes;
    const void *programs;
    size_t nmaps;
    kg_map maps[KG_MAX_MAPS];
    uint32_t map_buffer[KG_MAX_MAPS];
    size_t nlaunches;
    kg_run_launch launches[KG_MAX_LAUNCHES];
} kg_run;

/* One timed call. window and wall are a GPU's: from before the caches were emptied to the end of
 * the call, by its own clock and by the host's. */
typedef struct kg_call_time {
    uint64_t ns, window_ns, wall_ns;
    bool graph;
} kg_call_time;

/* What a GPU's worker is told of a kernel, and what it tells of it. */
typedef struct kg_kernel_ask {
    const char *name;
    uint32_t threads, shared, cluster; /* of a block, of a block, blocks */
    size_t nargs;
    uint32_t arg_bytes[KG_MAX_LAUNCH_ARGS];
} kg_kernel_ask;

typedef struct kg_kernel_use {
    uint32_t registers, local, shared, blocks; /* a thread, a thread, static, that fit an SM */
} kg_kernel_use;

/* Starts a worker and waits until its first locks are set. KG_EENV names what is missing. */
int kg_worker_open(const kg_worker_options *options, kg_worker **out, kg_error *err);
/* The same in two steps: the worker gets ready while the caller does something else. greet after
 * which it may be used; whatever greet gives, the worker is still to be closed. */
int kg_worker_start(const kg_worker_options *options, kg_worker **out, kg_error *err);
int kg_worker_greet(kg_worker *w, kg_error *err);
void kg_worker_close(kg_worker *w); /* kills it when it still runs */

/* addresses: of each buffer's data in the worker. A GPU's may be mapped again, and is then to be
 * loaded again. */
int kg_worker_map(kg_worker *w, const kg_slot *const *slots, size_t n, uint64_t *addresses,
                  kg_error *err);
/* KG_EIO, KG_EFORMAT: the image does not load; the message says why. */
int kg_worker_load(kg_worker *w, const void *image, size_t n, size_t nentries, kg_error *err);
/* The same on a GPU, where kernels have names. uses: n of them. */
int kg_worker_load_kernels(kg_worker *w, const void *image, size_t bytes, const kg_kernel_ask *asks,
                           size_t n, kg_kernel_use *uses, kg_error *err);
/* A GPU's, after its kernels: an image with kg_check_scrub (checks.cu), from which on calls find no
 * shared memory of the call before. KG_ECHILD: the worker died; else it goes on without. */
int kg_worker_scrub(kg_worker *w, const void *image, size_t n, kg_error *err);
/* times: of the timed calls. KG_ECHILD: the worker died or was killed at the limit, see
 * kg_worker_death. KG_EINTR: kg_stop_wanted. */
int kg_worker_run(kg_worker *w, const kg_run *run, int64_t limit_ms, kg_call_time *times,
                  kg_error *err);
/* Bytes a second, three numbers (read, write, copy) a size. */
int kg_worker_rates(kg_worker *w, const uint64_t *sizes, size_t n, double *rates, kg_error *err);
int kg_worker_ping(kg_worker *w, kg_error *err);

const kg_death *kg_worker_death(const kg_worker *w);
uint32_t kg_worker_landlock(const kg_worker *w); /* 0: the kernel has none */
pid_t kg_worker_pid(const kg_worker *w);

#endif
