"""The part of `kgen report` about a proposer that was asked: what it cost, how the best time fell over tokens, and the tree of
what was asked, answered and judged, each Candidate with its difference to its parent.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Sequence
from html import escape
from typing import Any

from .trajectories import outcomes, time_of

Entry = dict[str, Any]
INDENT = 12  # the deepest, in rem: a thread may be hundreds of turns long


def _short(ns: float | None) -> str:
    return "-" if not ns else f"{ns / 1e3:.4g} us" if ns < 999_500 else f"{ns / 1e6:.4g} ms"


def _cost(entries: Sequence[Entry]) -> dict[str, int]:
    """Of all answers and failures: calls, tokens, nano-USD."""
    total = {"calls": 0, "tokens": 0, "nano_usd": 0}
    for e in entries:
        for key, value in e.get("charged", {}).items() if e["kind"] in ("answer", "failed") else ():
            total[key] += int(value)
    return total


def _summary(entries: Sequence[Entry], loops: Sequence[Entry]) -> str:
    last, cost = loops[-1] if loops else {}, _cost(entries)
    who = f"{last['model']} at {last['host']}" if last.get("model") else str(last.get("proposer", "a proposer"))
    counts = {k: sum(e["kind"] == k for e in entries) for k in ("prompt", "answer", "candidate")}
    money = f", {cost['nano_usd'] * 1e-9:.4f} USD" if cost["nano_usd"] else ""
    clock = "".join(f"<p class=dim>{escape(_clock(e))}</p>" for e in entries if e["kind"] == "clock" and e["life_s"] > 0)
    return (
        f'<p class="dim">{escape(who)}, strategy {escape(str(last.get("strategy", "?")))}: {counts["prompt"]} prompts, '
        f"{counts['answer']} answers, {counts['candidate']} Candidates; {cost['calls']} calls, {cost['tokens']} tokens{money}</p>{clock}"
    )


def _clock(e: Entry) -> str:
    """Where a life of the loop spent its time."""
    parts = {"waiting for answers": e["wait_s"], "judging": e["judge_s"], "compiling": e["compile_s"]}
    parts["kgen itself"] = max(0.0, e["life_s"] - sum(parts.values()))
    return f"{e['life_s']:.0f} s: " + ", ".join(f"{name} {100 * s / e['life_s']:.1f}%" for name, s in parts.items())


def over_tokens(entries: Sequence[Entry]) -> list[tuple[float, float, str, str]]:
    """(tokens so far, ns, name, verdict) of each judged Candidate, for a plot."""
    tokens, points = 0.0, []
    for e in entries:
        if e["kind"] in ("answer", "failed"):
            tokens += e.get("charged", {}).get("tokens", 0)
        elif e["kind"] == "verdict" and e.get("level") == 0:
            times = [t for t in e["time_ns"] if t > 0]
            points.append((tokens, times[0] if times else 0.0, e["source"], e["verdict"]))
    return points


def _details(title: str, text: str) -> str:
    return f"<details><summary>{escape(title)}</summary><pre>{escape(text)}</pre></details>" if text else ""


def _candidate(c: Entry, found: dict[str, Entry], texts: dict[str, str], parent: str | None) -> Iterator[str]:
    one = found[c["name"]]
    same = f", the same as {c['same_as']}" if c.get("same_as") else ""
    yield (
        f"<p>{escape(c['name'])} <span class=dim>{escape(c['id'][:12])}{escape(same)}</span>: "
        f"<span class='v {escape(str(one['verdict']))}'>{escape(str(one['verdict'] or 'not judged'))}</span> {_short(time_of(one))}</p>"
    )
    yield _details("verdict", one["message"] or "")
    text = c.get("text", "")
    yield _details("source", text)
    if text and parent in texts:
        diff = difflib.unified_diff(texts[parent].splitlines(), text.splitlines(), parent, c["name"], lineterm="")
        yield _details("difference to its parent", "\n".join(diff))


def _idea(p: Entry) -> str:
    """What a prompt asks to implement, as it quotes it at its end."""
    quoted = [line[2:] for line in p["user"].splitlines() if line.startswith("> ")]
    return quoted[-1] if quoted and p["prompt_kind"] == "implement" else ""


def _turn(p: Entry, depth: int, own: Sequence[Entry], found: dict[str, Entry], texts: dict[str, str]) -> Iterator[str]:
    """A prompt and what came of it."""
    mends = f", mends {p['parent']}" if p["parent"] else ""
    yield f'<div class="turn" style="margin-left:{min(depth, INDENT)}rem">'
    yield f"<p><b>{escape(p['id'])}</b> {escape(p['prompt_kind'])}{escape(mends)}</p>"
    if idea := _idea(p):
        yield f"<blockquote>{escape(idea)}</blockquote>"
    yield _details("prompt", p["user"])
    for e in own:
        if e["kind"] == "answer" and e["prompt"] == p["id"]:
            yield _details("reasoning", e.get("reasoning", ""))
            yield _details("answer", e["text"])
        elif e["kind"] == "failed" and e["prompt"] == p["id"]:
            yield f"<p class=dim>attempt {e['attempt']}: {escape(e['message'])}</p>"
        elif e["kind"] == "candidate" and e["prompt"] == p["id"]:
            yield from _candidate(e, found, texts, p["parent"])
    yield "</div>"


def _tree(prompts: Sequence[Entry], own: Sequence[Entry]) -> Iterator[tuple[Entry, int]]:
    """Each prompt with how deep it stands; what mends a Candidate comes behind the prompt that the Candidate came from."""
    of = {e["name"]: e["prompt"] for e in own if e["kind"] == "candidate"}
    children: dict[str | None, list[Entry]] = {}
    ideas: dict[int, str] = {}
    for p in prompts:
        under = of.get(p["parent"] or "")
        if p["prompt_kind"] == "ideas":
            ideas[p["line"]] = p["id"]
        elif p["prompt_kind"] == "implement" and under is None:
            under = ideas.get(p["line"])  # of its round
        children.setdefault(under, []).append(p)
    waiting = [(p, 0) for p in reversed(children.get(None, []))]
    while waiting:
        p, depth = waiting.pop()
        yield p, depth
        waiting += [(c, depth + 1) for c in reversed(children.get(p["id"], []))]


def section(entries: Sequence[Entry], op: str) -> Iterator[str]:
    """HTML of one Op's loop; nothing for one that nobody was asked about."""
    own = [e for e in entries if e.get("op") == op]
    prompts = [e for e in own if e["kind"] == "prompt"]
    if not prompts:
        return
    found = outcomes(own)
    texts = {e["name"]: e["text"] for e in own if e["kind"] == "candidate" and "text" in e}
    for e in own:
        if e["kind"] == "candidate" and e.get("same_as") in texts:
            texts[e["name"]] = texts[e["same_as"]]
    yield _summary(own, [e for e in own if e["kind"] == "loop"])
    yield "<details open><summary>what was asked, and what came of it</summary>"
    for p, depth in _tree(prompts, own):
        yield from _turn(p, depth, own, found, texts)
    yield "</details>"
