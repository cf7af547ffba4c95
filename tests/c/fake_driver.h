/* The stand-in for the CUDA driver, for the tests: chooses it before anything loads the real one.
 */
#ifndef KG_TEST_FAKE_DRIVER_H
#define KG_TEST_FAKE_DRIVER_H

#include "fake_cuda.h"
#include "test.h"

static inline const fake_cuda *use_fake(const char *settings) {
    const fake_cuda *fake = fake_cuda_use(KGEN_BINARY_DIR "/libkgen_fakecuda.so", settings);
    if (fake == NULL)
        FAIL("the stand-in for the driver does not load: %s", dlerror());
    return fake;
}

#endif
