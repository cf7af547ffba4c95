/* Writes, opens and reads the index of a registry. A file that is torn, tampered with or of another
 * time is refused whole, before anything in it is believed; a block is read with every bound
 * checked all the same, since XXH3 withstands accidents and no forger. */
#include "runtime/index.h"

#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#include "base/fs.h"

#define HEADER_SIZE 48
#define MAX_INDEX ((size_t)1 << 30)
#define MAX_OPS 65536
#define MAX_KERNELS 1000000
#define MAX_PROGRAMS 65536

static const char magic[8] = "KGENIDX";

/* ---- writing ---- */

static void put_hash(kg_buf *b, kg_hash128 h) {
    kg_put_u64(b, h.lo);
    kg_put_u64(b, h.hi);
}

/* plan: room for its bytes. */
static int put_kernel(kg_buf *b, const kg_index_kernel *k, kg_buf *plan, kg_error *err) {
    kg_buf_clear(plan);
    int rc = kg_plan_write(k->plan, plan);
    kg_put_str(b, k->id);
    kg_put_str(b, k->arch);
    kg_put_str(b, k->source);
    kg_put_u32(b, (uint32_t)k->version);
    kg_put_u8(b, k->ambiguous);
    put_hash(b, k->source_hash);
    kg_put_str(b, k->env.device);
    kg_put_str(b, k->env.torch);
    kg_put_str(b, k->env.compiler);
    kg_put_str(b, k->env.kgen);
    kg_put_str(b, k->env.driver);
    for (size_t i = 0; i < KG_MAX_TUNABLES; i++)
        kg_put_i64(b, i < k->plan->ntunables ? k->tuning.value[i] : 0);
    kg_put_u32(b, (uint32_t)k->nprograms);
    for (size_t i = 0; i < k->nprograms; i++)
        put_hash(b, k->programs[i]);
    kg_put_bytes(b, plan->data, plan->len);
    return rc == KG_OK ? KG_OK : kg_fail(err, rc, "writing the plan of Kernel %s", k->id);
}

static int put_kernels(kg_buf *b, const kg_index_op *op, kg_error *err) {
    kg_buf plan;
    int rc = KG_OK;
    kg_buf_init(&plan, 0);
    kg_put_u32(b, (uint32_t)op->nkernels);
    for (size_t i = 0; rc == KG_OK && i < op->nkernels; i++)
        rc = put_kernel(b, &op->kernels[i], &plan, err);
    kg_buf_free(&plan);
    return rc;
}

int kg_index_put(kg_buf *b, const kg_index_op *op, kg_error *err) {
    int rc = kg_op_write(op->op, b);
    if (rc != KG_OK)
        return kg_fail(err, rc, "writing the contract of %s", op->op->name);
    kg_put_str(b, op->task);
    if ((rc = put_kernels(b, op, err)) != KG_OK)
        return rc;
    kg_put_u32(b, (uint32_t)op->npins);
    for (size_t i = 0; i < op->npins; i++) {
        if (op->pins[i].kernel >= op->nkernels)
            return kg_fail(err, KG_EINVAL, "pin %zu of %s names Kernel %u of %zu", i, op->op->name,
                           op->pins[i].kernel, op->nkernels);
        kg_put_u32(b, op->pins[i].kernel);
        if ((rc = kg_key_write(&op->pins[i].key, b)) != KG_OK)
            return kg_fail(err, rc, "writing pin %zu of %s", i, op->op->name);
    }
    return kg_buf_check(b, "an Op's block of the index", err);
}

/* The directory holds places relative to its end, where the first block is. */
static void put_body(kg_buf *b, const char *registry, const kg_index_block *blocks, size_t n) {
    size_t start = 0;
    kg_put_str(b, registry);
    kg_put_u32(b, (uint32_t)n);
    for (size_t i = 0; i < n; i++) {
        kg_put_str(b, blocks[i].op->name);
        kg_put_str(b, blocks[i].op->schema);
        kg_put_str(b, blocks[i].op->hash);
        kg_put_u64(b, start);
        kg_put_u64(b, blocks[i].n);
        start += blocks[i].n;
    }
    for (size_t i = 0; i < n; i++)
        kg_buf_add(b, blocks[i].bytes, blocks[i].n);
}

static int make_folder(const char *path, kg_error *err) {
    char *folder = strdup(path);
    if (folder == NULL)
        return kg_fail(err, KG_ENOMEM, "no memory for the path of an index");
    char *slash = strrchr(folder, '/');
    int rc = KG_OK;
    if (slash != NULL && slash != folder) {
        *slash = '\0';
        rc = kg_mkdirs(folder, err);
    }
    free(folder);
    return rc;
}

