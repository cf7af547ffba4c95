"""Every CUDA source in kernels/ and generated/ compiles by NVRTC, without a GPU, for sm_80 and sm_90a as its min_arch
allows: each text once with its default tunables (what ships is a house kernel's), and what ships with its own; without a
warning, and the defaults without a spill. For ptxas's figures of each: KGEN_SHOW_PTXAS=1 and pytest -s."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import nvrtc
import pytest
import torch
from emulator import Call, unit_of
from kgen import _libkgen, judge, spread
from kgen.errors import BadInput
from test_kernels_cpu import MODS, Shape, slow
from torch import Tensor

ROOT = Path(__file__).resolve().parent.parent.parent
ARCHES = {"sm_80": 80, "sm_90a": 90}
SHIPPED = sorted((ROOT / "generated").rglob("*.cu"))
ALL = (*sorted((ROOT / "kernels").rglob("*.cu")), *SHIPPED)
# What ships is a house kernel's text with tunables of its own: `make test` compiles a text once.
SOURCES = list({p.read_bytes(): p for p in reversed(ALL)}.values())[::-1]

pytestmark = pytest.mark.skipif(nvrtc.folder() is None, reason=f"no NVRTC from pip; pip install {nvrtc.PIN}")


def softmax_calls(dtype: torch.dtype) -> Iterator[tuple[str, Call]]:
    for shape, dim in (((64, 4096), 1), ((64, 16384), 1), ((4, 512, 64), 1)):
        yield "plain", Call("softmax", {"input": torch.empty(shape, dtype=dtype), "dim": dim})


def attention_calls(dtype: torch.dtype) -> Iterator[tuple[str, Call]]:
    for sq in (64, 1):
        shape = Shape(1, 4, 2, sq, 64, 128, 128)
        for mod in ("plain", "causal", "alibi", "softcap", "documents", "table"):
            args: dict[str, Tensor | bool | None] = {n: shape.draw(h, s, 128, dtype) for n, h, s in
                    (("query", 4, sq), ("key", 2, 64), ("value", 2, 64))}  # fmt: skip
            args |= {"scale": None, "enable_gqa": True}
            yield mod, Call("attention", args, MODS[mod].text, tuple(MODS[mod].captured(64)), MODS[mod].scalars)
            if mod == "softcap":
                yield f"{mod}, output alone", Call("attention", args, MODS[mod].text, (), MODS[mod].scalars, ("lse",))


def norm_calls(op: str) -> Callable[[torch.dtype], Iterator[tuple[str, Call]]]:
    def calls(dtype: torch.dtype) -> Iterator[tuple[str, Call]]:
        for m, n in ((64, 4096), (4, 1 << 18), (4, 1 << (22 if dtype == torch.float32 else 23))):
            affine = {name: torch.empty(n, dtype=dtype) for name in ("weight", "bias")[: 2 if op == "layer_norm" else 1]}
            yield "plain", Call(op, {"input": torch.empty((m, n), dtype=dtype), "normalized_shape": [n], **affine, "eps": 1e-5})

    return calls


GELU = ("program 1\nepilogue\n%0 = mul float32 acc 0.5\n%1 = mul float32 acc 0.70710677\n%2 = erf float32 %1\n"
        "%3 = add float32 1.0 %2\n%4 = mul float32 %0 %3\nreturn %4\n")  # fmt: skip


def matmul_calls(dtype: torch.dtype) -> Iterator[tuple[str, Call]]:
    for m in (512, 4):
        args = {"input": torch.empty((1, m, 1024), dtype=dtype), "other": torch.empty((1, 1024, 512), dtype=dtype)}
        yield "plain", Call("matmul", args)
        yield "gelu", Call("matmul", args, GELU)


def linear_calls(dtype: torch.dtype) -> Iterator[tuple[str, Call]]:
    for m in (512, 4):
        args = {"input": torch.empty((m, 1024), dtype=dtype), "weight": torch.empty((512, 1024), dtype=dtype)}
        yield "plain", Call("linear", {**args, "bias": torch.empty(512, dtype=dtype)})
        yield "gelu", Call("linear", {**args, "bias": torch.empty(512, dtype=dtype)}, GELU)


def conv2d_calls(dtype: torch.dtype) -> Iterator[tuple[str, Call]]:
    for last in (False, True):
        form = torch.channels_last if last else torch.contiguous_format
        args = {"input": torch.empty((8, 64, 28, 28), dtype=dtype).to(memory_format=form),
                "weight": torch.empty((96, 64, 3, 3), dtype=dtype).to(memory_format=form), "bias": torch.empty(96, dtype=dtype),
                "stride": [1, 1], "padding": [1, 1], "dilation": [1, 1], "groups": 1, "channels_last": last}  # fmt: skip
        yield "plain", Call("conv2d", args)
        yield "gelu", Call("conv2d", args, GELU)
        first = {"input": torch.empty((8, 3, 112, 112), dtype=dtype).to(memory_format=form),
                 "weight": torch.empty((96, 3, 11, 11), dtype=dtype).to(memory_format=form), "stride": [4, 4], "padding": [2, 2]}  # fmt: skip
        yield "plain", Call("conv2d", args | first)
        yield "gelu", Call("conv2d", args | first, GELU)
    args = {"input": torch.empty((8, 64, 28, 28), dtype=dtype), "weight": torch.empty((64, 1, 3, 3), dtype=dtype), "bias": None,
            "stride": [1, 1], "padding": [1, 1], "dilation": [1, 1], "groups": 64, "channels_last": False}  # fmt: skip
    yield "plain", Call("conv2d", args)
    yield "gelu", Call("conv2d", args, GELU)


# Calls of an Op, the likeliest first; a source is compiled for those that its `require` takes.
CALLS = {
    "softmax": softmax_calls, "attention": attention_calls, "layer_norm": norm_calls("layer_norm"), "rms_norm": norm_calls("rms_norm"),
    "matmul": matmul_calls, "linear": linear_calls, "conv2d": conv2d_calls,
}  # fmt: skip


@dataclass(frozen=True)
class Unit:
    name: str
    text: str
    flags: tuple[str, ...]


def plan_of(text: str) -> dict[str, object]:
    return json.loads(text[text.index("{") : text.index("*/")])


def op_json(path: Path) -> str:
    beside = path.parent.parent.parent / "op.json"
    return (beside if beside.exists() else ROOT / "kernels/ops" / f"{plan_of(path.read_text())['op']}.json").read_text()


def shipped_calls(path: Path) -> Iterator[tuple[str, Any]]:
    """What a Kernel that ships is for, by its pins."""
    for pin in (path.parent.parent / "pins").glob("*"):
        made = json.loads(pin.read_text())
        key = {**made["key"], "program": "*" if made["key"]["program"] == "*" else None}
        n = key["dims"].get("N")
        # A kernel of whole vectors may have a range that ends between two.
        even = [{**key, "dims": {**key["dims"], "N": {**n, "max": n["max"] // 8 * 8}}}] if isinstance(n, dict) and n["max"] // 8 * 8 >= n["min"] else []
        for trial in (t for k in (key, *even) for t in spread.timing_trials(k) if made["kernel"] == path.parent.name):
            yield "plain", SimpleNamespace(op=key["op"], case=lambda trial=trial: trial.case)


def tunables_of(path: Path) -> dict[str, int] | None:
    record = path.parent / "record.json"
    return json.loads(record.read_text())["tunables"] if record.exists() else None


def units(path: Path, arch: str, thorough: bool) -> list[Unit]:
    """Of the first dtype that the source takes, a plain call and one with a Program, for their size and (plain) for any, and
    for sm_80 the plain call for any size alone; thorough: of each dtype, each Program, for both."""
    text = path.read_text()
    plan = plan_of(text)
    assert plan["op"] in CALLS, f"{path.name} is for {plan['op']}: give this test calls of it"
    flags = tuple(nvrtc.FLAGS[f] for f in plan.get("flags", ()))
    found: dict[str, Unit] = {}
    for dtype in (torch.bfloat16, torch.float16, torch.float32):
        for what, call in (*CALLS[plan["op"]](dtype), *shipped_calls(path)):
            for any_size in (False, True):
                name = f"{what} {dtype}{' any size' if any_size else ''}"
                wanted = what == "plain" and any_size or arch != "sm_80" and (what == "plain" or what in ("alibi", "gelu") and not any_size)
                if name in found or not thorough and not wanted:
                    continue
                try:
                    unit = unit_of(text, call, tunables_of(path), any_size, arch.removesuffix("a"))
                except BadInput as e:
                    assert str(e).startswith("require"), e
                else:
                    found[name] = Unit(name, unit["unit"], flags)
        if found and not thorough:
            break
    return list(found.values())


def check(path: Path, arch: str, thorough: bool) -> None:
    least = _libkgen.candidate_check(op_json(path), path.read_bytes(), path.name)["min_arch"] or "sm_80"
    if int(re.sub(r"\D", "", least)) > ARCHES[arch]:
        pytest.skip(f"min_arch is {least}")
    built = units(path, arch, thorough)
    assert built, f"{path.name}: `require` takes none of this test's calls at its default tunables"
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        results = list(pool.map(lambda u: nvrtc.compile(u.text, arch, u.flags), built))
    for unit, got in zip(built, results):
        assert got.ok, f"{unit.name}: {got.log[:4000]}"
        assert got.cubin.startswith(b"\x7fELF")
        assert "warning" not in got.log, f"{unit.name}: {got.log[:4000]}"
        if os.environ.get("KGEN_SHOW_PTXAS"):
            print(f"{path.relative_to(ROOT)} {arch} {unit.name}: {' '.join(re.findall(r'Used [0-9]+ registers', got.log))}")
        if path.is_relative_to(ROOT / "kernels"):
            spills = re.findall(r"(\d+) bytes spill stores, (\d+) bytes spill loads", got.log)
            assert spills, f"ptxas said nothing about spills: {got.log}"
            assert not any(int(n) for pair in spills for n in pair), f"{unit.name} spills: {got.log}"


@pytest.mark.parametrize("arch", ARCHES)
@pytest.mark.parametrize("path", SOURCES, ids=[str(p.relative_to(ROOT)) for p in SOURCES])
def test_compiles(path: Path, arch: str) -> None:
    check(path, arch, thorough=False)


@slow
@pytest.mark.parametrize("path", SHIPPED, ids=[str(p.relative_to(ROOT)) for p in SHIPPED])
def test_what_ships_compiles_with_its_own_tunables(path: Path) -> None:
    """For any size, as it is served; one of its Cases."""
    folder = path.parent.parent.name
    arch = {"sm_90": "sm_90a"}.get(folder, folder)
    for _, call in shipped_calls(path):
        with contextlib.suppress(BadInput):
            unit = unit_of(path.read_text(), call, tunables_of(path), True, folder)["unit"]
            got = nvrtc.compile(unit, arch, tuple(nvrtc.FLAGS[f] for f in plan_of(path.read_text()).get("flags", ())))
            assert got.ok and got.cubin.startswith(b"\x7fELF"), got.log[:4000]
            return
    pytest.fail("its `require` takes none of the calls that its pins are for")


@slow
@pytest.mark.parametrize("arch", ARCHES)
@pytest.mark.parametrize("path", SOURCES, ids=[str(p.relative_to(ROOT)) for p in SOURCES])
def test_compiles_with_every_program(path: Path, arch: str) -> None:
    check(path, arch, thorough=True)


def test_a_source_that_does_not_compile_fails() -> None:
    text = SOURCES[0].read_text()
    assert not nvrtc.compile(text, "sm_80").ok, "it lacks kgen's macros"


def test_spills_are_seen() -> None:
    """The log really says when a kernel spills."""
    text = """extern "C" __global__ void __launch_bounds__(1024) k(float *x) {
        float v[128]; for (int i = 0; i < 128; i++) v[i] = x[i * 1024 + threadIdx.x];
        for (int r = 0; r < 64; r++)
        #pragma unroll
            for (int i = 0; i < 128; i++) v[i] = fmaf(v[(i + 37) % 128], v[i], 1.0f);
        for (int i = 0; i < 128; i++) x[i * 1024 + threadIdx.x] = v[i]; }"""
    got = nvrtc.compile(text, "sm_80")
    assert got.ok and re.search(r"[1-9]\d* bytes spill stores", got.log), got.log


@pytest.mark.parametrize("tool", ["nvdisasm", "cuobjdump"])
def test_machine_code_of_a_cubin(tool: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A loop whose loads and products are known is found in what the real disassembler says."""
    program = shutil.which(tool) or shutil.which(tool, path="/usr/local/cuda/bin")
    if program is None:
        pytest.skip(f"no {tool}: it comes with CUDA's toolkit")
    text = """extern "C" __global__ void dot(const float *x, float *y, int n) {
        float s = 0;
        #pragma unroll 1
        for (int i = threadIdx.x; i < n; i += 256)
            s += x[i] * x[i];
        y[threadIdx.x] = s;
    }"""
    done = nvrtc.compile(text, "sm_90a")
    assert done.ok, done.log
    monkeypatch.setenv("PATH", str(tmp_path))
    (tmp_path / tool).symlink_to(program)
    found = judge.image_listing(done.cubin)
    assert re.match(r"dot: \d+ instructions; innermost loops [0-9a-f]+\.\.[0-9a-f]+ \(\d+\)\n\nloop of dot:\n", found), found
    loop = found.partition("loop of dot:\n")[2]
    assert loop.count(" LDG") == 1 and loop.count(" FFMA") == 1 and " STG" not in loop and "BRA" in loop.splitlines()[-1]
    assert " STG" in judge.image_listing(done.cubin, whole=True)
