/* JSON over cJSON, strict and read-mostly. The only room that includes cJSON; never linked into the
 * runtime.
 *
 * A document is refused when it has trailing text, a duplicate key, a number that is not finite, or
 * is nested deeper than 64. Integers are those of magnitude up to 2^53. */
#ifndef KG_BASE_JSON_H
#define KG_BASE_JSON_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/buf.h"
#include "base/error.h"

typedef struct cJSON kg_json; /* a node; borrowed from its root unless said otherwise */

/* text need not end in NUL. what ("plan of softmax.c") opens the error message, which gives line
 * and column. */
int kg_json_parse(const char *text, size_t n, const char *what, kg_json **root, kg_error *err);
void kg_json_free(kg_json *root);

bool kg_json_is_object(const kg_json *j);
bool kg_json_is_array(const kg_json *j);
bool kg_json_is_string(const kg_json *j);
bool kg_json_is_number(const kg_json *j);
bool kg_json_is_bool(const kg_json *j);
bool kg_json_is_null(const kg_json *j);
const char *kg_json_type(const kg_json *j); /* "object", "array" ..., "nothing" for NULL */

/* NULL when absent. */
const kg_json *kg_json_get(const kg_json *object, const char *key);
size_t kg_json_size(const kg_json *array_or_object);
const kg_json *kg_json_at(const kg_json *array_or_object, size_t i);
const char *kg_json_key(const kg_json *member); /* the key that a member of an object has */

/* Typed reads of a node; what names it in the error ("launches[0].grid"). */
int kg_json_str(const kg_json *j, const char *what, const char **out, kg_error *err);
int kg_json_int(const kg_json *j, const char *what, int64_t *out, kg_error *err);
int kg_json_double(const kg_json *j, const char *what, double *out, kg_error *err);
int kg_json_bool(const kg_json *j, const char *what, bool *out, kg_error *err);

/* KG_EFORMAT naming the first key that is not in the NULL-terminated list, and the keys that are.
 */
int kg_json_only(const kg_json *object, const char *what, const char *const *keys, kg_error *err);
/* Reads "format": KG_EVERSION when above max, naming both; KG_EFORMAT when absent. */
int kg_json_format(const kg_json *object, const char *what, int max, kg_error *err);

/* Building. A new root is the caller's; set and push give the value away and return its node. NULL
 * from any means that it was lost (out of memory, or an integer beyond 2^53): adding to or of NULL
 * is a no-op that returns NULL, a container that lost a part takes no more, and writing it fails,
 * so a chain is checked at its end. Keys and strings that are no UTF-8 get U+FFFD where they break
 * it. */
kg_json *kg_json_new_object(void);
kg_json *kg_json_new_array(void);
kg_json *kg_json_copy(const kg_json *j);
kg_json *kg_json_set(kg_json *object, const char *key, kg_json *value);        /* replaces */
kg_json *kg_json_set_str(kg_json *object, const char *key, const char *value); /* NULL gives null */
kg_json *kg_json_set_int(kg_json *object, const char *key, int64_t value);
kg_json *kg_json_set_double(kg_json *object, const char *key,
                            double value); /* not finite gives null */
kg_json *kg_json_set_bool(kg_json *object, const char *key, bool value);
kg_json *kg_json_push(kg_json *array, kg_json *value);
kg_json *kg_json_push_str(kg_json *array, const char *value);
kg_json *kg_json_push_int(kg_json *array, int64_t value);
kg_json *kg_json_push_double(kg_json *array, double value);

/* Canonical: keys sorted by bytes, no white space, integers without point, other numbers with the
 * fewest digits that read back the same in the form of Python's repr, non-ASCII as UTF-8, only what
 * JSON must escape is escaped. One value has one text, so it can be hashed; it is that of Python's
 * json.dumps with sort_keys, separators=(",", ":") and ensure_ascii=False, where whole floats are
 * given as int. Fails with KG_EOVERFLOW when nested deeper than 64. */
int kg_json_canonical(const kg_json *j, kg_buf *out);
/* For the public API: takes j; its canonical text is *out, the caller's, when rc and what is
 * returned are KG_OK. */
int kg_json_give(int rc, kg_json *j, char **out, kg_error *err);
/* For files that people read: two spaces, keys in insertion order, a newline at the end; arrays of
 * numbers or of short strings stay on one line. */
int kg_json_pretty(const kg_json *j, kg_buf *out);

#endif
