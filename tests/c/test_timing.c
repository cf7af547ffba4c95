/* What the bootstrap interval of a ratio is worth, on made-up times of machines of several kinds: A
 * against A must not look different, A against A with 5% more work must. The same two questions are
 * asked of this machine's real clock by tests/python/test_resolution.py, in the slow suite. */
#include "test.h"
#include "tune/timing.h"

enum { PAIRS = 40, RUNS = 100 };

typedef struct machine {
    uint64_t state;
    double walk, own[2]; /* what lasts: of the machine, of each side */
    int at;              /* pairs so far in this comparison */
} machine;

static double uniform(uint64_t *state) {
    *state = *state * 6364136223846793005u + 1442695040888963407u;
    return ((double)(*state >> 11) + 0.5) * 0x1p-53;
}

static double normal(uint64_t *state) {
    double r = sqrt(-2 * log(uniform(state)));
    return r * cos(6.283185307179586 * uniform(state));
}

/* The next time of a side, about 1. */
typedef double (*source)(machine *m, int side);

static double steady(machine *m, int side) {
    (void)side;
    return 1 + 0.02 * normal(&m->state);
}

/* A floor, and a tail without a variance: |Cauchy|. */
static double heavy(machine *m, int side) {
    (void)side;
    return 1 + 0.01 * fabs(tan(3.141592653589793 * (uniform(&m->state) - 0.5)));
}

/* The clock falls by a fifth in the course of a comparison. */
static double drifting(machine *m, int side) {
    (void)side;
    return (1 + 0.2 * m->at / PAIRS) * (1 - 0.01 * log(uniform(&m->state)));
}

/* Neighbours come and go, and slow both sides. */
static double crowded(machine *m, int side) {
    if (side == 0)
        m->walk = 0.9 * m->walk + 0.02 * normal(&m->state);
    return exp(m->walk) * (1 - 0.01 * log(uniform(&m->state)));
}

/* Each side stays fast or slow for a while by itself. */
static double lasting(machine *m, int side) {
    m->own[side] = 0.6 * m->own[side] + 0.01 * normal(&m->state);
    return exp(m->own[side]);
}

/* Two speeds, as of two kinds of cores. */
static double two_speeds(machine *m, int side) {
    (void)side;
    return (uniform(&m->state) < 0.3 ? 1.3 : 1.0) + 0.005 * uniform(&m->state);
}

typedef struct seen {
    int held, excluded; /* intervals that hold 1; whose lower end is above 1 */
} seen;

/* `runs` comparisons of `pairs` pairs, side 0 with (1 + extra) times the work; 99% intervals. */
static seen against_itself(source next, int runs, int pairs, double extra) {
    kg_error err = {0};
    machine m = {.state = 17};
    seen s = {0, 0};
    for (int run = 0; run < runs; run++) {
        double a[PAIRS], b[PAIRS];
        m.walk = 0;
        for (m.at = 0; m.at < 20; m.at++) /* what lasts is under way when measuring begins */
            (void)next(&m, 0), (void)next(&m, 1);
        for (m.at = 0; m.at < pairs; m.at++) {
            a[m.at] = (1 + extra) * next(&m, 0);
            b[m.at] = next(&m, 1);
        }
        kg_ratio r;
        CHECK_OK(kg_ratio_of(a, b, (size_t)pairs, 0.99, 1, &r, &err), err);
        s.held += r.low <= 1 && 1 <= r.high;
        s.excluded += r.low > 1;
    }
    return s;
}

static void check_source(const char *name, source next, bool tells_5) {
    seen same = against_itself(next, RUNS, PAIRS, 0),
         more = against_itself(next, RUNS, PAIRS, 0.05);
    if (same.held < 95)
        FAIL("%s: A against A holds 1 in %d of %d", name, same.held, RUNS);
    if (tells_5 && more.excluded < 95)
        FAIL("%s: 5%% more work is seen in %d of %d", name, more.excluded, RUNS);
    if (more.excluded + more.held > RUNS)
        FAIL("%s: an interval holds 1 and excludes it", name);
}

TEST(ratio_of_a_steady_machine) {
    check_source("steady", steady, true);
}
TEST(ratio_of_heavy_tails) {
    check_source("heavy tails", heavy, true);
}
TEST(ratio_of_a_drifting_clock) {
    check_source("drifting", drifting, true);
}
TEST(ratio_of_a_crowded_machine) {
    check_source("crowded", crowded, true);
}
TEST(ratio_of_what_lasts) {
    check_source("lasting", lasting, true);
}
/* Such a machine cannot tell 5% in so few pairs, and must not seem to. */
TEST(ratio_of_two_speeds) {
    check_source("two speeds", two_speeds, false);
}

/* Few pairs, where the correction knows least: the 15 that the gate begins with. */
TEST(ratio_of_few_pairs) {
    seen s = against_itself(lasting, RUNS, 15, 0);
    if (s.held < 90)
        FAIL("of 15 pairs each, %d of %d hold 1", s.held, RUNS);
    s = against_itself(steady, RUNS, 15, 0.05);
    if (s.excluded < 95)
        FAIL("of 15 pairs each, 5%% is seen in %d of %d", s.excluded, RUNS);
}

/* Times that are all the same have no correlation to be widened by. */
TEST(ratio_of_equal_times) {
    kg_error err = {0};
    double a[20], b[20];
    for (int i = 0; i < 20; i++) {
        a[i] = 3;
        b[i] = 2;
    }
    kg_ratio r;
    CHECK_OK(kg_ratio_of(a, b, 20, 0.95, 1, &r, &err), err);
    CHECK_NEAR(r.low, 1.5, 0);
    CHECK_NEAR(r.high, 1.5, 0);
    CHECK_OK(kg_ratio_of(a, b, 1, 0.95, 1, &r, &err), err);
    CHECK_NEAR(r.median, 1.5, 0);
}
