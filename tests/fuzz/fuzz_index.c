/* The index file, read whole: as it is, where all but a sound one must be refused, and then under a
 * header that is right for its body, as whoever can write the cache may make it. What opens is read
 * to its end: each Op, Kernel, plan and pin, with the key of each pin as JSON and its hash. */
#define _GNU_SOURCE
#include "fuzz_folder.h"

#include <string.h>

#include "base/hash.h"
#include "runtime/index.h"
#include "tune/contract.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

/* The registry of tests/golden/index, and the header's places (runtime/index.h). */
#define REGISTRY "/a/registry"
enum { HEADER = 48, SIZE_AT = 16, HASH_AT = 24, FINGERPRINT_AT = 40 };

static size_t touched; /* so that no read is left out */

static void touch(const char *text) {
    touched += strlen(text);
}

static void read_pin(const kg_op *op, const kg_index_op *block, const kg_index_pin *pin) {
    char hash[33];
    kg_error err;
    if (pin->kernel >= block->nkernels)
        __builtin_trap();
    kg_json_free(kg_key_to_json(op, &pin->key));
    kg_key_hash(op, &pin->key, hash, &err);
}

static void read_op(kg_index *x, size_t at) {
    const kg_index_op *block, *again;
    const kg_plan *plan;
    kg_error err;
    if (kg_index_get(x, at, &block, &err) != KG_OK)
        return;
    touch(block->task);
    for (size_t i = 0; i < block->nkernels; i++) {
        const kg_index_kernel *k = &block->kernels[i];
        const char *const texts[] = {k->id,        k->arch,         k->source,   k->env.device,
                                     k->env.torch, k->env.compiler, k->env.kgen, k->env.driver};
        for (size_t t = 0; t < sizeof texts / sizeof *texts; t++)
            touch(texts[t]);
        for (size_t n = 0; n < k->nprograms; n++)
            touched += k->programs[n].lo & 1;
        kg_index_plan(x, at, i, &plan, &err);
    }
    for (size_t i = 0; i < block->npins; i++)
        read_pin(block->op, block, &block->pins[i]);
    if (kg_index_get(x, at, &again, &err) != KG_OK || again != block)
        __builtin_trap();
}

static bool read_index(const char *path, uint64_t fingerprint) {
    kg_index *x;
    kg_error err;
    if (kg_index_open(path, REGISTRY, fingerprint, &x, &err) != KG_OK)
        return false;
    for (size_t i = 0; i < kg_index_count(x); i++) {
        touch(kg_index_schema(x, i));
        touch(kg_index_hash(x, i));
        int first = kg_index_find(x, kg_index_name(x, i));
        if (first < 0 || (size_t)first > i)
            __builtin_trap();
        read_op(x, i);
    }
    kg_index_free(x);
    return true;
}

static void put64(uint8_t *at, uint64_t value) {
    for (int i = 0; i < 8; i++)
        at[i] = (uint8_t)(value >> 8 * i);
}

static uint64_t get64(const uint8_t *at) {
    uint64_t value = 0;
    for (int i = 7; i >= 0; i--)
        value = value << 8 | at[i];
    return value;
}

static bool sound(const uint8_t *data, size_t size) {
    kg_hash128 h = kg_xxh128(data + HEADER, size - HEADER);
    return get64(data + SIZE_AT) == size && get64(data + HASH_AT) == h.lo &&
           get64(data + HASH_AT + 8) == h.hi;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    static char path[64];
    fuzz_folder_make();
    snprintf(path, sizeof path, "%s/index", fuzz_folder);
    fuzz_write(path, data, size);
    uint64_t fingerprint = size >= HEADER ? get64(data + FINGERPRINT_AT) : 0;
    bool opened = read_index(path, fingerprint);
    if (opened && (size < HEADER || !sound(data, size)))
        __builtin_trap();
    if (size < HEADER || opened)
        return 0;
    uint8_t *fixed = malloc(size);
    if (!fixed)
        abort();
    memcpy(fixed, data, size);
    kg_hash128 h = kg_xxh128(data + HEADER, size - HEADER);
    memcpy(fixed, "KGENIDX\0\2\0\0\0\60\0\0\0", SIZE_AT); /* format 2, 48 bytes of header */
    put64(fixed + SIZE_AT, size);
    put64(fixed + HASH_AT, h.lo);
    put64(fixed + HASH_AT + 8, h.hi);
    fuzz_write(path, fixed, size);
    read_index(path, fingerprint);
    free(fixed);
    return 0;
}
