/* Finds NVML and asks it. It refuses to be linked against libnvidia-ml, and changes nothing of a
 * GPU. */
#include "sys/nvml.h"

#include <dlfcn.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "sys/nvml_abi.h"

/* Clocks that moved by more than this were not the same for the whole measurement. */
static const double MOVED = 0.03;

static kg_nvml_table nvml;
static pthread_once_t load_once = PTHREAD_ONCE_INIT;
static kg_error load_error; /* code KG_OK: it is there */

static int find_symbols(void *lib, kg_error *err) {
    static const struct {
        const char *name;
        size_t at;
        int required;
    } symbols[] = {
#define KG_X(required, name, params) {#name, offsetof(kg_nvml_table, name), required},
        KG_NVML_SYMS(KG_X)
#undef KG_X
    };
    for (size_t i = 0; i < sizeof symbols / sizeof *symbols; i++) {
        void *symbol = dlsym(lib, symbols[i].name);
        if (symbol == NULL && symbols[i].required)
            return kg_fail(err, KG_EENV, "libnvidia-ml has no %s", symbols[i].name);
        memcpy((char *)&nvml + symbols[i].at, &symbol, sizeof symbol);
    }
    return KG_OK;
}

static void load(void) {
    const char *asked = getenv("KGEN_LIBNVML");
    void *lib = dlopen(asked && *asked ? asked : "libnvidia-ml.so.1", RTLD_NOW | RTLD_LOCAL);
    if (lib == NULL) {
        kg_fail(&load_error, KG_EENV, "no NVML: %.400s", dlerror());
        return;
    }
    if (find_symbols(lib, &load_error) != KG_OK)
        return;
    int result = nvml.nvmlInit_v2();
    if (result != KG_NVML_SUCCESS)
        kg_fail(&load_error, KG_EENV, "nvmlInit: error %d", result);
}

static int open_device(const unsigned char u[16], kg_nvml_device *out, kg_error *err) {
    char name[48];
    pthread_once(&load_once, load);
    if (load_error.code != KG_OK)
        return kg_fail(err, load_error.code, "%s", load_error.msg);
    snprintf(name, sizeof name,
             "GPU-%02x%02x%02x%02x-%02x%02x-%02x%02x-%02x%02x-%02x%02x%02x%02x%02x%02x", u[0], u[1],
             u[2], u[3], u[4], u[5], u[6], u[7], u[8], u[9], u[10], u[11], u[12], u[13], u[14],
             u[15]);
    int result = nvml.nvmlDeviceGetHandleByUUID(name, out);
    if (result != KG_NVML_SUCCESS)
        return kg_fail(err, KG_EENV, "NVML does not know %s: error %d", name, result);
    return KG_OK;
}

static int number(int result, unsigned value) {
    return result == KG_NVML_SUCCESS && value <= 1u << 30 ? (int)value : -1;
}

static int clock_of(kg_nvml_device d, int which) {
    unsigned mhz = 0;
    if (nvml.nvmlDeviceGetClockInfo == NULL)
        return -1;
    int result = nvml.nvmlDeviceGetClockInfo(d, which, &mhz);
    return number(result, mhz);
}

static void read_reasons(kg_nvml_device d, kg_nvml_state *out) {
    unsigned long long reasons = 0;
    int result = KG_NVML_FUNCTION_NOT_FOUND;
    if (nvml.nvmlDeviceGetCurrentClocksEventReasons != NULL)
        result = nvml.nvmlDeviceGetCurrentClocksEventReasons(d, &reasons);
    else if (nvml.nvmlDeviceGetCurrentClocksThrottleReasons != NULL)
        result = nvml.nvmlDeviceGetCurrentClocksThrottleReasons(d, &reasons);
    out->reasons_told = result == KG_NVML_SUCCESS;
    out->reasons = out->reasons_told ? reasons : 0;
}

int kg_nvml_read(const unsigned char uuid[16], kg_nvml_state *out, kg_error *err) {
    kg_nvml_device d = NULL;
    unsigned value = 0;
    int rc = open_device(uuid, &d, err);
    if (rc != KG_OK)
        return rc;
    *out = (kg_nvml_state){.temperature_c = -1, .power_mw = -1};
    out->sm_mhz = clock_of(d, KG_NVML_CLOCK_SM);
    out->memory_mhz = clock_of(d, KG_NVML_CLOCK_MEMORY);
    if (nvml.nvmlDeviceGetTemperature != NULL) {
        int result = nvml.nvmlDeviceGetTemperature(d, KG_NVML_TEMPERATURE_GPU, &value);
        out->temperature_c = number(result, value);
    }
    if (nvml.nvmlDeviceGetPowerUsage != NULL) {
        int result = nvml.nvmlDeviceGetPowerUsage(d, &value);
        out->power_mw = number(result, value);
    }
    read_reasons(d, out);
    return KG_OK;
}

int kg_nvml_processes(const unsigned char uuid[16], uint32_t *pids, size_t max, size_t *n,
                      kg_error *err) {
    enum { MOST = 256 };
    kg_nvml_device d = NULL;
    unsigned count = MOST;
    int rc = open_device(uuid, &d, err);
    if (rc != KG_OK)
        return rc;
    if (nvml.nvmlDeviceGetComputeRunningProcesses_v3 == NULL)
        return kg_fail(err, KG_EENV, "this NVML does not tell who computes on a GPU");
    kg_nvml_process *found = calloc(MOST, sizeof *found);
    if (!found)
        return kg_fail(err, KG_ENOMEM, "%d processes: out of memory", MOST);
    int result = nvml.nvmlDeviceGetComputeRunningProcesses_v3(d, &count, found);
    if (result != KG_NVML_SUCCESS)
        rc = kg_fail(err, KG_EENV, "nvmlDeviceGetComputeRunningProcesses: error %d", result);
    if (rc == KG_OK) {
        *n = count < max ? count : max;
        for (size_t i = 0; i < *n; i++)
            pids[i] = found[i].pid;
    }
    free(found);
    return rc;
}

const char *kg_nvml_reason(size_t i, uint64_t *bit) {
    static const char *const names[] = {
        "idle",       "application_clocks", "power_cap",   "hardware",       "sync_boost",
        "thermal",    "hardware_thermal",   "power_brake", "display_clocks", "board_limit",
        "reliability"};
    if (i >= sizeof names / sizeof *names)
        return NULL;
    *bit = (uint64_t)1 << i;
    return names[i];
}

bool kg_nvml_slowed(const kg_nvml_state *before, const kg_nvml_state *after) {
    const uint64_t always = KG_THROTTLE_HARDWARE | KG_THROTTLE_THERMAL |
                            KG_THROTTLE_HARDWARE_THERMAL | KG_THROTTLE_POWER_BRAKE |
                            KG_THROTTLE_RELIABILITY;
    uint64_t reasons = before->reasons | after->reasons;
    if (reasons & always)
        return true;
    if (!(reasons & KG_THROTTLE_POWER_CAP) || before->sm_mhz <= 0 || after->sm_mhz <= 0)
        return false;
    double by = (double)after->sm_mhz / before->sm_mhz;
    return by > 1 + MOVED || by < 1 / (1 + MOVED);
}
