/* Finds the driver, asks it about devices, and turns its results into statuses with messages that
 * say what to do. The other sys/cuda_*.c are its calls by subject. It refuses to be linked against
 * libcuda, and drivers and GPUs that kgen's kernels cannot run on. */
#include "sys/cuda.h"

#include <ctype.h>
#include <dlfcn.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "sys/cuda_abi.h"
#include "sys/cuda_internal.h"

enum { MAX_DEVICES = 64, MIN_ARCH = 80 };

kg_cuda_table kg_cu;

/* ---- results ---- */

static const struct {
    int result;
    const char *name;
} NAMES[] = {
    {KG_CU_SUCCESS, "CUDA_SUCCESS"},
    {KG_CU_INVALID_VALUE, "CUDA_ERROR_INVALID_VALUE"},
    {KG_CU_OUT_OF_MEMORY, "CUDA_ERROR_OUT_OF_MEMORY"},
    {KG_CU_NOT_INITIALIZED, "CUDA_ERROR_NOT_INITIALIZED"},
    {KG_CU_STUB_LIBRARY, "CUDA_ERROR_STUB_LIBRARY"},
    {KG_CU_NO_DEVICE, "CUDA_ERROR_NO_DEVICE"},
    {KG_CU_INVALID_IMAGE, "CUDA_ERROR_INVALID_IMAGE"},
    {KG_CU_ECC_UNCORRECTABLE, "CUDA_ERROR_ECC_UNCORRECTABLE"},
    {KG_CU_ILLEGAL_ADDRESS, "CUDA_ERROR_ILLEGAL_ADDRESS"},
    {KG_CU_LAUNCH_OUT_OF_RESOURCES, "CUDA_ERROR_LAUNCH_OUT_OF_RESOURCES"},
    {KG_CU_LAUNCH_TIMEOUT, "CUDA_ERROR_LAUNCH_TIMEOUT"},
    {KG_CU_ASSERT, "CUDA_ERROR_ASSERT"},
    {KG_CU_HARDWARE_STACK_ERROR, "CUDA_ERROR_HARDWARE_STACK_ERROR"},
    {KG_CU_ILLEGAL_INSTRUCTION, "CUDA_ERROR_ILLEGAL_INSTRUCTION"},
    {KG_CU_MISALIGNED_ADDRESS, "CUDA_ERROR_MISALIGNED_ADDRESS"},
    {KG_CU_INVALID_ADDRESS_SPACE, "CUDA_ERROR_INVALID_ADDRESS_SPACE"},
    {KG_CU_INVALID_PC, "CUDA_ERROR_INVALID_PC"},
    {KG_CU_LAUNCH_FAILED, "CUDA_ERROR_LAUNCH_FAILED"},
    {KG_CU_UNKNOWN, "CUDA_ERROR_UNKNOWN"},
};

static _Thread_local int last;

int kg_cuda_last(void) {
    return last;
}

const char *kg_cuda_result_name(int result) {
    const char *name = NULL;
    if (kg_cu.cuGetErrorName != NULL && kg_cu.cuGetErrorName(result, &name) == 0 && name != NULL)
        return name;
    for (size_t i = 0; i < sizeof(NAMES) / sizeof(NAMES[0]); i++)
        if (NAMES[i].result == result)
            return NAMES[i].name;
    return "an unknown CUresult";
}

bool kg_cuda_sticky(int result) {
    switch (result) {
    case KG_CU_ECC_UNCORRECTABLE:
    case KG_CU_ILLEGAL_ADDRESS:
    case KG_CU_LAUNCH_TIMEOUT:
    case KG_CU_CONTEXT_IS_DESTROYED:
    case KG_CU_ASSERT:
    case KG_CU_HARDWARE_STACK_ERROR:
    case KG_CU_ILLEGAL_INSTRUCTION:
    case KG_CU_MISALIGNED_ADDRESS:
    case KG_CU_INVALID_ADDRESS_SPACE:
    case KG_CU_INVALID_PC:
    case KG_CU_LAUNCH_FAILED:
    case KG_CU_TENSOR_MEMORY_LEAK:
    case KG_CU_UNKNOWN:
        return true;
    default:
        return false;
    }
}

