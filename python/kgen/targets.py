"""What of a captured model kgen could make faster: Ops, their Cases, and how much each is worth.

Canonical Ops come from recognised subgraphs, each checked against the original on the captured values. Modules
become Ops of their own, exported only when they are asked for. Nothing is written here; task.py does that.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import fx, nn
from torch.utils import _pytree as pytree

from . import devices, recognise, rewrite
from .capture import Calls, Capture, Part
from .errors import BadInput, NotATarget
from .graphs import (
    FunctionModule,
    Graph,
    Recorder,
    export,
    flat_inputs,
    lines_of,
    lookup,
)
from .recognise import Attention, Match, Norm, Operand, Product, Softmax

VERIFY_BYTES = 1 << 31
# Of a product, the multiplications that are made in fp64 to compare it.
VERIFY_PRODUCTS = 1 << 31


@dataclass
class CaseData:
    """One Case with the values it was captured with. args: by name, a tensor or an attribute's value.

    program is None, or the text, the captured tensors and the scalars. count: calls in one run of the model.
    kept: tensors whose values travel as they are, since others would mean nothing: buffers (a variance, say).
    skip: optional outputs of the Op that the model does not use.
    """

    args: dict[str, Any]
    program: tuple[str, list[torch.Tensor], tuple[float, ...]] | None = None
    count: int = 1
    density: float = 1.0
    kept: frozenset[str] = frozenset()
    skip: tuple[str, ...] = ()


@dataclass
class Target:
    """An Op of the model. share: of the model's time, for all Cases; floor is in seconds a run, None: unknown."""

    op: str
    title: str
    canonical: bool
    share: float
    seconds: float
    floor: float | None
    cases: list[CaseData] = field(default_factory=list)
    paths: list[str] = field(default_factory=list)
    graph: Graph | None = None
    graph_text: str | None = None
    no_graph: str | None = None
    source: tuple[bytes, str] | None = None  # without a graph: the model's file and the name within it
    source_outputs: tuple[torch.Tensor, ...] = ()
    reason: str | None = None  # why it is no target; then nothing else counts
    part: Part | None = None
    variants: dict[tuple[Any, ...], Variant] = field(default_factory=dict)  # of an own Op, by signature
    notes: tuple[str, ...] = ()

    @property
    def headroom(self) -> float:
        """The share of the model's time that a kernel at the floor would save."""
        if self.floor is None or self.seconds <= 0:
            return self.share
        return self.share * max(0.0, 1.0 - self.floor / self.seconds)


@dataclass
class Variant:
    """One signature that an Op of the model's own is called with. outputs: the sizes it gives, once resolved."""

    part: Part
    calls: Calls
    count: int = 0
    outputs: tuple[tuple[int, ...], ...] = ()


@dataclass
class Left:
    """A part that looks like an Op and is left alone, and why."""

    op: str
    path: str
    reason: str


@dataclass
class Unit:
    """A part of the model that has a graph."""

    path: str
    graph: Graph
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    count: int


@dataclass
class Survey:
    """All Targets of a model, the most rewarding first."""

    targets: list[Target]
    left: list[Left]
    no_graph: list[tuple[str, str]]
    seconds: float
    machine: Machine


# Graphs


def units(capture: Capture) -> tuple[list[Unit], list[tuple[str, str]]]:
    """The graph of the whole model, or of the largest parts that have one; and the reasons of those without."""
    whole, failed = capture.parts[""], []
    found: list[Unit] = []
    queue = [(whole, calls) for calls in whole.calls.values()]
    while queue:
        part, calls = queue.pop(0)
        args, kwargs = inputs(capture, part, calls)
        try:
            if part.writes:
                raise NotATarget(part.refusal or "")
            with capture.running() as root:
                graph = export(lookup(root, part.path) if part.path else root, args, kwargs)
            found.append(Unit(part.path, graph, args, kwargs, calls.count))
        except NotATarget as e:
            failed.append((part.path, str(e)))
            queue += [(p, c) for p in _children(capture, part) for c in p.calls.values()]
    return found, failed


