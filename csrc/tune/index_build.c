/* Derives the index of a registry from its files. Every Candidate's id is checked against its bytes
 * and every pin's name against its key, so that what the runtime serves is what was promoted; what
 * does not hold is left out with a warning. Nothing in the registry is changed.
 *
 * Ops are read on several threads, since a process that imports kgen waits for it. Those threads
 * log nothing: the sink may need a lock that the waiting thread holds. */
#include <sched.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/fs.h"
#include "base/log.h"
#include "runtime/index.h"
#include "tune/parallel.h"
#include "tune/registry_internal.h"

#define MAX_SOURCE ((size_t)4 << 20)
/* More threads wait for the same folders' locks; fewer Ops than this cost less than a thread. */
#define MAX_THREADS 8
#define OPS_A_THREAD 4

/* One Op while it is being read. Strings that the index borrows live in `texts` and `roots`. */
typedef struct draft {
    kg_op *op;
    char *dir; /* of the Op */
    const char *name;
    char *task;
    kg_index_kernel *kernels;
    kg_plan **plans;
    size_t nkernels, cap_kernels;
    kg_index_pin *pins;
    size_t npins, cap_pins;
    char **texts;
    size_t ntexts, cap_texts;
    kg_json **roots;
    size_t nroots, cap_roots;
    kg_buf block;    /* what the index gets */
    kg_buf warnings; /* a line each */
    int status;      /* KG_OK, or why the Op is left out */
    kg_error error;
} draft;

static int grow(void **items, size_t *cap, size_t n, size_t size, kg_error *err) {
    if (n < *cap)
        return KG_OK;
    size_t want = *cap ? 2 * *cap : 16;
    void *grown = realloc(*items, want * size);
    if (!grown)
        return kg_fail(err, KG_ENOMEM, "index of %zu entries", want);
    *items = grown;
    *cap = want;
    return KG_OK;
}

/* Takes text, also when it fails. */
static int keep_text(draft *d, char *text, kg_error *err) {
    int rc = text ? grow((void **)&d->texts, &d->cap_texts, d->ntexts, sizeof *d->texts, err)
                  : kg_fail(err, KG_ENOMEM, "index entry");
    if (rc)
        free(text);
    else
        d->texts[d->ntexts++] = text;
    return rc;
}

static int keep_root(draft *d, kg_json *root, kg_error *err) {
    int rc = grow((void **)&d->roots, &d->cap_roots, d->nroots, sizeof *d->roots, err);
    if (rc)
        kg_json_free(root);
    else
        d->roots[d->nroots++] = root;
    return rc;
}

/* What the block was made of, but for the contract. */
static void drop_parts(draft *d) {
    for (size_t i = 0; i < d->nkernels; i++) {
        kg_plan_free(d->plans[i]);
        free((void *)d->kernels[i].programs);
    }
    for (size_t i = 0; i < d->ntexts; i++)
        free(d->texts[i]);
    for (size_t i = 0; i < d->nroots; i++)
        kg_json_free(d->roots[i]);
    free(d->kernels);
    free(d->plans);
    free(d->pins);
    free(d->texts);
    free(d->roots);
    free(d->task);
    d->kernels = NULL;
    d->plans = NULL;
    d->pins = NULL;
    d->texts = NULL;
    d->roots = NULL;
    d->task = NULL;
    d->nkernels = d->npins = d->ntexts = d->nroots = 0;
}

static void draft_free(draft *d) {
    drop_parts(d);
    free(d->dir);
    kg_buf_free(&d->block);
    kg_buf_free(&d->warnings);
    kg_op_free(d->op);
}

static int read_text(const char *path, size_t max, char **text, size_t *n, kg_error *err) {
    kg_buf b;
    kg_buf_init(&b, max);
    int rc = kg_read_file(path, max, &b, err);
    *n = b.len;
    *text = rc ? NULL : kg_buf_take(&b);
    kg_buf_free(&b);
    return !rc && !*text ? kg_fail(err, KG_ENOMEM, "text of %s", path) : rc;
}

static const char *env_text(const kg_json *env, const char *key) {
    const char *s;
    return kg_json_str(kg_json_get(env, key), key, &s, NULL) ? "" : s;
}

static int hash_from_hex(const char *hex, kg_hash128 *out) {
    char part[17];
    if (!kg_is_hex(hex, 32))
        return KG_EFORMAT;
    memcpy(part, hex, 16);
    part[16] = '\0';
    out->hi = strtoull(part, NULL, 16);
    out->lo = strtoull(hex + 16, NULL, 16);
    return KG_OK;
}

