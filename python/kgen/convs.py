"""Cases of conv2d that no model was captured for: as epilogues.py has them for linear and matmul, whose epilogues these share,
in the dims of the contract's output. A part of spread.py and ship.py, which ask for them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from . import epilogues, keydims
from .epilogues import Key, Product, Program, chosen_of, named

__all__ = ["At", "chosen_of", "dense", "of_key", "range_trials", "timing_trials", "trial", "with_programs"]


@dataclass(frozen=True)
class At:
    """The dims of a conv2d; o and cg are of all groups and of one."""

    n: int
    cg: int
    h: int
    w: int
    o: int
    kh: int = 3
    kw: int = 3
    sh: int = 1
    sw: int = 1
    ph: int = 0
    pw: int = 0
    dh: int = 1
    dw: int = 1
    g: int = 1

    @staticmethod
    def of(dims: dict[str, int]) -> At:
        return At(**{f: dims[f.upper()] for f in At.__dataclass_fields__})

    @property
    def c(self) -> int:
        return self.cg * self.g

    @property
    def oh(self) -> int:
        return (self.h + 2 * self.ph - self.dh * (self.kh - 1) - 1) // self.sh + 1

    @property
    def ow(self) -> int:
        return (self.w + 2 * self.pw - self.dw * (self.kw - 1) - 1) // self.sw + 1

    @property
    def sound(self) -> bool:
        return self.oh > 0 and self.ow > 0 and self.o % self.g == 0

    def output(self, last: bool = False) -> Product:
        """The output's dims as those of a product."""
        p = self.oh * self.ow
        return Product(self.n, p, self.o, 1) if last else Product(self.n, self.o, p, 1)

    @property
    def elements(self) -> int:
        return self.n * (self.c * self.h * self.w + self.o * self.oh * self.ow) + self.o * self.cg * self.kh * self.kw

    def __str__(self) -> str:
        text = f"N={self.n} C={self.c} {self.h}x{self.w} O={self.o} K={self.kh}x{self.kw}"
        text += f" S={self.sh},{self.sw}" if (self.sh, self.sw) != (1, 1) else ""
        text += f" P={self.ph},{self.pw}" if (self.ph, self.pw) != (0, 0) else ""
        text += f" D={self.dh},{self.dw}" if (self.dh, self.dw) != (1, 1) else ""
        return text + (f" G={self.g}" if self.g != 1 else "")


# ---- Cases ----

# Of the operands: c row-major, i with gaps between rows and channels, s with gaps throughout, l channels last (with an output
# that is, too).
LAYOUTS = ("c", "i", "s", "l")


def _strides(shape: Sequence[int], layout: str) -> list[int]:
    n, c, h, w = shape
    if layout == "l":
        return [c * h * w, 1, w * c, c]
    step, gap = (2 if layout == "s" else 1), (0 if layout == "c" else 3)
    rows = w * step + gap
    plane = h * rows + gap * 8
    return [c * plane, plane, rows, step]


def trial(op: str, dtype: str, at: At, chosen: Sequence[str] = (), program: Program | None = None, label: str = "plain",
          layout: str = "c", align: int = 64) -> Any:  # fmt: skip
    """chosen: which optional tensors are there. A layout l is of both operands; one that torch would not take for channels
    last, since all it permutes is of size 1, gives no output that is."""
    from . import spread
    from .convolution import is_channels_last_strides

    x, w = (at.n, at.c, at.h, at.w), (at.o, at.cg, at.kh, at.kw)
    of_x, of_w = _strides(x, layout), _strides(w, layout)
    last = is_channels_last_strides(x, of_x) or is_channels_last_strides(w, of_w)
    args: dict[str, Any] = {
        "input": spread.entry(dtype, x, of_x, align),
        "weight": spread.entry(dtype, w, of_w, align),
        "bias": spread.entry(dtype, [at.o], align=align) if "bias" in chosen else None,
        "stride": [at.sh, at.sw], "padding": [at.ph, at.pw], "dilation": [at.dh, at.dw], "groups": at.g, "channels_last": last,
    }  # fmt: skip
    case, blobs = spread.case_of(op, args), {}
    if program is not None and program[0]:
        entries, blobs = spread.captured_entries(program[1])
        case["program"] = {"text": program[0], "captured": entries, "scalars": [float(s) for s in program[2]]}
    return spread.Trial(f"{op} {dtype} {at} {layout} {'+'.join((*chosen, label))}", case, blobs)


