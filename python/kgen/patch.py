"""kgen.patch: Ops in place of recognised subgraphs of a live model, nothing else changed.

The forward of the smallest submodule that holds a subgraph gets a twin, made from its exported graph with the
Ops put in; parameters and buffers are read from the module at each call. Every call is held against what was
captured: other shapes, dtypes, devices, modes, attributes or hooks, and calls that need gradients, run the
original forward. The forward is a bound method in the module's own __dict__: copies of the module rebind it,
and pickles hold the class's own forward, so that they load where kgen is not installed.
"""

from __future__ import annotations

import functools
import types
import warnings
import weakref
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import fx, nn
from torch.utils import _pytree as pytree

from . import recognise, rewrite, targets
from .capture import Calls, Capture, Model, Part, Source, as_call, signature_of
from .errors import BadInput, NotATarget
from .graphs import export, lookup
from .plans import Plan, make_plan
from .recognise import Attention, Match

MAX_SIGNATURES = 16
_WARN_GRADIENTS = (
    "kgen: {path} (and what else is patched) runs its original forward where gradients are needed, since no backward "
    "Kernel exists; "
    "call it under torch.no_grad() or torch.inference_mode() to use its Kernels"
)


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
                else "kgen.patch: found nothing to replace: no attention and no softmax in the model's graph"
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


class _State:
    """What the forward of one patched module knows. Shared with copies of the module; holds no module."""

    def __init__(self, path: str, original: Callable[..., Any]):
        self.path, self.original = path, original
        self.plans: list[Plan] = []
        self.lazy: _Lazy | None = None
        self.said: set[str] = set()


class _Lazy:
    """Captures a model at the first call of each signature."""

    def __init__(self, options: _Options):
        self.options = options
        self.seen: set[tuple[Any, ...]] = set()


@dataclass(frozen=True)
class _Options:
    fallback: bool
    quiet: bool
    said: set[str]


# While a model is captured its patched parts run as they were written. Plain and global: other threads that call
# a patched model meanwhile run the original too, which is right, only slower.
_capturing = 0
_reports: weakref.WeakKeyDictionary[nn.Module, PatchReport] = weakref.WeakKeyDictionary()


def patch(
    model: nn.Module,
    example_inputs: Any = None,
    *,
    fallback: bool = False,
    quiet: bool = False,
) -> nn.Module:
    """Puts kgen's Ops into a model, in place; returns it. Prints what was replaced, what not, and why.

    example_inputs: a tuple of arguments, a dict of keywords, a tensor, or (arguments, keywords): the model runs
    on them, under no_grad and without a trace on its buffers or the random state, and calls like it are served
    from then on; patch again for other shapes. Without them that happens at the first call of each signature.
    fallback: also replace what no Kernel serves yet. quiet: print nothing; see kgen.patch_report.
    Raises BadInput for what is no torch.nn.Module.
    """
    target = getattr(model, "_orig_mod", model)
    if not isinstance(target, nn.Module) or isinstance(target, torch.jit.ScriptModule):
        raise BadInput(f"kgen.patch takes a torch.nn.Module, not a {type(model).__name__}")
    options = _Options(fallback, quiet, set())
    report = _reports.setdefault(target, PatchReport())
    if example_inputs is None:
        report.lazy = True
        state = _state_of(target, "")
        state.lazy, state.said = _Lazy(options), options.said
        if not quiet:
            print(report)
        return model
    args, kwargs = as_call(example_inputs, "example_inputs")
    made = _learn(target, args, kwargs, options)
    _merge(report, made)
    if not quiet:
        print(made)
    return model


def unpatch(model: nn.Module) -> nn.Module:
    """Gives every submodule its own forward back, in place; returns the model."""
    target = getattr(model, "_orig_mod", model)
    for module in target.modules():
        if _own_state(module) is not None:
            del module.__dict__["forward"]
    _reports.pop(target, None)
    return model


