/* The stand-in's modules, launches, streams, events and graphs. */
#include <stdio.h>
#include <time.h>

#include "base/buf.h"
#include "fake_internal.h"
#include "runtime/cubin.h"

enum { MAX_KERNELS = 64, MAX_LAUNCHES = 4096, MAX_HOOKS = 64 };

struct CUfunc_st {
    char name[128];
    kg_cubin_function params;
    int registers, local, static_shared, max_threads, max_dynamic, non_portable;
};

struct CUmod_st {
    char *image;
    size_t n; /* 0: text */
    int device;
    struct CUfunc_st functions[MAX_KERNELS];
    size_t nfunctions;
    struct CUmod_st *next;
};

struct CUstream_st {
    bool capturing;
    fake_op *first, **last;
};
struct CUgraph_st {
    fake_op *first;
};
struct CUgraphExec_st {
    fake_op *first;
};
struct CUevent_st {
    struct timespec at;
    bool recorded;
};

static struct CUmod_st *modules; /* those that are loaded: no leak for a sanitizer */
static fake_launch *done[MAX_LAUNCHES];
static size_t ndone;
static struct {
    char kernel[128];
    int fault;
    void (*fn)(const fake_launch *, void *);
    void *ctx;
} hooks[MAX_HOOKS];
static size_t nhooks;
static int left_behind; /* a fault that the next wait gives */
static char log_path[512];
static void *kernels;
static _Thread_local int captures; /* streams that this thread has capturing */
static _Thread_local int capture_mode;
static _Atomic int all_captures;

/* As in the driver: this thread's capture always counts unless it says "relaxed", another thread's
 * when that one was begun in the global mode, which the stand-in takes every one to be. */
bool fake_thread_captures(void) {
    return capture_mode != KG_CU_CAPTURE_MODE_RELAXED && (captures > 0 || all_captures > 0);
}

int cuThreadExchangeStreamCaptureMode(int *mode) {
    int result = fake_begin("cuThreadExchangeStreamCaptureMode", FAKE_PLAIN), before = capture_mode;
    capture_mode = *mode;
    *mode = before;
    return result;
}

/* ---- control ---- */

void fake_set_fault(const char *kernel, int result);
void fake_set_log(const char *path);
void fake_set_kernels(const char *path);
int fake_take_fault(void);
void fake_forget_work(void);
size_t fake_nlaunches(void);
const fake_launch *fake_launch_at(size_t i);
void fake_on_launch(const char *kernel, void (*fn)(const fake_launch *l, void *ctx), void *ctx);
size_t fake_live_modules(void);

static size_t hook_of(const char *kernel) {
    for (size_t i = 0; i < nhooks; i++)
        if (strcmp(hooks[i].kernel, kernel) == 0)
            return i;
    size_t at = nhooks < MAX_HOOKS ? nhooks++ : MAX_HOOKS - 1;
    memset(&hooks[at], 0, sizeof(hooks[at]));
    snprintf(hooks[at].kernel, sizeof(hooks[at].kernel), "%s", kernel);
    return at;
}

void fake_set_fault(const char *kernel, int result) {
    hooks[hook_of(kernel)].fault = result;
}

void fake_on_launch(const char *kernel, void (*fn)(const fake_launch *l, void *ctx), void *ctx) {
    size_t at = hook_of(kernel);
    hooks[at].fn = fn;
    hooks[at].ctx = ctx;
}

void fake_set_log(const char *path) {
    snprintf(log_path, sizeof(log_path), "%s", path);
}

void fake_set_kernels(const char *path) {
    kernels = dlopen(path, RTLD_NOW | RTLD_LOCAL);
}

int fake_take_fault(void) {
    pthread_mutex_lock(&fake_lock);
    int fault = left_behind;
    left_behind = 0;
    pthread_mutex_unlock(&fake_lock);
    return fault;
}

