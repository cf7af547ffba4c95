/* The C API over the judge: arguments out of JSON, results into it. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "kgen_judge.h"
#include "tune/judge_internal.h"
#include "tune/text_inspect.h"

/* NULL and "" are an empty object. */
static int parse(const char *text, const char *what, const char *const *keys, kg_json **out,
                 kg_error *err) {
    kg_json *root = NULL;
    if (!text || !*text)
        text = "{}";
    int rc = kg_json_parse(text, strlen(text), what, &root, err);
    if (rc == KG_OK && !kg_json_is_object(root))
        rc = kg_fail(err, KG_EFORMAT, "%s is not an object", what);
    if (rc == KG_OK)
        rc = kg_json_only(root, what, keys, err);
    if (rc != KG_OK) {
        kg_json_free(root);
        return rc;
    }
    *out = root;
    return KG_OK;
}

/* Absent and null leave *out. */
static int get_int(const kg_json *o, const char *key, int64_t *out, kg_error *err) {
    const kg_json *v = kg_json_get(o, key);
    return !v || kg_json_is_null(v) ? KG_OK : kg_json_int(v, key, out, err);
}

static int get_bool(const kg_json *o, const char *key, bool *out, kg_error *err) {
    const kg_json *v = kg_json_get(o, key);
    return !v || kg_json_is_null(v) ? KG_OK : kg_json_bool(v, key, out, err);
}

static int get_text(const kg_json *o, const char *key, const char **out, kg_error *err) {
    const kg_json *v = kg_json_get(o, key);
    return !v || kg_json_is_null(v) ? KG_OK : kg_json_str(v, key, out, err);
}

static int read_options(const char *text, kg_judge_options *o, kg_error *err) {
    static const char *const keys[] = {"device", "index",      "threads", "arch",
                                       "worker", "timeout_ms", "memory",  NULL};
    const char *arch = "", *worker = "", *device = "cpu";
    int64_t threads = 0, index = 0;
    kg_json *root = NULL;
    int rc = parse(text, "options", keys, &root, err);
    if (rc == KG_OK)
        rc = get_text(root, "device", &device, err);
    if (rc == KG_OK)
        rc = get_int(root, "index", &index, err);
    if (rc == KG_OK && strcmp(device, "cpu") != 0 && strcmp(device, "cuda") != 0)
        rc = kg_fail(err, KG_EINVAL, "device: \"%.40s\"; it must be cpu or cuda", device);
    if (rc == KG_OK && (index < 0 || index > INT32_MAX))
        rc = kg_fail(err, KG_EINVAL, "index: %lld is no GPU's", (long long)index);
    if (rc == KG_OK)
        rc = get_int(root, "threads", &threads, err);
    if (rc == KG_OK)
        rc = get_int(root, "timeout_ms", &o->timeout_ms, err);
    if (rc == KG_OK)
        rc = get_int(root, "memory", &o->memory, err);
    if (rc == KG_OK)
        rc = get_text(root, "arch", &arch, err);
    if (rc == KG_OK)
        rc = get_text(root, "worker", &worker, err);
    if (rc == KG_OK && (threads < 0 || threads > 256))
        rc = kg_fail(err, KG_EINVAL, "threads: %lld is not in 0..256", (long long)threads);
    if (rc == KG_OK && (strlen(arch) >= sizeof o->arch || strlen(worker) >= sizeof o->worker))
        rc = kg_fail(err, KG_EOVERFLOW, "arch or worker is too long");
    if (rc == KG_OK) {
        o->device = strcmp(device, "cuda") == 0 ? KG_CUDA : KG_CPU;
        o->index = (int)index;
        o->threads = (uint32_t)threads;
        snprintf(o->arch, sizeof o->arch, "%s", arch);
        snprintf(o->worker, sizeof o->worker, "%s", worker);
    }
    kg_json_free(root);
    return rc;
}

