"""The house kernels of matmul and linear for CUDA, run by the emulator: values against fp64 over shapes that hang over
tiles, every order of the operands, strides, batches that share an operand, splits of K, epilogues, lines that two planes of
float16 cannot hold; threads in both orders; mutants, which must fail; and that the two Ops share their code."""

from __future__ import annotations

import re

import pytest
import torch
import torch.nn.functional as F
from emulator import KERNELS, Call, EmulatorError, Program, _Job, emulate
from test_kernels_cuda import BF16, F16, F32, maybe_slow, source
from torch import Tensor

FILES = ("hopper", "split", "mma", "fma", "skinny")
GELU = "program 1\nepilogue\n%0 = mul float32 acc 0.5\n%1 = mul float32 acc 0.70710677\n%2 = erf float32 %1\n%3 = add float32 1.0 %2\n%4 = mul float32 %0 %3\nreturn %4\n"
RESIDUAL = "program 1\ntensor t0 float32 2\nscalar s0 float32\nepilogue\n%0 = load float32 t0 m n\n%1 = mul float32 acc s0\n%2 = add float32 %0 %1\nreturn %2\n"


def lines(b: int, n: int, k: int, dtype: torch.dtype, across: bool) -> Tensor:
    """(b, n, k); across: n is contiguous."""
    return torch.randn(b, k, n).to(dtype).transpose(1, 2) if across else torch.randn(b, n, k).to(dtype)


def call(b: int, m: int, n: int, k: int, dtype: torch.dtype, order: str = "nn") -> Call:
    """order: of the left and right operand, n row-major, t transposed, as BLAS has it."""
    left, right = lines(b, m, k, dtype, order[0] == "t"), lines(b, n, k, dtype, order[1] == "n")
    return Call("matmul", {"input": left, "other": right.transpose(1, 2)})


def holds(c: Call, got: Tensor) -> None:
    """No further from fp64 than torch, by norm, but for the last bit; not finite where torch is not."""
    a = list(c.args.values())

    def computed(dtype: torch.dtype) -> Tensor:
        x = [None if t is None else t.to(dtype) for t in a]
        y = torch.matmul(*x) if c.op == "matmul" else F.linear(*x)
        if "erf" in c.program:
            y = F.gelu(y)
        return c.captured[0].to(dtype) + y * c.scalars[0] if c.scalars else y

    oracle, theirs = computed(torch.float64), computed(a[0].dtype).double()
    what = f"{[tuple(t.shape) for t in a if t is not None]} {a[0].dtype} {[t.stride() for t in a if t is not None]}"
    assert got.dtype == a[0].dtype and got.shape == oracle.shape
    ours = got.double()
    assert torch.equal(torch.isnan(ours), torch.isnan(theirs)) and torch.equal(torch.isinf(ours), torch.isinf(theirs)), what
    finite = torch.isfinite(theirs)
    ours, oracle, theirs = (torch.where(finite, t, 0.0) for t in (ours, oracle, theirs))
    rounding = {F32: 2.0**-23, F16: 2.0**-11, BF16: 2.0**-8}[a[0].dtype]
    assert (ours - oracle).norm() <= 1.5 * (theirs - oracle).norm() + rounding * oracle.norm(), what
    assert (ours - oracle).abs().max() <= 4 * (theirs - oracle).abs().max() + 2 * rounding * oracle.abs().max(), what


def run(name: str, calls: list[Call], tunables: dict[str, int], sms: int = 132, text: str | None = None) -> list[Tensor]:
    outputs = []
    for backwards in (False, True):
        for c, found in zip(calls, emulate(text or source(f"matmul/{name}.cu"), calls, tunables, backwards=backwards, sms=sms)):
            holds(c, found[0])
            outputs.append(found[0])
    assert all(torch.equal(a.nan_to_num(), b.nan_to_num()) for a, b in zip(outputs, outputs[len(calls) :]))
    return outputs


# ---- plain ----

