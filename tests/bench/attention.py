"""Attention on a GPU beside torch's best, the rows of the README's table; and a random sweep against fp64.

    python tests/bench/attention.py [--only ROW ...] [--seconds 480] [--quick] [--write] ...      as tests/bench/gpu.py
    python tests/bench/attention.py --sweep 2000 [--shard 1/4] [--state FILE] [--seconds 480] [--device cuda:0]

A row tunes, judges and serves its Case as `kgen tune` does and is timed through torch.ops, in turn with torch's backends
(cuDNN's and the other SDPA ones, compiled FlexAttention for Programs), each call on a cold L2. TF counts what the mask
leaves. Decoding is timed as the replay of a CUDA graph, everybody's. A row is held against its "must": a figure, or a multiple
of the best torch backend of the same run.

The sweep draws (sizes, dtype, layout, Program, build) by seed and judges each; a point is done once, whoever did it. Exit
code 1 when a point is wrong, 4 when some are left for another call.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import os
import random
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
sys.path[:0] = [str(ROOT / "python"), str(HERE)]

import gpu  # noqa: E402
from gpu import Bench, Call  # noqa: E402
from run import Row  # noqa: E402

# Those would need gigabytes of scores each and are far from any best here.
DENSE = (
    "eager", "torch.compile", "torch.compile max-autotune", "torch.compile max-autotune, CUDA graphs", "SDPA math",
    "FlexAttention max-autotune",
)  # fmt: skip
DOCUMENTS = (300, 700, 420, 610, 380, 800, 256, 630)


def mods(name: str, heads: int, length: int, device: Any) -> tuple[Any, Any]:
    """Score and mask function of `score, mask`, of which either may be absent."""
    import torch

    slopes = torch.exp2(-8.0 / heads * torch.arange(1, heads + 1, device=device))
    lengths = torch.tensor(DOCUMENTS, device=device)
    documents = torch.repeat_interleave(torch.arange(len(DOCUMENTS), device=device), lengths).to(torch.int32)[:length]
    scores = {
        "relative position": lambda s, b, h, q, kv: s + (q - kv),
        "ALiBi": lambda s, b, h, q, kv: s + slopes[h] * (kv - q),
        "softcap 20": lambda s, b, h, q, kv: 20.0 * torch.tanh(s / 20.0),
    }
    masks = {
        "causal": lambda b, h, q, kv: q >= kv,
        "window 1024": lambda b, h, q, kv: (q >= kv) & (q - kv <= 1024),
        "prefix 1024": lambda b, h, q, kv: (kv < 1024) | (q >= kv),
        "8 documents, causal": lambda b, h, q, kv: (documents[q] == documents[kv]) & (q >= kv),
        "neighbourhood 13x13": lambda b, h, q, kv: ((q // 64 - kv // 64).abs() <= 6) & ((q % 64 - kv % 64).abs() <= 6),
    }
    if name in masks:
        return None, masks[name]
    score, _, mask = name.partition(", ")
    return scores.get(score), masks.get(mask)


def density(mask: Any, length: int, device: Any) -> float:
    import torch

    if mask is None:
        return 1.0
    i = torch.arange(length, device=device)
    return float(mask(0, 0, i[:, None], i[None]).float().mean())


# With --quick these alone are tried, not a search: tunables of which all combinations that fit are judged.
Grid = dict[str, tuple[int, ...]]


def quick_grids(name: str, at: Shape) -> list[tuple[str, Grid]]:
    score, mask = name.partition(", ")[0], name not in ("dense", "relative position", "ALiBi", "softcap 20")
    width: Grid = {"HEAD": (at.d,)}
    if at.queries:
        return [
            ("decode_hopper.cu", {**width, "STAGES": (3, 4), "WAVES": (2, 1, 4), "WARPS": (4, 2)}),
            ("decode_hopper.cu", {**width, "STAGES": (6,), "WARPS": (4, 2)}), ("decode.cu", {**width, "STAGES": (3, 2)}),
        ]  # fmt: skip
    narrow: Grid = {"CONSUMERS": (2, 3) if at.d == 64 else (2,)}
    blocks = (64, 80) if at.d == 256 else (128, 160, 176)
    both: Grid = {**width, **narrow, "QUERIES": (1, 2), "STAGES": (2, 3)}
    plain: Grid = {**both, "BLOCK_N": blocks[: 2 if mask else 3], "PINGPONG": (0,) if mask and score != "softcap 20" else (0, 1)}
    grids = [("hopper.cu", {**plain, "QUICK": (0, 1) if score == "softcap 20" else (1,)})]
    if mask:
        grids.append(("masked.cu", {**both, "BLOCK_N": (64 if at.d == 256 else 128,)}))
    if name.startswith("neighbourhood"):
        grids.append(("masked.cu", {**both, "BOX_X": (28, 32)}))
    return grids


def tune_quickly(b: Bench, trial: Any, grids: list[tuple[str, Grid]]) -> str:
    """Judges what the grids have, all of it on one input set and the two fastest on all; the best goes into this run's
    registry."""
    import torch

    from kgen import _libkgen, spread
    from kgen._paths import kernels_dir
    from kgen.errors import BadInput
    from kgen.judge import Judge
    from kgen.task import canonical_contract

    contract = canonical_contract("attention").decode()
    key, _ = _libkgen.case_key(contract, trial.case)
    todo = []
    for source, grid in grids:
        text = (kernels_dir() / "attention" / source).read_bytes()
        about = _libkgen.candidate_check(contract, text, source)["tunables"]
        usual = {n: v[0] if isinstance(v, list) else v for n, v in about.items()}
        todo += [(source, text, usual | dict(zip(grid, one, strict=True))) for one in itertools.product(*grid.values())]
    with Judge(contract, device=b.device) as judge:
        spread.add(judge, json.loads(contract), trial)

        def compiled(one: tuple[str, bytes, dict[str, int]]) -> bool:
            try:
                judge.prepare(one[1], name=one[0], tunables=one[2])
            except BadInput:
                return False
            return True

        with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
            ready = [one for one, fits in zip(todo, pool.map(compiled, todo), strict=True) if fits]

        def judged(one: tuple[str, bytes, dict[str, int]], full: bool) -> tuple[float, Any]:
            record = judge.run(one[1], name=one[0], tunables=one[2], all_sets=full, reps=25 if full else 9)
            what = " ".join([one[0], *(f"{n}={v}" for n, v in one[2].items())])
            if record["verdict"] != "pass":
                b.notes.append(f"{what}: {record['verdict']}: {record['message'][:200]}")
                return math.inf, record
            took = float(record["cases"][0]["time_ns"]["median"])
            b.notes.append(f"{what}: {took * 1e-3:.1f} us")
            return took, record

        order = sorted(ready, key=lambda one: judged(one, False)[0])
        found = [(*judged(one, True), one) for one in order[:2]]
    took, record, (source, text, chosen) = min(found, key=lambda f: f[0])
    if took == math.inf:
        raise RuntimeError(f"no Candidate passed on {trial.label}: {b.notes}")
    record = {**record, "source": "kernel.cu", "tunables": chosen, "proposer": {"name": "builtin", "template": source}}
    record["environment"]["torch"] = torch.__version__
    _libkgen.registry_promote(b.tuned, contract, None, text, record, [key])
    return " ".join([source, *(f"{k}={v}" for k, v in chosen.items())])


@dataclass(frozen=True)
class Shape:
    b: int
    hq: int
    hkv: int
    s: int
    d: int
    queries: int = 0  # if not those of self-attention

    def __str__(self) -> str:
        heads = f"H{self.hq}" if self.hq == self.hkv else f"H{self.hq}/{self.hkv}"
        length = f"Q{self.queries} L{self.s}" if self.queries else f"S{self.s}"
        return f"B{self.b} {heads} {length} D{self.d}"


def row(name: str, at: Shape, must: float, relative: bool) -> Callable[[Bench], Iterator[Row]]:
    """must: TF (of few queries, TB/s), or (relative) a multiple of the best torch backend."""

    def part(b: Bench) -> Iterator[Row]:
        import torch

        from kgen import spread
        from kgen.baselines import Inputs
        from kgen.trace import trace

        score, mask = mods(name, at.hq, at.s, b.device)
        sq = at.queries or at.s
        sizes = spread.Sizes(at.b, at.hq, sq, at.d, at.hkv, at.s, at.d)
        t = trace(score, mask, device=b.device)
        program = (t.text, t.captured, t.scalars) if t.text else None
        trial = spread.attention_trial("bfloat16", sizes, program, name, skip=("lse",)).on("cuda")
        won = tune_quickly(b, trial, quick_grids(name, at)) if b.quick else gpu.tune_exact(b, trial, 90.0)
        q = torch.randn(at.b, at.hq, sq, at.d, device=b.device, dtype=torch.bfloat16)
        k, v = (torch.randn(at.b, at.hkv, at.s, at.d, device=b.device, dtype=torch.bfloat16) for _ in range(2))
        shared = at.hq != at.hkv
        x = Inputs({"query": q, "key": k, "value": v, "enable_gqa": shared}, tuple(t.captured))
        call: Call = lambda: torch.ops.kgen.attention(q, k, v, enable_gqa=shared)  # noqa: E731
        if t.text:
            call = lambda: torch.ops.kgen.attention_mod_output(  # noqa: E731
                q, k, v, list(t.captured), list(t.scalars), t.text, enable_gqa=shared
            )
        with torch.inference_mode():
            contenders = {"kgen": gpu.serve(b, call), **gpu.torch_ways(b, trial.case, x, DENSE)}
            found = gpu.times(b, gpu.graphed(b, contenders) if at.queries else contenders, b.rounds(31))
        work, unit = 4.0 * at.b * at.hq * at.s * at.s * at.d * density(mask, at.s, b.device), "TF"
        if at.queries:
            work, unit = k.nbytes + v.nbytes, "TB/s"
        own = statistics.median(found.pop("kgen"))
        assert found, f"no backend of torch ran: {b.notes}"
        best = min(statistics.median(ts) for ts in found.values())
        what = f"{name}, {at}"
        yield Row(what, work / own / 1e9, unit, None if relative else must, True, f"{gpu.beside(found)}; {won}")
        yield Row(f"{what}, over torch's best", best / own, "x", must if relative else None, True)

    return part


USUAL, NARROW, LONG, WIDE = Shape(4, 16, 16, 4096, 128), Shape(4, 32, 32, 4096, 64), Shape(1, 32, 8, 16384, 128), Shape(4, 8, 8, 4096, 256)
DECODE_ONE, DECODE_MANY = Shape(1, 32, 8, 32768, 128, 1), Shape(64, 32, 8, 8192, 128, 1)
TABLE: tuple[tuple[str, Shape, float, bool], ...] = (
    ("dense", USUAL, 1.0, True), ("causal", USUAL, 1.12, True),
    ("relative position", USUAL, 560, False), ("relative position, causal", USUAL, 480, False),
    ("ALiBi", USUAL, 530, False), ("ALiBi, causal", USUAL, 460, False),
    ("softcap 20", USUAL, 400, False), ("softcap 20, causal", USUAL, 350, False),
    ("window 1024", USUAL, 420, False), ("prefix 1024", USUAL, 500, False),
    ("8 documents, causal", USUAL, 260, False), ("neighbourhood 13x13", USUAL, 75, False),
    ("dense", NARROW, 1.0, True), ("causal", NARROW, 1.05, True),
    ("dense", LONG, 1.0, True), ("causal", LONG, 1.08, True),
    ("dense", WIDE, 1.0, True), ("causal", WIDE, 1.0, True),
    ("decode", DECODE_ONE, 3.5, False), ("decode", DECODE_MANY, 4.4, False),
)  # fmt: skip
PARTS = {f"{name} {at}".replace(",", "").replace(" ", "-"): row(name, at, must, relative) for name, at, must, relative in TABLE}


# ---- scores drawn when the program runs ----


def drawn_score(rng: random.Random, heads: int, device: Any) -> tuple[str, Any]:
    """Two terms or bounds of the kinds that models have, with numbers at random: what it is, and the function."""
    import torch

    def number(low: float, high: float) -> float:
        return round(rng.uniform(low, high), 3)

    g = torch.Generator().manual_seed(rng.randrange(1 << 30))
    slopes, table = torch.rand(heads, generator=g).to(device), torch.randn(heads, 257, generator=g).to(device)
    a, c, cap, reach = number(0.001, 0.1), number(0.2, 0.9), number(10, 50), rng.randrange(64, 2048)
    kinds = {
        "slopes[h] * (kv - q)": lambda s, h, q, kv: s + slopes[h] * (kv - q),
        f"-{a} * |q - kv|": lambda s, h, q, kv: s - a * (q - kv).abs(),
        f"* {c} beyond {reach}": lambda s, h, q, kv: torch.where((q - kv).abs() > reach, s * c, s),
        "table[h, clamp(q - kv)]": lambda s, h, q, kv: s + table[h, (q - kv).clamp(-128, 128) + 128],
        f"softcap {cap}": lambda s, h, q, kv: cap * torch.tanh(s / cap),
        f"-{a} * log(1 + |q - kv|)": lambda s, h, q, kv: s - a * torch.log((q - kv).abs() + 1.0),
        f"* (1 + {a} * sigmoid)": lambda s, h, q, kv: s * (1.0 + a * torch.sigmoid(s)),
    }
    one, two = rng.sample(list(kinds), 2)
    return f"{one}; {two}", lambda s, b, h, q, kv: kinds[two](kinds[one](s, h, q, kv), h, q, kv)


def drawn(number: int) -> Callable[[Bench], Iterator[Row]]:
    def part(b: Bench) -> Iterator[Row]:
        import torch

        from kgen import spread
        from kgen.baselines import Inputs
        from kgen.trace import trace

        at = USUAL
        sizes = spread.Sizes(at.b, at.hq, at.s, at.d, at.hkv, at.s, at.d)
        what, score = drawn_score(random.Random(os.urandom(8)), at.hq, b.device)
        t = trace(score, None, device=b.device)
        q, k, v = (torch.randn(at.b, at.hq, at.s, at.d, device=b.device, dtype=torch.bfloat16) for _ in range(3))
        calls: dict[str, Call] = {
            "dense": lambda: torch.ops.kgen.attention(q, k, v),
            "kgen": lambda: torch.ops.kgen.attention_mod_output(q, k, v, list(t.captured), list(t.scalars), t.text),
        }
        won = ""
        for name, program in (("dense", None), ("softcap 20", (t.text, t.captured, t.scalars))):
            trial = spread.attention_trial("bfloat16", sizes, program, what, skip=("lse",)).on("cuda")
            won = tune_quickly(b, trial, quick_grids(name, at)) if b.quick else gpu.tune_exact(b, trial, 90.0)
        x = Inputs({"query": q, "key": k, "value": v, "enable_gqa": False}, tuple(t.captured))
        with torch.inference_mode():
            contenders = {n: gpu.serve(b, call) for n, call in calls.items()} | gpu.torch_ways(b, trial.case, x, DENSE)
            found = {n: statistics.median(ts) for n, ts in gpu.times(b, contenders, b.rounds(31)).items()}
        own = found["kgen"]
        beside = ", ".join(f"{n} {took:.4g} ms" for n, took in found.items())
        yield Row(f"score drawn {number}: {what}, over dense", found["dense"] / own, "x", 0.75, True, f"{beside}; {won}")
        yield Row(f"score drawn {number}", 4.0 * at.b * at.hq * at.s * at.s * at.d / own / 1e9, "TF", None, True)

    return part


PARTS |= {f"drawn-{i}": drawn(i) for i in (1, 2)}


# ---- the sweep ----

# Source, width of heads at most, and the tunables of a build for it.
BUILDS: tuple[tuple[str, int, dict[str, int]], ...] = (
    ("hopper.cu", 64, {"HEAD": 64, "CONSUMERS": 3}), ("hopper.cu", 64, {"HEAD": 64, "BLOCK_N": 160}), ("hopper.cu", 128, {}),
    ("hopper.cu", 128, {"QUICK": 0}), ("hopper.cu", 128, {"BLOCK_N": 80, "STAGES": 3}), ("hopper.cu", 128, {"QUERIES": 2}),
    ("hopper.cu", 128, {"BLOCK_N": 176}), ("hopper.cu", 256, {"HEAD": 256, "BLOCK_N": 64}),
    ("masked.cu", 64, {"HEAD": 64, "CONSUMERS": 3}), ("masked.cu", 128, {"STAGES": 3}), ("masked.cu", 128, {"QUERIES": 2}),
    ("decode_hopper.cu", 64, {"HEAD": 64, "STAGES": 4}), ("decode_hopper.cu", 128, {}),
)  # fmt: skip
POINTS_A_PROGRAM = 10


def drawn_program(rng: random.Random, seed: int, extent: Any, mask: bool) -> tuple[str, Any]:
    """What it is, and the Program or None; mask: one that has a mask."""
    from kgen import programs
    from kgen.trace import trace

    for attempt in range(100):
        kind = rng.choice(("named", "random", "random") if mask else ("plain", "named", "named", "random", "random"))
        if kind == "plain":
            return kind, None
        name = rng.choice(list(programs.NAMED)) if kind == "named" else str(seed + attempt * 1000)
        t = trace(*programs.NAMED[name](extent)) if kind == "named" else programs.random_program(int(name), extent)
        if not mask or "mask\n" in t.text:
            return f"{kind} {name}", (kind, name)
    raise AssertionError(f"no mask came of seed {seed}")


def points(seed: int) -> tuple[int, list[Any]]:
    """One build and POINTS_A_PROGRAM Cases of it: the build's number, and the Trials."""
    from kgen import programs, spread
    from kgen.trace import trace

    rng = random.Random(seed)
    build = seed % len(BUILDS)
    source, width, _ = BUILDS[build]
    few = source == "decode_hopper.cu"
    heads = rng.choice(((4, 2), (8, 1), (8, 2), (6, 2), (2, 2)) if few else ((1, 1), (2, 2), (4, 2), (8, 1), (3, 3), (6, 2)))
    what, program = drawn_program(rng, seed, spread.Sizes(2, *heads[:1], 64, 64, heads[1], 64, 64).extent, source == "masked.cu")
    trials = []
    for i in range(POINTS_A_PROGRAM):
        sq, sk = (max(1, int(rng.choice((64, 128, 192, 300, 700)) + rng.randint(-66, 66) * rng.random())) for _ in range(2))
        if few:
            sq, sk = rng.randint(1, 16 * heads[1] // heads[0]), sk * rng.choice((1, 1, 4))
        # TMA sees rows of whole 16 bytes.
        d, dv = (8 * rng.randint(1, width // 8) if rng.random() < 0.5 else width for _ in range(2))
        at = spread.Sizes(rng.randint(1, 3), heads[0], sq, d, heads[1], sk, dv)
        given = None
        if program is not None:
            kind, name = program
            t = trace(*programs.NAMED[name](at.extent)) if kind == "named" else programs.random_program(int(name), at.extent)
            given = (t.text, t.captured, t.scalars)
        dtype, layout = rng.choice(("bfloat16", "float16")), rng.choice("cih")
        skip = ("lse",) if i % 2 else ()
        trials.append(spread.attention_trial(dtype, at, given, f"{what}, seed {seed}.{i}", layout, skip=skip).on("cuda"))
    return build, trials


def sweep(count: int, shard: str, state_path: Path, seconds: float, device: Any) -> int:
    from kgen import _libkgen, spread
    from kgen._paths import kernels_dir
    from kgen.task import canonical_contract

    part, _, parts = shard.partition("/")
    contract = canonical_contract("attention").decode()
    texts = {n: (kernels_dir() / "attention" / n).read_bytes() for n, *_ in BUILDS}
    about = {n: _libkgen.candidate_check(contract, text, n) for n, text in texts.items()}
    key = {"ids": {n: a["id"] for n, a in about.items()}, "gpu": gpu.machine(device)["gpu"], "of a seed": POINTS_A_PROGRAM}
    held = json.loads(state_path.read_text()) if state_path.is_file() else {}
    done: dict[str, str] = held["points"] if held.get("of") == key else {}
    started, wrong, left = time.monotonic(), 0, 0
    for seed in range((count + POINTS_A_PROGRAM - 1) // POINTS_A_PROGRAM):
        if seed % int(parts) != int(part) - 1 or done.get(str(seed)) == "pass":
            continue
        if time.monotonic() - started > seconds:
            left += 1
            continue
        build, trials = points(seed)
        name, _, chosen = BUILDS[build]
        chosen = {n: v[0] if isinstance(v, list) else v for n, v in about[name]["tunables"].items()} | chosen
        found = spread.judge(contract, texts[name], name, chosen, trials, index=device.index or 0)
        done[str(seed)] = found.verdict if not found.skipped else f"skipped {len(found.skipped)}"
        if done[str(seed)] != "pass":
            wrong += 1
            print(f"seed {seed}, {BUILDS[build]}: {done[str(seed)]}: {found.message}", flush=True)
        state_path.parent.mkdir(parents=True, exist_ok=True)
        aside = state_path.with_suffix(".tmp")
        aside.write_text(json.dumps({"format": 1, "of": key, "points": done}) + "\n")
        os.replace(aside, state_path)
    passed = sum(v == "pass" for v in done.values()) * POINTS_A_PROGRAM
    print(f"{passed} points right, {wrong} draws wrong, {left * POINTS_A_PROGRAM} points left for another call")
    return 1 if wrong else gpu.LEFT if left else 0


def main() -> int:
    p = argparse.ArgumentParser(add_help=False)
    p.add_argument("--sweep", type=int)
    p.add_argument("--shard", default="1/1")
    args, _ = p.parse_known_args()
    if args.sweep is None:
        gpu.TAKES_ATTENTION = 30 if "--quick" in sys.argv else 180
        return gpu.main(PARTS, __doc__, "attention", "bench-attention.json")
    p = argparse.ArgumentParser(parents=[p], description=(__doc__ or "").splitlines()[0])
    p.add_argument("--state", type=Path, default=ROOT / "build" / "sweep-attention.json")
    p.add_argument("--seconds", type=float, default=480.0)
    p.add_argument("--device", default="cuda")
    args = p.parse_args()
    from kgen import devices
    from kgen.errors import KgenError

    try:
        device = devices.check(devices.parse(args.device))
    except KgenError as e:
        print(e, file=sys.stderr)
        return e.code
    return sweep(args.sweep, args.shard, args.state, args.seconds, device)


if __name__ == "__main__":
    sys.exit(main())
