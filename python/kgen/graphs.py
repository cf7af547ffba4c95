"""Aten graphs of modules: torch.export in, a functional graph with named inputs out.

Nothing is recognised here and nothing of the user's module is changed. Exporting runs the forward on fake
tensors, under no_grad, and gives the random state back as it was.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import operator
import re
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx, nn
from torch.utils import _pytree as pytree

from .errors import NotATarget

aten = torch.ops.aten


@dataclass(frozen=True)
class GraphInput:
    """One placeholder. kind: parameter, buffer, constant (a tensor held elsewhere) or user.

    target is the dotted name within the module (parameter, buffer, attribute); position counts user inputs
    in the flat order of in_spec; value is set for constants alone.
    """

    node: fx.Node
    kind: str
    target: str
    position: int
    value: torch.Tensor | None = None


@dataclass
class Graph:
    """A functional aten graph. Its placeholders are `inputs`, in order; every node has meta['val']."""

    module: fx.GraphModule
    inputs: list[GraphInput]
    in_spec: pytree.TreeSpec
    out_spec: pytree.TreeSpec
    program: Any  # the torch.export.ExportedProgram it came from

    @property
    def nodes(self) -> list[fx.Node]:
        return list(self.module.graph.nodes)

    @property
    def output(self) -> fx.Node:
        return next(n for n in reversed(self.module.graph.nodes) if n.op == "output")


class FunctionModule(nn.Module):
    """A bare function as a module, so that it can be captured like one."""

    def __init__(self, function: Callable[..., Any]):
        super().__init__()
        self.function = function

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.function(*args, **kwargs)


@contextlib.contextmanager
def preserved_rng() -> Iterator[None]:
    """The random state of the CPU and of all initialised CUDA devices, restored on the way out."""
    devices = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else []
    with torch.random.fork_rng(devices=devices):
        yield


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keeps torch's own warnings and log lines about exporting away from the user."""
    logger = logging.getLogger("torch.export")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


def first_line(error: BaseException) -> str:
    """The first line of an error that says something, without torch's long advice."""
    for line in str(error).splitlines():
        if line.strip():
            return f"{type(error).__name__}: {line.strip()[:200]}"
    return type(error).__name__


def export(
    module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], dynamic_shapes: Any = None
) -> Graph:
    """The graph of one call of module; NotATarget with the reason when torch.export cannot make one.

    dynamic_shapes: torch.export's; without, all sizes are those of the call.
    """
    try:
        with torch.no_grad(), preserved_rng(), quiet():
            program = torch.export.export(module, args, kwargs, dynamic_shapes=dynamic_shapes, strict=False)
            _tidy(program.graph_module)
            if any(_mutates(n) for n in program.graph.nodes):
                program = program.run_decompositions({})
                _tidy(program.graph_module)
    except (KeyboardInterrupt, SystemExit, MemoryError):
        raise
    except Exception as e:  # torch.export raises whatever the user's forward raises, and much of its own.
        raise NotATarget(f"torch.export: {first_line(e)}") from e
    return from_program(program)


def from_program(program: Any) -> Graph:
    """The Graph of a torch.export.ExportedProgram, which may have been read from a file."""
    kinds = torch.export.graph_signature.OutputKind
    for spec in program.graph_signature.output_specs:
        if spec.kind in (kinds.USER_INPUT_MUTATION, kinds.BUFFER_MUTATION):
            what = "its input" if spec.kind == kinds.USER_INPUT_MUTATION else "the buffer"
            raise NotATarget(f"its forward writes {what} {spec.target}")
        if spec.kind != kinds.USER_OUTPUT:
            raise NotATarget(f"torch.export: an output of kind {spec.kind.name}")
    return Graph(
        program.graph_module,
        _inputs(program),
        program.call_spec.in_spec,
        program.call_spec.out_spec,
        program,
    )


def _inputs(program: Any) -> list[GraphInput]:
    placeholders = [n for n in program.graph.nodes if n.op == "placeholder"]
    kinds = torch.export.graph_signature.InputKind
    names = {kinds.PARAMETER: "parameter", kinds.BUFFER: "buffer", kinds.CONSTANT_TENSOR: "constant"}
    inputs, position = [], 0
    for node, spec in zip(placeholders, program.graph_signature.input_specs, strict=True):
        if spec.kind == kinds.USER_INPUT:
            inputs.append(GraphInput(node, "user", node.name, position))
            position += 1
        elif spec.kind in names:
            value = program.constants.get(spec.target) if names[spec.kind] == "constant" else None
            inputs.append(GraphInput(node, names[spec.kind], spec.target, -1, value))
        else:
            raise NotATarget(f"torch.export: an input of kind {spec.kind.name}")
    return inputs


