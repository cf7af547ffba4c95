/* How far an output is from the oracle, at the speed of memory.
 *
 * An output and its oracle are flat arrays in the same order. Floating outputs are compared in
 * double with a double oracle; integer and bool outputs exactly, with an int64 oracle, of which
 * the least number stands for any value (kg_any_integer). */
#ifndef KG_TUNE_COMPARE_H
#define KG_TUNE_COMPARE_H

#include <math.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include "base/buf.h"
#include "runtime/types.h"
#include "tune/check_core.h"

/* What an output may differ by, in units of its scale: the largest magnitude of the oracle for max,
 * its norm for norm. */
typedef struct kg_tolerance {
    double norm, max;
} kg_tolerance;

/* torch's own errors against the same oracle, in the same units. */
typedef struct kg_errors {
    double norm, max;
} kg_errors;

typedef struct kg_comparison {
    size_t n;
    double norm_err, max_err; /* over the elements that are finite on both sides */
    double scale;             /* largest finite magnitude of the oracle */
    size_t unwritten;         /* elements that still hold the poison (and should not) */
    size_t nonfinite;         /* not finite where the oracle is */
    size_t misplaced;         /* the oracle is not finite, and the output is not the same */
    size_t unequal;           /* integers: elements that differ */
    size_t not_close;         /* outside of allclose's tolerance for the dtype */
} kg_comparison;

/* err(candidate) <= k * err(torch) + eps: k is 4 by norm and 8 by the worst element. precision is a
 * kg_precision; reduction the number of elements summed into one output. scale as in kg_comparison.
 */
kg_tolerance kg_tolerance_of(int dtype, int precision, int64_t reduction, kg_errors torch_errors,
                             double scale);

/* poison: the bits that every element was set to before the call (its low bytes, for narrow
 * dtypes). threads: at most that many. */
int kg_compare(int dtype, const void *out, const void *oracle, size_t n, uint64_t poison,
               size_t threads, kg_comparison *result, kg_error *err);

/* The same from what elements added up to, wherever they were gone through. */
kg_comparison kg_comparison_of(int dtype, size_t n, const kg_sums *sums);
kg_range kg_range_of(int dtype);
/* The bits of a pattern that an element holds. */
uint64_t kg_low_bytes(int dtype, uint64_t pattern);

/* One element as a double or an integer, and as text, for messages. */
double kg_element(int dtype, const void *data, size_t i);
void kg_element_text(int dtype, const void *data, size_t i, char out[40]);

/* Whether element i is wrong, by the limit of the worst element (or the poison). */
bool kg_element_wrong(int dtype, const void *out, const void *oracle, size_t i, uint64_t poison,
                      double limit);

#define KG_MAX_MISMATCHES 8

/* The first wrong elements, and where all of them lie: a box, and along each dim, as bits, the
 * remainders of their indices by 64. */
typedef struct kg_mismatches {
    size_t count, shown;
    uint64_t got[KG_MAX_MISMATCHES], expected[KG_MAX_MISMATCHES]; /* bits, as kg_element reads */
    int64_t index[KG_MAX_MISMATCHES][KG_MAX_RANK];
    int64_t low[KG_MAX_RANK], high[KG_MAX_RANK]; /* inclusive */
    uint64_t remainders[KG_MAX_RANK];
} kg_mismatches;

/* The period, a power of two up to 64, after which wrong indices along a dim repeat, as with one
 * lane of a vector or the edge of a tile; *bits: which of its places are wrong. 0: no such pattern,
 * or too few elements to tell one from chance. */
int kg_period_of(const kg_mismatches *m, int32_t dim, uint64_t *bits);

/* Adds what is wrong of n elements, of which the first lies at flat position `first` of the output;
 * found starts as {0}. shape gives sizes and strides of the output, which is dense. */
void kg_find_more(const kg_tensor *shape, const void *out, const void *oracle, size_t first,
                  size_t n, uint64_t poison, double limit, kg_mismatches *found);

/* Flat memory position to index. */
void kg_index_of(const kg_tensor *shape, size_t at, int64_t index[KG_MAX_RANK]);

/* Fills n elements with the low bytes of a pattern, or copies, on several threads. */
void kg_fill_parallel(void *to, int dtype, size_t n, uint64_t pattern, size_t threads);
void kg_copy_parallel(void *to, const void *from, size_t bytes, size_t threads);
/* The first byte that differs, or -1. */
int64_t kg_differ_parallel(const void *a, const void *b, size_t bytes, size_t threads);

/* A pattern for outputs of a dtype: a NaN that no arithmetic makes, or a sentinel; secret. */
uint64_t kg_poison(int dtype, uint64_t random);

#endif
