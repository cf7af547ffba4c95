"""The numbers of a GPU, each beside torch's own in the same process, in parts that fit a short lease.

    python tests/bench/gpu.py [--only PART ...] [--seconds 480] [--device cuda:0] [--state FILE] [--again] [--write]

Prints a table; exit code 1 when a number is missed, 4 when parts are left for another call. What was measured on this GPU
is kept in the state file, so that a call goes on where the last one ended. --write keeps the results in
tests/bench/results-<gpu>.json. Wants a GPU that nothing else uses.

Contenders take turns, each call finds a cold L2, and the time is that between a call's events.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import statistics
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
sys.path[:0] = [str(ROOT / "python"), str(HERE)]

import crowd  # noqa: E402
from run import Row, show  # noqa: E402

LEFT = 4
Call = Callable[[], object]


@dataclass
class Bench:
    """One call of this program. tuned: the registry of what it tuned itself."""

    device: Any
    folder: Path
    tuned: Path
    quick: bool
    notes: list[str] = field(default_factory=list)

    def rounds(self, n: int) -> int:
        return max(7, n // 4) if self.quick else n


# Measuring


def times(b: Bench, contenders: dict[str, Call], rounds: int) -> dict[str, list[float]]:
    """Milliseconds, one of each contender a round, the order turning from round to round."""
    import torch

    from kgen import devices

    cache, names = devices.ColdCache(b.device), list(contenders)
    for f in contenders.values():
        for _ in range(3):
            f()
    found: dict[str, list[float]] = {n: [] for n in names}
    for r in range(rounds):
        pairs = []
        for i in range(len(names)):
            name = names[(i + r) % len(names)]
            e = devices.Events()
            cache.flush()
            e.begin()
            contenders[name]()
            e.end()
            pairs.append((name, e))
        torch.cuda.synchronize(b.device)
        for name, e in pairs:
            found[name].append(e.ns() * 1e-6)
    return found


def torch_ways(b: Bench, case: dict[str, Any], x: Any, without: Sequence[str] = ()) -> dict[str, Call]:
    """The baselines of a Case, built and called once; those that fail are said."""
    import torch

    from kgen import baselines

    torch._dynamo.reset()  # what other parts compiled counts against a limit of recompilations
    made: dict[str, Call] = {}
    for one in baselines.of(case):
        if one.name in without:
            continue
        try:
            f = one.build()
            f(x)
        except Exception as e:  # noqa: BLE001 - a baseline may fail in any way; the table says so
            b.notes.append(f"{one.name} left out: {(str(e).strip().splitlines() or [type(e).__name__])[0][:120]}")
            continue
        made[one.name] = lambda f=f: f(x)
    return made


def graphed(b: Bench, contenders: dict[str, Call]) -> dict[str, Call]:
    """Each as the replay of a CUDA graph of its call, which leaves out what launching costs the host; those that cannot be
    captured are said."""
    import torch

    made: dict[str, Call] = {}
    for name, call in contenders.items():
        graph = torch.cuda.CUDAGraph()
        try:
            aside = torch.cuda.Stream(b.device)
            with torch.cuda.stream(aside):
                call()
            torch.cuda.synchronize(b.device)
            with torch.cuda.graph(graph):
                kept = call()
        except Exception as e:  # noqa: BLE001 - in whatever way one does not let itself be captured; the table says so
            b.notes.append(f"{name} left out of the graphs: {(str(e).strip().splitlines() or [type(e).__name__])[0][:120]}")
            continue
        made[name] = lambda graph=graph, kept=kept: graph.replay()  # kept: its outputs are the graph's memory
    return made


def beside(found: dict[str, list[float]]) -> str:
    return ", ".join(f"{n} {statistics.median(t):.4g} ms" for n, t in found.items())


def tune_exact(b: Bench, trial: Any, seconds: float) -> str:
    """Searches over one Case as `kgen tune` does and puts the winner into this run's registry; what won."""
    import torch

    from kgen import _libkgen, spread
    from kgen._paths import kernels_dir
    from kgen.judge import Judge
    from kgen.task import canonical_contract

    contract = canonical_contract(trial.case["op"]).decode()
    key, name = _libkgen.case_key(contract, trial.case)
    with Judge(contract, device=b.device) as judge:
        spread.add(judge, json.loads(contract), trial)
        options = {"budget_ms": int(seconds * 1000), "kernels": str(kernels_dir())}
        found = _libkgen.search(judge.handle, b.folder / f"run-{name}", options, lambda _: None)
    if not found["winners"]:
        raise RuntimeError(f"no Candidate passed on {trial.label}: {found['verdicts']}")
    winner = found["winners"][0]
    record = {**winner["record"], "source": "kernel.cu", "tunables": winner["tunables"]}
    record["proposer"] = {"name": "builtin", "template": winner["source"]}
    record["environment"]["torch"] = torch.__version__
    _libkgen.registry_promote(b.tuned, contract, None, Path(winner["file"]).read_bytes(), record, [key])
    return " ".join([winner["source"], *(f"{k}={v}" for k, v in winner["tunables"].items())])


