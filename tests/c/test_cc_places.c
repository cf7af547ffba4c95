/* What the compiler may open: its own files wherever they lie, and none of others. */
#include "test.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/fs.h"
#include "sys/cc.h"
#include "sys/sandbox.h"

static const char PLAIN[] =
    "#include <math.h>\n#include <string.h>\n__attribute__((visibility(\"default\"))) void "
    "kg_entry_0(long b, long e, void *const *a) {\n"
    "  float *y = a[0]; for (long i = b; i < e; i++) y[i] = expf(y[i]);\n}\n";

static int compiled(const char *source, kg_buf *object, kg_buf *messages, kg_error *err) {
    kg_buf_init(object, 0);
    kg_buf_init(messages, 0);
    return kg_cc_object(source, strlen(source), "t.c", NULL, "x86-64-v2", 0, object, messages, err);
}

/* With this compiler a program is made that links. */
static void makes_an_image(const char *cc) {
    kg_error err = {0};
    kg_buf object, messages, image;
    setenv("KGEN_CC", cc, 1);
    CHECK_OK(compiled(PLAIN, &object, &messages, &err), err);
    kg_buf_init(&image, 0);
    CHECK_OK(kg_cc_link(object.data, object.len, &image, &err), err);
    CHECK(image.len > 1000);
    kg_buf_free(&image);
    kg_buf_free(&object);
    kg_buf_free(&messages);
}

static void put(const char *dir, const char *name, const char *text, mode_t mode, char *out,
                size_t size) {
    snprintf(out, size, "%s/%s", dir, name);
    FILE *f = fopen(out, "w");
    CHECK(f != NULL && fputs(text, f) >= 0 && fclose(f) == 0 && chmod(out, mode) == 0);
}

/* The messages about two files, one of which is there, under one name. */
static void same_answer(const char *format) {
    static const char *const names[] = {"here", "gone"};
    const char *dir = test_dir();
    char path[512], said[2][2048];
    put(dir, names[0], "#error it was read\n", 0644, path, sizeof path);
    for (int i = 0; i < 2; i++) {
        char source[1024], name[512];
        kg_error err = {0};
        kg_buf object, messages;
        snprintf(name, sizeof name, "%s/%s", dir, names[i]);
        snprintf(source, sizeof source, format, name);
        CHECK_ERR(compiled(source, &object, &messages, &err), err, KG_ECOMPILE, "compile");
        CHECK(messages.data && messages.len < sizeof said[i]);
        snprintf(said[i], sizeof said[i], "%s", messages.data);
        CHECK(!strstr(said[i], "it was read"));
        for (char *at; (at = strstr(said[i], names[i])) != NULL;)
            memcpy(at, "file", 4);
        kg_buf_free(&object);
        kg_buf_free(&messages);
    }
    CHECK_STR(said[0], said[1]);
}

static bool has_landlock(void) {
    kg_protections has;
    kg_sandbox_has(&has);
    return has.landlock > 0;
}

TEST(compiler_reads_no_file_of_others) {
    if (!has_landlock())
        test_skip("this kernel has no landlock");
    same_answer("#include \"%s\"\n");
    same_answer("#define P(x) _Pragma(#x)\n#define Q(x) P(x)\n#define C(a, b) a##b\n"
                "#define D(a, b) C(a, b)\nQ(GCC D(depend, ency) \"%s\")\nint x;\n");
    same_answer("__asm__(\".incbin \\\"%s\\\"\");\n");
    same_answer("__asm__(\".include \\\"%s\\\"\");\n");
}

TEST(compiler_behind_a_link) {
    const char *dir = test_dir();
    char real[512], link[512];
    const char *asked = getenv("CC");
    snprintf(real, sizeof real, "%s", asked && asked[0] == '/' ? asked : "/usr/bin/cc");
    snprintf(link, sizeof link, "%s/strange", dir);
    CHECK(symlink(real, link) == 0);
    makes_an_image(link);
}

TEST(compiler_is_a_script_in_a_strange_folder) {
    const char *dir = test_dir();
    char bin[300], path[512];
    snprintf(bin, sizeof bin, "%s/my tools", dir);
    CHECK(mkdir(bin, 0755) == 0);
    put(bin, "wrapped", "#!/bin/sh\nexec cc \"$@\"\n", 0755, path, sizeof path);
    setenv("HOME", dir, 1);
    makes_an_image(path);
}

TEST(compiler_in_the_home_folder_itself) {
    const char *dir = test_dir();
    char path[512];
    put(dir, "wrapped", "#!/bin/sh\nexec cc \"$@\"\n", 0755, path, sizeof path);
    setenv("HOME", dir, 1);
    makes_an_image(path);
    if (has_landlock())
        same_answer("#include \"%s\"\n");
}

/* It reads what it does not say: it works all the same, without its lock. */
TEST(compiler_that_needs_more_than_it_says) {
    const char *dir = test_dir();
    char bin[300], path[512], text[600], flags[400];
    snprintf(bin, sizeof bin, "%s/bin", dir);
    CHECK(mkdir(bin, 0755) == 0);
    put(dir, "flags", "-O2\n", 0644, flags, sizeof flags);
    setenv("HOME", dir, 1);
    snprintf(text, sizeof text, "#!/bin/sh\nset -e\nread flag < %s\nexec cc $flag \"$@\"\n", flags);
    put(bin, "wrapped", text, 0755, path, sizeof path);
    makes_an_image(path);
}

TEST(compiler_behind_ccache) {
    const char *dir = test_dir();
    char link[512];
    if (access("/usr/bin/ccache", X_OK) != 0)
        test_skip("there is no ccache");
    snprintf(link, sizeof link, "%s/gcc", dir);
    CHECK(symlink("/usr/bin/ccache", link) == 0);
    setenv("HOME", dir, 1);
    makes_an_image(link);
}
