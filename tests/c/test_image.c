/* Images: what the inspection refuses, malformed objects, the cache. */
#include "test.h"

#include <dirent.h>
#include <elf.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/fs.h"
#include "runtime/image.h"
#include "runtime/image_headers.h"
#include "runtime/object_inspect.h"
#include "runtime/x86_decode.h"
#include "sys/cc.h"

static const char PLAIN[] =
    "__attribute__((visibility(\"default\"))) void kg_entry_0(long b, long e, void *const *a) {\n"
    "  float *y = a[0]; for (long i = b; i < e; i++) y[i] = 2.0f * y[i];\n}\n";

static void object_of(const char *source, kg_buf *object) {
    kg_error err = {0};
    kg_buf messages;
    kg_buf_init(&messages, 0);
    kg_buf_init(object, 0);
    CHECK_OK(
        kg_cc_object(source, strlen(source), "t.c", NULL, "x86-64-v2", 0, object, &messages, &err),
        err);
    kg_buf_free(&messages);
}

static void refused(const char *source, const char *part) {
    kg_error err = {0};
    kg_buf object, complaint;
    object_of(source, &object);
    kg_buf_init(&complaint, 0);
    CHECK_ERR(kg_object_inspect(object.data, object.len, &complaint, &err), err, KG_EUNSUPPORTED,
              part);
    CHECK_HAS(complaint.data, part);
    kg_buf_free(&object);
    kg_buf_free(&complaint);
}

TEST(inspection_lets_loops_through) {
    kg_error err = {0};
    kg_buf object, complaint;
    static const char *const fine[] = {
        PLAIN,
        "#include <math.h>\nvoid f(float *x) { for (int i = 0; i < 99; i++) x[i] = expf(x[i]) + "
        "sinf(x[i]); }",
        "#include <string.h>\nvoid f(char *x, char *y, long n) { memcpy(x, y, n); memmove(y, x, "
        "n); }",
        "static const float t[] = {1, 2, 3, 4, 5}; float f(int i) { return t[i]; }",
        "int f(int i) { switch (i) { case 0: return 9; case 1: return 4; case 2: return 7; case 3:"
        " return 1; case 4: return 55; } return i; }",
        "_Float16 f(float x) { return (_Float16)x; } __int128 g(__int128 a, __int128 b) { return a "
        "/ b; }"};
    for (size_t i = 0; i < sizeof fine / sizeof *fine; i++) {
        object_of(fine[i], &object);
        kg_buf_init(&complaint, 0);
        CHECK_OK(kg_object_inspect(object.data, object.len, &complaint, &err), err);
        kg_buf_free(&object);
        kg_buf_free(&complaint);
    }
}

TEST(inspection_refuses_state_and_tricks) {
    refused("int n; int f(void) { return n++; }", ".bss");
    refused("int n = 3; int f(void) { return n++; }", ".data");
    refused("int f(void) { static int n = 3; return n++; }", ".data");
    refused("extern int x; int f(void) { return x; }", "symbol x");
    refused("int puts(const char *); int f(void) { return puts(\"\"); }", "symbol puts");
    refused("__attribute__((constructor)) void f(void) { __builtin_trap(); }", "loaded");
    refused("__attribute__((destructor)) void f(void) { __builtin_trap(); }", "loaded");
    refused("static __thread int n; int f(void) { return n++; }", "thread-local");
    refused("__attribute__((weak)) int f(void) { return 1; }", "weak");
    refused("void f(void) { __asm__ volatile(\"syscall\"); }", "syscall");
    refused("void f(void) { __asm__ volatile(\"sysenter\"); }", "sysenter");
    refused("void f(void) { __asm__ volatile(\"int $0x80\"); }", "int 0x80");
    refused("__attribute__((section(\".mine\"))) int f(void) { return 1; }", ".mine");
    refused("__attribute__((section(\".text.x\"))) const int t = 5;", "executable section");
    refused("int a(void); int b(void) { return 1; } void *f[] = {b}; ", ".data");
    refused("int b(void) { return 1; } void *r(void) { return b; } int f(void) "
            "__attribute__((ifunc(\"r\")));",
            "ifunc");
}

/* Any byte of an object changed, and any end cut off: an answer, and no read outside (the
 * sanitizers look). */
