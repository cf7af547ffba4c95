"""Runs CUDA Candidates on the CPU (tests/emulate): rewrites a translation unit of kgen's own making to host C++,
compiles it with AddressSanitizer and gives its calls their tensors.

What the rewriting knows: static and dynamic `__shared__` arrays, and asm statements whose instructions tests/emulate/ptx.h
has; anything else of CUDA is a compile error that names it."""

from __future__ import annotations

import hashlib
import json
import os
import re
import struct
import subprocess
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from kgen import _libkgen
from kgen.judge import dtype_name
from program_core import Core
from torch import Tensor

ROOT = Path(__file__).resolve().parent.parent.parent
EMULATE = ROOT / "tests" / "emulate"
KERNELS = ROOT / "kernels"
# An H200's; the kernels' plans ask for them.
SMS, SHARED = 132, 232448
FLAGS = ("-std=gnu++17", "-Og", "-g1", "-fno-strict-aliasing", "-fsanitize=address,alignment,bounds,shift,integer-divide-by-zero",
         "-fno-sanitize-recover=all", "-Wall", "-Wno-unknown-pragmas", "-Wno-unused-function", "-Wno-unused-but-set-variable",
         "-Wno-unused-variable", "-Wno-tautological-compare", "-Wno-maybe-uninitialized", "-Wno-uninitialized")  # fmt: skip
DTYPES = {getattr(torch, n): n for n in ("float32", "float16", "bfloat16")}


# ---- rewriting ----

_SHARED = re.compile(r"(extern\s+)?__shared__\s+(?:alignas\(\d+\)\s+)?([\w ]+?)\s+(\w+)((?:\[[^\]]*\])+);")


def _shared(match: re.Match[str]) -> str:
    extern, ctype, name, dims = match.groups()
    if extern:
        return f"{ctype} *const {name} = static_cast<{ctype} *>(emu::dynamic_shared());"
    return (f"{ctype} (&{name}){dims} = *static_cast<{ctype} (*){dims}>("
            f"emu::static_shared(__COUNTER__, sizeof({ctype}{dims})));")  # fmt: skip


def _split(text: str, mark: str) -> list[str]:
    """Parts between marks that are in no bracket and no string."""
    parts, depth, quoted, start, i = [], 0, False, 0, 0
    while i < len(text):
        c = text[i]
        if quoted:
            i += c == "\\"
            quoted = c != '"'
        elif c == '"':
            quoted = True
        elif c in "([{":
            depth += 1
        elif c in ")]}":
            depth -= 1
        elif c == mark and depth == 0:
            parts.append(text[start:i])
            start = i + 1
        i += 1
    return [*parts, text[start:]]


def _operand(text: str) -> str:
    found = re.fullmatch(r'\s*"[=+]?[a-z]"\s*\((.*)\)\s*', text, re.DOTALL)
    if not found:
        raise ValueError(f"asm operand `{text.strip()}` is none that the emulator reads")
    return found.group(1)


def _instruction(text: str, operands: list[str], predicates: set[str]) -> str:
    name, _, rest = text.partition(" ")
    arguments = []
    if text.startswith(".reg .pred "):
        predicates.add(rest.split()[-1])
        return f"bool {rest.split()[-1]};"
    for token in re.sub(r"[\[\]{},]", " ", rest).split():
        if token == "_":
            continue
        if re.fullmatch(r"%\d+", token):
            arguments.append(f"({operands[int(token[1:])]})")
        elif re.fullmatch(r"%%[\w.]+", token):
            arguments.append(f"ptx::{token[2:].replace('.', '_')}()")
        elif re.fullmatch(r"-?(0x[0-9a-fA-F]+|\d+)", token) or token in predicates:
            arguments.append(token)
        else:
            raise ValueError(f"asm `{text}`: the emulator does not read the operand {token}")
    return f"ptx::{re.sub(r'[.:]+', '_', name)}({', '.join(arguments)});"


def _asm(body: str) -> str:
    sections = _split(body, ":")
    text = "".join(re.findall(r'"((?:\\.|[^"\\])*)"', sections[0])).replace("\\n", " ").replace("\\t", " ")
    operands = [_operand(o) for s in sections[1:3] for o in _split(s, ",") if o.strip()]
    predicates: set[str] = set()
    # Braces around a whole statement are a scope of names, which a do-block is as well.
    parts = [" ".join(i.split()).removeprefix("{").strip() for i in text.split(";")]
    calls = [_instruction(i, operands, predicates) for i in parts if i and i != "}"]
    return "do { " + " ".join(calls) + " } while (0)"


