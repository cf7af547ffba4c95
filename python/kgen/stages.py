"""`kgen propose | evaluate | advance`: the stages of a Run, for machines that have either a network or the device. A Run that
`kgen tune --stages` began moves between them as it is.

advance decides what is asked next, propose asks it, evaluate judges what came. `evaluate --finish` tunes the best, brings
them to the gate and promotes. No stage needs the model again: the Tasks are in the Run.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from . import _libkgen, asking, devices, registries
from .errors import BadInput, EnvironmentLacks, KgenError
from .interrupts import stoppable
from .jsonfile import read_json
from .runs import KEYS, Run, entries, write_json
from .tune import Job, Options, OpTuner, Report, Row, say_done, tune_model
from .ui import Progress, show_result


def keep(run: Path, options: Options) -> None:
    """Writes down how the Run asks, without any secret; BadInput where that cannot be."""
    assert options.asking is not None
    for header in (options.asking.llm or {}).get("headers", ()):
        if not header.partition(":")[2].strip().startswith("env:"):
            raise BadInput(
                f"--header {header.partition(':')[0]}: with --stages the Run keeps it, so give its value as env:VARIABLE"
            )
    what = {
        "format": 1, "asking": asdict(options.asking), "limits": asdict(options.limits), "budget": options.budget,
        "min_speedup": options.min_speedup,
    }  # fmt: skip
    write_json(run / "stages.json", what)


class Staged:
    """A Run that stages work on."""

    def __init__(self, path: Path):
        self.path = path
        there = path / "stages.json"
        if not (path / "run.json").is_file():
            raise BadInput(f"{path} is no Run: there is no run.json in it")
        if not there.is_file():
            raise BadInput(f"{path} was not begun with `kgen tune --stages`: go on with `kgen tune --resume`")
        kept = read_json(there, {"format", "asking", "limits", "budget", "min_speedup"})
        self.asked = read_json(path / "run.json", KEYS)
        whom = kept["asking"]
        self.asking = asking.Asking(**{**whom, "files": tuple(whom["files"])})
        self.limits = asking.Budget(**kept["limits"])
        self.budget, self.min_speedup = float(kept["budget"]), float(kept["min_speedup"])
        survey = next(entries(path, "survey"), None)
        if survey is None:
            raise BadInput(f"{path}: its capture is not finished; give the `kgen tune --stages` command again with --resume")
        self.jobs = [Job(**{**j, "floors": tuple(j["floors"])}) for j in survey["jobs"]]
        self.left = [Row(**r) for r in survey["left"]]

    def open(self) -> Run:
        """Held by this process until it is closed."""
        return Run(self.path, {k: v for k, v in self.asked.items() if k not in ("format", "created")}, True)

    @property
    def target(self) -> str:
        """The kind of device that it was captured on and is judged on: cpu or cuda."""
        return str(self.asked.get("device", "cpu"))

    def where(self, asked: str | None) -> list[devices.Device]:
        """The devices that judge; asked says which GPUs. EnvironmentLacks where this machine has none."""
        option = "--device" if asked is not None else "the Run's device"
        found = devices.parse_several(asked or self.target, option)
        if found[0].type != self.target:
            raise BadInput(f"--device {asked}: {self.path} was captured on {self.target}; begin another Run for {found[0].type}")
        return devices.check_several(found, option)

    def parts(self) -> Iterator[tuple[Job, float]]:
        """Each Op with its seconds."""
        whole = sum(j.weight for j in self.jobs)
        for job in self.jobs:
            yield job, self.budget * job.weight / whole

    def options(self, registry: str | None, promote: bool, unsafe_cpu: bool = False) -> Options:
        return Options(
            budget=self.budget, min_speedup=self.min_speedup, promote=promote, registry=Path(registry) if registry else None,
            asking=self.asking, limits=self.limits, unsafe_cpu=unsafe_cpu,
        )  # fmt: skip

    def loop(self, op: str, limits: asking.Budget) -> dict[str, Any]:
        """The loop's options as the machine that judges has written them down, or without its numbers before it did."""
        seen = [e for e in entries(self.path, "machine") if e["op"] == op]
        last = seen[-1] if seen else {"target": self.target, "text": "", "cases": []}
        return asking.loop_options(
            self.asking, limits, self.path / "tasks" / op, last["target"], last["text"], last["cases"]
        )

    def without_judge(self, stage: str, progress: Progress) -> list[dict[str, Any]]:
        """advance or propose, over all Ops: what came of each."""
        done, spent = [], {"calls": 0, "tokens": 0, "nano_usd": 0}
        for i, (job, seconds) in enumerate(self.parts()):
            share = job.weight / sum(j.weight for j in self.jobs[i:])
            limits = asking.part_of(self.limits, spent, share) or asking.Budget(calls=1, tokens=1)
            contract = (self.path / "tasks" / job.op / "op.json").read_text()
            loop = {**self.loop(job.op, limits), "stage": stage}
            with progress.search(job.op, seconds) as tell:
                found = _libkgen.loop_stage(contract, self.path, loop, seconds, tell)
            spent = {k: v + found["spent"][k] for k, v in spent.items()}
            done.append({"op": job.op, **found})
        return done


