/* Messages of failures, hashes with published values, and the log. */
#include <errno.h>
#include <pthread.h>
#include <unistd.h>

#include "base/fs.h"
#include "base/hash.h"
#include "base/log.h"
#include "test.h"

TEST(error_fills_and_returns) {
    kg_error err = {0};
    errno = ENOSPC;
    CHECK_INT(kg_fail(&err, KG_EIO, "write %s: %d", "a.json", 7), KG_EIO);
    CHECK_INT(errno, ENOSPC);
    CHECK_INT(err.code, KG_EIO);
    CHECK_STR(err.msg, "write a.json: 7");
    CHECK_INT(kg_fail(NULL, KG_EINVAL, "%s", "x"), KG_EINVAL);
}

TEST(error_prefix_keeps_the_code) {
    kg_error err = {0};
    kg_fail(&err, KG_ENOTFOUND, "no dim %s", "Q");
    CHECK_INT(kg_fail_prefix(&err, KG_EIO, "plan of %s", "a.c"), KG_ENOTFOUND);
    CHECK_STR(err.msg, "plan of a.c: no dim Q");
    CHECK_INT(kg_fail_prefix(NULL, KG_EIO, "x"), KG_EIO);
    kg_error blank = {0};
    CHECK_INT(kg_fail_prefix(&blank, KG_EBUSY, "lock"), KG_EBUSY);
    CHECK_STR(blank.msg, "lock: in use by another process");
}

TEST(error_may_quote_itself) {
    kg_error err = {0};
    kg_fail(&err, KG_EIO, "inner");
    kg_fail(&err, KG_ECHILD, "outer (%s)", err.msg);
    CHECK_STR(err.msg, "outer (inner)");
}

TEST(error_long_messages_are_cut_between_characters) {
    char text[2048];
    for (size_t shift = 0; shift < 3; shift++) {
        memset(text, 'a', shift);
        for (size_t i = shift; i + 3 < sizeof text; i += 3)
            memcpy(text + i, "\xE2\x82\xAC", 4); /* the euro sign */
        kg_error err = {0};
        kg_fail(&err, KG_EIO, "%s", text);
        size_t n = strlen(err.msg);
        CHECK(n < sizeof err.msg && n > sizeof err.msg - 8);
        CHECK_STR(err.msg + n - 6, "\xE2\x82\xAC...");
    }
    kg_error err = {0};
    memset(text, 'x', sizeof text);
    text[511] = '\0';
    kg_fail(&err, KG_EIO, "%s", text);
    CHECK_UINT(strlen(err.msg), 511);
    CHECK_STR(err.msg, text);
}

TEST(error_statuses_have_names) {
    CHECK_STR(kg_status_name(KG_OK), "OK");
    CHECK_STR(kg_status_name(KG_EAMBIGUOUS), "EAMBIGUOUS");
    CHECK_STR(kg_status_text(KG_EIO), "input or output failed");
    CHECK_STR(kg_status_name(-1000), "unknown");
    CHECK_STR(kg_status_text(1), "unknown");
}

