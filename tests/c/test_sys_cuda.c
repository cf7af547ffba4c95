/* The driver's table, its messages and its calls, on the stand-in of tests/fake. */
#include <unistd.h>

#include "fake_driver.h"
#include "sys/cuda.h"

enum { OUT_OF_MEMORY = 2, ILLEGAL_ADDRESS = 700, INVALID_VALUE = 1, KIB = 1024 };

static const char IMAGE[] = "KGFAKE1\n"
                            "kernel scale 8,8,4,4 registers=40 static_shared=512\n"
                            "kernel small - max_threads=256 registers=128\n";

static kg_error err;

static kg_cu_function function(const char *name) {
    kg_cu_module m;
    kg_cu_function f;
    CHECK_OK(kg_cuda_module_load(IMAGE, sizeof(IMAGE), &m, &err), err);
    CHECK_OK(kg_cuda_function(m, name, &f, &err), err);
    return f;
}

static void enter(void) {
    static kg_cuda_scope scope;
    CHECK_OK(kg_cuda_enter(0, &scope, &err), err);
}

TEST(cuda_no_driver_says_what_to_install) {
    setenv("KGEN_LIBCUDA", test_path("libcuda.so.1"), 1);
    CHECK_ERR(kg_cuda_load(&err), err, KG_EENV, "KGEN_LIBCUDA");
    CHECK_HAS(err.msg, "libcuda.so.1");
    int n = 7;
    CHECK_ERR(kg_cuda_count(&n, &err), err, KG_EENV, "libcuda.so.1");
    CHECK_INT(n, 7);
}

TEST(cuda_old_driver_is_named_with_what_is_needed) {
    use_fake("driver=11080");
    CHECK_ERR(kg_cuda_load(&err), err, KG_EENV, "CUDA 11.8");
    CHECK_HAS(err.msg, "12.0");
}

TEST(cuda_no_device_points_at_visible_devices) {
    use_fake("devices=0");
    int n = 0;
    CHECK_ERR(kg_cuda_count(&n, &err), err, KG_EENV, "CUDA_ERROR_NO_DEVICE");
    CHECK_HAS(err.msg, "CUDA_VISIBLE_DEVICES");
}

TEST(cuda_gpu_below_sm80_is_refused_by_name) {
    const kg_cuda_device *d;
    use_fake("arch=75");
    CHECK_ERR(kg_cuda_device_get(0, &d, &err), err, KG_EENV,
              "Fake GPU 0 of compute capability 7.5");
}

TEST(cuda_init_failure_stands) {
    const fake_cuda *fake = use_fake("fail=cuInit:1:803");
    CHECK_ERR(kg_cuda_load(&err), err, KG_EENV, "cuInit");
    CHECK_HAS(err.msg, "reboot");
    CHECK_INT(kg_cuda_last(), 803);
    CHECK_INT(kg_cuda_load(&err), KG_EENV);
    CHECK_UINT(fake->calls("cuInit"), 1);
}

TEST(cuda_devices_tell_what_plans_need) {
    const kg_cuda_device *d;
    int n = 0, version = 0;
    use_fake("devices=2,arch=90,sms=132,shared=232448,driver=12080,memory=512");
    CHECK_OK(kg_cuda_count(&n, &err), err);
    CHECK_INT(n, 2);
    CHECK_OK(kg_cuda_driver(&version, &err), err);
    CHECK_INT(version, 12080);
    CHECK_OK(kg_cuda_device_get(1, &d, &err), err);
    CHECK_STR(d->name, "Fake GPU 1");
    CHECK_INT(d->arch, 90);
    CHECK_INT(d->sms, 132);
    CHECK_INT(d->max_shared, 232448);
    CHECK_INT(d->memory, (int64_t)512 << 20);
    CHECK(d->clusters && d->vmm);
    CHECK_ERR(kg_cuda_device_get(2, &d, &err), err, KG_EINVAL,
              "no CUDA device 2: this process sees 2");
    CHECK_ERR(kg_cuda_device_get(-1, &d, &err), err, KG_EINVAL, "no CUDA device -1");
}

