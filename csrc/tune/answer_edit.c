/* SEARCH/REPLACE edits. A search must fit exactly once: an edit that could mean two places is not
 * guessed at. */
#define _GNU_SOURCE
#include <string.h>

#include "tune/answer.h"

static const char search_mark[] = "<<<<<<< SEARCH",
                  middle_mark[] = "=======", replace_mark[] = ">>>>>>> REPLACE";

/* A part of a text between lines. */
typedef struct span {
    const char *at;
    size_t n;
} span;

/* The line that starts with mark, at or after from; NULL: none. *next is behind its end. */
static const char *find_line(const char *from, const char *end, const char *mark,
                             const char **next) {
    size_t n = strlen(mark);
    for (const char *p = from; p < end;) {
        const char *stop = memchr(p, '\n', (size_t)(end - p));
        const char *after = stop ? stop + 1 : end;
        if ((size_t)(end - p) >= n && strncmp(p, mark, n) == 0) {
            *next = after;
            return p;
        }
        p = after;
    }
    return NULL;
}

static void quote(kg_buf *complaint, span s) {
    size_t n = s.n < 80 ? s.n : 80;
    const char *stop = memchr(s.at, '\n', n);
    kg_buf_printf(complaint, "`%.*s`", (int)(stop ? (size_t)(stop - s.at) : n), s.at);
}

static size_t line_of(span s) {
    const char *stop = memchr(s.at, '\n', s.n);
    return stop ? (size_t)(stop - s.at) + 1 : s.n;
}

/* Says from which of its lines on a search is not there: what is before it may be right. */
static void say_where(const kg_buf *text, span search, kg_buf *complaint) {
    const char *hay = text->data ? text->data : "", *place = NULL;
    size_t fits = 0, line = 1;
    for (;; line++) {
        size_t more = fits + line_of((span){search.at + fits, search.n - fits});
        const char *found = memmem(hay, text->len, search.at, more);
        if (!found || more == fits)
            break;
        place = found;
        fits = more;
    }
    kg_buf_puts(complaint, "is not in the Candidate");
    if (place) {
        kg_buf_printf(complaint, ": its line %zu is ", line);
        quote(complaint, (span){search.at + fits, search.n - fits});
        kg_buf_puts(complaint, ", where the Candidate has ");
        quote(complaint, (span){place + fits, text->len - (size_t)(place + fits - hay)});
    }
    kg_buf_puts(complaint, "; copy whole lines exactly\n");
}

/* Where search is in text; *again: a second place. */
static const char *find(const kg_buf *text, span search, bool *again) {
    const char *hay = text->data ? text->data : "";
    const char *at = memmem(hay, text->len, search.at, search.n);
    *again = at && memmem(at + 1, text->len - (size_t)(at + 1 - hay), search.at, search.n) != NULL;
    return at;
}

/* Replaces in text; false when search does not fit exactly once. A search whose last line is only
 * the beginning of one is taken as what it says. */
static bool apply(kg_buf *text, span search, span replace, size_t number, kg_buf *complaint) {
    bool again;
    if (search.n == 0) {
        kg_buf_printf(complaint, "- edit %zu: its SEARCH part is empty\n", number);
        return false;
    }
    const char *hay = text->data ? text->data : "", *at = find(text, search, &again);
    if (!at && search.n > 1 && replace.n > 0) {
        span part = {search.at, search.n - 1};
        at = find(text, part, &again);
        if (at && !again) {
            search = part;
            replace.n--;
        } else {
            at = NULL;
        }
    }
    if (!at || again) {
        kg_buf_printf(complaint, "- edit %zu: its SEARCH part, which begins with ", number);
        quote(complaint, search);
        kg_buf_puts(complaint, ", ");
        if (at)
            kg_buf_puts(complaint,
                        "is in the Candidate more than once: give more lines around it\n");
        else
            say_where(text, search, complaint);
        return false;
    }
    kg_buf out;
    kg_buf_init(&out, KG_ANSWER_FILE_MAX);
    kg_buf_add(&out, hay, (size_t)(at - hay));
    kg_buf_add(&out, replace.at, replace.n);
    kg_buf_add(&out, at + search.n, text->len - (size_t)(at - hay) - search.n);
    kg_buf_free(text);
    *text = out;
    return true;
}

bool kg_answer_edit(const char *base, size_t base_n, const char *edit, size_t n, kg_buf *out,
                    kg_buf *complaint) {
    const char *at = edit, *end = edit + n, *search, *middle, *replace, *next;
    size_t number = 0;
    kg_buf text;
    bool good = true;
    kg_buf_init(&text, KG_ANSWER_FILE_MAX);
    kg_buf_add(&text, base, base_n);
    while (good && find_line(at, end, search_mark, &search)) {
        number++;
        middle = find_line(search, end, middle_mark, &replace);
        const char *close = middle ? find_line(replace, end, replace_mark, &next) : NULL;
        if (!close) {
            kg_buf_printf(complaint, "- edit %zu: no %s line after its %s\n", number,
                          middle ? replace_mark : middle_mark, search_mark);
            good = false;
            break;
        }
        good = apply(&text, (span){search, (size_t)(middle - search)},
                     (span){replace, (size_t)(close - replace)}, number, complaint);
        at = next;
    }
    if (good && number == 0) {
        kg_buf_printf(complaint, "- an edit without a %s line\n", search_mark);
        good = false;
    }
    if (good && text.status) {
        kg_buf_puts(complaint, "- an edit makes the file larger than 1 MiB\n");
        good = false;
    }
    if (good)
        kg_buf_add(out, text.data ? text.data : "", text.len);
    kg_buf_free(&text);
    return good;
}
