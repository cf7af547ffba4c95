/* Status: how our own code says that it failed. A candidate's failure is a verdict, never a status.
 *
 * Functions return KG_OK (0) or a negative code and take a kg_error as their last parameter; it may
 * be NULL. The message names the call that failed and the object it failed on. Out-parameters are
 * written only on success. */
#ifndef KG_BASE_ERROR_H
#define KG_BASE_ERROR_H

#include <stddef.h>

/* X(name, value, text). Values are part of the C API: never reuse one. */
#define KG_STATUS(X)                                                                               \
    X(OK, 0, "ok")                                                                                 \
    X(ENOMEM, -1, "out of memory")                                                                 \
    X(EIO, -2, "input or output failed")                                                           \
    X(EINVAL, -3, "bad argument")                                                                  \
    X(EFORMAT, -4, "malformed input")                                                              \
    X(EVERSION, -5, "format is newer than this kgen")                                              \
    X(EOVERFLOW, -6, "number out of range")                                                        \
    X(ENOTFOUND, -7, "not found")                                                                  \
    X(EEXIST, -8, "already exists")                                                                \
    X(EUNSUPPORTED, -9, "not supported")                                                           \
    X(ETIMEOUT, -10, "timed out")                                                                  \
    X(EENV, -11, "the environment lacks something")                                                \
    X(EBUSY, -12, "in use by another process")                                                     \
    X(ECORRUPT, -13, "hash does not match")                                                        \
    X(EINTR, -14, "interrupted")                                                                   \
    X(ECHILD, -15, "child process failed")                                                         \
    X(ECOMPILE, -16, "the compiler refused the source")                                            \
    X(EAMBIGUOUS, -17, "the name fits more than one")                                              \
    X(EDEVICE, -18, "the device failed")

enum {
#define KG_X(name, value, text) KG_##name = (value),
    KG_STATUS(KG_X)
#undef KG_X
};

typedef struct kg_error {
    int code;
    char msg[512];
} kg_error;

/* Fills err (when it is there) and returns code, so that failing is one statement:
 * return kg_fail(err, KG_EIO, "rename %s: %s", path, strerror(errno)); */
int kg_fail(kg_error *err, int code, const char *fmt, ...) __attribute__((format(printf, 3, 4)));

/* Puts "prefix: " before the message that err holds; keeps the code. Returns err's code, or `code`
 * when err is NULL. */
int kg_fail_prefix(kg_error *err, int code, const char *fmt, ...)
    __attribute__((format(printf, 3, 4)));

/* For the public API, whose callers own a text: rc, with e's message in err (nerr bytes, may be
 * NULL) when it is not KG_OK. */
int kg_give(int rc, const kg_error *e, char *err, size_t nerr);

/* "EIO" and "input or output failed"; "unknown" for a number that is no status. Static strings. */
const char *kg_status_name(int code);
const char *kg_status_text(int code);

#endif
