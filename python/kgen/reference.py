"""What the right answer is: inputs of a Case drawn from a seed, torch's own result, and an oracle in fp64.

Made once per Task by the trusted side; Candidates never see any of it. Opening a Task folder runs its reference,
which is code: judge only folders that you trust.
"""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.utils import _pytree as pytree

from . import budget, compare, devices, distributions, oracle
from . import task as tasks
from .errors import BadInput, EnvironmentLacks
from .capture import as_call, blame, execute_file, move
from .graphs import op_name, quiet
from .distributions import PRODUCTS
from .recognise import NORMS
from .own import state_name
from .rewrite import Wide, copy_module
from .task import DTYPES, Task

# An attention's scores are known to this, absolutely, or its weights are noise and torch's error is luck.
RESOLVED = 2e-4

NEGLIGIBLE = 1e-12
# Timed for a rough number.
EAGER_CALLS = 7


@dataclass(frozen=True)
class Drawn:
    """Inputs of one call. args: by name, tensors in the Case's layout and attributes; captured: the Program's.
    skip: optional outputs that the call does not want."""

    args: dict[str, Any]
    captured: tuple[torch.Tensor, ...]
    scalars: tuple[float, ...]
    program: str | None
    repeats: bool = False  # most elements are the same number, or as good as
    decades: bool = False  # magnitudes over six decades
    skip: tuple[str, ...] = ()


@dataclass(frozen=True)
class Expected:
    """outputs: the oracle, in fp64 or as it is for ints; torch_outputs: torch's own, in the Case's dtype.

    norm_err and max_err are torch's own errors per output, in units of the oracle's norm and largest value.
    oracle: 'fp64', or 'fp32' when something below fp64 could not be lifted (named in narrow). slack: what each output may
    err beyond the tolerance (budget.py); an integer that rounding decides is compare.ANY.
    """

    outputs: tuple[torch.Tensor, ...]
    torch_outputs: tuple[torch.Tensor, ...]
    norm_err: tuple[float, ...]
    max_err: tuple[float, ...]
    oracle: str
    narrow: tuple[str, ...]
    slack: tuple[tuple[float, float], ...] = ()


# Inputs


def draw(
    task: Task, case: dict[str, Any], seed: int, distribution: str = "captured", index: int = 0
) -> Drawn:
    """Inputs of a Case, on its device (index: which GPU). The same seed and distribution give the same values wherever the
    kind of device is the same."""
    if distribution not in (*distributions.ALL, distributions.SHUFFLED, distributions.SHARED):
        raise BadInput(f"distribution {distribution!r}: expected one of {', '.join(distributions.ALL)}")
    device = devices.of_case(case, index)
    args: dict[str, Any] = {}
    for i, (name, value) in enumerate(case["args"].items()):
        drawn = isinstance(value, dict)
        own = distributions.of_argument(case["op"], name, distribution)
        args[name] = _tensor(task, value, _generator(seed, i, device), own, case) if drawn else value
        if drawn and case["op"] == "conv2d" and own in distributions.NONFINITE:
            distributions.confine(args[name])
        if drawn and distribution == "shadowed":
            weight = case["args"].get("weight") if case["op"] == "conv2d" else None  # an Op of that name may have none
            distributions.shadow(args[name], name, weight["shape"][1] if weight else 0)
    if distribution == distributions.SHARED:
        args |= {name: args[first] for name, first in alike(case).items()}
    program = case.get("program") or {}
    captured = tuple(
        _tensor(task, entry, _generator(seed, 1000 + i, device), "captured", case)
        for i, entry in enumerate(program.get("captured", []))
    )
    scalars = tuple(float(s) for s in program.get("scalars", []))
    repeats, decades = distribution in ("onehot", "tiny", "rows"), distribution == "large"
    return Drawn(args, captured, scalars, program.get("text"), repeats, decades, tuple(case.get("skip", ())))