TEST(cuda_contexts_nest_and_come_back) {
    const fake_cuda *fake = use_fake("devices=2");
    kg_cuda_scope a, b, c;
    size_t free_bytes, total;
    CHECK_ERR(kg_cuda_load(&err) == KG_OK ? kg_cuda_memory_info(&free_bytes, &total, &err) : 1, err,
              KG_EIO, "cuMemGetInfo_v2");
    CHECK_OK(kg_cuda_enter(0, &a, &err), err);
    CHECK_OK(kg_cuda_enter(0, &b, &err), err);
    CHECK(!b.pushed);
    CHECK_OK(kg_cuda_enter(1, &c, &err), err);
    kg_cuda_leave(&c);
    kg_cuda_leave(&c);
    kg_cuda_leave(&b);
    CHECK_OK(kg_cuda_memory_info(&free_bytes, &total, &err), err);
    kg_cuda_leave(&a);
    CHECK_INT(kg_cuda_memory_info(&free_bytes, &total, &err), KG_EIO);
    CHECK_UINT(fake->calls("cuDevicePrimaryCtxRetain"), 2);
}

TEST(cuda_full_device_says_how_much_is_free) {
    use_fake("memory=64");
    kg_cu_ptr a = 0, b = 0;
    CHECK_OK(kg_cuda_load(&err), err);
    enter();
    CHECK_OK(kg_cuda_alloc((size_t)40 << 20, &a, &err), err);
    CHECK_ERR(
        kg_cuda_alloc((size_t)30 << 20, &b, &err), err, KG_ENOMEM,
        "cuMemAlloc_v2 of 31457280 bytes: CUDA_ERROR_OUT_OF_MEMORY; 24 MiB of 64 MiB are free");
    CHECK_UINT(b, 0);
    CHECK_INT(kg_cuda_last(), OUT_OF_MEMORY);
    kg_cuda_free(a);
    CHECK_OK(kg_cuda_alloc((size_t)30 << 20, &b, &err), err);
    kg_cuda_free(b);
    kg_cuda_free(0);
}

TEST(cuda_sticky_error_is_told_apart_and_stays) {
    const fake_cuda *fake = use_fake("fault=scale:700");
    uint32_t n = 4;
    float v = 2;
    kg_cu_ptr p;
    enter();
    CHECK_OK(kg_cuda_alloc(64, &p, &err), err);
    kg_cuda_launch l = {.function = function("scale"), .grid = {1, 1, 1}, .block = {32, 1, 1}};
    CHECK_OK(kg_cuda_launch_kernel(&l, NULL, (void *[]){&p, &p, &n, &v}, &err), err);
    CHECK_ERR(
        kg_cuda_synchronize(&err), err, KG_EDEVICE,
        "cuCtxSynchronize: CUDA_ERROR_ILLEGAL_ADDRESS; the CUDA context of this process is lost");
    CHECK_INT(kg_cuda_last(), ILLEGAL_ADDRESS);
    CHECK(kg_cuda_sticky(kg_cuda_last()));
    CHECK(!kg_cuda_sticky(INVALID_VALUE));
    CHECK_INT(kg_cuda_alloc(64, &p, &err), KG_EDEVICE);
    fake->reset();
    kg_cuda_free(p);
}

TEST(cuda_launch_carries_every_attribute) {
    const fake_cuda *fake = use_fake("arch=90");
    kg_cu_stream s;
    uint32_t n = 77;
    float v = 2.5f;
    kg_cu_ptr a = 0x1000, b = 0x2000;
    enter();
    CHECK_OK(kg_cuda_stream_create(&s, &err), err);
    kg_cuda_launch l = {.function = function("scale"),
                        .grid = {4, 2, 2},
                        .block = {64, 2, 1},
                        .cluster = {2, 1, 2},
                        .shared = 100 * KIB,
                        .cooperative = true,
                        .pdl = true};
    CHECK_OK(kg_cuda_launch_prepare(&l, &err), err);
    CHECK_OK(kg_cuda_launch_kernel(&l, s, (void *[]){&a, &b, &n, &v}, &err), err);
    CHECK_UINT(fake->nlaunches(), 1);
    const fake_launch *got = fake->launch(0);
    CHECK_STR(got->function, "scale");
    CHECK_MEM(got->grid, ((unsigned[]){4, 2, 2}), sizeof(got->grid));
    CHECK_MEM(got->block, ((unsigned[]){64, 2, 1}), sizeof(got->block));
    CHECK_MEM(got->cluster, ((unsigned[]){2, 1, 2}), sizeof(got->cluster));
    CHECK_UINT(got->shared, 100 * KIB);
    CHECK(got->cooperative && got->pdl && got->stream == (void *)s);
    CHECK_UINT(FAKE_ARG(uint64_t, got, 0), a);
    CHECK_UINT(FAKE_ARG(uint64_t, got, 1), b);
    CHECK_UINT(FAKE_ARG(uint32_t, got, 2), 77);
    CHECK_NEAR(FAKE_ARG(float, got, 3), 2.5, 0);
    kg_cuda_stream_destroy(s);
}

