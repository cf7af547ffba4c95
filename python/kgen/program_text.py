"""Writes expressions as the canonical text of a Program (docs/formats.md, "Program")."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np

from .symbolic import BOOL, F32, Expr, TensorRef, TooLarge

MAX_VALUES, MAX_TENSORS, MAX_SCALARS, MAX_RANK, MAX_TEXT = 512, 16, 32, 6, 65536


@dataclass(frozen=True)
class ProgramText:
    """text is None when neither section has anything to say; tensors and scalars are in the order of t0, s0 ...

    Integers other than the smallest are lifted, so that lengths, windows and table sizes share one Program.
    """

    text: str | None
    tensors: tuple[TensorRef, ...]
    scalars: tuple[float, ...]


def float_literal(value: float) -> str:
    """Python's spelling of the shortest decimal that reads back as the same float32."""
    if math.isnan(value):
        return "nan"
    with np.errstate(over="ignore"):
        f = np.float32(value)
        if np.isinf(f):
            return "inf" if f > 0 else "-inf"
        for digits in range(9):
            text = f"{float(f):.{digits}e}"
            if np.float32(float(text)) == f:
                break
    return repr(float(text))


@dataclass
class _Section:
    tensors: dict[TensorRef, str]
    scalars: dict[int, str]
    lines: list[str] = field(default_factory=list)
    names: dict[Expr | tuple[str, ...], str] = field(default_factory=dict)

    def value(self, op: str, type_: str, *args: str) -> str:
        key = (op, type_, *args)
        if key not in self.names:
            if len(self.lines) >= MAX_VALUES:
                raise TooLarge(f"a section of a Program holds at most {MAX_VALUES} values")
            name = f"%{len(self.lines)}"
            self.lines.append(f"{name} = {op} {type_} {' '.join(args)}")
            self.names[key] = name
        return self.names[key]

    def emit(self, e: Expr) -> str:
        if e not in self.names:
            self.names[e] = self._emit(e)
        return self.names[e]

    def _emit(self, e: Expr) -> str:
        if e.op == "var":
            return str(e.args[0])
        if e.op == "const":
            if e.type == F32:
                return float_literal(e.args[0])
            return str(e.args[0]).lower() if e.type == BOOL else self.integer(e.args[0])
        if e.op == "lin":
            return self._linear(e)
        if e.op == "load":
            ref: TensorRef = e.args[0]
            index = [self.emit(a) for a in e.args[1:]]
            return self.value("load", e.type, self.tensor(ref), *index)
        return self.value(e.op, e.type, *[self.emit(a) for a in e.args])

    def integer(self, value: int) -> str:
        if not -1 << 31 <= value < 1 << 31:
            raise TooLarge(f"the integer {value} does not fit 32 bits")
        if abs(value) <= 2 or (value not in self.scalars and len(self.scalars) >= MAX_SCALARS):
            return str(value)
        return self.scalars.setdefault(value, f"s{len(self.scalars)}")

    def tensor(self, ref: TensorRef) -> str:
        if ref not in self.tensors:
            if len(self.tensors) >= MAX_TENSORS:
                raise TooLarge(f"a Program reads at most {MAX_TENSORS} tensors")
            if len(ref.dims) > MAX_RANK:
                raise TooLarge(f"a Program reads tensors of at most {MAX_RANK} dims")
            self.tensors[ref] = f"t{len(self.tensors)}"
        return self.tensors[ref]

    def _linear(self, e: Expr) -> str:
        constant, terms = e.args
        ordered = [t for t in terms if t[0] > 0] + [t for t in terms if t[0] < 0]
        total: str | None = None
        for c, atom in ordered:
            size = abs(c)
            part = self.emit(atom)
            if size != 1:
                part = self.value("mul", "int32", part, self.integer(size))
            if total is None:
                if c < 0:
                    total = self.value("sub", "int32", self.integer(constant), part)
                    constant = 0
                else:
                    total = part
            else:
                total = self.value("add" if c > 0 else "sub", "int32", total, part)
        assert total is not None
        if constant:
            total = self.value("add" if constant > 0 else "sub", "int32", total, self.integer(abs(constant)))
        return total


def write_program(score: Expr | None, mask: Expr | None) -> ProgramText:
    """The text of a Program with these sections. score is over the variable `score`; mask gives a bool."""
    tensors: dict[TensorRef, str] = {}
    scalars: dict[int, str] = {}
    body: list[str] = []
    for name, e in (("score", score), ("mask", mask)):
        if e is None:
            continue
        section = _Section(tensors, scalars)
        result = section.emit(e)
        body += [name, *section.lines, f"return {result}"]
    if not body:
        return ProgramText(None, (), ())
    body, tensor_order = _renumber(body, "t")
    body, scalar_order = _renumber(body, "s")
    refs, values = list(tensors), list(scalars)
    refs, values = [refs[i] for i in tensor_order], [values[i] for i in scalar_order]
    header = ["program 1"]
    header += [f"tensor t{i} {ref.dtype} {len(ref.dims)}" for i, ref in enumerate(refs)]
    header += [f"scalar s{i} int32" for i in range(len(values))]
    text = "\n".join(header + body) + "\n"
    if len(text) > MAX_TEXT:
        raise TooLarge(f"a Program is at most {MAX_TEXT} bytes of text")
    return ProgramText(text, tuple(refs), tuple(values))


def _renumber(lines: list[str], letter: str) -> tuple[list[str], list[int]]:
    """Names t0, t1 ... (or s0 ...) by first use in the text; also returns the old numbers in the new order."""
    order: list[int] = []

    def rename(word: str) -> str:
        if word[0] != letter or not word[1:].isdigit():
            return word
        old = int(word[1:])
        if old not in order:
            order.append(old)
        return f"{letter}{order.index(old)}"

    return [" ".join(rename(w) for w in line.split(" ")) for line in lines], order
