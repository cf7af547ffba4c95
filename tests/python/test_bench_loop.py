"""`kgen bench-loop`: what counts as solved and how fast, held against journals made up; and a folder of real problems with a
scripted model, one of which is never solved and one of which is no problem at all."""

from __future__ import annotations

import importlib.util
import json
import math
import re
import signal
import time
from pathlib import Path
from typing import Any

import pytest
from kgen_command import Server
from llm_server import Body, Step, serve
from run_files import write_journal
from test_loop import ENV, block, llm, user_of

from kgen import bench_curves
from kgen.bench_curves import Problem, problem_of

HAS_PLOT = importlib.util.find_spec("matplotlib") is not None


def entry(n: int, kind: str, **fields: Any) -> dict[str, Any]:
    return {"format": 1, "n": n, "kind": kind, "t": 1000.0 + n, "op": "softmax", **fields}


def verdict(source: str, level: int, verdict_: str, ns: float, spent: float) -> dict[str, Any]:
    return {"kind": "verdict", "id": source, "source": source, "tunables": {}, "level": level, "verdict": verdict_, "message": "",
            "took_s": 0.1, "spent_s": spent, "time_ns": [ns]}  # fmt: skip


def a_run(path: Path, entries: list[dict[str, Any]]) -> Path:
    path.mkdir()
    made = [entry(i, **{"kind": e["kind"], **{k: v for k, v in e.items() if k != "kind"}}) for i, e in enumerate(entries)]
    write_journal(path / "journal.jsonl", made)
    return path


def answered(prompt: str, tokens: int) -> dict[str, Any]:
    return {"kind": "answer", "prompt": prompt, "name": prompt, "text": "", "charged": {"calls": 1, "tokens": tokens, "nano_usd": 0}}


def candidate(name: str) -> dict[str, Any]:
    return {"kind": "candidate", "prompt": name[:2], "name": name, "id": name, "parent": None, "text": "x"}


GATE = {"kind": "gate", "case": "c", "id": "x", "passed": True, "reason": "", "baseline": {"name": "compile", "median_ns": 150.0},
        "baselines": [{"name": "eager", "median_ns": 300.0}, {"name": "compile", "median_ns": 150.0},
                      {"name": "other", "left_out": "it failed"}],
        "kgen_ns": 100.0, "speedup": {"median": 1.5, "low": 1.4, "high": 1.6}, "rounds": 9, "noisy": False}  # fmt: skip


def test_a_solved_problem(tmp_path: Path) -> None:
    run = a_run(tmp_path / "run", [
        answered("p1", 1000), candidate("p1.1.c"), verdict("p1.1.c", 0, "wrong_values", 0, 30),
        answered("p2", 500), candidate("p2.1.c"), verdict("p2.1.c", 0, "pass", 190, 50), verdict("p2.1.c", 2, "pass", 200, 60),
        answered("p3", 500), candidate("p3.1.c"), verdict("p3.1.c", 0, "pass", 90, 110), verdict("p3.1.c", 2, "pass", 100, 120),
        answered("p4", 500), candidate("p4.1.c"), verdict("p4.1.c", 2, "pass", 140, 180), GATE,
    ])  # fmt: skip
    found = problem_of("one", run)
    assert found.state == "solved" and found.first_right == 2 and found.candidates == 4
    assert found.eager == pytest.approx(3.0) and found.best == pytest.approx(1.5) and found.baseline == "compile"
    assert [(s.minutes, s.calls, s.tokens) for s in found.steps] == [(1.0, 2, 1500), (2.0, 3, 2000)]
    # The winner's gain is the gate's, and what came before it in proportion to the judge's times.
    assert [s.speedup for s in found.steps] == pytest.approx([1.5, 3.0])
    assert (found.minutes, found.calls, found.tokens) == (3.0, 4, 2500)


def test_the_first_right_one_need_not_have_come_to_every_set(tmp_path: Path) -> None:
    run = a_run(tmp_path / "run", [
        answered("p1", 1), candidate("p1.1.c"), verdict("p1.1.c", 0, "pass", 300, 30), verdict("p1.1.c", 2, "nonfinite", 0, 40),
        answered("p2", 1), candidate("p2.1.c"), verdict("p2.1.c", 0, "pass", 190, 50),
        answered("p3", 1), candidate("p3.1.c"), verdict("p3.1.c", 0, "pass", 90, 110), verdict("p3.1.c", 2, "pass", 100, 120), GATE,
    ])  # fmt: skip
    assert problem_of("one", run).first_right == 2


