/* The CUDA driver, found at run time: libcuda.so.1 by dlopen, nothing of CUDA to build or to link.
 * For tests KGEN_LIBCUDA names another library by its full path (tests/fake makes one that needs no
 * GPU).
 *
 * Every function returns KG_OK or a status, and the message names the call, its CUresult and what
 * to do. Statuses: KG_EENV no driver, no device, a driver or a GPU that is too old; KG_ENOMEM the
 * device is full (the message says how much is free); KG_EDEVICE a sticky error: this process'
 * context is lost, and every later call fails the same way; KG_EINVAL the caller's numbers;
 * KG_ENOTFOUND no such function; KG_EBUSY not permitted while a stream captures; KG_EUNSUPPORTED
 * the device cannot do it; KG_EIO anything else. kg_cuda_last tells the CUresult itself.
 *
 * Thread-safe. The driver is loaded and initialised by whatever needs it first; a process that
 * never touches CUDA never loads it. What works on "the current context" needs kg_cuda_enter before
 * it. */
#ifndef KG_SYS_CUDA_H
#define KG_SYS_CUDA_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/error.h"

typedef uint64_t kg_cu_ptr;    /* an address of device memory */
typedef uint64_t kg_cu_memory; /* a physical allocation (VMM) */
typedef struct CUctx_st *kg_cu_context;
typedef struct CUmod_st *kg_cu_module;
typedef struct CUfunc_st *kg_cu_function;
typedef struct CUstream_st *kg_cu_stream; /* NULL: the legacy default stream */
typedef struct CUevent_st *kg_cu_event;
typedef struct CUgraph_st *kg_cu_graph;
typedef struct CUgraphExec_st *kg_cu_graph_exec;

/* ---- the driver and its devices ---- */

/* Loads and initialises the driver; the first answer stands for the process' life. */
int kg_cuda_load(kg_error *err);
/* The CUDA version that the driver supports: 13000 for 13.0. */
int kg_cuda_driver(int *version, kg_error *err);
/* The driver's own version, "580.65.06", "" when the kernel module does not tell. */
const char *kg_cuda_driver_name(void);
/* At least 1: no device is KG_EENV. */
int kg_cuda_count(int *n, kg_error *err);

typedef struct kg_cuda_device {
    int index;
    char name[128]; /* "NVIDIA H200" */
    char pci[32];   /* "0000:18:00.0" */
    unsigned char uuid[16];
    int arch; /* 90 for compute capability 9.0 */
    int sms;
    int max_shared; /* bytes a block, with the opt-in */
    int64_t l2_bytes, persisting_l2_bytes;
    int64_t memory; /* bytes in all */
    int clock_khz, memory_clock_khz, memory_bus_bits;
    bool clusters, cooperative;
    bool vmm; /* exportable VMM allocations */
} kg_cuda_device;

/* The name under which one process at a time holds the GPU to time on it (kg_lock_device): the same
 * in every process of the machine. Returns out. */
enum { KG_CUDA_LOCK = 40 };
const char *kg_cuda_lock_name(const kg_cuda_device *d, char out[KG_CUDA_LOCK]);

/* Cached for the process. A GPU below sm_80 is KG_EENV: kgen's kernels cannot run there. */
int kg_cuda_device_get(int index, const kg_cuda_device **out, kg_error *err);

/* The CUresult of this thread's last failed call; 0 when none failed yet. */
int kg_cuda_last(void);
/* Whether this result means that the context is lost: illegal address, failed assert, ... */
bool kg_cuda_sticky(int result);
/* "CUDA_ERROR_ILLEGAL_ADDRESS", also without a driver for the results that kgen tells apart. */
const char *kg_cuda_result_name(int result);

/* ---- contexts ---- */

/* The device's primary context, the one that torch uses. Kept until the process ends. */
int kg_cuda_primary(int device, kg_cu_context *out, kg_error *err);
/* Makes the device's primary context current in this thread; leave puts back what was there. Nests.
 * A device that is current already costs one call. */
typedef struct kg_cuda_scope {
    bool pushed;
} kg_cuda_scope;
int kg_cuda_enter(int device, kg_cuda_scope *scope, kg_error *err);
void kg_cuda_leave(kg_cuda_scope *scope);
/* Waits for everything of the current context; a kernel's fault comes out here. */
int kg_cuda_synchronize(kg_error *err);
/* Free and total bytes of the current context's device. */
int kg_cuda_memory_info(size_t *free_bytes, size_t *total, kg_error *err);
/* Lines that were set to persist in L2 become normal ones. */
int kg_cuda_reset_persisting_l2(kg_error *err);

