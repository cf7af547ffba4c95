/* The golden conversations of tests/golden/worker. kgen's client talks to a player, which expects
 * each request byte for byte and gives the answers of the file; and the requests of the file go to
 * a real worker, whose answers must be those of the file where they are not its own to choose. */
#define _GNU_SOURCE
#include <fcntl.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "contract_util.h"
#include "runtime/image.h"
#include "sys/frames.h"
#include "sys/proc.h"
#include "tune/worker_client.h"

enum { MAX_FRAMES = 32, MAX_BYTES = 1024, SLOT = 8192, OFFSET = 4096, DATA = 4000 };

typedef struct frame {
    bool request;
    size_t fds, n;
    unsigned char bytes[MAX_BYTES];
    bool own[MAX_BYTES]; /* the worker's own to choose */
} frame;

typedef struct talk {
    size_t n;
    frame frames[MAX_FRAMES];
} talk;

/* ---- reading a file ---- */

/* Hex digits, in brackets or not, up to a semicolon; false when it is anything else. */
static bool read_hex(frame *f, const char *line) {
    bool own = false;
    for (const char *at = line; *at != '\0' && *at != ';' && *at != '\n';) {
        unsigned value;
        if (*at == ' ' || *at == '[' || *at == ']') {
            own = *at == ' ' ? own : *at == '[';
            at++;
        } else if (f->n < MAX_BYTES && sscanf(at, "%2x", &value) == 1 && at[1] != '\0') {
            f->own[f->n] = own;
            f->bytes[f->n++] = (unsigned char)value;
            at += 2;
        } else {
            return false;
        }
    }
    return true;
}

/* Without the test's checks, since the player uses it too; false when the file is no talk. */
static bool read_talk(const char *name, talk *out) {
    char path[1024], line[512];
    snprintf(path, sizeof path, "%s/tests/golden/worker/%s.txt", KGEN_SOURCE_DIR, name);
    FILE *file = fopen(path, "r");
    bool good = file != NULL;
    memset(out, 0, sizeof *out);
    while (good && fgets(line, sizeof line, file)) {
        frame *last = out->n ? &out->frames[out->n - 1] : NULL;
        if (*line == '#' || *line == '\n')
            continue;
        if (*line != '>' && *line != '<') {
            good = last && read_hex(last, line);
        } else if ((good = out->n < MAX_FRAMES)) {
            last = &out->frames[out->n++];
            last->request = *line == '>';
            good = !last->request || sscanf(line, "> %zu", &last->fds) == 1;
        }
    }
    if (file)
        fclose(file);
    return good && out->n > 0;
}

static void open_talk(const char *name, talk *out) {
    if (!read_talk(name, out))
        FAIL("tests/golden/worker/%s.txt is no conversation", name);
}

/* ---- the player: this program under the name player-<file> ---- */

static void say_in(const char *self, const char *what) {
    char path[1024];
    snprintf(path, sizeof path, "%s.said", self);
    FILE *f = fopen(path, "w");
    if (f) {
        fputs(what, f);
        fclose(f);
    }
}

/* Hears one request; NULL when it is the one of the file. */
static const char *hear(const frame *want, char why[128]) {
    unsigned char got[MAX_BYTES];
    int fds[8];
    size_t n, nfds;
    kg_error err = {0};
    if (kg_frame_recv(KG_W_SOCKET, got, sizeof got, &n, fds, 8, &nfds, &err) != KG_OK) {
        snprintf(why, 128, "%.100s", err.msg);
        return why;
    }
    for (size_t i = 0; i < nfds; i++)
        close(fds[i]);
    size_t at = 0;
    while (at < n && at < want->n && got[at] == want->bytes[at])
        at++;
    if (at == n && n == want->n && nfds == want->fds)
        return NULL;
    snprintf(why, 128, "byte %zu of %zu is 0x%02x, not 0x%02x of %zu; %zu descriptors, not %zu", at,
             n, got[at % MAX_BYTES], want->bytes[at % MAX_BYTES], want->n, nfds, want->fds);
    return why;
}

