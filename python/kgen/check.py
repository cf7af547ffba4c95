"""`kgen check`: are the active Kernels still right, and still as fast, on this machine? For CI, and after an upgrade.

Each pin is judged again on fresh seeds, then timed as the gate does it: in a fresh process, through torch.ops.kgen, in turn
with the best baseline. For that its Kernel is put alone into a registry of the check's own, so that no other pin can serve
the call. Nothing in the registries or in the user's cache of them is changed; `kgen verify` renews evidence, and
`kgen rollback` takes a Kernel back.
"""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from . import _libkgen, _native, gate, registries, sets, speedups, spread
from .commands import key_text, label
from .errors import BadInput, EnvironmentLacks, KgenError
from .interrupts import Stop, stoppable
from .judge import Judge
from .reference import Reference
from .speedups import Interval, Machine, PinName, Speed, Speedups
from .ui import Progress
from .verify import Active, Pin, active, on_cuda, pin_trials, task_trials, why_not_here

# A Kernel has regressed when the upper end of (speedup now / speedup of the baseline) is below this.
REGRESSED = 0.95
# A ratio whose interval reaches further above its median than this would hide a Kernel that lost a fifth.
NOISY = 1.25
NOT_CHECKED = "speedups recorded, not checked"


@dataclass(frozen=True, slots=True)
class CheckedPin:
    """What became of one pin. state: pass, fail (wrong, broken, or not served), regression or skipped.

    unchecked: this machine runs it, and yet something about it was not checked: message says what. ratio: its speedup
    over the baseline's. seconds: what checking it took.
    """

    kernel: str
    id: str
    op: str
    arch: str
    registry: str
    pin: str
    case: str
    state: str
    message: str = ""
    unchecked: bool = False
    cases: int = 0
    sets: int = 0
    speed: Speed | None = None
    ratio: Interval | None = None
    seconds: float = 0.0

    @property
    def name(self) -> PinName:
        return self.op, self.arch, self.pin


@dataclass(frozen=True, slots=True)
class CheckReport:
    """The answer. problems: why it is no pass, each in one line; notes: what else there is to know."""

    rows: tuple[CheckedPin, ...]
    problems: tuple[str, ...]
    notes: tuple[str, ...]
    machine: Machine
    torch: str
    kgen: str
    seconds: float
    baseline: str | None = None

    @property
    def passed(self) -> bool:
        return not self.problems

    @property
    def checked(self) -> tuple[CheckedPin, ...]:
        return tuple(r for r in self.rows if r.state != "skipped")

    def of_state(self, state: str) -> tuple[CheckedPin, ...]:
        return tuple(r for r in self.rows if r.state == state)

    def skipped(self) -> dict[str, list[CheckedPin]]:
        """Pins that were left out, by reason."""
        found: dict[str, list[CheckedPin]] = {}
        for row in self.of_state("skipped"):
            found.setdefault(row.message, []).append(row)
        return found

    def speedups(self) -> Speedups:
        """What was measured, as a baseline for later checks."""
        return speedups.of((r.name, r.id, r.speed) for r in self.rows if r.speed is not None and r.state == "pass")

    def json(self) -> dict[str, Any]:
        return {
            "format": 1, "passed": self.passed, "problems": list(self.problems), "notes": list(self.notes),
            "machine": self.machine.json(), "torch": self.torch, "kgen": self.kgen, "baseline": self.baseline,
            "seconds": round(self.seconds, 1), "checked": len(self.checked), "skipped": len(self.of_state("skipped")),
            "rows": [asdict(r) for r in self.rows],
        }  # fmt: skip


# ---- what there is ----


@dataclass(frozen=True)
class Found:
    """A pin with its Kernel; or, with a reason, one that is not checked: state is skipped or fail."""

    row: CheckedPin
    one: Active | None = None
    pin: Pin = field(default_factory=dict)


def _broken(root: Path, op: str | None) -> Iterator[CheckedPin]:
    """Pins that serve nobody: they cannot be read, or the Kernel that they name cannot."""
    there = {(k["op"], k["arch"], k["id"]) for k in _libkgen.registry_list(root)}
    for path in sorted(root.glob("*/*/pins/*")):
        of, arch = path.parts[-4], path.parts[-3]
        if path.name.startswith(".") or (op is not None and of != op):
            continue
        row = CheckedPin(f"{of}/?", "", of, arch, str(root), path.name, "", "fail")
        try:
            pin = json.loads(path.read_text())
            kernel, key = str(pin["kernel"]), pin["key"]
            row = replace(row, id=kernel, case=key_text(key))
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as e:
            yield replace(row, message=f"pin {path.name} cannot be read: {type(e).__name__}: {e}")
            continue
        if (of, arch, kernel) not in there:
            yield replace(row, message=f"it names the Kernel {kernel[:12]}, which is not there or cannot be read")


