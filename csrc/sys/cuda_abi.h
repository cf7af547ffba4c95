/* Our own declarations of the CUDA driver's ABI: structs, numbers and the table of functions.
 * Internal to sys/cuda*.c; csrc/conformance holds it against cuda.h wherever that is. No CUDA
 * header is needed to build, no libcuda to link: the table is filled from the libcuda.so.1 of the
 * running machine. */
#ifndef KG_SYS_CUDA_ABI_H
#define KG_SYS_CUDA_ABI_H

#include <stddef.h>
#include <stdint.h>

#include "sys/cuda.h"

/* The oldest driver that has every required function: that of CUDA 12.0. */
#define KG_CU_DRIVER_MIN 12000

/* CUresult, as far as messages and classes tell them apart. */
enum {
    KG_CU_SUCCESS = 0,
    KG_CU_INVALID_VALUE = 1,
    KG_CU_OUT_OF_MEMORY = 2,
    KG_CU_NOT_INITIALIZED = 3,
    KG_CU_DEINITIALIZED = 4,
    KG_CU_STUB_LIBRARY = 34,
    KG_CU_NO_DEVICE = 100,
    KG_CU_INVALID_DEVICE = 101,
    KG_CU_INVALID_IMAGE = 200,
    KG_CU_INVALID_CONTEXT = 201,
    KG_CU_NO_BINARY_FOR_GPU = 209,
    KG_CU_ECC_UNCORRECTABLE = 214,
    KG_CU_UNSUPPORTED_PTX_VERSION = 222,
    KG_CU_NOT_FOUND = 500,
    KG_CU_NOT_READY = 600,
    KG_CU_ILLEGAL_ADDRESS = 700,
    KG_CU_LAUNCH_OUT_OF_RESOURCES = 701,
    KG_CU_LAUNCH_TIMEOUT = 702,
    KG_CU_CONTEXT_IS_DESTROYED = 709,
    KG_CU_ASSERT = 710,
    KG_CU_HARDWARE_STACK_ERROR = 714,
    KG_CU_ILLEGAL_INSTRUCTION = 715,
    KG_CU_MISALIGNED_ADDRESS = 716,
    KG_CU_INVALID_ADDRESS_SPACE = 717,
    KG_CU_INVALID_PC = 718,
    KG_CU_LAUNCH_FAILED = 719,
    KG_CU_COOPERATIVE_LAUNCH_TOO_LARGE = 720,
    KG_CU_TENSOR_MEMORY_LEAK = 721,
    KG_CU_NOT_PERMITTED = 800,
    KG_CU_NOT_SUPPORTED = 801,
    KG_CU_SYSTEM_NOT_READY = 802,
    KG_CU_SYSTEM_DRIVER_MISMATCH = 803,
    KG_CU_COMPAT_NOT_SUPPORTED_ON_DEVICE = 804,
    KG_CU_STREAM_CAPTURE_UNSUPPORTED = 900,
    KG_CU_STREAM_CAPTURE_LAST = 908, /* WRONG_THREAD; the capture errors lie between */
    KG_CU_INVALID_CLUSTER_SIZE = 912,
    KG_CU_UNKNOWN = 999
};

/* CUdevice_attribute */
enum {
    KG_CU_ATTR_CLOCK_KHZ = 13,
    KG_CU_ATTR_SM_COUNT = 16,
    KG_CU_ATTR_MEMORY_CLOCK_KHZ = 36,
    KG_CU_ATTR_MEMORY_BUS_BITS = 37,
    KG_CU_ATTR_L2_BYTES = 38,
    KG_CU_ATTR_MAJOR = 75,
    KG_CU_ATTR_MINOR = 76,
    KG_CU_ATTR_COOPERATIVE = 95,
    KG_CU_ATTR_MAX_SHARED_OPTIN = 97,
    KG_CU_ATTR_VMM = 102,
    KG_CU_ATTR_POSIX_FD = 103,
    KG_CU_ATTR_MAX_PERSISTING_L2 = 108,
    KG_CU_ATTR_CLUSTER = 120
};

/* CUfunction_attribute */
enum {
    KG_CU_FUNC_MAX_THREADS = 0,
    KG_CU_FUNC_STATIC_SHARED = 1,
    KG_CU_FUNC_LOCAL = 3,
    KG_CU_FUNC_REGISTERS = 4,
    KG_CU_FUNC_MAX_DYNAMIC_SHARED = 8,
    KG_CU_FUNC_NON_PORTABLE_CLUSTER = 14
};

/* CUlaunchAttributeID */
enum { KG_CU_LAUNCH_COOPERATIVE = 2, KG_CU_LAUNCH_CLUSTER = 4, KG_CU_LAUNCH_PDL = 6 };

