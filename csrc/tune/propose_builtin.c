/* The built-in proposer: templates from kernels/<family>/ and the grid of their tunables. It needs
 * no network and invents nothing: an Op that no template is for gets no Candidate. */
#include <stdlib.h>
#include <string.h>

#include "base/fs.h"
#include "tune/propose.h"

#define MAX_SOURCE ((size_t)4 << 20)

__extension__ typedef unsigned __int128 wide;

static void source_free(kg_source *s) {
    free(s->name);
    free(s->text);
    kg_plan_free(s->plan);
}

void kg_sources_free(kg_sources *s) {
    for (size_t i = 0; i < s->n; i++)
        source_free(&s->items[i]);
    free(s->items);
    *s = (kg_sources){0};
}

static int push(kg_sources *s, const kg_source *item, kg_error *err) {
    if (s->n == s->cap) {
        size_t cap = s->cap ? 2 * s->cap : 8;
        kg_source *grown = realloc(s->items, cap * sizeof *grown);
        if (!grown)
            return kg_fail(err, KG_ENOMEM, "%zu sources", cap);
        s->items = grown;
        s->cap = cap;
    }
    s->items[s->n++] = *item;
    return KG_OK;
}

static int read_text(const char *path, kg_source *s, kg_error *err) {
    kg_buf text;
    kg_buf_init(&text, MAX_SOURCE);
    int rc = kg_read_file(path, MAX_SOURCE, &text, err);
    s->n = text.len;
    s->text = rc ? NULL : kg_buf_take(&text);
    kg_buf_free(&text);
    if (!rc && !s->text)
        rc = kg_fail(err, KG_ENOMEM, "text of %s", path);
    return rc;
}

/* Takes item's name and text; both are lost when it fails. */
static int add_item(kg_sources *s, kg_source *item, const kg_op *op, kg_error *err) {
    int rc = kg_plan_from_source(item->text, item->n, item->name, op, &item->plan, err);
    if (!rc)
        rc = push(s, item, err);
    if (rc)
        source_free(item);
    return rc;
}

int kg_sources_add_file(kg_sources *s, const char *path, const char *name, const kg_op *op,
                        kg_error *err) {
    kg_source item = {.name = strdup(name)};
    int rc = item.name ? read_text(path, &item, err) : kg_fail(err, KG_ENOMEM, "name %s", name);
    if (rc) {
        source_free(&item);
        return rc;
    }
    return add_item(s, &item, op, err);
}

int kg_sources_add_text(kg_sources *s, const char *text, size_t n, const char *name,
                        const kg_op *op, kg_error *err) {
    kg_source item = {.name = strdup(name), .text = malloc(n + 1), .n = n};
    if (!item.name || !item.text) {
        source_free(&item);
        return kg_fail(err, KG_ENOMEM, "source %s", name);
    }
    memcpy(item.text, text, n);
    item.text[n] = '\0';
    return add_item(s, &item, op, err);
}

bool kg_arch_fits(const char *min_arch, int target, const kg_constants *constants) {
    static const char cpu[] = "x86-64-v", cuda[] = "sm_";
    const char *prefix = target == KG_CUDA ? cuda : cpu;
    if (!min_arch)
        return true;
    if (strncmp(min_arch, prefix, strlen(prefix)) != 0)
        return false;
    return constants->arch >= strtol(min_arch + strlen(prefix), NULL, 10);
}

static bool has_suffix(const char *name, const char *suffix) {
    size_t n = strlen(name), m = strlen(suffix);
    return n > m && strcmp(name + n - m, suffix) == 0;
}

/* Adds the file when it is a template for this Op, target and architecture. */
static int consider(const char *path, const char *name, const kg_op *op, int target,
                    const kg_constants *constants, kg_sources *out, kg_error *err) {
    kg_source item = {0};
    char op_name[128];
    int rc = read_text(path, &item, err);
    if (!rc)
        rc = kg_source_op(item.text, item.n, name, op_name, err);
    source_free(&item);
    if (rc || strcmp(op_name, op->name) != 0)
        return rc;
    rc = kg_sources_add_file(out, path, name, op, err);
    if (rc)
        return rc;
    kg_source *added = &out->items[out->n - 1];
    if (added->plan->target == target && kg_arch_fits(added->plan->min_arch, target, constants))
        return KG_OK;
    source_free(added);
    out->n--;
    return KG_OK;
}

static int scan_family(const char *dir, const char *family, const kg_op *op, int target,
                       const kg_constants *constants, kg_sources *out, kg_error *err) {
    char **names = NULL;
    size_t n = 0;
    int rc = kg_list_dir(dir, &names, &n, err);
    for (size_t i = 0; !rc && i < n; i++) {
        if (!has_suffix(names[i], target == KG_CUDA ? ".cu" : ".c"))
            continue;
        char *path = kg_path_join(dir, names[i]), *name = kg_path_join(family, names[i]);
        rc = path && name ? consider(path, name, op, target, constants, out, err)
                          : kg_fail(err, KG_ENOMEM, "path of %s", names[i]);
        free(path);
        free(name);
    }
    kg_free_names(names, n);
    return rc;
}

int kg_propose_builtin(const char *kernels_dir, const kg_op *op, int target,
                       const kg_constants *constants, kg_sources *out, kg_error *err) {
    char **families = NULL;
    size_t n = 0;
    int rc = kg_list_dir(kernels_dir, &families, &n, err);
    for (size_t i = 0; !rc && i < n; i++) {
        char *dir = kg_path_join(kernels_dir, families[i]);
        if (!dir)
            rc = kg_fail(err, KG_ENOMEM, "path of %s", families[i]);
        else if (kg_is_dir(dir))
            rc = scan_family(dir, families[i], op, target, constants, out, err);
        free(dir);
    }
    kg_free_names(families, n);
    return rc;
}

static void tuning_at(const kg_plan *plan, size_t index, kg_tuning *out) {
    *out = (kg_tuning){0};
    for (size_t i = plan->ntunables; i-- > 0;) {
        out->value[i] = plan->tunables[i].values[index % plan->tunables[i].n];
        index /= plan->tunables[i].n;
    }
}

int kg_tunings(const kg_plan *plan, size_t most, kg_tuning **out, size_t *n, kg_error *err) {
    size_t total = 1;
    for (size_t i = 0; i < plan->ntunables; i++)
        if (__builtin_mul_overflow(total, plan->tunables[i].n, &total))
            return kg_fail(err, KG_EOVERFLOW, "the tunables have more than 2^64 combinations");
    size_t take = total < most ? total : most;
    kg_tuning *list = calloc(take ? take : 1, sizeof *list);
    if (!list)
        return kg_fail(err, KG_ENOMEM, "%zu combinations of tunables", take);
    /* 128 bits: i * total stays exact whatever the grid. */
    for (size_t i = 0; i < take; i++)
        tuning_at(plan, (size_t)((wide)i * total / take), &list[i]);
    *out = list;
    *n = take;
    return KG_OK;
}
