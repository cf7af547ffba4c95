"""kgen: torch ops whose kernels are generated, judged and promoted.

Importing it defines torch.ops.kgen.attention, attention_mod and softmax and opens the registries, so that
promoted Kernels serve them and torch's own ops serve what no Kernel does. Other Ops of a registry are
defined when they are first asked for. Everything else here is imported at its first use.
"""

from __future__ import annotations

import importlib
import os
import sys
import types
from typing import Any

import torch

from . import _native

__version__ = _native.version()

_native.start()
if os.environ.get("KGEN_DISABLE", "0") in ("", "0"):
    _native.discover()


def _define_on_access() -> None:
    """torch.ops.kgen.NAME defines what Python must add to an op (fake, autograd, vmap, autocast) just before
    its first use, and Ops of a registry altogether: in eager, in compile and after torch.export.load."""
    namespace = torch.ops.kgen
    base = type(namespace)

    class KgenOps(base):  # type: ignore[misc, valid-type]
        __module__ = base.__module__  # torch builds the ops' own module names, which exports keep, from it

        def __getattr__(self, name: str) -> Any:
            if not name.startswith("__"):
                from . import ops

                ops.define(name)
            return super().__getattr__(name)

    namespace.__class__ = KgenOps


_define_on_access()

# name -> (module, name there)
_LAZY = {
    "attention": ("attention", "attention"),
    "patch": ("patch", "patch"),
    "unpatch": ("patch", "unpatch"),
    "tune": ("tune", "tune"),
    "verify": ("verify", "verify"),
    "build": ("verify", "build"),
    "check": ("check", "check"),
    "TraceError": ("trace", "TraceError"),
    "load": ("serving", "load"),
    "unload": ("serving", "unload"),
    "reload": ("serving", "reload"),
    "why": ("serving", "why"),
    "warmup": ("serving", "warmup"),
    "registry": ("serving", "registry"),
    "precision": ("serving", "precision"),
    "policy": ("serving", "policy"),
}


class _Package(types.ModuleType):
    """Importing kgen.attention must not put a module where the function kgen.attention is."""

    def __setattr__(self, name: str, value: Any) -> None:
        if not (name in _LAZY and isinstance(value, types.ModuleType)):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module 'kgen' has no attribute {name!r}")
    module, attribute = _LAZY[name]
    value = getattr(importlib.import_module(f"{__name__}.{module}"), attribute)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *_LAZY])
