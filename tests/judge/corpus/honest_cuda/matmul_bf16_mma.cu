/* kgen
{ "format": 1, "op": "matmul_bf16", "target": "cuda", "require": "a.contiguous && b.contiguous && a_1 % 16 == 0",
  "launches": [
    {"kernel": "matmul_bf16_mma", "grid": ["ceil_div(b_1, 8)", "ceil_div(a_0, 16)"], "block": [32], "args": ["a", "b", "output", {"i32": "a_0"}, {"i32": "a_1"}, {"i32": "b_1"}]}] }
*/
/* bfloat16 through tensor cores with fp32 sums. */
static float from_bf16(unsigned short h) {
    return __uint_as_float((unsigned)h << 16);
}

static unsigned short to_bf16(float f) {
    unsigned short h;
    asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(h) : "f"(f));
    return h;
}

static void product(float c[4], const unsigned x[4], const unsigned w[2]) {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%10, %11, %12, %13};"
        : "=f"(c[0]), "=f"(c[1]), "=f"(c[2]), "=f"(c[3])
        : "r"(x[0]), "r"(x[1]), "r"(x[2]), "r"(x[3]), "r"(w[0]), "r"(w[1]), "f"(c[0]), "f"(c[1]), "f"(c[2]), "f"(c[3]));
}

extern "C" __global__ void matmul_bf16_mma(const unsigned short *a, const unsigned short *b, unsigned short *y, int m, int k, int n) {
    int g = threadIdx.x / 4, t = threadIdx.x % 4, i = blockIdx.y * 16 + g, j = blockIdx.x * 8;
    float c[4] = {0.0f, 0.0f, 0.0f, 0.0f};
    for (int p = 0; p < k; p += 16) {
        unsigned x[4], w[2];
        for (int e = 0; e < 4; e++) {
            int r = i + e % 2 * 8, q = p + t * 2 + e / 2 * 8;
            x[e] = r < m ? a[r * k + q] | (unsigned)a[r * k + q + 1] << 16 : 0;
        }
        for (int e = 0; e < 2; e++) {
            int q = p + t * 2 + e * 8;
            w[e] = j + g < n ? b[q * n + j + g] | (unsigned)b[(q + 1) * n + j + g] << 16 : 0;
        }
        product(c, x, w);
    }
    for (int e = 0; e < 4; e++) {
        int r = i + e / 2 * 8, q = j + t * 2 + e % 2;
        if (r < m && q < n)
            y[r * n + q] = to_bf16(c[e]);
    }
}
