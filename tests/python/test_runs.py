"""The files of a Run: the golden ones are read and written as they stand, wrong ones are refused by name, and docs/formats.md
lists their keys. That a real Run has these keys and no others is checked where there is one (test_tune.py)."""

from __future__ import annotations

import importlib
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from run_files import named

from kgen import jsonfile, report, runs
from kgen.errors import BadInput
from kgen.gate import GateResult

tune = importlib.import_module("kgen.tune")  # kgen.tune is the function


def asked_of(path: Path) -> dict[str, Any]:
    value = json.loads(path.read_text())
    return {k: v for k, v in value.items() if k not in ("format", "created")}


# run.json


def test_run_json_is_read_and_written(golden: Path, tmp_path: Path) -> None:
    text = (golden / "run/run.json").read_text()
    asked = asked_of(golden / "run/run.json")
    shutil.copy(golden / "run/run.json", tmp_path / "run.json")
    with runs.Run(tmp_path, asked, resume=True) as run:
        assert run.find("survey") is None
    with runs.Run(tmp_path / "new", asked, resume=False):
        made = (tmp_path / "new/run.json").read_text()
    stamp = re.compile(r'"created": "\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ"')
    assert stamp.sub("", made) == stamp.sub("", text) != text
    assert set(json.loads(text)) == runs.KEYS - runs.OF_ASKING


@pytest.mark.parametrize("key", ["model", "sha256", *runs.ASKED])
def test_a_run_is_known_by_what_was_asked(golden: Path, tmp_path: Path, key: str) -> None:
    asked = asked_of(golden / "run/run.json")
    shutil.copy(golden / "run/run.json", tmp_path / "run.json")
    with pytest.raises(BadInput, match=re.escape(str(tmp_path))) as e:
        runs.Run(tmp_path, {**asked, key: "another"}, resume=True)
    assert "\n" not in str(e.value) and "another --run" in str(e.value)
    # Another torch is no reason: what it changes is in the evidence.
    runs.Run(tmp_path, {**asked, "torch": "2.10.0"}, resume=True).close()


BAD_RUN: dict[str, tuple[Callable[[str], str], str]] = {
    "unknown key": (lambda t: t.replace('"mode"', '"color"'), "unknown key color; known are argv, created, "),
    "newer": (lambda t: t.replace('"format": 1', '"format": 2'), "format 2 is newer than this kgen, which reads format 1"),
    "no format": (lambda t: t.replace('"format": 1,', ""), 'expected "format": 1, found None'),
    "twice": (lambda t: t.replace('"mode"', '"model"'), "model is given twice"),
    "torn": (lambda t: t[:100], "Unterminated string"),
    "a long number": (lambda t: t.replace('"format": 1', '"format": ' + "9" * 5000), "Exceeds the limit"),
    "a list": (lambda t: f"[{t}]", "expected an object"),
}


@pytest.mark.parametrize("name", BAD_RUN)
def test_a_wrong_run_json_is_named(golden: Path, tmp_path: Path, name: str) -> None:
    change, said = BAD_RUN[name]
    text = (golden / "run/run.json").read_text()
    assert change(text) != text
    (tmp_path / "run.json").write_text(change(text))
    with pytest.raises(BadInput) as e:
        runs.Run(tmp_path, asked_of(golden / "run/run.json"), resume=True)
    assert str(e.value).startswith(f"{tmp_path}/run.json: ") and said in str(e.value)
    (tmp_path / "result.json").write_text((golden / "run/result.json").read_text())
    with pytest.raises(BadInput, match=re.escape(said)):
        report.page(tmp_path)


# result.json


def test_result_json_is_read_and_written(golden: Path, tmp_path: Path) -> None:
    text = (golden / "run/result.json").read_text()
    value = jsonfile.read_json(golden / "run/result.json", runs.RESULT_KEYS)
    rows = []
    for row in value["rows"]:
        speedup = row["speedup"] and tuple(row["speedup"][k] for k in ("median", "low", "high"))
        result = GateResult.read(row["gate"], 1.05).json() if row["gate"] else {}
        rows.append(tune.Row(**{**row, "speedup": speedup, "gate": result}))
    made = tune.Report(Path(value["run"]), Path(value["registry"]), value["model"], value["seconds"], rows)
    runs.write_json(tmp_path / "result.json", made.json())
    assert (tmp_path / "result.json").read_text() == text
    assert [r.kernel for r in made.promoted] == ["softmax/v1"]


