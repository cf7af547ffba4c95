/* The calls of one RUN, and their time.
 *
 * A timed call is, in stream order: an event; the writing of a buffer three times as large as the
 * L2 when the caches are to be cold, or else the untimed calls; an event; the call; an event. Then
 * the whole device is waited for. Nothing waits in between, so the host's latency is hidden behind
 * what runs before the call, and the time between the last two events is the call's alone. The
 * whole window by the device's clock and by the host's go to the judge beside it: work that the
 * last event did not wait for makes the second longer than the first. */
#include <string.h>

#include "sys/proc.h"
#include "worker/cuda_state.h"

static void *argument(kg_cuda_state *w, kg_wire_arg *a) {
    static uint64_t null;
    switch (a->kind) {
    case KG_WA_NULL:
        return &null;
    case KG_WA_BUFFER:
        return &w->buffers[a->u.index].data;
    case KG_WA_MAP:
        return &w->maps[a->u.index];
    case KG_WA_PROGRAMS:
        return w->run.programs;
    default:
        return &a->u;
    }
}

static void three(uint32_t to[3], const int64_t from[3]) {
    for (int i = 0; i < 3; i++)
        to[i] = (uint32_t)from[i];
}

static int ready_launch(kg_cuda_state *w, size_t i, kg_error *err) {
    kg_wire_launch *from = &w->run.launches[i];
    const kg_cuda_kernel *k = &w->kernels[from->entry];
    if (from->nargs != k->nargs)
        return kg_fail(err, KG_EFORMAT, "launch %zu has %zu arguments; LOAD said %zu", i,
                       from->nargs, k->nargs);
    kg_cuda_launch *l = &w->launches[i];
    *l = (kg_cuda_launch){.function = k->function,
                          .shared = (uint32_t)from->shared,
                          .cooperative = (from->flags & KG_LAUNCH_COOPERATIVE) != 0,
                          .pdl = (from->flags & KG_LAUNCH_PDL) != 0};
    three(l->grid, from->grid);
    three(l->block, from->block);
    three(l->cluster, from->cluster);
    for (size_t a = 0; a < from->nargs; a++)
        w->args[i][a] = argument(w, &from->args[a]);
    kg_error why = {0};
    if (kg_cuda_launch_prepare(l, &why) != KG_OK)
        kg_cuda_fault(w, KG_STAGE_LAUNCH, (uint32_t)from->entry, &why);
    return KG_OK;
}

static int map_type(int dtype) {
    static const int types[KG_DTYPE_COUNT] = {
        [KG_F32] = KG_CU_MAP_F32,   [KG_F64] = KG_CU_MAP_F64, [KG_F16] = KG_CU_MAP_F16,
        [KG_BF16] = KG_CU_MAP_BF16, [KG_I8] = KG_CU_MAP_U8,   [KG_U8] = KG_CU_MAP_U8,
        [KG_I16] = KG_CU_MAP_U16,   [KG_I32] = KG_CU_MAP_I32, [KG_I64] = KG_CU_MAP_I64,
        [KG_BOOL] = KG_CU_MAP_U8};
    return types[dtype];
}

static void ready_map(kg_cuda_state *w, size_t i) {
    const kg_map *m = &w->run.maps[i];
    kg_cuda_map_spec spec = {.type = map_type(m->dtype),
                             .rank = (unsigned)m->rank,
                             .swizzle = m->swizzle,
                             .l2 = m->l2,
                             .item_bytes = kg_dtype_size(m->dtype)};
    for (size_t d = 0; d < m->rank; d++) {
        spec.dims[d] = (uint64_t)m->dims[d];
        spec.box[d] = (uint32_t)m->box[d];
    }
    for (size_t d = 0; d + 1 < m->rank; d++)
        spec.strides[d] = (uint64_t)m->strides[d];
    kg_error why = {0};
    if (kg_cuda_map_encode(&spec, w->buffers[m->tensor].data, &w->maps[i], &why) != KG_OK)
        kg_cuda_fault(w, KG_STAGE_LAUNCH, UINT32_MAX, &why);
}

