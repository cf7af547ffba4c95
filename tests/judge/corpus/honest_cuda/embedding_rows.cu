/* kgen
{ "format": 1, "op": "embedding_bf16", "target": "cuda", "require": "index.contiguous && table_weight.contiguous",
  "launches": [
    {"kernel": "embedding_rows", "grid": ["index.numel"], "block": [64], "args": ["index", "table_weight", "output", {"i32": "table_weight_1"}]}] }
*/
/* Rows of a bfloat16 table, bits copied. */
extern "C" __global__ void embedding_rows(const long long *at, const unsigned short *table, unsigned short *y, int n) {
    for (int j = threadIdx.x; j < n; j += 64)
        y[blockIdx.x * n + j] = table[at[blockIdx.x] * n + j];
}
