/* Serves kgen::linear and kgen::matmul (torch's own, by name and schema) and, with a Program as
 * epilogue, kgen::linear_mod and kgen::matmul_mod. A call of the contract is made of views alone:
 * leading dims become M, batch dims B, a transposed operand keeps its strides. What cannot be said
 * so (dims that do not fold, other ranks and dtypes, nothing to compute) goes to torch, whose
 * result or error the user then sees. */
#include "runtime/shim_product.h"

#include <string.h>

/* ---- the calls of the contracts ---- */

/* Product of what there is to compute; false: nothing. */
static bool something(int64_t b, int64_t m, int64_t n, int64_t k) {
    return b > 0 && m > 0 && n > 0 && k > 0;
}

/* input (..., K) becomes (M, K). */
static int see_linear(kg_product *p, kg_error *err) {
    kg_tensor *x = &p->call.args[KG_INPUT].u.t, given = *x;
    const kg_tensor *w = &p->call.args[KG_SECOND].u.t;
    const kg_value *bias = &p->call.args[KG_BIAS];
    (void)err;
    if (given.ndim < 1 || w->ndim != 2 || w->dtype != given.dtype ||
        given.size[given.ndim - 1] != w->size[1])
        return KG_ENOTFOUND;
    if (bias->present &&
        (bias->u.t.ndim != 1 || bias->u.t.size[0] != w->size[0] || bias->u.t.dtype != given.dtype))
        return KG_ENOTFOUND;
    const int32_t last = given.ndim - 1;
    int64_t m, step = given.size[last];
    if (!kg_product_fold_one(given.size, last, given.stride, &m, &step))
        return KG_ENOTFOUND;
    x->ndim = 2;
    kg_product_set_dim(x, 1, given.size[last], given.stride[last]);
    kg_product_set_dim(x, 0, m, step);
    p->nshown = given.ndim;
    memcpy(p->shown, given.size, (size_t)last * sizeof(p->shown[0]));
    p->shown[last] = w->size[0];
    p->nbatch = 0;
    p->nrows = last;
    p->ncols = 1;
    return something(1, m, w->size[0], w->size[1]) ? KG_OK : KG_ENOTFOUND;
}

/* A vector becomes a matrix of one row (input) or one column (other). */
static void as_matrix(kg_tensor *t, bool row) {
    if (t->ndim != 1)
        return;
    t->ndim = 2;
    if (row) {
        kg_product_set_dim(t, 1, t->size[0], t->stride[0]);
        kg_product_set_dim(t, 0, 1, t->size[1]);
    } else {
        kg_product_set_dim(t, 1, 1, 1);
    }
}

/* Batch dims of both, as torch broadcasts them: sizes into p->shown, strides of each (0 where it is
 * the same for all). */
static bool broadcast(kg_product *p, const kg_tensor *const t[2], int64_t strides[2][KG_MAX_RANK]) {
    int32_t n[2] = {t[0]->ndim - 2, t[1]->ndim - 2};
    p->nbatch = n[0] > n[1] ? n[0] : n[1];
    for (int32_t d = 0; d < p->nbatch; d++) {
        p->shown[d] = 1;
        for (int i = 0; i < 2; i++) {
            int32_t at = d - (p->nbatch - n[i]);
            int64_t size = at < 0 ? 1 : t[i]->size[at];
            strides[i][d] = size == 1 ? 0 : t[i]->stride[at];
            if (size != 1 && p->shown[d] != 1 && p->shown[d] != size)
                return false;
            p->shown[d] = size != 1 ? size : p->shown[d];
        }
    }
    return true;
}

/* The rows and columns of t, a stack of nbatch matrices that are `step` apart. */
static void as_stack(kg_tensor *t, int64_t nbatch, int64_t step) {
    int32_t d = t->ndim - 2;
    int64_t size[2] = {t->size[d], t->size[d + 1]}, stride[2] = {t->stride[d], t->stride[d + 1]};
    t->ndim = 3;
    kg_product_set_dim(t, 0, nbatch, step);
    kg_product_set_dim(t, 1, size[0], stride[0]);
    kg_product_set_dim(t, 2, size[1], stride[1]);
}

/* A matrix or vector on the right: the leading dims of input are more of its rows. */
static bool fold_rows(kg_product *p, kg_tensor *x, const kg_tensor *given) {
    int32_t last = given->ndim - 1;
    int64_t m, step = given->size[last];
    if (!kg_product_fold_one(given->size, last, given->stride, &m, &step))
        return false;
    x->ndim = 2;
    kg_product_set_dim(x, 1, given->size[last], given->stride[last]);
    kg_product_set_dim(x, 0, m, step);
    memcpy(p->shown, given->size, (size_t)last * sizeof(p->shown[0]));
    p->nbatch = 0;
    p->nrows = last;
    return true;
}

