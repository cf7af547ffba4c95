"""Registries for the tests of serving on a GPU: small CUDA Candidates of known behaviour, promoted through the real path.

Nothing here needs a GPU to be imported.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import serving_registry as sr
import torch

from kgen import _libkgen, devices, spread
from kgen.program import CAUSAL

# One block a row.
SOFTMAX = """/* kgen
{ "format": 1, "op": "softmax", "target": "cuda", "min_arch": "sm_80",
  "require": "K == 1 && input.contiguous",
  "launches": [{"kernel": "rows", "grid": ["M"], "block": [128], "args": ["input", "output", {"i64": "N"}]}] }
*/
/* FACTOR is not 1 in a kernel that is meant to be told apart, or to be wrong. */
#define FACTOR 1.0f
#define THREADS 128
extern "C" __global__ void rows(const KG_T_input *input, KG_T_output *output, long long n) {
    __shared__ float part[THREADS];
    const KG_T_input *x = input + blockIdx.x * n;
    KG_T_output *y = output + blockIdx.x * n;
    int t = threadIdx.x;
    float top = __int_as_float(0xff800000), sum = 0.0f;
    for (long long i = t; i < n; i += THREADS)
        top = fmaxf(top, x[i]);
    part[t] = top;
    __syncthreads();
    for (int s = THREADS / 2; s > 0; s /= 2) {
        if (t < s)
            part[t] = fmaxf(part[t], part[t + s]);
        __syncthreads();
    }
    top = part[0];
    __syncthreads();
    for (long long i = t; i < n; i += THREADS)
        sum += expf(x[i] - top);
    part[t] = sum;
    __syncthreads();
    for (int s = THREADS / 2; s > 0; s /= 2) {
        if (t < s)
            part[t] += part[t + s];
        __syncthreads();
    }
    for (long long i = t; i < n; i += THREADS)
        y[i] = expf(x[i] - top) * (FACTOR / part[0]);
}
"""

# One thread a row of queries; heads of at most 64.
ATTENTION = """/* kgen
{ "format": 1, "op": "attention", "target": "cuda", "min_arch": "sm_80",
  "require": "query.stride(3) == 1 && key.stride(3) == 1 && value.stride(3) == 1 && DV <= 64 && query.dtype == float32",
  "holes": ["SCORE", "MASK"],
  "launches": [{"kernel": "row", "grid": ["ceil_div(B * HQ * SQ, 64)"], "block": [64],
    "args": ["query", "key", "value", "output", "lse", "programs", {"i64": "B * HQ * SQ"},
             {"i64": "HQ"}, {"i64": "HKV"}, {"i64": "SQ"}, {"i64": "SK"}, {"i64": "D"}, {"i64": "DV"},
             {"i64": "query.stride(0)"}, {"i64": "query.stride(1)"}, {"i64": "query.stride(2)"},
             {"i64": "key.stride(0)"}, {"i64": "key.stride(1)"}, {"i64": "key.stride(2)"},
             {"i64": "value.stride(0)"}, {"i64": "value.stride(1)"}, {"i64": "value.stride(2)"},
             {"f32": "scale"}]}] }
*/
#define MASKED 1 /* 0 in a kernel that forgets the mask */
typedef long long i64;
extern "C" __global__ void row(const KG_T_query *query, const KG_T_key *key, const KG_T_value *value,
                               KG_T_output *output, KG_T_lse *lse, KG_PROGRAMS p, i64 rows, i64 HQ, i64 HKV, i64 SQ,
                               i64 SK, i64 D, i64 DV, i64 q0, i64 q1, i64 q2, i64 k0, i64 k1, i64 k2, i64 v0, i64 v1,
                               i64 v2, float scale) {
    const float none = __int_as_float(0xff800000);
    i64 at = blockIdx.x * 64ll + threadIdx.x;
    if (at >= rows)
        return;
    i64 b = at / (HQ * SQ), h = at / SQ % HQ, q = at % SQ, g = h / (HQ / HKV);
    float top = none, sum = 0, acc[64];
    for (int d = 0; d < 64; d++)
        acc[d] = 0;
#if KG_HAS_SCORE
    struct kg_score_row sr = kg_score_row(p, (int)b, (int)h, (int)q);
#endif
#if KG_HAS_MASK
    struct kg_mask_row mr = kg_mask_row(p, (int)b, (int)h, (int)q);
#endif
    for (i64 k = 0; k < SK; k++) {
        float s = 0;
        for (i64 d = 0; d < D; d++)
            s += query[b * q0 + h * q1 + q * q2 + d] * key[b * k0 + g * k1 + k * k2 + d];
        s *= scale;
#if KG_HAS_SCORE
        s = kg_score(p, sr, s, (int)b, (int)h, (int)q, (int)k);
#endif
#if KG_HAS_MASK
        if (MASKED && !kg_mask(p, mr, (int)b, (int)h, (int)q, (int)k))
            continue;
#endif
        if (s == none)
            continue;
        float next = fmaxf(s, top), old = expf(top - next), w = expf(s - next);
        sum = sum * old + w;
        for (i64 d = 0; d < DV; d++)
            acc[d] = acc[d] * old + w * value[b * v0 + g * v1 + k * v2 + d];
        top = next;
    }
    for (i64 d = 0; d < DV; d++)
        output[at * DV + d] = sum > 0 ? acc[d] / sum : 0.0f;
    if (lse)
        lse[at] = sum > 0 ? top + logf(sum) : none;
}
"""

# Writes far behind what it was given: a sticky error.
FAULT = SOFTMAX.replace("y[i] = expf", "y[i + (1ll << 40)] = expf")


def visible() -> dict[str, str | None]:
    """The environment of a command that sees the machine's GPUs."""
    return {"CUDA_VISIBLE_DEVICES": os.environ.get("CUDA_VISIBLE_DEVICES")}


def environment(index: int = 0) -> dict[str, Any]:
    """As the judge would have written it for a GPU of this machine."""
    device = torch.device("cuda", index)
    return {"device": torch.cuda.get_device_name(device), "arch": devices.arch(device), "threads": 1, "compiler": "nvrtc"}


def promote(registry: Path, op: str, source: str, keys: list[dict[str, Any]], index: int = 0) -> tuple[int, str]:
    """Promotes a CUDA Candidate for the architecture of a GPU; its version and id."""
    made = [{**k, "device": "cuda"} for k in keys]
    return sr.promote(registry, op, source, made, **environment(index))


def causal() -> str:
    """The hash of the Program that is_causal becomes."""
    case = spread.attention_trial("float32", spread.Sizes(1, 1, 2, 16, 1, 2, 16), (CAUSAL, [], [])).case
    return str(_libkgen.case_key(sr.contract("attention"), case)[0]["program"])


def serving(folder: Path) -> Path:
    """A registry that serves plain softmax and attention with any Program, head size 16, on the first GPU's architecture, and
    is_causal, which no pin for any Program serves on a GPU."""
    registry = folder / "generated"
    promote(registry, "softmax", SOFTMAX, [sr.softmax_key()])
    promote(registry, "attention", ATTENTION, [sr.attention_key(p) for p in (None, "*", causal())])
    return registry
