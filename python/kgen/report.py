"""`kgen report`: a Run as one HTML page that needs nothing beside it. Drawn from run.json, journal.jsonl and result.json; a Run
that is not finished is drawn as far as it got. Runs no code of the Run and changes nothing in it.
"""

from __future__ import annotations

import argparse
import math
import os
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from html import escape
from pathlib import Path
from typing import Any

from . import report_loop, runs
from .errors import BadInput, EnvironmentLacks
from .jsonfile import read_journal, read_json
from .runs import KEYS, RESULT_KEYS

WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 860, 300, 64, 16, 14, 44
COLOURS = ("#2563eb", "#d97706", "#059669", "#9333ea", "#dc2626", "#0891b2", "#65a30d", "#be185d")

STYLE = """
body{font:15px/1.45 system-ui,sans-serif;color:#1f2937;max-width:60rem;margin:2rem auto;padding:0 1rem}
h1{font-size:1.5rem}h2{font-size:1.15rem;margin-top:2rem}
table{border-collapse:collapse;width:100%;font-size:.9rem}
th,td{text-align:left;padding:.3rem .6rem .3rem 0;border-bottom:1px solid #e5e7eb;vertical-align:top}
td.n{text-align:right;font-variant-numeric:tabular-nums}
pre{background:#f3f4f6;padding:.8rem;overflow-x:auto;font-size:.8rem}
p{margin:.3rem 0}
svg{width:100%;height:auto}svg text{font:12px system-ui,sans-serif;fill:#374151}
.dim{color:#6b7280}
h3{font-size:1rem;margin:1.2rem 0 .2rem}
summary{cursor:pointer}
.v{display:inline-block;padding:0 .45rem;border-radius:.6rem;background:#fee2e2;color:#991b1b;font-size:.85rem}
.v.pass{background:#dcfce7;color:#166534}
.turn{border-left:2px solid #e5e7eb;padding-left:.7rem;margin-top:.5rem}
blockquote{margin:.2rem 0;color:#374151;font-style:italic}
"""

Entry = dict[str, Any]
# Its name, ns a call, and the winner's speedup over it, all of the gate.
Baseline = tuple[str, float, float]


@dataclass(frozen=True)
class Point:
    """One judged Candidate: seconds since the search began, its time on a Case in ns (0: none), and what it is."""

    at: float
    time_ns: float
    source: str
    verdict: str
    title: str


@dataclass
class Course:
    """The search of one Op: points of each Case and, where a Record tells, its hash; what came to the gate."""

    op: str
    points: list[list[Point]] = field(default_factory=list)
    hashes: list[str] = field(default_factory=list)
    verdicts: dict[str, int] = field(default_factory=dict)
    gates: list[Entry] = field(default_factory=list)


# ---- reading ----


def _tunables(entry: Entry) -> str:
    return " ".join(f"{k}={v}" for k, v in sorted(entry.get("tunables", {}).items()))


def courses(entries: Sequence[Entry]) -> list[Course]:
    """The searches of a journal, an Op each, in the order in which they began."""
    found: dict[str, Course] = {}
    began: dict[str, float] = {}
    for e in entries:
        op = e.get("op")
        if not isinstance(op, str):
            continue
        course = found.setdefault(op, Course(op))
        start = began.setdefault(op, float(e.get("t", 0.0)))
        if e["kind"] != "verdict":
            continue
        times = [float(t) for t in e.get("time_ns", [])] or [0.0]
        judged = [str(c.get("case", "")) for c in e.get("record", {}).get("cases", [])]
        if len(judged) == len(times):  # else some Case was left out, and it does not say which
            course.hashes = judged
        course.verdicts[e["verdict"]] = course.verdicts.get(e["verdict"], 0) + 1
        while len(course.points) < len(times):
            course.points.append([])
        for at, ns in enumerate(times):
            title = f"{e['source']} {_tunables(e)}: {e['verdict']}"
            course.points[at].append(Point(float(e.get("t", 0.0)) - start, ns, e["source"], e["verdict"], title))
    for e in runs.gates(entries):
        found[e["op"]].gates.append(e)
    return list(found.values())