def _mutates(node: fx.Node) -> bool:
    target = node.target
    return isinstance(target, torch._ops.OpOverload) and target._schema.is_mutable


def _tidy(gm: fx.GraphModule) -> None:
    """Drops assertions that hold by construction and detach_, which changes no value."""
    changed = False
    for node in list(gm.graph.nodes):
        if node.op != "call_function":
            continue
        if node.target is aten._assert_tensor_metadata.default:
            gm.graph.erase_node(node)
            changed = True
        elif node.target in (aten.detach_.default, aten.detach.default, aten.lift_fresh_copy.default):
            node.replace_all_uses_with(node.args[0])
            gm.graph.erase_node(node)
            changed = True
    if changed:
        gm.recompile()


def op_name(node: fx.Node) -> str:
    """'softmax' of aten.softmax.int, 'getitem', or '' for what is neither an aten call nor an item."""
    if node.op != "call_function":
        return ""
    if isinstance(node.target, torch._ops.OpOverload):
        namespace, name = node.target._schema.name.split("::")
        return name if namespace == "aten" else ""
    return "getitem" if node.target is operator.getitem else ""


def bind(node: fx.Node) -> dict[str, Any]:
    """The arguments of an aten call by name, the schema's defaults filled in."""
    bound: dict[str, Any] = {}
    for i, arg in enumerate(node.target._schema.arguments):  # type: ignore[union-attr]
        if i < len(node.args) and not arg.kwarg_only:
            bound[arg.name] = node.args[i]
        elif arg.name in node.kwargs:
            bound[arg.name] = node.kwargs[arg.name]
        else:
            bound[arg.name] = arg.default_value if arg.has_default_value() else None
    return bound


def dtype_name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def shape_of(node: fx.Node) -> tuple[int, ...]:
    return tuple(int(s) for s in node.meta["val"].shape)


def is_tensor(node: Any) -> bool:
    return isinstance(node, fx.Node) and isinstance(node.meta.get("val"), torch.Tensor)


def random_reason(graph: Graph) -> str | None:
    """Why a graph gives another result each time, or None."""
    for node in graph.nodes:
        target = node.target
        if not isinstance(target, torch._ops.OpOverload):
            continue
        if torch.Tag.nondeterministic_seeded not in target.tags:
            continue
        bound = bind(node)
        name = op_name(node)
        if name in ("dropout", "feature_dropout", "alpha_dropout", "feature_alpha_dropout"):
            if not bound["train"] or not bound["p"]:
                continue
        if "dropout_p" in bound and not bound["dropout_p"]:
            continue
        if name == "native_dropout" and not bound.get("train"):
            continue
        if "training" in bound and not bound["training"]:
            continue
        return f"the forward draws random numbers ({name or target})"
    return None


def text_of(graph: Graph, called: dict[fx.Node, str] | None = None) -> str:
    """The graph as lines that depend on operations, shapes, dtypes and constants alone, not on names; but for those of inputs
    when `called` has them."""
    called = called or {}
    return lines_of(graph.module, {g.node: f"{g.kind} {called.get(g.node, '')}".rstrip() for g in graph.inputs})


def lines_of(gm: fx.GraphModule, kinds: dict[fx.Node, str]) -> str:
    """One line a node; kinds says what a placeholder is ('input' without)."""
    names: dict[fx.Node, str] = {}
    lines = []
    for node in gm.graph.nodes:
        names[node] = f"%{len(names)}"
        if node.op == "placeholder":
            lines.append(f"{names[node]} = {kinds.get(node, 'input')} {_type_text(node.meta.get('val'))}")
        elif node.op == "output":
            lines.append(f"return {_arg_text(node.args[0], names)}")
        else:
            args = [_arg_text(a, names) for a in node.args]
            args += [f"{k}={_arg_text(v, names)}" for k, v in sorted(node.kwargs.items())]
            target = node.target if node.op != "call_function" else _target_text(node.target)
            lines.append(f"{names[node]} = {target}({', '.join(args)}) {_type_text(node.meta.get('val'))}")
    return "\n".join(lines) + "\n"


