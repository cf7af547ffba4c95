/* Buffers with a cap and a memory of their failure, and the flat fields at every cut. */
#include <math.h>

#include "base/buf.h"
#include "test.h"

TEST(buf_grows_and_stays_terminated) {
    kg_buf b;
    kg_buf_init(&b, 0);
    for (int i = 0; i < 1000; i++) {
        CHECK_INT(kg_buf_printf(&b, "%d,", i), KG_OK);
        CHECK_UINT(strlen(b.data), b.len);
    }
    CHECK_UINT(b.len, 3890);
    CHECK_STR(b.data + b.len - 8, "998,999,");
    kg_buf_clear(&b);
    CHECK_STR(b.data, "");
    CHECK_UINT(b.len, 0);
    kg_buf_free(&b);
    CHECK(b.data == NULL);
    CHECK_INT(kg_buf_puts(&b, "again"), KG_OK);
    kg_buf_free(&b);
}

TEST(buf_takes_bytes_that_are_no_text) {
    kg_buf b;
    kg_buf_init(&b, 0);
    CHECK_INT(kg_buf_add(&b, "a\0b", 3), KG_OK);
    CHECK_INT(kg_buf_add(&b, NULL, 0), KG_OK);
    CHECK_INT(kg_buf_putc(&b, '\0'), KG_OK);
    CHECK_UINT(b.len, 4);
    CHECK_MEM(b.data, "a\0b\0", 5);
    kg_buf_free(&b);
}

TEST(buf_failure_is_sticky_and_keeps_what_was_there) {
    kg_buf b;
    kg_error err = {0};
    kg_buf_init(&b, 10);
    CHECK_INT(kg_buf_puts(&b, "0123456789"), KG_OK);
    CHECK_INT(kg_buf_putc(&b, 'x'), KG_EOVERFLOW);
    CHECK_INT(kg_buf_add(&b, "", 0), KG_EOVERFLOW);
    CHECK_INT(kg_buf_printf(&b, "%d", 1), KG_EOVERFLOW);
    CHECK(kg_buf_reserve(&b, 0) == NULL);
    CHECK(kg_buf_take(&b) == NULL);
    CHECK_STR(b.data, "0123456789");
    CHECK_ERR(kg_buf_check(&b, "the plan", &err), err, KG_EOVERFLOW,
              "the plan: larger than the limit of 10 bytes");
    kg_buf_clear(&b);
    CHECK_OK(kg_buf_check(&b, "the plan", &err), err);
    CHECK_INT(kg_buf_puts(&b, "fits"), KG_OK);
    kg_buf_free(&b);
    CHECK_UINT(b.max, 10);
}

TEST(buf_printf_over_the_cap_leaves_no_part) {
    kg_buf b;
    kg_buf_init(&b, 70);
    kg_buf_puts(&b, "head");
    CHECK_INT(kg_buf_printf(&b, "%0100d", 7), KG_EOVERFLOW);
    CHECK_STR(b.data, "head");
    kg_buf_free(&b);
}

TEST(buf_printf_at_each_fill) {
    for (size_t fill = 0; fill < 130; fill++) {
        kg_buf b;
        kg_buf_init(&b, 0);
        for (size_t i = 0; i < fill; i++)
            kg_buf_putc(&b, '.');
        CHECK_INT(kg_buf_printf(&b, "%s", "abcdef"), KG_OK);
        CHECK_UINT(b.len, fill + 6);
        CHECK_STR(b.data + fill, "abcdef");
        kg_buf_free(&b);
    }
}

TEST(buf_refuses_sizes_that_wrap) {
    kg_buf b;
    kg_buf_init(&b, SIZE_MAX);
    kg_buf_puts(&b, "x");
    CHECK(kg_buf_reserve(&b, SIZE_MAX - 1) == NULL);
    CHECK_INT(b.status, KG_EOVERFLOW);
    CHECK_STR(b.data, "x");
    kg_buf_free(&b);
    kg_buf_init(&b, 0);
    CHECK(kg_buf_reserve(&b, ((size_t)1 << 30) + 1) == NULL);
    CHECK_INT(b.status, KG_EOVERFLOW);
    kg_buf_free(&b);
}

TEST(buf_reserve_counts) {
    kg_buf b;
    kg_buf_init(&b, 0);
    kg_buf_puts(&b, "a");
    char *at = kg_buf_reserve(&b, 3);
    memcpy(at, "bcd", 3);
    CHECK_STR(b.data, "abcd");
    kg_buf_free(&b);
}

