"""`make bench`: the README's numbers, side by side in one run, each held to its limit.

    python tests/bench/run.py [--write] [--only NAME ...] [--quick]

Prints a table; exit code 1 when a number is missed. --write keeps the results in tests/bench/results-<machine>.json.
Wants a machine that does nothing else: it says how busy the machine was.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
sys.path[:0] = [str(ROOT / "python"), str(HERE)]

import crowd  # noqa: E402
import mixed  # noqa: E402


@dataclass(frozen=True)
class Row:
    """One number. limit None: it is shown, not held. least: the value must be at least the limit, else at most."""

    name: str
    value: float
    unit: str
    limit: float | None = None
    least: bool = False
    note: str = ""

    @property
    def held(self) -> bool:
        if self.limit is None:
            return True
        return self.value >= self.limit if self.least else self.value <= self.limit


class Bench:
    """Folders of one run: a cache, a registry of 1,000 Kernels and one for what is promoted on the way."""

    def __init__(self, folder: Path, quick: bool):
        self.folder, self.quick = folder, quick
        self.crowd = crowd.write(folder / "crowd")
        self.tuned = folder / "tuned"

    def rounds(self, n: int) -> int:
        return max(5, n // 4) if self.quick else n


# ---- import and index ----

_IMPORT = """
import time
import resource
def resident():
    with open("/proc/self/statm") as f:
        return int(f.read().split()[1]) * resource.getpagesize()
