"""Stand-ins for the 0-d tensors that a score_mod or mask_mod is called with: what is done with them is recorded.

A Proxy stands for a value of a Program, a Table for a captured tensor some of whose dims are indexed. They know
torch's operators, functions, methods and promotion as far as a Program can say them, and raise TraceError, which
names the operation and what is possible, for the rest. The code is plain on purpose: torch.compile runs through
it when kgen.attention is called in a compiled function.
"""

from __future__ import annotations

import functools
import linecache
import os
import sys
from typing import Any, Callable, NoReturn

import torch
from torch.fx.experimental.symbolic_shapes import guard_scalar, statically_known_true

from .errors import BadInput
from .program import BOOL, F32, I32, LOAD_TYPE, MAX_RANK, dtype_name, literal


class TraceError(BadInput, TypeError):
    """A score_mod or mask_mod does what no Program can say; the message names the operation and the line."""


_OWN = (os.path.dirname(os.path.abspath(__file__)), os.path.dirname(os.path.abspath(torch.__file__)))


def where_in_source() -> str:
    """The innermost line that is the user's own, as " (file.py:12: `code`)"; empty when there is none."""
    frame = sys._getframe(1)
    while frame is not None:
        name = frame.f_code.co_filename
        if not name.startswith(_OWN) and not name.startswith("<frozen"):
            code = linecache.getline(name, frame.f_lineno).strip()
            return f" ({os.path.basename(name)}:{frame.f_lineno}" + (f": `{code}`)" if code else ")")
        frame = frame.f_back
    return ""


def fail(what: str, instead: str) -> NoReturn:
    place = "" if torch.compiler.is_dynamo_compiling() else where_in_source()
    raise TraceError(f"cannot trace {what}{place}; {instead}")


class Recorder:
    """One section's instructions as they come; tensors and scalars are shared by the sections of a Program."""

    def __init__(self, tensors: list[torch.Tensor], scalars: list[tuple[Any, str]], device: torch.device) -> None:
        self.raw: list[tuple[str, ...]] = []
        self.device = device
        self.tensors = tensors
        self.scalars = scalars

    def emit(self, op: str, kind: str, *tokens: str) -> Proxy:
        self.raw.append((op, kind) + tokens)
        return Proxy(self, f"%{len(self.raw) - 1}", kind)

    def tensor(self, t: torch.Tensor) -> str:
        for i, known in enumerate(self.tensors):
            if known is t:
                return f"t{i}"
        if t.dtype not in LOAD_TYPE:
            fail(f"a look-up into a {dtype_name(t.dtype)} tensor", "tables are of float, int or bool dtypes")
        if t.dim() > MAX_RANK:
            fail(f"a look-up into a tensor of {t.dim()} dims", f"tables have at most {MAX_RANK}")
        self.tensors.append(t)
        return f"t{len(self.tensors) - 1}"

    def element(self, t: torch.Tensor) -> Proxy:
        """The element of a tensor with dims that goes with the one at hand."""
        fail(f"arithmetic with a tensor of shape {tuple(t.shape)}",
             "a captured tensor is looked up element by element: t[h], t[b, q_idx]")

    def lift(self, number: Any, kind: str) -> str:
        for i, (known, known_kind) in enumerate(self.scalars):
            if known.name == number.name and known_kind == kind:
                return f"s{i}"
        self.scalars.append((number, kind))
        return f"s{len(self.scalars) - 1}"


_TORCH_TYPE = {F32: torch.float32, I32: torch.int32, BOOL: torch.bool}
_RANK = {BOOL: 0, I32: 1, F32: 2}


