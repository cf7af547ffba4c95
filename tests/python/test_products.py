"""kgen's linear and matmul against torch's, with and without an epilogue: values, errors, gradients, compile, export, vmap,
autocast; each once served by kernels that read every stride of their operands and once by torch's own."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import serving_registry as sr
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.library import opcheck

import kgen
from kgen import graphs, recognise, rewrite
from kgen.errors import BadInput
from kgen.trace_epilogues import trace_epilogue

ops = torch.ops.kgen
pytestmark = pytest.mark.usefixtures("nothing_shipped")

PLAN = """/* kgen
{{ "format": 1, "op": "{op}", "target": "cpu", "holes": ["EPILOGUE"],
  "launches": [{{"kernel": "product", "range": "{range}",
    "args": ["input", "{second}", {bias}"output", "programs", {{"i64": "M"}}, {{"i64": "N"}}, {{"i64": "K"}},
             {strides}]}}] }}
*/
#include <stdint.h>
"""
LOOP = """
void product(int64_t begin, int64_t end, const KG_T_input *x, const KG_T_input *y, {bias}KG_T_output *out, KG_PROGRAMS p,
             int64_t m, int64_t n, int64_t k, int64_t xb, int64_t xm, int64_t xk, int64_t yb, int64_t yk, int64_t yn,
             int64_t bn) {{
    for (int64_t at = begin; at < end; at++) {{
        int64_t b = at / m, row = at % m;
        struct kg_epilogue_row r = kg_epilogue_row(p, (int)b, (int)row);
        for (int64_t j = 0; j < n; j++) {{
            double sum = {start};
            for (int64_t i = 0; i < k; i++)
                sum += (double)x[b * xb + row * xm + i * xk] * (double)y[b * yb + i * yk + j * yn];
            out[at * n + j] = kg_epilogue(p, r, (float)sum, (int)b, (int)row, (int)j);
        }}
    }}
}}
"""
LINEAR = PLAN.format(
    op="linear", range="M", second="weight", bias='"bias", ',
    strides=", ".join(f'{{"i64": "{e}"}}' for e in (
        "0", "input.stride(0)", "input.stride(1)", "0", "weight.stride(1)", "weight.stride(0)",
        "present(bias) ? bias.stride(0) : 0")),
) + LOOP.format(bias="const KG_T_input *bias, ", start="bias ? (double)bias[j * bn] : 0.0")  # fmt: skip
MATMUL = PLAN.format(
    op="matmul", range="B * M", second="other", bias="",
    strides=", ".join(f'{{"i64": "{e}"}}' for e in (
        *(f"input.stride({i})" for i in range(3)), *(f"other.stride({i})" for i in range(3)), "0")),
) + LOOP.format(bias="", start="0.0 * (double)bn")  # fmt: skip


def key(op: str, bias: bool, program: str | None) -> dict[str, Any]:
    dims = {d: sr.WIDE for d in ("B", "M", "N", "K") if op == "matmul" or d != "B"}
    dtypes = ["float32", "float32", *([] if op == "matmul" else ["float32" if bias else None])]
    return {
        "op": op, "device": "cpu", "precision": "native", "dtypes": dtypes, "layout": ["s" if d else "-" for d in dtypes],
        "attrs": {}, "program": program, "dims": dims,
    }  # fmt: skip


@pytest.fixture(scope="session")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("products") / "generated"
    sr.promote(folder, "linear", LINEAR, [key("linear", bias, p) for bias in (True, False) for p in (None, "*")])
    sr.promote(folder, "matmul", MATMUL, [key("matmul", False, p) for p in (None, "*")])
    return folder


@pytest.fixture(params=["kernels", "fallback"])
def served(request: pytest.FixtureRequest, registry: Path) -> Iterator[bool]:
    """Whether kernels serve fp32 calls of any layout."""
    if request.param == "kernels":
        kgen.load(registry)
    yield request.param == "kernels"
    if request.param == "kernels":
        kgen.unload(registry)


def by_kernel(call: Callable[[], object]) -> bool:
    decisions = kgen.why(call).decisions
    return bool(decisions) and all(d.kernel is not None for d in decisions)


def close(got: Tensor, want: Tensor) -> None:
    assert got.is_contiguous() or not want.is_contiguous()
    torch.testing.assert_close(got, want, rtol=2e-5, atol=2e-5, equal_nan=True)


def draw(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape) + len(shape)))


def leaf(t: Tensor) -> Tensor:
    return t.clone().requires_grad_()


# Operands of matmul, and whether they are a call of the contract.
MATMULS: dict[str, tuple[Callable[[], tuple[Tensor, Tensor]], bool]] = {
    "matrices": (lambda: (draw(5, 7), draw(7, 3)), True),
    "transposed": (lambda: (draw(7, 5).t(), draw(3, 7).t()), True),
    "strided": (lambda: (draw(10, 14)[::2, ::2], draw(14, 6)[::2, 1::2]), True),
    "vector and matrix": (lambda: (draw(7), draw(7, 3)), True),
    "matrix and vector": (lambda: (draw(5, 7), draw(7)), True),
    "vectors": (lambda: (draw(7), draw(7)), True),
    "strided vectors": (lambda: (draw(14)[::2], draw(21)[::3]), True),
    "rows of a batch": (lambda: (draw(2, 4, 5, 7), draw(7, 3)), True),
    "batch and vector": (lambda: (draw(2, 5, 7), draw(7)), True),
    "vector and batch": (lambda: (draw(7), draw(2, 7, 3)), True),
    "batches": (lambda: (draw(2, 3, 5, 7), draw(2, 3, 7, 4)), True),
    "matrix and batch": (lambda: (draw(5, 7), draw(3, 7, 4)), True),
    "broadcast": (lambda: (draw(1, 3, 5, 7), draw(3, 7, 4)), True),
    "broadcast in both": (lambda: (draw(2, 1, 5, 7), draw(1, 3, 7, 4)), False),
    "rows that do not fold": (lambda: (draw(4, 2, 7).transpose(0, 1), draw(7, 3)), True),
    "heads": (lambda: (draw(2, 6, 3, 4).transpose(1, 2), draw(2, 6, 3, 4).permute(0, 2, 3, 1)), False),
    "one of everything": (lambda: (draw(1, 1), draw(1, 1)), True),
    "expanded": (lambda: (draw(1, 7).expand(5, 7), draw(7, 1).expand(7, 3)), True),
    "sum of none": (lambda: (draw(5, 0), draw(0, 3)), False),
    "no rows": (lambda: (draw(0, 7), draw(7, 3)), False),
    "no batch": (lambda: (draw(0, 5, 7), draw(0, 7, 3)), False),
    "double": (lambda: (draw(5, 7).double(), draw(7, 3).double()), False),
    "integers": (lambda: (torch.arange(6).view(2, 3), torch.arange(6).view(3, 2)), False),
    "half": (lambda: (draw(5, 7).half(), draw(7, 3).half()), False),
}  # fmt: skip


@pytest.mark.parametrize("name", MATMULS)
def test_matmul_is_torchs(served: bool, name: str) -> None:
    make, ours = MATMULS[name]
    x, y = make()
    want = torch.matmul(x, y)
    close(ops.matmul(x, y), want)
    assert by_kernel(lambda: ops.matmul(x, y)) == (served and ours)
    if want.is_floating_point() and want.dtype == torch.float32:
        close(kgen.matmul(x, y, epilogue=lambda v: torch.relu(v) * 3.0), torch.relu(want) * 3.0)
        other = draw(*want.shape) if want.dim() else torch.tensor(1.5)
        close(kgen.matmul(x, y, epilogue=lambda v, r: v - r, captures=(other,)), want - other)


LINEARS: dict[str, tuple[Callable[[], tuple[Tensor, Tensor, Tensor | None]], bool]] = {
    "plain": (lambda: (draw(5, 7), draw(3, 7), draw(3)), True),
    "no bias": (lambda: (draw(5, 7), draw(3, 7), None), True),
    "of a vector": (lambda: (draw(7), draw(3, 7), draw(3)), True),
    "of a batch": (lambda: (draw(2, 4, 5, 7), draw(3, 7), draw(3)), True),
    "rows with gaps": (lambda: (draw(5, 9)[:, 1:8], draw(3, 7), draw(3)), True),
    "strided": (lambda: (draw(5, 14)[:, ::2], draw(7, 3).t(), draw(6)[::2]), True),
    "that does not fold": (lambda: (draw(4, 2, 7).transpose(0, 1), draw(3, 7), draw(3)), False),
    "sum of none": (lambda: (draw(5, 0), draw(3, 0), draw(3)), False),
    "no rows": (lambda: (draw(0, 7), draw(3, 7), draw(3)), False),
    "no columns": (lambda: (draw(5, 7), draw(0, 7), draw(0)), False),
    "weight of a vector": (lambda: (draw(5, 7), draw(7), None), False),
    "double": (lambda: (draw(5, 7).double(), draw(3, 7).double(), draw(3).double()), False),
    "bfloat16": (lambda: (draw(5, 7).bfloat16(), draw(3, 7).bfloat16(), draw(3).bfloat16()), False),
}  # fmt: skip


@pytest.mark.parametrize("name", LINEARS)
def test_linear_is_torchs(served: bool, name: str) -> None:
    make, ours = LINEARS[name]
    x, w, b = make()
    want = F.linear(x, w, b)
    close(ops.linear(x, w, b), want)
    assert by_kernel(lambda: ops.linear(x, w, b)) == (served and ours)
    if want.dtype == torch.float32 and want.numel():
        column, row = draw(*want.shape[:-1], 1), draw(want.shape[-1])
        close(kgen.linear(x, w, b, epilogue=lambda v, c, r: F.gelu(v) * r + c, captures=(column, row)),
              F.gelu(want) * row + column)  # fmt: skip


# What people write, as functions of the product and of a tensor like it.
EPILOGUES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "relu": lambda y, r: torch.relu(y),
    "gelu": lambda y, r: F.gelu(y),
    "gelu tanh": lambda y, r: F.gelu(y, approximate="tanh"),
    "silu": lambda y, r: F.silu(y),
    "leaky": lambda y, r: F.leaky_relu(y, 0.2),
    "residual": lambda y, r: r + y,
    "gated": lambda y, r: F.silu(y) * r,
    "scaled and clamped": lambda y, r: torch.clamp(y * 0.5 - 1, -0.3, 0.4),
    "where": lambda y, r: torch.where(r > 0, y, r),
    "spelled": lambda y, r: 0.5 * y * (1 + torch.erf(y / 2**0.5)) + torch.exp(-(r**2)),
}


@pytest.mark.parametrize("name", EPILOGUES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_epilogues_are_torchs(served: bool, name: str, dtype: torch.dtype) -> None:
    x, w, b, r = (t.to(dtype) for t in (draw(2, 5, 7), draw(3, 7), draw(3), draw(2, 5, 3)))
    function = EPILOGUES[name]
    got = kgen.linear(x, w, b, epilogue=function, captures=(r,))
    want = function(F.linear(x, w, b).float(), r.float()).to(dtype)
    torch.testing.assert_close(got, want, rtol=2e-2 if dtype == torch.bfloat16 else 2e-5, atol=2e-5)


def test_an_epilogue_reads_numbers_and_tensors_of_its_own_anew(served: bool) -> None:
    x, w, scale, shift = draw(5, 7), draw(3, 7), 2.0, draw(3)

    def call() -> Tensor:
        return kgen.linear(x, w, epilogue=lambda y: y * scale + shift)

    close(call(), F.linear(x, w) * 2.0 + shift)
    scale, shift = -0.5, draw(3) + 1
    close(call(), F.linear(x, w) * -0.5 + shift)
    with pytest.raises(kgen.TraceError, match=r"\.sum\(\)"):
        kgen.linear(x, w, epilogue=lambda y: y / y.sum())
    with pytest.raises(kgen.TraceError, match="softmax"):
        kgen.matmul(x, w.t(), epilogue=lambda y: torch.softmax(y, -1))
    with pytest.raises(BadInput, match="captures are for an epilogue"):
        kgen.linear(x, w, captures=(shift,))
    with pytest.raises(BadInput, match=r"captures\[0\] is a float"):
        kgen.linear(x, w, epilogue=lambda y, s: y * s, captures=(2.0,))


BAD: dict[str, Callable[[Any, Any], object]] = {
    "inner": lambda linear, matmul: matmul(draw(5, 7), draw(6, 3)),
    "batch": lambda linear, matmul: matmul(draw(2, 5, 7), draw(3, 7, 3)),
    "number": lambda linear, matmul: matmul(torch.tensor(1.0), draw(3)),
    "dtypes": lambda linear, matmul: matmul(draw(5, 7), draw(7, 3).double()),
    "linear": lambda linear, matmul: linear(draw(5, 7), draw(3, 6), draw(3)),
    "bias": lambda linear, matmul: linear(draw(5, 7), draw(3, 7), draw(4)),
    "linear's dtypes": lambda linear, matmul: linear(draw(5, 7), draw(3, 7).half(), None),
}


@pytest.mark.parametrize("bad", BAD)
@pytest.mark.parametrize("grad", [False, True])
def test_errors_are_torchs(served: bool, bad: str, grad: bool) -> None:
    with torch.set_grad_enabled(grad):
        with pytest.raises(RuntimeError) as want:
            BAD[bad](F.linear, torch.matmul)
        with pytest.raises(RuntimeError) as got:
            BAD[bad](ops.linear, ops.matmul)
    if tuple(int(v) for v in torch.__version__.split(".")[:2]) >= (2, 13):
        assert str(want.value).splitlines()[0] in str(got.value)


PROGRAM = "program 1\ntensor t0 float32 {rank}\nepilogue\n%0 = load float32 t0 {at}\n%1 = add float32 acc %0\nreturn %1\n"


def test_programs_that_do_not_fit_are_refused(served: bool) -> None:
    x, w, r = draw(5, 7), draw(3, 7), draw(5, 3)
    good = PROGRAM.format(rank=2, at="m n")
    close(ops.linear_mod(x, w, None, [r], [], good), F.linear(x, w) + r)
    with pytest.raises(RuntimeError, match="no epilogue section"):
        ops.linear_mod(x, w, None, [], [], "program 1\nmask\n%0 = ge bool q kv\nreturn %0\n")
    with pytest.raises(RuntimeError, match="'q' is no operand|no operand"):
        ops.linear_mod(x, w, None, [], [], "program 1\nepilogue\n%0 = cast float32 q\nreturn %0\n")
    with pytest.raises(RuntimeError, match="with 1 indices; it has 2"):
        ops.linear_mod(x, w, None, [r[0]], [], PROGRAM.format(rank=1, at="n"))
    with pytest.raises(RuntimeError, match="takes no captured tensors"):
        ops.matmul_mod(x, w.t(), [r], [], "")
    with pytest.raises(RuntimeError, match="does not broadcast to the output"):
        ops.linear_mod(x, w, None, [draw(4, 3)], [], good)
    with pytest.raises(RuntimeError, match="is an epilogue"):
        q = draw(1, 1, 4, 8)
        ops.attention_mod(q, q, q, [], [], "program 1\nepilogue\n%0 = neg float32 acc\nreturn %0\n")


def test_an_epilogue_may_read_its_indices(served: bool) -> None:
    text = ("program 1\ntensor t0 float32 2\nscalar s0 float32\nepilogue\n%0 = rem int32 n 2\n%1 = load float32 t0 m %0\n"
            "%2 = mul float32 %1 s0\n%3 = cast float32 m\n%4 = add float32 %2 %3\n%5 = add float32 acc %4\nreturn %5\n")  # fmt: skip
    x, w, r = draw(2, 3, 7), draw(4, 7), draw(6, 4)
    found = ops.linear_mod(x, w, None, [r.view(2, 3, 4)], [0.5], text)
    want = F.linear(x, w).view(6, 4) + 0.5 * r[:, [0, 1, 0, 1]] + torch.arange(6.0)[:, None]
    close(found, want.view(2, 3, 4))


def test_nan_and_inf_spread_as_torchs(served: bool) -> None:
    x, w = draw(6, 9), draw(4, 9)
    x[0, 3], x[1, 2], x[2, 0], w[1, 5], x[4] = torch.nan, torch.inf, -torch.inf, torch.nan, 0.0
    torch.testing.assert_close(ops.linear(x, w), F.linear(x, w), equal_nan=True)
    torch.testing.assert_close(kgen.linear(x, w, epilogue=torch.relu), torch.relu(F.linear(x, w)), equal_nan=True)
    torch.testing.assert_close(ops.matmul(x, w.t()), torch.matmul(x, w.t()), equal_nan=True)


def test_more_than_2_to_the_31_elements_are_only_seen() -> None:
    """A view of many elements that are one: sizes overflow nothing, and torch's own error is told."""
    huge = torch.zeros(1).expand(1 << 31, 2)
    with pytest.raises(RuntimeError):
        ops.matmul(huge, draw(3, 1))
    with pytest.raises(RuntimeError):
        ops.linear(torch.zeros(1).expand(1 << 20, 1 << 20, 1 << 22), draw(3, 5))


