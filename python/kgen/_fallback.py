"""What serves a call when no Kernel does: Programs by compiled FlexAttention (CUDA) or by plain torch, a model's
own Ops by the captured module; and the vector-Jacobian products of both.

Refuses nothing that torch can compute; it is slower than a Kernel and says so once.
"""

from __future__ import annotations

import math
import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from . import _native, lean
from .ops import recording
from .program import Program, evaluate, parse

# Scores held at a time by the plain path; below DENSE in all, compiling FlexAttention takes longer than it saves.
_BLOCK = 1 << 23
_DENSE = 1 << 24

_said: set[str] = set()
_lock = threading.Lock()


def _say_once(key: str, message: str) -> None:
    with _lock:
        if key in _said:
            return
        _said.add(key)
    warnings.warn(f"kgen: {message}", stacklevel=2)


# ---- attention with a Program ----


def _compute_dtype(t: Tensor) -> torch.dtype:
    return torch.float64 if t.dtype == torch.float64 else torch.float32


def _blocks(query: Tensor, key: Tensor) -> Iterator[slice]:
    """Slices of query rows whose scores fit a block."""
    b, h, sq, _ = query.shape
    rows = max(1, _BLOCK // max(1, b * h * key.shape[2]))
    for start in range(0, sq, rows):
        yield slice(start, min(start + rows, sq))


def _repeat_heads(t: Tensor, heads: int) -> Tensor:
    return t if t.shape[1] == heads else t.repeat_interleave(heads // t.shape[1], dim=1)


def _scores(
    query: Tensor,
    key: Tensor,
    rows: slice,
    program: Program | None,
    captured: Sequence[Tensor],
    scalars: Sequence[float],
    scale: float,
) -> Tensor:
    dtype = _compute_dtype(query)
    score = torch.matmul(query[:, :, rows].to(dtype), key.to(dtype).transpose(-2, -1)) * scale
    if program is None:
        return score
    (b, h, _, _), device = query.shape, query.device

    def index(start: int, stop: int, *shape: int) -> Tensor:
        return torch.arange(start, stop, dtype=torch.int32, device=device).view(shape)

    inputs = {
        "b": index(0, b, b, 1, 1, 1),
        "h": index(0, h, 1, h, 1, 1),
        "q": index(rows.start, rows.stop, 1, 1, -1, 1),
        "kv": index(0, key.shape[2], 1, 1, 1, -1),
    }
    if program.score is not None:
        found = evaluate(program, program.score, {**inputs, "score": score}, captured, scalars, dtype)
        score = found.expand(score.shape)
    if program.mask is not None:
        keep = evaluate(program, program.mask, inputs, captured, scalars, dtype)
        score = score.masked_fill(~keep, -math.inf)
    return score


def _finish(score: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
    """Output and natural log-sum-exp; a row without any key gives 0 and -inf."""
    lse = torch.logsumexp(score, dim=-1)
    empty = lse == -math.inf
    weights = torch.exp(score - torch.where(empty, 0.0, lse).unsqueeze(-1))
    return torch.matmul(weights, value.to(score.dtype)), lse


def dense_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    captured: Sequence[Tensor],
    scalars: Sequence[float],
    program: str,
    scale: float | None,
) -> tuple[Tensor, Tensor]:
    """Plain torch, a block of query rows at a time. Shapes as in the contract of attention; lse is fp32."""
    parsed = parse(program) if program else None
    scale = 1 / math.sqrt(query.shape[-1]) if scale is None else scale
    key, value = _repeat_heads(key, query.shape[1]), _repeat_heads(value, query.shape[1])
    output = query.new_empty((*query.shape[:-1], value.shape[-1]))
    lse = query.new_empty(query.shape[:-1], dtype=torch.float32)
    for rows in _blocks(query, key):
        score = _scores(query, key, rows, parsed, captured, scalars, scale)
        output[:, :, rows], lse[:, :, rows] = _finish(score, value)
    return output, lse


def functional_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    captured: Sequence[Tensor],
    scalars: Sequence[float],
    program: str,
    scale: float | None,
) -> tuple[Tensor, Tensor]:
    """The same in one piece, without a write: for torch.func, which differentiates and batches it."""
    parsed = parse(program) if program else None
    scale = 1 / math.sqrt(query.shape[-1]) if scale is None else scale
    key, value = _repeat_heads(key, query.shape[1]), _repeat_heads(value, query.shape[1])
    score = _scores(query, key, slice(0, query.shape[2]), parsed, captured, scalars, scale)
    output, lse = _finish(score, value)
    return output.to(query.dtype), lse.float()


# ---- compiled FlexAttention ----


@lru_cache(maxsize=1)
def _compiled_flex() -> Callable[..., Any]:
    from torch.nn.attention.flex_attention import flex_attention

    return torch.compile(flex_attention, dynamic=False)


Shapes = tuple[tuple[int, ...], ...]


@lru_cache(maxsize=256)
def _lean(program: str, query: tuple[int, ...], keys: int, shapes: Shapes) -> tuple[Any, Any]:
    """The Program's sections for sizes: what a compiler can be given."""
    sizes = {"b": query[0], "h": query[1], "q": query[2], "kv": keys}
    return lean.of(parse(program), sizes, shapes)


def flex_score_mod(
    query: Tensor, key: Tensor, captured: Sequence[Tensor], scalars: Sequence[float], program: str
) -> Callable[..., Tensor]:
    """Both sections of a Program as one score_mod: the mask's false is -inf."""
    score_section, mask_section = _lean(program, tuple(query.shape), key.shape[2], tuple(tuple(t.shape) for t in captured))

    def score_mod(score: Tensor, b: Tensor, h: Tensor, q: Tensor, kv: Tensor) -> Tensor:
        at = {"b": b, "h": h, "q": q, "kv": kv}
        score = score.float()
        if score_section is not None:
            score = score_section({**at, "score": score}, captured, scalars, torch.float32)
        if mask_section is not None:
            score = torch.where(mask_section(at, captured, scalars, torch.float32), score, -math.inf)
        return score

    return score_mod


def _flex_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    captured: Sequence[Tensor],
    scalars: Sequence[float],
    program: str,
    scale: float | None,
    enable_gqa: bool,
) -> tuple[Tensor, Tensor]:
    score_mod = flex_score_mod(query, key, captured, scalars, program)
    output, lse = _compiled_flex()(
        query, key, value, score_mod=score_mod, scale=scale, enable_gqa=enable_gqa, return_lse=True
    )
    # A row without any key: what FlexAttention gives there differs from version to version.
    return torch.where((lse == -math.inf).unsqueeze(-1), 0.0, output).to(query.dtype), lse.float()


