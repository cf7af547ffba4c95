"""Cases of linear and matmul that no model was captured for, and the epilogues that their Kernels are judged with: those that
people write, and random ones. A part of spread.py and ship.py, which ask for them.
"""

from __future__ import annotations

import random
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from . import keydims
from .products import INDEX
from .program import canonical, dtype_name
from .programs import Extent, _Draw
from .trace import Traced
from .trace_epilogues import trace_epilogue

Key = dict[str, Any]
Program = tuple[str, Sequence[Tensor], Sequence[float]]

# Which optional tensors are there.
CHOICES = {"linear": (("bias",), ()), "matmul": ((),), "conv2d": (("bias",), ())}


def of(op: str) -> Any:
    """What makes the Cases of an Op: this module, or convs, which has the same functions."""
    from . import convs

    return convs if op == "conv2d" else sys.modules[__name__]


@dataclass(frozen=True)
class Product:
    """The dims of a linear (b is 1) or a matmul."""

    b: int
    m: int
    n: int
    k: int

    @staticmethod
    def of(dims: dict[str, int]) -> Product:
        return Product(dims.get("B", 1), dims["M"], dims["N"], dims["K"])

    def shape(self, op: str) -> tuple[int, ...]:
        """Of the output."""
        return (self.m, self.n) if op == "linear" else (self.b, self.m, self.n)

    @property
    def elements(self) -> int:
        return self.b * (self.m * self.k + self.k * self.n + self.m * self.n)

    def __str__(self) -> str:
        return f"B={self.b} M={self.m} N={self.n} K={self.k}"


At = Product


# ---- epilogues by name ----


def _normal(shape: Sequence[int], seed: int) -> Tensor:
    return torch.randn(tuple(shape), generator=torch.Generator().manual_seed(seed))


def _leading_ones(shape: tuple[int, ...], kept: int) -> tuple[int, ...]:
    return (*(1,) * (len(shape) - kept), *shape[len(shape) - kept :])


def named(op: str, at: Product, dtype: str = "float32") -> Iterator[tuple[str, Program]]:
    """What models have behind a product, each with the tensors that it reads."""
    shape, kind = at.shape(op), getattr(torch, dtype)
    full, row = _normal(shape, 1).to(kind), _normal(_leading_ones(shape, 1), 2)
    column = _normal((*shape[:-1], 1), 3).to(torch.bfloat16)
    keep = _normal(shape, 4) > 0
    factor = 0.125
    made: dict[str, tuple[Callable[..., Any], tuple[Tensor, ...]]] = {
        "relu": (torch.relu, ()),
        "gelu": (F.gelu, ()),
        "gelu_tanh": (lambda y: F.gelu(y, approximate="tanh"), ()),
        "silu": (F.silu, ()),
        "tanh": (torch.tanh, ()),
        "sigmoid": (torch.sigmoid, ()),
        "scaled": (lambda y: y * factor, ()),
        "residual": (lambda y, r: r + y, (full,)),
        "gelu_residual": (lambda y, r: F.gelu(y) + r, (full,)),
        "gated": (lambda y, r: F.silu(y) * r, (full,)),
        "gate": (lambda y, r: torch.sigmoid(r) * y, (full,)),
        "columns": (lambda y, r: torch.relu(y * r), (row,)),
        "rows": (lambda y, r: y + r, (column,)),
        "dropout_mask": (lambda y, k: torch.where(k, y * 2.0, 0.0), (keep,)),
    }
    for name, (function, captures) in made.items():
        t = trace_epilogue(function, captures, INDEX[op])
        yield name, (t.text, [c.expand(shape) for c in t.captured], t.scalars)


# ---- random ones ----

_NAMES = {"score": "acc", "q": "m", "kv": "n", "h": "m"}


def random_epilogue(seed: int, at: Product) -> Traced:
    """The epilogue of this seed, with its captured tensors (of any rank, look-ups by any indices) and scalars."""
    extent = Extent(at.b, at.m, at.m, at.n)
    for attempt in range(100):
        draw = _Draw(random.Random(f"epilogue {seed}:{attempt}"), extent)
        result = draw.score(draw.rng.randrange(1, 6))
        raw = [(op, kind, *(_NAMES.get(a, a) for a in args)) for op, kind, *args in draw.raw]
        described = [(dtype_name(t.dtype), t.dim()) for t in draw.tensors]
        form = canonical(None, None, described, [k for _, k in draw.scalars], (raw, _NAMES.get(result, result)))
        if form.text and form.text.count("\n") < 300:
            return Traced(form.text, [draw.tensors[i] for i in form.tensors], [draw.scalars[i][0] for i in form.scalars])
    raise AssertionError(f"no epilogue came of seed {seed}")


