"""The conformance unit must refuse a declaration that differs from torch's header: else it proves nothing."""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
from pathlib import Path

import pytest

HEADER = "csrc/runtime/torch_abi.h"
MUTANTS = {
    "argument": ("aoti_torch_get_dim, (AtenTensorHandle, int64_t *)", "int64_t *", "int32_t *"),
    "result": ("X(1, uint64_t, aoti_torch_abi_version", "uint64_t", "uint32_t"),
    "const": ("torch_get_const_data_ptr, (AtenTensorHandle, const void **)", "const ", ""),
    "name": ("aoti_torch_delete_tensor_object", "object", "objekt"),
}


def compiles(root: Path, header: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """Compiles the unit against a header that stands before the real one in the search path."""
    compiler = shutil.which("c++")
    spec = importlib.util.find_spec("torch")
    if compiler is None or spec is None or not spec.submodule_search_locations:
        pytest.skip("needs a C++ compiler and torch's headers")
    include = Path(spec.submodule_search_locations[0]) / "include"
    if not (include / "torch/csrc/stable/c/shim.h").is_file():
        pytest.skip(f"no torch headers in {include}")
    (folder / "runtime").mkdir()
    (folder / "runtime" / "torch_abi.h").write_text(header)
    unit = root / "csrc" / "conformance" / "torch_abi_conformance.cpp"
    command = [compiler, "-std=c++20", "-fsyntax-only", "-I", folder, "-isystem", include, unit]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_our_declarations_are_torchs(root: Path, tmp_path: Path) -> None:
    done = compiles(root, (root / HEADER).read_text(), tmp_path)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("mutant", MUTANTS)
def test_a_wrong_declaration_does_not_compile(root: Path, tmp_path: Path, mutant: str) -> None:
    line, old, new = MUTANTS[mutant]
    header = (root / HEADER).read_text()
    assert line in header, f"the mutant's line is gone from {HEADER}"
    done = compiles(root, header.replace(line, line.replace(old, new, 1)), tmp_path)
    assert done.returncode != 0
    assert "error" in done.stderr
