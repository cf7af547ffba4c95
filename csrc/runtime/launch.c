/* What every device's launcher needs, and the CPU's own. It never allocates but outputs and
 * declared workspace, and it compiles nothing. */
#include "runtime/launch.h"

#include <stdlib.h>
#include <string.h>

/* Workspace up to this size lives on the stack, where a small call saves an allocation. */
#define SMALL_WORKSPACE 16384
/* Chunks a thread: enough that threads whose rows cost less (causal masks) take over others' work.
 */
#define CHUNKS 16
#define ALIGN 64

int kg_ready_make(const kg_plan *plan, const kg_instance *inst, const kg_function *functions,
                  const kg_call *call, kg_ready *out, kg_error *err) {
    kg_ready r = {.noutputs = inst->noutputs,
                  .skip = call->skip_outputs,
                  .zero = plan->zero_outputs,
                  .nworkspace = inst->nworkspace,
                  .device_index = call->device_index,
                  .nlaunches = inst->nlaunches};
    memcpy(r.outputs, inst->outputs, sizeof(r.outputs));
    for (size_t i = 0; i < inst->nworkspace; i++) {
        r.workspace_bytes[i] = inst->workspace_bytes[i];
        r.zero_workspace |= plan->workspace[i].zero ? 1U << i : 0;
    }
    if (plan->nholes > 0)
        r.programs_bytes = kg_program_args_size(call->program);
    for (size_t i = 0; i < inst->nlaunches; i++) {
        const kg_launch *from = &inst->launches[i];
        kg_ready_launch *to = &r.launches[i];
        *to = (kg_ready_launch){.function = functions[from->plan_launch],
                                .range = from->range,
                                .grain = from->grain,
                                .nargs = from->nargs};
        to->args = malloc((from->nargs > 0 ? from->nargs : 1) * sizeof(*to->args));
        if (to->args == NULL) {
            kg_ready_clear(&r);
            return kg_fail(err, KG_ENOMEM, "no memory for a launch");
        }
        memcpy(to->args, from->args, from->nargs * sizeof(*to->args));
    }
    const kg_launcher *device = kg_launcher_of(call->device);
    int rc = device->prepare != NULL ? device->prepare(plan, inst, &r, err) : KG_OK;
    if (rc != KG_OK)
        kg_ready_clear(&r);
    else
        *out = r;
    return rc;
}

void kg_ready_clear(kg_ready *r) {
    for (size_t i = 0; i < r->nlaunches; i++)
        free(r->launches[i].args);
    free(r->maps);
    r->maps = NULL;
    r->nlaunches = 0;
}

/* ---- outputs and workspace ---- */

static size_t tensor_bytes(const kg_tensor *t) {
    return (size_t)kg_tensor_numel(t) * kg_dtype_size(t->dtype);
}

void kg_outputs_release(const kg_ready *r, const kg_host *host, void **handles) {
    for (size_t i = 0; i < r->noutputs; i++)
        if (handles[i] != NULL)
            host->release(handles[i]);
}

int kg_outputs_make(const kg_ready *r, const kg_call *call, const kg_host *host, void **handles,
                    kg_tensor *outs, kg_error *err) {
    for (size_t i = 0; i < r->noutputs; i++)
        handles[i] = NULL;
    for (size_t i = 0; i < r->noutputs; i++) {
        outs[i] = r->outputs[i];
        outs[i].data = NULL;
        if ((r->skip >> i & 1) != 0)
            continue;
        int rc = host->empty(&outs[i], call->device, call->device_index, &handles[i], err);
        if (rc != KG_OK) {
            kg_outputs_release(r, host, handles);
            return rc;
        }
    }
    return KG_OK;
}

static void clear_outputs(const kg_ready *r, const kg_tensor *outs) {
    for (size_t i = 0; i < r->noutputs; i++)
        if ((r->zero >> i & 1) != 0 && (r->skip >> i & 1) == 0)
            memset(outs[i].data, 0, tensor_bytes(&outs[i]));
}

