"""kgen's ops against torch's: values, gradients, compile, export, vmap, autocast, threads; each once served by
Kernels and once by the fallbacks."""

from __future__ import annotations

import io
import math
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import serving_registry
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import forward_ad
from torch.library import opcheck
from torch.overrides import TorchFunctionMode

import kgen

ops = torch.ops.kgen
pytestmark = pytest.mark.usefixtures("nothing_shipped")
PROGRAM = """program 1
tensor t0 float32 1
scalar s0 float32
score
%0 = load float32 t0 h
%1 = mul float32 score %0
%2 = add float32 %1 s0
return %2
mask
%0 = ge bool q kv
return %0
"""
# Sums of 16 products and of up to 100 weights in fp32: a few hundred roundings of 6e-8 each, at scale one.
CLOSE = 2e-5
# Before 2.13 torch's C ABI does not tell what went wrong: the text is on stderr, and the error says so.
TELLS = tuple(int(v) for v in torch.__version__.split(".")[:2]) >= (2, 13)
UNTOLD = "torch wrote why to stderr"


@pytest.fixture(scope="session")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return serving_registry.serving(tmp_path_factory.mktemp("ops"))


@pytest.fixture(params=["kernels", "fallback"])
def served(request: pytest.FixtureRequest, registry: Path) -> Iterator[bool]:
    """Whether Kernels serve fp32 calls of head size 16 and contiguous softmax."""
    if request.param == "kernels":
        kgen.load(registry)
    else:
        before = kgen.policy()
    yield request.param == "kernels"
    if request.param == "kernels":
        kgen.unload(registry)
    else:
        assert kgen.policy() == before


@pytest.fixture
def qkv() -> tuple[Tensor, Tensor, Tensor]:
    torch.manual_seed(1)
    return torch.randn(2, 4, 37, 16), torch.randn(2, 4, 29, 16), torch.randn(2, 4, 29, 16)


def expect_kind(served: bool, found: kgen.serving.Why) -> None:
    for d in found.decisions:
        assert (d.kind != "fallback") == served, str(d)


def leaf(t: Tensor) -> Tensor:
    return t.clone().requires_grad_()


def program_reference(q: Tensor, k: Tensor, v: Tensor, table: Tensor, shift: float) -> tuple[Tensor, Tensor]:
    """PROGRAM spelled in torch, by hand."""
    score = q @ k.transpose(-2, -1) / math.sqrt(q.shape[-1])
    score = score * table[None, :, None, None] + shift
    keep = torch.arange(q.shape[2])[:, None] >= torch.arange(k.shape[2])
    score = score.masked_fill(~keep, -math.inf)
    return torch.softmax(score, -1) @ v, torch.logsumexp(score, -1)


# ---- values ----


@pytest.mark.parametrize("shape", [(7,), (3, 5), (2, 3, 64), (1, 1), (0, 4), (4, 0), (33, 1000)])
@pytest.mark.parametrize("dim", [-1, 0])
def test_softmax_is_torchs(served: bool, shape: tuple[int, ...], dim: int) -> None:
    x = torch.randn(shape)
    torch.testing.assert_close(ops.softmax(x, dim), torch.softmax(x, dim))


def test_softmax_serves_what_the_pin_says(served: bool) -> None:
    expect_kind(served, kgen.why("softmax", torch.randn(3, 5), 1))
    assert kgen.why("softmax", torch.randn(3, 5), 0).fallbacks == 1  # K is 5
    assert kgen.why("softmax", torch.randn(5, 3).t(), 1).fallbacks == 1  # not contiguous
    assert kgen.why("softmax", torch.randn(3, 5).double(), 1).fallbacks == 1


def test_softmax_of_views_and_dtypes(served: bool) -> None:
    for x in (torch.randn(5, 3).t(), torch.randn(4, 10)[:, ::2], torch.randn(6, 8).double(), torch.randn(6, 8).bfloat16()):
        torch.testing.assert_close(ops.softmax(x, 1), torch.softmax(x, 1))