/* "programs" of a Record: hashes of the Programs that it was judged on. */
static int read_programs(const kg_json *record, kg_index_kernel *k, kg_error *err) {
    const kg_json *list = kg_json_get(record, "programs");
    size_t n = kg_json_size(list);
    if (!n)
        return KG_OK;
    kg_hash128 *hashes = calloc(n, sizeof *hashes);
    if (!hashes)
        return kg_fail(err, KG_ENOMEM, "%zu Programs", n);
    for (size_t i = 0; i < n; i++) {
        const char *hex = "";
        if (kg_json_str(kg_json_at(list, i), "programs", &hex, NULL) ||
            hash_from_hex(hex, &hashes[i])) {
            free(hashes);
            return kg_fail(err, KG_EFORMAT, "programs: 32 hex digits are needed, not \"%s\"", hex);
        }
    }
    k->programs = hashes;
    k->nprograms = n;
    return KG_OK;
}

/* Reads the source, checks it against id, and fills what comes from it. */
static int read_source(draft *d, const char *dir, const char *file, const kg_json *record,
                       kg_index_kernel *k, kg_plan **plan, kg_error *err) {
    char *text = NULL, id[65];
    size_t n = 0;
    if (strchr(file, '/') || file[0] == '.')
        return kg_fail(err, KG_EFORMAT, "%s: source must be a plain name", dir);
    char *path = kg_path_join(dir, file);
    int rc = path ? read_text(path, MAX_SOURCE, &text, &n, err)
                  : kg_fail(err, KG_ENOMEM, "path of a source");
    if (!rc)
        rc = kg_plan_from_source(text, n, path, d->op, plan, err);
    if (!rc)
        rc = kg_tuning_from_json(*plan, kg_json_get(record, "tunables"), "tunables", &k->tuning,
                                 err);
    if (!rc)
        rc = kg_candidate_id(text, n, *plan, &k->tuning, id, err);
    if (!rc && strcmp(id, k->id) != 0)
        rc = kg_fail(err, KG_ECORRUPT, "%s: its bytes and tunables do not give the id %.12s", path,
                     k->id);
    if (!rc)
        k->source_hash = kg_xxh128(text, n);
    free(text);
    free(path);
    return rc;
}

static int relative_source(draft *d, const char *arch, const char *id, const char *file,
                           kg_index_kernel *k, kg_error *err) {
    kg_buf path;
    kg_buf_init(&path, 0);
    kg_buf_printf(&path, "%s/%s/%s/%s", d->name, arch, id, file);
    k->source = kg_buf_take(&path);
    kg_buf_free(&path);
    return keep_text(d, (char *)k->source, err);
}

static int parse_record(draft *d, const char *dir, kg_json **record, kg_error *err) {
    char *text = NULL, *path = kg_path_join(dir, "record.json");
    size_t n = 0;
    int rc = path ? read_text(path, KG_MAX_RECORD, &text, &n, err)
                  : kg_fail(err, KG_ENOMEM, "path of a record");
    if (!rc)
        rc = kg_json_parse(text, n, path, record, err);
    if (!rc)
        rc = keep_root(d, *record, err);
    if (!rc)
        rc = kg_json_format(*record, path, 1, err);
    free(text);
    free(path);
    return rc;
}

/* A Record says what it is evidence of; in another place, or of another verdict, it is none. */
static int check_record(const draft *d, const kg_json *record, const char *arch, const char *id,
                        const char *dir, kg_error *err) {
    const struct {
        const char *key, *want;
    } said[] = {{"id", id}, {"op", d->name}, {"arch", arch}, {"verdict", "pass"}};
    for (size_t i = 0; i < sizeof said / sizeof *said; i++) {
        const char *found = NULL;
        int rc = kg_json_str(kg_json_get(record, said[i].key), said[i].key, &found, err);
        if (rc)
            return kg_fail_prefix(err, rc, "%s: record.json", dir);
        if (strcmp(found, said[i].want) != 0)
            return kg_fail(err, KG_ECORRUPT, "%s: %s of its Record is %.70s, not %.70s", dir,
                           said[i].key, found, said[i].want);
    }
    return KG_OK;
}