# Few multiprocessors: then blocks go on from tile to tile. Splits need more of them than tiles.
HALF_SHAPES = [(1, 8, 8, 8), (1, 136, 264, 72), (2, 304, 520, 200)]
ODD_SHAPES = [(1, 130, 264, 72), (1, 37, 51, 45), (2, 9, 7, 99)]
WAYS: dict[str, tuple[str, dict[str, int], str, list[tuple[int, int, int, int]], int]] = {
    "hopper nn": ("hopper", dict(), "nn", HALF_SHAPES, 6),
    "hopper nt": ("hopper", dict(RIGHT_TURNED=1), "nt", HALF_SHAPES, 6),
    "hopper tn, shared rows": ("hopper", dict(LEFT_TURNED=1, BLOCK_M=256, BLOCK_N=128, CLUSTER_M=1, CLUSTER_N=2), "tn", HALF_SHAPES, 6),
    "hopper tt, in turn": ("hopper", dict(LEFT_TURNED=1, RIGHT_TURNED=1, PINGPONG=1, BLOCK_N=128, STAGES=6), "tt", HALF_SHAPES, 6),
    "hopper nn, in turn": ("hopper", dict(PINGPONG=1, BLOCK_M=64), "nn", HALF_SHAPES, 6),
    "hopper nn, behind": ("hopper", dict(LAG=2, BACK=1), "nn", [*HALF_SHAPES, (1, 300, 520, 456)], 6),
    "hopper nn, split": ("hopper", dict(BLOCK_N=64, CLUSTER_M=1, STAGES=8, SPLIT=2), "nn", HALF_SHAPES[1:], 132),
    "hopper nt, 192": ("hopper", dict(BLOCK_N=192, RIGHT_TURNED=1, SPLIT=2), "nt", [(1, 129, 193, 200)], 132),
    "hopper nt, odd rows": ("hopper", dict(RIGHT_TURNED=1, BLOCK_N=128, STAGES=6), "nt", [(1, 130, 131, 72), (2, 5, 7, 64)], 6),
    "split nn": ("split", dict(), "nn", ODD_SHAPES, 6),
    "split tt": ("split", dict(CLUSTER_M=1, CLUSTER_N=2), "tt", [*ODD_SHAPES, (1, 300, 132, 4200)], 6),
    "split nn, behind": ("split", dict(LAG=1, BACK=1), "nn", [*ODD_SHAPES, (1, 300, 132, 333)], 2),
    "split nn, late": ("split", dict(LATE=1, GROUP=4), "nn", [(1, 1170, 140, 72), (1, 1025, 20, 300)], 6),
    "split nt, late": ("split", dict(LATE=1, GROUP=4, CLUSTER_M=1, CLUSTER_N=2, LAG=1), "nt", [(1, 700, 140, 65)], 6),
    "split nt, split": ("split", dict(CLUSTER_M=1, SPLIT=2), "nt", [(1, 129, 257, 333), (2, 30, 31, 65)], 132),
    "mma nn": ("mma", dict(), "nn", ODD_SHAPES, 132),
    "mma tt": ("mma", dict(LEFT_TURNED=1, RIGHT_TURNED=1, STAGES=4), "tt", ODD_SHAPES, 132),
    "mma nt, few rows": ("mma", dict(BLOCK_M=16, WARPS_M=1, SPLIT=2, RIGHT_TURNED=1), "nt", ODD_SHAPES, 132),
    "fma nn": ("fma", dict(), "nn", ODD_SHAPES, 132),
    "fma tt": ("fma", dict(LEFT_TURNED=1, RIGHT_TURNED=1, BLOCK_M=64, BLOCK_N=32, SIDE=4), "tt", ODD_SHAPES, 132),
    "fma nt, split": ("fma", dict(BLOCK_M=64, STEP=8, SPLIT=2, RIGHT_TURNED=1), "nt", ODD_SHAPES, 132),
    "skinny nn": ("skinny", dict(), "nn", [(1, 8, 264, 171), (2, 7, 51, 144), (1, 1, 300, 99)], 132),
    "skinny nn, split": ("skinny", dict(THIN=4, SPLIT=2), "nn", [(1, 4, 264, 2572), (2, 3, 51, 2545)], 132),
    "skinny nt": ("skinny", dict(ACROSS=0), "nt", [(1, 8, 264, 171), (2, 7, 51, 144), (1, 1, 300, 99)], 132),
    "skinny nt, split": ("skinny", dict(ACROSS=0, TEAM=4, THIN=2, SPLIT=2), "nt", [(1, 2, 264, 4572), (2, 1, 51, 3545)], 132),
    "skinny on the right": ("skinny", dict(ON_THE_LEFT=0, ACROSS=0, THIN=4, LINES=4), "nn", [(1, 264, 4, 171), (2, 51, 3, 144), (1, 300, 1, 99)], 132),
}  # fmt: skip
QUICK = {"hopper tt, in turn", "split nn", "mma nn", "fma nn"}
DTYPES = {"hopper": (BF16, F16), "mma": (BF16, F16), "split": (F32,), "fma": (F32,), "skinny": (F32, BF16, F16)}


