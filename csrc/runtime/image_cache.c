/* Keeps images.
 *
 * An entry of the cache is the image followed by a trailer with its length and hash, so that one
 * that was torn or changed is seen and built again; loaders do not mind bytes after an ELF file.
 * Its name is the hash of what was compiled, then of the compiler: a machine without a compiler
 * takes any compiler's image of the same source. */
#include "runtime/image_cache.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/fs.h"
#include "base/hash.h"
#include "base/log.h"

typedef struct trailer {
    char magic[8];
    uint64_t size;
    kg_hash128 hash;
} trailer;

static const char MAGIC[8] = {'K', 'G', 'I', 'M', 'A', 'G', 'E', '1'};

int kg_image_key(const char *rules, const char *source, size_t n, const char *arch, unsigned flags,
                 char hex[33], kg_error *err) {
    kg_buf b;
    kg_buf_init(&b, 0);
    kg_put_str(&b, rules);
    kg_put_str(&b, arch);
    kg_put_u32(&b, flags);
    kg_buf_add(&b, source, n);
    int rc = kg_buf_check(&b, "the key of an image", err);
    if (rc == KG_OK)
        kg_hash128_hex(kg_xxh128(b.data, b.len), hex);
    kg_buf_free(&b);
    return rc;
}

static bool folder_of(const char *key, char out[KG_IMAGE_PATH]) {
    char *cache = kg_cache_dir();
    int n = cache ? snprintf(out, KG_IMAGE_PATH, "%s/images/%.2s", cache, key) : -1;
    free(cache);
    return n > 0 && n < KG_IMAGE_PATH;
}

static bool any_entry(const char *folder, const char *key, const char *suffix,
                      char out[KG_IMAGE_PATH]) {
    char **names = NULL;
    size_t n = 0;
    bool hit = false;
    if (kg_list_dir(folder, &names, &n, NULL) != KG_OK)
        return false;
    for (size_t i = 0; i < n && !hit; i++) {
        if (strncmp(names[i], key, strlen(key)) != 0 || !strstr(names[i], suffix))
            continue;
        int len = snprintf(out, KG_IMAGE_PATH, "%s/%s", folder, names[i]);
        hit = len > 0 && len < KG_IMAGE_PATH;
    }
    kg_free_names(names, n);
    return hit;
}

bool kg_image_entry(const char *key, const char *builder, const char *suffix,
                    char path[KG_IMAGE_PATH]) {
    char folder[KG_IMAGE_PATH];
    if (!folder_of(key, folder))
        return false;
    if (!builder)
        return any_entry(folder, key, suffix, path);
    int n = snprintf(path, KG_IMAGE_PATH, "%s/%s-%s%s", folder, key, builder, suffix);
    return n > 0 && n < KG_IMAGE_PATH;
}

bool kg_image_read(const char *path, kg_buf *image) {
    kg_buf file;
    kg_buf_init(&file, KG_MAX_IMAGE);
    trailer t;
    bool ok = kg_read_file(path, KG_MAX_IMAGE, &file, NULL) == KG_OK && file.len > sizeof t;
    if (ok) {
        memcpy(&t, file.data + file.len - sizeof t, sizeof t);
        kg_hash128 h = kg_xxh128(file.data, file.len - sizeof t);
        ok = memcmp(t.magic, MAGIC, sizeof MAGIC) == 0 && t.size == file.len - sizeof t &&
             t.hash.lo == h.lo && t.hash.hi == h.hi;
        if (!ok)
            kg_log(KG_LOG_WARNING, "cached image %s is damaged; it is built again", path);
    }
    if (ok)
        ok = kg_buf_add(image, file.data, file.len - sizeof t) == KG_OK;
    kg_buf_free(&file);
    return ok;
}

bool kg_image_write(const char *path, const kg_buf *image) {
    trailer t = {.size = image->len, .hash = kg_xxh128(image->data, image->len)};
    memcpy(t.magic, MAGIC, sizeof MAGIC);
    char folder[KG_IMAGE_PATH];
    snprintf(folder, sizeof folder, "%s", path);
    *strrchr(folder, '/') = '\0';
    kg_buf file;
    kg_buf_init(&file, KG_MAX_IMAGE);
    kg_buf_add(&file, image->data, image->len);
    kg_buf_add(&file, &t, sizeof t);
    bool ok = kg_buf_check(&file, path, NULL) == KG_OK && kg_mkdirs(folder, NULL) == KG_OK &&
              kg_write_derived(path, file.data, file.len, NULL) == KG_OK;
    kg_buf_free(&file);
    if (!ok)
        kg_log_once(KG_LOG_WARNING, "the image cache %s cannot be written; images are built again",
                    folder);
    return ok;
}
