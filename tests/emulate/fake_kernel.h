/* Lets the stand-in for the driver (tests/fake) run CUDA kernels: a launch of NAME calls
 * `fake_kernel_NAME`, which runs the kernel's source in the emulator. So the whole judge is at
 * work, workers, guards and comparison, without a GPU. Included after ptx.h by what
 * tests/python/emulated_gpu.py writes; one launch at a time, as the stand-in makes them.
 *
 * Refuses nothing of its own: what the emulator cannot do ends the process (exit code 3), which the
 * judge sees as a crash. */
#ifndef KGEN_TESTS_EMULATE_FAKE_KERNEL_H
#define KGEN_TESTS_EMULATE_FAKE_KERNEL_H

#define _Alignas(n) alignas(n)
#include "fake_cuda.h"

#include "ptx.h"

namespace emu {

template <class T> T from_launch(const fake_launch *l, size_t i) {
    std::remove_const_t<T> value{};
    memcpy(static_cast<void *>(&value), l->bytes + l->offset[i], sizeof value);
    return value;
}

template <class... A, size_t... I>
std::function<void()> bind_launch(void (*kernel)(A...), const fake_launch *l,
                                  std::index_sequence<I...>) {
    std::tuple<std::remove_const_t<A>...> values{from_launch<A>(l, I)...};
    return [kernel, values] { std::apply(kernel, values); };
}

/* The blocks of a cooperative launch wait for each other, as those of a cluster may. */
template <class... A> void run_fake(void (*kernel)(A...), const fake_launch *l) {
    const unsigned *together = l->cooperative ? l->grid : l->cluster;
    launch.grid = {l->grid[0], l->grid[1], l->grid[2]};
    launch.block = {l->block[0], l->block[1], l->block[2]};
    launch.cluster = {together[0], together[1], together[2]};
    launch.shared = l->shared;
    launch.kernel = bind_launch(kernel, l, std::index_sequence_for<A...>{});
    call_name = l->function;
    run_launch();
}

} // namespace emu

#define KG_FAKE_KERNEL(space, name)                                                                \
    extern "C" __attribute__((visibility("default"))) void fake_kernel_##name(                     \
        const fake_launch *l) {                                                                    \
        emu::run_fake(space::name, l);                                                             \
    }

#endif
