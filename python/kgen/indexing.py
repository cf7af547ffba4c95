"""Reads an aten graph backwards, one element at a time: what is node[i, j, ...] as a function of the indices?

Layout operations become index arithmetic, elementwise ones become expressions, and what can be neither (a bias
that layers compute) becomes a load from that node's value. Only values that do not depend on the score may
become loads; an operation on the score itself that has no expression raises NotSymbolic with its name.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import fx

from .contents import formula
from .graphs import bind, is_tensor, op_name, shape_of
from .symbolic import BOOL, F32, I32, Expr, Space, TensorRef, operands

Index = tuple[Expr, ...]

# Of operations followed from a score; what lies further up is a value like any other.
MAX_DEPTH = 48


class NotSymbolic(Exception):
    """A node has no expression; the message says which operation and why."""


def type_of(node: fx.Node) -> str:
    dtype = node.meta["val"].dtype
    if dtype == torch.bool:
        return BOOL
    if dtype.is_floating_point:
        return F32
    if dtype.is_complex:
        raise NotSymbolic(f"{node.name} is complex")
    return I32


# Layout: (space, node, bound arguments, index) -> (source node, its index)


def _linear(space: Space, index: Index, shape: tuple[int, ...]) -> Expr:
    total, stride = space.int(0), 1
    for i, size in zip(reversed(index), reversed(shape), strict=True):
        if size != 1:
            total = space.add(total, space.mul(i, space.int(stride)))
        stride *= size
    return total


def unflatten(space: Space, flat: Expr, shape: tuple[int, ...]) -> Index:
    """The index in a row-major shape of a flat position."""
    out: list[Expr] = []
    for i, size in enumerate(shape):
        inner = math.prod(shape[i + 1 :])
        if size == 1:
            out.append(space.int(0))
            continue
        high = space.floordiv(flat, space.int(inner))
        flat = space.rem(flat, space.int(inner))
        out.append(high)
    return tuple(out)


def _view(space: Space, node: fx.Node, a: dict[str, Any], index: Index) -> tuple[fx.Node, Index]:
    """Splits both shapes into the shortest runs of dims with equal products; each run is flat in itself."""
    source = node.args[0]
    before, after = shape_of(source), shape_of(node)
    if 0 in before:
        raise NotSymbolic("an empty tensor")
    own: list[Expr] = []
    i = j = 0
    while i < len(before) or j < len(after):
        i0, j0 = i, j
        left = before[i] if i < len(before) else 1
        right = after[j] if j < len(after) else 1
        i, j = min(i + 1, len(before)), min(j + 1, len(after))
        while left != right:
            if left < right:
                left, i = left * before[i], i + 1
            else:
                right, j = right * after[j], j + 1
        if before[i0:i] == after[j0:j]:
            own += index[j0:j]
        else:
            own += unflatten(space, _linear(space, index[j0:j], after[j0:j]), before[i0:i])
    return source, tuple(own)


def _expand(space: Space, node: fx.Node, a: dict[str, Any], index: Index) -> tuple[fx.Node, Index]:
    source = node.args[0]
    return source, broadcast(space, index, shape_of(source))


def broadcast(space: Space, index: Index, shape: tuple[int, ...]) -> Index:
    """The index of an operand of this shape within a broadcast result."""
    own = index[len(index) - len(shape) :]
    return tuple(space.int(0) if size == 1 else i for i, size in zip(own, shape, strict=True))


def _permute(space: Space, node: fx.Node, a: dict[str, Any], index: Index) -> tuple[fx.Node, Index]:
    n = len(index)
    dims = [d % n for d in a["dims"]]
    own: list[Expr] = [index[0]] * n
    for out_dim, in_dim in enumerate(dims):
        own[in_dim] = index[out_dim]
    return node.args[0], tuple(own)


def _transpose(space: Space, node: fx.Node, a: dict[str, Any], index: Index) -> tuple[fx.Node, Index]:
    own = list(index)
    n = len(index)
    if n > 1:
        d0, d1 = a.get("dim0", -2) % n, a.get("dim1", -1) % n
        own[d0], own[d1] = own[d1], own[d0]
    return node.args[0], tuple(own)


def _reverse(space: Space, node: fx.Node, a: dict[str, Any], index: Index) -> tuple[fx.Node, Index]:
    return node.args[0], tuple(reversed(index))


def _unsqueeze(space: Space, node: fx.Node, a: dict[str, Any], index: Index) -> tuple[fx.Node, Index]:
    d = a["dim"] % len(index)
    return node.args[0], index[:d] + index[d + 1 :]


def _squeeze(space: Space, node: fx.Node, a: dict[str, Any], index: Index) -> tuple[fx.Node, Index]:
    shape = shape_of(node.args[0])
    n = len(shape)
    if "dim" not in a:
        dims = set(range(n))
    else:
        given = a["dim"] if isinstance(a["dim"], (list, tuple)) else [a["dim"]]
        dims = {d % n for d in given} if n else set()
    rest = iter(index)
    own = [space.int(0) if d in dims and size == 1 else next(rest) for d, size in enumerate(shape)]
    return node.args[0], tuple(own)


def _select(space: Space, node: fx.Node, a: dict[str, Any], index: Index) -> tuple[fx.Node, Index]:
    shape = shape_of(node.args[0])
    d = a["dim"] % len(shape)
    return node.args[0], (*index[:d], space.int(a["index"] % shape[d]), *index[d:])


def _slice(space: Space, node: fx.Node, a: dict[str, Any], index: Index) -> tuple[fx.Node, Index]:
    shape = shape_of(node.args[0])
    d = a["dim"] % len(shape)
    start = a["start"] or 0
    start = min(max(start + shape[d] if start < 0 else start, 0), shape[d])
    own = space.add(space.mul(index[d], space.int(a["step"])), space.int(start))
    return node.args[0], (*index[:d], own, *index[d + 1 :])


def _narrow(space: Space, node: fx.Node, a: dict[str, Any], index: Index) -> tuple[fx.Node, Index]:
    shape = shape_of(node.args[0])
    d = a["dim"] % len(shape)
    own = space.add(index[d], space.int(int(a["start"]) % max(1, shape[d])))
    return node.args[0], (*index[:d], own, *index[d + 1 :])


def _flip(space: Space, node: fx.Node, a: dict[str, Any], index: Index) -> tuple[fx.Node, Index]:
    shape = shape_of(node)
    own = list(index)
    for d in a["dims"]:
        own[d] = space.sub(space.int(shape[d] - 1), own[d])
    return node.args[0], tuple(own)


def _repeat(space: Space, node: fx.Node, a: dict[str, Any], index: Index) -> tuple[fx.Node, Index]:
    shape = shape_of(node.args[0])
    own = index[len(index) - len(shape) :]
    return node.args[0], tuple(space.rem(i, space.int(max(1, s))) for i, s in zip(own, shape, strict=True))


def _repeat_interleave(space: Space, node: fx.Node, a: dict[str, Any], index: Index) -> tuple[fx.Node, Index]:
    if not isinstance(a["repeats"], int) or a["dim"] is None:
        raise NotSymbolic("repeat_interleave by a tensor")
    d = a["dim"] % len(index)
    own = space.floordiv(index[d], space.int(a["repeats"]))
    return node.args[0], (*index[:d], own, *index[d + 1 :])


def _item(space: Space, node: fx.Node, a: dict[str, Any], index: Index) -> tuple[fx.Node, Index]:
    """An item of split, chunk or unbind."""
    parts, which = node.args
    name, bound = op_name(parts), bind(parts)
    if name not in ("split", "split_with_sizes", "chunk", "unbind", "tensor_split"):
        raise NotSymbolic(f"an item of {name or parts.target}")
    source = parts.args[0]
    d = bound["dim"] % len(shape_of(source))
    if name == "unbind":
        return source, (*index[:d], space.int(which), *index[d:])
    offset = sum(int(v.shape[d]) for v in parts.meta["val"][:which])
    return source, (*index[:d], space.add(index[d], space.int(offset)), *index[d + 1 :])


def _same(space: Space, node: fx.Node, a: dict[str, Any], index: Index) -> tuple[fx.Node, Index]:
    return node.args[0], index


Layout = Callable[[Space, fx.Node, dict[str, Any], Index], tuple[fx.Node, Index]]
LAYOUT: dict[str, Layout] = {
    **dict.fromkeys(("view", "reshape", "_unsafe_view", "flatten", "unflatten", "view_as", "reshape_as"), _view),
    **dict.fromkeys(("expand", "expand_as", "broadcast_to"), _expand),
    "permute": _permute,
    **dict.fromkeys(("transpose", "t", "mT", "adjoint", "swapaxes", "swapdims"), _transpose),
    "numpy_T": _reverse,
    "unsqueeze": _unsqueeze,
    "squeeze": _squeeze,
    "select": _select,
    "slice": _slice,
    "narrow": _narrow,
    "flip": _flip,
    "repeat": _repeat,
    "repeat_interleave": _repeat_interleave,
    "getitem": _item,
    **dict.fromkeys(("clone", "contiguous", "detach", "alias", "lift_fresh_copy", "lift_fresh"), _same),
}


def is_cast(node: fx.Node) -> bool:
    return op_name(node) in ("to", "_to_copy", "type_as", "float", "half", "double", "bfloat16")


def is_inactive_dropout(node: fx.Node) -> bool:
    name = op_name(node)
    if name in ("dropout", "native_dropout"):
        a = bind(node)
        return not a["p"] or not a["train"]
    return False


def step(space: Space, node: fx.Node, index: Index) -> tuple[fx.Node, Index] | None:
    """One step back through a layout operation; None when node is none."""
    handler = LAYOUT.get(op_name(node))
    if handler is None:
        return None
    bound = {} if op_name(node) == "getitem" else bind(node)
    return handler(space, node, bound, index)


# Elements


class Elements:
    """Expressions of a graph's elements.

    dot is the node of the score; known gives the values of tensors that the model does not learn. Those whose
    values became part of an expression are in assumed afterwards.
    """

    def __init__(self, space: Space, dot: fx.Node | None, known: dict[fx.Node, torch.Tensor]):
        self.space, self.dot, self.known = space, dot, known
        self.assumed: set[fx.Node] = set()
        self.dot_index: Index | None = None
        self._memo: dict[tuple[fx.Node, Index], Expr] = {}
        self._depth = 0
        self._on_path = _dependents(dot) if dot is not None else set()

    def at(self, node: fx.Node, index: Index) -> Expr:
        key = (node, index)
        if key not in self._memo:
            self._depth += 1
            try:
                self._memo[key] = self._at(node, index)
            finally:
                self._depth -= 1
        return self._memo[key]

    def _at(self, node: fx.Node, index: Index) -> Expr:
        if node is self.dot:
            if self.dot_index not in (None, index):
                raise NotSymbolic("the scores are read at two places")
            self.dot_index = index
            return self.space.var("dot")
        if node in self._on_path:
            return self._element(node, index)
        if node in self.known:
            e = formula(self.space, self.known[node], index)
            if e is not None:
                self.assumed.add(node)
                return e
        if self._depth > MAX_DEPTH:
            return self.capture(node, index)
        try:
            e = self._element(node, index)
        except NotSymbolic:
            return self.capture(node, index)
        return self.capture(node, index) if _better_captured(e) else e

    def capture(self, node: fx.Node, index: Index) -> Expr:
        """A load of the node's own value; dims of size 1 are dropped."""
        type_of(node)
        shape = shape_of(node)
        dims = tuple(d for d, size in enumerate(shape) if size != 1)
        ref = TensorRef(node, dims, str(node.meta["val"].dtype).removeprefix("torch."))
        return self.space.load(ref, [index[d] for d in dims])

    def _element(self, node: fx.Node, index: Index) -> Expr:
        name = op_name(node)
        if not name:
            raise NotSymbolic(f"{node.target}")
        back = step(self.space, node, index)
        if back is not None:
            return self.at(*back)
        if is_inactive_dropout(node):
            return self.at(node.args[0], index)
        if is_cast(node):
            return self._cast(self.at(node.args[0], index), type_of(node))
        handler = _ELEMENTS.get(name)
        if handler is None:
            raise NotSymbolic(f"{name}")
        return handler(self, node, bind(node), index)

    def _cast(self, e: Expr, type_: str) -> Expr:
        if e.type == F32 and type_ == I32 and e.op not in ("cast", "const", "where"):
            # Rounding may differ by an ulp between libraries, which an int turns into a whole step.
            raise NotSymbolic("an index computed from floating point")
        return self.space.cast(e, type_)

    def value(self, x: Any, index: Index, type_: str) -> Expr:
        """A tensor operand (broadcast) or a number as an expression of one type."""
        if isinstance(x, fx.Node):
            if not is_tensor(x):
                raise NotSymbolic(f"{x.name}, a number that is known only when the model runs")
            e = self.at(x, broadcast(self.space, index, shape_of(x)))
            return self._cast(e, type_)
        if isinstance(x, (bool, int, float)):
            return self.space.cast(self.space.const(_number_type(x), x), type_)
        raise NotSymbolic(f"an operand {x!r}")


