/* Ops, registries and policy of the process. An index that is absent or stale is derived by the
 * libkgen.so that lies beside this library, loaded for that alone. Nothing is found through the
 * working directory. */
#include "runtime/runtime.h"

#include <dlfcn.h>
#include <limits.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/fs.h"
#include "base/log.h"
#include "runtime/process.h"
#include "runtime/ready.h"

#define MAX_OPS 4096

/* ---- Ops ---- */

/* The fronts that the shim has of its own. Their contracts are kernels/ops; a test holds the
 * schemas together. */
static const struct {
    const char *name, *schema;
    size_t nargs, noutputs;
    kg_arg_type types[11];
} canonical[] = {
    {"softmax", "softmax(Tensor input, int dim) -> Tensor", 2, 1, {KG_ARG_TENSOR, KG_ARG_INT}},
    {"attention",
     "attention(Tensor query, Tensor key, Tensor value, Tensor[] captured, float[] scalars, str "
     "program, *, float? scale=None, bool enable_gqa=False) -> (Tensor, Tensor)",
     8,
     2,
     {KG_ARG_TENSOR, KG_ARG_TENSOR, KG_ARG_TENSOR, KG_ARG_TENSOR_LIST, KG_ARG_FLOAT_LIST,
      KG_ARG_STR, KG_ARG_FLOAT_OPT, KG_ARG_BOOL}},
    {"layer_norm",
     "layer_norm(Tensor input, int[] normalized_shape, Tensor? weight=None, Tensor? bias=None, "
     "float eps=1e-05) -> Tensor",
     5,
     1,
     {KG_ARG_TENSOR, KG_ARG_INT_LIST, KG_ARG_TENSOR_OPT, KG_ARG_TENSOR_OPT, KG_ARG_FLOAT}},
    {"rms_norm",
     "rms_norm(Tensor input, int[] normalized_shape, Tensor? weight=None, float? eps=None) -> "
     "Tensor",
     4,
     1,
     {KG_ARG_TENSOR, KG_ARG_INT_LIST, KG_ARG_TENSOR_OPT, KG_ARG_FLOAT_OPT}},
    {"linear",
     "linear(Tensor input, Tensor weight, Tensor? bias, Tensor[] captured, float[] scalars, str "
     "program) -> Tensor",
     6,
     1,
     {KG_ARG_TENSOR, KG_ARG_TENSOR, KG_ARG_TENSOR_OPT, KG_ARG_TENSOR_LIST, KG_ARG_FLOAT_LIST,
      KG_ARG_STR}},
    {"matmul",
     "matmul(Tensor input, Tensor other, Tensor[] captured, float[] scalars, str program) -> "
     "Tensor",
     5,
     1,
     {KG_ARG_TENSOR, KG_ARG_TENSOR, KG_ARG_TENSOR_LIST, KG_ARG_FLOAT_LIST, KG_ARG_STR}},
    {"conv2d",
     "conv2d(Tensor input, Tensor weight, Tensor? bias, int[] stride, int[] padding, int[] "
     "dilation, int groups, bool channels_last, Tensor[] captured, float[] scalars, str program) "
     "-> Tensor",
     11,
     1,
     {KG_ARG_TENSOR, KG_ARG_TENSOR, KG_ARG_TENSOR_OPT, KG_ARG_INT_LIST, KG_ARG_INT_LIST,
      KG_ARG_INT_LIST, KG_ARG_INT, KG_ARG_BOOL, KG_ARG_TENSOR_LIST, KG_ARG_FLOAT_LIST, KG_ARG_STR}},
};

static pthread_mutex_t ops_lock = PTHREAD_MUTEX_INITIALIZER;
static kg_rt_op *ops[MAX_OPS]; /* for ever */
static size_t nops;

static kg_rt_op *known_op(const char *name) {
    for (size_t i = 0; i < nops; i++)
        if (strcmp(ops[i]->name, name) == 0)
            return ops[i];
    return NULL;
}

static int new_op(const char *name, const char *schema, kg_rt_op **out, kg_error *err) {
    kg_rt_op *op = nops < MAX_OPS ? calloc(1, sizeof(*op)) : NULL;
    if (op != NULL) {
        op->name = strdup(name);
        op->schema = strdup(schema);
    }
    if (op == NULL || op->name == NULL || op->schema == NULL) {
        if (op != NULL) {
            free(op->name);
            free(op->schema);
        }
        free(op);
        return kg_fail(err, KG_ENOMEM, "no room for the op %s", name);
    }
    op->id = (uint32_t)nops;
    ops[nops++] = op;
    *out = op;
    return KG_OK;
}

