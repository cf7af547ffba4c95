"""compute-sanitizer over a winner: a stand-in program that says what the real one says (and runs what it is given, where
told to), tensors on their way to the child, the child itself on the CPU, and where a Record gets it."""

from __future__ import annotations

import importlib
import json
import os
import signal
import stat
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from kgen import _libkgen, doctor_cuda, sanitizer, sanitizer_child
from test_gate import softmax_case

tune = importlib.import_module("kgen.tune")  # kgen.tune is the function

RACE = """========= COMPUTE-SANITIZER
========= Error: Race reported between Write access at softmax_rows+0x1a0
=========     and Read access at softmax_rows+0x2b0 [64 hazards]
=========
========= RACECHECK SUMMARY: 1 hazard displayed (1 error, 0 warnings)
"""
WARNING = """========= COMPUTE-SANITIZER
========= Warning: Race reported between Read access at k+0x10
=========     and Write access at k+0x20 [1 hazards]
========= RACECHECK SUMMARY: 1 hazard displayed (0 errors, 1 warning)
"""
MEMORY = """========= COMPUTE-SANITIZER
said by the program
========= Invalid __global__ write of size 4 bytes
=========     at softmax_rows+0x1a0
=========     by thread (31,0,0) in block (40,0,0)
=========     Address 0x7f1200001000 is out of bounds
=========     and is 1 bytes after the nearest allocation at 0x7f1200000000 of size 4096 bytes
=========     Saved host backtrace up to driver entry point at kernel launch time
=========     Host Frame: cuLaunchKernelEx [0x3a7a01] in libcuda.so.1
=========
========= Invalid __global__ read of size 8 bytes
=========     at softmax_rows+0x40
========= Target application returned an error
========= ERROR SUMMARY: 2 errors
"""
CLEAN = "========= COMPUTE-SANITIZER\n========= ERROR SUMMARY: 0 errors\n"


def test_what_the_tools_say() -> None:
    assert sanitizer.read(CLEAN, 0) == {"errors": 0, "findings": []}
    assert sanitizer.read(MEMORY, sanitizer.FOUND) == {
        "errors": 2,
        "findings": ["Invalid __global__ write of size 4 bytes at softmax_rows+0x1a0", "Invalid __global__ read of size 8 bytes at softmax_rows+0x40"],
    }
    assert sanitizer.read(RACE, sanitizer.FOUND) == {
        "errors": 1, "findings": ["Error: Race reported between Write access at softmax_rows+0x1a0"],
    }  # fmt: skip
    assert sanitizer.read(WARNING, 0) == {"errors": 0, "findings": []}


@pytest.mark.parametrize(
    ("text", "code", "says"),
    [
        ("", 1, "code 1: it said nothing"),
        ("served by torch, not by abc\n" + CLEAN, 1, "code 1: served by torch, not by abc"),
        (CLEAN, 86, "code 86"),  # its words and its code disagree
        (MEMORY, 0, "code 0"),
        ("========= COMPUTE-SANITIZER\n========= Error: the driver is too old\n", 0, "code 0: Error: the driver is too old"),
        (CLEAN, -9, "code -9"),
    ],
)
def test_what_is_no_answer_is_left_out(text: str, code: int, says: str) -> None:
    assert says in sanitizer.read(text, code)["left_out"]


def test_findings_are_few_and_short() -> None:
    many = "".join(f"========= Invalid read {i} {'x' * 1000}\n=========     at k\n" for i in range(50))
    found = sanitizer.read(many + "========= ERROR SUMMARY: 50 errors\n", sanitizer.FOUND)
    assert found["errors"] == 50 and len(found["findings"]) == sanitizer.MOST
    assert all(len(f) <= sanitizer.LONGEST for f in found["findings"])


def stand_in(path: Path, body: str) -> Path:
    path.write_text(f"#!{sys.executable}\nimport json, os, subprocess, sys, time\ntool = sys.argv[sys.argv.index('--tool') + 1]\n{body}")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return path


