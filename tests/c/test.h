/* The C tests' harness. A file of tests needs nothing but this header and TEST:
 *
 *     TEST(expr_floors) { CHECK_INT(eval("-7 / 2"), -4); }
 *
 * Each test runs in a process of its own, with a time limit and an empty folder, so that one that
 * crashes, hangs or leaks (under the sanitizers) fails alone. A failed check prints both operands
 * and ends the test; checks do not depend on NDEBUG. */
#ifndef KG_TEST_H
#define KG_TEST_H

#include <math.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/error.h"

typedef struct kg_test {
    const char *name, *file;
    void (*run)(void);
    int seconds; /* the time limit */
    struct kg_test *next;
} kg_test;

void kg_test_add(kg_test *test);

#define TEST_WITHIN(name_, seconds_)                                                               \
    static void test_##name_(void);                                                                \
    __attribute__((constructor)) static void add_##name_(void) {                                   \
        static kg_test test = {                                                                    \
            .name = #name_, .file = __FILE__, .run = test_##name_, .seconds = (seconds_)};         \
        kg_test_add(&test);                                                                        \
    }                                                                                              \
    static void test_##name_(void)
#define TEST(name_) TEST_WITHIN(name_, 60)

/* The running test's own folder, removed after it. */
const char *test_dir(void);
/* test_dir() + "/" + name; kept until the test ends. */
const char *test_path(const char *name);

__attribute__((noreturn, format(printf, 3, 4))) void test_fail(const char *file, int line,
                                                               const char *fmt, ...);
/* Ends the test as neither passed nor failed; the reason is printed. */
__attribute__((noreturn, format(printf, 1, 2))) void test_skip(const char *fmt, ...);

#define FAIL(...) test_fail(__FILE__, __LINE__, __VA_ARGS__)

#define CHECK(cond)                                                                                \
    do {                                                                                           \
        if (!(cond))                                                                               \
            FAIL("%s is false", #cond);                                                            \
    } while (0)

#define CHECK_INT(got, want)                                                                       \
    do {                                                                                           \
        long long got_ = (long long)(got), want_ = (long long)(want);                              \
        if (got_ != want_)                                                                         \
            FAIL("%s is %lld, not %lld", #got, got_, want_);                                       \
    } while (0)

#define CHECK_UINT(got, want)                                                                      \
    do {                                                                                           \
        unsigned long long got_ = (unsigned long long)(got), want_ = (unsigned long long)(want);   \
        if (got_ != want_)                                                                         \
            FAIL("%s is %llu, not %llu", #got, got_, want_);                                       \
    } while (0)

/* NULL equals NULL alone. */
#define CHECK_STR(got, want)                                                                       \
    do {                                                                                           \
        const char *got_ = (got), *want_ = (want);                                                 \
        if (got_ != want_ && (!got_ || !want_ || strcmp(got_, want_) != 0))                        \
            FAIL("%s is \"%s\", not \"%s\"", #got, got_ ? got_ : "(null)",                         \
                 want_ ? want_ : "(null)");                                                        \
    } while (0)

#define CHECK_HAS(got, part)                                                                       \
    do {                                                                                           \
        const char *got_ = (got), *part_ = (part);                                                 \
        if (!got_ || !strstr(got_, part_))                                                         \
            FAIL("%s is \"%s\", which has no \"%s\"", #got, got_ ? got_ : "(null)", part_);        \
    } while (0)

#define CHECK_MEM(got, want, n)                                                                    \
    do {                                                                                           \
        const unsigned char *got_ = (const void *)(got), *want_ = (const void *)(want);            \
        for (size_t at_ = 0, n_ = (n); at_ < n_; at_++)                                            \
            if (got_[at_] != want_[at_])                                                           \
                FAIL("%s and %s differ at byte %zu of %zu: 0x%02x, not 0x%02x", #got, #want, at_,  \
                     n_, (unsigned)got_[at_], (unsigned)want_[at_]);                               \
    } while (0)

/* Absolute; NaN is never near. */
#define CHECK_NEAR(got, want, tolerance)                                                           \
    do {                                                                                           \
        double got_ = (double)(got), want_ = (double)(want), tol_ = (double)(tolerance);           \
        if (!(fabs(got_ - want_) <= tol_))                                                         \
            FAIL("%s is %.17g, not %.17g within %g", #got, got_, want_, tol_);                     \
    } while (0)

/* For calls that take a kg_error: CHECK_OK(kg_mkdirs(path, &err), err). */
#define CHECK_OK(call, err)                                                                        \
    do {                                                                                           \
        int rc_ = (call);                                                                          \
        if (rc_ != KG_OK)                                                                          \
            FAIL("%s: %s: %s", #call, kg_status_name(rc_), (err).msg);                             \
    } while (0)

/* The call fails with this code, and its message has this part. */
#define CHECK_ERR(call, err, want, part)                                                           \
    do {                                                                                           \
        (err).msg[0] = '\0';                                                                       \
        int rc_ = (call);                                                                          \
        if (rc_ != (want))                                                                         \
            FAIL("%s gave %s (%s), not %s", #call, kg_status_name(rc_), (err).msg,                 \
                 kg_status_name(want));                                                            \
        CHECK_HAS((err).msg, (part));                                                              \
    } while (0)

#endif
