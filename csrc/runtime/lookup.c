/* Chooses a pin for a call and turns its Kernel into functions. What cannot be used is passed over
 * with a reason, a broken Kernel with a warning that names it; the caller then falls back. */
#include "runtime/lookup.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/fs.h"
#include "base/log.h"
#include "runtime/quarantine.h"
#include "runtime/ready.h"
#include "sys/cc.h"
#include "sys/nvrtc.h"

typedef struct candidate {
    kg_reg *reg;
    const kg_index_op *block;
    size_t nblock; /* the block's number in the index */
    const kg_index_pin *pin;
    const kg_index_kernel *kernel;
    bool exact;
    int64_t arch;
    double distance;
    size_t rank; /* of the registry */
} candidate;

typedef struct search {
    const kg_here *here;
    const kg_rt_op *op;
    const kg_call *call;
    kg_place place; /* of the call's device */
    bool recording;
    kg_dims dims;
    kg_key key;
    candidate *found;
    size_t nfound, cap;
    kg_buf *notes;
} search;

static void say(kg_buf *notes, const char *kernel, const char *why) {
    if (notes != NULL)
        kg_buf_printf(notes, "%s: %s\n", kernel, why);
}

void kg_kernel_name(const kg_index_op *block, const kg_index_kernel *k, char out[128]) {
    if (k->ambiguous)
        snprintf(out, 128, "%.100s/v%d-%.4s", block->op->name, k->version, k->id);
    else
        snprintf(out, 128, "%.100s/v%d", block->op->name, k->version);
}

/* ---- the environment ---- */

static void cpu_name(char out[128]) {
    FILE *f = fopen("/proc/cpuinfo", "re");
    char line[512];
    out[0] = '\0';
    while (f != NULL && out[0] == '\0' && fgets(line, sizeof(line), f) != NULL) {
        char *value = strchr(line, ':');
        if (strncmp(line, "model name", 10) != 0 || value == NULL)
            continue;
        value += strspn(value, ": \t");
        value[strcspn(value, "\n")] = '\0';
        snprintf(out, 128, "%.127s", value);
    }
    if (f != NULL)
        fclose(f);
}

void kg_here_fill(kg_here *here, const char *torch_version) {
    memset(here, 0, sizeof(*here));
    if (torch_version != NULL)
        snprintf(here->torch, sizeof(here->torch), "%.*s", (int)strcspn(torch_version, "+"),
                 torch_version);
    cpu_name(here->device);
    here->level = kg_cpu_level();
    here->has_amx = kg_cpu_has_amx();
}

/* What follows the compiler's name: cc and gcc are one program. */
static const char *after_name(const char *version) {
    const char *rest = strchr(version, ' ');
    return rest != NULL ? rest + 1 : version;
}

/* A Record has the compiler's whole first line or, written by hand, "gcc 12.2.0": then the number
 * must be the last word of ours. */
static bool same_compiler(const char *recorded, const char **ours) {
    const kg_cc *cc;
    *ours = "no compiler";
    if (kg_cc_find(&cc, NULL) != KG_OK)
        return false;
    *ours = cc->version;
    if ((strstr(recorded, "clang") != NULL) != (strcmp(cc->kind, "clang") == 0))
        return false;
    const char *theirs = after_name(recorded), *mine = after_name(cc->version);
    const char *last = strrchr(mine, ' ');
    return strcmp(theirs, mine) == 0 ||
           (strchr(theirs, ' ') == NULL && strcmp(theirs, last != NULL ? last + 1 : mine) == 0);
}

int kg_place_of(const kg_here *here, int device, int32_t index, kg_place *out, kg_error *err) {
    const kg_cuda_device *gpu = NULL;
    const kg_nvrtc *nvrtc = NULL;
    *out = (kg_place){.device = here->device, .driver = "", .arch = here->level};
    if (device == KG_CPU)
        return KG_OK;
    int rc = kg_cuda_device_get(index, &gpu, err);
    if (rc != KG_OK)
        return rc;
    out->device = gpu->name;
    out->driver = kg_cuda_driver_name();
    out->arch = gpu->arch;
    out->sms = gpu->sms;
    out->max_shared = gpu->max_shared;
    if (kg_nvrtc_find(&nvrtc, NULL) == KG_OK)
        snprintf(out->compiler, sizeof(out->compiler), "NVRTC %d.%d", nvrtc->major, nvrtc->minor);
    else
        snprintf(out->compiler, sizeof(out->compiler), "no NVRTC");
    return KG_OK;
}

