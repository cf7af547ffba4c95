"""The gate: before a Kernel is promoted it is measured once more, in a fresh process, through torch.ops.kgen, on inputs of
new seeds, paired with the best baseline (the winner of a search is partly lucky).

This side owns inputs, oracles and the clock. It starts batches of at least BATCH_MS over a socket and sleeps until they
are done; Kernel and baseline take turns, never on the same input set in a round, and what each batch left behind is
compared with the oracle. A contender that kills or hangs the other process costs that process, not the gate: it is left
out with the reason, and the rest goes on in a new one.

A Kernel is code that nobody vouches for, so it comes last: baselines are built, measured and warm before, then the other
process locks itself, then the Kernel is loaded there. What violates the lock is the reason why the gate stays shut, and nothing that
the other process says is believed before it is checked. A baseline that must be built after all gets a process without a Kernel.

On a GPU the inputs lie in an allocation that both processes map, each call finds a cold L2, and the number is the time
between a call's events; that of the whole batch must agree with this side's clock. Outputs are compared on the GPU.

Baselines that must be compiled first are built ahead, within limits (gate_build), and what a Case's baselines took before on
this machine says which are worth it again (known_baselines). While anything is timed the device is held (devices.alone).
"""

from __future__ import annotations

import json
import math
import os
import random
import secrets
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from . import _libkgen, devices, known_baselines
from .errors import EnvironmentLacks, KgenError
from .gate_build import Ahead, Patience, builds_at_once
from .gate_memory import Memory, put
from .judge import errors as errors_of

BATCH_MS = 10.0
# Rounds: enough for a bootstrap interval; more while it is wider than WIDTH and there is time.
MIN_ROUNDS, MAX_ROUNDS, WIDTH = 15, 120, 0.03
ROUND_SECONDS = 20.0
# What a process may take to import torch, a contender to be built, and one batch to run; what takes longer is left out.
# Baselines that are compiled have limits of their own (gate_build.Patience).
START_SECONDS, PREPARE_SECONDS, BATCH_SECONDS = 120.0, 120.0, 60.0
# On a GPU: how far the clock and the events of a batch may be apart, and how often a batch that is disturbed is repeated.
AGREE, DISTURBED = 0.03, 5
# torch's own code has no reason to keep work from its events, and one that is left out would flatter the Kernel: the batch
# that was disturbed least counts, when it was no more than this.
AGREE_BASELINE = 0.3
# The pause before each repetition grows by so much; a batch is at most 2^LONGER times as long.
PAUSE_SECONDS, LONGER = 0.25, 2
# Baselines this near to the fastest are measured again before one is chosen.
NEAR = 1.25
TRIES, MOST_REPS = 4, 1 << 20
# Where baselines are compiled ahead, in processes of their own. For a CPU there are one or two, and the CPUs are busy with one.
AHEAD = {"cuda"}
# Inputs and outputs of so many bytes, and processes that built contenders are not kept beside the one that measures.
MOST_KEPT = 2 << 30
# Bytes of an answer.
MOST_ANSWER = 1 << 20
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

    def inputs(self) -> tuple[dict[str, torch.Tensor | None], tuple[torch.Tensor, ...]]:
        """args and captured, with their values."""
        return self.args, self.captured

    def expected(self) -> tuple[torch.Tensor, ...]:
        """oracles, with their values."""
        return self.oracles


@dataclass(frozen=True)
class SeededSet(GateSet):
    """A set too large to be kept: its tensors are on the meta device, and their values are made whenever they are asked
    for, the same each time."""

    draw: Callable[[], tuple[dict[str, torch.Tensor | None], tuple[torch.Tensor, ...]]]
    compute: Callable[[], tuple[torch.Tensor, ...]]

    def inputs(self) -> tuple[dict[str, torch.Tensor | None], tuple[torch.Tensor, ...]]:
        return self.draw()

    def expected(self) -> tuple[torch.Tensor, ...]:
        return self.compute()


