"""Task folders: an Op's contract, its Cases with what their inputs are drawn from, and the reference.

A folder is written whole or not at all, and says everything that another machine needs to judge a Candidate.
Reading one runs no code; reference.py does, when it is asked for values.
"""

from __future__ import annotations

import functools
import inspect
import json
import math
import os
import shutil
import tempfile
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from . import devices, own
from ._paths import kernels_dir
from .capture import Capture
from .errors import BadInput, EnvironmentLacks, NotATarget
from .graphs import dtype_name
from .jsonfile import FORMAT, read_bytes, read_json
from .targets import CaseData, Target

VALUES_LIMIT = 1 << 16  # elements up to which the captured tables of a Program travel as they are
SOURCE_LIMIT = 1 << 15  # characters
BUFFER_LIMIT = 1 << 24  # and buffers, whose values are not free: a variance is not negative

DTYPES: dict[str, torch.dtype] = {
    name: getattr(torch, name)
    for name in ("float32", "float64", "float16", "bfloat16", "int8", "uint8", "int16", "int32", "int64", "bool")
}


# Writing


@dataclass(frozen=True)
class Blob:
    """A file of raw values that a Case refers to."""

    name: str
    data: bytes


def alignment(x: torch.Tensor) -> int:
    address = x.data_ptr()
    return min(256, address & -address) if address else 256


def tensor_entry(x: torch.Tensor, name: str, keep: int, blobs: list[Blob]) -> dict[str, Any]:
    """A Case's entry of one tensor. keep: up to how many elements a float tensor keeps its values."""
    if dtype_name(x.dtype) not in DTYPES:
        known = ", ".join(DTYPES)
        raise NotATarget(f"{name.partition('.')[2]} is {dtype_name(x.dtype)}, which no Op takes (they take {known})")
    entry: dict[str, Any] = {
        "dtype": dtype_name(x.dtype),
        "shape": list(x.shape),
        "stride": list(x.stride()),
        "align": alignment(x),
    }
    entry["fill"] = _fill(x.detach(), name, keep, blobs)
    return entry


def _fill(x: torch.Tensor, name: str, keep: int, blobs: list[Blob]) -> dict[str, Any]:
    whole = not x.dtype.is_floating_point or x.numel() <= keep
    if not whole and x.numel() and not devices.all_finite(x):
        whole = True  # an additive mask: its infinities are the point
    if whole:
        blob = Blob(f"{name}.bin", _bytes_of(x))
        blobs.append(blob)
        return {"kind": "values", "file": blob.name}
    mean, std = _moments(x) if x.numel() else (0.0, 1.0)
    if std <= 1e-6 * max(1.0, abs(mean)):
        # Weights that were never trained are constant; inputs that are would hide a wrong kernel.
        std = 0.25 * max(1.0, abs(mean))
    return {"kind": "normal", "mean": _short(mean), "std": _short(std)}


def _moments(x: torch.Tensor) -> tuple[float, float]:
    """Mean and deviation, where the tensor is. On a GPU in parts: a tensor may fill half of it."""
    if not x.is_cuda:
        wide = x.double()
        return float(wide.mean()), float(wide.std(correction=0))
    flat = x.reshape(-1) if x.is_contiguous() else x.contiguous().view(-1)
    total = sum(float(flat[part].double().sum()) for part in devices.chunks(flat.numel()))
    mean = total / flat.numel()
    squares = sum(float((flat[part].double() - mean).square().sum()) for part in devices.chunks(flat.numel()))
    return mean, math.sqrt(squares / flat.numel())


def _short(x: float) -> float:
    return float(f"{x:.6g}")


def _bytes_of(x: torch.Tensor) -> bytes:
    """Little-endian values in row-major order."""
    flat = x.detach().cpu().contiguous().reshape(-1)
    return bytes(flat.view(torch.uint8).numpy().tobytes()) if flat.numel() else b""


def case_json(
    op: str, case: CaseData, index: int, precision: str = "native"
) -> tuple[dict[str, Any], list[Blob]]:
    """A Case as docs/formats.md has it, and the files beside it."""
    blobs: list[Blob] = []
    args = {
        name: tensor_entry(v, f"{index}.{name}", BUFFER_LIMIT if name in case.kept else -1, blobs)
        if isinstance(v, torch.Tensor)
        else v
        for name, v in case.args.items()
    }
    where = {v.device.type for v in case.args.values() if isinstance(v, torch.Tensor)}
    kind = "cuda" if "cuda" in where else "cpu"
    made: dict[str, Any] = {
        "format": FORMAT, "op": op, "device": kind, "precision": precision if kind == "cuda" else "native",
        "args": args, "count": case.count,
    }  # fmt: skip
    if case.program is not None:
        text, captured, scalars = case.program
        entries = [tensor_entry(t, f"{index}.captured{i}", VALUES_LIMIT, blobs) for i, t in enumerate(captured)]
        made["program"] = {"text": text, "captured": entries, "scalars": [float(s) for s in scalars]}
    if case.skip:
        made["skip"] = list(case.skip)
    return made, blobs


