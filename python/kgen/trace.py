"""Traces score_mod, mask_mod and epilogue functions into Programs.

In eager mode the function is rebuilt with its closure cells, globals and defaults replaced by stand-ins that know
where they came from: numbers become lifted scalars (read again at each call), or constants with a guard when they
steer Python; tensors become captured tensors. What the trace read is compiled into a small reader function, which
on a later call either returns the captured tensors and scalars of that call or says that the trace does not hold.
Inside torch.compile the function is run as it is: Dynamo guards what it reads.

Nothing is executed twice and nothing is guessed: what cannot be traced raises TraceError.
"""

from __future__ import annotations

import dis
import enum
import functools
import math
import numbers
import types
from dataclasses import dataclass
from typing import Any, Callable, Sequence

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from .program import BOOL, F32, I32, INT32_MAX, INT32_MIN, Canonical, ProgramError, Raw, canonical, dtype_name
from .proxies import (Proxy, Recorder, Table, TraceError, call_torch, fail, kind_of, recorder_in, to_kind,
                      where_in_source)

__all__ = ["TraceError", "Traced", "trace", "trace_compiled"]

ScoreMod = Callable[..., Any]
MaskMod = Callable[..., Any]


@dataclass(frozen=True, slots=True)
class Traced:
    """A Program and what it reads in this call. text is "" when neither section does anything."""

    text: str
    captured: list[Tensor]
    scalars: list[float]


@dataclass(frozen=True, slots=True)
class Blocks:
    """A BlockMask's tables as one kind per block (B, H, NQ, NK), int32: 0 none, 1 partial, 2 full."""

    kinds: Tensor
    block_q: int
    block_kv: int


# ---- lifted numbers ----


def _number_op(name: str, reflected: bool = False) -> Callable[[Number, Any], Any]:
    symbol = {"add": "+", "sub": "-", "mul": "*", "truediv": "/", "floordiv": "//", "mod": "%", "pow": "**",
              "and": "&", "or": "|", "xor": "^", "lshift": "<<", "rshift": ">>"}[name]

    def apply(self: Number, other: Any) -> Any:
        if not (isinstance(other, Number) or type(other) in (int, float, bool)):
            return NotImplemented
        a, b = (other, self) if reflected else (self, other)
        value = eval(f"a {symbol} b", {"a": _plain(a), "b": _plain(b)})
        if type(value) not in (int, float):
            return value
        reads = self.reads
        return Number(reads, value, reads.let(f"({reads.text(a)} {symbol} {reads.text(b)})"))

    return apply


def _plain(x: Any) -> Any:
    return x.value if isinstance(x, Number) else x


class Number:
    """A Python int or float that the trace read: a scalar input of the Program where it meets a traced value, and
    itself, with a guard on its value, wherever Python needs to know it."""

    kgen_number = True
    __slots__ = ("reads", "value", "name")

    def __init__(self, reads: Reads, value: int | float, name: str) -> None:
        self.reads = reads
        self.value = value
        self.name = name

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        raise TraceError("a lifted number reached torch outside of a trace")

    @property
    def __class__(self) -> type:
        return type(self.value)

    def concrete(self) -> int | float:
        self.reads.guard_value(self.name, self.value)
        return self.value

    def __bool__(self) -> bool: return bool(self.concrete())
    def __int__(self) -> int: return int(self.concrete())
    def __float__(self) -> float: return float(self.concrete())
    def __index__(self) -> int: return self.concrete().__index__()
    def __complex__(self) -> complex: return complex(self.concrete())
    def __hash__(self) -> int: return hash(self.concrete())
    def __str__(self) -> str: return str(self.concrete())
    def __repr__(self) -> str: return repr(self.concrete())
    def __format__(self, spec: str) -> str: return format(self.concrete(), spec)
    def __round__(self, n: int | None = None) -> Any: return round(self.concrete(), n)
    def __trunc__(self) -> int: return math.trunc(self.concrete())
    def __floor__(self) -> int: return math.floor(self.concrete())
    def __ceil__(self) -> int: return math.ceil(self.concrete())
    def __getattr__(self, name: str) -> Any: return getattr(self.concrete(), name)
    def __pos__(self) -> Number: return self
    def __invert__(self) -> int: return ~self.concrete()
    def __divmod__(self, other: Any) -> Any: return divmod(self.concrete(), _plain(other))

    def __neg__(self) -> Number:
        return Number(self.reads, -self.value, self.reads.let(f"(-{self.name})"))

    def __abs__(self) -> Number:
        return Number(self.reads, abs(self.value), self.reads.let(f"abs({self.name})"))

    for _name in ("add", "sub", "mul", "truediv", "floordiv", "mod", "pow", "and", "or", "xor", "lshift", "rshift"):
        locals()[f"__{_name}__"] = _number_op(_name)
        locals()[f"__r{_name}__"] = _number_op(_name, reflected=True)
    del _name


