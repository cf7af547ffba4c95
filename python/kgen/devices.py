"""Which device a model is tuned on, and what kgen asks of a GPU through torch: room, clocks, a cold L2, torch's TF32 flags.

The rule for the device is `choose`. A device that will not do is one message that says what is wrong and what to do.
Nothing here starts CUDA in a process that has no need of it.
"""

from __future__ import annotations

import contextlib
import gc
import re
import shutil
import subprocess
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import torch

from . import _libkgen
from .errors import BadInput, EnvironmentLacks, KgenError

# The oldest GPUs that kgen writes Kernels for (docs/formats.md: min_arch).
OLDEST = (8, 0)
# A cold L2: this much is written, at least, and at least three times the L2. Writing it lasts longer than Python takes to
# start a call, so that a call is ready on the stream when its turn comes.
FLUSH_BYTES = 256 << 20
# Elements that are drawn, widened or compared at a time, so that fp64 copies of a large tensor never stand beside it whole.
CHUNK = 1 << 24
CPU = torch.device("cpu")

Device = torch.device


# Which device


def parse(text: str, option: str = "--device") -> Device:
    """The device that cpu, cuda or cuda:N names; BadInput for anything else. Does not look whether it is there."""
    found = re.fullmatch(r"cpu|cuda(?::(\d{1,4}))?", text)
    if not found:
        raise BadInput(f"{option} {text}: give cpu, cuda or cuda:N")
    return CPU if text == "cpu" else Device("cuda", int(found[1] or 0))


def parse_several(text: str, option: str = "--device") -> list[Device]:
    """The devices of a list with commas: one, or several GPUs of which each is named once. Does not look whether they are
    there."""
    found = [parse(word, option) for word in text.split(",")]
    if len(found) > 1 and (any(d.type == "cpu" for d in found) or len(set(found)) < len(found)):
        raise BadInput(f"{option} {text}: several are GPUs, each named once, as in cuda:0,cuda:1")
    return found


def check_several(found: list[Device], option: str = "--device") -> list[Device]:
    """The devices, when kgen can work on all of them at once."""
    checked = [check(d, option) for d in found]
    arches = {arch(d): d for d in checked if d.type == "cuda"}
    if len(arches) > 1:
        said = ", ".join(f"{d} is {a}" for a, d in arches.items())
        raise BadInput(f"{option}: Candidates are judged on GPUs of one architecture, and {said}")
    return checked


def lacks() -> str | None:
    """Why torch has no GPU to offer, with what to do; None when it has one."""
    if torch.version.cuda is None:
        return f"this torch ({torch.__version__}) is built without CUDA: install one that is (pip install torch)"
    if torch.cuda.is_available():
        return None
    try:
        torch.cuda.init()
        said = "it counts none"
    except (RuntimeError, AssertionError) as e:
        said = (str(e).strip().splitlines() or ["?"])[0][:200]
    return f"torch sees no GPU ({said}); `kgen doctor` tells what is missing"


def check(device: Device, option: str = "--device") -> Device:
    """The device, when kgen can work on it; else one error that says why not."""
    if device.type == "cpu":
        return device
    if device.type != "cuda":
        raise BadInput(f"{option} {device}: kgen works on cpu and cuda")
    reason = lacks()
    if reason:
        raise EnvironmentLacks(f"{option} {device}: {reason}")
    index, count = device.index or 0, torch.cuda.device_count()
    if index >= count:
        there = "cuda:0" if count == 1 else f"cuda:0 to cuda:{count - 1}"
        raise BadInput(f"{option} cuda:{index}: there is no such GPU; torch sees {there}")
    found = torch.cuda.get_device_capability(index)
    if tuple(found) < OLDEST:
        raise EnvironmentLacks(
            f"{option} cuda:{index}: {torch.cuda.get_device_name(index)} is sm_{found[0]}{found[1]}, and kgen needs sm_80 "
            "or newer; tune with --device cpu"
        )
    return Device("cuda", index)


