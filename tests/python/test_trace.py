"""Tracing: what score_mod and mask_mod functions become, when a trace is used again, and what is refused."""

from __future__ import annotations

import dataclasses
import functools
import math
import random
import re
import threading
import time
import timeit
from typing import Any, Callable

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.attention.flex_attention import and_masks, or_masks

import kgen.trace
from kgen.program import evaluate, parse
from kgen.trace import TraceError, Traced, trace

AT = (2, 4, 9, 11)
SLOPES = torch.tensor([0.5, 0.25, 0.125, 0.0625])
TABLE = torch.arange(40, dtype=torch.float32).view(4, 10) / 7
INTS = torch.tensor([3, 1, -2, 7, 5, 0, 2, 9, 4, 6, 8], dtype=torch.int64)
FLAGS = torch.tensor([True, False, True, True, False, True, False, False, True, True, True])
HALF = TABLE.to(torch.float16)
NOUGHT = torch.tensor(0.75)
WINDOW = 3
CAP = 20.0


def points(t: Traced, scores: torch.Tensor) -> torch.Tensor:
    """The traced Program over AT: scores, with False as -inf when there is a mask."""
    if not t.text:
        return scores
    program = parse(t.text)
    at = {n: torch.arange(s, dtype=torch.int32).view([-1 if i == d else 1 for i in range(4)])
          for d, (n, s) in enumerate(zip(("b", "h", "q", "kv"), AT))}
    out = scores
    if program.score is not None:
        out = evaluate(program, program.score, {**at, "score": scores}, t.captured, t.scalars, scores.dtype).expand(AT)
    if program.mask is not None:
        keep = evaluate(program, program.mask, at, t.captured, t.scalars, scores.dtype).expand(AT)
        out = torch.where(keep, out, -math.inf)
    return out


def by_vmap(fn: Callable[..., Any], *first: torch.Tensor) -> torch.Tensor:
    index = [torch.arange(n, dtype=torch.int32) for n in AT]
    for d in reversed(range(4)):
        dims: list[int | None] = [None] * 4
        dims[d] = 0
        fn = torch.vmap(fn, in_dims=(*[0] * len(first), *dims))
    return fn(*first, *index)


def scores() -> torch.Tensor:
    return torch.randn(AT, generator=torch.Generator().manual_seed(0)) * 3