void fake_forget_work(void) {
    pthread_mutex_lock(&fake_lock);
    for (size_t i = 0; i < ndone; i++)
        free(done[i]);
    ndone = nhooks = 0;
    left_behind = 0;
    pthread_mutex_unlock(&fake_lock);
}

size_t fake_nlaunches(void) {
    return ndone;
}

const fake_launch *fake_launch_at(size_t i) {
    return i < ndone ? done[i] : NULL;
}

size_t fake_live_modules(void) {
    size_t n = 0;
    for (const struct CUmod_st *m = modules; m != NULL; m = m->next)
        n++;
    return n;
}

/* ---- modules ---- */

static bool text_number(const char *line, const char *key, int *out) {
    const char *at = strstr(line, key);
    if (at != NULL)
        *out = (int)strtol(at + strlen(key), NULL, 10);
    return at != NULL;
}

/* "kernel NAME 8,8,4 registers=32". Offsets as a compiler lays them out. */
static void text_kernel(struct CUmod_st *m, const char *line) {
    char sizes[256] = "";
    struct CUfunc_st *f = &m->functions[m->nfunctions];
    if (m->nfunctions == MAX_KERNELS || sscanf(line, "kernel %127s %255s", f->name, sizes) != 2)
        return;
    size_t offset = 0;
    for (char *at = sizes; *at >= '0' && *at <= '9'; at += *at == ',') {
        size_t size = strtoul(at, &at, 10), align = size >= 8 ? 8 : size > 0 ? size : 1;
        align = size == 128 ? 64 : align; /* a tensor map */
        offset = (offset + align - 1) / align * align;
        f->params.params[f->params.nparams].offset = offset;
        f->params.params[f->params.nparams++].size = size;
        offset += size;
    }
    text_number(line, "registers=", &f->registers);
    text_number(line, "local=", &f->local);
    text_number(line, "static_shared=", &f->static_shared);
    text_number(line, "max_threads=", &f->max_threads);
    m->nfunctions++;
}

static void load_text(struct CUmod_st *m, const char *text) {
    for (const char *at = text; *at != '\0'; at += strcspn(at, "\n"), at += *at != '\0') {
        for (size_t i = m->nfunctions; i < MAX_KERNELS; i++)
            m->functions[i].max_threads = 1024;
        char line[512];
        snprintf(line, sizeof(line), "%.*s", (int)strcspn(at, "\n"), at);
        text_kernel(m, line);
    }
}

/* The size of an ELF file whose section table comes last, as NVRTC writes them. */
static size_t elf_size(const void *image) {
    const unsigned char *b = image;
    uint64_t shoff, phoff, end = 0;
    uint16_t entry, count, pentry, pcount;
    memcpy(&phoff, b + 32, 8);
    memcpy(&shoff, b + 40, 8);
    memcpy(&pentry, b + 54, 2);
    memcpy(&pcount, b + 56, 2);
    memcpy(&entry, b + 58, 2);
    memcpy(&count, b + 60, 2);
    end = shoff + (uint64_t)entry * count;
    uint64_t programs = phoff + (uint64_t)pentry * pcount;
    return (size_t)(end > programs ? end : programs);
}

static int load_module(struct CUmod_st *m, const void *image) {
    static const char text[] = "KGFAKE1\n";
    m->device = fake_current_device();
    if (memcmp(image, text, 4) == 0 && strncmp(image, text, sizeof(text) - 1) == 0) {
        load_text(m, image);
        return 0;
    }
    if (memcmp(image, "\177ELF", 4) != 0)
        return KG_CU_INVALID_IMAGE;
    m->n = elf_size(image);
    m->image = malloc(m->n);
    if (m->image == NULL)
        return KG_CU_OUT_OF_MEMORY;
    memcpy(m->image, image, m->n);
    int arch = kg_cubin_arch(m->image, m->n);
    return arch > 0 && arch / 10 == fake_conf.arch / 10 && arch <= fake_conf.arch
               ? 0
               : KG_CU_NO_BINARY_FOR_GPU;
}

