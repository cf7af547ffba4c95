"""The files of a Run: what they have, for holding a real Run against the golden one, and journals made up."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from kgen import _libkgen, jsonfile, runs

GOLDEN = Path(__file__).resolve().parent.parent / "golden"


def named(value: dict[str, Any], prefix: str = "") -> set[str]:
    """The keys of an entry with those of the objects in it; not of tunables, counts and Records, whose keys are names."""
    found = set()
    for key, inner in value.items():
        found.add(prefix + key)
        for one in inner if isinstance(inner, list) else [inner]:
            if isinstance(one, dict) and key not in ("tunables", "verdicts", "record"):
                found |= named(one, f"{prefix}{key}.")
    return found


def kinds_of(entries: list[dict[str, Any]]) -> dict[str, set[str]]:
    """The keys of each kind of entry; a verdict's level is part of its kind."""
    found: dict[str, set[str]] = {}
    for e in entries:
        kind = f"{e['kind']} {e['level']}" if e["kind"] == "verdict" else e["kind"]
        found.setdefault(kind, set()).update(named(e))
    return found


def write_journal(path: Path, entries: list[dict[str, Any]]) -> None:
    """Each entry gets the sum of its text."""
    summed = [{**e, "sum": _libkgen.journal_sum(json.dumps(e).encode())} for e in entries]
    path.write_text("".join(json.dumps(e) + "\n" for e in summed))


def check_keys(run: Path) -> None:
    """A Run that promoted a Kernel and left something alone has the keys of the golden one, each where it belongs."""
    found = kinds_of(jsonfile.read_journal(run / "journal.jsonl"))
    want = kinds_of(jsonfile.read_journal(GOLDEN / "journal/good.jsonl"))
    if "verdict 1" not in found:  # so few passed that no middle rung was held
        del want["verdict 1"]
    assert found == want
    real, gold = (json.loads((p / "result.json").read_text()) for p in (run, GOLDEN / "run"))
    assert set(real) == runs.RESULT_KEYS
    assert {r["state"]: named(r) for r in real["rows"]} == {r["state"]: named(r) for r in gold["rows"]}
