"""tune, capture and judge: from a model to promoted Kernels.

A Run is a folder: run.json (what was asked), tasks/<op>/, journal.jsonl, candidates/, staging/ (a registry for the gate) and
result.json. Everything that was learnt is in the journal, so a Run that was stopped or killed goes on with --resume.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import json
import os
import re
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from . import _libkgen, capture, gate, registries, sets, targets
from . import task as tasks
from ._paths import kernels_dir
from .commands import key_text
from .errors import BadInput, CheckFailed, NotATarget
from .judge import Judge
from .reference import Reference
from .ui import Progress, show_result

FORMAT = 1


@dataclass(frozen=True)
class Options:
    """How to tune. budget is in seconds, for the search over all Ops together."""

    budget: float = 900.0
    min_speedup: float = 1.05
    patterns: tuple[str, ...] = ()
    train: bool | None = None
    promote: bool = True
    registry: Path | None = None
    run_dir: Path | None = None
    resume: bool = False


@dataclass
class Row:
    """What became of one Case. state: promoted, kept (nothing better found), left (not tried)."""

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


def parse_budget(text: str) -> float:
    """"90s", "15m", "1h" in seconds."""
    m = re.fullmatch(r"(\d+(?:\.\d+)?)([smh])", text.strip())
    if not m or float(m[1]) <= 0:
        raise BadInput(f"--budget {text}: give a time such as 90s, 15m or 1h")
    return float(m[1]) * {"s": 1, "m": 60, "h": 3600}[m[2]]


@contextlib.contextmanager
def stoppable() -> Iterator[None]:
    """Ctrl-C and SIGTERM ask the library to wind down; what is under way is in the journal before we leave."""

    def ask(*_: object) -> None:
        _libkgen.stop(True)
        raise KeyboardInterrupt

    held = {}
    for number in (signal.SIGINT, signal.SIGTERM):
        with contextlib.suppress(ValueError):  # not the main thread: its front decides
            held[number] = signal.signal(number, ask)
    _libkgen.stop(False)
    try:
        yield
    finally:
        for number, handler in held.items():
            signal.signal(number, handler)
        _libkgen.stop(False)


def default_run_dir(model: str) -> Path:
    """<cache>/runs/<model>-<time>."""
    base = os.environ.get("KGEN_CACHE") or os.path.join(
        os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache"), "kgen"
    )
    stamp = datetime.datetime.now(datetime.timezone.utc).strftime("%Y%m%d-%H%M%S")
    return Path(base) / "runs" / f"{re.sub(r'[^A-Za-z0-9_.-]', '_', model)}-{stamp}"


def _write_json(path: Path, value: Any) -> None:
    aside = path.with_name(f".tmp-{path.name}")
    with open(aside, "w") as f:
        f.write(json.dumps(value, indent=1) + "\n")
        f.flush()
        os.fsync(f.fileno())
    os.replace(aside, path)


def open_run(run_dir: Path, model: str, options: Options) -> None:
    """Makes a Run's folder, or checks that it is one to go on with."""
    path = run_dir / "run.json"
    asked = {"format": FORMAT, "model": model, "patterns": list(options.patterns), "min_speedup": options.min_speedup}
    if path.is_file():
        if not options.resume:
            raise BadInput(f"{run_dir} is a Run already: give --resume to go on with it, or another --run")
        there = tasks.read_json(path, None)
        if there.get("model") != model:
            raise BadInput(f"{run_dir} is a Run of {there.get('model')}, not of {model}")
        return
    if options.resume:
        raise BadInput(f"{run_dir} is no Run: there is no run.json to resume from")
    if run_dir.exists() and any(run_dir.iterdir()):
        raise BadInput(f"{run_dir} is not empty and no Run: give an empty or a new folder")
    run_dir.mkdir(parents=True, exist_ok=True)
    _write_json(path, {**asked, "torch": torch.__version__, "created": _now()})


def _now() -> str:
    return datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")


def survey_model(model: capture.Model, options: Options, progress: Progress) -> tuple[Any, Any, list[Any]]:
    """The capture, all Targets, and those to tune."""
    with progress.step(f"running {model.title}"):
        captured = capture.Capture(model, train=options.train)
    with progress.step("reading its graph"):
        survey = targets.survey(captured)
    if options.patterns:
        chosen = targets.select(survey, list(options.patterns))
    else:
        chosen = [t for t in survey.targets if t.canonical and t.reason is None]
    return captured, survey, chosen


