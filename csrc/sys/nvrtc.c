/* Finds NVRTC and compiles with it. libnvrtc looks for its builtins by bare name, so they are
 * opened by full path first. It refuses a library whose cubins the driver of this machine cannot
 * load. */
#include "sys/nvrtc.h"

#include <dlfcn.h>
#include <limits.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/fs.h"
#include "sys/cuda.h"
#include "sys/nvrtc_abi.h"

enum { MAX_FOLDERS = 16, MAX_OPTIONS = 64, MAX_HEADERS = 32, MAX_HEADER = 16 << 20 };

static kg_nvrtc_table nv;

static pthread_mutex_t find_lock = PTHREAD_MUTEX_INITIALIZER; /* over all of these */
static char *folders[MAX_FOLDERS];
static size_t nfolders;
static bool stale = true; /* folders came since the search failed */
static kg_error find_error;
static kg_nvrtc found;
static atomic_bool is_found;

void kg_nvrtc_search(const char *folder) {
    pthread_mutex_lock(&find_lock);
    bool known = folder == NULL || *folder == '\0' || nfolders == MAX_FOLDERS;
    for (size_t i = 0; i < nfolders && !known; i++)
        known = strcmp(folders[i], folder) == 0;
    if (!known && (folders[nfolders] = strdup(folder)) != NULL) {
        nfolders++;
        stale = true;
    }
    pthread_mutex_unlock(&find_lock);
}

/* ---- one library ---- */

/* What a search has seen: the reason why the last library was not taken. */
typedef struct attempt {
    kg_error why; /* code KG_OK: nothing was found yet */
} attempt;

static int find_symbols(void *lib, const char *path, kg_error *err) {
    static const struct {
        const char *name;
        size_t offset;
    } symbols[] = {
#define KG_X(name, params) {#name, offsetof(kg_nvrtc_table, name)},
        KG_NVRTC_SYMS(KG_X)
#undef KG_X
    };
    kg_nvrtc_table table;
    for (size_t i = 0; i < sizeof(symbols) / sizeof(symbols[0]); i++) {
        void *symbol = dlsym(lib, symbols[i].name);
        if (symbol == NULL)
            return kg_fail(err, KG_EENV, "%s has no %s: NVRTC 12 or 13 is needed", path,
                           symbols[i].name);
        memcpy((char *)&table + symbols[i].offset, &symbol, sizeof(symbol));
    }
    nv = table;
    return KG_OK;
}

/* Every libnvrtc-builtins of the folder: there is one. */
static void open_builtins(const char *folder) {
    char **names = NULL, path[PATH_MAX];
    size_t n = 0;
    if (kg_list_dir(folder, &names, &n, NULL) != KG_OK)
        return;
    for (size_t i = 0; i < n; i++)
        if (strncmp(names[i], "libnvrtc-builtins.so", 20) == 0 &&
            snprintf(path, sizeof(path), "%s/%s", folder, names[i]) < (int)sizeof(path))
            (void)dlopen(path,
                         RTLD_NOW | RTLD_LOCAL); /* without it the compile says what is missing */
    kg_free_names(names, n);
}

/* A cubin of a newer major version than the driver's does not load. */
static int check_driver(const char *path, int major, int minor, kg_error *err) {
    int driver = 0;
    if (kg_cuda_driver(&driver, NULL) != KG_OK || major <= driver / 1000)
        return KG_OK;
    return kg_fail(
        err, KG_EENV,
        "%.200s is NVRTC %d.%d, the driver is of CUDA %d.%d: install a driver of CUDA %d "
        "or an NVRTC of CUDA %d (pip install %s)",
        path, major, minor, driver / 1000, driver % 1000 / 10, major, driver / 1000,
        driver / 1000 == 12 ? "nvidia-cuda-nvrtc-cu12" : "'nvidia-cuda-nvrtc==13.*'");
}

static bool holds_headers(const char *folder, const char *below, char out[512]) {
    char path[PATH_MAX];
    int n = snprintf(path, sizeof(path), "%s/%s/cuda_fp16.h", folder, below);
    return n > 0 && n < (int)sizeof(path) && kg_is_file(path) &&
           snprintf(out, 512, "%s/%s", folder, below) < 512;
}

