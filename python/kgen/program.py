"""Programs in Python: the canonical text (docs/formats.md, "Program"), reading it back, and its meaning in torch.

The text is the only thing that travels; nothing here is needed to serve a Kernel. `evaluate` is the torch
interpreter of a section: the fp64 oracle, the fallback and the backward of a Program all run it.
"""

from __future__ import annotations

import math
import struct
from dataclasses import dataclass
from functools import lru_cache
from typing import Callable, Sequence

import torch
from torch import Tensor

MAX_VALUES, MAX_TENSORS, MAX_SCALARS, MAX_RANK, MAX_TEXT = 512, 16, 32, 6, 65536
INT32_MIN, INT32_MAX = -(1 << 31), (1 << 31) - 1

F32, I32, BOOL = "float32", "int32", "bool"

# The causal mask, as kgen.attention writes it, and the other ways to say it in one or two operations.
CAUSAL = "program 1\nmask\n%0 = ge bool q kv\nreturn %0\n"
CAUSAL_TEXTS = frozenset((
    CAUSAL,
    "program 1\nmask\n%0 = le bool kv q\nreturn %0\n",
    "program 1\nmask\n%0 = lt bool q kv\n%1 = not bool %0\nreturn %1\n",
    "program 1\nmask\n%0 = gt bool kv q\n%1 = not bool %0\nreturn %1\n",
))  # fmt: skip

LOAD_TYPE = {
    torch.float32: F32, torch.float64: F32, torch.float16: F32, torch.bfloat16: F32,
    torch.int8: I32, torch.uint8: I32, torch.int16: I32, torch.int32: I32, torch.int64: I32,
    torch.bool: BOOL,
}
INPUT_TYPE = {"score": F32, "b": I32, "h": I32, "q": I32, "kv": I32, "acc": F32, "m": I32, "n": I32}
COMPARISONS = ("eq", "ne", "lt", "le", "gt", "ge")
FLOAT_UNARY = ("tanh", "exp", "exp2", "log", "log2", "sqrt", "rsqrt", "sin", "cos", "sigmoid", "floor", "ceil", "erf")


class ProgramError(ValueError):
    """The text is no canonical Program, or it goes beyond a Program's limits."""


def dtype_name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def to_f32(value: float) -> float:
    """The float32 nearest to value, as a Python float."""
    try:
        return struct.unpack("<f", struct.pack("<f", value))[0]
    except OverflowError:
        return math.copysign(math.inf, value)


def f32_text(value: float) -> str:
    """The fewest significant digits that read back as the same float32, spelled as Python spells that decimal."""
    v = to_f32(value)
    if not math.isfinite(v):
        return "nan" if math.isnan(v) else ("inf" if v > 0 else "-inf")
    text = ""
    for digits in range(9):
        text = f"{v:.{digits}e}"
        if to_f32(float(text)) == v:
            break
    return repr(float(text))


def literal(value: bool | int | float, kind: str) -> str:
    if kind == BOOL:
        return "true" if value else "false"
    if kind == F32:
        return f32_text(float(value))
    if not INT32_MIN <= value <= INT32_MAX:
        raise ProgramError(f"the integer {value} does not fit int32, the type of indices in a Program")
    return str(int(value))


def literal_type(token: str) -> str | None:
    """The type of a literal's token; None for values and inputs."""
    if token in ("true", "false"):
        return BOOL
    if token in ("inf", "-inf", "nan"):
        return F32
    if not (token[0].isdigit() or (token[0] == "-" and token[1:2].isdigit())):
        return None
    return F32 if "." in token or "e" in token else I32


def literal_value(token: str) -> bool | int | float:
    kind = literal_type(token)
    if kind == BOOL:
        return token == "true"
    return int(token) if kind == I32 else float(token)


# ---- canonical text from raw instructions ----

# A raw instruction is (op, type, operand, ...); an operand is the token of the text, "%k" being raw value k.
Raw = Sequence[tuple[str, ...]]


def _wrap(v: int) -> int:
    return (v + (1 << 31)) % (1 << 32) - (1 << 31)


