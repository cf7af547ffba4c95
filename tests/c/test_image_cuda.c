/* From CUDA source to a cubin that may be served: includes, NVRTC, the inspection, the cache, and
 * the parameters as the cubin tells them. */
#include <sys/wait.h>
#include <unistd.h>

#include "base/fs.h"
#include "fake_driver.h"
#include "nvrtc_util.h"
#include "runtime/cubin.h"
#include "runtime/cuda_headers.h"
#include "runtime/image_cuda.h"

static kg_error err;
static kg_buf image, messages;
static char path[512];

static int build(const char *source, int arch) {
    setenv("KGEN_CACHE", test_path("cache"), 1);
    kg_buf_free(&image);
    kg_buf_free(&messages);
    kg_buf_init(&image, 0);
    kg_buf_init(&messages, 0);
    return kg_image_cuda(source, strlen(source), "t.cu", arch, 0, &image, &messages, path, &err);
}

static void done(void) {
    kg_buf_free(&image);
    kg_buf_free(&messages);
}

/* ---- includes ---- */

static int includes(const char *text, bool *any, char said[512]) {
    kg_buf complaint;
    kg_buf_init(&complaint, 0);
    int rc = kg_cuda_includes(text, strlen(text), "t.cu", any, &complaint, &err);
    snprintf(said, 512, "%s", complaint.len > 0 ? complaint.data : "");
    kg_buf_free(&complaint);
    return rc;
}

TEST(cuda_includes_finds_the_listed) {
    static const char *const texts[] = {"#include <mma.h>", " # include \"cuda_fp16.h\"\nint x;",
                                        "/* a */ # /* b */ include /* c */ <cuda_bf16.h>",
                                        "#inc\\\nlude <cuda_fp8.h>", "%:include <mma.h>\n"};
    for (size_t i = 0; i < sizeof(texts) / sizeof(texts[0]); i++) {
        char said[512];
        bool any = false;
        CHECK_OK(includes(texts[i], &any, said), err);
        CHECK(any);
    }
}

TEST(cuda_includes_passes_over_what_is_none) {
    static const char *const texts[] = {
        "// #include <stdio.h>\nint x;", "/*\n#include <stdio.h>\n*/",
        "int a; #include <x.h>",         "const char *s = R\"(\n#include <stdio.h>\n)\";",
        "#define include <x.h>",         ""};
    for (size_t i = 0; i < sizeof(texts) / sizeof(texts[0]); i++) {
        char said[512];
        bool any = true;
        CHECK_OK(includes(texts[i], &any, said), err);
        CHECK(!any);
    }
}

TEST(cuda_includes_refuses_by_name_and_line) {
    static const struct {
        const char *text, *says;
    } bad[] = {
        {"int x;\n#include </etc/passwd>\n", "t.cu:2: /etc/passwd: only <cuda_fp16.h>"},
        {"#include \"mma.h", "t.cu:1: mma.h"},
        {"#define H <mma.h>\n#include H", "t.cu:2: an include whose file a macro names"},
        {"#include_next <mma.hh>", "mma.hh"},
        {"#import <x.h>", "x.h"},
        {"const char *s = R\"x( /* )x\";\n#include <x.h>", "t.cu:2: x.h"},
        {"int i = 1'000; char c = '/*';\n#include <x.h>", "t.cu:2: x.h"},
        {"/* \\\n*/ #include <x.h>", "t.cu:2: x.h"},
        {"a\\\nb\n#include <x.h>", "t.cu:3: x.h"},
    };
    for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
        char said[512];
        bool any;
        CHECK_INT(includes(bad[i].text, &any, said), KG_EUNSUPPORTED);
        CHECK_HAS(said, bad[i].says);
    }
}

/* ---- building ---- */

#define KERNEL                                                                                     \
    "struct __align__(64) Map { unsigned long long a[16]; };\n"                                    \
    "__constant__ float table[4] = {1, 2, 3, 4};\n"                                                \
    "extern \"C\" __global__ void scale(const float *x, float *y, int n, double f,\n"              \
    "                                   const __grid_constant__ Map m, char c) {\n"                \
    "    int i = blockIdx.x * blockDim.x + threadIdx.x;\n"                                         \
    "    if (i < n) y[i] = x[i] * f + table[i & 3] + m.a[i & 15] + c;\n"                           \
    "}\n"

