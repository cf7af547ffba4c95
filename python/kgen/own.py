"""Ops of a model's own: any module as an Op, with the module itself as the reference.

Parameters and buffers become inputs, so that no archive carries anyone's weights. A module that is called with
several shapes is one Op whose varying sizes are left open, if torch.export can leave them open too; else its first
shape alone counts, and a note says so.
"""

from __future__ import annotations

import hashlib
import inspect
import io
import math
import re
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx, nn
from torch.utils import _pytree as pytree

from .capture import SCRIPT_NAME, Capture, Part
from .errors import NotATarget
from .graphs import (
    FunctionModule,
    Graph,
    GraphInput,
    bind,
    dtype_name,
    export,
    flat_inputs,
    graph_hash,
    op_name,
    preserved_rng,
    quiet,
    shape_of,
    text_of,
)
from .targets import CaseData, Target, Variant, class_name, inputs, kind_of

MAX_ARGS, MAX_DIMS, MAX_RANK, MAX_OUTPUTS = 24, 32, 8, 8
_TRIVIAL = (nn.Identity, nn.Dropout, nn.Flatten, nn.ModuleList, nn.ModuleDict)
_INNER = "inner"


def own_targets(capture: Capture) -> list[Target]:
    """Each distinct module of the model as a Target, the whole Model among them; none exported yet."""
    total = capture.seconds or 1.0
    distinct: dict[tuple[Any, ...], Target] = {}
    for part in capture.parts.values():
        if isinstance(part.module, _TRIVIAL):
            continue
        for calls in part.calls.values():
            key = (*kind_of(part.module), _open(calls.signature))
            if key not in distinct:
                name = part.path or capture.model.title
                distinct[key] = Target(
                    snake(class_name(part.module)), name, False, 0.0, 0.0, None, reason=part.refusal, part=part
                )
            target = distinct[key]
            target.seconds += calls.seconds * calls.count if part.path else capture.seconds
            target.share = min(1.0, target.seconds / total)
            if part.path not in target.paths:
                target.paths.append(part.path)
            variant = target.variants.setdefault(calls.signature, Variant(part, calls))
            variant.count += calls.count
    return list(distinct.values())


def _open(signature: tuple[Any, ...]) -> tuple[Any, ...]:
    """A call's signature with the sizes left out: structure, ranks, dtypes, devices and values."""
    return tuple(
        (len(leaf[0]), *leaf[2:]) if isinstance(leaf, tuple) and isinstance(leaf[0], tuple) else leaf
        for leaf in signature
    )


def snake(name: str) -> str:
    """RelativeAttention -> relative_attention."""
    name = re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", "_", name)
    return re.sub(r"\W+", "_", name).strip("_").lower() or "module"


# Graphs and Cases


class _Flat(nn.Module):
    """A module as a function of the tensors among its arguments."""

    def __init__(self, inner: nn.Module, leaves: list[Any], spec: pytree.TreeSpec):
        super().__init__()
        self.inner = inner
        self._leaves = [None if isinstance(x, torch.Tensor) else x for x in leaves]
        self._at = [i for i, x in enumerate(leaves) if isinstance(x, torch.Tensor)]
        self._spec = spec

    def forward(self, *tensors: torch.Tensor) -> Any:
        leaves = list(self._leaves)
        for i, x in zip(self._at, tensors, strict=True):
            leaves[i] = x
        args, kwargs = pytree.tree_unflatten(leaves, self._spec)
        return self.inner(*args, **kwargs)


Arguments = tuple[tuple[Any, ...], dict[str, Any]]


def resolve(capture: Capture, target: Target) -> Target:
    """Gives a target its graph, its Cases and its full name; NotATarget with the reason if it has none."""
    assert target.part is not None
    if target.part.refusal:
        raise NotATarget(f"{target.title}: {target.part.refusal}")
    variants = list(target.variants.values())
    calls = [inputs(capture, v.part, v.calls) for v in variants]
    try:
        with capture.running():
            graph = export(target.part.module, *calls[0])
    except NotATarget as e:
        return _resolve_source(capture, target, variants[0], calls[0], str(e))
    if len(variants) > 1:
        try:
            target.graph = _dynamic(capture, target, variants, calls)
            graph = target.graph
        except NotATarget as e:
            others = len(variants) - 1
            target.notes = (*target.notes, f"{others} other shapes are left out, since {e}")
            del variants[1:], calls[1:]
    names = _names(graph, target.part.module, calls[0])
    buffers = frozenset(names[g.node] for g in _tensor_inputs(graph) if g.kind in ("buffer", "constant"))
    for variant, arguments in zip(variants, calls, strict=True):
        values = _values(graph, variant.part, arguments, len(variants) > 1)
        named = {names[g.node]: values[g.node] for g in _tensor_inputs(graph)}
        target.cases.append(CaseData(named, None, variant.count, kept=buffers))
    kept = {v.calls.signature for v in variants}
    target.variants = {k: v for k, v in target.variants.items() if k in kept}
    target.graph, target.graph_text = graph, text_of(graph, names)
    target.op = f"{snake(class_name(target.part.module))}_{graph_hash(graph)[:8]}"
    return target