def test_softmax_of_nan_and_inf_rows(served: bool) -> None:
    x = torch.zeros(3, 4)
    x[0, 1], x[1, 2] = math.nan, -math.inf
    torch.testing.assert_close(ops.softmax(x, 1), torch.softmax(x, 1), equal_nan=True)


def test_bad_dim_is_torchs_error(served: bool) -> None:
    message = r"Dimension out of range \(expected to be in range of \[-2, 1\], but got 7\)$" if TELLS else UNTOLD
    with pytest.raises(RuntimeError, match=message):
        ops.softmax(torch.randn(2, 3), 7)


@pytest.mark.parametrize(
    "kind", ["plain", "causal", "bool", "bool rows", "float", "float heads", "scale", "gqa", "transposed"]
)
def test_attention_is_sdpas(served: bool, qkv: tuple[Tensor, Tensor, Tensor], kind: str) -> None:
    q, k, v = qkv
    kw: dict[str, Any] = {
        "causal": {"is_causal": True}, "scale": {"scale": 0.3}, "gqa": {"enable_gqa": True},
        "bool": {"attn_mask": torch.rand(37, 29) > 0.5}, "bool rows": {"attn_mask": torch.rand(2, 1, 1, 29) > 0.5},
        "float": {"attn_mask": torch.randn(2, 4, 37, 29)}, "float heads": {"attn_mask": torch.randn(4, 1, 29)},
    }.get(kind, {})  # fmt: skip
    if kind == "gqa":
        k, v = k[:, :2], v[:, :2]
    if kind == "transposed":
        q = q.transpose(1, 2).contiguous().transpose(1, 2)
    torch.testing.assert_close(ops.attention(q, k, v, **kw), F.scaled_dot_product_attention(q, k, v, **kw), atol=CLOSE, rtol=CLOSE)
    expect_kind(served, kgen.why("attention", q, k, v, **kw))


def test_rows_without_a_key_are_as_sdpa_gives_them(served: bool, qkv: tuple[Tensor, Tensor, Tensor]) -> None:
    q, k, v = qkv
    mask = torch.ones(37, 29, dtype=torch.bool)
    mask[5] = False
    bias = torch.zeros(37, 29).masked_fill(~mask, -math.inf)
    for m in (mask, bias):
        want = F.scaled_dot_product_attention(q, k, v, m)
        assert want[:, :, 5].abs().max() == 0  # what torch gives today
        torch.testing.assert_close(ops.attention(q, k, v, m), want, atol=CLOSE, rtol=CLOSE)


def test_what_no_contract_covers_goes_to_sdpa(served: bool, qkv: tuple[Tensor, Tensor, Tensor]) -> None:
    q, k, v = qkv
    torch.testing.assert_close(ops.attention(q[0], k[0], v[0]), F.scaled_dot_product_attention(q[0], k[0], v[0]))
    d = [t.double() for t in qkv]
    torch.testing.assert_close(ops.attention(*d), F.scaled_dot_product_attention(*d))
    torch.manual_seed(3)
    a = ops.attention(q, k, v, dropout_p=0.5)
    torch.manual_seed(3)
    torch.testing.assert_close(a, F.scaled_dot_product_attention(q, k, v, dropout_p=0.5))
    both = {"attn_mask": torch.randn(37, 29), "is_causal": True}
    try:
        want = F.scaled_dot_product_attention(*qkv, **both)
    except RuntimeError:  # torch 2.14 wants one of the two
        with pytest.raises(RuntimeError, match="is_causal"):
            ops.attention(*qkv, **both)
    else:
        torch.testing.assert_close(ops.attention(*qkv, **both), want)
    empty = ops.attention(q[:, :, :0], k, v)
    assert empty.shape == (2, 4, 0, 16)
    for args, kw in (
        ((q, k[:, :, :, :8], v), {}),
        ((q, k, v, torch.zeros(3, 3)), {}),
        ((q, k.bfloat16(), v), {}),
    ):
        with pytest.raises(RuntimeError) as theirs:
            F.scaled_dot_product_attention(*args, **kw)
        with pytest.raises(RuntimeError) as ours:
            ops.attention(*args, **kw)
        if TELLS:
            assert str(ours.value).splitlines()[0] == str(theirs.value).splitlines()[0]
        else:
            assert UNTOLD in str(ours.value)


