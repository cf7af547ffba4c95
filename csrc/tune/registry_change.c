/* Changing the registry: promote, roll back, remove what nothing needs. Each step is one rename, in
 * an order that leaves a registry which serves either what it served or the new state: contract,
 * Task, Candidate, and the pin last. */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/fs.h"
#include "base/log.h"
#include "tune/registry_internal.h"

#define LOCK_WAIT_MS 30000

static int lock(const kg_registry *r, int *fd, kg_error *err) {
    char *path = kg_path_join(r->path, ".lock");
    int rc = path ? kg_lock_file(path, LOCK_WAIT_MS, fd, err)
                  : kg_fail(err, KG_ENOMEM, "path of a lock");
    free(path);
    return rc;
}

static int write_pretty(const char *path, const kg_json *json, kg_error *err) {
    kg_buf text;
    kg_buf_init(&text, 0);
    kg_json_pretty(json, &text);
    int rc = kg_buf_check(&text, path, err);
    if (!rc)
        rc = kg_write_atomic(path, text.data, text.len, err);
    kg_buf_free(&text);
    return rc;
}

/* Whether two JSON texts are one value. */
static int same_value(const char *a, size_t na, const char *b, size_t nb, const char *what,
                      bool *same, kg_error *err) {
    kg_json *ja = NULL, *jb = NULL;
    kg_buf ta, tb;
    kg_buf_init(&ta, 0);
    kg_buf_init(&tb, 0);
    int rc = kg_json_parse(a, na, what, &ja, err);
    if (!rc)
        rc = kg_json_parse(b, nb, what, &jb, err);
    if (!rc) {
        kg_json_canonical(ja, &ta);
        kg_json_canonical(jb, &tb);
        rc = kg_buf_check(&ta, what, err);
        if (!rc)
            rc = kg_buf_check(&tb, what, err);
    }
    if (!rc)
        *same = ta.len == tb.len && memcmp(ta.data, tb.data, ta.len) == 0;
    kg_buf_free(&ta);
    kg_buf_free(&tb);
    kg_json_free(ja);
    kg_json_free(jb);
    return rc;
}

static int put_contract(const char *dir, const char *op_json, kg_error *err) {
    bool same = false;
    kg_buf there;
    kg_buf_init(&there, 0);
    char *path = kg_path_join(dir, "op.json");
    int rc = path ? KG_OK : kg_fail(err, KG_ENOMEM, "path of op.json");
    if (!rc && !kg_is_file(path)) {
        rc = kg_write_atomic(path, op_json, strlen(op_json), err);
    } else if (!rc) {
        rc = kg_read_file(path, KG_MAX_RECORD, &there, err);
        if (!rc)
            rc = same_value(there.data, there.len, op_json, strlen(op_json), path, &same, err);
        if (!rc && !same)
            rc = kg_fail(err, KG_EEXIST,
                         "%s differs from the contract of this Op: use another "
                         "registry, or another name for the Op",
                         path);
    }
    kg_buf_free(&there);
    free(path);
    return rc;
}

static int copy_file(const char *from, const char *to, kg_error *err) {
    kg_buf bytes;
    kg_buf_init(&bytes, (size_t)4 << 30);
    int rc = kg_read_file(from, (size_t)4 << 30, &bytes, err);
    if (!rc)
        rc = kg_write_atomic(to, bytes.data ? bytes.data : "", bytes.len, err);
    kg_buf_free(&bytes);
    return rc;
}

/* Folders nest two deep in a Task; depth guards against links that loop. */
static int copy_tree(const char *from, const char *to, int depth, kg_error *err) {
    char **names = NULL;
    size_t n = 0;
    if (depth > 4)
        return kg_fail(err, KG_EINVAL, "%s is nested deeper than a Task can be", from);
    int rc = kg_mkdirs(to, err);
    if (!rc)
        rc = kg_list_dir(from, &names, &n, err);
    for (size_t i = 0; !rc && i < n; i++) {
        char *a = kg_path_join(from, names[i]), *b = kg_path_join(to, names[i]);
        if (!a || !b)
            rc = kg_fail(err, KG_ENOMEM, "path of %s", names[i]);
        else if (kg_is_dir(a))
            rc = copy_tree(a, b, depth + 1, err);
        else
            rc = copy_file(a, b, err);
        free(a);
        free(b);
    }
    kg_free_names(names, n);
    return rc;
}

