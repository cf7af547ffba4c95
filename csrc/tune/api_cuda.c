/* The C API over what of CUDA is the library's own: where a host's packages are. */
#include "kgen_tune.h"
#include "sys/nvrtc.h"

void kgen_nvrtc_search(const char *folder) {
    kg_nvrtc_search(folder);
}
