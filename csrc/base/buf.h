/* A growing byte buffer with a cap and a sticky status: a long write is checked once, at its end.
 *
 * Invariants: data[len] is always '\0' when data is not NULL; after a failure (out of memory, or a
 * write that would pass max) status stays negative, later writes do nothing, and the bytes before
 * it stay. */
#ifndef KG_BASE_BUF_H
#define KG_BASE_BUF_H

#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include "base/error.h"

typedef struct kg_buf {
    char *data;
    size_t len, cap, max;
    int status; /* KG_OK, KG_ENOMEM or KG_EOVERFLOW */
} kg_buf;

/* max is in bytes; 0 means 1 GiB. */
void kg_buf_init(kg_buf *b, size_t max);
void kg_buf_free(kg_buf *b);  /* ready for use again, with the same max */
void kg_buf_clear(kg_buf *b); /* len and status to zero, memory kept */
int kg_buf_add(kg_buf *b, const void *bytes, size_t n);
int kg_buf_putc(kg_buf *b, char c);
int kg_buf_puts(kg_buf *b, const char *text);
int kg_buf_printf(kg_buf *b, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
int kg_buf_vprintf(kg_buf *b, const char *fmt, va_list ap) __attribute__((format(printf, 2, 0)));
/* n bytes to write into, uninitialised, which count as added; NULL after a failure. */
void *kg_buf_reserve(kg_buf *b, size_t n);
/* The string, which the caller frees; b is empty after. NULL after a failure. An empty buffer gives
 * "". */
char *kg_buf_take(kg_buf *b);
/* KG_OK, or the sticky status with a message naming what was being built. */
int kg_buf_check(const kg_buf *b, const char *what, kg_error *err);

/* Flat binary fields: little endian, no padding; str is a u32 length, then the bytes, then a NUL.
 * Used by the index and the worker protocol. */
int kg_put_u8(kg_buf *b, uint8_t v);
int kg_put_u32(kg_buf *b, uint32_t v);
int kg_put_u64(kg_buf *b, uint64_t v);
int kg_put_i64(kg_buf *b, int64_t v);
int kg_put_f64(kg_buf *b, double v);
int kg_put_str(kg_buf *b, const char *s);                 /* NULL is written as "" */
int kg_put_bytes(kg_buf *b, const void *bytes, size_t n); /* u32 length, bytes, NUL */

/* A reader over borrowed bytes. After a short read status is KG_EFORMAT, every later get returns 0
 * or
 * "", and nothing is read past the end. Strings it returns are borrowed from the bytes. */
typedef struct kg_reader {
    const char *data;
    size_t len, pos;
    int status;
} kg_reader;

void kg_reader_init(kg_reader *r, const void *bytes, size_t n);
uint8_t kg_get_u8(kg_reader *r);
uint32_t kg_get_u32(kg_reader *r);
uint64_t kg_get_u64(kg_reader *r);
int64_t kg_get_i64(kg_reader *r);
double kg_get_f64(kg_reader *r);
const char *kg_get_str(kg_reader *r);
const void *kg_get_bytes(kg_reader *r, size_t *n);

#endif
