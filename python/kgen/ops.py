"""What only Python can add to kgen's ops: fake kernels, autograd, vmap, autocast, and the fallbacks.

The ops themselves and their kernels are in libkgen_rt.so. A family is completed by `define`, which the
namespace torch.ops.kgen calls before it hands out an op, so that no compile can see an op without its
gradient. The names with a leading underscore end up in exported programs: their schemas are frozen.
"""

from __future__ import annotations

import contextlib
import json
import threading
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from . import _native, eager

_lock = threading.RLock()
_defined: set[str] = set()
_busy = False  # under the lock: registering looks ops up by name, which calls define again
_lib = torch.library.Library("kgen", "FRAGMENT")  # kept: it ends what it registered when it dies

_SOFTMAX = ("softmax", "_softmax", "_softmax_train")
_ATTENTION = ("attention", "_attention", "_attention_train", "_attention_backward")
_PROGRAM = ("attention_mod", "attention_mod_output", "attention_mod_train", "_attention_mod_backward")
_LAYER_NORM = ("layer_norm", "_layer_norm", "_layer_norm_train")
_RMS_NORM = ("rms_norm", "_rms_norm", "_rms_norm_train")
_LINEAR = ("linear", "_linear", "_linear_train", "linear_mod", "linear_mod_train", "_linear_mod_backward")
_CONV2D = ("conv2d", "_conv2d", "_conv2d_train", "conv2d_mod", "conv2d_mod_train", "_conv2d_mod_backward")
_MATMUL = ("matmul", "_matmul", "_matmul_train", "matmul_mod", "matmul_mod_train", "_matmul_mod_backward")


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


def packet(found: Any) -> Any:
    """torch.ops.kgen.<name> as it is handed out: the canonical Ops get a quicker way in from eager code."""
    quick = _PACKETS.get(found.__name__)
    if quick is not None and type(found) is not quick:
        found.__class__ = quick
        if issubclass(quick, _CPacket):
            found._in_c()
    return found


# ---- pieces ----


def _op(name: str) -> Any:
    return getattr(torch.ops.kgen, name).default


def _autograd(name: str, differentiable: Callable[..., Any], reference: Callable[..., Any]) -> None:
    """The Autograd kernel of a `_train` op: `differentiable` where a gradient is wanted, else the backend op.

    differentiable(*args) gives None when nothing in args requires a gradient. Under torch.func and forward-mode
    derivatives the op is torch's own (`reference`), which has them all. Each microsecond here is one of every
    call with gradients on.
    """
    backend = _BACKENDS[name] = _op(_backend_of(name))._op
    functorch, grad_on = torch._C._are_functorch_transforms_active, torch.is_grad_enabled

    def kernel(*args: Any, **kwargs: Any) -> Any:
        if functorch() or forward_ad._current_level >= 0:
            return reference(*args, **kwargs)
        if grad_on():
            found = differentiable(*args, **kwargs)
            if found is not None:
                return found
        return backend(*args, **kwargs)

    _lib.impl(name, kernel, "Autograd")


_BACKENDS: dict[str, Callable[..., Any]] = {}


def _backend_of(train: str) -> str:
    return train.removesuffix("_train")


class _Once(torch.autograd.Function):
    """Hands gradients on and refuses to be differentiated. apply(op, n, n gradients, what they depend on)."""

    @staticmethod
    def forward(ctx: Any, op: str, n: int, *tensors: Tensor) -> tuple[Tensor, ...]:
        ctx.op = op
        return tuple(t.view_as(t) for t in tensors[:n])

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        raise RuntimeError(
            f"kgen::{ctx.op} has no second derivative; use torch's own op where you need one"
        )


def _once(op: str, grads: Sequence[Tensor], inputs: Sequence[Tensor]) -> Sequence[Tensor]:
    return _Once.apply(op, len(grads), *grads, *inputs) if torch.is_grad_enabled() else grads


def _apply(function: type[torch.autograd.Function]) -> Callable[..., Any]:
    """function.apply without what it does for torch.func, which never gets here: a microsecond less."""
    return super(torch.autograd.Function, function).apply


def _fake(names: Sequence[str], fake: Callable[..., Any]) -> None:
    for name in names:
        torch.library.register_fake(f"kgen::{name}", fake, lib=_lib)


