"""Packs the binaries, house kernels and the shipped registry into one wheel for any Python 3.

There is no extension module: Python opens the libraries with ctypes, so the wheel is py3-none-linux_x86_64.
An editable install builds into build/ and copies nothing. Metadata is in pyproject.toml.
"""

from __future__ import annotations

import os
import platform
import re
import shutil
import subprocess
import sys
from pathlib import Path

from setuptools import Command, Distribution, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build import build

ROOT = Path(__file__).resolve().parent
BINARIES = ("libkgen_rt.so", "libkgen.so", "kgen-worker")
# Libraries of the system that libkgen.so needs and a target machine may lack.
BUNDLED = re.compile(r"(libcjson|libmd)\.so[.\d]*")

if (platform.system(), platform.machine()) != ("Linux", "x86_64"):
    sys.exit(
        f"kgen runs on Linux x86_64 only, and this is {platform.system()} {platform.machine()}."
    )


def run(*command: str | Path) -> None:
    """Runs a tool of the build; one sentence and no traceback when it is absent or fails."""
    try:
        done = subprocess.run(command, cwd=ROOT, check=False)
    except FileNotFoundError:
        sys.exit(f"kgen is built with {command[0]}, which is not on PATH (Debian package {command[0]}).")
    if done.returncode != 0:
        sys.exit(f"Building kgen failed: {' '.join(map(str, command))} (exit code {done.returncode}).")


def needed_libraries(binary: Path) -> dict[str, Path]:
    """The bundled libraries that the loader finds for this binary: name to file."""
    listing = subprocess.run(["ldd", binary], capture_output=True, text=True, check=True).stdout
    found = re.findall(r"^\s*(\S+) => (\S+)", listing, re.MULTILINE)
    return {name: Path(path).resolve() for name, path in found if BUNDLED.fullmatch(name)}


class BuildNative(Command):
    """cmake, then the package's data beside its modules; part of every build."""

    description = "build the binaries with cmake"
    user_options: list[tuple[str, str, str]] = []

    def initialize_options(self) -> None:
        self.editable_mode = False
        self.build_lib: str | None = None
        self.build_temp: str | None = None

    def finalize_options(self) -> None:
        self.set_undefined_options("build", ("build_lib", "build_lib"), ("build_temp", "build_temp"))

    def run(self) -> None:
        if self.editable_mode:
            self.cmake(ROOT / "build")
            return
        folder = ROOT / str(self.build_temp) / "cmake"
        self.cmake(folder, "-DKGEN_TESTS=OFF")
        package = Path(str(self.build_lib)) / "kgen"
        self.install(folder, package / "_lib")
        for name in ("kernels", "generated"):
            if (ROOT / name).is_dir():
                shutil.copytree(ROOT / name, package / "_data" / name, dirs_exist_ok=True)

    def cmake(self, folder: Path, *options: str) -> None:
        run("cmake", "-S", ROOT, "-B", folder, "-DCMAKE_BUILD_TYPE=Release", *options)
        run("cmake", "--build", folder, f"-j{os.cpu_count() or 1}")

    def install(self, folder: Path, lib: Path) -> None:
        run("cmake", "--install", folder, "--prefix", lib.resolve(), "--component", "kgen", "--strip")
        absent = [name for name in BINARIES if not (lib / name).is_file()]
        if absent:
            sys.exit(f"Building kgen made no {', '.join(absent)}.")
        for binary in BINARIES:
            for name, path in needed_libraries(lib / binary).items():
                shutil.copy(path, lib / name)
                copyright_of(path, lib / "licenses" / f"{name}.txt")

    # What setuptools asks of a step of an editable build.
    def get_source_files(self) -> list[str]:
        return []

    def get_outputs(self) -> list[str]:
        return []

    def get_output_mapping(self) -> dict[str, str]:
        return {}


def copyright_of(library: Path, target: Path) -> None:
    """Debian keeps the licence of a library under its package's name; it travels with the copy."""
    owner = subprocess.run(
        ["dpkg-query", "-S", library], capture_output=True, text=True, check=False
    ) if shutil.which("dpkg-query") else None
    if owner is None or owner.returncode != 0:
        return
    notice = Path("/usr/share/doc") / owner.stdout.split(":")[0] / "copyright"
    if notice.is_file():
        target.parent.mkdir(exist_ok=True)
        shutil.copy(notice, target)


class Build(build):
    """build, less what an earlier build left in the folder, plus the binaries."""

    sub_commands = [*build.sub_commands, ("build_native", None)]

    def run(self) -> None:
        shutil.rmtree(self.build_lib, ignore_errors=True)
        super().run()


class Wheel(bdist_wheel):
    """One wheel for every Python 3: nothing in it links against Python."""

    def get_tag(self) -> tuple[str, str, str]:
        return "py3", "none", "linux_x86_64"


class BinaryDistribution(Distribution):
    """Has binaries, though no extension modules: it belongs into platlib."""

    def has_ext_modules(self) -> bool:
        return True


setup(
    distclass=BinaryDistribution,
    cmdclass={"build": Build, "build_native": BuildNative, "bdist_wheel": Wheel},
    # build/ itself is cmake's.
    options={"build": {"build_base": "build/wheel"}},
)
