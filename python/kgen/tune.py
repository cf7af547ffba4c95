"""tune and capture: from a model to promoted Kernels.

A Run is a folder: run.json (what was asked), tasks/<op>/, journal.jsonl, candidates/, staging/ (a registry for the gate) and
result.json. Everything that was learnt is in the journal, so a Run that was stopped or killed goes on with --resume, and
nothing is judged or gated twice.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import math
import os
import re
import shlex
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from . import _libkgen, asking as askings, capture, devices, floors, gate, gate_build, profiler, protections, registries, sanitizer, sets, targets
from . import task as tasks
from ._paths import kernels_dir
from .commands import dtypes_text, key_text
from .errors import BadInput, KgenError, NotATarget
from .interrupts import Stop, stoppable
from .judge import Judge
from .mutants import Examiner
from .reference import Reference
from .runs import FORMAT, Run, default_dir, now, write_json, write_text
from .ui import Progress, show_result

NO_TEMPLATE = (
    "no template: --proposer llm or files can write it (and `kgen capture MODEL --target NAME` with `kgen judge` take any "
    "kernel of yours)"
)
NOT_ASKED = "not asked for: name it with --target"
OP_SHARE = 0.01  # of a budget, for an Op whose headroom is next to nothing


@dataclass(frozen=True)
class Options:
    """How to tune. budget is in seconds, for the search over all Ops together. device: as --device names it; None: by the
    rule of devices.choose. precision: how exact float32 must be on a GPU."""

    budget: float = 900.0
    min_speedup: float = 1.05
    patterns: tuple[str, ...] = ()
    train: bool | None = None
    promote: bool = True
    registry: Path | None = None
    run_dir: Path | None = None
    resume: bool = False
    device: str | None = None
    precision: str = "native"
    asking: askings.Asking | None = None  # None: the built-in proposer
    limits: askings.Budget = askings.Budget()
    capture_only: bool = False  # the Tasks, and no search
    baselines: float = gate_build.TOTAL  # seconds that the baselines of an Op may compile
    unsafe_cpu: bool = False  # a model's Candidates for a CPU run also where the kernel cannot lock them up
    sanitize: bool = True  # compute-sanitizer over what passed the gate on a GPU, where it is installed
    whole: bool = False  # the whole model as one Op, where it can be one, whatever is in it
    # What a Run must not be resumed without (runs.ASKED).
    asked: dict[str, Any] = field(default_factory=dict)


@dataclass
class Row:
    """What became of one Case. state: promoted, passed (the gate, without promotion), kept (nothing better found) or left
    (not tried). floor_share: the least time that it can take over the time that it takes now."""

    op: str
    where: str
    case: str
    share: float
    state: str
    reason: str = ""
    kernel: str = ""
    baseline: str = ""
    baseline_ns: float = 0.0
    kgen_ns: float = 0.0
    speedup: tuple[float, float, float] | None = None
    floor_share: float | None = None
    verdicts: dict[str, int] = field(default_factory=dict)
    gate: dict[str, Any] = field(default_factory=dict)
    key: str = ""


@dataclass
class Report:
    """The result of a Run. registry is where Kernels were promoted to."""

    run_dir: Path
    registry: Path
    model: str
    seconds: float
    rows: list[Row]

    @property
    def promoted(self) -> list[Row]:
        return [r for r in self.rows if r.state == "promoted"]

    def json(self) -> dict[str, Any]:
        rows = []
        for r in self.rows:
            row = {k: getattr(r, k) for k in Row.__dataclass_fields__}
            if r.speedup:
                row["speedup"] = dict(zip(("median", "low", "high"), r.speedup, strict=True))
            rows.append(row)
        return {
            "format": FORMAT,
            "model": self.model,
            "run": str(self.run_dir),
            "registry": str(self.registry),
            "seconds": round(self.seconds, 1),
            "rows": rows,
        }


def parse_time(option: str, text: str) -> float:
    """"90s", "15m", "1h" in seconds."""
    m = re.fullmatch(r"(\d+(?:\.\d+)?)([smh])", text.strip())
    if not m or float(m[1]) <= 0:
        raise BadInput(f"{option} {text}: give a time such as 90s, 15m or 1h")
    return float(m[1]) * {"s": 1, "m": 60, "h": 3600}[m[2]]


def parse_budget(text: str) -> float:
    """A time in seconds."""
    return parse_time("--budget", text)


def survey_model(model: capture.Model, options: Options, progress: Progress) -> tuple[Any, Any, list[Any]]:
    """The capture, all Targets, and those to tune. The model is on its device afterwards."""
    device = capture.device_for(model, options.device)
    if options.precision != "native" and device.type == "cpu":
        raise BadInput(f"--precision {options.precision}: a CPU computes float32 as float32 alone; it is for --device cuda")
    where = f" on {devices.name_of(device)}" if device.type == "cuda" else ""
    capture.place(model, device)
    with devices.room_for(device, f"a run of {model.title}"):
        with progress.step(f"running {model.title}{where}"):
            captured = capture.Capture(model, train=options.train)
        with progress.step("reading its graph"):
            survey = targets.survey(captured)
    if options.patterns:
        chosen = targets.select(survey, list(options.patterns))
    else:
        chosen = [t for t in survey.targets if t.canonical and t.reason is None]
    if options.asking is not None and (options.whole or not chosen):
        # Whoever writes any Op gets the whole Model; parts of it only by name.
        everything = [t for t in survey.targets if t.reason is None and t.part is not None and not t.part.path]
        chosen = everything or chosen
    return captured, survey, chosen


def _has_template(op: str, gpu: bool = False) -> bool:
    files = kernels_dir().glob("*/*.cu" if gpu else "*/*.c")
    return any(f'"op": "{op}"' in p.read_text(errors="replace") for p in files)


_SHORT = {"float32": "f32", "float16": "f16", "bfloat16": "bf16", "float64": "f64"}
# Dims that are mostly equal, with the name of both when they are; and the order of first letters that people write.
_PAIRS = (("HQ", "HKV", "H"), ("SQ", "SK", "S"), ("D", "DV", "D"))
_ORDER = "BMNKHSD"


def short_case(key: dict[str, Any]) -> str:
    """A Case in few letters, for a table: "f32 H8 S1024 D64 Program 7ec6"."""
    dims = dict(key.get("dims", {}))
    for one, other, both in _PAIRS:
        if one in dims and dims[one] == dims.get(other):
            dims[both] = dims.pop(one)
            del dims[other]
    parts = [dtypes_text([d and _SHORT.get(d, d) for d in key.get("dtypes", [])])]
    order = sorted(dims, key=lambda n: _ORDER.find(n[0]))
    parts += [f"{name}{'=' if name[-1].isdigit() else ''}{dims[name]}" for name in order if dims[name] != 1]
    parts += [f"{name}={json.dumps(value)}" for name, value in key.get("attrs", {}).items()]
    if key.get("program"):
        parts.append(f"Program {key['program'][:4]}")
    if key.get("precision", "native") != "native":
        parts.append(key["precision"])
    return " ".join(filter(None, parts))


@dataclass(frozen=True)
class Job:
    """An Op of a Run to tune: its share of the model's time, its part of the budget, and for each Case the ns that its
    arithmetic takes at least."""

    op: str
    share: float
    weight: float
    floors: tuple[float, ...]


class OpTuner:
    """One Op of a Run: judge, search, gate, promotion. What the journal decided already is taken from there."""

    def __init__(
        self, job: Job, run: Run, registry: Path, options: Options, progress: Progress, stop: Stop,
        where: Sequence[torch.device] = (devices.CPU,),
    ):  # fmt: skip
        """where: the devices that judge, each by a worker of its own; the gate is at the first."""
        self.job, self.run, self.registry = job, run, registry
        self.where, self.device = list(where), where[0]
        if options.asking is not None and self.device.type == "cpu" and not options.unsafe_cpu:
            protections.require()
        self.options, self.progress, self.stop = options, progress, stop
        self.searched = 0.0  # seconds of the budget that the search took, in earlier lives of the Run too
        self.patience = gate_build.Patience(min(gate_build.EACH, options.baselines), options.baselines)
        self.limits: askings.Budget | None = options.limits  # None: nothing is left to ask with
        self.spent = {"calls": 0, "tokens": 0, "nano_usd": 0}
        self.stage: str | None = None  # of a loop; None: all of it
        self._measured: dict[str, Any] | None = None
        self._sanitized: dict[str, dict[str, Any]] = {}  # by Kernel
        self.about: dict[str, Any] = {}  # what the inputs do not show, for Records
        self.check_machine: Callable[[str], None] = lambda text: None
        self.task = tasks.read(run.path / "tasks" / job.op)
        self.reference = Reference.open(self.task, self.device.index or 0)
        self.contract = (self.task.folder / "op.json").read_text()

    def rows(self, budget: float) -> list[Row]:
        """Searches and gates every Case."""
        with self.judging() as (judges, degenerate):
            found = self.search(judges, budget)
            return [] if self.stage == "evaluate" else self.decide(judges[0], degenerate, found)

    @contextlib.contextmanager
    def judging(self) -> Iterator[tuple[list[Judge], dict[int, str]]]:
        """The judges, filled, one a device; and the Cases that a trivial answer would pass, with its name."""
        with contextlib.ExitStack() as stack:
            stack.enter_context(devices.room_for(self.device, f"judging {self.task.op}"))
            judges = [stack.enter_context(Judge(self.contract, device=d)) for d in self.where]
            degenerate = self._fill(judges[0], self.reference)
            for other in judges[1:]:
                self._fill(other, Reference.open(self.task, other.device.index or 0))
            yield judges, degenerate

    def decide(self, judge: Judge, degenerate: dict[int, str], found: dict[str, Any]) -> list[Row]:
        """Brings what a search found to the gate."""
        rows = [self._row(i) for i in range(len(self.task.cases))]
        best = {w["case"]: w for w in found["winners"]}
        for i, row in enumerate(rows):
            row.verdicts = found["verdicts"]
            if not found["sources"] and self.options.asking is None:
                row.state, row.reason = "left", NO_TEMPLATE
            elif i not in best:
                row.reason = _no_winner(found)
            elif i in degenerate:
                row.reason = f"degenerate Task: {degenerate[i]} would pass for its result"
            else:
                self._gate(judge, i, best[i], row)
        return rows

    def _row(self, i: int) -> Row:
        key, _ = _libkgen.case_key(self.contract, self.task.cases[i])
        title = str(self.task.meta.get("title", ""))
        return Row(self.task.op, title, short_case(key), self.job.share, "kept", key=key_text(key))

    def _fill(self, judge: Judge, reference: Reference) -> dict[int, str]:
        """Adds Cases and sets; the Cases that a trivial answer would pass."""
        at = f" on {judge.device}" if len(self.where) > 1 else ""
        degenerate, examiner = {}, None if self.about else Examiner(reference)
        for i in range(len(self.task.cases)):
            of = f" of Case {i + 1}/{len(self.task.cases)}" if len(self.task.cases) > 1 else ""
            with self.progress.step(f"{self.task.op}: inputs and fp64 oracles{of}{at}"):
                dropped = sets.fill(judge, self.task, reference, i, examiner)
                if trivial := judge.trivial(i):
                    degenerate[i] = ", ".join(sorted({t["answer"] for t in trivial}))
            for name, reason in dropped.items():
                self.progress.note(f"{self.task.op}: inputs '{name}' left out: {reason}")
        self.about = examiner.found() if examiner else self.about
        return degenerate

    def search(self, judges: list[Judge], budget: float) -> dict[str, Any]:
        """The search, or the one stage of it that is this tuner's."""
        options: dict[str, Any] = {"budget_ms": int(budget * 1000)}
        if self.options.asking is None:
            options["kernels"] = str(kernels_dir())
        else:
            options["loop"] = self.loop(judges[0])
        program = profiler.find() if self.options.asking is not None and self.device.type == "cuda" else None
        profiled = judges[0].profiled(profiler.Profiler(self, program)) if program else contextlib.nullcontext()
        with self.progress.search(self.task.op, budget) as tell, profiled:
            found = _libkgen.search([j.handle for j in judges], self.run.path, options, tell)
            self.stop.check()
        self.searched = found["spent_s"]
        if "asked" in found:
            self.spent = found["asked"]["spent"]
            self.progress.note(f"{self.task.op}: {askings.ended(found['asked'])}")
        if found["stopped"]:
            raise KeyboardInterrupt
        return found

    def loop(self, judge: Judge) -> dict[str, Any]:
        """How the proposer is asked: with what is left to ask with, and what is known of machine and Cases. In a stage the
        Run learns that, too, once in the life of this tuner."""
        if self._measured is None:
            self._measured = self._measure_loop(judge)
        return {**self._measured, **({"stage": self.stage} if self.stage is not None else {})}

    def _measure_loop(self, judge: Judge) -> dict[str, Any]:
        assert self.options.asking is not None
        limits = self.limits or askings.Budget(calls=1, tokens=1)  # used up: an earlier life's answers still count
        machine = targets.Machine.measure(self.device)
        kind, text = self.device.type, self._machine_text(machine)
        self.check_machine(text)
        cases = []
        for i, least in enumerate(self.job.floors):
            about = judge.describe(i)
            moved = int(about["bytes"])
            if self.task.contract["reference"]["kind"] != "torch":  # of another Op the judge counts on no input being read
                moved = floors.tensor_bytes([*about["inputs"], *about["outputs"]])
            flops, dtypes = float(about["flops"]), {t["dtype"] for t in about["inputs"]}
            rate = machine.flops_of(torch.float32) if dtypes == {"float32"} else math.inf
            floor_ns = max(floors.copy_ns(moved, self.device), least, flops / rate * 1e9)
            # What torch itself takes is no bound for it: then the rates were measured at a bad moment.
            torch_ns = self.reference.eager_ns(i)
            cases.append({"floor_ns": min(floor_ns, torch_ns or floor_ns), "bytes": moved, "flops": flops, "torch_ns": torch_ns})
        devices.release(self.device)
        loop = askings.loop_options(self.options.asking, limits, self.task.folder, kind, text, cases)
        if self.stage is not None:
            self.run.add("machine", {"op": self.task.op, "target": kind, "text": text, "cases": cases})
        return loop

    def _machine_text(self, machine: targets.Machine) -> str:
        """What a kernel can count on where it is judged, measured now."""
        if self.device.type == "cpu":
            threads = len(os.sched_getaffinity(0))
            return askings.machine_text(threads, machine.bytes_per_second, machine.flops_per_second)
        flops = {torch.float32: machine.flops_per_second, **machine.tensor_flops}
        about = torch.cuda.get_device_properties(self.device)
        named = {str(dtype).removeprefix("torch."): rate for dtype, rate in flops.items()}
        return askings.gpu_text(about, machine.bytes_per_second, named)

    def _gate(self, judge: Judge, i: int, winner: dict[str, Any], row: Row) -> None:
        key, case_hash = _libkgen.case_key(self.contract, self.task.cases[i])
        record, source = self._complete(winner), Path(winner["file"]).read_bytes()
        before = self.run.find("gate", op=self.task.op, case=case_hash, id=winner["id"])
        if before is not None and not before["noisy"]:
            self.progress.note(f"{self.task.op}: gate: decided before")
            result = gate.GateResult.read(before, self.options.min_speedup)
        else:
            result = self._measure(judge, i, winner["id"], record, source, key)
            self.run.add("gate", {"op": self.task.op, "case": case_hash, "id": winner["id"], **result.json()})
        if result.passed and self.options.promote:
            self._sanitize(i, record, source, key)
        self._decide(record, source, key, case_hash, result, row, self.job.floors[i])

    def _measure(
        self, judge: Judge, i: int, id_: str, record: dict[str, Any], source: bytes, key: dict[str, Any]
    ) -> gate.GateResult:
        staging, reference = self.stage_kernel(record, source, key)
        with self.progress.step(f"{self.task.op}: gate in a fresh process") as say:
            say("inputs of new seeds")
            fresh = sets.for_gate(judge, self.task, self.reference, i)
            names = [n for n, v in fresh[0].args.items() if v is not None]
            with gate.Gate(
                self.task.cases[i], names, fresh, staging, reference, say, index=self.device.index or 0,
                patience=self.patience,
            ) as g:
                del fresh
                devices.release(self.device)
                return gate.run(g, id_, self.options.min_speedup)

    def stage_kernel(self, record: dict[str, Any], source: bytes, key: dict[str, Any]) -> tuple[Path, Path | None]:
        """A registry of this Kernel alone, and where its reference is."""
        staging = self.run.path / "staging"
        shutil.rmtree(staging, ignore_errors=True)
        return staging, self._put(staging, record, source, key)

    def _sanitize(self, i: int, record: dict[str, Any], source: bytes, key: dict[str, Any]) -> None:
        """What compute-sanitizer finds, into the Record; once a Kernel, on the first Case that it is promoted for."""
        wanted = self.options.sanitize and self.device.type == "cuda"
        program, id_ = sanitizer.find() if wanted else None, record["id"]
        if program is None:
            return
        if id_ not in self._sanitized:
            staging, _ = self.stage_kernel(record, source, key)
            with self.progress.step(f"{self.task.op}: compute-sanitizer"), devices.alone(self.device):
                drawn = self.reference.draw(self.task.cases[i], sets.secret_seed())
                args = sets.tensors(self.task, drawn)
                names = [n for n, v in args.items() if v is not None]
                self._sanitized[id_] = sanitizer.examine(
                    program, self.task.cases[i], names, args, drawn.captured, staging, id_, index=self.device.index or 0
                )
            said = sanitizer.words(self._sanitized[id_])
            self.progress.note(f"{self.task.op}: compute-sanitizer: {said or 'nothing found'}")
        record["details"] = {**record.get("details", {}), "sanitizer": self._sanitized[id_]}

    def _complete(self, winner: dict[str, Any]) -> dict[str, Any]:
        source = "kernel.cu" if self.device.type == "cuda" else "kernel.c"
        record = {**winner["record"], "source": source, "created": now(), "tunables": winner["tunables"]}
        record["proposer"] = {"name": "builtin", "template": winner["source"]}
        if self.options.asking is not None:
            record["proposer"] = {
                "name": self.options.asking.proposer, "model": (self.options.asking.llm or {}).get("model"),
                "strategy": self.options.asking.strategy, "answer": winner["source"],
            }  # fmt: skip
        record.setdefault("environment", {})["torch"] = torch.__version__
        record["details"] = {**record.get("details", {}), **self.about}
        from . import spread  # it brings torch's compiler in

        hashes = {_libkgen.case_key(self.contract, c)[1]: i for i, c in enumerate(self.task.cases)}
        return spread.attach(record, self.task, hashes)

    def _put(self, registry: Path, record: dict[str, Any], source: bytes, key: dict[str, Any]) -> Path | None:
        canonical = self.task.contract["reference"]["kind"] == "torch"
        folder = None if canonical else self.task.folder
        try:
            _libkgen.registry_promote(registry, self.contract, folder, source, record, [key])
        except KgenError as e:
            hint = "" if registry == self.run.path / "staging" else "; what was found is in the Run: --resume promotes it"
            raise type(e)(f"registry {registry}: {e}{hint}") from e
        return None if canonical else registry / self.task.op

    def _decide(
        self, record: dict[str, Any], source: bytes, key: dict[str, Any], case_hash: str, result: gate.GateResult,
        row: Row, floor_ns: float,
    ) -> None:  # fmt: skip
        row.gate = result.json()
        row.baseline, row.baseline_ns, row.kgen_ns = result.baseline, result.baseline_ns, result.kgen_ns
        row.speedup = result.speedup if result.rounds else None
        row.reason = result.reason
        for entry in record.get("cases", []):
            if entry.get("case") != case_hash:
                continue
            # What the judge measured was possible, whatever this machine was thought to be capable of.
            floor_ns = min(floor_ns, entry["time_ns"]["median"]) if "time_ns" in entry else floor_ns
            floor_ns = max(floor_ns, entry.get("floor_ns") or 0.0)
            median, low, high = result.speedup
            entry["baseline"] = {"name": result.baseline, "median_ns": result.baseline_ns}
            entry["speedup"] = {"median": median, "low": low, "high": high}
            entry["baselines"], entry["noisy"] = result.baselines, result.noisy
        if floor_ns and result.kgen_ns:
            row.floor_share = floor_ns / result.kgen_ns
        if not result.passed:
            return
        if not self.options.promote:
            row.state, row.reason = "passed", "it passed the gate; --no-promote"
            return
        self._put(self.registry, record, source, key)
        found = _libkgen.registry_find(self.registry, f"{self.task.op}/{record['id']}")
        row.state, row.kernel = "promoted", f"{self.task.op}/v{found['version']}"
        done = {"op": self.task.op, "case": case_hash, "id": record["id"], "kernel": row.kernel}
        done["registry"] = str(self.registry.absolute())
        if self.run.find("promote", **done) is None:
            self.run.add("promote", done)


