/* The memory of a GPU's judge: one exported allocation a slot, pieces of the host's memory on their
 * way to the device, and what is asked of memory between two runs.
 *
 * Why allocations of one's own (VMM) and not the driver's pool: a handle of the pool can map a
 * whole block of other allocations into the worker, the oracles among them. Oracles and sets may be
 * larger than what is free, so they go through two pieces of pinned memory; what fits beside
 * everything else is kept on the device and found again by its address on the host. */
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "tune/judge_cuda.h"

enum {
    FRONT = 4096,
    BEHIND = 16,      /* a store beyond the end hits the band, and not an address without memory */
    BAND = 2 << 20,   /* the most of a front band that is filled and checked */
    LOOSE = 64 << 20, /* a slot may be as much larger than it must be */
    RESERVE = 1 << 30 /* bytes of the device that copies of sets leave free */
};

static kg_cuda_judge *cuda_of(const kg_judge *j) {
    return j->state;
}

static kg_cu_ptr device_address(const void *p) {
    return (kg_cu_ptr)(uintptr_t)p;
}

/* Whether kernels of this device read there at the speed of its memory. */
static bool on_device(const kg_cuda_judge *c, const void *p) {
    return kg_cuda_pointer_on(device_address(p), c->index);
}

/* ---- slots ---- */

static int make(kg_cuda_judge *c, kg_slot *s, size_t room, kg_error *err) {
    kg_cu_memory memory = 0;
    kg_cu_ptr at = 0;
    int fd = -1, rc = kg_cuda_memory_create(c->index, room, &memory, err);
    if (rc == KG_OK)
        rc = kg_cuda_memory_export(memory, &fd, err);
    if (rc == KG_OK)
        rc = kg_cuda_reserve(room, 0, &at, err);
    if (rc == KG_OK)
        rc = kg_cuda_map_memory(at, room, memory, c->index, true, err);
    kg_cuda_memory_release(memory); /* mapping and descriptor keep it */
    if (rc != KG_OK) {
        kg_cuda_unreserve(at, room);
        if (fd >= 0)
            close(fd);
        return rc;
    }
    s->fd = fd;
    s->map = (char *)(uintptr_t)at;
    s->room = room;
    return KG_OK;
}

static void unmake(kg_slot *s) {
    bool writable = s->writable;
    if (s->map) {
        (void)kg_cuda_unmap(device_address(s->map), s->room, NULL);
        kg_cuda_unreserve(device_address(s->map), s->room);
        close(s->fd);
    }
    kg_slot_init(s, writable);
}

/* What is in front of the data and counts as its band, and what is behind it. */
static size_t bands_of(const kg_slot *s, kg_band out[2]) {
    size_t front = s->offset < BAND ? s->offset : BAND, end = s->offset + s->bytes;
    kg_cu_ptr at = device_address(s->map);
    out[0] = (kg_band){.at = at + end, .bytes = s->used - end, .word = s->guard};
    out[1] = (kg_band){.at = at + s->offset - front, .bytes = front, .word = s->guard};
    return front;
}

static int settle(kg_cuda_judge *c, kg_slot *s, size_t bytes, size_t align, kg_error *err) {
    size_t cycle = align < 256 ? 2 * align : 256, skew = align < 256 ? align : 0, unit = 0;
    int rc = kg_cuda_granularity(c->index, &unit, err);
    if (rc != KG_OK)
        return rc;
    size_t needed = (FRONT + bytes + BEHIND + cycle + unit - 1) / unit * unit;
    if (needed > s->room || s->room - needed > LOOSE) {
        unmake(s);
        rc = make(c, s, needed, err);
        if (rc != KG_OK)
            return rc;
    }
    s->used = s->room; /* an allocation is mapped as a whole */
    s->offset = (s->used - bytes - BEHIND - skew) / cycle * cycle + skew;
    s->bytes = bytes;
    kg_band bands[2];
    bands_of(s, bands);
    for (int i = 0; rc == KG_OK && i < 2; i++)
        rc = kg_check_fill(c, bands[i].at, bands[i].bytes, bands[i].word, err);
    return rc;
}

