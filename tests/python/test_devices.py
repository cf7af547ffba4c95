"""Which device a model is tuned on, and what is said when one will not do; on any machine, with torch.cuda replaced."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch
from kgen_command import Server
from torch import nn

from kgen import capture, devices
from kgen.devices import CPU
from kgen.errors import BadInput, EnvironmentLacks

CUDA0, CUDA1 = torch.device("cuda", 0), torch.device("cuda", 1)
FIRST_GPU = devices.first_gpu  # conftest replaces it for tests that are about the CPU


class Machine:
    """What torch.cuda says of a machine with these GPUs."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *arches: tuple[int, int]):
        self.arches = arches
        monkeypatch.setattr(torch.version, "cuda", "13.0")
        monkeypatch.setattr(devices, "first_gpu", FIRST_GPU)
        for name, value in {
            "is_available": lambda: bool(arches),
            "device_count": lambda: len(arches),
            "get_device_capability": lambda d: arches[d if isinstance(d, int) else d.index],
            "get_device_name": lambda d: f"GPU of sm_{''.join(map(str, arches[d if isinstance(d, int) else d.index]))}",
            "init": self.init,
        }.items():
            monkeypatch.setattr(torch.cuda, name, value)

    def init(self) -> None:
        raise RuntimeError("Found no NVIDIA driver on your system.\nMore advice.")


# Names


@pytest.mark.parametrize(("text", "device"), [("cpu", CPU), ("cuda", CUDA0), ("cuda:0", CUDA0), ("cuda:1", CUDA1)])
def test_names(text: str, device: torch.device) -> None:
    assert devices.parse(text) == device and devices.parse(text).index == device.index


@pytest.mark.parametrize("text", ["", "gpu", "cuda:", "cuda:-1", "cuda:1,2", "cuda,", "CUDA", "cuda:99999", " cuda", "mps", "cpu:0"])
def test_what_is_no_name(text: str) -> None:
    with pytest.raises(BadInput, match="give cpu, cuda or cuda:N"):
        devices.parse(text)


def test_several_gpus_judge_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    assert devices.parse_several("cuda:1,cuda:0") == [CUDA1, CUDA0] and devices.parse_several("cpu") == [CPU]
    for wrong in ("cuda,cpu", "cuda,cuda:0", "cpu,cpu"):
        with pytest.raises(BadInput, match="several are GPUs, each named once, as in cuda:0,cuda:1"):
            devices.parse_several(wrong)
    with pytest.raises(BadInput, match="give cpu, cuda or cuda:N"):
        devices.parse_several("cuda:0,")
    Machine(monkeypatch, (9, 0), (9, 0))
    assert devices.check_several([CUDA1, CUDA0]) == [CUDA1, CUDA0] and devices.choose("cuda:1,cuda:0", {CPU}, True) == CUDA1
    Machine(monkeypatch, (9, 0), (8, 0))
    with pytest.raises(BadInput, match="of one architecture, and cuda:0 is sm_90, cuda:1 is sm_80"):
        devices.check_several([CUDA0, CUDA1])


# Whether it will do


def test_a_gpu_that_will_do(monkeypatch: pytest.MonkeyPatch) -> None:
    Machine(monkeypatch, (9, 0), (8, 0))
    assert devices.check(CUDA1) == CUDA1 and devices.check(CPU) == CPU and devices.arch(CUDA0) == "sm_90"
    assert devices.name_of(CUDA0) == "cuda:0 (GPU of sm_90)" and devices.name_of(CPU) == "cpu"


def test_a_torch_without_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.version, "cuda", None)
    with pytest.raises(EnvironmentLacks, match=r"--device cuda:0: this torch \(.*\) is built without CUDA: install one"):
        devices.check(CUDA0)
    assert FIRST_GPU() is None


def test_no_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    Machine(monkeypatch)
    with pytest.raises(EnvironmentLacks) as e:
        devices.check(CUDA0)
    assert "torch sees no GPU (Found no NVIDIA driver on your system.); `kgen doctor` tells" in str(e.value)
    assert "\n" not in str(e.value)


def test_an_index_too_high(monkeypatch: pytest.MonkeyPatch) -> None:
    Machine(monkeypatch, (9, 0))
    with pytest.raises(BadInput, match="--device cuda:1: there is no such GPU; torch sees cuda:0$"):
        devices.check(CUDA1)
    Machine(monkeypatch, (9, 0), (9, 0))
    with pytest.raises(BadInput, match="torch sees cuda:0 to cuda:1$"):
        devices.check(torch.device("cuda", 2))


