"""The benchmark's ratios, measured quickly and interleaved with torch, with twice the margin: where the README promises 1.4x,
1.2x must show here. (What a call costs is in test_overhead.py, what import costs in test_import.py.)"""

from __future__ import annotations

import json
import shutil
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import kgen
from kgen import _libkgen, spread
from kgen.judge import Judge
from kgen.task import canonical_contract

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tests" / "bench"))

import crowd  # noqa: E402
import measure  # noqa: E402
import run as bench  # noqa: E402

ROWS = (ROOT / "kernels/softmax/rows.c").read_bytes()


def best_of(attempts: int, once: Callable[[], float], enough: float) -> float:
    """The best of some tries, until it is enough: a busy machine makes single ones worse than they are."""
    found = -float("inf")
    for _ in range(attempts):
        found = max(found, once())
        if found >= enough:
            break
    return found


def test_the_index_of_a_thousand_kernels(tmp_path: Path) -> None:
    """In CPU time of all threads, which a busy machine does not change."""
    registry = crowd.write(tmp_path / "crowd")

    def once() -> float:
        start = time.process_time()
        _libkgen.index_build(registry, tmp_path / "index")
        return -(time.process_time() - start)

    assert len(_libkgen.registry_list(registry)) == 1000
    assert -best_of(9, once, -0.2) <= 0.2


def test_softmax_in_the_worker_beats_torch() -> None:
    n = 4096
    x, out = torch.randn(n, n), torch.empty(n, n)
    judge, _ = bench._softmax_judge(n, n)

    def once() -> float:
        record = judge.run(ROWS, name="rows.c", reps=9)
        assert record["verdict"] == "pass", record["message"]
        with torch.inference_mode():
            theirs = measure.interleaved({"torch": lambda: torch.softmax(x, 1, out=out)}, 9)["torch"]
        return statistics.median(theirs) * 1e6 / record["cases"][0]["time_ns"]["median"]

    with judge:
        assert best_of(4, once, 1.2) >= 1.2


def test_softmax_as_served_is_no_slower_than_torch() -> None:
    x = torch.randn(4096, 4096)
    assert kgen.why("softmax", x, 1).fallbacks == 0

    def once() -> float:
        with torch.inference_mode():
            times = measure.interleaved(
                {"kgen": lambda: torch.ops.kgen.softmax(x, 1), "torch": lambda: torch.softmax(x, 1)}, 11
            )
        return measure.paired_ratio(times["torch"], times["kgen"])

    assert best_of(4, once, 1.05) >= 1.05


@pytest.mark.parametrize("name", list(measure.VARIANTS))
def test_attention_with_a_program_beats_eager(name: str) -> None:
    """Against eager alone, which needs no C++ compiler; make bench has the others."""
    case, x = measure.attention_case(*measure.VARIANTS[name]).case, measure.attention_inputs(*measure.VARIANTS[name])
    served = measure.served_attention(case, x)
    assert kgen.why(served).fallbacks == 0
    contenders, left = measure.torch_contenders(case, x, ("eager",))
    assert not left

    def once() -> float:
        with torch.inference_mode():
            times = measure.interleaved({**contenders, "kgen": served}, 7)
        return measure.paired_ratio(times["eager"], times["kgen"])

    assert best_of(3, once, 1.2) >= 1.2


@pytest.mark.skipif(shutil.which("c++") is None, reason="torch.compile's CPU code needs a C++ compiler (apt-get install g++)")
def test_attention_with_relative_position_beats_flex_attention() -> None:
    mods = measure.VARIANTS["relative position"]
    case, x = measure.attention_case(*mods).case, measure.attention_inputs(*mods)
    served = measure.served_attention(case, x)
    with torch.inference_mode():
        contenders, left = measure.torch_contenders(case, x, ("FlexAttention",))
    assert not left, left

    def once() -> float:
        with torch.inference_mode():
            times = measure.interleaved({**contenders, "kgen": served}, 11)
        return measure.paired_ratio(times["FlexAttention"], times["kgen"])

    assert best_of(3, once, 1.2) >= 1.2


def test_a_verdict_at_100_mb_takes_two_seconds() -> None:
    judge, source = bench._softmax_judge(3536, 3536)
    times = []

    def once() -> float:
        fresh = source + f"/* {time.time_ns()} */\n".encode()  # nothing of it is in the cache
        start = time.perf_counter()
        record = judge.run(fresh, name="rows.c", all_sets=False)
        times.append(time.perf_counter() - start)
        assert record["verdict"] == "pass" and "time_ns" not in record["cases"][0]
        return -times[-1]

    with judge:
        assert -best_of(5, once, -2.0) <= 2.0


def test_candidates_in_a_row_leave_nothing_behind() -> None:
    trial = spread.softmax_trial("float32", 64, 64)
    contract = canonical_contract("softmax").decode()
    with Judge(contract) as judge:
        spread.add(judge, json.loads(contract), trial)
        for _ in range(30):
            judge.run(ROWS, name="rows.c")
        fds, memory = bench._descriptors(), bench._resident_mb()
        for _ in range(150):
            assert judge.run(ROWS, name="rows.c")["verdict"] == "pass"
        assert bench._descriptors() == fds
        assert bench._resident_mb() - memory < 4
