"""Fake kernels of a registry's own Ops: output shapes from the contract's expressions (docs/formats.md,
"Expressions"), over plain or symbolic integers. The reference is never run for them.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

_TOKEN = re.compile(r"\s*(\d+|[A-Za-z_]\w*|&&|\|\||==|!=|<=|>=|[-+*/%()<>!?:,.\[\]])")
_BINARY = (("||",), ("&&",), ("==", "!="), ("<", "<=", ">", ">="), ("+", "-"), ("*", "/", "%"))
_DTYPES = (
    "float32", "float64", "float16", "bfloat16", "int8", "uint8", "int16", "int32", "int64", "bool",
)  # fmt: skip


class Scope:
    """What names mean: dims and attributes by value, tensors by their arguments."""

    def __init__(self, args: dict[str, Any]) -> None:
        self.args = args
        self.values: dict[str, Any] = {name: i for i, name in enumerate(_DTYPES)}
        self.values.update({k: int(v) for k, v in args.items() if isinstance(v, bool)})
        self.values.update({k: v for k, v in args.items() if _is_int(v)})

    def field(self, tensor: str, name: str, at: Sequence[Any]) -> Any:
        t = self.args[tensor]
        if name == "ndim":
            return t.dim()
        if name == "dtype":
            return _DTYPES.index(str(t.dtype).removeprefix("torch."))
        if name == "numel":
            return t.numel()
        if name == "contiguous":
            return int(t.is_contiguous())
        if name == "size":
            return t.shape[at[0]]
        if name == "stride":
            return t.stride()[at[0]]
        if name == "prod":
            return math.prod(t.shape[at[0] : at[1]])
        raise ValueError(f"{tensor}.{name} is nothing that an expression has")


def _is_int(v: Any) -> bool:
    return isinstance(v, (int, torch.SymInt)) and not isinstance(v, bool)


def _log2_ceil(a: int) -> int:
    return max(0, int(a) - 1).bit_length()


_FUNCTIONS: dict[str, Callable[..., Any]] = {
    "min": lambda *a: _fold(torch.sym_min, a),
    "max": lambda *a: _fold(torch.sym_max, a),
    "ceil_div": lambda a, b: -(-a // b),
    "align_up": lambda a, b: -(-a // b) * b,
    "log2_ceil": _log2_ceil,
    "abs": abs,
}


def _fold(f: Callable[[Any, Any], Any], values: Sequence[Any]) -> Any:
    result = values[0]
    for v in values[1:]:
        result = f(result, v)
    return result


class _Reader:
    """Evaluates while it reads; what && || ?: do not need is read in a dead scope and not computed."""

    def __init__(self, text: str, scope: Scope) -> None:
        self.text, self.scope, self.live = text, scope, True
        self.tokens = _TOKEN.findall(text)
        self.at = 0

    def peek(self) -> str:
        return self.tokens[self.at] if self.at < len(self.tokens) else ""

    def take(self, token: str = "") -> str:
        found = self.peek()
        if not found or (token and found != token):
            raise ValueError(f"{self.text!r}: expected {token or 'more'}, found {found or 'the end'}")
        self.at += 1
        return found

    def ternary(self) -> Any:
        condition = self.binary(0)
        if self.peek() != "?":
            return condition
        self.take()
        yes = self.guarded(bool(condition), self.ternary)
        self.take(":")
        no = self.guarded(not condition, self.ternary)
        return yes if condition else no

    def guarded(self, live: bool, read: Callable[[], Any]) -> Any:
        before, self.live = self.live, self.live and live
        try:
            return read()
        finally:
            self.live = before

    def binary(self, level: int) -> Any:
        if level == len(_BINARY):
            return self.unary()
        left = self.binary(level + 1)
        while self.peek() in _BINARY[level]:
            op = self.take()
            if op in ("||", "&&"):
                done = bool(left) == (op == "||")
                right = self.guarded(not done, lambda: self.binary(level + 1))
                left = int(bool(left)) if done else int(bool(right))
            else:
                left = self.compute(op, left, self.binary(level + 1))
        return left

    def compute(self, op: str, a: Any, b: Any) -> Any:
        if not self.live:
            return 0
        match op:
            case "+":
                return a + b
            case "-":
                return a - b
            case "*":
                return a * b
            case "/":
                return a // b
            case "%":
                return a % b
            case "==":
                return int(a == b)
            case "!=":
                return int(a != b)
            case "<":
                return int(a < b)
            case "<=":
                return int(a <= b)
            case ">":
                return int(a > b)
        return int(a >= b)

    def unary(self) -> Any:
        if self.peek() == "-":
            self.take()
            return -self.unary()
        if self.peek() == "!":
            self.take()
            return int(not self.unary())
        return self.primary()

    def arguments(self) -> list[Any]:
        self.take("(")
        found = []
        while self.peek() != ")":
            found.append(self.ternary())
            if self.peek() == ",":
                self.take()
        self.take(")")
        return found

    def primary(self) -> Any:
        token = self.take()
        if token == "(":
            value = self.ternary()
            self.take(")")
            return value
        if token.isdigit():
            return int(token)
        following = self.peek()
        if following == ".":
            self.take()
            name = self.take()
            at = self.arguments() if self.peek() == "(" else []
            return self.scope.field(token, name, at) if self.live else 0
        if following == "[":
            self.take()
            i = self.ternary()
            self.take("]")
            return self.scope.args[token][i] if self.live else 0
        if following == "(":
            return self.call(token)
        return self.name(token)

    def call(self, function: str) -> Any:
        if function in ("len", "present", "align", "numel"):
            self.take("(")
            name = self.take()
            self.take(")")
            value = self.scope.args[name]
            if function == "present":
                return int(value is not None)
            return len(value) if function == "len" else value.numel() if function == "numel" else 256
        values = self.arguments()
        return _FUNCTIONS[function](*values) if self.live else 0

    def name(self, name: str) -> Any:
        if not self.live:
            return 0
        if name not in self.scope.values:
            raise ValueError(f"{self.text!r}: {name} has no value here")
        return self.scope.values[name]


def evaluate(text: str, scope: Scope) -> Any:
    """The value of an expression: an int, or a symbolic one. ValueError says what is wrong with it."""
    reader = _Reader(text, scope)
    value = reader.ternary()
    if reader.peek():
        raise ValueError(f"{text!r}: {reader.peek()!r} is left over")
    return value


def _bind(contract: dict[str, Any], scope: Scope) -> None:
    """Dims that shapes bind, then derived ones."""
    bound = {d["name"] for d in contract["dims"] if d["expr"] is None}
    for arg in contract["args"]:
        tensor = scope.args.get(arg["name"])
        if not isinstance(tensor, Tensor) or arg["shape"] is None:
            continue
        for size, expr in zip(tensor.shape, arg["shape"]):
            if expr in bound and expr not in scope.values:
                scope.values[expr] = size
    for dim in contract["dims"]:
        if dim["expr"] is not None:
            scope.values[dim["name"]] = evaluate(dim["expr"], scope)


def _output(spec: dict[str, Any], scope: Scope, device: torch.device) -> Tensor:
    if spec["dtype"] is not None:
        dtype = getattr(torch, spec["dtype"])
    else:
        dtype = scope.args[spec["dtype_as"]].dtype
    if spec["like"] is not None:
        return torch.empty_like(scope.args[spec["like"]], dtype=dtype)
    return torch.empty([evaluate(e, scope) for e in spec["shape"]], dtype=dtype, device=device)


def shapes_of(contract: dict[str, Any]) -> Callable[[Sequence[Any]], Any]:
    """Outputs for all the arguments of an Op, in order; contract is kgen_rt_contract's answer."""
    names = [a["name"] for a in contract["args"]]

    def fake(args: Sequence[Any]) -> Any:
        scope = Scope(dict(zip(names, args, strict=True)))
        device = next(a.device for a in args if isinstance(a, Tensor))
        _bind(contract, scope)
        found = tuple(_output(o, scope, device) for o in contract["outputs"])
        return found[0] if len(found) == 1 else found

    return fake
