"""Baselines that must be compiled: within their limits, in processes that end, remembered for what they were; and the lock
that who times holds."""

from __future__ import annotations

import datetime
import json
import os
import subprocess
import sys
import threading
import time
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import serving_registry as sr
import torch
from test_gate import at_gate, gone, promote, softmax_case

from kgen import baselines, devices, gate, gate_build, gate_child, known_baselines
from kgen.gate_build import Ahead, Patience


class Lost(Exception):
    """What a process's send raises."""


class FakeProcess:
    """Builds contender i in took[i] seconds, or fails as fails[i] says."""

    def __init__(self, took: dict[int, float], fails: dict[int, str] | None = None):
        self.took, self.fails = took, fails or {}
        self.closed = threading.Event()
        self.built: list[int] = []

    def send(self, message: dict[str, Any], seconds: float) -> dict[str, Any]:
        who = message["who"]
        if self.closed.wait(min(self.took[who], seconds)):
            raise Lost("its process was killed by signal 9")
        if self.took[who] > seconds:
            raise Lost(f"no answer within {seconds:.0f} s")
        if who in self.fails:
            return {"error": self.fails[who], "lost": self.fails[who].startswith("died")}
        self.built.append(who)
        return {}

    def close(self) -> None:
        self.closed.set()


def ahead(
    took: dict[int, float], patience: Patience, at_once: int = 2, fails: dict[int, str] | None = None
) -> tuple[Ahead[FakeProcess], list[FakeProcess], list[str]]:
    made: list[FakeProcess] = []
    said: list[str] = []

    def open_(cpus: int) -> FakeProcess:
        assert cpus >= 1
        made.append(FakeProcess(took, fails))
        return made[-1]

    return Ahead(open_, Lost, patience, at_once, said.append), made, said


NAMES = {1: "compile", 2: "autotune", 3: "graphs", 4: "flex"}


def test_builds_go_on_beside_each_other_and_a_group_in_one_process() -> None:
    a, made, said = ahead(dict.fromkeys(NAMES, 0.3), Patience(5.0, 20.0))
    started = time.monotonic()
    assert a.build([[1], [2, 3], [4]], NAMES) == dict.fromkeys(NAMES, "")
    took = time.monotonic() - started
    assert 0.6 <= took < 1.1, "two at once: 0.3 and 0.3 beside 0.6"
    assert sorted(p.built for p in made) == [[1], [2, 3], [4]] and not any(p.closed.is_set() for p in made)
    assert {who: p.built for who, p in a.kept.items()} == {1: [1], 2: [2, 3], 3: [2, 3], 4: [4]}, "each is where it was built"
    a.close()
    assert all(p.closed.is_set() for p in made) and not a.kept
    assert a.patience.spent == pytest.approx(took, abs=0.1)
    assert said[0] == "compiling 4 baselines within 20 s: compile, autotune, graphs, flex"
    assert said[-1].endswith("compiled (4 of 4)")


def test_one_that_outlasts_its_limit_costs_its_process_alone() -> None:
    a, made, _ = ahead({1: 0.1, 2: 60.0, 3: 0.1}, Patience(1.0, 20.0), 1)
    found = a.build([[1], [2, 3]], {w: NAMES[w] for w in (1, 2, 3)})
    assert found == {1: "", 2: "not measured: compile outlasted 1 s", 3: ""}
    assert len(made) == 3  # the third in a new process
    assert sorted(a.kept) == [1, 3] and [p.closed.is_set() for p in made] == [not p.built for p in made]


def test_all_together_have_a_limit() -> None:
    a, _, _ = ahead({1: 0.8, 2: 60.0, 3: 0.1}, Patience(30.0, 1.5), 1)
    started = time.monotonic()
    found = a.build([[1], [2], [3]], {w: NAMES[w] for w in (1, 2, 3)})
    assert time.monotonic() - started < 2.5
    assert found[1] == "" and found[2].startswith("not measured: compile outlasted what was left of 2 s for the baselines")
    assert found[3] == "not measured: the 2 s for compiling baselines of this Op were used up"
    assert a.patience.left == 0.0 and a.patience.limit == 0.0


@pytest.mark.beside
def test_what_fails_is_said_and_a_lost_process_is_replaced() -> None:
    fails = {1: "no C++ compiler", 2: "died: illegal address"}
    a, made, _ = ahead({1: 0.0, 2: 0.0, 3: 0.0}, Patience(5.0, 20.0), 1, fails)
    assert a.build([[1, 2, 3]], {w: NAMES[w] for w in (1, 2, 3)}) == {1: "no C++ compiler", 2: "died: illegal address", 3: ""}
    assert [p.built for p in made] == [[], [3]] and a.kept == {3: made[1]} and made[0].closed.is_set()


def test_interrupted_it_leaves_nothing_behind() -> None:
    a, made, _ = ahead({1: 60.0, 2: 60.0}, Patience(60.0, 60.0))

    def interrupt(*_: object) -> None:
        time.sleep(0.3)
        raise KeyboardInterrupt

    a._follow = interrupt  # type: ignore[method-assign]
    started = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        a.build([[1], [2]], {w: NAMES[w] for w in (1, 2)})
    assert time.monotonic() - started < 5.0 and len(made) == 2 and all(p.closed.is_set() for p in made)


