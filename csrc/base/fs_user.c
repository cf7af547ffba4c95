/* Locks, and the places where a user's own files lie. A lock is flock's: it goes with the process
 * that holds it, so a crash leaves none behind; the file's text only tells who. */
#define _GNU_SOURCE /* program_invocation_short_name */
#include "base/fs.h"

#include <errno.h>
#include <fcntl.h>
#include <pwd.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "base/log.h"
#include "base/stop.h"

/* How long a waiter sleeps between two tries: short beside what locks guard (a promotion, a build).
 */
#define RETRY_MS 20
/* Where locks of the whole machine lie: not $TMPDIR, which two processes may have set differently.
 */
#define MACHINE_LOCKS "/tmp/kgen-locks"
/* Who waits for a device says so after this long: most waits are shorter than a Candidate's run. */
#define PATIENCE_MS 1000

static int fail_busy(int fd, const char *path, kg_error *err) {
    char text[48] = "";
    ssize_t n = pread(fd, text, sizeof text - 1, 0);
    text[n > 0 ? n : 0] = '\0';
    for (char *c = text; *c; c++) /* anybody may write a lock of the machine */
        if (*c < ' ' || *c > '~')
            *c = '\0';
    return kg_fail(err, KG_EBUSY, "%s is held by process %s", path, *text ? text : "unknown");
}

/* Polled, not blocked in flock: a wish to stop must end the wait in whichever thread it is. */
static int take_lock(int fd, const char *path, int wait_ms, kg_error *err) {
    for (int64_t waited = 0;; waited += RETRY_MS) {
        if (flock(fd, LOCK_EX | LOCK_NB) == 0)
            return KG_OK;
        if (errno != EWOULDBLOCK && errno != EINTR)
            return kg_fail(err, KG_EIO, "flock %s: %s", path, strerror(errno));
        if (wait_ms >= 0 && waited >= wait_ms)
            return fail_busy(fd, path, err);
        if (kg_stop_wanted())
            return kg_fail(err, KG_EINTR, "interrupted while waiting for %s", path);
        nanosleep(&(struct timespec){.tv_nsec = RETRY_MS * 1000000L}, NULL);
    }
}

/* Best effort: a full disk must not keep anyone from locking. */
static void write_holder(int fd) {
    char text[48];
    int n =
        snprintf(text, sizeof text, "%ld (%.20s)\n", (long)getpid(), program_invocation_short_name);
    if (ftruncate(fd, 0) == 0 && pwrite(fd, text, (size_t)n, 0) != n)
        (void)!ftruncate(fd, 0);
}

/* Takes the descriptor. */
static int lock_opened(int opened, const char *path, int wait_ms, int *fd, kg_error *err) {
    int status = take_lock(opened, path, wait_ms, err);
    if (status < 0) {
        close(opened);
        return status;
    }
    write_holder(opened);
    *fd = opened;
    return KG_OK;
}

int kg_lock_file(const char *path, int wait_ms, int *fd, kg_error *err) {
    int opened = open(path, O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0666);
    if (opened < 0)
        return kg_fail(err, errno == ENOENT ? KG_ENOTFOUND : KG_EIO, "open the lock %s: %s", path,
                       strerror(errno));
    kg_error e;
    int rc = lock_opened(opened, path, wait_ms, fd, &e);
    if (rc == KG_EBUSY && wait_ms > 0)
        return kg_fail(err, rc, "%.400s; gave up after %d ms", e.msg, wait_ms);
    return rc == KG_OK ? rc : kg_fail(err, rc, "%s", e.msg);
}

void kg_unlock_file(int fd) {
    if (fd < 0)
        return;
    (void)!ftruncate(fd, 0);
    close(fd);
}

static const char *set_in_environment(const char *name) {
    const char *value = getenv(name);
    return value && *value ? value : NULL;
}

/* What fails here, the mkdir that follows fails on again and says. */
static void make_parents(const char *path) {
    char *copy = strdup(path), *end = copy ? strrchr(copy, '/') : NULL;
    if (end && end > copy) {
        *end = '\0';
        (void)kg_mkdirs(copy, NULL);
    }
    free(copy);
}

/* The folder of the machine's locks, made when absent, for everybody and sticky. A link in its
 * place is refused: whoever put it there would choose where our files come to lie. */
