/* JSON: a strict reader of our own that builds cJSON's nodes, because cJSON's reader takes
 * duplicate keys, control characters, broken UTF-8 and "01", and reports no line; and what builds
 * them (json_write.c writes them). Refuses whatever docs/formats.md refuses for all formats. */
#include "base/json.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/json_node.h"
#include "base/json_text.h"

typedef struct key_at {
    const char *key; /* of the member's node */
    size_t pos;
} key_at;

typedef struct parser {
    const char *text, *what;
    size_t n, pos, depth;
    kg_buf scratch;
    key_at *keys; /* of the objects that are open, innermost last */
    size_t nkeys, keys_cap;
    kg_error *err;
} parser;

/* Columns count characters, as editors do. */
static void line_and_column(const parser *p, size_t pos, size_t *line, size_t *column) {
    *line = *column = 1;
    for (size_t i = 0; i < pos && i < p->n; i++) {
        unsigned char c = (unsigned char)p->text[i];
        if (c == '\n') {
            ++*line;
            *column = 1;
        } else if ((c & 0xC0) != 0x80) {
            ++*column;
        }
    }
}

/* NULL, which is also false: every function of the parser fails by returning it. */
static void *fail_at(parser *p, size_t pos, const char *fmt, ...)
    __attribute__((format(printf, 3, 4)));

static void *fail_at(parser *p, size_t pos, const char *fmt, ...) {
    char message[256];
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(message, sizeof message, fmt, ap);
    va_end(ap);
    size_t line, column;
    line_and_column(p, pos, &line, &column);
    kg_fail(p->err, KG_EFORMAT, "%s: line %zu, column %zu: %s", p->what, line, column, message);
    return NULL;
}

static void *fail_memory(parser *p) {
    kg_fail(p->err, KG_ENOMEM, "%s: out of memory", p->what);
    return NULL;
}

static void *fail_expected(parser *p, const char *what) {
    if (p->pos >= p->n)
        return fail_at(p, p->pos, "expected %s, but the text ends", what);
    unsigned char c = (unsigned char)p->text[p->pos];
    if (c > ' ' && c < 0x7F)
        return fail_at(p, p->pos, "expected %s, found '%c'", what, c);
    return fail_at(p, p->pos, "expected %s, found byte 0x%02x", what, (unsigned)c);
}

static int peek(const parser *p) {
    return p->pos < p->n ? (unsigned char)p->text[p->pos] : -1;
}

static void skip_space(parser *p) {
    for (; p->pos < p->n; p->pos++) {
        char c = p->text[p->pos];
        if (c != ' ' && c != '\t' && c != '\n' && c != '\r')
            return;
    }
}

static bool digits(parser *p) {
    size_t from = p->pos;
    while (peek(p) >= '0' && peek(p) <= '9')
        p->pos++;
    return p->pos > from;
}

static cJSON *node_or_fail(parser *p, cJSON *node) {
    return node ? node : fail_memory(p);
}

static cJSON *parse_number(parser *p) {
    size_t from = p->pos;
    double v;
    bool integer = true;
    if (peek(p) == '-')
        p->pos++;
    bool zero = peek(p) == '0';
    if (!digits(p))
        return fail_expected(p, "a digit");
    if (zero && p->pos - from > (p->text[from] == '-' ? 2u : 1u))
        return fail_at(p, from, "a number has a leading zero");
    if (peek(p) == '.') {
        p->pos++;
        integer = false;
        if (!digits(p))
            return fail_expected(p, "a digit after the point");
    }
    if (peek(p) == 'e' || peek(p) == 'E') {
        p->pos++;
        integer = false;
        if (peek(p) == '+' || peek(p) == '-')
            p->pos++;
        if (!digits(p))
            return fail_expected(p, "a digit of the exponent");
    }
    if (integer && kg_json_to_integer(p->text + from, p->pos - from, &v))
        return node_or_fail(p, cJSON_CreateNumber(v));
    kg_buf_clear(&p->scratch);
    kg_buf_add(&p->scratch, p->text + from, p->pos - from);
    if (p->scratch.status < 0)
        return fail_memory(p);
    const char *text = p->scratch.data;
    v = kg_json_to_double(text);
    if (!isfinite(v))
        return fail_at(p, from, "%.40s is beyond the range of a double", text);
    if (integer && strtoull(text + (*text == '-'), NULL, 10) > (uint64_t)KG_JSON_INT_MAX)
        return fail_at(p, from, "integer %.40s is beyond 2^53: write it as a string", text);
    return node_or_fail(p, cJSON_CreateNumber(v));
}

