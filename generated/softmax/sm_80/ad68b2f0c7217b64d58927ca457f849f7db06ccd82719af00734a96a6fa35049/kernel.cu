/* kgen
{ "format": 1, "op": "softmax", "target": "cuda", "min_arch": "sm_80",
  "tunables": {"COLS": [32, 16, 8, 4, 2, 64], "ROWS": [8, 32, 16, 4, 64, 128], "VEC": [1, 2, 4, 8], "KEEP": [8, 4, 16]},
  "require": "input.dtype != float64 && K > 1 && input.contiguous && output.contiguous && N < 1073741824 && VEC * (input.dtype == float32 ? 4 : 2) <= 16 && K % VEC == 0 && align(input) >= VEC * (input.dtype == float32 ? 4 : 2) && COLS * ROWS >= 64 && COLS * ROWS <= 1024 && COLS * ROWS * VEC <= 4096",
  "launches": [{"kernel": "softmax_columns", "grid": ["M * ceil_div(K, COLS * VEC)"], "block": ["COLS * ROWS"],
    "args": ["input", "output", {"i32": "N"}, {"i64": "K"}]}] }
*/
/* Softmax over a dim that is not the innermost: x[m][n][k], along n.
 *
 * A block takes COLS * VEC neighbouring columns of one m, ROWS threads to a column; a thread walks
 * down VEC columns, KEEP rows at a time, with a running maximum and the sum against it. The ROWS
 * pairs of a column are joined through shared memory. Columns of up to ROWS * KEEP elements stay in
 * registers and are read once; longer ones are read again, from L2 where a wave of blocks fits it.
 *
 * Traffic: 2 * M * N * K elements from device memory, 3 where the second reading misses L2. Floor:
 * 2
 * * M * N * K over the rate of a copy. Few columns of great length (M * K below the number of
 * multiprocessors) leave most of the device idle.
 *
 * Launch bounds: COLS * ROWS. A column with NaN or +inf, and one of -inf, comes out as NaN. Refuses
 * strided tensors and K = 1 (rows.cu). */
#define DEV static __device__ __forceinline__
#define LOG2E 1.44269504088896341f
#define STEP (ROWS * KEEP)
#define WIDTH (COLS * VEC)

DEV float infinity() {
    return __int_as_float(0x7f800000);
}

/* 2^x within 2 ulp; below 2^-126 it is 0. */
DEV float exp2_(float x) {
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

#if KG_DTYPE_input == KG_F32
DEV float widen(float x) {
    return x;
}
DEV float narrow(float x) {
    return x;
}
#elif KG_DTYPE_input == KG_BF16
DEV float widen(unsigned short x) {
    return __uint_as_float((unsigned)x << 16);
}
DEV unsigned short narrow(float x) {
    unsigned short r;
    asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(r) : "f"(x));
    return r;
}
#else
DEV float widen(unsigned short x) {
    float r;
    asm("cvt.f32.f16 %0, %1;" : "=f"(r) : "h"(x));
    return r;
}
DEV unsigned short narrow(float x) {
    unsigned short r;
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(r) : "f"(x));
    return r;
}
#endif

struct alignas(VEC * sizeof(KG_T_input)) pack {
    KG_T_input v[VEC];
};

/* Where a thread is: its columns begin at from and to; rows are k elements apart. */
struct place {
    const KG_T_input *from;
    KG_T_output *to;
    long long k;
    int n, row;
    bool live; /* the columns exist */
};

/* A maximum and the sum of exponentials against it; (-inf, 0) of nothing. */
DEV float2 join(float2 a, float2 b) {
    const float top = fmaxf(a.x, b.x), low = top == -infinity() ? 0.0f : top;
    return make_float2(top, a.y * exp2_((a.x - low) * LOG2E) + b.y * exp2_((b.x - low) * LOG2E));
}

/* Rows base + row, ROWS apart. What is outside is left undefined: see `inside`. */
DEV bool inside(const struct place &p, int base, int i) {
    return p.live && base + i * ROWS + p.row < p.n;
}

DEV void load_rows(const struct place &p, int base, struct pack (&raw)[KEEP]) {
#pragma unroll
    for (int i = 0; i < KEEP; i++)
        if (inside(p, base, i))
            raw[i] = *(const struct pack *)(p.from + (base + i * ROWS + p.row) * p.k);
}

DEV void accumulate(const struct place &p, int base, const struct pack (&raw)[KEEP],
                    float2 (&all)[VEC]) {
#pragma unroll
    for (int c = 0; c < VEC; c++) {
        float2 some = make_float2(-infinity(), 0.0f);
#pragma unroll
        for (int i = 0; i < KEEP; i++)
            if (inside(p, base, i))
                some.x = fmaxf(some.x, widen(raw[i].v[c]));
        const float low = some.x == -infinity() ? 0.0f : some.x;
#pragma unroll
        for (int i = 0; i < KEEP; i++)
            if (inside(p, base, i))
                some.y += exp2_((widen(raw[i].v[c]) - low) * LOG2E);
        all[c] = join(all[c], some);
    }
}

/* all becomes (maximum, 1 / sum) of the whole column, in each of its threads. */
DEV void join_rows(const struct place &p, float2 (&all)[VEC]) {
    __shared__ float2 pairs[ROWS][WIDTH];
    const int column = (int)threadIdx.x % COLS * VEC;
#pragma unroll
    for (int c = 0; c < VEC; c++)
        pairs[p.row][column + c] = all[c];
    __syncthreads();
    for (int c = (int)threadIdx.x; c < WIDTH; c += COLS * ROWS) {
        float2 one = pairs[0][c];
        for (int r = 1; r < ROWS; r++)
            one = join(one, pairs[r][c]);
        pairs[0][c] = make_float2(one.x == -infinity() ? 0.0f : one.x, 1.0f / one.y);
    }
    __syncthreads();
#pragma unroll
    for (int c = 0; c < VEC; c++)
        all[c] = pairs[0][column + c];
}

DEV void store_rows(const struct place &p, int base, const struct pack (&raw)[KEEP],
                    const float2 (&all)[VEC]) {
#pragma unroll
    for (int i = 0; i < KEEP; i++) {
        struct pack out;
#pragma unroll
        for (int c = 0; c < VEC; c++)
            out.v[c] = narrow(exp2_((widen(raw[i].v[c]) - all[c].x) * LOG2E) * all[c].y);
        if (inside(p, base, i))
            *(struct pack *)(p.to + (base + i * ROWS + p.row) * p.k) = out;
    }
}

extern "C" __global__ void __launch_bounds__(COLS *ROWS)
    softmax_columns(const KG_T_input *input, KG_T_output *output, int n, long long k) {
    const long long tiles = (k + WIDTH - 1) / WIDTH, m = blockIdx.x / tiles;
    const long long column = blockIdx.x % tiles * WIDTH + threadIdx.x % COLS * VEC;
    struct place p;
    p.from = input + m * n * k + column, p.to = output + m * n * k + column;
    p.k = k, p.n = n, p.row = (int)threadIdx.x / COLS, p.live = column < k;
    struct pack raw[KEEP] = {};
    float2 all[VEC];
#pragma unroll
    for (int c = 0; c < VEC; c++)
        all[c] = make_float2(-infinity(), 0.0f);
    for (int base = 0; base < n; base += STEP) {
        load_rows(p, base, raw);
        accumulate(p, base, raw, all);
    }
    join_rows(p, all);
    if (n <= STEP) {
        store_rows(p, 0, raw, all);
        return;
    }
    for (int base = 0; base < n; base += STEP) {
        load_rows(p, base, raw);
        store_rows(p, base, raw, all);
    }
}