def test_the_page_of_the_golden_run(golden: Path, tmp_path: Path) -> None:
    for name in ("run/run.json", "run/result.json"):
        shutil.copy(golden / name, tmp_path)
    shutil.copy(golden / "journal/good.jsonl", tmp_path / "journal.jsonl")
    text = report.page(tmp_path)
    for word in ("model.py", "torch 2.13.0+cpu", "22 s", "f32 M300 N500", "eager 75 us", "30 us", "2.50x", "18%",
                 "4 pass, 1 wrong_values", "softmax/v1", "left: no template", "UNROLL=8: pass 24 us"):  # fmt: skip
        assert word in text, word


# The journal


def test_the_golden_journal_is_read(golden: Path, tmp_path: Path) -> None:
    entries = jsonfile.read_journal(golden / "journal/good.jsonl")
    assert [e["kind"] for e in entries] == ["survey", "rung", "verdict", "verdict", "verdict", "rung", "verdict", "rung",
                                            "verdict", "gate", "promote"]  # fmt: skip
    assert jsonfile.read_journal(golden / "journal/torn.jsonl") == entries[:3]
    assert jsonfile.read_journal(tmp_path / "none") == []
    known = entries[0]
    assert [tune.Job(**{**j, "floors": tuple(j["floors"])}).op for j in known["jobs"]] == ["softmax"]
    assert [tune.Row(**r).state for r in known["left"]] == ["left"]
    assert GateResult.read(entries[9], 1.05).passed and not GateResult.read(entries[9], 2.45).passed


def test_bad_journals_are_refused_as_libkgen_refuses_them(golden: Path) -> None:
    messages = (golden / "journal/messages.txt").read_text().splitlines()[1:]
    assert len(messages) == len(list((golden / "journal").glob("*.jsonl"))) - 2
    for line in messages:
        name, _, said = line.partition(" ")
        with pytest.raises(BadInput) as e:
            jsonfile.read_journal(golden / "journal" / name)
        place, _, why = said.partition(": ")
        assert str(e.value).startswith(f"{golden / 'journal' / name} {place}: "), e.value
        if name in ("hole.jsonl", "newer.jsonl", "no_kind.jsonl", "no_sum.jsonl", "changed.jsonl"):  # the rest are the words of a JSON parser
            assert str(e.value).endswith(why), e.value


# The document


def test_the_document_lists_every_key(golden: Path, root: Path) -> None:
    text = (root / "docs/formats.md").read_text()
    section = text.partition("\n## Run folder and journal\n")[2].partition("\n## Worker protocol")[0]
    listed = set(re.findall(r"`([A-Za-z0-9_]+)`", section)) | set(re.findall(r'"([A-Za-z0-9_]+)"', section))
    wanted = set(runs.KEYS | runs.RESULT_KEYS)
    for entry in jsonfile.read_journal(golden / "journal/good.jsonl"):
        wanted |= {part for key in named(entry) for part in key.split(".")}
    for row in json.loads((golden / "run/result.json").read_text())["rows"]:
        wanted |= {part for key in named(row) for part in key.split(".")}
    assert not wanted - listed


def test_a_run_that_was_killed_before_it_began(tmp_path: Path) -> None:
    """Its lock and a run.json that is half written are no reason to refuse the folder."""
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / runs.LOCK).write_text("process 1\n")
    (folder / ".tmp-1-run.json").write_text('{"for')
    with runs.Run(folder, {"model": "m.py", "sha256": None}, False):
        assert (folder / "run.json").is_file()
    other = tmp_path / "other"
    other.mkdir()
    (other / ".tmp-letter").write_text("dear")
    with pytest.raises(BadInput, match="is not empty and no Run"):
        runs.Run(other, {"model": "m.py", "sha256": None}, False)
