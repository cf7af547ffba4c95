"""The rows that once made headlines, beside torch's best on one GPU: matmul, linear with GELU, convolution, norms, softmax.

    python tests/bench/headlines.py [--only PART ...] [--seconds 480] [--quick] [--write] ...      as tests/bench/gpu.py
    python tests/bench/headlines.py --plot FILE [--state FILE]      what was measured so far, as bars over torch's best
    python tests/bench/headlines.py --dry                           no GPU: what each row would try on an H200

A row tunes, judges and serves its Case as `kgen tune` does and is timed through torch.ops, in turn with eager torch and
torch.compile (default, max-autotune), each call on a cold L2; float32 with TF32 off, and once more with TF32 on, which is
shown and never the best. Beside it stands how far both are from fp64 (by norm, over sampled rows), and what was published
for the row. A row of an Op that this kgen has not shows torch alone. Exit codes as tests/bench/gpu.py.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import math
import random
import statistics
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
sys.path[:0] = [str(ROOT / "python"), str(HERE)]

import gpu  # noqa: E402
from gpu import Bench  # noqa: E402
from run import Row  # noqa: E402

STATE = ROOT / "build" / "bench-headlines.json"
SAMPLED = 256  # rows whose error is taken
# Of torch's speed, in percent, as a branching search published them for fp32 on an L40S.
PUBLISHED = {"matmul float32": "101.3%", "matmul float16": "52%", "softmax": "111.8%", "layer_norm": "484.4%",
             "conv2d": "179.9%", "conv2d, relu, max_pool2d": "290.1%"}  # fmt: skip


@dataclass(frozen=True)
class Work:
    """One row. must: the most milliseconds, or (relative) the least speed over torch's best."""

    name: str
    must: float
    relative: bool
    trial: Callable[[], Any]
    seconds: float = 90.0


# ---- the Cases ----


def matmul(dtype: str, m: int, n: int, k: int, b: int = 1, layout: str = "c") -> Callable[[], Any]:
    def trial() -> Any:
        from kgen.epilogues import Product
        from kgen.epilogues import trial as made

        return made("matmul", dtype, Product(b, m, n, k), layout=layout)

    return trial


def linear(dtype: str, m: int, n: int, k: int, epilogue: str) -> Callable[[], Any]:
    def trial() -> Any:
        from kgen import epilogues

        at = epilogues.Product(1, m, n, k)
        small = epilogues.Product(1, 1, 1, 1)  # an epilogue that reads no tensor is the same for every size
        program = next(p for name, p in epilogues.named("linear", small, dtype) if name == epilogue)
        assert not program[1], f"{epilogue} reads tensors"
        return epilogues.trial("linear", dtype, at, ("bias",), program, epilogue)

    return trial


def norm(op: str, dtype: str, m: int, n: int, affine: tuple[str, ...]) -> Callable[[], Any]:
    def trial() -> Any:
        from kgen import spread

        return spread.norm_trial(op, dtype, m, n, affine)

    return trial


def softmax(dtype: str, m: int, n: int) -> Callable[[], Any]:
    def trial() -> Any:
        from kgen import spread

        return spread.softmax_trial(dtype, m, n)

    return trial


def conv2d(dtype: str) -> Callable[[], Any]:
    def trial() -> Any:
        from kgen import convs

        return convs.trial("conv2d", dtype, convs.At(100, 3, 224, 224, 96, 11, 11, 4, 4, 2, 2), ("bias",))

    return trial