def serve(b: Bench, call: Call) -> Call:
    """The call, once it is certain that a Kernel of this run's registry serves it."""
    import kgen

    kgen.load(b.tuned)
    (decision,) = kgen.why(call).decisions
    assert decision.kind == "exact" and decision.registry == str(b.tuned), str(decision)
    return call


# Softmax


def softmax_part(m: int, n: int, dtype: str, seconds: float = 60.0) -> Callable[[Bench], Iterator[Row]]:
    def part(b: Bench) -> Iterator[Row]:
        import torch

        from kgen import spread
        from kgen.baselines import Inputs

        trial = spread.softmax_trial(dtype, m, n).on("cuda")
        won = tune_exact(b, trial, seconds / 4 if b.quick else seconds)
        x = torch.randn(m, n, device=b.device, dtype=getattr(torch, dtype))
        y = torch.empty_like(x)
        moved = 2 * x.numel() * x.element_size()
        with torch.inference_mode():
            contenders = {"kgen": serve(b, lambda: torch.ops.kgen.softmax(x, 1)), "copy": lambda: y.copy_(x)}
            contenders |= torch_ways(b, trial.case, Inputs({"input": x}))
            found = times(b, contenders, b.rounds(61))
        own = statistics.median(found["kgen"])
        note = f"{beside(found)}; {won}"
        name = f"softmax ({m}, {n}) {dtype}"
        if dtype == "float32":
            yield Row(name, own, "ms", 0.56, False, f"aim 0.51; {note}")
        else:
            yield Row(name, moved / own / 1e9, "TB/s", 3.9, True, note)
        best = min(statistics.median(t) for who, t in found.items() if who not in ("kgen", "copy"))
        yield Row(f"{name}, over torch's best", best / own, "x", None, True)
        yield Row(f"{name}, share of a copy's rate", statistics.median(found["copy"]) / own, "x", None, True)

    return part


# Attention

HEADS, LENGTH, WIDTH, BATCH = 16, 4096, 128, 4


def mods(name: str, device: Any) -> tuple[Any, Any]:
    import torch

    slopes = torch.exp2(-8.0 / HEADS * torch.arange(1, HEADS + 1, device=device))
    scores = {
        "relative position": lambda s, b, h, q, kv: s + (q - kv),
        "ALiBi": lambda s, b, h, q, kv: s + slopes[h] * (kv - q),
        "softcap 20": lambda s, b, h, q, kv: 20.0 * torch.tanh(s / 20.0),
    }
    base, _, mask = name.partition(", ")
    return scores.get(base), (lambda b, h, q, kv: q >= kv) if "causal" in (base, mask) else None


VARIANTS = ("dense", "causal", *(f"{v}{c}" for v in ("relative position", "ALiBi", "softcap 20") for c in ("", ", causal")))


