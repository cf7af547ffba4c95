"""kgen: torch ops whose kernels are generated, judged and promoted.

Importing it defines torch.ops.kgen.attention, attention_mod, attention_mod_output, softmax, layer_norm, rms_norm, linear, matmul and conv2d (the last three with
linear_mod, matmul_mod and conv2d_mod) and opens the registries, so that promoted Kernels serve them and torch's own ops serve what no Kernel does. Other Ops of a registry are
defined when they are first asked for. Everything else here is imported at its first use.
"""

from __future__ import annotations

import importlib
import os
import sys
import types
from typing import Any



def _is_command() -> bool:
    """Whether `kgen` or `python -m kgen` starts here: then the command says what is missing, not a traceback."""
    name = os.path.basename(sys.argv[0]) if sys.argv else ""
    words = sys.orig_argv
    return name == "kgen" or (name == "-m" and ("-mkgen" in words or "kgen" in words[words.index("-m") + 1 :][:1]))


# Why the ops are not there, for the command line.
_unusable: BaseException | None = None


OLDEST_TORCH = (2, 10)


def torch_version(text: str) -> tuple[int, ...]:
    """(2, 13) of "2.13.0+cpu"."""
    return tuple(int(part) for part in text.split("+")[0].split(".")[:2])


def _start() -> str:
    """Defines the ops and opens the registries; the version."""
    try:
        import torch
    except ImportError as e:
        raise ImportError(f"kgen needs torch 2.10 or newer, and it does not import ({e}): pip install torch") from e
    if torch_version(torch.__version__) < OLDEST_TORCH:
        raise ImportError(f"kgen needs torch 2.10 or newer, and this is {torch.__version__}: pip install -U torch")

    from . import _native

    _native.start()
    if os.environ.get("KGEN_DISABLE", "0") in ("", "0"):
        _native.discover()
    _define_on_access()
    return _native.version()


def _define_on_access() -> None:
    """torch.ops.kgen.NAME defines what Python must add to an op (fake, autograd, vmap, autocast) just before
    its first use, and Ops of a registry altogether: in eager, in compile and after torch.export.load."""
    import torch

    namespace = torch.ops.kgen
    base = type(namespace)

    class KgenOps(base):  # type: ignore[misc, valid-type]
        __module__ = base.__module__  # torch builds the ops' own module names, which exports keep, from it

        def __getattr__(self, name: str) -> Any:
            if name.startswith("__"):
                return super().__getattr__(name)
            from . import ops

            ops.define(name)
            return ops.packet(super().__getattr__(name))

    namespace.__class__ = KgenOps


try:
    __version__ = _start()
except (ImportError, KeyboardInterrupt) as e:
    if not _is_command():
        raise
    _unusable = e

# name -> (module, name there)
_LAZY = {
    "attention": ("attention", "attention"),
    "linear": ("products", "linear"),
    "matmul": ("products", "matmul"),
    "conv2d": ("convolution", "conv2d"),
    "patch": ("patch", "patch"),
    "unpatch": ("patch", "unpatch"),
    "patch_report": ("patch", "patch_report"),
    "tune": ("tune", "tune"),
    "verify": ("verify", "verify"),
    "check": ("check", "check"),
    "build": ("verify", "build"),
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
