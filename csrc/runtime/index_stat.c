/* Tells whether a registry changed since its index was derived, from names, times and sizes alone:
 * it opens folders and reads no file. A thousand Kernels take about a millisecond. */
#include "runtime/index.h"

#include <dirent.h>
#include <fcntl.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

/* A sum, so that the order in which a folder lists its names does not matter. */
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

static DIR *open_folder(int at, const char *name, struct stat *st) {
    int fd = openat(at, name, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (fd < 0)
        return NULL;
    DIR *d = fstat(fd, st) == 0 ? fdopendir(fd) : NULL;
    if (d == NULL)
        close(fd);
    return d;
}

/* depth 0 is the registry, 1 an Op, 2 an arch, 3 its pins: the only folder below an arch that is
 * opened, since a Candidate's own folder never changes once it is there and the arch folder shows
 * it come and go. */
static uint64_t scan(int at, const char *name, int depth, uint64_t salt) {
    struct stat st;
    DIR *d = open_folder(at, name, &st);
    if (d == NULL)
        return 0;
    uint64_t here = mark(name, &st, salt), sum = here;
    for (struct dirent *e; (e = readdir(d)) != NULL;) {
        if (e->d_name[0] == '.')
            continue;
        bool pins = strcmp(e->d_name, "pins") == 0;
        bool folder = e->d_type == DT_DIR || e->d_type == DT_UNKNOWN || e->d_type == DT_LNK;
        if (depth < 2 && folder)
            sum += scan(dirfd(d), e->d_name, depth + 1, here);
        else if (depth == 2 && pins)
            sum += scan(dirfd(d), e->d_name, 3, here);
        if ((depth == 3 || (depth == 1 && strcmp(e->d_name, "op.json") == 0)) &&
            fstatat(dirfd(d), e->d_name, &st, 0) == 0)
            sum += mark(e->d_name, &st, here);
    }
    closedir(d);
    return sum != 0 ? sum : 1;
}

uint64_t kg_registry_fingerprint(const char *registry) {
    return scan(AT_FDCWD, registry, 0, 0);
}
