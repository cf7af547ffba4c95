/* Locks, and the places where a user's own files lie. A lock is flock's: it goes with the process
 * that holds it, so a crash leaves none behind; the file's text only tells who. */
#include "base/fs.h"

#include <errno.h>
#include <fcntl.h>
#include <pwd.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <time.h>
#include <unistd.h>

#include "base/stop.h"

/* How long a waiter sleeps between two tries: short beside what locks guard (a promotion, a build).
 */
#define RETRY_MS 20

static int fail_busy(int fd, const char *path, int wait_ms, kg_error *err) {
    char text[32] = "";
    ssize_t n = pread(fd, text, sizeof text - 1, 0);
    text[n > 0 ? n : 0] = '\0';
    text[strcspn(text, "\n")] = '\0';
    const char *who = *text ? text : "unknown";
    if (wait_ms == 0)
        return kg_fail(err, KG_EBUSY, "%s is held by process %s", path, who);
    return kg_fail(err, KG_EBUSY, "%s is held by process %s; gave up after %d ms", path, who,
                   wait_ms);
}

/* Polled, not blocked in flock: a wish to stop must end the wait in whichever thread it is. */
static int take_lock(int fd, const char *path, int wait_ms, kg_error *err) {
    for (int64_t waited = 0;; waited += RETRY_MS) {
        if (flock(fd, LOCK_EX | LOCK_NB) == 0)
            return KG_OK;
        if (errno != EWOULDBLOCK && errno != EINTR)
            return kg_fail(err, KG_EIO, "flock %s: %s", path, strerror(errno));
        if (wait_ms >= 0 && waited >= wait_ms)
            return fail_busy(fd, path, wait_ms, err);
        if (kg_stop_wanted())
            return kg_fail(err, KG_EINTR, "interrupted while waiting for %s", path);
        nanosleep(&(struct timespec){.tv_nsec = RETRY_MS * 1000000L}, NULL);
    }
}

/* Best effort: a full disk must not keep anyone from locking. */
static void write_holder(int fd) {
    char text[32];
    int n = snprintf(text, sizeof text, "%ld\n", (long)getpid());
    if (ftruncate(fd, 0) == 0 && pwrite(fd, text, (size_t)n, 0) != n)
        (void)!ftruncate(fd, 0);
}

int kg_lock_file(const char *path, int wait_ms, int *fd, kg_error *err) {
    int opened = open(path, O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0666);
    if (opened < 0)
        return kg_fail(err, errno == ENOENT ? KG_ENOTFOUND : KG_EIO, "open the lock %s: %s", path,
                       strerror(errno));
    int status = take_lock(opened, path, wait_ms, err);
    if (status < 0) {
        close(opened);
        return status;
    }
    write_holder(opened);
    *fd = opened;
    return KG_OK;
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
