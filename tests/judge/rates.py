"""The judge's own error rates: every Candidate of tests/judge/corpus is judged, and each verdict held against what its author
says that an honest judge answers.

    python tests/judge/rates.py [--quick] [--device cpu|cuda] [--only PATTERN] [--jobs N] [--json FILE] [FOLDER ...]
    python tests/judge/rates.py --device cuda --results FILE [--seconds N] [--shard I/N]

Prints a table of expected against got, the rate of false accepts and of false rejects with 95% bounds (Clopper-Pearson), and
each file that got another verdict than it should. Exit code 1 on one false accept, on over 1% of false rejects, and when
the judge itself failed. Judges through what `kgen judge` calls; nothing of a corpus runs outside the judge's sandbox.

With --results each verdict is written down as soon as it is there, and files that have one are not judged again: a run that
was cut short (by --seconds, too: exit code 4) goes on where it stopped, and shards that share a file add up in it.

A folder of the corpus holds Candidates and one expect.json (tests/judge/corpus/README.md tells the format).
"""

from __future__ import annotations

import argparse
import fnmatch
import hashlib
import json
import math
import os
import re
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
CORPUS = HERE / "corpus"
FOLDERS = {"cpu": ("attack", "honest"), "cuda": ("attack_cuda", "honest_cuda")}
sys.path[:0] = [str(ROOT / "python"), str(HERE)]

VERDICTS = (
    "pass compile_error plan_error launch_error out_of_resources timeout crash illegal_access "
    "wrong_shape_or_dtype nonfinite wrong_values not_all_written input_modified out_of_bounds nondeterministic "
    "too_slow implausible policy"
).split()
KNOWN_LIMIT = "known_limit"
FALSE_REJECTS_AT_MOST = 0.01
# Files of a folder that --quick judges, spread over the names of those that are not slow.
QUICK_AT_MOST = 6
# What one call may take: an endless loop costs this much, and no honest Candidate of the corpus comes near it.
TIMEOUT_MS, QUICK_TIMEOUT_MS = 10_000, 2_000
# Exit code of a run that --seconds ended before every file had its verdict.
UNFINISHED = 4


class BadCorpus(Exception):
    """A file of the corpus says something that this tool cannot take."""


class MissingDevice(Exception):
    """The device that was asked for is not there, or will not do."""


def present(device: str) -> None:
    """MissingDevice unless kgen can work on it, BadCorpus when it is no device's name."""
    from kgen import devices
    from kgen.errors import BadInput, EnvironmentLacks

    try:
        devices.check(devices.parse(device))
    except EnvironmentLacks as e:
        raise MissingDevice(str(e)) from None
    except BadInput as e:
        raise BadCorpus(str(e)) from None


# The corpus


@dataclass(frozen=True)
class Entry:
    """One Candidate and what is expected of it. verdicts: those that are right; `known_limit` among them: a pass is not
    right, and no judge could see it."""

    path: Path
    verdicts: tuple[str, ...]
    task: str
    why: str
    slow: bool
    sha256: str = ""

    @property
    def expected(self) -> str:
        """pass, reject, or either: both are right on the Cases that there are."""
        if "pass" not in self.verdicts:
            return "reject"
        return "pass" if self.verdicts == ("pass",) else "either"


@dataclass
class Outcome:
    """What came of one Candidate. kind: of the table's last column."""

    file: str
    folder: str
    task: str
    expected: str
    verdicts: list[str]
    got: str
    message: str
    kind: str
    why: str
    seconds: float
    sha256: str = ""


def _fields(path: Path, name: str, entry: Any) -> dict[str, Any]:
    known = {"verdicts", "task", "why", "slow"}
    if not isinstance(entry, dict) or not set(entry) <= known:
        raise BadCorpus(f"{path}: {name}: expected an object with {', '.join(sorted(known))}")
    verdicts = entry.get("verdicts")
    right = isinstance(verdicts, list) and verdicts and all(v in VERDICTS or v == KNOWN_LIMIT for v in verdicts)
    if not right:
        raise BadCorpus(f"{path}: {name}: verdicts is {verdicts!r}, expected a list of {', '.join(VERDICTS)}, {KNOWN_LIMIT}")
    if not isinstance(entry.get("why"), str) or not entry["why"].strip():
        raise BadCorpus(f"{path}: {name}: why is missing; say in one sentence what a judge should see")
    return entry


