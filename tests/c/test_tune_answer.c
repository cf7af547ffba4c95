/* Answers of every dress and of none. */
#include <stdlib.h>

#include "test.h"
#include "tune/answer.h"

#define FILE_A "/* kgen\n{\"op\":\"a\"}\n*/\nvoid a(void) {}\n"
#define FILE_B "/* kgen\n{\"op\":\"b\"}\n*/\nvoid b(void) {}\n"

static const char base_id[] = "3fa2b1c0d4e5f60718293a4b5c6d7e8f90a1b2c3d4e5f60718293a4b5c6d7e8f";

static const char *find(void *ctx, const char *prefix, size_t *n, char id[65]) {
    (void)ctx;
    if (strncmp(base_id, prefix, strlen(prefix)) != 0)
        return NULL;
    memcpy(id, base_id, 65);
    *n = strlen(FILE_A);
    return FILE_A;
}

static kg_answer read_as(const char *text, kg_answer_want want) {
    kg_answer_bases bases = {NULL, find};
    kg_answer a;
    kg_error err;
    CHECK_OK(kg_answer_read(text, strlen(text), want, &bases, &a, &err), err);
    return a;
}

static void one_file(const char *text, const char *want) {
    kg_answer a = read_as(text, KG_WANT_FILES);
    if (a.nfiles != 1)
        FAIL("%zu files in: %s\n%s", a.nfiles, text, a.complaint.data ? a.complaint.data : "");
    CHECK_STR(a.files[0].text, want);
    CHECK_UINT(a.files[0].n, strlen(want));
    kg_answer_free(&a);
}

static void refused(const char *text, const char *part) {
    kg_answer a = read_as(text, KG_WANT_FILES);
    CHECK_UINT(a.nfiles, 0);
    CHECK_HAS(a.complaint.data, part);
    kg_answer_free(&a);
}

TEST(answer_whole_files) {
    one_file("```c\n" FILE_A "```", FILE_A);
    one_file("Here:\n\n```cpp title=/etc/passwd\n" FILE_A "```\nGood luck\n", FILE_A);
    one_file("~~~~c\n" FILE_A "~~~~\n", FILE_A);
    one_file("   ```c\n" FILE_A "   ```\n", FILE_A);
    one_file("````\n// ``` in a comment\n" FILE_A "````\n", FILE_A);
    one_file("```c\n// softmax.c\n\n" FILE_A "```", FILE_A);
    one_file("```c\r\n/* kgen\r\n{\"op\":\"a\"}\r\n*/\r\nvoid a(void) {}\r\n```\r\n", FILE_A);
    one_file(FILE_A, FILE_A);
    one_file("```c\n/* kgen\n{}\n*/ int x;```\n```", "/* kgen\n{}\n*/ int x;```\n");
    /* What only explains is passed over. */
    one_file("```python\nimport torch\n```\n```c\n" FILE_A "```\n```\nvoid f();\n```", FILE_A);
}

TEST(answer_several_files) {
    kg_answer a = read_as("```c\n" FILE_A "```\nand\n```c\n" FILE_B "```\n", KG_WANT_FILES);
    CHECK_UINT(a.nfiles, 2);
    CHECK_STR(a.files[0].text, FILE_A);
    CHECK_STR(a.files[1].text, FILE_B);
    CHECK_UINT(a.complaint.len, 0);
    kg_answer_free(&a);
    kg_buf many;
    kg_buf_init(&many, 0);
    for (int i = 0; i < KG_ANSWER_FILES + 3; i++)
        kg_buf_puts(&many, "```c\n" FILE_A "```\n");
    a = read_as(many.data, KG_WANT_FILES);
    CHECK_UINT(a.nfiles, KG_ANSWER_FILES);
    CHECK_HAS(a.complaint.data, "more than 16 files");
    kg_answer_free(&a);
    kg_buf_free(&many);
}