typedef struct workspace {
    void *handle; /* the host's, when it did not fit the stack */
    void *at[KG_MAX_WORKSPACE];
} workspace;

static int64_t workspace_total(const kg_ready *r) {
    int64_t total = 0;
    for (size_t i = 0; i < r->nworkspace; i++)
        total += (r->workspace_bytes[i] + ALIGN - 1) / ALIGN * ALIGN;
    return total;
}

static void place_workspace(const kg_ready *r, unsigned char *base, workspace *w) {
    for (size_t i = 0; i < r->nworkspace; i++) {
        w->at[i] = base;
        if ((r->zero_workspace >> i & 1) != 0)
            memset(base, 0, (size_t)r->workspace_bytes[i]);
        base += (r->workspace_bytes[i] + ALIGN - 1) / ALIGN * ALIGN;
    }
}

static int big_workspace(const kg_ready *r, const kg_call *call, const kg_host *host, int64_t total,
                         workspace *w, kg_error *err) {
    kg_tensor t = {.dtype = KG_U8, .ndim = 1, .size = {total + ALIGN}, .stride = {1}};
    int rc = host->empty(&t, call->device, call->device_index, &w->handle, err);
    if (rc != KG_OK)
        return rc;
    uintptr_t skew = (ALIGN - (uintptr_t)t.data % ALIGN) % ALIGN;
    place_workspace(r, (unsigned char *)t.data + skew, w);
    return KG_OK;
}

/* ---- launches ---- */

typedef struct chunked {
    kg_entry entry;
    void *const *args;
    int64_t range, chunk;
    _Atomic int64_t next;
} chunked;

/* One lane a thread; each takes the next chunk until none is left. */
static void lane(int64_t begin, int64_t end, void *ctx) {
    chunked *c = ctx;
    (void)begin;
    (void)end;
    for (;;) {
        int64_t at = atomic_fetch_add_explicit(&c->next, c->chunk, memory_order_relaxed);
        if (at >= c->range)
            return;
        c->entry(at, at + c->chunk < c->range ? at + c->chunk : c->range, c->args);
    }
}

static int run_range(const kg_ready_launch *l, void *const *args, const kg_host *host,
                     kg_error *err) {
    if (l->range <= 0)
        return KG_OK;
    int64_t threads = l->range > l->grain ? host->threads() : 1;
    if (threads <= 1) {
        l->function.cpu(0, l->range, args);
        return KG_OK;
    }
    int64_t pieces = threads * CHUNKS, chunk = (l->range + pieces - 1) / pieces;
    chunked c = {.entry = l->function.cpu, .args = args, .range = l->range};
    c.chunk = chunk > l->grain ? chunk : l->grain;
    int64_t lanes = (l->range + c.chunk - 1) / c.chunk;
    return host->parallel(lanes < threads ? lanes : threads, 1, lane, &c, err);
}

static int launch_one(const kg_ready_launch *l, const kg_call *call, const kg_tensor *outs,
                      const workspace *w, void *programs, const kg_host *host, kg_error *err) {
    void *args[KG_MAX_LAUNCH_ARGS];
    for (size_t i = 0; i < l->nargs; i++) {
        const kg_launch_arg *a = &l->args[i];
        switch (a->kind) {
        case KG_PA_TENSOR:
            args[i] = call->args[a->index].present ? call->args[a->index].u.t.data : NULL;
            break;
        case KG_PA_OUTPUT:
            args[i] = outs[a->index].data;
            break;
        case KG_PA_WORKSPACE:
            args[i] = w->at[a->index];
            break;
        case KG_PA_PROGRAMS:
            args[i] = programs;
            break;
        case KG_PA_SCALAR:
            args[i] = (void *)(uintptr_t)&a->u;
            break;
        case KG_PA_MAP:
            return kg_fail(err, KG_EUNSUPPORTED, "a tensor map has no meaning on the CPU");
        }
    }
    return run_range(l, args, host, err);
}