def _comparison(name: str) -> Callable[[Number, Any], Any]:
    def apply(self: Number, other: Any) -> Any:
        if isinstance(other, (Proxy, Table, Tensor)):
            return NotImplemented
        if isinstance(other, Number):
            other = other.concrete()
        return getattr(self.concrete(), name)(other)
    return apply


for _name in ("__lt__", "__le__", "__gt__", "__ge__", "__eq__", "__ne__"):
    setattr(Number, _name, _comparison(_name))


# ---- what a trace reads ----


class Reads:
    """The statements of the reader, in order: reads ("v3 = v1.cell_contents") and guards on them."""

    def __init__(self) -> None:
        self.constants: list[Any] = []
        self.lines: list[tuple[str | None, str]] = []  # (name, expression) or (None, condition)
        self.tensors: dict[int, tuple[str, Tensor]] = {}  # by id: name, and the tensor itself, kept alive
        self.names: dict[str, str] = {}  # by expression: read once
        self.guarded: set[str] = set()

    def let(self, expression: str) -> str:
        if expression not in self.names:
            self.names[expression] = f"v{len(self.names)}"
            self.lines.append((self.names[expression], expression))
        return self.names[expression]

    def constant(self, value: Any) -> str:
        for i, known in enumerate(self.constants):
            if known is value:
                return f"K[{i}]"
        self.constants.append(value)
        return f"K[{len(self.constants) - 1}]"

    def guard(self, condition: str) -> None:
        if condition not in self.guarded:
            self.guarded.add(condition)
            self.lines.append((None, condition))

    def guard_value(self, name: str, value: Any) -> None:
        """Equal and of the same type; -0.0, nan and 1 == True are told apart by repr."""
        if isinstance(value, float) and (value == 0 or math.isnan(value)):
            self.guard(f"repr({name}) == {value!r:}".replace(repr(value), repr(repr(value))))
        elif isinstance(value, (bool, type(None))):
            self.guard(f"{name} is {value!r}")
        else:
            k = self.constant(value)
            self.guard(f"{name} == {k} and type({name}) is type({k})")

    def text(self, x: Any) -> str:
        """An expression that gives x again: a name for what was read, else a constant."""
        if isinstance(x, Number):
            return x.name
        if isinstance(x, Tensor):
            return self.tensor(x)
        if type(x) in (tuple, list):
            inner = ", ".join(self.text(i) for i in x)
            return f"({inner},)" if type(x) is tuple and x else f"({inner})" if type(x) is tuple else f"[{inner}]"
        if type(x) is slice:
            return f"slice({self.text(x.start)}, {self.text(x.stop)}, {self.text(x.step)})"
        if type(x) in (int, bool, type(None), str):
            return repr(x)
        return self.constant(x)

    def tensor(self, t: Tensor) -> str:
        """The name of a tensor that was read; one of unknown origin is a constant of the trace."""
        if id(t) not in self.tensors:
            self.tensors[id(t)] = (self.constant(t), t)
        return self.tensors[id(t)][0]

    def know(self, t: Tensor, name: str) -> Tensor:
        self.tensors.setdefault(id(t), (name, t))
        return t

    def compile(self, results: Sequence[str]) -> Callable[[Any, Any], tuple[Any, ...] | None]:
        """A function of (score_mod, mask_mod) that gives the results, or None when a guard fails."""
        needed = {w for r in results for w in _names(r)}
        kept: list[str] = []
        for name, expression in reversed(self.lines):
            if name is None:
                kept.append(f"        if not ({expression}): return None")
            elif name in needed:
                kept.append(f"        {name} = {expression}")
            else:
                continue
            needed |= _names(expression)
        source = "\n".join(["def read(score_mod, mask_mod, K=K):", "    try:", *reversed(kept),
                            f"        return ({''.join(r + ', ' for r in results)})",
                            "    except (AttributeError, TypeError, LookupError, ValueError, RuntimeError):",
                            "        return None"])
        scope: dict[str, Any] = {"K": self.constants}
        exec(compile(source, "<kgen reader>", "exec"), scope)
        return scope["read"]