__attribute__((noreturn)) static void play(const char *self, const char *name) {
    static talk t;
    char why[128], said[256];
    if (!read_talk(name, &t)) {
        say_in(self, "no conversation");
        _exit(1);
    }
    for (size_t i = 0; i < t.n; i++) {
        const frame *f = &t.frames[i];
        const char *wrong = f->request ? hear(f, why) : NULL;
        if (wrong) {
            snprintf(said, sizeof said, "frame %zu: %s", i, wrong);
            say_in(self, said);
            _exit(1);
        }
        if (!f->request)
            kg_frame_send(KG_W_SOCKET, f->bytes, f->n, NULL, 0, NULL);
    }
    say_in(self, "to the end");
    _exit(0);
}

__attribute__((constructor)) static void maybe_play(int argc, char **argv) {
    const char *slash = argc == 1 ? strrchr(argv[0], '/') : NULL;
    if (slash && strncmp(slash, "/player-", 8) == 0)
        play(argv[0], slash + 8);
}

/* ---- kgen's side ---- */

typedef struct rig {
    kg_worker *worker;
    kg_slot x, y;
    char player[512];
} rig;

/* A buffer whose place in its file is that of the golden MAP. */
static void make_slot(kg_slot *s, bool writable) {
    kg_slot_init(s, writable);
    s->fd = memfd_create("slot", MFD_CLOEXEC);
    CHECK(s->fd >= 0 && ftruncate(s->fd, SLOT) == 0);
    s->map = mmap(NULL, SLOT, PROT_READ | PROT_WRITE, MAP_SHARED, s->fd, 0);
    CHECK(s->map != MAP_FAILED);
    s->room = s->used = SLOT;
    s->offset = OFFSET;
    s->bytes = DATA;
}

static void rig_open(rig *r, const char *name) {
    char label[64];
    kg_error err = {0};
    memset(r, 0, sizeof *r);
    snprintf(label, sizeof label, "player-%s", name);
    snprintf(r->player, sizeof r->player, "%s", test_path(label));
    char *self = realpath("/proc/self/exe", NULL);
    CHECK_INT(symlink(self, r->player), 0);
    free(self);
    make_slot(&r->x, false);
    make_slot(&r->y, true);
    kg_worker_options o = {.path = r->player, .threads = 2, .stack = 576 << 10};
    CHECK_OK(kg_worker_open(&o, &r->worker, &err), err);
}

/* Fails with what the player said when it was not content. */
static void rig_close(rig *r) {
    kg_buf said;
    kg_error err = {0};
    char path[600];
    snprintf(path, sizeof path, "%s.said", r->player);
    struct stat st = {0};
    for (int i = 0; i < 500 && (stat(path, &st) != 0 || st.st_size == 0); i++)
        usleep(10000);
    kg_buf_init(&said, 0);
    CHECK_OK(kg_read_file(path, 4096, &said, &err), err);
    CHECK_STR(said.data, "to the end");
    kg_buf_free(&said);
    kg_worker_close(r->worker);
    kg_slot_close(&r->x);
    kg_slot_close(&r->y);
}

static void map_and_load(rig *r, size_t entries) {
    kg_error err = {0};
    uint64_t at[2];
    const kg_slot *slots[] = {&r->x, &r->y};
    CHECK_OK(kg_worker_map(r->worker, slots, 2, at, &err), err);
    CHECK_UINT(at[0], 0x7f1200201000);
    CHECK_UINT(at[1], 0x7f1200605000);
    CHECK_OK(kg_worker_load(r->worker, "image", 5, entries, &err), err);
}

