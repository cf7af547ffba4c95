/* How numbers and strings are spelled in JSON. Private to json.c and its tests. */
#ifndef KG_BASE_JSON_TEXT_H
#define KG_BASE_JSON_TEXT_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/buf.h"

/* 2^53: above it not every integer is a double, so an integer could change silently. */
#define KG_JSON_INT_MAX INT64_C(9007199254740992)

/* Integers up to 2^53 without point; others with the fewest digits that read back the same, in the
 * form of Python's repr ("0.1", "1e-05", "1e+16", "-0.0"). v must be finite. Any locale. */
int kg_json_put_double(kg_buf *b, double v);
/* Quoted; s must be UTF-8. */
int kg_json_put_string(kg_buf *b, const char *s);
/* Appends s with what is not UTF-8 replaced by U+FFFD. */
int kg_json_put_clean(kg_buf *b, const char *s);
/* Bytes of the UTF-8 sequence that s opens with (1 to 4), or 0: overlong, surrogate, above
 * U+10FFFF, cut. */
size_t kg_utf8_len(const char *s, size_t n);
int kg_utf8_put(kg_buf *b, uint32_t code_point);
/* Decimal text to a double, in any locale. */
double kg_json_to_double(const char *digits);
/* The same of n bytes, digits with or without '-' before them; false where they are so many that
 * more is to be looked at. */
bool kg_json_to_integer(const char *digits, size_t n, double *out);

#endif
