"""The house kernels for CUDA, run by the emulator (tests/emulate): values against fp64 over shapes that straddle
vectors and tiles, strided, misaligned and half inputs, NaN and Inf, grouped heads, Programs; threads in both orders;
mutants, which must fail on the same inputs; and the emulator itself, which must see what no kernel may do."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from emulator import KERNELS, Call, EmulatorError, Program, _Job, emulate, rewrite
from kgen.errors import BadInput
from test_kernels_cpu import MODS, Mod, Shape, reference, slow
from torch import Tensor

MORE_MODS = {
    "prefix": Mod(
        "program 1\nscalar s0 int32\nmask\n%0 = ge bool q kv\n%1 = lt bool kv s0\n%2 = or bool %0 %1\nreturn %2\n",
        scalars=(20.0,),
        keep=lambda h, q, k, c: (q >= k) | (k < 20),
    ),
    "capped": Mod(
        MODS["softcap"].text + "mask\n%0 = ge bool q kv\nreturn %0\n",
        scalars=(20.0,), score=MODS["softcap"].score, keep=MODS["causal"].keep,
    ),
}  # fmt: skip
ALL_MODS = MODS | MORE_MODS
BF16, F16, F32 = torch.bfloat16, torch.float16, torch.float32


def source(name: str, *changes: tuple[str, str]) -> str:
    """A kernel's text, with changes that must apply."""
    text = (KERNELS / name).read_text()
    for old, new in changes:
        assert old in text, f"{name} has no `{old}`"
        text = text.replace(old, new)
    return text


def maybe_slow(quick: bool, *values: Any) -> Any:
    name = "-".join(str(v).removeprefix("torch.") for v in values if not isinstance(v, dict))
    return pytest.param(*values, marks=() if quick else slow, id=name)


# ---- softmax ----


def draw(shape: tuple[int, ...], dtype: torch.dtype, kind: int, offset: int = 0) -> Tensor:
    """A contiguous view `offset` elements into its storage, of one of four distributions."""
    x = torch.randn(math.prod(shape) + offset).to(dtype)[offset:].view(shape)
    if kind == 1:
        x *= 40
    elif kind == 2:
        x += 1000
    elif kind == 3:
        x[torch.rand(shape) < 0.3] = -math.inf
    return x


def softmax_call(x: Tensor, dim: int) -> Call:
    return Call("softmax", {"input": x, "dim": dim})


def holds_softmax(call: Call, got: Tensor) -> None:
    """Errors at most 4 times torch's own, measured against fp64; where torch is not finite, the same."""
    x, dim = call.args["input"], call.args["dim"]
    oracle, theirs = torch.softmax(x.double(), dim), torch.softmax(x, dim).double()
    what = f"{tuple(x.shape)} {x.dtype} dim {dim}"
    assert got.dtype == x.dtype and got.shape == x.shape
    if not x.numel():
        return
    assert torch.equal(torch.isnan(got), torch.isnan(oracle)), f"{what}: NaN where none is due, or none where it is"
    ours, oracle, theirs = (t.double().nan_to_num() for t in (got, oracle, theirs))
    assert (ours - oracle).norm() <= 4 * (theirs - oracle).norm() + 2e-7 * oracle.norm(), what
    assert (ours - oracle).abs().max() <= 4 * (theirs - oracle).abs().max() + 4e-7 * oracle.abs().max(), what


