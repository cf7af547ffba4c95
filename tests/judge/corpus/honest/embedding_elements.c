/* kgen
{ "format": 1, "op": "embedding_bf16", "target": "cpu",
  "require": "index.contiguous && table_weight.contiguous",
  "launches": [
    {"kernel": "elements", "range": "index.numel * table_weight_1", "grain": "100", "args": ["index", "table_weight", "output", {"i64": "table_weight_1"}]}] }
*/
/* Rows of a table element by element, in chunks that end in the middle of a row. */
#include <stdint.h>

void elements(int64_t begin, int64_t end, const KG_T_index *at, const KG_T_table_weight *table,
              KG_T_output *y, int64_t n) {
    for (int64_t e = begin; e < end; e++)
        y[e] = table[at[e / n] * n + e % n];
}