static int status_of(int result) {
    if (kg_cuda_sticky(result))
        return KG_EDEVICE;
    if (result >= KG_CU_STREAM_CAPTURE_UNSUPPORTED && result <= KG_CU_STREAM_CAPTURE_LAST)
        return KG_EBUSY;
    switch (result) {
    case KG_CU_OUT_OF_MEMORY:
        return KG_ENOMEM;
    case KG_CU_NOT_INITIALIZED:
    case KG_CU_STUB_LIBRARY:
    case KG_CU_NO_DEVICE:
    case KG_CU_SYSTEM_NOT_READY:
    case KG_CU_SYSTEM_DRIVER_MISMATCH:
    case KG_CU_COMPAT_NOT_SUPPORTED_ON_DEVICE:
        return KG_EENV;
    case KG_CU_INVALID_VALUE:
    case KG_CU_INVALID_DEVICE:
    case KG_CU_LAUNCH_OUT_OF_RESOURCES:
    case KG_CU_COOPERATIVE_LAUNCH_TOO_LARGE:
    case KG_CU_INVALID_CLUSTER_SIZE:
        return KG_EINVAL;
    case KG_CU_NOT_FOUND:
        return KG_ENOTFOUND;
    case KG_CU_INVALID_IMAGE:
    case KG_CU_NO_BINARY_FOR_GPU:
    case KG_CU_UNSUPPORTED_PTX_VERSION:
    case KG_CU_NOT_SUPPORTED:
        return KG_EUNSUPPORTED;
    default:
        return KG_EIO;
    }
}

static const char *advice(int result, char text[160]) {
    size_t free_bytes = 0, total = 0;
    if (kg_cuda_sticky(result))
        return "; the CUDA context of this process is lost: restart the process";
    switch (result) {
    case KG_CU_OUT_OF_MEMORY:
        if (kg_cu.cuMemGetInfo_v2(&free_bytes, &total) != 0)
            return "; the device is full: end what else uses it (nvidia-smi lists it)";
        snprintf(text, 160,
                 "; %zu MiB of %zu MiB are free: make the work smaller, or end what else uses the "
                 "device (nvidia-smi lists it)",
                 free_bytes >> 20, total >> 20);
        return text;
    case KG_CU_NO_DEVICE:
        return "; the driver sees no GPU: look at nvidia-smi and CUDA_VISIBLE_DEVICES";
    case KG_CU_NOT_INITIALIZED:
        return "; CUDA does not survive fork: use a fresh process (multiprocessing: \"spawn\")";
    case KG_CU_STUB_LIBRARY:
        return "; this is the toolkit's stub: take lib64/stubs out of LD_LIBRARY_PATH";
    case KG_CU_SYSTEM_DRIVER_MISMATCH:
        return "; libcuda and the kernel module are of different drivers: reboot, or reload it";
    case KG_CU_SYSTEM_NOT_READY:
        return "; the fabric manager does not run (nvidia-fabricmanager)";
    case KG_CU_COMPAT_NOT_SUPPORTED_ON_DEVICE:
        return "; the compat package does not support this GPU: install the driver itself";
    default:
        return "";
    }
}

int kg_cuda_fail(int result, const char *call, const char *object, kg_error *err) {
    char text[160];
    last = result;
    const char *more = err != NULL ? advice(result, text) : "";
    return kg_fail(err, status_of(result), "%s%s%s: %s%s", call, *object ? " of " : "", object,
                   kg_cuda_result_name(result), more);
}

/* ---- the library ---- */

static pthread_once_t load_once = PTHREAD_ONCE_INIT;
static kg_error load_error; /* code KG_OK: it is there */
static int driver_version;
static char driver_name[64];

static int open_driver(void **out, kg_error *err) {
    const char *asked = getenv("KGEN_LIBCUDA");
    bool own = asked != NULL && *asked != '\0';
    void *lib = dlopen(own ? asked : "libcuda.so.1", RTLD_NOW | RTLD_LOCAL);
    if (lib == NULL && own)
        return kg_fail(err, KG_EENV, "KGEN_LIBCUDA: %.400s", dlerror());
    if (lib == NULL)
        return kg_fail(err, KG_EENV,
                       "no CUDA driver: %.300s; install NVIDIA's driver (in a container: start it "
                       "with the GPU, docker run --gpus all)",
                       dlerror());
    *out = lib;
    return KG_OK;
}

