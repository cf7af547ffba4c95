"""A registry of 1,000 Kernels of 50 Ops, written in one go: what import, look-up and the index are measured with.

Sources are the house kernels, each made different by a comment, so that sizes and plans are those of a real
registry. softmax and attention are among the Ops; every other one has softmax's contract under a name of its own.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
OPS, KERNELS = 50, 20
ARCH = "x86-64-v3"


def canonical(value: Any) -> str:
    """Canonical JSON (docs/formats.md)."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"))


def candidate_id(source: bytes, tunables: dict[str, int]) -> str:
    return hashlib.sha256(source + b"\0" + canonical(tunables).encode()).hexdigest()


def plan_of(source: str) -> dict[str, Any]:
    """The plan at the head of a Candidate."""
    return json.loads(source[source.index("/* kgen") + 7 : source.index("*/")])


@dataclass(frozen=True)
class Kind:
    """What the Kernels are for. suffix: of a source's name."""

    arch: str = ARCH
    device: str = "cpu"
    suffix: str = "c"


def softmax_key(op: str, m: Any, n: Any, device: str = "cpu") -> dict[str, Any]:
    return {
        "op": op, "device": device, "precision": "native", "dtypes": ["float32"], "layout": ["c"], "attrs": {},
        "program": None, "dims": {"M": m, "N": n, "K": 1},
    }  # fmt: skip


def attention_key(sq: int, device: str = "cpu") -> dict[str, Any]:
    dtype = "float32" if device == "cpu" else "bfloat16"
    return {
        "op": "attention", "device": device, "precision": "native", "dtypes": [dtype] * 3, "layout": ["i"] * 3,
        "attrs": {}, "program": None,
        "dims": {"B": 1, "HQ": 8, "SQ": sq, "D": 64, "HKV": 8, "SK": sq, "DV": 64},
    }  # fmt: skip


def _record(
    op: str, ident: str, version: int, tunables: dict[str, int], pins: list[str], kind: Kind = Kind()
) -> dict[str, Any]:
    case = {
        "case": pins[0], "verdict": "pass", "norm_err": 1.2e-7, "max_err": 3.1e-7, "torch_norm_err": 1.1e-7,
        "torch_max_err": 2.9e-7, "allclose": True, "sets": 5, "programs": 0,
        "time_ns": {"median": 812345, "p10": 800000, "p90": 830000, "n": 41}, "floor_ns": 512000,
        "baseline": {"name": "eager", "median_ns": 1500000}, "speedup": {"median": 1.85, "low": 1.8, "high": 1.9},
    }  # fmt: skip
    return {
        "format": 1, "id": ident, "op": op, "arch": kind.arch, "version": version, "kind": "kernel",
        "source": f"kernel.{kind.suffix}",
        "tunables": tunables, "verdict": "pass", "message": "", "proposer": {"name": "builtin", "template": "x.c"},
        "parent": None, "cases": [case], "pins": pins, "created": "2026-01-31T12:00:00Z",
        "environment": {"device": "a machine", "arch": kind.arch, "threads": 2, "torch": "2.13.0", "driver": None,
                        "compiler": "gcc 12.2.0", "flags": "-O3", "image": "0" * 32, "kgen": "0.1.0"},
    }  # fmt: skip


def _kernel(folder: Path, op: str, text: str, version: int, key: dict[str, Any], kind: Kind) -> None:
    source = f"{text}\n/* {op} {version} */\n".encode()
    tunables = {name: values[0] for name, values in plan_of(text)["tunables"].items()}
    ident = candidate_id(source, tunables)
    pin = hashlib.sha256(canonical(key).encode()).hexdigest()[:32]
    home = folder / op / kind.arch
    (home / ident).mkdir(parents=True)
    (home / "pins").mkdir(exist_ok=True)
    (home / ident / f"kernel.{kind.suffix}").write_bytes(source)
    record = _record(op, ident, version, tunables, [pin], kind)
    (home / ident / "record.json").write_text(json.dumps(record, indent=2))
    body = {"format": 1, "key": key, "kernel": ident, "replaced": None}
    (home / "pins" / pin).write_text(json.dumps(body, indent=2))


def write(folder: Path, ops: int = OPS, kernels: int = KERNELS, gpu_arch: str | None = None) -> Path:
    """Writes the registry into a folder that is not there yet. gpu_arch: of CUDA Kernels, "sm_90"."""
    kind = Kind() if gpu_arch is None else Kind(gpu_arch, "cuda", "cu")
    softmax = (ROOT / f"kernels/softmax/rows.{kind.suffix}").read_text()
    attention = (ROOT / f"kernels/attention/flash.{kind.suffix}").read_text()
    contract = json.loads((ROOT / "kernels/ops/softmax.json").read_text())
    names = ["softmax", "attention"] + [f"model_{i:08x}" for i in range(ops - 2)]
    for name in names[:ops]:
        text = attention if name == "attention" else softmax.replace('"op": "softmax"', f'"op": "{name}"')
        for k in range(kernels):
            attends = name == "attention"
            key = attention_key(100 + k, kind.device) if attends else softmax_key(name, 1000 + k, 100 + k, kind.device)
            _kernel(folder, name, text, k + 1, key, kind)
        if name in ("softmax", "attention"):
            body = (ROOT / f"kernels/ops/{name}.json").read_text()
        else:
            schema = contract["schema"].replace("softmax(", f"{name}(", 1)
            body = json.dumps({**contract, "op": name, "schema": schema})
        (folder / name / "op.json").write_text(body)
    return folder
