/* Which files the compiler may open, whose input is a Candidate's text: its own, the system's
 * libraries and headers, and the folder it works in. */
#ifndef KG_SYS_CC_PLACES_H
#define KG_SYS_CC_PLACES_H

#include "base/error.h"

/* A ruleset (sys/sandbox.h) for one run of the compiler at `path` with this environment. dir: where
 * it works, the one place that it may write; headers: NULL, or a file that it may read, as the one
 * of that name and ".gch". *ruleset: a descriptor, the caller's; -1: the kernel has no landlock.
 * The compiler's own places are asked for once a process. Thread-safe. */
int kg_cc_ruleset(const char *path, const char *const env[], const char *dir, const char *headers,
                  int *ruleset, kg_error *err);

#endif
