"""The judge from Python: inputs and fp64 oracles go in as tensors, Candidates get a Record (csrc/kgen_judge.h).

Everything that is measured or compared is done in libkgen and kgen-worker. This file hands over addresses, in the
memory order that the contract states, and keeps the tensors alive.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import json
from collections.abc import Callable, Iterator, Sequence
from types import TracebackType
from typing import Any

import torch
from torch import Tensor

from . import compare
from ._libkgen import call, call_json, call_text, lib
from .devices import CPU, synchronize
from .errors import BadInput

# ctx, id, text, bytes of it
_PROFILER = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p, ctypes.c_size_t)
_FLOATS = {"float32", "float64", "float16", "bfloat16"}


def image_listing(image: bytes, *, whole: bool = False, most: int = 0) -> str:
    """The machine code of a CPU's image (ELF) or a cubin, as Judge.listing gives it. EnvironmentLacks: no disassembler."""
    return call_text(_judge_lib().kgen_listing, image, len(image), int(whole), most)


@functools.cache
def _judge_lib() -> ctypes.CDLL:
    so = lib()
    text, out, size = ctypes.c_char_p, ctypes.POINTER(ctypes.c_void_p), ctypes.c_size_t
    handle, double = ctypes.c_void_p, ctypes.c_double
    err = [text, size]
    so.kgen_judge_close.argtypes = [handle]
    so.kgen_judge_set_profiler.argtypes = [handle, _PROFILER, handle]
    so.kgen_judge_close.restype = so.kgen_judge_set_profiler.restype = None
    for name, args in {
        "kgen_judge_open": [text, text, out],
        "kgen_judge_add_case": [handle, text, ctypes.POINTER(size)],
        "kgen_judge_describe": [handle, size, out],
        "kgen_judge_set_limits": [handle, size, double, ctypes.c_int64],
        "kgen_judge_add_set": [handle, size, text, out, size, out, size],
        "kgen_judge_clear_sets": [handle, size],
        "kgen_judge_run": [handle, text, size, text, out],
        "kgen_judge_prepare": [handle, text, size, text],
        "kgen_judge_listing": [handle, text, size, text, ctypes.c_int, size, out],
        "kgen_listing": [text, size, ctypes.c_int, size, out],
        "kgen_judge_trivial": [handle, size, out],
        "kgen_errors": [
            text,
            handle,
            handle,
            size,
            ctypes.POINTER(double),
            ctypes.POINTER(double),
            ctypes.POINTER(ctypes.c_uint64),
        ],
        "kgen_tolerance": [
            text,
            text,
            ctypes.c_int64,
            double,
            double,
            double,
            ctypes.POINTER(double),
            ctypes.POINTER(double),
        ],
        "kgen_inspect_text": [text, size, text],
    }.items():
        function = getattr(so, name)
        function.argtypes = args + err
        function.restype = ctypes.c_int
    return so


def dtype_name(dtype: torch.dtype) -> str:
    """torch.float32 -> "float32"."""
    return str(dtype).removeprefix("torch.")


def errors(out: Tensor, oracle: Tensor) -> tuple[float, float, int]:
    """Norm error and largest error of `out` in units of the oracle's scale, and how many elements are wrong beyond
    that: not finite where the oracle is, or the other way round (integers: elements that differ).

    out: any supported dtype. oracle: the same shape, of which float64 (or int64) is made. On a GPU both are compared there.
    """
    if out.is_cuda:
        return compare.errors(out, oracle.to(out.device))
    name = dtype_name(out.dtype)
    flat = out.detach().contiguous()
    wide = oracle.detach().to(torch.float64 if name in _FLOATS else torch.int64).contiguous()
    if flat.shape != wide.shape:
        raise BadInput(f"an output of shape {tuple(out.shape)} has an oracle of {tuple(oracle.shape)}")
    norm, worst, bad = ctypes.c_double(), ctypes.c_double(), ctypes.c_uint64()
    call(
        _judge_lib().kgen_errors,
        name.encode(),
        flat.data_ptr(),
        wide.data_ptr(),
        flat.numel(),
        ctypes.byref(norm),
        ctypes.byref(worst),
        ctypes.byref(bad),
    )
    return norm.value, worst.value, bad.value


