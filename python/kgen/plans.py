"""A Plan: the rewritten forward of one module for one kind of call, and the test whether a call is of that kind.

The test covers all that the graph took for granted: the inputs' layout, the parameters' shapes, dtypes and
devices, modes, plain attributes, classes and hooks of everything below. It must stay cheap, and readable by
torch.compile, which turns it into guards of its own.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx, nn
from torch.utils import _pytree as pytree
from torch.utils.weak import WeakTensorKeyDictionary

from .graphs import Graph, GraphInput, lookup

_PLAIN = (bool, int, float, str, type(None), torch.dtype)


@dataclass(frozen=True)
class _TensorSpec:
    shape: torch.Size
    stride: tuple[int, ...]
    dtype: torch.dtype
    device: torch.device
    contiguous: bool

    @staticmethod
    def of(x: torch.Tensor) -> _TensorSpec:
        return _TensorSpec(x.shape, x.stride(), x.dtype, x.device, x.is_contiguous())

    def fits(self, x: Any) -> bool:
        if not isinstance(x, torch.Tensor):
            return False
        if x.dtype != self.dtype or x.shape != self.shape or x.device != self.device:
            return False
        return x.is_contiguous() if self.contiguous else x.stride() == self.stride


@dataclass(frozen=True)
class _Below:
    """What one submodule looked like."""

    path: tuple[str, ...]
    kind: type
    training: bool
    attributes: tuple[tuple[str, Any], ...]
    is_root: bool

    def fits(self, root: nn.Module) -> bool:
        m = root
        for name in self.path:
            m = m._modules.get(name)  # type: ignore[assignment]
            if m is None:
                return False
        if type(m) is not self.kind or m.training is not self.training:
            return False
        if not self.is_root:
            if m._forward_hooks or m._forward_pre_hooks or m._backward_hooks or m._backward_pre_hooks:
                return False
        for name, value in self.attributes:
            now = getattr(m, name, _PLAIN)
            if now is not value and (type(now) is not type(value) or now != value):
                return False
        return True


@dataclass(frozen=True)
class _Held:
    """A parameter, buffer or tensor attribute that the graph reads."""

    path: tuple[str, ...]
    name: str
    kind: str
    spec: _TensorSpec
    value: torch.Tensor | None

    def read(self, root: nn.Module) -> Any:
        m = root
        for name in self.path:
            m = m._modules[name]  # type: ignore[assignment]
        if self.kind == "parameter":
            return m._parameters.get(self.name)
        if self.kind == "buffer":
            return m._buffers.get(self.name)
        return getattr(m, self.name)


class _Assumed:
    """A buffer whose values the graph has built in. They are compared when the tensor is another one or was
    written since; torch.compile takes them as they are."""

    def __init__(self, held: _Held, values: torch.Tensor):
        self.held, self.values = held, values.detach().clone()
        self._trusted = WeakTensorKeyDictionary()

    def fits(self, root: nn.Module) -> bool:
        if torch.compiler.is_compiling():
            return True
        now = self.held.read(root)
        if not isinstance(now, torch.Tensor):
            return False
        version = -1 if now.is_inference() else now._version
        if version < 0 or self._trusted.get(now) != version:
            if now.shape != self.values.shape or now.dtype != self.values.dtype or now.device != self.values.device:
                return False
            if not torch.equal(now, self.values):
                return False
            self._trusted[now] = version
        return True


@dataclass(frozen=True)
class Plan:
    """run() gives what the module's own forward would, for calls that fits() accepts."""

    code: Callable[..., Any]
    flat: bool                    # called with positional leaves alone
    spec: Any                     # of (args, kwargs)
    keywords: tuple[str, ...]
    leaves: tuple[Any, ...]       # _TensorSpec, or the value itself
    held: tuple[_Held, ...]
    order: tuple[tuple[str, int], ...]  # per placeholder: ("held", i), ("user", i) or ("unused", 0)
    assumed: tuple[_Assumed, ...]
    below: tuple[_Below, ...]
    out_spec: Any
    single: bool                  # the output is one leaf
    autocast: tuple[tuple[str, bool, torch.dtype], ...]

    def fits(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
        leaves = self._leaves(args, kwargs)
        if leaves is None or len(leaves) != len(self.leaves):
            return False
        for device, enabled, dtype in self.autocast:
            if torch.is_autocast_enabled(device) is not enabled:
                return False
            if enabled and torch.get_autocast_dtype(device) is not dtype:
                return False
        for value, wanted in zip(leaves, self.leaves):
            if isinstance(wanted, _TensorSpec):
                if not wanted.fits(value):
                    return False
            elif type(value) is not type(wanted) or value != wanted:
                return False
        for held in self.held:
            if held.value is None and not held.spec.fits(held.read(module)):
                return False
        for below in self.below:
            if not below.fits(module):
                return False
        for assumed in self.assumed:
            if not assumed.fits(module):
                return False
        return True

    def run(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        leaves = self._leaves(args, kwargs)
        values = []
        for kind, i in self.order:
            if kind == "user":
                values.append(leaves[i])  # type: ignore[index]
            elif kind == "unused":
                values.append(None)
            else:
                held = self.held[i]
                values.append(held.value if held.value is not None else held.read(module))
        out = self.code(None, *values)
        if self.single:
            return out[0]
        return pytree.tree_unflatten(out, self.out_spec)

    def needs_grad(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
        for x in self._leaves(args, kwargs) or ():
            if isinstance(x, torch.Tensor) and x.requires_grad:
                return True
        for held in self.held:
            if held.kind == "parameter" and held.read(module).requires_grad:
                return True
        return False

    def _leaves(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if self.flat:
            return None if kwargs else args
        if len(kwargs) != len(self.keywords):
            return None
        for name in self.keywords:
            if name not in kwargs:
                return None
        ordered = {name: kwargs[name] for name in self.keywords}
        leaves, spec = pytree.tree_flatten((args, ordered))
        return leaves if spec == self.spec else None


def make_plan(
    module: nn.Module, graph: Graph, code: fx.GraphModule, args: tuple[Any, ...], kwargs: dict[str, Any],
    assumed: set[fx.Node],
) -> Plan:  # fmt: skip
    """The Plan of a rewritten graph of module, which was captured with these arguments.

    assumed: placeholders of graph whose values the rewritten graph has built in.
    """
    keywords = tuple(_keyword_order(graph, kwargs))
    leaves, spec = pytree.tree_flatten((args, {k: kwargs[k] for k in keywords}))
    flat = not kwargs and all(isinstance(a, (torch.Tensor, *_PLAIN)) for a in args)
    held, order, trusted = [], [], []
    placeholders = [n for n in code.graph.nodes if n.op == "placeholder"]
    for g, placeholder in zip(graph.inputs, placeholders, strict=True):
        if g.node in assumed:
            one = _hold(module, g)
            if one.value is None:
                trusted.append(_Assumed(one, one.read(module)))
        if not placeholder.users:
            order.append(("unused", 0))
        elif g.kind == "user":
            order.append(("user", g.position))
        else:
            order.append(("held", len(held)))
            held.append(_hold(module, g))
    out_spec = graph.out_spec
    return Plan(
        type(code).forward, flat, spec, keywords,
        tuple(_TensorSpec.of(x) if isinstance(x, torch.Tensor) else x for x in leaves),
        tuple(held), tuple(order), tuple(trusted), tuple(_below(module)), out_spec, out_spec.is_leaf(),
        _autocast(leaves),
    )  # fmt: skip


def _autocast(leaves: list[Any]) -> tuple[tuple[str, bool, torch.dtype], ...]:
    """The state of autocast on each kind of device that the inputs are on."""
    devices = sorted({x.device.type for x in leaves if isinstance(x, torch.Tensor)} or {"cpu"})
    return tuple((d, torch.is_autocast_enabled(d), torch.get_autocast_dtype(d)) for d in devices)


def _keyword_order(graph: Graph, kwargs: dict[str, Any]) -> list[str]:
    names = graph.in_spec.children()[1].context if graph.in_spec.num_children == 2 else []
    return [n for n in names if n in kwargs]


def _hold(module: nn.Module, g: GraphInput) -> _Held:
    *path, name = g.target.split(".")
    if g.kind == "constant":
        try:
            live = lookup(module, g.target)
        except AttributeError:
            live = None
        if not isinstance(live, torch.Tensor):
            assert g.value is not None
            return _Held((), g.target, g.kind, _TensorSpec.of(g.value), g.value)
    else:
        live = lookup(module, g.target)
    return _Held(tuple(path), name, g.kind, _TensorSpec.of(live), None)


def _below(module: nn.Module) -> list[_Below]:
    found = []
    for name, m in module.named_modules():
        plain = tuple(
            (k, v) for k, v in sorted(vars(m).items()) if not k.startswith("_") and k != "training" and _simple(v)
        )
        found.append(_Below(tuple(name.split(".")) if name else (), type(m), m.training, plain, not name))
    return found


def _simple(v: Any) -> bool:
    if isinstance(v, tuple):
        return all(_simple(x) for x in v)
    return isinstance(v, _PLAIN)