int kgen_judge_open(const char *op_json, const char *options_json, kgen_judge **out, char *err,
                    size_t nerr) {
    kg_error e = {0};
    kg_judge_options o = {0};
    int rc = read_options(options_json, &o, &e);
    if (rc == KG_OK)
        rc = kg_judge_open(op_json, strlen(op_json), "op.json", &o, out, &e);
    return kg_give(rc, &e, err, nerr);
}

void kgen_judge_close(kgen_judge *judge) {
    kg_judge_close(judge);
}

int kgen_judge_add_case(kgen_judge *judge, const char *case_json, size_t *index, char *err,
                        size_t nerr) {
    kg_error e = {0};
    char what[32];
    snprintf(what, sizeof what, "Case %zu", kg_judge_cases(judge));
    int rc = kg_judge_add_case(judge, case_json, strlen(case_json), what, index, &e);
    return kg_give(rc, &e, err, nerr);
}

static int known_case(const kgen_judge *judge, size_t index, kg_error *e) {
    if (index < kg_judge_cases(judge))
        return KG_OK;
    return kg_fail(e, KG_EINVAL, "there is no Case %zu; the judge has %zu", index,
                   kg_judge_cases(judge));
}

static kg_json *tensor_json(const char *name, const kg_tensor *t) {
    kg_json *o = kg_json_new_object(), *shape = kg_json_new_array(), *stride = kg_json_new_array();
    for (int32_t d = 0; d < t->ndim; d++) {
        kg_json_push_int(shape, t->size[d]);
        kg_json_push_int(stride, t->stride[d]);
    }
    kg_json_set_str(o, "name", name);
    kg_json_set_str(o, "dtype", kg_dtype_name(t->dtype));
    kg_json_set(o, "shape", shape);
    kg_json_set(o, "stride", stride);
    return o;
}

static kg_json *describe(const kgen_judge *judge, const kg_judged_case *jc) {
    kg_json *o = kg_json_new_object(), *inputs = kg_json_new_array(),
            *outputs = kg_json_new_array();
    for (size_t i = 0; i < jc->ninputs; i++) {
        const kg_input *in = &jc->inputs[i];
        kg_json *one = tensor_json(in->name, &in->shape);
        kg_json_set_bool(one, "present", in->present);
        kg_json_set_int(one, "bytes", (int64_t)in->bytes);
        kg_json_push(inputs, one);
    }
    for (size_t i = 0; i < jc->noutputs; i++) {
        kg_json *one = tensor_json(judge->op->outputs[i].name, &jc->outputs[i]);
        kg_json_set_bool(one, "optional", judge->op->outputs[i].optional);
        kg_json_push(outputs, one);
    }
    kg_json_set_str(o, "hash", jc->c->hash);
    kg_json_set(o, "inputs", inputs);
    kg_json_set(o, "outputs", outputs);
    kg_json_set_int(o, "bytes", jc->bytes);
    kg_json_set_double(o, "flops", jc->flops);
    kg_json_set_int(o, "reduction", jc->reduction);
    return o;
}

int kgen_judge_describe(const kgen_judge *judge, size_t index, char **json, char *err,
                        size_t nerr) {
    kg_error e = {0};
    int rc = known_case(judge, index, &e);
    kg_json *o = rc == KG_OK ? describe(judge, &judge->cases[index]) : NULL;
    return kg_give(kg_json_give(rc, o, json, &e), &e, err, nerr);
}

int kgen_judge_set_limits(kgen_judge *judge, size_t index, double slowest_baseline_ns,
                          int64_t bytes, char *err, size_t nerr) {
    kg_error e = {0};
    return kg_give(kg_judge_set_limits(judge, index, slowest_baseline_ns, bytes, &e), &e, err,
                   nerr);
}

