/* A lock within the process, where the one who times goes before those who wait to compile, and a
 * file lock between processes (<cache>/locks/cpu). */
#define _GNU_SOURCE
#include "tune/exclusive.h"

#include <pthread.h>
#include <stdlib.h>
#include <unistd.h>

#include "base/fs.h"
#include "base/log.h"
#include "base/stop.h"

enum { SLICE_MS = 100 };

static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t changed = PTHREAD_COND_INITIALIZER;
static unsigned busy, waiting, timing;
static int file = -1;

void kg_busy_begin(void) {
    pthread_mutex_lock(&mutex);
    while (timing || waiting)
        pthread_cond_wait(&changed, &mutex);
    busy++;
    pthread_mutex_unlock(&mutex);
}

void kg_busy_end(void) {
    pthread_mutex_lock(&mutex);
    busy--;
    pthread_cond_broadcast(&changed);
    pthread_mutex_unlock(&mutex);
}

static char *lock_path(void) {
    char *cache = kg_cache_dir(), *folder = cache ? kg_path_join(cache, "locks") : NULL;
    char *path = folder && kg_mkdirs(folder, NULL) == KG_OK ? kg_path_join(folder, "cpu") : NULL;
    free(cache);
    free(folder);
    return path;
}

/* The descriptor, -1 when there is no file to lock, or KG_EINTR. */
static int lock_file(kg_error *err) {
    char *path = lock_path();
    int fd = -1, rc = path ? KG_EBUSY : KG_EIO;
    while (rc == KG_EBUSY) {
        if (kg_stop_wanted()) {
            free(path);
            return kg_fail(err, KG_EINTR, "interrupted");
        }
        rc = kg_lock_file(path, SLICE_MS, &fd, NULL);
        if (rc == KG_EBUSY)
            kg_log_once(KG_LOG_INFO, "another kgen process times on this CPU; waiting for it");
    }
    free(path);
    return rc == KG_OK ? fd : -1;
}

int kg_timing_begin(kg_error *err) {
    pthread_mutex_lock(&mutex);
    waiting++;
    while (timing || busy)
        pthread_cond_wait(&changed, &mutex);
    waiting--;
    timing = 1;
    pthread_mutex_unlock(&mutex);
    int fd = lock_file(err);
    if (fd == KG_EINTR) {
        kg_timing_end();
        return KG_EINTR;
    }
    file = fd;
    return KG_OK;
}

void kg_timing_end(void) {
    if (file >= 0)
        kg_unlock_file(file);
    file = -1;
    pthread_mutex_lock(&mutex);
    timing = 0;
    pthread_cond_broadcast(&changed);
    pthread_mutex_unlock(&mutex);
}