int kg_index_write_blocks(const char *path, const char *registry, uint64_t fingerprint,
                          const kg_index_block *blocks, size_t n, kg_error *err) {
    static const char header[HEADER_SIZE];
    kg_buf file, head;
    kg_buf_init(&file, MAX_INDEX);
    kg_buf_init(&head, HEADER_SIZE);
    kg_buf_add(&file, header, sizeof(header));
    put_body(&file, registry, blocks, n);
    int rc = kg_buf_check(&file, "the index", err);
    if (rc == KG_OK) {
        kg_buf_add(&head, magic, sizeof(magic));
        kg_put_u32(&head, KG_INDEX_FORMAT);
        kg_put_u32(&head, HEADER_SIZE);
        kg_put_u64(&head, file.len);
        put_hash(&head, kg_xxh128(file.data + HEADER_SIZE, file.len - HEADER_SIZE));
        kg_put_u64(&head, fingerprint);
        rc = kg_buf_check(&head, "the header of the index", err);
    }
    if (rc == KG_OK) {
        memcpy(file.data, head.data, HEADER_SIZE);
        rc = make_folder(path, err);
    }
    if (rc == KG_OK)
        rc = kg_write_derived(path, file.data, file.len, err);
    kg_buf_free(&file);
    kg_buf_free(&head);
    return rc;
}

int kg_index_write(const char *path, const char *registry, uint64_t fingerprint,
                   const kg_index_op *ops, size_t nops, kg_error *err) {
    kg_buf *bytes = calloc(nops ? nops : 1, sizeof *bytes);
    kg_index_block *blocks = calloc(nops ? nops : 1, sizeof *blocks);
    int rc = bytes && blocks ? KG_OK : kg_fail(err, KG_ENOMEM, "an index of %zu Ops", nops);
    for (size_t i = 0; rc == KG_OK && i < nops; i++) {
        kg_buf_init(&bytes[i], MAX_INDEX);
        rc = kg_index_put(&bytes[i], &ops[i], err);
        blocks[i] = (kg_index_block){.op = ops[i].op, .bytes = bytes[i].data, .n = bytes[i].len};
    }
    if (rc == KG_OK)
        rc = kg_index_write_blocks(path, registry, fingerprint, blocks, nops, err);
    for (size_t i = 0; bytes && i < nops; i++)
        kg_buf_free(&bytes[i]);
    free(bytes);
    free(blocks);
    return rc;
}

char *kg_index_path(const char *registry) {
    char name[48] = "index/";
    char *cache = kg_cache_dir();
    if (cache == NULL)
        return NULL;
    kg_hash128_hex(kg_xxh128(registry, strlen(registry)), name + 6);
    char *path = kg_path_join(cache, name);
    free(cache);
    return path;
}

/* ---- reading ---- */

typedef struct entry {
    const char *name, *schema, *hash;
    const char *block;
    size_t length;
    const kg_index_op *read; /* under the lock */
    const kg_plan **plans;   /* under the lock */
    const char **plan_bytes;
    size_t *plan_sizes;
} entry;

struct kg_index {
    kg_buf file;
    const char *registry;
    size_t nops;
    entry *ops;
    pthread_mutex_t lock;
};

static kg_hash128 get_hash(kg_reader *r) {
    kg_hash128 h;
    h.lo = kg_get_u64(r);
    h.hi = kg_get_u64(r);
    return h;
}

static int check_header(const kg_buf *file, const char *path, uint64_t *fingerprint,
                        kg_error *err) {
    kg_reader r;
    kg_reader_init(&r, file->data, file->len);
    if (file->len < HEADER_SIZE || memcmp(file->data, magic, sizeof(magic)) != 0)
        return kg_fail(err, KG_ECORRUPT, "%s is no index", path);
    r.pos = sizeof(magic);
    uint32_t format = kg_get_u32(&r), header = kg_get_u32(&r);
    uint64_t size = kg_get_u64(&r);
    kg_hash128 want = get_hash(&r);
    *fingerprint = kg_get_u64(&r);
    if (format != KG_INDEX_FORMAT || header != HEADER_SIZE)
        return kg_fail(err, KG_ECORRUPT, "%s: format %u; this kgen reads format %d", path, format,
                       KG_INDEX_FORMAT);
    if (size != file->len)
        return kg_fail(err, KG_ECORRUPT, "%s has %zu bytes in place of %llu", path, file->len,
                       (unsigned long long)size);
    kg_hash128 got = kg_xxh128(file->data + HEADER_SIZE, file->len - HEADER_SIZE);
    if (got.lo != want.lo || got.hi != want.hi)
        return kg_fail(err, KG_ECORRUPT, "%s: hash does not match", path);
    return KG_OK;
}

