/* A folder for fuzzers whose subject reads files: in memory where there is room for that, since
 * what an execution costs is the disk; removed at exit. */
#ifndef KGEN_TESTS_FUZZ_FOLDER_H
#define KGEN_TESTS_FUZZ_FOLDER_H

#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#include "base/fs.h"

static char fuzz_folder[40]; /* "" until it was asked for */

static void fuzz_folder_remove(void) {
    kg_remove_tree(fuzz_folder, NULL);
}

static inline void fuzz_folder_make(void) {
    if (fuzz_folder[0])
        return;
    const char *above = access("/dev/shm", W_OK) == 0 ? "/dev/shm" : "/tmp";
    snprintf(fuzz_folder, sizeof fuzz_folder, "%s/kgen-fuzz-XXXXXX", above);
    if (!mkdtemp(fuzz_folder))
        abort();
    atexit(fuzz_folder_remove);
}

static inline void fuzz_write(const char *path, const uint8_t *data, size_t size) {
    int fd = open(path, O_WRONLY | O_CREAT | O_TRUNC, 0600);
    if (fd < 0 || write(fd, data, size) != (ssize_t)size)
        abort();
    close(fd);
}

#endif