def layout_of(key: Key) -> str:
    return "l" if key["attrs"]["channels_last"] else max(key["layout"][:2])


def of_key(key: Key, at: At, program: Program | None = None, label: str = "plain") -> Any:
    return trial(key["op"], key["dtypes"][0], at, chosen_of(key), program, label, layout_of(key))


def _programs(at: At, layout: str, dtype: str) -> Iterator[tuple[str, Program]]:
    return named("conv2d", at.output(layout == "l"), dtype)


_WANTED = (At(1, 1, 1, 1, 1, 1, 1), At(2, 3, 17, 19, 8, ph=1, pw=1), At(1, 16, 15, 33, 40, 5, 3, 2, 2, 2, 1), At(2, 8, 20, 20, 16, 3, 3, 1, 1, 2, 2, 2, 2),
           At(3, 4, 13, 9, 24, 3, 3, 1, 2, 1, 1, 1, 1, 4), At(2, 1, 14, 14, 32, ph=1, pw=1, g=32))  # fmt: skip
# A layer within a network, its first, one of 1 x 1.
_TIMED = (At(16, 64, 56, 56, 64, ph=1, pw=1), At(16, 3, 224, 224, 64, 7, 7, 2, 2, 3, 3), At(16, 256, 28, 28, 512, 1, 1))