@pytest.mark.parametrize("way, dtype", [maybe_slow(w in QUICK and d in (F32, BF16), w, d) for w in WAYS for d in DTYPES[WAYS[w][0]]])
def test_products(way: str, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    name, tunables, order, shapes, sms = WAYS[way]
    run(name, [call(*s, dtype, order) for s in shapes], tunables, sms)


@pytest.mark.parametrize("name", [maybe_slow(n == "split", n) for n in ("split", "mma", "fma")])
def test_strides_of_any_kind(name: str) -> None:
    """Gaps throughout, an operand that all batches share, rows that are one row, an address that is no multiple of 16."""
    torch.manual_seed(1)
    dtype = F32 if name in ("split", "fma") else BF16

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape).to(dtype)

    calls = [
        Call("matmul", {"input": draw(2, 70, 200)[:, ::2, 3:199:2], "other": draw(98, 30).expand(2, 98, 30)}),
        Call("matmul", {"input": draw(1, 1, 64).expand(3, 20, 64), "other": draw(3, 64, 24)}),
        Call("matmul", {"input": draw(3 * 20 * 64 + 1)[1:].view(3, 20, 64), "other": draw(1, 64, 24).expand(3, 64, 24)}),
    ]
    run(name, calls, {})


# ---- lines that two planes cannot hold ----


def stray_call(turned: bool) -> Call:
    """Columns of the left operand and rows of the right one whose sizes make up for each other, over more than the planes
    hold; rows that are tiny; Inf and NaN; a column of zeros."""
    left, right = torch.randn(1, 70, 130), torch.randn(1, 130, 66)
    for line in (9, 40, 69):
        left[0, line] *= torch.logspace(-18, 18, 130)
    for line in (9, 65):
        right[0, :, line] *= torch.logspace(17, -17, 130)
    left[0, 7] *= 1e-36
    left[0, 3, 4], left[0, 5, 5], right[0, 4, 7] = torch.inf, torch.nan, -torch.inf
    right[0, :, 11] = 0
    if turned:
        left, right = (t.transpose(1, 2).contiguous().transpose(1, 2) for t in (left, right))
    return Call("matmul", {"input": left, "other": right})


def far_call() -> Call:
    """Strays whose largest elements and whose losses are in K of other blocks than the first of a cluster; both operands are
    contiguous across lines."""
    sizes = torch.ones(1100)
    sizes[512:1024], sizes[1024:] = 2.0**20, 2.0**-20
    left, right = lines(1, 20, 1100, F32, True) * sizes, lines(1, 24, 1100, F32, True) / sizes
    return Call("matmul", {"input": left, "other": right.transpose(1, 2)})


