/* RUN of the worker protocol, of a worker for a CPU or for a GPU as the first byte says: what is
 * read names nothing that the worker does not have. */
#include <stdlib.h>

#include "worker/wire.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void check_arg(const kg_wire_arg *a, const kg_wire_limits *limits, size_t nmaps) {
    if ((a->kind == KG_WA_BUFFER && a->u.index >= limits->nbuffers) ||
        (a->kind == KG_WA_MAP && a->u.index >= nmaps))
        __builtin_trap();
}

static void check(const kg_wire_run *run, const kg_wire_limits *limits) {
    if (run->nlaunches > KG_MAX_LAUNCHES || run->timed > KG_W_MAX_TIMED ||
        run->programs_bytes > KG_W_MAX_PROGRAMS || run->nmaps > KG_MAX_MAPS)
        __builtin_trap();
    for (size_t i = 0; i < run->nclear; i++)
        if (run->clear[i] >= limits->nbuffers || !limits->writable[run->clear[i]])
            __builtin_trap();
    for (size_t i = 0; i < run->nlaunches; i++) {
        const kg_wire_launch *l = &run->launches[i];
        if (l->entry >= limits->nentries || l->nargs > KG_MAX_LAUNCH_ARGS)
            __builtin_trap();
        for (size_t k = 0; k < l->nargs; k++)
            check_arg(&l->args[k], limits, run->nmaps);
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    static kg_wire_run run;
    if (size == 0)
        return 0;
    kg_wire_limits limits = {.device = data[0] & 1 ? KG_CUDA : KG_CPU,
                             .nbuffers = data[0] >> 4,
                             .nentries = data[0] >> 1 & 7};
    for (size_t i = 0; i < limits.nbuffers; i++)
        limits.writable[i] = i % 2 == 0;
    kg_reader in;
    kg_error err;
    kg_reader_init(&in, data + 1, size - 1);
    if (kg_wire_read_run(&in, &limits, &run, &err) == KG_OK && in.status == KG_OK)
        check(&run, &limits);
    return 0;
}
