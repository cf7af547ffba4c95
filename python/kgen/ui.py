"""What people see while kgen works and when it is done: a line that is redrawn on a terminal, plain lines elsewhere.

Everything goes to stderr but results, so that --json stays clean. Needs nothing beyond Python.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, TextIO

if TYPE_CHECKING:
    from .tune import Report, Row

Say = Callable[[str], None]

# Where there is no terminal: wide enough for a log, and no line of a table is longer.
LOG_WIDTH = 100
# A terminal is redrawn this often, so that a step which says nothing is seen to go on.
TICK = 0.25
# A log hears from a search at least this often.
LOG_SECONDS = 15.0
QUIET_SECONDS = 2.0


def milliseconds(ns: float) -> str:
    """Three digits: 812 us, 1.25 ms, 14.0 ms."""
    if ns <= 0:
        return "-"
    for unit, size in (("us", 1e3), ("ms", 1e6), ("s", 1e9)):
        value = ns / size
        if value < 999.5 or unit == "s":
            digits = 2 if value < 9.995 else 1 if value < 99.95 else 0
            return f"{value:.{digits}f} {unit}"
    return "-"


def percent(share: float) -> str:
    """"43%", and "0.4%" below one."""
    return f"{100 * share:.0f}%" if share >= 0.0095 or share <= 0 else f"{100 * share:.1f}%"


def counts_text(verdicts: dict[str, int]) -> str:
    """"58 pass, 2 timeout"."""
    return ", ".join(f"{n} {v}" for v, n in sorted(verdicts.items(), key=lambda i: (i[0] != "pass", i[0])))


def tunables_text(values: dict[str, int]) -> str:
    return " ".join(f"{k}={v}" for k, v in values.items())


class SearchState:
    """The state of one search, from its journal entries."""

    def __init__(self, op: str, budget: float):
        self.op, self.budget, self.started = op, budget, time.monotonic()
        self.rung, self.in_rung, self.seen = "starts", 0, 0
        self.verdicts: dict[str, int] = {}
        self.best = 0.0
        self.best_name = ""
        self.last = ""
        # Of a proposer that is asked.
        self.asked = self.answered = self.tokens = 0
        self.usd = 0.0

    def take(self, entry: dict[str, Any]) -> None:
        if entry["kind"] == "rung":
            self.rung, self.in_rung, self.seen = entry["rung"], entry["candidates"], 0
            return
        self._take_talk(entry)
        if entry["kind"] != "verdict":
            return
        self.seen += 1
        verdict = entry["verdict"]
        self.verdicts[verdict] = self.verdicts.get(verdict, 0) + 1
        times = [t for t in entry.get("time_ns", []) if t > 0]
        name = f"{entry['source']} {tunables_text(entry.get('tunables', {}))}".strip()
        self.last = f"{name}: {verdict}" + (f", {milliseconds(times[0])}" if times else "")
        if verdict == "pass" and times and (not self.best or times[0] < self.best):
            self.best, self.best_name = times[0], name

    def _take_talk(self, entry: dict[str, Any]) -> None:
        kind = entry["kind"]
        if kind == "prompt":
            self.asked += 1
            self.last = f"asked {entry['id']} ({entry['prompt_kind']})"
        elif kind == "answer":
            self.answered += 1
            self.last = f"answer to {entry['prompt']}"
        elif kind == "failed":
            self.last = f"no answer to {entry['prompt']}: {entry['message']}"
        if charged := entry.get("charged"):
            self.tokens += charged.get("tokens", 0)
            self.usd += charged.get("nano_usd", 0) * 1e-9

    def _talk(self) -> str:
        if not self.asked:
            return ""
        cost = f", {self.usd:.4f} USD" if self.usd else ""
        return f"; {self.answered} of {self.asked} answers, {self.tokens} tokens{cost}"

    def text(self) -> str:
        took = time.monotonic() - self.started
        best = f"best {milliseconds(self.best)}" if self.best else "none passed yet"
        counts = counts_text(self.verdicts) or "nothing judged yet"
        return f"{self.op}: search, {self.rung} {self.seen}/{self.in_rung}; {took:.0f} of {self.budget:.0f} s; {best}; {counts}{self._talk()}"

    def end(self) -> str:
        took = time.monotonic() - self.started
        best = f"; best {milliseconds(self.best)}, {self.best_name}" if self.best else ""
        return f"{self.op}: search: {took:.1f} s; {counts_text(self.verdicts) or 'nothing to judge'}{best}{self._talk()}"


class _Screen:
    """The last lines of a terminal, redrawn in place while something goes on."""

    def __init__(self, out: TextIO, text: Callable[[], Sequence[str]]):
        self.out, self.text, self.drawn = out, text, 0
        self.lock, self.ended = threading.Lock(), threading.Event()
        self.thread = threading.Thread(target=self._tick, daemon=True)

    def __enter__(self) -> _Screen:
        self.draw()
        self.thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.ended.set()
        self.thread.join()
        self.clear()

    def _tick(self) -> None:
        while not self.ended.wait(TICK):
            self.draw()

    def clear(self) -> None:
        with self.lock:
            self._write("")

    def draw(self) -> None:
        columns = shutil.get_terminal_size().columns
        with self.lock:
            self._write("\n".join(line[: columns - 1] for line in self.text() if line))

    def _write(self, text: str) -> None:
        up = f"\x1b[{self.drawn - 1}A" if self.drawn > 1 else ""
        with contextlib.suppress(OSError):
            self.out.write(f"\r{up}\x1b[J{text}" if self.drawn else text)
            self.out.flush()
        self.drawn = text.count("\n") + 1 if text else 0


class _Once:
    """A function that does its work at the first call; from any thread."""

    def __init__(self, work: Callable[[], None]):
        self.work, self.lock, self.done = work, threading.Lock(), False

    def __call__(self) -> None:
        with self.lock:
            if not self.done:
                self.done = True
                self.work()


class Progress:
    """Steps and searches, as they go on; on stderr. quiet: not a word."""

    def __init__(self, quiet: bool = False, out: TextIO | None = None):
        self.quiet = quiet
        self.out = out or sys.stderr
        self.terminal = not quiet and self.out.isatty() and os.environ.get("TERM") != "dumb"
        self._screen: _Screen | None = None

    def note(self, text: str) -> None:
        """A line that stays."""
        if self.quiet:
            return
        if self._screen:
            self._screen.clear()
        with contextlib.suppress(OSError):
            self.out.write(text + "\n")
            self.out.flush()

    def always(self, text: str) -> None:
        """A line that is said even when quiet: what leaves this machine, and where to."""
        if not self.quiet:
            self.note(text)
            return
        with contextlib.suppress(OSError):
            self.out.write(f"kgen: {text}\n")
            self.out.flush()

    @contextlib.contextmanager
    def _live(self, text: Callable[[], Sequence[str]]) -> Iterator[None]:
        if not self.terminal or self._screen:
            yield
            return
        with _Screen(self.out, text) as self._screen:
            try:
                yield
            finally:
                self._screen, screen = None, self._screen
                screen.clear()

    @contextlib.contextmanager
    def step(self, title: str) -> Iterator[Say]:
        """One thing that takes a while; the function given says what it is at. Its line stays when it is done."""
        started, at = time.monotonic(), [""]

        def text() -> list[str]:
            return [f"{title}{': ' if at[0] else ''}{at[0]} ... {time.monotonic() - started:.0f} s"]

        # A log hears of a step when it says something or takes a while; of a short and silent one when it is done.
        begin = _Once(lambda: self.note(f"{title} ..."))
        soon = threading.Timer(QUIET_SECONDS, begin)
        soon.daemon = True

        def say(what: str) -> None:
            at[0] = what
            if not self.terminal:
                begin()
                self.note(f"  {what}")

        if not self.terminal:
            soon.start()
        try:
            with self._live(text):
                yield say
        finally:
            soon.cancel()
        self.note(f"{title}: {time.monotonic() - started:.1f} s")

    @contextlib.contextmanager
    def search(self, op: str, budget: float) -> Iterator[Callable[[dict[str, Any]], None]]:
        """A search, told by its journal entries."""
        state, said = SearchState(op, budget), [time.monotonic()]

        def tell(entry: dict[str, Any]) -> None:
            before = state.rung
            state.take(entry)
            late = time.monotonic() - said[0] > LOG_SECONDS
            if not self.terminal and (state.rung != before or late):
                said[0] = time.monotonic()
                self.note(state.text())

        with self._live(lambda: [state.text(), f"  {state.last}" if state.last else ""]):
            yield tell
        self.note(state.end())


# Results


def table(header: Sequence[str], rows: Sequence[Sequence[str]], width: int) -> str:
    """Columns of text, two spaces apart, at most `width` wide: the widest columns are folded until it fits."""
    cells = [list(header), *map(list, rows)]
    widths = [max(len(row[i]) for row in cells) for i in range(len(header))]
    while sum(widths) + 2 * (len(widths) - 1) > width and max(widths) > 8:
        widths[widths.index(max(widths))] -= 1
    lines = []
    for row in cells:
        folded = [
            textwrap.wrap(cell, w, break_on_hyphens=False) or [""] for cell, w in zip(row, widths, strict=True)
        ]
        for i in range(max(map(len, folded))):
            parts = [(f[i] if i < len(f) else "").ljust(w) for f, w in zip(folded, widths, strict=True)]
            lines.append("  ".join(parts).rstrip())
    return "\n".join(lines)


def _speedup(row: Row) -> str:
    if not row.speedup:
        return "-"
    median, low, high = row.speedup
    return f"{median:.2f}x ({low:.2f}..{high:.2f})"


def result_table(rows: Sequence[Row], width: int = LOG_WIDTH) -> str:
    """The Cases that were tried."""
    header = ("op", "case", "best baseline", "kgen", "speedup (95%)", "of floor", "verdicts", "kernel")
    lines = []
    for r in rows:
        base = f"{r.baseline} {milliseconds(r.baseline_ns)}" if r.baseline else "-"
        floor = percent(r.floor_share) if r.floor_share else "-"
        version = r.kernel.rpartition("/")[2] or "-"
        lines.append(
            (r.op, r.case, base, milliseconds(r.kgen_ns), _speedup(r), floor, counts_text(r.verdicts) or "-", version)
        )
    return table(header, lines, width)


def _where(row: Row) -> str:
    return f"{row.op} {row.where}" if row.where and row.where != row.op else row.op


def left_table(rows: Sequence[Row], width: int = LOG_WIDTH) -> str:
    """What was left alone, by reason: one table a reason, the parts that cost most first."""
    parts = []
    for reason in dict.fromkeys(r.reason for r in rows):
        same = sorted((r for r in rows if r.reason == reason), key=lambda r: -r.share)
        shown = [r for r in same if r.share >= 0.01] or same[:1]
        head = textwrap.fill(f"left alone: {reason}", width, subsequent_indent="  ")
        lines = [
            (f"  {r.op}", r.where, percent(r.share) if r.share else "-", percent(r.floor_share) if r.floor_share else "-")
            for r in shown
        ]
        body = table(("  op", "where", "of the time", "floor of that"), lines, width)
        more = len(same) - len(shown)
        parts.append("\n".join([head, body, *([f"  and {more} more, each below 1% of the time"] if more else [])]))
    return "\n".join(parts)


def _said_of(row: Row) -> Iterator[str]:
    if row.state != "promoted":
        tail = ""
        if row.state == "kept" and row.floor_share and row.baseline_ns:
            room = row.baseline_ns / (row.floor_share * row.kgen_ns)
            tail = f"; headroom: the floor is {room:.{0 if room >= 10 else 1}f}x faster than {row.baseline}"
        yield f"not promoted: {row.op} {row.case}: {row.reason}{tail}"
    for b in row.gate.get("baselines", []):
        if "left_out" in b:
            yield f"baseline {b['name']} left out for {row.op} {row.case}: {b['left_out']}"


def show_result(report: Report, out: TextIO | None = None) -> None:
    """The table of a Run, what was left alone and why, and where the Kernels are; on stdout."""
    out = out or sys.stdout
    width = max(60, shutil.get_terminal_size().columns) if out.isatty() else LOG_WIDTH
    tried = [r for r in report.rows if r.state != "left"]
    left = [r for r in report.rows if r.state == "left"]
    said = [text for r in tried for text in _said_of(r)]
    parts = []
    if tried:
        parts.append(result_table(tried, width))
    if said:
        parts.append("\n".join(textwrap.fill(s, width, subsequent_indent="  ") for s in said))
    if classes := sorted({r.gate.get("arithmetic", "") for r in tried} - {""}):
        parts.append(f"torch's float32 in these comparisons: {', '.join(classes)}")
    if left:
        parts.append(left_table(left, width))
    if report.promoted:
        parts.append(f"{len(report.promoted)} promoted to {report.registry}")
    elif any(r.state == "passed" for r in tried):
        parts.append("nothing was promoted, as --no-promote asks")
    elif tried:
        parts.append("nothing better was found, so nothing was promoted")
    else:
        parts.append("nothing was tried: no part of this model is an Op that the built-in proposer has a template for")
    print("\n\n".join(parts), file=out)