def test_attention_mod(served: bool, qkv: tuple[Tensor, Tensor, Tensor]) -> None:
    q, k, v = qkv
    table = torch.rand(4)
    output, lse = ops.attention_mod(q, k, v, [table], [0.5], PROGRAM)
    want, want_lse = program_reference(q, k, v, table, 0.5)
    torch.testing.assert_close(output, want, atol=CLOSE, rtol=CLOSE)
    torch.testing.assert_close(lse, want_lse, atol=CLOSE, rtol=CLOSE)
    found = kgen.why("attention_mod", q, k, v, [table], [0.25], PROGRAM)
    assert found.decisions[0].kind == ("instantiated" if served else "fallback")


def test_attention_mod_output(served: bool, qkv: tuple[Tensor, Tensor, Tensor]) -> None:
    """attention_mod without its log-sum-exp; its errors too."""
    q, k, v = qkv
    table = torch.rand(4)
    output = ops.attention_mod_output(q, k, v, [table], [0.5], PROGRAM)
    torch.testing.assert_close(output, program_reference(q, k, v, table, 0.5)[0], atol=CLOSE, rtol=CLOSE)
    found = kgen.why("attention_mod_output", q, k, v, [table], [0.25], PROGRAM)
    assert found.decisions[0].kind == ("instantiated" if served else "fallback")
    with pytest.raises(RuntimeError, match="captured"):
        ops.attention_mod_output(q, k, v, [], [0.5], PROGRAM)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert ops.attention_mod_output(q, k, v, [], [], "").dtype == torch.bfloat16


def test_a_long_program_without_a_kernel_is_said_once() -> None:
    import warnings

    from kgen import _fallback

    _fallback._said.clear()
    q = torch.randn(1, 2, 3000, 8)
    with pytest.warns(UserWarning, match="no Kernel serves this attention Program"):
        output, lse = ops.attention_mod(q, q, q, [torch.ones(2)], [0.0], PROGRAM)
    torch.testing.assert_close(output, F.scaled_dot_product_attention(q, q, q, is_causal=True), atol=CLOSE, rtol=CLOSE)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ops.attention_mod(q, q, q, [torch.ones(2)], [0.0], PROGRAM)


def test_attention_mod_without_a_program(served: bool, qkv: tuple[Tensor, Tensor, Tensor]) -> None:
    output, lse = ops.attention_mod(*qkv, [], [], "")
    torch.testing.assert_close(output, F.scaled_dot_product_attention(*qkv), atol=CLOSE, rtol=CLOSE)
    assert lse.dtype == torch.float32 and lse.shape == (2, 4, 37)


@pytest.mark.parametrize(
    ("program", "captured", "message"),
    [
        ("program 2\n", [], "program"),
        (PROGRAM, [], "captured"),
        ("", [torch.ones(1)], "empty program"),
        (PROGRAM, [torch.ones(4, dtype=torch.int64)], "captured tensor 0 is int64"),
    ],
)
def test_attention_mod_refuses(served: bool, qkv: tuple[Tensor, ...], program: str, captured: list[Tensor], message: str) -> None:
    with pytest.raises(RuntimeError, match=message):
        ops.attention_mod(*qkv, captured, [0.5], program)


# ---- torch's subsystems ----


