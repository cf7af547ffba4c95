/* Makes a Kernel ready for one call class. Images stay loaded for the life of the process, so each
 * is loaded once, and one that failed is not tried again until the process ends. */
#include "runtime/ready.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/fs.h"
#include "runtime/program.h"

#define MAX_SOURCE ((size_t)16 << 20)

typedef struct loaded {
    kg_hash128 key;
    int32_t device; /* index; a function belongs to one */
    int status;     /* KG_OK, or what building it came to */
    char *why;
    _Atomic bool proved; /* kg_ready's */
    size_t nfunctions;
    kg_function functions[KG_MAX_LAUNCHES];
    struct loaded *next;
} loaded;

static loaded *images[1024]; /* under the writers' lock */

static loaded **bucket(kg_hash128 key) {
    return &images[key.lo % 1024];
}

static loaded *find_loaded(kg_hash128 key, int32_t device) {
    loaded *l = *bucket(key);
    while (l != NULL && (l->key.lo != key.lo || l->key.hi != key.hi || l->device != device))
        l = l->next;
    return l;
}

static int read_source(const kg_ready_request *ask, kg_buf *out, kg_error *err) {
    char *path = kg_path_join(ask->registry, ask->kernel->source);
    kg_error e;
    if (path == NULL)
        return kg_fail(err, KG_ENOMEM, "no memory for a path");
    int rc = kg_read_file(path, MAX_SOURCE, out, &e);
    if (rc != KG_OK) {
        rc = kg_fail(err, rc == KG_ENOTFOUND ? KG_EIO : rc, "the source of %s: %.300s", ask->name,
                     e.msg);
    } else {
        kg_hash128 got = kg_xxh128(out->data, out->len), want = ask->kernel->source_hash;
        if (got.lo != want.lo || got.hi != want.hi)
            rc = kg_fail(err, KG_ECORRUPT,
                         "%s of %s is not what was promoted (its hash differs); restore it or "
                         "promote it again",
                         path, ask->name);
    }
    free(path);
    return rc;
}

/* The line of what the compiler or the inspection said that tells most. */
static const char *telling_line(const char *text) {
    const char *at = strstr(text, "error:");
    while (at != NULL && at > text && at[-1] != '\n')
        at--;
    return at != NULL ? at : text;
}

static int explain_failure(const kg_ready_request *ask, int rc, const kg_buf *messages,
                           const kg_error *e, kg_error *err) {
    const char *text = telling_line(messages->len > 0 ? messages->data : e->msg);
    int line = (int)strcspn(text, "\n");
    if (rc == KG_EENV && ask->call->device == KG_CUDA) /* the same for every Kernel, said once */
        return kg_fail(err, rc,
                       "its Kernels are not built and cannot be here: run `kgen build` where NVRTC "
                       "is and ship its cache (KGEN_CACHE), or: %.*s",
                       line < 300 ? line : 300, text);
    if (rc == KG_EENV)
        return kg_fail(err, rc,
                       "its Kernels are not built and this machine has no C compiler: run `kgen "
                       "build` where there is one and ship its cache (KGEN_CACHE), or install one "
                       "(%.*s)",
                       line < 200 ? line : 200, text);
    return kg_fail(err, rc, "%s could not be built: %.*s", ask->name, line < 300 ? line : 300,
                   text);
}

static int build_image(const kg_ready_request *ask, const kg_plan *plan, const kg_buf *unit,
                       loaded *l, kg_error *err) {
    kg_buf messages;
    kg_error e = {.msg = ""};
    char label[96];
    kg_buf_init(&messages, 0);
    snprintf(label, sizeof(label), "%.60s-%.12s.%s", ask->block->op->name, ask->kernel->id,
             ask->call->device == KG_CUDA ? "cu" : "c");
    kg_load_request load = {.plan = plan,
                            .unit = unit,
                            .label = label,
                            .arch = ask->arch,
                            .device_index = ask->call->device_index,
                            .programs_bytes = kg_program_args_size(ask->call->program)};
    int rc = kg_launcher_of(ask->call->device)->load(&load, l->functions, &messages, &e);
    if (rc == KG_EDEVICE)
        kg_fail(err, rc, "%s", e.msg);
    else if (rc != KG_OK)
        explain_failure(ask, rc, &messages, &e, err);
    kg_buf_free(&messages);
    l->nfunctions = plan->nlaunches;
    return rc;
}

static int not_while_recording(const kg_ready_request *ask, kg_error *err) {
    return kg_fail(err, KG_EBUSY,
                   "%s is not loaded for this call yet, and nothing can be built or loaded while a "
                   "CUDA graph is captured: call kgen.warmup(model, inputs) before",
                   ask->name);
}

