"""Input sets for judge and gate: drawn from a Case's recipe with secret seeds, with the fp64 oracle beside them.

Sets of a GPU are made there, one at a time, and stay there while there is room for them: a Task is judged within twice
the size of its tensors and SPARE bytes. What has no room lies in host memory, which the judge reads in parts.
"""

from __future__ import annotations

import math
import os
import random
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch

from . import compare, devices, soundness
from .distributions import FLOATING, SHARED, SHUFFLED, names_for
from .errors import BadInput
from .gate import GateSet, SeededSet
from .graphs import first_line
from .judge import Judge, tolerance
from .mutants import Examiner
from .reference import Drawn, Expected, Reference, alike, can_shuffle
from .task import DTYPES, Task

# Sets drawn from the captured distribution; each further distribution gives one.
CAPTURED_SETS = 2
GATE_SETS = 3
# Outputs that are less than this of the captured ones' size cancelled out, and what is left of them are roundings.
CANCELLED = 1e-3
# Beside twice its tensors, what judging a Task may take of a GPU; and of that, what the judge keeps for its own copies.
SPARE, STAGING = 4 << 30, 1 << 30
# Sets of the gate with more bytes than this are made anew whenever they are looked at, and there are two of them.
GATE_HELD = 1 << 30


@dataclass(frozen=True)
class CaseSets:
    """What a Case is judged on. dropped: distributions left out, with the reason."""

    sets: tuple[tuple[str, Drawn, Expected], ...]
    dropped: dict[str, str]


def secret_seed() -> int:
    """A seed that no Candidate can know."""
    return random.SystemRandom().getrandbits(62)


def each(
    task: Task, reference: Reference, index: int, dropped: dict[str, str], most: int | None = None
) -> Iterator[tuple[str, Drawn, Expected]]:
    """The sets of one Case, made one after the other: captured ones first, then one for each distribution that torch itself
    bears. dropped gets those that are left out, with the reason; most: how many there may be."""
    case = task.cases[index]
    names = distributions(task, index)
    base: Expected | None = None
    usual: list[float] = []
    special = False
    count = 0
    for name in names:
        if most is not None and count >= most:
            dropped[name] = "there is no room for it in this machine's memory"
            continue
        drawn = reference.draw(case, secret_seed(), name)
        if base is None:
            soundness.check(reference, drawn)
        try:
            expected = reference.expected(drawn)
        except (RuntimeError, ValueError, IndexError) as e:
            if devices.is_out_of_memory(e):
                raise
            if base is None:
                raise BadInput(f"{task.folder}: the reference cannot be computed in fp64: {first_line(e)}") from e
            dropped[name] = f"the reference raises {type(e).__name__} on it"
            continue
        if base is None:
            special = not all(devices.all_finite(t) for t in expected.torch_outputs if t.dtype.is_floating_point)
            usual = _size_of(expected.torch_outputs)
            base = replace(expected, outputs=(), torch_outputs=())
        captured = name == "captured"
        reason = None if captured else reference.unusable(expected, base, drawn, name, special and name == SHUFFLED)
        if not reason and name == SHARED and any(
            x < CANCELLED * y for x, y in zip(_size_of(expected.outputs), usual, strict=True)
        ):
            reason = "outputs cancel out where arguments are one tensor"
        if reason:
            dropped[name] = reason
        else:
            count += 1
            yield name, drawn, expected
        del drawn, expected  # before the next ones are made


def distributions(task: Task, index: int) -> list[str]:
    """The names of a Case's sets. One captured set is enough where nothing in it is drawn."""
    fills = [v["fill"]["kind"] for v in task.cases[index]["args"].values() if isinstance(v, dict)]
    drawn = any(f != "values" for f in fills)
    names = ["captured"] * (CAPTURED_SETS if drawn else 1)
    names += names_for(task.op)[1:] if any(f in FLOATING for f in fills) else ()
    if can_shuffle(task, task.cases[index]):
        names.append(SHUFFLED)
    return [*names, SHARED] if alike(task.cases[index]) else names


