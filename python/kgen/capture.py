"""Loads a user's model, checks that it can be measured, and records what each part of it is called with.

The user's code runs here and nowhere else in kgen's own process. It runs under no_grad in the mode it is in;
afterwards its parameters, buffers, modes and the random state are as they were. What is wrong with it is said
in one line with the file and the line number, never as a traceback.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib
import sys
import time
import traceback
import types
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils import _pytree as pytree

from . import devices
from .errors import BadInput, KgenError
from .graphs import FunctionModule, preserved_rng

SCRIPT_NAME = "__kgen__"

STUB = """\
    if __name__ == "__kgen__":
        import torch
        model = MyModel().eval()
        def inputs():
            return (torch.randn(1, 128, 512),)
        # python -m kgen tune {file} --module model --inputs inputs"""


@dataclass(frozen=True)
class Source:
    """Where a model came from. path is None for a live one; sha256 is of the file's bytes."""

    name: str
    path: Path | None
    sha256: str | None


@dataclass
class Model:
    """A module and one set of inputs that it can be called with. portable: its file says nothing of devices, so that
    kgen may choose one (devices.choose)."""

    module: nn.Module
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    source: Source
    portable: bool = False

    @property
    def title(self) -> str:
        inner = self.module.function if isinstance(self.module, FunctionModule) else None
        return getattr(inner, "__name__", None) or type(self.module).__name__

    @property
    def devices(self) -> set[torch.device]:
        """Where the parameters, buffers and inputs are."""
        inputs = (x for x in pytree.tree_leaves((self.args, self.kwargs)) if isinstance(x, torch.Tensor))
        return {x.device for x in (*self.module.parameters(), *self.module.buffers(), *inputs)}


# Loading


def load(
    spec: str, *, module: str | None = None, inputs: str | None = None, argv: tuple[str, ...] = ()
) -> Model:
    """The model that spec names: a KernelBench-style file, a script, or package.module:callable.

    module and inputs name globals of a script; argv is what it sees in sys.argv[1:].
    """
    path = Path(spec)
    if path.suffix == ".py" or path.is_file():
        return _with_inputs(_load_file(path, module, inputs, argv))
    if ":" in spec:
        return _with_inputs(_load_dotted(spec, inputs, argv))
    raise BadInput(f"{spec}: no such file; give a Python file, or package.module:callable")


def from_live(
    target: nn.Module | Callable[..., Any], example_inputs: Any, example_kwargs: dict[str, Any] | None = None
) -> Model:
    """A model of the running process: a module or a function, and what to call it with."""
    module = target if isinstance(target, nn.Module) else None
    if module is None:
        if not callable(target):
            raise BadInput(f"expected a module or a function, got {type(target).__name__}")
        module = FunctionModule(target)
    args, kwargs = as_call(example_inputs, "example_inputs")
    name = getattr(target, "__qualname__", None) or type(target).__qualname__
    return _with_inputs(Model(module, args, {**kwargs, **(example_kwargs or {})}, Source(name, None, None)))


def _with_inputs(model: Model) -> Model:
    """BadInput unless the model is called with a tensor: shapes to tune for come from the inputs."""
    if any(isinstance(x, torch.Tensor) for x in pytree.tree_leaves((model.args, model.kwargs))):
        return model
    raise BadInput(
        f"{model.source.name}: has no inputs: there is no tensor in what it is called with; give what the model takes, such as "
        "[torch.randn(8, 128)]"
    )


def _load_file(path: Path, module: str | None, inputs: str | None, argv: tuple[str, ...]) -> Model:
    try:
        text = path.read_bytes()
    except OSError as e:
        raise BadInput(f"{path}: {e.strerror or e}") from e
    space = _execute(path, text, argv)
    source = Source(path.name, path.resolve(), hashlib.sha256(text).hexdigest())
    if module is None and inputs is None and "Model" in space:
        return _kernelbench(path, space, source)
    if module is None or inputs is None:
        missing = "--module and --inputs" if module is None and inputs is None else (
            "--module" if module is None else "--inputs"
        )  # fmt: skip
        raise BadInput(
            f"{path}: defines no Model with get_inputs, so {missing} must name its globals; "
            f"for example, at its end:\n{STUB.format(file=path.name)}"
        )
    for name in (module, inputs):
        if name not in space:
            raise BadInput(
                f"{path}: has no global named {name} (when it runs with __name__ == '{SCRIPT_NAME}'); "
                f"for example, at its end:\n{STUB.format(file=path.name)}"
            )
    with blame(path, f"making {module}"), torch.no_grad():
        made = _as_module(space[module], module)
    with blame(path, f"making {inputs}"):
        args, kwargs = as_call(space[inputs], inputs)
    return Model(made, args, kwargs, source)