def _generator(seed: int, stream: int, device: torch.device = devices.CPU) -> torch.Generator:
    mixed = (seed * 0x9E3779B97F4A7C15 + stream * 0xBF58476D1CE4E5B9) % (1 << 63)
    return devices.generator(device, mixed)


@dataclass(frozen=True)
class _Row:
    """Along which dim the rows of a distribution lie, and how high their spikes are."""

    axis: int = -1
    steep: float = distributions.GENTLE

    @staticmethod
    def of(case: dict[str, Any], ndim: int) -> _Row:
        if case["op"] in PRODUCTS or case["op"] not in distributions.SPECIAL:
            return _Row()
        dim = case["args"].get("dim", -1)
        return _Row(dim % ndim if ndim else -1, distributions.STEEP)


def _tensor(
    task: Task, entry: dict[str, Any], g: torch.Generator, distribution: str, case: dict[str, Any]
) -> torch.Tensor:
    dtype, shape = DTYPES[entry["dtype"]], tuple(entry["shape"])
    fill = entry["fill"]
    if fill["kind"] == "values":
        values = _from_bytes(task, task.blob(fill["file"]), dtype, shape, fill["file"]).to(g.device)
        if distribution == distributions.SHUFFLED and _unordered(values):
            order = torch.randperm(values.numel(), generator=g, device=g.device)
            values = values.reshape(-1)[order].reshape(shape)
        return with_strides(values, tuple(entry["stride"]))
    row = _Row.of(case, len(shape))
    if g.device.type == "cuda":
        values = _in_parts(fill, shape, dtype, g, distribution, row)
    else:
        # Dims of stride 0 are one element, however many they look.
        own = tuple(1 if s == 0 and n > 1 else n for n, s in zip(shape, entry["stride"], strict=True))
        values = _values(fill, own, g, distribution, dtype, row.axis, row.steep).to(dtype).expand(shape)
    return with_strides(values, tuple(entry["stride"]))


def _unordered(x: torch.Tensor) -> bool:
    """Whether another order of captured values is as good an input: not of what rises or falls (offsets, positions), nor of
    finite floats, which are buffers."""
    if x.numel() < 2:
        return False
    if x.dtype.is_floating_point:
        return not bool(torch.isfinite(x).all())
    step = x.reshape(-1).to(torch.int64).diff()
    return bool((step > 0).any() and (step < 0).any())


def alike(case: dict[str, Any]) -> dict[str, str]:
    """For each argument that an earlier one's very tensor could be given for, that one's name. Drawn floats alone: what is
    captured by value, or counts, is as it must be."""
    first: dict[tuple[Any, ...], str] = {}
    found: dict[str, str] = {}
    for name, v in case["args"].items():
        if not isinstance(v, dict) or v["fill"]["kind"] not in distributions.FLOATING or not math.prod(v["shape"]):
            continue
        like = (v["dtype"], tuple(v["shape"]), tuple(v["stride"]))
        if like in first:
            found[name] = first[like]
        else:
            first[like] = name
    return found


def can_shuffle(task: Task, case: dict[str, Any]) -> bool:
    """Whether SHUFFLED differs from the captured inputs of a Case."""
    kept = [v for v in case["args"].values() if isinstance(v, dict) and v["fill"]["kind"] == "values"]
    loaded = (_from_bytes(task, task.blob(v["fill"]["file"]), DTYPES[v["dtype"]], tuple(v["shape"]), v["fill"]["file"]) for v in kept)
    return any(_unordered(x) for x in loaded)


def _values(
    fill: dict[str, Any], shape: tuple[int, ...], g: torch.Generator, distribution: str, dtype: torch.dtype,
    axis: int, steep: float,
) -> torch.Tensor:  # fmt: skip
    if fill["kind"] == "integers":
        low, high = int(fill["low"]), int(fill["high"])
        return torch.randint(low, high + 1, shape, generator=g, device=g.device)
    name = "captured" if distribution in (distributions.SHUFFLED, distributions.SHARED) else distribution
    return distributions.floats(fill, shape, g, name, dtype, axis=axis, steep=steep)


