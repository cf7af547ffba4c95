"""Cases to judge Kernels on that no model was captured for: sizes over a dynamic range, Programs by name and at random,
and Cases rebuilt from what a registry knows (a pin's key, or the recipe that a Record carries).

A Case here comes with the bytes of its values files in memory, as a Task folder has them on disk.
"""

from __future__ import annotations

import base64
import json
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from . import devices, epilogues, keydims, programs, sets
from . import reference as references
from .distributions import names_for
from .errors import BadInput
from .judge import Judge
from .program import dtype_name
from .reference import Reference
from .sets import CAPTURED_SETS, secret_seed
from .task import DTYPES, Task, _bytes_of
from .trace import trace

# Values files up to this many bytes travel in a Record; larger ones become a range or a distribution.
INLINE_BYTES = 4096
# Cases with more elements than this are judged on FEW distributions.
LARGE = 1 << 20
FEW = ("captured", "offset")
# Elements of one Case that is made up from a range.
MOST = 1 << 22

Key = dict[str, Any]
Case = dict[str, Any]


@dataclass(frozen=True)
class MemoryTask(Task):
    """A Task that lies in no folder; blobs holds its values files."""

    blobs: dict[str, bytes] = field(default_factory=dict)

    def blob(self, name: str) -> bytes:
        try:
            return self.blobs[name]
        except KeyError:
            raise BadInput(f"{self.folder}: the Case names {name}, which is not there") from None


@dataclass(frozen=True)
class Trial:
    """A Case with its values files. label says what it is for."""

    label: str
    case: Case
    blobs: dict[str, bytes] = field(default_factory=dict)

    @property
    def elements(self) -> int:
        tensors_ = [v for v in self.case["args"].values() if isinstance(v, dict)]
        return sum(math.prod(t["shape"]) for t in tensors_)

    @property
    def gpu(self) -> bool:
        return self.case["device"] == "cuda"

    def on(self, device: str) -> Trial:
        """The same for "cpu" or "cuda"."""
        return replace(self, case={**self.case, "device": device})

    def task(self, contract: dict[str, Any], folder: Path = Path("spread")) -> MemoryTask:
        return MemoryTask(folder, {"title": self.label}, contract, (self.case,), self.blobs)


# ---- tensors ----


def row_major(shape: Sequence[int]) -> list[int]:
    stride, step = [], 1
    for n in reversed(shape):
        stride.append(step)
        step *= max(1, n)
    return stride[::-1]


def laid_out(shape: Sequence[int], layout: str) -> list[int]:
    """Strides of a layout class: c contiguous, i innermost 1 with gaps, s with gaps throughout."""
    if layout == "c" or not shape:
        return row_major(shape)
    inner = 1 if layout == "i" else 2
    padded = [*shape[:-1], shape[-1] * inner + (8 if len(shape) > 1 else 0)]
    return [*row_major(padded)[:-1], inner]


def entry(dtype: str, shape: Sequence[int], stride: Sequence[int] | None = None, align: int = 64, **fill: Any) -> Case:
    """A tensor of a Case."""
    made = fill or {"kind": "normal", "mean": 0.0, "std": 1.0}
    return {
        "dtype": dtype, "shape": list(shape), "stride": list(stride if stride is not None else row_major(shape)),
        "align": align, "fill": made,
    }  # fmt: skip


def captured_entries(tensors_: Sequence[Tensor]) -> tuple[list[Case], dict[str, bytes]]:
    """A Program's captured tensors as entries of a Case, their values beside it."""
    entries, blobs = [], {}
    for i, t in enumerate(tensors_):
        name = f"captured{i}.bin"
        blobs[name] = _bytes_of(t)
        entries.append(entry(dtype_name(t.dtype), t.shape, t.stride(), kind="values", file=name))
    return entries, blobs


def case_of(op: str, args: dict[str, Any], precision: str = "native") -> Case:
    return {"format": 1, "op": op, "device": "cpu", "precision": precision, "args": args, "count": 1}


# ---- softmax ----


