"""Memory of a GPU that two processes share, an allocation by itself, as memfd is memory of the host.

By the driver's virtual memory functions, through ctypes: a handle that the runtime's IPC gives may map a whole block of
torch's allocator, and with it what the other process must not see (oracles). The descriptor of an allocation goes over
a socket or is inherited; whoever has it maps the allocation and nothing else. Refuses to free what tensors still show:
a mapping lives as long as its process or until `close`.
"""

from __future__ import annotations

import ctypes
import functools
import os
from typing import Any

import torch

from .errors import EnvironmentLacks, KgenError

# Of cuda.h: CUmemAllocationType, CUmemAllocationHandleType, CUmemLocationType, CUmemAccess_flags.
_PINNED, _DESCRIPTOR, _DEVICE, _READ_WRITE = 1, 1, 1, 3
_OUT_OF_MEMORY = 2


class _Location(ctypes.Structure):
    _fields_ = [("type", ctypes.c_int), ("id", ctypes.c_int)]


class _Properties(ctypes.Structure):
    """CUmemAllocationProp, 32 bytes."""

    _fields_ = [
        ("type", ctypes.c_int), ("handles", ctypes.c_int), ("location", _Location), ("windows", ctypes.c_void_p),
        ("compression", ctypes.c_ubyte), ("rdma", ctypes.c_ubyte), ("usage", ctypes.c_ushort),
        ("reserved", ctypes.c_ubyte * 4),
    ]  # fmt: skip


class _Access(ctypes.Structure):
    _fields_ = [("location", _Location), ("flags", ctypes.c_int)]


@functools.cache
def _driver() -> ctypes.CDLL:
    name = os.environ.get("KGEN_LIBCUDA") or "libcuda.so.1"
    try:
        lib = ctypes.CDLL(name)
    except OSError as e:
        raise EnvironmentLacks(f"{name} cannot be loaded ({e}): install NVIDIA's driver") from e
    size, handle, address = ctypes.c_size_t, ctypes.c_uint64, ctypes.c_uint64
    flags, pointer = ctypes.c_uint64, ctypes.POINTER
    for name, args in {
        "cuMemGetAllocationGranularity": [pointer(size), pointer(_Properties), ctypes.c_int],
        "cuMemCreate": [pointer(handle), size, pointer(_Properties), flags],
        "cuMemRelease": [handle],
        "cuMemExportToShareableHandle": [pointer(ctypes.c_int), handle, ctypes.c_int, flags],
        "cuMemImportFromShareableHandle": [pointer(handle), ctypes.c_void_p, ctypes.c_int],
        "cuMemAddressReserve": [pointer(address), size, size, address, flags],
        "cuMemAddressFree": [address, size],
        "cuMemMap": [address, size, size, handle, flags],
        "cuMemUnmap": [address, size],
        "cuMemSetAccess": [address, size, pointer(_Access), size],
        "cuGetErrorName": [ctypes.c_int, pointer(ctypes.c_char_p)],
    }.items():
        function = getattr(lib, name)
        function.argtypes, function.restype = args, ctypes.c_int
    return lib


def _call(name: str, *args: Any) -> None:
    code = getattr(_driver(), name)(*args)
    if code == 0:
        return
    text = ctypes.c_char_p()
    _driver().cuGetErrorName(code, ctypes.byref(text))
    said = f"{name}: {(text.value or b'?').decode()} ({code})"
    if code == _OUT_OF_MEMORY:
        raise torch.OutOfMemoryError(f"CUDA out of memory: {said}")
    raise KgenError(f"{said}; `kgen doctor` tells about the driver")


def _properties(index: int) -> _Properties:
    return _Properties(type=_PINNED, handles=_DESCRIPTOR, location=_Location(_DEVICE, index))


def rounded(size: int, granularity: int) -> int:
    """The least multiple of the granularity that holds size bytes, and at least one."""
    return max(1, -(-size // granularity)) * granularity


class _Array:
    """What torch makes a tensor of without a copy."""

    def __init__(self, address: int, size: int):
        self.__cuda_array_interface__ = {
            "shape": (size,), "typestr": "|u1", "data": (address, False), "strides": None, "version": 3,
        }  # fmt: skip


class Shared:
    """Bytes on a GPU. `bytes` is a uint8 tensor of all of them, zero at first for the maker."""

    def __init__(self, index: int, size: int, descriptor: int | None = None):
        """size: of the allocation, at least. descriptor: of an allocation of that size that another process made; it is
        closed here. None: makes one; `export` gives its descriptor."""
        self.index, self.address, self._handle = index, 0, ctypes.c_uint64()
        torch.cuda.init()
        with torch.cuda.device(index):
            torch.cuda.current_stream().synchronize()  # the device's own context is current from here on
            granularity = ctypes.c_size_t()
            _call("cuMemGetAllocationGranularity", ctypes.byref(granularity), ctypes.byref(_properties(index)), 0)
            self.size = rounded(size, granularity.value)
            if descriptor is None:
                _call("cuMemCreate", ctypes.byref(self._handle), self.size, ctypes.byref(_properties(index)), 0)
            else:
                try:
                    fd = ctypes.c_void_p(descriptor)
                    _call("cuMemImportFromShareableHandle", ctypes.byref(self._handle), fd, _DESCRIPTOR)
                finally:
                    os.close(descriptor)
            try:
                self._map()
            except BaseException:
                _call("cuMemRelease", self._handle)
                raise
            self.bytes = torch.as_tensor(_Array(self.address, self.size), device=torch.device("cuda", index))
            if descriptor is None:
                self.bytes.zero_()

    def _map(self) -> None:
        address = ctypes.c_uint64()
        _call("cuMemAddressReserve", ctypes.byref(address), self.size, 0, 0, 0)
        mapped = False
        try:
            _call("cuMemMap", address, self.size, 0, self._handle, 0)
            mapped = True
            access = _Access(_Location(_DEVICE, self.index), _READ_WRITE)
            _call("cuMemSetAccess", address, self.size, ctypes.byref(access), 1)
        except BaseException:
            if mapped:
                _call("cuMemUnmap", address, self.size)
            _call("cuMemAddressFree", address, self.size)
            raise
        self.address = address.value

    def export(self) -> int:
        """A descriptor of the allocation, which is the caller's."""
        fd = ctypes.c_int(-1)
        with torch.cuda.device(self.index):
            _call("cuMemExportToShareableHandle", ctypes.byref(fd), self._handle, _DESCRIPTOR, 0)
        return fd.value

    def close(self) -> None:
        """Unmaps it; no tensor over `bytes` may be used afterwards. Safe to call twice."""
        if not self.address:
            return
        address, self.address = self.address, 0
        del self.bytes
        with torch.cuda.device(self.index):
            torch.cuda.synchronize(self.index)
            _call("cuMemUnmap", address, self.size)
            _call("cuMemAddressFree", address, self.size)
            _call("cuMemRelease", self._handle)