@dataclass
class GateResult:
    """What the gate found. Times are of one call, in ns. arithmetic: what float32 was to torch, "" on a CPU. device: what
    NVML told of the GPU "before" and "after" the pairs. lock: what kept the Kernel in its process, landlock (version; 0: none) and
    seccomp; empty when it was never loaded."""

    passed: bool
    reason: str
    baseline: str = ""
    baseline_ns: float = 0.0
    kgen_ns: float = 0.0
    speedup: tuple[float, float, float] = (0.0, 0.0, 0.0)
    rounds: int = 0
    noisy: bool = False
    baselines: list[dict[str, Any]] = field(default_factory=list)
    arithmetic: str = ""
    device: dict[str, Any] = field(default_factory=dict)
    lock: dict[str, Any] = field(default_factory=dict)

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
            "arithmetic": self.arithmetic,
            "device": self.device,
            "lock": self.lock,
        }

    @staticmethod
    def read(entry: dict[str, Any], min_speedup: float) -> GateResult:
        """What json() gave, decided by the threshold of now."""
        base, s = entry["baseline"], entry["speedup"]
        found = GateResult(
            entry["passed"], entry["reason"], base["name"], base["median_ns"], entry["kgen_ns"],
            (s["median"], s["low"], s["high"]), entry["rounds"], entry["noisy"], entry["baselines"],
            entry.get("arithmetic", ""), entry.get("device", {}), entry.get("lock", {}),
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


def environment(registry: Path, cache: Path | None, gpu: bool, cpus: int) -> dict[str, str]:
    """Of the other process: kgen as a user's process has it, but with the Candidate's registry first."""
    env = dict(os.environ, KGEN_REGISTRY=str(registry), KGEN_POLICY="arch")
    env.pop("KGEN_DISABLE", None)
    if cache is not None:
        env["KGEN_CACHE"] = str(cache)
    # On a CPU its compilers run in the process itself: nothing is left over when it is killed, and two cores need no pool.
    # On a GPU there is much more to compile; the pool is of the process's own group, and goes with it.
    env["TORCHINDUCTOR_COMPILE_THREADS"] = str(min(8, cpus)) if gpu else "1"
    package = str(Path(__file__).resolve().parent.parent)
    env["PYTHONPATH"] = os.pathsep.join(filter(None, [package, env.get("PYTHONPATH", "")]))
    return env


def _descendants(pid: int) -> list[int]:
    """The processes that a process has started, and that those have; parents first."""
    children: dict[int, list[int]] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):  # it has ended meanwhile
            parent = int(stat.read_text().rpartition(")")[2].split()[1])
            children.setdefault(parent, []).append(int(stat.parent.name))
    found = list(children.get(pid, []))
    for one in found:
        found += children.get(one, [])
    return found


