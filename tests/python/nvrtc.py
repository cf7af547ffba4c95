"""NVRTC as pip installs it (nvidia-cuda-nvrtc), through ctypes: compiles CUDA C++ for any architecture without a GPU."""

from __future__ import annotations

import ctypes as C
import functools
import sys
from dataclasses import dataclass
from pathlib import Path

PIN = "nvidia-cuda-nvrtc==13.0.88"
# What kgen compiles kernels with; -v has ptxas say what each function takes.
OPTIONS = ("--std=c++17", "-default-device", "--ptxas-options=-v", "-diag-suppress=177")
FLAGS = {"fast_math": "--use_fast_math", "no_contract": "--fmad=false"}


def folder() -> Path | None:
    """Where pip put libnvrtc, newest first; None when it did not."""
    found = {lib.parent for entry in sys.path for lib in Path(entry or ".").glob("nvidia/*/lib/libnvrtc.so.[0-9]*")}
    return max(found, key=lambda f: f.parent.name, default=None)


@functools.lru_cache(maxsize=1)
def _library() -> C.CDLL:
    where = folder()
    if where is None:
        raise FileNotFoundError(f"no libnvrtc on sys.path; pip install {PIN}")
    # libnvrtc opens its builtins by bare name, which works once they are loaded.
    for name in sorted(where.glob("libnvrtc-builtins.so.[0-9]*")):
        C.CDLL(str(name), mode=C.RTLD_GLOBAL)
    lib = C.CDLL(str(next(f for f in sorted(where.glob("libnvrtc.so.[0-9]*")))))
    lib.nvrtcGetErrorString.restype = C.c_char_p
    return lib


@dataclass(frozen=True)
class Compiled:
    ok: bool
    log: str
    cubin: bytes


def _bytes(program: C.c_void_p, size: str, get: str) -> bytes:
    n = C.c_size_t()
    getattr(_library(), size)(program, C.byref(n))
    text = C.create_string_buffer(max(n.value, 1))
    getattr(_library(), get)(program, text)
    return text.raw[: n.value]


def compile(text: str, arch: str, options: tuple[str, ...] = ()) -> Compiled:
    """arch: sm_80, sm_90a ... The log has the compiler's and ptxas's words."""
    lib, program = _library(), C.c_void_p()
    rc = lib.nvrtcCreateProgram(C.byref(program), text.encode(), b"source.cu", 0, None, None)
    assert rc == 0, lib.nvrtcGetErrorString(rc).decode()
    try:
        words = [f"--gpu-architecture={arch}".encode(), *(o.encode() for o in (*OPTIONS, *options))]
        rc = lib.nvrtcCompileProgram(program, len(words), (C.c_char_p * len(words))(*words))
        log = _bytes(program, "nvrtcGetProgramLogSize", "nvrtcGetProgramLog").rstrip(b"\0").decode()
        cubin = _bytes(program, "nvrtcGetCUBINSize", "nvrtcGetCUBIN") if rc == 0 else b""
        return Compiled(rc == 0, log, cubin)
    finally:
        lib.nvrtcDestroyProgram(C.byref(program))
