/* JSON: what is refused and where, what a value's one text is, and that building cannot lose a part
 * unseen. */
#include <inttypes.h>
#include <locale.h>
#include <math.h>

#include "base/json.h"
#include "base/json_text.h"
#include "sys/proc.h"
#include "test.h"

static kg_json *parse(const char *text) {
    kg_json *j = NULL;
    kg_error err = {0};
    CHECK_OK(kg_json_parse(text, strlen(text), "doc", &j, &err), err);
    return j;
}

/* The canonical text, kept until the next call. */
static const char *canonical(const kg_json *j) {
    static kg_buf b;
    kg_buf_free(&b);
    CHECK_INT(kg_json_canonical(j, &b), KG_OK);
    return b.data;
}

static const char *canonical_of(const char *text) {
    kg_json *j = parse(text);
    const char *out = canonical(j);
    kg_json_free(j);
    return out;
}

TEST(json_canonical_text) {
    static const struct {
        const char *text, *want;
    } cases[] = {
        {" { \"b\" : 1 , \"a\" : [ true , false , null ] } ", "{\"a\":[true,false,null],\"b\":1}"},
        {"[]", "[]"},
        {"{}", "{}"},
        {"\"\"", "\"\""},
        {"{\"\":1}", "{\"\":1}"},
        {"[1.0, 1e2, -0, 0, -0.0, 1E+2, 10e-1]", "[1,100,-0.0,0,-0.0,100,1]"},
        {"[0.1, 1e-5, 0.0001, 1e16, 123456789.125, 2.5e-8]",
         "[0.1,1e-05,0.0001,1e+16,123456789.125,2.5e-08]"},
        {"[9007199254740992, -9007199254740992, 9007199254740994.0, 1e15]",
         "[9007199254740992,-9007199254740992,9007199254740994.0,1000000000000000]"},
        {"[5e-324, 1.7976931348623157e308, 1e-400, 4.9406564584124654e-324]",
         "[5e-324,1.7976931348623157e+308,0,5e-324]"},
        {"[5.684341886080802e-14, 7.120236347223045e-307]",
         "[5.684341886080802e-14,7.120236347223045e-307]"},
        {"\"\\u0041\\/\\\"\\\\\\b\\f\\n\\r\\t\\u001f\\u007f\"",
         "\"A/\\\"\\\\\\b\\f\\n\\r\\t\\u001f\x7f\""},
        {"\"\\u00e9\\ud83d\\ude00\\uFFFF\"", "\"\xC3\xA9\xF0\x9F\x98\x80\xEF\xBF\xBF\""},
        /* By bytes: capitals first, then U+E000, then what is beyond the first plane. */
        {"{\"b\":1,\"B\":2,\"a\":3,\"aa\":4,\"\":5}", "{\"\":5,\"B\":2,\"a\":3,\"aa\":4,\"b\":1}"},
        {"{\"\xF0\x90\x80\x80\":1,\"\xEE\x80\x80\":2}",
         "{\"\xEE\x80\x80\":2,\"\xF0\x90\x80\x80\":1}"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++)
        CHECK_STR(canonical_of(cases[i].text), cases[i].want);
}

static void check_refused(const char *text, size_t n, const char *where, const char *part) {
    /* No byte behind the text, so that ASan sees a read past it. */
    char *exact = malloc(n ? n : 1);
    CHECK(exact != NULL);
    memcpy(exact, text, n);
    kg_json *j = NULL;
    kg_error err = {0};
    int status = kg_json_parse(exact, n, "plan of a.c", &j, &err);
    free(exact);
    char want[64];
    snprintf(want, sizeof want, "plan of a.c: %s: ", where);
    if (status != KG_EFORMAT || strncmp(err.msg, want, strlen(want)) != 0 || !strstr(err.msg, part))
        FAIL("%.60s gave %s: %s\nwanted %s... %s", text, kg_status_name(status), err.msg, want,
             part);
    CHECK(j == NULL);
}

TEST(json_refuses_with_line_and_column) {
    static const struct {
        const char *text, *where, *part;
    } cases[] = {
        {"", "line 1, column 1", "expected a value, but the text ends"},
        {"  \n ", "line 2, column 2", "the text ends"},
        {"{\n  \"a\": 1,\n  \"a\": 2\n}", "line 3, column 3", "duplicate key \"a\""},
        {"{\"a\":{\"x\":1,\"x\":2}}", "line 1, column 13", "duplicate key \"x\""},
        {"{\"z\":1,\"a\":1,\"z\":1,\"a\":1}", "line 1, column 14", "duplicate key \"z\""},
        {"{\"\\u0061\":1,\"a\":2}", "line 1, column 13", "duplicate key \"a\""},
        {"{} {}", "line 1, column 4", "nothing more after the value, found '{'"},
        {"[1] x", "line 1, column 5", "nothing more"},
        {"truex", "line 1, column 5", "nothing more"},
        {"[1,]", "line 1, column 4", "expected a value, found ']'"},
        {"{\"a\":1,}", "line 1, column 8", "expected a key in double quotes, found '}'"},
        {"{a:1}", "line 1, column 2", "expected a key in double quotes, found 'a'"},
        {"{'a':1}", "line 1, column 2", "expected a key"},
        {"{\"a\" 1}", "line 1, column 6", "expected ':' after the key"},
        {"{\"a\":1 \"b\":2}", "line 1, column 8", "',' or '}'"},
        {"[1 2]", "line 1, column 4", "',' or ']'"},
        {"[1", "line 1, column 3", "',' or ']', but the text ends"},
        {"[1}", "line 1, column 3", "',' or ']', found '}'"},
        {"// x\n1", "line 1, column 1", "found '/'"},
        {"nul", "line 1, column 1", "expected a value"},
        {"NaN", "line 1, column 1", "expected a value, found 'N'"},
        {"-Infinity", "line 1, column 2", "expected a digit, found 'I'"},
        {"[1e999]", "line 1, column 2", "1e999 is beyond the range of a double"},
        {"[-1e999]", "line 1, column 2", "beyond the range"},
        {"[01]", "line 1, column 2", "leading zero"},
        {"[-01]", "line 1, column 2", "leading zero"},
        {"[+1]", "line 1, column 2", "found '+'"},
        {"[.5]", "line 1, column 2", "found '.'"},
        {"[1.]", "line 1, column 4", "a digit after the point"},
        {"[1e]", "line 1, column 4", "a digit of the exponent"},
        {"[1e+]", "line 1, column 5", "a digit of the exponent"},
        {"[-]", "line 1, column 3", "expected a digit"},
        {"[0x10]", "line 1, column 3", "',' or ']', found 'x'"},
        {"[9007199254740993]", "line 1, column 2", "9007199254740993 is beyond 2^53"},
        {"[-9007199254740993]", "line 1, column 2", "beyond 2^53"},
        {"[99999999999999999999999999]", "line 1, column 2", "beyond 2^53"},
        {"\"abc", "line 1, column 1", "a string that does not end"},
        {"\"a\\\"", "line 1, column 1", "a string that does not end"},
        {"\"a\\", "line 1, column 3", "no escape of this kind"},
        {"\"\\x41\"", "line 1, column 2", "no escape of this kind"},
        {"\"\\u12g4\"", "line 1, column 2", "four hexadecimal digits"},
        {"\"\\u12", "line 1, column 2", "four hexadecimal digits"},
        {"\"\\u0000\"", "line 1, column 2", "holds a NUL"},
        {"\"\\ud83d\"", "line 1, column 2", "half of a surrogate pair"},
        {"\"\\ud83d\\u0041\"", "line 1, column 2", "half of a surrogate pair"},
        {"\"\\ude00\"", "line 1, column 2", "half of a surrogate pair"},
        {"\"a\nb\"", "line 1, column 3", "control character in a string: write it as \\u000a"},
        {"\"\x80\"", "line 1, column 2", "byte 0x80 is no UTF-8"},
        {"\"\xC0\x80\"", "line 1, column 2", "byte 0xc0 is no UTF-8"},
        {"\"\xE0\x80\x80\"", "line 1, column 2", "byte 0xe0 is no UTF-8"},
        {"\"\xED\xA0\x80\"", "line 1, column 2", "byte 0xed is no UTF-8"},
        {"\"\xF4\x90\x80\x80\"", "line 1, column 2", "byte 0xf4 is no UTF-8"},
        {"\"\xE2\x82", "line 1, column 2", "byte 0xe2 is no UTF-8"},
        {"[\"\xC3\xA9\xC3\xA9\", x]", "line 1, column 8", "found 'x'"},
        {"\xEF\xBB\xBF{}", "line 1, column 1", "byte 0xef"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++)
        check_refused(cases[i].text, strlen(cases[i].text), cases[i].where, cases[i].part);
    check_refused("[1]\0", 4, "line 1, column 4", "found byte 0x00");
    check_refused("\"a\0\"", 4, "line 1, column 3", "control character");
}

TEST(json_depth_is_bounded) {
    char text[400];
    for (size_t depth = 63; depth <= 66; depth++) {
        memset(text, '[', depth);
        memset(text + depth, ']', depth);
        text[2 * depth] = '\0';
        kg_json *j = NULL;
        kg_error err = {0};
        int status = kg_json_parse(text, strlen(text), "doc", &j, &err);
        CHECK_INT(status, depth <= 64 ? KG_OK : KG_EFORMAT);
        if (status < 0)
            CHECK_STR(err.msg, "doc: line 1, column 65: nested deeper than 64");
        kg_json_free(j);
    }
    char *deep = malloc(1000000);
    CHECK(deep != NULL);
    memset(deep, '[', 1000000);
    check_refused(deep, 1000000, "line 1, column 65", "nested deeper than 64");
    free(deep);
}

/* Every cut of a document is refused, and reads no byte that is not there. */
TEST(json_cut_at_each_length) {
    const char *text = "{\"a\":[1.5e+3,true,null,\"\\ud83d\\ude00\xC3\xA9\"],\"b\":{\"c\":-0.25}}";
    for (size_t n = 0; n < strlen(text); n++) {
        char *cut = malloc(n ? n : 1);
        CHECK(cut != NULL);
        memcpy(cut, text, n);
        kg_json *j = NULL;
        kg_error err = {0};
        int status = kg_json_parse(cut, n, "doc", &j, &err);
        free(cut);
        CHECK_INT(status, KG_EFORMAT);
    }
    kg_json_free(parse(text));
}

TEST(json_many_keys_are_quick_and_checked) {
    kg_buf b;
    kg_buf_init(&b, 0);
    kg_buf_puts(&b, "{");
    for (int i = 0; i < 200000; i++)
        kg_buf_printf(&b, "\"k%d\":%d,", i, i);
    size_t n = b.len;
    kg_buf_puts(&b, "\"last\":1}");
    kg_json_free(parse(b.data));
    b.len = n;
    kg_buf_puts(&b, "\"k777\":1}");
    kg_json *j = NULL;
    kg_error err = {0};
    CHECK_ERR(kg_json_parse(b.data, b.len, "doc", &j, &err), err, KG_EFORMAT,
              "duplicate key \"k777\"");
    kg_buf_free(&b);
}

TEST(json_reads_members) {
    kg_json *j = parse("{\"a\":[10,20,30],\"b\":{\"c\":\"text\"},\"A\":null}");
    CHECK_UINT(kg_json_size(j), 3);
    const kg_json *a = kg_json_get(j, "a");
    CHECK_UINT(kg_json_size(a), 3);
    int64_t v = 0;
    kg_error err = {0};
    CHECK_OK(kg_json_int(kg_json_at(a, 2), "a[2]", &v, &err), err);
    CHECK_INT(v, 30);
    CHECK(kg_json_at(a, 3) == NULL);
    CHECK_STR(kg_json_key(kg_json_at(j, 1)), "b");
    CHECK_STR(kg_json_type(kg_json_at(j, 1)), "object");
    CHECK(kg_json_is_null(kg_json_get(j, "A")));
    CHECK(kg_json_get(j, "c") == NULL);
    CHECK(kg_json_get(a, "a") == NULL);
    CHECK(kg_json_get(NULL, "a") == NULL);
    CHECK_UINT(kg_json_size(NULL), 0);
    CHECK_UINT(kg_json_size(kg_json_at(a, 0)), 0);
    CHECK_STR(kg_json_type(NULL), "nothing");
    CHECK(kg_json_key(NULL) == NULL);
    kg_json_free(j);
}

TEST(json_typed_reads_say_what_they_found) {
    kg_json *j = parse("[1, 1.5, \"text\", true, null, [1], {}, 1e300, -0.0,"
                       "\"a string that is too long to be shown whole in a message\"]");
    kg_error err = {0};
    int64_t i = -99;
    double d = -99;
    bool t = false;
    const char *s = NULL;
    CHECK_ERR(kg_json_int(kg_json_at(j, 1), "launches[0].grain", &i, &err), err, KG_EFORMAT,
              "launches[0].grain: expected an integer, found 1.5");
    CHECK_ERR(kg_json_int(kg_json_at(j, 2), "x", &i, &err), err, KG_EFORMAT,
              "x: expected an integer, found the string \"text\"");
    CHECK_ERR(kg_json_int(kg_json_at(j, 7), "x", &i, &err), err, KG_EFORMAT,
              "expected an integer of at most 2^53, found 1e+300");
    CHECK_ERR(kg_json_int(NULL, "op.dims", &i, &err), err, KG_EFORMAT,
              "op.dims is missing: expected an integer");
    CHECK_ERR(kg_json_str(kg_json_at(j, 0), "x", &s, &err), err, KG_EFORMAT,
              "expected a string, found 1");
    CHECK_ERR(kg_json_str(kg_json_at(j, 5), "x", &s, &err), err, KG_EFORMAT, "found an array");
    CHECK_ERR(kg_json_double(kg_json_at(j, 9), "x", &d, &err), err, KG_EFORMAT,
              "found the string \"a string that is too long to be shown w...");
    CHECK_ERR(kg_json_bool(kg_json_at(j, 4), "x", &t, &err), err, KG_EFORMAT,
              "expected true or false, found null");
    CHECK_ERR(kg_json_double(kg_json_at(j, 3), "x", &d, &err), err, KG_EFORMAT, "found true");
    CHECK_ERR(kg_json_bool(kg_json_at(j, 6), "x", &t, &err), err, KG_EFORMAT, "found an object");
    CHECK(i == -99 && d == -99 && !t && !s);
    CHECK_OK(kg_json_int(kg_json_at(j, 8), "x", &i, &err), err);
    CHECK_INT(i, 0);
    CHECK_OK(kg_json_double(kg_json_at(j, 1), "x", &d, &err), err);
    CHECK_NEAR(d, 1.5, 0);
    CHECK_OK(kg_json_bool(kg_json_at(j, 3), "x", &t, &err), err);
    CHECK(t);
    CHECK_OK(kg_json_str(kg_json_at(j, 2), "x", &s, &err), err);
    CHECK_STR(s, "text");
    kg_json_free(j);
}

TEST(json_only_known_keys) {
    static const char *const keys[] = {"format", "op", "launches", NULL};
    kg_error err = {0};
    kg_json *j = parse("{\"op\":1,\"format\":1}");
    CHECK_OK(kg_json_only(j, "plan", keys, &err), err);
    kg_json_free(j);
    j = parse("{\"op\":1,\"lanches\":[]}");
    CHECK_ERR(kg_json_only(j, "plan", keys, &err), err, KG_EFORMAT,
              "plan: unknown key \"lanches\"; known are: format, op, launches");
    CHECK_ERR(kg_json_only(kg_json_get(j, "op"), "op", keys, &err), err, KG_EFORMAT,
              "op: expected an object, found 1");
    CHECK_ERR(kg_json_only(NULL, "op", keys, &err), err, KG_EFORMAT, "op is missing");
    kg_json_free(j);
}

TEST(json_format_is_checked) {
    static const struct {
        const char *text;
        int code;
        const char *part;
    } cases[] = {
        {"{\"format\":2}", KG_EVERSION,
         "plan of softmax.c: format 2 is newer than this kgen, which reads format 1"},
        {"{\"format\":0}", KG_EFORMAT, "plan of softmax.c: there is no format 0"},
        {"{}", KG_EFORMAT, "plan of softmax.c: \"format\" is missing"},
        {"{\"format\":\"1\"}", KG_EFORMAT, "\"format\": expected an integer, found the string"},
        {"[]", KG_EFORMAT, "plan of softmax.c: expected an object, found an array"},
    };
    kg_error err = {0};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        kg_json *j = parse(cases[i].text);
        CHECK_ERR(kg_json_format(j, "plan of softmax.c", 1, &err), err, cases[i].code,
                  cases[i].part);
        kg_json_free(j);
    }
    kg_json *j = parse("{\"format\":1}");
    CHECK_OK(kg_json_format(j, "plan", 1, &err), err);
    kg_json_free(j);
}

TEST(json_builds) {
    kg_json *j = kg_json_new_object();
    kg_json_set_int(j, "n", -9007199254740992);
    kg_json_set_str(j, "s", "caf\xC3\xA9\n");
    kg_json_set_str(j, "none", NULL);
    kg_json_set_double(j, "d", 0.1);
    kg_json_set_double(j, "nan", NAN);
    kg_json_set_double(j, "inf", -INFINITY);
    kg_json_set_bool(j, "yes", true);
    kg_json *a = kg_json_set(j, "a", kg_json_new_array());
    kg_json_push_int(a, 1);
    kg_json_push_double(a, 2.5);
    kg_json_push_str(a, "x");
    CHECK(kg_json_push(a, kg_json_new_object()) != NULL);
    CHECK_STR(canonical(j), "{\"a\":[1,2.5,\"x\",{}],\"d\":0.1,\"inf\":null,"
                            "\"n\":-9007199254740992,\"nan\":null,\"none\":null,"
                            "\"s\":\"caf\xC3\xA9\\n\",\"yes\":true}");
    kg_json *copy = kg_json_copy(j);
    kg_json_set_int(j, "n", 5);
    CHECK_INT(kg_json_size(j), 8);
    CHECK_STR(kg_json_key(kg_json_at(j, 0)), "n");
    kg_json_set(j, "a", kg_json_new_object());
    kg_json_set_str(j, "yes", "replaced, and last");
    CHECK_STR(canonical(kg_json_get(j, "a")), "{}");
    CHECK_STR(canonical(kg_json_at(j, 6)), "\"replaced, and last\"");
    kg_json_set_int(j, "new", 1);
    CHECK_STR(kg_json_key(kg_json_at(j, 8)), "new");
    CHECK_STR(canonical(kg_json_get(copy, "n")), "-9007199254740992");
    kg_json_free(copy);
    kg_json_free(j);
    kg_json_free(NULL);
    CHECK(kg_json_copy(NULL) == NULL);
}

TEST(json_never_writes_what_cannot_be_read) {
    kg_json *j = kg_json_new_object();
    kg_json_set_str(j, "k\xFFy", "bad \xC3( \xED\xA0\x80 end\xE2\x82");
    CHECK_STR(canonical(j), "{\"k\xEF\xBF\xBDy\":\"bad \xEF\xBF\xBD( \xEF\xBF\xBD\xEF\xBF\xBD"
                            "\xEF\xBF\xBD end\xEF\xBF\xBD\xEF\xBF\xBD\"}");
    kg_json_free(j);
    kg_json *root = kg_json_new_array(), *at = root;
    for (int i = 0; i < 64; i++)
        at = kg_json_push(at, kg_json_new_array());
    kg_buf b;
    kg_buf_init(&b, 0);
    CHECK_INT(kg_json_canonical(root, &b), KG_EOVERFLOW);
    kg_buf_free(&b);
    CHECK_INT(kg_json_pretty(root, &b), KG_EOVERFLOW);
    kg_buf_free(&b);
    kg_json_free(root);
}

/* A part that was lost anywhere shows when the whole is written, and at the next thing that is
 * added. */
TEST(json_a_lost_part_fails_the_whole) {
    kg_buf b;
    kg_buf_init(&b, 0);
    CHECK(kg_json_set_int(NULL, "x", 1) == NULL);
    CHECK(kg_json_push(NULL, kg_json_new_object()) == NULL);
    CHECK_INT(kg_json_canonical(NULL, &b), KG_ENOMEM);
    kg_buf_free(&b);
    kg_json *j = kg_json_new_object();
    kg_json *inner = kg_json_set(j, "inner", kg_json_new_object());
    CHECK(kg_json_set(inner, "lost", NULL) == NULL);
    CHECK(kg_json_set_int(inner, "more", 1) == NULL);
    CHECK(kg_json_set_int(j, "outer", 1) != NULL);
    CHECK_INT(kg_json_canonical(j, &b), KG_ENOMEM);
    kg_buf_free(&b);
    kg_json *copy = kg_json_copy(j);
    CHECK_INT(kg_json_pretty(copy, &b), KG_ENOMEM);
    kg_buf_free(&b);
    kg_json_free(copy);
    kg_json_free(j);
    j = kg_json_new_array();
    CHECK(kg_json_push_int(j, INT64_C(9007199254740993)) == NULL);
    CHECK_INT(kg_json_canonical(j, &b), KG_EOVERFLOW);
    kg_buf_free(&b);
    kg_json_free(j);
}

TEST(json_full_buffer_is_reported) {
    kg_json *j = parse("{\"a\":[1,2,3,{\"b\":\"text\"}]}");
    for (size_t max = 1; max < 30; max++) {
        kg_buf b;
        kg_buf_init(&b, max);
        CHECK_INT(kg_json_canonical(j, &b), max < 26 ? KG_EOVERFLOW : KG_OK);
        kg_buf_free(&b);
    }
    kg_json_free(j);
}

TEST(json_pretty_is_for_people) {
    kg_json *j = parse("{\"z\":1,\"shape\":[1,8,1024,64],\"names\":[\"q\",\"k\"],\"empty\":{},"
                       "\"none\":[],\"deep\":{\"list\":[{\"x\":null},[]]},\"prose\":["
                       "\"a sentence of more than forty characters in all\",\"b\"]}");
    kg_buf b;
    kg_buf_init(&b, 0);
    CHECK_INT(kg_json_pretty(j, &b), KG_OK);
    CHECK_STR(b.data, "{\n"
                      "  \"z\": 1,\n"
                      "  \"shape\": [1, 8, 1024, 64],\n"
                      "  \"names\": [\"q\", \"k\"],\n"
                      "  \"empty\": {},\n"
                      "  \"none\": [],\n"
                      "  \"deep\": {\n"
                      "    \"list\": [\n"
                      "      {\n"
                      "        \"x\": null\n"
                      "      },\n"
                      "      []\n"
                      "    ]\n"
                      "  },\n"
                      "  \"prose\": [\n"
                      "    \"a sentence of more than forty characters in all\",\n"
                      "    \"b\"\n"
                      "  ]\n"
                      "}\n");
    kg_json *again = parse(b.data);
    kg_buf c;
    kg_buf_init(&c, 0);
    kg_json_canonical(again, &c);
    CHECK_STR(c.data, canonical(j));
    kg_buf_free(&c);
    kg_json_free(again);
    kg_json_free(j);
    kg_buf_free(&b);
}

/* A locale with a comma: one that is installed, else one made for this test. */
static bool enter_comma_locale(void) {
    static const char *const installed[] = {"de_DE.UTF-8", "fr_FR.UTF-8", "es_ES.UTF-8"};
    for (size_t i = 0; i < sizeof installed / sizeof *installed; i++)
        if (setlocale(LC_ALL, installed[i]))
            return true;
    const char *argv[] = {"localedef", "-c", "-i", "de_DE", "-f", "UTF-8", test_path("de_DE.UTF-8"),
                          NULL};
    kg_exit ex;
    if (kg_proc_run(argv, NULL, NULL, NULL, NULL, &ex, NULL) < 0)
        return false;
    setenv("LOCPATH", test_dir(), 1);
    return setlocale(LC_ALL, "de_DE.UTF-8") != NULL;
}

TEST(json_numbers_do_not_know_the_locale) {
    if (!enter_comma_locale())
        test_skip("no locale with a decimal comma is installed or can be made");
    char text[16];
    snprintf(text, sizeof text, "%.1f", 0.5);
    CHECK_STR(text, "0,5");
    CHECK_STR(canonical_of("[0.5,1e-7,123.25]"), "[0.5,1e-07,123.25]");
    snprintf(text, sizeof text, "%.1f", 0.5);
    CHECK_STR(text, "0,5");
}

static uint64_t seed = 88172645463325252u;

static uint64_t roll(void) {
    seed ^= seed << 13;
    seed ^= seed >> 7;
    seed ^= seed << 17;
    return seed;
}

static double any_double(void) {
    uint64_t bits = roll();
    double v;
    memcpy(&v, &bits, sizeof v);
    switch (roll() % 4) {
    case 0:
        return (double)(int64_t)bits / 1024;
    case 1:
        return ldexp(1, (int)(bits % 2098) - 1074);
    case 2:
        return (double)(int64_t)(bits % 2000001 - 1000000) / 1000;
    default:
        return v;
    }
}

static const char *any_text(char out[64]) {
    static const char *const parts[] = {
        "a",    "\"", "\\", "\n", "\x01", "\xC3\xA9", "\xF0\x9F\x98\x80",
        "\xFF", "/",  " ",  "Z",  "\x7F"};
    size_t n = 0, count = roll() % 8;
    out[0] = '\0';
    for (size_t i = 0; i < count; i++)
        n += (size_t)snprintf(out + n, 64 - n, "%s", parts[roll() % 12]);
    return out;
}

static kg_json *any_document(int depth) {
    char text[64];
    uint64_t kind = roll() % (depth > 0 ? 7 : 5);
    kg_json *holder = kg_json_new_array(), *node = NULL;
    if (kind == 0)
        node = kg_json_push_str(holder, any_text(text));
    else if (kind == 1)
        node = kg_json_push_int(holder, (int64_t)(roll() % 2001) - 1000);
    else if (kind <= 3)
        node = kg_json_push_double(holder, any_double());
    else if (kind == 4)
        node = kg_json_push_str(holder, NULL);
    if (node) {
        kg_json *copy = kg_json_copy(node);
        kg_json_free(holder);
        return copy;
    }
    kg_json *object = kind == 6 ? kg_json_new_object() : NULL;
    for (uint64_t i = roll() % 6; i > 0; i--) {
        if (object)
            CHECK(kg_json_set(object, any_text(text), any_document(depth - 1)) != NULL);
        else
            CHECK(kg_json_push(holder, any_document(depth - 1)) != NULL);
    }
    if (object)
        kg_json_free(holder);
    return object ? object : holder;
}

TEST(json_canonical_is_a_fixed_point) {
    for (int i = 0; i < 3000; i++) {
        kg_json *j = any_document(4), *again = NULL, *pretty = NULL;
        kg_buf one, two, page;
        kg_error err = {0};
        kg_buf_init(&one, 0);
        kg_buf_init(&two, 0);
        kg_buf_init(&page, 0);
        CHECK_INT(kg_json_canonical(j, &one), KG_OK);
        CHECK_OK(kg_json_parse(one.data, one.len, "canonical", &again, &err), err);
        CHECK_INT(kg_json_canonical(again, &two), KG_OK);
        CHECK_STR(two.data, one.data);
        CHECK_INT(kg_json_pretty(j, &page), KG_OK);
        CHECK_OK(kg_json_parse(page.data, page.len, "pretty", &pretty, &err), err);
        kg_buf_clear(&two);
        CHECK_INT(kg_json_canonical(pretty, &two), KG_OK);
        CHECK_STR(two.data, one.data);
        kg_buf_free(&one);
        kg_buf_free(&two);
        kg_buf_free(&page);
        kg_json_free(j);
        kg_json_free(again);
        kg_json_free(pretty);
    }
}

/* Significant digits of a number's text. */
static int digits_of(const char *text) {
    int n = 0, zeros = 0;
    for (const char *s = text; *s && *s != 'e'; s++) {
        if (*s < '0' || *s > '9' || (n == 0 && *s == '0'))
            continue;
        n++;
        zeros = *s == '0' ? zeros + 1 : 0;
    }
    return n - zeros;
}

/* Reads back the same bits, and no decimal of one digit less does: neither neighbour at that
 * length. */
TEST(json_doubles_are_shortest_and_exact) {
    for (int i = 0; i < 20000; i++) {
        double v = any_double(), back;
        if (!isfinite(v))
            continue;
        kg_buf b;
        kg_buf_init(&b, 0);
        CHECK_INT(kg_json_put_double(&b, v), KG_OK);
        back = strtod(b.data, NULL);
        if (memcmp(&back, &v, sizeof v) != 0)
            FAIL("%s reads back as %.17g, not %.17g", b.data, back, v);
        int digits = digits_of(b.data);
        if (digits > 1) {
            char fewer[40];
            snprintf(fewer, sizeof fewer, "%.*e", digits - 2, v);
            CHECK(strtod(fewer, NULL) != v);
        }
        kg_buf_free(&b);
    }
}

/* Any bytes near JSON: an answer or an error with a place, never a fault. */
TEST(json_survives_any_text) {
    static const char *const parts[] = {"{",  "}", "[",   "]",    ",",    ":",     "\"",  "\"a\"",
                                        "1",  "-", "0.5", "e9",   "true", "null",  "\\u", "d83d",
                                        "\\", " ", "\n",  "\xC3", "\xA9", "\"b\":"};
    for (int i = 0; i < 30000; i++) {
        char text[256] = "";
        size_t n = 0, count = roll() % 20;
        for (size_t k = 0; k < count; k++)
            n += (size_t)snprintf(text + n, sizeof text - n, "%s", parts[roll() % 22]);
        char *exact = malloc(n ? n : 1);
        CHECK(exact != NULL);
        memcpy(exact, text, n);
        kg_json *j = NULL;
        kg_error err = {0};
        int status = kg_json_parse(exact, n, "doc", &j, &err);
        free(exact);
        CHECK((status == KG_OK && j) || (status == KG_EFORMAT && strstr(err.msg, "doc: line ")));
        kg_json_free(j);
    }
}
