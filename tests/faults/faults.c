/* The wrapped calls. Each asks whether it is the one that fails. */
#define _GNU_SOURCE
#include "faults.h"

#include <cjson/cJSON.h>
#include <errno.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static atomic_uint armed, left;
static atomic_bool met;
static fault_mode how;
/* A disk fills up in the middle of a write: half is taken, and the next call on that file finds no
 * room. */
static atomic_int full = -1;

static bool strikes(unsigned kind) {
    if (!(atomic_load(&armed) & kind))
        return false;
    unsigned before = atomic_load(&left);
    while (before > 1)
        if (atomic_compare_exchange_weak(&left, &before, before - 1))
            return false;
    if (before == 0 ||
        (before == 1 && how != FAULT_EVER && !atomic_compare_exchange_strong(&left, &before, 0)))
        return false;
    atomic_store(&met, true);
    if (how == FAULT_KILL)
        kill(getpid(), SIGKILL);
    return true;
}

void fault_arm(unsigned kinds, unsigned n, fault_mode mode) {
    how = mode;
    atomic_store(&met, false);
    atomic_store(&left, n);
    atomic_store(&armed, kinds);
}

bool fault_disarm(void) {
    atomic_store(&armed, 0);
    atomic_store(&full, -1);
    return atomic_load(&met);
}

unsigned fault_stride(unsigned short_of_all) {
    const char *asked = getenv("KGEN_FAULTS");
    return asked && strcmp(asked, "all") == 0 ? 1 : short_of_all;
}

void *__real_malloc(size_t n);
void *__real_calloc(size_t n, size_t size);
void *__real_realloc(void *p, size_t n);
char *__real_strdup(const char *s);
char *__real_strndup(const char *s, size_t n);
ssize_t __real_write(int fd, const void *p, size_t n);
ssize_t __real_pwrite(int fd, const void *p, size_t n, off_t at);
int __real_fsync(int fd);
int __real_fdatasync(int fd);
int __real_rename(const char *from, const char *to);
int __real_clone(int (*fn)(void *), void *stack, int flags, void *arg, ...);

void *__wrap_malloc(size_t n);
void *__wrap_calloc(size_t n, size_t size);
void *__wrap_realloc(void *p, size_t n);
char *__wrap_strdup(const char *s);
char *__wrap_strndup(const char *s, size_t n);
ssize_t __wrap_write(int fd, const void *p, size_t n);
ssize_t __wrap_pwrite(int fd, const void *p, size_t n, off_t at);
int __wrap_fsync(int fd);
int __wrap_fdatasync(int fd);
int __wrap_rename(const char *from, const char *to);
int __wrap_clone(int (*fn)(void *), void *stack, int flags, void *arg, ...);

static bool no_memory(void) {
    if (!strikes(FAULT_MALLOC))
        return false;
    errno = ENOMEM;
    return true;
}

void *__wrap_malloc(size_t n) {
    return no_memory() ? NULL : __real_malloc(n);
}

void *__wrap_calloc(size_t n, size_t size) {
    return no_memory() ? NULL : __real_calloc(n, size);
}

void *__wrap_realloc(void *p, size_t n) {
    return no_memory() ? NULL : __real_realloc(p, n);
}

char *__wrap_strdup(const char *s) {
    return no_memory() ? NULL : __real_strdup(s);
}

char *__wrap_strndup(const char *s, size_t n) {
    return no_memory() ? NULL : __real_strndup(s, n);
}

ssize_t __wrap_write(int fd, const void *p, size_t n) {
    int there = fd;
    if (atomic_compare_exchange_strong(&full, &there, -1)) {
        errno = ENOSPC;
        return -1;
    }
    if (!strikes(FAULT_WRITE))
        return __real_write(fd, p, n);
    if (n < 2) {
        errno = ENOSPC;
        return -1;
    }
    atomic_store(&full, fd);
    return __real_write(fd, p, n / 2);
}

ssize_t __wrap_pwrite(int fd, const void *p, size_t n, off_t at) {
    if (strikes(FAULT_WRITE)) {
        errno = ENOSPC;
        return -1;
    }
    return __real_pwrite(fd, p, n, at);
}

int __wrap_fsync(int fd) {
    if (!strikes(FAULT_SYNC))
        return __real_fsync(fd);
    errno = EIO;
    return -1;
}

int __wrap_fdatasync(int fd) {
    if (!strikes(FAULT_SYNC))
        return __real_fdatasync(fd);
    errno = EIO;
    return -1;
}

int __wrap_rename(const char *from, const char *to) {
    if (!strikes(FAULT_RENAME))
        return __real_rename(from, to);
    errno = EIO;
    return -1;
}

/* How proc.c starts a child. */
int __wrap_clone(int (*fn)(void *), void *stack, int flags, void *arg, ...) {
    if (!strikes(FAULT_FORK))
        return __real_clone(fn, stack, flags, arg);
    errno = EAGAIN;
    return -1;
}

__attribute__((constructor)) static void give_cjson_our_malloc(void) {
    cJSON_Hooks hooks = {.malloc_fn = __wrap_malloc, .free_fn = free};
    cJSON_InitHooks(&hooks);
}
