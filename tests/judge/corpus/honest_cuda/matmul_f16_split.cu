/* kgen
{ "format": 1, "op": "matmul", "target": "cuda", "require": "a.contiguous && b.contiguous && a_1 % 16 == 0",
  "launches": [
    {"kernel": "matmul_f16_split", "grid": ["ceil_div(b_1, 8)", "ceil_div(a_0, 16)"], "block": [32], "args": ["a", "b", "output", {"i32": "a_0"}, {"i32": "a_1"}, {"i32": "b_1"}]}] }
*/
/* fp32 through float16 tensor cores: factors scaled by a power of two and split into a high and a
 * low half, three products, sums in fp32 registers. */
static float from_f16(unsigned short h) {
    float f;
    asm("cvt.f32.f16 %0, %1;" : "=f"(f) : "h"(h));
    return f;
}

static unsigned short to_f16(float f) {
    unsigned short h;
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(h) : "f"(f));
    return h;
}

static unsigned pair(float low, float high) {
    return (unsigned)to_f16(low) | (unsigned)to_f16(high) << 16;
}

static float rest(float v) {
    return (v - from_f16(to_f16(v))) * 2048.0f;
}

static void product(float c[4], const unsigned x[4], const unsigned w[2]) {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%10, %11, %12, %13};"
        : "=f"(c[0]), "=f"(c[1]), "=f"(c[2]), "=f"(c[3])
        : "r"(x[0]), "r"(x[1]), "r"(x[2]), "r"(x[3]), "r"(w[0]), "r"(w[1]), "f"(c[0]), "f"(c[1]), "f"(c[2]), "f"(c[3]));
}

/* A power of two that brings the largest of a row or column near 1. */
static float unit(const float *p, int n, long long step) {
    float top = 0.0f;
    for (int i = 0; i < n; i++)
        top = fmaxf(top, fabsf(p[i * step]));
    int e = (int)(__float_as_uint(top) >> 23);
    return __uint_as_float((unsigned)min(max(254 - e, 1), 253) << 23);
}

extern "C" __global__ void matmul_f16_split(const float *a, const float *b, float *y, int m, int k, int n) {
    int g = threadIdx.x / 4, t = threadIdx.x % 4, i = blockIdx.y * 16 + g, j = blockIdx.x * 8;
    float ua[2] = {i < m ? unit(a + i * k, k, 1) : 1.0f, i + 8 < m ? unit(a + (i + 8) * k, k, 1) : 1.0f};
    float ub = j + g < n ? unit(b + j + g, k, n) : 1.0f;
    float high[4] = {0.0f, 0.0f, 0.0f, 0.0f}, low[4] = {0.0f, 0.0f, 0.0f, 0.0f};
    for (int p = 0; p < k; p += 16) {
        unsigned xh[4], xl[4], wh[2], wl[2];
        float h[4] = {0.0f, 0.0f, 0.0f, 0.0f}, l[4] = {0.0f, 0.0f, 0.0f, 0.0f};
        for (int e = 0; e < 4; e++) {
            int r = i + e % 2 * 8, q = p + t * 2 + e / 2 * 8;
            float v = r < m ? a[r * k + q] * ua[e % 2] : 0.0f, u = r < m ? a[r * k + q + 1] * ua[e % 2] : 0.0f;
            xh[e] = pair(v, u);
            xl[e] = pair(rest(v), rest(u));
        }
        for (int e = 0; e < 2; e++) {
            int q = p + t * 2 + e * 8;
            float v = j + g < n ? b[q * n + j + g] * ub : 0.0f, u = j + g < n ? b[(q + 1) * n + j + g] * ub : 0.0f;
            wh[e] = pair(v, u);
            wl[e] = pair(rest(v), rest(u));
        }
        product(l, xl, wh);
        product(l, xh, wl);
        product(h, xh, wh);
        for (int e = 0; e < 4; e++) {
            high[e] += h[e];
            low[e] += l[e];
        }
    }
    for (int e = 0; e < 4; e++) {
        int r = i + e / 2 * 8, q = j + t * 2 + e % 2;
        float column = __shfl_sync(~0u, ub, (t * 2 + e % 2) * 4);
        if (r < m && q < n)
            y[r * n + q] = (high[e] + low[e] * 0.00048828125f) / ua[e / 2] / column;
    }
}
