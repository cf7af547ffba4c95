/* The values of a plan's tunables, and the id of a Candidate, which is its source and these. */
#include <stdlib.h>
#include <string.h>

#include "base/hash.h"
#include "tune/contract.h"
#include "tune/contract_read.h"

void kg_tuning_default(const kg_plan *p, kg_tuning *out) {
    *out = (kg_tuning){0};
    for (size_t i = 0; i < p->ntunables; i++)
        out->value[i] = p->tunables[i].values[0];
}

static int not_a_value(const kg_plan_tunable *t, const char *at, int64_t v, kg_error *err) {
    kg_buf known;
    kg_buf_init(&known, 400);
    for (size_t i = 0; i < t->n; i++)
        kg_buf_printf(&known, "%s%lld", i > 0 ? ", " : "", (long long)t->values[i]);
    kg_fail(err, KG_EFORMAT, "%s is %lld; the plan has %s", at, (long long)v,
            known.data != NULL ? known.data : "none");
    kg_buf_free(&known);
    return KG_EFORMAT;
}

static int one_value(const kg_plan_tunable *t, const kg_json *json, int64_t *out, kg_error *err) {
    kg_at_text at = kg_at("tunables.%s", t->name);
    const kg_json *j = NULL;
    int rc = kg_need(json, "tunables", t->name, &j, err);
    if (rc == KG_OK)
        rc = kg_json_int(j, at.text, out, err);
    for (size_t i = 0; rc == KG_OK && i < t->n; i++)
        if (t->values[i] == *out)
            return KG_OK;
    return rc < 0 ? rc : not_a_value(t, at.text, *out, err);
}

int kg_tuning_from_json(const kg_plan *p, const kg_json *json, const char *what, kg_tuning *out,
                        kg_error *err) {
    const char *keys[KG_MAX_TUNABLES + 1] = {0};
    kg_tuning t = {0};
    for (size_t i = 0; i < p->ntunables; i++)
        keys[i] = p->tunables[i].name;
    int rc = kg_json_only(json, "tunables", keys, err);
    for (size_t i = 0; rc == KG_OK && i < p->ntunables; i++)
        rc = one_value(&p->tunables[i], json, &t.value[i], err);
    if (rc < 0)
        return kg_fail_prefix(err, rc, "%s", what);
    *out = t;
    return KG_OK;
}

kg_json *kg_tuning_to_json(const kg_plan *p, const kg_tuning *t) {
    kg_json *j = kg_json_new_object();
    for (size_t i = 0; i < p->ntunables; i++)
        kg_json_set_int(j, p->tunables[i].name, t->value[i]);
    if (kg_json_size(j) == p->ntunables)
        return j;
    kg_json_free(j);
    return NULL;
}

int kg_candidate_id(const char *text, size_t n, const kg_plan *p, const kg_tuning *t, char id[65],
                    kg_error *err) {
    kg_buf b;
    kg_buf_init(&b, 0);
    kg_json *json = kg_tuning_to_json(p, t);
    if (json == NULL)
        return kg_fail(err, KG_ENOMEM, "the Candidate's id: out of memory");
    kg_buf_add(&b, text, n);
    kg_buf_putc(&b, '\0');
    kg_json_canonical(json, &b);
    int rc = kg_buf_check(&b, "the Candidate's id", err);
    if (rc == KG_OK)
        kg_sha256_hex(b.data, b.len, id);
    kg_json_free(json);
    kg_buf_free(&b);
    return rc;
}
