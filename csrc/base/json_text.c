/* Spelling of JSON numbers and strings. One value has one text, whatever the locale of the process
 * is: hashes are taken over it. */
#include "base/json_text.h"

#include <locale.h>
#include <math.h>
#include <pthread.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static pthread_once_t once = PTHREAD_ONCE_INIT;
static locale_t c_locale;

static void make_locale(void) {
    c_locale = newlocale(LC_ALL_MASK, "C", (locale_t)0);
}

/* newlocale("C") allocates nothing in glibc; where it fails all the same, the process' locale
 * rules. */
static locale_t enter_c_locale(void) {
    pthread_once(&once, make_locale);
    return c_locale ? uselocale(c_locale) : (locale_t)0;
}

static void leave_c_locale(locale_t before) {
    if (before)
        uselocale(before);
}

double kg_json_to_double(const char *digits) {
    locale_t before = enter_c_locale();
    double v = strtod(digits, NULL);
    leave_c_locale(before);
    return v;
}

bool kg_json_to_integer(const char *digits, size_t n, double *out) {
    enum { FEW = 15 };
    bool negative = n > 0 && digits[0] == '-';
    int64_t v = 0;
    if (n > FEW)
        return false;
    for (size_t i = negative; i < n; i++)
        v = 10 * v + (digits[i] - '0');
    *out = negative ? -(double)v : (double)v;
    return true;
}

static bool reads_back(const char *text, double v) {
    double back = strtod(text, NULL);
    return memcmp(&back, &v, sizeof v) == 0;
}

/* The next decimal of as many digits; false when all are nines, for then fewer digits have done. */
static bool step_up(char *text) {
    for (char *s = strchr(text, 'e') - 1; s >= text; s--) {
        if (*s == '.' || *s == '-')
            continue;
        if (*s != '9') {
            ++*s;
            return true;
        }
        *s = '0';
    }
    return false;
}

/* The fewest significant digits that read back as v, as "d.ddde[+-]xx". At a power of two the gap
 * below is half of the one above, so the nearest decimal may miss where the next one up does not.
 */
static void shortest(double v, char out[40]) {
    locale_t before = enter_c_locale();
    for (int digits = 1; digits <= 17; digits++) {
        snprintf(out, 40, "%.*e", digits - 1, v);
        if (reads_back(out, v) || (digits < 17 && step_up(out) && reads_back(out, v)))
            break;
    }
    leave_c_locale(before);
}

/* Lays the digits of "d.ddde[+-]xx" out without exponent. */
static void put_positional(kg_buf *b, const char *digits, int n, int exponent) {
    if (exponent < 0)
        kg_buf_puts(b, "0.");
    for (int i = exponent + 1; i < 0; i++)
        kg_buf_putc(b, '0');
    for (int i = 0; i < n || i <= exponent; i++) {
        kg_buf_putc(b, i < n ? digits[i] : '0');
        if (i == exponent)
            kg_buf_puts(b, i + 1 < n ? "." : ".0");
    }
}

int kg_json_put_double(kg_buf *b, double v) {
    if (v == floor(v) && fabs(v) <= (double)KG_JSON_INT_MAX && !(v == 0 && signbit(v)))
        return kg_buf_printf(b, "%lld", (long long)v);
    char text[40], digits[20];
    shortest(v, text);
    const char *e = strchr(text, 'e');
    int exponent = (int)strtol(e + 1, NULL, 10), n = 0;
    for (const char *s = text; s < e; s++)
        if (*s >= '0' && *s <= '9')
            digits[n++] = *s;
    if (text[0] == '-')
        kg_buf_putc(b, '-');
    if (exponent >= -4 && exponent < 16) {
        put_positional(b, digits, n, exponent);
        return b->status;
    }
    kg_buf_putc(b, digits[0]);
    if (n > 1)
        kg_buf_putc(b, '.');
    kg_buf_add(b, digits + 1, (size_t)n - 1);
    return kg_buf_puts(b, e);
}

int kg_json_put_string(kg_buf *b, const char *s) {
    static const char plain[] = "\b\f\n\r\t\"\\", letter[] = "bfnrt\"\\";
    kg_buf_putc(b, '"');
    for (const char *from = s;; s++) {
        unsigned char c = (unsigned char)*s;
        if (c >= 0x20 && c != '"' && c != '\\')
            continue;
        kg_buf_add(b, from, (size_t)(s - from));
        if (c == '\0')
            break;
        from = s + 1;
        const char *known = strchr(plain, c);
        if (known)
            kg_buf_printf(b, "\\%c", letter[known - plain]);
        else
            kg_buf_printf(b, "\\u%04x", (unsigned)c);
    }
    return kg_buf_putc(b, '"');
}

size_t kg_utf8_len(const char *s, size_t n) {
    const unsigned char *u = (const unsigned char *)s;
    if (n == 0)
        return 0;
    if (u[0] < 0x80)
        return 1;
    size_t len = u[0] >= 0xF0 ? 4 : u[0] >= 0xE0 ? 3 : 2;
    if (u[0] < 0xC2 || u[0] > 0xF4 || n < len)
        return 0;
    for (size_t i = 1; i < len; i++)
        if ((u[i] & 0xC0) != 0x80)
            return 0;
    if ((u[0] == 0xE0 && u[1] < 0xA0) || (u[0] == 0xED && u[1] > 0x9F) ||
        (u[0] == 0xF0 && u[1] < 0x90) || (u[0] == 0xF4 && u[1] > 0x8F))
        return 0;
    return len;
}

int kg_utf8_put(kg_buf *b, uint32_t c) {
    if (c < 0x80)
        return kg_buf_putc(b, (char)c);
    unsigned char u[4];
    size_t len = c < 0x800 ? 2 : c < 0x10000 ? 3 : 4;
    for (size_t i = len; i-- > 1; c >>= 6)
        u[i] = (unsigned char)(0x80 | (c & 0x3F));
    u[0] = (unsigned char)(c | (len == 2 ? 0xC0 : len == 3 ? 0xE0 : 0xF0));
    return kg_buf_add(b, u, len);
}

int kg_json_put_clean(kg_buf *b, const char *s) {
    for (size_t left = strlen(s); left;) {
        size_t len = kg_utf8_len(s, left);
        if (len)
            kg_buf_add(b, s, len);
        else
            kg_utf8_put(b, 0xFFFD);
        s += len ? len : 1;
        left -= len ? len : 1;
    }
    return b->status;
}
