/* A stand-in for libnvidia-ml.so.1 that needs no GPU: built as libkgen_fakenvml.so in the build
 * folder, chosen by KGEN_LIBNVML. KGEN_FAKE_NVML names a file, read at every call, of lines
 *
 *     sm 1980 1980 1200        the clock at the first, the second and every later call
 *     memory 2619              likewise: memory's clock, temperature (C), power (mW),
 *     temperature 41           reasons (NVML's bits, 0x for hexadecimal)
 *     power 350000
 *     reasons 0x0 0x40
 *     pids 1 4711 self         who computes on it; self is this process
 *
 * What has no line is not supported; without the file no GPU is known. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "sys/nvml_abi.h"

#define EXPORT __attribute__((visibility("default")))
enum { NOT_FOUND = 6, KEYS = 5 };

static const char *const keys[KEYS] = {"sm", "memory", "temperature", "power", "reasons"};
static unsigned calls[KEYS];

/* The line of a key, without it; false when there is none. */
static int line_of(const char *key, char *out, size_t size) {
    const char *path = getenv("KGEN_FAKE_NVML");
    FILE *f = path ? fopen(path, "r") : NULL;
    size_t n = strlen(key);
    int found = 0;
    while (f && !found && fgets(out, (int)size, f))
        found = strncmp(out, key, n) == 0 && out[n] == ' ';
    if (f)
        fclose(f);
    if (found)
        memmove(out, out + n, strlen(out + n) + 1);
    return found;
}

static int value_of(size_t key, unsigned long long *out) {
    char line[256];
    if (!line_of(keys[key], line, sizeof line))
        return KG_NVML_NOT_SUPPORTED;
    unsigned at = calls[key]++;
    char *p = line, *end = NULL;
    for (unsigned i = 0; i <= at; i++, p = end) {
        unsigned long long v = strtoull(p, &end, 0);
        if (end == p)
            break;
        *out = v;
    }
    return KG_NVML_SUCCESS;
}

static int small(size_t key, unsigned *out) {
    unsigned long long v = 0;
    int result = value_of(key, &v);
    *out = (unsigned)v;
    return result;
}

EXPORT int nvmlInit_v2(void) {
    return KG_NVML_SUCCESS;
}

EXPORT int nvmlDeviceGetHandleByUUID(const char *uuid, kg_nvml_device *out) {
    const char *path = getenv("KGEN_FAKE_NVML");
    if (strncmp(uuid, "GPU-", 4) != 0 || strlen(uuid) != 40 || !path || access(path, R_OK) != 0)
        return NOT_FOUND;
    *out = (kg_nvml_device)(void *)calls;
    return KG_NVML_SUCCESS;
}

EXPORT int nvmlDeviceGetClockInfo(kg_nvml_device d, int which, unsigned *mhz) {
    (void)d;
    return small(which == KG_NVML_CLOCK_SM ? 0 : 1, mhz);
}

EXPORT int nvmlDeviceGetTemperature(kg_nvml_device d, int sensor, unsigned *celsius) {
    (void)d, (void)sensor;
    return small(2, celsius);
}

EXPORT int nvmlDeviceGetPowerUsage(kg_nvml_device d, unsigned *mw) {
    (void)d;
    return small(3, mw);
}

/* The older name alone, as drivers before 535 have it. */
EXPORT int nvmlDeviceGetCurrentClocksThrottleReasons(kg_nvml_device d, unsigned long long *out) {
    (void)d;
    return value_of(4, out);
}

EXPORT int nvmlDeviceGetComputeRunningProcesses_v3(kg_nvml_device d, unsigned *n,
                                                   kg_nvml_process *out) {
    char line[256];
    unsigned count = 0;
    (void)d;
    if (!line_of("pids", line, sizeof line))
        return KG_NVML_NOT_SUPPORTED;
    for (char *save = NULL, *word = strtok_r(line, " \n", &save); word && count < *n;
         word = strtok_r(NULL, " \n", &save)) {
        unsigned pid =
            strcmp(word, "self") == 0 ? (unsigned)getpid() : (unsigned)strtoul(word, NULL, 10);
        out[count++] = (kg_nvml_process){.pid = pid};
    }
    *n = count;
    return KG_NVML_SUCCESS;
}