/* Puts one call on the stream. *launch: the entry that failed, UINT32_MAX for what is none. */
static int put_call(kg_cuda_state *w, uint32_t *launch, kg_error *err) {
    const kg_wire_run *r = &w->run;
    int rc = KG_OK;
    *launch = UINT32_MAX;
    for (size_t i = 0; rc == KG_OK && i < r->nclear; i++) {
        const kg_cuda_buffer *b = &w->buffers[r->clear[i]];
        rc = kg_cuda_memset8(b->data, 0, b->bytes, w->stream, err);
    }
    for (size_t i = 0; rc == KG_OK && i < r->nlaunches; i++) {
        rc = kg_cuda_launch_kernel(&w->launches[i], w->stream, w->args[i], err);
        if (rc != KG_OK)
            *launch = r->launches[i].entry;
    }
    return rc;
}

static void one_call(kg_cuda_state *w) {
    kg_error why = {0};
    uint32_t launch;
    if (put_call(w, &launch, &why) != KG_OK)
        kg_cuda_fault(w, KG_STAGE_LAUNCH, launch, &why);
}

static void wait_for_all(kg_cuda_state *w) {
    kg_error why = {0};
    if (kg_cuda_synchronize(&why) != KG_OK)
        kg_cuda_fault(w, KG_STAGE_WAIT, UINT32_MAX, &why);
}

/* One call as a graph, which the caller destroys. What a driver does not capture (some launches
 * that run well on a stream) is no fault: it is timed on the stream. */
static kg_cu_graph_exec make_graph(kg_cuda_state *w) {
    kg_cu_graph graph = NULL;
    kg_cu_graph_exec exec = NULL;
    uint32_t launch;
    if (kg_cuda_capture_begin(w->stream, NULL) != KG_OK)
        return NULL;
    int rc = put_call(w, &launch, NULL);
    if (kg_cuda_capture_end(w->stream, &graph, NULL) == KG_OK && rc == KG_OK &&
        kg_cuda_graph_instantiate(graph, &exec, NULL) != KG_OK)
        exec = NULL;
    kg_cuda_graph_destroy(graph);
    return exec;
}

static uint64_t elapsed(kg_cuda_state *w, kg_cu_event from, kg_cu_event to) {
    float ms = 0;
    kg_error why = {0};
    if (kg_cuda_event_elapsed(from, to, &ms, &why) != KG_OK)
        kg_cuda_fault(w, KG_STAGE_WAIT, UINT32_MAX, &why);
    return (uint64_t)((double)ms * 1e6 + 0.5);
}

/* Numbers of no floating type, other ones each time. What fails here says nothing of the Candidate,
 * and what it says of the device comes out at the next wait. */
static void scrub(kg_cuda_state *w) {
    uint32_t words = w->scrub.shared / 4, pattern = 0xffff0000u | (uint32_t)(kg_now_ns() & 0xffff);
    void *args[] = {&words, &pattern};
    if (w->scrubs && (w->run.flags & KG_RUN_KEEP) == 0)
        (void)kg_cuda_launch_kernel(&w->scrub, w->stream, args, NULL);
}

static bool spoils(const kg_cuda_state *w) {
    return w->run.warm > 0 && (w->run.flags & (KG_RUN_COLD | KG_RUN_KEEP)) == 0;
}

static int remember_poison(kg_cuda_state *w, kg_error *err) {
    int rc = KG_OK;
    for (size_t i = 0; rc == KG_OK && i < w->limits.nbuffers; i++) {
        const kg_cuda_buffer *b = &w->buffers[i];
        w->held[i] = 0;
        if (w->limits.writable[i] && b->bytes > 0)
            rc = kg_cuda_to_host(&w->held[i], b->data, b->bytes < 4 ? b->bytes : 4, err);
    }
    return rc;
}