def softmax_trial(dtype: str, m: int, n: int, k: int = 1, layout: str = "c", align: int = 64) -> Trial:
    shape = [m, n] if k == 1 else [m, n, k]
    x = entry(dtype, shape, laid_out(shape, layout), align)
    return Trial(f"softmax {dtype} M={m} N={n} K={k}", case_of("softmax", {"input": x, "dim": 1}))


# ---- norms ----

# Of norms, which of weight and bias are there; rms_norm has no bias.
AFFINE = {
    "layer_norm": (("weight", "bias"), ("weight",), (), ("bias",)),
    "rms_norm": (("weight",), ()),
}  # fmt: skip


def norm_trial(op: str, dtype: str, m: int, n: int, affine: Sequence[str] = ("weight",), align: int = 64) -> Trial:
    """layer_norm or rms_norm of M rows of N; a weight is about 1, as trained ones are."""
    args: dict[str, Any] = {"input": entry(dtype, [m, n], align=align), "normalized_shape": [n]}
    for name, mean in (("weight", 1.0), ("bias", 0.0))[: 2 if op == "layer_norm" else 1]:
        args[name] = entry(dtype, [n], align=align, kind="normal", mean=mean, std=0.5) if name in affine else None
    args["eps"] = 1e-5
    return Trial(f"{op} {dtype} M={m} N={n} {'+'.join(affine) or 'plain'}", case_of(op, args))


def _affine_of(key: Key) -> list[str]:
    """Which of weight and bias the calls of a pin have."""
    return [name for name, dtype in zip(("weight", "bias"), key["dtypes"][1:]) if dtype is not None]


# ---- attention ----


@dataclass(frozen=True)
class Sizes:
    """The dims of an attention call."""

    b: int
    hq: int
    sq: int
    d: int
    hkv: int
    sk: int
    dv: int

    @staticmethod
    def of(dims: dict[str, int]) -> Sizes:
        return Sizes(*(dims[n] for n in ("B", "HQ", "SQ", "D", "HKV", "SK", "DV")))

    @property
    def extent(self) -> programs.Extent:
        return programs.Extent(self.b, self.hq, self.sq, self.sk)

    def __str__(self) -> str:
        return f"B={self.b} HQ={self.hq} SQ={self.sq} D={self.d} HKV={self.hkv} SK={self.sk} DV={self.dv}"


def _heads_inside(shape: Sequence[int]) -> list[int]:
    """Strides of (B, H, S, D) over memory that lies as (B, S, H, D), which models make by transposing."""
    b, h, s, d = shape
    return [s * h * d, d, h * d, 1]


def attention_trial(
    dtype: str, at: Sizes, program: tuple[str, Sequence[Tensor], Sequence[float]] | None = None, label: str = "dense",
    layout: str = "c", align: int = 64, skip: Sequence[str] = (),
) -> Trial:  # fmt: skip
    """program: text, captured tensors, scalars. layout: c, i, or h (heads inside, as transposed projections are). skip: lse
    where it is not wanted."""
    args: dict[str, Any] = {}
    for name, shape in (
        ("query", (at.b, at.hq, at.sq, at.d)), ("key", (at.b, at.hkv, at.sk, at.d)), ("value", (at.b, at.hkv, at.sk, at.dv)),
    ):  # fmt: skip
        stride = _heads_inside(shape) if layout == "h" else laid_out(shape, layout)
        args[name] = entry(dtype, shape, stride, align)
    args |= {"scale": None, "enable_gqa": at.hq != at.hkv}
    case, blobs = case_of("attention", args), {}
    if program is not None and program[0]:
        entries, blobs = captured_entries(program[1])
        case["program"] = {"text": program[0], "captured": entries, "scalars": [float(s) for s in program[2]]}
    if skip:
        case["skip"] = list(skip)
    return Trial(f"attention {dtype} {at} {label}", case, blobs)