def test_which_program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("KGEN_SANITIZER", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    monkeypatch.setenv("CUDA_HOME", str(tmp_path / "toolkit"))
    beside = tmp_path / "toolkit" / "bin" / "compute-sanitizer"
    beside.parent.mkdir(parents=True)
    assert sanitizer.find() in (None, Path("/usr/local/cuda/bin/compute-sanitizer"))
    stand_in(beside, "")
    assert sanitizer.find() == beside
    (tmp_path / "bin").mkdir()
    on_path = stand_in(tmp_path / "bin" / "compute-sanitizer", "")
    assert sanitizer.find() == on_path
    monkeypatch.setenv("KGEN_SANITIZER", str(tmp_path / "mine"))
    assert sanitizer.find() == tmp_path / "mine"
    monkeypatch.setenv("KGEN_SANITIZER", "off")
    assert sanitizer.find() is None


@pytest.mark.parametrize("view", ["plain", "strided", "transposed", "offset", "repeated", "empty", "scalar", "bfloat16", "bool"])
def test_tensors_reach_the_child_as_they_lie(view: str) -> None:
    x = torch.randn(6, 8)
    t = {"plain": x, "strided": x[::2, 1::3], "transposed": x.t(), "offset": x.view(-1)[5:], "repeated": x[:1].expand(4, 8),
         "empty": x[:0], "scalar": x[1, 1], "bfloat16": x.bfloat16()[:, ::2], "bool": x > 0}[view]  # fmt: skip
    got = sanitizer.placed(sanitizer.stored(t), torch.device("cpu"))
    assert got.dtype == t.dtype and got.shape == t.shape and got.stride() == t.stride() and torch.equal(got, t)
    reached = sum((n - 1) * s for n, s in zip(t.shape, t.stride())) + 1 if t.numel() else 0
    assert got.untyped_storage().nbytes() == reached * t.element_size(), "it ends where the tensor does"


def examined(program: Path, tmp_path: Path, **how: Any) -> dict[str, Any]:
    x = torch.randn(64, 100)
    return sanitizer.examine(program, softmax_case(), ["input"], {"input": x}, (), tmp_path / "registry", "a" * 64, **how)


def test_each_tool_runs_over_the_child(tmp_path: Path) -> None:
    """The stand-in writes down how it was called, and answers for each tool."""
    log = tmp_path / "log"
    program = stand_in(
        tmp_path / "sanitizer",
        f"""
import torch
job = torch.load(sys.argv[-1], weights_only=True)
told = json.loads(job["told"])
told |= {{"argv": sys.argv[1:], "shape": job["args"]["input"]["shape"], "registry": os.environ["KGEN_REGISTRY"],
         "caching": os.environ["PYTORCH_NO_CUDA_MEMORY_CACHING"]}}
with open({str(log)!r}, "a") as f:
    f.write(json.dumps(told) + "\\n")
text = {{"memcheck": {MEMORY!r}, "racecheck": {RACE!r}}}.get(tool, {CLEAN!r})
print(text, end="")
sys.exit(86 if tool in ("memcheck", "racecheck") else 0)
""",
    )
    found = examined(program, tmp_path)
    assert list(found) == list(sanitizer.TOOLS) and [found[t]["errors"] for t in found] == [2, 1, 0, 0]
    assert all(0 <= r["seconds"] < 60 for r in found.values())
    said = sanitizer.words(found)
    assert said.startswith("memcheck found 2 (Invalid __global__ write of size 4 bytes at softmax_rows+0x1a0); racecheck found 1 (")
    told = {t["argv"][1]: t for t in map(json.loads, log.read_text().splitlines())}
    assert set(told) == set(sanitizer.TOOLS)
    for tool, t in told.items():
        assert t["argv"][:6] == ["--tool", tool, "--error-exitcode", "86", "--print-limit", "20"]
        assert ("--report-api-errors" in t["argv"]) == (tool == "memcheck")
        assert t["argv"][-4:-1] == [sys.executable, "-m", "kgen.sanitizer_child"]
        assert t["case"]["op"] == "softmax" and t["names"] == ["input"] and t["id"] == "a" * 64 and t["shape"] == [64, 100]
        assert t["registry"] == str(tmp_path / "registry") and t["caching"] == "1"


@pytest.mark.slow
def test_a_tool_that_hangs_costs_its_limit_and_leaves_nothing(tmp_path: Path) -> None:
    pids = tmp_path / "pids"
    program = stand_in(
        tmp_path / "sanitizer",
        f"""
if tool == "initcheck":
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    open({str(pids)!r}, "w").write(f"{{os.getpid()}} {{child.pid}}")
    time.sleep(600)
print({CLEAN!r}, end="")
""",
    )
    start = time.monotonic()
    found = examined(program, tmp_path, limit_s=6.0)
    assert time.monotonic() - start < 60
    assert found["initcheck"] == {"left_out": "it did not end within 6 s"}
    assert all(found[t]["errors"] == 0 for t in ("memcheck", "racecheck", "synccheck"))
    assert sanitizer.words(found) == "initcheck left out: it did not end within 6 s"
    for pid in map(int, pids.read_text().split()):
        for _ in range(100):
            if not Path(f"/proc/{pid}").exists() or "Z" in Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2][:3]:
                break
            time.sleep(0.1)
        else:
            os.kill(pid, signal.SIGKILL)
            pytest.fail(f"process {pid} was left")


def test_a_program_that_is_not_there(tmp_path: Path) -> None:
    found = examined(tmp_path / "nowhere", tmp_path)
    assert all("No such file" in r["left_out"] for r in found.values())