def _in_parts(
    fill: dict[str, Any], shape: tuple[int, ...], dtype: torch.dtype, g: torch.Generator, distribution: str,
    row: _Row = _Row(),
) -> torch.Tensor:  # fmt: skip
    """Values of a large tensor without an fp64 copy of it beside it. Rows stay whole where a distribution has rows."""
    in_rows = distribution in distributions.ROWS and bool(shape)
    axis = row.axis % len(shape) if in_rows else len(shape) - 1
    others = [n for d, n in enumerate(shape) if d != axis]
    values = torch.empty((*others, shape[axis]) if in_rows else shape, dtype=dtype, device=g.device)
    if values.numel():
        flat = values.view(-1, shape[axis]) if in_rows else values.view(-1)
        for part in devices.chunks(flat.shape[0], max(1, devices.CHUNK // flat[0].numel())):
            size = (part.stop - part.start, *flat.shape[1:])
            flat[part] = _values(fill, size, g, distribution, dtype, -1, row.steep).to(dtype)
    return values.movedim(-1, axis) if in_rows else values


def _from_bytes(task: Task, data: bytes, dtype: torch.dtype, shape: tuple[int, ...], name: str) -> torch.Tensor:
    size = math.prod(shape) * torch.empty(0, dtype=dtype).element_size()
    if len(data) != size:
        raise BadInput(f"{task.folder}/cases/{name}: has {len(data)} bytes, its shape needs {size}")
    if not size:
        return torch.empty(shape, dtype=dtype)
    return torch.frombuffer(bytearray(data), dtype=torch.uint8).view(dtype).reshape(shape)


def with_strides(values: torch.Tensor, stride: tuple[int, ...]) -> torch.Tensor:
    """The values in a tensor of these strides; dims of stride 0 repeat their first element."""
    shape = tuple(values.shape)
    if not values.numel():
        return torch.empty_strided(shape, stride, dtype=values.dtype, device=values.device)
    if values.is_cuda and values.stride() == stride:
        return values
    for d, (size, s) in enumerate(zip(shape, stride, strict=True)):
        if s == 0 and size > 1:
            values = values.narrow(d, 0, 1)
    extent = 1 + sum((n - 1) * s for n, s in zip(shape, stride, strict=True))
    storage = torch.zeros(extent, dtype=values.dtype, device=values.device)
    storage.as_strided(tuple(values.shape), stride).copy_(values)
    return storage.as_strided(shape, stride)


# References

Function = Callable[[Drawn], tuple[torch.Tensor, ...]]


@dataclass
class Reference:
    """What an Op computes. run: in the inputs' dtypes, by torch; wide: in fp64, with what stayed narrow. index: the GPU of
    CUDA Cases."""

    task: Task
    run: Function
    wide: Callable[[Drawn], tuple[tuple[torch.Tensor, ...], set[str]]]
    index: int = 0
    # Of an Op of a model's own: the elements summed into one, and the names of torch's operations in it. 0: canonical.
    reduction: int = 0
    operations: frozenset[str] = frozenset()
    program: Any = None  # the torch.export program, where there is one

    @staticmethod
    def open(folder: Path | Task, index: int = 0) -> Reference:
        """The reference of a Task folder. index: the GPU that CUDA Cases are drawn and computed on."""
        task = folder if isinstance(folder, Task) else tasks.read(folder)
        kind = _reference_kind(task.contract, task.folder)
        if kind == "torch":
            made = _canonical(task)
        elif kind == "export":
            made = _exported(task, _device(task, index))
        else:
            made = _from_source(task, _device(task, index))
        made.index = index
        return made

    def draw(self, case: dict[str, Any], seed: int, distribution: str = "captured") -> Drawn:
        return draw(self.task, case, seed, distribution, self.index)

    def eager_ns(self, index: int) -> float:
        """What a call takes, by torch and eagerly, on a Case of the Task: the least of a few calls, for whoever wants to
        beat it; 0 where a GPU has no room for it."""
        case = self.task.cases[index]
        try:
            drawn, device = self.draw(case, 1), devices.of_case(case, self.index)
            with torch.no_grad(), devices.arithmetic(case):
                spent = devices.seconds_of(lambda: self.run(drawn), device, EAGER_CALLS)
        except RuntimeError as e:
            if devices.is_out_of_memory(e):
                return 0.0
            raise
        return min(spent) * 1e9

    def expected(self, drawn: Drawn) -> Expected:
        """The oracle and torch's own result on these inputs, and how far torch is from the oracle."""
        with torch.no_grad(), devices.arithmetic(self.task.cases[0]):
            own = self.run(drawn)
            outputs, narrow = self.wide(drawn)
            outputs, slack = budget.settle(self, drawn, own, outputs)
        errors = [error(a, b) for a, b in zip(own, outputs, strict=True)]
        return Expected(
            outputs, own, tuple(e[0] for e in errors), tuple(e[1] for e in errors),
            "fp32" if narrow else "fp64", tuple(sorted(narrow)), slack,
        )  # fmt: skip

    def distributions(self, case: dict[str, Any], seed: int) -> tuple[tuple[str, ...], dict[str, str]]:
        """The distributions to judge on, and those dropped with the reason."""
        base = self.expected(self.draw(case, seed))
        kept, dropped = ["captured"], {}
        floating = any(isinstance(v, dict) and v["fill"]["kind"] in ("normal", "uniform") for v in case["args"].values())
        for name in distributions.names_for(self.task.op)[1:] if floating else ():
            drawn = self.draw(case, seed, name)
            reason = self.unusable(self.expected(drawn), base, drawn, name)
            if reason:
                dropped[name] = reason
            else:
                kept.append(name)
        return tuple(kept), dropped

    def unusable(
        self, e: Expected, base: Expected, drawn: Drawn, name: str = "", special: bool = False
    ) -> str | None:
        """Why a distribution is no test, given what the captured one gives; None when it is one. special: the captured one
        gives NaN or infinities, too. Where the oracle may hold them, torch is to have them in the same places."""
        special = special or name in distributions.NONFINITE
        unresolved = _unresolved(drawn) if self.task.op == "attention" else None
        if self.task.op in PRODUCTS and self.task.canonical:
            unresolved = _unresolved_sums(drawn, e)
        if unresolved:
            return unresolved
        if name in distributions.NONFINITE and not all(math.isfinite(x) for x in e.norm_err):
            return "torch's own result has NaN or Inf in other places than the oracle"
        for own, want, worst, usual in zip(e.torch_outputs, e.outputs, e.norm_err, base.norm_err, strict=True):
            if not special and own.dtype.is_floating_point and not devices.all_finite(own):
                return "torch's own result is not finite"
            if not special and want.dtype.is_floating_point and not devices.all_finite(want):
                return "the oracle is not finite"
            least = torch.finfo(own.dtype).eps / 8 if own.dtype.is_floating_point else NEGLIGIBLE
            if worst > 100 * max(usual, least):
                return f"torch's own error is {worst:.2g}, over 100 times that on captured inputs ({usual:.2g})"
        open_share = budget.open_share(e.outputs)
        if open_share > budget.OPEN_SHARE:
            return f"rounding or the order of equals decides {open_share:.0%} of an output of integers"
        return None

    def degenerate(self, case: dict[str, Any], seed: int) -> list[str]:
        """Trivial answers that this Case would accept at torch's own tolerance; empty for a sound Task."""
        drawn = self.draw(case, seed)
        e = self.expected(drawn)
        inputs = [v for v in drawn.args.values() if isinstance(v, torch.Tensor)]
        passing = []
        for name, fake in _trivial(e.outputs, inputs):
            if all(_close(f, w, o, n) for f, w, o, n in zip(fake, e.outputs, e.torch_outputs, e.norm_err, strict=True)):
                passing.append(name)
        return passing


def _unresolved(d: Drawn) -> str | None:
    """Why fp32 cannot tell an attention's scores apart: they are sums that cancel out of numbers too large for it."""
    q, k = d.args["query"], d.args["key"]
    if not q.numel() or not k.numel():
        return None
    scale = d.args["scale"] if d.args["scale"] is not None else 1 / math.sqrt(q.shape[-1])
    # A GPU may have no room for fp64 copies, and the digits of fp32 are enough here.
    wide = torch.float32 if q.is_cuda else torch.float64
    longest = [float(torch.linalg.vector_norm(x, dim=-1, dtype=wide).max()) for x in (q, k)]
    largest = longest[0] * longest[1] * abs(scale)
    off = largest * torch.finfo(torch.float32).eps
    return f"scores are made of up to {largest:.2g}, which fp32 knows to {off:.2g} only" if off > RESOLVED else None


def _unresolved_sums(d: Drawn, e: Expected) -> str | None:
    """Why fp32 cannot tell the sums of a product apart where its output can: they cancel out of numbers so large that their
    roundings show behind an epilogue which saturates. torch is right there by luck."""
    (want,), (own,) = e.outputs, e.torch_outputs
    if not want.numel() or d.program is None:
        return None
    # A GPU may have no room for fp64 copies.
    squares, terms = _sums_of_squares(d.args, torch.float32 if want.is_cuda else torch.float64)
    unit, finite = torch.finfo(torch.float32).eps / 2, want[torch.isfinite(want)]
    off = float(squares.max()) ** 0.5 * unit
    scale = float(finite.abs().max()) if finite.numel() else 0.0
    allowed = (torch.finfo(own.dtype).eps + 4 * math.sqrt(terms) * unit) * scale
    return f"sums are known to {off:.2g} in fp32, the output to {allowed:.2g}" if off > allowed else None


def _sums_of_squares(args: dict[str, Any], wide: torch.dtype) -> tuple[torch.Tensor, int]:
    """Of each element of a product the sum of its finite terms' squares, as far as `wide` goes, and how many terms it has."""
    x = args["input"]

    def square(t: torch.Tensor) -> torch.Tensor:
        return t.to(wide).nan_to_num(0.0, 0.0, 0.0).square()

    if "stride" in args:
        given = (args[n] for n in ("stride", "padding", "dilation", "groups"))
        found, terms = torch.nn.functional.conv2d(square(x), square(args["weight"]), None, *given), args["weight"][0].numel()
    else:
        second = args["weight"].mT if "weight" in args else args["other"]
        found, terms = torch.matmul(square(x), square(second)), x.shape[-1]
    return found.nan_to_num(0.0, torch.finfo(wide).max), terms  # NaN: of nothing and what is too large


def error(got: torch.Tensor, want: torch.Tensor) -> tuple[float, float]:
    """||got - want|| / ||want|| and max |got - want| / max |want|; NaN must meet NaN, infinity its equal."""
    if got.shape != want.shape:
        return math.inf, math.inf
    if got.is_cuda:
        norm_err, worst_err, bad = compare.errors(got, want)
        return (math.inf, math.inf) if bad else (norm_err, worst_err)
    if not want.dtype.is_floating_point:
        known = want != compare.ANY
        got, want = got[known], want[known]
    a, b = got.double(), want.double()
    special = ~torch.isfinite(b)
    if not torch.equal(torch.nan_to_num(a[special], nan=1e300), torch.nan_to_num(b[special], nan=1e300)):
        return math.inf, math.inf
    a, b = a[~special], b[~special]
    if not a.numel():
        return 0.0, 0.0
    difference = a - b
    norm, largest = float(torch.linalg.vector_norm(b)), float(b.abs().max())
    off, worst = float(torch.linalg.vector_norm(difference)), float(difference.abs().max())
    if not math.isfinite(off):
        return math.inf, math.inf
    return (off / norm if norm else off), (worst / largest if largest else worst)


def _close(fake: torch.Tensor, want: torch.Tensor, own: torch.Tensor, norm_err: float) -> bool:
    eps = torch.finfo(own.dtype).eps if own.dtype.is_floating_point else 0.0
    return error(fake, want)[0] <= 4 * norm_err + 8 * eps


def _trivial(
    outputs: tuple[torch.Tensor, ...], inputs: list[torch.Tensor]
) -> list[tuple[str, tuple[torch.Tensor, ...]]]:
    made = [
        ("zeros", tuple(torch.zeros_like(o) for o in outputs)),
        ("ones", tuple(torch.ones_like(o) for o in outputs)),
        ("the mean", tuple(torch.full_like(o, float(o.double().mean()) if o.numel() else 0.0) for o in outputs)),
    ]
    for i, x in enumerate(inputs):
        if all(x.numel() == o.numel() for o in outputs):
            made.append((f"a copy of input {i}", tuple(x.reshape(o.shape).to(o.dtype) for o in outputs)))
    return made


def _widened(x: Any) -> Any:
    """A float tensor in fp64; dims of stride 0 stay one element."""
    if not isinstance(x, torch.Tensor) or not x.dtype.is_floating_point:
        return x
    return compare.own_elements(x).double().expand(x.shape)


def _reference_kind(contract: dict[str, Any], folder: Path) -> str:
    reference = contract.get("reference")
    kind = reference.get("kind") if isinstance(reference, dict) else None
    if kind not in ("torch", "export", "source"):
        raise BadInput(f"{folder}/op.json: reference.kind is {kind!r}, expected torch, export or source")
    for key in {"torch": ("call",), "export": ("file",), "source": ("file", "name")}[kind]:
        value = reference.get(key)
        if not isinstance(value, str) or not value or (key == "file" and Path(value).name != value):
            wanted = "the name of a file beside the Cases' folder" if key == "file" else "a dotted name"
            raise BadInput(f"{folder}/op.json: reference.{key} is {value!r}, expected {wanted}")
    return str(kind)


# Canonical Ops


def _canonical(task: Task) -> Reference:
    if task.op == "attention":
        return Reference(task, lambda d: _attention(d, False), lambda d: (_attention(d, True), set()))
    function = torch_function(task.contract["reference"]["call"], task.folder)
    if task.op == "conv2d":
        from .convolution import contract_output as function

    def run(d: Drawn) -> tuple[torch.Tensor, ...]:
        if task.op in PRODUCTS:
            return (oracle.epilogue(function(*d.args.values()), d.captured, d.scalars, d.program),)
        return _tuple(function(**d.args))

    def wide(d: Drawn) -> tuple[tuple[torch.Tensor, ...], set[str]]:
        if task.op == "softmax":
            return (oracle.softmax(d.args["input"], int(d.args["dim"])),), set()
        if task.op in NORMS:
            a = d.args
            made = oracle.norm(task.op, a["input"], a["normalized_shape"], a["weight"], a.get("bias"), a["eps"])
            return (made,), set()
        widened = {k: _widened(v) for k, v in d.args.items()}
        if task.op in PRODUCTS:
            captured = [_widened(t) for t in d.captured]
            return (oracle.product(task.op, widened, captured, d.scalars, d.program),), set()
        return _tuple(function(**widened)), set()

    return Reference(task, run, wide)


def torch_function(dotted: str, folder: Path) -> Callable[..., Any]:
    """The function of torch at a dotted name; nothing outside torch."""
    parts = dotted.split(".")
    if parts[0] != "torch":
        raise BadInput(f"{folder}/op.json: reference.call is {dotted!r}, expected a function of torch")
    value: Any = torch
    for i, part in enumerate(parts[1:], 1):
        if not hasattr(value, part):
            try:
                importlib.import_module(".".join(parts[: i + 1]))
            except ImportError:
                raise BadInput(f"{folder}/op.json: torch {torch.__version__} has no {dotted}") from None
        value = getattr(value, part)
    return value


def _attention(d: Drawn, wide: bool) -> tuple[torch.Tensor, ...]:
    """Output and, when wanted, lse by formula: in fp64, or in the inputs' dtype as eager torch computes it."""
    q, k, v = (d.args[n] for n in ("query", "key", "value"))
    captured = [_widened(t) if wide else t for t in d.captured]
    scale, gqa = d.args["scale"], d.args["enable_gqa"]
    compute = oracle.wide_attention if wide else oracle.attention
    output, lse = compute(q, k, v, captured, d.scalars, d.program, scale=scale, enable_gqa=gqa)
    return (output,) if "lse" in d.skip else (output, lse)


def _tuple(x: Any) -> tuple[torch.Tensor, ...]:
    return tuple(x) if isinstance(x, (tuple, list)) else (x,)


# Ops of a model's own


def load_archive(path: Path, device: torch.device | None = None) -> Any:
    """The torch.export archive at path; its graph takes the Op's tensors in order. device: where those will be; what the
    graph makes itself is made there then, wherever the model was when it was exported."""
    try:
        with quiet():
            program = torch.export.load(str(path))
            if device is not None and device.type == "cuda":
                from torch.export.passes import move_to_device_pass

                program = move_to_device_pass(program, str(device))
            return program
    except FileNotFoundError:
        raise BadInput(f"{path}: no such file") from None
    except Exception as e:
        first = (str(e).splitlines() or [""])[0][:200]
        raise EnvironmentLacks(f"{path}: torch {torch.__version__} cannot read it: {type(e).__name__}: {first}") from e


def _exported(task: Task, device: torch.device) -> Reference:
    program = load_archive(task.folder / task.contract["reference"]["file"], device)
    module = program.module()
    names = [a["name"] for a in task.contract["args"]]

    def run(d: Drawn) -> tuple[torch.Tensor, ...]:
        return _tuple(module(*[d.args[n] for n in names]))

    def wide(d: Drawn) -> tuple[tuple[torch.Tensor, ...], set[str]]:
        return run_wide(program, [d.args[n] for n in names])

    called = frozenset(filter(None, map(op_name, program.graph.nodes)))
    return Reference(task, run, wide, reduction=_terms(task), operations=called, program=program)


def run_wide(
    program: Any, tensors: list[torch.Tensor], alter: Callable[[Any], None] = lambda gm: None
) -> tuple[tuple[torch.Tensor, ...], set[str]]:
    """An exported program in fp64, and the operations that stayed below it. alter: changes the copy of the graph that is run."""
    kinds = torch.export.graph_signature.InputKind
    values, rest = [], iter(tensors)
    for spec in program.graph_signature.input_specs:
        if spec.kind == kinds.USER_INPUT:
            values.append(next(rest))
        elif spec.kind == kinds.CONSTANT_TENSOR:
            values.append(program.constants[spec.target])
        else:
            values.append(program.state_dict[spec.target])
    copy = copy_module(program.graph_module)
    alter(copy)
    interpreter = Wide(copy)
    out = interpreter.run(*[_widened(v) for v in values])
    return _tuple(out), interpreter.narrow


def _device(task: Task, index: int) -> torch.device:
    return devices.of_case(task.cases[0], index) if task.cases else devices.CPU


def _from_source(task: Task, device: torch.device) -> Reference:
    call = source_function(task.folder, task.contract, str(task.meta["mode"]), device)

    def run(d: Drawn) -> tuple[torch.Tensor, ...]:
        return call(d.args)

    def wide(d: Drawn) -> tuple[tuple[torch.Tensor, ...], set[str]]:
        narrow: set[str] = set()
        with _Watch(narrow):
            return call({k: _widened(v) for k, v in d.args.items()}), narrow

    # What it calls is not known, so no choice among equals is held against anybody.
    return Reference(task, run, wide, reduction=_terms(task), operations=budget.OPEN_TIES)


def _terms(task: Task) -> int:
    """The elements summed into one, as the contract of a model's own Op says it: a number."""
    text = str(task.contract.get("reduction", "1"))
    return max(1, int(text)) if text.isdecimal() else 1


def source_function(
    folder: Path, contract: dict[str, Any], mode: str, device: torch.device | None = None
) -> Callable[[dict[str, torch.Tensor]], tuple[torch.Tensor, ...]]:
    """A reference that is a file: Model, or a submodule of it (Model.blocks.0), made as KernelBench makes it and
    called with the Op's tensors as its inputs, parameters and buffers. device: where those will be."""
    path = folder / contract["reference"]["file"]
    name, _, below = str(contract["reference"]["name"]).partition(".")
    space = execute_file(path)
    if name not in space:
        raise BadInput(f"{path}: has no global named {name}")
    with blame(path, f"making {contract['reference']['name']}"):
        init = space["get_init_inputs"]() if "get_init_inputs" in space else []
        init_args, init_kwargs = as_call(init, "get_init_inputs")
        root = space[name](*init_args, **init_kwargs)
        if not isinstance(root, torch.nn.Module):
            raise BadInput(f"{path}: {name}(...) gives a {type(root).__name__}, not a torch.nn.Module")
        module = root.train(mode == "train").get_submodule(below)
    if device is not None and device.type == "cuda":
        move(module, device)
    state = {state_name(n): n for n, _ in (*module.named_parameters(), *module.named_buffers())}

    def call(args: dict[str, torch.Tensor]) -> tuple[torch.Tensor, ...]:
        held = {state[k]: v for k, v in args.items() if k in state}
        given = {k: v for k, v in args.items() if k not in state}
        out = torch.func.functional_call(module, held, (), given)
        return tuple(x for x in pytree.tree_leaves(out) if isinstance(x, torch.Tensor))

    return call


class _Watch(torch.utils._python_dispatch.TorchDispatchMode):
    """Notices floating results below fp64 where there is no graph to lift their casts in."""

    def __init__(self, narrow: set[str]):
        super().__init__()
        self.narrow = narrow

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for x in out if isinstance(out, (tuple, list)) else (out,):
            if isinstance(x, torch.Tensor) and x.dtype.is_floating_point and x.dtype != torch.float64:
                self.narrow.add(str(func))
        return out


# Serving's fallback


def load(folder: Path, device: torch.device | None = None) -> Callable[..., Any]:
    """What an Op of a registry computes, for calls that no Kernel serves: takes the Op's arguments in order.

    folder: generated/<op>, which holds op.json and task/. device: where the tensors will be (load_archive).
    """
    folder = Path(folder)
    contract = tasks.read_json(folder / "op.json", None)
    kind = _reference_kind(contract, folder)
    if kind == "torch":
        return torch_function(contract["reference"]["call"], folder)
    names = [a["name"] for a in contract["args"]]
    base = folder / "task" if (folder / "task").is_dir() else folder
    path = base / contract["reference"]["file"]
    single = len(contract["outputs"]) == 1
    if kind == "export":
        module = load_archive(path, device).module()
    else:
        mode = str(tasks.read_json(base / "task.json", None).get("mode", "eval"))
        of_names = source_function(base, contract, mode, device)

        def module(*values: Any) -> Any:
            return of_names(dict(zip(names, values, strict=True)))

    def call(*args: Any, **kwargs: Any) -> Any:
        values = list(args) + [kwargs[n] for n in names[len(args) :] if n in kwargs]
        out = _tuple(module(*values))
        return out[0] if single else out

    return call
