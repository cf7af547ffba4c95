"""Whether a reference can be one: what must hold before anything is judged by it.

A Task folder may have been edited by hand, and its reference is anybody's code. Each thing that makes it useless is told
in one line with the reason; a Candidate is never blamed for it.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from .capture import copy_of
from .compare import own_elements
from .devices import is_out_of_memory, of_case
from .errors import BadInput, EnvironmentLacks, KgenError
from .graphs import dtype_name, first_line, preserved_rng
from .task import DTYPES

if TYPE_CHECKING:
    from .reference import Drawn, Reference
    from .task import Task

# Of more elements no copies are made: a device may have no room for them.
MANY = 1 << 26
# On a GPU sums may be made in another order each time.
GPU_EPS = 64.0


def unique_elements(entry: dict[str, Any]) -> int:
    """Elements of a Case's tensor that lie in places of their own: dims of stride 0 repeat one."""
    sizes = zip(entry["shape"], entry["stride"], strict=True)
    return math.prod(1 if stride == 0 and size > 1 else size for size, stride in sizes)


def check_size(task: Task, index: int, outputs: int, free: int) -> None:
    """EnvironmentLacks when a set of a Case does not fit in memory. outputs: elements of its outputs; free: bytes."""
    tensors = [v for v in task.cases[index]["args"].values() if isinstance(v, dict)]
    elements = sum(unique_elements(v) for v in tensors) + outputs
    # Inputs and outputs in fp64, once drawn or computed and once kept; and inputs with the gaps that their strides leave.
    need = 16 * elements + sum(8 * _span(v) for v in tensors)
    if of_case(task.cases[index]).type == "cpu" and need > free:
        raise EnvironmentLacks(
            f"{task.folder}/cases/{index}.json: {elements} elements of inputs and outputs, as they are laid out, take "
            f"{_gib(need)} GiB in fp64, and {_gib(free)} GiB are free on this machine"
        )


def _span(entry: dict[str, Any]) -> int:
    """Elements from the first to the last in memory."""
    return 1 + sum((size - 1) * stride for size, stride in zip(entry["shape"], entry["stride"], strict=True) if size > 1)


def _gib(n: int) -> str:
    return f"{n / (1 << 30):.1f}"


def check(reference: Reference, drawn: Drawn) -> None:
    """BadInput when the reference of a Task cannot be judged by, on these inputs. kgen's own formulas need no check."""
    if reference.task.op in ("softmax", "attention"):
        return
    where = f"{reference.task.folder}: the reference"
    tensors = {n: own_elements(x) for n, x in drawn.args.items() if isinstance(x, Tensor)}
    many = sum(x.numel() for x in tensors.values()) > MANY
    given = {n: (x._version, None if many else copy_of(x)) for n, x in tensors.items()}
    with preserved_rng():  # around both runs: what draws random numbers gives others the second time
        first = _run(reference, drawn, where)
        second = () if many else _run(reference, drawn, where)
    for name, (version, before) in given.items():
        now = tensors[name]
        if now._version != version or (before is not None and not _same(before, now, 0.0)):
            raise BadInput(f"{where} writes its input {name}; it must leave its inputs as they are (clone them)")
    _check_outputs(reference, first, where)
    for i, (a, b) in enumerate(zip(first, second, strict=False)):
        eps = GPU_EPS * torch.finfo(a.dtype).eps if a.is_cuda and a.dtype.is_floating_point else 0.0
        if a.shape != b.shape or a.dtype != b.dtype or not _same(a, b, eps):
            name = reference.task.contract["outputs"][i]["name"]
            raise BadInput(f"{where} is not deterministic: two runs on the same inputs differ in {name}")


def _run(reference: Reference, drawn: Drawn, where: str) -> tuple[Any, ...]:
    try:
        with torch.no_grad():
            return reference.run(drawn)
    except (KgenError, KeyboardInterrupt, MemoryError):
        raise
    except SystemExit as e:
        raise BadInput(f"{where} called sys.exit({e.code!r})") from e
    except Exception as e:
        if is_out_of_memory(e):
            raise
        raise BadInput(f"{where} raises {first_line(e)}") from e


def _check_outputs(reference: Reference, outputs: tuple[Any, ...], where: str) -> None:
    wanted = reference.task.contract["outputs"]
    if len(outputs) != len(wanted):
        names = ", ".join(o["name"] for o in wanted)
        raise BadInput(f"{where} gives {len(outputs)} tensors; op.json has {len(wanted)} ({names})")
    for o, x in zip(wanted, outputs, strict=True):
        if not isinstance(x, Tensor):
            raise BadInput(f"{where} gives a {type(x).__name__} for {o['name']}; expected a tensor")
        if dtype_name(x.dtype) not in DTYPES:
            known = ", ".join(DTYPES)
            raise BadInput(f"{where} gives {dtype_name(x.dtype)} for {o['name']}; outputs are of {known}")
        if x.layout != torch.strided or x.is_quantized:
            raise BadInput(f"{where} gives a tensor of layout {x.layout} for {o['name']}; expected a dense one")
        device = of_case(reference.task.cases[0], reference.index)
        if x.device.type != device.type:
            raise BadInput(f"{where} gives {o['name']} on {x.device}; the Case is on {device.type}")


def _same(a: Tensor, b: Tensor, eps: float) -> bool:
    """Equal, NaN to NaN; eps: in units of the largest, for sums in another order."""
    if torch.equal(a, b):
        return True
    if not a.dtype.is_floating_point:
        return False
    wide, other = a.double(), b.double()
    scale = float(torch.nan_to_num(wide, 0, 0, 0).abs().max()) if wide.numel() else 0.0
    return torch.allclose(wide, other, rtol=0, atol=eps * scale, equal_nan=True)
