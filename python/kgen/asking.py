"""Who is asked for Candidates, with what budget, and what they are told of this machine: the Python side of the proposers
`llm` and `files` (csrc/tune/loop.h does the asking).

The key of a model is named here and never read: libkgen takes it from the environment.
"""

from __future__ import annotations

import argparse
import math
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from . import _libkgen
from ._paths import kernels_dir
from .errors import BadInput
from .interrupts import stoppable

PROPOSERS = ("builtin", "llm", "files", "mcp")
STRATEGIES = ("refine", "branch")
MINUTES = 15.0
# Of a Run whose budget is not in time.
LONGEST = 24 * 3600.0
KNOWLEDGE_BYTES = 1 << 20
MOST_IN_FLIGHT = 64  # as csrc/tune/llm.h has it
_UNITS = {"s": 1.0, "m": 60.0, "h": 3600.0}
_SCALE = {"": 1, "k": 1000, "M": 1000_000}


@dataclass(frozen=True)
class Budget:
    """Seconds for the search over all Ops; calls, tokens and USD of a model (0: no limit)."""

    seconds: float = 60 * MINUTES
    calls: int = 0
    tokens: int = 0
    usd: float = 0.0


def parse_budget(text: str) -> Budget:
    """"15m", "2usd", "40calls", "2Mtok", or several with commas between."""
    found: dict[str, float] = {}
    for word in text.split(","):
        m = re.fullmatch(r"(\d+(?:\.\d+)?)(s|m|h|usd|(k|M)?(calls?|tok(?:ens?)?))", word.strip())
        if not m or float(m[1]) <= 0:
            raise BadInput(f"--budget {word.strip() or text}: give a time such as 90s, 15m or 1h, or 2usd, 40calls, 2Mtok; above zero")
        if m[2] in _UNITS:
            kind, value = "seconds", float(m[1]) * _UNITS[m[2]]
        elif m[2] == "usd":
            kind, value = "usd", float(m[1])
        else:
            kind, value = ("calls" if m[4].startswith("call") else "tokens"), float(m[1]) * _SCALE[m[3] or ""]
            if value != int(value):
                raise BadInput(f"--budget {word.strip()}: {value:g} is no whole number")
        if kind in found:
            raise BadInput(f"--budget {text}: says {kind} twice")
        found[kind] = value
    seconds = found.get("seconds", LONGEST if found else 60 * MINUTES)
    return Budget(seconds, int(found.get("calls", 0)), int(found.get("tokens", 0)), found.get("usd", 0.0))


@dataclass(frozen=True)
class Asking:
    """How to ask. llm: the client's options but for its limits (csrc/tune/llm.h). notes, knowledge: texts for the prompt."""

    proposer: str
    strategy: str = "refine"
    llm: dict[str, Any] | None = None
    slots: int = 0
    notes: str | None = None
    knowledge: str | None = None
    files: tuple[str, ...] = ()  # whose text goes out with it
    target_share: float | None = None  # it ends when floor / best time reaches this; None: 0.95

    @property
    def title(self) -> str:
        """For people and for provenance."""
        if self.llm is None:
            return self.proposer
        return f"{self.llm['model']} at {_libkgen.llm_check(self.llm)['host']}"


def _read(path: str) -> str:
    try:
        with open(path, "rb") as f:
            data = f.read(KNOWLEDGE_BYTES + 1)  # and no more: it may have no end
        if len(data) > KNOWLEDGE_BYTES:
            raise BadInput(f"--knowledge {path}: has more than 1 MiB, which is the most")
        text = data.decode()
    except OSError as e:
        raise BadInput(f"--knowledge {path}: {e.strerror}") from e
    except UnicodeDecodeError as e:
        raise BadInput(f"--knowledge {path}: is not UTF-8 text") from e
    return text


def _llm_options(args: argparse.Namespace) -> dict[str, Any]:
    given = {
        "model": args.llm, "endpoint": args.endpoint, "key_env": args.key_env, "headers": args.header, "proxy": args.proxy,
        "ca": args.ca, "effort": args.effort, "temperature": args.temperature, "max_tokens": args.max_tokens,
        "in_flight": args.in_flight, "prices": [str(kernels_dir() / "prompts" / "prices.json"), *(args.prices or ())],
    }  # fmt: skip
    return {k: v for k, v in given.items() if v is not None}


_FOR_LLM = ("llm", "endpoint", "key_env", "header", "proxy", "ca", "effort", "temperature", "max_tokens", "prices")


