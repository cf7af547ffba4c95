/* What a CUDA Candidate may include: a closed list, given to NVRTC as text, so that the compiler
 * itself opens no file. Internal to image_cuda.c and its tests. */
#ifndef KG_RUNTIME_CUDA_HEADERS_H
#define KG_RUNTIME_CUDA_HEADERS_H

#include <stdbool.h>

#include "base/buf.h"
#include "base/error.h"
#include "base/hash.h"
#include "sys/nvrtc.h"

/* Looks for directives that include; *any says whether there is one. KG_EUNSUPPORTED with "name:12:
 * ..." in complaint for one outside the list, or whose file is not told by its own line. Reads
 * comments, strings, raw strings and joined lines as a compiler does. */
int kg_cuda_includes(const char *text, size_t n, const char *name, bool *any, kg_buf *complaint,
                     kg_error *err);

typedef struct kg_cuda_header_set {
    const kg_nvrtc_header *v;
    size_t n;
    kg_hash128 hash; /* of all texts */
} kg_cuda_header_set;

/* Every header of the list and what they need themselves, from the folder that NVRTC's search
 * found; read once a process. KG_EENV says what to install. */
int kg_cuda_headers(kg_cuda_header_set *out, kg_error *err);

#endif