def named_programs(at: programs.Extent) -> Iterator[tuple[str, tuple[str, list[Tensor], list[float]]]]:
    """The variants that people write, each also with the causal mask on top."""
    seen = set()
    for name, make in programs.NAMED.items():
        score, mask = make(at)
        for causal in (False, True):
            t = trace(score, mask, causal=causal)
            if t.text and t.text not in seen:
                seen.add(t.text)
                yield f"{name}{'+causal' if causal else ''}", (t.text, t.captured, t.scalars)


def random_programs(count: int, at: programs.Extent, first: int = 0) -> Iterator[tuple[str, tuple[str, list[Tensor], list[float]]]]:
    """Programs of seeds first, first + 1, ..."""
    for seed in range(first, first + count):
        t = programs.random_program(seed, at)
        yield f"random {seed}", (t.text, t.captured, t.scalars)


# ---- from a pin ----


def is_dynamic(key: Key) -> bool:
    return key.get("program") == "*" or any(isinstance(v, dict) for v in key["dims"].values())


def _sizes_inside(dims: dict[str, Any], want: dict[str, int]) -> Sizes | None:
    """The sizes in a pin's range that are nearest to these; None where heads of keys cannot divide heads."""
    at = {n: keydims.inside(v, want[n]) for n, v in dims.items()}
    if not isinstance(dims["HQ"], dict) or at["HQ"] % at["HKV"]:
        at["HKV"] = keydims.inside(dims["HKV"], math.gcd(at["HQ"], at["HKV"]))
    return Sizes.of(at) if at["HKV"] and at["HQ"] % at["HKV"] == 0 else None


def _attention_sizes(dims: dict[str, Any]) -> list[Sizes]:
    """A few sizes in the range: the smallest, a tile's edges, a prime, grouped heads. Heads of keys divide heads."""
    wanted = [
        {"B": 1, "HQ": 1, "SQ": 1, "D": 1, "HKV": 1, "SK": 1, "DV": 1},
        {"B": 2, "HQ": 4, "SQ": 64, "D": 64, "HKV": 4, "SK": 64, "DV": 64},
        {"B": 1, "HQ": 4, "SQ": 65, "D": 40, "HKV": 2, "SK": 63, "DV": 40},
        {"B": 1, "HQ": 2, "SQ": 131, "D": 128, "HKV": 2, "SK": 257, "DV": 96},
    ]  # fmt: skip
    found = []
    for want in wanted:
        at = _sizes_inside(dims, want)
        if at is not None and at not in found:
            found.append(at)
    return found


def _softmax_sizes(dims: dict[str, Any]) -> list[tuple[int, int, int]]:
    wanted = [(1, 1, 1), (3, 17, 5), (7, 1024, 33), (31, 4097, 128), (1021, 64, 2)]
    made = [tuple(keydims.inside(dims[n], w) for n, w in zip("MNK", want, strict=True)) for want in wanted]
    kept = [m for i, m in enumerate(made) if m not in made[:i]]
    small = [m for m in kept if math.prod(m) <= MOST]
    return small or [min(kept, key=math.prod)]


def _norm_sizes(dims: dict[str, Any]) -> list[tuple[int, int]]:
    wanted = [(1, 1), (3, 17), (7, 1024), (31, 4097), (1021, 64)]
    made = dict.fromkeys((keydims.inside(dims["M"], m), keydims.inside(dims["N"], n)) for m, n in wanted)
    return [m for m in made if math.prod(m) <= MOST] or [min(made, key=math.prod)]


def _spelled(op: str) -> bool:
    return op in ("softmax", "attention", *AFFINE, *epilogues.CHOICES)


def exact_trial(key: Key) -> Trial:
    """The Case of an exact pin, from its key alone: plain inputs. BadInput where the key does not say enough."""
    if not _spelled(key["op"]):
        raise BadInput(f"a Case of {key['op']} cannot be made up from its pin: neither Record nor Task has it")
    if key.get("program"):
        raise BadInput("its pin has a Program's hash, and no Record or Task has the Program")
    dims, dtype, layout = key["dims"], key["dtypes"][0], key["layout"][0]
    if key["op"] == "softmax":
        made = softmax_trial(dtype, dims["M"], dims["N"], dims["K"], layout)
    elif key["op"] in AFFINE:
        made = norm_trial(key["op"], dtype, dims["M"], dims["N"], _affine_of(key))
    elif key["op"] in epilogues.CHOICES:
        cases = epilogues.of(key["op"])
        made = cases.of_key(key, cases.At.of(dims))
    else:
        made = attention_trial(dtype, Sizes.of(dims), layout=layout)
    return _like(key, made)