def from_args(args: argparse.Namespace, budget: Budget) -> Asking | None:
    """What the command line says; None for the built-in proposer. BadInput names what does not go together."""
    proposer = getattr(args, "proposer", "builtin")
    stray = [n for n in _FOR_LLM if getattr(args, n, None) is not None]
    if stray and proposer != "llm":
        raise BadInput(f"--{stray[0].replace('_', '-')} goes with --proposer llm")
    if budget.usd and proposer == "mcp":
        raise BadInput(f"--budget {args.budget}: who answers pays elsewhere; give a time, calls (answers) or tokens of them")
    if (budget.usd or budget.tokens or budget.calls) and proposer not in ("llm", "mcp"):
        raise BadInput(f"--budget {args.budget}: the proposer {proposer} costs time alone; give 15m or the like")
    if proposer == "builtin":
        for name in ("note", "knowledge", "strategy", "in_flight", "target_share", "unsafe_cpu"):
            if getattr(args, name, None) is not None:
                raise BadInput(f"--{name.replace('_', '-')} goes with --proposer llm or files")
        return None
    if args.in_flight is not None and not 1 <= args.in_flight <= MOST_IN_FLIGHT:
        raise BadInput(f"--in-flight {args.in_flight}: give 1 to {MOST_IN_FLIGHT}")
    target_share = args.target_share
    if target_share is not None and not 0 < target_share <= 1:
        raise BadInput(f"--target-share {target_share:g}: give a share of the roofline, above 0 and at most 1")
    temperature = getattr(args, "temperature", None)
    if temperature is not None and not 0 <= temperature < math.inf:
        raise BadInput(f"--temperature {temperature:g}: give a number, 0 or more")
    llm = None
    if proposer == "llm":
        llm = _llm_options(args)
        _libkgen.llm_check({**llm, **_limits(budget)})
    names = tuple(args.knowledge or ())
    texts = [f"### {Path(n).name}\n\n{_read(n)}\n" for n in names]
    return Asking(
        proposer, args.strategy or "refine", llm, args.in_flight or 0, args.note, "\n".join(texts) or None, names, target_share
    )


def reach(asking: Asking | None) -> None:
    """EnvironmentLacks when a model is to be asked and its endpoint cannot be reached: before a capture and oracles are
    paid for with minutes. Asks nothing."""
    if asking is not None and asking.llm is not None:
        with stoppable():
            _libkgen.llm_reach(asking.llm)


def _limits(budget: Budget) -> dict[str, Any]:
    limits = {"calls": budget.calls, "tokens": budget.tokens, "usd": budget.usd}
    return {k: v for k, v in limits.items() if v}


def part_of(budget: Budget, spent: dict[str, int], share: float) -> Budget | None:
    """A share of what is left of calls, tokens and money; None when one of them is used up."""
    calls, tokens, usd = budget.calls - spent["calls"], budget.tokens - spent["tokens"], budget.usd - spent["nano_usd"] * 1e-9
    if (budget.calls and calls <= 0) or (budget.tokens and tokens <= 0) or (budget.usd and usd <= 0):
        return None
    return Budget(
        budget.seconds,
        max(1, math.ceil(calls * share)) if budget.calls else 0,
        max(1, math.ceil(tokens * share)) if budget.tokens else 0,
        usd * share if budget.usd else 0.0,
    )


def loop_options(
    asking: Asking, budget: Budget, task: Path, target: str, machine: str, cases: Sequence[dict[str, float]]
) -> dict[str, Any]:
    """The search option "loop" (csrc/kgen_tune.h)."""
    options: dict[str, Any] = {
        "proposer": asking.proposer, "strategy": asking.strategy, "prompts": str(kernels_dir() / "prompts"),
        "task": str(task), "machine": machine, "notes": asking.notes, "knowledge": asking.knowledge, "cases": list(cases),
        "slots": asking.slots, "target": target,
    }  # fmt: skip
    if asking.target_share is not None:
        options["target_share"] = asking.target_share
    if asking.llm is not None:
        options["llm"] = {**asking.llm, **_limits(budget)}
    return options


def machine_text(threads: int, bytes_per_second: float, flops_per_second: float) -> str:
    """This CPU in words: what a kernel can count on."""
    model, flags = "an unknown CPU", ""
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        name, _, value = line.partition(":")
        if name.strip() == "model name":
            model = value.strip()
        if name.strip() == "flags":
            flags = value
            break
    known = ("avx2", "fma", "f16c", "avx512f", "avx512bw", "avx512vl", "avx512_vnni", "avx512_bf16", "avx512_fp16", "amx_tile")
    have = set(flags.split())
    level = "x86-64-v2"
    if {"avx2", "fma", "bmi2"} <= have:
        level = "x86-64-v3"
    if {"avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl"} <= have:
        level = "x86-64-v4"
    caches = []
    for i in range(8):
        folder = Path(f"/sys/devices/system/cpu/cpu0/cache/index{i}")
        try:
            kind = (folder / "type").read_text().strip()
            text = f"L{(folder / 'level').read_text().strip()} {(folder / 'size').read_text().strip()}B"
        except OSError:
            break
        if kind != "Instruction":
            caches.append(text)
    lines = [
        f"- {model}, {threads} threads, {level}",
        f"- SIMD: {' '.join(f for f in known if f in have) or 'baseline'}",
        f"- caches: {', '.join(caches) or 'not known'}",
        f"- measured: memory {bytes_per_second / 1e9:.1f} GB/s (read and written), float32 {flops_per_second / 1e9:.0f} GFLOP/s",
    ]
    return "\n".join(lines) + "\n"