# With real processes


@pytest.fixture
def slow_compiler(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A C++ compiler that does not end; the file names its processes."""
    pids, compiler = tmp_path / "pids", tmp_path / "c++"
    compiler.write_text(f"#!/bin/sh\necho $$ >> {pids}\nexec sleep 600\n")
    compiler.chmod(0o755)
    monkeypatch.setenv("CXX", str(compiler))
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "inductor"))
    return pids


@pytest.mark.slow
@pytest.mark.parametrize("where", ["ahead", "the gate's own process"])
def test_a_compile_without_end_costs_its_limit(
    where: str, slow_compiler: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fresh_home: Path
) -> None:
    monkeypatch.setattr(gate, "AHEAD", {"cpu"} if where == "ahead" else set())
    id_ = promote(tmp_path / "generated", sr.SOFTMAX)
    with at_gate(tmp_path / "generated", patience=Patience(12.0, 60.0)) as g:
        result = gate.run(g, id_, min_speedup=0.001, seconds=1.0)
    left = {b["name"]: b["left_out"] for b in result.baselines if "left_out" in b}
    assert left == {"torch.compile": "not measured: compile outlasted 12 s"}
    assert result.passed and result.baseline == "eager"
    started = [int(line) for line in slow_compiler.read_text().split()] if slow_compiler.exists() else []
    deadline = time.monotonic() + 5
    while not all(gone(pid) for pid in started):
        assert time.monotonic() < deadline, "a compiler outlived the build"
        time.sleep(0.05)
    # Remembered for as much time, and tried again with more.
    known = known_baselines.read(softmax_case(), devices.CPU)
    assert known.settled("torch.compile", 12.0)["left_out"] == "not measured: compile outlasted 12 s"
    assert known.settled("torch.compile", 13.0) is None and known.settled("eager", 12.0) is None


@pytest.mark.beside
def test_what_was_built_ahead_is_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fresh_home: Path) -> None:
    """In the process that built it: it is built once."""
    monkeypatch.setattr(gate, "AHEAD", {"cpu"})
    id_ = promote(tmp_path / "generated", sr.SOFTMAX)
    said: list[str] = []
    prepared: list[tuple[gate._Child, int]] = []
    send = gate._Child.send

    def counted(child: gate._Child, message: dict[str, Any], seconds: float) -> dict[str, Any]:
        if message.get("do") == "prepare":
            prepared.append((child, message["who"]))
        return send(child, message, seconds)

    monkeypatch.setattr(gate._Child, "send", counted)
    with at_gate(tmp_path / "generated", say=said.append) as g:
        result = gate.run(g, id_, min_speedup=0.001, seconds=1.0)
        assert 0 < g.patience.spent < gate_build.TOTAL
        names = [c["name"] for c in g.contenders]
        assert [names[who] for _, who in prepared].count("torch.compile") == 1
        assert prepared[-1][1] == 0 and prepared[-1][0] is g.child, "the Kernel comes last"
        base = next(c for c, who in prepared if names[who] == result.baseline)
        assert base is g.child, "and goes where the best baseline is"
        others = {c for c, _ in prepared} - {g.child}
        assert others and all(c.process.poll() is not None for c in others), "the other processes have ended"
    assert {b["name"] for b in result.baselines if b.get("median_ns", 0) > 0} == {"eager", "torch.compile"}, result.baselines
    assert "compiling 1 baseline within 300 s: torch.compile" in said and "torch.compile: compiled (1 of 1)" in said


# What is known of baselines


def rows(*made: tuple[str, float]) -> list[dict[str, Any]]:
    return [{"name": name, "median_ns": ns} for name, ns in made]


@pytest.mark.beside
def test_what_was_slow_is_not_built_again(fresh_home: Path) -> None:
    case = softmax_case()
    compiled = {"torch.compile", "autotune"}
    known_baselines.read(case, devices.CPU).add(
        [*rows(("eager", 300.0), ("torch.compile", 201.0), ("autotune", 100.0)), {"name": "flex", "left_out": "no mask"}], compiled, 60.0
    )
    found = known_baselines.read(case, devices.CPU)
    day = datetime.datetime.now(datetime.timezone.utc).date().isoformat()
    assert found.settled("torch.compile", 60.0) == {"name": "torch.compile", "median_ns": 201.0, "measured": day}
    assert all(found.settled(n, 60.0) is None for n in ("eager", "autotune", "flex", "new")), "cheap, best, failed, unknown"
    # The best does not work any more: then nothing is slow beside it.
    found.add([{"name": "autotune", "left_out": "it crashed"}], compiled, 60.0)
    assert known_baselines.read(case, devices.CPU).settled("torch.compile", 60.0) is None


@pytest.mark.beside
def test_what_is_known_is_of_one_case_one_machine_and_a_week(fresh_home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    case = softmax_case()
    known_baselines.read(case, devices.CPU).add(rows(("eager", 100.0), ("torch.compile", 900.0)), {"torch.compile"}, 60.0)

    def slow(of: dict[str, Any]) -> bool:
        return known_baselines.read(of, devices.CPU).settled("torch.compile", 60.0) is not None

    assert slow(case) and slow({**case, "count": 12})
    other = json.loads(json.dumps(case))
    other["args"]["input"]["shape"][0] += 1
    assert not slow(other)
    with monkeypatch.context() as m:
        m.setattr(torch, "__version__", "2.99.0")
        assert not slow(case)
    with monkeypatch.context() as m:
        later = known_baselines._today() + datetime.timedelta(days=known_baselines.DAYS)
        m.setattr(known_baselines, "_today", lambda: later)
        assert not slow(case)
    path = known_baselines.read(case, devices.CPU).path
    for text in ("", "[]", '{"format": 2, "rows": []}', path.read_text()[:-20], '{"format": 1, "rows": [3, {"name": "x"}]}'):
        path.write_text(text)
        assert not slow(case)


@pytest.mark.beside
@pytest.mark.slow
def test_a_slow_one_is_reported_as_it_was(tmp_path: Path, fresh_home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And is measured after all when it was not slow beside what works today."""
    id_ = promote(tmp_path / "generated", sr.SOFTMAX)

    def at(eager_ns: float, compiled_ns: float) -> dict[str, Any]:
        known_baselines.read(softmax_case(), devices.CPU).add(
            rows(("eager", eager_ns), ("torch.compile", compiled_ns)), {"torch.compile"}, gate_build.EACH
        )
        with at_gate(tmp_path / "generated") as g:
            result = gate.run(g, id_, min_speedup=0.001, seconds=1.0)
        assert result.passed and len(result.baselines) == 2
        return next(b for b in result.baselines if b["name"] == "torch.compile")

    assert at(1e9, 1e12) == {"name": "torch.compile", "median_ns": 1e12, "measured": known_baselines._today().isoformat()}
    now = at(1.0, 3.0)
    assert "measured" not in now and now["median_ns"] > 10.0


# Alone on a device


@pytest.fixture
def holder() -> Iterator[Callable[[float], int]]:
    """Starts another process that holds the CPU for some seconds; its id."""
    started: list[subprocess.Popen[str]] = []

    def hold(seconds: float) -> int:
        code = (
            "import sys, time; from kgen import devices\n"
            "with devices.alone(devices.CPU):\n    print('held', flush=True)\n    time.sleep(float(sys.argv[1]))"
        )
        p = subprocess.Popen([sys.executable, "-c", code, str(seconds)], stdout=subprocess.PIPE, text=True)
        started.append(p)
        assert p.stdout is not None and p.stdout.readline() == "held\n"
        return p.pid

    yield hold
    for p in started:
        p.kill()
        p.wait()


def test_who_times_waits_for_who_times(holder: Callable[[float], int]) -> None:
    pid, said = holder(1.5), []
    started = time.monotonic()
    with devices.alone(devices.CPU, said.append):
        with devices.alone(devices.CPU):  # nested
            pass
        assert time.monotonic() - started > 1.0
    assert len(said) == 1 and f"is held by process {pid} (" in said[0] and "waiting for another kgen that times on cpu" in said[0]
    assert not devices._held


@pytest.mark.beside
def test_a_holder_that_dies_lets_go(holder: Callable[[float], int]) -> None:
    pid = holder(60.0)
    threading.Timer(0.5, os.kill, (pid, 9)).start()
    started = time.monotonic()
    with devices.alone(devices.CPU, lambda _: None):
        assert time.monotonic() - started < 10.0


@pytest.mark.beside
def test_the_compiler_times_its_kernels_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """By torch's own hook where it has one, else around its one timer."""
    module = "torch._inductor.runtime.benchmarking"
    held: list[bool] = []
    hooks: list[Any] = []
    newer = types.SimpleNamespace(set_gpu_benchmark_lock_context=hooks.append)
    timer = types.SimpleNamespace(benchmark_gpu=lambda x, rep=1: held.append(-1 in devices._held) or x * rep)
    for fake in (newer, types.SimpleNamespace(benchmarker=timer)):
        monkeypatch.setitem(sys.modules, module, fake)
        import torch._inductor.runtime as runtime

        monkeypatch.setattr(runtime, "benchmarking", fake, raising=False)
        gate_child.time_kernels_alone(devices.CPU)
    with hooks[0]():
        assert -1 in devices._held
    assert timer.benchmark_gpu(3, rep=2) == 6 and held == [True] and not devices._held


# Which baselines there are


@pytest.mark.beside
def test_flex_stands_with_what_is_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    there: set[str] = {"flash_attn.cute"}
    monkeypatch.setattr(baselines.importlib.util, "find_spec", lambda name: object() if name in there else None)
    assert baselines.flex_backends(1024) == ["FLASH"] and baselines.flex_backends(64) == ["TRITON", "FLASH"]
    there.clear()
    assert baselines.flex_backends(1024) == []


@pytest.mark.beside
def test_groups_share_their_work() -> None:
    found = baselines.of({**softmax_case(), "device": "cuda"})
    assert [b.compiles for b in found] == ["", "compile", "autotune", "autotune"]
