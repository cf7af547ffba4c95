"""Finds what kgen has Ops for in an aten graph: attention with any score modification, softmax, layer_norm and
rms_norm, linear, matmul and conv2d with what follows them element by element.

Recognition looks at operations alone, never at names of classes or files. It only reports: rewrite.py changes
graphs, and a Match is used only after rewrite.verify compared it with the original on real values.
"""

from __future__ import annotations

import math
import re
import string
from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
from torch import fx

from .graphs import Graph, bind, dtype_name, is_tensor, op_name, shape_of
from .indexing import (
    _ELEMENTS,
    LAYOUT,
    Elements,
    Index,
    NotSymbolic,
    is_cast,
    is_inactive_dropout,
    step,
    unflatten,
)
from .program_text import ProgramText, write_program
from .symbolic import BOOL, Expr, Space, TensorRef, TooLarge, density, keeps_a_key, operands, split_mask

FLOATS = (torch.float32, torch.float16, torch.bfloat16)
CAUSAL = "program 1\nmask\n%0 = ge bool q kv\nreturn %0\n"


@dataclass(frozen=True)
class Operand:
    """A view of a node: its dim for each axis wanted (None: a new axis of size 1), then expand to shape."""

    node: fx.Node
    dims: tuple[int | None, ...]
    shape: tuple[int, ...]
    contiguous: bool = False


@dataclass(frozen=True)
class Attention:
    """query, key, value as (B, H, S, D); order: the axes of (B, H, SQ, DV) as the result's dims list them.

    density: about what part of the scores the mask keeps, as far as indices alone tell. assumed: inputs of the
    graph whose captured values the Program has built in.
    """

    query: Operand
    key: Operand
    value: Operand
    scale: float
    enable_gqa: bool
    program: str | None
    captured: tuple[Operand, ...]
    scalars: tuple[float, ...]
    order: tuple[int, ...]
    density: float = 1.0
    assumed: tuple[fx.Node, ...] = ()


@dataclass(frozen=True)
class Softmax:
    input: fx.Node
    dim: int
    dtype: torch.dtype


NORMS = ("layer_norm", "rms_norm")


@dataclass(frozen=True)
class Norm:
    """input over its last dims, which are shape; bias is layer_norm's alone. dtype: of the result, which input is cast
    to. eps: None as rms_norm has it."""

    input: fx.Node
    shape: tuple[int, ...]
    weight: fx.Node | None
    bias: fx.Node | None
    eps: float | None
    dtype: torch.dtype

    @property
    def tensors(self) -> tuple[fx.Node, ...]:
        return tuple(n for n in (self.input, self.weight, self.bias) if n is not None)


PRODUCTS = ("linear", "matmul", "conv2d")


@dataclass(frozen=True)
class Product:
    """operands: input, weight, bias (or None) of linear and conv2d; input, other of matmul. transposed: the second with its
    last two dims swapped. captured: nodes that broadcast to the result. attributes: stride, padding, dilation and groups of a
    conv2d, whose program may be empty."""

    operands: tuple[fx.Node | None, ...]
    transposed: bool
    program: str
    captured: tuple[fx.Node, ...]
    scalars: tuple[float, ...]
    attributes: tuple[Any, ...] = ()

    @property
    def tensors(self) -> tuple[fx.Node, ...]:
        return tuple(n for n in self.operands if n is not None)


@dataclass(frozen=True)
class Match:
    """op at node `out`: its value is what detail computes. core: the nodes that define where it lies."""

    op: str
    out: fx.Node
    core: tuple[fx.Node, ...]
    detail: Attention | Softmax | Norm | Product
    notes: tuple[str, ...] = ()

    @property
    def path(self) -> str:
        """The smallest submodule that holds all of it."""
        return smallest_module(self.core)


@dataclass(frozen=True)
class Miss:
    """Something that looks like op but is left alone."""

    op: str
    node: fx.Node
    reason: str

    @property
    def path(self) -> str:
        return smallest_module((self.node,))


@dataclass
class Found:
    matches: list[Match] = field(default_factory=list)
    misses: list[Miss] = field(default_factory=list)


class _Reject(Exception):
    """Why this candidate is no attention that kgen can run."""


