"""A Program as a user would have written it by hand: what baselines compile.

`program.evaluate` widens integers to int64 and clamps look-ups, so that a Program means the same for every input. Here the
sizes of the Case are known: an interval of each integer value shows where neither is needed, and numbers stay Python
numbers. Refuses nothing: what cannot be shown to be safe is computed as there.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .program import BOOL, F32, I32, INT32_MAX, INT32_MIN, Program, Section, literal_type, literal_value, to_f32
from .program import _FLOAT_OPS, _BOOL_OPS, _COMPARE_OPS, _apply, _look_up

Interval = tuple[int, int]
ANY: Interval = (INT32_MIN, INT32_MAX)

# Of the two operands' intervals, for the operations on integers that take part in indices.
_WIDENS = {
    "add": lambda a, b: (a[0] + b[0], a[1] + b[1]),
    "sub": lambda a, b: (a[0] - b[1], a[1] - b[0]),
    "mul": lambda a, b: _hull([x * y for x in a for y in b]),
    "neg": lambda a, _: (-a[1], -a[0]),
    "abs": lambda a, _: (0 if a[0] <= 0 <= a[1] else min(map(abs, a)), max(map(abs, a))),
    "min": lambda a, b: (min(a[0], b[0]), min(a[1], b[1])),
    "max": lambda a, b: (max(a[0], b[0]), max(a[1], b[1])),
    # By a divisor above zero alone.
    "floordiv": lambda a, b: _hull([x // y for x in a for y in b]) if b[0] > 0 else None,
    "rem": lambda a, b: (0, b[1] - 1) if b[0] > 0 else None,
}
_INT32_OPS = {
    "add": torch.add, "sub": torch.sub, "mul": torch.mul, "neg": torch.neg, "abs": torch.abs,
    "min": torch.minimum, "max": torch.maximum, "rem": torch.remainder,
    "floordiv": lambda a, b: torch.div(a, b, rounding_mode="floor"),
}  # fmt: skip


def _hull(values: Sequence[int]) -> Interval:
    return min(values), max(values)


def _fits(i: Interval | None) -> bool:
    return i is not None and i[0] >= INT32_MIN and i[1] <= INT32_MAX


class Lean:
    """One section of a Program for fixed sizes. Call it with the inputs that evaluate takes, b, h, q and kv as integers."""

    def __init__(self, program: Program, section: Section, sizes: dict[str, int], shapes: Sequence[Sequence[int]]):
        """sizes: of b, h, q and kv. shapes: of the captured tensors."""
        self.program, self.section, self.shapes = program, section, [tuple(s) for s in shapes]
        known = {name: (0, max(0, n - 1)) for name, n in sizes.items()}
        self.intervals: list[Interval] = []
        self.exact: list[bool] = []
        for op, kind, *args in section.values:
            given = [self._interval(a, known) for a in args if a[0] != "t"]
            made = self._made(op, kind, args, given)
            self.exact.append(_fits(made))
            self.intervals.append(made if made is not None and _fits(made) else ANY)

    def _interval(self, token: str, known: dict[str, Interval]) -> Interval:
        if token[0] == "%":
            return self.intervals[int(token[1:])]
        if literal_type(token) == I32:
            return (int(token), int(token))
        return known.get(token, ANY)

    def _made(self, op: str, kind: str, args: Sequence[str], given: list[Interval]) -> Interval | None:
        """The interval of an integer value, None when it may leave int32 or nothing is known; of a look-up, whether the
        index is inside."""
        if op == "load":
            shape = self.shapes[int(args[0][1:])]
            return ANY if all(0 <= i[0] and i[1] < n for i, n in zip(given, shape, strict=True)) else None
        if kind == I32 and op == "where":
            return _hull([*given[1], *given[2]])
        if kind != I32 or op not in _WIDENS:
            return None
        return _WIDENS[op](given[0], given[1] if len(given) > 1 else given[0])

    def __call__(
        self, inputs: dict[str, Any], captured: Sequence[Tensor], scalars: Sequence[float], dtype: torch.dtype
    ) -> Tensor:
        """The section's result; float32 of the Program is computed in dtype."""
        values: list[Any] = []

        def operand(token: str) -> Any:
            if token[0] == "%":
                return values[int(token[1:])]
            if token in inputs:
                return inputs[token]
            if token[0] == "s" and token[1:].isdigit():
                return _number(scalars[int(token[1:])], self.program.scalars[int(token[1:])])
            return _number(literal_value(token), literal_type(token) or BOOL)

        for i, (op, kind, *args) in enumerate(self.section.values):
            if op == "load":
                values.append(self._load(i, captured[int(args[0][1:])], [operand(a) for a in args[1:]], dtype))
            else:
                values.append(self._apply(i, op, kind, [operand(a) for a in args], dtype))
        return _tensor(operand(self.section.result), dtype, inputs["q"].device)

    def _load(self, i: int, table: Tensor, index: list[Any], dtype: torch.dtype) -> Tensor:
        if not self.exact[i]:
            return _look_up(table, [_tensor(x, dtype, table.device) for x in index], dtype)
        x = table[tuple(index)]
        if x.dtype == torch.bool or x.dtype in (dtype, torch.int32):
            return x
        return x.to(dtype if x.is_floating_point() else torch.int32)

    def _apply(self, i: int, op: str, kind: str, args: list[Any], dtype: torch.dtype) -> Any:
        device = next((a.device for a in args if isinstance(a, Tensor)), torch.device("cpu"))
        if op == "cast" and kind == F32 and isinstance(args[0], Tensor):
            return args[0].to(dtype)
        if op in _COMPARE_OPS and isinstance(args[0], Tensor):
            return _COMPARE_OPS[op](args[0], args[1])
        if kind == I32 and self.exact[i] and op in _INT32_OPS:
            plain = op in ("add", "sub", "mul", "floordiv", "rem") and isinstance(args[0], Tensor)
            return _INT32_OPS[op](*(args if plain else [_tensor(a, dtype, device) for a in args]))
        if kind == F32 and op in ("add", "sub", "mul", "div") and isinstance(args[0], Tensor):
            return _FLOAT_OPS[op](args[0], args[1])
        if kind == F32 and op in ("add", "mul") and isinstance(args[1], Tensor):
            return _FLOAT_OPS[op](args[1], args[0])
        if kind == BOOL and op in _BOOL_OPS and op not in ("xor",):
            return _BOOL_OPS[op](*[_tensor(a, dtype, device) for a in args])
        return _apply(op, kind, [_tensor(a, dtype, device) for a in args], dtype)


def _number(value: float, kind: str) -> bool | int | float:
    if kind == BOOL:
        return bool(value)
    return int(value) if kind == I32 else to_f32(value)


def _tensor(x: Any, dtype: torch.dtype, device: torch.device) -> Tensor:
    if isinstance(x, Tensor):
        return x
    kind = torch.bool if isinstance(x, bool) else torch.int32 if isinstance(x, int) else dtype
    return torch.full((), x, dtype=kind, device=device)


def of(program: Program, sizes: dict[str, int], shapes: Sequence[Sequence[int]]) -> tuple[Lean | None, Lean | None]:
    """The score and the mask section."""
    score = Lean(program, program.score, sizes, shapes) if program.score else None
    mask = Lean(program, program.mask, sizes, shapes) if program.mask else None
    return score, mask
