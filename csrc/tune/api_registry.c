/* The C API over the registry and Candidates: argument checks and JSON, no work of its own. */
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

#include "base/log.h"
#include "kgen_tune.h"
#include "tune/registry.h"

void kgen_free(void *p) {
    free(p);
}

static kg_json *kernel_json(const kg_kernel *k) {
    kg_json *o = kg_json_new_object();
    kg_json_set_str(o, "op", k->op);
    kg_json_set_str(o, "arch", k->arch);
    kg_json_set_str(o, "id", k->id);
    kg_json_set_int(o, "version", k->version);
    kg_json_set_bool(o, "ambiguous", k->ambiguous);
    kg_json_set_str(o, "path", k->path);
    kg_json_set_str(o, "verdict", k->verdict);
    kg_json_set_str(o, "created", k->created);
    kg_json_set_str(o, "proposer", k->proposer);
    if (kg_json_set_int(o, "pins", (int64_t)k->pins))
        return o;
    kg_json_free(o);
    return NULL;
}

int kgen_registry_list(const char *registry, char **json, char *err, size_t nerr) {
    kg_error e = {0};
    kg_registry *r = NULL;
    const kg_kernel *kernels;
    kg_json *list = NULL;
    int rc = kg_registry_open(registry, false, &r, &e);
    if (!rc) {
        size_t n = kg_registry_kernels(r, &kernels);
        list = kg_json_new_array();
        for (size_t i = 0; !rc && i < n; i++)
            if (!kg_json_push(list, kernel_json(&kernels[i])))
                rc = kg_fail(&e, KG_ENOMEM, "list of %zu kernels", n);
    }
    rc = kg_json_give(rc, list, json, &e);
    kg_registry_close(r);
    return kg_give(rc, &e, err, nerr);
}

int kgen_registry_find(const char *registry, const char *name, char **json, char *err,
                       size_t nerr) {
    kg_error e = {0};
    kg_registry *r = NULL;
    const kg_kernel *k = NULL;
    kg_json *o = NULL;
    int rc = kg_registry_open(registry, false, &r, &e);
    if (!rc)
        rc = kg_registry_find(r, name, &k, &e);
    if (!rc) {
        o = kernel_json(k);
        if (!o)
            rc = kg_fail(&e, KG_ENOMEM, "kernel %s", name);
    }
    rc = kg_json_give(rc, o, json, &e);
    kg_registry_close(r);
    return kg_give(rc, &e, err, nerr);
}

/* The canonical text of each element; free with free_texts. */
static int element_texts(const char *keys, char ***out, size_t *n, kg_error *e) {
    kg_json *list = NULL;
    int rc = kg_json_parse(keys, strlen(keys), "keys", &list, e);
    if (!rc && !kg_json_is_array(list))
        rc = kg_fail(e, KG_EFORMAT, "keys: a list is needed");
    size_t size = rc ? 0 : kg_json_size(list);
    char **texts = rc ? NULL : calloc(size ? size : 1, sizeof *texts);
    if (!rc && !texts)
        rc = kg_fail(e, KG_ENOMEM, "%zu keys", size);
    for (size_t i = 0; !rc && i < size; i++) {
        kg_buf text;
        kg_buf_init(&text, 0);
        kg_json_canonical(kg_json_at(list, i), &text);
        rc = kg_buf_check(&text, "key", e);
        texts[i] = rc ? NULL : kg_buf_take(&text);
        kg_buf_free(&text);
    }
    kg_json_free(list);
    if (texts) {
        *out = texts;
        *n = size;
    }
    return rc;
}

static void free_texts(char **texts, size_t n) {
    for (size_t i = 0; i < n; i++)
        free(texts[i]);
    free(texts);
}

int kgen_registry_promote(const char *registry, const char *op_json, const char *task_dir,
                          const char *source, size_t n, const char *record_json, const char *keys,
                          int *version, char *err, size_t nerr) {
    kg_error e = {0};
    kg_registry *r = NULL;
    char **texts = NULL;
    size_t ntexts = 0;
    int rc = element_texts(keys, &texts, &ntexts, &e);
    if (!rc)
        rc = kg_registry_open(registry, true, &r, &e);
    if (!rc)
        rc = kg_registry_promote(r, op_json, task_dir, source, n, record_json,
                                 (const char *const *)texts, ntexts, version, &e);
    kg_registry_close(r);
    free_texts(texts, ntexts);
    return kg_give(rc, &e, err, nerr);
}

int kgen_registry_rollback(const char *registry, const char *op, const char *version, size_t *moved,
                           char *err, size_t nerr) {
    kg_error e = {0};
    kg_registry *r = NULL;
    int rc = kg_registry_open(registry, false, &r, &e);
    if (!rc)
        rc = kg_registry_rollback(r, op, version, moved, &e);
    kg_registry_close(r);
    return kg_give(rc, &e, err, nerr);
}

