"""Puts Ops in place of recognised subgraphs, and checks on real values that nothing changed.

A graph is changed only after all of a Match was checked; one that fails its check is left alone with the reason.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx

from . import oracle
from .graphs import Graph, bind, extract, op_name
from .products import INDEX
from .program import evaluate, parse
from .recognise import CAUSAL, NORMS, PRODUCTS, Attention, Match, Norm, Operand, Product, Softmax

aten = torch.ops.aten
LARGE = 1 << 20


def materialise(g: fx.Graph, x: Operand) -> fx.Node:
    """Adds the layout operations that make an operand; views alone unless it must be contiguous."""
    node, value = x.node, x.node.meta["val"]

    def call(target: Any, *args: Any) -> None:
        nonlocal node, value
        node = g.call_function(target, (node, *args))
        # Only sizes and strides matter here: an empty tensor on the meta device carries both.
        value = target(torch.empty_strided(value.shape, value.stride(), dtype=value.dtype, device="meta"), *args)
        node.meta["val"] = value

    if not x.dims:
        if tuple(value.shape) != x.shape:
            call(aten.reshape.default, list(x.shape))
        return node
    used = [d for d in x.dims if d is not None]
    rest = [d for d in range(value.ndim) if d not in used]
    if rest:
        call(aten.squeeze.dims, rest)
        kept = sorted(used)
        used = [kept.index(d) for d in used]
    if used != sorted(used):
        call(aten.permute.default, used)
    for axis, d in enumerate(x.dims):
        if d is None:
            call(aten.unsqueeze.default, axis)
    if tuple(value.shape) != x.shape:
        call(aten.expand.default, list(x.shape))
    if x.contiguous:
        call(aten.contiguous.default)
    return node


@dataclass(frozen=True)
class Call:
    """What one Op is called with, in a graph: nodes for tensors, numbers and text for the rest."""

    op: str
    tensors: tuple[fx.Node, ...]
    captured: tuple[fx.Node, ...]
    attributes: dict[str, Any]


Emit = Callable[[fx.Graph, Call], fx.Node]


def torch_ops(g: fx.Graph, call: Call) -> fx.Node:
    """The node that runs the Op through torch.ops.kgen."""
    import kgen  # noqa: F401  (registers the ops)

    ops = torch.ops.kgen
    if call.op == "softmax":
        return g.call_function(ops.softmax.default, (*call.tensors, call.attributes["dim"]))
    if call.op in NORMS:
        return g.call_function(getattr(ops, call.op).default, _norm_arguments(call))
    a = call.attributes
    if call.op in PRODUCTS and not a["program"]:
        return g.call_function(getattr(ops, call.op).default, _product_arguments(call)[:-3])
    if call.op in PRODUCTS:
        return g.call_function(getattr(ops, f"{call.op}_mod").default, _product_arguments(call))
    options = {"scale": a["scale"], "enable_gqa": a["enable_gqa"]}
    if a["program"] in (None, CAUSAL):
        return g.call_function(ops.attention.default, (*call.tensors, None, 0.0, a["program"] == CAUSAL), options)
    return g.call_function(
        ops.attention_mod_output.default, (*call.tensors, list(call.captured), list(a["scalars"]), a["program"]), options
    )


def _norm_arguments(call: Call) -> tuple[Any, ...]:
    """input, shape, weight, bias (which rms_norm lacks), eps. tensors: those that there are, in that order."""
    a, given = call.attributes, iter(call.tensors[1:])
    affine = [next(given) if a[name] else None for name in ("weight", "bias")]
    return call.tensors[0], list(a["shape"]), *affine[: 1 if call.op == "rms_norm" else 2], a["eps"]


def _product_arguments(call: Call) -> tuple[Any, ...]:
    """Operands (an absent bias is None), attributes, captured, scalars, program."""
    a = call.attributes
    operands = call.tensors if call.op == "matmul" or a["bias"] else (*call.tensors, None)
    return *operands, *a["attributes"], list(call.captured), list(a["scalars"]), a["program"]


def emit_match(g: fx.Graph, match: Match, emit: Emit) -> fx.Node:
    """Adds the nodes that compute what match.out is, in its layout and dtype."""
    if isinstance(match.detail, Softmax):
        return _emit_softmax(g, match, match.detail, emit)
    if isinstance(match.detail, Norm):
        return _emit_norm(g, match, match.detail, emit)
    if isinstance(match.detail, Product):
        return _emit_product(g, match, match.detail, emit)
    a: Attention = match.detail
    tensors = tuple(materialise(g, x) for x in (a.query, a.key, a.value))
    captured = tuple(materialise(g, x) for x in a.captured)
    attributes = {"scale": a.scale, "enable_gqa": a.enable_gqa, "program": a.program, "scalars": a.scalars}
    node = emit(g, Call("attention", tensors, captured, attributes))
    shape = [*a.query.shape[:3], a.value.shape[3]]
    if a.order != (0, 1, 2, 3):
        node = g.call_function(aten.permute.default, (node, list(a.order)))
        shape = [shape[i] for i in a.order]
    wanted = list(match.out.meta["val"].shape)
    if shape != wanted:
        node = g.call_function(aten.reshape.default, (node, wanted))
    return node


def _emit_softmax(g: fx.Graph, match: Match, detail: Softmax, emit: Emit) -> fx.Node:
    source = detail.input
    if source.meta["val"].dtype != detail.dtype:
        source = g.call_function(aten.to.dtype, (source, detail.dtype))
    return emit(g, Call("softmax", (source,), (), {"dim": detail.dim}))


def _emit_norm(g: fx.Graph, match: Match, detail: Norm, emit: Emit) -> fx.Node:
    given = {"weight": detail.weight is not None, "bias": detail.bias is not None}
    return emit(g, Call(match.op, detail.tensors, (), {"shape": detail.shape, "eps": detail.eps, **given}))


def _emit_product(g: fx.Graph, match: Match, detail: Product, emit: Emit) -> fx.Node:
    tensors = list(detail.tensors)
    if detail.transposed:
        tensors[1] = g.call_function(aten.transpose.int, (tensors[1], -2, -1))
    bias = match.op != "matmul" and detail.operands[2] is not None
    attributes = {"program": detail.program, "scalars": detail.scalars, "bias": bias, "attributes": detail.attributes}
    return emit(g, Call(match.op, tuple(tensors), detail.captured, attributes))


def apply(graph: Graph, matches: list[Match], emit: Emit) -> fx.GraphModule:
    """A copy of the graph with Ops in place of the matches. Returns it; the graph itself stays."""
    copies: dict[fx.Node, fx.Node] = {}
    new = fx.Graph()
    by_out = {m.out: m for m in matches}
    for node in graph.module.graph.nodes:
        if node.op == "output":
            new.output(fx.node.map_arg(node.args[0], lambda n: copies[n]))
            continue
        if node in by_out:
            match = moved(by_out[node], copies)
            copies[node] = emit_match(new, match, emit)
            copies[node].meta = dict(node.meta)
        else:
            copies[node] = new.node_copy(node, lambda n: copies[n])
    new.eliminate_dead_code(is_impure_node=lambda n: n.op in ("placeholder", "output"))
    new.lint()
    return fx.GraphModule(graph.module, new)


def moved(match: Match, copies: dict[fx.Node, fx.Node]) -> Match:
    """The match with its operands in the copied graph; out stays, for its shape."""
    d = match.detail
    if isinstance(d, Softmax):
        return Match(match.op, match.out, match.core, Softmax(copies[d.input], d.dim, d.dtype), match.notes)
    if isinstance(d, Norm):
        weight, bias = (None if n is None else copies[n] for n in (d.weight, d.bias))
        detail = Norm(copies[d.input], d.shape, weight, bias, d.eps, d.dtype)
        return Match(match.op, match.out, match.core, detail, match.notes)
    if isinstance(d, Product):
        operands = tuple(None if n is None else copies[n] for n in d.operands)
        made = Product(operands, d.transposed, d.program, tuple(copies[n] for n in d.captured), d.scalars, d.attributes)
        return Match(match.op, match.out, match.core, made, match.notes)

    def move(x: Operand) -> Operand:
        return Operand(copies[x.node], x.dims, x.shape, x.contiguous)

    detail = Attention(
        move(d.query), move(d.key), move(d.value), d.scale, d.enable_gqa, d.program,
        tuple(move(x) for x in d.captured), d.scalars, d.order, d.density, (),
    )  # fmt: skip
    return Match(match.op, match.out, match.core, detail, match.notes)


def inputs_of(match: Match) -> list[fx.Node]:
    """The nodes whose values a match computes from, without repeats."""
    d = match.detail
    if isinstance(d, Softmax):
        return [d.input]
    if isinstance(d, Norm):
        return list(dict.fromkeys(d.tensors))
    if isinstance(d, Product):
        return list(dict.fromkeys((*d.tensors, *d.captured)))
    return list(dict.fromkeys(x.node for x in (d.query, d.key, d.value, *d.captured)))


class Wide(fx.Interpreter):
    """Runs a graph in fp64: floating inputs upcast, casts and new tensors below fp64 lifted to it.

    narrow collects the operations that gave a floating result below fp64 all the same.
    """

    def __init__(self, gm: fx.GraphModule):
        super().__init__(gm)
        self.narrow: set[str] = set()

    def run_node(self, n: fx.Node) -> Any:
        if n.op == "call_function":
            self._lift(n)
        value = super().run_node(n)
        for v in value if isinstance(value, (list, tuple)) else (value,):
            if isinstance(v, torch.Tensor) and v.dtype.is_floating_point and v.dtype != torch.float64:
                self.narrow.add(str(n.target))
        return value

    def _lift(self, n: fx.Node) -> None:
        name = op_name(n)
        if not name or name == "getitem":
            return
        for i, arg in enumerate(n.args):
            if isinstance(arg, torch.dtype) and arg.is_floating_point:
                n.args = (*n.args[:i], torch.float64, *n.args[i + 1 :])
        dtype = n.kwargs.get("dtype")
        if isinstance(dtype, torch.dtype) and dtype.is_floating_point:
            n.kwargs = {**n.kwargs, "dtype": torch.float64}
        elif "dtype" in (a.name for a in n.target._schema.arguments) and _makes_float(n):
            if bind(n).get("dtype") is None:
                n.kwargs = {**n.kwargs, "dtype": torch.float64}


_CREATION = {"full", "ones", "zeros", "rand", "randn", "scalar_tensor", "arange", "linspace", "logspace", "eye", "empty"}


def _makes_float(n: fx.Node) -> bool:
    value = n.meta.get("val")
    return op_name(n) in _CREATION and isinstance(value, torch.Tensor) and value.dtype.is_floating_point


def widen(x: Any) -> Any:
    return x.double() if isinstance(x, torch.Tensor) and x.dtype.is_floating_point else x


def copy_module(gm: fx.GraphModule) -> fx.GraphModule:
    """A copy whose nodes can be changed; meta is kept."""
    new = fx.Graph()
    copies: dict[fx.Node, fx.Node] = {}
    for n in gm.graph.nodes:
        copies[n] = new.node_copy(n, lambda x: copies[x])
    return fx.GraphModule(gm, new)


def original(match: Match) -> tuple[fx.GraphModule, list[fx.Node]]:
    """The recognised subgraph as a function of the match's inputs."""
    return extract(inputs_of(match), match.out)


