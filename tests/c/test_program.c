/* Programs in C: parsing and its errors, binding, the evaluator, and that nothing which is fed to
 * the parser crashes it. What lowered code computes is held against torch in
 * tests/python/test_program.py. */
#include "runtime/program.h"

#include <math.h>

#include "test.h"

static const char ALIBI[] = "program 1\n"
                            "tensor t0 float32 1\n"
                            "scalar s0 float32\n"
                            "score\n"
                            "%0 = sub int32 q kv\n"
                            "%1 = cast float32 %0\n"
                            "%2 = load float32 t0 h\n"
                            "%3 = mul float32 %2 %1\n"
                            "%4 = mul float32 %3 s0\n"
                            "%5 = add float32 score %4\n"
                            "return %5\n"
                            "mask\n"
                            "%0 = ge bool q kv\n"
                            "return %0\n";

static kg_program *parse(const char *text) {
    kg_program *p = NULL;
    kg_error err = {0};
    if (kg_program_parse(text, strlen(text), &p, &err) != KG_OK)
        FAIL("%s", err.msg);
    return p;
}

static kg_call call_with(float *slopes, int64_t n, double scalar) {
    kg_call c = {.ncaptured = 1, .nscalars = 1, .scalars = {scalar}};
    c.captured[0] =
        (kg_tensor){.data = slopes, .dtype = KG_F32, .ndim = 1, .size = {n}, .stride = {1}};
    return c;
}

TEST(program_tells_what_it_has) {
    kg_program *p = parse(ALIBI);
    int32_t dtypes[KG_MAX_CAPTURED], ranks[KG_MAX_CAPTURED];
    CHECK_STR(kg_program_text(p), ALIBI);
    CHECK_INT(strlen(kg_program_hash(p)), 32);
    CHECK(kg_program_has(p, "SCORE") && kg_program_has(p, "MASK"));
    CHECK_INT(kg_program_captured(p, dtypes, ranks), 1);
    CHECK_INT(dtypes[0], KG_F32);
    CHECK_INT(ranks[0], 1);
    CHECK_INT(kg_program_scalars(p), 1);
    kg_program_free(p);
    kg_program_free(NULL);
    CHECK(!kg_program_has(NULL, "MASK"));
}

TEST(program_hash_is_of_the_text) {
    kg_program *a = parse("program 1\nmask\n%0 = ge bool q kv\nreturn %0\n");
    kg_program *b = parse("program 1\nmask\n%0 = gt bool q kv\nreturn %0\n");
    CHECK_STR(kg_program_hash(a), "c8f51a464734c3b74297084b2649c867");
    CHECK(strcmp(kg_program_hash(a), kg_program_hash(b)) != 0);
    kg_program_free(a);
    kg_program_free(b);
}

static const char GATED[] = "program 1\n"
                            "tensor t0 float32 2\n"
                            "scalar s0 float32\n"
                            "epilogue\n"
                            "%0 = erf float32 acc\n"
                            "%1 = load float32 t0 m n\n"
                            "%2 = mul float32 %0 %1\n"
                            "%3 = mul float32 %2 s0\n"
                            "return %3\n";

TEST(program_may_be_an_epilogue) {
    float table[6] = {1, 2, 3, 4, 5, 6};
    kg_program *p = parse(GATED);
    kg_call c = {.ncaptured = 1, .nscalars = 1, .scalars = {0.5}};
    c.captured[0] =
        (kg_tensor){.data = table, .dtype = KG_F32, .ndim = 2, .size = {2, 3}, .stride = {3, 1}};
    double out = 0;
    CHECK(kg_program_has(p, "EPILOGUE"));
    CHECK(!kg_program_has(p, "SCORE") && !kg_program_has(p, "MASK"));
    CHECK_INT(kg_program_epilogue(p, &c, 0.75, 0, 1, 2, &out, NULL), KG_OK);
    CHECK(out == erf(0.75) * 6 * 0.5);
    /* It is no score, and a score is no epilogue. */
    CHECK_INT(kg_program_score(p, &c, 0.75, 0, 0, 1, 2, &out, NULL), KG_OK);
    CHECK(out == 0.75);
    kg_program *alibi = parse(ALIBI);
    CHECK_INT(kg_program_epilogue(alibi, &c, 0.25, 0, 1, 2, &out, NULL), KG_OK);
    CHECK(out == 0.25);
    kg_program_free(alibi);
    kg_program_free(p);
}

