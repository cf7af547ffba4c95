/* The driver's memory: allocations, copies, pinned host memory, and VMM allocations that another
 * process maps. */
#include <stdint.h>
#include <stdio.h>

#include "sys/cuda.h"
#include "sys/cuda_internal.h"

static const char *bytes_text(size_t bytes, char text[48]) {
    snprintf(text, 48, "%zu bytes", bytes);
    return text;
}

int kg_cuda_alloc(size_t bytes, kg_cu_ptr *out, kg_error *err) {
    char text[48];
    kg_cu_ptr p = 0;
    int rc = KG_CU_CALL(cuMemAlloc_v2, bytes_text(bytes, text), (&p, bytes > 0 ? bytes : 1), err);
    if (rc == KG_OK)
        *out = p;
    return rc;
}

void kg_cuda_free(kg_cu_ptr p) {
    if (p != 0)
        (void)kg_cu.cuMemFree_v2(p);
}

int kg_cuda_memset8(kg_cu_ptr to, uint8_t value, size_t bytes, kg_cu_stream s, kg_error *err) {
    return bytes == 0 ? KG_OK : KG_CU_CALL(cuMemsetD8Async, "", (to, value, bytes, s), err);
}

int kg_cuda_memset32(kg_cu_ptr to, uint32_t value, size_t words, kg_cu_stream s, kg_error *err) {
    return words == 0 ? KG_OK : KG_CU_CALL(cuMemsetD32Async, "", (to, value, words, s), err);
}

int kg_cuda_to_device(kg_cu_ptr to, const void *from, size_t bytes, kg_error *err) {
    return bytes == 0 ? KG_OK : KG_CU_CALL(cuMemcpyHtoD_v2, "", (to, from, bytes), err);
}

int kg_cuda_to_host(void *to, kg_cu_ptr from, size_t bytes, kg_error *err) {
    return bytes == 0 ? KG_OK : KG_CU_CALL(cuMemcpyDtoH_v2, "", (to, from, bytes), err);
}

int kg_cuda_to_device_async(kg_cu_ptr to, const void *from, size_t bytes, kg_cu_stream s,
                            kg_error *err) {
    return bytes == 0 ? KG_OK : KG_CU_CALL(cuMemcpyHtoDAsync_v2, "", (to, from, bytes, s), err);
}

int kg_cuda_to_host_async(void *to, kg_cu_ptr from, size_t bytes, kg_cu_stream s, kg_error *err) {
    return bytes == 0 ? KG_OK : KG_CU_CALL(cuMemcpyDtoHAsync_v2, "", (to, from, bytes, s), err);
}

int kg_cuda_copy_async(kg_cu_ptr to, kg_cu_ptr from, size_t bytes, kg_cu_stream s, kg_error *err) {
    return bytes == 0 ? KG_OK : KG_CU_CALL(cuMemcpyDtoDAsync_v2, "", (to, from, bytes, s), err);
}

static int seen_by_device(void *p, kg_cu_ptr *device, kg_error *err) {
    kg_cu_ptr at = 0;
    if (device == NULL)
        return KG_OK;
    int rc = KG_CU_CALL(cuMemHostGetDevicePointer_v2, "", (&at, p, 0), err);
    if (rc == KG_OK)
        *device = at;
    return rc;
}

int kg_cuda_host_alloc(size_t bytes, void **out, kg_cu_ptr *device, kg_error *err) {
    char text[48];
    void *p = NULL;
    int rc = KG_CU_CALL(cuMemHostAlloc, bytes_text(bytes, text),
                        (&p, bytes, KG_CU_HOST_ALLOC_DEVICEMAP), err);
    if (rc == KG_OK && (rc = seen_by_device(p, device, err)) != KG_OK)
        kg_cuda_host_free(p);
    if (rc == KG_OK)
        *out = p;
    return rc;
}

void kg_cuda_host_free(void *p) {
    if (p != NULL)
        (void)kg_cu.cuMemFreeHost(p);
}

int kg_cuda_host_register(void *p, size_t bytes, kg_cu_ptr *device, kg_error *err) {
    char text[48];
    int rc = KG_CU_CALL(cuMemHostRegister_v2, bytes_text(bytes, text),
                        (p, bytes, KG_CU_HOST_REGISTER_DEVICEMAP), err);
    if (rc == KG_OK && (rc = seen_by_device(p, device, err)) != KG_OK)
        kg_cuda_host_unregister(p);
    return rc;
}

void kg_cuda_host_unregister(void *p) {
    if (p != NULL)
        (void)kg_cu.cuMemHostUnregister(p);
}