def attention_part(name: str) -> Callable[[Bench], Iterator[Row]]:
    def part(b: Bench) -> Iterator[Row]:
        import torch

        from kgen import spread
        from kgen.baselines import Inputs
        from kgen.trace import trace

        t = trace(*mods(name, b.device), device=b.device)
        at = spread.Sizes(BATCH, HEADS, LENGTH, WIDTH, HEADS, LENGTH, WIDTH)
        program = (t.text, t.captured, t.scalars) if t.text else None
        trial = spread.attention_trial("bfloat16", at, program, name, skip=("lse",)).on("cuda")
        won = tune_exact(b, trial, 20.0 if b.quick else 90.0)
        shape = (BATCH, HEADS, LENGTH, WIDTH)
        q, k, v = (torch.randn(shape, device=b.device, dtype=torch.bfloat16) for _ in range(3))
        x = Inputs({"query": q, "key": k, "value": v}, tuple(t.captured))
        call: Call = lambda: torch.ops.kgen.attention(q, k, v)  # noqa: E731
        if t.text:
            call = lambda: torch.ops.kgen.attention_mod_output(q, k, v, list(t.captured), list(t.scalars), t.text)  # noqa: E731
        # The dense ones would need 2 GiB of scores each and are far from any best here.
        dense = ("eager", "torch.compile", "torch.compile max-autotune", "SDPA math", "FlexAttention max-autotune")
        with torch.inference_mode():
            contenders = {"kgen": serve(b, call), **torch_ways(b, trial.case, x, dense)}
            found = times(b, contenders, b.rounds(31))
        assert "FlexAttention" in found, f"compiled FlexAttention did not run: {b.notes}"
        own, flex = statistics.median(found["kgen"]), statistics.median(found["FlexAttention"])
        flops = 4.0 * BATCH * HEADS * LENGTH * LENGTH * WIDTH * (0.5 if "causal" in name else 1.0)
        yield Row(f"attention {name}, speed over compiled FlexAttention", flex / own, "x", 0.5, True, f"{beside(found)}; {won}")
        yield Row(f"attention {name}", flops / own / 1e9, "TF", None, True)

    return part


# Calls


def bench_calls(b: Bench) -> Iterator[Row]:
    """The CPU's side of a call. In bursts that the queue of launches takes, so that nobody waits for the GPU."""
    import torch

    import kgen
    from kgen import devices

    registry = crowd.write(b.folder / "crowd", gpu_arch=devices.arch(b.device))
    kgen.load(registry)
    x, z = torch.randn(1000, 100, device=b.device), torch.randn(1000, 100, device=b.device)

    def burst(f: Call, calls: int = 400) -> float:
        torch.cuda.synchronize(b.device)
        start = time.thread_time()
        for _ in range(calls):
            f()
        return (time.thread_time() - start) / calls * 1e6

    with torch.no_grad():
        assert kgen.why("softmax", x, 1).fallbacks == 0
        ways = {
            "kgen softmax": lambda: torch.ops.kgen.softmax(x, 1), "torch.mul": lambda: torch.mul(x, z),
            "torch.softmax": lambda: torch.softmax(x, 1),
        }  # fmt: skip
        for f in ways.values():
            burst(f)
        found: dict[str, list[float]] = {n: [] for n in ways}
        for _ in range(b.rounds(61)):
            for n, f in ways.items():
                found[n].append(burst(f))
    kgen.unload(registry)
    middle = {n: statistics.median(t) for n, t in found.items()}
    note = ", ".join(f"{n} {t:.2f} us" for n, t in middle.items())
    ratio = statistics.median(a / m for a, m in zip(found["kgen softmax"], found["torch.mul"], strict=True))
    yield Row("softmax call over torch.mul's, no_grad, 1,000 kernels", ratio, "x", 1.1, False, note)


# The judge

