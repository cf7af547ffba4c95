"""docs/formats.md says what the code reads: its examples are read, and its keys are those that the readers know."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from kgen import _libkgen, task
from kgen.errors import BadInput


@pytest.fixture(scope="module")
def text(root: Path) -> str:
    return (root / "docs/formats.md").read_text()


def section(text: str, title: str) -> str:
    found = text.partition(f"\n## {title}\n")[2].partition("\n## ")[0]
    assert found, title
    return found


def example(text: str, title: str) -> Any:
    return json.loads(re.search(r"```json\n(.*?)```", section(text, title), re.DOTALL)[1])  # type: ignore[index]


def known_keys(contract: str, source: str) -> set[str]:
    """What the reader names when it meets a key that it does not know."""
    with pytest.raises(BadInput) as e:
        _libkgen.candidate_check(contract, source.encode(), "x.c")
    return set(re.split(r",\s*", re.search(r"known are:? (.*)", str(e.value))[1]))  # type: ignore[index]


PLAN = '/* kgen\n{"format": 1, "op": "conv2d", "target": "cpu", "COLOR": 1}\n*/\n'


def test_the_contract_is_the_golden_one(text: str, golden: Path) -> None:
    shown, read = example(text, "op.json: the contract"), json.loads((golden / "op/conv2d.json").read_text())
    assert shown == read
    known = known_keys(json.dumps({**read, "color": 1}), PLAN)
    assert known > set(shown)
    words = section(text, "op.json: the contract")
    assert [k for k in known if f"`{k}`" not in words and f'"{k}"' not in words] == []


def test_the_keys_of_the_plan(text: str, golden: Path) -> None:
    known = known_keys((golden / "op/conv2d.json").read_text(), PLAN)
    words = section(text, "The plan")
    rows = {k for row in re.findall(r"^\| (`[a-z_`, ]+`) \|", words, re.MULTILINE) for k in re.findall(r"`(\w+)`", row)}
    assert rows - {"prepare"} == known and "prepare" in rows


def test_case_task_and_record(text: str, golden: Path) -> None:
    shown = example(text, "Case")
    assert set(shown) == task._CASE_KEYS
    assert set(shown["args"]["query"]) == task._TENSOR_KEYS == set(shown["program"]["captured"][0])
    kinds = set(re.findall(r"`(\w+)` \(", section(text, "Case").partition("`fill`")[2]))
    assert kinds == set(task._FILLS)
    assert set(example(text, "Task folder")) == task._TASK_KEYS
    record, gold = example(text, "Record"), json.loads((golden / "record/pass.json").read_text())
    assert set(record["environment"]) == set(gold["environment"]) and set(record["cases"][0]) == set(gold["cases"][0])
    assert set(record) <= set(gold) | {"parent", "message"}
    assert set(example(text, "Pin")) == set(json.loads((golden / "pin/softmax.json").read_text()))


def test_the_verdicts(text: str, root: Path) -> None:
    listed = re.search(r"^Verdicts: `([a-z_ ]+)`", section(text, "Record"), re.MULTILINE)[1].split()  # type: ignore[index]
    names = re.findall(r'X\([A-Z_]+,[\s\\]*"([a-z_]+)"', (root / "csrc/tune/verdict.h").read_text())
    assert listed == names and len(names) == 18


def test_the_example_of_an_expression_error(text: str, root: Path) -> None:
    """The message that the document shows is the one that such a plan gets."""
    said = re.search(r"`(plan of x\.c: launches\[0\].*?)`", section(text, "Expressions"))[1]  # type: ignore[index]
    plan = ('/* kgen\n{"format": 1, "op": "softmax", "target": "cpu", "tunables": {"VEC": [8]}, '
            '"launches": [{"kernel": "f", "range": "M * Q", "args": ["input", "output"]}]}\n*/\n')  # fmt: skip
    with pytest.raises(BadInput) as e:
        _libkgen.candidate_check((root / "kernels/ops/softmax.json").read_text(), plan.encode(), "x.c")
    assert str(e.value) == said


def test_every_format_has_a_golden_file(golden: Path) -> None:
    held = {p.name for p in golden.iterdir() if any(p.iterdir())}
    assert held == {"case", "expr", "index", "journal", "op", "pin", "plan", "program", "record", "run", "speedups", "task", "worker"}