class _Child:
    """The process of gate_child.py."""

    def __init__(self, job: dict[str, Any], memory: int, registry: Path, cache: Path | None, cpus: int | None = None):
        """cpus: how many its compiler may use; None: all."""
        ours, theirs = socket.socketpair()
        self.socket, self.unread = ours, b""
        self.said = tempfile.TemporaryFile()
        self.ready: set[int] = set()
        self.locked = False  # the Kernel is in it, and nothing else can be built there
        self.closed = False
        self.process = subprocess.Popen(
            [sys.executable, "-m", "kgen.gate_child", str(theirs.fileno()), str(os.getpid())],
            pass_fds=(theirs.fileno(), memory),
            env=environment(registry, cache, job["device"] == "cuda", cpus or len(os.sched_getaffinity(0))),
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
        deadline, number = time.monotonic() + seconds, secrets.randbits(53)
        try:
            self.socket.settimeout(seconds)
            self.socket.sendall(json.dumps({**message, "n": number}).encode() + b"\n")
            line = self._line(deadline)
        except TimeoutError:
            raise GateError(f"no answer within {seconds:.0f} s") from None
        except OSError:
            line = b""
        if not line:
            raise GateError(self._ending())
        return _answer(line, number)

    def _line(self, deadline: float) -> bytes:
        """The next line, without its end; empty when the other side is gone."""
        while b"\n" not in self.unread:
            if len(self.unread) > MOST_ANSWER:
                raise GateError(f"an answer of more than {MOST_ANSWER} bytes")
            left = deadline - time.monotonic()
            if left <= 0:
                raise TimeoutError
            self.socket.settimeout(left)
            part = self.socket.recv(1 << 16)
            if not part:
                return b""
            self.unread += part
        line, _, self.unread = self.unread.partition(b"\n")
        return line

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
        if self.closed:  # its number may be another process's by now
            return
        self.closed = True
        # torch's compile workers are a session of their own and would finish what nobody waits for.
        for pid in [*_descendants(self.process.pid), self.process.pid]:
            for kill in (os.killpg, os.kill):
                with suppress(ProcessLookupError):
                    kill(pid, signal.SIGKILL)
        self.process.wait()
        self.socket.close()
        self.said.close()


def _answer(line: bytes, number: int) -> dict[str, Any]:
    """An answer, if it is one to that request. What tells of the end of the process has no number."""
    try:
        found = json.loads(line)
    except ValueError:
        found = None
    if not isinstance(found, dict) or not isinstance(found.get("error", ""), str):
        raise GateError("the gate's process sent what is no answer")
    if found.get("lost") is True and "error" in found and "n" not in found:
        return found
    if found.get("n") != number:
        raise GateError("the gate's process sent an answer that is not to this request")
    return found


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
        index: int = 0,
        patience: Patience | None = None,
    ):
        """cache: where the other process keeps images and the registry's index; None: in the user's cache. index: the GPU
        of a CUDA Case. patience: how long baselines may compile."""
        if len(sets) < 2:
            raise ValueError("the gate needs two input sets or more")
        self.sets, self.say, self.patience = list(sets), say, patience or Patience()
        self.device = devices.of_case(case, index)
        self.memory = Memory(self.device)
        placed = [
            {
                "args": {n: self.memory.place(t) if t is not None else None for n, t in s.args.items()},
                "captured": [self.memory.place(t) for t in s.captured],
            }
            for s in sets
        ]
        shapes = zip(sets[0].oracles, sets[0].dtypes, strict=True)
        self.outputs = [self.memory.place(torch.empty(o.shape, dtype=d, device="meta")) for o, d in shapes]
        self.job = {
            "case": case,
            "names": list(names),
            "sets": placed,
            "outputs": self.outputs,
            "reference": str(reference) if reference else "",
            "threads": torch.get_num_threads(),
            "device": self.device.type,
            "index": self.device.index or 0,
            "bytes": self.memory.size,
            "alone": False,
        }
        self.registry, self.cache = registry, cache
        self.random = random.SystemRandom()
        # The process that was last asked; the one for what no other has built; and by contender those that it was built in.
        self.child: _Child | None = None
        self.own: _Child | None = None
        self.kept: dict[int, _Child] = {}
        self.ahead: list[Ahead[_Child]] = []
        self.wake = math.inf  # ns of a batch without a call, the least that was seen
        try:
            with devices.room_for(self.device, "the gate's inputs"):
                self._share(placed)
            with _own_threads(1):
                self.contenders = self._process(0).contenders
        except GateError as e:
            self.memory.close()
            raise EnvironmentLacks(f"the gate's process does not start: {e}; KGEN_LOG=1 shows what it says") from e
        except BaseException:
            self.memory.close()
            raise

    def _share(self, placed: list[dict[str, Any]]) -> None:
        """Puts the inputs where the other process sees them; on a GPU they are nowhere else then."""
        self.memory.make()
        for i, (one, spec) in enumerate(zip(self.sets, placed, strict=True)):
            args, captured = one.inputs()
            for name, t in args.items():
                if t is not None:
                    put(self.memory.view(spec["args"][name]), t)
            for t, to in zip(captured, spec["captured"], strict=True):
                put(self.memory.view(to), t)
            del args, captured
            if self.gpu:
                self.sets[i] = replace(one, args={}, captured=())
        devices.synchronize(self.device)
        devices.release(self.device)

    @property
    def gpu(self) -> bool:
        return self.device.type == "cuda"

    def _process(self, who: int) -> _Child:
        """The process in which a contender is built, or is to be."""
        child = self.kept.get(who, self.own)
        if child is not None and child.locked and who not in child.ready:
            self._end(child)
            child = None
        if child is None:
            child = self.own = _Child(self.job, self.memory.fd, self.registry, self.cache)
        self.child = child
        return child

    def keep(self, ahead: Ahead[_Child]) -> None:
        """Takes the processes that have contenders built in them."""
        self.ahead.append(ahead)
        for who, child in ahead.kept.items():
            child.ready.add(who)
        self.kept |= ahead.kept

    def close(self) -> None:
        """Ends the other processes; safe at any time."""
        self.alone_with(None)
        for ahead in self.ahead:
            ahead.close()
        self.memory.close()

    def alone_with(self, child: _Child | None) -> None:
        """Ends all other processes but this one, which is then for whatever is to be built."""
        for other in {self.own, *self.kept.values()} - {None, child}:
            self._end(other)
        self.own, self.kept = child, {}

    def _end(self, child: _Child | None) -> None:
        if child is None:
            return
        self.kept = {w: c for w, c in self.kept.items() if c is not child}
        self.own = None if self.own is child else self.own
        self.child = None if self.child is child else self.child
        child.close()

    def __enter__(self) -> Gate:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def builder(self, cpus: int) -> _Child:
        """Another process with the same contenders and inputs, to build them in; what it times, it times alone."""
        return _Child({**self.job, "alone": True}, self.memory.fd, self.registry, self.cache, cpus)

    def alone(self) -> AbstractContextManager[None]:
        """Holds the device: nothing else of kgen is timed on it meanwhile."""
        return devices.alone(self.device, self.say)

    def ask(self, do: str, who: int, which: int = 0, reps: int = 0, seconds: float = BATCH_SECONDS) -> dict[str, Any]:
        """A contender does something, in a new process if the one before was lost. GateError: it could not."""
        try:
            child = self._process(who)
            if do != "prepare" and who not in child.ready:
                self.prepared = self._prepare(child, who, PREPARE_SECONDS)
            if do == "prepare":
                return self._prepare(child, who, seconds)
            return self._reply(child, {"do": do, "who": who, "set": which, "reps": reps}, seconds)
        except _Lost as e:
            self._end(self.child)
            raise GateError(str(e)) from e

    def _prepare(self, child: _Child, who: int, seconds: float) -> dict[str, Any]:
        child.locked |= who == 0
        reply = self._reply(child, {"do": "prepare", "who": who}, seconds)
        child.ready.add(who)
        return reply

    @staticmethod
    def _reply(child: _Child, message: dict[str, Any], seconds: float) -> dict[str, Any]:
        try:
            reply = child.send(message, seconds)
        except GateError as e:
            raise _Lost(str(e)) from e
        if reply.get("lost"):
            raise _Lost(reply["error"])
        if "error" in reply:
            raise GateError(reply["error"])
        return reply

    def check(self, who: int, which: int) -> str:
        """"" when what the last call left is right for the set, else what is wrong."""
        reply = self.ask("output", who, which)
        oracles = self.sets[which].expected()
        given = reply.get("outputs")  # a baseline of attention gives no lse
        if type(given) is not int or not 1 <= given <= len(self.outputs):
            raise GateError("the gate's process gave no outputs")
        for i in range(given):
            norm, worst, bad = errors_of(self.memory.view(self.outputs[i]), oracles[i])
            limit_norm, limit_max = self.sets[which].limits[i]
            if bad or not (norm <= limit_norm and worst <= limit_max):
                where = f"; {bad} elements are not finite where they should be, or differ" if bad else ""
                return (
                    f"output {i} has norm error {norm:.3g} and largest error {worst:.3g} "
                    f"where {limit_norm:.3g} and {limit_max:.3g} are allowed{where}"
                )
        del oracles
        if isinstance(self.sets[which], SeededSet):
            devices.release(self.device)
        return ""

    def took(self, who: int, which: int, reps: int) -> float:
        """One batch; its ns."""
        start = time.perf_counter_ns()
        self.ask("run", who, which, reps)
        return float(time.perf_counter_ns() - start)

    def batch(self, who: int, which: int, reps: int) -> float:
        """One batch; ns a call."""
        return self._by_events(who, which, reps) if self.gpu else self.took(who, which, reps) / reps

    def _by_events(self, who: int, which: int, reps: int) -> float:
        """ns a call by the events around each, when those of the batch agree with this side's clock."""
        if self.wake == math.inf:
            self.wake = min(self.took(who, which, 0) for _ in range(TRIES))
        off, least = 0.0, (math.inf, 0.0)
        for again in range(DISTURBED):
            # What disturbs a batch passes, or is small beside a longer one.
            time.sleep(again * PAUSE_SECONDS)
            calls = reps << min(again, LONGER)
            wall = self.took(who, which, calls) - self.wake
            found = self.ask("times", who, which, calls)  # asked for afterwards: reading events takes a while
            if not all(isinstance(found.get(t), (int, float)) for t in ("window_ns", "calls_ns")):
                raise GateError("the gate's process sent no times")
            off = abs(wall - found["window_ns"]) / max(wall, 1.0)
            if 0 < found["calls_ns"] <= found["window_ns"]:
                least = min(least, (off, float(found["calls_ns"]) / calls))
            if least[0] <= AGREE:
                return least[1]
        if who != 0 and least[0] <= AGREE_BASELINE:
            return least[1]
        raise GateError(
            f"the events of a batch and the clock are {100 * off:.0f}% apart, {DISTURBED} times in a row: something else uses "
            f"{self.device}, or this machine's CPUs are too busy"
        )

    def together(self, who: int) -> None:
        """A baseline is ready in the process into which the Kernel will be loaded."""
        child = self.kept.get(who, self.own)
        whole = child is not None and not child.locked and who in child.ready
        self.alone_with(child if whole else None)
        if not whole:
            self.ask("prepare", who, seconds=self.patience.each)
        for which in range(len(self.sets)):
            self.ask("run", who, which, 1)

    def prepare(self, who: int, seconds: float | None = None) -> str:
        """Builds a contender, within PREPARE_SECONDS unless told, and tries it on every set; "" or what is wrong with it."""
        try:
            if who not in self.kept:
                self.prepared = self.ask("prepare", who, seconds=PREPARE_SECONDS if seconds is None else seconds)
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


