/* A plan as flat bytes, for the index, and back. The reader trusts nothing but the grammar of
 * expressions, which is checked as they are parsed: indices are held against the plan's own counts;
 * those into the Op against the limits, and kg_plan_bind holds them against the Op. */
#include <stdlib.h>
#include <string.h>

#include "runtime/flat.h"
#include "runtime/plan.h"

#define PLAN_MAGIC 0x3150474bU /* "KGP1" */

static void put_arg(kg_buf *out, const kg_plan_arg *a) {
    kg_put_u8(out, (uint8_t)a->kind);
    kg_put_i64(out, a->index);
    kg_put_i64(out, a->dtype);
    kg_flat_put_expr(out, a->expr);
    kg_flat_put_text(out, a->attr);
    kg_put_f64(out, a->literal);
}

static void put_launch(kg_buf *out, const kg_plan_launch *l) {
    kg_flat_put_text(out, l->kernel);
    kg_flat_put_expr(out, l->range);
    kg_flat_put_expr(out, l->grain);
    for (size_t i = 0; i < 3; i++) {
        kg_flat_put_expr(out, l->grid[i]);
        kg_flat_put_expr(out, l->block[i]);
        kg_flat_put_expr(out, l->cluster[i]);
    }
    kg_flat_put_expr(out, l->shared);
    kg_flat_put_expr(out, l->when);
    kg_put_u8(out, l->cooperative);
    kg_put_u8(out, l->pdl);
    kg_put_u32(out, (uint32_t)l->nargs);
    for (size_t i = 0; i < l->nargs; i++)
        put_arg(out, &l->args[i]);
}

static void put_map(kg_buf *out, const kg_plan_map *m) {
    kg_flat_put_text(out, m->name);
    kg_put_i64(out, m->tensor);
    kg_put_u8(out, m->tensor_is_output != 0);
    kg_put_u32(out, (uint32_t)m->rank);
    for (size_t i = 0; i < m->rank; i++) {
        kg_flat_put_expr(out, m->box[i]);
        kg_flat_put_expr(out, m->dims[i]);
        if (i + 1 < m->rank)
            kg_flat_put_expr(out, m->strides[i]);
    }
    kg_put_i64(out, m->swizzle);
    kg_put_i64(out, m->l2);
}

static void put_workspace(kg_buf *out, const kg_plan_workspace *w) {
    kg_flat_put_text(out, w->name);
    kg_put_i64(out, w->dtype);
    kg_put_u8(out, w->zero);
    kg_put_u32(out, (uint32_t)w->rank);
    for (size_t d = 0; d < w->rank; d++)
        kg_flat_put_expr(out, w->shape[d]);
}

int kg_plan_write(const kg_plan *p, kg_buf *out) {
    kg_put_u32(out, PLAN_MAGIC);
    kg_flat_put_text(out, p->op);
    kg_put_u8(out, (uint8_t)p->target);
    kg_flat_put_text(out, p->min_arch);
    kg_put_u32(out, (uint32_t)p->ntunables);
    for (size_t i = 0; i < p->ntunables; i++) {
        kg_flat_put_text(out, p->tunables[i].name);
        kg_put_u32(out, (uint32_t)p->tunables[i].n);
        for (size_t k = 0; k < p->tunables[i].n; k++)
            kg_put_i64(out, p->tunables[i].values[k]);
    }
    kg_put_u32(out, (uint32_t)p->nspecialize);
    for (size_t i = 0; i < p->nspecialize; i++)
        kg_flat_put_text(out, p->specialize[i]);
    kg_flat_put_expr(out, p->require);
    kg_put_u32(out, (uint32_t)p->nworkspace);
    for (size_t i = 0; i < p->nworkspace; i++)
        put_workspace(out, &p->workspace[i]);
    kg_put_u32(out, p->zero_outputs);
    kg_put_u32(out, (uint32_t)p->nmaps);
    for (size_t i = 0; i < p->nmaps; i++)
        put_map(out, &p->maps[i]);
    kg_put_u32(out, (uint32_t)p->nlaunches);
    for (size_t i = 0; i < p->nlaunches; i++)
        put_launch(out, &p->launches[i]);
    kg_put_u32(out, (uint32_t)p->nholes);
    for (size_t i = 0; i < p->nholes; i++)
        kg_flat_put_text(out, p->holes[i]);
    return kg_put_u32(out, p->flags);
}

static void need(kg_reader *r, bool holds) {
    if (r->status == KG_OK && !holds)
        r->status = KG_EFORMAT;
}

static void get_arg(kg_reader *r, const kg_plan *p, kg_plan_arg *a) {
    static const int limits[] = {[KG_PA_TENSOR] = KG_MAX_ARGS, [KG_PA_OUTPUT] = KG_MAX_OUTPUTS,
                                 [KG_PA_WORKSPACE] = 0,        [KG_PA_SCALAR] = 1,
                                 [KG_PA_PROGRAMS] = 1,         [KG_PA_MAP] = 0};
    uint8_t kind = kg_get_u8(r);
    need(r, kind <= KG_PA_MAP);
    a->kind = r->status == KG_OK ? (kg_plan_arg_kind)kind : KG_PA_TENSOR;
    int64_t limit = a->kind == KG_PA_WORKSPACE ? (int64_t)p->nworkspace
                    : a->kind == KG_PA_MAP     ? (int64_t)p->nmaps
                                               : limits[a->kind];
    a->index = kg_flat_int(r, 0, limit - 1);
    a->dtype = kg_flat_int(r, 0, KG_DTYPE_COUNT - 1);
    a->expr = kg_flat_expr(r);
    a->attr = kg_flat_text(r);
    a->literal = kg_get_f64(r);
    if (a->kind != KG_PA_SCALAR)
        return;
    bool integer = a->dtype == KG_I32 || a->dtype == KG_I64;
    need(r, integer ? a->expr != NULL : a->dtype == KG_F32 || a->dtype == KG_F64);
}

