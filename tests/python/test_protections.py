"""What a kernel lacks of the locks is named by doctor, and a model's Candidates for a CPU are not run without it unasked."""

from __future__ import annotations

import argparse
import importlib
from pathlib import Path
from typing import Any

import pytest
import torch

from kgen import _libkgen, asking, cli, doctor, protections
from kgen.errors import BadInput, EnvironmentLacks

tune = importlib.import_module("kgen.tune")  # kgen.tune is the function


def kernel_has(monkeypatch: pytest.MonkeyPatch, landlock: int, seccomp: bool) -> None:
    monkeypatch.setattr(_libkgen, "protections", lambda: {"landlock": landlock, "seccomp": seccomp})


def test_this_kernel_has_both() -> None:
    """Where these tests run; without them the tests of the locks would show nothing."""
    assert _libkgen.protections()["seccomp"] is True and _libkgen.protections()["landlock"] > 0
    assert protections.missing() == {}
    protections.require()


@pytest.mark.parametrize(("landlock", "seccomp", "lacking"), [(0, True, ["landlock"]), (7, False, ["seccomp"]), (0, False, ["landlock", "seccomp"])])
def test_doctor_names_what_is_missing(monkeypatch: pytest.MonkeyPatch, landlock: int, seccomp: bool, lacking: list[str]) -> None:
    kernel_has(monkeypatch, landlock, seccomp)
    found = {f.name: f for f in doctor._sandbox()}
    assert [n for n, f in found.items() if not f.ok] == lacking == list(protections.missing())
    for name, f in found.items():
        assert ("--unsafe-cpu" in f.todo) is (name in lacking)
        assert (f.found == "not in this kernel") is (name in lacking)
    with pytest.raises(EnvironmentLacks, match="this kernel has no " + " and no ".join(lacking) + r" .*--unsafe-cpu") as e:
        protections.require()
    assert e.value.code == 3


def tuner(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, device: str, **options: Any) -> None:
    class There:
        path = tmp_path

    class Task:
        folder = tmp_path

    (tmp_path / "op.json").write_text("{}")
    monkeypatch.setattr(tune.tasks, "read", lambda path: Task())
    monkeypatch.setattr(tune.Reference, "open", lambda task, index: None)
    tune.OpTuner(tune.Job("softmax", 1.0, 1.0, ()), There(), tmp_path, tune.Options(**options), None, None, [torch.device(device)])


def test_a_models_candidates_are_refused_without_the_locks(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    model = asking.Asking("files")
    tuner(monkeypatch, tmp_path, "cpu", asking=model)
    kernel_has(monkeypatch, 0, True)
    with pytest.raises(EnvironmentLacks, match="this kernel has no landlock"):
        tuner(monkeypatch, tmp_path, "cpu", asking=model)
    tuner(monkeypatch, tmp_path, "cpu", asking=model, unsafe_cpu=True)
    tuner(monkeypatch, tmp_path, "cpu")  # kgen's own templates
    tuner(monkeypatch, tmp_path, "cuda", asking=model)  # code of the device, which makes no system call


def parsed(*words: str) -> argparse.Namespace:
    return cli.parser().parse_args(words)


@pytest.mark.parametrize("words", [["tune", "m.py", "--proposer", "files"], ["bench-loop", "d"], ["mcp", "m.py"], ["evaluate", "r"]])
def test_the_flag_is_where_models_candidates_are_judged(words: list[str]) -> None:
    assert parsed(*words).unsafe_cpu is None and parsed(*words, "--unsafe-cpu").unsafe_cpu is True


def test_the_flag_reaches_the_options() -> None:
    args = parsed("tune", "m.py", "--proposer", "files", "--unsafe-cpu")
    args.script_args = []
    assert tune.read_options(args).unsafe_cpu is True
    args.unsafe_cpu = None
    assert tune.read_options(args).unsafe_cpu is False
    with pytest.raises(BadInput, match="--unsafe-cpu goes with --proposer llm or files"):
        asking.from_args(parsed("tune", "m.py", "--unsafe-cpu"), asking.Budget())
