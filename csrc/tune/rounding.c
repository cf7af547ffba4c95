/* The tolerance of a 16-bit output is several roundings wide, since torch's own result is off by
 * one; so cutting bits off, which is wrong by twice as much and always in one direction, passes it.
 * Only the direction tells. Refuses to judge from few elements or from elements that are all alike:
 * those of an honest kernel may then all fall to one side. */
#include "tune/rounding.h"

#include <math.h>
#include <stdbool.h>

#include "tune/compare.h"

enum {
    SAMPLE = 1 << 16,
    FEWEST = 1024,
    BINS = 128,    /* by the last 7 bits of the nearest value */
    MOST_ALIKE = 8 /* no bin has more than one in so many */
};

typedef struct digits {
    int significant, least; /* bits, and the exponent of the smallest normal number */
} digits;

static bool digits_of(int dtype, digits *d) {
    *d = dtype == KG_BF16 ? (digits){8, -125} : (digits){11, -13};
    return dtype == KG_BF16 || dtype == KG_F16;
}

/* False where the element says nothing. */
static bool add(digits d, double x, double r, size_t bins[BINS], double *sum) {
    int exponent;
    if (!isfinite(r) || !isfinite(x) || r == 0)
        return false;
    double magnitude = fabs(r);
    frexp(magnitude, &exponent);
    if (exponent < d.least)
        return false;
    double nearest = rint(ldexp(magnitude, d.significant - exponent));
    double got = ldexp(r < 0 ? -x : x, d.significant - exponent);
    bins[(unsigned)nearest % BINS]++;
    /* A result that cancelled is off by many units, to either side: no element counts for more than
     * the one that cutting off can cost. */
    *sum += fmin(1, fmax(-1, nearest - got));
    return true;
}

double kg_rounding_bias(int dtype, const void *out, const void *oracle, size_t n) {
    digits d;
    if (!digits_of(dtype, &d) || n < FEWEST)
        return 0;
    size_t step = (n / SAMPLE + 1) | 1, count = 0, most = 0, bins[BINS] = {0};
    double sum = 0;
    for (size_t i = 0; i < n; i += step)
        count += add(d, kg_element(dtype, out, i), ((const double *)oracle)[i], bins, &sum);
    for (size_t i = 0; i < BINS; i++)
        most = bins[i] > most ? bins[i] : most;
    return count < FEWEST || most * MOST_ALIKE > count ? 0 : sum / (double)count;
}
