"""The gate: before a Kernel is promoted it is measured once more, in a fresh process, through torch.ops.kgen, on inputs of
new seeds, paired with the best baseline (the winner of a search is partly lucky).

This side owns inputs, oracles and the clock. It starts batches of at least BATCH_MS over a socket and sleeps until they
are done; Kernel and baseline take turns, never on the same input set in a round, and what each batch left behind is
compared with the oracle. A contender that kills or hangs the other process costs that process, not the gate: it is left
out with the reason, and the rest goes on in a new one.
"""

from __future__ import annotations

import json
import math
import mmap
import os
import random
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from . import _libkgen
from .errors import EnvironmentLacks, KgenError
from .judge import errors as errors_of

BATCH_MS = 10.0
# Rounds: enough for a bootstrap interval; more while it is wider than WIDTH and there is time.
MIN_ROUNDS, MAX_ROUNDS, WIDTH = 15, 120, 0.03
ROUND_SECONDS = 20.0
# What a process may take to import torch, a contender to be built (torch.compile with a C++ compiler, on a busy
# machine), and one batch to run; what takes longer is left out.
START_SECONDS, PREPARE_SECONDS, BATCH_SECONDS = 120.0, 120.0, 60.0
# Baselines this near to the fastest are measured again before one is chosen.
NEAR = 1.25
TRIES, MOST_REPS = 4, 1 << 20
ALIGN = 256
# How the reason of a Kernel that is right and not fast enough begins; and that of one with nothing to compare it with.
SLOWER = "not surely"
NO_BASELINE = "no baseline works here: nothing to compare with"


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

    @staticmethod
    def read(entry: dict[str, Any], min_speedup: float) -> GateResult:
        """What json() gave, decided by the threshold of now."""
        base, s = entry["baseline"], entry["speedup"]
        found = GateResult(
            entry["passed"], entry["reason"], base["name"], base["median_ns"], entry["kgen_ns"],
            (s["median"], s["low"], s["high"]), entry["rounds"], entry["noisy"], entry["baselines"],
        )  # fmt: skip
        if found.rounds and (found.passed or found.reason.startswith(SLOWER)):
            found.decide(min_speedup)
        return found

    def decide(self, min_speedup: float) -> None:
        """passed and reason, from the interval."""
        median, low, high = self.speedup
        # Wider than a tenth: this machine cannot tell, whatever the lower end says.
        self.noisy = high - low > 0.1 * median and low <= min_speedup < high
        self.passed = low > min_speedup
        self.reason = ""
        if not self.passed:
            noise = "; the machine is too noisy to tell: --resume on a quiet one" if self.noisy else ""
            self.reason = f"{SLOWER} {min_speedup:.2f}x as fast as {self.baseline}: {median:.2f}x ({low:.2f}..{high:.2f}){noise}"


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
        """Fills it with the tensors placed; the descriptor, which is the caller's."""
        fd = os.memfd_create("kgen-gate", os.MFD_CLOEXEC)
        try:
            os.ftruncate(fd, max(self.size, ALIGN))
            self.bytes = torch.frombuffer(mmap.mmap(fd, max(self.size, ALIGN)), dtype=torch.uint8)
            for spec, x in self.specs:
                if x is not None:
                    self.view(spec).copy_(x)
        except BaseException:
            os.close(fd)
            raise
        return fd

    def view(self, spec: dict[str, Any]) -> torch.Tensor:
        raw = self.bytes[spec["offset"] : spec["offset"] + spec["bytes"]]
        return raw.view(getattr(torch, spec["dtype"])).as_strided(spec["shape"], spec["stride"])


def _environment(registry: Path, cache: Path | None) -> dict[str, str]:
    """Of the other process: kgen as a user's process has it, but with the Candidate's registry first."""
    env = dict(os.environ, KGEN_REGISTRY=str(registry), KGEN_POLICY="arch")
    env.pop("KGEN_DISABLE", None)
    if cache is not None:
        env["KGEN_CACHE"] = str(cache)
    # Its compilers run in the process itself: nothing is left over when it is killed, and two cores need no pool.
    env["TORCHINDUCTOR_COMPILE_THREADS"] = "1"
    package = str(Path(__file__).resolve().parent.parent)
    env["PYTHONPATH"] = os.pathsep.join(filter(None, [package, env.get("PYTHONPATH", "")]))
    return env


