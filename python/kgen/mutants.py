"""Do a Task's inputs exercise every term of what it computes? One term at a time is dropped from the reference, and the
mutant must differ from the oracle by more than the judge lets pass, on some input set of the Task.

A mutant that never shows is equivalent as far as this judge can tell (an eps that is never felt, a mask of nothing): a
Candidate without that term would pass. It is listed, not refused, since many a term does nothing by right. Mutants are
made from the captured aten graph, or for canonical Ops from the formula; a Task whose reference is a file has none.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import fx

from . import devices, oracle
from .distributions import PRODUCTS
from .graphs import bind, op_name
from .program import parse
from .recognise import NORMS

if TYPE_CHECKING:
    from .judge import Judge
    from .reference import Drawn, Expected, Reference

Tensors = tuple[torch.Tensor, ...]
Change = Callable[[fx.Graph, fx.Node], None]

# More of either is not gone through, nor is it for longer: each mutant is a run of the reference in fp64 a set.
MOST_MUTANTS, MOST_ELEMENTS, MOST_SECONDS = 96, 1 << 22, 30.0

_TWO_TERMS = {"add", "sub", "rsub", "mul", "div", "maximum", "minimum", "pow", "bitwise_and", "bitwise_or", "bitwise_xor"}
# Of one argument, or of one that matters: without it, its argument is what is left.
_MAPS = {
    "relu", "gelu", "silu", "sigmoid", "tanh", "exp", "log", "log1p", "sqrt", "rsqrt", "erf", "sin", "cos", "neg", "abs",
    "square", "reciprocal", "clamp", "clamp_min", "clamp_max", "hardtanh", "hardswish", "hardsigmoid", "leaky_relu",
    "elu", "selu", "softplus", "mish", "round", "floor", "ceil", "tril", "triu", "masked_fill", "softmax", "_softmax",
    "log_softmax", "_log_softmax", "cumsum", "flip", "roll",
}  # fmt: skip
_OPTIONAL = ("weight", "bias", "attn_mask", "is_causal", "scale")
# Operation: the argument whose last element along a dim is taken out, and which dim (None: the operation's own).
_SUMS: dict[str, tuple[str, int | None]] = {
    **{name: ("self", None) for name in (
        "sum", "mean", "amax", "amin", "max", "min", "var", "var_mean", "std", "std_mean", "norm", "softmax", "_softmax",
        "log_softmax", "_log_softmax", "logsumexp", "cumsum", "prod", "linalg_vector_norm", "argmax", "argmin", "any", "all",
        "topk", "sort", "index_add", "scatter_add",
    )},
    "matmul": ("self", -1), "mm": ("self", -1), "bmm": ("self", -1), "mv": ("self", -1), "linear": ("input", -1),
    "addmm": ("mat1", -1), "baddbmm": ("batch1", -1), "conv1d": ("weight", -1), "conv2d": ("weight", -1),
    "conv3d": ("weight", -1), "convolution": ("weight", -1), "layer_norm": ("input", -1), "rms_norm": ("input", -1),
    "native_layer_norm": ("input", -1), "group_norm": ("input", 1), "scaled_dot_product_attention": ("value", -2),
    "mse_loss": ("self", -1), "cross_entropy_loss": ("self", -1), "avg_pool2d": ("self", -1), "max_pool2d": ("self", -1),
}  # fmt: skip
_LOOKUPS = {"embedding": "indices", "gather": "index", "index_select": "index", "take_along_dim": "indices"}


@dataclass(frozen=True)
class Mutant:
    """label: what is missing. run: the altered reference in fp64."""

    label: str
    run: Callable[[Drawn], Tensors]


class Examiner:
    """Looks at the input sets of a Task one after the other; says at the end which mutants were never seen to differ."""

    def __init__(self, reference: Reference) -> None:
        self.reference = reference
        self.seen = 0
        self.unseen = list(itertools.islice(of(reference), MOST_MUTANTS))
        self.untried: set[str] = set()  # those that not every set was tried on
        self.skipped = ""
        self._left = MOST_SECONDS

    def look(self, index: int, reduction: int, drawn: Drawn, e: Expected) -> None:
        """One set of Case `index`. reduction: as the judge counts it."""
        if sum(o.numel() for o in e.outputs) + _elements(drawn) > MOST_ELEMENTS:
            self.skipped = f"sets of more than {MOST_ELEMENTS} elements are not gone through"
            self.untried |= {m.label for m in self.unseen}
            return
        case, start = self.reference.task.cases[index], time.monotonic()
        left = []
        for i, mutant in enumerate(self.unseen):
            if time.monotonic() - start > self._left:
                self.skipped = f"sets are gone through for {MOST_SECONDS:.0f} s"
                self.untried |= {m.label for m in self.unseen[i:]}
                left += self.unseen[i:]
                break
            found = _differs(self.reference, mutant, drawn, e, reduction, str(case["precision"]))
            if found is None:
                continue  # no such mutant: the rest of the graph does not take it
            if found:
                self.seen += 1
            else:
                left.append(mutant)
        self.unseen = left
        self._left = max(0.0, self._left - (time.monotonic() - start))

    def found(self, judge: Judge | None = None) -> dict[str, Any]:
        """For a Record's details. mutants: how many showed, and the terms that may be missing unseen. degenerate: answers
        that take no work and would pass (`judge` has the sets), where there are any."""
        equivalent = [m.label for m in self.unseen if m.label not in self.untried]
        mutants: dict[str, Any] = {"seen": self.seen, "equivalent": equivalent}
        if self.skipped:
            mutants |= {"skipped": self.skipped, "untried": len(self.unseen) - len(equivalent)}
        cases = range(len(self.reference.task.cases)) if judge is not None else ()
        trivial = [{"case": i, **t} for i in cases for t in judge.trivial(i)]  # type: ignore[union-attr]
        return {"mutants": mutants, **({"degenerate": trivial} if trivial else {})}


def doubts(details: dict[str, Any]) -> list[str]:
    """What a pass on this Task does not prove, in lines that end with a newline each."""
    lines = [
        f"the Task is degenerate: {t['answer']} would pass for {t['output']} of Case {t['case']}\n"
        for t in details.get("degenerate", ())
    ]
    unseen = details.get("mutants", {}).get("equivalent", ())
    return lines + [f"no input of the Task shows whether a term is there: {label}\n" for label in unseen]


def _elements(drawn: Drawn) -> int:
    return sum(x.numel() for x in drawn.args.values() if isinstance(x, torch.Tensor))


def _differs(
    reference: Reference, mutant: Mutant, drawn: Drawn, e: Expected, reduction: int, precision: str
) -> bool | None:
    """Whether the judge would see it; None when the mutant cannot be run."""
    from .reference import error
    from .sets import limits

    try:
        with torch.no_grad(), devices.arithmetic(reference.task.cases[0]):
            outputs = mutant.run(drawn)
    except (RuntimeError, TypeError, ValueError, IndexError) as failed:
        if devices.is_out_of_memory(failed):
            raise
        return None
    if len(outputs) != len(e.outputs) or any(a.shape != b.shape for a, b in zip(outputs, e.outputs, strict=True)):
        return None
    for i, (got, want) in enumerate(zip(outputs, e.outputs, strict=True)):
        norm, worst = error(got, want)
        allowed = limits(e, reduction, i, precision)
        if not (norm <= allowed[0] and worst <= allowed[1]):
            return True
    return False


def of(reference: Reference) -> Iterator[Mutant]:
    """The mutants of a Task."""
    if reference.program is not None:
        yield from _of_graph(reference)
    elif reference.task.op == "attention":
        yield from _of_attention(reference)
    elif reference.task.op in PRODUCTS:
        yield from _of_product(reference)
    elif reference.task.op in NORMS:
        yield from _of_norm(reference)
    elif reference.task.op == "softmax":
        yield Mutant("softmax without the last element of a row", lambda d: _short_softmax(reference, d))


# Canonical Ops


def _short_softmax(reference: Reference, d: Drawn) -> Tensors:
    x = d.args["input"].clone()
    dim = int(d.args["dim"])
    x.narrow(dim, x.shape[dim] - 1, 1).fill_(-torch.inf)
    return reference.wide(replace(d, args={**d.args, "input": x}))[0]


def _of_attention(reference: Reference) -> Iterator[Mutant]:
    def with_args(d: Drawn, **given: Any) -> Tensors:
        return reference.wide(replace(d, args={**d.args, **given}))[0]

    def without(section: str) -> Callable[[Drawn], Tensors]:
        return lambda d: reference.wide(replace(d, program=_without_section(d.program, section)))[0]

    yield Mutant("attention without the scale", lambda d: with_args(d, scale=1.0))
    yield Mutant("attention with the last key's value left out", lambda d: with_args(d, value=_without_last(d.args["value"], 2)))
    yield Mutant("attention with the last key zero", lambda d: with_args(d, key=_without_last(d.args["key"], 2)))
    texts = [c["program"]["text"] for c in reference.task.cases if c.get("program")]
    for section in ("score", "mask"):
        if any(getattr(parse(t), section) is not None for t in texts):
            yield Mutant(f"attention without the Program's {section}", without(section))


def _of_product(reference: Reference) -> Iterator[Mutant]:
    op, cases = reference.task.op, reference.task.cases

    name = "weight" if op == "conv2d" else "input"  # every element of it is summed over but for the padding

    def shorter(d: Drawn) -> Tensors:
        return reference.wide(replace(d, args={**d.args, name: _without_last(d.args[name], -1)}))[0]

    yield Mutant(f"{op} without the last element of its sum", shorter)
    if any(c["args"].get("bias") is not None for c in cases):
        yield Mutant(f"{op} without the bias", lambda d: reference.wide(replace(d, args={**d.args, "bias": None}))[0])
    for part in dict.fromkeys(line for c in cases if c.get("program") for line in _terms(c["program"]["text"])):
        yield Mutant(f"{op} without the epilogue's {part}", lambda d, part=part: reference.wide(_less(d, part))[0])
    if any(c.get("program") for c in cases):
        yield Mutant(f"{op} without the epilogue", lambda d: reference.wide(replace(d, program=None))[0])


def _of_norm(reference: Reference) -> Iterator[Mutant]:
    op, cases = reference.task.op, reference.task.cases

    def with_args(d: Drawn, **given: Any) -> Tensors:
        return reference.wide(replace(d, args={**d.args, **given}))[0]

    def about_zero(d: Drawn) -> Tensors:
        a, bias = d.args, d.args["bias"]
        made = oracle.norm("rms_norm", a["input"], a["normalized_shape"], a["weight"], None, a["eps"])
        return (made if bias is None else made + bias.double(),)

    yield Mutant(f"{op} without the last element of a row", lambda d: with_args(d, input=_without_last(d.args["input"], -1)))
    yield Mutant(f"{op} without eps", lambda d: with_args(d, eps=0.0))
    if op == "layer_norm":
        yield Mutant("layer_norm without the mean", about_zero)
    for term in ("weight", "bias"):
        if any(c["args"].get(term) is not None for c in cases):
            yield Mutant(f"{op} without the {term}", lambda d, term=term: with_args(d, **{term: None}))


def _terms(program: str) -> list[str]:
    """The lines of an epilogue that map one float to another."""
    lines = [line for line in program.splitlines() if line.startswith("%")]
    return [line for line in lines if " float32 " in line and line.split()[2] not in ("load", "cast", "where")]


def _less(d: Drawn, line: str) -> Drawn:
    """A value of the epilogue is its own first operand; a Program that has no such line has no such mutant."""
    text = d.program or ""
    if f"{line}\n" not in text:
        raise ValueError("no such term")
    name, _, _, _, first, *_ = line.split()
    kept = "\n".join(x for x in text.splitlines() if x != line) + "\n"
    return replace(d, program=_renamed(kept, name, first))


def _renamed(program: str, name: str, by: str) -> str:
    """The Program with an operand in place of a value that is gone; later values move up by one."""
    gone, made = int(name[1:]), []

    def moved(word: str) -> str:
        if not (word.startswith("%") and word[1:].isdigit()):
            return word
        return by if word == name else f"%{int(word[1:]) - (int(word[1:]) > gone)}"

    for line in program.splitlines():
        made.append(" ".join(moved(w) for w in line.split(" ")))
    return "\n".join(made) + "\n"


def _without_section(program: str | None, section: str) -> str | None:
    """The text less its score or mask section; None when nothing is left."""
    lines, kept, inside = (program or "").splitlines(), [], False
    for line in lines:
        if line in ("score", "mask"):
            inside = line == section
        kept += [] if inside else [line]
    return "\n".join(kept) + "\n" if "score" in kept or "mask" in kept else None


def _without_last(x: torch.Tensor, dim: int) -> torch.Tensor:
    x = x.clone()
    x.narrow(dim, x.shape[dim] - 1, 1).zero_()
    return x


# Graphs


def _of_graph(reference: Reference) -> Iterator[Mutant]:
    from .reference import run_wide

    program, names = reference.program, [a["name"] for a in reference.task.contract["args"]]

    def runner(at: int, change: Change) -> Callable[[Drawn], Tensors]:
        def alter(gm: fx.GraphModule) -> None:
            change(gm.graph, list(gm.graph.nodes)[at])
            gm.graph.eliminate_dead_code(is_impure_node=lambda n: n.op in ("placeholder", "output"))
            gm.recompile()

        return lambda d: run_wide(program, [d.args[n] for n in names], alter)[0]

    for at, node in enumerate(program.graph_module.graph.nodes):
        if op_name(node) in ("", "getitem"):
            continue
        for what, change in _changes(node):
            yield Mutant(f"{node.name}: {what}", runner(at, change))


def _changes(node: fx.Node) -> Iterator[tuple[str, Change]]:
    name, bound = op_name(node), bind(node)
    if name in _TWO_TERMS:
        for this, other, word in (("self", "other", "second"), ("other", "self", "first")):
            if isinstance(bound.get(this), fx.Node):
                yield f"{name} without its {word} term", _becomes(this)
    elif name == "where":
        for this in ("self", "other"):
            if isinstance(bound.get(this), fx.Node):
                yield f"where without its condition, always {this}", _becomes(this)
    elif name in _MAPS and isinstance(node.args[0], fx.Node):
        yield f"without {name}", _becomes(None)
    for option in _OPTIONAL:
        if bound.get(option) not in (None, False) and option in bound and name not in _MAPS | {"embedding"}:
            if option != "weight" or "norm" in name:
                yield f"{name} without {option}", _without(option)
    if name in _SUMS:
        yield f"{name} without the last element of what it goes over", _shorter(*_SUMS[name])
    if name in _LOOKUPS:
        yield f"{name} of index 0 alone", _index_zero(_LOOKUPS[name])


def _becomes(argument: str | None) -> Change:
    """The node is replaced by one of its arguments, spread to the node's shape."""

    def change(g: fx.Graph, n: fx.Node) -> None:
        kept = n.args[0] if argument is None else bind(n)[argument]
        with g.inserting_after(n):
            spread = g.call_function(_spread, (kept, n))
        n.replace_all_uses_with(spread, delete_user_cb=lambda user: user is not spread)

    return change


