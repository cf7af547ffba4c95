// Holds csrc/sys/nvml_abi.h and the reasons of nvml.h, our own C declarations of NVML's ABI,
// against NVIDIA's header. There is nothing to run.
#define NVML_NO_UNVERSIONED_FUNC_DEFS
#include <nvml.h>

#include <cstddef>

#include "base/error.h"
#include "conformance/same_abi.h"
#include <stdbool.h>

namespace ours {
extern "C" {
#include "sys/nvml_abi.h"
#include "sys/nvml.h"
}
} // namespace ours

// A header before CUDA 12.2 has the older names alone, and nothing is held against it.
#ifdef nvmlClocksEventReasonGpuIdle
#pragma GCC diagnostic ignored "-Wdeprecated-declarations"
namespace ours {
#define KG_X(required, name, params)                                                               \
    static_assert(same_abi<decltype(&::name), decltype(kg_nvml_table::name)>::value,               \
                  #name ": nvml_abi.h and nvml.h differ");
KG_NVML_SYMS(KG_X)
#undef KG_X
} // namespace ours

static_assert(sizeof(ours::kg_nvml_process) == sizeof(nvmlProcessInfo_t));
static_assert(offsetof(ours::kg_nvml_process, pid) == offsetof(nvmlProcessInfo_t, pid));
static_assert(offsetof(ours::kg_nvml_process, memory) ==
              offsetof(nvmlProcessInfo_t, usedGpuMemory));
#define KG_SAME(mine, theirs) static_assert((long long)(ours::mine) == (long long)(theirs), #mine)
KG_SAME(KG_NVML_SUCCESS, NVML_SUCCESS);
KG_SAME(KG_NVML_NOT_SUPPORTED, NVML_ERROR_NOT_SUPPORTED);
KG_SAME(KG_NVML_INSUFFICIENT_SIZE, NVML_ERROR_INSUFFICIENT_SIZE);
KG_SAME(KG_NVML_FUNCTION_NOT_FOUND, NVML_ERROR_FUNCTION_NOT_FOUND);
KG_SAME(KG_NVML_CLOCK_SM, NVML_CLOCK_SM);
KG_SAME(KG_NVML_CLOCK_MEMORY, NVML_CLOCK_MEM);
KG_SAME(KG_NVML_TEMPERATURE_GPU, NVML_TEMPERATURE_GPU);
KG_SAME(KG_THROTTLE_IDLE, nvmlClocksEventReasonGpuIdle);
KG_SAME(KG_THROTTLE_APPLICATION_CLOCKS, nvmlClocksEventReasonApplicationsClocksSetting);
KG_SAME(KG_THROTTLE_POWER_CAP, nvmlClocksEventReasonSwPowerCap);
KG_SAME(KG_THROTTLE_HARDWARE, nvmlClocksThrottleReasonHwSlowdown);
KG_SAME(KG_THROTTLE_SYNC_BOOST, nvmlClocksEventReasonSyncBoost);
KG_SAME(KG_THROTTLE_THERMAL, nvmlClocksEventReasonSwThermalSlowdown);
KG_SAME(KG_THROTTLE_HARDWARE_THERMAL, nvmlClocksThrottleReasonHwThermalSlowdown);
KG_SAME(KG_THROTTLE_POWER_BRAKE, nvmlClocksThrottleReasonHwPowerBrakeSlowdown);
KG_SAME(KG_THROTTLE_DISPLAY_CLOCKS, nvmlClocksEventReasonDisplayClockSetting);
#ifdef nvmlClocksEventReasonBoardLimit
KG_SAME(KG_THROTTLE_BOARD_LIMIT, nvmlClocksEventReasonBoardLimit);
KG_SAME(KG_THROTTLE_RELIABILITY, nvmlClocksEventReasonReliability);
#endif
#endif