def special(shape: tuple[int, ...], dtype: torch.dtype, dim: int) -> Tensor:
    """Rows of their own with NaN, with +inf, of -inf alone, and half of -inf."""
    x = torch.randn(shape).movedim(dim, -1).reshape(-1, shape[dim])
    x[0, -1], x[1, 0], x[2] = math.nan, math.inf, -math.inf
    x[3, : shape[dim] // 2] = -math.inf
    sizes = list(shape)
    sizes.append(sizes.pop(dim))
    return x.view(sizes).movedim(-1, dim).contiguous().to(dtype)


SOFTMAX = {
    "rows of a warp": ("rows.cu", dict(ROW_THREADS=8, ROWS=16, VECS=2),
                       [(5, 1), (3, 2, 7), (33, 8), (19, 33), (17, 56)]),
    "rows of warps": ("rows.cu", dict(ROW_THREADS=64, ROWS=2, VECS=8), [(3, 1), (4, 129), (3, 1000), (5, 2040), (2, 2048)]),
    "cluster": ("cluster.cu", dict(CLUSTER=4, THREADS=128, VECS=2), [(3, 1), (4, 999), (2, 2048), (1, 4, 2001)]),
    "long": ("long.cu", dict(THREADS=128, UNROLL=2), [(4, 1), (0, 5), (3, 0), (3, 4097), (2, 20001), (140, 77), (1, 40000)]),
    "columns": ("columns.cu", dict(COLS=8, ROWS=8, KEEP=4), [(2, 7, 3), (1, 100, 17), (4, 32, 8), (2, 33, 5, 3), (1, 1, 9)]),
    "columns of vectors": ("columns.cu", dict(COLS=4, ROWS=32, VEC=4, KEEP=4), [(2, 7, 16), (1, 300, 20), (5, 128, 4)]),
}  # fmt: skip


@pytest.mark.parametrize(
    "which, dtype",
    [maybe_slow((n, d) in (("rows of a warp", F32), ("rows of warps", BF16), ("cluster", BF16), ("long", F16),
                           ("columns", F32)), n, d)
     for n in SOFTMAX for d in (F32, BF16, F16)],
)  # fmt: skip
def test_softmax(which: str, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    name, tunables, shapes = SOFTMAX[which]
    calls = []
    for i, shape in enumerate(shapes):
        dim = 1 if "columns" in which else len(shape) - 1
        partial = shape[dim] % (4 if dtype == F32 else 8) != 0 or "long" in which
        offset = i % 3 if partial and "columns" not in which else 0
        calls.append(softmax_call(draw(shape, dtype, i % 4, offset), dim))
        if min(shape) > 1 and shape[0] > 3:
            calls.append(softmax_call(special(shape, dtype, dim), dim))
    for backwards in (False, True):
        for call, outputs in zip(calls, emulate(source(f"softmax/{name}"), calls, tunables, backwards=backwards)):
            holds_softmax(call, outputs[0])


@pytest.mark.parametrize("n, dtype", [maybe_slow(n == 4096, n, d) for n, d in ((4096, F32), (8192, BF16), (4001, BF16), (16, F16))])
def test_softmax_of_a_known_length(n: int, dtype: torch.dtype) -> None:
    """An exact build drops the checks that a full row does not need."""
    torch.manual_seed(0)
    calls = [softmax_call(draw((3, n), dtype, 0), 1)]
    for call, outputs in zip(calls, emulate(source("softmax/cluster.cu"), calls, dict(CLUSTER=4, THREADS=128), any_size=False)):
        holds_softmax(call, outputs[0])


@pytest.mark.parametrize(
    "name, shape, offset, word",
    [("rows", (4, 8, 3), 0, "K"), ("rows", (4, 1 << 18), 0, "N"), ("rows", (4, 64), 1, "align"), ("cluster", (4, 1 << 20), 0, "N"),
     ("columns", (4, 8), 0, "K")],
)  # fmt: skip
def test_softmax_refuses(name: str, shape: tuple[int, ...], offset: int, word: str) -> None:
    with pytest.raises(BadInput, match=f"require.*{word}"):
        emulate(source(f"softmax/{name}.cu"), [softmax_call(draw(shape, F32, 0, offset), 1)])


# ---- attention ----


def attention_call(shape: Shape, mod: Mod, dtype: torch.dtype, scale: float | None = None, lse: bool = True) -> Call:
    query = shape.draw(shape.hq, shape.sq, shape.d, dtype)
    key = shape.draw(shape.hkv, shape.sk, shape.d, dtype)
    value = shape.draw(shape.hkv, shape.sk, shape.dv, dtype)
    args = {"query": query, "key": key, "value": value, "scale": scale, "enable_gqa": True}
    captured = tuple(mod.captured(max(shape.sq, shape.sk)))
    return Call("attention", args, mod.text, captured, mod.scalars, () if lse else ("lse",))


def scaled(call: Call, dtype: torch.dtype) -> list[Tensor]:
    """Inputs with what the reference's own scale lacks of the call's multiplied into the queries."""
    q, k, v = (call.args[n].to(dtype) for n in ("query", "key", "value"))
    return [q * (1 if call.args["scale"] is None else call.args["scale"] * math.sqrt(q.shape[-1])), k, v]


def holds_attention(call: Call, mod: Mod, got: list[Tensor], what: str) -> None:
    """Output: error at most 4 times that of torch's formula in the same dtype. lse: absolute 1e-5, plus the rounding of
    scores in fp32; -inf exactly where every score is masked, where the output is 0."""
    oracle, lse = reference(*scaled(call, torch.float64), mod, list(call.captured))
    theirs, _ = reference(*scaled(call, call.args["query"].dtype), mod, list(call.captured))
    output = got[0]
    assert output.dtype == call.args["query"].dtype and output.shape == oracle.shape
    assert torch.equal(torch.isnan(output), torch.isnan(oracle)), f"{what}: NaN"
    ours, oracle, theirs = (t.double().nan_to_num() for t in (output, oracle, theirs))
    error, allowed = (ours - oracle).norm(), 4 * (theirs - oracle).norm() + 1e-7 * oracle.norm()
    assert error <= allowed, f"{what}: norm of the error {error:.2e}, at most {allowed:.2e}"
    worst, allowed = (ours - oracle).abs().max(), 4 * (theirs - oracle).abs().max() + 4e-7 * oracle.abs().max()
    assert worst <= allowed, f"{what}: largest error {worst:.2e}, at most {allowed:.2e}"
    if len(got) > 1:
        empty = lse == -math.inf
        assert torch.equal(got[1] == -math.inf, empty), f"{what}: lse of empty rows"
        assert not ours[empty].any(), f"{what}: output of empty rows"
        assert torch.allclose(got[1].double()[~empty], lse[~empty], rtol=1e-6, atol=1e-5, equal_nan=True), f"{what}: lse"


def check(name: str, shapes: list[Shape], mod: str, dtype: torch.dtype, tunables: dict[str, int], any_size: bool = True,
          text: str | None = None, backwards: bool = False) -> None:  # fmt: skip
    """The keys of every second shape grow along the sequence, so that maxima rise after the first tile."""
    torch.manual_seed(0)
    calls = [attention_call(s, ALL_MODS[mod], dtype) for s in shapes]
    for call in calls[::2]:
        key = call.args["key"]
        key *= torch.linspace(0.1, 8, key.shape[2])[:, None].to(dtype)
    results = emulate(text or source(f"attention/{name}.cu"), calls, tunables, any_size, backwards)
    for shape, call, outputs in zip(shapes, calls, results):
        holds_attention(call, ALL_MODS[mod], outputs, f"{name} {mod} {dtype} {shape}")


FLASH_SHAPES = [
    Shape(1, 1, 1, 1, 1, 1, 1), Shape(2, 4, 2, 15, 17, 8, 8), Shape(1, 2, 2, 17, 63, 40, 40, True),
    Shape(1, 2, 1, 65, 130, 64, 64), Shape(1, 3, 1, 70, 1, 33, 7), Shape(1, 2, 1, 100, 70, 64, 32, True),
]  # fmt: skip
WIDE_SHAPES = [Shape(1, 2, 1, 33, 70, 128, 128, True), Shape(1, 1, 1, 70, 40, 80, 96)]
DECODE_SHAPES = [
    Shape(1, 1, 1, 1, 1, 1, 1), Shape(2, 4, 2, 1, 17, 8, 8), Shape(1, 2, 2, 3, 15, 40, 40, True), Shape(2, 2, 2, 7, 65, 64, 64),
    Shape(1, 8, 1, 2, 100, 17, 50), Shape(2, 6, 3, 2, 300, 33, 64), Shape(1, 4, 2, 1, 2000, 64, 64, True),
]  # fmt: skip
QUICK = {
    ("flash", "plain", BF16), ("flash", "alibi", F16), ("fma", "capped", F32), ("decode", "window", BF16),
}  # fmt: skip
FAMILY = {
    "flash": (FLASH_SHAPES, dict(WARPS=4, HEAD=64), (BF16, F16)),
    "fma": (FLASH_SHAPES, dict(TM=2, TN=2, HEAD=64), (F32,)),
    "decode": (DECODE_SHAPES, dict(WARPS=4, HEAD=64), (BF16, F16)),
}


@pytest.mark.parametrize(
    "name, mod, dtype",
    [maybe_slow((n, m, d) in QUICK, n, m, d) for n, (_, _, dtypes) in FAMILY.items() for m in ALL_MODS for d in dtypes],
)
def test_attention(name: str, mod: str, dtype: torch.dtype) -> None:
    shapes, tunables, _ = FAMILY[name]
    check(name, shapes, mod, dtype, tunables)


@pytest.mark.parametrize(
    "name, mod, dtype, tunables",
    [maybe_slow(m == "causal" and n == "flash" and t.get("MT") == 2, n, m, d, t)
     for m in ("causal", "table")
     for n, d, t in (("flash", BF16, dict(MT=2, WARPS=4, BLOCK_N=32)), ("flash", F16, dict(MT=1, WARPS=8, BLOCK_N=128)),
                     ("fma", F32, dict(TM=8, TN=2)), ("fma", F32, dict(TM=4, TN=4)),
                     ("decode", BF16, dict(WARPS=8, STAGES=2)), ("decode", F16, dict(WARPS=2, STAGES=4)))],
)  # fmt: skip
def test_attention_tunables(name: str, mod: str, dtype: torch.dtype, tunables: dict[str, int]) -> None:
    """Other tiles, in exact builds, with the threads' order turned round."""
    shapes = [Shape(1, 4, 2, 3, 190, 40, 72)] if name == "decode" else [Shape(1, 4, 2, 150, 190, 40, 72, True)]
    check(name, shapes, mod, dtype, tunables, any_size=False, backwards=True)


@slow
@pytest.mark.parametrize("name, dtype", [("flash", BF16), ("fma", F32), ("decode", F16)])
@pytest.mark.parametrize("head", [128, 256])
def test_attention_of_wide_heads(name: str, dtype: torch.dtype, head: int) -> None:
    tunables = {"flash": dict(WARPS=4, BLOCK_N=32), "fma": dict(TM=4, TN=2), "decode": dict(WARPS=4, STAGES=2)}[name]
    shapes = WIDE_SHAPES if head == 128 else [Shape(1, 1, 1, 20, 45, 256, 256), Shape(1, 1, 1, 17, 33, 200, 130)]
    if name == "decode":
        shapes = [Shape(s.b, s.hq, s.hkv, 3, s.sk, s.d, s.dv, s.split) for s in shapes]
    check(name, shapes, "window", dtype, tunables | {"HEAD": head})


def misaligned(call: Call) -> Call:
    """The same values one element further on, and with rows that are no multiple of 16 bytes apart."""
    args = dict(call.args)
    for n in ("query", "key", "value"):
        t = args[n]
        wide = torch.zeros(*t.shape[:-1], t.shape[-1] + 3, dtype=t.dtype)
        wide[..., 1 : 1 + t.shape[-1]] = t
        args[n] = wide[..., 1 : 1 + t.shape[-1]]
    return Call(call.op, args, call.program, call.captured, call.scalars, call.absent)


@pytest.mark.parametrize("name", [pytest.param("flash"), pytest.param("fma", marks=slow), pytest.param("decode", marks=slow)])
def test_attention_of_other_calls(name: str) -> None:
    """No lse, misaligned tensors, scales that are negative or zero, a NaN in one query, rising scores, no keys."""
    torch.manual_seed(0)
    _, tunables, dtypes = FAMILY[name]
    sq = 5 if name == "decode" else 20
    shape = Shape(1, 2, 2, sq, 70, 16, 24)
    calls = [attention_call(shape, MODS["plain"], dtypes[0], lse=False), misaligned(attention_call(shape, MODS["plain"], dtypes[0]))]
    calls += [attention_call(shape, MODS["plain"], dtypes[0], scale=s) for s in (-0.3, 0.0)]
    nan = attention_call(shape, MODS["plain"], dtypes[0])
    nan.args["query"][0, 1, 3, 5] = math.nan
    rising = attention_call(shape, MODS["plain"], dtypes[0], scale=3.0)
    rising.args["key"] *= torch.arange(70)[:, None] / 10
    calls += [nan, rising, attention_call(Shape(1, 2, 2, sq, 0, 16, 24), MODS["plain"], dtypes[0])]
    for i, (call, outputs) in enumerate(zip(calls, emulate(source(f"attention/{name}.cu"), calls, tunables))):
        holds_attention(call, MODS["plain"], outputs, f"{name}, call {i}")


def test_attention_refuses() -> None:
    for name, dtype, shape, word in (
        ("flash", F32, Shape(1, 1, 1, 8, 8, 64, 64), "dtype"), ("fma", BF16, Shape(1, 1, 1, 8, 8, 64, 64), "dtype"),
        ("flash", BF16, Shape(1, 1, 1, 8, 8, 136, 64), "HEAD"), ("decode", BF16, Shape(1, 1, 1, 17, 8, 64, 64), "SQ"),
    ):  # fmt: skip
        with pytest.raises(BadInput, match=f"require.*{word}"):
            emulate(source(f"attention/{name}.cu"), [attention_call(shape, MODS["plain"], dtype)])


# ---- mutants ----

MUTANTS = {
    "flash without a mask": ("flash", "score[m][n][i] = keep ? score[m][n][i] : -infinity();", "(void)keep;", "causal"),
    "flash without rescaling": ("flash", "s.out[m][o][2 * half] *= decay;", "", "plain"),
    "flash does not wait": ("flash", '"cp.async.wait_group 0;"', '"cp.async.wait_group 3;"', "plain"),
    "flash without its barriers": ("flash", "__syncthreads();", "", "causal"),
    "flash reads keys past the last": ("flash", "first + row + i < r.n ? bytes : 0", "bytes", "plain"),
    "flash takes part tiles for whole": ("flash", "code == 1", "code != 0", "window"),
    "fma forgets the warp's barrier": ("fma", "__syncwarp();", "", "plain"),
    "decode does not join its parts": ("decode", "sum += rows[i * step + width + 1] *", "sum = rows[i * step + width + 1] *", "alibi"),
    "decode refills a stage too early": ("decode", "(stage == 0 ? STAGES - 1 : stage - 1)", "stage", "plain"),
}  # fmt: skip
QUICK_MUTANTS = {"flash without its barriers", "decode refills a stage too early"}


@pytest.mark.parametrize("mutant", [maybe_slow(m in QUICK_MUTANTS, m) for m in MUTANTS])
def test_attention_mutants_fail(mutant: str) -> None:
    name, old, new, mod = MUTANTS[mutant]
    _, tunables, dtypes = FAMILY[name]
    shapes = [Shape(1, 4, 2, 2 if name == "decode" else 70, 600, 40, 40)]
    text = source(f"attention/{name}.cu", (old, new))
    caught = 0
    for backwards in (False, True):
        try:
            check(name, shapes, mod, dtypes[0], tunables, text=text, backwards=backwards)
        except (AssertionError, EmulatorError) as e:
            assert "error:" not in str(e), f"the mutant does not compile: {e}"
            caught += 1
    assert caught > 0


SOFTMAX_MUTANTS = {
    "no wait for the pairs": ("cluster", "    barrier_wait(barrier);\n", ""),
    "pairs left to the first block": ("cluster", "barrier, (unsigned)lane, make", "barrier, 0u, make"),
    "past the row": ("rows", "at < 0 || at + V > n", "at < 0"),
    "parts not joined": ("long", "for (int i = (int)threadIdx.x; i < parts; i += THREADS)", "for (int i = 0; i < 1; i++)"),
    "columns without their barrier": ("columns", "    __syncthreads();\n", ""),
}  # fmt: skip


@slow
@pytest.mark.parametrize("mutant", SOFTMAX_MUTANTS)
def test_softmax_mutants_fail(mutant: str) -> None:
    torch.manual_seed(0)
    name, old, new = SOFTMAX_MUTANTS[mutant]
    shape = {"cluster": (2, 2001), "rows": (3, 1001), "long": (2, 20001), "columns": (2, 90, 9)}[name]
    tunables = {"cluster": SOFTMAX["cluster"][1], "rows": SOFTMAX["rows of warps"][1], "long": SOFTMAX["long"][1],
                "columns": SOFTMAX["columns"][1]}[name]  # fmt: skip
    call = softmax_call(draw(shape, F32, 1), 1)
    with pytest.raises((AssertionError, EmulatorError)) as e:
        for backwards in (False, True):
            holds_softmax(call, emulate(source(f"softmax/{name}.cu", (old, new)), [call], tunables, backwards=backwards)[0][0])
    assert "error:" not in str(e.value), f"the mutant does not compile: {e.value}"


# ---- the emulator itself ----

FAULTS = {
    0: ("to[threadIdx.x] = from[threadIdx.x + 1];", "heap-buffer-overflow"),
    1: ("if (threadIdx.x < 32) __syncthreads(); to[threadIdx.x] = 0.0f;", "wait for ever; thread 0 of block 0 in __syncthreads"),
    2: ("to[threadIdx.x] = threadIdx.x % 2 ? __shfl_xor_sync(0xffffffff, 1.0f, 1) : (float)__any_sync(0xffffffff, 1);",
        "lanes of one warp are at"),
    3: ("float4 v = *(const float4 *)(from + 1); to[0] = v.x;", "misaligned address"),
    4: ('asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" :: "r"(4096u), "l"(from), "r"(16) : "memory");',
        "is in no shared memory"),
}  # fmt: skip


def test_the_emulator_sees_faults() -> None:
    """One program with a fault for each value of `which`."""
    cases = " ".join(f"if (which == {i}) {{ {text} }}" for i, (text, _) in FAULTS.items())
    program = Program(f'extern "C" __global__ void fault(const float *from, float *to, int which) {{ {cases} }}', ["fault"])
    for which, (_, message) in FAULTS.items():
        job = _Job()
        job.number(1)
        job.text("fault")
        job.number(2)
        for out in (0, 1):
            job.number(256, 0, out)
            job.data += bytes(256)
        job.number(1)
        job.text("fault")
        job.number(1, 1, 1, 64, 1, 1, 1, 1, 1, 0)
        job.number(0, 0, 0, 1, 1, 4)
        job.data += which.to_bytes(4, "little")
        job.number(0)
        with pytest.raises(EmulatorError, match=message):
            program.run(bytes(job.data))


def test_an_unknown_instruction_is_named() -> None:
    text = 'extern "C" __global__ void k(unsigned *p) { asm volatile("tcgen05.fence::after_thread_sync;" ::: "memory"); }'
    with pytest.raises(AssertionError, match="tcgen05_fence_after_thread_sync"):
        Program(text, ["k"])
    with pytest.raises(ValueError, match="does not read the operand label"):
        rewrite('asm volatile("bra label;");')