@pytest.mark.parametrize(
    ("entries", "reason"),
    [
        ([answered("p1", 9), candidate("p1.1.c"), verdict("p1.1.c", 0, "timeout", 0, 3)], "1 timeout"),
        ([verdict("p1.1.c", 0, "pass", 50, 3), {**GATE, "rounds": 0, "reason": "it is wrong"}], "stopped at the gate: it is wrong"),
        # Right on the first inputs alone is not right.
        ([verdict("p1.1.c", 0, "pass", 50, 3), verdict("p1.1.c", 2, "wrong_values", 0, 4)], "1 pass, 1 wrong_values"),
        # What is refused by its plan never came before the judge.
        ([answered("p1", 9), {**candidate("p1.1.c"), "refused": "no such Op"}, candidate("p1.2.c"), {"kind": "dropped", "name": "p1.2.c"}],
         "2 plan_error"),
        ([], "no Candidate was judged"),
    ],
)
def test_what_is_not_solved(tmp_path: Path, entries: list[dict[str, Any]], reason: str) -> None:
    found = problem_of("one", a_run(tmp_path / "run", entries))
    assert found.state == "unsolved" and found.reason == reason and found.eager is None and not found.steps


def made(name: str, eager: float | None, steps: list[tuple[float, float]] | None = None) -> Problem:
    """steps: (minutes, speedup); a call a minute and 100 tokens a call."""
    all_ = [bench_curves.Step(m, int(m), int(100 * m), s) for m, s in steps or ()]
    return Problem(name, "solved" if eager else "unsolved", eager=eager, best=eager and eager / 2, minutes=10, calls=10, tokens=1000, steps=all_)


FOUR = [made("a", 2.0, [(1, 0.5), (3, 2.0)]), made("b", 0.5, [(5, 0.5)]), made("c", 1.0, [(2, 1.0)]), made("d", None)]


def test_fast_p_is_the_fraction_of_all_that_is_right_and_faster() -> None:
    assert [bench_curves.fast_p(FOUR, p) for p in (0.0, 0.5, 0.8, 1.0, 1.9, 2.0)] == [0.75, 0.5, 0.5, 0.25, 0.25, 0.0]
    assert bench_curves.fast_p(FOUR, 0.9, "best") == 0.25 and bench_curves.fast_p([], 1) == 0.0
    found = bench_curves.summary(FOUR)
    assert found["solved"] == 3 and found["problems"] == 4
    assert found["speedup"]["eager"] == pytest.approx(1.0) and found["fast_p"]["eager"]["1"] == 0.25


@pytest.mark.parametrize(("axis", "unit"), [("minutes", 1), ("calls", 1), ("tokens", 100)])
def test_curves(axis: str, unit: int) -> None:
    points = bench_curves.curve(FOUR, axis)
    assert [p[axis] for p in points] == [x * unit for x in (0, 1, 2, 3, 5, 10)]
    assert [p["solved"] for p in points] == [0, 0.25, 0.5, 0.5, 0.75, 0.75]
    assert [p["fast_1"] for p in points] == [0, 0, 0, 0.25, 0.25, 0.25]
    assert points[0]["speedup"] is None
    assert [p["speedup"] for p in points[1:]] == pytest.approx([0.5, math.sqrt(0.5), math.sqrt(2), 1.0, 1.0])


def test_marks() -> None:
    assert bench_curves.marks(15) == [0.5, 1, 2, 5, 10, 15]
    assert bench_curves.marks(40000) == [1000, 2000, 5000, 10000, 20000, 40000]
    assert bench_curves.marks(0) == [] and bench_curves.marks(1)[-1] == 1


@pytest.mark.skipif(not HAS_PLOT, reason="needs matplotlib")
def test_the_plot_has_its_lines(tmp_path: Path) -> None:
    from matplotlib import image

    bench_curves.plot(FOUR, tmp_path / "p.png")
    pixels = image.imread(tmp_path / "p.png")
    assert pixels.shape[0] > 400 and pixels.shape[1] > 900
    for colour in ("2563eb", "d97706", "059669"):
        want = [int(colour[i : i + 2], 16) / 255 for i in (0, 2, 4)]
        assert (abs(pixels[:, :, :3] - want).max(axis=2) < 0.02).sum() > 50, colour


# ---- real problems ----

PROBLEM = """
import torch
from torch import nn

class Model(nn.Module):
    def forward(self, x):
        return {forward}

def get_init_inputs():
    return []

def get_inputs():
    return [torch.randn(64, 500)]
"""


