/* Our own declarations of NVML's ABI. Internal to sys/nvml.c; csrc/conformance holds it against
 * nvml.h, where that is. */
#ifndef KG_SYS_NVML_ABI_H
#define KG_SYS_NVML_ABI_H

/* nvmlReturn_t */
enum {
    KG_NVML_SUCCESS = 0,
    KG_NVML_NOT_SUPPORTED = 3,
    KG_NVML_INSUFFICIENT_SIZE = 7,
    KG_NVML_FUNCTION_NOT_FOUND = 13
};

/* nvmlClockType_t, nvmlTemperatureSensors_t */
enum { KG_NVML_CLOCK_SM = 1, KG_NVML_CLOCK_MEMORY = 2, KG_NVML_TEMPERATURE_GPU = 0 };

typedef struct nvmlDevice_st *kg_nvml_device;

typedef struct kg_nvml_process {
    unsigned pid;
    unsigned long long memory;
    unsigned gpu_instance, compute_instance;
} kg_nvml_process;

/* X(required, symbol, parameters). All return an nvmlReturn_t. Drivers before 535 call the reasons
 * why clocks are low by the older name. */
#define KG_NVML_SYMS(X)                                                                            \
    X(1, nvmlInit_v2, (void))                                                                      \
    X(1, nvmlDeviceGetHandleByUUID, (const char *, kg_nvml_device *))                              \
    X(0, nvmlDeviceGetClockInfo, (kg_nvml_device, int, unsigned *))                                \
    X(0, nvmlDeviceGetTemperature, (kg_nvml_device, int, unsigned *))                              \
    X(0, nvmlDeviceGetPowerUsage, (kg_nvml_device, unsigned *))                                    \
    X(0, nvmlDeviceGetCurrentClocksEventReasons, (kg_nvml_device, unsigned long long *))           \
    X(0, nvmlDeviceGetCurrentClocksThrottleReasons, (kg_nvml_device, unsigned long long *))        \
    X(0, nvmlDeviceGetComputeRunningProcesses_v3, (kg_nvml_device, unsigned *, kg_nvml_process *))

typedef struct kg_nvml_table {
#define KG_X(required, name, params) int(*name) params;
    KG_NVML_SYMS(KG_X)
#undef KG_X
} kg_nvml_table;

#endif