def module_stack(node: fx.Node) -> list[str]:
    """Paths of the modules that a node ran in, outermost first; '' is the root."""
    stack = node.meta.get("nn_module_stack") or {}
    paths = [re.sub(r"@\d+", "", path) for path, _ in stack.values()]
    return paths if paths and paths[0] == "" else ["", *paths]


def smallest_module(nodes: tuple[fx.Node, ...]) -> str:
    stacks = [module_stack(n) for n in nodes]
    smallest = ""
    for level in zip(*stacks, strict=False):
        if len(set(level)) > 1:
            break
        smallest = level[0]
    return smallest


def find(graph: Graph) -> Found:
    """All that kgen has Ops for in graph, in the order in which it runs."""
    from . import recognise_norms, recognise_products

    found = Found()
    split_baddbmm(graph)
    known = _known(graph)
    for node in graph.nodes:
        name = op_name(node)
        if name in ("softmax", "_softmax"):
            _find_softmax(node, known, found)
        elif name in NORMS:
            recognise_norms.find_norm(node, found)
        elif name in ("rsqrt", "sqrt"):
            recognise_norms.find_spelled_rms(node, found)
        elif name == "scaled_dot_product_attention":
            try:
                found.matches.append(_sdpa(node, known))
            except (_Reject, NotSymbolic, TooLarge) as e:
                found.misses.append(Miss("attention", node, str(e)))
    for node in graph.nodes:  # after all else: a product of an attention is the attention's
        if op_name(node) in ("linear", "addmm", "matmul", "mm", "bmm", "einsum", "conv2d", "convolution"):
            recognise_products.find_product(node, found)
    order = {node: i for i, node in enumerate(graph.nodes)}
    found.matches.sort(key=lambda m: order[m.out])
    return found


def _find_softmax(node: fx.Node, known: dict[fx.Node, torch.Tensor], found: Found) -> None:
    if any(True for _ in _score_products(bind(node)["self"] if "self" in bind(node) else node.args[0])):
        try:
            match = _attention(node, known)
            reason = still_needed(match)
            if reason is None:
                found.matches.append(match)
                return
            found.misses.append(Miss("attention", node, reason))
        except (_Reject, NotSymbolic, TooLarge) as e:
            found.misses.append(Miss("attention", node, str(e)))
    source = node.args[0]
    bound = bind(node)
    given = node.meta["val"].dtype if bound.get("dtype") is not None else source.meta["val"].dtype
    if op_name(node) == "_softmax" and bound["half_to_float"]:
        given = torch.float32
    if given not in FLOATS:
        found.misses.append(Miss("softmax", node, f"dtype {given} is not one that softmax has kernels for"))
        return
    if not source.meta["val"].ndim:
        found.misses.append(Miss("softmax", node, "a number alone"))
        return
    dim = bound["dim"] % source.meta["val"].ndim
    found.matches.append(Match("softmax", node, (node,), Softmax(source, dim, given)))


def still_needed(match: Match) -> str | None:
    """Why the original subgraph would have to run beside the Op: its weights are used elsewhere."""
    dead = {match.out}
    for node in reversed(list(match.out.graph.nodes)):
        if node.op == "call_function" and node.users and all(u in dead for u in node.users):
            dead.add(node)
    for node in match.core:
        if node not in dead:
            return f"the attention weights are used elsewhere ({op_name(node)} has other users)"
    return None


def _known(graph: Graph) -> dict[fx.Node, torch.Tensor]:
    """Buffers and constants by node; parameters are left out, for they change."""
    program, found = graph.program, {}
    for g in graph.inputs:
        value = g.value
        if g.kind == "buffer":
            value = program.state_dict.get(g.target, program.constants.get(g.target))
        if g.kind in ("buffer", "constant") and isinstance(value, torch.Tensor):
            found[g.node] = value
    return found


def split_baddbmm(graph: Graph) -> None:
    """Writes baddbmm as a bmm, scalings and an addition, so that its product can be a score."""
    gm, aten = graph.module, torch.ops.aten
    changed = False
    for node in graph.nodes:
        if op_name(node) != "baddbmm":
            continue
        a = bind(node)
        with gm.graph.inserting_before(node):
            value = _insert(gm, node, aten.bmm.default, a["batch1"], a["batch2"])
            if a["alpha"] != 1:
                value = _insert(gm, node, aten.mul.Tensor, value, a["alpha"])
            if a["beta"] != 0:
                other = a["self"]
                if a["beta"] != 1:
                    other = _insert(gm, node, aten.mul.Tensor, other, a["beta"])
                    other.meta["val"] = a["self"].meta["val"]
                value = _insert(gm, node, aten.add.Tensor, value, other)
        node.replace_all_uses_with(value)
        gm.graph.erase_node(node)
        changed = True
    if changed:
        gm.recompile()


