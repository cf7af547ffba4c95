"""Task folders: an Op's contract, its Cases with what their inputs are drawn from, and the reference.

A folder is written whole or not at all, and says everything that another machine needs to judge a Candidate.
Reading one runs no code; reference.py does, when it is asked for values.
"""

from __future__ import annotations

import functools
import json
import math
import os
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import fx, nn
from torch.utils import _pytree as pytree

from ._paths import kernels_dir
from .capture import Capture
from .errors import BadInput, EnvironmentLacks, NotATarget
from .graphs import op_name, preserved_rng, quiet, shape_of
from .targets import CaseData, Target, argument_name, tensor_inputs

FORMAT = 1
MAX_ARGS, MAX_DIMS, MAX_RANK, MAX_OUTPUTS = 24, 32, 8, 8
VALUES_LIMIT = 1 << 16  # elements up to which captured floats travel as they are

DTYPES: dict[str, torch.dtype] = {
    name: getattr(torch, name)
    for name in ("float32", "float64", "float16", "bfloat16", "int8", "uint8", "int16", "int32", "int64", "bool")
}


def dtype_name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


# Writing


@dataclass(frozen=True)
class Blob:
    """A file of raw values that a Case refers to."""

    name: str
    data: bytes


def alignment(x: torch.Tensor) -> int:
    address = x.data_ptr()
    return min(256, address & -address) if address else 256


def tensor_entry(x: torch.Tensor, name: str, parameter: bool, blobs: list[Blob]) -> dict[str, Any]:
    """A Case's entry of one tensor. parameter: a table or weight; small ones keep their values."""
    if dtype_name(x.dtype) not in DTYPES:
        raise NotATarget(f"{name} is {dtype_name(x.dtype)}, which no Op takes")
    entry: dict[str, Any] = {
        "dtype": dtype_name(x.dtype),
        "shape": list(x.shape),
        "stride": list(x.stride()),
        "align": alignment(x),
    }
    entry["fill"] = _fill(x.detach().cpu(), name, parameter, blobs)
    return entry


def _fill(x: torch.Tensor, name: str, parameter: bool, blobs: list[Blob]) -> dict[str, Any]:
    keep = not x.dtype.is_floating_point or (parameter and x.numel() <= VALUES_LIMIT)
    if not keep and x.numel() and not torch.isfinite(x).all():
        keep = True  # an additive mask: its infinities are the point
    if keep:
        blob = Blob(f"{name}.bin", _bytes_of(x))
        blobs.append(blob)
        return {"kind": "values", "file": blob.name}
    wide = x.double()
    mean = float(wide.mean()) if x.numel() else 0.0
    std = float(wide.std(correction=0)) if x.numel() else 1.0
    if std <= 1e-6 * max(1.0, abs(mean)):
        # Weights that were never trained are constant; inputs that are would hide a wrong kernel.
        std = 0.25 * max(1.0, abs(mean))
    return {"kind": "normal", "mean": _short(mean), "std": _short(std)}


def _short(x: float) -> float:
    return float(f"{x:.6g}")


def _bytes_of(x: torch.Tensor) -> bytes:
    """Little-endian values in row-major order."""
    flat = x.contiguous().reshape(-1)
    return bytes(flat.view(torch.uint8).numpy().tobytes()) if flat.numel() else b""


def case_json(op: str, case: CaseData, index: int) -> tuple[dict[str, Any], list[Blob]]:
    """A Case as docs/formats.md has it, and the files beside it."""
    blobs: list[Blob] = []
    args = {
        name: tensor_entry(v, f"{index}.{name}", False, blobs) if isinstance(v, torch.Tensor) else v
        for name, v in case.args.items()
    }
    devices = {v.device.type for v in case.args.values() if isinstance(v, torch.Tensor)}
    made: dict[str, Any] = {
        "format": FORMAT, "op": op, "device": "cuda" if "cuda" in devices else "cpu", "precision": "native",
        "args": args, "count": case.count,
    }  # fmt: skip
    if case.program is not None:
        text, captured, scalars = case.program
        entries = [tensor_entry(t, f"{index}.captured{i}", True, blobs) for i, t in enumerate(captured)]
        made["program"] = {"text": text, "captured": entries, "scalars": [float(s) for s in scalars]}
    return made, blobs