static int locks_folder(const char **out, kg_error *err) {
    const char *own = set_in_environment("KGEN_LOCKS"), *path = own ? own : MACHINE_LOCKS;
    struct stat st;
    if (own)
        make_parents(path);
    if (mkdir(path, 0777) == 0) {
        if (chmod(path, 01777) < 0) /* umask took bits away from what mkdir was given */
            return kg_fail(err, KG_EIO, "chmod %s: %s", path, strerror(errno));
    } else if (errno != EEXIST) {
        return kg_fail(err, KG_EIO, "mkdir %s: %s; name a folder for locks with KGEN_LOCKS", path,
                       strerror(errno));
    }
    if (lstat(path, &st) < 0 || !S_ISDIR(st.st_mode))
        return kg_fail(err, KG_EIO, "%s is no folder; name one for locks with KGEN_LOCKS", path);
    *out = path;
    return KG_OK;
}

/* Without O_CREAT first: the kernel may refuse it for another user's file in a sticky folder. To
 * hold a lock, reading is enough. */
static int open_for_all(const char *path) {
    const int flags = O_CLOEXEC | O_NOFOLLOW;
    for (int tries = 0; tries < 2; tries++) {
        int fd = open(path, O_RDWR | flags);
        if (fd < 0 && errno == EACCES)
            fd = open(path, O_RDONLY | flags);
        if (fd >= 0 || errno != ENOENT)
            return fd;
        fd = open(path, O_RDWR | O_CREAT | O_EXCL | flags, 0666);
        if (fd >= 0 && fchmod(fd, 0666) < 0) { /* umask */
            close(fd);
            return -1;
        }
        if (fd >= 0 || errno != EEXIST)
            return fd;
    }
    return -1;
}

int kg_lock_device(const char *device, int wait_ms, int *fd, kg_error *err) {
    const char *folder = NULL;
    int rc = locks_folder(&folder, err);
    if (rc != KG_OK)
        return rc;
    char *path = kg_path_join(folder, device);
    if (!path)
        return kg_fail(err, KG_ENOMEM, "path of a lock");
    int opened = open_for_all(path);
    rc = opened < 0 ? kg_fail(err, KG_EIO, "open the lock %s: %s", path, strerror(errno))
                    : lock_opened(opened, path, wait_ms, fd, err);
    free(path);
    return rc;
}

int kg_lock_device_wait(const char *device, int *fd, kg_error *err) {
    kg_error why = {0};
    int rc = kg_lock_device(device, PATIENCE_MS, fd, &why);
    if (rc == KG_EBUSY) {
        kg_log(KG_LOG_WARNING, "another kgen times on this device: %s; waiting for it", why.msg);
        rc = kg_lock_device(device, -1, fd, &why);
    }
    if (rc == KG_EINTR || rc == KG_ENOMEM)
        return kg_fail(err, rc, "%s", why.msg);
    if (rc != KG_OK) {
        kg_log_once(KG_LOG_WARNING, "%s; other processes that time are not waited for", why.msg);
        *fd = -1;
    }
    return KG_OK;
}

/* $HOME, else what the password file says; NULL when neither is there. */
static char *home(void) {
    const char *value = set_in_environment("HOME");
    if (value)
        return strdup(value);
    struct passwd entry, *found = NULL;
    size_t n = 16384;
    char *room = malloc(n), *dir = NULL;
    if (room && getpwuid_r(getuid(), &entry, room, n, &found) == 0 && found && *found->pw_dir)
        dir = strdup(found->pw_dir);
    free(room);
    return dir;
}

/* $variable/below, or home/otherwise/below. A relative $XDG_* is to be ignored, says its
 * specification. */
static char *xdg(const char *variable, const char *otherwise, const char *below) {
    const char *value = set_in_environment(variable);
    if (value && *value == '/')
        return kg_path_join(value, below);
    char *dir = home(), *middle = dir ? kg_path_join(dir, otherwise) : NULL;
    char *path = middle ? kg_path_join(middle, below) : NULL;
    free(middle);
    free(dir);
    return path;
}

char *kg_cache_dir(void) {
    const char *value = set_in_environment("KGEN_CACHE");
    return value ? strdup(value) : xdg("XDG_CACHE_HOME", ".cache", "kgen");
}

char *kg_user_registry(void) {
    return xdg("XDG_DATA_HOME", ".local/share", "kgen/generated");
}
