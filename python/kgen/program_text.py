"""Writes expressions as the canonical text of a Program (docs/formats.md, "Program")."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np

from .symbolic import F32, Expr, TensorRef, TooLarge

MAX_VALUES, MAX_TENSORS, MAX_RANK, MAX_TEXT = 512, 16, 6, 65536


@dataclass(frozen=True)
class ProgramText:
    """text is None when neither section has anything to say; tensors are in the order of t0, t1 ..."""

    text: str | None
    tensors: tuple[TensorRef, ...]


def float_literal(value: float) -> str:
    """The shortest decimal that reads back as the same float32: what %g would choose among those."""
    if math.isnan(value):
        return "nan"
    with np.errstate(over="ignore"):
        f = np.float32(value)
    if np.isinf(f):
        return "inf" if f > 0 else "-inf"
    for digits in range(1, 10):
        text = f"{float(f):.{digits}g}"
        with np.errstate(over="ignore"):
            if np.float32(float(text)) == f:
                return text
    return f"{float(f):.9g}"


@dataclass
class _Section:
    tensors: dict[TensorRef, str]
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
            return str(e.args[0]).lower()
        if e.op == "lin":
            return self._linear(e)
        if e.op == "load":
            ref: TensorRef = e.args[0]
            index = [self.emit(a) for a in e.args[1:]]
            return self.value("load", e.type, self.tensor(ref), *(index or ["0"]))
        return self.value(e.op, e.type, *[self.emit(a) for a in e.args])

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
                part = self.value("mul", "int32", part, str(size))
            if total is None:
                if c < 0:
                    total = self.value("sub", "int32", str(constant), part)
                    constant = 0
                else:
                    total = part
            else:
                total = self.value("add" if c > 0 else "sub", "int32", total, part)
        assert total is not None
        if constant:
            total = self.value("add" if constant > 0 else "sub", "int32", total, str(abs(constant)))
        return total


def write_program(score: Expr | None, mask: Expr | None) -> ProgramText:
    """The text of a Program with these sections. score is over the variable `score`; mask gives a bool."""
    tensors: dict[TensorRef, str] = {}
    body: list[str] = []
    for name, e in (("score", score), ("mask", mask)):
        if e is None:
            continue
        section = _Section(tensors)
        result = section.emit(e)
        body += [name, *section.lines, f"return {result}"]
    if not body:
        return ProgramText(None, ())
    header = ["program 1"]
    header += [f"tensor {name} {ref.dtype} {max(1, len(ref.dims))}" for ref, name in tensors.items()]
    text = "\n".join(header + body) + "\n"
    if len(text) > MAX_TEXT:
        raise TooLarge(f"a Program is at most {MAX_TEXT} bytes of text")
    return ProgramText(text, tuple(tensors))
