"""A Run from the model to promotion, through every way to stop it and go on; Tasks of all kinds of models, judged."""

from __future__ import annotations

import functools
import importlib
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import textwrap
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from kgen_command import Done, Running, Server
from run_files import check_keys, write_journal
from torch import nn

from kgen import runs, ui
from kgen.errors import BadInput

tune = importlib.import_module("kgen.tune")  # kgen.tune is the function

ROOT = Path(__file__).resolve().parent.parent.parent
MODELS = ROOT / "tests" / "models"

# Large enough that a search takes a while, small enough to be judged quickly; it says when it runs.
MODEL = """
import sys
import time
import torch
from torch import nn

class Model(nn.Module):
    def __init__(self, rest):
        super().__init__()
        self.norm = nn.GroupNorm(1, 500)
        self.rest = rest

    def forward(self, x):
        print("the model runs", file=sys.stderr, flush=True)
        time.sleep(self.rest)
        return torch.softmax(self.norm(x), dim=-1)

def get_init_inputs():
    return [0.05]

def get_inputs():
    return [torch.randn(300, 500)]
"""


@pytest.fixture
def model(tmp_path: Path) -> Path:
    path = tmp_path / "model.py"
    path.write_text(MODEL)
    return path


def journal(run: Path) -> list[dict[str, Any]]:
    """Its entries; asserts that none is missing."""
    entries = [json.loads(line) for line in (run / "journal.jsonl").read_text().splitlines()]
    assert [e["n"] for e in entries] == list(range(len(entries)))
    return entries


def never_twice(run: Path) -> Counter[str]:
    """How many entries of each kind there are; nothing was judged, gated, promoted or surveyed twice."""
    entries = journal(run)
    judged = Counter((e["op"], e["id"], e["level"]) for e in entries if e["kind"] == "verdict")
    decided = Counter((e["op"], e["case"], e["id"], e["kind"]) for e in entries if e["kind"] in ("gate", "promote"))
    assert max(judged.values(), default=1) == 1 and max(decided.values(), default=1) == 1
    kinds = Counter(e["kind"] for e in entries if e["kind"] != "rung")  # each life of a Run says where it is
    assert kinds["survey"] == 1
    return kinds


def interrupted(server: Server, running: Running) -> list[str]:
    """Ends a command as Ctrl-C does: nothing stays behind, and the words of the command that goes on."""
    start = time.monotonic()
    running.interrupt()
    done = running.wait()
    assert time.monotonic() - start < 15, "it took too long to stop"
    assert done.code == 130 and "Traceback" not in done.err, (done.code, done.err)
    assert done.message.startswith("kgen: interrupted; go on with: kgen tune "), done.err
    assert server.left_over() == []
    return shlex.split(done.message.partition("go on with: kgen ")[2])


