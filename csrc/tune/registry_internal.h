/* What the two halves of the registry share: reading (registry.c) and changing (registry_change.c).
 */
#ifndef KG_TUNE_REGISTRY_INTERNAL_H
#define KG_TUNE_REGISTRY_INTERNAL_H

#include "tune/registry.h"

#define KG_MAX_RECORD ((size_t)16 << 20)
#define KG_MAX_PIN ((size_t)1 << 20)

typedef struct kg_kernel_entry {
    char *op, *arch, *id, *path, *verdict, *created, *proposer;
} kg_kernel_entry;

struct kg_registry {
    bool strict; /* a pin that cannot be read is an error, not left out */
    char *path;
    kg_kernel_entry *owned; /* parallel to kernels */
    kg_kernel *kernels;
    size_t n, cap;
};

/* Reads every record again; what was handed out before is gone. */
int kg_registry_read(kg_registry *r, kg_error *err);

/* One pin file as it stands. */
typedef struct kg_pin {
    kg_json *json;
    const char *kernel, *replaced; /* borrowed from json; replaced may be NULL */
    const kg_json *key;
} kg_pin;

int kg_pin_read(const char *path, kg_pin *out, kg_error *err);
void kg_pin_free(kg_pin *pin);

/* Calls visit for every readable pin of the Op (NULL: of all); unreadable ones are logged. A
 * negative return stops. */
typedef int (*kg_pin_visit)(void *ctx, const char *op, const char *arch, const char *path,
                            const kg_pin *pin, kg_error *err);
int kg_registry_pins(const kg_registry *r, const char *op, kg_pin_visit visit, void *ctx,
                     kg_error *err);

/* a/b/c joined; the caller's; NULL when out of memory. */
char *kg_path_join3(const char *a, const char *b, const char *c);
bool kg_is_hex(const char *text, size_t n); /* exactly n lower-case hex digits */

#endif