# Each is one thing that people write; torch itself, through vmap, says what it means.
SCORE_MODS: list[Callable[..., Any]] = [
    lambda s, b, h, q, k: s + (q - k),
    lambda s, b, h, q, k: s * 2 - 1,
    lambda s, b, h, q, k: 1 - s,
    lambda s, b, h, q, k: 2.5 / (1.5 + s.abs()),
    lambda s, b, h, q, k: s + q / 3,
    lambda s, b, h, q, k: s + (q / (k + 1)),
    lambda s, b, h, q, k: s + q // 2 + q % 3,
    lambda s, b, h, q, k: s + (q - k) // 2 + (q - k) % 3,
    lambda s, b, h, q, k: s + (q - k) // -2 + (q - k) % -3,
    lambda s, b, h, q, k: s + 7 // (k + 1) + 7 % (k + 1),
    lambda s, b, h, q, k: s // 0.5 + s % 0.7,
    lambda s, b, h, q, k: s + torch.div(q - k, 3, rounding_mode="trunc"),
    lambda s, b, h, q, k: s + torch.div(q - k, 3, rounding_mode="floor") + torch.fmod(q - k, 3),
    lambda s, b, h, q, k: torch.div(s, 0.3, rounding_mode="trunc") + torch.fmod(s, 0.7),
    lambda s, b, h, q, k: s**2 + s**3 + q**2 + (s * s) ** 0.5 + (1 + s * s) ** -0.5,
    lambda s, b, h, q, k: (1 + s.abs()) ** 1.7 + 2.0**-s.abs() + (s * s + 1) ** -1,
    lambda s, b, h, q, k: torch.pow(2, s) + torch.square(s) + torch.reciprocal(s * s + 1),
    lambda s, b, h, q, k: torch.tanh(s) + torch.exp(-s.abs()) + torch.log(1 + s * s) + s.sigmoid(),
    lambda s, b, h, q, k: torch.sqrt(s.abs()) + torch.rsqrt(1 + s.abs()) + s.sin() + torch.cos(s) + torch.tan(s / 9),
    lambda s, b, h, q, k: torch.exp2(-s.abs()) + torch.log2(1 + s.abs()) + torch.floor(s) + s.ceil() + torch.trunc(s),
    lambda s, b, h, q, k: torch.minimum(s, q) + torch.maximum(s, k - 4.0 + 0 * s),
    lambda s, b, h, q, k: torch.clamp(s, -1, 1) + s.clamp(min=0) + torch.clamp(s, max=0.5) + s.clamp_min(-2),
    lambda s, b, h, q, k: torch.clamp(q - k, -3, 3) + s + torch.relu(s) + torch.nn.functional.silu(s),
    lambda s, b, h, q, k: torch.where(q >= k, s, -s) + torch.where(s > 0, 1, 0) + torch.where(s > 0, s, 0),
    lambda s, b, h, q, k: torch.where((q == k) | (h > 1) & ~(k < 3), s, float("-inf")),
    lambda s, b, h, q, k: s.masked_fill(q < k, -1e4) + torch.where(q < k, torch.full_like(s, -3), torch.zeros_like(s)),
    lambda s, b, h, q, k: s + (q >= k) * 2.0 + (q >= k).float() + (q < k).to(torch.int32) - (q == k).int(),
    lambda s, b, h, q, k: s + (q & 3) + (k | 4) + (q ^ k) + ~q + (k << 1) + (k >> 1),
    lambda s, b, h, q, k: s + torch.bitwise_and(q, 5) + torch.bitwise_left_shift(k, 2),
    lambda s, b, h, q, k: s + abs(q - k) + (-q) + (+k) + torch.neg(s) + torch.abs(s),
    lambda s, b, h, q, k: s + torch.sign(q - k) + s.sign() + torch.lerp(s, s * 2, 0.25),
    lambda s, b, h, q, k: torch.add(s, q, alpha=2) + torch.sub(s, k, alpha=0.5) + torch.rsub(s, 1) + torch.mul(s, 2),
    lambda s, b, h, q, k: s + SLOPES[h] * (k - q),
    lambda s, b, h, q, k: s + TABLE[h, k - q + 5 - 6 * (k > q + 4) - 0] if False else s + TABLE[h, (k + q) % 10],
    lambda s, b, h, q, k: s + TABLE[h][q] + TABLE[:, k % 10][h] + TABLE[..., 3][h] + TABLE[1, q],
    lambda s, b, h, q, k: s + TABLE[h, -1] + TABLE[-1][q] + TABLE[-h - 1, 0] + TABLE.T[q, h],
    lambda s, b, h, q, k: s + torch.exp2(SLOPES)[h] + (SLOPES * 2)[h] + TABLE.sum(dim=1)[h] + TABLE[2].cumsum(0)[q],
    lambda s, b, h, q, k: s + INTS[k] * SLOPES[h] + INTS[INTS[k].clamp(min=0)],
    lambda s, b, h, q, k: s * NOUGHT + NOUGHT * s + torch.tensor(0.5) + torch.tensor(2) * q,
    lambda s, b, h, q, k: s + torch.where(FLAGS[k], 1.0, -1.0) + FLAGS[q] * s,
    lambda s, b, h, q, k: s + torch.isnan(s) * 1.0 + torch.isinf(s).float() + torch.isfinite(s),
    lambda s, b, h, q, k: (s * WINDOW + s / CAP) * (1 / CAP) + CAP * torch.tanh(s / CAP),
    lambda s, b, h, q, k: (s.double() * 1.0).float() + q.long() + s.to(q.dtype) + s.type(torch.int32) + q.to(s),
    lambda s, b, h, q, k: s + np.float64(0.5) * q + np.int64(2) * k + s * np.float32(0.25),
    lambda s, b, h, q, k: s + math.sqrt(16) * min(3, 4) + max(0.5, 0.25),
    lambda s, b, h, q, k: sum((s * i for i in range(WINDOW)), s),
    lambda s, b, h, q, k: torch.log1p(s * s) + torch.expm1(-s.abs()) + torch.log10(1 + s.abs()),
    lambda s, b, h, q, k: torch.round(s) + torch.round(q * 0.5) + (k * -0.5).round() + torch.round(s * 1e7),
    lambda s, b, h, q, k: s + nn.functional.embedding(k % 10, TABLE.T)[h],
    lambda s, b, h, q, k: q,
    lambda s, b, h, q, k: 1.5,
]