TEST(buf_take_gives_the_string_away) {
    kg_buf b;
    kg_buf_init(&b, 100);
    char *empty = kg_buf_take(&b);
    CHECK_STR(empty, "");
    free(empty);
    kg_buf_puts(&b, "text");
    char *text = kg_buf_take(&b);
    CHECK_STR(text, "text");
    free(text);
    CHECK(b.data == NULL);
    CHECK_UINT(b.len, 0);
    CHECK_UINT(b.max, 100);
}

static void put_all(kg_buf *b) {
    kg_put_u8(b, 0xAB);
    kg_put_u32(b, 0x01020304);
    kg_put_u64(b, UINT64_MAX - 1);
    kg_put_i64(b, INT64_MIN);
    kg_put_f64(b, -0.0);
    kg_put_str(b, "shape");
    kg_put_str(b, NULL);
    kg_put_bytes(b, "a\0b", 3);
    kg_put_f64(b, 0.1);
}

TEST(flat_fields_read_back) {
    kg_buf b;
    kg_buf_init(&b, 0);
    put_all(&b);
    CHECK_INT(b.status, KG_OK);
    CHECK_MEM(b.data, "\xAB\x04\x03\x02\x01\xFE\xFF\xFF\xFF\xFF\xFF\xFF\xFF", 13);
    kg_reader r;
    kg_reader_init(&r, b.data, b.len);
    CHECK_UINT(kg_get_u8(&r), 0xAB);
    CHECK_UINT(kg_get_u32(&r), 0x01020304);
    CHECK_UINT(kg_get_u64(&r), UINT64_MAX - 1);
    CHECK_INT(kg_get_i64(&r), INT64_MIN);
    double zero = kg_get_f64(&r);
    CHECK(zero == 0 && signbit(zero));
    CHECK_STR(kg_get_str(&r), "shape");
    CHECK_STR(kg_get_str(&r), "");
    size_t n = 99;
    CHECK_MEM(kg_get_bytes(&r, &n), "a\0b", 4);
    CHECK_UINT(n, 3);
    CHECK(kg_get_f64(&r) == 0.1);
    CHECK_INT(r.status, KG_OK);
    CHECK_UINT(r.pos, r.len);
    kg_buf_free(&b);
}

/* The copy has no spare byte, so ASan sees a read past the cut. */
TEST(flat_fields_cut_at_each_length) {
    kg_buf b;
    kg_buf_init(&b, 0);
    put_all(&b);
    for (size_t n = 0; n < b.len; n++) {
        char *cut = malloc(n ? n : 1);
        CHECK(cut != NULL);
        memcpy(cut, b.data, n);
        kg_reader r;
        kg_reader_init(&r, cut, n);
        kg_get_u8(&r), kg_get_u32(&r), kg_get_u64(&r), kg_get_i64(&r), kg_get_f64(&r);
        const char *s = kg_get_str(&r);
        CHECK(strcmp(s, "shape") == 0 || strcmp(s, "") == 0);
        kg_get_str(&r);
        size_t size = 99;
        CHECK(kg_get_bytes(&r, &size) != NULL && (size == 0 || size == 3));
        CHECK(kg_get_f64(&r) == 0);
        CHECK_INT(r.status, KG_EFORMAT);
        CHECK(r.pos <= r.len);
        free(cut);
    }
    kg_buf_free(&b);
}

TEST(flat_failure_is_sticky) {
    kg_reader r;
    kg_reader_init(&r, "\x01\x02", 2);
    CHECK_UINT(kg_get_u32(&r), 0);
    CHECK_INT(r.status, KG_EFORMAT);
    CHECK_UINT(kg_get_u8(&r), 0);
    CHECK_UINT(r.pos, 0);
}

TEST(flat_strings_that_lie) {
    static const struct {
        const char *bytes;
        size_t n;
    } bad[] = {
        {"\xFF\xFF\xFF\xFF"
         "abc",
         7}, /* longer than what is there */
        {"\x03\0\0\0"
         "abcd",
         8}, /* no NUL behind it */
        {"\x03\0\0\0"
         "abc",
         7}, /* the NUL is cut */
        {"\x03\0\0\0"
         "a\0c\0",
         8}, /* a NUL within */
    };
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        kg_reader r;
        kg_reader_init(&r, bad[i].bytes, bad[i].n);
        CHECK_STR(kg_get_str(&r), "");
        CHECK_INT(r.status, KG_EFORMAT);
    }
}

TEST(flat_field_over_the_cap_leaves_no_part) {
    kg_buf b;
    kg_buf_init(&b, 9);
    CHECK_INT(kg_put_str(&b, "abcde"), KG_EOVERFLOW);
    CHECK_UINT(b.len, 0);
    kg_buf_clear(&b);
    CHECK_INT(kg_put_str(&b, "abcd"), KG_OK);
    CHECK_UINT(b.len, 9);
    kg_buf_free(&b);
}
