/* Between the files of the CUDA side of the judge. */
#ifndef KG_TUNE_JUDGE_CUDA_H
#define KG_TUNE_JUDGE_CUDA_H

#include "sys/cuda.h"
#include "tune/judge_internal.h"

/* The checking kernels (checks.cu), by what they do. */
typedef enum kg_check {
    KG_CHECK_FILL,
    KG_CHECK_BANDS,
    KG_CHECK_DIFFER,
    KG_CHECK_HASH,
    KG_CHECK_READ,
    KG_CHECK_COPY,
    KG_CHECK_COMPARE, /* + kg_dtype */
    KG_CHECK_COUNT = KG_CHECK_COMPARE + KG_DTYPE_COUNT
} kg_check;

enum {
    KG_STAGES = 2, /* pieces under way between host and device */
    KG_STAGE_BYTES = 32 << 20,
    KG_SCRATCH_WORDS = 256 /* of device memory, for answers of the kernels */
};

/* What the host's memory goes through on its way to the device. */
typedef struct kg_stage {
    char *pinned;
    kg_cu_ptr device[2]; /* an oracle's piece, an output's */
    kg_cu_event free;    /* the device is done with it */
} kg_stage;

/* A set's memory that was copied to the device once. */
typedef struct kg_device_copy {
    const void *from;
    size_t bytes;
    kg_cu_ptr at;
    struct kg_device_copy *next;
} kg_device_copy;

typedef struct kg_cuda_judge {
    int index;
    const kg_cuda_device *gpu;
    kg_cu_stream stream;
    kg_cu_event begin, end;
    kg_cu_module module; /* NULL until the first check */
    kg_buf image;        /* which it was loaded from */
    kg_cu_function checks[KG_CHECK_COUNT];
    kg_cu_ptr scratch, partials;
    size_t blocks;   /* of a check's grid; partials has as many */
    uint64_t secret; /* of the hashes */
    kg_stage stages[KG_STAGES];
    size_t turn; /* the stage that is next */
    kg_device_copy *copies;
    kg_worker *spare; /* started ahead, and not greeted yet */
    kg_worker *kept;  /* of the Candidate that is judged, between two of its Cases */
    int lock;         /* of the device, held between begin and end; -1 */
} kg_cuda_judge;

/* Every function below wants the device's context current in this thread (kg_cuda_enter). */

/* --- judge_cuda_checks.c --- */
/* Compiles (or finds in the cache) and loads the checking kernels, once. */
int kg_checks_load(kg_cuda_judge *c, kg_error *err);
void kg_checks_unload(kg_cuda_judge *c);
/* All wait until they are done. Addresses are the device's. */
int kg_check_fill(kg_cuda_judge *c, kg_cu_ptr to, size_t n, uint64_t word, kg_error *err);
typedef struct kg_band {
    kg_cu_ptr at;
    size_t bytes;
    uint64_t word; /* byte i of the word is at addresses i, i + 8, ... */
} kg_band;
enum { KG_MAX_BANDS = 2 * KG_W_MAX_BUFFERS };
/* first[i]: offset of the first byte of band i that is not its word's; UINT64_MAX: whole. */
int kg_check_bands(kg_cuda_judge *c, const kg_band *bands, size_t n, uint64_t *first,
                   kg_error *err);
int kg_check_differ(kg_cuda_judge *c, kg_cu_ptr a, kg_cu_ptr b, size_t n, int64_t *at,
                    kg_error *err);
/* from and n are multiples of 16. */
int kg_check_hash(kg_cuda_judge *c, kg_cu_ptr from, size_t n, kg_hash128 *out, kg_error *err);
/* Adds n elements to the sums of this comparison; does not wait. Both addresses are multiples of
 * 16. */
int kg_check_compare(kg_cuda_judge *c, int dtype, kg_cu_ptr out, kg_cu_ptr oracle, size_t n,
                     uint64_t poison, kg_error *err);
int kg_check_compare_begin(kg_cuda_judge *c, kg_error *err);
int kg_check_compare_end(kg_cuda_judge *c, kg_sums *out, kg_error *err);
/* Bytes a second: the best of several passes over two buffers of n bytes. */
int kg_check_rates(kg_cuda_judge *c, kg_cu_ptr a, kg_cu_ptr b, size_t n, double *read,
                   double *write, double *copy, kg_error *err);

/* --- judge_cuda_memory.c: the memory of the seam --- */
int kg_cuda_place(kg_judge *j, kg_slot *s, size_t bytes, size_t align, kg_error *err);
void kg_cuda_drop(kg_judge *j, kg_slot *s);
int kg_cuda_guards(kg_judge *j, const kg_slot *const *slots, size_t n, kg_broken *out,
                   kg_error *err);
int kg_cuda_copy(kg_judge *j, void *to, const void *from, size_t n, kg_error *err);
int kg_cuda_fill(kg_judge *j, void *to, int dtype, size_t n, uint64_t pattern, kg_error *err);
int kg_cuda_hash(kg_judge *j, const void *from, size_t n, kg_hash128 *out, kg_error *err);
int kg_cuda_compare(kg_judge *j, int dtype, const void *out, const void *oracle, size_t n,
                    uint64_t poison, kg_comparison *result, kg_error *err);
int kg_cuda_differ(kg_judge *j, const void *a, const void *b, size_t n, int64_t *at, kg_error *err);
int kg_cuda_view(const kg_judge *j, const void *from, size_t n, void *scratch, const void **out,
                 kg_error *err);
void kg_cuda_forget(kg_judge *j);
void kg_stages_close(kg_cuda_judge *c);

/* --- judge_cuda_run.c: a Candidate on the device --- */
void kg_cuda_worker_ahead(kg_judge *j);
int kg_cuda_worker_take(kg_bench *b, kg_worker **out, kg_error *err);
void kg_cuda_worker_keep(kg_judge *j, kg_worker *w);
void kg_cuda_worker_done(kg_judge *j);
int kg_cuda_load_image(kg_bench *b, const kg_buf *image, bool *ok, kg_error *err);
int kg_cuda_died(kg_bench *b, kg_error *err);

/* --- judge_cuda_time.c --- */
int kg_cuda_time(kg_bench *b, bool *ok, kg_error *err);

#endif