static bool hex4(parser *p, uint32_t *out) {
    static const char digits16[] = "0123456789abcdefABCDEF";
    uint32_t v = 0;
    if (p->n - p->pos < 4)
        return false;
    for (size_t i = 0; i < 4; i++) {
        const char *digit = memchr(digits16, p->text[p->pos + i], sizeof digits16 - 1);
        if (!digit)
            return false;
        uint32_t d = (uint32_t)(digit - digits16);
        v = v << 4 | (d > 15 ? d - 6 : d);
    }
    p->pos += 4;
    *out = v;
    return true;
}

/* After "\u". A NUL is refused: it would end a C string early. */
static bool parse_unicode(parser *p, size_t at) {
    uint32_t c, low;
    if (!hex4(p, &c))
        return fail_at(p, at, "\\u wants four hexadecimal digits");
    if (c == 0)
        return fail_at(p, at, "a string holds a NUL");
    if (c >= 0xD800 && c < 0xDC00) {
        bool pair = p->n - p->pos >= 2 && memcmp(p->text + p->pos, "\\u", 2) == 0;
        p->pos += pair ? 2 : 0;
        if (!pair || !hex4(p, &low) || low < 0xDC00 || low > 0xDFFF)
            return fail_at(p, at, "half of a surrogate pair");
        c = 0x10000 + ((c - 0xD800) << 10) + (low - 0xDC00);
    } else if (c >= 0xDC00 && c < 0xE000) {
        return fail_at(p, at, "half of a surrogate pair");
    }
    kg_utf8_put(&p->scratch, c);
    return true;
}

static bool parse_escape(parser *p) {
    static const char letters[] = "\"\\/bfnrt", values[] = "\"\\/\b\f\n\r\t";
    size_t at = p->pos++;
    int c = peek(p);
    p->pos++;
    if (c == 'u')
        return parse_unicode(p, at);
    const char *known = c > 0 ? strchr(letters, c) : NULL;
    if (!known)
        return fail_at(p, at, "there is no escape of this kind");
    kg_buf_putc(&p->scratch, values[known - letters]);
    return true;
}

/* Adds what needs no look at its bytes one by one: nearly all that there is. */
static void take_plain(parser *p) {
    size_t from = p->pos;
    for (; p->pos < p->n; p->pos++) {
        unsigned char c = (unsigned char)p->text[p->pos];
        if (c < 0x20 || c >= 0x80 || c == '"' || c == '\\')
            break;
    }
    kg_buf_add(&p->scratch, p->text + from, p->pos - from);
}

/* A string, opening quote included, into scratch. */
static bool parse_text(parser *p) {
    size_t from = p->pos++;
    kg_buf_clear(&p->scratch);
    for (;;) {
        take_plain(p);
        int c = peek(p);
        if (c < 0)
            return fail_at(p, from, "a string that does not end");
        if (c == '"')
            break;
        if (c < 0x20)
            return fail_at(p, p->pos, "a control character in a string: write it as \\u%04x",
                           (unsigned)c);
        if (c == '\\') {
            if (!parse_escape(p))
                return false;
            continue;
        }
        size_t len = kg_utf8_len(p->text + p->pos, p->n - p->pos);
        if (len == 0)
            return fail_at(p, p->pos, "byte 0x%02x is no UTF-8", (unsigned)c);
        kg_buf_add(&p->scratch, p->text + p->pos, len);
        p->pos += len;
    }
    p->pos++;
    return p->scratch.status == KG_OK || fail_memory(p);
}

