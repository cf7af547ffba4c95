/* NVML's numbers as JSON, and which processes on a GPU are not kgen's own. */
#include "tune/watch.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/fs.h"

/* Deeper than any chain of parents that a tuner stands in. */
enum { MOST_PROCESSES = 64, MOST_PARENTS = 64 };

void kg_watch_begin(kg_watch *w, const kg_cuda_device *d) {
    w->told = kg_nvml_read(d->uuid, &w->before, NULL) == KG_OK;
}

void kg_watch_end(kg_watch *w, const kg_cuda_device *d) {
    w->told = w->told && kg_nvml_read(d->uuid, &w->after, NULL) == KG_OK;
}

bool kg_watch_slowed(const kg_watch *w) {
    return w->told && kg_nvml_slowed(&w->before, &w->after);
}

static void set_number(kg_json *o, const char *key, int value) {
    if (value >= 0)
        kg_json_set_int(o, key, value);
}

kg_json *kg_watch_state(const kg_nvml_state *s) {
    kg_json *o = kg_json_new_object();
    set_number(o, "sm_mhz", s->sm_mhz);
    set_number(o, "memory_mhz", s->memory_mhz);
    set_number(o, "temperature_c", s->temperature_c);
    if (s->power_mw >= 0)
        kg_json_set_double(o, "power_w", s->power_mw / 1000.0);
    if (!s->reasons_told)
        return o;
    kg_json *list = kg_json_new_array();
    uint64_t bit;
    const char *name;
    for (size_t i = 0; (name = kg_nvml_reason(i, &bit)) != NULL; i++)
        if (s->reasons & bit)
            kg_json_push_str(list, name);
    kg_json_set(o, "throttle", list);
    return o;
}

/* A process's parent and name; false when there is no such process here. */
static bool look_at(long pid, long *parent, char name[32]) {
    char path[64];
    kg_buf text;
    snprintf(path, sizeof path, "/proc/%ld/stat", pid);
    kg_buf_init(&text, 0);
    bool ok = kg_read_file(path, 4096, &text, NULL) == KG_OK && text.data;
    const char *open = ok ? strchr(text.data, '(') : NULL,
               *close = ok ? strrchr(text.data, ')') : NULL;
    ok = open && close && open < close && sscanf(close + 1, " %*c %ld", parent) == 1;
    if (ok)
        snprintf(name, 32, "%.*s", (int)(close - open - 1), open + 1);
    kg_buf_free(&text);
    return ok;
}

/* Whether `of` is the process itself or stands above it. */
static bool descends(long pid, long of) {
    char name[32];
    for (int i = 0; i < MOST_PARENTS && pid > 0; i++) {
        if (pid == of)
            return true;
        if (!look_at(pid, &pid, name))
            return false;
    }
    return false;
}

static void push_process(kg_json *list, long pid) {
    char name[32], text[80];
    long parent;
    if (look_at(pid, &parent, name))
        snprintf(text, sizeof text, "process %ld (%s)", pid, name);
    else
        snprintf(text, sizeof text, "process %ld", pid);
    kg_json_push_str(list, text);
}

kg_json *kg_watch_foreign(const kg_cuda_device *d) {
    uint32_t pids[MOST_PROCESSES];
    size_t n = 0;
    long own = (long)getpid();
    bool known = false;
    if (kg_nvml_processes(d->uuid, pids, MOST_PROCESSES, &n, NULL) != KG_OK)
        return NULL;
    for (size_t i = 0; i < n; i++)
        known = known || (long)pids[i] == own;
    kg_json *list = known ? kg_json_new_array() : NULL;
    for (size_t i = 0; known && i < n; i++)
        if (!descends((long)pids[i], own) && !descends(own, (long)pids[i]))
            push_process(list, (long)pids[i]);
    return list;
}

void kg_watch_keep(const kg_watch *w, const kg_cuda_device *d, kg_json *to) {
    if (w->told) {
        kg_json_set(to, "before", kg_watch_state(&w->before));
        kg_json_set(to, "after", kg_watch_state(&w->after));
    }
    kg_json *foreign = kg_watch_foreign(d);
    if (foreign)
        kg_json_set(to, "foreign", foreign);
}