import torch
before, start = resident(), time.perf_counter()
import kgen
took, grown = time.perf_counter() - start, resident() - before
import json
print(json.dumps({"ms": took * 1e3, "mb": grown / 1e6, "kernels": sum(len(o["kernels"]) for r in kgen.registry() for o in r["ops"])}))
"""


def bench_import(b: Bench) -> Iterator[Row]:
    env = {**os.environ, "KGEN_REGISTRY": str(b.crowd), "PYTHONPATH": str(ROOT / "python")}
    env.pop("PYTHONDONTWRITEBYTECODE", None)  # what pip installed has its bytecode
    found = []
    for _ in range(b.rounds(15) + 1):
        done = subprocess.run([sys.executable, "-c", _IMPORT], env=env, capture_output=True, text=True, check=True)
        found.append(json.loads(done.stdout))
    found = found[1:]  # the first derives the index
    assert all(f["kernels"] >= 1000 for f in found), "the registry of 1,000 Kernels was not read"
    yield Row("import kgen, over import torch", statistics.median(f["ms"] for f in found), "ms", 10.0)
    yield Row("memory of import kgen", statistics.median(f["mb"] for f in found), "MB", 10.0)


def bench_index(b: Bench) -> Iterator[Row]:
    from kgen import _libkgen

    times = []
    for _ in range(b.rounds(15)):
        start = time.perf_counter()
        _libkgen.index_build(b.crowd, b.folder / "index")
        times.append((time.perf_counter() - start) * 1e3)
    yield Row("index of 1,000 Kernels derived", statistics.median(times), "ms", 100.0)


# ---- served calls ----


def bench_calls(b: Bench) -> Iterator[Row]:
    import torch
    import torch.nn.functional as F

    import kgen
    from measure import cpu_us

    kgen.load(b.crowd)
    # One row: neither side starts threads, which would be most of what is measured.
    x, q = torch.randn(1, 64), torch.randn(1, 1, 2, 16)
    ops = torch.ops.kgen

    def over(ours: Callable[[], object], theirs: Callable[[], object]) -> float:
        cpu_us(ours, 2000), cpu_us(theirs, 2000)
        return statistics.median(cpu_us(ours, 1000) - cpu_us(theirs, 1000) for _ in range(b.rounds(61)))

    for name, value in (("softmax", kgen.why("softmax", x, 1)), ("attention", kgen.why("attention", q, q, q))):
        assert value.fallbacks == 0, f"{name} is not served: {value}"
    for mode, limits in ((torch.no_grad, (0.6, 0.0)), (torch.inference_mode, (0.6, 0.0))):
        with mode():
            name = mode.__name__
            yield Row(f"softmax call over torch.softmax, {name}", over(lambda: ops.softmax(x, 1), lambda: torch.softmax(x, 1)), "us", limits[0])
            took = over(lambda: ops.attention(q, q, q), lambda: F.scaled_dot_product_attention(q, q, q))
            yield Row(f"attention call over SDPA's, {name}", took, "us", limits[1])
    y, k = torch.randn(1, 64, requires_grad=True), torch.randn(1, 1, 2, 16, requires_grad=True)
    yield Row("softmax call over torch.softmax, gradients on", over(lambda: ops.softmax(y, 1), lambda: torch.softmax(y, 1)), "us", 4.0)
    took = over(lambda: ops.attention(k, k, k), lambda: F.scaled_dot_product_attention(k, k, k))
    yield Row("attention call over SDPA's, gradients on", took, "us", 4.0)


# ---- the judge ----


def _softmax_judge(m: int, n: int) -> Any:
    import torch

    from kgen import spread
    from kgen.judge import Judge
    from kgen.task import canonical_contract

    judge = Judge(canonical_contract("softmax").decode())
    trial = spread.softmax_trial("float32", m, n)
    index = judge.add_case(trial.case)
    x = torch.randn(m, n)
    judge.add_set(index, [x], [torch.softmax(x.double(), 1)], results=[torch.softmax(x, 1)], name="bench")
    return judge, (ROOT / "kernels/softmax/rows.c").read_bytes()


# Timed calls of the search's last level (csrc/tune/search_judge.c).
TIMED = 41


def _filled_judge(m: int, n: int) -> Any:
    """A judge with all the inputs that `kgen tune` would judge a softmax on."""
    from kgen import sets, spread
    from kgen.judge import Judge
    from kgen.reference import Reference
    from kgen.task import canonical_contract

    contract = canonical_contract("softmax").decode()
    made = spread.softmax_trial("float32", m, n).task(json.loads(contract))
    judge = Judge(contract)
    sets.fill(judge, made, Reference.open(made, 0), 0)
    return judge


def _verdicts(judge: Any, source: bytes, times: int, verdict: str, **how: Any) -> float:
    """Median s of a verdict on a source of which nothing is in the cache."""
    took = []
    for i in range(times):
        fresh = source + f"/* {os.getpid()} {time.time_ns()} {i} */\n".encode()
        start = time.perf_counter()
        record = judge.run(fresh, name="rows.c", **how)
        took.append(time.perf_counter() - start)
        assert record["verdict"] == verdict, record["message"]
    return statistics.median(took)


def bench_verdict(b: Bench) -> Iterator[Row]:
    side = 3536  # 50 MB in, 50 MB out
    source = (ROOT / "kernels/softmax/rows.c").read_bytes()
    wrong = source.replace(b"#define LOG2E 1.44269504088896341f", b"#define LOG2E 1.4424f")
    assert wrong != source
    with _filled_judge(side, side) as judge:
        first = _verdicts(judge, source, b.rounds(12), "pass", all_sets=False)
        yield Row("first-seed verdict at 100 MB, compile included", first, "s", 1.0)
        failing = _verdicts(judge, wrong, b.rounds(12), "wrong_values", reps=TIMED)
        yield Row("a failing Candidate's verdict at 100 MB, compile included", failing, "s", 1.0)
        whole = _verdicts(judge, source, b.rounds(6), "pass", reps=TIMED)
        yield Row("all inputs and the timing of a passing one, beyond that", whole - first, "s", 3.0)


def _descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


def _resident_mb() -> float:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6


def bench_endurance(b: Bench) -> Iterator[Row]:
    judge, source = _softmax_judge(64, 64)
    with judge:
        for _ in range(50):
            judge.run(source, name="rows.c")
        fds, memory = _descriptors(), _resident_mb()
        for _ in range(250 if b.quick else 1000):
            assert judge.run(source, name="rows.c")["verdict"] == "pass"
        yield Row("memory grown over 1,000 Candidates", max(0.0, _resident_mb() - memory), "MB", 4.0)
        yield Row("descriptors grown over 1,000 Candidates", float(_descriptors() - fds), "", 0.0)


def bench_mixed(b: Bench) -> Iterator[Row]:
    found = mixed.measure(250 if b.quick else 1000)
    wrong = found.wrong + found.late
    yield Row("mixed Candidates with another verdict than theirs", len(wrong), "", 0.0, note="; ".join(wrong[:3]))
    yield Row("memory grown over mixed Candidates", max(0.0, found.memory_mb), "MB", 4.0)
    yield Row("descriptors grown over mixed Candidates", found.descriptors, "", 0.0)
    yield Row("workers left by mixed Candidates", found.workers, "", 0.0)
    yield Row("a hang beyond its limit of 1 s, the worst, compile included", found.overtime, "s", 1.0)
    yield Row("mixed Candidates a second", found.judged / found.seconds, "", note=f"{found.judged}, a tenth of them bad")


# ---- kernels ----


def _tune_exact(b: Bench, trial: Any, seconds: float) -> None:
    """Searches over one Case as `kgen tune` does, and puts the winner into the run's own registry."""
    import torch

    from kgen import _libkgen, spread
    from kgen._paths import kernels_dir
    from kgen.judge import Judge
    from kgen.task import canonical_contract

    contract = canonical_contract(trial.case["op"]).decode()
    key, name = _libkgen.case_key(contract, trial.case)
    run = b.folder / f"run-{name}"
    with Judge(contract) as judge:
        spread.add(judge, json.loads(contract), trial)
        options = {"budget_ms": int(seconds * 1000), "kernels": str(kernels_dir())}
        found = _libkgen.search(judge.handle, run, options, lambda _: None)
    winner = found["winners"][0]
    record = {**winner["record"], "source": "kernel.c", "tunables": winner["tunables"]}
    record["proposer"] = {"name": "builtin", "template": winner["source"]}
    record["environment"]["torch"] = torch.__version__
    _libkgen.registry_promote(b.tuned, contract, None, Path(winner["file"]).read_bytes(), record, [key])