/* A folder that appears whole: filled under a name that readers skip, then renamed. */
static int rename_dir(const char *aside, const char *path, const char *parent, kg_error *err) {
    int rc = kg_sync_dir(aside, err);
    if (!rc && rename(aside, path))
        rc = kg_fail(err, KG_EIO, "rename %s to %s: %s", aside, path, strerror(errno));
    if (!rc)
        rc = kg_sync_dir(parent, err);
    return rc;
}

static char *aside_name(const char *dir) {
    char name[64];
    snprintf(name, sizeof name, ".tmp-%ld", (long)getpid());
    return kg_path_join(dir, name);
}

static int put_task(const char *dir, const char *task_dir, kg_error *err) {
    char *path = kg_path_join(dir, "task"), *aside = aside_name(dir);
    int rc = path && aside ? KG_OK : kg_fail(err, KG_ENOMEM, "path of a Task");
    if (!rc && !kg_is_dir(path)) {
        rc = kg_remove_tree(aside, err);
        if (!rc)
            rc = copy_tree(task_dir, aside, 0, err);
        if (!rc)
            rc = rename_dir(aside, path, dir, err);
        if (rc)
            kg_remove_tree(aside, NULL);
    }
    free(path);
    free(aside);
    return rc;
}

static bool has_case(const kg_json *cases, const char *name) {
    for (size_t i = 0; i < kg_json_size(cases); i++) {
        const char *have = "";
        if (!kg_json_str(kg_json_get(kg_json_at(cases, i), "case"), "", &have, NULL) &&
            !strcmp(have, name))
            return true;
    }
    return false;
}

/* What the Record that is there says of Cases that the new one does not know: one Candidate may win
 * in several Runs. */
static int keep_cases(kg_json *record, const kg_json *there, kg_error *err) {
    const kg_json *old = kg_json_get(there, "cases"), *given = kg_json_get(record, "cases");
    kg_json *cases = given ? kg_json_copy(given) : kg_json_new_array();
    for (size_t i = 0; i < kg_json_size(old); i++) {
        const kg_json *one = kg_json_at(old, i);
        const char *name = "";
        if (kg_json_str(kg_json_get(one, "case"), "", &name, NULL) || has_case(cases, name))
            continue;
        if (!kg_json_push(cases, kg_json_copy(one))) {
            kg_json_free(cases);
            return kg_fail(err, KG_ENOMEM, "cases of a Record");
        }
    }
    return kg_json_set(record, "cases", cases) ? KG_OK
                                               : kg_fail(err, KG_ENOMEM, "cases of a Record");
}

static int keep_pins(kg_json *record, const kg_json *there, kg_error *err) {
    const kg_json *old = kg_json_get(there, "pins");
    if (!old || kg_json_get(record, "pins"))
        return KG_OK;
    return kg_json_set(record, "pins", kg_json_copy(old))
               ? KG_OK
               : kg_fail(err, KG_ENOMEM, "pins of a Record");
}

/* A Record that cannot be read is replaced whole. */
static int keep_what_is_known(kg_json *record, const char *kernel_dir, kg_error *err) {
    kg_json *there = NULL;
    kg_buf text;
    kg_buf_init(&text, KG_MAX_RECORD);
    char *path = kg_path_join(kernel_dir, "record.json");
    int rc = path ? KG_OK : kg_fail(err, KG_ENOMEM, "path of a record");
    if (!rc && !kg_read_file(path, KG_MAX_RECORD, &text, NULL) &&
        !kg_json_parse(text.data, text.len, path, &there, NULL)) {
        rc = keep_cases(record, there, err);
        if (!rc)
            rc = keep_pins(record, there, err);
    }
    kg_json_free(there);
    kg_buf_free(&text);
    free(path);
    return rc;
}

