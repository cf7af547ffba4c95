"""ncu over the best Candidate of a closed loop: where its kernels' time goes, in a few lines for the next prompt.

It runs where it is installed and the driver lets it read counters, at most once for a batch of verdicts, over a fresh process
(profiler_child.py) that calls the Candidate through torch.ops.kgen on inputs of its Case. What cannot be had is left out; a
driver that refuses is told of once.
"""

from __future__ import annotations

import csv
import io
import re
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from . import _libkgen, devices, sanitizer, sets
from .errors import KgenError
from .gate import environment
from .runs import now

# What one profile may take, torch's start included.
LIMIT_S = 30.0
# Kernels that are told of, and reasons of each.
KERNELS, REASONS = 4, 5
SECTIONS = ("SpeedOfLight", "ComputeWorkloadAnalysis", "SchedulerStats", "WarpStateStats", "Occupancy")
REFUSED = "ERR_NVGPUCTRPERM"
LONGEST = 300

# Names differ between architectures and versions of ncu: of those that fit, the largest counts.
_PERCENT = {
    "dram": r"(gpu__dram_throughput|dram__throughput)\.avg\.pct_of_peak_sustained_elapsed",
    "l2": r"lts__throughput\.avg\.pct_of_peak_sustained_elapsed",
    "tensor": r"sm__(inst_executed_)?pipe_tensor\w*\.avg\.pct_of_peak_sustained_(active|elapsed)",
    "fma": r"sm__(inst_executed_)?pipe_fma(_cycles_active)?\.avg\.pct_of_peak_sustained_(active|elapsed)",
    "xu": r"sm__(inst_executed_)?pipe_xu(_cycles_active)?\.avg\.pct_of_peak_sustained_(active|elapsed)",
    "issue": r"(smsp__issue_active|sm__inst_issued|smsp__inst_issued)\.avg\.pct_of_peak_sustained_active",
    "occupancy": r"sm__warps_active\.avg\.pct_of_peak_sustained_active",
}
_STALL = re.compile(r"smsp__average_warps?_(?:latency_)?issue_stalled_(\w+?)(?:_per_issue_active)?(?:\.ratio|\.pct)?")
_TIME = re.compile(r"gpu__time_duration\.(sum|avg|max)")
_NS = {"ns": 1.0, "nsecond": 1.0, "us": 1e3, "usecond": 1e3, "ms": 1e6, "msecond": 1e6, "s": 1e9, "second": 1e9}


def find() -> Path | None:
    """The program: $KGEN_NCU (a path, or `off`), else on the path, else in a CUDA toolkit."""
    return sanitizer.tool("ncu", "KGEN_NCU")


def _number(text: str) -> float | None:
    """"1,234.5" as ncu prints it; None: it is no number ("n/a")."""
    try:
        value = float(text.replace(",", ""))
    except ValueError:
        return None
    return value if value == value and abs(value) < 1e300 else None


def _row(names: list[str], units: list[str], values: list[str]) -> dict[str, Any]:
    """One launch. What ncu did not say is not there."""
    one: dict[str, Any] = {}
    stalls: dict[str, float] = {}
    for name, unit, text in zip(names, units, values, strict=False):
        if name == "Kernel Name":
            one["name"] = re.split(r"[(<]", text.removeprefix("void "))[0].strip()[:100]
            continue
        value = _number(text)
        if value is None:
            continue
        if _TIME.fullmatch(name) and unit in _NS:
            one["ns"] = value * _NS[unit]
        if stalled := _STALL.fullmatch(name):
            stalls[stalled[1]] = max(value, stalls.get(stalled[1], 0.0))
        for key, pattern in _PERCENT.items():
            if unit in ("%", "pct", "") and re.fullmatch(pattern, name):
                one[key] = max(value, one.get(key, 0.0))
    total = sum(stalls.values())
    if total > 0:
        top = sorted(stalls.items(), key=lambda s: -s[1])[:REASONS]
        one["stalls"] = {name: 100 * value / total for name, value in top if value > 0}
    return one


def read(text: str, code: int) -> dict[str, Any]:
    """What ncu said (--csv --page raw): {"kernels": [{"name", "ns", "dram" ..., "stalls"}]} or {"left_out": why} and, when the
    driver refuses counters, "refused"."""
    if REFUSED in text:
        return {"left_out": f"the driver lets only administrators read a GPU's counters ({REFUSED})", "refused": True}
    lines = text.splitlines()
    begin = next((i for i, line in enumerate(lines) if line.startswith('"ID"')), None)
    if code != 0 or begin is None:
        own = [line.strip() for line in lines if line.strip() and not line.startswith("==PROF==")]
        return {"left_out": f"it ended with code {code}: {(own or ['it said nothing'])[-1][:LONGEST]}"}
    table = list(csv.reader(io.StringIO("\n".join(line for line in lines[begin:] if line.startswith('"')))))
    names, rest = table[0], table[1:]
    # The units are a row of their own, without an ID.
    units = rest.pop(0) if rest and not rest[0][0].strip() else [""] * len(names)
    kernels = [_row(names, units, values) for values in rest]
    kernels = [k for k in kernels if "name" in k and len(k) > 1]
    return {"kernels": kernels} if kernels else {"left_out": "it told of no kernel"}