def test_a_gpu_that_is_too_old(monkeypatch: pytest.MonkeyPatch) -> None:
    Machine(monkeypatch, (7, 5), (8, 6))
    with pytest.raises(EnvironmentLacks, match="cuda:0: GPU of sm_75 is sm_75, and kgen needs sm_80 or newer; tune with --device cpu"):
        devices.check(CUDA0)
    assert devices.first_gpu() == CUDA1


# The rule


@pytest.mark.parametrize(
    ("asked", "where", "portable", "found"),
    [
        (None, {CPU}, True, CUDA0),  # a KernelBench-style file, and a GPU
        (None, {CPU}, False, CPU),  # a script put its model on the CPU
        (None, {CUDA1}, False, CUDA1),  # a live module stays where it is
        (None, {CUDA1, CPU}, False, CUDA1),  # a captured table on the CPU beside a model on a GPU
        (None, set(), True, CUDA0),
        (None, set(), False, CPU),
        ("cpu", {CPU}, True, CPU),
        ("cpu", {CUDA0}, False, CPU),
        ("cuda:1", {CPU}, False, CUDA1),
        ("cuda", {CUDA1}, True, CUDA0),
    ],
)
def test_choice(
    monkeypatch: pytest.MonkeyPatch, asked: str | None, where: set[torch.device], portable: bool, found: torch.device
) -> None:
    Machine(monkeypatch, (9, 0), (9, 0))
    assert devices.choose(asked, where, portable) == found


def test_choice_without_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    Machine(monkeypatch)
    assert devices.choose(None, {CPU}, True) == CPU
    with pytest.raises(EnvironmentLacks):
        devices.choose("cuda", {CPU}, True)


def test_a_model_on_two_gpus_is_not_guessed_about(monkeypatch: pytest.MonkeyPatch) -> None:
    Machine(monkeypatch, (9, 0), (9, 0))
    with pytest.raises(BadInput, match="the model's tensors are on cuda:0 and cuda:1: put it on one, or give --device"):
        devices.choose(None, {CUDA0, CUDA1}, True)
    assert devices.choose("cuda:1", {CUDA0, CUDA1}, True) == CUDA1


def test_a_model_elsewhere() -> None:
    with pytest.raises(BadInput, match="the model's device meta: kgen works on cpu and cuda"):
        devices.choose(None, {torch.device("meta")}, False)


def test_where_a_model_is(tmp_path: Path) -> None:
    path = tmp_path / "m.py"
    path.write_text(
        "import torch\nfrom torch import nn\nclass Model(nn.Module):\n    def forward(self, x):\n        return x.softmax(-1)\n"
        "def get_inputs():\n    return [torch.randn(2, 3)]\nnet = Model()\nbatch = (torch.randn(2, 3),)\n"
    )
    whole = capture.load(str(path))
    assert whole.portable and whole.devices == {CPU}
    named = capture.load(str(path), module="net", inputs="batch")
    assert not named.portable and named.devices == {CPU}
    assert not capture.from_live(nn.Linear(2, 2), torch.randn(1, 2)).portable


def test_what_moves() -> None:
    """Parameters, buffers, inputs, and tables kept as plain attributes; the meta device stands for another one."""

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(3, 3)
            self.register_buffer("scale", torch.ones(3))
            self.table = torch.arange(3)
            self.size = 3

    model = capture.from_live(Net(), ([torch.randn(2, 3)], {"mask": torch.ones(2)}))
    capture.place(model, torch.device("meta"))
    assert model.devices == {torch.device("meta")} and model.module.table.is_meta and model.module.size == 3
    assert model.args[0].is_meta and model.kwargs["mask"].is_meta


# Room


def full(monkeypatch: pytest.MonkeyPatch, free: int, total: int, own: int) -> None:
    Machine(monkeypatch, (9, 0))
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda d: (free << 30, total << 30))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda d: own << 30)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda d: 0)
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)


def test_a_gpu_full_of_others_is_one_message(monkeypatch: pytest.MonkeyPatch) -> None:
    full(monkeypatch, free=1, total=80, own=2)
    monkeypatch.setattr(devices, "_others", lambda d: "process 17 (train.py): 77000 MiB")
    with pytest.raises(EnvironmentLacks) as e, devices.room_for(CUDA0, "the inputs"):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.")
    assert str(e.value) == (
        "cuda:0 has no room for the inputs: 1.0 GiB of 80.0 GiB are free, this process holds 2.0 GiB and others 77.0 GiB "
        "(process 17 (train.py): 77000 MiB); wait for them, or choose another GPU with --device"
    )