int kg_cuda_place(kg_judge *j, kg_slot *s, size_t bytes, size_t align, kg_error *err) {
    kg_cuda_judge *c = cuda_of(j);
    kg_cuda_scope scope;
    if (align == 0 || align > 256 || (align & (align - 1)) != 0)
        return kg_fail(err, KG_EINVAL, "an alignment of %zu bytes", align);
    if (bytes > (size_t)1 << 45)
        return kg_fail(err, KG_EOVERFLOW, "a buffer of %zu bytes", bytes);
    int rc = kg_cuda_enter(c->index, &scope, err);
    if (rc != KG_OK)
        return rc;
    rc = settle(c, s, bytes, align, err);
    if (rc == KG_ENOMEM && c->copies) {
        kg_cuda_forget(j);
        rc = settle(c, s, bytes, align, err);
    }
    kg_cuda_leave(&scope);
    return rc;
}

void kg_cuda_drop(kg_judge *j, kg_slot *s) {
    kg_cuda_scope scope;
    if (s->map && kg_cuda_enter(cuda_of(j)->index, &scope, NULL) == KG_OK) {
        unmake(s);
        kg_cuda_leave(&scope);
    }
}

/* Inputs too: a driver may have mapped them for writing. */
int kg_cuda_guards(kg_judge *j, const kg_slot *const *slots, size_t n, kg_broken *out,
                   kg_error *err) {
    kg_cuda_judge *c = cuda_of(j);
    kg_cuda_scope scope;
    kg_band bands[KG_MAX_BANDS];
    uint64_t first[KG_MAX_BANDS];
    size_t front[KG_W_MAX_BUFFERS];
    *out = (kg_broken){0};
    for (size_t i = 0; i < n; i++)
        front[i] = bands_of(slots[i], &bands[2 * i]);
    int rc = kg_cuda_enter(c->index, &scope, err);
    if (rc != KG_OK)
        return rc;
    rc = kg_check_bands(c, bands, 2 * n, first, err);
    kg_cuda_leave(&scope);
    /* After the end first: that is where loops go wrong. */
    for (size_t i = 0; rc == KG_OK && !out->broken && i < 2 * n; i++) {
        const kg_slot *s = slots[i / 2];
        int64_t begin = i % 2 ? -(int64_t)front[i / 2] : (int64_t)s->bytes;
        if (first[i] != UINT64_MAX)
            *out = (kg_broken){.broken = true, .slot = i / 2, .where = begin + (int64_t)first[i]};
    }
    return rc;
}

/* ---- on the way to the device ---- */

static int open_stage(kg_stage *s, kg_error *err) {
    void *pinned = NULL;
    if (s->pinned)
        return KG_OK;
    int rc = kg_cuda_event_create(false, &s->free, err);
    for (int i = 0; rc == KG_OK && i < 2; i++)
        rc = kg_cuda_alloc(KG_STAGE_BYTES, &s->device[i], err);
    if (rc == KG_OK)
        rc = kg_cuda_host_alloc(KG_STAGE_BYTES, &pinned, NULL, err);
    s->pinned = pinned;
    return rc;
}

void kg_stages_close(kg_cuda_judge *c) {
    for (size_t i = 0; i < KG_STAGES; i++) {
        kg_stage *s = &c->stages[i];
        kg_cuda_host_free(s->pinned);
        kg_cuda_free(s->device[0]);
        kg_cuda_free(s->device[1]);
        kg_cuda_event_destroy(s->free);
        *s = (kg_stage){0};
    }
}

/* The next stage, with nothing under way in it. */
static int next_stage(kg_cuda_judge *c, kg_stage **out, kg_error *err) {
    kg_stage *s = &c->stages[c->turn];
    bool fresh = !s->pinned;
    c->turn = (c->turn + 1) % KG_STAGES;
    int rc = open_stage(s, err);
    if (rc == KG_OK && !fresh)
        rc = kg_cuda_event_synchronize(s->free, err);
    if (rc == KG_OK)
        *out = s;
    return rc;
}

/* Puts n bytes (at most a stage) on the way; the stage's event is recorded by the caller, after
 * whatever reads the bytes. A stage carries one piece at a time. */
static int send(const kg_judge *j, kg_stage *s, kg_cu_ptr to, const void *from, size_t n,
                kg_error *err) {
    kg_cuda_judge *c = cuda_of(j);
    if (on_device(c, from))
        return kg_cuda_copy_async(to, device_address(from), n, c->stream, err);
    kg_copy_parallel(s->pinned, from, n, j->threads);
    return kg_cuda_to_device_async(to, s->pinned, n, c->stream, err);
}

