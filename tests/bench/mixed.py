"""What a long search does to the process that judges: Candidates of every kind in turn, a tenth of which hang, fault or want more
memory than there is for them. Each must get its verdict, and afterwards nothing of them may be left: no memory, no descriptor,
no worker.

    python tests/bench/mixed.py [N]
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "python"))
CANDIDATES = ROOT / "tests" / "judge" / "candidates"

# What a call may take, and what one may have of outputs and workspace.
LIMIT_MS, MEMORY = 1000, 256 << 20
SHAPE = (64, 100)
# Before growth counts: what is kept for good has been taken then.
WARM = 50
# By the name of a file, which begins with its verdict; "pass 64 MiB" is pass_plain with a workspace.
BAD = (
    "timeout_spin", "crash_trap", "out_of_resources_workspace", "timeout_spin", "illegal_access_wild",
    "out_of_resources 512 MiB", "timeout_spin", "crash_division", "out_of_resources_stack", "illegal_access_null",
)  # fmt: skip
OTHERS = (
    "pass_plain", "wrong_values_zeros", "pass 64 MiB", "not_all_written_tail", "compile_error_type", "pass_plain",
    "out_of_bounds_next", "input_modified_zeroed", "pass_immediate", "policy_clock", "nonfinite_no_max", "wrong_values_last_row",
    "plan_error_range", "pass_no_newline_tricks", "policy_counter", "nondeterministic_workspace",
)  # fmt: skip
VERDICTS = (
    "pass", "compile_error", "plan_error", "out_of_resources", "timeout", "crash", "illegal_access", "nonfinite", "wrong_values",
    "not_all_written", "input_modified", "out_of_bounds", "nondeterministic", "policy",
)  # fmt: skip


@dataclass
class Mixed:
    """counts: verdicts. wrong: those that are not the ones that they must be; late: those that did not end in time and should
    have, as on a machine that is busy otherwise. Growth is over all but the first WARM. overtime: the most that a Candidate which
    hangs took beyond its limit, compile included, in s."""

    judged: int = 0
    seconds: float = 0.0
    counts: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)
    late: list[str] = field(default_factory=list)
    memory_mb: float = 0.0
    descriptors: int = 0
    workers: int = 0
    overtime: float = 0.0


def resident_mb() -> float:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


def workers() -> int:
    """Workers that this process has, zombies too."""
    found = 0
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            name, _, rest = stat.read_text().rpartition(")")
        except OSError:  # it has ended meanwhile
            continue
        found += int(rest.split()[1]) == os.getpid() and "kgen-worker" in name
    return found


def source(name: str) -> str:
    file, _, room = name.partition(" ")
    if not room:
        return (CANDIDATES / f"{file}.c").read_text()
    workspace = {"scratch": {"dtype": "uint8", "shape": [int(room.split()[0]) << 20]}}
    plain = (CANDIDATES / "pass_plain.c").read_text()
    assert plain.count('"launches"') == 1
    return plain.replace('"launches"', f'"workspace": {json.dumps(workspace)}, "launches"')


def verdict(name: str) -> str:
    return next(v for v in VERDICTS if name.startswith(v))


def nth(i: int) -> str:
    """Which Candidate is the i-th: the tenth of each ten is a bad one."""
    return BAD[i // 10 % len(BAD)] if i % 10 == 9 else OTHERS[(i - i // 10) % len(OTHERS)]


def measure(n: int) -> Mixed:
    """Judges n Candidates on a small softmax; every other one is new to the cache."""
    import torch

    from kgen import spread
    from kgen.judge import Judge
    from kgen.task import canonical_contract

    found, before, sources = Mixed(), (0.0, 0), {name: source(name) for name in {*BAD, *OTHERS}}
    torch.manual_seed(0)
    x = [torch.randn(SHAPE), 1000 + torch.randn(SHAPE)]  # the second is what a kernel without the maximum does not survive
    start = time.perf_counter()
    with Judge(canonical_contract("softmax").decode(), timeout_ms=LIMIT_MS, memory=MEMORY) as judge:
        case = judge.add_case(spread.softmax_trial("float32", *SHAPE).case)
        for t in x:
            judge.add_set(case, [t], [torch.softmax(t.double(), 1)], results=[torch.softmax(t, 1)], name="bench")
        for i in range(n):
            name = nth(i)
            text = sources[name] + (f"/* {os.getpid()} {i} */\n" if i % 2 else "")
            began = time.perf_counter()
            record = judge.run(text, name=f"{name.split()[0]}.c")
            if name == "timeout_spin":
                found.overtime = max(found.overtime, time.perf_counter() - began - LIMIT_MS / 1000)
            found.counts[record["verdict"]] += 1
            if record["verdict"] != verdict(name):
                (found.late if record["verdict"] == "timeout" else found.wrong).append(f"{i} {name}: {record['verdict']}: {record['message']}")
            if i + 1 == min(WARM, n // 2):
                before = resident_mb(), descriptors()
        found.memory_mb, found.descriptors = resident_mb() - before[0], descriptors() - before[1]
    found.judged, found.seconds, found.workers = n, time.perf_counter() - start, workers()
    return found


if __name__ == "__main__":
    one = measure(int(sys.argv[1]) if len(sys.argv) > 1 else 1000)
    print(f"{one.judged} Candidates in {one.seconds:.0f} s, {one.judged / one.seconds:.2f} a second: {dict(one.counts)}")
    print(f"grown: {one.memory_mb:.1f} MB, {one.descriptors} descriptors; {one.workers} workers left; {one.overtime:.2f} s overtime")
    print("\n".join(one.wrong + one.late) or "each has its verdict")
