"""What only Python can add to kgen's ops: fake kernels, autograd, vmap, autocast, and the fallbacks.

The ops themselves and their kernels are in libkgen_rt.so. A family is completed by `define`, which the
namespace torch.ops.kgen calls before it hands out an op, so that no compile can see an op without its
gradient. The names with a leading underscore end up in exported programs: their schemas are frozen.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from . import _native

_lock = threading.RLock()
_defined: set[str] = set()
_busy = False  # under the lock: registering looks ops up by name, which calls define again
_lib = torch.library.Library("kgen", "FRAGMENT")  # kept: it ends what it registered when it dies

_SOFTMAX = ("softmax", "_softmax", "_softmax_train")
_ATTENTION = ("attention", "_attention", "_attention_train", "_attention_backward")
_PROGRAM = ("attention_mod", "attention_mod_train", "_attention_mod_backward")


def define(name: str) -> None:
    """Completes the family of torch.ops.kgen.<name>. AttributeError when no registry has such an Op."""
    global _busy
    with _lock:
        if _busy or name in _defined:
            return
        _busy = True
        try:
            _define_common()
            _define_family(name)
        finally:
            _busy = False


def _define_family(name: str) -> None:
    if name in _defined:
        return
    for names, complete in _FAMILIES:
        if name in names:
            complete()
            _defined.update(names)
            return
    _define_own(name.removeprefix("_").removesuffix("_train"))


# ---- pieces ----


def _op(name: str) -> Any:
    return getattr(torch.ops.kgen, name).default


def _autograd(name: str, setup: Callable[..., None], backward: Callable[..., Any]) -> None:
    torch.library.register_autograd(f"kgen::{name}", backward, setup_context=setup, lib=_lib)


def _fake(names: Sequence[str], fake: Callable[..., Any]) -> None:
    for name in names:
        torch.library.register_fake(f"kgen::{name}", fake, lib=_lib)


def _refuse_double(name: str, op: str) -> None:
    def backward(ctx: Any, *grads: Any) -> Any:
        raise RuntimeError(
            f"kgen::{op} has no second derivative; differentiate torch's own op where you need one"
        )

    _autograd(name, lambda ctx, inputs, output: None, backward)


def _autocast(name: str, device: str, cast: Callable[[tuple[Any, ...], torch.dtype], tuple[Any, ...]]) -> None:
    """Does under autocast as the torch op of that name does: cast the arguments, then call it without autocast."""
    key = {"cpu": torch._C.DispatchKey.AutocastCPU, "cuda": torch._C.DispatchKey.AutocastCUDA}[device]

    def kernel(*args: Any, **kwargs: Any) -> Any:
        dtype = torch.get_autocast_dtype(device)
        with torch._C._ExcludeDispatchKeyGuard(torch._C.DispatchKeySet(key)):
            return _op(name)(*cast(args, dtype), **kwargs)

    _lib.impl(name, kernel, "AutocastCPU" if device == "cpu" else "AutocastCUDA")


# ---- softmax ----


def _softmax_setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.dim = inputs[1]
    ctx.save_for_backward(output)


def _softmax_backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
    (output,) = ctx.saved_tensors
    return torch.ops.aten._softmax_backward_data.default(grad, output, ctx.dim, output.dtype), None


def _softmax_vmap(info: Any, in_dims: tuple[Any, ...], input: Tensor, dim: int) -> tuple[Tensor, int]:
    if input.dim() == 1:  # a batch of scalars
        return torch.ones_like(input), 0
    wrapped = dim if dim >= 0 else dim + input.dim() - 1
    return _op("softmax")(input.movedim(in_dims[0], 0), wrapped + 1), 0


def _softmax_cuda_cast(args: tuple[Any, ...], dtype: torch.dtype) -> tuple[Any, ...]:
    x = args[0]
    return (x.float() if x.dtype in (torch.float16, torch.bfloat16) else x, *args[1:])


def _define_softmax() -> None:
    _fake(_SOFTMAX[1:], lambda input, dim: torch.empty_like(input))
    _autograd("_softmax_train", _softmax_setup, _softmax_backward)
    torch.library.register_vmap("kgen::softmax", _softmax_vmap, lib=_lib)
    # On the CPU torch's own softmax keeps the dtype of its input under autocast, so this one does.
    _autocast("softmax", "cuda", _softmax_cuda_cast)


# ---- attention ----


def _attention_fake(query: Tensor, key: Tensor, value: Tensor, *rest: Any, **kw: Any) -> Tensor:
    return query.new_empty((*query.shape[:-1], value.shape[-1]))


def _attention_setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    query, key, value, mask, ctx.is_causal, ctx.scale, ctx.enable_gqa = inputs
    ctx.save_for_backward(query, key, value, mask)
    ctx.mask_grad = mask is not None and ctx.needs_input_grad[3]


def _attention_grad(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    query, key, value, mask = ctx.saved_tensors
    dq, dk, dv, dmask = _op("_attention_backward")(
        grad, query, key, value, mask, ctx.is_causal, ctx.scale, ctx.enable_gqa, ctx.mask_grad
    )
    return dq, dk, dv, dmask if ctx.mask_grad else None, None, None, None


def _attention_backward(
    grad: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None,
    is_causal: bool,
    scale: float | None,
    enable_gqa: bool,
    mask_grad: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The vector-Jacobian product of torch's own attention, which it runs again."""
    wanted = [query, key, value] + ([attn_mask] if mask_grad else [])
    with torch.enable_grad():
        leaves = [t.detach().requires_grad_() for t in wanted]
        mask = leaves[3] if mask_grad else attn_mask
        output = torch.nn.functional.scaled_dot_product_attention(
            *leaves[:3], attn_mask=mask, is_causal=is_causal, scale=scale, enable_gqa=enable_gqa
        )
        grads = [g.contiguous() for g in torch.autograd.grad(output, leaves, grad)]
    if not mask_grad:
        grads.append(query.new_empty(0))
    return grads[0], grads[1], grads[2], grads[3]