MASK_MODS: list[Callable[..., Any]] = [
    lambda b, h, q, k: q >= k,
    lambda b, h, q, k: (q >= k) & (q - k <= WINDOW),
    lambda b, h, q, k: (q >= k) * (q < 7),
    lambda b, h, q, k: (q > k) + (q == 2),
    lambda b, h, q, k: torch.logical_and(q >= k, torch.logical_not(k == 2)) ^ (b == 1),
    lambda b, h, q, k: torch.logical_or(q % 3, k > 5),
    lambda b, h, q, k: INTS[q] == INTS[k] + 1,
    lambda b, h, q, k: FLAGS[k] & (q <= k),
    lambda b, h, q, k: ~FLAGS[k],
    lambda b, h, q, k: torch.where(h < 2, q >= k, k >= q),
    lambda b, h, q, k: q.new_ones((), dtype=torch.bool),
    lambda b, h, q, k: torch.eq(q, k) | torch.ne(h, 1) | torch.lt(q, k) & torch.ge(q, 1) | torch.gt(b, 5) | torch.le(b, -1),
    lambda b, h, q, k: (q - k).abs() * 0.5 <= 1.5,
    lambda b, h, q, k: (HALF[h, k % 10] > 1.0) == (q > 3),
    and_masks(lambda b, h, q, k: q >= k, lambda b, h, q, k: q - k < WINDOW),
    or_masks(lambda b, h, q, k: q >= k, lambda b, h, q, k: k < WINDOW),
]


