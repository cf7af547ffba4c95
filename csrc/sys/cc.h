/* The C compiler of the machine (CPU Candidates), found at run time: $KGEN_CC, $CC, cc, gcc, clang.
 */
#ifndef KG_SYS_CC_H
#define KG_SYS_CC_H

#include "base/buf.h"
#include "base/error.h"

typedef struct kg_cc {
    char path[256];
    char version[128]; /* first line of --version */
    char kind[16];     /* "gcc" or "clang" */
} kg_cc;

/* Found once a process. KG_EENV says what was looked for and how to get one. */
int kg_cc_find(const kg_cc **out, kg_error *err);

/* The highest of 1..4 that this CPU (and OS) supports: x86-64-v1 .. v4. 0 elsewhere. */
int kg_cpu_level(void);
int kg_cpu_has_amx(void);

/* Compiles #include lines by themselves. What comes out lies beside a file of the same text, under
 * its name and ".gch", and the path of that file is a `headers` of kg_cc_object for sources that
 * begin with these lines. gcc's alone. */
int kg_cc_headers(const char *text, size_t n, const char *arch, unsigned flags, kg_buf *out,
                  kg_error *err);

/* Compiles one freestanding translation unit to a relocatable object, then (after the caller
 * inspected it) links it. arch is "x86-64-v3"; flags are KG_FLAG_* of the plan. On KG_ECOMPILE out
 * holds the compiler's messages with paths cut to `name`. Compiler runs in an empty temporary
 * folder, with limits (60 s, 4 GiB). headers: NULL, or what saves reading them; the object is the
 * same, also when it is of no use. */
int kg_cc_object(const char *source, size_t n, const char *name, const char *headers,
                 const char *arch, unsigned flags, kg_buf *object, kg_buf *messages, kg_error *err);
int kg_cc_link(const void *object, size_t n, kg_buf *shared, kg_error *err);
/* The flags that would be used, as one string: part of an image's cache key. */
const char *kg_cc_flags(const char *arch, unsigned flags, char *out, size_t n);

#endif
