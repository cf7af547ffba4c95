"""Which difference of two times this machine can tell: the same contender against itself, by the gate's own protocol.

A against A has one right answer. How far its interval reaches below 1 is what a real gain must be above to be called one
here, and how often it leaves 1 out says whether the intervals are honest on this machine.
"""

from __future__ import annotations

import math
import os
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch

from . import _libkgen, devices, spread
from .gate import Gate, GateError, GateSet, pairs

# Rows and columns of the softmax that is timed: a call is short, so that a batch has many and 5% more is a whole number.
SHAPE = {"cpu": (256, 1024), "cuda": (4096, 1024)}
# Calls of a batch, at least: so that 5% more work is told from 4% and 6%.
FEWEST = 60
# torch.softmax, of the gate's contenders.
EAGER = 1


@dataclass(frozen=True, slots=True)
class Comparison:
    """How many times faster B was than A, with its interval; how many pairs and seconds it took."""

    median: float
    low: float
    high: float
    rounds: int
    seconds: float

    @property
    def holds_one(self) -> bool:
        return self.low <= 1.0 <= self.high


@dataclass(frozen=True, slots=True)
class Resolution:
    """What comparisons of A against A tell of a machine. difference: a gain must be above this to be seen in nine of ten
    comparisons; wrong: in how many 1 was left out."""

    comparisons: tuple[Comparison, ...]

    @property
    def difference(self) -> float:
        reach = sorted(max(1.0 / c.low, c.high) - 1.0 for c in self.comparisons)
        return reach[math.ceil(0.9 * len(reach)) - 1]

    @property
    def wrong(self) -> int:
        return sum(not c.holds_one for c in self.comparisons)

    def text(self) -> str:
        """"can tell differences of 2.1% and more, in 6 s (...)"."""
        n = len(self.comparisons)
        medians = [c.median for c in self.comparisons]
        longest = max(c.seconds for c in self.comparisons)
        held = f"1.00 in {n - self.wrong} of {n} intervals"
        return (
            f"can tell differences of {100 * self.difference:.1f}% and more, in {longest:.0f} s (A against A, {n} times: ratios {min(medians):.3f} to "
            f"{max(medians):.3f}, {held})"
        )


@contextmanager
def at_gate(device: torch.device, say: Callable[[str], None] = lambda _: None) -> Iterator[tuple[Gate, int]]:
    """torch.softmax at the gate, ready, and the calls of a batch."""
    rows, columns = SHAPE[device.type]
    trial = spread.softmax_trial("float32", rows, columns).on(device.type)
    with tempfile.TemporaryDirectory(prefix="kgen-timing-") as folder:
        registry = Path(folder) / "generated"
        registry.mkdir()
        with Gate(
            trial.case, ["input"], [_set(device, seed, rows, columns) for seed in (1, 2, 3)], registry, None, say,
            Path(folder) / "cache", device.index or 0,
        ) as gate:  # fmt: skip
            wrong = gate.prepare(EAGER)
            if wrong:
                raise GateError(f"torch.softmax: {wrong}")
            with gate.alone():
                yield gate, max(FEWEST, gate.reps_of(EAGER))


def _set(device: torch.device, seed: int, rows: int, columns: int) -> GateSet:
    x = torch.randn(rows, columns, generator=devices.generator(device, seed), device=device)
    return GateSet({"input": x}, (), (torch.softmax(x.double(), 1),), (torch.float32,), ((1e-5, 1e-5),))


def compare(gate: Gate, reps: int, seconds: float, extra: float = 0.0, level: float = 0.95) -> Comparison:
    """One comparison of A with (1 + extra) times the calls against A; B's gain. Takes `seconds`, less when MAX_ROUNDS are
    over."""
    more = round(reps * (1 + extra))
    started = time.monotonic()
    a, b, wrong = pairs(gate, (EAGER, more), (EAGER, reps), seconds, width=0.0)
    if wrong:
        raise GateError(wrong)
    took = time.monotonic() - started
    work = [t * more / reps for t in a]  # pairs gives ns a call
    return Comparison(*_libkgen.ratio(work, b, level), len(b), took)


def measure(
    device: torch.device, seconds: float, each: float, say: Callable[[str], None] = lambda _: None
) -> Resolution:
    """Comparisons of A against A, `each` seconds long at most, as many as fit into `seconds` and three at least."""
    until = time.monotonic() + seconds
    found: list[Comparison] = []
    with at_gate(device, say) as (gate, reps):
        while len(found) < 3 or time.monotonic() + each <= until:
            say(f"{device}: A against A, {len(found) + 1}")
            found.append(compare(gate, reps, each))
    return Resolution(tuple(found))


def load_text() -> str:
    """How busy the CPUs are."""
    return f"load {os.getloadavg()[0]:.1f} on {len(os.sched_getaffinity(0))} CPUs"


def devices_here() -> Sequence[torch.device]:
    """What can be timed here."""
    gpu = devices.first_gpu()
    return [devices.CPU, gpu] if gpu is not None else [devices.CPU]
