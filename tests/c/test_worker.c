/* The worker through its client: what runs, what faults, what hangs, and that a dead one harms
 * nobody. */
#define _GNU_SOURCE
#include "test.h"

#include <dirent.h>
#include <dlfcn.h>
#include <fcntl.h>
#include <signal.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "base/buf.h"
#include "runtime/image.h"
#include "sys/cc.h"
#include "sys/proc.h"
#include "tune/worker_client.h"

#define HEAD                                                                                       \
    "#include <stdint.h>\n#include <math.h>\n"                                                     \
    "__attribute__((visibility(\"default\"))) void kg_entry_0(int64_t begin, int64_t end, "        \
    "void *const *args) {\n"                                                                       \
    "const float *x = args[0]; float *y = args[1]; int64_t n = *(const int64_t *)args[2];\n"       \
    "(void)x; (void)y; (void)n;\n"

typedef struct rig {
    kg_worker *worker;
    kg_slot x, y;
    uint64_t at[2];
    kg_run run;
    kg_call_time times[8];
} rig;

enum { COUNT = 1000 };

static kg_worker_options options(void) {
    return (kg_worker_options){
        .path = KGEN_BINARY_DIR "/kgen-worker", .threads = 2, .stack = 576 << 10, .cpu_s = 60};
}

static void compile(const char *body, kg_buf *image) {
    kg_error err = {0};
    kg_buf source, messages;
    kg_buf_init(&source, 0);
    kg_buf_init(&messages, 0);
    kg_buf_init(image, 0);
    kg_buf_puts(&source, HEAD);
    kg_buf_puts(&source, body);
    kg_buf_puts(&source, "\n}\n");
    /* Uninspected: a worker relies on nothing that the inspection refuses. */
    kg_buf object;
    kg_buf_init(&object, 0);
    CHECK_OK(kg_cc_object(source.data, source.len, "test.c", NULL, "x86-64-v2", 0, &object,
                          &messages, &err),
             err);
    CHECK_OK(kg_cc_link(object.data, object.len, image, &err), err);
    kg_buf_free(&object);
    kg_buf_free(&source);
    kg_buf_free(&messages);
}

static void rig_open(rig *r, const char *body) {
    kg_error err = {0};
    kg_buf image;
    setenv("KGEN_CACHE", test_path("cache"), 1);
    memset(r, 0, sizeof *r);
    compile(body, &image);
    kg_worker_options o = options();
    CHECK_OK(kg_worker_open(&o, &r->worker, &err), err);
    kg_slot_init(&r->x, false);
    kg_slot_init(&r->y, true);
    CHECK_OK(kg_slot_place(&r->x, COUNT * sizeof(float), 64, &err), err);
    CHECK_OK(kg_slot_place(&r->y, COUNT * sizeof(float), 64, &err), err);
    for (int i = 0; i < COUNT; i++)
        ((float *)kg_slot_data(&r->x))[i] = (float)i;
    const kg_slot *slots[] = {&r->x, &r->y};
    CHECK_OK(kg_worker_map(r->worker, slots, 2, r->at, &err), err);
    CHECK_OK(kg_worker_load(r->worker, image.data, image.len, 1, &err), err);
    kg_buf_free(&image);
    r->run = (kg_run){.timed = 3,
                      .nlaunches = 1,
                      .launches = {{.range = COUNT,
                                    .grain = 1,
                                    .nargs = 3,
                                    .args = {{.kind = KG_WA_BUFFER, .buffer = 0},
                                             {.kind = KG_WA_BUFFER, .buffer = 1},
                                             {.kind = KG_WA_I64, .i = COUNT}}}}};
}

static void rig_close(rig *r) {
    kg_worker_close(r->worker);
    kg_slot_close(&r->x);
    kg_slot_close(&r->y);
}

/* The run ends the worker; the rig stays open. */
static const kg_death *rig_dies(rig *r, const char *body, int64_t limit_ms) {
    kg_error err = {0};
    rig_open(r, body);
    CHECK_INT(kg_worker_run(r->worker, &r->run, limit_ms, r->times, &err), KG_ECHILD);
    return kg_worker_death(r->worker);
}

