"""What people see while kgen works and when it is done: rich on a terminal, plain lines elsewhere.

Everything goes to stderr but results, so that --json stays clean.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.live import Live
from rich.markup import escape
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from .tune import Report, Row

Say = Callable[[str], None]


def milliseconds(ns: float) -> str:
    """Three digits: 812 us, 1.25 ms, 14.0 ms."""
    if ns <= 0:
        return "-"
    if ns < 1e6:
        return f"{ns / 1e3:.3g} us"
    return f"{ns / 1e6:.3g} ms" if ns < 1e9 else f"{ns / 1e9:.3g} s"


class _Search:
    """The state of one search, from its journal entries."""

    def __init__(self, op: str, budget: float):
        self.op, self.budget, self.started = op, budget, time.monotonic()
        self.rung, self.in_rung, self.seen = "", 0, 0
        self.verdicts: dict[str, int] = {}
        self.best = 0.0
        self.best_name = ""
        self.last = ""

    def take(self, entry: dict[str, Any]) -> None:
        if entry["kind"] == "rung":
            self.rung, self.in_rung, self.seen = entry["rung"], entry["candidates"], 0
            return
        if entry["kind"] != "verdict":
            return
        self.seen += 1
        verdict = entry["verdict"]
        self.verdicts[verdict] = self.verdicts.get(verdict, 0) + 1
        times = [t for t in entry.get("time_ns", []) if t > 0]
        name = f"{entry['source']} {_tunables(entry.get('tunables', {}))}".strip()
        self.last = f"{name}: {verdict}" + (f" {milliseconds(times[0])}" if times else "")
        if verdict == "pass" and times and (not self.best or times[0] < self.best):
            self.best, self.best_name = times[0], name

    def text(self) -> str:
        took = time.monotonic() - self.started
        counts = ", ".join(f"{n} {v}" for v, n in self.verdicts.items())
        best = f"best {milliseconds(self.best)}" if self.best else "none passed yet"
        return (
            f"{self.op}: search {self.rung} {self.seen}/{self.in_rung}, {took:.0f} of {self.budget:.0f} s; {best}; {counts}"
        )


def _tunables(values: dict[str, int]) -> str:
    return " ".join(f"{k}={v}" for k, v in values.items())


class Progress:
    """Steps and searches, as they go on."""

    def __init__(self, quiet: bool = False):
        self.console = Console(stderr=True, quiet=quiet, highlight=False)
        self.quiet = quiet

    def note(self, text: str) -> None:
        self.console.print(escape(text), soft_wrap=True)

    @contextlib.contextmanager
    def _live(self, title: str) -> Iterator[Callable[[str], None]]:
        if self.quiet or not self.console.is_terminal:
            yield lambda _: None
            return
        with Live(Text(title), console=self.console, transient=True, refresh_per_second=8) as live:
            yield lambda text: live.update(Text(text))

    @contextlib.contextmanager
    def step(self, title: str) -> Iterator[Say]:
        """One thing that takes a while; the function given says what it is at."""
        started = time.monotonic()
        with self._live(f"{title} ...") as update:
            yield lambda text: update(f"{title}: {text} ...")
        self.note(f"{title}: {time.monotonic() - started:.1f} s")

    @contextlib.contextmanager
    def search(self, op: str, budget: float) -> Iterator[Callable[[dict[str, Any]], None]]:
        """A search, told by its journal entries."""
        state = _Search(op, budget)
        with self._live(f"{op}: search ...") as update:

            def tell(entry: dict[str, Any]) -> None:
                before = state.rung
                state.take(entry)
                update(f"{state.text()}\n  {state.last}")
                if not self.console.is_terminal and state.rung != before:
                    self.note(state.text())

            yield tell
        self.note(f"{state.text()}" + (f" ({state.best_name})" if state.best_name else ""))


def _speedup(row: Row) -> str:
    if not row.speedup:
        return "-"
    median, low, high = row.speedup
    return f"{median:.2f}x ({low:.2f}..{high:.2f})"


def result_table(rows: list[Row]) -> Table:
    """The Cases that were tried."""
    table = Table(title=None, show_lines=False, pad_edge=False, box=None, header_style="bold")
    for name in ("op", "case", "best baseline", "kgen", "speedup (95%)", "of floor", "verdicts", "kernel"):
        table.add_column(name, overflow="fold")
    for r in rows:
        counts = " ".join(f"{v}:{n}" for v, n in r.verdicts.items())
        base = f"{r.baseline} {milliseconds(r.baseline_ns)}" if r.baseline else "-"
        floor = f"{100 * r.floor_share:.0f}%" if r.floor_share else "-"
        table.add_row(
            r.op, r.case, base, milliseconds(r.kgen_ns), _speedup(r), floor, counts or "-", r.kernel or "not promoted"
        )
    return table


def show_result(report: Report) -> None:
    """The table of a Run, what was left alone and why, and where the Kernels are; on stdout."""
    out = Console(highlight=False)
    if not out.is_terminal:
        out.width = 200  # a log is not folded to the width of a screen that is not there
    tried = [r for r in report.rows if r.state != "left"]
    if tried:
        out.print(result_table(tried))
    for r in tried:
        if r.state != "promoted":
            out.print(escape(f"not promoted: {r.op} {r.case}: {r.reason}"), soft_wrap=True)
        for b in r.gate.get("baselines", []):
            if "left_out" in b:
                out.print(escape(f"baseline {b['name']} left out for {r.op}: {b['left_out']}"), soft_wrap=True)
    for r in report.rows:
        if r.state == "left":
            share = f" ({100 * r.share:.0f}% of the time)" if r.share else ""
            out.print(escape(f"left alone: {r.op} {r.where}{share}: {r.reason}"), soft_wrap=True)
    if report.promoted:
        out.print(escape(f"{len(report.promoted)} promoted to {report.registry}"), soft_wrap=True)
    else:
        out.print("nothing better was found; nothing was promoted")