# A Candidate that costs a copy, so that what is left of a judged call is checking.
COPY = b"""/* kgen
{ "format": 1, "op": "softmax", "target": "cuda", "require": "K == 1 && input.contiguous",
  "launches": [{"kernel": "copy", "grid": ["min(ceil_div(M * N, 256), 65536)"], "block": [256],
                "args": ["input", "output", {"i64": "M * N"}]}] }
*/
extern "C" __global__ void copy(const KG_T_input *x, KG_T_input *y, long long n) {
    for (long long i = blockIdx.x * 256ll + threadIdx.x; i < n; i += gridDim.x * 256ll)
        y[i] = x[i];
}
"""


def softmax_judge(b: Bench, m: int, n: int) -> Any:
    from kgen import spread
    from kgen.judge import Judge
    from kgen.reference import Reference
    from kgen import sets
    from kgen.task import canonical_contract

    contract = canonical_contract("softmax").decode()
    made = spread.softmax_trial("float32", m, n).on("cuda").task(json.loads(contract))
    judge = Judge(contract, device=b.device)
    sets.fill(judge, made, Reference.open(made, b.device.index or 0), 0)
    return judge, (ROOT / "kernels/softmax/long.cu").read_bytes()


def judged(judge: Any, source: bytes, **how: Any) -> float:
    """Seconds to a verdict, which must be `pass`."""
    start = time.perf_counter()
    record = judge.run(source, name="long.cu", **how)
    assert record["verdict"] == "pass", record["message"]
    return time.perf_counter() - start


def bench_verdict(b: Bench) -> Iterator[Row]:
    judge, source = softmax_judge(b, 3584, 3584)  # 51 MB in, 51 MB out
    with judge:
        judged(judge, source, all_sets=False)
        fresh = [source + f"/* {os.getpid()} {i} */\n".encode() for i in range(b.rounds(12))]
        took = [judged(judge, one, all_sets=False) for one in fresh]  # nothing of them is in a cache
        yield Row("first-seed verdict at 100 MB, compile included", statistics.median(took), "s", 0.5)
        warm = statistics.median(judged(judge, source, all_sets=False) for _ in range(7))
        after = []
        for _ in range(5):
            fault = judge.run(COPY.replace(b"y[i] = x[i]", b"y[i + (1ll << 40)] = x[i]"), name="fault.cu", all_sets=False)
            assert fault["verdict"] in ("illegal_access", "out_of_bounds"), fault["message"]
            after.append(judged(judge, source, all_sets=False) - warm)
        yield Row("worker restart after a fault", statistics.median(after), "s", 0.4)


def bench_endurance(b: Bench) -> Iterator[Row]:
    import torch

    from run import _descriptors, _resident_mb

    judge, source = softmax_judge(b, 64, 64)
    with judge:
        for _ in range(50):
            judged(judge, source)
        torch.cuda.synchronize(b.device)
        fds, host, free = _descriptors(), _resident_mb(), torch.cuda.mem_get_info(b.device)[0]
        for i in range(250 if b.quick else 1000):
            judged(judge, source + f"/* {os.getpid()} {i} */\n".encode())
        grown = max(0.0, (free - torch.cuda.mem_get_info(b.device)[0]) / 1e6)
        yield Row("host memory grown over 1,000 Candidates", max(0.0, _resident_mb() - host), "MB", 8.0)
        yield Row("GPU memory grown over 1,000 Candidates", grown, "MB", 16.0)
        yield Row("descriptors grown over 1,000 Candidates", float(_descriptors() - fds), "", 0.0)