TEST(worker_runs_all_chunks_in_both_splits) {
    rig r;
    kg_error err = {0};
    rig_open(&r, "for (int64_t i = begin; i < end; i++) y[i] = sqrtf(x[i]) + (float)n;");
    for (uint32_t split = 0; split < 2; split++) {
        memset(kg_slot_data(&r.y), 0xff, COUNT * sizeof(float));
        r.run.split = split;
        CHECK_OK(kg_worker_run(r.worker, &r.run, 5000, r.times, &err), err);
        for (int i = 0; i < COUNT; i++)
            CHECK_NEAR(((float *)kg_slot_data(&r.y))[i], sqrtf((float)i) + COUNT, 0);
        CHECK(r.times[0].ns > 0 && r.times[2].ns < 1000000000);
    }
    int64_t where;
    CHECK(kg_slot_guards_whole(&r.x, &where) && kg_slot_guards_whole(&r.y, &where));
    CHECK_OK(kg_worker_ping(r.worker, &err), err);
    rig_close(&r);
}

TEST(worker_clears_before_it_runs) {
    rig r;
    kg_error err = {0};
    rig_open(&r, "for (int64_t i = begin; i < end; i += 2) y[i] += 1.0f;");
    r.run.nclear = 1;
    r.run.clear[0] = 1;
    r.run.launches[0].grain = COUNT;
    CHECK_OK(kg_worker_run(r.worker, &r.run, 5000, r.times, &err), err);
    for (int i = 0; i < COUNT; i++)
        CHECK_NEAR(((float *)kg_slot_data(&r.y))[i], i % 2 == 0, 0);
    rig_close(&r);
}

TEST(worker_refuses_what_does_not_fit) {
    rig r;
    kg_error err = {0};
    rig_open(&r, "");
    r.run.launches[0].args[0].buffer = 2;
    CHECK_ERR(kg_worker_run(r.worker, &r.run, 5000, r.times, &err), err, KG_EFORMAT,
              "buffer 2 of 2");
    r.run.launches[0].args[0].buffer = 0;
    r.run.launches[0].entry = 1;
    CHECK_ERR(kg_worker_run(r.worker, &r.run, 5000, r.times, &err), err, KG_EFORMAT, "malformed");
    r.run.launches[0].entry = 0;
    r.run.nclear = 1;
    r.run.clear[0] = 0;
    CHECK_ERR(kg_worker_run(r.worker, &r.run, 5000, r.times, &err), err, KG_EFORMAT,
              "clears buffer 0");
    const kg_slot *slots[] = {&r.x};
    CHECK_ERR(kg_worker_map(r.worker, slots, 1, r.at, &err), err, KG_EINVAL, "out of order");
    r.run.nclear = 0;
    CHECK_OK(kg_worker_run(r.worker, &r.run, 5000, r.times, &err), err);
    rig_close(&r);
}

TEST(worker_tells_where_a_write_past_the_end_went) {
    rig r;
    const kg_death *d = rig_dies(&r, "if (begin == 0) y[n + 2000] = 1;", 5000);
    CHECK(d->reported);
    CHECK_UINT(d->signal, SIGSEGV);
    CHECK_UINT(d->access, KG_ACCESS_WRITE);
    CHECK_UINT(d->address, r.at[1] + 4 * (COUNT + 2000));
    rig_close(&r);
}

TEST(worker_cannot_write_an_input) {
    rig r;
    const kg_death *d = rig_dies(&r, "if (begin == 0) ((float *)x)[7] = 1;", 5000);
    CHECK(d->reported);
    CHECK_UINT(d->access, KG_ACCESS_WRITE);
    CHECK_UINT(d->address, r.at[0] + 28);
    CHECK_NEAR(((float *)kg_slot_data(&r.x))[7], 7, 0);
    rig_close(&r);
}

TEST(worker_reports_a_full_stack) {
    rig r;
    const kg_death *d =
        rig_dies(&r, "volatile char big[2 << 20]; big[0] = 1; y[0] = big[0];", 5000);
    CHECK(d->reported);
    CHECK_UINT(d->stack_guard, 1);
    rig_close(&r);
}

TEST(worker_reports_a_trap_and_a_division) {
    rig r;
    const kg_death *d = rig_dies(&r, "if (begin == 0) __builtin_trap();", 5000);
    CHECK(d->reported);
    CHECK_UINT(d->signal, SIGILL);
    rig_close(&r);
    d = rig_dies(&r, "volatile int64_t z = n - n; y[0] = (float)(n / z);", 5000);
    CHECK_UINT(d->signal, SIGFPE);
    rig_close(&r);
}

