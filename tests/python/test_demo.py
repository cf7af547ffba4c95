"""The demo: what it shows is measured, on this machine, on a model that knows nothing of kgen."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from kgen_command import Server

from kgen import demo

ROOT = Path(__file__).resolve().parent.parent.parent


def test_the_example_is_plain_torch() -> None:
    path = demo.example()
    assert path == ROOT / "examples" / "gpt.py"
    text = path.read_text()
    assert "kgen" not in text and "scaled_dot_product" not in text
    names = [line.split("(")[0] for line in text.splitlines() if re.match(r"(def|class) ", line)]
    assert names[-3:] == ["class Model", "def get_init_inputs", "def get_inputs"]


def test_a_model_beside_itself_without_kernels(kgen_server: Server, tmp_path: Path) -> None:
    """In a process of its own, with an empty registry: about as fast, and not a bit is different."""
    path = tmp_path / "model.py"
    path.write_text((ROOT / "tests" / "models" / "kernelbench.py").read_text())
    (tmp_path / "registry").mkdir()
    code = (
        "import json, sys; from kgen import _native, demo\n"
        "for r in _native.describe(): _native.remove(r['path'])\n"
        "print(json.dumps(demo.compare(sys.argv[1], rounds=5)))"
    )
    done = kgen_server.run(path, code=code)
    assert done.code == 0, done.err
    found = json.loads(done.out)
    assert found["largest_error"] == 0.0 and 0 < found["largest_output"] <= 1.0
    assert found["plain_s"] > 0 and found["patched_s"] > 0
    assert found["speedup"]["low"] <= found["speedup"]["median"] <= found["speedup"]["high"]
    assert "softmax" in found["report"]


@pytest.mark.slow
@pytest.mark.alone  # the gate is to be sure
def test_the_demo_from_end_to_end(kgen_server: Server, tmp_path: Path) -> None:
    run = tmp_path / "run"
    done = kgen_server.run("demo", "--run", run, "--budget", "20s", env={"KGEN_REGISTRY": str(tmp_path / "not-touched")})
    assert done.code == 0, done.err
    assert not (tmp_path / "not-touched").exists()
    result = json.loads((run / "result.json").read_text())
    row = next(r for r in result["rows"] if r["op"] == "attention")
    assert row["state"] == "promoted" and row["case"].startswith("f32 H8 S1024 D64 Program ")
    assert {b["name"] for b in row["gate"]["baselines"]} == {"eager", "torch.compile", "SDPA", "FlexAttention"}
    assert row["baseline_ns"] <= min(b["median_ns"] for b in row["gate"]["baselines"] if "median_ns" in b) * 2
    assert max(map(len, done.out.splitlines())) <= 100 + len(str(run))
    whole = re.search(r"whole model: ([\d.]+) ms plain, ([\d.]+) ms patched: ([\d.]+)x \(([\d.]+)\.\.([\d.]+)\)", done.out)
    assert whole, done.out
    plain, patched, speedup = (float(whole[i]) for i in (1, 2, 3))
    assert speedup == pytest.approx(plain / patched, rel=0.3) and speedup > 1.0
    assert float(re.search(r"largest error ([\d.e+-]+), where outputs", done.out)[1]) < 1e-6
    # The two lines that it ends with work in a process of their own.
    lines = [line.strip() for line in done.out.splitlines() if line.startswith("    ")][-2:]
    assert lines[0].startswith("import kgen; kgen.load(") and lines[1] == "model = kgen.patch(model)"
    code = f"""
import sys; sys.path.insert(0, {str(ROOT / "examples")!r})
import torch, gpt
model, x = gpt.Model(*gpt.get_init_inputs()).eval(), gpt.get_inputs()[0]
want = model(x).detach()
{lines[0]}
{lines[1]}
with torch.inference_mode():
    model(x)  # it learns at its first call, in modules within modules
    why = kgen.why(lambda: model(x))
    got = model(x)
print([d.kernel for d in why.decisions if d.op == "attention"], float((got - want).abs().max()))
"""
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
    kernels, worst = ended.stdout.strip().splitlines()[-1].rsplit(" ", 1)
    assert kernels == "['attention/v1', 'attention/v1', 'attention/v1']" and float(worst) < 1e-6
