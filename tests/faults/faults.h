/* Faults on demand: the n-th call of a kind fails, or the process dies there. The build wraps these
 * calls (ld's --wrap) in everything of ours that kgen-faults links, and gives cJSON its malloc from
 * here; nothing of it is in any other binary. Counting starts with fault_arm and is of the process
 * that armed and what it forks. */
#ifndef KG_TEST_FAULTS_H
#define KG_TEST_FAULTS_H

#include <stdbool.h>

enum {
    FAULT_MALLOC = 1, /* malloc, calloc, realloc, strdup, strndup: no memory */
    FAULT_WRITE = 2,  /* write, pwrite: half of it, then a full disk */
    FAULT_SYNC = 4,   /* fsync, fdatasync: EIO */
    FAULT_RENAME = 8, /* EIO */
    FAULT_FORK = 16,  /* EAGAIN */
    FAULT_DISK = FAULT_WRITE | FAULT_SYNC | FAULT_RENAME
};

typedef enum fault_mode {
    FAULT_ONCE, /* the n-th call alone */
    FAULT_EVER, /* and every one after it */
    FAULT_KILL  /* SIGKILL in place of the call */
} fault_mode;

/* n counts from 1. */
void fault_arm(unsigned kinds, unsigned n, fault_mode mode);
/* Whether the fault was met. */
bool fault_disarm(void);

/* 1, or in `make test` a stride that keeps this short: `make test-all` sets KGEN_FAULTS=all. */
unsigned fault_stride(unsigned short_of_all);

#endif