WORKS: dict[str, Work] = {
    "matmul-4096-fp32": Work("matmul float32", 4.2, True, matmul("float32", 4096, 4096, 4096), 120),
    "matmul-8192-fp32": Work("matmul float32", 4.4, True, matmul("float32", 8192, 8192, 8192), 150),
    "matmul-4096-fp16": Work("matmul float16", 1.0, True, matmul("float16", 4096, 4096, 4096), 150),
    "matmul-8192-fp16": Work("matmul float16", 1.0, True, matmul("float16", 8192, 8192, 8192), 150),
    "matmul-4096-bf16": Work("matmul bfloat16", 1.0, True, matmul("bfloat16", 4096, 4096, 4096), 150),
    "matmul-8192-bf16": Work("matmul bfloat16", 1.0, True, matmul("bfloat16", 8192, 8192, 8192), 150),
    "linear-gelu": Work("linear, bias, gelu", 1.0, True, linear("bfloat16", 8192, 16384, 4096, "gelu"), 150),
    "conv2d": Work("conv2d", 0.30, False, conv2d("float32"), 120),
    "layer-norm-long": Work("layer_norm", 0.17, False, norm("layer_norm", "float32", 16, 64 * 256 * 256, ("weight", "bias"))),
    "rms-norm-bf16": Work("rms_norm", 0.067, False, norm("rms_norm", "bfloat16", 8192, 8192, ("weight",))),
    "layer-norm-bf16": Work("layer_norm", 0.070, False, norm("layer_norm", "bfloat16", 8192, 8192, ("weight", "bias"))),
    "softmax": Work("softmax", 0.56, False, softmax("float32", 4096, 65536)),
}


