/* Answers of a proposer: any text is read, and what is taken of it is clean. */
#include "tune/answer.h"

#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static const char base[] = "/* kgen\n{}\n*/\nint a;\nint b;\n";

static const char *find(void *ctx, const char *prefix, size_t *n, char id[65]) {
    (void)ctx;
    memset(id, 'a', 64);
    id[64] = '\0';
    *n = sizeof base - 1;
    return prefix[0] == 'a' ? base : NULL;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    kg_answer_bases bases = {NULL, find};
    for (int want = 0; want < 2; want++) {
        kg_answer a;
        if (kg_answer_read((const char *)data, size, (kg_answer_want)want, &bases, &a, NULL))
            return 0;
        for (size_t i = 0; i < a.nfiles; i++)
            if (strlen(a.files[i].text) != a.files[i].n ||
                strncmp(a.files[i].text, "/* kgen", 7) != 0)
                __builtin_trap();
        if (!a.nfiles && !a.nideas && !a.complaint.len)
            __builtin_trap();
        kg_answer_free(&a);
    }
    return 0;
}