def cases(qkv: tuple[Tensor, Tensor, Tensor]) -> dict[str, tuple[Any, tuple[Any, ...], dict[str, Any]]]:
    q, k, v = qkv
    g = [leaf(t) for t in qkv]
    table = torch.rand(4)
    return {
        "softmax": (ops.softmax.default, (torch.randn(6, 9), 1), {}),
        "softmax grad": (ops.softmax.default, (leaf(torch.randn(6, 9)), -1), {}),
        "_softmax": (ops._softmax.default, (torch.randn(6, 9), 1), {}),
        "_softmax_train": (ops._softmax_train.default, (leaf(torch.randn(6, 9)), 0), {}),
        "attention": (ops.attention.default, (q, k, v), {}),
        "attention grad": (ops.attention.default, (*g, None, 0.0, True), {"scale": 0.3}),
        "attention mask grad": (ops.attention.default, (*g, leaf(torch.randn(37, 29))), {}),
        "_attention_backward": (ops._attention_backward.default, (q, q, k, v, None, True, None, False, False), {}),
        "attention_mod": (ops.attention_mod.default, (q, k, v, [table], [0.5], PROGRAM), {}),
        "attention_mod_output": (ops.attention_mod_output.default, (q, k, v, [table], [0.5], PROGRAM), {}),
        "attention_mod_train": (ops.attention_mod_train.default, (*g, [leaf(table)], [0.5], PROGRAM), {}),
        "_attention_mod_backward": (
            ops._attention_mod_backward.default,
            (q, None, q, k, v, [table], [0.5], PROGRAM, None, False, [True]),
            {},
        ),
    }


@pytest.mark.parametrize("name", sorted(cases((torch.empty(0),) * 3)))
def test_opcheck(served: bool, qkv: tuple[Tensor, Tensor, Tensor], name: str) -> None:
    op, args, kw = cases(qkv)[name]
    assert set(opcheck(op, args, kw).values()) == {"SUCCESS"}


def everything(x: Tensor, q: Tensor, k: Tensor, v: Tensor, m: Tensor, t: Tensor) -> tuple[Tensor, ...]:
    output, lse = ops.attention_mod_train(q, k, v, [t], [0.5], PROGRAM)
    return ops.softmax(x, -1) * 2, ops.attention(q, k, v, m), output, lse


def everything_in_torch(x: Tensor, q: Tensor, k: Tensor, v: Tensor, m: Tensor, t: Tensor) -> tuple[Tensor, ...]:
    output, lse = program_reference(q, k, v, t, 0.5)
    return torch.softmax(x, -1) * 2, F.scaled_dot_product_attention(q, k, v, m), output, lse


def inputs_of_everything() -> list[Tensor]:
    torch.manual_seed(2)
    n = torch.randn
    return [leaf(t) for t in (n(6, 9), n(1, 2, 33, 16), n(1, 2, 33, 16), n(1, 2, 33, 16), n(33, 33), torch.rand(2))]


def gradients(f: Callable[..., tuple[Tensor, ...]]) -> tuple[tuple[Tensor, ...], list[Tensor | None]]:
    inputs = inputs_of_everything()
    outputs = f(*inputs)
    sum((o.square() * torch.arange(1, o.numel() + 1).view(o.shape) / o.numel()).sum() for o in outputs).backward()
    return outputs, [t.grad for t in inputs]


@pytest.mark.parametrize("backend", ["eager mode", "aot_eager", pytest.param("inductor", marks=pytest.mark.slow)])
def test_gradients_are_torchs(served: bool, backend: str) -> None:
    torch._dynamo.reset()
    f = everything if backend == "eager mode" else torch.compile(everything, fullgraph=True, backend=backend)
    outputs, grads = gradients(f)
    want_outputs, want_grads = gradients(everything_in_torch)
    for got, want in zip((*outputs, *grads), (*want_outputs, *want_grads), strict=True):
        assert got is not None and want is not None
        torch.testing.assert_close(got, want, atol=2e-4, rtol=2e-4)


@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
def test_compile_fullgraph_of_changing_lengths(served: bool, backend: str) -> None:
    torch._dynamo.reset()

    def f(x: Tensor, q: Tensor) -> tuple[Tensor, Tensor]:
        return ops.softmax(x + 1, -1), ops.attention(q, q, q, is_causal=True)

    compiled = torch.compile(f, fullgraph=True, backend=backend, dynamic=True)
    with torch.no_grad():
        for n in (5, 8, 13):
            x, q = torch.randn(n, 7), torch.randn(1, 2, n, 16)
            for got, want in zip(compiled(x, q), (torch.softmax(x + 1, -1), F.scaled_dot_product_attention(q, q, q, is_causal=True))):
                torch.testing.assert_close(got, want, atol=CLOSE, rtol=CLOSE)