def read_folder(folder: Path) -> list[Entry]:
    """The Candidates of a folder; BadCorpus when expect.json and the files do not match."""
    path = folder / "expect.json"
    try:
        told = json.loads(path.read_text())
    except FileNotFoundError:
        raise BadCorpus(f"{path}: no such file; it maps each Candidate to its verdicts") from None
    except ValueError as e:
        raise BadCorpus(f"{path}: not JSON: {e}") from e
    files = {p.name: p for p in folder.iterdir() if p.suffix in (".c", ".cu")}
    if set(files) != set(told):
        odd = sorted(set(files) ^ set(told))
        raise BadCorpus(f"{path}: {odd[0]} is {'not told of' if odd[0] in files else 'told of and not there'} ({len(odd)} in all)")
    entries = []
    for name in sorted(told):
        e = _fields(path, name, told[name])
        task = e.get("task") or default_task(files[name])
        sha256 = hashlib.sha256(files[name].read_bytes()).hexdigest()
        entries.append(Entry(files[name], tuple(e["verdicts"]), task, e["why"], bool(e.get("slow")), sha256))
    return entries


def plan_of(path: Path) -> dict[str, Any]:
    """The plan's JSON; {} where it is not JSON, which is the judge's to say."""
    text = path.read_text(errors="replace")
    begin = text.find("{")
    try:
        return dict(json.JSONDecoder().raw_decode(text[begin:])[0]) if begin >= 0 else {}
    except ValueError:
        return {}


def default_task(path: Path) -> str:
    """The Task of a file that names none: the Cases of its Op in tasks.json."""
    return f"{plan_of(path).get('op', 'softmax')}_cases"


# Tasks


def _tensor(short: dict[str, Any]) -> dict[str, Any]:
    from kgen import spread

    fill = short.get("fill", {"kind": "normal", "mean": 0.0, "std": 1.0})
    return spread.entry(short["dtype"], short["shape"], short.get("stride"), short.get("align", 64), **fill)


def _program(name: str, args: dict[str, Any]) -> tuple[dict[str, Any], dict[str, bytes]]:
    from kgen import programs, spread

    (b, h, q, _), (_, _, kv, _) = args["query"]["shape"], args["key"]["shape"]
    found = {n: p for n, p in spread.named_programs(programs.Extent(b, h, q, kv))}
    if name not in found:
        raise BadCorpus(f"tasks.json: program {name!r}: expected one of {', '.join(found)}")
    text, captured, scalars = found[name]
    entries, blobs = spread.captured_entries(captured)
    return {"text": text, "captured": entries, "scalars": [float(s) for s in scalars]}, blobs


@dataclass(frozen=True)
class Recipe:
    """How a Task is made and its Candidates are built."""

    name: str
    told: dict[str, Any] = field(default_factory=dict)

    @property
    def build(self) -> dict[str, Any]:
        return {k: self.told[k] for k in ("any_size", "threads") if k in self.told}

    @property
    def tunables(self) -> dict[str, int] | None:
        return self.told.get("tunables")


def recipes() -> dict[str, Recipe]:
    """Those of tasks.json and of the files in tasks/, by name."""
    told = json.loads((CORPUS / "tasks.json").read_text())
    found = {name: Recipe(name, t) for name, t in told.items()}
    for path in sorted((CORPUS / "tasks").glob("*.py")):
        found.setdefault(path.stem, Recipe(path.stem, {"model": path.name}))
    return found


def _case(op: str, short: dict[str, Any], device: str, index: int) -> tuple[dict[str, Any], dict[str, bytes]]:
    args = {n: _tensor(v) if isinstance(v, dict) else v for n, v in short["args"].items()}
    case: dict[str, Any] = {
        "format": 1, "op": op, "device": device.partition(":")[0], "precision": "native", "args": args, "count": 1,
    }  # fmt: skip
    blobs: dict[str, bytes] = {}
    if "program" in short:
        case["program"], made = _program(short["program"], args)
        for entry in case["program"]["captured"]:
            name = f"{index}.{entry['fill']['file']}"
            blobs[name] = made[entry["fill"]["file"]]
            entry["fill"]["file"] = name
    return case, blobs


def make_task(recipe: Recipe, device: str, quick: bool, folder: Path) -> Path:
    """Writes the Task folder of a recipe."""
    from kgen import task as tasks

    if "model" in recipe.told:
        import corpus_tasks

        from kgen import devices

        corpus_tasks.write(recipe.name, folder, devices.parse(device))
        return folder
    op = recipe.told["op"]
    shorts = [s for s in recipe.told["cases"] if not (quick and s.get("slow"))]
    files: dict[str, bytes] = {"op.json": tasks.canonical_contract(op)}
    for i, short in enumerate(shorts):
        case, blobs = _case(op, short, device, i)
        files[f"cases/{i}.json"] = json.dumps(case).encode()
        files |= {f"cases/{name}": data for name, data in blobs.items()}
    meta = {
        "format": 1, "op": op, "title": recipe.name, "mode": "eval", "cases": len(shorts), "graph": None,
        "no_graph": "a Case of the corpus", "share": 0.0, "flags": {}, "source": {"model": "tasks.json", "sha256": ""},
        "torch": "", "kgen": "",
    }  # fmt: skip
    files["task.json"] = json.dumps(meta).encode()
    tasks.write_folder(folder, files)
    return folder