def _no_winner(found: dict[str, Any]) -> str:
    if "asked" in found and not found["asked"]["candidates"]:
        return f"no Candidate came ({found['asked']['ended_by'] or 'nothing was asked'})"
    counts = ", ".join(f"{n} {v}" for v, n in found["verdicts"].items())
    return f"no Candidate passed ({counts})" if counts else "no Candidate is for this Case"


def tune_model(model: capture.Model, options: Options, progress: Progress | None = None) -> Report:
    """Tunes a captured model; the Report. KgenError says what was wrong; KeyboardInterrupt leaves a Run to resume."""
    progress = progress or Progress()
    started = time.monotonic()
    run_dir = options.run_dir or default_dir(model.title)
    registry = _promote_to(options)
    device = capture.device_for(model, options.device)
    where = [device] if options.device is None else devices.check_several(devices.parse_several(options.device))
    asked = _asked(options, model.source.name, model.source.sha256, device.type)
    with Run(run_dir, asked, options.resume) as run:
        progress.note(f"Run {run_dir}")
        with stoppable() as stop:
            try:
                jobs, left = _plan(model, run, options, progress)
            except KgenError:
                run.discard()
                raise
            if options.capture_only:
                return Report(run_dir, registry, model.title, time.monotonic() - started, left)
            rows = _tune_all(jobs, run, registry, options, progress, stop, where)
        report = Report(run_dir, registry, model.title, time.monotonic() - started, rows + left)
        write_json(run_dir / "result.json", report.json())
    return report