def random_ones(count: int, at: Product) -> Iterator[tuple[str, Program]]:
    for seed in range(count):
        t = random_epilogue(seed, at)
        yield f"random {seed}", (t.text, t.captured, t.scalars)


# ---- Cases ----


def trial(op: str, dtype: str, at: Product, chosen: Sequence[str] = (), program: Program | None = None, label: str = "plain",
          layout: str = "c", align: int = 64) -> Any:  # fmt: skip
    """chosen: which optional tensors are there. layout: c, i (rows with gaps), or of a matmul t (other transposed)."""
    from . import spread

    rows, second, name = (at.m, at.k), (at.n, at.k), "weight"
    stride = spread.laid_out(second, "c" if layout == "t" else layout)
    if op == "matmul":
        rows, second, name = (at.b, at.m, at.k), (at.b, at.k, at.n), "other"
        stride = [at.k * at.n, 1, at.k] if layout == "t" else spread.laid_out(second, layout)
    args: dict[str, Any] = {
        "input": spread.entry(dtype, rows, spread.laid_out(rows, "c" if layout == "t" else layout), align),
        name: spread.entry(dtype, second, stride, align),
    }
    if op == "linear":
        args["bias"] = spread.entry(dtype, [at.n], align=align) if "bias" in chosen else None
    case, blobs = spread.case_of(op, args), {}
    if program is not None and program[0]:
        entries, blobs = spread.captured_entries(program[1])
        case["program"] = {"text": program[0], "captured": entries, "scalars": [float(s) for s in program[2]]}
    what = "+".join((*chosen, label))
    return spread.Trial(f"{op} {dtype} {at} {what}", case, blobs)


def chosen_of(key: Key) -> list[str]:
    """Which optional tensors the calls of a pin have."""
    return ["bias"] if key["op"] in ("linear", "conv2d") and key["dtypes"][2] is not None else []


def layout_of(key: Key) -> str:
    return "t" if key["layout"][1] == "s" else max(key["layout"][:2])


def of_key(key: Key, at: Product, program: Program | None = None, label: str = "plain") -> Any:
    return trial(key["op"], key["dtypes"][0], at, chosen_of(key), program, label, layout_of(key))


_WANTED = (Product(1, 1, 1, 1), Product(2, 3, 17, 33), Product(3, 16, 64, 128), Product(1, 65, 129, 257), Product(2, 131, 96, 64))
# A token, a batch of tokens, and many; heads of a batch.
_TIMED = (Product(1, 1, 2048, 2048), Product(1, 512, 2048, 512), Product(64, 128, 128, 64))


def inside(dims: dict[str, Any], wanted: Sequence[Product]) -> list[Product]:
    """The sizes of a pin's range that are nearest to these."""

    found = []
    for want in wanted:
        at = Product.of({name: keydims.inside(dims[name], getattr(want, name.lower())) for name in dims})
        if at not in found:
            found.append(at)
    return found


def range_sizes(key: Key) -> list[Product]:
    from .spread import MOST

    found = inside(key["dims"], _WANTED)
    return [at for at in found if at.elements <= MOST] or [min(found, key=lambda at: at.elements)]


def range_trials(key: Key) -> list[Any]:
    """Over the range of a dynamic pin; with the Program "*", what people write at one size."""
    sizes = range_sizes(key)
    if key.get("program") is None:
        return [of_key(key, at) for at in sizes]
    at = sizes[min(1, len(sizes) - 1)]
    return [of_key(key, at, p, name) for name, p in named(key["op"], at, key["dtypes"][0])]


def timing_trials(key: Key) -> list[Any]:
    sizes = inside(key["dims"], _TIMED)
    if key.get("program") is None:
        return [of_key(key, at) for at in sizes]
    made = []
    for at in sizes:
        program = next(p for name, p in named(key["op"], at, key["dtypes"][0]) if name == "gelu")
        made.append(of_key(key, at, program, "gelu"))
    return made


# ---- of house kernels ----