class Proxy:
    """A value of a Program: token in the text of its section, and its type."""

    __array_ufunc__ = None

    def __init__(self, rec: Recorder, token: str, kind: str) -> None:
        self.rec = rec
        self.token = token
        self.kind = kind

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        return call_torch(func, args, kwargs or {})

    @property
    def dtype(self) -> torch.dtype:
        return _TORCH_TYPE[self.kind]

    @property
    def shape(self) -> torch.Size:
        return torch.Size(())

    @property
    def device(self) -> torch.device:
        return self.rec.device

    ndim = 0
    requires_grad = False

    def __getattr__(self, name: str) -> Any:
        function = FUNCTIONS.get(name)
        if function is not None:
            return functools.partial(function, self.rec, self)
        if name.startswith("__"):
            raise AttributeError(name)
        if name.endswith("_"):
            return fail(f"the in-place method .{name}()", "values cannot be written: use the result of an expression")
        return fail(f"the method .{name}()", POSSIBLE)

    def __add__(self, other: Any) -> Any: return add(self.rec, self, other)
    def __radd__(self, other: Any) -> Any: return add(self.rec, other, self)
    def __sub__(self, other: Any) -> Any: return sub(self.rec, self, other)
    def __rsub__(self, other: Any) -> Any: return sub(self.rec, other, self)
    def __mul__(self, other: Any) -> Any: return mul(self.rec, self, other)
    def __rmul__(self, other: Any) -> Any: return mul(self.rec, other, self)
    def __truediv__(self, other: Any) -> Any: return div(self.rec, self, other)
    def __rtruediv__(self, other: Any) -> Any: return div(self.rec, other, self)
    def __floordiv__(self, other: Any) -> Any: return floor_divide(self.rec, self, other)
    def __rfloordiv__(self, other: Any) -> Any: return floor_divide(self.rec, other, self)
    def __mod__(self, other: Any) -> Any: return remainder(self.rec, self, other)
    def __rmod__(self, other: Any) -> Any: return remainder(self.rec, other, self)
    def __pow__(self, other: Any) -> Any: return power(self.rec, self, other)
    def __rpow__(self, other: Any) -> Any: return power(self.rec, other, self)
    def __and__(self, other: Any) -> Any: return bitwise(self.rec, "and", self, other)
    def __rand__(self, other: Any) -> Any: return bitwise(self.rec, "and", other, self)
    def __or__(self, other: Any) -> Any: return bitwise(self.rec, "or", self, other)
    def __ror__(self, other: Any) -> Any: return bitwise(self.rec, "or", other, self)
    def __xor__(self, other: Any) -> Any: return bitwise(self.rec, "xor", self, other)
    def __rxor__(self, other: Any) -> Any: return bitwise(self.rec, "xor", other, self)
    def __lshift__(self, other: Any) -> Any: return shift(self.rec, "shl", self, other)
    def __rlshift__(self, other: Any) -> Any: return shift(self.rec, "shl", other, self)
    def __rshift__(self, other: Any) -> Any: return shift(self.rec, "shr", self, other)
    def __rrshift__(self, other: Any) -> Any: return shift(self.rec, "shr", other, self)
    def __lt__(self, other: Any) -> Any: return compare(self.rec, "lt", self, other)
    def __le__(self, other: Any) -> Any: return compare(self.rec, "le", self, other)
    def __gt__(self, other: Any) -> Any: return compare(self.rec, "gt", self, other)
    def __ge__(self, other: Any) -> Any: return compare(self.rec, "ge", self, other)
    def __eq__(self, other: Any) -> Any: return compare(self.rec, "eq", self, other)
    def __ne__(self, other: Any) -> Any: return compare(self.rec, "ne", self, other)
    def __neg__(self) -> Any: return negative(self.rec, self)
    def __pos__(self) -> Any: return self
    def __abs__(self) -> Any: return absolute(self.rec, self)
    def __invert__(self) -> Any: return invert(self.rec, self)

    __hash__ = object.__hash__

    def __bool__(self) -> bool:
        fail("a Python branch (if, and, or, not, while, min, max, a chained comparison) on a traced value",
             "use torch.where, &, |, ~, torch.minimum or torch.maximum")

    def __float__(self) -> float:
        fail("a conversion of a traced value to a Python number (float(), math.*)", "use torch.exp and its kin")

    __int__ = __index__ = __complex__ = __round__ = __float__  # type: ignore[assignment]

    def item(self) -> NoReturn:
        fail(".item() of a traced value", "values are known only when the Kernel runs")

    tolist = numpy = item

    def __len__(self) -> int:
        fail("len() of a traced value", "it is a 0-d tensor")

    def __iter__(self) -> Any:
        fail("iteration over a traced value", "it is a 0-d tensor")

    def __getitem__(self, index: Any) -> Any:
        fail("indexing of a traced value", "it is a 0-d tensor; only captured tensors are indexed")

    def __setitem__(self, index: Any, value: Any) -> None:
        fail("a write into a traced value", "values cannot be written: use torch.where")


