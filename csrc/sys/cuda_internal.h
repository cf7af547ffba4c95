/* What the files of sys/cuda share beside the table: how a failed call is reported. */
#ifndef KG_SYS_CUDA_INTERNAL_H
#define KG_SYS_CUDA_INTERNAL_H

#include "sys/cuda_abi.h"

/* Remembers the result for kg_cuda_last and fills err: "CALL of OBJECT: NAME; what to do". object
 * may be "". */
int kg_cuda_fail(int result, const char *call, const char *object, kg_error *err);

static inline int kg_cuda_check(int result, const char *call, const char *object, kg_error *err) {
    return result == KG_CU_SUCCESS ? KG_OK : kg_cuda_fail(result, call, object, err);
}

/* KG_CU_CALL(cuInit, "", (0), err): one call of the table, as a status. The name stands in messages
 * as it is in CUDA's documentation, but for the _v2 of some. */
#define KG_CU_CALL(name, object, args, err) kg_cuda_check(kg_cu.name args, #name, object, err)

#endif
