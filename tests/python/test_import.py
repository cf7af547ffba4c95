"""What `import kgen` costs, with a thousand Kernels of fifty Ops in the index, and what it must not do."""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import serving_registry as sr
from kgen_command import Server

from kgen import _libkgen

OPS, KERNELS = 50, 20


def contract(i: int) -> dict[str, Any]:
    base = json.loads(sr.contract("softmax"))
    name = f"softmax_{i:08x}"
    return {**base, "op": name, "schema": base["schema"].replace("softmax(", f"{name}(")}


@pytest.fixture(scope="session")
def thousand(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A registry of 50 Ops with 20 Kernels each, each pinned for a size of its own. Its files are laid out here,
    since a thousand promotions take a while; the index is derived from them by kgen itself."""
    registry = tmp_path_factory.mktemp("thousand") / "generated"
    for i in range(OPS):
        op = contract(i)
        folder = registry / op["op"]
        pins = folder / sr.ARCH / "pins"
        pins.mkdir(parents=True)
        (folder / "op.json").write_text(json.dumps(op))
        for k in range(KERNELS):
            source = sr.SOFTMAX.replace('"op": "softmax"', f'"op": "{op["op"]}"') + f"/* {k} */\n"
            found = _libkgen.candidate_check(json.dumps(op), source.encode(), "kernel.c", None)
            record = {
                "format": 1, "id": found["id"], "op": op["op"], "arch": sr.ARCH, "version": k + 1, "kind": "kernel",
                "source": "kernel.c", "tunables": found["tunables"], "verdict": "pass", "message": "",
                "proposer": {"name": "files"}, "parent": None, "cases": [],
                "environment": sr.environment(), "created": "2026-01-31T12:00:00Z",
            }  # fmt: skip
            home = folder / sr.ARCH / found["id"]
            home.mkdir()
            (home / "kernel.c").write_text(source)
            (home / "record.json").write_text(json.dumps(record))
            case = {
                "format": 1, "op": op["op"], "device": "cpu", "precision": "native",
                "args": {"input": {"dtype": "float32", "shape": [k + 1, 64], "stride": [64, 1], "align": 64,
                                   "fill": {"kind": "normal", "mean": 0.0, "std": 1.0}}, "dim": 1}, "count": 1,
            }  # fmt: skip
            key, name = _libkgen.case_key(json.dumps(op), case)
            (pins / name).write_text(json.dumps({"format": 1, "key": key, "kernel": found["id"], "replaced": None}))
    return registry


def python(code: str, **env: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, **env}, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture
def forked(kgen_server: Server) -> Callable[..., str]:
    """As python, but torch is imported already, with what kgen may need of it."""

    def run(code: str, **env: str) -> str:
        done = kgen_server.run(code=code, env=env)
        assert done.code == 0, done.out + done.err
        return done.out

    return run


MEASURE = """
import time, torch
def resident():
    with open("/proc/self/statm") as f:
        return int(f.read().split()[1]) * 4096
before, start = resident(), time.perf_counter()
import kgen
print(time.perf_counter() - start, resident() - before, len(kgen.registry()[0]["ops"]))
"""


def test_import_costs(thousand: Path) -> None:
    """10 ms and 10 MB are the numbers to hold on a quiet machine; here with twice the margin for a shared one."""
    python("import torch, kgen", KGEN_REGISTRY=str(thousand))  # derives the index
    runs = [[float(x) for x in python(MEASURE, KGEN_REGISTRY=str(thousand)).split()] for _ in range(3)]
    assert runs[0][2] == OPS
    seconds, grown = statistics.median(r[0] for r in runs), statistics.median(r[1] for r in runs)
    assert seconds < 0.020, f"import kgen took {seconds * 1e3:.1f} ms over import torch"
    assert grown < 20 << 20, f"import kgen took {grown / 1e6:.1f} MB"


@pytest.mark.beside
def test_import_reads_no_json_and_compiles_nothing(thousand: Path) -> None:
    code = """
import json, subprocess, torch
def refuse(*a, **k):
    raise AssertionError("not at import")
json.load = json.loads = json.JSONDecoder.decode = refuse
subprocess.Popen.__init__ = refuse
import kgen, sys
heavy = {"kgen.tune", "kgen.patch", "kgen.capture", "kgen.trace", "kgen.ops", "kgen.attention", "kgen.serving", "rich"}
print(sorted(heavy & set(sys.modules)))
"""
    assert python(code, KGEN_REGISTRY=str(thousand)).strip() == "[]"


@pytest.mark.beside
def test_the_index_is_derived_again_when_a_pin_changes(thousand: Path, forked: Callable[..., str]) -> None:
    pin = next(thousand.rglob("pins/*"))
    ask = f"""
import torch, kgen
kernels = [k for r in kgen.registry() for o in r["ops"] if o["name"] == {pin.parents[2].name!r} for k in o["kernels"]]
print(sum(len(k["pins"]) for k in kernels))
"""
    assert forked(ask, KGEN_REGISTRY=str(thousand)).strip() == str(KERNELS)
    text = pin.read_text()
    pin.unlink()
    try:
        assert forked(ask, KGEN_REGISTRY=str(thousand)).strip() == str(KERNELS - 1)
    finally:
        pin.write_text(text)
    assert forked(ask, KGEN_REGISTRY=str(thousand)).strip() == str(KERNELS)


@pytest.mark.beside
def test_a_call_among_a_thousand_kernels(thousand: Path, forked: Callable[..., str]) -> None:
    code = """
import torch, kgen
x = torch.randn(7, 64)
torch.testing.assert_close(torch.ops.kgen.softmax_00000031(x, 1), torch.softmax(x, 1))
d, = kgen.why("softmax_00000031", x, 1).decisions
print(d.kind, d.kernel)
"""
    assert forked(code, KGEN_REGISTRY=str(thousand)).split() == ["exact", "softmax_00000031/v7"]


@pytest.mark.beside
def test_import_without_torch_says_so() -> None:
    code = """
import ctypes
from kgen import _paths
lib = ctypes.CDLL(str(_paths.binary("libkgen_rt.so")))
err = ctypes.create_string_buffer(512)
code = lib.kgen_rt_start(None, None, err, ctypes.c_size_t(512))
print(code, err.value.decode())
"""
    # The package imports torch; the library alone is what a process without it meets.
    code = code.replace("from kgen import _paths\n", "").replace(
        'str(_paths.binary("libkgen_rt.so"))', repr(str(_library()))
    )
    assert python(code).strip() == "-11 torch is not loaded in this process: import torch first"


def _library() -> Path:
    from kgen import _paths

    return _paths.binary("libkgen_rt.so")


@pytest.mark.beside
def test_the_package_lists_what_it_has(forked: Callable[..., str]) -> None:
    out = forked("import kgen; print(sorted(set(['attention','patch','unpatch','tune','why','warmup','load','registry',"
                 "'verify','patch_report','precision']) - set(dir(kgen))))\ntry:\n    kgen.nosuch\nexcept AttributeError as e:\n    print(e)")  # fmt: skip
    assert out.splitlines() == ["[]", "module 'kgen' has no attribute 'nosuch'"]