def _promote_to(options: Options) -> Path:
    registry = options.registry or registries.promote_to()
    if options.promote:
        registries.check_writable(registry.absolute())
    return registry


def _asked(options: Options, model: str, sha256: str | None, device: str) -> dict[str, Any]:
    """What a Run is known by (runs.ASKED)."""
    return {
        "model": model,
        "sha256": sha256,
        "torch": torch.__version__,
        "patterns": list(options.patterns),
        "mode": {None: None, True: "train", False: "eval"}[options.train],
        "device": device,
        "precision": options.precision,
        **options.asked,
    }


def task_device(task: tasks.Task, asked: str | None) -> torch.device:
    """Where a Task is judged: on the kind of device that it was captured on; asked says which GPU."""
    kind = str(task.cases[0]["device"])
    device = devices.parse(asked) if asked is not None else devices.parse(kind)
    if device.type != kind:
        raise BadInput(f"--device {asked}: {task.folder} was captured on {kind}; capture it on {device.type} to judge it there")
    if device.type == "cuda" and asked is None:
        return devices.check(device, "the Task's device")
    return devices.check(device)


def tune_task(folder: Path, options: Options, progress: Progress | None = None) -> Report:
    """Searches over a Task that `kgen capture` wrote, as tune_model does over those of a model."""
    progress = progress or Progress()
    started = time.monotonic()
    task = tasks.read(folder)
    device = task_device(task, options.device)
    run_dir, registry = options.run_dir or default_dir(task.op), _promote_to(options)
    texts = b"".join(p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file())
    asked = _asked(options, folder.name, hashlib.sha256(texts).hexdigest(), device.type)
    with Run(run_dir, asked, options.resume) as run, stoppable() as stop:
        progress.note(f"Run {run_dir}")
        if run.find("survey") is None:
            shutil.copytree(folder, run_dir / "tasks" / task.op, dirs_exist_ok=True)
            job = Job(task.op, 1.0, 1.0, (0.0,) * len(task.cases))
            run.add("survey", {"jobs": [vars_of(job)], "left": []})
        known = run.find("survey")
        jobs = [Job(**{**j, "floors": tuple(j["floors"])}) for j in (known or {})["jobs"]]
        rows = _tune_all(jobs, run, registry, options, progress, stop, [device])
        report = Report(run_dir, registry, task.op, time.monotonic() - started, rows)
        write_json(run_dir / "result.json", report.json())
    return report