def _attention_backward_fake(
    grad: Tensor, query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None, *rest: Any
) -> tuple[Tensor, ...]:
    mask = attn_mask.new_empty(attn_mask.shape) if rest[-1] and attn_mask is not None else query.new_empty(0)
    return (*[t.new_empty(t.shape) for t in (query, key, value)], mask)


def _fold(t: Tensor, dim: int | None, size: int, rank: int) -> Tensor:
    """The batch in front of all others; a tensor without one is shown once for each."""
    t = t.movedim(dim, 0) if dim is not None else t.unsqueeze(0).expand(size, *t.shape)
    return t.reshape(size, *(1,) * (rank - t.dim() + 1), *t.shape[1:])


def _attention_vmap(info: Any, in_dims: tuple[Any, ...], *args: Any, **kw: Any) -> tuple[Tensor, int]:
    size, qkv, mask = info.batch_size, args[:3], args[3] if len(args) > 3 else None
    batched = [_fold(t, d, size, 0) for t, d in zip(qkv, in_dims)]
    rest = list(args[3:])
    if mask is not None:
        rest[0] = _fold(mask, in_dims[3], size, batched[0].dim() - 1)
    if any(t.dim() != 5 for t in batched) or (mask is not None and rest[0].shape[1] not in (1, batched[0].shape[1])):
        return torch.nn.functional.scaled_dot_product_attention(*batched, *rest, **kw), 0
    b = batched[0].shape[1]
    if mask is not None:
        rest[0] = rest[0].expand(size, b, *rest[0].shape[2:]).flatten(0, 1)
    output = _op("attention")(*[t.flatten(0, 1) for t in batched], *rest, **kw)
    return output.unflatten(0, (size, b)), 0


def _low_precision(args: tuple[Any, ...], dtype: torch.dtype) -> tuple[Any, ...]:
    def cast(t: Any) -> Any:
        floating = isinstance(t, Tensor) and t.is_floating_point() and t.dtype != torch.float64
        return t.to(dtype) if floating else t

    return tuple(cast(t) for t in args)


def _define_attention() -> None:
    _fake(("_attention", "_attention_train"), _attention_fake)
    _fake(("_attention_backward",), _attention_backward_fake)
    _lib.impl("_attention_backward", _attention_backward, "CompositeExplicitAutograd")
    _autograd("_attention_train", _attention_setup, _attention_grad)
    _refuse_double("_attention_backward", "attention")
    torch.library.register_vmap("kgen::attention", _attention_vmap, lib=_lib)
    for device in ("cpu", "cuda"):
        _autocast("attention", device, _low_precision)


# ---- attention with a Program ----


def _program_fake(query: Tensor, key: Tensor, value: Tensor, *rest: Any, **kw: Any) -> tuple[Tensor, Tensor]:
    shape = query.shape[:-1]
    return query.new_empty((*shape, value.shape[-1])), query.new_empty(shape, dtype=torch.float32)


def _program_setup(ctx: Any, inputs: tuple[Any, ...], keyword_only_inputs: dict[str, Any], output: Any) -> None:
    query, key, value, captured, ctx.scalars, ctx.program = inputs
    ctx.scale, ctx.enable_gqa = keyword_only_inputs["scale"], keyword_only_inputs["enable_gqa"]
    ctx.save_for_backward(query, key, value, *captured)
    ctx.wanted = [t.is_floating_point() and t.requires_grad for t in captured]
    ctx.set_materialize_grads(False)


def _program_grad(ctx: Any, grad: Tensor | None, grad_lse: Tensor | None) -> tuple[Any, ...]:
    query, key, value, *captured = ctx.saved_tensors
    if grad is None:
        grad = query.new_zeros((*query.shape[:-1], value.shape[-1]))
    grads = _op("_attention_mod_backward")(
        grad, grad_lse, query, key, value, captured, ctx.scalars, ctx.program, ctx.scale, ctx.enable_gqa, ctx.wanted
    )
    found = iter(grads[3:])
    tables = [next(found) if w else None for w in ctx.wanted]
    return grads[0], grads[1], grads[2], tables, None, None