/* What is tried again at the next class. */
static bool passes(int status) {
    return status == KG_ENOMEM || status == KG_EBUSY || status == KG_EDEVICE;
}

static int get_image(const kg_ready_request *ask, const kg_plan *plan, const kg_buf *unit,
                     kg_hash128 key, loaded **out, kg_error *err) {
    int32_t device = ask->call->device_index;
    loaded *l = find_loaded(key, device);
    kg_error e;
    if (l == NULL && ask->recording)
        return not_while_recording(ask, err);
    if (l == NULL) {
        l = calloc(1, sizeof(*l));
        if (l == NULL)
            return kg_fail(err, KG_ENOMEM, "no memory for an image");
        l->key = key;
        l->device = device;
        l->status = build_image(ask, plan, unit, l, &e);
        if (passes(l->status)) {
            int status = l->status;
            free(l);
            return kg_fail(err, status, "%s", e.msg);
        }
        if (l->status != KG_OK)
            l->why = strdup(e.msg);
        l->next = *bucket(key);
        *bucket(key) = l;
    }
    if (l->status != KG_OK)
        return kg_fail(err, l->status, "%s", l->why != NULL ? l->why : "could not be built");
    if (l->nfunctions != plan->nlaunches)
        return kg_fail(err, KG_ECORRUPT, "%s: its image has %zu launches, its plan %zu", ask->name,
                       l->nfunctions, plan->nlaunches);
    *out = l;
    return KG_OK;
}

/* The translation unit and the architecture decide what an image is. */
static kg_hash128 image_key(const kg_buf *unit, const char *arch, uint32_t flags) {
    struct {
        kg_hash128 unit;
        uint64_t arch, flags;
    } all = {kg_xxh128(unit->data, unit->len), kg_xxh64(arch, strlen(arch)), flags};
    return kg_xxh128(&all, sizeof(all));
}

static int build_unit(const kg_ready_request *ask, const kg_plan *plan, kg_buf *unit,
                      kg_error *err) {
    kg_buf source;
    kg_error e;
    kg_call as_judged = *ask->call;
    as_judged.skip_outputs = ask->skip;
    kg_buf_init(&source, 0);
    int rc = read_source(ask, &source, err);
    if (rc == KG_OK) {
        rc = kg_source_build(plan, ask->block->op, &ask->kernel->tuning, &as_judged, ask->exact,
                             source.data, source.len, KG_UNIT_NAME, unit, &e);
        if (rc != KG_OK) /* never a plain miss: the plan has already been bound */
            rc = kg_fail(err, rc == KG_ENOTFOUND ? KG_EFORMAT : rc, "%s: %.400s", ask->name, e.msg);
    }
    kg_buf_free(&source);
    return rc;
}

int kg_ready_build(const kg_ready_request *ask, kg_ready *out, kg_hash128 *image, kg_error *err) {
    const kg_plan *plan;
    loaded *l = NULL;
    kg_instance *inst = NULL;
    kg_hash128 key = {0, 0};
    kg_error e;
    kg_buf unit;
    int rc = kg_index_plan(ask->index, ask->nblock, ask->nkernel, &plan, &e);
    if (rc != KG_OK)
        return kg_fail(err, rc, "the plan of %s: %.300s", ask->name, e.msg);
    rc = kg_plan_bind(plan, ask->block->op, &ask->kernel->tuning, &ask->constants, ask->call, &inst,
                      &e);
    if (rc != KG_OK)
        return kg_fail(err, rc, "%s: %.400s", ask->name, e.msg);
    kg_buf_init(&unit, 0);
    rc = build_unit(ask, plan, &unit, err);
    if (rc == KG_OK) {
        key = image_key(&unit, ask->arch, plan->flags);
        rc = get_image(ask, plan, &unit, key, &l, err);
    }
    if (rc == KG_OK)
        rc = kg_ready_make(plan, inst, l->functions, ask->call, out, err);
    if (rc == KG_OK) {
        out->proved = &l->proved;
        *image = key;
    }
    kg_instance_free(inst);
    kg_buf_free(&unit);
    return rc;
}

void kg_ready_forget_failures(void) {
    for (size_t i = 0; i < sizeof(images) / sizeof(images[0]); i++)
        for (loaded **p = &images[i]; *p != NULL;) {
            loaded *l = *p;
            if (l->status == KG_OK) {
                p = &l->next;
                continue;
            }
            *p = l->next;
            free(l->why);
            free(l);
        }
}
