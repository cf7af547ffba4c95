/* The index of a registry: what the runtime reads in place of JSON (docs/formats.md, "Index").
 *
 * Flat, little endian, hash-checked; derived from the registry's files by csrc/tune and kept in the
 * cache. The header is magic "KGENIDX\0", u32 format, u32 size of the header (48), u64 size of the
 * file, XXH3-128 of what follows the header (u64 low, u64 high), u64 fingerprint. The body is a
 * directory of Ops (name, schema, hash of op.json, place of the Op's block) and the blocks:
 * contract, Kernels, pins. An open index is immutable; a block is read at the Op's first use, and
 * every bound in it is checked. */
#ifndef KG_RUNTIME_INDEX_H
#define KG_RUNTIME_INDEX_H

#include "runtime/op.h"
#include "runtime/plan.h"
#include "runtime/signature.h"

#define KG_INDEX_FORMAT 3

/* What must be the same for evidence to hold, as the Record's environment has them; "" when it does
 * not say. */
typedef struct kg_index_env {
    const char *device, *torch, *compiler, *kgen, *driver;
} kg_index_env;

typedef struct kg_index_kernel {
    const char *id;   /* 64 hex digits */
    const char *arch; /* "x86-64-v3" */
    const char
        *source;     /* the source's path below the registry: "softmax/x86-64-v3/<id>/kernel.c" */
    int32_t version; /* vN */
    bool ambiguous;  /* another Kernel of the Op has this number */
    kg_hash128 source_hash;
    kg_index_env env;
    kg_tuning tuning;
    const kg_plan *plan; /* when writing; NULL in an open index, see kg_index_plan */
    size_t nprograms;    /* Programs it was judged on by name, beside those of its pins */
    const kg_hash128 *programs;
} kg_index_kernel;

typedef struct kg_index_pin {
    uint32_t kernel; /* index in kernels */
    kg_key key;
} kg_index_pin;

/* One Op's block. */
typedef struct kg_index_op {
    const kg_op *op;
    const char
        *task; /* the Task folder below the registry ("softmax_3fa2/task"), "" when there is none */
    size_t nkernels, npins;
    const kg_index_kernel *kernels;
    const kg_index_pin *pins;
} kg_index_op;

/* Appends an Op's block. Pins that name no Kernel are KG_EINVAL. */
int kg_index_put(kg_buf *b, const kg_index_op *op, kg_error *err);

/* An Op and its block. */
typedef struct kg_index_block {
    const kg_op *op;
    const char *bytes;
    size_t n;
} kg_index_block;

/* Writes an index whole, making its folder when that is not there. registry is the absolute path
 * that the index is of. */
int kg_index_write_blocks(const char *path, const char *registry, uint64_t fingerprint,
                          const kg_index_block *blocks, size_t n, kg_error *err);
/* The same from what the blocks are of. */
int kg_index_write(const char *path, const char *registry, uint64_t fingerprint,
                   const kg_index_op *ops, size_t nops, kg_error *err);

/* Where the index of a registry is kept: <cache>/index/<32 hex of the absolute path>. The caller's
 * string; NULL when out of memory or when there is no cache folder. */
char *kg_index_path(const char *registry);

/* What a registry's folders look like from outside: names, times and sizes of the registry, its Op
 * folders, their op.json, arch folders, pins folders and pin files. Anything that promotion,
 * rollback, gc or git does changes it. 0: there is no such folder. Never fails otherwise: what
 * cannot be read counts as absent. */
uint64_t kg_registry_fingerprint(const char *registry);

typedef struct kg_index kg_index;

/* KG_ENOTFOUND: none there. KG_ECORRUPT: wrong magic, format, size or hash. KG_EEXIST: it is sound
 * but of another state of the registry than `fingerprint`. In each of these cases: derive it again.
 */
int kg_index_open(const char *path, const char *registry, uint64_t fingerprint, kg_index **out,
                  kg_error *err);
void kg_index_free(kg_index *x);

const char *kg_index_registry(const kg_index *x);
size_t kg_index_count(const kg_index *x);
const char *kg_index_name(const kg_index *x, size_t i);
const char *kg_index_schema(const kg_index *x, size_t i);
const char *kg_index_hash(const kg_index *x, size_t i); /* SHA-256 of op.json */
int kg_index_find(const kg_index *x, const char *name); /* -1: no such Op */
/* The Op's block, read at the first call and kept; thread-safe. KG_EFORMAT: the block is damaged.
 */
int kg_index_get(kg_index *x, size_t i, const kg_index_op **out, kg_error *err);
/* The plan of a Kernel of block i, read at the first call and kept; thread-safe. */
int kg_index_plan(kg_index *x, size_t i, size_t kernel, const kg_plan **out, kg_error *err);

#endif
