"""libkgen.so through ctypes: registry, Candidates and Runs (csrc/kgen_tune.h).

Status codes become kgen's errors; nothing else is decided here. Loaded at first use, so that serving never
pays for it.
"""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import functools
import json
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from . import cuda_packages
from ._paths import binary
from .errors import BadInput, EnvironmentLacks, KgenError

ERROR_BYTES = 2048

# Status of csrc/base/error.h to the error that the user meets; what is not here is a plain KgenError.
_BAD_INPUT = {-3, -4, -5, -6, -7, -8, -9, -12, -13, -17}
# Memory, disk, a program that is not there or does not start, a device that failed.
_ENVIRONMENT = {-1, -2, -11, -15, -18}
EINTR = -14
EBUSY = -12

SINK = ctypes.CFUNCTYPE(None, ctypes.c_int, ctypes.c_char_p)
PROGRESS = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_char_p)


class Interrupted(KgenError):
    """The work was stopped on request and can be resumed."""

    code = 130


@SINK
def _warn(level: int, message: bytes) -> None:
    del level
    warnings.warn(f"kgen: {message.decode('utf-8', 'replace')}", stacklevel=3)


@functools.cache
def lib() -> ctypes.CDLL:
    """The library, with the types of its functions declared. EnvironmentLacks when it does not load."""
    try:
        so = ctypes.CDLL(str(binary("libkgen.so")))
    except (OSError, FileNotFoundError) as e:
        raise EnvironmentLacks(f"libkgen.so cannot be loaded: {e}") from e
    text, out, size = ctypes.c_char_p, ctypes.POINTER(ctypes.c_void_p), ctypes.c_size_t
    err = [text, size]
    so.kgen_free.argtypes = [ctypes.c_void_p]
    so.kgen_free.restype = None
    so.kgen_stop.argtypes = [ctypes.c_int]
    so.kgen_stop.restype = None
    for name, args in {
        "kgen_registry_list": [text, out],
        "kgen_registry_find": [text, text, out],
        "kgen_registry_promote": [
            text,
            text,
            text,
            text,
            size,
            text,
            text,
            ctypes.POINTER(ctypes.c_int),
        ],
        "kgen_registry_rollback": [text, text, text, ctypes.POINTER(size)],
        "kgen_registry_gc": [text, ctypes.c_int, out],
        "kgen_index_build": [text, text],
        "kgen_case_key": [text, text, out],
        "kgen_journal_add": [text, text, text],
        "kgen_journal_sum": [text, size, text],
        "kgen_ratio": [
            ctypes.POINTER(ctypes.c_double),
            ctypes.POINTER(ctypes.c_double),
            size,
            ctypes.c_double,
            ctypes.c_uint64,
            ctypes.POINTER(ctypes.c_double),
        ],
        "kgen_lock_device": [ctypes.c_int, ctypes.c_int, ctypes.POINTER(ctypes.c_int)],
        "kgen_gpu_state": [ctypes.c_int, out],
        "kgen_protections": [out],
        "kgen_gate_lock": [ctypes.c_int],
        "kgen_gate_locked": [out],
        "kgen_search_over": [out, size, text, text, PROGRESS, ctypes.c_void_p, out],
        "kgen_candidate_check": [text, text, size, text, text, out],
        "kgen_llm_ask": [text, text, out],
        "kgen_llm_check": [text, out],
        "kgen_llm_reach": [text],
        "kgen_prompt": [text, text, text, out],
        "kgen_loop_stage": [text, text, text, ctypes.c_int64, PROGRESS, ctypes.c_void_p, out],
        "kgen_build_image": [text, text, text, size, text, text, ctypes.c_int, out],
        "kgen_candidate_unit": [
            text,
            text,
            text,
            size,
            text,
            text,
            ctypes.c_int,
            ctypes.c_int64,
            ctypes.c_int,
            out,
        ],
    }.items():
        function = getattr(so, name)
        function.argtypes = args + err
        function.restype = ctypes.c_int
    so.kgen_unlock_device.argtypes = [ctypes.c_int]
    so.kgen_unlock_device.restype = None
    so.kgen_nvrtc_search.argtypes = [text]
    so.kgen_nvrtc_search.restype = None
    for folder in cuda_packages.folders():
        so.kgen_nvrtc_search(folder.encode())
    so.kgen_on_message.argtypes = [SINK]
    so.kgen_on_message.restype = None
    so.kgen_on_message(_warn)
    atexit.register(so.kgen_on_message, SINK())  # its threads may outlive the interpreter
    return so