static int read_directory(kg_index *x, const char *path, kg_error *err) {
    kg_reader r;
    kg_reader_init(&r, x->file.data, x->file.len);
    r.pos = HEADER_SIZE;
    x->registry = kg_get_str(&r);
    uint32_t n = kg_get_u32(&r);
    if (r.status != KG_OK || n > MAX_OPS)
        return kg_fail(err, KG_ECORRUPT, "%s: bad directory", path);
    x->ops = calloc(n > 0 ? n : 1, sizeof(*x->ops));
    if (x->ops == NULL)
        return kg_fail(err, KG_ENOMEM, "no memory for an index of %u Ops", n);
    x->nops = n;
    for (uint32_t i = 0; i < n; i++) {
        entry *e = &x->ops[i];
        e->name = kg_get_str(&r);
        e->schema = kg_get_str(&r);
        e->hash = kg_get_str(&r);
        e->block = x->file.data + kg_get_u64(&r) % MAX_INDEX;
        e->length = kg_get_u64(&r);
    }
    for (uint32_t i = 0; r.status == KG_OK && i < n; i++) {
        size_t start = (size_t)(x->ops[i].block - x->file.data);
        if (start > r.len - r.pos || x->ops[i].length > r.len - r.pos - start)
            return kg_fail(err, KG_ECORRUPT, "%s: Op %u lies outside the file", path, i);
        x->ops[i].block += r.pos;
    }
    return r.status == KG_OK ? KG_OK : kg_fail(err, KG_ECORRUPT, "%s: bad directory", path);
}

int kg_index_open(const char *path, const char *registry, uint64_t fingerprint, kg_index **out,
                  kg_error *err) {
    kg_index *x = calloc(1, sizeof(*x));
    uint64_t of = 0;
    if (x == NULL)
        return kg_fail(err, KG_ENOMEM, "no memory for an index");
    pthread_mutex_init(&x->lock, NULL);
    kg_buf_init(&x->file, MAX_INDEX);
    int rc = kg_read_file(path, MAX_INDEX, &x->file, err);
    if (rc == KG_OK)
        rc = check_header(&x->file, path, &of, err);
    if (rc == KG_OK && of != fingerprint)
        rc = kg_fail(err, KG_EEXIST, "%s is of another state of %s", path, registry);
    if (rc == KG_OK)
        rc = read_directory(x, path, err);
    if (rc == KG_OK && strcmp(x->registry, registry) != 0)
        rc = kg_fail(err, KG_ECORRUPT, "%s is the index of %s", path, x->registry);
    if (rc != KG_OK) {
        kg_index_free(x);
        return rc;
    }
    *out = x;
    return KG_OK;
}

static void free_block(entry *e) {
    if (e->read == NULL)
        return;
    for (size_t i = 0; i < e->read->nkernels; i++) {
        free((void *)(uintptr_t)e->read->kernels[i].programs);
        kg_plan_free((kg_plan *)(uintptr_t)e->plans[i]);
    }
    kg_op_free((kg_op *)(uintptr_t)e->read->op);
    free((void *)(uintptr_t)e->read->kernels);
    free((void *)(uintptr_t)e->read->pins);
    free((void *)(uintptr_t)e->read);
    free(e->plans);
    free(e->plan_bytes);
    free(e->plan_sizes);
}

void kg_index_free(kg_index *x) {
    if (x == NULL)
        return;
    for (size_t i = 0; i < x->nops; i++)
        free_block(&x->ops[i]);
    free(x->ops);
    kg_buf_free(&x->file);
    pthread_mutex_destroy(&x->lock);
    free(x);
}

const char *kg_index_registry(const kg_index *x) {
    return x->registry;
}
size_t kg_index_count(const kg_index *x) {
    return x->nops;
}
const char *kg_index_name(const kg_index *x, size_t i) {
    return x->ops[i].name;
}
const char *kg_index_schema(const kg_index *x, size_t i) {
    return x->ops[i].schema;
}
const char *kg_index_hash(const kg_index *x, size_t i) {
    return x->ops[i].hash;
}

int kg_index_find(const kg_index *x, const char *name) {
    for (size_t i = 0; i < x->nops; i++)
        if (strcmp(x->ops[i].name, name) == 0)
            return (int)i;
    return -1;
}

static void spoil(kg_reader *r, int status) {
    if (r->status == KG_OK)
        r->status = status;
}

