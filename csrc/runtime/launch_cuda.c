/* Runs a resolved call on a CUDA device: on the host's stream, in the device's primary context,
 * with memory of the host's allocator. It waits for nothing and compiles nothing, so that it may be
 * captured into a graph; what that needs to be loaded is loaded before. */
#include "runtime/launch_cuda.h"

#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#include "runtime/cubin.h"
#include "runtime/image_cuda.h"
#include "runtime/launch.h"

enum { ALIGN = 256, MAX_PROGRAMS = 4096, CACHED_MAPS = 8 };

/* ---- plan and driver ---- */

size_t kg_cuda_arg_bytes(const kg_plan_arg *a, size_t programs_bytes) {
    switch (a->kind) {
    case KG_PA_SCALAR:
        return kg_dtype_size(a->dtype);
    case KG_PA_PROGRAMS:
        return programs_bytes;
    case KG_PA_MAP:
        return sizeof(kg_cuda_map);
    default:
        return sizeof(void *);
    }
}

static const char *arg_kind(const kg_plan_arg *a) {
    switch (a->kind) {
    case KG_PA_SCALAR:
        return a->dtype == KG_I32   ? "an i32"
               : a->dtype == KG_I64 ? "an i64"
               : a->dtype == KG_F32 ? "an f32"
                                    : "an f64";
    case KG_PA_PROGRAMS:
        return "KG_PROGRAMS";
    case KG_PA_MAP:
        return "a tensor map";
    default:
        return "a pointer";
    }
}

static int check_launch_args(const kg_plan_launch *l, size_t launch, size_t programs_bytes,
                             const kg_cubin_function *f, kg_error *err) {
    if (f->nparams != l->nargs)
        return kg_fail(err, KG_EINVAL,
                       "launches[%zu].args: the plan gives %zu arguments, the kernel %s has %zu "
                       "parameters",
                       launch, l->nargs, l->kernel, f->nparams);
    for (size_t i = 0; i < l->nargs; i++) {
        size_t bytes = kg_cuda_arg_bytes(&l->args[i], programs_bytes);
        if (f->params[i].size != bytes)
            return kg_fail(err, KG_EINVAL,
                           "launches[%zu].args[%zu] is %s of %zu bytes; the parameter %zu of %s "
                           "has %zu",
                           launch, i, arg_kind(&l->args[i]), bytes, i, l->kernel,
                           f->params[i].size);
    }
    return KG_OK;
}

int kg_cuda_check_args(const kg_plan *plan, size_t programs_bytes, const void *cubin, size_t n,
                       kg_error *err) {
    kg_cubin_function f;
    kg_error e = {.msg = ""};
    int rc = KG_OK;
    for (size_t i = 0; rc == KG_OK && i < plan->nlaunches; i++) {
        rc = kg_cubin_function_get(cubin, n, plan->launches[i].kernel, &f, &e);
        if (rc != KG_OK)
            return kg_fail(err, KG_EINVAL, "launches[%zu].kernel: %.400s", i, e.msg);
        rc = check_launch_args(&plan->launches[i], i, programs_bytes, &f, err);
    }
    return rc;
}

kg_cuda_launch kg_cuda_launch_of(const kg_plan *plan, const kg_launch *l, int arch,
                                 kg_cu_function function) {
    const kg_plan_launch *pl = &plan->launches[l->plan_launch];
    kg_cuda_launch out = {.function = function,
                          .shared = (uint32_t)l->shared,
                          .cooperative = pl->cooperative,
                          .pdl = pl->pdl && arch >= 90};
    for (size_t i = 0; i < 3; i++) {
        out.grid[i] = (uint32_t)l->grid[i];
        out.block[i] = (uint32_t)l->block[i];
        out.cluster[i] = (uint32_t)l->cluster[i];
    }
    return out;
}

static int map_type(int dtype) {
    switch (dtype) {
    case KG_F32:
        return KG_CU_MAP_F32;
    case KG_F64:
        return KG_CU_MAP_F64;
    case KG_F16:
        return KG_CU_MAP_F16;
    case KG_BF16:
        return KG_CU_MAP_BF16;
    case KG_I16:
        return KG_CU_MAP_U16; /* bits are bits: nothing is computed in a load or a store */
    case KG_I32:
        return KG_CU_MAP_I32;
    case KG_I64:
        return KG_CU_MAP_I64;
    default:
        return KG_CU_MAP_U8;
    }
}

