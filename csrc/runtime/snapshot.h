/* What look-ups read, and how it changes under them: immutable snapshots and the readers in them.
 *
 * A reader enters, loads the current snapshot, uses it and everything it holds, and leaves; that
 * takes no lock. A writer publishes another snapshot; the old one is freed once every reader that
 * could have seen it has left. */
#ifndef KG_RUNTIME_SNAPSHOT_H
#define KG_RUNTIME_SNAPSHOT_H

#include <stdatomic.h>

#include "base/log.h"
#include "runtime/runtime.h"

#define KG_MAX_REGISTRIES 32
#define KG_CLASSES_MAX                                                                             \
    4096 /* beyond these the cache starts anew: shapes that never return must not pile up */

/* An open registry, counted: snapshots share it. */
typedef struct kg_reg {
    _Atomic int refs;
    char *path; /* absolute */
    uint64_t fingerprint;
    kg_index *index;
} kg_reg;

/* A call class resolved: which Kernel serves it, ready to run; or that none does. */
typedef struct kg_class {
    uint64_t hash;
    size_t nsignature;
    const kg_rt_op *op;
    kg_served_kind kind;
    const kg_index_op *block; /* of the snapshot's registries, like the next two */
    const kg_index_kernel *kernel;
    const kg_reg *reg;
    kg_hash128 image; /* of the translation unit */
    kg_ready ready;
    _Atomic(struct kg_suspect *)
        suspect; /* runtime.c's name for the Kernel when a device is lost */
    unsigned char signature[];
} kg_class;

typedef struct kg_snapshot {
    uint64_t serial; /* from 1; no other snapshot of this process has or had it */
    size_t nregs;
    kg_reg *regs[KG_MAX_REGISTRIES];
    kg_policy policy;
    size_t nclasses; /* under the writers' lock */
    _Atomic(kg_class *) slots[2 * KG_CLASSES_MAX];
} kg_snapshot;

typedef struct kg_reader_slot {
    _Atomic uint64_t active; /* 0: not inside */
    _Atomic bool taken;
    unsigned depth;
    _Atomic uint64_t served, fallbacks; /* written by the owner alone */
    kg_class *last; /* what this thread found last; alive while `in` is current */
    uint64_t in;    /* a snapshot's serial */
    struct kg_reader_slot *next;
} kg_reader_slot;

/* Nests. NULL when out of memory: the caller must not look. */
kg_reader_slot *kg_reader_enter(void);
void kg_reader_leave(kg_reader_slot *me);
void kg_reader_sum(uint64_t *served, uint64_t *fallbacks);

/* Inside enter and leave; NULL before the first is published. */
const kg_snapshot *kg_snapshot_current(void);
kg_class *kg_snapshot_find(const kg_snapshot *s, uint64_t hash, const void *signature, size_t n);
/* The class that this thread found last, if it is in s and has this signature; else NULL. */
kg_class *kg_reader_recall(const kg_reader_slot *me, const kg_snapshot *s, const void *signature,
                           size_t n);

/* Writers hold kg_writers_lock. Forking keeps it consistent in the child. What is logged meanwhile
 * waits for the unlock: whoever is told may need a lock of its own (an interpreter's), whose holder
 * may be waiting for this one. */
void kg_writers_lock(void);
void kg_writers_unlock(void);
/* Where messages go; for kg_log_set_sink. ctx is a kg_log_sink that is called with a NULL ctx,
 * never under the writers' lock. */
void kg_deferred_sink(void *ctx, kg_log_level level, const char *message);
kg_snapshot *kg_snapshot_new(kg_reg *const *regs, size_t n, kg_policy policy); /* shares the regs */
void kg_snapshot_publish(kg_snapshot *s);
/* Takes c. Publishes a fresh snapshot first when the cache is full; out of memory frees c and is no
 * error. Returns the class that is in the cache, or NULL. */
kg_class *kg_snapshot_insert(kg_class *c);
void kg_class_free(kg_class *c);
void kg_reg_release(kg_reg *r);

#endif