def _can_compile(query: Tensor) -> bool:
    """Whether compiled FlexAttention may serve: on a GPU, where it compiles, and not while a CUDA graph is captured, when
    nothing can be compiled."""
    # torch's FlexAttention gives no log-sum-exp on the CPU (2.13).
    return query.is_cuda and "flex" not in _said and not torch.cuda.is_current_stream_capturing()


def attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    captured: Sequence[Tensor],
    scalars: Sequence[float],
    program: str,
    scale: float | None,
    enable_gqa: bool,
) -> tuple[Tensor, Tensor]:
    """attention_mod without a Kernel. Errors are those that torch gives for such shapes."""
    _check(query, key, value, enable_gqa)
    scores = query.shape[0] * query.shape[1] * query.shape[2] * key.shape[2]
    if program and scores > _DENSE:
        flex = _can_compile(query)
        by = "torch's compiled FlexAttention" if flex else "plain torch"
        _say_once("slow", f"no Kernel serves this attention Program (kgen.why tells the nearest); {by} does, slower")
        if flex:
            try:
                return _flex_attention(query, key, value, captured, scalars, program, scale, enable_gqa)
            except Exception as e:  # noqa: BLE001 - whatever the compiler refuses, plain torch computes
                line = (str(e) or type(e).__name__).splitlines()[0]
                _say_once("flex", f"FlexAttention could not be compiled ({line[:200]}); plain torch serves instead")
    return dense_attention(query, key, value, captured, scalars, program, scale)


def _check(query: Tensor, key: Tensor, value: Tensor, enable_gqa: bool) -> None:
    shapes = f"query {tuple(query.shape)}, key {tuple(key.shape)}, value {tuple(value.shape)}"
    if not query.dim() == key.dim() == value.dim() == 4:
        raise ValueError(f"attention_mod takes tensors of (B, H, S, D), got {shapes}")
    if not (query.dtype == key.dtype == value.dtype and query.is_floating_point()):
        raise ValueError(f"attention_mod takes one floating dtype, got {query.dtype}, {key.dtype}, {value.dtype}")
    (b, hq, _, d), (bk, hk, sk, dk) = query.shape, key.shape
    if (b, d) != (bk, dk) or value.shape[:3] != (b, hk, sk):
        raise ValueError(f"attention_mod: these shapes do not go together: {shapes}")
    if hk == 0 or hq % hk != 0 or (hq != hk and not enable_gqa):
        raise ValueError(f"attention_mod: {hq} query heads over {hk} key heads need enable_gqa and a whole ratio")