/* A toolkit's headers are for its own major version; one without cuda.h tells nothing. */
static bool same_major(const char *folder, int major) {
    static const char define[] = "#define CUDA_VERSION ";
    char path[PATH_MAX];
    kg_buf text;
    int version = 0;
    kg_buf_init(&text, 0);
    if (snprintf(path, sizeof(path), "%s/cuda.h", folder) < (int)sizeof(path) &&
        kg_read_file(path, MAX_HEADER, &text, NULL) == KG_OK) {
        const char *at = strstr(text.data, define);
        version = at != NULL ? (int)strtol(at + sizeof(define) - 1, NULL, 10) : 0;
    }
    kg_buf_free(&text);
    return version / 1000 == major;
}

/* Headers lie in include/ beside lib/, in the package beside NVRTC's own (CUDA 12's wheels), or
 * in a toolkit. */
static void find_include(const char *folder, int major, char out[512]) {
    static const char *const places[] = {"../include", "../../include",
                                         "../../cuda_runtime/include",
                                         "../targets/x86_64-linux/include"};
    const char *toolkits[] = {getenv("CUDA_HOME"), getenv("CUDA_PATH"), "/usr/local/cuda"};
    for (size_t i = 0; *folder != '\0' && i < sizeof(places) / sizeof(places[0]); i++)
        if (holds_headers(folder, places[i], out))
            return;
    for (size_t i = 0; i < sizeof(toolkits) / sizeof(toolkits[0]); i++)
        if (toolkits[i] != NULL && toolkits[i][0] == '/' &&
            holds_headers(toolkits[i], "include", out) && same_major(out, major))
            return;
    out[0] = '\0';
}

static bool try_library(const char *folder, const char *path, attempt *a) {
    int major = 0, minor = 0;
    if (*folder != '\0')
        open_builtins(folder);
    void *lib = dlopen(path, RTLD_NOW | RTLD_LOCAL);
    if (lib == NULL) {
        if (*folder != '\0') /* a bare name that is not there is no news */
            kg_fail(&a->why, KG_EENV, "%.480s", dlerror());
        return false;
    }
    int rc = find_symbols(lib, path, &a->why);
    if (rc == KG_OK && nv.nvrtcVersion(&major, &minor) != 0)
        rc = kg_fail(&a->why, KG_EENV, "nvrtcVersion of %s failed", path);
    if (rc == KG_OK && major < 12)
        rc = kg_fail(&a->why, KG_EENV, "%s is NVRTC %d.%d: kgen needs 12 or newer", path, major,
                     minor);
    if (rc == KG_OK)
        rc = check_driver(path, major, minor, &a->why);
    if (rc != KG_OK)
        return false;
    found = (kg_nvrtc){.major = major, .minor = minor};
    snprintf(found.path, sizeof(found.path), "%s", path);
    find_include(folder, major, found.include);
    return true;
}

/* ---- where it may be ---- */

/* Newest first: names are sorted, so from the end. libnvrtc.alt.so is another build of the same. */
static bool try_folder(const char *folder, attempt *a) {
    char **names = NULL, path[PATH_MAX];
    size_t n = 0;
    bool hit = false;
    if (!kg_is_dir(folder) || kg_list_dir(folder, &names, &n, NULL) != KG_OK)
        return false;
    for (size_t i = n; i-- > 0 && !hit;)
        if (strncmp(names[i], "libnvrtc.so.", 12) == 0 &&
            snprintf(path, sizeof(path), "%s/%s", folder, names[i]) < (int)sizeof(path))
            hit = try_library(folder, path, a);
    kg_free_names(names, n);
    return hit;
}

static bool try_below(const char *root, const char *const *places, size_t n, attempt *a) {
    char path[PATH_MAX];
    for (size_t i = 0; i < n; i++)
        if (snprintf(path, sizeof(path), "%s/%s", root, places[i]) < (int)sizeof(path) &&
            try_folder(path, a))
            return true;
    return false;
}

/* $KGEN_NVRTC alone when it is set: what was asked for is used or said to be wrong. */
static bool try_asked(const char *asked, attempt *a) {
    char folder[PATH_MAX];
    if (kg_is_dir(asked))
        return try_folder(asked, a);
    const char *slash = strrchr(asked, '/');
    snprintf(folder, sizeof(folder), "%.*s", slash != NULL ? (int)(slash - asked) : 0, asked);
    return try_library(folder, asked, a);
}