def _build(gate: Gate, whos: list[int]) -> dict[int, str]:
    """Compiles what must be compiled of these, ahead and within the limits; of each "" or why it is not built. Beside AHEAD
    the gate's own process does it when its turn comes."""
    compiled = [w for w in whos if gate.contenders[w]["compiles"]]
    if not compiled:
        return {}
    if gate.patience.limit <= 0:
        return dict.fromkeys(compiled, gate.patience.used_up())
    if gate.device.type not in AHEAD:
        return {}
    groups: dict[str, list[int]] = {}
    for who in compiled:
        groups.setdefault(gate.contenders[who]["compiles"], []).append(who)
    ahead = Ahead(gate.builder, GateError, gate.patience, builds_at_once(), gate.say)
    slow_last = [groups[g] for g in sorted(groups, key=lambda g: "autotune" in g)]
    found = ahead.build(slow_last, {w: gate.contenders[w]["name"] for w in compiled})
    if gate.memory.size > MOST_KEPT or any("out of memory" in why for why in found.values()):
        ahead.close()
    gate.keep(ahead)
    # For want of memory beside the others it may still do alone.
    return {w: "" if "out of memory" in why else why for w, why in found.items()}


def _prepare_baseline(gate: Gate, who: int, built: dict[int, str]) -> str:
    """Builds a baseline in the gate's own process; "" or why it is left out."""
    if built.get(who):
        return built[who]
    if not gate.contenders[who]["compiles"]:
        return gate.prepare(who)
    limit, started = gate.patience.each if who in built else gate.patience.limit, time.monotonic()
    if limit <= 0:
        return gate.patience.used_up()
    wrong = gate.prepare(who, limit)
    if who not in built:
        gate.patience.spent += time.monotonic() - started
    return gate.patience.outlasted(limit) if wrong.startswith("no answer within") else wrong


