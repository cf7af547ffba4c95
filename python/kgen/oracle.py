"""The canonical Ops by their formulas: attention with a Program in any precision, as fp64 oracle and as torch's own eager
result; softmax and the norms in fp64.

Slow and plain on purpose. No Kernel, no fused attention of torch and no fallback of serving is used, so that an
error in one of those cannot hide here.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .devices import CHUNK, chunks
from .program import Program, evaluate, parse

# Scores held at a time: on a CPU more falls out of the caches, on a GPU fewer leave it idle.
_BLOCK, _GPU_BLOCK = 1 << 21, 1 << 26


def softmax(x: Tensor, dim: int) -> Tensor:
    """fp64, contiguous. On a GPU in parts along another dim, so that no fp64 copy of the input stands beside the output."""
    others = [d for d in range(x.ndim) if d != dim % x.ndim and x.shape[d] > 1] if x.is_cuda else []
    if not others or x.numel() <= CHUNK:
        return torch.softmax(x.double(), dim)
    axis = max(others, key=lambda d: x.shape[d])
    out = torch.empty(x.shape, dtype=torch.float64, device=x.device)
    for part in chunks(x.shape[axis], max(1, CHUNK * x.shape[axis] // x.numel())):
        at = (slice(None),) * axis + (part,)
        out[at] = torch.softmax(x[at].double(), dim)
    return out


# What an eps of None stands for in rms_norm, whose Kernels compute in fp32.
RMS_EPS = torch.finfo(torch.float32).eps


def norm(op: str, x: Tensor, shape: Sequence[int], weight: Tensor | None, bias: Tensor | None, eps: float | None) -> Tensor:
    """layer_norm or rms_norm in fp64, contiguous; bias is layer_norm's alone. On a GPU in parts of whole rows, a long row
    one at a time."""
    eps = RMS_EPS if eps is None else eps
    centred = op == "layer_norm"
    wide_weight, wide_bias = (None if t is None else t.double().reshape(-1) for t in (weight, bias))
    rows = x.reshape(-1, math.prod(shape)) if x.numel() else x.new_empty((0, 1))
    out = torch.empty(rows.shape, dtype=torch.float64, device=x.device)
    step = max(1, CHUNK // max(1, rows.shape[1])) if x.is_cuda else max(1, rows.shape[0])
    for part in chunks(rows.shape[0], step):
        y = rows[part].double()
        if centred:
            y = y - y.mean(-1, keepdim=True)
        y = y / torch.sqrt((y * y).mean(-1, keepdim=True) + eps)
        if wide_weight is not None:
            y = y * wide_weight
        out[part] = y if wide_bias is None else y + wide_bias
    return out.reshape(x.shape)


def product(
    op: str, args: dict[str, Any], captured: Sequence[Tensor], scalars: Sequence[float], text: str | None
) -> Tensor:
    """linear, matmul or conv2d with its epilogue in the dtype of its arguments: in fp64 for fp64 ones. The contract's own shapes."""
    if op == "conv2d":
        from .convolution import contract_output

        return epilogue(contract_output(**args), captured, scalars, text)
    x, second = args["input"], args["weight"].mT if op == "linear" else args["other"]
    y = torch.matmul(x, second)
    if op == "linear" and args["bias"] is not None:
        y = y + args["bias"]
    return epilogue(y, captured, scalars, text)


def epilogue(y: Tensor, captured: Sequence[Tensor], scalars: Sequence[float], text: str | None) -> Tensor:
    """A Program's epilogue of a product (M, N) or (B, M, N), in fp64 for fp64 ones, else in fp32; in y's dtype."""
    section = parse(text).epilogue if text else None
    if section is None:
        return y
    at = {}
    for d, name in enumerate(("b", "m", "n")):
        size = y.shape[d - 3] if 3 - d <= y.ndim else 1
        at[name] = torch.arange(size, dtype=torch.int32, device=y.device).view(-1, *(1,) * (2 - d))
        if y.ndim == 2 and name == "b":
            at[name] = at[name].view(1, 1)
    wide = torch.float64 if y.dtype == torch.float64 else torch.float32
    found = evaluate(parse(text), section, {**at, "acc": y.to(wide)}, captured, scalars, wide)
    return found.expand(y.shape).to(y.dtype)


def attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    captured: Sequence[Tensor],
    scalars: Sequence[float],
    program: str | None,
    *,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> tuple[Tensor, Tensor]:
    """Output (B, HQ, SQ, DV) in the query's dtype and lse (B, HQ, SQ), fp64 for fp64 inputs, else fp32.

    Products are made in the query's dtype, as eager torch does; the Program runs in fp64 for fp64 inputs, else in
    fp32. A row whose every score is masked gives 0 and -inf.
    """
    return _attention(query, key, value, captured, scalars, program, scale, 0)


def wide_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    captured: Sequence[Tensor],
    scalars: Sequence[float],
    program: str | None,
    *,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> tuple[Tensor, Tensor]:
    """The same in fp64 whatever the inputs are. On a GPU one of a batch after the other, so that no fp64 copies of all
    inputs stand beside the output."""
    if not query.is_cuda:
        return _attention(query.double(), key.double(), value.double(), captured, scalars, program, scale, 0)
    output = query.new_empty((*query.shape[:3], value.shape[3]), dtype=torch.float64)
    lse = query.new_empty(query.shape[:3], dtype=torch.float64)
    for b in range(query.shape[0]):
        q, k, v = (t[b : b + 1].double() for t in (query, key, value))
        output[b : b + 1], lse[b : b + 1] = _attention(q, k, v, captured, scalars, program, scale, b)
    return output, lse


def _attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    captured: Sequence[Tensor],
    scalars: Sequence[float],
    program: str | None,
    scale: float | None,
    batch: int,
) -> tuple[Tensor, Tensor]:
    """batch: the index of the first of the batch."""
    parsed = parse(program) if program else None
    scale = 1.0 / math.sqrt(query.shape[-1]) if scale is None else scale
    heads = query.shape[1]
    key, value = _repeat(key, heads), _repeat(value, heads)
    wide = torch.float64 if query.dtype == torch.float64 else torch.float32
    output = query.new_empty((*query.shape[:3], value.shape[3]))
    lse = query.new_empty(query.shape[:3], dtype=wide)
    block = _GPU_BLOCK if query.is_cuda else _BLOCK
    step = max(1, block // max(1, query.shape[0] * heads * key.shape[2]))
    for start in range(0, query.shape[2], step):
        rows = slice(start, min(query.shape[2], start + step))
        scores = (torch.matmul(query[:, :, rows], key.transpose(2, 3)) * scale).to(wide)
        if parsed is not None:
            scores = _modified(parsed, scores, start, batch, captured, scalars)
        lse[:, :, rows] = torch.logsumexp(scores, dim=-1)
        empty = (scores == -math.inf).all(dim=-1, keepdim=True)
        weights = torch.where(empty, 0.0, torch.softmax(scores, dim=-1)).to(query.dtype)
        output[:, :, rows] = torch.matmul(weights, value)
    return output, lse


def _repeat(x: Tensor, heads: int) -> Tensor:
    return x if x.shape[1] == heads else x.repeat_interleave(heads // x.shape[1], dim=1)


def _modified(
    program: Program, scores: Tensor, start: int, batch: int, captured: Sequence[Tensor], scalars: Sequence[float]
) -> Tensor:
    sizes = scores.shape
    inputs = {}
    for axis, name in enumerate(("b", "h", "q", "kv")):
        shape = [1, 1, 1, 1]
        shape[axis] = sizes[axis]
        first = {"q": start, "b": batch}.get(name, 0)
        span = torch.arange(first, first + sizes[axis], dtype=torch.int32, device=scores.device)
        inputs[name] = span.view(shape)
    if program.score is not None:
        given = {**inputs, "score": scores}
        scores = evaluate(program, program.score, given, captured, scalars, scores.dtype).expand(sizes)
    if program.mask is not None:
        keep = evaluate(program, program.mask, inputs, captured, scalars, scores.dtype)
        scores = scores.masked_fill(~keep.expand(sizes), -math.inf)
    return scores