def _int_fold(op: str, a: int, b: int) -> int | None:
    if op in ("floordiv", "rem", "truncdiv") and b == 0:
        return 0
    table: dict[str, Callable[[], int]] = {
        "add": lambda: a + b, "sub": lambda: a - b, "mul": lambda: a * b, "neg": lambda: -a, "abs": lambda: abs(a),
        "min": lambda: min(a, b), "max": lambda: max(a, b), "floordiv": lambda: a // b, "rem": lambda: a % b,
        "truncdiv": lambda: abs(a) // abs(b) * (1 if (a < 0) == (b < 0) else -1),
        "and": lambda: a & b, "or": lambda: a | b, "xor": lambda: a ^ b, "not": lambda: ~a,
        "shl": lambda: a << b if 0 <= b <= 31 else 0, "shr": lambda: a >> (b if 0 <= b <= 31 else 31),
    }
    return _wrap(table[op]()) if op in table else None


def _float_fold(op: str, a: float, b: float) -> float | None:
    """Only results that float32 holds exactly: what is rounded depends on who computes it."""
    if op in ("neg", "abs"):
        return -a if op == "neg" else abs(a)
    if op in ("min", "max"):
        return math.nan if math.isnan(a) or math.isnan(b) else (min if op == "min" else max)(a, b)
    if not (math.isfinite(a) and math.isfinite(b)) or op not in ("add", "sub", "mul", "div"):
        return None
    if op == "div":
        q = a / b if b != 0 else math.nan
        return q if math.isfinite(q) and to_f32(q) == q and q * b == a else None
    exact = {"add": a + b, "sub": a - b, "mul": a * b}[op]
    # A sum of two float32 in double is exact when it fits; a product always is.
    error = 0.0
    if op != "mul":
        c = b if op == "add" else -b
        t = exact - a
        error = (a - (exact - t)) + (c - t)
    return exact if error == 0.0 and to_f32(exact) == exact else None


def _compare(op: str, a: float, b: float) -> bool:
    return {"eq": a == b, "ne": a != b, "lt": a < b, "le": a <= b, "gt": a > b, "ge": a >= b}[op]


def _cast_fold(kind: str, v: bool | int | float) -> str | None:
    if kind == BOOL:
        return literal(v != 0, BOOL)
    if kind == F32:
        return literal(float(v), F32) if to_f32(float(v)) == v else None
    if isinstance(v, float):
        v = 0 if math.isnan(v) else int(max(min(v, INT32_MAX), INT32_MIN))
    return literal(int(v), I32)


def _identity(op: str, kind: str, args: tuple[str, ...]) -> str | None:
    """The operand that the operation leaves as it is, if any."""
    a, b = (args + ("", ""))[:2]
    same = {
        (I32, "add"): [(a, b == "0"), (b, a == "0")], (I32, "sub"): [(a, b == "0"), ("0", a == b)],
        (I32, "mul"): [(a, b == "1"), (b, a == "1"), ("0", "0" in (a, b))],
        (I32, "floordiv"): [(a, b == "1")], (I32, "truncdiv"): [(a, b == "1")], (I32, "rem"): [("0", b == "1")],
        (I32, "shl"): [(a, b == "0")], (I32, "shr"): [(a, b == "0")],
        (I32, "min"): [(a, a == b)], (I32, "max"): [(a, a == b)],
        (I32, "and"): [(a, a == b)], (I32, "or"): [(a, a == b)], (I32, "xor"): [("0", a == b)],
        (F32, "mul"): [(a, b == "1.0"), (b, a == "1.0")], (F32, "div"): [(a, b == "1.0")],
        (F32, "sub"): [(a, b == "0.0")], (F32, "add"): [(a, b == "-0.0"), (b, a == "-0.0")],
        (BOOL, "and"): [(a, b == "true"), (b, a == "true"), ("false", "false" in (a, b)), (a, a == b)],
        (BOOL, "or"): [(a, b == "false"), (b, a == "false"), ("true", "true" in (a, b)), (a, a == b)],
        (BOOL, "xor"): [(a, b == "false"), (b, a == "false"), ("false", a == b)],
    }
    for result, holds in same.get((kind, op), ()):
        if holds:
            return result
    return None


