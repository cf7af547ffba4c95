/* Finds torch's C ABI in the running process and turns its slots into plain values and back. It
 * refuses to load torch: a process without it gets a message. */
#include "runtime/torch_abi.h"

#include <dlfcn.h>
#include <limits.h>
#include <link.h>
#include <pthread.h>
#include <stdio.h>
#include <string.h>

kg_torch kg_th;

static pthread_mutex_t load_lock = PTHREAD_MUTEX_INITIALIZER;
static bool loaded;
static int32_t torch_dtypes[KG_DTYPE_COUNT], torch_devices[2];
static void *(*cxx_new)(size_t);
static void (*cxx_delete)(void *);

/* POSIX says that a pointer from dlsym may be a function's; ISO C has no cast for it. */
static void set_function(void *slot, void *symbol) {
    memcpy(slot, &symbol, sizeof(symbol));
}

typedef struct wanted {
    const char *name;
    char path[PATH_MAX];
} wanted;

static int is_wanted(struct dl_phdr_info *info, size_t size, void *ctx) {
    wanted *w = ctx;
    const char *slash = info->dlpi_name != NULL ? strrchr(info->dlpi_name, '/') : NULL;
    (void)size;
    return slash != NULL && strncmp(slash + 1, w->name, strlen(w->name)) == 0 &&
           snprintf(w->path, PATH_MAX, "%s", info->dlpi_name) < PATH_MAX;
}

/* The first loaded library whose file name starts with `name`. Asked of the loader by its path: by
 * name alone it would search the disk for what is not loaded. */
static void *open_loaded(const char *name) {
    wanted w = {.name = name};
    return dl_iterate_phdr(is_wanted, &w) != 0 ? dlopen(w.path, RTLD_NOW | RTLD_NOLOAD) : NULL;
}

static void *open_library(const char *given, const char *name) {
    void *lib = given != NULL ? dlopen(given, RTLD_NOW | RTLD_NOLOAD) : NULL;
    return lib != NULL ? lib : open_loaded(name);
}

void *kg_torch_library(const char *name) {
    return open_library(NULL, name);
}

static int find_symbols(void *cpu, void *cuda, kg_torch *table, kg_error *err) {
    static const struct {
        const char *name;
        size_t offset;
        bool required;
    } symbols[] = {
#define KG_X(required, ret, name, params) {#name, offsetof(kg_torch, name), required},
        KG_TORCH_SYMS(KG_X)
#undef KG_X
    };
    for (size_t i = 0; i < sizeof(symbols) / sizeof(symbols[0]); i++) {
        void *found = dlsym(cpu, symbols[i].name);
        if (found == NULL && cuda != NULL)
            found = dlsym(cuda, symbols[i].name);
        if (found == NULL && symbols[i].required)
            return kg_fail(err, KG_EENV,
                           "this torch has no %s: kgen needs torch 2.10 or newer (pip install "
                           "'torch>=2.10')",
                           symbols[i].name);
        set_function((char *)table + symbols[i].offset, found);
    }
    return KG_OK;
}

/* Before 2.13 an optional's cell is made by C++'s own operator new. */
static int find_allocator(kg_error *err) {
    if (kg_th.torch_new_stable_ivalue != NULL && kg_th.torch_delete_stable_ivalue != NULL)
        return KG_OK;
    void *lib = open_library(NULL, "libstdc++.so.6");
    if (lib == NULL)
        return kg_fail(err, KG_EENV, "libstdc++.so.6 is not loaded, though torch is");
    set_function(&cxx_new, dlsym(lib, "_Znwm"));
    set_function(&cxx_delete, dlsym(lib, "_ZdlPv"));
    if (cxx_new == NULL || cxx_delete == NULL)
        return kg_fail(err, KG_EENV, "libstdc++.so.6 has no operator new and delete");
    return KG_OK;
}