/* ---- modules, functions, launches (current context) ---- */

/* cubin: an image as NVRTC gives it. A message about one that the driver refuses says whether it is
 * the driver that is too old. */
int kg_cuda_module_load(const void *cubin, size_t n, kg_cu_module *out, kg_error *err);
void kg_cuda_module_unload(kg_cu_module module);
/* Loaded at once, where the driver would do it at the first launch: a capture may launch it. */
int kg_cuda_function(kg_cu_module module, const char *name, kg_cu_function *out, kg_error *err);

typedef struct kg_cuda_function_info {
    int registers, local_bytes, static_shared, max_threads;
} kg_cuda_function_info;
int kg_cuda_function_info_get(kg_cu_function f, kg_cuda_function_info *out, kg_error *err);
/* Parameter i: KG_ENOTFOUND past the last one, KG_EUNSUPPORTED when the driver (before 12.4) cannot
 * tell. */
int kg_cuda_function_param(kg_cu_function f, size_t i, size_t *offset, size_t *size, kg_error *err);

typedef struct kg_cuda_launch {
    kg_cu_function function;
    uint32_t grid[3], block[3];
    uint32_t cluster[3]; /* all 1, or all 0: none */
    uint32_t shared;     /* dynamic, bytes */
    bool cooperative, pdl;
} kg_cuda_launch;

/* Sets what the function needs once, before its first launch: more than 48 KiB of shared memory,
 * clusters of more than 8 blocks. Then asks the driver whether the launch can ever fit: a cluster
 * that no GPC holds, or a cooperative grid that is not resident at once, is KG_EINVAL with the
 * numbers. */
int kg_cuda_launch_prepare(const kg_cuda_launch *l, kg_error *err);
/* args: addresses of the arguments. */
int kg_cuda_launch_kernel(const kg_cuda_launch *l, kg_cu_stream stream, void **args, kg_error *err);
/* Clusters of the launch that are resident at once; blocks that fit one SM. */
int kg_cuda_max_clusters(const kg_cuda_launch *l, int *n, kg_error *err);
int kg_cuda_max_blocks(kg_cu_function f, int threads, size_t shared, int *n, kg_error *err);

/* ---- tensor maps ---- */

typedef struct kg_cuda_map {
    _Alignas(128) uint64_t opaque[16];
} kg_cuda_map;

/* CUtensorMapDataType */
enum {
    KG_CU_MAP_U8 = 0,
    KG_CU_MAP_U16 = 1,
    KG_CU_MAP_U32 = 2,
    KG_CU_MAP_I32 = 3,
    KG_CU_MAP_U64 = 4,
    KG_CU_MAP_I64 = 5,
    KG_CU_MAP_F16 = 6,
    KG_CU_MAP_F32 = 7,
    KG_CU_MAP_F64 = 8,
    KG_CU_MAP_BF16 = 9
};

typedef struct kg_cuda_map_spec {
    int type; /* KG_CU_MAP_* */
    unsigned rank;
    uint64_t dims[5];    /* elements, innermost first */
    uint64_t strides[4]; /* bytes, of dims 1 on */
    uint32_t box[5];
    int swizzle;       /* 0, 32, 64, 128 */
    int l2;            /* 0, 64, 128, 256 */
    size_t item_bytes; /* for messages and checks */
} kg_cuda_map_spec;

/* Checks what the driver would refuse with a bare CUDA_ERROR_INVALID_VALUE, then encodes. Needs no
 * context. */
int kg_cuda_map_encode(const kg_cuda_map_spec *spec, kg_cu_ptr address, kg_cuda_map *out,
                       kg_error *err);

/* ---- streams, events, graphs (current context) ---- */

int kg_cuda_stream_create(kg_cu_stream *out, kg_error *err); /* does not wait for the default one */
void kg_cuda_stream_destroy(kg_cu_stream s);
int kg_cuda_stream_synchronize(kg_cu_stream s, kg_error *err);
int kg_cuda_stream_done(kg_cu_stream s, bool *done, kg_error *err);
int kg_cuda_stream_wait(kg_cu_stream s, kg_cu_event e, kg_error *err);
int kg_cuda_stream_capturing(kg_cu_stream s, bool *yes, kg_error *err);

int kg_cuda_event_create(bool timing, kg_cu_event *out, kg_error *err);
void kg_cuda_event_destroy(kg_cu_event e);
int kg_cuda_event_record(kg_cu_event e, kg_cu_stream s, kg_error *err);
int kg_cuda_event_synchronize(kg_cu_event e, kg_error *err);
int kg_cuda_event_done(kg_cu_event e, bool *done, kg_error *err);
int kg_cuda_event_elapsed(kg_cu_event from, kg_cu_event to, float *ms, kg_error *err);