static bool same_builder(const kg_call *call, const kg_index_kernel *k, const kg_place *place,
                         const char **ours) {
    if (call->device == KG_CPU)
        return same_compiler(k->env.compiler, ours);
    *ours = place->compiler;
    return strcmp(k->env.compiler, place->compiler) == 0;
}

bool kg_kernel_verified(const kg_here *here, const kg_call *call, const kg_index_kernel *k,
                        char *why) {
    const char *field = NULL, *recorded = "", *ours = "";
    kg_place place;
    kg_error e = {.msg = ""};
    if (kg_place_of(here, call->device, call->device_index, &place, &e) != KG_OK) {
        if (why != NULL)
            snprintf(why, 256, "%.255s", e.msg);
        return false;
    }
    if (strcmp(k->env.kgen, KGEN_VERSION) != 0) {
        field = "kgen", recorded = k->env.kgen, ours = KGEN_VERSION;
    } else if (strncmp(k->env.torch, here->torch, strcspn(k->env.torch, "+")) != 0 ||
               strlen(here->torch) != strcspn(k->env.torch, "+")) {
        field = "torch", recorded = k->env.torch, ours = here->torch;
    } else if (strcmp(k->env.device, place.device) != 0) {
        field = "device", recorded = k->env.device, ours = place.device;
    } else if (strcmp(k->env.driver, place.driver) != 0) {
        field = "driver", recorded = k->env.driver, ours = place.driver;
    } else if (!same_builder(call, k, &place, &ours)) {
        field = "compiler", recorded = k->env.compiler;
    }
    if (field != NULL && why != NULL)
        snprintf(why, 256, "judged with %s %.100s, here is %.100s", field,
                 recorded[0] != '\0' ? recorded : "unknown", ours[0] != '\0' ? ours : "unknown");
    return field == NULL;
}

/* Whether the machine can run what was judged on that architecture. A CUDA Kernel is built for the
 * device that it meets, so an older architecture's serves a newer one; from 9.0 on it may use what
 * only that architecture has (sm_90a), and serves its own generation alone. */
static bool runs_here(const kg_here *here, int device, const kg_place *place, const char *arch) {
    if (kg_arch_target(arch) != device)
        return false;
    int64_t code = kg_arch_code(arch);
    if (device == KG_CUDA)
        return code <= place->arch && (code < 90 || code / 10 == place->arch / 10);
    if (strncmp(arch, "x86-64", 6) == 0)
        return here->level > 0 && code <= here->level;
    return here->level == 0;
}

/* ---- candidates ---- */

static void add_block(search *s, size_t rank, kg_reg *reg, size_t nblock,
                      const kg_index_op *block) {
    char why[256], name[128];
    for (size_t i = 0; i < block->npins; i++) {
        const kg_index_pin *pin = &block->pins[i];
        const kg_index_kernel *k = &block->kernels[pin->kernel];
        kg_kernel_name(block, k, name);
        if (!runs_here(s->here, s->call->device, &s->place, k->arch)) {
            snprintf(why, sizeof(why), "is for %.40s, which this %s is not", k->arch,
                     s->call->device == KG_CUDA ? "device" : "machine");
            say(s->notes, name, why);
            continue;
        }
        if (!kg_key_match(block->op, &pin->key, &s->key, s->notes != NULL ? why : NULL)) {
            say(s->notes, name, why);
            continue;
        }
        if (pin->key.program == KG_PROGRAM_ANY && (s->call->skip_outputs & KG_TORCH_IS_FAST)) {
            say(s->notes, name, "program: the pin is for any, and torch has its own for this one");
            continue;
        }
        if (s->nfound == s->cap) {
            size_t cap = s->cap > 0 ? 2 * s->cap : 16;
            candidate *more = realloc(s->found, cap * sizeof(*more));
            if (more == NULL)
                return; /* fewer to choose from */
            s->found = more;
            s->cap = cap;
        }
        s->found[s->nfound++] = (candidate){.reg = reg,
                                            .block = block,
                                            .nblock = nblock,
                                            .pin = pin,
                                            .kernel = k,
                                            .exact = kg_key_exact(&pin->key),
                                            .arch = kg_arch_code(k->arch),
                                            .distance = kg_key_distance(&pin->key, &s->key),
                                            .rank = rank};
    }
}

