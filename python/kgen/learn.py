"""What patch learns from one call of a model: which submodules get a rewritten forward, and why others do not.

Changes no module. Layers that are alike share one export and one check of their subgraphs; each is still run
beside its original on its own captured inputs before it counts.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import fx, nn
from torch.utils import _pytree as pytree

from . import recognise, rewrite, targets
from .capture import Calls, Capture, Part
from .errors import NotATarget
from .graphs import Graph, export, lookup
from .plans import Plan, make_plan
from .recognise import Attention, Match

# Bytes of captured inputs that are held at a time.
HELD_BYTES = 1 << 30


@dataclass
class Replaced:
    path: str
    op: str
    served: str


@dataclass
class NotReplaced:
    path: str
    op: str
    reason: str


@dataclass
class PatchReport:
    """What patch did so far. lazy: it looks at the model when that is first called."""

    replaced: list[Replaced] = field(default_factory=list)
    left: list[NotReplaced] = field(default_factory=list)
    lazy: bool = False

    def move(self, path: str, reason: str) -> None:
        """What was replaced at path or below is left alone after all."""
        for r in [r for r in self.replaced if not path or r.path == path or r.path.startswith(path + ".")]:
            self.replaced.remove(r)
            self.left.append(NotReplaced(r.path, r.op, reason))

    def __str__(self) -> str:
        lines = []
        for op, served, paths in _grouped([(r.op, r.served, r.path) for r in self.replaced]):
            lines.append(f"kgen.patch: {op} in {_some(paths)} -> {served}")
        for op, reason, paths in _grouped([(n.op, n.reason, n.path) for n in self.left]):
            lines.append(f"kgen.patch: left alone: {op} in {_some(paths)}: {reason}")
        if not lines:
            lines.append(
                "kgen.patch: the model is looked at when it is first called"
                if self.lazy
                else "kgen.patch: found nothing to replace: no attention, softmax, layer_norm, rms_norm or product with an "
                "epilogue in the model's graph"
            )
        return "\n".join(lines)


def _grouped(rows: list[tuple[str, str, str]]) -> list[tuple[str, str, list[str]]]:
    groups: dict[tuple[str, str], list[str]] = {}
    for a, b, path in rows:
        paths = groups.setdefault((a, b), [])
        if path not in paths:
            paths.append(path)
    return [(a, b, paths) for (a, b), paths in groups.items()]


def _some(paths: list[str]) -> str:
    shown = [p or "the model itself" for p in paths[:3]]
    return ", ".join(shown) + (f" and {len(paths) - 3} more" if len(paths) > 3 else "")


@dataclass
class _Rewritten:
    """The rewritten graph of one module, for others of its kind."""

    module: nn.Module
    graph: Graph
    code: fx.GraphModule
    assumed: set[fx.Node]
    replaced: list[tuple[str, str, str]]  # path below the module, op, what serves it


Arguments = tuple[tuple[Any, ...], dict[str, Any]]


class Learner:
    """Plans for the parts of a captured model. fallback: also for what no Kernel serves."""

    def __init__(self, capture: Capture, fallback: bool, report: PatchReport):
        self.capture, self.fallback, self.report = capture, fallback, report
        self.plans: dict[str, list[Plan]] = {}
        self._checked: dict[str, tuple[str | None, str]] = {}
        self._shared: dict[tuple[Any, ...], _Rewritten] = {}
        self._refused: dict[str, str] = {}
        self._held: dict[tuple[str, tuple[Any, ...]], Arguments] = {}

    def learn(self) -> dict[str, list[Plan]]:
        """Plans by the path of the submodule; the report says the rest."""
        wanted = self._survey()
        waiting = list(wanted)
        for path, ops in wanted.items():
            if path in waiting:
                waiting = self._prefetch(waiting)
            self._at_or_above(path, ops)
        return self.plans

    def _survey(self) -> dict[str, set[str]]:
        """Paths of the smallest submodules that hold something, and what."""
        units, failed = targets.units(self.capture)
        wanted: dict[str, set[str]] = {}
        for unit in units:
            found = recognise.find(unit.graph)
            for miss in found.misses:
                self.report.left.append(NotReplaced(targets.join(unit.path, miss.path), miss.op, miss.reason))
            for match in self._worth(unit, found.matches):
                wanted.setdefault(targets.join(unit.path, match.path), set()).add(match.op)
        for path, reason in failed:
            if not any(not path or p == path or p.startswith(path + ".") for p in wanted):
                self.report.left.append(NotReplaced(path, "everything", reason))
        return wanted

    def _worth(self, unit: targets.Unit, matches: list[Match]) -> list[Match]:
        """All but the products that no Kernel serves. They stay torch's also with `fallback`, where they would only be slower;
        most of a model's products are such, and each would cost an export to find out."""
        products = [m for m in matches if m.op in recognise.PRODUCTS]
        if not products:
            return matches
        values = targets.record(self.capture, unit, products)
        left, known = set(), dict[str, tuple[str, bool]]()
        for match in products:
            key = targets.subgraph_key(rewrite.original(match)[0], match)
            if key not in known:
                known[key] = served(match, values)
            by, kernel = known[key]
            if not kernel:
                left.add(match)
                reason = f"no Kernel serves it ({by})"
                self.report.left.append(NotReplaced(targets.join(unit.path, match.path), match.op, reason))
        return [m for m in matches if m not in left]

    def _prefetch(self, waiting: list[str]) -> list[str]:
        """Takes the inputs of the next parts from one run of the model; returns the paths after those."""
        self._held.clear()
        asked: dict[str, tuple[Any, ...]] = {}
        held = 0
        for i, path in enumerate(waiting):
            part = self.capture.parts.get(path)
            if part is None or not path:
                continue
            signature = next(iter(part.calls))
            held += _bytes_of(signature)
            if asked and held > HELD_BYTES:
                waiting = waiting[i:]
                break
            asked[path] = signature
        else:
            waiting = []
        if asked:
            for path, arguments in self.capture.inputs_of(asked).items():
                self._held[path, asked[path]] = arguments
        return waiting

    def _at_or_above(self, path: str, ops: set[str]) -> None:
        """Plans for the submodule at path, or for the smallest one around it where that works."""
        at, reasons = path, []
        while at not in self.plans:
            if at in self._refused:
                reasons.append(self._refused[at])
            elif at in self.capture.parts:
                try:
                    self._part(self.capture.parts[at], ops)
                    return
                except NotATarget as e:
                    self._refused[at] = str(e)
                    reasons.append(str(e))
            if not at:
                for op in sorted(ops):
                    reason = reasons[0] if reasons else "it is not called as a module"
                    self.report.left.append(NotReplaced(path, op, reason))
                return
            at = at.rpartition(".")[0]

    def _part(self, part: Part, ops: set[str]) -> None:
        if part.refusal:
            raise NotATarget(part.refusal)
        if "forward" in part.module.__dict__ and not hasattr(part.module.forward, "kgen_state"):
            raise NotATarget("its forward is already replaced on the instance by other code")
        for name, m in part.module.named_modules():
            if name and (m._forward_hooks or m._forward_pre_hooks or m._backward_hooks or m._backward_pre_hooks):
                raise NotATarget(f"its submodule {name} has hooks, which a rewritten forward would not call")
        plans, replaced = [], []
        for calls in part.calls.values():
            plan, rewritten = self._call(part, calls, ops)
            plans.append(plan)
            replaced += [Replaced(targets.join(part.path, p), op, served) for p, op, served in rewritten.replaced]
        self.plans[part.path] = plans
        self.report.replaced += replaced

    def _call(self, part: Part, calls: Calls, ops: set[str]) -> tuple[Plan, _Rewritten]:
        arguments = self._held.get((part.path, calls.signature)) or targets.inputs(self.capture, part, calls)
        key = (*targets.kind_of(part.module), tuple(m.training for m in part.module.modules()), calls.signature)
        known = self._shared.get(key)
        if known is not None and _same_assumptions(known, part.module):
            plan = self._plan(part, known, arguments)
            if plan is not None:
                return plan, known
        made = self._rewrite(part, calls, ops, arguments)
        plan = make_plan(part.module, made.graph, made.code, *arguments, made.assumed)
        reason = self._compare(part, plan, arguments)
        if reason:
            raise NotATarget(reason)
        self._shared.setdefault(key, made)
        return plan, made

    def _plan(self, part: Part, known: _Rewritten, arguments: Arguments) -> Plan | None:
        plan = make_plan(part.module, known.graph, known.code, *arguments, known.assumed)
        return None if self._compare(part, plan, arguments) else plan

    def _rewrite(self, part: Part, calls: Calls, ops: set[str], arguments: Arguments) -> _Rewritten:
        with self.capture.running():
            graph = export(part.module, *arguments)
        unit = targets.Unit(part.path, graph, *arguments, calls.count)
        found = recognise.find(graph)
        reasons = [m.reason for m in found.misses]
        accepted = self._accepted(unit, found.matches, reasons)
        got = {m.op for m, _ in accepted}
        if not ops - set(recognise.PRODUCTS) <= got or not got:
            raise NotATarget(reasons[0] if reasons else "its own graph shows nothing to replace")
        matches = [m for m, _ in accepted]
        assumed = {n for m in matches if isinstance(m.detail, Attention) for n in m.detail.assumed}
        code = rewrite.apply(graph, matches, rewrite.torch_ops)
        return _Rewritten(part.module, graph, code, assumed, [(m.path, m.op, served) for m, served in accepted])

    def _accepted(
        self, unit: targets.Unit, matches: list[Match], reasons: list[str]
    ) -> list[tuple[Match, str]]:
        """The matches that are right and served, with what serves them."""
        keys = {m: targets.subgraph_key(rewrite.original(m)[0], m) for m in matches}
        fresh = [m for m in matches if keys[m] not in self._checked]
        values = targets.record(self.capture, unit, fresh) if fresh else {}
        accepted = []
        for match in matches:
            if keys[match] not in self._checked:
                self._checked[keys[match]] = self._check(match, values)
            reason, by = self._checked[keys[match]]
            if reason is None:
                accepted.append((match, by))
            else:
                reasons.append(reason)
        return accepted

    def _check(self, match: Match, values: dict[fx.Node, Any]) -> tuple[str | None, str]:
        by, kernel = served(match, values)
        if not kernel and (not self.fallback or match.op in recognise.PRODUCTS):
            return f"no Kernel serves it ({by})", by
        return targets.check(match, values), by

    def _compare(self, part: Part, plan: Plan, arguments: Arguments) -> str | None:
        """Runs the rewritten forward beside the original on the captured call."""
        args, kwargs = arguments
        with self.capture.running():
            want = pytree.tree_leaves(type(part.module).forward(part.module, *args, **kwargs))
            got = pytree.tree_leaves(plan.run(part.module, args, kwargs))
        if len(want) != len(got):
            return "the rewritten forward returns another structure"
        for a, b in zip(got, want, strict=True):
            reason = _difference(a, b)
            if reason:
                return reason
        return None