class _Section:
    """Instructions of one section without repetition: the same operation on the same operands is one value."""

    def __init__(self) -> None:
        self.values: list[tuple[str, ...]] = []
        self.names: dict[tuple[str, ...], str] = {}

    def add(self, op: str, kind: str, args: tuple[str, ...]) -> str:
        folded = self.fold(op, kind, args)
        if folded is not None:
            return folded
        key = (op, kind, *args)
        if key not in self.names:
            self.names[key] = f"%{len(self.values)}"
            self.values.append(key)
        return self.names[key]

    def fold(self, op: str, kind: str, args: tuple[str, ...]) -> str | None:
        if op == "load":
            return None
        if op == "where" and (args[1] == args[2] or literal_type(args[0])):
            return args[2] if args[0] == "false" else args[1]
        if op in ("not", "neg") and args[0].startswith("%"):
            inner = self.values[int(args[0][1:])]
            if inner[:2] == (op, kind):
                return inner[2]
        if not all(literal_type(a) for a in args):
            return _identity(op, kind, args)
        v = [literal_value(a) for a in args] + [0]
        if op == "cast":
            return _cast_fold(kind, v[0])
        if op in COMPARISONS:
            return literal(_compare(op, v[0], v[1]), BOOL)
        if op == "where":
            return args[1] if v[0] else args[2]
        if kind == I32:
            r = _int_fold(op, int(v[0]), int(v[1]))
        elif kind == F32:
            r = _float_fold(op, float(v[0]), float(v[1]))
        else:
            r = {"and": v[0] & v[1], "or": v[0] | v[1], "xor": v[0] ^ v[1], "not": not v[0]}[op]
        return None if r is None else literal(r, kind)


def _fold_all(raw: Raw, result: str) -> tuple[_Section, str]:
    section, names = _Section(), []
    for op, kind, *args in raw:
        names.append(section.add(op, kind, tuple(names[int(a[1:])] if a[0] == "%" else a for a in args)))
    return section, names[int(result[1:])] if result[0] == "%" else result


def _ordered(section: _Section, result: str) -> list[int]:
    """Values that the result needs, operands before their users, left to right: the order depends on the
    expression alone, not on how its statements were written."""
    order: list[int] = []
    done: set[int] = set()
    stack = [(int(result[1:]), 0)] if result[0] == "%" else []
    while stack:
        value, at = stack.pop()
        args = [int(a[1:]) for a in section.values[value][2:] if a[0] == "%"]
        while at < len(args) and args[at] in done:
            at += 1
        if at < len(args):
            stack += [(value, at + 1), (args[at], 0)]
        elif value not in done:
            done.add(value)
            order.append(value)
    return order


def _is_ref(token: str, letter: str) -> bool:
    return token[0] == letter and token[1:].isdigit()


@dataclass(frozen=True)
class Canonical:
    """tensors[i] and scalars[i]: which raw "tN", "sN" the text's ti and si are."""

    text: str
    tensors: tuple[int, ...]
    scalars: tuple[int, ...]


def canonical(
    score: tuple[Raw, str] | None,
    mask: tuple[Raw, str] | None,
    tensors: Sequence[tuple[str, int]],
    scalars: Sequence[str],
    epilogue: tuple[Raw, str] | None = None,
) -> Canonical:
    """The canonical text of raw sections (instructions, result), whose "tN" is of tensors[N] = (dtype, rank) and
    whose "sN" is of type scalars[N]. Values are folded where that is exact, shared, ordered and numbered; what
    the results do not need is gone. A score and an epilogue that is the input, and a mask that is true, are left
    out; with none the text is "". Raises ProgramError past a limit."""
    maps: dict[str, list[int]] = {"t": [], "s": []}

    def rename(token: str) -> str:
        for letter, order in maps.items():
            if _is_ref(token, letter):
                k = int(token[1:])
                if k not in order:
                    order.append(k)
                return f"{letter}{order.index(k)}"
        return token

    body: list[str] = []
    for name, raw, nothing in (("score", score, "score"), ("mask", mask, "true"), ("epilogue", epilogue, "acc")):
        if raw is None:
            continue
        section, result = _fold_all(*raw)
        if result == nothing:
            continue
        number: dict[str, str] = {}
        body.append(name)
        for i in _ordered(section, result):
            op, kind, *args = section.values[i]
            words = [number[a] if a[0] == "%" else rename(a) for a in args]
            number[f"%{i}"] = f"%{len(number)}"
            body.append(" ".join([f"%{len(number) - 1}", "=", op, kind, *words]))
        if len(number) > MAX_VALUES:
            raise ProgramError(f"the {name} needs {len(number)} values; a section of a Program has at most {MAX_VALUES}")
        body.append("return " + (number[result] if result[0] == "%" else rename(result)))
    if not body:
        return Canonical("", (), ())
    if len(maps["t"]) > MAX_TENSORS:
        raise ProgramError(f"{len(maps['t'])} tensors are looked up; a Program has at most {MAX_TENSORS}")
    if len(maps["s"]) > MAX_SCALARS:
        raise ProgramError(f"{len(maps['s'])} scalars are lifted; a Program has at most {MAX_SCALARS}")
    head = ["program 1"]
    head += [f"tensor t{i} {tensors[k][0]} {tensors[k][1]}" for i, k in enumerate(maps["t"])]
    head += [f"scalar s{i} {scalars[k]}" for i, k in enumerate(maps["s"])]
    text = "\n".join(head + body) + "\n"
    if len(text) > MAX_TEXT:
        raise ProgramError(f"the Program has {len(text)} bytes of text; at most {MAX_TEXT} are allowed")
    return Canonical(text, tuple(maps["t"]), tuple(maps["s"]))


