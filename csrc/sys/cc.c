/* The C compiler of the machine, found once and run in an empty folder of its own.
 *
 * Flags are chosen so that a branch-free loop becomes vector code at the architecture's full width,
 * and so that the object holds nothing that the inspection refuses: no stack protector (it reads
 * thread-local storage), no fortified copies of mem*, no start files, no landing pads, no jumps
 * through tables. Refuses to pass a text through a shell, and to look into the caller's CPATH. */
#define _GNU_SOURCE
#include "sys/cc.h"

#include <errno.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/fs.h"
#include "base/log.h"
#include "sys/cc_places.h"
#include "sys/proc.h"

/* As in runtime/plan.h, which lies above this layer. */
enum { FLAG_FAST_MATH = 1, FLAG_NO_CONTRACT = 2 };
enum { MAX_ARGS = 96, MAX_OBJECT = 64 << 20 };

/* What a unit calls the author's text (runtime/plan.h, KG_UNIT_NAME). It lies under this name where
 * the compiler runs, since gcc quotes the lines that it complains of from there; the unit, which
 * has other lines, lies one folder below and has the same name, which gets into the object. */
#define AUTHORS "source.c"
#define UNIT_FOLDER "unit/"

static const kg_limits CC_LIMITS = {.wall_ms = 60 * 1000,
                                    .cpu_s = 60,
                                    .memory = (int64_t)4 << 30,
                                    .file_size = MAX_OBJECT,
                                    .output_bytes = 64 << 10};

/* What the compiler may see of the environment: where it and its parts are. */
typedef struct env_copy {
    char *v[12];
    size_t n;
} env_copy;

static void env_add(env_copy *env, const char *name, const char *value) {
    if (!value || env->n + 1 >= sizeof env->v / sizeof *env->v)
        return;
    size_t size = strlen(name) + strlen(value) + 2;
    char *entry = malloc(size);
    if (!entry)
        return;
    snprintf(entry, size, "%s=%s", name, value);
    env->v[env->n++] = entry;
}

static void env_open(env_copy *env, const char *tmp) {
    static const char *const kept[] = {"HOME", "LD_LIBRARY_PATH", "COMPILER_PATH", "LIBRARY_PATH",
                                       "GCC_EXEC_PREFIX"};
    memset(env, 0, sizeof *env);
    const char *path = getenv("PATH");
    env_add(env, "PATH", path ? path : "/usr/local/bin:/usr/bin:/bin");
    env_add(env, "LC_ALL", "C");
    env_add(env, "TMPDIR", tmp);
    env_add(env, "CCACHE_DISABLE", "1"); /* images are kept already, and its folder is locked */
    for (size_t i = 0; i < sizeof kept / sizeof *kept; i++)
        env_add(env, kept[i], getenv(kept[i]));
}

static void env_close(env_copy *env) {
    for (size_t i = 0; i < env->n; i++)
        free(env->v[i]);
}

/* Finds an executable as a shell would; a name with a slash is taken as it is. */
static bool which(const char *name, char *out, size_t size) {
    if (strchr(name, '/')) {
        int n = snprintf(out, size, "%s", name);
        return n > 0 && (size_t)n < size && access(out, X_OK) == 0;
    }
    const char *path = getenv("PATH");
    if (!path)
        path = "/usr/local/bin:/usr/bin:/bin";
    while (*path) {
        size_t len = strcspn(path, ":");
        int n = snprintf(out, size, "%.*s/%s", (int)len, path, name);
        if (len > 0 && path[0] == '/' && n > 0 && (size_t)n < size && access(out, X_OK) == 0)
            return true;
        path += len + (path[len] == ':');
    }
    return false;
}

static pthread_once_t find_once = PTHREAD_ONCE_INIT;
static kg_cc found;
static int find_status;
static kg_error find_error;

static int probe(const char *path) {
    const char *const argv[] = {path, "--version", NULL};
    const kg_limits limits = {.wall_ms = 20 * 1000, .output_bytes = 4096};
    env_copy env;
    env_open(&env, "/tmp");
    kg_buf out;
    kg_buf_init(&out, 1 << 16);
    kg_exit ex = {0};
    int rc = kg_proc_run(argv, (const char *const *)env.v, NULL, &limits, &out, &ex, NULL);
    env_close(&env);
    if (rc == KG_OK && ex.code == 0 && out.len > 0) {
        size_t line = strcspn(out.data, "\n");
        snprintf(found.path, sizeof found.path, "%s", path);
        snprintf(found.version, sizeof found.version, "%.*s", (int)(line < 120 ? line : 120),
                 out.data);
        bool clang = strstr(out.data, "clang") != NULL;
        snprintf(found.kind, sizeof found.kind, "%s", clang ? "clang" : "gcc");
    } else {
        rc = KG_EENV;
    }
    kg_buf_free(&out);
    return rc;
}