static int op_from_contract(const kg_op *contract, kg_rt_op **out, kg_error *err) {
    kg_rt_op *op;
    int rc = new_op(contract->name, contract->schema, &op, err);
    if (rc != KG_OK)
        return rc;
    op->nargs = contract->nargs;
    op->noutputs = contract->noutputs;
    for (size_t i = 0; i < contract->nargs; i++)
        op->types[i] = contract->args[i].type;
    *out = op;
    return KG_OK;
}

/* The first registry that has the Op says what it is. Called inside a reader. */
static int op_from_registries(const char *name, kg_rt_op **out, kg_error *err) {
    const kg_snapshot *s = kg_snapshot_current();
    kg_buf names;
    kg_buf_init(&names, 300);
    for (size_t i = 0; s != NULL && i < s->nregs; i++) {
        const kg_index_op *block;
        kg_index *index = s->regs[i]->index;
        int at = kg_index_find(index, name);
        if (at >= 0) {
            kg_buf_free(&names);
            int rc = kg_index_get(index, (size_t)at, &block, err);
            return rc == KG_OK ? op_from_contract(block->op, out, err) : rc;
        }
        for (size_t k = 0; k < kg_index_count(index); k++)
            kg_buf_printf(&names, "%s%s", names.len > 0 ? ", " : "", kg_index_name(index, k));
    }
    int rc = kg_fail(err, KG_ENOTFOUND, "no open registry has the Op %s; they have: %s", name,
                     names.len > 0 ? names.data : "none");
    kg_buf_free(&names);
    return rc;
}

int kg_rt_find_op(const char *name, const kg_rt_op **out, kg_error *err) {
    int rc = KG_OK;
    kg_reader_slot *me = kg_reader_enter();
    if (me == NULL)
        return kg_fail(err, KG_ENOMEM, "no memory for a thread's slot");
    pthread_mutex_lock(&ops_lock);
    kg_rt_op *op = known_op(name);
    if (op == NULL)
        rc = op_from_registries(name, &op, err);
    pthread_mutex_unlock(&ops_lock);
    kg_reader_leave(me);
    if (rc == KG_OK)
        *out = op;
    return rc;
}

static int add_canonical(kg_error *err) {
    int rc = KG_OK;
    for (size_t i = 0; rc == KG_OK && i < sizeof(canonical) / sizeof(canonical[0]); i++) {
        kg_rt_op *op;
        rc = new_op(canonical[i].name, canonical[i].schema, &op, err);
        if (rc != KG_OK)
            break;
        op->canonical = true;
        op->nargs = canonical[i].nargs;
        op->noutputs = canonical[i].noutputs;
        memcpy(op->types, canonical[i].types, sizeof(canonical[i].types));
    }
    return rc;
}

/* ---- settings ---- */

static const char *const policies[] = {"arch", "strict", "off"};

static int parse_policy(const char *name, kg_policy *out, kg_error *err) {
    for (size_t i = 0; i < sizeof(policies) / sizeof(policies[0]); i++)
        if (strcmp(policies[i], name) == 0) {
            *out = (kg_policy)i;
            return KG_OK;
        }
    return kg_fail(err, KG_EINVAL, "policy \"%s\"; it is strict, arch or off", name);
}

static int parse_precision(const char *name, int *out, kg_error *err) {
    static const char *const names[] = {"native", "tf32", "bf16"};
    for (int i = 0; i < 3; i++)
        if (strcmp(names[i], name) == 0) {
            *out = i;
            return KG_OK;
        }
    if (strcmp(name, "fp32") == 0) {
        *out = KG_PREC_NATIVE;
        return KG_OK;
    }
    return kg_fail(err, KG_EINVAL, "KGEN_PRECISION=%s; it is fp32, tf32 or bf16", name);
}

static const char *environment(const char *name) {
    const char *value = getenv(name);
    return value != NULL && value[0] != '\0' ? value : NULL;
}

/* ---- registries ---- */

typedef int (*index_builder)(const char *, const char *, void (*)(void *, const char *), void *,
                             char *, size_t);

/* libkgen.so beside the library that this code is in. */
static index_builder find_builder(kg_error *err) {
    static void *lib;
    Dl_info here;
    char path[PATH_MAX];
    index_builder build = NULL;
    if (lib == NULL) {
        const char *slash =
            dladdr((void *)policies, &here) != 0 ? strrchr(here.dli_fname, '/') : NULL;
        int n = slash != NULL ? snprintf(path, sizeof(path), "%.*s/libkgen.so",
                                         (int)(slash - here.dli_fname), here.dli_fname)
                              : -1;
        if (n > 0 && (size_t)n < sizeof(path))
            lib = dlopen(path, RTLD_NOW | RTLD_LOCAL);
        if (lib == NULL) {
            const char *why = dlerror();
            kg_fail(err, KG_EENV, "its index must be derived and libkgen.so cannot be loaded (%s)",
                    why != NULL ? why : "its path is not known");
            return NULL;
        }
    }
    void *symbol = dlsym(lib, "kgen_index_build_told");
    memcpy(&build, &symbol, sizeof(build));
    if (build == NULL)
        kg_fail(err, KG_EENV, "libkgen.so has no kgen_index_build_told: the installation is mixed");
    return build;
}