def tolerance(
    dtype: torch.dtype,
    reduction: int = 1,
    torch_errors: tuple[float, float] = (0.0, 0.0),
    scale: float = 1.0,
    precision: str = "native",
) -> tuple[float, float]:
    """Norm and largest error that a Candidate may have; derived in csrc/tune/compare.c."""
    norm, worst = ctypes.c_double(), ctypes.c_double()
    call(
        _judge_lib().kgen_tolerance,
        dtype_name(dtype).encode(),
        precision.encode(),
        reduction,
        *torch_errors,
        scale,
        ctypes.byref(norm),
        ctypes.byref(worst),
    )
    return norm.value, worst.value


def inspect_text(source: bytes, name: str = "candidate.c") -> None:
    """BadInput with the line when the text of a CPU Candidate breaks a lexical rule."""
    call(_judge_lib().kgen_inspect_text, source, len(source), name.encode())


def _laid_out(t: Tensor, shape: Sequence[int], stride: Sequence[int]) -> Tensor:
    """`t`, or a copy of it, with these strides. Elements that share memory (stride 0) must be equal."""
    t = t.detach()
    if list(t.shape) != list(shape):
        raise BadInput(f"a tensor of shape {tuple(t.shape)} was given for one of {tuple(shape)}")
    if all(n <= 1 or a == b for n, a, b in zip(shape, t.stride(), stride, strict=True)):
        return t
    copy = torch.empty_strided(tuple(shape), tuple(stride), dtype=t.dtype, device=t.device)
    target, source = copy, t
    for d, (n, step) in enumerate(zip(shape, stride, strict=True)):
        if step == 0 and n > 1:
            target, source = target.narrow(d, 0, 1), source.narrow(d, 0, 1)
    target.copy_(source)
    return copy