def test_the_child_calls_the_kernel_and_no_other(tmp_path: Path, nothing_shipped: None, monkeypatch: pytest.MonkeyPatch,
                                                 capfd: pytest.CaptureFixture[str]) -> None:  # fmt: skip
    import kgen
    from test_gate import promote

    source = (Path(__file__).resolve().parents[2] / "tests/judge/candidates/pass_plain.c").read_text()
    registry = tmp_path / "registry"
    id_ = promote(registry, source)
    job = tmp_path / "job.pt"
    x = torch.randn(64, 100)

    def write(wanted: str) -> None:
        told = {"case": softmax_case(), "names": ["input"], "id": wanted, "index": 0}
        torch.save({"told": json.dumps(told), "args": {"input": sanitizer.stored(x)}, "captured": []}, job)

    kgen.load(str(registry))
    try:
        write(id_)
        assert sanitizer_child.main(job) == 0
        write("b" * 64)
        assert sanitizer_child.main(job) == 1
        assert "not by bbbbbbbbbbbb" in capfd.readouterr().err
    finally:
        kgen.unload(str(registry))


def test_the_record_of_a_winner_has_it_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As a Run on a GPU asks for it: only there, only when it is installed and wanted, and once a Kernel."""
    calls: list[dict[str, Any]] = []
    found = {"memcheck": {"errors": 1, "findings": ["Invalid read at k"], "seconds": 1.0}}
    monkeypatch.setattr(sanitizer, "examine", lambda *a, **k: calls.append({"args": a, **k}) or found)
    monkeypatch.setattr(sanitizer, "find", lambda: Path("/bin/sanitizer"))
    monkeypatch.setattr(tune.sets, "tensors", lambda task, drawn: {"input": drawn.args["input"], "bias": None})
    notes: list[str] = []

    class Quiet(tune.Progress):
        def note(self, text: str) -> None:
            notes.append(text)

    def tuner(device: str, wanted: bool = True) -> tune.OpTuner:
        made = object.__new__(tune.OpTuner)
        made.options = tune.Options(sanitize=wanted)
        made.device, made.progress = torch.device(device), Quiet(quiet=True)
        made._sanitized = {}
        made.task = SimpleNamespace(op="softmax", cases=[softmax_case()])
        made.reference = SimpleNamespace(draw=lambda case, seed: SimpleNamespace(args={"input": torch.ones(2)}, captured=()))
        made.stage_kernel = lambda *a: (tmp_path, None)
        return made

    one = tuner("cuda:0")
    monkeypatch.setattr(tune.devices, "alone", lambda device: tune.contextlib.nullcontext())
    for _ in range(2):
        record: dict[str, Any] = {"id": "c" * 64, "details": {"load": 0.5}}
        one._sanitize(0, record, b"", {})
        assert record["details"] == {"load": 0.5, "sanitizer": found}
    assert len(calls) == 1 and calls[0]["args"][2] == ["input"] and calls[0]["index"] == 0
    assert notes.count("softmax: compute-sanitizer: memcheck found 1 (Invalid read at k)") == 1
    for other in (tuner("cpu"), tuner("cuda:0", wanted=False)):
        record = {"id": "d" * 64}
        other._sanitize(0, record, b"", {})
        assert record == {"id": "d" * 64}
    monkeypatch.setattr(sanitizer, "find", lambda: None)
    tuner("cuda:0")._sanitize(0, record, b"", {})
    assert record == {"id": "d" * 64} and len(calls) == 1


def test_doctor_names_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sanitizer, "find", lambda: Path("/x/compute-sanitizer"))
    assert doctor_cuda._sanitizer().ok and doctor_cuda._sanitizer().found == "/x/compute-sanitizer"
    monkeypatch.setattr(sanitizer, "find", lambda: None)
    finding = doctor_cuda._sanitizer()
    assert not finding.ok and not finding.needed and "KGEN_SANITIZER" in finding.todo


@pytest.mark.cuda
@pytest.mark.slow
def test_the_real_one_over_a_kernel_that_writes_too_far(tmp_path: Path) -> None:
    program = sanitizer.find()
    if program is None:
        pytest.skip("no compute-sanitizer: it comes with CUDA's toolkit")
    import cuda_registry as cr

    candidates = Path(__file__).resolve().parents[1] / "judge" / "candidates"
    contract = (Path(__file__).resolve().parents[2] / "kernels/ops/softmax.json").read_text()
    x = torch.randn(64, 100)
    case = softmax_case() | {"device": "cuda"}
    case["args"]["input"]["align"] = 256
    results = {}
    for name in ("pass_plain", "out_of_bounds_next"):
        registry = tmp_path / name
        _, id_ = cr.promote(registry, "softmax", (candidates / f"{name}.cu").read_text(), [_libkgen.case_key(contract, case)[0]])
        results[name] = sanitizer.examine(program, case, ["input"], {"input": x}, (), registry, id_)
    assert all(r.get("errors") == 0 for r in results["pass_plain"].values()), results
    assert results["out_of_bounds_next"]["memcheck"]["errors"] > 0, results