def rewrite(unit: str) -> str:
    """The unit as host C++; line numbers stay."""
    unit = re.sub(r"/\*.*?\*/|//[^\n]*", lambda m: re.sub(r"[^\n]", " ", m.group()), unit, flags=re.DOTALL)
    unit = _SHARED.sub(_shared, unit)
    out, at = [], 0
    for match in re.finditer(r"\basm(\s+volatile)?\s*\(", unit):
        end, depth, quoted = match.end(), 1, False
        while depth:
            c = unit[end]
            if quoted:
                end += c == "\\"
                quoted = c != '"'
            else:
                quoted = c == '"'
                depth += (c == "(") - (c == ")")
            end += 1
        statement = unit[match.end() : end - 1]
        out += [unit[at : match.start()], _asm(statement), "\n" * unit[match.start() : end].count("\n")]
        at = end
    return "".join(out) + unit[at:]


# ---- calls ----


@dataclass(frozen=True)
class Call:
    """One call of an Op: its arguments by name (tensors and numbers), Program and captured tensors."""

    op: str
    args: dict[str, Any]
    program: str = ""
    captured: tuple[Tensor, ...] = ()
    scalars: tuple[float, ...] = ()
    absent: tuple[str, ...] = ()  # optional outputs that are not wanted

    def case(self) -> dict[str, Any]:
        case = {"format": 1, "op": self.op, "device": "cuda", "precision": "native", "count": 1,
                "args": {n: spec(v) if isinstance(v, Tensor) else v for n, v in self.args.items()}}  # fmt: skip
        if self.program:
            captured = [spec(t) for t in self.captured]
            case["program"] = {"text": self.program, "captured": captured, "scalars": list(self.scalars)}
        if self.absent:
            case["skip"] = list(self.absent)
        return case


def spec(t: Tensor) -> dict[str, Any]:
    fill = {"kind": "normal", "mean": 0.0, "std": 1.0}
    address = t.storage_offset() * t.element_size() | 256
    return {"dtype": dtype_name(t.dtype), "shape": list(t.shape), "stride": list(t.stride()), "align": address & -address,
            "fill": fill if t.dtype.is_floating_point else {"kind": "integers", "low": 0, "high": 1 if t.dtype == torch.bool else 3}}  # fmt: skip


def _bytes(t: Tensor) -> bytes:
    return t.contiguous().view(-1).view(torch.uint8).numpy().tobytes() if t.numel() else b""


def _storage(t: Tensor) -> tuple[bytes, int]:
    """The bytes of the storage up to the last element that the view reaches, and the view's offset. The storage is
    taken to begin at a multiple of 256."""
    last = sum((n - 1) * s for n, s in zip(t.shape, t.stride())) if t.numel() else -1
    whole = torch.as_strided(t, (t.storage_offset() + last + 1,), (1,), 0)
    return _bytes(whole), t.storage_offset() * t.element_size()


@dataclass
class _Job:
    """The file that the program reads: numbers of 64 bits and bytes."""

    data: bytearray = field(default_factory=bytearray)

    def number(self, *values: int) -> None:
        for v in values:
            self.data += struct.pack("<Q", v & 0xFFFFFFFFFFFFFFFF)

    def text(self, text: str | bytes) -> None:
        raw = text.encode() if isinstance(text, str) else text
        self.number(len(raw))
        self.data += raw


_PACK = {"i32": "<i", "i64": "<q", "f32": "<f", "f64": "<d"}


def unit_of(source: str, call: Call, tunables: dict[str, int] | None = None, any_size: bool = True,
            arch: str = "sm_90", sms: int = SMS) -> dict[str, Any]:  # fmt: skip
    """Unit and bound plan; all tunables have their first value but those given."""
    op = (KERNELS / "ops" / f"{call.op}.json").read_text()
    chosen = None
    if tunables:
        defaults = _libkgen.candidate_check(op, source.encode(), "kernel.cu")["tunables"]
        chosen = {n: tunables.get(n, v[0] if isinstance(v, list) else v) for n, v in defaults.items()}
    return _libkgen.candidate_unit(op, call.case(), source.encode(), chosen, arch, sms, SHARED, any_size)


