"""Finds linear, matmul and conv2d with what follows them element by element (activations, residuals, gates, scalings) in an aten
graph. A part of recognise.py, which calls it; it only reports.

A linear or matmul alone is left to torch: a Kernel's gain is in what it does not write and read again. A conv2d alone is found, too. Left is what is used elsewhere:
only the last value of the part that is taken may have users outside it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import fx

from .graphs import bind, op_name, shape_of
from .indexing import is_inactive_dropout
from .products import INDEX
from .program import LOAD_TYPE, MAX_TENSORS
from .proxies import FUNCTIONS, Proxy, TraceError, to_kind
from .recognise import FLOATS, Found, Match, Product, contraction
from .trace_epilogues import Elements, canonical_epilogue

# Of torch's elementwise operations those that a Program says as torch does, by their aten names.
ELEMENTWISE = frozenset((
    "relu", "gelu", "silu", "tanh", "sigmoid", "leaky_relu", "exp", "sqrt", "rsqrt", "erf", "abs", "neg",
    "square", "reciprocal", "clamp", "clamp_min", "clamp_max", "minimum", "maximum", "add", "sub", "rsub", "mul", "div", "pow",
    "where",
))  # fmt: skip


def find_product(node: fx.Node, found: Found) -> None:
    """A product at node with an epilogue behind it, if it has one and no other Match has taken it."""
    taken = {n for m in found.matches for n in m.core}
    if node in taken:
        return
    spelled = _operands(node)
    if spelled is None:
        return
    op, operands, transposed, attributes = spelled
    value = node.meta["val"]
    tensors = [n for n in operands if n is not None]
    if value.dtype not in FLOATS or any(n.meta["val"].dtype != value.dtype for n in tensors) or not value.numel():
        return
    part = _epilogue(node, taken)
    while part:
        made = _program(op, node, part)
        if made is not None:
            text, captured, scalars = made
            detail = Product(operands, transposed, text, captured, scalars, attributes)
            found.matches.append(Match(op, part[-1], (node, *part), detail))
            return
        part = part[:-1] and _shorter(node, part)
    if op == "conv2d":
        found.matches.append(Match(op, node, (node,), Product(operands, transposed, "", (), (), attributes)))


def _convolution(node: fx.Node) -> tuple[tuple[fx.Node | None, ...], tuple[Any, ...]] | None:
    """Operands and attributes of a convolution over two dims that is not transposed, its padding by numbers."""
    a = bind(node)
    if a.get("transposed") or isinstance(a["padding"], str):
        return None
    x, w, b, rank = a["input"], a["weight"], a["bias"], len(shape_of(a["weight"]))
    lists = [tuple(a[n]) * (2 if len(a[n]) == 1 else 1) for n in ("stride", "padding", "dilation")]
    if rank != 4 or len(shape_of(x)) not in (3, 4) or any(len(v) != 2 for v in lists) or 0 in shape_of(w):
        return None
    if not all(isinstance(n, int) for v in lists for n in v):
        return None
    return (x, w, b), (*lists, a["groups"])


def _operands(node: fx.Node) -> tuple[str, tuple[fx.Node | None, ...], bool, tuple[Any, ...]] | None:
    """The Op, its operands, whether the second is used with its last two dims swapped, and attributes."""
    if op_name(node) in ("conv2d", "convolution"):
        conv = _convolution(node)
        return ("conv2d", conv[0], False, conv[1]) if conv else None
    found = _matrix_operands(node)
    return (*found, ()) if found else None


def _matrix_operands(node: fx.Node) -> tuple[str, tuple[fx.Node | None, ...], bool] | None:
    name = op_name(node)
    if name == "linear":
        a = bind(node)
        x, w, b = a["input"], a["weight"], a["bias"]
        fits = len(shape_of(w)) == 2 and len(shape_of(x)) >= 1 and (b is None or shape_of(b) == shape_of(w)[:1])
        return ("linear", (x, w, b), False) if fits and shape_of(w)[1] > 0 else None
    if name == "addmm":
        a = bind(node)
        bias, x, y = a["self"], a["mat1"], a["mat2"]
        if a["beta"] != 1 or a["alpha"] != 1 or shape_of(bias) != shape_of(y)[1:]:
            return None
        return "linear", (x, y, bias), True
    c = contraction(node)
    if c is None or 0 in shape_of(c.operands[0]):
        return None
    batch = c.out[:-2]
    rows, columns = c.out[-2:] if len(c.out) >= 2 else ("", "")
    if not rows or not c.letters[0].endswith(rows + c.summed) or not set(c.letters[0] + c.letters[1]) >= set(batch):
        return None
    if name == "einsum" and any(letters[:-2] != batch for letters in c.letters):
        return None
    if c.letters[1].endswith(c.summed + columns):
        return "matmul", c.operands, False
    return ("matmul", c.operands, True) if c.letters[1].endswith(columns + c.summed) else None


def _is_elementwise(node: fx.Node, like: torch.Tensor) -> bool:
    if node.op != "call_function" or not (op_name(node) in ELEMENTWISE or is_inactive_dropout(node)):
        return False
    value = node.meta.get("val")
    return isinstance(value, torch.Tensor) and value.dtype == like.dtype and value.shape == like.shape


def _epilogue(product: fx.Node, taken: set[fx.Node]) -> list[fx.Node]:
    """The nodes behind product that work on its elements and are used by each other alone, but for the last; in order."""
    like = product.meta["val"]
    region: list[fx.Node] = []
    descend = {product}
    for node in list(product.graph.nodes):
        if node in descend or not any(i in descend for i in node.all_input_nodes):
            continue
        descend.add(node)
        inside = [i for i in node.all_input_nodes if i is product or i in region]
        outside = [i for i in node.all_input_nodes if i not in inside]
        if not inside or node in taken or not _is_elementwise(node, like) or any(i in descend for i in outside):
            continue
        if all(_can_capture(i, like) for i in outside):
            region.append(node)
    return _closed(product, region)


def _can_capture(node: fx.Node, like: torch.Tensor) -> bool:
    value = node.meta.get("val")
    if not isinstance(value, torch.Tensor) or value.dtype not in LOAD_TYPE or value.ndim > like.ndim or not value.numel():
        return False
    return all(n in (1, m) for n, m in zip(reversed(value.shape), reversed(like.shape)))


def _closed(product: fx.Node, region: list[fx.Node]) -> list[fx.Node]:
    """The longest part of the region that ends in one node and has no other exit."""
    for end in reversed(region):
        needed = {end}
        for node in reversed(region):
            if node not in needed and any(u in needed for u in node.users):
                needed.add(node)
        kept = [n for n in region if n in needed]
        if all(u in needed for n in (product, *kept[:-1]) for u in n.users) and kept[-1] is end:
            return kept
    return []


def _shorter(product: fx.Node, part: list[fx.Node]) -> list[fx.Node]:
    return _closed(product, part[:-1])


def _program(op: str, product: fx.Node, part: list[fx.Node]) -> tuple[str, tuple[fx.Node, ...], tuple[float, ...]] | None:
    """The part as a Program: text, captured nodes, scalars. None when it says nothing, or a Program cannot say it."""
    stand_ins: dict[fx.Node, torch.Tensor] = {}
    rec = Elements([], [], torch.device("cpu"), INDEX[op])
    env: dict[fx.Node, Any] = {product: Proxy(rec, "acc", "float32")}

    def operand(x: Any) -> Any:
        if not isinstance(x, fx.Node):
            return x
        if x not in env:
            value = x.meta["val"]
            stand_ins[x] = torch.empty((1,) * value.ndim, dtype=value.dtype)
            env[x] = rec.of(stand_ins[x])
        return env[x]

    try:
        for node in part:
            args = [operand(a) for a in node.args]
            kwargs = {k: operand(v) for k, v in node.kwargs.items()}
            function: Callable[..., Any] = FUNCTIONS.get(op_name(node), FUNCTIONS["clone"])
            env[node] = args[0] if is_inactive_dropout(node) else function(rec, *args, **kwargs)
        result = to_kind(rec, env[part[-1]], "float32").token
        form = canonical_epilogue(rec, result)
    except (TraceError, TypeError, ValueError):
        return None
    if not form.text or len(form.tensors) > MAX_TENSORS:
        return None
    by_tensor = {id(t): n for n, t in stand_ins.items()}
    return form.text, tuple(by_tensor[id(rec.tensors[i])] for i in form.tensors), ()

