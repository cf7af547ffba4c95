"""A Run whose Candidates come from the client of `kgen mcp`: what is asked, what was answered, what came of it, what is left of
the budget. All of it is the journal's; this adds answers to that and has them judged by the stages of the loop.

One thread must make all calls: the judge's workers live as long as the thread that started them. The folder is held from
the beginning to the end, so a Run has one writer.
"""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from . import _libkgen, registries, stages
from .errors import BadInput
from .interrupts import Stop
from .jsonfile import read_journal
from .runs import Run, entries, write_json
from .stages import Staged
from .trajectories import outcomes, time_of
from .tune import Job, OpTuner, Report, Row
from .ui import Progress

Entry = dict[str, Any]
ANSWER_BYTES = 50 << 20
# What a reply may take of the client's context: a longer source is in the Run.
SHOWN_BYTES = 64 << 10


class Bench:
    """One Op with its judges open."""

    def __init__(self, tuner: OpTuner, stack: contextlib.ExitStack):
        self.tuner = tuner
        self.judges, self.degenerate = stack.enter_context(tuner.judging())

    def evaluate(self, seconds: float) -> None:
        self.tuner.stage = "evaluate"
        self.tuner.search(self.judges, seconds)

    def finish(self, seconds: float) -> list[Row]:
        self.tuner.stage = "finish"
        return self.tuner.decide(self.judges[0], self.degenerate, self.tuner.search(self.judges, seconds))


