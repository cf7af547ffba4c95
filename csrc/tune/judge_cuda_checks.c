/* The checking kernels from the host: where their image comes from, and their launches. Their
 * source is text in this library (checks.cu after check_core.h); it is compiled for the device at
 * first use and kept in the image cache like any other. */
#include <stdio.h>
#include <stdlib.h>

#include "runtime/image_cuda.h"
#include "tune/checks_source.h"
#include "tune/judge_cuda.h"

enum { THREADS = 256, BLOCKS_AN_SM = 8, PASSES = 8, HASH_AT = 0, FIRST_AT = 8 };

static const char *const names[KG_CHECK_COMPARE] = {
    [KG_CHECK_FILL] = "kg_check_fill",     [KG_CHECK_BANDS] = "kg_check_bands",
    [KG_CHECK_DIFFER] = "kg_check_differ", [KG_CHECK_HASH] = "kg_check_hash",
    [KG_CHECK_READ] = "kg_check_read",     [KG_CHECK_COPY] = "kg_check_copy"};

static int find_checks(kg_cuda_judge *c, kg_error *err) {
    int rc = KG_OK;
    for (int i = 0; rc == KG_OK && i < KG_CHECK_COMPARE; i++)
        rc = kg_cuda_function(c->module, names[i], &c->checks[i], err);
    for (int d = 0; rc == KG_OK && d < KG_DTYPE_COUNT; d++) {
        char name[64];
        snprintf(name, sizeof name, "kg_check_compare_%s", kg_dtype_name(d));
        rc = kg_cuda_function(c->module, name, &c->checks[KG_CHECK_COMPARE + d], err);
    }
    return rc;
}

static int load_image(kg_cuda_judge *c, kg_error *err) {
    kg_buf messages;
    kg_buf_init(&c->image, 0);
    kg_buf_init(&messages, 64 << 10);
    int rc = kg_image_cuda(kg_checks_source, kg_checks_source_bytes, "checks.cu", c->gpu->arch, 0,
                           &c->image, &messages, NULL, err);
    if ((rc == KG_ECOMPILE || rc == KG_EUNSUPPORTED) && messages.len)
        rc = kg_fail(err, KG_EENV, "kgen's checking kernels: %.400s", messages.data);
    if (rc == KG_OK)
        rc = kg_cuda_module_load(c->image.data, c->image.len, &c->module, err);
    kg_buf_free(&messages);
    return rc;
}

int kg_checks_load(kg_cuda_judge *c, kg_error *err) {
    if (c->module)
        return KG_OK;
    c->blocks = (size_t)c->gpu->sms * BLOCKS_AN_SM;
    int rc = load_image(c, err);
    if (rc == KG_OK)
        rc = find_checks(c, err);
    if (rc == KG_OK)
        rc = kg_cuda_alloc(KG_SCRATCH_WORDS * sizeof(uint64_t), &c->scratch, err);
    if (rc == KG_OK)
        rc = kg_cuda_alloc(c->blocks * sizeof(kg_sums), &c->partials, err);
    if (rc != KG_OK)
        kg_checks_unload(c);
    return rc;
}

void kg_checks_unload(kg_cuda_judge *c) {
    kg_cuda_module_unload(c->module);
    kg_buf_free(&c->image);
    kg_cuda_free(c->scratch);
    kg_cuda_free(c->partials);
    c->module = NULL;
    c->scratch = c->partials = 0;
}

/* `pieces`: vectors that there are to do; no more blocks than they need. */
static int launch(kg_cuda_judge *c, int check, size_t pieces, uint32_t rows, void **args,
                  kg_error *err) {
    int rc = kg_checks_load(c, err);
    if (rc != KG_OK)
        return rc;
    size_t blocks = (pieces + THREADS - 1) / THREADS;
    blocks = blocks < 1 ? 1 : blocks < c->blocks ? blocks : c->blocks;
    const kg_cuda_launch l = {.function = c->checks[check],
                              .grid = {(uint32_t)blocks, rows, 1},
                              .block = {THREADS, 1, 1}};
    return kg_cuda_launch_kernel(&l, c->stream, args, err);
}

static int finish(kg_cuda_judge *c, kg_error *err) {
    return kg_cuda_stream_synchronize(c->stream, err);
}

static int set_words(kg_cuda_judge *c, size_t at, size_t n, uint8_t value, kg_error *err) {
    int rc = kg_checks_load(c, err);
    if (rc != KG_OK)
        return rc;
    return kg_cuda_memset8(c->scratch + at * sizeof(uint64_t), value, n * sizeof(uint64_t),
                           c->stream, err);
}

static int get_words(kg_cuda_judge *c, size_t at, size_t n, uint64_t *out, kg_error *err) {
    int rc = finish(c, err);
    return rc == KG_OK
               ? kg_cuda_to_host(out, c->scratch + at * sizeof(uint64_t), n * sizeof(uint64_t), err)
               : rc;
}

int kg_check_fill(kg_cuda_judge *c, kg_cu_ptr to, size_t n, uint64_t word, kg_error *err) {
    uint64_t bytes = n;
    void *args[] = {&to, &bytes, &word};
    if (n == 0)
        return KG_OK;
    int rc = launch(c, KG_CHECK_FILL, n / 16, 1, args, err);
    return rc == KG_OK ? finish(c, err) : rc;
}

/* As the kernel takes them. */
typedef struct band_list {
    uint64_t at[KG_MAX_BANDS], bytes[KG_MAX_BANDS], word[KG_MAX_BANDS];
} band_list;

