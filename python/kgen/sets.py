"""Input sets for judge and gate: drawn from a Case's recipe with secret seeds, with the fp64 oracle beside them."""

from __future__ import annotations

import random
from dataclasses import dataclass

import torch

from . import reference as references
from .gate import GateSet
from .judge import Judge, tolerance
from .reference import DISTRIBUTIONS, Drawn, Expected, Reference
from .task import Task

# Sets drawn from the captured distribution; each further distribution gives one.
CAPTURED_SETS = 2
GATE_SETS = 3
# Fills that a distribution may take the place of.
FLOATING = ("normal", "uniform")


@dataclass(frozen=True)
class CaseSets:
    """What a Case is judged on. dropped: distributions left out, with the reason."""

    sets: tuple[tuple[str, Drawn, Expected], ...]
    dropped: dict[str, str]


def secret_seed() -> int:
    """A seed that no Candidate can know."""
    return random.SystemRandom().getrandbits(62)


def for_judge(task: Task, reference: Reference, index: int) -> CaseSets:
    """The sets of one Case: captured ones first, then one for each distribution that torch itself bears."""
    case = task.cases[index]
    dropped: dict[str, str] = {}
    floating = any(isinstance(v, dict) and v["fill"]["kind"] in FLOATING for v in case["args"].values())
    names = ["captured"] * CAPTURED_SETS + list(DISTRIBUTIONS[1:] if floating else ())
    sets: list[tuple[str, Drawn, Expected]] = []
    for name in names:
        drawn = references.draw(task, case, secret_seed(), name)
        expected = reference.expected(drawn)
        reason = reference.unusable(expected, sets[0][2], drawn) if name != "captured" else None
        if reason:
            dropped[name] = reason
        else:
            sets.append((name, drawn, expected))
    return CaseSets(tuple(sets), dropped)


def tensors(task: Task, drawn: Drawn) -> dict[str, torch.Tensor | None]:
    """The tensor arguments in the contract's order; None for an optional one that is absent."""
    names = [a["name"] for a in task.contract["args"] if a["type"] in ("Tensor", "Tensor?")]
    return {n: drawn.args.get(n) for n in names}


def fill(judge: Judge, task: Task, reference: Reference, index: int) -> dict[str, str]:
    """Adds a Case and its sets to a judge; the distributions that were left out, with the reason."""
    judge.add_case(task.cases[index])
    made = for_judge(task, reference, index)
    for name, drawn, e in made.sets:
        judge.add_set(
            index,
            [*tensors(task, drawn).values(), *drawn.captured],
            e.outputs,
            results=e.torch_outputs,
            torch_errors=list(zip(e.norm_err, e.max_err, strict=True)),
            name=name,
        )
    return made.dropped


def _limits(e: Expected, reduction: int, i: int) -> tuple[float, float]:
    oracle = e.outputs[i]
    finite = oracle[torch.isfinite(oracle)] if oracle.is_floating_point() else oracle
    scale = float(finite.abs().max()) if finite.numel() else 0.0
    return tolerance(e.torch_outputs[i].dtype, reduction, (e.norm_err[i], e.max_err[i]), scale)


def for_gate(judge: Judge, task: Task, reference: Reference, index: int) -> list[GateSet]:
    """Fresh sets of the captured distribution, with the judge's own limits."""
    case, made = task.cases[index], []
    reduction = int(judge.describe(index)["reduction"])
    for _ in range(GATE_SETS):
        drawn = references.draw(task, case, secret_seed())
        e = reference.expected(drawn)
        outputs = range(len(e.outputs))
        made.append(
            GateSet(
                tensors(task, drawn),
                drawn.captured,
                e.outputs,
                tuple(t.dtype for t in e.torch_outputs),
                tuple(_limits(e, reduction, i) for i in outputs),
            )
        )
    return made