def holds_everywhere(c: Call, got: Tensor) -> None:
    """Each element by itself: within what a chain of K FMAs may lose, of the sum of the products' sizes."""
    left, right = (t.double() for t in c.args.values())
    size, oracle = left.abs() @ right.abs(), left @ right
    finite = torch.isfinite(size) & (size < 1e38)
    assert finite.float().mean() > 0.8
    bound = (left.shape[2] ** 0.5 * 2.0**-23) * size + 1e-44
    assert bool(((got.double() - oracle).abs() <= bound)[finite].all())


@pytest.mark.parametrize("turned", [False, True])
def test_strays_are_exact(turned: bool) -> None:
    torch.manual_seed(2)
    c = stray_call(turned)
    for got in run("split", [c], {}, 6):
        holds_everywhere(c, got)


def run_far(text: str) -> None:
    """By FMAs alone, in one chain, which torch's sums on a CPU are not."""
    c = far_call()
    assert c.args["input"].stride(1) == 1 and c.args["other"].stride(2) == 1
    for backwards in (False, True):
        holds_everywhere(c, emulate(text, [c], {}, backwards=backwards, sms=6)[0][0])


def test_strays_of_a_cluster_are_exact() -> None:
    torch.manual_seed(2)
    run_far(source("matmul/split.cu"))


def test_strays_that_come_late_are_exact() -> None:
    torch.manual_seed(2)
    c = call(1, 600, 30, 130, F32)
    for line in (100, 540, 599):
        c.args["input"][0, line] *= torch.logspace(-18, 18, 130)
    c.args["other"][0, :, 9] *= torch.logspace(17, -17, 130)
    for got in run("split", [c], dict(LATE=1, GROUP=4, CLUSTER_M=1), 6):
        holds_everywhere(c, got)
    run("linear_split", [linear_call(600, 30, 130, F32, True, GELU)], dict(LATE=1, GROUP=4, CLUSTER_M=1), 6)


@pytest.mark.slow
def test_no_stray_in_ordinary_data() -> None:
    """Normal data, rows of any size, columns over four decades: gemm_strays has nothing to do, and would show if it had."""
    torch.manual_seed(3)
    c = call(1, 130, 140, 600, F32)
    c.args["input"] *= torch.logspace(-20, 20, 130)[:, None] * torch.logspace(-2, 2, 600)
    c.args["input"][0, 3] = 0
    text = source("matmul/split.cu", ("float x = sum[i][j];", "float x = -12345.0f;"))
    for backwards in (False, True):
        got = emulate(text, [c], {}, backwards=backwards, sms=6)[0][0]
        assert not bool((got == -12345).any())
        holds_everywhere(c, got)


# ---- linear: bias and epilogues ----


def linear_call(m: int, n: int, k: int, dtype: torch.dtype, bias: bool, program: str = "") -> Call:
    args = {"input": torch.randn(m, k).to(dtype), "weight": torch.randn(n, k).to(dtype), "bias": torch.randn(n).to(dtype) if bias else None}
    if program != RESIDUAL:
        return Call("linear", args, program)
    text = program.replace("float32 2", f"{str(dtype).removeprefix('torch.')} 2", 1)
    return Call("linear", args, text, (torch.randn(m, n).to(dtype),), (0.5,))


LINEAR: dict[str, tuple[dict[str, int], torch.dtype]] = {
    "hopper": (dict(), BF16), "hopper in turn": (dict(PINGPONG=1, BLOCK_N=128, STAGES=6), F16),
    "hopper split": (dict(BLOCK_N=64, CLUSTER_M=1, STAGES=8, SPLIT=2), BF16),
    "split": (dict(), F32), "split split": (dict(SPLIT=2), F32), "mma": (dict(), BF16), "mma split": (dict(SPLIT=2), F16),
    "fma": (dict(), F32), "fma split": (dict(SPLIT=2), F32), "skinny": (dict(), BF16), "skinny split": (dict(SPLIT=2), F32),
}  # fmt: skip
EPILOGUES = {"plain": "", "gelu": GELU, "residual": RESIDUAL}


