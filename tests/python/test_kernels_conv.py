"""The house kernels of conv2d for CUDA, run by the emulator: values against fp64 over sizes that hang over tiles, strides,
paddings, dilations, groups, both memory formats and gaps, epilogues, what is not finite; threads in both orders; mutants,
which must fail."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from emulator import Call, EmulatorError, emulate
from kgen.convolution import contract_dims, is_channels_last
from test_kernels_cuda import BF16, F16, F32, maybe_slow, source
from test_kernels_cuda import source as source_of
from test_kernels_matmul import GELU
from torch import Tensor

RESIDUAL = "program 1\ntensor t0 float32 3\nscalar s0 float32\nepilogue\n%0 = load float32 t0 b m n\n%1 = mul float32 acc s0\n%2 = add float32 %0 %1\nreturn %2\n"

# N, C, H, W, O, KH, KW, then stride, padding, dilation, groups.
Shape = tuple[int, int, int, int, int, int, int, tuple[int, int], tuple[int, int], tuple[int, int], int]
ONE, NONE = (1, 1), (0, 0)
SHAPES: dict[str, Shape] = {
    "plain": (2, 8, 9, 7, 20, 3, 3, ONE, ONE, ONE, 1),
    "odd": (1, 5, 13, 11, 70, 3, 2, (2, 1), (1, 2), (1, 2), 1),
    "1 x 1": (3, 16, 8, 8, 24, 1, 1, ONE, NONE, ONE, 1),
    "groups": (2, 12, 10, 9, 24, 3, 3, (1, 2), (2, 0), ONE, 4),
    "first": (1, 3, 24, 24, 8, 7, 7, (2, 2), (3, 3), ONE, 1),
    "wide": (1, 16, 12, 12, 130, 3, 3, ONE, ONE, (2, 2), 1),
    "strided first": (2, 3, 40, 33, 20, 11, 11, (4, 4), (2, 2), ONE, 1),
    "long": (2, 40, 9, 14, 100, 3, 3, ONE, (2, 1), (2, 1), 1),
    "depthwise": (2, 6, 8, 9, 12, 3, 3, ONE, ONE, ONE, 6),
    "one": (1, 1, 1, 1, 1, 1, 1, ONE, NONE, ONE, 1),
}  # fmt: skip


def operand(shape: tuple[int, ...], dtype: torch.dtype, layout: str) -> Tensor:
    """layout: c, l channels last, s with gaps throughout."""
    if layout == "s":
        return torch.randn(*shape[:-1], 2 * shape[-1] + 3).to(dtype)[..., : 2 * shape[-1] : 2]
    x = torch.randn(shape).to(dtype)
    return x.to(memory_format=torch.channels_last) if layout == "l" else x


def call(shape: Shape, dtype: torch.dtype, layout: str = "c", bias: bool = True, program: str = "") -> Call:
    n, c, h, w, o, kh, kw, stride, padding, dilation, groups = shape
    x, weight = operand((n, c, h, w), dtype, layout), operand((o, c // groups, kh, kw), dtype, layout)
    args: dict[str, Any] = {"input": x, "weight": weight, "bias": torch.randn(o).to(dtype) if bias else None, "stride": list(stride),
            "padding": list(padding), "dilation": list(dilation), "groups": groups,
            "channels_last": is_channels_last(x) or is_channels_last(weight)}  # fmt: skip
    if "t0" not in program:
        return Call("conv2d", args, program)
    text = program.replace("float32 3", f"{str(dtype).removeprefix('torch.')} 3", 1)
    return Call("conv2d", args, text, (torch.randn(computed(args, dtype).shape).to(dtype),), (0.5,))


def computed(args: dict[str, Any], dtype: torch.dtype) -> Tensor:
    given = {k: v.to(dtype) if isinstance(v, Tensor) else v for k, v in args.items() if k != "channels_last"}
    return contract_dims(F.conv2d(**given), args["channels_last"])


def holds(c: Call, got: Tensor) -> None:
    """No further from fp64 than torch, by norm, but for the last bit; not finite where torch is not."""
    own = c.args["input"].dtype

    def after(dtype: torch.dtype) -> Tensor:
        y = computed(c.args, dtype)
        y = F.gelu(y) if "erf" in c.program else y
        return c.captured[0].to(dtype) + y * c.scalars[0] if c.scalars else y

    oracle, theirs, ours = after(torch.float64), after(own).double(), got.double()
    what = f"{[tuple(v.shape) if isinstance(v, Tensor) else v for v in c.args.values()]} {own}"
    assert got.dtype == own and got.shape == oracle.shape
    assert torch.equal(torch.isnan(ours), torch.isnan(theirs)) and torch.equal(torch.isinf(ours), torch.isinf(theirs)), what
    finite = torch.isfinite(theirs)
    ours, oracle, theirs = (torch.where(finite, t, 0.0) for t in (ours, oracle, theirs))
    rounding = {F32: 2.0**-23, F16: 2.0**-11, BF16: 2.0**-8}[own]
    assert (ours - oracle).norm() <= 1.5 * (theirs - oracle).norm() + rounding * oracle.norm(), what
    assert (ours - oracle).abs().max() <= 4 * (theirs - oracle).abs().max() + 2 * rounding * oracle.abs().max(), what


def run(name: str, calls: list[Call], tunables: dict[str, int], text: str | None = None) -> None:
    """On few multiprocessors, so that blocks go on from tile to tile."""
    outputs = []
    for backwards in (False, True):
        found_all = emulate(text or source(f"conv/{name}.cu"), calls, tunables, backwards=backwards, sms=2)
        for c, found in zip(calls, found_all, strict=True):
            holds(c, found[0])
            outputs.append(found[0])
    assert all(torch.equal(a.nan_to_num(), b.nan_to_num()) for a, b in zip(outputs[: len(calls)], outputs[len(calls) :], strict=True))


DTYPES = {"fma": (F32,), "mma": (BF16, F16), "split": (F32,), "few": (F32,), "depthwise": (F32, BF16, F16)}
# Way: source, tunables, layouts of the operands.
WAYS: dict[str, tuple[str, dict[str, int], str]] = {
    "fma": ("fma", {}, "cs"),
    "fma, last": ("fma", {"LAST": 1}, "l"),
    "fma, small": ("fma", {"BLOCK_O": 32, "BLOCK_P": 32, "SIDE": 4, "STEP": 16}, "c"),
    "fma, 96": ("fma", {"BLOCK_O": 96, "STEP": 16}, "c"),
    "mma": ("mma", {}, "cs"),
    "mma, last": ("mma", {"LAST": 1}, "l"),
    "mma, large": ("mma", {"BLOCK_O": 128, "WARPS_P": 4, "STAGES": 2}, "c"),
    "split": ("split", {}, "cs"),
    "split, last": ("split", {"LAST": 1}, "l"),
    "split, 128": ("split", {"BLOCK_N": 128}, "c"),
    "split, 64": ("split", {"BLOCK_N": 64, "LAST": 1}, "l"),
    "few": ("few", {}, "cs"),
    "few, last": ("few", {"LEFT": 1, "LAST": 1}, "l"),
    "few, wide": ("few", {"TAP_W": 2, "TILES": 2, "BLOCK_N": 64}, "cs"),
    "few, wider": ("few", {"TAP_W": 3, "TILES": 2, "BLOCK_N": 64, "LAST": 1}, "l"),
    "mma, 16 channels": ("mma", {"BLOCK_O": 16, "WARPS_O": 1, "WARPS_P": 4, "STAGES": 4, "LAST": 1}, "l"),
}  # fmt: skip


# Of few channels, without dilation: columns that a last place does without, a kernel smaller than its stride, rows of one
# place, many short rows in a slot, several tiles of channels, more tiles than slots.
FEW: dict[str, Shape] = {
    "odd": (3, 1, 13, 11, 70, 5, 4, (2, 1), (1, 2), ONE, 1),
    "strided": (2, 3, 40, 33, 20, 11, 11, (4, 4), (2, 2), ONE, 1),
    "first": (1, 3, 24, 24, 8, 7, 7, (2, 2), (3, 3), ONE, 1),
    "flat": (2, 4, 7, 90, 100, 3, 9, (3, 2), (0, 5), ONE, 1),
    "sparse": (2, 4, 23, 20, 130, 2, 2, (3, 5), (1, 0), ONE, 1),
    "thin": (7, 2, 50, 3, 5, 3, 3, ONE, ONE, ONE, 1),
    "patches": (2, 3, 16, 24, 33, 6, 6, (6, 6), NONE, ONE, 1),
    "plain": (2, 8, 15, 28, 20, 3, 3, ONE, ONE, ONE, 1),
    "point": (19, 4, 5, 5, 8, 5, 5, ONE, NONE, ONE, 1),
}  # fmt: skip


@pytest.mark.parametrize("way", [maybe_slow(w in ("fma", "mma, last", "split", "few"), w) for w in WAYS])
def test_values(way: str) -> None:
    torch.manual_seed(0)
    name, tunables, layouts = WAYS[way]
    shapes = FEW if name == "few" else SHAPES
    for dtype in DTYPES[name]:
        calls = [call(s, dtype, layout, bias=i % 2 == 0) for layout in layouts for i, s in enumerate(shapes.values())]
        calls = [c for c in calls if c.args["channels_last"] == bool(tunables.get("LAST"))]
        calls = [c for c in calls if name != "few" or tunables.get("TAP_W", 1) * c.args["stride"][1] < c.args["weight"].shape[3] + c.args["stride"][1]]
        calls = [c for c in calls if name != "split" or c.args["groups"] == 1 and c.args["weight"][0].numel() >= 16]
        assert len(calls) >= len(shapes) - 3
        run(name, calls, tunables)


@pytest.mark.parametrize("name, tunables", [maybe_slow(n == "odd", n, t) for n, t in (
    ("odd", {"TILES": 2}), ("strided", {}), ("strided", {"TAP_W": 2, "LEFT": 1, "TILES": 2}), ("first", {"TAP_W": 2, "BLOCK_N": 64}),
    ("flat", {"LEFT": 1}), ("patches", {"TILES": 2}), ("plain", {"TAP_W": 3}))])  # fmt: skip
def test_few_of_one_size(name: str, tunables: dict[str, int]) -> None:
    """Their constants are the compiler's then: other stores, other groups of steps."""
    torch.manual_seed(6)
    c = call(FEW[name], F32, "s" if name == "odd" else "c", program=RESIDUAL if name == "odd" else "")
    for backwards in (False, True):
        holds(c, emulate(source("conv/few.cu"), [c], tunables, any_size=False, backwards=backwards, sms=2)[0][0])


