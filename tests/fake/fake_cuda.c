/* The stand-in's settings, devices, contexts, failures and memory. fake_work.c has modules,
 * launches, streams and graphs. */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "fake_internal.h"

enum {
    MAX_RULES = 32,
    MAX_CALLS = 128,
    GRANULARITY = 2 << 20,
    MAX_FAKE_DEVICES = 16,
    MAX_RESERVED = 256
};

fake_config fake_conf = {.devices = 1,
                         .arch = 90,
                         .sms = 132,
                         .driver = 13000,
                         .shared = 232448,
                         .clusters = 1,
                         .clusters_fit = 66,
                         .memory = (size_t)1 << 30};
pthread_mutex_t fake_lock = PTHREAD_MUTEX_INITIALIZER;
size_t fake_live;

typedef struct rule {
    char symbol[64];
    unsigned n; /* 0: every call */
    int result;
    bool used;
} rule;
static rule rules[MAX_RULES];
static size_t nrules;
static struct {
    char symbol[64];
    size_t n;
} counts[MAX_CALLS];
static size_t ncounts;
static int poison;

struct CUctx_st {
    int device;
};
static struct CUctx_st contexts[MAX_FAKE_DEVICES];
static _Thread_local kg_cu_context stack[16];
static _Thread_local size_t depth;

/* ---- settings ---- */

void fake_set_fault(const char *kernel, int result);
void fake_set_log(const char *path);
void fake_set_kernels(const char *path);

static void add_rule(const char *symbol, size_t len, unsigned n, int result) {
    if (nrules == MAX_RULES || len >= sizeof(rules[0].symbol))
        return;
    rules[nrules] = (rule){.n = n, .result = result};
    memcpy(rules[nrules++].symbol, symbol, len);
}

static void set_number(const char *key, long value) {
    const struct {
        const char *key;
        int *to;
    } numbers[] = {{"devices", &fake_conf.devices},
                   {"arch", &fake_conf.arch},
                   {"sms", &fake_conf.sms},
                   {"driver", &fake_conf.driver},
                   {"shared", &fake_conf.shared},
                   {"clusters", &fake_conf.clusters},
                   {"clusters_fit", &fake_conf.clusters_fit}};
    for (size_t i = 0; i < sizeof(numbers) / sizeof(numbers[0]); i++)
        if (strcmp(numbers[i].key, key) == 0)
            *numbers[i].to = (int)value;
    if (strcmp(key, "memory") == 0)
        fake_conf.memory = (size_t)value << 20;
}

static void set_one(const char *key, char *value) {
    char *colon = strchr(value, ':');
    if (strcmp(key, "fail") == 0 && colon != NULL) {
        char *end;
        unsigned n = (unsigned)strtoul(colon + 1, &end, 10);
        add_rule(value, (size_t)(colon - value), n, (int)strtol(end + (*end == ':'), NULL, 10));
    } else if (strcmp(key, "fault") == 0 && colon != NULL) {
        *colon = '\0';
        fake_set_fault(value, (int)strtol(colon + 1, NULL, 10));
    } else if (strcmp(key, "hang") == 0) {
        fake_set_fault(value, -1);
    } else if (strcmp(key, "log") == 0) {
        fake_set_log(value);
    } else if (strcmp(key, "kernels") == 0) {
        fake_set_kernels(value);
    } else {
        set_number(key, strtol(value, NULL, 10));
    }
}

static void read_settings(void) {
    char text[2048];
    const char *given = getenv("KGEN_FAKE_CUDA");
    snprintf(text, sizeof(text), "%s", given != NULL ? given : "");
    for (char *at = text, *next; *at != '\0'; at = next) {
        size_t n = strcspn(at, ",");
        next = at + n + (at[n] != '\0');
        at[n] = '\0';
        char *equals = strchr(at, '=');
        if (equals != NULL) {
            *equals = '\0';
            set_one(at, equals + 1);
        }
    }
    for (int i = 0; i < MAX_FAKE_DEVICES; i++)
        contexts[i].device = i;
}

static pthread_once_t settings_once = PTHREAD_ONCE_INIT;

/* ---- every call ---- */

/* Under the lock. */
static size_t *count_of(const char *symbol) {
    for (size_t i = 0; i < ncounts; i++)
        if (strcmp(counts[i].symbol, symbol) == 0)
            return &counts[i].n;
    if (ncounts == MAX_CALLS)
        return NULL;
    snprintf(counts[ncounts].symbol, sizeof(counts[0].symbol), "%s", symbol);
    return &counts[ncounts++].n;
}

