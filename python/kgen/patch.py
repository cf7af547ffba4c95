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
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.utils import _pytree as pytree

from .capture import Capture, Model, Source, as_call, copy_of, signature_of
from .errors import BadInput, NotATarget
from .learn import Learner, PatchReport
from .plans import Plan

MAX_SIGNATURES = 16
_WARN_GRADIENTS = (
    "kgen: {path} (and what else is patched) runs its original forward where gradients are needed, since no backward "
    "Kernel exists; "
    "call it under torch.no_grad() or torch.inference_mode() to use its Kernels"
)


class _State:
    """What the forward of one patched module knows. Shared with copies of the module; holds no module."""

    def __init__(self, path: str, original: Callable[..., Any]):
        self.path, self.original = path, original
        self.plans: list[Plan] = []
        self.lazy: _Lazy | None = None
        self.said: set[str] = set()


class _Lazy:
    """Captures a model at the first call of each signature."""

    def __init__(self, options: Options):
        self.options = options
        self.seen: set[tuple[Any, ...]] = set()


@dataclass(frozen=True)
class Options:
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
    options = Options(fallback, quiet, set())
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


def _learn(root: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], options: Options) -> PatchReport:
    """Captures one call of root and patches the submodules that hold something an Op can do."""
    global _capturing
    report = PatchReport()
    # Not in inference mode: torch.export would see other operators there.
    with torch.inference_mode(False), torch.no_grad():
        _capturing += 1
        try:
            # A copy of the inputs: the forward may write them.
            args, kwargs = pytree.tree_map_only(torch.Tensor, copy_of, (args, kwargs))
            model = Model(root, args, kwargs, Source(type(root).__name__, None, None))
            capture = Capture(model, None, light=True)
            plans = Learner(capture, options.fallback, report).learn()
            _install(capture, plans, options, report)
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
        report.move(part.path, "the model does not call it when nothing watches")


def _install(capture: Capture, plans: dict[str, list[Plan]], options: Options, report: PatchReport) -> None:
    for path, made in plans.items():
        part = capture.parts[path]
        try:
            state = _state_of(part.module, path)
        except NotATarget as e:
            report.move(path, str(e))
            continue
        state.said = options.said
        state.plans = [*made, *state.plans][:MAX_SIGNATURES]


def patched_modules(model: nn.Module) -> dict[str, int]:
    """Paths of the submodules whose forward may run a rewritten graph, with the number of signatures."""
    found = {}
    for name, module in model.named_modules():
        state = _own_state(module)
        if state is not None and state.plans:
            found[name] = len(state.plans)
    return found