static bool try_all(attempt *a) {
    static const char *const packages[] = {"", "nvidia/cu13/lib", "nvidia/cuda_nvrtc/lib",
                                           "nvidia/cu12/lib"};
    static const char *const toolkit[] = {"lib64", "lib", "targets/x86_64-linux/lib"};
    static const char *const names[] = {"libnvrtc.so.13", "libnvrtc.so.12", "libnvrtc.so"};
    const char *roots[] = {getenv("CUDA_HOME"), getenv("CUDA_PATH"), "/usr/local/cuda"};
    for (size_t i = 0; i < nfolders; i++)
        if (try_below(folders[i], packages, sizeof(packages) / sizeof(packages[0]), a))
            return true;
    for (size_t i = 0; i < sizeof(roots) / sizeof(roots[0]); i++)
        if (roots[i] != NULL && roots[i][0] == '/' &&
            try_below(roots[i], toolkit, sizeof(toolkit) / sizeof(toolkit[0]), a))
            return true;
    for (size_t i = 0; i < sizeof(names) / sizeof(names[0]); i++)
        if (try_library("", names[i], a))
            return true;
    return false;
}

/* Under the lock. */
static int search(kg_error *err) {
    attempt a = {.why = {.code = KG_OK}};
    const char *asked = getenv("KGEN_NVRTC");
    bool own = asked != NULL && *asked != '\0';
    if (own ? try_asked(asked, &a) : try_all(&a))
        return KG_OK;
    if (own)
        return kg_fail(err, KG_EENV,
                       "KGEN_NVRTC is '%.150s', which is no NVRTC that can be used%s%.250s", asked,
                       a.why.code != KG_OK ? ": " : "", a.why.code != KG_OK ? a.why.msg : "");
    if (a.why.code != KG_OK)
        return kg_fail(err, KG_EENV, "%s", a.why.msg);
    return kg_fail(
        err, KG_EENV,
        "no NVRTC: looked in KGEN_NVRTC, beside torch's packages, in CUDA_HOME, "
        "/usr/local/cuda and the loader's path; install one (pip install "
        "'nvidia-cuda-nvrtc==13.*', or nvidia-cuda-nvrtc-cu12 for a driver of CUDA 12), or "
        "fill the cache elsewhere with `kgen build`");
}

int kg_nvrtc_find(const kg_nvrtc **out, kg_error *err) {
    if (!atomic_load(&is_found)) {
        pthread_mutex_lock(&find_lock);
        if (!atomic_load(&is_found) && stale) {
            find_error.code = KG_OK;
            find_error.code = search(&find_error);
            stale = false;
            atomic_store(&is_found, find_error.code == KG_OK);
        }
        kg_error e = find_error;
        pthread_mutex_unlock(&find_lock);
        if (e.code != KG_OK)
            return kg_fail(err, e.code, "%s", e.msg);
    }
    *out = &found;
    return KG_OK;
}

/* ---- targets ---- */

const char *kg_nvrtc_target(int arch, char out[16]) {
    snprintf(out, 16, "sm_%d%s", arch, arch >= 90 ? "a" : "");
    return out;
}

int kg_nvrtc_supports(int arch, kg_error *err) {
    const kg_nvrtc *n;
    int count = 0, rc = kg_nvrtc_find(&n, err);
    if (rc != KG_OK)
        return rc;
    if (nv.nvrtcGetNumSupportedArchs(&count) != 0 || count <= 0)
        return kg_fail(err, KG_EENV, "nvrtcGetNumSupportedArchs of %s failed", n->path);
    int *archs = calloc((size_t)count, sizeof(*archs)), known = 0, newest = 0;
    if (archs == NULL)
        return kg_fail(err, KG_ENOMEM, "no memory for NVRTC's architectures");
    if (nv.nvrtcGetSupportedArchs(archs) == 0)
        for (int i = 0; i < count; i++) {
            known |= archs[i] == arch;
            newest = archs[i] > newest ? archs[i] : newest;
        }
    free(archs);
    if (known)
        return KG_OK;
    return kg_fail(err, KG_EENV,
                   "NVRTC %d.%d (%s) does not compile for sm_%d, its newest is sm_%d: install %s",
                   n->major, n->minor, n->path, arch, newest,
                   arch > newest ? "a newer one" : "an older one");
}

