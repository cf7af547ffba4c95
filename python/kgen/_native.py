"""libkgen_rt.so through ctypes: the one place in Python that knows its functions.

Loading it defines the ops and opens the registries; it parses no JSON and compiles nothing. Refuses to run
before torch is imported.
"""

from __future__ import annotations

import atexit
import ctypes
import functools
import json
import os
import sys
import warnings
from collections.abc import Callable
from typing import Any

import torch

from . import _paths
from .errors import BadInput, EnvironmentLacks, KgenError

_NOT_FOUND, _ENVIRONMENT = -7, {-1, -11, -18}  # no memory, a machine that lacks something, a device that failed
_ERR = 1024
PRECISIONS = {"fp32": 0, "native": 0, "tf32": 1, "bf16": 2}


_Sink = ctypes.CFUNCTYPE(None, ctypes.c_int, ctypes.c_char_p)


def _declare(lib: ctypes.CDLL) -> None:
    c, text = ctypes.c_int, ctypes.c_char_p
    out = ctypes.POINTER(ctypes.c_void_p)
    error = [ctypes.c_char_p, ctypes.c_size_t]
    for name, result, args in (
        ("kgen_rt_version", text, []),
        ("kgen_rt_free", None, [ctypes.c_void_p]),
        ("kgen_rt_on_message", None, [_Sink]),
        ("kgen_rt_start", c, [text, text, *error]),
        ("kgen_rt_add", c, [text, c, *error]),
        ("kgen_rt_remove", c, [text, *error]),
        ("kgen_rt_reload", c, error),
        ("kgen_rt_policy", c, [text, ctypes.POINTER(text), *error]),
        ("kgen_rt_precision", c, [c]),
        ("kgen_rt_define", c, [text, *error]),
        ("kgen_rt_contract", c, [text, out, *error]),
        ("kgen_rt_describe", c, [out, *error]),
        ("kgen_rt_explain_begin", None, []),
        ("kgen_rt_explain_end", c, [out, *error]),
        ("kgen_rt_fallback", c, [ctypes.c_int64, out, *error]),
        ("kgen_rt_on_load", None, [ctypes.c_void_p]),
        ("kgen_rt_count", None, [ctypes.POINTER(ctypes.c_uint64)]),
    ):
        function = getattr(lib, name)
        function.restype = result
        function.argtypes = args


def _load() -> ctypes.CDLL:
    try:
        path = _paths.binary("libkgen_rt.so")
    except FileNotFoundError as e:
        raise ImportError(f"kgen: {e}") from None
    lib = ctypes.CDLL(str(path))
    _declare(lib)
    return lib


_lib = _load()


def _raise(code: int, message: str) -> None:
    if code == _NOT_FOUND:
        raise LookupError(message)
    if code in _ENVIRONMENT:
        raise EnvironmentLacks(message)
    raise BadInput(message)


def _call(name: str, *args: Any) -> None:
    _checked(getattr(_lib, name), *args)


def _checked(function: Callable[..., int], *args: Any) -> None:
    err = ctypes.create_string_buffer(_ERR)
    code = function(*args, err, _ERR)
    if code != 0:
        _raise(code, err.value.decode("utf-8", "replace"))


def _json(name: str, *args: Any) -> Any:
    out = ctypes.c_void_p()
    _call(name, *args, ctypes.byref(out))
    try:
        return json.loads(ctypes.string_at(out.value or 0))
    finally:
        _lib.kgen_rt_free(out)


def _libtorch() -> bytes | None:
    path = os.path.join(torch.__path__[0], "lib", "libtorch_cpu.so")
    return os.fsencode(path) if os.path.exists(path) else None


_OURS = (os.path.dirname(__file__) + os.sep, torch.__path__[0] + os.sep)


@_Sink
def _warn(level: int, message: bytes) -> None:
    # Whose call it is about: the first frame above this one that is neither torch's nor kgen's.
    frame, depth = sys._getframe(1) if hasattr(sys, "_getframe") else None, 2
    while frame is not None and frame.f_code.co_filename.startswith(_OURS):
        frame, depth = frame.f_back, depth + 1
    warnings.warn(f"kgen: {message.decode('utf-8', 'replace')}", stacklevel=depth)


def start() -> None:
    """Defines the canonical ops. ImportError says what the process or torch lacks."""
    _lib.kgen_rt_on_message(_warn)
    atexit.register(_lib.kgen_rt_on_message, _Sink())  # threads may outlive the interpreter
    try:
        _call("kgen_rt_start", _libtorch(), str(torch.__version__).encode())
    except KgenError as e:
        raise ImportError(f"kgen: {e}") from None


def add(path: str, front: bool) -> None:
    """Opens a registry. LookupError when there is no such folder."""
    _call("kgen_rt_add", os.fsencode(path), int(front))