@functools.lru_cache(maxsize=4096)
def _names(expression: str) -> frozenset[str]:
    code = compile(expression, "<kgen>", "eval")
    return frozenset(n for n in code.co_names if n[0] == "v" and n[1:].isdigit())


# ---- rebuilding functions ----

_OPAQUE = ("torch", "math", "numpy", "builtins", "functools", "operator", "typing", "itertools")


@functools.lru_cache(maxsize=1024)
def _globals_read(code: types.CodeType) -> tuple[str, ...]:
    names: dict[str, None] = {}
    for i in dis.get_instructions(code):
        if i.opname in ("LOAD_GLOBAL", "LOAD_NAME"):
            names[i.argval] = None
        elif i.opname in ("STORE_GLOBAL", "DELETE_GLOBAL") or (
                i.opname in ("STORE_DEREF", "DELETE_DEREF") and i.argval in code.co_freevars):
            raise TraceError(f"cannot trace the write to {i.argval!r} in {code.co_name} "
                             f"({code.co_filename}:{code.co_firstlineno}); a score_mod or mask_mod has no side effects")
    for inner in code.co_consts:
        if isinstance(inner, types.CodeType):
            names.update(dict.fromkeys(_globals_read(inner)))
    return tuple(names)


def _opaque(module: str | None) -> bool:
    return (module or "").split(".")[0] in _OPAQUE


def _refuse_call(function: Any, *args: Any, **kwargs: Any) -> Any:
    """A function in C of which nothing is known: random.random, time.time."""
    return fail(f"a call of {getattr(function, '__qualname__', function)}", "its result may change between calls: "
                "compute it outside and let the function read it")


