/* Our own declarations of NVRTC's ABI. Internal to sys/nvrtc.c; csrc/conformance holds it against
 * nvrtc.h. */
#ifndef KG_SYS_NVRTC_ABI_H
#define KG_SYS_NVRTC_ABI_H

#include <stddef.h>

/* nvrtcResult */
enum { KG_NVRTC_OUT_OF_MEMORY = 1, KG_NVRTC_INVALID_OPTION = 5, KG_NVRTC_COMPILATION = 6 };

typedef struct _nvrtcProgram kg_nvrtc_program;

/* X(symbol, parameters). All but the text return an nvrtcResult. */
#define KG_NVRTC_SYMS(X) KG_NVRTC_CALLS(X) X(nvrtcGetErrorString, (int))
#define KG_NVRTC_CALLS(X)                                                                          \
    X(nvrtcVersion, (int *, int *))                                                                \
    X(nvrtcGetNumSupportedArchs, (int *))                                                          \
    X(nvrtcGetSupportedArchs, (int *))                                                             \
    X(nvrtcCreateProgram, (kg_nvrtc_program **, const char *, const char *, int,                   \
                           const char *const *, const char *const *))                              \
    X(nvrtcDestroyProgram, (kg_nvrtc_program **))                                                  \
    X(nvrtcCompileProgram, (kg_nvrtc_program *, int, const char *const *))                         \
    X(nvrtcGetCUBINSize, (kg_nvrtc_program *, size_t *))                                           \
    X(nvrtcGetCUBIN, (kg_nvrtc_program *, char *))                                                 \
    X(nvrtcGetPTXSize, (kg_nvrtc_program *, size_t *))                                             \
    X(nvrtcGetPTX, (kg_nvrtc_program *, char *))                                                   \
    X(nvrtcGetProgramLogSize, (kg_nvrtc_program *, size_t *))                                      \
    X(nvrtcGetProgramLog, (kg_nvrtc_program *, char *))

typedef struct kg_nvrtc_table {
#define KG_X(name, params) int(*name) params;
    KG_NVRTC_CALLS(KG_X)
#undef KG_X
    const char *(*nvrtcGetErrorString)(int);
} kg_nvrtc_table;

#endif