def bench_checks(b: Bench) -> Iterator[Row]:
    """What a judged call moves: the input is copied into place, the output poisoned, the Candidate reads the one and writes
    the other, the input is hashed, and the output compared with its fp64 oracle; by the growth of a verdict's time with
    the number of calls, so few that none is timed warm or again."""
    import torch

    from kgen import spread
    from kgen.judge import Judge
    from kgen.task import canonical_contract

    m, n = 4096, 65536
    x = torch.randn(m, n, device=b.device)
    y, oracle = torch.empty_like(x), x.double()
    copied = statistics.median(times(b, {"copy": lambda: y.copy_(x)}, b.rounds(31))["copy"])
    del y
    with Judge(canonical_contract("softmax").decode(), device=b.device) as judge:
        case = judge.add_case(spread.softmax_trial("float32", m, n).on("cuda").case)
        judge.add_set(case, [x], [oracle], torch_errors=[(1.0, 1.0)])

        def run_ms(reps: int) -> float:
            record = judge.run(COPY, name="copy.cu", reps=reps)
            assert record["verdict"] == "pass", record["message"]
            return float(record["details"]["run_ms"])

        run_ms(1)
        few, many = (min(run_ms(reps) for _ in range(5)) for reps in (2, 7))
    each = (many - few) / 5
    moved = (2 + 1 + 2 + 1 + 1) * x.nbytes + oracle.nbytes
    rate, share = moved / each / 1e9, moved / each / (2 * x.nbytes / copied)
    yield Row("checks around a judged call, share of a copy's rate", share, "x", 0.8, True, f"{rate:.2f} TB/s, copy {copied:.4g} ms")


def bench_memory(b: Bench) -> Iterator[Row]:
    """What is free is used, so the rest of the GPU is taken away: the number is what was left to it."""
    import torch

    from kgen import devices

    context = 700 << 20  # of the worker
    room = (2 * 8 + 4 << 30) + context
    devices.release(b.device)
    free = torch.cuda.mem_get_info(b.device)[0]
    assert free > room, f"only {free / (1 << 30):.1f} GiB of the GPU are free"
    filler = torch.empty(free - room, dtype=torch.int8, device=b.device)
    judge, source = softmax_judge(b, 16384, 65536)  # 4 GiB in, 4 GiB out
    with judge:
        took = judged(judge, source)
    del filler
    devices.release(b.device)
    yield Row("GPU memory that judged 8 GiB of tensors", (room - context) / (1 << 30), "GiB", 20.0)
    yield Row("the same, all sets, time", took, "s")


PARTS: dict[str, Callable[[Bench], Iterator[Row]]] = {
    "softmax-fp32": softmax_part(4096, 65536, "float32"),
    "softmax-bf16": softmax_part(8192, 65536, "bfloat16"),
    "calls": bench_calls,
    "verdict": bench_verdict,
    "endurance": bench_endurance,
    "checks": bench_checks,
    "memory": bench_memory,
    **{f"attention-{n.replace(' ', '-').replace(',', '')}": attention_part(n) for n in VARIANTS},
}
# What a part takes at most, in seconds; a call begins none that does not fit any more.
TAKES = {"softmax-fp32": 200, "softmax-bf16": 200, "calls": 60, "verdict": 60, "endurance": 300, "checks": 60, "memory": 200}
TAKES_ATTENTION = 240


# State and table


def machine(device: Any) -> dict[str, Any]:
    import torch

    from kgen import cuda_packages

    driver, nvrtc = cuda_packages.driver(), cuda_packages.nvrtc()
    return {
        "gpu": torch.cuda.get_device_name(device), "torch": torch.__version__,
        "driver": driver.name if driver else "?", "nvrtc": ".".join(map(str, nvrtc.version)) if nvrtc else "?",
    }  # fmt: skip


class State:
    """What was measured, by part; of another machine it counts for nothing."""

    def __init__(self, path: Path, about: dict[str, Any], again: bool):
        self.path, self.about = path, about
        self.parts: dict[str, Any] = {}
        if path.is_file() and not again:
            held = json.loads(path.read_text())
            if held.get("machine") == about:
                self.parts = held["parts"]

    def rows(self, name: str) -> list[Row]:
        return [Row(**r) for r in self.parts[name]["rows"]]

    def keep(self, name: str, rows: list[Row], notes: list[str]) -> None:
        self.parts[name] = {"rows": [asdict(r) for r in rows], "notes": notes}
        self.path.parent.mkdir(parents=True, exist_ok=True)
        aside = self.path.with_suffix(".tmp")
        aside.write_text(json.dumps({"format": 1, "machine": self.about, "parts": self.parts}, indent=1) + "\n")
        os.replace(aside, self.path)


