"""What a Candidate must beat: the best that torch itself does with a Case.

A baseline is a name and a function of a Case's inputs; building one may compile. Baselines that cannot be built are
named with the reason. Nothing is timed here. On CUDA torch.compile also stands with max-autotune, and SDPA with each of
its backends, since the one that torch picks by itself is often not the fastest. Which of TF32 and float32 they compute
in is for the caller to set (devices.arithmetic). How long a compile may take is the caller's, too (gate_build).
"""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from . import lean, program

Outputs = tuple[Tensor, ...]

# The dense score matrix of an eager attention: above this it is no way that anybody would run.
DENSE_LIMIT = 4 << 30


@dataclass(frozen=True)
class Inputs:
    """One input set of a Case: tensors by argument name, and the captured tensors of its Program."""

    args: dict[str, Tensor | None]
    captured: tuple[Tensor, ...] = ()
    memo: dict[str, Any] = field(default_factory=dict, compare=False)


@dataclass(frozen=True)
class Baseline:
    """build() gives the function, or raises; `note` says what is counted in its favour. compiles: torch's compiler runs at
    the first call, which takes seconds to minutes; "" when not, else its group: those of one group share most of the
    work, so they are built one after the other."""

    name: str
    build: Callable[[], Callable[[Inputs], Outputs]]
    note: str = ""
    compiles: str = ""


AUTOTUNED = "max-autotune-no-cudagraphs"
# torch.compile's modes, by what a table calls them. A call of CUDA graphs copies its inputs first; that is part of it.
COMPILED = {
    "torch.compile": None,
    "torch.compile max-autotune": AUTOTUNED,
    "torch.compile max-autotune, CUDA graphs": "max-autotune",
}  # fmt: skip


def on_cuda(case: dict[str, Any]) -> bool:
    return case.get("device") == "cuda"


def _fresh_compile(f: Callable[..., Any], mode: str | None = None) -> Callable[..., Any]:
    return torch.compile(f, dynamic=False, fullgraph=True, mode=mode)


def _compiled(case: dict[str, Any], build: Callable[[str | None], Callable[[Inputs], Outputs]]) -> list[Baseline]:
    """One for each mode of torch.compile that makes a difference on the Case's device. build: of the mode."""
    modes = COMPILED if on_cuda(case) else {"torch.compile": None}
    return [
        Baseline(name, lambda mode=mode: build(mode), compiles="autotune" if mode else "compile") for name, mode in modes.items()
    ]


def _softmax(case: dict[str, Any]) -> list[Baseline]:
    dim = int(case["args"]["dim"])

    def eager() -> Callable[[Inputs], Outputs]:
        return lambda x: (torch.softmax(x.args["input"], dim),)

    def compiled(mode: str | None) -> Callable[[Inputs], Outputs]:
        f = _fresh_compile(lambda t: torch.softmax(t, dim), mode)
        return lambda x: (f(x.args["input"]),)

    return [Baseline("eager", eager), *_compiled(case, compiled)]


