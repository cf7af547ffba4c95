/* For tests that compile CUDA: NVRTC as KGEN_TEST_NVRTC (a folder, CI's pip install) or the machine
 * has it, else the test is skipped with the reason. */
#ifndef KG_TEST_NVRTC_UTIL_H
#define KG_TEST_NVRTC_UTIL_H

#include "sys/nvrtc.h"
#include "test.h"

static inline const kg_nvrtc *need_nvrtc(void) {
    const kg_nvrtc *n = NULL;
    kg_error err = {0};
    kg_nvrtc_search(getenv("KGEN_TEST_NVRTC"));
    if (kg_nvrtc_find(&n, &err) != KG_OK)
        test_skip("%s", err.msg);
    return n;
}

#endif
