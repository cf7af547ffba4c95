"""kgen report: the page says what the Run's files say, and stands alone."""

from __future__ import annotations

import json
import re
import xml.dom.minidom
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from run_files import write_journal

from kgen import cli, report

WINNER = "ab" * 32
LOSER = "cd" * 32


def entry(n: int, kind: str, t: float, **fields: Any) -> dict[str, Any]:
    return {"format": 1, "n": n, "kind": kind, "t": 1000.0 + t, "op": "softmax", **fields}


def verdict(n: int, t: float, ident: str, ns: float, answer: str = "pass", **fields: Any) -> dict[str, Any]:
    return entry(
        n, "verdict", t, id=ident, source="softmax/rows.c", tunables={"UNROLL": n}, level=0, verdict=answer, message="",
        time_ns=[ns], **fields,
    )  # fmt: skip


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    """A finished Run of two Candidates that passed and one that did not."""
    root = tmp_path / "run"
    (root / "candidates").mkdir(parents=True)
    (root / "candidates" / f"{WINNER}.c").write_text("/* winner <&> */\n")
    asked = {"format": 1, "model": "gpt <b>.py", "torch": "2.13.0", "created": "2026-01-31T12:00:00Z"}
    (root / "run.json").write_text(json.dumps(asked))
    gate = {
        "case": "0" * 32, "id": WINNER, "passed": True, "reason": "", "kgen_ns": 1.0e6,
        "baseline": {"name": "torch.compile", "median_ns": 2.5e6}, "speedup": {"median": 2.5, "low": 2.4, "high": 2.6},
    }  # fmt: skip
    lines = [
        entry(0, "rung", 0.0, rung="first", candidates=3),
        verdict(1, 1.0, LOSER, 4.0e6),
        verdict(2, 2.0, "ef" * 32, 0.0, "wrong_values"),
        verdict(3, 4.0, WINNER, 1.0e6),
        entry(4, "gate", 5.0, **gate),
    ]
    write_journal(root / "journal.jsonl", lines)
    row = {
        "op": "softmax", "where": "blocks.0", "case": "float32 M=4096 N=4096 K=1", "share": 0.3, "state": "promoted",
        "reason": "", "kernel": "softmax/v1", "baseline": "torch.compile", "baseline_ns": 2.5e6, "kgen_ns": 1.0e6,
        "speedup": {"median": 2.5, "low": 2.4, "high": 2.6}, "floor_share": 0.83,
        "verdicts": {"pass": 2, "wrong_values": 1}, "gate": gate,
    }  # fmt: skip
    left = {**row, "op": "linear", "case": "", "state": "left", "reason": "no template", "kernel": "", "baseline": "",
            "speedup": None, "verdicts": {}, "floor_share": None, "kgen_ns": 0.0}  # fmt: skip
    result = {"format": 1, "model": "gpt", "run": str(root), "registry": "r", "seconds": 61.5, "rows": [row, left]}
    (root / "result.json").write_text(json.dumps(result))
    return root


class Page(HTMLParser):
    """Cells of the table, and every address that the page would fetch."""

    def __init__(self, text: str):
        super().__init__()
        self.cells: list[str] = []
        self.fetched: list[str] = []
        self.open = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.open = tag
        if tag == "td":
            self.cells.append("")
        self.fetched += [f"{tag} {v}" for k, v in attrs if k in ("src", "href", "xlink:href")]
        self.fetched += [tag] * (tag in ("script", "link", "img", "iframe"))

    def handle_data(self, data: str) -> None:
        if self.open == "td":
            self.cells[-1] += data.strip()