def _tune_all(
    jobs: list[Job], run: Run, registry: Path, options: Options, progress: Progress, stop: Stop,
    where: Sequence[torch.device],
) -> list[Row]:  # fmt: skip
    """Every Op with its part of what the ones before left of the budget."""
    rows: list[Row] = []
    left_over, spent = options.budget, {"calls": 0, "tokens": 0, "nano_usd": 0}
    if options.asking is not None and jobs:
        progress.always(askings.told(options.asking, [j.op for j in jobs]))
        (run.path / "prompts" / "DONE").unlink(missing_ok=True)
    for i, job in enumerate(jobs):
        part = job.weight / sum(j.weight for j in jobs[i:])
        tuner = OpTuner(job, run, registry, options, progress, stop, where)
        tuner.limits = askings.part_of(options.limits, spent, part)
        rows += tuner.rows(left_over * part)
        left_over = max(0.0, left_over - tuner.searched)
        spent = {k: v + tuner.spent[k] for k, v in spent.items()}
    if options.asking is not None:
        say_done(run.path, rows)
    return rows


def say_done(run: Path, rows: Sequence[Row]) -> None:
    """prompts/DONE, for whoever answers with files: what became of each Case."""
    if (run / "prompts").is_dir():
        write_text(run / "prompts" / "DONE", "".join(f"{_outcome(r)}\n" for r in rows))


