"""kgen.conv2d, and what Python adds to its ops (see products.py): fake kernels, autograd, vmap, autocast, the quick way in
from eager code, and what serves an epilogue when no Kernel does. Loaded when it is first asked for.

Gradients of the plain op are torch's convolution_backward, which can be differentiated again. A Program's indices are those of
the contract's output, (N, O, P) or, channels last, (N, P, O), P the pixels in order.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from . import ops, products
from .errors import BadInput
from .ops import _function_mode, _grad_on, _jit_tracing
from .products import INDEX, _PLAIN

Ints = int | Sequence[int]
_backend: Callable[..., Tensor]  # set when the family is defined


def pair(x: Ints) -> list[int]:
    """Both numbers of what torch writes as one or two."""
    found = [x, x] if isinstance(x, (int, torch.SymInt)) else list(x)
    return found * 2 if len(found) == 1 else found


class Conv2dPacket(torch._ops.OpOverloadPacket):
    def __call__(
        self, input: Any, weight: Any, bias: Any = None, stride: Any = 1, padding: Any = 0, dilation: Any = 1, groups: Any = 1
    ) -> Any:
        plain = type(input) is Tensor and type(weight) in _PLAIN and (bias is None or type(bias) in _PLAIN)
        args = (input, weight, bias, stride, padding, dilation, groups)
        if plain and not _function_mode() and not _jit_tracing():
            if products._quick():
                found = _differentiable(*args) if _grad_on() else None
                return _backend(*args) if found is None else found
            if products._dual():
                return ops._op("_conv2d_train")(*args)
        return self._op(*args)


# ---- gradients ----


class _Conv2d(torch.autograd.Function):
    """apply(stride, padding, dilation, groups, input, weight, bias)"""

    @staticmethod
    def forward(
        ctx: Any, stride: list[int], padding: list[int], dilation: list[int], groups: int, input: Tensor, weight: Tensor,
        bias: Tensor | None,
    ) -> Tensor:  # fmt: skip
        ctx.of = stride, padding, dilation, groups
        ctx.save_for_backward(input, weight)
        return _backend(input, weight, bias, stride, padding, dilation, groups)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        input, weight = ctx.saved_tensors
        stride, padding, dilation, groups = ctx.of
        wanted = [bool(w) for w in ctx.needs_input_grad[4:]]
        single = input.dim() == 3
        found = torch.ops.aten.convolution_backward(
            grad.unsqueeze(0) if single else grad, input.unsqueeze(0) if single else input, weight, [weight.shape[0]], stride,
            padding, dilation, False, [0, 0], groups, wanted,
        )  # fmt: skip
        of_input, of_weight, of_bias = (g if w else None for g, w in zip(found, wanted))
        of_input = of_input.squeeze(0) if single and of_input is not None else of_input
        return None, None, None, None, of_input, of_weight, of_bias


_apply = ops._apply(_Conv2d)


def _differentiable(
    input: Tensor, weight: Tensor, bias: Tensor | None = None, stride: Ints = 1, padding: Ints = 0, dilation: Ints = 1,
    groups: int = 1,
) -> Tensor | None:  # fmt: skip
    if not (input.requires_grad or weight.requires_grad or (bias is not None and bias.requires_grad)):
        return None
    return _apply(pair(stride), pair(padding), pair(dilation), groups, input, weight, bias)


# ---- in plain torch ----


def contract_dims(y: Tensor, channels_last: bool) -> Tensor:
    """(N, O, OH, OW), or (O, OH, OW), in the dims of the contract's output; a view where the memory format is that one."""
    y = y.unsqueeze(0) if y.dim() == 3 else y
    return y.permute(0, 2, 3, 1).flatten(1, 2) if channels_last else y.flatten(2)


def user_dims(y: Tensor, shape: Sequence[int], channels_last: bool) -> Tensor:
    """The way back: to shape, that of the output as torch has it."""
    *batch, o, oh, ow = shape
    n = batch[0] if batch else 1
    y = y.reshape(n, oh, ow, o).permute(0, 3, 1, 2) if channels_last else y.reshape(n, o, oh, ow)
    return y if batch else y.squeeze(0)


def is_channels_last(t: Tensor) -> bool:
    """Whether torch takes the strides of a tensor (N, C, H, W) or (C, H, W) for channels last, as csrc/runtime/shim_conv.c
    tells it."""
    t = t.unsqueeze(0) if t.dim() == 3 else t
    return is_channels_last_strides(t.shape, t.stride())


def is_channels_last_strides(size: Sequence[int], stride: Sequence[int]) -> bool:
    least = 0
    if stride[1] == 0:
        return False
    for d in (1, 3, 2, 0):
        if size[d] == 0 or stride[d] < least or (d == 0 and least == stride[1]):
            return False
        least = stride[d] * (size[d] if size[d] > 1 else 1)
    return True


def contract_output(
    input: Tensor, weight: Tensor, bias: Tensor | None, stride: Ints, padding: Ints, dilation: Ints, groups: int,
    channels_last: bool,
) -> Tensor:  # fmt: skip
    """torch's conv2d with the contract's arguments and in its output's dims."""
    return contract_dims(F.conv2d(input, weight, bias, stride, padding, dilation, groups), channels_last)


def conv2d_with(
    input: Tensor, weight: Tensor, bias: Tensor | None, stride: Ints, padding: Ints, dilation: Ints, groups: int,
    captured: Sequence[Tensor], scalars: Sequence[float], program: str,
) -> Tensor:  # fmt: skip
    """conv2d_mod in plain torch; errors are those that torch gives for such arguments."""
    y = F.conv2d(input, weight, bias, stride, padding, dilation, groups)
    if not program:
        return y
    products._check_captured(y, captured)
    last = is_channels_last(input) or is_channels_last(weight)
    tables = [t if t.dim() == 0 else contract_dims(t.expand(y.shape), last) for t in captured]
    found = products.epilogue_of(program, INDEX["conv2d"])(contract_dims(y, last), tables, scalars)
    return _formatted(user_dims(found, y.shape, last), last)


