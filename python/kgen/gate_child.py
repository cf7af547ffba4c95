"""The other side of the gate (gate.py): a fresh process that holds torch, the baselines and one Kernel, served through
torch.ops.kgen as any user's process would serve it.

It does what it is told over a socket and keeps no clock but a GPU's events, which the parent holds against its own:
inputs, oracles and time are the parent's. Requests are JSON
lines: {"do": "prepare", "who": i}, {"do": "run", "who": i, "set": s, "reps": n}, {"do": "times", "reps": n} (of a GPU),
{"do": "output", "who": i, "set": s}, {"do": "quit"}; each is answered with one JSON line, which repeats the request's "n".

When the Kernel is prepared, its image is compiled, then this process is locked for good (csrc/tune/gate_lock.c), then the image is
loaded. From then on baselines can be run and none can be built: the parent prepares those that it needs before.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import signal
import socket
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

import kgen
from kgen import _libkgen, _native, baselines, devices, gate_memory
from kgen.baselines import Inputs, Outputs

Call = Callable[[Inputs], Outputs]


def served(case: dict[str, Any], names: list[str]) -> Call:
    """The Case through torch.ops.kgen, as model code writes it."""
    op, args = case["op"], case["args"]
    if op == "softmax":
        dim = int(args["dim"])
        return lambda x: (torch.ops.kgen.softmax(x.args["input"], dim),)
    if op in ("layer_norm", "rms_norm"):
        call, shape, eps = getattr(torch.ops.kgen, op), list(args["normalized_shape"]), args["eps"]
        affine = ("weight", "bias")[: 2 if op == "layer_norm" else 1]
        return lambda x: (call(x.args["input"], shape, *(x.args[n] for n in affine), eps),)
    if op in ("linear", "matmul"):
        operands, p = list(args), case.get("program")
        if p is None:
            plain = getattr(torch.ops.kgen, op)
            return lambda x: (plain(*(x.args[n] for n in operands)),)
        mod, its = getattr(torch.ops.kgen, f"{op}_mod"), [float(s) for s in p["scalars"]]
        return lambda x: (mod(*(x.args[n] for n in operands), list(x.captured), its, p["text"]),)
    if op == "conv2d":
        return _served_conv(args, case.get("program"))
    if op == "attention":
        a = baselines.Attention.of(case)
        extra = {"scale": a.scale, "enable_gqa": a.enable_gqa}
        if a.text is None:
            return lambda x: (
                torch.ops.kgen.attention(x.args["query"], x.args["key"], x.args["value"], **extra),
            )
        text, scalars, with_lse = a.text, list(a.scalars), "lse" not in case.get("skip", ())
        call = torch.ops.kgen.attention_mod if with_lse else torch.ops.kgen.attention_mod_output

        def attend(x: Inputs) -> Outputs:
            found = call(x.args["query"], x.args["key"], x.args["value"], list(x.captured), scalars, text, **extra)
            return tuple(found) if with_lse else (found,)

        return attend
    attributes = {n: v for n, v in args.items() if not isinstance(v, dict) and v is not None}
    call = getattr(torch.ops.kgen, op)

    def run(x: Inputs) -> Outputs:
        out = call(*(x.args[n] for n in names), **attributes)
        return tuple(out) if isinstance(out, (tuple, list)) else (out,)

    return run


def _served_conv(args: dict[str, Any], p: dict[str, Any] | None) -> Call:
    """A conv2d as model code writes it: captured tensors and output in the dims that torch has."""
    from kgen.convolution import contract_dims, user_dims

    attributes, last = [args[n] for n in ("stride", "padding", "dilation", "groups")], args["channels_last"]
    if p is None:
        plain = torch.ops.kgen.conv2d
        return lambda x: (contract_dims(plain(x.args["input"], x.args["weight"], x.args["bias"], *attributes), last),)
    made = [torch.empty(a["shape"], device="meta") for a in (args["input"], args["weight"])]
    shape = torch.nn.functional.conv2d(*made, None, *attributes).shape
    mod, text, scalars = torch.ops.kgen.conv2d_mod, p["text"], [float(s) for s in p["scalars"]]

    def run(x: Inputs) -> Outputs:
        captured = [t if t.dim() == 0 else user_dims(t, shape, last) for t in x.captured]
        y = mod(x.args["input"], x.args["weight"], x.args["bias"], *attributes, captured, scalars, text)
        return (contract_dims(y, last),)

    return run


# More than a batch has calls, mostly.
EVENTS = 1024


def time_kernels_alone(device: torch.device) -> None:
    """torch's compiler holds the device while it times a kernel: several of it may be at work, and what is chosen while
    another runs is a worse baseline."""
    from torch._inductor.runtime import benchmarking

    def alone() -> contextlib.AbstractContextManager[None]:
        return devices.alone(device, say=lambda _: None)

    if hasattr(benchmarking, "set_gpu_benchmark_lock_context"):
        benchmarking.set_gpu_benchmark_lock_context(alone)
        return
    timer = getattr(benchmarking, "benchmarker", None)
    if timer is None:  # a torch that keeps it elsewhere: its choices may be less good
        return
    original = timer.benchmark_gpu

    def benchmark_gpu(*args: Any, **kwargs: Any) -> Any:
        with alone():
            return original(*args, **kwargs)

    timer.benchmark_gpu = benchmark_gpu


class Child:
    """One Case: its input sets, and the contenders (0: the Kernel; then the baselines)."""

    def __init__(self, job: dict[str, Any], link: int):
        self.link, self.armed, self.builder = link, False, job["alone"]
        torch.set_num_threads(job["threads"])
        self.device = torch.device("cuda", job["index"]) if job["device"] == "cuda" else devices.CPU
        self.gpu = self.device.type == "cuda"
        if self.gpu:
            torch.cuda.set_device(self.device)
            if self.builder:
                time_kernels_alone(self.device)
        self.memory = gate_memory.opened(job)
        self.cache: devices.ColdCache | None = None
        self.events: list[devices.Events] = []
        self.case = job["case"]
        self.names = job["names"]
        self.sets = [self._inputs(s) for s in job["sets"]]
        self.outputs = job["outputs"]
        reference = None
        if job["reference"]:
            from kgen import reference as reference_module

            reference = reference_module.load(Path(job["reference"]), self.device)
        self.found = baselines.of(self.case, reference, self.names)
        self.calls: dict[int, Call] = {}
        self.last: dict[int, Outputs] = {}

    def _inputs(self, spec: dict[str, Any]) -> Inputs:
        args = {n: gate_memory.view(self.memory, t) if t else None for n, t in spec["args"].items()}
        return Inputs(args, tuple(gate_memory.view(self.memory, t) for t in spec["captured"]))

    def _arm(self) -> None:
        """The load of the next image locks this process. What is imported or started later than that is not."""
        if self.armed:
            return
        from kgen import serving  # noqa: F401: kgen.why, after the load

        for dtype in (torch.float32, torch.float64):
            torch.ones(1 << 20, dtype=dtype, device=self.device).exp_().sum().item()  # torch's threads, all of them
        _native.on_load(_libkgen.gate_lock(self.link))
        self.armed = True

    def _build(self, who: int) -> Call:
        return served(self.case, self.names) if who == 0 else self.found[who - 1].build()

    def names_of_contenders(self) -> list[dict[str, str]]:
        found = [{"name": b.name, "note": b.note, "compiles": b.compiles} for b in self.found]
        return [{"name": "kgen", "note": "", "compiles": ""}, *found]

    def prepare(self, who: int) -> dict[str, Any]:
        """Builds a contender and calls it once with each input set; who served it, for the Kernel."""
        if self.gpu:
            self.last.clear()  # memory for one contender's output is enough
        if who == 0:
            self._arm()
        self.calls[who] = self._build(who)
        for x in self.sets:
            self.last[who] = self.calls[who](x)
        devices.synchronize(self.device)
        if self.gpu and self.builder:  # it stays beside those that build now
            self.last.clear()
            devices.release(self.device)
        if who != 0:
            return {}
        why = kgen.why(self.calls[0], self.sets[0])
        served_by = [{"kernel": d.kernel, "id": d.id, "reason": d.reason or ""} for d in why.decisions]
        for d, by in zip(why.decisions, served_by, strict=True):
            # The Candidate's registry is the first, so its Kernel is the first that was tried.
            tried = [line for line in d.notes.splitlines() if "could not be built" in line] if d.kernel is None else []
            by["reason"] = ": ".join([by["reason"], *tried[:1]])
        return {"served": served_by, "lock": _libkgen.gate_locked()}

    def run(self, who: int, which: int, reps: int) -> dict[str, Any]:
        if self.gpu:
            return self.run_cold(who, which, reps)
        call, x = self.calls[who], self.sets[which]
        out = self.last[who]
        for _ in range(reps):
            out = call(x)
        self.last[who] = out
        return {}

    def run_cold(self, who: int, which: int, reps: int) -> dict[str, Any]:
        """The same on a GPU, each call with a cold L2 and between events of its own."""
        self.cache = self.cache or devices.ColdCache(self.device)
        while len(self.events) < max(EVENTS, reps + 1):  # at once: making them is part of the batch for the parent's clock
            self.events.append(devices.Events())
        call, x, whole = self.calls[who], self.sets[which], self.events[0]
        out = self.last.get(who)
        self.last.clear()
        whole.begin()
        for e in self.events[1 : reps + 1]:
            self.cache.flush()
            out = None  # its memory is the next one's
            e.begin()
            out = call(x)
            e.end()
        whole.end()
        torch.cuda.synchronize(self.device)
        if out is not None:
            self.last[who] = out
        return {}

    def times(self, reps: int) -> dict[str, Any]:
        """Of the last batch, which had that many calls: ns between the events around the calls, summed, and of the whole."""
        return {"calls_ns": sum(e.ns() for e in self.events[1 : reps + 1]), "window_ns": self.events[0].ns()}

    def recovered(self) -> bool:
        """After a failure: whether this process can go on. A kernel's fault ends its context; memory is given back."""
        if not self.gpu:
            return True
        self.last.clear()
        try:
            torch.cuda.synchronize(self.device)
            torch.cuda.empty_cache()
        except RuntimeError:
            return False
        return True

    def output(self, who: int, which: int) -> dict[str, Any]:
        """Puts what the last call of a contender gave where the parent reads it."""
        del which
        if who not in self.last:
            return {"error": "it was not called"}
        for spec, got in zip(self.outputs, self.last[who], strict=False):
            if list(got.shape) != spec["shape"] or got.dtype != getattr(torch, spec["dtype"]):
                return {"error": f"an output is {got.dtype}{list(got.shape)}, not {spec['dtype']}{spec['shape']}"}
            gate_memory.view(self.memory, spec).copy_(got)
        devices.synchronize(self.device)
        return {"outputs": min(len(self.outputs), len(self.last[who]))}

    def _class(self) -> contextlib.AbstractContextManager[None]:
        """kgen's own calls accept what the Case accepts."""
        return kgen.precision(self.case["precision"]) if self.gpu else contextlib.nullcontext()

    def answer(self, request: dict[str, Any]) -> dict[str, Any]:
        with torch.inference_mode(), devices.arithmetic(self.case), self._class():
            if request["do"] == "prepare":
                return self.prepare(request["who"])
            if request["do"] == "run":
                return self.run(request["who"], request["set"], request["reps"])
            if request["do"] == "times":
                return self.times(request["reps"])
            return self.output(request["who"], request["set"])


_PR_SET_PDEATHSIG = 1


def _die_with(parent: int) -> None:
    """However the parent ends, this process does not outlive it, also in the middle of a compilation."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        sys.exit(1)


def main() -> None:
    """Answers until it is told to quit or the parent is gone."""
    _die_with(int(sys.argv[2]))
    link = socket.socket(fileno=int(sys.argv[1])).makefile("rwb")
    first = json.loads(link.readline())
    child = Child(first, int(sys.argv[1]))
    link.write(json.dumps({"contenders": child.names_of_contenders(), "n": first["n"]}).encode() + b"\n")
    link.flush()
    for line in link:
        request = json.loads(line)
        if request["do"] == "quit":
            return
        try:
            reply = child.answer(request)
        except Exception as e:  # a baseline may fail in any way; the parent is told, and goes on without it
            if os.environ.get("KGEN_LOG"):
                traceback.print_exc()
            reply = {"error": f"{type(e).__name__}: {str(e).strip().splitlines()[0] if str(e).strip() else ''}"}
            reply["lost"] = not child.recovered()
        link.write(json.dumps({**reply, "n": request["n"]}).encode() + b"\n")
        link.flush()


if __name__ == "__main__":
    main()
