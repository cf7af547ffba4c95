/* Where a compiler's parts, headers and libraries lie, as it says itself: compilers stand under
 * /usr, in a home folder (conda), in a store of their own, behind links and behind wrappers that
 * start another. Refuses to allow a folder that holds what is none of the compiler's business (the
 * home folder as a whole, /, /etc): of such a one only the compiler's own file is let through. */
#define _GNU_SOURCE
#include "sys/cc_places.h"

#include <limits.h>
#include <pthread.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/fs.h"
#include "sys/proc.h"
#include "sys/sandbox.h"

enum { MAX_PLACES = 96 };

/* What every compiler here needs: libraries, the loader's files, a random seed. */
static const char *const COMMON[] = {"/usr",
                                     "/lib",
                                     "/lib32",
                                     "/lib64",
                                     "/libx32",
                                     "/bin",
                                     "/sbin",
                                     "/opt",
                                     "/nix/store",
                                     "/gnu/store",
                                     "/etc/ld.so.cache",
                                     "/etc/ld.so.conf",
                                     "/etc/ld.so.conf.d",
                                     "/etc/ld.so.preload",
                                     "/etc/localtime",
                                     "/dev/urandom",
                                     "/dev/zero"};

typedef struct places {
    char *v[MAX_PLACES + 1]; /* resolved; ends with NULL */
    size_t n;
} places;

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static places known;
static bool asked;

/* Whether `path` is `folder` or lies below it. */
static bool lies_in(const char *path, const char *folder) {
    size_t n = strlen(folder);
    return strncmp(path, folder, n) == 0 && (path[n] == '\0' || path[n] == '/');
}

/* Whether all of this folder may be read: none that others' files lie in, too. */
static bool is_narrow(const char *folder) {
    static const char *const wide[] = {"/etc", "/home", "/root", "/var",
                                       "/tmp", "/run",  "/dev",  "/srv"};
    static const char *const kernels[] = {"/proc", "/sys", "/dev", "/etc"};
    char home[PATH_MAX];
    const char *name = getenv("HOME");
    for (size_t i = 0; i < sizeof wide / sizeof *wide; i++)
        if (strcmp(folder, "/") == 0 || lies_in(wide[i], folder))
            return false;
    for (size_t i = 0; i < sizeof kernels / sizeof *kernels; i++)
        if (lies_in(folder, kernels[i]))
            return false;
    return !(name && realpath(name, home) && lies_in(home, folder));
}

static bool allow(places *p, const char *resolved) {
    for (size_t i = 0; i < p->n; i++)
        if (lies_in(resolved, p->v[i]))
            return true;
    if (p->n < MAX_PLACES && (p->v[p->n] = strdup(resolved)) != NULL)
        p->n++;
    return true;
}

static bool allow_folder(places *p, const char *path) {
    char real[PATH_MAX];
    return path[0] == '/' && realpath(path, real) && kg_is_dir(real) && is_narrow(real) &&
           allow(p, real);
}

/* Folders between colons. */
static void allow_list(places *p, const char *list, size_t n) {
    char one[PATH_MAX];
    for (const char *end = list + n; list < end;) {
        const char *colon = memchr(list, ':', (size_t)(end - list));
        size_t size = (size_t)((colon ? colon : end) - list);
        if (size > 0 && size < sizeof one) {
            snprintf(one, sizeof one, "%.*s", (int)size, list);
            allow_folder(p, one);
        }
        list += size + 1;
    }
}

/* Cuts the last name off. */
static bool to_parent(char *path) {
    char *slash = strrchr(path, '/');
    if (!slash || slash == path)
        return false;
    *slash = '\0';
    return true;
}

/* A program with what it was installed with: the tree above its bin, else its folder. */
static void allow_program(places *p, const char *path) {
    char real[PATH_MAX], folder[PATH_MAX];
    if (!realpath(path, real) || !kg_is_file(real))
        return;
    snprintf(folder, sizeof folder, "%s", real);
    bool below = to_parent(folder);
    const char *name = strrchr(folder, '/');
    if (below && name && strcmp(name, "/bin") == 0) {
        char prefix[PATH_MAX];
        snprintf(prefix, sizeof prefix, "%s", folder);
        if (to_parent(prefix) && allow_folder(p, prefix))
            return;
    }
    if (!below || !allow_folder(p, folder))
        allow(p, real);
}