def _execute(path: Path, text: bytes, argv: tuple[str, ...]) -> dict[str, Any]:
    """Runs a file as the module __kgen__; its folder is importable while it runs and afterwards."""
    space = types.ModuleType(SCRIPT_NAME)
    space.__file__ = str(path)
    sys.modules[SCRIPT_NAME] = space
    folder = str(path.resolve().parent)
    if folder not in sys.path:
        sys.path.insert(0, folder)
    old_argv, sys.argv = sys.argv, [str(path), *argv]
    try:
        with blame(path, "importing it"):
            exec(compile(text, str(path), "exec"), space.__dict__)
    finally:
        sys.argv = old_argv
    return space.__dict__


def execute_file(path: Path) -> dict[str, Any]:
    """The globals of a Python file that was run as a script of kgen."""
    try:
        text = path.read_bytes()
    except OSError as e:
        raise BadInput(f"{path}: {e.strerror or e}") from e
    return _execute(path, text, ())


@contextlib.contextmanager
def blame(path: Path | None, doing: str, elsewhere: str = "") -> Iterator[None]:
    """Turns an exception of the user's code into one line that names the file and the line. elsewhere: what to do when
    tensors of two devices met. A GPU that is full is not the code's fault."""
    try:
        yield
    except (KgenError, KeyboardInterrupt, MemoryError):
        raise
    except SystemExit as e:
        raise BadInput(f"{_place(e, path)}: {doing}: it called sys.exit({e.code!r})") from e
    except Exception as e:
        if devices.is_out_of_memory(e):
            raise
        first = str(e).strip().splitlines()
        said = f": {first[0][:300]}" if first else ""
        if elsewhere and ("same device" in said or "Expected a 'cuda'" in said):
            said = f"{said} ({elsewhere})"
        raise BadInput(f"{_place(e, path)}: {doing}: {type(e).__name__}{said}") from e


def _place(error: BaseException, path: Path | None) -> str:
    """The innermost line of the user's own file, else the innermost that is neither torch's nor ours."""
    if isinstance(error, SyntaxError) and error.filename:
        return f"{error.filename}:{error.lineno}"
    frames = traceback.extract_tb(error.__traceback__)
    own = [f for f in frames if path is not None and f.filename == str(path)]
    if not own:
        outside = (str(Path(torch.__file__).parent), str(Path(__file__).parent))
        own = [f for f in frames if not f.filename.startswith((*outside, "<"))]
    return f"{own[-1].filename}:{own[-1].lineno}" if own else str(path or "the model")


def _kernelbench(path: Path, space: dict[str, Any], source: Source) -> Model:
    make_inputs = space.get("get_inputs")
    if not callable(make_inputs):
        raise BadInput(f"{path}: defines Model but no get_inputs(); add one that returns a list of its inputs")
    with preserved_rng():
        torch.manual_seed(0)
        with blame(path, "get_init_inputs()"):
            init = space["get_init_inputs"]() if "get_init_inputs" in space else []
        with blame(path, "Model(...)"):
            init_args, init_kwargs = as_call(init, "get_init_inputs")
            made = space["Model"](*init_args, **init_kwargs)
        with blame(path, "get_inputs()"):
            args, kwargs = as_call(make_inputs(), "get_inputs")
    if not isinstance(made, nn.Module):
        raise BadInput(f"{path}: Model(...) gives a {type(made).__name__}, not a torch.nn.Module")
    return Model(made, args, kwargs, source, portable=True)


def _load_dotted(spec: str, inputs: str | None, argv: tuple[str, ...]) -> Model:
    name, _, attribute = spec.partition(":")
    if "" not in sys.path and str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))
    old_argv, sys.argv = sys.argv, [name, *argv]
    try:
        with blame(None, f"importing {name}"):
            space = importlib.import_module(name)
    finally:
        sys.argv = old_argv
    path = Path(space.__file__) if getattr(space, "__file__", None) else None
    target: Any = space
    for part in attribute.split("."):
        if not hasattr(target, part):
            raise BadInput(f"{name}: has no attribute {attribute}")
        target = getattr(target, part)
    digest = hashlib.sha256(path.read_bytes()).hexdigest() if path is not None else None
    source = Source(spec, path, digest)
    with preserved_rng():
        torch.manual_seed(0)
        made, found = _resolve(space, spec, target, inputs, path)
        with blame(path, f"making the inputs of {spec}"):
            args, kwargs = as_call(found, "inputs")
    return Model(made, args, kwargs, source)


