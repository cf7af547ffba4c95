// Holds csrc/runtime/torch_abi.h, our own C declarations of torch's stable ABI, against torch's
// headers: a function whose type differs does not compile. There is nothing to run. Headers older
// than 2.10 are refused; functions newer than the headers are left out, so CI compiles this on the
// newest torch.
#define USE_CUDA 1 // the declarations for CUDA builds are wanted on CPU builds too
#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/c/shim.h>
#include <torch/csrc/stable/version.h>

#include <type_traits>

extern "C" {
#include "runtime/torch_abi.h"
}

static_assert(TORCH_FEATURE_VERSION >= TORCH_VERSION_2_10_0, "kgen needs torch 2.10 or newer");

#define KG_CHECK(ret, name, args)                                                                  \
    static_assert(std::is_same_v<decltype(&::name), ret(*) args>,                                  \
                  #name ": torch_abi.h and torch's header differ");
#define KG_CHECK_1(ret, name, args) KG_CHECK(ret, name, args)
#if TORCH_ABI_VERSION >= (((0ULL + 2) << 56) | ((0ULL + 13) << 48))
#define KG_CHECK_0(ret, name, args) KG_CHECK(ret, name, args)
#else
#define KG_CHECK_0(ret, name, args)
#endif
#define KG_X(required, ret, name, args) KG_CHECK_##required(ret, name, args)
KG_TORCH_SYMS(KG_X)
