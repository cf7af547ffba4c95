"""kgen.linear and kgen.matmul (conv2d is convolution.py's, by pieces of this one), and what Python adds to their ops: fake kernels, autograd, vmap, autocast, the quick way in
from eager code (see ops.py), and what serves an epilogue when no Kernel does. Loaded when one of them is first asked for.

Gradients of the plain ops are torch's formulas, in operations of torch's that can be differentiated again; those of a
product with an epilogue are the vector-Jacobian products of the same in plain torch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import forward_ad
from torch.nn import Parameter

from . import ops
from .errors import BadInput
from .ops import _any_autocast, _boxed_call, _function_mode, _functorch, _grad_on, _jit_tracing
from .program import Program, evaluate, parse

_PLAIN = (Tensor, Parameter)
_linear_backend: Any  # what _boxed_call takes; set when the family is defined
_matmul_backend: Any

# The indices by which an epilogue reads the element of a captured tensor that goes with its own.
INDEX = {"linear": ("m", "n"), "matmul": ("b", "m", "n"), "conv2d": ("b", "m", "n")}


def _quick() -> bool:
    """Whether nothing but gradients may come between a call and the backend."""
    return forward_ad._current_level < 0 and not _functorch() and not _any_autocast()


def _dual() -> bool:
    """Whether there may be dual numbers, which keep their tangents under no_grad too."""
    return forward_ad._current_level >= 0 and not _functorch() and not _any_autocast()


class LinearPacket(torch._ops.OpOverloadPacket):
    def __call__(self, input: Any, weight: Any, bias: Any = None) -> Any:
        plain = type(input) is Tensor and type(weight) in _PLAIN and (bias is None or type(bias) in _PLAIN)
        if plain and not _function_mode() and not _jit_tracing():
            if _quick():
                found = _differentiable_linear(input, weight, bias) if _grad_on() else None
                return _boxed_call(_linear_backend, input, weight, bias) if found is None else found
            if _dual():
                return ops._op("_linear_train")(input, weight, bias)
        return self._op(input, weight, bias)


class MatmulPacket(torch._ops.OpOverloadPacket):
    def __call__(self, input: Any, other: Any) -> Any:
        if type(input) in _PLAIN and type(other) in _PLAIN and not _function_mode() and not _jit_tracing():
            if _quick():
                found = _differentiable_matmul(input, other) if _grad_on() else None
                return _boxed_call(_matmul_backend, input, other) if found is None else found
            if _dual():
                return ops._op("_matmul_train")(input, other)
        return self._op(input, other)


# ---- gradients ----


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(input, weight)
        return _boxed_call(_linear_backend, input, weight, bias)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        input, weight = ctx.saved_tensors
        rows = grad.reshape(-1, weight.shape[0])
        of_input = torch.matmul(grad, weight) if ctx.needs_input_grad[0] else None
        of_weight = rows.t().mm(input.reshape(-1, weight.shape[1])) if ctx.needs_input_grad[1] else None
        return of_input, of_weight, rows.sum(0) if ctx.needs_input_grad[2] else None


_linear_apply = ops._apply(_Linear)


def _differentiable_linear(input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor | None:
    if not (input.requires_grad or weight.requires_grad or (bias is not None and bias.requires_grad)):
        return None
    if weight.dim() != 2 or input.dim() < 1 or (bias is not None and bias.shape != weight.shape[:1]):
        return F.linear(input, weight, bias)
    return _linear_apply(input, weight, bias)


class _Matmul(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, input: Tensor, other: Tensor) -> Tensor:
        ctx.save_for_backward(input, other)
        return _boxed_call(_matmul_backend, input, other)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        input, other = ctx.saved_tensors
        x = input.unsqueeze(0) if input.dim() == 1 else input
        y = other.unsqueeze(1) if other.dim() == 1 else other
        g = grad.unsqueeze(-2 if other.dim() > 1 else -1) if input.dim() == 1 else grad
        g = g.unsqueeze(-1) if other.dim() == 1 else g
        of_input = of_other = None
        if ctx.needs_input_grad[0]:
            of_input = torch.matmul(g, y.mT).sum_to_size(x.shape).reshape(input.shape)
        if ctx.needs_input_grad[1]:
            if y.dim() == 2:  # one product over all rows, not a stack of them that is added up
                found = x.reshape(-1, x.shape[-1]).t().mm(g.reshape(-1, g.shape[-1]))
            else:
                found = torch.matmul(x.mT, g).sum_to_size(y.shape)
            of_other = found.reshape(other.shape)
        return of_input, of_other


_matmul_apply = ops._apply(_Matmul)


def _differentiable_matmul(input: Tensor, other: Tensor) -> Tensor | None:
    if not (input.requires_grad or other.requires_grad):
        return None
    if input.dim() < 1 or other.dim() < 1:
        return torch.matmul(input, other)  # its error
    return _matmul_apply(input, other)


# ---- epilogues in plain torch ----


def _with_epilogue(
    y: Tensor, captured: Sequence[Tensor], scalars: Sequence[float], text: str, index: tuple[str, ...]
) -> Tensor:
    """The Program's epilogue of a product, in fp32 (fp64 for float64), as a tensor of y's dtype. Differentiable."""
    if not text:
        return y
    _check_captured(y, captured)
    return epilogue_of(text, index)(y, captured, scalars)


def _check_captured(y: Tensor, captured: Sequence[Tensor]) -> None:
    for i, t in enumerate(captured):
        if t.dim() > y.dim() or any(n not in (1, m) for n, m in zip(reversed(t.shape), reversed(y.shape))):
            raise BadInput(f"captured tensor {i}, of shape {tuple(t.shape)}, does not broadcast to the output's shape "
                           f"{tuple(y.shape)}")


def epilogue_of(text: str, index: tuple[str, ...]) -> Callable[[Tensor, Sequence[Tensor], Sequence[float]], Tensor]:
    """A Program's epilogue as a function of a product, the captured tensors and the scalars, in plain torch: as people write
    it where that is known, else in fp32 operation by operation."""
    program, known = parse(text), _known().get(text)
    if program.epilogue is None:
        raise BadInput("the program has no epilogue section")

    def apply(y: Tensor, captured: Sequence[Tensor], scalars: Sequence[float]) -> Tensor:
        if known is not None and all(t.dtype == y.dtype for t in captured):
            return known(y, *captured)
        dtype = torch.float64 if y.dtype == torch.float64 else torch.float32
        return _apply_program(program, y.to(dtype), captured, scalars, index).to(y.dtype)

    return apply


def _apply_program(program: Program, y: Tensor, captured: Sequence[Tensor], scalars: Sequence[float],
                   index: tuple[str, ...]) -> Tensor:
    section = program.epilogue
    assert section is not None
    by_element = all(args[1:] in ([], list(index)) for op, _, *args in section.values if op == "load")
    if by_element and not _reads_index(section.values, section.result):
        return evaluate(program, section, {"acc": y}, captured, scalars, y.dtype, index).expand(y.shape)
    at, flat, tables = _canonical(y, captured, [rank for _, rank in program.tensors], index)
    return evaluate(program, section, {**at, "acc": flat}, tables, scalars, y.dtype).expand(flat.shape).reshape(y.shape)


def _reads_index(values: Sequence[tuple[str, ...]], result: str) -> bool:
    return any(a in ("b", "m", "n") for op, _, *args in values if op != "load" for a in args) or result in ("b", "m", "n")


def _canonical(y: Tensor, captured: Sequence[Tensor], ranks: Sequence[int],
               index: tuple[str, ...]) -> tuple[dict[str, Tensor], Tensor, list[Tensor]]:
    """The indices, the product and the captured tensors in the dims of the contract's output."""
    padded = y.reshape((1,) * max(0, len(index) - y.dim()) + tuple(y.shape))
    lead = padded.shape[: padded.dim() - (len(index) - 1)]
    flat = padded.reshape(lead.numel(), *padded.shape[len(lead):])
    at = {name: torch.arange(n, dtype=torch.int32, device=y.device).view(-1, *(1,) * (flat.dim() - 1 - d))
          for d, (name, n) in enumerate(zip(index, flat.shape))}
    tables = [t if rank == 0 else t.expand(y.shape).reshape(flat.shape) for t, rank in zip(captured, ranks)]
    return at, flat, tables


