"""Calls of random shapes through torch.ops, as the registry in force serves them, beside torch's own: nothing may be slower.

    python tests/bench/grid.py [--op OP ...] [--shapes 40] [--seed N] [--device cpu|cuda] [--seconds N] [--registry DIR]

No tuning: this is what somebody gets who imports kgen and calls it with shapes that nobody tuned for. Each shape is drawn by its
seed, which is printed; a call is timed in turn with those of torch's that need no compiling (eager, and each SDPA backend for
attention), on a GPU by events and with a cold L2. Prints each shape, who served it, and torch's best time over kgen's; then for
each Op how many were served, their geometric mean, and how many are below 0.97. Exit code 1 when more than one in twenty is.
"""

from __future__ import annotations

import argparse
import math
import os
import random
import secrets
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
sys.path[:0] = [str(ROOT / "python"), str(HERE)]

AT_LEAST, SHARE = 0.97, 0.05
HALVES = ("bfloat16", "float16")


def size(rng: random.Random, low: int, high: int) -> int:
    """Evenly by its logarithm; three in five are multiples of 8, as models have them."""
    n = int(round(low * (high / low) ** rng.random()))
    return max(low, n // 8 * 8 or 1) if rng.random() < 0.6 else n


def rows(rng: random.Random, most: int) -> tuple[int, int]:
    """(M, N) of some 2^12 to `most` elements."""
    n = size(rng, 16, 1 << 17)
    return max(1, int(2 ** rng.uniform(12, math.log2(most))) // n), n


def softmax(rng: random.Random, gpu: bool, dtype: str) -> Any:
    from kgen import spread

    m, n = rows(rng, 1 << (27 if gpu else 23))
    return spread.softmax_trial(dtype, m, n)


def norm(op: str) -> Callable[[random.Random, bool, str], Any]:
    def draw(rng: random.Random, gpu: bool, dtype: str) -> Any:
        from kgen import spread

        m, n = rows(rng, 1 << (27 if gpu else 23))
        return spread.norm_trial(op, dtype, m, n, rng.choice(spread.AFFINE[op][:2]))

    return draw


def product(op: str) -> Callable[[random.Random, bool, str], Any]:
    def draw(rng: random.Random, gpu: bool, dtype: str) -> Any:
        from kgen import epilogues

        few = rng.random() < 0.5
        m = rng.randrange(1, 17) if few else size(rng, 32, 8192 if gpu else 1024)
        n, k = (size(rng, 64, (16384 if gpu else 4096) if few else (8192 if gpu else 1024)) for _ in "nk")
        at = epilogues.Product(1 if op == "linear" or rng.random() < 0.7 else rng.randrange(2, 9), m, n, k)
        return epilogues.trial(op, dtype, at, ("bias",) if op == "linear" and rng.random() < 0.7 else ())

    return draw


def attention(rng: random.Random, gpu: bool, dtype: str) -> Any:
    """Plain, causal or with ALiBi; prefill, or a few queries against a cache of keys."""
    import torch

    from kgen import spread
    from kgen.trace import trace

    heads, group = rng.choice((4, 8, 16)), rng.choice((1, 1, 4))
    d, sk = rng.choice((32, 64, 64, 80, 128, 128, 256)), size(rng, 16, 8192 if gpu else 2048)
    few = rng.random() < 0.3
    sq, b = (rng.randrange(1, 9), rng.choice((1, 8))) if few else (sk, max(1, min(8, 4096 // sk)) if gpu else 1)
    slopes = torch.exp2(-8.0 / heads * torch.arange(1, heads + 1))
    kind = rng.choice(("plain", "plain", "causal", "ALiBi")) if not few else "plain"
    score = (lambda s, b, h, q, kv: s + slopes[h] * (kv - q)) if kind == "ALiBi" else None
    mask = (lambda b, h, q, kv: q >= kv) if kind == "causal" else None
    program = None
    if score or mask:
        t = trace(score, mask)
        program = (t.text, t.captured, t.scalars)
    return spread.attention_trial(dtype, spread.Sizes(b, heads, sq, d, heads // group, sk, d), program, kind, skip=("lse",))


DRAW: dict[str, Callable[[random.Random, bool, str], Any]] = {
    "softmax": softmax, "layer_norm": norm("layer_norm"), "rms_norm": norm("rms_norm"), "attention": attention,
    "linear": product("linear"), "matmul": product("matmul"),
}  # fmt: skip


def inputs(case: dict[str, Any], blobs: dict[str, bytes], device: Any) -> Any:
    """Normal numbers in each tensor of a Case; a Program's captured ones as they are."""
    import torch

    from kgen.baselines import Inputs
    from kgen.task import DTYPES

    def tensor(e: dict[str, Any]) -> Any:
        return torch.randn(e["shape"], device=device).to(DTYPES[e["dtype"]])

    def captured(e: dict[str, Any]) -> Any:
        raw = torch.frombuffer(bytearray(blobs[e["fill"]["file"]]), dtype=torch.uint8).view(DTYPES[e["dtype"]])
        return raw.reshape(e["shape"]).to(device)

    args = {n: tensor(v) if isinstance(v, dict) else None for n, v in case["args"].items() if isinstance(v, dict) or v is None}
    return Inputs(args, tuple(captured(e) for e in (case.get("program") or {}).get("captured", ())))


def measure(trial: Any, device: Any, rounds: int) -> tuple[float, float, str, str]:
    """Seconds of torch's best and of kgen's, who served, and which of torch's was best."""
    import torch

    from kgen import baselines, devices, gate_child, serving
    from kgen.program import CAUSAL

    case = trial.case
    x = inputs(case, trial.blobs, device)
    ours = gate_child.served(case, list(case["args"]))
    if (case.get("program") or {}).get("text") == CAUSAL:  # as kgen.attention and F.scaled_dot_product_attention's users call it

        def ours(x: Any) -> Any:
            return torch.ops.kgen.attention(x.args["query"], x.args["key"], x.args["value"], is_causal=True, enable_gqa=True)
    (decision,) = serving.why(ours, x).decisions
    contenders: dict[str, Callable[[], Any]] = {"kgen": lambda: ours(x)}
    for b in baselines.of(case):
        if b.compiles:
            continue
        f = b.build()
        try:
            f(x)
        except Exception:  # noqa: BLE001, S112 - an SDPA backend that is not for this call
            continue
        contenders[b.name] = lambda f=f: f(x)
    found: dict[str, list[float]] = {n: [] for n in contenders}
    for turn in range(4):
        for name in list(contenders) if turn % 2 else reversed(contenders):
            found[name].append(statistics.median(devices.seconds_of(contenders[name], device, rounds)))
    best = {n: min(t) for n, t in found.items()}
    kgen_s = best.pop("kgen")
    name = min(best, key=best.__getitem__)
    return best[name], kgen_s, decision.kernel or "", name


def shapes(args: argparse.Namespace, gpu: bool) -> Iterator[tuple[str, Any]]:
    for op in args.op or DRAW:
        for i in range(args.shapes):
            rng = random.Random(f"{args.seed} {op} {i}")
            dtype = rng.choice(("float32", *HALVES)) if gpu or op in ("softmax", "layer_norm", "rms_norm") else "float32"
            yield op, DRAW[op](rng, gpu, dtype).on("cuda" if gpu else "cpu")


def main() -> int:
    p = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    p.add_argument("--op", action="append", choices=sorted(DRAW), help="default: all of them")
    p.add_argument("--shapes", type=int, default=40, metavar="N", help="of each Op (default 40)")
    p.add_argument("--seed", type=int, default=secrets.randbelow(10**6))
    p.add_argument("--device", default="cpu")
    p.add_argument("--registry", help="instead of the one that comes with kgen")
    p.add_argument("--seconds", type=float, default=math.inf, help="no new shape after so long")
    args = p.parse_args()
    if args.registry:
        os.environ["KGEN_REGISTRY"] = args.registry
    import torch

    from kgen import devices

    device = devices.check(devices.parse(args.device))
    gpu, until = device.type == "cuda", time.monotonic() + args.seconds
    print(f"seed {args.seed}, {devices.name_of(device)}, torch {torch.__version__}")
    found: dict[str, list[tuple[float, bool]]] = {}
    with torch.inference_mode():
        for op, trial in shapes(args, gpu):
            if time.monotonic() > until:
                print("time is up; not all shapes were called")
                break
            theirs, ours, kernel, name = measure(trial, device, 15 if gpu else 7)
            found.setdefault(op, []).append((theirs / ours, bool(kernel)))
            print(f"{theirs / ours:7.3f}  {trial.label}: {name} {theirs * 1e6:.1f} us, {kernel or 'left to torch'} {ours * 1e6:.1f} us", flush=True)
    missed = False
    for op, all_of in found.items():
        served = [r for r, by_kgen in all_of if by_kgen]
        slow = sum(r < AT_LEAST for r in served)
        mean = math.exp(statistics.fmean(map(math.log, served))) if served else 1.0
        print(f"{op}: {len(served)} of {len(all_of)} served, {mean:.2f}x geometric mean, {min(served, default=1.0):.2f}x least, {slow} below {AT_LEAST}")
        missed |= slow > SHARE * len(served)
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
