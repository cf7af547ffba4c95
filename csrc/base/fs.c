/* Files: whole reads, writes that survive a crash, journals' appends, and places of the user's own.
 * Refuses to follow links when it removes, to read what is no regular file (a pipe in a registry
 * would hang its readers), and to leave half a file behind. */
#include "base/fs.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <sys/stat.h>
#include <unistd.h>

/* A folder tree of ours is six deep; each level holds a descriptor while it is removed. */
#define TREE_DEPTH_MAX 64

static int fail_errno(kg_error *err, const char *call, const char *path) {
    int e = errno;
    int code = e == ENOENT || e == ENOTDIR ? KG_ENOTFOUND : e == ENOMEM ? KG_ENOMEM : KG_EIO;
    return kg_fail(err, code, "%s %s: %s", call, path, strerror(e));
}

char *kg_path_join(const char *dir, const char *name) {
    size_t n = strlen(dir), m = strlen(name);
    bool slash = n > 0 && dir[n - 1] != '/';
    char *path = malloc(n + slash + m + 1);
    if (!path)
        return NULL;
    memcpy(path, dir, n);
    if (slash)
        path[n] = '/';
    memcpy(path + n + slash, name, m + 1);
    return path;
}

/* Opens without waiting for the other end of a pipe. *size is what the file says, 0 in /proc. */
static int open_regular(const char *path, size_t *size, kg_error *err) {
    int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOCTTY);
    if (fd < 0)
        return fail_errno(err, "open", path);
    struct stat st;
    int status = KG_OK;
    if (fstat(fd, &st) < 0)
        status = fail_errno(err, "stat", path);
    else if (!S_ISREG(st.st_mode))
        status = kg_fail(err, KG_EINVAL, "read %s: it is %s, not a file", path,
                         S_ISDIR(st.st_mode) ? "a folder" : "a device or a pipe");
    if (status < 0) {
        close(fd);
        return status;
    }
    *size = st.st_size > 0 ? (size_t)st.st_size : 0;
    return fd;
}

static int fail_too_large(const char *path, size_t max, kg_error *err) {
    return kg_fail(err, KG_EOVERFLOW, "read %s: larger than %zu bytes", path, max);
}

/* Reads until the end, whatever the size said: the file may be growing. It is asked for a byte more
 * than there should be, and a file that has none is at its end. */
static int read_all(int fd, const char *path, size_t max, size_t size, kg_buf *out, kg_error *err) {
    size_t total = 0, chunk = size > 0 ? size + 1 : 65536;
    for (;;) {
        char *at = kg_buf_reserve(out, chunk);
        if (!at)
            return kg_buf_check(out, path, err);
        ssize_t got;
        do
            got = read(fd, at, chunk);
        while (got < 0 && errno == EINTR);
        size_t used = got > 0 ? (size_t)got : 0;
        out->len -= chunk - used;
        out->data[out->len] = '\0';
        if (got < 0)
            return fail_errno(err, "read", path);
        total += used;
        if (total > max)
            return fail_too_large(path, max, err);
        if (got == 0 || (total == size && used < chunk))
            return KG_OK;
        chunk = used < chunk ? chunk - used : 65536;
    }
}

int kg_read_file(const char *path, size_t max, kg_buf *out, kg_error *err) {
    if (out->status < 0)
        return kg_buf_check(out, path, err);
    size_t size = 0, before = out->len;
    int fd = open_regular(path, &size, err);
    if (fd < 0)
        return fd;
    int status =
        size > max ? fail_too_large(path, max, err) : read_all(fd, path, max, size, out, err);
    close(fd);
    if (status < 0 && out->data) {
        out->len = before;
        out->data[before] = '\0';
    }
    return status;
}

static int write_all(int fd, const void *bytes, size_t n) {
    const char *at = bytes;
    while (n > 0) {
        ssize_t put = write(fd, at, n);
        if (put < 0 && errno == EINTR)
            continue;
        if (put <= 0) {
            errno = put < 0 ? errno : ENOSPC;
            return -1;
        }
        at += put;
        n -= (size_t)put;
    }
    return 0;
}

/* The folder that path lies in; the caller's. */
static char *parent_of(const char *path) {
    size_t n = strlen(path);
    while (n > 1 && path[n - 1] == '/')
        n--;
    while (n > 0 && path[n - 1] != '/')
        n--;
    while (n > 1 && path[n - 1] == '/')
        n--;
    return n ? strndup(path, n) : strdup(".");
}

int kg_sync_dir(const char *path, kg_error *err) {
    int fd = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (fd < 0)
        return fail_errno(err, "open", path);
    /* Some file systems have nothing to sync in a folder and say so. */
    int status = fsync(fd) < 0 && errno != EINVAL && errno != ENOTSUP && errno != EROFS
                     ? fail_errno(err, "fsync", path)
                     : KG_OK;
    close(fd);
    return status;
}

