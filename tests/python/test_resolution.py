"""What this machine can tell apart: the arithmetic on made-up comparisons, the protocol on a few real ones, and, slow, what
the whole of kgen's statistics must hold: A against A is not different, 5% more work is.

KGEN_RUNS says how many comparisons the slow ones make (default 100, of at most 10 s each)."""

from __future__ import annotations

import math
import os
import random
from collections.abc import Callable
from typing import Any

import pytest

from kgen import devices, doctor, gate, resolution
from kgen.resolution import Comparison, Resolution

RUNS = int(os.environ.get("KGEN_RUNS", "100"))


def made(*ends: tuple[float, float]) -> Resolution:
    return Resolution(tuple(Comparison(math.sqrt(low * high), low, high, 20, 5.0) for low, high in ends))


def test_the_difference_is_what_nine_of_ten_can_tell() -> None:
    found = made(*[(0.99, 1.01)] * 9, (0.5, 2.0))
    assert found.difference == pytest.approx(1 / 0.99 - 1) and found.wrong == 0
    assert made((0.99, 1.01), (0.98, 1.01), (0.95, 1.01)).difference == pytest.approx(1 / 0.95 - 1), "of few the worst"
    off = made((1.01, 1.03), (0.99, 1.01))
    assert off.wrong == 1 and off.difference == pytest.approx(0.03)
    assert off.text() == (
        "can tell differences of 3.0% and more, in 5 s (A against A, 2 times: ratios 1.000 to 1.020, 1.00 in 1 of 2 intervals)"
    )


class MadeUp:
    """A gate whose calls take 1 us and noise."""

    def __init__(self, noise: float):
        self.random, self.noise = random.Random(3), noise
        self.sets = [None] * 3
        self.device, self.say = devices.CPU, lambda _: None
        self.batches: list[int] = []

    def alone(self) -> Any:
        return devices.alone(devices.CPU)

    def batch(self, who: int, which: int, reps: int) -> float:
        self.batches.append(reps)
        return 1000.0 * math.exp(self.random.gauss(0, self.noise))

    def check(self, who: int, which: int) -> str:
        return ""


def test_more_work_is_more_calls() -> None:
    g = MadeUp(0.01)
    found = resolution.compare(g, 100, 60.0, extra=0.05)  # type: ignore[arg-type]
    assert found.rounds == gate.MAX_ROUNDS and set(g.batches) == {100, 105}
    assert found.low > 1.0 and 1.04 < found.median < 1.06
    assert resolution.compare(MadeUp(0.01), 100, 60.0).holds_one  # type: ignore[arg-type]
    noisy = resolution.compare(MadeUp(1.0), 100, 60.0, 0.05)  # type: ignore[arg-type]
    assert noisy.high / noisy.low > 1.2


def test_a_few_real_comparisons() -> None:
    with resolution.at_gate(devices.CPU) as (g, reps):
        assert reps >= resolution.FEWEST
        found = resolution.compare(g, reps, 1.5)
        more = resolution.compare(g, reps, 1.5, extra=2.0)
    assert found.rounds >= gate.MIN_ROUNDS and found.low <= found.median <= found.high
    assert more.median > 1.5, "three times the work is seen on any machine"


def test_doctor_says_it_in_words(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    answers = [made(*[(0.99, 1.01)] * 5), made(*[(0.8, 1.2)] * 5), made(*[(1.01, 1.02)] * 5)]

    def measure(device: Any, seconds: float, each: float, say: Callable[[str], None]) -> Resolution:
        assert 3 * each <= seconds <= 60
        return answers.pop(0)

    monkeypatch.setattr(resolution, "measure", measure)
    (fine,), (coarse,), (narrow,) = (list(doctor._timing()) for _ in range(3))
    assert fine.name == "timing cpu" and fine.found.startswith("can tell differences of 1.0% and more") and "load" in fine.found
    assert "smaller gains are not promoted here" in coarse.found and "25.0%" in coarse.found
    assert "the intervals are too narrow" in narrow.found


# Slow


def comparisons(runs: int, seconds: float, extra: float) -> list[Comparison]:
    """99% intervals of real comparisons on every device here."""
    found = []
    for device in resolution.devices_here():
        with resolution.at_gate(device) as (g, reps):
            found += [resolution.compare(g, reps, seconds, extra, 0.99) for _ in range(runs)]
    return found


@pytest.mark.slow
def test_a_against_a_is_not_different() -> None:
    found = comparisons(RUNS, 9.0, 0.0)
    held = sum(c.holds_one for c in found)
    assert all(c.seconds < 10.0 or c.rounds == gate.MIN_ROUNDS for c in found), "a call that takes long, or a stop too late"
    assert held >= 0.95 * len(found), f"1.00 is in {held} of {len(found)}: {[c for c in found if not c.holds_one]}"


@pytest.mark.slow
def test_five_percent_more_work_is_seen() -> None:
    """Where the machine itself does not say that it cannot: then the gate calls it noisy, and promotes nothing by it."""
    told = [resolution.measure(d, 30.0, 9.0) for d in resolution.devices_here()]
    if max(t.difference for t in told) > 0.05:
        pytest.skip(f"this machine cannot tell 5%: {'; '.join(t.text() for t in told)}")
    found = comparisons(RUNS, 9.0, 0.05)
    seen = sum(c.low > 1.0 for c in found)
    assert seen >= 0.95 * len(found), f"seen in {seen} of {len(found)}: {[c for c in found if not c.low > 1.0]}"
