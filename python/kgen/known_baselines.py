"""What the baselines of a Case took before on this machine, with this torch: <cache>/baselines/<32 hex>.json.

No number of it is ever compared with a Kernel's. It says which baselines are worth building again: one that was twice as slow
as the best a few days ago, or whose compile outlasted as much time as it would get now, is reported as it was found then,
with its day. What failed otherwise is tried again. A file that is torn, old or of another format is as good as none.
"""

from __future__ import annotations

import datetime
import hashlib
import json
import os
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from .gate_build import NOT_MEASURED, Patience

FORMAT = 1
DAYS = 7
# A baseline that was slower than the best by more than this is no more than reported.
SLOWER = 2.0


def _folder() -> Path:
    base = os.environ.get("KGEN_CACHE") or os.path.join(
        os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache"), "kgen"
    )
    return Path(base) / "baselines"


def _without_fill(value: Any) -> Any:
    """What a Case says of its inputs' values and of how often it is called does not change how long it takes."""
    if isinstance(value, dict):
        return {k: _without_fill(v) for k, v in value.items() if k not in ("fill", "count")}
    return [_without_fill(v) for v in value] if isinstance(value, list) else value


def key_of(case: dict[str, Any], device: torch.device, threads: int) -> str:
    """The name of a Case's file here: of the machine's device, its threads, torch's version and the Case."""
    from .doctor import cpu_name, machine_arch

    if device.type == "cuda":
        machine = [torch.cuda.get_device_name(device), str(torch.version.cuda)]
    else:
        machine = [cpu_name(), machine_arch(), threads]
    text = json.dumps([FORMAT, torch.__version__, machine, _without_fill(case)], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def _today() -> datetime.date:
    return datetime.datetime.now(datetime.timezone.utc).date()


@dataclass
class Known:
    """The baselines of one Case. rows: by name, as in the gate's result, with "measured", the day, and of one that was
    stopped "limit_s"."""

    path: Path
    rows: dict[str, dict[str, Any]] = field(default_factory=dict)

    def settled(self, name: str, each: float) -> dict[str, Any] | None:
        """The row of a baseline that need not be built again, given what its compile may take; None: build it."""
        row = self.rows.get(name)
        if row is None:
            return None
        if "left_out" in row:
            return {k: row[k] for k in ("name", "left_out", "measured")} if row.get("limit_s", 0) >= each else None
        times = [r["median_ns"] for r in self.rows.values() if "median_ns" in r]
        slow = row["median_ns"] > SLOWER * min(times) and row.get("compiled", False)
        return {k: v for k, v in row.items() if k != "compiled"} if slow else None

    def add(self, rows: list[dict[str, Any]], compiled: set[str], each: float) -> None:
        """Remembers what was found now, and forgets what does not work any more. each: what one compile might take."""
        day = _today().isoformat()
        for row in rows:
            self.rows.pop(row["name"], None)
            more: dict[str, Any] = {"measured": day, "compiled": row["name"] in compiled}
            if "left_out" in row:
                # One that was short of what was left for all says little of itself.
                if row["left_out"] != Patience(each).outlasted(each):
                    continue
                more["limit_s"] = each
            self.rows[row["name"]] = {**row, **more}
        self._write()

    def _write(self) -> None:
        text = json.dumps({"format": FORMAT, "rows": list(self.rows.values())}, indent=1) + "\n"
        aside = self.path.with_name(f".tmp-{os.getpid()}-{self.path.name}")
        with suppress(OSError):  # a cache
            self.path.parent.mkdir(parents=True, exist_ok=True)
            aside.write_text(text)
            os.replace(aside, self.path)


def _good(row: Any) -> bool:
    """Whether a row of a file is one, and young enough."""
    try:
        age = (_today() - datetime.date.fromisoformat(row["measured"])).days
        if not isinstance(row["name"], str) or not 0 <= age < DAYS:
            return False
        if "left_out" in row:
            return str(row["left_out"]).startswith(NOT_MEASURED) and float(row["limit_s"]) > 0
        return float(row["median_ns"]) > 0
    except (KeyError, TypeError, ValueError):
        return False


def read(case: dict[str, Any], device: torch.device, threads: int | None = None) -> Known:
    """What is known of a Case's baselines here, with so many threads (None: as many as torch has), and is no older than DAYS."""
    known = Known(_folder() / f"{key_of(case, device, threads or torch.get_num_threads())}.json")
    with suppress(OSError, ValueError, UnicodeDecodeError, AttributeError):
        made = json.loads(known.path.read_text())
        if made.get("format") == FORMAT and isinstance(made.get("rows"), list):
            known.rows = {r["name"]: r for r in made["rows"] if _good(r)}
    return known