int cuModuleLoadData(kg_cu_module *out, const void *image) {
    int result = fake_begin("cuModuleLoadData", FAKE_CONTEXT | FAKE_NO_CAPTURE);
    if (result != 0)
        return result;
    struct CUmod_st *m = calloc(1, sizeof(*m));
    result = m != NULL ? load_module(m, image) : KG_CU_OUT_OF_MEMORY;
    if (result != 0) {
        free(m != NULL ? m->image : NULL);
        free(m);
        return result;
    }
    pthread_mutex_lock(&fake_lock);
    m->next = modules;
    modules = m;
    pthread_mutex_unlock(&fake_lock);
    *out = m;
    return 0;
}

int cuModuleUnload(kg_cu_module m) {
    int result = fake_begin("cuModuleUnload", FAKE_CONTEXT | FAKE_NO_CAPTURE);
    if (result != 0)
        return result;
    pthread_mutex_lock(&fake_lock);
    struct CUmod_st **at = &modules;
    while (*at != NULL && *at != m)
        at = &(*at)->next;
    if (*at != NULL)
        *at = m->next;
    pthread_mutex_unlock(&fake_lock);
    free(m->image);
    free(m);
    return 0;
}

int cuModuleGetFunction(kg_cu_function *out, kg_cu_module m, const char *name) {
    int result = fake_begin("cuModuleGetFunction", FAKE_CONTEXT);
    if (result != 0)
        return result;
    for (size_t i = 0; i < m->nfunctions; i++)
        if (strcmp(m->functions[i].name, name) == 0) {
            *out = &m->functions[i];
            return 0;
        }
    struct CUfunc_st *f = &m->functions[m->nfunctions];
    if (m->n == 0 || m->nfunctions == MAX_KERNELS ||
        kg_cubin_function_get(m->image, m->n, name, &f->params, NULL) != KG_OK)
        return KG_CU_NOT_FOUND;
    snprintf(f->name, sizeof(f->name), "%s", name);
    f->registers = 32;
    f->max_threads = 1024;
    m->nfunctions++;
    *out = f;
    return 0;
}

int cuFuncGetAttribute(int *out, int which, kg_cu_function f) {
    int result = fake_begin("cuFuncGetAttribute", FAKE_CONTEXT);
    if (result != 0)
        return result;
    switch (which) {
    case KG_CU_FUNC_MAX_THREADS:
        *out = f->max_threads;
        return 0;
    case KG_CU_FUNC_STATIC_SHARED:
        *out = f->static_shared;
        return 0;
    case KG_CU_FUNC_LOCAL:
        *out = f->local;
        return 0;
    case KG_CU_FUNC_REGISTERS:
        *out = f->registers;
        return 0;
    case KG_CU_FUNC_MAX_DYNAMIC_SHARED:
        *out = f->max_dynamic > 0 ? f->max_dynamic : 48 * 1024 - f->static_shared;
        return 0;
    default:
        return KG_CU_INVALID_VALUE;
    }
}

int cuFuncSetAttribute(kg_cu_function f, int which, int value) {
    int result = fake_begin("cuFuncSetAttribute", FAKE_CONTEXT);
    if (result != 0)
        return result;
    if (which == KG_CU_FUNC_NON_PORTABLE_CLUSTER) {
        f->non_portable = value;
        return 0;
    }
    if (which != KG_CU_FUNC_MAX_DYNAMIC_SHARED || value + f->static_shared > fake_conf.shared)
        return KG_CU_INVALID_VALUE;
    f->max_dynamic = value;
    return 0;
}

