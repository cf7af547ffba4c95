/* One small text file an entry, in the user's cache folder: <cache>/quarantine/<32 hex of Kernel
 * and device>. A file that is there counts, whatever it holds. */
#include "runtime/quarantine.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/fs.h"
#include "base/hash.h"

enum { MAX_ENTRY = 4096 };

static bool entry_path(const char *kernel_id, const char *device, char folder[512],
                       char path[512]) {
    char text[256], hex[33];
    char *cache = kg_cache_dir();
    int n = snprintf(text, sizeof(text), "%.64s\n%.128s", kernel_id, device);
    kg_hash128_hex(kg_xxh128(text, (size_t)n), hex);
    int length = cache != NULL ? snprintf(folder, 512, "%s/quarantine", cache) : -1;
    free(cache);
    return length > 0 && length < 512 - 40 && snprintf(path, 512, "%.470s/%s", folder, hex) > 0;
}

bool kg_quarantined(const char *kernel_id, const char *device, char why[512]) {
    char folder[512], path[512], error[200] = "a lost device";
    kg_buf text;
    if (!entry_path(kernel_id, device, folder, path) || !kg_is_file(path))
        return false;
    kg_buf_init(&text, 0);
    if (kg_read_file(path, MAX_ENTRY, &text, NULL) == KG_OK) {
        const char *at = text.data != NULL ? strstr(text.data, "\nerror ") : NULL;
        if (at != NULL)
            snprintf(error, sizeof(error), "%.*s", (int)strcspn(at + 7, "\n"), at + 7);
    }
    kg_buf_free(&text);
    snprintf(
        why, 512,
        "is quarantined on this device after %.180s; roll it back, or remove %.230s to serve it "
        "again",
        error, path);
    return true;
}

int kg_quarantine(const char *kernel_id, const char *kernel, const char *device, const char *error,
                  char path[512], kg_error *err) {
    char folder[512];
    kg_buf text;
    if (!entry_path(kernel_id, device, folder, path))
        return kg_fail(err, KG_EIO, "there is no cache folder (KGEN_CACHE) to quarantine %s in",
                       kernel);
    if (kg_is_file(path)) /* what was first written is nearest to the cause */
        return KG_OK;
    kg_buf_init(&text, 0);
    kg_buf_printf(&text, "kernel %s\nid %s\ndevice %s\nerror %.*s\n", kernel, kernel_id, device,
                  (int)strcspn(error, "\n"), error);
    int rc = kg_buf_check(&text, "a quarantine", err);
    if (rc == KG_OK)
        rc = kg_mkdirs(folder, err);
    if (rc == KG_OK)
        rc = kg_write_atomic(path, text.data, text.len, err);
    kg_buf_free(&text);
    return rc;
}