def _formatted(y: Tensor, last: bool) -> Tensor:
    if not last:
        return y.contiguous()
    return y.contiguous(memory_format=torch.channels_last) if y.dim() == 4 else \
        y.unsqueeze(0).contiguous(memory_format=torch.channels_last).squeeze(0)


def contract_call(
    operands: Sequence[Tensor | None], attributes: Sequence[Any], captured: Sequence[Tensor]
) -> tuple[dict[str, Any], list[Tensor]]:
    """The arguments of the contract, by name, and the captured tensors in its output's dims, as the front makes them."""
    x, weight, bias = operands
    assert x is not None and weight is not None
    stride, padding, dilation, groups = attributes
    x = x.unsqueeze(0) if x.dim() == 3 else x
    last = is_channels_last(x) or is_channels_last(weight)
    shape = F.conv2d(x.to("meta"), weight.to("meta"), None, stride, padding, dilation, groups).shape
    args = {"input": x, "weight": weight, "bias": bias, "stride": pair(stride), "padding": pair(padding),
            "dilation": pair(dilation), "groups": groups, "channels_last": last}  # fmt: skip
    return args, [t if t.dim() == 0 else contract_dims(t.expand(shape), last) for t in captured]


# ---- fake, vmap ----


def _fake(
    input: Tensor, weight: Tensor, bias: Tensor | None = None, stride: Ints = 1, padding: Ints = 0, dilation: Ints = 1,
    groups: int = 1, *rest: Any,
) -> Tensor:  # fmt: skip
    """torch's own: its errors, its memory format."""
    return F.conv2d(input, weight, bias, stride, padding, dilation, groups)


def _vmap(
    info: Any, in_dims: Any, input: Tensor, weight: Tensor, bias: Tensor | None = None, stride: Ints = 1, padding: Ints = 0,
    dilation: Ints = 1, groups: int = 1,
) -> tuple[Tensor, int]:  # fmt: skip
    of_input, of_weight, of_bias = in_dims[0], in_dims[1], in_dims[2] if len(in_dims) > 2 else None
    size, rest = info.batch_size, (pair(stride), pair(padding), pair(dilation))
    x = products._front(input, of_input)
    single = x.dim() == 4
    x = x.unsqueeze(1) if single else x
    if of_weight is None:
        y = ops._op("conv2d")(x.flatten(0, 1), weight, bias if of_bias is None else None, *rest, groups)
        y = y.unflatten(0, x.shape[:2])
    else:  # each weight of the batch is a group of its own
        x = x.expand(size, *x.shape[1:]).transpose(0, 1).flatten(1, 2)
        w = weight.movedim(of_weight, 0).flatten(0, 1)
        y = ops._op("conv2d")(x, w, bias.repeat(size) if bias is not None and of_bias is None else None, *rest, size * groups)
        y = y.unflatten(1, (size, y.shape[1] // size)).transpose(0, 1)
    if of_bias is not None:
        assert bias is not None
        y = y + bias.movedim(of_bias, 0)[:, None, :, None, None]
    y = y.squeeze(1) if single else y
    return y.expand(size, *y.shape[1:]), 0


def define_conv2d() -> None:
    global _backend
    _backend = ops._op("_conv2d")._op
    products._define("conv2d", 3, _fake, F.conv2d, _differentiable, _vmap, conv2d_with)
    ops._PACKETS["conv2d"] = Conv2dPacket


# ---- the call that people write ----


def _padded(input: Tensor, weight: Tensor, stride: Ints, padding: str, dilation: Ints) -> tuple[Tensor, list[int]]:
    """The input and the padding by numbers of a padding by word, as torch has them."""
    if padding == "valid":
        return input, [0, 0]
    if padding != "same" or any(s != 1 for s in pair(stride)) or weight.dim() != 4:
        F.conv2d(input, weight, None, stride, padding, dilation)  # its error
        raise BadInput(f"conv2d: padding {padding!r} is neither 'valid' nor 'same'")
    total = [d * (k - 1) for d, k in zip(pair(dilation), weight.shape[2:])]
    if any(t % 2 for t in total):
        input = F.pad(input, [0, total[1] % 2, 0, total[0] % 2])
    return input, [t // 2 for t in total]


def conv2d(
    input: Tensor, weight: Tensor, bias: Tensor | None = None, stride: Ints = 1, padding: Ints | str = 0, dilation: Ints = 1,
    groups: int = 1, *, epilogue: Callable[..., Any] | None = None, captures: Sequence[Tensor] = (),
) -> Tensor:  # fmt: skip
    """epilogue(torch.nn.functional.conv2d(input, weight, bias, stride, ...), *captures), in one Kernel where there is one.

    input (N, C, H, W) or (C, H, W), weight (O, C / groups, KH, KW), bias (O), of one of float32, float16, bfloat16 (others are
    torch's); channels last where one of input and weight is, as torch's. The epilogue works element by element, in fp32 before
    the result is rounded; captures are tensors that broadcast to the output (N, O, OH, OW). Raises kgen.TraceError, which
    names the operation, for what a Program cannot say."""
    if isinstance(padding, str):
        input, padding = _padded(input, weight, stride, padding, dilation)
    attributes = (stride, padding, dilation, groups)
    if epilogue is None:
        if captures:
            raise BadInput("conv2d: captures are for an epilogue, and none was given")
        return torch.ops.kgen.conv2d(input, weight, bias, *attributes)
    return products._call("conv2d", (input, weight, bias), epilogue, captures, attributes)
