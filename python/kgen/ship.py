"""Makes the registry that comes with kgen, generated/, from the house kernels in kernels/. A tool for kgen's developers:

    python -m kgen.ship [--registry generated] [--arch x86-64-v3] [--only attention/flash.c] [--programs 200] [--again] [--jobs 16]
                        [--most 14] [--seconds 400]

Each house kernel is built for any size, as a dynamic pin serves it, and judged for each dtype on sizes over its range
(1, primes, a tile's edges and their neighbours, the longest), attention also with the variants by name and with random
Programs. A pin's range is what was judged, no more. Kernels for x86-64-v3 are judged on any machine that is at least
that; those for a GPU on the GPU at hand, which may be newer (kernels for sm_80 on an sm_90: the same source, and the
Record says where). What passed is promoted; what is in the registry already with the same id is left alone unless --again is given.
Nothing is timed against torch here: that is the gate's, for Cases of a real model. With --jobs as many processes
compile and judge; what is timed is timed afterwards, one Case after the other. --most thins the sizes and the Programs of
each dtype to about so many (each dim's least and most stay), --seconds ends the judging: what is whole by then is promoted,
and exit code 4 says that some are left for another call.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import hashlib
import itertools
import json
import math
import multiprocessing
import os
import sys
import tempfile
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures import TimeoutError as NotYet
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from . import _libkgen, devices, epilogues, spread
from ._paths import kernels_dir, shipped_registry
from .epilogues import Product
from .errors import BadInput, KgenError
from .judge import Judge
from .programs import NAMED
from .spread import Evidence, Sizes, Trial
from .task import canonical_contract
from .trace import trace

DTYPES = ("float32", "float16", "bfloat16")
HALVES = ("float16", "bfloat16")
ARCHS = ("x86-64-v3", "x86-64-v4")
GPU_ARCHS = ("sm_80", "sm_90")
LAYOUTS = ("c", "i", "h")
# A dtype, and which optional tensors are there.
Variant = tuple[str, tuple[str, ...]]
# A tensor's data is at least this aligned in some Cases, and at most an element in others.
ALIGNS = (64, 16, 4)
PROGRAMS = 200
# Processes that judge beside each other on one GPU, and the exit code that says that some are left.
BESIDE, LEFT = 4, 4

# Variants whose tables have an element for each score: not for the longest sizes.
DENSE_TABLES = ("dense_bias", "dense_mask")


def row_sizes() -> list[tuple[int, int, int]]:
    """(M, N, 1) for the softmax of rows."""
    widths = (1, 2, 3, 7, 8, 15, 16, 17, 31, 63, 64, 65, 127, 255, 256, 257, 511, 1000, 1023, 1024, 1025, 4096, 4099)
    sizes = [((1, 2, 3, 5, 31)[i % 5], n, 1) for i, n in enumerate(widths)]
    sizes += [(5, 16383, 1), (3, 16384, 1), (7, 16385, 1), (3, 50257, 1), (2, 131072, 1), (1021, 64, 1), (1021, 4099, 1)]
    return [*sizes, (1 << 22, 3, 1), (2, 1 << 22, 1)]


def column_sizes() -> list[tuple[int, int, int]]:
    """(M, N, K) for the softmax of columns."""
    columns = (2, 3, 7, 15, 16, 17, 31, 32, 33, 63, 64, 65, 127, 128, 129, 255, 256, 257, 1000)
    lengths = (1, 2, 3, 17, 64, 129, 1000)
    sizes = [((1, 2, 3)[i % 3], lengths[i % 7], k) for i, k in enumerate(columns)]
    sizes += [(2, 4099, 5), (2, 1021, 1021), (3, 129, 4099), (1, 16385, 33), (1, 131072, 2), (37, 64, 1000)]
    return [*sizes, (1 << 20, 2, 2), (1, 1 << 20, 3), (1, 3, 1 << 20)]


def split_sizes() -> list[tuple[int, int, int]]:
    """(M, N, 1) for the softmax of few long rows."""
    sizes = [(1, 32768, 1), (1, 32769, 1), (2, 49151, 1), (3, 50257, 1), (7, 65537, 1), (5, 131072, 1), (4, 40000, 1)]
    return [*sizes, (6, 1 << 20, 1), (1, 1 << 22, 1)]


def flash_sizes() -> list[Sizes]:
    """For attention with many queries."""
    heads = ((1, 1), (2, 2), (4, 2), (8, 1), (3, 3), (6, 2))
    queries = (1, 2, 15, 16, 17, 31, 63, 64, 65, 100, 127, 128, 129, 191, 257)
    keys = (1, 2, 3, 16, 31, 63, 64, 65, 127, 128, 129, 256, 257, 300)
    widths = (1, 2, 3, 7, 8, 15, 16, 17, 24, 31, 32, 33, 40, 48, 63, 64, 65, 72, 80, 96, 100, 112, 127, 128, 129, 160, 192,
              224, 255, 256)  # fmt: skip
    sizes = []
    for i, d in enumerate(widths):
        hq, hkv = heads[i % 6]
        dv = widths[(i * 7 + 3) % 30] if i % 3 == 2 else d
        sizes.append(Sizes((1, 2, 3)[i % 3], hq, queries[i * 4 % 15], d, hkv, keys[i * 5 % 14], dv))
    sizes += [Sizes(1, 4, 257, 64, 2, 1021, 64), Sizes(1, 8, 1024, 64, 8, 1024, 64), Sizes(1, 1, 4099, 64, 1, 4099, 64)]
    sizes += [Sizes(4096, 1, 18, 8, 1, 3, 8), Sizes(1, 512, 3, 16, 512, 5, 16), Sizes(1, 512, 17, 16, 4, 5, 16)]
    return [*sizes, Sizes(1, 1, 1 << 20, 8, 1, 16, 8), Sizes(1, 1, 20, 8, 1, 1 << 20, 8)]


def hopper_sizes() -> list[Sizes]:
    """For attention with many queries by TMA: heads of multiples of 8, lengths around the tiles' edges."""
    heads = ((1, 1), (2, 2), (4, 2), (8, 1), (3, 3), (6, 2))
    queries = (1, 2, 31, 63, 64, 65, 127, 128, 129, 191, 192, 193, 257)
    keys = (1, 2, 63, 64, 65, 79, 80, 81, 127, 128, 129, 159, 160, 161, 255, 257, 300)
    widths = (8, 16, 24, 32, 40, 48, 56, 64, 72, 80, 96, 104, 112, 120, 128, 136, 160, 192, 224, 248, 256)
    sizes = []
    for i, d in enumerate((*widths, *widths)):
        hq, hkv = heads[i % 6]
        dv = widths[(i * 5 + 3) % 21] if i % 3 == 2 else d
        sizes.append(Sizes((1, 2, 3)[i % 3], hq, queries[i * 4 % 13], d, hkv, keys[i * 5 % 17], dv))
    sizes += [Sizes(1, 4, 257, 64, 2, 1021, 64), Sizes(1, 8, 1024, 64, 8, 1024, 64), Sizes(1, 1, 4099, 64, 1, 4099, 64)]
    sizes += [Sizes(4096, 1, 18, 8, 1, 3, 8), Sizes(1, 512, 3, 16, 512, 5, 16), Sizes(1, 512, 17, 16, 4, 5, 16)]
    return [*sizes, Sizes(1, 1, 1 << 20, 8, 1, 16, 8), Sizes(1, 1, 20, 8, 1, 1 << 20, 8)]


