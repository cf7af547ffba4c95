/* Images: a Candidate compiled for one call class. Built through a per-user content-addressed
 * cache: losing a race is fine, a corrupt entry is built again, a cache that cannot be written is
 * only slower. */
#ifndef KG_RUNTIME_IMAGE_H
#define KG_RUNTIME_IMAGE_H

#include "runtime/plan.h"
#include "runtime/program.h"

/* Why a CPU object is refused; NULL when it is fine. The text names section or symbol and the rule.
 */
int kg_object_inspect(const void *object, size_t n, kg_buf *complaint, kg_error *err);

/* The shared object's bytes for a full translation unit (from kg_source_build): cache, else
 * compile, inspect, link, store. status KG_ECOMPILE: messages has the compiler's text.
 * KG_EUNSUPPORTED: the inspection refused it, messages says why. `path` (may be NULL) gets the
 * cached file's path, "" when the cache is not there. more: others with the same headers follow, so
 * those are compiled by themselves beside it, and kept. */
int kg_image_cpu(const char *source, size_t n, const char *name, const char *arch, unsigned flags,
                 bool more, kg_buf *image, kg_buf *messages, char path[512], kg_error *err);
/* True if the cache has it (nothing is compiled). */
bool kg_image_cached(const char *source, size_t n, const char *arch, unsigned flags);

typedef void (*kg_entry)(int64_t begin, int64_t end, void *const *args);

/* Loads an image into this process and finds kg_entry_0 .. kg_entry_<n-1>. Images stay loaded. */
int kg_image_load(const char *path, const void *image, size_t n, size_t nentries, kg_entry *entries,
                  kg_error *err);

#endif