static int upload(const kg_judge *j, kg_cu_ptr to, const void *from, size_t n, kg_error *err) {
    kg_cuda_judge *c = cuda_of(j);
    int rc = KG_OK;
    if (on_device(c, from))
        rc = kg_cuda_copy_async(to, device_address(from), n, c->stream, err);
    else
        for (size_t at = 0; rc == KG_OK && at < n; at += KG_STAGE_BYTES) {
            size_t some = n - at < KG_STAGE_BYTES ? n - at : KG_STAGE_BYTES;
            kg_stage *s = NULL;
            rc = next_stage(c, &s, err);
            if (rc == KG_OK)
                rc = send(j, s, to + at, (const char *)from + at, some, err);
            if (rc == KG_OK)
                rc = kg_cuda_event_record(s->free, c->stream, err);
        }
    return rc == KG_OK ? kg_cuda_stream_synchronize(c->stream, err) : rc;
}

/* ---- what is kept of the sets ---- */

/* Only what is borrowed until the sets are cleared may be found again by its address. */
static bool of_a_set(const kg_judge *j, const void *p) {
    for (size_t i = 0; i < j->ncases; i++)
        for (size_t k = 0; k < j->cases[i].nsets; k++) {
            const kg_set *s = &j->cases[i].sets[k];
            for (size_t x = 0; x < KG_MAX_INPUTS; x++)
                if (s->inputs[x] == p)
                    return true;
            for (size_t x = 0; x < KG_MAX_OUTPUTS; x++)
                if (s->oracles[x] == p)
                    return true;
        }
    return false;
}

static kg_cu_ptr find_copy(const kg_cuda_judge *c, const void *from, size_t bytes) {
    for (const kg_device_copy *k = c->copies; k; k = k->next)
        if (k->from == from && k->bytes >= bytes)
            return k->at;
    return 0;
}

static bool room_for(size_t bytes) {
    size_t left = 0, total = 0;
    return kg_cuda_memory_info(&left, &total, NULL) == KG_OK && left > bytes &&
           left - bytes > RESERVE;
}

/* The set's memory on the device: where it is, or a copy of it; 0 when there is no room for one. */
static kg_cu_ptr keep_copy(const kg_judge *j, const void *from, size_t bytes) {
    kg_cuda_judge *c = cuda_of(j);
    if (on_device(c, from))
        return device_address(from) % 16 == 0 ? device_address(from) : 0;
    kg_cu_ptr at = find_copy(c, from, bytes);
    if (at || bytes == 0 || !of_a_set(j, from) || !room_for(bytes))
        return at;
    kg_device_copy *k = calloc(1, sizeof *k);
    if (!k || kg_cuda_alloc(bytes, &at, NULL) != KG_OK) {
        free(k);
        return 0;
    }
    if (upload(j, at, from, bytes, NULL) != KG_OK) {
        kg_cuda_free(at);
        free(k);
        return 0;
    }
    *k = (kg_device_copy){.from = from, .bytes = bytes, .at = at, .next = c->copies};
    c->copies = k;
    return at;
}

void kg_cuda_forget(kg_judge *j) {
    kg_cuda_judge *c = cuda_of(j);
    kg_cuda_scope scope;
    if (!c->copies || kg_cuda_enter(c->index, &scope, NULL) != KG_OK)
        return;
    for (kg_device_copy *k = c->copies, *next; k; k = next) {
        next = k->next;
        kg_cuda_free(k->at);
        free(k);
    }
    c->copies = NULL;
    kg_cuda_leave(&scope);
}

/* ---- what is asked of memory ---- */

/* Each in the device's context. */
#define WITH_CONTEXT(j, err, call)                                                                 \
    do {                                                                                           \
        kg_cuda_scope scope_;                                                                      \
        int rc_ = kg_cuda_enter(cuda_of(j)->index, &scope_, err);                                  \
        if (rc_ != KG_OK)                                                                          \
            return rc_;                                                                            \
        rc_ = (call);                                                                              \
        kg_cuda_leave(&scope_);                                                                    \
        return rc_;                                                                                \
    } while (0)

static int copy_in(const kg_judge *j, void *to, const void *from, size_t n, kg_error *err) {
    kg_cu_ptr kept = keep_copy(j, from, n);
    return upload(j, device_address(to), kept ? (const void *)(uintptr_t)kept : from, n, err);
}

int kg_cuda_copy(kg_judge *j, void *to, const void *from, size_t n, kg_error *err) {
    WITH_CONTEXT(j, err, copy_in(j, to, from, n, err));
}

