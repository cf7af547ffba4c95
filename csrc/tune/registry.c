/* Reading the registry. A bad entry costs a warning and itself, never the rest; nothing is changed
 * here. */
#include "tune/registry.h"

#include <stdlib.h>
#include <string.h>

#include "base/fs.h"
#include "base/log.h"
#include "tune/registry_internal.h"

char *kg_path_join3(const char *a, const char *b, const char *c) {
    char *ab = kg_path_join(a, b);
    char *abc = ab ? kg_path_join(ab, c) : NULL;
    free(ab);
    return abc;
}

bool kg_is_hex(const char *text, size_t n) {
    return strlen(text) == n && strspn(text, "0123456789abcdef") == n;
}

static int read_json(const char *path, size_t max, kg_json **out, kg_error *err) {
    kg_buf text;
    kg_buf_init(&text, max);
    int rc = kg_read_file(path, max, &text, err);
    if (!rc)
        rc = kg_json_parse(text.data ? text.data : "", text.len, path, out, err);
    kg_buf_free(&text);
    return rc;
}

static void entry_free(kg_kernel_entry *e) {
    free(e->op);
    free(e->arch);
    free(e->id);
    free(e->path);
    free(e->verdict);
    free(e->created);
    free(e->proposer);
}

static void drop_all(kg_registry *r) {
    for (size_t i = 0; i < r->n; i++)
        entry_free(&r->owned[i]);
    r->n = 0;
}

void kg_registry_close(kg_registry *r) {
    if (!r)
        return;
    drop_all(r);
    free(r->owned);
    free(r->kernels);
    free(r->path);
    free(r);
}

static int grow(kg_registry *r, kg_error *err) {
    if (r->n < r->cap)
        return KG_OK;
    size_t cap = r->cap ? 2 * r->cap : 32;
    kg_kernel_entry *owned = realloc(r->owned, cap * sizeof *owned);
    if (owned)
        r->owned = owned;
    kg_kernel *kernels = realloc(r->kernels, cap * sizeof *kernels);
    if (kernels)
        r->kernels = kernels;
    if (!owned || !kernels)
        return kg_fail(err, KG_ENOMEM, "registry of %zu kernels", cap);
    r->cap = cap;
    return KG_OK;
}

/* Takes e also when it fails. */
static int add(kg_registry *r, kg_kernel_entry *e, int64_t version, kg_error *err) {
    int rc = grow(r, err);
    if (!rc &&
        (!e->op || !e->arch || !e->id || !e->path || !e->verdict || !e->created || !e->proposer))
        rc = kg_fail(err, KG_ENOMEM, "kernel entry");
    if (rc) {
        entry_free(e);
        return rc;
    }
    r->owned[r->n] = *e;
    r->kernels[r->n] = (kg_kernel){.op = e->op,
                                   .arch = e->arch,
                                   .id = e->id,
                                   .path = e->path,
                                   .verdict = e->verdict,
                                   .created = e->created,
                                   .proposer = e->proposer,
                                   .version = (int)version};
    r->n++;
    return KG_OK;
}

static const char *text_or(const kg_json *j, const char *fallback) {
    const char *text;
    return kg_json_str(j, "", &text, NULL) ? fallback : text;
}

static int read_kernel(kg_registry *r, const char *op, const char *arch, const char *id,
                       const char *path, kg_error *err) {
    kg_json *record = NULL;
    int64_t version = 0;
    char *file = kg_path_join(path, "record.json");
    if (!file)
        return kg_fail(err, KG_ENOMEM, "path of a record");
    int rc = read_json(file, KG_MAX_RECORD, &record, err);
    if (!rc)
        rc = kg_json_format(record, file, 1, err);
    if (!rc)
        rc = kg_json_int(kg_json_get(record, "version"), "version", &version, err);
    if (!rc && (version < 1 || version > 1 << 30))
        rc = kg_fail(err, KG_EFORMAT, "%s: version %lld is no promoted version", file,
                     (long long)version);
    if (!rc && strcmp(text_or(kg_json_get(record, "id"), ""), id) != 0)
        rc = kg_fail(err, KG_ECORRUPT, "%s: its id differs from its folder's name", file);
    if (!rc) {
        const kg_json *proposer = kg_json_get(kg_json_get(record, "proposer"), "name");
        kg_kernel_entry e = {.op = strdup(op),
                             .arch = strdup(arch),
                             .id = strdup(id),
                             .path = strdup(path),
                             .verdict = strdup(text_or(kg_json_get(record, "verdict"), "?")),
                             .created = strdup(text_or(kg_json_get(record, "created"), "")),
                             .proposer = strdup(text_or(proposer, ""))};
        rc = add(r, &e, version, err);
    }
    kg_json_free(record);
    free(file);
    return rc;
}

