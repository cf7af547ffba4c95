"""Scalar expressions over the indices (b, h, q, kv) of an attention score, and their text as a Program.

Expressions are interned: two that are built alike are one object, so equality is identity and a Program never
computes a value twice. Integer sums are kept in linear form with the range of each value, which is what makes
the index arithmetic of views disappear again. Nothing here knows torch; indexing.py feeds it from graphs.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np

F32, I32, BOOL = "float32", "int32", "bool"
VARIABLES = ("b", "h", "q", "kv")
_FLIP = {"eq": "eq", "ne": "ne", "lt": "gt", "le": "ge", "gt": "lt", "ge": "le"}
_INVERT = {"eq": "ne", "ne": "eq", "lt": "ge", "le": "gt", "gt": "le", "ge": "lt"}
# Over ints: x + 1 > 0 is x >= 0, and so on.
_STRICT = {("gt", 1): "ge", ("lt", -1): "le", ("ge", -1): "gt", ("le", 1): "lt"}
_COMPARE: dict[str, Callable[[Any, Any], Any]] = {
    "eq": lambda a, b: a == b,
    "ne": lambda a, b: a != b,
    "lt": lambda a, b: a < b,
    "le": lambda a, b: a <= b,
    "gt": lambda a, b: a > b,
    "ge": lambda a, b: a >= b,
}


class TooLarge(Exception):
    """The expressions exceed what a Program may hold."""


class Expr:
    """One value. `op` is a Program operation or one of var, const, lin, load; lo and hi bound an int."""

    __slots__ = ("op", "type", "args", "serial", "lo", "hi", "free", "loads")

    def __init__(self, op: str, type_: str, args: tuple[Any, ...], serial: int):
        self.op, self.type, self.args, self.serial = op, type_, args, serial
        self.lo: int | None = None
        self.hi: int | None = None
        self.free: frozenset[str] = frozenset()
        self.loads = False

    def __repr__(self) -> str:
        if self.op == "var":
            return str(self.args[0])
        if self.op == "const":
            return repr(self.args[0])
        return f"{self.op}({', '.join(map(repr, self.args))})"


@dataclass(frozen=True)
class TensorRef:
    """A tensor that a Program reads. `source` is whatever the caller knows it by; dims lists the kept dims."""

    source: Any
    dims: tuple[int, ...]
    dtype: str

    @property
    def type(self) -> str:
        if self.dtype == "bool":
            return BOOL
        return F32 if "float" in self.dtype else I32


def operands(e: Expr) -> Iterable[Expr]:
    if e.op == "lin":
        return [atom for _, atom in e.args[1]]
    return [a for a in e.args if isinstance(a, Expr)]


class Space:
    """Makes and simplifies expressions; sizes bounds each variable: 0 <= variable < size."""

    def __init__(self, sizes: dict[str, int]):
        self.sizes = dict(sizes)
        self._table: dict[tuple[Any, ...], Expr] = {}

    # Making

    def _intern(self, op: str, type_: str, *args: Any) -> Expr:
        key = (op, type_, *[("e", a.serial) if isinstance(a, Expr) else _literal_key(a) for a in args])
        found = self._table.get(key)
        if found is not None:
            return found
        if len(self._table) > 200_000:
            raise TooLarge("the expression has more than 200000 parts")
        e = Expr(op, type_, args, len(self._table))
        parts = list(operands(e))
        e.free = frozenset().union(*(p.free for p in parts)) if parts else frozenset()
        e.loads = op == "load" or any(p.loads for p in parts)
        self._table[key] = e
        return e

    def var(self, name: str) -> Expr:
        is_index = name in self.sizes
        e = self._intern("var", I32 if is_index else F32, name)
        e.free = frozenset([name])
        if is_index:
            e.lo, e.hi = 0, max(0, self.sizes[name] - 1)
            if self.sizes[name] == 1:
                return self.int(0)
        return e

    def const(self, type_: str, value: Any) -> Expr:
        value = {F32: float, I32: int, BOOL: bool}[type_](value)
        e = self._intern("const", type_, value)
        if type_ == I32:
            e.lo = e.hi = value
        return e

    def int(self, value: int) -> Expr:
        return self.const(I32, value)

    def float(self, value: float) -> Expr:
        return self.const(F32, value)

    def bool(self, value: bool) -> Expr:
        return self.const(BOOL, value)

    def load(self, ref: TensorRef, index: Iterable[Expr]) -> Expr:
        return self._intern("load", ref.type, ref, *index)

    # Linear integers

    def linear(self, constant: int, terms: dict[Expr, int]) -> Expr:
        constant, terms = _rejoined(constant, terms)
        kept = sorted(((a, c) for a, c in terms.items() if c), key=lambda t: _rank(t[0]))
        if not kept:
            return self.int(constant)
        if constant == 0 and len(kept) == 1 and kept[0][1] == 1:
            return kept[0][0]
        packed = tuple((c, a) for a, c in kept)
        e = self._intern("lin", I32, constant, _Terms(packed))
        e.lo, e.hi = _bounds(constant, packed)
        return e

    def add(self, a: Expr, b: Expr) -> Expr:
        if a.type == I32:
            ca, ta = terms_of(a)
            cb, tb = terms_of(b)
            merged = dict(ta)
            for atom, c in tb.items():
                merged[atom] = merged.get(atom, 0) + c
            return self.linear(ca + cb, merged)
        if _is(a, 0.0):
            return b
        if _is(b, 0.0):
            return a
        return self._float("add", a, b, lambda x, y: x + y)

    def neg(self, a: Expr) -> Expr:
        if a.type == I32:
            c, t = terms_of(a)
            return self.linear(-c, {atom: -k for atom, k in t.items()})
        return self.unary("neg", a)

    def sub(self, a: Expr, b: Expr) -> Expr:
        if a.type == I32:
            return self.add(a, self.neg(b))
        if _is(b, 0.0):
            return a
        if b.op == "const":
            return self.add(a, self.float(-b.args[0]))
        return self._float("sub", a, b, lambda x, y: x - y)

    def mul(self, a: Expr, b: Expr) -> Expr:
        if a.type == I32:
            return self._mul_int(a, b)
        if a.op == "const" and b.op != "const":
            a, b = b, a
        if _is(b, 1.0):
            return a
        if b.op == "const" and a.op == "mul" and a.args[1].op == "const":
            return self.mul(a.args[0], self.float(a.args[1].args[0] * b.args[0]))
        if _selects(a) and _selects(b):
            product = self.float(a.args[1].args[0] * b.args[1].args[0])
            return self.where(self.and_(a.args[0], b.args[0]), product, self.float(0.0))
        return self._float("mul", a, b, lambda x, y: x * y)

    def _mul_int(self, a: Expr, b: Expr) -> Expr:
        if a.op == "const":
            a, b = b, a
        if b.op == "const":
            c, t = terms_of(a)
            return self.linear(c * b.args[0], {atom: k * b.args[0] for atom, k in t.items()})
        if a.serial > b.serial:
            a, b = b, a
        e = self._intern("mul", I32, a, b)
        if None not in (a.lo, a.hi, b.lo, b.hi):
            corners = [x * y for x in (a.lo, a.hi) for y in (b.lo, b.hi)]  # type: ignore[operator]
            e.lo, e.hi = min(corners), max(corners)
        return e

    def div(self, a: Expr, b: Expr) -> Expr:
        if b.op == "const" and b.args[0] not in (0.0,) and math.isfinite(b.args[0]):
            if a.op != "const" and "dot" in a.free and _plain_dot(a):
                return self.mul(a, self.float(1.0 / b.args[0]))
            if b.args[0] == 1.0:
                return a
        return self._float("div", a, b, _divide)

    def floordiv(self, a: Expr, b: Expr) -> Expr:
        if a.type == F32:
            return self._float("floordiv", a, b, _floor_divide)
        if b.op == "const" and b.args[0] > 0:
            return self._divide_linear(a, b.args[0])[0]
        return self._intern("floordiv", I32, a, b)

    def rem(self, a: Expr, b: Expr) -> Expr:
        if a.type == F32:
            return self._float("rem", a, b, _remainder)
        if b.op == "const" and b.args[0] > 0:
            return self._divide_linear(a, b.args[0])[1]
        return self._intern("rem", I32, a, b)

    def _divide_linear(self, a: Expr, n: int) -> tuple[Expr, Expr]:
        """a // n and a % n; terms that n divides leave the quotient when the rest stays within [0, n)."""
        constant, terms = terms_of(a)
        whole = {atom: c // n for atom, c in terms.items() if c % n == 0}
        rest_terms = {atom: c for atom, c in terms.items() if c % n}
        rest = self.linear(constant % n, rest_terms)
        quotient = self.linear(constant // n, whole)
        if rest.lo is not None and rest.hi is not None and rest.lo // n == rest.hi // n:
            k = rest.lo // n
            return self.add(quotient, self.int(k)), self.sub(rest, self.int(k * n))
        high = self._intern("floordiv", I32, rest, self.int(n))
        low = self._intern("rem", I32, rest, self.int(n))
        low.lo, low.hi = 0, n - 1
        if rest.lo is not None and rest.hi is not None:
            high.lo, high.hi = rest.lo // n, rest.hi // n
        return self.add(quotient, high), low

    def truncdiv(self, a: Expr, b: Expr) -> Expr:
        if b.op == "const" and b.args[0] > 0 and a.lo is not None and a.lo >= 0:
            return self.floordiv(a, b)
        return self._intern("truncdiv", I32, a, b)

    # Floats

    def _float(self, op: str, a: Expr, b: Expr, f: Callable[[float, float], float]) -> Expr:
        if a.op == "const" and b.op == "const":
            return self.float(f(a.args[0], b.args[0]))
        if b.op == "const" and _constant_branches(a):
            c, x, y = a.args
            return self.where(c, self.float(f(x.args[0], b.args[0])), self.float(f(y.args[0], b.args[0])))
        if a.op == "const" and _constant_branches(b):
            c, x, y = b.args
            return self.where(c, self.float(f(a.args[0], x.args[0])), self.float(f(a.args[0], y.args[0])))
        return self._intern(op, F32, a, b)

    def binary(self, op: str, a: Expr, b: Expr) -> Expr:
        """min, max (int32, float32), pow (float32), shl, shr (int32)."""
        if op in ("min", "max") and a.type == I32:
            return self._extreme(op, a, b)
        if op in ("min", "max", "pow"):
            f = {"min": min, "max": max, "pow": _power}[op]
            return self._float(op, a, b, f)
        return self._intern(op, I32, a, b)

    def _extreme(self, op: str, a: Expr, b: Expr) -> Expr:
        difference = self.sub(a, b)
        if difference.lo is not None and difference.lo >= 0:
            return b if op == "min" else a
        if difference.hi is not None and difference.hi <= 0:
            return a if op == "min" else b
        e = self._intern(op, I32, a, b)
        f = min if op == "min" else max
        if None not in (a.lo, b.lo, a.hi, b.hi):
            e.lo, e.hi = f(a.lo, b.lo), f(a.hi, b.hi)  # type: ignore[type-var]
        return e

    def unary(self, op: str, a: Expr) -> Expr:
        if a.op == "const" and a.type == F32:
            return self.float(_UNARY[op](a.args[0]))
        if a.type == F32 and _constant_branches(a):
            c, x, y = a.args
            return self.where(c, self.unary(op, x), self.unary(op, y))
        if a.type == I32 and op == "abs":
            if a.lo is not None and a.lo >= 0:
                return a
            if a.hi is not None and a.hi <= 0:
                return self.neg(a)
            e = self._intern(op, a.type, a)
            if a.lo is not None and a.hi is not None:
                e.lo, e.hi = 0, max(-a.lo, a.hi)
            return e
        return self._intern(op, a.type, a)

    # Bools

    def compare(self, op: str, a: Expr, b: Expr) -> Expr:
        if a.type == I32:
            return self._compare_int(op, a, b)
        if a.op == "const" and b.op == "const":
            return self.bool(_COMPARE[op](a.args[0], b.args[0]))
        if a.type == BOOL:
            return self._compare_bool(op, a, b)
        for x, y, o in ((a, b, op), (b, a, _FLIP[op])):
            if _constant_branches(x) and y.op == "const":
                c, t, f = x.args
                return self.where(
                    c, self.bool(_COMPARE[o](t.args[0], y.args[0])), self.bool(_COMPARE[o](f.args[0], y.args[0]))
                )
        exact = _exact_int(a), _exact_int(b)
        if exact[0] is not None and exact[1] is not None:
            return self._compare_int(op, exact[0], exact[1])
        return self._intern(op, BOOL, a, b)

    def _compare_bool(self, op: str, a: Expr, b: Expr) -> Expr:
        if a.op == "const":
            a, b = b, a
        if b.op == "const":
            return a if b.args[0] == (op == "eq") else self.not_(a)
        return self._intern(op, BOOL, a, b)

    def _compare_int(self, op: str, a: Expr, b: Expr) -> Expr:
        difference = self.sub(a, b)
        lo, hi = difference.lo, difference.hi
        known = _decide(op, lo, hi)
        if known is not None:
            return self.bool(known)
        constant, terms = terms_of(difference)
        if (op, constant) in _STRICT:
            op, constant = _STRICT[op, constant], 0
        left = self.linear(0, {t: c for t, c in terms.items() if c > 0})
        right = self.linear(0, {t: -c for t, c in terms.items() if c < 0})
        if constant:
            if right.op == "const":
                right = self.int(-constant)
            elif left.op == "const":
                left = self.int(constant)
            elif constant > 0:
                left = self.add(left, self.int(constant))
            else:
                right = self.add(right, self.int(-constant))
        if (left.op == "const") or (right.op != "const" and _rank(_head(right)) < _rank(_head(left))):
            left, right, op = right, left, _FLIP[op]
        return self._intern(op, BOOL, left, right)

    def not_(self, a: Expr) -> Expr:
        if a.type == I32:
            return self._intern("not", I32, a)
        if a.op == "const":
            return self.bool(not a.args[0])
        if a.op == "not":
            return a.args[0]
        if a.op in _INVERT and (a.args[0].type != F32 or a.op in ("eq", "ne")):
            return self._intern(_INVERT[a.op], BOOL, *a.args)
        return self._intern("not", BOOL, a)

    def and_(self, a: Expr, b: Expr) -> Expr:
        return self._logic("and", a, b)

    def or_(self, a: Expr, b: Expr) -> Expr:
        return self._logic("or", a, b)

    def _logic(self, op: str, a: Expr, b: Expr) -> Expr:
        if a.type == I32:
            return self._intern(op, I32, a, b)
        neutral = op == "and"
        for x, y in ((a, b), (b, a)):
            if x.op == "const":
                return y if x.args[0] == neutral else x
        if a is b:
            return a
        if self.not_(a) is b:
            return self.bool(not neutral)
        return self._intern(op, BOOL, a, b)

    def xor(self, a: Expr, b: Expr) -> Expr:
        if a.type == BOOL and "const" in (a.op, b.op):
            return self._compare_bool("ne", a, b)
        return self._intern("xor", a.type, a, b)

    def where(self, c: Expr, a: Expr, b: Expr) -> Expr:
        if c.op == "const":
            return a if c.args[0] else b
        if a is b:
            return a
        if c.op == "not":
            c, a, b = c.args[0], b, a
        if a.op == "where" and a.args[0] is c:
            a = a.args[1]
        if b.op == "where" and b.args[0] is c:
            b = b.args[2]
        if a.type == BOOL and "const" in (a.op, b.op):
            if a.op == "const":
                return self.or_(c, b) if a.args[0] else self.and_(self.not_(c), b)
            return self.or_(self.not_(c), a) if b.args[0] else self.and_(c, a)
        e = self._intern("where", a.type, c, a, b)
        if a.type == I32 and None not in (a.lo, b.lo, a.hi, b.hi):
            e.lo, e.hi = min(a.lo, b.lo), max(a.hi, b.hi)  # type: ignore[type-var]
        return e

    def cast(self, a: Expr, type_: str) -> Expr:
        if a.type == type_:
            return a
        if a.type == BOOL:
            return self.where(a, self.const(type_, 1), self.const(type_, 0))
        if type_ == BOOL:
            zero = self.const(a.type, 0)
            return self.compare("ne", a, zero)
        if a.op == "const":
            value = a.args[0]
            if type_ == I32 and not math.isfinite(value):
                value = 0
            return self.const(type_, value)
        if type_ == I32 and a.op == "cast" and a.args[0].type == I32:
            return a.args[0]
        if a.op == "where" and a.args[1].op == "const" and a.args[2].op == "const":
            return self.where(a.args[0], self.cast(a.args[1], type_), self.cast(a.args[2], type_))
        return self._intern("cast", type_, a)

    # Whole expressions

    def rebuild(self, e: Expr, change: Callable[[Expr], Expr | None]) -> Expr:
        """e with each part p replaced by change(p) where that gives one; integer sums are left alone."""
        seen: dict[Expr, Expr] = {}

        def walk(x: Expr) -> Expr:
            if x in seen:
                return seen[x]
            new = change(x)
            if new is None:
                new = x
                if x.op not in ("var", "const", "lin", "load"):
                    args = tuple(walk(a) if isinstance(a, Expr) else a for a in x.args)
                    if any(p is not o for p, o in zip(args, x.args, strict=True)):
                        new = self._intern(x.op, x.type, *args)
            seen[x] = new
            return new

        return walk(e)


class _Terms(tuple):
    """Marks the terms of a linear form on their way into the table."""


def _literal_key(a: Any) -> Any:
    if isinstance(a, _Terms):
        return tuple((c, atom.serial) for c, atom in a)
    if isinstance(a, float):
        # -0.0 and nan are values of their own here.
        return ("f", a.hex() if math.isfinite(a) else repr(a))
    return (type(a).__name__, a)


def terms_of(e: Expr) -> tuple[int, dict[Expr, int]]:
    """An int as a constant and multiples of atoms."""
    if e.op == "const":
        return e.args[0], {}
    if e.op == "lin":
        return e.args[0], {atom: c for c, atom in e.args[1]}
    return 0, {e: 1}


def _rejoined(constant: int, terms: dict[Expr, int]) -> tuple[int, dict[Expr, int]]:
    """n * (x // n) + x % n is x again."""
    while True:
        pair = next(
            (
                (high, low)
                for high, c in terms.items()
                for low, k in terms.items()
                if high.op == "floordiv" and low.op == "rem" and high.args == low.args
                and high.args[1].op == "const" and c == k * high.args[1].args[0] and k
            ),
            None,
        )  # fmt: skip
        if pair is None:
            return constant, terms
        factor = terms[pair[1]]
        rest = {a: c for a, c in terms.items() if a not in pair}
        extra, inner = terms_of(pair[0].args[0])
        for a, c in inner.items():
            rest[a] = rest.get(a, 0) + factor * c
        constant, terms = constant + factor * extra, rest


def _rank(e: Expr) -> tuple[int, int]:
    order = {"q": 0, "kv": 1, "h": 2, "b": 3}
    if e.op == "var":
        return order.get(e.args[0], 4), 0
    return 5, e.serial


def _head(e: Expr) -> Expr:
    return min(terms_of(e)[1], key=_rank)


def _bounds(constant: int, terms: tuple[tuple[int, Expr], ...]) -> tuple[int | None, int | None]:
    lo = hi = constant
    for c, atom in terms:
        if atom.lo is None or atom.hi is None:
            return None, None
        lo += min(c * atom.lo, c * atom.hi)
        hi += max(c * atom.lo, c * atom.hi)
    return lo, hi


def _decide(op: str, lo: int | None, hi: int | None) -> bool | None:
    """What a comparison of a difference within [lo, hi] with zero must give, or None."""
    if lo is None or hi is None:
        return None
    if op in ("eq", "ne"):
        if lo > 0 or hi < 0:
            return op == "ne"
        return op == "eq" if lo == hi == 0 else None
    f = _COMPARE[op]
    return bool(f(lo, 0)) if f(lo, 0) == f(hi, 0) else None


def _is(e: Expr, value: float) -> bool:
    return e.op == "const" and e.args[0] == value


def _constant_branches(e: Expr) -> bool:
    return e.op == "where" and e.args[1].op == "const" and e.args[2].op == "const"


def _selects(e: Expr) -> bool:
    """A finite constant where a condition holds, else zero."""
    return _constant_branches(e) and math.isfinite(e.args[1].args[0]) and _is(e.args[2], 0.0)


def _plain_dot(e: Expr) -> bool:
    return e.op == "var" or (e.op == "mul" and e.args[1].op == "const" and e.args[0].op == "var")


def _exact_int(e: Expr) -> Expr | None:
    """The int that a float stands for, when comparing them as ints is the same."""
    if e.op == "cast" and e.args[0].type == I32 and e.args[0].lo is not None:
        small = max(abs(e.args[0].lo), abs(e.args[0].hi or 0)) < 1 << 24
        return e.args[0] if small else None
    return None


def _divide(a: float, b: float) -> float:
    with np.errstate(all="ignore"):
        return float(np.float64(a) / np.float64(b))


def _floor_divide(a: float, b: float) -> float:
    with np.errstate(all="ignore"):
        return float(np.floor_divide(np.float64(a), np.float64(b)))


def _remainder(a: float, b: float) -> float:
    with np.errstate(all="ignore"):
        return float(np.remainder(np.float64(a), np.float64(b)))


def _power(a: float, b: float) -> float:
    with np.errstate(all="ignore"):
        return float(np.power(np.float64(a), np.float64(b)))


def _np(f: Callable[[Any], Any]) -> Callable[[float], float]:
    def g(x: float) -> float:
        with np.errstate(all="ignore"):
            return float(f(np.float64(x)))

    return g


_UNARY: dict[str, Callable[[float], float]] = {
    "neg": lambda x: -x,
    "abs": abs,
    "tanh": _np(np.tanh),
    "exp": _np(np.exp),
    "exp2": _np(np.exp2),
    "log": _np(np.log),
    "log2": _np(np.log2),
    "sqrt": _np(np.sqrt),
    "rsqrt": _np(lambda x: 1.0 / np.sqrt(x)),
    "sin": _np(np.sin),
    "cos": _np(np.cos),
    "sigmoid": _np(lambda x: 1.0 / (1.0 + np.exp(-x))),
    "floor": _np(np.floor),
    "ceil": _np(np.ceil),
}


# Masks


@dataclass(frozen=True)
class Split:
    score: Expr
    keep: Expr | None  # None: nothing is masked
    finite: bool       # a large negative number stood for minus infinity


def split_mask(space: Space, e: Expr, finite: bool) -> Split:
    """Takes the masked-out part off a score: where the result's keep is false, e is -inf.

    finite: also treat constants up to -1e4 as minus infinity, which is right when every row keeps a key.
    """
    negative = lambda x: x.op == "const" and (  # noqa: E731
        x.args[0] == -math.inf or (finite and x.args[0] <= -1e4)
    )
    score, keep, used = e, None, False

    def meet(c: Expr) -> None:
        nonlocal keep
        keep = c if keep is None else space.and_(c, keep)

    def strip(x: Expr) -> Expr:
        nonlocal used
        if x.op == "where" and x.type == F32:
            c, a, b = x.args
            if negative(a):
                used |= a.args[0] != -math.inf
                meet(space.not_(c))
                return strip(b)
            if negative(b):
                used |= b.args[0] != -math.inf
                meet(c)
                return strip(a)
        if x.op == "add":
            for one, other in (x.args, x.args[::-1]):
                if other.op == "where" and _is(other.args[2], 0.0) and negative(other.args[1]):
                    used |= other.args[1].args[0] != -math.inf
                    meet(space.not_(other.args[0]))
                    return strip(one)
                if other.op == "where" and _is(other.args[1], 0.0) and negative(other.args[2]):
                    used |= other.args[2].args[0] != -math.inf
                    meet(other.args[0])
                    return strip(one)
            return space.add(strip_infinite(x.args[0]), strip_infinite(x.args[1]))
        return x

    def strip_infinite(x: Expr) -> Expr:
        # Under an addition only true infinity survives unchanged.
        hit = x.op == "where" and any(p.op == "const" and p.args[0] == -math.inf for p in x.args[1:])
        return strip(x) if hit or x.op == "add" else x

    score = strip(score)
    return Split(score, keep, used)


def evaluate_index(e: Expr, grid: dict[str, np.ndarray]) -> np.ndarray:
    """The values of an expression without loads and score, over index arrays that broadcast together."""
    memo: dict[Expr, Any] = {}

    def walk(x: Expr) -> Any:
        if x not in memo:
            memo[x] = _evaluate_one(x, walk, grid)
        return memo[x]

    with np.errstate(all="ignore"):
        return np.asarray(walk(e))


def _evaluate_one(x: Expr, walk: Callable[[Expr], Any], grid: dict[str, np.ndarray]) -> Any:
    if x.op == "var":
        return grid[x.args[0]]
    if x.op == "const":
        return x.args[0]
    if x.op == "lin":
        total = x.args[0]
        for c, atom in x.args[1]:
            total = total + c * walk(atom)
        return total
    args = [walk(a) for a in x.args]
    if x.op in _COMPARE:
        return _COMPARE[x.op](*args)
    if x.op == "where":
        return np.where(*args)
    if x.op == "cast":
        return np.asarray(args[0]).astype({F32: np.float64, I32: np.int64, BOOL: bool}[x.type])
    return _NUMPY[x.op](*args)


_NUMPY: dict[str, Callable[..., Any]] = {
    "add": np.add, "sub": np.subtract, "mul": np.multiply, "div": np.divide, "neg": np.negative,
    "abs": np.abs, "min": np.minimum, "max": np.maximum, "floordiv": np.floor_divide, "rem": np.remainder,
    "truncdiv": lambda a, b: np.trunc(np.divide(a, b)).astype(np.int64),
    "and": lambda a, b: a & b, "or": lambda a, b: a | b, "xor": lambda a, b: a ^ b, "not": np.invert,
    "shl": np.left_shift, "shr": np.right_shift, "pow": np.power,
    "tanh": np.tanh, "exp": np.exp, "exp2": np.exp2, "log": np.log, "log2": np.log2, "sqrt": np.sqrt,
    "rsqrt": lambda a: 1.0 / np.sqrt(a), "sin": np.sin, "cos": np.cos,
    "sigmoid": lambda a: 1.0 / (1.0 + np.exp(-a)), "floor": np.floor, "ceil": np.ceil,
}  # fmt: skip


def _rows(keep: Expr, sizes: dict[str, int]) -> tuple[list[str], int]:
    """The variables, kv aside, that a mask depends on, and how many rows they make."""
    rows = [v for v in VARIABLES if v in keep.free and v != "kv"]
    return rows, math.prod(sizes[v] for v in rows)


def _mask_rows(keep: Expr, sizes: dict[str, int], rows: list[str], flat: np.ndarray) -> np.ndarray:
    """The mask of the rows numbered flat, one row of keys each."""
    kv = np.arange(sizes["kv"], dtype=np.int64)[None, :]
    grid: dict[str, np.ndarray] = {"kv": kv}
    rest = flat[:, None]
    for v in reversed(rows):
        grid[v] = rest % sizes[v]
        rest = rest // sizes[v]
    return np.broadcast_to(evaluate_index(keep, grid), (len(flat), sizes["kv"]))


def keeps_a_key(keep: Expr, sizes: dict[str, int]) -> bool:
    """Whether each row of an index-only mask keeps at least one key, by trying every index it depends on."""
    if keep.loads or "dot" in keep.free or keep.op == "const":
        return keep.op == "const" and bool(keep.args[0])
    rows, count = _rows(keep, sizes)
    if count * sizes["kv"] > 1 << 32:
        return False
    step = max(1, (1 << 24) // max(1, sizes["kv"]))
    for start in range(0, count, step):
        flat = np.arange(start, min(count, start + step), dtype=np.int64)
        if not _mask_rows(keep, sizes, rows, flat).any(axis=1).all():
            return False
    return True


def density(keep: Expr, sizes: dict[str, int]) -> float:
    """The part of the scores that a mask keeps, on a sample of rows; 1 when it depends on data."""
    if keep.loads or "dot" in keep.free:
        return 1.0
    rows, count = _rows(keep, sizes)
    flat = np.linspace(0, count - 1, min(count, 256)).astype(np.int64)
    return float(_mask_rows(keep, sizes, rows, flat).mean())