def remove(path: str) -> None:
    """Closes a registry. LookupError when it is not open."""
    _call("kgen_rt_remove", os.fsencode(path))


def _user_registry() -> str:
    data = os.environ.get("XDG_DATA_HOME") or os.path.join(os.path.expanduser("~"), ".local/share")
    return os.path.join(data, "kgen", "generated")


def discover() -> None:
    """Opens KGEN_REGISTRY's registries, the user's and the package's own, in this order.

    One that is not usable is a warning: import never fails for it. The last two may be absent.
    """
    named = os.environ.get("KGEN_REGISTRY", "")
    for path in filter(None, named.split(os.pathsep)):
        try:
            add(path, front=False)
        except (KgenError, LookupError) as e:
            warnings.warn(f"kgen: KGEN_REGISTRY: {e}", stacklevel=3)
    for path in (_user_registry(), str(_paths.shipped_registry())):
        if os.path.isdir(path):
            try:
                add(path, front=False)
            except (KgenError, LookupError) as e:
                warnings.warn(f"kgen: {e}", stacklevel=3)


def reload() -> None:
    _call("kgen_rt_reload")


def policy(name: str | None = None) -> str:
    now = ctypes.c_char_p()
    _call("kgen_rt_policy", name.encode() if name is not None else None, ctypes.byref(now))
    return (now.value or b"").decode()


def precision(code: int) -> int:
    return _lib.kgen_rt_precision(code)


def define(name: str) -> None:
    """Defines the ops of an indexed Op that is not canonical. LookupError when no registry has it."""
    _call("kgen_rt_define", name.encode())


def contract(name: str) -> dict[str, Any]:
    return _json("kgen_rt_contract", name.encode())


def describe() -> list[dict[str, Any]]:
    return _json("kgen_rt_describe")


def explain_begin() -> None:
    _lib.kgen_rt_explain_begin()


def explain_end() -> list[dict[str, Any]]:
    return _json("kgen_rt_explain_end")


def fallback_call(call: int) -> dict[str, Any]:
    return _json("kgen_rt_fallback", call)


def on_load(hook: int) -> None:
    """The address of a C function that is called around the load of each image (kgen.h)."""
    _lib.kgen_rt_on_load(hook)


def counters() -> dict[str, int]:
    """Calls served by Kernels and by fallbacks, call classes resolved and now cached, in this process."""
    out = (ctypes.c_uint64 * 4)()
    _lib.kgen_rt_count(out)
    return dict(zip(("served", "fallbacks", "resolved", "classes"), out, strict=True))


class _Eager:
    """The functions that take Python's objects; ctypes holds the GIL while they run."""

    def __init__(self) -> None:
        lib = ctypes.PyDLL(_lib._name)
        c, p, u = ctypes.c_int, ctypes.c_void_p, ctypes.c_uint64
        error = [ctypes.c_char_p, ctypes.c_size_t]
        self.learn, self.open, self.admit = lib.kgen_rt_eager_learn, lib.kgen_rt_eager_open, lib.kgen_rt_eager_admit
        self.softmax, self.attention = lib.kgen_rt_eager_softmax, lib.kgen_rt_eager_attention
        self.learn.argtypes = [p, ctypes.c_size_t, u, u, u, u, c, *error]
        self.open.argtypes = [p, p, *error]
        self.admit.argtypes = [p, u, *error]
        for function in (self.softmax, self.attention):
            function.argtypes, function.restype = [ctypes.py_object], ctypes.py_object


@functools.cache
def _eager() -> _Eager:
    return _Eager()


def eager_learn(tensor: int, size: int, impl: int, keys: int, included: int, excluded: int, plain: bool) -> None:
    """BadInput: the quick way stays shut, and why."""
    _checked(_eager().learn, tensor, size, impl, keys, included, excluded, plain)


def eager_open(tensor_type: int, forward_ad: int) -> None:
    """The same."""
    _checked(_eager().open, tensor_type, forward_ad)


def eager_admit(tensor: int, keys: int) -> None:
    """BadInput: such tensors cannot go the quick way, and why."""
    _checked(_eager().admit, tensor, keys)


def eager_softmax(otherwise: Callable[..., Any], differentiated: Callable[..., Any]) -> Callable[..., Any]:
    return _eager().softmax((otherwise, differentiated))


def eager_attention(otherwise: Callable[..., Any], differentiated: Callable[..., Any]) -> Callable[..., Any]:
    return _eager().attention((otherwise, differentiated))


def say(message: str) -> None:
    """For those who set KGEN_LOG."""
    if os.environ.get("KGEN_LOG") in ("info", "debug"):
        print(f"kgen: {message}", file=sys.stderr)


def version() -> str:
    return _lib.kgen_rt_version().decode()