TEST(image_cuda_compiles_and_tells_parameters) {
    need_nvrtc();
    kg_cubin_function f;
    static const size_t sizes[] = {8, 8, 4, 8, 128, 1};
    static const int archs[] = {80, 90};
    for (size_t a = 0; a < 2; a++) {
        CHECK_OK(build(KERNEL, archs[a]), err);
        CHECK_INT(kg_cubin_arch(image.data, image.len), a == 0 ? 80 : 90);
        CHECK_OK(kg_cubin_function_get(image.data, image.len, "scale", &f, &err), err);
        CHECK_UINT(f.nparams, 6);
        for (size_t i = 0; i < 6; i++) {
            CHECK_UINT(f.params[i].size, sizes[i]);
            CHECK(i == 0 || f.params[i].offset >= f.params[i - 1].offset + sizes[i - 1]);
        }
        CHECK_ERR(kg_cubin_function_get(image.data, image.len, "scal", &f, &err), err, KG_ENOTFOUND,
                  "has no kernel scal (extern \"C\" __global__); it has: scale");
    }
    done();
}

TEST(image_cuda_shows_errors_with_the_authors_line) {
    need_nvrtc();
    CHECK_INT(build("#line 1 \"" KG_UNIT_NAME
                    "\"\nextern \"C\" __global__ void f() {\n  oops();\n}\n",
                    80),
              KG_ECOMPILE);
    CHECK_HAS(messages.data, "t.cu(2): error");
    CHECK_HAS(err.msg, "t.cu does not compile");
    done();
}

TEST(image_cuda_refuses_state_and_foreign_functions) {
    need_nvrtc();
    static const struct {
        const char *source, *says;
    } bad[] = {
        {"__device__ int counter = 3;\nextern \"C\" __global__ void f(int *p) { *p = counter++; }",
         "variable counter: variables of the device"},
        {"__device__ int zeroed;\nextern \"C\" __global__ void f(int *p) { *p = zeroed++; }",
         "variable zeroed: variables of the device"},
        {"extern \"C\" __global__ void f(int n) { printf(\"%d\", n); }",
         "symbol vprintf: printf is not allowed"},
        {"extern \"C\" __global__ void f(void **p) { *p = malloc(8); }",
         "symbol malloc: the device's heap"},
        {"extern \"C\" __global__ void f(int n) { static int seen; if (n) seen++; }", "seen"},
        {"constexpr float T[4] = {1, 2, 3, 4};\nextern \"C\" __global__ void f(float *p, int n) { "
         "*p = "
         "T[n]; }",
         "variable T"},
        {"constexpr int D = 4;\n__device__ int hidden;\nextern \"C\" __global__ void f(int *p) {\n"
         "  asm volatile(\"st.global.u32 [hidden], %0;\" :: \"r\"(*p)); }",
         "variable hidden"},
        {"extern \"C\" __global__ void f(int *p) {\n"
         "  asm volatile(\"{.global .u32 a, b; st.global.u32 [b], %0;}\" :: \"r\"(*p)); }",
         "variable b"},
    };
    for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
        CHECK_INT(build(bad[i].source, 80), KG_EUNSUPPORTED);
        CHECK_HAS(messages.data, bad[i].says);
        CHECK_HAS(err.msg, messages.data);
    }
    done();
}

TEST(image_cuda_takes_constants_that_are_numbers) {
    need_nvrtc();
    static const int archs[] = {80, 90};
    for (size_t i = 0; i < 2; i++)
        if (build("constexpr int D = 64, TILES[2] = {3, 4};\nconstexpr float HALF = 0.5f;\n"
                  "template <int N> struct Tile { static constexpr int n = N * 2; };\n"
                  "template <int N> __device__ float sum(const float *x) { float s = 0;\n"
                  "  for (int i = 0; i < N; i++) s += x[i] * HALF; return s; }\n"
                  "extern \"C\" __global__ void f(float *p) { *p = sum<D>(p) + TILES[1] + "
                  "Tile<3>::n; }",
                  archs[i]) != KG_OK)
            FAIL("%s %s", err.msg, messages.data);
    done();
}

