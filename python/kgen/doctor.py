"""`kgen doctor`: what is found, what is not, and what to do about it. Changes nothing."""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from . import OLDEST_TORCH, _paths, registries, torch_version


@dataclass(frozen=True, slots=True)
class Finding:
    """One line of the report. `todo` is empty when all is well."""

    name: str
    ok: bool
    found: str
    todo: str = ""
    needed: bool = True


def _torch() -> Finding:
    try:
        import torch
    except ImportError as e:
        return Finding("torch", False, f"does not import: {e}", "pip install torch (2.10 or newer)")
    if torch_version(torch.__version__) < OLDEST_TORCH:
        return Finding("torch", False, torch.__version__, "kgen needs torch 2.10 or newer: pip install -U torch")
    return Finding("torch", True, f"{torch.__version__}, {torch.get_num_threads()} threads")


def _binaries() -> Iterator[Finding]:
    for name in ("libkgen_rt.so", "libkgen.so", "kgen-worker"):
        try:
            yield Finding(name, True, str(_paths.binary(name)))
        except FileNotFoundError as e:
            yield Finding(name, False, "missing", str(e))


def _compiler() -> Finding:
    for name in filter(None, (os.environ.get("KGEN_CC"), os.environ.get("CC"), "cc", "gcc", "clang")):
        path = shutil.which(name)
        if path:
            out = subprocess.run([path, "--version"], capture_output=True, text=True, check=False)
            first = out.stdout.splitlines()[0] if out.stdout else "?"
            return Finding("C compiler", True, f"{path}: {first}")
    return Finding(
        "C compiler",
        False,
        "none of $KGEN_CC, $CC, cc, gcc, clang",
        "apt-get install gcc; without one only cached images are served (`kgen build` makes them elsewhere)",
    )


def _cxx() -> Finding:
    path = shutil.which("c++") or shutil.which("g++") or shutil.which("clang++")
    if path:
        return Finding("C++ compiler", True, path, needed=False)
    return Finding(
        "C++ compiler",
        False,
        "none",
        "torch.compile's CPU baselines need one (apt-get install g++); without it they are left out",
        needed=False,
    )


def _cpu_flags() -> set[str]:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return set()
    return next((set(line.split(":", 1)[1].split()) for line in lines if line.startswith("flags")), set())


def machine_arch() -> str:
    """The richest architecture whose Kernels this machine runs: "x86-64-v4", "aarch64"."""
    if platform.machine() != "x86_64":
        return platform.machine()
    flags, level = _cpu_flags(), 1
    for more in (
        {"cx16", "popcnt", "sse4_1", "sse4_2", "ssse3"},
        {"avx2", "bmi1", "bmi2", "f16c", "fma", "movbe"},
        {"avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl"},
    ):
        if not more <= flags:
            break
        level += 1
    return f"x86-64-v{level}"


def cpu_name() -> str:
    """As a Record's environment has it; the architecture's name where the system does not say."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())


def cuda_device() -> tuple[str, str] | None:
    """Name and architecture ("sm_90") of the CUDA device that torch uses; None where it sees none."""
    import torch

    if not torch.cuda.is_available():
        return None
    major, minor = torch.cuda.get_device_capability()
    return torch.cuda.get_device_name(), f"sm_{major}{minor}"


def _cpu() -> Finding:
    cores = len(os.sched_getaffinity(0))
    return Finding("CPU", platform.machine() == "x86_64", f"{machine_arch()}, {cores} CPUs for this process")


def _sandbox() -> Iterator[Finding]:
    """What locks the worker and the gate's process."""
    from . import _libkgen, protections
    from .errors import EnvironmentLacks

    try:
        has, lacking = _libkgen.protections(), protections.missing()
    except EnvironmentLacks:  # libkgen.so is missing, which is a finding of its own
        return
    for name, found in (("landlock", f"ABI {has['landlock']}"), ("seccomp", "there")):
        todo = f"{lacking[name]}: a model's Candidates for the CPU want --unsafe-cpu; judge only what you trust" if name in lacking else ""
        yield Finding(name, name not in lacking, found if not todo else "not in this kernel", todo, False)


def _cache() -> Finding:
    base = os.environ.get("KGEN_CACHE")
    if not base:
        xdg = os.environ.get("XDG_CACHE_HOME")
        base = str((Path(xdg) if xdg else Path.home() / ".cache") / "kgen")
    try:
        Path(base).mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=base):
            pass
    except OSError as e:
        return Finding(
            "cache", False, f"{base}: {e.strerror}", "set KGEN_CACHE to a folder that can be written", False
        )
    return Finding("cache", True, base)


def _registries() -> Finding:
    found = [str(p) for p in registries.roots()]
    return Finding("registries", bool(found), ", ".join(found) or "none", "" if found else "install kgen again")


def findings() -> list[Finding]:
    """Everything that kgen stands on, in the order in which it is needed."""
    single: list[Callable[[], Finding]] = [_torch, _compiler, _cxx, _cpu, _cache, _registries]
    out = [Finding("Python", sys.version_info >= (3, 10), platform.python_version())]
    for f in single:
        out.append(f())
    out += list(_binaries())
    out += list(_sandbox())
    if next(f for f in out if f.name == "torch").ok:
        from . import doctor_cuda

        out += list(doctor_cuda.findings())
    return out


# Seconds for all of --timing, of which starting processes takes some; and for one comparison.
TIMING_SECONDS, TIMING_EACH = 45.0, 6.0
# A machine that tells no less than this apart promotes little.
COARSE = 0.05


def _timing() -> Iterator[Finding]:
    """Which difference of times each device here can tell, measured now."""
    from . import devices, resolution
    from .errors import KgenError

    here = resolution.devices_here()
    for device in here:
        name = f"timing {device}"
        try:
            found = resolution.measure(
                device, TIMING_SECONDS / len(here), TIMING_EACH / len(here), lambda text: print(f"  {text}", file=sys.stderr)
            )
        except KgenError as e:
            yield Finding(name, False, str(e), "", False)
            continue
        text = f"{found.text()}; {resolution.load_text()}"
        if slow := devices.state(device).get("throttle"):
            text += f"; clocks: {', '.join(slow)}"
        if found.difference > COARSE:
            text += "; smaller gains are not promoted here: end what else runs, or tune where it is quiet"
        elif found.wrong > max(1, len(found.comparisons) // 5):
            text += "; the intervals are too narrow: what runs beside changes while kgen measures"
        yield Finding(name, True, text, needed=False)


def run_doctor(args: argparse.Namespace) -> int:
    """Prints the findings; 3 when something that is needed is missing."""
    rows = findings()
    if args.timing and next(f for f in rows if f.name == "torch").ok:
        rows += list(_timing())
    if args.json:
        print(json.dumps([asdict(r) for r in rows]))
    else:
        for r in rows:
            print(f"{'ok' if r.ok else 'MISSING' if r.needed else 'absent':<8} {r.name:<14} {r.found}")
            if not r.ok and r.todo:
                print(f"{'':<23} {r.todo}")
    return 0 if all(r.ok or not r.needed for r in rows) else 3