TEST(program_lowers_as_an_epilogue) {
    kg_buf text;
    kg_error err = {0};
    kg_program *p = parse(GATED);
    kg_buf_init(&text, 0);
    CHECK_OK(kg_program_lower_epilogue(p, KG_CPU, &text, &err), err);
    CHECK(strstr(text.data, "#define KG_HAS_EPILOGUE 1") != NULL);
    CHECK(strstr(text.data, "kg_epilogue_row(KG_ARGS p, int b, int q)") != NULL);
    CHECK(strstr(text.data, "kg_mask") == NULL && strstr(text.data, ", int h,") == NULL);
    kg_buf_free(&text);
    kg_buf_init(&text, 0);
    CHECK_OK(kg_program_lower_epilogue(NULL, KG_CUDA, &text, &err), err);
    CHECK(strstr(text.data, "#define KG_HAS_EPILOGUE 0") != NULL);
    kg_buf_free(&text);
    kg_program_free(p);
}

TEST(program_epilogue_has_names_of_its_own) {
    static const struct {
        const char *text, *said;
    } bad[] = {
        {"program 1\nepilogue\n%0 = cast float32 q\nreturn %0\n", "'q' is no operand"},
        {"program 1\nepilogue\n%0 = neg float32 score\nreturn %0\n", "score section alone"},
        {"program 1\nscore\n%0 = cast float32 m\nreturn %0\n", "'m' is no operand"},
        {"program 1\nepilogue\n%0 = ge bool m n\nreturn %0\n", "returns float32"},
        {"program 1\nepilogue\n%0 = neg float32 acc\nreturn %0\nmask\nreturn true\n",
         "what may follow here is nothing"},
        {"program 1\nmask\n%0 = ge bool q kv\nreturn %0\nepilogue\nreturn acc\n",
         "what may follow here is nothing"},
    };
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        kg_program *p = NULL;
        kg_error err = {0};
        CHECK_ERR(kg_program_parse(bad[i].text, strlen(bad[i].text), &p, &err), err, KG_EFORMAT,
                  bad[i].said);
    }
}

TEST(program_evaluates_on_the_host) {
    float slopes[2] = {0.5F, 0.25F};
    kg_program *p = parse(ALIBI);
    kg_call c = call_with(slopes, 2, 2.0);
    double score = 0;
    bool keep = false;
    CHECK_INT(kg_program_score(p, &c, 1.0, 0, 1, 7, 3, &score, NULL), KG_OK);
    CHECK(score == 1.0 + 0.25 * 4 * 2.0);
    CHECK_INT(kg_program_mask(p, &c, 0, 1, 7, 3, &keep, NULL), KG_OK);
    CHECK(keep);
    CHECK_INT(kg_program_mask(p, &c, 0, 1, 2, 3, &keep, NULL), KG_OK);
    CHECK(!keep);
    /* Beyond the table: the nearest element; from the end: a negative index. */
    CHECK_INT(kg_program_score(p, &c, 0.0, 0, 9, 1, 0, &score, NULL), KG_OK);
    CHECK(score == 0.25 * 2.0);
    CHECK_INT(kg_program_score(p, &c, 0.0, 0, -2, 1, 0, &score, NULL), KG_OK);
    CHECK(score == 0.5 * 2.0);
    kg_error err = {0};
    CHECK_INT(kg_program_score(p, &c, 0.0, 0, INT64_MAX, 1, 0, &score, &err), KG_EINVAL);
    CHECK_HAS(err.msg, "no int32");
    kg_program_free(p);
}

TEST(program_without_a_section_is_the_identity) {
    kg_program *p = parse("program 1\nmask\nreturn false\n");
    kg_call c = {0};
    double score = 0;
    bool keep = true;
    CHECK_INT(kg_program_score(p, &c, 3.5, 0, 0, 0, 0, &score, NULL), KG_OK);
    CHECK(score == 3.5);
    CHECK_INT(kg_program_mask(p, &c, 0, 0, 0, 0, &keep, NULL), KG_OK);
    CHECK(!keep);
    kg_program_free(p);
}