static int read_errors(const kg_json *list, kg_errors *out, kg_error *err) {
    for (size_t i = 0; i < kg_json_size(list) && i < KG_MAX_OUTPUTS; i++) {
        const kg_json *pair = kg_json_at(list, i);
        if (kg_json_is_null(pair))
            continue;
        int rc = kg_json_double(kg_json_at(pair, 0), "errors: norm", &out[i].norm, err);
        if (rc == KG_OK)
            rc = kg_json_double(kg_json_at(pair, 1), "errors: max", &out[i].max, err);
        if (rc != KG_OK)
            return rc;
    }
    return KG_OK;
}

static int read_reference(const kg_json *list, kg_tensor *out, kg_error *err) {
    for (size_t i = 0; i < kg_json_size(list) && i < KG_MAX_OUTPUTS; i++) {
        const kg_json *o = kg_json_at(list, i), *shape = kg_json_get(o, "shape");
        const char *dtype = "";
        if (kg_json_is_null(o))
            continue;
        int rc = kg_json_str(kg_json_get(o, "dtype"), "reference: dtype", &dtype, err);
        out[i].dtype = rc == KG_OK ? kg_dtype_parse(dtype) : -1;
        if (rc == KG_OK && (!kg_json_is_array(shape) || kg_json_size(shape) > KG_MAX_RANK))
            rc = kg_fail(err, KG_EFORMAT, "reference: shape is a list of at most %d sizes",
                         KG_MAX_RANK);
        out[i].ndim = rc == KG_OK ? (int32_t)kg_json_size(shape) : 0;
        for (int32_t d = 0; rc == KG_OK && d < out[i].ndim; d++)
            rc =
                kg_json_int(kg_json_at(shape, (size_t)d), "reference: shape", &out[i].size[d], err);
        if (rc != KG_OK)
            return rc;
    }
    return KG_OK;
}

int kgen_judge_add_set(kgen_judge *judge, size_t index, const char *set_json,
                       const void *const *inputs, size_t ninputs, const void *const *oracles,
                       size_t noutputs, char *err, size_t nerr) {
    static const char *const keys[] = {"name", "errors", "slack", "reference", NULL};
    kg_error e = {0};
    kg_errors errors[KG_MAX_OUTPUTS] = {{0, 0}}, slack[KG_MAX_OUTPUTS] = {{0, 0}};
    kg_tensor reference[KG_MAX_OUTPUTS];
    memset(reference, 0, sizeof reference);
    kg_judge_set set = {.name = "",
                        .inputs = inputs,
                        .ninputs = ninputs,
                        .oracles = oracles,
                        .noutputs = noutputs,
                        .torch_errors = errors,
                        .slack = slack};
    kg_json *root = NULL;
    int rc = known_case(judge, index, &e);
    if (rc == KG_OK)
        rc = parse(set_json, "set", keys, &root, &e);
    if (rc == KG_OK)
        rc = get_text(root, "name", &set.name, &e);
    if (rc == KG_OK)
        rc = read_errors(kg_json_get(root, "errors"), errors, &e);
    if (rc == KG_OK)
        rc = read_errors(kg_json_get(root, "slack"), slack, &e);
    if (rc == KG_OK && kg_json_get(root, "reference")) {
        /* What is not stated is taken as the contract has it. */
        memcpy(reference, judge->cases[index].outputs, sizeof reference);
        rc = read_reference(kg_json_get(root, "reference"), reference, &e);
        set.reference = reference;
    }
    if (rc == KG_OK)
        rc = kg_judge_add_set(judge, index, &set, &e);
    kg_json_free(root);
    return kg_give(rc, &e, err, nerr);
}

int kgen_judge_clear_sets(kgen_judge *judge, size_t index, char *err, size_t nerr) {
    kg_error e = {0};
    int rc = known_case(judge, index, &e);
    if (rc == KG_OK)
        kg_judge_clear_sets(judge, index);
    return kg_give(rc, &e, err, nerr);
}

/* What a request holds on to while it runs. */
typedef struct request_text {
    kg_json *root;
    char *tunables;
} request_text;