@pytest.mark.slow
def test_a_run_that_is_stopped_everywhere_goes_on(kgen_server: Server, model: Path, tmp_path: Path) -> None:
    run, registry = tmp_path / "a run", tmp_path / "registry"
    words = ["tune", model, "--run", run, "--registry", registry, "--budget", "20s", "--min-speedup", "0.01"]

    # While the model runs.
    running = kgen_server.start(*words)
    running.wait_for("the model runs")
    onward = interrupted(kgen_server, running)
    assert onward == [str(w) for w in words if w != "--run" and w != run] + ["--run", str(run), "--resume"]
    assert not (run / "journal.jsonl").exists() and not registry.exists()

    # While it searches, with what it compiles and the worker.
    running = kgen_server.start(*onward)
    running.wait_for("search, quick 0/")
    wait_for_verdicts(run, 2)
    assert interrupted(kgen_server, running) == onward
    first = never_twice(run)["verdict"]
    assert first >= 2

    # kill -9, in the search again.
    running = kgen_server.start(*onward)
    running.wait_for("captured before")
    wait_for_verdicts(run, first + 2)
    running.interrupt(signal.SIGKILL)
    assert running.wait().code == -signal.SIGKILL
    assert kgen_server.left_over() == []
    second = len([line for line in (run / "journal.jsonl").read_bytes().split(b"\n")[:-1] if b'"verdict"' in line])
    assert second >= first + 2

    # In the gate, while a baseline is compiled.
    running = kgen_server.start(*onward)
    running.wait_for("baseline torch.compile", 200)
    assert interrupted(kgen_server, running) == onward
    third = never_twice(run)
    assert third["verdict"] > second and third["gate"] == 0 and not registry.exists()

    # To the end.
    done = kgen_server.run(*onward, "--json")
    assert done.code == 0, done.err
    kinds = never_twice(run)
    assert kinds["verdict"] == third["verdict"] and kinds["gate"] == kinds["promote"] == 1
    row = next(r for r in done.records()[0]["rows"] if r["op"] == "softmax")
    assert row["state"] == "promoted" and row["kernel"] == "softmax/v1" and row["case"] == "f32 M300 N500"
    assert row["speedup"]["low"] <= row["speedup"]["median"] <= row["speedup"]["high"]
    assert 0 < row["floor_share"] <= 1 and row["verdicts"]["pass"] >= 3
    assert json.loads((run / "result.json").read_text()) == {**done.records()[0], "seconds": pytest.approx(0, abs=300)}

    # Once more: nothing is left to do, and another threshold decides on the same evidence.
    again = kgen_server.run(*onward, "--json")
    assert again.code == 0 and never_twice(run) == kinds
    assert next(r for r in again.records()[0]["rows"] if r["op"] == "softmax") == row
    strict = kgen_server.run(*onward, "--min-speedup", "1000", "--json")
    kept = next(r for r in strict.records()[0]["rows"] if r["op"] == "softmax")
    assert kept["state"] == "kept" and kept["reason"].startswith("not surely 1000.00x as fast as")

    # What was promoted serves.
    env = {"KGEN_REGISTRY": str(registry)}
    served = kgen_server.run("why", "softmax", "float32[300,500]", "dim=-1", env=env)
    assert served.code == 0 and "softmax/v1 (exact" in served.out, served.out + served.err
    listed = kgen_server.run("list", "--registry", registry, "--json")
    assert [(k["op"], k["version"], k["pins"]) for k in listed.records()] == [("softmax", 1, 1)]


def wait_for_verdicts(run: Path, n: int) -> None:
    end = time.monotonic() + 60
    while (run / "journal.jsonl").read_text().count('"kind":"verdict"') < n:
        assert time.monotonic() < end
        time.sleep(0.01)