static int asked_failure(const char *symbol) {
    for (size_t i = 0; i < nrules; i++) {
        rule *r = &rules[i];
        if (r->used || (strcmp(r->symbol, symbol) != 0 && strcmp(r->symbol, "*") != 0))
            continue;
        if (r->n > 1) {
            r->n--;
            continue;
        }
        r->used = r->n == 1;
        return r->result;
    }
    return 0;
}

int fake_begin(const char *symbol, int needs) {
    pthread_once(&settings_once, read_settings);
    pthread_mutex_lock(&fake_lock);
    size_t *n = count_of(symbol);
    if (n != NULL)
        ++*n;
    n = count_of("*");
    if (n != NULL)
        ++*n;
    int result = asked_failure(symbol);
    if (result != 0 && kg_cuda_sticky(result))
        poison = result;
    if (result == 0 && (needs & FAKE_CONTEXT) != 0)
        result = poison != 0 ? poison : depth == 0 ? KG_CU_INVALID_CONTEXT : 0;
    pthread_mutex_unlock(&fake_lock);
    if (result == 0 && (needs & FAKE_NO_CAPTURE) != 0 && fake_thread_captures())
        result = KG_CU_STREAM_CAPTURE_UNSUPPORTED;
    return result;
}

int fake_take_fault(void);

int fake_wait(void) {
    int fault = fake_take_fault();
    while (fault == -1)
        pause();
    pthread_mutex_lock(&fake_lock);
    if (fault != 0)
        poison = fault;
    int result = poison;
    pthread_mutex_unlock(&fake_lock);
    return result;
}

int fake_current_device(void) {
    return depth > 0 ? stack[depth - 1]->device : -1;
}

/* ---- control ---- */

void fake_forget_work(void);

static void reset(void) {
    pthread_mutex_lock(&fake_lock);
    nrules = ncounts = 0;
    poison = 0;
    pthread_mutex_unlock(&fake_lock);
    fake_forget_work();
}

static size_t calls(const char *symbol) {
    pthread_mutex_lock(&fake_lock);
    size_t *n = count_of(symbol), value = n != NULL ? *n : 0;
    pthread_mutex_unlock(&fake_lock);
    return value;
}

static void fail(const char *symbol, unsigned n, int result) {
    pthread_mutex_lock(&fake_lock);
    add_rule(symbol, strlen(symbol), n, result);
    pthread_mutex_unlock(&fake_lock);
}

static size_t live_bytes(void) {
    return fake_live;
}

size_t fake_nlaunches(void);
const fake_launch *fake_launch_at(size_t i);
void fake_on_launch(const char *kernel, void (*fn)(const fake_launch *l, void *ctx), void *ctx);
size_t fake_live_modules(void);

FAKE const fake_cuda *kgen_fake_cuda(void);
const fake_cuda *kgen_fake_cuda(void) {
    static const fake_cuda control = {.reset = reset,
                                      .calls = calls,
                                      .nlaunches = fake_nlaunches,
                                      .launch = fake_launch_at,
                                      .fail = fail,
                                      .fault = fake_set_fault,
                                      .on_launch = fake_on_launch,
                                      .live_bytes = live_bytes,
                                      .live_modules = fake_live_modules};
    pthread_once(&settings_once, read_settings);
    return &control;
}

/* ---- driver and devices ---- */