@dataclass
class _Measured:
    """Baselines that were measured: ns of calls, and calls a batch, by contender."""

    times: dict[int, list[float]] = field(default_factory=dict)
    reps: dict[int, int] = field(default_factory=dict)

    @property
    def best(self) -> float:
        return min(map(_median, self.times.values()), default=math.inf)

    def take(self, gate: Gate, who: int) -> None:
        self.times[who].append(gate.batch(who, gate.random.randrange(len(gate.sets)), self.reps[who]))


def _measure(gate: Gate, whos: list[int], found: _Measured, result: GateResult) -> None:
    """Builds baselines and measures those that work."""
    built = _build(gate, whos)
    for who in whos:
        name = gate.contenders[who]["name"]
        gate.say(f"baseline {name}")
        try:
            wrong = _prepare_baseline(gate, who, built)
            if not wrong:
                with gate.alone():
                    found.reps[who], found.times[who] = gate.reps_of(who), []
                    for _ in range(5):
                        found.take(gate, who)
        except GateError as e:
            wrong = str(e)
        if wrong:
            found.times.pop(who, None)
            result.baselines.append({"name": name, "left_out": wrong})


def _measure_baselines(gate: Gate, result: GateResult) -> list[tuple[int, int]]:
    """(who, reps) of every baseline that works and is worth measuring, fastest first."""
    names = {w: gate.contenders[w]["name"] for w in range(1, len(gate.contenders))}
    known, found = known_baselines.read(gate.job["case"], gate.device, gate.job["threads"]), _Measured()
    old = {w: row for w, name in names.items() if (row := known.settled(name, gate.patience.each)) is not None}
    _measure(gate, [w for w in names if w not in old], found, result)
    # What was slow beside a baseline that does not work now was not slow enough.
    again = [w for w, row in old.items() if row.get("median_ns", math.inf) <= known_baselines.SLOWER * found.best < math.inf]
    again += [w for w, row in old.items() if "median_ns" in row and not found.times]
    _measure(gate, again, found, result)
    near = [w for w in found.times if _median(found.times[w]) < NEAR * found.best]
    with gate.alone():
        for _ in range(5 if len(near) > 1 else 0):
            for who in near:
                found.take(gate, who)
    for who, spent in found.times.items():
        row = {"name": names[who], "median_ns": _median(spent)}
        note = gate.contenders[who]["note"]
        result.baselines.append({**row, "note": note} if note else row)
    known.add(result.baselines, {names[w] for w in names if gate.contenders[w]["compiles"]}, gate.patience.each)
    result.baselines += [row for w, row in old.items() if w not in again]
    return [(w, found.reps[w]) for w in sorted(found.times, key=lambda w: _median(found.times[w]))]