def test_the_table_says_what_the_result_says(run_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "r.html"
    assert cli.main(["report", str(run_dir), "-o", str(out)]) == 0
    assert capsys.readouterr().out.strip() == str(out)
    text = out.read_text()
    assert Page(text).cells[:8] == [
        "softmax", "float32 M=4096 N=4096 K=1", "torch.compile 2.5 ms", "1 ms", "2.50x (2.40..2.60)", "83%",
        "2 pass, 1 wrong_values", "softmax/v1",
    ]  # fmt: skip
    assert Page(text).cells[8:] == ["linear", "blocks.0", "-", "-", "-", "-", "-", "left: no template"]
    assert "gpt &lt;b&gt;.py" in text and "gpt <b>" not in text
    assert "/* winner &lt;&amp;&gt; */" in text


def test_the_page_fetches_nothing(run_dir: Path) -> None:
    assert Page(report.page(run_dir)).fetched == []
    assert "http" not in report.page(run_dir)


def test_the_plot_places_faster_lower_and_later_further_right(run_dir: Path) -> None:
    points = report.courses(report.read_journal(run_dir / "journal.jsonl"))[0].points[0]
    drawing = report.svg(points, ("torch.compile", 2.5e6, 2.5))
    xml.dom.minidom.parseString(drawing)
    circles = re.findall(r'<circle cx="([\d.]+)" cy="([\d.]+)" r="3.5"', drawing)
    (x0, y0), (x1, y1) = [(float(x), float(y)) for x, y in circles]
    assert x0 < x1, "the first was judged before the second"
    assert y0 < y1, "4 ms lies above 1 ms"
    base = float(re.search(r'y1="([\d.]+)" y2="[\d.]+" stroke="#dc2626"', drawing)[1])  # type: ignore[index]
    assert y0 < base < y1, "the baseline's 2.5 ms lie between"
    assert drawing.count("l6 6m0 -6l-6 6") == 1, "one Candidate has no time"


def test_a_baseline_stands_with_its_own_case(run_dir: Path) -> None:
    lines = [json.loads(line) for line in (run_dir / "journal.jsonl").read_text().splitlines()]
    for line in lines:
        if line["kind"] == "verdict":
            line["time_ns"] *= 2
            line["record"] = {"cases": [{"case": "1" * 32}, {"case": "0" * 32}]}
    write_journal(run_dir / "journal.jsonl", lines)
    first, second = report.page(run_dir).split("<h3>Case 1</h3>")
    assert "<h3>Case 0</h3>" in first
    assert "stroke-dasharray" not in first and "stroke-dasharray" in second


def test_a_run_that_goes_on_is_drawn_so_far(run_dir: Path) -> None:
    (run_dir / "result.json").unlink()
    with open(run_dir / "journal.jsonl", "a") as f:
        f.write('{"format": 1, "n": 5, "ki')
    text = report.page(run_dir)
    assert "not finished" in text and text.count("r=\"3.5\"") == 2


def test_an_empty_journal_is_no_error(run_dir: Path) -> None:
    (run_dir / "journal.jsonl").write_text("")
    (run_dir / "result.json").unlink()
    assert "<svg" not in report.page(run_dir)


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda r: (r / "run.json").unlink(), "is no Run"),
        (lambda r: (r / "run.json").write_text("{"), "run.json"),
        (lambda r: (r / "result.json").write_text("[]"), "result.json"),
        (lambda r: (r / "journal.jsonl").write_text("{\n{}\n"), "journal.jsonl line 1"),
        (lambda r: write_journal(r / "journal.jsonl", [{"format": 1, "n": 0, "kind": "verdict", "op": "x"}]), "has no 'verdict'"),
        (lambda r: (r / "journal.jsonl").write_text('{"format":1,"n":0,"kind":"verdict","op":"x"}\n'), "line 1: has no sum"),
        (lambda r: (r / "result.json").write_text('{"format": 1, "rows": [{}]}'), "has no 'state'"),
        (lambda r: (r / "result.json").write_text('{"format": 1, "rows": [1]}'), "is not as kgen writes it"),
    ],
)
def test_what_is_wrong_is_named(run_dir: Path, capsys: pytest.CaptureFixture[str], spoil: Any, said: str) -> None:
    spoil(run_dir)
    assert cli.main(["report", str(run_dir)]) == 2
    err = capsys.readouterr().err
    assert said in err and "Traceback" not in err
    assert not (run_dir / "report.html").exists()


def test_a_place_that_cannot_be_written_is_named(run_dir: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert cli.main(["report", str(run_dir), "-o", str(tmp_path / "no" / "r.html")]) == 3
    assert "no/r.html: cannot be written" in capsys.readouterr().err


def test_a_full_disk_is_named_and_a_device_stays_one(run_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["report", str(run_dir), "-o", "/dev/full"]) == 3
    assert "/dev/full: cannot be written: No space left on device" in capsys.readouterr().err
    assert Path("/dev/full").is_char_device() and cli.main(["report", str(run_dir), "-o", "/dev/null"]) == 0
    assert Path("/dev/null").is_char_device()
    assert cli.main(["report", str(run_dir), "-o", str(run_dir)]) == 3
    assert "Is a directory" in capsys.readouterr().err