def verify(match: Match, values: dict[fx.Node, torch.Tensor], wide: bool = True) -> str | None:
    """Why a match differs from what it stands for, on these values and on others of the same shapes.

    values: for each node that the extracted subgraph reads, its value in a run of the model. wide: in fp64,
    held to 1e-6; else on the captured values alone in their own dtype, held to that dtype's precision.
    """
    gm, order = original(match)
    new, node_of = fx.Graph(), {}
    for n in order:
        node_of[n] = new.placeholder(n.name)
        node_of[n].meta = dict(n.meta)
    new.output(emit_match(new, moved(match, node_of), _reference_node))
    rewritten = fx.GraphModule(torch.nn.Module(), new)
    generator = torch.Generator().manual_seed(20261)
    fixed = match.detail.assumed if isinstance(match.detail, Attention) else ()
    dtype = match.out.meta["val"].dtype
    # fp64 throughout but for casts that cannot be lifted; a low precision keeps about a third of its digits.
    bound = 1e-6 if wide else 1e-3 if dtype == torch.float32 else 5e-2
    scores = math.prod(match.core[0].meta["val"].shape)
    # Values drawn anew say more than captured ones, which may be zero; for large scores they must do.
    trials = ((0, 1) if scores < LARGE else (1,)) if wide else (0,)
    for trial in trials:
        inputs = [widen(values[n]) if wide else values[n] for n in order]
        if trial:
            inputs = [x if n in fixed else _redraw(x, generator) for n, x in zip(order, inputs, strict=True)]
        with torch.no_grad():
            want = Wide(copy_module(gm)).run(*inputs) if wide else gm(*inputs)
            got = rewritten(*inputs)
        reason = _difference(got, want, bound)
        if reason:
            return reason
    return None


