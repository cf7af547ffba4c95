"""kgen's JSON files, read as docs/formats.md demands: a wrong one is refused by name, and nothing in it is guessed.

Knows the rules that all formats share; what a key means is its reader's to say.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from . import _libkgen
from .errors import BadInput

FORMAT = 1


def parse(text: bytes, where: str, known: set[str] | None) -> dict[str, Any]:
    """An object with "format": 1 and no key beyond `known` (None: any). `where` opens each message."""

    def pairs(items: list[tuple[str, Any]]) -> dict[str, Any]:
        made: dict[str, Any] = {}
        for k, v in items:
            if k in made:
                raise BadInput(f"{where}: {k} is given twice")
            made[k] = v
        return made

    def refuse(word: str) -> None:
        raise BadInput(f"{where}: {word} is not a JSON number")

    try:
        value = json.loads(text.decode("utf-8"), object_pairs_hook=pairs, parse_constant=refuse)
    except (ValueError, RecursionError) as e:  # text, JSON, an integer of too many digits
        raise BadInput(f"{where}: {e}") from e
    if not isinstance(value, dict):
        raise BadInput(f"{where}: expected an object")
    form = value.get("format")
    if form != FORMAT or isinstance(form, bool):
        newer = isinstance(form, int) and not isinstance(form, bool) and form > FORMAT
        why = f"format {form} is newer than this kgen, which reads format {FORMAT}" if newer else (
            f'expected "format": {FORMAT}, found {form!r}'
        )  # fmt: skip
        raise BadInput(f"{where}: {why}")
    unknown = sorted(set(value) - known) if known is not None else []
    if unknown:
        raise BadInput(f"{where}: unknown key {unknown[0]}; known are {', '.join(sorted(known or ()))}")
    return value


def read_bytes(path: Path) -> bytes:
    """BadInput names a file that cannot be read."""
    try:
        return path.read_bytes()
    except OSError as e:
        raise BadInput(f"{path}: {e.strerror or e}") from e


def read_json(path: Path, known: set[str] | None) -> dict[str, Any]:
    """parse() of a file."""
    return parse(read_bytes(path), str(path), known)


def read_journal(path: Path) -> list[dict[str, Any]]:
    """A Run's entries; none when there is no journal yet. What has no newline behind it was being written and is left out;
    any other bad line is BadInput. Refuses what libkgen refuses when it opens the journal."""
    if not path.exists():
        return []
    entries: list[dict[str, Any]] = []
    for number, line in enumerate(read_bytes(path).split(b"\n")[:-1], 1):
        where = f"{path} line {number}"
        entry = parse(line, where, None)
        if entry.get("n") != len(entries):
            raise BadInput(f"{where}: entry has n = {entry.get('n')} where {len(entries)} must follow")
        if not isinstance(entry.get("kind"), str):
            raise BadInput(f"{where}: kind is missing: expected a string")
        _check_sum(entry, line, where)
        entries.append(entry)
    return entries


def _check_sum(entry: dict[str, Any], line: bytes, where: str) -> None:
    """BadInput unless the entry has the sum of its text. The words are libkgen's."""
    have = entry.get("sum")
    if not isinstance(have, str):
        raise BadInput(f"{where}: has no sum, so it was changed or written by an older kgen")
    want = _libkgen.journal_sum(line)
    if have != want:
        raise BadInput(f"{where}: its sum is {want}, not {have}: the line was changed")
