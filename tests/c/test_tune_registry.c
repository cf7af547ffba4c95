/* The registry on disk: promotion, versions, rollback, gc, and the index that is derived from it.
 */
#include <dirent.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/fs.h"
#include "base/log.h"
#include "registry_util.h"

static char warnings[4096];

static void collect(void *ctx, kg_log_level level, const char *message) {
    (void)ctx;
    if (level >= KG_LOG_WARNING)
        strncat(warnings, message, sizeof warnings - strlen(warnings) - 1);
}

TEST(registry_promotes_and_serves) {
    char a[65], b[65];
    CHECK_INT(promote(1, 8, a), 1);
    check_served(8, a);
    check_served(9, "");
    CHECK_INT(promote(2, 8, b), 2);
    check_served(8, b);
    CHECK_INT(promote(1, 9, a), 1); /* there already: keeps its number */
    check_served(9, a);
    check_served(8, b);
}

TEST(registry_rolls_back) {
    char a[65], b[65];
    size_t moved = 0;
    kg_registry *r = NULL;
    kg_error err = {0};
    promote(1, 8, a);
    promote(2, 8, b);
    CHECK_INT(kg_registry_open(test_path("generated"), false, &r, &err), KG_OK);
    if (kg_registry_rollback(r, "twice", "v1", &moved, &err))
        FAIL("%s", err.msg);
    CHECK_INT(moved, 1);
    check_served(8, a);
    if (kg_registry_rollback(r, "twice", "v1", &moved, &err))
        FAIL("%s", err.msg);
    CHECK_INT(moved, 0);
    if (kg_registry_rollback(r, "twice", b, &moved, &err))
        FAIL("%s", err.msg);
    CHECK_INT(moved, 1);
    check_served(8, b);
    CHECK_INT(kg_registry_rollback(r, "twice", "v7", &moved, &err), KG_ENOTFOUND);
    CHECK_HAS(err.msg, "twice/v7");
    kg_registry_close(r);
}

TEST(registry_finds_by_number_and_id) {
    char a[65], name[80];
    const kg_kernel *k = NULL;
    kg_registry *r = NULL;
    kg_error err = {0};
    promote(1, 8, a);
    CHECK_INT(kg_registry_open(test_path("generated"), false, &r, &err), KG_OK);
    CHECK_INT(kg_registry_find(r, "twice/v1", &k, &err), KG_OK);
    CHECK_STR(k->id, a);
    CHECK_INT(k->pins, 1);
    snprintf(name, sizeof name, "twice/%.6s", a);
    CHECK_INT(kg_registry_find(r, name, &k, &err), KG_OK);
    CHECK_INT(kg_registry_find(r, "thrice/v1", &k, &err), KG_ENOTFOUND);
    CHECK_HAS(err.msg, "no kernel of that Op");
    CHECK_INT(kg_registry_find(r, "twice", &k, &err), KG_EINVAL);
    kg_registry_close(r);
}

/* Two branches that both promoted a v1, merged. */
TEST(registry_names_both_after_a_merge) {
    char a[65], b[65], from[512], to[512];
    int version = 0;
    const kg_kernel *k = NULL;
    kg_registry *r = NULL;
    kg_error err = {0};
    promote(1, 8, a);
    CHECK_INT(promote_as(test_path("other"), 2, 9, "pass", &version, b, &err), KG_OK);
    CHECK_INT(version, 1);
    snprintf(from, sizeof from, "%s/twice/x86-64-v3/%s", test_path("other"), b);
    snprintf(to, sizeof to, "%s/twice/x86-64-v3/%s", test_path("generated"), b);
    CHECK_INT(rename(from, to), 0);
    CHECK_INT(kg_registry_open(test_path("generated"), false, &r, &err), KG_OK);
    CHECK_INT(kg_registry_find(r, "twice/v1", &k, &err), KG_EAMBIGUOUS);
    CHECK_HAS(err.msg, "v1-");
    snprintf(from, sizeof from, "twice/v1-%.4s", b);
    CHECK_INT(kg_registry_find(r, from, &k, &err), KG_OK);
    CHECK_STR(k->id, b);
    CHECK(k->ambiguous);
    kg_registry_close(r);
}

TEST(registry_refuses_what_did_not_pass) {
    char a[65];
    int version = 0;
    kg_error err = {0};
    CHECK_INT(promote_as(test_path("generated"), 1, 8, "wrong_values", &version, a, &err),
              KG_EINVAL);
    CHECK_HAS(err.msg, "wrong_values");
}