/* The names of the pins that the Record's Kernel was promoted for, old and new together. */
static int note_pins(kg_json *record, const char *const *hashes, size_t n, kg_error *err) {
    const kg_json *old = kg_json_get(record, "pins");
    kg_json *pins = old ? kg_json_copy(old) : kg_json_new_array();
    for (size_t i = 0; i < n; i++) {
        bool there = false;
        for (size_t k = 0; k < kg_json_size(pins); k++) {
            const char *s;
            if (!kg_json_str(kg_json_at(pins, k), "", &s, NULL) && !strcmp(s, hashes[i]))
                there = true;
        }
        if (!there && !kg_json_push_str(pins, hashes[i])) {
            kg_json_free(pins);
            return kg_fail(err, KG_ENOMEM, "pins of a Record");
        }
    }
    if (!kg_json_set(record, "pins", pins))
        return kg_fail(err, KG_ENOMEM, "pins of a Record");
    return KG_OK;
}

static int next_version(const kg_registry *r, const char *op, const char *arch, const char *id) {
    int next = 1;
    for (size_t i = 0; i < r->n; i++) {
        const kg_kernel *k = &r->kernels[i];
        if (strcmp(k->op, op) != 0)
            continue;
        if (!strcmp(k->id, id) && !strcmp(k->arch, arch))
            return k->version;
        if (k->version >= next)
            next = k->version + 1;
    }
    return next;
}

typedef struct promotion {
    const char *op, *arch, *id, *file; /* borrowed from record */
    kg_json *record;
    char *op_dir, *arch_dir, *kernel_dir, *pins_dir;
    char (*hashes)[33];
    const char **hash_names;
} promotion;

/* A part of a Record that names a file or folder; none of the words in taken. */
static int check_name(const char *what, const char *name, const char *taken, kg_error *err) {
    static const char allowed[] =
        "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789_-.";
    size_t n = strlen(name);
    if (n == 0 || n > 128 || name[0] == '.' || strspn(name, allowed) != n)
        return kg_fail(err, KG_EFORMAT,
                       "Record: %s is \"%.70s\"; a plain name of letters, digits, _, - and . is "
                       "needed",
                       what, name);
    for (const char *at = taken; (at = strstr(at, name)) != NULL; at += n)
        if ((at == taken || at[-1] == ' ') && (at[n] == ' ' || at[n] == '\0'))
            return kg_fail(err, KG_EFORMAT, "Record: %s is %s, which is a name of kgen's own", what,
                           name);
    return KG_OK;
}

static int read_record(promotion *p, const char *record_json, kg_error *err) {
    const char *verdict = "";
    int rc = kg_json_parse(record_json, strlen(record_json), "Record", &p->record, err);
    if (!rc)
        rc = kg_json_format(p->record, "Record", 1, err);
    if (!rc)
        rc = kg_json_str(kg_json_get(p->record, "op"), "Record: op", &p->op, err);
    if (!rc)
        rc = kg_json_str(kg_json_get(p->record, "arch"), "Record: arch", &p->arch, err);
    if (!rc)
        rc = kg_json_str(kg_json_get(p->record, "id"), "Record: id", &p->id, err);
    if (!rc)
        rc = kg_json_str(kg_json_get(p->record, "source"), "Record: source", &p->file, err);
    if (!rc)
        rc = kg_json_str(kg_json_get(p->record, "verdict"), "Record: verdict", &verdict, err);
    if (rc)
        return rc;
    if (strcmp(verdict, "pass") != 0)
        return kg_fail(err, KG_EINVAL, "a Candidate with verdict %s cannot be promoted", verdict);
    if (!kg_is_hex(p->id, 64))
        return kg_fail(err, KG_EFORMAT, "Record: id is not 64 hex digits");
    /* What else stands in the folder that the name is for. */
    rc = check_name("op", p->op, "", err);
    if (!rc)
        rc = check_name("arch", p->arch, "task op.json", err);
    return rc ? rc : check_name("source", p->file, "record.json", err);
}

