/* Threads for one loop. */
#include "tune/parallel.h"

#include <pthread.h>
#include <stdbool.h>

typedef struct lane {
    pthread_t id;
    bool started;
    size_t part, begin, end;
    kg_part body;
    void *ctx;
} lane;

static void *run(void *arg) {
    lane *l = arg;
    l->body(l->part, l->begin, l->end, l->ctx);
    return NULL;
}

void kg_parallel(size_t n, size_t unit, size_t threads, kg_part body, void *ctx) {
    lane lanes[KG_MAX_PARTS];
    size_t units = n / unit + (n % unit != 0);
    size_t parts = threads < 1 ? 1 : threads > KG_MAX_PARTS ? KG_MAX_PARTS : threads;
    parts = units < parts ? units : parts;
    for (size_t i = 0; i < parts; i++) {
        size_t begin = units * i / parts * unit, end = units * (i + 1) / parts * unit;
        lanes[i] =
            (lane){.part = i, .begin = begin, .end = end < n ? end : n, .body = body, .ctx = ctx};
        if (i > 0)
            lanes[i].started = pthread_create(&lanes[i].id, NULL, run, &lanes[i]) == 0;
    }
    for (size_t i = 0; i < parts; i++)
        if (!lanes[i].started)
            run(&lanes[i]);
    for (size_t i = 1; i < parts; i++)
        if (lanes[i].started)
            pthread_join(lanes[i].id, NULL);
}
