/* Dtypes, tensors and calls: plain data that every module shares. No torch, no CUDA type in sight.
 */
#ifndef KG_RUNTIME_TYPES_H
#define KG_RUNTIME_TYPES_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/error.h"

/* X(NAME, torch's name, bytes, C type on the CPU, short macro suffix). The numbers are our own, in
 * files and on the wire; never reuse one. bfloat16 travels as its bits. */
#define KG_DTYPES(X)                                                                               \
    X(F32, 0, "float32", 4, "float")                                                               \
    X(F64, 1, "float64", 8, "double")                                                              \
    X(F16, 2, "float16", 2, "_Float16")                                                            \
    X(BF16, 3, "bfloat16", 2, "unsigned short")                                                    \
    X(I8, 4, "int8", 1, "signed char")                                                             \
    X(U8, 5, "uint8", 1, "unsigned char")                                                          \
    X(I16, 6, "int16", 2, "short")                                                                 \
    X(I32, 7, "int32", 4, "int")                                                                   \
    X(I64, 8, "int64", 8, "long")                                                                  \
    X(BOOL, 9, "bool", 1, "unsigned char")

typedef enum kg_dtype {
#define KG_X(NAME, value, text, bytes, ctype) KG_##NAME = (value),
    KG_DTYPES(KG_X)
#undef KG_X
        KG_DTYPE_COUNT
} kg_dtype;

const char *kg_dtype_name(int dtype);  /* "float32"; NULL for a number that is none */
const char *kg_dtype_ctype(int dtype); /* "float" */
int kg_dtype_parse(const char *name);  /* the number, or KG_EUNSUPPORTED */

/* Bytes; 0 for a number that is none. Here, so that loops over elements call nothing. */
static inline size_t kg_dtype_size(int dtype) {
    switch (dtype) {
#define KG_X(NAME, value, text, bytes, ctype)                                                      \
    case (value):                                                                                  \
        return (bytes);
        KG_DTYPES(KG_X)
#undef KG_X
    default:
        return 0;
    }
}

#define KG_MAX_RANK 8  /* dims of one tensor */
#define KG_MAX_ARGS 24 /* arguments of one Op */
#define KG_MAX_OUTPUTS 8
#define KG_MAX_CAPTURED 16 /* tensors that a Program looks up */
#define KG_MAX_SCALARS 32  /* scalars lifted out of a Program */
#define KG_MAX_LIST 16     /* elements of an int[] attribute */
#define KG_MAX_DIMS 32     /* named and derived dims of one Op */
#define KG_MAX_TUNABLES 16

typedef enum kg_device { KG_CPU = 0, KG_CUDA = 1 } kg_device;

/* A view: data already includes the storage offset; strides in elements. */
typedef struct kg_tensor {
    void *data;
    int32_t dtype;
    int32_t ndim;
    int64_t size[KG_MAX_RANK];
    int64_t stride[KG_MAX_RANK];
} kg_tensor;

int64_t kg_tensor_numel(const kg_tensor *t); /* INT64_MAX when it is larger */
/* Row-major without gaps; dims of size 1 and empty tensors do not count. */
bool kg_tensor_contiguous(const kg_tensor *t);
/* The largest power of two, at most 256, that divides data's address; 256 for a NULL address. */
int64_t kg_tensor_align(const kg_tensor *t);
/* Every element has a place of its own and the places have no gaps: a permuted contiguous tensor.
 */
bool kg_tensor_dense(const kg_tensor *t);
/* Row-major strides for the sizes; KG_EOVERFLOW when the number of elements is out of range. */
int kg_tensor_set_contiguous(kg_tensor *t);

/* [A-Za-z_][A-Za-z0-9_]* */
bool kg_is_name(const char *s);

/* One argument of a call, after torch's schema defaults were filled in. */
typedef struct kg_value {
    bool present; /* false: None was given for a T? */
    union {
        int64_t i;
        double f;
        bool b;
        const char *s;
        kg_tensor t;
        struct {
            int64_t v[KG_MAX_LIST];
            size_t n;
        } list;
    } u;
} kg_value;

struct kg_program;

/* Beside the outputs that are not wanted: the Program stands for arguments of torch's own op, which
 * is fast at them on this device. No pin for any Program serves such a call. */
#define KG_TORCH_IS_FAST (1U << 31)

/* One call of an Op: args in the order of its contract. */
typedef struct kg_call {
    kg_value args[KG_MAX_ARGS];
    size_t nargs;
    kg_tensor captured[KG_MAX_CAPTURED];
    size_t ncaptured;
    double scalars[KG_MAX_SCALARS];
    size_t nscalars;
    const struct kg_program *program; /* NULL: plain */
    uint32_t skip_outputs;            /* bit i: optional output i is not wanted; KG_TORCH_IS_FAST */
    int32_t device;                   /* kg_device */
    int32_t device_index;
    int32_t precision; /* kg_precision */
    /* What align(x) gives where a tensor's data is NULL (a Case's own alignment); 0 stands for 256.
     */
    int32_t align[KG_MAX_ARGS];
} kg_call;

typedef enum kg_precision { KG_PREC_NATIVE = 0, KG_PREC_TF32 = 1, KG_PREC_BF16 = 2 } kg_precision;

#endif
