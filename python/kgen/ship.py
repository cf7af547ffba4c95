"""Makes the registry that comes with kgen, generated/, from the house kernels in kernels/. A tool for kgen's developers:

    python -m kgen.ship [--registry generated] [--arch x86-64-v3] [--only attention/flash.c] [--programs 100] [--again] [--jobs 16]
                        [--most 14] [--seconds 400] [--faster] [--untimed]

Each house kernel is built for any size, as a dynamic pin serves it, and judged for each dtype on sizes over its range
(1, primes, a tile's edges and their neighbours, the longest), attention also with the variants by name and with random
Programs. A pin's range is what was judged, no more. Kernels for x86-64-v3 are judged on any machine that is at least
that; those for a GPU on the GPU at hand, which may be newer (kernels for sm_80 on an sm_90: the same source, and the
Record says where). What passed is promoted; what is in the registry already with the same id is left alone unless --again is given.
Nothing is timed against torch here: that is the gate's, for Cases of a real model. With --jobs as many processes
compile and judge; what is timed is timed afterwards, one Case after the other. --most thins the sizes and the Programs of
each dtype to about so many (each dim's least and most stay), --seconds ends the judging: what is whole by then is promoted,
and exit code 4 says that some are left for another call. --faster calls kernels of rows beside torch and narrows their pins
to the lengths where they are no slower (ship_ranges). --untimed leaves the times out of the Records, which say nothing of torch.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import functools
import hashlib
import itertools
import json
import math
import multiprocessing
import os
import sys
import tempfile
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures import TimeoutError as NotYet
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from . import _libkgen, devices, keydims, serving, ship_ranges, spread
from ._paths import kernels_dir, shipped_registry
from .errors import BadInput, KgenError
from .judge import Judge
from .ship_house import ARCHS, GPU_ARCHS, GPU_HOUSE, HOUSE, House, Variant
from .spread import Evidence, Trial
from .task import canonical_contract

PROGRAMS = 100
# Processes that judge beside each other on one GPU, and the exit code that says that some are left.
BESIDE, LEFT = 4, 4
# What a pin may be for: calls without a Program, with is_causal's alone, with any, with any but without the log-sum-exp.
PLAIN, CAUSAL, ANY, OUTPUT = "plain", "causal", "with Programs", "with Programs, output alone"
# Of each variant the least and the most elements of a row; None: no row.
Ranges = dict[Variant, "tuple[int, int] | None"]


def judged_key(contract: str, trials: Sequence[Trial], skipped: Collection[str], any_program: bool) -> dict[str, Any]:
    """The key of a dynamic pin: the least and the most of each dim over what was judged."""
    keys = [_libkgen.case_key(contract, t.case)[0] for t in trials if t.label not in skipped]
    dims: dict[str, Any] = {}
    for name in keys[0]["dims"]:
        dims[name] = keydims.of(min(k["dims"][name] for k in keys), max(k["dims"][name] for k in keys))
    layouts = [max(k["layout"][i] for k in keys) for i in range(len(keys[0]["layout"]))]  # "i" is wider than "c"
    return {**keys[0], "layout": layouts, "program": "*" if any_program else keys[0]["program"], "dims": dims}


def narrowed(key: dict[str, Any], row_bytes: tuple[int, int] | None) -> dict[str, Any]:
    """The key for rows of so many bytes alone: for others another choice of tunables is faster, or torch is."""
    n = key["dims"].get("N")
    if row_bytes is None or not isinstance(n, dict):
        return key
    size = {"float32": 4}.get(key["dtypes"][0], 2)
    low, high = max(n["min"], row_bytes[0] // size + 1), min(n["max"], row_bytes[1] // size)
    if low > high:
        raise KgenError(f"rows of {n['min']} to {n['max']} were judged, none of {row_bytes[0]} to {row_bytes[1]} bytes")
    return ship_ranges.within(key, (low, high))


def at_least(key: dict[str, Any], least: dict[str, int]) -> dict[str, Any]:
    """The key for calls of at least these sizes: torch is faster at smaller ones."""
    dims = dict(key["dims"])
    for name, n in least.items():
        low, high = keydims.ends(dims[name])
        if high < n:
            raise KgenError(f"{name} of at most {high} was judged, none of {n}")
        dims[name] = keydims.of(max(low, n), high)
    return {**key, "dims": dims}


def key_hash(key: dict[str, Any]) -> str:
    """The name of a key's pin."""
    return hashlib.sha256(json.dumps(key, sort_keys=True, separators=(",", ":")).encode()).hexdigest()[:32]


