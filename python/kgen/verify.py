"""Kernels held against this machine: `kgen verify` judges active ones again and renews their evidence, `kgen why` tells
what serves a call, `kgen build` compiles what a machine without a compiler will load.

A Kernel that fails here is named; its pins are left as they are, since another machine may be well served by it
(`kgen rollback` moves them).
"""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from . import _libkgen, registries
from .commands import Kernel, key_text, label, read_pins, read_record
from .doctor import cuda_device, machine_arch
from .errors import BadInput, EnvironmentLacks, KgenError
from .interrupts import stoppable
from .ui import Progress

Pin = dict[str, Any]


@dataclass
class Verified:
    """What became of one Kernel. state: pass, fail, skipped (not for this machine, or there is nothing to judge it on)
    or unwritten (it passed, and its Record could not be renewed)."""

    kernel: str
    id: str
    arch: str
    registry: str
    state: str
    message: str = ""
    cases: int = 0
    sets: int = 0
    programs: int = 0
    left_out: list[str] = field(default_factory=list)


# ---- what there is ----


@dataclass(frozen=True)
class Active:
    """A Kernel with the pins that point at it."""

    registry: Path
    kernel: Kernel
    record: dict[str, Any]
    pins: tuple[Pin, ...]

    @property
    def contract(self) -> str:
        return (self.registry / self.kernel["op"] / "op.json").read_text()

    @property
    def source(self) -> bytes:
        return (Path(self.kernel["path"]) / self.record["source"]).read_bytes()

    @property
    def file(self) -> str:
        """What messages call the source: "softmax/v1.cu"."""
        return label(self.kernel) + Path(str(self.record["source"])).suffix

    @property
    def device(self) -> Any:
        """The torch.device that it is judged on."""
        from . import devices

        return devices.for_arch(self.kernel["arch"])

    @property
    def task_folder(self) -> Path:
        return self.registry / self.kernel["op"] / "task"


def arch_level(arch: str) -> int:
    """4 of x86-64-v4, 0 of aarch64. BadInput for what is no CPU's architecture."""
    found = re.fullmatch(r"x86-64-v([1-4])", arch)
    if not found and arch != "aarch64":
        raise BadInput(f"architecture {arch}: it is x86-64-v1, -v2, -v3, -v4 or aarch64")
    return int(found[1]) if found else 0


def runs_on(kernel_arch: str, machine: str) -> bool:
    """Whether a machine of one architecture runs Kernels of another."""
    if (kernel_arch == "aarch64") != (machine == "aarch64"):
        return False
    try:
        return arch_level(kernel_arch) <= arch_level(machine)
    except BadInput:
        return False


def on_cuda(arch: str) -> bool:
    """Whether Kernels of an architecture are a GPU's."""
    return arch.startswith("sm_")


def gpu_level(arch: str) -> int:
    """90 of sm_90 and sm_90a. BadInput for what is no GPU's architecture that kgen has kernels for."""
    found = re.fullmatch(r"sm_(\d{2,3})a?", arch)
    if not found or int(found[1]) < 80:
        raise BadInput(f"architecture {arch}: of GPUs it is sm_80 or newer, as sm_90")
    return int(found[1])


def built_for(kernel_arch: str, machine: str) -> str | None:
    """The architecture that a machine builds a Kernel for: a CPU's for the Kernel's own, a GPU's for the GPU, which may be
    newer. None: it does not run there."""
    if on_cuda(machine):
        fits = on_cuda(kernel_arch) and gpu_level(kernel_arch) <= gpu_level(machine)
        return f"sm_{gpu_level(machine)}" if fits else None
    return kernel_arch if runs_on(kernel_arch, machine) else None


def why_not_here(arch: str) -> str:
    """Why this machine does not run Kernels of an architecture; "" when it does."""
    if not on_cuda(arch):
        machine = machine_arch()
        return "" if runs_on(arch, machine) else f"is for {arch}; this machine is {machine}"
    device = cuda_device()
    if device is None:
        return f"is for {arch}; torch sees no CUDA device here"
    wanted, there = re.fullmatch(r"sm_(\d+)", arch), re.fullmatch(r"sm_(\d+)", device[1])
    fits = wanted and there and int(wanted[1]) <= int(there[1])
    return "" if fits else f"is for {arch}; the CUDA device here is {device[1]}"


