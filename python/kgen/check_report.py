"""`kgen check` as people and CI read it: lines on stdout, JUnit XML (one testcase a pin) and a Markdown summary.

Everything said here comes out of the CheckReport; nothing is decided.
"""

from __future__ import annotations

import argparse
import json
import re
import xml.etree.ElementTree as xml
from collections.abc import Iterator

from . import speedups
from .check import CheckedPin, CheckReport, check, plural
from .errors import BadInput, CheckFailed
from .tune import parse_time
from .ui import Progress, milliseconds

# What XML 1.0 cannot hold, not even escaped: a compiler's colours, for one.
_NOT_XML = re.compile("[^\t\n\r\u0020-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def _speed(row: CheckedPin) -> str:
    """"1.85x (1.80..1.90) over eager 2.10 ms", with the Case that was timed where the pin has many."""
    if row.speed is None:
        return ""
    case = row.speed.case.removeprefix(f"{row.op} ")
    at = f" at {case}" if case != row.case else ""
    return f"{row.speed.speedup} over {row.speed.baseline} {milliseconds(row.speed.baseline_ns)}{at}"


def _ratio(row: CheckedPin) -> str:
    return f"{row.ratio} of the baseline's" if row.ratio else ""


def row_line(row: CheckedPin) -> str:
    """One pin in one line."""
    said = "; ".join(filter(None, (_speed(row), _ratio(row), row.message)))
    return f"{row.state:<10} {row.kernel} {row.arch} {row.case}" + (f": {said}" if said else "")


def _duration(seconds: float) -> str:
    return f"{seconds:.1f} s" if seconds < 120 else f"{seconds / 60:.0f} min"


def counts_line(report: CheckReport) -> str:
    """"checked 12 pins of 5 kernels in 3 min: 11 pass, 1 regression; 2 skipped"."""
    kernels = {(r.registry, r.arch, r.id) for r in report.checked}
    states = [f"{n} {state}" for state in ("pass", "regression", "fail") if (n := len(report.of_state(state)))]
    return (
        f"checked {plural(len(report.checked), 'pin')} of {plural(len(kernels), 'kernel')} in {_duration(report.seconds)}: "
        f"{', '.join(states) or 'none'}; {len(report.of_state('skipped'))} skipped"
    )


def _skip_lines(report: CheckReport) -> Iterator[str]:
    for reason, rows in report.skipped().items():
        names = ", ".join(dict.fromkeys(r.kernel for r in rows))
        yield f"{len(rows)} skipped ({names}): {reason}"


def summary(report: CheckReport) -> str:
    """What stands under the pins."""
    compared = [f"compared with {report.baseline}"] if report.baseline else []
    return "\n".join([counts_line(report), *_skip_lines(report), *compared, *report.notes])


# ---- JUnit ----


def _xml_text(text: str) -> str:
    return _NOT_XML.sub("?", text)


def _testcase(suite: xml.Element, row: CheckedPin) -> None:
    made = xml.SubElement(
        suite, "testcase", classname=f"kgen.{row.op}.{row.arch}", name=_xml_text(f"{row.kernel} {row.case}".strip()),
        time=f"{row.seconds:.3f}",
    )  # fmt: skip
    if row.state == "skipped":
        xml.SubElement(made, "skipped", message=_xml_text(row.message))
    elif row.state in ("fail", "regression"):
        said = "; ".join(filter(None, (_ratio(row), row.message)))
        xml.SubElement(made, "failure", type=row.state, message=_xml_text(said.splitlines()[0])).text = _xml_text(said)
    about = [f"id {row.id}", f"pin {row.pin}", f"registry {row.registry}", _speed(row), _ratio(row)]
    xml.SubElement(made, "system-out").text = _xml_text("\n".join(filter(None, about)))


def junit(report: CheckReport) -> str:
    """JUnit XML: one testcase a pin, and one for what is wrong with the check as a whole."""
    failures = len(report.of_state("fail")) + len(report.of_state("regression"))
    whole = bool(report.problems) and not failures
    suite = xml.Element(
        "testsuite", name="kgen check", tests=str(len(report.rows) + whole), failures=str(failures + whole), errors="0",
        skipped=str(len(report.of_state("skipped"))), time=f"{report.seconds:.3f}",
    )  # fmt: skip
    about = xml.SubElement(suite, "properties")
    for name, value in (("device", report.machine.device(False)), ("torch", report.torch), ("kgen", report.kgen)):
        xml.SubElement(about, "property", name=name, value=_xml_text(value))
    for row in report.rows:
        _testcase(suite, row)
    if whole:
        made = xml.SubElement(suite, "testcase", classname="kgen", name="the check as a whole", time="0")
        xml.SubElement(made, "failure", type="check", message=_xml_text("; ".join(report.problems)))
    top = xml.Element("testsuites")
    top.append(suite)
    xml.indent(top)
    return '<?xml version="1.0" encoding="utf-8"?>\n' + xml.tostring(top, encoding="unicode") + "\n"


# ---- Markdown ----


def _cell(text: str) -> str:
    flat = " ".join(text.split()).replace("\\", "\\\\").replace("|", "\\|").replace("<", "&lt;")
    return flat if len(flat) <= 300 else flat[:297] + "..."


def markdown(report: CheckReport) -> str:
    """A summary for a CI job's page: the answer, a table of the pins that were checked, what was skipped."""
    machine = report.machine
    lines = [f"## kgen check: {'passed' if report.passed else 'failed'}", "", counts_line(report), ""]
    lines += [f"* **{_cell(p)}**" for p in report.problems]
    lines += [f"* {_cell(note)}" for note in (*_skip_lines(report), *report.notes)]
    devices = [machine.device(False), *([machine.device(True)] if machine.cuda else [])]
    lines += [f"* {_cell(', '.join(devices))}; torch {report.torch}; kgen {report.kgen}", ""]
    if report.checked:
        lines += ["| kernel | case | answer | speedup (95%) | of the baseline's | |", "| --- | --- | --- | --- | --- | --- |"]
    for row in report.checked:
        ratio = str(row.ratio) if row.ratio else ""
        cells = (f"{row.kernel} {row.arch}", row.case, row.state, _speed(row), ratio, row.message)
        lines.append("| " + " | ".join(_cell(c) for c in cells) + " |")
    return "\n".join(lines) + "\n"


# ---- the command ----


def _outputs(args: argparse.Namespace) -> None:
    given = {"--junit": args.junit, "--md": args.md, "--write-baseline": args.write_baseline}
    paths = [p for p in given.values() if p]
    if len(set(paths)) < len(paths):
        raise BadInput(f"{' and '.join(o for o, p in given.items() if p)} name one file; give each its own")
    for option, path in given.items():
        if path:
            speedups.check_output(path, option)


def _write_baseline(report: CheckReport, path: str) -> str:
    """What became of --write-baseline, in words."""
    made = report.speedups()
    if not report.passed or not made.pins:
        return f"{path} was not written: a baseline is made of kernels that pass"
    speedups.write(path, speedups.text(made), "--write-baseline")
    return f"{path} holds the speedups of {plural(len(made.pins), 'pin')}, for `kgen check --baseline {path}`"


def run_check(args: argparse.Namespace) -> int:
    """`kgen check`: 0 when every Kernel that was checked is right and not slower, 1 when not."""
    _outputs(args)
    budget = parse_time("--budget", args.budget) if args.budget else None
    seconds = parse_time("--timing", args.timing)
    progress = Progress(quiet=args.json)

    def tell(row: CheckedPin) -> None:
        if not args.json and row.state != "skipped":
            print(row_line(row), flush=True)

    report = check(
        args.op, registry=args.registry, baseline=args.baseline, require=args.require, strict=args.strict, budget=budget,
        seconds=seconds, progress=progress, tell=tell, recording=bool(args.write_baseline),
    )  # fmt: skip
    for path, made, option in ((args.junit, junit, "--junit"), (args.md, markdown, "--md")):
        if path:
            speedups.write(path, made(report), option)
    said = _write_baseline(report, args.write_baseline) if args.write_baseline else ""
    if args.json:
        print(json.dumps(report.json()))
        return 0 if report.passed else 1
    print("\n".join(filter(None, (summary(report), said))), flush=True)
    if not report.passed:
        raise CheckFailed("; ".join(report.problems))
    return 0
