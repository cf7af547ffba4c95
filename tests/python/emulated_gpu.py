"""The judge on CUDA where no GPU is: the stand-in for the driver (tests/fake) with kernels that the emulator runs
(tests/emulate), so that verdicts come from the whole of it: NVRTC, plans, workers, guards, poison, comparison.

As a program: judges what a JSON file lists and prints one line of JSON a Candidate. What it cannot show is a GPU's own:
faults, limits of the device, times, races.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent.parent
FLAGS = ("-std=gnu++17", "-O1", "-fPIC", "-fvisibility=hidden", "-fno-strict-aliasing", "-w")
# The emulator tells AddressSanitizer of its stacks, which is not in this library.
NO_SANITIZER = """extern "C" void __asan_poison_memory_region(void const volatile *, size_t) {}
extern "C" void __asan_unpoison_memory_region(void const volatile *, size_t) {}
"""
ARCH, SMS, SHARED = "sm_90", 132, 232448
SLOW_NS = 3e9  # a baseline of so much: nothing is too slow to be emulated
EACH = 12  # kernels' sources a translation unit, of which the emulator's header costs more than one of them


@dataclass(frozen=True)
class Job:
    """Candidates of one Task folder (of Cases for the CPU; here they are a GPU's)."""

    task: Path
    files: tuple[Path, ...]


def cuda_case(case: dict[str, Any]) -> dict[str, Any]:
    return {**case, "device": "cuda"}


def _unit(contract: str, case: dict[str, Any], path: Path) -> str:
    from kgen import _libkgen

    return str(_libkgen.candidate_unit(contract, cuda_case(case), path.read_bytes(), None, ARCH, SMS, SHARED, False)["unit"])


def _source(number: int, jobs: Iterable[tuple[str, dict[str, Any], Path]]) -> str:
    from emulator import kernels_of, rewrite

    out = ['#include "fake_kernel.h"\n', NO_SANITIZER if number == 0 else ""]
    for k, (contract, case, path) in enumerate(jobs):
        unit, space = _unit(contract, case, path), f"candidate_{number}_{k}"
        macros = set(re.findall(r"^#define\s+(\w+)", unit, re.MULTILINE))
        out += [f"namespace {space} {{\n", rewrite(unit), "\n}\n"]
        out += [f"KG_FAKE_KERNEL({space}, {name})\n" for name in kernels_of(path.read_text())]
        out += [f"#undef {name}\n" for name in sorted(macros)]
    return "".join(out)


def build(jobs: Sequence[Job], build_dir: Path, folder: Path) -> Path:
    """A library of every kernel of these Candidates, for KGEN_FAKE_CUDA's `kernels`. Kernels of two files have two names."""
    from kgen import task as tasks

    flat = []
    for job in jobs:
        task = tasks.read(job.task)
        contract = (job.task / "op.json").read_text()
        flat += [(contract, task.cases[0], path) for path in job.files]

    parts_wanted = -(-len(flat) // EACH)

    def compile_one(number: int) -> Path:
        source, made = folder / f"part{number}.cpp", folder / f"part{number}.o"
        source.write_text(_source(number, flat[number::parts_wanted]))
        includes = [f"-I{ROOT / 'tests' / d}" for d in ("emulate", "fake")]
        done = subprocess.run(["g++", *FLAGS, *includes, "-c", str(source), "-o", str(made)], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr[:6000]
        return made

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        parts = list(pool.map(compile_one, range(parts_wanted)))
    library = folder / "libemulated.so"
    # What the judge itself launches is found through the library of the stand-in's own kernels.
    command = ["g++", "-shared", "-o", str(library), *map(str, parts), "-Wl,--no-as-needed", str(build_dir / "libkgen_fakekernels.so"),
               f"-Wl,-rpath,{build_dir}"]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[:6000]
    return library


def judge(jobs: Sequence[Job], build_dir: Path, folder: Path, library: Path | None = None, reps: int = 0) -> dict[str, dict[str, Any]]:
    """Verdict and message of each Candidate, by its file's name. Without a library kernels do nothing."""
    kernels = library or build_dir / "libkgen_fakekernels.so"
    listed = folder / "jobs.json"
    listed.write_text(json.dumps({"reps": reps, "jobs": [{"task": str(j.task), "files": [str(f) for f in j.files]} for j in jobs]}))
    env = {**os.environ, "KGEN_LIBCUDA": str(build_dir / "libkgen_fakecuda.so"), "KGEN_FAKE_CUDA": f"memory=8192,kernels={kernels}"}
    done = subprocess.run([sys.executable, __file__, str(listed)], env=env, capture_output=True, text=True, check=False, timeout=900)
    assert done.returncode == 0, done.stderr[-3000:]
    found = [json.loads(line) for line in done.stdout.splitlines()]
    return {f["file"]: f for f in found}


# In the process of its own


def _verdicts(task_folder: Path, files: list[Path], reps: int) -> Iterator[dict[str, Any]]:
    import torch
    from kgen import sets
    from kgen import task as tasks
    from kgen.judge import Judge
    from kgen.reference import Reference

    task = tasks.read(task_folder)
    reference = Reference.open(task)
    with Judge((task_folder / "op.json").read_text(), device=torch.device("cuda", 0), timeout_ms=60000) as judge:
        for i, case in enumerate(task.cases):
            judge.set_limits(judge.add_case(cuda_case(case)), slowest_baseline_ns=SLOW_NS)
            for name, drawn, expected in sets.each(task, reference, i, {}):
                sets.add(judge, task, i, name, drawn, expected)
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            ahead = [pool.submit(judge.prepare, f.read_bytes(), name=f.name) for f in files]
            for path, compiled in zip(files, ahead, strict=True):
                compiled.exception()
                began = time.perf_counter()
                record = judge.run(path.read_bytes(), name=path.name, reps=reps)
                yield {"file": path.name, "verdict": record["verdict"], "message": record["message"],
                       "seconds": round(time.perf_counter() - began, 2)}  # fmt: skip


def main(listed: Path) -> None:
    import kgen.judge as judging
    import torch

    torch.cuda.init = lambda: None
    judging.synchronize = lambda device: None
    told = json.loads(listed.read_text())
    for job in told["jobs"]:
        for line in _verdicts(Path(job["task"]), [Path(f) for f in job["files"]], told["reps"]):
            print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