def test_one_run_one_model_one_tuner(kgen_server: Server, model: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    running = kgen_server.start("tune", model, "--run", run, "--no-promote", "--target", "softmax")
    running.wait_for("the model runs")

    def refused(*words: object) -> str:
        done = kgen_server.run("tune", *words, "--run", run)
        assert done.code == 2 and "Traceback" not in done.err, done.err
        return done.message

    said = refused(model, "--no-promote", "--target", "softmax", "--resume")
    assert f"{run} is in use by another kgen process (process {running.pid}): wait for it" in said
    interrupted(kgen_server, running)
    assert f"{run} is a Run already: give --resume to go on with it" in refused(model)
    other = tmp_path / "other.py"
    other.write_text(MODEL)
    assert f"{run} is a Run of model.py, not of other.py" in refused(other, "--resume")
    assert "was begun with --target softmax, not none: resume it with the same" in refused(model, "--resume")
    assert "was begun with mode none, not train" in refused(model, "--resume", "--target", "softmax", "--train")
    model.write_text(MODEL + "\n# another text\n")
    assert "was begun with another text of model.py" in refused(model, "--resume", "--target", "softmax")
    asked = json.loads((run / "run.json").read_text())
    assert asked["patterns"] == ["softmax"] and set(asked) == runs.KEYS - runs.OF_ASKING


def test_a_torn_journal_goes_on_and_a_wrong_one_is_named(kgen_server: Server, model: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    words = ("tune", model, "--run", run, "--no-promote", "--budget", "10s", "--min-speedup", "1000")
    running = kgen_server.start(*words)
    running.wait_for("search, quick 0/")
    wait_for_verdicts(run, 3)
    interrupted(kgen_server, running)
    text = (run / "journal.jsonl").read_text()
    (run / "journal.jsonl").write_text(text[:-20])  # the last line is torn, as a power cut leaves it
    running = kgen_server.start(*words, "--resume")
    running.wait_for("search, quick 0/")
    wait_for_verdicts(run, 3)
    interrupted(kgen_server, running)
    lines = (run / "journal.jsonl").read_text().splitlines(keepends=True)
    (run / "journal.jsonl").write_text("".join(lines[:2] + lines[3:]))
    done = kgen_server.run(*words, "--resume")
    assert done.code == 2 and "journal.jsonl line 3: entry has n = 3 where 2 must follow" in done.message, done.err


def test_ctrl_c_before_there_is_anything(kgen_server: Server, tmp_path: Path) -> None:
    path = tmp_path / "slow.py"
    path.write_text("import sys, time\nprint('imported', file=sys.stderr, flush=True)\ntime.sleep(60)\n")
    running = kgen_server.start("tune", path, "--run", tmp_path / "run")
    running.wait_for("imported")
    running.interrupt()
    done = running.wait()
    assert done.code == 130 and done.message == "kgen: interrupted" and not (tmp_path / "run").exists()


def test_ctrl_c_in_an_exec_is_caught_like_any_other(tmp_path: Path) -> None:
    """CPython notes an interrupt within exec(text), where torch makes its dataclasses, and `python -m` would end by the
    signal in spite of the handler. As a shell starts it, since the server of commands is no `python -m`."""
    path = tmp_path / "model.py"
    path.write_text("exec('import os, signal, time; os.kill(os.getpid(), signal.SIGINT); time.sleep(60)')\n")
    argv = [sys.executable, "-m", "kgen", "capture", str(path), "-o", str(tmp_path / "task")]
    # What runs the tests may ignore interrupts, as a shell's background does.
    default = functools.partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
    done = subprocess.run(argv, capture_output=True, text=True, check=False, preexec_fn=default)
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "kgen: interrupted\n")
    assert [p.name for p in tmp_path.iterdir() if p.name != "__pycache__"] == ["model.py"]


def test_ctrl_c_in_capture_and_judge(kgen_server: Server, model: Path, tmp_path: Path) -> None:
    task = tmp_path / "task"

    def stopped(number: int, text: str, *words: object) -> None:
        running = kgen_server.start(*words)
        running.wait_for(text)
        start = time.monotonic()
        running.interrupt(number)
        done = running.wait()
        assert (done.code, done.message, done.out) == (130, "kgen: interrupted", ""), done.err
        assert time.monotonic() - start < 15 and kgen_server.left_over() == []

    stopped(signal.SIGINT, "the model runs", "capture", model, "-o", task)
    assert [p.name for p in tmp_path.iterdir() if p.name != "__pycache__"] == ["model.py"]
    assert kgen_server.run("capture", model, "-o", task).code == 0
    before = {p: p.read_bytes() for p in task.rglob("*") if p.is_file()}
    hangs = ROOT / "tests/judge/candidates/timeout_spin.c"
    for number in (signal.SIGINT, signal.SIGTERM):
        stopped(number, f"judging {hangs.name}", "judge", task, hangs, "--no-timing")
    assert {p: p.read_bytes() for p in task.rglob("*") if p.is_file()} == before


# From Python


class Small(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.softmax(x * 2, dim=-1)


def test_a_live_module(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """kgen.tune, then the Kernel serves this process. A Run is resumed with the same Cases alone."""
    import kgen

    registry, run = tmp_path / "registry", tmp_path / "run"
    x = torch.randn(40, 700)
    report = kgen.tune(Small(), (x,), budget=1.0, registry=registry, run_dir=run, min_speedup=0.01)
    assert [r.kernel for r in report.promoted] == ["softmax/v1"] and report.registry == registry
    assert capfd.readouterr().out == ""
    check_keys(run)
    kgen.load(registry)
    try:
        served = kgen.why("softmax", x, -1).decisions[0]
        assert (served.kind, served.registry) == ("exact", str(registry))
        torch.testing.assert_close(torch.ops.kgen.softmax(x, -1), torch.softmax(x, -1), rtol=1e-6, atol=1e-7)
    finally:
        kgen.unload(registry)
    again = kgen.tune(Small(), (x,), budget="1s", registry=registry, run_dir=run, min_speedup=0.01, resume=True)
    assert [r.kernel for r in again.promoted] == ["softmax/v1"] and never_twice(run)["gate"] == 1
    with pytest.raises(BadInput, match="this Task is not what the model and its inputs give now"):
        kgen.tune(Small(), (x[:30],), run_dir=run, registry=registry, resume=True)
    with pytest.raises(BadInput, match="--target nothing matches nothing"):
        kgen.tune(Small(), (x,), run_dir=tmp_path / "other", targets=("nothing",))
    assert not (tmp_path / "other").exists()


def test_a_gate_that_could_not_tell_is_asked_again(tmp_path: Path) -> None:
    """It says so: the machine is too noisy, --resume on a quiet one."""
    import kgen

    run, x = tmp_path / "run", torch.randn(40, 700)
    kgen.tune(Small(), (x,), budget=1.0, registry=tmp_path / "first", run_dir=run, min_speedup=0.01)
    noisy = {"passed": False, "noisy": True, "reason": "not surely 0.01x as fast as eager; the machine is too noisy to tell: --resume on a quiet one"}
    kept = [{**e, **noisy} if e["kind"] == "gate" else e for e in journal(run) if e["kind"] != "promote"]
    write_journal(run / "journal.jsonl", [{**{k: v for k, v in e.items() if k != "sum"}, "n": n} for n, e in enumerate(kept)])
    report = kgen.tune(Small(), (x,), budget=1.0, registry=tmp_path / "second", run_dir=run, min_speedup=0.01, resume=True)
    assert [r.kernel for r in report.promoted] == ["softmax/v1"]
    asked = [e for e in journal(run) if e["kind"] == "gate"]
    # A search that the second of the budget did not end may have found another winner since.
    assert len(asked) == 2 and asked[0]["noisy"] and asked[1]["passed"] and not asked[1]["noisy"]
    assert runs.gates(journal(run)) == (asked[1:] if asked[0]["id"] == asked[1]["id"] else asked)


# Tasks of all kinds of models, and Ops of a model's own


def capture(server: Server, folder: Path, *words: object, cwd: Path | None = None) -> dict[str, Any]:
    done = server.run("capture", *words[: words.index("--") if "--" in words else None], "-o", folder, "--json",
                      *(words[words.index("--") :] if "--" in words else ()), cwd=cwd)  # fmt: skip
    assert done.code == 0 and done.err == "", done.err
    return done.records()[0]


def test_every_way_to_name_a_model(kgen_server: Server, tmp_path: Path) -> None:
    bench = capture(kgen_server, tmp_path / "1", MODELS / "kernelbench.py", "--target", "softmax")
    assert (bench["op"], bench["cases"]) == ("softmax", 1)
    script = (MODELS / "script.py", "--module", "build", "--inputs", "batch", "--target", "Sequential", "--", "24")
    made = capture(kgen_server, tmp_path / "2", *script)
    assert made["op"].startswith("sequential_")
    case = json.loads((tmp_path / "2" / "cases" / "0.json").read_text())
    assert case["args"]["input"]["shape"] == [3, 24]  # the argument after -- reached the script
    (tmp_path / "package").mkdir()
    (tmp_path / "package" / "__init__.py").touch()
    (tmp_path / "package" / "nets.py").write_text(textwrap.dedent("""
        import torch
        def halve(x):
            return torch.softmax(x / 2, 0)
        def get_inputs():
            return (torch.randn(6, 4),)
    """))
    dotted = capture(kgen_server, tmp_path / "3", "package.nets:halve", cwd=tmp_path)
    assert dotted["op"] == "softmax"
    assert json.loads((tmp_path / "3" / "cases" / "0.json").read_text())["args"]["dim"] == 0


NORM = """
import torch
from torch import nn

class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm = nn.GroupNorm(1, 64)

    def forward(self, x):
        return torch.relu(self.norm(x))

def get_inputs():
    return [torch.randn(33, 64)]
"""

LAYER_NORM = """/* kgen
{"format": 1, "op": "OP", "target": "cpu",
 "launches": [{"kernel": "rows", "range": "input_0",
   "args": ["input", "weight", "bias", "output", {"i64": "input_1"}]}]}
*/
#include <math.h>
#include <stdint.h>
void rows(int64_t begin, int64_t end, const KG_T_input *input, const KG_T_weight *weight, const KG_T_bias *bias,
          KG_T_output *output, int64_t n) {
    for (int64_t m = begin; m < end; m++) {
        const float *x = input + m * n;
        double mean = 0, spread = 0;
        for (int64_t i = 0; i < n; i++)
            mean += x[i];
        mean /= (double)n;
        for (int64_t i = 0; i < n; i++)
            spread += (x[i] - mean) * (x[i] - mean);
        double scale = 1 / sqrt(spread / (double)n + 1e-5);
        for (int64_t i = 0; i < n; i++)
            output[m * n + i] = (float)((x[i] - mean) * scale * weight[i] + bias[i]);
    }
}
"""


def test_an_op_of_the_models_own_is_judged(kgen_server: Server, tmp_path: Path) -> None:
    """No template is for it, and any kernel can be held against it: the right one passes, and ones that forget a term
    which an untrained norm does not show (weight 1, bias 0) do not."""
    path = tmp_path / "norm.py"
    path.write_text(NORM)
    task = tmp_path / "task"
    made = capture(kgen_server, task, path, "--target", "norm")
    assert made["op"].startswith("group_norm_")
    files = {"right": LAYER_NORM, "no_weight": LAYER_NORM.replace("* weight[i]", ""),
             "no_bias": LAYER_NORM.replace(" + bias[i]", ""), "no_eps": LAYER_NORM.replace(" + 1e-5", "")}  # fmt: skip
    for name, text in files.items():
        (tmp_path / f"{name}.c").write_text(text.replace("OP", made["op"]))
    done = kgen_server.run("judge", task, *(tmp_path / f"{name}.c" for name in files), "--json", "--no-timing")
    assert done.code == 1, done.err
    verdicts = {r["source"].removesuffix(".c"): r["verdict"] for r in done.records()}
    assert verdicts["right"] == "pass", done.records()[0]["message"]
    assert verdicts["no_weight"] == verdicts["no_bias"] == verdicts["no_eps"] == "wrong_values", verdicts
    done = kgen_server.run("judge", task, tmp_path / "right.c")
    assert done.code == 0 and done.out.startswith(f"{tmp_path / 'right.c'}: pass\n  case ")


def test_an_op_without_a_template_is_left_alone_with_its_share(kgen_server: Server, tmp_path: Path) -> None:
    path = tmp_path / "mlp.py"
    path.write_text(NORM.replace("nn.GroupNorm(1, 64)", "nn.Conv1d(33, 2048, 1)"))
    done = kgen_server.run("tune", path, "--run", tmp_path / "run", "--json")
    assert done.code == 0, done.err
    rows = {r["op"]: r for r in done.records()[0]["rows"]}
    assert set(rows) == {"model", "conv1d"} and all(r["state"] == "left" for r in rows.values())
    assert rows["conv1d"]["reason"].startswith("no template") and "kgen judge" in rows["conv1d"]["reason"]
    assert 0 < rows["conv1d"]["share"] <= 1 and 0 < rows["conv1d"]["floor_share"] <= 1
    kinds = Counter(e["kind"] for e in journal(tmp_path / "run"))
    assert kinds == {"survey": 1}  # it cost no budget
    done = kgen_server.run("tune", path, "--run", tmp_path / "run", "--resume")
    assert done.code == 0 and "left alone: no template" in done.out and "nothing was tried" in done.out
    assert max(map(len, done.out.splitlines())) <= ui.LOG_WIDTH


# What people read


def test_budget() -> None:
    assert [tune.parse_budget(t) for t in ("90s", "15m", "1.5h")] == [90, 900, 5400]
    for text in ("5x", "", "0s", "-1s", "1e3s", "5", "5 m", "infs"):
        with pytest.raises(BadInput, match="give a time such as"):
            tune.parse_budget(text)


def test_short_case() -> None:
    key = {"dtypes": ["float32"] * 3, "dims": {"B": 1, "HQ": 8, "SQ": 1024, "D": 64, "HKV": 8, "SK": 1024, "DV": 64},
           "attrs": {}, "program": "7ec63ec4" * 4, "precision": "native"}  # fmt: skip
    assert tune.short_case(key) == "f32 H8 S1024 D64 Program 7ec6"
    key["dims"].update({"HKV": 2, "SK": 77, "DV": 32, "B": 3})
    assert tune.short_case({**key, "program": None}) == "f32 B3 HQ8 HKV2 SQ1024 SK77 D64 DV32"
    softmax = {"dtypes": ["bfloat16"], "dims": {"M": 4096, "N": 1, "K": 1}, "attrs": {}, "program": None}
    assert tune.short_case(softmax) == "bf16 M4096"


def test_numbers() -> None:
    shown = [ui.milliseconds(ns) for ns in (0, 1.2, 93, 9994, 9996, 8.1e5, 9.996e5, 1.254e6, 14e6, 312e6, 2.5e9)]
    assert shown == ["-", "0.00 us", "0.09 us", "9.99 us", "10.0 us", "810 us", "1.00 ms", "1.25 ms", "14.0 ms",
                     "312 ms", "2.50 s"]  # fmt: skip
    assert [ui.percent(x) for x in (1, 0.434, 0.0096, 0.004, 0)] == ["100%", "43%", "1%", "0.4%", "0%"]
    assert ui.counts_text({"timeout": 2, "pass": 58, "crash": 1}) == "58 pass, 1 crash, 2 timeout"


def test_a_table_fits_its_width() -> None:
    row = tune.Row(
        "attention", "blocks.0.attention and 2 more", "f32 H8 S1024 D64 Program 7ec6", 0.6, "promoted", "", "attention/v12",
        "FlexAttention", 14.0e6, 4.2e6, (3.33, 3.29, 3.41), 0.9, {"pass": 58, "timeout": 2, "compile_error": 11},
    )  # fmt: skip
    text = ui.result_table([row], 100)
    assert max(map(len, text.splitlines())) <= 100
    for word in ("attention", "Program", "FlexAttention", "14.0 ms", "4.20 ms", "3.33x", "(3.29..3.41)", "90%", "v12"):
        assert word in text, (word, text)
    for word in ("58 pass,", "2 timeout", "11", "compile_error"):
        assert word in text, (word, text)


class Terminal:
    """Takes what is written as a terminal shows it: carriage return, cursor up, erase below."""

    def __init__(self) -> None:
        self.lines, self.row, self.column = [""], 0, 0

    def isatty(self) -> bool:
        return True

    def flush(self) -> None:
        pass

    def write(self, text: str) -> int:
        for part in re.findall(r"\x1b\[\d*[AJ]|\r|\n|[^\x1b\r\n]+", text):
            if part == "\r":
                self.column = 0
            elif part == "\n":
                self.row, self.column = self.row + 1, 0
                self.lines += [""] * (self.row + 1 - len(self.lines))
            elif part.endswith("A") and part[0] == "\x1b":
                self.row -= int(part[2:-1])
            elif part == "\x1b[J":
                self.lines[self.row :] = [self.lines[self.row][: self.column]]
            else:
                line = self.lines[self.row].ljust(self.column)
                self.lines[self.row] = line[: self.column] + part + line[self.column + len(part) :]
                self.column += len(part)
        return len(text)


def test_progress_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    """One line that changes in place, cut to the width; what stays is one line a step."""
    monkeypatch.setenv("COLUMNS", "60")
    monkeypatch.setenv("TERM", "xterm")
    screen = Terminal()
    progress = ui.Progress(out=screen)  # type: ignore[arg-type]
    with progress.step("reading its graph") as say:
        say("a part whose name is much longer than what a line of this terminal holds")
        time.sleep(2.5 * ui.TICK)
        assert screen.lines[0].startswith("reading its graph: a part") and len(screen.lines) == 1
        assert len(screen.lines[0]) <= 60
        progress.note("by the way")
    assert screen.lines[0] == "by the way" and re.fullmatch(r"reading its graph: \d\.\d s", screen.lines[1])
    with progress.search("softmax", 10.0) as tell:
        tell({"kind": "rung", "rung": "quick", "candidates": 9})
        tell({"kind": "verdict", "verdict": "pass", "source": "rows.c", "tunables": {"V": 4}, "time_ns": [2500.0]})
        tell({"kind": "verdict", "verdict": "timeout", "source": "rows.c", "tunables": {"V": 8}, "time_ns": [0]})
        time.sleep(2 * ui.TICK)
        assert re.match(r"softmax: search, quick 2/9; \d of 10 s; best 2\.50 us; 1 pass", screen.lines[2])
        assert screen.lines[3] == "  rows.c V=8: timeout"
    done = r"softmax: search: \d\.\d s; 1 pass, 1 timeout; best 2\.50 us, rows\.c V=4"
    assert re.fullmatch(done, screen.lines[2])
    assert screen.lines[3:] == [""]


def test_a_run_in_the_cache_is_named_after_its_model(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("KGEN_CACHE", str(tmp_path))
    made = runs.default_dir("My Model/2")
    assert made.parent == tmp_path / "runs" and made.name.startswith("My_Model_2-20")
    assert os.sep not in made.name


def test_done_is_what_it_says() -> None:
    assert Done(0, "", "a\nb\n").message == "b"
