/* Timing excludes what loads the CPU, and the one who times goes first. */
#include "test.h"

#include <pthread.h>
#include <stdatomic.h>
#include <time.h>
#include <unistd.h>

#include "base/fs.h"
#include "base/stop.h"
#include "tune/exclusive.h"

static atomic_int busy, timing, overlaps;

static void nap(void) {
    const struct timespec ms = {.tv_nsec = 1000000};
    nanosleep(&ms, NULL);
}

static void *work(void *arg) {
    (void)arg;
    for (int i = 0; i < 20; i++) {
        kg_busy_begin();
        atomic_fetch_add(&busy, 1);
        overlaps += timing > 0;
        nap();
        overlaps += timing > 0;
        atomic_fetch_sub(&busy, 1);
        kg_busy_end();
    }
    return NULL;
}

TEST(timing_is_alone) {
    kg_error err = {0};
    setenv("KGEN_CACHE", test_path("cache"), 1);
    pthread_t threads[3];
    for (int i = 0; i < 3; i++)
        pthread_create(&threads[i], NULL, work, NULL);
    for (int i = 0; i < 10; i++) {
        CHECK_OK(kg_timing_begin(&err), err);
        timing = 1;
        overlaps += busy > 0;
        nap();
        overlaps += busy > 0;
        timing = 0;
        kg_timing_end();
    }
    for (int i = 0; i < 3; i++)
        pthread_join(threads[i], NULL);
    CHECK_INT(overlaps, 0);
}

TEST(timing_waits_for_other_processes_until_told_to_stop) {
    kg_error err = {0};
    int fd;
    setenv("KGEN_CACHE", test_path("cache"), 1);
    CHECK_OK(kg_timing_begin(&err), err);
    kg_timing_end();
    CHECK_OK(kg_lock_file(test_path("cache/locks/cpu"), 0, &fd, &err), err);
    kg_stop_set(true);
    CHECK_ERR(kg_timing_begin(&err), err, KG_EINTR, "interrupted");
    kg_stop_set(false);
    kg_unlock_file(fd);
    CHECK_OK(kg_timing_begin(&err), err);
    kg_timing_end();
}