# ---- gradients, compile, export, vmap, autocast ----


def _with(x: Tensor, w: Tensor, b: Tensor, r: Tensor, linear: Any) -> Tensor:
    return linear(x, w, b, r)


CALLS: dict[str, tuple[Callable[..., Tensor], Callable[..., Tensor]]] = {
    "linear": (lambda x, w, b, r: ops.linear(x, w, b) + r, lambda x, w, b, r: F.linear(x, w, b) + r),
    "matmul": (lambda x, w, b, r: ops.matmul(x, w.t()) + r * b, lambda x, w, b, r: torch.matmul(x, w.t()) + r * b),
    "batches": (lambda x, w, b, r: ops.matmul(r, w) * b.sum() + ops.matmul(x.mT, r).sum(),
                lambda x, w, b, r: torch.matmul(r, w) * b.sum() + torch.matmul(x.mT, r).sum()),
    "vector": (lambda x, w, b, r: ops.matmul(b, w) + ops.matmul(x, w[0]).sum() + ops.matmul(b, r.mT).sum(),
               lambda x, w, b, r: torch.matmul(b, w) + torch.matmul(x, w[0]).sum() + torch.matmul(b, r.mT).sum()),
    "epilogue": (lambda x, w, b, r: kgen.linear(x, w, b, epilogue=lambda y, t: F.gelu(y) * t + 0.5, captures=(r,)),
                 lambda x, w, b, r: F.gelu(F.linear(x, w, b)) * r + 0.5),
    "matmul with an epilogue": (lambda x, w, b, r: kgen.matmul(x, w.t(), epilogue=lambda y, t: F.silu(y) + t, captures=(b,)) + r,
                                lambda x, w, b, r: F.silu(x @ w.t()) + b + r),
}  # fmt: skip


