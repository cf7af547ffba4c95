"""The gate: before a Kernel is promoted it is measured once more, in a fresh process, through torch.ops.kgen, on inputs of
new seeds, paired with the best baseline (the winner of a search is partly lucky).

This side owns inputs, oracles and the clock. It starts batches of at least BATCH_MS over a socket and sleeps until they
are done; Kernel and baseline take turns, never on the same input set in a round, and what each batch left behind is
compared with the oracle.
"""

from __future__ import annotations

import json
import mmap
import os
import random
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from . import _libkgen
from .errors import KgenError
from .reference import error as reference_error

BATCH_MS = 10.0
# Rounds: enough for a bootstrap interval; more while it is wider than WIDTH and there is time.
MIN_ROUNDS, MAX_ROUNDS, WIDTH = 15, 120, 0.03
# A baseline is compiled within this, or left out.
PREPARE_SECONDS = 180.0
ALIGN = 256


@dataclass(frozen=True)
class GateSet:
    """One input set: tensors by argument (None: absent), captured tensors, and per output the oracle (float64, or
    exact integers), torch's dtype, and the largest norm and max error that is let through."""

    args: dict[str, torch.Tensor | None]
    captured: tuple[torch.Tensor, ...]
    oracles: tuple[torch.Tensor, ...]
    dtypes: tuple[torch.dtype, ...]
    limits: tuple[tuple[float, float], ...]


@dataclass
class GateResult:
    """What the gate found. Times are of one call, in ns."""

    passed: bool
    reason: str
    baseline: str = ""
    baseline_ns: float = 0.0
    kgen_ns: float = 0.0
    speedup: tuple[float, float, float] = (0.0, 0.0, 0.0)
    rounds: int = 0
    noisy: bool = False
    baselines: list[dict[str, Any]] = field(default_factory=list)

    def json(self) -> dict[str, Any]:
        median, low, high = self.speedup
        return {
            "passed": self.passed,
            "reason": self.reason,
            "baseline": {"name": self.baseline, "median_ns": self.baseline_ns},
            "kgen_ns": self.kgen_ns,
            "speedup": {"median": median, "low": low, "high": high},
            "rounds": self.rounds,
            "noisy": self.noisy,
            "baselines": self.baselines,
        }


class GateError(KgenError):
    """The gate's other process failed, which says nothing about the Kernel's speed."""


