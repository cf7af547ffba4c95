/* Files. Whatever must survive a crash is written aside, synced, renamed, and its folder synced: a
 * reader sees the old bytes or the new ones, and after a failure the old ones stand and nothing is
 * left behind. */
#ifndef KG_BASE_FS_H
#define KG_BASE_FS_H

#include <stdbool.h>
#include <stddef.h>

#include "base/buf.h"
#include "base/error.h"

/* dir + "/" + name, the caller's; NULL when out of memory. */
char *kg_path_join(const char *dir, const char *name);

/* Appends the file's bytes to out. KG_ENOTFOUND when there is none; KG_EOVERFLOW above max bytes.
 */
int kg_read_file(const char *path, size_t max, kg_buf *out, kg_error *err);
int kg_write_atomic(const char *path, const void *bytes, size_t n, kg_error *err);
/* The same without syncing, for what its readers check and can make again: other processes see the
 * old bytes or the new ones, and after a crash of the machine anything may stand there. */
int kg_write_derived(const char *path, const void *bytes, size_t n, kg_error *err);
/* Appends one record and syncs the file; a partial write is cut off again before it fails. */
int kg_append_sync(int fd, const void *bytes, size_t n, const char *path, kg_error *err);
/* The same without syncing: the next record that is synced takes this one with it. */
int kg_append(int fd, const void *bytes, size_t n, const char *path, kg_error *err);
int kg_mkdirs(const char *path, kg_error *err); /* mode 0777 less umask; existing is fine */
int kg_sync_dir(const char *path, kg_error *err);
int kg_remove_tree(const char *path, kg_error *err); /* absent is fine; follows no link */
bool kg_is_dir(const char *path);
bool kg_is_file(const char *path);

/* Names in a folder, sorted by bytes, without . and .. and names that start with ".tmp-". */
int kg_list_dir(const char *path, char ***names, size_t *n, kg_error *err);
void kg_free_names(char **names, size_t n);

/* An advisory lock (flock) on a file that is created when absent and stays. wait_ms < 0 waits for
 * ever; KG_EBUSY names the process that holds it. */
int kg_lock_file(const char *path, int wait_ms, int *fd, kg_error *err);
void kg_unlock_file(int fd);

/* One timed job on a device at a time, whoever's it is: a lock of the whole machine, a file in
 * $KGEN_LOCKS, else /tmp/kgen-locks, which every user may write and nobody may empty. device: a
 * file name such as "cpu". KG_EBUSY names the process that holds it; KG_EIO: there is nowhere to
 * lock. */
int kg_lock_device(const char *device, int wait_ms, int *fd, kg_error *err);
/* The same, until it has it; says whom it waits for. *fd is -1 where there is nowhere to lock,
 * which is said once: others are not waited for then. KG_EINTR: kg_stop_wanted. */
int kg_lock_device_wait(const char *device, int *fd, kg_error *err);

/* $KGEN_CACHE, else $XDG_CACHE_HOME/kgen, else ~/.cache/kgen; the caller's string; not created. */
char *kg_cache_dir(void);
/* $XDG_DATA_HOME/kgen/generated, else ~/.local/share/kgen/generated. */
char *kg_user_registry(void);

#endif
