/* kgen
{ "format": 1, "op": "histogram", "target": "cpu",
  "launches": [
    {"kernel": "values", "range": "32", "args": ["x", "output", {"i64": "x_0"}]}] }
*/
/* Each value counts itself over the whole input: slow, and right. */
#include <stdint.h>

void values(int64_t begin, int64_t end, const KG_T_x *x, KG_T_output *y, int64_t n) {
    for (int64_t v = begin; v < end; v++) {
        int64_t count = 0;
        for (int64_t i = 0; i < n; i++)
            count += x[i] == v;
        y[v] = count;
    }
}
