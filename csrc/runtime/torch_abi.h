/* PyTorch's stable C ABI as a table of function pointers, found in the libtorch that the process
 * has already loaded: one binary serves every torch >= 2.10, on builds with and without CUDA, and
 * links none.
 *
 * These are our own declarations; csrc/conformance holds them against torch's headers, symbol by
 * symbol, by type. The only room that knows libtorch. It loads no torch, and it never throws but in
 * kg_torch_throw. */
#ifndef KG_RUNTIME_TORCH_ABI_H
#define KG_RUNTIME_TORCH_ABI_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* The tags are torch's own, so that a conformance unit may compare function types. */
typedef uint64_t StableIValue;
typedef int32_t AOTITorchError;
typedef struct AtenTensorOpaque *AtenTensorHandle;
typedef struct TorchLibraryOpaque *TorchLibraryHandle;
typedef struct StableListOpaque *StableListHandle;
typedef struct StringOpaque *StringHandle;
typedef struct StreamOpaque *StreamHandle;
typedef struct DeviceGuardOpaque *DeviceGuardHandle;
typedef void (*kg_torch_boxed)(StableIValue *, uint64_t, uint64_t);
typedef void (*kg_torch_range)(int64_t, int64_t, void *);

/* X(required, return type, name, (parameters)). Required: in torch 2.10 and in every build. The
 * others are newer or of CUDA builds alone, and are NULL where they are not. */
#define KG_TORCH_SYMS(X)                                                                           \
    X(1, uint64_t, aoti_torch_abi_version, (void))                                                 \
    X(1, void, aoti_torch_check, (bool, const char *, const char *, uint32_t, const char *))       \
    X(1, void, aoti_torch_warn, (const char *, const char *, uint32_t, const char *))              \
    X(1, AOTITorchError, aoti_torch_library_init_fragment,                                         \
      (const char *, const char *, uint32_t, TorchLibraryHandle *))                                \
    X(1, AOTITorchError, aoti_torch_library_init_impl,                                             \
      (const char *, const char *, const char *, uint32_t, TorchLibraryHandle *))                  \
    X(1, AOTITorchError, aoti_torch_library_def, (TorchLibraryHandle, const char *))               \
    X(1, AOTITorchError, torch_library_impl,                                                       \
      (TorchLibraryHandle, const char *, kg_torch_boxed, uint64_t))                                \
    X(1, AOTITorchError, aoti_torch_delete_library_object, (TorchLibraryHandle))                   \
    X(1, AOTITorchError, torch_call_dispatcher,                                                    \
      (const char *, const char *, StableIValue *, uint64_t))                                      \
    X(1, bool, aoti_torch_grad_mode_is_enabled, (void))                                            \
    X(1, void, aoti_torch_grad_mode_set_enabled, (bool))                                           \
    X(1, AOTITorchError, aoti_torch_delete_tensor_object, (AtenTensorHandle))                      \
    X(1, AOTITorchError, aoti_torch_new_tensor_handle, (AtenTensorHandle, AtenTensorHandle *))     \
    X(1, AOTITorchError, aoti_torch_get_dim, (AtenTensorHandle, int64_t *))                        \
    X(1, AOTITorchError, aoti_torch_get_sizes, (AtenTensorHandle, int64_t **))                     \
    X(1, AOTITorchError, aoti_torch_get_strides, (AtenTensorHandle, int64_t **))                   \
    X(1, AOTITorchError, aoti_torch_get_dtype, (AtenTensorHandle, int32_t *))                      \
    X(1, AOTITorchError, aoti_torch_get_device_type, (AtenTensorHandle, int32_t *))                \
    X(1, AOTITorchError, aoti_torch_get_device_index, (AtenTensorHandle, int32_t *))               \
    X(1, AOTITorchError, torch_get_const_data_ptr, (AtenTensorHandle, const void **))              \
    X(1, AOTITorchError, torch_get_mutable_data_ptr, (AtenTensorHandle, void **))                  \
    X(1, AOTITorchError, aoti_torch_empty_strided,                                                 \
      (int64_t, const int64_t *, const int64_t *, int32_t, int32_t, int32_t, AtenTensorHandle *))  \
    X(1, AOTITorchError, aoti_torch__reinterpret_tensor,                                           \
      (AtenTensorHandle, int64_t, const int64_t *, const int64_t *, int64_t, AtenTensorHandle *))  \
    X(1, int32_t, aoti_torch_dtype_float32, (void))                                                \
    X(1, int32_t, aoti_torch_dtype_float64, (void))                                                \
    X(1, int32_t, aoti_torch_dtype_float16, (void))                                                \
    X(1, int32_t, aoti_torch_dtype_bfloat16, (void))                                               \
    X(1, int32_t, aoti_torch_dtype_int8, (void))                                                   \
    X(1, int32_t, aoti_torch_dtype_uint8, (void))                                                  \
    X(1, int32_t, aoti_torch_dtype_int16, (void))                                                  \
    X(1, int32_t, aoti_torch_dtype_int32, (void))                                                  \
    X(1, int32_t, aoti_torch_dtype_int64, (void))                                                  \
    X(1, int32_t, aoti_torch_dtype_bool, (void))                                                   \
    X(1, int32_t, aoti_torch_device_type_cpu, (void))                                              \
    X(1, int32_t, aoti_torch_device_type_cuda, (void))                                             \
    X(1, AOTITorchError, torch_new_list_reserve_size, (size_t, StableListHandle *))                \
    X(1, AOTITorchError, torch_list_size, (StableListHandle, size_t *))                            \
    X(1, AOTITorchError, torch_list_get_item, (StableListHandle, size_t, StableIValue *))          \
    X(1, AOTITorchError, torch_list_push_back, (StableListHandle, StableIValue))                   \
    X(1, AOTITorchError, torch_delete_list, (StableListHandle))                                    \
    X(1, AOTITorchError, torch_string_length, (StringHandle, size_t *))                            \
    X(1, AOTITorchError, torch_string_c_str, (StringHandle, const char **))                        \
    X(1, AOTITorchError, torch_delete_string, (StringHandle))                                      \
    X(1, AOTITorchError, torch_parallel_for, (int64_t, int64_t, int64_t, kg_torch_range, void *))  \
    X(1, AOTITorchError, torch_get_num_threads, (uint32_t *))                                      \
    X(1, AOTITorchError, aoti_torch_create_device_guard, (int32_t, DeviceGuardHandle *))           \
    X(1, AOTITorchError, aoti_torch_delete_device_guard, (DeviceGuardHandle))                      \
    X(0, AOTITorchError, aoti_torch_get_current_cuda_stream, (int32_t, void **))                   \
    X(0, const char *, torch_exception_get_what_without_backtrace, (void))                         \
    X(0, AOTITorchError, torch_new_stable_ivalue, (StableIValue **))                               \
    X(0, AOTITorchError, torch_delete_stable_ivalue, (StableIValue *))