TEST(worker_golden_client_runs) {
    rig r;
    kg_error err = {0};
    kg_call_time times[2];
    rig_open(&r, "run");
    CHECK_UINT(kg_worker_landlock(r.worker), 3);
    CHECK_OK(kg_worker_ping(r.worker, &err), err);
    map_and_load(&r, 2);
    kg_run run = {.split = KG_SPLIT_ODD,
                  .warm = 1,
                  .timed = 2,
                  .nclear = 1,
                  .clear = {1},
                  .programs = "\5\6\7",
                  .programs_bytes = 3,
                  .nlaunches = 2,
                  .launches = {{.entry = 0,
                                .range = 5,
                                .grain = 2,
                                .nargs = 8,
                                .args = {{.kind = KG_WA_NULL},
                                         {.kind = KG_WA_BUFFER, .buffer = 0},
                                         {.kind = KG_WA_BUFFER, .buffer = 1},
                                         {.kind = KG_WA_I32, .i = -7},
                                         {.kind = KG_WA_I64, .i = INT64_C(1) << 40},
                                         {.kind = KG_WA_F32, .f = 0.1},
                                         {.kind = KG_WA_F64, .f = -2.5},
                                         {.kind = KG_WA_PROGRAMS}}},
                               {.entry = 1,
                                .range = 3,
                                .grain = 1,
                                .nargs = 1,
                                .args = {{.kind = KG_WA_BUFFER, .buffer = 1}}}}};
    CHECK_OK(kg_worker_run(r.worker, &run, 5000, times, &err), err);
    CHECK_UINT(times[0].ns, 812345);
    CHECK_UINT(times[1].ns, 790001);
    kg_run wrong = {.timed = 1, .nlaunches = 1, .launches = {run.launches[1]}};
    wrong.launches[0].args[0].buffer = 9;
    CHECK_ERR(kg_worker_run(r.worker, &wrong, 5000, times, &err), err, KG_EFORMAT,
              "RUN names buffer 9 of 2");
    rig_close(&r);
}

TEST(worker_golden_client_asks_for_rates) {
    rig r;
    kg_error err = {0};
    double rates[3];
    const uint64_t size = 256 << 10;
    rig_open(&r, "rates");
    CHECK_OK(kg_worker_rates(r.worker, &size, 1, rates, &err), err);
    CHECK_NEAR(rates[0], 2.5e10, 0);
    CHECK_NEAR(rates[1], 1.25e10, 0);
    CHECK_NEAR(rates[2], 1e10, 0);
    rig_close(&r);
}

TEST(worker_golden_client_hears_of_a_fault) {
    rig r;
    kg_error err = {0};
    kg_call_time times[1];
    rig_open(&r, "fault");
    map_and_load(&r, 1);
    kg_run run = {
        .timed = 1,
        .nlaunches = 1,
        .launches = {{.range = 1, .grain = 1, .nargs = 1, .args = {{.kind = KG_WA_I64, .i = 16}}}}};
    CHECK_INT(kg_worker_run(r.worker, &run, 5000, times, &err), KG_ECHILD);
    const kg_death *d = kg_worker_death(r.worker);
    CHECK(d->reported && !d->timed_out);
    CHECK_UINT(d->signal, SIGSEGV);
    CHECK_UINT(d->code, 1);
    CHECK_UINT(d->address, 16);
    CHECK_UINT(d->access, KG_ACCESS_WRITE);
    CHECK_UINT(d->stack_guard, 0);
    CHECK_UINT(d->system_call, 0);
    rig_close(&r);
}

/* ---- the worker's side ---- */

#define ENTRY(n)                                                                                   \
    "__attribute__((visibility(\"default\"))) void kg_entry_" #n                                   \
    "(int64_t begin, int64_t end, void *const *args) {\n"

/* Writes down what it got: the arguments, and every element of its range once. */
static const char running[] = "#include <stdint.h>\n" ENTRY(
    0) "float *y = args[2];\n"
       "if (begin == 0) {\n"
       "y[0] = args[0] == 0; y[1] = ((const float *)args[1])[7]; y[2] = *(const int32_t "
       "*)args[3];\n"
       "y[3] = (float)*(const int64_t *)args[4]; y[4] = *(const float *)args[5];\n"
       "y[5] = (float)*(const double *)args[6]; y[6] = ((const char *)args[7])[2];\n"
       "}\nfor (int64_t i = begin; i < end; i++) y[10 + i] += 1;\n}\n" ENTRY(
           1) "for (int64_t i = begin; i < end; i++) ((float *)args[0])[20 + i] += 2;\n}\n";
