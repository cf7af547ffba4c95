"""The house kernels for layer_norm and rms_norm: on the CPU through the judge, for CUDA through the emulator. Values
against fp64 over shapes that straddle vectors, each choice of weight and bias, rows far from zero, misaligned views, NaN
and Inf, blocks of a grid that wait for each other; and mutants, which must fail on the same inputs."""

from __future__ import annotations

import itertools
import re
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from emulator import KERNELS, Call, EmulatorError, emulate
from test_kernels_cpu import ARCHES, case_of, maybe_slow, passes, slow, source, spec
from torch import Tensor

from kgen.errors import BadInput
from kgen.judge import Judge
from kgen.task import canonical_contract

BF16, F16, F32 = torch.bfloat16, torch.float16, torch.float32
NAMES = {"layer_norm": "layer", "rms_norm": "rms"}
AFFINE = {"layer_norm": ((True, True), (True, False), (False, False), (False, True)), "rms_norm": ((True, False), (False, False))}


def arguments(op: str, shape: tuple[int, ...], dims: int, dtype: torch.dtype, affine: tuple[bool, bool], offset: int = 0,
              eps: float | None = 1e-5) -> dict[str, Any]:  # fmt: skip
    """Arguments of one call, input and weight `offset` elements into their storages."""
    normalized = list(shape[len(shape) - dims :])

    def draw(sizes: list[int], scale: float, mean: float) -> Tensor:
        numel = torch.Size(sizes).numel()
        return (torch.randn(numel + offset) * scale + mean).to(dtype)[offset:].view(sizes)

    args: dict[str, Any] = {"input": draw(list(shape), 1.0, 0.0), "normalized_shape": normalized}
    args["weight"] = draw(normalized, 0.5, 1.0) if affine[0] else None
    if op == "layer_norm":
        args["bias"] = draw(normalized, 1.0, 0.0) if affine[1] else None
    return {**args, "eps": eps}


def computed(op: str, args: dict[str, Any], wide: bool) -> Tensor:
    """torch's own result, or the same in fp64; None as eps is that of fp32 in both."""
    given = [v.double() if wide and isinstance(v, Tensor) else v for v in args.values()]
    given[-1] = 2.0**-23 if given[-1] is None else given[-1]
    return getattr(F, op)(*given)


def kinds(x: Tensor) -> list[Tensor]:
    """The distributions: as drawn, far from zero, large, tiny, and with rows of NaN and Inf."""
    special = x.clone()
    rows = special.view(-1, x.shape[-1])
    if len(rows) > 2 and x.shape[-1]:
        rows[0, -1], rows[1, 0] = torch.nan, torch.inf
    return [x, (1000 + 0.1 * x.float()).to(x.dtype), 40 * x, 1e-3 * x, special]


# ---- CPU ----

LENGTHS = (1, 3, 15, 16, 17, 64, 65, 1000, 4097, 9001)


def add(judge: Judge, op: str, shape: tuple[int, ...], dims: int, dtype: torch.dtype, affine: tuple[bool, bool],
        eps: float | None = 1e-5) -> None:  # fmt: skip
    args = arguments(op, shape, dims, dtype, affine, eps=eps)
    case = judge.add_case(case_of(op, {n: spec(v) if isinstance(v, Tensor) else v for n, v in args.items()}))
    for x in kinds(args["input"]):
        given = {**args, "input": x}
        tensors = [v for v in given.values() if isinstance(v, Tensor) or v is None][: 3 if op == "layer_norm" else 2]
        judge.add_set(case, tensors, [computed(op, given, True)], results=[computed(op, given, False)])


