"""The wheel: one file for every Python 3, whole, and independent of the checkout it came from."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from kgen import _paths


def run_setup(root: Path, system: str, machine: str) -> subprocess.CompletedProcess[str]:
    """setup.py's metadata command as it would go on another machine."""
    program = (
        "import platform, runpy, sys\n"
        f"platform.system = lambda: {system!r}\n"
        f"platform.machine = lambda: {machine!r}\n"
        "sys.argv = ['setup.py', '--version']\n"
        "runpy.run_path('setup.py', run_name='__main__')\n"
    )
    return subprocess.run(
        [sys.executable, "-c", program], cwd=root, capture_output=True, text=True, check=False
    )


@pytest.mark.parametrize("system, machine", [("Linux", "aarch64"), ("Darwin", "x86_64")])
def test_other_platforms_are_refused_in_one_sentence(root: Path, system: str, machine: str) -> None:
    done = run_setup(root, system, machine)
    assert done.returncode == 1
    assert done.stderr.strip() == f"kgen runs on Linux x86_64 only, and this is {system} {machine}."


def test_version_is_that_of_pyproject(root: Path) -> None:
    done = run_setup(root, "Linux", "x86_64")
    assert done.returncode == 0, done.stderr
    version = re.search(r'^version = "(.*)"', (root / "pyproject.toml").read_text(), re.MULTILINE)
    assert version and done.stdout.split()[-1] == version.group(1)


def test_paths_of_a_checkout(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("KGEN_BUILD", raising=False)
    assert _paths.lib_dir() == root / "build"
    assert _paths.kernels_dir() == root / "kernels"
    assert _paths.shipped_registry() == root / "generated"


def test_missing_binary_says_what_to_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KGEN_BUILD", str(tmp_path))
    with pytest.raises(FileNotFoundError, match=r"libkgen_rt\.so is not there; run `make build`"):
        _paths.binary("libkgen_rt.so")


@pytest.fixture(scope="module")
def wheel(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    done = subprocess.run(
        [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "-w", folder, root],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    (made,) = folder.glob("*.whl")
    return made


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("installed")
    subprocess.run(
        [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", folder, wheel],
        check=True,
    )
    return folder


def run_installed(installed: Path, program: str, cwd: Path) -> str:
    """Runs a program that sees the installed kgen and not the checkout, from an unrelated folder."""
    environment = {key: value for key, value in os.environ.items() if key != "KGEN_BUILD"}
    environment["PYTHONPATH"] = str(installed)
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=cwd,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.slow
def test_wheel_tag(wheel: Path) -> None:
    assert re.fullmatch(r"kgen-[\d.]+-py3-none-linux_x86_64\.whl", wheel.name)
    with zipfile.ZipFile(wheel) as archive:
        (name,) = [name for name in archive.namelist() if name.endswith(".dist-info/WHEEL")]
        text = archive.read(name).decode()
    assert "Tag: py3-none-linux_x86_64\n" in text
    assert "Root-Is-Purelib: false\n" in text


@pytest.mark.slow
def test_wheel_holds_every_file_of_the_tree(wheel: Path, root: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    wanted = {f"kgen/_lib/{name}" for name in ("libkgen_rt.so", "libkgen.so", "kgen-worker")}
    wanted |= {"kgen/_lib/libcjson.so.1", "kgen/_lib/libmd.so.0"}
    for path in (root / "python" / "kgen").rglob("*.py"):
        wanted.add(str(path.relative_to(root / "python")))
    for folder in ("kernels", "generated"):
        files = [path for path in (root / folder).rglob("*") if path.is_file()]
        assert files, f"{folder}/ is empty"
        wanted |= {f"kgen/_data/{path.relative_to(root)}" for path in files}
    assert wanted - names == set()
    strangers = {name for name in names - wanted if ".dist-info/" not in name}
    assert {name for name in strangers if not name.startswith("kgen/_lib/licenses/")} == set()


@pytest.mark.slow
def test_installed_libraries_are_the_wheels_own(installed: Path, tmp_path: Path) -> None:
    program = (
        "import ctypes\n"
        "from kgen import _paths\n"
        "for name in ('libkgen_rt.so', 'libkgen.so'): ctypes.CDLL(str(_paths.binary(name)))\n"
        "for line in open('/proc/self/maps'):\n"
        "    if any(x in line for x in ('libkgen', 'libcjson', 'libmd.')): print(line.split()[-1])\n"
    )
    mapped = {Path(line) for line in run_installed(installed, program, tmp_path).split()}
    lib = installed / "kgen" / "_lib"
    assert mapped == {
        lib / name for name in ("libkgen_rt.so", "libkgen.so", "libcjson.so.1", "libmd.so.0")
    }
    assert os.access(lib / "kgen-worker", os.X_OK)


@pytest.mark.slow
def test_installed_kgen_serves_an_op(installed: Path, tmp_path: Path) -> None:
    program = (
        "import torch, kgen\n"
        "x = torch.randn(37, 129)\n"
        "y = torch.ops.kgen.softmax(x, -1)\n"
        "print(kgen.__file__, float((y - torch.softmax(x.double(), -1)).abs().max()) < 1e-6)\n"
    )
    file, right = run_installed(installed, program, tmp_path).split()
    assert Path(file) == installed / "kgen" / "__init__.py"
    assert right == "True"


@pytest.mark.slow
def test_console_script(installed: Path, tmp_path: Path) -> None:
    script = installed / "bin" / "kgen"
    environment = {**os.environ, "PYTHONPATH": str(installed)}
    done = subprocess.run(
        [script, "--help"], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "tune" in done.stdout