def _difference(a: Any, b: Any) -> str | None:
    if not isinstance(b, torch.Tensor):
        return None if type(a) is type(b) and a == b else "the rewritten forward returns another value"
    if not isinstance(a, torch.Tensor) or a.shape != b.shape or a.dtype != b.dtype:
        return f"the rewritten forward returns {a}, the original {b.dtype}{tuple(b.shape)}"
    if not b.dtype.is_floating_point:
        return None if torch.equal(a, b) else "the rewritten forward returns other integers"
    known = torch.isfinite(b)
    if not known.any():
        return None
    scale = max(float(b[known].double().abs().max()), 1e-30)
    error = float((a.double() - b.double())[known].abs().max()) / scale
    # Two ways to round sums of a few thousand terms, in the output's own dtype.
    bound = max(1e-4, 64 * torch.finfo(b.dtype).eps)
    return None if error <= bound else f"the rewritten forward differs by {error:.2g} of the largest value"


def _same_assumptions(known: _Rewritten, module: nn.Module) -> bool:
    """Whether the buffers that the rewritten graph has built in hold the same values in another module."""
    for g in known.graph.inputs:
        if g.node in known.assumed and g.kind == "buffer":
            if not torch.equal(lookup(known.module, g.target), lookup(module, g.target)):
                return False
    return True


def _bytes_of(signature: tuple[Any, ...]) -> int:
    """About the size of the tensors of a call, from its signature."""
    tensors = (leaf for leaf in signature[1:] if isinstance(leaf, tuple) and isinstance(leaf[0], tuple))
    return sum(8 * math.prod(leaf[0]) for leaf in tensors)


def served(match: Match, values: dict[fx.Node, Any]) -> tuple[str, bool]:
    """What would serve the Op on these values, and whether that is a Kernel."""
    from .serving import why

    g = fx.Graph()
    nodes, tensors = {}, []
    for n in rewrite.inputs_of(match):
        nodes[n] = g.placeholder(n.name)
        nodes[n].meta = dict(n.meta)
        tensors.append(values[n])
    g.output(rewrite.emit_match(g, rewrite.moved(match, nodes), rewrite.torch_ops))
    decisions = why(fx.GraphModule(nn.Module(), g), *tensors).decisions
    if not decisions:
        return "torch", False
    last = decisions[-1]
    if last.kernel is not None:
        return f"{last.kernel} ({last.kind})", True
    return f"fallback: {last.reason}", False
