/* Reads PTX as words: a statement that begins with .global declares the names in it, and any name
 * that stands once more somewhere is used. An address can come from nothing but a name. */
#include "runtime/ptx_state.h"

#include <ctype.h>
#include <string.h>

static bool word_char(int c) {
    return isalnum(c) || c == '_' || c == '$' || c == '%' || c == '.';
}

static size_t word_length(const char *at) {
    size_t n = 0;
    while (word_char((unsigned char)at[n]))
        n++;
    return n;
}

/* The first character of a name, as opposed to a directive, a register or a number. */
static bool begins_name(const char *at) {
    return isalpha((unsigned char)*at) || *at == '_' || *at == '$';
}

static const char *next_word(const char *at) {
    while (*at != '\0' && !word_char((unsigned char)*at))
        at++;
    return at;
}

/* The name stands in the text more than once. */
static bool used(const char *ptx, size_t length, const char *name, size_t n) {
    size_t found = 0;
    const char *end = ptx + length;
    for (const char *at = ptx; (at = memmem(at, (size_t)(end - at), name, n)) != NULL; at++) {
        bool whole = (at == ptx || !word_char((unsigned char)at[-1])) && word_length(at) == n;
        found += whole;
        if (found > 1)
            return true;
    }
    return false;
}

static bool declares(const char *at, size_t n) {
    return n == 7 && memcmp(at, ".global", 7) == 0;
}

bool kg_ptx_uses_global(const char *ptx, char name[128]) {
    size_t length = strlen(ptx);
    const char *at = next_word(ptx);
    while (*at != '\0') {
        size_t n = word_length(at);
        if (!declares(at, n)) {
            at = next_word(at + n);
            continue;
        }
        const char *end = at + strcspn(at, ";");
        for (at = next_word(at + n); at < end; at = next_word(at + n)) {
            n = word_length(at);
            if (!begins_name(at) || !used(ptx, length, at, n))
                continue;
            memcpy(name, at, n < 127 ? n : 127);
            name[n < 127 ? n : 127] = '\0';
            return true;
        }
    }
    return false;
}
