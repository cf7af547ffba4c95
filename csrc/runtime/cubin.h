/* Reading a compiled CUDA image: what a Candidate's may hold, and the parameters of its functions.
 * Works without a driver, so that a plan and a source that do not belong together are told apart
 * before anything runs. */
#ifndef KG_RUNTIME_CUBIN_H
#define KG_RUNTIME_CUBIN_H

#include <stdbool.h>
#include <stddef.h>

#include "base/buf.h"
#include "base/error.h"

/* What NVRTC's maximum of 32764 bytes can hold of one byte each is more; a plan has at most 48. */
#define KG_CUBIN_MAX_PARAMS 64

typedef struct kg_cubin_function {
    size_t nparams;
    struct {
        size_t offset, size; /* bytes */
    } params[KG_CUBIN_MAX_PARAMS];
} kg_cubin_function;

/* KG_EUNSUPPORTED when the cubin has what a Candidate must not have (variables of the device that
 * outlive a launch, undefined functions: printf, malloc, assert, launches from the device). The
 * complaint names section or symbol and the rule. ptx: the text that the cubin was made of, by
 * which constants that no code refers to are told from state; NULL: every variable is state. */
int kg_cubin_inspect(const void *cubin, size_t n, const char *ptx, kg_buf *complaint,
                     kg_error *err);

/* The parameters of a kernel. KG_ENOTFOUND: there is no such kernel; the message names those there
 * are. KG_EFORMAT: its description is not understood. */
int kg_cubin_function_get(const void *cubin, size_t n, const char *name, kg_cubin_function *out,
                          kg_error *err);

/* 90 for sm_90 and sm_90a; 0 when the bytes are no cubin. */
int kg_cubin_arch(const void *cubin, size_t n);

#endif
