"""Candidates of every kind in turn leave nothing behind. `tests/bench/mixed.py` is the measurement, of 1,000 in `make bench`."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).resolve().parents[1] / "bench"))

import mixed  # noqa: E402


def held(found: mixed.Mixed, n: int) -> None:
    assert found.wrong == []
    assert found.judged == n == sum(found.counts.values())
    assert found.descriptors == 0 and found.workers == 0, found
    assert found.memory_mb < 4.0, found


def test_mixed_candidates_leave_nothing() -> None:
    """Of 40, a tenth hang, fault or want too much memory."""
    bad = [mixed.nth(i) for i in range(9, 40, 10)]
    assert {mixed.verdict(b) for b in bad} == {"timeout", "crash", "out_of_resources"}
    assert {mixed.nth(i) for i in range(40)} == {*bad, *mixed.OTHERS}
    held(mixed.measure(40), 40)


@pytest.mark.slow
def test_every_bad_candidate_leaves_nothing() -> None:
    """A tenth hang, fault or want too much memory: each of these once."""
    n = 10 * len(mixed.BAD)
    assert {mixed.nth(i) for i in range(n)} == {*mixed.BAD, *mixed.OTHERS}
    bad = [mixed.nth(i) for i in range(9, n, 10)]
    assert bad == list(mixed.BAD)
    found = mixed.measure(n)
    held(found, n)
    for verdict in ("timeout", "crash", "illegal_access", "out_of_resources"):
        late = len(found.late) if verdict == "timeout" else 0
        assert found.counts[verdict] == late + sum(mixed.verdict(b) == verdict for b in mixed.BAD)


@pytest.mark.slow
def test_a_thousand_mixed_candidates_leave_nothing() -> None:
    held(mixed.measure(1000), 1000)