# ---- drawing ----


def milliseconds(ns: float | None) -> str:
    """812 us, 1.25 ms, 14.0 ms; a dash for nothing."""
    if not ns or ns <= 0:
        return "-"
    if ns < 1e6:
        return f"{ns / 1e3:.3g} us"
    return f"{ns / 1e6:.3g} ms" if ns < 1e9 else f"{ns / 1e9:.3g} s"


class _Plot:
    """A logarithmic plot of times over seconds."""

    def __init__(self, seconds: float, low: float, high: float, unit: str = "seconds"):
        self.seconds, self.unit = max(seconds, 1e-3), unit
        self.low, self.high = math.log(low / 1.15), math.log(high * 1.15)

    def x(self, at: float) -> float:
        return LEFT + (WIDTH - LEFT - RIGHT) * min(max(at / self.seconds, 0.0), 1.0)

    def y(self, ns: float) -> float:
        share = (math.log(ns) - self.low) / max(self.high - self.low, 1e-9)
        return HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * min(max(share, 0.0), 1.0)

    def ticks(self) -> list[float]:
        """1, 2 and 5 times powers of ten that lie in the range; its ends when none does."""
        first = math.floor(self.low / math.log(10))
        last = math.ceil(self.high / math.log(10))
        marks = [m * 10.0**p for p in range(first, last + 1) for m in (1, 2, 5)]
        inside = [m for m in marks if self.low <= math.log(m) <= self.high]
        return inside or [math.exp(self.low), math.exp(self.high)]

    def steps(self) -> list[float]:
        """Round numbers on the other axis, at most eight."""
        step = 10.0 ** math.floor(math.log10(self.seconds))
        while self.seconds / step < 3.5:
            step /= 2 if f"{step:e}"[0] in "12" else 2.5
        return [round(i * step, 10) for i in range(int(self.seconds / step + 1e-9) + 1)]

    def axes(self) -> Iterator[str]:
        bottom = HEIGHT - BOTTOM
        for ns in self.ticks():
            y = self.y(ns)
            yield f'<line x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}" stroke="#e5e7eb"/>'
            yield f'<text x="{LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{milliseconds(ns)}</text>'
        yield f'<line x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{bottom}" y2="{bottom}" stroke="#9ca3af"/>'
        for at in self.steps():
            yield f'<text x="{self.x(at):.1f}" y="{bottom + 16}" text-anchor="middle">{at:,.10g}</text>'
        yield f'<text x="{WIDTH - RIGHT}" y="{bottom + 32}" text-anchor="end">{escape(self.unit)}</text>'


def _best_line(plot: _Plot, points: Sequence[Point], baseline: Baseline | None) -> str:
    best, path = math.inf, []
    for p in points:
        if p.time_ns <= 0 or p.time_ns >= best:
            continue
        best = p.time_ns
        x, y = plot.x(p.at), plot.y(best)
        path.append(f"H{x:.1f}V{y:.1f}" if path else f"M{x:.1f} {y:.1f}")
    if not path:
        return ""
    gain = f"{baseline[2]:.2f}x at the gate" if baseline and baseline[2] > 0 else ""
    y = plot.y(best)
    return (
        f'<path d="{"".join(path)}H{WIDTH - RIGHT}" fill="none" stroke="#111827" stroke-width="1.2"/>'
        f'<text x="{WIDTH - RIGHT}" y="{y - 5 if y > TOP + 20 else y + 15:.1f}" text-anchor="end">{gain}</text>'
    )


