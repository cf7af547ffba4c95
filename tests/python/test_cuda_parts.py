"""What CUDA Cases are made of, in pieces that need no GPU: values drawn in parts, errors measured as libkgen measures
them, where sets are kept, which baselines there are, the gate's protocol, and what doctor says."""

from __future__ import annotations

import ctypes
import importlib
import json
import mmap
import math
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cuda_registry as cr
import pytest
import serving_registry as sr
import torch
from test_gate import promote, sets as gate_sets, softmax_case

import kgen
from kgen import (
    _libkgen,
    baselines,
    compare,
    cuda_packages,
    devices,
    distributions,
    doctor_cuda,
    gate,
    gate_child,
    gate_memory,
    gpumem,
    judge,
    oracle,
    program,
    reference,
    sets,
    ship,
    spread,
    targets,
    task,
)
from kgen.devices import CPU
from kgen.gate import Gate, GateError, GateSet, SeededSet

verify = importlib.import_module("kgen.verify")  # kgen.verify is the function

CUDA0 = torch.device("cuda", 0)
NORMAL = {"kind": "normal", "mean": 3.0, "std": 2.0}


# Values in parts


def drawn(distribution: str, shape: tuple[int, ...], dtype: torch.dtype = torch.float32, seed: int = 5, **fill: Any) -> torch.Tensor:
    g = devices.generator(CPU, seed)
    return reference._in_parts(fill or NORMAL, shape, dtype, g, distribution)