static void left_out(void *registry, const char *message) {
    kg_log(KG_LOG_WARNING, "registry %s: %s", (const char *)registry, message);
}

static int derive(const char *registry, const char *path, kg_error *err) {
    char text[400] = "";
    index_builder build = find_builder(err);
    if (build == NULL)
        return KG_EENV;
    int rc = build(registry, path, left_out, (void *)(uintptr_t)registry, text, sizeof(text));
    return rc == KG_OK ? KG_OK : kg_fail(err, rc, "%s", text);
}

/* Where the cache cannot be written, the index is derived into a folder of its own and forgotten.
 */
static int derive_aside(const char *registry, uint64_t fingerprint, kg_index **out, kg_error *err) {
    const char *tmp = environment("TMPDIR");
    char folder[PATH_MAX], path[PATH_MAX + 8];
    snprintf(folder, sizeof(folder), "%s/kgen-index-XXXXXX", tmp != NULL ? tmp : "/tmp");
    if (mkdtemp(folder) == NULL)
        return KG_EIO;
    snprintf(path, sizeof(path), "%s/index", folder);
    int rc = derive(registry, path, err);
    if (rc == KG_OK)
        rc = kg_index_open(path, registry, fingerprint, out, err);
    kg_remove_tree(folder, NULL);
    return rc;
}

static int open_index(const char *registry, uint64_t fingerprint, kg_index **out, kg_error *err) {
    char *path = kg_index_path(registry);
    int rc = path != NULL ? kg_index_open(path, registry, fingerprint, out, err) : KG_EIO;
    if (rc != KG_OK && path != NULL) {
        rc = derive(registry, path, err);
        if (rc == KG_OK) /* a registry that changed meanwhile is read again at the next chance */
            rc = kg_index_open(path, registry, kg_registry_fingerprint(registry), out, err);
    }
    free(path);
    if (rc != KG_OK && rc != KG_EENV) {
        kg_error e = *err;
        rc = derive_aside(registry, fingerprint, out, err);
        if (rc != KG_OK)
            *err = e;
    }
    return rc == KG_OK ? KG_OK : kg_fail_prefix(err, rc, "registry %s", registry);
}

static int open_registry(const char *path, kg_reg **out, kg_error *err) {
    uint64_t fingerprint = kg_registry_fingerprint(path);
    if (fingerprint == 0)
        return kg_fail(err, KG_ENOTFOUND, "registry %s: there is no such folder", path);
    kg_reg *r = calloc(1, sizeof(*r));
    char *copy = strdup(path);
    if (r == NULL || copy == NULL) {
        free(r);
        free(copy);
        return kg_fail(err, KG_ENOMEM, "no memory for a registry");
    }
    r->path = copy;
    r->fingerprint = fingerprint;
    atomic_store(&r->refs, 1);
    int rc = open_index(path, fingerprint, &r->index, err);
    if (rc != KG_OK)
        kg_reg_release(r);
    else
        *out = r;
    return rc;
}

/* Under the writers' lock. Takes one reference of each reg in the list, also after a failure. */
static int publish(kg_reg **regs, size_t n, kg_policy policy, kg_error *err) {
    kg_snapshot *s = kg_snapshot_new(regs, n, policy);
    for (size_t i = 0; i < n; i++)
        kg_reg_release(regs[i]);
    if (s == NULL)
        return kg_fail(err, KG_ENOMEM, "no memory for the registries");
    kg_ready_forget_failures();
    kg_snapshot_publish(s);
    return KG_OK;
}

static size_t share_regs(const kg_snapshot *s, kg_reg **out) {
    size_t n = s != NULL ? s->nregs : 0;
    for (size_t i = 0; i < n; i++) {
        out[i] = s->regs[i];
        atomic_fetch_add(&out[i]->refs, 1);
    }
    return n;
}

static int place(kg_reg *r, bool front, kg_error *err) {
    kg_reg *regs[KG_MAX_REGISTRIES + 1];
    const kg_snapshot *s = kg_snapshot_current();
    size_t n = share_regs(s, regs), at = 0;
    while (at < n && strcmp(regs[at]->path, r->path) != 0)
        at++;
    if (at < n) {
        kg_reg_release(regs[at]);
        regs[at] = r;
    } else {
        if (front)
            memmove(regs + 1, regs, n * sizeof(regs[0]));
        regs[front ? 0 : n] = r;
        n++;
    }
    if (n <= KG_MAX_REGISTRIES)
        return publish(regs, n, s != NULL ? s->policy : KG_POLICY_ARCH, err);
    for (size_t i = 0; i < n; i++)
        kg_reg_release(regs[i]);
    return kg_fail(err, KG_EOVERFLOW, "at most %d registries may be open", KG_MAX_REGISTRIES);
}