def _autocast(name: str, device: str, cast: Callable[[tuple[Any, ...], torch.dtype], tuple[Any, ...]]) -> None:
    """Does under autocast as the torch op of that name does: cast the arguments, then call it without autocast."""
    key = {"cpu": torch._C.DispatchKey.AutocastCPU, "cuda": torch._C.DispatchKey.AutocastCUDA}[device]

    def kernel(*args: Any, **kwargs: Any) -> Any:
        dtype = torch.get_autocast_dtype(device)
        with torch._C._ExcludeDispatchKeyGuard(torch._C.DispatchKeySet(key)):
            return _op(name)(*cast(args, dtype), **kwargs)

    _lib.impl(name, kernel, "AutocastCPU" if device == "cpu" else "AutocastCUDA")


@contextlib.contextmanager
def recording() -> Iterator[None]:
    """Gradients are recorded inside, also where the dispatcher is already below autograd: under a dispatch mode
    or in a compiled backward."""
    exclude = torch._C._dispatch_tls_local_exclude_set()
    for key in ("AutogradCPU", "AutogradCUDA", "AutogradOther", "AutogradFunctionality", "ADInplaceOrView"):
        exclude = exclude.remove(getattr(torch._C.DispatchKey, key))
    include = torch._C._dispatch_tls_local_include_set()
    with torch._C._ForceDispatchKeyGuard(include, exclude), torch.enable_grad():
        yield


# ---- the quick way in ----
#
# What Python adds to an op is most of what a small call costs: the public op's kernel and, with gradients on, the
# boxed Python kernel are each a trip through the dispatcher. Calls of plain tensors from eager code skip them and do
# what they would have done. Everything else (subclasses and fake tensors, torch.func, dual numbers, autocast,
# torch.jit.trace, and torch.compile, which never gets here) takes the whole way, and so does
# torch.ops.kgen.<name>.default. Dual numbers keep their tangents under no_grad too, so they go to the op that knows them.

_grad_on = torch.is_grad_enabled
_functorch = torch._C._are_functorch_transforms_active
_any_autocast = torch._C._is_any_autocast_enabled
_jit_tracing = torch._C._is_tracing
_function_mode = torch._C._is_torch_function_mode_enabled
_boxed_call = getattr(torch._C, "_dispatch_call_boxed", lambda op, *args: op._op(*args))  # torch's own, not public
_softmax_backend: Any  # what _boxed_call takes; set when the family is defined
_attention_backend: Any


def _boxed(name: str) -> Any:
    """The op for _boxed_call, which spares a quarter of a microsecond: the search for what overrides the call.

    The caller makes sure that nothing does.
    """
    return _op(name)._handle if hasattr(torch._C, "_dispatch_call_boxed") else _op(name)


_admitted = {"cpu"}


def _admit(tensor: Tensor) -> None:
    """Once for each kind of device: a GPU's tensors were not there to learn from."""
    kind = tensor.device.type
    if kind not in _admitted and not _functorch():
        _admitted.add(kind)
        eager.admit(tensor)


class _CPacket(torch._ops.OpOverloadPacket):
    """One whose calls go the way of eager.py once _in_c was called; those that eager.py leaves alone go to _call as before.
    What is recorded for a gradient calls the backend that way too."""

    def _in_c(self) -> None:
        raise NotImplementedError


class _SoftmaxPacket(_CPacket):
    def _call(self, input: Any, dim: Any) -> Any:
        if type(input) is Tensor and not _function_mode() and not _jit_tracing():
            if forward_ad._current_level >= 0:
                return _op("_softmax_train")(input, dim)
            if not _grad_on():
                return _boxed_call(_softmax_backend, input, dim)
            # Autocast leaves a CPU's softmax alone.
            if not _functorch() and (input.is_cpu or not _any_autocast()):
                if input.requires_grad:
                    return _softmax_apply(input, dim)
                return _boxed_call(_softmax_backend, input, dim)
        return self._op(input, dim)

    __call__ = _call

    def _in_c(self) -> None:
        otherwise = self._call

        def call(input: Any, dim: Any) -> Any:
            if type(input) is Tensor:
                _admit(input)
            return otherwise(input, dim)

        quick = eager.softmax(call, _softmax_apply)
        if quick is not None:
            type(self).__call__ = quick  # type: ignore[assignment, method-assign]
            _Softmax.served = staticmethod(eager.softmax(_softmax_served, _softmax_served))


