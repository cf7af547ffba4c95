/* Writes JSON piece by piece; it keeps no state but the bytes already written. */
#include "runtime/jsontext.h"

#include <math.h>

void kg_jt_text(kg_buf *out, const char *s) {
    if (s == NULL) {
        kg_buf_puts(out, "null");
        return;
    }
    kg_buf_putc(out, '"');
    for (; *s != '\0'; s++) {
        unsigned char c = (unsigned char)*s;
        if (c == '"' || c == '\\')
            kg_buf_printf(out, "\\%c", c);
        else if (c < 0x20)
            kg_buf_printf(out, "\\u%04x", c);
        else
            kg_buf_putc(out, (char)c);
    }
    kg_buf_putc(out, '"');
}

void kg_jt_double(kg_buf *out, double v) {
    if (isnan(v))
        kg_buf_puts(out, "NaN");
    else if (isinf(v))
        kg_buf_puts(out, v > 0 ? "Infinity" : "-Infinity");
    else
        kg_buf_printf(out, "%.17g", v);
}

void kg_jt_comma(kg_buf *out) {
    char last = out->len > 0 ? out->data[out->len - 1] : '[';
    if (last != '{' && last != '[' && last != ':')
        kg_buf_putc(out, ',');
}

void kg_jt_key(kg_buf *out, const char *key) {
    kg_jt_comma(out);
    kg_jt_text(out, key);
    kg_buf_putc(out, ':');
}