def patch_report(model: nn.Module) -> PatchReport:
    """What patch did to a model so far, lazily captured calls included."""
    target = getattr(model, "_orig_mod", model)
    return _reports.get(target, PatchReport())


def _merge(report: PatchReport, made: PatchReport) -> PatchReport:
    """Adds to a report; returns what is new in it."""
    new = PatchReport(
        [x for x in made.replaced if x not in report.replaced], [x for x in made.left if x not in report.left]
    )
    report.replaced += new.replaced
    report.left += new.left
    return new


# The forward


def _own_state(module: nn.Module) -> _State | None:
    """The state of a module's forward when it is one of ours and bound to this very module."""
    bound = module.__dict__.get("forward")
    state = getattr(getattr(bound, "__func__", None), "kgen_state", None)
    return state if isinstance(state, _State) else None


def _state_of(module: nn.Module, path: str) -> _State:
    """The state of a module's forward, after patching it if it was not. NotATarget when it must stay."""
    state = _own_state(module)
    if state is not None:
        return state
    if "forward" in module.__dict__:
        raise NotATarget("its forward is already replaced on the instance by other code")
    state = _State(path, type(module).forward)
    module.__dict__["forward"] = types.MethodType(_forward_of(state), module)
    return state


def _forward_of(state: _State) -> Callable[..., Any]:
    @functools.wraps(state.original)
    def forward(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        if _capturing:
            return state.original(self, *args, **kwargs)
        plan = _plan_for(state, self, args, kwargs)
        if plan is None:
            return state.original(self, *args, **kwargs)
        return plan.run(self, args, kwargs)

    # pickle finds a bound method by its name.
    forward.__name__ = "forward"
    forward.kgen_state = state  # type: ignore[attr-defined]
    return forward


def _plan_for(state: _State, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Plan | None:
    plan = _fitting(state, module, args, kwargs)
    if plan is None and state.lazy is not None and not torch.compiler.is_compiling():
        if _learn_lazily(state, module, args, kwargs):
            plan = _fitting(state, module, args, kwargs)
    if plan is not None and torch.is_grad_enabled() and plan.needs_grad(module, args, kwargs):
        if not torch.compiler.is_compiling() and "gradients" not in state.said:
            state.said.add("gradients")
            warnings.warn(_WARN_GRADIENTS.format(path=state.path or type(module).__name__), stacklevel=4)
        return None
    return plan


def _fitting(state: _State, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Plan | None:
    for plan in state.plans:
        if plan.fits(module, args, kwargs):
            return plan
    return None


def _learn_lazily(state: _State, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    lazy = state.lazy
    if lazy is None or torch.jit.is_tracing() or _is_capturing_graph():
        return False
    signature = (signature_of(args, kwargs), module.training)
    if signature in lazy.seen or len(lazy.seen) >= MAX_SIGNATURES:
        return False
    lazy.seen.add(signature)
    made = _learn(module, args, kwargs, lazy.options)
    new = _merge(_reports.setdefault(module, PatchReport()), made)
    if not lazy.options.quiet and (new.replaced or new.left):
        print(new)
    return True


def _is_capturing_graph() -> bool:
    return torch.cuda.is_available() and torch.cuda.is_current_stream_capturing()


# Learning


def _learn(root: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], options: _Options) -> PatchReport:
    """Captures one call of root and patches the submodules that hold something an Op can do."""
    global _capturing
    report = PatchReport()
    _capturing += 1
    try:
        # A copy of the inputs: the forward may write them.
        args, kwargs = pytree.tree_map_only(torch.Tensor, lambda t: t.detach().clone(), (args, kwargs))
        model = Model(root, args, kwargs, Source(type(root).__name__, None, None))
        capture = Capture(model, None, light=True)
        _learn_parts(capture, options, report)
    finally:
        _capturing -= 1
    _drop_unreached(capture, report)
    return report


class _Watched:
    """A Plan that remembers whether it ran."""

    def __init__(self, plan: Plan):
        self.plan, self.ran = plan, False
        self.fits, self.needs_grad = plan.fits, plan.needs_grad

    def run(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        self.ran = True
        return self.plan.run(module, args, kwargs)


def _drop_unreached(capture: Capture, report: PatchReport) -> None:
    """Runs the patched model as it will be run. Some forwards go another way when nothing watches them (torch's own
    encoder layer does), and what they do not reach must not be called replaced."""
    states = [(p, s) for p in capture.parts.values() if (s := _own_state(p.module)) is not None and s.plans]
    if not states:
        return
    watched = {s: [_Watched(plan) for plan in s.plans] for _, s in states}
    for s, plans in watched.items():
        s.plans = plans  # type: ignore[assignment]
    try:
        with capture.running() as root:
            capture.call(root)
    finally:
        for s, plans in watched.items():
            s.plans = [w.plan for w in plans]
    covered = [p.path for p, s in states if any(w.ran for w in watched[s])]
    for part, state in states:
        inside = any(not c or part.path.startswith(c + ".") for c in covered if c != part.path)
        if part.path in covered or inside:
            continue
        state.plans = []
        if state.lazy is None:
            del part.module.__dict__["forward"]
        gone = [r for r in report.replaced if r.path == part.path or r.path.startswith(part.path + ".")]
        for r in gone:
            report.replaced.remove(r)
            report.left.append(NotReplaced(r.path, r.op, "the model does not call it when nothing watches"))


def _learn_parts(capture: Capture, options: _Options, report: PatchReport) -> None:
    units, failed = targets.units(capture)
    wanted: dict[str, set[str]] = {}
    for unit in units:
        found = recognise.find(unit.graph)
        for miss in found.misses:
            report.left.append(NotReplaced(targets.join(unit.path, miss.path), miss.op, miss.reason))
        for match in found.matches:
            wanted.setdefault(targets.join(unit.path, match.path), set()).add(match.op)
    for path, reason in failed:
        if not any(not path or p == path or p.startswith(path + ".") for p in wanted):
            report.left.append(NotReplaced(path, "everything", reason))
    checked: dict[str, tuple[str | None, str]] = {}
    done: dict[str, str | None] = {}
    for path, ops in wanted.items():
        _learn_path(capture, path, ops, options, report, checked, done)


def _learn_path(
    capture: Capture, path: str, ops: set[str], options: _Options, report: PatchReport,
    checked: dict[str, tuple[str | None, str]], done: dict[str, str | None],
) -> None:  # fmt: skip
    """Patches the submodule at path, or the smallest one around it where that works."""
    at, reasons = path, []
    while True:
        if at in done:
            if done[at] is None:
                return
            reasons.append(done[at] or "")
        elif at in capture.parts:
            try:
                _patch_part(capture, capture.parts[at], ops, options, report, checked)
                done[at] = None
                return
            except NotATarget as e:
                done[at] = str(e)
                reasons.append(str(e))
        if not at:
            break
        at = at.rpartition(".")[0]
    for op in sorted(ops):
        report.left.append(NotReplaced(path, op, reasons[0] if reasons else "it is not called as a module"))


def _patch_part(
    capture: Capture, part: Part, ops: set[str], options: _Options, report: PatchReport,
    checked: dict[str, tuple[str | None, str]],
) -> None:  # fmt: skip
    if part.refusal:
        raise NotATarget(part.refusal)
    hooked = [n for n, m in part.module.named_modules() if n and _has_hooks(m)]
    if hooked:
        raise NotATarget(f"its submodule {hooked[0]} has hooks, which a rewritten forward would not call")
    plans, lines = [], []
    for calls in part.calls.values():
        plan, replaced = _plan_part(capture, part, calls, ops, options, checked)
        plans.append(plan)
        lines += replaced
    state = _state_of(part.module, part.path)
    state.said = options.said
    state.plans = [*plans, *state.plans][:MAX_SIGNATURES]
    report.replaced += lines


def _has_hooks(m: nn.Module) -> bool:
    return bool(m._forward_hooks or m._forward_pre_hooks or m._backward_hooks or m._backward_pre_hooks)


def _plan_part(
    capture: Capture, part: Part, calls: Calls, ops: set[str], options: _Options,
    checked: dict[str, tuple[str | None, str]],
) -> tuple[Plan, list[Replaced]]:  # fmt: skip
    args, kwargs = targets.inputs(capture, part, calls)
    with capture.running() as root:
        module = lookup(root, part.path) if part.path else root
        graph = export(module, args, kwargs)
    unit = targets.Unit(part.path, graph, args, kwargs, calls.count)
    found = recognise.find(graph)
    reasons = [m.reason for m in found.misses]
    accepted, replaced = _accepted(capture, unit, found.matches, options, checked, reasons)
    if not ops <= {m.op for m in accepted}:
        raise NotATarget(reasons[0] if reasons else "its own graph shows nothing to replace")
    assumed = {n for m in accepted if isinstance(m.detail, Attention) for n in m.detail.assumed}
    plan = make_plan(module, graph, rewrite.apply(graph, accepted, rewrite.torch_ops), args, kwargs, assumed)
    reason = _compare(capture, part, plan, args, kwargs)
    if reason:
        raise NotATarget(reason)
    return plan, replaced


def _accepted(
    capture: Capture, unit: targets.Unit, matches: list[Match], options: _Options,
    checked: dict[str, tuple[str | None, str]], reasons: list[str],
) -> tuple[list[Match], list[Replaced]]:  # fmt: skip
    keys = {m: targets.subgraph_key(rewrite.original(m)[0], m) for m in matches}
    fresh = [m for m in matches if keys[m] not in checked]
    values = targets.record(capture, unit, fresh) if fresh else {}
    accepted, replaced = [], []
    for match in matches:
        if keys[match] not in checked:
            reason = targets.check(match, values)
            served, kernel = _served(match, values) if reason is None else ("", False)
            if reason is None and not kernel and not options.fallback:
                reason = f"no Kernel serves it ({served})"
            checked[keys[match]] = (reason, served)
        reason, served = checked[keys[match]]
        if reason is not None:
            reasons.append(reason)
            continue
        accepted.append(match)
        replaced.append(Replaced(targets.join(unit.path, match.path), match.op, served))
    return accepted, replaced


def _served(match: Match, values: dict[fx.Node, Any]) -> tuple[str, bool]:
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


def _compare(
    capture: Capture, part: Part, plan: Plan, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> str | None:
    """Runs the rewritten forward beside the original on the captured call."""
    with capture.running() as root:
        module = lookup(root, part.path) if part.path else root
        want = pytree.tree_leaves(type(module).forward(module, *args, **kwargs))
        got = pytree.tree_leaves(plan.run(module, args, kwargs))
    if len(want) != len(got):
        return "the rewritten forward returns another structure"
    for a, b in zip(got, want, strict=True):
        if not isinstance(b, torch.Tensor):
            if a != b:
                return "the rewritten forward returns another value"
            continue
        if a.shape != b.shape or a.dtype != b.dtype:
            return f"the rewritten forward gives {a.dtype}{tuple(a.shape)}, the original {b.dtype}{tuple(b.shape)}"
        if not b.numel() or not b.dtype.is_floating_point:
            continue
        known = torch.isfinite(b)
        scale = float(b[known].double().abs().max()) if known.any() else 0.0
        error = float((a.double() - b.double())[known].abs().max()) if known.any() else 0.0
        # Two ways to round: sums of a few thousand terms in the output's own dtype.
        bound = max(1e-4, 64 * torch.finfo(b.dtype).eps)
        if not error <= bound * max(scale, 1e-30):
            return f"the rewritten forward differs by {error / max(scale, 1e-30):.2g} of the largest value"
    return None


def patched_modules(model: nn.Module) -> dict[str, int]:
    """Paths of the submodules whose forward may run a rewritten graph, with the number of signatures."""
    found = {}
    for name, module in model.named_modules():
        state = _own_state(module)
        if state is not None and state.plans:
            found[name] = len(state.plans)
    return found