typedef struct kg_torch {
#define KG_X(required, ret, name, params) ret(*name) params;
    KG_TORCH_SYMS(KG_X)
#undef KG_X
} kg_torch;

#ifndef __cplusplus
#include "runtime/types.h"

/* We speak the conventions of 2.10, whatever libtorch is there. */
#define KG_TORCH_ABI (((uint64_t)2 << 56) | ((uint64_t)10 << 48))

/* The table; all NULL before kg_torch_load. */
extern kg_torch kg_th;

/* Fills kg_th. libtorch_cpu: the path of the loaded library, or NULL: found among those that the
 * process has loaded. KG_EENV says what is missing: no torch in this process, a torch before 2.10,
 * a symbol by its name. Once; later calls return KG_OK. */
int kg_torch_load(const char *libtorch_cpu, kg_error *err);

/* A library of torch's that this process has loaded, for dlsym; NULL when it has none. */
void *kg_torch_library(const char *name);

/* torch's code for a kg_dtype and back; -1 for what has no number here. */
int32_t kg_torch_dtype(int dtype);
int kg_torch_dtype_of(int32_t code);
/* KG_CPU, KG_CUDA, or -1. */
int kg_torch_device_of(int32_t device_type);
int32_t kg_torch_device_type(int device);

/* A view of a tensor that stays torch's; device and index (may be NULL) as the tensor has them.
 * KG_EUNSUPPORTED: a dtype, device or rank that the contract's types do not have. No allocation. */
int kg_torch_view(AtenTensorHandle t, kg_tensor *out, int32_t *device, int32_t *index,
                  kg_error *err);

/* Slots of a boxed stack. Optionals are heap cells: made here when they are given to the
 * dispatcher, freed here when they were received. */
StableIValue kg_slot_f64(double v);
double kg_f64_slot(StableIValue s);
bool kg_bool_slot(StableIValue s);
int kg_slot_some(StableIValue value, StableIValue *out, kg_error *err);
StableIValue kg_slot_take(StableIValue optional); /* the value inside; the cell is freed */
StableIValue kg_slot_peek(StableIValue optional); /* the value inside; the cell stays */
AtenTensorHandle kg_slot_tensor(StableIValue s);
StableIValue kg_tensor_slot(AtenTensorHandle t);
void kg_tensor_drop(AtenTensorHandle t); /* NULL is fine */
/* A second owning reference. */
int kg_tensor_share(AtenTensorHandle t, AtenTensorHandle *out, kg_error *err);
/* A Tensor[] with its elements: n owned handles in out (room for max). The list is freed in any
 * case; after a failure no element is left owned. */
int kg_list_take(StableIValue list, AtenTensorHandle *out, size_t max, size_t *n, kg_error *err);
/* A new Tensor[] that owns the handles, which are taken in any case. */
int kg_list_make(AtenTensorHandle *tensors, size_t n, StableIValue *out, kg_error *err);
/* Numbers of an int[] or float[] as slots; frees the list. */
int kg_list_numbers(StableIValue list, StableIValue *out, size_t max, size_t *n, kg_error *err);
/* The same, and the list stays. */
int kg_list_peek(StableIValue list, StableIValue *out, size_t max, size_t *n, kg_error *err);
void kg_list_drop(StableIValue list); /* of numbers */

/* Calls op through the dispatcher; on success the stack's first slots are results that the caller
 * owns, and after a failure it owns nothing of the stack. The message is torch's own where torch
 * tells it (>= 2.13). */
int kg_torch_call(const char *op, const char *overload, StableIValue *stack, kg_error *err);

/* The message of torch's last failure in this thread, after what failed. Returns KG_EINVAL. */
int kg_torch_failed(const char *what, kg_error *err);

/* Raises RuntimeError(msg) in Python by unwinding the calling frames: nothing may be held by them.
 */
void kg_torch_throw(const char *func, const char *msg);
#endif

#endif