TEST(inspection_survives_damage) {
    kg_error err = {0};
    kg_buf object, complaint;
    object_of(PLAIN, &object);
    kg_buf_init(&complaint, 1 << 16);
    for (size_t n = 0; n < object.len; n += n < 512 ? 1 : 37) {
        char *copy = malloc(n ? n : 1); /* exact: what lies behind is not ours */
        CHECK(copy != NULL);
        memcpy(copy, object.data, n);
        kg_buf_clear(&complaint);
        CHECK(kg_object_inspect(copy, n, &complaint, &err) == KG_EUNSUPPORTED);
        free(copy);
    }
    uint64_t state = 5;
    for (int round = 0; round < 3000; round++) {
        char *copy = malloc(object.len);
        CHECK(copy != NULL);
        memcpy(copy, object.data, object.len);
        for (int k = 0; k < 3; k++) {
            state = state * 6364136223846793005u + 1442695040888963407u;
            copy[(state >> 20) % object.len] = (char)(state >> 50);
        }
        kg_buf_clear(&complaint);
        kg_object_inspect(copy, object.len, &complaint, &err);
        kg_linked_inspect(copy, object.len, &complaint, &err);
        free(copy);
    }
    kg_buf_free(&object);
    kg_buf_free(&complaint);
}

TEST(symbols_of_libm_alone) {
    static const char *const yes[] = {"memcpy",        "expf",         "exp",     "_ZGVeN16v_expf",
                                      "_ZGVdN4vv_pow", "__exp_finite", "sincosf", "__truncsfhf2"};
    static const char *const no[] = {
        "",       "system",  "expfff_",           "_ZGV",   "_ZGVeN16v_system", "__finite", "dlsym",
        "malloc", "environ", "__libc_start_main", "syscall"};
    for (size_t i = 0; i < sizeof yes / sizeof *yes; i++)
        if (!kg_symbol_allowed(yes[i]))
            FAIL("%s is not allowed", yes[i]);
    for (size_t i = 0; i < sizeof no / sizeof *no; i++)
        if (kg_symbol_allowed(no[i]))
            FAIL("%s is allowed", no[i]);
}

static int image_of(const char *source, char path[512], kg_buf *messages, kg_error *err) {
    kg_buf image;
    kg_buf_init(&image, 0);
    int rc = kg_image_cpu(source, strlen(source), "t.c", "x86-64-v2", 0, false, &image, messages,
                          path, err);
    kg_entry entry;
    if (rc == KG_OK)
        rc = kg_image_load(path, image.data, image.len, 1, &entry, err);
    float y[4] = {1, 2, 3, 4};
    void *args[] = {y};
    if (rc == KG_OK) {
        entry(1, 3, args);
        CHECK_NEAR(y[0] + y[1] + y[2] + y[3], 1 + 4 + 6 + 4, 0);
    }
    kg_buf_free(&image);
    return rc;
}

TEST(images_are_kept_and_repaired) {
    kg_error err = {0};
    kg_buf messages, file;
    char path[512], again[512];
    kg_buf_init(&messages, 0);
    kg_buf_init(&file, 0);
    setenv("KGEN_CACHE", test_path("cache"), 1);
    CHECK(!kg_image_cached(PLAIN, strlen(PLAIN), "x86-64-v2", 0));
    CHECK_OK(image_of(PLAIN, path, &messages, &err), err);
    CHECK(kg_is_file(path));
    CHECK(kg_image_cached(PLAIN, strlen(PLAIN), "x86-64-v2", 0));
    CHECK(!kg_image_cached(PLAIN, strlen(PLAIN), "x86-64-v3", 0));
    CHECK(!kg_image_cached(PLAIN, strlen(PLAIN) - 1, "x86-64-v2", 0));
    CHECK_OK(kg_read_file(path, 1 << 20, &file, &err), err);
    file.data[file.len / 2] ^= 1;
    CHECK_OK(kg_write_atomic(path, file.data, file.len, &err), err);
    CHECK(!kg_image_cached(PLAIN, strlen(PLAIN), "x86-64-v2", 0));
    CHECK_OK(image_of(PLAIN, again, &messages, &err), err);
    CHECK_STR(again, path);
    CHECK(kg_image_cached(PLAIN, strlen(PLAIN), "x86-64-v2", 0));
    CHECK_OK(kg_write_atomic(path, file.data, 7, &err), err);
    CHECK_OK(image_of(PLAIN, again, &messages, &err), err);
    kg_buf_free(&messages);
    kg_buf_free(&file);
}