def range_trials(key: Key) -> list[Trial]:
    """Cases over the range of a dynamic pin; with the Program "*", the variants by name at one size."""
    if not _spelled(key["op"]):
        raise BadInput(f"Cases of {key['op']} cannot be made up from a range")
    dims, dtype, layout = key["dims"], key["dtypes"][0], key["layout"][0]
    if key["op"] == "softmax":
        return [_like(key, softmax_trial(dtype, m, n, k, layout)) for m, n, k in _softmax_sizes(dims)]
    if key["op"] in AFFINE:
        return [_like(key, norm_trial(key["op"], dtype, m, n, _affine_of(key))) for m, n in _norm_sizes(dims)]
    if key["op"] in epilogues.CHOICES:
        return [_like(key, t) for t in epilogues.of(key["op"]).range_trials(key)]
    sizes = _attention_sizes(dims)
    if key.get("program") is None:
        return [_like(key, attention_trial(dtype, at, layout=layout)) for at in sizes]
    at = sizes[min(2, len(sizes) - 1)]
    return [_like(key, attention_trial(dtype, at, p, name, layout)) for name, p in named_programs(at.extent)]


# What is timed of a range, as far as it holds them: many rows, columns, one long row.
_TIMED_SOFTMAX = ((1024, 4096, 1), (64, 1024, 64), (1, 131072, 1))
_TIMED_NORM = ((1024, 4096), (16, 1 << 18))
# Prefill and one token of a batch, and the Program that stands for any.
_TIMED_ATTENTION = (
    {"B": 1, "HQ": 8, "SQ": 1024, "D": 64, "HKV": 8, "SK": 1024, "DV": 64},
    {"B": 1, "HQ": 32, "SQ": 1, "D": 128, "HKV": 8, "SK": 4096, "DV": 128},
)
_TIMED_PROGRAM = "alibi"


def timing_trials(key: Key) -> list[Trial]:
    """Cases that a dynamic pin may be timed on, best first: a Kernel takes the first that its plan is for."""
    if not _spelled(key["op"]):
        raise BadInput(f"Cases of {key['op']} cannot be made up from a range")
    dims, dtype, layout = key["dims"], key["dtypes"][0], key["layout"][0]
    if key["op"] == "softmax":
        sizes = [tuple(keydims.inside(dims[n], w) for n, w in zip("MNK", want, strict=True)) for want in _TIMED_SOFTMAX]
        return [_like(key, softmax_trial(dtype, *s, layout)) for s in dict.fromkeys(sizes)]
    if key["op"] in AFFINE:
        rows = dict.fromkeys((keydims.inside(dims["M"], m), keydims.inside(dims["N"], n)) for m, n in _TIMED_NORM)
        return [_like(key, norm_trial(key["op"], dtype, m, n, _affine_of(key))) for m, n in rows]
    if key["op"] in epilogues.CHOICES:
        return [_like(key, t) for t in epilogues.of(key["op"]).timing_trials(key)]
    found = dict.fromkeys(filter(None, (_sizes_inside(dims, want) for want in _TIMED_ATTENTION)))
    if key.get("program") is None:
        return [_like(key, attention_trial(dtype, at, layout=layout)) for at in found]
    made = []
    for at in found:
        program = next(p for name, p in named_programs(at.extent) if name == _TIMED_PROGRAM)
        made.append(_like(key, attention_trial(dtype, at, program, _TIMED_PROGRAM, layout)))
    return made


