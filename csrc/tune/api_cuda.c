/* The C API over devices: where a host's packages are, who may time, and what a GPU tells of
 * itself. */
#include <stdlib.h>
#include <string.h>

#include "base/fs.h"
#include "kgen_tune.h"
#include "sys/cuda.h"
#include "sys/nvrtc.h"
#include "tune/watch.h"

void kgen_nvrtc_search(const char *folder) {
    kg_nvrtc_search(folder);
}

int kgen_lock_device(int gpu, int wait_ms, int *fd, char *err, size_t nerr) {
    kg_error e = {0};
    const kg_cuda_device *d = NULL;
    char name[KG_CUDA_LOCK] = "cpu";
    int rc = gpu < 0 ? KG_OK : kg_cuda_device_get(gpu, &d, &e);
    if (d)
        kg_cuda_lock_name(d, name);
    if (rc == KG_OK)
        rc = kg_lock_device(name, wait_ms, fd, &e);
    return kg_give(rc, &e, err, nerr);
}

void kgen_unlock_device(int fd) {
    kg_unlock_file(fd);
}

int kgen_gpu_state(int gpu, char **json, char *err, size_t nerr) {
    kg_error e = {0};
    const kg_cuda_device *d = NULL;
    kg_nvml_state state;
    kg_buf text;
    int rc = kg_cuda_device_get(gpu, &d, &e);
    if (rc == KG_OK)
        rc = kg_nvml_read(d->uuid, &state, &e);
    if (rc != KG_OK)
        return kg_give(rc, &e, err, nerr);
    kg_json *o = kg_watch_state(&state), *foreign = kg_watch_foreign(d);
    if (foreign)
        kg_json_set(o, "foreign", foreign);
    kg_buf_init(&text, 0);
    kg_json_canonical(o, &text);
    rc = kg_buf_check(&text, "a GPU's state", &e);
    char *taken = rc == KG_OK ? kg_buf_take(&text) : NULL;
    if (rc == KG_OK && !taken)
        rc = kg_fail(&e, KG_ENOMEM, "a GPU's state: out of memory");
    if (rc == KG_OK)
        *json = taken;
    kg_buf_free(&text);
    kg_json_free(o);
    return kg_give(rc, &e, err, nerr);
}