class _AttentionPacket(_CPacket):
    def _call(
        self,
        query: Any,
        key: Any,
        value: Any,
        attn_mask: Any = None,
        dropout_p: Any = 0.0,
        is_causal: Any = False,
        *,
        scale: Any = None,
        enable_gqa: Any = False,
    ) -> Any:
        plain = type(query) is Tensor and type(key) is Tensor and type(value) is Tensor and dropout_p == 0.0
        plain = plain and (attn_mask is None or (type(attn_mask) is Tensor and not is_causal))
        if plain and not _function_mode() and not _jit_tracing():
            args = (query, key, value, attn_mask, is_causal, scale, enable_gqa)
            if forward_ad._current_level >= 0:
                return _op("_attention_train")(*args)
            if not query.is_cpu:
                _admit(query)
            if not _grad_on():
                return _boxed_call(_attention_backend, *args)
            if not _functorch() and not _any_autocast() and query.dtype in _ATTENTION_DTYPES and query.dim() == 4:
                found = _differentiable_attention(*args)
                return found if found is not None else _boxed_call(_attention_backend, *args)
        return self._op(query, key, value, attn_mask, dropout_p, is_causal, scale=scale, enable_gqa=enable_gqa)

    __call__ = _call

    def _in_c(self) -> None:
        quick = eager.attention(self._call, _attention_apply)
        if quick is not None:
            type(self).__call__ = quick  # type: ignore[assignment, method-assign]
            _Attention.served = staticmethod(eager.attention(_attention_served, _attention_served))


_ATTENTION_DTYPES = frozenset((torch.float32, torch.float16, torch.bfloat16))
_PACKETS: dict[str, type[torch._ops.OpOverloadPacket]] = {"softmax": _SoftmaxPacket, "attention": _AttentionPacket}


# ---- softmax ----


def _softmax_served(input: Tensor, dim: int) -> Tensor:
    return _boxed_call(_softmax_backend, input, dim)


class _Softmax(torch.autograd.Function):
    served = staticmethod(_softmax_served)

    @staticmethod
    def forward(ctx: Any, input: Tensor, dim: int) -> Tensor:
        output = _Softmax.served(input, dim)
        ctx.dim = dim
        ctx.save_for_backward(output)
        return output

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        (output,) = ctx.saved_tensors
        return torch.ops.aten._softmax_backward_data.default(grad, output, ctx.dim, output.dtype), None


_softmax_apply = _apply(_Softmax)


def _differentiable_softmax(input: Tensor, dim: int) -> Tensor | None:
    return _softmax_apply(input, dim) if input.requires_grad else None


def _softmax_vmap(info: Any, in_dims: tuple[Any, ...], input: Tensor, dim: int) -> tuple[Tensor, int]:
    if input.dim() == 1:  # a batch of scalars
        return torch.ones_like(input), 0
    wrapped = dim if dim >= 0 else dim + input.dim() - 1
    return _op("softmax")(input.movedim(in_dims[0], 0), wrapped + 1), 0


def _softmax_cuda_cast(args: tuple[Any, ...], dtype: torch.dtype) -> tuple[Any, ...]:
    x = args[0]
    return (x.float() if x.dtype in (torch.float16, torch.bfloat16) else x, *args[1:])


def _define_softmax() -> None:
    global _softmax_backend
    _softmax_backend = _boxed("_softmax")
    _fake(_SOFTMAX[1:], lambda input, dim: torch.empty_like(input))
    _autograd("_softmax_train", _differentiable_softmax, lambda input, dim: torch.softmax(input, dim))
    for name in _SOFTMAX[:2]:
        torch.library.register_vmap(f"kgen::{name}", _softmax_vmap, lib=_lib)
        # On the CPU torch's own softmax keeps the dtype of its input under autocast, so this one does.
        _autocast(name, "cuda", _softmax_cuda_cast)


# ---- attention ----


def _attention_fake(query: Tensor, key: Tensor, value: Tensor, *rest: Any, **kw: Any) -> Tensor:
    return query.new_empty((*query.shape[:-1], value.shape[-1]))


def _attention_served(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None = None, is_causal: bool = False, *options: Any
) -> Tensor:
    return _boxed_call(_attention_backend, query, key, value, mask, is_causal, *options or (None, False))