class _Memory:
    """A memfd that both processes map; tensors are placed one after the other."""

    def __init__(self) -> None:
        self.size = 0
        self.specs: list[tuple[dict[str, Any], torch.Tensor | None]] = []

    def place(self, x: torch.Tensor) -> dict[str, Any]:
        span = 1 + sum((n - 1) * s for n, s in zip(x.shape, x.stride(), strict=True)) if x.numel() else 0
        spec = {
            "offset": self.size,
            "bytes": span * x.element_size(),
            "dtype": str(x.dtype).removeprefix("torch."),
            "shape": list(x.shape),
            "stride": list(x.stride()),
        }
        self.size = -(-(self.size + spec["bytes"]) // ALIGN) * ALIGN
        self.specs.append((spec, x))
        return spec

    def make(self) -> int:
        fd = os.memfd_create("kgen-gate", os.MFD_CLOEXEC)
        os.ftruncate(fd, max(self.size, ALIGN))
        self.bytes = torch.frombuffer(mmap.mmap(fd, max(self.size, ALIGN)), dtype=torch.uint8)
        for spec, x in self.specs:
            if x is not None:
                self.view(spec).copy_(x)
        return fd

    def view(self, spec: dict[str, Any]) -> torch.Tensor:
        raw = self.bytes[spec["offset"] : spec["offset"] + spec["bytes"]]
        return raw.view(getattr(torch, spec["dtype"])).as_strided(spec["shape"], spec["stride"])


class _Child:
    """The process of gate_child.py."""

    def __init__(self, job: dict[str, Any], fd: int, registry: Path):
        ours, theirs = socket.socketpair()
        env = dict(os.environ)
        env["KGEN_REGISTRY"] = str(registry)
        env["KGEN_POLICY"] = "arch"
        env.pop("KGEN_DISABLE", None)
        package = str(Path(__file__).resolve().parent.parent)
        env["PYTHONPATH"] = os.pathsep.join(filter(None, [package, env.get("PYTHONPATH", "")]))
        job = {**job, "memory": fd}
        self.process = subprocess.Popen(
            [sys.executable, "-m", "kgen.gate_child", str(theirs.fileno())],
            pass_fds=(theirs.fileno(), fd),
            env=env,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=None if os.environ.get("KGEN_LOG") else subprocess.DEVNULL,
            start_new_session=True,
        )
        theirs.close()
        self.socket = ours
        self.link = ours.makefile("rwb")
        self.contenders: list[dict[str, str]] = []
        try:
            self.contenders = self._send(job, 120.0)["contenders"]
        except BaseException:
            self.close()
            raise

    def _send(self, message: dict[str, Any], seconds: float) -> dict[str, Any]:
        self.socket.settimeout(seconds)
        try:
            self.link.write(json.dumps(message).encode() + b"\n")
            self.link.flush()
            line = self.link.readline()
        except (TimeoutError, OSError) as e:
            raise GateError(f"the gate's process gave no answer to {message.get('do', 'its job')}: {e}") from e
        if not line:
            raise GateError("the gate's process ended: run again with KGEN_LOG=1 to see what it said")
        return json.loads(line)

    def ask(self, do: str, who: int, which: int = 0, reps: int = 0, seconds: float = 60.0) -> dict[str, Any]:
        return self._send({"do": do, "who": who, "set": which, "reps": reps}, seconds)

    def close(self) -> None:
        """Ends it and whatever it started; safe at any time."""
        try:
            os.killpg(self.process.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
        self.process.wait()
        self.socket.close()


class Gate:
    """One Case at the gate. Use as a context manager."""

    def __init__(
        self,
        case: dict[str, Any],
        names: Sequence[str],
        sets: Sequence[GateSet],
        registry: Path,
        reference: Path | None = None,
        say: Callable[[str], None] = lambda _: None,
    ):
        if len(sets) < 2:
            raise ValueError("the gate needs two input sets or more")
        self.sets, self.say = list(sets), say
        self.memory = _Memory()
        placed = [
            {
                "args": {n: self.memory.place(t) if t is not None else None for n, t in s.args.items()},
                "captured": [self.memory.place(t) for t in s.captured],
            }
            for s in sets
        ]
        shapes = zip(sets[0].oracles, sets[0].dtypes, strict=True)
        self.outputs = [self.memory.place(torch.empty(o.shape, dtype=d)) for o, d in shapes]
        job = {
            "case": case,
            "names": list(names),
            "sets": placed,
            "outputs": self.outputs,
            "reference": str(reference) if reference else "",
            "threads": torch.get_num_threads(),
        }
        fd = self.memory.make()
        try:
            self.child = _Child(job, fd, registry)
        finally:
            os.close(fd)
        self.random = random.SystemRandom()

    def __enter__(self) -> Gate:
        return self

    def __exit__(self, *_: object) -> None:
        self.child.close()

    def check(self, who: int, which: int) -> str:
        """"" when what the last call left is right for the set, else what is wrong."""
        reply = self.child.ask("output", who, which)
        if "error" in reply:
            return reply["error"]
        for i in range(reply["outputs"]):
            oracle = self.sets[which].oracles[i]
            norm, worst = reference_error(self.memory.view(self.outputs[i]), oracle)
            limit_norm, limit_max = self.sets[which].limits[i]
            if not (norm <= limit_norm and worst <= limit_max):
                return (
                    f"output {i} has norm error {norm:.3g} and largest error {worst:.3g} "
                    f"where {limit_norm:.3g} and {limit_max:.3g} are allowed"
                )
        return ""

    def batch(self, who: int, which: int, reps: int) -> float:
        """One batch; ns a call."""
        start = time.perf_counter_ns()
        reply = self.child.ask("run", who, which, reps)
        took = time.perf_counter_ns() - start
        if "error" in reply:
            raise GateError(reply["error"])
        return took / reps

    def prepare(self, who: int) -> str:
        """Builds a contender and tries it on every set; "" or what is wrong with it."""
        try:
            reply = self.child.ask("prepare", who, seconds=PREPARE_SECONDS)
        except GateError as e:
            return str(e)
        if "error" in reply:
            return reply["error"]
        self.prepared = reply
        for which in range(len(self.sets)):
            self.child.ask("run", who, which, 1)
            wrong = self.check(who, which)
            if wrong:
                return wrong
        return ""

    def reps_of(self, who: int) -> tuple[int, float]:
        """Calls that fill a batch, and ns a call."""
        reps = 1
        while True:
            each = self.batch(who, 0, reps)
            if each * reps >= BATCH_MS * 1e6 or reps >= 1 << 20:
                return reps, each
            reps = min(1 << 20, max(reps + 1, int(reps * min(100.0, 1.3 * BATCH_MS * 1e6 / (each * reps)))))


def _measure_baselines(gate: Gate, result: GateResult) -> list[tuple[int, int, float]]:
    """(who, reps, ns) of every baseline that works, fastest first."""
    working = []
    for who in range(1, len(gate.child.contenders)):
        name = gate.child.contenders[who]
        gate.say(f"baseline {name['name']}")
        wrong = gate.prepare(who)
        if wrong:
            result.baselines.append({"name": name["name"], "left_out": wrong})
            continue
        reps, _ = gate.reps_of(who)
        times = sorted(gate.batch(who, gate.random.randrange(len(gate.sets)), reps) for _ in range(5))
        working.append((who, reps, times[2]))
        row = {"name": name["name"], "median_ns": times[2]}
        if name["note"]:
            row["note"] = name["note"]
        result.baselines.append(row)
    return sorted(working, key=lambda w: w[2])


def _pairs(gate: Gate, who: int, reps: tuple[int, int], seconds: float) -> tuple[list[float], list[float], str]:
    """Rounds of baseline and Kernel in turn; their times, and what was wrong with an output."""
    base: list[float] = []
    ours: list[float] = []
    deadline = time.monotonic() + seconds
    while len(base) < MAX_ROUNDS:
        a, b = gate.random.sample(range(len(gate.sets)), 2)
        order = [(who, a, reps[0]), (0, b, reps[1])]
        if gate.random.random() < 0.5:
            order.reverse()
        for contender, which, n in order:
            (base if contender else ours).append(gate.batch(contender, which, n))
            wrong = gate.check(contender, which) if contender == 0 else ""
            if wrong:
                return base, ours, wrong
        if len(base) >= MIN_ROUNDS and len(base) % 5 == 0:
            median, low, high = _libkgen.ratio(base, ours)
            if high - low < WIDTH * median or time.monotonic() > deadline:
                break
    return base, ours, ""


def run(gate: Gate, kernel_id: str, min_speedup: float, seconds: float = 20.0) -> GateResult:
    """Whether the Kernel may be promoted: right on every set, served by itself, and faster than the best baseline by
    more than min_speedup, at the lower end of the 95% interval."""
    result = GateResult(False, "")
    gate.say("kgen")
    wrong = gate.prepare(0)
    if wrong:
        result.reason = f"through torch.ops.kgen: {wrong}"
        return result
    ids = {d["id"] for d in gate.prepared["served"]}
    if ids != {kernel_id}:
        result.reason = f"through torch.ops.kgen the call was served by {sorted(map(str, ids))}, not by the Candidate"
        return result
    working = _measure_baselines(gate, result)
    if not working:
        result.reason = "no baseline works here: nothing to compare with"
        return result
    who, reps, _ = working[0]
    result.baseline = gate.child.contenders[who]["name"]
    gate.say(f"pairs with {result.baseline}")
    base, ours, wrong = _pairs(gate, who, (reps, gate.reps_of(0)[0]), seconds)
    if wrong:
        result.reason = wrong
        return result
    result.speedup = _libkgen.ratio(base, ours)
    result.rounds = len(base)
    result.baseline_ns = sorted(base)[len(base) // 2]
    result.kgen_ns = sorted(ours)[len(ours) // 2]
    median, low, high = result.speedup
    # Wider than a tenth: this machine cannot tell, whatever the lower end says.
    result.noisy = high - low > 0.1 * median and low < min_speedup
    result.passed = low > min_speedup
    if not result.passed:
        result.reason = (
            f"{median:.2f}x ({low:.2f}..{high:.2f}) over {result.baseline}: the lower end is not above {min_speedup:.2f}"
        )
    return result
