"""The values that inputs are drawn with: the captured distribution, plain ones, and those that benign inputs hide mistakes from.

A row is a run of elements along the Op's own dim (softmax), else along the last one. Everything is drawn in fp64.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

# What every Candidate is judged on besides the captured distribution.
DISTRIBUTIONS = ("captured", "normal", "uniform", "offset", "heavy", "tiny", "onehot", "large", "rows", "extremes")
# Captured integers, bools and special numbers in another order: an answer must follow from them. Not one of the above:
# only some Cases have any.
SHUFFLED = "shuffled"
# Arguments that could be one tensor (of one dtype, shape and layout) are one, at one address, with captured values. Not one
# of the above either.
SHARED = "shared"
# Fills that a distribution may take the place of, and arguments may share.
FLOATING = ("normal", "uniform")
# What is for canonical Ops alone, whose contract says what comes of -inf, +inf and NaN: what torch gives.
# Of products: inputs whose large elements meet weights of zero, so that the small ones alone are felt.
PRODUCTS = ("linear", "matmul", "conv2d")
SPECIAL = {"softmax": ("masked", "specials"), **dict.fromkeys(PRODUCTS, ("shadowed", "specials"))}
# Those whose oracle may hold NaN and Inf; torch must have them in the same places.
NONFINITE = ("specials",)
ALL = (*DISTRIBUTIONS, *dict.fromkeys(n for names in SPECIAL.values() for n in names))
# Those that are made of rows, and how high their spikes are: an exponential overflows beyond 88, while products of spikes
# would leave nothing of an attention's other scores.
ROWS = ("onehot", "rows", "extremes", "masked", "specials")
STEEP, GENTLE = 100.0, 1.5


def names_for(op: str) -> tuple[str, ...]:
    """The distributions that Candidates of an Op are judged on, the captured one first."""
    return DISTRIBUTIONS + SPECIAL.get(op, ())


def of_argument(op: str, name: str, distribution: str) -> str:
    """The distribution of one argument. NaN and infinities in one factor of a product leave something to compare."""
    apart = op in PRODUCTS and (distribution == "shadowed" or (distribution in NONFINITE and name != "input"))
    return "normal" if apart else distribution


def shadow(x: Tensor, name: str, channels: int = 0) -> None:
    """In place: every seventh element along the summed dim is huge in the input and zero in what it meets. A scheme that
    scales a row by its largest element loses all others, and they are all that the result is made of. channels: of a group of a conv2d, which sums over them."""
    if name not in ("input", "weight", "other") or x.ndim < 2:
        return
    if channels:
        part = x.unflatten(1, (-1, channels))[:, :, 3::7]
    else:
        part = (x if name == "other" else x.mT)[..., 3::7, :]
    part.mul_(min(1e18, torch.finfo(x.dtype).max / 8) if name == "input" else 0.0)


def confine(x: Tensor) -> None:
    """In place: of a conv2d's input only some rows of one channel of one image keep their NaN and infinities. All sums that
    meet one are lost, and with one in every few rows none would be left."""
    kept = x[:1, :1, 1::5].clone()
    x.nan_to_num_(0.0, 0.0, 0.0)
    x[:1, :1, 1::5] = kept


def floats(
    fill: dict[str, Any], shape: tuple[int, ...], g: torch.Generator, distribution: str, dtype: torch.dtype, *,
    axis: int = -1, steep: float = GENTLE,
) -> Tensor:  # fmt: skip
    """Values in fp64, to be rounded to dtype. A distribution is drawn as such; 'captured' follows the fill."""
    if distribution in ROWS and shape:
        return _in_rows(shape, g, distribution, dtype, axis, steep)
    normal = torch.randn(shape, generator=g, dtype=torch.float64, device=g.device)
    if distribution == "captured":
        if fill["kind"] == "normal":
            return normal * float(fill["std"]) + float(fill["mean"])
        return _uniform(shape, g) * (fill["high"] - fill["low"]) + fill["low"]
    if distribution == "uniform":
        return _uniform(shape, g)
    if distribution == "offset":
        return normal * 0.1 + 1000.0
    if distribution == "heavy":
        # Student's t with 3 degrees of freedom: finite variance, large outliers.
        chi = sum(torch.randn(shape, generator=g, dtype=torch.float64, device=g.device) ** 2 for _ in range(3))
        return normal / torch.sqrt(torch.as_tensor(chi) / 3)
    if distribution == "tiny":
        return normal * 1e-6
    if distribution == "large":  # magnitudes over six decades
        return normal * 10.0 ** (_uniform(shape, g) * 6 - 3)
    return normal


def _uniform(shape: tuple[int, ...], g: torch.Generator) -> Tensor:
    return torch.rand(shape, generator=g, dtype=torch.float64, device=g.device)


def _in_rows(
    shape: tuple[int, ...], g: torch.Generator, distribution: str, dtype: torch.dtype, axis: int, steep: float
) -> Tensor:
    length = shape[axis]
    others = [n for d, n in enumerate(shape) if d != axis % len(shape)]
    rows = torch.randn((math.prod(others), length), generator=g, dtype=torch.float64, device=g.device)
    if rows.numel():
        rows = _MAKERS[distribution](rows, g, dtype, steep)
    return rows.view(*others, length).movedim(-1, axis).contiguous()


def _place(rows: Tensor, g: torch.Generator) -> Tensor:
    """A random index in each row, as a column."""
    return torch.randint(0, rows.shape[1], (rows.shape[0], 1), generator=g, device=g.device)


def _put(rows: Tensor, at: Tensor, value: float | Tensor) -> Tensor:
    values = torch.as_tensor(value, dtype=rows.dtype, device=rows.device).expand(at.shape)
    return rows.scatter(1, at, values)


def _onehot(rows: Tensor, g: torch.Generator, dtype: torch.dtype, steep: float) -> Tensor:
    return _put(torch.zeros_like(rows), _place(rows, g), 1.0)


Kind = Callable[[Tensor, torch.Generator, float], Tensor]


def _front(rows: Tensor, front: Tensor) -> Tensor:
    """The rows with their first half replaced."""
    half = (rows.shape[1] + 1) // 2
    return torch.cat((front.expand(rows.shape[0], -1)[:, :half], rows[:, half:]), 1)


def _steps(rows: Tensor) -> Tensor:
    return torch.arange(rows.shape[1], dtype=rows.dtype, device=rows.device).expand_as(rows)


def _spike(rows: Tensor, g: torch.Generator, steep: float) -> Tensor:
    return _put(rows, _place(rows, g), steep)


def _spike_at_end(rows: Tensor, g: torch.Generator, steep: float) -> Tensor:
    last = torch.full((rows.shape[0], 1), rows.shape[1] - 1, device=rows.device)
    return _put(rows, last, steep)


def _two_peaks(rows: Tensor, g: torch.Generator, steep: float) -> Tensor:
    return _put(_put(rows, _place(rows, g), steep), _place(rows, g), steep)


def _floor(rows: Tensor, g: torch.Generator, steep: float) -> Tensor:
    """One spike over a floor whose sum still counts: e^-14.5 each."""
    return _put(rows * 0.01 - 14.5 * min(1.0, steep / 14.5), _place(rows, g), 0.0)


# What a row may be made of. Each is the input on which some shortcut is wrong: no maximum, a sampled one, one of integers; a
# constant, periodic or arithmetic row taken for granted from its begin; rows with one begin taken for one row; ties; zeros.
_KINDS: tuple[Kind, ...] = (
    lambda rows, g, steep: rows[:, :1].expand_as(rows),
    _spike,
    _spike_at_end,
    lambda rows, g, steep: _front(rows, rows[:1]),
    lambda rows, g, steep: -steep * (0.5 + rows.abs()),
    lambda rows, g, steep: _front(rows, _steps(rows)[:1] * (steep / rows.shape[1]) + rows[:, :1]),
    lambda rows, g, steep: _front(rows, torch.zeros_like(rows[:1])),
    lambda rows, g, steep: torch.round(rows * 2) / 2,
    _two_peaks,
    lambda rows, g, steep: rows * (steep / 5),
    _floor,
    lambda rows, g, steep: _front(rows, rows[:, :1].expand_as(rows)),
    lambda rows, g, steep: _front(rows, torch.sin(_steps(rows)[:1] * (math.pi / 2))),
)


def _cyclic(rows: Tensor, g: torch.Generator, kinds: int) -> Tensor:
    """The kind of each row: all in turn, from a random one on, so that as many rows as kinds show each."""
    first = int(torch.randint(0, kinds, (1,), generator=g, device=g.device))
    return (torch.arange(rows.shape[0], device=rows.device) + first) % kinds


def _rows(rows: Tensor, g: torch.Generator, dtype: torch.dtype, steep: float) -> Tensor:
    out, kind = rows.clone(), _cyclic(rows, g, len(_KINDS))
    for k, make in enumerate(_KINDS):
        which = kind == k
        if which.any():
            out[which] = make(rows[which], g, steep)
    return out


def _extremes(rows: Tensor, g: torch.Generator, dtype: torch.dtype, steep: float) -> Tensor:
    """The largest finite values of the dtype, of either sign, among others; some rows are all of one."""
    most = torch.finfo(dtype).max
    kind = _cyclic(rows, g, 5).view(-1, 1)
    sign = torch.where(kind % 2 == 0, 1.0, -1.0).to(rows)
    out = rows.scatter(1, _place(rows, g), sign * most)
    both = out.scatter(1, _place(rows, g), -sign * most)
    return torch.where(kind == 4, sign * most, torch.where(kind >= 2, both, out))


def _masked(rows: Tensor, g: torch.Generator, dtype: torch.dtype, steep: float) -> Tensor:
    """-inf as masks have it: at random, in front, behind, everywhere but in one place, at every 16th; never a whole row."""
    n = rows.shape[1]
    at, cut, kind = _steps(rows), _place(rows, g), _cyclic(rows, g, 6).view(-1, 1)
    random = torch.rand(rows.shape, generator=g, dtype=rows.dtype, device=g.device) < 0.4
    kept = cut  # stays finite
    hidden = torch.zeros_like(random)
    for k, mask in enumerate((random, at < cut, at > cut, at != cut, at % 16 == 0, random | (at < n // 3))):
        hidden = torch.where(kind == k, mask, hidden)
    hidden = hidden & (at != kept)
    return torch.where(hidden, -math.inf, rows * torch.where(kind == 4, steep, 1.0))


def _specials(rows: Tensor, g: torch.Generator, dtype: torch.dtype, steep: float) -> Tensor:
    """NaN and infinities, alone and together, whole rows of -inf, and plain rows between them."""
    at, kind = _place(rows, g), _cyclic(rows, g, 7).view(-1, 1)
    made = (
        rows,
        _put(rows, at, math.nan),
        _put(rows, at, math.inf),
        torch.full_like(rows, -math.inf),
        _put(torch.full_like(rows, -math.inf), at, math.nan),
        _put(_put(rows, _place(rows, g), -math.inf), at, math.inf),
        _put(rows, torch.full_like(at, rows.shape[1] - 1), math.nan),
    )
    out = rows
    for k, value in enumerate(made):
        out = torch.where(kind == k, value, out)
    return out


_MAKERS: dict[str, Callable[[Tensor, torch.Generator, torch.dtype, float], Tensor]] = {
    "onehot": _onehot, "rows": _rows, "extremes": _extremes, "masked": _masked, "specials": _specials,
}  # fmt: skip
