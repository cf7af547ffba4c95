/* A bound plan as JSON, for whoever launches or reads it elsewhere: tests, prompts, reports. */
#ifndef KG_TUNE_INSTANCE_JSON_H
#define KG_TUNE_INSTANCE_JSON_H

#include "base/json.h"
#include "runtime/plan.h"

/* {"outputs": [{"name", "dtype", "shape", "stride"}], "workspace": [bytes], "zero": [index of
 * output], "launches": [{"kernel", "grid", "block", "cluster", "shared", "pdl", "range", "args":
 * [{"kind": "tensor" | "output" | "workspace" | "map", "index"} | {"kind": "programs"} | {"kind":
 * "i32" | "i64" | "f32" | "f64", "value"}]}], "maps": [{"tensor", "is_output", "dtype", "dims",
 * "strides", "box", "swizzle", "l2"}]}. NULL: out of memory, or an integer beyond 2^53; a float
 * that is not finite is null. */
kg_json *kg_instance_to_json(const kg_plan *p, const kg_op *op, const kg_instance *inst);

#endif