def _like(key: Key, made: Trial) -> Trial:
    """The Trial on the device and in the precision class of a pin, for the outputs that it was judged on."""
    made = made.on(key.get("device", "cpu"))
    skip = {"skip": key["skip"]} if "skip" in key else {}
    return replace(made, case={**made.case, "precision": key.get("precision", "native"), **skip})


# ---- recipes: Cases that a Record carries ----


def _inlined(e: Case, data: Callable[[str], bytes]) -> Case:
    fill = e["fill"]
    if fill["kind"] != "values":
        return e
    raw = data(fill["file"])
    if len(raw) <= INLINE_BYTES:
        return {**e, "fill": {"kind": "inline", "base64": base64.b64encode(raw).decode()}}
    dtype = DTYPES[e["dtype"]]
    values = torch.frombuffer(bytearray(raw), dtype=torch.uint8).view(dtype)
    if dtype.is_floating_point:
        finite = values.double()
        finite = finite[torch.isfinite(finite)]
        mean, std = (float(finite.mean()), float(finite.std(correction=0))) if finite.numel() else (0.0, 1.0)
        return {**e, "fill": {"kind": "normal", "mean": round(mean, 6), "std": max(round(std, 6), 1e-3)}}
    low, high = int(values.min()), int(values.max())
    return {**e, "fill": {"kind": "integers", "low": low, "high": high}}


def recipe(task: Task, index: int) -> Case:
    """A Case that needs no file beside it: small values inline, large ones as what they were drawn from."""
    case = dict(task.cases[index])
    case.pop("count", None)
    case["args"] = {n: _inlined(v, task.blob) if isinstance(v, dict) else v for n, v in case["args"].items()}
    if case.get("program"):
        captured = [_inlined(e, task.blob) for e in case["program"]["captured"]]
        case["program"] = {**case["program"], "captured": captured}
    return case


def attach(record: dict[str, Any], task: Task, keys: dict[str, int]) -> dict[str, Any]:
    """The Record with the recipes of its Cases, so that it can be judged and built again where the Task is not.
    keys: index in the Task by the Case's hash."""
    cases = [
        {**c, "recipe": recipe(task, keys[c["case"]])} if c.get("case") in keys else c for c in record.get("cases", [])
    ]
    return {**record, "cases": cases}


def from_recipe(made: Case, label: str) -> Trial:
    """The Trial of a recipe."""
    blobs: dict[str, bytes] = {}

    def outlined(e: Any, name: str) -> Any:
        if not isinstance(e, dict) or e.get("fill", {}).get("kind") != "inline":
            return e
        blobs[name] = base64.b64decode(e["fill"]["base64"])
        return {**e, "fill": {"kind": "values", "file": name}}

    case = json.loads(json.dumps(made))
    case["count"] = 1
    case["args"] = {n: outlined(v, f"{n}.bin") for n, v in case["args"].items()}
    if case.get("program"):
        entries = case["program"]["captured"]
        case["program"]["captured"] = [outlined(e, f"captured{i}.bin") for i, e in enumerate(entries)]
    return Trial(label, case, blobs)


# ---- judging ----


def _sets(reference: Reference, task: Task, trial: Trial) -> Iterator[tuple[str, references.Drawn, references.Expected]]:
    """Captured sets first, then one for each distribution that torch itself bears; at least two sets."""
    base, found = None, 0
    names = (*FEW, "captured") if trial.elements > LARGE else ("captured",) * (CAPTURED_SETS - 1) + names_for(task.op)
    for name in names:
        if trial.elements > LARGE and found >= len(FEW):
            break
        drawn = reference.draw(trial.case, secret_seed(), name)
        e = reference.expected(drawn)
        base = base or e
        if name == "captured" or not reference.unusable(e, base, drawn, name):
            found += 1
            yield name, drawn, e


