"""`kgen bench-loop FOLDER`: a Run over each problem of a folder, and what came of all of them (bench_curves.py). A problem is a
KernelBench-style file, tuned as a whole, or a Task folder.

The folder of the results has a Run a problem; what is finished there is not done again, what is begun is gone on with, so
the command is simply given again after an interruption. A problem that cannot be tried is an error of its own and counts as
not solved; a proposer that cannot be asked ends the whole.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import shlex
import shutil
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from . import asking, bench_curves, capture, runs
from .bench_curves import Problem
from .errors import BadInput, EnvironmentLacks, KgenError
from .jsonfile import read_json
from .tune import Options, read_options, tune_model, tune_task
from .ui import LOG_WIDTH, Progress, SearchState, table

NAME = "bench.json"
KEYS = {"format", "folder", "asked", "problems", "summary"}


def problems_in(folder: Path) -> dict[str, Path]:
    """By name: KernelBench-style files, and folders with a task.json, at any depth. BadInput: there is none."""
    if not folder.is_dir():
        raise BadInput(f"{folder}: no such folder; give one with KernelBench-style files or Task folders")
    hidden = (".", "_")
    paths = [p.parent for p in folder.rglob("task.json")]
    paths += [p for p in folder.rglob("*.py") if not any((q / "task.json").is_file() for q in p.parents)]
    found = {}
    for path in sorted(paths):
        parts = path.relative_to(folder).with_suffix("" if path.suffix == ".py" else path.suffix).parts
        if parts and not any(part.startswith(hidden) for part in parts):
            found["-".join(parts)] = path
    if not found:
        raise BadInput(f"{folder}: has neither KernelBench-style files (*.py) nor Task folders in it")
    return found


# ---- what is seen ----


class _Within(Progress):
    """Of a Run within the benchmark: what goes on is shown, not kept."""

    def __init__(self, show: Callable[[str], None]):
        super().__init__(quiet=True)
        self.show = show

    def note(self, text: str) -> None:
        self.show(text.partition("\n")[0])

    def always(self, text: str) -> None:
        del text  # the benchmark said it once for all

    @contextlib.contextmanager
    def search(self, op: str, budget: float) -> Iterator[Callable[[dict[str, Any]], None]]:
        state = SearchState(op, budget)

        def tell(entry: dict[str, Any]) -> None:
            state.take(entry)
            self.show(state.text())

        yield tell


@contextlib.contextmanager
def _bar(total: int, outer: Progress) -> Iterator[Callable[[int, str], None]]:
    """Shows how many problems are done and what goes on: by rich where it is and there is a terminal, else as lines."""
    try:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn
        from rich.progress import Progress as Bar
    except ImportError:
        Bar = None  # noqa: N806
    if Bar is None or outer.quiet or not outer.terminal:
        said = [-1]

        def line(done: int, text: str) -> None:
            if done != said[0]:  # one line a problem
                said[0] = done
                outer.note(f"[{done}/{total}] {text}")

        yield line
        return
    columns = (BarColumn(20), MofNCompleteColumn(), TimeElapsedColumn(), TextColumn("{task.description}", markup=False))
    with Bar(*columns, console=Console(file=outer.out), transient=True) as bar:
        task = bar.add_task("", total=total)
        yield lambda done, text: bar.update(task, completed=done, description=text)


# ---- running ----


class Bench:
    """One benchmark: its folder of results and what it was asked."""

    def __init__(self, out: Path, folder: Path, asked: dict[str, Any]):
        self.out, self.folder, self.asked = out, folder, asked
        self.errors: dict[str, str] = {}

    def begin(self) -> None:
        """BadInput when the folder is something else, or was begun in another way."""
        there = self.out / NAME
        if there.is_file():
            before = read_json(there, KEYS)
            for key, value in self.asked.items():
                if before["asked"].get(key) != value:
                    raise BadInput(
                        f"{self.out} was begun with {key} {before['asked'].get(key)}, not {value}: go on with the same, or name "
                        "another --run"
                    )
            return
        if self.out.exists() and (not self.out.is_dir() or any(self.out.iterdir())):
            raise BadInput(f"{self.out} is not empty and no benchmark: name an empty or a new folder with --run")
        try:
            self.out.mkdir(parents=True, exist_ok=True)
        except OSError as e:
            raise EnvironmentLacks(f"{self.out}: results cannot be written there: {e.strerror}; name another --run") from e
        self.write([])

    def write(self, problems: list[Problem]) -> dict[str, Any]:
        text = {
            "format": 1, "folder": str(self.folder), "asked": self.asked, "problems": [p.json() for p in problems],
            "summary": bench_curves.summary(problems),
        }  # fmt: skip
        runs.write_json(self.out / NAME, text)
        return text

    def run(self, name: str, path: Path, options: Options, progress: Progress) -> None:
        """One problem to its end, unless it is there already."""
        run = self.out / name
        if (run / "result.json").is_file():
            return
        here = replace(options, run_dir=run, resume=(run / "run.json").is_file(), whole=True)
        try:
            if path.is_dir():
                tune_task(path, here, progress)
            else:
                tune_model(capture.load(str(path)), here, progress)
        except KgenError as e:
            if e.code == 130 or next(runs.entries(run, "loop"), None) is not None:
                raise  # the next problem would meet it as well
            self.errors[name] = " ".join(str(e).partition("\n")[0].split())

    def problem(self, name: str) -> Problem | None:
        """None: it was not begun."""
        if name in self.errors:
            return Problem(name, "error", self.errors[name])
        if not (self.out / name / "result.json").is_file():
            return None
        found = bench_curves.problem_of(name, self.out / name)
        if found.state == "unsolved":
            result = read_json(self.out / name / "result.json", runs.RESULT_KEYS)
            found.reason = found.reason or "; ".join(r["reason"] for r in result["rows"] if r["reason"])
        return found


def _asked(args: argparse.Namespace, options: Options) -> dict[str, Any]:
    """What the numbers of two problems must share to be compared."""
    whom = options.asking
    llm = (whom.llm or {}) if whom else {}
    return {
        "proposer": whom.proposer if whom else "builtin", "strategy": whom.strategy if whom else None,
        "llm": llm.get("model"), "effort": llm.get("effort"), "temperature": llm.get("temperature"), "budget": args.budget,
        "device": args.device, "precision": options.precision, "note": whom.notes if whom else None,
        "target_share": whom.target_share if whom else None,
    }  # fmt: skip


def run_bench(args: argparse.Namespace) -> int:
    """`kgen bench-loop`."""
    folder = Path(args.folder)
    found = problems_in(folder)
    options = replace(read_options(args), promote=False)
    out = options.run_dir or runs.default_dir(f"bench-{folder.resolve().name}")
    bench = Bench(out, folder, _asked(args, options))
    progress = Progress(quiet=args.json)
    bench.begin()
    if not all((out / name / "run.json").is_file() for name in found):
        asking.reach(options.asking)
    words = [w for w in args.words if w != f"--run={out}"]
    args.resume_with = (out, "kgen " + shlex.join(words if args.run else [*words, "--run", str(out)]))
    progress.note(f"{len(found)} problems, results in {out}")
    if options.asking is not None:
        progress.always(asking.told(options.asking, ["each problem"]))
    problems: list[Problem] = []
    with _bar(len(found), progress) as show:
        for i, (name, path) in enumerate(found.items()):
            show(i, f"{name}: begins")
            bench.run(name, path, options, _Within(lambda text, i=i, name=name: show(i, f"{name}: {text}")))
            if (one := bench.problem(name)) is not None:
                problems.append(one)
                bench.write(problems)
        show(len(found), "done")
    result = bench.write(problems)
    try:
        bench_curves.plot(problems, Path(args.plot) if args.plot else out / "bench.png")
    except EnvironmentLacks as e:
        if args.plot:
            raise
        progress.note(str(e))
    if args.json:
        print(json.dumps(result))
    else:
        width = max(80, shutil.get_terminal_size().columns) if sys.stdout.isatty() else LOG_WIDTH + 40
        print(bench_curves.tables(problems, width, table))
    return 0
