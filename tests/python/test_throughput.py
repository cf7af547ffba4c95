"""The engine of the closed loop takes next to nothing for itself, and judges while questions are out. `tests/bench/loop.py` is
the measurement, here over a short window in which beginning and end weigh more than in a Run."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).resolve().parents[1] / "bench"))


@pytest.mark.slow
def test_the_engine_stands_back(tmp_path: Path) -> None:
    import loop

    found = loop.measure(30, 2.0, tmp_path)
    assert found.judged >= 4, found
    # Whatever else this machine does slows all parts alike; 1% is asked of a Run of 15 minutes.
    assert 0 < found.engine_share < 0.02, found
    # Questions stay out while Candidates are judged, so that nothing waits for answers but at the beginning.
    assert found.most_open >= 4 and found.asked > found.judged / 2, found
    assert found.wait < 2 * 2.0 + 2 and found.wait < found.judge, found