def _found(op: str | None, only: str | None) -> Iterator[Found]:
    """Every pin of every registry, the first registry's first."""
    broken = [row for root in registries.roots(only) for row in _broken(root, op)]
    for row in broken:
        why = why_not_here(row.arch)
        yield Found(replace(row, state="skipped", message=why) if why else row)
    served: set[PinName] = set()
    try:
        for one in active(op, only):
            why = why_not_here(one.kernel["arch"])
            for pin in one.pins:
                row = CheckedPin(
                    label(one.kernel), one.kernel["id"], one.kernel["op"], one.kernel["arch"], str(one.registry),
                    pin["name"], key_text(pin["key"]), "skipped", why,
                )  # fmt: skip
                if not why and row.name in served:
                    row = replace(row, message="a registry before it has a Kernel for the same pin")
                served.add(row.name)
                yield Found(row, None if row.message else one, pin)
    except BadInput:
        if not broken:
            raise


# ---- one pin ----


class _Checker:
    """Judges and times pins. staging: a folder of its own, emptied by the caller."""

    def __init__(self, staging: Path, seconds: float, baseline: Speedups | None, progress: Progress, stop: Stop):
        self.staging, self.seconds, self.baseline = staging, seconds, baseline
        self.progress, self.stop = progress, stop
        self.lacks: EnvironmentLacks | None = None
        self._task: tuple[tuple[str, str, str], dict[str, Any]] | None = None  # of the Kernel that was last asked for

    def check(self, found: Found, title: str) -> CheckedPin:
        """The row of one pin. A pin that cannot be checked is no end of the check."""
        started = time.monotonic()
        try:
            with self.progress.step(title) as say:
                row = self._check(found, say)
        except EnvironmentLacks as e:
            self.stop.check()
            self.lacks = self.lacks or e
            row = replace(found.row, message=str(e), unchecked=True)
        except KgenError as e:
            self.stop.check()
            row = replace(found.row, state="fail", message=str(e))
        return replace(row, seconds=time.monotonic() - started)

    def _trials(self, one: Active, pin: Pin) -> list[spread.Trial]:
        name = (str(one.registry), one.kernel["arch"], one.kernel["id"])
        if self._task is None or self._task[0] != name:
            self._task = (name, task_trials(one))
        return pin_trials(one, pin, self._task[1])

    def _check(self, found: Found, say: Callable[[str], None]) -> CheckedPin:
        one, pin, row = found.one, found.pin, found.row
        assert one is not None
        if wrong := _altered(one):
            return replace(row, state="fail", message=wrong)
        try:
            trials = self._trials(one, pin)
        except BadInput as e:
            return replace(row, message=str(e), unchecked=True)
        say("judging")
        evidence = spread.judge(
            one.contract, one.source, one.file, one.record.get("tunables") or None, trials, arch=row.arch,
            any_size=spread.is_dynamic(pin["key"]), folder=one.task_folder, say=say, index=one.device.index or 0,
        )  # fmt: skip
        fitting = [t for t in trials if t.label not in evidence.skipped]
        if not fitting:
            return replace(row, message=f"its plan is for no Case of it here: {next(iter(evidence.skipped.values()))}")
        row = replace(row, cases=evidence.cases, sets=evidence.sets)
        if evidence.verdict != "pass":
            return replace(row, state="fail", message=f"{evidence.verdict}: {evidence.message}")
        return self._timed(one, pin, fitting, row, say)

    def _timed(
        self, one: Active, pin: Pin, judged: list[spread.Trial], row: CheckedPin, say: Callable[[str], None]
    ) -> CheckedPin:
        row = self._decide(row, *self._measure(one, pin, judged, say))
        if row.state != "regression":
            return row
        # What a process costs beside another (layout, neighbours) is in no interval; two processes tell more than one.
        say("it looks slower than the baseline; measured again")
        return self._decide(row, *self._measure(one, pin, judged, say))

    def _measure(
        self, one: Active, pin: Pin, judged: list[spread.Trial], say: Callable[[str], None]
    ) -> tuple[gate.GateResult, str]:
        """The gate's result without a threshold, and the Case that it is of."""
        registry = self.staging / f"{time.monotonic_ns()}"  # no index of an earlier one is taken for this one's
        own = json.loads(one.contract)["reference"]["kind"] != "torch"
        task = one.task_folder if (one.task_folder / "task.json").is_file() else None
        _libkgen.registry_promote(registry, one.contract, task, one.source, one.record, [pin["key"]])
        dynamic = spread.is_dynamic(pin["key"])
        with _timing_judge(one, spread.timing_trials(pin["key"]) if dynamic else [], judged, dynamic) as (judge, trial):
            say("inputs of new seeds")
            made = trial.task(json.loads(one.contract), one.task_folder)
            fresh = sets.for_gate(judge, made, Reference.open(made, one.device.index or 0), 0)
        names = [n for n, v in fresh[0].args.items() if v is not None]
        reference = registry / one.kernel["op"] if own else None
        with gate.Gate(
            trial.case, names, fresh, registry, reference, say, self.staging / "cache", one.device.index or 0
        ) as g:
            return gate.run(g, one.kernel["id"], 0.0, self.seconds), trial.label

    def _decide(self, row: CheckedPin, result: gate.GateResult, case: str) -> CheckedPin:
        if result.reason == gate.NO_BASELINE:
            return replace(row, state="pass", message=f"not timed: {result.reason}", unchecked=True)
        if result.reason:
            return replace(row, state="fail", message=result.reason)
        speed = Speed(case, Interval(*result.speedup), result.baseline, result.baseline_ns, result.kgen_ns)
        row = replace(row, state="pass", message="", speed=speed)
        if self.baseline is None:
            return row
        kernel, then = self.baseline.pins.get(row.name, ("", None))
        if then is None:
            return replace(row, message="not in the baseline", unchecked=True)
        if then.case != case:
            return replace(row, message=f"the baseline is of another Case: {then.case}", unchecked=True)
        ratio = speed.speedup.over(then.speedup)
        row = replace(row, ratio=ratio)
        if ratio.high >= REGRESSED and ratio.high > NOISY * ratio.median:
            return replace(row, message="too noisy to tell, now or when the baseline was made", unchecked=True)
        if ratio.high >= REGRESSED:
            return row
        other = f"; then {kernel[:12]} was active" if kernel != row.id else ""
        beaten = f", over {then.baseline}" if then.baseline != speed.baseline else ""
        return replace(row, state="regression", message=f"it was {then.speedup}{beaten}{other}")