def begin(model: Any, options: Options, progress: Progress) -> Staged:
    """Captures, and writes down how to ask."""
    run_dir = options.run_dir
    assert run_dir is not None
    tune_model(model, replace(options, capture_only=True), progress)
    keep(run_dir, options)
    staged = Staged(run_dir)
    llm = options.asking.llm if options.asking else None
    who = {"model": llm["model"], "host": _libkgen.llm_check(llm)["host"]} if llm else {"model": None, "host": None}
    with staged.open() as run:
        for job in staged.jobs:
            run.add("loop", {"op": job.op, "proposer": staged.asking.proposer, "strategy": staged.asking.strategy, **who})
    return staged


def run_begin(model: Any, options: Options, progress: Progress) -> int:
    """`kgen tune --stages`: also the first prompts."""
    staged = begin(model, options, progress)
    with staged.open():
        _say(staged.without_judge("advance", progress), progress)
    progress.note(f"next, where there is a network: kgen propose {staged.path}")
    return 0


def _say(done: list[dict[str, Any]], progress: Progress) -> None:
    for one in done:
        state = f"{one['open']} open prompts, {one['unjudged']} Candidates to judge"
        progress.note(f"{one['op']}: {asking.ended(one)}; {state}")


def run_stage(args: argparse.Namespace) -> int:
    """`kgen advance` and `kgen propose`."""
    staged = Staged(Path(args.run_dir))
    progress = Progress(quiet=args.json)
    if args.command == "propose" and staged.asking.proposer == "mcp":
        raise BadInput(f"{staged.path} asks the client of `kgen mcp`: serve it with `kgen mcp --run {staged.path}`")
    if args.command == "propose" and staged.asking.proposer == "llm":
        _libkgen.llm_check(staged.asking.llm or {})
    if args.command == "propose":
        progress.always(asking.told(staged.asking, [j.op for j in staged.jobs]))
    with staged.open(), stoppable():
        try:
            done = staged.without_judge(args.command, progress)
        except KgenError as e:
            if args.command == "propose" and "cannot be reached" in str(e):
                raise EnvironmentLacks(f"{e}; `kgen propose` is for a machine with a network") from e
            raise
    if args.json:
        print(json.dumps(done))
        return 0
    _say(done, progress)
    if args.command == "advance":
        over = all(d["over"] and not d["open"] for d in done)
        then = f"kgen evaluate {staged.path} --finish, where the device is" if over else f"kgen propose {staged.path}"
    else:
        then = f"kgen evaluate {staged.path}, where the device is"
    progress.note(f"next: {then}")
    return 0


def same_machine(run: Path, text: str) -> None:
    """EnvironmentLacks when the Run was judged on another machine: its times would not compare."""

    def kind(machine: str) -> str:
        return machine.partition("\n")[0]

    for e in entries(run, "machine"):
        if kind(e["text"]) != kind(text):
            raise EnvironmentLacks(
                f"{run} was evaluated on another machine ({kind(e['text'])[2:]}), and this one is {kind(text)[2:]}: "
                "their times do not compare; evaluate there, or begin another Run"
            )


def run_evaluate(args: argparse.Namespace) -> int:
    """`kgen evaluate`: judges what came; with --finish also the last tuning, the gate and promotion."""
    staged = Staged(Path(args.run_dir))
    progress = Progress(quiet=args.json)
    where = staged.where(args.device)
    options = staged.options(args.registry, not args.no_promote, bool(args.unsafe_cpu))
    registry = options.registry or registries.promote_to()
    if args.finish and options.promote:
        registries.check_writable(registry.absolute())
    rows: list[Row] = []
    with staged.open() as run, stoppable() as stop:
        for job, seconds in staged.parts():
            tuner = OpTuner(job, run, registry, options, progress, stop, where)
            tuner.stage = "finish" if args.finish else "evaluate"
            tuner.check_machine = lambda text: same_machine(staged.path, text)
            rows += tuner.rows(seconds)
    if not args.finish:
        progress.note(f"next: kgen advance {staged.path}")
        return 0
    report = Report(staged.path, registry, staged.asked["model"], 0.0, rows + staged.left)
    write_json(staged.path / "result.json", report.json())
    say_done(staged.path, rows)
    if args.json:
        print(json.dumps(report.json()))
    else:
        show_result(report)
    return 0
