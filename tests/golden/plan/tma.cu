/* kgen
{ "format": 1, "op": "attention", "target": "cuda", "min_arch": "sm_90",
  "tunables":    {"BLOCK_M": [128, 64], "BLOCK_N": [128], "STAGES": [2, 3]},
  "specialize":  ["D", "DV"],
  "require":     "D % 8 == 0 && query.dtype == bfloat16 && query.stride(3) == 1 && SK > 0",
  "tensor_maps": {"q_map": {"tensor": "query", "dims": ["D", "SQ", "HQ", "B"],
                            "strides": ["2 * query.stride(2)", "2 * query.stride(1)", "2 * query.stride(0)"],
                            "box": ["min(D, 64)", "BLOCK_M", 1, 1], "swizzle": 128, "l2": 256}},
  "launches":    [{"kernel": "flash", "grid": ["ceil_div(SQ, BLOCK_M)", "HQ", "B"], "block": [128], "cluster": [1],
                   "shared": "STAGES * BLOCK_N * D * 4", "pdl": true, "cooperative": false,
                   "args": [{"map": "q_map"}, "key", "value", "output", "lse", "programs", {"i32": "SQ"}, {"f32": "scale"}]}],
  "holes":       ["SCORE", "MASK"],
  "flags":       ["fast_math"] }
*/
extern "C" __global__ void flash() {}