def first_gpu() -> Device | None:
    """The first GPU that kgen can work on; None without one."""
    if lacks():
        return None
    for i in range(torch.cuda.device_count()):
        if tuple(torch.cuda.get_device_capability(i)) >= OLDEST:
            return Device("cuda", i)
    return None


def choose(asked: str | None, where: set[Device], portable: bool) -> Device:
    """Where a model is tuned.

    asked: --device, which rules; of several GPUs the first has the model, and all judge. where: the devices of the model's tensors, as it was loaded; it stays there when that is
    a GPU. portable: the file says nothing of devices (Model and get_inputs), so a model that lies on the CPU goes to the
    first GPU that there is; any other model stays on the CPU.
    """
    if asked is not None:
        return check_several(parse_several(asked))[0]
    found = sorted((d for d in where if d.type != "cpu"), key=str)
    if found:
        if len(found) > 1:
            raise BadInput(f"the model's tensors are on {' and '.join(map(str, found))}: put it on one, or give --device")
        return check(found[0], "the model's device")
    return (first_gpu() or CPU) if portable else CPU


def arch(device: Device) -> str:
    """The architecture whose Kernels a GPU runs: "sm_90"."""
    major, minor = torch.cuda.get_device_capability(device)
    return f"sm_{major}{minor}"


def name_of(device: Device) -> str:
    """"cuda:0 (NVIDIA H200)"."""
    return str(device) if device.type == "cpu" else f"{device} ({torch.cuda.get_device_name(device)})"


def limits(device: Device) -> tuple[int, int]:
    """Multiprocessors, and the bytes of shared memory that a block may have; zeros for a CPU."""
    if device.type != "cuda":
        return 0, 0
    about = torch.cuda.get_device_properties(device)
    return about.multi_processor_count, about.shared_memory_per_block_optin


def of_case(case: dict[str, Any], index: int = 0) -> Device:
    """The device that a Case (docs/formats.md) is judged on: its kind from the Case, which GPU from the caller."""
    return CPU if case["device"] == "cpu" else Device("cuda", index)


def for_arch(arch: str) -> Device:
    """Where Kernels of an architecture are judged: the CPU, or this process's current GPU."""
    return Device("cuda", torch.cuda.current_device()) if arch.startswith("sm_") else CPU


# Room


def gib(n: float) -> str:
    return f"{n / (1 << 30):.1f} GiB"


def free_bytes(device: Device) -> int:
    """Bytes that this process can still allocate on a GPU: what is free there, and what torch holds without use."""
    free, _ = torch.cuda.mem_get_info(device)
    return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)


def release(device: Device) -> None:
    """Gives back to a GPU what torch holds without use, for the other processes of a Run."""
    if device.type == "cuda":
        gc.collect()
        torch.cuda.empty_cache()


def _others(device: Device) -> str:
    """Who else has memory of a GPU, as nvidia-smi tells; "" where it does not."""
    path = shutil.which("nvidia-smi")
    if path is None:
        return ""
    uuid = str(getattr(torch.cuda.get_device_properties(device), "uuid", ""))
    try:
        done = subprocess.run(
            [path, "--query-compute-apps=gpu_uuid,pid,process_name,used_memory", "--format=csv,noheader"],
            capture_output=True, text=True, check=False, timeout=10,
        )  # fmt: skip
    except (OSError, subprocess.TimeoutExpired):
        return ""
    rows = [[c.strip() for c in line.split(",")] for line in done.stdout.splitlines()]
    held = [f"process {r[1]} ({r[2]}): {r[3]}" for r in rows if len(r) == 4 and uuid and uuid in r[0]]
    return "; ".join(held[:4])