class Block(torch.nn.Module):
    def forward(self, x: Tensor, q: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        program = "program 1\nmask\n%0 = ge bool q kv\nreturn %0\n"
        return ops.softmax(x, -1), ops.attention(q, q, q, is_causal=True), ops.attention_mod(q, q, q, [], [], program)[0]


def test_export_save_and_load(served: bool) -> None:
    x, q = torch.randn(5, 7), torch.randn(1, 2, 9, 16)
    exported = torch.export.export(Block(), (x, q))
    file = io.BytesIO()
    torch.export.save(exported, file)
    file.seek(0)
    loaded = torch.export.load(file)
    targets = {str(n.target) for n in loaded.graph.nodes if n.op == "call_function"}
    assert {"kgen.softmax.default", "kgen.attention.default", "kgen.attention_mod.default"} <= targets
    low = {str(n.target) for n in loaded.run_decompositions().graph.nodes if n.op == "call_function"}
    assert {"kgen._softmax.default", "kgen._attention.default"} <= low  # these names are frozen
    for got, want in zip(loaded.module()(x, q), Block()(x, q)):
        torch.testing.assert_close(got, want)


def test_vmap(served: bool) -> None:
    x = torch.randn(3, 6, 8)
    for dim, in_dim in ((0, 0), (-1, 1), (1, 2)):
        got = torch.vmap(lambda t: ops.softmax(t, dim), in_dims=in_dim)(x)
        torch.testing.assert_close(got, torch.vmap(lambda t: torch.softmax(t, dim), in_dims=in_dim)(x))
    q, k, mask = torch.randn(3, 1, 2, 9, 16), torch.randn(1, 2, 3, 9, 16), torch.randn(3, 9, 9)
    for kw in ({"is_causal": True}, {"attn_mask": torch.rand(9, 9) > 0.3}, {}):
        got = torch.vmap(lambda q, k: ops.attention(q, k, k, **kw), in_dims=(0, 2))(q, k)
        want = torch.stack([F.scaled_dot_product_attention(q[i], k[:, :, i], k[:, :, i], **kw) for i in range(3)])
        torch.testing.assert_close(got, want, atol=CLOSE, rtol=CLOSE)
    got = torch.vmap(lambda q, k, m: ops.attention(q, k, k, m), in_dims=(0, 2, 0))(q, k, mask)
    want = torch.stack([F.scaled_dot_product_attention(q[i], k[:, :, i], k[:, :, i], mask[i]) for i in range(3)])
    torch.testing.assert_close(got, want, atol=CLOSE, rtol=CLOSE)


def test_torch_func(served: bool) -> None:
    x = torch.randn(4, 5)
    ours, theirs = lambda t: ops.softmax(t, -1).square().sum(), lambda t: torch.softmax(t, -1).square().sum()
    torch.testing.assert_close(torch.func.grad(ours)(x), torch.func.grad(theirs)(x))
    torch.testing.assert_close(torch.vmap(torch.func.grad(ours))(x), torch.vmap(torch.func.grad(theirs))(x))
    torch.testing.assert_close(torch.func.hessian(ours)(x[0]), torch.func.hessian(theirs)(x[0]))
    one = torch.ones_like(x)
    torch.testing.assert_close(torch.func.jvp(ours, (x,), (one,)), torch.func.jvp(theirs, (x,), (one,)))


def test_gradcheck(served: bool) -> None:
    x = torch.randn(3, 5, dtype=torch.double, requires_grad=True)
    assert torch.autograd.gradcheck(lambda t: ops.softmax(t, -1), (x,))
    assert torch.autograd.gradgradcheck(lambda t: ops.softmax(t, -1), (x,))
    q, k, v = (torch.randn(1, 2, 4, 3, dtype=torch.double, requires_grad=True) for _ in range(3))
    assert torch.autograd.gradcheck(lambda *a: ops._attention_train(*a, None, True, None, False), (q, k, v))
    table = torch.rand(2, dtype=torch.double, requires_grad=True)
    program = PROGRAM.replace("t0 float32", "t0 float64")
    assert torch.autograd.gradcheck(lambda a, b, c, t: ops.attention_mod_train(a, b, c, [t], [0.5], program)[0], (q, k, v, table))


def test_second_derivative_of_attention_says_so(served: bool, qkv: tuple[Tensor, Tensor, Tensor]) -> None:
    q = leaf(qkv[0])
    (grad,) = torch.autograd.grad(ops.attention(q, *qkv[1:]).square().sum(), q, create_graph=True)
    with pytest.raises(RuntimeError, match="kgen::attention has no second derivative"):
        grad.sum().backward()


def test_backward_under_a_dispatch_mode(served: bool, qkv: tuple[Tensor, Tensor, Tensor]) -> None:
    from torch.utils.flop_counter import FlopCounterMode

    q = leaf(qkv[0])
    with FlopCounterMode(display=False):
        ops.attention(q, *qkv[1:]).sum().backward()
    want = leaf(qkv[0])
    F.scaled_dot_product_attention(want, *qkv[1:]).sum().backward()
    torch.testing.assert_close(q.grad, want.grad, atol=CLOSE, rtol=CLOSE)


def test_autocast_is_as_torchs(served: bool, qkv: tuple[Tensor, Tensor, Tensor]) -> None:
    q, k, v = qkv
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert ops.attention(q, k, v).dtype == F.scaled_dot_product_attention(q, k, v).dtype == torch.bfloat16
        assert ops.attention(leaf(q), k, v).dtype == torch.bfloat16
        assert ops.attention(q, k, v, torch.randn(37, 29)).dtype == torch.bfloat16
        assert ops.attention_mod(q, k, v, [], [], "")[0].dtype == torch.bfloat16
        for x in (torch.randn(3, 4), torch.randn(3, 4).bfloat16()):
            assert ops.softmax(x, 1).dtype == torch.softmax(x, 1).dtype


def test_meta_and_trace(served: bool, qkv: tuple[Tensor, Tensor, Tensor]) -> None:
    meta = [t.to("meta") for t in qkv]
    assert ops.attention(*meta).shape == (2, 4, 37, 16)
    assert ops.softmax(meta[0], 1).shape == meta[0].shape
    x = torch.randn(3, 4)
    traced = torch.jit.trace(lambda t: ops.softmax(t, 1), (x,))
    torch.testing.assert_close(traced(x), torch.softmax(x, 1))


def _ways() -> dict[str, Any]:
    """Surroundings in which a call must be what the dispatcher alone makes of it."""

    def dual(f: Any, x: Tensor) -> Any:
        with forward_ad.dual_level():
            return forward_ad.unpack_dual(f(forward_ad.make_dual(x, torch.ones_like(x)))).tangent

    def inside(context: Any) -> Any:
        def way(f: Any, x: Tensor) -> Any:
            with context():
                return f(x)

        return way

    def grad(f: Any, x: Tensor) -> Any:
        leaf = x.clone().requires_grad_()
        f(leaf).square().sum().backward()
        return leaf.grad

    def unbound(f: Any, x: Tensor) -> Any:
        with torch.no_grad():
            return torch.vmap(f)(torch.stack([x, 2 * x]))

    return {
        "plain": lambda f, x: f(x),
        "no_grad": inside(torch.no_grad),
        "inference_mode": inside(torch.inference_mode),
        "autocast": inside(lambda: torch.autocast("cpu", torch.bfloat16)),
        "backward": grad,
        "vmap under no_grad": unbound,
        "func.grad": lambda f, x: torch.func.grad(lambda t: f(t).square().sum())(x),
        "func.jvp": lambda f, x: torch.func.jvp(f, (x,), (torch.ones_like(x),))[1],
        "forward AD": dual,
        "Parameter": lambda f, x: f(torch.nn.Parameter(x)),
        "half": lambda f, x: f(x.bfloat16()),
        "double": lambda f, x: f(x.double()),
    }


@pytest.mark.parametrize("way", sorted(_ways()))
def test_the_quick_way_in_is_the_dispatchers(served: bool, way: str) -> None:
    x, run = torch.randn(1, 2, 6, 8), _ways()[way]
    calls = {
        "softmax": (lambda t: ops.softmax(t, -1), lambda t: ops.softmax.default(t, -1)),
        "by name": (lambda t: ops.softmax(dim=1, input=t), lambda t: ops.softmax.default(t, 1)),
        "attention": (lambda t: ops.attention(t, t, t), lambda t: ops.attention.default(t, t, t)),
        "causal": (
            lambda t: ops.attention(t, t, t, is_causal=True, scale=0.5),
            lambda t: ops.attention.default(t, t, t, is_causal=True, scale=0.5),
        ),
    }
    if way in ("func.jvp", "forward AD"):  # torch's own attention has no forward derivative on a CPU
        del calls["attention"], calls["causal"]
    for name, (quick, whole) in calls.items():
        got, want = run(quick, x), run(whole, x)
        assert (got.dtype, got.requires_grad) == (want.dtype, want.requires_grad), name
        torch.testing.assert_close(got, want, rtol=0, atol=0, msg=name)


def test_the_quick_way_in_is_seen_by_modes_and_subclasses(served: bool) -> None:
    seen: list[str] = []

    class Mode(TorchFunctionMode):
        def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            seen.append(str(func))
            return func(*args, **(kwargs or {}))

    class Sub(Tensor):
        @classmethod
        def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            seen.append(str(func))
            return super().__torch_function__(func, types, args, kwargs)

    x = torch.randn(3, 4)
    with Mode(), torch.no_grad():
        ops.softmax(x, 1)
    assert any("softmax" in s for s in seen), seen
    seen.clear()
    assert type(ops.softmax(x.as_subclass(Sub), 1)) is Sub and any("kgen.softmax" in s for s in seen), seen
    assert isinstance(ops.softmax, torch._ops.OpOverloadPacket) and ops.softmax.overloads() == ["default"]


def test_eight_threads(served: bool) -> None:
    """New shapes all the time, so that look-ups, inserts and calls of one cache meet."""
    errors: list[object] = []

    def work(i: int) -> None:
        try:
            with torch.no_grad():
                for n in range(60):
                    x = torch.randn(3 + i % 3, 7 + n)
                    torch.testing.assert_close(ops.softmax(x, 1), torch.softmax(x, 1))
                    q = torch.randn(1, 2, 5 + n % 7, 16)
                    want = F.scaled_dot_product_attention(q, q, q, is_causal=True)
                    torch.testing.assert_close(ops.attention(q, q, q, is_causal=True), want, atol=CLOSE, rtol=CLOSE)
        except Exception as e:  # noqa: BLE001 - shown by the assertion below
            errors.append(e)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(8)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert not errors


def test_calls_do_not_leak(served: bool, qkv: tuple[Tensor, Tensor, Tensor]) -> None:
    def resident() -> int:
        with open("/proc/self/statm") as f:
            return int(f.read().split()[1]) * 4096

    x, mask, table = torch.randn(64, 64), torch.rand(37, 29) > 0.5, torch.rand(4)

    def calls(n: int) -> None:
        with torch.no_grad():
            for _ in range(n):
                ops.softmax(x, 1)
                ops.attention(*qkv, mask, scale=0.3)
                ops.attention_mod(*qkv, [table], [0.5], PROGRAM)

    calls(50)
    before = resident()
    calls(250)
    # One output of 19 KB leaked a call would be 4.75 MB.
    assert resident() - before < 4 << 20