static int run_launches(const kg_ready *r, const kg_call *call, const kg_host *host,
                        const kg_tensor *outs, const workspace *w, kg_error *err) {
    /* 16 captured tensors of rank 6 and 32 scalars take less. */
    _Alignas(16) unsigned char programs[4096];
    int rc = KG_OK;
    if (r->programs_bytes > sizeof(programs))
        return kg_fail(err, KG_EOVERFLOW, "a Program's arguments take %zu bytes",
                       r->programs_bytes);
    if (r->programs_bytes > 0)
        rc = kg_program_args(call->program, call, programs, r->programs_bytes, err);
    for (size_t i = 0; rc == KG_OK && i < r->nlaunches; i++)
        rc = launch_one(&r->launches[i], call, outs, w, programs, host, err);
    return rc;
}

static int run_cpu(const kg_ready *r, const kg_call *call, const kg_host *host, void **handles,
                   kg_tensor *outs, kg_error *err) {
    _Alignas(ALIGN) unsigned char small[SMALL_WORKSPACE];
    workspace w = {.handle = NULL};
    int rc = kg_outputs_make(r, call, host, handles, outs, err);
    if (rc != KG_OK)
        return rc;
    clear_outputs(r, outs);
    int64_t total = workspace_total(r);
    if (total > SMALL_WORKSPACE)
        rc = big_workspace(r, call, host, total, &w, err);
    else
        place_workspace(r, small, &w);
    if (rc == KG_OK)
        rc = run_launches(r, call, host, outs, &w, err);
    if (w.handle != NULL)
        host->release(w.handle);
    if (rc != KG_OK)
        kg_outputs_release(r, host, handles);
    return rc;
}

/* ---- images ---- */

static _Atomic(kg_load_hook) the_hook;

void kg_launch_on_load(kg_load_hook hook) {
    atomic_store(&the_hook, hook);
}

bool kg_launch_hooked(void) {
    return atomic_load(&the_hook) != NULL;
}

int kg_launch_loading(bool loaded, int device, kg_error *err) {
    char why[512] = "";
    kg_load_hook hook = atomic_load(&the_hook);
    int rc = hook != NULL ? hook(loaded, device, why, sizeof(why)) : KG_OK;
    return rc == KG_OK ? KG_OK : kg_fail(err, rc, "%s", why);
}

/* A hook may have locked away the cache's files: then the image goes in from memory. */
static int load_locked(const kg_buf *image, size_t n, kg_entry *entries, kg_error *err) {
    int rc = kg_launch_loading(false, KG_CPU, err);
    if (rc == KG_OK)
        rc = kg_image_load(NULL, image->data, image->len, n, entries, err);
    return rc == KG_OK ? kg_launch_loading(true, KG_CPU, err) : rc;
}

static int load_cpu(const kg_load_request *ask, kg_function *functions, kg_buf *messages,
                    kg_error *err) {
    kg_buf image;
    kg_entry entries[KG_MAX_LAUNCHES];
    char path[512];
    size_t n = ask->plan->nlaunches;
    kg_buf_init(&image, 0);
    int rc = kg_image_cpu(ask->unit->data, ask->unit->len, ask->label, ask->arch, ask->plan->flags,
                          false, &image, messages, path, err);
    if (rc == KG_OK)
        rc = kg_launch_hooked() ? load_locked(&image, n, entries, err)
                                : kg_image_load(path, image.data, image.len, n, entries, err);
    for (size_t i = 0; rc == KG_OK && i < n; i++)
        functions[i].cpu = entries[i];
    kg_buf_free(&image);
    return rc;
}

const kg_launcher *kg_launcher_of(int device) {
    static const kg_launcher cpu = {.load = load_cpu, .run = run_cpu};
    static const kg_launcher *const launchers[] = {[KG_CPU] = &cpu, [KG_CUDA] = &kg_launcher_cuda};
    return device == KG_CPU || device == KG_CUDA ? launchers[device] : NULL;
}
