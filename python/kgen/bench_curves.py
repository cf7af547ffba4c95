"""What a benchmark of many Runs says: for each problem whether and when it was solved and how much faster, and over all of them
solve rate, speedup and fast_p as functions of minutes, calls and tokens. Reads journals alone.

A problem is solved when a Candidate was judged right on every set of inputs and came through the gate, which compares it
with torch once more, in a fresh process and through torch.ops. fast_p is KernelBench's: the fraction of all problems whose
Kernel is right and more than p times as fast as eager torch. Speedups are the gate's; on the way there a Candidate's is the
winner's times the ratio of the judge's times of both.
"""

from __future__ import annotations

import math
import textwrap
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from . import runs
from .errors import EnvironmentLacks
from .jsonfile import read_journal
from .trajectories import outcomes

FULL = 2  # the level at which all sets of inputs are judged
THRESHOLDS = (0.0, 0.5, 0.8, 1.0, 1.5, 2.0)
AXES = ("minutes", "calls", "tokens")
Entry = dict[str, Any]


@dataclass(frozen=True)
class Step:
    """A better Candidate of a problem: what had been spent when its verdict was there, and what it gains."""

    minutes: float
    calls: int
    tokens: int
    speedup: float  # over eager torch


@dataclass
class Problem:
    """One problem. state: solved, unsolved, or error (it could not be tried; why). Speedups are None when it is not solved."""

    name: str
    state: str
    reason: str = ""
    eager: float | None = None  # speedup over eager torch
    best: float | None = None  # over the best that torch does
    baseline: str = ""
    candidates: int = 0
    first_right: int | None = None  # which Candidate
    minutes: float = 0.0
    calls: int = 0
    tokens: int = 0
    steps: list[Step] = field(default_factory=list)

    def json(self) -> Entry:
        return asdict(self)


def _mean(values: Sequence[float]) -> float | None:
    """Geometric."""
    return math.exp(sum(map(math.log, values)) / len(values)) if values else None


def _gains(gates: Sequence[Entry]) -> tuple[float, float, str] | None:
    """Over eager and over the best baseline, over the Cases of all Ops; None: something did not come through the gate."""
    last = {(e["op"], e["case"]): e for e in gates}
    if not last or any(not e["rounds"] or e["kgen_ns"] <= 0 for e in last.values()):
        return None
    eager, best = [], []
    for e in last.values():
        named = {b["name"]: b["median_ns"] for b in e["baselines"] if b.get("median_ns")}
        best.append(e["baseline"]["median_ns"] / e["kgen_ns"])
        eager.append(named.get("eager", e["baseline"]["median_ns"]) / e["kgen_ns"])
    names = sorted({e["baseline"]["name"] for e in last.values()})
    return _mean(eager) or 0.0, _mean(best) or 0.0, ", ".join(names)


def _cost(e: Entry) -> float | None:
    """The geometric mean of a full verdict's times; None: it did not pass for every Case."""
    times = e["time_ns"]
    if e["verdict"] != "pass" or e["level"] != FULL or not times or min(times) <= 0:
        return None
    return _mean(times)


def problem_of(name: str, run: Path) -> Problem:
    """A problem from its Run."""
    entries = read_journal(run / "journal.jsonl")
    gains = _gains(runs.gates(entries))
    passed = [c for e in entries if e["kind"] == "verdict" and (c := _cost(e)) is not None]
    found = Problem(name, "solved" if gains and passed else "unsolved")
    least = math.inf
    names: list[str] = []
    spent: dict[str, float] = {}
    for e in entries:
        if e["kind"] in ("answer", "failed"):
            found.calls += e.get("charged", {}).get("calls", 0)
            found.tokens += e.get("charged", {}).get("tokens", 0)
        if "spent_s" in e:
            spent[e["op"]] = max(spent.get(e["op"], 0.0), e["spent_s"])
            found.minutes = sum(spent.values()) / 60
        if e["kind"] == "candidate" and not e.get("same_as"):
            names.append(e["name"])
        if e["kind"] != "verdict" or (cost := _cost(e)) is None or found.state != "solved":
            continue
        if cost < least and gains:
            least = cost
            found.steps.append(Step(found.minutes, found.calls, found.tokens, gains[0] * min(passed) / cost))
    if found.state == "solved":
        right = outcomes(entries)
        found.first_right = next((i for i, n in enumerate(names, 1) if right[n]["verdict"] == "pass"), 1)
    found.candidates = len(names) or sum(e["kind"] == "verdict" and e["level"] == 0 for e in entries)
    if gains and found.state == "solved":
        found.eager, found.best, found.baseline = gains
    elif found.state == "unsolved":
        found.reason = _why(entries)
    return found