static int too_old(const char *how, kg_error *err) {
    return kg_fail(err, KG_EENV,
                   "the CUDA driver %s, so it is too old: kgen needs one of CUDA 12.0 or newer "
                   "(525)",
                   how);
}

/* First of all: an old driver lacks symbols, and its version tells more than their names. */
static int check_version(void *lib, kg_error *err) {
    int (*get)(int *) = NULL;
    char how[48];
    void *symbol = dlsym(lib, "cuDriverGetVersion");
    memcpy(&get, &symbol, sizeof(symbol));
    if (get == NULL || get(&driver_version) != 0 || driver_version >= KG_CU_DRIVER_MIN)
        return KG_OK;
    snprintf(how, sizeof(how), "is of CUDA %d.%d", driver_version / 1000,
             driver_version % 1000 / 10);
    return too_old(how, err);
}

static int find_symbols(void *lib, kg_error *err) {
    static const struct {
        const char *name;
        size_t offset;
        bool required;
    } symbols[] = {
#define KG_X(required, name, params) {#name, offsetof(kg_cuda_table, name), required},
        KG_CUDA_SYMS(KG_X)
#undef KG_X
    };
    for (size_t i = 0; i < sizeof(symbols) / sizeof(symbols[0]); i++) {
        char how[128];
        void *found = dlsym(lib, symbols[i].name);
        snprintf(how, sizeof(how), "has no %s", symbols[i].name);
        if (found == NULL && symbols[i].required)
            return too_old(how, err);
        memcpy((char *)&kg_cu + symbols[i].offset, &found, sizeof(found));
    }
    return KG_OK;
}

/* "NVRM version: NVIDIA UNIX ... Kernel Module  580.65.06  Release Build ...". */
static void read_driver_name(void) {
    char line[512] = "";
    FILE *f = getenv("KGEN_LIBCUDA") == NULL ? fopen("/proc/driver/nvidia/version", "re") : NULL;
    if (f == NULL)
        return;
    if (fgets(line, sizeof(line), f) == NULL)
        line[0] = '\0';
    fclose(f);
    for (char *at = line; *at != '\0';) {
        size_t word = strcspn(at, " \t\n");
        if (isdigit((unsigned char)*at) && memchr(at, '.', word) != NULL) {
            snprintf(driver_name, sizeof(driver_name), "%.*s", (int)word, at);
            return;
        }
        at += word + (at[word] != '\0');
    }
}

static int load(kg_error *err) {
    void *lib = NULL;
    int rc = open_driver(&lib, err);
    if (rc == KG_OK)
        rc = check_version(lib, err);
    if (rc == KG_OK)
        rc = find_symbols(lib, err);
    int result = rc == KG_OK ? kg_cu.cuInit(0) : 0;
    if (result != 0)
        rc = kg_cuda_fail(result, "cuInit", "", err);
    if (rc == KG_OK)
        read_driver_name();
    return rc;
}

static void load_first(void) {
    kg_error e = {.code = KG_OK};
    e.code = load(&e);
    load_error = e;
}

int kg_cuda_load(kg_error *err) {
    pthread_once(&load_once, load_first);
    return load_error.code == KG_OK ? KG_OK : kg_fail(err, load_error.code, "%s", load_error.msg);
}

int kg_cuda_driver(int *version, kg_error *err) {
    int rc = kg_cuda_load(err);
    if (rc == KG_OK)
        *version = driver_version;
    return rc;
}

const char *kg_cuda_driver_name(void) {
    return kg_cuda_load(NULL) == KG_OK ? driver_name : "";
}

/* ---- devices ---- */

int kg_cuda_count(int *n, kg_error *err) {
    int count = 0, rc = kg_cuda_load(err);
    if (rc != KG_OK)
        return rc;
    rc = KG_CU_CALL(cuDeviceGetCount, "", (&count), err);
    if (rc == KG_OK && count == 0)
        rc = kg_cuda_fail(KG_CU_NO_DEVICE, "cuDeviceGetCount", "", err);
    if (rc == KG_OK)
        *n = count;
    return rc;
}