def active(op: str | None, only: str | None = None) -> Iterator[Active]:
    """Every Kernel that a pin names, of every registry. BadInput when an Op was named and none has it."""
    seen = False
    for root in registries.roots(only):
        kernels = [k for k in _libkgen.registry_list(root) if op is None or k["op"] == op]
        pins = {name: read_pins(root, name) for name in {k["op"] for k in kernels}}
        for kernel in kernels:
            own = tuple(p for p in pins[kernel["op"]] if p["kernel"] == kernel["id"] and p["arch"] == kernel["arch"])
            if own:
                seen = True
                yield Active(root, kernel, read_record(kernel), own)
    if op is not None and not seen:
        raise BadInput(f"{op}: no registry has an active kernel of that Op (see `kgen list`)")


# ---- Cases ----


def task_trials(one: Active) -> dict[str, Any]:
    """Trials by the hash of their Case's pin, from the registry's Task folder."""
    from . import spread
    from . import task as tasks

    if not (one.task_folder / "task.json").is_file():
        return {}
    task, found = tasks.read(one.task_folder), {}
    for i in range(len(task.cases)):
        made = spread.from_recipe(spread.recipe(task, i), f"Case {i} of the Task")
        found[_libkgen.case_key(one.contract, made.case)[1]] = made
    return found


def _exact_trial(one: Active, pin: Pin, from_task: dict[str, Any]) -> Any:
    from . import spread

    made = from_task.get(pin["name"])
    for entry in one.record.get("cases", []):
        if entry.get("case") == pin["name"] and "recipe" in entry:
            made = spread.from_recipe(entry["recipe"], "")
    return replace(made or spread.exact_trial(pin["key"]), label=f"{one.kernel['op']} {key_text(pin['key'])}")


def pin_trials(one: Active, pin: Pin, from_task: dict[str, Any]) -> list[Any]:
    """Cases of one pin: an exact one's as it was judged, a dynamic one's over a small spread. from_task: task_trials().
    BadInput: none is known here."""
    from . import spread

    if spread.is_dynamic(pin["key"]):
        return spread.range_trials(pin["key"])
    return [_exact_trial(one, pin, from_task)]


@dataclass(frozen=True)
class Trials:
    """What a Kernel is judged or built for. dynamic ones are built for any size. left_out: pins, with the reason."""

    exact: list[Any]
    dynamic: list[Any]
    left_out: list[str]


def trials_of(one: Active) -> Trials:
    """Cases of all pins of a Kernel."""
    from . import spread

    from_task, found = task_trials(one), Trials([], [], [])
    for pin in one.pins:
        try:
            kind = found.dynamic if spread.is_dynamic(pin["key"]) else found.exact
            kind.extend(pin_trials(one, pin, from_task))
        except BadInput as e:
            found.left_out.append(f"{key_text(pin['key'])}: {e}")
    return found


# ---- verify ----


def _judge(one: Active, trials: Trials, say: Callable[[str], object]) -> list[Any]:
    from . import spread

    found = []
    for group, any_size in ((trials.exact, False), (trials.dynamic, True)):
        if not group or (found and found[-1].verdict != "pass"):
            continue
        found.append(
            spread.judge(
                one.contract, one.source, one.file, one.record.get("tunables") or None, group, arch=one.kernel["arch"],
                any_size=any_size, folder=one.task_folder, say=say, index=one.device.index or 0,
            )
        )  # fmt: skip
    return found


def _renew(one: Active, found: list[Any]) -> None:
    """The Record with this machine's environment, and only the Programs that were judged here."""
    import torch

    fresh = found[-1].record
    programs = {p for e in found for p in e.programs}
    record = {
        **one.record,
        "environment": {**fresh["environment"], "torch": torch.__version__},
        "created": fresh["created"],
        "programs": [p for p in one.record.get("programs", []) if p in programs],
    }
    _libkgen.registry_promote(
        one.registry, one.contract, None, one.source, record, [p["key"] for p in one.pins]
    )