TEST(hash_sha256_of_the_standard) {
    char hex[65];
    kg_sha256_hex("", 0, hex);
    CHECK_STR(hex, "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855");
    kg_sha256_hex("abc", 3, hex);
    CHECK_STR(hex, "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
    char *million = malloc(1000000);
    CHECK(million != NULL);
    memset(million, 'a', 1000000);
    kg_sha256_hex(million, 1000000, hex);
    CHECK_STR(hex, "cdc76e5c9914fb9281a1c7e284d73e67f1809a48a497200e046d39ccc7112cd0");
    kg_sha256_hex(million, 1000, hex); /* whole blocks, and a rest */
    free(million);
    CHECK_STR(hex, "41edece42d63e8d9bf515a9ba6932e1c20cbc9f5a5d134645adb5db1b9737ea3");
}

/* Values of `xxhsum -H3` and `xxhsum -H2`; they are in files, so they may never change. */
TEST(hash_xxh3_is_the_published_one) {
    char hex[33];
    CHECK_UINT(kg_xxh64("", 0), 0x2d06800538d394c2u);
    kg_hash128_hex(kg_xxh128("", 0), hex);
    CHECK_STR(hex, "99aa06d3014798d86001c324468d497f");
    CHECK_UINT(kg_xxh64("abc", 3), 0x78af5f94892f3950u);
    kg_hash128_hex(kg_xxh128("abc", 3), hex);
    CHECK_STR(hex, "06b05ab6733a618578af5f94892f3950");
}

typedef struct heard {
    pthread_mutex_t lock;
    int count;
    kg_log_level level;
    char last[4096];
} heard;

static void hear(void *ctx, kg_log_level level, const char *message) {
    heard *h = ctx;
    pthread_mutex_lock(&h->lock);
    h->count++;
    h->level = level;
    snprintf(h->last, sizeof h->last, "%s", message);
    pthread_mutex_unlock(&h->lock);
}

TEST(log_goes_to_the_sink) {
    heard h = {.lock = PTHREAD_MUTEX_INITIALIZER};
    kg_log_set_sink(hear, &h);
    kg_log(KG_LOG_WARNING, "torn %s", "pin");
    CHECK_INT(h.count, 1);
    CHECK_INT(h.level, KG_LOG_WARNING);
    CHECK_STR(h.last, "torn pin");
    char text[5000];
    memset(text, 'y', sizeof text - 1);
    text[sizeof text - 1] = '\0';
    kg_log(KG_LOG_INFO, "%s", text);
    CHECK_STR(h.last + strlen(h.last) - 4, "y...");
    kg_log_set_sink(NULL, NULL);
    kg_log(KG_LOG_INFO, "unheard");
    CHECK_INT(h.count, 2);
}

static void *say_once(void *unused) {
    (void)unused;
    for (int i = 0; i < 50; i++)
        kg_log_once(KG_LOG_WARNING, "message %d", i);
    return NULL;
}

TEST(log_once_is_once_from_all_threads) {
    heard h = {.lock = PTHREAD_MUTEX_INITIALIZER};
    kg_log_set_sink(hear, &h);
    pthread_t threads[4];
    for (int i = 0; i < 4; i++)
        CHECK_INT(pthread_create(&threads[i], NULL, say_once, NULL), 0);
    for (int i = 0; i < 4; i++)
        pthread_join(threads[i], NULL);
    CHECK_INT(h.count, 50);
    kg_log_set_sink(NULL, NULL);
}

static void log_from_sink(void *ctx, kg_log_level level, const char *message) {
    int *depth = ctx;
    if ((*depth)++ == 0)
        kg_log_once(level, "from within: %s", message);
}

TEST(log_sink_may_log) {
    int depth = 0;
    kg_log_set_sink(log_from_sink, &depth);
    kg_log(KG_LOG_ERROR, "x");
    CHECK_INT(depth, 2);
    kg_log_set_sink(NULL, NULL);
}

/* What stderr gets from one message of each level. */
static const char *stderr_with(const char *value) {
    static char text[4096];
    const char *path = test_path("stderr");
    if (value)
        setenv("KGEN_LOG", value, 1);
    else
        unsetenv("KGEN_LOG");
    fflush(stderr);
    int saved = dup(2);
    CHECK(freopen(path, "w", stderr) != NULL);
    kg_log(KG_LOG_DEBUG, "d");
    kg_log(KG_LOG_INFO, "i");
    kg_log(KG_LOG_WARNING, "w");
    kg_log(KG_LOG_ERROR, "e");
    fflush(stderr);
    dup2(saved, 2);
    close(saved);
    kg_buf out;
    kg_buf_init(&out, 0);
    CHECK_INT(kg_read_file(path, sizeof text, &out, NULL), KG_OK);
    snprintf(text, sizeof text, "%s", out.data);
    kg_buf_free(&out);
    return text;
}

TEST(log_without_a_sink_asks_the_environment) {
    CHECK_STR(stderr_with(NULL), "");
    CHECK_STR(stderr_with(""), "");
    CHECK_STR(stderr_with("0"), "");
    CHECK_STR(stderr_with("1"), "kgen: warning: w\nkgen: error: e\n");
    CHECK_STR(stderr_with("error"), "kgen: error: e\n");
    CHECK_STR(stderr_with("debug"),
              "kgen: debug: d\nkgen: info: i\nkgen: warning: w\nkgen: error: e\n");
}