def _has_template(op: str) -> bool:
    return any(f'"op": "{op}"' in p.read_text(errors="replace") for p in kernels_dir().glob("*/*.c"))


class OpTuner:
    """One Op of a Run: judge, search, gate, promotion."""

    def __init__(
        self, task: tasks.Task, run_dir: Path, registry: Path, options: Options, progress: Progress, share: float
    ):
        self.task, self.run_dir, self.registry = task, run_dir, registry
        self.options, self.progress, self.share = options, progress, share
        self.reference = Reference.open(task)
        self.contract = (task.folder / "op.json").read_text()

    def rows(self, budget: float) -> list[Row]:
        """Searches and gates every Case."""
        with Judge(self.contract) as judge:
            degenerate = self._fill(judge)
            found = self._search(judge, budget)
            rows = [self._row(i) for i in range(len(self.task.cases))]
            best = {w["case"]: w for w in found["winners"]}
            for i, row in enumerate(rows):
                row.verdicts = found["verdicts"]
                if not found["sources"]:
                    row.state, row.reason = "left", "no template for this Op"
                elif i not in best:
                    row.reason = _no_winner(found)
                elif i in degenerate:
                    row.reason = f"degenerate Task: {degenerate[i]} would pass"
                else:
                    self._gate(judge, i, best[i], row)
        return rows

    def _row(self, i: int) -> Row:
        case = self.task.cases[i]
        key, _ = _libkgen.case_key(self.contract, case)
        return Row(self.task.op, str(self.task.meta.get("title", "")), key_text(key), self.share, "kept")

    def _fill(self, judge: Judge) -> dict[int, str]:
        """Adds Cases and sets; the Cases that a trivial answer would pass."""
        degenerate = {}
        for i in range(len(self.task.cases)):
            with self.progress.step(f"{self.task.op}: inputs and fp64 oracle of Case {i + 1}/{len(self.task.cases)}"):
                dropped = sets.fill(judge, self.task, self.reference, i)
                if trivial := judge.trivial(i):
                    degenerate[i] = ", ".join(sorted({t["answer"] for t in trivial}))
            for name, reason in dropped.items():
                self.progress.note(f"{self.task.op}: inputs '{name}' left out: {reason}")
        return degenerate

    def _search(self, judge: Judge, budget: float) -> dict[str, Any]:
        options = {"budget_ms": int(budget * 1000), "kernels": str(kernels_dir())}
        with self.progress.search(self.task.op, budget) as tell:
            return _libkgen.search(judge.handle, self.run_dir, options, tell)

    def _gate(self, judge: Judge, i: int, winner: dict[str, Any], row: Row) -> None:
        case, record = self.task.cases[i], winner["record"]
        key, case_hash = _libkgen.case_key(self.contract, case)
        record = self._complete(record, winner)
        source = Path(winner["file"]).read_bytes()
        staging = self.run_dir / "staging"
        shutil.rmtree(staging, ignore_errors=True)
        reference = self._put(staging, record, source, key)
        fresh = sets.for_gate(judge, self.task, self.reference, i)
        names = [n for n, v in fresh[0].args.items() if v is not None]
        with self.progress.step(f"{self.task.op}: gate in a fresh process") as say:
            with gate.Gate(case, names, fresh, staging, reference, say) as g:
                result = gate.run(g, winner["id"], self.options.min_speedup)
        _libkgen.journal_add(
            self.run_dir, "gate", {"op": self.task.op, "case": case_hash, "id": winner["id"], **result.json()}
        )
        self._decide(record, source, key, case_hash, result, row)

    def _complete(self, record: dict[str, Any], winner: dict[str, Any]) -> dict[str, Any]:
        record = {**record, "source": "kernel.c", "created": _now(), "tunables": winner["tunables"]}
        record["proposer"] = {"name": "builtin", "template": winner["source"]}
        environment = record.setdefault("environment", {})
        environment["torch"] = torch.__version__
        return record

    def _put(self, registry: Path, record: dict[str, Any], source: bytes, key: dict[str, Any]) -> Path | None:
        canonical = self.task.contract["reference"]["kind"] == "torch"
        folder = None if canonical else self.task.folder
        _libkgen.registry_promote(registry, self.contract, folder, source, record, [key])
        return None if canonical else registry / self.task.op

    def _decide(
        self, record: dict[str, Any], source: bytes, key: dict[str, Any], case_hash: str, result: Any, row: Row
    ) -> None:
        row.gate = result.json()
        row.baseline, row.baseline_ns, row.kgen_ns = result.baseline, result.baseline_ns, result.kgen_ns
        row.speedup = result.speedup if result.rounds else None
        row.reason = result.reason
        for entry in record.get("cases", []):
            if entry.get("case") != case_hash:
                continue
            if entry.get("floor_ns") and result.kgen_ns:
                row.floor_share = entry["floor_ns"] / result.kgen_ns
            median, low, high = result.speedup
            entry["baseline"] = {"name": result.baseline, "median_ns": result.baseline_ns}
            entry["speedup"] = {"median": median, "low": low, "high": high}
        if not result.passed:
            return
        if not self.options.promote:
            row.reason = "passed the gate; --no-promote"
            return
        self._put(self.registry, record, source, key)
        found = _libkgen.registry_find(self.registry, f"{self.task.op}/{record['id']}")
        row.state, row.kernel = "promoted", f"{self.task.op}/v{found['version']}"
        _libkgen.journal_add(
            self.run_dir, "promote", {"op": self.task.op, "case": case_hash, "id": record["id"], "kernel": row.kernel}
        )