def _verify_one(one: Active, say: Callable[[str], object]) -> Verified:
    row = Verified(label(one.kernel), one.kernel["id"], one.kernel["arch"], str(one.registry), "skipped")
    row.message = why_not_here(row.arch)
    if row.message:
        return row
    trials = trials_of(one)
    row.left_out = trials.left_out
    if not trials.exact and not trials.dynamic:
        row.message = "no Case of it is known here"
        return row
    found = _judge(one, trials, say)
    row.cases, row.sets = sum(e.cases for e in found), sum(e.sets for e in found)
    row.programs = len({p for e in found for p in e.programs})
    bad = next((e for e in found if e.verdict != "pass"), None)
    if bad is not None:
        row.state, row.message = "fail", f"{bad.verdict}: {bad.message}"
        return row
    row.state = "pass"
    if row.left_out:  # its evidence is not whole, so it stays as old as it is
        row.message = "its Record is not renewed: a pin could not be judged"
        return row
    try:
        _renew(one, found)
    except KgenError as e:
        row.state, row.message = "unwritten", str(e)
    return row


def verify(
    op: str | None = None, *, registry: str | Path | None = None, say: Callable[[str], None] = lambda _: None
) -> list[Verified]:
    """Judges the active Kernels (of one Op, of one registry) again on this machine and renews the evidence of those that
    pass, so that the policy "strict" serves them. Cases of exact pins are rebuilt as they were judged, dynamic ones get a
    few sizes over their range. After it, kgen.reload() takes the new evidence into this process."""
    return list(_verified(op, registry, Progress(quiet=True), say))


def _verified(
    op: str | None, registry: str | Path | None, progress: Progress, say: Callable[[str], None] = lambda _: None
) -> Iterator[Verified]:
    with stoppable():
        for one in active(op, str(registry) if registry is not None else None):
            name = label(one.kernel)
            with progress.step(f"{name} {one.kernel['arch']}") as tell:
                row = _verify_one(one, lambda text, n=name, t=tell: (t(text), say(f"{n}: {text}")))
            yield row


def _show(row: Verified) -> str:
    counts = f"{row.cases} Cases, {row.sets} input sets" + (f", {row.programs} Programs" if row.programs else "")
    tail = f": {row.message}" if row.message else ""
    return f"{row.kernel} {row.arch} {row.id[:12]} {row.state}{f' ({counts})' if row.cases else ''}{tail}"


def run_verify(args: argparse.Namespace) -> int:
    """`kgen verify`: 1 when a Kernel fails, 3 when evidence could not be written."""
    rows = []
    for row in _verified(args.op, args.registry, Progress(quiet=args.json)):
        rows.append(row)
        print(json.dumps(asdict(row)) if args.json else _show(row), flush=True)
        for left in row.left_out if not args.json else ():
            print(f"  not judged: {left}")
    if not rows and not args.json:
        print("no active kernels to verify")
    if any(r.state == "fail" for r in rows):
        return 1
    return 3 if any(r.state == "unwritten" for r in rows) else 0


# ---- why ----

_TENSOR = re.compile(r"(float32|float64|float16|bfloat16|int8|uint8|int16|int32|int64|bool)\[([0-9, ]*)\]")


def parse_value(text: str) -> Any:
    """An argument of `kgen why`: a tensor float32[2,3], a number, True, False, None, or a list of numbers."""
    import torch

    tensor = _TENSOR.fullmatch(text)
    if tensor:
        try:
            shape = [int(n) for n in tensor[2].split(",") if n.strip()]
        except ValueError:
            raise BadInput(f"{text}: sizes are whole numbers between commas, as in float32[1,8,1024,64]") from None
        try:
            return torch.zeros(shape, dtype=getattr(torch, tensor[1]))
        except RuntimeError as e:
            raise BadInput(f"{text}: {str(e).splitlines()[0]}") from None
    if text in ("True", "False", "None"):
        return {"True": True, "False": False, "None": None}[text]
    try:
        return json.loads(text)
    except ValueError:
        raise BadInput(
            f"{text}: an argument is a tensor such as float32[1,8,1024,64], a number, True, False, None, or name=value"
        ) from None


