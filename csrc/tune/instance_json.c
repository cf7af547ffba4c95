/* Writes what a plan comes to for one call. Tensor maps are left out: whoever needs them encodes
 * them from the instance itself. */
#include "tune/instance_json.h"

static kg_json *ints(const int64_t *v, size_t n) {
    kg_json *list = kg_json_new_array();
    for (size_t i = 0; i < n; i++)
        kg_json_push_int(list, v[i]);
    return list;
}

static void put_value(kg_json *o, const kg_launch_arg *a) {
    switch (a->dtype) {
    case KG_F32:
        kg_json_set_str(o, "kind", "f32");
        kg_json_set_double(o, "value", (double)a->u.f32);
        break;
    case KG_F64:
        kg_json_set_str(o, "kind", "f64");
        kg_json_set_double(o, "value", a->u.f64);
        break;
    case KG_I64:
        kg_json_set_str(o, "kind", "i64");
        kg_json_set_int(o, "value", a->u.i64);
        break;
    default:
        kg_json_set_str(o, "kind", "i32");
        kg_json_set_int(o, "value", a->u.i32);
    }
}

static kg_json *arg_to_json(const kg_launch_arg *a) {
    static const char *const kinds[] = {[KG_PA_TENSOR] = "tensor",
                                        [KG_PA_OUTPUT] = "output",
                                        [KG_PA_WORKSPACE] = "workspace",
                                        [KG_PA_PROGRAMS] = "programs",
                                        [KG_PA_MAP] = "map"};
    kg_json *o = kg_json_new_object();
    if (a->kind == KG_PA_SCALAR) {
        put_value(o, a);
        return o;
    }
    kg_json_set_str(o, "kind", kinds[a->kind]);
    if (a->kind != KG_PA_PROGRAMS)
        kg_json_set_int(o, "index", a->index);
    return o;
}

static kg_json *launch_to_json(const kg_plan *p, const kg_launch *l) {
    kg_json *o = kg_json_new_object(), *args = kg_json_new_array();
    kg_json_set_str(o, "kernel", p->launches[l->plan_launch].kernel);
    if (p->target == KG_CPU) {
        kg_json_set_int(o, "range", l->range);
    } else {
        kg_json_set(o, "grid", ints(l->grid, 3));
        kg_json_set(o, "block", ints(l->block, 3));
        kg_json_set(o, "cluster", ints(l->cluster, 3));
        kg_json_set_int(o, "shared", l->shared);
        kg_json_set_bool(o, "pdl", p->launches[l->plan_launch].pdl);
    }
    for (size_t i = 0; i < l->nargs; i++)
        kg_json_push(args, arg_to_json(&l->args[i]));
    kg_json_set(o, "args", args);
    return o;
}

static kg_json *output_to_json(const char *name, const kg_tensor *t) {
    kg_json *o = kg_json_new_object();
    kg_json_set_str(o, "name", name);
    kg_json_set_str(o, "dtype", kg_dtype_name(t->dtype));
    kg_json_set(o, "shape", ints(t->size, (size_t)t->ndim));
    kg_json_set(o, "stride", ints(t->stride, (size_t)t->ndim));
    return o;
}

static kg_json *map_to_json(const kg_map *m) {
    kg_json *o = kg_json_new_object();
    kg_json_set_int(o, "tensor", m->tensor);
    kg_json_set_bool(o, "is_output", m->tensor_is_output != 0);
    kg_json_set_str(o, "dtype", kg_dtype_name(m->dtype));
    kg_json_set(o, "dims", ints(m->dims, m->rank));
    kg_json_set(o, "strides", ints(m->strides, m->rank - 1));
    kg_json_set(o, "box", ints(m->box, m->rank));
    kg_json_set_int(o, "swizzle", m->swizzle);
    kg_json_set_int(o, "l2", m->l2);
    return o;
}

kg_json *kg_instance_to_json(const kg_plan *p, const kg_op *op, const kg_instance *inst) {
    kg_json *o = kg_json_new_object(), *outputs = kg_json_new_array();
    kg_json *zero = kg_json_new_array(), *launches = kg_json_new_array();
    kg_json *maps = kg_json_new_array();
    for (size_t i = 0; i < inst->noutputs; i++) {
        kg_json_push(outputs, output_to_json(op->outputs[i].name, &inst->outputs[i]));
        if (p->zero_outputs >> i & 1)
            kg_json_push_int(zero, (int64_t)i);
    }
    for (size_t i = 0; i < inst->nlaunches; i++)
        kg_json_push(launches, launch_to_json(p, &inst->launches[i]));
    for (size_t i = 0; i < inst->nmaps; i++)
        kg_json_push(maps, map_to_json(&inst->maps[i]));
    kg_json_set(o, "maps", maps);
    kg_json_set(o, "outputs", outputs);
    kg_json_set(o, "workspace", ints(inst->workspace_bytes, inst->nworkspace));
    kg_json_set(o, "zero", zero);
    if (kg_json_set(o, "launches", launches))
        return o;
    kg_json_free(o);
    return NULL;
}