class Rebuilder:
    """Makes stand-ins for everything that a function can reach, and notes in reads where each came from."""

    def __init__(self, reads: Reads) -> None:
        self.reads = reads
        self.memo: dict[int, Any] = {}

    def wrap(self, value: Any, name: str) -> Any:
        reads = self.reads
        if isinstance(value, Tensor):
            return reads.know(value, name)
        if type(value) in (int, float):
            reads.guard(f"type({name}) is {type(value).__name__}")
            return Number(reads, value, name)
        if isinstance(value, (numbers.Number, str, bytes, type(None), torch.dtype, torch.device, torch.Size)):
            reads.guard_value(name, value)
            return value
        if isinstance(value, types.FunctionType):
            return self.function(value, name)
        if isinstance(value, types.MethodType):
            return types.MethodType(self.wrap(value.__func__, reads.let(f"{name}.__func__")),
                                    self.wrap(value.__self__, reads.let(f"{name}.__self__")))
        if isinstance(value, functools.partial):
            return self.partial(value, name)
        if isinstance(value, functools._lru_cache_wrapper):
            return self.wrap(value.__wrapped__, reads.let(f"{name}.__wrapped__"))
        if type(value) in (tuple, list):
            reads.guard(f"type({name}) is {type(value).__name__} and len({name}) == {len(value)}")
            return type(value)(self.wrap(v, reads.let(f"{name}[{i}]")) for i, v in enumerate(value))
        if isinstance(value, types.ModuleType):
            return value if _opaque(value.__name__) else Tracked(self, value, name)
        if isinstance(value, types.BuiltinFunctionType) and not _opaque(value.__module__):
            return functools.partial(_refuse_call, value)
        if isinstance(value, (type, types.BuiltinFunctionType, enum.Enum)) or _opaque(type(value).__module__):
            if not isinstance(value, torch.nn.Module):
                reads.guard(f"{name} is {reads.constant(value)}")
                return value
        return Tracked(self, value, name)

    def partial(self, value: functools.partial, name: str) -> Any:
        args = self.wrap(value.args, self.reads.let(f"{name}.args"))
        self.reads.guard(f"list({name}.keywords) == {list(value.keywords)!r}")
        keywords = {k: self.wrap(v, self.reads.let(f"{name}.keywords[{k!r}]")) for k, v in value.keywords.items()}
        return functools.partial(self.wrap(value.func, self.reads.let(f"{name}.func")), *args, **keywords)

    def function(self, fn: types.FunctionType, name: str, root: bool = False) -> Any:
        reads = self.reads
        if id(fn) in self.memo:
            return self.memo[id(fn)]
        if not root and _opaque(fn.__module__) and fn.__closure__ is None:
            reads.guard(f"{name} is {reads.constant(fn)}")
            return fn
        reads.guard(f"{name}.__code__ is {reads.constant(fn.__code__)}")
        scope: dict[str, Any] = {"__builtins__": fn.__globals__.get("__builtins__", __builtins__),
                                 "__name__": fn.__module__}
        cells = tuple(types.CellType() for _ in fn.__closure__ or ())
        new = types.FunctionType(fn.__code__, scope, fn.__name__, None, cells)
        self.memo[id(fn)] = new
        for i, cell in enumerate(fn.__closure__ or ()):
            try:
                content = cell.cell_contents
            except ValueError:  # a name that is not bound yet: reading it fails as it would
                continue
            cells[i].cell_contents = self.wrap(content, reads.let(f"{name}.__closure__[{i}].cell_contents"))
        for g in _globals_read(fn.__code__):
            if g in fn.__globals__:
                scope[g] = self.wrap(fn.__globals__[g], reads.let(f"{name}.__globals__[{g!r}]"))
        if fn.__defaults__:
            new.__defaults__ = self.wrap(fn.__defaults__, reads.let(f"{name}.__defaults__"))
        if fn.__kwdefaults__:
            new.__kwdefaults__ = {k: self.wrap(v, reads.let(f"{name}.__kwdefaults__[{k!r}]"))
                                  for k, v in fn.__kwdefaults__.items()}
        return new

    def call(self, value: Any, name: str) -> Any:
        """A callable object as a function."""
        cls = type(value)
        method = cls.forward if isinstance(value, torch.nn.Module) else cls.__call__
        if isinstance(value, torch.nn.Module) and (value._forward_hooks or value._forward_pre_hooks):
            raise TraceError(f"cannot trace a {cls.__name__} with forward hooks; pass its forward")
        if not isinstance(method, types.FunctionType):
            raise TraceError(f"cannot trace a call of a {cls.__name__}; a score_mod or mask_mod is a Python function")
        inner = "forward" if isinstance(value, torch.nn.Module) else "__call__"
        return types.MethodType(self.function(method, self.reads.let(f"type({name}).{inner}"), root=True),
                                Tracked(self, value, name))


class Tracked:
    """An object whose attributes and items are read through, each read noted."""

    __slots__ = ("_rebuilder", "_value", "_name")

    def __init__(self, rebuilder: Rebuilder, value: Any, name: str) -> None:
        object.__setattr__(self, "_rebuilder", rebuilder)
        object.__setattr__(self, "_value", value)
        object.__setattr__(self, "_name", name)

    @property
    def __class__(self) -> type:
        return type(self._value)

    def __getattr__(self, attribute: str) -> Any:
        found = getattr(self._value, attribute)
        if isinstance(found, types.MethodType) and found.__self__ is self._value:
            function = self._rebuilder.wrap(
                found.__func__, self._rebuilder.reads.let(f"{self._name}.{attribute}.__func__"))
            return types.MethodType(function, self)
        return self._rebuilder.wrap(found, self._rebuilder.reads.let(f"{self._name}.{attribute}"))

    def __setattr__(self, attribute: str, value: Any) -> None:
        fail(f"the write to .{attribute} of a {type(self._value).__name__}", "score_mod and mask_mod have no side effects")

    __setitem__ = __delitem__ = __delattr__ = __setattr__  # type: ignore[assignment]

    def __getitem__(self, key: Any) -> Any:
        if recorder_in((key,)) is not None:
            fail(f"a traced index into a {type(self._value).__name__}", "only tensors are looked up by traced values")
        key = key.concrete() if isinstance(key, Number) else key
        reads = self._rebuilder.reads
        return self._rebuilder.wrap(self._value[key], reads.let(f"{self._name}[{reads.text(key)}]"))

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._rebuilder.call(self._value, self._name)(*args, **kwargs)

    def __len__(self) -> int:
        self._rebuilder.reads.guard(f"len({self._name}) == {len(self._value)}")
        return len(self._value)

    def __bool__(self) -> bool:
        self._rebuilder.reads.guard(f"bool({self._name}) is {bool(self._value)}")
        return bool(self._value)

    def __iter__(self) -> Any:
        if hasattr(self._value, "keys"):
            keys = list(self._value.keys())
            self._rebuilder.reads.guard(f"list({self._name}.keys()) == {self._rebuilder.reads.constant(keys)}")
            return iter(keys)
        return (self[i] for i in range(len(self)))

    def __contains__(self, key: Any) -> bool:
        reads = self._rebuilder.reads
        found = key in self._value
        reads.guard(f"({reads.text(key)} in {self._name}) is {found}")
        return found

    def __eq__(self, other: Any) -> bool:
        other = other._value if isinstance(other, Tracked) else other
        self._rebuilder.reads.guard(f"{self._name} is {self._rebuilder.reads.constant(self._value)}")
        return bool(self._value == other)

    def __hash__(self) -> int:
        return hash(self._value)