def _outcome(row: Row) -> str:
    """For whoever answered the Run's questions."""
    times = ""
    if row.speedup is not None:
        low, high = row.speedup[1:]
        times = f": {row.kgen_ns / 1e6:.3g} ms, {row.speedup[0]:.2f}x ({low:.2f}..{high:.2f}) as fast as {row.baseline}"
    return f"{row.op} {row.case}: {row.state}{times}{f'; {row.reason}' if row.reason else ''}"


def _plan(model: capture.Model, run: Run, options: Options, progress: Progress) -> tuple[list[Job], list[Row]]:
    """What to tune and what is left alone, from the journal if an earlier life of the Run came that far. The Tasks are in
    the Run afterwards."""
    known = run.find("survey")
    if known is not None and model.source.sha256 is not None:
        progress.note("captured before: the Tasks are those of the Run")
    else:
        known = _capture_tasks(model, run, options, progress, known)
    return [Job(**{**j, "floors": tuple(j["floors"])}) for j in known["jobs"]], [Row(**r) for r in known["left"]]


def _capture_tasks(
    model: capture.Model, run: Run, options: Options, progress: Progress, known: dict[str, Any] | None
) -> dict[str, Any]:
    captured, survey, chosen = survey_model(model, options, progress)
    jobs: list[Job] = []
    left: list[Row] = []
    for target in chosen:
        gpu = captured.device.type == "cuda"
        if target.reason is not None or (options.asking is None and not _has_template(target.op, gpu)):
            left.append(_left_row(target))
            continue
        try:
            resolved = targets.resolve(captured, target)
            folder = run.path / "tasks" / resolved.op  # an Op of the model's own has its full name only now
            if known is None:
                tasks.write(resolved, captured, folder, options.precision)
            else:
                _check_task(resolved, captured, folder, options.precision)
        except NotATarget as e:
            left.append(Row(target.op, target.title, "", target.share, "left", str(e)))
            continue
        weight = max(resolved.headroom, OP_SHARE)
        least = tuple(floors.of_case(c, survey.machine) for c in resolved.cases)
        jobs.append(Job(resolved.op, resolved.share, weight, least))
    rest = [t for t in survey.targets if t not in chosen and (t.canonical or not options.patterns)]
    left += [_left_row(t, NO_TEMPLATE if options.asking is None else NOT_ASKED) for t in rest]
    whole = f"{model.title} itself"
    left += [Row(part.op, part.path or whole, "", 0.0, "left", part.reason) for part in survey.left]
    share = floors.own(captured, [t for t in survey.targets if not t.canonical], survey.machine)
    for row in left:
        row.floor_share = share.get(row.where)
    found = {"jobs": [vars_of(j) for j in jobs], "left": [vars_of(r) for r in left]}
    if known is None:
        run.add("survey", found)
    return found