# Judging


def judge_all(entries: Sequence[Entry], args: argparse.Namespace, work: Path) -> Iterator[Outcome]:
    """The outcomes, Task after Task: the oracles of each are made once."""
    from kgen.errors import KgenError

    known = recipes()
    groups: dict[str, list[Entry]] = {}
    for e in entries:
        groups.setdefault(e.task, []).append(e)
        if e.task not in known:
            raise BadCorpus(f"{e.path}: task {e.task!r}: there is no such recipe in tasks.json or tasks/")
    for name, group in groups.items():
        began = time.perf_counter()
        try:
            folder = make_task(known[name], args.device, args.quick, work / name)
        except (KgenError, RuntimeError) as e:  # other Tasks may do better
            yield from _failed(group, e, began)
            continue
        yield from _judge_group(known[name], folder, group, args)


def _failed(entries: Sequence[Entry], error: Exception, began: float) -> Iterator[Outcome]:
    """What is no verdict: the judge itself failed."""
    each = (time.perf_counter() - began) / len(entries)
    for entry in entries:
        yield outcome(entry, "error", f"{type(error).__name__}: {error}", each)


def _judge_group(recipe: Recipe, folder: Path, group: list[Entry], args: argparse.Namespace) -> Iterator[Outcome]:
    from kgen import devices
    from kgen import task as tasks
    from kgen.errors import KgenError
    from kgen.judge_command import judge_files
    from kgen.ui import Progress

    task, device = tasks.read(folder), devices.parse(args.device)
    quick = args.quick or device.type == "cuda"  # Cases for a GPU are small
    limits = {"timeout_ms": QUICK_TIMEOUT_MS if quick else TIMEOUT_MS, **recipe.build}
    left = list(group)
    while left:
        files = [e.path for e in left]
        records = judge_files(
            task, files, recipe.tunables, True, Progress(quiet=True), device, ahead=args.jobs, **limits
        )
        began, opened = time.perf_counter(), False
        try:
            for record in records:
                opened = True
                entry = left.pop(0)
                yield outcome(entry, record["verdict"], record["message"], time.perf_counter() - began)
                began = time.perf_counter()
        except (KgenError, RuntimeError) as e:  # the judge's own failure; the rest gets a new one, if there is one to get
            failed, left = (left[:1], left[1:]) if opened else (left, [])
            yield from _failed(failed, e, began)


def kind_of(entry: Entry, got: str) -> str:
    if got == "error":
        return "judge failed"
    if got in entry.verdicts:
        return "right"
    if got == "pass":
        return "known limit" if KNOWN_LIMIT in entry.verdicts else "false accept"
    return "false reject" if entry.expected == "pass" else "other verdict"


def outcome(entry: Entry, got: str, message: str, seconds: float) -> Outcome:
    return Outcome(
        entry.path.name, entry.path.parent.name, entry.task, entry.expected, list(entry.verdicts), got, message,
        kind_of(entry, got), entry.why, round(seconds, 3), entry.sha256,
    )  # fmt: skip


# Rates


def _at_most(k: int, n: int, p: float) -> float:
    """P(X <= k) of a binomial."""
    if p <= 0:
        return 1.0
    if p >= 1:
        return 1.0 if k >= n else 0.0
    logs = [
        math.lgamma(n + 1) - math.lgamma(i + 1) - math.lgamma(n - i + 1) + i * math.log(p) + (n - i) * math.log1p(-p)
        for i in range(k + 1)
    ]
    return min(1.0, math.fsum(math.exp(x) for x in logs))


def clopper_pearson(k: int, n: int, confidence: float = 0.95) -> tuple[float, float]:
    """Bounds of a proportion of which k of n were seen; (0, 1) of nothing. Each side errs with half of 1 - confidence."""
    tail = (1 - confidence) / 2

    def solve(below: Any) -> float:
        low, high = 0.0, 1.0
        for _ in range(60):
            middle = (low + high) / 2
            low, high = (middle, high) if below(middle) else (low, middle)
        return (low + high) / 2

    if n == 0:
        return 0.0, 1.0
    lower = 0.0 if k == 0 else solve(lambda p: 1 - _at_most(k - 1, n, p) < tail)
    upper = 1.0 if k == n else solve(lambda p: _at_most(k, n, p) > tail)
    return lower, upper