static int spoil(kg_cuda_state *w, const kg_cuda_buffer *b, uint32_t poison, kg_error *err) {
    size_t whole = b->bytes / 4;
    int rc = whole > 0 ? kg_cuda_memset32(b->data, poison, whole, w->stream, err) : KG_OK;
    for (size_t at = 4 * whole; rc == KG_OK && at < b->bytes; at++)
        rc = kg_cuda_memset8(b->data + at, (uint8_t)(poison >> at % 4 * 8), 1, w->stream, err);
    return rc;
}

/* What the call before left: a timed call that found its own results could leave them. */
static int spoil_all(kg_cuda_state *w, kg_error *err) {
    int rc = KG_OK;
    scrub(w);
    for (size_t i = 0; rc == KG_OK && spoils(w) && i < w->limits.nbuffers; i++)
        if (w->limits.writable[i])
            rc = spoil(w, &w->buffers[i], w->held[i], err);
    return rc;
}

/* What comes before a timed call: the caches as they are asked for. */
static int set_caches(kg_cuda_state *w, kg_error *err) {
    int rc = KG_OK;
    scrub(w);
    if ((w->run.flags & KG_RUN_COLD) != 0)
        return kg_cuda_memset8(w->flush, 0x5a, w->flush_bytes, w->stream, err);
    for (uint32_t i = 0; rc == KG_OK && i < w->run.warm; i++) {
        one_call(w);
        rc = spoil_all(w, err);
    }
    return rc;
}

static int timed_call(kg_cuda_state *w, kg_cu_graph_exec graph, kg_cuda_call_time *time,
                      kg_error *err) {
    int rc = KG_OK;
    if ((w->run.flags & KG_RUN_COLD) != 0)
        rc = kg_cuda_reset_persisting_l2(err);
    if (rc == KG_EUNSUPPORTED) /* nothing persists there */
        rc = KG_OK;
    wait_for_all(w);
    int64_t start = kg_now_ns();
    if (rc == KG_OK)
        rc = kg_cuda_event_record(w->window, w->stream, err);
    if (rc == KG_OK)
        rc = set_caches(w, err);
    if (rc == KG_OK)
        rc = kg_cuda_event_record(w->begin, w->stream, err);
    if (rc == KG_OK && graph)
        rc = kg_cuda_graph_launch(graph, w->stream, err);
    else if (rc == KG_OK)
        one_call(w);
    if (rc == KG_OK)
        rc = kg_cuda_event_record(w->end, w->stream, err);
    if (rc != KG_OK)
        return rc;
    wait_for_all(w);
    time->wall_ns = (uint64_t)(kg_now_ns() - start);
    time->ns = elapsed(w, w->begin, w->end);
    time->window_ns = elapsed(w, w->window, w->end);
    return KG_OK;
}

int kg_cuda_run(kg_cuda_state *w, kg_error *err) {
    kg_cu_graph_exec graph = NULL;
    kg_error why = {0};
    int rc = KG_OK;
    for (size_t i = 0; i < w->run.nmaps; i++)
        ready_map(w, i);
    for (size_t i = 0; rc == KG_OK && i < w->run.nlaunches; i++)
        rc = ready_launch(w, i, err);
    if (rc != KG_OK)
        return rc;
    if (spoils(w))
        rc = remember_poison(w, &why);
    if (rc == KG_OK && (w->run.flags & KG_RUN_GRAPH) != 0)
        graph = make_graph(w);
    w->graph = graph != NULL;
    for (uint32_t i = 0; rc == KG_OK && i < w->run.timed; i++)
        rc = timed_call(w, graph, &w->times[i], &why);
    kg_cuda_graph_exec_destroy(graph);
    if (rc != KG_OK)
        kg_cuda_fault(w, KG_STAGE_LAUNCH, UINT32_MAX, &why);
    return KG_OK;
}
