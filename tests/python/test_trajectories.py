"""What `kgen export` makes of a journal: each answer a turn with what came of it alone, rewards and returns by hand."""

from __future__ import annotations

import math
from typing import Any

import pytest

from kgen.trajectories import trajectories


def entry(kind: str, **fields: Any) -> dict[str, Any]:
    return {"kind": kind, "op": "softmax", **fields}


def prompt(ident: str, parent: str | None = None) -> dict[str, Any]:
    return entry("prompt", id=ident, prompt_kind="refine" if parent else "fresh", parent=parent, system="s", user=f"ask {ident}")


def answer(name: str, of: str) -> dict[str, Any]:
    return entry("answer", prompt=of, name=name, text=f"text of {name}")


def judged(answer_: str, of: str, ns: float, n: int = 1) -> list[dict[str, Any]]:
    name = f"{answer_}.{n}.c"
    verdict = "pass" if ns else "wrong_values"
    return [entry("candidate", prompt=of, name=name, id=name, parent=None, text="x"),
            entry("verdict", source=name, id=name, verdict=verdict, message="", time_ns=[ns])]  # fmt: skip


def test_several_answers_to_one_prompt_are_conversations_of_their_own() -> None:
    told = list(trajectories([
        entry("system", sha256="s", text="the rules"), prompt("p1"),
        answer("p1.md", "p1"), *judged("p1.md", "p1", 0.0),
        answer("p1-2.md", "p1"), *judged("p1-2.md", "p1", 400.0), *judged("p1-2.md", "p1", 800.0, 2),
        answer("p1-3.md", "p1"), *judged("p1-3.md", "p1", 200.0),
        prompt("p2", "p1-2.md.1.c"), answer("p2.md", "p2"), *judged("p2.md", "p2", 100.0),
        prompt("p3", "p2.md.1.c"),  # nobody answered it
    ]))  # fmt: skip
    assert {t["system"] for t in told} == {"the rules"}
    found = {tuple(turn["assistant"].removeprefix("text of ") for turn in t["turns"]): t["turns"] for t in told}
    assert set(found) == {("p1.md",), ("p1-3.md",), ("p1-2.md", "p2.md")}
    assert [(x["reward"], len(x["candidates"])) for x in found["p1.md",]] == [(0.0, 1)]
    assert found["p1-3.md",][0]["reward"] == pytest.approx(0.3 + math.log(2))
    first, second = found["p1-2.md", "p2.md"]
    assert len(first["candidates"]) == 2 and first["user"] == "ask p1" and second["kind"] == "refine"
    assert (first["reward"], second["reward"]) == pytest.approx((0.3, 0.3 + math.log(4)))
    assert first["return"] == pytest.approx(0.3 + 0.4 * second["reward"]) and second["return"] == second["reward"]


@pytest.mark.parametrize(
    ("known", "over"),
    [
        ([], ("first", 400.0)),
        ([entry("loop", options={"cases": [{"torch_ns": 250.0}]})], ("eager", 250.0)),
        ([entry("machine", cases=[{"torch_ns": 250.0}]), entry("machine", cases=[{"torch_ns": 240.0}])], ("eager", 240.0)),
        ([entry("loop"), entry("loop", options={"cases": [{"torch_ns": None}]})], ("first", 400.0)),
        ([entry("loop", options={"cases": [{"torch_ns": 250.0}] * 2})], ("first", 400.0)),  # of other Cases
    ],
)
def test_what_is_right_is_worth_more_than_what_is_wrong(known: list[dict[str, Any]], over: tuple[str, float]) -> None:
    told = list(trajectories([
        *known, prompt("p1"), answer("p1.md", "p1"), *judged("p1.md", "p1", 400.0),
        answer("p1-2.md", "p1"), *judged("p1-2.md", "p1", 0.0),
        answer("p1-3.md", "p1"), *judged("p1-3.md", "p1", 4000.0),
        answer("p1-4.md", "p1"), *judged("p1-4.md", "p1", 100.0),
    ]))  # fmt: skip
    name, ns = over
    for t in told:
        assert t["format"] == 2 and t["reference"] == {"name": name, "time_ns": pytest.approx(ns)}
    rewards = {t["turns"][0]["assistant"].removeprefix("text of "): t["turns"][0]["reward"] for t in told}
    assert rewards == pytest.approx({"p1.md": 0.3, "p1-2.md": 0.0, "p1-3.md": 0.3, "p1-4.md": 0.3 + math.log(ns / 100)})


def test_nothing_right_has_no_reference() -> None:
    told = list(trajectories([prompt("p1"), answer("p1.md", "p1"), *judged("p1.md", "p1", 0.0)]))
    assert [(t["reference"], t["turns"][0]["reward"]) for t in told] == [(None, 0.0)]


def test_nothing_answered_is_nothing_told() -> None:
    assert list(trajectories([prompt("p1")])) == []