def parse_call(words: Sequence[str]) -> tuple[list[Any], dict[str, Any]]:
    """Positional and named arguments."""
    args: list[Any] = []
    named: dict[str, Any] = {}
    for word in words:
        name = re.match(r"([A-Za-z_][A-Za-z0-9_]*)=", word)
        if name:
            named[name[1]] = parse_value(word[name.end() :])
        elif named:
            raise BadInput(f"{word}: comes after a named argument")
        else:
            args.append(parse_value(word))
    return args, named


def run_why(args: argparse.Namespace) -> int:
    """`kgen why`."""
    from . import serving

    given, named = parse_call(args.args)
    try:
        print(serving.why(args.op, *given, **named))
    except (TypeError, ValueError, RuntimeError) as e:
        raise BadInput(f"{args.op}: {(str(e).strip().splitlines() or [type(e).__name__])[0]}") from e
    return 0


# ---- build ----


@dataclass
class Built:
    """One image. state: built, there or failed."""

    kernel: str
    what: str
    state: str
    path: str = ""
    message: str = ""


def build(arch: str | None = None, *, registry: str | Path | None = None) -> Iterator[Built]:
    """Compiles into the image cache ($KGEN_CACHE) what a machine of this architecture loads for the active Kernels: exact
    Cases, dynamic pins for any size, attention also with the Programs that it was judged on. That machine then needs no
    compiler. EnvironmentLacks: this one has none, or its cache cannot be written."""
    machine = arch or machine_arch()
    gpu_level(machine) if on_cuda(machine) else arch_level(machine)
    for one in active(None, str(registry) if registry is not None else None):
        target = built_for(one.kernel["arch"], machine)
        if target is None:
            continue
        trials = trials_of(one)
        yield from (Built(label(one.kernel), left, "failed", message="its Case is not known here") for left in trials.left_out)
        for trial, any_size in [*((t, False) for t in trials.exact), *((t, True) for t in _one_a_unit(trials.dynamic))]:
            yield from _build_one(one, trial, any_size, target)


def _one_a_unit(trials: list[Any]) -> list[Any]:
    """Sizes do not reach the text that is built for any size: one Trial of each dtype and Program is enough, but the
    plan must be for it, so the others stay as a second choice."""
    kept: dict[tuple[str, str], list[Any]] = {}
    for t in trials:
        first = next(v for v in t.case["args"].values() if isinstance(v, dict))
        kept.setdefault((first["dtype"], (t.case.get("program") or {}).get("text", "")), []).append(t)
    return list(kept.values())


def _build_one(one: Active, trial: Any, any_size: bool, arch: str) -> Iterator[Built]:
    name = label(one.kernel)
    reason = ""
    for choice in trial if isinstance(trial, list) else [trial]:
        try:
            got = _libkgen.build_image(
                one.contract, choice.case, one.source, one.record.get("tunables") or {}, arch, any_size
            )
        except BadInput as e:
            reason = str(e)
            continue
        except EnvironmentLacks:
            raise
        except KgenError as e:
            yield Built(name, choice.label, "failed", message=str(e))
            return
        yield Built(name, choice.label, "there" if got["cached"] else "built", got["path"])
        return
    what = trial[0].label if isinstance(trial, list) else trial.label
    yield Built(name, what, "failed", message=reason)


def run_build(args: argparse.Namespace) -> int:
    """`kgen build`: 1 when an image could not be built."""
    counts: dict[str, int] = {}
    folders: set[str] = set()
    for row in build(args.arch, registry=args.registry):
        counts[row.state] = counts.get(row.state, 0) + 1
        print(f"{row.state:<6} {row.kernel} {row.what}" + (f": {row.message}" if row.message else ""))
        if row.path:
            folders.add(str(Path(row.path).parents[2]))
    total = ", ".join(f"{n} {state}" for state, n in counts.items())
    print(f"{sum(counts.values())} images for {args.arch or machine_arch()}: {total or 'none'}")
    if folders:
        print(f"ship {', '.join(sorted(folders))} and name it with KGEN_CACHE on the serving machine")
    return 1 if counts.get("failed") else 0