@pytest.fixture
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that a small tensor takes several parts, the last of them not whole."""
    monkeypatch.setattr(devices, "CHUNK", 1000)
    monkeypatch.setattr(devices.chunks, "__defaults__", (1000,))
    monkeypatch.setattr(oracle, "CHUNK", 1000)


def test_values_in_parts_follow_their_recipe(small_parts: None) -> None:
    x = drawn("captured", (7, 11, 300))
    assert x.shape == (7, 11, 300) and x.mean().item() == pytest.approx(3.0, abs=0.1) and x.std().item() == pytest.approx(2.0, abs=0.1)
    assert torch.equal(x, drawn("captured", (7, 11, 300))) and not torch.equal(x, drawn("captured", (7, 11, 300), seed=6))
    assert len(torch.unique(x)) > 0.99 * x.numel(), "parts must not repeat each other"
    u = drawn("captured", (23100,), kind="uniform", low=-2.0, high=5.0)
    assert -2 <= u.min() and u.max() <= 5 and u.mean().item() == pytest.approx(1.5, abs=0.1)
    i = drawn("captured", (5, 4000), torch.int64, kind="integers", low=-3, high=3)
    assert set(i.unique().tolist()) == set(range(-3, 4)) and i.dtype == torch.int64
    assert drawn("captured", (0, 4)).shape == (0, 4) and drawn("normal", ()).shape == ()
    assert drawn("normal", (2500,), torch.bfloat16).dtype == torch.bfloat16


@pytest.mark.parametrize("name", distributions.ALL)
def test_each_distribution_is_what_it_is_on_a_cpu(small_parts: None, name: str) -> None:
    in_parts = drawn(name, (40, 250))
    whole = distributions.floats(NORMAL, (40, 250), devices.generator(CPU, 7), name, torch.float32)
    if name == "onehot":
        assert torch.equal(in_parts.sum(-1), torch.ones(40)) and set(in_parts.unique().tolist()) == {0.0, 1.0}
        assert len(set(in_parts.argmax(-1).tolist())) > 20
        assert torch.equal(drawn(name, (2500, 1)), torch.ones(2500, 1))  # a row of one
        return
    if name in distributions.NONFINITE:
        assert torch.isnan(in_parts).any() and torch.isinf(in_parts).any()
        return
    if name == "masked":
        assert 0.2 < torch.isinf(in_parts).double().mean() < 0.7 and not torch.isinf(in_parts).all(-1).any()
        return
    if name == "extremes":
        assert in_parts.max() == torch.finfo(torch.float32).max and in_parts.min() == torch.finfo(torch.float32).min
        return
    for q in (0.1, 0.5, 0.9):
        a, b = in_parts.double().quantile(q).item(), whole.quantile(q).item()
        assert a == pytest.approx(b, rel=0.3, abs=0.1 * whole.quantile(0.9).abs().item())


@pytest.mark.parametrize("dim", [0, 1, 2, -1])
def test_the_oracle_in_parts_is_the_oracle(small_parts: None, monkeypatch: pytest.MonkeyPatch, dim: int) -> None:
    x = torch.randn(13, 17, 29).transpose(0, 1)
    monkeypatch.setattr(torch.Tensor, "is_cuda", property(lambda self: True))
    got = oracle.softmax(x, dim)
    monkeypatch.undo()
    torch.testing.assert_close(got, torch.softmax(x.double(), dim), rtol=1e-15, atol=0)
    assert got.dtype == torch.float64


@pytest.mark.parametrize("text", [None, "program 1\nscore\n%0 = cast float32 b\n%1 = add float32 score %0\nreturn %1\n", program.CAUSAL])
def test_attentions_oracle_one_of_a_batch_at_a_time(monkeypatch: pytest.MonkeyPatch, text: str | None) -> None:
    """With a Program that reads which one of the batch it is."""
    q, k, v = torch.randn(3, 4, 10, 8), torch.randn(3, 2, 12, 8), torch.randn(3, 2, 12, 5)
    want = oracle.wide_attention(q, k, v, [], [], text, scale=0.3, enable_gqa=True)
    monkeypatch.setattr(torch.Tensor, "is_cuda", property(lambda self: True))
    got = oracle.wide_attention(q, k, v, [], [], text, scale=0.3, enable_gqa=True)
    monkeypatch.undo()
    for a, b in zip(got, want, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-13, atol=1e-15)
        assert a.dtype == torch.float64


def test_finiteness_in_parts(small_parts: None, monkeypatch: pytest.MonkeyPatch) -> None:
    x = torch.zeros(3001)
    monkeypatch.setattr(torch.Tensor, "is_cuda", property(lambda self: True))
    assert devices.all_finite(x)
    for bad in (math.nan, math.inf, -math.inf):
        x[3000] = bad
        assert not devices.all_finite(x)


# Errors


def specials(n: int, dtype: torch.dtype) -> Iterator[tuple[str, torch.Tensor, torch.Tensor]]:
    """Outputs and oracles of every kind of agreement and disagreement."""
    g = torch.Generator().manual_seed(3)
    want = torch.randn(n, generator=g, dtype=torch.float64)
    near = (want * (1 + 1e-3 * torch.randn(n, generator=g, dtype=torch.float64))).to(dtype)
    yield "near", near, want
    yield "zeros", torch.zeros(n, dtype=dtype), torch.zeros(n, dtype=torch.float64)
    yield "off by one", torch.ones(n, dtype=dtype), torch.zeros(n, dtype=torch.float64)
    largest = torch.finfo(dtype).max
    values = [0.0, 1.0, -1.0, math.nan, math.inf, -math.inf, largest, -largest, 0.99 * largest, 2.0 * largest, -2.0 * largest]
    pairs = [(a, b) for a in values for b in values]
    out = near.clone()
    wide = want.clone()
    for i, (a, b) in enumerate(pairs):
        out[3 * i], wide[3 * i] = torch.tensor(a, dtype=torch.float64).to(dtype), b
    yield "special", out, wide


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64])
def test_errors_are_libkgens(small_parts: None, dtype: torch.dtype) -> None:
    for name, out, want in specials(3001, dtype):
        theirs, ours = judge.errors(out, want), compare.errors(out, want)
        assert ours[2] == theirs[2], name
        assert ours[0] == pytest.approx(theirs[0], rel=1e-9, nan_ok=True), name
        assert ours[1] == pytest.approx(theirs[1], rel=1e-9, nan_ok=True), name
        assert compare.scale_of(want) == want[torch.isfinite(want)].abs().max().item()


def test_errors_of_integers(small_parts: None) -> None:
    want = torch.arange(-2000, 2000)
    out = want.to(torch.int32)
    out[[3, 5, 3999]] += 7
    assert compare.errors(out, want)[2] == judge.errors(out, want)[2] == 3
    assert compare.errors(out, want)[:2] == pytest.approx(judge.errors(out, want)[:2], rel=1e-12)
    flags = torch.tensor([True, False] * 800)
    assert compare.errors(flags, flags.long()) == (0.0, 0.0, 0)
    assert compare.errors(torch.empty(0), torch.empty(0)) == (0.0, 0.0, 0)


# Where sets are kept


def test_sets_stay_while_there_is_room(monkeypatch: pytest.MonkeyPatch) -> None:
    moved: list[int] = []
    monkeypatch.setattr(torch.Tensor, "is_cuda", property(lambda self: True))
    monkeypatch.setattr(torch.Tensor, "cpu", lambda self: moved.append(self.numel()) or self)
    placing = sets.Placing(0, 0, room=1000)
    small, large = [torch.zeros(100), None], [torch.zeros(200), None]
    assert placing.put(small) is small and placing.room == 600
    placing.put(large)  # 800 bytes: no room
    assert moved == [200] and placing.room == 600
    assert placing.put(small) is small and moved == [200]


def test_a_task_of_8_gb_is_judged_within_20() -> None:
    """Softmax of 1 Gi fp32: 4 GiB in, 4 GiB out. The judge holds one input and two outputs, and parts of what is elsewhere."""
    gib = 1 << 30
    placing = sets.Placing(8 * gib, 4 * gib)
    one_set = (4 + 8) * gib  # the input, and the fp64 oracle
    judge_holds = (4 + 2 * 4) * gib + sets.STAGING
    assert placing.room + judge_holds <= 2 * 8 * gib + 4 * gib
    assert placing.room < one_set, "so the sets lie in host memory"
    assert sets.Placing(100 << 20, 50 << 20).room > 9 * (150 << 20), "all sets of a Task of 100 MB stay"


def test_how_many_sets_the_host_holds() -> None:
    assert sets.host_sets(12 << 30, free=128 << 30) == 5
    assert sets.host_sets(12 << 30, free=1 << 30) == sets.CAPTURED_SETS and sets.host_sets(1, free=100) == 50
    assert sets._host_free() > 1 << 20


def softmax_task() -> task.Task:
    trial = spread.softmax_trial("float32", 20, 30)
    return trial.task(json.loads(sr.contract("softmax")))


def test_sets_beyond_the_hosts_memory_are_named() -> None:
    made, dropped = softmax_task(), {}
    found = list(sets.each(made, reference.Reference.open(made), 0, dropped, most=3))
    assert [name for name, _, _ in found] == ["captured", "captured", "normal"]
    assert dropped and all("no room" in reason for name, reason in dropped.items() if name in ("uniform", "large"))


def test_a_set_that_is_not_kept_is_the_same_each_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sets, "GATE_HELD", 0)
    made = softmax_task()
    made.cases[0]["device"] = "cuda"  # on a GPU alone are sets drawn again
    ref = reference.Reference.open(made)
    monkeypatch.setattr(devices, "of_case", lambda case, index=0: CPU)
    one, size = sets._gate_set(made, ref, made.cases[0], 30)
    assert isinstance(one, SeededSet) and size == 20 * 30 * (4 + 8)
    assert one.args["input"].is_meta and one.oracles[0].is_meta and one.oracles[0].dtype == torch.float64
    (x,) = one.inputs()[0].values()
    assert torch.equal(x, one.inputs()[0]["input"]) and not x.is_meta
    torch.testing.assert_close(one.expected()[0], torch.softmax(x.double(), 1), rtol=1e-12, atol=0)


# Cases


def test_a_case_knows_its_device_and_class() -> None:
    trial = spread.softmax_trial("float32", 4, 8)
    assert not trial.gpu and trial.on("cuda").gpu and trial.on("cuda").case["device"] == "cuda" and not trial.gpu
    key = {"op": "softmax", "device": "cuda", "dtypes": ["float32"], "layout": ["c"], "dims": {"M": 4, "N": 8, "K": 1}, "precision": "tf32"}
    assert spread.exact_trial(key).case["device"] == "cuda" and spread.exact_trial(key).case["precision"] == "tf32"
    assert all(t.gpu for t in spread.range_trials({**key, "dims": {"M": 4, "N": {"min": 1, "max": 99}, "K": 1}}))
    data = targets.CaseData({"input": torch.randn(4, 8), "dim": 1})
    assert task.case_json("softmax", data, 0, "tf32")[0]["precision"] == "native", "a CPU has one class"


def test_a_task_with_an_odd_device(tmp_path: Path) -> None:
    folder = tmp_path / "t"
    (folder / "cases").mkdir(parents=True)
    meta = {"format": 1, "op": "softmax", "title": "", "mode": "eval", "cases": 1, "graph": None, "no_graph": "x", "share": 0.0,
            "flags": {}, "source": {}, "torch": "", "kgen": ""}  # fmt: skip
    (folder / "task.json").write_text(json.dumps(meta))
    (folder / "op.json").write_text(sr.contract("softmax"))
    (folder / "cases" / "0.json").write_text(json.dumps({**softmax_case(), "device": "tpu"}))
    with pytest.raises(kgen.errors.BadInput, match=r"cases/0.json: device is 'tpu', expected cpu or cuda"):
        task.read(folder)


def test_floors_take_the_fastest_unit_of_the_class() -> None:
    rates = {torch.float16: 900.0, torch.bfloat16: 800.0}
    gpu = targets.Machine(1e12, 60.0, rates)
    assert gpu.flops_of(torch.float32) == 300.0, "three float16 products"
    assert gpu.flops_of(torch.float16) == 900.0 and gpu.flops_of(torch.bfloat16) == 800.0
    assert gpu.flops_of(torch.float64) == math.inf
    cpu = targets.Machine(1e10, 50.0)
    assert cpu.flops_of(torch.float32) == 50.0 == cpu.flops_of(torch.bfloat16)


# Baselines


def names(case: dict[str, Any]) -> list[str]:
    return [b.name for b in baselines.of(case)]


def attention(text: str | None, sq: int = 8, sk: int = 8, device: str = "cuda") -> dict[str, Any]:
    at = spread.Sizes(1, 2, sq, 16, 2, sk, 16)
    made = spread.attention_trial("float32", at, (text, [], []) if text else None)
    return made.on(device).case


def test_baselines_on_cuda_are_every_way_of_torchs() -> None:
    compiled = ["torch.compile", "torch.compile max-autotune", "torch.compile max-autotune, CUDA graphs"]
    assert names({**softmax_case(), "device": "cuda"}) == ["eager", *compiled]
    backends = ["SDPA flash", "SDPA cudnn", "SDPA efficient", "SDPA math"]
    flex = ["FlexAttention", "FlexAttention max-autotune", "FlexAttention TRITON"]  # few queries: by itself another kernel
    for text in (None, program.CAUSAL):
        assert names(attention(text)) == ["eager", *compiled, *backends, *flex]
    assert names(softmax_case()) == ["eager", "torch.compile"]
    assert names(attention(None, device="cpu")) == ["eager", "torch.compile", "SDPA"]


@pytest.mark.parametrize("text", [None, *sorted(program.CAUSAL_TEXTS)])
def test_each_backend_is_chosen_and_gives_the_attention(text: str | None) -> None:
    """A CPU knows two of them; the others are chosen all the same, and say that they cannot."""
    case = attention(text)
    found = {b.name: b for b in baselines.of(case)}
    q, k, v = (torch.randn(1, 2, 8, 16) for _ in range(3))
    x = baselines.Inputs({"query": q, "key": k, "value": v})
    want = torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=text is not None)
    switches = {
        "flash": torch.backends.cuda.flash_sdp_enabled, "cudnn": torch.backends.cuda.cudnn_sdp_enabled,
        "efficient": torch.backends.cuda.mem_efficient_sdp_enabled, "math": torch.backends.cuda.math_sdp_enabled,
    }  # fmt: skip
    try:
        for name in switches:
            call = found[f"SDPA {name}"].build()
            if name in ("flash", "math"):
                torch.testing.assert_close(call(x)[0], want)
            else:
                with pytest.raises(RuntimeError, match="No viable backend"):
                    call(x)
            assert [n for n, on in switches.items() if on()] == [name]
        assert "bias" not in x.memo, "a causal mask is a flag, not a matrix"
    finally:
        baselines._use_backend(None)
    assert all(on() for on in switches.values())


def test_a_causal_mask_of_unequal_lengths_is_a_matrix() -> None:
    """SDPA's own flag is for a square; where it is not one, a mask says the same for every backend."""
    case = attention(program.CAUSAL, sq=4, sk=8)
    q, k, v = torch.randn(1, 2, 4, 16), torch.randn(1, 2, 8, 16), torch.randn(1, 2, 8, 16)
    x = baselines.Inputs({"query": q, "key": k, "value": v})
    try:
        (got,) = next(b for b in baselines.of(case) if b.name == "SDPA math").build()(x)
    finally:
        baselines._use_backend(None)
    mask = torch.arange(4)[:, None] >= torch.arange(8)[None, :]
    torch.testing.assert_close(got, torch.nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=mask))


