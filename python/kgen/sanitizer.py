"""compute-sanitizer over a Kernel that is about to be promoted: what its checks of memory, races, uninitialised reads and
barriers found goes into the Record.

The judge sees the results of a bug; the sanitizer sees the bug. It runs where it is installed, once a Kernel of a Run, all
four tools beside each other, each over a fresh process (sanitizer_child.py) that calls the Kernel through torch.ops.kgen on
inputs copied from the host, with allocations of their own, so that no other kernel runs there and every buffer has its own end.

What it finds refuses nothing: racecheck and initcheck are known to take asynchronous copies for what they are not. A tool
that failed or took too long is told of as left out.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch

from .gate import environment

TOOLS = ("memcheck", "racecheck", "initcheck", "synccheck")
# What one tool may take. It slows a kernel down by ten to a hundred times, and torch's start by some seconds.
LIMIT_S = 120.0
# The exit code that says that there are findings; no process of ours ends with it.
FOUND = 86
# Findings that a Record holds of each tool, and characters of each.
MOST, LONGEST = 8, 300
OFF = "off"


def tool(name: str, variable: str) -> Path | None:
    """A program of CUDA's toolkit: what the variable names (a path, or `off`), else on the path, else in a toolkit."""
    asked = os.environ.get(variable)
    if asked:
        return None if asked == OFF else Path(asked)
    on_path = shutil.which(name)
    toolkits = filter(None, (os.environ.get("CUDA_HOME"), os.environ.get("CUDA_PATH"), "/usr/local/cuda"))
    places = [Path(t) / "bin" / name for t in toolkits]
    return Path(on_path) if on_path else next((p for p in places if os.access(p, os.X_OK)), None)


def find() -> Path | None:
    """The program; None where it is not installed, or KGEN_SANITIZER is `off`."""
    return tool("compute-sanitizer", "KGEN_SANITIZER")


def stored(t: torch.Tensor) -> dict[str, Any]:
    """A tensor as the child takes it: the elements of its storage that it spans, and how it lies on them."""
    last = sum((n - 1) * s for n, s in zip(t.shape, t.stride(), strict=True)) if t.numel() else -1
    flat = torch.as_strided(t.detach(), (last + 1,), (1,), t.storage_offset()).cpu().clone()
    return {"flat": flat, "shape": list(t.shape), "stride": list(t.stride())}


def placed(s: Mapping[str, Any], device: torch.device) -> torch.Tensor:
    """The same on a device: an allocation that ends where the tensor does, written by one copy."""
    flat: torch.Tensor = s["flat"].to(device)
    return torch.as_strided(flat, s["shape"], s["stride"], 0)


def _findings(lines: list[str]) -> list[str]:
    """The first line of each finding, with where it was. A finding is a line that is not indented, and the indented ones
    under it."""
    found: list[str] = []
    for line in lines:
        if not line.strip() or re.match(r"COMPUTE-SANITIZER|[A-Z]* ?SUMMARY|Target application|No |\(", line):
            continue
        if not line[0].isspace():
            found.append(line.strip())
        elif found and " at " not in found[-1] and line.strip().startswith("at "):
            found[-1] += " " + line.strip()
    return [f[:LONGEST] for f in found]


def read(text: str, code: int) -> dict[str, Any]:
    """What a tool's words and its exit code come to: {"errors", "findings"} or {"left_out": why}."""
    lines = [line.removeprefix("=========")[1:] for line in text.splitlines() if line.startswith("=========")]
    found = _findings(lines)
    # racecheck counts hazards, of which some are errors: "1 hazard displayed (0 errors, 1 warning)".
    counts = [int(b or a) for a, b in re.findall(r"SUMMARY: (\d+) (?:errors?|hazards? displayed \((\d+) errors?)", "\n".join(lines))]
    if code not in (0, FOUND) or not counts or (code == FOUND) != (sum(counts) > 0):
        own = [line.strip() for line in text.splitlines() if line.strip() and not line.startswith("=========")]
        return {"left_out": f"it ended with code {code}: {(own or found or ['it said nothing'])[-1][:LONGEST]}"}
    return {"errors": sum(counts), "findings": found[:MOST] if code == FOUND else []}


def watched(argv: list[str], env: dict[str, str], limit_s: float) -> tuple[str, int] | str:
    """Runs a program to its end: what it and its children said, and its exit code; or why there is none."""
    try:
        process = subprocess.Popen(
            argv, env=env, text=True, errors="replace", stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT, start_new_session=True,
        )  # fmt: skip
    except OSError as e:
        return f"{argv[0]}: {e.strerror or e}"
    try:
        text, _ = process.communicate(timeout=limit_s)
    except subprocess.TimeoutExpired:
        return f"it did not end within {limit_s:.0f} s"
    finally:  # with what it started
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.communicate()
    return text, process.returncode


def _run_tool(program: Path, tool: str, job: Path, env: dict[str, str], limit_s: float) -> dict[str, Any]:
    argv = [str(program), "--tool", tool, "--error-exitcode", str(FOUND), "--print-limit", "20"]
    argv += ["--report-api-errors", "no"] if tool == "memcheck" else []
    began = time.monotonic()
    said = watched([*argv, sys.executable, "-m", "kgen.sanitizer_child", str(job)], env, limit_s)
    if isinstance(said, str):
        return {"left_out": said}
    return {**read(*said), "seconds": round(time.monotonic() - began, 1)}


def write_job(
    job: Path, case: dict[str, Any], names: list[str], args: Mapping[str, torch.Tensor | None],
    captured: tuple[torch.Tensor, ...], id_: str, index: int,
) -> None:  # fmt: skip
    """What a child calls (sanitizer_child.Call), as a file."""
    told = {"case": case, "names": names, "id": id_, "index": index}
    tensors = {"args": {n: None if t is None else stored(t) for n, t in args.items()}, "captured": [stored(t) for t in captured]}
    torch.save({"told": json.dumps(told), **tensors}, job)


def examine(
    program: Path, case: dict[str, Any], names: list[str], args: Mapping[str, torch.Tensor | None],
    captured: tuple[torch.Tensor, ...], registry: Path, id_: str, *, index: int = 0, limit_s: float = LIMIT_S,
) -> dict[str, Any]:  # fmt: skip
    """Of the Kernel `id_` of a registry, served for a Case on these inputs: for each tool `errors`, `findings` and `seconds`,
    or `left_out` with the reason. names: tensor arguments that are there, in order. index: of the GPU."""
    with tempfile.TemporaryDirectory(prefix="kgen-sanitize-") as work:
        job = Path(work) / "job.pt"
        write_job(job, case, names, args, captured, id_, index)
        env = environment(registry, None, True, 1)
        env["PYTORCH_NO_CUDA_MEMORY_CACHING"] = "1"
        with ThreadPoolExecutor(len(TOOLS)) as pool:
            results = pool.map(lambda tool: _run_tool(program, tool, job, env, limit_s), TOOLS)
            return dict(zip(TOOLS, results, strict=True))


def words(found: Mapping[str, Mapping[str, Any]]) -> str:
    """One line for people; "" when every tool ran and found nothing."""
    said = [f"{tool} found {r['errors']} ({r['findings'][0] if r['findings'] else '?'})" for tool, r in found.items() if r.get("errors")]
    said += [f"{tool} left out: {r['left_out']}" for tool, r in found.items() if "left_out" in r]
    return "; ".join(said)