class Table:
    """A captured tensor; index has a token for each dim that is fixed, None for those that are not yet."""

    def __init__(self, rec: Recorder, tensor: torch.Tensor, index: list[str | None]) -> None:
        self.rec = rec
        self.tensor = tensor
        self.index = index

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        return call_torch(func, args, kwargs or {})

    @property
    def dtype(self) -> torch.dtype:
        return self.tensor.dtype

    @property
    def device(self) -> torch.device:
        return self.tensor.device

    def __getitem__(self, index: Any) -> Any:
        return look_up(self.rec, self, index)

    def __setitem__(self, index: Any, value: Any) -> None:
        fail("a write into a captured tensor", "score_mod and mask_mod must have no side effects")

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return self.refuse(f"the method .{name}()")

    def refuse(self, what: str) -> NoReturn:
        left = len([i for i in self.index if i is None])
        fail(f"{what} on a captured tensor with {left} of {len(self.index)} dims not yet indexed",
             "index every dim, so that one element is left")


POSSIBLE = ("what a Program can say: + - * / // % **, comparisons, & | ^ ~ << >>, torch.where, minimum, maximum, clamp, "
            "abs, exp, exp2, log, log2, tanh, erf, sigmoid, sqrt, rsqrt, sin, cos, floor, ceil, pow, .to(dtype), and "
            "look-ups t[i, j] into captured tensors")


# ---- operands ----


def is_lifted(x: Any) -> bool:
    """A number that the trace read (trace.Number), which poses as its value's class. Dynamo meets none."""
    return not torch.compiler.is_dynamo_compiling() and hasattr(x, "kgen_number")


def is_number(x: Any) -> bool:
    return isinstance(x, (bool, int, float))


def _same_always(x: Any) -> bool:
    """Whether Dynamo holds x for a constant, judged by what it knows without its hints."""
    if isinstance(x, float):
        return statically_known_true(x < 0) or statically_known_true(x >= 0) or statically_known_true(x != x)
    return statically_known_true(x % 2 == 0) or statically_known_true(x % 2 == 1)


@torch.compiler.assume_constant_result
def _literal(x: Any, kind: str) -> str:
    return literal(x, kind)


def compiled_token(rec: Recorder, x: Any, kind: str) -> str:
    """Under Dynamo: a number is a constant; a symbolic one becomes a 0-d tensor that the Program looks up."""
    if isinstance(x, bool) or _same_always(x):
        return _literal(guard_scalar(x), kind)
    t = torch.full((), x, dtype=_TORCH_TYPE[kind], device=rec.device)
    return rec.emit("load", kind, rec.tensor(t)).token


def kind_of(x: Any) -> str:
    if isinstance(x, Proxy):
        return x.kind
    if isinstance(x, bool):
        return BOOL
    if isinstance(x, int):
        return I32
    return F32


def value_of(rec: Recorder, x: Any) -> Any:
    """x as a Proxy or a number."""
    if isinstance(x, Proxy) or is_number(x):
        return x
    if isinstance(x, Table):
        x.refuse("arithmetic")
    if isinstance(x, torch.Tensor):
        if x.dim() != 0:
            return rec.element(x)
        token = rec.tensor(x)
        return rec.emit("load", LOAD_TYPE[x.dtype], token)
    if hasattr(x, "item") and hasattr(x, "dtype"):
        return x.item()
    return fail(f"an operand of type {type(x).__name__}", "operands are traced values, numbers and captured tensors")


def token_of(rec: Recorder, x: Any, kind: str) -> str:
    """The token of a Proxy or number, as a value of this kind."""
    if isinstance(x, Proxy):
        return x.token if x.kind == kind else rec.emit("cast", kind, x.token).token
    if torch.compiler.is_dynamo_compiling():
        return compiled_token(rec, x, kind)
    return rec.lift(x, kind) if hasattr(x, "kgen_number") else literal(x, kind)


def common(rec: Recorder, a: Any, b: Any, least: str = BOOL) -> tuple[Any, Any, str]:
    """Both operands and the type that torch promotes them to."""
    a, b = value_of(rec, a), value_of(rec, b)
    kind = least
    for x in (a, b):
        if _RANK[kind_of(x)] > _RANK[kind]:
            kind = kind_of(x)
    return a, b, kind


def binary(rec: Recorder, op: str, a: Any, b: Any, least: str = BOOL) -> Proxy:
    a, b, kind = common(rec, a, b, least)
    return rec.emit(op, kind, token_of(rec, a, kind), token_of(rec, b, kind))


# ---- operations ----


def scaled(rec: Recorder, other: Any, alpha: Any) -> Any:
    return other if isinstance(alpha, int) and alpha == 1 else mul(rec, other, alpha)


