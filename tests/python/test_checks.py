"""The judge's checking kernels (csrc/tune/checks.cu), their own text run by the emulator: bytes at every alignment, sums
against the CPU's comparison, threads in both orders, and mutants, which must fail."""

from __future__ import annotations

import ctypes
import math
import struct

import pytest
import torch
from emulator import ROOT, EmulatorError, Program, _Job
from kgen import judge as judging

TEXT = "".join((ROOT / "csrc" / "tune" / name).read_text() for name in ("check_core.h", "checks.cu"))
DTYPES = ("float32", "float64", "float16", "bfloat16", "int8", "uint8", "int16", "int32", "int64", "bool")
KERNELS = [f"kg_check_{k}" for k in ("fill", "bands", "differ", "hash", "read", "copy")]
KERNELS += [f"kg_check_compare_{d}" for d in DTYPES]
M64 = 2**64 - 1


class Checks:
    """One launch at a time of the kernels of a text."""

    def __init__(self, text: str = TEXT) -> None:
        self.program = Program(text, KERNELS)

    def __call__(self, kernel: str, tensors: list[tuple[bytes, int, bool]], args: list[object], blocks: tuple[int, int] = (3, 1),
                 backwards: bool = False) -> list[bytes]:  # fmt: skip
        """tensors: bytes, offset from a multiple of 256, whether it is given back. args: an int is a tensor, bytes are a
        value, a pair is a value and its pointers as (offset, tensor)."""
        job = _Job()
        job.number(1)
        job.text(kernel)
        job.number(len(tensors))
        for raw, offset, out in tensors:
            job.number(len(raw), offset, int(out))
            job.data += raw
        job.number(1)
        job.text(f"kg_check_{kernel}")
        job.number(blocks[0], blocks[1], 1, 256, 1, 1, 1, 1, 1, 0)
        for arg in args:
            if isinstance(arg, int):
                job.number(0, arg)
                continue
            raw, pointers = arg if isinstance(arg, tuple) else (arg, [])
            job.number(2 if pointers else 1, len(raw))
            job.data += raw
            job.number(len(pointers), *(n for pair in pointers for n in pair))
        raw, at, found = self.program.run(bytes(job.data), backwards), 0, []
        for data, _, out in tensors:
            if out:
                found.append(raw[at : at + len(data)])
                at += len(data)
        return found


@pytest.fixture(scope="module")
def checks() -> Checks:
    return Checks()


def u64(*values: int) -> bytes:
    return struct.pack(f"<{len(values)}Q", *values)


def pattern(word: int, address: int, n: int) -> bytes:
    raw = u64(word)
    return bytes(raw[(address + i) % 8] for i in range(n))


WORD = 0x1122334455667788


@pytest.mark.parametrize("offset", [0, 1, 5, 8, 15, 16])
@pytest.mark.parametrize("n", [1, 7, 15, 16, 17, 40, 4099, 40003])
def test_fill_sets_each_byte_and_no_other(checks: Checks, offset: int, n: int) -> None:
    room = bytes(range(256)) * 200
    (got,) = checks("fill", [(room[: n + 50], offset, True)], [0, u64(n), u64(WORD)])
    assert got == pattern(WORD, offset, n) + room[n : n + 50]


@pytest.mark.parametrize("backwards", [False, True])
def test_bands_name_the_first_byte(checks: Checks, backwards: bool) -> None:
    sizes = [(0, 5000), (3, 5000), (9, 21), (0, 16), (5, 4), (0, 0)]
    wrong = [(4999, 4017, 4016), (0, 1, 4999), (20,), (), (3,), ()]
    tensors, at = [], []
    for (offset, n), places in zip(sizes, wrong, strict=True):
        raw = bytearray(pattern(WORD, offset, n))
        for place in places:
            raw[place] ^= 0x40
        tensors.append((bytes(raw), offset, False))
        at.append(min(places, default=M64))
    n = len(sizes)
    pad = [0] * (128 - n)
    value = u64(*[0] * 128) + u64(*[s for _, s in sizes], *pad) + u64(*[WORD] * n, *pad)
    tensors.append((u64(*[M64] * n), 0, True))
    bands = (value, [(8 * i, i) for i in range(n)])
    (first,) = checks("bands", tensors, [bands, n], (2, n), backwards)
    assert list(struct.unpack(f"<{n}Q", first)) == at