static void refused(const char *op, const char *arch, const char *file, const char *said) {
    static const char id[] = "3fa2b1c05d6e7f8091a2b3c4d5e6f708192a3b4c5d6e7f8091a2b3c4d5e6f708";
    char record[1024];
    int version = 0;
    kg_registry *r = NULL;
    kg_error err = {0};
    snprintf(record, sizeof record,
             "{\"format\":1,\"id\":\"%s\",\"op\":\"%s\",\"arch\":\"%s\",\"source\":\"%s\","
             "\"tunables\":{},\"verdict\":\"pass\"}",
             id, op, arch, file);
    CHECK_OK(kg_registry_open(test_path("generated"), true, &r, &err), err);
    CHECK_ERR(
        kg_registry_promote(r, registry_op_text, NULL, "", 0, record, NULL, 0, &version, &err), err,
        KG_EFORMAT, said);
    kg_registry_close(r);
    char **names = NULL;
    size_t n = 0;
    CHECK_OK(kg_list_dir(test_path("generated"), &names, &n, &err), err);
    CHECK_UINT(n, 0);
    kg_free_names(names, n);
}

/* An empty op would be the registry itself, and an arch or a source of kgen's own name takes its
 * place. */
TEST(registry_refuses_names_that_are_none) {
    refused("", "x86-64-v3", "kernel.c", "op is \"\"; a plain name of letters");
    refused("../twice", "x86-64-v3", "kernel.c", "op is \"../twice\"");
    refused(".twice", "x86-64-v3", "kernel.c", "op is \".twice\"");
    refused("twice", "", "kernel.c", "arch is \"\"");
    refused("twice", "x86\\n64", "kernel.c", "arch is \"x86");
    refused("twice", "task", "kernel.c", "arch is task, which is a name of kgen's own");
    refused("twice", "op.json", "kernel.c", "arch is op.json, which");
    refused("twice", "x86-64-v3", "", "source is \"\"");
    refused("twice", "x86-64-v3", "a/kernel.c", "source is \"a/kernel.c\"");
    refused("twice", "x86-64-v3", "record.json", "source is record.json, which");
}

TEST(registry_gc_keeps_what_is_pinned_or_replaced) {
    char a[65], b[65], c[65];
    kg_registry *r = NULL;
    kg_buf report;
    kg_error err = {0};
    kg_buf_init(&report, 0);
    promote(1, 8, a);
    promote(2, 8, b);
    promote(3, 8, c);
    CHECK_INT(kg_registry_open(test_path("generated"), false, &r, &err), KG_OK);
    if (kg_registry_gc(r, true, &report, &err))
        FAIL("%s", err.msg);
    CHECK_HAS(report.data, a);
    CHECK(!strstr(report.data, b) && !strstr(report.data, c));
    kg_buf_clear(&report);
    if (kg_registry_gc(r, false, &report, &err))
        FAIL("%s", err.msg);
    const kg_kernel *list;
    CHECK_INT(kg_registry_kernels(r, &list), 2);
    check_served(8, c);
    kg_buf_free(&report);
    kg_registry_close(r);
}

static void overwrite(const char *path, const char *text) {
    FILE *f = fopen(path, "w");
    CHECK(f != NULL);
    fputs(text, f);
    fclose(f);
}

TEST(index_leaves_out_what_was_tampered_with) {
    char a[65], b[65], path[512];
    promote(1, 8, a);
    promote(2, 9, b);
    kg_log_set_sink(collect, NULL);
    snprintf(path, sizeof path, "%s/twice/x86-64-v3/%s/kernel.c", test_path("generated"), a);
    char *other = source_of(77);
    overwrite(path, other);
    free(other);
    check_served(8, "");
    check_served(9, b);
    CHECK_HAS(warnings, "do not give the id");
    CHECK_HAS(warnings, "is not there");
    kg_log_set_sink(NULL, NULL);
}

/* The Record of what serves size 8 has `from` changed to `to`; it serves no more, and size 9 stays.
 */
static void record_that_lies(const char *from, const char *to, const char *said) {
    char a[65], b[65], path[512];
    promote(1, 8, a);
    promote(2, 9, b);
    kg_log_set_sink(collect, NULL);
    snprintf(path, sizeof path, "%s/twice/x86-64-v3/%s/record.json", test_path("generated"), a);
    kg_buf text;
    kg_error err = {0};
    kg_buf_init(&text, 0);
    CHECK_OK(kg_read_file(path, 1 << 20, &text, &err), err);
    char *at = strstr(text.data, from);
    CHECK(at != NULL && strlen(from) == strlen(to));
    memcpy(at, to, strlen(to));
    overwrite(path, text.data);
    check_served(8, "");
    check_served(9, b);
    CHECK_HAS(warnings, said);
    CHECK_HAS(warnings, a);
    kg_buf_free(&text);
    kg_log_set_sink(NULL, NULL);
}