def _better_captured(e: Expr) -> bool:
    """Arithmetic on values that differ for each (q, kv) anyway, or on several tensors and no index, is better
    done once, by the graph.

    Masks stay: what they leave out is worth more than the arithmetic.
    """
    if e.op == "load":
        # A look-up through a reshape that mixes q and kv: the reshaped tensor is read in order.
        return any(_mixes(i) for i in e.args[1:])
    if e.type != F32 or e.op in ("const", "var") or not e.loads:
        return False
    stack, seen, wide, direct = [e], set(), False, False
    read: set[TensorRef] = set()
    while stack:
        x = stack.pop()
        if x in seen:
            continue
        seen.add(x)
        if x.op == "where" and any(p.op == "const" and p.args[0] <= -1e4 for p in x.args[1:]):
            return False
        if x.op == "load":
            wide |= {"q", "kv"} <= x.free
            read.add(x.args[0])
        else:
            direct |= x.op in ("var", "lin")
            stack.extend(operands(x))
    return wide or (len(read) > 1 and not direct)


def _mixes(e: Expr) -> bool:
    if {"q", "kv"} <= e.free:
        if e.op in ("floordiv", "rem", "truncdiv"):
            return True
        if e.op == "lin" and any(abs(c) > 1 and a.op == "var" and a.args[0] in ("q", "kv") for c, a in e.args[1]):
            return True
    return e.op != "load" and any(_mixes(p) for p in operands(e))