static int read_arch(kg_registry *r, const char *op, const char *arch, const char *dir,
                     kg_error *err) {
    char **ids = NULL;
    size_t n = 0;
    int rc = kg_list_dir(dir, &ids, &n, err);
    for (size_t i = 0; !rc && i < n; i++) {
        if (!kg_is_hex(ids[i], 64))
            continue;
        kg_error bad = {0};
        char *path = kg_path_join(dir, ids[i]);
        rc = path ? read_kernel(r, op, arch, ids[i], path, &bad) : KG_ENOMEM;
        if (rc && rc != KG_ENOMEM) {
            kg_log(KG_LOG_WARNING, "kernel left out: %s", bad.msg);
            rc = KG_OK;
        } else if (rc) {
            kg_fail(err, rc, "reading %s", dir);
        }
        free(path);
    }
    kg_free_names(ids, n);
    return rc;
}

/* Folders of dir, each given to read with its name and path. */
static int read_op(kg_registry *r, const char *op, const char *dir, kg_error *err) {
    char **archs = NULL;
    size_t n = 0;
    int rc = kg_list_dir(dir, &archs, &n, err);
    for (size_t i = 0; !rc && i < n; i++) {
        char *path = kg_path_join(dir, archs[i]);
        if (!path)
            rc = kg_fail(err, KG_ENOMEM, "path of %s", archs[i]);
        if (!rc && strcmp(archs[i], "task") != 0 && kg_is_dir(path))
            rc = read_arch(r, op, archs[i], path, err);
        free(path);
    }
    kg_free_names(archs, n);
    return rc;
}

static int by_version(const void *pa, const void *pb) {
    const kg_kernel *a = pa, *b = pb;
    int c = strcmp(a->op, b->op);
    if (!c)
        c = a->version - b->version;
    return c ? c : strcmp(a->id, b->id);
}

static int count_pin(void *ctx, const char *op, const char *arch, const char *path,
                     const kg_pin *pin, kg_error *err) {
    kg_registry *r = ctx;
    (void)path, (void)err;
    for (size_t i = 0; i < r->n; i++) {
        kg_kernel *k = &r->kernels[i];
        if (!strcmp(k->id, pin->kernel) && !strcmp(k->op, op) && !strcmp(k->arch, arch))
            k->pins++;
    }
    return KG_OK;
}

int kg_registry_read(kg_registry *r, kg_error *err) {
    char **ops = NULL;
    size_t n = 0;
    drop_all(r);
    int rc = kg_list_dir(r->path, &ops, &n, err);
    for (size_t i = 0; !rc && i < n; i++) {
        char *dir = kg_path_join(r->path, ops[i]);
        if (!dir)
            rc = kg_fail(err, KG_ENOMEM, "path of %s", ops[i]);
        if (!rc && ops[i][0] != '.' && kg_is_dir(dir))
            rc = read_op(r, ops[i], dir, err);
        free(dir);
    }
    kg_free_names(ops, n);
    if (rc)
        return rc;
    if (r->n)
        qsort(r->kernels, r->n, sizeof *r->kernels, by_version);
    for (size_t i = 1; i < r->n; i++) {
        kg_kernel *a = &r->kernels[i - 1], *b = &r->kernels[i];
        if (!strcmp(a->op, b->op) && a->version == b->version && strcmp(a->id, b->id) != 0)
            a->ambiguous = b->ambiguous = true;
    }
    return kg_registry_pins(r, NULL, count_pin, r, err);
}

int kg_registry_open(const char *path, bool create, kg_registry **out, kg_error *err) {
    int rc = KG_OK;
    if (create)
        rc = kg_mkdirs(path, err);
    if (!rc && !kg_is_dir(path))
        rc = kg_fail(err, KG_ENOTFOUND, "registry %s: no such folder", path);
    if (rc)
        return rc;
    kg_registry *r = calloc(1, sizeof *r);
    if (r)
        r->path = strdup(path);
    if (!r || !r->path) {
        free(r);
        return kg_fail(err, KG_ENOMEM, "registry %s", path);
    }
    rc = kg_registry_read(r, err);
    if (rc)
        kg_registry_close(r);
    else
        *out = r;
    return rc;
}

size_t kg_registry_kernels(const kg_registry *r, const kg_kernel **out) {
    *out = r->kernels;
    return r->n;
}

/* Whether `which` (what stands behind the slash) names k: "v3", "v3-3fa2", or an id prefix. */
static bool names(const kg_kernel *k, const char *which) {
    char *end;
    size_t len = strlen(which);
    if (which[0] == 'v' && which[1] >= '0' && which[1] <= '9') {
        long version = strtol(which + 1, &end, 10);
        if (version != k->version)
            return false;
        return *end == '\0' || (*end == '-' && strncmp(k->id, end + 1, strlen(end + 1)) == 0);
    }
    return len >= 4 && len <= 64 && strncmp(k->id, which, len) == 0;
}