# ---- running the function ----

_SHAPE_READS = {"shape", "ndim", "size", "dim", "ndimension", "numel", "nelement", "stride", "__len__", "is_contiguous"}
_FIXED_READS = {"dtype", "device", "is_cuda", "is_cpu", "requires_grad", "is_floating_point", "get_device", "layout",
                "element_size", "is_complex"}
_DATA_READS = {"item", "tolist", "numpy", "__bool__", "__int__", "__float__", "__index__", "__complex__", "is_nonzero",
               "equal", "allclose", "__contains__", "__iter__", "unbind", "nonzero", "__array__"}
_MAKERS = {"tensor", "as_tensor", "scalar_tensor", "full", "zeros", "ones", "arange", "empty_like"}


def _name_of(func: Any) -> str:
    name = getattr(func, "__name__", str(func))
    return getattr(func.__self__, "__name__", name) if name == "__get__" else name


def _tensors_in(values: Any) -> list[Tensor]:
    found: list[Tensor] = []
    for v in values:
        if isinstance(v, Tensor):
            found.append(v)
        elif type(v) in (tuple, list):
            found += _tensors_in(v)
    return found


def _concrete(x: Any) -> Any:
    if isinstance(x, Number):
        return x.value
    if type(x) in (tuple, list):
        return type(x)(_concrete(i) for i in x)
    if type(x) is slice:
        return slice(_concrete(x.start), _concrete(x.stop), _concrete(x.step))
    return x


def _refuse_effects(name: str, tensors: list[Tensor]) -> None:
    if name in ("__setitem__", "setitem") or (name.endswith("_") and not name.startswith("_")):
        fail(f"the in-place {name}", "score_mod and mask_mod have no side effects")
    if not tensors and name not in _MAKERS:
        fail(f"torch.{name}", "inside a score_mod or mask_mod only constants are made, and nothing random")


class _Watch(TorchFunctionMode):
    """Sees every torch call of the function that is traced: those on proxies are recorded, those on captured
    tensors alone are run and their results become captured in turn."""

    def __init__(self, reads: Reads) -> None:
        super().__init__()
        self.reads = reads

    def __torch_function__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        kwargs = kwargs or {}
        if recorder_in(args) is not None or recorder_in(tuple(kwargs.values())) is not None:
            return call_torch(func, args, kwargs)
        name = _name_of(func)
        tensors = _tensors_in(args) + _tensors_in(kwargs.values())
        _refuse_effects(name, tensors)
        known = [t for t in tensors if id(t) in self.reads.tensors]
        if name in _DATA_READS and known:
            fail(f"the read of a captured tensor's values by {name}", "use the tensor itself, as a 0-d operand or t[i]")
        result = func(*_concrete(args), **{k: _concrete(v) for k, v in kwargs.items()})
        self.note(func, name, args, kwargs, tensors, known, result)
        return result

    def note(self, func: Any, name: str, args: tuple, kwargs: dict, tensors: list[Tensor], known: list[Tensor],
             result: Any) -> None:
        reads = self.reads
        if isinstance(result, Tensor):
            if id(result) in reads.tensors:
                return
            if name == "__get__" or (hasattr(func, "__self__") and getattr(func, "__name__", "") == "__get__"):
                reads.know(result, reads.let(f"{reads.text(args[0])}.{name}"))
                return
            words = [reads.text(a) for a in args] + [f"{k}={reads.text(v)}" for k, v in kwargs.items()]
            reads.know(result, reads.let(f"{reads.constant(func)}({', '.join(words)})"))
        elif type(result) in (tuple, list) and _tensors_in(result):
            fail(f"torch.{name} of captured tensors, which gives several", "index the tensor instead")
        else:
            for t in known:
                if name in _SHAPE_READS:
                    reads.guard(f"{reads.tensor(t)}.shape == {reads.constant(t.shape)}")
                if name == "device" or name == "requires_grad":
                    reads.guard_value(f"{reads.tensor(t)}.{name}", getattr(t, name))