# ---- reading a text ----


@dataclass(frozen=True)
class Section:
    values: tuple[tuple[str, ...], ...]  # (op, type, operand tokens ...)
    result: str


@dataclass(frozen=True)
class Program:
    """A parsed text. The C core is the judge of what is canonical; this refuses what it cannot execute."""

    tensors: tuple[tuple[str, int], ...]
    scalars: tuple[str, ...]
    score: Section | None
    mask: Section | None
    epilogue: Section | None = None


@lru_cache(maxsize=512)
def parse(text: str) -> Program:
    lines = text.splitlines()
    if not lines or lines[0] != "program 1":
        raise ProgramError(f"line 1: expected 'program 1', found {lines[0] if lines else 'nothing'!r}")
    tensors: list[tuple[str, int]] = []
    scalars: list[str] = []
    sections: dict[str, Section] = {}
    values: list[tuple[str, ...]] = []
    at = ""
    for n, line in enumerate(lines[1:], 2):
        words = line.split(" ")
        if words[0] == "tensor" and len(words) == 4 and not at:
            tensors.append((words[2], int(words[3])))
        elif words[0] == "scalar" and len(words) == 3 and not at:
            scalars.append(words[2])
        elif line in ("score", "mask", "epilogue") and line not in sections:
            at, values = line, []
        elif words[0] == f"%{len(values)}" and len(words) >= 4 and words[1] == "=" and at:
            values.append(tuple(words[2:]))
        elif words[0] == "return" and len(words) == 2 and at:
            sections[at], at = Section(tuple(values), words[1]), " "
        else:
            raise ProgramError(f"line {n}: {line!r} is not what a Program has here")
    if not sections or at != " ":
        raise ProgramError("a Program needs a score, a mask or an epilogue section that ends with return")
    if "epilogue" in sections and len(sections) > 1:
        raise ProgramError("an epilogue is the one section of its Program")
    return Program(tuple(tensors), tuple(scalars), *(sections.get(name) for name in ("score", "mask", "epilogue")))


# ---- its meaning in torch ----


def _floor_div(a: Tensor, b: Tensor) -> Tensor:
    zero = b == 0
    return torch.where(zero, 0, torch.div(a, torch.where(zero, 1, b), rounding_mode="floor"))


def _trunc_div(a: Tensor, b: Tensor) -> Tensor:
    zero = b == 0
    return torch.where(zero, 0, torch.div(a, torch.where(zero, 1, b), rounding_mode="trunc"))


def _rem(a: Tensor, b: Tensor) -> Tensor:
    return torch.where(b == 0, 0, a - _floor_div(a, b) * b)


def _shl(a: Tensor, n: Tensor) -> Tensor:
    return torch.where((n < 0) | (n > 31), 0, a * (torch.ones_like(n) << n.clamp(0, 31)))


def _shr(a: Tensor, n: Tensor) -> Tensor:
    return a >> torch.where((n < 0) | (n > 31), 31, n)