static int make_paths(promotion *p, const kg_registry *r, const char *const *keys, size_t nkeys,
                      kg_error *err) {
    p->op_dir = kg_path_join(r->path, p->op);
    p->arch_dir = p->op_dir ? kg_path_join(p->op_dir, p->arch) : NULL;
    p->kernel_dir = p->arch_dir ? kg_path_join(p->arch_dir, p->id) : NULL;
    p->pins_dir = p->arch_dir ? kg_path_join(p->arch_dir, "pins") : NULL;
    p->hashes = calloc(nkeys ? nkeys : 1, sizeof *p->hashes);
    p->hash_names = calloc(nkeys ? nkeys : 1, sizeof *p->hash_names);
    if (!p->kernel_dir || !p->pins_dir || !p->hashes || !p->hash_names)
        return kg_fail(err, KG_ENOMEM, "paths of a promotion");
    for (size_t i = 0; i < nkeys; i++) {
        char full[65];
        kg_sha256_hex(keys[i], strlen(keys[i]), full);
        memcpy(p->hashes[i], full, 32);
        p->hash_names[i] = p->hashes[i];
    }
    return kg_mkdirs(p->pins_dir, err);
}

static void promotion_free(promotion *p) {
    kg_json_free(p->record);
    free(p->op_dir);
    free(p->arch_dir);
    free(p->kernel_dir);
    free(p->pins_dir);
    free(p->hashes);
    free(p->hash_names);
}

/* A Candidate that is there already keeps its folder and version; its Record is replaced by the
 * newer one. */
static int put_kernel(promotion *p, const char *source, size_t n, kg_error *err) {
    bool there = kg_is_dir(p->kernel_dir);
    char *aside = there ? strdup(p->kernel_dir) : aside_name(p->arch_dir);
    char *code = aside ? kg_path_join(aside, p->file) : NULL;
    char *record = aside ? kg_path_join(aside, "record.json") : NULL;
    int rc = code && record ? KG_OK : kg_fail(err, KG_ENOMEM, "paths of a kernel");
    if (!rc && !there)
        rc = kg_remove_tree(aside, err);
    if (!rc)
        rc = kg_mkdirs(aside, err);
    if (!rc)
        rc = kg_write_atomic(code, source, n, err);
    if (!rc)
        rc = write_pretty(record, p->record, err);
    if (!rc && !there)
        rc = rename_dir(aside, p->kernel_dir, p->arch_dir, err);
    if (rc && aside && !there)
        kg_remove_tree(aside, NULL);
    free(aside);
    free(code);
    free(record);
    return rc;
}

/* Points one pin at id; what it pointed to becomes `replaced`. */
static int put_pin(const char *path, const kg_json *key, const char *id, kg_error *err) {
    kg_pin old = {0};
    kg_json *pin = kg_json_new_object();
    const char *replaced = NULL;
    if (kg_is_file(path) && kg_pin_read(path, &old, NULL) == KG_OK)
        replaced = strcmp(old.kernel, id) ? old.kernel : old.replaced;
    kg_json_set_int(pin, "format", 1);
    kg_json_set(pin, "key", kg_json_copy(key));
    kg_json_set_str(pin, "kernel", id);
    int rc = kg_json_set_str(pin, "replaced", replaced) ? write_pretty(path, pin, err)
                                                        : kg_fail(err, KG_ENOMEM, "pin %s", path);
    kg_json_free(pin);
    kg_pin_free(&old);
    return rc;
}

static int put_pins(const promotion *p, const char *const *keys, size_t nkeys, kg_error *err) {
    int rc = KG_OK;
    for (size_t i = 0; !rc && i < nkeys; i++) {
        kg_json *key = NULL;
        char *path = kg_path_join(p->pins_dir, p->hash_names[i]);
        rc = path ? kg_json_parse(keys[i], strlen(keys[i]), "key of a pin", &key, err)
                  : kg_fail(err, KG_ENOMEM, "path of a pin");
        if (!rc)
            rc = put_pin(path, key, p->id, err);
        kg_json_free(key);
        free(path);
    }
    return rc;
}

