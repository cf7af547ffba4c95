// Holds csrc/sys/cuda_abi.h and nvrtc_abi.h, our own C declarations of the driver's and NVRTC's
// ABI, against the headers of a toolkit (12.0 or newer): a struct, a number or a function whose ABI
// differs does not compile. There is nothing to run. Types need not be the same, for the headers'
// are enums and structs of their own; they must be passed in the same way.
#define __CUDA_API_VERSION_INTERNAL // cuda.h then declares the older symbols, too
#include <cuda.h>

#include <cstddef>
#include <cstdint>
#include <type_traits>

#include "base/error.h"
#include "conformance/same_abi.h"
#include <stdbool.h>

#define _Alignas alignas // the C word
namespace ours {
extern "C" {
#include "sys/cuda_abi.h"
}
} // namespace ours

#if CUDA_VERSION < 12040
#define KG_NEWER_0(name, params)
#else
#define KG_NEWER_0(name, params) KG_CHECK(name, params)
#endif
#define KG_NEWER_1(name, params) KG_CHECK(name, params)
#define KG_CHECK(name, params)                                                                     \
    static_assert(same_abi<decltype(&::name), decltype(ours::kg_cuda_table::name)>::value,         \
                  #name ": cuda_abi.h and cuda.h differ");
#define KG_X(required, name, params) KG_NEWER_##required(name, params)
namespace ours {
KG_CUDA_SYMS(KG_X)
} // namespace ours
#undef KG_X
#define KG_SAME_SIZE(mine, theirs)                                                                 \
    static_assert(sizeof(ours::mine) == sizeof(theirs) && alignof(ours::mine) == alignof(theirs),  \
                  #mine " and " #theirs " differ in size")
#define KG_SAME_PLACE(mine, a, theirs, b)                                                          \
    static_assert(offsetof(ours::mine, a) == offsetof(theirs, b), #mine "." #a " is misplaced")
KG_SAME_SIZE(kg_cuda_map, CUtensorMap);
KG_SAME_SIZE(kg_cu_launch_attribute, CUlaunchAttribute);
KG_SAME_PLACE(kg_cu_launch_attribute, id, CUlaunchAttribute, id);
KG_SAME_PLACE(kg_cu_launch_attribute, value, CUlaunchAttribute, value);
KG_SAME_PLACE(kg_cu_launch_attribute, value.dim, CUlaunchAttribute, value.clusterDim);
KG_SAME_PLACE(kg_cu_launch_attribute, value.flag, CUlaunchAttribute, value.cooperative);
KG_SAME_PLACE(kg_cu_launch_attribute, value.flag, CUlaunchAttribute,
              value.programmaticStreamSerializationAllowed);
KG_SAME_SIZE(kg_cu_launch_config, CUlaunchConfig);
KG_SAME_PLACE(kg_cu_launch_config, grid, CUlaunchConfig, gridDimX);
KG_SAME_PLACE(kg_cu_launch_config, block, CUlaunchConfig, blockDimX);
KG_SAME_PLACE(kg_cu_launch_config, shared, CUlaunchConfig, sharedMemBytes);
KG_SAME_PLACE(kg_cu_launch_config, stream, CUlaunchConfig, hStream);
KG_SAME_PLACE(kg_cu_launch_config, attrs, CUlaunchConfig, attrs);
KG_SAME_PLACE(kg_cu_launch_config, nattrs, CUlaunchConfig, numAttrs);
KG_SAME_SIZE(kg_cu_location, CUmemLocation);
KG_SAME_PLACE(kg_cu_location, type, CUmemLocation, type);
KG_SAME_PLACE(kg_cu_location, id, CUmemLocation, id);
KG_SAME_SIZE(kg_cu_allocation, CUmemAllocationProp);
KG_SAME_PLACE(kg_cu_allocation, type, CUmemAllocationProp, type);
KG_SAME_PLACE(kg_cu_allocation, handle_types, CUmemAllocationProp, requestedHandleTypes);
KG_SAME_PLACE(kg_cu_allocation, location, CUmemAllocationProp, location);
KG_SAME_PLACE(kg_cu_allocation, compression, CUmemAllocationProp, allocFlags);
KG_SAME_SIZE(kg_cu_access, CUmemAccessDesc);
KG_SAME_PLACE(kg_cu_access, location, CUmemAccessDesc, location);
KG_SAME_PLACE(kg_cu_access, flags, CUmemAccessDesc, flags);
KG_SAME_SIZE(kg_cu_uuid, CUuuid);

#define KG_SAME_NUMBER(mine, theirs)                                                               \
    static_assert(static_cast<int>(ours::mine) == static_cast<int>(theirs),                        \
                  #mine " is not " #theirs)
#define KG_RESULT(name) KG_SAME_NUMBER(KG_CU_##name, CUDA_ERROR_##name)
KG_RESULT(INVALID_VALUE);
KG_RESULT(OUT_OF_MEMORY);
KG_RESULT(NOT_INITIALIZED);
KG_RESULT(DEINITIALIZED);
KG_RESULT(STUB_LIBRARY);
KG_RESULT(NO_DEVICE);
KG_RESULT(INVALID_DEVICE);
KG_RESULT(INVALID_IMAGE);
KG_RESULT(INVALID_CONTEXT);
KG_RESULT(NO_BINARY_FOR_GPU);
KG_RESULT(ECC_UNCORRECTABLE);
KG_RESULT(UNSUPPORTED_PTX_VERSION);
KG_RESULT(NOT_FOUND);
KG_RESULT(NOT_READY);
KG_RESULT(ILLEGAL_ADDRESS);
KG_RESULT(LAUNCH_OUT_OF_RESOURCES);
KG_RESULT(LAUNCH_TIMEOUT);
KG_RESULT(CONTEXT_IS_DESTROYED);
KG_RESULT(ASSERT);
KG_RESULT(HARDWARE_STACK_ERROR);
KG_RESULT(ILLEGAL_INSTRUCTION);
KG_RESULT(MISALIGNED_ADDRESS);
KG_RESULT(INVALID_ADDRESS_SPACE);
KG_RESULT(INVALID_PC);
KG_RESULT(LAUNCH_FAILED);
KG_RESULT(COOPERATIVE_LAUNCH_TOO_LARGE);
KG_RESULT(NOT_PERMITTED);
KG_RESULT(NOT_SUPPORTED);
KG_RESULT(SYSTEM_NOT_READY);
KG_RESULT(SYSTEM_DRIVER_MISMATCH);
KG_RESULT(STREAM_CAPTURE_UNSUPPORTED);
KG_RESULT(INVALID_CLUSTER_SIZE);
KG_RESULT(UNKNOWN);
KG_SAME_NUMBER(KG_CU_COMPAT_NOT_SUPPORTED_ON_DEVICE, CUDA_ERROR_COMPAT_NOT_SUPPORTED_ON_DEVICE);
KG_SAME_NUMBER(KG_CU_STREAM_CAPTURE_LAST, CUDA_ERROR_STREAM_CAPTURE_WRONG_THREAD);
#if CUDA_VERSION >= 12080
KG_RESULT(TENSOR_MEMORY_LEAK);
#else
static_assert(ours::KG_CU_TENSOR_MEMORY_LEAK == 721);
#endif
#define KG_ATTRIBUTE(mine, theirs) KG_SAME_NUMBER(KG_CU_ATTR_##mine, CU_DEVICE_ATTRIBUTE_##theirs)
KG_ATTRIBUTE(CLOCK_KHZ, CLOCK_RATE);
KG_ATTRIBUTE(SM_COUNT, MULTIPROCESSOR_COUNT);
KG_ATTRIBUTE(MEMORY_CLOCK_KHZ, MEMORY_CLOCK_RATE);
KG_ATTRIBUTE(MEMORY_BUS_BITS, GLOBAL_MEMORY_BUS_WIDTH);
KG_ATTRIBUTE(L2_BYTES, L2_CACHE_SIZE);
KG_ATTRIBUTE(MAJOR, COMPUTE_CAPABILITY_MAJOR);
KG_ATTRIBUTE(MINOR, COMPUTE_CAPABILITY_MINOR);
KG_ATTRIBUTE(COOPERATIVE, COOPERATIVE_LAUNCH);
KG_ATTRIBUTE(MAX_SHARED_OPTIN, MAX_SHARED_MEMORY_PER_BLOCK_OPTIN);
KG_ATTRIBUTE(VMM, VIRTUAL_MEMORY_MANAGEMENT_SUPPORTED);
KG_ATTRIBUTE(POSIX_FD, HANDLE_TYPE_POSIX_FILE_DESCRIPTOR_SUPPORTED);
KG_ATTRIBUTE(MAX_PERSISTING_L2, MAX_PERSISTING_L2_CACHE_SIZE);
KG_ATTRIBUTE(CLUSTER, CLUSTER_LAUNCH);
KG_SAME_NUMBER(KG_CU_FUNC_MAX_THREADS, CU_FUNC_ATTRIBUTE_MAX_THREADS_PER_BLOCK);
KG_SAME_NUMBER(KG_CU_FUNC_STATIC_SHARED, CU_FUNC_ATTRIBUTE_SHARED_SIZE_BYTES);
KG_SAME_NUMBER(KG_CU_FUNC_LOCAL, CU_FUNC_ATTRIBUTE_LOCAL_SIZE_BYTES);
KG_SAME_NUMBER(KG_CU_FUNC_REGISTERS, CU_FUNC_ATTRIBUTE_NUM_REGS);
KG_SAME_NUMBER(KG_CU_FUNC_MAX_DYNAMIC_SHARED, CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES);
KG_SAME_NUMBER(KG_CU_FUNC_NON_PORTABLE_CLUSTER,
               CU_FUNC_ATTRIBUTE_NON_PORTABLE_CLUSTER_SIZE_ALLOWED);
KG_SAME_NUMBER(KG_CU_LAUNCH_COOPERATIVE, CU_LAUNCH_ATTRIBUTE_COOPERATIVE);
KG_SAME_NUMBER(KG_CU_LAUNCH_CLUSTER, CU_LAUNCH_ATTRIBUTE_CLUSTER_DIMENSION);
KG_SAME_NUMBER(KG_CU_LAUNCH_PDL, CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION);
KG_SAME_NUMBER(KG_CU_EVENT_DISABLE_TIMING, ::CU_EVENT_DISABLE_TIMING);
KG_SAME_NUMBER(KG_CU_STREAM_NON_BLOCKING, ::CU_STREAM_NON_BLOCKING);
KG_SAME_NUMBER(KG_CU_CAPTURE_MODE_THREAD_LOCAL, CU_STREAM_CAPTURE_MODE_THREAD_LOCAL);
KG_SAME_NUMBER(KG_CU_CAPTURE_MODE_RELAXED, CU_STREAM_CAPTURE_MODE_RELAXED);
KG_SAME_NUMBER(KG_CU_CAPTURE_STATUS_NONE, CU_STREAM_CAPTURE_STATUS_NONE);
KG_SAME_NUMBER(KG_CU_HOST_ALLOC_DEVICEMAP, CU_MEMHOSTALLOC_DEVICEMAP);
KG_SAME_NUMBER(KG_CU_HOST_REGISTER_DEVICEMAP, CU_MEMHOSTREGISTER_DEVICEMAP);
KG_SAME_NUMBER(KG_CU_ALLOCATION_PINNED, CU_MEM_ALLOCATION_TYPE_PINNED);
KG_SAME_NUMBER(KG_CU_LOCATION_DEVICE, CU_MEM_LOCATION_TYPE_DEVICE);
KG_SAME_NUMBER(KG_CU_HANDLE_POSIX_FD, CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR);
KG_SAME_NUMBER(KG_CU_ACCESS_READ, CU_MEM_ACCESS_FLAGS_PROT_READ);
KG_SAME_NUMBER(KG_CU_ACCESS_READ_WRITE, CU_MEM_ACCESS_FLAGS_PROT_READWRITE);
KG_SAME_NUMBER(KG_CU_GRANULARITY_RECOMMENDED, CU_MEM_ALLOC_GRANULARITY_RECOMMENDED);
KG_SAME_NUMBER(KG_CU_TENSOR_MAP_INTERLEAVE_NONE, ::CU_TENSOR_MAP_INTERLEAVE_NONE);
KG_SAME_NUMBER(KG_CU_POINTER_DEVICE_ORDINAL, CU_POINTER_ATTRIBUTE_DEVICE_ORDINAL);
KG_SAME_NUMBER(KG_CU_POINTER_MEMORY_TYPE, CU_POINTER_ATTRIBUTE_MEMORY_TYPE);
KG_SAME_NUMBER(KG_CU_MEMORY_DEVICE, CU_MEMORYTYPE_DEVICE);
#define KG_MAP_TYPE(mine, theirs) KG_SAME_NUMBER(KG_CU_MAP_##mine, CU_TENSOR_MAP_DATA_TYPE_##theirs)
KG_MAP_TYPE(U8, UINT8);
KG_MAP_TYPE(U16, UINT16);
KG_MAP_TYPE(U32, UINT32);
KG_MAP_TYPE(I32, INT32);
KG_MAP_TYPE(U64, UINT64);
KG_MAP_TYPE(I64, INT64);
KG_MAP_TYPE(F16, FLOAT16);
KG_MAP_TYPE(F32, FLOAT32);
KG_MAP_TYPE(F64, FLOAT64);
KG_MAP_TYPE(BF16, BFLOAT16);
static_assert(CU_TENSOR_MAP_SWIZZLE_32B == 1 && CU_TENSOR_MAP_SWIZZLE_128B == 3 &&
              CU_TENSOR_MAP_L2_PROMOTION_L2_64B == 1 && CU_TENSOR_MAP_L2_PROMOTION_L2_256B == 3);