def inputs(capture: Capture, part: Part, calls: Calls) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The arguments of such a call of part, in a run of the model."""
    if not part.path:
        return capture.model.args, capture.model.kwargs
    return capture.inputs_of({part.path: calls.signature})[part.path]


def _children(capture: Capture, part: Part) -> list[Part]:
    """The parts directly below: those with calls, containers without a forward of their own skipped."""
    prefix = part.path + "." if part.path else ""
    below = [p for path, p in capture.parts.items() if path and path.startswith(prefix) and path != part.path]
    return [p for p in below if not any(o is not p and p.path.startswith(o.path + ".") for o in below)]


# Recognised Ops


def survey(capture: Capture, own: bool = True) -> Survey:
    """The Targets of a capture. own: also list the model's modules as Ops of their own."""
    graphs, failed = units(capture)
    machine = Machine.measure(capture.device)
    targets: dict[str, Target] = {}
    left: list[Left] = []
    for unit in graphs:
        _survey_unit(capture, unit, machine, targets, left)
    listed = list(targets.values())
    if own:
        from .own import own_targets

        listed += own_targets(capture)
    listed.sort(key=lambda t: (not t.canonical, t.reason is not None, -t.headroom))
    return Survey(listed, left, failed, capture.seconds, machine)


def _survey_unit(
    capture: Capture, unit: Unit, machine: Machine, targets: dict[str, Target], left: list[Left]
) -> None:
    found = recognise.find(unit.graph)
    left += [Left(m.op, join(unit.path, m.path), m.reason) for m in found.misses]
    matches = []
    for match in found.matches:
        reason = _refused(capture, unit, match)
        if reason:
            left.append(Left(match.op, join(unit.path, match.path), reason))
        else:
            matches.append(match)
    if not matches:
        return
    values = record(capture, unit, matches)
    checked: dict[str, str | None] = {}
    timed: dict[str, float] = {}
    for match in matches:
        gm, order = rewrite.original(match)
        key = subgraph_key(gm, match)
        if key not in checked:
            checked[key] = check(match, values)
            if checked[key] is None:
                timed[key] = time_of(lambda gm=gm, order=order: gm(*[values[n] for n in order]))
        path = join(unit.path, match.path)
        if checked[key] is not None:
            left.append(Left(match.op, path, checked[key] or ""))
            continue
        _add_case(targets, match, values, unit.count, timed[key], path, capture, machine)


def join(outer: str, inner: str) -> str:
    return ".".join(p for p in (outer, inner) if p)


def _refused(capture: Capture, unit: Unit, match: Match) -> str | None:
    part = capture.parts.get(join(unit.path, match.path))
    return part.refusal if part is not None and match.path else None


def subgraph_key(gm: fx.GraphModule, match: Match) -> str:
    """Equal for subgraphs that compute the same from inputs of the same layout; lifted constants by value."""
    strides = [_value_type(n) for n in gm.graph.nodes if n.op == "placeholder"]
    d = match.detail
    program: Any = (d.program, d.scalars, d.scale) if isinstance(d, Attention) else None
    if isinstance(d, Product):
        program = (d.program, d.scalars, d.attributes)
    return f"{lines_of(gm, {})}{strides}{match.op}{program}"


def subgraph_text(match: Match) -> str:
    """The recognised part of the graph, as graph.txt shows it."""
    gm, _ = rewrite.original(match)
    return lines_of(gm, {})


def _value_type(n: fx.Node) -> Any:
    v = n.meta.get("val")
    return (str(v.dtype), tuple(v.shape), tuple(v.stride())) if isinstance(v, torch.Tensor) else type(v).__name__


def record(capture: Capture, unit: Unit, matches: list[Match]) -> dict[fx.Node, Any]:
    """The values in a run of the model of all nodes that the matches compute from."""
    keep: set[fx.Node] = set()
    for match in matches:
        keep |= set(rewrite.original(match)[1])
    recorder = Recorder(unit.graph.module, keep)
    with capture.running() as root:
        module = lookup(root, unit.path) if unit.path else root
        recorder.run(*flat_inputs(unit.graph, module, unit.args, unit.kwargs))
    return recorder.kept


