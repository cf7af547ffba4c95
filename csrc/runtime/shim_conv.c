/* Serves kgen::conv2d (torch's own, by name and schema, less padding by word) and, with a Program
 * as epilogue, kgen::conv2d_mod. The contract's output is (N, O, P) or, channels last, (N, P, O), P
 * the pixels in order: the user sees it as (N, O, OH, OW) in the memory format that torch's would
 * have. What torch would refuse, other dtypes, a depthwise one that is channels last (whose format
 * torch chooses by library) and what has nothing to compute goes to torch, whose result or error
 * the user then sees. */
#include "runtime/shim_product.h"

#include <string.h>

enum { STRIDE = 3, PADDING, DILATION, GROUPS, CHANNELS_LAST };

/* Both elements of an int[2]; one stands for two. False: it is no such list. */
static bool pair(kg_value *v) {
    if (v->u.list.n == 1)
        v->u.list.v[1] = v->u.list.v[0];
    else if (v->u.list.n != 2)
        return false;
    v->u.list.n = 2;
    return true;
}

/* Whether torch takes these strides for channels last (c10's is_channels_last_strides_2d). */
static bool like_channels_last(const kg_tensor *t) {
    static const int32_t order[4] = {1, 3, 2, 0};
    int64_t least = 0;
    if (t->stride[1] == 0)
        return false;
    for (int i = 0; i < 4; i++) {
        const int32_t d = order[i];
        if (t->size[d] == 0 || t->stride[d] < least || (d == 0 && least == t->stride[1]))
            return false;
        least = t->stride[d];
        if (t->size[d] > 1 && __builtin_mul_overflow(least, t->size[d], &least))
            return false;
    }
    return true;
}

/* (C, H, W) becomes (1, C, H, W), as torch's unsqueeze has it. */
static bool as_batch(kg_tensor *t) {
    int64_t step;
    if (__builtin_mul_overflow(t->size[0], t->stride[0], &step))
        return false;
    for (int32_t d = 3; d > 0; d--)
        kg_product_set_dim(t, d, t->size[d - 1], t->stride[d - 1]);
    kg_product_set_dim(t, 0, 1, step);
    t->ndim = 4;
    return true;
}

/* How many windows fit along dim 2 + i; 0: none, or numbers too large. */
static int64_t windows(const kg_product *p, int i) {
    const kg_value *a = p->call.args;
    const int64_t kernel = a[KG_SECOND].u.t.size[2 + i], stride = a[STRIDE].u.list.v[i],
                  padding = a[PADDING].u.list.v[i], dilation = a[DILATION].u.list.v[i];
    int64_t reach, size = a[KG_INPUT].u.t.size[2 + i];
    if (kernel < 1 || stride < 1 || dilation < 1 || padding < 0 || padding > INT32_MAX ||
        size > INT64_MAX / 4 || __builtin_mul_overflow(dilation, kernel - 1, &reach))
        return 0;
    size += 2 * padding - reach - 1;
    return size < 0 ? 0 : size / stride + 1;
}

static int see_conv2d(kg_product *p, kg_error *err) {
    kg_value *a = p->call.args;
    kg_tensor *x = &a[KG_INPUT].u.t;
    const kg_tensor *w = &a[KG_SECOND].u.t;
    const int64_t groups = a[GROUPS].u.i;
    const bool batched = x->ndim == 4;
    (void)err;
    if ((!batched && x->ndim != 3) || w->ndim != 4 || w->dtype != x->dtype || groups < 1 ||
        !pair(&a[STRIDE]) || !pair(&a[PADDING]) || !pair(&a[DILATION]) ||
        (!batched && !as_batch(x)))
        return KG_ENOTFOUND;
    if (a[KG_BIAS].present && (a[KG_BIAS].u.t.ndim != 1 || a[KG_BIAS].u.t.size[0] != w->size[0] ||
                               a[KG_BIAS].u.t.dtype != x->dtype))
        return KG_ENOTFOUND;
    const int64_t oh = windows(p, 0), ow = windows(p, 1), o = w->size[0];
    const bool last = like_channels_last(x) || like_channels_last(w);
    if (x->size[0] < 1 || w->size[1] < 1 || o < 1 || o % groups != 0 || oh < 1 || ow < 1 ||
        x->size[1] % groups != 0 || x->size[1] / groups != w->size[1] ||
        (last && groups > 1 && w->size[1] == 1))
        return KG_ENOTFOUND;
    a[CHANNELS_LAST].present = true;
    a[CHANNELS_LAST].u.b = last;
    const int64_t shown[4] = {x->size[0], last ? oh : o, last ? ow : oh, last ? o : ow};
    const int32_t order[4] = {0, last ? 2 : 1, last ? 3 : 2, last ? 1 : 3};
    p->nbatch = batched;
    p->nrows = last ? 2 : 1;
    p->ncols = last ? 1 : 2;
    p->nshown = x->ndim - !batched;
    for (int32_t d = 0; d < p->nshown; d++) {
        p->shown[d] = shown[d + !batched];
        p->order[d] = order[d + !batched] - !batched;
    }
    return KG_OK;
}

static kg_product_front conv2d = {
    .name = "conv2d",
    .aten = "aten::conv2d",
    .backend = "kgen::_conv2d",
    .train = "kgen::_conv2d_train",
    .noperands = 3,
    .nattrs = 4,
    .nmore = 1,
    .attrs = {KG_ARG_INT_LIST, KG_ARG_INT_LIST, KG_ARG_INT_LIST, KG_ARG_INT},
    .rank = 3,
    .see = see_conv2d};

/* ---- the boxed functions ---- */

KG_PRODUCT_BOXED(conv2d_public, kg_product_public(&conv2d, stack))
KG_PRODUCT_BOXED(conv2d_backend, kg_product_backend(&conv2d, stack))
KG_PRODUCT_BOXED(conv2d_mod, kg_product_mod(&conv2d, stack))

/* ---- registration ---- */

#define CONV2D                                                                                     \
    "(Tensor input, Tensor weight, Tensor? bias=None, int[2] stride=1, int[2] padding=0, int[2] "  \
    "dilation=1, int groups=1) -> Tensor"
#define OF_CONV                                                                                    \
    "Tensor input, Tensor weight, Tensor? bias, int[2] stride, int[2] padding, int[2] dilation, "  \
    "int groups, " KG_OF_PROGRAM

static const char *const schemas[] = {
    "conv2d" CONV2D,
    "_conv2d" CONV2D,
    "_conv2d_train" CONV2D,
    "conv2d_mod(" OF_CONV ") -> Tensor",
    "conv2d_mod_train(" OF_CONV ") -> Tensor",
    /* Implemented in Python: torch's own, differentiated again. */
    "_conv2d_mod_backward(Tensor grad, " OF_CONV ", bool[] wanted) -> Tensor[]",
};

static const kg_product_impl impls[] = {
    {"_conv2d", conv2d_backend},
    {"_conv2d_train", conv2d_backend},
    {"conv2d_mod", conv2d_mod},
    {"conv2d_mod_train", conv2d_mod},
};

int kg_shim_conv(kg_error *err) {
    int rc = kg_rt_find_op("conv2d", &conv2d.op, err);
    if (rc == KG_OK)
        rc = kg_product_register(schemas, sizeof(schemas) / sizeof(schemas[0]), impls,
                                 sizeof(impls) / sizeof(impls[0]), err);
    if (rc == KG_OK)
        rc = kg_shim_impl("CompositeImplicitAutograd", "conv2d", conv2d_public, err);
    return rc;
}