@pytest.mark.parametrize("places", [(), (0,), (15,), (16, 3), (40000, 39999), (70001,), (70002, 12288)])
def test_differ_names_the_first_byte(checks: Checks, places: tuple[int, ...]) -> None:
    a = bytes(i * 7 % 251 for i in range(70003))
    b = bytearray(a)
    for place in places:
        b[place] ^= 1
    (first,) = checks("differ", [(a, 0, False), (bytes(b), 0, False), (u64(M64), 0, True)], [0, 1, u64(len(a)), 2])
    assert struct.unpack("<Q", first)[0] == min(places, default=M64)


def host_hash(raw: bytes, secret: int) -> tuple[int, int]:
    """kg_hash_word over whole words, written down once more."""
    a = b = 0
    raw += bytes(-len(raw) % 16)
    turned = (secret << 32 | secret >> 32) & M64
    for place, (lo, hi) in enumerate(struct.iter_unpack("<2Q", raw)):
        t = ((lo ^ secret) + place * 0x9E3779B97F4A7C15) & M64
        u = ((hi ^ turned) + place * 0xD6E8FEB86659FD93) & M64
        t = (t ^ t >> 32) * 0xFF51AFD7ED558CCD & M64
        u = (u ^ u >> 29) * 0xC4CEB9FE1A85EC53 & M64
        u ^= t >> 33
        t ^= u >> 31
        a = (a + (t ^ t >> 29) * 0xBF58476D1CE4E5B9) & M64
        b = (b + (u ^ u >> 32) * 0x94D049BB133111EB) & M64
    return a, b


@pytest.mark.parametrize("n", [0, 1, 15, 16, 17, 4096, 50000, 123457])
def test_hash_is_the_same_on_any_grid(checks: Checks, n: int) -> None:
    raw = bytes((i * i + 3) % 253 for i in range(n))
    for blocks, backwards in ((1, False), (3, True), (5, False)):
        (got,) = checks("hash", [(raw, 0, False), (u64(0, 0), 0, True)], [0, u64(n), u64(12345), 1], (blocks, 1), backwards)
        assert struct.unpack("<2Q", got) == host_hash(raw, 12345)


def test_copy_and_read(checks: Checks) -> None:
    raw = bytes(i % 255 for i in range(16 * 5001))
    copied, = checks("copy", [(bytes(len(raw)), 0, True), (raw, 0, False)], [0, 1, u64(len(raw))])
    assert copied == raw
    sink, = checks("read", [(raw, 0, False), (u64(0), 0, True)], [0, u64(len(raw)), 1])
    assert struct.unpack("<Q", sink)[0] in (0, 0x5EED5EED5EED5EED)


SUMS = struct.Struct("<4d5Q")
RANGES = {"float32": (torch.finfo(torch.float32).max, 1e-4), "float16": (65504.0, 1e-2),
          "bfloat16": (torch.finfo(torch.bfloat16).max, 1e-2)}  # fmt: skip
RANGE_64 = (torch.finfo(torch.float64).max, 1e-8)


def raw_of(t: torch.Tensor) -> bytes:
    return ctypes.string_at(t.data_ptr(), t.numel() * t.element_size())


def compared(checks: Checks, name: str, out: torch.Tensor, oracle: torch.Tensor, poison: int, backwards: bool = False) -> list[float]:
    blocks = 3
    largest, close = RANGES.get(name, RANGE_64)
    # What an earlier piece left is added to.
    tensors = [(raw_of(out), 0, False), (raw_of(oracle), 0, False), (SUMS.pack(*[0.0] * 4, *[0] * 5) * blocks, 0, True)]
    args: list[object] = [0, 1, u64(out.numel()), u64(poison), struct.pack("<d", largest), struct.pack("<d", close), 2]
    (got,) = checks(f"compare_{name}", tensors, args, (blocks, 1), backwards)
    parts = [SUMS.unpack_from(got, SUMS.size * i) for i in range(blocks)]
    return [max(p[k] for p in parts) if k in (2, 3) else math.fsum(p[k] for p in parts) for k in range(9)]