TEST(cuda_plain_launch_has_no_attributes) {
    const fake_cuda *fake = use_fake("");
    enter();
    kg_cuda_launch l = {.function = function("small"), .grid = {1, 1, 1}, .block = {1, 1, 1}};
    CHECK_OK(kg_cuda_launch_prepare(&l, &err), err);
    CHECK_UINT(fake->calls("cuOccupancyMaxActiveClusters"), 0);
    CHECK_OK(kg_cuda_launch_kernel(&l, NULL, NULL, &err), err);
    CHECK(!fake->launch(0)->cooperative && !fake->launch(0)->pdl);
    CHECK_UINT(fake->launch(0)->nparams, 0);
}

TEST(cuda_launches_that_cannot_fit_are_told_before) {
    use_fake("arch=90,clusters_fit=0");
    enter();
    kg_cuda_launch l = {.function = function("scale"), .grid = {2, 1, 1}, .block = {32, 1, 1}};
    l.shared = 232448;
    CHECK_ERR(kg_cuda_launch_prepare(&l, &err), err, KG_EINVAL,
              "232448 bytes of dynamic shared memory and 512 of static");
    l.shared = 0;
    l.cluster[0] = 2;
    CHECK_ERR(kg_cuda_launch_prepare(&l, &err), err, KG_EINVAL,
              "a cluster of 2 blocks of 32 threads and 0 bytes of shared memory does not fit");
    l.cluster[0] = 1;
    l.cooperative = true;
    l.grid[0] = 100000;
    CHECK_ERR(kg_cuda_launch_prepare(&l, &err), err, KG_EINVAL,
              "a cooperative grid of 100000 blocks");
    l = (kg_cuda_launch){.function = function("small"), .grid = {1, 1, 1}, .block = {512, 1, 1}};
    CHECK_ERR(kg_cuda_launch_prepare(&l, &err), err, KG_EINVAL,
              "a block of 512 threads; the function takes at most 256 (it needs 128 registers");
}

TEST(cuda_clusters_need_sm90) {
    use_fake("arch=80");
    enter();
    kg_cuda_launch l = {.function = function("scale"),
                        .grid = {2, 1, 1},
                        .block = {32, 1, 1},
                        .cluster = {2, 1, 1}};
    CHECK_ERR(kg_cuda_launch_prepare(&l, &err), err, KG_EINVAL, "(sm_80) has no clusters");
}

TEST(cuda_function_tells_its_parameters) {
    use_fake("");
    size_t offset = 0, size = 0;
    kg_cuda_function_info info;
    kg_cu_module m;
    kg_cu_function f;
    enter();
    f = function("scale");
    CHECK_OK(kg_cuda_function_param(f, 3, &offset, &size, &err), err);
    CHECK_UINT(offset, 20);
    CHECK_UINT(size, 4);
    CHECK_ERR(kg_cuda_function_param(f, 4, &offset, &size, &err), err, KG_ENOTFOUND,
              "no parameter 4");
    CHECK_OK(kg_cuda_function_info_get(f, &info, &err), err);
    CHECK_INT(info.registers, 40);
    CHECK_INT(info.static_shared, 512);
    CHECK_OK(kg_cuda_module_load(IMAGE, sizeof(IMAGE), &m, &err), err);
    CHECK_ERR(kg_cuda_function(m, "nope", &f, &err), err, KG_ENOTFOUND,
              "cuModuleGetFunction of nope");
    kg_cuda_module_unload(m);
}