/* The first registry wins; in it an exact pin, then one judged on this very Program, then on no
 * more than is wanted, then the richer architecture, then the nearest. */
static int better(const void *pa, const void *pb) {
    const candidate *a = pa, *b = pb;
    bool any_a = a->pin->key.program == KG_PROGRAM_ANY,
         any_b = b->pin->key.program == KG_PROGRAM_ANY;
    if (a->rank != b->rank)
        return a->rank < b->rank ? -1 : 1;
    if (a->exact != b->exact)
        return a->exact ? -1 : 1;
    if (any_a != any_b)
        return any_b ? -1 : 1;
    if (a->pin->key.skip != b->pin->key.skip)
        return a->pin->key.skip > b->pin->key.skip ? -1 : 1;
    if (a->arch != b->arch)
        return a->arch > b->arch ? -1 : 1;
    return a->distance < b->distance ? -1 : a->distance > b->distance;
}

/* A registry whose contract of the Op is another than the one that this process's op was defined
 * by. */
static bool same_contract(const kg_rt_op *op, const kg_reg *reg, size_t nblock) {
    if (strcmp(kg_index_schema(reg->index, nblock), op->schema) == 0)
        return true;
    kg_log_once(
        KG_LOG_WARNING,
        "%s: its contract of %s is another than this kgen's (%s); its Kernels are not served",
        reg->path, op->name, op->schema);
    return false;
}

static void gather(const kg_snapshot *snap, search *s) {
    bool keyed = false;
    kg_error e;
    for (size_t i = 0; i < snap->nregs; i++) {
        kg_reg *reg = snap->regs[i];
        const kg_index_op *block;
        int at = kg_index_find(reg->index, s->op->name);
        if (at < 0 || !same_contract(s->op, reg, (size_t)at))
            continue;
        if (kg_index_get(reg->index, (size_t)at, &block, &e) != KG_OK) {
            kg_log_once(KG_LOG_WARNING, "%s: %s", reg->path, e.msg);
            continue;
        }
        int rc = kg_op_dims(block->op, s->call, &s->dims, &e);
        if (rc == KG_OK)
            rc = kg_key_of_call(block->op, s->call, &s->dims, &s->key, &e);
        if (rc != KG_OK) {
            say(s->notes, s->op->name, e.msg);
            continue;
        }
        keyed = true;
        add_block(s, i, reg, (size_t)at, block);
    }
    if (keyed && s->nfound > 1)
        qsort(s->found, s->nfound, sizeof(*s->found), better);
}

/* ---- trust ---- */

static bool judged_with(const candidate *c, const kg_key *call) {
    for (size_t i = 0; i < c->block->npins; i++) {
        const kg_key *k = &c->block->pins[i].key;
        if (c->block->pins[i].kernel == c->pin->kernel && k->program == call->program &&
            (k->program == KG_PROGRAM_NONE || (k->program_hash.lo == call->program_hash.lo &&
                                               k->program_hash.hi == call->program_hash.hi)))
            return true;
    }
    for (size_t i = 0; i < c->kernel->nprograms; i++)
        if (call->program == KG_PROGRAM_HASH &&
            c->kernel->programs[i].lo == call->program_hash.lo &&
            c->kernel->programs[i].hi == call->program_hash.hi)
            return true;
    return false;
}

static kg_hash128 trusted[4096]; /* under the writers' lock */
static size_t ntrusted;

static kg_hash128 trust_key(const char *kernel_id, kg_hash128 image) {
    struct {
        kg_hash128 image;
        uint64_t id;
    } both = {image, kg_xxh64(kernel_id, strlen(kernel_id))};
    return kg_xxh128(&both, sizeof(both));
}

static char *trust_path(kg_hash128 key) {
    char name[64] = "instantiated/";
    char *cache = kg_cache_dir();
    kg_hash128_hex(key, name + strlen(name));
    char *path = cache != NULL ? kg_path_join(cache, name) : NULL;
    free(cache);
    return path;
}

bool kg_trust_known(const char *kernel_id, kg_hash128 image) {
    kg_hash128 key = trust_key(kernel_id, image);
    for (size_t i = 0; i < ntrusted; i++)
        if (trusted[i].lo == key.lo && trusted[i].hi == key.hi)
            return true;
    char *path = trust_path(key);
    bool known = path != NULL && kg_is_file(path);
    free(path);
    return known;
}