@pytest.mark.parametrize("way, epilogue", [maybe_slow((w, e) == ("mma", "residual"), w, e)
                                           for w in LINEAR for e in EPILOGUES])  # fmt: skip
def test_linear(way: str, epilogue: str) -> None:
    torch.manual_seed(4)
    tunables, dtype = LINEAR[way]
    name, program = way.split()[0], EPILOGUES[epilogue]
    shapes = [(7, 130, 1100), (3, 33, 515)] if name == "skinny" else [(140, 270, 136), (70, 33, 136)]
    if "SPLIT" in tunables and name == "skinny":
        shapes[1] = (3, 33, 601)
    calls = [linear_call(*s, dtype, bias, program) for s in shapes for bias in (True, False)]
    run(f"linear_{name}", calls, tunables, 132 if "SPLIT" in tunables else 6)


def test_a_stray_has_its_epilogue() -> None:
    torch.manual_seed(5)
    c = linear_call(40, 30, 64, F32, True, GELU)
    c.args["weight"][7] *= torch.logspace(-18, 18, 64)
    c.args["weight"][7] *= 1e-18
    run("linear_split", [c], {}, 6)


# ---- mutants ----

# Way, what is changed, into what.
MUTANTS: dict[str, tuple[str, str, str]] = {
    "a stage is loaded before it is free": ("hopper nn", "barrier_wait(f.empty + 8 * r.stage, r.phase ^ 1); /*", "/*"),
    "nobody takes turns": ("hopper nn, in turn", "turn_wait(w);", ";"),
    "the store's buffer is not waited for": ("hopper nn", "wait_group.read 1", "wait_group.read 2"),
    "one block too few lets a stage go": ("hopper nn", "CLUSTER * CONSUMERS_OF_A_STAGE", "CONSUMERS_OF_A_STAGE"),
    "the first step is added to what was there": ("hopper nn", "(k > u.first) | i", "1"),
    "columns of the second box": ("hopper nn", "column + box * 64, row, b);", "column, row, b);"),
    "the corrections are forgotten": ("split nn", "fmaf(low[i], 1.0f / LOW_SCALE, sums[i])", "sums[i]"),
    "low planes are swapped": ("split nn", "a_low + 2 * i, b + 2 * i", "a_low + 2 * i, b_low + 2 * i"),
    "no line is a stray": ("strays", "hopeless(top) || lost > (u64)k ?", "false ?"),
    "losses do not count": ("strays", "x == 0 || d < 28 ? 0 :", "true ? 0 :"),
    "a block takes its own largest for the cluster's": ("far strays", "t / 32 < (int)blocks", "t / 32 < 1"),
    "losses of other blocks do not count": ("far strays", "m->losses[t % 8 * 4 + c], 0)", "m->losses[t % 8 * 4 + c], rank)"),
    "rows that come late are not waited for": ("split nn, late", "if (LATE && m * 128 >= EARLY)", "if (false)"),
    "factors of rows that come late are read early": ("split nn, late", "barrier_wait(full + 8 * r.stage, r.phase); /* then", "; /* then"),
    "a round backwards begins behind its end": ("hopper nn, behind", "u.first + u.last - 1 - i", "u.first + u.last - i"),
    "nobody ends the lag": ("split nn, behind", "--lag == 0", "false"),
    "a barrier is missing": ("mma nn", "__syncthreads();\n        /* The buffer", "/* The buffer"),
    "a buffer too early": ("fma nn", "        __syncthreads();\n        if (s + 1", "        if (s + 1"),
}  # fmt: skip


QUICK_MUTANTS = ("nobody takes turns", "losses do not count", "losses of other blocks do not count")