def _insert(gm: fx.GraphModule, like: fx.Node, target: object, *args: object) -> fx.Node:
    node = gm.graph.call_function(target, args)  # type: ignore[arg-type]
    node.meta = dict(like.meta)
    return node


# Contractions


@dataclass(frozen=True)
class Contraction:
    """A product of two operands summed over one letter."""

    node: fx.Node
    operands: tuple[fx.Node, fx.Node]
    letters: tuple[str, str]
    out: str
    summed: str


def contraction(node: fx.Node) -> Contraction | None:
    name = op_name(node)
    if name in ("matmul", "bmm", "mm"):
        a, b = node.args[:2]
        if not (is_tensor(a) and is_tensor(b)):
            return None
        ra, rb, rank = len(shape_of(a)), len(shape_of(b)), len(shape_of(node))
        if ra < 2 or rb < 2:
            return None
        batch = string.ascii_lowercase[: rank - 2]
        return Contraction(
            node,
            (a, b),
            (batch[len(batch) - ra + 2 :] + "XZ", batch[len(batch) - rb + 2 :] + "ZY"),
            batch + "XY",
            "Z",
        )
    return _einsum(node) if name == "einsum" else None


def _einsum(node: fx.Node) -> Contraction | None:
    equation, tensors = node.args[:2]
    equation = equation.replace(" ", "")
    if len(tensors) != 2 or "." in equation:
        return None
    inputs, _, out = equation.partition("->")
    a, _, b = inputs.partition(",")
    if "->" not in equation:
        out = "".join(sorted(c for c in set(a + b) if (a + b).count(c) == 1))
    if any(len(set(s)) != len(s) for s in (a, b, out)) or set(a + b) - set(out) - (set(a) & set(b)):
        return None
    summed = set(a) & set(b) - set(out)
    return Contraction(node, tuple(tensors), (a, b), out, summed.pop()) if len(summed) == 1 else None


def _contract_index(space: Space, c: Contraction, which: int, of: dict[str, Expr]) -> Index:
    """The index of one operand, given the letters' values; its dims of size 1 are broadcast."""
    shape = shape_of(c.operands[which])
    return tuple(
        space.int(0) if size == 1 else of[letter] for letter, size in zip(c.letters[which], shape, strict=True)
    )


def _score_products(node: fx.Node) -> Iterator[Contraction]:
    """Products that reach node through elementwise and layout operations alone, the nearest first."""
    queue, seen = [node], {node}
    while queue:
        n = queue.pop(0)
        c = contraction(n)
        if c is not None:
            yield c
            continue
        if op_name(n) in LAYOUT or op_name(n) in _ELEMENTS or is_cast(n) or is_inactive_dropout(n):
            for source in n.all_input_nodes:
                if source not in seen and is_tensor(source):
                    seen.add(source)
                    queue.append(source)


def _weighted(softmax: fx.Node) -> Iterator[tuple[Contraction, int, fx.Node]]:
    """Products that use the weights: the product, which operand they are, and the node that is multiplied."""
    queue, seen = [softmax], {softmax}
    while queue:
        n = queue.pop(0)
        for user in n.users:
            c = contraction(user)
            if c is not None:
                yield c, c.operands.index(n), n
            elif op_name(user) in LAYOUT or is_cast(user) or is_inactive_dropout(user):
                if user not in seen:
                    seen.add(user)
                    queue.append(user)


# Attention


def _attention(softmax: fx.Node, known: dict[fx.Node, torch.Tensor]) -> Match:
    bound = bind(softmax)
    shape = shape_of(softmax)
    if len(shape) < 2 or bound["dim"] % len(shape) != len(shape) - 1:
        raise _Reject("the softmax is not over the last dim")
    products = list(_weighted(softmax))
    if not products:
        raise _Reject("no product with the values follows the softmax")
    if len(products) > 1:
        raise _Reject("the weights enter more than one product")
    errors: list[str] = []
    for score in _score_products(softmax.args[0]):
        for heads in _head_counts(shape[:-2], score):
            try:
                return _try_attention(softmax, score, products[0], heads, known)
            except (_Reject, NotSymbolic) as e:
                errors.append(str(e))
    raise _Reject(errors[0] if errors else "no product of query and key precedes the softmax")


