/* Modules, functions, launches and tensor maps. What can never run is said before the launch, with
 * the numbers; the driver's own answer to most of it is a bare CUDA_ERROR_INVALID_VALUE. */
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "sys/cuda.h"
#include "sys/cuda_internal.h"

enum { PORTABLE_CLUSTER = 8, MAX_ATTRIBUTES = 3 };

/* ---- modules and functions ---- */

int kg_cuda_module_load(const void *cubin, size_t n, kg_cu_module *out, kg_error *err) {
    kg_cu_module m = NULL;
    int version = 0;
    if (n < 4)
        return kg_fail(err, KG_EFORMAT, "an image of %zu bytes", n);
    int rc = KG_CU_CALL(cuModuleLoadData, "", (&m, cubin), err);
    if (rc == KG_OK)
        *out = m;
    if (rc == KG_EUNSUPPORTED && kg_cuda_driver(&version, NULL) == KG_OK)
        return kg_fail(err, rc,
                       "cuModuleLoadData: %s; the image is for another GPU, or the driver (CUDA "
                       "%d.%d) is older than the NVRTC that compiled it: install a newer driver or "
                       "an NVRTC of CUDA %d (pip install 'nvidia-cuda-nvrtc%s')",
                       kg_cuda_result_name(kg_cuda_last()), version / 1000, version % 1000 / 10,
                       version / 1000, version / 1000 >= 13 ? "==13.*" : "-cu12");
    return rc;
}

void kg_cuda_module_unload(kg_cu_module module) {
    if (module != NULL)
        (void)kg_cu.cuModuleUnload(module);
}

int kg_cuda_function(kg_cu_module module, const char *name, kg_cu_function *out, kg_error *err) {
    kg_cu_function f = NULL;
    int rc = KG_CU_CALL(cuModuleGetFunction, name, (&f, module, name), err);
    if (rc == KG_OK && kg_cu.cuFuncLoad != NULL)
        rc = KG_CU_CALL(cuFuncLoad, name, (f), err);
    if (rc == KG_OK)
        *out = f;
    return rc;
}

static int function_attribute(kg_cu_function f, int which, int *out, kg_error *err) {
    return KG_CU_CALL(cuFuncGetAttribute, "", (out, which, f), err);
}

int kg_cuda_function_info_get(kg_cu_function f, kg_cuda_function_info *out, kg_error *err) {
    kg_cuda_function_info i = {0};
    int rc = function_attribute(f, KG_CU_FUNC_REGISTERS, &i.registers, err);
    if (rc == KG_OK)
        rc = function_attribute(f, KG_CU_FUNC_LOCAL, &i.local_bytes, err);
    if (rc == KG_OK)
        rc = function_attribute(f, KG_CU_FUNC_STATIC_SHARED, &i.static_shared, err);
    if (rc == KG_OK)
        rc = function_attribute(f, KG_CU_FUNC_MAX_THREADS, &i.max_threads, err);
    if (rc == KG_OK)
        *out = i;
    return rc;
}

int kg_cuda_function_param(kg_cu_function f, size_t i, size_t *offset, size_t *size,
                           kg_error *err) {
    size_t at = 0, bytes = 0;
    if (kg_cu.cuFuncGetParamInfo == NULL)
        return kg_fail(err, KG_EUNSUPPORTED, "this driver has no cuFuncGetParamInfo");
    int result = kg_cu.cuFuncGetParamInfo(f, i, &at, &bytes);
    if (result == KG_CU_INVALID_VALUE)
        return kg_fail(err, KG_ENOTFOUND, "the function has no parameter %zu", i);
    int rc = kg_cuda_check(result, "cuFuncGetParamInfo", "", err);
    if (rc == KG_OK) {
        *offset = at;
        *size = bytes;
    }
    return rc;
}

/* ---- launches ---- */

static unsigned cluster_blocks(const kg_cuda_launch *l) {
    unsigned n = 1;
    for (size_t i = 0; i < 3; i++)
        n *= l->cluster[i] > 0 ? l->cluster[i] : 1;
    return n;
}

static kg_cu_launch_config config_of(const kg_cuda_launch *l, kg_cu_stream stream,
                                     kg_cu_launch_attribute attrs[MAX_ATTRIBUTES]) {
    kg_cu_launch_config c = {.shared = l->shared, .stream = stream, .attrs = attrs};
    for (size_t i = 0; i < 3; i++) {
        c.grid[i] = l->grid[i];
        c.block[i] = l->block[i];
    }
    if (cluster_blocks(l) > 1) {
        kg_cu_launch_attribute *a = &attrs[c.nattrs++];
        *a = (kg_cu_launch_attribute){.id = KG_CU_LAUNCH_CLUSTER};
        for (size_t i = 0; i < 3; i++)
            a->value.dim[i] = l->cluster[i] > 0 ? l->cluster[i] : 1;
    }
    if (l->cooperative)
        attrs[c.nattrs++] =
            (kg_cu_launch_attribute){.id = KG_CU_LAUNCH_COOPERATIVE, .value.flag = 1};
    if (l->pdl)
        attrs[c.nattrs++] = (kg_cu_launch_attribute){.id = KG_CU_LAUNCH_PDL, .value.flag = 1};
    return c;
}

