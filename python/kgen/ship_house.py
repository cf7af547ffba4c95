"""The house kernels that ship, each with the tunables, the sizes that it is judged on and the calls that its pins are for."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from . import convs, epilogues, spread
from .convs import At
from .epilogues import Product
from .programs import NAMED
from .spread import Sizes, Trial
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
# The most queries and keys of a head as wide as its class.
LONG = 1 << 17
# Bytes of the most rows that a GPU's Kernel of rows is judged on.
MANY = 1 << 28
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


def short_sizes() -> list[Sizes]:
    """For attention with 5 to 16 queries of each head; few of them are nearer to decode.c's range."""
    queries = (5, 6, 7, 8, 11, 13, 15, 16)
    short = [replace(s, sq=queries[i % 8]) for i, s in enumerate(flash_sizes()[:-2])]
    return [*short, Sizes(1, 32, 16, 128, 8, 4099, 128), Sizes(1, 1, 16, 8, 1, 1 << 20, 8)]


def decode_hopper_sizes() -> list[Sizes]:
    """decode_sizes with heads of multiples of 8, as TMA needs them."""
    return [replace(s, d=(s.d + 7) // 8 * 8, dv=(s.dv + 7) // 8 * 8) for s in decode_sizes()]


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
    causal: bool = False  # a pin for is_causal too, which on a GPU no pin for any Program serves
    output_alone: bool = False  # a pin for any Program without the log-sum-exp too, where a tanh may be rough
    # Pins are for at least these dims: torch is faster below. Of attention those for any Program, which torch has no kernel for,
    # are for all.
    least: dict[str, int] | None = None
    aligns: tuple[int, ...] = ALIGNS
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
        """Of a norm, a linear or a conv2d, which of weight and bias its pins are for; a call of another Op has no such choice."""
        return {**spread.AFFINE, **epilogues.CHOICES}.get(self.op, ((),))

    def of_class(self, dtype: str) -> list[tuple[int, int]]:
        """(M, N) of rows that its tunables are for: their ends and what is between, and as many rows as fit MANY bytes."""
        assert self.row_bytes is not None
        size = 4 if dtype == "float32" else 2
        low, high = self.row_bytes[0] // size + 1, min(self.row_bytes[1] // size, 1 << 21)
        middle, even = max(low, (low + high) // 2 // 8 * 8), min(high, (low + 7) // 8 * 8)
        quarters = {max(even, (low * (4 - i) + high * i) // 4 // 8 * 8) for i in (1, 3)}
        widths = sorted({low, min(low + 1, high), even, middle, min(middle | 1, high), max(low, high - 1), high, *quarters})
        return [*((1, n) for n in (low, high)), *(((1, 3, 133, 7)[i % 4], n) for i, n in enumerate(widths)), (MANY // size // even, even)]

    def dense(self, dtype: str, affine: Sequence[str] = ()) -> list[Trial]:
        if self.row_bytes is not None:
            rows = [
                spread.softmax_trial(dtype, m, n) if self.op == "softmax" else spread.norm_trial(self.op, dtype, m, n, affine)
                for m, n in self.of_class(dtype)
            ]
            within = {n for _, n in self.of_class(dtype)}
            sizes = [(i, s) for i, s in enumerate(self.sizes()) if min(within) <= s[1] <= max(within)]
            rows += [
                spread.softmax_trial(dtype, *s, align=ALIGNS[i % 3]) if self.op == "softmax"
                else spread.norm_trial(self.op, dtype, *s, affine, ALIGNS[i % 3])
                for i, s in sizes
            ]  # fmt: skip
            return [t.on(self.device) for t in rows]
        if self.op in spread.AFFINE:
            made = [
                spread.norm_trial(self.op, dtype, m, n, affine, ALIGNS[i % 3]) for i, (m, n) in enumerate(self.sizes())
            ]
        elif self.op in epilogues.CHOICES:
            made = epilogues.of(self.op).dense(self.op, dtype, self.sizes(), affine, ALIGNS, self.layouts)
        elif self.op == "softmax":
            made = [spread.softmax_trial(dtype, *s, align=ALIGNS[i % 3]) for i, s in enumerate(self.sizes())]
        else:
            made = [
                spread.attention_trial(dtype, s, layout=LAYOUTS[i % 3], align=self.aligns[i // 3 % 3])
                for i, s in enumerate(self.sizes())
            ]
        return [t.on(self.device) for t in made]

    def timed_trial(self, dtype: str, affine: Sequence[str] = ()) -> Trial:
        if self.op in spread.AFFINE:
            return spread.norm_trial(self.op, dtype, *self.timed, affine).on(self.device)
        if self.op in epilogues.CHOICES:
            cases = epilogues.of(self.op)
            return cases.trial(self.op, dtype, self.timed, affine, layout=self.layouts[:1] or "c").on(self.device)
        softmax = self.op == "softmax"
        made = spread.softmax_trial(dtype, *self.timed) if softmax else spread.attention_trial(dtype, self.timed)
        return made.on(self.device)

    def of_program(self, name: str, dtype: str) -> list[Trial]:
        """Attention of all its sizes with a Program by name."""
        made = []
        for i, s in enumerate(self.sizes()):
            t = trace(*NAMED[name](s.extent))
            program = t.text, t.captured, t.scalars
            made.append(spread.attention_trial(dtype, s, program, name, LAYOUTS[i % 3], self.aligns[i // 3 % 3]).on(self.device))
        return made

    def with_programs(self, dtype: str, count: int, affine: Sequence[str] = ()) -> list[Trial]:
        """Named variants at one size, each size with one of them, and this dtype's part of the random ones."""
        if self.op in epilogues.CHOICES:
            turn = self.dtypes.index(dtype)
            made = epilogues.of(self.op).with_programs(
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
            found.append(spread.attention_trial(dtype, s, program, name, LAYOUTS[i % 3], self.aligns[i // 3 % 3]))
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
    # Of two for the same calls that serves whose range's middle is nearer (kg_key_distance).
    House(
        "attention/flash.c", "attention", short_sizes, Sizes(1, 32, 16, 128, 8, 1024, 128), Sizes(2, 4, 13, 16, 4, 131, 16),
        tunables={"BLOCK_M": 16, "MR": 8, "NR": 1},
    ),
    House(
        "matmul/linear_few.c", "linear", epilogues.few_sizes, Product(1, 1, 2048, 2048), Product(1, 5, 67, 100), dtypes=("float32",)
    ),
)  # fmt: skip


def _of_heads(head: int, all_sizes: Callable[[], list[Sizes]], more: Sequence[Sizes]) -> Callable[[], list[Sizes]]:
    """Those of some sizes whose heads are of one class (up to 64, 128, 256), and a few more of it. A head of another class has
    Kernels of its own, which a range that held both would take its calls from."""

    def sizes() -> list[Sizes]:
        below = {64: 0, 128: 64, 256: 128}[head]
        return [*(s for s in all_sizes() if below < min(s.d, s.dv) and max(s.d, s.dv) <= head), *more]

    return sizes


def _gpu_attention(
    file: str, head: int, chosen: dict[str, int], dtypes: tuple[str, ...], decode: bool = False, programs: bool = True,
    plain: bool = False, causal: bool = False,
) -> House:  # fmt: skip
    if decode:
        more = [Sizes(1, 8, 1, head, 8, 1021, head), Sizes(3, 32, 2, head, 4, 129, head), Sizes(1, 1, 1, head, 1, 1, head)]
        more += [Sizes(1024, 1, 1, head, 1, 3, head), Sizes(1, 256, 1, head, 256, 5, head), Sizes(1, 1, 2, head, 1, LONG, head)]
        sizes = _of_heads(head, decode_hopper_sizes if file == "decode_hopper.cu" else decode_sizes, more)
        timed, at = Sizes(8, 32, 1, head, 8, 8192, head), Sizes(2, 4, 3, head, 4, 131, head)
    else:
        more = [Sizes(1, 2, 333, head, 1, 1021, head), Sizes(2, 3, 65, head, 3, 129, head), Sizes(1, 1, 1, head, 1, 1, head)]
        more += [Sizes(1024, 1, 18, head, 1, 3, head), Sizes(1, 256, 17, head, 256, 5, head), Sizes(1, 1, LONG, head, 1, 16, head),
                 Sizes(1, 1, 20, head, 1, LONG, head)]  # fmt: skip
        sizes = _of_heads(head, hopper_sizes if file == "hopper.cu" else flash_sizes, more)
        timed, at = Sizes(4, 16, 4096, head, 16, 4096, head), Sizes(2, 4, 70, head, 4, 131, head)
    at_programs = at if programs else None
    # torch's own attention may be ahead wherever it has one for the call: short ones, and all of an sm_80.
    return House(
        f"attention/{file}", "attention", sizes, timed, at_programs, tunables={**chosen, "HEAD": head}, dtypes=dtypes,
        plain=plain, causal=causal, output_alone=programs and not decode and "float32" not in dtypes, least={"SQ": 1024, "SK": 1024},
        aligns=(64, 16, 16) if "hopper" in file else ALIGNS,  # TMA reads from multiples of 16
    )  # fmt: skip


def gpu_norm_sizes() -> list[tuple[int, int]]:
    """(M, N) for the norms on a GPU: those of a CPU, and rows that fill blocks and the whole chip."""
    widths = (2047, 2048, 2056, 3072, 8192, 12288, 16384, 16392, 24576, 32760, 32768, 49152, 65544, 131072)
    sizes = [((1, 3, 133, 7)[i % 4], n) for i, n in enumerate(widths)]
    return [*norm_sizes(), *sizes, (265, 768), (4096, 1024), (1 << 16, 64), (3, 1 << 20), (5, 1 << 18)]


def _gpu_norms(op: str, name: str) -> list[House]:
    """Each Op's templates; the tunables are those that were fastest on an H200."""
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
    """Both orders of matmul's right operand; linear's weight is transposed."""
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
    large = {"M": 1024, "N": 1024, "K": 512}
    return [*made, House(f"matmul/{prefix}split.cu", op, sizes, square, at, dtypes=("float32",), least=large)]


def _gpu_convs() -> list[House]:
    """In both memory formats: channels last, and any other."""
    layer, at = At(32, 64, 56, 56, 64, ph=1, pw=1), At(2, 12, 13, 10, 24, 3, 3, 1, 2, 1, 1)
    wise, alone = At(32, 1, 56, 56, 144, ph=1, pw=1, g=144), At(2, 1, 13, 10, 24, 3, 3, 1, 2, 1, 1, g=12)
    made = [
        House(f"conv/{file}.cu", "conv2d", convs.gpu_sizes, layer, at, tunables={"LAST": last}, dtypes=dtypes, layouts="l" * last)
        for last in (0, 1) for file, dtypes in (("fma", ("float32",)), ("mma", HALVES), ("split", ("float32",)))
    ]  # fmt: skip
    first, few = At(100, 3, 224, 224, 96, 11, 11, 4, 4, 2, 2), At(2, 3, 30, 26, 24, 5, 4, 2, 2, 1, 1)
    made += [
        House("conv/few.cu", "conv2d", convs.gpu_first_sizes, first, few, tunables={"LAST": last}, dtypes=("float32",), layouts="l" * last)
        for last in (0, 1)
    ]  # fmt: skip
    return [*made, House("conv/depthwise.cu", "conv2d", convs.gpu_depthwise_sizes, wise, alone)]


def _gpu_house() -> tuple[House, ...]:
    """The house kernels for GPUs, each with the choices of tunables that its range takes."""
    rows = [
        House("softmax/rows.cu", "softmax", gpu_row_sizes, timed, tunables=chosen, dtypes=dtypes, row_bytes=row_bytes)
        for timed, chosen, dtypes, row_bytes in (
            ((1 << 17, 64, 1), {"ROW_THREADS": 8, "ROWS": 16, "VECS": 2}, DTYPES, (0, 1 << 8)),
            ((65536, 128, 1), {"ROW_THREADS": 32, "ROWS": 8, "VECS": 1}, DTYPES, (1 << 8, 1 << 9)),
            ((65536, 256, 1), {"ROW_THREADS": 32, "ROWS": 8, "VECS": 2}, DTYPES, (1 << 9, 1 << 10)),
            ((32768, 512, 1), {"ROW_THREADS": 32, "ROWS": 8, "VECS": 4}, DTYPES, (1 << 10, 1 << 11)),
            ((16384, 1024, 1), {"ROW_THREADS": 128, "ROWS": 2, "VECS": 2}, DTYPES, (1 << 11, 1 << 12)),
            ((8192, 2048, 1), {"ROW_THREADS": 128, "ROWS": 2, "VECS": 4}, DTYPES, (1 << 12, 1 << 13)),
            ((8192, 4096, 1), {"ROW_THREADS": 256, "ROWS": 1, "VECS": 4}, DTYPES, (1 << 13, 1 << 14)),
            ((8192, 8192, 1), {"ROW_THREADS": 512, "ROWS": 1, "VECS": 4}, DTYPES, (1 << 14, 1 << 15)),
            ((4096, 16384, 1), {"ROW_THREADS": 1024, "ROWS": 1, "VECS": 8}, ("float32",), (1 << 16, 1 << 17)),
            ((4096, 16384, 1), {"ROW_THREADS": 1024, "ROWS": 1, "VECS": 4}, DTYPES, (1 << 15, 1 << 16)),
        )
    ]
    cluster = [
        House("softmax/cluster.cu", "softmax", gpu_row_sizes, timed, tunables=chosen, row_bytes=row_bytes)
        for timed, chosen, row_bytes in (
            ((4096, 32768, 1), {"CLUSTER": 8, "THREADS": 128, "VECS": 8}, (1 << 16, 1 << 17)),
            ((4096, 65536, 1), {"CLUSTER": 8, "THREADS": 256, "VECS": 8}, (1 << 17, 1 << 18)),
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
    # Plain ones take longer blocks of keys than those with Programs, causal ones another stage.
    hopper = [
        _gpu_attention("hopper.cu", head, chosen, HALVES, programs=for_what[0], plain=for_what[1], causal=for_what[2])
        for head, chosen, for_what in (
            (64, {"CONSUMERS": 3, "STAGES": 3}, (True, True, True)), (128, {}, (True, False, False)),
            (256, {"BLOCK_N": 64}, (True, False, True)), (128, {"STAGES": 3}, (False, False, True)),
            (128, {"BLOCK_N": 160, "PINGPONG": 1}, (False, True, False)), (256, {"BLOCK_N": 80}, (False, True, False)),
        )
    ]  # fmt: skip
    hopper += [_gpu_attention("decode_hopper.cu", head, {"STAGES": n}, HALVES, True) for head, n in ((64, 3), (128, 3), (256, 2))]
    norms = [*_gpu_norms("layer_norm", "layer"), *_gpu_norms("rms_norm", "rms")]
    products = [*_gpu_products("matmul"), *_gpu_products("linear"), *_gpu_convs()]
    return (*rows, *cluster, *others, *attention, *hopper, *norms, *products)


GPU_HOUSE = _gpu_house()