def write(target: Target, capture: Capture, folder: Path) -> Path:
    """Writes the Task folder of a resolved target; what was at `folder` before is replaced at the end."""
    if not target.cases:
        raise NotATarget(f"{target.title}: it has no Case; resolve it first")
    files: dict[str, bytes] = {}
    for i, case in enumerate(target.cases):
        made, blobs = case_json(target.op, case, i)
        files[f"cases/{i}.json"] = _json(made)
        for blob in blobs:
            files[f"cases/{blob.name}"] = blob.data
    if target.canonical:
        files["op.json"] = canonical_contract(target.op)
    else:
        lifted = lift(target)
        files["op.json"] = _json(contract(target, lifted))
        files["reference.pt2"] = archive(lifted, tuple(target.cases[0].args.values()))
    if target.graph_text is not None:
        files["graph.txt"] = target.graph_text.encode()
    files["task.json"] = _json(_task_json(target, capture))
    write_folder(folder, files)
    return folder


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
        "flags": {
            "matmul_tf32": bool(torch.backends.cuda.matmul.allow_tf32),
            "cudnn_tf32": bool(torch.backends.cudnn.allow_tf32),
            "matmul_precision": torch.get_float32_matmul_precision(),
        },
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


# Ops of the model's own


@dataclass(frozen=True)
class Lifted:
    """A graph as a function of tensors alone, all of them inputs, with a flat tuple of outputs."""

    module: fx.GraphModule
    names: tuple[str, ...]
    outputs: tuple[torch.Tensor, ...]  # fake tensors
    reduction: int


def lift(target: Target) -> Lifted:
    """The target's graph with parameters and buffers as inputs, numbers written in, outputs flat."""
    graph = target.graph
    if graph is None:
        raise NotATarget(f"{target.title}: {target.no_graph or 'it has no graph'}")
    new, copies = fx.Graph(), {}
    names: dict[str, Any] = {}
    outputs: list[fx.Node] = []
    for g in tensor_inputs(graph):
        name = argument_name(g.node.name, names)
        names[name] = g
        copies[g.node] = new.placeholder(name)
        copies[g.node].meta = dict(g.node.meta)
    for n in graph.module.graph.nodes:
        if n.op == "placeholder":
            copies.setdefault(n, None if isinstance(n.meta.get("val"), torch.Tensor) else n.meta.get("val"))
        elif n.op == "output":
            outputs = [x for x in pytree.tree_leaves(n.args[0]) if isinstance(x, fx.Node)]
            new.output(tuple(copies[x] for x in outputs))
        else:
            copies[n] = new.node_copy(n, lambda x: copies[x])
    fakes = tuple(x.meta["val"] for x in outputs)
    if not fakes:
        raise NotATarget(f"{target.title}: its forward gives no tensor")
    return Lifted(fx.GraphModule(graph.module, new), tuple(names), fakes, _reduction(graph.module))


