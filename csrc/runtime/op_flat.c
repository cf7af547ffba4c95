/* A contract as flat bytes, for the index, and back. The reader trusts nothing: counts, indices,
 * dtypes and names are checked, and a bad one is KG_EFORMAT. */
#include <stdlib.h>
#include <string.h>

#include "runtime/flat.h"
#include "runtime/op.h"

#define OP_MAGIC 0x314f474bU /* "KGO1" */

static void put_arg(kg_buf *out, const kg_op_arg *a) {
    kg_flat_put_text(out, a->name);
    kg_put_i64(out, a->type);
    kg_put_u32(out, a->dtypes);
    kg_put_i64(out, a->same_dtype_as);
    kg_put_u8(out, a->shaped);
    kg_put_u32(out, (uint32_t)a->rank);
    for (size_t d = 0; d < a->rank; d++)
        kg_flat_put_expr(out, a->shape[d]);
    kg_put_u8(out, a->key);
    kg_put_u8(out, a->has_default);
    kg_put_f64(out, a->default_number);
    kg_flat_put_expr(out, a->none_rsqrt);
}

static void put_output(kg_buf *out, const kg_op_output *o) {
    kg_flat_put_text(out, o->name);
    kg_put_i64(out, o->dtype);
    kg_put_i64(out, o->dtype_of);
    kg_put_i64(out, o->like);
    kg_put_u32(out, (uint32_t)o->rank);
    for (size_t d = 0; d < o->rank; d++)
        kg_flat_put_expr(out, o->shape[d]);
    kg_put_u8(out, o->optional);
}

int kg_op_write(const kg_op *op, kg_buf *out) {
    kg_put_u32(out, OP_MAGIC);
    kg_flat_put_text(out, op->name);
    kg_flat_put_text(out, op->schema);
    kg_put_u32(out, (uint32_t)op->nargs);
    for (size_t i = 0; i < op->nargs; i++)
        put_arg(out, &op->args[i]);
    kg_put_u32(out, (uint32_t)op->ndims);
    for (size_t i = 0; i < op->ndims; i++) {
        kg_flat_put_text(out, op->dims[i].name);
        kg_flat_put_expr(out, op->dims[i].expr);
        kg_put_u8(out, op->dims[i].key);
        kg_put_u8(out, op->dims[i].dynamic);
    }
    kg_put_u32(out, (uint32_t)op->nchecks);
    for (size_t i = 0; i < op->nchecks; i++) {
        kg_flat_put_expr(out, op->checks[i].expr);
        kg_flat_put_text(out, op->checks[i].message);
    }
    kg_put_u32(out, (uint32_t)op->noutputs);
    for (size_t i = 0; i < op->noutputs; i++)
        put_output(out, &op->outputs[i]);
    kg_put_u32(out, (uint32_t)op->nholes);
    for (size_t i = 0; i < op->nholes; i++)
        kg_flat_put_text(out, op->holes[i]);
    kg_flat_put_expr(out, op->flops);
    kg_flat_put_expr(out, op->reduction);
    return kg_put_str(out, op->hash);
}

/* Counts are set before the items are read, so that kg_op_free is right after a failure at any
 * point. */
static void get_arg(kg_reader *r, kg_op *op, size_t i) {
    kg_op_arg *a = &op->args[i];
    a->name = kg_flat_name(r);
    a->type = (kg_arg_type)kg_flat_int(r, 0, KG_ARG_FLOAT_LIST);
    a->dtypes = kg_get_u32(r) & ((1U << KG_DTYPE_COUNT) - 1);
    a->same_dtype_as = kg_flat_int(r, -1, (int64_t)i - 1);
    a->shaped = kg_get_u8(r) != 0;
    a->rank = kg_flat_count(r, KG_MAX_RANK);
    for (size_t d = 0; d < a->rank && r->status == KG_OK; d++)
        a->shape[d] = kg_flat_need_expr(r);
    a->key = kg_get_u8(r) != 0;
    a->has_default = kg_get_u8(r) != 0;
    a->default_number = kg_get_f64(r);
    a->none_rsqrt = kg_flat_expr(r);
    if (r->status == KG_OK && a->same_dtype_as >= 0 &&
        !kg_arg_is_tensor(op->args[a->same_dtype_as].type))
        r->status = KG_EFORMAT;
}