static const char faulting[] = "#include <stdint.h>\n" ENTRY(
    0) "*(volatile int *)*(const int64_t *)args[0] = (int)(end - begin);\n}\n";

static int image_of(const char *source) {
    kg_error err = {0};
    kg_buf image, messages;
    int fd = memfd_create("image", MFD_CLOEXEC);
    setenv("KGEN_CACHE", test_path("cache"), 1);
    kg_buf_init(&image, 0);
    kg_buf_init(&messages, 0);
    CHECK_OK(kg_image_cpu(source, strlen(source), "test.c", "x86-64-v2", 0, false, &image,
                          &messages, NULL, &err),
             err);
    CHECK(fd >= 0 && write(fd, image.data, image.len) == (ssize_t)image.len);
    kg_buf_free(&image);
    kg_buf_free(&messages);
    return fd;
}

static void check_answer(const char *name, size_t at, const frame *want, int socket) {
    unsigned char got[MAX_BYTES];
    size_t n;
    kg_error err = {0};
    CHECK_OK(kg_frame_recv(socket, got, sizeof got, &n, NULL, 0, NULL, &err), err);
    for (size_t i = 0; i < n && i < want->n; i++)
        if (!want->own[i] && got[i] != want->bytes[i])
            FAIL("%s.txt, frame %zu: byte %zu is 0x%02x, not 0x%02x", name, at, i, got[i],
                 want->bytes[i]);
    if (n != want->n)
        FAIL("%s.txt, frame %zu has %zu bytes, not %zu", name, at, n, want->n);
}

/* The whole file with a real worker; fds of MAP and of LOAD. */
static void replay(const char *name, const int *buffers, const int *image) {
    static talk t;
    kg_error err = {0};
    int ends[2];
    kg_proc proc;
    kg_exit ex;
    const char *const argv[] = {KGEN_BINARY_DIR "/kgen-worker", NULL}, *const env[] = {NULL};
    const kg_limits limits = {0};
    open_talk(name, &t);
    CHECK_OK(kg_frame_pair(ends, &err), err);
    CHECK_OK(kg_proc_start(argv, env, &ends[1], 1, -1, &limits, &proc, &err), err);
    close(ends[1]);
    for (size_t i = 0; i < t.n; i++) {
        const frame *f = &t.frames[i];
        if (!f->request)
            check_answer(name, i, f, ends[0]);
        else
            CHECK_OK(
                kg_frame_send(ends[0], f->bytes, f->n, f->fds == 1 ? image : buffers, f->fds, &err),
                err);
    }
    close(ends[0]);
    CHECK_OK(kg_proc_wait(&proc, 5000, &ex, &err), err);
}

TEST(worker_golden_worker_runs) {
    kg_slot x, y;
    make_slot(&x, false);
    make_slot(&y, true);
    ((float *)kg_slot_data(&x))[7] = 3.5f;
    memset(kg_slot_data(&y), 0xff, DATA);
    const int buffers[] = {x.fd, y.fd}, image = image_of(running);
    replay("run", buffers, &image);
    const float want[] = {1, 3.5f, -7, 0x1p40f, 0.1f, -2.5f, 7, 0, 0, 0, 1, 1,
                          1, 1,    1,  0,       0,    0,     0, 0, 2, 2, 2, 0};
    const float *got = (const float *)kg_slot_data(&y);
    for (size_t i = 0; i < sizeof want / sizeof *want; i++)
        if (got[i] != want[i])
            FAIL("y[%zu] is %g, not %g", i, (double)got[i], (double)want[i]);
    close(image);
    kg_slot_close(&x);
    kg_slot_close(&y);
}

TEST(worker_golden_worker_measures_rates) {
    replay("rates", NULL, NULL);
}

TEST(worker_golden_worker_tells_of_a_fault) {
    kg_slot x, y;
    make_slot(&x, false);
    make_slot(&y, true);
    const int buffers[] = {x.fd, y.fd}, image = image_of(faulting);
    replay("fault", buffers, &image);
    close(image);
    kg_slot_close(&x);
    kg_slot_close(&y);
}
