/* The memory that the judge lends to a worker: one memfd a buffer, with guard bands of a secret
 * pattern around the data. The judge's mapping stays; a worker gets the descriptor. */
#ifndef KG_TUNE_SLOTS_H
#define KG_TUNE_SLOTS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/error.h"

typedef struct kg_slot {
    int fd;         /* -1: none yet */
    char *map;      /* the judge's view, readable and writable */
    size_t room;    /* bytes of the file */
    size_t used;    /* bytes of the mapping that a worker gets, whole pages */
    size_t offset;  /* of the data */
    size_t bytes;   /* of the data */
    bool writable;  /* by the worker; what is not is sealed against it */
    uint64_t guard; /* the pattern */
} kg_slot;

void kg_slot_init(kg_slot *s, bool writable);
void kg_slot_close(kg_slot *s);

/* Makes room for `bytes` whose address divides by `align` (a power of two up to 256) and by no
 * larger power (but for 256): the end is as near as that allows to the worker's page without
 * access. Fills the guard bands, and leaves the data as it is. */
int kg_slot_place(kg_slot *s, size_t bytes, size_t align, kg_error *err);
char *kg_slot_data(const kg_slot *s);
/* True when both bands are whole; else *where is the offset of the first changed byte from the
 * data's begin: negative before it, at least `bytes` after it. */
bool kg_slot_guards_whole(const kg_slot *s, int64_t *where);

/* 64 random bits. */
uint64_t kg_random(void);

#endif