TEST(image_cuda_gives_listed_headers_as_text) {
    const kg_nvrtc *n = need_nvrtc();
    kg_cuda_header_set set;
    if (kg_cuda_headers(&set, &err) != KG_OK) {
        CHECK_HAS(err.msg, "cuda_fp16.h");
        test_skip("NVRTC %d.%d is here without headers", n->major, n->minor);
    }
    bool has_mma = false;
    for (size_t i = 0; i < set.n; i++)
        has_mma = has_mma || strcmp(set.v[i].name, "crt/mma.hpp") == 0;
    if (build("#include <cuda_fp16.h>\n#include <cuda_bf16.h>\n#include <cuda_fp8.h>\n"
              "extern \"C\" __global__ void f(half *x, __nv_bfloat16 *y, __nv_fp8_e4m3 *z) {\n"
              "  *x = __hadd(*x, *x); *y = __float2bfloat16((float)*x); *z = __nv_fp8_e4m3(*x); }",
              90) != KG_OK)
        FAIL("%s %s", err.msg, messages.data);
    if (has_mma &&
        build("#include <mma.h>\nextern \"C\" __global__ void f(float *y) {\n"
              "  nvcuda::wmma::fragment<nvcuda::wmma::accumulator, 16, 16, 16, float> c;\n"
              "  nvcuda::wmma::fill_fragment(c, 0.0f); *y = c.x[0]; }",
              80) != KG_OK)
        FAIL("%s %s", err.msg, messages.data);
    CHECK_INT(build("#include <stdio.h>\nextern \"C\" __global__ void f() {}", 80),
              KG_EUNSUPPORTED);
    done();
}

TEST(image_cuda_is_cached_by_content_and_built_again_when_damaged) {
    need_nvrtc();
    CHECK(!kg_image_cuda_cached(KERNEL, strlen(KERNEL), 80, 0));
    CHECK_OK(build(KERNEL, 80), err);
    char first[512];
    snprintf(first, sizeof(first), "%s", path);
    CHECK(kg_is_file(first));
    CHECK(kg_image_cuda_cached(KERNEL, strlen(KERNEL), 80, 0));
    CHECK(!kg_image_cuda_cached(KERNEL, strlen(KERNEL), 90, 0));
    CHECK(!kg_image_cuda_cached(KERNEL, strlen(KERNEL), 80, KG_FLAG_FAST_MATH));
    FILE *f = fopen(first, "r+b");
    fseek(f, 100, SEEK_SET);
    fputc('X', f);
    fclose(f);
    CHECK(!kg_image_cuda_cached(KERNEL, strlen(KERNEL), 80, 0));
    CHECK_OK(build(KERNEL, 80), err);
    CHECK_STR(path, first);
    CHECK(kg_image_cuda_cached(KERNEL, strlen(KERNEL), 80, 0));
    done();
}

/* root writes anywhere, so the cache is a file in place of a folder. */
TEST(image_cuda_is_built_without_a_cache_that_can_be_written) {
    need_nvrtc();
    CHECK_OK(kg_write_atomic(test_path("cache"), "x", 1, &err), err);
    CHECK_OK(build(KERNEL, 80), err);
    CHECK_STR(path, "");
    CHECK(image.len > 0);
    done();
}

/* A process that has no NVRTC takes what another one built. */
TEST(image_cuda_is_served_from_the_cache_without_nvrtc) {
    pid_t child = fork();
    if (child == 0) {
        need_nvrtc();
        CHECK_OK(build(KERNEL, 80), err);
        done();
        exit(0);
    }
    int status = 0;
    CHECK_INT(waitpid(child, &status, 0), child);
    if (WIFEXITED(status) && WEXITSTATUS(status) == 77)
        test_skip("no NVRTC");
    CHECK_INT(status, 0);
    setenv("KGEN_NVRTC", test_path("nowhere"), 1);
    CHECK_OK(build(KERNEL, 80), err);
    CHECK_HAS(path, ".cubin");
    CHECK(image.len > 0);
    CHECK_INT(build(KERNEL "// another\n", 80), KG_EENV);
    done();
}

TEST(nvrtc_that_is_asked_for_and_absent_is_named) {
    const kg_nvrtc *n;
    setenv("KGEN_NVRTC", test_path("nowhere"), 1);
    CHECK_ERR(kg_nvrtc_find(&n, &err), err, KG_EENV, "KGEN_NVRTC is '");
    CHECK_INT(build(KERNEL, 80), KG_EENV);
    CHECK_HAS(err.msg, "KGEN_NVRTC");
    done();
}

