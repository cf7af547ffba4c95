/* The CUDA side of the judge's seam: which GPU, what it has, and the table. Shares the device's
 * primary context with torch, so that what torch computed is compared where it lies; Candidates run
 * in the worker's own. Refuses an architecture that is not the GPU's. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sched.h>

#include "base/fs.h"
#include "runtime/image_cuda.h"
#include "sys/nvrtc.h"
#include "tune/judge_cuda.h"

static size_t allowed_cpus(void) {
    cpu_set_t set;
    CPU_ZERO(&set);
    if (sched_getaffinity(0, sizeof set, &set) != 0)
        return 1;
    int n = CPU_COUNT(&set);
    return n > 0 ? (size_t)n : 1;
}

static int settle_options(kg_judge *j, const kg_cuda_judge *c, kg_error *err) {
    kg_judge_options *o = &j->options;
    size_t left = 0, total = 0;
    char arch[24];
    snprintf(arch, sizeof arch, "sm_%d", c->gpu->arch);
    if (o->arch[0] && strcmp(o->arch, arch) != 0)
        return kg_fail(err, KG_EINVAL, "arch: %s is not that of GPU %d, which is %s (%s)", o->arch,
                       c->index, arch, c->gpu->name);
    snprintf(o->arch, sizeof o->arch, "%s", arch);
    j->threads = allowed_cpus(); /* of copies between host and device */
    j->constants = (kg_constants){
        .num_sms = c->gpu->sms, .max_shared = c->gpu->max_shared, .arch = c->gpu->arch};
    int rc = o->memory ? KG_OK : kg_cuda_memory_info(&left, &total, err);
    if (rc == KG_OK && !o->memory)
        o->memory = (int64_t)(left / 2);
    return rc;
}

static int open_in_context(kg_judge *j, kg_cuda_judge *c, kg_error *err) {
    int rc = settle_options(j, c, err);
    if (rc == KG_OK)
        rc = kg_cuda_stream_create(&c->stream, err);
    if (rc == KG_OK)
        rc = kg_cuda_event_create(true, &c->begin, err);
    if (rc == KG_OK)
        rc = kg_cuda_event_create(true, &c->end, err);
    return rc;
}

/* In the context; copies of sets are gone already. */
static void close_in_context(kg_cuda_judge *c) {
    kg_stages_close(c);
    kg_checks_unload(c);
    kg_cuda_event_destroy(c->begin);
    kg_cuda_event_destroy(c->end);
    kg_cuda_stream_destroy(c->stream);
}

static int open_cuda(kg_judge *j, kg_error *err) {
    kg_cuda_judge *c = calloc(1, sizeof *c);
    kg_cuda_scope scope;
    if (!c)
        return kg_fail(err, KG_ENOMEM, "a judge: out of memory");
    c->index = j->options.index;
    c->lock = -1;
    c->secret = kg_random();
    int rc = kg_cuda_device_get(c->index, &c->gpu, err);
    if (rc == KG_OK && !c->gpu->vmm)
        rc = kg_fail(err, KG_EENV,
                     "GPU %d (%s) has no memory that another process can map (VMM with file "
                     "descriptors), which judging needs",
                     c->index, c->gpu->name);
    if (rc == KG_OK)
        rc = kg_cuda_enter(c->index, &scope, err);
    if (rc == KG_OK) {
        rc = open_in_context(j, c, err);
        if (rc != KG_OK)
            close_in_context(c);
        kg_cuda_leave(&scope);
    }
    if (rc != KG_OK) {
        free(c);
        return rc;
    }
    j->state = c;
    kg_cuda_worker_ahead(j); /* while the sets are made */
    return KG_OK;
}

static void close_cuda(kg_judge *j) {
    kg_cuda_judge *c = j->state;
    kg_cuda_scope scope;
    kg_worker_close(c->kept);
    kg_worker_close(c->spare);
    if (kg_cuda_enter(c->index, &scope, NULL) == KG_OK) {
        close_in_context(c);
        kg_cuda_leave(&scope);
    }
    free(c);
    j->state = NULL;
}

static int ready(const kg_judge *j, kg_error *err) {
    const kg_cuda_judge *c = j->state;
    const kg_nvrtc *nvrtc = NULL;
    int rc = kg_nvrtc_find(&nvrtc, err);
    return rc == KG_OK ? kg_nvrtc_supports(c->gpu->arch, err) : rc;
}

static int image(const kg_judge *j, const kg_candidate *cand, const kg_judged_case *jc,
                 const kg_instance *inst, kg_buf *out, kg_buf *messages, kg_error *err) {
    const kg_judge_request *r = cand->request;
    const kg_cuda_judge *c = j->state;
    kg_buf unit;
    kg_buf_init(&unit, 64 << 20);
    int rc =
        kg_source_build(cand->plan, j->op, &cand->tuning, &jc->c->call,
                        r->any_size ? NULL : &inst->dims, r->text, r->n, KG_UNIT_NAME, &unit, err);
    if (rc == KG_OK)
        rc = kg_image_cuda(unit.data, unit.len, r->name, c->gpu->arch, cand->plan->flags, out,
                           messages, NULL, err);
    kg_buf_free(&unit);
    return rc;
}

/* One kgen at a time on a device, timed or not: what another one runs shows in both. */
static int begin(kg_judge *j, kg_error *err) {
    kg_cuda_judge *c = j->state;
    char name[KG_CUDA_LOCK];
    return kg_lock_device_wait(kg_cuda_lock_name(c->gpu, name), &c->lock, err);
}

static void end(kg_judge *j) {
    kg_cuda_judge *c = j->state;
    if (c->lock >= 0)
        kg_unlock_file(c->lock);
    c->lock = -1;
}

static void environment(const kg_judge *j, unsigned flags, kg_json *o) {
    const kg_cuda_judge *c = j->state;
    const kg_nvrtc *nvrtc = NULL;
    char text[1024];
    kg_json_set_str(o, "device", c->gpu->name);
    kg_json_set_int(o, "threads", 0);
    kg_json_set_str(o, "driver", kg_cuda_driver_name());
    if (kg_nvrtc_find(&nvrtc, NULL) == KG_OK) {
        snprintf(text, sizeof text, "NVRTC %d.%d", nvrtc->major, nvrtc->minor);
        kg_json_set_str(o, "compiler", text);
    }
    kg_json_set_str(o, "flags", kg_image_cuda_flags(c->gpu->arch, flags, text, sizeof text));
}

const kg_judge_device kg_judge_cuda = {
    .target = KG_CUDA,
    .output_align = 256,
    .second_run = "the second wrote to other addresses and found the caches cold",
    .source = "kernel.cu",
    .open = open_cuda,
    .close = close_cuda,
    .ready = ready,
    .place = kg_cuda_place,
    .drop = kg_cuda_drop,
    .guards = kg_cuda_guards,
    .copy = kg_cuda_copy,
    .fill = kg_cuda_fill,
    .hash = kg_cuda_hash,
    .compare = kg_cuda_compare,
    .differ = kg_cuda_differ,
    .view = kg_cuda_view,
    .forget = kg_cuda_forget,
    .image = image,
    .begin = begin,
    .end = end,
    .worker = kg_cuda_worker_take,
    .keep = kg_cuda_worker_keep,
    .done = kg_cuda_worker_done,
    .load = kg_cuda_load_image,
    .died = kg_cuda_died,
    .time = kg_cuda_time,
    .environment = environment,
};