/* A name that no other process takes, on no other machine that shares the folder; list_dir hides
 * it. */
static char *temporary_in(const char *dir) {
    static atomic_uint count;
    unsigned salt = 0;
    if (getrandom(&salt, sizeof salt, GRND_NONBLOCK) < 0)
        salt = (unsigned)getpid();
    char name[64];
    snprintf(name, sizeof name, ".tmp-%ld-%u-%08x", (long)getpid(), atomic_fetch_add(&count, 1),
             salt);
    return kg_path_join(dir, name);
}

static int write_aside(const char *temporary, const void *bytes, size_t n, bool sync,
                       const char *path, kg_error *err) {
    int fd = open(temporary, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0666);
    if (fd < 0)
        return fail_errno(err, "create a file for", path);
    int status = KG_OK;
    if (write_all(fd, bytes, n) < 0)
        status = fail_errno(err, "write", path);
    else if (sync && fsync(fd) < 0)
        status = fail_errno(err, "fsync", path);
    if (close(fd) < 0 && status == KG_OK)
        status = fail_errno(err, "close", path);
    if (status == KG_OK && rename(temporary, path) < 0)
        status = fail_errno(err, "rename to", path);
    if (status < 0)
        unlink(temporary);
    return status;
}

static int write_whole(const char *path, const void *bytes, size_t n, bool sync, kg_error *err) {
    char *dir = parent_of(path);
    char *temporary = dir ? temporary_in(dir) : NULL;
    int status = temporary ? write_aside(temporary, bytes, n, sync, path, err)
                           : kg_fail(err, KG_ENOMEM, "write %s: out of memory", path);
    if (status == KG_OK && sync)
        status = kg_sync_dir(dir, err);
    free(temporary);
    free(dir);
    return status;
}

int kg_write_atomic(const char *path, const void *bytes, size_t n, kg_error *err) {
    return write_whole(path, bytes, n, true, err);
}

int kg_write_derived(const char *path, const void *bytes, size_t n, kg_error *err) {
    return write_whole(path, bytes, n, false, err);
}

static int append(int fd, const void *bytes, size_t n, bool sync, const char *path, kg_error *err) {
    off_t end = lseek(fd, 0, SEEK_END);
    if (end < 0)
        return fail_errno(err, "seek", path);
    int status = KG_OK;
    if (write_all(fd, bytes, n) < 0)
        status = fail_errno(err, "append to", path);
    else if (sync && fdatasync(fd) < 0)
        status = fail_errno(err, "fdatasync", path);
    if (status < 0 && ftruncate(fd, end) < 0)
        kg_fail_prefix(err, status, "a partial record may stand at byte %lld (%s)", (long long)end,
                       strerror(errno));
    return status;
}

int kg_append_sync(int fd, const void *bytes, size_t n, const char *path, kg_error *err) {
    return append(fd, bytes, n, true, path, err);
}

int kg_append(int fd, const void *bytes, size_t n, const char *path, kg_error *err) {
    return append(fd, bytes, n, false, path, err);
}

/* Makes one folder whose parent is there, and syncs the parent, or a crash could lose what is put
 * in. */
static int make_folder(const char *path, kg_error *err) {
    if (mkdir(path, 0777) < 0) {
        int e = errno;
        if (kg_is_dir(path))
            return KG_OK;
        errno = e;
        if (e == EEXIST)
            return kg_fail(err, KG_EEXIST, "mkdir %s: a file is in the way", path);
        return fail_errno(err, "mkdir", path);
    }
    char *dir = parent_of(path);
    int status = dir ? kg_sync_dir(dir, err) : kg_fail(err, KG_ENOMEM, "mkdir %s", path);
    free(dir);
    return status;
}

int kg_mkdirs(const char *path, kg_error *err) {
    if (!*path)
        return kg_fail(err, KG_EINVAL, "mkdir: the path is empty");
    char *part = strdup(path);
    if (!part)
        return kg_fail(err, KG_ENOMEM, "mkdir %s: out of memory", path);
    int status = KG_OK;
    for (size_t i = 1; status == KG_OK && part[i - 1]; i++) {
        if (part[i] != '/' && part[i] != '\0')
            continue;
        char saved = part[i];
        part[i] = '\0';
        if (!kg_is_dir(part))
            status = make_folder(part, err);
        part[i] = saved;
    }
    free(part);
    return status;
}

static int remove_entry(int parent, const char *name, const char *path, size_t depth,
                        kg_error *err);