int kg_cuda_max_clusters(const kg_cuda_launch *l, int *n, kg_error *err) {
    kg_cu_launch_attribute attrs[MAX_ATTRIBUTES];
    kg_cu_launch_config c = config_of(l, NULL, attrs);
    int count = 0;
    int rc = KG_CU_CALL(cuOccupancyMaxActiveClusters, "", (&count, l->function, &c), err);
    if (rc == KG_OK)
        *n = count;
    return rc;
}

int kg_cuda_max_blocks(kg_cu_function f, int threads, size_t shared, int *n, kg_error *err) {
    int count = 0;
    int rc = KG_CU_CALL(cuOccupancyMaxActiveBlocksPerMultiprocessor, "",
                        (&count, f, threads, shared), err);
    if (rc == KG_OK)
        *n = count;
    return rc;
}

static int threads_of(const kg_cuda_launch *l) {
    return (int)(l->block[0] * l->block[1] * l->block[2]);
}

static int current_device(const kg_cuda_device **out, kg_error *err) {
    int index = 0;
    int rc = KG_CU_CALL(cuCtxGetDevice, "", (&index), err);
    return rc == KG_OK ? kg_cuda_device_get(index, out, err) : rc;
}

static int check_block(const kg_cuda_launch *l, const kg_cuda_device *d, kg_error *err) {
    kg_cuda_function_info info;
    int rc = kg_cuda_function_info_get(l->function, &info, err);
    if (rc != KG_OK)
        return rc;
    if (threads_of(l) > info.max_threads)
        return kg_fail(err, KG_EINVAL,
                       "a block of %d threads; the function takes at most %d (it needs %d "
                       "registers a thread): use fewer threads or __launch_bounds__",
                       threads_of(l), info.max_threads, info.registers);
    if ((int64_t)l->shared + info.static_shared > d->max_shared)
        return kg_fail(err, KG_EINVAL,
                       "%u bytes of dynamic shared memory and %d of static; a block of this %s has "
                       "%d",
                       l->shared, info.static_shared, d->name, d->max_shared);
    return KG_OK;
}

static int check_clusters(const kg_cuda_launch *l, const kg_cuda_device *d, kg_error *err) {
    int n = 0;
    if (!d->clusters)
        return kg_fail(err, KG_EINVAL, "a cluster of %u blocks; this %s (sm_%d) has no clusters",
                       cluster_blocks(l), d->name, d->arch);
    int rc = kg_cuda_max_clusters(l, &n, err);
    bool refused = rc != KG_OK && (kg_cuda_last() == KG_CU_INVALID_CLUSTER_SIZE ||
                                   kg_cuda_last() == KG_CU_INVALID_VALUE);
    if ((rc == KG_OK && n == 0) || refused)
        return kg_fail(
            err, KG_EINVAL,
            "a cluster of %u blocks of %d threads and %u bytes of shared memory does not "
            "fit this %s at all: make it smaller",
            cluster_blocks(l), threads_of(l), l->shared, d->name);
    return rc;
}

static int check_cooperative(const kg_cuda_launch *l, const kg_cuda_device *d, kg_error *err) {
    int per_sm = 0;
    int64_t blocks = (int64_t)l->grid[0] * l->grid[1] * l->grid[2];
    if (!d->cooperative)
        return kg_fail(err, KG_EINVAL, "this %s has no cooperative launches", d->name);
    int rc = kg_cuda_max_blocks(l->function, threads_of(l), l->shared, &per_sm, err);
    if (rc == KG_OK && blocks > (int64_t)per_sm * d->sms)
        return kg_fail(err, KG_EINVAL,
                       "a cooperative grid of %" PRId64
                       " blocks; %d an SM on %d SMs are resident at "
                       "once: size the grid from NUM_SMS",
                       blocks, per_sm, d->sms);
    return rc;
}

/* A function serves launches of several sizes: the limit only ever grows. */
static int raise_shared(kg_cu_function f, int bytes, kg_error *err) {
    int now = 0;
    int rc = function_attribute(f, KG_CU_FUNC_MAX_DYNAMIC_SHARED, &now, err);
    if (rc != KG_OK || bytes <= now)
        return rc;
    return KG_CU_CALL(cuFuncSetAttribute, "", (f, KG_CU_FUNC_MAX_DYNAMIC_SHARED, bytes), err);
}