#define INCLUDES "#include <stdint.h>\n#include <math.h>\n#include <string.h>\n"
static const char HEADED[] = INCLUDES "#pragma GCC poison __asm\n"
                                      "float f(float x) { return sqrtf(x) + expf(x); }\n";

static void object_with(const char *source, const char *headers, kg_buf *object) {
    kg_error err = {0};
    kg_buf messages;
    kg_buf_init(&messages, 0);
    kg_buf_init(object, 0);
    CHECK_OK(kg_cc_object(source, strlen(source), "t.c", headers, "x86-64-v2", 0, object, &messages,
                          &err),
             err);
    kg_buf_free(&messages);
}

static void same_object(const char *headers) {
    kg_buf plain, ahead;
    object_with(HEADED, NULL, &plain);
    object_with(HEADED, headers, &ahead);
    CHECK_UINT(plain.len, ahead.len);
    CHECK_MEM(plain.data, ahead.data, plain.len);
    kg_buf_free(&plain);
    kg_buf_free(&ahead);
}

static void needs_gcc(void) {
    const kg_cc *cc;
    kg_error err = {0};
    CHECK_OK(kg_cc_find(&cc, &err), err);
    if (strcmp(cc->kind, "gcc") != 0)
        test_skip("%s compiles no headers ahead", cc->version);
}

TEST(headers_are_read_once) {
    kg_error err = {0};
    kg_buf image, messages;
    char path[KG_IMAGE_PATH], file[KG_IMAGE_PATH + 8];
    needs_gcc();
    kg_buf_init(&image, 0);
    kg_buf_init(&messages, 0);
    setenv("KGEN_CACHE", test_path("cache"), 1);
    for (int more = 0; more < 2; more++) {
        CHECK(!kg_headers_find(HEADED, strlen(HEADED), "x86-64-v2", 0, path));
        char source[sizeof HEADED + 32];
        snprintf(source, sizeof source, "%s/* %d */", HEADED, more);
        CHECK_OK(kg_image_cpu(source, strlen(source), "t.c", "x86-64-v2", 0, more, &image,
                              &messages, NULL, &err),
                 err);
    }
    CHECK(kg_headers_find(HEADED, strlen(HEADED), "x86-64-v2", 0, path));
    CHECK(!kg_headers_find(HEADED, strlen(HEADED), "x86-64-v2", 1, file));
    CHECK(!kg_headers_find(HEADED, strlen(HEADED), "x86-64-v3", 0, file));
    CHECK(!kg_headers_find(PLAIN, strlen(PLAIN), "x86-64-v2", 0, file));
    same_object(path);
    CHECK(kg_headers_begin(HEADED, strlen(HEADED), "x86-64-v2", 0) == NULL);
    kg_buf_free(&image);
    kg_buf_free(&messages);
}

/* The text of an error is what it is without them; and what is torn or gone does no harm. */
TEST(headers_are_never_at_fault) {
    kg_error err = {0};
    kg_buf messages;
    char path[KG_IMAGE_PATH], file[KG_IMAGE_PATH + 8];
    needs_gcc();
    setenv("KGEN_CACHE", test_path("cache"), 1);
    kg_headers_end(kg_headers_begin(HEADED, strlen(HEADED), "x86-64-v2", 0));
    CHECK(kg_headers_find(HEADED, strlen(HEADED), "x86-64-v2", 0, path));
    kg_buf_init(&messages, 0);
    CHECK_ERR(image_of(INCLUDES "int f(void) {\n return 1 }\n", file, &messages, &err), err,
              KG_ECOMPILE, "t.c does not compile");
    CHECK_HAS(messages.data, "t.c:5:");
    kg_buf_free(&messages);
    snprintf(file, sizeof file, "%s.gch", path);
    CHECK_OK(kg_write_atomic(file, "torn", 4, &err), err);
    same_object(path);
    CHECK(unlink(file) == 0);
    CHECK(!kg_headers_find(HEADED, strlen(HEADED), "x86-64-v2", 0, path));
    same_object(path);
    CHECK(unlink(path) == 0);
    same_object(path);
}