def add(rec: Recorder, input: Any, other: Any, *, alpha: Any = 1) -> Proxy:
    a, b, kind = common(rec, input, scaled(rec, other, alpha))
    return binary(rec, "or" if kind == BOOL else "add", a, b)


def sub(rec: Recorder, input: Any, other: Any, *, alpha: Any = 1) -> Proxy:
    a, b, kind = common(rec, input, scaled(rec, other, alpha))
    if kind == BOOL:
        fail("a difference of bools", "use ^ or torch.logical_xor")
    return binary(rec, "sub", a, b)


def rsub(rec: Recorder, input: Any, other: Any, *, alpha: Any = 1) -> Proxy:
    return sub(rec, other, input, alpha=alpha)


def mul(rec: Recorder, input: Any, other: Any) -> Proxy:
    a, b, kind = common(rec, input, other)
    return binary(rec, "and" if kind == BOOL else "mul", a, b)


def div(rec: Recorder, input: Any, other: Any, *, rounding_mode: str | None = None) -> Proxy:
    if rounding_mode is None:
        return binary(rec, "div", input, other, F32)
    if rounding_mode == "floor":
        return floor_divide(rec, input, other)
    if rounding_mode != "trunc":
        fail(f"rounding_mode={rounding_mode!r}", "it is None, 'floor' or 'trunc'")
    a, b, kind = common(rec, input, other, I32)
    return binary(rec, "truncdiv", a, b) if kind == I32 else trunc(rec, binary(rec, "div", a, b, F32))


def floor_divide(rec: Recorder, input: Any, other: Any) -> Proxy:
    return binary(rec, "floordiv", input, other, I32)


def remainder(rec: Recorder, input: Any, other: Any) -> Proxy:
    return binary(rec, "rem", input, other, I32)


def fmod(rec: Recorder, input: Any, other: Any) -> Proxy:
    """The remainder with the sign of the dividend."""
    a, b, kind = common(rec, input, other, I32)
    zero: Any = 0 if kind == I32 else 0.0
    r = remainder(rec, a, b)
    wrong = bitwise(rec, "and", compare(rec, "ne", r, zero),
                    bitwise(rec, "xor", compare(rec, "lt", a, zero), compare(rec, "lt", b, zero)))
    return where(rec, wrong, sub(rec, r, b), r)


def concrete(x: Any) -> Any:
    """A number without its being lifted."""
    return x.concrete() if is_lifted(x) else x


def power(rec: Recorder, input: Any, exponent: Any) -> Any:
    a, b = value_of(rec, input), value_of(rec, exponent)
    if not isinstance(b, Proxy):
        return power_by_number(rec, a, concrete(b))
    kind = common(rec, a, b)[2]
    if kind != F32:
        fail("an integer to the power of a traced value", "convert one of them with .float()")
    if not isinstance(a, Proxy) and concrete(a) == 2:
        return rec.emit("exp2", F32, token_of(rec, b, F32))
    return binary(rec, "pow", a, b, F32)


def power_by_number(rec: Recorder, a: Any, n: float) -> Any:
    kind = kind_of(a)
    if kind == F32 or isinstance(n, float):
        a = to_kind(rec, a, F32)
        if n in (0.5, -0.5, -1, -2):
            if n == 0.5 or n == -0.5:
                return rec.emit("sqrt" if n > 0 else "rsqrt", F32, a.token)
            return div(rec, 1.0, a if n == -1 else mul(rec, a, a))
        if n not in (1, 2, 3):
            return binary(rec, "pow", a, float(n), F32)
    if n < 0 or n > 16:
        fail(f"an integer to the power {n}", "exponents of integers are 0 to 16; convert with .float()")
    result: Any = 1
    for i in range(int(n)):
        result = a if i == 0 else mul(rec, result, a)
    return result if n > 0 else to_kind(rec, 1, kind)


def bitwise(rec: Recorder, op: str, input: Any, other: Any) -> Proxy:
    a, b, kind = common(rec, input, other)
    if kind == F32:
        fail(f"'{op}' of floats", "& | ^ take bools and integers; compare first")
    return binary(rec, op, a, b)


def shift(rec: Recorder, op: str, input: Any, other: Any) -> Proxy:
    a, b, kind = common(rec, input, other, I32)
    if kind == F32:
        fail("a shift of floats", "<< and >> take integers")
    return binary(rec, op, a, b, I32)


