/* What a proposer wrote, taken apart: whole files and edits in fenced blocks, ideas as a list.
 *
 * Whatever the text is, reading it is no error: what cannot be used becomes a complaint in words
 * that go into the next prompt. Nothing in an answer names a file of this machine: paths in it are
 * words like others. */
#ifndef KG_TUNE_ANSWER_H
#define KG_TUNE_ANSWER_H

#include <stdbool.h>
#include <stddef.h>

#include "base/buf.h"

enum {
    KG_ANSWER_MAX = 50 << 20,     /* bytes of an answer */
    KG_ANSWER_FILE_MAX = 1 << 20, /* of one file in it */
    KG_ANSWER_FILES = 16,
    KG_ANSWER_IDEAS = 16,
    KG_ANSWER_IDEA_MAX = 2000,
    KG_ANSWER_LISTINGS = 2
};

typedef struct kg_answer_file {
    char *text;
    size_t n;
    char parent[65]; /* the Candidate that it was edited from; empty: written anew */
} kg_answer_file;

typedef struct kg_answer {
    kg_answer_file files[KG_ANSWER_FILES];
    size_t nfiles;
    char *ideas[KG_ANSWER_IDEAS];
    size_t nideas;
    /* Whole ids of Candidates whose machine code is asked for. */
    char listings[KG_ANSWER_LISTINGS][65];
    size_t nlistings;
    kg_buf complaint; /* what could not be used and why; one line each; may be empty */
} kg_answer;

/* Finds the Candidate that an edit names, by a prefix of its id (at least 6 hex digits): its text
 * (borrowed) and its whole id, or NULL. */
typedef struct kg_answer_bases {
    void *ctx;
    const char *(*find)(void *ctx, const char *prefix, size_t *n, char id[65]);
} kg_answer_bases;

typedef enum kg_answer_want { KG_WANT_FILES, KG_WANT_IDEAS } kg_answer_want;

/* bases may be NULL: nothing can be edited. Only running out of memory fails. */
int kg_answer_read(const char *text, size_t n, kg_answer_want want, const kg_answer_bases *bases,
                   kg_answer *out, kg_error *err);
void kg_answer_free(kg_answer *a);

/* answer_edit.c: text with the SEARCH/REPLACE parts of an edit applied, appended to out; false: the
 * complaint says which part does not fit. */
bool kg_answer_edit(const char *base, size_t base_n, const char *edit, size_t n, kg_buf *out,
                    kg_buf *complaint);
/* answer_foreign.c: what kind of code this is that kgen does not take ("a Triton kernel"), with the
 * word that shows it; NULL: none of them. Comments do not count. */
const char *kg_answer_foreign(const char *text, size_t n, const char **word);

#endif