TEST(a_cache_that_cannot_be_written_is_only_slower) {
    kg_error err = {0};
    kg_buf messages;
    char path[512];
    kg_buf_init(&messages, 0);
    CHECK_OK(kg_write_atomic(test_path("file"), "x", 1, &err), err);
    setenv("KGEN_CACHE", test_path("file"), 1); /* a file where a folder should be */
    CHECK_OK(image_of(PLAIN, path, &messages, &err), err);
    CHECK_STR(path, "");
    CHECK_OK(image_of(PLAIN, path, &messages, &err), err);
    kg_buf_free(&messages);
}

TEST(compile_errors_name_the_file) {
    kg_error err = {0};
    kg_buf messages;
    char path[512];
    kg_buf_init(&messages, 0);
    setenv("KGEN_CACHE", test_path("cache"), 1);
    CHECK_ERR(image_of("int f(void) {\n return 1 }\n", path, &messages, &err), err, KG_ECOMPILE,
              "t.c does not compile");
    CHECK_HAS(messages.data, "t.c:2:");
    CHECK(!strstr(messages.data, "kgen-cc-"));
    kg_buf_free(&messages);
}

/* A unit begins with lines of kgen's own; those that are quoted are the author's. */
TEST(compile_errors_quote_the_authors_line) {
    kg_error err = {0};
    kg_buf messages;
    char path[512];
    kg_buf_init(&messages, 0);
    setenv("KGEN_CACHE", test_path("cache"), 1);
    CHECK_ERR(image_of("#define KGENS_OWN 1\n#define KGENS_OTHER 2\n#line 1 \"source.c\"\n"
                       "int f(void) {\n    return not_there; }\n",
                       path, &messages, &err),
              err, KG_ECOMPILE, "t.c does not compile");
    CHECK_HAS(messages.data, "t.c:2:");
    CHECK_HAS(messages.data, "    return not_there; }\n");
    CHECK(!strstr(messages.data, "KGENS_O"));
    kg_buf_clear(&messages);
    CHECK_ERR(image_of("int;\nint x = nothing;\n#line 1 \"source.c\"\n", path, &messages, &err),
              err, KG_ECOMPILE, "t.c does not compile");
    CHECK_HAS(messages.data, "t.c:2:");
    CHECK(!strstr(messages.data, "unit/"));
    kg_buf_free(&messages);
}

TEST(compiler_is_found_or_named) {
    const kg_cc *cc;
    kg_error err = {0};
    setenv("KGEN_CC", "/nonexistent/cc", 1);
    CHECK_ERR(kg_cc_find(&cc, &err), err, KG_EENV, "/nonexistent/cc");
}

TEST(cpu_level_is_what_the_kernel_says) {
    char text[1 << 16] = "";
    FILE *f = fopen("/proc/cpuinfo", "r");
    CHECK(f != NULL);
    size_t n = fread(text, 1, sizeof text - 1, f);
    text[n] = '\0';
    fclose(f);
    bool v4 =
        strstr(text, " avx512bw ") && strstr(text, " avx512vl ") && strstr(text, " avx512dq ");
    bool v3 = strstr(text, " avx2 ") && strstr(text, " fma ") && strstr(text, " bmi2 ");
    CHECK_INT(kg_cpu_level(), v4 ? 4 : v3 ? 3 : strstr(text, " sse4_2 ") ? 2 : 1);
}

static bool has_bytes(const kg_buf *object) {
    for (size_t i = 0; i + 1 < object->len; i++)
        if (object->data[i] == 0x0f && object->data[i + 1] == 0x05)
            return true;
    return false;
}