def add(judge: Judge, contract: dict[str, Any], trial: Trial, folder: Path = Path("spread")) -> int:
    """Adds a Trial's Case and its sets to a judge; its number."""
    task = trial.task(contract, folder)
    reference = Reference.open(task, judge.device.index or 0)
    index = judge.add_case(trial.case)
    if trial.elements > LARGE:  # what a call may take depends on what torch takes
        drawn = reference.draw(trial.case, secret_seed())
        devices.synchronize(judge.device)
        started = time.perf_counter_ns()
        with torch.no_grad():
            reference.run(drawn)
        devices.synchronize(judge.device)
        judge.set_limits(index, slowest_baseline_ns=float(time.perf_counter_ns() - started))
    for name, drawn, e in _sets(reference, task, trial):
        sets.add(judge, task, index, name, drawn, e)
    return index


@dataclass
class Evidence:
    """What came of judging a Candidate on Trials. record: the Record of the last group, to take the rest from."""

    verdict: str = "pass"
    message: str = ""
    cases: int = 0
    sets: int = 0
    skipped: dict[str, str] = field(default_factory=dict)  # the plan is not for them: label, why
    worst: dict[str, float] = field(default_factory=dict)
    allclose: bool = True
    programs: list[str] = field(default_factory=list)
    times: list[dict[str, Any]] = field(default_factory=list)
    record: dict[str, Any] = field(default_factory=dict)

    def take(self, record: dict[str, Any], trials: Sequence[Trial], hashes: Sequence[str]) -> None:
        """Adds what one judge found."""
        labels = dict(zip(hashes, (t.label for t in trials), strict=True))
        skipped = record.get("details", {}).get("skipped", [])
        for skip in skipped:
            self.skipped[labels.get(skip["case"], skip["case"])] = skip["why"]
        if len(skipped) == len(trials):
            return  # the plan may be for others
        self.record = record
        for c in record["cases"]:
            self.cases += 1
            self.sets += c.get("sets", 0)
            self.allclose = self.allclose and c.get("allclose", True)
            for name in ("norm_err", "max_err", "torch_norm_err", "torch_max_err"):
                self.worst[name] = max(self.worst.get(name, 0.0), c.get(name) or 0.0)
            if "time_ns" in c:
                self.times.append(c)
        self.programs += [p for p in record.get("programs", []) if p not in self.programs]
        if record["verdict"] != "pass":
            failed = [c["case"] for c in record["cases"] if c["verdict"] != "pass"]
            where = labels.get(failed[0], failed[0]) if failed else ""
            self.verdict, self.message = record["verdict"], f"{where}: {record['message']}" if where else record["message"]


def _groups(trials: Sequence[Trial], elements: int = 1 << 22, most: int = 24) -> Iterator[list[Trial]]:
    """Trials that fit in memory together, with their sets and oracles."""
    group: list[Trial] = []
    held = 0
    for t in trials:
        if group and (held + t.elements > elements or len(group) >= most):
            yield group
            group, held = [], 0
        group.append(t)
        held += t.elements
    if group:
        yield group


def judge(
    contract: str, source: bytes, name: str, tunables: dict[str, int] | None, trials: Sequence[Trial], *,
    arch: str | None = None, any_size: bool = True, reps: int = 0, threads: int | None = None,
    folder: Path = Path("spread"), say: Callable[[str], None] = lambda _: None, index: int = 0,
) -> Evidence:  # fmt: skip
    """Judges a Candidate on Trials in groups that fit in memory; ends with the first that fails. arch: of a CPU; a GPU runs
    what is built for itself. index: the GPU of CUDA Cases."""
    about, found, done = json.loads(contract), Evidence(), 0
    for group in _groups(trials):
        device = devices.of_case(group[0].case, index)
        built_for = arch if device.type == "cpu" else None
        with Judge(contract, arch=built_for, threads=threads, device=device) as j, devices.room_for(device, name):
            hashes = [j.describe(add(j, about, t, folder))["hash"] for t in group]
            record = j.run(source, name=name, tunables=tunables, any_size=any_size, reps=reps)
        done += len(group)
        found.take(record, group, hashes)
        say(f"{done}/{len(trials)} Cases, {found.verdict}")
        if found.verdict != "pass":
            break
    if trials and all(t.label in found.skipped for t in trials):
        found.verdict, found.record, found.message = record["verdict"], record, record["message"]
    return found
