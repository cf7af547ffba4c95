/* What a Record tells of a GPU around a measurement: clocks, temperature, power, why it was slow,
 * and who else computed on it. Evidence only: where nothing is told, nothing is recorded, and no
 * measurement fails for it. */
#ifndef KG_TUNE_WATCH_H
#define KG_TUNE_WATCH_H

#include "base/json.h"
#include "sys/cuda.h"
#include "sys/nvml.h"

typedef struct kg_watch {
    bool told; /* both below were read */
    kg_nvml_state before, after;
} kg_watch;

void kg_watch_begin(kg_watch *w, const kg_cuda_device *d);
void kg_watch_end(kg_watch *w, const kg_cuda_device *d);
/* Whether what lay between was slowed down; false when nothing is told. */
bool kg_watch_slowed(const kg_watch *w);

/* {"sm_mhz", "memory_mhz", "temperature_c", "power_w", "throttle": ["thermal", ...]}, less what the
 * GPU does not tell. The caller's; NULL when out of memory. */
kg_json *kg_watch_state(const kg_nvml_state *s);
/* Processes on the GPU that are neither this one nor its ancestors nor descendants, as "process
 * 4711 (python3)"; NULL when it cannot be told: no NVML, or one that numbers processes of another
 * namespace, and so does not know this one. The caller's. */
kg_json *kg_watch_foreign(const kg_cuda_device *d);
/* Adds "before", "after" and "foreign" to an object, as far as they are told. */
void kg_watch_keep(const kg_watch *w, const kg_cuda_device *d, kg_json *to);

#endif