def compare(rec: Recorder, op: str, input: Any, other: Any) -> Proxy:
    a, b, kind = common(rec, input, other)
    if kind == BOOL and op not in ("eq", "ne"):
        kind = I32
    return rec.emit(op, BOOL, token_of(rec, a, kind), token_of(rec, b, kind))


def logical(rec: Recorder, op: str, input: Any, other: Any) -> Proxy:
    return rec.emit(op, BOOL, to_kind(rec, input, BOOL).token, to_kind(rec, other, BOOL).token)


def logical_not(rec: Recorder, input: Any) -> Proxy:
    return rec.emit("not", BOOL, to_kind(rec, input, BOOL).token)


def negative(rec: Recorder, input: Any) -> Proxy:
    if kind_of(value_of(rec, input)) == BOOL:
        fail("the negative of a bool", "use ~ or torch.logical_not")
    x = to_kind(rec, input, None)
    return rec.emit("neg", x.kind, x.token)


def absolute(rec: Recorder, input: Any) -> Proxy:
    x = to_kind(rec, input, None)
    return x if x.kind == BOOL else rec.emit("abs", x.kind, x.token)


def invert(rec: Recorder, input: Any) -> Proxy:
    x = to_kind(rec, input, None)
    if x.kind == F32:
        fail("~ of a float", "compare first")
    return rec.emit("not", x.kind, x.token)


def to_kind(rec: Recorder, x: Any, kind: str | None) -> Proxy:
    """x as a Proxy of this kind (None: its own), cast as torch does: floats truncate, not zero is true."""
    x = value_of(rec, x)
    if not isinstance(x, Proxy):
        kind = kind or kind_of(x)
        if kind == F32 or kind == kind_of(x):
            return Proxy(rec, token_of(rec, x, kind), kind)
        return to_kind(rec, Proxy(rec, token_of(rec, x, kind_of(x)), kind_of(x)), kind)
    return x if kind is None or x.kind == kind else rec.emit("cast", kind, x.token)


def unary(op: str) -> Callable[..., Proxy]:
    def apply(rec: Recorder, input: Any) -> Proxy:
        return rec.emit(op, F32, to_kind(rec, input, F32).token)
    return apply


def rounding(op: str) -> Callable[..., Proxy]:
    def apply(rec: Recorder, input: Any) -> Proxy:
        x = to_kind(rec, input, None)
        return rec.emit(op, F32, x.token) if x.kind == F32 else x
    return apply


def trunc(rec: Recorder, input: Any) -> Proxy:
    x = to_kind(rec, input, None)
    if x.kind != F32:
        return x
    return where(rec, compare(rec, "lt", x, 0.0), rec.emit("ceil", F32, x.token), rec.emit("floor", F32, x.token))


def where(rec: Recorder, condition: Any, input: Any = None, other: Any = None) -> Proxy:
    if input is None or other is None:
        fail("torch.where with one argument", "give both branches: torch.where(condition, a, b)")
    c = value_of(rec, condition)
    if kind_of(c) != BOOL:
        fail("torch.where on a condition that is no bool", "compare first")
    a, b, kind = common(rec, input, other)
    return rec.emit("where", kind, token_of(rec, c, BOOL), token_of(rec, a, kind), token_of(rec, b, kind))


def masked_fill(rec: Recorder, input: Any, mask: Any, value: Any) -> Proxy:
    x = to_kind(rec, input, None)
    return where(rec, mask, to_kind(rec, value, x.kind), x)


def extreme(op: str) -> Callable[..., Proxy]:
    def apply(rec: Recorder, input: Any, other: Any = None) -> Proxy:
        if other is None or isinstance(other, int) and not is_number(input) and not isinstance(input, Proxy):
            fail(f"torch.{op} of one value", f"give two: torch.{op}imum(a, b)")
        a, b, kind = common(rec, input, other)
        if kind == BOOL:
            return binary(rec, "and" if op == "min" else "or", a, b)
        return binary(rec, op, a, b)
    return apply


minimum, maximum = extreme("min"), extreme("max")


def clamp(rec: Recorder, input: Any, min: Any = None, max: Any = None) -> Proxy:
    x = to_kind(rec, input, None)
    if min is not None:
        x = maximum(rec, x, min)
    return x if max is None else minimum(rec, x, max)


def clamp_min(rec: Recorder, input: Any, min: Any) -> Proxy:
    return clamp(rec, input, min)