static void find_compiler(void) {
    char path[256];
    const char *asked = getenv("KGEN_CC");
    if (asked && *asked) {
        if (which(asked, path, sizeof path) && probe(path) == KG_OK)
            return;
        find_status =
            kg_fail(&find_error, KG_EENV,
                    "KGEN_CC is '%s', which is no compiler that runs here; unset it or name "
                    "gcc or clang",
                    asked);
        return;
    }
    const char *names[] = {getenv("CC"), "cc", "gcc", "clang"};
    for (size_t i = 0; i < sizeof names / sizeof *names; i++)
        if (names[i] && *names[i] && which(names[i], path, sizeof path) && probe(path) == KG_OK)
            return;
    find_status =
        kg_fail(&find_error, KG_EENV,
                "no C compiler: looked for $KGEN_CC, $CC, cc, gcc and clang in PATH; install "
                "one (Debian package gcc), or fill the cache elsewhere with `kgen build`");
}

int kg_cc_find(const kg_cc **out, kg_error *err) {
    pthread_once(&find_once, find_compiler);
    if (find_status != KG_OK)
        return kg_fail(err, find_status, "%s", find_error.msg);
    *out = &found;
    return KG_OK;
}

const char *kg_cc_flags(const char *arch, unsigned flags, char *out, size_t n) {
    const kg_cc *cc = NULL;
    bool clang = kg_cc_find(&cc, NULL) == KG_OK && strcmp(cc->kind, "clang") == 0;
    const char *march = arch;
    if (strcmp(arch, "x86-64-v1") == 0)
        march = "x86-64";
    else if (strcmp(arch, "aarch64") == 0)
        march = "armv8-a";
    /* gcc keeps to 256 bits on v4 for the sake of clocks of old machines. */
    const char *width = strcmp(arch, "x86-64-v4") == 0 ? " -mprefer-vector-width=512" : "";
    const char *x86 = strncmp(arch, "x86", 3) == 0 ? " -fcf-protection=none" : "";
    snprintf(out, n,
             "-std=gnu17 -O3 -march=%s%s -ffp-contract=%s%s -fno-math-errno -fno-trapping-math "
             "-fopenmp-simd -fno-semantic-interposition -fPIC -fvisibility=hidden "
             "-fno-stack-protector%s -fno-common -U_FORTIFY_SOURCE -D_FORTIFY_SOURCE=0 "
             "-fno-asynchronous-unwind-tables -fno-ident -fno-jump-tables%s",
             march, width, flags & FLAG_NO_CONTRACT ? "off" : "fast",
             flags & FLAG_FAST_MATH ? " -ffast-math" : "", x86,
             clang ? "" : " -fno-stack-clash-protection");
    return out;
}

/* Diagnostics only: they change no code, so they are not part of an image's key. */
static const char *const MESSAGES[] = {"-Wall",
                                       "-Wno-unused",
                                       "-Wno-unknown-pragmas",
                                       "-Werror=implicit-function-declaration",
                                       "-Werror=implicit-int",
                                       "-Werror=int-conversion",
                                       "-Werror=incompatible-pointer-types",
                                       "-Werror=return-type",
                                       "-fno-diagnostics-color"};

typedef struct arg_list {
    const char *v[MAX_ARGS];
    size_t n;
} arg_list;

static void arg(arg_list *a, const char *text) {
    if (a->n + 1 < MAX_ARGS)
        a->v[a->n++] = text;
}

/* Splits text in place. */
static void arg_split(arg_list *a, char *text) {
    while (*text) {
        size_t len = strcspn(text, " ");
        char *next = text + len + (text[len] == ' ');
        text[len] = '\0';
        if (len > 0)
            arg(a, text);
        text = next;
    }
}