/* A cache that cannot be written only makes the next process compare again. A process that is
 * locked for a Candidate is not one to be believed later. */
void kg_trust_store(const kg_class *c) {
    kg_hash128 key = trust_key(c->kernel->id, c->image);
    if (ntrusted < sizeof(trusted) / sizeof(trusted[0]))
        trusted[ntrusted++] = key;
    if (kg_launch_hooked())
        return;
    char *cache = kg_cache_dir(), *path = trust_path(key);
    char *folder = cache != NULL ? kg_path_join(cache, "instantiated") : NULL;
    if (folder != NULL && path != NULL && kg_mkdirs(folder, NULL) == KG_OK)
        kg_write_atomic(path, c->kernel->id, strlen(c->kernel->id), NULL);
    free(folder);
    free(path);
    free(cache);
}

/* ---- from a candidate to a class ---- */

static bool policy_allows(const kg_snapshot *snap, const search *s, const candidate *c,
                          bool instantiated, const char *name) {
    char why[256];
    if (snap->policy != KG_POLICY_STRICT)
        return true;
    if (instantiated) {
        say(s->notes, name, "was not judged on this Program, and the policy is strict");
        return false;
    }
    if (kg_kernel_verified(s->here, s->call, c->kernel, why))
        return true;
    say(s->notes, name, why);
    kg_log_once(KG_LOG_WARNING,
                "%s is not served under the policy strict: %s; `kgen verify` judges "
                "it here",
                name, why);
    return false;
}

static kg_served_kind kind_of(const candidate *c, bool instantiated) {
    if (instantiated)
        return KG_SERVED_INSTANTIATED;
    return c->exact ? KG_SERVED_EXACT : KG_SERVED_DYNAMIC;
}

static kg_class *new_class(const kg_rt_op *op, const void *signature, size_t n, uint64_t hash) {
    kg_class *c = calloc(1, sizeof(*c) + n);
    if (c == NULL)
        return NULL;
    c->op = op;
    c->hash = hash;
    c->nsignature = n;
    c->kind = KG_SERVED_FALLBACK;
    memcpy(c->signature, signature, n);
    return c;
}

static bool is_quarantined(const search *s, const candidate *c, const char *name) {
    char why[512];
    if (s->call->device != KG_CUDA || !kg_quarantined(c->kernel->id, s->place.device, why))
        return false;
    say(s->notes, name, why);
    kg_log_once(KG_LOG_WARNING, "%s %s", name, why);
    return true;
}

/* What goes into expressions: of a CUDA device what it is, of a CPU what the Kernel was made for.
 */
static kg_constants constants_of(const search *s, const candidate *c, int threads) {
    kg_constants k = {.num_threads = threads, .arch = c->arch, .has_amx = s->here->has_amx};
    if (s->call->device == KG_CUDA)
        k = (kg_constants){
            .num_sms = s->place.sms, .max_shared = s->place.max_shared, .arch = s->place.arch};
    return k;
}

/* KG_OK: the class is ready. KG_ENOTFOUND: not this one, said in the notes. KG_EBUSY and KG_EDEVICE
 * are raised. */
static int try_candidate(const kg_snapshot *snap, const search *s, const candidate *c, int threads,
                         kg_class *out, kg_error *err) {
    char name[128];
    bool judged = judged_with(c, &s->key);
    bool instantiated = !judged && c->pin->key.program == KG_PROGRAM_ANY;
    kg_kernel_name(c->block, c->kernel, name);
    if (!policy_allows(snap, s, c, instantiated, name) || is_quarantined(s, c, name))
        return KG_ENOTFOUND;
    char arch[16];
    snprintf(arch, sizeof(arch), "sm_%lld", (long long)s->place.arch);
    kg_ready_request ask = {.index = c->reg->index,
                            .nblock = c->nblock,
                            .block = c->block,
                            .kernel = c->kernel,
                            .nkernel = c->pin->kernel,
                            .name = name,
                            .registry = c->reg->path,
                            .call = s->call,
                            .skip = c->pin->key.skip,
                            .exact = c->exact ? &s->dims : NULL,
                            .constants = constants_of(s, c, threads),
                            .arch = s->call->device == KG_CUDA ? arch : c->kernel->arch,
                            .recording = s->recording};
    int rc = kg_ready_build(&ask, &out->ready, &out->image, err);
    if (rc != KG_OK) {
        say(s->notes, name, err->msg);
        if (rc == KG_EBUSY || rc == KG_EDEVICE)
            return rc;
        if (rc != KG_ENOTFOUND)
            kg_log_once(KG_LOG_WARNING, "%s falls back to torch: %s", s->op->name, err->msg);
        return KG_ENOTFOUND;
    }
    out->kind = kind_of(c, instantiated);
    out->block = c->block;
    out->kernel = c->kernel;
    out->reg = c->reg;
    int trust = KG_TRUST_JUDGED;
    if (instantiated && snap->policy != KG_POLICY_OFF)
        trust = kg_trust_known(c->kernel->id, out->image) ? KG_TRUST_CHECKED : KG_TRUST_UNKNOWN;
    atomic_store(&out->ready.trust, trust);
    return KG_OK;
}