static cJSON *parse_value(parser *p);

static bool push_key(parser *p, const char *key, size_t pos) {
    if (p->nkeys == p->keys_cap) {
        size_t cap = p->keys_cap ? 2 * p->keys_cap : 32;
        key_at *grown = realloc(p->keys, cap * sizeof *grown);
        if (!grown)
            return fail_memory(p);
        p->keys = grown;
        p->keys_cap = cap;
    }
    p->keys[p->nkeys++] = (key_at){.key = key, .pos = pos};
    return true;
}

static int compare_keys(const void *a, const void *b) {
    const key_at *x = a, *y = b;
    int order = strcmp(x->key, y->key);
    return order ? order : (x->pos > y->pos) - (x->pos < y->pos);
}

/* The first that was there before, of few keys. */
static const key_at *repeated(const key_at *keys, size_t n) {
    for (size_t i = 1; i < n; i++)
        for (size_t k = 0; k < i; k++)
            if (keys[i].key[0] == keys[k].key[0] && strcmp(keys[i].key, keys[k].key) == 0)
                return &keys[i];
    return NULL;
}

/* Sorted, not compared pair by pair: an object of a million keys must not take an hour. */
static const key_at *repeated_of_many(key_at *keys, size_t n) {
    const key_at *first = NULL;
    qsort(keys, n, sizeof *keys, compare_keys);
    for (size_t i = 1; i < n; i++)
        if (strcmp(keys[i - 1].key, keys[i].key) == 0 && (!first || keys[i].pos < first->pos))
            first = &keys[i];
    return first;
}

static bool no_duplicates(parser *p, size_t base) {
    enum { FEW = 24 };
    size_t n = p->nkeys - base;
    const key_at *first = n == 0     ? NULL
                          : n <= FEW ? repeated(p->keys + base, n)
                                     : repeated_of_many(p->keys + base, n);
    p->nkeys = base;
    return !first || fail_at(p, first->pos, "duplicate key \"%.100s\"", first->key);
}

/* The text that was read last, the caller's (cJSON_free). */
static char *copy_text(parser *p) {
    char *key = cJSON_malloc(p->scratch.len + 1);
    if (key)
        memcpy(key, p->scratch.data, p->scratch.len + 1);
    return key;
}

static bool parse_member(parser *p, cJSON *object) {
    size_t at = p->pos;
    if (peek(p) != '"')
        return fail_expected(p, "a key in double quotes");
    if (!parse_text(p))
        return false;
    char *key = copy_text(p);
    if (!key)
        return fail_memory(p);
    skip_space(p);
    cJSON *value = NULL;
    if (peek(p) != ':')
        fail_expected(p, "':' after the key");
    else if (p->pos++, skip_space(p), (value = parse_value(p)) != NULL) {
        value->string = key; /* which cJSON_AddItemToObject would copy */
        key = NULL;
        if (!cJSON_AddItemToArray(object, value)) {
            cJSON_Delete(value);
            value = fail_memory(p);
        }
    }
    cJSON_free(key);
    return value && push_key(p, value->string, at);
}

static bool parse_element(parser *p, cJSON *array) {
    cJSON *value = parse_value(p);
    if (value && !cJSON_AddItemToArray(array, value)) {
        cJSON_Delete(value);
        return fail_memory(p);
    }
    return value != NULL;
}

/* The parts of an object or array, '{' or '[' already read. */
static bool parse_parts(parser *p, cJSON *node, char close) {
    skip_space(p);
    if (peek(p) == close) {
        p->pos++;
        return true;
    }
    for (;;) {
        if (!(close == '}' ? parse_member(p, node) : parse_element(p, node)))
            return false;
        skip_space(p);
        if (peek(p) == close)
            break;
        if (peek(p) != ',')
            return fail_expected(p, close == '}' ? "',' or '}'" : "',' or ']'");
        p->pos++;
        skip_space(p);
    }
    p->pos++;
    return true;
}