int cuFuncGetParamInfo(kg_cu_function f, size_t i, size_t *offset, size_t *size) {
    int result = fake_begin("cuFuncGetParamInfo", FAKE_PLAIN);
    if (result != 0 || i >= f->params.nparams)
        return result != 0 ? result : KG_CU_INVALID_VALUE;
    *offset = f->params.params[i].offset;
    *size = f->params.params[i].size;
    return 0;
}

int cuFuncLoad(kg_cu_function f) {
    (void)f;
    return fake_begin("cuFuncLoad", FAKE_CONTEXT | FAKE_NO_CAPTURE);
}

int cuOccupancyMaxActiveBlocksPerMultiprocessor(int *n, kg_cu_function f, int threads,
                                                size_t shared) {
    int result = fake_begin("cuOccupancyMaxActiveBlocksPerMultiprocessor", FAKE_CONTEXT);
    if (result != 0)
        return result;
    size_t bytes = shared + (size_t)f->static_shared;
    int by_threads = 2048 / (threads > 0 ? threads : 1);
    int by_shared = bytes > 0 ? (int)((size_t)fake_conf.shared / bytes) : 32;
    *n = by_threads < by_shared ? by_threads : by_shared;
    return 0;
}

int cuOccupancyMaxActiveClusters(int *n, kg_cu_function f, const kg_cu_launch_config *c) {
    (void)f, (void)c;
    int result = fake_begin("cuOccupancyMaxActiveClusters", FAKE_CONTEXT);
    if (result == 0)
        *n = fake_conf.clusters_fit;
    return result;
}

/* ---- launches ---- */

static void write_log(const fake_launch *l) {
    FILE *f = log_path[0] != '\0' ? fopen(log_path, "ae") : NULL;
    if (f == NULL)
        return;
    fprintf(f, "%s grid %u,%u,%u block %u,%u,%u cluster %u,%u,%u shared %u%s%s device %d\n",
            l->function, l->grid[0], l->grid[1], l->grid[2], l->block[0], l->block[1], l->block[2],
            l->cluster[0], l->cluster[1], l->cluster[2], l->shared,
            l->cooperative ? " cooperative" : "", l->pdl ? " pdl" : "", l->device);
    fclose(f);
}

/* Keeps a copy for the test. */
static void remember(const fake_launch *l) {
    fake_launch *copy = ndone < MAX_LAUNCHES ? aligned_alloc(64, sizeof(*copy)) : NULL;
    if (copy == NULL)
        return;
    *copy = *l;
    done[ndone++] = copy;
}

/* After the kernel's own function, which may have asked for it. */
static void leave_fault(const char *kernel) {
    pthread_mutex_lock(&fake_lock);
    for (size_t i = 0; i < nhooks; i++)
        if (strcmp(hooks[i].kernel, kernel) == 0 && hooks[i].fault != 0)
            left_behind = hooks[i].fault;
    pthread_mutex_unlock(&fake_lock);
}

void fake_run_launch(fake_launch *l) {
    void (*fn)(const fake_launch *, void *) = NULL;
    void *ctx = NULL;
    pthread_mutex_lock(&fake_lock);
    remember(l);
    write_log(l);
    for (size_t i = 0; i < nhooks; i++)
        if (strcmp(hooks[i].kernel, l->function) == 0) {
            fn = hooks[i].fn;
            ctx = hooks[i].ctx;
        }
    pthread_mutex_unlock(&fake_lock);
    char name[160];
    void (*own)(const fake_launch *) = NULL;
    snprintf(name, sizeof(name), "fake_kernel_%s", l->function);
    void *symbol = kernels != NULL ? dlsym(kernels, name) : NULL;
    memcpy(&own, &symbol, sizeof(symbol));
    if (own != NULL)
        own(l);
    if (fn != NULL)
        fn(l, ctx);
    leave_fault(l->function);
}