class _Attention(torch.autograd.Function):
    served = staticmethod(_attention_served)

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, mask: Any, causal: bool, scale: Any, gqa: bool) -> Tensor:
        ctx.options = (causal, scale, gqa)
        ctx.save_for_backward(query, key, value, mask)
        if mask is not None or scale is not None or gqa:
            return _attention_served(query, key, value, mask, causal, scale, gqa)
        return _Attention.served(query, key, value, is_causal=causal) if causal else _Attention.served(query, key, value)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        query, key, value, mask = ctx.saved_tensors
        mask_grad = ctx.needs_input_grad[3]
        with torch.no_grad():
            grads = _op("_attention_backward")(grad, query, key, value, mask, *ctx.options, mask_grad)
        dq, dk, dv, dmask = _once("attention", grads, (grad, query, key, value))
        return dq, dk, dv, dmask if mask_grad else None, None, None, None


_attention_apply = _apply(_Attention)


def _differentiable_attention(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, *options: Any
) -> Tensor | None:
    wanted = query.requires_grad or key.requires_grad or value.requires_grad
    if not wanted and (mask is None or not mask.requires_grad):
        return None
    return _attention_apply(query, key, value, mask, *options)


def _torch_attention(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, causal: bool, scale: float | None, gqa: bool
) -> Tensor:
    return torch.nn.functional.scaled_dot_product_attention(
        query, key, value, attn_mask=mask, is_causal=causal, scale=scale, enable_gqa=gqa
    )


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
    with recording():
        leaves = [t.detach().requires_grad_() for t in wanted]
        mask = leaves[3] if mask_grad else attn_mask
        output = _torch_attention(leaves[0], leaves[1], leaves[2], mask, is_causal, scale, enable_gqa)
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


def _backend_attention_vmap(
    info: Any, in_dims: tuple[Any, ...], query: Any, key: Any, value: Any, mask: Any, causal: bool, scale: Any, gqa: bool
) -> tuple[Tensor, int]:
    dims = (*in_dims[:4], None, None)
    return _attention_vmap(info, dims, query, key, value, mask, 0.0, causal, scale=scale, enable_gqa=gqa)


def _low_precision(args: tuple[Any, ...], dtype: torch.dtype) -> tuple[Any, ...]:
    def cast(t: Any) -> Any:
        floating = isinstance(t, Tensor) and t.is_floating_point() and t.dtype != torch.float64
        return t.to(dtype) if floating else t

    return tuple(cast(t) for t in args)


def _define_attention() -> None:
    global _attention_backend
    _attention_backend = _boxed("_attention")
    _fake(("_attention", "_attention_train"), _attention_fake)
    _fake(("_attention_backward",), _attention_backward_fake)
    _lib.impl("_attention_backward", _attention_backward, "CompositeExplicitAutograd")
    _autograd("_attention_train", _differentiable_attention, _torch_attention)
    torch.library.register_vmap("kgen::attention", _attention_vmap, lib=_lib)
    torch.library.register_vmap("kgen::_attention", _backend_attention_vmap, lib=_lib)
    for device in ("cpu", "cuda"):
        for name in _ATTENTION[:2]:
            _autocast(name, device, _low_precision)


# ---- attention with a Program ----


def _program_fake(query: Tensor, key: Tensor, value: Tensor, *rest: Any, **kw: Any) -> tuple[Tensor, Tensor]:
    shape = query.shape[:-1]
    return query.new_empty((*shape, value.shape[-1])), query.new_empty(shape, dtype=torch.float32)


class _Program(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, options: tuple[Any, ...], *tensors: Tensor) -> Any:
        ctx.options = scalars, program, scale, enable_gqa = options
        ctx.save_for_backward(*tensors)
        ctx.set_materialize_grads(False)
        query, key, value, *captured = tensors
        backend = _BACKENDS["attention_mod_train"]
        return backend(query, key, value, captured, scalars, program, scale=scale, enable_gqa=enable_gqa)

    @staticmethod
    def backward(ctx: Any, grad: Tensor | None, grad_lse: Tensor | None) -> tuple[Any, ...]:
        query, key, value, *captured = ctx.saved_tensors
        if grad is None:
            grad = query.new_zeros((*query.shape[:-1], value.shape[-1]))
        wanted = list(ctx.needs_input_grad[4:])
        with torch.no_grad():
            grads = _op("_attention_mod_backward")(
                grad, grad_lse, query, key, value, captured, *ctx.options, wanted
            )
        grads = _once("attention_mod", grads, (grad, query, key, value, *captured))
        found = iter(grads[3:])
        return None, *grads[:3], *(next(found) if w else None for w in wanted)


_program_apply = _apply(_Program)


