/* A stand-in for libcuda.so.1 that needs no GPU: "device memory" is host memory, a launch is
 * written down, and failures come when they are asked for. Built as libkgen_fakecuda.so in the
 * build folder; a process uses it when KGEN_LIBCUDA names it by full path before the driver is
 * loaded.
 *
 * KGEN_FAKE_CUDA, read when the driver is initialised, is a list with commas:
 *     devices=1  arch=90  sms=132  driver=13000  memory=MIB  shared=232448  clusters=1
 *     clusters_fit=66 (resident clusters; 0: none fits)
 *     fail=CALL:N:RESULT   the N-th call of CALL (*: of any) gives RESULT, once (N 0: every call).
 * A sticky RESULT poisons the process fault=KERNEL:RESULT  a launch of KERNEL is taken, and RESULT
 * comes with the next call that waits hang=KERNEL          ... or that call never returns log=FILE
 * a line a launch: name, grid, block, cluster, shared, flags kernels=FILE.so      launches of NAME
 * call its function `void fake_kernel_NAME(const fake_launch *)`
 *
 * Everything is done at once: streams only order, and a stream that captures records. cuMemCreate
 * gives memory that other processes can import. Like the driver it refuses calls without a current
 * context, and allocations and loading while this thread captures.
 *
 * Modules are NVRTC's cubins (parameters as the cubin tells them), or text for tests without NVRTC:
 *     KGFAKE1
 *     kernel NAME 8,8,4 registers=32 local=0 static_shared=0 max_threads=1024
 * with the sizes of the parameters ("-" for none). */
#ifndef KG_FAKE_CUDA_H
#define KG_FAKE_CUDA_H

#include <dlfcn.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

enum { FAKE_MAX_PARAMS = 64, FAKE_MAX_BYTES = 4096 };

typedef struct fake_launch {
    char function[128];
    unsigned grid[3], block[3], cluster[3], shared;
    int cooperative, pdl;
    int device;
    void *stream;
    int captured;   /* recorded into a graph, and not run yet */
    int from_graph; /* run by a graph's launch */
    size_t nparams;
    size_t offset[FAKE_MAX_PARAMS], size[FAKE_MAX_PARAMS];
    _Alignas(64) unsigned char bytes[FAKE_MAX_BYTES]; /* the arguments, at their offsets */
} fake_launch;

typedef struct fake_cuda {
    /* Launches, counts and failures are forgotten; the poison, too. Memory stays. */
    void (*reset)(void);
    /* Of any call of the table, by its symbol ("*": all together): how often it was called. */
    size_t (*calls)(const char *symbol);
    size_t (*nlaunches)(void);
    const fake_launch *(*launch)(size_t i); /* NULL past the last one */
    /* The n-th call from now (1: the next) gives result; n 0: every call. "*" counts all calls. */
    void (*fail)(const char *symbol, unsigned n, int result);
    void (*fault)(const char *kernel, int result);
    /* What a launch of the kernel does; the launch's bytes may be read and memory written. */
    void (*on_launch)(const char *kernel, void (*fn)(const fake_launch *l, void *ctx), void *ctx);
    size_t (*live_bytes)(void); /* allocated and not freed, of cuMemAlloc and cuMemCreate */
    size_t (*live_modules)(void);
} fake_cuda;

/* Argument i of a launch, as the type that it has. */
#define FAKE_ARG(type, launch, i)                                                                  \
    (*(const type *)(const void *)((launch)->bytes + (launch)->offset[i]))

/* The control of the stand-in that this process uses, or NULL: path as in KGEN_LIBCUDA. */
static inline const fake_cuda *fake_cuda_of(const char *path) {
    void *lib = dlopen(path, RTLD_NOW | RTLD_LOCAL);
    const fake_cuda *(*get)(void) = NULL;
    void *symbol = lib != NULL ? dlsym(lib, "kgen_fake_cuda") : NULL;
    memcpy(&get, &symbol, sizeof(symbol));
    return get != NULL ? get() : NULL;
}

/* Chooses the stand-in for this process, which must not have loaded a driver yet, with these
 * settings. */
static inline const fake_cuda *fake_cuda_use(const char *path, const char *settings) {
    setenv("KGEN_LIBCUDA", path, 1);
    setenv("KGEN_FAKE_CUDA", settings, 1);
    return fake_cuda_of(path);
}

#endif