def tensors() -> list[Tensor]:
    return [draw(2, 5, 7), draw(3, 7), draw(3), draw(2, 5, 3)]


@pytest.mark.parametrize("name", CALLS)
def test_gradients_are_torchs(served: bool, name: str) -> None:
    ours, theirs = CALLS[name]

    def grads(f: Callable[..., Tensor]) -> tuple[Tensor, ...]:
        leaves = [leaf(t) for t in tensors()]
        return torch.autograd.grad(f(*leaves).sin().sum(), leaves)

    for got, want in zip(grads(ours), grads(theirs), strict=True):
        torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-5)


def test_plain_gradients_are_differentiated_again_and_those_of_programs_refuse(served: bool) -> None:
    x, w = leaf(draw(4, 5).double()), leaf(draw(3, 5).double())
    assert torch.autograd.gradgradcheck(ops.linear, (x, w))
    assert torch.autograd.gradgradcheck(ops.matmul, (x, leaf(draw(5, 2).double())))
    y = kgen.linear(x, w, epilogue=torch.tanh)
    (g,) = torch.autograd.grad(y.sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="no second derivative"):
        torch.autograd.grad(g.sum(), x)


OPCHECKED: dict[str, Callable[[], tuple[Any, tuple[Any, ...]]]] = {
    "_linear": lambda: (ops._linear.default, (draw(2, 5, 7), draw(3, 7), draw(3))),
    "_linear_train": lambda: (ops._linear_train.default, (leaf(draw(5, 7)), leaf(draw(3, 7)), None)),
    "_matmul": lambda: (ops._matmul.default, (draw(2, 5, 7), draw(7, 3))),
    "_matmul_train": lambda: (ops._matmul_train.default, (leaf(draw(2, 5, 7)), leaf(draw(2, 7, 3)))),
    "linear_mod": lambda: (ops.linear_mod.default, (draw(5, 7), draw(3, 7), None, [draw(5, 3)], [], PROGRAM.format(rank=2, at="m n"))),
    "linear_mod_train": lambda: (
        ops.linear_mod_train.default, (leaf(draw(5, 7)), draw(3, 7), leaf(draw(3)), [leaf(draw(3))], [], PROGRAM.format(rank=2, at="m n"))),
    "matmul_mod": lambda: (ops.matmul_mod.default, (draw(2, 5, 7), draw(2, 7, 3), [draw(3)], [], PROGRAM.format(rank=3, at="b m n"))),
    "matmul_mod_train": lambda: (
        ops.matmul_mod_train.default, (leaf(draw(2, 5, 7)), draw(7, 3), [leaf(draw(2, 1, 1))], [], PROGRAM.format(rank=3, at="b m n"))),
}  # fmt: skip