@lru_cache(maxsize=1)
def _known() -> dict[str, Callable[..., Tensor]]:
    """The Programs that torch says in fewer operations than its interpreter, by text: what people write after a linear."""
    from .trace_epilogues import trace_epilogue

    acts: list[Callable[..., Any]] = [torch.relu, F.gelu, lambda y: F.gelu(y, approximate="tanh"), F.silu, torch.tanh,
                                      torch.sigmoid]
    with_other: list[Callable[..., Any]] = [lambda y, r: y + r, lambda y, r: r + y, lambda y, r: y * r, lambda y, r: r * y]
    for act in acts:
        with_other += [lambda y, r, f=act: f(y) + r, lambda y, r, f=act: r + f(y), lambda y, r, f=act: f(y) * r,
                       lambda y, r, f=act: r * f(y)]
    known: dict[str, Callable[..., Tensor]] = {trace_epilogue(f, (), INDEX["linear"]).text: f for f in acts}
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        r = torch.empty(1, 1, dtype=dtype)
        for index in INDEX.values():
            known |= {trace_epilogue(_wrapped(f), (r,), index).text: f for f in with_other}
    return known


def _wrapped(f: Callable[..., Any]) -> Callable[..., Any]:
    return lambda y, r: f(y, r)


def linear_with(input: Tensor, weight: Tensor, bias: Tensor | None, captured: Sequence[Tensor], scalars: Sequence[float],
                program: str) -> Tensor:
    """linear_mod in plain torch; errors are those that torch gives for such shapes."""
    return _with_epilogue(F.linear(input, weight, bias), captured, scalars, program, INDEX["linear"])


