/* What NVIDIA's management library tells of a GPU: clocks, temperature, power, why the clocks are
 * low, and who computes on it. libnvidia-ml.so.1 by dlopen, once a process; for tests KGEN_LIBNVML
 * names another by its full path. It is evidence beside a measurement and never a reason to fail
 * one: without the library, or where a GPU does not tell, there is less evidence. */
#ifndef KG_SYS_NVML_H
#define KG_SYS_NVML_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/error.h"

/* Reasons why clocks are not what they could be (NVML's bits). */
enum {
    KG_THROTTLE_IDLE = 0x1,
    KG_THROTTLE_APPLICATION_CLOCKS = 0x2,
    KG_THROTTLE_POWER_CAP = 0x4,
    KG_THROTTLE_HARDWARE = 0x8,
    KG_THROTTLE_SYNC_BOOST = 0x10,
    KG_THROTTLE_THERMAL = 0x20,
    KG_THROTTLE_HARDWARE_THERMAL = 0x40,
    KG_THROTTLE_POWER_BRAKE = 0x80,
    KG_THROTTLE_DISPLAY_CLOCKS = 0x100,
    KG_THROTTLE_BOARD_LIMIT = 0x200,
    KG_THROTTLE_RELIABILITY = 0x400
};

/* What a GPU does not tell is -1; of the reasons, `reasons_told` says whether it did. */
typedef struct kg_nvml_state {
    int sm_mhz, memory_mhz, temperature_c, power_mw;
    bool reasons_told;
    uint64_t reasons;
} kg_nvml_state;

/* uuid: of kg_cuda_device. KG_EENV: there is no such library, or it does not know the GPU. */
int kg_nvml_read(const unsigned char uuid[16], kg_nvml_state *out, kg_error *err);
/* Processes that compute on the GPU, at most max of them, with ids of the host's namespace. */
int kg_nvml_processes(const unsigned char uuid[16], uint32_t *pids, size_t max, size_t *n,
                      kg_error *err);
/* Name of the i-th reason, for i from 0 until it is NULL; *bit gets its bit. */
const char *kg_nvml_reason(size_t i, uint64_t *bit);
/* Whether a measurement between these two was slowed down: by heat, by the hardware's protection,
 * or by the power cap when clocks moved by more than 3% meanwhile (at a steady cap they are the
 * GPU's own under this load). */
bool kg_nvml_slowed(const kg_nvml_state *before, const kg_nvml_state *after);

#endif