def pairs(
    gate: Gate, a: tuple[int, int], b: tuple[int, int], seconds: float, wanted: float = 0.0, width: float = WIDTH
) -> tuple[list[float], list[float], str]:
    """Rounds of two contenders (each with its calls a batch) in turn; their times, and what was wrong with an output.
    They end early when the interval is narrower than `width` of the ratio, or b is surely less than `wanted` times as fast
    as a: more rounds could not promote it."""
    with gate.alone():
        return _pairs(gate, a, b, seconds, wanted, width)


def _pairs(
    gate: Gate, a: tuple[int, int], b: tuple[int, int], seconds: float, wanted: float, width: float
) -> tuple[list[float], list[float], str]:
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
        if len(times[0]) >= MIN_ROUNDS and time.monotonic() > deadline:
            break
        if len(times[0]) >= MIN_ROUNDS and len(times[0]) % 5 == 0:
            median, low, high = _libkgen.ratio(*times)
            if high - low < width * median or high < wanted:
                break
    return *times, ""


def run(gate: Gate, kernel_id: str, min_speedup: float, seconds: float = ROUND_SECONDS) -> GateResult:
    """Whether the Kernel may be promoted: right on every set, served by itself, and faster than the best baseline by
    more than min_speedup, at the lower end of the 95% interval."""
    result = GateResult(False, "")
    if gate.gpu:
        tf32 = gate.job["case"].get("precision", "native") != "native"
        result.arithmetic = f"TF32 {'on' if tf32 else 'off'}"
    with _own_threads(1):
        try:
            _run(gate, kernel_id, min_speedup, seconds, result)
        except GateError as e:
            result.passed, result.reason = False, str(e)
    return result


def _run(gate: Gate, kernel_id: str, min_speedup: float, seconds: float, result: GateResult) -> None:
    working = _measure_baselines(gate, result)
    base = working[0] if working else None
    if base is not None:
        result.baseline = gate.contenders[base[0]]["name"]
        gate.together(base[0])
    gate.say("kgen")
    wrong = _prepare_kernel(gate, kernel_id, result)
    if wrong or base is None:
        result.reason = wrong or NO_BASELINE
        return
    gate.say(f"pairs with {result.baseline}")
    with gate.alone():
        reps = gate.reps_of(0)
        before = devices.state(gate.device)
        theirs, ours, wrong = pairs(gate, base, (0, reps), seconds, min_speedup)
        if before:
            result.device = {"before": before, "after": devices.state(gate.device)}
    if wrong:
        result.reason = wrong
        return
    result.speedup = _libkgen.ratio(theirs, ours)
    result.rounds = len(theirs)
    result.baseline_ns, result.kgen_ns = _median(theirs), _median(ours)
    result.decide(min_speedup)


def _prepare_kernel(gate: Gate, kernel_id: str, result: GateResult) -> str:
    """Loads the Kernel into a process that is locked from there on; "" when it is right and serves the call itself."""
    wrong = gate.prepare(0)
    if wrong:
        return f"through torch.ops.kgen: {wrong}"
    served, lock = gate.prepared.get("served"), gate.prepared.get("lock") or {}
    if not isinstance(served, list) or not isinstance(lock, dict):
        return "the gate's process does not say who served the call"
    result.lock = {k: v for k, v in lock.items() if k in ("landlock", "seccomp") and isinstance(v, int)}
    told = [{k: str(d.get(k) or "") for k in ("id", "kernel", "reason")} for d in served if isinstance(d, dict)]
    if {d["id"] for d in told} == {kernel_id}:
        return ""
    why = "; ".join(sorted({d["reason"] for d in told} - {""}))
    by = ", ".join(sorted(d["kernel"] or "torch" for d in told)) or "nothing of kgen"
    return f"through torch.ops.kgen the call was served by {by}, not by the Candidate" + f": {why}" * bool(why)