def svg(points: Sequence[Point], baseline: Baseline | None = None, unit: str = "seconds", legend: bool = True) -> str:
    """Times of the Candidates of one Case over the course of the search; those without a time as crosses below."""
    times = [p.time_ns for p in points if p.time_ns > 0] + ([baseline[1]] if baseline and baseline[1] > 0 else [])
    if not times:
        return '<p class="dim">No Candidate was timed.</p>'
    plot = _Plot(max(p.at for p in points), min(times), max(times), unit)
    sources = sorted({p.source for p in points})
    colour = {s: COLOURS[i % len(COLOURS)] for i, s in enumerate(sources)}
    parts = [f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="times of the Candidates">', *plot.axes()]
    if baseline and baseline[1] > 0:
        y = plot.y(baseline[1])
        parts.append(f'<line x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}" stroke="#dc2626" stroke-dasharray="5 4"/>')
        parts.append(f'<text x="{WIDTH - RIGHT}" y="{y - 4:.1f}" text-anchor="end">{escape(baseline[0])}</text>')
    parts.append(_best_line(plot, points, baseline))
    for p in points:
        x, title = plot.x(p.at), f"<title>{escape(p.title)} {milliseconds(p.time_ns)}</title>"
        if p.time_ns > 0:
            parts.append(f'<circle cx="{x:.1f}" cy="{plot.y(p.time_ns):.1f}" r="3.5" fill="{colour[p.source]}" opacity=".8">{title}</circle>')
        else:
            y = HEIGHT - BOTTOM - 5
            parts.append(f'<path d="M{x - 3:.1f} {y - 3}l6 6m0 -6l-6 6" stroke="{colour[p.source]}">{title}</path>')
    for i, s in enumerate(sources if legend else ()):
        x = LEFT + i * 190
        parts.append(f'<circle cx="{x}" cy="{HEIGHT - 10}" r="4" fill="{colour[s]}"/>')
        parts.append(f'<text x="{x + 9}" y="{HEIGHT - 6}">{escape(s)}</text>')
    return "\n".join([*parts, "</svg>"])


def _speedup(row: Entry) -> str:
    s = row.get("speedup")
    return f"{s['median']:.2f}x ({s['low']:.2f}..{s['high']:.2f})" if s else "-"


def _table(rows: Sequence[Entry]) -> str:
    head = ("op", "case", "best baseline", "kgen", "speedup (95%)", "of floor", "verdicts", "outcome")
    lines = ["<table><tr>", *(f"<th>{h}</th>" for h in head), "</tr>"]
    for r in rows:
        base = f"{r['baseline']} {milliseconds(r['baseline_ns'])}" if r.get("baseline") else "-"
        floor = f"{100 * r['floor_share']:.0f}%" if r.get("floor_share") else "-"
        counts = ", ".join(f"{n} {v}" for v, n in r.get("verdicts", {}).items()) or "-"
        outcome = r.get("kernel") or f"{r['state']}: {r.get('reason', '')}"
        cells = (r["op"], r["case"] or r["where"], base, milliseconds(r.get("kgen_ns")), _speedup(r), floor, counts, outcome)
        numeric = (3, 4, 5)
        lines.append("<tr>" + "".join(
            f"<td{' class=n' if i in numeric else ''}>{escape(str(c))}</td>" for i, c in enumerate(cells)) + "</tr>")  # fmt: skip
    return "\n".join([*lines, "</table>"])


def _baseline_of(course: Course, i: int) -> Baseline | None:
    """The best baseline of a Case, once its winner was at the gate."""
    for gate in reversed(course.gates):
        ours = gate.get("case") == course.hashes[i] if i < len(course.hashes) else len(course.points) == 1
        if ours and gate.get("baseline", {}).get("name"):
            return gate["baseline"]["name"], float(gate["baseline"]["median_ns"]), float(gate["speedup"]["median"])
    return None


def _winners(run_dir: Path, course: Course) -> Iterator[str]:
    """Sources of what came to the gate."""
    seen = set()
    for gate in course.gates:
        ident = str(gate.get("id", ""))
        path = next((p for p in (run_dir / "candidates" / f"{ident}{end}" for end in (".c", ".cu")) if p.is_file()), None)
        if ident in seen or not ident.isalnum() or path is None:
            continue
        seen.add(ident)
        verdict = "passed the gate" if gate.get("passed") else f"stopped at the gate: {gate.get('reason', '')}"
        text = path.read_text(errors="replace")
        yield f"<details><summary>{escape(ident[:12])}, {escape(verdict)}</summary><pre>{escape(text)}</pre></details>"


def _course(run_dir: Path, course: Course, entries: Sequence[Entry]) -> Iterator[str]:
    counts = ", ".join(f"{n} {v}" for v, n in course.verdicts.items())
    yield f"<h2>{escape(course.op)}</h2>"
    yield f'<p class="dim">{escape(counts or "no Candidate was judged")}</p>'
    for i, points in enumerate(course.points):
        if len(course.points) > 1:
            yield f"<h3>Case {i}</h3>"
        yield svg(points, _baseline_of(course, i), legend=len({p.source for p in points}) <= 4)
    asked = [Point(*p, f"{p[2]}: {p[3]}") for p in report_loop.over_tokens([e for e in entries if e.get("op") == course.op])]
    if any(p.at > 0 for p in asked):
        baseline = _baseline_of(course, 0) if len(course.points) == 1 else None
        yield "<h3>over tokens</h3>" + svg(asked, baseline, "tokens", legend=False)
    yield from report_loop.section(entries, course.op)
    yield from _winners(run_dir, course)


def page(run_dir: Path) -> str:
    """The whole page. BadInput: the folder is no Run, or its files do not have what docs/formats.md says."""
    try:
        return _page(run_dir)
    except KeyError as e:
        raise BadInput(f"{run_dir}: an entry of its journal or result has no {e.args[0]!r}; kgen did not write it so") from e
    except (TypeError, ValueError, AttributeError) as e:
        raise BadInput(f"{run_dir}: its journal or result is not as kgen writes it: {e}") from e


def _page(run_dir: Path) -> str:
    if not (run_dir / "run.json").is_file():
        raise BadInput(f"{run_dir}: is no Run: there is no run.json in it")
    asked = read_json(run_dir / "run.json", KEYS)
    result = read_json(run_dir / "result.json", RESULT_KEYS) if (run_dir / "result.json").is_file() else None
    model = str(asked.get("model", run_dir.name))
    parts = [
        "<!doctype html><html lang=en><meta charset=utf-8>",
        f"<title>kgen: {escape(model)}</title><style>{STYLE}</style>",
        f"<h1>{escape(model)}</h1>",
        f'<p class="dim">torch {escape(str(asked.get("torch", "?")))}, begun {escape(str(asked.get("created", "?")))}'
        + (f", {result['seconds']:.0f} s" if result and "seconds" in result else "")
        + "</p>",
    ]
    if result is None:
        parts.append("<p>This Run is not finished: there is no result yet.</p>")
    else:
        parts.append(_table(result["rows"]))
    entries = read_journal(run_dir / "journal.jsonl")
    for course in courses(entries):
        parts += _course(run_dir, course, entries)
    return "\n".join([*parts, "</html>\n"])


def write(path: Path, text: str) -> None:
    """Puts the page in place at once; into what is there and no file (a device, a pipe) it is written. EnvironmentLacks
    where it cannot be written."""
    aside = None
    try:
        if path.exists() and not path.is_file():
            path.write_text(text)
            return
        with tempfile.NamedTemporaryFile("w", dir=path.parent, prefix=".tmp-report-", delete=False) as f:
            aside = Path(f.name)
            f.write(text)
        aside.chmod(0o644)
        os.replace(aside, path)
    except OSError as e:
        if aside is not None:
            aside.unlink(missing_ok=True)
        raise EnvironmentLacks(f"{path}: cannot be written: {e.strerror}") from e


def run_report(args: argparse.Namespace) -> int:
    """`kgen report`."""
    run_dir = Path(args.run_dir)
    out = Path(args.output) if args.output else run_dir / "report.html"
    write(out, page(run_dir))
    print(out)
    return 0