def _number_type(x: bool | int | float) -> str:
    return BOOL if isinstance(x, bool) else I32 if isinstance(x, int) else F32


def _dependents(node: fx.Node) -> set[fx.Node]:
    seen, stack = {node}, [node]
    while stack:
        for user in stack.pop().users:
            if user not in seen:
                seen.add(user)
                stack.append(user)
    return seen


def _common(*operands: Any) -> str:
    order = (BOOL, I32, F32)
    types = [type_of(x) if isinstance(x, fx.Node) else _number_type(x) for x in operands]
    return max(types, key=order.index)


Handler = Callable[[Elements, fx.Node, dict[str, Any], Index], Expr]
_ELEMENTS: dict[str, Handler] = {}


def element(*names: str) -> Callable[[Handler], Handler]:
    def register(f: Handler) -> Handler:
        for name in names:
            _ELEMENTS[name] = f
        return f

    return register


@element("add", "sub", "rsub")
def _add(ev: Elements, node: fx.Node, a: dict[str, Any], index: Index) -> Expr:
    type_ = type_of(node)
    x = ev.value(a["self"], index, type_)
    y = ev.value(a["other"], index, type_)
    if type_ == BOOL:
        return ev.space.or_(x, y)
    name = op_name(node)
    if name == "rsub":
        x, y = y, x
    alpha = a.get("alpha", 1)
    if alpha != 1:
        if name == "rsub":
            x = ev.space.mul(x, ev.space.const(type_, alpha))
        else:
            y = ev.space.mul(y, ev.space.const(type_, alpha))
    return ev.space.add(x, y) if name == "add" else ev.space.sub(x, y)