/* Empties the folder; fd becomes the DIR's. */
static int remove_entries(int fd, const char *path, size_t depth, kg_error *err) {
    DIR *dir = fdopendir(fd);
    if (!dir) {
        close(fd);
        return fail_errno(err, "read", path);
    }
    int status = KG_OK;
    struct dirent *entry;
    while (status == KG_OK && (errno = 0, entry = readdir(dir)) != NULL) {
        if (strcmp(entry->d_name, ".") == 0 || strcmp(entry->d_name, "..") == 0)
            continue;
        char *inner = kg_path_join(path, entry->d_name);
        status = inner ? remove_entry(dirfd(dir), entry->d_name, inner, depth, err)
                       : kg_fail(err, KG_ENOMEM, "remove %s: out of memory", path);
        free(inner);
    }
    if (status == KG_OK && errno != 0)
        status = fail_errno(err, "read", path);
    closedir(dir);
    return status;
}

/* Tried as a file first, so that a link is removed and never followed; path is for messages alone.
 */
static int remove_entry(int parent, const char *name, const char *path, size_t depth,
                        kg_error *err) {
    if (unlinkat(parent, name, 0) == 0 || errno == ENOENT)
        return KG_OK;
    if (errno != EISDIR && errno != EPERM)
        return fail_errno(err, "remove", path);
    if (depth == TREE_DEPTH_MAX)
        return kg_fail(err, KG_EINVAL, "remove %s: nested deeper than %d", path, TREE_DEPTH_MAX);
    int fd = openat(parent, name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
    if (fd < 0)
        return errno == ENOENT ? KG_OK : fail_errno(err, "open", path);
    int status = remove_entries(fd, path, depth + 1, err);
    if (status == KG_OK && unlinkat(parent, name, AT_REMOVEDIR) < 0 && errno != ENOENT)
        status = fail_errno(err, "rmdir", path);
    return status;
}

int kg_remove_tree(const char *path, kg_error *err) {
    char *plain = strdup(path);
    if (!plain)
        return kg_fail(err, KG_ENOMEM, "remove %s: out of memory", path);
    size_t n = strlen(plain);
    while (n > 0 && plain[n - 1] == '/')
        plain[--n] = '\0';
    const char *slash = strrchr(plain, '/');
    const char *name = slash ? slash + 1 : plain;
    int status;
    if (!*name || strcmp(name, ".") == 0 || strcmp(name, "..") == 0)
        status = kg_fail(err, KG_EINVAL, "remove \"%s\": this is no folder of its own", path);
    else
        status = remove_entry(AT_FDCWD, plain, plain, 0, err);
    free(plain);
    return status == KG_ENOTFOUND ? KG_OK : status;
}

bool kg_is_dir(const char *path) {
    struct stat st;
    return stat(path, &st) == 0 && S_ISDIR(st.st_mode);
}

bool kg_is_file(const char *path) {
    struct stat st;
    return stat(path, &st) == 0 && S_ISREG(st.st_mode);
}

static bool is_listed(const char *name) {
    return strcmp(name, ".") != 0 && strcmp(name, "..") != 0 && strncmp(name, ".tmp-", 5) != 0;
}

static int compare_names(const void *a, const void *b) {
    return strcmp(*(char *const *)a, *(char *const *)b);
}

typedef struct names {
    char **at;
    size_t n, cap;
} names;

static bool add_name(names *list, const char *name) {
    if (list->n == list->cap) {
        size_t cap = list->cap ? 2 * list->cap : 16;
        char **grown = realloc(list->at, cap * sizeof *grown);
        if (!grown)
            return false;
        list->at = grown;
        list->cap = cap;
    }
    char *copy = strdup(name);
    if (copy)
        list->at[list->n++] = copy;
    return copy != NULL;
}

int kg_list_dir(const char *path, char ***out, size_t *n, kg_error *err) {
    DIR *dir = opendir(path);
    if (!dir)
        return fail_errno(err, "list", path);
    names list = {0};
    int status = KG_OK;
    struct dirent *entry;
    while (status == KG_OK && (errno = 0, entry = readdir(dir)) != NULL)
        if (is_listed(entry->d_name) && !add_name(&list, entry->d_name))
            status = kg_fail(err, KG_ENOMEM, "list %s: out of memory", path);
    if (status == KG_OK && errno != 0)
        status = fail_errno(err, "list", path);
    closedir(dir);
    if (status < 0) {
        kg_free_names(list.at, list.n);
        return status;
    }
    if (list.n > 1)
        qsort(list.at, list.n, sizeof *list.at, compare_names);
    *out = list.at;
    *n = list.n;
    return KG_OK;
}

void kg_free_names(char **list, size_t n) {
    for (size_t i = 0; i < n; i++)
        free(list[i]);
    free(list);
}
