/* Reads what the judge sends, which is trusted with nothing either: a worker that a Candidate has
 * spoiled could otherwise be led anywhere by its own old frames. */
#include "worker/wire.h"

#include <string.h>

static int malformed(kg_error *err) {
    return kg_fail(err, KG_EFORMAT, "RUN is malformed");
}

static int read_arg(kg_reader *in, const kg_wire_limits *limits, size_t nmaps, kg_wire_arg *a,
                    kg_error *err) {
    a->kind = kg_get_u8(in);
    switch (a->kind) {
    case KG_WA_NULL:
    case KG_WA_PROGRAMS:
        return KG_OK;
    case KG_WA_BUFFER:
        a->u.index = kg_get_u32(in);
        if (a->u.index >= limits->nbuffers)
            return kg_fail(err, KG_EFORMAT, "RUN names buffer %u of %zu", a->u.index,
                           limits->nbuffers);
        return KG_OK;
    case KG_WA_MAP:
        a->u.index = kg_get_u32(in);
        if (a->u.index >= nmaps)
            return kg_fail(err, KG_EFORMAT, "RUN names tensor map %u of %zu", a->u.index, nmaps);
        return KG_OK;
    case KG_WA_I32:
        a->u.i32 = (int32_t)kg_get_i64(in);
        return KG_OK;
    case KG_WA_I64:
        a->u.i64 = kg_get_i64(in);
        return KG_OK;
    case KG_WA_F32:
        a->u.f32 = (float)kg_get_f64(in);
        return KG_OK;
    case KG_WA_F64:
        a->u.f64 = kg_get_f64(in);
        return KG_OK;
    default:
        return kg_fail(err, KG_EFORMAT, "RUN has an argument of kind %u", a->kind);
    }
}

static bool within(const int64_t n[3], int64_t max) {
    for (int i = 0; i < 3; i++)
        if (n[i] < 1 || n[i] > max)
            return false;
    return true;
}

static int read_shape(kg_reader *in, int device, kg_wire_launch *l, kg_error *err) {
    if (device == KG_CPU) {
        l->range = kg_get_i64(in);
        l->grain = kg_get_i64(in);
        return l->range >= 0 && l->grain >= 1 ? KG_OK : malformed(err);
    }
    int64_t *const threes[] = {l->grid, l->block, l->cluster};
    for (int k = 0; k < 3; k++)
        for (int i = 0; i < 3; i++)
            threes[k][i] = kg_get_i64(in);
    l->shared = kg_get_i64(in);
    l->flags = kg_get_u32(in);
    bool ok = within(l->grid, INT32_MAX) && within(l->block, 1024) && within(l->cluster, 16) &&
              l->shared >= 0 && l->shared <= INT32_MAX &&
              l->flags <= (KG_LAUNCH_COOPERATIVE | KG_LAUNCH_PDL);
    return ok ? KG_OK : malformed(err);
}

static int read_launch(kg_reader *in, const kg_wire_limits *limits, size_t nmaps, kg_wire_launch *l,
                       kg_error *err) {
    memset(l, 0, sizeof *l);
    l->entry = kg_get_u32(in);
    int rc = read_shape(in, limits->device, l, err);
    uint32_t nargs = kg_get_u32(in);
    if (in->status != KG_OK || l->entry >= limits->nentries || nargs > KG_MAX_LAUNCH_ARGS)
        return malformed(err);
    l->nargs = nargs;
    for (uint32_t i = 0; rc == KG_OK && i < nargs; i++)
        rc = read_arg(in, limits, nmaps, &l->args[i], err);
    return rc;
}

static int read_clears(kg_reader *in, const kg_wire_limits *limits, kg_wire_run *r, kg_error *err) {
    r->nclear = kg_get_u32(in);
    if (r->nclear > KG_W_MAX_BUFFERS)
        return kg_fail(err, KG_EFORMAT, "RUN clears %zu buffers", r->nclear);
    for (size_t i = 0; i < r->nclear; i++) {
        r->clear[i] = kg_get_u32(in);
        if (r->clear[i] >= limits->nbuffers || !limits->writable[r->clear[i]])
            return kg_fail(err, KG_EFORMAT, "RUN clears buffer %u", r->clear[i]);
    }
    return KG_OK;
}