static int read_kernel(draft *d, const char *arch, const char *id, const char *dir, kg_error *err) {
    kg_json *record = NULL;
    kg_plan *plan = NULL;
    const char *file = NULL, *rid = NULL;
    int64_t version = 0;
    kg_index_kernel k = {0};
    int rc = parse_record(d, dir, &record, err);
    if (!rc)
        rc = check_record(d, record, arch, id, dir, err);
    if (!rc)
        rc = kg_json_str(kg_json_get(record, "source"), "source", &file, err);
    if (!rc)
        rc = kg_json_str(kg_json_get(record, "id"), "id", &rid, err);
    if (!rc)
        rc = kg_json_int(kg_json_get(record, "version"), "version", &version, err);
    if (!rc && (version < 1 || version > 1 << 30))
        rc = kg_fail(err, KG_ECORRUPT, "%s: version of its Record is %lld; a promoted one is vN",
                     dir, (long long)version);
    if (!rc) {
        const kg_json *env = kg_json_get(record, "environment");
        k.env = (kg_index_env){env_text(env, "device"), env_text(env, "torch"),
                               env_text(env, "compiler"), env_text(env, "kgen"),
                               env_text(env, "driver")};
        k.id = rid;
        k.version = (int32_t)version;
        char *own = strdup(arch);
        k.arch = own;
        rc = keep_text(d, own, err);
    }
    if (!rc)
        rc = read_source(d, dir, file, record, &k, &plan, err);
    if (!rc)
        rc = relative_source(d, arch, id, file, &k, err);
    if (!rc)
        rc = read_programs(record, &k, err);
    if (!rc && d->nkernels == d->cap_kernels) {
        size_t cap = d->cap_kernels;
        rc = grow((void **)&d->plans, &cap, d->nkernels, sizeof *d->plans, err);
    }
    if (!rc)
        rc = grow((void **)&d->kernels, &d->cap_kernels, d->nkernels, sizeof *d->kernels, err);
    if (rc) {
        kg_plan_free(plan);
        free((void *)k.programs);
        return rc;
    }
    k.plan = plan;
    d->plans[d->nkernels] = plan;
    d->kernels[d->nkernels++] = k;
    return KG_OK;
}

static int kernel_index(const draft *d, const char *arch, const char *id) {
    for (size_t i = 0; i < d->nkernels; i++)
        if (!strcmp(d->kernels[i].id, id) && !strcmp(d->kernels[i].arch, arch))
            return (int)i;
    return -1;
}

static int read_pin(draft *d, const char *arch, const char *path, const char *name, kg_error *err) {
    kg_pin pin = {0};
    kg_index_pin out = {0};
    char hash[33];
    int rc = kg_pin_read(path, &pin, err), at = -1;
    if (!rc)
        rc = kg_key_from_json(d->op, pin.key, path, &out.key, err);
    if (!rc)
        rc = kg_key_hash(d->op, &out.key, hash, err);
    if (!rc && strcmp(hash, name) != 0)
        rc = kg_fail(err, KG_ECORRUPT, "%s: its key does not give its name", path);
    if (!rc && (at = kernel_index(d, arch, pin.kernel)) < 0)
        rc = kg_fail(err, KG_ENOTFOUND, "%s: kernel %.12s is not there", path, pin.kernel);
    if (!rc)
        rc = grow((void **)&d->pins, &d->cap_pins, d->npins, sizeof *d->pins, err);
    if (!rc) {
        out.kernel = (uint32_t)at;
        d->pins[d->npins++] = out;
        rc = keep_root(d, pin.json, err); /* attributes of the key may borrow its strings */
        pin.json = NULL;
    }
    kg_pin_free(&pin);
    return rc;
}

typedef int (*entry_reader)(draft *d, const char *arch, const char *name, const char *path,
                            kg_error *err);

static int as_kernel(draft *d, const char *arch, const char *name, const char *path,
                     kg_error *err) {
    return kg_is_hex(name, 64) ? read_kernel(d, arch, name, path, err) : KG_OK;
}

static int as_pin(draft *d, const char *arch, const char *name, const char *path, kg_error *err) {
    return kg_is_hex(name, 32) ? read_pin(d, arch, path, name, err)
                               : kg_fail(err, KG_EFORMAT, "%s: not the name of a pin", path);
}