@element("mul", "multiply")
def _mul(ev: Elements, node: fx.Node, a: dict[str, Any], index: Index) -> Expr:
    type_ = type_of(node)
    x, y = ev.value(a["self"], index, type_), ev.value(a["other"], index, type_)
    return ev.space.and_(x, y) if type_ == BOOL else ev.space.mul(x, y)


@element("div", "divide", "true_divide", "floor_divide")
def _div(ev: Elements, node: fx.Node, a: dict[str, Any], index: Index) -> Expr:
    type_ = type_of(node)
    x, y = ev.value(a["self"], index, type_), ev.value(a["other"], index, type_)
    mode = "floor" if op_name(node) == "floor_divide" else a.get("rounding_mode")
    if mode == "floor":
        return ev.space.floordiv(x, y)
    if mode == "trunc":
        if type_ != I32:
            raise NotSymbolic("truncating division of floats")
        return ev.space.truncdiv(x, y)
    return ev.space.div(x, y)


@element("remainder")
def _remainder(ev: Elements, node: fx.Node, a: dict[str, Any], index: Index) -> Expr:
    type_ = type_of(node)
    return ev.space.rem(ev.value(a["self"], index, type_), ev.value(a["other"], index, type_))


_BINARY = {
    "minimum": "min", "maximum": "max", "bitwise_left_shift": "shl", "__lshift__": "shl",
    "bitwise_right_shift": "shr", "__rshift__": "shr",
}  # fmt: skip