def _resolve(space: Any, spec: str, target: Any, inputs: str | None, path: Path | None) -> tuple[nn.Module, Any]:
    """The module that spec means, and its inputs. What can be called with nothing is a factory."""
    given = getattr(space, inputs, None) if inputs else getattr(space, "get_inputs", None)
    if inputs and given is None:
        raise BadInput(f"{spec}: its module has no global named {inputs}")
    made = target
    if not isinstance(made, nn.Module):
        if not callable(made):
            raise BadInput(f"{spec}: is a {type(made).__name__}; expected a module, a function or a factory of one")
        if _callable_with_nothing(made):
            with blame(path, f"{spec}()"):
                made = made()
            if isinstance(made, tuple) and len(made) == 2 and isinstance(made[0], nn.Module):
                made, given = made if given is None else (made[0], given)
            if not isinstance(made, nn.Module):
                raise BadInput(
                    f"{spec}() gives a {type(made).__name__}; a factory gives a torch.nn.Module, or a module "
                    "and its inputs, and a function to tune takes its inputs as arguments"
                )
        else:
            made = FunctionModule(made)
    if given is None:
        raise BadInput(
            f"{spec}: no inputs; define get_inputs() in its module, or name another global with --inputs"
        )
    return made, given


def _callable_with_nothing(f: Any) -> bool:
    import inspect

    try:
        parameters = inspect.signature(f).parameters.values()
    except (TypeError, ValueError):
        return False
    optional = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    return all(p.default is not p.empty or p.kind in optional for p in parameters)


def _as_module(value: Any, name: str) -> nn.Module:
    if not isinstance(value, nn.Module) and callable(value):
        value = value()
    if isinstance(value, nn.Module):
        return value
    raise BadInput(
        f"--module {name}: gives a {type(value).__name__}; expected a torch.nn.Module or a callable that makes one"
    )


def as_call(value: Any, name: str) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """A tuple, a list, a dict, a tensor, a pair of arguments and keywords, or a callable giving one."""
    if callable(value) and not isinstance(value, torch.Tensor):
        value = value()
    if isinstance(value, dict):
        return (), dict(value)
    if isinstance(value, torch.Tensor):
        return (value,), {}
    if isinstance(value, (tuple, list)):
        pair = len(value) == 2 and isinstance(value[0], (tuple, list)) and isinstance(value[1], dict)
        if pair and all(isinstance(k, str) for k in value[1]):
            return tuple(value[0]), dict(value[1])
        return tuple(value), {}
    raise BadInput(f"{name}: gives a {type(value).__name__}; expected a tuple, a dict, or a callable giving one")


def device_for(model: Model, asked: str | None = None) -> torch.device:
    """The device that a model is tuned on, by the rule of devices.choose. asked: --device."""
    return devices.choose(asked, model.devices, model.portable)


def place(model: Model, device: torch.device) -> None:
    """Puts a model and its inputs on a device."""
    if model.devices <= {device} and (model.devices or device.type == "cpu"):
        return
    with devices.room_for(device, f"{model.title} and its inputs"), blame(model.source.path, f"moving it to {device}"):
        move(model.module, device)
        moved = pytree.tree_map_only(torch.Tensor, lambda x: x.to(device), (model.args, model.kwargs))
        model.args, model.kwargs = moved


def move(module: nn.Module, device: torch.device) -> None:
    """Puts a module on a device, with the tables that it keeps as plain attributes."""
    module.to(device)
    for m in module.modules():
        for name, value in list(vars(m).items()):
            if isinstance(value, torch.Tensor):
                setattr(m, name, value.to(device))


# Recording


@dataclass
class Calls:
    """Calls of one module with one signature. seconds is the time of one of them, what is inside included."""

    signature: tuple[Any, ...]
    count: int = 0
    seconds: float = 0.0