int kg_rt_add_registry(const char *path, bool front, kg_error *err) {
    kg_error local;
    kg_reg *r;
    char full[PATH_MAX];
    err = err != NULL ? err : &local;
    if (realpath(path, full) == NULL)
        return kg_fail(err, KG_ENOTFOUND, "registry %s: there is no such folder", path);
    int rc = open_registry(full, &r, err);
    if (rc != KG_OK)
        return rc;
    kg_writers_lock();
    rc = place(r, front, err);
    kg_writers_unlock();
    return rc;
}

int kg_rt_remove_registry(const char *path, kg_error *err) {
    kg_reg *regs[KG_MAX_REGISTRIES];
    char full[PATH_MAX];
    const char *name = realpath(path, full) != NULL ? full : path;
    kg_writers_lock();
    const kg_snapshot *s = kg_snapshot_current();
    size_t n = share_regs(s, regs), at = 0;
    while (at < n && strcmp(regs[at]->path, name) != 0)
        at++;
    bool found = at < n;
    if (found) {
        kg_reg_release(regs[at]);
        memmove(regs + at, regs + at + 1, (n - at - 1) * sizeof(regs[0]));
        n--;
    }
    int rc = publish(regs, n, s != NULL ? s->policy : KG_POLICY_ARCH, err);
    kg_writers_unlock();
    if (rc == KG_OK && !found)
        rc = kg_fail(err, KG_ENOTFOUND, "registry %s is not open", path);
    return rc;
}

/* Under the writers' lock: *slot becomes a fresh one when the folder changed. */
static bool refresh(kg_reg **slot, kg_error *err) {
    kg_reg *fresh;
    if (kg_registry_fingerprint((*slot)->path) == (*slot)->fingerprint)
        return true;
    if (open_registry((*slot)->path, &fresh, err) != KG_OK)
        return false;
    kg_reg_release(*slot);
    *slot = fresh;
    return true;
}

int kg_rt_reload(kg_error *err) {
    kg_reg *regs[KG_MAX_REGISTRIES];
    kg_error local, first = {0};
    int failed = KG_OK;
    kg_writers_lock();
    const kg_snapshot *s = kg_snapshot_current();
    size_t n = share_regs(s, regs);
    for (size_t i = 0; i < n; i++)
        if (!refresh(&regs[i], &local) && failed == KG_OK) {
            failed = local.code; /* the others are still looked at, and this one stays as it was */
            first = local;
        }
    int rc = publish(regs, n, s != NULL ? s->policy : KG_POLICY_ARCH, &local);
    kg_writers_unlock();
    if (rc == KG_OK && failed != KG_OK)
        return kg_fail(err, failed, "%s", first.msg);
    return rc == KG_OK ? KG_OK : kg_fail(err, rc, "%s", local.msg);
}

int kg_rt_set_policy(const char *name, kg_error *err) {
    kg_reg *regs[KG_MAX_REGISTRIES];
    kg_policy policy = KG_POLICY_ARCH;
    int rc = parse_policy(name, &policy, err);
    if (rc != KG_OK)
        return rc;
    kg_writers_lock();
    rc = publish(regs, share_regs(kg_snapshot_current(), regs), policy, err);
    kg_writers_unlock();
    return rc;
}

const char *kg_rt_policy(void) {
    kg_reader_slot *me = kg_reader_enter();
    const kg_snapshot *s = me != NULL ? kg_snapshot_current() : NULL;
    const char *name = policies[s != NULL ? s->policy : KG_POLICY_ARCH];
    if (me != NULL)
        kg_reader_leave(me);
    return name;
}

int kg_rt_start(const kg_host *host, const char *torch_version, kg_error *err) {
    const char *policy = environment("KGEN_POLICY"), *precision = environment("KGEN_PRECISION");
    const char *disable = environment("KGEN_DISABLE");
    kg_process *p = &kg_proc_state;
    p->host = host;
    p->disabled = disable != NULL && strcmp(disable, "0") != 0;
    kg_here_fill(&p->here, torch_version);
    kg_policy chosen = KG_POLICY_ARCH;
    if (policy != NULL && parse_policy(policy, &chosen, err) != KG_OK)
        return kg_fail_prefix(err, KG_EINVAL, "KGEN_POLICY");
    if (precision != NULL && parse_precision(precision, &p->precision, err) != KG_OK)
        return KG_EINVAL;
    int rc = nops == 0 ? add_canonical(err) : KG_OK;
    if (rc != KG_OK)
        return rc;
    kg_writers_lock();
    rc = publish(NULL, 0, chosen, err);
    kg_writers_unlock();
    return rc;
}