int kg_cuda_launch_prepare(const kg_cuda_launch *l, kg_error *err) {
    const kg_cuda_device *d = NULL;
    int rc = current_device(&d, err);
    if (rc == KG_OK)
        rc = check_block(l, d, err);
    if (rc == KG_OK && l->shared > 0)
        rc = raise_shared(l->function, (int)l->shared, err);
    if (rc == KG_OK && cluster_blocks(l) > PORTABLE_CLUSTER)
        rc = KG_CU_CALL(cuFuncSetAttribute, "", (l->function, KG_CU_FUNC_NON_PORTABLE_CLUSTER, 1),
                        err);
    if (rc == KG_OK && cluster_blocks(l) > 1)
        rc = check_clusters(l, d, err);
    if (rc == KG_OK && l->cooperative)
        rc = check_cooperative(l, d, err);
    return rc;
}

int kg_cuda_launch_kernel(const kg_cuda_launch *l, kg_cu_stream stream, void **args,
                          kg_error *err) {
    kg_cu_launch_attribute attrs[MAX_ATTRIBUTES];
    kg_cu_launch_config c = config_of(l, stream, attrs);
    return KG_CU_CALL(cuLaunchKernelEx, "", (&c, l->function, args, NULL), err);
}

/* ---- tensor maps ---- */

static int swizzle_code(int swizzle) {
    return swizzle == 32 ? 1 : swizzle == 64 ? 2 : swizzle == 128 ? 3 : 0;
}

static int l2_code(int l2) {
    return l2 == 64 ? 1 : l2 == 128 ? 2 : l2 == 256 ? 3 : 0;
}

static int check_dims(const kg_cuda_map_spec *s, kg_error *err) {
    for (unsigned i = 0; i < s->rank; i++) {
        if (s->dims[i] < 1 || s->dims[i] > UINT64_C(1) << 32)
            return kg_fail(err, KG_EINVAL,
                           "a tensor map's dim %u is %" PRIu64 "; it must be in [1, 2^32]", i,
                           s->dims[i]);
        if (s->box[i] < 1 || s->box[i] > 256)
            return kg_fail(err, KG_EINVAL, "a tensor map's box[%u] is %u; it must be in [1, 256]",
                           i, s->box[i]);
        if (i > 0 && (s->strides[i - 1] % 16 != 0 || s->strides[i - 1] >= UINT64_C(1) << 40))
            return kg_fail(err, KG_EINVAL,
                           "a tensor map's stride of dim %u is %" PRIu64
                           " bytes; it must be a multiple of 16 below 2^40",
                           i, s->strides[i - 1]);
    }
    return KG_OK;
}

static int check_spec(const kg_cuda_map_spec *s, kg_cu_ptr address, kg_error *err) {
    size_t inner = s->box[0] * s->item_bytes;
    if (s->rank < 1 || s->rank > 5)
        return kg_fail(err, KG_EINVAL, "a tensor map of rank %u; 1 to 5 are possible", s->rank);
    if (address % 16 != 0)
        return kg_fail(err, KG_EINVAL,
                       "a tensor map's tensor lies at 0x%" PRIx64 ", which is no multiple of 16 "
                       "(the plan's require can say align(x) >= 16)",
                       address);
    if (inner % 16 != 0 || (s->swizzle > 0 && inner > (size_t)s->swizzle))
        return kg_fail(err, KG_EINVAL,
                       "a tensor map's box is %zu bytes wide; that must be a multiple of 16 and, "
                       "when swizzled, at most the span (%d)",
                       inner, s->swizzle);
    return check_dims(s, err);
}

int kg_cuda_map_encode(const kg_cuda_map_spec *spec, kg_cu_ptr address, kg_cuda_map *out,
                       kg_error *err) {
    static const uint32_t ones[5] = {1, 1, 1, 1, 1};
    kg_cuda_map map;
    void *at = (void *)(uintptr_t)address;
    int rc = kg_cuda_load(err);
    if (rc == KG_OK)
        rc = check_spec(spec, address, err);
    if (rc != KG_OK)
        return rc;
    rc = KG_CU_CALL(cuTensorMapEncodeTiled, "",
                    (&map, spec->type, spec->rank, at, spec->dims, spec->strides, spec->box, ones,
                     KG_CU_TENSOR_MAP_INTERLEAVE_NONE, swizzle_code(spec->swizzle),
                     l2_code(spec->l2), 0),
                    err);
    if (rc == KG_OK)
        *out = map;
    return rc;
}
