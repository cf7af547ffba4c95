/* What the checking kernels are made of, on the CPU: the same numbers as the vectorised comparison,
 * element by element, and a hash that sees any word change and no change of order. And that their
 * text compiles for every architecture that kgen has. */
#include "test.h"

#include "nvrtc_util.h"
#include "runtime/cubin.h"
#include "runtime/image_cuda.h"
#include "tune/checks_source.h"
#include "tune/compare.h"

enum { COUNT = 5000 };

/* Values of all kinds: near the oracle, far, not finite, poisoned, beyond the dtype's range. */
static double make(int i, double *oracle) {
    double r = (i % 97 - 48) * 0.37;
    *oracle = i % 211 == 7 ? INFINITY : i % 307 == 9 ? NAN : i % 401 == 11 ? 1e39 : r;
    if (i % 422 == 7)
        return 1; /* the oracle is infinite */
    if (i % 503 == 3)
        return NAN;
    if (i % 601 == 5)
        return -INFINITY;
    return isfinite(*oracle) && *oracle < 1e38 ? r + (i % 13 == 0 ? 1e-3 : 1e-7 * r) : *oracle;
}

TEST(check_core_sums_as_the_comparison_does) {
    static float out[COUNT];
    static double oracle[COUNT];
    kg_error err = {0};
    kg_comparison c;
    kg_sums s = {0};
    uint64_t poison = kg_poison(KG_F32, 12345);
    for (int i = 0; i < COUNT; i++) {
        out[i] = (float)make(i, &oracle[i]);
        if (i % 701 == 2)
            memcpy(&out[i], &poison, sizeof out[i]);
    }
    CHECK_OK(kg_compare(KG_F32, out, oracle, COUNT, poison, 2, &c, &err), err);
    for (int i = 0; i < COUNT; i++) {
        uint32_t bits;
        memcpy(&bits, &out[i], sizeof bits);
        kg_add_float(&s, kg_value_f32(bits), oracle[i], bits == kg_low_bytes(KG_F32, poison),
                     kg_range_of(KG_F32));
    }
    kg_comparison d = kg_comparison_of(KG_F32, COUNT, &s);
    CHECK(c.unwritten > 0 && c.nonfinite > 0 && c.misplaced > 0 && c.not_close > 0);
    CHECK_UINT(d.unwritten, c.unwritten);
    CHECK_UINT(d.nonfinite, c.nonfinite);
    CHECK_UINT(d.misplaced, c.misplaced);
    CHECK_UINT(d.not_close, c.not_close);
    CHECK_NEAR(d.scale, c.scale, 0);
    CHECK_NEAR(d.max_err, c.max_err, 0);
    CHECK_NEAR(d.norm_err, c.norm_err, 1e-13 * c.norm_err); /* another order of adding */
}

TEST(check_core_reads_every_half) {
    for (uint32_t h = 0; h < 65536; h++) {
        uint16_t bits = (uint16_t)h;
        double a = kg_value_f16(h), b = kg_element(KG_F16, &bits, 0);
        CHECK(a == b || (isnan(a) && isnan(b)));
        int exponent = (int)(h >> 10 & 31), fraction = (int)(h & 1023);
        double value = exponent == 0    ? ldexp(fraction, -24)
                       : exponent == 31 ? (fraction ? NAN : INFINITY)
                                        : ldexp(1024 + fraction, exponent - 25);
        value = h & 0x8000 ? -value : value;
        CHECK(a == value || (isnan(a) && isnan(value)));
    }
}

TEST(check_core_ranges_have_an_end) {
    kg_range f16 = kg_range_of(KG_F16);
    CHECK_INT(kg_fit_of(INFINITY, 70000, f16.largest), KG_FIT_SAME);
    CHECK_INT(kg_fit_of(65504, 70000, f16.largest), KG_FIT_SAME);
    CHECK_INT(kg_fit_of(65000, INFINITY, f16.largest), KG_FIT_MISPLACED);
    CHECK_INT(kg_fit_of(-INFINITY, 70000, f16.largest), KG_FIT_NONFINITE);
    CHECK_INT(kg_fit_of(NAN, NAN, f16.largest), KG_FIT_SAME);
    CHECK_INT(kg_fit_of(0, NAN, f16.largest), KG_FIT_MISPLACED);
    CHECK_INT(kg_fit_of(NAN, 1, f16.largest), KG_FIT_NONFINITE);
    CHECK_INT(kg_fit_of(2, 1, f16.largest), KG_FIT_FINITE);
}

static kg_hash_sums hash(const uint64_t *words, size_t n, bool backwards, uint64_t secret) {
    kg_hash_sums s = {0, 0};
    for (size_t k = 0; k < n; k++) {
        size_t i = backwards ? n - 1 - k : k;
        kg_hash_word(&s, words[2 * i], words[2 * i + 1], i, secret);
    }
    return s;
}

static bool same(kg_hash_sums a, kg_hash_sums b) {
    return a.a == b.a && a.b == b.b;
}

TEST(check_core_hash_sees_every_bit_and_every_place) {
    enum { WORDS = 64 };
    uint64_t w[2 * WORDS] = {0};
    kg_hash_sums plain = hash(w, WORDS, false, 1);
    CHECK(same(plain, hash(w, WORDS, true, 1)));
    CHECK(!same(plain, hash(w, WORDS, false, 2)));
    for (size_t i = 0; i < 2 * WORDS; i++)
        for (int bit = 0; bit < 64; bit++) {
            w[i] = UINT64_C(1) << bit;
            CHECK(!same(plain, hash(w, WORDS, false, 1)));
            w[i] = 0;
        }
    w[0] = 1; /* one and the same change in two places */
    kg_hash_sums first = hash(w, WORDS, false, 1);
    w[0] = 0;
    w[2] = 1;
    CHECK(!same(first, hash(w, WORDS, false, 1)));
}

TEST_WITHIN(checks_compile_for_every_architecture, 180) {
    static const int archs[] = {80, 90};
    need_nvrtc();
    setenv("KGEN_CACHE", test_path("cache"), 1);
    for (size_t i = 0; i < sizeof archs / sizeof *archs; i++) {
        kg_error err = {0};
        kg_buf image, messages;
        kg_cubin_function f;
        kg_buf_init(&image, 0);
        kg_buf_init(&messages, 0);
        CHECK_OK(kg_image_cuda(kg_checks_source, kg_checks_source_bytes, "checks.cu", archs[i], 0,
                               &image, &messages, NULL, &err),
                 err);
        CHECK_INT(kg_cubin_arch(image.data, image.len), archs[i]);
        CHECK_OK(kg_cubin_function_get(image.data, image.len, "kg_check_bands", &f, &err), err);
        CHECK_UINT(f.nparams, 2);
        CHECK_UINT(f.params[0].size, 3 * 128 * 8); /* as judge_cuda_checks.c lays it out */
        for (int d = 0; d < KG_DTYPE_COUNT; d++) {
            char name[64];
            snprintf(name, sizeof name, "kg_check_compare_%s", kg_dtype_name(d));
            CHECK_OK(kg_cubin_function_get(image.data, image.len, name, &f, &err), err);
            CHECK_UINT(f.nparams, 7);
        }
        kg_buf_free(&image);
        kg_buf_free(&messages);
    }
}