int kg_cuda_encode(const kg_map *m, const void *address, kg_cuda_map *out, kg_error *err) {
    kg_cuda_map_spec s = {.type = map_type(m->dtype),
                          .rank = (unsigned)m->rank,
                          .swizzle = m->swizzle,
                          .l2 = m->l2,
                          .item_bytes = kg_dtype_size(m->dtype)};
    for (size_t i = 0; i < m->rank; i++) {
        s.dims[i] = (uint64_t)m->dims[i];
        s.box[i] = (uint32_t)m->box[i];
        if (i + 1 < m->rank)
            s.strides[i] = (uint64_t)m->strides[i];
    }
    return kg_cuda_map_encode(&s, (kg_cu_ptr)(uintptr_t)address, out, err);
}

/* ---- loading ---- */

/* In the device's context, where another thread's capture does not mind what this one does. */
typedef struct outside {
    kg_cuda_scope scope;
    bool relaxed;
    int before;
} outside;

static void leave_outside(outside *o) {
    if (o->relaxed)
        kg_cuda_capture_restore(o->before);
    kg_cuda_leave(&o->scope);
}

static int enter_outside(int32_t device, outside *o, kg_error *err) {
    *o = (outside){.relaxed = false};
    int rc = kg_cuda_enter(device, &o->scope, err);
    if (rc == KG_OK)
        rc = kg_cuda_capture_relax(&o->before, err);
    o->relaxed = rc == KG_OK;
    return rc;
}

/* Modules stay for the life of the process, like the CPU's images. */
static int load_functions(const kg_load_request *ask, const kg_buf *image, kg_function *functions,
                          kg_error *err) {
    outside scope;
    kg_cu_module module = NULL;
    int rc = enter_outside(ask->device_index, &scope, err);
    if (rc == KG_OK)
        rc = kg_cuda_module_load(image->data, image->len, &module, err);
    for (size_t i = 0; rc == KG_OK && i < ask->plan->nlaunches; i++)
        rc = kg_cuda_function(module, ask->plan->launches[i].kernel, &functions[i].cuda, err);
    if (rc != KG_OK)
        kg_cuda_module_unload(module);
    leave_outside(&scope);
    return rc;
}

static int load_cuda(const kg_load_request *ask, kg_function *functions, kg_buf *messages,
                     kg_error *err) {
    kg_buf image;
    kg_buf_init(&image, 0);
    int rc =
        kg_image_cuda(ask->unit->data, ask->unit->len, ask->label, (int)kg_arch_code(ask->arch),
                      ask->plan->flags, &image, messages, NULL, err);
    if (rc == KG_OK)
        rc = kg_cuda_check_args(ask->plan, ask->programs_bytes, image.data, image.len, err);
    if (rc == KG_OK)
        rc = kg_launch_loading(false, KG_CUDA, err);
    if (rc == KG_OK)
        rc = load_functions(ask, &image, functions, err);
    if (rc == KG_OK)
        rc = kg_launch_loading(true, KG_CUDA, err);
    kg_buf_free(&image);
    return rc;
}

/* ---- encoded maps ---- */

/* A model's tensors come back to the same addresses: a few encoded maps serve most calls. Slots are
 * replaced in turn. */
struct kg_map_cache {
    pthread_mutex_t lock; /* over slots and turns */
    size_t nmaps;
    kg_map maps[KG_MAX_MAPS];
    struct {
        const void *address; /* NULL: free */
        kg_cuda_map map;
    } slots[KG_MAX_MAPS][CACHED_MAPS];
    unsigned turns[KG_MAX_MAPS];
};

static int make_cache(const kg_instance *inst, struct kg_map_cache **out, kg_error *err) {
    if (inst->nmaps == 0)
        return KG_OK;
    /* The size is a multiple of the alignment, which is a member's. */
    struct kg_map_cache *c = aligned_alloc(_Alignof(struct kg_map_cache), sizeof(*c));
    if (c == NULL)
        return kg_fail(err, KG_ENOMEM, "no memory for tensor maps");
    memset(c, 0, sizeof(*c));
    pthread_mutex_init(&c->lock, NULL);
    c->nmaps = inst->nmaps;
    memcpy(c->maps, inst->maps, sizeof(c->maps));
    *out = c;
    return KG_OK;
}

static int cached_map(struct kg_map_cache *c, size_t i, const void *address, kg_cuda_map *out,
                      kg_error *err) {
    int rc = KG_OK;
    if (address == NULL) { /* an optional tensor that is absent */
        memset(out, 0, sizeof(*out));
        return KG_OK;
    }
    pthread_mutex_lock(&c->lock);
    size_t at = 0;
    while (at < CACHED_MAPS && c->slots[i][at].address != address)
        at++;
    if (at == CACHED_MAPS) {
        at = c->turns[i]++ % CACHED_MAPS;
        c->slots[i][at].address = NULL;
        rc = kg_cuda_encode(&c->maps[i], address, &c->slots[i][at].map, err);
        if (rc == KG_OK)
            c->slots[i][at].address = address;
    }
    if (rc == KG_OK)
        *out = c->slots[i][at].map;
    pthread_mutex_unlock(&c->lock);
    return rc;
}

