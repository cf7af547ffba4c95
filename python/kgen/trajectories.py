"""`kgen export --trajectories`: what a Run's proposer was asked and answered, as conversations with a reward for each turn, for
training. Reads the journal alone.

A conversation is one line of thought: prompts that each mend what came of the one before. The reward of a turn is what its
best Candidate is worth, 0 when nothing came of it: CORRECT for one that passes, plus the log of how much faster it is than
eager torch was where the Run judged, or than the first that passed where the journal does not know that; slower is worth no
less, so that what is right is always worth more than what is wrong. `return` adds the rewards of later turns, discounted, so
that a turn that led to a good one is worth something itself.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from .errors import BadInput, EnvironmentLacks

FORMAT = 2  # 1: speedups over the first that passed alone, and below 0 where slower
CORRECT = 0.3
DISCOUNT = 0.4
Entry = dict[str, Any]


def outcomes(entries: Sequence[Entry]) -> dict[str, Entry]:
    """By Candidate's name: verdict, message and the least time a Case that any of its tunings took."""
    found: dict[str, Entry] = {}
    for e in entries:
        if e["kind"] == "candidate":
            bad = e.get("refused")
            verdict = "plan_error" if bad is not None else None
            found[e["name"]] = {"id": e["id"], "verdict": verdict, "message": bad or "", "time_ns": [], "same_as": e.get("same_as")}
        elif e["kind"] == "dropped" and e["name"] in found:
            found[e["name"]].update(verdict="plan_error", message=e["message"])
        elif e["kind"] == "verdict" and e["source"] in found:
            _add_verdict(found[e["source"]], e)
    for one in found.values():
        if one["same_as"] in found:
            one.update({k: found[one["same_as"]][k] for k in ("verdict", "message", "time_ns")})
    return found


def _add_verdict(one: Entry, e: Entry) -> None:
    if e["id"] == one["id"] and one["verdict"] in (None, "pass"):
        one.update(verdict=e["verdict"], message=e["message"])
    if e["verdict"] == "pass":
        before = one["time_ns"] or [0.0] * len(e["time_ns"])
        one["time_ns"] = [min(filter(None, (a, b)), default=0.0) for a, b in zip(before, e["time_ns"], strict=True)]


def time_of(one: Entry) -> float | None:
    """The geometric mean of its times; None: it did not pass everywhere."""
    return _mean(one["time_ns"]) if one["verdict"] == "pass" else None


def _mean(times: Sequence[float]) -> float | None:
    """Geometric; None: one of them is not known."""
    if not times or min(times) <= 0:
        return None
    return math.exp(sum(map(math.log, times)) / len(times))


def _reference(own: Sequence[Entry], found: dict[str, Entry]) -> Entry | None:
    """What an Op's speedups are over, {"name": "eager" | "first", "time_ns"}; None: nothing passed. A Run that was gone on
    with, or judged by stages, timed eager torch several times: the least counts, as of Candidates."""
    right = [o for o in found.values() if time_of(o) is not None]
    if not right:
        return None
    least: list[float] = []
    for e in own:
        if e["kind"] in ("loop", "machine"):
            of = e.get("options", {}) if e["kind"] == "loop" else e
            times = [float(c.get("torch_ns") or 0.0) for c in of.get("cases", [])]
            if _mean(times) is not None and len(times) == len(right[0]["time_ns"]):
                least = [min(pair) for pair in zip(least or times, times, strict=True)]
    eager = _mean(least)
    return {"name": "eager", "time_ns": eager} if eager else {"name": "first", "time_ns": time_of(right[0])}


def _turns(prompts: dict[str, Entry], answers: dict[str, Entry], of: dict[str, str]) -> Iterator[list[Entry]]:
    """Answers of one Op that follow each other: each mends a Candidate of the one before. of: by Candidate the answer."""
    before = {name: of.get(prompts[e["prompt"]]["parent"] or "") for name, e in answers.items() if e["prompt"] in prompts}
    followed = set(before.values())
    # A line that turned to another parent began there; each leaf gives one conversation.
    for name in before:
        if name in followed:
            continue
        chain = [name]
        while (earlier := before.get(chain[0])) is not None:
            chain.insert(0, earlier)
        yield [answers[n] for n in chain]


def _answer_of(candidate: str) -> str:
    """A Candidate is named by its answer, its place there and its ending (csrc/tune/loop_state.c)."""
    return candidate.rsplit(".", 2)[0]


def trajectories(entries: Sequence[Entry]) -> Iterator[Entry]:
    """A conversation an entry: op, messages, turns with verdicts, reward and return, and what rewards are over. Several answers to one prompt are
    conversations of their own, each with what came of it alone."""
    systems = {e["sha256"]: e["text"] for e in entries if e["kind"] == "system"}
    for op in dict.fromkeys(e["op"] for e in entries if e["kind"] == "prompt"):
        own = [e for e in entries if e.get("op") == op]
        found = outcomes(own)
        over = _reference(own, found)
        prompts = {e["id"]: e for e in own if e["kind"] == "prompt"}
        answers = {e["name"]: e for e in own if e["kind"] == "answer"}
        of = {e["name"]: _answer_of(e["name"]) for e in own if e["kind"] == "candidate"}
        came: dict[str, list[str]] = {}
        for name, answer in of.items():
            came.setdefault(answer, []).append(name)
        for chain in _turns(prompts, answers, of):
            turns = [_turn(prompts[a["prompt"]], a, [found[n] for n in came.get(a["name"], [])], over) for a in chain]
            later = 0.0
            for turn in reversed(turns):
                later = turn["return"] = turn["reward"] + DISCOUNT * later
            system = systems.get(prompts[chain[0]["prompt"]]["system"], "")
            yield {"format": FORMAT, "op": op, "system": system, "reference": over, "turns": turns}


def _turn(prompt: Entry, answer: Entry, candidates: Sequence[Entry], over: Entry | None) -> Entry:
    times = [t for c in candidates if (t := time_of(c)) is not None]
    reward = CORRECT + max(0.0, math.log(over["time_ns"] / min(times))) if times and over else 0.0
    return {
        "prompt": prompt["id"], "kind": prompt["prompt_kind"], "user": prompt["user"], "assistant": answer["text"],
        "reasoning": answer.get("reasoning", ""), "usage": answer.get("usage"),
        "candidates": [{k: c[k] for k in ("id", "verdict", "message", "time_ns")} for c in candidates], "reward": reward,
    }  # fmt: skip


def run_export(args: argparse.Namespace) -> int:
    """`kgen export RUN_DIR --trajectories F.jsonl`."""
    from .jsonfile import read_journal

    run, out = Path(args.run_dir), Path(args.trajectories)
    if not (run / "run.json").is_file():
        raise BadInput(f"{run} is no Run: there is no run.json in it")
    lines = [json.dumps(t, ensure_ascii=False) + "\n" for t in trajectories(read_journal(run / "journal.jsonl"))]
    if not lines:
        raise BadInput(f"{run}: nobody answered anything in this Run; `kgen tune --proposer llm|files` asks")
    try:
        with tempfile.NamedTemporaryFile("w", dir=out.parent, prefix=".tmp-export-", delete=False, encoding="utf-8") as f:
            f.writelines(lines)
        os.replace(f.name, out)
    except OSError as e:
        raise EnvironmentLacks(f"{out}: cannot be written: {e.strerror}") from e
    turns = sum(len(json.loads(line)["turns"]) for line in lines)
    print(f"{out}: {len(lines)} conversations, {turns} turns")
    return 0
