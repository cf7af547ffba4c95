"""Input sets for judge and gate: drawn from a Case's recipe with secret seeds, with the fp64 oracle beside them."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Any

import torch

from . import reference as references
from .gate import GateSet
from .reference import Drawn, Expected, Reference
from .task import Task

# Sets drawn from the captured distribution; each further distribution gives one.
CAPTURED_SETS = 2
GATE_SETS = 3


@dataclass(frozen=True)
class CaseSets:
    """What a Case is judged on. dropped: distributions left out, with the reason."""

    sets: tuple[tuple[str, Drawn, Expected], ...]
    dropped: dict[str, str]


def secret_seed() -> int:
    """A seed that no Candidate can know."""
    return random.SystemRandom().getrandbits(62)


def for_judge(task: Task, reference: Reference, index: int) -> CaseSets:
    """The sets of one Case: captured ones first, then a set for each distribution that torch itself bears."""
    case = task.cases[index]
    kept, dropped = reference.distributions(case, secret_seed())
    names = ["captured"] * CAPTURED_SETS + [d for d in kept if d != "captured"]
    sets = []
    for name in names:
        drawn = references.draw(task, case, secret_seed(), name)
        sets.append((name, drawn, reference.expected(drawn)))
    return CaseSets(tuple(sets), dropped)


def tensors(task: Task, drawn: Drawn) -> dict[str, torch.Tensor | None]:
    """The tensor arguments in the contract's order; None for an optional one that is absent."""
    names = [a["name"] for a in task.contract["args"] if a["type"] in ("Tensor", "Tensor?")]
    return {n: drawn.args.get(n) for n in names}


def for_gate(task: Task, reference: Reference, index: int, limits: Any) -> list[GateSet]:
    """Fresh sets of the captured distribution. limits(expected, i) gives the norm and max error allowed for output i."""
    case, made = task.cases[index], []
    for _ in range(GATE_SETS):
        drawn = references.draw(task, case, secret_seed())
        e = reference.expected(drawn)
        made.append(
            GateSet(
                tensors(task, drawn),
                drawn.captured,
                e.outputs,
                tuple(e.torch_outputs[i].dtype for i in range(len(e.outputs))),
                tuple(limits(e, i) for i in range(len(e.outputs))),
            )
        )
    return made