int kg_cuda_fill(kg_judge *j, void *to, int dtype, size_t n, uint64_t pattern, kg_error *err) {
    size_t size = kg_dtype_size(dtype);
    uint64_t word = 0;
    for (size_t i = 0; i < 8; i += size)
        word |= kg_low_bytes(dtype, pattern) << (8 * i);
    WITH_CONTEXT(j, err, kg_check_fill(cuda_of(j), device_address(to), n * size, word, err));
}

/* Data may begin anywhere; the whole vectors around it lie within its slot, between whole guards.
 */
int kg_cuda_hash(kg_judge *j, const void *from, size_t n, kg_hash128 *out, kg_error *err) {
    kg_cu_ptr begin = device_address(from) / 16 * 16;
    kg_cu_ptr end = (device_address(from) + n + 15) / 16 * 16;
    WITH_CONTEXT(j, err, kg_check_hash(cuda_of(j), begin, (size_t)(end - begin), out, err));
}

int kg_cuda_differ(kg_judge *j, const void *a, const void *b, size_t n, int64_t *at,
                   kg_error *err) {
    WITH_CONTEXT(j, err,
                 kg_check_differ(cuda_of(j), device_address(a), device_address(b), n, at, err));
}

static int view(const kg_cuda_judge *c, const void *from, size_t n, void *scratch, const void **out,
                kg_error *err) {
    bool there = on_device(c, from);
    *out = there ? scratch : from;
    return there ? kg_cuda_to_host(scratch, device_address(from), n, err) : KG_OK;
}

int kg_cuda_view(const kg_judge *j, const void *from, size_t n, void *scratch, const void **out,
                 kg_error *err) {
    WITH_CONTEXT(j, err, view(cuda_of(j), from, n, scratch, out, err));
}

/* A piece of both through one stage: first the oracle, then (when it is not there already) the
 * output, which waits for the pinned memory to be free again. */
static int compare_piece(const kg_judge *j, int dtype, const char *out, const char *oracle,
                         size_t n, uint64_t poison, kg_error *err) {
    kg_cuda_judge *c = cuda_of(j);
    kg_stage *s = NULL;
    size_t size = kg_dtype_size(dtype);
    kg_cu_ptr at = device_address(out), right = device_address(oracle);
    int rc = next_stage(c, &s, err);
    if (rc == KG_OK && (!on_device(c, oracle) || right % 16 != 0)) {
        right = s->device[0];
        rc = send(j, s, right, oracle, n * sizeof(double), err);
    }
    if (rc == KG_OK && (!on_device(c, out) || at % 16 != 0)) {
        at = s->device[1];
        rc = kg_cuda_stream_synchronize(c->stream, err);
        if (rc == KG_OK)
            rc = send(j, s, at, out, n * size, err);
    }
    if (rc == KG_OK)
        rc = kg_check_compare(c, dtype, at, right, n, poison, err);
    return rc == KG_OK ? kg_cuda_event_record(s->free, c->stream, err) : rc;
}

static int compare_all(const kg_judge *j, int dtype, const char *out, const char *oracle, size_t n,
                       uint64_t poison, kg_comparison *result, kg_error *err) {
    enum { PIECE = KG_STAGE_BYTES / sizeof(double) };
    kg_cuda_judge *c = cuda_of(j);
    size_t size = kg_dtype_size(dtype);
    kg_sums sums;
    kg_cu_ptr kept = keep_copy(j, oracle, n * sizeof(double));
    bool whole = kept && on_device(c, out) && device_address(out) % 16 == 0;
    int rc = kg_check_compare_begin(c, err);
    if (rc == KG_OK && whole)
        rc = kg_check_compare(c, dtype, device_address(out), kept, n, poison, err);
    const char *from = kept ? (const char *)(uintptr_t)kept : oracle;
    for (size_t at = 0; rc == KG_OK && !whole && at < n; at += PIECE)
        rc = compare_piece(j, dtype, out + at * size, from + at * sizeof(double),
                           n - at < PIECE ? n - at : PIECE, poison, err);
    if (rc == KG_OK)
        rc = kg_check_compare_end(c, &sums, err);
    if (rc == KG_OK)
        *result = kg_comparison_of(dtype, n, &sums);
    return rc;
}

int kg_cuda_compare(kg_judge *j, int dtype, const void *out, const void *oracle, size_t n,
                    uint64_t poison, kg_comparison *result, kg_error *err) {
    if (kg_dtype_size(dtype) == 0)
        return kg_fail(err, KG_EINVAL, "dtype %d is none", dtype);
    WITH_CONTEXT(j, err, compare_all(j, dtype, out, oracle, n, poison, result, err));
}
