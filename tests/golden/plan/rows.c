/* kgen
{ "format": 1, "op": "softmax", "target": "cpu", "min_arch": "x86-64-v2",
  "tunables":   {"VEC": [16, 8], "ROWS": [4, 1, -1]},
  "specialize": ["N", "K"],
  "require":    "N % VEC == 0 && input.contiguous && (K == 1 || K > 4)",
  "workspace":  {"partial": {"dtype": "float32", "shape": ["M", "ceil_div(N, 4096)"], "zero": true}},
  "zero":       ["output"],
  "launches":   [{"kernel": "first", "range": "M", "grain": "max(1, 65536 / max(N, 1))", "when": "N > 4096",
                  "args": ["input", "partial", {"i64": "N"}]},
                 {"kernel": "rows", "range": "M * K",
                  "args": ["input", "output", "partial", {"i64": "N"}, {"i32": "M + ROWS"}, {"f32": 0.5}, {"f64": -2}]}],
  "flags":      ["no_contract"] }
*/
void first(int64_t begin, int64_t end, const KG_T_input *input, KG_T_partial *partial, int64_t n);