static int attribute(int device, int which, int *out, kg_error *err) {
    return KG_CU_CALL(cuDeviceGetAttribute, "", (out, which, device), err);
}

/* Those that a message or a plan may need; a driver that does not know one of the later ones means
 * that the device has not got it. */
static int read_numbers(int device, kg_cuda_device *d, kg_error *err) {
    int major = 0, minor = 0, l2 = 0, persisting = 0, flag = 0, fd = 0;
    int rc = attribute(device, KG_CU_ATTR_MAJOR, &major, err);
    if (rc == KG_OK)
        rc = attribute(device, KG_CU_ATTR_MINOR, &minor, err);
    if (rc == KG_OK)
        rc = attribute(device, KG_CU_ATTR_SM_COUNT, &d->sms, err);
    if (rc == KG_OK)
        rc = attribute(device, KG_CU_ATTR_MAX_SHARED_OPTIN, &d->max_shared, err);
    if (rc == KG_OK)
        rc = attribute(device, KG_CU_ATTR_L2_BYTES, &l2, err);
    if (rc != KG_OK)
        return rc;
    d->arch = 10 * major + minor;
    d->l2_bytes = l2;
    if (attribute(device, KG_CU_ATTR_MAX_PERSISTING_L2, &persisting, NULL) == KG_OK)
        d->persisting_l2_bytes = persisting;
    (void)attribute(device, KG_CU_ATTR_CLOCK_KHZ, &d->clock_khz, NULL);
    (void)attribute(device, KG_CU_ATTR_MEMORY_CLOCK_KHZ, &d->memory_clock_khz, NULL);
    (void)attribute(device, KG_CU_ATTR_MEMORY_BUS_BITS, &d->memory_bus_bits, NULL);
    d->clusters = attribute(device, KG_CU_ATTR_CLUSTER, &flag, NULL) == KG_OK && flag != 0;
    d->cooperative = attribute(device, KG_CU_ATTR_COOPERATIVE, &flag, NULL) == KG_OK && flag != 0;
    d->vmm = attribute(device, KG_CU_ATTR_VMM, &flag, NULL) == KG_OK && flag != 0 &&
             attribute(device, KG_CU_ATTR_POSIX_FD, &fd, NULL) == KG_OK && fd != 0;
    return KG_OK;
}

static int read_device(int index, kg_cuda_device *d, kg_error *err) {
    int device = 0;
    size_t bytes = 0;
    kg_cu_uuid uuid = {{0}};
    d->index = index;
    int rc = KG_CU_CALL(cuDeviceGet, "", (&device, index), err);
    if (rc == KG_OK)
        rc = KG_CU_CALL(cuDeviceGetName, "", (d->name, (int)sizeof(d->name), device), err);
    if (rc == KG_OK)
        rc = KG_CU_CALL(cuDeviceTotalMem_v2, d->name, (&bytes, device), err);
    if (rc == KG_OK)
        rc = KG_CU_CALL(cuDeviceGetUuid_v2, d->name, (&uuid, device), err);
    if (rc == KG_OK)
        rc = KG_CU_CALL(cuDeviceGetPCIBusId, d->name, (d->pci, (int)sizeof(d->pci), device), err);
    if (rc == KG_OK)
        rc = read_numbers(device, d, err);
    d->memory = (int64_t)bytes;
    memcpy(d->uuid, uuid.bytes, sizeof(d->uuid));
    return rc;
}

static pthread_mutex_t device_lock = PTHREAD_MUTEX_INITIALIZER;
static kg_cuda_device devices[MAX_DEVICES];
static _Atomic(bool) device_known[MAX_DEVICES];
static _Atomic(kg_cu_context) primaries[MAX_DEVICES];

static int check_index(int index, kg_error *err) {
    int n = 0, rc = kg_cuda_count(&n, err);
    if (rc != KG_OK || (index >= 0 && index < n && index < MAX_DEVICES))
        return rc;
    return kg_fail(err, KG_EINVAL, "there is no CUDA device %d: this process sees %d (0 to %d)",
                   index, n, n - 1);
}