def write(target: Target, capture: Capture, folder: Path, precision: str = "native") -> Path:
    """Writes the Task folder of a resolved target; what was at `folder` before is replaced at the end. precision: the class
    of its CUDA Cases (docs/formats.md)."""
    if not target.cases:
        raise NotATarget(f"{target.title}: it has no Case; resolve it first")
    files: dict[str, bytes] = {}
    for i, case in enumerate(target.cases):
        made, blobs = case_json(target.op, case, i, precision)
        files[f"cases/{i}.json"] = _json(made)
        for blob in blobs:
            files[f"cases/{blob.name}"] = blob.data
    if target.canonical:
        files["op.json"] = canonical_contract(target.op)
    elif target.source is not None:
        files["op.json"] = _json(own.contract(target, own.source_lifted(target)))
        files["reference.py"] = target.source[0]
    else:
        lifted = own.lift(target)
        files["op.json"] = _json(own.contract(target, lifted))
        files["reference.pt2"] = own.archive(target, lifted)
        files |= _source(target)
    if target.graph_text is not None:
        files["graph.txt"] = target.graph_text.encode()
    files["task.json"] = _json(_task_json(target, capture))
    write_folder(folder, files)
    return folder


def _source(target: Target) -> dict[str, bytes]:
    """source.txt: the module as Python prints it, and its forward; for whoever writes Candidates. Nothing where Python has no
    source of it."""
    assert target.part is not None
    module = target.part.module
    try:
        text = f"{module}\n\n{textwrap.dedent(inspect.getsource(type(module).forward))}"
    except (OSError, TypeError):
        return {}
    return {"source.txt": text.encode()} if len(text) <= SOURCE_LIMIT else {}


def _task_json(target: Target, capture: Capture) -> dict[str, Any]:
    source = capture.model.source
    return {
        "format": FORMAT,
        "op": target.op,
        "title": target.title,
        "mode": capture.mode,
        "cases": len(target.cases),
        "graph": "graph.txt" if target.graph_text is not None else None,
        "no_graph": None if target.graph_text is not None else target.no_graph or "no graph was made",
        "share": round(target.share, 4),
        "flags": devices.flags(),
        "source": {"model": source.name, "sha256": source.sha256},
        "torch": torch.__version__,
        "kgen": _version(),
    }


def _version() -> str:
    import kgen

    return str(getattr(kgen, "__version__", "0.1.0"))


def _json(value: Any) -> bytes:
    return (json.dumps(value, indent=1, allow_nan=False) + "\n").encode()


@functools.cache
def canonical_contract(op: str) -> bytes:
    """The op.json of a canonical Op, as the package ships it."""
    return (kernels_dir() / "ops" / f"{op}.json").read_bytes()


def write_folder(folder: Path, files: dict[str, bytes]) -> None:
    """Makes a folder with these files appear at once, in place of what was there."""
    folder = Path(folder)
    staging = None
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        staging = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
        for name, data in files.items():
            path = staging / name
            path.parent.mkdir(parents=True, exist_ok=True)
            with open(path, "wb") as f:
                f.write(data)
                f.flush()
                os.fsync(f.fileno())
        staging.chmod(0o755)
        _swap(staging, folder)
    except OSError as e:
        raise EnvironmentLacks(f"{folder}: cannot write the Task: {e.strerror or e}") from e
    finally:
        if staging is not None and staging.exists():
            shutil.rmtree(staging, ignore_errors=True)


def _swap(staging: Path, folder: Path) -> None:
    if folder.is_symlink() or (folder.exists() and not (folder / "task.json").is_file() and any(folder.iterdir())):
        raise BadInput(f"{folder}: exists and is no Task folder; name another one")
    old = None
    if folder.exists():
        old = Path(tempfile.mkdtemp(prefix=f".{folder.name}.old.", dir=folder.parent))
        os.rename(folder, old / "task")
    try:
        os.rename(staging, folder)
    except OSError:
        if old is not None:
            os.rename(old / "task", folder)
        raise
    finally:
        if old is not None:
            shutil.rmtree(old, ignore_errors=True)
    parent = os.open(folder.parent, os.O_RDONLY)
    try:
        os.fsync(parent)
    finally:
        os.close(parent)


# Reading

_TASK_KEYS = {
    "format", "op", "title", "mode", "cases", "graph", "no_graph", "share", "flags", "source", "torch", "kgen",
}  # fmt: skip
_CASE_KEYS = {"format", "op", "device", "precision", "args", "program", "count", "skip"}
_TENSOR_KEYS = {"dtype", "shape", "stride", "align", "fill"}
_FILLS = {
    "normal": {"mean", "std"}, "uniform": {"low", "high"}, "integers": {"low", "high"}, "values": {"file"},
}  # fmt: skip