DEPTHWISE: dict[str, Shape] = {
    "plain": (2, 6, 9, 13, 6, 3, 3, ONE, ONE, ONE, 6),
    "odd": (1, 5, 13, 11, 15, 5, 2, (2, 1), (1, 2), (1, 2), 5),
    "strided": (2, 3, 30, 17, 3, 7, 7, (2, 2), (3, 3), ONE, 3),
    "dilated": (1, 2, 20, 9, 2, 3, 3, (3, 1), (2, 2), (2, 2), 2),
    "low": (3, 4, 2, 300, 8, 2, 3, ONE, NONE, ONE, 4),
    "one": (1, 1, 1, 1, 1, 1, 1, ONE, NONE, ONE, 1),
}  # fmt: skip


@pytest.mark.parametrize("any_size", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_depthwise(any_size: bool) -> None:
    """Built for any size, and for each."""
    torch.manual_seed(5)
    text = source("conv/depthwise.cu")
    for i, (dtype, layout) in enumerate(zip(DTYPES["depthwise"], "csc", strict=True)):
        calls = [call(s, dtype, layout, bias=k % 2 == 0, program=RESIDUAL if k == 1 else "") for k, s in enumerate(DEPTHWISE.values())]
        plain, alone = [c for c in calls if not c.program], [c for c in calls if c.program]
        for group in ([plain, alone] if any_size else [[c] for c in calls[i::3]]):
            for c, (got,) in zip(group, emulate(text, group, {"ROWS": (4, 2, 8)[i]}, any_size, backwards=i == 1), strict=True):
                holds(c, got)


@pytest.mark.parametrize("name, last", [("fma", 0), ("mma", 1), pytest.param("split", 0, marks=pytest.mark.slow), ("split", 1), ("few", 0)])
@pytest.mark.parametrize("epilogue", ["gelu", "residual"])
def test_epilogues(name: str, last: int, epilogue: str) -> None:
    torch.manual_seed(1)
    program = {"gelu": GELU, "residual": RESIDUAL}[epilogue]
    shapes, third = (FEW if name == "few" else SHAPES), "first" if name in ("split", "few") else "groups"
    calls = [call(shapes[s], DTYPES[name][0], "l" if last else "c", True, program) for s in ("plain", "odd", third)]
    run(name, calls, {"LAST": last})


@pytest.mark.parametrize("name", ["fma", "mma", "split", "few"])
def test_not_finite(name: str) -> None:
    torch.manual_seed(2)
    c = call((2, 5, 13, 11, 70, 3, 2, (2, 1), (1, 2), ONE, 1) if name == "few" else SHAPES["odd"], DTYPES[name][0])
    x = c.args["input"]
    x[0, 1, 2, 3], x[0, 2, 9, 9], x[0, 3, 12, 0] = torch.nan, torch.inf, -torch.inf
    run(name, [c], {})


def stray_calls() -> list[Call]:
    """Images and weights that two planes cannot hold: sizes that make up for each other, tiny ones, one element far below
    the others, NaN and infinities; each beside plain ones."""
    wide = call((4, 8, 9, 10, 20, 3, 3, ONE, ONE, ONE, 1), F32, bias=False)
    x, w = wide.args["input"], wide.args["weight"]
    x[1] *= torch.logspace(-15, 15, 8)[:, None, None]
    w[5] *= torch.logspace(15, -15, 8)[:, None, None]
    w[7, 0, 0, 0] = 1e-14
    x[2] *= 1e-36
    x[3, 0] *= 1e-12  # all that a channel sees of an image with larger ones
    w[9, 1:] = 0
    special = call((3, 3, 12, 12, 9, 3, 3, (2, 2), ONE, ONE, 1), F32)
    special.args["input"][1, 0, 3, 3], special.args["weight"][4, 1, 1, 1] = torch.inf, torch.nan
    return [wide, special]


@pytest.mark.parametrize("name", ["split", "few"])
def test_strays_are_exact(name: str) -> None:
    """Each image and each channel by itself."""
    torch.manual_seed(4)
    calls = stray_calls()
    for c, (got,) in zip(calls, emulate(source(f"conv/{name}.cu"), calls, {}, sms=2), strict=True):
        exact, theirs = computed(c.args, torch.float64), computed(c.args, F32).double()
        assert torch.equal(torch.isfinite(got), torch.isfinite(theirs)) and torch.equal(torch.isnan(got), torch.isnan(theirs))
        for n in range(exact.shape[0]):
            for o in range(exact.shape[1]):
                kept = torch.isfinite(exact[n, o]) & torch.isfinite(theirs[n, o])
                ours, want, own = got[n, o].double()[kept], exact[n, o][kept], theirs[n, o][kept]
                assert (ours - want).norm() <= 2 * (own - want).norm() + 2.0**-21 * want.norm(), (n, o)


# Way, what is changed, into what.
MUTANTS: dict[str, tuple[str, str, str]] = {
    "the padding is not zero": ("fma", "(u32)(l.w + p.j * t.dilation_w) < (u32)t.w", "true"),
    "no dilation": ("fma", "(l.h + p.i * t.dilation_h) * t.row", "(l.h + p.i) * t.row"),
    "groups share their channels": ("fma", "input + (long long)group * cg * x1", "input"),
    "a buffer too early": ("fma", "        __syncthreads();\n        if (s + 1", "        if (s + 1"),
    "the next tap is the same": ("mma", "    if (++p.j < CONV_KW)\n        return;\n    p.j = 0;", "    if (++p.j < CONV_KW)\n        return;"),
    "a barrier is missing": ("mma, last", "__syncthreads();\n        /* Into", "/* Into"),
    "the end of the sum is not seen": ("mma", "e < left && inside", "inside"),
    "the corrections are forgotten": ("split", "fmaf(low[i], 1.0f / LOW_SCALE, sums[i])", "sums[i]"),
    "low planes are swapped": ("split", "a_low + 2 * i, b + 2 * i", "a_low + 2 * i, b_low + 2 * i"),
    "a stage is loaded before it is free": ("split", "barrier_wait(f.empty + 8 * r.stage, r.phase ^ 1);", ""),
    "a stage is let go too early": ("split", "barrier_init(empty + 8 * i, 8)", "barrier_init(empty + 8 * i, 4)"),
    "copies are not waited for": ("split", "cp.async.wait_group 1;", "cp.async.wait_group 2;"),
    "the first step is added to what was there": ("split", "b_low + 2 * i, k | i)", "b_low + 2 * i, 1)"),
    "no image is a stray": ("strays", "return hopeless(s.tops[image]) || s.misfits[image] > (u64)elements;", "return false;"),
    "losses do not count": ("strays", "x == 0 || d < 28 ? 0 :", "true ? 0 :"),
    "no weight is a stray": ("strays", "= hopeless(top) || *losses > (u64)all", "= 0"),
    "few: the corrections are forgotten": ("few", "fmaf(low[i + e], 1.0f / LOW_SCALE, sums[i + e])", "sums[i + e]"),
    "few: the low plane of weights is the high one": ("few", "whole(b[i] + BLOCK_N)", "whole(b[i])"),
    "few: a slot is filled before it is free": ("few", "barrier_wait(shared + l.empty + 8 * slot, nth & 1 ^ 1);", ";"),
    "few: a slot is let go too early": ("few", "barrier_init(shared + l.empty + 8 * i, 4 *", "barrier_init(shared + l.empty + 8 * i, 1 *"),
    "few: a tile does not wait for its slots": ("few", "barrier_wait(shared + l.full + 8 * (i + s.needed - 1), nth & 1);", ";"),
    "few: a tile that is not there keeps its slots": ("few", "            if (lane < s.needed)", "            if (lane < s.needed && i < a.count)"),
    "few: weights are not waited for": ("few", "barrier_init(shared + l.ready, 1);", "barrier_init(shared + l.ready, 1), barrier_arrive(shared + l.ready);"),
    "few: rows below the image are read": ("few", "(u32)(of.y + row) < (u32)g.h", "of.y + row >= 0"),
    "few: what hangs over is a pixel": ("few", "p.row < s.oh && p.column < s.ow", "p.row < s.oh"),
    "few: the short columns are last": ("few", "const int last = s.kw - (s.taps_w - 1) * s.columns, column = nth + last;", "const int last = s.columns, column = nth + last;"),
    "few: pieces that a last place lacks are counted": ("few", "return {s.cut + left / wide", "return {left / wide"),
    "few: the other eight terms are those behind": ("few", "operand_at(at * 16, next - at)", "operand_at(at * 16, 1)"),
    "few: an odd piece meets no zeros": ("few", "i == 0 && s.odd ? o.tile << 16 : 0", "i < 0 ? 1 : 0"),
    "few: half of a scale is not undone": ("few", "(scale.y * g.y)", "g.y"),
    "few: losses do not count": ("few strays", "x == 0 || d < 28 ? 0 :", "true ? 0 :"),
    "few: no place is a stray": ("few strays", "by.back.y, stray ? 1.0f", "by.back.y, false ? 1.0f"),
    "few: no weight is a stray": ("few strays", "lost_all || *losses > (u64)all ? 1.0f", "false ? 1.0f"),
    "few: the least is not looked for": ("few strays", "exponent(x.least + 1) >= 28", "exponent(x.least + 1) >= 280"),
    "rows below the image are read": ("depthwise", "(u32)y < (u32)v.h && ", "y >= 0 && y <= v.h && "),
    "a channel of another group": ("depthwise", "o / fold * x1", "o % (channels / fold) * x1"),
    "a stage is not waited for": ("mma, last", '"n"(STAGES - 2)', '"n"(STAGES - 1)'),
}  # fmt: skip


QUICK = ("no dilation", "a barrier is missing", "losses do not count", "a stage is let go too early", "few: a slot is filled before it is free",
         "few: no place is a stray", "few: pieces that a last place lacks are counted", "few: what hangs over is a pixel")  # fmt: skip


@pytest.mark.parametrize("mutant", [maybe_slow(m in QUICK, m) for m in MUTANTS])
def test_mutants_fail(mutant: str, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(3)
    way, old, new = MUTANTS[mutant]
    if way.endswith("strays"):
        name = "few" if way == "few strays" else "split"
        text = source_of(f"conv/{name}.cu", (old, new))
        monkeypatch.setitem(globals(), "source", lambda _: text)
        with pytest.raises(AssertionError):
            test_strays_are_exact(name)
        return
    name, tunables, layouts = ("depthwise", {}, "c") if way == "depthwise" else WAYS[way]
    named = {"depthwise": ("odd",), "split": ("odd", "long", "wide"), "few": ("plain", "strided", "flat", "point")}.get(name, ("odd", "groups", "wide"))
    shapes = {"depthwise": DEPTHWISE, "few": FEW}.get(name, SHAPES)
    calls, text = [call(shapes[s], DTYPES[name][0], layouts[0]) for s in named], source_of(f"conv/{name}.cu", (old, new))
    with pytest.raises((AssertionError, EmulatorError)) as e:
        run(name, calls, tunables, text)
    assert "error:" not in str(e.value), f"the mutant does not compile: {e.value}"