static int prepare_cuda(const kg_plan *plan, const kg_instance *inst, kg_ready *r, kg_error *err) {
    const kg_cuda_device *d = NULL;
    kg_cuda_scope scope;
    int rc = kg_cuda_device_get(r->device_index, &d, err);
    if (rc == KG_OK)
        rc = make_cache(inst, &r->maps, err);
    if (rc != KG_OK)
        return rc;
    rc = kg_cuda_enter(r->device_index, &scope, err);
    for (size_t i = 0; rc == KG_OK && i < r->nlaunches; i++) {
        kg_ready_launch *l = &r->launches[i];
        l->cuda = kg_cuda_launch_of(plan, &inst->launches[i], d->arch, l->function.cuda);
        rc = kg_cuda_launch_prepare(&l->cuda, err);
        if (rc != KG_OK)
            kg_fail_prefix(err, rc, "launches[%d]", inst->launches[i].plan_launch);
    }
    kg_cuda_leave(&scope);
    return rc;
}

/* ---- a call ---- */

typedef struct run {
    const kg_ready *r;
    const kg_call *call;
    const kg_host *host;
    kg_tensor *outs;
    kg_cu_stream stream;
    void *workspace_handle;
    kg_cu_ptr workspace[KG_MAX_WORKSPACE];
    kg_cuda_map maps[KG_MAX_MAPS];
    _Alignas(16) unsigned char programs[MAX_PROGRAMS];
    kg_error *err;
} run;

static kg_cu_ptr device_address(const void *p) {
    return (kg_cu_ptr)(uintptr_t)p;
}

static int64_t rounded(int64_t bytes) {
    return (bytes + ALIGN - 1) / ALIGN * ALIGN;
}

static int make_workspace(run *c) {
    int64_t total = 0;
    for (size_t i = 0; i < c->r->nworkspace; i++)
        total += rounded(c->r->workspace_bytes[i]);
    if (total == 0)
        return KG_OK;
    kg_tensor t = {.dtype = KG_U8, .ndim = 1, .size = {total + ALIGN}, .stride = {1}};
    int rc =
        c->host->empty(&t, c->call->device, c->call->device_index, &c->workspace_handle, c->err);
    if (rc != KG_OK)
        return rc;
    kg_cu_ptr at = (kg_cu_ptr)rounded((int64_t)device_address(t.data));
    for (size_t i = 0; i < c->r->nworkspace; i++) {
        c->workspace[i] = at;
        at += (kg_cu_ptr)rounded(c->r->workspace_bytes[i]);
    }
    return KG_OK;
}

static int clear_memory(run *c) {
    int rc = KG_OK;
    for (size_t i = 0; rc == KG_OK && i < c->r->noutputs; i++) {
        const kg_tensor *t = &c->outs[i];
        if ((c->r->zero >> i & 1) != 0 && (c->r->skip >> i & 1) == 0)
            rc = kg_cuda_memset8(device_address(t->data), 0,
                                 (size_t)kg_tensor_numel(t) * kg_dtype_size(t->dtype), c->stream,
                                 c->err);
    }
    for (size_t i = 0; rc == KG_OK && i < c->r->nworkspace; i++)
        if ((c->r->zero_workspace >> i & 1) != 0)
            rc = kg_cuda_memset8(c->workspace[i], 0, (size_t)c->r->workspace_bytes[i], c->stream,
                                 c->err);
    return rc;
}

static const void *mapped_address(const run *c, const kg_map *m) {
    const kg_value *v = &c->call->args[m->tensor];
    if (m->tensor_is_output)
        return c->outs[m->tensor].data;
    return v->present ? v->u.t.data : NULL;
}

static int fill_maps(run *c) {
    struct kg_map_cache *cache = c->r->maps;
    int rc = KG_OK;
    for (size_t i = 0; cache != NULL && rc == KG_OK && i < cache->nmaps; i++)
        rc = cached_map(cache, i, mapped_address(c, &cache->maps[i]), &c->maps[i], c->err);
    return rc;
}

static int fill_programs(run *c) {
    if (c->r->programs_bytes == 0)
        return KG_OK;
    if (c->r->programs_bytes > sizeof(c->programs))
        return kg_fail(c->err, KG_EOVERFLOW, "a Program's arguments take %zu bytes",
                       c->r->programs_bytes);
    return kg_program_args(c->call->program, c->call, c->programs, c->r->programs_bytes, c->err);
}