def _altered(one: Active) -> str:
    """What is wrong with a Kernel's files; "" when they are what was promoted."""
    try:
        found = _libkgen.candidate_check(
            one.contract, one.source, str(one.record["source"]), one.record.get("tunables") or None
        )
    except OSError as e:
        return f"{e.filename}: {e.strerror}"
    except BadInput as e:
        return f"its source is not what was promoted: {e}"
    return "" if found["id"] == one.kernel["id"] else "its source is not what was promoted: serving refuses it"


class _timing_judge:
    """A judge that holds the Case to time, and its Trial: the first of `wanted` that the plan is for, else the largest that
    was judged. A context manager."""

    def __init__(self, one: Active, wanted: list[spread.Trial], judged: list[spread.Trial], any_size: bool):
        self.one, self.any_size = one, any_size
        self.choices = [*wanted, *sorted(judged, key=lambda t: -t.elements)]

    def __enter__(self) -> tuple[Judge, spread.Trial]:
        reason: BadInput | None = None
        for trial in self.choices:
            device = self.one.device
            self.judge = Judge(
                self.one.contract, arch=self.one.kernel["arch"] if device.type == "cpu" else None, device=device
            )
            try:
                self.judge.add_case(trial.case)
                tunables = self.one.record.get("tunables") or None
                self.judge.prepare(self.one.source, tunables=tunables, any_size=self.any_size)
                return self.judge, trial
            except BadInput as e:
                self.judge.close()
                reason = reason or e
            except BaseException:
                self.judge.close()
                raise
        raise reason or BadInput("no Case of it can be timed")

    def __exit__(self, *_: object) -> None:
        self.judge.close()


# ---- all of them ----


def plural(n: int, what: str) -> str:
    """"1 pin", "2 pins"."""
    return f"{n} {what}{'s' * (n != 1)}"