def _size_of(outputs: Iterable[torch.Tensor]) -> list[float]:
    """The root mean square of each floating output; 1 for the others."""

    def one(t: torch.Tensor) -> float:
        wide = torch.float32 if t.is_cuda else torch.float64  # a GPU may have no room for fp64 copies
        return float(torch.linalg.vector_norm(t, dtype=max(wide, t.dtype, key=lambda d: d.itemsize))) / math.sqrt(t.numel())

    return [one(t) if t.is_floating_point() and t.numel() else 1.0 for t in outputs]


def for_judge(task: Task, reference: Reference, index: int) -> CaseSets:
    """The sets of one Case, all of them at once."""
    dropped: dict[str, str] = {}
    return CaseSets(tuple(each(task, reference, index, dropped)), dropped)


def tensors(task: Task, drawn: Drawn) -> dict[str, torch.Tensor | None]:
    """The tensor arguments in the contract's order; None for an optional one that is absent."""
    names = [a["name"] for a in task.contract["args"] if a["type"] in ("Tensor", "Tensor?")]
    return {n: drawn.args.get(n) for n in names}


def _bytes(given: Any) -> int:
    return sum(t.numel() * t.element_size() for t in given if t is not None)


def _meta(x: torch.Tensor) -> torch.Tensor:
    """Its dtype and shape, without its values."""
    return torch.empty_strided(x.shape, x.stride(), dtype=x.dtype, device="meta")


class Placing:
    """Where the sets of a Case are kept: on the CPU as they are; on a GPU there while `room` lasts, else in host memory."""

    def __init__(self, case_bytes: int, output_bytes: int, room: int | None = None):
        """case_bytes: of inputs and outputs. The judge has two copies of the outputs, and one of the inputs."""
        self.room = case_bytes + SPARE - STAGING - output_bytes if room is None else room

    def put(self, given: list[torch.Tensor | None]) -> list[torch.Tensor | None]:
        """Tensors of one set."""
        if not any(t is not None and t.is_cuda for t in given):
            return given
        apart = {id(t): t for t in given if t is not None}  # one tensor may be given for several
        size = _bytes(apart.values())
        if size <= self.room:
            self.room -= size
            return given
        moved = {k: t.cpu() for k, t in apart.items()}
        return [t if t is None else moved[id(t)] for t in given]