static void read_codes(void) {
    torch_dtypes[KG_F32] = kg_th.aoti_torch_dtype_float32();
    torch_dtypes[KG_F64] = kg_th.aoti_torch_dtype_float64();
    torch_dtypes[KG_F16] = kg_th.aoti_torch_dtype_float16();
    torch_dtypes[KG_BF16] = kg_th.aoti_torch_dtype_bfloat16();
    torch_dtypes[KG_I8] = kg_th.aoti_torch_dtype_int8();
    torch_dtypes[KG_U8] = kg_th.aoti_torch_dtype_uint8();
    torch_dtypes[KG_I16] = kg_th.aoti_torch_dtype_int16();
    torch_dtypes[KG_I32] = kg_th.aoti_torch_dtype_int32();
    torch_dtypes[KG_I64] = kg_th.aoti_torch_dtype_int64();
    torch_dtypes[KG_BOOL] = kg_th.aoti_torch_dtype_bool();
    torch_devices[KG_CPU] = kg_th.aoti_torch_device_type_cpu();
    torch_devices[KG_CUDA] = kg_th.aoti_torch_device_type_cuda();
}

static int load(const char *path, kg_error *err) {
    void *cpu = open_library(path, "libtorch_cpu.so");
    if (cpu == NULL)
        return kg_fail(err, KG_EENV, "torch is not loaded in this process: import torch first");
    void *cuda = open_library(NULL, "libtorch_cuda.so");
    kg_torch table;
    int rc = find_symbols(cpu, cuda, &table, err);
    if (rc != KG_OK)
        return rc;
    uint64_t version = table.aoti_torch_abi_version();
    if (version < KG_TORCH_ABI)
        return kg_fail(err, KG_EENV, "torch %u.%u is too old: kgen needs 2.10 or newer",
                       (unsigned)(version >> 56), (unsigned)(version >> 48 & 255));
    kg_th = table;
    rc = find_allocator(err);
    if (rc == KG_OK)
        read_codes();
    return rc;
}

int kg_torch_load(const char *libtorch_cpu, kg_error *err) {
    int rc = KG_OK;
    pthread_mutex_lock(&load_lock);
    if (!loaded) {
        rc = load(libtorch_cpu, err);
        loaded = rc == KG_OK;
    }
    pthread_mutex_unlock(&load_lock);
    return rc;
}

int32_t kg_torch_dtype(int dtype) {
    return dtype >= 0 && dtype < KG_DTYPE_COUNT ? torch_dtypes[dtype] : -1;
}

int kg_torch_dtype_of(int32_t code) {
    for (int i = 0; i < KG_DTYPE_COUNT; i++)
        if (torch_dtypes[i] == code)
            return i;
    return -1;
}

int kg_torch_device_of(int32_t device_type) {
    if (device_type == torch_devices[KG_CPU])
        return KG_CPU;
    return device_type == torch_devices[KG_CUDA] ? KG_CUDA : -1;
}

int32_t kg_torch_device_type(int device) {
    return torch_devices[device == KG_CUDA ? KG_CUDA : KG_CPU];
}

/* What torch said last in this thread; before 2.13 it cannot be asked and went to stderr. An error
 * that came through Python is given as Python raised it: without the class in front and the frames
 * behind. */
static int torch_failed(const char *call, kg_error *err) {
    static const char python[] = "RuntimeError: ";
    const char *what = NULL;
    if (kg_th.torch_exception_get_what_without_backtrace != NULL)
        what = kg_th.torch_exception_get_what_without_backtrace();
    if (what == NULL || what[0] == '\0')
        return kg_fail(err, KG_EINVAL, "%s failed (torch wrote why to stderr)", call);
    const char *frames = strstr(what, "\n\nAt:\n");
    size_t n = frames != NULL ? (size_t)(frames - what) : strlen(what);
    while (frames != NULL && strncmp(what, python, sizeof(python) - 1) == 0) {
        what += sizeof(python) - 1;
        n -= sizeof(python) - 1;
    }
    return kg_fail(err, KG_EINVAL, "%.*s", n < 500 ? (int)n : 500, what);
}

