/* Growing buffers, and the flat fields of the index and of the worker protocol. Refuses to pass a
 * cap and to read past an end; both are remembered, so that callers check once. */
#include "base/buf.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* A buffer that nobody bounded still must not take the machine with it. */
#define DEFAULT_MAX ((size_t)1 << 30)
#define FIRST_CAP ((size_t)64)

static size_t max_of(const kg_buf *b) {
    return b->max ? b->max : DEFAULT_MAX;
}

void kg_buf_init(kg_buf *b, size_t max) {
    *b = (kg_buf){.max = max ? max : DEFAULT_MAX};
}

void kg_buf_free(kg_buf *b) {
    free(b->data);
    kg_buf_init(b, b->max);
}

void kg_buf_clear(kg_buf *b) {
    b->len = 0;
    b->status = KG_OK;
    if (b->data)
        b->data[0] = '\0';
}

static int spoil(kg_buf *b, int status) {
    b->status = status;
    return status;
}

/* Room for n more bytes and the NUL. */
static int make_room(kg_buf *b, size_t n) {
    if (b->status < 0)
        return b->status;
    if (b->len > max_of(b) || n > max_of(b) - b->len)
        return spoil(b, KG_EOVERFLOW);
    if (n >= SIZE_MAX - b->len)
        return spoil(b, KG_EOVERFLOW);
    size_t need = b->len + n + 1;
    if (need <= b->cap)
        return KG_OK;
    size_t cap = b->cap > SIZE_MAX / 2 ? need : b->cap * 2;
    if (cap < FIRST_CAP)
        cap = FIRST_CAP;
    if (cap < need)
        cap = need;
    char *data = realloc(b->data, cap);
    if (!data)
        return spoil(b, KG_ENOMEM);
    if (!b->data)
        data[0] = '\0';
    b->data = data;
    b->cap = cap;
    return KG_OK;
}

void *kg_buf_reserve(kg_buf *b, size_t n) {
    if (make_room(b, n) < 0)
        return NULL;
    char *at = b->data + b->len;
    b->len += n;
    b->data[b->len] = '\0';
    return at;
}

int kg_buf_add(kg_buf *b, const void *bytes, size_t n) {
    void *at = kg_buf_reserve(b, n);
    if (at && n)
        memcpy(at, bytes, n);
    return b->status;
}

int kg_buf_putc(kg_buf *b, char c) {
    return kg_buf_add(b, &c, 1);
}

int kg_buf_puts(kg_buf *b, const char *text) {
    return kg_buf_add(b, text, strlen(text));
}

int kg_buf_vprintf(kg_buf *b, const char *fmt, va_list ap) {
    if (make_room(b, 0) < 0)
        return b->status;
    va_list again;
    va_copy(again, ap);
    size_t room = b->cap - b->len;
    int n = vsnprintf(b->data + b->len, room, fmt, ap);
    if (n < 0 || (size_t)n >= room)
        b->data[b->len] = '\0';
    if (n < 0)
        spoil(b, KG_EOVERFLOW);
    else if (make_room(b, (size_t)n) == KG_OK) {
        if ((size_t)n >= room)
            vsnprintf(b->data + b->len, (size_t)n + 1, fmt, again);
        b->len += (size_t)n;
    }
    va_end(again);
    return b->status;
}

int kg_buf_printf(kg_buf *b, const char *fmt, ...) {
    va_list ap;
    va_start(ap, fmt);
    int status = kg_buf_vprintf(b, fmt, ap);
    va_end(ap);
    return status;
}

char *kg_buf_take(kg_buf *b) {
    if (make_room(b, 0) < 0)
        return NULL;
    char *text = b->data;
    b->data = NULL;
    kg_buf_free(b);
    return text;
}

int kg_buf_check(const kg_buf *b, const char *what, kg_error *err) {
    if (b->status == KG_EOVERFLOW)
        return kg_fail(err, KG_EOVERFLOW, "%s: larger than the limit of %zu bytes", what,
                       max_of(b));
    if (b->status < 0)
        return kg_fail(err, b->status, "%s: %s", what, kg_status_text(b->status));
    return KG_OK;
}

