/* Whether results of 16 bits were rounded or cut off. */
#ifndef KG_TUNE_ROUNDING_H
#define KG_TUNE_ROUNDING_H

#include <stddef.h>

/* How far outputs lie from the nearest value of their dtype to the oracle, on average, in units of
 * that value's last place (at most 1 each) and counted towards zero. Rounding to nearest gives
 * about 0, cutting off 0.5, whatever the inputs. A sample of the n elements is looked at; 0 where
 * it is too small or too uniform to tell, and for other dtypes than float16 and bfloat16. */
double kg_rounding_bias(int dtype, const void *out, const void *oracle, size_t n);

/* More than this is no rounding to nearest: the mean of a sample of varied values is off by less
 * than 0.02 by chance, and half a unit when bits are cut off. */
#define KG_ROUNDING_BIAS 0.4

#endif
