/* The public C API of libkgen_rt.so: argument checks and memory, no work of its own. */
#include "kgen.h"

#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/log.h"
#include "runtime/shim.h"
#include "runtime/snapshot.h"
#include "sys/nvrtc.h"

/* Takes the text; *out is the caller's. */
static int give_text(int rc, kg_buf *text, char **out, kg_error *e, char *err, size_t nerr) {
    if (rc == KG_OK)
        rc = kg_buf_check(text, "an answer", e);
    char *taken = rc == KG_OK ? kg_buf_take(text) : NULL;
    if (rc == KG_OK && taken == NULL)
        rc = kg_fail(e, KG_ENOMEM, "no memory for an answer");
    if (rc == KG_OK)
        *out = taken;
    kg_buf_free(text);
    return kg_give(rc, e, err, nerr);
}

static _Atomic(void (*)(int, const char *)) the_sink;

void kgen_rt_on_message(void (*sink)(int level, const char *message)) {
    atomic_store(&the_sink, sink);
}

void kgen_rt_on_load(int (*hook)(int loaded, int device, char *err, size_t nerr)) {
    kg_launch_on_load(hook);
}

static void to_stderr(kg_log_level level, const char *message) {
    const char *value = getenv("KGEN_LOG");
    bool debug = value != NULL && strcmp(value, "debug") == 0;
    bool info = debug || (value != NULL && strcmp(value, "info") == 0);
    if (level == KG_LOG_DEBUG ? debug : info)
        fprintf(stderr, "kgen: %s\n", message);
}

static void to_host(void *ctx, kg_log_level level, const char *message) {
    void (*sink)(int, const char *) = atomic_load(&the_sink);
    char text[2200];
    (void)ctx;
    if (level < KG_LOG_WARNING) {
        to_stderr(level, message);
    } else if (sink != NULL) {
        sink((int)level, message);
    } else {
        snprintf(text, sizeof(text), "kgen: %s", message);
        kg_th.aoti_torch_warn("kgen", "kgen", 0, text);
    }
}

const char *kgen_rt_version(void) {
    return KGEN_VERSION;
}

void kgen_rt_free(void *p) {
    free(p);
}

/* torch/lib/libtorch_cpu.so lies in the folder of the packages that hold NVRTC. */
static void search_packages(const char *libtorch_cpu) {
    char folder[4096];
    if (libtorch_cpu == NULL ||
        snprintf(folder, sizeof(folder), "%s", libtorch_cpu) >= (int)sizeof(folder))
        return;
    for (int up = 0; up < 3; up++) {
        char *slash = strrchr(folder, '/');
        if (slash == NULL || slash == folder)
            return;
        *slash = '\0';
    }
    kg_nvrtc_search(folder);
}

int kgen_rt_start(const char *libtorch_cpu, const char *torch_version, char *err, size_t nerr) {
    static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
    static bool started;
    kg_error e;
    pthread_mutex_lock(&lock);
    int rc = started ? KG_OK : kg_torch_load(libtorch_cpu, &e);
    if (rc == KG_OK && !started) {
        void (*host)(void *, kg_log_level, const char *) = to_host;
        void *ctx;
        memcpy(&ctx, &host, sizeof(ctx));
        kg_log_set_sink(kg_deferred_sink, ctx);
        search_packages(libtorch_cpu);
        rc = kg_rt_start(&kg_torch_host, torch_version, &e);
        if (rc == KG_OK)
            rc = kg_shim_define("_fallback(Tensor[] inputs, int call) -> Tensor[]", &e);
        if (rc == KG_OK)
            rc = kg_shim_softmax(&e);
        if (rc == KG_OK)
            rc = kg_shim_attention(&e);
        if (rc == KG_OK)
            rc = kg_shim_norm(&e);
        if (rc == KG_OK)
            rc = kg_shim_linear(&e);
        if (rc == KG_OK)
            rc = kg_shim_conv(&e);
        started = rc == KG_OK;
    }
    pthread_mutex_unlock(&lock);
    return kg_give(rc, &e, err, nerr);
}

int kgen_rt_add(const char *registry, int front, char *err, size_t nerr) {
    kg_error e;
    return kg_give(kg_rt_add_registry(registry, front != 0, &e), &e, err, nerr);
}

int kgen_rt_remove(const char *registry, char *err, size_t nerr) {
    kg_error e;
    return kg_give(kg_rt_remove_registry(registry, &e), &e, err, nerr);
}

int kgen_rt_reload(char *err, size_t nerr) {
    kg_error e;
    return kg_give(kg_rt_reload(&e), &e, err, nerr);
}

int kgen_rt_policy(const char *policy, const char **now, char *err, size_t nerr) {
    kg_error e;
    int rc = policy != NULL ? kg_rt_set_policy(policy, &e) : KG_OK;
    if (rc == KG_OK && now != NULL)
        *now = kg_rt_policy();
    return kg_give(rc, &e, err, nerr);
}

int kgen_rt_precision(int precision) {
    return precision < 0 ? kg_rt_precision() : kg_rt_set_precision(precision);
}

int kgen_rt_define(const char *name, char *err, size_t nerr) {
    kg_error e;
    return kg_give(kg_shim_own_op(name, &e), &e, err, nerr);
}

int kgen_rt_contract(const char *name, char **json, char *err, size_t nerr) {
    kg_error e;
    kg_buf text;
    kg_buf_init(&text, 0);
    return give_text(kg_rt_contract(name, &text, &e), &text, json, &e, err, nerr);
}

int kgen_rt_describe(char **json, char *err, size_t nerr) {
    kg_error e;
    kg_buf text;
    kg_buf_init(&text, 0);
    return give_text(kg_rt_describe(&text, &e), &text, json, &e, err, nerr);
}

void kgen_rt_explain_begin(void) {
    kg_rt_explain_begin();
}

int kgen_rt_explain_end(char **json, char *err, size_t nerr) {
    kg_error e;
    kg_buf text;
    kg_buf_init(&text, 0);
    return give_text(kg_rt_explain_end(&text, &e), &text, json, &e, err, nerr);
}

int kgen_rt_fallback(int64_t call, char **json, char *err, size_t nerr) {
    kg_error e;
    kg_buf text;
    kg_buf_init(&text, 0);
    return give_text(kg_shim_python_call(call, &text, &e), &text, json, &e, err, nerr);
}

void kgen_rt_count(uint64_t out[4]) {
    kg_rt_counters c;
    kg_rt_count(&c);
    out[0] = c.served;
    out[1] = c.fallbacks;
    out[2] = c.resolved;
    out[3] = c.classes;
}