static int read_tunables(const kg_json *root, request_text *held, kg_error *err) {
    const kg_json *t = kg_json_get(root, "tunables");
    kg_buf text;
    if (!t || kg_json_is_null(t))
        return KG_OK;
    kg_buf_init(&text, 0);
    kg_json_canonical(t, &text);
    int rc = kg_buf_check(&text, "tunables", err);
    if (rc == KG_OK && !(held->tunables = kg_buf_take(&text)))
        rc = kg_fail(err, KG_ENOMEM, "tunables: out of memory");
    kg_buf_free(&text);
    return rc;
}

static int read_request(const char *text, kg_judge_request *r, request_text *held, kg_error *err) {
    static const char *const keys[] = {"name", "tunables", "any_size", "all_sets", "reps", NULL};
    int64_t reps = 0;
    r->name = "candidate.c";
    r->all_sets = true;
    int rc = parse(text, "request", keys, &held->root, err);
    if (rc == KG_OK)
        rc = get_text(held->root, "name", &r->name, err);
    if (rc == KG_OK)
        rc = get_bool(held->root, "any_size", &r->any_size, err);
    if (rc == KG_OK)
        rc = get_bool(held->root, "all_sets", &r->all_sets, err);
    if (rc == KG_OK)
        rc = get_int(held->root, "reps", &reps, err);
    if (rc == KG_OK && (reps < 0 || reps > 1000))
        rc = kg_fail(err, KG_EINVAL, "reps: %lld is not in 0..1000", (long long)reps);
    r->reps = (uint32_t)reps;
    if (rc == KG_OK)
        rc = read_tunables(held->root, held, err);
    r->tunables_json = held->tunables;
    return rc;
}

static void drop_request(request_text *held) {
    kg_json_free(held->root);
    free(held->tunables);
}

int kgen_judge_run(kgen_judge *judge, const char *source, size_t n, const char *request_json,
                   char **record, char *err, size_t nerr) {
    kg_error e = {0};
    kg_judge_request r = {.text = source, .n = n};
    request_text held = {0};
    kg_judge_report *report = NULL;
    kg_json *json = NULL;
    int rc = read_request(request_json, &r, &held, &e);
    if (rc == KG_OK)
        rc = kg_judge_run(judge, &r, &report, &e);
    if (rc == KG_OK)
        rc = kg_judge_record(report, &json, &e);
    kg_judge_report_free(report);
    drop_request(&held);
    return kg_give(kg_json_give(rc, json, record, &e), &e, err, nerr);
}

int kgen_judge_prepare(const kgen_judge *judge, const char *source, size_t n,
                       const char *request_json, char *err, size_t nerr) {
    kg_error e = {0};
    kg_judge_request r = {.text = source, .n = n};
    request_text held = {0};
    int rc = read_request(request_json, &r, &held, &e);
    if (rc == KG_OK)
        rc = kg_judge_prepare(judge, &r, &e);
    drop_request(&held);
    return kg_give(rc, &e, err, nerr);
}

void kgen_judge_set_profiler(kgen_judge *judge, kgen_profiler profiler, void *ctx) {
    kg_judge_set_profiler(judge, profiler, ctx);
}

static int give_text(int rc, kg_buf *b, char **text, kg_error *e) {
    if (rc == KG_OK && !(*text = kg_buf_take(b)))
        rc = kg_fail(e, KG_ENOMEM, "a listing");
    kg_buf_free(b);
    return rc;
}

int kgen_judge_listing(const kgen_judge *judge, const char *source, size_t n,
                       const char *request_json, int whole, size_t bytes, char **text, char *err,
                       size_t nerr) {
    kg_error e = {0};
    kg_judge_request r = {.text = source, .n = n};
    request_text held = {0};
    kg_buf out;
    kg_buf_init(&out, 0);
    int rc = read_request(request_json, &r, &held, &e);
    if (rc == KG_OK)
        rc = kg_judge_listing(judge, &r, &(kg_listing_options){bytes, whole != 0}, &out, &e);
    drop_request(&held);
    return kg_give(give_text(rc, &out, text, &e), &e, err, nerr);
}