def clamp_max(rec: Recorder, input: Any, max: Any) -> Proxy:
    return clamp(rec, input, None, max)


def relu(rec: Recorder, input: Any, inplace: bool = False) -> Proxy:
    return clamp(rec, input, 0)


def silu(rec: Recorder, input: Any, inplace: bool = False) -> Proxy:
    x = to_kind(rec, input, F32)
    return mul(rec, x, rec.emit("sigmoid", F32, x.token))


def gelu(rec: Recorder, input: Any, *, approximate: str = "none") -> Proxy:
    x = to_kind(rec, input, F32)
    if approximate not in ("none", "tanh"):
        fail(f"gelu(approximate={approximate!r})", "it is 'none' or 'tanh'")
    if approximate == "none":
        y = rec.emit("erf", F32, mul(rec, x, 0.7071067811865476).token)
    else:
        cube = mul(rec, mul(rec, x, x), mul(rec, x, 0.044715))
        y = rec.emit("tanh", F32, mul(rec, add(rec, x, cube), 0.7978845608028654).token)
    return mul(rec, mul(rec, x, 0.5), add(rec, y, 1.0))


def leaky_relu(rec: Recorder, input: Any, negative_slope: Any = 0.01, inplace: bool = False) -> Proxy:
    x = to_kind(rec, input, F32)
    return where(rec, compare(rec, "gt", x, 0.0), x, mul(rec, x, negative_slope))


def square(rec: Recorder, input: Any) -> Any:
    return power_by_number(rec, to_kind(rec, input, None), 2)


def reciprocal(rec: Recorder, input: Any) -> Proxy:
    return div(rec, 1.0, input)


def sign(rec: Recorder, input: Any) -> Proxy:
    x = to_kind(rec, input, None)
    up, down = compare(rec, "gt", x, 0), compare(rec, "lt", x, 0)
    return sub(rec, to_kind(rec, up, x.kind), to_kind(rec, down, x.kind))


def isnan(rec: Recorder, input: Any) -> Proxy:
    return compare(rec, "ne", input, input)


def isinf(rec: Recorder, input: Any) -> Proxy:
    return compare(rec, "eq", absolute(rec, to_kind(rec, input, F32)), float("inf"))


def isfinite(rec: Recorder, input: Any) -> Proxy:
    return compare(rec, "lt", absolute(rec, to_kind(rec, input, F32)), float("inf"))


def lerp(rec: Recorder, input: Any, end: Any, weight: Any) -> Proxy:
    return add(rec, input, mul(rec, weight, sub(rec, end, input)))


def tan(rec: Recorder, input: Any) -> Proxy:
    x = to_kind(rec, input, F32)
    return div(rec, rec.emit("sin", F32, x.token), rec.emit("cos", F32, x.token))


def log1p(rec: Recorder, input: Any) -> Proxy:
    return rec.emit("log", F32, add(rec, to_kind(rec, input, F32), 1.0).token)


def expm1(rec: Recorder, input: Any) -> Proxy:
    return sub(rec, rec.emit("exp", F32, to_kind(rec, input, F32).token), 1.0)


def log10(rec: Recorder, input: Any) -> Proxy:
    return mul(rec, rec.emit("log2", F32, to_kind(rec, input, F32).token), 0.30102999566398120)


def round_even(rec: Recorder, input: Any, *, decimals: int = 0) -> Proxy:
    x = to_kind(rec, input, None)
    if decimals != 0:
        fail(f"torch.round(decimals={decimals})", "scale before and after")
    if x.kind != F32:
        return x
    half = add(rec, x, 0.5)
    up = rec.emit("floor", F32, half.token)
    tie = bitwise(rec, "and", compare(rec, "eq", half, up), compare(rec, "eq", remainder(rec, up, 2.0), 1.0))
    near = where(rec, tie, sub(rec, up, 1.0), up)
    return where(rec, compare(rec, "lt", absolute(rec, x), 4194304.0), near, x)  # from 2^22 on, x + 0.5 rounds


def identity(rec: Recorder, input: Any, *args: Any, **kwargs: Any) -> Any:
    return input


def kind_of_dtype(dtype: torch.dtype) -> str:
    if dtype in (torch.float32, torch.float64):
        return F32
    if dtype in (torch.int32, torch.int64):
        return I32
    if dtype == torch.bool:
        return BOOL
    return fail(f"a conversion to {dtype}", "a Program's values are float32, int32 and bool")


