"""How far an output on a GPU is from its oracle, by torch, in parts: what csrc/tune/compare.c measures on the host.

A test holds the two to the same numbers. Elements are compared in fp64; positions of NaN and infinity must agree.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .devices import chunks
from .errors import BadInput

# A finite oracle this near to the end of a dtype's range, or beyond it, may be infinite in the dtype.
_NEAR, _AT = 1 - 2.0**-9, 1 - 2.0**-8
# The integer oracle that stands for any value (kg_any_integer).
ANY = -(1 << 63)


def _floats(x: Tensor, r: Tensor, largest: float) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Sums of the squared differences and oracles, the largest of each, and how many are wrong beyond that. The rules are
    those of csrc/tune/check_core.h."""
    x, r = x.double(), r.double()
    size = r.abs()
    odd = ~(x - r).isfinite() | (size > largest)
    lost, unknown = x.isnan(), r.isnan()
    beyond = size > largest * _NEAR
    along = torch.where(r > 0, x, -x)
    wrong = beyond & (lost | (along == -math.inf))
    same = beyond & ~wrong & (along >= largest * _AT) & ((along == math.inf) | ~r.isinf())
    finite = ~unknown & ~wrong & ~same & ~(beyond & r.isinf()) & x.isfinite()
    counted = ~odd | finite
    bad = (odd & ~finite & ~same & ~(unknown & lost)).sum()
    d, size = torch.where(counted, (x - r).abs(), 0.0), torch.where(counted, size, 0.0)
    return d.square().sum(), size.square().sum(), d.max(), size.max(), bad


def _integers(x: Tensor, r: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    x, r = x.to(torch.int64), r.to(torch.int64)
    known = r != ANY
    unequal = (x != r) & known
    d, size = torch.where(unequal, x.double() - r.double(), 0.0), torch.where(known, r.double(), 0.0)
    return d.square().sum(), size.square().sum(), d.abs().max(), size.abs().max(), unequal.sum()


def _relative(error: float, scale: float) -> float:
    return error / (scale if scale > 0 else 1.0) if error else 0.0


def errors(out: Tensor, oracle: Tensor) -> tuple[float, float, int]:
    """Norm error and largest error in units of the oracle's scale, and how many elements are not finite where the oracle is
    or the other way round (integers: differ). Both on one device, of one shape."""
    if out.shape != oracle.shape:
        raise BadInput(f"an output of shape {tuple(out.shape)} has an oracle of {tuple(oracle.shape)}")
    if not out.numel():
        return 0.0, 0.0, 0
    flat, wide = out.detach().reshape(-1), oracle.detach().reshape(-1)
    largest = torch.finfo(out.dtype).max if out.dtype.is_floating_point else 0.0
    parts = []
    for part in chunks(flat.numel()):
        floats = out.dtype.is_floating_point
        found = _floats(flat[part], wide[part], largest) if floats else _integers(flat[part], wide[part])
        parts.append(torch.stack([v.double() for v in found]))
    table = torch.stack(parts)
    d2, r2, bad = (float(v) for v in table[:, [0, 1, 4]].sum(0))
    worst, scale = (float(v) for v in table[:, [2, 3]].amax(0))
    return _relative(math.sqrt(d2), math.sqrt(r2)), _relative(worst, scale), int(bad)


def own_elements(x: Tensor) -> Tensor:
    """A view of the elements that lie in places of their own: dims of stride 0 are cut to one."""
    for d in range(x.ndim):
        if x.stride(d) == 0 and x.shape[d] > 1:
            x = x.narrow(d, 0, 1)
    return x


def scale_of(oracle: Tensor) -> float:
    """The largest finite magnitude of an oracle, in parts."""
    flat = oracle.detach().reshape(-1)
    largest = 0.0
    for part in chunks(flat.numel()):
        values = flat[part].double().abs()
        largest = max(largest, float(torch.where(values.isfinite(), values, 0.0).max()))
    return largest