class Session:
    """Use as a context manager. The time of the budget runs from the client's first question on, its thinking included."""

    def __init__(
        self, staged: Staged, progress: Progress, registry: Path | None, promote: bool, device: str | None,
        unsafe_cpu: bool = False,
    ):  # fmt: skip
        self.staged, self.progress, self.stop = staged, progress, Stop()
        self.where = staged.where(device)
        self.registry = registry or registries.promote_to()
        if promote:
            registries.check_writable(self.registry.absolute())
        self.options = staged.options(str(self.registry), promote, unsafe_cpu)
        self.stack = contextlib.ExitStack()
        self.run: Run | None = None
        self.judges = contextlib.ExitStack()
        self.benches: dict[str, Bench] = {}
        self.mark: float | None = None  # when the time that nobody was charged for began

    def __enter__(self) -> Session:
        self.run = self.stack.enter_context(self.staged.open())
        return self

    def __exit__(self, *_: object) -> None:
        self.stack.close()

    def rest(self) -> None:
        """Closes the judges; from the thread that prepared them."""
        self.judges.close()

    def prepare(self) -> None:
        """Opens the judges, which takes a while, judges what an earlier life left, and writes the first prompts."""
        assert self.run is not None
        for job in self.staged.jobs:
            tuner = OpTuner(job, self.run, self.registry, self.options, self.progress, self.stop, self.where)
            tuner.check_machine = lambda text: stages.same_machine(self.staged.path, text)
            tuner.stage = "evaluate"
            bench = self.benches[job.op] = Bench(tuner, self.judges)
            tuner.loop(bench.judges[0])  # prompts have this machine's numbers from the first on
        for job in self.staged.jobs:
            if self._advance(job)["unjudged"]:
                self.benches[job.op].evaluate(self.staged.budget)
                self._advance(job)

    # --- reading ---

    def journal(self) -> list[Entry]:
        return read_journal(self.staged.path / "journal.jsonl")

    def job(self, op: str | None) -> Job:
        """BadInput names the Ops that there are."""
        for job in self.staged.jobs:
            if op in (None, job.op):
                return job
        raise BadInput(f"op {op}: this Run is about {', '.join(j.op for j in self.staged.jobs) or 'nothing'}")

    def spent(self, found: list[Entry], op: str | None = None) -> float:
        """Seconds of the budget that are in the journal."""
        most: dict[str, float] = {}
        for e in found:
            if "spent_s" in e:
                most[e["op"]] = max(most.get(e["op"], 0.0), float(e["spent_s"]))
        return sum(most.values()) if op is None else most.get(op, 0.0)

    def budget(self, found: list[Entry]) -> Entry:
        """What is left; 0 and less: it is spent. None: no limit."""
        thinking = time.monotonic() - self.mark if self.mark is not None else 0.0
        answers = [e for e in found if e["kind"] == "answer"]
        limits = self.staged.limits
        tokens = sum(int(e["charged"]["tokens"]) for e in answers)
        return {
            "seconds_left": round(self.staged.budget - self.spent(found) - thinking, 1),
            "answers": len(answers), "answers_left": limits.calls - len(answers) if limits.calls else None,
            "tokens": tokens, "tokens_left": limits.tokens - tokens if limits.tokens else None,
        }  # fmt: skip

    def open_prompts(self, found: list[Entry]) -> list[Entry]:
        answered = {e["prompt"] for e in found if e["kind"] == "answer"}
        return [e for e in found if e["kind"] == "prompt" and e["id"] not in answered]

    def task(self, op: str | None) -> str:
        """The Op as its Task has it: contract, reference, graph, Cases."""
        self._begin()
        folder = self.staged.path / "tasks" / self.job(op).op
        parts = [f"# {name}\n\n{(folder / name).read_text()}" for name in ("op.json", "reference.py", "graph.txt")
                 if (folder / name).is_file()]  # fmt: skip
        parts += [f"# cases/{p.name}\n\n{p.read_text()}" for p in sorted((folder / "cases").glob("*.json"))]
        return "\n\n".join(parts)

    def prompts(self) -> Entry:
        self._begin()
        found = self.journal()
        shown = [{"id": e["id"], "op": e["op"], "kind": e["prompt_kind"]} for e in self.open_prompts(found)]
        return {"open": shown, "ops": [j.op for j in self.staged.jobs], "budget": self.budget(found), "finished": self.finished}

    def prompt(self, ident: str | None) -> str:
        """A whole prompt; the oldest open one when none is named."""
        self._begin()
        found = self.journal()
        prompt = self._find(ident, found)
        systems = {e["sha256"]: e["text"] for e in found if e["kind"] == "system"}
        return f"Prompt {prompt['id']}\n\n{systems.get(prompt['system'], '')}\n{prompt['user']}"

    def history(self, op: str | None) -> list[Entry]:
        """All Candidates in the order in which they came."""
        self._begin()
        found = [e for e in self.journal() if e.get("op") == self.job(op).op]
        of = {e["name"]: e for e in found if e["kind"] == "candidate"}
        return [
            {"name": name, "id": one["id"][:12], "prompt": of[name]["prompt"], "verdict": one["verdict"],
             "microseconds": _us(one), "message": (one["message"] or "").partition("\n")[0][:300], "same_as": one["same_as"]}
            for name, one in outcomes(found).items()
        ]  # fmt: skip

    def best(self, op: str | None) -> Entry:
        """The fastest Candidate that passes, with its source."""
        self._begin()
        job = self.job(op)
        found = [e for e in self.journal() if e.get("op") == job.op]
        passed = [(t, name, one) for name, one in outcomes(found).items() if (t := time_of(one)) is not None and not one["same_as"]]
        if not passed:
            return {"op": job.op, "best": None}
        _, name, one = min(passed, key=lambda p: p[0])
        text = next(e["text"] for e in found if e["kind"] == "candidate" and e["name"] == name)
        machine = next((e for e in reversed(found) if e["kind"] == "machine"), {"cases": []})
        return {
            "op": job.op, "best": name, "id": one["id"][:12], "microseconds": [round(t / 1e3, 3) for t in one["time_ns"]],
            "roofline_microseconds": [round(c["floor_ns"] / 1e3, 3) for c in machine["cases"]], "source": text[:SHOWN_BYTES],
        }  # fmt: skip

    def sass(self, ident: str, whole: bool) -> str:
        """The machine code of a Candidate, by at least six digits of its id, for its Op's first Case that it is for."""
        self._begin()
        found = [e for e in self.journal() if e["kind"] == "candidate" and "text" in e]
        one = next((e for e in reversed(found) if len(ident) >= 6 and e["id"].startswith(ident.lower())), None)
        if one is None:
            raise BadInput(f"Candidate {ident}: there is none; `history` has their ids, of which six digits are enough")
        judge = self.benches[one["op"]].judges[0]
        return judge.listing(one["text"], name=one["name"], whole=whole, most=SHOWN_BYTES if whole else 0)

    # --- writing ---

    def submit(self, answer: str, ident: str | None) -> Entry:
        """Puts an answer to a prompt into the journal and has it judged: the verdicts, and what is asked next."""
        assert self.run is not None
        self._begin()
        found = self.journal()
        prompt = self._find(ident, found)
        tokens = self._check(answer, found)
        name, op = self._name(prompt["id"], found), prompt["op"]
        assert self.mark is not None
        spent = self.spent(found, op) + time.monotonic() - self.mark
        self.run.add("answer", {
            "op": op, "prompt": prompt["id"], "name": name, "text": answer.replace("\0", "\x01"), "spent_s": spent,
            "charged": {"calls": 1, "tokens": tokens, "nano_usd": 0},
        })  # fmt: skip
        self.benches[op].evaluate(self.staged.budget)
        state = self._advance(self.job(op))
        self.mark = time.monotonic()
        return self._reply(prompt, name, state)

    def finish(self) -> Entry:
        """Tunes the numbers of the best, brings them to the gate and promotes; nothing is asked afterwards."""
        rows: list[Row] = []
        for bench in self.benches.values():
            rows += bench.finish(self.staged.budget)
        report = Report(self.staged.path, self.registry, self.staged.asked["model"], 0.0, rows + self.staged.left)
        write_json(self.staged.path / "result.json", report.json())
        return report.json()

    @property
    def finished(self) -> bool:
        return (self.staged.path / "result.json").is_file()

    def _begin(self) -> None:
        if self.mark is None:
            self.mark = time.monotonic()

    def _advance(self, job: Job) -> Entry:
        contract = (self.staged.path / "tasks" / job.op / "op.json").read_text()
        loop = {**self.benches[job.op].tuner.loop(self.benches[job.op].judges[0]), "stage": "advance"}
        state = _libkgen.loop_stage(contract, self.staged.path, loop, self.staged.budget, lambda _: None)
        return dict(state)

    def _find(self, ident: str | None, found: list[Entry]) -> Entry:
        """A prompt by its id, answered or not; without one the oldest that is open."""
        waiting = self.open_prompts(found)
        if ident is None:
            if not waiting:
                raise BadInput("nothing is asked: the search is over; `finish` tunes, gates and promotes the best")
            return waiting[0]
        for e in found:
            if e["kind"] == "prompt" and e["id"] == ident:
                return e
        raise BadInput(f"prompt {ident}: was not asked; open are {', '.join(e['id'] for e in waiting) or 'none'}")

    def _check(self, answer: str, found: list[Entry]) -> int:
        """What an answer is charged; BadInput when it cannot be taken."""
        if self.finished:
            raise BadInput("this Run is finished; begin another")
        try:
            size = len(answer.encode())
        except UnicodeEncodeError as e:
            raise BadInput(f"the answer is not UTF-8 text: {e.reason} at character {e.start}") from e
        if size > ANSWER_BYTES:
            raise BadInput(f"the answer has {size} bytes; {ANSWER_BYTES} are the most")
        tokens = (size + 2) // 3  # as csrc/tune/prompt.h counts
        left = self.budget(found)
        for what, rest in (("time", left["seconds_left"]), ("answers", left["answers_left"])):
            if rest is not None and rest <= 0:
                raise BadInput(f"the Run's budget of {what} is spent; `finish` tunes, gates and promotes the best")
        if left["tokens_left"] is not None and tokens > left["tokens_left"]:
            raise BadInput(f"the answer counts {tokens} tokens, and the Run's budget has {left['tokens_left']} left")
        return tokens

    def _name(self, ident: str, found: list[Entry]) -> str:
        taken = {e["name"] for e in found if e["kind"] == "answer"}
        names = (ident if k == 1 else f"{ident}-{k}" for k in range(1, len(taken) + 2))
        return next(n for n in names if n not in taken)

    def _reply(self, prompt: Entry, name: str, state: Entry) -> Entry:
        found = self.journal()
        own = [e for e in found if e.get("op") == prompt["op"]]
        judged = {k: v for k, v in outcomes(own).items() if k.startswith(f"{name}.")}
        told = self.staged.path / "verdicts" / f"{prompt['id']}.txt"
        return {
            "prompt": prompt["id"],
            "candidates": [{"name": k, "id": v["id"][:12], "verdict": v["verdict"], "microseconds": _us(v), "message": v["message"]}
                           for k, v in judged.items()],
            "told": told.read_text() if told.is_file() else "",
            "open": [e["id"] for e in self.open_prompts(found)],
            "over": state["ended_by"] if state["over"] else None,
            "budget": self.budget(found),
        }  # fmt: skip