def bench_attention(b: Bench) -> Iterator[Row]:
    import torch

    import kgen
    import measure

    names = ("eager", "torch.compile", "FlexAttention")
    trials = {n: measure.attention_case(*mods) for n, mods in measure.VARIANTS.items()}
    for trial in trials.values():
        _tune_exact(b, trial, 10.0 if b.quick else 30.0)
    for name, mods in measure.VARIANTS.items():
        case, x = trials[name].case, measure.attention_inputs(*mods)
        with torch.inference_mode():
            shipped = measure.served_attention(case, x)
            yield from _attention_rows(b, name, case, x, names, shipped)
    kgen.unload(b.tuned)


def _attention_rows(b: Bench, name: str, case: Any, x: Any, names: Any, served: Callable[[], object]) -> Iterator[Row]:
    import kgen
    import measure

    contenders, left = measure.torch_contenders(case, x, names)
    for who, why in left.items():
        print(f"  {name}: {who} left out: {why}", file=sys.stderr)
    contenders["SDPA causal"] = measure.sdpa_causal(x)
    kgen.unload(b.tuned) if _is_open(b.tuned) else None
    contenders["kgen, shipped"] = served
    shipped = measure.medians(measure.interleaved({k: contenders[k] for k in ("kgen, shipped", "SDPA causal")}, b.rounds(21)))
    kgen.load(b.tuned)
    contenders["kgen"] = contenders.pop("kgen, shipped")
    decision = kgen.why(served).decisions[0]
    assert decision.kind == "exact", str(decision)
    times = measure.interleaved(contenders, b.rounds(31))
    middle = measure.medians(times)
    best = min((n for n in names if n in middle), key=lambda n: middle[n])
    note = ", ".join(f"{n} {middle[n]:.2f} ms" for n in middle)
    yield Row(f"attention {name}, over {best}", measure.paired_ratio(times[best], times["kgen"]), "x", 1.4, True, note)
    over = measure.paired_ratio(times["kgen"], times["SDPA causal"])
    yield Row(f"attention {name}, time of causal SDPA", over, "x", None, False, "aim 1.2")
    yield Row(f"attention {name}, shipped Kernel", shipped["kgen, shipped"], "ms", None, False, f"SDPA causal {shipped['SDPA causal']:.2f} ms")


def _is_open(registry: Path) -> bool:
    import kgen

    return any(Path(r["path"]) == registry.resolve() for r in kgen.registry())


