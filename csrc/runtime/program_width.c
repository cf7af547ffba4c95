/* What plans ask of a mask beyond its being there: whether it reads b and h, and the width of the
 * rows in which it sees queries and keys. An image's neighbourhood divides both by one number, for
 * the row and the column of each; a kernel may then take tiles of both. The width is a hint of how
 * to walk: a kernel asks the mask itself about each key, so that a wrong one costs time alone. */
#include "runtime/program_ir.h"

bool kg_program_mask_reads(const kg_program *p, char index) {
    const uint8_t kind = index == 'b' ? KG_PK_B : KG_PK_H;
    if (!kg_program_has(p, "MASK"))
        return false;
    bool is = p->mask.result.kind == kind;
    for (size_t i = 0; i < p->mask.n; i++)
        for (size_t j = 0; j < p->mask.value[i].nargs; j++)
            is = is || p->mask.value[i].arg[j].kind == kind;
    return is;
}

/* The number by which an index of `kind` is divided in value i; 0 when it is not. */
static int64_t divisor(const kg_program *p, const kg_call *call, size_t i, int kind) {
    const kg_pinstr *in = &p->mask.value[i];
    bool divides = in->op == KG_POP_FLOORDIV || in->op == KG_POP_TRUNCDIV || in->op == KG_POP_REM;
    if (!divides || in->arg[0].kind != kind || in->arg[1].type != KG_PT_I32)
        return 0;
    if (in->arg[1].kind == KG_PK_LITERAL)
        return in->arg[1].literal.i;
    if (in->arg[1].kind == KG_PK_SCALAR && in->arg[1].index < call->nscalars)
        return (int64_t)call->scalars[in->arg[1].index];
    return 0;
}

int64_t kg_program_mask_width(const kg_program *p, const kg_call *call) {
    if (!kg_program_has(p, "MASK"))
        return 0;
    for (size_t i = 0; i < p->mask.n; i++) {
        int64_t width = divisor(p, call, i, KG_PK_Q);
        for (size_t j = 0; width > 1 && j < p->mask.n; j++)
            if (divisor(p, call, j, KG_PK_KV) == width)
                return width;
    }
    return 0;
}
