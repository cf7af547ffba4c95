/* Names of verdicts, both ways. */
#include "tune/verdict.h"

#include <stddef.h>
#include <string.h>

static const char *const names[] = {
#define KG_X(NAME, text) text,
    KG_VERDICTS(KG_X)
#undef KG_X
};

const char *kg_verdict_name(int verdict) {
    return verdict >= 0 && verdict < KG_VERDICT_COUNT ? names[verdict] : NULL;
}

int kg_verdict_parse(const char *name) {
    for (int i = 0; name && i < KG_VERDICT_COUNT; i++)
        if (strcmp(names[i], name) == 0)
            return i;
    return -1;
}
