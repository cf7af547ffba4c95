"""ncu over a loop's best: a stand-in program that says what the real one says (and runs what it is given), what is read out of
it, the child on the CPU, and where a prompt gets it. The real one was in no test."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from kgen import _libkgen, asking, profiler, profiler_child, sanitizer
from kgen.judge import Judge
from test_gate import CONTRACT, SHAPE, softmax_case

CANDIDATE = (Path(__file__).resolve().parents[2] / "tests/judge/candidates/pass_plain.c").read_text()
STALLS = {"long_scoreboard": "12.40", "barrier": "3.10", "wait": "2.2", "short_scoreboard": "1.20", "math_pipe_throttle": "0.9",
          "selected": "1", "mio_throttle": "0.2"}  # fmt: skip
COLUMNS: dict[str, tuple[str, str]] = {
    "gpu__dram_throughput.avg.pct_of_peak_sustained_elapsed": ("%", "71.46"),
    "gpu__time_duration.sum": ("ns", "1,812,352"),
    "lts__throughput.avg.pct_of_peak_sustained_elapsed": ("%", "45.02"),
    "sm__inst_executed_pipe_fma.avg.pct_of_peak_sustained_active": ("%", "33.1"),
    "sm__pipe_fma_cycles_active.avg.pct_of_peak_sustained_active": ("%", "44.4"),
    "sm__inst_executed_pipe_tensor_op_hmma.avg.pct_of_peak_sustained_active": ("%", "0"),
    "sm__pipe_tensor_op_gmma_cycles_active.avg.pct_of_peak_sustained_active": ("%", "62.9"),
    "sm__inst_executed_pipe_xu.avg.pct_of_peak_sustained_active": ("%", "3.2"),
    "sm__warps_active.avg.pct_of_peak_sustained_active": ("%", "24.7"),
    "smsp__issue_active.avg.pct_of_peak_sustained_active": ("%", "38.5"),
    **{f"smsp__average_warps_issue_stalled_{k}_per_issue_active.ratio": ("inst", v) for k, v in STALLS.items()},
    "launch__registers_per_thread": ("register/thread", "168"),
    "sm__throughput.avg.pct_of_peak_sustained_elapsed": ("%", "n/a"),
}
FIXED = ["ID", "Process ID", "Process Name", "Host Name", "Kernel Name", "Context", "Stream", "Block Size", "Grid Size", "Device", "CC"]


def csv_of(columns: dict[str, tuple[str, str]], kernels: dict[str, dict[str, str]], units: bool = True) -> str:
    """As `ncu --csv --page raw` prints it, with what it and its child say around it."""

    def line(words: list[str]) -> str:
        return ",".join(f'"{w}"' for w in words) + "\n"

    text = "==PROF== Connected to process 4711 (/usr/bin/python3.11)\nsaid by the child\n==PROF== Profiling \"gemm\" - 0: 0%....100% - 9 passes\n"
    text += "==PROF== Disconnected from process 4711\n" + line([*FIXED, *columns])
    text += line([""] * len(FIXED) + [u for u, _ in columns.values()]) if units else ""
    for i, (name, other) in enumerate(kernels.items()):
        fixed = [str(i), "4711", "python3.11", "127.0.0.1", name, "1", "7", "(128, 1, 1)", "(132, 1, 1)", "0", "9.0"]
        text += line([*fixed, *(other.get(c, v) for c, (_, v) in columns.items())])
    return text


GEMM = "void gemm<(int)3>(const float *, float *, long)"


def test_what_ncu_says() -> None:
    found = profiler.read(csv_of(COLUMNS, {GEMM: {}}), 0)
    (k,) = found["kernels"]
    total = sum(map(float, STALLS.values()))
    assert k["name"] == "gemm" and k["ns"] == 1812352 and k["dram"] == 71.46 and k["l2"] == 45.02
    assert (k["tensor"], k["fma"], k["xu"], k["issue"], k["occupancy"]) == (62.9, 44.4, 3.2, 38.5, 24.7)
    assert list(k["stalls"]) == ["long_scoreboard", "barrier", "wait", "short_scoreboard", "selected"]
    assert k["stalls"]["long_scoreboard"] == pytest.approx(100 * 12.4 / total)
    assert profiler.words(found) == (
        "- ncu on `gemm`: 1.81e+03 us; DRAM 71%, L2 45% of peak throughput; tensor pipe 63%, FMA pipe 44%, XU pipe 3%; "
        "issue slots used 38%, achieved occupancy 25%; warps wait for long_scoreboard 59%, barrier 15%, wait 10%, "
        "short_scoreboard 6%, selected 5%\n"
    )


def test_other_versions_and_what_is_missing() -> None:
    few = {"gpu__time_duration.sum": ("usecond", "12.5"), "dram__throughput.avg.pct_of_peak_sustained_elapsed": ("%", "9"),
           "smsp__average_warp_latency_issue_stalled_lg_throttle.ratio": ("", "4")}  # fmt: skip
    found = profiler.read(csv_of(few, {"k": {}}), 0)
    assert profiler.words(found) == "- ncu on `k`: 12.5 us; DRAM 9% of peak throughput; warps wait for lg_throttle 100%\n"
    # A duration without a unit is no time; what is no number is not there.
    found = profiler.read(csv_of({"gpu__time_duration.sum": ("", "5"), "sm__warps_active.avg.pct_of_peak_sustained_active": ("%", "50"),
                                  "lts__throughput.avg.pct_of_peak_sustained_elapsed": ("%", "nan")}, {"k": {}}, units=False), 0)  # fmt: skip
    assert profiler.words(found) == "- ncu on `k`: achieved occupancy 50%\n"
    many = {f"k{i}": {"gpu__time_duration.sum": str(1000 * (i + 1))} for i in range(7)}
    said = profiler.words(profiler.read(csv_of(COLUMNS, many), 0)).splitlines()
    assert [line.split("`")[1] for line in said[:4]] == ["k6", "k5", "k4", "k3"] and said[4] == "- ncu: 3 more launches, each shorter"


@pytest.mark.parametrize(
    ("text", "code", "says", "refused"),
    [
        ("==ERROR== ERR_NVGPUCTRPERM - The user does not have permission to access NVIDIA GPU Performance Counters", 1,
         "only administrators read a GPU's counters (ERR_NVGPUCTRPERM)", True),
        ("==PROF== Connected\nserved by torch, not by abc\n", 1, "code 1: served by torch, not by abc", False),
        ("", 9, "code 9: it said nothing", False),
        ("==WARNING== No kernels were profiled.\n", 0, "No kernels were profiled", False),
        (csv_of(COLUMNS, {}), 0, "it told of no kernel", False),
        ('"ID"\n', 0, "it told of no kernel", False),
        ('"ID","Kernel Name"\n"",""\n"0"\n"0","k","7"\n', 0, "it told of no kernel", False),
    ],
)  # fmt: skip
def test_what_is_left_out(text: str, code: int, says: str, refused: bool) -> None:
    found = profiler.read(text, code)
    assert says in found["left_out"] and ("refused" in found) == refused and profiler.words(found) == ""


def test_which_program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KGEN_NCU", "off")
    assert profiler.find() is None
    monkeypatch.delenv("KGEN_NCU")
    monkeypatch.setenv("PATH", str(tmp_path))
    (tmp_path / "ncu").write_text("#!/bin/sh\n")
    (tmp_path / "ncu").chmod(0o755)
    assert profiler.find() == tmp_path / "ncu"


def ncu(tmp_path: Path, body: str) -> Path:
    log, program = tmp_path / "argv", tmp_path / "ncu"
    program.write_text(f"#!{sys.executable}\nimport json, subprocess, sys\nopen({str(log)!r}, 'a').write(json.dumps(sys.argv[1:]) + chr(10))\n{body}")
    program.chmod(0o755)
    return program


def test_a_program_that_hangs_or_is_not_there(tmp_path: Path) -> None:
    def examined(program: Path, **how: Any) -> dict[str, Any]:
        return profiler.examine(program, softmax_case(), ["input"], {"input": torch.randn(SHAPE)}, (), tmp_path, "a" * 64, **how)

    assert examined(ncu(tmp_path, "import time; time.sleep(60)"), limit_s=1.0) == {"left_out": "it did not end within 1 s"}
    (argv,) = map(json.loads, (tmp_path / "argv").read_text().splitlines())
    assert argv[:7] == ["--csv", "--page", "raw", "--print-units", "base", "--profile-from-start", "off"]
    assert argv[argv.index("--section") + 1] == "SpeedOfLight" and argv[-3:-1] == ["-m", "kgen.profiler_child"]
    assert "No such file" in examined(tmp_path / "nowhere")["left_out"]


class Bench:
    """A loop over softmax on this CPU, a stage at a time, with a model that is the test."""

    def __init__(self, tmp_path: Path):
        self.run = tmp_path / "run"
        task = tmp_path / "task"
        (task / "cases").mkdir(parents=True)
        (task / "op.json").write_text(CONTRACT)
        (task / "cases" / "0.json").write_text(json.dumps(softmax_case()))
        self.run.mkdir()
        known = {"floor_ns": 1.0, "bytes": 51200, "flops": 0.0}
        self.loop = asking.loop_options(asking.Asking("mcp", slots=1), asking.Budget(), task, "cpu", "", [known])
        self.judge = Judge(CONTRACT)
        self.x = torch.randn(SHAPE)
        at = self.judge.add_case(softmax_case())
        self.judge.add_set(at, [self.x], [torch.softmax(self.x.double(), 1)], results=[torch.softmax(self.x, 1)], name="set")
        self.notes: list[str] = []

    def entries(self, kind: str) -> list[dict[str, Any]]:
        path = self.run / "journal.jsonl"
        return [e for e in map(json.loads, path.read_text().splitlines()) if e["kind"] == kind]

    def find(self, kind: str, **fields: Any) -> dict[str, Any] | None:
        return next((e for e in reversed(self.entries(kind)) if all(e.get(k) == v for k, v in fields.items())), None)

    def tuner(self) -> Any:
        def stage_kernel(record: dict[str, Any], source: bytes, key: dict[str, Any]) -> tuple[Path, None]:
            _libkgen.registry_promote(self.run / "staging", CONTRACT, None, source, record, [key])
            return self.run / "staging", None

        task = SimpleNamespace(op="softmax", cases=[softmax_case()], contract=json.loads(CONTRACT))
        drawn = SimpleNamespace(args={"input": self.x, "dim": 1}, captured=())
        return SimpleNamespace(
            task=task, run=SimpleNamespace(find=self.find, entries=self.entries), contract=CONTRACT, device=torch.device("cpu"),
            options=SimpleNamespace(asking=SimpleNamespace(proposer="files")), stage_kernel=stage_kernel,
            reference=SimpleNamespace(draw=lambda case, seed: drawn), progress=SimpleNamespace(note=self.notes.append),
        )  # fmt: skip

    def prompt(self) -> dict[str, Any]:
        _libkgen.loop_stage(CONTRACT, self.run, {**self.loop, "stage": "advance"}, 600.0, lambda _: None)
        return self.entries("prompt")[-1]

    def answer(self, profile: Any, text: str) -> None:
        ident = self.prompt()["id"]
        charged = {"calls": 1, "tokens": 1, "nano_usd": 0}
        fields = {"op": "softmax", "prompt": ident, "name": ident, "text": f"```c\n{text}```\n", "spent_s": 1.0, "charged": charged}
        _libkgen.journal_add(self.run, "answer", fields)
        with self.judge.profiled(profile):
            options = {"budget_ms": 600000, "loop": {**self.loop, "stage": "evaluate"}}
            _libkgen.search(self.judge.handle, self.run, options, lambda _: None)


@pytest.fixture
def bench(tmp_path: Path) -> Any:
    made = Bench(tmp_path)
    with made.judge:
        yield made


def test_the_next_prompt_has_it(bench: Bench, tmp_path: Path) -> None:
    program = ncu(tmp_path, f"at = sys.argv.index('-m') - 1\ncode = subprocess.run(sys.argv[at:]).returncode\nprint({csv_of(COLUMNS, {GEMM: {}})!r})\nsys.exit(code)\n")
    profile = profiler.Profiler(bench.tuner(), program)
    bench.answer(profile, CANDIDATE.replace("pass_plain", "first"))
    assert bench.notes == []
    (entry,) = bench.entries("profile")
    assert entry["name"] == "softmax-0001.1.c" and entry["text"].startswith("- ncu on `gemm`: ") and entry["took_s"] > 0
    prompt = bench.prompt()["user"]
    assert entry["text"] in prompt.partition("## Its verdict")[2] and prompt.count("- ncu on") == 1
    bench.answer(profile, "/* kgen\n{} */\n")
    assert len(bench.entries("profile")) == 1
    assert "- ncu on" in bench.prompt()["user"].partition("## The best so far")[2].partition("## ")[0]


def test_a_driver_that_refuses_is_told_of_once(bench: Bench, tmp_path: Path) -> None:
    profile = profiler.Profiler(bench.tuner(), ncu(tmp_path, "print('==ERROR== ERR_NVGPUCTRPERM - no permission'); sys.exit(1)\n"))
    bench.answer(profile, CANDIDATE)
    assert bench.entries("profile") == [] and profile.refused
    assert bench.notes == ["softmax: ncu left out: the driver lets only administrators read a GPU's counters (ERR_NVGPUCTRPERM)"]
    assert profile(bench.entries("verdict")[-1]["id"]) == "" and len((tmp_path / "argv").read_text().splitlines()) == 1


def test_what_goes_wrong_is_raised_at_the_end(bench: Bench) -> None:
    def profile(id_: str) -> str:
        raise LookupError(f"about {id_[:4]}")

    with pytest.raises(LookupError, match="about "):
        bench.answer(profile, CANDIDATE)


def test_the_child_says_who_served(tmp_path: Path, capfd: pytest.CaptureFixture[str], nothing_shipped: None) -> None:
    import kgen
    from test_gate import promote

    registry = tmp_path / "registry"
    id_ = promote(registry, CANDIDATE)
    kgen.load(str(registry))
    try:
        for wanted, code in ((id_, 0), ("b" * 64, 1)):
            sanitizer.write_job(tmp_path / "job.pt", softmax_case(), ["input"], {"input": torch.randn(SHAPE)}, (), wanted, 0)
            assert profiler_child.main(tmp_path / "job.pt") == code
        assert "not by bbbbbbbbbbbb" in capfd.readouterr().err
    finally:
        kgen.unload(str(registry))