def host_sets(set_bytes: int, free: int | None = None) -> int:
    """How many sets of this size half of the host's free memory holds; at least one of each captured one."""
    free = _host_free() if free is None else free
    return max(CAPTURED_SETS, free // 2 // max(1, set_bytes))


def _host_free() -> int:
    try:
        with open("/proc/meminfo") as f:
            return next(int(line.split()[1]) * 1024 for line in f if line.startswith("MemAvailable:"))
    except (OSError, StopIteration):
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2


def add(judge: Judge, task: Task, index: int, name: str, drawn: Drawn, e: Expected, placing: Placing | None = None) -> None:
    """Gives one set to a judge. What torch gave counts by its errors, dtypes and sizes alone."""
    inputs: list[torch.Tensor | None] = [*tensors(task, drawn).values(), *drawn.captured]
    wanted = [o["name"] not in drawn.skip for o in task.contract["outputs"]]

    def all_outputs(found: Iterable[Any], absent: Any) -> list[Any]:
        it = iter(found)
        return [next(it) if w else absent for w in wanted]

    oracles: list[torch.Tensor | None] = all_outputs(e.outputs, None)
    if placing is not None:
        placed = placing.put([*inputs, *oracles])
        inputs, oracles = placed[: len(inputs)], placed[len(inputs) :]
    judge.add_set(
        index,
        inputs,
        oracles,
        results=all_outputs(map(_meta, e.torch_outputs), None),
        torch_errors=all_outputs(zip(e.norm_err, e.max_err, strict=True), None),
        slack=all_outputs(e.slack, (0.0, 0.0)) if e.slack else (),
        name=name,
    )


def fill(
    judge: Judge, task: Task, reference: Reference, index: int, examiner: Examiner | None = None
) -> dict[str, str]:
    """Adds a Case and its sets to a judge; the distributions that were left out, with the reason. examiner: looks at each set."""
    judge.add_case(task.cases[index])
    elements = sum(math.prod(o["shape"]) for o in judge.describe(index)["outputs"])
    soundness.check_size(task, index, elements, _host_free())
    dropped: dict[str, str] = {}
    placing, most = None, None
    device = devices.of_case(task.cases[index], reference.index)
    if device.type == "cuda":
        about = judge.describe(index)
        outputs = sum(math.prod(o["shape"]) * _size(o["dtype"]) for o in about["outputs"])
        inputs = sum(int(i["bytes"]) for i in about["inputs"])
        placing = Placing(inputs + outputs, outputs)
        wide = sum(8 * math.prod(o["shape"]) for o in about["outputs"])
        if inputs + wide > SPARE:
            most = host_sets(inputs + wide)
    with devices.room_for(device, "the judge's inputs and oracles"):
        for name, drawn, e in each(task, reference, index, dropped, most):
            add(judge, task, index, name, drawn, e, placing)
            if examiner is not None:
                examiner.look(index, int(judge.describe(index)["reduction"]), drawn, e)
            del drawn, e
    devices.release(device)
    return dropped


def _size(dtype: str) -> int:
    return torch.empty(0, dtype=DTYPES[dtype]).element_size()


def limits(e: Expected, reduction: int, i: int, precision: str) -> tuple[float, float]:
    """Norm and largest error that the judge lets pass on output i. reduction, precision: of the Case."""
    oracle = e.outputs[i]
    if oracle.is_cuda:
        scale = compare.scale_of(oracle) if oracle.numel() else 0.0
    else:
        finite = oracle[torch.isfinite(oracle)] if oracle.is_floating_point() else oracle[oracle != compare.ANY]
        scale = float(finite.abs().max()) if finite.numel() else 0.0
    allowed = tolerance(e.torch_outputs[i].dtype, reduction, (e.norm_err[i], e.max_err[i]), scale, precision)
    more = e.slack[i] if e.slack else (0.0, 0.0)
    return allowed[0] + more[0], allowed[1] + more[1]


def for_gate(judge: Judge, task: Task, reference: Reference, index: int) -> list[GateSet | SeededSet]:
    """Fresh sets of the captured distribution, with the judge's own limits."""
    case = task.cases[index]
    reduction = int(judge.describe(index)["reduction"])
    device, made, count = devices.of_case(case, reference.index), [], GATE_SETS
    with devices.room_for(device, "the gate's inputs and oracles"):
        while len(made) < count:
            one, size = _gate_set(task, reference, case, reduction)
            if size > GATE_HELD and device.type == "cuda":
                count = 2
            made.append(one)
    devices.release(device)
    return made


def _gate_set(
    task: Task, reference: Reference, case: dict[str, Any], reduction: int
) -> tuple[GateSet | SeededSet, int]:
    seed = secret_seed()
    drawn = reference.draw(case, seed)
    e = reference.expected(drawn)
    dtypes = tuple(t.dtype for t in e.torch_outputs)
    allowed = tuple(limits(e, reduction, i, str(case["precision"])) for i in range(len(e.outputs)))
    given = tensors(task, drawn)
    size = _bytes([*given.values(), *drawn.captured, *e.outputs])
    if size <= GATE_HELD or case["device"] == "cpu":
        return GateSet(given, drawn.captured, e.outputs, dtypes, allowed), size

    def again() -> Drawn:
        return reference.draw(case, seed)

    return SeededSet(
        {n: None if t is None else _meta(t) for n, t in given.items()},
        tuple(_meta(t) for t in drawn.captured),
        tuple(_meta(t) for t in e.outputs),
        dtypes,
        allowed,
        lambda: _inputs_again(task, again()),
        lambda: _oracles_again(reference, again()),
    ), size


def _inputs_again(task: Task, drawn: Drawn) -> tuple[dict[str, torch.Tensor | None], tuple[torch.Tensor, ...]]:
    return tensors(task, drawn), drawn.captured


def _oracles_again(reference: Reference, drawn: Drawn) -> tuple[torch.Tensor, ...]:
    with torch.no_grad(), devices.arithmetic(reference.task.cases[0]):
        return reference.wide(drawn)[0]


