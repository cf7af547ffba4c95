/* Tells whether a registry changed since its index was derived, from names, times, sizes and inodes
 * alone: it opens folders and reads no file. Most of its time is system calls, so it makes few:
 * getdents64 without stdio around it, and an arch folder is looked at and not read, since its time
 * shows Candidates come and go. */
#include "runtime/index.h"

#include <dirent.h>
#include <fcntl.h>
#include <limits.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

/* What getdents64 fills in; glibc's struct dirent is the same, but is not promised to be. */
struct entry {
    uint64_t inode;
    int64_t next;
    unsigned short size;
    unsigned char type;
    char name[];
};

typedef struct folder {
    int fd;
    char buffer[16384] __attribute__((aligned(8)));
    long filled, at;
} folder;

static uint64_t mark(const char *name, const struct stat *st, uint64_t salt) {
    struct {
        uint64_t salt, name, seconds, nanoseconds, size, inode;
    } facts = {salt,
               kg_xxh64(name, strlen(name)),
               (uint64_t)st->st_mtim.tv_sec,
               (uint64_t)st->st_mtim.tv_nsec,
               S_ISDIR(st->st_mode) ? 0 : (uint64_t)st->st_size,
               (uint64_t)st->st_ino};
    return kg_xxh64(&facts, sizeof(facts));
}

/* 0 when it is not there. */
static uint64_t look(int at, const char *path, uint64_t salt) {
    struct stat st;
    return fstatat(at, path, &st, 0) == 0 ? mark(path, &st, salt) : 0;
}

/* The mark of the folder, 0 when it cannot be opened; then f is closed. */
static uint64_t enter(folder *f, int at, const char *path, uint64_t salt) {
    struct stat st;
    f->filled = f->at = 0;
    f->fd = openat(at, path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (f->fd < 0)
        return 0;
    if (fstat(f->fd, &st) == 0)
        return mark(path, &st, salt);
    close(f->fd);
    return 0;
}

/* The next name that does not start with a dot, NULL at the end. */
static const struct entry *next(folder *f) {
    for (;;) {
        if (f->at >= f->filled) {
            f->filled = syscall(SYS_getdents64, f->fd, f->buffer, sizeof(f->buffer));
            f->at = 0;
            if (f->filled <= 0)
                return NULL;
        }
        const struct entry *e = (const void *)(f->buffer + f->at);
        f->at += e->size;
        if (e->name[0] != '.')
            return e;
    }
}

/* Sums, so that the order in which a folder lists its names does not matter. */
static uint64_t scan_pins(int op, const char *arch, uint64_t salt) {
    char path[300];
    folder f;
    if (snprintf(path, sizeof(path), "%s/pins", arch) >= (int)sizeof(path))
        return 0;
    uint64_t here = enter(&f, op, path, salt), sum = here;
    if (here == 0)
        return 0;
    for (const struct entry *e; (e = next(&f)) != NULL;)
        sum += look(f.fd, e->name, here);
    close(f.fd);
    return sum;
}

static uint64_t scan_op(int registry, const char *op, uint64_t salt) {
    folder f;
    uint64_t here = enter(&f, registry, op, salt), sum = here;
    if (here == 0)
        return 0;
    for (const struct entry *e; (e = next(&f)) != NULL;) {
        uint64_t mine = look(f.fd, e->name, here);
        sum += mine;
        if (e->type != DT_REG)
            sum += scan_pins(f.fd, e->name, mine);
    }
    close(f.fd);
    return sum;
}

/* ---- several threads ---- */

/* System calls on different folders do not wait for each other, so a large registry is looked at by
 * several threads; below this many Ops a thread costs more than it spares. */
#define OPS_A_THREAD 12
#define MAX_THREADS 4

typedef struct ops {
    int registry;
    uint64_t salt;
    char (*names)[NAME_MAX + 1];
    size_t n, capacity;
    atomic_size_t taken;
    _Atomic uint64_t sum;
} ops;

static bool add_name(ops *o, const char *name) {
    if (o->n == o->capacity) {
        size_t capacity = o->capacity > 0 ? 2 * o->capacity : 64;
        void *grown = realloc(o->names, capacity * sizeof(*o->names));
        if (grown == NULL)
            return false;
        o->names = grown;
        o->capacity = capacity;
    }
    snprintf(o->names[o->n++], sizeof(*o->names), "%s", name);
    return true;
}

static void *scan_ops(void *ctx) {
    ops *o = ctx;
    uint64_t sum = 0;
    for (size_t i; (i = atomic_fetch_add(&o->taken, 1)) < o->n;)
        sum += scan_op(o->registry, o->names[i], o->salt);
    atomic_fetch_add(&o->sum, sum);
    return NULL;
}

static void scan_together(ops *o) {
    pthread_t threads[MAX_THREADS - 1];
    size_t n = 0;
    while (n < MAX_THREADS - 1 && (n + 1) * OPS_A_THREAD < o->n &&
           pthread_create(&threads[n], NULL, scan_ops, o) == 0)
        n++;
    scan_ops(o);
    for (size_t i = 0; i < n; i++)
        pthread_join(threads[i], NULL);
}

uint64_t kg_registry_fingerprint(const char *registry) {
    folder f;
    ops o = {.salt = enter(&f, AT_FDCWD, registry, 0)};
    if (o.salt == 0)
        return 0;
    o.registry = f.fd;
    for (const struct entry *e; (e = next(&f)) != NULL;)
        if (e->type != DT_REG && !add_name(&o, e->name))
            o.sum += scan_op(f.fd, e->name, o.salt);
    scan_together(&o);
    close(f.fd);
    free(o.names);
    uint64_t sum = o.salt + o.sum;
    return sum != 0 ? sum : 1;
}
