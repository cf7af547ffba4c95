/* What is recorded of a GPU around a measurement, against stand-ins for the driver and for NVML. */
#include <unistd.h>

#include "fake_driver.h"
#include "tune/watch.h"

static const kg_cuda_device *gpu_told(const char *told) {
    kg_error err = {0};
    const kg_cuda_device *d = NULL;
    FILE *f = fopen(test_path("nvml"), "w");
    CHECK(f != NULL);
    fputs(told, f);
    fclose(f);
    setenv("KGEN_LIBNVML", KGEN_BINARY_DIR "/libkgen_fakenvml.so", 1);
    setenv("KGEN_FAKE_NVML", test_path("nvml"), 1);
    use_fake("devices=1");
    CHECK_OK(kg_cuda_device_get(0, &d, &err), err);
    return d;
}

static char *text_of(kg_json *o) {
    kg_buf b;
    kg_buf_init(&b, 0);
    kg_json_canonical(o, &b);
    kg_json_free(o);
    return kg_buf_take(&b);
}

static void check_text(kg_json *o, const char *want) {
    char *got = text_of(o);
    CHECK_STR(got, want);
    free(got);
}

TEST(watch_tells_what_the_gpu_tells) {
    const kg_cuda_device *d =
        gpu_told("sm 1980 1965\nmemory 2619\ntemperature 41 44\npower 350500\n"
                 "reasons 0x1 0x24\npids self 1\n");
    kg_watch w;
    kg_watch_begin(&w, d);
    kg_watch_end(&w, d);
    CHECK(w.told);
    kg_json *o = kg_json_new_object();
    kg_watch_keep(&w, d, o);
    check_text(o, "{\"after\":{\"memory_mhz\":2619,\"power_w\":350.5,\"sm_mhz\":1965,"
                  "\"temperature_c\":44,\"throttle\":[\"power_cap\",\"thermal\"]},"
                  "\"before\":{\"memory_mhz\":2619,\"power_w\":350.5,\"sm_mhz\":1980,"
                  "\"temperature_c\":41,\"throttle\":[\"idle\"]},\"foreign\":[]}");
    CHECK(kg_watch_slowed(&w)); /* thermal */
}

TEST(watch_leaves_out_what_is_not_told) {
    const kg_cuda_device *d = gpu_told("memory 2619\n");
    kg_watch w;
    kg_watch_begin(&w, d);
    kg_watch_end(&w, d);
    kg_json *o = kg_json_new_object();
    kg_watch_keep(&w, d, o);
    check_text(o, "{\"after\":{\"memory_mhz\":2619},\"before\":{\"memory_mhz\":2619}}");
    CHECK(!kg_watch_slowed(&w));
}

TEST(watch_without_nvml_is_no_failure) {
    const kg_cuda_device *d = gpu_told("sm 1980\n");
    kg_error err = {0};
    kg_nvml_state s;
    setenv("KGEN_LIBNVML", "/nowhere/libnvidia-ml.so.1", 1);
    kg_watch w;
    kg_watch_begin(&w, d);
    kg_watch_end(&w, d);
    CHECK(!w.told && !kg_watch_slowed(&w));
    kg_json *o = kg_json_new_object();
    kg_watch_keep(&w, d, o);
    check_text(o, "{}");
    CHECK_ERR(kg_nvml_read(d->uuid, &s, &err), err, KG_EENV, "no NVML");
}

TEST(watch_without_the_gpu_is_no_failure) {
    const kg_cuda_device *d = gpu_told("sm 1980\n");
    kg_error err = {0};
    kg_nvml_state s;
    unlink(test_path("nvml"));
    CHECK_ERR(kg_nvml_read(d->uuid, &s, &err), err, KG_EENV, "does not know GPU-");
}

/* Process 1 and the parent are ancestors; a NVML that does not know this process numbers those
 * of another namespace. */
TEST(watch_names_foreign_processes) {
    char told[128], part[64];
    const kg_cuda_device *d = gpu_told("pids 1 999999999\n");
    CHECK(kg_watch_foreign(d) == NULL);
    snprintf(told, sizeof told, "pids self 1 %ld 999999999\n", (long)getppid());
    d = gpu_told(told);
    char *text = text_of(kg_watch_foreign(d));
    snprintf(part, sizeof part, "[\"process 999999999\"]");
    CHECK_STR(text, part);
    free(text);
}

static bool slowed(uint64_t reasons, int before_mhz, int after_mhz) {
    kg_nvml_state a = {.sm_mhz = before_mhz, .reasons_told = true};
    kg_nvml_state b = {.sm_mhz = after_mhz, .reasons_told = true, .reasons = reasons};
    return kg_nvml_slowed(&a, &b);
}

TEST(watch_knows_what_slows) {
    CHECK(!slowed(KG_THROTTLE_IDLE | KG_THROTTLE_APPLICATION_CLOCKS, 1980, 345));
    CHECK(slowed(KG_THROTTLE_HARDWARE_THERMAL, 1980, 1980));
    CHECK(slowed(KG_THROTTLE_POWER_BRAKE, 1980, 1980));
    CHECK(!slowed(KG_THROTTLE_POWER_CAP, 1700, 1720)); /* steady at its cap */
    CHECK(slowed(KG_THROTTLE_POWER_CAP, 1980, 1700));
    CHECK(slowed(KG_THROTTLE_POWER_CAP, 1700, 1980));
    CHECK(!slowed(KG_THROTTLE_POWER_CAP, -1, 1980));
}