int kg_registry_promote(kg_registry *r, const char *op_json, const char *task_dir,
                        const char *source, size_t n, const char *record_json,
                        const char *const *keys, size_t nkeys, int *version, kg_error *err) {
    int fd = -1, number = 0;
    promotion p = {0};
    int rc = read_record(&p, record_json, err);
    if (!rc)
        rc = lock(r, &fd, err);
    if (!rc)
        rc = kg_registry_read(r, err);
    if (!rc)
        rc = make_paths(&p, r, keys, nkeys, err);
    if (!rc)
        rc = put_contract(p.op_dir, op_json, err);
    if (!rc && task_dir)
        rc = put_task(p.op_dir, task_dir, err);
    if (!rc) {
        number = next_version(r, p.op, p.arch, p.id);
        kg_json_set_int(p.record, "version", number);
        rc = keep_what_is_known(p.record, p.kernel_dir, err);
    }
    if (!rc)
        rc = note_pins(p.record, p.hash_names, nkeys, err);
    if (!rc)
        rc = put_kernel(&p, source, n, err);
    if (!rc)
        rc = put_pins(&p, keys, nkeys, err);
    if (!rc)
        rc = kg_registry_read(r, err);
    if (!rc)
        *version = number;
    if (fd >= 0)
        kg_unlock_file(fd);
    promotion_free(&p);
    return rc;
}

typedef struct rollback {
    const kg_kernel *to;
    const kg_json *pins; /* of its Record */
    size_t moved, fitting;
} rollback;

static bool lists(const kg_json *pins, const char *path) {
    const char *name = strrchr(path, '/') + 1, *s;
    for (size_t i = 0; i < kg_json_size(pins); i++)
        if (!kg_json_str(kg_json_at(pins, i), "", &s, NULL) && !strcmp(s, name))
            return true;
    return false;
}

static int roll_pin(void *ctx, const char *op, const char *arch, const char *path,
                    const kg_pin *pin, kg_error *err) {
    rollback *b = ctx;
    (void)op;
    if (strcmp(arch, b->to->arch) != 0 || !lists(b->pins, path))
        return KG_OK;
    b->fitting++;
    if (!strcmp(pin->kernel, b->to->id))
        return KG_OK;
    int rc = put_pin(path, pin->key, b->to->id, err);
    if (!rc)
        b->moved++;
    return rc;
}

static int read_pins_of_record(const kg_kernel *k, kg_json **record, kg_error *err) {
    kg_buf text;
    kg_buf_init(&text, KG_MAX_RECORD);
    char *path = kg_path_join(k->path, "record.json");
    int rc = path ? kg_read_file(path, KG_MAX_RECORD, &text, err)
                  : kg_fail(err, KG_ENOMEM, "path of a record");
    if (!rc)
        rc = kg_json_parse(text.data, text.len, path, record, err);
    free(path);
    kg_buf_free(&text);
    return rc;
}

int kg_registry_rollback(kg_registry *r, const char *op, const char *version, size_t *moved,
                         kg_error *err) {
    int fd = -1;
    char name[256];
    kg_json *record = NULL;
    rollback b = {0};
    snprintf(name, sizeof name, "%s/%s", op, version);
    int rc = lock(r, &fd, err);
    if (!rc)
        rc = kg_registry_read(r, err);
    if (!rc)
        rc = kg_registry_find(r, name, &b.to, err);
    if (!rc)
        rc = read_pins_of_record(b.to, &record, err);
    if (!rc) {
        b.pins = kg_json_get(record, "pins");
        rc = kg_registry_pins(r, op, roll_pin, &b, err);
    }
    if (!rc && !b.fitting)
        rc = kg_fail(err, KG_ENOTFOUND, "%s: it was promoted for no Case that has a pin", name);
    kg_json_free(record);
    if (!rc)
        rc = kg_registry_read(r, err);
    if (!rc)
        *moved = b.moved;
    if (fd >= 0)
        kg_unlock_file(fd);
    return rc;
}

