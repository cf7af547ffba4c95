/* The RUN request read into numbers, every index held against what the worker has. */
#ifndef KG_WORKER_WIRE_H
#define KG_WORKER_WIRE_H

#include <stdbool.h>

#include "base/buf.h"
#include "runtime/plan.h"
#include "worker/protocol.h"

typedef struct kg_wire_arg {
    uint8_t kind; /* KG_WA_* */
    union {
        uint32_t index; /* KG_WA_BUFFER, KG_WA_MAP */
        int32_t i32;
        int64_t i64;
        float f32;
        double f64;
    } u;
} kg_wire_arg;

typedef struct kg_wire_launch {
    uint32_t entry, flags;
    int64_t range, grain;
    int64_t grid[3], block[3], cluster[3], shared;
    size_t nargs;
    kg_wire_arg args[KG_MAX_LAUNCH_ARGS];
} kg_wire_launch;

typedef struct kg_wire_run {
    uint32_t split, warm, timed, flags;
    size_t nclear, nmaps, nlaunches;
    uint32_t clear[KG_W_MAX_BUFFERS];
    kg_map maps[KG_MAX_MAPS]; /* tensor is the buffer */
    kg_wire_launch launches[KG_MAX_LAUNCHES];
    size_t programs_bytes;
    _Alignas(64) char programs[KG_W_MAX_PROGRAMS];
} kg_wire_run;

/* What the worker has. */
typedef struct kg_wire_limits {
    int device; /* kg_device */
    size_t nbuffers, nentries;
    bool writable[KG_W_MAX_BUFFERS];
} kg_wire_limits;

/* All but the end of the request is read. */
int kg_wire_read_run(kg_reader *in, const kg_wire_limits *limits, kg_wire_run *out, kg_error *err);

#endif
