"""A Run's folder: what was asked, held by one process at a time, and what its journal remembers.

The journal is written by libkgen alone; this reads it. Refuses a folder that is something else, a Run of another model or
with other options, and a Run that another process holds.
"""

from __future__ import annotations

import contextlib
import datetime
import fcntl
import json
import os
import re
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from . import _libkgen
from .errors import BadInput, EnvironmentLacks
from .jsonfile import FORMAT, read_json

LOCK = ".tuner"
# What a Run is known by, with how a message names it. "model" and "sha256" come first.
ASKED = {
    "module": "--module", "inputs": "--inputs", "argv": "arguments after --", "patterns": "--target", "mode": "mode",
    "device": "--device", "precision": "--precision", "proposer": "--proposer", "strategy": "--strategy",
}  # fmt: skip
# Of these, what a Run over kgen's own templates has not.
OF_ASKING = {"proposer", "strategy"}

# Of run.json and result.json.
KEYS = {"format", "model", "sha256", "torch", "created", *ASKED}
RESULT_KEYS = {"format", "model", "run", "registry", "seconds", "rows"}


def now() -> str:
    return datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")


def default_dir(model: str) -> Path:
    """<cache>/runs/<model>-<time>."""
    base = os.environ.get("KGEN_CACHE") or os.path.join(
        os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache"), "kgen"
    )
    stamp = datetime.datetime.now(datetime.timezone.utc).strftime("%Y%m%d-%H%M%S")
    return Path(base) / "runs" / f"{re.sub(r'[^A-Za-z0-9_.-]', '_', model)}-{stamp}"


def write_json(path: Path, value: Any) -> None:
    """Writes a file whole or not at all."""
    write_text(path, json.dumps(value, indent=1) + "\n")


def write_text(path: Path, text: str) -> None:
    """The same."""
    aside = path.with_name(f".tmp-{os.getpid()}-{path.name}")
    try:
        with open(aside, "w") as f:
            f.write(text)
            f.flush()
            os.fsync(f.fileno())
        os.replace(aside, path)
    except OSError as e:
        aside.unlink(missing_ok=True)
        raise EnvironmentLacks(f"{path}: cannot be written: {e.strerror or e}; free space or name another --run") from e
    except BaseException:  # a Ctrl-C: what is half written would make the folder look like something else
        aside.unlink(missing_ok=True)
        raise


def _foreign(path: Path) -> bool:
    """Whether a file is none that a Run which was killed before it began leaves behind."""
    return path.name != LOCK and not (path.name.startswith(".tmp-") and path.name.endswith("-run.json"))


class Run:
    """An open Run. Use as a context manager: the folder is this process's until the end."""

    def __init__(self, path: Path, asked: dict[str, Any], resume: bool):
        """asked: "model", "sha256" (None: not known), "torch" and the keys of ASKED. BadInput says why the folder will not do."""
        self.path = Path(path)
        self._lock = -1
        self._made = not self.path.exists()
        there = self.path / "run.json"
        if resume and not there.is_file():
            raise BadInput(f"{path} is no Run: there is no run.json to resume from")
        if not resume and there.is_file():
            raise BadInput(f"{path} is a Run already: give --resume to go on with it, or another --run")
        if not resume and self.path.is_dir() and any(map(_foreign, self.path.iterdir())):
            raise BadInput(f"{path} is not empty and no Run: name an empty or a new folder with --run")
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            self._hold()
        except FileExistsError as e:
            raise BadInput(f"{path} is a file: name an empty or a new folder with --run") from e
        except OSError as e:
            raise EnvironmentLacks(
                f"{path}: a Run cannot be written there: {e.strerror or e}; name another folder with --run"
            ) from e
        try:
            if resume:
                self._compare(asked)
            else:
                write_json(there, {"format": FORMAT, **asked, "created": now()})
        except BaseException:
            self.close()
            raise

    def _hold(self) -> None:
        self._lock = os.open(self.path / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            who = os.read(self._lock, 32).decode(errors="replace").strip()
            os.close(self._lock)
            self._lock = -1
            raise BadInput(
                f"{self.path} is in use by another kgen process{f' ({who})' if who else ''}: wait for it, or name "
                "another --run"
            ) from None
        os.ftruncate(self._lock, 0)
        os.write(self._lock, f"process {os.getpid()}\n".encode())

    def _compare(self, asked: dict[str, Any]) -> None:
        there = read_json(self.path / "run.json", KEYS)
        if there.get("model") != asked["model"]:
            raise BadInput(f"{self.path} is a Run of {there.get('model')}, not of {asked['model']}: name another --run")
        if there.get("sha256") != asked["sha256"]:
            raise BadInput(
                f"{self.path} was begun with another text of {asked['model']}, so its Tasks are not the model's as it is "
                "now: undo the change, or begin anew with another --run"
            )
        for key, name in ASKED.items():
            given = key in there or (key in OF_ASKING and key in asked)
            if given and there.get(key) != asked.get(key):
                raise BadInput(
                    f"{self.path} was begun with {name} {_shown(there.get(key))}, not {_shown(asked.get(key))}: resume it "
                    "with the same, or begin anew with another --run"
                )

    def discard(self) -> None:
        """Takes back the folder when nothing was learnt in it, so that the command can be given again."""
        if (self.path / "journal.jsonl").exists():
            return
        shutil.rmtree(self.path / "tasks", ignore_errors=True)
        for name in ("run.json", LOCK):
            (self.path / name).unlink(missing_ok=True)
        if self._made:
            with contextlib.suppress(OSError):
                self.path.rmdir()

    def close(self) -> None:
        """Lets go of the folder; safe at any time."""
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1

    def __enter__(self) -> Run:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def add(self, kind: str, fields: dict[str, Any]) -> None:
        """Adds one entry to the journal."""
        _libkgen.journal_add(self.path, kind, fields)

    def entries(self, kind: str) -> Iterator[dict[str, Any]]:
        """The journal's entries of one kind, oldest first."""
        return entries(self.path, kind)

    def find(self, kind: str, **fields: Any) -> dict[str, Any] | None:
        """The newest entry of one kind with these fields."""
        found = None
        for entry in self.entries(kind):
            if all(entry.get(k) == v for k, v in fields.items()):
                found = entry
        return found


def gates(journal: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """The gate's entries that count: of a Candidate on a Case the last, since one of a busy machine is measured again."""
    found: dict[tuple[str, str, str], dict[str, Any]] = {}
    for e in journal:
        if e["kind"] == "gate":
            found[e["op"], e["case"], e["id"]] = e
    return list(found.values())


def entries(run: Path, kind: str) -> Iterator[dict[str, Any]]:
    """The entries of one kind in a Run's journal, oldest first. What is torn or wrong is libkgen's to say, when it opens
    it."""
    try:
        text = (run / "journal.jsonl").read_bytes()
    except FileNotFoundError:
        return
    for line in text.split(b"\n"):
        try:
            entry = json.loads(line)
        except ValueError:
            continue
        if isinstance(entry, dict) and entry.get("kind") == kind:
            yield entry


def _shown(value: Any) -> str:
    if isinstance(value, (list, tuple)):
        return " ".join(map(str, value)) or "none"
    return "none" if value is None else str(value)