TEST(program_integers_are_defined_everywhere) {
    static const struct {
        const char *op;
        int b, want;
    } cases[] = {{"floordiv", 0, 0},
                 {"rem", 0, 0},
                 {"truncdiv", 0, 0},
                 {"floordiv", -1, INT32_MIN},
                 {"rem", -1, 0},
                 {"truncdiv", -1, INT32_MIN},
                 {"floordiv", 3, -715827883},
                 {"rem", 3, 1},
                 {"truncdiv", 3, -715827882},
                 {"add", -1, INT32_MAX},
                 {"mul", 2, 0},
                 {"shl", 1, 0},
                 {"shl", 32, 0},
                 {"shr", 40, -1},
                 {"shr", -1, -1},
                 {"sub", 1, INT32_MAX},
                 {"min", 0, INT32_MIN},
                 {"xor", -1, INT32_MAX}};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        char text[256];
        snprintf(text, sizeof text,
                 "program 1\nmask\n%%0 = %s int32 q %d\n%%1 = eq bool %%0 %d\nreturn %%1\n",
                 cases[i].op, cases[i].b, cases[i].want);
        kg_program *p = parse(text);
        kg_call c = {0};
        bool right = false;
        CHECK_INT(kg_program_mask(p, &c, 0, 0, INT32_MIN, 0, &right, NULL), KG_OK);
        if (!right)
            FAIL("%s of INT32_MIN by %d is not %d", cases[i].op, cases[i].b, cases[i].want);
        kg_program_free(p);
    }
}

TEST(program_args_are_laid_out_as_the_struct_says) {
    float slopes[2] = {0.5F, 0.25F};
    kg_program *p = parse(ALIBI);
    kg_call c = call_with(slopes, 2, 2.5);
    /* const void *t0; long long t0_s0; int t0_n0; float s0. */
    struct {
        const void *t0;
        long long t0_s0;
        int t0_n0;
        float s0;
    } args;
    kg_error err = {0};
    CHECK_INT(kg_program_args_size(p), sizeof args);
    CHECK_INT(kg_program_args(p, &c, &args, sizeof args, NULL), KG_OK);
    CHECK(args.t0 == slopes);
    CHECK_INT(args.t0_s0, 1);
    CHECK_INT(args.t0_n0, 2);
    CHECK(args.s0 == 2.5F);
    CHECK_INT(kg_program_args(p, &c, &args, sizeof args - 1, &err), KG_EINVAL);
    CHECK_HAS(err.msg, "24 bytes, not 23");
    CHECK_INT(kg_program_args_size(NULL), 8);
    CHECK_INT(kg_program_args(NULL, &c, &args, 8, NULL), KG_OK);
    kg_program_free(p);
}

TEST(program_refuses_tables_too_large_for_its_offsets) {
    kg_program *p = parse("program 1\ntensor t0 bool 2\nmask\n%0 = load bool t0 q kv\nreturn %0\n");
    kg_call c = {.ncaptured = 1};
    kg_error err = {0};
    c.captured[0] = (kg_tensor){
        .dtype = KG_BOOL, .ndim = 2, .size = {1 << 20, 1 << 20}, .stride = {1 << 20, 1}};
    CHECK_INT(kg_program_check(p, &c, &err), KG_OK); /* q does not differ within a row */
    c.captured[0].stride[1] = 1 << 12;
    CHECK_INT(kg_program_check(p, &c, &err), KG_EUNSUPPORTED);
    CHECK_HAS(err.msg, "2^30 elements");
    c.captured[0].stride[1] = INT64_MAX;
    CHECK_INT(kg_program_check(p, &c, &err), KG_EUNSUPPORTED);
    kg_program_free(p);
}

TEST(program_lowers_for_both_targets_and_plain) {
    kg_program *p = parse(ALIBI);
    for (int plain = 0; plain < 2; plain++)
        for (int target = KG_CPU; target <= KG_CUDA; target++) {
            kg_buf out;
            kg_buf_init(&out, 0);
            CHECK_INT(kg_program_lower(plain ? NULL : p, target, &out, NULL), KG_OK);
            CHECK_HAS(out.data, plain ? "#define KG_HAS_SCORE 0" : "#define KG_HAS_SCORE 1");
            CHECK_HAS(out.data, "struct kg_programs {");
            CHECK_HAS(out.data, "kg_mask_range(");
            CHECK_HAS(out.data, target == KG_CUDA ? "__forceinline__" : "always_inline");
            kg_buf_free(&out);
        }
    kg_buf out;
    kg_error err = {0};
    kg_buf_init(&out, 0);
    CHECK_INT(kg_program_lower(p, 7, &out, &err), KG_EINVAL);
    kg_buf_free(&out);
    kg_buf_init(&out, 100);
    CHECK(kg_program_lower(p, KG_CPU, &out, &err) != KG_OK);
    kg_buf_free(&out);
    kg_program_free(p);
}