@pytest.mark.parametrize("name", [n if "train" not in n else pytest.param(n, marks=pytest.mark.slow) for n in OPCHECKED])
def test_opcheck(served: bool, name: str) -> None:
    op, args = OPCHECKED[name]()
    opcheck(op, args)


@pytest.mark.parametrize("backend", ["aot_eager", pytest.param("inductor", marks=pytest.mark.slow)])
def test_compile_fullgraph_of_changing_lengths(served: bool, backend: str) -> None:
    torch._dynamo.reset()
    factor = 1.5
    f = torch.compile(
        lambda x, w, b, r: kgen.linear(x, w, b, epilogue=lambda y, t: F.gelu(y) * t + factor, captures=(r,)) + ops.matmul(x, w.t()),
        fullgraph=True, backend=backend, dynamic=True)  # fmt: skip
    for n in (5, 9):
        x, w, b, r = draw(2, n, 7), leaf(draw(3, 7)), draw(3), draw(2, n, 3)
        want = F.gelu(F.linear(x, w, b)) * r + factor + x @ w.t()
        got = f(x, w, b, r)
        torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(torch.autograd.grad(got.sum(), w)[0], torch.autograd.grad(want.sum(), w)[0], rtol=1e-4, atol=1e-5)


def test_export_save_and_load(served: bool) -> None:
    class Model(nn.Module):
        def forward(self, x: Tensor, w: Tensor) -> Tensor:
            return ops.linear(x, w) + kgen.matmul(x, w.t(), epilogue=torch.relu)

    x, w = draw(5, 7), draw(3, 7)
    buffer = io.BytesIO()
    torch.export.save(torch.export.export(Model(), (x, w)), buffer)
    buffer.seek(0)
    close(torch.export.load(buffer).module()(x, w), F.linear(x, w) + torch.relu(x @ w.t()))