enum {
    KG_CU_EVENT_DISABLE_TIMING = 2,
    KG_CU_STREAM_NON_BLOCKING = 1,
    KG_CU_CAPTURE_MODE_THREAD_LOCAL = 1,
    KG_CU_CAPTURE_MODE_RELAXED = 2,
    KG_CU_CAPTURE_STATUS_NONE = 0,
    KG_CU_HOST_ALLOC_DEVICEMAP = 2,
    KG_CU_HOST_REGISTER_DEVICEMAP = 2,
    KG_CU_ALLOCATION_PINNED = 1,
    KG_CU_LOCATION_DEVICE = 1,
    KG_CU_HANDLE_POSIX_FD = 1,
    KG_CU_ACCESS_READ = 1,
    KG_CU_ACCESS_READ_WRITE = 3,
    KG_CU_GRANULARITY_RECOMMENDED = 1,
    KG_CU_TENSOR_MAP_INTERLEAVE_NONE = 0,
    KG_CU_POINTER_DEVICE_ORDINAL = 9,
    KG_CU_POINTER_MEMORY_TYPE = 2,
    KG_CU_MEMORY_DEVICE = 2
};

typedef struct kg_cu_launch_attribute {
    unsigned id;
    char pad[4];
    union {
        uint64_t pad[8];
        unsigned dim[3];
        int flag;
    } value;
} kg_cu_launch_attribute;

typedef struct kg_cu_launch_config {
    unsigned grid[3], block[3], shared;
    kg_cu_stream stream;
    kg_cu_launch_attribute *attrs;
    unsigned nattrs;
} kg_cu_launch_config;

typedef struct kg_cu_location {
    int type, id;
} kg_cu_location;

typedef struct kg_cu_allocation {
    int type, handle_types;
    kg_cu_location location;
    void *windows;
    unsigned char compression, rdma;
    unsigned short usage;
    unsigned char reserved[4];
} kg_cu_allocation;

typedef struct kg_cu_access {
    kg_cu_location location;
    int flags;
} kg_cu_access;

typedef struct kg_cu_uuid {
    char bytes[16];
} kg_cu_uuid;

/* X(required, symbol, parameters). All return a CUresult. Symbols are the library's own: a header's
 * cuMemAlloc is cuMemAlloc_v2 here. */