def test_a_gpu_full_of_our_own(monkeypatch: pytest.MonkeyPatch) -> None:
    full(monkeypatch, free=2, total=80, own=77)
    with pytest.raises(EnvironmentLacks, match="tune smaller inputs, or a part of the model with --target"):
        with devices.room_for(CUDA0, "judging softmax"):
            raise torch.OutOfMemoryError("CUDA out of memory.")


def test_not_even_a_context(monkeypatch: pytest.MonkeyPatch) -> None:
    full(monkeypatch, free=0, total=80, own=0)

    def refuse(device: Any) -> tuple[int, int]:
        raise RuntimeError("CUDA error: out of memory")

    monkeypatch.setattr(torch.cuda, "mem_get_info", refuse)
    with pytest.raises(EnvironmentLacks, match="not even for a context: it is full of other processes' memory"):
        with devices.room_for(CUDA0, "a run of Model"):
            raise RuntimeError("CUDA error: out of memory\nCUDA kernel errors might be asynchronously reported")


def test_other_errors_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    full(monkeypatch, free=1, total=80, own=2)
    with pytest.raises(RuntimeError, match="^mat1 and mat2"), devices.room_for(CUDA0, "x"):
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")
    with pytest.raises(torch.OutOfMemoryError), devices.room_for(CPU, "x"):
        raise torch.OutOfMemoryError("CUDA out of memory.")


def test_who_else_as_nvidia_smi_tells(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    tool = tmp_path / "nvidia-smi"
    tool.write_text("#!/bin/sh\necho 'GPU-aa, 17, python, 500 MiB'\necho 'GPU-bb, 18, other, 9 MiB'\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda d: type("P", (), {"uuid": "aa"}))
    assert devices._others(CUDA0) == "process 17 (python): 500 MiB"
    tool.write_text("#!/bin/sh\nexit 9\n")
    assert devices._others(CUDA0) == ""
    monkeypatch.setattr(subprocess, "run", lambda *a, **k: (_ for _ in ()).throw(subprocess.TimeoutExpired("x", 1)))
    assert devices._others(CUDA0) == ""


# Arithmetic


def test_float32_is_float32_unless_the_case_says_otherwise() -> None:
    before = devices.flags()
    try:
        devices._set_flags(True, True)
        user = devices.flags()
        assert user["matmul_tf32"] and user["cudnn_tf32"]
        with devices.arithmetic({"device": "cuda", "precision": "native"}):
            inside = devices.flags()
            assert not inside["matmul_tf32"] and not inside["cudnn_tf32"] and inside["matmul_precision"] == "highest"
        assert devices.flags() == user
        with devices.arithmetic({"device": "cpu", "precision": "native"}):
            assert devices.flags() == user
        devices._set_flags(False, False)
        with pytest.raises(ZeroDivisionError), devices.arithmetic({"device": "cuda", "precision": "tf32"}):
            assert devices.flags()["matmul_tf32"] and devices.flags()["cudnn_tf32"]
            raise ZeroDivisionError
        assert not devices.flags()["matmul_tf32"] and not devices.flags()["cudnn_tf32"]
    finally:
        devices._set_flags(before["matmul_tf32"], before["cudnn_tf32"])


def test_a_model_that_used_the_newer_settings(kgen_server: Server) -> None:
    """In a process of its own: torch does not forget that both were used."""
    code = """
import torch
from kgen import devices
def now():
    return torch.backends.cuda.matmul.fp32_precision, torch.backends.cudnn.conv.fp32_precision
torch.backends.cuda.matmul.fp32_precision = "tf32"
before = now()
assert before[0] == "tf32" and devices.flags()["matmul_tf32"]
with devices.arithmetic({"device": "cuda"}):
    assert now() == ("ieee", "ieee") and not devices.flags()["matmul_tf32"]
with devices.arithmetic({"device": "cuda", "precision": "tf32"}):
    assert now() == ("tf32", "tf32")
assert now() == before, now()
"""
    done = kgen_server.run(code=code)
    assert done.code == 0, done.err


def test_chunks_cover_everything_once() -> None:
    for n, size in ((0, 4), (1, 4), (4, 4), (9, 4), (1 << 33, 1 << 30)):
        parts = list(devices.chunks(n, size))
        assert [p.start for p in parts] == [i * size for i in range(len(parts))]
        assert all(p.stop - p.start <= size for p in parts) and sum(p.stop - p.start for p in parts) == n
