/* Builds and loads images for the CPU; image_cache.c keeps them. Refuses to link, let alone to
 * load, what the inspection refuses. */
#include "runtime/image.h"

#include <dlfcn.h>
#include <errno.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "base/fs.h"
#include "base/hash.h"
#include "base/log.h"
#include "runtime/image_cache.h"
#include "runtime/image_headers.h"
#include "runtime/object_inspect.h"
#include "sys/cc.h"

/* Part of every key: to be raised when the same source no longer gives the same image. */
#define IMAGE_RULES "kgen image 2"
enum { ARCH_FLAGS = 1024 };

/* What it is built with. */
static void compiler_key(const kg_cc *cc, const char *arch, unsigned flags, char hex[33]) {
    char text[sizeof cc->version + sizeof cc->path + ARCH_FLAGS], opts[ARCH_FLAGS];
    int n = snprintf(text, sizeof text, "%s %s", cc->version,
                     kg_cc_flags(arch, flags, opts, sizeof opts));
    kg_hash128_hex(kg_xxh128(text, (size_t)n), hex);
    hex[8] = '\0';
}

/* Where the image is, or would be; false when there is no cache to name it in. */
static bool find_entry(const char *source, size_t n, const char *arch, unsigned flags,
                       char path[KG_IMAGE_PATH]) {
    char key[33], cc_key[33];
    const kg_cc *cc;
    if (kg_image_key(IMAGE_RULES, source, n, arch, flags, key, NULL) != KG_OK)
        return false;
    bool has = kg_cc_find(&cc, NULL) == KG_OK;
    if (has)
        compiler_key(cc, arch, flags, cc_key);
    return kg_image_entry(key, has ? cc_key : NULL, ".so", path);
}

static int build(const char *source, size_t n, const char *name, const char *arch, unsigned flags,
                 kg_buf *image, kg_buf *messages, kg_error *err) {
    char path[KG_IMAGE_PATH];
    const char *headers = kg_headers_find(source, n, arch, flags, path) ? path : NULL;
    kg_buf object;
    kg_buf_init(&object, KG_MAX_IMAGE);
    int rc = kg_cc_object(source, n, name, headers, arch, flags, &object, messages, err);
    if (rc == KG_OK)
        rc = kg_object_inspect(object.data, object.len, messages, err);
    if (rc == KG_OK) {
        rc = kg_cc_link(object.data, object.len, image, err);
        if (rc == KG_ECOMPILE && err)
            kg_buf_puts(messages, err->msg);
    }
    if (rc == KG_OK)
        rc = kg_linked_inspect(image->data, image->len, messages, err);
    kg_buf_free(&object);
    return rc;
}

int kg_image_cpu(const char *source, size_t n, const char *name, const char *arch, unsigned flags,
                 bool more, kg_buf *image, kg_buf *messages, char path[512], kg_error *err) {
    char entry[512];
    bool named = find_entry(source, n, arch, flags, entry), cached = false;
    kg_buf fresh;
    kg_buf_init(&fresh, KG_MAX_IMAGE);
    int rc = KG_OK;
    if (named)
        cached = kg_is_file(entry) && kg_image_read(entry, &fresh);
    if (!cached) {
        kg_buf_clear(&fresh);
        kg_error why = {0};
        kg_headers_job *ahead = more ? kg_headers_begin(source, n, arch, flags) : NULL;
        rc = build(source, n, name, arch, flags, &fresh, messages, &why);
        kg_headers_end(ahead);
        if (rc != KG_OK)
            kg_fail(err, rc, "%s", why.msg);
        else
            cached = named && kg_image_write(entry, &fresh);
    }
    if (rc == KG_OK)
        rc = kg_buf_add(image, fresh.data, fresh.len);
    if (rc == KG_OK && path)
        snprintf(path, 512, "%s", cached ? entry : "");
    kg_buf_free(&fresh);
    return rc;
}

bool kg_image_cached(const char *source, size_t n, const char *arch, unsigned flags) {
    char path[512];
    kg_buf image;
    kg_buf_init(&image, KG_MAX_IMAGE);
    bool hit =
        find_entry(source, n, arch, flags, path) && kg_is_file(path) && kg_image_read(path, &image);
    kg_buf_free(&image);
    return hit;
}

static int write_all(int fd, const char *bytes, size_t n) {
    while (n > 0) {
        ssize_t done = write(fd, bytes, n);
        if (done < 0 && errno == EINTR)
            continue;
        if (done <= 0)
            return -1;
        bytes += done;
        n -= (size_t)done;
    }
    return 0;
}

/* The loader takes two files of one name for one file, and descriptor numbers come again; so each
 * path is spelled in its own way, the count's bits as "/." and "//". */
static void spell(int fd, char out[128]) {
    static atomic_uint count;
    unsigned bits = atomic_fetch_add(&count, 1);
    size_t n = (size_t)snprintf(out, 128, "/proc/self/fd");
    for (; bits; bits >>= 1) {
        out[n++] = '/';
        out[n++] = bits & 1 ? '.' : '/';
    }
    snprintf(out + n, 128 - n, "/%d", fd);
}

static void *load_bytes(const void *image, size_t n, kg_error *err) {
    int fd = memfd_create("kgen-image", MFD_CLOEXEC);
    if (fd < 0) {
        kg_fail(err, KG_EIO, "memfd_create: %s", strerror(errno));
        return NULL;
    }
    void *handle = NULL;
    char path[128];
    spell(fd, path);
    if (write_all(fd, image, n) != 0)
        kg_fail(err, KG_EIO, "write of an image: %s", strerror(errno));
    else if (!(handle = dlopen(path, RTLD_NOW | RTLD_LOCAL)))
        kg_fail(err, KG_EIO, "dlopen of an image: %.300s", dlerror());
    close(fd);
    return handle;
}

int kg_image_load(const char *path, const void *image, size_t n, size_t nentries, kg_entry *entries,
                  kg_error *err) {
    void *handle = NULL;
    if (path && *path)
        handle = dlopen(path, RTLD_NOW | RTLD_LOCAL);
    if (!handle && !image)
        return kg_fail(err, KG_EIO, "dlopen %s: %.300s", path ? path : "(no path)", dlerror());
    if (!handle)
        handle = load_bytes(image, n, err);
    if (!handle)
        return KG_EIO;
    for (size_t i = 0; i < nentries; i++) {
        char name[32];
        snprintf(name, sizeof name, "kg_entry_%zu", i);
        void *symbol = dlsym(handle, name);
        if (!symbol)
            return kg_fail(err, KG_EFORMAT, "the image has no %s", name);
        memcpy(&entries[i], &symbol, sizeof symbol);
    }
    return KG_OK;
}