def random_shapes(dtype: str) -> list[tuple[int, int, int, int, str]]:
    """30 products: powers of two and what lies beside them, few rows, few columns, short K, batches; row-major and with a
    transposed right operand."""
    rng = random.Random(f"headlines {dtype}")
    found = []
    while len(found) < 30:
        b = rng.choice((1, 1, 1, 1, 4, 32))
        m, n, k = (int(2 ** rng.uniform(5, 13 if b == 1 else 10)) for _ in range(3))
        if rng.random() < 0.3:
            m = rng.choice((1, 4, 16, 33))
        if rng.random() < 0.6:
            m, n, k = (max(8, v // 8 * 8) if v >= 64 else v for v in (m, n, k))
        if 1 << 24 < b * m * n * k < 1 << 39:
            found.append((b, m, n, k, rng.choice("ct")))
    return found


GRID = 5  # shapes a part


# ---- measuring ----


@contextlib.contextmanager
def tf32(on: bool) -> Iterator[None]:
    import torch

    before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = on
    try:
        yield
    finally:
        torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = before


def under_tf32(f: gpu.Call) -> gpu.Call:
    def call() -> object:
        with tf32(True):
            return f()

    return call


def drawn(case: dict[str, Any], device: Any) -> dict[str, Any]:
    """Normal data in the Case's layouts."""
    import torch

    args: dict[str, Any] = {}
    for name, a in case["args"].items():
        if not isinstance(a, dict):
            args[name] = a
            continue
        t = torch.empty_strided(a["shape"], a["stride"], dtype=getattr(torch, a["dtype"]), device=device)
        args[name] = t.normal_()
    return args


def served(case: dict[str, Any], args: dict[str, Any]) -> gpu.Call:
    import torch

    op = getattr(torch.ops.kgen, case["op"])
    args = {n: v for n, v in args.items() if n != "channels_last"}  # the front finds that out
    program = case.get("program")
    if program:
        op = getattr(torch.ops.kgen, f"{case['op']}_mod")
        scalars = [float(s) for s in program["scalars"]]
        return lambda: op(*args.values(), [], scalars, program["text"])
    if case["op"] == "softmax":
        return lambda: op(args["input"], args["dim"])
    return lambda: op(*args.values())


def output_of(args: dict[str, Any]) -> Any:
    """What a conv2d gives, without values."""
    from kgen.convolution import contract_output

    return contract_output(**{n: v.to("meta") if hasattr(v, "to") else v for n, v in args.items()})


def flops(op: str, args: dict[str, Any]) -> float:
    x = args["input"]
    if op == "conv2d":
        return 2.0 * output_of(args).numel() * args["weight"][0].numel()
    if op == "matmul":
        return 2.0 * x.numel() * args["other"].shape[-1]
    return 2.0 * x.numel() * args["weight"].shape[0] if op == "linear" else 0.0


def error(case: dict[str, Any], args: dict[str, Any], captured: Any, got: Any) -> float:
    """By norm, of sampled rows of the first batch, against torch's own operations in fp64."""
    from kgen import baselines
    from kgen.baselines import Inputs

    x = args["input"]
    rows = x[0] if case["op"] == "matmul" else x
    out = got[0] if case["op"] == "matmul" else got
    pick = slice(0, None, max(1, rows.shape[0] // SAMPLED))
    wide = {n: v.double() if hasattr(v, "double") else v for n, v in args.items() if n != "input"}
    if case["op"] == "matmul":
        wide["other"] = args["other"][0].double()
    wide = {"input": rows[pick].double(), **wide}
    if case["op"] == "softmax":
        oracle = wide["input"].softmax(case["args"]["dim"])
    else:
        (oracle,) = baselines.of(case)[0].build()(Inputs(wide, captured))
    return float((out[pick].double().reshape(oracle.shape) - oracle).norm() / oracle.norm())


def measure(b: Bench, what: str, work: Work) -> Iterator[Row]:
    import torch

    from kgen.baselines import Inputs

    trial = work.trial().on("cuda")
    case = trial.case
    won = gpu.tune_exact(b, trial, work.seconds / 4 if b.quick else work.seconds)
    args = drawn(case, b.device)
    x = Inputs(args, ())
    with torch.inference_mode(), tf32(False):
        ways = gpu.torch_ways(b, case, x)
        contenders = {"kgen": gpu.serve(b, served(case, args)), **ways}
        single = all(v.dtype == torch.float32 for v in args.values() if isinstance(v, torch.Tensor))
        if single and case["op"] in ("matmul", "linear", "conv2d"):
            contenders["eager, TF32"] = under_tf32(ways["eager"])
        found = gpu.times(b, contenders, b.rounds(31))
        errors = {n: error(case, args, (), first(contenders[n]())) for n in ("kgen", "eager", "eager, TF32") if n in contenders}
    middle = {n: statistics.median(t) for n, t in found.items()}
    best = min(t for n, t in middle.items() if n not in ("kgen", "eager, TF32"))
    own, done = middle["kgen"], flops(case["op"], args)
    rate = f"{done / own / 1e9:.0f} TF; " if done else ""
    said = f"published {PUBLISHED[work.name]} of torch; " if work.name in PUBLISHED else ""
    far = "error " + ", ".join(f"{n} {e:.2g}" for n, e in errors.items())
    yield Row(what, own, "ms", None if work.relative else work.must, False, f"{rate}{gpu.beside(found)}; {said}{far}; {won}")
    yield Row(f"{what}, over torch's best", best / own, "x", work.must if work.relative else None, True)
    yield Row(f"{what}, error over eager torch's", errors["kgen"] / errors["eager"], "x", 1.05)


def first(y: Any) -> Any:
    return y[0] if isinstance(y, tuple) else y


def part(name: str, work: Work) -> Callable[[Bench], Iterator[Row]]:
    return lambda b: measure(b, f"{work.name} ({name})", work)


def grid_part(dtype: str, at: int) -> Callable[[Bench], Iterator[Row]]:
    """A few of the random products; each must reach `least`, all together are shown by their geometric mean."""
    least, seconds = (0.97, 25.0) if dtype == "float32" else (0.95, 25.0)

    def run(b: Bench) -> Iterator[Row]:
        import torch

        ratios = []
        for batch, m, n, k, layout in random_shapes(dtype)[at * GRID : (at + 1) * GRID]:
            name = f"matmul {dtype} B={batch} M={m} N={n} K={k} {layout}"
            rows = list(measure(b, name, Work(name, least, True, matmul(dtype, m, n, k, batch, layout), seconds)))
            ratios.append(rows[1].value)
            yield from rows
            torch.cuda.empty_cache()
        mean = math.exp(statistics.fmean(map(math.log, ratios)))
        yield Row(f"random matmul {dtype}, part {at + 1}, geometric mean over torch's best", mean, "x", None, True)

    return run


def pooled_part() -> Callable[[Bench], Iterator[Row]]:
    """ReLU as the epilogue of a served conv2d; the pooling behind it is torch's own, eager or compiled, as no Op has it."""

    def run(b: Bench) -> Iterator[Row]:
        import torch
        import torch.nn.functional as F

        from kgen import convs, epilogues

        at = convs.At(100, 3, 224, 224, 96, 11, 11, 4, 4, 2, 2)
        program = next(p for n, p in epilogues.named("conv2d", at.output(False)) if n == "relu")
        trial = convs.trial("conv2d", "float32", at, ("bias",), program, "relu").on("cuda")
        won = gpu.tune_exact(b, trial, 20.0 if b.quick else 90.0)
        args = drawn(trial.case, b.device)
        x, weight, bias = args["input"], args["weight"], args["bias"]

        def call() -> torch.Tensor:
            y = F.conv2d(x, weight, bias, stride=4, padding=2)
            return F.max_pool2d(F.relu(y), 3, 2)

        def pool(y: torch.Tensor) -> torch.Tensor:
            return F.max_pool2d(y, 3, 2)

        with torch.inference_mode(), tf32(False):
            conv = gpu.serve(b, served(trial.case, args))
            compiled_pool = torch.compile(pool)
            ways: dict[str, gpu.Call] = {
                "kgen": lambda: pool(first(conv())), "kgen, pooling compiled": lambda: compiled_pool(first(conv())),
                "eager": call, "eager, TF32": under_tf32(call),
            }  # fmt: skip
            for mode in ("default", "max-autotune"):
                try:
                    made = torch.compile(call, mode=None if mode == "default" else mode)
                    made()
                    ways[f"torch.compile {mode}"] = made
                except Exception as e:  # noqa: BLE001 - a baseline may fail in any way; the table says so
                    b.notes.append(f"torch.compile {mode} left out: {(str(e).splitlines() or ['?'])[0][:120]}")
            found = gpu.times(b, ways, b.rounds(31))
            exact = F.max_pool2d(F.relu(F.conv2d(x.double(), weight.double(), bias.double(), stride=4, padding=2)), 3, 2)
            errors = {n: float((ways[n]().double() - exact).norm() / exact.norm()) for n in ("kgen", "eager")}  # type: ignore[attr-defined]
        name = "conv2d, relu, max_pool2d"
        middle = {n: statistics.median(t) for n, t in found.items()}
        best = min(t for n, t in middle.items() if not n.startswith("kgen") and n != "eager, TF32")
        own = min(middle["kgen"], middle["kgen, pooling compiled"])
        said = f"published {PUBLISHED[name]} of torch; error kgen {errors['kgen']:.2g}, eager {errors['eager']:.2g}"
        yield Row(name, own, "ms", 0.32, False, f"{gpu.beside(found)}; {said}; {won}")
        yield Row(f"{name}, over torch's best", best / own, "x", None, True)
        yield Row(f"{name}, error over eager torch's", errors["kgen"] / errors["eager"], "x", 1.05)

    return run


PARTS: gpu.Parts = {
    **{name: part(name, work) for name, work in WORKS.items()},
    "conv2d-relu-pool": pooled_part(),
    **{f"random-{d}-{i + 1}": grid_part(d, i) for d in ("float32", "bfloat16") for i in range(30 // GRID)},
}  # fmt: skip
# What a part takes at most, in seconds: the search, torch.compile's autotuning, the rounds.
TAKES = {n: int(w.seconds) + 120 for n, w in WORKS.items()} | {"conv2d-relu-pool": 240}
TAKES |= {n: 400 for n in PARTS if n.startswith("random")}
QUICK = 75


# ---- without a GPU ----

SMS, SHARED = 132, 232448  # of an H200


def plan_of(text: bytes) -> dict[str, Any]:
    plan: dict[str, Any] = json.loads(text[text.index(b"{") : text.index(b"*/")])
    return plan


def choices(contract: str, case: dict[str, Any], text: bytes, most: int = 256) -> tuple[int, int]:
    """Of at most `most` combinations of a template's tunables (the first by the lists, then sampled): how many the Case
    takes, and how many were asked."""
    from kgen import _libkgen
    from kgen.errors import BadInput

    about = plan_of(text).get("tunables", {})
    grid = [dict(zip(about, values)) for values in itertools.product(*about.values())]
    asked = grid if len(grid) <= most else [grid[0], *random.Random(0).sample(grid, most - 1)]
    taken = 0
    for chosen in asked:
        try:
            _libkgen.candidate_unit(contract, case, text, chosen, "sm_90", SMS, SHARED, True)
        except BadInput as e:
            if not str(e).startswith("require"):
                raise
        else:
            taken += 1
    return taken, len(asked)


def dry() -> int:
    """Each row's Case and which templates are for it; 1 when a row has none."""
    from kgen._paths import kernels_dir
    from kgen.task import canonical_contract

    sources = {p: p.read_bytes() for p in sorted(kernels_dir().rglob("*.cu"))}
    grids = {f"random {d} {s}": Work("random", 1.0, True, matmul(d, *s[1:4], s[0], s[4])) for d in ("float32", "bfloat16")
             for s in random_shapes(d)[:3]}  # fmt: skip
    bare = []
    for name, work in (WORKS | grids).items():
        case = work.trial().on("cuda").case
        contract = canonical_contract(case["op"]).decode()
        found = []
        for path, text in sources.items():
            if plan_of(text)["op"] != case["op"]:
                continue
            taken, asked = choices(contract, case, text, 64)
            if taken:
                found.append(f"{path.name} {taken}/{asked}")
        print(f"{name}: {', '.join(found) or 'no template'}", flush=True)
        bare += [] if found else [name]
    print(f"{len(WORKS) + len(grids) - len(bare)} rows have templates" + (f"; none: {', '.join(bare)}" if bare else ""))
    return 1 if bare else 0


# ---- the plot ----


def plot(state: Path, to: Path) -> int:
    """Bars of what was measured: speed over torch's best, with what must be reached."""
    held = json.loads(state.read_text()) if state.is_file() else {"parts": {}}
    ending = ", over torch's best"
    rows = [Row(**r) for p in held["parts"].values() for r in p["rows"] if r["name"].endswith(ending)]
    if not rows:
        print(f"--plot: {state} has no measured row; run without --plot first", file=sys.stderr)
        return 2
    try:
        import matplotlib
    except ImportError:
        print("--plot needs matplotlib: pip install matplotlib", file=sys.stderr)
        return 3
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(9, 1 + 0.3 * len(rows)), layout="constrained")
    for i, r in enumerate(rows):
        axes.barh(i, r.value, color="tab:blue" if r.held else "tab:red")
        axes.text(r.value, i, f" {r.value:.2f}x", va="center", fontsize=8)
        if r.limit is not None:
            axes.plot([r.limit] * 2, [i - 0.4, i + 0.4], color="black")
    axes.set_yticks(range(len(rows)), [r.name.removesuffix(ending) for r in rows], fontsize=8)
    axes.axvline(1.0, color="grey", linewidth=0.5)
    axes.invert_yaxis()
    axes.set_xlabel("speed over the best of eager torch and torch.compile (black: must)")
    axes.set_title(f"{held['machine']['gpu']}, torch {held['machine']['torch']}", fontsize=9)
    figure.savefig(to, dpi=150)
    print(to)
    return 0


def main() -> int:
    p = argparse.ArgumentParser(add_help=False)
    p.add_argument("--plot", type=Path)
    p.add_argument("--dry", action="store_true")
    p.add_argument("--state", type=Path, default=STATE)
    args, _ = p.parse_known_args()
    if args.dry:
        return dry()
    if args.plot:
        return plot(args.state, args.plot)
    gpu.TAKES |= {n: QUICK if "--quick" in sys.argv else t for n, t in TAKES.items()}
    return gpu.main(PARTS, __doc__, "headlines", STATE.name)


if __name__ == "__main__":
    sys.exit(main())