VMAPS: dict[str, Callable[[Any, Any], Tensor]] = {
    "input": lambda linear, matmul: torch.vmap(linear, (1, None, None))(draw(5, 2, 7), draw(3, 7), draw(3)),
    "all": lambda linear, matmul: torch.vmap(linear, (0, 0, 0))(draw(2, 5, 7), draw(2, 3, 7), draw(2, 3)),
    "weight": lambda linear, matmul: torch.vmap(linear, (None, 0, None))(draw(5, 7), draw(2, 3, 7), draw(3)),
    "bias": lambda linear, matmul: torch.vmap(linear, (None, None, 0))(draw(5, 7), draw(3, 7), draw(2, 3)),
    "matrices": lambda linear, matmul: torch.vmap(matmul, (0, 2))(draw(2, 5, 7), draw(7, 3, 2)),
    "vectors": lambda linear, matmul: torch.vmap(matmul)(draw(2, 7), draw(2, 7)),
    "of a batch": lambda linear, matmul: torch.vmap(matmul, (None, 0))(draw(5, 7), draw(2, 4, 7, 3)),
}


@pytest.mark.parametrize("name", VMAPS)
def test_vmap(served: bool, name: str) -> None:
    torch.testing.assert_close(VMAPS[name](ops.linear, ops.matmul), VMAPS[name](F.linear, torch.matmul), rtol=1e-5, atol=1e-5)