static int make_folder(char path[256], kg_error *err) {
    const char *tmp = getenv("TMPDIR");
    int n = snprintf(path, 256, "%s/kgen-cc-XXXXXX", tmp && tmp[0] == '/' ? tmp : "/tmp");
    if (n < 0 || n >= 256)
        return kg_fail(err, KG_EOVERFLOW, "TMPDIR is too long");
    if (!mkdtemp(path))
        return kg_fail(err, KG_EIO, "mkdtemp %s: %s", path, strerror(errno));
    return KG_OK;
}

/* mkstemp-like plain write: the folder is ours alone and does not outlive the call. */
static int put_file(const char *dir, const char *file, const void *bytes, size_t n, kg_error *err) {
    char path[320];
    snprintf(path, sizeof path, "%s/%s", dir, file);
    FILE *f = fopen(path, "wb");
    if (!f)
        return kg_fail(err, KG_EIO, "open %s: %s", path, strerror(errno));
    bool ok = fwrite(bytes, 1, n, f) == n;
    ok = fclose(f) == 0 && ok;
    return ok ? KG_OK : kg_fail(err, KG_EIO, "write %s: %s", path, strerror(errno));
}

static int take_file(const char *dir, const char *file, kg_buf *out, kg_error *err) {
    char path[320];
    snprintf(path, sizeof path, "%s/%s", dir, file);
    return kg_read_file(path, MAX_OBJECT, out, err);
}

/* Whether a file that the compiler may not open is there is nobody's concern. */
static void blur(char *text) {
    static const char *const said[] = {"Permission denied", "No such file or directory",
                                       "Is a directory", "Not a directory"};
    static const char instead[] = "not to be read";
    for (size_t i = 0; text && i < sizeof said / sizeof *said; i++)
        for (char *at = text; (at = strstr(at, said[i])) != NULL;) {
            size_t old = strlen(said[i]);
            memcpy(at, instead, sizeof instead - 1);
            at += sizeof instead - 1;
            memmove(at, at + old - (sizeof instead - 1),
                    strlen(at + old - (sizeof instead - 1)) + 1);
        }
}

/* The source is called source.c; people know it under its own name. */
static void add_messages(kg_buf *to, const kg_buf *from, const char *name) {
    blur(from->data);
    const char *at = from->data, *hit;
    while (at && (hit = strstr(at, AUTHORS ":")) != NULL) {
        size_t n = (size_t)(hit - at), folder = strlen(UNIT_FOLDER);
        bool whole = n >= folder && strncmp(hit - folder, UNIT_FOLDER, folder) == 0;
        kg_buf_add(to, at, whole ? n - folder : n);
        kg_buf_printf(to, "%s:", name);
        at = hit + strlen(AUTHORS ":");
    }
    if (at)
        kg_buf_puts(to, at);
}

/* What a run may open beside the compiler's own places. */
typedef struct work {
    const char *dir, *headers; /* headers: may be NULL */
} work;

/* Runs the compiler once in the folder of its work; locked: it opens its own places alone. */
static int run_once(const char *const argv[], const work *w, bool locked, kg_buf *out, kg_exit *ex,
                    kg_error *err) {
    env_copy env;
    int ruleset = -1, rc = KG_OK;
    kg_limits limits = CC_LIMITS;
    limits.ruleset = &ruleset;
    env_open(&env, w->dir);
    if (locked)
        rc = kg_cc_ruleset(found.path, (const char *const *)env.v, w->dir, w->headers, &ruleset,
                           err);
    if (rc == KG_OK)
        rc = kg_proc_run(argv, (const char *const *)env.v, w->dir, &limits, out, ex, err);
    if (ruleset >= 0)
        close(ruleset);
    env_close(&env);
    return rc;
}

static bool went_well(const kg_exit *ex) {
    return ex->code == 0 && !ex->signal && !ex->timed_out;
}

/* A program of our own, to an image. */
static bool builds_plain(bool locked) {
    static const char text[] = "#include <math.h>\n#include <stdint.h>\n"
                               "float kg_entry_0(float x) { return expf(x); }\n";
    const char *const argv[] = {found.path, "-shared", "-fPIC", "-nostdlib", "-o", "plain.so",
                                "plain.c",  "-lgcc",   "-lm",   "-lc",       NULL};
    char dir[256];
    kg_buf out;
    kg_exit ex = {.code = -1};
    if (make_folder(dir, NULL) != KG_OK)
        return false;
    const work w = {.dir = dir};
    kg_buf_init(&out, 1 << 20);
    bool ok = put_file(dir, "plain.c", text, sizeof text - 1, NULL) == KG_OK &&
              run_once(argv, &w, locked, &out, &ex, NULL) == KG_OK && went_well(&ex);
    kg_buf_free(&out);
    kg_remove_tree(dir, NULL);
    return ok;
}