TEST(index_leaves_out_a_record_of_another_op) {
    record_that_lies("\"op\": \"twice\"", "\"op\": \"thric\"",
                     "op of its Record is thric, not twice");
}
TEST(index_leaves_out_a_record_of_another_arch) {
    record_that_lies("\"arch\": \"x86-64-v3\"", "\"arch\": \"x86-64-v2\"", "arch of its Record");
}
TEST(index_leaves_out_a_record_of_another_id) {
    record_that_lies("\"id\": \"", "\"ID\": \"", "id is missing");
}
TEST(index_leaves_out_a_record_that_did_not_pass) {
    record_that_lies("\"verdict\": \"pass\"", "\"verdict\": \"none\"",
                     "verdict of its Record is none");
}
TEST(index_leaves_out_a_record_of_other_tunables) {
    record_that_lies("\"A\": 1", "\"A\": 2", "do not give the id");
}
TEST(index_leaves_out_a_record_of_no_version) {
    record_that_lies("\"version\": 1", "\"version\": 0", "version of its Record is 0");
}
TEST(index_leaves_out_a_record_of_a_newer_format) {
    record_that_lies("\"format\": 1", "\"format\": 2", "format 2 is newer than this kgen");
}

/* A pin under the name of another key would serve calls that it was not judged for. */
TEST(index_leaves_out_a_pin_of_another_name) {
    char a[65], b[65], dir[512], **names = NULL;
    size_t n = 0;
    kg_error err = {0};
    promote(1, 8, a);
    promote(2, 9, b);
    kg_log_set_sink(collect, NULL);
    snprintf(dir, sizeof dir, "%s/twice/x86-64-v3/pins", test_path("generated"));
    CHECK_OK(kg_list_dir(dir, &names, &n, &err), err);
    CHECK_UINT(n, 2);
    char *first = kg_path_join(dir, names[0]), *second = kg_path_join(dir, names[1]);
    CHECK_INT(rename(first, second), 0);
    check_served(8, "");
    check_served(9, "");
    CHECK_HAS(warnings, "its key does not give its name");
    free(first);
    free(second);
    kg_free_names(names, n);
    kg_log_set_sink(NULL, NULL);
}

TEST(index_leaves_out_torn_files) {
    char a[65], b[65], path[512];
    promote(1, 8, a);
    promote(2, 9, b);
    kg_log_set_sink(collect, NULL);
    snprintf(path, sizeof path, "%s/twice/x86-64-v3/%s/record.json", test_path("generated"), b);
    overwrite(path, "{\"format\":1,");
    check_served(9, "");
    check_served(8, a);
    CHECK_HAS(warnings, "record.json");
    kg_log_set_sink(NULL, NULL);
}

TEST(registry_promotion_needs_a_folder_it_can_write) {
    char a[65];
    int version = 0;
    kg_error err = {0};
    bool root = geteuid() == 0; /* who writes everywhere: as nobody then */
    CHECK_INT(mkdir(test_path("generated"), 0555), 0);
    CHECK_INT(chmod(test_dir(), 0755), 0);
    CHECK(!root || seteuid(65534) == 0);
    int rc = promote_as(test_path("generated"), 1, 8, "pass", &version, a, &err);
    CHECK(!root || (seteuid(0) == 0 && prctl(PR_SET_DUMPABLE, 1) == 0)); /* for the leak check */
    CHECK_INT(rc, KG_EIO);
    CHECK_HAS(err.msg, "generated");
    CHECK_HAS(err.msg, "Permission denied");
}

/* A folder's files and folders with their sizes, one a line. */
static void listing(const char *path, kg_buf *out) {
    char **names = NULL;
    size_t n = 0;
    struct stat st;
    kg_error err = {0};
    CHECK_OK(kg_list_dir(path, &names, &n, &err), err);
    for (size_t i = 0; i < n; i++) {
        char *child = kg_path_join(path, names[i]);
        CHECK_INT(stat(child, &st), 0);
        kg_buf_printf(out, "%s %lld\n", child, S_ISDIR(st.st_mode) ? -1 : (long long)st.st_size);
        if (S_ISDIR(st.st_mode))
            listing(child, out);
        free(child);
    }
    kg_free_names(names, n);
}

static size_t count_all(const char *path) {
    size_t n = 0;
    DIR *d = opendir(path);
    CHECK(d != NULL);
    for (struct dirent *e; (e = readdir(d));)
        n += strcmp(e->d_name, ".") != 0 && strcmp(e->d_name, "..") != 0;
    closedir(d);
    return n;
}