static int put_le(kg_buf *b, uint64_t v, size_t n) {
    unsigned char bytes[8];
    for (size_t i = 0; i < n; i++)
        bytes[i] = (unsigned char)(v >> (8 * i));
    return kg_buf_add(b, bytes, n);
}

int kg_put_u8(kg_buf *b, uint8_t v) {
    return put_le(b, v, 1);
}

int kg_put_u32(kg_buf *b, uint32_t v) {
    return put_le(b, v, 4);
}

int kg_put_u64(kg_buf *b, uint64_t v) {
    return put_le(b, v, 8);
}

int kg_put_i64(kg_buf *b, int64_t v) {
    return put_le(b, (uint64_t)v, 8);
}

int kg_put_f64(kg_buf *b, double v) {
    uint64_t bits;
    memcpy(&bits, &v, sizeof bits);
    return put_le(b, bits, 8);
}

/* All or nothing: a field that does not fit leaves no length without its bytes. */
int kg_put_bytes(kg_buf *b, const void *bytes, size_t n) {
    if (b->status < 0)
        return b->status;
    if (n > UINT32_MAX || make_room(b, n + 5) < 0)
        return spoil(b, b->status < 0 ? b->status : KG_EOVERFLOW);
    kg_put_u32(b, (uint32_t)n);
    kg_buf_add(b, bytes, n);
    return kg_buf_putc(b, '\0');
}

int kg_put_str(kg_buf *b, const char *s) {
    return kg_put_bytes(b, s ? s : "", s ? strlen(s) : 0);
}

void kg_reader_init(kg_reader *r, const void *bytes, size_t n) {
    *r = (kg_reader){.data = bytes, .len = n};
}

static const unsigned char *take(kg_reader *r, size_t n) {
    if (r->status < 0)
        return NULL;
    if (n > r->len - r->pos) {
        r->status = KG_EFORMAT;
        return NULL;
    }
    const char *at = r->data + r->pos;
    r->pos += n;
    return (const unsigned char *)at;
}

static uint64_t get_le(kg_reader *r, size_t n) {
    const unsigned char *at = take(r, n);
    uint64_t v = 0;
    for (size_t i = 0; at && i < n; i++)
        v |= (uint64_t)at[i] << (8 * i);
    return v;
}

uint8_t kg_get_u8(kg_reader *r) {
    return (uint8_t)get_le(r, 1);
}

uint32_t kg_get_u32(kg_reader *r) {
    return (uint32_t)get_le(r, 4);
}

uint64_t kg_get_u64(kg_reader *r) {
    return get_le(r, 8);
}

int64_t kg_get_i64(kg_reader *r) {
    uint64_t bits = get_le(r, 8);
    int64_t v;
    memcpy(&v, &bits, sizeof v);
    return v;
}

double kg_get_f64(kg_reader *r) {
    uint64_t bits = get_le(r, 8);
    double v;
    memcpy(&v, &bits, sizeof v);
    return v;
}

const void *kg_get_bytes(kg_reader *r, size_t *n) {
    if (n)
        *n = 0;
    size_t len = kg_get_u32(r);
    const char *at = (const char *)take(r, len);
    const unsigned char *end = take(r, 1);
    if (!at || !end || *end != '\0') {
        if (r->status == KG_OK) /* else it stays what it was: it may have been for want of memory */
            r->status = KG_EFORMAT;
        return "";
    }
    if (n)
        *n = len;
    return at;
}

/* A NUL inside would make two different fields compare equal as C strings. */
const char *kg_get_str(kg_reader *r) {
    size_t n;
    const char *s = kg_get_bytes(r, &n);
    if (n && memchr(s, '\0', n)) {
        r->status = KG_EFORMAT;
        return "";
    }
    return s;
}
