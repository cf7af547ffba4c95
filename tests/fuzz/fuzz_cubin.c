/* Cubins and CUDA sources from anywhere: the inspection, the parameters, the include directives. */
#include <string.h>

#include "runtime/cubin.h"
#include "runtime/cuda_headers.h"

int LLVMFuzzerTestOneInput(const unsigned char *data, size_t n);

int LLVMFuzzerTestOneInput(const unsigned char *data, size_t n) {
    kg_buf complaint;
    kg_error err;
    kg_cubin_function f;
    bool any;
    kg_buf_init(&complaint, 1 << 20);
    (void)kg_cubin_inspect(data, n, NULL, &complaint, &err);
    (void)kg_cubin_function_get(data, n, "k", &f, &err);
    (void)kg_cubin_arch(data, n);
    (void)kg_cuda_includes((const char *)data, n, "fuzz.cu", &any, &complaint, &err);
    kg_buf_free(&complaint);
    return 0;
}
