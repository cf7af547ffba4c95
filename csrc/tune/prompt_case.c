/* A Case as a proposer reads it: tensors with their layout, attributes, dims, the Program, and what
 * a call takes at least. */
#include <inttypes.h>
#include <string.h>

#include "tune/prompt.h"

static void put_numbers(kg_buf *b, const char *word, const kg_json *list) {
    kg_buf_printf(b, "%s(", word);
    for (size_t i = 0; i < kg_json_size(list); i++) {
        int64_t v = 0;
        kg_json_int(kg_json_at(list, i), word, &v, NULL);
        kg_buf_printf(b, i ? ", %" PRId64 : "%" PRId64, v);
    }
    kg_buf_putc(b, ')');
}

static void put_tensor(kg_buf *b, const kg_json *t) {
    const char *dtype = "";
    int64_t align = 0;
    kg_json_str(kg_json_get(t, "dtype"), "dtype", &dtype, NULL);
    kg_json_int(kg_json_get(t, "align"), "align", &align, NULL);
    kg_buf_puts(b, dtype);
    put_numbers(b, " ", kg_json_get(t, "shape"));
    put_numbers(b, ", strides ", kg_json_get(t, "stride"));
    kg_buf_printf(b, ", address a multiple of %" PRId64, align);
}

static void put_args(kg_buf *b, const kg_json *args) {
    for (size_t i = 0; i < kg_json_size(args); i++) {
        const kg_json *a = kg_json_at(args, i);
        kg_buf_printf(b, "- %s: ", kg_json_key(a));
        if (kg_json_is_object(a))
            put_tensor(b, a);
        else if (kg_json_is_null(a))
            kg_buf_puts(b, "absent");
        else
            kg_json_canonical(a, b);
        kg_buf_putc(b, '\n');
    }
}

static void put_dims(kg_buf *b, const kg_op *op, const kg_case *c) {
    if (!op->ndims)
        return;
    kg_buf_puts(b, "- dims:");
    for (size_t i = 0; i < op->ndims; i++)
        kg_buf_printf(b, "%s %s = %" PRId64, i ? "," : "", op->dims[i].name, c->dims.value[i]);
    kg_buf_putc(b, '\n');
}

static void put_program(kg_buf *b, const kg_json *p) {
    const char *text = NULL;
    if (!kg_json_is_object(p) || kg_json_str(kg_json_get(p, "text"), "text", &text, NULL))
        return;
    kg_buf_puts(b, "- its Program (kgen pastes it in, compiled):\n\n```\n");
    kg_buf_printf(b, "%s```\n", text);
}

void kg_prompt_time(kg_buf *out, double ns) {
    const char *unit = ns < 1e6 ? "us" : ns < 1e9 ? "ms" : "s";
    double value = ns / (ns < 1e6 ? 1e3 : ns < 1e9 ? 1e6 : 1e9);
    int digits = value < 10 ? 2 : value < 100 ? 1 : 0;
    kg_buf_printf(out, "%.*f %s", digits, value, unit);
}

static void put_floor(kg_buf *b, const kg_prompt_case *k) {
    if (!k)
        return;
    if (k->bytes > 0)
        kg_buf_printf(b, "- bytes of its inputs and outputs, read and written once: %.4g MB\n",
                      k->bytes / 1e6);
    if (k->flops > 0)
        kg_buf_printf(b, "- arithmetic: %.4g GFLOP\n", k->flops / 1e9);
    if (k->floor_ns > 0) {
        kg_buf_puts(b, "- roofline: a call takes at least ");
        kg_prompt_time(b, k->floor_ns);
        kg_buf_puts(
            b, " by what was measured of this machine (bytes at a copy's rate, arithmetic as the "
               "reference does it)\n");
    }
    if (k->torch_ns > 0) {
        kg_buf_puts(b, "- the reference itself, in eager torch, takes ");
        kg_prompt_time(b, k->torch_ns);
        kg_buf_puts(b, " here\n");
    }
}

int kg_prompt_case_text(const kg_op *op, const char *json, size_t n, size_t index,
                        const kg_prompt_case *known, kg_buf *out, kg_error *err) {
    kg_case *c = NULL;
    kg_json *root = NULL;
    kg_buf name;
    kg_buf_init(&name, 64);
    kg_buf_printf(&name, "Case %zu", index);
    int rc = kg_buf_check(&name, "a Case", err);
    if (!rc)
        rc = kg_case_from_json(json, n, name.data, op, &c, err);
    if (!rc)
        rc = kg_json_parse(json, n, name.data, &root, err);
    if (!rc) {
        kg_buf_printf(out, "%s, %" PRId64 " call%s in a run of the model:\n\n", name.data, c->count,
                      c->count == 1 ? "" : "s");
        put_args(out, kg_json_get(root, "args"));
        put_dims(out, op, c);
        put_floor(out, known);
        put_program(out, kg_json_get(root, "program"));
        kg_buf_putc(out, '\n');
        rc = kg_buf_check(out, "a prompt", err);
    }
    kg_json_free(root);
    kg_case_free(c);
    kg_buf_free(&name);
    return rc;
}
