/* Expressions: parses anything, evaluates what parses against a resolver that knows every name.
 * Only the sanitizers judge. */
#include <stdlib.h>
#include <string.h>

#include "base/expr.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static int resolve(void *ctx, const kg_ref *ref, int64_t *out, kg_error *err) {
    (void)ctx, (void)err;
    *out = ref->nargs ? ref->args[0] : (int64_t)strlen(ref->name);
    return KG_OK;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    char *text = malloc(size + 1);
    if (!text)
        return 0;
    memcpy(text, data, size);
    text[size] = '\0';
    kg_expr *e;
    kg_error err;
    int64_t value;
    if (kg_expr_parse(text, &e, &err) == KG_OK) {
        kg_expr_eval(e, resolve, NULL, &value, &err);
        kg_expr_free(e);
    }
    free(text);
    return 0;
}
