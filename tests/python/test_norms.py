"""kgen's layer_norm and rms_norm against torch's: values, errors, gradients, compile, export, vmap, autocast; each once
served by the house kernels and once by torch's own."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import serving_registry as sr
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.library import opcheck

import kgen

ops = torch.ops.kgen
pytestmark = pytest.mark.usefixtures("nothing_shipped")
TELLS = tuple(int(v) for v in torch.__version__.split(".")[:2]) >= (2, 13)
PRESENT = {
    "layer_norm": [["float32"] * 3, ["float32", "float32", None], ["float32", None, None], ["float32", None, "float32"]],
    "rms_norm": [["float32"] * 2, ["float32", None]],
}


def key(op: str, dtypes: list[str | None]) -> dict[str, Any]:
    return {
        "op": op, "device": "cpu", "precision": "native", "dtypes": dtypes, "layout": ["c" if d else "-" for d in dtypes],
        "attrs": {}, "program": None, "dims": {"M": sr.WIDE, "N": sr.WIDE},
    }  # fmt: skip


@pytest.fixture(scope="session")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("norms") / "generated"
    for op, name in (("layer_norm", "layer"), ("rms_norm", "rms")):
        text = (sr.ROOT / "kernels" / "norm" / f"{name}_rows.c").read_text()
        sr.promote(folder, op, text, [key(op, dtypes) for dtypes in PRESENT[op]])
    return folder


@pytest.fixture(params=["kernels", "fallback"])
def served(request: pytest.FixtureRequest, registry: Path) -> Iterator[bool]:
    """Whether the house kernels serve contiguous fp32 calls."""
    if request.param == "kernels":
        kgen.load(registry)
    yield request.param == "kernels"
    if request.param == "kernels":
        kgen.unload(registry)


def leaf(t: Tensor) -> Tensor:
    return t.clone().requires_grad_()


def layer_calls() -> list[tuple[Any, ...]]:
    n = torch.randn
    return [
        (n(4, 7), [7]), (n(2, 3, 5), [3, 5], n(3, 5), n(3, 5)), (n(33, 1000), (1000,), n(1000), None, 0.5),
        (n(9), [9], None, n(9)), (n(2, 1), [1], n(1), n(1)), (n(0, 5), [5], n(5)), (n(3, 0), [0]), (1000 + 0.1 * n(3, 64), [64]),
    ]  # fmt: skip


def rms_calls() -> list[tuple[Any, ...]]:
    n = torch.randn
    return [
        (n(4, 7), [7]), (n(2, 3, 5), [3, 5], n(3, 5)), (n(33, 1000), (1000,), n(1000), 0.5), (1e-3 * n(9, 8), [8], None, None),
        (n(2, 1), [1], n(1)), (n(0, 5), [5], n(5)), (n(3, 0), [0]),
    ]  # fmt: skip


OURS = {"layer_norm": (F.layer_norm, layer_calls), "rms_norm": (F.rms_norm, rms_calls)}


@pytest.mark.parametrize("op", OURS)
def test_it_is_torchs(served: bool, op: str) -> None:
    torch.manual_seed(0)
    theirs, calls = OURS[op]
    for args in calls():
        got, want = getattr(ops, op)(*args), theirs(*args)
        # torch loses digits far from zero; fp64 tells who is right.
        far = args[0].numel() and float(args[0].mean()) > 100
        if far:
            want = theirs(*(a.double() if isinstance(a, Tensor) else a for a in args)).float()
        torch.testing.assert_close(got, want, atol=1e-3 if far and not served else 1e-5, rtol=1e-5)
        assert got.stride() == want.stride()
        if args[0].numel():
            assert (kgen.why(op, *args).fallbacks == 0) == served, args[0].shape


@pytest.mark.parametrize("op", OURS)
def test_what_no_kernel_serves_is_torchs(served: bool, op: str) -> None:
    theirs = OURS[op][0]
    x, w = torch.randn(6, 8), torch.randn(8)
    for args in (
        (x.double(), [8], w.double()), (x.bfloat16(), [8], w.bfloat16()), (x.bfloat16(), [8], w), (torch.randn(8, 6).t(), [8]),
        (torch.randn(6, 16)[:, ::2], [8], w), (x, [8], torch.randn(16)[::2]), (torch.randn(2, 6, 8)[:, 0], [8]),
    ):  # fmt: skip
        got, want = getattr(ops, op)(*args), theirs(*args)
        assert got.dtype == want.dtype and got.stride() == want.stride()
        torch.testing.assert_close(got, want)


BAD = {
    "no dim": lambda x: (x, []),
    "another size": lambda x: (x, [7]),
    "too many dims": lambda x: (x, [2, 4, 8]),
    "a weight of another shape": lambda x: (x, [8], torch.ones(7)),
    "a weight of another rank": lambda x: (x, [8], torch.ones(2, 4)),
    "integers": lambda x: (x.int(), [8]),
}


@pytest.mark.parametrize("op", OURS)
@pytest.mark.parametrize("bad", BAD)
@pytest.mark.parametrize("grad", [False, True])
def test_errors_are_torchs(served: bool, op: str, bad: str, grad: bool) -> None:
    args = BAD[bad](torch.randn(4, 8))
    with pytest.raises((RuntimeError, ValueError)) as theirs:  # a C op raises nothing but RuntimeError
        OURS[op][0](*args)
    with torch.set_grad_enabled(grad), pytest.raises(RuntimeError) as ours:
        getattr(ops, op)(*args)
    if TELLS:
        assert str(ours.value).splitlines()[0] == str(theirs.value).splitlines()[0]


def test_a_bias_of_another_shape(served: bool) -> None:
    x = torch.randn(4, 8)
    with pytest.raises(RuntimeError, match="bias" if TELLS else ""):
        ops.layer_norm(x, [8], torch.ones(8), torch.ones(4))
    with pytest.raises(RuntimeError):
        ops.layer_norm(x, [8], torch.ones(8), torch.ones(8, device="meta"))


def test_nan_and_inf_spread_as_torchs(served: bool) -> None:
    x = torch.randn(4, 100)
    x[0, 3], x[1, 50], x[2, 99] = torch.nan, torch.inf, -torch.inf
    for f, g in ((ops.layer_norm, F.layer_norm), (ops.rms_norm, F.rms_norm)):
        torch.testing.assert_close(f(x, [100]), g(x, [100]), equal_nan=True)


# ---- torch's subsystems ----


def cases() -> dict[str, tuple[Any, tuple[Any, ...]]]:
    x, w, b = torch.randn(5, 2, 9), torch.randn(2, 9), torch.randn(2, 9)
    return {
        "layer_norm": (ops.layer_norm.default, (x, [2, 9], w, b, 1e-3)),
        "layer_norm grad": (ops.layer_norm.default, (leaf(x), [2, 9], leaf(w), leaf(b))),
        "_layer_norm": (ops._layer_norm.default, (x, [2, 9], None, None, 1e-5)),
        "_layer_norm_train": (ops._layer_norm_train.default, (leaf(x), [2, 9], None, leaf(b), 1e-5)),
        "rms_norm": (ops.rms_norm.default, (x, [2, 9], w)),
        "rms_norm grad": (ops.rms_norm.default, (leaf(x), [2, 9], leaf(w), 1e-3)),
        "_rms_norm": (ops._rms_norm.default, (x, [9], None, None)),
        "_rms_norm_train": (ops._rms_norm_train.default, (leaf(x), [2, 9], leaf(w), None)),
    }


@pytest.mark.parametrize("name", sorted(cases()))
def test_opcheck(served: bool, name: str) -> None:
    op, args = cases()[name]
    assert set(opcheck(op, args).values()) == {"SUCCESS"}


def everything(x: Tensor, w: Tensor, b: Tensor, v: Tensor) -> tuple[Tensor, ...]:
    return ops.layer_norm(x, [9], w, b) * 2, ops.layer_norm(x, [3, 9]), ops.rms_norm(x, [9], v, 1e-3), ops.rms_norm(x, [9])


def everything_in_torch(x: Tensor, w: Tensor, b: Tensor, v: Tensor) -> tuple[Tensor, ...]:
    return F.layer_norm(x, [9], w, b) * 2, F.layer_norm(x, [3, 9]), F.rms_norm(x, [9], v, 1e-3), F.rms_norm(x, [9])


def gradients(f: Callable[..., tuple[Tensor, ...]]) -> tuple[Tensor | None, ...]:
    torch.manual_seed(2)
    inputs = [leaf(torch.randn(s)) for s in ((4, 3, 9), (9,), (9,), (9,))]
    outputs = f(*inputs)
    sum((o.square() * torch.arange(1, o.numel() + 1).view(o.shape) / o.numel()).sum() for o in outputs).backward()
    return *outputs, *(t.grad for t in inputs)


@pytest.mark.parametrize("backend", ["eager mode", "aot_eager", pytest.param("inductor", marks=pytest.mark.slow)])
def test_gradients_are_torchs(served: bool, backend: str) -> None:
    torch._dynamo.reset()
    f = everything if backend == "eager mode" else torch.compile(everything, fullgraph=True, backend=backend)
    for got, want in zip(gradients(f), gradients(everything_in_torch), strict=True):
        assert got is not None and want is not None
        torch.testing.assert_close(got, want, atol=1e-4, rtol=1e-4)


def test_gradcheck(served: bool) -> None:
    x, w, b = (torch.randn(s, dtype=torch.double, requires_grad=True) for s in ((3, 5), (5,), (5,)))
    for check in (torch.autograd.gradcheck, torch.autograd.gradgradcheck):
        assert check(lambda x, w, b: ops.layer_norm(x, [5], w, b), (x, w, b))
        assert check(lambda x, w: ops.rms_norm(x, [5], w), (x, w))
        assert check(lambda x: ops.rms_norm(x, [3, 5]), (x,))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_gradients_in_half_are_as_exact_as_torchs(served: bool, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    given = [torch.randn(s).to(dtype) for s in ((6, 64), (64,))]
    for ours, theirs in ((ops.layer_norm, F.layer_norm), (ops.rms_norm, F.rms_norm)):
        found = {}
        for name, f, wide in (("ours", ours, False), ("theirs", theirs, False), ("oracle", theirs, True)):
            x, w = (leaf(t.double() if wide else t) for t in given)
            f(x, [64], w, **({} if f in (ops.layer_norm, F.layer_norm) else {"eps": 1e-6})).square().sum().backward()
            found[name] = [x.grad.double(), w.grad.double()]
        for got, want, oracle in zip(found["ours"], found["theirs"], found["oracle"]):
            assert (got - oracle).norm() <= 2 * (want - oracle).norm() + 1e-6 * oracle.norm()


@pytest.mark.parametrize("backend", ["aot_eager", pytest.param("inductor", marks=pytest.mark.slow)])
def test_compile_fullgraph_of_changing_lengths(served: bool, backend: str) -> None:
    torch._dynamo.reset()

    def f(x: Tensor, w: Tensor) -> tuple[Tensor, Tensor]:
        return ops.layer_norm(x + 1, [8], w), ops.rms_norm(x.transpose(0, 1), [8], w)

    compiled = torch.compile(f, fullgraph=True, backend=backend, dynamic=True)
    w = torch.randn(8)
    with torch.no_grad():
        for n in (5, 8, 13):
            x = torch.randn(n, 3, 8)
            want = F.layer_norm(x + 1, [8], w), F.rms_norm(x.transpose(0, 1), [8], w)
            for got, expected in zip(compiled(x, w), want):
                torch.testing.assert_close(got, expected)


def test_compile_tells_torchs_errors(served: bool) -> None:
    torch._dynamo.reset()
    for f in (lambda x: ops.layer_norm(x, [7]), lambda x: ops.rms_norm(x, [7])):
        with pytest.raises(Exception, match="normalized_shape"):
            torch.compile(f, fullgraph=True, backend="aot_eager")(torch.randn(4, 8))


class Block(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.randn(8))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return ops.layer_norm(x, [8], self.weight), ops.rms_norm(x, [8], self.weight)


def test_export_save_and_load(served: bool) -> None:
    block, x = Block(), torch.randn(5, 8)
    file = io.BytesIO()
    torch.export.save(torch.export.export(block, (x,)), file)
    file.seek(0)
    loaded = torch.export.load(file)
    targets = {str(n.target) for n in loaded.graph.nodes if n.op == "call_function"}
    assert {"kgen.layer_norm.default", "kgen.rms_norm.default"} <= targets
    low = {str(n.target) for n in loaded.run_decompositions().graph.nodes if n.op == "call_function"}
    assert {"kgen._layer_norm.default", "kgen._rms_norm.default"} <= low  # these names are frozen
    for got, want in zip(loaded.module()(x), block(x)):
        torch.testing.assert_close(got, want)


def test_vmap(served: bool) -> None:
    x, w, b = torch.randn(3, 6, 8), torch.randn(3, 8), torch.randn(8, 3)

    def check(f: Callable[..., Tensor], g: Callable[..., Tensor], in_dims: Any, *args: Tensor) -> None:
        want = torch.stack([g(*(a if d is None else a.select(d, i) for a, d in zip(args, in_dims))) for i in range(3)])
        torch.testing.assert_close(torch.vmap(f, in_dims=in_dims)(*args), want, atol=1e-5, rtol=1e-5)
        with torch.no_grad():
            torch.testing.assert_close(torch.vmap(f, in_dims=in_dims)(*args), want, atol=1e-5, rtol=1e-5)

    for f, g in ((ops.layer_norm, F.layer_norm), (ops.rms_norm, F.rms_norm)):
        check(lambda x, f=f: f(x, [8]), lambda x, g=g: g(x, [8]), (0,), x)
        check(lambda x, f=f: f(x, [8]), lambda x, g=g: g(x, [8]), (1,), x.transpose(0, 1))
        check(lambda x, w, f=f: f(x, [8], w), lambda x, w, g=g: g(x, [8], w), (0, None), x, w[0])
        check(lambda x, w, f=f: f(x, [8], w), lambda x, w, g=g: g(x, [8], w), (0, 0), x, w)
        check(lambda x, w, f=f: f(x, [8], w), lambda x, w, g=g: g(x, [8], w), (None, 0), x[0], w)
    check(lambda x, w, b: ops.layer_norm(x, [8], w, b), lambda x, w, b: F.layer_norm(x, [8], w, b), (0, 0, 1), x, w, b)
    check(lambda x, b: ops.layer_norm(x, [8], None, b), lambda x, b: F.layer_norm(x, [8], None, b), (0, None), x, b[:, 0])


def test_torch_func(served: bool) -> None:
    x, w = torch.randn(4, 5), torch.randn(5)
    for ours, theirs in ((ops.layer_norm, F.layer_norm), (ops.rms_norm, F.rms_norm)):
        f, g = (lambda t, n=n: n(t, [5], w).square().sum() for n in (ours, theirs))
        torch.testing.assert_close(torch.func.grad(f)(x), torch.func.grad(g)(x))
        torch.testing.assert_close(torch.vmap(torch.func.grad(f))(x), torch.vmap(torch.func.grad(g))(x))
        torch.testing.assert_close(torch.func.jvp(f, (x,), (x,)), torch.func.jvp(g, (x,), (x,)))


def test_autocast_is_as_torchs(served: bool) -> None:
    with torch.autocast("cpu", dtype=torch.bfloat16):
        for x in (torch.randn(3, 8), torch.randn(3, 8).bfloat16()):
            for ours, theirs in ((ops.layer_norm, F.layer_norm), (ops.rms_norm, F.rms_norm)):
                for args in ((x, [8]), (x, [8], torch.ones(8)), (leaf(x), [8], torch.ones(8))):
                    assert ours(*args).dtype == theirs(*args).dtype
                    torch.testing.assert_close(ours(*args), theirs(*args))


def test_meta_and_trace(served: bool) -> None:
    x = torch.randn(3, 8)
    for f, g in ((ops.layer_norm, F.layer_norm), (ops.rms_norm, F.rms_norm)):
        assert f(x.to("meta"), [8]).shape == x.shape
        traced = torch.jit.trace(lambda t, f=f: f(t, [8]), (x,))
        torch.testing.assert_close(traced(x), g(x, [8]))


@pytest.mark.parametrize("way", ["plain", "no_grad", "inference_mode", "backward", "Parameter", "half", "by name"])
def test_the_quick_way_in_is_the_dispatchers(served: bool, way: str) -> None:
    x, w = torch.randn(6, 8), torch.randn(8)
    for f, default in ((ops.layer_norm, ops.layer_norm.default), (ops.rms_norm, ops.rms_norm.default)):

        def run(f: Any) -> Any:
            if way in ("no_grad", "inference_mode"):
                with getattr(torch, way)():
                    return f(x, [8], w)
            if way == "backward":
                t = leaf(x)
                f(t, [8], torch.nn.Parameter(w)).square().sum().backward()
                return t.grad
            if way == "by name":
                return f(weight=w, input=x, normalized_shape=(8,), eps=0.1)
            return f(x.half() if way == "half" else x, [8], torch.nn.Parameter(w) if way == "Parameter" else None)

        got, want = run(f), run(default)
        assert (got.dtype, got.requires_grad) == (want.dtype, want.requires_grad)
        torch.testing.assert_close(got, want, rtol=0, atol=0)


def test_calls_do_not_leak(served: bool) -> None:
    def resident() -> int:
        with open("/proc/self/statm") as f:
            return int(f.read().split()[1]) * 4096

    x, w, strided = torch.randn(128, 128), torch.randn(128), torch.randn(128, 128).t()

    def calls(n: int) -> None:
        with torch.no_grad():
            for _ in range(n):
                for t in (x, strided):
                    ops.layer_norm(t, [128], w, w)
                    ops.rms_norm(t, [128], w, 1e-3)
                    ops.rms_norm.default(t, [128])

    calls(30)
    before = resident()
    calls(120)
    # One output of 64 KB leaked a call would be 15 MB at least.
    assert resident() - before < 4 << 20


@pytest.mark.parametrize("op", ["layer_norm", "rms_norm"])
def test_every_input_set_of_a_task_is_drawn(op: str, tmp_path: Path) -> None:
    from kgen import sets, spread
    from kgen.judge import Judge
    from kgen.mutants import Examiner
    from kgen.reference import Reference
    from kgen.task import canonical_contract

    contract = canonical_contract(op).decode()
    task = spread.norm_trial(op, "float32", 5, 64, ("weight",)).task(json.loads(contract), tmp_path)
    reference = Reference.open(task)
    with Judge(contract) as judge:
        dropped = sets.fill(judge, task, reference, 0, Examiner(reference))
        assert not {"tiny", "onehot"} & set(dropped), dropped
        source = (sr.ROOT / "kernels" / "norm" / f"{op.removesuffix('_norm')}_rows.c").read_text()
        record = judge.run(source)
        assert record["verdict"] == "pass", record["message"]
