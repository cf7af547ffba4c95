/* Softmax Candidates as the stand-in runs them: one right, and one for each way to be wrong. All
 * take (input, output, M, N), int32 numbers, rows without gaps. */
#define _GNU_SOURCE
#include <math.h>
#include <stdint.h>
#include <time.h>
#include <unistd.h>

#include "fake_cuda.h"

#define EXPORT __attribute__((visibility("default")))

typedef struct call {
    const char *name;
    float *x, *y;
    int rows, columns;
} call;

static call call_of(const fake_launch *l) {
    return (call){.name = l->function,
                  .x = (float *)(uintptr_t)FAKE_ARG(uint64_t, l, 0),
                  .y = (float *)(uintptr_t)FAKE_ARG(uint64_t, l, 1),
                  .rows = FAKE_ARG(int, l, 2),
                  .columns = FAKE_ARG(int, l, 3)};
}

static void rows(const call *c, int begin, int end, double factor) {
    for (int r = begin; r < end; r++) {
        const float *x = c->x + (size_t)r * (size_t)c->columns;
        float *y = c->y + (size_t)r * (size_t)c->columns;
        double most = -INFINITY, sum = 0;
        for (int i = 0; i < c->columns; i++)
            most = x[i] > most ? x[i] : most;
        for (int i = 0; i < c->columns; i++)
            sum += exp(x[i] - most);
        for (int i = 0; i < c->columns; i++)
            y[i] = (float)(exp(x[i] - most) / sum * factor);
    }
}

#define KERNEL(name, ...)                                                                          \
    EXPORT void fake_kernel_##name(const fake_launch *l);                                          \
    void fake_kernel_##name(const fake_launch *l) {                                                \
        call c = call_of(l);                                                                       \
        __VA_ARGS__                                                                                \
    }

KERNEL(right, rows(&c, 0, c.rows, 1);)
KERNEL(wrong, rows(&c, 0, c.rows, 1); c.y[c.rows * c.columns - 1] *= 1.001f;)
KERNEL(short_by_a_row, rows(&c, 0, c.rows - 1, 1);)
KERNEL(not_finite, rows(&c, 0, c.rows, 1); c.y[3] = NAN;)
KERNEL(past_the_end, rows(&c, 0, c.rows, 1); c.y[c.rows * c.columns + 1] = 1;)
KERNEL(before_the_begin, rows(&c, 0, c.rows, 1); c.y[-2] = 1;)
/* Another last bit every other time. */
KERNEL(by_turns, static int calls; rows(&c, 0, c.rows, calls++ % 2 ? 1 : 1 + 1.2e-7);)
KERNEL(late, struct timespec t = {.tv_sec = 1, .tv_nsec = 200000000}; nanosleep(&t, NULL);
       rows(&c, 0, c.rows, 1);)

/* (map of the input, output, workspace that was cleared, M, N): goes wrong unless the map is of the
 * input (address, dims, stride and box as the stand-in encodes them) and the workspace is zeros. */
EXPORT void fake_kernel_mapped(const fake_launch *l);
void fake_kernel_mapped(const fake_launch *l) {
    uint64_t map[16];
    call c = {.y = (float *)(uintptr_t)FAKE_ARG(uint64_t, l, 1),
              .rows = FAKE_ARG(int, l, 3),
              .columns = FAKE_ARG(int, l, 4)};
    const int *zeros = (const int *)(uintptr_t)FAKE_ARG(uint64_t, l, 2);
    memcpy(map, l->bytes + l->offset[0], sizeof map);
    if (map[2] != (uint64_t)c.columns || map[3] != (uint64_t)c.rows ||
        map[7] != 4 * (uint64_t)c.columns || (uint32_t)map[11] != 20 || (uint32_t)map[12] != 2)
        return;
    for (int i = 0; i < c.rows; i++)
        if (zeros[i] != 0)
            return;
    c.x = (float *)(uintptr_t)map[0];
    rows(&c, 0, c.rows, 1);
}

/* As a GPU would: a write to memory that is mapped for reading is a fault of the context. The
 * system call tells without one of this process. */
KERNEL(writes_input, {
    int ends[2];
    float zero = 0;
    rows(&c, 0, c.rows, 1);
    if (pipe(ends) != 0)
        return;
    if (write(ends[1], &zero, sizeof zero) == sizeof zero &&
        read(ends[0], c.x + 5, sizeof zero) != sizeof zero) {
        const fake_cuda *control = fake_cuda_of(getenv("KGEN_LIBCUDA"));
        if (control)
            control->fault(c.name, 700);
    }
    close(ends[0]);
    close(ends[1]);
})

/* (input, output, workspace, M, N): computes once for its workspace, and from then on believes it.
 */
EXPORT void fake_kernel_remembers(const fake_launch *l);
void fake_kernel_remembers(const fake_launch *l) {
    call c = {.x = (float *)(uintptr_t)FAKE_ARG(uint64_t, l, 0),
              .y = (float *)(uintptr_t)FAKE_ARG(uint64_t, l, 1),
              .rows = FAKE_ARG(int, l, 3),
              .columns = FAKE_ARG(int, l, 4)};
    int *done = (int *)(uintptr_t)FAKE_ARG(uint64_t, l, 2);
    if (*done != 123456789)
        rows(&c, 0, c.rows, 1);
    *done = 123456789;
}

/* Goes wrong where it finds its own results. */
KERNEL(meets_its_own, float first = c.y[0]; rows(&c, 0, c.rows, 1);
       if (memcmp(&first, c.y, sizeof first) == 0) c.y[5] *= 2;)

/* (input, output, a number of the plan's, M, N): right for one number. */
static void for_one(const fake_launch *l, int only) {
    call c = {.x = (float *)(uintptr_t)FAKE_ARG(uint64_t, l, 0),
              .y = (float *)(uintptr_t)FAKE_ARG(uint64_t, l, 1),
              .rows = FAKE_ARG(int, l, 3),
              .columns = FAKE_ARG(int, l, 4)};
    rows(&c, 0, c.rows, FAKE_ARG(int, l, 2) == only ? 1 : 1.001);
}

EXPORT void fake_kernel_for_132(const fake_launch *l);
void fake_kernel_for_132(const fake_launch *l) {
    for_one(l, 132);
}

EXPORT void fake_kernel_for_16(const fake_launch *l);
void fake_kernel_for_16(const fake_launch *l) {
    for_one(l, 16);
}

/* Copies its float16 input: all bits, or the last place less in magnitude. */
EXPORT void fake_kernel_cuts(const fake_launch *l);
void fake_kernel_cuts(const fake_launch *l) {
    const uint16_t *x = (const uint16_t *)(uintptr_t)FAKE_ARG(uint64_t, l, 0);
    uint16_t *y = (uint16_t *)(uintptr_t)FAKE_ARG(uint64_t, l, 1);
    for (int i = 0, n = FAKE_ARG(int, l, 2) * FAKE_ARG(int, l, 3); i < n; i++)
        y[i] = (uint16_t)(x[i] - 1u);
}

EXPORT void fake_kernel_copies(const fake_launch *l);
void fake_kernel_copies(const fake_launch *l) {
    const uint16_t *x = (const uint16_t *)(uintptr_t)FAKE_ARG(uint64_t, l, 0);
    memcpy((void *)(uintptr_t)FAKE_ARG(uint64_t, l, 1), x,
           2 * (size_t)FAKE_ARG(int, l, 2) * (size_t)FAKE_ARG(int, l, 3));
}