def gpu_text(about: Any, bytes_per_second: float, flops: dict[str, float]) -> str:
    """A GPU in words, from torch's properties of it. flops: a second, by dtype."""
    sizes = [
        (getattr(about, "shared_memory_per_block_optin", 0) >> 10, "KiB shared memory a block at most"),
        (getattr(about, "shared_memory_per_multiprocessor", 0) >> 10, "KiB an SM"),
        (getattr(about, "regs_per_multiprocessor", 0), "registers an SM"),
        (getattr(about, "max_threads_per_multi_processor", 0), "threads an SM"),
        (getattr(about, "L2_cache_size", 0) >> 20, "MiB L2"),
    ]
    rates = ", ".join(f"{name} {rate / 1e12:.3g} TFLOP/s" for name, rate in flops.items())
    lines = [
        f"- {about.name}, {about.multi_processor_count} SMs, sm_{about.major}{about.minor}",
        f"- {', '.join(f'{n} {what}' for n, what in sizes if n)}",
        f"- measured: memory {bytes_per_second / 1e9:.0f} GB/s (read and written), products of {rates}",
    ]
    return "\n".join(lines) + "\n"


def told(asking: Asking, ops: Sequence[str]) -> str:
    """What is said before the first request: who is asked, and what text goes there."""
    what = f"of {', '.join(ops)}: contract, reference or graph, Cases, earlier Candidates and verdicts; this machine's numbers"
    also = "".join(f"; {os.fspath(f)}" for f in asking.files) + ("; your --note" if asking.notes else "")
    there = "given to the client of this server" if asking.proposer == "mcp" else "written to the Run's prompts/, where README.md tells an agent how to answer"
    where = f"sent to {asking.title}" if asking.llm else there
    return f"{where}: {what}{also}{_price(asking)}"


def _price(asking: Asking) -> str:
    """What a model is thought to cost; "" where nothing is known or it costs nothing."""
    price = _libkgen.llm_check(asking.llm)["price"] if asking.llm else None
    if not price or not price["output"]:
        return ""
    usd = {k: price[k] / 1000 for k in ("input", "output")}
    when = f" as of {price['as_of']}" if price["as_of"] else ""
    return (
        f"; counted at {usd['input']:g} USD in and {usd['output']:g} USD out for a million tokens{when}: check that, --prices FILE "
        "says otherwise"
    )


def ended(asked: dict[str, Any]) -> str:
    """How a loop went, in one line."""
    spent = asked["spent"]
    cost = f", {spent['nano_usd'] * 1e-9:.4f} USD" if spent["nano_usd"] else ""
    why = f"; it ended because: {asked['ended_by']}" if asked["ended_by"] else ""
    return (
        f"{asked['candidates']} Candidates from {asked['answers']} answers to {asked['prompts']} prompts "
        f"({spent['calls']} calls, {spent['tokens']} tokens{cost}){why}"
    )


def run_prompt(args: argparse.Namespace) -> int:
    """`kgen prompt`."""
    from .runs import entries

    run = Path(args.run_dir)
    if not (run / "run.json").is_file():
        raise BadInput(f"{run} is no Run: there is no run.json in it")
    loops = {e["op"]: e["options"] for e in entries(run, "loop") if "options" in e}
    if (run / "stages.json").is_file():
        from .stages import Staged

        staged = Staged(run)
        loops = {j.op: staged.loop(j.op, Budget()) for j in staged.jobs}
    if not loops:
        raise BadInput(f"{run}: nobody was asked in this Run yet; `kgen tune --proposer llm|files` asks")
    if args.op is not None and args.op not in loops:
        raise BadInput(f"--op {args.op}: this Run asks about {', '.join(loops)}")
    op = args.op or list(loops)[-1]
    task = run / "tasks" / op
    # The Run may have moved since.
    options = {**{k: v for k, v in loops[op].items() if k != "llm"}, "task": str(task), "prompts": str(kernels_dir() / "prompts")}
    print(_libkgen.prompt((task / "op.json").read_text(), run, options))
    return 0