def _program_backward(
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
    from ._fallback import attention_vjp

    return attention_vjp(grad, grad_lse, query, key, value, captured, scalars, program, scale, enable_gqa, wanted)


def _program_backward_fake(
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
    tables = [t for t, w in zip(captured, wanted) if w]
    return [t.new_empty(t.shape) for t in (query, key, value, *tables)]


def _define_program() -> None:
    _fake(_PROGRAM[:2], _program_fake)
    _fake(_PROGRAM[2:], _program_backward_fake)
    _lib.impl("_attention_mod_backward", _program_backward, "CompositeExplicitAutograd")
    _autograd("attention_mod_train", _program_setup, _program_grad)
    _refuse_double("_attention_mod_backward", "attention_mod")
    for device in ("cpu", "cuda"):
        for name in _PROGRAM[:2]:
            _autocast(name, device, lambda args, dtype: (*_low_precision(args[:3], dtype), *args[3:]))


_FAMILIES: tuple[tuple[tuple[str, ...], Callable[[], None]], ...] = (
    (_SOFTMAX, _define_softmax),
    (_ATTENTION, _define_attention),
    (_PROGRAM, _define_program),
)


# ---- fallbacks and Ops of registries ----


def _fallback(inputs: Sequence[Tensor], call: int) -> list[Tensor]:
    """Computes what no Kernel serves; libkgen_rt.so calls it, and it asks back for what is no tensor."""
    from ._fallback import serve

    with torch.no_grad():
        return serve(_native.fallback_call(call), list(inputs))


def _vjp_fake(op: str, tensors: Sequence[Tensor], grads: Any, args: str, wanted: Sequence[bool]) -> list[Tensor]:
    return [t.new_empty(t.shape) for t, w in zip(tensors, wanted) if w]


def _vjp(op: str, tensors: Sequence[Tensor], grads: Any, args: str, wanted: Sequence[bool]) -> list[Tensor]:
    from ._fallback import own_vjp

    return own_vjp(op, tensors, grads, json.loads(args), wanted)


def _define_common() -> None:
    if "_fallback" in _defined:
        return
    _lib.define("_vjp(str op, Tensor[] tensors, Tensor?[] grads, str args, bool[] wanted) -> Tensor[]")
    _lib.impl("_fallback", _fallback, "CompositeExplicitAutograd")
    _lib.impl("_vjp", _vjp, "CompositeExplicitAutograd")
    _fake(("_vjp",), _vjp_fake)
    _defined.update(("_fallback", "_vjp"))


def _flatten(args: Sequence[Any]) -> tuple[list[Tensor], list[Any]]:
    """Tensors apart; in their places {"tensor": i}, as the fallback has them."""
    tensors: list[Tensor] = []
    plain: list[Any] = []
    for a in args:
        if isinstance(a, Tensor):
            plain.append({"tensor": len(tensors)})
            tensors.append(a)
        else:
            plain.append(list(a) if isinstance(a, (list, tuple)) else a)
    return tensors, plain


def _own_autograd(name: str, contract: dict[str, Any]) -> None:
    names = [a["name"] for a in contract["args"]]

    def setup(ctx: Any, inputs: tuple[Any, ...], keyword_only_inputs: dict[str, Any], output: Any) -> None:
        args = [*inputs, *(keyword_only_inputs[n] for n in names[len(inputs) :])]
        tensors, ctx.plain = _flatten(args)
        ctx.places = [i for i, a in enumerate(inputs) if isinstance(a, Tensor)]
        ctx.count = len(inputs)
        ctx.wanted = [t.is_floating_point() and t.requires_grad for t in tensors]
        ctx.save_for_backward(*tensors)
        ctx.set_materialize_grads(False)

    def backward(ctx: Any, *grads: Any) -> Any:
        found = iter(_op("_vjp")(name, list(ctx.saved_tensors), list(grads), json.dumps(ctx.plain), ctx.wanted))
        result: list[Any] = [None] * ctx.count
        for place, w in zip(ctx.places, ctx.wanted):
            result[place] = next(found) if w else None
        return tuple(result) if len(result) != 1 else result[0]

    _autograd(f"_{name}_train", setup, backward)


def _define_own(name: str) -> None:
    from .fake import shapes_of

    try:
        _native.define(name)
    except LookupError as e:
        raise AttributeError(f"torch.ops.kgen.{name}: {e}") from None
    names = (name, f"_{name}", f"_{name}_train")
    if names[0] in _defined:
        return
    contract = _native.contract(name)
    _fake(names[1:], shapes_of(contract))
    _own_autograd(name, contract)
    _defined.update(names)