/* A jump over just so many bytes has the distance 0x050f, "0f 05", in it, and is honest. */
TEST(chance_bytes_are_let_through) {
    kg_error err = {0};
    kg_buf source, messages, object;
    char path[512];
    setenv("KGEN_CACHE", test_path("cache"), 1);
    kg_buf_init(&messages, 0);
    bool found = false;
    /* Stores of 3 bytes and of 4, around the distance. */
    for (int k = 0; k < 120 && !found; k++) {
        kg_buf_init(&source, 0);
        kg_buf_puts(&source,
                    "__attribute__((visibility(\"default\"))) void kg_entry_0(long b, long e, void "
                    "*const *a) {\n float *y = a[0]; volatile char *c = a[0];\n"
                    "for (long i = b; i < e; i++) y[i] = 2.0f * y[i];\n if (e > 1000) {\n");
        for (int i = 0; i < 405 + k / 4; i++)
            kg_buf_puts(&source, i < k % 4 ? "c[1] = 1;" : "c[0] = 1;");
        kg_buf_puts(&source, "}}\n");
        object_of(source.data, &object);
        found = has_bytes(&object);
        if (found)
            CHECK_OK(image_of(source.data, path, &messages, &err), err);
        kg_buf_free(&object);
        kg_buf_free(&source);
    }
    kg_buf_free(&messages);
    if (!found)
        test_skip("this compiler put no 0f 05 into any of 120 distances");
}

TEST(constants_that_spell_a_system_call_are_let_through) {
    kg_error err = {0};
    kg_buf object, complaint;
    object_of("#include <stdint.h>\nvoid f(uint64_t *y) { y[0] = 0x050f050f050f050f; y[1] = "
              "0x340f80cd340f80cd; }",
              &object);
    kg_buf_init(&complaint, 0);
    CHECK(has_bytes(&object));
    CHECK_OK(kg_object_inspect(object.data, object.len, &complaint, &err), err);
    kg_buf_free(&object);
    kg_buf_free(&complaint);
}

TEST(instructions_that_no_candidate_may_have) {
    static const struct {
        const char *code, *says;
    } refuses[] = {
        {"__asm__ volatile(\"syscall\")", "syscall (0f 05)"},
        {"__asm__ volatile(\"int $0x80\")", "a system call"},
        {"__asm__ volatile(\"sysenter\")", "sysenter"},
        {"__asm__ volatile(\"wrgsbase %0\" : : \"r\"(a))", "a segment register"},
        {"__asm__ volatile(\"movq %%fs:0, %0\" : \"=r\"(a))", "a segment register"},
        {"__asm__ volatile(\"rdtsc\" : : : \"eax\", \"edx\")", "reads a clock"},
        {"__asm__ volatile(\"rdrand %0\" : \"=r\"(a))", "reads a clock"},
        {"__asm__ volatile(\"ldmxcsr %0\" : : \"m\"(a))", "floating-point environment"},
        {"__asm__ volatile(\"vldmxcsr %0\" : : \"m\"(a))", "floating-point environment"},
        {"__asm__ volatile(\"fldcw %0\" : : \"m\"(a))", "floating-point environment"},
        {"__asm__ volatile(\"fxrstor %0\" : : \"m\"(a))", "floating-point environment"},
        {"__asm__ volatile(\"xrstor %0\" : : \"m\"(a))", "floating-point environment"},
        {"__asm__ volatile(\"movq %0, %%mm3\" : : \"r\"(a))", "MMX"},
        {"__asm__ volatile(\"pushfq; popfq\")", "flags"},
        {"__asm__ volatile(\"std\")", "flags"},
        {"__asm__ volatile(\"hlt\")", "of the system"},
        {"__asm__ volatile(\"call *%0\" : : \"r\"(a))", "address that is computed"},
        {"__asm__ volatile(\"jmp *%0\" : : \"r\"(a))", "address that is computed"},
        {"__asm__ volatile(\".byte 0x06\")", "no instruction that is known"},
        {"void (*p)(void) = (void (*)(void))a; p()", "address that is computed"},
    };
    for (size_t i = 0; i < sizeof refuses / sizeof *refuses; i++) {
        kg_buf source;
        kg_buf_init(&source, 0);
        kg_buf_printf(&source, "long f(long a) { %s; return a + 1; }\n", refuses[i].code);
        refused(source.data, refuses[i].says);
        kg_buf_free(&source);
    }
}

