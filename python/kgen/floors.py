"""How fast parts of a model could be at best on this machine, for reports: a bound by arithmetic, and by bytes where no cache
holds them. Never a verdict.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from . import devices
from .capture import Capture, Part
from .targets import CaseData, Machine, Target, fastest

# Below this a cache may hold what a part reads, and the rate of memory is no bound.
MEMORY_BYTES = 64 << 20


def of_case(case: CaseData, machine: Machine) -> float:
    """ns that a Case of a canonical Op takes for its arithmetic on the fastest unit that reaches its dtype's class; 0 where
    no rate is known (on a CPU, for all but float32)."""
    tensors = [x for x in case.args.values() if isinstance(x, torch.Tensor)]
    if not machine.tensor_flops and any(x.dtype != torch.float32 for x in tensors):
        return 0.0
    return replace(machine, bytes_per_second=math.inf).floor(case) * 1e9


def tensor_bytes(described: Sequence[dict[str, Any]]) -> int:
    """Of tensors as the judge describes them, each read or written once; what is expanded counts once."""
    total = 0
    for t in described:
        sizes = [n for n, stride in zip(t["shape"], t["stride"], strict=True) if stride != 0 or n == 0]
        total += math.prod(sizes) * getattr(torch, t["dtype"]).itemsize
    return total


def copy_ns(moved: int, device: torch.device = devices.CPU) -> float:
    """ns that a copy takes which reads and writes as many bytes as must move: on a CPU at the rate of the cache that holds
    them, or of memory; on a GPU with a cold L2. Below 1 MiB the call itself would be measured, so it is that size's rate."""
    n = max(moved, 1 << 20) // 8
    a = torch.zeros(n, device=device)
    b = torch.empty_like(a)
    if device.type == "cpu":
        seconds = fastest(lambda: b.copy_(a))
    else:
        seconds = min(devices.seconds_of(lambda: b.copy_(a), device, 10))
    return seconds * 1e9 * moved / (8 * n)


def own(capture: Capture, targets: Sequence[Target], machine: Machine) -> dict[str, float]:
    """By title: the share of its present time that a part of the model must take; what cannot be told is left out."""
    flops = _flops(capture)
    found = {}
    for target in targets:
        if target.part is None or not target.seconds:
            continue
        calls = target.part.calls.values()
        seconds = _bytes(target.part) * sum(c.count for c in calls) * len(target.paths) / machine.bytes_per_second
        dtype = _dtype(target.part, torch.float16 if machine.tensor_flops else torch.float32)
        if len(calls) == 1 and dtype is not None and (dtype == torch.float32 or machine.tensor_flops):
            seconds = max(seconds, sum(flops.get(p, 0) for p in target.paths) / machine.flops_of(dtype))
        if seconds > 0:
            found[target.title] = min(1.0, seconds / target.seconds)
    return found


def _flops(capture: Capture) -> dict[str, int]:
    """By path, in one run of the model; {} for a model that cannot be counted."""
    counter = FlopCounterMode(display=False)
    try:
        with capture.running() as root, counter:
            capture.call(root)
    except Exception:  # noqa: BLE001 - whatever a counting run meets, the model itself ran; a report goes without
        return {}
    name = type(root).__name__
    return {
        key[len(name) :].removeprefix("."): sum(ops.values())
        for key, ops in counter.get_flop_counts().items()
        if key == name or key.startswith(f"{name}.")
    }


def _dtype(part: Part, without: torch.dtype) -> torch.dtype | None:
    """What a part computes in, as far as its parameters tell: `without` any; None when they differ."""
    found = {p.dtype for p in part.module.parameters() if p.is_floating_point()} or {without}
    return found.pop() if len(found) == 1 else None


def _bytes(part: Part) -> int:
    """Bytes that a call of a part reads at least, 0 where a cache may hold them."""
    read = sum(p.numel() * p.element_size() for p in part.module.parameters())
    return read if read >= MEMORY_BYTES else 0