static void take_attributes(const kg_cu_launch_config *c, fake_launch *l) {
    for (size_t k = 0; k < 3; k++)
        l->cluster[k] = 1;
    for (unsigned i = 0; i < c->nattrs; i++) {
        const kg_cu_launch_attribute *a = &c->attrs[i];
        if (a->id == KG_CU_LAUNCH_CLUSTER)
            memcpy(l->cluster, a->value.dim, sizeof(l->cluster));
        l->cooperative |= a->id == KG_CU_LAUNCH_COOPERATIVE && a->value.flag;
        l->pdl |= a->id == KG_CU_LAUNCH_PDL && a->value.flag;
    }
}

/* As the driver refuses them. */
static int check_launch(const fake_launch *l, const struct CUfunc_st *f) {
    unsigned blocks = l->cluster[0] * l->cluster[1] * l->cluster[2];
    int limit = f->max_dynamic > 0 ? f->max_dynamic : 48 * 1024 - f->static_shared;
    for (size_t k = 0; k < 3; k++)
        if (l->grid[k] == 0 || l->block[k] == 0 || l->grid[k] % l->cluster[k] != 0 ||
            (k > 0 && l->grid[k] > 65535))
            return KG_CU_INVALID_VALUE;
    if (l->block[0] * l->block[1] * l->block[2] > (unsigned)f->max_threads)
        return KG_CU_INVALID_VALUE;
    if ((int)l->shared > limit)
        return KG_CU_INVALID_VALUE;
    if (blocks > 1 && (!fake_conf.clusters || fake_conf.arch < 90))
        return KG_CU_INVALID_VALUE;
    return blocks > 8 && !f->non_portable ? KG_CU_INVALID_CLUSTER_SIZE : 0;
}

static void take_arguments(const struct CUfunc_st *f, void **args, fake_launch *l) {
    l->nparams = f->params.nparams;
    for (size_t i = 0; i < l->nparams; i++) {
        l->offset[i] = f->params.params[i].offset;
        l->size[i] = f->params.params[i].size;
        if (l->offset[i] + l->size[i] <= FAKE_MAX_BYTES)
            memcpy(l->bytes + l->offset[i], args[i], l->size[i]);
    }
}

int cuLaunchKernelEx(const kg_cu_launch_config *c, kg_cu_function f, void **args, void **extra) {
    (void)extra;
    int result = fake_begin("cuLaunchKernelEx", FAKE_CONTEXT);
    if (result != 0)
        return result;
    fake_launch *l = aligned_alloc(64, sizeof(*l));
    if (l == NULL)
        return KG_CU_OUT_OF_MEMORY;
    memset(l, 0, sizeof(*l));
    snprintf(l->function, sizeof(l->function), "%s", f->name);
    memcpy(l->grid, c->grid, sizeof(l->grid));
    memcpy(l->block, c->block, sizeof(l->block));
    l->shared = c->shared;
    l->stream = c->stream;
    l->device = fake_current_device();
    take_attributes(c, l);
    result = check_launch(l, f);
    if (result != 0) {
        free(l);
        return result;
    }
    take_arguments(f, args, l);
    return fake_submit(c->stream, (fake_op){.kind = FAKE_LAUNCH, .launch = l});
}

int cuTensorMapEncodeTiled(kg_cuda_map *out, int type, unsigned rank, void *address,
                           const uint64_t *dims, const uint64_t *strides, const uint32_t *box,
                           const uint32_t *element_strides, int interleave, int swizzle, int l2,
                           int fill) {
    int result = fake_begin("cuTensorMapEncodeTiled", FAKE_PLAIN);
    if (result != 0 || rank < 1 || rank > 5 || (uintptr_t)address % 16 != 0)
        return result != 0 ? result : KG_CU_INVALID_VALUE;
    /* Readable by tests: address, then type, rank, swizzle and l2, then dims, strides and boxes. */
    memset(out, 0, sizeof(*out));
    out->opaque[0] = (uintptr_t)address;
    out->opaque[1] = (uint64_t)type | (uint64_t)rank << 8 | (uint64_t)swizzle << 16 |
                     (uint64_t)l2 << 24 | (uint64_t)interleave << 32 | (uint64_t)fill << 40;
    for (unsigned i = 0; i < rank; i++) {
        out->opaque[2 + i] = dims[i];
        out->opaque[11 + i] = box[i] | (uint64_t)element_strides[i] << 32;
        if (i > 0)
            out->opaque[6 + i] = strides[i - 1];
    }
    return 0;
}