def to(rec: Recorder, input: Any, *args: Any, **kwargs: Any) -> Any:
    for x in args + tuple(kwargs.values()):
        if isinstance(x, torch.dtype):
            return to_kind(rec, input, kind_of_dtype(x))
        if isinstance(x, (Proxy, torch.Tensor)):
            return to_kind(rec, input, kind_of_dtype(x.dtype))
    return input


def convert(kind: str) -> Callable[..., Proxy]:
    def apply(rec: Recorder, input: Any, **kwargs: Any) -> Proxy:
        return to_kind(rec, input, kind)
    return apply


def like(value: Any) -> Callable[..., Proxy]:
    def apply(rec: Recorder, input: Any, *args: Any, **kwargs: Any) -> Proxy:
        given = args[0] if value is None and args else kwargs.get("fill_value", value)
        dtype = kwargs.get("dtype")
        kind = kind_of_dtype(dtype) if dtype is not None else kind_of(value_of(rec, input))
        return to_kind(rec, given, kind)
    return apply


def new_tensor(rec: Recorder, input: Any, data: Any, *args: Any, **kwargs: Any) -> Proxy:
    return to_kind(rec, data, kind_of(value_of(rec, input)))


def new_filled(value: Any) -> Callable[..., Proxy]:
    """new_ones and kin: a constant of no dims, as and_masks makes."""
    def apply(rec: Recorder, input: Any, size: Any = (), *args: Any, **kwargs: Any) -> Proxy:
        if tuple(size) != ():
            fail(f"a new tensor of shape {tuple(size)}", "values have no dims: use size ()")
        given = (args[0] if args else kwargs["fill_value"]) if value is None else value
        dtype = kwargs.get("dtype")
        return to_kind(rec, given, kind_of_dtype(dtype) if dtype is not None else kind_of(value_of(rec, input)))
    return apply


# ---- look-ups ----


def index_token(rec: Recorder, i: Any) -> str:
    if isinstance(i, bool) or i is None:
        fail(f"an index {i}", "a captured tensor is looked up by integers")
    if isinstance(i, (list, slice)):
        fail("a slice or a list beside a traced index", "index every dim with one integer")
    x = value_of(rec, i)
    if kind_of(x) != I32:
        fail(f"an index of type {kind_of(x)}", "indices are integers: use .to(torch.int32)")
    return token_of(rec, x, I32)


def look_up(rec: Recorder, table: Any, index: Any) -> Any:
    """table[index]: a Proxy when every dim is indexed, else a Table."""
    if isinstance(table, Table):
        tensor, known = table.tensor, list(table.index)
    else:
        tensor, known = table, [None] * table.dim()
    items = index if isinstance(index, tuple) else (index,)
    free = [d for d in range(len(known)) if known[d] is None]
    named = len([i for i in items if i is not Ellipsis])
    if named > len(free):
        fail(f"{named} indices into {len(free)} dims", "give at most one index a dim")
    at = 0
    for i in items:
        if i is Ellipsis:
            at += len(free) - named
            continue
        if not (isinstance(i, slice) and i.start is None and i.stop is None and i.step is None):
            known[free[at]] = index_token(rec, i)
        at += 1
    if any(k is None for k in known):
        return Table(rec, tensor, known)
    token = rec.tensor(tensor)
    return rec.emit("load", LOAD_TYPE[tensor.dtype], token, *known)


