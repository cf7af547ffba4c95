// Holds csrc/sys/nvrtc_abi.h, our own C declarations of NVRTC's ABI, against nvrtc.h. There is
// nothing to run.
#include <nvrtc.h>

#include "conformance/same_abi.h"

namespace ours {
extern "C" {
#include "sys/nvrtc_abi.h"
}
} // namespace ours

namespace ours {
#define KG_X(name, params)                                                                         \
    static_assert(same_abi<decltype(&::name), decltype(kg_nvrtc_table::name)>::value,              \
                  #name ": nvrtc_abi.h and nvrtc.h differ");
KG_NVRTC_SYMS(KG_X)
#undef KG_X
} // namespace ours

static_assert(int(ours::KG_NVRTC_OUT_OF_MEMORY) == NVRTC_ERROR_OUT_OF_MEMORY &&
              int(ours::KG_NVRTC_INVALID_OPTION) == NVRTC_ERROR_INVALID_OPTION &&
              int(ours::KG_NVRTC_COMPILATION) == NVRTC_ERROR_COMPILATION);