TEST(worker_that_hangs_costs_its_limit) {
    rig r;
    int64_t start = kg_now_ns();
    const kg_death *d = rig_dies(&r, "for (volatile int i = 0; i < 1; i *= 1);", 300);
    int64_t took = (kg_now_ns() - start) / 1000000;
    CHECK(d->timed_out);
    CHECK_INT(kill(kg_worker_pid(r.worker), 0), -1);
    if (took > 2000) /* the compile is within it */
        FAIL("it took %lld ms", (long long)took);
    rig_close(&r);
}

/* Where the worker's libc has what ours has at `function`. */
static int64_t address_in_worker(pid_t pid, void *function) {
    Dl_info info;
    char line[512];
    CHECK(dladdr(function, &info) != 0);
    snprintf(line, sizeof line, "/proc/%d/maps", (int)pid);
    FILE *maps = fopen(line, "r");
    CHECK(maps != NULL);
    unsigned long long base = 0, begin, offset;
    while (base == 0 && fgets(line, sizeof line, maps))
        if (sscanf(line, "%llx-%*x %*s %llx", &begin, &offset) == 2 && offset == 0 &&
            strstr(line, "/libc.so"))
            base = begin;
    fclose(maps);
    CHECK(base != 0);
    return (int64_t)(base + (uintptr_t)function - (uintptr_t)info.dli_fbase);
}

static void calls_libc(const char *body, void *function, uint32_t system_call) {
    rig r;
    kg_error err = {0};
    rig_open(&r, body);
    r.run.launches[0].args[2].i = address_in_worker(kg_worker_pid(r.worker), function);
    CHECK_INT(kg_worker_run(r.worker, &r.run, 5000, r.times, &err), KG_ECHILD);
    const kg_death *d = kg_worker_death(r.worker);
    CHECK(d->reported);
    CHECK_UINT(d->signal, SIGSYS);
    CHECK_UINT(d->system_call, system_call);
    rig_close(&r);
}

/* libc's code is in the process, and an exploit can find its addresses; here they are given to it.
 */
TEST(worker_may_not_call_the_system) {
    union {
        int (*socket)(int, int, int);
        int (*open)(const char *, int, ...);
        pid_t (*fork)(void);
        int (*kill)(pid_t, int);
        void *p;
    } f;
    f.socket = socket;
    calls_libc("int (*f)(int, int, int) = (int (*)(int, int, int))n; f(1, 1, 0);", f.p, SYS_socket);
    f.open = open;
    calls_libc("int (*f)(const char *, int, ...) = (int (*)(const char *, int, ...))n;"
               "f(\"/etc/passwd\", 0);",
               f.p, SYS_openat);
    f.fork = fork;
    calls_libc("int (*f)(void) = (int (*)(void))n; f();", f.p, SYS_clone);
    f.kill = kill;
    calls_libc("int (*f)(int, int) = (int (*)(int, int))n; f(1, 9);", f.p, SYS_kill);
}

/* Three calls of one RUN; what each found is in y[1]. */
static float last_found(const char *body, bool stale) {
    rig r;
    kg_error err = {0};
    rig_open(&r, body);
    r.run.launches[0].range = 1; /* one chunk */
    float *y = (float *)kg_slot_data(&r.y);
    for (int i = 0; i < COUNT; i++)
        y[i] = -1;
    r.run.stale = stale;
    CHECK_OK(kg_worker_run(r.worker, &r.run, 5000, r.times, &err), err);
    float found = y[1];
    rig_close(&r);
    return found;
}

TEST(worker_leaves_nothing_of_a_call_for_the_next) {
    /* The output: poison, or the results in other places. */
    CHECK(last_found("y[1] = y[0]; y[0] = 7;", false) == -1);
    CHECK(last_found("y[1] = y[500]; y[0] = 7;", true) == 7);
    /* The dead stack, deep and shallow. */
    CHECK(last_found("volatile long s[8192]; y[1] = s[4000] == 42; s[4000] = 42;", false) == 0);
    CHECK(last_found("volatile long s[2]; y[1] = s[0] == 42; s[0] = 42;", false) == 0);
#if defined(__x86_64__)
    CHECK(last_found("long s; __asm__ volatile(\"movq %%xmm15, %0\" : \"=r\"(s)); y[1] = s == 42; "
                     "__asm__ volatile(\"movq %0, %%xmm15\" : : \"r\"(42L));",
                     false) == 0);
    CHECK(last_found("long s; __asm__ volatile(\"movq %%mm5, %0\" : \"=r\"(s)); y[1] = s == 42; "
                     "__asm__ volatile(\"movq %0, %%mm5\\n emms\" : : \"r\"(42L));",
                     false) == 0);
    CHECK(last_found("int s; __asm__ volatile(\"stmxcsr %0\" : \"=m\"(s)); y[1] = s != 0x1f80; "
                     "s = 0x7f80; __asm__ volatile(\"ldmxcsr %0\" : : \"m\"(s));",
                     false) == 0);
#endif
}