def decode_sizes() -> list[Sizes]:
    """For attention with few queries: at most 16 of them for each head of keys."""
    heads = ((1, 1, 16), (2, 2, 1), (4, 2, 3), (8, 1, 2), (3, 3, 7), (6, 2, 5), (32, 8, 1), (16, 1, 1), (8, 8, 15))
    keys = (1, 2, 3, 63, 64, 65, 255, 256, 257, 511, 512, 513, 1021, 4099)
    widths = (1, 2, 3, 7, 8, 15, 16, 17, 31, 32, 33, 40, 48, 63, 64, 65, 80, 96, 100, 127, 128, 129, 192, 255, 256)
    sizes = []
    for i, d in enumerate(widths):
        hq, hkv, sq = heads[i % 9]
        dv = widths[(i * 7 + 3) % 25] if i % 3 == 2 else d
        sizes.append(Sizes((1, 2, 3)[i % 3], hq, sq, d, hkv, keys[i * 5 % 14], dv))
    sizes += [Sizes(4096, 1, 1, 8, 1, 3, 8), Sizes(1, 512, 1, 16, 512, 5, 16), Sizes(1, 512, 1, 16, 32, 5, 16)]
    return [*sizes, Sizes(1, 1, 2, 8, 1, 1 << 20, 8)]


def gpu_row_sizes() -> list[tuple[int, int, int]]:
    """(M, N, 1) for the softmax of rows on a GPU: those of a CPU, and rows that fill blocks and clusters."""
    widths = (2047, 2048, 2049, 8192, 16384, 16388, 24576, 32764, 32768, 32772, 49152, 65532, 65536, 65540, 100000, 131072,
              131080, 262144, 262152)  # fmt: skip
    sizes = [((1, 3, 133, 7)[i % 4], n, 1) for i, n in enumerate(widths)]
    return [*row_sizes(), *sizes, (2, 524288, 1), (3, 1 << 20, 1), (4096, 1024, 1), (1 << 16, 64, 1)]


def norm_sizes() -> list[tuple[int, int]]:
    """(M, N) for the norms on a CPU."""
    widths = (1, 2, 3, 7, 8, 15, 16, 17, 31, 63, 64, 65, 127, 128, 129, 255, 257, 768, 1000, 1023, 1024, 1025, 4095, 4096, 4097,
              4099)  # fmt: skip
    sizes = [((1, 2, 3, 5, 31)[i % 5], n) for i, n in enumerate(widths)]
    sizes += [(5, 16383), (3, 16384), (7, 16385), (3, 50257), (2, 131072), (1021, 64), (1021, 2051)]
    return [*sizes, (1 << 21, 3), (2, 1 << 21)]


