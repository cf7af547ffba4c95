"""A whole `kgen tune` whose disk fails, or which is killed, at one of its writes, syncs and renames: it says why or is gone,
and the same command goes on to the same result. What is below the command line is failed at every call by tests/faults."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from test_tune import MODEL, never_twice

ROOT = Path(__file__).resolve().parent.parent.parent
# How many of the calls are failed and how many are killed at; all would be hundreds of Runs.
POINTS = 3


@pytest.fixture(scope="module")
def shim(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The library that makes calls fail."""
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("needs a C compiler")
    out = tmp_path_factory.mktemp("shim") / "preload.so"
    source = ROOT / "tests/faults/preload/preload.c"
    subprocess.run([compiler, "-shared", "-fPIC", "-O1", "-o", out, source, "-ldl"], check=True)
    return out


def tune(folder: Path, shim: Path | None = None, fault: str = "") -> subprocess.CompletedProcess[str]:
    """Begins a Run, or goes on with the one that is there."""
    run = folder / "run"
    words = ["tune", str(folder / "model.py"), "--run", str(run), "--registry", str(folder / "registry"), "--budget", "2s"]
    words += ["--min-speedup", "0.01", "--baselines", "1s", "--json"] + ["--resume"] * (run / "run.json").is_file()
    env = dict(os.environ)
    if shim is not None:
        env |= {"LD_PRELOAD": str(shim), "KGEN_FAULT": fault, "KGEN_FAULT_UNDER": str(folder), "KGEN_FAULT_TOLD": str(folder / "told")}
    return subprocess.run([sys.executable, "-m", "kgen", *words], capture_output=True, text=True, check=False, env=env)


def begin(folder: Path) -> Path:
    folder.mkdir()
    (folder / "model.py").write_text(MODEL)
    return folder


@pytest.mark.slow
@pytest.mark.alone  # the gate is to be sure
@pytest.mark.parametrize("mode", ["fail", "kill"])
def test_a_run_goes_on_after_any_fault(mode: str, shim: Path, tmp_path: Path) -> None:
    whole = begin(tmp_path / "whole")
    done = tune(whole, shim, f"{mode}:0")
    assert done.returncode == 0, done.stderr
    total = int((whole / "told").read_text())
    assert total > 40
    for i in range(POINTS):
        n = 1 + i * (total - 1) // (POINTS - 1)
        folder = begin(tmp_path / f"{mode}-{n}")
        first = tune(folder, shim, f"{mode}:{n}")
        if mode == "kill":
            assert first.returncode in (-signal.SIGKILL, 0), (n, first.returncode, first.stderr)
        else:
            assert "Traceback" not in first.stderr, (n, first.stderr)
            assert first.returncode == 0 or str(folder) in first.stderr, (n, first.stderr)
        last = tune(folder)
        assert last.returncode == 0, (n, last.stderr)
        row = next(r for r in json.loads(last.stdout)["rows"] if r["op"] == "softmax")
        assert row["state"] == "promoted" and row["kernel"] == "softmax/v1", (n, row)
        assert never_twice(folder / "run")["promote"] == 1