def vars_of(x: Any) -> dict[str, Any]:
    """The fields of a dataclass, as they are."""
    return {name: getattr(x, name) for name in x.__dataclass_fields__}


def _check_task(resolved: Any, captured: capture.Capture, folder: Path, precision: str) -> None:
    """BadInput unless the Task in a Run is what a model without a file gives now."""

    def keys(task: tasks.Task) -> list[str]:
        contract = (task.folder / "op.json").read_text()
        return [_libkgen.case_key(contract, case)[1] for case in task.cases]

    with tempfile.TemporaryDirectory(dir=folder.parent) as aside:
        now_ = tasks.read(tasks.write(resolved, captured, Path(aside) / "task", precision))
        same = folder.is_dir() and keys(now_) == keys(tasks.read(folder))
    if not same:
        raise BadInput(
            f"{folder}: this Task is not what the model and its inputs give now: resume with those that the Run was begun "
            "with, or begin anew with another run_dir"
        )


def _left_row(target: Any, reason: str = NO_TEMPLATE) -> Row:
    return Row(target.op, target.title, "", target.share, "left", target.reason or reason)


def tune(
    target: Any, example_inputs: Any, *, budget: str | float = "15m", registry: str | os.PathLike[str] | None = None,
    run_dir: str | os.PathLike[str] | None = None, resume: bool = False, min_speedup: float = 1.05,
    targets: tuple[str, ...] = (), promote: bool = True,
) -> Report:  # fmt: skip
    """Tunes a live module or function on example inputs (a tuple of arguments, a dict of keywords, or a tensor), on the
    device that its tensors are on.

    budget: seconds, or "90s", "15m". registry: where to promote to (default: the first of KGEN_REGISTRY, else the
    user's). Raises KgenError with what was wrong. After it, kgen.reload() serves the new Kernels in this process.
    """
    options = Options(
        budget=parse_budget(budget) if isinstance(budget, str) else float(budget),
        min_speedup=min_speedup,
        patterns=tuple(targets),
        promote=promote,
        registry=Path(registry) if registry else None,
        run_dir=Path(run_dir) if run_dir else None,
        resume=resume,
    )
    return tune_model(capture.from_live(target, example_inputs), options)