int kg_lookup(const kg_snapshot *snap, const kg_here *here, const kg_rt_op *op, const kg_call *call,
              int threads, bool recording, const void *signature, size_t nsignature, uint64_t hash,
              kg_buf *notes, kg_class **out, kg_error *err) {
    kg_error e = {.code = KG_ENOTFOUND, .msg = "no pin fits"};
    search s = {.here = here, .op = op, .call = call, .notes = notes, .recording = recording};
    kg_class *c = new_class(op, signature, nsignature, hash);
    int rc = KG_ENOTFOUND;
    if (c == NULL)
        return kg_fail(err, KG_ENOMEM, "no memory for a call class");
    if (kg_place_of(here, call->device, call->device_index, &s.place, &e) == KG_OK)
        gather(snap, &s);
    else
        say(notes, op->name, e.msg);
    for (size_t i = 0; rc == KG_ENOTFOUND && i < s.nfound; i++)
        rc = try_candidate(snap, &s, &s.found[i], threads, c, &e);
    free(s.found);
    if (rc != KG_OK && rc != KG_ENOTFOUND) {
        free(c);
        return kg_fail(err, rc, "%s", e.msg);
    }
    *out = c;
    return KG_OK;
}

/* ---- the nearest, for a miss ---- */

/* How far a pin is from a call: fields that no shape can cure weigh most. */
static double gap(const kg_key *pin, const kg_key *call) {
    double far = 0;
    far += pin->device != call->device ? 1e6 : 0;
    far += pin->precision != call->precision ? 1e5 : 0;
    for (size_t i = 0; i < call->ntensors && i < pin->ntensors; i++) {
        far += pin->dtype[i] != call->dtype[i] ? 1e4 : 0;
        far += pin->layout[i] != call->layout[i] ? 10 : 0;
    }
    far += pin->program != call->program && pin->program != KG_PROGRAM_ANY ? 1e3 : 0;
    for (size_t i = 0; i < call->ndims && i < pin->ndims; i++) {
        double low = (double)pin->min[i], high = (double)pin->max[i], at = (double)call->min[i];
        if (at < low)
            far += 1 + log2((low + 1) / (at + 1));
        else if (at > high)
            far += 1 + log2((at + 1) / (high + 1));
    }
    return far;
}

bool kg_lookup_nearest(const kg_snapshot *snap, const kg_rt_op *op, const kg_call *call,
                       char kernel[128], char differs[256]) {
    double best = INFINITY;
    bool has_op = false;
    kernel[0] = differs[0] = '\0';
    for (size_t i = 0; i < snap->nregs; i++) {
        const kg_index_op *block;
        kg_dims dims;
        kg_key key;
        kg_error e;
        kg_index *index = snap->regs[i]->index;
        int at = kg_index_find(index, op->name);
        if (at < 0 || kg_index_get(index, (size_t)at, &block, NULL) != KG_OK)
            continue;
        has_op = true;
        if (kg_op_dims(block->op, call, &dims, &e) != KG_OK ||
            kg_key_of_call(block->op, call, &dims, &key, &e) != KG_OK) {
            if (best == INFINITY)
                snprintf(differs, 256, "%.255s", e.msg);
            continue;
        }
        for (size_t p = 0; p < block->npins; p++) {
            double far = gap(&block->pins[p].key, &key);
            char why[256] = "";
            bool fits = kg_key_match(block->op, &block->pins[p].key, &key, why);
            if (far >= best && !fits)
                continue;
            best = fits ? -INFINITY : far;
            kg_kernel_name(block, &block->kernels[block->pins[p].kernel], kernel);
            snprintf(differs, 256, "%s", fits ? "" : why);
        }
    }
    return has_op;
}