/* The stand-in's driver is older than any NVRTC 13, and newer than none of 12. */
TEST(nvrtc_newer_than_the_driver_is_not_taken) {
    const kg_nvrtc *n;
    pid_t child = fork();
    if (child == 0)
        exit(need_nvrtc()->major > 12 ? 0 : 77);
    int status = 0;
    CHECK_INT(waitpid(child, &status, 0), child);
    if (status != 0)
        test_skip("no NVRTC of CUDA 13");
    use_fake("driver=12040");
    kg_nvrtc_search(getenv("KGEN_TEST_NVRTC"));
    CHECK_ERR(kg_nvrtc_find(&n, &err), err, KG_EENV, "is NVRTC 13.");
    CHECK_HAS(err.msg, "the driver is of CUDA 12.4");
    CHECK_HAS(err.msg, "nvidia-cuda-nvrtc-cu12");
}

/* As pip lays packages out below site-packages. */
TEST(nvrtc_is_found_beside_torchs_packages) {
    const char *given = getenv("KGEN_TEST_NVRTC");
    char packages[600];
    const kg_nvrtc *n;
    snprintf(packages, sizeof(packages), "%s/nvidia", given != NULL ? given : "");
    if (given == NULL || !kg_is_dir(packages))
        test_skip("KGEN_TEST_NVRTC names no site-packages with NVRTC");
    unsetenv("KGEN_NVRTC");
    CHECK_OK(kg_mkdirs(test_path("site"), &err), err);
    CHECK_INT(symlink(packages, test_path("site/nvidia")), 0);
    kg_nvrtc_search(test_path("nothing/here"));
    kg_nvrtc_search(test_path("site"));
    CHECK_OK(kg_nvrtc_find(&n, &err), err);
    CHECK_HAS(n->path, "/site/nvidia/");
    CHECK(n->major >= 12);
    CHECK_OK(kg_nvrtc_supports(90, &err), err);
}

TEST(image_cuda_archs_are_checked) {
    CHECK_INT(build(KERNEL, 75), KG_EINVAL);
    CHECK_HAS(err.msg, "need sm_80 or newer");
    need_nvrtc();
    CHECK_INT(build(KERNEL, 999), KG_EENV);
    CHECK_HAS(err.msg, "does not compile for sm_999");
    done();
}

TEST(cubin_that_is_none_is_refused) {
    kg_buf complaint;
    kg_cubin_function f;
    unsigned char bytes[200] = "\177ELF";
    kg_buf_init(&complaint, 0);
    CHECK_INT(kg_cubin_inspect(bytes, sizeof(bytes), NULL, &complaint, &err), KG_EUNSUPPORTED);
    CHECK_INT(kg_cubin_inspect(bytes, 3, NULL, &complaint, &err), KG_EUNSUPPORTED);
    CHECK_INT(kg_cubin_function_get(bytes, sizeof(bytes), "f", &f, &err), KG_EFORMAT);
    CHECK_INT(kg_cubin_arch(bytes, sizeof(bytes)), 0);
    kg_buf_free(&complaint);
}

/* Every byte of a real cubin's tables cut or changed: refused or read, never past the end. */
TEST(cubin_survives_damage) {
    need_nvrtc();
    kg_cubin_function f;
    CHECK_OK(build(KERNEL, 90), err);
    for (size_t cut = 0; cut < image.len; cut += 37) {
        kg_buf complaint;
        kg_buf_init(&complaint, 0);
        char *copy = malloc(cut > 0 ? cut : 1);
        memcpy(copy, image.data, cut);
        (void)kg_cubin_inspect(copy, cut, NULL, &complaint, &err);
        (void)kg_cubin_function_get(copy, cut, "scale", &f, &err);
        free(copy);
        kg_buf_free(&complaint);
    }
    for (size_t at = 0; at < image.len; at += 3) {
        kg_buf complaint;
        kg_buf_init(&complaint, 0);
        image.data[at] = (char)~image.data[at];
        (void)kg_cubin_inspect(image.data, image.len, NULL, &complaint, &err);
        (void)kg_cubin_function_get(image.data, image.len, "scale", &f, &err);
        image.data[at] = (char)~image.data[at];
        kg_buf_free(&complaint);
    }
    done();
}