def embedding(rec: Recorder, input: Any, weight: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
    """A row of the table: one of its elements is looked up next."""
    return look_up(rec, weight, input)


# ---- torch functions by name ----


def named(op: Callable[..., Any], first: str) -> Callable[..., Any]:
    return functools.partial(_with_op, op, first)


def _with_op(op: Callable[..., Any], first: str, rec: Recorder, *args: Any, **kwargs: Any) -> Any:
    return op(rec, first, *args, **kwargs)


FUNCTIONS: dict[str, Callable[..., Any]] = {
    "add": add, "sub": sub, "subtract": sub, "rsub": rsub, "mul": mul, "multiply": mul,
    "div": div, "divide": div, "true_divide": div, "floor_divide": floor_divide,
    "remainder": remainder, "fmod": fmod, "pow": power, "float_power": power, "neg": negative, "negative": negative,
    "abs": absolute, "absolute": absolute, "where": where, "masked_fill": masked_fill,
    "minimum": minimum, "maximum": maximum, "min": minimum, "max": maximum,
    "clamp": clamp, "clip": clamp, "clamp_min": clamp_min, "clamp_max": clamp_max, "relu": relu, "silu": silu,
    "gelu": gelu, "leaky_relu": leaky_relu,
    "square": square, "reciprocal": reciprocal, "sign": sign, "isnan": isnan, "isinf": isinf,
    "isfinite": isfinite, "log1p": log1p, "expm1": expm1, "log10": log10, "round": round_even, "sgn": sign,
    "embedding": embedding, "lerp": lerp, "tan": tan, "trunc": trunc, "fix": trunc,
    "floor": rounding("floor"), "ceil": rounding("ceil"),
    "logical_not": logical_not, "bitwise_not": invert,
    "to": to, "type": to, "type_as": to, "float": convert(F32), "double": convert(F32), "int": convert(I32),
    "long": convert(I32), "bool": convert(BOOL),
    "clone": identity, "detach": identity, "contiguous": identity, "positive": identity, "cpu": identity,
    "cuda": identity, "__getitem__": look_up,
    "zeros_like": like(0), "ones_like": like(1), "full_like": like(None), "new_tensor": new_tensor,
    "new_zeros": new_filled(0), "new_ones": new_filled(1), "new_full": new_filled(None),
}
for _name in ("tanh", "exp", "exp2", "log", "log2", "sqrt", "rsqrt", "sin", "cos", "sigmoid", "erf"):
    FUNCTIONS[_name] = unary(_name)
for _name, _op in (("lt", "lt"), ("less", "lt"), ("le", "le"), ("less_equal", "le"), ("gt", "gt"), ("greater", "gt"),
                   ("ge", "ge"), ("greater_equal", "ge"), ("eq", "eq"), ("ne", "ne"), ("not_equal", "ne")):
    FUNCTIONS[_name] = named(compare, _op)
for _name in ("and", "or", "xor"):
    FUNCTIONS["bitwise_" + _name] = named(bitwise, _name)
    FUNCTIONS["logical_" + _name] = named(logical, _name)
for _name, _op in (("bitwise_left_shift", "shl"), ("bitwise_right_shift", "shr")):
    FUNCTIONS[_name] = named(shift, _op)
for _name in ("add", "sub", "mul", "floordiv", "mod", "truediv", "pow", "and", "or", "xor", "lshift", "rshift",
              "lt", "le", "gt", "ge", "eq", "ne"):
    _full = {"floordiv": "floor_divide", "mod": "remainder", "truediv": "div", "and": "bitwise_and", "or": "bitwise_or",
             "xor": "bitwise_xor", "lshift": "bitwise_left_shift", "rshift": "bitwise_right_shift"}.get(_name, _name)
    FUNCTIONS[f"__{_name}__"] = FUNCTIONS[_full]


def _reflected(function: Callable[..., Any], rec: Recorder, input: Any, other: Any) -> Any:
    return function(rec, other, input)


for _name in ("add", "sub", "mul", "floordiv", "mod", "truediv", "div", "pow", "and", "or", "xor", "lshift", "rshift"):
    FUNCTIONS[f"__r{_name}__"] = functools.partial(_reflected, FUNCTIONS.get(f"__{_name}__", div))


# The operator module's names: under Dynamo an operator may arrive as that.
for _name in ("floordiv", "mod", "truediv", "lshift", "rshift", "getitem"):
    FUNCTIONS[_name] = FUNCTIONS[f"__{_name}__"]
for _name in ("and", "or", "xor"):
    FUNCTIONS[_name + "_"] = FUNCTIONS["bitwise_" + _name]
FUNCTIONS["invert"], FUNCTIONS["pos"] = invert, identity


def recorder_in(values: Any) -> Recorder | None:
    for x in values:
        if isinstance(x, (Proxy, Table)):
            return x.rec
        if isinstance(x, (tuple, list)):
            inner = recorder_in(x)
            if inner is not None:
                return inner
    return None


def call_torch(func: Any, args: tuple, kwargs: dict) -> Any:
    """A torch function with a Proxy or a Table among its arguments."""
    rec = recorder_in(args)
    if rec is None:
        rec = recorder_in(tuple(kwargs.values()))
    name = getattr(func, "__name__", str(func))
    if name in ("__setitem__", "setitem"):
        fail("a write into a captured tensor", "score_mod and mask_mod must have no side effects")
    function = FUNCTIONS.get(name)
    if function is None or rec is None:
        fail(f"torch.{name}", POSSIBLE)
    return function(rec, *args, **kwargs)
