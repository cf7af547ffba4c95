"""Writes expressions as the text of a Program: raw instructions here, canonical form by program.py."""

from __future__ import annotations

from dataclasses import dataclass, field

from . import program
from .symbolic import I32, Expr, TensorRef, TooLarge


@dataclass(frozen=True)
class ProgramText:
    """text is None when neither section has anything to say; tensors and scalars are in the order of t0, s0 ...

    Integers other than the smallest are lifted, so that lengths, windows and table sizes share one Program.
    """

    text: str | None
    tensors: tuple[TensorRef, ...]
    scalars: tuple[float, ...]


@dataclass
class _Shared:
    """Captured tensors and lifted scalars of both sections, by first use."""

    tensors: dict[TensorRef, str] = field(default_factory=dict)
    scalars: dict[int, str] = field(default_factory=dict)

    def tensor(self, ref: TensorRef) -> str:
        if len(ref.dims) > program.MAX_RANK:
            raise TooLarge(f"a Program reads tensors of at most {program.MAX_RANK} dims")
        return self.tensors.setdefault(ref, f"t{len(self.tensors)}")

    def integer(self, value: int) -> str:
        if abs(value) <= 2 or (value not in self.scalars and len(self.scalars) >= program.MAX_SCALARS):
            return program.literal(value, I32)
        program.literal(value, I32)
        return self.scalars.setdefault(value, f"s{len(self.scalars)}")


class _Section:
    def __init__(self, shared: _Shared):
        self.shared = shared
        self.raw: list[tuple[str, ...]] = []
        self.tokens: dict[Expr, str] = {}

    def value(self, op: str, type_: str, *args: str) -> str:
        self.raw.append((op, type_, *args))
        return f"%{len(self.raw) - 1}"

    def emit(self, e: Expr) -> str:
        if e not in self.tokens:
            self.tokens[e] = self._emit(e)
        return self.tokens[e]

    def _emit(self, e: Expr) -> str:
        if e.op == "var":
            return str(e.args[0])
        if e.op == "const":
            return self.shared.integer(e.args[0]) if e.type == I32 else program.literal(e.args[0], e.type)
        if e.op == "lin":
            return self._linear(e)
        if e.op == "load":
            return self.value("load", e.type, self.shared.tensor(e.args[0]), *[self.emit(a) for a in e.args[1:]])
        return self.value(e.op, e.type, *[self.emit(a) for a in e.args])

    def _linear(self, e: Expr) -> str:
        constant, terms = e.args
        ordered = [t for t in terms if t[0] > 0] + [t for t in terms if t[0] < 0]
        total: str | None = None
        for c, atom in ordered:
            part = self.emit(atom)
            if abs(c) != 1:
                part = self.value("mul", I32, part, self.shared.integer(abs(c)))
            if total is not None:
                total = self.value("add" if c > 0 else "sub", I32, total, part)
            elif c > 0:
                total = part
            else:
                total = self.value("sub", I32, self.shared.integer(constant), part)
                constant = 0
        assert total is not None
        if constant:
            total = self.value("add" if constant > 0 else "sub", I32, total, self.shared.integer(abs(constant)))
        return total


def write_program(score: Expr | None, mask: Expr | None) -> ProgramText:
    """The Program with these sections. score is over the variable `score`; mask gives a bool."""
    shared = _Shared()
    sections = []
    try:
        for e in (score, mask):
            section = _Section(shared)
            sections.append(None if e is None else (section, section.emit(e)))
        refs, values = list(shared.tensors), list(shared.scalars)
        made = program.canonical(
            *[None if s is None else (s[0].raw, s[1]) for s in sections],
            [(ref.dtype, len(ref.dims)) for ref in refs],
            [I32] * len(values),
        )
    except program.ProgramError as e:
        raise TooLarge(str(e)) from e
    if not made.text:
        return ProgramText(None, (), ())
    return ProgramText(
        made.text, tuple(refs[i] for i in made.tensors), tuple(values[i] for i in made.scalars)
    )