def _why(entries: Sequence[Entry]) -> str:
    counts: dict[str, int] = {}
    for e in entries:
        refused = e["kind"] == "dropped" or (e["kind"] == "candidate" and e.get("refused") and not e.get("same_as"))
        verdict = e["verdict"] if e["kind"] == "verdict" else "plan_error" if refused else None
        if verdict is not None:
            counts[verdict] = counts.get(verdict, 0) + 1
    for e in runs.gates(entries):
        if not e["rounds"]:
            return f"stopped at the gate: {e['reason']}"
    return ", ".join(f"{n} {v}" for v, n in counts.items()) or "no Candidate was judged"


def fast_p(problems: Sequence[Problem], p: float, against: str = "eager") -> float:
    """The fraction of all problems that are solved with a speedup above p. against: "eager" or "best"."""
    fast = sum(1 for one in problems if (s := getattr(one, against)) is not None and s > p)
    return fast / len(problems) if problems else 0.0


# ---- curves ----


def _at(problem: Problem, axis: str, x: float) -> float | None:
    """Its speedup when so much was spent; None: it was not solved yet."""
    seen = [s.speedup for s in problem.steps if getattr(s, axis) <= x]
    return max(seen) if seen else None


def curve(problems: Sequence[Problem], axis: str) -> list[Entry]:
    """Where something changes along an axis: solved (a fraction), speedup (the geometric mean over the solved ones), fast_1."""
    marks = sorted({getattr(s, axis) for p in problems for s in p.steps})
    end = max((getattr(p, axis) for p in problems), default=0)
    points = []
    for x in [0, *(m for m in marks if m > 0), *([end] if not marks or end > marks[-1] else [])]:
        gained = [g for p in problems if (g := _at(p, axis, x)) is not None]
        points.append({
            axis: x, "solved": len(gained) / len(problems), "speedup": _mean(gained),
            "fast_1": sum(g > 1 for g in gained) / len(problems),
        })  # fmt: skip
    return points


def marks(most: float) -> list[float]:
    """1, 2, 5, 10 ... up to `most`, which is the last."""
    if most <= 0:
        return []
    found: list[float] = []
    power = 10.0 ** math.floor(math.log10(most))
    while len(found) < 5 and power > most / 1e4:
        found = [m * power for m in (1, 2, 5) if m * power < most] + found
        power /= 10
    return [*found[-5:], most]


def summary(problems: Sequence[Problem]) -> Entry:
    """All that the tables and the plot are drawn from."""
    solved = [p for p in problems if p.state == "solved"]
    return {
        "problems": len(problems), "solved": len(solved), "errors": sum(p.state == "error" for p in problems),
        "speedup": {"eager": _mean([p.eager for p in solved if p.eager]), "best": _mean([p.best for p in solved if p.best])},
        "fast_p": {a: {f"{p:g}": fast_p(problems, p, a) for p in THRESHOLDS} for a in ("eager", "best")},
        "curves": {axis: curve(problems, axis) for axis in AXES} if problems else {},
    }  # fmt: skip


# ---- text and picture ----