/* The promotion fails at whatever it writes when files cannot grow beyond `most` bytes, and the
 * registry is as it was, with nothing half-written beside it. */
static void promotion_without_room(rlim_t most) {
    char a[65], b[65], ops[512];
    int version = 0;
    kg_error err = {0};
    kg_buf before, after;
    kg_buf_init(&before, 0);
    kg_buf_init(&after, 0);
    promote(1, 8, a);
    listing(test_path("generated"), &before);
    struct rlimit room = {.rlim_cur = most, .rlim_max = RLIM_INFINITY};
    signal(SIGXFSZ, SIG_IGN);
    CHECK_INT(setrlimit(RLIMIT_FSIZE, &room), 0);
    int rc = promote_as(test_path("generated"), 2, 8, "pass", &version, b, &err);
    room.rlim_cur = RLIM_INFINITY;
    CHECK_INT(setrlimit(RLIMIT_FSIZE, &room), 0);
    CHECK_INT(rc, KG_EIO);
    CHECK_HAS(err.msg, "File too large");
    CHECK_HAS(err.msg, "generated");
    listing(test_path("generated"), &after);
    CHECK_STR(after.data, before.data);
    snprintf(ops, sizeof ops, "%s/twice/x86-64-v3", test_path("generated"));
    CHECK_UINT(count_all(ops), 2); /* the Kernel and the pins, and no temporary */
    check_served(8, a);
    promote(2, 8, b);
    check_served(8, b);
    kg_buf_free(&before);
    kg_buf_free(&after);
}

TEST(registry_promotion_without_room_for_the_source) {
    promotion_without_room(16);
}
TEST(registry_promotion_without_room_for_the_record) {
    char *source = source_of(2);
    rlim_t most = strlen(source);
    free(source);
    promotion_without_room(most);
}

TEST(registry_contract_must_not_change) {
    char a[65], path[512];
    int version = 0;
    kg_error err = {0};
    promote(1, 8, a);
    snprintf(path, sizeof path, "%s/twice/op.json", test_path("generated"));
    overwrite(path, "{\"format\":1,\"op\":\"twice\"}");
    CHECK_INT(promote_as(test_path("generated"), 2, 8, "pass", &version, a, &err), KG_EEXIST);
    CHECK_HAS(err.msg, "op.json");
}

enum { MANY = 16 };

/* An Op of its own; every third is torn. */
static void write_op(const char *root, int i) {
    kg_buf text, dir;
    kg_error err = {0};
    kg_buf_init(&text, 0);
    kg_buf_init(&dir, 0);
    kg_buf_printf(&dir, "%s/op%02d", root, i);
    CHECK_INT(kg_mkdirs(dir.data, &err), KG_OK);
    kg_buf_puts(&dir, "/op.json");
    for (const char *at = registry_op_text; *at;) {
        const char *name = strstr(at, "twice");
        int n = (int)(name ? name - at : (ptrdiff_t)strlen(at));
        kg_buf_printf(&text, "%.*s", n, at);
        if (name)
            kg_buf_printf(&text, "op%02d", i);
        at += n + (name ? 5 : 0);
    }
    size_t size = i % 3 == 0 ? text.len / 2 : text.len;
    CHECK_INT(kg_write_atomic(dir.data, text.data, size, &err), KG_OK);
    kg_buf_free(&text);
    kg_buf_free(&dir);
}

static void note(void *ctx, const char *message) {
    kg_buf_printf(ctx, "%s\n", message);
}

TEST(index_of_many_ops_is_whole_and_tells_in_order) {
    char root[512], name[16];
    kg_error err = {0};
    kg_index *x = NULL;
    kg_buf told;
    kg_buf_init(&told, 0);
    snprintf(root, sizeof root, "%s", test_path("generated"));
    for (int i = 0; i < MANY; i++)
        write_op(root, i);
    const char *path = test_path("index");
    if (kg_index_build_told(root, path, note, &told, &err))
        FAIL("%s", err.msg);
    if (kg_index_open(path, root, kg_registry_fingerprint(root), &x, &err))
        FAIL("%s", err.msg);
    const char *at = told.data;
    for (int i = 0; i < MANY; i++) {
        snprintf(name, sizeof name, "op%02d", i);
        CHECK_INT(kg_index_find(x, name) >= 0, i % 3 != 0);
        if (i % 3 == 0) {
            at = at ? strstr(at, name) : NULL;
            CHECK(at != NULL); /* after the one before it */
        }
    }
    kg_index_free(x);
    kg_buf_free(&told);
}