static int read_map(kg_reader *in, const kg_wire_limits *limits, kg_map *m, kg_error *err) {
    uint32_t buffer = kg_get_u32(in), dtype = kg_get_u32(in);
    *m = (kg_map){.tensor = (int)buffer, .dtype = (int)dtype};
    m->swizzle = (int)kg_get_u32(in);
    m->l2 = (int)kg_get_u32(in);
    m->rank = kg_get_u32(in);
    if (in->status != KG_OK || dtype >= KG_DTYPE_COUNT || m->rank < 1 || m->rank > 5)
        return malformed(err);
    if (buffer >= limits->nbuffers)
        return kg_fail(err, KG_EFORMAT, "RUN maps buffer %u of %zu", buffer, limits->nbuffers);
    for (size_t d = 0; d < m->rank; d++) {
        m->dims[d] = kg_get_i64(in);
        m->box[d] = kg_get_i64(in);
    }
    for (size_t d = 0; d + 1 < m->rank; d++)
        m->strides[d] = kg_get_i64(in);
    return KG_OK;
}

static int read_maps(kg_reader *in, const kg_wire_limits *limits, kg_wire_run *r, kg_error *err) {
    int rc = KG_OK;
    r->nmaps = kg_get_u32(in);
    if (r->nmaps > KG_MAX_MAPS)
        return kg_fail(err, KG_EFORMAT, "RUN has %zu tensor maps", r->nmaps);
    for (size_t i = 0; rc == KG_OK && i < r->nmaps; i++)
        rc = read_map(in, limits, &r->maps[i], err);
    return rc;
}

static int read_programs(kg_reader *in, kg_wire_run *r, kg_error *err) {
    const void *programs = kg_get_bytes(in, &r->programs_bytes);
    if (r->programs_bytes > sizeof r->programs)
        return kg_fail(err, KG_EOVERFLOW, "RUN has %zu bytes of Programs", r->programs_bytes);
    if (r->programs_bytes > 0)
        memcpy(r->programs, programs, r->programs_bytes);
    return KG_OK;
}

int kg_wire_read_run(kg_reader *in, const kg_wire_limits *limits, kg_wire_run *r, kg_error *err) {
    r->split = kg_get_u32(in);
    r->warm = kg_get_u32(in);
    r->timed = kg_get_u32(in);
    r->flags = kg_get_u32(in);
    /* A GPU's answer has three times as much for each. */
    uint32_t most = limits->device == KG_CPU ? KG_W_MAX_TIMED : KG_W_MAX_TIMED / 4;
    uint32_t flags = limits->device == KG_CPU ? KG_RUN_STALE : KG_RUN_COLD | KG_RUN_GRAPH;
    if (r->split > KG_SPLIT_ODD || r->timed > most || (r->flags & ~(flags | KG_RUN_KEEP)))
        return kg_fail(err, KG_EFORMAT, "RUN asks for %u calls, split %u, flags %u", r->timed,
                       r->split, r->flags);
    int rc = read_clears(in, limits, r, err);
    if (rc == KG_OK)
        rc = read_programs(in, r, err);
    if (rc == KG_OK)
        rc = read_maps(in, limits, r, err);
    uint32_t nlaunches = kg_get_u32(in);
    if (rc == KG_OK && nlaunches > KG_MAX_LAUNCHES)
        rc = kg_fail(err, KG_EFORMAT, "RUN has %u launches", nlaunches);
    for (uint32_t i = 0; rc == KG_OK && i < nlaunches; i++)
        rc = read_launch(in, limits, r->nmaps, &r->launches[i], err);
    r->nlaunches = nlaunches;
    return rc;
}
