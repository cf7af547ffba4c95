"""Where CUDA's parts are on this machine: the driver, NVRTC and its headers. Found, never linked or needed to build.

libkgen looks for NVRTC by itself (csrc/sys/nvrtc.h); what it cannot know is where Python's packages are, beside torch
above all: `folders` says that. The rest is what `kgen doctor` reports. Nothing here imports torch or starts CUDA.
"""

from __future__ import annotations

import ctypes
import importlib.util
import os
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

# Below a site-packages: CUDA 13's wheels have one folder for all parts, CUDA 12's one for each.
_LIBRARIES = ("nvidia/cu13/lib", "nvidia/cuda_nvrtc/lib", "nvidia/cu12/lib")
_TOOLKIT = ("lib64", "lib", "targets/x86_64-linux/lib")
_INCLUDES = ("../include", "../../include", "../../cuda_runtime/include", "../targets/x86_64-linux/include")
_ATTRIBUTES = {"major": 75, "minor": 76}  # CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_*


def folders() -> list[str]:
    """The site-packages that may hold NVIDIA's packages: torch's own first."""
    spec = importlib.util.find_spec("torch")
    beside = [str(Path(spec.origin).resolve().parent.parent)] if spec is not None and spec.origin else []
    found = [*beside, *(p for p in sys.path if p and os.path.isdir(os.path.join(p, "nvidia")))]
    return list(dict.fromkeys(found))


def _nvrtc_files() -> Iterator[Path]:
    """Every NVRTC, in the order in which libkgen looks."""
    asked = os.environ.get("KGEN_NVRTC")
    if asked:
        path = Path(asked)
        yield from sorted(path.glob("libnvrtc.so.*"), reverse=True) if path.is_dir() else [path]
        return
    roots = [(Path(f), ("", *_LIBRARIES)) for f in folders()]
    toolkits = filter(None, (os.environ.get("CUDA_HOME"), os.environ.get("CUDA_PATH"), "/usr/local/cuda"))
    roots += [(Path(t), _TOOLKIT) for t in toolkits]
    for root, places in roots:
        for place in places:
            yield from sorted((root / place).glob("libnvrtc.so.*"), reverse=True)
    yield from (Path(name) for name in ("libnvrtc.so.13", "libnvrtc.so.12"))


@dataclass(frozen=True)
class Nvrtc:
    """An NVRTC that loads. include: the folder of CUDA's headers of the same version, None when there is none."""

    path: str
    version: tuple[int, int]
    include: str | None


def nvrtc() -> Nvrtc | None:
    """The first NVRTC that loads and is new enough."""
    for path in _nvrtc_files():
        try:
            lib = ctypes.CDLL(str(path))
            major, minor = ctypes.c_int(), ctypes.c_int()
            if lib.nvrtcVersion(ctypes.byref(major), ctypes.byref(minor)) == 0 and major.value >= 12:
                return Nvrtc(str(path), (major.value, minor.value), _include(path.parent))
        except (OSError, AttributeError):
            continue
    return None


def _include(folder: Path) -> str | None:
    for place in _INCLUDES:
        if (folder / place / "cuda_fp16.h").is_file():
            return str((folder / place).resolve())
    return None


@dataclass(frozen=True)
class Gpu:
    """A GPU as the driver tells."""

    index: int
    name: str
    arch: str
    memory: int


@dataclass(frozen=True)
class Driver:
    """NVIDIA's driver. cuda: the newest CUDA that it runs, (13, 0). failed: what cuInit said when it did not start."""

    name: str
    cuda: tuple[int, int]
    gpus: tuple[Gpu, ...]
    failed: str = ""


def _driver_name() -> str:
    try:
        text = Path("/proc/driver/nvidia/version").read_text()
    except OSError:
        return "?"
    found = re.search(r"\b(\d{3,}\.\d+(?:\.\d+)?)\b", text)
    return found[1] if found else "?"


def driver() -> Driver | None:
    """None: there is no libcuda.so.1."""
    try:
        lib = ctypes.CDLL(os.environ.get("KGEN_LIBCUDA") or "libcuda.so.1")
    except OSError:
        return None
    version = ctypes.c_int()
    lib.cuDriverGetVersion(ctypes.byref(version))
    cuda = (version.value // 1000, version.value % 1000 // 10)
    code = lib.cuInit(0)
    if code:
        text = ctypes.c_char_p()
        lib.cuGetErrorName(code, ctypes.byref(text))
        return Driver(_driver_name(), cuda, (), f"cuInit: {(text.value or b'?').decode()} ({code})")
    return Driver(_driver_name(), cuda, tuple(_gpus(lib)))


def _gpus(lib: ctypes.CDLL) -> Iterator[Gpu]:
    count = ctypes.c_int()
    lib.cuDeviceGetCount(ctypes.byref(count))
    for i in range(count.value):
        device, value, memory = ctypes.c_int(), ctypes.c_int(), ctypes.c_size_t()
        name = ctypes.create_string_buffer(128)
        lib.cuDeviceGet(ctypes.byref(device), i)
        lib.cuDeviceGetName(name, len(name), device)
        lib.cuDeviceTotalMem_v2(ctypes.byref(memory), device)
        numbers = {}
        for key, attribute in _ATTRIBUTES.items():
            lib.cuDeviceGetAttribute(ctypes.byref(value), attribute, device)
            numbers[key] = value.value
        yield Gpu(i, name.value.decode(errors="replace"), f"sm_{numbers['major']}{numbers['minor']}", memory.value)