def test_torch_func(served: bool) -> None:
    x, w = draw(4, 5), draw(3, 5)
    for ours, theirs in (
        (lambda w: ops.linear(x, w).sin().sum(), lambda w: F.linear(x, w).sin().sum()),
        (lambda w: kgen.linear(x, w, epilogue=F.gelu).sum(), lambda w: F.gelu(F.linear(x, w)).sum()),
    ):
        torch.testing.assert_close(torch.func.grad(ours)(w), torch.func.grad(theirs)(w), rtol=1e-4, atol=1e-5)
    _, tangent = torch.func.jvp(lambda t: ops.matmul(x, t.t()), (w,), (w,))
    close(tangent, x @ w.t())
    with torch.no_grad(), torch.autograd.forward_ad.dual_level():
        dual = torch.autograd.forward_ad.make_dual(w, w)
        for y in (ops.linear(x, dual), kgen.linear(x, dual, epilogue=lambda v: v * 1.0 + x[:, :1] * 0.0)):
            close(torch.autograd.forward_ad.unpack_dual(y).tangent, x @ w.t())


def test_autocast_is_as_torchs(served: bool) -> None:
    x, w, b = draw(5, 7), draw(3, 7), draw(3)
    with torch.autocast("cpu", torch.bfloat16):
        for grad in (False, True):
            with torch.set_grad_enabled(grad):
                got, want = ops.linear(x, w, b), F.linear(x, w, b)
                assert got.dtype == want.dtype == torch.bfloat16
                assert ops.matmul(x, w.t()).dtype == torch.bfloat16
                assert kgen.linear(x, w, b, epilogue=F.gelu).dtype == torch.bfloat16
                torch.testing.assert_close(got, want)