/* ---- compiling ---- */

static int failed(int result, const char *call, kg_error *err) {
    return kg_fail(err, result == KG_NVRTC_OUT_OF_MEMORY ? KG_ENOMEM : KG_EENV, "%s: %s", call,
                   nv.nvrtcGetErrorString(result));
}

static void take_log(kg_nvrtc_program *p, kg_buf *log) {
    size_t n = 0;
    if (nv.nvrtcGetProgramLogSize(p, &n) != 0 || n <= 1)
        return;
    char *text = malloc(n);
    if (text != NULL && nv.nvrtcGetProgramLog(p, text) == 0)
        kg_buf_add(log, text, n - 1);
    free(text);
}

static int take_bytes(kg_nvrtc_program *p, int (*size)(kg_nvrtc_program *, size_t *),
                      int (*get)(kg_nvrtc_program *, char *), const char *what, kg_buf *out,
                      kg_error *err) {
    size_t n = 0;
    int result = size(p, &n);
    if (result != 0)
        return failed(result, what, err);
    if (n == 0)
        return kg_fail(err, KG_EINVAL, "NVRTC gave no %s: the target must be sm_XX", what);
    char *to = kg_buf_reserve(out, n);
    if (to == NULL)
        return kg_buf_check(out, what, err);
    result = get(p, to);
    return result != 0 ? failed(result, what, err) : KG_OK;
}

static int take_results(kg_nvrtc_program *p, kg_buf *cubin, kg_buf *ptx, kg_error *err) {
    int rc = take_bytes(p, nv.nvrtcGetCUBINSize, nv.nvrtcGetCUBIN, "cubin", cubin, err);
    if (rc == KG_OK && ptx != NULL)
        rc = take_bytes(p, nv.nvrtcGetPTXSize, nv.nvrtcGetPTX, "PTX", ptx, err);
    return rc;
}

static int run(kg_nvrtc_program *p, const char *name, const char *const *options, int noptions,
               kg_buf *cubin, kg_buf *ptx, kg_buf *log, kg_error *err) {
    int result = nv.nvrtcCompileProgram(p, noptions, options);
    take_log(p, log);
    if (result == KG_NVRTC_COMPILATION)
        return kg_fail(err, KG_ECOMPILE, "%s does not compile", name);
    if (result == KG_NVRTC_INVALID_OPTION)
        return kg_fail(err, KG_EINVAL, "nvrtcCompileProgram: %s: %.300s",
                       nv.nvrtcGetErrorString(result), log->len > 0 ? log->data : "");
    if (result != 0 && log->len > 0 && strstr(log->data, "builtins") != NULL)
        return kg_fail(err, KG_EENV,
                       "NVRTC is incomplete: its libnvrtc-builtins does not lie beside %s",
                       found.path);
    return result != 0 ? failed(result, "nvrtcCompileProgram", err)
                       : take_results(p, cubin, ptx, err);
}

int kg_nvrtc_compile(const char *source, const char *name, const char *const *options,
                     size_t noptions, const kg_nvrtc_header *headers, size_t nheaders,
                     kg_buf *cubin, kg_buf *ptx, kg_buf *log, kg_error *err) {
    const kg_nvrtc *n;
    const char *texts[MAX_HEADERS], *names[MAX_HEADERS];
    kg_nvrtc_program *p = NULL;
    int rc = kg_nvrtc_find(&n, err);
    if (rc != KG_OK)
        return rc;
    if (nheaders > MAX_HEADERS || noptions > MAX_OPTIONS)
        return kg_fail(err, KG_EINVAL, "%zu headers and %zu options; %d and %d are the limits",
                       nheaders, noptions, MAX_HEADERS, MAX_OPTIONS);
    for (size_t i = 0; i < nheaders; i++) {
        texts[i] = headers[i].text;
        names[i] = headers[i].name;
    }
    int result = nv.nvrtcCreateProgram(&p, source, name, (int)nheaders, texts, names);
    if (result != 0)
        return failed(result, "nvrtcCreateProgram", err);
    rc = run(p, name, options, (int)noptions, cubin, ptx, log, err);
    (void)nv.nvrtcDestroyProgram(&p);
    return rc;
}