@dataclass(frozen=True)
class House:
    """A house kernel. timed: the Case whose time stands in the Record. threads: of the worker, where `require` asks for
    more than this machine may have. tunables: other than the defaults; one file may be shipped with several choices."""

    file: str
    op: str
    sizes: Callable[[], list[Any]]
    timed: Any
    program_at: Any = None
    threads: int | None = None
    tunables: dict[str, int] | None = None
    dtypes: tuple[str, ...] = DTYPES
    layouts: str = ""  # of a product's operands; all of them
    plain: bool = True  # false: calls without a Program are left to torch, which is faster
    row_bytes: tuple[int, int] | None = None  # pins are for rows of more than the first and at most the second

    @property
    def device(self) -> str:
        return "cuda" if self.file.endswith(".cu") else "cpu"

    @property
    def name(self) -> str:
        """The file, with the tunables that are not the defaults."""
        return " ".join([self.file, *(f"{k}={v}" for k, v in (self.tunables or {}).items())])

    @property
    def affines(self) -> tuple[tuple[str, ...], ...]:
        """Of a norm or a linear, which of weight and bias its pins are for; a call of another Op has no such choice."""
        return {**spread.AFFINE, **epilogues.CHOICES}.get(self.op, ((),))

    def dense(self, dtype: str, affine: Sequence[str] = ()) -> list[Trial]:
        if self.op in spread.AFFINE:
            made = [
                spread.norm_trial(self.op, dtype, m, n, affine, ALIGNS[i % 3]) for i, (m, n) in enumerate(self.sizes())
            ]
        elif self.op in epilogues.CHOICES:
            made = epilogues.dense(self.op, dtype, self.sizes(), affine, ALIGNS, self.layouts)
        elif self.op == "softmax":
            made = [spread.softmax_trial(dtype, *s, align=ALIGNS[i % 3]) for i, s in enumerate(self.sizes())]
        else:
            made = [
                spread.attention_trial(dtype, s, layout=LAYOUTS[i % 3], align=ALIGNS[i // 3 % 3])
                for i, s in enumerate(self.sizes())
            ]
        return [t.on(self.device) for t in made]

    def timed_trial(self, dtype: str, affine: Sequence[str] = ()) -> Trial:
        if self.op in spread.AFFINE:
            return spread.norm_trial(self.op, dtype, *self.timed, affine).on(self.device)
        if self.op in epilogues.CHOICES:
            return epilogues.trial(self.op, dtype, self.timed, affine, layout=self.layouts[:1] or "c").on(self.device)
        softmax = self.op == "softmax"
        made = spread.softmax_trial(dtype, *self.timed) if softmax else spread.attention_trial(dtype, self.timed)
        return made.on(self.device)

    def with_programs(self, dtype: str, count: int, affine: Sequence[str] = ()) -> list[Trial]:
        """Named variants at one size, each size with one of them, and this dtype's part of the random ones."""
        if self.op in epilogues.CHOICES:
            turn = self.dtypes.index(dtype)
            made = epilogues.with_programs(
                self.op, dtype, self.sizes(), self.program_at, affine, ALIGNS, count, turn, len(self.dtypes), self.layouts
            )
        else:
            made = self._with_programs(dtype, count)
        return [t.on(self.device) for t in made]

    def _with_programs(self, dtype: str, count: int) -> list[Trial]:
        assert self.program_at is not None
        at, found = self.program_at, []
        for name, program in spread.named_programs(at.extent):
            found.append(spread.attention_trial(dtype, at, program, name))
        for i, s in enumerate(self.sizes()):
            usable = _named(s)
            name, program = usable[i % len(usable)]
            found.append(spread.attention_trial(dtype, s, program, name, LAYOUTS[i % 3], ALIGNS[i // 3 % 3]))
        turn = self.dtypes.index(dtype)
        for i, (name, program) in enumerate(spread.random_programs(count, at.extent)):
            if i % len(self.dtypes) == turn:
                found.append(spread.attention_trial(dtype, at, program, name))
        return found


def _named(at: Sizes) -> list[tuple[str, Any]]:
    """Named variants for a size, those with a table of all scores left out where that would be huge."""
    made = []
    for name, make in NAMED.items():
        if name not in DENSE_TABLES or at.b * at.hq * at.sq * at.sk < 1 << 20:
            t = trace(*make(at.extent))
            made.append((name, (t.text, t.captured, t.scalars)))
    return made


HOUSE = (
    House("softmax/rows.c", "softmax", row_sizes, (4096, 4096, 1)),
    House("softmax/split.c", "softmax", split_sizes, (1, 131072, 1), threads=8),
    House("softmax/columns.c", "softmax", column_sizes, (64, 1024, 64)),
    House("norm/layer_rows.c", "layer_norm", norm_sizes, (4096, 4096)),
    House("norm/rms_rows.c", "rms_norm", norm_sizes, (4096, 4096)),
    House("attention/flash.c", "attention", flash_sizes, Sizes(1, 8, 1024, 64, 8, 1024, 64), Sizes(2, 4, 70, 16, 4, 131, 16)),
    House("attention/decode.c", "attention", decode_sizes, Sizes(1, 32, 1, 128, 8, 4096, 128), Sizes(2, 4, 3, 16, 4, 131, 16)),
    House(
        "matmul/linear_few.c", "linear", epilogues.few_sizes, Product(1, 1, 2048, 2048), Product(1, 5, 67, 100), dtypes=("float32",)
    ),
)  # fmt: skip


def _of_heads(head: int, all_sizes: Callable[[], list[Sizes]], more: Sequence[Sizes]) -> Callable[[], list[Sizes]]:
    """Those of some sizes whose heads are of one class (up to 64, 128, 256), and a few more of it."""

    def sizes() -> list[Sizes]:
        below = {64: 0, 128: 64, 256: 128}[head]
        return [*(s for s in all_sizes() if below < max(s.d, s.dv) <= head), *more]

    return sizes


def _gpu_attention(
    file: str, head: int, chosen: dict[str, int], dtypes: tuple[str, ...], decode: bool = False, programs: bool = True
) -> House:
    if decode:
        more = [Sizes(1, 8, 1, head, 8, 1021, head), Sizes(3, 32, 2, head, 4, 129, head), Sizes(1, 1, 1, head, 1, 1, head)]
        sizes = _of_heads(head, decode_sizes, more)
        timed, at = Sizes(8, 32, 1, head, 8, 8192, head), Sizes(2, 4, 3, head, 4, 131, head)
    else:
        more = [Sizes(1, 2, 333, head, 1, 1021, head), Sizes(2, 3, 65, head, 3, 129, head), Sizes(1, 1, 1, head, 1, 1, head)]
        sizes = _of_heads(head, hopper_sizes if file == "hopper.cu" else flash_sizes, more)
        timed, at = Sizes(4, 16, 4096, head, 16, 4096, head), Sizes(2, 4, 70, head, 4, 131, head)
    at_programs = at if programs else None
    # torch's own attention is ahead of the kernels for every GPU wherever it has one for the call.
    return House(
        f"attention/{file}", "attention", sizes, timed, at_programs, tunables={**chosen, "HEAD": head}, dtypes=dtypes,
        plain=file == "hopper.cu",
    )  # fmt: skip


def gpu_norm_sizes() -> list[tuple[int, int]]:
    """(M, N) for the norms on a GPU: those of a CPU, and rows that fill blocks and the whole chip."""
    widths = (2047, 2048, 2056, 3072, 8192, 12288, 16384, 16392, 24576, 32760, 32768, 49152, 65544, 131072)
    sizes = [((1, 3, 133, 7)[i % 4], n) for i, n in enumerate(widths)]
    return [*norm_sizes(), *sizes, (265, 768), (4096, 1024), (1 << 16, 64), (3, 1 << 20), (5, 1 << 18)]


def _gpu_norms(op: str, name: str) -> list[House]:
    """Each Op's templates; the tunables are those that were fastest on an H200. Of two for the same calls the later serves."""
    rows = [
        ((65536, 512), {"ROW_THREADS": 32, "ROWS": 4, "VECS": 4, "TURNS": 8, "BLOCKS": 4}, (0, 1 << 11)),
        ((32768, 2048), {"ROW_THREADS": 128, "ROWS": 1, "VECS": 4, "TURNS": 8, "BLOCKS": 4}, (1 << 11, 1 << 13)),
        ((8192, 4096), {"ROW_THREADS": 256, "ROWS": 1, "VECS": 4, "TURNS": 8, "BLOCKS": 2}, (1 << 13, 1 << 14)),
    ]
    ragged = [
        ((65536, 501), {"ROW_THREADS": 32, "ROWS": 4, "VECS": 4}, (0, 1 << 11)),
        ((8192, 4083), {"ROW_THREADS": 256, "ROWS": 1, "VECS": 4}, (1 << 11, 1 << 14)),
        ((4096, 8195), {"ROW_THREADS": 1024, "ROWS": 1, "VECS": 4}, (1 << 14, 1 << 16)),
    ]  # fmt: skip
    made = [House(f"norm/{name}_long.cu", op, gpu_norm_sizes, (256, 1 << 18), row_bytes=(1 << 16, 1 << 40))]
    made += [House(f"norm/{name}_grid.cu", op, gpu_norm_sizes, (16, 1 << 20), tunables={"HELD": 4, "IN_SHARED": 12},
                   row_bytes=(1 << 18, 1 << 40))]  # fmt: skip
    return made + [
        House(f"norm/{name}_{file}.cu", op, gpu_norm_sizes, timed, tunables=chosen, row_bytes=row_bytes)
        for file, choices in (("ragged", ragged), ("rows", rows)) for timed, chosen, row_bytes in choices
    ]  # fmt: skip


def _gpu_products(op: str) -> list[House]:
    """Both orders of matmul's right operand; linear's weight is transposed. Of two for the same calls the later serves."""
    prefix, turns = ("linear_", (1,)) if op == "linear" else ("", (0, 1))
    square, few, thin = Product(1, 4096, 4096, 4096), Product(1, 256, 1024, 1024), Product(1, 4, 4096, 4096)
    at, sizes = Product(1, 70, 136, 72), epilogues.gpu_sizes
    made = []
    for turned in turns:
        right, across = {"RIGHT_TURNED": turned}, {"ACROSS": 1 - turned}
        small, kinds = {**right, "BLOCK_N": 64, "CLUSTER_M": 1, "STAGES": 8}, "t" if op == "matmul" and turned else "ci"
        made += [
            House(f"matmul/{prefix}{file}.cu", op, sizes, timed, at, tunables=chosen, dtypes=dtypes, layouts=kinds)
            for file, timed, chosen, dtypes in (
                ("fma", Product(1, 1024, 1024, 1024), right, ("float32",)), ("mma", square, right, HALVES),
                ("hopper", few, small, HALVES), ("hopper", square, right, HALVES),
            )
        ]  # fmt: skip
        thin_at, thins = Product(1, 3, 136, 72), epilogues.gpu_thin_sizes
        made.append(House(f"matmul/{prefix}skinny.cu", op, thins, thin, thin_at, tunables=across, layouts=kinds))
    return [*made, House(f"matmul/{prefix}split.cu", op, sizes, square, at, dtypes=("float32",))]


def _gpu_house() -> tuple[House, ...]:
    """The house kernels for GPUs, each with the choices of tunables that its range takes."""
    rows = [
        House("softmax/rows.cu", "softmax", gpu_row_sizes, timed, tunables=chosen, dtypes=dtypes, row_bytes=row_bytes)
        for timed, chosen, dtypes, row_bytes in (
            ((65536, 256, 1), {"ROW_THREADS": 32, "ROWS": 8, "VECS": 4}, DTYPES, (0, 1 << 11)),
            ((8192, 4096, 1), {"ROW_THREADS": 256, "ROWS": 1, "VECS": 4}, DTYPES, (1 << 11, 1 << 14)),
            ((4096, 16384, 1), {"ROW_THREADS": 1024, "ROWS": 1, "VECS": 8}, ("float32",), (1 << 14, 1 << 17)),
            ((4096, 16384, 1), {"ROW_THREADS": 1024, "ROWS": 1, "VECS": 4}, HALVES, (1 << 14, 1 << 16)),
        )
    ]
    cluster = [
        House("softmax/cluster.cu", "softmax", gpu_row_sizes, timed, tunables=chosen, row_bytes=row_bytes)
        for timed, chosen, row_bytes in (
            ((4096, 65536, 1), {"CLUSTER": 8, "THREADS": 256, "VECS": 8}, (1 << 16, 1 << 18)),
            ((1024, 131072, 1), {"CLUSTER": 8, "THREADS": 512, "VECS": 8}, (1 << 18, 1 << 19)),
        )
    ]
    others = [
        House("softmax/long.cu", "softmax", gpu_row_sizes, (256, 1 << 20, 1), row_bytes=(1 << 19, 1 << 40)),
        House("softmax/columns.cu", "softmax", column_sizes, (64, 1024, 1024)),
    ]
    full = ("float32",)
    attention = [_gpu_attention("flash.cu", head, {}, HALVES) for head in (64, 128, 256)]
    # Each within what a block of an sm_80 has of registers and shared memory.
    attention += [_gpu_attention("fma.cu", head, {"TM": tm}, full) for head, tm in ((64, 8), (128, 8), (256, 4))]
    attention += [_gpu_attention("decode.cu", head, {"STAGES": n}, HALVES, True) for head, n in ((64, 3), (128, 3), (256, 2))]
    # Of two for the same calls the later serves: plain ones take longer blocks of keys than those with Programs.
    hopper = [
        _gpu_attention("hopper.cu", head, chosen, HALVES, programs=programs)
        for head, chosen, programs in (
            (64, {"CONSUMERS": 3, "STAGES": 3}, True), (128, {}, True), (256, {"BLOCK_N": 64}, True),
            (128, {"BLOCK_N": 160}, False), (256, {"BLOCK_N": 80}, False),
        )
    ]  # fmt: skip
    norms = [*_gpu_norms("layer_norm", "layer"), *_gpu_norms("rms_norm", "rms")]
    products = [*_gpu_products("matmul"), *_gpu_products("linear")]
    return (*rows, *cluster, *others, *attention, *hopper, *norms, *products)


GPU_HOUSE = _gpu_house()


def judged_key(contract: str, trials: Sequence[Trial], skipped: Collection[str], any_program: bool) -> dict[str, Any]:
    """The key of a dynamic pin: the least and the most of each dim over what was judged."""
    keys = [_libkgen.case_key(contract, t.case)[0] for t in trials if t.label not in skipped]
    dims: dict[str, Any] = {}
    for name in keys[0]["dims"]:
        low, high = min(k["dims"][name] for k in keys), max(k["dims"][name] for k in keys)
        dims[name] = {"min": low, "max": high} if low < high else low
    layouts = [max(k["layout"][i] for k in keys) for i in range(len(keys[0]["layout"]))]  # "i" is wider than "c"
    return {**keys[0], "layout": layouts, "program": "*" if any_program else None, "dims": dims}


def narrowed(key: dict[str, Any], row_bytes: tuple[int, int] | None) -> dict[str, Any]:
    """The key for rows of so many bytes alone: for others another choice of tunables is faster, or torch is."""
    n = key["dims"].get("N")
    if row_bytes is None or not isinstance(n, dict):
        return key
    size = {"float32": 4}.get(key["dtypes"][0], 2)
    low, high = max(n["min"], row_bytes[0] // size + 1), min(n["max"], row_bytes[1] // size)
    return {**key, "dims": {**key["dims"], "N": {"min": low, "max": high} if low < high else low}}


def key_hash(key: dict[str, Any]) -> str:
    """The name of a key's pin."""
    return hashlib.sha256(json.dumps(key, sort_keys=True, separators=(",", ":")).encode()).hexdigest()[:32]


def _entry(key: dict[str, Any], found: Evidence, random_count: int) -> dict[str, Any]:
    """What a Record says of one pin: the worst over its Cases."""
    return {
        "case": key_hash(key), "verdict": found.verdict, **found.worst, "allclose": found.allclose, "sets": found.sets,
        "cases": found.cases, "programs": len(found.programs), "random_programs": random_count,
    }  # fmt: skip


class Shipping:
    """One house kernel for one architecture."""

    def __init__(
        self, house: House, arch: str, registry: Path, programs: int, say: Callable[[str], None], index: int = 0,
        most: int = 0,
    ):  # fmt: skip
        """index: the GPU that a kernel for GPUs is judged on. most: about so many plain Cases, and three times as many with
        Programs, of each variant; 0: all."""
        self.house, self.arch, self.registry, self.count, self.say = house, arch, registry, programs, say
        self.index, self.most = index, most
        self.contract = canonical_contract(house.op).decode()
        self.source = (kernels_dir() / house.file).read_bytes()
        self.about = _libkgen.candidate_check(self.contract, self.source, house.file)
        if house.tunables is not None:
            chosen = {**self.about["tunables"], **house.tunables}
            self.about = _libkgen.candidate_check(self.contract, self.source, house.file, chosen)
        # A GPU's judge runs what its own GPU runs.
        self.judged_arch = None if house.device == "cuda" else arch

    @property
    def chosen(self) -> dict[str, int] | None:
        """The tunables, where they are not the defaults."""
        return self.about["tunables"] if self.house.tunables is not None else None

    def _fits(self, trial: Trial) -> bool:
        """Whether the plan is for a Case."""
        sms, shared = devices.limits(devices.of_case(trial.case, self.index))
        with contextlib.suppress(BadInput):
            _libkgen.candidate_unit(self.contract, trial.case, self.source, self.chosen, self.arch, sms, shared, True)
            return True
        return False

    def _thinned(self, trials: list[Trial], most: int) -> list[Trial]:
        """About so many of those that the plan is for: with the least and the most of each dim, and else evenly taken."""
        if not most or len(trials) <= most:
            return trials
        fit = [t for t in trials if self._fits(t)]
        dims = [_libkgen.case_key(self.contract, t.case)[0]["dims"] for t in fit]
        ends = {pick(range(len(fit)), key=lambda i, n=n: dims[i][n]) for n in dims[0] for pick in (min, max)} if fit else set()
        evenly = {i * len(fit) // most for i in range(most)} if len(fit) > most else set(range(len(fit)))
        return [fit[i] for i in sorted(ends | evenly)]

    def dense(self, variant: Variant) -> list[Trial]:
        """The plain Cases that a variant is judged on."""
        return self._thinned(self.house.dense(*variant), self.most)

    def with_programs(self, variant: Variant) -> list[Trial]:
        """Those with Programs; none where the house kernel takes none."""
        if self.house.program_at is None:
            return []
        return self._thinned(self.house.with_programs(variant[0], self.count, variant[1]), 3 * self.most)

    def shipped(self) -> bool:
        """Whether the registry has this very Candidate for this architecture already."""
        folder = self.registry / self.house.op / self.arch / self.about["id"]
        return (folder / "record.json").is_file()

    def _judge(self, trials: Sequence[Trial], what: str, reps: int = 0) -> Evidence:
        def say(text: str) -> None:
            self.say(f"{self.house.name} {self.arch} {what}: {text}")

        found = spread.judge(
            self.contract, self.source, self.house.file, self.chosen, trials, arch=self.judged_arch, reps=reps,
            threads=self.house.threads, say=say, index=self.index,
        )  # fmt: skip
        if found.verdict != "pass":
            raise KgenError(f"{self.house.name} for {self.arch}, {what}: {found.verdict}: {found.message}")
        for label, why in found.skipped.items():
            say(f"not for it: {label}: {why}")
        return found

    def compile(self, variant: Variant, start: int, n: int) -> None:
        """Fills the cache of images for some of the Trials. What does not compile is the judge's to tell."""
        trials = self._images(variant)[start : start + n]
        device = devices.of_case(trials[0].case, self.index)
        with contextlib.suppress(KgenError), Judge(self.contract, arch=self.judged_arch, device=device) as j:
            for t in trials:
                j.add_case(t.case)
            j.prepare(self.source, name=self.house.file, tunables=self.chosen, any_size=True)

    def variants(self) -> list[Variant]:
        """What has a pin of its own, or two: with Programs."""
        return list(itertools.product(self.house.dtypes, self.house.affines))

    def _images(self, variant: Variant) -> list[Trial]:
        """Trials whose images differ: one is for any size, and each Program has its own."""
        return [self.house.timed_trial(*variant), *self.with_programs(variant)]

    def jobs(self, n: int) -> Iterator[tuple[Variant, int, int]]:
        """The arguments of compile, n Trials at a time."""
        for variant in self.variants():
            for start in range(0, len(self._images(variant)), n):
                yield variant, start, n

    def evidence(self, variant: Variant) -> list[Evidence]:
        """What judging finds, without a time: of the plain Cases, and of those with Programs where it takes them."""
        what = " ".join((variant[0], *variant[1]))
        found = [self._judge(self.dense(variant), what)]
        if self.house.program_at is not None:
            found.append(self._judge(self.with_programs(variant), f"{what} with Programs"))
        return found

    def time(self, variant: Variant) -> dict[str, Any]:
        """Judges and times the Case whose time stands in the Record."""
        dtype, affine = variant
        trial = self.house.timed_trial(dtype, affine)
        found = self._judge([trial], f"{' '.join((dtype, *affine))}, timed", 21)
        times = {k: v for k, v in found.times[0].items() if k in ("time_ns", "floor_ns")} if found.times else {}
        return {**times, "timed": trial.label}

    def promote(self, evidence: dict[Variant, list[Evidence]], times: dict[Variant, dict[str, Any]]) -> int:
        """Promotes what has been judged and timed in each variant; the version."""
        keys, entries, programs = [], [], []
        for variant, (dense, *rest) in evidence.items():
            if self.house.plain:
                key = judged_key(self.contract, self.dense(variant), dense.skipped, False)
                keys.append(narrowed(key, self.house.row_bytes))
                entries.append({**_entry(keys[-1], dense, 0), **times.get(variant, {})})
            for found in rest:
                trials = self.with_programs(variant)
                keys.append(judged_key(self.contract, trials, found.skipped, True))
                entries.append(_entry(keys[-1], found, sum("random" in t.label for t in trials)))
                programs.append(found.programs)
        record = next(iter(evidence.values()))[0].record
        return self._promote(record, entries, keys, _in_all(programs))

    def run(self) -> int:
        """Judges, times and promotes; the version."""
        evidence, times = {}, {}
        for variant in self.variants():
            evidence[variant], times[variant] = self.evidence(variant), self.time(variant)
        return self.promote(evidence, times)

    def _promote(
        self, record: dict[str, Any], entries: list[dict[str, Any]], keys: list[dict[str, Any]], programs: list[str]
    ) -> int:
        environment = {**record["environment"], "torch": torch.__version__}
        made = {
            **{k: record[k] for k in ("format", "id", "op", "version", "kind", "tunables", "verdict")}, "arch": self.arch,
            "source": f"kernel{Path(self.house.file).suffix}", "message": "", "proposer": {"name": "builtin", "template": self.house.file},
            "parent": None, "cases": entries, "programs": programs, "environment": environment,
            "created": datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ"),
        }  # fmt: skip
        return _libkgen.registry_promote(self.registry, self.contract, None, self.source, made, keys)


def _in_all(lists: list[list[str]]) -> list[str]:
    """Programs that were judged with every dtype: only of those is a Kernel's evidence whole."""
    return [p for p in lists[0] if all(p in other for other in lists[1:])] if lists else []


def _is_for(min_arch: str | None, arch: str) -> bool:
    """Whether a plan's min_arch lets it run on an architecture of GPUs."""
    return not min_arch or int(min_arch.removeprefix("sm_")) <= int(arch.removeprefix("sm_"))


def gpu_for(arch: str, asked: str) -> torch.device:
    """The GPU that judges kernels for an architecture: of that one or a newer one."""
    device = devices.check(devices.parse(asked))
    if device.type != "cuda" or not _is_for(arch, devices.arch(device)):
        found = devices.name_of(device) if device.type == "cpu" else f"{devices.name_of(device)}, {devices.arch(device)}"
        raise BadInput(f"--arch {arch}: needs a GPU that is at least that; --device is {found}")
    return device


@dataclass(frozen=True)
class _Asked:
    """A Shipping as another process can make it."""

    house: int
    arch: str
    programs: int
    index: int
    most: int

    def shipping(self) -> Shipping:
        house = (*HOUSE, *GPU_HOUSE)[self.house]
        return Shipping(house, self.arch, shipped_registry(), self.programs, lambda _: None, self.index, self.most)


def _asked(one: Shipping) -> _Asked:
    return _Asked((*HOUSE, *GPU_HOUSE).index(one.house), one.arch, one.count, one.index, one.most)


def _compile(asked: _Asked, job: tuple[Variant, int, int]) -> None:
    """In a process of its own."""
    asked.shipping().compile(*job)


def _evidence(asked: _Asked, variant: Variant) -> list[Evidence]:
    """In a process of its own."""
    return asked.shipping().evidence(variant)


def _one_core(locks: str) -> None:
    """There is a process for each core: torch's own threads would only be in each other's way. Judging without a time
    bears a few others beside it on a GPU, so that few of these processes wait for the same lock."""
    torch.set_num_threads(1)
    mine = Path(locks) / str(os.getpid() % BESIDE)
    mine.mkdir(exist_ok=True)
    os.environ["KGEN_LOCKS"] = str(mine)


Kind = tuple[int, "str | None"]


def _judged(kinds: dict[Kind, list[Shipping]], jobs: int, seconds: float) -> Iterator[tuple[Kind, dict[Variant, list[Evidence]]]]:
    """The evidence of each kind, compiled and judged in so many processes, in order; KgenError's are told and left out. Those
    that are not whole after so many seconds do not come."""
    until = time.monotonic() + seconds
    with tempfile.TemporaryDirectory(prefix="kgen-ship-") as locks:
        pool = ProcessPoolExecutor(jobs, multiprocessing.get_context("spawn"), _one_core, (locks,))
        try:
            waiting = {}
            for kind, of in kinds.items():
                for job in of[0].jobs(4):
                    pool.submit(_compile, _asked(of[0]), job)
                waiting[kind] = {v: pool.submit(_evidence, _asked(of[0]), v) for v in of[0].variants()}
            for kind, futures in waiting.items():
                name = kinds[kind][0].house.name
                try:
                    yield kind, {v: f.result(max(0.0, until - time.monotonic())) for v, f in futures.items()}
                    print(f"{name}: judged, {until - time.monotonic():.0f} s left", flush=True)
                except NotYet:
                    print(f"{name}: not judged within {seconds:.0f} s", flush=True)
                except KgenError as e:
                    print(f"NOT SHIPPED: {e}", file=sys.stderr, flush=True)
        finally:
            for process in list(pool._processes.values()) if time.monotonic() > until else []:
                process.kill()
            pool.shutdown(wait=False, cancel_futures=True)


def _together(todo: Sequence[Shipping], jobs: int, seconds: float = math.inf) -> tuple[int, int]:
    """Ships all: compiles and judges in so many processes, then times one Case after the other. A house kernel for two
    architectures of GPUs is judged once, on the GPU at hand. How many were shipped, and how many are left."""
    kinds: dict[Kind, list[Shipping]] = {}
    for one in todo:
        kinds.setdefault((_asked(one).house, one.judged_arch), []).append(one)
    shipped = 0
    for kind, evidence in list(_judged(kinds, jobs, seconds)):
        of = kinds[kind]
        try:
            # On a GPU one choice of optional tensors stands for the others: each takes as long as judging them all.
            some = [v for v in evidence if of[0].house.device == "cpu" or v[1] == of[0].house.affines[0]]
            times = {v: of[0].time(v) for v in some if of[0].house.plain}
            for one in of:
                print(f"{one.house.name} {one.arch}: {one.house.op}/v{one.promote(evidence, times)}", flush=True)
            shipped += len(of)
        except KgenError as e:
            print(f"NOT SHIPPED: {e}", file=sys.stderr, flush=True)
    return shipped, len(todo) - shipped


def main(argv: Sequence[str] | None = None) -> int:
    """Ships what is asked for; 1 when something did not pass."""
    p = argparse.ArgumentParser(prog="python -m kgen.ship", description=(__doc__ or "").splitlines()[0])
    p.add_argument("--registry", type=Path, default=shipped_registry())
    p.add_argument("--arch", action="append", choices=(*ARCHS, *GPU_ARCHS), help="default: all of the CPU's")
    p.add_argument("--only", action="append", metavar="FILE", choices=sorted({h.file for h in (*HOUSE, *GPU_HOUSE)}))
    p.add_argument("--device", default="cuda", help="which GPU judges kernels for GPUs (default: the first)")
    p.add_argument("--programs", type=int, default=PROGRAMS, help=f"random Programs (default {PROGRAMS})")
    p.add_argument("--jobs", type=int, default=1, metavar="N", help="processes that compile and judge (default 1)")
    p.add_argument("--most", type=int, default=0, metavar="N", help="about so many Cases of each dtype (default: all)")
    p.add_argument("--seconds", type=float, default=math.inf, help="with --jobs: end the judging after so long")
    p.add_argument("--again", action="store_true", help="also what is in the registry already")
    args = p.parse_args(argv)
    if args.programs < 1:
        raise BadInput(f"--programs {args.programs}: at least 1 is needed")
    if args.jobs < 1:
        raise BadInput(f"--jobs {args.jobs}: at least 1 is needed")
    todo: list[Shipping] = []
    for arch in args.arch or ARCHS:
        gpu = arch in GPU_ARCHS
        device = gpu_for(arch, args.device) if gpu else devices.CPU
        for house in GPU_HOUSE if gpu else HOUSE:
            if args.only and house.file not in args.only:
                continue
            say: Callable[[str], None] = lambda text: print(text, flush=True)
            one = Shipping(house, arch, args.registry, args.programs, say, device.index or 0, args.most)
            if gpu and not _is_for(one.about["min_arch"], arch):
                continue
            if one.shipped() and not args.again:
                print(f"{house.name} {arch}: there already")
                continue
            todo.append(one)
    if args.only:
        todo.sort(key=lambda one: args.only.index(one.house.file))
    if args.jobs > 1:
        _, left = _together(todo, args.jobs, args.seconds)
        return 0 if not left else LEFT if math.isfinite(args.seconds) else 1
    failed = 0
    for one in todo:
        try:
            print(f"{one.house.name} {one.arch}: {one.house.op}/v{one.run()}", flush=True)
        except KgenError as e:
            failed += 1
            print(f"NOT SHIPPED: {e}", file=sys.stderr, flush=True)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
