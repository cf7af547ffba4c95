"""The attention kernels for Hopper that the emulator runs whole, against fp64. masked.cu: masks that leave tiles whole, cut
and empty, of which a consumer sees some blocks and not others; images in boxes; scores that outgrow the maximum in use.
decode_hopper.cu: parts that end anywhere, parts that see nothing, more parts than threads. hopper.cu: with one and two
stages of queries. Threads in both orders; mutants, which must fail on the same inputs."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from emulator import KERNELS, Call, EmulatorError, emulate
from kgen.attention import reference_attention_mod
from kgen.errors import BadInput
from kgen.trace import trace
from test_kernels_cpu import slow
from torch import Tensor

MASKED = (KERNELS / "attention" / "masked.cu").read_text()
DECODE = (KERNELS / "attention" / "decode_hopper.cu").read_text()
# Its wait is a loop of instructions and its messages are no array: the emulator reads neither.
HOPPER = (KERNELS / "attention" / "hopper.cu").read_text()
_BEGIN = HOPPER.index('    asm volatile("{\\n\\t.reg .pred p;\\nWAIT')
HOPPER = HOPPER[:_BEGIN] + """    unsigned over = 0;
    while (!over)
        asm volatile("{ .reg .pred p; mbarrier.try_wait.parity.shared::cta.b64 p, [%1], %2; selp.u32 %0, 1, 0, p; }"
                     : "=r"(over) : "r"(bar), "r"(parity) : "memory");
""" + HOPPER[HOPPER.index("}\n", HOPPER.index('"memory");', _BEGIN)) :].replace(
    "__shared__ struct messages said;", "__shared__ struct messages all[1]; struct messages &said = all[0];"
)
DOCUMENTS = torch.repeat_interleave(torch.arange(5), torch.tensor([70, 150, 60, 200, 160])).to(torch.int32)
# Pages of 16 keys that three entries have in one cache: which of an entry's a page is, -1 for others'; and how many keys.
PAGES = torch.full((3, 25), -1, dtype=torch.int32)
for entry, own in enumerate(([7, 3, 24, 0, 9, 10], [1], [2, 23, 5, 12, 11, 13, 4, 22])):
    PAGES[entry, own] = torch.arange(len(own), dtype=torch.int32)
LENGTHS = torch.tensor([90, 3, 128], dtype=torch.int32)
Mask = Callable[..., Any]
MASKS: dict[str, Mask] = {
    "causal": lambda b, h, q, kv: q >= kv,
    "documents": lambda b, h, q, kv: (DOCUMENTS[q] == DOCUMENTS[kv]) & (q >= kv),
    "of entry and head": lambda b, h, q, kv: (q % 7 != 0) & (kv >= q - 100) & (kv % 5 != h) & (q + b * 40 > kv),
    "few queries": lambda b, h, q, kv: (q > 300) & (q < 310),
    "neighbours": lambda b, h, q, kv: ((q // 32 - kv // 32).abs() <= 2) & ((q % 32 - kv % 32).abs() <= 3),
    "wide neighbours": lambda b, h, q, kv: ((q // 64 - kv // 64).abs() <= 6) & ((q % 64 - kv % 64).abs() <= 6),
    "cut": lambda b, h, q, kv: (kv % 97 != h) & (kv < 900),
    "all": lambda b, h, q, kv: kv >= 0,
    "pages": lambda b, h, q, kv: (PAGES[b, kv // 16] >= 0) & (PAGES[b, kv // 16] * 16 + kv % 16 < LENGTHS[b]),
    "far rows": lambda b, h, q, kv: ((q // 32 - kv // 32).abs() >= 14) & (h == 0) | (q % 32 + kv % 32 == b),
}


@dataclass(frozen=True)
class Trial:
    """b, hq, hkv, sq, sk, d; grow: how large the last key is against the first; one_cache: keys and values are one entry's."""

    mask: str
    shape: tuple[int, int, int, int, int, int]
    tunables: dict[str, int] = field(default_factory=dict)
    dtype: torch.dtype = torch.bfloat16
    score: Mask | None = None
    grow: float = 0.0
    any_size: bool = False
    sms: int = 2
    one_cache: bool = False
    absent: tuple[str, ...] = ()

    def call(self) -> Call:
        b, hq, hkv, sq, sk, d = self.shape
        q, k, v = (torch.randn(b, h, s, d).to(self.dtype) for h, s in ((hq, sq), (hkv, sk), (hkv, sk)))
        if self.grow:
            k *= torch.linspace(0.1, self.grow, sk)[:, None].to(self.dtype)
        if self.one_cache:
            k, v = (t[:1].expand(b, -1, -1, -1) for t in (k, v))
        if not self.mask:
            return Call("attention", {"query": q, "key": k, "value": v, "scale": None, "enable_gqa": hq != hkv})
        t = trace(self.score, MASKS[self.mask])
        args = {"query": q, "key": k, "value": v, "scale": None, "enable_gqa": hq != hkv}
        return Call("attention", args, t.text, tuple(t.captured), tuple(t.scalars), self.absent)