def read_options(args: argparse.Namespace) -> Options:
    """What the command line says; BadInput names what does not go together."""
    if args.device is not None:
        devices.check_several(devices.parse_several(args.device))
    min_speedup = getattr(args, "min_speedup", 1.05)
    if not 0 < min_speedup < 1e6:
        raise BadInput(f"--min-speedup {min_speedup}: give a ratio such as 1.05")
    limits = askings.parse_budget(getattr(args, "budget", "15m"))
    whom = askings.from_args(args, limits)
    asked: dict[str, Any] = {"module": args.module, "inputs": args.inputs, "argv": list(args.script_args)}
    if whom is not None:
        asked |= {"proposer": whom.proposer, "strategy": whom.strategy}
    return Options(
        budget=limits.seconds,
        limits=limits,
        asking=whom,
        min_speedup=min_speedup,
        patterns=tuple(args.target or ()),
        train={"train": True, "eval": False, None: None}[args.mode],
        promote=not getattr(args, "no_promote", False),
        unsafe_cpu=bool(getattr(args, "unsafe_cpu", None)),
        registry=Path(args.registry) if getattr(args, "registry", None) else None,
        run_dir=Path(args.run) if getattr(args, "run", None) else None,
        resume=getattr(args, "resume", False),
        device=args.device,
        precision="native" if args.precision == "fp32" else args.precision,
        baselines=parse_time("--baselines", args.baselines) if hasattr(args, "baselines") else gate_build.TOTAL,
        asked=asked,
    )