class Judge:
    """One Op, its Cases and their input sets. Not for several threads at once, but for `prepare`."""

    def __init__(
        self,
        op_json: str,
        *,
        threads: int | None = None,
        arch: str | None = None,
        timeout_ms: int | None = None,
        memory: int | None = None,
        device: torch.device = CPU,
    ) -> None:
        """threads: of the worker (default: the CPUs of this process). arch: "x86-64-v3" (default: the device's own).
        timeout_ms: what one call may take. memory: bytes of outputs and workspace of one call. device: what its Cases
        are for; a GPU's judge takes tensors of that GPU and of the host.
        """
        self.device = device
        options = {"threads": threads, "arch": arch, "timeout_ms": timeout_ms, "memory": memory}
        if device.type == "cuda":
            torch.cuda.init()
            options |= {"device": "cuda", "index": device.index or 0}
        given = {k: v for k, v in options.items() if v is not None}
        self._handle = ctypes.c_void_p()
        self._alive: dict[int, list[Tensor]] = {}
        self._described: dict[int, dict[str, Any]] = {}
        call(
            _judge_lib().kgen_judge_open,
            op_json.encode(),
            json.dumps(given).encode(),
            ctypes.byref(self._handle),
        )

    def close(self) -> None:
        """Gives back buffers; the judge is of no use after it."""
        if self._handle:
            _judge_lib().kgen_judge_close(self._handle)
            self._handle = ctypes.c_void_p()
        self._alive.clear()

    def __enter__(self) -> Judge:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def __del__(self) -> None:
        if getattr(self, "_handle", None):
            self.close()

    @property
    def handle(self) -> ctypes.c_void_p:
        """For other calls of libkgen that take a judge."""
        return self._handle

    def add_case(self, case: dict[str, Any]) -> int:
        """Adds a Case; its number."""
        index = ctypes.c_size_t()
        call(
            _judge_lib().kgen_judge_add_case,
            self._handle,
            json.dumps(case).encode(),
            ctypes.byref(index),
        )
        self._described[index.value] = call_json(
            _judge_lib().kgen_judge_describe, self._handle, index.value
        )
        return index.value

    def describe(self, case: int) -> dict[str, Any]:
        """hash, inputs and outputs (name, dtype, shape, stride), bytes, flops, reduction."""
        return self._described[case]

    def set_limits(self, case: int, *, slowest_baseline_ns: float = 0.0, bytes_moved: int = 0) -> None:
        """For `too_slow`, and the bytes that must move, for `implausible` (0: the outputs, and the inputs of an Op that is
        torch's and has no mask)."""
        call(
            _judge_lib().kgen_judge_set_limits, self._handle, case, slowest_baseline_ns, bytes_moved
        )

    def add_set(
        self,
        case: int,
        inputs: Sequence[Tensor | None],
        oracles: Sequence[Tensor | None],
        *,
        results: Sequence[Tensor | None] | None = None,
        torch_errors: Sequence[tuple[float, float] | None] | None = None,
        slack: Sequence[tuple[float, float]] = (),
        name: str = "",
    ) -> None:
        """Adds an input set.

        inputs: one for each tensor argument of the contract (None: absent), then the captured tensors; of the Case's
        dtypes and shapes, on the judge's device or on the host. oracles: one for each output, in float64 for floating outputs; None leaves an optional
        output out. results: torch's own outputs, of which torch's errors, dtypes and shapes are taken. slack: norm and largest error that each
        output may have beyond its tolerance (budget.py). An integer oracle of compare.ANY stands for any value.
        """
        about = self._described[case]
        if len(inputs) != len(about["inputs"]) or len(oracles) != len(about["outputs"]):
            raise BadInput(
                f"a set of this Case has {len(about['inputs'])} inputs and {len(about['outputs'])} oracles, "
                f"not {len(inputs)} and {len(oracles)}"
            )
        held = [
            None if t is None else self._input(t, spec)
            for t, spec in zip(inputs, about["inputs"], strict=True)
        ]
        wide = [
            None if t is None else self._oracle(t, spec)
            for t, spec in zip(oracles, about["outputs"], strict=True)
        ]
        own = list(results) if results is not None else [None] * len(wide)
        measured = list(torch_errors) if torch_errors is not None else [
            None if r is None or o is None or r.shape != o.shape else errors(r, o)[:2]
            for r, o in zip(own, oracles, strict=True)
        ]
        reference = [
            None
            if o is None
            else {"dtype": dtype_name(r.dtype) if r is not None else spec["dtype"],
                  "shape": list((r if r is not None else o).shape)}
            for o, r, spec in zip(oracles, own, about["outputs"], strict=True)
        ]
        synchronize(self.device)  # libkgen reads what torch may still be writing
        about_set = {"name": name, "errors": measured, "slack": list(slack), "reference": reference}
        text = json.dumps(about_set, allow_nan=False)
        call(
            _judge_lib().kgen_judge_add_set,
            self._handle,
            case,
            text.encode(),
            _addresses(held),
            len(held),
            _addresses(wide),
            len(wide),
        )
        self._alive.setdefault(case, []).extend(t for t in held + wide if t is not None)

    def clear_sets(self, case: int) -> None:
        """Forgets the sets of a Case and lets go of their tensors."""
        call(_judge_lib().kgen_judge_clear_sets, self._handle, case)
        self._alive.pop(case, None)

    def run(
        self,
        source: str | bytes,
        *,
        name: str = "candidate.c",
        tunables: dict[str, int] | None = None,
        any_size: bool = False,
        all_sets: bool = True,
        reps: int = 0,
    ) -> dict[str, Any]:
        """Judges a Candidate: a Record without version (docs/formats.md). One that fails is no error.

        any_size: builds it for any size, as a dynamic pin serves it. all_sets: every set of each Case, else the first.
        reps: timed calls; 0: it is not timed.
        """
        text = source.encode() if isinstance(source, str) else source
        request = self._request(name, tunables, any_size, all_sets=all_sets, reps=reps)
        return call_json(_judge_lib().kgen_judge_run, self._handle, text, len(text), request)

    def prepare(
        self,
        source: str | bytes,
        *,
        name: str = "candidate.c",
        tunables: dict[str, int] | None = None,
        any_size: bool = False,
    ) -> None:
        """Compiles ahead, from any thread. BadInput: the plan is for none of the Cases."""
        text = source.encode() if isinstance(source, str) else source
        request = self._request(name, tunables, any_size)
        call(_judge_lib().kgen_judge_prepare, self._handle, text, len(text), request)

    def listing(
        self, source: str | bytes, *, name: str = "candidate.c", tunables: dict[str, int] | None = None, whole: bool = False,
        most: int = 0,
    ) -> str:  # fmt: skip
        """The machine code that a Candidate comes to for the first Case that it is for: its innermost loops, or all of it; or
        why there is none. most: bytes; 0: about 3000 tokens."""
        text = source.encode() if isinstance(source, str) else source
        request = self._request(name, tunables, False)
        return call_text(_judge_lib().kgen_judge_listing, self._handle, text, len(text), request, int(whole), most)

    @contextlib.contextmanager
    def profiled(self, profile: Callable[[str], str]) -> Iterator[None]:
        """Within it a closed loop asks profile about its best Candidate, by id, for lines of a list. What profile raises is
        raised at the end."""
        failed: list[Exception] = []

        def tell(_: Any, id_: bytes, text: int, size: int) -> int:
            try:
                # Cut where a character ends.
                said = profile(id_.decode()).encode()[: size - 1].decode(errors="ignore").encode()
            except Exception as e:  # noqa: BLE001 - it may not leave a callback of C; it is raised below
                failed.append(e)
                return 1
            ctypes.memmove(text, said + b"\0", len(said) + 1)
            return 0

        callback = _PROFILER(tell)
        _judge_lib().kgen_judge_set_profiler(self._handle, callback, None)
        try:
            yield
        finally:
            _judge_lib().kgen_judge_set_profiler(self._handle, _PROFILER(), None)
        if failed:
            raise failed[0]

    def trivial(self, case: int) -> list[dict[str, str]]:
        """Answers that take no work and would pass ("answer", "output"); when there are any, the Task is
        degenerate."""
        return call_json(_judge_lib().kgen_judge_trivial, self._handle, case)

    @staticmethod
    def _request(
        name: str, tunables: dict[str, int] | None, any_size: bool, **more: bool | int
    ) -> bytes:
        fields = {"name": name, "tunables": tunables, "any_size": any_size, **more}
        return json.dumps(fields).encode()

    @staticmethod
    def _input(t: Tensor, spec: dict[str, Any]) -> Tensor:
        if dtype_name(t.dtype) != spec["dtype"]:
            raise BadInput(f"{spec['name']} is {dtype_name(t.dtype)}, the Case has {spec['dtype']}")
        return _laid_out(t, spec["shape"], spec["stride"])

    @staticmethod
    def _oracle(t: Tensor, spec: dict[str, Any]) -> Tensor:
        wide = t.detach().to(torch.float64 if spec["dtype"] in _FLOATS else torch.int64)
        if list(t.shape) != spec["shape"]:
            return wide.contiguous()  # libkgen reads only that it disagrees
        return _laid_out(wide, spec["shape"], spec["stride"])


def _addresses(tensors: Sequence[Tensor | None]) -> ctypes.Array[ctypes.c_void_p]:
    return (ctypes.c_void_p * len(tensors))(*(None if t is None else t.data_ptr() for t in tensors))