_WHO = {"score": "score_mod", "mask": "mask_mod", "epilogue": "the epilogue"}


def _finish(rec: Recorder, result: Any, section: str) -> tuple[tuple[tuple[str, ...], ...], str]:
    want = BOOL if section == "mask" else F32
    what = f"{_WHO[section]} must return a {'bool' if want == BOOL else 'number'}"
    if isinstance(result, Tensor) and section == "epilogue":
        result = to_kind(rec, result, F32)
    if isinstance(result, Table):
        result.refuse("the return")
    if isinstance(result, Tensor) and result.dim() != 0:
        raise TraceError(f"{what} of 0 dims, not a tensor of shape {tuple(result.shape)}; index it: t[h], t[b, q_idx]")
    if not isinstance(result, (Proxy, Tensor)) and not isinstance(result, (bool, int, float, Number)):
        raise TraceError(f"{what} of 0 dims, not {type(result).__name__}")
    if want == BOOL and not isinstance(result, Tensor) and kind_of(result) == F32:
        raise TraceError(f"{what}, not a float; compare first")
    return tuple(rec.raw), to_kind(rec, result, want).token


def _inputs(rec: Recorder) -> list[Proxy]:
    return [Proxy(rec, name, I32) for name in ("b", "h", "q", "kv")]


def _with_blocks(rec: Recorder, kinds: Tensor, block_q: Any, block_kv: Any, mask: str) -> str:
    """kind == 2 or (kind == 1 and mask)."""
    t = rec.tensor(kinds)
    q = rec.emit("floordiv", I32, "q", str(int(block_q)))
    kv = rec.emit("floordiv", I32, "kv", str(int(block_kv)))
    kind = rec.emit("load", I32, t, "b", "h", q.token, kv.token)
    full, partial = rec.emit("eq", BOOL, kind.token, "2"), rec.emit("eq", BOOL, kind.token, "1")
    return rec.emit("or", BOOL, full.token, rec.emit("and", BOOL, partial.token, mask).token).token


def _with_causal(rec: Recorder, mask: str) -> str:
    return rec.emit("and", BOOL, rec.emit("ge", BOOL, "q", "kv").token, mask).token


class _Section:
    """One function, traced: (raw instructions, result)."""

    def __init__(self, name: str, tensors: list[Tensor], scalars: list[tuple[Any, str]], device: torch.device) -> None:
        self.name = name
        self.rec = Recorder(tensors, scalars, device)

    def run(self, function: Callable[..., Any]) -> str:
        args = _inputs(self.rec)
        if self.name == "score":
            args = [Proxy(self.rec, "score", F32)] + args
        return _finish(self.rec, function(*args), self.name)[1]


def _run_user(section: _Section, function: Callable[..., Any], original: Any) -> str:
    try:
        return section.run(function)
    except TraceError:
        raise
    except Exception as e:
        name = getattr(original, "__name__", type(original).__name__)
        raise TraceError(f"{_WHO[section.name]} {name} failed while it was traced: {type(e).__name__}: {e}") from e