def few_sizes() -> list[Product]:
    """For a linear of few rows on a CPU."""
    rows = (1, 2, 3, 4, 5, 7, 8, 11, 13, 16)
    columns = (1, 2, 3, 5, 15, 16, 17, 31, 33, 64, 67, 100, 257)
    depths = (1, 2, 3, 7, 8, 15, 16, 17, 31, 33, 64, 65, 100, 127, 128, 257, 1000, 1023, 1024, 1025, 2049, 4099)
    sizes = [Product(1, rows[i % 10], columns[i * 5 % 13], k) for i, k in enumerate((*depths, *depths))]
    return [*sizes, Product(1, 1, 4099, 512), Product(1, 16, 1025, 769), Product(1, 2, 1 << 18, 3), Product(1, 3, 2, 1 << 18)]


def gpu_sizes() -> list[Product]:
    """For the products of a GPU: dims around the tiles' edges, one dim of 1, many batches, long K, large ones."""
    dims = (1, 2, 7, 8, 16, 31, 33, 63, 64, 65, 72, 100, 127, 128, 129, 136, 200, 255, 256, 257, 264, 300, 520)
    depths = (1, 3, 8, 16, 31, 32, 33, 63, 64, 65, 72, 96, 127, 128, 200, 264, 1000, 1032, 4096, 4099)
    n = len(dims)
    sizes = [Product((1, 1, 2, 3)[i % 4], dims[i * 7 % n], dims[i * 5 % n], depths[i % 20]) for i in range(2 * n)]
    even = [Product((1, 2)[i % 2], 8 * (1 + i * 5 % 40), 8 * (1 + i * 7 % 67), 8 * (1 + i * 11 % 90)) for i in range(24)]
    large = [Product(1, 1024, 1032, 2048), Product(1, 4096, 264, 512), Product(1, 264, 4096, 1024), Product(1, 16, 16, 1 << 18)]
    return [*sizes, *even, *large, Product(300, 32, 64, 32), Product(1, 1 << 16, 8, 16), Product(1, 8, 1 << 16, 16)]


def gpu_thin_sizes() -> list[Product]:
    """At most 8 rows."""
    columns, depths = (1, 5, 64, 255, 256, 257, 1000, 4096, 11008), (1, 8, 33, 255, 256, 257, 1024, 4096, 4099)
    sizes = [Product((1, 1, 3)[i % 3], 1 + i % 8, columns[i * 2 % 9], depths[i * 4 % 9]) for i in range(36)]
    return [*sizes, Product(1, 1, 32000, 4096), Product(1, 8, 4096, 11008), Product(64, 1, 128, 256)]


LAYOUTS = ("c", "i")


def dense(op: str, dtype: str, sizes: Sequence[Product], chosen: Sequence[str], aligns: Sequence[int],
          layouts: str = "") -> list[Any]:  # fmt: skip
    """One plain Case a size, with the layouts (all there are, unless some are named) and alignments in turn."""
    kinds = layouts or ((*LAYOUTS, "t") if op == "matmul" else LAYOUTS)
    return [
        trial(op, dtype, at, chosen, layout=kinds[i % len(kinds)], align=aligns[i // len(kinds) % len(aligns)])
        for i, at in enumerate(sizes)
    ]


def with_programs(op: str, dtype: str, sizes: Sequence[Product], at: Product, chosen: Sequence[str], aligns: Sequence[int],
                  count: int, turn: int, of: int, layouts: str = "") -> list[Any]:  # fmt: skip
    """What people write at one size, each size with one of them, and this dtype's part of the random ones."""
    from . import spread

    first = layouts[:1] or "c"
    found = [trial(op, dtype, at, chosen, p, name, first) for name, p in named(op, at, dtype)]
    for i, (size, plain) in enumerate(zip(sizes, dense(op, dtype, sizes, chosen, aligns, layouts), strict=True)):
        usable = list(named(op, size, dtype))
        usable = usable if size.m * size.n <= 1 << 18 else usable[:7]  # no tables of all elements
        name, (text, captured, scalars) = usable[i % len(usable)]
        entries, blobs = spread.captured_entries(captured)
        case = {**plain.case, "program": {"text": text, "captured": entries, "scalars": [float(s) for s in scalars]}}
        found.append(replace(plain, label=f"{plain.label} {name}", case=case, blobs=blobs))
    for i, (name, p) in enumerate(random_ones(count, at)):
        if i % of == turn:
            found.append(trial(op, dtype, at, chosen, p, name, first))
    return found