def _problems(
    rows: list[CheckedPin], baseline: Speedups | None, gone: list[str], require: str | None, strict: bool, written: bool
) -> Iterator[str]:
    checked = [r for r in rows if r.state != "skipped"]
    wrong = [r for r in rows if r.state == "fail"]
    slower = [r for r in rows if r.state == "regression"]
    if not checked:
        skipped = f" ({plural(len(rows), 'pin')} skipped)" if rows else ": no registry has an active one"
        yield f"no kernel was checked{skipped}"
    if wrong:
        yield f"{plural(len(wrong), 'pin')} failed: {', '.join(dict.fromkeys(r.kernel for r in wrong))}"
    if slower:
        names = ", ".join(dict.fromkeys(r.kernel for r in slower))
        yield f"{plural(len(slower), 'pin')} slower than the baseline: {names}; `kgen rollback` takes a kernel back"
    if require == "cuda" and not any(on_cuda(r.arch) for r in checked):
        yield "--require cuda: no CUDA kernel was checked"
    if not strict:
        return
    if baseline is None and not written:
        yield f"--strict: {NOT_CHECKED}; `kgen check --write-baseline FILE` makes a baseline"
    left = [r for r in rows if r.unchecked]
    if left:
        yield f"--strict: {plural(len(left), 'pin')} not wholly checked: {left[0].kernel} {left[0].case}: {left[0].message}"
    if gone:
        yield f"--strict: of the baseline, not checked: {', '.join(gone)}"


def _notes(baseline: Speedups | None, gone: list[str]) -> Iterator[str]:
    if baseline is None:
        yield NOT_CHECKED
        return
    for what, then, here in (("torch", baseline.torch, torch.__version__), ("kgen", baseline.kgen, _native.version())):
        if then != here:
            yield f"the baseline was measured with {what} {then}, this is {here}"
    if gone:
        yield f"of the baseline, not checked: {', '.join(gone)}"


def _require(what: str | None, machine: Machine) -> None:
    if what not in (None, "cuda"):
        raise BadInput(f"--require {what}: it is cuda")
    if what == "cuda" and machine.cuda is None:
        raise EnvironmentLacks(
            f"--require cuda: torch {torch.__version__} sees no CUDA device here (`kgen doctor` tells what is found)"
        )


def check(
    op: str | None = None,
    *,
    registry: str | Path | None = None,
    baseline: str | Path | Speedups | None = None,
    require: str | None = None,
    strict: bool = False,
    budget: float | None = None,
    seconds: float = gate.ROUND_SECONDS,
    progress: Progress | None = None,
    tell: Callable[[CheckedPin], None] = lambda _: None,
    recording: bool = False,
) -> CheckReport:
    """Checks every pin of the active Kernels (of one Op, of one registry) that this machine can run: right on fresh seeds,
    and its speedup over the best baseline not below what a baseline file says. Changes no registry.

    require: "cuda" raises EnvironmentLacks without a CUDA device. strict: whatever could have been checked and was not is
    a problem. budget: seconds after which no other pin is begun. seconds: of timing, a pin, at most. tell: gets each row when
    it is done. recording: the speedups become a baseline, so that having none to compare with is no problem.
    BadInput: the baseline cannot be read or is another machine's. KeyboardInterrupt leaves nothing behind.
    """
    machine, started, progress = Machine.here(), time.monotonic(), progress or Progress(quiet=True)
    _require(require, machine)
    then = speedups.read(baseline) if isinstance(baseline, (str, Path)) else baseline
    if then is not None:
        then.check_machine(machine)
    rows: list[CheckedPin] = []
    with stoppable() as stop, tempfile.TemporaryDirectory(prefix="kgen-check-") as folder:
        found = list(_found(op, str(registry) if registry is not None else None))
        checker = _Checker(Path(folder), seconds, then, progress, stop)
        for i, one in enumerate(found):
            row = one.row
            if one.one is not None:
                if budget is not None and time.monotonic() - started >= budget:
                    row = replace(row, message=f"the budget of {budget:g} s was spent", unchecked=True)
                else:
                    row = checker.check(one, f"{i + 1}/{len(found)} {row.kernel} {row.arch} {row.case}")
            rows.append(row)
            tell(row)
    if checker.lacks is not None and all(r.state == "skipped" for r in rows):
        raise checker.lacks
    return _report(rows, then, machine, time.monotonic() - started, op, require, strict, recording)


def _report(
    rows: list[CheckedPin], then: Speedups | None, machine: Machine, seconds: float, op: str | None,
    require: str | None, strict: bool, recording: bool,
) -> CheckReport:  # fmt: skip
    seen = [r.name for r in rows if r.state != "skipped"]
    gone = speedups.missing(then, seen, op) if then is not None else []
    return CheckReport(
        tuple(rows),
        tuple(_problems(rows, then, gone, require, strict, recording)),
        tuple(_notes(then, gone)),
        machine,
        torch.__version__,
        _native.version(),
        seconds,
        str(then.path) if then is not None else None,
    )