def bench_softmax(b: Bench) -> Iterator[Row]:
    import torch

    import kgen
    import measure

    n = 4096
    trial_x, out = torch.randn(n, n), torch.empty(n, n)
    judge, source = _softmax_judge(n, n)
    worker, theirs, copies = [], [], []
    with judge, torch.inference_mode():
        for _ in range(3 if b.quick else 7):
            record = judge.run(source, name="rows.c", reps=11)
            assert record["verdict"] == "pass", record["message"]
            worker.append(record["cases"][0]["time_ns"]["median"] / 1e6)
            times = measure.interleaved(
                {"softmax": lambda: torch.softmax(trial_x, 1, out=out), "copy": lambda: out.copy_(trial_x)}, 11
            )
            theirs.append(statistics.median(times["softmax"]))
            copies.append(statistics.median(times["copy"]))
    ratio = statistics.median(a / w for a, w in zip(theirs, worker, strict=True))
    note = f"worker {statistics.median(worker):.2f} ms, torch {statistics.median(theirs):.2f} ms, copy {statistics.median(copies):.2f} ms"
    yield Row("softmax 4096x4096 in the worker, over torch.softmax(out=)", ratio, "x", 1.4, True, note)
    share = statistics.median(c / w for c, w in zip(copies, worker, strict=True))
    yield Row("softmax 4096x4096 in the worker, share of a copy's rate", share, "x", None, True, "aim 0.85")
    with torch.inference_mode():
        assert kgen.why("softmax", trial_x, 1).fallbacks == 0
        served = measure.interleaved(
            {"kgen": lambda: torch.ops.kgen.softmax(trial_x, 1), "torch": lambda: torch.softmax(trial_x, 1)}, b.rounds(41)
        )
    middle = measure.medians(served)
    note = f"kgen {middle['kgen']:.2f} ms, torch {middle['torch']:.2f} ms"
    yield Row("softmax 4096x4096 as served, over torch.softmax", measure.paired_ratio(served["torch"], served["kgen"]), "x", 1.1, True, note)


PARTS: dict[str, Callable[[Bench], Iterator[Row]]] = {
    "import": bench_import,
    "index": bench_index,
    "calls": bench_calls,
    "verdict": bench_verdict,
    "endurance": bench_endurance,
    "mixed": bench_mixed,
    "softmax": bench_softmax,
    "attention": bench_attention,
}


# ---- the table ----


def machine() -> dict[str, Any]:
    import torch

    model = "CPU"
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            model = line.split(":", 1)[1].strip()
            break
    return {
        "cpu": model, "cpus": len(os.sched_getaffinity(0)), "torch": torch.__version__, "threads": torch.get_num_threads(),
        "python": platform.python_version(), "load": round(os.getloadavg()[0], 2),
    }  # fmt: skip


def show(row: Row) -> str:
    sign = "" if row.limit is None else f"{'>=' if row.least else '<='} {row.limit:g} {row.unit}".strip()
    mark = "" if row.limit is None else "ok" if row.held else "MISSED"
    return f"{row.name:<62} {row.value:>9.3f} {row.unit:<3} {sign:<10} {mark:<6} {row.note}".rstrip()


def main() -> int:
    p = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    p.add_argument("--write", action="store_true", help="keep the results in tests/bench/")
    p.add_argument("--only", action="append", choices=list(PARTS))
    p.add_argument("--quick", action="store_true", help="fewer rounds")
    args = p.parse_args()
    with tempfile.TemporaryDirectory(prefix="kgen-bench-") as folder:
        os.environ["KGEN_CACHE"] = str(Path(folder) / "cache")
        os.environ["XDG_DATA_HOME"] = str(Path(folder) / "data")
        os.environ.pop("KGEN_REGISTRY", None)
        about = machine()
        print(f"{about['cpu']}, {about['cpus']} CPUs, torch {about['torch']}, load {about['load']}")
        b, rows = Bench(Path(folder), args.quick), []
        for name in args.only or PARTS:
            for row in PARTS[name](b):
                rows.append(row)
                print(show(row), flush=True)
    if args.write:
        name = re.sub(r"[^a-z0-9]+", "-", f"{about['cpu']} {about['cpus']}".lower()).strip("-")
        path = HERE / f"results-{name}.json"
        body = {"format": 1, "machine": about, "rows": [{**asdict(r), "held": r.held} for r in rows]}
        path.write_text(json.dumps(body, indent=1) + "\n")
        print(path)
    missed = [r for r in rows if not r.held]
    print(f"{len(rows) - len(missed)} of {len(rows)} held" + (f"; missed: {', '.join(r.name for r in missed)}" if missed else ""))
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