class _Trace:
    """A finished trace: the text, and the reader that gives this call's captured tensors and scalars."""

    __slots__ = ("text", "read", "ntensors", "blocks")

    def __init__(self, text: str, read: Callable[[Any, Any], tuple[Any, ...] | None], ntensors: int,
                 blocks: int) -> None:
        self.text = text
        self.read = read
        self.ntensors = ntensors  # captured tensors come first in what read returns
        self.blocks = blocks      # which of them is the table of kinds, or -1

    def traced(self, score_mod: Any, mask_mod: Any, kinds: Tensor | None) -> Traced | None:
        found = self.read(score_mod, mask_mod)
        if found is None:
            return None
        captured = list(found[:self.ntensors])
        if self.blocks >= 0:
            captured[self.blocks] = kinds
        return Traced(self.text, captured, list(found[self.ntensors:]))


def _rebuilt(rebuilder: Rebuilder, fn: Any, name: str) -> Callable[..., Any]:
    if isinstance(fn, types.FunctionType):
        return rebuilder.function(fn, name, root=True)
    if isinstance(fn, (types.MethodType, functools.partial)):
        return rebuilder.wrap(fn, name)
    if not callable(fn):
        raise TraceError(f"{name} must be a function, not {type(fn).__name__}")
    return rebuilder.call(fn, name)


def _trace_now(score_mod: Any, mask_mod: Any, blocks: Blocks | None, causal: bool, device: torch.device) -> _Trace:
    reads = Reads()
    rebuilder = Rebuilder(reads)
    tensors: list[Tensor] = []
    scalars: list[tuple[Any, str]] = []
    score = mask = None
    with _Watch(reads):
        if score_mod is not None:
            section = _Section("score", tensors, scalars, device)
            result = _run_user(section, _rebuilt(rebuilder, score_mod, "score_mod"), score_mod)
            score = (section.rec.raw, result)
        if mask_mod is not None or blocks is not None or causal:
            section = _Section("mask", tensors, scalars, device)
            result = "true"
            if mask_mod is not None:
                result = _run_user(section, _rebuilt(rebuilder, mask_mod, "mask_mod"), mask_mod)
            if blocks is not None:
                result = _with_blocks(section.rec, blocks.kinds, blocks.block_q, blocks.block_kv, result)
            if causal:
                result = _with_causal(section.rec, result)
            mask = (section.rec.raw, result)
    form = _canonical(score, mask, [(dtype_name(t.dtype), t.dim()) for t in tensors], [k for _, k in scalars])
    return _compile_trace(reads, form, tensors, scalars, blocks)


def _compile_trace(reads: Reads, form: Canonical, tensors: list[Tensor], scalars: list[tuple[Any, str]],
                   blocks: Blocks | None) -> _Trace:
    kinds = blocks.kinds if blocks is not None else None
    results, at = [], -1
    for i, k in enumerate(form.tensors):
        t = tensors[k]
        if t is kinds:
            results.append("None")
            at = i
            continue
        name = reads.tensor(t)
        if name[0] == "v":
            reads.guard(f"{name}.dtype is {reads.constant(t.dtype)} and {name}.dim() == {t.dim()}")
        _check_int64(t)
        results.append(name)
    for k in form.scalars:
        number, kind = scalars[k]
        if kind == I32:
            reads.guard(f"{INT32_MIN} <= {number.name} <= {INT32_MAX}")
            if not INT32_MIN <= number.value <= INT32_MAX:
                raise TraceError(f"cannot trace the integer {number.value}; a Program's integers are int32")
        results.append(number.name)
    return _Trace(form.text, reads.compile(results), len(form.tensors), at)


def _check_int64(t: Tensor) -> None:
    if t.dtype == torch.int64 and t.numel() and not t.is_meta and type(t) in (Tensor, torch.nn.Parameter):
        low, high = t.min().item(), t.max().item()
        if low < INT32_MIN or high > INT32_MAX:
            raise TraceError(f"cannot trace a look-up into an int64 tensor that holds {low if low < INT32_MIN else high}; "
                             "a Program's integers are int32")


def _canonical(score: Any, mask: Any, tensors: Any, scalars: Any, epilogue: Any = None) -> Canonical:
    try:
        return canonical(score, mask, tensors, scalars, epilogue)
    except ProgramError as e:
        raise TraceError(str(e)) from e


# ---- the cache ----

_TRACES: dict[Any, list[_Trace]] = {}
_MAX_KEYS, _MAX_TRACES = 1024, 64
_CPU = torch.device("cpu")


