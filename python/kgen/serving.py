"""What a user asks of the serving side: registries, which Kernel serves a call, warming up, precision.

Refuses to look for registries anywhere but where it is told.
"""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils import _pytree as pytree

from . import _native
from .errors import BadInput


@dataclass(frozen=True, slots=True)
class Decision:
    """What served one call of an op. `kind` is exact, dynamic, instantiated or fallback.

    kernel is the Kernel's name ("softmax/v3") or None; for a fallback, nearest is the Kernel whose key comes
    closest and differs the first field in which it does not fit. notes has a line for each Kernel that was
    passed over, with the reason.
    """

    op: str
    kind: str
    kernel: str | None
    id: str | None = None
    arch: str | None = None
    registry: str | None = None
    verified: bool | None = None
    unverified: str | None = None
    policy: str = "arch"
    reason: str | None = None
    nearest: str | None = None
    differs: str | None = None
    notes: str = ""

    def __str__(self) -> str:
        if self.kernel is not None:
            text = f"{self.op}: {self.kernel} ({self.kind}, {self.arch}) from {self.registry}"
            return text if self.verified else f"{text}; unverified: {self.unverified}"
        text = f"{self.op}: fallback to torch: {self.reason}"
        if self.nearest is not None:
            text += f"; nearest is {self.nearest}: {self.differs}"
        elif self.differs is not None:
            text += f"; {self.differs}"
        return "\n  ".join([text, *self.notes.splitlines()])


@dataclass(frozen=True, slots=True)
class Why:
    """The decisions of one call, in order; a call that never reached kgen has none."""

    decisions: tuple[Decision, ...]

    @property
    def fallbacks(self) -> int:
        return sum(d.kind == "fallback" for d in self.decisions)

    def __str__(self) -> str:
        if not self.decisions:
            return "no kgen op was reached: torch serves this call (see its dtype, rank and arguments)"
        return "\n".join(str(d) for d in self.decisions)


_asked = threading.local()


def _explain(call: Callable[[], object]) -> tuple[Decision, ...]:
    """The decisions while call runs. One inside another (a patched model asks at its first call) is part of both."""
    outer = getattr(_asked, "found", None)
    if outer is not None:
        outer += _native.explain_end()
    found: list[dict[str, Any]] = []
    _asked.found = found
    _native.explain_begin()
    try:
        call()
    finally:
        found += _native.explain_end()
        _asked.found = outer
        if outer is not None:
            outer += found
            _native.explain_begin()
    return tuple(Decision(**d) for d in found)


def _callable(op: str | Callable[..., object]) -> Callable[..., object]:
    if not isinstance(op, str):
        return op
    if op == "attention_program":
        raise BadInput("why: the op is called attention_mod")
    try:
        return getattr(torch.ops.kgen, op.removeprefix("kgen::"))
    except AttributeError as e:
        raise BadInput(f"why: {e}") from None


def why(op: str | Callable[..., object], *args: Any, **kwargs: Any) -> Why:
    """Calls op ("attention", "softmax", an Op of a registry, or any callable, a model say) once, without
    gradients, and tells what served each call of a kgen op in it."""
    target = _callable(op)
    with torch.no_grad():
        return Why(_explain(lambda: target(*args, **kwargs)))


def warmup(model: Callable[..., object], inputs: Any) -> Why:
    """Runs the model once without gradients, so that every Kernel it needs is compiled and loaded: before its calls are
    captured into a CUDA graph, above all, where neither can be done. On each device that the model's inputs are on; what
    a Kernel does wrong there comes out here.

    inputs: a tensor, a tuple or list of arguments, or a dict of keyword arguments.
    """
    if isinstance(inputs, Mapping):
        found = why(model, **inputs)
    elif isinstance(inputs, (tuple, list)):
        found = why(model, *inputs)
    else:
        found = why(model, inputs)
    for device in {x.device for x in pytree.tree_leaves(inputs) if isinstance(x, torch.Tensor) and x.is_cuda}:
        torch.cuda.synchronize(device)
    return found


def load(path: str | os.PathLike[str]) -> None:
    """Opens the registry in a folder, before all others; one that is open already is read again."""
    try:
        _native.add(os.fspath(path), front=True)
    except LookupError as e:
        raise BadInput(str(e)) from None


def unload(path: str | os.PathLike[str]) -> None:
    """Closes a registry; what it alone served falls back."""
    try:
        _native.remove(os.fspath(path))
    except LookupError as e:
        raise BadInput(str(e)) from None


def reload() -> None:
    """Looks at every open registry again: what was promoted or rolled back meanwhile takes effect."""
    _native.reload()


def registry() -> list[dict[str, Any]]:
    """The open registries in order: [{"path", "ops": [{"name", "schema", "kernels": [{"name", "id", "arch",
    "pins": [{"kind", "dtypes", "program", "dims"}]}]}]}]."""
    return _native.describe()


def policy(name: str | None = None) -> str:
    """Sets (when given) and returns the policy: "strict", "arch" or "off"."""
    return _native.policy(name)


@contextlib.contextmanager
def precision(name: str) -> Iterator[None]:
    """The precision class that this thread's fp32 calls accept inside the context: "fp32", "tf32" or "bf16"."""
    if name not in _native.PRECISIONS:
        raise BadInput(f"precision {name!r}; it is one of fp32, tf32, bf16")
    before = _native.precision(_native.PRECISIONS[name])
    try:
        yield
    finally:
        _native.precision(before)
