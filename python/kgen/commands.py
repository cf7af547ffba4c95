"""The commands that read and change registries: list, show, diff, rollback, gc, build.

Each takes the parsed arguments and prints; errors are raised for the front (cli.py) to show.
"""

from __future__ import annotations

import argparse
import difflib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from . import _libkgen, registries
from .errors import BadInput

Kernel = dict[str, Any]


def label(kernel: Kernel) -> str:
    """"softmax/v3", or "softmax/v3-3fa2" where a merge gave two Kernels one number."""
    tail = f"-{kernel['id'][:4]}" if kernel["ambiguous"] else ""
    return f"{kernel['op']}/v{kernel['version']}{tail}"


def read_record(kernel: Kernel) -> dict[str, Any]:
    """The Record of a Kernel."""
    return json.loads((Path(kernel["path"]) / "record.json").read_text())


def read_pins(registry: Path, op: str) -> list[dict[str, Any]]:
    """The pins of an Op, with "name" and "arch"; those that cannot be read are left out."""
    pins = []
    for path in sorted((registry / op).glob("*/pins/*")):
        try:
            pin = json.loads(path.read_text())
        except (OSError, ValueError):
            continue
        pins.append({**pin, "name": path.name, "arch": path.parent.parent.name})
    return pins


def dim_text(value: Any) -> str:
    """4096, or 1..4096 for a dim that a pin leaves open."""
    return f"{value['min']}..{value['max']}" if isinstance(value, dict) else str(value)


def dtypes_text(dtypes: Sequence[str | None]) -> str:
    """Each dtype once; in the order of the tensors, with a dash for each absent one, where one is absent."""
    if None in dtypes:
        return ",".join(d or "-" for d in dtypes)
    return ",".join(sorted(set(filter(None, dtypes))))


def key_text(key: dict[str, Any]) -> str:
    """A pin's key in one line: "float32 M=4096 N=1..1048576 K=1"."""
    parts = [dtypes_text(key.get("dtypes", []))]
    parts += [f"{name}={dim_text(value)}" for name, value in key.get("dims", {}).items()]
    parts += [f"{name}={json.dumps(value)}" for name, value in key.get("attrs", {}).items()]
    if key.get("program"):
        parts.append("any Program" if key["program"] == "*" else f"Program {key['program'][:8]}")
    if key.get("precision", "native") != "native":
        parts.append(key["precision"])
    parts += [f"without {name}" for name in key.get("skip", ())]
    return " ".join(parts)


def best_speedup(record: dict[str, Any]) -> str:
    """The speedup over the best baseline, "1.85x (1.80..1.90) over eager", of the first Case that has one."""
    for case in record.get("cases", []):
        if "speedup" in case:
            s = case["speedup"]
            name = case["baseline"]["name"]
            return f"{s['median']:.2f}x ({s['low']:.2f}..{s['high']:.2f}) over {name}"
    return "-"


def run_list(args: argparse.Namespace) -> None:
    """Prints every Kernel of every registry, active ones marked."""
    rows = []
    for root in registries.roots(args.registry):
        for kernel in _libkgen.registry_list(root):
            rows.append({**kernel, "registry": str(root)})
    if args.json:
        for row in rows:
            print(json.dumps(row))
        return
    if not rows:
        print("no kernels; `kgen tune MODEL` makes some")
        return
    print(f"{'kernel':<28} {'arch':<10} {'id':<12} {'pins':>4}  {'proposer':<8} {'created':<20} speedup")
    last = None
    for row in rows:
        if row["registry"] != last:
            last = row["registry"]
            print(f"# {last}")
        speed = best_speedup(read_record(row))
        print(
            f"{label(row):<28} {row['arch']:<10} {row['id'][:12]} {row['pins']:>4}  "
            f"{row['proposer']:<8} {row['created']:<20} {speed}"
        )


