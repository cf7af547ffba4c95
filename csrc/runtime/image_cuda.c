/* Builds images for CUDA: NVRTC, the inspection of the cubin, the cache. Refuses includes outside
 * the closed list before the compiler sees them, and cubins with state or foreign functions. */
#include "runtime/image_cuda.h"

#include <stdio.h>
#include <string.h>

#include "base/fs.h"
#include "base/hash.h"
#include "runtime/cubin.h"
#include "runtime/cuda_headers.h"
#include "runtime/image_cache.h"
#include "sys/nvrtc.h"

/* Part of every key: to be raised when the same source no longer gives the same image. */
#define IMAGE_RULES "kgen cubin 1"

static const char *const OPTIONS[] = {"--std=c++17", "-default-device", "--no-source-include",
                                      "-diag-suppress=177"};
enum { NOPTIONS = sizeof(OPTIONS) / sizeof(OPTIONS[0]), MAX_OPTIONS = NOPTIONS + 4, MIN_ARCH = 80 };

/* Version and options, and the headers when the source includes any: what it is built with. False
 * when there is no NVRTC (or no headers): any builder's image will do then. */
static bool builder_key(unsigned flags, bool includes, char hex[33]) {
    struct {
        kg_hash128 headers;
        int major, minor;
        unsigned flags, spare;
    } all = {.flags = flags};
    const kg_nvrtc *n;
    kg_cuda_header_set set;
    if (kg_nvrtc_find(&n, NULL) != KG_OK || (includes && kg_cuda_headers(&set, NULL) != KG_OK))
        return false;
    all.major = n->major;
    all.minor = n->minor;
    if (includes)
        all.headers = set.hash;
    kg_hash128_hex(kg_xxh128(&all, sizeof(all)), hex);
    hex[8] = '\0';
    return true;
}

static bool find_entry(const char *source, size_t n, int arch, unsigned flags, bool includes,
                       char path[KG_IMAGE_PATH]) {
    char key[33], builder[33], target[16];
    if (kg_image_key(IMAGE_RULES, source, n, kg_nvrtc_target(arch, target), flags, key, NULL) !=
        KG_OK)
        return false;
    bool has = builder_key(flags, includes, builder);
    return kg_image_entry(key, has ? builder : NULL, ".cubin", path);
}

typedef struct option_list {
    const char *v[MAX_OPTIONS];
    size_t n;
    char target[48];
} option_list;

static void list_options(int arch, unsigned flags, option_list *out) {
    char target[16];
    snprintf(out->target, sizeof(out->target), "--gpu-architecture=%s",
             kg_nvrtc_target(arch, target));
    out->n = 0;
    out->v[out->n++] = out->target;
    for (size_t i = 0; i < NOPTIONS; i++)
        out->v[out->n++] = OPTIONS[i];
    if ((flags & KG_FLAG_FAST_MATH) != 0)
        out->v[out->n++] = "--use_fast_math";
    if ((flags & KG_FLAG_NO_CONTRACT) != 0)
        out->v[out->n++] = "--fmad=false";
}

const char *kg_image_cuda_flags(int arch, unsigned flags, char *out, size_t n) {
    option_list options;
    size_t at = 0;
    list_options(arch, flags, &options);
    if (n > 0)
        out[0] = '\0';
    for (size_t i = 0; i < options.n && at < n; i++)
        at += (size_t)snprintf(out + at, n - at, "%s%s", i > 0 ? " " : "", options.v[i]);
    return out;
}

static int compile(const char *source, const char *name, int arch, unsigned flags, bool includes,
                   kg_buf *cubin, kg_buf *ptx, kg_buf *log, kg_error *err) {
    option_list options;
    kg_cuda_header_set set = {.n = 0};
    int rc = kg_nvrtc_supports(arch, err);
    if (rc == KG_OK && includes)
        rc = kg_cuda_headers(&set, err);
    if (rc != KG_OK)
        return rc;
    list_options(arch, flags, &options);
    return kg_nvrtc_compile(source, name, options.v, options.n, set.v, set.n, cubin, ptx, log, err);
}

/* NVRTC names the unit as #line does; people know it under its own name. */
static void rename_unit(const kg_buf *log, const char *name, kg_buf *out) {
    const char *at = log->data, *hit;
    const size_t n = strlen(KG_UNIT_NAME);
    while (at != NULL && (hit = strstr(at, KG_UNIT_NAME)) != NULL) {
        kg_buf_add(out, at, (size_t)(hit - at));
        kg_buf_puts(out, name);
        at = hit + n;
    }
    if (at != NULL)
        kg_buf_puts(out, at);
}

static int build(const char *source, const char *name, int arch, unsigned flags, bool includes,
                 kg_buf *image, kg_buf *messages, kg_error *err) {
    kg_buf log, ptx;
    kg_buf_init(&log, 1 << 20);
    kg_buf_init(&ptx, KG_MAX_IMAGE);
    int rc = compile(source, KG_UNIT_NAME, arch, flags, includes, image, &ptx, &log, err);
    if (rc == KG_ECOMPILE) {
        rename_unit(&log, name, messages);
        rc = kg_fail(err, rc, "%s does not compile", name);
    }
    if (rc == KG_OK)
        rc = kg_cubin_inspect(image->data, image->len, ptx.data, messages, err);
    kg_buf_free(&ptx);
    kg_buf_free(&log);
    return rc;
}

int kg_image_cuda(const char *source, size_t n, const char *name, int arch, unsigned flags,
                  kg_buf *image, kg_buf *messages, char path[512], kg_error *err) {
    char entry[KG_IMAGE_PATH];
    kg_buf fresh;
    bool includes = false, cached = false;
    if (arch < MIN_ARCH)
        return kg_fail(err, KG_EINVAL, "sm_%d: kgen's kernels need sm_80 or newer", arch);
    int rc = kg_cuda_includes(source, n, name, &includes, messages, err);
    if (rc != KG_OK)
        return rc;
    bool named = find_entry(source, n, arch, flags, includes, entry);
    kg_buf_init(&fresh, KG_MAX_IMAGE);
    if (named)
        cached = kg_is_file(entry) && kg_image_read(entry, &fresh);
    if (!cached) {
        kg_buf_clear(&fresh);
        rc = build(source, name, arch, flags, includes, &fresh, messages, err);
        cached = rc == KG_OK && named && kg_image_write(entry, &fresh);
    }
    if (rc == KG_OK) {
        kg_buf_add(image, fresh.data, fresh.len);
        rc = kg_buf_check(image, "an image", err);
    }
    if (rc == KG_OK && path != NULL)
        snprintf(path, KG_IMAGE_PATH, "%s", cached ? entry : "");
    kg_buf_free(&fresh);
    return rc;
}

bool kg_image_cuda_cached(const char *source, size_t n, int arch, unsigned flags) {
    char path[KG_IMAGE_PATH];
    kg_buf image, complaint;
    bool includes = false;
    kg_buf_init(&image, KG_MAX_IMAGE);
    kg_buf_init(&complaint, 0);
    bool hit = kg_cuda_includes(source, n, "source", &includes, &complaint, NULL) == KG_OK &&
               find_entry(source, n, arch, flags, includes, path) && kg_is_file(path) &&
               kg_image_read(path, &image);
    kg_buf_free(&image);
    kg_buf_free(&complaint);
    return hit;
}