def _resolve_source(capture: Capture, target: Target, variant: Variant, arguments: Arguments, why: str) -> Target:
    """A target without a graph, whose reference is the model's file; NotATarget when that cannot make it again."""
    part, model = variant.part, capture.model
    kernelbench = type(model.module).__module__ == SCRIPT_NAME and type(model.module).__name__ == "Model"
    leaves = [x for value in (*arguments[0], *arguments[1].values()) for x in pytree.tree_leaves(value)]
    if model.source.path is None or not kernelbench:
        raise NotATarget(f"{target.title}: {why}; and no file with a Model that could be its reference instead")
    if len(leaves) != len(arguments[0]) + len(arguments[1]) or not all(isinstance(x, torch.Tensor) for x in leaves):
        raise NotATarget(f"{target.title}: {why}; and not all of its arguments are tensors")
    named = dict(zip(_argument_names(part.module, arguments), leaves, strict=True))
    named.update({state_name(n): x for n, x in (*part.module.named_parameters(), *part.module.named_buffers())})
    with capture.running():
        out = part.module(*arguments[0], **arguments[1])
    target.source_outputs = tuple(x for x in pytree.tree_leaves(out) if isinstance(x, torch.Tensor))
    target.source = (model.source.path.read_bytes(), ".".join(filter(None, ("Model", part.path))))
    buffers = frozenset(state_name(n) for n, _ in part.module.named_buffers())
    target.cases.append(CaseData(named, None, variant.count, kept=buffers))
    target.no_graph = why
    digest = hashlib.sha256(target.source[0] + target.source[1].encode())
    target.op = f"{snake(class_name(part.module))}_{digest.hexdigest()[:8]}"
    return target


def state_name(dotted: str) -> str:
    """The Op's name of a parameter or buffer."""
    return re.sub(r"\W", "_", f"state.{dotted}")


def source_lifted(target: Target) -> Lifted:
    """What contract() needs to know of a target without a graph."""
    sizes = [x.shape[-1] for x in target.cases[0].args.values() if x.ndim]
    return Lifted(None, tuple(target.cases[0].args), target.source_outputs, max([1, *sizes]))


def _dynamic(capture: Capture, target: Target, variants: list[Variant], calls: list[Arguments]) -> Graph:
    """One graph for all variants, checked on each; also notes the sizes of their outputs."""
    leaves, spec = pytree.tree_flatten(calls[0])
    flat = [[x for x in pytree.tree_leaves(c) if isinstance(x, torch.Tensor)] for c in calls]
    module = target.part.module  # type: ignore[union-attr]
    with capture.running():
        graph = export(_Flat(module, leaves, spec), tuple(flat[0]), {}, (_open_dims(flat),))
        runnable = graph.program.module()
        for variant, (args, kwargs), tensors in zip(variants, calls, flat, strict=True):
            want = [x for x in pytree.tree_leaves(module(*args, **kwargs)) if isinstance(x, torch.Tensor)]
            try:
                got = [x for x in pytree.tree_leaves(runnable(*tensors)) if isinstance(x, torch.Tensor)]
            except (RuntimeError, AssertionError) as e:
                raise NotATarget(f"the graph holds for one shape alone ({type(e).__name__})") from e
            for a, b in zip(got, want, strict=True):
                if a.shape != b.shape or not torch.allclose(a.double(), b.double(), 1e-4, 1e-4, equal_nan=True):
                    raise NotATarget("the graph gives other values for another shape")
            variant.outputs = tuple(tuple(x.shape) for x in want)
    return graph


def _open_dims(flat: list[list[torch.Tensor]]) -> tuple[Any, ...]:
    """Per tensor, the dims whose size differs between the calls."""
    dims = []
    for tensors in zip(*flat, strict=True):
        shapes = [t.shape for t in tensors]
        varying = {d for d in range(len(shapes[0])) if len({s[d] for s in shapes}) > 1}
        dims.append({d: torch.export.Dim.DYNAMIC for d in varying} or None)
    return tuple(dims)