@dataclass(frozen=True)
class Task:
    """A Task folder that was read and checked. contract and cases are the parsed JSON."""

    folder: Path
    meta: dict[str, Any]
    contract: dict[str, Any]
    cases: tuple[dict[str, Any], ...]

    @property
    def op(self) -> str:
        return str(self.contract["op"])

    @property
    def canonical(self) -> bool:
        """Whether the Op is torch's own, and not a module's that has its name."""
        return bool(self.contract["reference"]["kind"] == "torch")

    def blob(self, name: str) -> bytes:
        """The bytes of a values file of a Case."""
        if Path(name).name != name:
            raise BadInput(f"{self.folder}/cases: {name} is not the name of a file beside the Case")
        return read_bytes(self.folder / "cases" / name)


def read(folder: Path) -> Task:
    """The Task in a folder; BadInput names the file and the key that is wrong."""
    folder = Path(folder)
    meta = read_json(folder / "task.json", _TASK_KEYS)
    contract_ = read_json(folder / "op.json", None)
    count = meta.get("cases")
    if not isinstance(count, int) or isinstance(count, bool) or count < 1:
        raise BadInput(f"{folder}/task.json: cases is {count!r}, expected a number of 1 or more")
    if meta.get("mode") not in ("train", "eval"):
        raise BadInput(f"{folder}/task.json: mode is {meta.get('mode')!r}, expected train or eval")
    if contract_.get("op") != meta.get("op"):
        raise BadInput(f"{folder}: task.json is of {meta.get('op')}, op.json of {contract_.get('op')}")
    for key in ("args", "outputs"):  # the core checks the rest when a judge opens it
        listed = contract_.get(key)
        if not isinstance(listed, list) or not all(isinstance(a, dict) and isinstance(a.get("name"), str) for a in listed):
            raise BadInput(f"{folder}/op.json: {key} must be a list of objects, each with a name")
    cases = []
    for i in range(count):
        path = folder / "cases" / f"{i}.json"
        case = read_json(path, _CASE_KEYS)
        if case.get("op") != meta["op"]:
            raise BadInput(f"{path}: op is {case.get('op')!r}, expected {meta['op']!r}")
        if case.get("device") not in ("cpu", "cuda"):
            raise BadInput(f"{path}: device is {case.get('device')!r}, expected cpu or cuda")
        _check_case(path, case)
        cases.append(case)
    return Task(folder, meta, contract_, tuple(cases))


def _check_case(path: Path, case: dict[str, Any]) -> None:
    if not isinstance(case.get("args"), dict):
        raise BadInput(f"{path}: args is {case.get('args')!r:.80}, expected an object of the Op's arguments")
    skip = case.get("skip", [])
    if not isinstance(skip, list) or not all(isinstance(name, str) for name in skip):
        raise BadInput(f"{path}: skip is {skip!r:.80}, expected a list of the Op's optional outputs")
    program = case.get("program")
    if program is not None and not (
        isinstance(program, dict)
        and isinstance(program.get("text"), str)
        and all(isinstance(program.get(k), list) for k in ("captured", "scalars"))
        and all(isinstance(c, dict) for c in program["captured"])
        and all(isinstance(s, (int, float)) and not isinstance(s, bool) for s in program["scalars"])
    ):
        raise BadInput(f"{path}: program must have a text, captured (a list of tensors) and scalars (a list of numbers)")
    for where, entry in tensor_entries(case):
        _check_tensor(path, where, entry)


def tensor_entries(case: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """The tensors of a Case with the key path of each."""
    for name, value in case.get("args", {}).items():
        if isinstance(value, dict):
            yield f"args.{name}", value
    for i, value in enumerate((case.get("program") or {}).get("captured", [])):
        yield f"program.captured[{i}]", value


def _check_tensor(path: Path, where: str, entry: dict[str, Any]) -> None:
    def fail(what: str) -> BadInput:
        return BadInput(f"{path}: {where}{what}")

    if set(entry) != _TENSOR_KEYS:
        odd = sorted(set(entry) ^ _TENSOR_KEYS)[0]
        raise fail(f": key {odd} is {'missing' if odd in _TENSOR_KEYS else 'unknown'}; keys are {sorted(_TENSOR_KEYS)}")
    if not isinstance(entry["dtype"], str) or entry["dtype"] not in DTYPES:
        raise fail(f".dtype is {entry['dtype']!r}, expected one of {', '.join(DTYPES)}")
    for key in ("shape", "stride"):
        sizes = entry[key]
        if not isinstance(sizes, list) or not all(type(s) is int and 0 <= s < 1 << 40 for s in sizes):
            raise fail(f".{key} must be a list of sizes of 0 or more")
    if len(entry["shape"]) != len(entry["stride"]):
        raise fail(f".stride has {len(entry['stride'])} entries, shape {len(entry['shape'])}")
    fill = entry["fill"]
    kind = fill.get("kind") if isinstance(fill, dict) else None
    if not isinstance(kind, str) or kind not in _FILLS:
        raise fail(f".fill.kind is {kind!r}, expected one of {', '.join(_FILLS)}")
    if set(fill) != _FILLS[kind] | {"kind"}:
        raise fail(f".fill of kind {kind} has keys {sorted(fill)}, expected kind and {', '.join(sorted(_FILLS[kind]))}")