static void get_output(kg_reader *r, kg_op *op, size_t i) {
    kg_op_output *o = &op->outputs[i];
    o->name = kg_flat_name(r);
    o->dtype = kg_flat_int(r, -1, KG_DTYPE_COUNT - 1);
    o->dtype_of = kg_flat_int(r, -1, (int64_t)op->nargs - 1);
    o->like = kg_flat_int(r, -1, (int64_t)op->nargs - 1);
    o->rank = kg_flat_count(r, KG_MAX_RANK);
    for (size_t d = 0; d < o->rank && r->status == KG_OK; d++)
        o->shape[d] = kg_flat_need_expr(r);
    o->optional = kg_get_u8(r) != 0;
    if (r->status < 0)
        return;
    bool dtype_ok =
        o->dtype >= 0 || (o->dtype_of >= 0 && kg_arg_is_tensor(op->args[o->dtype_of].type));
    if (!dtype_ok || (o->like >= 0 && !kg_arg_is_tensor(op->args[o->like].type)))
        r->status = KG_EFORMAT;
}

static void get_dims(kg_reader *r, kg_op *op) {
    op->ndims = kg_flat_count(r, KG_MAX_DIMS);
    for (size_t i = 0; i < op->ndims && r->status == KG_OK; i++) {
        op->dims[i].name = kg_flat_name(r);
        op->dims[i].expr = kg_flat_expr(r);
        op->dims[i].key = kg_get_u8(r) != 0;
        op->dims[i].dynamic = kg_get_u8(r) != 0;
    }
    op->nchecks = kg_flat_count(r, KG_MAX_DIMS);
    for (size_t i = 0; i < op->nchecks && r->status == KG_OK; i++) {
        op->checks[i].expr = kg_flat_need_expr(r);
        op->checks[i].message = kg_flat_text(r);
    }
}

static void get_op(kg_reader *r, kg_op *op) {
    if (kg_get_u32(r) != OP_MAGIC && r->status == KG_OK)
        r->status = KG_EFORMAT;
    op->name = kg_flat_name(r);
    op->schema = kg_flat_text(r);
    op->nargs = kg_flat_count(r, KG_MAX_ARGS);
    for (size_t i = 0; i < op->nargs && r->status == KG_OK; i++)
        get_arg(r, op, i);
    get_dims(r, op);
    op->noutputs = kg_flat_count(r, KG_MAX_OUTPUTS);
    for (size_t i = 0; i < op->noutputs && r->status == KG_OK; i++)
        get_output(r, op, i);
    op->nholes = kg_flat_count(r, 4);
    for (size_t i = 0; i < op->nholes && r->status == KG_OK; i++)
        op->holes[i] = kg_flat_name(r);
    op->flops = kg_flat_expr(r);
    op->reduction = kg_flat_expr(r);
    const char *hash = kg_get_str(r);
    if (r->status == KG_OK && (strlen(hash) != 64 || op->schema == NULL))
        r->status = KG_EFORMAT;
    if (r->status == KG_OK)
        memcpy(op->hash, hash, 65);
}

int kg_op_read(kg_reader *in, kg_op **out, kg_error *err) {
    kg_op *op = calloc(1, sizeof *op);
    if (op == NULL)
        return kg_fail(err, KG_ENOMEM, "contract: out of memory");
    get_op(in, op);
    if (in->status < 0) {
        kg_op_free(op);
        return kg_flat_fail(in, "contract", err);
    }
    kg_op_link(op);
    *out = op;
    return KG_OK;
}
