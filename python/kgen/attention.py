"""kgen.attention: FlexAttention's call, served by Kernels with the score_mod and mask_mod compiled in.

It traces the functions into a Program (kgen.trace) and calls torch.ops.kgen.attention_mod_output, or attention_mod where
the log-sum-exp is wanted; a call without functions is torch.ops.kgen.attention. Refuses what a Program cannot say, by name; it never runs a score_mod on real scores.
"""

from __future__ import annotations

import math
from typing import Any, Callable, Sequence

import torch
from torch import Tensor
from torch.nn.attention.bias import CausalBias, CausalVariant
from torch.nn.attention.flex_attention import BlockMask

from .errors import BadInput
from .program import CAUSAL, Program, evaluate, parse
from .trace import Blocks, trace, trace_compiled

# Scores held at a time by reference_attention_mod.
_BLOCK = 1 << 24


def block_kinds(mask: BlockMask) -> Tensor:
    """A BlockMask's tables as one kind per block, int32 (B, H, NQ, NK): 0 none, 1 partial, 2 full."""
    kinds = _kinds(mask.kv_num_blocks, mask.kv_indices, 1)
    if mask.full_kv_num_blocks is not None:
        kinds = torch.maximum(kinds, _kinds(mask.full_kv_num_blocks, mask.full_kv_indices, 2))
    return kinds


def _kinds(counts: Tensor, indices: Tensor, kind: int) -> Tensor:
    columns = indices.shape[-1]
    there = torch.arange(columns, device=indices.device) < counts.unsqueeze(-1)
    # What lies past a row's count is no block: it goes to a column that is cut off.
    at = torch.where(there, indices, columns).long()
    table = torch.zeros((*indices.shape[:-1], columns + 1), dtype=torch.int32, device=indices.device)
    return table.scatter(-1, at, kind)[..., :columns].contiguous()


def _cached_kinds(mask: BlockMask) -> Tensor:
    """block_kinds, kept on the BlockMask until one of its tables is another tensor or is written."""
    tables = (mask.kv_num_blocks, mask.kv_indices, mask.full_kv_num_blocks, mask.full_kv_indices)
    state = tuple((id(t), t._version) if t is not None and not t.is_inference() else id(t) for t in tables)
    known = mask.__dict__.get("_kgen_kinds")
    if known is None or known[0] != state:
        known = (state, tables, block_kinds(mask))
        mask.__dict__["_kgen_kinds"] = known
    return known[2]


_DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def _check_inputs(query: Tensor, key: Tensor, value: Tensor, scale: float | None, enable_gqa: bool, one_cache: bool) -> None:
    """one_cache: the keys may be one batch entry for all. BadInput for what FlexAttention refuses, whichever path the call takes; torch's own attention would broadcast some of
    it and read past the end for other."""
    if not query.dim() == key.dim() == value.dim() == 4:
        raise BadInput(f"attention: query, key and value are (B, H, S, D); their sizes are {tuple(query.shape)}, "
                       f"{tuple(key.shape)}, {tuple(value.shape)}")
    if not query.dtype == key.dtype == value.dtype:
        raise BadInput(f"attention: query, key and value must be of one dtype, not {query.dtype}, {key.dtype}, {value.dtype}")
    if query.dtype not in _DTYPES:
        raise BadInput(f"attention: takes float16, bfloat16, float32 and float64, not {query.dtype}: convert first")
    if not query.device == key.device == value.device:
        raise BadInput("attention: query, key and value must be on one device, not "
                       f"{query.device}, {key.device}, {value.device}")
    (b, hq, _, d), (kb, hkv, sk, kd), v = query.shape, key.shape, value.shape
    if b != kb and not (kb == 1 and one_cache) or d != kd or (kb, hkv, sk) != v[:3]:
        raise BadInput("attention: sizes that do not go together: "
                       f"query {tuple(query.shape)}, key {tuple(key.shape)}, value {tuple(v)}: wanted are query "
                       "(B, HQ, SQ, D), key (B, HKV, SK, D), value (B, HKV, SK, DV)")
    if hq != hkv and not enable_gqa:
        raise BadInput(f"attention: {hq} heads of queries and {hkv} of keys: enable_gqa=True shares keys among heads")
    if hq == 0 or hkv == 0 or hq % hkv:
        raise BadInput(f"attention: {hq} heads of queries cannot share {hkv} of keys: the one must be a multiple of the other")
    if d == 0 and scale is None:
        raise BadInput("attention: a head dim of 0 has no usual scale, 1 / sqrt(0): give one")