TEST(program_tells_what_a_mask_reads_and_divides_by) {
    kg_program *p = parse("program 1\nscalar s0 int32\nmask\n%0 = floordiv int32 q s0\n"
                          "%1 = add int32 kv b\n%2 = eq bool %0 %1\n%3 = rem int32 kv s0\n"
                          "%4 = lt bool %3 5\n%5 = and bool %2 %4\nreturn %5\n");
    kg_call c = {.program = p, .nscalars = 1, .scalars = {48}};
    CHECK_INT(kg_program_mask_width(p, &c), 48);
    c.scalars[0] = 1;
    CHECK_INT(kg_program_mask_width(p, &c), 0); /* no width */
    CHECK(kg_program_mask_reads(p, 'b'));
    CHECK(!kg_program_mask_reads(p, 'h'));
    kg_program_free(p);
    p = parse("program 1\nmask\n%0 = floordiv int32 q 8\n%1 = floordiv int32 kv 16\n"
              "%2 = eq bool %0 %1\n%3 = eq bool h 1\n%4 = or bool %2 %3\nreturn %4\n");
    CHECK_INT(kg_program_mask_width(p, &c), 0); /* two numbers */
    CHECK(!kg_program_mask_reads(p, 'b'));
    CHECK(kg_program_mask_reads(p, 'h'));
    kg_program_free(p);
    p = parse("program 1\nscore\n%0 = cast float32 b\n%1 = mul float32 score %0\nreturn %1\n");
    CHECK(!kg_program_mask_reads(p, 'b')); /* no mask: the score may read what it likes */
    CHECK(!kg_program_mask_reads(NULL, 'b'));
    CHECK_INT(kg_program_mask_width(NULL, &c), 0);
    kg_program_free(p);
}

TEST(program_parses_the_same_in_any_locale) {
    kg_program *p = parse("program 1\nscore\n%0 = mul float32 score 0.5\nreturn %0\n");
    kg_buf out;
    kg_buf_init(&out, 0);
    CHECK_INT(kg_program_lower(p, KG_CPU, &out, NULL), KG_OK);
    CHECK_HAS(out.data, "(0x1.000000p-1f)");
    kg_buf_free(&out);
    kg_program_free(p);
}

static unsigned next_random(unsigned *state) {
    *state = *state * 1664525U + 1013904223U;
    return *state >> 8;
}

/* One to four bytes replaced, dropped or put in. */
static size_t mutate(char *text, size_t n, unsigned *state) {
    static const char alphabet[] = "%0123456789 \n=abqhkvst.-e\0\xff";
    for (unsigned i = next_random(state) % 4; i < 4; i++) {
        size_t at = next_random(state) % n;
        char c = alphabet[next_random(state) % (sizeof alphabet - 1)];
        switch (next_random(state) % 3) {
        case 0:
            text[at] = c;
            break;
        case 1:
            memmove(text + at, text + at + 1, n - at - 1);
            n--;
            break;
        default:
            memmove(text + at + 1, text + at, n - at);
            text[at] = c;
            n++;
        }
    }
    return n;
}

TEST(program_parser_survives_mutations) {
    unsigned state = 17, parsed = 0;
    for (int round = 0; round < 20000; round++) {
        /* Exactly as long as the text, so that the sanitizer sees a read past it. */
        char work[sizeof ALIBI + 8];
        memcpy(work, ALIBI, sizeof ALIBI - 1);
        size_t n = mutate(work, sizeof ALIBI - 1, &state);
        char *text = malloc(n);
        CHECK(text != NULL);
        memcpy(text, work, n);
        kg_program *p = NULL;
        kg_error err = {0};
        int rc = kg_program_parse(text, n, &p, &err);
        free(text);
        CHECK(rc == KG_OK ? p != NULL : p == NULL && err.msg[0] != '\0');
        parsed += rc == KG_OK;
        kg_program_free(p);
    }
    CHECK(parsed > 0);
}
