"""Programs: the canonical text, and one meaning in four places: lowered C, the host evaluator, the torch
interpreter, and (for traced functions) torch in eager mode."""

from __future__ import annotations

import math
import random
import re

import numpy as np
import pytest
import torch
from program_core import ROOT, Compiled, Core, vectorised

from kgen.program import canonical, evaluate, f32_text, parse
from kgen.programs import NAMED, Extent, random_program
from kgen.trace import Traced, trace

AT = Extent(2, 4, 24, 40)


def scores_of(at: Extent, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((at.b, at.h, at.q, at.kv)).astype(np.float32) * 3


def by_torch(t: Traced, scores: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    program = parse(t.text)
    shape = scores.shape
    at = {name: torch.arange(n, dtype=torch.int32).view([-1 if i == d else 1 for i in range(4)])
          for d, (name, n) in enumerate(zip(("b", "h", "q", "kv"), shape))}
    score, mask = torch.from_numpy(scores).double(), torch.ones(shape, dtype=torch.bool)
    if program.score is not None:
        score = evaluate(program, program.score, {**at, "score": score}, t.captured, t.scalars, torch.float64)
    if program.mask is not None:
        mask = evaluate(program, program.mask, at, t.captured, t.scalars, torch.float64)
    return score.expand(shape).numpy(), mask.expand(shape).numpy()


def tiles(at: Extent, rng: random.Random, n: int) -> list[tuple[int, ...]]:
    def span(size: int) -> tuple[int, int]:
        a = rng.randrange(size)
        return a, min(size, a + rng.choice((1, 2, 5, 16, size)))
    return [(rng.randrange(at.b), rng.randrange(at.h), *span(at.q), *span(at.kv)) for _ in range(n)]


def check_all(programs: list[tuple[str, Traced]], at: Extent, arch: str = "native") -> None:
    """Lowered code against the host evaluator against torch; kg_mask_range against the mask itself."""
    cores = [Core(t.text) for _, t in programs]
    compiled = Compiled(cores, arch)
    scores = scores_of(at)
    for i, (name, t) in enumerate(programs):
        bound = cores[i].bind(t.captured, t.scalars)
        host_score, host_mask = bound.evaluate(scores)
        torch_score, torch_mask = by_torch(t, scores)
        score, mask = compiled.run(i, bound, scores)
        np.testing.assert_array_equal(host_mask, torch_mask, err_msg=f"{name}: torch\n{t.text}")
        np.testing.assert_array_equal(mask, host_mask, err_msg=f"{name}: lowered\n{t.text}")
        np.testing.assert_allclose(host_score, torch_score, rtol=1e-9, atol=1e-9, err_msg=f"{name}: torch\n{t.text}")
        np.testing.assert_allclose(score, host_score, rtol=2e-5, atol=2e-4, err_msg=f"{name}: lowered\n{t.text}")
        for tile in tiles(at, random.Random(i), 40):
            b, h, q0, q1, k0, k1 = tile
            part = mask[b, h, q0:q1, k0:k1]
            found = compiled.range(i, bound, *tile)
            assert found in (0, 1, 2)
            assert found != 0 or not part.any(), f"{name}: range says none of {tile}\n{t.text}"
            assert found != 1 or part.all(), f"{name}: range says all of {tile}\n{t.text}"


def test_named_programs_mean_the_same_everywhere() -> None:
    check_all([(name, trace(*mods(AT))) for name, mods in NAMED.items()], AT)


def test_random_programs_mean_the_same_everywhere() -> None:
    check_all([(f"seed {s}", random_program(s, AT)) for s in range(16)], AT)


@pytest.mark.slow
@pytest.mark.parametrize("arch", ["x86-64-v2", "x86-64-v3", "x86-64-v4"])
def test_more_random_programs(arch: str) -> None:
    check_all([(f"seed {s}", random_program(s, AT)) for s in range(16, 40)], AT, arch)
    check_all([(f"seed {s}", random_program(s, AT, depth=7)) for s in range(1000, 1150)], AT, arch)


@pytest.mark.parametrize("name", list(NAMED))
def test_named_programs_are_what_torch_computes(name: str) -> None:
    """The traced text against the function itself, run by torch on real 0-d tensors through vmap."""
    score_mod, mask_mod = NAMED[name](AT)
    scores = torch.from_numpy(scores_of(AT)).double()
    score, mask = by_torch(trace(score_mod, mask_mod), scores.float().numpy())

    def mapped(fn: object, *first: torch.Tensor) -> torch.Tensor:
        index = [torch.arange(n, dtype=torch.int32) for n in (AT.b, AT.h, AT.q, AT.kv)]
        f = fn
        for d in reversed(range(4)):
            dims: list[int | None] = [None] * 4
            dims[d] = 0
            f = torch.vmap(f, in_dims=(*[0] * len(first), *dims))
        return f(*first, *index)

    if score_mod is not None:
        want = mapped(score_mod, torch.from_numpy(scores_of(AT)))
        np.testing.assert_allclose(score, want.numpy(), rtol=1e-5, atol=1e-5)
    if mask_mod is not None:
        np.testing.assert_array_equal(mask, mapped(mask_mod).expand(mask.shape).numpy())


@pytest.mark.parametrize("name", ["causal", "sliding_window", "prefix_lm", "padding", "per_head_window", "documents"])
def test_range_is_exact_where_it_matters(name: str) -> None:
    """Every tile that is empty or full is known to be: these masks are affine or sorted look-ups."""
    t = trace(*NAMED[name](AT))
    core = Core(t.text)
    compiled, bound = Compiled([core]), core.bind(t.captured, t.scalars)
    _, mask = bound.evaluate(scores_of(AT))
    known = 0
    for tile in tiles(AT, random.Random(7), 400):
        b, h, q0, q1, k0, k1 = tile
        part = mask[b, h, q0:q1, k0:k1]
        found = compiled.range(0, bound, *tile)
        if name in ("causal", "per_head_window", "padding"):
            assert found == (1 if part.all() else 2 if part.any() else 0), tile
        # A conjunction may be empty although neither side is: then 2 is right, if not sharp.
        if part.all():
            assert found == 1, tile
        known += found != 2
    assert known > 100


def _ranged(lines: list[str], compare: str) -> str:
    """A mask of one operation on q - 12 and kv - 20, compared with a constant."""
    lines = ["sub int32 q 12", "sub int32 kv 20", *lines, compare]
    return "program 1\nmask\n" + "".join(f"%{i} = {v}\n" for i, v in enumerate(lines)) + f"return %{len(lines) - 1}\n"


@pytest.mark.parametrize("part", [0, *(pytest.param(i, marks=pytest.mark.slow) for i in (1, 2, 3))])
def test_range_is_sound_for_every_operation(part: int) -> None:
    """Every fourth text; an operation has three and more of them, so a part has most operations."""
    texts = []
    for op in ("add", "sub", "mul", "min", "max", "floordiv", "rem", "truncdiv", "and", "or", "xor", "shl", "shr"):
        texts += [_ranged([f"{op} int32 %0 %1"], f"{c} bool %2 {n}") for c, n in (("ge", 0), ("lt", 3), ("eq", -1), ("ne", 2))]
        texts += [_ranged([f"add int32 %0 %1", f"{op} int32 %2 {n}"], "gt bool %3 -2") for n in (-5, 2, 7)]
    for op in ("neg", "abs", "not"):
        texts += [_ranged(["sub int32 %0 %1", f"{op} int32 %2"], f"le bool %3 {n}") for n in (-6, 0, 6)]
    for op in ("add", "sub", "mul", "min", "max", "div", "floordiv", "rem", "pow"):
        floats = ["cast float32 %0", "cast float32 %1", f"{op} float32 %2 %3"]
        texts += [_ranged(floats, f"{c} bool %4 {v}") for c, v in (("ge", "0.0"), ("lt", "2.5"), ("eq", "1.0"), ("ne", "-3.0"))]
    for op in ("tanh", "exp", "exp2", "log", "log2", "sqrt", "rsqrt", "sin", "cos", "sigmoid", "floor", "ceil", "neg", "abs"):
        floats = ["sub int32 %0 %1", "cast float32 %2", "mul float32 %3 0.25", f"{op} float32 %4"]
        texts += [_ranged(floats, f"{c} bool %5 {v}") for c, v in (("gt", "0.5"), ("le", "-0.25"), ("ne", "1.0"))]
    quarters = ["sub int32 %0 %1", "cast float32 %2", "mul float32 %3 0.25", "erf float32 %4"]
    texts += [_ranged(quarters, f"{c} bool %5 {v}") for c, v in (("gt", "0.5"), ("le", "-0.25"))]
    casts = ["sub int32 %0 %1", "cast float32 %2", "mul float32 %3 0.3"]
    texts += [_ranged([*casts, "cast int32 %4"], "ge bool %5 1"), _ranged([*casts, "floor float32 %4"], "eq bool %5 2.0"),
              _ranged(["sub int32 %0 %1", "cast bool %2", "cast int32 %3"], "eq bool %4 1"),
              _ranged([*casts, "cast bool %4", "gt bool %2 3"], "xor bool %5 %6"),
              _ranged(["sub int32 %0 %1", "gt bool %2 0", "where int32 %3 %0 %1"], "lt bool %4 2"),
              _ranged([*casts, "gt bool %2 4", "where float32 %5 %4 1.0"], "lt bool %6 0.5"),
              _ranged(["mul int32 %0 1000000007", "mul int32 %2 %1"], "gt bool %3 0")]
    tenths = ["cast float32 %0", "cast float32 %1", "mul float32 %2 0.1", "mul float32 %3 0.1", "add float32 %4 %5"]
    texts += [_ranged(tenths, f"{c} bool %6 {v}") for c in ("ge", "gt", "eq") for v in ("0.3", "0.7", "-0.6", "1.1")]
    texts = texts[part::4]
    cores = [Core(t) for t in texts]
    compiled = Compiled(cores, extra=["-O1"])
    rng, sharp = random.Random(5), 0
    for i, core in enumerate(cores):
        bound = core.bind([], [])
        _, mask = compiled.run(i, bound, scores_of(AT))
        if "0.1\n" not in texts[i]:  # there fp32 and fp64 round to different sides, and the range is of fp32
            np.testing.assert_array_equal(mask, bound.evaluate(scores_of(AT))[1], err_msg=texts[i])
        corners = [(0, 0, q, q + 1, k, k + 1) for q in range(AT.q) for k in range(0, AT.kv, 3)]
        for tile in tiles(AT, rng, 150) + corners:
            b, h, q0, q1, k0, k1 = tile
            part = mask[b, h, q0:q1, k0:k1]
            found = compiled.range(i, bound, *tile)
            assert found != 0 or not part.any(), f"none of {tile}\n{texts[i]}"
            assert found != 1 or part.all(), f"all of {tile}\n{texts[i]}"
            sharp += found != 2
    assert sharp > len(cores) * 150, f"only {sharp} tiles are told"


def test_text_is_canonical_whatever_the_order_of_statements() -> None:
    def one(score, b, h, q, kv):  # type: ignore[no-untyped-def]
        d = q - kv
        unused = score * 3
        e = (q - kv) * 1 + 0
        return score + d.float() * 0.5 * (2.0 * 2.0) + e

    def two(score, b, h, q, kv):  # type: ignore[no-untyped-def]
        return (score + (q - kv) * 0.5 * 4.0) + (q - kv)

    first, second = trace(one).text, trace(two).text
    assert first == second
    assert Core(first).hash == Core(second).hash
    assert first.count("sub int32") == 1 and first.count("cast") == 1


@pytest.mark.parametrize("value", [0.1, 1 / 3, 20.0, 1e-45, 3.4e38, -0.0, 1e16, 1e15, 123456.789, 1e-5, 2.5e-4, float("inf"),
                                   float("-inf"), float("nan")])
def test_float_literals_are_spelled_alike_by_python_and_c(value: float) -> None:
    Core(f"program 1\nscore\n%0 = add float32 score {f32_text(value)}\nreturn %0\n")


def test_float_literals_at_random_are_spelled_alike() -> None:
    bits = np.random.default_rng(3).integers(0, 2**32, 2000, dtype=np.uint32).view(np.float32)
    for v in bits[np.isfinite(bits)]:
        Core(f"program 1\nscore\n%0 = add float32 score {f32_text(float(v))}\nreturn %0\n")


GOLDEN = ROOT / "tests/golden/program"


def test_golden_texts_and_hashes() -> None:
    """What the named variants trace to, and the hashes that pins keep: neither may change unnoticed."""
    hashes = dict(line.split() for line in (GOLDEN / "hashes.txt").read_text().splitlines())
    assert sorted(hashes) == sorted(NAMED)
    for name, mods in NAMED.items():
        text = trace(*mods(AT)).text
        assert text == (GOLDEN / f"{name}.txt").read_text(), name
        assert Core(text).hash == hashes[name], name


def test_the_example_of_the_formats_is_a_program() -> None:
    section = (ROOT / "docs/formats.md").read_text().split("## Program\n")[1]
    Core(section.split("```\n")[1])


BASE = """program 1
tensor t0 float32 1
scalar s0 int32
score
%0 = load float32 t0 h
%1 = add float32 score %0
return %1
mask
%0 = sub int32 q kv
%1 = le bool %0 s0
return %1
"""


@pytest.mark.parametrize(("old", "new", "message"), [
    ("program 1", "program 2", "format 2 is newer"),
    ("program 1", "programme 1", "line 1: expected 'program 1', found 'programme'"),
    ("%1 = add", "%2 = add", "line 6: expected '%1' or 'return', found '%2'"),
    ("= add", "= plus", "'plus' is no operation"),
    ("add float32 score", "add int32 score", "add gives float32 here, not int32"),
    ("load float32 t0 h", "load int32 t0 h", "load gives float32 here"),
    ("load float32 t0 h", "load float32 t1 h", "load needs a declared tensor, found 't1'"),
    ("load float32 t0 h", "load float32 t0", "an operand is missing"),
    ("load float32 t0 h", "load float32 t0 h q", "where the line must end"),
    ("load float32 t0 h", "load float32 t0 score", "operand 1 of load must be int32, not float32"),
    ("score %0\n", "score %1\n", "'%1' is not computed above"),
    ("score %0\n", "score  %0\n", "an operand is missing"),
    ("score %0\n", "score %0 \n", "where the line must end"),
    ("score %0\n", "score 1\n", "operand 2 of add must be float32, not int32"),
    ("score %0\n", "score 2e+01\n", "must be written '20.0'"),
    ("score %0\n", "score 1_0.0\n", "is no operand"),
    ("return %1\nmask", "return %0\nmask", "%1 is never used"),
    ("return %1\nmask", "mask", "expected '%2' or 'return', found 'mask'"),
    ("%0 = sub int32 q kv", "%0 = sub int32 score kv", "score is there in the score section alone"),
    ("le bool %0 s0", "le bool %0 s1", "'s1' is not declared"),
    ("le bool %0 s0", "le bool %0 07", "must be written '7'"),
    ("le bool %0 s0", "le bool %0 2147483648", "out of range"),
    ("le bool %0 s0", "le int32 %0 s0", "le gives bool here"),
    ("le bool %0 s0", "lt bool true false", "lt does not take bool"),
    ("le bool %0 s0\nreturn %1", "sub int32 q kv\nreturn %1", "this is %0 again"),
    ("return %1\n", "return %0\n", "this section returns bool, not int32"),
    ("tensor t0", "tensor t1", "expected 't0', found 't1'"),
    ("tensor t0 float32 1", "tensor t0 float 1", "expected a dtype, found 'float'"),
    ("tensor t0 float32 1", "tensor t0 float32 7", "expected a rank of 0 to 6"),
    ("scalar s0 int32", "scalar s0 int64", "expected a type (float32, int32 or bool)"),
    ("scalar s0 int32", "scalar s0 int32\nscalar s1 int32", "s1 is never used"),
    ("score\n%0", "mask\n%0", "line 6: score is there in the score section alone"),
    ("mask\n", "score\n", "what may follow here is 'mask'"),
])
def test_what_is_not_canonical_is_refused_with_line_and_reason(old: str, new: str, message: str) -> None:
    Core(BASE)
    changed = BASE.replace(old, new, 1) if old != "return %1\n" else BASE[: BASE.rindex(old)] + new
    assert changed != BASE
    with pytest.raises(ValueError, match=re.escape(message)):
        Core(changed)


@pytest.mark.parametrize(("text", "message"), [
    (b"", "found 'the end of the line'"),
    (b"program 1\n", "neither a score, a mask nor an epilogue section"),
    (b"program 1\nmask\nreturn true", "must end with a newline"),
    (b"program 1\nmask\nreturn true\n\n", "what may follow here is nothing"),
    (b"program 1\nmask\nreturn tr\x00ue\n", "only load takes one"),
    (b"program 1\nscore\nreturn 1.0\x00\n", "is no operand"),
    (b"program 1\nmask\r\nreturn true\n", "found 'mask?'"),
    (b"program 1\nscore\n" + b"%0 = neg float32 score\n" * 2 + b"return %0\n", "expected '%1' or 'return'"),
])
def test_odd_texts(text: bytes, message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        Core(text)


def test_limits() -> None:
    def chain(n: int) -> str:
        lines = ["%0 = abs int32 kv"] + [f"%{i} = add int32 %{i - 1} q" for i in range(1, n - 1)]
        return "\n".join(["program 1", "mask", *lines, f"%{n - 1} = ge bool %{n - 2} 0", f"return %{n - 1}", ""])
    Core(chain(512))
    with pytest.raises(ValueError, match="at most 512 values"):
        Core(chain(513))
    with pytest.raises(ValueError, match="65536 are allowed"):
        Core(b"program 1\n" + b" " * 70000)
    many = "\n".join(["program 1", *[f"tensor t{i} float32 1" for i in range(17)], ""])
    with pytest.raises(ValueError, match="at most 16 tensors"):
        Core(many)


def test_mutated_texts_never_crash_and_what_parses_lowers() -> None:
    rng = random.Random(11)
    alphabet = list(b"%0123456789 \n\x00abqhkvst=.e-") + [200]
    texts = [random_program(s, AT).text.encode() for s in range(20)] + [BASE.encode()]
    parsed = 0
    for _ in range(4000):
        text = bytearray(rng.choice(texts))
        for _ in range(rng.choice((1, 1, 2, 5))):
            at = rng.randrange(len(text))
            text[at:at + rng.randrange(3)] = bytes(rng.choices(alphabet, k=rng.randrange(3)))
        try:
            core = Core(bytes(text))
        except ValueError as e:
            assert str(e).startswith("program"), e
            continue
        parsed += 1
        assert len(core.lower()) > 100 and len(core.lower(1)) > 100
    assert parsed > 0


def test_binding_names_what_does_not_fit() -> None:
    core = Core(BASE)
    good = torch.zeros(4)
    core.bind([good], [3])
    for captured, scalars, message in (
        ([], [3], "0 captured tensors were given; the Program has 1"),
        ([good], [], "0 scalars were given; the Program has 1"),
        ([good.half()], [3], "is float16; the Program was traced with float32"),
        ([good.view(2, 2)], [3], "has 2 dims; the Program was traced with 1"),
        ([good[:0]], [3], "has size 0 in dim 0"),
        ([good], [2.5], "needs an int32"),
        ([good], [2.0**31], "needs an int32"),
    ):
        with pytest.raises(ValueError, match=re.escape(message)):
            core.bind(captured, scalars)
    wide = Core("program 1\ntensor t0 int64 1\nmask\n%0 = load int32 t0 kv\n%1 = ge bool q %0\nreturn %1\n")
    wide.bind([torch.tensor([1, -2**31])], [])
    with pytest.raises(ValueError, match="holds 2147483648, which is no int32"):
        wide.bind([torch.tensor([1, 2**31])], [])


@pytest.mark.parametrize("dtype", ["float32", "float64", "float16", "bfloat16", "int8", "uint8", "int16", "int32", "int64", "bool"])
@pytest.mark.parametrize("offset", [0, 1, 3])
def test_look_ups_of_every_dtype_and_alignment(dtype: str, offset: int) -> None:
    """All 65536 halves among them: subnormals, infinities and NaN."""
    kind = {"f": "float32", "b": "float32", "i": "int32", "u": "int32"}["f" if "float" in dtype else dtype[0]]
    if dtype == "bool":
        kind = "bool"
    torch_dtype = getattr(torch, dtype)
    bits = np.arange(65536, dtype=np.uint16)
    if dtype in ("float16", "bfloat16"):
        table = torch.from_numpy(bits.astype(np.int16)).view(torch_dtype)
    elif dtype == "bool":
        table = torch.from_numpy(bits % 3 == 0)
    elif dtype in ("float32", "float64"):
        table = torch.from_numpy(np.random.default_rng(1).standard_normal(65536)).to(torch_dtype)
    else:
        table = torch.from_numpy(bits.astype(np.int64) * 7 - 3).to(torch_dtype)
    table = torch.cat([torch.zeros(offset, dtype=torch_dtype), table])[offset:]
    as_float = "%1 = cast float32 %0\n%2 = add float32 score %1\nreturn %2\n"
    text = (f"program 1\ntensor t0 {dtype} 1\nscore\n%0 = load {kind} t0 kv\n" +
            ("%1 = add float32 score %0\nreturn %1\n" if kind == "float32" else as_float))
    core = Core(text)
    bound = core.bind([table], [])
    zeros = np.zeros((1, 1, 1, 65536), dtype=np.float32)
    want = table.float().numpy()
    for arch in ("native", "x86-64-v2"):
        got, _ = Compiled([core], arch).run(0, bound, zeros)
        np.testing.assert_array_equal(got[0, 0, 0], want)
    np.testing.assert_array_equal(bound.evaluate(zeros)[0][0, 0, 0].astype(np.float32), want)


def _ulps(got: np.ndarray, want: np.ndarray) -> np.ndarray:
    """The distance of float32 got from the true value, in units of the float32 spacing at it."""
    with np.errstate(all="ignore"):
        nearest = want.astype(np.float32)
        error = np.abs(got.astype(np.float64) - want) / np.spacing(np.abs(nearest)).astype(np.float64)
        same = (got == nearest) | (np.isnan(got) & np.isnan(want))
        # What rounds to infinity may be the greatest float, and the other way round: half a step away.
        edge = ~np.isfinite(got) | ~np.isfinite(nearest)
        return np.where(same, 0.0, np.where(edge, np.inf, error))


def _floats(n: int) -> np.ndarray:
    rng = np.random.default_rng(5)
    bits = rng.integers(0, 2**32, n, dtype=np.uint32).view(np.float32)
    usual = (rng.standard_normal(n) * 10.0 ** rng.uniform(-6, 2, n)).astype(np.float32)
    near_one = (1 + rng.standard_normal(n) * 10.0 ** rng.uniform(-7, -1, n)).astype(np.float32)
    special = np.array([0.0, -0.0, np.inf, -np.inf, np.nan, 1, -1, 1e-45, -1e-45, 1.1754942e-38, 1.17549435e-38, 3.4028235e38,
                        88.7228, 88.73, 89, -87.4, -103.9, -104.1, 128, -149, -150, -151, 9.01, 9.02, 9.03], np.float32)
    return np.concatenate([special, bits, usual, near_one])


_EXACT = {
    "tanh": np.tanh, "exp": np.exp, "exp2": np.exp2, "log": np.log, "log2": np.log2, "sqrt": np.sqrt,
    "rsqrt": lambda x: 1 / np.sqrt(x), "sin": np.sin, "cos": np.cos, "floor": np.floor, "ceil": np.ceil,
    "erf": np.vectorize(math.erf, otypes=[float]),
    "sigmoid": lambda x: np.where(x < 0, np.exp(x) / (1 + np.exp(x)), 1 / (1 + np.exp(-x))),
}


@pytest.mark.parametrize("arch", ["x86-64-v2", "native"])
def test_functions_are_within_4_ulp_over_all_of_float(arch: str) -> None:
    x = _floats(200_000)
    for i, (name, exact) in enumerate(_EXACT.items()):
        core = Core(f"program 1\nscore\n%0 = {name} float32 score\nreturn %0\n")
        got, _ = Compiled([core], arch).run(0, core.bind([], []), x.reshape(1, 1, 1, -1))
        with np.errstate(all="ignore"):
            error = _ulps(got.ravel(), exact(x.astype(np.float64)))
        worst = int(np.argmax(error))
        assert error[worst] <= 4, f"{name}({x[worst]!r}) = {got.ravel()[worst]!r}: {error[worst]} ulp"


@pytest.mark.parametrize("arch", ["x86-64-v2", "native"])
def test_powers_are_within_4_ulp(arch: str) -> None:
    rng = np.random.default_rng(6)
    special = np.array([0.0, -0.0, 1, -1, 2, -2, 3, 0.5, -0.5, 1e-40, np.inf, -np.inf, np.nan, 3e38, 16777216, 16777217], np.float32)
    a, b = (g.ravel() for g in np.meshgrid(special, special))
    n = 200_000
    a = np.concatenate([a, rng.integers(0, 2**32, n, dtype=np.uint32).view(np.float32), np.abs(rng.standard_normal(n)).astype(np.float32)])
    b = np.concatenate([b, rng.standard_normal(n).astype(np.float32) * 3, np.round(rng.standard_normal(n) * 20).astype(np.float32)])
    core = Core("program 1\ntensor t0 float32 1\nscore\n%0 = load float32 t0 kv\n%1 = pow float32 score %0\nreturn %1\n")
    got, _ = Compiled([core], arch).run(0, core.bind([torch.from_numpy(b)], []), a.reshape(1, 1, 1, -1))
    with np.errstate(all="ignore"):
        error = _ulps(got.ravel(), np.power(a.astype(np.float64), b.astype(np.float64)))
    worst = int(np.argmax(error))
    assert error[worst] <= 4, f"pow({a[worst]!r}, {b[worst]!r}) = {got.ravel()[worst]!r}: {error[worst]} ulp"


@pytest.mark.parametrize("op", ["floordiv", "rem", "min", "max"])
def test_float_division_and_extremes_are_torchs(op: str) -> None:
    rng = np.random.default_rng(8)
    special = np.array([0.0, -0.0, 1, -1, 2.5, -2.5, 7, -7, np.inf, -np.inf, np.nan, 0.1, 0.3], np.float32)
    a, b = (g.ravel() for g in np.meshgrid(special, special))
    a = np.concatenate([a, (rng.standard_normal(100_000) * 100).astype(np.float32)])
    b = np.concatenate([b, rng.standard_normal(100_000).astype(np.float32)])
    core = Core(f"program 1\ntensor t0 float32 1\nscore\n%0 = load float32 t0 kv\n%1 = {op} float32 score %0\nreturn %1\n")
    got, _ = Compiled([core]).run(0, core.bind([torch.from_numpy(b)], []), a.reshape(1, 1, 1, -1))
    torch_op = {"floordiv": torch.floor_divide, "rem": torch.remainder, "min": torch.minimum, "max": torch.maximum}[op]
    want = torch_op(torch.from_numpy(a), torch.from_numpy(b)).numpy()
    np.testing.assert_array_equal(got.ravel(), want)


@pytest.mark.slow
@pytest.mark.parametrize("op", ["floordiv", "rem", "truncdiv"])
def test_int_division_is_exact_over_all_of_int32(op: str) -> None:
    """By tables, by lifted scalars and by literals, against Python's integers; zero gives zero, -2^31 / -1 wraps."""
    rng = np.random.default_rng(9)
    special = np.array([0, 1, -1, 2, -2, 3, 7, -7, 24, 2**31 - 1, -2**31, 2**30, -2**30 - 1], np.int64)
    a, b = (g.ravel() for g in np.meshgrid(special, special))
    small = rng.integers(-100, 100, 20_000)
    a = np.concatenate([a, rng.integers(-2**31, 2**31, 40_000)]).astype(np.int32)
    b = np.concatenate([b, rng.integers(-2**31, 2**31, 20_000), small]).astype(np.int32)

    def want(x: np.ndarray, y: np.ndarray) -> np.ndarray:
        x, y = x.astype(object), y.astype(object)
        q = [0 if v == 0 else u // v for u, v in zip(x, y)]
        if op == "truncdiv":
            q = [0 if v == 0 else abs(u) // abs(v) * (1 if (u < 0) == (v < 0) else -1) for u, v in zip(x, y)]
        r = [0 if v == 0 else u - d * v for u, v, d in zip(x, y, q)]
        return np.array([(v + 2**31) % 2**32 - 2**31 for v in (r if op == "rem" else q)], dtype=np.int64)

    table, other = torch.from_numpy(a), torch.from_numpy(b)
    few = torch.from_numpy(a[:4000])
    divisors = (0, 1, 7, 64, -3, 2**31 - 1, -2**31)
    cases: list[tuple[str, str, list[torch.Tensor], list[float], np.ndarray]] = [
        ("%1", "tensor t1 int32 1\n", [table, other], [], want(a, b))]
    for d in divisors:
        expected = want(few.numpy(), np.full(len(few), d))
        cases += [("s0", "scalar s0 int32\n", [few], [d], expected), (str(d), "", [few], [], expected)]

    # A whole int32 does not fit float32: its halves go out one after the other.
    cores = []
    for divisor, head, *_ in cases:
        for half in ("and int32 %{} 65535", "shr int32 %{} 16"):
            lines = ["load int32 t0 kv"] + (["load int32 t1 kv"] if divisor == "%1" else []) + [f"{op} int32 %0 {divisor}"]
            lines += [half.format(len(lines) - 1), f"cast float32 %{len(lines)}"]
            body = "".join(f"%{i} = {line}\n" for i, line in enumerate(lines))
            cores.append(Core(f"program 1\ntensor t0 int32 1\n{head}score\n{body}return %{len(lines) - 1}\n"))
    compiled = Compiled(cores)
    for i, (divisor, _, captured, scalars, expected) in enumerate(cases):
        zeros = np.zeros((1, 1, 1, len(expected)), np.float32)
        halves = []
        for k in (2 * i, 2 * i + 1):
            bound = cores[k].bind(captured, scalars)
            halves.append(compiled.run(k, bound, zeros)[0].ravel().astype(np.int64))
            np.testing.assert_array_equal(halves[-1], bound.evaluate(zeros)[0].ravel().astype(np.int64))
        np.testing.assert_array_equal(halves[1] * 65536 + halves[0], expected, err_msg=f"{op} by {divisor} {scalars}")


@pytest.mark.parametrize("arch", [pytest.param("x86-64-v3", marks=pytest.mark.slow), "x86-64-v4"])
def test_lowered_code_vectorises(arch: str) -> None:
    """Every named variant and every function: one that did not would cost several times the attention itself."""
    programs = {name: trace(*mods(AT)).text for name, mods in NAMED.items()}
    for name in (*_EXACT, "neg", "abs"):
        programs[name] = f"program 1\nscore\n%0 = {name} float32 score\nreturn %0\n"
    for name in ("pow", "rem", "floordiv", "min", "max", "div"):
        programs[name] = f"program 1\nscalar s0 float32\nscore\n%0 = {name} float32 score s0\nreturn %0\n"
    for name in ("floordiv", "rem", "truncdiv", "shl", "shr"):
        programs[f"int {name}"] = f"program 1\nscalar s0 int32\nmask\n%0 = {name} int32 kv s0\n%1 = ge bool q %0\nreturn %1\n"
    for name, text in programs.items():
        wanted = {section.upper() for section in ("score", "mask") if f"\n{section}\n" in text}
        assert vectorised(Core(text), arch) >= wanted, f"{name}\n{text}"


def test_canonical_keeps_what_is_not_exact() -> None:
    """0.1 + 0.2 rounds: whoever computes it in fp64 must get fp64's sum, so it is no literal."""
    raw = [("add", "float32", "0.1", "0.2"), ("add", "float32", "score", "%0")]
    assert "add float32 0.1 0.2" in canonical((raw, "%1"), None, [], []).text
    raw = [("mul", "float32", "0.5", "4.0"), ("add", "float32", "score", "%0")]
    assert "add float32 score 2.0" in canonical((raw, "%1"), None, [], []).text