int kg_cuda_pointer_device(kg_cu_ptr p, int *device, kg_error *err) {
    int at = -1;
    int rc = KG_CU_CALL(cuPointerGetAttribute, "", (&at, KG_CU_POINTER_DEVICE_ORDINAL, p), err);
    if (rc == KG_OK)
        *device = at;
    return rc;
}

bool kg_cuda_pointer_on(kg_cu_ptr p, int device) {
    unsigned type = 0;
    int at = -1;
    return kg_cu.cuPointerGetAttribute(&type, KG_CU_POINTER_MEMORY_TYPE, p) == KG_CU_SUCCESS &&
           type == KG_CU_MEMORY_DEVICE &&
           kg_cu.cuPointerGetAttribute(&at, KG_CU_POINTER_DEVICE_ORDINAL, p) == KG_CU_SUCCESS &&
           at == device;
}

/* ---- virtual memory ---- */

static kg_cu_allocation allocation_on(int device) {
    return (kg_cu_allocation){.type = KG_CU_ALLOCATION_PINNED,
                              .handle_types = KG_CU_HANDLE_POSIX_FD,
                              .location = {.type = KG_CU_LOCATION_DEVICE, .id = device}};
}

int kg_cuda_granularity(int device, size_t *bytes, kg_error *err) {
    kg_cu_allocation a = allocation_on(device);
    size_t n = 0;
    int rc =
        KG_CU_CALL(cuMemGetAllocationGranularity, "", (&n, &a, KG_CU_GRANULARITY_RECOMMENDED), err);
    if (rc == KG_OK)
        *bytes = n;
    return rc;
}

int kg_cuda_memory_create(int device, size_t bytes, kg_cu_memory *out, kg_error *err) {
    char text[48];
    kg_cu_allocation a = allocation_on(device);
    kg_cu_memory m = 0;
    int rc = KG_CU_CALL(cuMemCreate, bytes_text(bytes, text), (&m, bytes, &a, 0), err);
    if (rc == KG_OK)
        *out = m;
    return rc;
}

void kg_cuda_memory_release(kg_cu_memory m) {
    if (m != 0)
        (void)kg_cu.cuMemRelease(m);
}

int kg_cuda_memory_export(kg_cu_memory m, int *fd, kg_error *err) {
    int got = -1;
    int rc = KG_CU_CALL(cuMemExportToShareableHandle, "", (&got, m, KG_CU_HANDLE_POSIX_FD, 0), err);
    if (rc == KG_OK)
        *fd = got;
    return rc;
}

int kg_cuda_memory_import(int fd, kg_cu_memory *out, kg_error *err) {
    kg_cu_memory m = 0;
    /* A descriptor is given as if it were a pointer. */
    void *handle = (void *)(intptr_t)fd;
    int rc =
        KG_CU_CALL(cuMemImportFromShareableHandle, "", (&m, handle, KG_CU_HANDLE_POSIX_FD), err);
    if (rc == KG_OK)
        *out = m;
    return rc;
}

int kg_cuda_reserve(size_t bytes, size_t align, kg_cu_ptr *out, kg_error *err) {
    char text[48];
    kg_cu_ptr at = 0;
    int rc =
        KG_CU_CALL(cuMemAddressReserve, bytes_text(bytes, text), (&at, bytes, align, 0, 0), err);
    if (rc == KG_OK)
        *out = at;
    return rc;
}

void kg_cuda_unreserve(kg_cu_ptr at, size_t bytes) {
    if (at != 0)
        (void)kg_cu.cuMemAddressFree(at, bytes);
}

int kg_cuda_map_memory(kg_cu_ptr at, size_t bytes, kg_cu_memory m, int device, bool writable,
                       kg_error *err) {
    char text[48];
    kg_cu_access access = {.location = {.type = KG_CU_LOCATION_DEVICE, .id = device},
                           .flags = writable ? KG_CU_ACCESS_READ_WRITE : KG_CU_ACCESS_READ};
    int rc = KG_CU_CALL(cuMemMap, bytes_text(bytes, text), (at, bytes, 0, m, 0), err);
    if (rc != KG_OK)
        return rc;
    rc = KG_CU_CALL(cuMemSetAccess, bytes_text(bytes, text), (at, bytes, &access, 1), err);
    if (rc != KG_OK)
        (void)kg_cu.cuMemUnmap(at, bytes);
    return rc;
}

int kg_cuda_unmap(kg_cu_ptr at, size_t bytes, kg_error *err) {
    return KG_CU_CALL(cuMemUnmap, "", (at, bytes), err);
}