def is_out_of_memory(error: BaseException) -> bool:
    """Whether torch or the driver says that a GPU is full. A driver without room for a context says it in words alone."""
    if isinstance(error, torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and "CUDA" in str(error) and "out of memory" in str(error)


def full(device: Device, doing: str) -> str:
    """The message for a GPU without room: how much of it is whose, and what to do."""
    try:
        free, total = torch.cuda.mem_get_info(device)
        own = torch.cuda.memory_reserved(device)
    except (RuntimeError, AssertionError):  # not even a context
        return f"{device} has no room for {doing}, not even for a context: it is full of other processes' memory; wait for them, or choose another GPU"
    foreign = max(0, total - free - own)
    said = f"{device} has no room for {doing}: {gib(free)} of {gib(total)} are free, this process holds {gib(own)}"
    if foreign <= total // 8:
        return f"{said}; tune smaller inputs, or a part of the model with --target"
    who = _others(device)
    return f"{said} and others {gib(foreign)}{f' ({who})' if who else ''}; wait for them, or choose another GPU with --device"


@contextlib.contextmanager
def room_for(device: Device, doing: str) -> Iterator[None]:
    """Turns a GPU that is full into one message. What torch held for the work that failed is given back."""
    try:
        yield
    except RuntimeError as e:
        if device.type != "cuda" or not is_out_of_memory(e):
            raise
        said = full(device, doing)
        e.__traceback__ = None  # it holds the tensors of what failed
        release(device)
        raise EnvironmentLacks(said) from None


# Time


# What this process holds, by index (-1: the CPU): how deep, the lock's descriptor (-1: there is nowhere to lock).
_held: dict[int, list[int]] = {}
_holding = threading.RLock()
# Slices of a wait, between which Ctrl-C is heard; and after how many a wait is told.
WAIT_MS, SILENT = 200, 5


@contextlib.contextmanager
def alone(device: Device, say: Callable[[str], None] | None = None) -> Iterator[None]:
    """Holds a device for timing on the whole machine: other processes of kgen wait until the end, and this one waits for
    them, with a message that names who has it. May be nested; of one thread at a time."""
    index = (device.index or 0) if device.type == "cuda" else -1
    with _holding:
        if index not in _held:
            _held[index] = [0, _lock(index, str(device), say)]
        _held[index][0] += 1
        try:
            yield
        finally:
            _held[index][0] -= 1
            if _held[index][0] == 0:
                fd = _held.pop(index)[1]
                if fd >= 0:
                    _libkgen.unlock_device(fd)


def _lock(index: int, name: str, say: Callable[[str], None] | None) -> int:
    told = 0
    while True:
        try:
            return _libkgen.lock_device(index, WAIT_MS)
        except _libkgen.Busy as e:
            told += 1
            if told == SILENT:
                message = f"waiting for another kgen that times on {name}: {e}"
                say(message) if say else warnings.warn(f"kgen: {message}", stacklevel=4)
        except (_libkgen.Interrupted, MemoryError):
            raise
        except KgenError:  # nowhere to lock: others are not waited for
            return -1


def state(device: Device) -> dict[str, Any]:
    """What NVML tells of a GPU now (docs/formats.md, gate); {} where it tells nothing."""
    if device.type != "cuda":
        return {}
    try:
        return _libkgen.gpu_state(device.index or 0)
    except KgenError:
        return {}


# Work


def generator(device: Device, seed: int) -> torch.Generator:
    g = torch.Generator(device)
    g.manual_seed(seed)
    return g


def synchronize(device: Device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def rng_state(found: set[Device]) -> tuple[torch.Tensor, ...]:
    """What tells whether random numbers were drawn, on the CPU or on these devices."""
    gpus = sorted((d for d in found if d.type == "cuda"), key=str)
    return (torch.get_rng_state(), *(torch.cuda.get_rng_state(d) for d in gpus))


def same_state(a: tuple[torch.Tensor, ...], b: tuple[torch.Tensor, ...]) -> bool:
    return len(a) == len(b) and all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


def chunks(n: int, size: int = CHUNK) -> Iterator[slice]:
    """Slices that cover n elements."""
    for start in range(0, n, size):
        yield slice(start, min(n, start + size))


def all_finite(x: torch.Tensor) -> bool:
    """torch.isfinite(x).all(), on a GPU in parts: as a whole it makes a copy of x and two masks."""
    if not x.is_cuda or x.numel() <= CHUNK or not x.dtype.is_floating_point:
        return bool(torch.isfinite(x).all())
    flat = x.reshape(-1)
    return all(bool(torch.isfinite(flat[part]).all()) for part in chunks(flat.numel()))


class Events:
    """A pair of CUDA events on the current stream: begin(), end(), then ns() once the device was synchronised."""

    def __init__(self) -> None:
        self.first = torch.cuda.Event(enable_timing=True)
        self.last = torch.cuda.Event(enable_timing=True)

    def begin(self) -> None:
        self.first.record()

    def end(self) -> None:
        self.last.record()

    def ns(self) -> float:
        return self.first.elapsed_time(self.last) * 1e6


class ColdCache:
    """Leaves nothing of a call's tensors in a GPU's L2: writes a buffer of FLUSH_BYTES, at least three times the L2."""

    def __init__(self, device: Device):
        l2 = int(getattr(torch.cuda.get_device_properties(device), "L2_cache_size", 0))
        self.buffer = torch.empty(max(FLUSH_BYTES, 3 * l2), dtype=torch.int8, device=device)

    def flush(self) -> None:
        self.buffer.zero_()


def seconds_of(f: Callable[[], Any], device: Device, rounds: int) -> list[float]:
    """The times of calls in seconds, after one to warm up: by events and with a cold L2 on a GPU, by the clock elsewhere."""
    with torch.no_grad(), alone(device):
        f()
        if device.type != "cuda":
            return [_by_clock(f) for _ in range(rounds)]
        with torch.cuda.device(device):
            cache, events = ColdCache(device), [Events() for _ in range(rounds)]
            for e in events:
                cache.flush()
                e.begin()
                f()
                e.end()
            torch.cuda.synchronize(device)
            return [e.ns() * 1e-9 for e in events]


def _by_clock(f: Callable[[], Any]) -> float:
    start = time.perf_counter()
    f()
    return time.perf_counter() - start


# What float32 means to torch


def _by_new_names() -> tuple[str, str]:
    """What products and convolutions of float32 are, by torch's newer settings."""
    return torch.backends.cuda.matmul.fp32_precision, torch.backends.cudnn.conv.fp32_precision


def flags() -> dict[str, Any]:
    """torch's flags that say what float32 arithmetic may be on a GPU, as task.json and the gate's result have them."""
    try:
        matmul, cudnn = bool(torch.backends.cuda.matmul.allow_tf32), bool(torch.backends.cudnn.allow_tf32)
        return {"matmul_tf32": matmul, "cudnn_tf32": cudnn, "matmul_precision": torch.get_float32_matmul_precision()}
    except RuntimeError:  # a model that used the newer settings may not be asked by the older names
        matmul, cudnn = (name == "tf32" for name in _by_new_names())
        return {"matmul_tf32": matmul, "cudnn_tf32": cudnn, "matmul_precision": "high" if matmul else "highest"}


@contextlib.contextmanager
def arithmetic(case: dict[str, Any]) -> Iterator[None]:
    """torch computes a Case in its precision class: float32 as float32, whatever the process allows otherwise, and as TF32
    where the Case says tf32 or lower. Of CUDA Cases alone; torch's CPU arithmetic has one class."""
    if case["device"] == "cpu":
        yield
        return
    wanted = case.get("precision", "native") != "native"
    try:  # by the older names, which compilers read; the newer ones only where a model mixed them already
        before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
        precision = torch.get_float32_matmul_precision()
    except RuntimeError:
        with _by_newer_settings("tf32" if wanted else "ieee"):
            yield
        return
    try:
        _set_flags(wanted, wanted)
        yield
    finally:
        _set_flags(*before)
        if precision == "medium":
            torch.set_float32_matmul_precision("medium")


@contextlib.contextmanager
def _by_newer_settings(value: str) -> Iterator[None]:
    before = _by_new_names()
    try:
        torch.backends.cuda.matmul.fp32_precision = torch.backends.cudnn.conv.fp32_precision = value
        yield
    finally:
        torch.backends.cuda.matmul.fp32_precision, torch.backends.cudnn.conv.fp32_precision = before


def _set_flags(matmul: bool, cudnn: bool) -> None:
    torch.backends.cuda.matmul.allow_tf32 = matmul
    torch.backends.cudnn.allow_tf32 = cudnn
