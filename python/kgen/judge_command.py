"""`kgen judge`: candidate files against a Task, without a Run."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch

from . import _libkgen, devices, sets
from . import task as tasks
from .errors import BadInput, CheckFailed
from .interrupts import stoppable
from .judge import Judge
from .mutants import Examiner, doubts
from .reference import Reference
from .runs import now
from .tune import task_device
from .ui import Progress, milliseconds


def judge_files(
    task: tasks.Task, files: list[Path], tunables: dict[str, int] | None, timing: bool, progress: Progress,
    device: torch.device = devices.CPU, *, ahead: int = 0, any_size: bool = False, sass: bool = False,
    **limits: Any,
) -> Iterator[dict[str, Any]]:  # fmt: skip
    """The Records of Candidates judged on every Case of a Task, one as soon as it is there.

    ahead: threads that compile while others are judged. any_size: builds as a dynamic pin serves them. sass: with
    `listing`, the machine code. limits: of the Judge.
    """
    reference = Reference.open(task, device.index or 0)
    contract = (task.folder / "op.json").read_text()
    examiner = Examiner(reference)
    with (
        Judge(contract, device=device, **limits) as judge,
        devices.room_for(device, f"judging {task.op}"),
        ThreadPoolExecutor(max_workers=max(1, ahead)) as compilers,
    ):
        for i in range(len(task.cases)):
            with progress.step(f"inputs and fp64 oracles of Case {i + 1}/{len(task.cases)}"):
                sets.fill(judge, task, reference, i, examiner)
        about = examiner.found(judge)

        def compile_one(path: Path) -> None:
            source = path.read_bytes()
            values = complete_tunables(contract, source, path.name, tunables)
            judge.prepare(source, name=path.name, tunables=values, any_size=any_size)

        waiting = [compilers.submit(compile_one, path) if ahead else None for path in files]
        try:
            for path, compiled in zip(files, waiting, strict=True):
                source = path.read_bytes()
                if compiled is not None:
                    compiled.exception()  # what it met, the judge meets again and tells
                with progress.step(f"judging {path.name}"):
                    values = complete_tunables(contract, source, path.name, tunables)
                    record = judge.run(
                        source, name=path.name, tunables=values, any_size=any_size, reps=21 if timing else 0
                    )
                record.setdefault("environment", {})["torch"] = torch.__version__
                record["source"], record["created"] = path.name, now()
                record["details"] = {**record.get("details", {}), **about}
                if sass:
                    record["listing"] = judge.listing(source, name=path.name, tunables=values)
                yield record
        finally:
            compilers.shutdown(wait=True, cancel_futures=True)


def read_tunables(text: str | None) -> dict[str, int] | None:
    """--tunables: a JSON object of integers."""
    if text is None:
        return None
    try:
        values = json.loads(text)
    except ValueError as e:
        raise BadInput(f"--tunables {text}: not JSON: {e}; give values such as '{{\"BLOCK_M\": 64}}'") from e
    right = isinstance(values, dict) and all(isinstance(v, int) and not isinstance(v, bool) for v in values.values())
    if not right:
        raise BadInput(f"--tunables {text}: give an object of integers, such as '{{\"BLOCK_M\": 64}}'")
    return values


def complete_tunables(
    contract: str, source: bytes, name: str, given: dict[str, int] | None
) -> dict[str, int] | None:
    """What was given, and the default of the rest. A plan that is wrong is the judge's to condemn."""
    if given is None:
        return None
    try:
        return {**_libkgen.candidate_check(contract, source, name)["tunables"], **given}
    except BadInput:
        return given


def _task_folder(text: str) -> Path:
    """BadInput that names the Tasks below when the folder is the parent of several."""
    folder = Path(text)
    if not folder.is_dir():
        raise BadInput(f"{text}: no such folder (`kgen capture MODEL -o {text}` makes a Task)")
    if not (folder / "task.json").is_file():
        below = sorted(str(p.parent) for p in folder.glob("*/task.json"))
        if below:
            raise BadInput(f"{text}: holds several Tasks; name one: {', '.join(below)}")
        raise BadInput(f"{text}: is no Task folder, it has no task.json (`kgen capture MODEL -o {text}` makes one)")
    return folder


def _record_lines(path: Path, record: dict[str, Any]) -> list[str]:
    """What people see of a Record: the verdict with what led to it, and times of what passed."""
    lines = [f"{path}: {record['verdict']}" + (f": {record['message'].rstrip()}" if record.get("message") else "")]
    cases = record.get("cases", [])
    for case in cases if record["verdict"] == "pass" or len(cases) > 1 else []:
        text = case["verdict"]
        if text == "pass":
            text = f"norm error {case['norm_err']:.2g} (torch's own {case['torch_norm_err']:.2g})"
        if "time_ns" in case:
            floor = milliseconds(case.get("floor_ns", 0))
            text = f"{milliseconds(case['time_ns']['median'])} (floor {floor}), {text}"
        lines.append(f"  case {case['case'][:12]}: {text}")
    lines += [f"  {line}".rstrip() for line in record.get("listing", "").splitlines()]
    return lines


def run_judge(args: argparse.Namespace) -> int:
    """`kgen judge`: 0 if every file passes, 1 if not."""
    tunables = read_tunables(args.tunables)
    files = [Path(f) for f in args.files]
    for path in files:
        if not path.is_file():
            raise BadInput(f"{path}: no such file")
    task = tasks.read(_task_folder(args.task))
    device = task_device(task, args.device)
    failed = 0
    with stoppable():
        records = judge_files(task, files, tunables, not args.no_timing, Progress(quiet=args.json), device, sass=args.sass)
        for path, record in zip(files, records, strict=True):
            failed += record["verdict"] != "pass"
            print(json.dumps(record) if args.json else "\n".join(_record_lines(path, record)), flush=True)
        if not args.json:
            print("".join(doubts(record["details"])), end="")
    if failed and not args.json:
        raise CheckFailed(f"{failed} of {len(files)} did not pass")
    return 1 if failed else 0