static void get_launch(kg_reader *r, const kg_plan *p, kg_plan_launch *l) {
    l->kernel = kg_flat_name(r);
    l->range = kg_flat_expr(r);
    l->grain = kg_flat_expr(r);
    for (size_t i = 0; i < 3 && r->status == KG_OK; i++) {
        l->grid[i] = kg_flat_expr(r);
        l->block[i] = kg_flat_expr(r);
        l->cluster[i] = kg_flat_expr(r);
    }
    l->shared = kg_flat_expr(r);
    l->when = kg_flat_expr(r);
    l->cooperative = kg_get_u8(r) != 0;
    l->pdl = kg_get_u8(r) != 0;
    l->nargs = kg_flat_count(r, KG_MAX_LAUNCH_ARGS);
    for (size_t i = 0; i < l->nargs && r->status == KG_OK; i++)
        get_arg(r, p, &l->args[i]);
    need(r, p->target == KG_CPU ? l->range != NULL : l->grid[0] != NULL && l->block[0] != NULL);
}

static void get_map(kg_reader *r, kg_plan_map *m) {
    m->name = kg_flat_name(r);
    m->tensor = kg_flat_int(r, 0, KG_MAX_ARGS - 1);
    m->tensor_is_output = kg_get_u8(r) != 0;
    m->rank = kg_flat_count(r, 5);
    need(r, m->rank >= 1);
    for (size_t i = 0; i < m->rank && r->status == KG_OK; i++) {
        m->box[i] = kg_flat_need_expr(r);
        m->dims[i] = kg_flat_need_expr(r);
        if (i + 1 < m->rank)
            m->strides[i] = kg_flat_need_expr(r);
    }
    m->swizzle = kg_flat_int(r, 0, 128);
    m->l2 = kg_flat_int(r, 0, 256);
}

static void get_workspace(kg_reader *r, kg_plan_workspace *w) {
    w->name = kg_flat_name(r);
    w->dtype = kg_flat_int(r, 0, KG_DTYPE_COUNT - 1);
    w->zero = kg_get_u8(r) != 0;
    w->rank = kg_flat_count(r, KG_MAX_RANK);
    for (size_t d = 0; d < w->rank && r->status == KG_OK; d++)
        w->shape[d] = kg_flat_need_expr(r);
}

static void get_tunables(kg_reader *r, kg_plan *p) {
    p->ntunables = kg_flat_count(r, KG_MAX_TUNABLES);
    for (size_t i = 0; i < p->ntunables && r->status == KG_OK; i++) {
        p->tunables[i].name = kg_flat_name(r);
        p->tunables[i].n = kg_flat_count(r, KG_MAX_TUNABLE_VALUES);
        need(r, p->tunables[i].n >= 1);
        for (size_t k = 0; k < p->tunables[i].n; k++)
            p->tunables[i].values[k] = kg_get_i64(r);
    }
    p->nspecialize = kg_flat_count(r, KG_MAX_DIMS);
    for (size_t i = 0; i < p->nspecialize && r->status == KG_OK; i++)
        p->specialize[i] = kg_flat_name(r);
}

static void get_plan(kg_reader *r, kg_plan *p) {
    need(r, kg_get_u32(r) == PLAN_MAGIC);
    p->op = kg_flat_name(r);
    p->target = kg_get_u8(r);
    need(r, p->target == KG_CPU || p->target == KG_CUDA);
    p->min_arch = kg_flat_text(r);
    need(r, p->min_arch == NULL || kg_arch_target(p->min_arch) == p->target);
    get_tunables(r, p);
    p->require = kg_flat_expr(r);
    p->nworkspace = kg_flat_count(r, KG_MAX_WORKSPACE);
    for (size_t i = 0; i < p->nworkspace && r->status == KG_OK; i++)
        get_workspace(r, &p->workspace[i]);
    p->zero_outputs = kg_get_u32(r);
    p->nmaps = kg_flat_count(r, KG_MAX_MAPS);
    for (size_t i = 0; i < p->nmaps && r->status == KG_OK; i++)
        get_map(r, &p->maps[i]);
    p->nlaunches = kg_flat_count(r, KG_MAX_LAUNCHES);
    for (size_t i = 0; i < p->nlaunches && r->status == KG_OK; i++)
        get_launch(r, p, &p->launches[i]);
    need(r, p->nlaunches >= 1);
    p->nholes = kg_flat_count(r, 4);
    for (size_t i = 0; i < p->nholes && r->status == KG_OK; i++)
        p->holes[i] = kg_flat_name(r);
    p->flags = kg_get_u32(r);
    need(r, (p->flags & ~(uint32_t)(KG_FLAG_FAST_MATH | KG_FLAG_NO_CONTRACT)) == 0);
}

int kg_plan_read(kg_reader *in, kg_plan **out, kg_error *err) {
    kg_plan *p = calloc(1, sizeof *p);
    if (p == NULL)
        return kg_fail(err, KG_ENOMEM, "plan: out of memory");
    get_plan(in, p);
    if (in->status < 0) {
        kg_plan_free(p);
        return kg_flat_fail(in, "plan", err);
    }
    *out = p;
    return KG_OK;
}
