"""The page of `kgen report` in a headless Chromium: it logs nothing, shows what it should where it should, and is not blank."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import browser
import pytest
from run_files import write_journal

from kgen import report

PROGRAM = browser.found()
pytestmark = pytest.mark.skipif(PROGRAM is None, reason=f"needs a Chromium (one of {', '.join(browser.NAMES)}, or KGEN_CHROMIUM)")

SOURCE = "/* kgen {} */\nvoid rows(void) {\n    fast();\n}\n"
WINNER = "ab" * 32


def entries() -> list[dict[str, Any]]:
    """A branching loop: ideas, one that passes and is mended, one that is wrong; and the gate."""
    made: list[dict[str, Any]] = []

    def add(kind: str, **fields: Any) -> None:
        n = len(made)
        made.append({"format": 1, "n": n, "kind": kind, "t": 1000.0 + 7 * n, "op": "softmax", **fields})

    def prompt(ident: str, kind: str, user: str, parent: str | None = None) -> None:
        add("prompt", id=ident, prompt_kind=kind, line=1, turn=0, parent=parent, idea=0, system="s", user=user)

    def answer(ident: str, text: str) -> None:
        add("answer", prompt=ident, name=ident, text=text, reasoning="let me think", charged={"calls": 1, "tokens": 900, "nano_usd": 0})

    def judged(name: str, ident: str, verdict: str, ns: float, message: str = "", parent: str | None = None) -> None:
        add("candidate", prompt=name.partition(".")[0], name=name, id=ident, parent=parent, text=SOURCE + f"/* {name} */\n")
        add("verdict", id=ident, source=name, tunables={}, level=0, verdict=verdict, message=message, took_s=1.0, spent_s=5.0, time_ns=[ns])

    add("loop", proposer="llm", strategy="branch", model="scripted", host="https://far.test", options={})
    prompt("softmax-0001", "ideas", "give ideas")
    answer("softmax-0001", "- read once\n- guess")
    prompt("softmax-0002", "implement", "## Now\n\n> read once, which halves the traffic\n")
    answer("softmax-0002", SOURCE)
    judged("softmax-0002.1.c", "cd" * 32, "pass", 4.0e6)
    prompt("softmax-0003", "implement", "## Now\n\n> guess\n")
    answer("softmax-0003", SOURCE)
    judged("softmax-0003.1.c", "ef" * 32, "wrong_values", 0.0, "[0, 0] expected 1 got <2>")
    prompt("softmax-0004", "refine", "mend it", "softmax-0002.1.c")
    answer("softmax-0004", SOURCE)
    judged("softmax-0004.1.c", WINNER, "pass", 1.0e6, parent="softmax-0002.1.c")
    add("clock", life_s=100.0, wait_s=70.0, compile_s=5.0, judge_s=24.6, spent_s=100.0)
    add("gate", case="0" * 32, id=WINNER, passed=True, reason="", kgen_ns=1.0e6, speedup={"median": 2.5, "low": 2.4, "high": 2.6},
        baseline={"name": "torch.compile", "median_ns": 2.5e6})  # fmt: skip
    return made


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("screen") / "run"
    (run / "candidates").mkdir(parents=True)
    (run / "candidates" / f"{WINNER}.c").write_text(SOURCE)
    (run / "run.json").write_text(json.dumps({"format": 1, "model": "model.py", "torch": "2.13.0", "created": "2026-01-31T12:00:00Z"}))
    write_journal(run / "journal.jsonl", entries())
    out = run / "report.html"
    out.write_text(report.page(run))
    return out


# Of an element: whether a person sees it, and where it lies.
SEEN = """(found) => { const r = found.getBoundingClientRect(), s = getComputedStyle(found);
    return {seen: r.width > 0 && r.height > 0 && s.visibility === 'visible' && s.display !== 'none' && +s.opacity > 0,
            left: r.left, right: r.right, top: r.top, bottom: r.bottom, text: found.textContent}; }"""


def test_what_a_person_sees(page: Path, tmp_path: Path) -> None:
    assert PROGRAM is not None
    with browser.browser(PROGRAM) as b:
        b.open(page.as_uri())
        assert b.errors() == []
        width = b.value("document.documentElement.clientWidth")
        assert b.value("document.documentElement.scrollWidth") <= width  # nothing sticks out to the right

        def every(selector: str) -> list[dict[str, Any]]:
            return list(b.value(f"[...document.querySelectorAll({selector!r})].map({SEEN})"))

        for selector, least in (("h1", 1), ("h2", 1), ("svg", 2), ("svg circle", 4), (".v", 3), (".turn", 4), ("blockquote", 2)):
            shown = every(selector)
            assert len(shown) >= least and all(e["seen"] for e in shown), (selector, shown)
        # No label of a plot is cut off or lies on another of its axis.
        for i in range(2):
            svg = every("svg")[i]
            labels = b.value(f"[...document.querySelectorAll('svg')[{i}].querySelectorAll('text')].map({SEEN})")
            assert all(svg["left"] - 1 <= t["left"] and t["right"] <= svg["right"] + 1 for t in labels), labels
            ticks = sorted((t["left"], t["right"]) for t in labels if t["text"].replace(",", "").replace(".", "").isdigit())
            assert len(ticks) >= 3 and all(a[1] < c[0] for a, c in zip(ticks, ticks[1:], strict=False)), ticks
        # What is faster lies lower in the plot.
        dots = {e["text"].partition(" ")[0]: e["top"] for e in every("svg:first-of-type circle") if e["text"]}
        line = every("svg line[stroke-dasharray]")[0]
        assert dots["softmax-0002.1.c"] < line["top"] < dots["softmax-0004.1.c"]
        # The tree: ideas, what implements them below and further right, what mends that further still.
        turns = every(".turn")
        assert [t["text"].split()[0] for t in turns] == ["softmax-0001", "softmax-0002", "softmax-0004", "softmax-0003"]
        lefts = [t["left"] for t in turns]
        assert lefts[0] < lefts[1] < lefts[2] and lefts[1] == lefts[3]
        verdicts = [(e["text"], b.value(f"getComputedStyle(document.querySelectorAll('.v')[{i}]).color")) for i, e in enumerate(every(".v"))]
        assert [v for v, _ in verdicts] == ["pass", "pass", "wrong_values"] and verdicts[0][1] != verdicts[2][1]
        # A source is folded until it is asked for.
        unfolded = "document.querySelector('.turn details pre').checkVisibility({contentVisibilityAuto: true})"
        assert b.value(unfolded) is False
        b.value("document.querySelector('.turn details').open = true")
        b.until(unfolded, True)
        for text in ("waiting for answers 70.0%", "kgen itself 0.4%", "2.50x at the gate", "which halves the traffic"):
            assert b.value(f"document.body.innerText.includes({text!r})") or b.value(f"document.body.textContent.includes({text!r})"), text
        picture = b.png()
    out = Path(os.environ.get("KGEN_KEEP_SCREENSHOT") or tmp_path / "page.png")
    out.write_bytes(picture)
    assert_drawn(out)


def assert_drawn(path: Path) -> None:
    """Not blank: ink on white, in several colours. By a reader of PNG where there is one; the size tells something without."""
    data = path.read_bytes()
    assert data.startswith(b"\x89PNG") and len(data) > 20000
    try:
        from matplotlib import image
    except ImportError:
        return
    pixels = image.imread(path)[:, :, :3]
    ink = (pixels < 0.5).all(axis=2).mean()
    assert 0.003 < ink < 0.4, ink
    colours = {tuple(c) for c in (pixels[::3, ::3].reshape(-1, 3) * 15).round().astype(int).tolist()}
    assert len(colours) > 20