def raise_status(status: int, message: str) -> None:
    """Raises the error that a negative status stands for."""
    if status == EINTR:
        raise Interrupted(message)
    if status in _BAD_INPUT:
        raise BadInput(message)
    if status in _ENVIRONMENT:
        raise EnvironmentLacks(message)
    raise KgenError(message)


def call(function: Callable[..., int], *args: Any) -> None:
    """Calls a function that ends in (err, nerr) and raises what it reports."""
    err = ctypes.create_string_buffer(ERROR_BYTES)
    status = function(*args, err, ERROR_BYTES)
    if status:
        raise_status(status, err.value.decode(errors="replace"))


def call_json(function: Callable[..., int], *args: Any) -> Any:
    """The same for one that gives back a JSON text before (err, nerr)."""
    out = ctypes.c_void_p()
    call(function, *args, ctypes.byref(out))
    try:
        return json.loads(ctypes.string_at(out))
    finally:
        lib().kgen_free(out)


def call_text(function: Callable[..., int], *args: Any) -> str:
    """The same for one that gives back a text."""
    out = ctypes.c_void_p()
    call(function, *args, ctypes.byref(out))
    try:
        return ctypes.string_at(out).decode()
    finally:
        lib().kgen_free(out)


def _path(path: str | Path) -> bytes:
    return str(Path(path).absolute()).encode()