def _line(k: Mapping[str, Any]) -> str:
    def percent(*parts: tuple[str, str]) -> str:
        return ", ".join(f"{title} {k[key]:.0f}%" for key, title in parts if key in k)

    said = [
        f"{k['ns'] / 1e3:.3g} us" if "ns" in k else "",
        percent(("dram", "DRAM"), ("l2", "L2")) and f"{percent(('dram', 'DRAM'), ('l2', 'L2'))} of peak throughput",
        percent(("tensor", "tensor pipe"), ("fma", "FMA pipe"), ("xu", "XU pipe")),
        percent(("issue", "issue slots used"), ("occupancy", "achieved occupancy")),
    ]
    if k.get("stalls"):
        said.append("warps wait for " + ", ".join(f"{name} {share:.0f}%" for name, share in k["stalls"].items()))
    return f"- ncu on `{k['name']}`: {'; '.join(filter(None, said))}\n"


def words(found: Mapping[str, Any]) -> str:
    """Lines of a list for a prompt; "" when it was left out."""
    kernels = sorted(found.get("kernels", ()), key=lambda k: -k.get("ns", 0.0))
    more = f"- ncu: {len(kernels) - KERNELS} more launches, each shorter\n" if len(kernels) > KERNELS else ""
    return "".join(map(_line, kernels[:KERNELS])) + more


def examine(
    program: Path, case: dict[str, Any], names: list[str], args: Mapping[str, torch.Tensor | None],
    captured: tuple[torch.Tensor, ...], registry: Path, id_: str, *, index: int = 0, limit_s: float = LIMIT_S,
) -> dict[str, Any]:  # fmt: skip
    """Of the Kernel `id_` of a registry, served for a Case on these inputs, what `read` gives. names: tensor arguments that
    are there, in order. index: of the GPU."""
    argv = [str(program), "--csv", "--page", "raw", "--print-units", "base", "--profile-from-start", "off"]
    argv += ["--target-processes", "all", "--launch-count", "16", "--clock-control", "none"]
    argv += [word for section in SECTIONS for word in ("--section", section)]
    with tempfile.TemporaryDirectory(prefix="kgen-profile-") as work:
        job = Path(work) / "job.pt"
        sanitizer.write_job(job, case, names, args, captured, id_, index)
        env = environment(registry, None, True, 1)
        said = sanitizer.watched([*argv, sys.executable, "-m", "kgen.profiler_child", str(job)], env, limit_s)
        return {"left_out": said} if isinstance(said, str) else read(*said)


class Profiler:
    """Tells a loop of its best Candidate, by id, in lines for a prompt; "" when ncu says nothing. tuner: the OpTuner that
    searches."""

    def __init__(self, tuner: Any, program: Path):
        self.tuner, self.program = tuner, program
        self.refused = False

    def __call__(self, id_: str) -> str:
        op = self.tuner.task.op
        entry = self.tuner.run.find("verdict", op=op, id=id_, level=2)
        if self.refused or entry is None or not entry.get("record"):
            return ""
        try:
            found = self._examine(entry)
        except (KgenError, OSError, RuntimeError) as e:  # no memory left beside the judge; a full disk
            found = {"left_out": str(e).partition("\n")[0]}
        if "left_out" in found:
            self.tuner.progress.note(f"{op}: ncu left out: {found['left_out']}")
        self.refused = "refused" in found
        return words(found)

    def _examine(self, entry: dict[str, Any]) -> dict[str, Any]:
        """On the first Case that the Candidate was timed on."""
        tuner, device = self.tuner, self.tuner.device
        i = next(i for i, t in enumerate(entry["time_ns"]) if t > 0)
        case = tuner.task.cases[i]
        key, _ = _libkgen.case_key(tuner.contract, case)
        written = next(e for e in tuner.run.entries("candidate") if e["name"] == entry["source"])
        source = "kernel.cu" if device.type == "cuda" else "kernel.c"
        record = {**entry["record"], "source": source, "created": now(), "tunables": entry["tunables"]}
        record["proposer"] = {"name": tuner.options.asking.proposer, "answer": entry["source"]}
        staging, _ = tuner.stage_kernel(record, written["text"].encode(), key)
        with devices.alone(device):
            drawn = tuner.reference.draw(case, sets.secret_seed())
            args = sets.tensors(tuner.task, drawn)
            names = [n for n, v in args.items() if v is not None]
            index = device.index or 0
            return examine(self.program, case, names, args, drawn.captured, staging, entry["id"], index=index)
