/* The headers at the head of a CPU Candidate's unit, compiled ahead. Internal to image*.c. */
#ifndef KG_RUNTIME_IMAGE_HEADERS_H
#define KG_RUNTIME_IMAGE_HEADERS_H

#include <stdbool.h>
#include <stddef.h>

#include "base/buf.h"
#include "runtime/image_cache.h"

/* The path for kg_cc_object of what is kept of a source's headers; false when there is none, or the
 * source begins with none. */
bool kg_headers_find(const char *source, size_t n, const char *arch, unsigned flags,
                     char path[KG_IMAGE_PATH]);

typedef struct kg_headers_job kg_headers_job;

/* Compiles a source's headers in a thread, for those that come after it. NULL when there is nothing
 * to do: they are kept, another thread is at it, it failed before, or the compiler cannot. */
kg_headers_job *kg_headers_begin(const char *source, size_t n, const char *arch, unsigned flags);
/* Waits for it, and keeps what came of it. NULL is fine. */
void kg_headers_end(kg_headers_job *job);

#endif