def _reduction(gm: fx.GraphModule) -> int:
    """The most elements that one operation of the graph sums into one."""
    longest = 1
    for n in gm.graph.nodes:
        name = op_name(n)
        if name in ("linear", "matmul", "bmm", "mm", "addmm", "baddbmm"):
            first = n.args[1] if name in ("addmm", "baddbmm") else n.args[0]
            longest = max(longest, shape_of(first)[-1])
        elif name.startswith("conv"):
            longest = max(longest, math.prod(shape_of(n.args[1])[1:]))
        elif name in ("sum", "mean", "softmax", "_softmax", "log_softmax", "var", "std", "norm", "layer_norm",
                      "native_layer_norm", "group_norm", "cumsum", "logsumexp", "scaled_dot_product_attention"):  # fmt: skip
            source = next((x for x in n.all_input_nodes if isinstance(x.meta.get("val"), torch.Tensor)), None)
            value = n.meta.get("val")
            if source is not None and isinstance(value, torch.Tensor):
                kept = value.numel() if value.numel() < math.prod(shape_of(source)) else math.prod(shape_of(source)[:-1])
                longest = max(longest, math.prod(shape_of(source)) // max(1, kept))
    return longest


def contract(target: Target, lifted: Lifted) -> dict[str, Any]:
    """op.json of an Op of the model's own: sizes have names, as far as there is room, and one value each."""
    args, checks, named = [], [], 0
    if len(lifted.names) > MAX_ARGS:
        raise NotATarget(f"{target.title}: it reads {len(lifted.names)} tensors; an Op takes at most {MAX_ARGS}")
    if len(lifted.outputs) > MAX_OUTPUTS:
        raise NotATarget(f"{target.title}: it gives {len(lifted.outputs)} tensors; an Op gives at most {MAX_OUTPUTS}")
    values = target.cases[0].args
    for name in lifted.names:
        x = values[name]
        if x.ndim > MAX_RANK:
            raise NotATarget(f"{target.title}: {name} has {x.ndim} dims; an Op takes at most {MAX_RANK}")
        shape = []
        for i, size in enumerate(x.shape):
            if named < MAX_DIMS:
                shape.append(f"{name}_{i}")
                checks.append(
                    {
                        "expr": f"{name}_{i} == {size}",
                        "message": f"size {i} of {name} must be {size}, as it was captured",
                    }
                )
                named += 1
            else:
                shape.append(str(size))
        args.append({"name": name, "type": "Tensor", "dtypes": [dtype_name(x.dtype)], "shape": shape})
    outputs = [
        {
            "name": "output" if len(lifted.outputs) == 1 else f"output{i}",
            "dtype": dtype_name(x.dtype),
            "shape": [str(int(s)) for s in x.shape],
        }
        for i, x in enumerate(lifted.outputs)
    ]
    returns = "Tensor" if len(outputs) == 1 else "(" + ", ".join(["Tensor"] * len(outputs)) + ")"
    return {
        "format": FORMAT,
        "op": target.op,
        "schema": f"{target.op}({', '.join(f'Tensor {n}' for n in lifted.names)}) -> {returns}",
        "args": args,
        "dims": [],
        "dynamic": [],
        "checks": checks,
        "outputs": outputs,
        "holes": [],
        "reduction": str(lifted.reduction),
        "flops": str(_flops(lifted, tuple(values.values()))),
        "reference": {"kind": "export", "file": "reference.pt2"},
    }


def _flops(lifted: Lifted, values: tuple[torch.Tensor, ...]) -> int:
    """Multiplications and additions of the matrix products and convolutions, counted on fake tensors."""
    from torch.utils.flop_counter import FlopCounterMode

    with torch.no_grad(), preserved_rng(), FlopCounterMode(display=False) as counter:
        lifted.module(*values)
    return int(counter.get_total_flops())


def archive(lifted: Lifted, values: tuple[torch.Tensor, ...]) -> bytes:
    """The lifted graph as the bytes of a torch.export archive, without anyone's weights."""
    import io

    with torch.no_grad(), preserved_rng(), quiet():
        try:
            program = torch.export.export(_Call(lifted.module), values, strict=False)
            # The archive would hold the inputs that it was made with: the user's weights.
            program.example_inputs = None
            out = io.BytesIO()
            torch.export.save(program, out)
        except Exception as e:
            raise NotATarget(f"torch.export.save: {type(e).__name__}: {str(e).splitlines()[0][:200]}") from e
    return out.getvalue()


class _Call(nn.Module):
    def __init__(self, inner: fx.GraphModule):
        super().__init__()
        self.inner = inner

    def forward(self, *tensors: torch.Tensor) -> Any:
        return self.inner(*tensors)


# Reading

_TASK_KEYS = {
    "format", "op", "title", "mode", "cases", "graph", "no_graph", "share", "flags", "source", "torch", "kgen",
}  # fmt: skip
_CASE_KEYS = {"format", "op", "device", "precision", "args", "program", "count"}
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

    def blob(self, name: str) -> bytes:
        """The bytes of a values file of a Case."""
        if Path(name).name != name:
            raise BadInput(f"{self.folder}/cases: {name} is not the name of a file beside the Case")
        return _read(self.folder / "cases" / name)


def read(folder: Path) -> Task:
    """The Task in a folder; BadInput names the file and the key that is wrong."""
    folder = Path(folder)
    meta = read_json(folder / "task.json", _TASK_KEYS)
    contract_ = read_json(folder / "op.json", None)
    count = meta.get("cases")
    if not isinstance(count, int) or isinstance(count, bool) or count < 1:
        raise BadInput(f"{folder}/task.json: cases is {count!r}, expected a number of 1 or more")
    if contract_.get("op") != meta.get("op"):
        raise BadInput(f"{folder}: task.json is of {meta.get('op')}, op.json of {contract_.get('op')}")
    cases = []
    for i in range(count):
        path = folder / "cases" / f"{i}.json"
        case = read_json(path, _CASE_KEYS)
        if case.get("op") != meta["op"]:
            raise BadInput(f"{path}: op is {case.get('op')!r}, expected {meta['op']!r}")
        for where, entry in tensor_entries(case):
            _check_tensor(path, where, entry)
        cases.append(case)
    return Task(folder, meta, contract_, tuple(cases))


def tensor_entries(case: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """The tensors of a Case with the key path of each."""
    for name, value in case.get("args", {}).items():
        if isinstance(value, dict):
            yield f"args.{name}", value
    for i, value in enumerate((case.get("program") or {}).get("captured", [])):
        yield f"program.captured[{i}]", value


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as e:
        raise BadInput(f"{path}: {e.strerror or e}") from e


def read_json(path: Path, known: set[str] | None) -> dict[str, Any]:
    """An object with "format": 1 and no key beyond `known`."""

    def pairs(items: list[tuple[str, Any]]) -> dict[str, Any]:
        made: dict[str, Any] = {}
        for k, v in items:
            if k in made:
                raise BadInput(f"{path}: {k} is given twice")
            made[k] = v
        return made

    def refuse(word: str) -> None:
        raise BadInput(f"{path}: {word} is not a JSON number")

    try:
        value = json.loads(_read(path).decode("utf-8"), object_pairs_hook=pairs, parse_constant=refuse)
    except (UnicodeDecodeError, json.JSONDecodeError, RecursionError) as e:
        raise BadInput(f"{path}: {e}") from e
    if not isinstance(value, dict):
        raise BadInput(f"{path}: expected an object")
    form = value.get("format")
    if form != FORMAT or isinstance(form, bool):
        newer = isinstance(form, int) and not isinstance(form, bool) and form > FORMAT
        why = f"format {form} is newer than this kgen, which reads format {FORMAT}" if newer else (
            f'expected "format": {FORMAT}, found {form!r}'
        )  # fmt: skip
        raise BadInput(f"{path}: {why}")
    unknown = sorted(set(value) - known) if known is not None else []
    if unknown:
        raise BadInput(f"{path}: unknown key {unknown[0]}; known are {', '.join(sorted(known or ()))}")
    return value


def _check_tensor(path: Path, where: str, entry: dict[str, Any]) -> None:
    def fail(what: str) -> BadInput:
        return BadInput(f"{path}: {where}{what}")

    if set(entry) != _TENSOR_KEYS:
        odd = sorted(set(entry) ^ _TENSOR_KEYS)[0]
        raise fail(f": key {odd} is {'missing' if odd in _TENSOR_KEYS else 'unknown'}; keys are {sorted(_TENSOR_KEYS)}")
    if entry["dtype"] not in DTYPES:
        raise fail(f".dtype is {entry['dtype']!r}, expected one of {', '.join(DTYPES)}")
    for key in ("shape", "stride"):
        sizes = entry[key]
        if not isinstance(sizes, list) or not all(type(s) is int and 0 <= s < 1 << 40 for s in sizes):
            raise fail(f".{key} must be a list of sizes of 0 or more")
    if len(entry["shape"]) != len(entry["stride"]):
        raise fail(f".stride has {len(entry['stride'])} entries, shape {len(entry['shape'])}")
    fill = entry["fill"]
    kind = fill.get("kind") if isinstance(fill, dict) else None
    if kind not in _FILLS:
        raise fail(f".fill.kind is {kind!r}, expected one of {', '.join(_FILLS)}")
    if set(fill) != _FILLS[kind] | {"kind"}:
        raise fail(f".fill of kind {kind} has keys {sorted(fill)}, expected kind and {', '.join(sorted(_FILLS[kind]))}")