#define KG_CUDA_SYMS(X)                                                                            \
    X(1, cuInit, (unsigned))                                                                       \
    X(1, cuDriverGetVersion, (int *))                                                              \
    X(1, cuGetErrorName, (int, const char **))                                                     \
    X(1, cuGetErrorString, (int, const char **))                                                   \
    X(1, cuDeviceGetCount, (int *))                                                                \
    X(1, cuDeviceGet, (int *, int))                                                                \
    X(1, cuDeviceGetName, (char *, int, int))                                                      \
    X(1, cuDeviceGetAttribute, (int *, int, int))                                                  \
    X(1, cuDeviceTotalMem_v2, (size_t *, int))                                                     \
    X(1, cuDeviceGetUuid_v2, (kg_cu_uuid *, int))                                                  \
    X(1, cuDeviceGetPCIBusId, (char *, int, int))                                                  \
    X(1, cuDevicePrimaryCtxRetain, (kg_cu_context *, int))                                         \
    X(1, cuDevicePrimaryCtxRelease_v2, (int))                                                      \
    X(1, cuCtxPushCurrent_v2, (kg_cu_context))                                                     \
    X(1, cuCtxPopCurrent_v2, (kg_cu_context *))                                                    \
    X(1, cuCtxSetCurrent, (kg_cu_context))                                                         \
    X(1, cuCtxGetCurrent, (kg_cu_context *))                                                       \
    X(1, cuCtxGetDevice, (int *))                                                                  \
    X(1, cuCtxSynchronize, (void))                                                                 \
    X(1, cuCtxResetPersistingL2Cache, (void))                                                      \
    X(1, cuModuleLoadData, (kg_cu_module *, const void *))                                         \
    X(1, cuModuleUnload, (kg_cu_module))                                                           \
    X(1, cuModuleGetFunction, (kg_cu_function *, kg_cu_module, const char *))                      \
    X(1, cuFuncGetAttribute, (int *, int, kg_cu_function))                                         \
    X(1, cuFuncSetAttribute, (kg_cu_function, int, int))                                           \
    X(0, cuFuncGetParamInfo, (kg_cu_function, size_t, size_t *, size_t *))                         \
    X(0, cuFuncLoad, (kg_cu_function))                                                             \
    X(1, cuLaunchKernelEx, (const kg_cu_launch_config *, kg_cu_function, void **, void **))        \
    X(1, cuOccupancyMaxActiveBlocksPerMultiprocessor, (int *, kg_cu_function, int, size_t))        \
    X(1, cuOccupancyMaxActiveClusters, (int *, kg_cu_function, const kg_cu_launch_config *))       \
    X(1, cuTensorMapEncodeTiled,                                                                   \
      (kg_cuda_map *, int, unsigned, void *, const uint64_t *, const uint64_t *, const uint32_t *, \
       const uint32_t *, int, int, int, int))                                                      \
    X(1, cuStreamCreate, (kg_cu_stream *, unsigned))                                               \
    X(1, cuStreamDestroy_v2, (kg_cu_stream))                                                       \
    X(1, cuStreamSynchronize, (kg_cu_stream))                                                      \
    X(1, cuStreamQuery, (kg_cu_stream))                                                            \
    X(1, cuStreamWaitEvent, (kg_cu_stream, kg_cu_event, unsigned))                                 \
    X(1, cuStreamIsCapturing, (kg_cu_stream, int *))                                               \
    X(1, cuThreadExchangeStreamCaptureMode, (int *))                                               \
    X(1, cuStreamBeginCapture_v2, (kg_cu_stream, int))                                             \
    X(1, cuStreamEndCapture, (kg_cu_stream, kg_cu_graph *))                                        \
    X(1, cuGraphInstantiateWithFlags, (kg_cu_graph_exec *, kg_cu_graph, unsigned long long))       \
    X(1, cuGraphLaunch, (kg_cu_graph_exec, kg_cu_stream))                                          \
    X(1, cuGraphExecDestroy, (kg_cu_graph_exec))                                                   \
    X(1, cuGraphDestroy, (kg_cu_graph))                                                            \
    X(1, cuEventCreate, (kg_cu_event *, unsigned))                                                 \
    X(1, cuEventDestroy_v2, (kg_cu_event))                                                         \
    X(1, cuEventRecord, (kg_cu_event, kg_cu_stream))                                               \
    X(1, cuEventSynchronize, (kg_cu_event))                                                        \
    X(1, cuEventQuery, (kg_cu_event))                                                              \
    X(1, cuEventElapsedTime, (float *, kg_cu_event, kg_cu_event))                                  \
    X(1, cuMemGetInfo_v2, (size_t *, size_t *))                                                    \
    X(1, cuMemAlloc_v2, (kg_cu_ptr *, size_t))                                                     \
    X(1, cuMemFree_v2, (kg_cu_ptr))                                                                \
    X(1, cuMemsetD8Async, (kg_cu_ptr, unsigned char, size_t, kg_cu_stream))                        \
    X(1, cuMemsetD32Async, (kg_cu_ptr, unsigned, size_t, kg_cu_stream))                            \
    X(1, cuMemcpyHtoD_v2, (kg_cu_ptr, const void *, size_t))                                       \
    X(1, cuMemcpyDtoH_v2, (void *, kg_cu_ptr, size_t))                                             \
    X(1, cuMemcpyHtoDAsync_v2, (kg_cu_ptr, const void *, size_t, kg_cu_stream))                    \
    X(1, cuMemcpyDtoHAsync_v2, (void *, kg_cu_ptr, size_t, kg_cu_stream))                          \
    X(1, cuMemcpyDtoDAsync_v2, (kg_cu_ptr, kg_cu_ptr, size_t, kg_cu_stream))                       \
    X(1, cuMemHostAlloc, (void **, size_t, unsigned))                                              \
    X(1, cuMemFreeHost, (void *))                                                                  \
    X(1, cuMemHostRegister_v2, (void *, size_t, unsigned))                                         \
    X(1, cuMemHostUnregister, (void *))                                                            \
    X(1, cuMemHostGetDevicePointer_v2, (kg_cu_ptr *, void *, unsigned))                            \
    X(1, cuPointerGetAttribute, (void *, int, kg_cu_ptr))                                          \
    X(1, cuMemGetAllocationGranularity, (size_t *, const kg_cu_allocation *, int))                 \
    X(1, cuMemCreate, (kg_cu_memory *, size_t, const kg_cu_allocation *, unsigned long long))      \
    X(1, cuMemRelease, (kg_cu_memory))                                                             \
    X(1, cuMemAddressReserve, (kg_cu_ptr *, size_t, size_t, kg_cu_ptr, unsigned long long))        \
    X(1, cuMemAddressFree, (kg_cu_ptr, size_t))                                                    \
    X(1, cuMemMap, (kg_cu_ptr, size_t, size_t, kg_cu_memory, unsigned long long))                  \
    X(1, cuMemUnmap, (kg_cu_ptr, size_t))                                                          \
    X(1, cuMemSetAccess, (kg_cu_ptr, size_t, const kg_cu_access *, size_t))                        \
    X(1, cuMemExportToShareableHandle, (void *, kg_cu_memory, int, unsigned long long))            \
    X(1, cuMemImportFromShareableHandle, (kg_cu_memory *, void *, int))

typedef struct kg_cuda_table {
#define KG_X(required, name, params) int(*name) params;
    KG_CUDA_SYMS(KG_X)
#undef KG_X
} kg_cuda_table;

/* The table; valid once kg_cuda_load has succeeded. */
extern kg_cuda_table kg_cu;

#endif
