"""For which rows a Kernel that ships is no slower than torch: its pins are for those, and other calls are left to torch.

A Kernel for rows of any length is at its best near the lengths that its tunables are for; far from them it may take many times
what torch takes. So a few lengths over its range are called with few rows, with some and with many, through torch.ops.kgen in
turn with torch's own op, and the longest stretch of lengths where the worst of them holds is what it ships for.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from . import baselines, devices, gate_child, keydims, serving, spread
from .baselines import Inputs
from .errors import KgenError
from .task import DTYPES

# Elements of a call, and the least ratio of torch's time to the Kernel's.
TOTALS = (1 << 16, 1 << 21, 1 << 25)
AT_LEAST = 0.97
LENGTHS, ROUNDS = 9, 9
# Turns of each side: a ratio that is no loss beyond doubt is measured again before it ends a stretch.
TURNS, MORE_TURNS, NO_DOUBT = 2, 6, 0.8


class NotServed(KgenError):
    """The Kernel is not for a call."""


Ratio = Callable[[int, int], float]


def lengths(low: int, high: int, most: int = LENGTHS) -> list[int]:
    """About so many over a range, both ends among them, evenly by their logarithm: multiples of 8 and odd ones in turn."""
    step = (high / low) ** (1 / max(1, most - 1))
    between = (low * step**i for i in range(1, most - 1))
    found = {low, high, *(max(low, min(high, int(n) // 8 * 8 if i % 2 else int(n) | 1)) for i, n in enumerate(between))}
    return sorted(found)


def stretch(
    low: int, high: int, ratio: Ratio, totals: Sequence[int] = TOTALS, say: Callable[[str], None] = lambda _: None
) -> tuple[int, int] | None:
    """The longest stretch of lengths, by their logarithm, each as fast as torch with any number of rows; None: no length is."""

    def measured(n: int) -> list[float]:
        """Of a length that the Kernel is not for (no multiple of 8, say) nothing: it stays torch's within the range, too."""
        try:
            return [ratio(max(1, total // n), n) for total in totals]
        except NotServed:
            return []

    at = lengths(low, high)
    found = [measured(n) for n in at]
    say("; ".join(f"{n}: {' '.join(f'{r:.2f}' for r in ratios) or 'not for it'}" for n, ratios in zip(at, found, strict=True)))
    holds = [min(ratios, default=1.0) >= AT_LEAST for ratios in found]
    if not any(found):
        return None
    best: tuple[float, tuple[int, int]] | None = None
    for i in range(len(at)):
        for j in range(i, len(at)):
            if all(holds[i : j + 1]) and any(found[i : j + 1]) and (best is None or math.log(at[j] / at[i]) > best[0]):
                best = math.log(at[j] / at[i]), (at[i], at[j])
    return best[1] if best else None


def beside_torch(registry: Path, op: str, dtype: str, affine: Sequence[str], device: torch.device) -> Ratio:
    """torch's eager time over that of the registry's Kernel, for rows of softmax or a norm. NotServed: it does not serve."""

    def ratio(m: int, n: int) -> float:
        norm = op in spread.AFFINE
        trial = spread.norm_trial(op, dtype, m, n, affine) if norm else spread.softmax_trial(dtype, m, n)
        case = trial.on(device.type).case
        tensors = {k: v for k, v in case["args"].items() if isinstance(v, dict) or v is None}
        x = Inputs({k: v and torch.randn(v["shape"], dtype=DTYPES[dtype], device=device) for k, v in tensors.items()})
        ours, theirs = gate_child.served(case, list(case["args"])), baselines.of(case)[0].build()
        why = serving.why(ours, x)
        if why.fallbacks or any(d.registry != str(registry) for d in why.decisions):
            raise NotServed(f"{trial.label}: not served by the Kernel: {why}")
        best = {"ours": math.inf, "theirs": math.inf}
        for turn in range(MORE_TURNS):
            for name, f in (("ours", ours), ("theirs", theirs)):
                best[name] = min(best[name], statistics.median(devices.seconds_of(lambda f=f: f(x), device, ROUNDS)))
            found = best["theirs"] / best["ours"]
            if turn + 1 >= TURNS and not NO_DOUBT < found < AT_LEAST:
                break
        return found

    return ratio


def within(key: dict[str, Any], rows: tuple[int, int]) -> dict[str, Any]:
    """A pin's key for these lengths alone."""
    return {**key, "dims": {**key["dims"], "N": keydims.of(*rows)}}