static int see_matmul(kg_product *p, kg_error *err) {
    kg_tensor *x = &p->call.args[KG_INPUT].u.t, *y = &p->call.args[KG_SECOND].u.t;
    const bool row = x->ndim == 1, column = y->ndim == 1;
    int64_t nbatch = 1, steps[2] = {0, 0}, strides[2][KG_MAX_RANK];
    (void)err;
    if (x->ndim < 1 || y->ndim < 1 || x->dtype != y->dtype)
        return KG_ENOTFOUND;
    as_matrix(x, true);
    as_matrix(y, false);
    const kg_tensor given = *x;
    if (given.size[given.ndim - 1] != y->size[y->ndim - 2])
        return KG_ENOTFOUND;
    p->ncols = !column;
    if (y->ndim > 2 || !fold_rows(p, x, &given)) {
        const kg_tensor *const both[2] = {&given, y};
        const int64_t *const of[2] = {strides[0], strides[1]};
        if (!broadcast(p, both, strides) ||
            !kg_product_fold(p->shown, p->nbatch, of, 2, &nbatch, steps))
            return KG_ENOTFOUND;
        p->nrows = 1;
        p->shown[p->nbatch] = given.size[given.ndim - 2];
    }
    as_stack(x, nbatch, steps[0]);
    as_stack(y, nbatch, steps[1]);
    if (row) /* its one row is no dim of the result */
        p->nrows = 0;
    p->nshown = p->nbatch + p->nrows + p->ncols;
    if (p->nshown > KG_MAX_RANK)
        return KG_ENOTFOUND;
    if (p->ncols == 1)
        p->shown[p->nshown - 1] = y->size[2];
    return something(nbatch, x->size[1], y->size[2], y->size[1]) ? KG_OK : KG_ENOTFOUND;
}

static kg_product_front linear = {.name = "linear",
                                  .aten = "aten::linear",
                                  .backend = "kgen::_linear",
                                  .train = "kgen::_linear_train",
                                  .noperands = 3,
                                  .rank = 2,
                                  .see = see_linear};
static kg_product_front matmul = {.name = "matmul",
                                  .aten = "aten::matmul",
                                  .backend = "kgen::_matmul",
                                  .train = "kgen::_matmul_train",
                                  .noperands = 2,
                                  .rank = 3,
                                  .see = see_matmul};

/* ---- the boxed functions ---- */

KG_PRODUCT_BOXED(linear_public, kg_product_public(&linear, stack))
KG_PRODUCT_BOXED(linear_backend, kg_product_backend(&linear, stack))
KG_PRODUCT_BOXED(linear_mod, kg_product_mod(&linear, stack))
KG_PRODUCT_BOXED(matmul_public, kg_product_public(&matmul, stack))
KG_PRODUCT_BOXED(matmul_backend, kg_product_backend(&matmul, stack))
KG_PRODUCT_BOXED(matmul_mod, kg_product_mod(&matmul, stack))

/* ---- registration ---- */

#define LINEAR "(Tensor input, Tensor weight, Tensor? bias=None) -> Tensor"
#define MATMUL "(Tensor input, Tensor other) -> Tensor"
#define LINEAR_MOD "(Tensor input, Tensor weight, Tensor? bias, " KG_OF_PROGRAM ") -> Tensor"
#define MATMUL_MOD "(Tensor input, Tensor other, " KG_OF_PROGRAM ") -> Tensor"

static const char *const schemas[] = {
    "linear" LINEAR,
    "_linear" LINEAR,
    "_linear_train" LINEAR,
    "matmul" MATMUL,
    "_matmul" MATMUL,
    "_matmul_train" MATMUL,
    "linear_mod" LINEAR_MOD,
    "linear_mod_train" LINEAR_MOD,
    "matmul_mod" MATMUL_MOD,
    "matmul_mod_train" MATMUL_MOD,
    /* Implemented in Python: torch's own, differentiated again. */
    "_linear_mod_backward(Tensor grad, Tensor input, Tensor weight, Tensor? bias, " KG_OF_PROGRAM
    ", bool[] wanted) -> Tensor[]",
    "_matmul_mod_backward(Tensor grad, Tensor input, Tensor other, " KG_OF_PROGRAM
    ", bool[] wanted) -> Tensor[]",
};

static const kg_product_impl impls[] = {
    {"_linear", linear_backend}, {"_linear_train", linear_backend},
    {"linear_mod", linear_mod},  {"linear_mod_train", linear_mod},
    {"_matmul", matmul_backend}, {"_matmul_train", matmul_backend},
    {"matmul_mod", matmul_mod},  {"matmul_mod_train", matmul_mod},
};

int kg_shim_linear(kg_error *err) {
    int rc = kg_rt_find_op("linear", &linear.op, err);
    if (rc == KG_OK)
        rc = kg_rt_find_op("matmul", &matmul.op, err);
    if (rc == KG_OK)
        rc = kg_product_register(schemas, sizeof(schemas) / sizeof(schemas[0]), impls,
                                 sizeof(impls) / sizeof(impls[0]), err);
    if (rc == KG_OK)
        rc = kg_shim_impl("CompositeImplicitAutograd", "linear", linear_public, err);
    if (rc == KG_OK)
        rc = kg_shim_impl("CompositeImplicitAutograd", "matmul", matmul_public, err);
    return rc;
}
