"""Buffers whose values are a formula of their indices: causal masks, distances, positions kept as tensors.

A formula costs a Program less than a look-up, and lets a kernel skip what a mask leaves out. It holds for the
values that were there; whoever uses it must watch that the buffer keeps them (plans.py does).
"""

from __future__ import annotations

import numpy as np
import torch

from .symbolic import BOOL, F32, I32, Expr, Space

MAX_ELEMENTS = 1 << 26


def formula(space: Space, value: torch.Tensor, index: tuple[Expr, ...]) -> Expr | None:
    """value[index] as an expression, if the elements that the index can reach follow a simple rule."""
    if not value.numel() or value.numel() > MAX_ELEMENTS or value.dtype.is_complex:
        return None
    type_ = BOOL if value.dtype == torch.bool else F32 if value.dtype.is_floating_point else I32
    dims = [d for d, size in enumerate(value.shape) if size != 1]
    if len(dims) > 2:
        return None
    spans, offsets = [], []
    for d, size in enumerate(value.shape):
        i = index[d]
        if d not in dims:
            spans.append(slice(0, 1))
            continue
        if i.lo is None or i.hi is None or i.lo < 0 or i.hi >= size:
            return None
        spans.append(slice(i.lo, i.hi + 1))
        offsets.append(space.sub(i, space.int(i.lo)))
    part = value[tuple(spans)].detach().cpu()
    v = (part.double() if part.dtype.is_floating_point else part).numpy()
    v = v.reshape([v.shape[d] for d in dims])
    if np.issubdtype(v.dtype, np.floating) and np.isnan(v).any():
        return None
    return _rule(space, v, offsets, type_)


def _rule(space: Space, v: np.ndarray, index: list[Expr], type_: str) -> Expr | None:
    first = v.flat[0].item()
    if (v == first).all():
        return space.const(type_, first)
    if type_ != BOOL:
        linear = _affine(v)
        if linear is not None and (type_ == I32 or np.abs(v).max() < 1 << 24):
            constant, factors = linear
            e = space.int(constant)
            for factor, i in zip(factors, index, strict=True):
                e = space.add(e, space.mul(i, space.int(factor)))
            return space.cast(e, type_)
    if v.ndim == 1:
        return _interval(space, v, index[0], 0, type_)
    if (v[1:, 1:] == v[:-1, :-1]).all():
        diagonal = np.concatenate([v[:0:-1, 0], v[0, :]])
        return _interval(space, diagonal, space.sub(index[1], index[0]), 1 - v.shape[0], type_)
    return None


def _affine(v: np.ndarray) -> tuple[int, list[int]] | None:
    """c + sum of factor * index, all of them integers."""
    if np.issubdtype(v.dtype, np.floating) and not (np.isfinite(v).all() and (v == np.floor(v)).all()):
        return None
    if np.abs(v).max() >= 1 << 31:
        return None
    w = v.astype(np.int64)
    factors, fitted = [], np.full(w.shape, w.flat[0], dtype=np.int64)
    for d in range(w.ndim):
        one = [0] * w.ndim
        if w.shape[d] > 1:
            one[d] = 1
        factor = int(w[tuple(one)] - w.flat[0])
        shape = [1] * w.ndim
        shape[d] = -1
        fitted = fitted + factor * np.arange(w.shape[d]).reshape(shape)
        factors.append(factor)
    return (int(w.flat[0]), factors) if (fitted == w).all() else None


def _interval(space: Space, p: np.ndarray, at: Expr, start: int, type_: str) -> Expr | None:
    """One value where start-based position `at` lies in an interval, another one elsewhere."""
    values = list(dict.fromkeys(p.tolist()))
    if len(values) != 2:
        return None
    for inside, outside in (values, values[::-1]):
        where = np.flatnonzero(p == inside)
        lo, hi = int(where[0]), int(where[-1])
        if hi - lo + 1 != len(where):
            continue
        condition = space.bool(True)
        if lo > 0:
            condition = space.and_(condition, space.compare("ge", at, space.int(start + lo)))
        if hi < len(p) - 1:
            condition = space.and_(condition, space.compare("le", at, space.int(start + hi)))
        return space.where(condition, space.const(type_, inside), space.const(type_, outside))
    return None