def rate(k: int, n: int) -> dict[str, Any]:
    low, high = clopper_pearson(k, n)
    return {"count": k, "of": n, "rate": k / n if n else None, "low": low, "high": high}


def summary(outcomes: Sequence[Outcome]) -> dict[str, Any]:
    """The figures. Known limits that passed stand apart: not in the rate of false accepts, but in the one that counts them."""
    count = {kind: sum(o.kind == kind for o in outcomes) for kind in
             ("right", "false accept", "false reject", "known limit", "other verdict", "judge failed")}  # fmt: skip
    dishonest = sum(o.expected == "reject" for o in outcomes)
    honest = sum(o.expected == "pass" for o in outcomes)
    limits = count["known limit"]
    return {
        "files": len(outcomes),
        "table": {
            expected: {
                "pass": sum(o.expected == expected and o.got == "pass" for o in outcomes),
                "reject": sum(o.expected == expected and o.got not in ("pass", "error") for o in outcomes),
                "error": sum(o.expected == expected and o.got == "error" for o in outcomes),
            }
            for expected in ("pass", "reject", "either")
        },
        "kinds": count,
        "false_accepts": rate(count["false accept"], dishonest - limits),
        "accepts_with_known_limits": rate(count["false accept"] + limits, dishonest),
        "false_rejects": rate(count["false reject"], honest),
    }


def _percent(r: dict[str, Any]) -> str:
    if not r["of"]:
        return "none was judged"
    return f"{r['count']} of {r['of']} = {100 * r['rate']:.2f}%  (95%: {100 * r['low']:.2f}% to {100 * r['high']:.2f}%)"


def print_summary(s: dict[str, Any], outcomes: Sequence[Outcome]) -> None:
    print(f"\n{'expected':<10}{'pass':>8}{'reject':>8}{'error':>8}   (got)")
    for expected, row in s["table"].items():
        print(f"{expected:<10}{row['pass']:>8}{row['reject']:>8}{row['error']:>8}")
    print(f"\nfalse accepts   {_percent(s['false_accepts'])}")
    print(f"  with limits   {_percent(s['accepts_with_known_limits'])}")
    print(f"false rejects   {_percent(s['false_rejects'])}")
    for kind in ("judge failed", "false accept", "false reject", "known limit", "other verdict"):
        found = [o for o in outcomes if o.kind == kind]
        if found:
            print(f"\n{kind} ({len(found)}):")
        for o in found:
            said = o.message.replace("\n", " ")[:160]
            print(f"  {o.folder}/{o.file}: {o.got}, expected {' | '.join(o.verdicts)}{': ' + said if said else ''}")


def passed(s: dict[str, Any]) -> bool:
    rejects = s["false_rejects"]
    return not (
        s["kinds"]["false accept"]
        or s["kinds"]["judge failed"]
        or (rejects["rate"] or 0.0) > FALSE_REJECTS_AT_MOST
    )


# The command