Parts = dict[str, Callable[[Bench], Iterator[Row]]]


def run(args: argparse.Namespace, parts: Parts, state: State, device: Any, folder: Path) -> tuple[list[str], list[str]]:
    """Measures what fits; the parts that are left, and those that failed, which keep no other from being measured."""
    started, left, failed = time.monotonic(), [], []
    for name in args.only or parts:
        if name in state.parts:
            rows, notes = state.rows(name), state.parts[name]["notes"]
        elif time.monotonic() - started + TAKES.get(name, TAKES_ATTENTION) > args.seconds:
            left.append(name)
            continue
        else:
            b = Bench(device, folder, folder / f"tuned-{name}", args.quick)
            try:
                rows = list(parts[name](b))
            except Exception:  # noqa: BLE001 - whatever it is stands in the log, and in the exit code
                print(f"{name} failed:\n{traceback.format_exc()}", *b.notes, sep="\n  ", flush=True)
                failed.append(name)
                continue
            notes = b.notes
            state.keep(name, rows, notes)
        for text in [*map(show, rows), *(f"  {n}" for n in notes)]:
            print(text, flush=True)
    return left, failed


def write(parts: Parts, state: State, stem: str) -> Path:
    name = re.sub(r"[^a-z0-9]+", "-", state.about["gpu"].lower()).strip("-")
    path = HERE / f"{stem}-{name}.json"
    rows = [{**asdict(r), "held": r.held} for part in parts if part in state.parts for r in state.rows(part)]
    path.write_text(json.dumps({"format": 1, "machine": state.about, "rows": rows}, indent=1) + "\n")
    return path


def main(parts: Parts = PARTS, about_it: str | None = __doc__, stem: str = "results", state_file: str = "bench-gpu.json") -> int:
    p = argparse.ArgumentParser(description=(about_it or "").splitlines()[0])
    p.add_argument("--write", action="store_true", help="keep the results in tests/bench/")
    p.add_argument("--only", action="append", choices=list(parts))
    p.add_argument("--quick", action="store_true", help="fewer rounds, shorter searches")
    p.add_argument("--seconds", type=float, default=480.0, help="begin no part that would end later (default 480)")
    p.add_argument("--device", default="cuda")
    p.add_argument("--state", type=Path, default=ROOT / "build" / state_file)
    p.add_argument("--again", action="store_true", help="measure what was measured, too")
    args = p.parse_args()
    with tempfile.TemporaryDirectory(prefix="kgen-bench-") as folder:
        os.environ["KGEN_CACHE"] = str(Path(folder) / "cache")
        os.environ["XDG_DATA_HOME"] = str(Path(folder) / "data")
        os.environ.pop("KGEN_REGISTRY", None)
        import torch

        from kgen import devices
        from kgen.errors import KgenError

        try:
            device = devices.check(devices.parse(args.device))
        except KgenError as e:
            print(e, file=sys.stderr)
            return e.code
        torch.cuda.set_device(device)
        about = machine(device)
        print(", ".join(f"{k} {v}" for k, v in about.items()))
        state = State(args.state, about, args.again)
        left, failed = run(args, parts, state, device, Path(folder))
    if args.write:
        print(write(parts, state, stem))
    rows = [r for name in state.parts for r in state.rows(name)]
    missed = [r.name for r in rows if not r.held]
    print(f"{len(rows) - len(missed)} of {len(rows)} held" + (f"; missed: {', '.join(missed)}" if missed else ""))
    if failed:
        print(f"failed: {', '.join(failed)}")
    if left:
        print(f"left for another call: {', '.join(left)}")
        return LEFT
    return 1 if missed or failed else 0


if __name__ == "__main__":
    sys.exit(main())
