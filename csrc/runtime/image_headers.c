/* Three quarters of a compilation is the reading of immintrin.h, the same for every Candidate. What
 * the compiler makes of the headers alone is kept in the cache, by the text of the #include lines
 * that a unit begins with and by what compiles it; a compiler that finds it beside a header of
 * their name takes it in place of the text and gives the same object.
 *
 * Nothing depends on it: what is not there, does not fit or makes a compilation fail is as if it
 * had never been. Refuses to look at system headers for changes: those that matter come with the
 * compiler, whose version is part of the name. */
#include "runtime/image_headers.h"

#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/fs.h"
#include "base/hash.h"
#include "sys/cc.h"

/* Part of every name: to be raised when the same lines no longer give the same. */
#define HEADERS_RULES "kgen headers 1"

enum { FLAGS_TEXT = 1024, MOST_KNOWN = 16 };

struct kg_headers_job {
    pthread_t thread;
    kg_buf text;
    char path[KG_IMAGE_PATH], arch[32];
    unsigned flags;
};

/* The names of those that this process has found whole: they are large. */
static pthread_mutex_t known_lock = PTHREAD_MUTEX_INITIALIZER;
static kg_hash128 known[MOST_KNOWN];
static size_t nknown;

static atomic_bool at_work, failed;

static size_t include_lines(const char *source, size_t n) {
    static const char word[] = "#include <";
    size_t at = 0;
    while (n - at > sizeof word && memcmp(source + at, word, sizeof word - 1) == 0) {
        const char *end = memchr(source + at, '\n', n - at);
        if (!end)
            break;
        at = (size_t)(end - source) + 1;
    }
    return at;
}

static bool path_of(const char *lines, size_t n, const char *arch, unsigned flags,
                    char path[KG_IMAGE_PATH]) {
    char text[FLAGS_TEXT], hex[33];
    const kg_cc *cc;
    char *cache;
    kg_buf b;
    if (n == 0 || kg_cc_find(&cc, NULL) != KG_OK || strcmp(cc->kind, "gcc") != 0 ||
        !(cache = kg_cache_dir()))
        return false;
    kg_buf_init(&b, 0);
    kg_put_str(&b, HEADERS_RULES);
    kg_put_str(&b, cc->path);
    kg_put_str(&b, cc->version);
    kg_put_str(&b, kg_cc_flags(arch, flags, text, sizeof text));
    kg_buf_add(&b, lines, n);
    kg_hash128_hex(kg_xxh128(b.data, b.len), hex);
    int size = kg_buf_check(&b, path, NULL) == KG_OK
                   ? snprintf(path, KG_IMAGE_PATH, "%s/headers/%s.h", cache, hex)
                   : -1;
    kg_buf_free(&b);
    free(cache);
    return size > 0 && size < KG_IMAGE_PATH - 8;
}

/* Looks each up in the list, and the others through once. */
static bool is_whole(const char *file) {
    kg_hash128 name = kg_xxh128(file, strlen(file));
    bool whole = false;
    pthread_mutex_lock(&known_lock);
    for (size_t i = 0; i < nknown && !whole; i++)
        whole = known[i].lo == name.lo && known[i].hi == name.hi;
    pthread_mutex_unlock(&known_lock);
    if (whole)
        return true;
    kg_buf bytes;
    kg_buf_init(&bytes, KG_MAX_IMAGE);
    whole = kg_image_read(file, &bytes);
    kg_buf_free(&bytes);
    pthread_mutex_lock(&known_lock);
    if (whole && nknown < MOST_KNOWN)
        known[nknown++] = name;
    pthread_mutex_unlock(&known_lock);
    return whole;
}

static void compiled_name(const char *path, char file[KG_IMAGE_PATH]) {
    snprintf(file, KG_IMAGE_PATH, "%.*s.gch", KG_IMAGE_PATH - 8, path);
}

bool kg_headers_find(const char *source, size_t n, const char *arch, unsigned flags,
                     char path[KG_IMAGE_PATH]) {
    char file[KG_IMAGE_PATH];
    if (!path_of(source, include_lines(source, n), arch, flags, path))
        return false;
    compiled_name(path, file);
    return kg_is_file(file) && kg_is_file(path) && is_whole(file);
}

/* The header itself comes last: without it nothing is looked for. */
static void *make(void *job_) {
    kg_headers_job *job = job_;
    char file[KG_IMAGE_PATH];
    kg_buf bytes;
    kg_buf_init(&bytes, KG_MAX_IMAGE);
    compiled_name(job->path, file);
    bool ok = kg_cc_headers(job->text.data, job->text.len, job->arch, job->flags, &bytes, NULL) ==
                  KG_OK &&
              kg_image_write(file, &bytes) &&
              kg_write_derived(job->path, job->text.data, job->text.len, NULL) == KG_OK;
    if (!ok)
        atomic_store(&failed, true);
    kg_buf_free(&bytes);
    return NULL;
}

static void job_free(kg_headers_job *job) {
    kg_buf_free(&job->text);
    free(job);
    atomic_store(&at_work, false);
}

kg_headers_job *kg_headers_begin(const char *source, size_t n, const char *arch, unsigned flags) {
    char path[KG_IMAGE_PATH];
    size_t lines = include_lines(source, n);
    if (atomic_load(&failed) || kg_headers_find(source, n, arch, flags, path) ||
        !path_of(source, lines, arch, flags, path) || atomic_exchange(&at_work, true))
        return NULL;
    kg_headers_job *job = calloc(1, sizeof *job);
    if (!job) {
        atomic_store(&at_work, false);
        return NULL;
    }
    job->flags = flags;
    snprintf(job->path, sizeof job->path, "%s", path);
    snprintf(job->arch, sizeof job->arch, "%s", arch);
    kg_buf_init(&job->text, 0);
    if (kg_buf_add(&job->text, source, lines) != KG_OK ||
        pthread_create(&job->thread, NULL, make, job) != 0) {
        job_free(job);
        return NULL;
    }
    return job;
}

void kg_headers_end(kg_headers_job *job) {
    if (!job)
        return;
    pthread_join(job->thread, NULL);
    job_free(job);
}