TRIALS = {
    "causal": Trial("causal", (1, 2, 2, 300, 300, 128)),
    "documents": Trial("documents", (1, 2, 1, 600, 600, 128)),
    "three consumers": Trial("documents", (1, 2, 1, 600, 600, 64), {"HEAD": 64, "CONSUMERS": 3}, torch.float16),
    "wide heads": Trial("documents", (1, 1, 1, 400, 400, 256), {"HEAD": 256, "BLOCK_N": 64}),
    "of entry and head": Trial("of entry and head", (2, 2, 1, 450, 330, 128), {}, any_size=True),
    "short blocks": Trial("of entry and head", (1, 2, 1, 450, 330, 120), {"BLOCK_N": 64, "STAGES": 3}),
    "few queries": Trial("few queries", (1, 2, 1, 450, 330, 128)),
    "growing scores": Trial("documents", (1, 1, 1, 600, 600, 128), grow=80.0),
    "two stages of queries": Trial("documents", (1, 2, 1, 600, 600, 128), {"QUERIES": 2}),
    "boxes": Trial("neighbours", (1, 2, 1, 640, 640, 128), {"BOX_X": 28}),
    "boxes, a score": Trial("neighbours", (1, 1, 1, 640, 640, 128), {"BOX_X": 28}, score=lambda s, b, h, q, kv: s + (q - kv) * 0.01),
    "boxes of words": Trial("neighbours", (1, 1, 1, 640, 640, 128), {"BOX_X": 32}, grow=60.0),
    "boxes, far and none": Trial("far rows", (2, 2, 1, 640, 768, 128), {"BOX_X": 32}, any_size=True),
    "small boxes": Trial("wide neighbours", (1, 1, 1, 640, 640, 64), {"BOX_X": 16, "HEAD": 64}),
}  # fmt: skip
DECODE_TRIALS = {
    "a score and a cut": Trial("cut", (1, 4, 2, 2, 1000, 128), score=lambda s, b, h, q, kv: s + (q - kv) * 0.01, sms=4),
    "short": Trial("causal", (2, 8, 2, 1, 37, 120), {"STAGES": 2}, sms=4),
    "wide heads": Trial("cut", (1, 4, 1, 3, 300, 256), {"HEAD": 256, "STAGES": 2}, sms=4),
    "halves": Trial("cut", (1, 2, 1, 4, 700, 64), {"HEAD": 64, "STAGES": 4}, torch.float16, any_size=True, sms=8),
    "more parts than threads": Trial("all", (1, 1, 1, 1, 128 * 140, 64), {"HEAD": 64, "WAVES": 1, "WARPS": 2}, score=lambda s, b, h, q, kv: s + kv * 0.01, sms=140),
    "nobody": Trial("few queries", (1, 2, 1, 4, 700, 64), {"HEAD": 64}, sms=8),
    "one part": Trial("cut", (1, 4, 2, 2, 1000, 128), sms=1),
    "pages": Trial("pages", (3, 4, 2, 1, 400, 64), {"HEAD": 64}, any_size=True, sms=8, one_cache=True),
}
HOPPER_TRIALS = {
    "plain": Trial("", (1, 2, 1, 300, 400, 128), {"STAGES": 3}),
    "two stages of queries": Trial("causal", (1, 2, 1, 400, 400, 128), {"QUERIES": 2}, grow=60.0),
    "three consumers": Trial("documents", (1, 2, 1, 400, 400, 64), {"QUERIES": 2, "HEAD": 64, "CONSUMERS": 3}, grow=80.0),
    "softcap": Trial("causal", (1, 2, 1, 300, 300, 128), score=lambda s, b, h, q, kv: 20.0 * torch.tanh(s / 20.0)),
    "softcap, output alone": Trial("causal", (1, 2, 1, 300, 300, 128), score=lambda s, b, h, q, kv: 20.0 * torch.tanh(s / 20.0), absent=("lse",)),
}
QUICK = ("documents", "boxes", "few queries", "a score and a cut", "short", "pages")


