"""What the benchmark and the tests of its ratios share: interleaved measurement, contenders, and the Numbers' cases."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F

from kgen import baselines, spread
from kgen.baselines import Inputs
from kgen.trace import trace

Call = Callable[[], object]

HEADS, LENGTH, WIDTH = 8, 1024, 64


def causal(b: Any, h: Any, q: Any, kv: Any) -> Any:
    return q >= kv


def relative(score: Any, b: Any, h: Any, q: Any, kv: Any) -> Any:
    return score + (q - kv)


def softcap(score: Any, b: Any, h: Any, q: Any, kv: Any) -> Any:
    return 20.0 * torch.tanh(score / 20.0)


def window(b: Any, h: Any, q: Any, kv: Any) -> Any:
    return (q >= kv) & (q - kv <= 256)


def alibi(heads: int) -> Callable[..., Any]:
    slopes = torch.exp2(-8.0 / heads * torch.arange(1, heads + 1))

    def score_mod(score: Any, b: Any, h: Any, q: Any, kv: Any) -> Any:
        return score + slopes[h] * (kv - q)

    return score_mod


VARIANTS: dict[str, tuple[Callable[..., Any] | None, Callable[..., Any]]] = {
    "relative position": (relative, causal),
    "ALiBi": (alibi(HEADS), causal),
    "softcap 20": (softcap, causal),
    "window 256": (None, window),
}


def cpu_us(f: Call, calls: int) -> float:
    """CPU time of this thread for one call: what other processes do does not count. For calls that start no threads."""
    start = time.thread_time()
    for _ in range(calls):
        f()
    return (time.thread_time() - start) / calls * 1e6


def wall_ms(f: Call) -> float:
    start = time.perf_counter()
    f()
    return (time.perf_counter() - start) * 1e3


def interleaved(contenders: dict[str, Call], rounds: int) -> dict[str, list[float]]:
    """Wall times in ms, one of each contender a round, the order turning from round to round."""
    for f in contenders.values():
        f()
    names = list(contenders)
    times: dict[str, list[float]] = {n: [] for n in names}
    for r in range(rounds):
        for i in range(len(names)):
            name = names[(i + r) % len(names)]
            times[name].append(wall_ms(contenders[name]))
    return times


def medians(times: dict[str, list[float]]) -> dict[str, float]:
    return {n: statistics.median(t) for n, t in times.items()}


def paired_ratio(slow: Sequence[float], fast: Sequence[float]) -> float:
    """How many times faster the second is: the median over rounds, so that what disturbs a whole round cancels."""
    return statistics.median(a / b for a, b in zip(slow, fast, strict=True))


def attention_case(score_mod: Any, mask_mod: Any, length: int = LENGTH) -> spread.Trial:
    """(1, 8, length, 64) fp32 with a Program."""
    t = trace(score_mod, mask_mod)
    at = spread.Sizes(1, HEADS, length, WIDTH, HEADS, length, WIDTH)
    return spread.attention_trial("float32", at, (t.text, t.captured, t.scalars), "bench", skip=("lse",))


def attention_inputs(score_mod: Any, mask_mod: Any, length: int = LENGTH) -> Inputs:
    t = trace(score_mod, mask_mod)
    shape = (1, HEADS, length, WIDTH)
    return Inputs({n: torch.randn(shape) for n in ("query", "key", "value")}, tuple(t.captured))


def served_attention(case: dict[str, Any], x: Inputs) -> Call:
    """The Case through torch.ops.kgen, as kgen.attention calls it."""
    p = case["program"]
    q, k, v = (x.args[n] for n in ("query", "key", "value"))
    return lambda: torch.ops.kgen.attention_mod_output(q, k, v, list(x.captured), p["scalars"], p["text"])


def torch_contenders(case: dict[str, Any], x: Inputs, names: Sequence[str]) -> tuple[dict[str, Call], dict[str, str]]:
    """The named baselines, compiled and called once, and why others are left out."""
    made: dict[str, Call] = {}
    left: dict[str, str] = {}
    for b in baselines.of(case):
        if b.name not in names:
            continue
        try:
            f = b.build()
            f(x)
        except Exception as e:  # a baseline may fail in any way; the table says so
            left[b.name] = (str(e).strip().splitlines() or [type(e).__name__])[0][:120]
            continue
        made[b.name] = lambda f=f: f(x)
    return made, left


def sdpa_causal(x: Inputs) -> Call:
    q, k, v = (x.args[n] for n in ("query", "key", "value"))
    return lambda: F.scaled_dot_product_attention(q, k, v, is_causal=True)