@pytest.mark.parametrize("i", range(len(SCORE_MODS)))
def test_score_mod_means_what_torch_computes(i: int) -> None:
    x = scores()
    want = by_vmap(lambda *a: torch.as_tensor(SCORE_MODS[i](*a), dtype=torch.float32).clone()
                   if not isinstance(SCORE_MODS[i](*a), torch.Tensor) else SCORE_MODS[i](*a).float(), x)
    got = points(trace(SCORE_MODS[i]), x)
    torch.testing.assert_close(got, want.expand(AT), rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize("i", range(len(MASK_MODS)))
def test_mask_mod_means_what_torch_computes(i: int) -> None:
    want = torch.where(by_vmap(MASK_MODS[i]).expand(AT), 0.0, -math.inf)
    assert torch.equal(points(trace(None, MASK_MODS[i]), torch.zeros(AT)), want)


# ---- lifting ----


def traces() -> int:
    return sum(len(v) for v in kgen.trace._TRACES.values())


def test_numbers_of_closure_globals_and_defaults_are_lifted_and_literals_stay() -> None:
    def make(cap: float, window: int) -> tuple[Any, Any]:
        def score(s, b, h, q, k, bias=0.5):  # type: ignore[no-untyped-def]
            return cap * torch.tanh(s / cap) + 2.0 + bias

        return score, lambda b, h, q, k: q - k <= window + WINDOW

    t = trace(*make(20.0, 5))
    assert t.scalars == [20.0, 0.5, 8]
    assert "2.0" in t.text and "20.0" not in t.text
    before = traces()
    again = trace(*make(30.0, 7))
    assert again.text == t.text and again.scalars == [30.0, 0.5, 10]
    assert traces() == before


def test_a_global_is_read_again_at_each_call(monkeypatch: pytest.MonkeyPatch) -> None:
    def mask(b, h, q, k):  # type: ignore[no-untyped-def]
        return q - k <= WINDOW

    assert trace(None, mask).scalars == [3]
    monkeypatch.setitem(globals(), "WINDOW", 11)
    assert trace(None, mask).scalars == [11]
    monkeypatch.setitem(globals(), "WINDOW", 2.5)  # another type: another Program
    assert "float32" in trace(None, mask).text


def test_numbers_that_steer_python_are_constants() -> None:
    def make(n: int, causal: bool, kind: str, cap: float | None) -> Any:
        def score(s, b, h, q, k):  # type: ignore[no-untyped-def]
            for i in range(n):
                s = s + i * q
            if causal:
                s = torch.where(q >= k, s, -1.0)
            if kind == "tanh" and cap is not None and cap > 0:
                s = cap * torch.tanh(s / cap)
            return s * math.sqrt(n)
        return score

    def of(*args: Any) -> tuple[str, list[float]]:
        t = trace(make(*args))
        return t.text, t.scalars

    first = of(3, True, "tanh", 20.0)
    assert first[1] == [20.0]  # cap > 0 is a guard on cap, which is lifted all the same
    for other in ((4, True, "tanh", 20.0), (3, False, "tanh", 20.0), (3, True, "none", 20.0), (3, True, "tanh", None)):
        assert of(*other)[0] != first[0], other
    assert of(3, True, "tanh", 30.0) == (first[0], [30.0])
    assert of(3, True, "tanh", -1.0)[0] != first[0]
    assert of(3, True, "tanh", 20.0) == first


def test_minus_zero_and_nan_are_told_apart() -> None:
    def make(x: float) -> Any:
        return lambda s, b, h, q, k: s + (1.0 if math.copysign(1.0, x) < 0 else 2.0)

    assert "add float32 score 2.0" in trace(make(0.0)).text
    assert "add float32 score 1.0" in trace(make(-0.0)).text
    assert "add float32 score 2.0" in trace(make(0.0)).text


def test_arithmetic_of_lifted_numbers_is_pythons() -> None:
    def make(head_dim: int, base: float) -> Any:
        return lambda s, b, h, q, k: s * (head_dim**-0.5 * base) + (head_dim // 3 % 4) * q

    t = trace(make(64, 1e-3))
    assert t.scalars == [64**-0.5 * 1e-3, 64 // 3 % 4]
    assert trace(make(128, 2.0)).scalars == [128**-0.5 * 2.0, 128 // 3 % 4]


def test_captured_tensors_are_read_again() -> None:
    def make(t: torch.Tensor) -> Any:
        return lambda s, b, h, q, k: s + t[h]

    a, b = torch.rand(4), torch.rand(4)
    assert trace(make(a)).captured[0] is a
    before = traces()
    assert trace(make(b)).captured[0] is b
    assert traces() == before
    assert trace(make(b.half())).text != trace(make(b)).text
    with pytest.raises(TraceError, match="2 of 3 dims not yet indexed"):
        trace(make(torch.rand(4, 2)[None]))


def test_tensors_made_from_captured_ones_are_made_again() -> None:
    def make(t: torch.Tensor, n: int) -> Any:
        return lambda s, b, h, q, k: s + (t.float() * n).exp()[h]

    a = torch.rand(4, dtype=torch.float64)
    assert torch.equal(trace(make(a, 2)).captured[0], (a.float() * 2).exp())
    before = traces()
    assert torch.equal(trace(make(a + 1, 3)).captured[0], ((a + 1).float() * 3).exp())
    assert traces() == before


def test_sizes_of_captured_tensors_are_guarded() -> None:
    def make(t: torch.Tensor) -> Any:
        return lambda s, b, h, q, k: s + t[(q - k) % t.shape[0]] + t.size(0)

    assert "rem int32 %0 10" in trace(make(torch.zeros(10))).text
    assert "rem int32 %0 12" in trace(make(torch.zeros(12))).text


@dataclasses.dataclass
class Config:
    window: int
    cap: float
    tables: dict[str, torch.Tensor]
    layers: list[float]

    def limit(self) -> int:
        return self.window * 2


class Bias(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.rand(4, 10))
        self.scales = nn.ParameterList([nn.Parameter(torch.rand(4)) for _ in range(2)])
        self.config = Config(2, 5.0, {"slopes": SLOPES}, [0.5, 1.5])
        self.layer = 1

    def score_mod(self, s: Any, b: Any, h: Any, q: Any, k: Any) -> Any:
        return s * self.config.layers[self.layer] + self.table[h, k % 10] + self.scales[self.layer][h]

    def forward(self, s: Any, b: Any, h: Any, q: Any, k: Any) -> Any:
        return self.score_mod(s, b, h, q, k) + self.config.tables["slopes"][h]

    def mask_mod(self, b: Any, h: Any, q: Any, k: Any) -> Any:
        return q - k <= self.config.limit()


def test_methods_modules_and_objects() -> None:
    m = Bias()
    t = trace(m.score_mod, m.mask_mod)
    assert t.scalars == [1.5, 4]
    assert t.captured[0] is m.table and t.captured[1] is m.scales[1]
    before = traces()
    m.config.window, m.config.layers[1] = 7, 2.5
    assert trace(m.score_mod, m.mask_mod).scalars == [2.5, 14]
    assert traces() == before
    m.layer = 0
    assert trace(m.score_mod, m.mask_mod).captured[1] is m.scales[0]
    other = Bias()
    assert trace(other.score_mod).captured[0] is other.table
    assert trace(m).captured[-1] is SLOPES
    want = by_vmap(m, scores())
    torch.testing.assert_close(points(trace(m), scores()), want.expand(AT))


class Buckets(nn.Module):
    """Relative position in buckets, as encoder-decoder models write it."""

    def __init__(self) -> None:
        super().__init__()
        self.bias = nn.Embedding(8, 4)
        self.buckets, self.distance = 8, 16

    def bucket(self, relative: torch.Tensor) -> torch.Tensor:
        n, found = self.buckets // 2, torch.zeros_like(relative)
        found += (relative > 0).to(torch.long) * n
        relative = torch.abs(relative)
        exact = n // 2
        large = exact + (torch.log(relative.float() / exact) / math.log(self.distance / exact) * (n - exact)).to(torch.long)
        large = torch.min(large, torch.full_like(large, n - 1))
        found += torch.where(relative < exact, relative, large)
        return found

    def score_mod(self, s: Any, b: Any, h: Any, q: Any, k: Any) -> Any:
        return s + self.bias(self.bucket(k - q))[h]


def test_buckets_of_relative_position() -> None:
    m = Buckets()
    want = torch.stack([scores()[:, h] + m.bias(m.bucket(torch.arange(AT[3])[None] - torch.arange(AT[2])[:, None]))[..., h]
                        for h in range(4)], dim=1)
    t = trace(m.score_mod)
    assert t.captured[0] is m.bias.weight and len(t.captured) == 1
    torch.testing.assert_close(points(t, scores()), want)


def test_a_cached_function_is_seen_through() -> None:
    def make(n: int) -> Any:
        @functools.lru_cache
        def far(x: Any) -> Any:
            return x * n
        return lambda s, b, h, q, k: s + far(q)

    assert trace(make(3)).scalars == [3] and trace(make(5)).scalars == [5]


def test_partials_callables_and_nested_functions() -> None:
    def base(s: Any, b: Any, h: Any, q: Any, k: Any, *, scale: float, table: torch.Tensor) -> Any:
        return s * scale + table[h]

    t = trace(functools.partial(base, scale=0.25, table=SLOPES))
    assert t.scalars == [0.25] and t.captured[0] is SLOPES
    assert trace(functools.partial(base, scale=0.5, table=SLOPES)).scalars == [0.5]

    class Cap:
        def __init__(self, cap: float) -> None:
            self.cap = cap

        def __call__(self, s: Any, b: Any, h: Any, q: Any, k: Any) -> Any:
            return self.cap * torch.tanh(s / self.cap)

    assert trace(Cap(7.0)).scalars == [7.0]
    assert trace(Cap(8.0)).scalars == [8.0]

    def outer(f: Any, g: Any, w: int) -> Any:
        def inner(s: Any, b: Any, h: Any, q: Any, k: Any) -> Any:
            def far(x: Any) -> Any:
                return x * w
            return f(g(s, b, h, q, k), b, h, q, k) + far(q)
        return inner

    t = trace(outer(Cap(7.0), lambda s, b, h, q, k: s + CAP, 3))
    assert sorted(t.scalars) == [3, 7.0, CAP]


def test_composition_of_masks_follows_the_masks_given() -> None:
    def window(n: int) -> Any:
        return lambda b, h, q, k: q - k <= n

    def beyond(n: int) -> Any:
        return lambda b, h, q, k: q - k > n

    first = trace(None, and_masks(window(3), window(5)))
    assert " gt " in trace(None, and_masks(window(3), beyond(5))).text
    assert first.scalars == [3, 5]
    assert trace(None, and_masks(window(4), window(9))).scalars == [4, 9]
    assert trace(None, and_masks(window(4))).text != first.text
    assert trace(None, and_masks(window(4), lambda b, h, q, k: q > k)).text != first.text


def test_an_identity_is_no_program() -> None:
    assert trace(lambda s, b, h, q, k: s, lambda b, h, q, k: True).text == ""
    assert trace(lambda s, b, h, q, k: s * 1.0 + 0 * 0).text.count("\n") <= 5


def test_a_cached_trace_is_cheap() -> None:
    m = Bias()
    trace(m.score_mod, m.mask_mod)
    best = min(timeit.repeat(lambda: trace(m.score_mod, m.mask_mod), number=200, repeat=20)) / 200
    assert best < 30e-6, f"{best * 1e6:.1f} us"


def test_threads_may_trace_at_once() -> None:
    def work(n: int) -> None:
        for i in range(50):
            w = n * 100 + i
            if trace(lambda s, b, h, q, k: s + w * q, lambda b, h, q, k: q - k < w).scalars != [w, w]:
                failed.append(w)

    failed: list[int] = []
    threads = [threading.Thread(target=work, args=(n,)) for n in range(8)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert not failed


# ---- refusals ----


def writes_global(s, b, h, q, k):  # type: ignore[no-untyped-def]
    global CAP
    CAP = 3.0
    return s


def writes_table(s, b, h, q, k):  # type: ignore[no-untyped-def]
    SLOPES[h] = s
    return s


def branches(s, b, h, q, k):  # type: ignore[no-untyped-def]
    if q > k:
        return s
    return -s


@pytest.mark.parametrize(("fn", "operation", "instead"), [
    (branches, "a Python branch (if, and, or, not, while, min, max, a chained comparison)", "use torch.where"),
    (lambda s, b, h, q, k: s if s > 0 and q > 0 else -s, "a Python branch", "&, |, ~"),
    (lambda s, b, h, q, k: s + (0 < q < k), "chained comparison", "torch.where"),
    (lambda s, b, h, q, k: max(s, 0.0), "a Python branch", "torch.maximum"),
    (lambda s, b, h, q, k: math.exp(s), "math.*", "torch.exp"),
    (lambda s, b, h, q, k: s.item(), ".item()", "when the Kernel runs"),
    (lambda s, b, h, q, k: torch.erfinv(s), "torch.erfinv", "tanh"),
    (lambda s, b, h, q, k: s.softmax(0), ".softmax()", "torch.where"),
    (lambda s, b, h, q, k: torch.cumsum(s, 0), "torch.cumsum", "look-ups"),
    (lambda s, b, h, q, k: s.add_(1), ".add_()", "the result of an expression"),
    (lambda s, b, h, q, k: s.half(), ".half()", ".to(dtype)"),
    (lambda s, b, h, q, k: s.to(torch.float16), "torch.float16", "float32, int32 and bool"),
    (lambda s, b, h, q, k: s[0], "indexing of a traced value", "captured tensors"),
    (lambda s, b, h, q, k: [x for x in s], "iteration", "0-d"),
    (lambda s, b, h, q, k: torch.rand(()) + s, "torch.rand", "nothing random"),
    (lambda s, b, h, q, k: s + random.random(), "a call of Random.random", "outside"),
    (lambda s, b, h, q, k: s + time.time(), "a call of time", "outside"),
    (lambda s, b, h, q, k: torch.rand_like(s), "torch.rand_like", "what a Program can say"),
    (lambda s, b, h, q, k: s + SLOPES, "a tensor of shape (4,)", "t[h]"),
    (lambda s, b, h, q, k: s + TABLE[h], "arithmetic on a captured tensor with 1 of 2 dims", "index every dim"),
    (lambda s, b, h, q, k: s + TABLE[h].sum(), ".sum()", "index every dim"),
    (lambda s, b, h, q, k: s + SLOPES[h, q], "2 indices into 1 dims", "one index a dim"),
    (lambda s, b, h, q, k: s + SLOPES[s], "an index of type float32", "integers"),
    (lambda s, b, h, q, k: s + SLOPES[q > k], "an index of type bool", "integers"),
    (lambda s, b, h, q, k: s + SLOPES[None, h], "an index None", "integers"),
    (lambda s, b, h, q, k: s + TABLE[h, 1:3], "a slice or a list", "one integer"),
    (lambda s, b, h, q, k: s + NOUGHT.item(), "the read of a captured tensor's values by item", "0-d operand"),
    (lambda s, b, h, q, k: s + float(NOUGHT), "the read of a captured tensor's values", "0-d operand"),
    (lambda s, b, h, q, k: s if NOUGHT > 0 else -s, "the read of a captured tensor's values", "0-d operand"),
    (writes_table, "a write into a captured tensor", "no side effects"),
    (writes_global, "the write to 'CAP'", "no side effects"),
    (lambda s, b, h, q, k: SLOPES, "shape (4,)", "index it"),
    (lambda s, b, h, q, k: "no", "must return a number", "not str"),
    (lambda s, b, h, q, k: s + "no", "an operand of type str", "numbers"),
    (lambda s, b, h, q, k: s & 1, "'and' of floats", "compare first"),
    (lambda s, b, h, q, k: ~s, "~ of a float", "compare first"),
    (lambda s, b, h, q, k: (q > k) - (q < k), "a difference of bools", "^"),
    (lambda s, b, h, q, k: torch.where(s, 1, 0), "no bool", "compare first"),
    (lambda s, b, h, q, k: torch.where(q > k), "torch.where with one argument", "both branches"),
    (lambda s, b, h, q, k: q**-1, "an integer to the power -1", ".float()"),
    (lambda s, b, h, q, k: s + 2**40 * q, "1099511627776", "int32"),
    (lambda s, b, h, q, k: s + torch.tensor([2**40])[h], "1099511627776", "int32"),
    (lambda s, b, h, q, k: s.undefined_name, ".undefined_name()", "what a Program can say"),
    (lambda s, b, h, q, k: undefined_name, "NameError", "undefined_name"),  # noqa: F821
    (lambda s, b: s, "TypeError", "positional arguments"),
    (lambda s, b, h, q, k: torch.complex(s, s), "torch.complex", "what a Program can say"),
    (lambda s, b, h, q, k: s + torch.zeros(3, dtype=torch.complex64)[h], "complex64", "float, int or bool"),
])
def test_what_cannot_be_traced_is_named(fn: Callable[..., Any], operation: str, instead: str) -> None:
    with pytest.raises(TraceError) as e:
        trace(fn)
    assert operation in str(e.value) and instead in str(e.value), str(e.value)


def test_the_message_shows_the_line() -> None:
    with pytest.raises(TraceError, match=re.escape("test_trace.py:") + r"\d+: `if q > k:`"):
        trace(branches)


def test_a_mask_must_give_a_bool() -> None:
    with pytest.raises(TraceError, match="mask_mod must return a bool"):
        trace(None, lambda b, h, q, k: q * 0.5)
    with pytest.raises(TraceError, match="must be a function, not int"):
        trace(3)


def test_a_long_program_is_refused_by_its_limit() -> None:
    def long(s, b, h, q, k):  # type: ignore[no-untyped-def]
        for i in range(600):
            s = torch.tanh(s + q * (i + 1))
        return s

    with pytest.raises(TraceError, match="at most 512"):
        trace(long)