TEST(cuda_image_of_a_newer_toolkit_is_explained) {
    use_fake("driver=12040,fail=cuModuleLoadData:1:222");
    kg_cu_module m;
    enter();
    CHECK_ERR(kg_cuda_module_load(IMAGE, sizeof(IMAGE), &m, &err), err, KG_EUNSUPPORTED,
              "CUDA 12.4) is older than the NVRTC");
    CHECK_HAS(err.msg, "nvidia-cuda-nvrtc-cu12");
    CHECK_ERR(kg_cuda_module_load("not an image", 12, &m, &err), err, KG_EUNSUPPORTED,
              "INVALID_IMAGE");
}

TEST(cuda_maps_are_checked_before_the_driver) {
    const fake_cuda *fake = use_fake("");
    kg_cuda_map map;
    kg_cuda_map_spec good = {.type = KG_CU_MAP_BF16,
                             .rank = 2,
                             .dims = {64, 128},
                             .strides = {128},
                             .box = {64, 32},
                             .swizzle = 128,
                             .l2 = 256,
                             .item_bytes = 2};
    CHECK_OK(kg_cuda_map_encode(&good, 0x10000, &map, &err), err);
    CHECK_UINT(map.opaque[0], 0x10000);
    CHECK_UINT(map.opaque[1], KG_CU_MAP_BF16 | 2 << 8 | 3 << 16 | 3 << 24);
    CHECK_UINT(map.opaque[7], 128); /* the stride of dim 1 */
    CHECK_ERR(kg_cuda_map_encode(&good, 0x10008, &map, &err), err, KG_EINVAL,
              "0x10008, which is no multiple of 16");
    kg_cuda_map_spec bad = good;
    bad.strides[0] = 130;
    CHECK_ERR(kg_cuda_map_encode(&bad, 0x10000, &map, &err), err, KG_EINVAL,
              "stride of dim 1 is 130 bytes");
    bad = good;
    bad.box[0] = 128;
    CHECK_ERR(kg_cuda_map_encode(&bad, 0x10000, &map, &err), err, KG_EINVAL, "256 bytes wide");
    bad = good;
    bad.box[1] = 257;
    CHECK_ERR(kg_cuda_map_encode(&bad, 0x10000, &map, &err), err, KG_EINVAL, "box[1] is 257");
    bad = good;
    bad.dims[1] = 0;
    CHECK_ERR(kg_cuda_map_encode(&bad, 0x10000, &map, &err), err, KG_EINVAL, "dim 1 is 0");
    CHECK_UINT(fake->calls("cuTensorMapEncodeTiled"), 1);
}

TEST(cuda_memory_moves_both_ways) {
    const fake_cuda *fake = use_fake("");
    kg_cu_ptr p = 0, q = 0;
    uint32_t words[64], back[64];
    enter();
    for (uint32_t i = 0; i < 64; i++)
        words[i] = i * 3;
    CHECK_OK(kg_cuda_alloc(sizeof(words), &p, &err), err);
    CHECK_OK(kg_cuda_alloc(sizeof(words), &q, &err), err);
    CHECK_OK(kg_cuda_to_device(p, words, sizeof(words), &err), err);
    CHECK_OK(kg_cuda_copy_async(q, p, sizeof(words), NULL, &err), err);
    CHECK_OK(kg_cuda_memset32(q, 0xdeadbeef, 2, NULL, &err), err);
    CHECK_OK(kg_cuda_memset8(q + 8, 0x55, 4, NULL, &err), err);
    CHECK_OK(kg_cuda_to_host(back, q, sizeof(back), &err), err);
    CHECK_UINT(back[0], 0xdeadbeef);
    CHECK_UINT(back[2], 0x55555555);
    CHECK_UINT(back[3], 9);
    CHECK_OK(kg_cuda_memset8(q, 0, 0, NULL, &err), err); /* nothing asks the driver for nothing */
    CHECK_UINT(fake->calls("cuMemsetD8Async"), 1);
    kg_cuda_free(p);
    kg_cuda_free(q);
    CHECK_UINT(fake->live_bytes(), 0);
}

