/* What the Python tests call of the Program's C core: flat functions over ctypes, so that lowered
 * code, the host evaluator and torch can be held against each other. Tests alone build it. */
#include <stdlib.h>
#include <string.h>

#include "runtime/program.h"

/* The Program of the text, or NULL with the message in err (512 bytes). */
kg_program *bridge_parse(const char *text, size_t n, char *err) {
    kg_program *p = NULL;
    kg_error e = {0};
    if (kg_program_parse(text, n, &p, &e) != KG_OK)
        memcpy(err, e.msg, sizeof e.msg);
    return p;
}

void bridge_free(kg_program *p) {
    kg_program_free(p);
}

const char *bridge_hash(const kg_program *p) {
    return kg_program_hash(p);
}

/* The lowered text, which bridge_release frees. */
char *bridge_lower(const kg_program *p, int target) {
    kg_buf out;
    kg_buf_init(&out, 0);
    char *text = kg_program_lower(p, target, &out, NULL) == KG_OK ? kg_buf_take(&out) : NULL;
    kg_buf_free(&out);
    return text;
}

void bridge_release(char *text) {
    free(text);
}

static kg_call *call_of(size_t ntensors, void *const *data, const int *dtype, const int *ndim,
                        const int64_t *sizes, const int64_t *strides, size_t nscalars,
                        const double *scalars) {
    kg_call *c = calloc(1, sizeof *c);
    if (c == NULL)
        return NULL;
    c->ncaptured = ntensors;
    c->nscalars = nscalars;
    for (size_t i = 0; i < ntensors; i++) {
        c->captured[i].data = data[i];
        c->captured[i].dtype = dtype[i];
        c->captured[i].ndim = ndim[i];
        for (int d = 0; d < ndim[i]; d++) {
            c->captured[i].size[d] = sizes[i * KG_MAX_RANK + (size_t)d];
            c->captured[i].stride[d] = strides[i * KG_MAX_RANK + (size_t)d];
        }
    }
    for (size_t i = 0; i < nscalars; i++)
        c->scalars[i] = scalars[i];
    return c;
}

kg_call *bridge_call(size_t ntensors, void *const *data, const int *dtype, const int *ndim,
                     const int64_t *sizes, const int64_t *strides, size_t nscalars,
                     const double *scalars) {
    return call_of(ntensors, data, dtype, ndim, sizes, strides, nscalars, scalars);
}

void bridge_call_free(kg_call *c) {
    free(c);
}

size_t bridge_args_size(const kg_program *p) {
    return kg_program_args_size(p);
}

int bridge_args(const kg_program *p, const kg_call *call, void *bytes, size_t n, char *err) {
    kg_error e = {0};
    int rc = kg_program_args(p, call, bytes, n, &e);
    memcpy(err, e.msg, sizeof e.msg);
    return rc;
}

/* The host evaluator over b x h x q x kv points from zero: score holds the scores and gets the
 * results, NaN where the mask is false is not written: mask gets 0 or 1. */
int bridge_evaluate(const kg_program *p, const kg_call *call, const int64_t n[4], double *score,
                    unsigned char *mask) {
    size_t at = 0;
    for (int64_t b = 0; b < n[0]; b++)
        for (int64_t h = 0; h < n[1]; h++)
            for (int64_t q = 0; q < n[2]; q++)
                for (int64_t kv = 0; kv < n[3]; kv++, at++) {
                    bool keep = false;
                    int rc = kg_program_score(p, call, score[at], b, h, q, kv, &score[at], NULL);
                    if (rc == KG_OK)
                        rc = kg_program_mask(p, call, b, h, q, kv, &keep, NULL);
                    if (rc != KG_OK)
                        return rc;
                    mask[at] = keep;
                }
    return KG_OK;
}