@pytest.mark.parametrize(
    "op, arch, dtype",
    [maybe_slow(a == ARCHES[-1] if op == "layer_norm" else (a == ARCHES[-1] and d == F32), op, a, d)
     for op in NAMES for a in ARCHES for d in (F32, F16, BF16)],
)  # fmt: skip
def test_rows_on_the_cpu(op: str, arch: str, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    with Judge(canonical_contract(op).decode(), arch=arch) as judge:
        for i, n in enumerate(LENGTHS):
            add(judge, op, (5, n), 1, dtype, AFFINE[op][i % len(AFFINE[op])])
        add(judge, op, (2, 3, 4, 5), 2, dtype, (True, True))
        add(judge, op, (3, 100), 1, dtype, (True, False), None if op == "rms_norm" else 0.5)
        passes(judge, source(f"norm/{NAMES[op]}_rows.c"), any_size=True)


def test_a_row_whose_first_elements_say_little_of_it() -> None:
    """The first run has another mean than the rest, in a row of many runs."""
    torch.manual_seed(0)
    x = torch.randn(3, 20000)
    x[0, :4096] += 1000
    x[1, 4096:] += 1000
    x[2] = 1000
    with Judge(canonical_contract("layer_norm").decode()) as judge:
        args = {"input": x, "normalized_shape": [20000], "weight": None, "bias": None, "eps": 1e-5}
        case = judge.add_case(case_of("layer_norm", {**args, "input": spec(x)}))
        judge.add_set(case, [x, None, None], [computed("layer_norm", args, True)], torch_errors=[(1e-7, 1e-7)])
        record = judge.run(source("norm/layer_rows.c"))
        assert record["verdict"] == "pass" and record["cases"][0]["norm_err"] < 1e-6, record["message"]


CPU_MUTANTS = {
    "tail forgotten": ("layer_norm", "first(load_tail(x, i, n) - shift, n - i)", "load_tail(x, i, n) - shift"),
    "rest forgotten": ("layer_norm", "(float)(-rest * scale)", "0"),
    "no weight in the tail": ("rms_norm", "whole ? load(m->weight, i) : load_tail(m->weight, i, n)", "whole ? load(m->weight, i) : splat(1)"),
    "eps forgotten": ("rms_norm", "/ count + eps)", "/ count)"),
    "runs not added": ("rms_norm", "all.square += s.square", "all.square = s.square"),
}  # fmt: skip


@pytest.mark.parametrize("mutant", CPU_MUTANTS)
def test_cpu_mutants_fail(mutant: str) -> None:
    torch.manual_seed(0)
    op, old, new = CPU_MUTANTS[mutant]
    with Judge(canonical_contract(op).decode()) as judge:
        add(judge, op, (3, 9001), 1, F32, (True, True))
        name = f"norm/{NAMES[op]}_rows.c"
        passes(judge, source(name))
        verdict = judge.run(source(name, (old, new)))["verdict"]
        assert verdict in ("wrong_values", "nonfinite"), verdict


# ---- CUDA ----


def holds(op: str, args: dict[str, Any], got: Tensor) -> None:
    """Errors at most 4 times torch's own, measured against fp64; where torch is not finite, the same."""
    oracle, theirs = computed(op, args, True), computed(op, args, False).double()
    what = f"{op} {tuple(args['input'].shape)} {got.dtype}"
    assert got.dtype == args["input"].dtype and got.shape == args["input"].shape
    if not got.numel():
        return
    assert torch.equal(torch.isnan(got), torch.isnan(oracle)), f"{what}: NaN where none is due, or none where it is"
    ours, oracle, theirs = (t.double().nan_to_num() for t in (got, oracle, theirs))
    assert (ours - oracle).norm() <= 4 * (theirs - oracle).norm() + 2e-7 * oracle.norm() + 1e-30, what


WAYS: dict[str, tuple[str, dict[str, int], list[tuple[int, int]], int]] = {
    "rows of a warp": ("rows", dict(ROW_THREADS=8, ROWS=16, VECS=2, TURNS=2), [(5, 8), (33, 8), (49, 32), (17, 56), (0, 16)], 132),
    "rows of warps": ("rows", dict(ROW_THREADS=64, ROWS=2, VECS=8, TURNS=4), [(4, 8), (3, 1000), (13, 2040), (2, 2048)], 132),
    "ragged rows of a warp": ("ragged", dict(ROW_THREADS=8, ROWS=16, VECS=2), [(5, 1), (33, 8), (19, 33), (17, 56), (0, 5)], 132),
    "ragged rows of warps": ("ragged", dict(ROW_THREADS=64, ROWS=2, VECS=8), [(4, 129), (3, 1000), (5, 2040), (2, 2048)], 132),
    "long": ("long", dict(THREADS=128, UNROLL=2), [(4, 1), (0, 5), (3, 0), (3, 4097), (2, 20001), (140, 77)], 132),
    "grid": ("grid", dict(THREADS=256, IN_SHARED=6, HELD=2), [(1, 16384), (5, 16392)], 3),
    "grid at once": ("grid", dict(THREADS=256, IN_SHARED=6, HELD=1, OFFSET=0), [(4, 20000)], 3),
    # Sizes of fp32, twice that of half types: slices of all places but one vector or two, of 30 and a bit, of half of them.
    "pinned": ("pinned", {}, [(1, 65504), (5, 61472), (4, 32800)], 2),
    "pinned, asked in turn": ("pinned", dict(AHEAD=6, WHEN=2, LAST=1, APART=16), [(5, 65496)], 2),
    "pinned, groups": ("pinned", dict(PLACES=16, HELD=0, GROUPS=2, AHEAD=2, WHEN=1), [(5, 16424), (2, 32736)], 4),
    "pinned, many blocks": ("pinned", dict(PLACES=4, HELD=0, AHEAD=6, WHEN=1, LINES=1, APART=16), [(3, 16384)], 44),  # the last has nothing
}  # fmt: skip


def tunables_of(op: str, way: str) -> dict[str, int]:
    """A weight alone, as of rms_norm, fits into shared memory."""
    name, tunables, _, _ = WAYS[way]
    return {**tunables, "HELD": 0} if (op, name) == ("rms_norm", "pinned") else tunables


def calls_of(op: str, way: str, dtype: torch.dtype) -> list[tuple[dict[str, Any], ...]]:
    """Arguments by which of weight and bias are there: calls of one list have one translation unit."""
    made, name = [], WAYS[way][0]
    for k, affine in enumerate(AFFINE[op][:3] if way not in ("grid at once", "pinned, many blocks") else AFFINE[op][:1]):
        calls = []
        for i, (m, n) in enumerate(WAYS[way][2]):
            partial = n % (4 if dtype == F32 else 8) != 0 or name == "long"
            n *= 2 if name == "pinned" and dtype != F32 else 1
            args = arguments(op, (m, n), 1, dtype, affine, i % 3 if partial and name in ("ragged", "long") else 0)
            args["input"] = args["input"] * 40 if i == 2 else 1000 + 0.1 * args["input"] if i % 4 == 1 and dtype == F32 else args["input"]
            if i == 0 and k == 0 and m > 3:
                args["input"][0, -1], args["input"][1, 0] = torch.nan, torch.inf
            calls.append(args)
        made.append(tuple(calls))
    return made


QUICK = {("layer_norm", "rows of warps", BF16), ("rms_norm", "ragged rows of a warp", F32), ("layer_norm", "grid", F32)}


@pytest.mark.parametrize(
    "op, way, dtype",
    [pytest.param(o, w, d, marks=() if (o, w, d) in QUICK else slow, id=f"{o}-{w}-{str(d)[6:]}")
     for o, w, d in itertools.product(NAMES, WAYS, (F32, BF16, F16))],
)  # fmt: skip
def test_cuda(op: str, way: str, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    name, _, _, sms = WAYS[way]
    tunables = tunables_of(op, way)
    text = source(f"norm/{NAMES[op]}_{name}.cu")
    for calls in calls_of(op, way, dtype):
        first: list[Tensor] | None = None
        for backwards in (False, True):
            found = emulate(text, [Call(op, a) for a in calls], tunables, backwards=backwards, sms=sms)
            for args, outputs in zip(calls, found, strict=True):
                holds(op, args, outputs[0])
            bits = [outputs[0].view(torch.int32 if dtype == F32 else torch.int16) for outputs in found]
            assert first is None or all(map(torch.equal, first, bits)), "the order of the blocks changes bits"
            first = bits


@pytest.mark.parametrize("way, n", [("rows of a warp", 56), ("rows of warps", 1000), ("ragged rows of a warp", 3),
                                    pytest.param("ragged rows of warps", 1000, marks=slow), ("long", 4097), ("grid", 16392), ("pinned", 61472)])  # fmt: skip
@pytest.mark.parametrize("op", ["layer_norm", pytest.param("rms_norm", marks=slow)])  # which share their code
def test_cuda_rows_of_the_largest_numbers(op: str, way: str, n: int) -> None:
    """A row of equal numbers has a mean and no variance, also where its sum is infinite. Where squares overflow the result is
    that of a variance of infinity, as torch's is on a GPU."""
    torch.manual_seed(0)
    name, _, _, sms = WAYS[way]
    tunables = tunables_of(op, way)
    for dtype in (F32, BF16):
        most = torch.finfo(dtype).max
        n *= 2 if name == "pinned" and dtype != F32 else 1
        args = arguments(op, (5, n), 1, dtype, (True, True))
        x = args["input"]
        x[0], x[1], x[2, n // 2] = most, -most, most
        x[3, 0], x[3, n - 1] = most, -most
        got = emulate(source(f"norm/{NAMES[op]}_{name}.cu"), [Call(op, args)], tunables, sms=sms)[0][0].double()
        bias = args["bias"].double() if "bias" in args else torch.zeros(n, dtype=torch.float64)
        rows = 3 if dtype == F32 else 4  # with both signs the distances overflow too
        want = bias.expand(rows, n)
        assert torch.equal(got[:rows], want.to(dtype).double()), f"{dtype}: {(got[:rows] - want).abs().amax(1)}"
        assert (got[4] - computed(op, args, True)[4]).abs().max() < 0.1


@slow
@pytest.mark.parametrize("n, dtype", [(4096, F32), (8192, BF16), (4001, BF16), (16, F16)])
def test_cuda_rows_of_a_known_length(n: int, dtype: torch.dtype) -> None:
    """An exact build drops the checks that a full row does not need."""
    torch.manual_seed(0)
    for op in NAMES:
        args = arguments(op, (3, n), 1, dtype, (True, True))
        for backwards in (False, True):
            for name in ("rows", "ragged"):
                if name == "ragged" or n % 8 == 0:
                    text = source(f"norm/{NAMES[op]}_{name}.cu")
                    got = emulate(text, [Call(op, args)], {"VECS": 4}, any_size=False, backwards=backwards)
                    holds(op, args, got[0][0])


@pytest.mark.parametrize(
    "name, shape, offset, word",
    [("rows", (4, 1 << 18), 0, "N"), ("rows", (4, 64), 1, "align"), ("rows", (4, 63), 0, "N"), ("ragged", (4, 1 << 18), 0, "N"), ("grid", (4, 1 << 18), 1, "align"), ("grid", (2, 20002), 0, "N"),
     ("grid", (4, 64), 0, "N"), ("pinned", (4, 1 << 18), 1, "align"), ("pinned", (2, 20002), 0, "N"), ("pinned", (4, 64), 0, "N")],
)  # fmt: skip
def test_cuda_refuses(name: str, shape: tuple[int, int], offset: int, word: str) -> None:
    for op in NAMES:
        with pytest.raises(BadInput, match=f"require.*{word}"):
            emulate(source(f"norm/{NAMES[op]}_{name}.cu"), [Call(op, arguments(op, shape, 1, F32, (True, True), offset))])


CUDA_MUTANTS = {
    "blocks that do not wait": ("grid", "        wait_for(arrived + row, parts);\n", ""),
    "copies that nobody waits for": ("grid", '        asm volatile("cp.async.wait_all;" ::: "memory");\n', ""),
    "the next row not loaded": ("grid", "copy(kept + at, next + at)", "(void)next"),
    "sums that nobody waits for": ("pinned", "((unsigned)(seen[k] >> 32) & SIGN) != sign", "false"),
    "sums of the row before": ("pinned", "turn % 2) * parts", "0) * parts"),
    "sums of two rows before": ("pinned", "turn / 2 % 2 ? 0 : SIGN", "SIGN"),
    "weights that nobody waits for": ("pinned", '            asm volatile("cp.async.wait_all;" ::: "memory");', "{}"),
    "the second held weight twice": ("pinned", "i < IN_SHARED ? 0 : i - IN_SHARED]", "0]"),
    "bias where weight is": ("pinned", "2 + IN_SHARED * THREADS);", "2);"),
    "the next row not loaded again": ("pinned", "raw[i] = load_once(from + i * THREADS)", "(void)from"),
    "said before it is known": ("pinned", "        __syncthreads();\n        if (turn == 0)", "        if (turn == 0)"),
    "shift of the row before": ("pinned", "put<false>(raw, p, (uint4 *)output, row, *shift", "put<false>(raw, p, (uint4 *)output, row, said[3 - turn % 2]"),
    "rows asked for that are not": ("pinned", "row + k * GROUPS < p.rows && at < to", "at < to"),
    "sums of another group": ("pinned, groups", "(2 * group + turn % 2)", "(turn % 2)"),
    "rows of another group": ("pinned, groups", "row += GROUPS, turn++", "row++, turn++"),
    "warps that do not exchange": ("rows", "part = parts[turn][group * ROW_WARPS + lane % ROW_WARPS];", ""),
    "the first row for all": ("rows", "load_row(input + row * n, lane, row < m ? vectors : 0, raw);\n        float4", "float4"),
    "past the row": ("ragged", "whole || (at + e >= 0 && at + e < n) ? x[i][e] - shift", "true ? x[i][e] - shift"),
    "parts not joined": ("long", "for (int i = (int)threadIdx.x; i < parts; i += THREADS)", "for (int i = 0; i < 1; i++)"),
}  # fmt: skip


@slow
@pytest.mark.parametrize("mutant", CUDA_MUTANTS)
def test_cuda_mutants_fail(mutant: str) -> None:
    torch.manual_seed(0)
    what, old, new = CUDA_MUTANTS[mutant]
    way = {"rows": "rows of warps", "ragged": "ragged rows of warps"}.get(what, what)
    name = WAYS[way][0]
    shape = {"grid": (5, 16392), "pinned": (5, 61472), "pinned, groups": (5, 16424), "rows": (9, 1000), "ragged": (3, 1001),
             "long": (2, 20001)}[what]  # fmt: skip
    args = arguments("layer_norm", shape, 1, F32, (True, True))
    args["input"] += 10
    text = source(f"norm/layer_{name}.cu", (old, new))
    with pytest.raises((AssertionError, EmulatorError)) as e:
        for backwards in (False, True):
            got = emulate(text, [Call("layer_norm", args)], WAYS[way][1], backwards=backwards, sms=WAYS[way][3])
            holds("layer_norm", args, got[0][0])
    assert "error:" not in str(e.value), f"the mutant does not compile: {e.value}"


# ---- twins ----


@pytest.mark.parametrize("name", ["rows.c", "rows.cu", "ragged.cu", "long.cu", "grid.cu", "pinned.cu"])
def test_the_two_norms_share_their_code(name: str) -> None:
    """A Candidate is one file for one Op, so the code stands twice; what is mended in one must be in the other."""

    def body(op: str) -> str:
        text = (KERNELS / "norm" / f"{NAMES[op]}_{name}").read_text()
        assert re.search(rf"^#define CENTERED {int(op == 'layer_norm')}$", text, re.MULTILINE)
        return re.sub(r"\b(layer|rms)_norm_", "norm_", text[text.index("#define CENTERED") + len("#define CENTERED 0") :])

    assert body("layer_norm") == body("rms_norm")