def _redraw(x: Any, generator: torch.Generator) -> Any:
    if not isinstance(x, torch.Tensor) or not x.dtype.is_floating_point or not torch.isfinite(x).all():
        return x
    noise = torch.randn(x.shape, generator=generator, dtype=torch.float64).to(x.device)
    return torch.empty_like(x).copy_(noise * (x.std(correction=0) + 0.5))


def _difference(got: torch.Tensor, want: torch.Tensor, bound: float) -> str | None:
    if got.shape != want.shape:
        return f"the rewritten subgraph gives {tuple(got.shape)}, the original {tuple(want.shape)}"
    if want.numel() == 0:
        return "the captured inputs have no element to compare by"
    got, want = got.double(), want.double()
    # Rows that are masked throughout are NaN in the original; the Op gives 0 there.
    known = torch.isfinite(want)
    if not known.any():
        return "the original gives no finite value on the captured inputs"
    error = (got - want)[known].abs().max().item() / max(want[known].abs().max().item(), 1e-30)
    if not error <= bound:
        return f"the rewritten subgraph differs from the original by {error:.2g} of the largest value"
    return None


def _reference_node(g: fx.Graph, call: Call) -> fx.Node:
    if call.op == "softmax":
        return g.call_function(torch.softmax, (*call.tensors, call.attributes["dim"]))
    if call.op in NORMS:
        return g.call_function(getattr(torch.nn.functional, call.op), _norm_arguments(call))
    a = call.attributes
    if call.op in PRODUCTS:
        return g.call_function(_product_output, (call.op, *_product_arguments(call)))
    return g.call_function(
        _attention_output,
        (*call.tensors, list(call.captured), list(a["scalars"]), a["program"]),
        {"scale": a["scale"], "enable_gqa": a["enable_gqa"]},
    )


def _product_output(op: str, *args: Any) -> torch.Tensor:
    """The product, and its epilogue element by element, in the dtype of its operands (at least fp32)."""
    *operands, captured, scalars, text = args
    functional = torch.nn.functional
    y = {"linear": functional.linear, "matmul": torch.matmul, "conv2d": functional.conv2d}[op](*operands)
    if not text:
        return y
    program, wide = parse(text), torch.float64 if y.dtype == torch.float64 else torch.float32
    assert program.epilogue is not None
    return evaluate(program, program.epilogue, {"acc": y.to(wide)}, captured, scalars, wide, INDEX[op]).to(y.dtype)


def _attention_output(*args: Any, **kwargs: Any) -> torch.Tensor:
    return oracle.attention(*args, **kwargs)[0]