/* ---- streams and graphs ---- */

static void run_op(const fake_op *op, bool from_graph) {
    uint32_t word = op->value;
    switch (op->kind) {
    case FAKE_LAUNCH:
        op->launch->from_graph = from_graph;
        op->launch->captured = 0;
        fake_run_launch(op->launch);
        break;
    case FAKE_SET8:
        memset((void *)op->to, (int)op->value, op->n);
        break;
    case FAKE_SET32:
        for (size_t i = 0; i < op->n; i++)
            memcpy((char *)op->to + 4 * i, &word, sizeof(word));
        break;
    case FAKE_COPY:
        memcpy((void *)op->to, (const void *)op->from, op->n);
        break;
    }
}

int fake_submit(kg_cu_stream stream, fake_op op) {
    if (stream == NULL || !stream->capturing) {
        run_op(&op, false);
        free(op.launch);
        return 0;
    }
    fake_op *kept = calloc(1, sizeof(*kept));
    if (kept == NULL)
        return KG_CU_OUT_OF_MEMORY;
    *kept = op;
    if (op.launch != NULL) {
        op.launch->captured = 1;
        pthread_mutex_lock(&fake_lock);
        remember(op.launch);
        pthread_mutex_unlock(&fake_lock);
    }
    *stream->last = kept;
    stream->last = &kept->next;
    return 0;
}

static void free_ops(fake_op *op) {
    for (fake_op *next; op != NULL; op = next) {
        next = op->next;
        free(op->launch);
        free(op);
    }
}

int cuStreamCreate(kg_cu_stream *out, unsigned flags) {
    (void)flags;
    int result = fake_begin("cuStreamCreate", FAKE_CONTEXT);
    if (result == 0)
        *out = calloc(1, sizeof(**out));
    return result;
}

int cuStreamDestroy_v2(kg_cu_stream s) {
    int result = fake_begin("cuStreamDestroy_v2", FAKE_CONTEXT);
    if (result == 0) {
        free_ops(s->first);
        free(s);
    }
    return result;
}

int cuStreamSynchronize(kg_cu_stream s) {
    (void)s;
    int result = fake_begin("cuStreamSynchronize", FAKE_CONTEXT | FAKE_NO_CAPTURE);
    return result != 0 ? result : fake_wait();
}

int cuStreamQuery(kg_cu_stream s) {
    (void)s;
    return fake_begin("cuStreamQuery", FAKE_CONTEXT);
}

int cuStreamWaitEvent(kg_cu_stream s, kg_cu_event e, unsigned flags) {
    (void)s, (void)e, (void)flags;
    return fake_begin("cuStreamWaitEvent", FAKE_CONTEXT);
}

int cuStreamIsCapturing(kg_cu_stream s, int *status) {
    int result = fake_begin("cuStreamIsCapturing", FAKE_CONTEXT);
    if (result == 0)
        *status = s != NULL && s->capturing;
    return result;
}

int cuStreamBeginCapture_v2(kg_cu_stream s, int mode) {
    (void)mode;
    int result = fake_begin("cuStreamBeginCapture_v2", FAKE_CONTEXT);
    if (result == 0 && (s == NULL || s->capturing))
        result = KG_CU_STREAM_CAPTURE_UNSUPPORTED;
    if (result != 0)
        return result;
    s->capturing = true;
    s->last = &s->first;
    captures++;
    all_captures++;
    return 0;
}