# On int64, so that int32 wraps exactly and division never traps; bools are their own.
_INT_OPS: dict[str, Callable[..., Tensor]] = {
    "add": torch.add, "sub": torch.sub, "mul": torch.mul, "neg": torch.neg, "abs": torch.abs,
    "min": torch.minimum, "max": torch.maximum, "floordiv": _floor_div, "rem": _rem, "truncdiv": _trunc_div,
    "and": torch.bitwise_and, "or": torch.bitwise_or, "xor": torch.bitwise_xor, "not": torch.bitwise_not,
    "shl": _shl, "shr": _shr,
}
_FLOAT_OPS: dict[str, Callable[..., Tensor]] = {
    "add": torch.add, "sub": torch.sub, "mul": torch.mul, "neg": torch.neg, "abs": torch.abs,
    "min": torch.minimum, "max": torch.maximum, "div": torch.div, "rem": torch.remainder, "pow": torch.pow,
    "floordiv": lambda a, b: torch.div(a, b, rounding_mode="floor"),
    **{name: getattr(torch, name) for name in FLOAT_UNARY},
}
_BOOL_OPS: dict[str, Callable[..., Tensor]] = {
    "and": torch.logical_and, "or": torch.logical_or, "xor": torch.logical_xor, "not": torch.logical_not,
}
_COMPARE_OPS: dict[str, Callable[..., Tensor]] = {name: getattr(torch, name) for name in COMPARISONS}


def _cast(x: Tensor, kind: str, dtype: torch.dtype) -> Tensor:
    if kind == BOOL:
        return x != 0
    if kind == F32:
        return x.to(dtype)
    if x.is_floating_point():
        return torch.nan_to_num(x.double(), nan=0.0).clamp(INT32_MIN, INT32_MAX).trunc().to(torch.int32)
    return x.to(torch.int32)


def _look_up(table: Tensor, index: Sequence[Tensor], dtype: torch.dtype) -> Tensor:
    at = []
    for i, n in zip(index, table.shape):
        i = i.long()
        at.append(torch.where(i < 0, i + n, i).clamp(0, n - 1))
    return _as_loaded(table[tuple(at)] if at else table, dtype)


def _as_loaded(x: Tensor, dtype: torch.dtype) -> Tensor:
    kind = LOAD_TYPE[x.dtype]
    return x.to(dtype) if kind == F32 else x.to(torch.int32) if kind == I32 else x


def _apply(op: str, kind: str, args: list[Tensor], dtype: torch.dtype) -> Tensor:
    if op == "where":
        return torch.where(*args)
    if op == "cast":
        return _cast(args[0], kind, dtype)
    if op in _COMPARE_OPS:
        return _COMPARE_OPS[op](*args)
    if kind == F32:
        return _FLOAT_OPS[op](*args)
    if kind == BOOL:
        return _BOOL_OPS[op](*args)
    return _INT_OPS[op](*[a.long() for a in args]).to(torch.int32)


def evaluate(
    program: Program,
    section: Section,
    inputs: dict[str, Tensor],
    captured: Sequence[Tensor],
    scalars: Sequence[float],
    dtype: torch.dtype,
    elements: tuple[str, ...] = (),
) -> Tensor:
    """A section's result over inputs that broadcast: "b", "h", "q", "kv" (int32) and, for the score section,
    "score" (dtype); of an epilogue "b", "m", "n" (int32) and "acc" (dtype). float32 of the Program is computed in dtype: float64 for an oracle. Differentiable in score,
    acc and the captured tensors. elements: a look-up by just these indices is the tensor as it is, which broadcasts."""
    device = next(iter(inputs.values())).device
    torch_type = {F32: dtype, I32: torch.int32, BOOL: torch.bool}

    def constant(value: float, kind: str) -> Tensor:
        value = to_f32(value) if kind == F32 else int(value)
        return torch.full((), value, dtype=torch_type[kind], device=device)

    values: list[Tensor] = []

    def operand(token: str) -> Tensor:
        if token[0] == "%":
            return values[int(token[1:])]
        if token in inputs:
            return inputs[token]
        if _is_ref(token, "s"):
            return constant(scalars[int(token[1:])], program.scalars[int(token[1:])])
        return constant(literal_value(token), literal_type(token) or BOOL)

    for op, kind, *args in section.values:
        if op == "load" and len(args) > 1 and tuple(args[1:]) == elements:
            values.append(_as_loaded(captured[int(args[0][1:])], dtype))
        elif op == "load":
            values.append(_look_up(captured[int(args[0][1:])], [operand(a) for a in args[1:]], dtype))
        else:
            values.append(_apply(op, kind, [operand(a) for a in args], dtype))
    return operand(section.result)
