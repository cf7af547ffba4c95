/* Images for CUDA: a Candidate's translation unit as a cubin, through the same cache as the CPU's
 * (runtime/image.h). Works without a device and without a driver. */
#ifndef KG_RUNTIME_IMAGE_CUDA_H
#define KG_RUNTIME_IMAGE_CUDA_H

#include "runtime/plan.h"

/* The cubin for a compute capability, 80 for 8.0 (from 9.0 on with the features that only that
 * architecture has: sm_90a). source is followed by a NUL. KG_ECOMPILE: messages has the compiler's
 * text under `name`. KG_EUNSUPPORTED: an include outside the closed list, before anything is
 * compiled, or a cubin with state or foreign functions; messages says why. KG_EENV: it is not
 * cached and no NVRTC that could build it is here. path (may be NULL) gets the cached file's, ""
 * when the cache is not there. */
int kg_image_cuda(const char *source, size_t n, const char *name, int arch, unsigned flags,
                  kg_buf *image, kg_buf *messages, char path[512], kg_error *err);
/* True if the cache has it (nothing is compiled). */
bool kg_image_cuda_cached(const char *source, size_t n, int arch, unsigned flags);
/* The options that would be used, as one string, for Records. */
const char *kg_image_cuda_flags(int arch, unsigned flags, char *out, size_t n);

#endif