int kgen_registry_gc(const char *registry, int dry, char **json, char *err, size_t nerr) {
    kg_error e = {0};
    kg_registry *r = NULL;
    kg_buf report;
    kg_buf_init(&report, 0);
    int rc = kg_registry_open(registry, false, &r, &e);
    if (!rc)
        rc = kg_registry_gc(r, dry != 0, &report, &e);
    char *text = rc ? NULL : kg_buf_take(&report);
    if (!rc && !text)
        rc = kg_fail(&e, KG_ENOMEM, "report of gc");
    if (!rc)
        *json = text;
    kg_buf_free(&report);
    kg_registry_close(r);
    return kg_give(rc, &e, err, nerr);
}

int kgen_index_build(const char *registry, const char *index_path, char *err, size_t nerr) {
    kg_error e = {0};
    return kg_give(kg_index_build(registry, index_path, &e), &e, err, nerr);
}

int kgen_index_build_told(const char *registry, const char *index_path,
                          void (*warn)(void *ctx, const char *message), void *ctx, char *err,
                          size_t nerr) {
    kg_error e = {0};
    return kg_give(kg_index_build_told(registry, index_path, warn, ctx, &e), &e, err, nerr);
}

static _Atomic(void (*)(int, const char *)) the_sink;

static void to_sink(void *ctx, kg_log_level level, const char *message) {
    void (*sink)(int, const char *) = atomic_load(&the_sink);
    (void)ctx;
    if (sink && level >= KG_LOG_WARNING)
        sink((int)level, message);
}

void kgen_on_message(void (*sink)(int level, const char *message)) {
    atomic_store(&the_sink, sink);
    kg_log_set_sink(sink ? to_sink : NULL, NULL);
}

int kgen_case_key(const char *op_json, const char *case_json, char **json, char *err, size_t nerr) {
    kg_error e = {0};
    kg_op *op = NULL;
    kg_case *c = NULL;
    kg_json *o = NULL;
    int rc = kg_op_from_json(op_json, strlen(op_json), "op.json", &op, &e);
    if (!rc)
        rc = kg_case_from_json(case_json, strlen(case_json), "Case", op, &c, &e);
    if (!rc) {
        o = kg_json_new_object();
        kg_json_set(o, "key", kg_key_to_json(op, &c->key));
        if (!kg_json_set_str(o, "hash", c->hash))
            rc = kg_fail(&e, KG_ENOMEM, "key of a Case");
    }
    rc = kg_json_give(rc, o, json, &e);
    kg_case_free(c);
    kg_op_free(op);
    return kg_give(rc, &e, err, nerr);
}

static kg_json *plan_summary(const kg_plan *p, const kg_tuning *t, const char *id) {
    kg_json *o = kg_json_new_object(), *holes = kg_json_new_array();
    kg_json_set_str(o, "op", p->op);
    kg_json_set_str(o, "target", p->target == KG_CUDA ? "cuda" : "cpu");
    kg_json_set_str(o, "min_arch", p->min_arch);
    kg_json_set(o, "tunables", kg_tuning_to_json(p, t));
    for (size_t i = 0; i < p->nholes; i++)
        kg_json_push_str(holes, p->holes[i]);
    kg_json_set(o, "holes", holes);
    if (kg_json_set_str(o, "id", id))
        return o;
    kg_json_free(o);
    return NULL;
}

int kgen_candidate_check(const char *op_json, const char *source, size_t n, const char *name,
                         const char *tunables_json, char **json, char *err, size_t nerr) {
    kg_error e = {0};
    kg_op *op = NULL;
    kg_plan *plan = NULL;
    kg_json *given = NULL, *o = NULL;
    kg_tuning tuning;
    char id[65];
    int rc = kg_op_from_json(op_json, strlen(op_json), "op.json", &op, &e);
    if (!rc)
        rc = kg_plan_from_source(source, n, name, op, &plan, &e);
    if (!rc && tunables_json)
        rc = kg_json_parse(tunables_json, strlen(tunables_json), "tunables", &given, &e);
    if (!rc && given)
        rc = kg_tuning_from_json(plan, given, "tunables", &tuning, &e);
    if (!rc && !given)
        kg_tuning_default(plan, &tuning);
    if (!rc)
        rc = kg_candidate_id(source, n, plan, &tuning, id, &e);
    if (!rc) {
        o = plan_summary(plan, &tuning, id);
        if (!o)
            rc = kg_fail(&e, KG_ENOMEM, "summary of %s", name);
    }
    rc = kg_json_give(rc, o, json, &e);
    kg_json_free(given);
    kg_plan_free(plan);
    kg_op_free(op);
    return kg_give(rc, &e, err, nerr);
}