def _norm(case: dict[str, Any]) -> list[Baseline]:
    """F.layer_norm or F.rms_norm."""
    function, args = getattr(F, case["op"]), case["args"]
    shape, eps = list(args["normalized_shape"]), args["eps"]

    def call(x: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
        return function(x, shape, weight, bias, eps) if "bias" in args else function(x, shape, weight, eps)

    def of(f: Callable[..., Tensor]) -> Callable[[Inputs], Outputs]:
        return lambda x: (f(x.args["input"], x.args["weight"], x.args.get("bias")),)

    return [Baseline("eager", lambda: of(call)), *_compiled(case, lambda mode: of(_fresh_compile(call, mode)))]


def _product(case: dict[str, Any]) -> list[Baseline]:
    """F.linear or torch.matmul, and behind it the Program in torch's operations."""
    from .products import INDEX, epilogue_of

    program_, function = case.get("program"), F.linear if case["op"] == "linear" else torch.matmul
    names, scalars = list(case["args"]), tuple(program_["scalars"]) if program_ else ()
    after = epilogue_of(program_["text"], INDEX[case["op"]]) if program_ else None

    def call(operands: Sequence[Tensor | None], captured: Sequence[Tensor]) -> Tensor:
        y = function(*operands)
        return y if after is None else after(y, captured, scalars)

    def of(f: Callable[..., Tensor]) -> Callable[[Inputs], Outputs]:
        return lambda x: (f([x.args[n] for n in names], list(x.captured)),)

    return [Baseline("eager", lambda: of(call)), *_compiled(case, lambda mode: of(_fresh_compile(call, mode)))]


def _conv(case: dict[str, Any]) -> list[Baseline]:
    """F.conv2d, and behind it the Program in torch's operations; what it gives is seen in the contract's dims."""
    from .convolution import contract_dims
    from .products import INDEX, epilogue_of

    a, p = case["args"], case.get("program")
    attributes, last = [a[n] for n in ("stride", "padding", "dilation", "groups")], a["channels_last"]
    after, scalars = epilogue_of(p["text"], INDEX["conv2d"]) if p else None, tuple(p["scalars"]) if p else ()

    def call(x: Tensor, weight: Tensor, bias: Tensor | None, captured: Sequence[Tensor]) -> Tensor:
        y = contract_dims(F.conv2d(x, weight, bias, *attributes), last)
        return y if after is None else after(y, captured, scalars)

    def of(f: Callable[..., Tensor]) -> Callable[[Inputs], Outputs]:
        return lambda x: (f(x.args["input"], x.args["weight"], x.args["bias"], list(x.captured)),)

    return [Baseline("eager", lambda: of(call)), *_compiled(case, lambda mode: of(_fresh_compile(call, mode)))]


@dataclass(frozen=True)
class Attention:
    """The attributes of an attention Case. score = query key^T * scale, then the Program."""

    text: str | None
    scalars: tuple[float, ...]
    scale: float | None
    enable_gqa: bool

    @staticmethod
    def of(case: dict[str, Any]) -> Attention:
        p = case.get("program")
        return Attention(
            p["text"] if p else None,
            tuple(p["scalars"]) if p else (),
            case["args"].get("scale"),
            bool(case["args"].get("enable_gqa", False)),
        )

    def grids(self, q: Tensor, k: Tensor) -> dict[str, Tensor]:
        """b, h, q, kv as int32 tensors that broadcast to (B, HQ, SQ, SK)."""
        sizes = (q.shape[0], q.shape[1], q.shape[2], k.shape[2])
        out = {}
        for i, name in enumerate(("b", "h", "q", "kv")):
            shape = [1, 1, 1, 1]
            shape[i] = sizes[i]
            out[name] = torch.arange(sizes[i], dtype=torch.int32, device=q.device).view(shape)
        return out

    def mods(self, case: dict[str, Any]) -> tuple[lean.Lean | None, lean.Lean | None]:
        """The Program's sections for the sizes of this Case; parsed here, never in what is timed or compiled."""
        if self.text is None:
            return None, None
        args = case["args"]
        b, h, q, _ = args["query"]["shape"]
        sizes = {"b": b, "h": h, "q": q, "kv": args["key"]["shape"][2]}
        return lean.of(program.parse(self.text), sizes, [c["shape"] for c in case["program"]["captured"]])

    def dense(self, case: dict[str, Any]) -> Callable[..., Tensor]:
        """The attention spelled out, in the dtype of its inputs (scores in at least fp32): of q, k, v and the captured
        tensors."""
        score_mod, mask_mod = self.mods(case)

        def run(q: Tensor, k: Tensor, v: Tensor, captured: Sequence[Tensor]) -> Tensor:
            group = q.shape[1] // k.shape[1]
            if group > 1:
                k, v = k.repeat_interleave(group, 1), v.repeat_interleave(group, 1)
            scale = self.scale if self.scale is not None else 1 / math.sqrt(q.shape[-1])
            score = torch.matmul(q, k.transpose(-2, -1)) * scale
            if self.text is None:
                return torch.matmul(torch.softmax(score, -1), v)
            wide = torch.float64 if q.dtype == torch.float64 else torch.float32
            at = self.grids(q, k)
            score = score.to(wide)
            if score_mod is not None:
                score = score_mod({**at, "score": score}, captured, self.scalars, wide)
            if mask_mod is not None:
                keep = mask_mod(at, captured, self.scalars, wide)
                score = score.masked_fill(~keep, -math.inf)
            weights = torch.softmax(score, -1)
            if mask_mod is not None:
                weights = torch.nan_to_num(weights, nan=0.0)
            return torch.matmul(weights.to(v.dtype), v)

        return run

    def bias(self, x: Inputs) -> Tensor | None:
        """The Program as an attn_mask of SDPA (bool, or added to the score) when it is no more than that."""
        p = program.parse(self.text or "")
        q, k = x.args["query"], x.args["key"]
        at, wide = self.grids(q, k), torch.float32
        full = torch.broadcast_shapes(*(t.shape for t in at.values()))
        added = None
        if p.score:

            def at_score(s: float) -> Tensor:
                given = {**at, "score": torch.full((1, 1, 1, 1), s, dtype=torch.float64, device=q.device)}
                return program.evaluate(p, p.score, given, x.captured, self.scalars, torch.float64)

            zero = at_score(0.0)
            for s in (1.0, -3.5, 11.25):
                if not torch.allclose(at_score(s), zero + s, rtol=1e-9, atol=1e-9):
                    return None
            added = zero.to(wide)
        if p.mask is None:
            return added.to(q.dtype) if added is not None else None
        keep = program.evaluate(p, p.mask, at, x.captured, self.scalars, wide)
        if added is None:
            return keep.expand(full)
        return added.masked_fill(~keep, -math.inf).to(q.dtype)


def _attention(case: dict[str, Any]) -> list[Baseline]:
    a = Attention.of(case)
    sizes = {n: case["args"][n]["shape"] for n in ("query", "key")}
    dense_bytes = 4 * math.prod(sizes["query"][:3]) * sizes["key"][2]

    def tensors(x: Inputs) -> tuple[Tensor, Tensor, Tensor]:
        return x.args["query"], x.args["key"], x.args["value"]

    def eager() -> Callable[[Inputs], Outputs]:
        if dense_bytes > DENSE_LIMIT:
            raise ValueError(f"its score matrix needs {dense_bytes >> 30} GiB")
        f = a.dense(case)
        return lambda x: (f(*tensors(x), x.captured),)

    def compiled(mode: str | None) -> Callable[[Inputs], Outputs]:
        if dense_bytes > DENSE_LIMIT:
            raise ValueError(f"its score matrix needs {dense_bytes >> 30} GiB")
        f = _fresh_compile(a.dense(case), mode)
        return lambda x: (f(*tensors(x), list(x.captured)),)

    causal = a.text in program.CAUSAL_TEXTS and sizes["query"][2] == sizes["key"][2] and on_cuda(case)

    def sdpa(backend: str | None = None) -> Callable[[Inputs], Outputs]:
        if backend == "math" and dense_bytes > DENSE_LIMIT:
            raise ValueError(f"its score matrix needs {dense_bytes >> 30} GiB")

        def run(x: Inputs) -> Outputs:
            _use_backend(backend)
            if a.text is not None and not causal and "bias" not in x.memo:
                if dense_bytes > DENSE_LIMIT:
                    raise ValueError(f"its Program as a mask needs {dense_bytes >> 30} GiB")
                x.memo["bias"] = a.bias(x)
            mask = x.memo.get("bias")
            if a.text is not None and not causal and mask is None:
                raise ValueError("its Program is no mask and no bias")
            return (
                F.scaled_dot_product_attention(
                    *tensors(x), attn_mask=mask, is_causal=causal, scale=a.scale, enable_gqa=a.enable_gqa
                ),
            )

        return run

    found = [Baseline("eager", eager), *_compiled(case, compiled)]
    note = "mask and bias built beforehand" if a.text is not None and not causal else ""
    if not on_cuda(case):
        found.append(Baseline("SDPA", sdpa, note))
    else:
        found += [Baseline(f"SDPA {b}", lambda b=b: sdpa(b), note) for b in BACKENDS]
    flexes: list[tuple[str, str | None, str | None]] = []
    if on_cuda(case):
        flexes += [("FlexAttention", None, None), ("FlexAttention max-autotune", AUTOTUNED, None)]
        flexes += [(f"FlexAttention {b}", None, b) for b in flex_backends(sizes["query"][2])]
    elif a.text is not None:
        flexes.append(("FlexAttention", None, None))
    for name, mode, backend in flexes:
        group = "flex autotune" if mode else f"flex {backend or ''}"
        found.append(
            Baseline(
                name, lambda mode=mode, backend=backend: _flex(a, case, mode, backend), "compiled; block mask built beforehand",
                group,
            )
        )  # fmt: skip
    return found


def flex_backends(queries: int) -> list[str]:
    """FlexAttention's backends on CUDA beside the one that it takes by itself, as far as this torch and what is installed
    have them."""
    from torch.nn.attention import flex_attention

    if not hasattr(flex_attention, "_Backend"):  # a torch that has one alone
        return []
    found = ["TRITON"] if queries < FLEX_DECODE else []  # by itself it takes the kernel for decoding
    try:
        flash = importlib.util.find_spec("flash_attn.cute") is not None
    except (ImportError, ValueError):
        flash = False
    return found + (["FLASH"] if flash else [])


# FlexAttention takes its kernel for decoding below so many queries.
FLEX_DECODE = 128


# SDPA's backends on CUDA, with the switch of each.
BACKENDS = {
    "flash": "enable_flash_sdp", "cudnn": "enable_cudnn_sdp", "efficient": "enable_mem_efficient_sdp", "math": "enable_math_sdp",
}  # fmt: skip
_in_use: list[str | None] = [None]


def _use_backend(backend: str | None) -> None:
    """Leaves one backend to SDPA in this process (None: what torch has). Only a change costs anything: contenders run in
    batches."""
    if backend == _in_use[0]:
        return
    for name, switch in BACKENDS.items():
        getattr(torch.backends.cuda, switch)(backend is None or name == backend)
    _in_use[0] = backend


def _flex(
    a: Attention, case: dict[str, Any], mode: str | None = None, backend: str | None = None
) -> Callable[[Inputs], Outputs]:
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention

    score, mask_ = a.mods(case)
    compiled = torch.compile(flex_attention, dynamic=False, fullgraph=True, mode=mode)
    options = {"kernel_options": {"BACKEND": backend}} if backend else {}

    def mods(captured: Sequence[Tensor]) -> tuple[Any, Any]:
        def score_mod(value: Tensor, b: Tensor, h: Tensor, q: Tensor, kv: Tensor) -> Tensor:
            at = {"score": value, "b": b, "h": h, "q": q, "kv": kv}
            return score(at, captured, a.scalars, value.dtype)

        def mask_mod(b: Tensor, h: Tensor, q: Tensor, kv: Tensor) -> Tensor:
            at = {"b": b, "h": h, "q": q, "kv": kv}
            return mask_(at, captured, a.scalars, torch.float32)

        return score_mod if score else None, mask_mod if mask_ else None

    def run(x: Inputs) -> Outputs:
        q, k, v = x.args["query"], x.args["key"], x.args["value"]
        if "flex" not in x.memo:
            score_mod, mask_mod = mods(x.captured)
            mask = None
            if mask_mod is not None:
                mask = create_block_mask(
                    mask_mod, q.shape[0], q.shape[1], q.shape[2], k.shape[2], device=q.device
                )
            x.memo["flex"] = (score_mod, mask)
        score_mod, mask = x.memo["flex"]
        out = compiled(
            q, k, v, score_mod=score_mod, block_mask=mask, scale=a.scale, enable_gqa=a.enable_gqa, **options
        )
        return (out,)

    return run


def _own(case: dict[str, Any], reference: Callable[..., Any], names: Sequence[str]) -> list[Baseline]:
    def outputs(value: Any) -> Outputs:
        return tuple(value) if isinstance(value, (tuple, list)) else (value,)

    def eager() -> Callable[[Inputs], Outputs]:
        return lambda x: outputs(reference(*(x.args[n] for n in names)))

    def compiled(mode: str | None) -> Callable[[Inputs], Outputs]:
        f = torch.compile(reference, dynamic=False, mode=mode)
        return lambda x: outputs(f(*(x.args[n] for n in names)))

    return [Baseline("eager", eager), *_compiled(case, compiled)]


def of(
    case: dict[str, Any], reference: Callable[..., Any] | None = None, names: Sequence[str] = ()
) -> list[Baseline]:
    """The baselines of a Case (docs/formats.md). reference: for an Op of a model's own, its module, called with the
    tensors in the order of names."""
    if case["op"] == "softmax":
        return _softmax(case)
    if case["op"] in ("layer_norm", "rms_norm"):
        return _norm(case)
    if case["op"] in ("linear", "matmul"):
        return _product(case)
    if case["op"] == "conv2d":
        return _conv(case)
    if case["op"] == "attention":
        return _attention(case)
    if reference is None:
        raise ValueError(f"{case['op']} is no canonical Op, and no reference was given")
    return _own(case, reference, names)