def _check_blocks(mask: BlockMask, query: Tensor, key: Tensor) -> None:
    b, h, q, kv = mask.shape
    if (q, kv) != (query.shape[-2], key.shape[-2]) or b not in (1, query.shape[0]) or h not in (1, query.shape[1]):
        raise BadInput(f"the block_mask is for (B, H, Q, KV) = {(b, h, q, kv)}; this call is "
                       f"{(query.shape[0], query.shape[1], query.shape[2], key.shape[2])}; make it for these lengths "
                       "(B and H may be 1)")
    if mask.kv_num_blocks.device != query.device:
        raise BadInput(f"the block_mask is on {mask.kv_num_blocks.device}; query is on {query.device}: make it there, "
                       f"create_block_mask(..., device={str(query.device)!r})")


def _lower_right(offset: int) -> Callable[..., Any]:
    def lower_right(b: Any, h: Any, q_idx: Any, kv_idx: Any) -> Any:
        return q_idx + offset >= kv_idx
    return lower_right


def _with_bias(bias: CausalBias, query: Tensor, key: Tensor) -> tuple[Callable[..., Any] | None, bool]:
    """mask_mod and is_causal of torch.nn.attention.bias's objects."""
    if (bias.seq_len_q, bias.seq_len_kv) != (query.shape[-2], key.shape[-2]):
        raise BadInput(f"the causal bias is for lengths {(bias.seq_len_q, bias.seq_len_kv)}; this call has "
                       f"{(query.shape[-2], key.shape[-2])}")
    if bias.variant == CausalVariant.UPPER_LEFT:
        return None, True
    return _lower_right(bias.seq_len_kv - bias.seq_len_q), False


def attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    score_mod: Callable[..., Any] | None = None,
    block_mask: BlockMask | CausalBias | None = None,
    scale: float | None = None,
    enable_gqa: bool = False,
    return_lse: bool = False,
    kernel_options: dict[str, Any] | None = None,
    *,
    return_aux: Any = None,
    mask_mod: Callable[..., Any] | CausalBias | None = None,
    is_causal: bool = False,
) -> Any:
    """softmax(mask_mod(score_mod(scale * query key^T))) value, with FlexAttention's arguments in its order.

    query (B, HQ, SQ, D), key (B, HKV, SK, D), value (B, HKV, SK, DV), of one of float32, float16, bfloat16; HQ may
    be a multiple of HKV with enable_gqa. score_mod(score, b, h, q_idx, kv_idx) gives the new score (fp32, after
    scale, 1/sqrt(D) by default), mask_mod(b, h, q_idx, kv_idx) a bool; both may read captured tensors. A block_mask's
    own tables rule: its mask_mod is asked in partial blocks alone; with one, key and value may be one entry (1, HKV, SK, D)
    for all of the batch, such as the pages that torch's PagedAttention keeps. is_causal is q_idx >= kv_idx (top left); bottom
    right is causal_lower_right or a mask_mod. A row without any key gives 0.

    Returns the output (B, HQ, SQ, DV); with return_lse also the natural log-sum-exp (B, HQ, SQ) in fp32; with
    return_aux an AuxOutput. kernel_options are for FlexAttention's own kernels and change nothing here.
    Raises kgen.BadInput for inputs that do not go together, kgen.TraceError, which names the operation, for what a Program cannot say."""
    if not torch.compiler.is_dynamo_compiling():
        _check_inputs(query, key, value, scale, enable_gqa, isinstance(block_mask, BlockMask))
    if block_mask is not None and mask_mod is not None:
        raise BadInput("attention: give block_mask or mask_mod, not both; and_masks joins two mask_mods")
    if isinstance(block_mask, CausalBias):
        mask_mod, block_mask = block_mask, None
    if isinstance(mask_mod, CausalBias):
        mask_mod, upper_left = _with_bias(mask_mod, query, key)
        is_causal = is_causal or upper_left
    if return_aux is not None:
        if return_aux.max_scores:
            raise BadInput("attention: max_scores is not computed; ask for AuxRequest(lse=True)")
        return_lse = False
    if isinstance(block_mask, BlockMask) and key.shape[0] == 1 and query.shape[0] != 1:
        key, value = key.expand(query.shape[0], -1, -1, -1), value.expand(query.shape[0], -1, -1, -1)
    with_lse = return_lse or (return_aux is not None and return_aux.lse)
    if score_mod is None and block_mask is None and mask_mod is None:
        text, captured, scalars = (CAUSAL if is_causal else ""), [], []
    else:
        text, captured, scalars = _trace(score_mod, mask_mod, block_mask, is_causal, query, key)
    if not with_lse and (text == "" or text == CAUSAL):
        out = torch.ops.kgen.attention(query, key, value, is_causal=text != "", scale=scale, enable_gqa=enable_gqa)
        lse = None
    else:
        out, lse = _attention_mod(query, key, value, captured, scalars, text, scale, enable_gqa, with_lse)
    if return_aux is not None:
        from torch.nn.attention.flex_attention import AuxOutput

        return out, AuxOutput(lse=lse)
    return (out, lse) if return_lse else out


def _trace(score_mod: Any, mask_mod: Any, block_mask: BlockMask | None, is_causal: bool, query: Tensor,
           key: Tensor) -> tuple[str, list[Tensor], list[float]]:
    if block_mask is not None:
        _check_blocks(block_mask, query, key)
        mask_mod = block_mask.mask_mod
    if torch.compiler.is_dynamo_compiling():
        if block_mask is None:
            return trace_compiled(score_mod, mask_mod, causal=is_causal, device=query.device)
        block_q, block_kv = block_mask.BLOCK_SIZE
        return trace_compiled(score_mod, mask_mod, block_kinds(block_mask), block_q, block_kv, is_causal, query.device)
    blocks = None
    if block_mask is not None:
        blocks = Blocks(_cached_kinds(block_mask), *block_mask.BLOCK_SIZE)
    found = trace(score_mod, mask_mod, blocks, is_causal, query.device)
    return found.text, found.captured, found.scalars


def _attention_mod(query: Tensor, key: Tensor, value: Tensor, captured: list[Tensor], scalars: list[float], text: str,
                   scale: float | None, enable_gqa: bool, with_lse: bool) -> tuple[Tensor, Tensor | None]:
    grad = torch.is_grad_enabled() and (query.requires_grad or key.requires_grad or value.requires_grad)
    for i, t in enumerate(captured):
        if t.device != query.device:
            if t.dim() != 0:
                raise BadInput(f"attention: captured tensor {i}, of shape {tuple(t.shape)}, is on {t.device}; query "
                               f"is on {query.device}")
            captured[i] = t.to(query.device)
        grad = grad or (t.requires_grad and torch.is_grad_enabled())
    if not grad and not with_lse:
        out = torch.ops.kgen.attention_mod_output(query, key, value, captured, scalars, text, scale=scale, enable_gqa=enable_gqa)
        return out, None
    op = torch.ops.kgen.attention_mod_train if grad else torch.ops.kgen.attention_mod
    return op(query, key, value, captured, scalars, text, scale=scale, enable_gqa=enable_gqa)


# ---- the Program's meaning, densely ----