int kg_torch_failed(const char *what, kg_error *err) {
    kg_error e;
    torch_failed(what, &e);
    return kg_fail(err, KG_EINVAL, "%.200s: %.300s", what, e.msg);
}

int kg_torch_view(AtenTensorHandle t, kg_tensor *out, int32_t *device, int32_t *index,
                  kg_error *err) {
    int64_t ndim, *sizes, *strides;
    int32_t code, type, at;
    const void *data;
    if (kg_th.aoti_torch_get_dim(t, &ndim) || kg_th.aoti_torch_get_dtype(t, &code) ||
        kg_th.aoti_torch_get_device_type(t, &type))
        return torch_failed("reading a tensor", err);
    int dtype = kg_torch_dtype_of(code), kind = kg_torch_device_of(type);
    if (dtype < 0 || kind < 0 || ndim > KG_MAX_RANK)
        return kg_fail(
            err, KG_EUNSUPPORTED,
            "a tensor of %s, of more than %d dims or on another device than CPU and CUDA",
            dtype < 0 ? "a dtype that kgen does not have" : kg_dtype_name(dtype), KG_MAX_RANK);
    if (kg_th.aoti_torch_get_sizes(t, &sizes) || kg_th.aoti_torch_get_strides(t, &strides) ||
        kg_th.torch_get_const_data_ptr(t, &data) ||
        (index != NULL && kg_th.aoti_torch_get_device_index(t, &at)))
        return torch_failed("reading a tensor", err);
    memcpy(&out->data, &data, sizeof(data));
    out->dtype = dtype;
    out->ndim = (int32_t)ndim;
    for (int64_t i = 0; i < ndim; i++) {
        out->size[i] = sizes[i];
        out->stride[i] = strides[i];
    }
    if (device != NULL)
        *device = kind;
    if (index != NULL)
        *index = at;
    return KG_OK;
}

StableIValue kg_slot_f64(double v) {
    StableIValue s;
    memcpy(&s, &v, sizeof(s));
    return s;
}

double kg_f64_slot(StableIValue s) {
    double v;
    memcpy(&v, &s, sizeof(v));
    return v;
}

bool kg_bool_slot(StableIValue s) {
    return (s & 255) != 0;
}

int kg_slot_some(StableIValue value, StableIValue *out, kg_error *err) {
    StableIValue *cell = NULL;
    if (kg_th.torch_new_stable_ivalue == NULL || kg_th.torch_delete_stable_ivalue == NULL)
        cell = cxx_new(sizeof(*cell));
    else if (kg_th.torch_new_stable_ivalue(&cell))
        cell = NULL;
    if (cell == NULL)
        return kg_fail(err, KG_ENOMEM, "no memory for an optional argument");
    *cell = value;
    *out = (StableIValue)(uintptr_t)cell;
    return KG_OK;
}

static StableIValue *cell_of(StableIValue optional) {
    StableIValue *cell;
    uintptr_t address = (uintptr_t)optional;
    memcpy(&cell, &address, sizeof(cell));
    return cell;
}

StableIValue kg_slot_peek(StableIValue optional) {
    return *cell_of(optional);
}

StableIValue kg_slot_take(StableIValue optional) {
    StableIValue *cell = cell_of(optional), value = *cell;
    if (kg_th.torch_new_stable_ivalue == NULL || kg_th.torch_delete_stable_ivalue == NULL)
        cxx_delete(cell);
    else
        kg_th.torch_delete_stable_ivalue(cell);
    return value;
}

AtenTensorHandle kg_slot_tensor(StableIValue s) {
    AtenTensorHandle t;
    uintptr_t address = (uintptr_t)s;
    memcpy(&t, &address, sizeof(t));
    return t;
}