def inside(dims: dict[str, Any], wanted: Sequence[At]) -> list[At]:
    """The sizes of a pin's range that are nearest to these and make an output."""

    found: list[At] = []
    for want in wanted:
        at = At.of({name: keydims.inside(dims[name], getattr(want, name.lower())) for name in dims if name != "C"})
        at = replace(at, o=max(at.g, at.o // at.g * at.g))
        if at.sound and at not in found:
            found.append(at)
    return found


def range_sizes(key: Key) -> list[At]:
    from .spread import MOST

    found = inside(key["dims"], _WANTED)
    return [at for at in found if at.elements <= MOST] or [min(found, key=lambda at: at.elements)]


def range_trials(key: Key) -> list[Any]:
    """Over the range of a dynamic pin; with the Program "*", what people write at one size."""
    sizes = range_sizes(key)
    if key.get("program") is None:
        return [of_key(key, at) for at in sizes]
    at = sizes[min(1, len(sizes) - 1)]
    return [of_key(key, at, p, name) for name, p in _programs(at, layout_of(key), key["dtypes"][0])]


def timing_trials(key: Key) -> list[Any]:
    sizes = inside(key["dims"], _TIMED)
    if key.get("program") is None:
        return [of_key(key, at) for at in sizes]
    made = []
    for at in sizes:
        program = next(p for name, p in _programs(at, layout_of(key), key["dtypes"][0]) if name == "relu")
        made.append(of_key(key, at, program, "relu"))
    return made


# ---- of house kernels ----


def gpu_sizes() -> list[At]:
    """Sizes around the tiles' edges, with each kind of attribute, few channels, depthwise, 1 x 1, and a few large ones."""
    dims, channels, outs = (1, 5, 8, 13, 16, 17, 28, 33), (1, 2, 3, 5, 8, 16, 17, 32, 40, 64, 72), (1, 3, 8, 16, 31, 64, 65, 96, 128, 130)
    kernels = ((1, 1), (3, 3), (5, 5), (1, 3), (7, 7), (2, 2), (3, 1), (4, 3), (11, 11))
    made = []
    for i in range(72):
        kh, kw = kernels[i % 9]
        at = At(1 + i % 3, channels[i * 7 % 11], dims[i * 3 % 8] + kh, dims[i * 5 % 8] + kw, outs[i * 3 % 10], kh, kw, 1 + i // 4 % 3,
                1 + i // 5 % 2, i // 2 % 3, i // 3 % 4, 1 + i // 7 % 2 * (kh < 4), 1 + i // 11 % 3 * (kw < 4))  # fmt: skip
        if i % 6 == 5:
            g = (2, 3, 4, 8)[i // 6 % 4]
            at = replace(at, g=g, o=g * (1 + i % 20))
        made.append(at)
    made += [At(2, 1, 20, 23, 32 * m, 3 + 2 * m, 3, s, s, 1, 1, 1, 1, 32) for m, s in ((1, 1), (2, 2), (1, 2))]
    made += [At(1, 3, 224, 224, 96, 11, 11, 4, 4, 2, 2), At(2, 64, 56, 56, 64, ph=1, pw=1), At(4, 256, 14, 14, 512, 1, 1)]
    made += [At(1, 512, 7, 7, 512, ph=1, pw=1), At(1, 1, 1000, 1003, 4, 5, 5, 2, 2, 2, 2), At(300, 4, 5, 5, 8)]
    return [at for at in dict.fromkeys(made) if at.sound]


def gpu_first_sizes() -> list[At]:
    """First layers: few input channels and no groups or dilation, sizes around the tiles' edges."""
    dims, outs = (3, 16, 31, 57, 64, 90), (1, 8, 33, 64, 96, 130)
    kernels = ((3, 3), (7, 7), (11, 11), (5, 5), (4, 4), (5, 3), (8, 8))
    made = []
    for i in range(42):
        kh, kw = kernels[i % 7]
        made.append(At(1 + i % 3, 2 + i // 2 % 3, dims[i * 5 % 6] + kh, dims[i * 7 % 6 - i % 2] + kw, outs[i * 5 % 6], kh, kw, 1 + i // 3 % 4,
                       1 + i // 4 % 4, i % 4, i // 4 % 3))  # fmt: skip
    made += [At(1, 3, 224, 224, 96, 11, 11, 4, 4, 2, 2), At(4, 3, 224, 224, 64, 7, 7, 2, 2, 3, 3), At(2, 3, 112, 112, 64, ph=1, pw=1)]
    made += [At(300, 3, 5, 5, 8), At(64, 4, 30, 30, 64, 8, 8, 4, 4)]
    return [at for at in dict.fromkeys(made) if at.sound]


def gpu_depthwise_sizes() -> list[At]:
    """Of one channel a group, and of few or many."""
    dims, outs, kernels = (1, 4, 7, 8, 14, 31, 33, 56, 57), (1, 2, 3, 8, 24, 65), ((3, 3), (5, 5), (7, 7), (3, 1), (2, 4), (11, 11), (1, 1))
    made = []
    for i in range(42):
        kh, kw = kernels[i % 7]
        g = outs[i % 6]
        made.append(At(1 + i % 3, 1, dims[i * 2 % 9] + kh, dims[i * 7 % 9] + kw, g * (1 + i // 6 % 3), kh, kw, 1 + i // 2 % 3, 1 + i // 3 % 2,
                       i % 4, i // 4 % 3, 1 + i // 7 % 2 * (kh < 4), 1 + i // 9 % 2 * (kw < 4), g))  # fmt: skip
    made += [At(8, 1, 112, 112, 32, ph=1, pw=1, g=32), At(2, 1, 7, 7, 960, 5, 5, ph=2, pw=2, g=960), At(1, 1, 1000, 1003, 4, sh=2, sw=2, g=4)]
    return [at for at in dict.fromkeys(made) if at.sound]


def dense(op: str, dtype: str, sizes: Sequence[At], chosen: Sequence[str], aligns: Sequence[int], layouts: str = "") -> list[Any]:
    """One plain Case a size, with the layouts (all but l, unless some are named) and alignments in turn."""
    kinds = layouts or "cis"
    return [
        trial(op, dtype, at, chosen, layout=kinds[i % len(kinds)], align=aligns[i // len(kinds) % len(aligns)])
        for i, at in enumerate(sizes)
    ]


def with_programs(op: str, dtype: str, sizes: Sequence[At], at: At, chosen: Sequence[str], aligns: Sequence[int], count: int,
                  turn: int, of: int, layouts: str = "") -> list[Any]:  # fmt: skip
    """What people write at one size, each size with one of them, and this dtype's part of the random ones."""
    from . import spread

    first = layouts[:1] or "c"
    found = [trial(op, dtype, at, chosen, p, name, first) for name, p in _programs(at, first, dtype)]
    for i, (size, plain) in enumerate(zip(sizes, dense(op, dtype, sizes, chosen, aligns, layouts), strict=True)):
        output = size.output(plain.case["args"]["channels_last"])
        usable = list(named(op, output, dtype))
        usable = usable if output.b * output.m * output.n <= 1 << 18 else usable[:7]  # no tables of all elements
        name, (text, captured, scalars) = usable[i % len(usable)]
        entries, blobs = spread.captured_entries(captured)
        case = {**plain.case, "program": {"text": text, "captured": entries, "scalars": [float(s) for s in scalars]}}
        found.append(replace(plain, label=f"{plain.label} {name}", case=case, blobs=blobs))
    for i, (name, p) in enumerate(epilogues.random_ones(count, at.output(first == "l"))):
        if i % of == turn:
            found.append(trial(op, dtype, at, chosen, p, name, first))
    return found