@element(*_BINARY)
def _binary(ev: Elements, node: fx.Node, a: dict[str, Any], index: Index) -> Expr:
    type_ = type_of(node)
    op = _BINARY[op_name(node)]
    return ev.space.binary(op, ev.value(a["self"], index, type_), ev.value(a["other"], index, type_))


@element("min", "max")
def _min_max(ev: Elements, node: fx.Node, a: dict[str, Any], index: Index) -> Expr:
    if "other" not in a:
        raise NotSymbolic(f"{op_name(node)} as a reduction")
    type_ = type_of(node)
    return ev.space.binary(op_name(node), ev.value(a["self"], index, type_), ev.value(a["other"], index, type_))


@element("clamp", "clip", "clamp_min", "clamp_max", "relu")
def _clamp(ev: Elements, node: fx.Node, a: dict[str, Any], index: Index) -> Expr:
    type_ = type_of(node)
    e = ev.value(a["self"], index, type_)
    low, high = (0, None) if op_name(node) == "relu" else (a.get("min"), a.get("max"))
    if low is not None:
        e = ev.space.binary("max", e, ev.value(low, index, type_))
    if high is not None:
        e = ev.space.binary("min", e, ev.value(high, index, type_))
    return e


@element("pow", "float_power")
def _pow(ev: Elements, node: fx.Node, a: dict[str, Any], index: Index) -> Expr:
    if type_of(node) != F32:
        raise NotSymbolic("pow of integers")
    base, exponent = a["self"], a["exponent"]
    if isinstance(exponent, (int, float)) and exponent in (2, 3, 0.5):
        x = ev.value(base, index, F32)
        if exponent == 0.5:
            return ev.space.unary("sqrt", x)
        square = ev.space.mul(x, x)
        return square if exponent == 2 else ev.space.mul(square, x)
    return ev.space.binary("pow", ev.value(base, index, F32), ev.value(exponent, index, F32))


_SIMPLE = {"tanh", "exp", "exp2", "log", "log2", "sqrt", "rsqrt", "sin", "cos", "sigmoid", "floor", "ceil"}


@element(*_SIMPLE, "neg", "negative", "abs", "absolute")
def _unary(ev: Elements, node: fx.Node, a: dict[str, Any], index: Index) -> Expr:
    type_ = type_of(node)
    name = {"negative": "neg", "absolute": "abs"}.get(op_name(node), op_name(node))
    if type_ == I32 and name in ("floor", "ceil"):
        return ev.value(a["self"], index, I32)
    x = ev.value(a["self"], index, type_)
    return ev.space.neg(x) if name == "neg" else ev.space.unary(name, x)


@element("square")
def _square(ev: Elements, node: fx.Node, a: dict[str, Any], index: Index) -> Expr:
    x = ev.value(a["self"], index, type_of(node))
    return ev.space.mul(x, x)