StableIValue kg_tensor_slot(AtenTensorHandle t) {
    return (StableIValue)(uintptr_t)t;
}

void kg_tensor_drop(AtenTensorHandle t) {
    if (t != NULL)
        kg_th.aoti_torch_delete_tensor_object(t);
}

int kg_tensor_share(AtenTensorHandle t, AtenTensorHandle *out, kg_error *err) {
    return kg_th.aoti_torch_new_tensor_handle(t, out) ? torch_failed("sharing a tensor", err)
                                                      : KG_OK;
}

static StableListHandle slot_list(StableIValue s) {
    StableListHandle list;
    uintptr_t address = (uintptr_t)s;
    memcpy(&list, &address, sizeof(list));
    return list;
}

int kg_list_peek(StableIValue slot, StableIValue *out, size_t max, size_t *n, kg_error *err) {
    StableListHandle list = slot_list(slot);
    size_t size = 0;
    int rc = KG_OK;
    if (kg_th.torch_list_size(list, &size))
        rc = torch_failed("reading a list", err);
    else if (size > max)
        rc = kg_fail(err, KG_EUNSUPPORTED, "a list of %zu elements; at most %zu are taken", size,
                     max);
    for (size_t i = 0; rc == KG_OK && i < size; i++)
        if (kg_th.torch_list_get_item(list, i, &out[i]))
            rc = torch_failed("reading a list", err);
    if (rc == KG_OK)
        *n = size;
    return rc;
}

void kg_list_drop(StableIValue slot) {
    kg_th.torch_delete_list(slot_list(slot));
}

int kg_list_numbers(StableIValue slot, StableIValue *out, size_t max, size_t *n, kg_error *err) {
    int rc = kg_list_peek(slot, out, max, n, err);
    kg_list_drop(slot);
    return rc;
}

int kg_list_take(StableIValue slot, AtenTensorHandle *out, size_t max, size_t *n, kg_error *err) {
    StableListHandle list = slot_list(slot);
    size_t size = 0;
    if (kg_th.torch_list_size(list, &size)) {
        kg_th.torch_delete_list(list);
        return torch_failed("reading a list", err);
    }
    for (size_t i = 0; i < size; i++) {
        StableIValue item = 0;
        if (kg_th.torch_list_get_item(list, i, &item))
            item = 0; /* an index below the size cannot fail; NULL is dropped like any other */
        if (size > max)
            kg_tensor_drop(kg_slot_tensor(item));
        else
            out[i] = kg_slot_tensor(item);
    }
    kg_th.torch_delete_list(list);
    if (size > max)
        return kg_fail(err, KG_EUNSUPPORTED, "a list of %zu tensors; at most %zu are taken", size,
                       max);
    *n = size;
    return KG_OK;
}

int kg_list_make(AtenTensorHandle *tensors, size_t n, StableIValue *out, kg_error *err) {
    StableListHandle list;
    int rc = KG_OK;
    size_t given = 0;
    if (kg_th.torch_new_list_reserve_size(n, &list)) {
        rc = torch_failed("making a list", err);
    } else {
        while (given < n && !kg_th.torch_list_push_back(list, kg_tensor_slot(tensors[given])))
            given++;
        if (given < n)
            rc = torch_failed("making a list", err);
    }
    if (rc != KG_OK) {
        for (size_t i = 0; i < n; i++)
            kg_tensor_drop(tensors[i]);
        return rc;
    }
    *out = (StableIValue)(uintptr_t)list;
    return KG_OK;
}

int kg_torch_call(const char *op, const char *overload, StableIValue *stack, kg_error *err) {
    if (kg_th.torch_call_dispatcher(op, overload, stack, KG_TORCH_ABI))
        return torch_failed(op, err);
    return KG_OK;
}

void kg_torch_throw(const char *func, const char *msg) {
    kg_th.aoti_torch_check(false, func, "kgen", 0, msg);
}