def attention_vjp(
    grad: Tensor,
    grad_lse: Tensor | None,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    captured: Sequence[Tensor],
    scalars: Sequence[float],
    program: str,
    scale: float | None,
    enable_gqa: bool,
    wanted: Sequence[bool],
) -> list[Tensor]:
    """Gradients of query, key, value and the wanted captured tensors: the plain path, differentiated block by
    block of query rows and added up in the computing dtype."""
    parsed = parse(program) if program else None
    scale = 1 / math.sqrt(query.shape[-1]) if scale is None else scale
    dtype = _compute_dtype(query)
    with recording():
        q, k, v = (t.detach().to(dtype).requires_grad_() for t in (query, key, value))
        tables = [t.detach().to(dtype).requires_grad_() if w else t for t, w in zip(captured, wanted)]
        leaves = [q, k, v, *(t for t, w in zip(tables, wanted) if w)]
        sums = [torch.zeros_like(t) for t in leaves]
        for rows in _blocks(query, key):
            kr, vr = _repeat_heads(k, q.shape[1]), _repeat_heads(v, q.shape[1])
            output, lse = _finish(_scores(q, kr, rows, parsed, tables, scalars, scale), vr)
            outs, gs = [output], [grad[:, :, rows].to(dtype)]
            if grad_lse is not None:
                outs.append(lse)
                gs.append(grad_lse[:, :, rows].to(dtype))
            for total, part in zip(sums, torch.autograd.grad(outs, leaves, gs, allow_unused=True)):
                if part is not None:
                    total.add_(part)
    originals = [query, key, value, *(t for t, w in zip(captured, wanted) if w)]
    return [s.to(t.dtype) for s, t in zip(sums, originals)]


# ---- a model's own Ops ----


@lru_cache(maxsize=256)
def _reference(op: str, device: torch.device | None = None) -> Callable[..., Any]:
    import os

    from . import reference

    contract = _native.contract(op)
    moved = () if device is None else (device,)
    return reference.load(os.path.join(contract["registry"], op), *moved)


def _reference_for(op: str, tensors: Sequence[Any]) -> Callable[..., Any]:
    """The Op's reference for the GPU that its tensors are on, or as it was exported."""
    return _reference(op, next((t.device for t in tensors if isinstance(t, Tensor) and t.is_cuda), None))


def _restore(plain: Sequence[Any], tensors: Sequence[Tensor]) -> list[Any]:
    def one(a: Any) -> Any:
        if isinstance(a, dict) and "tensor" in a:
            return tensors[a["tensor"]]
        if isinstance(a, dict) and "tensors" in a:
            return list(tensors[a["tensors"][0] : a["tensors"][1]])
        return a

    return [one(a) for a in plain]


def _outputs(found: Any) -> list[Tensor]:
    return list(found) if isinstance(found, (tuple, list)) else [found]


def _product(call: dict[str, Any], inputs: list[Tensor]) -> Tensor:
    from . import products

    *operands, captured, scalars, _ = _restore(call["args"], inputs)
    if call["op"] == "conv2d":
        from .convolution import conv2d_with

        return conv2d_with(*operands[:-1], captured, scalars, call["program"])  # the memory format is what torch's is
    plain = products.linear_with if call["op"] == "linear" else products.matmul_with
    return plain(*operands, captured, scalars, call["program"])


def serve(call: dict[str, Any], inputs: list[Tensor]) -> list[Tensor]:
    """A fallback under way: the op's outputs, none of which may be an input."""
    if call["op"] == "attention":
        query, key, value, captured, scalars, _, scale, gqa = _restore(call["args"], inputs)
        return list(attention(query, key, value, captured, scalars, call["program"], scale, bool(gqa)))
    if call["op"] in ("linear", "matmul", "conv2d"):
        return [_product(call, inputs)]
    found = _outputs(_reference_for(call["op"], inputs)(*_restore(call["args"], inputs)))
    return [t.clone() if any(t is i for i in inputs) else t for t in found]


def own_reference(op: str, args: Sequence[Any]) -> Any:
    found = _outputs(_reference_for(op, args)(*args))
    return found[0] if len(found) == 1 else tuple(found)


def own_vjp(
    op: str, tensors: Sequence[Tensor], grads: Sequence[Tensor | None], plain: list[Any], wanted: Sequence[bool]
) -> list[Tensor]:
    with recording():
        leaves = [t.detach().requires_grad_() if w else t for t, w in zip(tensors, wanted)]
        found = _outputs(_reference_for(op, leaves)(*_restore(plain, leaves)))
        pairs = [(o, g) for o, g in zip(found, grads) if g is not None and o.requires_grad]
        ends = [t for t, w in zip(leaves, wanted) if w]
        if not pairs:
            return [torch.zeros_like(t) for t in ends]
        parts = torch.autograd.grad([o for o, _ in pairs], ends, [g for _, g in pairs], allow_unused=True)
    return [torch.zeros_like(t) if p is None else p.contiguous() for p, t in zip(parts, ends)]