static int learn_device(int index, kg_error *err) {
    kg_cuda_device d = {.index = index};
    int rc = check_index(index, err);
    if (rc == KG_OK)
        rc = read_device(index, &d, err);
    if (rc != KG_OK)
        return rc;
    pthread_mutex_lock(&device_lock);
    if (!atomic_load(&device_known[index])) {
        devices[index] = d;
        atomic_store(&device_known[index], true);
    }
    pthread_mutex_unlock(&device_lock);
    return KG_OK;
}

int kg_cuda_device_get(int index, const kg_cuda_device **out, kg_error *err) {
    bool known = index >= 0 && index < MAX_DEVICES && atomic_load(&device_known[index]);
    int rc = known ? KG_OK : learn_device(index, err);
    if (rc != KG_OK)
        return rc;
    if (devices[index].arch < MIN_ARCH)
        return kg_fail(err, KG_EENV,
                       "CUDA device %d is a %s of compute capability %d.%d: kgen needs 8.0 (A100) "
                       "or newer",
                       index, devices[index].name, devices[index].arch / 10,
                       devices[index].arch % 10);
    *out = &devices[index];
    return KG_OK;
}

const char *kg_cuda_lock_name(const kg_cuda_device *d, char out[KG_CUDA_LOCK]) {
    snprintf(out, KG_CUDA_LOCK, "cuda-");
    for (size_t i = 0; i < sizeof d->uuid; i++)
        snprintf(out + 5 + 2 * i, 3, "%02x", d->uuid[i]);
    return out;
}

/* ---- contexts ---- */

static int retain(int device, kg_error *err) {
    kg_cu_context made = NULL;
    int handle = 0, rc = check_index(device, err);
    if (rc == KG_OK)
        rc = KG_CU_CALL(cuDeviceGet, "", (&handle, device), err);
    if (rc != KG_OK)
        return rc;
    pthread_mutex_lock(&device_lock);
    if (atomic_load(&primaries[device]) == NULL) {
        rc = KG_CU_CALL(cuDevicePrimaryCtxRetain, "", (&made, handle), err);
        if (rc == KG_OK)
            atomic_store(&primaries[device], made);
    }
    pthread_mutex_unlock(&device_lock);
    return rc;
}

int kg_cuda_primary(int device, kg_cu_context *out, kg_error *err) {
    bool known = device >= 0 && device < MAX_DEVICES && atomic_load(&primaries[device]) != NULL;
    int rc = known ? KG_OK : retain(device, err);
    if (rc == KG_OK)
        *out = atomic_load(&primaries[device]);
    return rc;
}

int kg_cuda_enter(int device, kg_cuda_scope *scope, kg_error *err) {
    kg_cu_context ctx = NULL, now = NULL;
    int rc = kg_cuda_primary(device, &ctx, err);
    scope->pushed = false;
    if (rc == KG_OK)
        rc = KG_CU_CALL(cuCtxGetCurrent, "", (&now), err);
    if (rc != KG_OK || now == ctx)
        return rc;
    rc = KG_CU_CALL(cuCtxPushCurrent_v2, "", (ctx), err);
    scope->pushed = rc == KG_OK;
    return rc;
}

void kg_cuda_leave(kg_cuda_scope *scope) {
    kg_cu_context was = NULL;
    if (scope->pushed)
        (void)kg_cu.cuCtxPopCurrent_v2(&was);
    scope->pushed = false;
}

int kg_cuda_synchronize(kg_error *err) {
    return KG_CU_CALL(cuCtxSynchronize, "", (), err);
}

int kg_cuda_memory_info(size_t *free_bytes, size_t *total, kg_error *err) {
    size_t f = 0, t = 0;
    int rc = KG_CU_CALL(cuMemGetInfo_v2, "", (&f, &t), err);
    if (rc == KG_OK) {
        *free_bytes = f;
        *total = t;
    }
    return rc;
}

int kg_cuda_reset_persisting_l2(kg_error *err) {
    return KG_CU_CALL(cuCtxResetPersistingL2Cache, "", (), err);
}