/* Each entry of dir; a bad one is warned of and left out, only lack of memory ends it. */
static int each(draft *d, const char *arch, const char *dir, entry_reader read, kg_error *err) {
    char **names = NULL;
    size_t n = 0;
    int rc = kg_is_dir(dir) ? kg_list_dir(dir, &names, &n, err) : KG_OK;
    for (size_t i = 0; !rc && i < n; i++) {
        kg_error bad = {0};
        char *path = kg_path_join(dir, names[i]);
        rc = path ? read(d, arch, names[i], path, &bad) : kg_fail(&bad, KG_ENOMEM, "%s", dir);
        if (rc == KG_ENOMEM) {
            kg_fail(err, rc, "%s", bad.msg);
        } else if (rc) {
            kg_buf_printf(&d->warnings, "left out: %s\n", bad.msg);
            rc = KG_OK;
        }
        free(path);
    }
    kg_free_names(names, n);
    return rc;
}

static int read_arch(draft *d, const char *arch, const char *dir, kg_error *err) {
    char *pins = kg_path_join(dir, "pins");
    int rc = pins ? each(d, arch, dir, as_kernel, err) : kg_fail(err, KG_ENOMEM, "path of pins");
    if (!rc)
        rc = each(d, arch, pins, as_pin, err);
    free(pins);
    return rc;
}

static void mark_ambiguous(draft *d) {
    for (size_t i = 0; i < d->nkernels; i++)
        for (size_t k = i + 1; k < d->nkernels; k++)
            if (d->kernels[i].version == d->kernels[k].version &&
                strcmp(d->kernels[i].id, d->kernels[k].id) != 0)
                d->kernels[i].ambiguous = d->kernels[k].ambiguous = true;
}

static int read_task(draft *d, kg_error *err) {
    char *task = kg_path_join(d->dir, "task");
    if (!task)
        return kg_fail(err, KG_ENOMEM, "path of a Task");
    d->task = kg_is_dir(task) ? kg_path_join(d->name, "task") : strdup("");
    free(task);
    return d->task ? KG_OK : kg_fail(err, KG_ENOMEM, "path of a Task");
}

static int read_archs(draft *d, kg_error *err) {
    char **archs = NULL;
    size_t n = 0;
    int rc = kg_list_dir(d->dir, &archs, &n, err);
    for (size_t i = 0; !rc && i < n; i++) {
        char *dir = kg_path_join(d->dir, archs[i]);
        if (!dir)
            rc = kg_fail(err, KG_ENOMEM, "path of %s", archs[i]);
        if (!rc && strcmp(archs[i], "task") != 0 && kg_is_dir(dir))
            rc = read_arch(d, archs[i], dir, err);
        free(dir);
    }
    kg_free_names(archs, n);
    return rc;
}

static int put_block(draft *d, kg_error *err) {
    const kg_index_op op = {.op = d->op,
                            .task = d->task,
                            .nkernels = d->nkernels,
                            .npins = d->npins,
                            .kernels = d->kernels,
                            .pins = d->pins};
    return kg_index_put(&d->block, &op, err);
}

static int read_op(draft *d, kg_error *err) {
    char *text = NULL, *path = kg_path_join(d->dir, "op.json");
    size_t n = 0;
    int rc = path ? read_text(path, KG_MAX_RECORD, &text, &n, err)
                  : kg_fail(err, KG_ENOMEM, "path of op.json");
    if (!rc)
        rc = kg_op_from_json(text, n, path, &d->op, err);
    if (!rc && strcmp(d->op->name, d->name) != 0)
        rc = kg_fail(err, KG_EFORMAT, "%s: the Op's name differs from its folder's", path);
    if (!rc)
        rc = read_task(d, err);
    if (!rc)
        rc = read_archs(d, err);
    if (!rc)
        mark_ambiguous(d);
    if (!rc)
        rc = put_block(d, err);
    /* In this thread and now: the next Op gets memory that is warm. */
    drop_parts(d);
    free(text);
    free(path);
    return rc;
}

/* Ops that threads take one after the other. */
typedef struct reading {
    draft *drafts;
    size_t n;
    atomic_size_t next;
} reading;

static void read_some(size_t part, size_t begin, size_t end, void *ctx) {
    reading *r = ctx;
    (void)part, (void)begin, (void)end;
    for (size_t i; (i = atomic_fetch_add(&r->next, 1)) < r->n;)
        r->drafts[i].status = read_op(&r->drafts[i], &r->drafts[i].error);
}