static cJSON *parse_container(parser *p) {
    bool object = peek(p) == '{';
    size_t base = p->nkeys;
    if (p->depth == DEPTH_MAX)
        return fail_at(p, p->pos, "nested deeper than %d", DEPTH_MAX);
    p->depth++;
    p->pos++;
    cJSON *node = object ? cJSON_CreateObject() : cJSON_CreateArray();
    if (!node)
        return fail_memory(p);
    if (!parse_parts(p, node, object ? '}' : ']') || !no_duplicates(p, base)) {
        cJSON_Delete(node);
        return NULL;
    }
    p->depth--;
    return node;
}

static bool at_word(parser *p, const char *word) {
    size_t n = strlen(word);
    if (p->n - p->pos < n || memcmp(p->text + p->pos, word, n) != 0)
        return false;
    p->pos += n;
    return true;
}

static cJSON *parse_value(parser *p) {
    int c = peek(p);
    if (c == '{' || c == '[')
        return parse_container(p);
    if (c == '"')
        return parse_text(p) ? node_or_fail(p, cJSON_CreateString(p->scratch.data)) : NULL;
    if (c == '-' || (c >= '0' && c <= '9'))
        return parse_number(p);
    if (at_word(p, "true"))
        return node_or_fail(p, cJSON_CreateTrue());
    if (at_word(p, "false"))
        return node_or_fail(p, cJSON_CreateFalse());
    if (at_word(p, "null"))
        return node_or_fail(p, cJSON_CreateNull());
    return fail_expected(p, "a value");
}

int kg_json_parse(const char *text, size_t n, const char *what, kg_json **root, kg_error *err) {
    kg_error inner = {0};
    parser p = {.text = text, .what = what, .n = n, .err = &inner};
    kg_buf_init(&p.scratch, 0);
    skip_space(&p);
    cJSON *node = parse_value(&p);
    skip_space(&p);
    if (node && p.pos < n) {
        cJSON_Delete(node);
        node = fail_expected(&p, "nothing more after the value");
    }
    kg_buf_free(&p.scratch);
    free(p.keys);
    if (!node)
        return kg_fail(err, inner.code, "%s", inner.msg);
    *root = node;
    return KG_OK;
}

void kg_json_free(kg_json *root) {
    cJSON_Delete(root);
}

bool kg_json_is_object(const kg_json *j) {
    return cJSON_IsObject(j);
}

bool kg_json_is_array(const kg_json *j) {
    return cJSON_IsArray(j);
}

bool kg_json_is_string(const kg_json *j) {
    return cJSON_IsString(j);
}

bool kg_json_is_number(const kg_json *j) {
    return cJSON_IsNumber(j);
}

bool kg_json_is_bool(const kg_json *j) {
    return cJSON_IsBool(j);
}

bool kg_json_is_null(const kg_json *j) {
    return cJSON_IsNull(j);
}

const char *kg_json_type(const kg_json *j) {
    return !j                  ? "nothing"
           : cJSON_IsObject(j) ? "object"
           : cJSON_IsArray(j)  ? "array"
           : cJSON_IsString(j) ? "string"
           : cJSON_IsNumber(j) ? "number"
           : cJSON_IsBool(j)   ? "bool"
                               : "null";
}

const kg_json *kg_json_get(const kg_json *object, const char *key) {
    return cJSON_IsObject(object) ? cJSON_GetObjectItemCaseSensitive(object, key) : NULL;
}

size_t kg_json_size(const kg_json *j) {
    size_t n = 0;
    for (const kg_json *c = kg_json_holds(j) ? j->child : NULL; c; c = c->next)
        n++;
    return n;
}

const kg_json *kg_json_at(const kg_json *j, size_t i) {
    const kg_json *c = kg_json_holds(j) ? j->child : NULL;
    while (c && i--)
        c = c->next;
    return c;
}

const char *kg_json_key(const kg_json *member) {
    return member ? member->string : NULL;
}

#define FOUND_MAX 80