def _number(axis: str, x: float) -> str:
    return f"{x:.3g}" if axis == "minutes" else f"{x:,.0f}"


def tables(problems: Sequence[Problem], width: int, table: Callable[..., str]) -> str:
    """The problems, fast_p, and the curves at a few places."""
    rows = [
        (p.name, p.state, _times(p.eager), _times(p.best), p.baseline or "-", str(p.first_right or "-"), str(p.candidates),
         f"{p.minutes:.1f}", str(p.calls), f"{p.tokens:,}")
        for p in problems
    ]  # fmt: skip
    head = ("problem", "state", "vs eager", "vs best", "best is", "first right", "candidates", "minutes", "calls", "tokens")
    found = summary(problems)
    parts = [table(head, rows, width)]
    if why := [f"{p.state}: {p.name}: {p.reason[: 2 * width]}" for p in problems if p.reason]:
        parts.append("\n".join(textwrap.fill(w, width, subsequent_indent="  ") for w in why))
    fast = [(f"over {a}", *(f"{v:.2f}" for v in found["fast_p"][a].values())) for a in ("eager", "best")]
    parts.append(table(("fast_p", *(f"p = {p:g}" for p in THRESHOLDS)), fast, width))
    for axis in AXES:
        ends = [m for m in marks(max((getattr(p, axis) for p in problems), default=0)) if axis == "minutes" or m >= 1]
        if not ends:
            continue
        lines = []
        for x in ends:
            gained = [g for p in problems if (g := _at(p, axis, x)) is not None]
            lines.append((_number(axis, x), f"{len(gained)}/{len(problems)}", _times(_mean(gained)),
                          f"{sum(g > 1 for g in gained) / len(problems):.2f}"))  # fmt: skip
        parts.append(table((axis, "solved", "speedup over eager", "fast_1"), lines, width))
    gained = found["speedup"]["eager"]
    tail = f", {gained:.2f}x eager torch and {found['speedup']['best']:.2f}x the best of torch where solved" if gained else ""
    parts.append(f"{found['solved']} of {found['problems']} solved{tail}")
    return "\n\n".join(parts)


def _times(x: float | None) -> str:
    return f"{x:.2f}x" if x else "-"


def plot(problems: Sequence[Problem], path: Path) -> None:
    """Solve rate and fast_1 above, speedup below, over minutes, calls and tokens. EnvironmentLacks without matplotlib."""
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as e:
        raise EnvironmentLacks(f"no plot, as matplotlib is not here ({e}): pip install matplotlib") from e
    figure = Figure(figsize=(11, 5.6), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(2, len(AXES), sharex="col", squeeze=False)
    for i, axis in enumerate(AXES):
        points = curve(problems, axis)
        xs = [p[axis] for p in points]
        top, below = panels[0][i], panels[1][i]
        top.step(xs, [p["solved"] for p in points], where="post", color="#2563eb", label="solved")
        top.step(xs, [p["fast_1"] for p in points], where="post", color="#d97706", label="fast_1")
        top.set_ylim(-0.03, 1.03)
        timed = [(p[axis], p["speedup"]) for p in points if p["speedup"]]
        below.step([x for x, _ in timed], [y for _, y in timed], where="post", color="#059669")
        below.axhline(1.0, color="#9ca3af", linewidth=0.8, linestyle="--")
        below.set_xlabel(axis)
        for panel in (top, below):
            panel.grid(alpha=0.25)
            panel.spines[["top", "right"]].set_visible(False)
    panels[0][0].set_ylabel("fraction of problems")
    panels[1][0].set_ylabel("speedup over eager,\ngeometric mean of the solved")
    panels[0][0].legend(frameon=False, loc="lower right")
    figure.suptitle(f"{sum(p.state == 'solved' for p in problems)} of {len(problems)} problems solved")
    try:
        figure.savefig(path, dpi=110)
    except (OSError, ValueError) as e:
        raise EnvironmentLacks(f"{path}: the plot cannot be written: {e}") from e