TEST(cuda_vmm_memory_is_one_at_two_addresses) {
    const fake_cuda *fake = use_fake("");
    size_t unit = 0;
    kg_cu_memory m = 0, again = 0;
    kg_cu_ptr a = 0, b = 0;
    int fd = -1;
    char text[8] = "", out[8] = "shared!";
    enter();
    CHECK_OK(kg_cuda_granularity(0, &unit, &err), err);
    CHECK_OK(kg_cuda_memory_create(0, unit, &m, &err), err);
    CHECK_ERR(kg_cuda_memory_create(0, unit + 1, &again, &err), err, KG_EINVAL, "cuMemCreate of");
    CHECK_OK(kg_cuda_memory_export(m, &fd, &err), err);
    CHECK_OK(kg_cuda_memory_import(fd, &again, &err), err);
    close(fd);
    CHECK_OK(kg_cuda_reserve(2 * unit, 0, &a, &err), err);
    b = a + unit;
    CHECK_OK(kg_cuda_map_memory(a, unit, m, 0, true, &err), err);
    CHECK_OK(kg_cuda_map_memory(b, unit, again, 0, false, &err), err);
    CHECK_OK(kg_cuda_to_device(a + 100, out, sizeof(out), &err), err);
    CHECK_OK(kg_cuda_to_host(text, b + 100, sizeof(text), &err), err);
    CHECK_STR(text, "shared!");
    CHECK_OK(kg_cuda_unmap(a, unit, &err), err);
    CHECK_OK(kg_cuda_unmap(b, unit, &err), err);
    kg_cuda_unreserve(a, 2 * unit);
    kg_cuda_memory_release(m);
    kg_cuda_memory_release(again);
    CHECK_UINT(fake->live_bytes(), 0);
}

TEST(cuda_graphs_record_and_replay) {
    const fake_cuda *fake = use_fake("");
    kg_cu_stream s;
    kg_cu_graph g;
    kg_cu_graph_exec exec;
    kg_cu_ptr p = 0, q = 0;
    uint32_t word = 0;
    bool capturing = false;
    enter();
    CHECK_OK(kg_cuda_alloc(4, &p, &err), err);
    CHECK_OK(kg_cuda_stream_create(&s, &err), err);
    CHECK_OK(kg_cuda_memset32(p, 1, 1, s, &err), err);
    CHECK_OK(kg_cuda_capture_begin(s, &err), err);
    CHECK_OK(kg_cuda_stream_capturing(s, &capturing, &err), err);
    CHECK(capturing);
    CHECK_ERR(kg_cuda_alloc(4, &q, &err), err, KG_EBUSY, "cuMemAlloc_v2");
    CHECK_OK(kg_cuda_memset32(p, 9, 1, s, &err), err);
    CHECK_OK(kg_cuda_capture_end(s, &g, &err), err);
    CHECK_OK(kg_cuda_to_host(&word, p, 4, &err), err);
    CHECK_UINT(word, 1);
    CHECK_OK(kg_cuda_graph_instantiate(g, &exec, &err), err);
    kg_cuda_graph_destroy(g);
    CHECK_OK(kg_cuda_graph_launch(exec, s, &err), err);
    CHECK_OK(kg_cuda_to_host(&word, p, 4, &err), err);
    CHECK_UINT(word, 9);
    kg_cuda_graph_exec_destroy(exec);
    kg_cuda_stream_destroy(s);
    kg_cuda_free(p);
    CHECK_UINT(fake->live_bytes(), 0);
}

TEST(cuda_events_order_and_time) {
    use_fake("");
    kg_cu_event a, b;
    float ms = -1;
    bool done = false;
    enter();
    CHECK_OK(kg_cuda_event_create(true, &a, &err), err);
    CHECK_OK(kg_cuda_event_create(true, &b, &err), err);
    CHECK_ERR(kg_cuda_event_elapsed(a, b, &ms, &err), err, KG_EINVAL, "cuEventElapsedTime");
    CHECK_OK(kg_cuda_event_record(a, NULL, &err), err);
    CHECK_OK(kg_cuda_event_record(b, NULL, &err), err);
    CHECK_OK(kg_cuda_event_done(b, &done, &err), err);
    CHECK(done);
    CHECK_OK(kg_cuda_event_elapsed(a, b, &ms, &err), err);
    CHECK(ms >= 0);
    kg_cuda_event_destroy(a);
    kg_cuda_event_destroy(b);
}
