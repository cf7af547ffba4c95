/* Dtypes by number and name, and what can be said of a tensor from its sizes and strides. Nothing
 * here reads a tensor's data. */
#include "runtime/types.h"

#include <string.h>

static const struct {
    const char *name, *ctype;
} dtypes[KG_DTYPE_COUNT] = {
#define KG_X(NAME, value, text, bytes, type) [value] = {text, type},
    KG_DTYPES(KG_X)
#undef KG_X
};

static bool known(int dtype) {
    return dtype >= 0 && dtype < KG_DTYPE_COUNT;
}

const char *kg_dtype_name(int dtype) {
    return known(dtype) ? dtypes[dtype].name : NULL;
}

const char *kg_dtype_ctype(int dtype) {
    return known(dtype) ? dtypes[dtype].ctype : NULL;
}

int kg_dtype_parse(const char *name) {
    for (int i = 0; name != NULL && i < KG_DTYPE_COUNT; i++)
        if (strcmp(dtypes[i].name, name) == 0)
            return i;
    return KG_EUNSUPPORTED;
}

int64_t kg_tensor_numel(const kg_tensor *t) {
    int64_t n = 1;
    bool over = false;
    for (int i = 0; i < t->ndim; i++) {
        if (t->size[i] == 0)
            return 0;
        over = over || __builtin_mul_overflow(n, t->size[i], &n);
    }
    return over ? INT64_MAX : n;
}

bool kg_tensor_contiguous(const kg_tensor *t) {
    int64_t expected = 1;
    if (kg_tensor_numel(t) == 0)
        return true;
    for (int i = t->ndim - 1; i >= 0; i--) {
        if (t->size[i] == 1)
            continue;
        if (t->stride[i] != expected || __builtin_mul_overflow(expected, t->size[i], &expected))
            return false;
    }
    return true;
}

bool kg_tensor_dense(const kg_tensor *t) {
    int64_t expected = 1;
    uint32_t left = 0;
    if (kg_tensor_numel(t) == 0)
        return true;
    for (int i = 0; i < t->ndim; i++)
        left |= (uint32_t)(t->size[i] != 1) << i;
    while (left != 0) {
        int next = -1;
        for (int i = 0; i < t->ndim && next < 0; i++)
            if ((left >> i & 1) != 0 && t->stride[i] == expected)
                next = i;
        if (next < 0 || __builtin_mul_overflow(expected, t->size[next], &expected))
            return false;
        left &= ~(1U << next);
    }
    return true;
}

int kg_tensor_set_contiguous(kg_tensor *t) {
    int64_t stride = 1;
    if (kg_tensor_numel(t) == INT64_MAX)
        return KG_EOVERFLOW;
    for (int i = t->ndim - 1; i >= 0; i--) {
        t->stride[i] = stride;
        if (__builtin_mul_overflow(stride, t->size[i] > 1 ? t->size[i] : 1, &stride))
            return KG_EOVERFLOW;
    }
    return KG_OK;
}

int64_t kg_tensor_align(const kg_tensor *t) {
    uintptr_t address = (uintptr_t)t->data;
    uintptr_t low = address & (~address + 1);
    return address == 0 || low > 256 ? 256 : (int64_t)low;
}

bool kg_is_name(const char *s) {
    if (s == NULL || *s == '\0' || (*s >= '0' && *s <= '9'))
        return false;
    for (; *s != '\0'; s++) {
        bool letter = (*s >= 'a' && *s <= 'z') || (*s >= 'A' && *s <= 'Z');
        if (!letter && *s != '_' && !(*s >= '0' && *s <= '9'))
            return false;
    }
    return true;
}