def _expanded(unit: str) -> str:
    """With the unit's own macros expanded, when its asm statements are made of macros."""
    if not re.search(r"^#define \w+.*\\\n(?:.*\\\n)*.*\basm\b", unit, re.MULTILINE):
        return unit
    done = subprocess.run(["g++", "-E", "-xc++", "-std=gnu++17", "-"], input=unit, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[:3000]
    return done.stdout


class Program:
    """A unit compiled for the host."""

    folder = tempfile.TemporaryDirectory(prefix="kgen-emulate-")
    built: dict[str, Path] = {}
    header: Path | None = None  # the folder of the emulator's header, precompiled: a fifth of each compilation

    def __init__(self, unit: str, kernels: list[str]) -> None:
        key = hashlib.sha256(unit.encode()).hexdigest()[:16]
        self.path = self.built.get(key) or self._build(key, unit, kernels)

    def _build(self, key: str, unit: str, kernels: list[str]) -> Path:
        base = Path(self.folder.name) / key
        entries = ", ".join(f'{{"{k}", [](emu::Reader *in) {{ return emu::bind_arguments({k}, in); }}}}' for k in kernels)
        base.with_suffix(".cpp").write_text(
            f'#include "hopper.h"\n{rewrite(_expanded(unit))}\nint main(int argc, char **argv) {{\n'
            f"    static const emu::Entry entries[] = {{{entries}}};\n"
            f"    return emu::run(argc, argv, entries, {len(kernels)});\n}}\n")  # fmt: skip
        done = subprocess.run(["g++", *FLAGS, "-Winvalid-pch", f"-I{self._header()}", f"-I{EMULATE}", str(base.with_suffix(".cpp")),
                               "-o", str(base)], capture_output=True, text=True, check=False)  # fmt: skip
        assert done.returncode == 0 and "pch" not in done.stderr, done.stderr[:6000]
        self.built[key] = base
        return base

    @classmethod
    def _header(cls) -> Path:
        if cls.header is None:
            folder = Path(cls.folder.name) / "header"
            folder.mkdir()
            done = subprocess.run(["g++", *FLAGS, "-x", "c++-header", str(EMULATE / "hopper.h"), "-o", str(folder / "hopper.h.gch")],
                                  capture_output=True, text=True, check=False)  # fmt: skip
            assert done.returncode == 0, done.stderr[:6000]
            cls.header = folder
        return cls.header

    def run(self, job: bytes, backwards: bool = False) -> bytes:
        with tempfile.TemporaryDirectory(dir=self.folder.name) as folder:
            (Path(folder) / "job").write_bytes(job)
            env = {**os.environ, "ASAN_OPTIONS": "detect_leaks=0:use_sigaltstack=0"} | ({"EMULATE_BACKWARDS": "1"} if backwards else {})
            done = subprocess.run([str(self.path), f"{folder}/job", f"{folder}/results"], env=env, capture_output=True,
                                  text=True, check=False, timeout=600)  # fmt: skip
            if done.returncode != 0:
                raise EmulatorError(done.stderr[:3000])
            return (Path(folder) / "results").read_bytes()


class EmulatorError(RuntimeError):
    """The kernel did what no kernel may: the emulator's or the sanitizer's message."""


def _map(m: dict[str, Any], where: dict[str, list[int]]) -> tuple[bytes, int]:
    """tests/emulate/hopper.h's TensorMap but for the pointer at its begin, and which tensor that is."""
    rank = len(m["dims"])
    raw = struct.pack("<Q5Q4Q5IHHI", 0, *(m["dims"] + [0] * (5 - rank)), *(m["strides"] + [0] * (5 - rank)),
                      *(m["box"] + [0] * (5 - rank)), rank, m["swizzle"], getattr(torch, m["dtype"]).itemsize)  # fmt: skip
    return raw.ljust(128, b"\0"), where["output" if m["is_output"] else "tensor"][m["tensor"]]


def _argument(job: _Job, arg: dict[str, Any], call: Call, where: dict[str, list[int]], core: Core | None,
              maps: list[dict[str, Any]]) -> None:  # fmt: skip
    kind = arg["kind"]
    if kind in _PACK:
        raw = struct.pack(_PACK[kind], arg["value"])
        job.number(1, len(raw))
        job.data += raw
        job.number(0)
    elif kind == "map":
        raw, data = _map(maps[arg["index"]], where)
        job.number(2, len(raw))
        job.data += raw
        job.number(1, 0, data)
    elif kind == "programs":
        if core is None:
            job.number(2, 8)
            job.data += bytes(8)
            job.number(0)
            return
        bound = core.bind(list(call.captured), list(call.scalars))
        job.number(2, bound.size)
        job.data += bound.args.raw
        job.number(len(call.captured))
        for i in range(len(call.captured)):
            job.number(8 * i, where["captured"][i])
    else:
        job.number(0, where[kind][arg["index"]])


def _describe(job: _Job, call: Call, name: str, plan: dict[str, Any], bound: dict[str, Any]) -> list[Tensor]:
    """Writes one call; the outputs, to be filled, in order."""
    cooperative = {x["kernel"] for x in plan["launches"] if x.get("cooperative")}
    where: dict[str, list[int]] = {"tensor": [], "output": [], "workspace": [], "captured": []}
    tensors: list[tuple[bytes, int, bool]] = []

    def add(kind: str, raw: bytes, offset: int, out: bool) -> None:
        where[kind].append(len(tensors))
        tensors.append((raw, offset, out))

    for value in call.args.values():
        if isinstance(value, Tensor):
            add("tensor", *_storage(value), False)
        else:
            where["tensor"].append(-1)
    for t in call.captured:
        add("captured", *_storage(t), False)
    outputs = []
    for i, o in enumerate(bound["outputs"]):
        if o["name"] in call.absent:
            where["output"].append(-1)
            continue
        t = torch.empty_strided(o["shape"], o["stride"], dtype=getattr(torch, o["dtype"]))
        fill = b"\0" if i in bound["zero"] else b"\xff"
        add("output", fill * (t.numel() * t.element_size()), 0, True)
        outputs.append(t)
    spaces = plan.get("workspace", {}).values()
    for size, space in zip(bound["workspace"], spaces, strict=True):
        add("workspace", (b"\0" if space.get("zero") else b"\xff") * size, 0, False)
    job.text(name)
    job.number(len(tensors))
    for raw, offset, out in tensors:
        job.number(len(raw) - offset, offset % 256, int(out))
        job.data += raw[offset:]
    core = Core(call.program) if call.program else None
    job.number(len(bound["launches"]))
    for launch in bound["launches"]:
        job.text(launch["kernel"])
        # The blocks of a cooperative launch wait for each other, as those of a cluster may.
        together = launch["grid"] if launch["kernel"] in cooperative else launch["cluster"]
        job.number(*launch["grid"], *launch["block"], *together, launch["shared"])
        for arg in launch["args"]:
            _argument(job, arg, call, where, core, bound["maps"])
    return outputs


def plan_of(source: str) -> dict[str, Any]:
    return json.loads(source[source.index("{") : source.index("*/")])


def kernels_of(source: str) -> list[str]:
    return list(dict.fromkeys(re.findall(r'"kernel"\s*:\s*"(\w+)"', source)))


def emulate(source: str, calls: list[Call], tunables: dict[str, int] | None = None, any_size: bool = True,
            backwards: bool = False, sms: int = SMS) -> list[list[Tensor]]:  # fmt: skip
    """The outputs of each call; those that nothing was written to are NaN. All calls must have one unit. sms: how many
    multiprocessors the plan is told of."""
    job, units, outputs = _Job(), set(), []
    job.number(len(calls))
    for call in calls:
        bound = unit_of(source, call, tunables, any_size, sms=sms)
        units.add(bound["unit"])
        shapes = " ".join("x".join(map(str, v.shape)) for v in call.args.values() if isinstance(v, Tensor))
        outputs.append(_describe(job, call, f"{call.op} {shapes}", plan_of(source), bound))
    assert len(units) == 1, "these calls have different translation units"
    raw = Program(units.pop(), kernels_of(source)).run(bytes(job.data), backwards)
    at = 0
    for tensors in outputs:
        for t in tensors:
            size = t.numel() * t.element_size()
            dense = torch.frombuffer(bytearray(raw[at : at + size]), dtype=t.dtype) if size else t.new_empty(0)
            torch.as_strided(t, (t.numel(),), (1,)).copy_(dense)
            at += size
    assert at == len(raw), "the results' file has another size than the outputs"
    return outputs