/* What a thread does while another one captures (torch does it so that nothing unsafe goes unseen)
 * would end that capture. Between relax and restore this thread says that it knows what it does:
 * loading, allocating, waiting for streams that do not capture. *before is for restore. */
int kg_cuda_capture_relax(int *before, kg_error *err);
void kg_cuda_capture_restore(int before);
/* Between begin and end, what this thread puts on the stream is recorded and not run. After a
 * failure of end the stream captures no more. */
int kg_cuda_capture_begin(kg_cu_stream s, kg_error *err);
int kg_cuda_capture_end(kg_cu_stream s, kg_cu_graph *out, kg_error *err);
int kg_cuda_graph_instantiate(kg_cu_graph g, kg_cu_graph_exec *out, kg_error *err);
int kg_cuda_graph_launch(kg_cu_graph_exec g, kg_cu_stream s, kg_error *err);
void kg_cuda_graph_exec_destroy(kg_cu_graph_exec g);
void kg_cuda_graph_destroy(kg_cu_graph g);

/* ---- memory (current context) ---- */

int kg_cuda_alloc(size_t bytes, kg_cu_ptr *out, kg_error *err);
void kg_cuda_free(kg_cu_ptr p); /* 0 is fine */
int kg_cuda_memset8(kg_cu_ptr to, uint8_t value, size_t bytes, kg_cu_stream s, kg_error *err);
int kg_cuda_memset32(kg_cu_ptr to, uint32_t value, size_t words, kg_cu_stream s, kg_error *err);
/* These return when the bytes are there. */
int kg_cuda_to_device(kg_cu_ptr to, const void *from, size_t bytes, kg_error *err);
int kg_cuda_to_host(void *to, kg_cu_ptr from, size_t bytes, kg_error *err);
/* These are ordered by the stream; host memory must be pinned for them to overlap anything. */
int kg_cuda_to_device_async(kg_cu_ptr to, const void *from, size_t bytes, kg_cu_stream s,
                            kg_error *err);
int kg_cuda_to_host_async(void *to, kg_cu_ptr from, size_t bytes, kg_cu_stream s, kg_error *err);
int kg_cuda_copy_async(kg_cu_ptr to, kg_cu_ptr from, size_t bytes, kg_cu_stream s, kg_error *err);
/* Pinned host memory; device (may be NULL) gets the address by which kernels see it. */
int kg_cuda_host_alloc(size_t bytes, void **out, kg_cu_ptr *device, kg_error *err);
void kg_cuda_host_free(void *p);
int kg_cuda_host_register(void *p, size_t bytes, kg_cu_ptr *device, kg_error *err);
void kg_cuda_host_unregister(void *p);
/* The device that the address belongs to; KG_EINVAL when it is none of the driver's. */
int kg_cuda_pointer_device(kg_cu_ptr p, int *device, kg_error *err);
/* Whether it is an address of that device's own memory; false for the host's, pinned or not. */
bool kg_cuda_pointer_on(kg_cu_ptr p, int device);

/* ---- virtual memory: one physical allocation, mapped at addresses of its owner's choice ---- */

/* What sizes of allocations on the device are multiples of. */
int kg_cuda_granularity(int device, size_t *bytes, kg_error *err);
/* bytes: a multiple of the granularity. Exportable to another process. */
int kg_cuda_memory_create(int device, size_t bytes, kg_cu_memory *out, kg_error *err);
/* Mappings stay until they are unmapped. */
void kg_cuda_memory_release(kg_cu_memory m);
/* A descriptor that another process imports; the caller closes it. */
int kg_cuda_memory_export(kg_cu_memory m, int *fd, kg_error *err);
/* fd stays the caller's and may be closed after. */
int kg_cuda_memory_import(int fd, kg_cu_memory *out, kg_error *err);
/* Addresses without memory. align: 0 or a power of two. */
int kg_cuda_reserve(size_t bytes, size_t align, kg_cu_ptr *out, kg_error *err);
void kg_cuda_unreserve(kg_cu_ptr at, size_t bytes);
/* Maps all of m at `at` and lets the device read it, and write it when `writable`. */
int kg_cuda_map_memory(kg_cu_ptr at, size_t bytes, kg_cu_memory m, int device, bool writable,
                       kg_error *err);
int kg_cuda_unmap(kg_cu_ptr at, size_t bytes, kg_error *err);

#endif