int kg_registry_find(const kg_registry *r, const char *name, const kg_kernel **out, kg_error *err) {
    const char *slash = strchr(name, '/');
    const kg_kernel *hit = NULL;
    bool op_known = false;
    if (!slash)
        return kg_fail(err, KG_EINVAL, "%s: give OP/vN or OP/ID, such as softmax/v3", name);
    for (size_t i = 0; i < r->n; i++) {
        const kg_kernel *k = &r->kernels[i];
        if (strlen(k->op) != (size_t)(slash - name) || strncmp(k->op, name, strlen(k->op)) != 0)
            continue;
        op_known = true;
        if (!names(k, slash + 1))
            continue;
        if (hit && strcmp(hit->id, k->id) != 0)
            return kg_fail(err, KG_EAMBIGUOUS, "%s fits v%d-%.4s and v%d-%.4s: give more", name,
                           hit->version, hit->id, k->version, k->id);
        hit = k;
    }
    if (!hit)
        return kg_fail(err, KG_ENOTFOUND,
                       op_known ? "%s: no such version in %s (see `kgen list`)"
                                : "%s: no kernel of that Op in %s",
                       name, r->path);
    *out = hit;
    return KG_OK;
}

void kg_pin_free(kg_pin *pin) {
    kg_json_free(pin->json);
    *pin = (kg_pin){0};
}

int kg_pin_read(const char *path, kg_pin *out, kg_error *err) {
    static const char *const keys[] = {"format", "key", "kernel", "replaced", NULL};
    kg_pin pin = {0};
    int rc = read_json(path, KG_MAX_PIN, &pin.json, err);
    if (!rc)
        rc = kg_json_format(pin.json, path, 1, err);
    if (!rc)
        rc = kg_json_only(pin.json, path, keys, err);
    if (!rc)
        rc = kg_json_str(kg_json_get(pin.json, "kernel"), "kernel", &pin.kernel, err);
    if (!rc && !kg_is_hex(pin.kernel, 64))
        rc = kg_fail(err, KG_EFORMAT, "%s: kernel is not an id of 64 hex digits", path);
    if (rc) {
        kg_pin_free(&pin);
        return rc;
    }
    const kg_json *replaced = kg_json_get(pin.json, "replaced");
    pin.replaced = kg_json_is_string(replaced) ? text_or(replaced, NULL) : NULL;
    pin.key = kg_json_get(pin.json, "key");
    *out = pin;
    return KG_OK;
}

static int pins_of(const kg_registry *r, const char *dir, const char *op, const char *arch,
                   kg_pin_visit visit, void *ctx, kg_error *err) {
    char **files = NULL;
    size_t n = 0;
    int rc = kg_is_dir(dir) ? kg_list_dir(dir, &files, &n, err) : KG_OK;
    for (size_t i = 0; !rc && i < n; i++) {
        kg_error bad = {0};
        kg_pin pin = {0};
        char *path = kg_path_join(dir, files[i]);
        int read = !path                      ? kg_fail(&bad, KG_ENOMEM, "path of %s", files[i])
                   : !kg_is_hex(files[i], 32) ? kg_fail(&bad, KG_EFORMAT, "%s is no pin", path)
                                              : kg_pin_read(path, &pin, &bad);
        if (read == KG_ENOMEM || (read != KG_OK && r->strict)) {
            /* Want of memory is no fault of the pin's, and who does not see it may undo it. */
            rc = kg_fail(err, read, "%s", bad.msg);
        } else if (read != KG_OK) {
            kg_log(KG_LOG_WARNING, "pin left out: %s", bad.msg);
        } else {
            rc = visit(ctx, op, arch, path, &pin, err);
            kg_pin_free(&pin);
        }
        free(path);
    }
    kg_free_names(files, n);
    return rc;
}

static int pins_of_op(const kg_registry *r, const char *op, kg_pin_visit visit, void *ctx,
                      kg_error *err) {
    char **archs = NULL;
    size_t n = 0;
    char *dir = kg_path_join(r->path, op);
    int rc = dir ? KG_OK : kg_fail(err, KG_ENOMEM, "path of %s", op);
    if (!rc && kg_is_dir(dir))
        rc = kg_list_dir(dir, &archs, &n, err);
    for (size_t i = 0; !rc && i < n; i++) {
        char *pins = kg_path_join3(dir, archs[i], "pins");
        rc = pins ? pins_of(r, pins, op, archs[i], visit, ctx, err)
                  : kg_fail(err, KG_ENOMEM, "path of pins");
        free(pins);
    }
    kg_free_names(archs, n);
    free(dir);
    return rc;
}

int kg_registry_pins(const kg_registry *r, const char *op, kg_pin_visit visit, void *ctx,
                     kg_error *err) {
    char **ops = NULL;
    size_t n = 0;
    if (op)
        return pins_of_op(r, op, visit, ctx, err);
    int rc = kg_list_dir(r->path, &ops, &n, err);
    for (size_t i = 0; !rc && i < n; i++)
        if (ops[i][0] != '.')
            rc = pins_of_op(r, ops[i], visit, ctx, err);
    kg_free_names(ops, n);
    return rc;
}
