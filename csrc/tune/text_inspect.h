/* A lexical look at a Candidate's own text, for messages that name the line. What it cannot see (a
 * word that a macro glues together) the inspection of the object sees; neither replaces the other.
 */
#ifndef KG_TUNE_TEXT_INSPECT_H
#define KG_TUNE_TEXT_INSPECT_H

#include "base/buf.h"

/* KG_EUNSUPPORTED with "softmax.c:12: ..." in complaint when the text has asm, an include outside
 * the closed list, an attribute or pragma that makes code run at load, or a thread-local variable.
 */
int kg_text_inspect(const char *text, size_t n, const char *name, kg_buf *complaint, kg_error *err);

#endif