int kgen_listing(const void *image, size_t n, int whole, size_t bytes, char **text, char *err,
                 size_t nerr) {
    kg_error e = {0};
    kg_buf out;
    kg_buf_init(&out, 0);
    int rc = kg_listing(image, n, &(kg_listing_options){bytes, whole != 0}, &out, &e);
    return kg_give(give_text(rc, &out, text, &e), &e, err, nerr);
}

int kgen_judge_trivial(const kgen_judge *judge, size_t index, char **json, char *err, size_t nerr) {
    kg_error e = {0};
    kg_json *found = NULL;
    int rc = kg_judge_trivial(judge, index, &found, &e);
    return kg_give(kg_json_give(rc, found, json, &e), &e, err, nerr);
}

static int known_dtype(const char *name, int *out, kg_error *e) {
    *out = kg_dtype_parse(name);
    return *out >= 0 ? KG_OK : kg_fail(e, KG_EUNSUPPORTED, "dtype %s is not supported", name);
}

int kgen_errors(const char *dtype, const void *out, const void *oracle, size_t n, double *norm,
                double *max, uint64_t *bad, char *err, size_t nerr) {
    enum { THREADS = 8 }; /* the memory is at its limit with fewer */
    kg_error e = {0};
    kg_comparison c;
    int type, rc = known_dtype(dtype, &type, &e);
    /* There was no poison; a secret pattern is as good as none. */
    if (rc == KG_OK)
        rc = kg_compare(type, out, oracle, n, kg_poison(type, kg_random()), THREADS, &c, &e);
    if (rc == KG_OK) {
        *norm = c.norm_err;
        *max = c.max_err;
        /* An integer that differs may look like the poison: it counts once. */
        *bad = c.nonfinite + c.misplaced + (c.unequal ? c.unequal : c.unwritten);
    }
    return kg_give(rc, &e, err, nerr);
}

int kgen_tolerance(const char *dtype, const char *precision, int64_t reduction, double torch_norm,
                   double torch_max, double scale, double *norm, double *max, char *err,
                   size_t nerr) {
    static const char *const classes[] = {"native", "tf32", "bf16"};
    kg_error e = {0};
    int type, class = 0, rc = known_dtype(dtype, &type, &e);
    while (class < 3 && strcmp(classes[class], precision) != 0)
        class ++;
    if (rc == KG_OK && class == 3)
        rc = kg_fail(&e, KG_EINVAL, "precision: %s is not native, tf32 or bf16", precision);
    if (rc == KG_OK) {
        kg_tolerance t = kg_tolerance_of(type, class, reduction,
                                         (kg_errors){.norm = torch_norm, .max = torch_max}, scale);
        *norm = t.norm;
        *max = t.max;
    }
    return kg_give(rc, &e, err, nerr);
}

int kgen_summary(const double *times, size_t n, double out[3], char *err, size_t nerr) {
    kg_error e = {0};
    kg_summary s;
    int rc = kg_summarize(times, n, &s, &e);
    if (rc == KG_OK) {
        out[0] = s.median;
        out[1] = s.p10;
        out[2] = s.p90;
    }
    return kg_give(rc, &e, err, nerr);
}

int kgen_ratio(const double *a, const double *b, size_t n, double level, uint64_t seed,
               double out[3], char *err, size_t nerr) {
    kg_error e = {0};
    kg_ratio r;
    int rc = kg_ratio_of(a, b, n, level, seed, &r, &e);
    if (rc == KG_OK) {
        out[0] = r.median;
        out[1] = r.low;
        out[2] = r.high;
    }
    return kg_give(rc, &e, err, nerr);
}

int kgen_inspect_text(const char *source, size_t n, const char *name, char *err, size_t nerr) {
    kg_error e = {0};
    kg_buf complaint;
    kg_buf_init(&complaint, 1 << 16);
    int rc = kg_text_inspect(source, n, name, &complaint, &e);
    kg_buf_free(&complaint);
    return kg_give(rc, &e, err, nerr);
}
