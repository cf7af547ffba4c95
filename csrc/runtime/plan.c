/* What a plan owns, and the names of architectures. */
#include "runtime/plan.h"

#include <stdlib.h>
#include <string.h>

static void free_launch(kg_plan_launch *l) {
    free(l->kernel);
    kg_expr_free(l->range);
    kg_expr_free(l->grain);
    for (size_t i = 0; i < 3; i++) {
        kg_expr_free(l->grid[i]);
        kg_expr_free(l->block[i]);
        kg_expr_free(l->cluster[i]);
    }
    kg_expr_free(l->shared);
    kg_expr_free(l->when);
    for (size_t i = 0; i < l->nargs; i++) {
        kg_expr_free(l->args[i].expr);
        free(l->args[i].attr);
    }
}

static void free_map(kg_plan_map *m) {
    free(m->name);
    for (size_t i = 0; i < 5; i++) {
        kg_expr_free(m->box[i]);
        kg_expr_free(m->dims[i]);
        if (i < 4)
            kg_expr_free(m->strides[i]);
    }
}

void kg_plan_free(kg_plan *p) {
    if (p == NULL)
        return;
    for (size_t i = 0; i < p->ntunables; i++)
        free(p->tunables[i].name);
    for (size_t i = 0; i < p->nspecialize; i++)
        free(p->specialize[i]);
    for (size_t i = 0; i < p->nworkspace; i++) {
        free(p->workspace[i].name);
        for (size_t d = 0; d < KG_MAX_RANK; d++)
            kg_expr_free(p->workspace[i].shape[d]);
    }
    for (size_t i = 0; i < p->nmaps; i++)
        free_map(&p->maps[i]);
    for (size_t i = 0; i < p->nlaunches; i++)
        free_launch(&p->launches[i]);
    for (size_t i = 0; i < p->nholes; i++)
        free(p->holes[i]);
    kg_expr_free(p->require);
    free(p->op);
    free(p->min_arch);
    free(p);
}

void kg_instance_free(kg_instance *inst) {
    free(inst);
}

int kg_plan_tunable_index(const kg_plan *p, const char *name) {
    for (size_t i = 0; i < p->ntunables; i++)
        if (strcmp(p->tunables[i].name, name) == 0)
            return (int)i;
    return -1;
}

int64_t kg_arch_code(const char *arch) {
    if (strcmp(arch, "aarch64") == 0)
        return 0;
    if (strncmp(arch, "x86-64-v", 8) == 0)
        return arch[8] >= '1' && arch[8] <= '4' && arch[9] == '\0' ? arch[8] - '0' : -1;
    if (strncmp(arch, "sm_", 3) != 0)
        return -1;
    int64_t code = 0;
    const char *s = arch + 3;
    for (; *s >= '0' && *s <= '9' && s - arch < 6; s++)
        code = code * 10 + (*s - '0');
    if (*s == 'a')
        s++;
    return *s == '\0' && code >= 10 ? code : -1;
}

int kg_arch_target(const char *arch) {
    if (kg_arch_code(arch) < 0)
        return -1;
    return strncmp(arch, "sm_", 3) == 0 ? KG_CUDA : KG_CPU;
}