class _Child:
    """The process of gate_child.py."""

    def __init__(self, job: dict[str, Any], memory: int, registry: Path, cache: Path | None):
        ours, theirs = socket.socketpair()
        self.socket, self.link = ours, ours.makefile("rwb")
        self.said = tempfile.TemporaryFile()
        self.ready: set[int] = set()
        self.process = subprocess.Popen(
            [sys.executable, "-m", "kgen.gate_child", str(theirs.fileno()), str(os.getpid())],
            pass_fds=(theirs.fileno(), memory),
            env=_environment(registry, cache),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=None if os.environ.get("KGEN_LOG") else self.said,
            start_new_session=True,
        )
        theirs.close()
        try:
            self.contenders = self.send({**job, "memory": memory}, START_SECONDS)["contenders"]
        except BaseException:
            self.close()
            raise

    def send(self, message: dict[str, Any], seconds: float) -> dict[str, Any]:
        """The answer to a request. GateError when it is none; then the process is of no use any more."""
        self.socket.settimeout(seconds)
        try:
            self.link.write(json.dumps(message).encode() + b"\n")
            self.link.flush()
            line = self.link.readline()
        except TimeoutError:
            raise GateError(f"no answer within {seconds:.0f} s") from None
        except OSError:
            line = b""
        if not line.endswith(b"\n"):
            raise GateError(self._ending())
        return json.loads(line)

    def _ending(self) -> str:
        try:
            code = self.process.wait(timeout=5)
        except subprocess.TimeoutExpired:
            return "the gate's process closed its socket"
        if code < 0:
            return f"the gate's process was killed by signal {-code} ({signal.Signals(-code).name})"
        self.said.seek(0)
        lines = self.said.read().decode(errors="replace").strip().splitlines()
        return f"the gate's process ended with exit code {code}" + (f": {lines[-1][:300]}" if lines else "")

    def close(self) -> None:
        """Ends it and whatever it started; safe at any time."""
        try:
            os.killpg(self.process.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
        self.process.wait()
        self.link.close()
        self.socket.close()
        self.said.close()


class Gate:
    """One Case at the gate: contender 0 is the Kernel, the others are baselines. Use as a context manager."""

    def __init__(
        self,
        case: dict[str, Any],
        names: Sequence[str],
        sets: Sequence[GateSet],
        registry: Path,
        reference: Path | None = None,
        say: Callable[[str], None] = lambda _: None,
        cache: Path | None = None,
    ):
        """cache: where the other process keeps images and the registry's index; None: in the user's cache."""
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
        self.job = {
            "case": case,
            "names": list(names),
            "sets": placed,
            "outputs": self.outputs,
            "reference": str(reference) if reference else "",
            "threads": torch.get_num_threads(),
        }
        self.registry, self.cache = registry, cache
        self.random = random.SystemRandom()
        self.child: _Child | None = None
        self.fd = self.memory.make()
        try:
            with _own_threads(1):
                self.contenders = self._open().contenders
        except GateError as e:
            os.close(self.fd)
            raise EnvironmentLacks(f"the gate's process does not start: {e}; KGEN_LOG=1 shows what it says") from e
        except BaseException:
            os.close(self.fd)
            raise

    def _open(self) -> _Child:
        if self.child is None:
            self.child = _Child(self.job, self.fd, self.registry, self.cache)
        return self.child

    def close(self) -> None:
        """Ends the other process; safe at any time."""
        self._drop()
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1

    def _drop(self) -> None:
        if self.child is not None:
            self.child.close()
            self.child = None

    def __enter__(self) -> Gate:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def ask(self, do: str, who: int, which: int = 0, reps: int = 0, seconds: float = BATCH_SECONDS) -> dict[str, Any]:
        """A contender does something, in a new process if the one before was lost. GateError: it could not."""
        try:
            child = self._open()
            if do != "prepare" and who not in child.ready:
                self.prepared = self._reply(child, {"do": "prepare", "who": who}, PREPARE_SECONDS)
                child.ready.add(who)
            reply = self._reply(child, {"do": do, "who": who, "set": which, "reps": reps}, seconds)
            if do == "prepare":
                child.ready.add(who)
            return reply
        except _Lost as e:
            self._drop()
            raise GateError(str(e)) from e

    @staticmethod
    def _reply(child: _Child, message: dict[str, Any], seconds: float) -> dict[str, Any]:
        try:
            reply = child.send(message, seconds)
        except GateError as e:
            raise _Lost(str(e)) from e
        if "error" in reply:
            raise GateError(reply["error"])
        return reply

    def check(self, who: int, which: int) -> str:
        """"" when what the last call left is right for the set, else what is wrong."""
        reply = self.ask("output", who, which)
        for i in range(reply["outputs"]):
            oracle = self.sets[which].oracles[i]
            norm, worst, bad = errors_of(self.memory.view(self.outputs[i]), oracle)
            limit_norm, limit_max = self.sets[which].limits[i]
            if bad or not (norm <= limit_norm and worst <= limit_max):
                where = f"; {bad} elements are not finite where they should be, or differ" if bad else ""
                return (
                    f"output {i} has norm error {norm:.3g} and largest error {worst:.3g} "
                    f"where {limit_norm:.3g} and {limit_max:.3g} are allowed{where}"
                )
        return ""

    def took(self, who: int, which: int, reps: int) -> float:
        """One batch; its ns."""
        start = time.perf_counter_ns()
        self.ask("run", who, which, reps)
        return float(time.perf_counter_ns() - start)

    def batch(self, who: int, which: int, reps: int) -> float:
        """One batch; ns a call."""
        return self.took(who, which, reps) / reps

    def prepare(self, who: int) -> str:
        """Builds a contender and tries it on every set; "" or what is wrong with it."""
        try:
            self.prepared = self.ask("prepare", who, seconds=PREPARE_SECONDS)
            for which in range(len(self.sets)):
                self.ask("run", who, which, 1)
                wrong = self.check(who, which)
                if wrong:
                    return wrong
        except GateError as e:
            return str(e)
        return ""

    def reps_of(self, who: int) -> int:
        """Calls that fill a batch; it is warm afterwards. By the fastest of a few tries, less what a batch without a call
        takes: on a busy machine waking two processes may take longer than a batch should, and batches of one call would
        measure that."""
        idle = min(self.took(who, 0, 0) for _ in range(TRIES))
        reps = 1
        while True:
            total = min(self.took(who, 0, reps) for _ in range(TRIES)) - idle
            if total >= BATCH_MS * 1e6 or reps >= MOST_REPS:
                return reps
            grow = 1.3 * BATCH_MS * 1e6 / total if total > 0 else math.inf
            reps = min(MOST_REPS, max(reps + 1, int(reps * min(30.0, grow))))


class _Lost(Exception):
    """The other process is gone, or does not answer."""


@contextmanager
def _own_threads(n: int) -> Iterator[None]:
    """torch's threads in this process. One: its pool would spin for a while after each use, beside what is timed."""
    before = torch.get_num_threads()
    torch.set_num_threads(n)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _median(times: Sequence[float]) -> float:
    return sorted(times)[len(times) // 2]


def _measure_baselines(gate: Gate, result: GateResult) -> list[tuple[int, int]]:
    """(who, reps) of every baseline that works, fastest first."""
    times: dict[int, list[float]] = {}
    reps: dict[int, int] = {}
    for who in range(1, len(gate.contenders)):
        name = gate.contenders[who]["name"]
        gate.say(f"baseline {name}")
        try:
            wrong = gate.prepare(who)
            if not wrong:
                reps[who] = gate.reps_of(who)
                times[who] = [gate.batch(who, gate.random.randrange(len(gate.sets)), reps[who]) for _ in range(5)]
        except GateError as e:
            wrong = str(e)
        if wrong:
            times.pop(who, None)
            result.baselines.append({"name": name, "left_out": wrong})
    near = [w for w in times if _median(times[w]) < NEAR * min(map(_median, times.values()))]
    for _ in range(5 if len(near) > 1 else 0):
        for who in near:
            times[who].append(gate.batch(who, gate.random.randrange(len(gate.sets)), reps[who]))
    for who, spent in times.items():
        row = {"name": gate.contenders[who]["name"], "median_ns": _median(spent)}
        note = gate.contenders[who]["note"]
        result.baselines.append({**row, "note": note} if note else row)
    return [(w, reps[w]) for w in sorted(times, key=lambda w: _median(times[w]))]


def pairs(
    gate: Gate, a: tuple[int, int], b: tuple[int, int], seconds: float, wanted: float = 0.0
) -> tuple[list[float], list[float], str]:
    """Rounds of two contenders (each with its calls a batch) in turn; their times, and what was wrong with an output.
    They end early when b is surely less than `wanted` times as fast as a: more rounds could not promote it."""
    times: tuple[list[float], list[float]] = ([], [])
    deadline = time.monotonic() + seconds
    while len(times[0]) < MAX_ROUNDS:
        sets = gate.random.sample(range(len(gate.sets)), 2)
        order = [(0, a, sets[0]), (1, b, sets[1])]
        if gate.random.random() < 0.5:
            order.reverse()
        for side, (who, reps), which in order:
            times[side].append(gate.batch(who, which, reps))
            wrong = gate.check(who, which)
            if wrong:
                return *times, f"{gate.contenders[who]['name']}: {wrong}"
        if len(times[0]) >= MIN_ROUNDS and len(times[0]) % 5 == 0:
            median, low, high = _libkgen.ratio(*times)
            if high - low < WIDTH * median or high < wanted or time.monotonic() > deadline:
                break
    return *times, ""


def run(gate: Gate, kernel_id: str, min_speedup: float, seconds: float = ROUND_SECONDS) -> GateResult:
    """Whether the Kernel may be promoted: right on every set, served by itself, and faster than the best baseline by
    more than min_speedup, at the lower end of the 95% interval."""
    result = GateResult(False, "")
    with _own_threads(1):
        try:
            _run(gate, kernel_id, min_speedup, seconds, result)
        except GateError as e:
            result.passed, result.reason = False, str(e)
    return result


def _run(gate: Gate, kernel_id: str, min_speedup: float, seconds: float, result: GateResult) -> None:
    gate.say("kgen")
    wrong = gate.prepare(0)
    if wrong:
        result.reason = f"through torch.ops.kgen: {wrong}"
        return
    served = {d["id"] for d in gate.prepared["served"]}
    if served != {kernel_id}:
        why = "; ".join(sorted({d["reason"] for d in gate.prepared["served"] if d.get("reason")}))
        by = ", ".join(sorted(d["kernel"] or "torch" for d in gate.prepared["served"])) or "nothing of kgen"
        result.reason = f"through torch.ops.kgen the call was served by {by}, not by the Candidate" + f": {why}" * bool(why)
        return
    working = _measure_baselines(gate, result)
    if not working:
        result.reason = NO_BASELINE
        return
    base = working[0]
    result.baseline = gate.contenders[base[0]]["name"]
    gate.say(f"pairs with {result.baseline}")
    theirs, ours, wrong = pairs(gate, base, (0, gate.reps_of(0)), seconds, min_speedup)
    if wrong:
        result.reason = wrong
        return
    result.speedup = _libkgen.ratio(theirs, ours)
    result.rounds = len(theirs)
    result.baseline_ns, result.kgen_ns = _median(theirs), _median(ours)
    result.decide(min_speedup)