static size_t reading_threads(size_t nops) {
    cpu_set_t set;
    CPU_ZERO(&set);
    size_t n = sched_getaffinity(0, sizeof set, &set) == 0 ? (size_t)CPU_COUNT(&set) : 1;
    n = n > MAX_THREADS ? MAX_THREADS : n;
    return n > nops / OPS_A_THREAD ? nops / OPS_A_THREAD : n;
}

static int begin_draft(draft *d, const char *registry, const char *name, bool *folder,
                       kg_error *err) {
    *d = (draft){.name = name, .dir = kg_path_join(registry, name)};
    kg_buf_init(&d->warnings, 64 << 10);
    kg_buf_init(&d->block, 0);
    if (!d->dir)
        return kg_fail(err, KG_ENOMEM, "path of %s", name);
    *folder = name[0] != '.' && kg_is_dir(d->dir);
    return KG_OK;
}

/* What the threads had to say, in the order of the Ops' names. */
static void tell(const draft *d, kg_index_warn warn, void *ctx) {
    char text[640];
    for (const char *at = d->warnings.len ? d->warnings.data : ""; *at;) {
        int n = (int)strcspn(at, "\n");
        snprintf(text, sizeof text, "%.*s", n, at);
        warn(ctx, text);
        at += n + (at[n] == '\n');
    }
    if (d->status) {
        snprintf(text, sizeof text, "Op left out: %s", d->error.msg);
        warn(ctx, text);
    }
}

/* Drafts of all Ops that can be served stand at the front, *ndrafts of them. */
static int read_ops(const char *registry, char **names, size_t n, draft *drafts, size_t *ndrafts,
                    kg_index_warn warn, void *ctx, kg_error *err) {
    reading r = {.drafts = drafts};
    int rc = KG_OK;
    for (size_t i = 0; !rc && i < n; i++) {
        bool folder = false;
        rc = begin_draft(&drafts[r.n], registry, names[i], &folder, err);
        if (rc || !folder)
            draft_free(&drafts[r.n]);
        else
            r.n++;
    }
    size_t threads = reading_threads(r.n);
    if (!rc && threads > 1)
        kg_parallel(threads, 1, threads, read_some, &r);
    else if (!rc)
        read_some(0, 0, 1, &r);
    for (size_t i = 0; i < r.n; i++) {
        draft *d = &drafts[i];
        tell(d, warn, ctx);
        if (!rc && d->status == KG_ENOMEM)
            rc = kg_fail(err, KG_ENOMEM, "%s", d->error.msg);
        if (rc || d->status)
            draft_free(d);
        else
            drafts[(*ndrafts)++] = *d;
    }
    return rc;
}

static int write_index(const char *registry, const char *index_path, uint64_t fingerprint,
                       const draft *drafts, size_t n, kg_error *err) {
    kg_index_block *blocks = calloc(n ? n : 1, sizeof *blocks);
    if (!blocks)
        return kg_fail(err, KG_ENOMEM, "index of %zu Ops", n);
    for (size_t i = 0; i < n; i++)
        blocks[i] = (kg_index_block){
            .op = drafts[i].op, .bytes = drafts[i].block.data, .n = drafts[i].block.len};
    int rc = kg_index_write_blocks(index_path, registry, fingerprint, blocks, n, err);
    free(blocks);
    return rc;
}

static void to_log(void *ctx, const char *message) {
    (void)ctx;
    kg_log(KG_LOG_WARNING, "%s", message);
}

int kg_index_build(const char *registry, const char *index_path, kg_error *err) {
    return kg_index_build_told(registry, index_path, to_log, NULL, err);
}

int kg_index_build_told(const char *registry, const char *index_path, kg_index_warn warn, void *ctx,
                        kg_error *err) {
    char **names = NULL;
    size_t n = 0, ndrafts = 0;
    /* Taken before the files are read: a change in between makes the index stale, never wrong. */
    uint64_t fingerprint = kg_registry_fingerprint(registry);
    int rc = kg_list_dir(registry, &names, &n, err);
    draft *drafts = rc ? NULL : calloc(n ? n : 1, sizeof *drafts);
    if (!rc && !drafts)
        rc = kg_fail(err, KG_ENOMEM, "index of %zu Ops", n);
    if (!rc)
        rc = read_ops(registry, names, n, drafts, &ndrafts, warn, ctx, err);
    if (!rc)
        rc = write_index(registry, index_path, fingerprint, drafts, ndrafts, err);
    for (size_t i = 0; i < ndrafts; i++)
        draft_free(&drafts[i]);
    free(drafts);
    kg_free_names(names, n);
    return rc;
}
