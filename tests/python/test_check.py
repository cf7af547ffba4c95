"""kgen check: passes on Kernels that are right and as fast as they were, fails on one that became slower or wrong and passes
again after a rollback; what it says of skipped, broken and unmeasured pins; its files; bad input."""

from __future__ import annotations

import dataclasses
import importlib
import json
import math
import random
import subprocess
import sys
import tempfile
import xml.etree.ElementTree as xml
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import serving_registry as made
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from kgen_command import Server, read_only

import kgen
from kgen import _libkgen, check_report, cli, doctor, gate, registries, speedups, spread
from kgen.errors import BadInput, EnvironmentLacks
from kgen.speedups import Interval, Machine

check = importlib.import_module("kgen.check")  # kgen.check is the function
ROOT = made.ROOT
GOLDEN = ROOT / "tests" / "golden" / "speedups" / "speedups.json"
ROWS = (ROOT / "kernels/softmax/rows.c").read_text()
KEY = made.softmax_key(M=64, N=100)

# Right on every input: all in double. REPEAT makes it slower and changes no result, SCALE makes it wrong.
SOFTMAX = """/* kgen
{ "format": 1, "op": "softmax", "target": "cpu", "min_arch": "x86-64-v2", "require": "K == 1 && input.contiguous",
  "launches": [{"kernel": "rows", "range": "M", "grain": "16", "args": ["input", "output", {"i64": "N"}]}] }
*/
#include <math.h>
#include <stdint.h>
#define REPEAT 1
#define SCALE 1.0
void rows(int64_t begin, int64_t end, const KG_T_input *input, KG_T_output *output, int64_t n) {
    for (int64_t m = begin; m < end; m++) {
        const float *x = input + m * n;
        for (int again = 0; again < REPEAT; again++) { /* as far as a compiler knows, output may be input */
            double top = x[0], sum = 0;
            for (int64_t i = 0; i < n; i++)
                top = x[i] > top || x[i] != x[i] ? x[i] : top;
            for (int64_t i = 0; i < n; i++)
                sum += exp(x[i] - top);
            for (int64_t i = 0; i < n; i++)
                output[m * n + i] = (float)(SCALE * exp(x[i] - top) / sum);
        }
    }
}
"""
SLOWER = SOFTMAX.replace("REPEAT 1", "REPEAT 40")
WRONG = SOFTMAX.replace("SCALE 1.0", "SCALE 1.001")