def _no_winner(found: dict[str, Any]) -> str:
    counts = ", ".join(f"{n} {v}" for v, n in found["verdicts"].items())
    return f"no Candidate passed ({counts})" if counts else "no Candidate is for this Case"


def tune_model(model: capture.Model, options: Options, progress: Progress | None = None) -> Report:
    """Tunes a captured model; the Report. KgenError says what was wrong; KeyboardInterrupt leaves a Run to resume."""
    progress = progress or Progress()
    started = time.monotonic()
    run_dir = options.run_dir or default_run_dir(model.title)
    registry = options.registry or registries.promote_to()
    open_run(run_dir, model.source.name, options)
    progress.note(f"Run {run_dir}")
    with stoppable():
        captured, survey, chosen = survey_model(model, options, progress)
        rows = [_left_row(t) for t in survey.targets if t not in chosen and (t.canonical or not options.patterns)]
        for part in survey.left:
            rows.append(Row(part.op, part.path, "", 0.0, "left", part.reason))
        tuned = _tune_targets(captured, chosen, run_dir, registry, options, progress)
    report = Report(run_dir, registry, model.title, time.monotonic() - started, tuned + rows)
    _write_json(run_dir / "result.json", report.json())
    return report


def _left_row(target: Any) -> Row:
    reason = target.reason or "no template for this Op (`kgen judge` takes any kernel for it)"
    return Row(target.op, target.title, "", target.share, "left", reason)


def _tune_targets(
    captured: Any, chosen: list[Any], run_dir: Path, registry: Path, options: Options, progress: Progress
) -> list[Row]:
    rows: list[Row] = []
    able = [t for t in chosen if t.reason is None and _has_template(t.op)]
    rows += [_left_row(t) for t in chosen if t not in able]
    total = sum(max(t.headroom, 0.01) for t in able)
    for target in able:
        try:
            resolved = targets.resolve(captured, target)
        except NotATarget as e:
            rows.append(Row(target.op, target.title, "", target.share, "left", str(e)))
            continue
        folder = tasks.write(resolved, captured, run_dir / "tasks" / resolved.op)
        budget = options.budget * max(target.headroom, 0.01) / total
        tuner = OpTuner(tasks.read(folder), run_dir, registry, options, progress, target.share)
        rows += tuner.rows(budget)
    return rows