def _reference_rows(query: Tensor, key: Tensor, value: Tensor, rows: slice, program: Program | None,
                    captured: Sequence[Tensor], scalars: Sequence[float], scale: float) -> tuple[Tensor, Tensor]:
    dtype, device = query.dtype, query.device
    score = torch.matmul(query[:, :, rows], key.transpose(-2, -1)) * scale

    def index(start: int, stop: int, *shape: int) -> Tensor:
        return torch.arange(start, stop, dtype=torch.int32, device=device).view(shape)

    at = {"b": index(0, query.shape[0], -1, 1, 1, 1), "h": index(0, query.shape[1], 1, -1, 1, 1),
          "q": index(rows.start, rows.stop, 1, 1, -1, 1), "kv": index(0, key.shape[2], 1, 1, 1, -1)}
    if program is not None and program.score is not None:
        found = evaluate(program, program.score, {**at, "score": score}, captured, scalars, dtype)
        score = found.expand(score.shape)
    if program is not None and program.mask is not None:
        keep = evaluate(program, program.mask, at, captured, scalars, dtype)
        score = torch.where(keep, score, -math.inf)
    # A row of -inf alone would give NaN, also in the gradient: it is replaced before and after.
    empty = (score == -math.inf).all(dim=-1, keepdim=True)
    score = torch.where(empty, 0.0, score)
    out = torch.where(empty, 0.0, torch.matmul(torch.softmax(score, dim=-1), value))
    lse = torch.where(empty[..., 0], -math.inf, torch.logsumexp(score, dim=-1))
    return out, lse


def reference_attention_mod(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    captured: Sequence[Tensor],
    scalars: Sequence[float],
    program_text: str,
    scale: float | None = None,
    enable_gqa: bool = False,
    dtype: torch.dtype | None = None,
) -> tuple[Tensor, Tensor]:
    """attention_mod in plain torch, differentiable in query, key, value and the captured tensors: (output, lse).

    dtype is what everything is computed in: float64 makes it the oracle, and then output and lse stay float64;
    None computes in fp32 (fp64 for float64 inputs) and returns query's dtype and fp32. program_text may be ""."""
    compute = dtype or (torch.float64 if query.dtype == torch.float64 else torch.float32)
    scale = 1 / math.sqrt(query.shape[-1]) if scale is None else scale
    groups = query.shape[1] // max(1, key.shape[1]) if enable_gqa else 1
    q, k, v = (t.to(compute) for t in (query, key, value))
    if groups != 1:
        k, v = k.repeat_interleave(groups, dim=1), v.repeat_interleave(groups, dim=1)
    program = parse(program_text) if program_text else None
    rows = max(1, _BLOCK // max(1, q.shape[0] * q.shape[1] * k.shape[2]))
    parts = [_reference_rows(q, k, v, slice(i, min(i + rows, q.shape[2])), program, captured, scalars, scale)
             for i in range(0, max(1, q.shape[2]), rows)]
    out, lse = (torch.cat([p[i] for p in parts], dim=2) for i in (0, 1))
    return (out, lse) if dtype is not None else (out.to(query.dtype), lse.float())


def flex_mods(program_text: str, captured: Sequence[Tensor], scalars: Sequence[float]) -> tuple[Any, Any]:
    """A Program as FlexAttention's own (score_mod, mask_mod), either may be None: for compiled FlexAttention as
    baseline and fallback. The mask_mod serves create_block_mask too."""
    program = parse(program_text)

    def score_mod(score: Tensor, b: Tensor, h: Tensor, q: Tensor, kv: Tensor) -> Tensor:
        inputs = {"score": score.float(), "b": b, "h": h, "q": q, "kv": kv}
        return evaluate(program, program.score, inputs, captured, scalars, torch.float32)

    def mask_mod(b: Tensor, h: Tensor, q: Tensor, kv: Tensor) -> Tensor:
        return evaluate(program, program.mask, {"b": b, "h": h, "q": q, "kv": kv}, captured, scalars, torch.float32)

    return (score_mod if program.score is not None else None), (mask_mod if program.mask is not None else None)