def matmul_with(input: Tensor, other: Tensor, captured: Sequence[Tensor], scalars: Sequence[float], program: str) -> Tensor:
    """matmul_mod in plain torch."""
    return _with_epilogue(torch.matmul(input, other), captured, scalars, program, INDEX["matmul"])


# ---- calls of the contracts ----


def _as(t: Tensor, shape: Sequence[int]) -> Tensor:
    """A view where that goes; the front makes none where it does not, and torch serves the call."""
    try:
        return t.view(*shape)
    except RuntimeError:
        return t.reshape(*shape)


def contract_call(op: str, operands: Sequence[Any], captured: Sequence[Tensor]) -> tuple[dict[str, Any], list[Tensor]]:
    """The arguments of the contract, by name, and the captured tensors in its output's dims, as the fronts make them
    (csrc/runtime/shim_linear.c)."""
    if op == "linear":
        x, weight, bias = operands
        out = (*x.shape[:-1], weight.shape[0])
        flat: tuple[int, ...] = (x.numel() // max(1, x.shape[-1]), weight.shape[0])
        args = {"input": _as(x, (flat[0], x.shape[-1])), "weight": weight, "bias": bias}
    else:
        x, y = operands
        out = tuple(torch.matmul(x.to("meta"), y.to("meta")).shape)
        x = x.unsqueeze(0) if x.dim() == 1 else x
        y = y.unsqueeze(1) if y.dim() == 1 else y
        if y.dim() == 2:
            x, y = _as(x, (1, x.numel() // max(1, x.shape[-1]), x.shape[-1])), y.unsqueeze(0)
        else:
            batch = torch.broadcast_shapes(x.shape[:-2], y.shape[:-2])
            x = _as(x.expand(*batch, *x.shape[-2:]), (batch.numel(), *x.shape[-2:]))
            y = _as(y.expand(*batch, *y.shape[-2:]), (batch.numel(), *y.shape[-2:]))
        flat = (x.shape[0], x.shape[1], y.shape[2])
        args = {"input": x, "other": y}
    return args, [t if t.dim() == 0 else _as(t.expand(out), flat) for t in captured]


# ---- gradients with an epilogue ----


class _Mod(torch.autograd.Function):
    """apply(op, attributes, scalars, program, number of operands, operands ..., captured ...)"""

    @staticmethod
    def forward(
        ctx: Any, op: str, attributes: Sequence[Any], scalars: Sequence[float], program: str, n: int, *tensors: Tensor
    ) -> Tensor:
        ctx.of = op, attributes, scalars, program, n
        ctx.save_for_backward(*tensors)
        return ops._BACKENDS[f"{op}_mod_train"](*tensors[:n], *attributes, list(tensors[n:]), scalars, program)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        op, attributes, scalars, program, n = ctx.of
        tensors = ctx.saved_tensors
        wanted = [bool(w) for w in ctx.needs_input_grad[5:]]
        with torch.no_grad():
            backward = ops._op(f"_{op}_mod_backward")
            grads = backward(grad, *tensors[:n], *attributes, list(tensors[n:]), scalars, program, wanted)
        given = [t for t in tensors if t is not None]
        found = iter(ops._once(f"{op}_mod", grads, (grad, *given)))
        return None, None, None, None, None, *(next(found) if w else None for w in wanted)


_mod_apply = ops._apply(_Mod)


def _differentiable_mod(op: str, n: int) -> Callable[..., Tensor | None]:
    def differentiable(*args: Any) -> Tensor | None:
        operands, attributes, (captured, scalars, program) = args[:n], args[n:-3], args[-3:]
        tensors = (*operands, *captured)
        if not any(t is not None and t.requires_grad for t in tensors):
            return None
        return _mod_apply(op, attributes, scalars, program, n, *tensors)

    return differentiable


def _mod_backward(plain: Callable[..., Tensor], n: int) -> Callable[..., list[Tensor]]:
    def backward(grad: Tensor, *args: Any) -> list[Tensor]:
        operands, attributes, (captured, scalars, program, wanted) = args[:n], args[n:-4], args[-4:]
        tensors = [*operands, *captured]
        with ops.recording():
            leaves = [t.detach().requires_grad_() if w else t for t, w in zip(tensors, wanted)]
            y = plain(*leaves[:n], *attributes, leaves[n:], scalars, program)
            ends = [t for t, w in zip(leaves, wanted) if w]
            found = torch.autograd.grad(y, ends, grad, allow_unused=True) if y.requires_grad else [None] * len(ends)
        return [torch.zeros_like(t) if g is None else g.contiguous() for g, t in zip(found, ends)]

    return backward


def _mod_backward_fake(n: int) -> Callable[..., list[Tensor]]:
    def fake(grad: Tensor, *args: Any) -> list[Tensor]:
        tensors = (*args[:n], *args[-4])
        return [t.new_empty(t.shape) for t, w in zip(tensors, args[-1]) if w]

    return fake


# ---- fake, vmap, autocast ----


def _linear_fake(input: Tensor, weight: Tensor, bias: Tensor | None = None, *rest: Any) -> Tensor:
    return input.new_empty(F.linear(input, weight, bias).shape)  # its errors


def _matmul_fake(input: Tensor, other: Tensor, *rest: Any) -> Tensor:
    return input.new_empty(torch.matmul(input, other).shape)


def _front(t: Tensor, dim: int | None) -> Tensor:
    """The batch in front; a tensor that has none is shown to all."""
    return t.unsqueeze(0) if dim is None else t.movedim(dim, 0)


def _stacked_matmul(x: Tensor, dx: int | None, y: Tensor, dy: int | None) -> Tensor:
    """matmul of each element of the batches."""
    rx, ry = x.dim() - (dx is not None), y.dim() - (dy is not None)
    x, y = _front(x, dx), _front(y, dy)
    x = x.unsqueeze(-2) if rx == 1 else x
    y = y.unsqueeze(-1) if ry == 1 else y
    rank = max(x.dim(), y.dim())
    x, y = (t.reshape(t.shape[0], *(1,) * (rank - t.dim()), *t.shape[1:]) for t in (x, y))
    out = ops._op("matmul")(x, y)
    out = out.squeeze(-2) if rx == 1 else out
    return out.squeeze(-1) if ry == 1 else out


def _matmul_vmap(info: Any, in_dims: Any, input: Tensor, other: Tensor) -> tuple[Tensor, int]:
    return _stacked_matmul(input, in_dims[0], other, in_dims[1]), 0


def _linear_vmap(info: Any, in_dims: Any, input: Tensor, weight: Tensor, bias: Tensor | None = None) -> tuple[Tensor, int]:
    of_bias = in_dims[2] if len(in_dims) > 2 and isinstance(in_dims[2], int) else None
    rank = input.dim() - (in_dims[0] is not None)
    if in_dims[1] is None and of_bias is None and in_dims[0] is not None and rank > 0:
        return ops._op("linear")(input.movedim(in_dims[0], 0), weight, bias), 0
    wide = weight if in_dims[1] is None else weight.movedim(in_dims[1], 0)
    out = _stacked_matmul(input, in_dims[0], wide.mT, None if in_dims[1] is None else 0)
    if bias is not None:
        b = _front(bias, of_bias)
        out = out + b.reshape(b.shape[0], *(1,) * (out.dim() - b.dim()), *b.shape[1:])
    return out.expand(info.batch_size, *out.shape[1:]), 0


def _define(name: str, n: int, fake: Any, plain: Any, differentiable: Any, vmap: Any, mod: Any) -> None:
    names = (name, f"_{name}", f"_{name}_train")
    mods = (f"{name}_mod", f"{name}_mod_train")
    ops._fake((*names[1:], *mods), fake)
    ops._fake((f"_{name}_mod_backward",), _mod_backward_fake(n))
    ops._lib.impl(f"_{name}_mod_backward", _mod_backward(mod, n), "CompositeExplicitAutograd")
    ops._autograd(names[2], differentiable, plain)
    ops._autograd(mods[1], _differentiable_mod(name, n), mod)
    for op in names[:2]:
        torch.library.register_vmap(f"kgen::{op}", vmap, lib=ops._lib)
    for device in ("cpu", "cuda"):
        for op in names[:2]:
            ops._autocast(op, device, ops._low_precision)
        for op in mods:
            ops._autocast(op, device, lambda args, dtype: (*ops._low_precision(args[:n], dtype), *args[n:]))


def define_linear() -> None:
    global _linear_backend
    _linear_backend = ops._boxed("_linear")
    _define("linear", 3, _linear_fake, F.linear, _differentiable_linear, _linear_vmap, linear_with)
    ops._PACKETS["linear"] = LinearPacket


def define_matmul() -> None:
    global _matmul_backend
    _matmul_backend = ops._boxed("_matmul")
    _define("matmul", 2, _matmul_fake, torch.matmul, _differentiable_matmul, _matmul_vmap, matmul_with)
    ops._PACKETS["matmul"] = MatmulPacket


# ---- the calls that people write ----


def _traced(op: str, epilogue: Callable[..., Any], captures: Sequence[Tensor],
            device: torch.device) -> tuple[str, list[Tensor], list[float]]:
    from .trace_epilogues import trace_epilogue, trace_epilogue_compiled

    if torch.compiler.is_dynamo_compiling():
        return trace_epilogue_compiled(epilogue, captures, INDEX[op], device)
    for i, t in enumerate(captures):
        if not isinstance(t, Tensor):
            raise BadInput(f"{op}: captures[{i}] is a {type(t).__name__}; captures are tensors that broadcast to the output, "
                           "and numbers are read from the epilogue itself")
    found = trace_epilogue(epilogue, captures, INDEX[op], device)
    return found.text, found.captured, found.scalars


def _call(
    op: str, operands: tuple[Tensor | None, ...], epilogue: Callable[..., Any], captures: Sequence[Tensor],
    attributes: tuple[Any, ...] = (),
) -> Tensor:  # fmt: skip
    device = operands[0].device  # type: ignore[union-attr]
    text, captured, scalars = _traced(op, epilogue, captures, device)
    if text == "":
        return getattr(torch.ops.kgen, op)(*operands, *attributes)
    captured = [t.to(device) if t.dim() == 0 else t for t in captured]
    grad = torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in (*operands, *captured))
    grad = grad or forward_ad._current_level >= 0  # dual numbers keep their tangents under no_grad too
    return getattr(torch.ops.kgen, f"{op}_mod_train" if grad else f"{op}_mod")(*operands, *attributes, captured, scalars, text)


def linear(input: Tensor, weight: Tensor, bias: Tensor | None = None, *, epilogue: Callable[..., Any] | None = None,
           captures: Sequence[Tensor] = ()) -> Tensor:
    """epilogue(torch.nn.functional.linear(input, weight, bias), *captures), in one Kernel where there is one.

    input (..., K), weight (N, K), bias (N), of one of float32, float16, bfloat16 (others are torch's). The epilogue works
    element by element, in fp32 before the result is rounded: activations, arithmetic, torch.where, with numbers that it
    reads and with captures, tensors that broadcast to the output (..., N).
    Raises kgen.TraceError, which names the operation, for what a Program cannot say."""
    if epilogue is None:
        if captures:
            raise BadInput("linear: captures are for an epilogue, and none was given")
        return torch.ops.kgen.linear(input, weight, bias)
    return _call("linear", (input, weight, bias), epilogue, captures)


def matmul(input: Tensor, other: Tensor, *, epilogue: Callable[..., Any] | None = None,
           captures: Sequence[Tensor] = ()) -> Tensor:
    """epilogue(torch.matmul(input, other), *captures), in one Kernel where there is one; see linear."""
    if epilogue is None:
        if captures:
            raise BadInput("matmul: captures are for an epilogue, and none was given")
        return torch.ops.kgen.matmul(input, other)
    return _call("matmul", (input, other), epilogue, captures)