def _tensor_inputs(graph: Graph) -> list[GraphInput]:
    """The tensors that the Op takes: the module's inputs, then parameters and buffers that are used."""
    tensors = [g for g in graph.inputs if isinstance(g.node.meta.get("val"), torch.Tensor)]
    return [g for g in tensors if g.kind == "user"] + [g for g in tensors if g.kind != "user" and g.node.users]


def _names(graph: Graph, module: nn.Module, arguments: Arguments) -> dict[fx.Node, str]:
    """The Op's names of its tensors: as the forward and the module call them."""
    user = iter(_argument_names(module, arguments))
    taken: set[str] = set()
    names = {}
    for g in _tensor_inputs(graph):
        name = next(user) if g.kind == "user" else g.target.removeprefix(f"{_INNER}.")
        name = re.sub(r"\W", "_", name)
        name = name if re.match(r"[A-Za-z_]", name) else f"a_{name}"
        while name in taken:
            name += "_"
        taken.add(name)
        names[g.node] = name
    return names


def _argument_names(module: nn.Module, arguments: Arguments) -> list[str]:
    """A name for each tensor among a call's arguments, in flat order."""
    args, kwargs = arguments
    function = module.function if isinstance(module, FunctionModule) else module.forward
    try:
        parameters = list(inspect.signature(function).parameters.values())
    except (TypeError, ValueError):
        parameters = []
    plain = [p.name for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    given = [(plain[i] if i < len(plain) else f"input{i}", a) for i, a in enumerate(args)] + list(kwargs.items())
    names = []
    for name, value in given:
        leaves = [x for x in pytree.tree_leaves(value) if isinstance(x, torch.Tensor)]
        names += [name] if len(leaves) == 1 else [f"{name}_{i}" for i in range(len(leaves))]
    return names


def _values(graph: Graph, part: Part, arguments: Arguments, flat: bool) -> dict[fx.Node, Any]:
    if not flat:
        found = flat_inputs(graph, part.module, *arguments)
    else:
        leaves, spec = pytree.tree_flatten(arguments)
        tensors = tuple(x for x in leaves if isinstance(x, torch.Tensor))
        found = flat_inputs(graph, _Flat(part.module, leaves, spec), tensors, {})
    return dict(zip((g.node for g in graph.inputs), found, strict=True))


# The reference


@dataclass(frozen=True)
class Lifted:
    """A graph as a function of tensors alone, all of them inputs, with a flat tuple of outputs."""

    module: fx.GraphModule | None  # None: the reference is source
    names: tuple[str, ...]
    outputs: tuple[torch.Tensor, ...]  # fake tensors
    reduction: int


def lift(target: Target) -> Lifted:
    """The target's graph with parameters and buffers as inputs, numbers written in, outputs flat."""
    graph = target.graph
    if graph is None or not target.cases:
        raise NotATarget(f"{target.title}: {target.no_graph or 'it has no graph'}")
    names = list(target.cases[0].args)
    new, copies = fx.Graph(), {}
    outputs: list[fx.Node] = []
    for g, name in zip(_tensor_inputs(graph), names, strict=True):
        copies[g.node] = new.placeholder(name)
        copies[g.node].meta = dict(g.node.meta)
    for n in graph.module.graph.nodes:
        if n.op == "placeholder":
            copies.setdefault(n, None if isinstance(n.meta.get("val"), torch.Tensor) else n.meta.get("val"))
        elif n.op == "output":
            outputs = [x for x in pytree.tree_leaves(n.args[0]) if isinstance(x, fx.Node)]
            outputs = [x for x in outputs if isinstance(x.meta.get("val"), torch.Tensor)]
            new.output(tuple(copies[x] for x in outputs))
        else:
            copies[n] = new.node_copy(n, lambda x: copies[x])
    fakes = tuple(x.meta["val"] for x in outputs)
    if not fakes:
        raise NotATarget(f"{target.title}: its forward gives no tensor")
    return Lifted(fx.GraphModule(graph.module, new), tuple(names), fakes, _reduction(graph.module))


_REDUCTIONS = {
    "sum", "nansum", "mean", "nanmean", "softmax", "_softmax", "log_softmax", "_log_softmax", "var", "var_mean", "std",
    "std_mean", "norm", "linalg_vector_norm", "layer_norm", "native_layer_norm", "rms_norm", "_fused_rms_norm", "cumsum",
    "logcumsumexp", "logsumexp", "scaled_dot_product_attention", "mse_loss", "l1_loss", "smooth_l1_loss", "huber_loss",
    "binary_cross_entropy", "binary_cross_entropy_with_logits", "kl_div", "cross_entropy_loss", "nll_loss",
    "nll_loss_forward", "avg_pool1d", "avg_pool2d", "avg_pool3d", "adaptive_avg_pool1d", "adaptive_avg_pool2d",
    "_adaptive_avg_pool2d", "trace", "dot", "vdot", "cosine_similarity", "pairwise_distance", "dist",
}  # fmt: skip
# What is added to one place may be all of one dim of what is added.
_SCATTERS = {"index_add", "scatter_add", "scatter_reduce", "index_put", "_unsafe_index_put", "embedding_bag", "_embedding_bag"}
_PRODUCTS = {"linear", "matmul", "bmm", "mm", "mv", "addmm", "addmv", "baddbmm", "einsum"}


def _group_size(n: fx.Node) -> int:
    """What a group norm sums: a group of one of the batch."""
    bound, shape = bind(n), shape_of(n.args[0])
    groups = int(bound.get("num_groups") or bound.get("group") or 1)
    return math.prod(shape[1:]) // max(1, groups)


def _longest_dim(n: fx.Node) -> int:
    return max((s for x in n.all_input_nodes if isinstance(x.meta.get("val"), torch.Tensor) for s in shape_of(x)), default=1)


def _reduction(gm: fx.GraphModule) -> int:
    """The most elements that one operation of the graph sums into one."""
    longest = 1
    for n in gm.graph.nodes:
        name = op_name(n)
        if name in ("group_norm", "native_group_norm"):
            longest = max(longest, _group_size(n))
        elif name in ("batch_norm", "_native_batch_norm_legit", "instance_norm") and bind(n).get("training", True):
            shape = shape_of(n.args[0])
            longest = max(longest, math.prod(shape) // max(1, shape[1]))
        elif name in _SCATTERS:
            longest = max(longest, _longest_dim(n))
        if name == "einsum":
            longest = max(longest, _longest_dim(n))
        elif name in _PRODUCTS:
            first = n.args[1] if name in ("addmm", "addmv", "baddbmm") else n.args[0]
            longest = max(longest, shape_of(first)[-1])
        elif name.startswith("conv"):
            longest = max(longest, math.prod(shape_of(n.args[1])[1:]))
        elif name in _REDUCTIONS:
            source = next((x for x in n.all_input_nodes if isinstance(x.meta.get("val"), torch.Tensor)), None)
            made = n.meta.get("val")
            made = made[0] if isinstance(made, (tuple, list)) and made else made
            if source is not None and isinstance(made, torch.Tensor):
                before, after = math.prod(shape_of(source)), math.prod(int(s) for s in made.shape)
                kept = after if after < before else math.prod(shape_of(source)[:-1])
                longest = max(longest, before // max(1, kept))
    return longest


def contract(target: Target, lifted: Lifted) -> dict[str, Any]:
    """op.json of an Op of the model's own: sizes have names, as far as there is room; those that never varied are
    fixed by checks, the others are dynamic."""
    if len(lifted.names) > MAX_ARGS:
        raise NotATarget(f"{target.title}: it reads {len(lifted.names)} tensors; an Op takes at most {MAX_ARGS}")
    if len(lifted.outputs) > MAX_OUTPUTS:
        raise NotATarget(f"{target.title}: it gives {len(lifted.outputs)} tensors; an Op gives at most {MAX_OUTPUTS}")
    sizes: dict[str, tuple[int, ...]] = {}
    args, checks = [], []
    for name in lifted.names:
        tensors = [case.args[name] for case in target.cases]
        if tensors[0].ndim > MAX_RANK:
            raise NotATarget(f"{target.title}: {name} has {tensors[0].ndim} dims; an Op takes at most {MAX_RANK}")
        shape = [_dim(target, name, d, tuple(int(t.shape[d]) for t in tensors), sizes) for d in range(tensors[0].ndim)]
        args.append({"name": name, "type": "Tensor", "dtypes": [dtype_name(tensors[0].dtype)], "shape": shape})
    for dim, values in sizes.items():
        if len(set(values)) == 1:
            tensor, _, d = dim.rpartition("_")
            message = f"size {d} of {tensor} must be {values[0]}, as it was captured"
            checks.append({"expr": f"{dim} == {values[0]}", "message": message})
    returns = "Tensor" if len(lifted.outputs) == 1 else "(" + ", ".join(["Tensor"] * len(lifted.outputs)) + ")"
    return {
        "format": 1,
        "op": target.op,
        "schema": f"{target.op}({', '.join(f'Tensor {n}' for n in lifted.names)}) -> {returns}",
        "args": args,
        "dims": [],
        "dynamic": [dim for dim, values in sizes.items() if len(set(values)) > 1],
        "checks": checks,
        "outputs": _outputs(target, lifted, sizes),
        "holes": [],
        "reduction": str(lifted.reduction),
        "flops": str(_flops(lifted, tuple(target.cases[0].args.values()))) if lifted.module else "0",
        "reference": (
            {"kind": "export", "file": "reference.pt2"}
            if target.source is None
            else {"kind": "source", "file": "reference.py", "name": target.source[1]}
        ),
    }


def _dim(target: Target, name: str, d: int, values: tuple[int, ...], sizes: dict[str, tuple[int, ...]]) -> str:
    """The shape's entry for a dim: a new name while there is room, else its size."""
    if len(sizes) < MAX_DIMS:
        sizes[f"{name}_{d}"] = values
        return f"{name}_{d}"
    if len(set(values)) > 1:
        raise NotATarget(f"{target.title}: it has more than {MAX_DIMS} sizes, and size {d} of {name} varies")
    return str(values[0])


def _outputs(target: Target, lifted: Lifted, sizes: dict[str, tuple[int, ...]]) -> list[dict[str, Any]]:
    from .task import DTYPES  # which imports this

    per_case = [v.outputs for v in target.variants.values()]
    if len(target.cases) == 1:
        per_case = [tuple(tuple(int(s) for s in x.shape) for x in lifted.outputs)]
    made = []
    for i, x in enumerate(lifted.outputs):
        shape = [_size(target, tuple(o[i][d] for o in per_case), sizes) for d in range(x.ndim)]
        name = "output" if len(lifted.outputs) == 1 else f"output{i}"
        if dtype_name(x.dtype) not in DTYPES:
            raise NotATarget(f"{target.title}: its {name} is {dtype_name(x.dtype)}, which no Op gives (they give {', '.join(DTYPES)})")
        made.append({"name": name, "dtype": dtype_name(x.dtype), "shape": shape})
    return made


def _size(target: Target, values: tuple[int, ...], sizes: dict[str, tuple[int, ...]]) -> str:
    """An expression over the named sizes that gives these values, one a Case."""
    if len(set(values)) == 1:
        return str(values[0])
    open_ = {dim: v for dim, v in sizes.items() if len(set(v)) > 1}
    for dim, v in open_.items():
        if v == values:
            return dim
    for dim, v in open_.items():
        if len({a - b for a, b in zip(values, v, strict=True)}) == 1:
            difference = values[0] - v[0]
            return f"{dim} {'+' if difference > 0 else '-'} {abs(difference)}"
        if all(b and a % b == 0 for a, b in zip(values, v, strict=True)):
            if len({a // b for a, b in zip(values, v, strict=True)}) == 1:
                return f"{dim} * {values[0] // v[0]}"
    for one, v in open_.items():
        for other, w in open_.items():
            if values == tuple(a * b for a, b in zip(v, w, strict=True)):
                return f"{one} * {other}"
    raise NotATarget(f"{target.title}: how its output's sizes {values} follow from the inputs' is not seen")


def _flops(lifted: Lifted, values: tuple[torch.Tensor, ...]) -> int:
    """Multiplications and additions of the matrix products and convolutions of the first Case."""
    from torch.utils.flop_counter import FlopCounterMode

    with torch.no_grad(), preserved_rng(), FlopCounterMode(display=False) as counter:
        lifted.module(*values)  # type: ignore[misc]
    return int(counter.get_total_flops())


class _Call(nn.Module):
    def __init__(self, inner: fx.GraphModule):
        super().__init__()
        self.inner = inner

    def forward(self, *tensors: torch.Tensor) -> Any:
        return self.inner(*tensors)


def archive(target: Target, lifted: Lifted) -> bytes:
    """The lifted graph as the bytes of a torch.export archive, without anyone's weights."""
    flat = [list(case.args.values()) for case in target.cases]
    dynamic = (_open_dims(flat),) if len(flat) > 1 else None
    with torch.no_grad(), preserved_rng(), quiet():
        try:
            program = torch.export.export(
                _Call(lifted.module), tuple(flat[0]), dynamic_shapes=dynamic, strict=False
            )
            # The archive would hold the inputs that it was made with: the user's weights.
            program.example_inputs = None
            out = io.BytesIO()
            torch.export.save(program, out)
        except Exception as e:
            first = (str(e).strip().splitlines() or [""])[0][:200]
            raise NotATarget(f"{target.title}: torch.export.save: {type(e).__name__}: {first}") from e
    return out.getvalue()