def _load(args: argparse.Namespace) -> capture.Model:
    return capture.load(args.model, module=args.module, inputs=args.inputs, argv=tuple(args.script_args))


def resume_hint(args: argparse.Namespace, run_dir: Path) -> str:
    """The command that goes on with a Run, from the one that began it."""
    words = list(args.words)
    for gone in ("--resume", f"--run={run_dir}"):
        words = [w for w in words if w != gone]
    if "--run" in words:
        at = words.index("--run")
        del words[at : at + 2]
    tail = ["--run", str(run_dir), "--resume"]
    at = words.index("--") if "--" in words else len(words)
    return "kgen " + shlex.join(words[:at] + tail + words[at:])


def run_tune(args: argparse.Namespace) -> int:
    """`kgen tune`."""
    options = read_options(args)
    if args.resume and not args.run:
        raise BadInput("--resume: say which Run with --run DIR")
    model = _load(args)
    run_dir = options.run_dir or default_dir(model.title)
    args.resume_with = (run_dir, resume_hint(args, run_dir))
    if args.stages:
        if options.asking is None:
            raise BadInput("--stages goes with --proposer llm or files")
        from . import stages

        return stages.run_begin(model, replace(options, run_dir=run_dir), Progress(quiet=args.json))
    if not options.resume:  # which may have nothing left to ask
        askings.reach(options.asking)
    report = tune_model(model, replace(options, run_dir=run_dir), Progress(quiet=args.json))
    if args.json:
        print(json.dumps(report.json()))
    else:
        show_result(report)
    return 0


def run_capture(args: argparse.Namespace) -> int:
    """`kgen capture`: a Task folder for one target, or one below it for each of several."""
    options = read_options(args)
    out = Path(args.output)
    if out.exists() and not out.is_dir():
        raise BadInput(f"{out}: is a file; name a folder with -o")
    model = _load(args)
    progress = Progress(quiet=args.json)
    captured, survey, chosen = survey_model(model, options, progress)
    if not chosen:
        chosen = [t for t in survey.targets if t.reason is None][:1]
    if not chosen:
        raise BadInput(f"{args.model}: nothing in it can be a Task: " + "; ".join(p.reason for p in survey.left))
    written = []
    for target in chosen:
        if target.reason is not None:
            raise BadInput(f"{target.title}: {target.reason}")
        resolved = targets.resolve(captured, target)
        folder = out if len(chosen) == 1 else out / resolved.op
        tasks.write(resolved, captured, folder, options.precision)
        written.append({"op": resolved.op, "folder": str(folder), "cases": len(resolved.cases), "share": target.share})
    for row in written:
        cases = f"{row['cases']} Case{'s' * (row['cases'] != 1)}"
        print(json.dumps(row) if args.json else f"{row['op']}: {cases} in {row['folder']}")
    return 0