@element("reciprocal")
def _reciprocal(ev: Elements, node: fx.Node, a: dict[str, Any], index: Index) -> Expr:
    return ev.space.div(ev.space.float(1.0), ev.value(a["self"], index, F32))


@element("log1p", "expm1")
def _near_one(ev: Elements, node: fx.Node, a: dict[str, Any], index: Index) -> Expr:
    raise NotSymbolic(f"{op_name(node)}, which loses digits when it is spelled with log or exp")


@element("sign", "sgn")
def _sign(ev: Elements, node: fx.Node, a: dict[str, Any], index: Index) -> Expr:
    type_ = type_of(node)
    x, zero = ev.value(a["self"], index, type_), ev.space.const(type_, 0)
    negative = ev.space.where(ev.space.compare("lt", x, zero), ev.space.const(type_, -1), zero)
    return ev.space.where(ev.space.compare("gt", x, zero), ev.space.const(type_, 1), negative)


_COMPARISONS = {
    "eq": "eq", "ne": "ne", "not_equal": "ne", "lt": "lt", "less": "lt", "le": "le", "less_equal": "le",
    "gt": "gt", "greater": "gt", "ge": "ge", "greater_equal": "ge",
}  # fmt: skip


@element(*_COMPARISONS)
def _compare(ev: Elements, node: fx.Node, a: dict[str, Any], index: Index) -> Expr:
    op = _COMPARISONS[op_name(node)]
    type_ = _common(a["self"], a["other"])
    if type_ == BOOL and op not in ("eq", "ne"):
        type_ = I32
    return ev.space.compare(op, ev.value(a["self"], index, type_), ev.value(a["other"], index, type_))


@element("logical_and", "logical_or", "logical_xor", "bitwise_and", "bitwise_or", "bitwise_xor",
         "__and__", "__or__", "__xor__")  # fmt: skip
def _logic(ev: Elements, node: fx.Node, a: dict[str, Any], index: Index) -> Expr:
    type_ = type_of(node)
    x, y = ev.value(a["self"], index, type_), ev.value(a["other"], index, type_)
    op = op_name(node).strip("_").split("_")[-1]
    return {"and": ev.space.and_, "or": ev.space.or_, "xor": ev.space.xor}[op](x, y)


@element("logical_not", "bitwise_not")
def _not(ev: Elements, node: fx.Node, a: dict[str, Any], index: Index) -> Expr:
    return ev.space.not_(ev.value(a["self"], index, type_of(node)))


@element("isinf", "isnan", "isneginf")
def _special(ev: Elements, node: fx.Node, a: dict[str, Any], index: Index) -> Expr:
    x = ev.value(a["self"], index, F32)
    if op_name(node) == "isnan":
        return ev.space.compare("ne", x, x)
    if op_name(node) == "isneginf":
        return ev.space.compare("eq", x, ev.space.float(-math.inf))
    return ev.space.compare("eq", ev.space.unary("abs", x), ev.space.float(math.inf))


@element("where")
def _where(ev: Elements, node: fx.Node, a: dict[str, Any], index: Index) -> Expr:
    if a.get("self") is None:
        raise NotSymbolic("where with one argument")
    type_ = type_of(node)
    c = ev.value(a["condition"], index, BOOL)
    return ev.space.where(c, ev.value(a["self"], index, type_), ev.value(a["other"], index, type_))


@element("masked_fill")
def _masked_fill(ev: Elements, node: fx.Node, a: dict[str, Any], index: Index) -> Expr:
    type_ = type_of(node)
    c = ev.value(a["mask"], index, BOOL)
    return ev.space.where(c, ev.value(a["value"], index, type_), ev.value(a["self"], index, type_))


@element("tril", "triu")
def _triangle(ev: Elements, node: fx.Node, a: dict[str, Any], index: Index) -> Expr:
    type_ = type_of(node)
    row, column = index[-2:]
    edge = ev.space.add(row, ev.space.int(a["diagonal"]))
    kept = ev.space.compare("le" if op_name(node) == "tril" else "ge", column, edge)
    return ev.space.where(kept, ev.value(a["self"], index, type_), ev.space.const(type_, 0))