def test_a_score_matrix_too_large_leaves_its_baselines_out() -> None:
    case = attention(None, sq=1 << 16, sk=1 << 16)
    case["args"]["query"]["shape"][1] = 16
    for name in ("eager", "torch.compile", "torch.compile max-autotune", "SDPA math"):
        with pytest.raises(ValueError, match="its score matrix needs 256 GiB"):
            next(b for b in baselines.of(case) if b.name == name).build()
    next(b for b in baselines.of(case) if b.name == "SDPA flash").build()


# Memory that two processes share


def test_structures_are_the_drivers() -> None:
    assert ctypes.sizeof(gpumem._Properties) == 32 and ctypes.sizeof(gpumem._Access) == 12
    p = gpumem._properties(3)
    assert bytes(p)[:16] == b"".join(n.to_bytes(4, "little") for n in (1, 1, 1, 3))
    assert gpumem.rounded(1, 2 << 20) == gpumem.rounded(0, 2 << 20) == 2 << 20
    assert gpumem.rounded((2 << 20) + 1, 2 << 20) == 4 << 20


def test_a_machine_without_a_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(name: str) -> None:
        raise OSError(f"{name}: cannot open shared object file")

    monkeypatch.setattr(gpumem._driver, "cache_clear", gpumem._driver.cache_clear)
    gpumem._driver.cache_clear()
    monkeypatch.setattr(ctypes, "CDLL", refuse)
    with pytest.raises(kgen.errors.EnvironmentLacks, match="libcuda.so.1 cannot be loaded .*: install NVIDIA's driver"):
        gpumem._driver()