static void *new_array(kg_reader *r, size_t n, size_t size) {
    /* Nothing in a block takes less than a byte, so a count above its length is a lie. */
    if (r->status != KG_OK || n > r->len)
        spoil(r, KG_EFORMAT);
    void *p = r->status == KG_OK ? calloc(n > 0 ? n : 1, size) : NULL;
    if (p == NULL)
        spoil(r, KG_ENOMEM);
    return p;
}

static void get_kernel(kg_reader *r, entry *e, size_t at, kg_index_kernel *k) {
    k->id = kg_get_str(r);
    k->arch = kg_get_str(r);
    k->source = kg_get_str(r);
    k->version = (int32_t)kg_get_u32(r);
    k->ambiguous = kg_get_u8(r) != 0;
    k->source_hash = get_hash(r);
    k->env.device = kg_get_str(r);
    k->env.torch = kg_get_str(r);
    k->env.compiler = kg_get_str(r);
    k->env.kgen = kg_get_str(r);
    k->env.driver = kg_get_str(r);
    for (size_t i = 0; i < KG_MAX_TUNABLES; i++)
        k->tuning.value[i] = kg_get_i64(r);
    size_t n = kg_get_u32(r);
    kg_hash128 *programs = new_array(r, n, sizeof(*programs));
    for (size_t i = 0; programs != NULL && r->status == KG_OK && i < n; i++)
        programs[i] = get_hash(r);
    k->programs = programs;
    k->nprograms = programs != NULL ? n : 0;
    e->plan_bytes[at] = kg_get_bytes(r, &e->plan_sizes[at]);
}

static void get_pins(kg_reader *r, kg_index_op *block) {
    size_t n = kg_get_u32(r);
    kg_error err;
    kg_index_pin *pins = new_array(r, n, sizeof(*pins));
    block->pins = pins;
    for (size_t i = 0; pins != NULL && r->status == KG_OK && i < n; i++) {
        pins[i].kernel = kg_get_u32(r);
        if (kg_key_read(r, &pins[i].key, &err) != KG_OK || pins[i].kernel >= block->nkernels)
            spoil(r, KG_EFORMAT);
        block->npins = i + 1;
    }
}

/* Everything that a block allocates hangs off e, so that free_block ends it after a failure too. */
static int read_block(entry *e, kg_error *err) {
    kg_reader r;
    kg_op *op = NULL;
    kg_index_op *block = calloc(1, sizeof(*block));
    if (block == NULL)
        return kg_fail(err, KG_ENOMEM, "no memory for the Op %s", e->name);
    e->read = block;
    kg_reader_init(&r, e->block, e->length);
    int rc = kg_op_read(&r, &op, err);
    if (rc != KG_OK)
        return rc;
    block->op = op;
    block->task = kg_get_str(&r);
    size_t n = kg_get_u32(&r);
    e->plans = new_array(&r, n, sizeof(*e->plans));
    e->plan_bytes = new_array(&r, n, sizeof(*e->plan_bytes));
    e->plan_sizes = new_array(&r, n, sizeof(*e->plan_sizes));
    kg_index_kernel *kernels = new_array(&r, n, sizeof(*kernels));
    block->kernels = kernels;
    block->nkernels = r.status == KG_OK ? n : 0;
    for (size_t i = 0; r.status == KG_OK && i < n; i++)
        get_kernel(&r, e, i, &kernels[i]);
    get_pins(&r, block);
    return r.status == KG_OK ? KG_OK
                             : kg_fail(err, r.status, "the index of %s is damaged", e->name);
}

int kg_index_get(kg_index *x, size_t i, const kg_index_op **out, kg_error *err) {
    entry *e = &x->ops[i];
    int rc = KG_OK;
    pthread_mutex_lock(&x->lock);
    if (e->read == NULL)
        rc = read_block(e, err);
    if (rc != KG_OK) {
        free_block(e);
        e->read = NULL;
        e->plans = NULL;
        e->plan_bytes = NULL;
        e->plan_sizes = NULL;
    } else {
        *out = e->read;
    }
    pthread_mutex_unlock(&x->lock);
    return rc;
}

int kg_index_plan(kg_index *x, size_t i, size_t kernel, const kg_plan **out, kg_error *err) {
    entry *e = &x->ops[i];
    kg_plan *plan = NULL;
    int rc = KG_OK;
    pthread_mutex_lock(&x->lock);
    if (e->plans[kernel] == NULL) {
        kg_reader r;
        kg_reader_init(&r, e->plan_bytes[kernel], e->plan_sizes[kernel]);
        rc = kg_plan_read(&r, &plan, err);
        e->plans[kernel] = plan;
    }
    if (rc == KG_OK)
        *out = e->plans[kernel];
    pthread_mutex_unlock(&x->lock);
    return rc;
}