def tune(
    target: Any, example_inputs: Any, *, budget: str | float = "15m", registry: str | os.PathLike[str] | None = None,
    run_dir: str | os.PathLike[str] | None = None, resume: bool = False, min_speedup: float = 1.05,
    targets: tuple[str, ...] = (), promote: bool = True,
) -> Report:  # fmt: skip
    """Tunes a live module or function on example inputs (a tuple of arguments, a dict of keywords, or a tensor).

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


def _options(args: argparse.Namespace) -> Options:
    if getattr(args, "device", "cpu") != "cpu":
        raise BadInput(f"--device {args.device}: this kgen tunes on cpu")
    return Options(
        budget=parse_budget(getattr(args, "budget", "15m")),
        min_speedup=getattr(args, "min_speedup", 1.05),
        patterns=tuple(args.target or ()),
        train={"train": True, "eval": False, None: None}[args.mode],
        promote=not getattr(args, "no_promote", False),
        registry=Path(args.registry) if getattr(args, "registry", None) else None,
        run_dir=Path(args.run) if getattr(args, "run", None) else None,
        resume=getattr(args, "resume", False),
    )


def _load(args: argparse.Namespace) -> capture.Model:
    return capture.load(args.model, module=args.module, inputs=args.inputs, argv=tuple(args.script_args))


def run_tune(args: argparse.Namespace) -> int:
    """`kgen tune`."""
    options = _options(args)
    if args.resume and not args.run:
        raise BadInput("--resume: say which Run with --run DIR")
    model = _load(args)
    if not options.run_dir:
        args.run = str(default_run_dir(model.title))
        options = Options(**{**{f: getattr(options, f) for f in Options.__dataclass_fields__}, "run_dir": Path(args.run)})
    report = tune_model(model, options, Progress(quiet=args.json))
    if args.json:
        print(json.dumps(report.json()))
    else:
        show_result(report)
    return 0


def run_capture(args: argparse.Namespace) -> int:
    """`kgen capture`: a Task folder for one target, or one below it for each of several."""
    options = _options(args)
    model = _load(args)
    progress = Progress(quiet=args.json)
    captured, survey, chosen = survey_model(model, options, progress)
    if not chosen:
        chosen = [t for t in survey.targets if t.reason is None][:1]
    if not chosen:
        raise BadInput(f"{args.model}: nothing in it can be a Task: " + "; ".join(p.reason for p in survey.left))
    out = Path(args.output)
    written = []
    for target in chosen:
        if target.reason is not None:
            raise BadInput(f"{target.title}: {target.reason}")
        resolved = targets.resolve(captured, target)
        folder = out if len(chosen) == 1 else out / resolved.op
        tasks.write(resolved, captured, folder)
        written.append({"op": resolved.op, "folder": str(folder), "cases": len(resolved.cases), "share": target.share})
    for row in written:
        print(json.dumps(row) if args.json else f"{row['op']}: {row['cases']} Case(s) in {row['folder']}")
    return 0


def judge_files(
    task: tasks.Task, files: list[Path], tunables: dict[str, int] | None, timing: bool, progress: Progress
) -> list[dict[str, Any]]:
    """The Records of Candidates judged on every Case of a Task."""
    reference = Reference.open(task)
    contract = (task.folder / "op.json").read_text()
    records = []
    with Judge(contract) as judge:
        for i in range(len(task.cases)):
            with progress.step(f"inputs and fp64 oracle of Case {i + 1}/{len(task.cases)}"):
                sets.fill(judge, task, reference, i)
        for path in files:
            with progress.step(f"judging {path.name}"):
                record = judge.run(
                    path.read_bytes(), name=path.name, tunables=tunables, reps=21 if timing else 0
                )
            record.setdefault("environment", {})["torch"] = torch.__version__
            record["source"], record["created"] = path.name, _now()
            records.append(record)
    return records


def run_judge(args: argparse.Namespace) -> int:
    """`kgen judge`: 0 if every file passes, 1 if not."""
    folder = Path(args.task)
    if args.device != "cpu":
        raise BadInput(f"--device {args.device}: this kgen judges on cpu")
    tunables = None
    if args.tunables:
        try:
            tunables = json.loads(args.tunables)
        except ValueError as e:
            raise BadInput(f"--tunables {args.tunables}: not JSON: {e}") from e
    files = [Path(f) for f in args.files]
    for path in files:
        if not path.is_file():
            raise BadInput(f"{path}: no such file")
    with stoppable():
        records = judge_files(tasks.read(folder), files, tunables, not args.no_timing, Progress(quiet=args.json))
    for path, record in zip(files, records, strict=True):
        if args.json:
            print(json.dumps(record))
            continue
        print(f"{path}: {record['verdict']}" + (f": {record['message']}" if record.get("message") else ""))
        for case in record.get("cases", []):
            if "time_ns" in case:
                ms, floor = case["time_ns"]["median"] / 1e6, case.get("floor_ns", 0) / 1e6
                print(f"  case {case['case'][:12]}: {ms:.3f} ms (floor {floor:.3f} ms), norm error {case['norm_err']:.2g}")
    failed = [p for p, r in zip(files, records, strict=True) if r["verdict"] != "pass"]
    if failed and not args.json:
        raise CheckFailed(f"{len(failed)} of {len(files)} did not pass")
    return 1 if failed else 0