def holds(trial: Trial, call: Call, got: list[Tensor]) -> None:
    q, k, v = (call.args[n] for n in ("query", "key", "value"))
    rest = (list(call.captured), list(call.scalars), call.program, None, True)
    output, lse = reference_attention_mod(q, k, v, *rest, torch.float64)
    own, _ = reference_attention_mod(q, k, v, *rest, None)
    none = lse == -math.inf
    assert not got[0].isnan().any(), "outputs that nobody wrote"
    assert not got[0][none].any(), "rows that see no key"
    norm = output.norm() + 1e-30
    error, theirs = (float((x.double() - output).norm() / norm) for x in (got[0], own))
    assert error <= 3 * theirs + 1e-6, f"{error}, torch {theirs}"
    if call.absent:
        return
    assert (got[1] == -math.inf).equal(none), "rows that see no key"
    # Scores of the grown keys are some hundreds; fp32 keeps 2^-24 of them.
    assert torch.allclose(got[1].double()[~none], lse.double()[~none], rtol=2e-6, atol=1e-5)


def run(text: str, trial: Trial, seed: int = 0, backwards: bool = False) -> None:
    torch.manual_seed(seed)
    call = trial.call()
    (got,) = emulate(text, [call], trial.tunables, trial.any_size, backwards, trial.sms)
    holds(trial, call, got)


def names(trials: dict[str, Trial]) -> list[Any]:
    return [pytest.param(n, marks=() if n in QUICK else slow) for n in trials]


@pytest.mark.parametrize("name", names(TRIALS))
def test_masked(name: str) -> None:
    run(MASKED, TRIALS[name])


@pytest.mark.parametrize("name", names(DECODE_TRIALS))
def test_decode(name: str) -> None:
    run(DECODE, DECODE_TRIALS[name])


@slow
@pytest.mark.parametrize("name", HOPPER_TRIALS)
def test_hopper(name: str) -> None:
    run(HOPPER, HOPPER_TRIALS[name])


@slow
def test_threads_in_the_other_order() -> None:
    run(MASKED, TRIALS["documents"], 1, True)
    run(MASKED, TRIALS["boxes"], 1, True)
    run(DECODE, DECODE_TRIALS["a score and a cut"], 1, True)


def test_refuses() -> None:
    def refused(trial: Trial, word: str, text: str = MASKED) -> None:
        with pytest.raises(BadInput, match=word):
            emulate(text, [trial.call()], trial.tunables)

    refused(Trial("causal", (1, 1, 1, 64, 64, 128), {"BOX_X": 28}), "MASK_WIDTH > 0")
    refused(Trial("neighbours", (1, 1, 1, 640, 650, 128), {"BOX_X": 28}), "SK % max")
    refused(Trial("neighbours", (1, 1, 1, 640, 640, 128), {"BOX_X": 28, "BLOCK_N": 64}), "BLOCK_N == 128")
    plain = Trial("causal", (1, 1, 1, 64, 64, 128)).call()
    with pytest.raises(BadInput, match="HAS_MASK"):
        emulate(MASKED, [Call("attention", plain.args)])
    refused(Trial("causal", (1, 4, 1, 5, 64, 128)), "SQ <= 16", DECODE)
    refused(Trial("causal", (1, 4, 1, 1, 64, 100)), "D % 8", DECODE)


# What is replaced, by what, and on which trial it must show.
MUTANTS = {
    "a bit too far": ("keep[w % 2][w / 2] >> shift", "keep[w % 2][w / 2] >> (shift + 1)", "documents"),
    "bits of other rows": ("half * 8 * words", "half * 7 * words", "documents"),
    "codes of the other consumer": ("now.flags >> w * 2 & 3", "now.flags >> (1 - w) * 2 & 3", "boxes"),
    "boxes that begin late": ("y0 = height, y1 = 0", "y0 = height - 99, y1 = 0", "boxes"),
    "whole where it is not": ("(whole ? 0u : 2u)", "0u", "documents"),
    "rows without a key": ("sum == 0.0f ? 0.0f : reciprocal(sum)", "reciprocal(sum)", "few queries"),
    "queries given back early": ("if (!EARLY)", "if (false)", "three consumers"),
    "stages not swizzled": ("((k % 4 * 2 + key_at) ^ turned)", "(k % 4 * 2 + key_at)", "a score and a cut"),
    "a phase for ever": ("phase ^= stage == 0;", "", "a score and a cut"),
    "pages of another entry's cache": ("b * k_batch", "b", "pages"),
    "parts that come first weigh too much": ("float x = out[j] * decay;", "float x = out[j];", "more parts than threads"),
}  # fmt: skip


@pytest.mark.parametrize("name", [pytest.param(n, marks=slow) for n in MUTANTS])
def test_mutants_fail(name: str) -> None:
    old, new, which = MUTANTS[name]
    text = MASKED if which in TRIALS and old in MASKED else DECODE
    assert old in text, f"no `{old}`"
    try:
        run(text.replace(old, new), (TRIALS | DECODE_TRIALS)[which])
    except (AssertionError, EmulatorError) as e:
        assert "error:" not in str(e), f"the mutant does not compile: {e}"
        return
    pytest.fail("the mutant passes")