def _key(fn: Any) -> Any:
    """What stays the same when a function is made again by the same statement."""
    if type(fn) is types.FunctionType:
        return fn.__code__
    if fn is None:
        return None
    if isinstance(fn, types.MethodType):
        return (_key(fn.__func__),)
    if isinstance(fn, functools.partial):
        return ("partial", _key(fn.func))
    return type(fn)


def trace(score_mod: ScoreMod | None = None, mask_mod: MaskMod | None = None, blocks: Blocks | None = None,
          causal: bool = False, device: torch.device = _CPU) -> Traced:
    """The Program of score_mod(score, b, h, q_idx, kv_idx) and mask_mod(b, h, q_idx, kv_idx), with this call's
    captured tensors and lifted scalars.

    blocks, a BlockMask's tables, rules: mask_mod is asked in partial blocks alone. causal adds q_idx >= kv_idx.
    A trace is used again while code, defaults, closure cells and the globals read are unchanged; numbers that
    only enter arithmetic are read again each time. device is what the traced values say they are on. Raises TraceError for what a Program cannot say."""
    kind = None if blocks is None else (blocks.block_q, blocks.block_kv)
    key = (_key(score_mod), _key(mask_mod), kind, causal, device)
    kinds = None if blocks is None else blocks.kinds
    return _cached(key, (score_mod, mask_mod, kinds), lambda: _trace_now(score_mod, mask_mod, blocks, causal, device))


def _cached(key: Any, call: tuple[Any, Any, Tensor | None], trace_now: Callable[[], _Trace]) -> Traced:
    known = _TRACES.get(key)
    if known is not None:
        for t in known:
            traced = t.traced(*call)
            if traced is not None:
                return traced
    new = trace_now()
    traced = new.traced(*call)
    if traced is None:
        raise TraceError("what the function reads changed while it was traced")
    if len(_TRACES) >= _MAX_KEYS:
        _TRACES.pop(next(iter(_TRACES)), None)
    entries = _TRACES.setdefault(key, [])
    entries.insert(0, new)
    del entries[_MAX_TRACES:]
    return traced


# ---- inside torch.compile ----


class _CompiledWatch(TorchFunctionMode):
    """_Watch for Dynamo, which sees proxies inside an index or a list only through a mode. What is computed of
    captured tensors alone becomes part of the compiled graph."""

    def __torch_function__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        kwargs = kwargs or {}
        if recorder_in(args) is not None or recorder_in(tuple(kwargs.values())) is not None:
            return call_torch(func, args, kwargs)
        return func(*args, **kwargs)


@torch.compiler.assume_constant_result
def _canonical_constant(score: Any, mask: Any, tensors: Any, scalars: Any,
                        epilogue: Any = None) -> tuple[str, tuple[int, ...], tuple[int, ...]]:
    form = _canonical(score, mask, tensors, scalars, epilogue)
    return form.text, form.tensors, form.scalars


def trace_compiled(score_mod: Any, mask_mod: Any, kinds: Tensor | None = None, block_q: int = 128, block_kv: int = 128,
                   causal: bool = False, device: torch.device = _CPU) -> tuple[str, list[Tensor], list[float]]:
    """trace() for code that Dynamo runs through: no rebuilding and no cache, since Dynamo has its own guards.
    Python numbers are constants of the compiled code; symbolic ones become scalars."""
    tensors: list[Tensor] = []
    scalars: list[tuple[Any, str]] = []
    score = mask = None
    if score_mod is not None:
        section = _Section("score", tensors, scalars, device)
        with _CompiledWatch():
            result = section.run(score_mod)
        score = (tuple(section.rec.raw), result)
    if mask_mod is not None or kinds is not None or causal:
        section = _Section("mask", tensors, scalars, device)
        result = "true"
        if mask_mod is not None:
            with _CompiledWatch():
                result = section.run(mask_mod)
        if kinds is not None:
            result = _with_blocks(section.rec, kinds, block_q, block_kv, result)
        if causal:
            result = _with_causal(section.rec, result)
        mask = (tuple(section.rec.raw), result)
    described = tuple((str(t.dtype)[6:], t.dim()) for t in tensors)
    text, used, lifted = _canonical_constant(score, mask, described, tuple(k for _, k in scalars))
    return text, [tensors[i] for i in used], [float(scalars[i][0]) for i in lifted]