def _spread(kept: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    return kept.expand(like.shape).to(like.dtype)


def _set(n: fx.Node, argument: str, value: Any) -> None:
    """Gives an argument of an aten call another value, wherever it stands."""
    for i, a in enumerate(n.target._schema.arguments):  # type: ignore[union-attr]
        if a.name == argument and i < len(n.args) and not a.kwarg_only:
            n.args = (*n.args[:i], value, *n.args[i + 1 :])
            return
    n.kwargs = {**n.kwargs, argument: value}


def _without(option: str) -> Change:
    return lambda g, n: _set(n, option, False if option == "is_causal" else 1.0 if option == "scale" else None)


def _shorter(argument: str, dim: int | None) -> Change:
    """The last element along a dim is zero, which for most operations is as good as absent."""

    def change(g: fx.Graph, n: fx.Node) -> None:
        bound = bind(n)
        source = bound.get(argument)
        if op_name(n) in ("index_add", "scatter_add"):
            source = bound.get("source", bound.get("src"))
        source = source if isinstance(source, fx.Node) else n.args[0]
        asked = bound.get("dim") if dim is None else dim
        asked = asked[0] if isinstance(asked, (list, tuple)) and asked else asked
        with g.inserting_before(n):
            n.replace_input_with(source, g.call_function(_without_last, (source, asked if isinstance(asked, int) else -1)))

    return change


def _index_zero(argument: str) -> Change:
    def change(g: fx.Graph, n: fx.Node) -> None:
        index = bind(n)[argument]
        with g.inserting_before(n):
            n.replace_input_with(index, g.call_function(torch.zeros_like, (index,)))

    return change
