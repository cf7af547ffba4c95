/* kgen
{ "format": 1, "op": "matmul", "target": "cuda", "require": "a.contiguous && b.contiguous && a_1 % 8 == 0",
  "launches": [
    {"kernel": "matmul_tf32_three", "grid": ["ceil_div(b_1, 8)", "ceil_div(a_0, 16)"], "block": [32], "args": ["a", "b", "output", {"i32": "a_0"}, {"i32": "a_1"}, {"i32": "b_1"}]}] }
*/
/* fp32 through TF32 tensor cores: each factor in a high and a low part, three products, the sums
 * taken out of the tensor core after every 8 terms. */
static unsigned tf32(float v) {
    unsigned u;
    asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(u) : "f"(v));
    return u;
}

static void product(float c[4], const unsigned x[4], const unsigned w[2]) {
    asm("mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(x[0]), "r"(x[1]), "r"(x[2]), "r"(x[3]), "r"(w[0]), "r"(w[1]));
}

extern "C" __global__ void matmul_tf32_three(const float *a, const float *b, float *y, int m, int k, int n) {
    int g = threadIdx.x / 4, t = threadIdx.x % 4, i = blockIdx.y * 16 + g, j = blockIdx.x * 8;
    float sum[4] = {0.0f, 0.0f, 0.0f, 0.0f};
    for (int p = 0; p < k; p += 8) {
        unsigned xh[4], xl[4], wh[2], wl[2];
        float c[4] = {0.0f, 0.0f, 0.0f, 0.0f};
        for (int e = 0; e < 4; e++) {
            int r = i + e % 2 * 8, q = p + t + e / 2 * 4;
            float v = r < m ? a[r * k + q] : 0.0f;
            xh[e] = tf32(v);
            xl[e] = tf32(v - __uint_as_float(xh[e]));
        }
        for (int e = 0; e < 2; e++) {
            float v = j + g < n ? b[(p + t + e * 4) * n + j + g] : 0.0f;
            wh[e] = tf32(v);
            wl[e] = tf32(v - __uint_as_float(wh[e]));
        }
        product(c, xl, wh);
        product(c, xh, wl);
        product(c, xh, wh);
        for (int e = 0; e < 4; e++)
            sum[e] += c[e];
    }
    for (int e = 0; e < 4; e++) {
        int r = i + e / 2 * 8, q = j + t * 2 + e % 2;
        if (r < m && q < n)
            y[r * n + q] = sum[e];
    }
}
