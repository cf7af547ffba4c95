"""How far an answer of an Op of a model's own may be off because of its inputs: what their last digits do to the oracle.

The tolerance (csrc/tune/compare.c) takes an Op for well conditioned, or torch's own error for a sign that it is not. But
torch may sum in fp64 where an honest kernel sums in fp32, and a sum that cancels, a variance of numbers with an offset or
a quotient of nearly nothing then has no error to learn from. So the oracle is computed again on inputs that are changed
as an honest sum in the accumulator changes them: a sum of K terms in any order is the exact sum of terms that are off by
sqrt(K) roundings each (backward error, for roundings of mean zero; K roundings where all terms are the same number, since
those round the same way; where they lie decades apart, small ones are lost whole, LOST). What that does to an output, it may be off, and an integer that changes is decided by rounding:
any value will do there. Equal numbers are moved alike, so that comparisons come out as they did; but the mean of a constant row is
off beside the row itself, and a difference of nothing, over a variance of nothing, shows it. So where numbers repeat they are also
moved apart, and that counts where the outputs follow in proportion: what jumps is a comparison, and no rounding. Canonical Ops have no such slack, since their kernels are held to torch's accuracy, but for one
thing: where all terms are as good as equal, a sum in one chain is off by half a rounding a term.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch

from .compare import ANY
from .distributions import PRODUCTS

if TYPE_CHECKING:
    from .reference import Drawn, Reference

# How often the oracle is computed again: of few elements more often, since chance weighs more in them.
FEW, SOME, MOST = 1 << 20, 1 << 22, 1 << 26
FLOAT_TRIALS, INTEGER_TRIALS = 3, 12
# Roundings that an honest kernel's value may be off where it decides an integer; more, so that trials find it.
DECIDED = 64
# How much of an output's change may be out of proportion to what its inputs were moved by.
PROPORTION = 0.25
# Operations whose choice among equals torch leaves open.
OPEN_TIES = frozenset({"topk", "sort", "argsort", "kthvalue", "median", "nanmedian", "mode", "msort"})
# Of a set's integers, how many may be decided by rounding before the set says too little.
OPEN_SHARE = 0.25

# Of terms over six decades a running sum loses the small ones whole, each time downwards: one chain of such positive numbers is
# off by K / 57 roundings (1,000 to 2^20 terms, simulated), where roundings of mean zero leave sqrt(K).
LOST = 40

# The longest chain of equal terms that an honest kernel of a canonical Op adds up; longer rows have several chains.
CHAIN = 1024

Tensors = tuple[torch.Tensor, ...]


def settle(
    reference: Reference, drawn: Drawn, own: Tensors, outputs: Tensors
) -> tuple[Tensors, tuple[tuple[float, float], ...]]:
    """The oracle with ANY where rounding decides, and the slack of each output by norm and by its worst element."""
    if not reference.reduction:
        return outputs, _chain_slack(reference.task.op, drawn, len(outputs))
    floats = [x for x in drawn.args.values() if isinstance(x, torch.Tensor) and x.dtype.is_floating_point]
    size = sum(x.numel() for x in floats) + sum(o.numel() for o in outputs)
    none = tuple((0.0, 0.0) for _ in outputs)
    if not floats or size > MOST:
        return outputs, none
    terms = max(1, reference.reduction)
    roundings = float(terms) if drawn.repeats else math.sqrt(terms)
    slack = list(none)
    if any(o.dtype.is_floating_point for o in outputs):
        for trial in range(FLOAT_TRIALS if size <= FEW else 1):
            moved = reference.wide(_moved(drawn, roundings, trial))[0]
            slack = [_larger(s, _change(a, b)) for s, a, b in zip(slack, moved, outputs, strict=True)]
        if drawn.repeats:
            # One chain of equal terms is off by half a rounding a term at the most.
            apart = _apart(reference, drawn, outputs, roundings / 2)
            slack = [_larger(s, a) for s, a in zip(slack, apart, strict=True)]
        if drawn.decades:
            shrunk = reference.wide(_shrunk(drawn, terms / LOST))[0]
            slack = [_larger(s, _change(a, b)) for s, a, b in zip(slack, shrunk, outputs, strict=True)]
    if any(not o.dtype.is_floating_point for o in outputs):
        ties = bool(reference.operations & OPEN_TIES)
        unsure = [torch.zeros(o.shape, dtype=torch.bool, device=o.device) for o in outputs]
        for trial in range(INTEGER_TRIALS if size <= SOME else 3):
            moved = reference.wide(_moved(drawn, DECIDED * roundings, 100 + trial, ties))[0]
            unsure = [u | (a != b) for u, a, b in zip(unsure, moved, outputs, strict=True)]
        outputs = tuple(
            o if o.dtype.is_floating_point else o.to(torch.int64).masked_fill(u | (t.to(o.dtype) != o), ANY)
            for o, u, t in zip(outputs, unsure, own, strict=True)
        )
    return outputs, tuple(slack)


def _apart(reference: Reference, drawn: Drawn, outputs: Tensors, roundings: float) -> list[tuple[float, float]]:
    """What it does to each output that equal numbers are moved apart; nothing where that is out of proportion."""
    full, half = (reference.wide(_moved(drawn, r, 0, alike=False))[0] for r in (roundings, roundings / 2))
    found = []
    for a, b, o in zip(full, half, outputs, strict=True):
        if o.dtype.is_floating_point:
            far = torch.nan_to_num((a - o).double(), 0.0, 0.0, 0.0)
            bent = far - 2 * torch.nan_to_num((b - o).double(), 0.0, 0.0, 0.0)
            found.append(_change(a, o) if bent.norm() <= PROPORTION * far.norm() else (0.0, 0.0))
        else:
            found.append((0.0, 0.0))
    return found


def _rounding(dtype: torch.dtype) -> float:
    """Half a unit in the last place of the accumulator of a dtype, beside the number."""
    return 2.0**-53 if dtype == torch.float64 else 2.0**-24


def _chain_slack(op: str, drawn: Drawn, outputs: int) -> tuple[tuple[float, float], ...]:
    """Of softmax and attention: their rows of weights are sums of equal terms when the inputs are all alike, as those of a
    product are. The norms have none."""
    x, key, dim = drawn.args.get("input"), drawn.args.get("key"), drawn.args.get("dim")
    if op in PRODUCTS:
        dim = -1
    summed = key if dim is None else x
    if op == "conv2d":  # all that a weight holds
        summed = drawn.args["weight"].flatten(1)
    if not drawn.repeats or not isinstance(summed, torch.Tensor):
        return tuple((0.0, 0.0) for _ in range(outputs))
    at = 2 if dim is None else dim
    row = summed.shape[at] if summed.ndim else 1
    off = min(row, CHAIN) / 2 * _rounding(summed.dtype)
    return tuple((off, 2 * off) for _ in range(outputs))


def open_share(outputs: Tensors) -> float:
    """The largest part of an integer output that rounding decides."""
    integers = [o for o in outputs if not o.dtype.is_floating_point and o.numel()]
    return max((float((o == ANY).double().mean()) for o in integers), default=0.0)


def _larger(a: tuple[float, float], b: tuple[float, float]) -> tuple[float, float]:
    return max(a[0], b[0]), max(a[1], b[1])


def _change(got: torch.Tensor, want: torch.Tensor) -> tuple[float, float]:
    """What moved, in units of the oracle; nothing where an element came to be finite or not so."""
    from .reference import error

    found = error(got, want) if want.dtype.is_floating_point else (0.0, 0.0)
    return found if math.isfinite(found[0]) and math.isfinite(found[1]) else (0.0, 0.0)


def _moved(drawn: Drawn, roundings: float, trial: int, ties: bool = False, alike: bool = True) -> Drawn:
    """The inputs in fp64, each element off by at most so many roundings of its accumulator; equal ones alike, or each by
    itself."""
    from dataclasses import replace

    def move(x: object, at: int) -> object:
        if not isinstance(x, torch.Tensor) or not x.dtype.is_floating_point:
            return x
        unit = _rounding(x.dtype)
        wide = x.double()
        place = torch.arange(x.numel(), dtype=torch.float64, device=x.device).view(x.shape)
        scattered = _noise(place + (at + 1) * 0.5, trial)
        noise = _noise(wide, trial) if alike else scattered
        step = torch.where(wide.isfinite(), wide, 0.0) * (noise * (roundings * unit))
        if not ties:
            return wide + step
        # Equals are told apart, zeros too, by less than any other difference.
        least = float(torch.nan_to_num(wide.abs(), 0, 0, 0).max()) * 2.0**-40 if x.numel() else 0.0
        return wide + step + scattered * least

    return replace(drawn, args={n: move(x, i) for i, (n, x) in enumerate(drawn.args.items())})


def _shrunk(drawn: Drawn, roundings: float) -> Drawn:
    """The inputs in fp64, all smaller by so many roundings."""
    from dataclasses import replace

    def smaller(x: object) -> object:
        if not isinstance(x, torch.Tensor) or not x.dtype.is_floating_point:
            return x
        return x.double() * (1 - roundings * _rounding(x.dtype))

    return replace(drawn, args={n: smaller(x) for n, x in drawn.args.items()})


def _noise(x: torch.Tensor, trial: int) -> torch.Tensor:
    """Uniform in [-1, 1) by the bits of each value: equal numbers move alike, so that equals stay equal."""
    bits = (x.contiguous() + 0.0).view(torch.int64)
    mixed = (bits ^ (bits >> 29)) * 0x2545F4914F6CDD1D + (trial + 1) * 0x3779B97F4A7C15
    mixed = (mixed ^ (mixed >> 32)) * 0x369DEA0F31A53F85
    return (mixed >> 11).double() / 2.0**52