TEST(answer_edits) {
#define EDIT(id, search, replace)                                                                  \
    "```edit " id "\n<<<<<<< SEARCH\n" search "=======\n" replace ">>>>>>> REPLACE\n```\n"
    kg_answer a =
        read_as(EDIT("3fa2b1", "void a(void) {}\n", "void a(void) { ; }\n"), KG_WANT_FILES);
    CHECK_UINT(a.nfiles, 1);
    CHECK_STR(a.files[0].text, "/* kgen\n{\"op\":\"a\"}\n*/\nvoid a(void) { ; }\n");
    CHECK_STR(a.files[0].parent, base_id);
    kg_answer_free(&a);
    one_file("```edit 3FA2B1C0D4E5\n<<<<<<< SEARCH\n*/\n=======\n*/\n#define X\n>>>>>>> REPLACE\n\n"
             "<<<<<<< SEARCH\nvoid a(void) {}\n=======\nint a;\n>>>>>>> REPLACE\n```",
             "/* kgen\n{\"op\":\"a\"}\n*/\n#define X\nint a;\n");
}

/* A search that ends within a line. */
TEST(answer_edits_of_a_part_of_a_line) {
    one_file(EDIT("3fa2b1", "*/\nvoid a(\n", "*/\nint a(\n"),
             "/* kgen\n{\"op\":\"a\"}\n*/\nint a(void) {}\n");
}

TEST(answer_edits_that_do_not_fit) {
    refused(EDIT("3fa2b1", "void c(void) {}\n", "x\n"),
            "edit 1: its SEARCH part, which begins with "
            "`void c(void) {}`, is not in the Candidate");
    refused(EDIT("3fa2b1", "*/\nvoid b(void) {}\n", "x\n"),
            "is not in the Candidate: its line 2 is `void b(void) {}`, where the Candidate has "
            "`void a(void) {}`; copy whole lines exactly");
    refused(EDIT("3fa2b1", "", "x\n"), "SEARCH part is empty");
    refused(EDIT("3fa2b1", "/* kgen\n", "\n"), "does not open with `/* kgen`");
    refused(EDIT("../../etc/passwd", "x\n", "y\n"),
            "`../../etc/passwd`: there is no such Candidate");
    refused(EDIT("3f", "x\n", "y\n"), "there is no such Candidate");
    refused(EDIT("abcdef123", "x\n", "y\n"), "there is no such Candidate");
    refused(EDIT("", "x\n", "y\n"), "there is no such Candidate");
    refused("```c\n<<<<<<< SEARCH\nx\n=======\ny\n>>>>>>> REPLACE\n```", "names no Candidate");
    refused("```edit 3fa2b1\n<<<<<<< SEARCH\nx\n```", "no ======= line");
    refused("```edit 3fa2b1\n<<<<<<< SEARCH\nx\n=======\ny\n```", "no >>>>>>> REPLACE line");
    refused("```edit 3fa2b1\nvoid a(void);\n```", "without a <<<<<<< SEARCH line");
}

TEST(answer_what_it_is_instead) {
    refused("I cannot help with that.", "no Candidate in the answer");
    refused("", "no Candidate in the answer");
    refused("```c\nvoid f(void) {}\n```", "code without a plan");
    refused("```python\nimport triton\n@triton.jit\ndef f(): pass\n```",
            "a Triton kernel (`@triton.jit`)");
    refused("```cpp\n#include <torch/extension.h>\n```", "a torch extension (`torch/extension.h`)");
    refused("```cu\nf<<<1, 2>>>(x);\n```", "host code (`<<<`)");
    refused("```c\n" FILE_A "int main(void) { return 0; }\n```", "holds host code (`int main(`)");
    refused("```c\n/* kgen\n{\"op\"", "ends in the middle of a file");
    /* In a comment it is no code. */
    one_file("```c\n/* kgen\n{}\n*/ /* no cudaMalloc, no <<<>>> */ // int main(\nint x;\n```",
             "/* kgen\n{}\n*/ /* no cudaMalloc, no <<<>>> */ // int main(\nint x;\n");
}

