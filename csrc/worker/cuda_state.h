/* What the files of the CUDA worker share. */
#ifndef KG_WORKER_CUDA_STATE_H
#define KG_WORKER_CUDA_STATE_H

#include "sys/cuda.h"
#include "worker/serve.h"
#include "worker/wire.h"

typedef struct kg_cuda_buffer {
    kg_cu_ptr data;
    size_t bytes;
    kg_cu_ptr room; /* the addresses that are reserved for it, guards included */
    size_t reserved;
} kg_cuda_buffer;

typedef struct kg_cuda_kernel {
    kg_cu_function function;
    size_t nargs;
} kg_cuda_kernel;

typedef enum kg_cuda_stage {
    KG_CUDA_FRESH,
    KG_CUDA_OPENED,
    KG_CUDA_MAPPED,
    KG_CUDA_LOADED
} kg_cuda_stage;

typedef struct kg_cuda_call_time {
    uint64_t ns, window_ns, wall_ns;
} kg_cuda_call_time;

typedef struct kg_cuda_state {
    kg_talk talk;
    kg_cuda_stage stage;
    int device;
    kg_cu_stream stream;
    kg_cu_event window, begin, end; /* before the caches are emptied; around the call */
    kg_cu_ptr flush;                /* what is written to empty them */
    size_t flush_bytes;
    kg_cuda_buffer buffers[KG_W_MAX_BUFFERS];
    kg_wire_limits limits;
    kg_cu_module module, scrubber;
    kg_cuda_kernel kernels[KG_MAX_LAUNCHES];
    kg_wire_run run;
    kg_cuda_map maps[KG_MAX_MAPS];
    kg_cuda_launch launches[KG_MAX_LAUNCHES];
    void *args[KG_MAX_LAUNCHES][KG_MAX_LAUNCH_ARGS];
    uint32_t held[KG_W_MAX_BUFFERS]; /* the first bytes of each that can be written: its poison */
    kg_cuda_call_time times[KG_W_MAX_TIMED];
    bool graph; /* the timed calls were replays */
    bool scrubs;
    kg_cuda_launch scrub; /* fills all shared memory */
} kg_cuda_state;

/* Tells the judge what the driver said (err has it) while it was asked for something of the
 * Candidate's, and ends the process: a context that has failed is of no use. */
__attribute__((noreturn)) void kg_cuda_fault(kg_cuda_state *w, uint32_t stage, uint32_t launch,
                                             const kg_error *err);

/* cuda_run.c: makes the calls that w->run asks for; w->times gets the timed ones. What fails is the
 * Candidate's, and ends the process. A status: the request does not fit. */
int kg_cuda_run(kg_cuda_state *w, kg_error *err);

#endif
