/* Names what a model writes by habit when it was asked for device code and a plan. It decides
 * nothing about safety, the judge does; it gives the feedback the right words. */
#define _GNU_SOURCE
#include <string.h>

#include "tune/answer.h"

typedef struct sign {
    const char *word, *what;
} sign;

/* Most telling first. */
static const sign signs[] = {
    {"@triton.jit", "a Triton kernel"},
    {"import triton", "a Triton kernel"},
    {"triton.language", "a Triton kernel"},
    {"torch/extension.h", "a torch extension"},
    {"PYBIND11_MODULE", "a torch extension"},
    {"TORCH_LIBRARY", "a torch extension"},
    {"load_inline", "a torch extension"},
    {"torch::Tensor", "a torch extension"},
    {"at::Tensor", "a torch extension"},
    {"import torch", "Python code"},
    {"<<<", "host code"},
    {"cudaMalloc", "host code"},
    {"cudaMemcpy", "host code"},
    {"cudaLaunchKernel", "host code"},
    {"cudaStream", "host code"},
    {"cuda_runtime", "host code"},
    {"int main(", "host code"},
    {"std::vector", "host code"},
    {"pthread_create", "host code"},
    {"#pragma omp parallel", "host code"},
};

/* Blanks out comments of C; strings stay, as they may hold what is looked for. */
static void strip(const char *text, size_t n, kg_buf *out) {
    for (size_t i = 0; i < n; i++) {
        if (text[i] == '/' && i + 1 < n && text[i + 1] == '/') {
            while (i < n && text[i] != '\n')
                i++;
        } else if (text[i] == '/' && i + 1 < n && text[i + 1] == '*') {
            const char *end = memmem(text + i + 2, n - i - 2, "*/", 2);
            i = end ? (size_t)(end - text) + 2 : n;
            kg_buf_putc(out, ' ');
        }
        if (i < n && text[i])
            kg_buf_putc(out, text[i]);
    }
}

const char *kg_answer_foreign(const char *text, size_t n, const char **word) {
    const char *what = NULL;
    kg_buf code;
    kg_buf_init(&code, KG_ANSWER_MAX + 1);
    strip(text, n, &code);
    for (size_t i = 0; code.data && !what && i < sizeof signs / sizeof *signs; i++)
        if (strstr(code.data, signs[i].word)) {
            what = signs[i].what;
            *word = signs[i].word;
        }
    kg_buf_free(&code);
    return what;
}