def writer(body: Body) -> Step:
    """Right for relu, wrong for the rest; wrong at first everywhere."""
    user = user_of(body)
    op = re.search(r'"op":"(\w+)"', user)
    x = re.search(r'"schema":"\w+\(Tensor (\w+)', user)
    assert op and x
    good = "aten.relu" in user and "wrong_values" in user
    value = "v > 0 ? v * 3 : 0" if good else "v + 1"
    return Step(text=block(f"""/* kgen
{{ "format": 1, "op": "{op[1]}", "target": "cpu",
  "launches": [{{"kernel": "k", "range": "{x[1]}.numel", "grain": 4096, "args": ["{x[1]}", "output"]}}] }}
*/
#include <stdint.h>
/* {len(user)} {hash(user)} */
void k(int64_t begin, int64_t end, const KG_T_{x[1]} *x, KG_T_output *y) {{
    for (int64_t i = begin; i < end; i++) {{
        const float v = x[i];
        y[i] = {value};
    }}
}}
"""))


@pytest.mark.slow
def test_a_folder_of_problems(kgen_server: Server, tmp_path: Path) -> None:
    folder, out = tmp_path / "level1", tmp_path / "out"
    (folder / "more").mkdir(parents=True)
    (folder / "1_relu.py").write_text(PROBLEM.format(forward="torch.relu(x) * 3"))
    (folder / "2_broken.py").write_text("def nothing(): pass\n")
    (folder / "more" / "3_exp.py").write_text(PROBLEM.format(forward="torch.exp(-x * x)"))
    (folder / "_helper.py").write_text("raise SystemExit\n")
    task = kgen_server.run("capture", folder / "1_relu.py", "--target", "model*", "-o", folder / "4_task", env=ENV)
    assert task.code == 0, task.err
    with serve(writer) as server:
        words = ("bench-loop", folder, "--run", out, *llm(server, "--in-flight", 1, "--budget", "60s,3calls"))
        running = kgen_server.start(*words, env=ENV)
        end = time.monotonic() + 120
        while not (out / "1_relu" / "result.json").exists():
            assert time.monotonic() < end
            time.sleep(0.1)
        running.interrupt(signal.SIGINT)
        stopped = running.wait()
        assert stopped.code == 130 and f"--run {out}" in stopped.message, stopped.err
        asked = len(server.seen)
        done = kgen_server.run(*words, "--json", env=ENV)
        assert done.code == 0, done.err
        (result,) = done.records()
        assert result == json.loads((out / "bench.json").read_text())
        more = len(server.seen)
        again = kgen_server.run(*words, env=ENV)  # all is done: nothing is asked
        assert again.code == 0 and len(server.seen) == more > asked, again.err
    found = {p["name"]: p for p in result["problems"]}
    assert list(found) == ["1_relu", "2_broken", "4_task", "more-3_exp"]
    assert {n: p["state"] for n, p in found.items()} == {
        "1_relu": "solved", "2_broken": "error", "4_task": "solved", "more-3_exp": "unsolved",
    }, found["4_task"]["reason"]  # fmt: skip
    for name in ("1_relu", "4_task"):
        one = found[name]
        assert one["first_right"] == 2 and one["calls"] <= 3 and one["eager"] > 0 and one["steps"][0]["calls"] == 2, one
    assert "Model" in found["2_broken"]["reason"] and "wrong_values" in found["more-3_exp"]["reason"]
    assert result["summary"]["fast_p"]["eager"]["0"] == 0.5
    assert "2 of 4 solved" in again.out and "fast_p" in again.out and "more-3_exp" in again.out
    assert (out / "bench.png").exists() == HAS_PLOT
    other = kgen_server.run(*words[:-1], "5s,9calls", env=ENV)
    assert other.code == 2 and "was begun with budget 60s,3calls, not 5s,9calls" in other.message, other.err


@pytest.mark.slow
def test_a_proposer_that_cannot_be_asked_ends_all(kgen_server: Server, tmp_path: Path) -> None:
    folder = tmp_path / "problems"
    folder.mkdir()
    for name in ("a", "b"):
        (folder / f"{name}.py").write_text(PROBLEM.format(forward="torch.relu(x) * 3"))
    with serve(Step("error", status=401)) as server:
        done = kgen_server.run("bench-loop", folder, "--run", tmp_path / "out", *llm(server, "--in-flight", 1), env=ENV)
        assert done.code == 2 and "refused the key (HTTP 401)" in done.message and len(server.seen) == 1, done.err


def test_folders_that_will_not_do(kgen_server: Server, tmp_path: Path) -> None:
    done = kgen_server.run("bench-loop", tmp_path / "nowhere")
    assert done.code == 2 and "no such folder" in done.message
    done = kgen_server.run("bench-loop", tmp_path)
    assert done.code == 2 and "neither KernelBench-style files" in done.message
    (tmp_path / "a.py").write_text(PROBLEM.format(forward="x"))
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "letter.txt").write_text("hello")
    done = kgen_server.run("bench-loop", tmp_path, "--run", tmp_path / "full")
    assert done.code == 2 and "is not empty and no benchmark" in done.message
    done = kgen_server.run("bench-loop", tmp_path, "--budget", "0m")
    assert done.code == 2 and "above zero" in done.message
