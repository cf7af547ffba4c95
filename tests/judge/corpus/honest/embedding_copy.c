/* kgen
{ "format": 1, "op": "embedding_bf16", "target": "cpu",
  "require": "index.contiguous && table_weight.contiguous",
  "launches": [
    {"kernel": "rows", "range": "index.numel", "args": ["index", "table_weight", "output", {"i64": "table_weight_1"}]}] }
*/
/* Rows of a table by memcpy. */
#include <stdint.h>
#include <string.h>

void rows(int64_t begin, int64_t end, const KG_T_index *at, const KG_T_table_weight *table,
          KG_T_output *y, int64_t n) {
    for (int64_t i = begin; i < end; i++)
        memcpy(y + i * n, table + at[i] * n, (size_t)n * sizeof *y);
}
