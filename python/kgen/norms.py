"""What Python adds to torch.ops.kgen.layer_norm and rms_norm: fake kernels, autograd, vmap, autocast, and the quick
way in from eager code (see ops.py). Loaded when one of them is first asked for.

Gradients are the vector-Jacobian products of torch's own, in operations of torch's that can be differentiated again.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import forward_ad
from torch.nn import Parameter

from . import ops
from .ops import _any_autocast, _functorch, _grad_on, _jit_tracing

_PLAIN = (Tensor, Parameter)
_layer_backend: Callable[..., Any]  # set when the family is defined
_rms_backend: Callable[..., Any]


def _quick(input: Tensor) -> bool:
    """Whether nothing but gradients may come between a call and the backend, with gradients on."""
    return not _functorch() and (input.is_cpu or not _any_autocast())


class LayerNormPacket(torch._ops.OpOverloadPacket):
    def __call__(
        self, input: Any, normalized_shape: Any, weight: Any = None, bias: Any = None, eps: Any = 1e-05
    ) -> Any:
        plain = type(input) is Tensor and (weight is None or type(weight) in _PLAIN)
        if plain and (bias is None or type(bias) in _PLAIN) and not _jit_tracing():
            if forward_ad._current_level >= 0:
                return ops._op("_layer_norm_train")(input, normalized_shape, weight, bias, eps)
            if not _grad_on():
                return _layer_backend(input, normalized_shape, weight, bias, eps)
            if _quick(input):
                found = _differentiable_layer_norm(input, normalized_shape, weight, bias, eps)
                return _layer_backend(input, normalized_shape, weight, bias, eps) if found is None else found
        return self._op(input, normalized_shape, weight, bias, eps)


class RmsNormPacket(torch._ops.OpOverloadPacket):
    def __call__(self, input: Any, normalized_shape: Any, weight: Any = None, eps: Any = None) -> Any:
        if type(input) is Tensor and (weight is None or type(weight) in _PLAIN) and not _jit_tracing():
            if forward_ad._current_level >= 0:
                return ops._op("_rms_norm_train")(input, normalized_shape, weight, eps)
            if not _grad_on():
                return _rms_backend(input, normalized_shape, weight, eps)
            if _quick(input):
                found = _differentiable_rms_norm(input, normalized_shape, weight, eps)
                return _rms_backend(input, normalized_shape, weight, eps) if found is None else found
        return self._op(input, normalized_shape, weight, eps)


# ---- layer_norm ----


class _LayerNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, shape: Sequence[int], eps: float, input: Tensor, weight: Any, bias: Any) -> Tensor:
        ctx.shape, ctx.eps = shape, eps
        ctx.save_for_backward(input, weight, bias)
        return _layer_backend(input, shape, weight, bias, eps)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        input, weight, bias = ctx.saved_tensors
        aten = torch.ops.aten
        _, mean, rstd = aten.native_layer_norm.default(input, ctx.shape, weight, bias, ctx.eps)
        wanted = [bool(w) for w in ctx.needs_input_grad[2:]]
        grads = aten.native_layer_norm_backward.default(grad, input, ctx.shape, mean, rstd, weight, bias, wanted)
        return None, None, *(g if w else None for g, w in zip(grads, wanted))


_layer_apply = ops._apply(_LayerNorm)


def _differentiable_layer_norm(
    input: Tensor, shape: Sequence[int], weight: Tensor | None = None, bias: Tensor | None = None, eps: float = 1e-05
) -> Tensor | None:
    wanted = input.requires_grad or (weight is not None and weight.requires_grad)
    if not wanted and (bias is None or not bias.requires_grad):
        return None
    return _layer_apply(shape, eps, input, weight, bias)


def _layer_fake(
    input: Tensor, shape: Sequence[int], weight: Tensor | None = None, bias: Tensor | None = None, eps: float = 1e-05
) -> Tensor:
    F.layer_norm(input, shape, weight, bias, eps)  # its errors
    return input.new_empty(input.shape)


# ---- rms_norm ----


class _RmsNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, shape: Sequence[int], eps: float | None, input: Tensor, weight: Any) -> Tensor:
        ctx.shape, ctx.eps = shape, eps
        ctx.save_for_backward(input, weight)
        return _rms_backend(input, shape, weight, eps)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        input, weight = ctx.saved_tensors
        wide = torch.float64 if input.dtype == torch.float64 else torch.float32
        eps = torch.finfo(wide).eps if ctx.eps is None else ctx.eps
        dims = tuple(range(-len(ctx.shape), 0))
        x, g = input.to(wide), grad.to(wide)
        scale = torch.rsqrt((x * x).mean(dims, keepdim=True) + eps)
        normal = x * scale
        given = g if weight is None else g * weight.to(wide)
        of_input = of_weight = None
        if ctx.needs_input_grad[2]:
            of_input = (scale * (given - normal * (given * normal).mean(dims, keepdim=True))).to(input.dtype)
        if ctx.needs_input_grad[3]:
            rows = tuple(range(input.dim() - len(ctx.shape)))
            product = g * normal
            of_weight = (product.sum(rows) if rows else product).to(weight.dtype)
        return None, None, of_input, of_weight


_rms_apply = ops._apply(_RmsNorm)


def _differentiable_rms_norm(
    input: Tensor, shape: Sequence[int], weight: Tensor | None = None, eps: float | None = None
) -> Tensor | None:
    if not input.requires_grad and (weight is None or not weight.requires_grad):
        return None
    return _rms_apply(shape, eps, input, weight)


def _rms_fake(input: Tensor, shape: Sequence[int], weight: Tensor | None = None, eps: float | None = None) -> Tensor:
    F.rms_norm(input, shape, weight, eps)  # its errors
    return input.new_empty(input.shape)


# ---- vmap, autocast ----


def _batched(t: Tensor, dim: int | None, rank: int) -> Tensor:
    """The batch in front, then as many dims as need be for `rank` behind it; one that has none is shown to all."""
    t = t.unsqueeze(0) if dim is None else t.movedim(dim, 0)
    return t.reshape(t.shape[0], *(1,) * (rank - t.dim() + 1), *t.shape[1:])


def _vmap(call: Callable[..., Tensor], info: Any, in_dims: Any, input: Tensor, affine: Sequence[Any]) -> tuple[Tensor, int]:
    """call(input, *affine) is the op. in_dims: of input and affine. As torch does it: where weight or bias are batched, they
    come after the norm."""
    dim = in_dims[0]
    if all(d is None for d in in_dims[1:]):
        return call(input.movedim(dim, 0), *affine), 0
    rank = input.dim() - (dim is not None)
    normal = call(_batched(input, dim, rank), *(None for _ in affine))
    for which, (t, d) in enumerate(zip(affine, in_dims[1:])):
        if t is not None:
            other = _batched(t, d, rank)
            normal = normal + other if which else normal * other
    shape = torch.broadcast_shapes(normal.shape, (info.batch_size, *normal.shape[1:]))
    return normal.to(input.dtype).expand(shape).contiguous(), 0


def _layer_vmap(
    info: Any, in_dims: Any, input: Tensor, shape: Sequence[int], weight: Any = None, bias: Any = None, eps: float = 1e-05
) -> tuple[Tensor, int]:
    dims = (in_dims[0], *(d if isinstance(d, int) else None for d in (*in_dims[2:4], None, None)[:2]))
    return _vmap(lambda x, w, b: ops._op("layer_norm")(x, shape, w, b, eps), info, dims, input, (weight, bias))


def _rms_vmap(
    info: Any, in_dims: Any, input: Tensor, shape: Sequence[int], weight: Any = None, eps: float | None = None
) -> tuple[Tensor, int]:
    dims = (in_dims[0], in_dims[2] if len(in_dims) > 2 and isinstance(in_dims[2], int) else None)
    return _vmap(lambda x, w: ops._op("rms_norm")(x, shape, w, eps), info, dims, input, (weight,))


def _full(args: tuple[Any, ...], dtype: torch.dtype) -> tuple[Any, ...]:
    def cast(t: Any) -> Any:
        return t.float() if isinstance(t, Tensor) and t.dtype in (torch.float16, torch.bfloat16) else t

    return tuple(cast(t) for t in args)


def _define(names: Sequence[str], fake: Any, differentiable: Any, reference: Any, vmap: Any) -> None:
    ops._fake(names[1:], fake)
    ops._autograd(names[2], differentiable, reference)
    for name in names[:2]:
        torch.library.register_vmap(f"kgen::{name}", vmap, lib=ops._lib)
        # Which devices' autocast knows the op differs between versions of torch.
        for device, key in (("cpu", "AutocastCPU"), ("cuda", "AutocastCUDA")):
            if torch._C._dispatch_has_kernel_for_dispatch_key(f"aten::{names[0]}", key):
                ops._autocast(name, device, _full)


def define_layer_norm() -> None:
    global _layer_backend
    _layer_backend = ops._op("_layer_norm")._op
    _define(ops._LAYER_NORM, _layer_fake, _differentiable_layer_norm, F.layer_norm, _layer_vmap)
    ops._PACKETS["layer_norm"] = LayerNormPacket


def define_rms_norm() -> None:
    global _rms_backend
    _rms_backend = ops._op("_rms_norm")._op
    _define(ops._RMS_NORM, _rms_fake, _differentiable_rms_norm, F.rms_norm, _rms_vmap)
    ops._PACKETS["rms_norm"] = RmsNormPacket