@pytest.fixture
def registry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty registry, the only one that there is. Baselines are not compiled: eager is one, too."""
    root = tmp_path / "generated"
    root.mkdir()
    monkeypatch.setattr(registries, "shipped_registry", lambda: tmp_path / "none")
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    monkeypatch.setenv("KGEN_REGISTRY", str(root))
    monkeypatch.setenv("TORCHDYNAMO_DISABLE", "1")
    return root


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Where threads wait for each other, a busy machine makes any time of any call."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    """`kgen check ...` in this process: exit code, stdout, stderr."""

    def command(*words: object) -> tuple[int, str, str]:
        code = cli.main(["check", *map(str, words)])
        out, err = capsys.readouterr()
        assert "Traceback" not in err
        return code, out, err

    return command


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> list[gate.GateResult]:
    """The measurement alone is replaced: results that were put here are what it gives, in order, the last one for ever."""
    results: list[gate.GateResult] = [result(2.0)]

    def measure(*_: Any) -> tuple[gate.GateResult, str]:
        return (results.pop(0) if len(results) > 1 else results[0]), "softmax float32 K=1 M=64 N=100"

    monkeypatch.setattr(check._Checker, "_measure", measure)
    return results


def result(speedup: float, spread_: float = 0.01) -> gate.GateResult:
    """What the gate finds of a Kernel that is so many times as fast as eager."""
    interval = (speedup, speedup * (1 - spread_), speedup * (1 + spread_))
    return gate.GateResult(True, "", "eager", 1000.0 * speedup, 1000.0, interval, rounds=20)


def last_line(err: str) -> str:
    return err.strip().splitlines()[-1]


# ---- from a good Kernel to a bad one and back ----


def test_slower_and_wrong_kernels_fail_until_they_are_rolled_back(
    registry: Path, tmp_path: Path, run: Run, one_thread: None
) -> None:
    """Real measurements. The baseline's speedups are divided by three, so that a busy machine does not look like a slower
    Kernel; the slower one does forty times the work."""
    baseline, junit, md = tmp_path / "base.json", tmp_path / "junit.xml", tmp_path / "check.md"
    made.promote(registry, "softmax", SOFTMAX, [KEY])
    code, out, err = run("--write-baseline", baseline, "--timing", "2s")
    assert code == 0, err
    assert "checked 1 pin of 1 kernel" in out and "1 pass; 0 skipped" in out
    assert "speedups recorded, not checked" in out and f"{baseline} holds the speedups of 1 pin" in out
    there = json.loads(baseline.read_text())
    (pin,) = there["pins"]
    assert pin["baseline"]["name"] in ("eager", "torch.compile") and 0 < pin["kgen_ns"] and pin["case"].startswith("softmax float32")
    pin["speedup"] = {k: v / 3 for k, v in pin["speedup"].items()}
    baseline.write_text(json.dumps(there))
    against = ("--baseline", baseline, "--timing", "2s", "--junit", junit, "--md", md)

    made.promote(registry, "softmax", SLOWER, [KEY])
    code, out, err = run(*against)
    assert code == 1, out
    assert last_line(err) == "kgen: 1 pin slower than the baseline: softmax/v2; `kgen rollback` takes a kernel back"
    assert out.startswith("regression softmax/v2 ") and "of the baseline's; it was" in out
    suite = xml.parse(junit).getroot()[0]
    assert (suite.get("tests"), suite.get("failures"), suite.get("skipped")) == ("1", "1", "0")
    assert suite.find("testcase/failure").get("type") == "regression"
    assert md.read_text().startswith("## kgen check: failed\n") and "| regression |" in md.read_text()

    made.promote(registry, "softmax", WRONG, [KEY])
    code, out, err = run(*against)
    assert code == 1 and last_line(err) == "kgen: 1 pin failed: softmax/v3"
    assert out.startswith("fail       softmax/v3 ") and "wrong_values" in out and "over eager" not in out
    assert "wrong_values" in xml.parse(junit).getroot()[0].find("testcase/failure").get("message")

    assert cli.main(["rollback", "softmax", "v1"]) == 0
    code, out, err = run(*against)
    assert code == 0, err
    assert "pass       softmax/v1 " in out and f"compared with {baseline}" in out
    suite = xml.parse(junit).getroot()[0]
    assert (suite.get("tests"), suite.get("failures")) == ("1", "0") and suite.find("testcase/failure") is None
    assert md.read_text().startswith("## kgen check: passed\n")


def test_a_dynamic_pin_is_timed_where_its_plan_fits(registry: Path, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """Real, from Python: rows.c on the size in its range that is nearest to what is timed of a softmax."""
    made.promote(registry, "softmax", ROWS, [made.softmax_key(M={"min": 1, "max": 64}, N={"min": 1, "max": 128})])
    before = {p: p.read_bytes() for p in registry.rglob("*") if p.is_file()}
    cache = registry.parent / "cache"
    monkeypatch.setenv("KGEN_CACHE", str(cache))
    report = kgen.check("softmax", registry=registry, seconds=1.0)
    assert report.passed and report.notes == ("speedups recorded, not checked",)
    (row,) = report.checked
    assert (row.kernel, row.state, row.case) == ("softmax/v1", "pass", "float32 K=1 M=1..64 N=1..128")
    assert row.cases > 1 and row.sets > row.cases and row.seconds > 0
    assert row.speed is not None and row.speed.case == "softmax float32 M=64 N=128 K=1" and row.speed.speedup.low > 0
    with pytest.raises(dataclasses.FrozenInstanceError):
        row.state = "fail"  # type: ignore[misc]
    assert {p: p.read_bytes() for p in before} == before, "a check changes no registry"
    assert not (cache / "index").exists(), "and leaves no index of what it staged"


@pytest.mark.parametrize(
    ("file", "dims", "timed"),
    [
        ("softmax/rows.c", {}, "M=1024 N=4096 K=1"),
        ("softmax/columns.c", {"K": made.WIDE}, "M=64 N=1024 K=64"),
    ],
)
def test_what_is_timed_of_a_wide_range(registry: Path, file: str, dims: dict[str, Any], timed: str) -> None:
    key = made.softmax_key(**dims)
    made.promote(registry, "softmax", (ROOT / "kernels" / file).read_text(), [key])
    (one,) = check.active("softmax", str(registry))
    with check._timing_judge(one, spread.timing_trials(key), spread.range_trials(key), True) as (_, trial):
        assert trial.label == f"softmax float32 {timed}"


def test_an_attention_pin_is_timed_with_a_program() -> None:
    plain, any_program = (made.attention_key(p, D=made.WIDE, DV=made.WIDE) for p in (None, "*"))
    assert [t.label for t in spread.timing_trials(plain)] == [
        "attention float32 B=1 HQ=8 SQ=1024 D=64 HKV=8 SK=1024 DV=64 dense",
        "attention float32 B=1 HQ=32 SQ=1 D=128 HKV=8 SK=4096 DV=128 dense",
    ]
    for t in spread.timing_trials(any_program):
        assert t.label.endswith(" alibi") and t.case["program"]["captured"] and t.case["device"] == "cpu"


# ---- slower, or not ----


def test_the_interval_of_a_ratio_covers_it_95_times_in_100() -> None:
    """Two measurements with lognormal errors, their own intervals exact: the ratio of the true speedups lies in the interval
    of the ratio in 95% of 20,000 tries, within 4 standard deviations of that share (0.0015 each)."""
    draw, inside, tries = random.Random(7), 0, 20_000
    for _ in range(tries):
        found = []
        for truth, sigma in ((1.8, 0.02), (2.0, 0.05)):
            median = truth * math.exp(draw.gauss(0, sigma))
            found.append(Interval(median, median * math.exp(-1.96 * sigma), median * math.exp(1.96 * sigma)))
        ratio = found[0].over(found[1])
        inside += ratio.low <= 0.9 <= ratio.high
    assert abs(inside / tries - 0.95) < 0.006


@pytest.mark.parametrize(
    ("now", "state", "said"),
    [
        ([result(2.0)], "pass", ""),
        ([result(1.93)], "pass", ""),  # 0.965, surely slower, by less than it takes
        ([result(1.85, 0.05)], "pass", ""),  # 0.925, and the interval reaches over 0.95
        ([result(1.7)], "regression", "it was 2.00x (1.98..2.02)"),
        ([result(1.7), result(2.0)], "pass", ""),  # the second process does not confirm it
        ([result(1.9, 0.4)], "pass", "too noisy to tell"),
        ([gate.GateResult(False, gate.NO_BASELINE)], "pass", "not timed: no baseline works here"),
        ([gate.GateResult(False, "through torch.ops.kgen: it died")], "fail", "through torch.ops.kgen: it died"),
    ],
)
def test_what_is_slower(
    registry: Path, tmp_path: Path, measured: list[gate.GateResult], now: list[gate.GateResult], state: str, said: str
) -> None:
    made.promote(registry, "softmax", SOFTMAX, [KEY])
    then = kgen.check().speedups()
    path = tmp_path / "base.json"
    path.write_text(speedups.text(then))
    measured[:] = now
    report = kgen.check(baseline=path)
    (row,) = report.rows
    assert (row.state, report.passed) == (state, state == "pass") and row.message.startswith(said), row
    assert bool(row.message) == bool(said)
    strict = kgen.check(baseline=path, strict=True) if state == "pass" else report
    assert strict.passed == (state == "pass" and not said), strict.problems


def test_strict_wants_everything_checked(registry: Path, tmp_path: Path, run: Run, measured: list[gate.GateResult]) -> None:
    made.promote(registry, "softmax", SOFTMAX, [KEY])
    path = tmp_path / "base.json"
    code, out, _ = run()
    assert code == 0 and "\nspeedups recorded, not checked\n" in out
    code, _, err = run("--strict")
    assert code == 1 and last_line(err).startswith("kgen: --strict: speedups recorded, not checked; `kgen check --write-baseline")
    assert run("--write-baseline", path, "--strict")[0] == 0
    assert run("--baseline", path, "--strict")[0] == 0
    made.promote(registry, "softmax", SOFTMAX, [made.softmax_key(M=7, N=9)])
    code, out, _ = run("--baseline", path)
    assert code == 0 and "not in the baseline" in out
    code, _, err = run("--baseline", path, "--strict")
    assert code == 1 and "1 pin not wholly checked: softmax/v1 float32 K=1 M=7 N=9: not in the baseline" in last_line(err)


def test_a_pin_of_the_baseline_that_is_gone_is_said(
    registry: Path, tmp_path: Path, run: Run, measured: list[gate.GateResult]
) -> None:
    made.promote(registry, "softmax", SOFTMAX, [KEY, made.softmax_key(M=7, N=9)])
    path = tmp_path / "base.json"
    assert run("--write-baseline", path)[0] == 0
    gone = next(p for p in registry.glob("softmax/*/pins/*") if json.loads(p.read_text())["key"]["dims"]["M"] == 7)
    gone.unlink()
    code, out, _ = run("--baseline", path)
    assert code == 0 and "of the baseline, not checked: softmax float32 K=1 M=64 N=100 (x86-64-v2)" in out
    assert run("--baseline", path, "--strict")[0] == 1


def test_another_torch_is_said(registry: Path, tmp_path: Path, run: Run, measured: list[gate.GateResult]) -> None:
    made.promote(registry, "softmax", SOFTMAX, [KEY])
    path = tmp_path / "base.json"
    path.write_text(speedups.text(dataclasses.replace(kgen.check().speedups(), torch="2.10.0")))
    code, out, _ = run("--baseline", path)
    assert code == 0 and f"the baseline was measured with torch 2.10.0, this is {torch.__version__}" in out


# ---- what is not checked, and why ----


def test_nothing_checked_is_no_pass(registry: Path, tmp_path: Path, run: Run) -> None:
    junit = tmp_path / "junit.xml"
    code, out, err = run("--junit", junit)
    assert code == 1 and "no kernel was checked: no registry has an active one" in last_line(err)
    assert xml.parse(junit).getroot()[0].get("failures") == "1", "a job that reads the file alone sees it, too"
    made.promote(registry, "softmax", SOFTMAX.replace('"min_arch": "x86-64-v2", ', ""), [KEY], arch="aarch64")
    code, out, err = run("--junit", junit)
    assert code == 1 and "no kernel was checked (1 pin skipped)" in last_line(err)
    assert f"1 skipped (softmax/v1): is for aarch64; this machine is {doctor.machine_arch()}" in out
    assert xml.parse(junit).getroot()[0].find("testcase/skipped") is not None
    code, _, err = run("nosuch")
    assert code == 2 and "nosuch: no registry has an active kernel" in err


def test_skips_are_counted_by_reason(registry: Path, run: Run, measured: list[gate.GateResult]) -> None:
    made.promote(registry, "softmax", SOFTMAX, [KEY])
    made.promote(registry, "softmax", SOFTMAX.replace('"min_arch": "x86-64-v2", ', ""), [KEY], arch="aarch64")
    program = "program 1\nmask\n%0 = ge bool q kv\nreturn %0\n"
    case = spread.attention_trial("float32", spread.Sizes(1, 2, 24, 16, 2, 24, 16), (program, [], [])).case
    key, _ = _libkgen.case_key(made.contract("attention"), case)
    made.promote(registry, "attention", made.ATTENTION, [key])  # without a recipe
    code, out, _ = run()
    assert code == 0 and "1 pass; 2 skipped" in out
    assert "1 skipped (softmax/v2): is for aarch64" in out
    assert "1 skipped (attention/v1): its pin has a Program's hash, and no Record or Task has the Program" in out
    code, _, err = run("--strict", "--write-baseline", registry.parent / "b.json")
    assert code == 1 and "1 pin not wholly checked: attention/v1" in last_line(err), "another architecture is none of them"
    assert not (registry.parent / "b.json").exists()


def test_a_pin_behind_another_registrys_is_skipped(
    registry: Path, tmp_path: Path, run: Run, measured: list[gate.GateResult], monkeypatch: pytest.MonkeyPatch
) -> None:
    made.promote(registry, "softmax", SOFTMAX, [KEY])
    made.promote(tmp_path / "later", "softmax", SLOWER, [KEY])
    monkeypatch.setenv("KGEN_REGISTRY", f"{registry}:{tmp_path / 'later'}")
    code, out, _ = run()
    assert code == 0 and "1 skipped (softmax/v1): a registry before it has a Kernel for the same pin" in out


def test_a_plan_that_is_for_no_case_here_is_skipped(registry: Path, run: Run) -> None:
    made.promote(registry, "softmax", SOFTMAX.replace("K == 1 &&", "K == 1 && NUM_THREADS > 4096 &&"), [KEY])
    code, out, _ = run()
    assert code == 1 and "1 skipped (softmax/v1): its plan is for no Case of it here: require: NUM_THREADS > 4096" in out


def test_a_budget_ends_it(registry: Path, run: Run, measured: list[gate.GateResult]) -> None:
    made.promote(registry, "softmax", SOFTMAX, [KEY])
    code, out, err = run("--budget", "0.000001s")
    assert code == 1 and "the budget of 1e-06 s was spent" in out and "no kernel was checked" in err


def test_cuda_that_is_required_and_not_there(registry: Path, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    made.promote(registry, "softmax", SOFTMAX, [KEY])
    monkeypatch.setattr(speedups, "cuda_device", lambda: None)
    code, out, err = run("--require", "cuda")
    assert (code, out) == (3, "") and "--require cuda: torch" in err and "sees no CUDA device" in err


def test_cuda_that_is_required_and_has_no_kernel(
    registry: Path, run: Run, measured: list[gate.GateResult], monkeypatch: pytest.MonkeyPatch
) -> None:
    made.promote(registry, "softmax", SOFTMAX, [KEY])
    monkeypatch.setattr(speedups, "cuda_device", lambda: ("NVIDIA H200", "sm_90"))
    code, out, err = run("--require", "cuda")
    assert code == 1 and "--require cuda: no CUDA kernel was checked" in last_line(err) and "1 pass" in out


@pytest.mark.parametrize(
    ("arch", "device", "said"),
    [
        ("sm_90", None, "is for sm_90; torch sees no CUDA device here"),
        ("sm_90", ("A100", "sm_80"), "is for sm_90; the CUDA device here is sm_80"),
        ("sm_80", ("H200", "sm_90"), ""),
        ("sm_90", ("H200", "sm_90"), ""),
        ("sm_90", ("B200", "sm_100"), ""),
    ],
)
def test_which_gpu_kernels_run_here(
    monkeypatch: pytest.MonkeyPatch, arch: str, device: tuple[str, str] | None, said: str
) -> None:
    monkeypatch.setattr(importlib.import_module("kgen.verify"), "cuda_device", lambda: device)
    assert check.why_not_here(arch) == said


def test_without_a_compiler_it_lacks_something(registry: Path, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    made.promote(registry, "softmax", SOFTMAX, [KEY])

    def none(*_: Any, **__: Any) -> None:
        raise EnvironmentLacks("no C compiler")

    monkeypatch.setattr(spread, "judge", none)
    code, _, err = run()
    assert code == 3 and last_line(err) == "kgen: no C compiler"


# ---- broken registries ----


def broken_pin(registry: Path) -> str:
    path = next(registry.glob("softmax/*/pins/*"))
    path.write_text(path.read_text()[:40])
    return "cannot be read"


def broken_record(registry: Path) -> str:
    path = next(registry.glob("softmax/*/*/record.json"))
    path.write_text(path.read_text()[:40])
    return "names the Kernel"


def broken_source(registry: Path) -> str:
    path = next(registry.glob("softmax/*/*/kernel.c"))
    path.write_text(path.read_text().replace("SCALE 1.0", "SCALE 1.1"))
    return "its source is not what was promoted"


def no_source(registry: Path) -> str:
    next(registry.glob("softmax/*/*/kernel.c")).unlink()
    return "kernel.c"


def broken_contract(registry: Path) -> str:
    (registry / "softmax" / "op.json").write_text("{")
    return "softmax"


@pytest.mark.parametrize("damage", [broken_pin, broken_record, broken_source, no_source, broken_contract])
@pytest.mark.filterwarnings("ignore:kgen")
def test_what_serves_nobody_fails(registry: Path, run: Run, damage: Callable[[Path], str]) -> None:
    made.promote(registry, "softmax", SOFTMAX, [KEY])
    said = damage(registry)
    code, out, err = run()
    assert code == 1 and "1 pin failed" in last_line(err) and said in out, (out, err)


# ---- files ----


def test_the_golden_baseline_is_read_and_written() -> None:
    found = speedups.read(GOLDEN)
    assert found.machine == Machine("AMD EPYC", "x86-64-v4", 2, ("NVIDIA H200", "sm_90")) and len(found.pins) == 2
    kernel, speed = found.pins["softmax", "x86-64-v4", "9be79f0768c1d3f2bfe423cfc747a9d3"]
    assert kernel == "8f" * 32 and speed.speedup == Interval(1.7, 1.65, 1.74) and speed.kgen_ns == 2.65e6
    assert speedups.text(found) == GOLDEN.read_text()


def test_a_baseline_is_held_to_the_devices_that_it_is_of() -> None:
    golden = speedups.read(GOLDEN)
    golden.check_machine(golden.machine)
    on_cpu = dataclasses.replace(golden, pins={n: p for n, p in golden.pins.items() if n[1] == "x86-64-v4"})
    on_cpu.check_machine(dataclasses.replace(golden.machine, cuda=None))
    for other in ({"threads": 4}, {"cpu": "Xeon"}, {"arch": "x86-64-v3"}, {"cuda": None}, {"cuda": ("H100", "sm_90")}):
        with pytest.raises(BadInput, match="was measured on another machine"):
            golden.check_machine(dataclasses.replace(golden.machine, **other))


def changed(**fields: Any) -> str:
    value = json.loads(GOLDEN.read_text())
    for path, v in fields.items():
        at = value
        *way, last = path.split("__")
        for step in way:
            at = at[int(step)] if isinstance(at, list) else at[step]
        if v is KeyError:
            del at[last]
        else:
            at[int(last) if isinstance(at, list) else last] = v
    return json.dumps(value)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (GOLDEN.read_text()[:100], "base.json: "),
        ("", "base.json: "),
        ("[]", "expected an object"),
        (changed(format=2), "format 2 is newer than this kgen, which reads format 1"),
        (changed(extra=1), "unknown key extra"),
        (changed(machine=KeyError), "lacks the key machine"),
        (changed(machine__cpu__name=KeyError), "machine.cpu lacks the key name"),
        (changed(machine__cpu__threads="2"), "machine.cpu.threads is '2', expected a number above 0"),
        (changed(pins={}), "pins is {}, expected a list"),
        (changed(pins__0__kgen_ns=-1), "pins[0].kgen_ns is -1, expected a number above 0"),
        (changed(pins__1__speedup__low=9), "pins[1].speedup is no interval"),
        (changed(pins__1__speedup=[1, 2, 3]), "pins[1].speedup is [1, 2, 3], expected an object"),
        (changed(pins__0=json.loads(GOLDEN.read_text())["pins"][1]), "pins[1] is softmax x86-64-v4"),
        (GOLDEN.read_text(), "was measured on another machine: AMD EPYC (x86-64-v4, 2 threads); this one is"),
    ],
)
def test_a_baseline_that_cannot_be_used_is_one_message(
    registry: Path, tmp_path: Path, run: Run, text: str, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(speedups, "cpu_name", lambda: "another CPU")
    path = tmp_path / "base.json"
    path.write_text(text)
    code, out, err = run("--baseline", path)
    assert (code, out) == (2, "") and said in err and err.count("\n") == 1 and str(path) in err


def test_bad_words_are_one_message(registry: Path, tmp_path: Path, run: Run) -> None:
    made.promote(registry, "softmax", SOFTMAX, [KEY])
    there = tmp_path / "folder"
    there.mkdir()
    for words, said in (
        (("--baseline", tmp_path / "none.json"), f"no such file; `kgen check --write-baseline {tmp_path}/none.json` makes it"),
        (("--baseline", there), str(there)),
        (("--junit", tmp_path / "no" / "j.xml"), f"--junit {tmp_path}/no/j.xml: there is no folder {tmp_path}/no"),
        (("--md", there), f"--md {there}: is a folder; name a file"),
        (("--write-baseline", tmp_path / "no" / "b"), "--write-baseline"),
        (("--junit", tmp_path / "x", "--md", tmp_path / "x"), "--junit and --md name one file"),
        (("--budget", "soon"), "--budget soon: give a time such as 90s, 15m or 1h"),
        (("--timing", "0s"), "--timing 0s: give a time"),
        (("--registry", tmp_path / "none"), f"{tmp_path}/none: no such folder"),
    ):
        code, out, err = run(*words)
        assert (code, out) == (2, "") and said in err and err.count("\n") == 1, err
    for words in (("--require", "tpu"), ("--baseline", "a", "--write-baseline", "b")):
        assert run(*words)[0] == 2
    assert not (tmp_path / "x").exists()


def test_a_file_that_cannot_be_written_in_the_end(tmp_path: Path) -> None:
    path = tmp_path / "report.xml"
    path.write_text("what was there")
    with pytest.raises(EnvironmentLacks, match=r"--junit .*/no/report.xml: cannot be written: No such file"):
        speedups.write(tmp_path / "no" / "report.xml", "new", "--junit")
    speedups.write(path, "new", "--junit")
    assert path.read_text() == "new" and [p.name for p in tmp_path.iterdir()] == ["report.xml"]


def test_a_folder_that_cannot_be_written_is_said_before_any_work(registry: Path, tmp_path: Path) -> None:
    made.promote(registry, "softmax", SOFTMAX, [KEY])
    folder = tmp_path / "read-only"
    folder.mkdir()
    front = read_only(folder)
    words = [sys.executable, "-m", "kgen", "check", "--junit", str(folder / "junit.xml")]
    done = subprocess.run([*front, *words], capture_output=True, text=True, timeout=300, check=False)
    assert (done.returncode, done.stdout) == (3, "") and done.stderr.count("\n") == 1, done.stderr
    assert done.stderr.startswith(f"kgen: --junit {folder}/junit.xml: the folder cannot be written")


PLACES = ("", "machine", "machine.cpu", "machine.cpu.threads", "machine.cuda", "created", "pins", "pins.0", "pins.0.pin", "pins.1",
          "pins.1.baseline", "pins.1.baseline.median_ns", "pins.1.speedup", "pins.1.speedup.high", "pins.1.kgen_ns")  # fmt: skip
ANY_JSON = st.recursive(
    st.none() | st.booleans() | st.floats() | st.integers() | st.just(10**400) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)


@given(place=st.sampled_from(PLACES), value=ANY_JSON, cut=st.integers(0, 2000))
@settings(max_examples=300, deadline=None)
def test_no_baseline_is_more_than_bad_input(place: str, value: Any, cut: int) -> None:
    """Anything in place of any part, and the file torn anywhere: read, or refused in one message."""
    whole = json.loads(GOLDEN.read_text())
    *way, last = place.split(".")
    at: Any = whole
    for step in way:
        at = at[int(step)] if isinstance(at, list) else at[step]
    if last:
        at[int(last) if isinstance(at, list) else last] = value
    else:
        whole = value
    text = json.dumps(whole)
    for given_text in (text, text[:cut], GOLDEN.read_text()[:cut], text + "9" * 5000):
        with tempfile.NamedTemporaryFile("w", suffix=".json") as f:
            f.write(given_text)
            f.flush()
            try:
                found = speedups.read(f.name)
            except BadInput as e:
                assert f.name in str(e) and "\n" not in str(e)
            else:
                assert all(s.speedup.low > 0 for _, s in found.pins.values())


def test_reports_hold_whatever_a_compiler_says(registry: Path, run: Run, tmp_path: Path) -> None:
    nasty = "a <b> & \"c\" | d\x1b[31m \x00 ]]> \ud800\nsecond line"
    row = check.CheckedPin("softmax/v1", "ab" * 32, "softmax", "x86-64-v2", "/r", "cd" * 16, "float32", "fail", nasty)
    report = check.CheckReport((row,), ("1 pin failed",), (), Machine("C|PU", "x86-64-v2", 2), "2.13", "0.1", 1.0)
    suite = xml.fromstring(check_report.junit(report).encode())[0]
    failure = suite.find("testcase/failure")
    assert failure.get("message") == "a <b> & \"c\" | d?[31m ? ]]> ?"
    assert failure.text.endswith("\nsecond line")
    (cells,) = [line for line in check_report.markdown(report).splitlines() if line.startswith("| softmax")]
    assert cells.count("|") - cells.count("\\|") == 7 and "&lt;b>" in cells


def test_json_is_one_object(registry: Path, run: Run, measured: list[gate.GateResult]) -> None:
    made.promote(registry, "softmax", SOFTMAX, [KEY])
    code, out, err = run("--json")
    report = json.loads(out)
    assert (code, err) == (0, "") and report["passed"] and report["checked"] == 1
    assert report["rows"][0]["speed"]["speedup"]["median"] == 2.0
    code, out, err = run("--json", "--strict")
    assert (code, err) == (1, "") and "--strict" in json.loads(out)["problems"][0]


# ---- the process ----


def test_an_interrupt_leaves_nothing(registry: Path, tmp_path: Path, kgen_server: Server) -> None:
    made.promote(registry, "softmax", SOFTMAX, [KEY])
    folder, junit = tmp_path / "tmp", tmp_path / "junit.xml"
    folder.mkdir()
    running = kgen_server.start("check", "--registry", registry, "--junit", junit, env={"TMPDIR": str(folder)})
    running.wait_for("baseline eager")
    running.interrupt()
    done = running.wait()
    assert (done.code, done.message) == (130, "kgen: interrupted")
    assert kgen_server.left_over() == [] and not junit.exists()
    assert not list(folder.glob("kgen-check-*"))
