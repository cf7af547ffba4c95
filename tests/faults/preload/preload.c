/* Fails, or kills at, the N-th write, sync or rename below a folder, in one process: for whole
 * Runs, by LD_PRELOAD (tests/python/test_run_faults.py compiles it). KGEN_FAULT is fail:N or kill:N
 * (N 0: never), KGEN_FAULT_UNDER the folder; KGEN_FAULT_TOLD gets how many such calls there were.
 * The process that is started with them is meant, and none that it starts. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static atomic_long calls;
static long at;
static int kills, active;
static char under[512], told[512];

static void copy_of(char *to, size_t size, const char *name) {
    const char *value = getenv(name);
    snprintf(to, size, "%s", value ? value : "");
}

__attribute__((constructor)) static void begin(void) {
    const char *asked = getenv("KGEN_FAULT");
    if (!asked || strchr(asked, ':') == NULL)
        return;
    active = 1;
    kills = strncmp(asked, "kill", 4) == 0;
    at = strtol(strchr(asked, ':') + 1, NULL, 10);
    copy_of(under, sizeof under, "KGEN_FAULT_UNDER");
    copy_of(told, sizeof told, "KGEN_FAULT_TOLD");
    unsetenv("KGEN_FAULT");
}

__attribute__((destructor)) static void end(void) {
    FILE *f = active && told[0] ? fopen(told, "w") : NULL;
    active = 0;
    if (f) {
        fprintf(f, "%ld\n", atomic_load(&calls));
        fclose(f);
    }
}

/* 1 when this call is to fail. */
static int strikes(const char *path) {
    if (!active || strncmp(path, under, strlen(under)) != 0)
        return 0;
    if (atomic_fetch_add(&calls, 1) + 1 != at)
        return 0;
    if (kills)
        kill(getpid(), SIGKILL);
    return 1;
}

static int strikes_at(int fd) {
    char link[64], path[1024];
    if (!active || fd < 3)
        return 0;
    int e = errno;
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t n = readlink(link, path, sizeof path - 1);
    errno = e;
    if (n <= 0)
        return 0;
    path[n] = '\0';
    return strikes(path);
}

static int failed(int with) {
    errno = with;
    return -1;
}

#define REAL(name, type)                                                                           \
    static type real;                                                                              \
    if (!real) {                                                                                   \
        void *found = dlsym(RTLD_NEXT, name);                                                      \
        memcpy(&real, &found, sizeof real);                                                        \
    }

ssize_t write(int fd, const void *p, size_t n) {
    typedef ssize_t (*type)(int, const void *, size_t);
    REAL("write", type)
    return strikes_at(fd) ? failed(ENOSPC) : real(fd, p, n);
}

int fsync(int fd) {
    typedef int (*type)(int);
    REAL("fsync", type)
    return strikes_at(fd) ? failed(EIO) : real(fd);
}

int fdatasync(int fd) {
    typedef int (*type)(int);
    REAL("fdatasync", type)
    return strikes_at(fd) ? failed(EIO) : real(fd);
}

int rename(const char *from, const char *to) {
    typedef int (*type)(const char *, const char *);
    REAL("rename", type)
    return strikes(to) ? failed(EIO) : real(from, to);
}