@element("full", "ones", "zeros", "full_like", "ones_like", "zeros_like", "new_full", "new_ones", "new_zeros",
         "fill", "scalar_tensor")  # fmt: skip
def _constant(ev: Elements, node: fx.Node, a: dict[str, Any], index: Index) -> Expr:
    name = op_name(node)
    if "ones" in name:
        value: Any = 1
    elif "zeros" in name:
        value = 0
    else:
        value = a[next(k for k in ("fill_value", "value", "s") if k in a)]
    return ev.value(value, index, type_of(node))


@element("arange")
def _arange(ev: Elements, node: fx.Node, a: dict[str, Any], index: Index) -> Expr:
    start, stride = a.get("start", 0), a.get("step", 1)
    if not isinstance(start, int) or not isinstance(stride, int):
        raise NotSymbolic("arange with fractions")
    e = ev.space.add(ev.space.mul(index[0], ev.space.int(stride)), ev.space.int(start))
    return ev.space.cast(e, type_of(node))


@element("cumsum")
def _cumsum(ev: Elements, node: fx.Node, a: dict[str, Any], index: Index) -> Expr:
    """The running sum of a constant along a dim, which is how position ids are sometimes spelled."""
    d = a["dim"] % len(index)
    e = ev.at(a["self"], index)
    if e.op != "const":
        raise NotSymbolic("cumsum")
    count = ev.space.add(index[d], ev.space.int(1))
    type_ = type_of(node)
    return ev.space.mul(ev.space.cast(count, type_), ev.space.cast(e, type_))


def _check_index(e: Expr) -> Expr:
    """A look-up whose index is itself looked up for each (q, kv) is better made once, by the graph."""
    if e.loads and {"q", "kv"} <= e.free:
        raise NotSymbolic("a look-up by a table of indices")
    return e


@element("embedding")
def _embedding(ev: Elements, node: fx.Node, a: dict[str, Any], index: Index) -> Expr:
    row = _check_index(ev.value(a["indices"], index[:-1], I32))
    return ev.at(a["weight"], (row, index[-1]))


@element("index")
def _index(ev: Elements, node: fx.Node, a: dict[str, Any], index: Index) -> Expr:
    source, given = a["self"], list(a["indices"])
    given += [None] * (len(shape_of(source)) - len(given))
    used = [i for i, g in enumerate(given) if g is not None]
    if any(type_of(given[i]) != I32 for i in used):
        raise NotSymbolic("an index by a mask")
    rank = max(len(shape_of(given[i])) for i in used)
    together = used == list(range(used[0], used[-1] + 1))
    first = used[0] if together else 0
    common, rest = index[first : first + rank], iter(index[:first] + index[first + rank :])
    own = []
    for size, g in zip(shape_of(source), given, strict=True):
        if g is None:
            own.append(next(rest))
        else:
            own.append(_wrap(ev, _check_index(ev.value(g, common, I32)), size))
    return ev.at(source, tuple(own))


def _wrap(ev: Elements, e: Expr, size: int) -> Expr:
    """torch counts a negative index from the end; so does a load, but not the arithmetic of a view."""
    if e.lo is not None and e.lo >= 0:
        return e
    if e.hi is not None and e.hi < 0:
        return ev.space.add(e, ev.space.int(size))
    if e.lo is None:
        return e
    negative = ev.space.compare("lt", e, ev.space.int(0))
    return ev.space.where(negative, ev.space.add(e, ev.space.int(size)), e)


@element("index_select")
def _index_select(ev: Elements, node: fx.Node, a: dict[str, Any], index: Index) -> Expr:
    d = a["dim"] % len(index)
    row = _check_index(ev.value(a["index"], (index[d],), I32))
    return ev.at(a["self"], (*index[:d], row, *index[d + 1 :]))


@element("gather", "take_along_dim")
def _gather(ev: Elements, node: fx.Node, a: dict[str, Any], index: Index) -> Expr:
    if a["dim"] is None:
        raise NotSymbolic("take_along_dim without a dim")
    d = a["dim"] % len(index)
    row = _check_index(ev.at(a["index" if "index" in a else "indices"], index))
    return ev.at(a["self"], (*index[:d], row, *index[d + 1 :]))