int cuStreamEndCapture(kg_cu_stream s, kg_cu_graph *out) {
    int result = fake_begin("cuStreamEndCapture", FAKE_CONTEXT);
    if (!s->capturing)
        return KG_CU_INVALID_VALUE;
    s->capturing = false;
    captures--;
    all_captures--;
    kg_cu_graph g = result == 0 ? calloc(1, sizeof(*g)) : NULL;
    if (g != NULL)
        g->first = s->first;
    else
        free_ops(s->first);
    s->first = NULL;
    *out = g;
    return result;
}

static fake_op *copy_ops(const fake_op *op) {
    fake_op *first = NULL, **last = &first;
    for (; op != NULL; op = op->next) {
        fake_op *c = calloc(1, sizeof(*c));
        if (c == NULL)
            break;
        *c = *op;
        c->next = NULL;
        if (op->launch != NULL && (c->launch = aligned_alloc(64, sizeof(*c->launch))) != NULL)
            *c->launch = *op->launch;
        *last = c;
        last = &c->next;
    }
    return first;
}

int cuGraphInstantiateWithFlags(kg_cu_graph_exec *out, kg_cu_graph g, unsigned long long flags) {
    (void)flags;
    int result = fake_begin("cuGraphInstantiateWithFlags", FAKE_CONTEXT);
    if (result != 0)
        return result;
    *out = calloc(1, sizeof(**out));
    if (*out == NULL)
        return KG_CU_OUT_OF_MEMORY;
    (*out)->first = copy_ops(g->first);
    return 0;
}

int cuGraphLaunch(kg_cu_graph_exec g, kg_cu_stream s) {
    (void)s;
    int result = fake_begin("cuGraphLaunch", FAKE_CONTEXT);
    for (const fake_op *op = g->first; result == 0 && op != NULL; op = op->next)
        run_op(op, true);
    return result;
}

int cuGraphExecDestroy(kg_cu_graph_exec g) {
    free_ops(g->first);
    free(g);
    return fake_begin("cuGraphExecDestroy", FAKE_PLAIN);
}

int cuGraphDestroy(kg_cu_graph g) {
    free_ops(g->first);
    free(g);
    return fake_begin("cuGraphDestroy", FAKE_PLAIN);
}

/* ---- events ---- */

int cuEventCreate(kg_cu_event *out, unsigned flags) {
    (void)flags;
    int result = fake_begin("cuEventCreate", FAKE_CONTEXT);
    if (result == 0)
        *out = calloc(1, sizeof(**out));
    return result;
}

int cuEventDestroy_v2(kg_cu_event e) {
    free(e);
    return fake_begin("cuEventDestroy_v2", FAKE_PLAIN);
}

int cuEventRecord(kg_cu_event e, kg_cu_stream s) {
    (void)s;
    int result = fake_begin("cuEventRecord", FAKE_CONTEXT);
    if (result == 0) {
        clock_gettime(CLOCK_MONOTONIC, &e->at);
        e->recorded = true;
    }
    return result;
}

int cuEventSynchronize(kg_cu_event e) {
    (void)e;
    int result = fake_begin("cuEventSynchronize", FAKE_CONTEXT | FAKE_NO_CAPTURE);
    return result != 0 ? result : fake_wait();
}

int cuEventQuery(kg_cu_event e) {
    (void)e;
    return fake_begin("cuEventQuery", FAKE_CONTEXT);
}

int cuEventElapsedTime(float *ms, kg_cu_event from, kg_cu_event to) {
    int result = fake_begin("cuEventElapsedTime", FAKE_CONTEXT);
    if (result == 0 && (!from->recorded || !to->recorded))
        result = KG_CU_INVALID_VALUE;
    if (result == 0)
        *ms = (float)(1e3 * (double)(to->at.tv_sec - from->at.tv_sec) +
                      1e-6 * (double)(to->at.tv_nsec - from->at.tv_nsec));
    return result;
}