@dataclass
class Part:
    """One submodule as the model used it."""

    path: str
    module: nn.Module
    calls: dict[tuple[Any, ...], Calls] = field(default_factory=dict)
    random: bool = False
    writes: tuple[str, ...] = ()

    @property
    def refusal(self) -> str | None:
        """Why this part is no target."""
        if self.writes:
            return f"its forward writes the buffer {self.writes[0]}"
        if self.random:
            return "its forward draws random numbers"
        return None


def signature_of(args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, ...]:
    """What decides which code a call runs: structure, and per leaf the tensor's layout or the value."""
    leaves, spec = pytree.tree_flatten((args, kwargs))
    return (str(spec), *(_leaf(x) for x in leaves))


def _leaf(x: Any) -> Any:
    if isinstance(x, torch.Tensor):
        return tuple(x.shape), tuple(x.stride()), str(x.dtype), str(x.device)
    return repr(x) if not isinstance(x, (int, float, bool, str, type(None))) else (type(x).__name__, x)


class Capture:
    """One model, run and recorded. parts maps a dotted path ('' is the whole) to what was seen there."""

    def __init__(self, model: Model, train: bool | None = None, light: bool = False):
        """light: one run, without the check that it is deterministic and without times."""
        self.model = model
        self.devices = model.devices
        self.train = model.module.training if train is None else train
        self.parts: dict[str, Part] = {}
        self.seconds = 0.0
        self._written: dict[nn.Module, str] = {}
        first = self._record()
        if not light:
            self._repeat(first)

    @property
    def mode(self) -> str:
        return "train" if self.train else "eval"

    @property
    def device(self) -> torch.device:
        """Where the model runs: its GPU, if it has tensors on one."""
        return min((d for d in self.devices if d.type == "cuda"), key=str, default=devices.CPU)

    @contextlib.contextmanager
    def running(self) -> Iterator[nn.Module]:
        """The module in the captured mode, under no_grad; afterwards all is as it was."""
        module = self.model.module
        modes = {m: m.training for m in module.modules()}
        held = [
            (m, name, b, b.clone())
            for m in modes
            for name, b in m._buffers.items()
            if b is not None
        ]
        if self.train != module.training:
            module.train(self.train)
        try:
            with torch.no_grad(), preserved_rng():
                yield module
        finally:
            for m, mode in modes.items():
                m.training = mode
            with torch.no_grad():
                for m, name, buffer, value in held:
                    # By value: some of torch's own operators write without counting a version.
                    now = m._buffers.get(name)
                    if now is not buffer or not _same(buffer, value):
                        self._written.setdefault(m, name)
                        m._buffers[name] = buffer
                        buffer.copy_(value)

    def call(self, module: nn.Module) -> Any:
        # Copies: a forward may write what it is given.
        args, kwargs = pytree.tree_map_only(torch.Tensor, copy_of, (self.model.args, self.model.kwargs))
        here = f"the model was put on {self.device}; --device cpu tunes it on the CPU" if self.model.portable else ""
        with blame(self.model.source.path, "the forward", here if self.device.type != "cpu" else ""):
            return module(*args, **kwargs)

    def _record(self) -> Any:
        with self.running() as module:
            torch.manual_seed(0)
            with _hooks(module, self.parts, self.devices):
                first = self.call(module)
        _check_output(first, self.model)
        for part in self.parts.values():
            for path, m in part.module.named_modules():
                if not part.writes and m in self._written:
                    part.writes = (".".join(filter(None, (path, self._written[m]))),)
        return first

    def _repeat(self, first: Any) -> None:
        """Runs the model again, for times and to see that it gives the same."""
        warm: dict[str, Part] = {}
        with self.running() as module:
            torch.manual_seed(0)
            with _hooks(module, warm, self.devices):
                same = _equal(first, self.call(module))
        for path, part in self.parts.items():
            for signature, calls in part.calls.items():
                again = warm[path].calls.get(signature) if path in warm else None
                calls.seconds = min(calls.seconds, again.seconds) if again else calls.seconds
        spent: list[float] = []
        for _ in range(3):
            if not same:
                break
            with self.running() as module:
                torch.manual_seed(0)
                devices.synchronize(self.device)
                start = time.perf_counter()
                output = self.call(module)
                devices.synchronize(self.device)
                spent.append(time.perf_counter() - start)
                same = same and _equal(first, output)
            if sum(spent) > 10.0:
                break
        if not same:
            raise BadInput(
                f"{self.model.source.name}: {self.model.title} is not deterministic: two runs on the same inputs, "
                "with the same random seed, differ"
            )
        self.seconds = sorted(spent)[len(spent) // 2]

    def inputs_of(self, wanted: dict[str, tuple[Any, ...]]) -> dict[str, tuple[tuple[Any, ...], dict[str, Any]]]:
        """The arguments, copied, of the first call of each path with the signature given."""
        found: dict[str, tuple[tuple[Any, ...], dict[str, Any]]] = {}

        def hook_for(path: str) -> Callable[..., None]:
            def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
                if path not in found and signature_of(args, kwargs) == wanted[path]:
                    found[path] = pytree.tree_map_only(torch.Tensor, copy_of, (args, kwargs))

            return hook

        with self.running() as module:
            torch.manual_seed(0)
            handles = [
                self.parts[path].module.register_forward_pre_hook(hook_for(path), with_kwargs=True, prepend=True)
                for path in wanted
            ]
            try:
                self.call(module)
            finally:
                for h in handles:
                    h.remove()
        return found


def copy_of(x: torch.Tensor) -> torch.Tensor:
    """A copy with the same strides, without a history. Dims of stride 0 stay one element."""
    x = x.detach()
    shape = x.shape
    for d in range(x.ndim):
        if x.stride(d) == 0 and x.shape[d] > 1:
            x = x.narrow(d, 0, 1)
    if torch._debug_has_internal_overlap(x) == 1:
        return x.clone().expand(shape)
    return torch.empty_strided(x.shape, x.stride(), dtype=x.dtype, device=x.device).copy_(x).expand(shape)


@contextlib.contextmanager
def _hooks(root: nn.Module, parts: dict[str, Part], where: set[torch.device]) -> Iterator[None]:
    """where: the devices of the model, which are waited for at each end of a part."""
    handles: list[Any] = []
    stack: list[tuple[str, tuple[Any, ...], float, tuple[torch.Tensor, ...]]] = []

    def now() -> float:
        for device in where:
            devices.synchronize(device)
        return time.perf_counter()

    def before(path: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            signature = signature_of(args, kwargs)
            stack.append((path, signature, now(), devices.rng_state(where)))

        return hook

    def after(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        end = now()
        path, signature, start, rng = stack.pop()
        part = parts.setdefault(path, Part(path, module))
        calls = part.calls.setdefault(signature, Calls(signature))
        calls.count += 1
        calls.seconds = min(calls.seconds or end - start, end - start)
        part.random = part.random or not devices.same_state(rng, devices.rng_state(where))

    for path, module in root.named_modules():
        handles.append(module.register_forward_pre_hook(before(path), with_kwargs=True, prepend=True))
        handles.append(module.register_forward_hook(after, with_kwargs=True))
    try:
        yield
    finally:
        for h in handles:
            h.remove()


def _check_output(output: Any, model: Model) -> None:
    leaves = [x for x in pytree.tree_leaves(output) if isinstance(x, torch.Tensor)]
    if not leaves:
        raise BadInput(
            f"{model.source.name}: {model.title} returns a {type(output).__name__} without a tensor; "
            "its forward must return a tensor, or a structure that holds some"
        )


def _same(a: torch.Tensor, b: torch.Tensor) -> bool:
    return torch.equal(a, b) or (a.dtype.is_floating_point and torch.allclose(a, b, rtol=0, atol=0, equal_nan=True))


def _equal(a: Any, b: Any) -> bool:
    x, y = pytree.tree_leaves(a), pytree.tree_leaves(b)
    if len(x) != len(y):
        return False
    for p, q in zip(x, y, strict=True):
        if isinstance(p, torch.Tensor):
            if not isinstance(q, torch.Tensor) or p.shape != q.shape or p.dtype != q.dtype:
                return False
            if not torch.equal(p, q) and not _reordered(p, q):
                return False
    return True


def _reordered(p: torch.Tensor, q: torch.Tensor) -> bool:
    """Whether two results are the same but for NaN, which equals itself; on a GPU, where sums may be made in another
    order each time, also but for what the order of a sum changes."""
    loose = 0.0
    if p.is_cuda and p.dtype.is_floating_point and p.numel():
        eps = max(64 * torch.finfo(torch.float32).eps, 4 * torch.finfo(p.dtype).eps)
        loose = eps * float(torch.nan_to_num(q, 0, 0, 0).abs().max())
    return torch.allclose(p.double(), q.double(), rtol=0, atol=loose, equal_nan=True)
