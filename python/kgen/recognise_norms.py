"""Finds layer_norm and rms_norm in an aten graph, torch's own and rms_norm as models spell it. A part of recognise.py, which
calls it; it only reports, and what it reports is compared with the original before it is used."""

from __future__ import annotations

from torch import fx

from .graphs import bind, is_tensor, op_name, shape_of
from .indexing import is_cast
from .recognise import FLOATS, Found, Match, Miss, Norm


def find_norm(node: fx.Node, found: Found) -> None:
    """torch's own norms. Kernels are for contiguous rows of one dtype, as torch's result is."""
    a, op = bind(node), op_name(node)
    source, value = a["input"], a["input"].meta["val"]
    detail = Norm(source, tuple(a["normalized_shape"]), a["weight"], a.get("bias"), a["eps"], value.dtype)
    dtypes = {n.meta["val"].dtype for n in detail.tensors}
    reason = None
    if value.dtype not in FLOATS:
        reason = f"dtype {value.dtype} is not one that {op} has kernels for"
    elif len(dtypes) > 1:
        reason = f"its input is {value.dtype}, its weight or bias is not"
    elif not value.is_contiguous():
        reason = "its input is not contiguous"
    elif not value.numel():
        reason = "an empty tensor"
    if reason is None:
        found.matches.append(Match(op, node, (node,), detail))
    else:
        found.misses.append(Miss(op, node, reason))


def find_spelled_rms(root: fx.Node, found: Found) -> None:
    """x * rsqrt(mean(x^2) + eps) over the last dim, as Llama and its kin write it: x may be a cast of the input, the result
    cast back and multiplied with a weight. root: the (r)sqrt. What only resembles it is nobody's."""
    mean, eps = _plus_number(root.args[0])
    square = mean.args[0] if mean is not None and op_name(mean) == "mean" else None
    if square is None or eps is None or not is_tensor(square) or not _is_last_dim_kept(mean):
        return
    x = _squared(square)
    out = _scaled_by(x, root) if x is not None else None
    if x is None or out is None:
        return
    source = x.args[0] if is_cast(x) and is_tensor(x.args[0]) else x
    dtype, size = source.meta["val"].dtype, shape_of(source)[-1]
    core, weight = [square, mean, root, out], None
    if is_cast(_only_user(out)) and _only_user(out).meta["val"].dtype == dtype:
        out = _only_user(out)
        core.append(out)
    user = _only_user(out)
    if op_name(user) == "mul" and out.meta["val"].dtype == dtype:
        others = [a for a in user.args if a is not out]
        if len(others) == 1 and is_tensor(others[0]) and shape_of(others[0]) == (size,):
            if others[0].meta["val"].dtype == dtype:
                weight, out = others[0], user
                core.append(out)
    value = source.meta["val"]
    if out.meta["val"].dtype != dtype or dtype not in FLOATS or not value.is_contiguous() or not value.numel():
        return
    found.matches.append(Match("rms_norm", out, tuple(core), Norm(source, (size,), weight, None, eps, dtype)))


def _only_user(node: fx.Node) -> fx.Node:
    """The node itself where it has none, or several."""
    return next(iter(node.users)) if len(node.users) == 1 else node


def _plus_number(node: object) -> tuple[fx.Node | None, float | None]:
    """t and c of t + c."""
    if not isinstance(node, fx.Node) or op_name(node) != "add" or len(node.args) != 2 or node.kwargs.get("alpha", 1) != 1:
        return None, None
    t, c = node.args if isinstance(node.args[0], fx.Node) else node.args[::-1]
    if not isinstance(t, fx.Node) or not isinstance(c, (int, float)) or isinstance(c, bool) or len(node.users) != 1:
        return None, None
    return t, float(c)


def _is_last_dim_kept(mean: fx.Node) -> bool:
    a, rank = bind(mean), len(shape_of(mean))
    dims = a.get("dim")
    dims = list(dims) if isinstance(dims, (list, tuple)) else [dims]
    last = len(dims) == 1 and isinstance(dims[0], int) and dims[0] % rank == rank - 1 if rank else False
    return last and bool(a.get("keepdim")) and a.get("dtype") is None and len(mean.users) == 1


def _squared(node: fx.Node) -> fx.Node | None:
    """x of x^2 or x * x that nothing else uses."""
    if len(node.users) != 1:
        return None
    if op_name(node) == "pow" and node.args[1] in (2, 2.0):
        return node.args[0]
    if op_name(node) == "square":
        return node.args[0]
    return node.args[0] if op_name(node) == "mul" and node.args[0] is node.args[1] else None


def _scaled_by(x: fx.Node, root: fx.Node) -> fx.Node | None:
    """The product of x and an rsqrt, or the quotient of x and a sqrt, that alone uses root."""
    out = _only_user(root)
    if op_name(root) == "rsqrt" and op_name(out) == "mul" and set(out.args) == {x, root}:
        return out
    return out if op_name(root) == "sqrt" and op_name(out) == "div" and tuple(out.args) == (x, root) else None