# Where torch has no CUDA, its part is played by the stand-in for the driver: device memory is host memory there.
SHARED = """
import contextlib, ctypes, sys
import torch
from kgen import gpumem

driver, context = gpumem._driver(), ctypes.c_void_p()
assert driver.cuInit(0) == 0 and driver.cuDevicePrimaryCtxRetain(ctypes.byref(context), 0) == 0
assert driver.cuCtxSetCurrent(context) == 0
torch.cuda.init = lambda: None
torch.cuda.device = lambda index: contextlib.nullcontext()
torch.cuda.synchronize = lambda index: None
torch.cuda.current_stream = lambda: type("S", (), {"synchronize": lambda self: None})()
def as_tensor(x, device):
    about = x.__cuda_array_interface__
    return torch.frombuffer((ctypes.c_ubyte * about["shape"][0]).from_address(about["data"][0]), dtype=torch.uint8)
torch.as_tensor = as_tensor
"""
MAKER = SHARED + """
import subprocess
s = gpumem.Shared(0, 3 << 20)
assert s.size == 4 << 20 and not s.bytes.any()
s.bytes[:8] = torch.arange(8, dtype=torch.uint8)
fd = s.export()
done = subprocess.run([sys.executable, "-c", sys.argv[1], str(fd)], pass_fds=(fd,))
assert done.returncode == 0 and s.bytes[:8].tolist() == [3 * i for i in range(8)]
s.close()
s.close()
try:
    gpumem.Shared(0, 1 << 40)
except torch.OutOfMemoryError as e:
    print("SAID", e)
"""
OPENER = SHARED + """
s = gpumem.Shared(0, 3 << 20, int(sys.argv[1]))
assert s.size == 4 << 20 and s.bytes[:8].tolist() == list(range(8))
s.bytes[:8] *= 3
try:
    gpumem.Shared(0, 3 << 20, 0)
except Exception as e:
    assert "cuMem" in str(e), e
else:
    raise AssertionError("a descriptor of something else was taken")
"""


