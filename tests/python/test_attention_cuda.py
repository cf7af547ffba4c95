"""The attention kernels for Hopper on a GPU, through the judge: lengths around every tile's edge, grouped heads, layouts,
Programs of each kind that the kernel treats in its own way, scores that outgrow the maximum in use, repeated results."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from kgen import _libkgen, programs, spread
from kgen._paths import kernels_dir
from kgen.attention import reference_attention_mod
from kgen.judge import Judge
from kgen.spread import Sizes, attention_trial
from kgen.task import canonical_contract
from kgen.trace import trace

pytestmark = pytest.mark.cuda
GPU = torch.device("cuda", 0)
SOURCE = kernels_dir() / "attention" / "hopper.cu"
MASKED = kernels_dir() / "attention" / "masked.cu"
DECODE = kernels_dir() / "attention" / "decode_hopper.cu"
CONTRACT = canonical_contract("attention").decode()
HALVES = ("bfloat16", "float16")
# Tunables that make another kernel of it, and the width of heads that each is tried with.
BUILDS: dict[str, tuple[int, dict[str, int]]] = {
    "128": (128, {}),
    "128, maxima always": (128, {"QUICK": 0, "BLOCK_N": 80, "STAGES": 3}),
    "64, three consumers": (64, {"HEAD": 64, "CONSUMERS": 3}),
    "64, long blocks": (64, {"HEAD": 64, "BLOCK_N": 176}),
    "256": (256, {"HEAD": 256, "BLOCK_N": 64}),
    "128, plain": (128, {"BLOCK_N": 160, "PINGPONG": 1}),
    "256, plain": (256, {"HEAD": 256, "BLOCK_N": 80}),
}
MASKED_BUILDS: dict[str, tuple[int, dict[str, int]]] = {
    "128": (128, {}),
    "128, short blocks": (128, {"BLOCK_N": 64, "STAGES": 3}),
    "64, three consumers": (64, {"HEAD": 64, "CONSUMERS": 3, "STAGES": 3}),
    "256": (256, {"HEAD": 256, "BLOCK_N": 64}),
}
BOXES = ({"BOX_X": 28}, {"BOX_X": 32}, {"BOX_X": 16, "STAGES": 3})


@pytest.fixture(autouse=True)
def hopper() -> None:
    if torch.cuda.get_device_capability(GPU)[0] != 9:
        pytest.skip("for sm_90")


def judged(trials: list[spread.Trial], tunables: dict[str, int], any_size: bool = True, source: Path = SOURCE) -> spread.Evidence:
    chosen = all_tunables(tunables, source)
    made = [t.on("cuda") for t in trials]
    found = spread.judge(CONTRACT, source.read_bytes(), source.name, chosen, made, any_size=any_size)
    assert found.verdict == "pass", found.message
    return found


def all_tunables(chosen: dict[str, int], source: Path) -> dict[str, int]:
    """Those and the defaults of the others."""
    about = _libkgen.candidate_check(CONTRACT, source.read_bytes(), source.name)["tunables"]
    return {n: chosen.get(n, v[0] if isinstance(v, list) else v) for n, v in about.items()}


@pytest.mark.parametrize("build", BUILDS)
def test_lengths_and_layouts(build: str) -> None:
    d, chosen = BUILDS[build]
    block = chosen.get("BLOCK_N", 128)
    lengths = (1, 63, 64, 65, block - 1, block, block + 1, 2 * block + 3, 193)
    trials = [
        attention_trial(HALVES[i % 2], Sizes(1 + i % 2, 4, lengths[i * 4 % 9], d - 8 * (i % 3), (4, 2, 1)[i % 3], n, d),
                        layout="cih"[i % 3])
        for i, n in enumerate(lengths)
    ]  # fmt: skip
    found = judged(trials, chosen)
    assert not found.skipped, found.skipped


@pytest.mark.parametrize("build", [b for b in BUILDS if "plain" not in b])
def test_programs_by_name(build: str) -> None:
    d, chosen = BUILDS[build]
    at = Sizes(2, 4, 150, d, 2, 290, d)
    trials = [
        attention_trial(HALVES[i % 2], at, program, name) for i, (name, program) in enumerate(spread.named_programs(at.extent))
    ]
    found = judged(trials, chosen)
    assert not found.skipped and len(found.programs) > 25


@pytest.mark.parametrize("first", range(0, 48, 12))
def test_programs_at_random(first: int) -> None:
    at = Sizes(2, 4, 130, 64, 4, 200, 64)
    trials = [
        attention_trial(HALVES[i % 2], at, program, name)
        for i, (name, program) in enumerate(spread.random_programs(12, at.extent, 5000 + first))
    ]
    judged(trials, {"HEAD": 64, "CONSUMERS": 3})


def masks(at: Sizes, count: int = 0) -> list[tuple[str, Any]]:
    """Of the Programs by name, or of some at random, those that have a mask."""
    found = spread.random_programs(count, at.extent, 7000) if count else spread.named_programs(at.extent)
    return [(name, program) for name, program in found if "mask\n" in program[0]]


@pytest.mark.parametrize("build", MASKED_BUILDS)
def test_bits_of_masks(build: str) -> None:
    d, chosen = MASKED_BUILDS[build]
    trials = [
        attention_trial(HALVES[i % 2], at, program, name, layout="cih"[i % 3])
        for at in (Sizes(2, 4, 150, d, 2, 290, d), Sizes(1, 4, 700, d - 8, 4, 643, d))
        for i, (name, program) in enumerate(masks(at) + masks(at, 12))
    ]
    found = judged(trials, chosen, source=MASKED)
    assert not found.skipped, found.skipped


@pytest.mark.parametrize("chosen", BOXES)
def test_boxes_of_an_image(chosen: dict[str, int]) -> None:
    """Images of which the last tile hangs over, a neighbourhood, one with borders that shift, and rows far apart."""
    at = Sizes(2, 2, 64 * 13, 128, 1, 64 * 13, 128)
    makes = (
        lambda b, h, q, kv: ((q // 64 - kv // 64).abs() <= 6) & ((q % 64 - kv % 64).abs() <= 6),
        lambda b, h, q, kv: ((q // 64).clamp(4, 8) - kv // 64).abs() + ((q % 64).clamp(5, 58) - kv % 64).abs() <= 5 + h,
        lambda b, h, q, kv: (q // 64 != kv // 64) & (q % 64 == kv % 64),
    )
    trials = []
    for i, mask in enumerate(makes):
        t = trace(None, mask)
        trials.append(attention_trial(HALVES[i % 2], at, (t.text, t.captured, t.scalars), f"image {i}"))
    found = judged(trials, chosen, source=MASKED)
    assert not found.skipped, found.skipped


@pytest.mark.parametrize("chosen", [{}, {"STAGES": 6, "WAVES": 1}, {"WARPS": 8}])
def test_decoding(chosen: dict[str, int]) -> None:
    lengths = (1, 15, 64, 1021, 4099, 33000)
    trials = [
        attention_trial(HALVES[i % 2], Sizes(1 + i % 3, 8, 1 + i % 4, 128 - 8 * (i % 2), (2, 8)[i % 2], n, 128), layout="cih"[i % 3])
        for i, n in enumerate(lengths)
    ]
    at = Sizes(2, 8, 2, 128, 4, 900, 128)
    trials += [attention_trial(HALVES[i % 2], at, p, name) for i, (name, p) in enumerate(spread.named_programs(at.extent))]
    found = judged(trials, chosen, source=DECODE)
    assert not found.skipped, found.skipped


@pytest.mark.parametrize("dtype", HALVES)
def test_one_cache_for_all_entries(dtype: str) -> None:
    """Keys of stride 0 from entry to entry, whose pages of 16 belong to one of them each."""
    torch.manual_seed(3)
    b, pages = 5, 300
    whose, length = torch.full((b, pages), -1, dtype=torch.int32, device=GPU), torch.tensor([1000, 16, 1, 700, 333], device=GPU)
    free = torch.randperm(pages, device=GPU)
    for i, n in enumerate(length.tolist()):
        own, free = free[: -(-n // 16)], free[-(-n // 16) :]
        whose[i, own] = torch.arange(len(own), dtype=torch.int32, device=GPU)
    t = trace(None, lambda b, h, q, kv: (whose[b, kv // 16] >= 0) & (whose[b, kv // 16] * 16 + kv % 16 < length[b]), device=GPU)
    wide = getattr(torch, dtype)
    q = torch.randn(b, 8, 1, 128, device=GPU).to(wide)
    k, v = (torch.randn(1, 2, pages * 16, 128, device=GPU).to(wide).expand(b, -1, -1, -1) for _ in range(2))
    rest = (t.captured, t.scalars, t.text, None, True)
    made = attention_trial(dtype, Sizes(b, 8, 1, 128, 2, pages * 16, 128), (t.text, t.captured, t.scalars), "pages").on("cuda")
    for n in ("key", "value"):
        made.case["args"][n]["stride"][0] = 0
    for source in (DECODE, DECODE.with_name("decode.cu")):
        with Judge(CONTRACT, device=GPU) as judge:
            case = judge.add_case(made.case)
            oracle, theirs = (reference_attention_mod(q, k, v, *rest, dtype=d) for d in (torch.float64, None))
            judge.add_set(case, [q, k, v, *t.captured], list(oracle), results=list(theirs))
            record = judge.run(source.read_text(), name=source.name)
        assert record["verdict"] == "pass", f"{source.name}: {record['message']}"


def served(change: Callable[[Tensor, Tensor, Tensor], Any], mods: programs.Mods, dtype: torch.dtype, s: int = 900) -> None:
    """One exact build against the oracle, with inputs that `change` makes of random ones."""
    torch.manual_seed(0)
    q, k, v = (torch.randn(1, 2, s, 128, device=GPU).to(dtype) for _ in range(3))
    change(q, k, v)
    t = trace(*mods, device=GPU) if any(mods) else None
    text, captured, scalars = (t.text, t.captured, t.scalars) if t else ("", [], [])
    oracle = reference_attention_mod(q, k, v, captured, scalars, text, dtype=torch.float64)
    theirs = reference_attention_mod(q, k, v, captured, scalars, text)
    made = attention_trial(str(dtype)[6:], Sizes(1, 2, s, 128, 2, s, 128), (text, captured, scalars), "grown")
    made = made.on("cuda")
    with Judge(CONTRACT, device=GPU) as judge:
        case = judge.add_case(made.case)
        judge.add_set(case, [q, k, v, *captured], list(oracle), results=list(theirs))
        record = judge.run(SOURCE.read_text(), name="hopper.cu")
    assert record["verdict"] == "pass", record["message"]


GROWTH = {
    "up": lambda q, k, v: k.mul_(torch.linspace(0.1, 60, k.shape[2], device=GPU)[:, None].to(k.dtype)),
    "down": lambda q, k, v: k.mul_(torch.linspace(60, 0.1, k.shape[2], device=GPU)[:, None].to(k.dtype)),
    "far": lambda q, k, v: k.mul_(torch.linspace(400, 0.1, k.shape[2], device=GPU)[:, None].to(k.dtype)),
    "one key": lambda q, k, v: k[:, :, 3].mul_(300),
}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("growth", GROWTH)
def test_scores_outgrow_the_maximum_in_use(growth: str, dtype: torch.dtype) -> None:
    """Weights then pass what is held without looking for a maximum, and whole tiles are shown twice."""
    served(GROWTH[growth], (None, None), dtype)
    served(GROWTH[growth], (None, lambda b, h, q, kv: q >= kv), dtype)
