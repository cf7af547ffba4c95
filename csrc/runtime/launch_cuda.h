/* What the runtime's launcher and the worker share of CUDA: from a plan's numbers to the driver's.
 */
#ifndef KG_RUNTIME_LAUNCH_CUDA_H
#define KG_RUNTIME_LAUNCH_CUDA_H

#include "runtime/plan.h"
#include "sys/cuda.h"

/* Bytes of an argument as the kernel's parameter: 8 of a pointer, 128 of a tensor map. */
size_t kg_cuda_arg_bytes(const kg_plan_arg *a, size_t programs_bytes);

/* Holds the arguments of every launch of the plan against the parameters of the kernels in the
 * cubin: number and sizes. KG_EINVAL names launch and argument, or the kernel that is not there. */
int kg_cuda_check_args(const kg_plan *plan, size_t programs_bytes, const void *cubin, size_t n,
                       kg_error *err);

/* The launch for a function; programmatic dependent launches are left out below sm_90, which has
 * none. */
kg_cuda_launch kg_cuda_launch_of(const kg_plan *plan, const kg_launch *l, int arch,
                                 kg_cu_function function);

/* Encodes a map for a tensor at an address. What moves is bits: a dtype that TMA has not
 * goes as an unsigned one of its size. */
int kg_cuda_encode(const kg_map *m, const void *address, kg_cuda_map *out, kg_error *err);

#endif
