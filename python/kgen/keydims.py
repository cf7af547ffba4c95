"""A dim in a pin's key: one size, or {"min", "max"}, the range that it was judged on (docs/formats.md, "Pin")."""

from __future__ import annotations

from typing import Any


def of(low: int, high: int) -> int | dict[str, int]:
    """The dim of sizes low to high, both within."""
    return {"min": low, "max": high} if low < high else low


def ends(dim: Any) -> tuple[int, int]:
    """The least and the most of a dim."""
    return (int(dim["min"]), int(dim["max"])) if isinstance(dim, dict) else (int(dim), int(dim))


def inside(dim: Any, want: int) -> int:
    """The size of a dim that is nearest to `want`."""
    low, high = ends(dim)
    return min(max(want, low), high)