/* "the string "abc"", "1.5", "an object". */
static const char *found(const kg_json *j, char out[FOUND_MAX]) {
    kg_buf b;
    kg_buf_init(&b, 0);
    if (cJSON_IsNumber(j))
        kg_json_put_double(&b, j->valuedouble);
    else if (cJSON_IsString(j))
        kg_json_put_string(&b, j->valuestring);
    const char *type = kg_json_type(j);
    if (cJSON_IsBool(j))
        snprintf(out, FOUND_MAX, "%s", cJSON_IsTrue(j) ? "true" : "false");
    else if (b.len > 44)
        snprintf(out, FOUND_MAX, "the string %.40s...", b.data);
    else if (b.len)
        snprintf(out, FOUND_MAX, "%s%s", cJSON_IsString(j) ? "the string " : "", b.data);
    else
        snprintf(out, FOUND_MAX, "%s%s",
                 cJSON_IsNull(j)                ? ""
                 : *type == 'a' || *type == 'o' ? "an "
                                                : "a ",
                 type);
    kg_buf_free(&b);
    return out;
}

static int fail_type(const kg_json *j, const char *what, const char *expected, kg_error *err) {
    char text[FOUND_MAX];
    if (!j)
        return kg_fail(err, KG_EFORMAT, "%s is missing: expected %s", what, expected);
    return kg_fail(err, KG_EFORMAT, "%s: expected %s, found %s", what, expected, found(j, text));
}

int kg_json_str(const kg_json *j, const char *what, const char **out, kg_error *err) {
    if (!cJSON_IsString(j))
        return fail_type(j, what, "a string", err);
    *out = j->valuestring;
    return KG_OK;
}

int kg_json_int(const kg_json *j, const char *what, int64_t *out, kg_error *err) {
    if (!cJSON_IsNumber(j) || j->valuedouble != floor(j->valuedouble))
        return fail_type(j, what, "an integer", err);
    if (fabs(j->valuedouble) > (double)KG_JSON_INT_MAX)
        return fail_type(j, what, "an integer of at most 2^53", err);
    *out = (int64_t)j->valuedouble;
    return KG_OK;
}

int kg_json_double(const kg_json *j, const char *what, double *out, kg_error *err) {
    if (!cJSON_IsNumber(j))
        return fail_type(j, what, "a number", err);
    *out = j->valuedouble;
    return KG_OK;
}

int kg_json_bool(const kg_json *j, const char *what, bool *out, kg_error *err) {
    if (!cJSON_IsBool(j))
        return fail_type(j, what, "true or false", err);
    *out = cJSON_IsTrue(j);
    return KG_OK;
}

static int fail_key(const char *what, const char *key, const char *const *keys, kg_error *err) {
    kg_buf known;
    kg_buf_init(&known, 0);
    for (size_t i = 0; keys[i]; i++)
        kg_buf_printf(&known, "%s%s", i ? ", " : "", keys[i]);
    kg_fail(err, KG_EFORMAT, "%s: unknown key \"%.100s\"; known are: %s", what, key,
            known.data ? known.data : "none");
    kg_buf_free(&known);
    return KG_EFORMAT;
}

int kg_json_only(const kg_json *object, const char *what, const char *const *keys, kg_error *err) {
    if (!cJSON_IsObject(object))
        return fail_type(object, what, "an object", err);
    for (const kg_json *c = object->child; c; c = c->next) {
        size_t i = 0;
        while (keys[i] && strcmp(keys[i], c->string) != 0)
            i++;
        if (!keys[i])
            return fail_key(what, c->string, keys, err);
    }
    return KG_OK;
}

int kg_json_format(const kg_json *object, const char *what, int max, kg_error *err) {
    if (!cJSON_IsObject(object))
        return fail_type(object, what, "an object", err);
    int64_t format;
    int status = kg_json_int(kg_json_get(object, "format"), "\"format\"", &format, err);
    if (status < 0)
        return kg_fail_prefix(err, status, "%s", what);
    if (format > max)
        return kg_fail(err, KG_EVERSION,
                       "%s: format %lld is newer than this kgen, which reads format %d", what,
                       (long long)format, max);
    if (format < 1)
        return kg_fail(err, KG_EFORMAT, "%s: there is no format %lld; this kgen reads format %d",
                       what, (long long)format, max);
    return KG_OK;
}

