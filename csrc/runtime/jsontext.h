/* JSON written by hand, for answers to Python: the runtime links no JSON library and reads none. */
#ifndef KG_RUNTIME_JSONTEXT_H
#define KG_RUNTIME_JSONTEXT_H

#include "base/buf.h"

void kg_jt_text(kg_buf *out, const char *s); /* quoted and escaped; NULL gives null */
/* 17 digits, which read back as the same double; NaN and Infinity as Python's json has them. */
void kg_jt_double(kg_buf *out, double v);
/* ,"key": (without the comma after '{' and '['). */
void kg_jt_key(kg_buf *out, const char *key);
void kg_jt_comma(kg_buf *out); /* before an element of a list, unless it is the first */

#endif