TEST(answer_bounds) {
    refused("```c\n/* kgen\n{}\n*/\nint \x01x;\n```",
            "line 4 of a file holds the control character 0x01");
    refused("```c\n/* kgen\n{}\n*/\nint x;\r int y;\n```", "0x0d");
    refused("```c\n/* kgen\n{}\n*/\nint \xff;\n```", "line 4 of a file is not UTF-8");
    one_file("```c\n/* kgen\n{}\n*/\n// caf\xc3\xa9\n```", "/* kgen\n{}\n*/\n// caf\xc3\xa9\n");
    size_t n = (size_t)KG_ANSWER_MAX + 1;
    char *big = malloc(n + 1);
    kg_answer a;
    kg_error err;
    memset(big, 'x', n);
    big[n] = '\0';
    CHECK_OK(kg_answer_read(big, n, KG_WANT_FILES, NULL, &a, &err), err);
    CHECK_HAS(a.complaint.data, "50 MiB is the most");
    kg_answer_free(&a);
    memcpy(big, "```c\n/* kgen\n", 13);
    memcpy(big + n - 5, "\n```\n", 5);
    CHECK_OK(kg_answer_read(big, n - 1, KG_WANT_FILES, NULL, &a, &err), err);
    CHECK_UINT(a.nfiles, 0);
    CHECK_HAS(a.complaint.data, "");
    kg_answer_free(&a);
    free(big);
    /* A NUL is a control character like others. */
    CHECK_OK(kg_answer_read("```c\n/* kgen */\n\0\n```", 21, KG_WANT_FILES, NULL, &a, &err), err);
    CHECK_HAS(a.complaint.data, "0x00");
    kg_answer_free(&a);
}

TEST(answer_ideas) {
    static const char *const texts[] = {
        "Thinking ...\n```ideas\n1. Tile over rows\n   and keep them in L1\n2) Vectorise\n- "
        "Prefetch\n```\n",
        "My ideas:\n\n* Tile over rows\n  and keep them in L1\n* Vectorise\n* Prefetch\n\nThat is "
        "all.",
    };
    for (size_t i = 0; i < 2; i++) {
        kg_answer a = read_as(texts[i], KG_WANT_IDEAS);
        CHECK_UINT(a.nideas, 3);
        CHECK_STR(a.ideas[0], "Tile over rows and keep them in L1");
        CHECK_STR(a.ideas[1], "Vectorise");
        CHECK_STR(a.ideas[2], "Prefetch");
        CHECK_UINT(a.complaint.len, 0);
        kg_answer_free(&a);
    }
    kg_answer a = read_as("I have none.", KG_WANT_IDEAS);
    CHECK_UINT(a.nideas, 0);
    CHECK_HAS(a.complaint.data, "no idea in the answer");
    kg_answer_free(&a);
    kg_buf many;
    kg_buf_init(&many, 0);
    for (int i = 0; i < 40; i++) {
        kg_buf_puts(&many, "- ");
        for (int k = 0; k < 1500; k++)
            kg_buf_puts(&many, "\xc3\xa9");
        kg_buf_puts(&many, "\n");
    }
    a = read_as(many.data, KG_WANT_IDEAS);
    CHECK_UINT(a.nideas, KG_ANSWER_IDEAS);
    CHECK(strlen(a.ideas[0]) <= KG_ANSWER_IDEA_MAX && strlen(a.ideas[0]) > KG_ANSWER_IDEA_MAX - 4);
    kg_answer_free(&a);
    kg_buf_free(&many);
}

TEST(answer_asks_for_machine_code) {
    kg_answer a = read_as("Show me.\n```sass 3FA2B1C0\n```\n", KG_WANT_FILES);
    CHECK_UINT(a.nlistings, 1);
    CHECK_STR(a.listings[0], base_id);
    CHECK_UINT(a.complaint.len, 0);
    kg_answer_free(&a);
    a = read_as("```sass\n3fa2b1\n```\n```c\n" FILE_A "```\n", KG_WANT_FILES);
    CHECK_UINT(a.nlistings, 1);
    CHECK_UINT(a.nfiles, 1);
    kg_answer_free(&a);
    a = read_as("```sass 3fa2b1\n```\n```sass 3fa2b1\n```\n```sass 3fa2b1\n```\n", KG_WANT_IDEAS);
    CHECK_UINT(a.nlistings, KG_ANSWER_LISTINGS);
    CHECK_HAS(a.complaint.data, "machine code of more than 2");
    kg_answer_free(&a);
    refused("```sass 3fa2\n```\n", "machine code of `3fa2`: there is no such Candidate");
    refused("```sass ffffffff\n```\n", "there is no such Candidate");
    refused("```sass\n", "machine code of ``");
}