kg_json *kg_json_new_object(void) {
    return cJSON_CreateObject();
}

kg_json *kg_json_new_array(void) {
    return cJSON_CreateArray();
}

kg_json *kg_json_copy(const kg_json *j) {
    return j ? cJSON_Duplicate(j, true) : NULL;
}

static kg_json *lose(kg_json *container, kg_json *value, int mark) {
    cJSON_Delete(value);
    if (container)
        container->type |= mark;
    return NULL;
}

static bool can_take(const kg_json *container, bool object) {
    return container && !(container->type & (LOST_MEMORY | LOST_RANGE)) &&
           (object ? cJSON_IsObject(container) : cJSON_IsArray(container));
}

/* Keeps the place of the member that it replaces. */
static kg_json *replace(kg_json *object, kg_json *old, kg_json *value) {
    size_t n = strlen(old->string) + 1;
    char *key = cJSON_malloc(n);
    if (!key)
        return lose(object, value, LOST_MEMORY);
    memcpy(key, old->string, n);
    if (value->string)
        cJSON_free(value->string);
    value->string = key;
    cJSON_ReplaceItemViaPointer(object, old, value);
    return value;
}

/* The key in UTF-8, like every string that is set: what cannot be read back is never written. */
static char *clean(const char *s) {
    kg_buf b;
    kg_buf_init(&b, 0);
    kg_json_put_clean(&b, s);
    char *text = kg_buf_take(&b);
    kg_buf_free(&b);
    return text;
}

kg_json *kg_json_set(kg_json *object, const char *key, kg_json *value) {
    char *name = can_take(object, true) && value ? clean(key) : NULL;
    if (!name)
        return lose(object, value, LOST_MEMORY);
    kg_json *old = cJSON_GetObjectItemCaseSensitive(object, name);
    if (old)
        value = replace(object, old, value);
    else if (!cJSON_AddItemToObject(object, name, value))
        value = lose(object, value, LOST_MEMORY);
    free(name);
    return value;
}

kg_json *kg_json_push(kg_json *array, kg_json *value) {
    if (!can_take(array, false) || !value || !cJSON_AddItemToArray(array, value))
        return lose(array, value, LOST_MEMORY);
    return value;
}

static kg_json *new_string(const char *value) {
    if (!value)
        return cJSON_CreateNull();
    char *text = clean(value);
    kg_json *node = text ? cJSON_CreateString(text) : NULL;
    free(text);
    return node;
}

static kg_json *new_double(double value) {
    return isfinite(value) ? cJSON_CreateNumber(value) : cJSON_CreateNull();
}

/* An integer that would change its value is lost, with the mark that says why. */
static kg_json *new_int(kg_json *container, int64_t value) {
    if (value > KG_JSON_INT_MAX || value < -KG_JSON_INT_MAX)
        return lose(container, NULL, LOST_RANGE);
    return cJSON_CreateNumber((double)value);
}

kg_json *kg_json_set_str(kg_json *object, const char *key, const char *value) {
    return kg_json_set(object, key, new_string(value));
}

kg_json *kg_json_set_int(kg_json *object, const char *key, int64_t value) {
    return kg_json_set(object, key, new_int(object, value));
}

kg_json *kg_json_set_double(kg_json *object, const char *key, double value) {
    return kg_json_set(object, key, new_double(value));
}

kg_json *kg_json_set_bool(kg_json *object, const char *key, bool value) {
    return kg_json_set(object, key, cJSON_CreateBool(value));
}

kg_json *kg_json_push_str(kg_json *array, const char *value) {
    return kg_json_push(array, new_string(value));
}

kg_json *kg_json_push_int(kg_json *array, int64_t value) {
    return kg_json_push(array, new_int(array, value));
}

kg_json *kg_json_push_double(kg_json *array, double value) {
    return kg_json_push(array, new_double(value));
}