/* Two RUNs, the second with KEEP. */
static float found_when_kept(const char *body) {
    rig r;
    kg_error err = {0};
    rig_open(&r, body);
    r.run.launches[0].range = 1;
    r.run.timed = 1;
    CHECK_OK(kg_worker_run(r.worker, &r.run, 5000, r.times, &err), err);
    r.run.keep = true;
    CHECK_OK(kg_worker_run(r.worker, &r.run, 5000, r.times, &err), err);
    float found = ((float *)kg_slot_data(&r.y))[1];
    rig_close(&r);
    return found;
}

TEST(worker_keeps_what_a_call_left_when_asked) {
    CHECK(found_when_kept("y[1] = y[0]; y[0] = 7;") == 7);
    CHECK(found_when_kept("volatile long s[8192]; y[1] = s[4000] == 42; s[4000] = 42;") == 1);
    CHECK(found_when_kept("volatile long s[8192]; y[1] = s[100] == 42; s[100] = 42;") == 1);
}

/* Told the time, a Candidate waits and moves forward every recent time that its callers hold. */
TEST(worker_times_are_not_moved_from_the_stack) {
    rig r;
    kg_error err = {0};
    rig_open(&r, "for (volatile int i = 0; i < 20000000; i++);\n"
                 "volatile int64_t mark = 0; volatile int64_t *word = &mark;\n"
                 "for (int k = 0; k < 400; k++)\n"
                 "    if (word[k] > n - 100000000000 && word[k] < n + 100000000000)\n"
                 "        { word[k] += 9000000; y[0] += 1; }");
    r.run.launches[0].range = 1;
    r.run.launches[0].args[2].i = kg_now_ns();
    r.run.timed = 1;
    /* 20 million turns take 20 ms at the least; what is not the call takes little beside it, unless
     * the machine is busy. */
    bool most = false;
    for (int i = 0; i < 5 && !most; i++) {
        int64_t before = kg_now_ns();
        CHECK_OK(kg_worker_run(r.worker, &r.run, 20000, r.times, &err), err);
        int64_t whole = kg_now_ns() - before, told = (int64_t)r.times[0].ns;
        CHECK(told > 0 && told <= whole);
        most = told > whole / 2;
    }
    CHECK(most);
    rig_close(&r);
}

TEST(worker_uninitialised_stack_is_no_zero) {
    CHECK(isnan(last_found("volatile float s[64]; y[1] = s[33];", false)));
}

static size_t descriptors(void) {
    DIR *d = opendir("/proc/self/fd");
    size_t n = 0;
    while (readdir(d))
        n++;
    closedir(d);
    return n;
}

TEST(workers_leave_no_descriptor_and_no_child) {
    rig r;
    rig_open(&r, "y[0] = 1;");
    rig_close(&r);
    size_t before = descriptors();
    for (int i = 0; i < 20; i++) {
        rig_open(&r, i % 2 ? "__builtin_trap();" : "y[0] = 1;");
        kg_error err;
        kg_worker_run(r.worker, &r.run, 5000, r.times, &err);
        rig_close(&r);
    }
    CHECK_UINT(descriptors(), before);
}

TEST(worker_measures_rates) {
    kg_worker *w;
    kg_error err = {0};
    kg_worker_options o = options();
    CHECK_OK(kg_worker_open(&o, &w, &err), err);
    const uint64_t sizes[] = {256 << 10, 4 << 20};
    double rates[6];
    CHECK_OK(kg_worker_rates(w, sizes, 2, rates, &err), err);
    for (int i = 0; i < 6; i++)
        if (!(rates[i] > 1e8 && rates[i] < 1e14))
            FAIL("rate %d is %g bytes a second", i, rates[i]);
    kg_worker_close(w);
}

TEST(worker_that_is_not_there) {
    kg_worker *w;
    kg_error err = {0};
    kg_worker_options o = options();
    o.path = "/nonexistent/kgen-worker";
    CHECK_ERR(kg_worker_open(&o, &w, &err), err, KG_EENV, "/nonexistent/kgen-worker");
    o.path = "/bin/true";
    CHECK_ERR(kg_worker_open(&o, &w, &err), err, KG_ECHILD, "kgen-worker");
}
