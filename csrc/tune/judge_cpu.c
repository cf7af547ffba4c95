/* The CPU's side of the judge's seam: memfds, loops on threads, images by cc, and a worker that
 * says where a Candidate faulted. Refuses an architecture that this machine does not run. */
#include <inttypes.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "runtime/image.h"
#include "sys/cc.h"
#include "tune/exclusive.h"
#include "tune/judge_cpu.h"
#include "tune/text_inspect.h"

enum { CPU_SECONDS = 600 };

static size_t allowed_cpus(void) {
    cpu_set_t set;
    CPU_ZERO(&set);
    if (sched_getaffinity(0, sizeof set, &set) != 0)
        return 1;
    int n = CPU_COUNT(&set);
    return n > 0 ? (size_t)n : 1;
}

/* What the kernel says that new processes could get. */
static int64_t bytes_free(void) {
    FILE *f = fopen("/proc/meminfo", "r");
    char line[128];
    int64_t bytes = (int64_t)sysconf(_SC_PHYS_PAGES) * sysconf(_SC_PAGESIZE) / 2;
    while (f && fgets(line, sizeof line, f))
        if (strncmp(line, "MemAvailable:", 13) == 0)
            bytes = (int64_t)strtoll(line + 13, NULL, 10) * 1024;
    if (f)
        fclose(f);
    return bytes;
}

static int open_cpu(kg_judge *j, kg_error *err) {
    kg_judge_options *o = &j->options;
    j->threads = allowed_cpus();
    if (o->threads == 0)
        o->threads = (uint32_t)j->threads;
    if (o->threads > 256)
        return kg_fail(err, KG_EINVAL, "threads: %u; a worker has at most 256", o->threads);
    int level = kg_cpu_level();
    if (!o->arch[0] && level > 0)
        snprintf(o->arch, sizeof o->arch, "x86-64-v%d", level);
    else if (!o->arch[0])
        snprintf(o->arch, sizeof o->arch, "aarch64");
    int64_t code = kg_arch_code(o->arch);
    if (code < 0 || code > 4 || code > level)
        return kg_fail(err, KG_EINVAL, "arch: %s does not run on this machine, which is x86-64-v%d",
                       o->arch, level);
    if (o->memory == 0)
        o->memory = bytes_free() / 2;
    j->constants =
        (kg_constants){.num_threads = o->threads, .arch = code, .has_amx = kg_cpu_has_amx()};
    return KG_OK;
}

static void close_cpu(kg_judge *j) {
    (void)j;
}

static int ready(const kg_judge *j, kg_error *err) {
    const kg_cc *cc;
    (void)j;
    return kg_cc_find(&cc, err);
}

static int place(kg_judge *j, kg_slot *s, size_t bytes, size_t align, kg_error *err) {
    (void)j;
    return kg_slot_place(s, bytes, align, err);
}

static void drop(kg_judge *j, kg_slot *s) {
    (void)j;
    kg_slot_close(s);
}

/* Inputs are sealed against the worker, so their guards stay whole by themselves. */
static int guards(kg_judge *j, const kg_slot *const *slots, size_t n, kg_broken *out,
                  kg_error *err) {
    (void)j, (void)err;
    *out = (kg_broken){0};
    for (size_t i = 0; i < n && !out->broken; i++)
        if (slots[i]->writable && !kg_slot_guards_whole(slots[i], &out->where)) {
            out->broken = true;
            out->slot = i;
        }
    return KG_OK;
}

static int copy(kg_judge *j, void *to, const void *from, size_t n, kg_error *err) {
    (void)err;
    kg_copy_parallel(to, from, n, j->threads);
    return KG_OK;
}

static int fill(kg_judge *j, void *to, int dtype, size_t n, uint64_t pattern, kg_error *err) {
    (void)err;
    kg_fill_parallel(to, dtype, n, pattern, j->threads);
    return KG_OK;
}

static int compare(kg_judge *j, int dtype, const void *out, const void *oracle, size_t n,
                   uint64_t poison, kg_comparison *result, kg_error *err) {
    return kg_compare(dtype, out, oracle, n, poison, j->threads, result, err);
}

