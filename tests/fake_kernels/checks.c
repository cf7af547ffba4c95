/* What the checking kernels (csrc/tune/checks.cu) do, for a stand-in of the driver that has no GPU
 * (tests/fake/fake_cuda.h): the same definitions (check_core.h), one thread. What is tested so is
 * the judge's use of them: addresses, sizes, words, sums; the kernels themselves run on a GPU. */
#include "fake_cuda.h"
#include "tune/compare.h"

#define EXPORT __attribute__((visibility("default")))
#define BYTES(l, i) ((unsigned char *)(uintptr_t)FAKE_ARG(uint64_t, l, i))

EXPORT void fake_kernel_kg_check_fill(const fake_launch *l);
EXPORT void fake_kernel_kg_check_bands(const fake_launch *l);
EXPORT void fake_kernel_kg_check_differ(const fake_launch *l);
EXPORT void fake_kernel_kg_check_hash(const fake_launch *l);
EXPORT void fake_kernel_kg_check_read(const fake_launch *l);
EXPORT void fake_kernel_kg_check_copy(const fake_launch *l);

static unsigned char pattern_at(uint64_t word, uintptr_t address) {
    return (unsigned char)(word >> (address % 8 * 8));
}

void fake_kernel_kg_check_fill(const fake_launch *l) {
    unsigned char *to = BYTES(l, 0);
    for (uint64_t i = 0, n = FAKE_ARG(uint64_t, l, 1); i < n; i++)
        to[i] = pattern_at(FAKE_ARG(uint64_t, l, 2), (uintptr_t)(to + i));
}

typedef struct bands {
    uint64_t at[128], bytes[128], word[128];
} bands;

void fake_kernel_kg_check_bands(const fake_launch *l) {
    const bands *b = (const bands *)(const void *)(l->bytes + l->offset[0]);
    uint64_t *first = (uint64_t *)(void *)BYTES(l, 1);
    for (unsigned k = 0; k < l->grid[1]; k++) {
        const unsigned char *p = (const unsigned char *)(uintptr_t)b->at[k];
        for (uint64_t i = 0; i < b->bytes[k] && first[k] == UINT64_MAX; i++)
            if (p[i] != pattern_at(b->word[k], (uintptr_t)(p + i)))
                first[k] = i;
    }
}

void fake_kernel_kg_check_differ(const fake_launch *l) {
    const unsigned char *a = BYTES(l, 0), *b = BYTES(l, 1);
    uint64_t *first = (uint64_t *)(void *)BYTES(l, 3);
    for (uint64_t i = 0, n = FAKE_ARG(uint64_t, l, 2); i < n && *first == UINT64_MAX; i++)
        if (a[i] != b[i])
            *first = i;
}

void fake_kernel_kg_check_hash(const fake_launch *l) {
    const kg_word64 *from = (const kg_word64 *)(const void *)BYTES(l, 0);
    kg_hash_sums *to = (kg_hash_sums *)(void *)BYTES(l, 3);
    for (uint64_t i = 0, n = FAKE_ARG(uint64_t, l, 1) / 16; i < n; i++)
        kg_hash_word(to, from[2 * i], from[2 * i + 1], i, FAKE_ARG(uint64_t, l, 2));
}

void fake_kernel_kg_check_read(const fake_launch *l) {
    volatile unsigned char sink = BYTES(l, 0)[FAKE_ARG(uint64_t, l, 1) - 1];
    (void)sink;
}

void fake_kernel_kg_check_copy(const fake_launch *l) {
    memcpy(BYTES(l, 0), BYTES(l, 1), FAKE_ARG(uint64_t, l, 2));
}

static long long integer_at(int dtype, const void *out, uint64_t i) {
    return dtype == KG_I64 ? ((const long long *)out)[i] : (long long)kg_element(dtype, out, i);
}

static void compare(const fake_launch *l, int dtype) {
    const void *out = BYTES(l, 0);
    const kg_word64 *oracle = (const kg_word64 *)(const void *)BYTES(l, 1);
    uint64_t poison = FAKE_ARG(uint64_t, l, 3);
    kg_range range = {FAKE_ARG(double, l, 4), FAKE_ARG(double, l, 5)};
    kg_sums *to = (kg_sums *)(void *)BYTES(l, 6);
    size_t size = kg_dtype_size(dtype);
    for (uint64_t i = 0, n = FAKE_ARG(uint64_t, l, 2); i < n; i++) {
        uint64_t bits = 0;
        memcpy(&bits, (const char *)out + i * size, size);
        if (dtype == KG_F32 || dtype == KG_F64 || dtype == KG_F16 || dtype == KG_BF16)
            kg_add_float(to, kg_element(dtype, out, i), kg_bits_double(oracle[i]), bits == poison,
                         range);
        else
            kg_add_integer(to, integer_at(dtype, out, i), (long long)oracle[i], bits == poison);
    }
}

#define COMPARE(name, dtype)                                                                       \
    EXPORT void fake_kernel_kg_check_compare_##name(const fake_launch *l);                         \
    void fake_kernel_kg_check_compare_##name(const fake_launch *l) {                               \
        compare(l, dtype);                                                                         \
    }

COMPARE(float32, KG_F32)
COMPARE(float64, KG_F64)
COMPARE(float16, KG_F16)
COMPARE(bfloat16, KG_BF16)
COMPARE(int8, KG_I8)
COMPARE(uint8, KG_U8)
COMPARE(int16, KG_I16)
COMPARE(int32, KG_I32)
COMPARE(int64, KG_I64)
COMPARE(bool, KG_BOOL)