def _differentiable_program(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    captured: Sequence[Tensor],
    scalars: Sequence[float],
    program: str,
    *,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Any:
    tensors = (query, key, value, *captured)
    if not any(t.requires_grad for t in tensors):
        return None
    return _program_apply((scalars, program, scale, enable_gqa), *tensors)


def _torch_program(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    captured: Sequence[Tensor],
    scalars: Sequence[float],
    program: str,
    *,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Any:
    from ._fallback import functional_attention

    return functional_attention(query, key, value, captured, scalars, program, scale)


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
    _fake(("attention_mod", "attention_mod_train"), _program_fake)
    _fake(("attention_mod_output",), lambda *args, **kw: _program_fake(*args, **kw)[0])
    _fake(("_attention_mod_backward",), _program_backward_fake)
    _lib.impl("_attention_mod_backward", _program_backward, "CompositeExplicitAutograd")
    _autograd("attention_mod_train", _differentiable_program, _torch_program)
    for device in ("cpu", "cuda"):
        for name in _PROGRAM[:-1]:
            _autocast(name, device, lambda args, dtype: (*_low_precision(args[:3], dtype), *args[3:]))


# ---- norms ----


def _define_layer_norm() -> None:
    from . import norms

    norms.define_layer_norm()


def _define_rms_norm() -> None:
    from . import norms

    norms.define_rms_norm()


# ---- linear, matmul and conv2d ----


def _define_linear() -> None:
    from . import products

    products.define_linear()


def _define_matmul() -> None:
    from . import products

    products.define_matmul()


def _define_conv2d() -> None:
    from . import convolution

    convolution.define_conv2d()


_FAMILIES: tuple[tuple[tuple[str, ...], Callable[[], None]], ...] = (
    (_SOFTMAX, _define_softmax),
    (_ATTENTION, _define_attention),
    (_PROGRAM, _define_program),
    (_LAYER_NORM, _define_layer_norm),
    (_RMS_NORM, _define_rms_norm),
    (_LINEAR, _define_linear),
    (_MATMUL, _define_matmul),
    (_CONV2D, _define_conv2d),
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


class _Own(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, below: Callable[[], Any], name: str, plain: list[Any], *tensors: Tensor) -> Any:
        ctx.name, ctx.plain = name, plain
        ctx.save_for_backward(*tensors)
        ctx.set_materialize_grads(False)
        return below()

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Any, ...]:
        wanted, tensors = list(ctx.needs_input_grad[3:]), list(ctx.saved_tensors)
        with torch.no_grad():
            found = _op("_vjp")(ctx.name, tensors, list(grads), json.dumps(ctx.plain), wanted)
        given = [g for g in grads if g is not None]
        handed = iter(_once(ctx.name, found, (*given, *tensors)))
        return None, None, None, *(next(handed) if w else None for w in wanted)


_own_apply = _apply(_Own)


def _whole(name: str) -> Callable[..., list[Any]]:
    """All arguments of an Op in its schema's order: the dispatcher leaves out what equals its default."""
    arguments = _op(f"_{name}")._schema.arguments
    names = [a.name for a in arguments]
    defaults = {a.name: a.default_value for a in arguments if a.has_default_value()}

    def whole(args: Sequence[Any], kwargs: dict[str, Any]) -> list[Any]:
        given = {**defaults, **kwargs}
        return [*args, *(given[n] for n in names[len(args) :])]

    return whole


def _own_autograd(name: str, whole: Callable[..., list[Any]]) -> None:
    def differentiable(*args: Any, **kwargs: Any) -> Any:
        tensors, plain = _flatten(whole(args, kwargs))
        if not any(t.requires_grad for t in tensors):
            return None
        below = partial(_BACKENDS[f"_{name}_train"], *args, **kwargs)
        return _own_apply(below, name, plain, *tensors)

    def reference(*args: Any, **kwargs: Any) -> Any:
        from ._fallback import own_reference

        return own_reference(name, whole(args, kwargs))

    _autograd(f"_{name}_train", differentiable, reference)


def _define_own(name: str) -> None:
    from .fake import shapes_of

    try:
        _native.define(name)
    except LookupError as e:
        raise AttributeError(f"torch.ops.kgen.{name}: {e}") from None
    names = (name, f"_{name}", f"_{name}_train")
    if names[0] in _defined:
        return
    whole, shapes = _whole(name), shapes_of(_native.contract(name))
    _fake(names[1:], lambda *args, **kwargs: shapes(whole(args, kwargs)))
    _own_autograd(name, whole)
    _defined.update(names)