def show_op(op: str, only: str | None) -> None:
    """Prints an Op's contract, Kernels and pins."""
    found = False
    for root in registries.roots(only):
        kernels = [k for k in _libkgen.registry_list(root) if k["op"] == op]
        if not kernels:
            continue
        found = True
        contract = json.loads((root / op / "op.json").read_text())
        print(f"{op}  {contract['schema']}\nregistry {root}")
        names = {k["id"]: label(k) for k in kernels}
        for pin in read_pins(root, op):
            print(f"  {names.get(pin['kernel'], '?'):<24} {pin['arch']:<10} {key_text(pin['key'])}")
    if not found:
        raise BadInput(f"{op}: no registry has a kernel of that Op (see `kgen list`)")


def run_show(args: argparse.Namespace) -> None:
    """Prints an Op, or one Kernel: its evidence, and with --source its text."""
    if "/" not in args.name:
        return show_op(args.name, args.registry)
    root, kernel = registries.find(args.name, args.registry)
    record = read_record(kernel)
    if args.json:
        print(json.dumps(record))
        return None
    print(f"{label(kernel)}  {kernel['arch']}  {record['verdict']}  {record['created']}")
    print(f"id        {kernel['id']}")
    print(f"path      {kernel['path']}")
    print(f"proposer  {json.dumps(record.get('proposer'))}")
    print(f"tunables  {json.dumps(record.get('tunables', {}))}")
    for name, value in record.get("environment", {}).items():
        print(f"{name:<9} {value}")
    pins = {p["name"]: p for p in read_pins(root, kernel["op"])}
    for case in record.get("cases", []):
        pin = pins.get(case["case"])
        print(f"case {case['case'][:12]}  {key_text(pin['key']) if pin else ''}")
        print(f"  verdict {case['verdict']}  norm_err {case.get('norm_err')}  max_err {case.get('max_err')}")
        if "time_ns" in case:
            print(f"  time {case['time_ns']['median'] / 1e6:.3f} ms  floor {case.get('floor_ns', 0) / 1e6:.3f} ms")
        if "speedup" in case:
            print(f"  speedup {best_speedup({'cases': [case]})}")
    if args.source:
        print((Path(kernel["path"]) / record["source"]).read_text())
    return None


def run_diff(args: argparse.Namespace) -> None:
    """Prints what differs between two versions: tunables, times, source."""
    _, a = registries.find(f"{args.op}/{args.a}", args.registry)
    _, b = registries.find(f"{args.op}/{args.b}", args.registry)
    texts = []
    for kernel in (a, b):
        record = read_record(kernel)
        head = [f"tunable {k} = {v}\n" for k, v in sorted(record.get("tunables", {}).items())]
        for case in record.get("cases", []):
            if "time_ns" in case:
                head.append(f"case {case['case'][:12]} {case['time_ns']['median'] / 1e6:.3f} ms\n")
        source = (Path(kernel["path"]) / record["source"]).read_text().splitlines(keepends=True)
        texts.append(head + source)
    lines = difflib.unified_diff(texts[0], texts[1], label(a), label(b))
    print("".join(lines) or "the two are the same\n", end="")


def run_rollback(args: argparse.Namespace) -> None:
    """Points an Op's pins back at a version."""
    root, kernel = registries.find(f"{args.op}/{args.version}", args.registry)
    moved = _libkgen.registry_rollback(root, args.op, args.version)
    if moved:
        print(f"{label(kernel)} is active again: {moved} pin{'s' * (moved != 1)} moved in {root}")
    else:
        print(f"{label(kernel)} was active already; nothing moved in {root}")


def run_gc(args: argparse.Namespace) -> None:
    """Removes Kernels that no pin names or has replaced."""
    total = 0
    for root in registries.roots(args.registry):
        removed = _libkgen.registry_gc(root, args.dry_run)
        total += len(removed)
        for row in removed:
            verb = "would remove" if args.dry_run else "removed"
            print(f"{verb} {row['op']}/v{row['version']} {row['arch']} {row['id'][:12]} ({row['bytes']} bytes)")
    if not total:
        print("nothing to remove: every kernel is active or was replaced by an active one")