static pthread_once_t suits_once = PTHREAD_ONCE_INIT;
static atomic_bool unlocked;

/* A compiler whose parts lie where it does not say so works without its lock, and that is said. */
static void see_whether_lock_suits(void) {
    if (builds_plain(true) || !builds_plain(false))
        return;
    atomic_store(&unlocked, true);
    kg_log_once(KG_LOG_WARNING,
                "the compiler %s does not work when it may open its own files alone, so it opens "
                "any; name another in KGEN_CC",
                found.path);
}

/* Locked while that suits the compiler, of which only a failure makes one doubt. */
static int run_locked(const char *const argv[], const work *w, kg_buf *out, kg_exit *ex,
                      kg_error *err) {
    kg_error why = {0};
    int rc = KG_OK;
    if (!atomic_load(&unlocked)) {
        rc = run_once(argv, w, true, out, ex, &why);
        if (rc == KG_EINTR || (rc == KG_OK && (went_well(ex) || ex->timed_out)))
            return rc == KG_OK ? rc : kg_fail(err, rc, "%s", why.msg);
        pthread_once(&suits_once, see_whether_lock_suits);
        if (!atomic_load(&unlocked))
            return rc == KG_OK ? rc : kg_fail(err, rc, "%s", why.msg);
        kg_buf_clear(out);
    }
    return run_once(argv, w, false, out, ex, err);
}

/* Runs the compiler in dir. KG_ECOMPILE with its text in messages when it does not succeed. */
static int run_compiler(const char *const argv[], const work *w, const char *name, kg_buf *messages,
                        kg_error *err) {
    kg_buf out;
    kg_buf_init(&out, 1 << 20);
    kg_exit ex = {0};
    int rc = run_locked(argv, w, &out, &ex, err);
    if (rc == KG_OK && !went_well(&ex)) {
        add_messages(messages, &out, name);
        if (out.data && strstr(out.data, "_Float16 is not supported"))
            kg_buf_printf(messages,
                          "%s: this compiler has no _Float16 (clang has it from 15 on); name "
                          "another in KGEN_CC\n",
                          name);
        if (ex.timed_out || ex.signal == 24 /* SIGXCPU */)
            kg_buf_printf(messages, "%s: the compiler was stopped after %d s\n", name,
                          (int)(CC_LIMITS.wall_ms / 1000));
        else if (ex.signal)
            kg_buf_printf(messages, "%s: the compiler died of signal %d\n", name, ex.signal);
        rc = kg_fail(err, KG_ECOMPILE, "%s does not compile", name);
    }
    kg_buf_free(&out);
    return rc;
}

/* What is compiled, in the folder of the compilation, and to what. */
typedef struct unit {
    const char *text, *in, *out, *name; /* name: the file's, in messages */
    size_t n;
    const char *author;  /* within text: from here on its lines are the author's; NULL: none are */
    const char *headers; /* a file outside of the folder that args name; NULL: none */
    const char *args[8]; /* beside the flags; NULL-terminated */
} unit;

static int put_unit(const char *dir, const unit *u, kg_error *err) {
    char folder[320];
    snprintf(folder, sizeof folder, "%s/%s", dir, UNIT_FOLDER);
    int rc = kg_mkdirs(folder, err);
    if (rc == KG_OK)
        rc = put_file(dir, u->in, u->text, u->n, err);
    if (rc == KG_OK && u->author)
        rc = put_file(dir, AUTHORS, u->author, u->n - (size_t)(u->author - u->text), err);
    return rc;
}