@pytest.mark.parametrize("mutant", [maybe_slow(m in QUICK_MUTANTS, m) for m in MUTANTS])
def test_mutants_fail(mutant: str) -> None:
    torch.manual_seed(6)
    way, old, new = MUTANTS[mutant]
    name, tunables, order, shapes, sms = WAYS["split nn" if "strays" in way else way]
    text = source(f"matmul/{name}.cu", (old, new))
    with pytest.raises((AssertionError, EmulatorError)) as e:
        if way == "far strays":
            run_far(text)
        elif way == "strays":
            c = stray_call(False)
            holds_everywhere(c, run(name, [c], tunables, sms, text)[0])
        else:
            run(name, [call(*s, DTYPES[name][0], order) for s in shapes], tunables, sms, text)
    assert "error:" not in str(e.value), f"the mutant does not compile: {e.value}"


# ---- what the emulator must see of Hopper ----

HEAD = """typedef unsigned u32; typedef unsigned long long u64; struct alignas(64) tensor_map { u64 opaque[16]; };
extern "C" __global__ void k(const __grid_constant__ tensor_map m) { extern __shared__ unsigned char raw[];
    u32 at = (u32)__cvta_generic_to_shared(raw), bar = at + 4096; float d[32];
    if (threadIdx.x == 0) asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" :: "r"(bar), "r"(1));
    __syncthreads(); """
BAD: dict[str, tuple[str, str]] = {
    "a box off its swizzle": ("""if (threadIdx.x == 0) asm volatile("cp.async.bulk.tensor.3d.shared::cluster.global.tile.mbarrier::complete_tx::bytes [%0], [%1, {%3, %4, %5}], [%2];"
        :: "r"(at + 128), "l"(&m), "r"(bar), "r"(0), "r"(0), "r"(0));""", "not aligned to its swizzle"),
    "a store that nobody waits for": ("""if (threadIdx.x == 0) asm volatile("cp.async.bulk.tensor.3d.global.shared::cta.tile.bulk_group [%0, {%2, %3, %4}], [%1]; cp.async.bulk.commit_group;"
        :: "l"(&m), "r"(at), "r"(0), "r"(0), "r"(0));""", "bulk stores or products are in flight"),
    "bytes that never come": ("""if (threadIdx.x == 0) asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" :: "r"(bar), "r"(16));
        u32 over = 0; while (!over) asm volatile("{ .reg .pred p; mbarrier.try_wait.parity.shared::cta.b64 p, [%1], %2; selp.u32 %0, 1, 0, p; }" : "=r"(over) : "r"(bar), "r"(0));""", "wait for ever"),
}  # fmt: skip


@pytest.mark.parametrize("what", BAD)
def test_the_emulator_sees(what: str) -> None:
    body, message = BAD[what]
    program, job = Program(HEAD + body + " (void)d; }", ["k"]), _Job()
    job.number(1)
    job.text("call")
    job.number(0)  # tensors
    job.number(1)  # launches
    job.text("k")
    job.number(1, 1, 1, 128, 1, 1, 1, 1, 1, 8192)
    raw = bytearray(128)
    raw[8:28] = (64).to_bytes(8, "little") + (8).to_bytes(8, "little") + (1).to_bytes(4, "little")
    raw[80:104] = b"".join(v.to_bytes(4, "little") for v in (64, 8, 1, 0, 0)) + (3).to_bytes(2, "little") + (128).to_bytes(2, "little")
    raw[104:108] = (2).to_bytes(4, "little")
    job.number(2, 128)
    job.data += raw
    job.number(0)
    with pytest.raises(EmulatorError, match=message):
        program.run(bytes(job.data))


# ---- twins ----


@pytest.mark.parametrize("name", FILES)
def test_the_two_ops_share_their_code(name: str) -> None:
    """A Candidate is one file for one Op, so the code stands twice; what is mended in one must be in the other."""

    def body(file: str, bias: int) -> str:
        text = (KERNELS / "matmul" / file).read_text()
        found = re.search(rf"^#define HAS_BIAS {bias}$", text, re.MULTILINE)
        assert found
        return text[found.end() :]

    assert body(f"{name}.cu", 0) == body(f"linear_{name}.cu", 1)