#define BEGIN(symbol, needs)                                                                       \
    do {                                                                                           \
        int begun_ = fake_begin(#symbol, needs);                                                   \
        if (begun_ != 0)                                                                           \
            return begun_;                                                                         \
    } while (0)

int cuInit(unsigned flags) {
    (void)flags;
    BEGIN(cuInit, FAKE_PLAIN);
    return fake_conf.devices > 0 ? 0 : KG_CU_NO_DEVICE;
}

int cuDriverGetVersion(int *version) {
    BEGIN(cuDriverGetVersion, FAKE_PLAIN);
    *version = fake_conf.driver;
    return 0;
}

int cuGetErrorName(int result, const char **name) {
    *name = NULL; /* kgen then uses its own names */
    return result == 0 ? 0 : KG_CU_INVALID_VALUE;
}

int cuGetErrorString(int result, const char **text) {
    (void)result;
    *text = "as the test asked";
    return 0;
}

int cuDeviceGetCount(int *n) {
    BEGIN(cuDeviceGetCount, FAKE_PLAIN);
    *n = fake_conf.devices;
    return 0;
}

static bool is_device(int device) {
    return device >= 0 && device < fake_conf.devices && device < MAX_FAKE_DEVICES;
}

int cuDeviceGet(int *device, int index) {
    BEGIN(cuDeviceGet, FAKE_PLAIN);
    if (!is_device(index))
        return KG_CU_INVALID_DEVICE;
    *device = index;
    return 0;
}

int cuDeviceGetName(char *name, int n, int device) {
    BEGIN(cuDeviceGetName, FAKE_PLAIN);
    snprintf(name, (size_t)n, "Fake GPU %d", device);
    return 0;
}

int cuDeviceGetAttribute(int *value, int which, int device) {
    BEGIN(cuDeviceGetAttribute, FAKE_PLAIN);
    if (!is_device(device))
        return KG_CU_INVALID_DEVICE;
    switch (which) {
    case KG_CU_ATTR_MAJOR:
        *value = fake_conf.arch / 10;
        break;
    case KG_CU_ATTR_MINOR:
        *value = fake_conf.arch % 10;
        break;
    case KG_CU_ATTR_SM_COUNT:
        *value = fake_conf.sms;
        break;
    case KG_CU_ATTR_MAX_SHARED_OPTIN:
        *value = fake_conf.shared;
        break;
    case KG_CU_ATTR_L2_BYTES:
    case KG_CU_ATTR_MAX_PERSISTING_L2:
        *value = 8 << 20;
        break;
    case KG_CU_ATTR_CLUSTER:
        *value = fake_conf.clusters && fake_conf.arch >= 90;
        break;
    default:
        *value = 1;
    }
    return 0;
}

int cuDeviceTotalMem_v2(size_t *bytes, int device) {
    (void)device;
    BEGIN(cuDeviceTotalMem_v2, FAKE_PLAIN);
    *bytes = fake_conf.memory;
    return 0;
}

int cuDeviceGetUuid_v2(kg_cu_uuid *uuid, int device) {
    BEGIN(cuDeviceGetUuid_v2, FAKE_PLAIN);
    memset(uuid, device + 1, sizeof(*uuid));
    return 0;
}

int cuDeviceGetPCIBusId(char *id, int n, int device) {
    BEGIN(cuDeviceGetPCIBusId, FAKE_PLAIN);
    snprintf(id, (size_t)n, "0000:%02x:00.0", device + 1);
    return 0;
}

/* ---- contexts ---- */

int cuDevicePrimaryCtxRetain(kg_cu_context *out, int device) {
    BEGIN(cuDevicePrimaryCtxRetain, FAKE_PLAIN);
    if (!is_device(device))
        return KG_CU_INVALID_DEVICE;
    *out = &contexts[device];
    return 0;
}

int cuDevicePrimaryCtxRelease_v2(int device) {
    (void)device;
    BEGIN(cuDevicePrimaryCtxRelease_v2, FAKE_PLAIN);
    return 0;
}

int cuCtxPushCurrent_v2(kg_cu_context ctx) {
    BEGIN(cuCtxPushCurrent_v2, FAKE_PLAIN);
    if (depth == sizeof(stack) / sizeof(stack[0]))
        return KG_CU_INVALID_VALUE;
    stack[depth++] = ctx;
    return 0;
}

int cuCtxPopCurrent_v2(kg_cu_context *out) {
    BEGIN(cuCtxPopCurrent_v2, FAKE_PLAIN);
    if (depth == 0)
        return KG_CU_INVALID_CONTEXT;
    *out = stack[--depth];
    return 0;
}

int cuCtxSetCurrent(kg_cu_context ctx) {
    BEGIN(cuCtxSetCurrent, FAKE_PLAIN);
    depth = depth > 0 ? depth - 1 : 0;
    if (ctx != NULL)
        stack[depth++] = ctx;
    return 0;
}

int cuCtxGetCurrent(kg_cu_context *out) {
    BEGIN(cuCtxGetCurrent, FAKE_PLAIN);
    *out = depth > 0 ? stack[depth - 1] : NULL;
    return 0;
}

int cuCtxGetDevice(int *device) {
    BEGIN(cuCtxGetDevice, FAKE_CONTEXT);
    *device = fake_current_device();
    return 0;
}

int cuCtxSynchronize(void) {
    BEGIN(cuCtxSynchronize, FAKE_CONTEXT | FAKE_NO_CAPTURE);
    return fake_wait();
}

int cuCtxResetPersistingL2Cache(void) {
    BEGIN(cuCtxResetPersistingL2Cache, FAKE_CONTEXT);
    return 0;
}

/* ---- memory ---- */

typedef struct block {
    uintptr_t at;
    size_t bytes;
    struct block *next;
} block;
static block *blocks;

/* Under the lock: whether the device has as much left. */
static bool take(size_t bytes) {
    if (bytes > fake_conf.memory || fake_live > fake_conf.memory - bytes)
        return false;
    fake_live += bytes;
    return true;
}

int cuMemGetInfo_v2(size_t *free_bytes, size_t *total) {
    BEGIN(cuMemGetInfo_v2, FAKE_CONTEXT);
    *total = fake_conf.memory;
    *free_bytes = fake_conf.memory - fake_live;
    return 0;
}

int cuMemAlloc_v2(kg_cu_ptr *out, size_t bytes) {
    BEGIN(cuMemAlloc_v2, FAKE_CONTEXT | FAKE_NO_CAPTURE);
    if (bytes == 0)
        return KG_CU_INVALID_VALUE;
    block *b = calloc(1, sizeof(*b));
    void *memory = NULL;
    pthread_mutex_lock(&fake_lock);
    bool fits = b != NULL && take(bytes);
    if (fits && posix_memalign(&memory, 512, bytes) == 0) {
        *b = (block){.at = (uintptr_t)memory, .bytes = bytes, .next = blocks};
        blocks = b;
        *out = (kg_cu_ptr)b->at;
    } else {
        free(b);
        fits = false;
    }
    pthread_mutex_unlock(&fake_lock);
    return fits ? 0 : KG_CU_OUT_OF_MEMORY;
}

int cuMemFree_v2(kg_cu_ptr p) {
    BEGIN(cuMemFree_v2, FAKE_CONTEXT | FAKE_NO_CAPTURE);
    pthread_mutex_lock(&fake_lock);
    block **at = &blocks;
    while (*at != NULL && (*at)->at != p)
        at = &(*at)->next;
    block *gone = *at;
    if (gone != NULL) {
        *at = gone->next;
        fake_live -= gone->bytes;
        free((void *)gone->at);
        free(gone);
    }
    pthread_mutex_unlock(&fake_lock);
    return gone != NULL ? 0 : KG_CU_INVALID_VALUE;
}

static int copy(const char *symbol, uintptr_t to, uintptr_t from, size_t n, bool waits,
                kg_cu_stream s) {
    int result = fake_begin(symbol, FAKE_CONTEXT | (waits ? FAKE_NO_CAPTURE : 0));
    if (result == 0 && waits)
        result = fake_wait();
    if (result != 0)
        return result;
    return fake_submit(s, (fake_op){.kind = FAKE_COPY, .to = to, .from = from, .n = n});
}

int cuMemcpyHtoD_v2(kg_cu_ptr to, const void *from, size_t n) {
    return copy("cuMemcpyHtoD_v2", to, (uintptr_t)from, n, true, NULL);
}
int cuMemcpyDtoH_v2(void *to, kg_cu_ptr from, size_t n) {
    return copy("cuMemcpyDtoH_v2", (uintptr_t)to, from, n, true, NULL);
}
int cuMemcpyHtoDAsync_v2(kg_cu_ptr to, const void *from, size_t n, kg_cu_stream s) {
    return copy("cuMemcpyHtoDAsync_v2", to, (uintptr_t)from, n, false, s);
}
int cuMemcpyDtoHAsync_v2(void *to, kg_cu_ptr from, size_t n, kg_cu_stream s) {
    return copy("cuMemcpyDtoHAsync_v2", (uintptr_t)to, from, n, false, s);
}
int cuMemcpyDtoDAsync_v2(kg_cu_ptr to, kg_cu_ptr from, size_t n, kg_cu_stream s) {
    return copy("cuMemcpyDtoDAsync_v2", to, from, n, false, s);
}

int cuMemsetD8Async(kg_cu_ptr to, unsigned char value, size_t n, kg_cu_stream s) {
    BEGIN(cuMemsetD8Async, FAKE_CONTEXT);
    return fake_submit(s, (fake_op){.kind = FAKE_SET8, .to = to, .n = n, .value = value});
}

int cuMemsetD32Async(kg_cu_ptr to, unsigned value, size_t n, kg_cu_stream s) {
    BEGIN(cuMemsetD32Async, FAKE_CONTEXT);
    return fake_submit(s, (fake_op){.kind = FAKE_SET32, .to = to, .n = n, .value = value});
}

int cuMemHostAlloc(void **out, size_t n, unsigned flags) {
    (void)flags;
    BEGIN(cuMemHostAlloc, FAKE_CONTEXT | FAKE_NO_CAPTURE);
    *out = calloc(1, n > 0 ? n : 1);
    return *out != NULL ? 0 : KG_CU_OUT_OF_MEMORY;
}

int cuMemFreeHost(void *p) {
    BEGIN(cuMemFreeHost, FAKE_CONTEXT);
    free(p);
    return 0;
}

int cuMemHostRegister_v2(void *p, size_t n, unsigned flags) {
    (void)p, (void)n, (void)flags;
    BEGIN(cuMemHostRegister_v2, FAKE_CONTEXT);
    return 0;
}

int cuMemHostUnregister(void *p) {
    (void)p;
    BEGIN(cuMemHostUnregister, FAKE_CONTEXT);
    return 0;
}

int cuMemHostGetDevicePointer_v2(kg_cu_ptr *out, void *p, unsigned flags) {
    (void)flags;
    BEGIN(cuMemHostGetDevicePointer_v2, FAKE_CONTEXT);
    *out = (kg_cu_ptr)(uintptr_t)p;
    return 0;
}

/* Addresses that cuMemAddressReserve gave. */
static struct {
    uintptr_t at;
    size_t bytes;
} reserved[MAX_RESERVED];

static bool is_device_memory(uintptr_t p) {
    bool found = false;
    pthread_mutex_lock(&fake_lock);
    for (const block *b = blocks; b != NULL && !found; b = b->next)
        found = p >= b->at && p - b->at < b->bytes;
    for (size_t i = 0; i < MAX_RESERVED && !found; i++)
        found = p >= reserved[i].at && p - reserved[i].at < reserved[i].bytes;
    pthread_mutex_unlock(&fake_lock);
    return found;
}

/* at 0: a free place. */
static void note_reserved(uintptr_t which, uintptr_t at, size_t bytes) {
    pthread_mutex_lock(&fake_lock);
    for (size_t i = 0; i < MAX_RESERVED; i++)
        if (reserved[i].at == which) {
            reserved[i].at = at;
            reserved[i].bytes = bytes;
            break;
        }
    pthread_mutex_unlock(&fake_lock);
}

int cuPointerGetAttribute(void *out, int which, kg_cu_ptr p) {
    int device = 0;
    unsigned type = KG_CU_MEMORY_DEVICE;
    BEGIN(cuPointerGetAttribute, FAKE_CONTEXT);
    if (which == KG_CU_POINTER_MEMORY_TYPE && is_device_memory((uintptr_t)p))
        memcpy(out, &type, sizeof(type));
    else if (which == KG_CU_POINTER_DEVICE_ORDINAL && p != 0)
        memcpy(out, &device, sizeof(device));
    else
        return KG_CU_INVALID_VALUE;
    return 0;
}

/* ---- virtual memory: a memory is a file, its number the descriptor + 1 ---- */

int cuMemGetAllocationGranularity(size_t *out, const kg_cu_allocation *a, int which) {
    (void)a, (void)which;
    BEGIN(cuMemGetAllocationGranularity, FAKE_PLAIN);
    *out = GRANULARITY;
    return 0;
}

int cuMemCreate(kg_cu_memory *out, size_t n, const kg_cu_allocation *a, unsigned long long flags) {
    (void)flags;
    BEGIN(cuMemCreate, FAKE_CONTEXT | FAKE_NO_CAPTURE);
    if (n == 0 || n % GRANULARITY != 0 || !is_device(a->location.id))
        return KG_CU_INVALID_VALUE;
    pthread_mutex_lock(&fake_lock);
    bool fits = take(n);
    pthread_mutex_unlock(&fake_lock);
    int fd = fits ? memfd_create("fake-cuda", MFD_CLOEXEC) : -1;
    if (fd < 0 || ftruncate(fd, (off_t)n) != 0)
        return KG_CU_OUT_OF_MEMORY;
    *out = (kg_cu_memory)fd + 1;
    return 0;
}

int cuMemRelease(kg_cu_memory m) {
    struct stat st;
    BEGIN(cuMemRelease, FAKE_CONTEXT);
    if (fstat((int)m - 1, &st) != 0)
        return KG_CU_INVALID_VALUE;
    pthread_mutex_lock(&fake_lock);
    fake_live -= fake_live < (size_t)st.st_size ? fake_live : (size_t)st.st_size;
    pthread_mutex_unlock(&fake_lock);
    close((int)m - 1);
    return 0;
}

int cuMemAddressReserve(kg_cu_ptr *out, size_t n, size_t align, kg_cu_ptr at,
                        unsigned long long flags) {
    (void)flags, (void)at, (void)align;
    BEGIN(cuMemAddressReserve, FAKE_CONTEXT);
    /* More than asked for, so that the start can be aligned as the driver's is. */
    void *p =
        mmap(NULL, n + GRANULARITY, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (p == MAP_FAILED)
        return KG_CU_OUT_OF_MEMORY;
    uintptr_t start = ((uintptr_t)p + GRANULARITY - 1) / GRANULARITY * GRANULARITY;
    if (start > (uintptr_t)p)
        munmap(p, start - (uintptr_t)p);
    munmap((void *)(start + n), (uintptr_t)p + GRANULARITY - start);
    note_reserved(0, start, n);
    *out = (kg_cu_ptr)start;
    return 0;
}

int cuMemAddressFree(kg_cu_ptr at, size_t n) {
    BEGIN(cuMemAddressFree, FAKE_CONTEXT);
    note_reserved((uintptr_t)at, 0, 0);
    return munmap((void *)(uintptr_t)at, n) == 0 ? 0 : KG_CU_INVALID_VALUE;
}

int cuMemMap(kg_cu_ptr at, size_t n, size_t offset, kg_cu_memory m, unsigned long long flags) {
    (void)flags;
    BEGIN(cuMemMap, FAKE_CONTEXT);
    void *p = mmap((void *)(uintptr_t)at, n, PROT_NONE, MAP_SHARED | MAP_FIXED, (int)m - 1,
                   (off_t)offset);
    return p != MAP_FAILED ? 0 : KG_CU_INVALID_VALUE;
}

int cuMemUnmap(kg_cu_ptr at, size_t n) {
    BEGIN(cuMemUnmap, FAKE_CONTEXT);
    void *p = mmap((void *)(uintptr_t)at, n, PROT_NONE,
                   MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED | MAP_NORESERVE, -1, 0);
    return p != MAP_FAILED ? 0 : KG_CU_INVALID_VALUE;
}

int cuMemSetAccess(kg_cu_ptr at, size_t n, const kg_cu_access *access, size_t count) {
    BEGIN(cuMemSetAccess, FAKE_CONTEXT);
    int prot =
        count == 1 && access->flags == KG_CU_ACCESS_READ ? PROT_READ : PROT_READ | PROT_WRITE;
    return mprotect((void *)(uintptr_t)at, n, prot) == 0 ? 0 : KG_CU_INVALID_VALUE;
}

int cuMemExportToShareableHandle(void *out, kg_cu_memory m, int type, unsigned long long flags) {
    (void)flags;
    BEGIN(cuMemExportToShareableHandle, FAKE_CONTEXT);
    int fd = type == KG_CU_HANDLE_POSIX_FD ? fcntl((int)m - 1, F_DUPFD_CLOEXEC, 0) : -1;
    if (fd < 0)
        return KG_CU_INVALID_VALUE;
    memcpy(out, &fd, sizeof(fd));
    return 0;
}

int cuMemImportFromShareableHandle(kg_cu_memory *out, void *handle, int type) {
    BEGIN(cuMemImportFromShareableHandle, FAKE_CONTEXT);
    int fd = type == KG_CU_HANDLE_POSIX_FD ? fcntl((int)(intptr_t)handle, F_DUPFD_CLOEXEC, 0) : -1;
    if (fd < 0)
        return KG_CU_INVALID_VALUE;
    *out = (kg_cu_memory)fd + 1;
    return 0;
}
