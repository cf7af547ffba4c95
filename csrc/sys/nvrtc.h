/* NVRTC, the CUDA compiler as a library, found at run time: $KGEN_NVRTC (a library or its folder),
 * then the folders that the host told (torch's own packages: C cannot ask Python where they are),
 * then $CUDA_HOME, $CUDA_PATH and /usr/local/cuda, then the loader's path. Versions 12 and 13; the
 * first whose major version the driver can run is taken. A process without a driver may compile.
 *
 * Thread-safe. It compiles one text to a cubin; it reads no file: headers are given as text. */
#ifndef KG_SYS_NVRTC_H
#define KG_SYS_NVRTC_H

#include <stdbool.h>
#include <stddef.h>

#include "base/buf.h"
#include "base/error.h"

typedef struct kg_nvrtc {
    char path[512];
    int major, minor;
    /* Where headers of the same version lie (cuda_fp16.h); "" when none were found. */
    char include[512];
} kg_nvrtc;

/* Tells a folder to look in: one that holds libnvrtc.so.*, or a site-packages, below which
 * nvidia/cu13/lib and nvidia/cuda_nvrtc/lib are looked in. A search that failed before is made
 * again; one that succeeded stands. Beyond 16 folders more are ignored. */
void kg_nvrtc_search(const char *folder);

/* KG_EENV: none; the message says where was looked and what to install. */
int kg_nvrtc_find(const kg_nvrtc **out, kg_error *err);

/* "sm_80", "sm_90a": the target for a compute capability; from 9.0 on with the features that only
 * that architecture has. */
const char *kg_nvrtc_target(int arch, char out[16]);
/* Whether this NVRTC compiles for it: KG_EENV says which version would. */
int kg_nvrtc_supports(int arch, kg_error *err);

typedef struct kg_nvrtc_header {
    const char *name, *text; /* as it stands in #include <...> */
} kg_nvrtc_header;

/* Compiles `source` (a NUL at its end) under `name`, which messages and lines show. options as in
 * NVRTC's documentation ("--gpu-architecture=sm_90a"). The log is added to `log` in any case, the
 * PTX on the way to the cubin to `ptx` (may be NULL).
 * KG_ECOMPILE: the source is refused, the log says why. */
int kg_nvrtc_compile(const char *source, const char *name, const char *const *options,
                     size_t noptions, const kg_nvrtc_header *headers, size_t nheaders,
                     kg_buf *cubin, kg_buf *ptx, kg_buf *log, kg_error *err);

#endif
