/* The text of the checking kernels, embedded by the build (cmake/embed.cmake). */
#ifndef KG_TUNE_CHECKS_SOURCE_H
#define KG_TUNE_CHECKS_SOURCE_H

#include <stddef.h>

/* A NUL follows, which kg_checks_source_bytes does not count. */
extern const char kg_checks_source[];
extern const size_t kg_checks_source_bytes;

#endif