/* The driver takes the address of each argument; pointers live in `values` until it has them. */
static int launch_one(run *c, const kg_ready_launch *l) {
    void *args[KG_MAX_LAUNCH_ARGS];
    kg_cu_ptr values[KG_MAX_LAUNCH_ARGS];
    for (size_t i = 0; i < l->nargs; i++) {
        const kg_launch_arg *a = &l->args[i];
        const kg_value *v = a->kind == KG_PA_TENSOR ? &c->call->args[a->index] : NULL;
        args[i] = &values[i];
        switch (a->kind) {
        case KG_PA_TENSOR:
            values[i] = v->present ? device_address(v->u.t.data) : 0;
            break;
        case KG_PA_OUTPUT:
            values[i] = device_address(c->outs[a->index].data);
            break;
        case KG_PA_WORKSPACE:
            values[i] = c->workspace[a->index];
            break;
        case KG_PA_PROGRAMS:
            args[i] = c->programs;
            break;
        case KG_PA_SCALAR:
            args[i] = (void *)(uintptr_t)&a->u;
            break;
        case KG_PA_MAP:
            args[i] = &c->maps[a->index];
            break;
        }
    }
    return kg_cuda_launch_kernel(&l->cuda, c->stream, args, c->err);
}

static int run_in_context(run *c) {
    int rc = make_workspace(c);
    if (rc == KG_OK)
        rc = fill_maps(c);
    if (rc == KG_OK)
        rc = fill_programs(c);
    if (rc == KG_OK)
        rc = clear_memory(c);
    for (size_t i = 0; rc == KG_OK && i < c->r->nlaunches; i++)
        rc = launch_one(c, &c->r->launches[i]);
    /* The allocator orders by stream: what comes after on this one may have the memory. */
    if (c->workspace_handle != NULL)
        c->host->release(c->workspace_handle);
    return rc;
}

static int stream_of(const kg_call *call, const kg_host *host, kg_cu_stream *out, kg_error *err) {
    if (host->stream == NULL)
        return kg_fail(err, KG_EUNSUPPORTED, "this process has no CUDA streams");
    return host->stream(call->device_index, out, err);
}

static int run_cuda(const kg_ready *r, const kg_call *call, const kg_host *host, void **handles,
                    kg_tensor *outs, kg_error *err) {
    run c;
    kg_cuda_scope scope;
    c.r = r;
    c.call = call;
    c.host = host;
    c.outs = outs;
    c.workspace_handle = NULL;
    c.err = err;
    int rc = stream_of(call, host, &c.stream, err);
    if (rc == KG_OK)
        rc = kg_outputs_make(r, call, host, handles, outs, err);
    if (rc != KG_OK)
        return rc;
    rc = kg_cuda_enter(call->device_index, &scope, err);
    if (rc == KG_OK)
        rc = run_in_context(&c);
    kg_cuda_leave(&scope);
    if (rc != KG_OK)
        kg_outputs_release(r, host, handles);
    return rc;
}

/* ---- what is not a launch ---- */

static int settle_cuda(const kg_call *call, const kg_host *host, kg_error *err) {
    outside scope;
    kg_cu_stream stream = NULL;
    int rc = stream_of(call, host, &stream, err);
    if (rc != KG_OK)
        return rc;
    rc = enter_outside(call->device_index, &scope, err);
    if (rc == KG_OK)
        rc = kg_cuda_stream_synchronize(stream, err);
    leave_outside(&scope);
    return rc;
}

static int read_cuda(const kg_call *call, void *to, const void *from, size_t n, kg_error *err) {
    outside scope;
    int rc = enter_outside(call->device_index, &scope, err);
    if (rc == KG_OK)
        rc = kg_cuda_to_host(to, device_address(from), n, err);
    leave_outside(&scope);
    return rc;
}

static int recording_cuda(const kg_call *call, const kg_host *host, bool *yes, kg_error *err) {
    kg_cuda_scope scope;
    kg_cu_stream stream = NULL;
    int rc = stream_of(call, host, &stream, err);
    if (rc != KG_OK)
        return rc;
    rc = kg_cuda_enter(call->device_index, &scope, err);
    if (rc == KG_OK)
        rc = kg_cuda_stream_capturing(stream, yes, err);
    kg_cuda_leave(&scope);
    return rc;
}

const kg_launcher kg_launcher_cuda = {.load = load_cuda,
                                      .prepare = prepare_cuda,
                                      .run = run_cuda,
                                      .settle = settle_cuda,
                                      .read = read_cuda,
                                      .recording = recording_cuda};