def _target_text(target: Any) -> str:
    return str(target) if isinstance(target, torch._ops.OpOverload) else getattr(target, "__name__", str(target))


def _arg_text(a: Any, names: dict[fx.Node, str]) -> str:
    if isinstance(a, fx.Node):
        return names[a]
    if isinstance(a, (list, tuple)):
        return "[" + ", ".join(_arg_text(x, names) for x in a) + "]"
    return repr(a)


def _type_text(val: Any) -> str:
    if isinstance(val, torch.Tensor):
        return f"{dtype_name(val.dtype)}[{', '.join(str(s) for s in val.shape)}]"
    if isinstance(val, (list, tuple)):
        return "(" + ", ".join(_type_text(v) for v in val) + ")"
    return type(val).__name__


def graph_hash(graph: Graph) -> str:
    """64 hex digits; equal for modules that compute the same on the same shapes (sizes left open by any name)."""
    symbols: dict[str, str] = {}
    text = re.sub(r"\bs\d+\b", lambda m: symbols.setdefault(m.group(), f"size{len(symbols)}"), text_of(graph))
    return hashlib.sha256(text.encode()).hexdigest()


def lookup(module: nn.Module, target: str) -> Any:
    """The attribute of a module at a dotted name, live."""
    value: Any = module
    for part in target.split("."):
        value = getattr(value, part)
    return value


def flat_inputs(graph: Graph, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Any]:
    """Values for the placeholders of graph, in order: parameters live from module, then the call's own."""
    user = pytree.arg_tree_leaves(*args, **reorder(graph.in_spec, kwargs))
    values: list[Any] = []
    for g in graph.inputs:
        if g.kind == "user":
            values.append(user[g.position])
        else:
            values.append(module_value(g, module))
    return values


def module_value(g: GraphInput, module: nn.Module) -> Any:
    """The live parameter, buffer or attribute; the captured value of a constant that has no name."""
    if g.kind != "constant":
        return lookup(module, g.target)
    try:
        value = lookup(module, g.target)
    except AttributeError:
        return g.value
    return value if isinstance(value, torch.Tensor) else g.value


def reorder(in_spec: pytree.TreeSpec, kwargs: dict[str, Any]) -> dict[str, Any]:
    """kwargs in the order that the graph was made with."""
    names = in_spec.children()[1].context if in_spec.num_children == 2 else []
    return {k: kwargs[k] for k in names if k in kwargs}


class Recorder(fx.Interpreter):
    """Runs a graph and keeps the values of some of its nodes."""

    def __init__(self, gm: fx.GraphModule, keep: set[fx.Node]):
        super().__init__(gm, garbage_collect_values=True)
        self.keep = keep
        self.kept: dict[fx.Node, Any] = {}

    def run_node(self, n: fx.Node) -> Any:
        value = super().run_node(n)
        if n in self.keep:
            self.kept[n] = value
        return value


def extract(boundary: list[fx.Node], out: fx.Node) -> tuple[fx.GraphModule, list[fx.Node]]:
    """The part of a graph between boundary and out, as a function of the boundary's values.

    Also returns the boundary in the order of the placeholders: as given, then what else the part reads.
    """
    new = fx.Graph()
    copies: dict[fx.Node, fx.Node] = {}
    order = list(boundary)
    for n in boundary:
        copies[n] = new.placeholder(n.name)
        copies[n].meta = dict(n.meta)
    needed: set[fx.Node] = set()
    stack = [out]
    while stack:
        n = stack.pop()
        if n in needed or n in copies:
            continue
        needed.add(n)
        stack.extend(n.all_input_nodes)
    for n in out.graph.nodes:
        if n in needed and n.op == "placeholder":
            copies[n] = new.placeholder(n.name)
            copies[n].meta = dict(n.meta)
            order.append(n)
    for n in out.graph.nodes:
        if n in needed and n.op != "placeholder":
            copies[n] = new.node_copy(n, lambda x: copies[x])
    new.output(copies[out])
    root = out.graph.owning_module
    return fx.GraphModule(root if root is not None else nn.Module(), new), order