# ---- recognition ----


class Model(nn.Module):
    """Products with and without something behind them; what is shared stays."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.gate, self.down = nn.Linear(8, 16), nn.Linear(8, 16), nn.Linear(16, 8, bias=False)
        self.w, self.b = nn.Parameter(draw(8, 12)), nn.Parameter(draw(12))

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        h = F.gelu(self.up(x)) * torch.sigmoid(self.gate(x))
        shared = self.down(h)
        spelled = self.up(x)
        return (
            self.down(h) + x, F.relu(shared) + shared.sum(), torch.addmm(self.b, x.view(-1, 8), self.w).relu(),
            torch.einsum("bik,bjk->bij", x, x) * 0.5, spelled * torch.sigmoid(spelled), torch.tanh(x @ self.w) + 1,
            self.gate(x), F.relu(self.up(x).view(3, -1)),
        )  # fmt: skip


def test_products_are_recognised_with_what_follows_them() -> None:
    model, x = Model().eval(), draw(2, 3, 8)
    graph = graphs.export(model, (x,), {})
    found = recognise.find(graph)
    assert not found.misses
    parts = [(m.op, [graphs.op_name(n) for n in m.core]) for m in found.matches]
    assert parts == [
        ("linear", ["linear", "sigmoid"]), ("linear", ["linear", "gelu", "mul"]), ("linear", ["linear", "add"]),
        ("linear", ["addmm", "relu"]), ("matmul", ["einsum", "mul"]), ("linear", ["linear", "sigmoid", "mul"]),
        ("matmul", ["matmul", "tanh", "add"]),
    ]  # fmt: skip
    recorder = graphs.Recorder(graph.module, set(graph.module.graph.nodes))
    with torch.no_grad():
        recorder.run(*graphs.flat_inputs(graph, model, (x,), {}))
        assert [rewrite.verify(m, recorder.kept) for m in found.matches] == [None] * 7
        code = rewrite.apply(graph, found.matches, rewrite.torch_ops)
        for got, want in zip(code(*graphs.flat_inputs(graph, model, (x,), {})), model(x), strict=True):
            close(got, want)


def test_a_wrong_epilogue_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """The check of a Match sees an epilogue that is not the graph's."""
    graph = graphs.export(nn.Sequential(nn.Linear(8, 4), nn.SiLU()), (draw(3, 8),), {})
    (match,) = recognise.find(graph).matches
    text = trace_epilogue(torch.sigmoid, (), ("m", "n")).text
    wrong = recognise.Match(match.op, match.out, match.core, recognise.Product(match.detail.operands, False, text, (), ()))
    recorder = graphs.Recorder(graph.module, set(graph.module.graph.nodes))
    with torch.no_grad():
        recorder.run(*(draw(*n.node.meta["val"].shape) for n in graph.inputs))
    assert rewrite.verify(match, recorder.kept) is None
    assert "differs" in (rewrite.verify(wrong, recorder.kept) or "")


def test_patch_takes_what_a_kernel_serves(registry: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = nn.Sequential(nn.Linear(8, 16), nn.GELU(), nn.Linear(16, 4)).eval()
    x = draw(5, 8)
    want = model(x).detach()
    kgen.patch(model, x, fallback=True)
    assert "no Kernel serves it" in capsys.readouterr().out
    kgen.load(registry)
    try:
        kgen.patch(model, x)
        assert "linear in the model itself -> linear/v" in capsys.readouterr().out
        with torch.no_grad():
            close(model(x), want)
            assert by_kernel(lambda: model(x))
    finally:
        kgen.unload(registry)
