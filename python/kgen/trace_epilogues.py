"""Traces epilogues of products into Programs: functions of the output and of captured tensors, element by element.

The rebuilding of functions, the guards and the cache are trace.py's. A tensor with dims is read at the element that is at
hand, as broadcasting has it; what is no function of single elements raises TraceError, which names it.
"""

from __future__ import annotations

import types
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from .program import F32, LOAD_TYPE, Canonical
from .proxies import Proxy, Recorder, TraceError
from .trace import (_CPU, Reads, Rebuilder, Traced, _cached, _canonical, _canonical_constant, _compile_trace, _CompiledWatch,
                    _finish, _key, _opaque, _rebuilt, _run_user, _Section, _Trace, _Watch)


class Elements(Recorder):
    """Of an epilogue: a tensor with dims is read at the element of the output that is at hand, as broadcasting has it."""

    def __init__(self, tensors: list[Tensor], scalars: list[tuple[Any, str]], device: torch.device,
                 index: tuple[str, ...]) -> None:
        super().__init__(tensors, scalars, device)
        self.index = index

    def element(self, t: Tensor) -> Proxy:
        return self.emit("load", LOAD_TYPE[t.dtype], self.tensor(t), *self.index)

    def of(self, t: Tensor) -> Proxy:
        return self.element(t) if t.dim() != 0 else self.emit("load", LOAD_TYPE[t.dtype], self.tensor(t))

    def described(self) -> tuple[tuple[str, int], ...]:
        return tuple((str(t.dtype)[6:], len(self.index) if t.dim() != 0 else 0) for t in self.tensors)


def canonical_epilogue(rec: Elements, result: str) -> Canonical:
    """The canonical form of what was recorded."""
    return _canonical(None, None, rec.described(), [k for _, k in rec.scalars], (rec.raw, result))


class _Epilogue(_Section):
    def __init__(self, device: torch.device, index: tuple[str, ...], captures: Sequence[Tensor]) -> None:
        self.name = "epilogue"
        self.rec: Elements = Elements([], [], device, index)
        self.captures = captures

    def run(self, function: Callable[..., Any]) -> str:
        given = [self.rec.of(t) for t in self.captures]
        return _finish(self.rec, function(Proxy(self.rec, "acc", F32), *given), self.name)[1]


def _of_torch(fn: Any) -> bool:
    """torch.relu, F.gelu: functions that are what they are."""
    return isinstance(fn, (types.FunctionType, types.BuiltinFunctionType)) and _opaque(fn.__module__ or "torch") \
        and getattr(fn, "__closure__", None) is None


def _epilogue_now(epilogue: Any, captures: tuple[Tensor, ...], index: tuple[str, ...], device: torch.device) -> _Trace:
    reads = Reads()
    for i, t in enumerate(captures):
        reads.know(t, reads.let(f"mask_mod[{i}]"))
    section = _Epilogue(device, index, captures)
    with _Watch(reads):
        if _of_torch(epilogue):
            reads.guard(f"score_mod is {reads.constant(epilogue)}")
            function = epilogue
        else:
            function = _rebuilt(Rebuilder(reads), epilogue, "score_mod")
        result = _run_user(section, function, epilogue)
    rec = section.rec
    return _compile_trace(reads, canonical_epilogue(rec, result), rec.tensors, rec.scalars, None)


def trace_epilogue(epilogue: Callable[..., Any], captures: Sequence[Tensor], index: tuple[str, ...],
                   device: torch.device = _CPU) -> Traced:
    """The Program of epilogue(output, *captures), which works element by element; index, of ("b", "m", "n"), are the dims of
    the output. As trace(); a captured tensor with dims has those of the index in the Program, whatever its own."""
    if not callable(epilogue):
        raise TraceError(f"epilogue must be a function, not {type(epilogue).__name__}")
    given = tuple(captures)
    key = ("epilogue", _key(epilogue), len(given), index, device)
    return _cached(key, (epilogue, given, None), lambda: _epilogue_now(epilogue, given, index, device))


def trace_epilogue_compiled(epilogue: Any, captures: Sequence[Tensor], index: tuple[str, ...],
                            device: torch.device = _CPU) -> tuple[str, list[Tensor], list[float]]:
    """trace_epilogue() for code that Dynamo runs through."""
    section = _Epilogue(device, index, captures)
    with _CompiledWatch():
        result = section.run(epilogue)
    rec = section.rec
    kinds = tuple(k for _, k in rec.scalars)
    text, used, lifted = _canonical_constant(None, None, rec.described(), kinds, (tuple(rec.raw), result))
    return text, [rec.tensors[i] for i in used], [float(rec.scalars[i][0]) for i in lifted]
