#!/usr/bin/env python3
"""Keeps what a finished Run shows under docs/runs/NAME: its report and trajectories, compressed, and provenance.json with what
answered, what it saw, and what came of it.

    tools/keep_run.py RUN NAME --answered-by TEXT --saw TEXT [--note TEXT] [--to docs/runs] [--unfinished]

Refuses a Run that is not finished (but for --unfinished: then nothing was gated), that nobody was asked in, or whose files come to more than 200 kB; and texts that name a
folder of this machine.
"""

from __future__ import annotations

import argparse
import gzip
import json
import re
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "python"))

from kgen import bench_curves, report, runs, trajectories  # noqa: E402
from kgen.errors import BadInput, KgenError  # noqa: E402
from kgen.jsonfile import read_journal, read_json  # noqa: E402

MOST_BYTES = 200_000
# Absolute paths of the machine that the Run was on.
FOLDERS = re.compile(r"(?<![\w.:/])/(?:home|root|tmp|work|mnt|data|Users|var)/[\w.-]+")


def rounds(prompts: Sequence[trajectories.Entry]) -> int:
    return max((e["turn"] + 1 if e["prompt_kind"] != "ideas" else e["line"] for e in prompts), default=0)


def first_right(
    entries: Sequence[trajectories.Entry], prompts: Sequence[trajectories.Entry], outcomes: dict[str, trajectories.Entry]
) -> int | None:
    """The round of the first Candidate, in the order in which they came, that passed whatever it was judged by, be it not
    every set of inputs; None: there is none."""
    asked = [e["id"] for e in prompts]
    for e in entries:
        if e["kind"] == "candidate" and outcomes[e["name"]]["verdict"] == "pass":
            return rounds(prompts[: asked.index(e["prompt"]) + 1])
    return None


def provenance(run: Path, args: argparse.Namespace) -> dict[str, Any]:
    asked = read_json(run / "run.json", runs.KEYS)
    entries = read_journal(run / "journal.jsonl")
    found = bench_curves.problem_of(args.name, run)
    prompts = [e for e in entries if e["kind"] == "prompt"]
    loops = [e for e in entries if e["kind"] == "loop"]
    machine = loops[-1].get("options", {}).get("machine") or next((e["text"] for e in entries if e["kind"] == "machine"), "")
    gates = runs.gates(entries)
    verdicts: dict[str, int] = {}
    by_name = trajectories.outcomes(entries)
    outcomes = list(by_name.values())
    for one in outcomes:
        verdicts[str(one["verdict"])] = verdicts.get(str(one["verdict"]), 0) + 1
    return {
        "format": 1, "task": asked["model"], "sha256": asked["sha256"], "created": asked["created"], "torch": asked["torch"],
        "proposer": asked["proposer"], "strategy": asked["strategy"], "answered_by": args.answered_by, "saw": args.saw,
        "note": args.note, "machine": machine.strip().splitlines(), "prompts": len(prompts),
        "rounds": rounds(prompts),
        "answers": found.calls, "tokens": found.tokens, "minutes": round(found.minutes, 1), "candidates": found.candidates,
        "first_right": first_right(entries, prompts, by_name), "verdicts": verdicts, "finished": (run / "result.json").is_file(),
        "best_ns": min((sum(o["time_ns"]) for o in outcomes if o["time_ns"]), default=None),
        "gate": [{k: g[k] for k in ("case", "passed", "reason", "baseline", "kgen_ns", "speedup", "noisy")} for g in gates],
    }  # fmt: skip


def keep(args: argparse.Namespace) -> Path:
    run, to = Path(args.run), Path(args.to) / args.name
    if not args.unfinished and not (run / "result.json").is_file():
        raise BadInput(f"{run}: is no finished Run, it has no result.json; --unfinished keeps it all the same")
    lines = [json.dumps(t, ensure_ascii=False) + "\n" for t in trajectories.trajectories(read_journal(run / "journal.jsonl"))]
    if not lines:
        raise BadInput(f"{run}: nobody answered anything in this Run")
    texts = {"report.html": report.page(run), "trajectories.jsonl": "".join(lines)}
    about = json.dumps(provenance(run, args), indent=1, ensure_ascii=False) + "\n"
    for name, text in {**texts, "provenance.json": about}.items():
        if named := FOLDERS.search(text):
            raise BadInput(f"{name} names a folder of this machine: {named.group()}")
    packed = {f"{name}.gz": gzip.compress(text.encode(), 9, mtime=0) for name, text in texts.items()}
    size = sum(map(len, packed.values())) + len(about)
    if size > MOST_BYTES:
        raise BadInput(f"{run}: its report and trajectories come to {size} bytes; {MOST_BYTES} are the most")
    if to.exists():
        shutil.rmtree(to)
    to.mkdir(parents=True)
    for name, data in packed.items():
        (to / name).write_bytes(data)
    (to / "provenance.json").write_text(about)
    return to


def main() -> int:
    p = argparse.ArgumentParser(description=__doc__.partition("\n\n")[0])
    p.add_argument("run")
    p.add_argument("name")
    p.add_argument("--answered-by", required=True, help="which model or person, by name and version")
    p.add_argument("--saw", required=True, help="what it saw beside the prompt files")
    p.add_argument("--note", default="")
    p.add_argument("--unfinished", action="store_true", help="also a Run that has not come to its end")
    p.add_argument("--to", default=str(ROOT / "docs" / "runs"))
    try:
        to = keep(p.parse_args())
    except KgenError as e:
        print(f"keep_run: {e}", file=sys.stderr)
        return e.code
    print(f"{to}: {sum(f.stat().st_size for f in to.iterdir())} bytes")
    return 0


if __name__ == "__main__":
    sys.exit(main())
