"""The Tasks of the honest corpus: tests/judge/corpus/tasks/NAME.py captured as kgen captures a model, under the name NAME.

An Op of a model's own is named after its graph's hash, which is torch's to choose; a Candidate is written for one name. So
the Op is called NAME here. A file with a global TARGET means that part of its Model (a canonical Op, or a module's class),
and all of it without. As a program it judges honest files: python tests/judge/corpus_tasks.py FILE ...
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent.parent
if __name__ == "__main__":
    sys.path.insert(0, str(ROOT / "python"))

import torch  # noqa: E402

from kgen import own, targets, task as tasks  # noqa: E402
from kgen.capture import Capture, execute_file, load, place  # noqa: E402

CORPUS = ROOT / "tests" / "judge" / "corpus"
HONEST = CORPUS / "honest"


def names() -> list[str]:
    """Every Task of the corpus."""
    return sorted(p.stem for p in (CORPUS / "tasks").glob("*.py"))


def expected() -> dict[str, dict[str, Any]]:
    """expect.json: for each honest file its Task, the verdicts that are right, and why."""
    made: dict[str, dict[str, Any]] = json.loads((HONEST / "expect.json").read_text())
    return made


def write(name: str, folder: Path, device: torch.device = torch.device("cpu")) -> tasks.Task:
    """Captures a Task of the corpus into a folder, with its model on a device."""
    path = CORPUS / "tasks" / f"{name}.py"
    pattern = execute_file(path).get("TARGET")
    model = load(str(path))
    place(model, device)
    captured = Capture(model)
    if pattern in ("softmax", "attention"):
        found = targets.select(targets.survey(captured, own=False), [pattern])
        return tasks.read(tasks.write(targets.resolve(captured, found[0]), captured, folder))
    mine = [t for t in own.own_targets(captured) if t.reason is None]
    wanted = [t for t in mine if (targets.class_name(t.part.module) == pattern if pattern else "" in t.paths)]
    tasks.write(targets.resolve(captured, wanted[0]), captured, folder)
    _rename(folder, name)
    return tasks.read(folder)


def _rename(folder: Path, name: str) -> None:
    for path in (folder / "op.json", folder / "task.json", *(folder / "cases").glob("*.json")):
        value = json.loads(path.read_text())
        value["op"] = name
        if "schema" in value:
            value["schema"] = name + value["schema"][value["schema"].index("(") :]
        path.write_text(json.dumps(value, indent=1) + "\n")


def main(files: list[str]) -> int:
    from kgen.judge_command import judge_files
    from kgen.ui import Progress

    known, by_task, failed = expected(), {}, 0
    for path in map(Path, files):
        by_task.setdefault(known[path.name]["task"], []).append(path)
    with tempfile.TemporaryDirectory() as base:
        for name, paths in by_task.items():
            task = write(name, Path(base) / name)
            start = time.monotonic()
            for path, record in zip(paths, judge_files(task, paths, None, True, Progress(quiet=True)), strict=True):
                spent, start = time.monotonic() - start, time.monotonic()
                right = record["verdict"] in known[path.name]["verdicts"]
                failed += not right
                mark, errors = "ok  " if right else "FALSE", " ".join(f"{c.get('norm_err', 0):.2g}/{c.get('torch_norm_err', 0):.2g}" for c in record["cases"])
                print(f"{mark} {name}/{path.name}: {record['verdict']} {spent:.1f} s {errors} {record['message'][:900]}", flush=True)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:] or sorted(map(str, HONEST.glob("*.c")))))