TEST(addresses_of_libc_are_refused) {
    refused("#include <string.h>\nlong f(void) { return (long)memcpy; }", "must not be taken");
    refused("extern char _GLOBAL_OFFSET_TABLE_[]; long f(void) { return "
            "*(long *)_GLOBAL_OFFSET_TABLE_; }",
            "must not be taken");
}

/* What the linker makes of distances that the author chose. */
TEST(jumps_into_instructions_are_refused_when_linked) {
    static const char source[] =
        "__attribute__((visibility(\"default\"))) void kg_entry_0(long b, long e, void *const *a) "
        "{ __asm__ volatile(\"jmp 1f + 2\\n1: movabs $0x9090909090c3050f, %rax\"); }\n";
    kg_error err = {0};
    kg_buf object, image, complaint;
    object_of(source, &object);
    kg_buf_init(&image, 0);
    kg_buf_init(&complaint, 0);
    CHECK_OK(kg_cc_link(object.data, object.len, &image, &err), err);
    CHECK_ERR(kg_linked_inspect(image.data, image.len, &complaint, &err), err, KG_EUNSUPPORTED,
              "middle of an instruction");
    kg_buf_free(&object);
    kg_buf_free(&image);
    kg_buf_free(&complaint);
}

TEST(lengths_of_instructions) {
    static const struct {
        const char *bytes;
        size_t n, length;
    } known[] = {
#define I(text, length) {text, sizeof text - 1, length}
        I("\x90", 1),
        I("\xc3", 1),
        I("\x48\xb8\1\2\3\4\5\6\7\x8", 10),        /* movabs */
        I("\x66\xb8\1\2", 4),                      /* mov of 16 bits */
        I("\xf6\xc1\1", 3),                        /* test has an immediate */
        I("\xf6\xd1", 2),                          /* not has none */
        I("\x66\x2e\x0f\x1f\x84\0\0\0\0\0", 10),   /* padding */
        I("\xc5\xf8\x77", 3),                      /* vzeroupper */
        I("\xc5\xfc\x28\x44\x24\x20", 6),          /* vmovaps of a stack slot */
        I("\xc4\xe3\x7d\x19\xc1\1", 6),            /* vextractf128 */
        I("\x62\xf1\x7c\x48\x28\x05\1\2\3\4", 10), /* vmovaps of 512 bits */
        I("\x62\xf3\x75\x48\x25\xc2\xff", 7),      /* vpternlogd */
        I("\x62\xf5\x7c\x48\x58\xc1", 6),          /* vaddph */
        I("\xc4\xe2\x73\x5e\xc2", 5),              /* tdpbssd */
        I("\xe8\1\2\3\4", 5),                      /* call */
        I("\x0f\x84\1\2\3\4", 6),                  /* je */
        I("\x48\x8b\x04\x25\1\2\3\4", 8),          /* absolute address */
        I("\x48\x8b\x04\x24", 4),                  /* stack pointer */
        I("\x06", 0),                              /* not in 64-bit mode */
        I("\x62\xf1\x78\x48\x28\xc0", 0),          /* a reserved bit is not set */
        I("\xe8\1\2\3", 0),                        /* cut off */
        I("\x66\x66\x66\x66\x66\x66\x66\x66\x66\x66\x66\x66\x66\x66\x66\x90", 0),
#undef I
    };
    for (size_t i = 0; i < sizeof known / sizeof *known; i++) {
        kg_x86_insn insn = kg_x86_decode((const unsigned char *)known[i].bytes, known[i].n);
        if (insn.length != known[i].length)
            printf("case %zu\n", i);
        CHECK_INT((long long)insn.length, (long long)known[i].length);
    }
}

TEST(any_bytes_can_be_decoded) {
    unsigned char code[16];
    uint64_t state = 1;
    for (int i = 0; i < 300000; i++) {
        for (size_t k = 0; k < sizeof code; k++) {
            state = state * 6364136223846793005u + 1442695040888963407u;
            code[k] = (unsigned char)(state >> 56);
        }
        size_t n = state >> 32 & 15;
        unsigned char *copy = malloc(n + 1);
        CHECK(copy);
        memcpy(copy, code, n);
        kg_x86_insn insn = kg_x86_decode(copy, n);
        CHECK(insn.length <= n && (insn.length > 0 || insn.refused));
        free(copy);
    }
}