static int compile(const unit *u, const char *arch, unsigned flags, kg_buf *out, kg_buf *messages,
                   kg_error *err) {
    const kg_cc *cc;
    char dir[256], text[1024];
    int rc = kg_cc_find(&cc, err);
    if (rc != KG_OK || (rc = make_folder(dir, err)) != KG_OK)
        return rc;
    arg_list a = {.n = 0};
    arg(&a, cc->path);
    kg_cc_flags(arch, flags, text, sizeof text);
    arg_split(&a, text);
    for (size_t i = 0; i < sizeof MESSAGES / sizeof *MESSAGES; i++)
        arg(&a, MESSAGES[i]);
    bool clang = strcmp(cc->kind, "clang") == 0;
    arg(&a, clang ? "-ferror-limit=12" : "-fmax-errors=12");
    arg(&a, clang ? "-Wno-pass-failed" : "-pipe");
    for (size_t i = 0; u->args[i]; i++)
        arg(&a, u->args[i]);
    rc = put_unit(dir, u, err);
    if (rc == KG_OK)
        rc = run_compiler(a.v, &(const work){.dir = dir, .headers = u->headers}, u->name, messages,
                          err);
    if (rc == KG_OK)
        rc = take_file(dir, u->out, out, err);
    kg_remove_tree(dir, NULL);
    return rc;
}

/* With its headers as they are kept, and whatever was wrong with it then, it is compiled as it is:
 * no Candidate is blamed for what is kept. */
int kg_cc_object(const char *source, size_t n, const char *name, const char *headers,
                 const char *arch, unsigned flags, kg_buf *object, kg_buf *messages,
                 kg_error *err) {
    static const char mark[] = "#line 1 \"" AUTHORS "\"\n";
    const char *author = memmem(source, n, mark, sizeof mark - 1);
    unit u = {.text = source,
              .n = n,
              .in = UNIT_FOLDER AUTHORS,
              .out = "object.o",
              .name = name,
              .author = author ? author + sizeof mark - 1 : NULL,
              .headers = headers,
              .args = {"-c", "-o", "object.o", UNIT_FOLDER AUTHORS, headers ? "-include" : NULL,
                       headers}};
    if (headers) {
        kg_buf unread;
        kg_buf_init(&unread, 1 << 20);
        int rc = compile(&u, arch, flags, object, &unread, err);
        kg_buf_free(&unread);
        if (rc != KG_ECOMPILE)
            return rc;
        u.headers = u.args[4] = NULL;
    }
    return compile(&u, arch, flags, object, messages, err);
}

int kg_cc_headers(const char *text, size_t n, const char *arch, unsigned flags, kg_buf *out,
                  kg_error *err) {
    const unit u = {.text = text,
                    .n = n,
                    .in = "headers.h",
                    .out = "headers.gch",
                    .name = "headers",
                    .args = {"-x", "c-header", "-o", "headers.gch", "headers.h"}};
    kg_buf messages;
    kg_buf_init(&messages, 1 << 20);
    int rc = compile(&u, arch, flags, out, &messages, err);
    kg_buf_free(&messages);
    return rc;
}

int kg_cc_link(const void *object, size_t n, kg_buf *shared, kg_error *err) {
    static const char map[] = "{ global: kg_entry_*; local: *; };\n";
    const kg_cc *cc;
    char dir[256];
    int rc = kg_cc_find(&cc, err);
    if (rc != KG_OK || (rc = make_folder(dir, err)) != KG_OK)
        return rc;
    /* -z defs: what is missing is seen here and not at load. libc and libm are in every process
     * that loads an image; libgcc is an archive of the compiler's own helpers. */
    const char *const argv[] = {cc->path,
                                "-shared",
                                "-nostdlib",
                                "-Wl,-z,defs,-z,now,-z,relro,-z,noexecstack",
                                "-Wl,--build-id=none,--hash-style=gnu,--as-needed",
                                "-Wl,--version-script=exports.map",
                                "-o",
                                "image.so",
                                "object.o",
                                "-lgcc",
                                "-lm",
                                "-lc",
                                NULL};
    kg_buf messages;
    kg_buf_init(&messages, 1 << 16);
    rc = put_file(dir, "object.o", object, n, err);
    if (rc == KG_OK)
        rc = put_file(dir, "exports.map", map, sizeof map - 1, err);
    if (rc == KG_OK)
        rc = run_compiler(argv, &(const work){.dir = dir}, "the object", &messages, err);
    if (rc == KG_ECOMPILE)
        kg_fail(err, rc, "the object does not link: %.400s", messages.data ? messages.data : "");
    if (rc == KG_OK)
        rc = take_file(dir, "image.so", shared, err);
    kg_buf_free(&messages);
    kg_remove_tree(dir, NULL);
    return rc;
}