def check(match: Match, values: dict[fx.Node, Any]) -> str | None:
    """rewrite.verify, in the values' own dtypes when the scores, or on a GPU all of them, are too many to hold in fp64."""
    d = match.detail
    device = next((v.device for v in values.values() if isinstance(v, torch.Tensor) and v.is_cuda), None)
    if device is not None and match.out.meta["val"].numel() * 8 * 6 > devices.free_bytes(device):
        return rewrite.verify(match, values, wide=False)
    if isinstance(d, Attention):
        scores = math.prod(d.query.shape[:3]) * d.key.shape[2]
        if scores * 8 * 4 > VERIFY_BYTES:
            return rewrite.verify(match, values, wide=False)
    if isinstance(d, Product):
        x = d.tensors[0].meta["val"]
        terms = d.tensors[1].meta["val"][0].numel() if match.op == "conv2d" else x.shape[-1]
        if match.out.meta["val"].numel() * terms > VERIFY_PRODUCTS:
            return rewrite.verify(match, values, wide=False)
    return rewrite.verify(match, values)


def time_of(f: Callable[[], Any], budget: float = 1.0) -> float:
    """The median time of a call in seconds, after one to warm up."""
    spent: list[float] = []
    with torch.no_grad():
        result = f()
        used = {x.device for x in pytree.tree_leaves(result) if isinstance(x, torch.Tensor)}
        while len(spent) < 3 or (len(spent) < 9 and sum(spent) < budget):
            _wait(used)
            start = time.perf_counter()
            result = f()
            _wait(used)
            spent.append(time.perf_counter() - start)
            if sum(spent) > 5 * budget:
                break
    return sorted(spent)[len(spent) // 2]


def _wait(used: set[torch.device]) -> None:
    for device in used:
        devices.synchronize(device)


def view_of(x: Operand, values: dict[fx.Node, Any]) -> torch.Tensor:
    """The value of an operand, made by the same layout operations as in the graph."""
    g = fx.Graph()
    node = g.placeholder("x")
    node.meta["val"] = values[x.node]
    g.output(rewrite.materialise(g, Operand(node, x.dims, x.shape, x.contiguous)))
    return fx.GraphModule(nn.Module(), g)(values[x.node])


def case_of(match: Match, values: dict[fx.Node, Any], count: int) -> CaseData:
    d = match.detail
    if isinstance(d, Softmax):
        x = values[d.input]
        return CaseData({"input": x if x.dtype == d.dtype else x.to(d.dtype), "dim": d.dim}, None, count)
    if isinstance(d, Norm):
        weight, bias = (None if n is None else values[n] for n in (d.weight, d.bias))
        args = {"input": values[d.input], "normalized_shape": list(d.shape), "weight": weight, "bias": bias, "eps": d.eps}
        if match.op == "rms_norm":
            del args["bias"]
        return CaseData(args, None, count)
    if isinstance(d, Product) and match.op == "conv2d":
        from . import convolution

        operands = [None if n is None else values[n] for n in d.operands]
        args, captured = convolution.contract_call(operands, d.attributes, [values[n] for n in d.captured])
        return CaseData(args, (d.program, captured, d.scalars) if d.program else None, count)
    if isinstance(d, Product):
        from .products import contract_call

        operands = [None if n is None else values[n] for n in d.operands]
        if d.transposed:
            operands[1] = operands[1].mT
        args, captured = contract_call(match.op, operands, [values[n] for n in d.captured])
        return CaseData(args, (d.program, captured, d.scalars), count)
    args = {
        "query": view_of(d.query, values), "key": view_of(d.key, values), "value": view_of(d.value, values),
        "scale": d.scale, "enable_gqa": d.enable_gqa,
    }  # fmt: skip
    program = None
    if d.program is not None:
        program = (d.program, [view_of(x, values) for x in d.captured], d.scalars)
    return CaseData(args, program, count, d.density, skip=("lse",))


def case_key(case: CaseData) -> tuple[Any, ...]:
    """Cases with equal keys are one Case: same shapes, layouts, dtypes, attributes and Program."""

    def tensor(x: Any) -> Any:
        if isinstance(x, torch.Tensor):
            return str(x.dtype), tuple(x.shape), tuple(x.stride())
        return tuple(x) if isinstance(x, list) else x

    args = tuple((k, tensor(v)) for k, v in case.args.items())
    if case.program is None:
        return args, None
    text, captured, scalars = case.program
    return args, (text, tuple(tensor(t) for t in captured), scalars)


def _add_case(
    targets: dict[str, Target], match: Match, values: dict[fx.Node, Any], count: int, seconds: float, path: str,
    capture: Capture, machine: Machine,
) -> None:  # fmt: skip
    case = case_of(match, values, count)
    target = targets.setdefault(match.op, Target(match.op, match.op, True, 0.0, 0.0, 0.0))
    same = next((c for c in target.cases if case_key(c) == case_key(case)), None)
    if same is None:
        target.cases.append(case)
    else:
        same.count += count
    if target.graph_text is None:
        target.graph_text = subgraph_text(match)
    target.seconds += seconds * count
    target.share = min(1.0, target.seconds / capture.seconds) if capture.seconds > 0 else 0.0
    target.floor = (target.floor or 0.0) + machine.floor(case) * count
    target.paths.append(path)
    first = target.paths[0] or capture.model.title
    target.title = first if len(target.paths) == 1 else f"{first} and {len(target.paths) - 1} more"
    target.notes = tuple(dict.fromkeys(target.notes + match.notes))


# What the machine can do


def fastest(f: Callable[[], Any], budget: float = 0.1) -> float:
    """The least time of a call in seconds: what the machine can do, however busy it is now."""
    spent: list[float] = []
    with torch.no_grad():
        f()
        while len(spent) < 5 or sum(spent) < budget:
            start = time.perf_counter()
            f()
            spent.append(time.perf_counter() - start)
    return min(spent)


@dataclass(frozen=True)
class Machine:
    """Measured rates: bytes a second that a copy moves (read and written), operations a second: of float32 as float32 is,
    and of each dtype that a GPU's tensor cores take."""

    bytes_per_second: float
    flops_per_second: float
    tensor_flops: dict[torch.dtype, float] = field(default_factory=dict)

    @staticmethod
    def measure(device: torch.device = devices.CPU) -> Machine:
        if device.type == "cuda":
            return _measure_gpu(device)
        a = torch.zeros(1 << 23)
        b = torch.empty_like(a)
        moved = 2 * a.numel() * 4 / fastest(lambda: b.copy_(a))
        m = torch.randn(768, 768)
        flops = 2 * 768**3 / fastest(lambda: m @ m)
        return Machine(moved, flops)

    def flops_of(self, dtype: torch.dtype) -> float:
        """The rate of the fastest unit that reaches a dtype's class; infinite where none is known. float32 can be made of
        three float16 products, each exact in float32's accumulator."""
        if dtype == torch.float32:
            return max(self.flops_per_second, self.tensor_flops.get(torch.float16, 0.0) / 3)
        if dtype in self.tensor_flops:
            return self.tensor_flops[dtype]
        return self.flops_per_second if not self.tensor_flops else math.inf

    def floor(self, case: CaseData) -> float:
        """Seconds that the Case must take: its bytes at the measured rate or its flops, whichever is more."""
        tensors = [x for x in case.args.values() if isinstance(x, torch.Tensor)]
        if "query" in case.args:
            q, k, v = (case.args[n] for n in ("query", "key", "value"))
            out = q.numel() // max(1, q.shape[3]) * v.shape[3] * q.element_size()
            captured = case.program[1] if case.program else []
            flops = 2.0 * q.shape[0] * q.shape[1] * q.shape[2] * k.shape[2] * (q.shape[3] + v.shape[3])
            flops *= case.density
            moved = sum(_bytes(t) for t in (*tensors, *captured)) + out
            rate = self.flops_of(q.dtype)
        elif "stride" in case.args:
            x, weight, stride = (case.args[n] for n in ("input", "weight", "stride"))
            given = [case.args[n] for n in ("padding", "dilation", "groups")]
            out = torch.nn.functional.conv2d(x.to("meta"), weight.to("meta"), None, stride, *given).numel()
            captured = case.program[1] if case.program else []
            flops, rate = 2.0 * out * weight[0].numel(), self.flops_of(x.dtype)
            moved = sum(_bytes(t) for t in (*tensors, *captured)) + out * x.element_size()
        elif "other" in case.args or ("weight" in case.args and "normalized_shape" not in case.args):
            x, second = tensors[0], tensors[1]
            n = second.shape[0] if "weight" in case.args else second.shape[-1]
            rows = x.numel() // max(1, x.shape[-1])
            captured = case.program[1] if case.program else []
            flops, moved = 2.0 * rows * n * x.shape[-1], sum(_bytes(t) for t in (*tensors, *captured))
            moved, rate = moved + rows * n * x.element_size(), self.flops_of(x.dtype)
        else:
            # The output is as large as the input, which comes first.
            flops, moved, rate = 0.0, sum(_bytes(t) for t in (tensors[0], *tensors)), self.flops_per_second
        return max(moved / self.bytes_per_second, flops / rate)


def _measure_gpu(device: torch.device) -> Machine:
    """By copies and products of torch; the judge's own rates hold a Candidate to its floor."""
    with devices.room_for(device, "measuring its rates"):
        room = devices.free_bytes(device)
        a = torch.zeros(min(1 << 28, max(1 << 22, room // 16)), device=device)
        b = torch.empty_like(a)
        moved = 2 * a.numel() * 4 / min(devices.seconds_of(lambda: b.copy_(a), device, 10))
        del a, b
        n = 4096 if room > 2 << 30 else 1024
        rates = {}
        with devices.arithmetic({"device": "cuda"}):
            for dtype in (torch.float32, torch.float16, torch.bfloat16):
                m = torch.randn(n, n, device=device).to(dtype)
                rates[dtype] = 2 * n**3 / min(devices.seconds_of(lambda m=m: m @ m, device, 10))
    devices.release(device)
    return Machine(moved, rates.pop(torch.float32), rates)


def _bytes(x: torch.Tensor) -> int:
    return x.untyped_storage().nbytes() if 0 in x.stride() else x.numel() * x.element_size()



# Ops of the model's own


def resolve(capture: Capture, target: Target) -> Target:
    """Gives an own target its graph, its Cases and its full name; NotATarget with the reason if it has none."""
    from . import own

    return target if target.canonical or target.cases else own.resolve(capture, target)


def class_name(module: nn.Module) -> str:
    if isinstance(module, FunctionModule):
        return getattr(module.function, "__name__", "function")
    return type(module).__name__


def kind_of(module: nn.Module) -> tuple[Any, ...]:
    """Modules alike in class, parameters and plain attributes: with equal inputs they run the same graph."""
    parts = []
    for name, m in module.named_modules():
        plain = sorted(
            (k, v) for k, v in vars(m).items() if not k.startswith("_") and isinstance(v, (int, float, str, bool, tuple))
        )
        parts.append((name, type(m), repr(plain)))
    tensors = [(n, tuple(p.shape), str(p.dtype)) for n, p in (*module.named_parameters(), *module.named_buffers())]
    function = module.function if isinstance(module, FunctionModule) else None
    return tuple(parts), tuple(tensors), function


def _names(target: Target) -> list[str]:
    """What a pattern may call a target: its Op, the paths where it is; for a module also its class."""
    names = [target.op, *filter(None, target.paths)]
    if target.part is not None:
        names += [target.title, class_name(target.part.module)]
    return names


def select(survey_: Survey, patterns: list[str]) -> list[Target]:
    """The targets that patterns name: an Op's name, a module's path or class, with * as in shells."""
    import fnmatch

    chosen: list[Target] = []
    for pattern in patterns:
        hits = [t for t in survey_.targets if any(fnmatch.fnmatch(n, pattern) for n in _names(t))]
        if not hits:
            known = ", ".join(sorted({t.op for t in survey_.targets}))
            raise BadInput(f"--target {pattern} matches nothing; there are {known}, and the paths of their modules")
        chosen += [t for t in hits if t not in chosen]
    return chosen