def _entry(key: dict[str, Any], found: Evidence, random_count: int) -> dict[str, Any]:
    """What a Record says of one pin: the worst over its Cases."""
    return {
        "case": key_hash(key), "verdict": found.verdict, **found.worst, "allclose": found.allclose, "sets": found.sets,
        "cases": found.cases, "programs": len(found.programs), "random_programs": random_count,
    }  # fmt: skip


class Shipping:
    """One house kernel for one architecture."""

    def __init__(
        self, house: House, arch: str, registry: Path, programs: int, say: Callable[[str], None], index: int = 0,
        most: int = 0,
    ):  # fmt: skip
        """index: the GPU that a kernel for GPUs is judged on. most: about so many plain Cases, and three times as many with
        Programs, of each variant; 0: all."""
        self.house, self.arch, self.registry, self.count, self.say = house, arch, registry, programs, say
        self.index, self.most = index, most
        self.cases: dict[tuple[str, Variant], list[Trial]] = {}  # drawn once: thinning binds the plan to each
        self.contract = canonical_contract(house.op).decode()
        self.source = (kernels_dir() / house.file).read_bytes()
        self.about = _libkgen.candidate_check(self.contract, self.source, house.file)
        if house.tunables is not None:
            chosen = {**self.about["tunables"], **house.tunables}
            self.about = _libkgen.candidate_check(self.contract, self.source, house.file, chosen)
        # A GPU's judge runs what its own GPU runs.
        self.judged_arch = None if house.device == "cuda" else arch

    @property
    def chosen(self) -> dict[str, int] | None:
        """The tunables, where they are not the defaults."""
        return self.about["tunables"] if self.house.tunables is not None else None

    def _fits(self, trial: Trial) -> bool:
        """Whether the plan is for a Case."""
        sms, shared = devices.limits(devices.of_case(trial.case, self.index))
        with contextlib.suppress(BadInput):
            _libkgen.candidate_unit(self.contract, trial.case, self.source, self.chosen, self.arch, sms, shared, True)
            return True
        return False

    def _thinned(self, trials: list[Trial], most: int) -> list[Trial]:
        """About so many of those that the plan is for: with the least and the most of each dim, and else evenly taken."""
        if not most or len(trials) <= most:
            return trials
        fit = [t for t in trials if self._fits(t)]
        dims = [_libkgen.case_key(self.contract, t.case)[0]["dims"] for t in fit]
        ends = {pick(range(len(fit)), key=lambda i, n=n: dims[i][n]) for n in dims[0] for pick in (min, max)} if fit else set()
        evenly = {i * len(fit) // most for i in range(most)} if len(fit) > most else set(range(len(fit)))
        return [fit[i] for i in sorted(ends | evenly)]

    def dense(self, variant: Variant) -> list[Trial]:
        """The plain Cases that a variant is judged on."""
        if ("dense", variant) not in self.cases:
            self.cases["dense", variant] = self._thinned(self.house.dense(*variant), self.most)
        return self.cases["dense", variant]

    def causal(self, variant: Variant) -> list[Trial]:
        """The same with is_causal's Program, for those that ship for it by itself."""
        if ("causal", variant) not in self.cases:
            self.cases["causal", variant] = self._thinned(self.house.of_program(CAUSAL, variant[0]), self.most)
        return self.cases["causal", variant]

    def groups(self, variant: Variant) -> list[tuple[str, list[Trial]]]:
        """What has a pin of its own: PLAIN, CAUSAL, ANY and OUTPUT, each with what it is judged on."""
        found = [(PLAIN, self.dense)] if self.house.plain else []
        found += [(CAUSAL, self.causal)] if self.house.causal else []
        found += [(ANY, self.with_programs)] if self.house.program_at is not None else []
        found += [(OUTPUT, self.output_alone)] if self.house.output_alone else []
        return [(kind, trials(variant)) for kind, trials in found]

    def with_programs(self, variant: Variant) -> list[Trial]:
        """Those with Programs; none where the house kernel takes none."""
        if self.house.program_at is None:
            return []
        if ("programs", variant) not in self.cases:
            made = self.house.with_programs(variant[0], self.count, variant[1])
            self.cases["programs", variant] = self._thinned(made, 3 * self.most)
        return self.cases["programs", variant]

    def output_alone(self, variant: Variant) -> list[Trial]:
        """Those that another image serves when nobody wants the log-sum-exp: the Programs with a tanh, and one at all sizes."""
        if ("output", variant) not in self.cases:
            capped = self._thinned(self.house.of_program("softcap", variant[0]), self.most)
            capped += [t for t in self.with_programs(variant) if " = tanh " in t.case["program"]["text"]]
            self.cases["output", variant] = [replace(t, label=f"{t.label}, output", case={**t.case, "skip": ["lse"]}) for t in capped]
        return self.cases["output", variant]

    def shipped(self) -> bool:
        """Whether the registry has this very Candidate for this architecture already."""
        folder = self.registry / self.house.op / self.arch / self.about["id"]
        return (folder / "record.json").is_file()

    def _judge(self, trials: Sequence[Trial], what: str, reps: int = 0) -> Evidence:
        def say(text: str) -> None:
            self.say(f"{self.house.name} {self.arch} {what}: {text}")

        found = spread.judge(
            self.contract, self.source, self.house.file, self.chosen, trials, arch=self.judged_arch, reps=reps,
            threads=self.house.threads, say=say, index=self.index,
        )  # fmt: skip
        if found.verdict != "pass":
            raise KgenError(f"{self.house.name} for {self.arch}, {what}: {found.verdict}: {found.message}")
        for label, why in found.skipped.items():
            say(f"not for it: {label}: {why}")
        return found

    def compile(self, variant: Variant, start: int, n: int) -> None:
        """Fills the cache of images for some of the Trials. What does not compile is the judge's to tell."""
        trials = self._images(variant)[start : start + n]
        device = devices.of_case(trials[0].case, self.index)
        with contextlib.suppress(KgenError), Judge(self.contract, arch=self.judged_arch, device=device) as j:
            for t in trials:
                j.add_case(t.case)
            j.prepare(self.source, name=self.house.file, tunables=self.chosen, any_size=True)

    def variants(self) -> list[Variant]:
        """What has a pin of its own, or two: with Programs."""
        return list(itertools.product(self.house.dtypes, self.house.affines))

    def _images(self, variant: Variant) -> list[Trial]:
        """Trials whose images differ: one is for any size, and each Program has its own."""
        plain = [self.house.timed_trial(*variant)] if self.house.plain else []
        causal = self.causal(variant)[:1] if self.house.causal else []
        return [*plain, *causal, *self.with_programs(variant), *(self.output_alone(variant) if self.house.output_alone else [])]

    def jobs(self, n: int) -> Iterator[tuple[Variant, int, int]]:
        """The arguments of compile, n Trials at a time."""
        for variant in self.variants():
            for start in range(0, len(self._images(variant)), n):
                yield variant, start, n

    def evidence(self, variant: Variant) -> list[Evidence]:
        """What judging finds, without a time, of each of `groups`."""
        what = " ".join((variant[0], *variant[1]))
        return [self._judge(trials, what if kind == PLAIN else f"{what}, {kind}") for kind, trials in self.groups(variant)]

    def time(self, variant: Variant) -> dict[str, Any]:
        """Judges and times the Case whose time stands in the Record."""
        dtype, affine = variant
        trial = self.house.timed_trial(dtype, affine)
        found = self._judge([trial], f"{' '.join((dtype, *affine))}, timed", 21)
        times = {k: v for k, v in found.times[0].items() if k in ("time_ns", "floor_ns")} if found.times else {}
        return {**times, "timed": trial.label}

    def key(self, trials: Sequence[Trial], found: Evidence) -> dict[str, Any]:
        """Of calls without a Program, or with that of their own: what was judged, of the rows that the tunables are for."""
        return narrowed(judged_key(self.contract, trials, found.skipped, False), self.house.row_bytes)

    def faster(self, evidence: dict[Variant, list[Evidence]]) -> Ranges:
        """Of each variant the lengths of rows for which it is no slower than torch; one choice of optional tensors stands
        for the others. Empty where the house kernel is not one of rows."""
        if self.house.row_bytes is None:
            return {}
        found: Ranges = {}
        device = devices.of_case(self.dense(self.variants()[0])[0].case, self.index)
        with tempfile.TemporaryDirectory(prefix="kgen-ship-") as folder:
            registry = Path(folder)
            self.promote(evidence, {}, registry=registry)
            serving.load(registry)
            try:
                for variant in self.variants():
                    dtype, first = variant[0], (variant[0], self.house.affines[0])
                    if first in found:
                        found[variant] = found[first]
                        continue
                    ratio = ship_ranges.beside_torch(registry, self.house.op, dtype, variant[1], device)
                    ends = keydims.ends(self.key(self.dense(variant), evidence[variant][0])["dims"]["N"])
                    self.say(f"{self.house.name} {self.arch} {dtype}: torch's time over ours by length and {ship_ranges.TOTALS} elements")
                    found[variant] = ship_ranges.stretch(*ends, ratio, say=self.say)
                    self.say(f"{self.house.name} {self.arch} {dtype}: rows of {ends}, no slower than torch: {found[variant]}")
            finally:
                serving.unload(registry)
        return found

    def promote(
        self, evidence: dict[Variant, list[Evidence]], times: dict[Variant, dict[str, Any]], ranges: Ranges | None = None,
        registry: Path | None = None,
    ) -> int:  # fmt: skip
        """Promotes what has been judged and timed in each variant; the version. ranges: lengths of rows that its pins are
        for; a variant with none has no pin."""
        keys, entries, programs = [], [], []
        for variant, judged in evidence.items():
            rows = (ranges or {}).get(variant, True)
            for (kind, trials), found in zip(self.groups(variant), judged, strict=True):
                least = self.house.least or {}
                if kind in (ANY, OUTPUT):
                    key = judged_key(self.contract, trials, found.skipped, True)
                    keys.append(key if self.house.op == "attention" else at_least(key, least))
                    programs.extend([found.programs] if kind == ANY else [])
                elif rows:
                    key = at_least(self.key(trials, found), least)
                    keys.append(key if rows is True else ship_ranges.within(key, rows))
                else:
                    continue
                timed = times.get(variant, {}) if kind == PLAIN else {}
                entries.append({**_entry(keys[-1], found, sum("random" in t.label for t in trials)), **timed})
        if not keys:
            raise KgenError(f"{self.house.name} for {self.arch}: nowhere as fast as torch")
        record = next(iter(evidence.values()))[0].record
        return self._promote(registry or self.registry, record, entries, keys, _in_all(programs))

    def run(self) -> int:
        """Judges, times and promotes; the version."""
        evidence, times = {}, {}
        for variant in self.variants():
            evidence[variant], times[variant] = self.evidence(variant), self.time(variant)
        return self.promote(evidence, times)

    def _promote(
        self, registry: Path, record: dict[str, Any], entries: list[dict[str, Any]], keys: list[dict[str, Any]], programs: list[str]
    ) -> int:
        environment = {**record["environment"], "torch": torch.__version__}
        made = {
            **{k: record[k] for k in ("format", "id", "op", "version", "kind", "tunables", "verdict")}, "arch": self.arch,
            "source": f"kernel{Path(self.house.file).suffix}", "message": "", "proposer": {"name": "builtin", "template": self.house.file},
            "parent": None, "cases": entries, "programs": programs, "environment": environment,
            "created": datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ"),
        }  # fmt: skip
        return _libkgen.registry_promote(registry, self.contract, None, self.source, made, keys)


def _in_all(lists: list[list[str]]) -> list[str]:
    """Programs that were judged with every dtype: only of those is a Kernel's evidence whole."""
    return [p for p in lists[0] if all(p in other for other in lists[1:])] if lists else []


def _is_for(min_arch: str | None, arch: str) -> bool:
    """Whether a plan's min_arch lets it run on an architecture of GPUs."""
    return not min_arch or int(min_arch.removeprefix("sm_")) <= int(arch.removeprefix("sm_"))


def gpu_for(arch: str, asked: str) -> torch.device:
    """The GPU that judges kernels for an architecture: of that one or a newer one."""
    device = devices.check(devices.parse(asked))
    if device.type != "cuda" or not _is_for(arch, devices.arch(device)):
        found = devices.name_of(device) if device.type == "cpu" else f"{devices.name_of(device)}, {devices.arch(device)}"
        raise BadInput(f"--arch {arch}: needs a GPU that is at least that; --device is {found}")
    return device


@dataclass(frozen=True)
class _Asked:
    """A Shipping as another process can make it."""

    house: int
    arch: str
    programs: int
    index: int
    most: int

    @functools.cache  # noqa: B019 - a process has few of them, and each draws its Cases once
    def shipping(self) -> Shipping:
        house = (*HOUSE, *GPU_HOUSE)[self.house]
        return Shipping(house, self.arch, shipped_registry(), self.programs, lambda _: None, self.index, self.most)


def _asked(one: Shipping) -> _Asked:
    return _Asked((*HOUSE, *GPU_HOUSE).index(one.house), one.arch, one.count, one.index, one.most)


def _compile(asked: _Asked, job: tuple[Variant, int, int]) -> None:
    """In a process of its own."""
    asked.shipping().compile(*job)


def _evidence(asked: _Asked, variant: Variant) -> list[Evidence]:
    """In a process of its own."""
    return asked.shipping().evidence(variant)


def _one_core(locks: str) -> None:
    """There is a process for each core: torch's own threads would only be in each other's way. Judging without a time
    bears a few others beside it on a GPU, so that few of these processes wait for the same lock."""
    torch.set_num_threads(1)
    mine = Path(locks) / str(os.getpid() % BESIDE)
    mine.mkdir(exist_ok=True)
    os.environ["KGEN_LOCKS"] = str(mine)


Kind = tuple[int, "str | None"]


def _left(until: float) -> float | None:
    """Seconds to wait; None: without end."""
    return None if math.isinf(until) else max(0.0, until - time.monotonic())


def _judged(kinds: dict[Kind, list[Shipping]], jobs: int, seconds: float) -> Iterator[tuple[Kind, dict[Variant, list[Evidence]]]]:
    """The evidence of each kind, compiled and judged in so many processes, in order; KgenError's are told and left out. Those
    that are not whole after so many seconds do not come."""
    until = time.monotonic() + seconds
    with tempfile.TemporaryDirectory(prefix="kgen-ship-") as locks:
        pool = ProcessPoolExecutor(jobs, multiprocessing.get_context("spawn"), _one_core, (locks,))
        try:
            waiting = {}
            for kind, of in kinds.items():
                for job in of[0].jobs(4):
                    pool.submit(_compile, _asked(of[0]), job)
                waiting[kind] = {v: pool.submit(_evidence, _asked(of[0]), v) for v in of[0].variants()}
            for kind, futures in waiting.items():
                name = kinds[kind][0].house.name
                try:
                    yield kind, {v: f.result(_left(until)) for v, f in futures.items()}
                    print(f"{name}: judged", flush=True)
                except NotYet:
                    print(f"{name}: not judged within {seconds:.0f} s", flush=True)
                except KgenError as e:
                    print(f"NOT SHIPPED: {e}", file=sys.stderr, flush=True)
        finally:
            for process in list(pool._processes.values()) if time.monotonic() > until else []:
                process.kill()
            pool.shutdown(wait=False, cancel_futures=True)


def _promoted(of: Sequence[Shipping], evidence: dict[Variant, list[Evidence]], faster: bool, timed: bool) -> int:
    """Times one house kernel where its plain calls have pins, and promotes it for each of its architectures; how many there are."""
    try:
        # On a GPU one choice of optional tensors stands for the others: each takes as long as judging them all.
        some = [v for v in evidence if of[0].house.device == "cpu" or v[1] == of[0].house.affines[0]]
        times = {v: of[0].time(v) for v in some if timed and of[0].house.plain}
        ranges = of[0].faster(evidence) if faster else {}
        for one in of:
            print(f"{one.house.name} {one.arch}: {one.house.op}/v{one.promote(evidence, times, ranges)}", flush=True)
    except KgenError as e:
        print(f"NOT SHIPPED: {e}", file=sys.stderr, flush=True)
        return 0
    return len(of)


def _together(todo: Sequence[Shipping], jobs: int, seconds: float = math.inf, faster: bool = False, timed: bool = True) -> tuple[int, int]:
    """Ships all: compiles and judges in so many processes, then times one Case after the other; what has nothing to time is
    promoted as soon as it is judged. A house kernel for two architectures of GPUs is judged once, on the GPU at hand. How
    many were shipped, and how many are left."""
    kinds: dict[Kind, list[Shipping]] = {}
    for one in todo:
        kinds.setdefault((_asked(one).house, one.judged_arch), []).append(one)
    shipped, to_time = 0, []
    for kind, evidence in _judged(kinds, jobs, seconds):
        if kinds[kind][0].house.plain:
            to_time.append((kind, evidence))
        else:
            shipped += _promoted(kinds[kind], evidence, False, False)
    shipped += sum(_promoted(kinds[kind], evidence, faster, timed) for kind, evidence in to_time)
    return shipped, len(todo) - shipped


def main(argv: Sequence[str] | None = None) -> int:
    """Ships what is asked for; 1 when something did not pass."""
    p = argparse.ArgumentParser(prog="python -m kgen.ship", description=(__doc__ or "").splitlines()[0])
    p.add_argument("--registry", type=Path, default=shipped_registry())
    p.add_argument("--arch", action="append", choices=(*ARCHS, *GPU_ARCHS), help="default: all of the CPU's")
    p.add_argument("--only", action="append", metavar="FILE", choices=sorted({h.file for h in (*HOUSE, *GPU_HOUSE)}))
    p.add_argument("--device", default="cuda", help="which GPU judges kernels for GPUs (default: the first)")
    p.add_argument("--programs", type=int, default=PROGRAMS, help=f"random Programs (default {PROGRAMS})")
    p.add_argument("--jobs", type=int, default=1, metavar="N", help="processes that compile and judge (default 1)")
    p.add_argument("--most", type=int, default=0, metavar="N", help="about so many Cases of each dtype (default: all)")
    p.add_argument("--seconds", type=float, default=math.inf, help="with --jobs: end the judging after so long")
    p.add_argument("--faster", action="store_true", help="with --jobs: no pins for rows that torch is faster for")
    p.add_argument("--untimed", action="store_true", help="with --jobs: no times in the Records")
    p.add_argument("--again", action="store_true", help="also what is in the registry already")
    args = p.parse_args(argv)
    if args.programs < 1:
        raise BadInput(f"--programs {args.programs}: at least 1 is needed")
    if args.jobs < 1:
        raise BadInput(f"--jobs {args.jobs}: at least 1 is needed")
    todo: list[Shipping] = []
    for arch in args.arch or ARCHS:
        gpu = arch in GPU_ARCHS
        device = gpu_for(arch, args.device) if gpu else devices.CPU
        for house in GPU_HOUSE if gpu else HOUSE:
            if args.only and house.file not in args.only:
                continue
            say: Callable[[str], None] = lambda text: print(text, flush=True)
            one = Shipping(house, arch, args.registry, args.programs, say, device.index or 0, args.most)
            if gpu and not _is_for(one.about["min_arch"], arch):
                continue
            if one.shipped() and not args.again:
                print(f"{house.name} {arch}: there already")
                continue
            todo.append(one)
    if args.only:
        todo.sort(key=lambda one: args.only.index(one.house.file))
    if args.jobs > 1:
        _, left = _together(todo, args.jobs, args.seconds, args.faster, not args.untimed)
        return 0 if not left else LEFT if math.isfinite(args.seconds) else 1
    failed = 0
    for one in todo:
        try:
            print(f"{one.house.name} {one.arch}: {one.house.op}/v{one.run()}", flush=True)
        except KgenError as e:
            failed += 1
            print(f"NOT SHIPPED: {e}", file=sys.stderr, flush=True)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
