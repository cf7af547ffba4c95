/* Statistics of times. */
#ifndef KG_TUNE_TIMING_H
#define KG_TUNE_TIMING_H

#include <stddef.h>
#include <stdint.h>

#include "base/error.h"

typedef struct kg_summary {
    double median, p10, p90; /* by linear interpolation between order statistics */
    size_t n;
} kg_summary;

/* KG_EINVAL for n = 0 or a time that is not positive and finite. */
int kg_summarize(const double *times, size_t n, kg_summary *out, kg_error *err);

/* a over b: how many times faster b is. The ratio of the medians and its bootstrap interval
 * (percentiles of `level`, such as 0.95, over resampled pairs). Pairs (a[i], b[i]) were measured
 * one after the other and are drawn together, so that what slows a machine for a while slows both;
 * where ratios of neighbouring pairs are alike, the interval is widened for it.
 * The same seed gives the same interval. */
typedef struct kg_ratio {
    double median, low, high;
} kg_ratio;

int kg_ratio_of(const double *a, const double *b, size_t n, double level, uint64_t seed,
                kg_ratio *out, kg_error *err);

#endif