int kg_check_bands(kg_cuda_judge *c, const kg_band *bands, size_t n, uint64_t *first,
                   kg_error *err) {
    band_list list = {{0}, {0}, {0}};
    size_t longest = 0;
    if (n == 0)
        return KG_OK;
    for (size_t i = 0; i < n; i++) {
        list.at[i] = bands[i].at;
        list.bytes[i] = bands[i].bytes;
        list.word[i] = bands[i].word;
        longest = bands[i].bytes > longest ? bands[i].bytes : longest;
    }
    int rc = set_words(c, FIRST_AT, n, 0xff, err);
    kg_cu_ptr to = c->scratch + FIRST_AT * sizeof(uint64_t);
    void *args[] = {&list, &to};
    if (rc == KG_OK)
        rc = launch(c, KG_CHECK_BANDS, longest / 16, (uint32_t)n, args, err);
    return rc == KG_OK ? get_words(c, FIRST_AT, n, first, err) : rc;
}

int kg_check_differ(kg_cuda_judge *c, kg_cu_ptr a, kg_cu_ptr b, size_t n, int64_t *at,
                    kg_error *err) {
    uint64_t bytes = n, first = UINT64_MAX;
    int rc = set_words(c, FIRST_AT, 1, 0xff, err);
    kg_cu_ptr to = c->scratch + FIRST_AT * sizeof(uint64_t);
    void *args[] = {&a, &b, &bytes, &to};
    if (rc == KG_OK)
        rc = launch(c, KG_CHECK_DIFFER, n / 16, 1, args, err);
    if (rc == KG_OK)
        rc = get_words(c, FIRST_AT, 1, &first, err);
    if (rc == KG_OK)
        *at = first == UINT64_MAX ? -1 : (int64_t)first;
    return rc;
}

int kg_check_hash(kg_cuda_judge *c, kg_cu_ptr from, size_t n, kg_hash128 *out, kg_error *err) {
    uint64_t bytes = n, sums[2] = {0, 0};
    int rc = set_words(c, HASH_AT, 2, 0, err);
    kg_cu_ptr to = c->scratch + HASH_AT * sizeof(uint64_t);
    void *args[] = {&from, &bytes, &c->secret, &to};
    if (rc == KG_OK)
        rc = launch(c, KG_CHECK_HASH, n / 16, 1, args, err);
    if (rc == KG_OK)
        rc = get_words(c, HASH_AT, 2, sums, err);
    if (rc == KG_OK)
        *out = (kg_hash128){.lo = sums[0], .hi = sums[1]};
    return rc;
}

int kg_check_compare_begin(kg_cuda_judge *c, kg_error *err) {
    int rc = kg_checks_load(c, err);
    return rc == KG_OK
               ? kg_cuda_memset8(c->partials, 0, c->blocks * sizeof(kg_sums), c->stream, err)
               : rc;
}

int kg_check_compare(kg_cuda_judge *c, int dtype, kg_cu_ptr out, kg_cu_ptr oracle, size_t n,
                     uint64_t poison, kg_error *err) {
    uint64_t count = n, bits = kg_low_bytes(dtype, poison);
    kg_range range = kg_range_of(dtype);
    void *args[] = {&out, &oracle, &count, &bits, &range.largest, &range.close, &c->partials};
    if (n == 0)
        return KG_OK;
    return launch(c, KG_CHECK_COMPARE + dtype, n * kg_dtype_size(dtype) / 16, 1, args, err);
}

int kg_check_compare_end(kg_cuda_judge *c, kg_sums *out, kg_error *err) {
    kg_sums *sums = calloc(c->blocks, sizeof *sums);
    int rc = sums ? finish(c, err) : kg_fail(err, KG_ENOMEM, "a comparison: out of memory");
    if (rc == KG_OK)
        rc = kg_cuda_to_host(sums, c->partials, c->blocks * sizeof *sums, err);
    *out = (kg_sums){0};
    for (size_t i = 0; rc == KG_OK && i < c->blocks; i++)
        kg_add_sums(out, &sums[i]);
    free(sums);
    return rc;
}

/* Bytes a second of the fastest pass; the first one warms up. */
static int best_pass(kg_cuda_judge *c, int check, size_t n, double bytes, void **args, double *rate,
                     kg_error *err) {
    int rc = KG_OK;
    *rate = 0;
    for (int i = 0; rc == KG_OK && i < PASSES; i++) {
        float ms = 0;
        rc = kg_cuda_event_record(c->begin, c->stream, err);
        if (rc == KG_OK)
            rc = launch(c, check, n / 16, 1, args, err);
        if (rc == KG_OK)
            rc = kg_cuda_event_record(c->end, c->stream, err);
        if (rc == KG_OK)
            rc = finish(c, err);
        if (rc == KG_OK)
            rc = kg_cuda_event_elapsed(c->begin, c->end, &ms, err);
        double now = rc == KG_OK && i > 0 && ms > 0 ? bytes / ((double)ms * 1e-3) : 0;
        *rate = now > *rate ? now : *rate;
    }
    return rc;
}

int kg_check_rates(kg_cuda_judge *c, kg_cu_ptr a, kg_cu_ptr b, size_t n, double *read,
                   double *write, double *copy, kg_error *err) {
    uint64_t bytes = n, word = 0;
    int rc = set_words(c, HASH_AT, 2, 0, err);
    kg_cu_ptr sink = c->scratch;
    void *reads[] = {&a, &bytes, &sink}, *writes[] = {&b, &bytes, &word},
         *copies[] = {&b, &a, &bytes};
    if (rc == KG_OK)
        rc = best_pass(c, KG_CHECK_READ, n, (double)n, reads, read, err);
    if (rc == KG_OK)
        rc = best_pass(c, KG_CHECK_FILL, n, (double)n, writes, write, err);
    if (rc == KG_OK)
        rc = best_pass(c, KG_CHECK_COPY, n, 2 * (double)n, copies, copy, err);
    return rc;
}