def _head_counts(batch: tuple[int, ...], score: Contraction) -> list[int]:
    """Guesses of the number of heads, the likeliest first: the size of the last batch dim, or a factor of a
    merged one that some view upstream shows."""
    if len(batch) != 1:
        return [batch[-1] if batch else 1]
    counts: list[int] = []
    queue = list(score.operands)
    for _ in range(16):
        if not queue:
            break
        n = queue.pop(0)
        if op_name(n) in LAYOUT and is_tensor(n):
            for size in shape_of(n):
                if 1 < size <= batch[0] and batch[0] % size == 0 and size not in counts:
                    counts.append(size)
            queue.extend(n.all_input_nodes)
    whole = [c for c in counts if c != batch[0]]
    return [*whole, *(c for c in counts if c == batch[0]), 1]


def _try_attention(
    softmax: fx.Node,
    score: Contraction,
    weighted: tuple[Contraction, int, fx.Node],
    heads: int,
    known: dict[fx.Node, torch.Tensor],
) -> Match:
    shape = shape_of(softmax)
    total = math.prod(shape[:-2])
    sizes = {"b": total // max(1, heads), "h": heads, "q": shape[-2], "kv": shape[-1]}
    if 0 in shape:
        raise _Reject("an empty tensor")
    if sizes["kv"] == 1:
        raise _Reject("there is one key alone")
    summed_a = score.letters[0].index(score.summed)
    sizes["d"] = shape_of(score.operands[0])[summed_a]
    product, which, weights = weighted
    other = 1 - which
    own = [x for x in product.letters[other] if x not in product.letters[which]]
    if len(own) != 1:
        raise _Reject("the product with the values is not a plain one")
    value_dim = product.letters[other].index(own[0])
    sizes["e"] = shape_of(product.operands[other])[value_dim]
    space = Space(sizes)

    flat = space.add(space.mul(space.var("b"), space.int(heads)), space.var("h"))
    index = (*unflatten(space, flat, shape[:-2]), space.var("q"), space.var("kv"))
    elements = Elements(space, score.node, known)
    e = elements.at(softmax.args[0], index)
    if elements.dot_index is None:
        raise _Reject("the softmax does not depend on the product")
    query, key, scale = _query_key(space, score, elements.dot_index)
    value, order = _value(space, product, which, weights, softmax, index, own[0], flat)
    return _finish(product.node, (score.node, softmax, product.node), space, e, query, key, value, scale, order,
                   elements.assumed)  # fmt: skip


def _query_key(space: Space, score: Contraction, dot_index: Index) -> tuple[Operand, Operand, float]:
    letters = dict(zip(score.out, dot_index, strict=True))
    letters[score.summed] = space.var("d")
    pair = [_contract_index(space, score, i, letters) for i in (0, 1)]
    free = [frozenset().union(*(x.free for x in index)) for index in pair]
    k = 0 if "kv" in free[0] else 1
    if "kv" not in free[k] or "q" in free[k] or "kv" in free[1 - k]:
        raise _Reject("the product before the softmax is not of a query and a key")
    query, scale_q = _operand(space, score.operands[1 - k], pair[1 - k], ("b", "h", "q", "d"), False)
    key, scale_k = _operand(space, score.operands[k], pair[k], ("b", "h", "kv", "d"), True)
    return query, key, scale_q * scale_k


def _value(
    space: Space, product: Contraction, which: int, weights: fx.Node, softmax: fx.Node, index: Index,
    own: str, flat: Expr,
) -> tuple[Operand, tuple[int, ...]]:  # fmt: skip
    shape = shape_of(weights)
    if len(shape) < 2 or math.prod(shape) != math.prod(shape_of(softmax)):
        raise _Reject("the weights are reshaped before the product with the values")
    weight_index = (*unflatten(space, flat, shape[:-2]), space.var("q"), space.var("kv"))
    n, i = weights, weight_index
    while n is not softmax:
        back = step(space, n, i)
        if back is None:
            if not (is_cast(n) or is_inactive_dropout(n)):
                raise _Reject(f"{op_name(n)} changes the weights after the softmax")
            back = n.args[0], i
        n, i = back
    if i != index:
        raise _Reject("the weights are permuted before the product with the values")
    letters = dict(zip(product.letters[which], weight_index, strict=True))
    if letters.get(product.summed) is not space.var("kv"):
        raise _Reject("the product after the softmax does not sum over the keys")
    letters[own] = space.var("e")
    operand, scale = _operand(
        space, product.operands[1 - which], _contract_index(space, product, 1 - which, letters),
        ("b", "h", "kv", "e"), True, peel=False,
    )  # fmt: skip
    assert scale == 1.0
    return operand, _order(space, [letters[x] for x in product.out])


def _order(space: Space, index: list[Expr]) -> tuple[int, ...]:
    """Which axis of (B, H, SQ, DV) each dim of the result runs over; merged batch dims count as in order."""
    axes = [space.var(v) for v in ("b", "h", "q", "e")]
    seen = [axes.index(x) for x in index if x.op == "var" and x in axes]
    plain = all(x.op in ("var", "const") for x in index)
    if not plain:
        if len(index) < 2 or index[-2] not in (axes[2], space.int(0)) or index[-1] not in (axes[3], space.int(0)):
            raise _Reject("the layout of the result")
        return 0, 1, 2, 3
    missing = [i for i in range(4) if i not in seen]
    if any(axes[i].op == "var" for i in missing) or len(set(seen)) != len(seen):
        raise _Reject("the layout of the result")
    # Axes of size 1 can stand anywhere.
    return tuple(missing + seen)


def _operand(
    space: Space, node: fx.Node, index: Index, axes: tuple[str, ...], grouped: bool, peel: bool = True
) -> tuple[Operand, float]:
    """The view of some node upstream whose dims are these axes, and the factor that was seen on the way."""
    best: tuple[Operand, float] | None = None
    best_inner = False
    factor = 1.0
    n, i = node, index
    while True:
        operand = _plain(space, n, i, axes, grouped)
        if operand is not None:
            inner = _inner_stride_one(operand)
            if best is None or inner or not best_inner or factor != best[1]:
                best, best_inner = (operand, factor), inner
        try:
            back = step(space, n, i)
        except NotSymbolic:
            back = None
        if back is None and peel:
            scaled = _scaled(n)
            if scaled is not None and operand is not None:
                factor *= scaled[1]
                back = scaled[0], i
        if back is None:
            break
        n, i = back
    if best is None:
        return _reshaped(space, node, index, axes), 1.0
    return best


def _scaled(node: fx.Node) -> tuple[fx.Node, float] | None:
    """x and c of x * c or x / c with a number c."""
    if op_name(node) not in ("mul", "div") or node.kwargs:
        return None
    x, c = node.args[:2]
    if not isinstance(x, fx.Node) or not isinstance(c, (int, float)) or isinstance(c, bool) or c == 0:
        return None
    if x.meta["val"].dtype != node.meta["val"].dtype:
        return None
    return x, float(c) if op_name(node) == "mul" else 1.0 / float(c)


def _plain(space: Space, node: fx.Node, index: Index, axes: tuple[str, ...], grouped: bool) -> Operand | None:
    shape = shape_of(node)
    dims: dict[str, int] = {}
    head_size = space.sizes["h"]
    for d, (x, size) in enumerate(zip(index, shape, strict=True)):
        if x.op == "const":
            if size != 1:
                return None
            continue
        if x.op == "var" and x.args[0] in axes and size == space.sizes[x.args[0]]:
            name = x.args[0]
        elif grouped and x.op == "floordiv" and x.args[0] is space.var("h"):
            name = "h"
            if size * x.args[1].args[0] != space.sizes["h"]:
                return None
            head_size = size
        else:
            return None
        if name in dims:
            return None
        dims[name] = d
    if any(a not in dims and space.sizes[a] != 1 for a in axes[2:]):
        return None
    sizes = [space.sizes[a] for a in axes]
    sizes[1] = head_size if "h" in dims else (1 if grouped else space.sizes["h"])
    # Dims of size 1 that no axis claimed stand for the axes that have none.
    spare = [d for d in range(len(shape)) if d not in dims.values()]
    return Operand(node, tuple(dims[a] if a in dims else (spare.pop(0) if spare else None) for a in axes), tuple(sizes))


def _reshaped(space: Space, node: fx.Node, index: Index, axes: tuple[str, ...]) -> Operand:
    """Batch dims that only together run over (b, h), in order: a reshape of the operand itself."""
    shape = shape_of(node)
    flat = space.add(space.mul(space.var("b"), space.int(space.sizes["h"])), space.var("h"))
    wanted = (*unflatten(space, flat, shape[:-2]), space.var(axes[2]), space.var(axes[3]))
    if len(shape) < 2 or index != wanted or math.prod(shape[:-2]) != space.sizes["b"] * space.sizes["h"]:
        raise _Reject(f"the layout of {node.name} is not one of batch, head, length and width")
    return Operand(node, (), tuple(space.sizes[a] for a in axes))


def _inner_stride_one(operand: Operand) -> bool:
    last = operand.dims[-1]
    return last is None or operand.node.meta["val"].stride(last) == 1


def _finish(
    out: fx.Node, core: tuple[fx.Node, ...], space: Space, e: Expr, query: Operand, key: Operand, value: Operand,
    scale: float, order: tuple[int, ...], assumed: set[fx.Node],
) -> Match:  # fmt: skip
    for name, operand in (("query", query), ("key", key), ("value", value)):
        dtype = operand.node.meta["val"].dtype
        if dtype not in FLOATS:
            raise _Reject(f"the {name} is {dtype_name(dtype)}; attention takes float32, float16, bfloat16")
        if dtype != query.node.meta["val"].dtype:
            raise _Reject("query, key and value have different dtypes")
    if out.meta["val"].dtype != query.node.meta["val"].dtype:
        raise _Reject("the result has another dtype than the query")
    heads = {key.shape[1], value.shape[1]}
    gqa = heads != {query.shape[1]}
    if len(heads) > 1:
        # One of key and value is shared by more heads: view the other's groups at the finer count.
        most = max(heads)
        if min(heads) != 1:
            raise _Reject("key and value have different numbers of heads")
        key, value = (_with_heads(x, most) for x in (key, value))
        gqa = most != query.shape[1]
    program, factor, notes, density = _program(space, e)
    captured = tuple(_captured(ref) for ref in program.tensors)
    detail = Attention(query, key, value, scale * factor, gqa, program.text, captured, program.scalars, order, density,
                       tuple(sorted(assumed, key=lambda n: n.name)))  # fmt: skip
    return Match("attention", out, core, detail, notes)


def _with_heads(operand: Operand, heads: int) -> Operand:
    if operand.shape[1] == heads:
        return operand
    return Operand(operand.node, operand.dims, (operand.shape[0], heads, *operand.shape[2:]))


def _program(space: Space, e: Expr) -> tuple[ProgramText, float, tuple[str, ...], float]:
    """The Program of a score expression over dot, the factor on dot, notes for the user, the mask's density."""
    notes: tuple[str, ...] = ()
    split = split_mask(space, e, finite=True)
    if split.finite and not (split.keep is not None and keeps_a_key(split.keep, space.sizes)):
        split = split_mask(space, e, finite=False)
    score, keep = split.score, split.keep
    if keep is not None and keep.op == "const":
        if not keep.args[0]:
            raise _Reject("everything is masked")
        keep = None
    if "dot" not in score.free:
        raise _Reject("everything is masked, or the scores do not depend on the product")
    if keep is not None and "dot" in keep.free:
        raise _Reject("the mask depends on the scores")
    if keep is not None and keep.loads:
        notes = ("a row whose every key is masked gives 0, where the original gives NaN",)
    factor, section = _factor(space, score)
    section, keep = _order_loads(space, section, keep)
    return write_program(section, keep), factor, notes, density(keep, space.sizes) if keep is not None else 1.0


def _factor(space: Space, score: Expr) -> tuple[float, Expr | None]:
    """The number that dot is always multiplied with, and the score section in terms of their product."""
    dot, result = space.var("dot"), space.var("score")
    if score is dot:
        return 1.0, None
    users = _users(score, dot)
    factors = {
        u.args[1].args[0] if u.op == "mul" and u.args[0] is dot and u.args[1].op == "const" else None for u in users
    }
    if len(factors) == 1 and None not in factors and score is not dot:
        factor = factors.pop()
        rest = space.rebuild(score, lambda x: result if x in users else None)
        return float(factor), None if rest is result else rest
    return 1.0, space.rebuild(score, lambda x: result if x is dot else None)


def _parts(e: Expr) -> list[Expr]:
    seen, stack = {e}, [e]
    while stack:
        for part in operands(stack.pop()):
            if part not in seen:
                seen.add(part)
                stack.append(part)
    return sorted(seen, key=lambda x: x.serial)


def _users(e: Expr, leaf: Expr) -> set[Expr]:
    return {x for x in _parts(e) if leaf in x.args}


def _order_loads(space: Space, *sections: Expr | None) -> tuple[Expr | None, ...]:
    """Permutes captured tensors so that their dims run in the order b, h, q, kv where each is a plain index."""
    position = {v: i for i, v in enumerate(("b", "h", "q", "kv"))}

    def reorder(x: Expr) -> Expr | None:
        if x.op != "load":
            return None
        index = x.args[1:]
        if not all(i.op == "var" for i in index) or len({i.args[0] for i in index}) != len(index):
            return x
        order = sorted(range(len(index)), key=lambda i: position[index[i].args[0]])
        ref: TensorRef = x.args[0]
        permuted = TensorRef(ref.source, tuple(ref.dims[i] for i in order), ref.dtype)
        return space.load(permuted, [index[i] for i in order])

    return tuple(None if s is None else space.rebuild(s, reorder) for s in sections)


def _captured(ref: TensorRef) -> Operand:
    node: fx.Node = ref.source
    value = node.meta["val"]
    shape = tuple(int(value.shape[d]) for d in ref.dims)
    if not ref.dims:
        return Operand(node, (), ())
    gapless = value.stride(ref.dims[-1]) == 1
    return Operand(node, ref.dims, shape, contiguous=not gapless)


def _sdpa(node: fx.Node, known: dict[fx.Node, torch.Tensor]) -> Match:
    a = bind(node)
    if a["dropout_p"]:
        raise _Reject("attention with dropout")
    q, k, v = a["query"], a["key"], a["value"]
    shape, kv = shape_of(q), shape_of(k)
    if len(shape) < 2 or 0 in shape or 0 in kv:
        raise _Reject("an empty tensor")
    heads = shape[-3] if len(shape) > 2 else 1
    if len(shape) > 4 or not (len(shape) == len(kv) == len(shape_of(v))):
        raise _Reject(f"attention over {len(shape)} dims")
    if shape[:-3] != kv[:-3] or shape[:-3] != shape_of(v)[:-3]:
        raise _Reject("attention that broadcasts batches")
    batch = shape[0] if len(shape) == 4 else 1
    sizes = {"b": batch, "h": heads, "q": shape[-2], "kv": kv[-2], "d": shape[-1], "e": shape_of(v)[-1]}
    space = Space(sizes)
    operands_ = []
    for x, axes in ((q, ("b", "h", "q", "d")), (k, ("b", "h", "kv", "d")), (v, ("b", "h", "kv", "e"))):
        operands_.append(_sdpa_operand(space, x, axes, heads))
    e = space.var("dot")
    if a["is_causal"]:
        keep = space.compare("ge", space.var("q"), space.var("kv"))
        e = space.where(keep, e, space.float(-math.inf))
    assumed: set[fx.Node] = set()
    mask = a["attn_mask"]
    if mask is not None:
        elements = Elements(space, None, known)
        index = (space.var("b"), space.var("h"), space.var("q"), space.var("kv"))
        bias = elements.value(mask, index, BOOL if mask.meta["val"].dtype == torch.bool else "float32")
        e = space.where(bias, e, space.float(-math.inf)) if bias.type == BOOL else space.add(e, bias)
        assumed = elements.assumed
    scale = a["scale"] if a["scale"] is not None else 1.0 / math.sqrt(sizes["d"])
    order = (0, 1, 2, 3)
    return _finish(node, (node,), space, e, *operands_, float(scale), order, assumed)


def _sdpa_operand(space: Space, node: fx.Node, axes: tuple[str, ...], heads: int) -> Operand:
    shape = shape_of(node)
    names = axes[4 - len(shape) :]
    own = shape[-3] if len(shape) > 2 else 1
    index = [space.var(name) for name in names]
    if own != heads:
        group = space.int(heads // own)
        index[-3] = space.floordiv(space.var("h"), group)
    operand, _ = _operand(space, node, tuple(index), axes, True, peel=False)
    return operand
