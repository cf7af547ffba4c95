/* A lock within the process, where the one who times goes before those who wait to compile, and the
 * machine's lock between processes. */
#include "tune/exclusive.h"

#include <pthread.h>

#include "base/fs.h"

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

int kg_timing_begin(kg_error *err) {
    pthread_mutex_lock(&mutex);
    waiting++;
    while (timing || busy)
        pthread_cond_wait(&changed, &mutex);
    waiting--;
    timing = 1;
    pthread_mutex_unlock(&mutex);
    int rc = kg_lock_device_wait("cpu", &file, err);
    if (rc != KG_OK) {
        file = -1;
        kg_timing_end();
    }
    return rc;
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