static int differ(kg_judge *j, const void *a, const void *b, size_t n, int64_t *at, kg_error *err) {
    (void)err;
    *at = kg_differ_parallel(a, b, n, j->threads);
    return KG_OK;
}

static int view(const kg_judge *j, const void *from, size_t n, void *scratch, const void **out,
                kg_error *err) {
    (void)j, (void)n, (void)scratch, (void)err;
    *out = from;
    return KG_OK;
}

static int image(const kg_judge *j, const kg_candidate *c, const kg_judged_case *jc,
                 const kg_instance *inst, kg_buf *out, kg_buf *messages, kg_error *err) {
    const kg_judge_request *r = c->request;
    int rc = kg_text_inspect(r->text, r->n, r->name, messages, err);
    if (rc != KG_OK)
        return rc;
    kg_buf unit;
    kg_buf_init(&unit, 64 << 20);
    rc = kg_source_build(c->plan, j->op, &c->tuning, &jc->c->call, r->any_size ? NULL : &inst->dims,
                         r->text, r->n, KG_UNIT_NAME, &unit, err);
    if (rc == KG_OK) {
        kg_busy_begin();
        rc = kg_image_cpu(unit.data, unit.len, r->name, j->options.arch, c->plan->flags, true, out,
                          messages, NULL, err);
        kg_busy_end();
    }
    kg_buf_free(&unit);
    /* A word that was put together by macros, so that the text did not show it. */
    if (rc == KG_ECOMPILE && messages->data && strstr(messages->data, "poisoned"))
        return kg_fail(err, KG_EUNSUPPORTED, "a word that a Candidate may not have");
    return rc;
}

static int begin(kg_judge *j, kg_error *err) {
    (void)j, (void)err;
    return KG_OK;
}

static void end(kg_judge *j) {
    (void)j;
}

static int open_worker(kg_bench *b, kg_worker **out, kg_error *err) {
    const kg_judge_options *o = &b->j->options;
    kg_worker_options wo = {.path = o->worker,
                            .threads = o->threads,
                            .stack = KG_STACK + KG_STACK_OURS,
                            .cpu_s = CPU_SECONDS + b->limit_ms / 1000 * (int64_t)o->threads};
    return kg_worker_open(&wo, out, err);
}

static int load(kg_bench *b, const kg_buf *bytes, bool *ok, kg_error *err) {
    kg_error why = {0};
    int rc = kg_worker_load(b->worker, bytes->data, bytes->len, b->cand->plan->nlaunches, &why);
    *ok = rc == KG_OK;
    if (rc == KG_EIO || rc == KG_EFORMAT) {
        kg_condemn(b, KG_VERDICT_LAUNCH_ERROR, "the image does not load: %s", why.msg);
        return KG_OK;
    }
    return rc == KG_OK ? KG_OK : kg_fail(err, rc, "%s", why.msg);
}

static const char *verb(uint32_t access) {
    return access == KG_ACCESS_WRITE ? "wrote" : access == KG_ACCESS_READ ? "read" : "touched";
}

/* A fault within reach of a buffer: in it (an input that was written), or outside of it. */
static bool condemn_near(kg_bench *b, const kg_death *d) {
    for (size_t i = 0; i < b->nslots; i++) {
        const kg_slot *s = b->slots[i];
        uint64_t low = b->at[i] - s->offset - KG_W_GUARD;
        uint64_t high = b->at[i] - s->offset + s->used + KG_W_GUARD;
        if (d->address < low || d->address >= high)
            continue;
        int64_t off = (int64_t)(d->address - b->at[i]);
        if (off >= 0 && off < (int64_t)s->bytes)
            kg_condemn(b, KG_VERDICT_INPUT_MODIFIED,
                       "%s input '%s' at byte %" PRId64 " of %zu; inputs must not be written",
                       verb(d->access), b->names[i], off, s->bytes);
        else if (off < 0)
            kg_condemn(b, KG_VERDICT_OUT_OF_BOUNDS, "%s '%s' %" PRId64 " bytes before its begin",
                       verb(d->access), b->names[i], -off);
        else
            kg_condemn(b, KG_VERDICT_OUT_OF_BOUNDS,
                       "%s '%s' %" PRId64 " bytes behind its end (it has %zu bytes)",
                       verb(d->access), b->names[i], off - (int64_t)s->bytes, s->bytes);
        return true;
    }
    return false;
}