typedef struct needed {
    const kg_registry *r;
    char (*ids)[65];
    size_t n, cap;
} needed;

static int need(needed *s, const char *id, kg_error *err) {
    if (s->n == s->cap) {
        size_t cap = s->cap ? 2 * s->cap : 64;
        void *grown = realloc(s->ids, cap * sizeof *s->ids);
        if (!grown)
            return kg_fail(err, KG_ENOMEM, "ids of %zu pins", cap);
        s->ids = grown;
        s->cap = cap;
    }
    memcpy(s->ids[s->n], id, 64);
    s->ids[s->n++][64] = '\0';
    return KG_OK;
}

static bool is_there(const kg_registry *r, const char *id) {
    for (size_t i = 0; i < r->n; i++)
        if (!strcmp(r->kernels[i].id, id))
            return true;
    return false;
}

static int need_pin(void *ctx, const char *op, const char *arch, const char *path,
                    const kg_pin *pin, kg_error *err) {
    (void)op, (void)arch;
    if (!is_there(((const needed *)ctx)->r, pin->kernel))
        return kg_fail(err, KG_ECORRUPT,
                       "%s names the Kernel %.12s, which is not there or not whole: gc removes "
                       "nothing until the pin or its Kernel is put right, or the pin removed",
                       path, pin->kernel);
    int rc = need(ctx, pin->kernel, err);
    if (!rc && pin->replaced && kg_is_hex(pin->replaced, 64))
        rc = need(ctx, pin->replaced, err);
    return rc;
}

static bool is_needed(const needed *s, const char *id) {
    for (size_t i = 0; i < s->n; i++)
        if (!strcmp(s->ids[i], id))
            return true;
    return false;
}

static int64_t folder_bytes(const char *dir) {
    char **names = NULL;
    size_t n = 0;
    int64_t sum = 0;
    if (kg_list_dir(dir, &names, &n, NULL))
        return 0;
    for (size_t i = 0; i < n; i++) {
        struct stat st;
        char *path = kg_path_join(dir, names[i]);
        if (path && !stat(path, &st))
            sum += st.st_size;
        free(path);
    }
    kg_free_names(names, n);
    return sum;
}

static int report_removed(kg_json *list, const kg_kernel *k, kg_error *err) {
    kg_json *row = kg_json_new_object();
    kg_json_set_str(row, "op", k->op);
    kg_json_set_str(row, "arch", k->arch);
    kg_json_set_str(row, "id", k->id);
    kg_json_set_int(row, "version", k->version);
    kg_json_set_int(row, "bytes", folder_bytes(k->path));
    if (!kg_json_push(list, row))
        return kg_fail(err, KG_ENOMEM, "report of gc");
    return KG_OK;
}

int kg_registry_gc(kg_registry *r, bool dry, kg_buf *report, kg_error *err) {
    int fd = -1;
    needed keep = {.r = r};
    kg_json *list = kg_json_new_array();
    int rc = list ? lock(r, &fd, err) : kg_fail(err, KG_ENOMEM, "report of gc");
    if (!rc)
        rc = kg_registry_read(r, err);
    if (!rc)
        r->strict = true; /* a damaged pin's Kernel must not go for it */
    if (!rc)
        rc = kg_registry_pins(r, NULL, need_pin, &keep, err);
    r->strict = false;
    for (size_t i = 0; !rc && i < r->n; i++) {
        if (is_needed(&keep, r->kernels[i].id))
            continue;
        rc = report_removed(list, &r->kernels[i], err);
        if (!rc && !dry)
            rc = kg_remove_tree(r->kernels[i].path, err);
    }
    if (!rc)
        rc = kg_json_canonical(list, report) ? kg_buf_check(report, "report of gc", err) : KG_OK;
    if (!rc && !dry)
        rc = kg_registry_read(r, err);
    kg_json_free(list);
    free(keep.ids);
    if (fd >= 0)
        kg_unlock_file(fd);
    return rc;
}