def values(name: str, n: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Outputs and oracles that differ in every way there is."""
    torch.manual_seed(n)
    dtype = getattr(torch, name)
    if not dtype.is_floating_point:
        low, high = (0, 2) if dtype == torch.bool else (0, 200) if dtype == torch.uint8 else (-100, 100)
        oracle = torch.randint(low, high, (n,))
        out = torch.where(torch.rand(n) < 0.1, torch.randint(low, high, (n,)), oracle)
        return out.to(dtype), oracle
    oracle = torch.randn(n, dtype=torch.float64) * 3
    out = (oracle * (1 + 1e-3 * torch.randn(n, dtype=torch.float64))).to(dtype)
    for i, (o, r) in enumerate([(math.nan, math.nan), (math.inf, math.inf), (math.inf, 1e39), (1.0, math.inf), (math.nan, 1.0),
                                (-math.inf, 2.0), (math.inf, -math.inf)]):  # fmt: skip
        if n > 40 * (i + 1):
            out[37 * i + 11], oracle[37 * i + 11] = o, r
    return out, oracle


@pytest.mark.parametrize("name", DTYPES)
@pytest.mark.parametrize("n", [1, 9, 777, 5003])
def test_sums_are_the_cpus(checks: Checks, name: str, n: int) -> None:
    out, oracle = values(name, n)
    poison = 250 if name == "uint8" else 127  # as an integer, none of the values
    got = compared(checks, name, out, oracle, poison, backwards=n == 777)
    norm, worst, bad = judging.errors(out, oracle)
    d2, r2, largest, scale, _, unwritten, nonfinite, misplaced, unequal = got
    assert nonfinite + misplaced + unequal + unwritten == bad
    assert math.sqrt(d2) / (math.sqrt(r2) or 1) == pytest.approx(norm, rel=1e-12, abs=1e-300)
    assert largest / (scale or 1) == pytest.approx(worst, rel=1e-15, abs=0)


@pytest.mark.parametrize("name", ["float32", "bfloat16", "float64"])
def test_what_is_not_written_is_counted(checks: Checks, name: str) -> None:
    out, oracle = torch.zeros(1003, dtype=getattr(torch, name)), torch.zeros(1003, dtype=torch.float64)
    size = out.element_size()
    poison = {2: 0x7F91, 4: 0x7F912345, 8: 0x7FF0000000000123}[size]
    raw = out.view({2: torch.int16, 4: torch.int32, 8: torch.int64}[size])
    for i in (0, 500, 1002):
        raw[i] = poison
    assert compared(checks, name, out, oracle, poison)[5] == 3


MUTANTS = {
    "a tail left out": ("for (kg_word64 k = groups * each + i; k < n; k += step)", "for (kg_word64 k = n + i; k < n; k += step)"),
    "a warp's sums left out": ("for (int w = 1; w < 8; w++)\n        kg_add_sums(s, &warps[w]);", "for (int w = 1; w < 7; w++)\n        kg_add_sums(s, &warps[w]);"),
    "the wrong oracle": ("e % 2 ? r[e / 2].hi : r[e / 2].lo", "e % 2 ? r[e / 2].lo : r[e / 2].hi"),
    "no barrier": ("        warps[threadIdx.x / 32] = *s;\n    __syncthreads();", "        warps[threadIdx.x / 32] = *s;"),
}  # fmt: skip


@pytest.mark.parametrize("name", MUTANTS)
def test_mutants_fail(name: str) -> None:
    old, new = MUTANTS[name]
    assert TEXT.count(old) == 1
    mutant = Checks(TEXT.replace(old, new))
    out, oracle = values("float32", 5003)
    norm, _, bad = judging.errors(out, oracle)
    try:
        wrong = [compared(mutant, "float32", out, oracle, 1, backwards) for backwards in (False, True)]
    except EmulatorError:
        return
    assert any(
        sum(w[5:]) != bad or math.sqrt(w[0]) / math.sqrt(w[1]) != pytest.approx(norm, rel=1e-9) for w in wrong
    ), "the same result as the real one"