static void condemn_reported(kg_bench *b, const kg_death *d) {
    if (d->signal == SIGSYS)
        kg_condemn(b, KG_VERDICT_POLICY, "made system call %u; a Candidate makes none",
                   d->system_call);
    else if (d->stack_guard)
        kg_condemn(b, KG_VERDICT_OUT_OF_RESOURCES,
                   "used more than %d KiB of stack; put large arrays into the workspace",
                   KG_STACK >> 10);
    else if (d->signal == SIGSEGV || d->signal == SIGBUS) {
        if (d->access == KG_ACCESS_UNKNOWN || !condemn_near(b, d))
            kg_condemn(b, KG_VERDICT_ILLEGAL_ACCESS,
                       "%s address 0x%" PRIx64 ", which belongs to no buffer%s", verb(d->access),
                       d->address,
                       d->access == KG_ACCESS_UNKNOWN
                           ? " (or a vector load or store was not aligned)"
                           : "");
    } else
        kg_condemn(b, KG_VERDICT_CRASH, "%s",
                   d->signal == SIGFPE   ? "divided an integer by zero (SIGFPE)"
                   : d->signal == SIGILL ? "ran an instruction that this CPU has not, or "
                                           "__builtin_trap (SIGILL)"
                                         : "was stopped by a trap (SIGTRAP)");
}

static int died(kg_bench *b, kg_error *err) {
    const kg_death *d = kg_worker_death(b->worker);
    (void)err;
    if (d->timed_out)
        kg_condemn(b, KG_VERDICT_TIMEOUT, "a call did not end within %" PRId64 " ms and was killed",
                   b->limit_ms);
    else if (d->reported)
        condemn_reported(b, d);
    else if (d->exit_signal == SIGXCPU)
        kg_condemn(b, KG_VERDICT_TIMEOUT, "the limit of processor time was reached");
    else if (d->exit_signal == SIGSEGV || d->exit_signal == SIGBUS)
        kg_condemn(b, KG_VERDICT_ILLEGAL_ACCESS, "the worker died of signal %d", d->exit_signal);
    else if (d->exit_signal)
        kg_condemn(b, KG_VERDICT_CRASH, "the worker died of signal %d", d->exit_signal);
    else
        kg_condemn(b, KG_VERDICT_CRASH, "the worker ended with code %d without an answer",
                   d->exit_code);
    return KG_OK;
}

static void cpu_name(char out[128]) {
    char line[256];
    FILE *f = fopen("/proc/cpuinfo", "r");
    snprintf(out, 128, "CPU");
    while (f && fgets(line, sizeof line, f)) {
        const char *colon = strchr(line, ':');
        if (strncmp(line, "model name", 10) != 0 || !colon)
            continue;
        snprintf(out, 128, "%.*s", (int)strcspn(colon + 2, "\n"), colon + 2);
        break;
    }
    if (f)
        fclose(f);
}

static void environment(const kg_judge *j, unsigned flags, kg_json *o) {
    char text[1024];
    const kg_cc *cc = NULL;
    cpu_name(text);
    kg_json_set_str(o, "device", text);
    kg_json_set_int(o, "threads", j->options.threads);
    kg_json_set_str(o, "driver", NULL);
    if (kg_cc_find(&cc, NULL) == KG_OK)
        kg_json_set_str(o, "compiler", cc->version);
    kg_json_set_str(o, "flags", kg_cc_flags(j->options.arch, flags, text, sizeof text));
}

const kg_judge_device kg_judge_cpu = {
    .target = KG_CPU,
    .output_align = 64,
    .second_run = "the second cut the range into other chunks, in another order",
    .source = "kernel.c",
    .open = open_cpu,
    .close = close_cpu,
    .ready = ready,
    .place = place,
    .drop = drop,
    .guards = guards,
    .copy = copy,
    .fill = fill,
    .compare = compare,
    .differ = differ,
    .view = view,
    .image = image,
    .begin = begin,
    .end = end,
    .worker = open_worker,
    .load = load,
    .died = died,
    .time = kg_cpu_time,
    .environment = environment,
};