def spread_out(entries: list[Entry], most: int = QUICK_AT_MOST) -> list[Entry]:
    """At most so many, evenly over the list."""
    n = len(entries)
    return entries if n <= most else [entries[i * n // most] for i in range(most)]


def choose(args: argparse.Namespace) -> list[Entry]:
    kind = args.device.partition(":")[0]
    folders = [Path(f) for f in args.folders] or [CORPUS / f for f in FOLDERS[kind]]
    suffix = ".cu" if kind == "cuda" else ".c"
    found = []
    for folder in folders:
        entries = [e for e in read_folder(folder) if e.path.suffix == suffix]
        if args.only:
            entries = [e for e in entries if any(fnmatch.fnmatch(n, p) for p in args.only for n in (e.path.stem, e.path.name))]
        if args.quick:
            entries = spread_out([e for e in entries if not e.slow])
        found += entries
    if not found:
        raise BadCorpus(f"no Candidate of {', '.join(map(str, folders))} is left to judge on {args.device}")
    return found


def shard(entries: Sequence[Entry], text: str) -> list[Entry]:
    """The I-th of N parts, Tasks whole: the oracles of each are made in one part alone."""
    found = re.fullmatch(r"(\d{1,4})/(\d{1,4})", text)
    i, n = (int(found[1]), int(found[2])) if found else (0, 0)
    if not 1 <= i <= n:
        raise BadCorpus(f"--shard {text}: give I/N, from 1/N to N/N")
    names = sorted({e.task for e in entries})
    mine = set(names[i - 1 :: n])
    return [e for e in entries if e.task in mine]


# Results that are continued


def read_results(path: Path, entries: Sequence[Entry]) -> list[Outcome]:
    """What a file of results has of these Candidates as they are now, held against what is expected now; not what the judge
    failed at. A torn last line is cut off."""
    known = {(e.path.parent.name, e.path.name): e for e in entries}
    found: dict[tuple[str, str], Outcome] = {}
    raw = path.read_bytes() if path.exists() else b""
    whole = raw[: raw.rfind(b"\n") + 1]
    if whole != raw:
        os.truncate(path, len(whole))
    for number, line in enumerate(whole.decode(errors="replace").splitlines(), 1):
        try:
            told = json.loads(line)
            key = (told["folder"], told["file"])
            entry = known.get(key)
            if entry and told["got"] != "error" and (told["sha256"], told["task"]) == (entry.sha256, entry.task):
                found[key] = outcome(entry, told["got"], told["message"], told["seconds"])
        except (ValueError, KeyError, TypeError) as e:
            raise BadCorpus(f"{path}: line {number} is no result of this tool: {e!r}") from e
    return list(found.values())


def write_result(path: Path, o: Outcome) -> None:
    """One line, on the disk when this returns."""
    with path.open("ab") as f:
        f.write(json.dumps(asdict(o), sort_keys=True).encode() + b"\n")
        f.flush()
        os.fsync(f.fileno())


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("folders", nargs="*", metavar="FOLDER", help="folders with an expect.json (default: those of the corpus)")
    p.add_argument("--device", default="cpu", help="cpu (the .c files, the default) or cuda[:N] (the .cu files)")
    p.add_argument("--only", action="append", metavar="PATTERN", help="file names, as in 'attention_*'; may be given again")
    p.add_argument("--quick", action="store_true", help=f"at most {QUICK_AT_MOST} files a folder, none that is marked slow, on small Cases: what `make test` runs")
    p.add_argument("--jobs", type=int, default=os.cpu_count() or 1, metavar="N", help="threads that compile (default: one a CPU)")
    p.add_argument("--shard", metavar="I/N", help="the I-th of N parts alone")
    p.add_argument("--results", type=Path, metavar="FILE", help="a line for each verdict as soon as it is there; what has one is not judged again")
    p.add_argument("--seconds", type=float, default=math.inf, metavar="N", help=f"stop before the first Candidate after so long (exit code {UNFINISHED} when any is left)")
    p.add_argument("--json", metavar="FILE", help="every verdict and the figures, for a program to read")
    p.add_argument("--verbose", action="store_true", help="a line for each Candidate as it is judged")
    return p.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    args = parse(argv)
    outcomes: list[Outcome] = []
    began = time.perf_counter()
    left: list[Entry] = []
    try:
        present(args.device)
        entries = choose(args)
        entries = shard(entries, args.shard) if args.shard else entries
        outcomes = read_results(args.results, entries) if args.results else []
        known = {(o.folder, o.file) for o in outcomes}
        left = [e for e in entries if (e.path.parent.name, e.path.name) not in known]
        with tempfile.TemporaryDirectory(prefix="kgen-rates-") as work:
            # Images of hostile sources stay out of the user's cache, and none made before is believed.
            os.environ["KGEN_CACHE"] = str(Path(work) / "cache")
            for o in judge_all(left, args, Path(work)):
                outcomes.append(o)
                if args.results:
                    write_result(args.results, o)
                if args.verbose:
                    print(f"{o.folder}/{o.file:<28} {o.got:<16} {o.kind:<14} {o.seconds:.2f} s", flush=True)
                if time.perf_counter() - began > args.seconds:
                    break
    except (BadCorpus, MissingDevice) as e:
        print(f"rates: {e}", file=sys.stderr)
        return 2 if isinstance(e, BadCorpus) else 3
    s = {**summary(outcomes), "seconds": round(time.perf_counter() - began, 1), "quick": args.quick}
    print_summary(s, outcomes)
    missing = len(entries) - len(outcomes)
    print(f"\n{s['files']} Candidates, {len(outcomes) - len(entries) + len(left)} of them in these {s['seconds']:.0f} s")
    if args.json:
        Path(args.json).write_text(json.dumps({**s, "outcomes": [asdict(o) for o in outcomes]}, indent=1) + "\n")
    if missing:
        print(f"{missing} of {len(entries)} have no verdict yet: go on with the same --results")
    return 1 if not passed(s) else UNFINISHED if missing else 0


if __name__ == "__main__":
    sys.exit(main())