def _us(one: Entry) -> float | None:
    t = time_of(one)
    return round(t / 1e3, 3) if t is not None else None


@contextlib.contextmanager
def opened(
    staged: Staged, progress: Progress, registry: Path | None, promote: bool, device: str | None, unsafe_cpu: bool = False
) -> Iterator[Session]:
    """A Session of a Run that nobody else holds. BadInput: it asks in another way, or is in use."""
    if staged.asking.proposer != "mcp":
        raise BadInput(f"{staged.path} was begun with --proposer {staged.asking.proposer}, not by `kgen mcp`: name another --run")
    with Session(staged, progress, registry, promote, device, unsafe_cpu) as session:
        yield session


def begin(model: Any, options: Any, progress: Progress) -> Staged:
    """Captures the model into a new Run, or finds the Run of this model that is there."""
    there = options.run_dir / "run.json"
    if there.is_file() and not (options.run_dir / "stages.json").is_file():
        shown = next((e for e in entries(options.run_dir, "survey")), None)
        how = "its capture was cut short: remove the folder" if shown is None else "it was not begun by `kgen mcp`"
        raise BadInput(f"{options.run_dir}: {how}, or name another --run")
    if there.is_file():
        with Run(options.run_dir, json.loads(there.read_text()) | _asked(model, options), True):
            return Staged(options.run_dir)
    return stages.begin(model, replace(options, resume=False), progress)


def _asked(model: Any, options: Any) -> Entry:
    """What a Run of this model must not differ in."""
    return {"model": model.source.name, "sha256": model.source.sha256, "patterns": list(options.patterns), **options.asked}