def llm_ask(options: dict[str, Any], questions: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Asks a model and waits: replies, attempts, sent, spent (csrc/kgen_llm.h)."""
    return call_json(lib().kgen_llm_ask, json.dumps(options).encode(), json.dumps(list(questions)).encode())


def llm_check(options: dict[str, Any]) -> dict[str, Any]:
    """The options of a model as they are understood: host, url, model, price. BadInput says what is wrong."""
    return call_json(lib().kgen_llm_check, json.dumps(options).encode())


def llm_reach(options: dict[str, Any]) -> None:
    """Nothing when something answers at a model's endpoint; costs no token and sends no key. EnvironmentLacks: it cannot be
    reached from here; BadInput: no such URL, or a certificate that is not trusted."""
    call(lib().kgen_llm_reach, json.dumps(options).encode())


def prompt(op_json: str, run_dir: str | Path, loop: dict[str, Any]) -> str:
    """What a Run would ask next about an Op. BadInput: nothing."""
    return call_text(lib().kgen_prompt, op_json.encode(), _path(run_dir), json.dumps(loop).encode())


def registry_list(registry: str | Path) -> list[dict[str, Any]]:
    """Every Kernel of a registry: op, arch, id, version, ambiguous, path, verdict, created, proposer, pins."""
    return call_json(lib().kgen_registry_list, _path(registry))


def registry_find(registry: str | Path, name: str) -> dict[str, Any]:
    """One Kernel by OP/vN, OP/vN-3fa2 or OP/<id prefix>."""
    return call_json(lib().kgen_registry_find, _path(registry), name.encode())


def registry_promote(
    registry: str | Path,
    op_json: str,
    task_dir: str | Path | None,
    source: bytes,
    record: dict[str, Any],
    keys: list[dict[str, Any]],
) -> int:
    """Promotes a passed Candidate for the Cases that the keys name; its version."""
    version = ctypes.c_int()
    call(
        lib().kgen_registry_promote,
        _path(registry),
        op_json.encode(),
        _path(task_dir) if task_dir else None,
        source,
        len(source),
        json.dumps(record).encode(),
        json.dumps(keys).encode(),
        ctypes.byref(version),
    )
    return version.value


def registry_rollback(registry: str | Path, op: str, version: str) -> int:
    """Points the pins of a version back at it; how many moved."""
    moved = ctypes.c_size_t()
    call(
        lib().kgen_registry_rollback,
        _path(registry),
        op.encode(),
        version.encode(),
        ctypes.byref(moved),
    )
    return moved.value


def registry_gc(registry: str | Path, dry: bool) -> list[dict[str, Any]]:
    """Removes what no pin names or has replaced; what it was (dry: would be)."""
    return call_json(lib().kgen_registry_gc, _path(registry), int(dry))


def index_build(registry: str | Path, index: str | Path) -> None:
    """Derives the index of a registry."""
    call(lib().kgen_index_build, _path(registry), _path(index))


def case_key(op_json: str, case: dict[str, Any]) -> tuple[dict[str, Any], str]:
    """The key of a Case's exact pin, and the pin's name."""
    found = call_json(lib().kgen_case_key, op_json.encode(), json.dumps(case).encode())
    return found["key"], found["hash"]


def candidate_check(
    op_json: str, source: bytes, name: str, tunables: dict[str, int] | None = None
) -> dict[str, Any]:
    """Checks a Candidate's plan: op, target, min_arch, tunables, holes, id. BadInput names what is wrong."""
    given = json.dumps(tunables).encode() if tunables is not None else None
    return call_json(
        lib().kgen_candidate_check, op_json.encode(), source, len(source), name.encode(), given
    )


def build_image(
    op_json: str, case: dict[str, Any], source: bytes, tunables: dict[str, int], arch: str, any_size: bool
) -> dict[str, Any]:
    """Compiles what a process that serves the Case loads; path, and whether the cache had it. BadInput: the Candidate
    is not for this Case."""
    return call_json(
        lib().kgen_build_image,
        op_json.encode(),
        json.dumps(case).encode(),
        source,
        len(source),
        json.dumps(tunables).encode(),
        arch.encode(),
        int(any_size),
    )


def candidate_unit(
    op_json: str,
    case: dict[str, Any],
    source: bytes,
    tunables: dict[str, int] | None,
    arch: str,
    sms: int = 0,
    shared: int = 0,
    any_size: bool = False,
) -> dict[str, Any]:
    """The translation unit of a Candidate for a Case, `unit`, and its bound plan (outputs, workspace, launches), on a
    device of `sms` multiprocessors and `shared` bytes a block that need not be here."""
    return call_json(
        lib().kgen_candidate_unit,
        op_json.encode(),
        json.dumps(case).encode(),
        source,
        len(source),
        json.dumps(tunables).encode() if tunables is not None else None,
        arch.encode(),
        sms,
        shared,
        int(any_size),
    )


def ratio(a: Sequence[float], b: Sequence[float], level: float = 0.95) -> tuple[float, float, float]:
    """Median of a over b (how many times faster b is) and its interval, from pairs measured in turn."""
    n = min(len(a), len(b))
    doubles = ctypes.c_double * n
    out = (ctypes.c_double * 3)()
    call(lib().kgen_ratio, doubles(*a[:n]), doubles(*b[:n]), n, level, 1, out)
    return out[0], out[1], out[2]


class Busy(KgenError):
    """Another process holds what was asked for; the message names it."""


def lock_device(gpu: int, wait_ms: int) -> int:
    """The machine's lock of a device (-1: the CPU), to be given to unlock_device. Busy: wait_ms were not enough; another
    KgenError: there is nowhere to lock."""
    fd, err = ctypes.c_int(-1), ctypes.create_string_buffer(ERROR_BYTES)
    status = lib().kgen_lock_device(gpu, wait_ms, ctypes.byref(fd), err, ERROR_BYTES)
    if status == EBUSY:
        raise Busy(err.value.decode(errors="replace"))
    if status:
        raise_status(status, err.value.decode(errors="replace"))
    return fd.value


def unlock_device(fd: int) -> None:
    lib().kgen_unlock_device(fd)


def protections() -> dict[str, Any]:
    """What this kernel has to lock a process with that runs Candidates: landlock (its version, 0: none) and seccomp."""
    return call_json(lib().kgen_protections)


def gate_lock(socket: int) -> int:
    """Arms the lock of the gate's process, which says on the socket what violated it; the address of the function that closes
    it around the load of an image."""
    call(lib().kgen_gate_lock, socket)
    return ctypes.cast(lib().kgen_gate_on_load, ctypes.c_void_p).value or 0


def gate_locked() -> dict[str, Any] | None:
    """What of it is in force: landlock and seccomp; None before a Candidate was loaded."""
    return call_json(lib().kgen_gate_locked)


def gpu_state(gpu: int) -> dict[str, Any]:
    """What NVML tells of a GPU now: clocks, temperature, power, reasons for low clocks, foreign processes; less what it does
    not tell. EnvironmentLacks: nothing."""
    return call_json(lib().kgen_gpu_state, gpu)


def journal_sum(line: bytes) -> str:
    """The "sum" that a journal's line must have, whatever it has."""
    made = ctypes.create_string_buffer(17)
    call(lib().kgen_journal_sum, line, len(line), made)
    return made.value.decode()


def journal_add(run_dir: str | Path, kind: str, fields: dict[str, Any]) -> None:
    """Adds one entry to a Run's journal."""
    call(lib().kgen_journal_add, _path(run_dir), kind.encode(), json.dumps(fields).encode())


def stop(wanted: bool) -> None:
    """Asks what is under way in the library to wind down, or takes that back."""
    lib().kgen_stop(int(wanted))


def search(
    judge: ctypes.c_void_p | Sequence[ctypes.c_void_p],
    run_dir: str | Path,
    options: dict[str, Any],
    progress: Callable[[dict[str, Any]], None],
) -> dict[str, Any]:
    """Searches over a judge's Cases (csrc/kgen_tune.h has options and result). judge: the handle of a kg_judge, or those of
    several devices that judge at once. progress comes from several threads then, one at a time. An exception of it ends
    the search and is raised."""
    handles = [judge] if isinstance(judge, ctypes.c_void_p) else list(judge)
    judges = (ctypes.c_void_p * len(handles))(*handles)
    with _telling(progress) as callback:
        return call_json(
            lib().kgen_search_over, judges, len(handles), _path(run_dir), json.dumps(options).encode(), callback, None
        )


def loop_stage(
    op_json: str, run_dir: str | Path, loop: dict[str, Any], budget: float, progress: Callable[[dict[str, Any]], None]
) -> dict[str, Any]:
    """A stage of a loop that needs no device (csrc/kgen_tune.h). budget in seconds."""
    with _telling(progress) as callback:
        return call_json(
            lib().kgen_loop_stage, op_json.encode(), _path(run_dir), json.dumps(loop).encode(), int(budget * 1000),
            callback, None,
        )  # fmt: skip


@contextlib.contextmanager
def _telling(progress: Callable[[dict[str, Any]], None]) -> Iterator[Any]:
    """A callback of C; what it raises ends the work and is raised here."""
    failed: list[Exception] = []

    def tell(_: Any, entry: bytes) -> None:
        try:
            progress(json.loads(entry))
        except Exception as e:  # noqa: BLE001 - it may not leave a callback of C; it is raised below
            failed.append(e)
            stop(True)

    try:
        yield PROGRESS(tell)
    finally:
        if failed:
            raise failed[0]