/* By its name, along PATH as the compiler sees it. */
static void allow_named(places *p, const char *name, size_t n) {
    char path[PATH_MAX];
    const char *at = getenv("PATH");
    if (memchr(name, '/', n)) {
        snprintf(path, sizeof path, "%.*s", (int)n, name);
        allow_program(p, path);
        return;
    }
    for (at = at ? at : "/usr/local/bin:/usr/bin:/bin"; *at;) {
        size_t len = strcspn(at, ":");
        int size = snprintf(path, sizeof path, "%.*s/%.*s", (int)len, at, (int)n, name);
        if (at[0] == '/' && size > 0 && (size_t)size < sizeof path && access(path, X_OK) == 0) {
            allow_program(p, path);
            return;
        }
        at += len + (at[len] == ':');
    }
}

static size_t starts(const char *line, size_t n, const char *with) {
    size_t size = strlen(with);
    return n >= size && memcmp(line, with, size) == 0 ? size : 0;
}

/* A line of -print-search-dirs, or of -v. in_list: between the marks around the folders of headers.
 */
static void read_line(places *p, const char *line, size_t n, bool *in_list) {
    static const char *const lists[] = {"install: ",
                                        "programs: =",
                                        "libraries: =",
                                        "COMPILER_PATH=",
                                        "LIBRARY_PATH=",
                                        "InstalledDir: ",
                                        "Selected GCC installation: "};
    size_t skip;
    for (size_t i = 0; i < sizeof lists / sizeof *lists; i++)
        if ((skip = starts(line, n, lists[i])) > 0)
            allow_list(p, line + skip, n - skip);
    if ((skip = starts(line, n, "COLLECT_GCC=")) > 0)
        allow_named(p, line + skip, n - skip);
    else if (starts(line, n, "#include "))
        *in_list = true;
    else if (starts(line, n, "End of search list"))
        *in_list = false;
    else if (*in_list && starts(line, n, " /"))
        allow_list(p, line + 1, n - 1);
    else if (starts(line, n, " /") || starts(line, n, " \"/")) {
        /* The command of one of its programs. */
        skip = line[1] == '"' ? 2 : 1;
        size_t size = 0;
        while (skip + size < n && line[skip + size] != (skip == 2 ? '"' : ' '))
            size++;
        allow_named(p, line + skip, size);
    }
}

static void ask(places *p, const char *const argv[], const char *const env[]) {
    const kg_limits limits = {.wall_ms = 20 * 1000, .output_bytes = 256 << 10};
    kg_buf out;
    kg_exit ex = {0};
    bool in_list = false;
    kg_buf_init(&out, 1 << 20);
    if (kg_proc_run(argv, env, NULL, &limits, &out, &ex, NULL) == KG_OK && out.data)
        for (const char *at = out.data; *at;) {
            size_t n = strcspn(at, "\n");
            read_line(p, at, n, &in_list);
            at += n + (at[n] == '\n');
        }
    kg_buf_free(&out);
}

static void find(places *p, const char *path, const char *const env[]) {
    const char *const dirs[] = {path, "-print-search-dirs", NULL};
    const char *const verbose[] = {path, "-v", "-E", "-x", "c", "-", NULL};
    const char *libraries = getenv("LD_LIBRARY_PATH");
    char real[PATH_MAX];
    for (size_t i = 0; i < sizeof COMMON / sizeof *COMMON; i++)
        if (realpath(COMMON[i], real))
            allow(p, real);
    allow_program(p, path);
    if (libraries)
        allow_list(p, libraries, strlen(libraries));
    /* A driver finds these along PATH where it has none of its own. */
    allow_named(p, "as", 2);
    allow_named(p, "ld", 2);
    ask(p, dirs, env);
    ask(p, verbose, env);
}

int kg_cc_ruleset(const char *path, const char *const env[], const char *dir, const char *headers,
                  int *ruleset, kg_error *err) {
    const char *readable[MAX_PLACES + 3], *const writable[] = {dir, "/dev/null", NULL};
    char compiled[PATH_MAX];
    kg_protections has;
    *ruleset = -1;
    kg_sandbox_has(&has);
    if (has.landlock == 0)
        return KG_OK;
    pthread_mutex_lock(&lock);
    if (!asked)
        find(&known, path, env);
    asked = true;
    pthread_mutex_unlock(&lock);
    size_t n = known.n;
    memcpy(readable, known.v, n * sizeof *readable);
    if (headers) {
        snprintf(compiled, sizeof compiled, "%s.gch", headers);
        readable[n++] = headers;
        readable[n++] = compiled;
    }
    readable[n] = NULL;
    return kg_sandbox_program(readable, writable, ruleset, err);
}