def test_two_processes_share_an_allocation(build_dir: Path) -> None:
    fake = build_dir / "libkgen_fakecuda.so"
    if not fake.is_file():
        pytest.skip(f"needs {fake}, which the build makes with its tests")
    env = {**os.environ, "KGEN_LIBCUDA": str(fake), "KGEN_FAKE_CUDA": "memory=64"}
    done = subprocess.run([sys.executable, "-c", MAKER, OPENER], env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "SAID CUDA out of memory: cuMemCreate: " in done.stdout and "(2)" in done.stdout, done.stdout


def test_the_driver_as_doctor_sees_it(build_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake = build_dir / "libkgen_fakecuda.so"
    if not fake.is_file():
        pytest.skip(f"needs {fake}, which the build makes with its tests")
    code = "from kgen import cuda_packages as c; d = c.driver(); print(d.cuda, [(g.arch, g.memory) for g in d.gpus])"
    env = {**os.environ, "KGEN_LIBCUDA": str(fake), "KGEN_FAKE_CUDA": "devices=2,arch=89,driver=12040,memory=64"}
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "(12, 4) [('sm_89', 67108864), ('sm_89', 67108864)]", done.stderr


def test_expanded_tensors_travel() -> None:
    memory = gate_memory.Memory(CPU)
    x = torch.randn(3, 1).expand(3, 5)
    spec = memory.place(x)
    y = memory.place(torch.empty(7, 2, device="meta", dtype=torch.int32))
    memory.make()
    try:
        gate_memory.put(memory.view(spec), x)
        assert torch.equal(memory.view(spec), x) and spec["bytes"] == 12
        assert memory.view(y).shape == (7, 2) and memory.view(y).dtype == torch.int32
    finally:
        memory.close()
        memory.close()


# The gate's protocol on a GPU, with a CPU in its place: memory, events and flushes are replaced, nothing else.


class HostShared:
    """gpumem.Shared over a memfd."""

    def __init__(self, index: int, size: int, descriptor: int | None = None):
        assert index == 1
        self.size = gpumem.rounded(size, 4096)
        self.fd = descriptor if descriptor is not None else os.memfd_create("fake", 0)
        if descriptor is None:
            os.ftruncate(self.fd, self.size)
        self.bytes = torch.frombuffer(mmap.mmap(self.fd, self.size), dtype=torch.uint8)

    def export(self) -> int:
        return os.dup(self.fd)

    def close(self) -> None:
        os.close(self.fd)


class ClockEvents:
    """devices.Events by the clock. skew: what every interval is multiplied with."""

    skew = 1.0

    def begin(self) -> None:
        self.start = time.perf_counter_ns()

    def end(self) -> None:
        self.stop = time.perf_counter_ns()

    def ns(self) -> float:
        return (self.stop - self.start) * ClockEvents.skew


class Cache:
    flushed = 0

    def __init__(self, device: torch.device):
        assert device == torch.device("cuda", 1)

    def flush(self) -> None:
        Cache.flushed += 1


class InProcess:
    """gate._Child without a process."""

    def __init__(self, job: dict[str, Any], memory: int, registry: Path, cache: Path | None):
        kgen.load(registry)
        self.registry, self.ready, self.locked = registry, set(), False
        self.child = gate_child.Child(json.loads(json.dumps({**job, "memory": os.dup(memory)})), -1)
        self.child.armed = True  # or this process would be locked
        self.contenders = self.child.names_of_contenders()
        self.fails: list[dict[str, Any]] = []

    def send(self, message: dict[str, Any], seconds: float) -> dict[str, Any]:
        if self.fails:
            return self.fails.pop()
        return json.loads(json.dumps(self.child.answer(message)))

    def close(self) -> None:
        kgen.unload(self.registry)


@pytest.fixture
def pretended(nothing_shipped: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[tuple[Gate, str]]:
    """A right Kernel at the gate of a CUDA Case."""
    monkeypatch.setattr(gate_memory, "Shared", HostShared)
    monkeypatch.setattr(devices, "Events", ClockEvents)
    monkeypatch.setattr(devices, "ColdCache", Cache)
    monkeypatch.setattr(devices, "synchronize", lambda device: None)
    monkeypatch.setattr(devices, "release", lambda device: None)
    for name in ("synchronize", "set_device", "empty_cache"):
        monkeypatch.setattr(torch.cuda, name, lambda *a: None)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda *a: "pretended")
    monkeypatch.setattr(gate, "_Child", InProcess)
    monkeypatch.setattr(baselines, "COMPILED", {})
    monkeypatch.setattr(ClockEvents, "skew", 1.0)
    id_ = promote(tmp_path / "generated", sr.SOFTMAX)
    case = {**softmax_case(), "device": "cuda"}
    with Gate(case, ["input"], gate_sets(), tmp_path / "generated", index=1) as g:
        yield g, id_


def test_a_cuda_case_at_the_gate(pretended: tuple[Gate, str], monkeypatch: pytest.MonkeyPatch) -> None:
    g, id_ = pretended
    assert g.gpu and g.job["device"] == "cuda" and g.job["index"] == 1
    assert all(s.args == {} for s in g.sets), "the inputs are where the other process sees them, and nowhere else"
    monkeypatch.setattr(gate, "AGREE", 0.5)  # the machine is not quiet
    Cache.flushed = 0
    result = gate.run(g, id_, min_speedup=0.001, seconds=2.0)
    assert result.passed and result.baseline == "eager" and result.arithmetic == "TF32 off", result
    assert Cache.flushed > 100, "each call finds a cold cache"
    assert result.json()["arithmetic"] == "TF32 off"
    assert gate.GateResult.read(json.loads(json.dumps(result.json())), 0.001) == result


def test_events_that_disagree_with_the_clock_are_no_number(pretended: tuple[Gate, str], monkeypatch: pytest.MonkeyPatch) -> None:
    g, _ = pretended
    assert g.prepare(1) == "" and g.prepare(0) == ""
    monkeypatch.setattr(ClockEvents, "skew", 0.9)
    assert g.batch(1, 0, 200) > 0  # torch's own is not left out for a tenth
    monkeypatch.setattr(ClockEvents, "skew", 0.4)
    with pytest.raises(GateError, match=r"the events of a batch and the clock are \d+% apart, 5 times in a row: something else uses cuda:1"):
        g.batch(0, 0, 200)


def test_a_lost_context_costs_the_process(pretended: tuple[Gate, str]) -> None:
    g, _ = pretended
    assert g.prepare(1) == ""
    lost = g.child
    lost.fails.append({"error": "AcceleratorError: CUDA error: an illegal memory access was encountered", "lost": True})
    with pytest.raises(GateError, match="illegal memory access"):
        g.ask("run", 1, 0, 1)
    assert g.child is None
    g.ask("run", 1, 0, 1)  # in a new process, built again
    assert g.check(1, 0) == "" and g.child is not lost


def test_a_wrong_set_is_caught_on_the_device(tmp_path: Path) -> None:
    x = torch.randn(4, 4)
    one = GateSet({"input": x}, (), (torch.softmax(x.double(), 1),), (torch.float32,), ((1e-6, 4e-6),))
    assert one.expected() is one.oracles and one.inputs() == (one.args, one.captured)


# doctor
GPU = cuda_packages.Gpu(0, "NVIDIA H200", "sm_90", 141 << 30)
DRIVER = cuda_packages.Driver("580.65", (13, 0), (GPU,))
NVRTC = cuda_packages.Nvrtc("/x/libnvrtc.so.13", (13, 0), "/x/include")


def doctor(monkeypatch: pytest.MonkeyPatch, driver: Any, nvrtc: Any) -> dict[str, Any]:
    monkeypatch.setattr(cuda_packages, "driver", lambda: driver)
    monkeypatch.setattr(cuda_packages, "nvrtc", lambda: nvrtc)
    monkeypatch.setattr(doctor_cuda, "_free", lambda gpu: "140.0 GiB of 141.0 GiB free")
    monkeypatch.setattr(doctor_cuda, "compile_times", lambda arch: (0.052, 0.0001))
    monkeypatch.setenv("KGEN_SANITIZER", "/x/bin/compute-sanitizer")
    monkeypatch.setenv("KGEN_NCU", "/x/bin/ncu")
    return {f.name: f for f in doctor_cuda.findings()}


def test_doctor_on_a_machine_with_everything(monkeypatch: pytest.MonkeyPatch) -> None:
    found = doctor(monkeypatch, DRIVER, NVRTC)
    assert list(found) == ["CUDA driver", "cuda:0", "torch's CUDA", "NVRTC", "CUDA headers", "compute-sanitizer", "ncu", "CUDA compile"]
    assert found["CUDA driver"].found == "580.65, runs CUDA 13.0" and found["CUDA driver"].ok
    assert found["cuda:0"].found == "NVIDIA H200, sm_90, 140.0 GiB of 141.0 GiB free"
    assert found["NVRTC"].found == "13.0, /x/libnvrtc.so.13" and found["CUDA headers"].found == "/x/include"
    assert found["CUDA compile"].found == "52 ms cold, 0.10 ms from the cache (sm_90)"
    assert not any(f.needed for f in found.values()), "without any of it kgen works on the CPU"


@pytest.mark.parametrize(
    ("driver", "nvrtc", "name", "todo"),
    [
        (None, NVRTC, "CUDA driver", "install NVIDIA's driver"),
        (cuda_packages.Driver("580", (13, 0), (), "cuInit: CUDA_ERROR_NO_DEVICE (100)"), NVRTC, "CUDA driver", "nvidia-smi"),
        (cuda_packages.Driver("580", (13, 0), ()), NVRTC, "CUDA driver", "CUDA_VISIBLE_DEVICES"),
        (DRIVER, None, "NVRTC", "pip install nvidia-cuda-nvrtc, or name one with KGEN_NVRTC"),
        (cuda_packages.Driver("550", (12, 4), (GPU,)), None, "NVRTC", "pip install nvidia-cuda-nvrtc-cu12"),
        (cuda_packages.Driver("550", (12, 4), (GPU,)), NVRTC, "NVRTC", "the driver runs CUDA 12.4: a newer driver, or pip install"),
        (DRIVER, cuda_packages.Nvrtc("/x", (13, 0), None), "CUDA headers", "kgen's own substitutes serve"),
        (cuda_packages.Driver("580", (13, 0), (cuda_packages.Gpu(0, "T4", "sm_75", 1),)), NVRTC, "cuda:0", "sm_80 or newer"),
    ],
)
def test_doctor_says_what_to_do(monkeypatch: pytest.MonkeyPatch, driver: Any, nvrtc: Any, name: str, todo: str) -> None:
    finding = doctor(monkeypatch, driver, nvrtc)[name]
    assert not finding.ok and todo in finding.todo, finding


def test_a_compile_that_fails_is_a_finding(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(arch: str) -> None:
        raise kgen.errors.EnvironmentLacks("no NVRTC")

    monkeypatch.setattr(doctor_cuda, "compile_times", fail)
    finding = doctor_cuda._compile("sm_90")
    assert not finding.ok and finding.found == "no NVRTC"


def test_an_image_for_a_gpu_that_is_not_here(fresh_home: Path) -> None:
    if cuda_packages.nvrtc() is None:
        pytest.skip("needs NVRTC (pip install nvidia-cuda-nvrtc)")
    cold, warm = doctor_cuda.compile_times("sm_90a")
    assert 0 < warm < cold
    trial = spread.softmax_trial("float32", 4, 64)
    contract = sr.contract("softmax")
    for arch in ("sm_80", "sm_90"):
        made = _libkgen.build_image(contract, trial.on("cuda").case, cr.SOFTMAX.encode(), {}, arch, True)
        assert not made["cached"] and Path(made["path"]).is_file()
        assert _libkgen.build_image(contract, trial.on("cuda").case, cr.SOFTMAX.encode(), {}, arch, True)["cached"]
    with pytest.raises(kgen.errors.KgenError, match="the plan's target is cuda, and x86-64-v3 is of cpu"):
        _libkgen.build_image(contract, trial.on("cuda").case, cr.SOFTMAX.encode(), {}, "x86-64-v3", True)
    with pytest.raises(kgen.errors.KgenError, match="sm_x is no architecture that images are built for"):
        _libkgen.build_image(contract, trial.on("cuda").case, cr.SOFTMAX.encode(), {}, "sm_x", True)
    with pytest.raises(kgen.errors.KgenError, match="sm_75|sm_80"):
        _libkgen.build_image(contract, trial.on("cuda").case, cr.SOFTMAX.encode(), {}, "sm_75", True)


def test_kgen_build_for_a_gpu(fresh_home: Path, tmp_path: Path) -> None:
    """For the machine that serves: an older architecture's Kernels are built for the newer GPU."""
    key = {**sr.softmax_key(), "device": "cuda"}
    for arch in ("sm_80", "sm_90"):
        source = cr.SOFTMAX.replace("FACTOR 1.0f", f"FACTOR 1.0f /* {arch} */")
        sr.promote(tmp_path / "g", "softmax", source, [key], arch=arch, device="a GPU")
    sr.promote(tmp_path / "g", "softmax", sr.SOFTMAX, [sr.softmax_key()])
    for machine, built_for in (("sm_90a", {"sm_80": "sm_90", "sm_90": "sm_90"}), ("sm_86", {"sm_80": "sm_86"}), ("x86-64-v3", {})):
        assert {a: b for a in ("sm_80", "sm_90") if (b := verify.built_for(a, machine))} == built_for
    for bad in ("sm_75", "sm_9x", "sm_", "gfx90"):
        with pytest.raises(kgen.errors.BadInput, match="architecture"):
            list(verify.build(bad, registry=tmp_path / "g"))
    if cuda_packages.nvrtc() is None:
        pytest.skip("the rest needs NVRTC (pip install nvidia-cuda-nvrtc)")
    for machine, count in (("sm_90", 2), ("sm_80", 1)):
        rows = list(verify.build(machine, registry=tmp_path / "g"))
        assert [r.state for r in rows] == ["built"] * count, rows
        assert all(r.state == "there" for r in verify.build(machine, registry=tmp_path / "g"))


def test_nvrtc_is_looked_for_beside_torch_and_where_it_was_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert cuda_packages.folders()[0] == str(Path(torch.__file__).resolve().parent.parent)
    for folder in ("site/nvidia/cu13/lib", "cuda/lib64"):
        (tmp_path / folder).mkdir(parents=True)
        (tmp_path / folder / "libnvrtc.so.13").touch()
    monkeypatch.setattr(cuda_packages, "folders", lambda: [str(tmp_path / "site")])
    monkeypatch.setenv("CUDA_HOME", str(tmp_path / "cuda"))
    monkeypatch.delenv("KGEN_NVRTC", raising=False)
    found = [str(p) for p in cuda_packages._nvrtc_files()]
    assert found[:2] == [str(tmp_path / "site/nvidia/cu13/lib/libnvrtc.so.13"), str(tmp_path / "cuda/lib64/libnvrtc.so.13")]
    monkeypatch.setenv("KGEN_NVRTC", str(tmp_path / "cuda/lib64"))
    assert [str(p) for p in cuda_packages._nvrtc_files()] == [str(tmp_path / "cuda/lib64/libnvrtc.so.13")]
    monkeypatch.setenv("KGEN_NVRTC", "/nowhere/libnvrtc.so.13")
    assert cuda_packages.nvrtc() is None


# The judge from Python on the stand-in for the driver: its options, host tensors as sets, Records and a search; kernels are
# C functions of the same name (tests/fake_kernels).
JUDGED = """
import json, sys
import torch
from pathlib import Path
import kgen.judge as judging
from kgen import _libkgen, devices, reference, sets, spread
from kgen.judge import Judge

torch.cuda.init = lambda: None
devices.of_case = lambda case, index=0: devices.CPU
judging.synchronize = lambda device: None
SOURCE = '''/* kgen
{ "format": 1, "op": "softmax", "target": "cuda", "tunables": {"WAY": [0, 1]},
  "launches": [{"kernel": "%s", "grid": ["M"], "block": [128], "args": ["input", "output", {"i32": "M"}, {"i32": "N"}]}] }
*/
extern "C" __global__ void %s(const float *x, float *y, int m, int n) { y[blockIdx.x * n + threadIdx.x] = x[m] + WAY; }
'''
contract, folder = Path(sys.argv[1]).read_text(), Path(sys.argv[2])
trial = spread.softmax_trial("float32", 64, 100).on("cuda")
made = trial.task(json.loads(contract))

def opened(index):
    judge = Judge(contract, device=torch.device("cuda", index), timeout_ms=20000)
    assert all(sets.fill(judge, made, reference.Reference.open(made), 0).values())
    return judge

with opened(0) as judge, opened(1) as other:
    for name in ("right", "wrong", "short_by_a_row", "past_the_end"):
        record = judge.run(SOURCE % (name, name), name=f"{name}.cu")
        print(name, record["verdict"], record["environment"]["device"], record["arch"])
    files = []
    for name in ("right", "wrong"):
        files.append(folder / f"{name}.cu")
        files[-1].write_text(SOURCE % (name, name))
    options = {"budget_ms": 20000, "files": [str(f) for f in files]}
    found = _libkgen.search([judge.handle, other.handle], folder / "run", options, lambda entry: None)
    print("search", [(w["source"], w["record"]["verdict"]) for w in found["winners"]], sorted(found["verdicts"]))
"""


@pytest.mark.slow
def test_the_judge_from_python_on_the_stand_in(build_dir: Path, tmp_path: Path, root: Path) -> None:
    fake = build_dir / "libkgen_fakecuda.so"
    if not fake.is_file() or cuda_packages.nvrtc() is None:
        pytest.skip(f"needs {fake} and NVRTC (pip install nvidia-cuda-nvrtc)")
    settings = f"devices=2,arch=90,kernels={build_dir / 'libkgen_fakekernels.so'}"
    env = {**os.environ, "KGEN_LIBCUDA": str(fake), "KGEN_FAKE_CUDA": settings}
    argv = [sys.executable, "-c", JUDGED, str(root / "kernels/ops/softmax.json"), str(tmp_path)]
    done = subprocess.run(argv, env=env, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[:4] == [
        "right pass Fake GPU 0 sm_90", "wrong wrong_values Fake GPU 0 sm_90", "short_by_a_row not_all_written Fake GPU 0 sm_90",
        "past_the_end out_of_bounds Fake GPU 0 sm_90",
    ], done.stdout  # fmt: skip
    assert "right.cu" in lines[4] and "wrong_values" in lines[4], done.stdout


# The shipped registry


def fits(house: ship.House, dtype: str) -> None:
    """Its plan, with its tunables, is for enough of its sizes and for the one that is timed, on the GPUs that it is for."""
    contract = ship.canonical_contract(house.op).decode()
    source = (ship.kernels_dir() / house.file).read_bytes()
    defaults = _libkgen.candidate_check(contract, source, house.file)
    values = {**defaults["tunables"], **(house.tunables or {})}
    for arch, sms, shared in (("sm_80", 108, 166912), ("sm_90", 132, 232448)):
        if not ship._is_for(defaults["min_arch"], arch):
            continue

        def bound(trial: spread.Trial) -> str:
            try:
                _libkgen.candidate_unit(contract, trial.case, source, values, arch, sms, shared, True)
            except kgen.errors.BadInput as e:
                return str(e)
            return ""

        assert bound(house.timed_trial(dtype)) == "", house.name
        assert sum(bound(t) == "" for t in house.dense(dtype)) >= 6, house.name


@pytest.mark.slow
def test_kernels_to_ship_for_gpus() -> None:
    for house in ship.GPU_HOUSE:
        assert house.device == "cuda" and all(t.gpu for t in house.dense(house.dtypes[0])) and house.timed_trial(house.dtypes[0]).gpu
        if house.op == "attention":
            head = (house.tunables or {}).get("HEAD")
            at = house.sizes()
            assert len(at) >= 6 and (head is None or {max(s.d, s.dv) for s in at} <= set(range(head // 2 + 1 if head > 64 else 1, head + 1)))
        if house.program_at is not None:
            made = house.with_programs(house.dtypes[0], 8)
            assert all(t.gpu for t in made) and sum("random" in t.label for t in made) in (3, 4, 8)
        for dtype in house.dtypes:
            fits(house, dtype)
    names_ = [h.name for h in ship.GPU_HOUSE]
    assert len(set(names_)) == len(names_) and "softmax/rows.cu ROW_THREADS=256 ROWS=1 VECS=4" in names_
    assert max(n for house in ship.GPU_HOUSE if house.op == "softmax" for _, n, _ in house.sizes()) >= 1 << 20
    assert all(h.device == "cpu" for h in ship.HOUSE)


def test_what_a_gpu_can_judge(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices, "check", lambda d, option="": d)
    monkeypatch.setattr(devices, "arch", lambda d: "sm_89")
    monkeypatch.setattr(devices, "name_of", lambda d: str(d))
    assert ship.gpu_for("sm_80", "cuda:0") == CUDA0
    with pytest.raises(kgen.errors.BadInput, match="--arch sm_90: needs a GPU that is at least that; --device is cuda:0, sm_89"):
        ship.gpu_for("sm_90", "cuda:0")
    with pytest.raises(kgen.errors.BadInput, match="--device is cpu"):
        ship.gpu_for("sm_80", "cpu")
    assert ship._is_for(None, "sm_80") and ship._is_for("sm_80", "sm_90") and not ship._is_for("sm_90", "sm_80")
