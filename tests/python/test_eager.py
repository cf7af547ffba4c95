"""The quick way in from eager code: open on every torch that is supported, taken by plain calls alone, and shut where torch
does not look as it was learnt."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from kgen_command import Server
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention as sdpa
from torch.autograd import forward_ad
from torch.utils._python_dispatch import TorchDispatchMode

import kgen
from kgen import eager

ops = torch.ops.kgen


@pytest.fixture
def otherwise(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, ...]]:
    """What did not go the quick way."""
    left: list[tuple[Any, ...]] = []
    packet = ops.softmax
    assert eager.why_shut() is None

    def call(*args: Any, **kwargs: Any) -> Any:
        left.append(args)
        return packet._call(*args, **kwargs)

    quick = eager.softmax(call, kgen.ops._softmax_apply)
    monkeypatch.setattr(type(packet), "__call__", quick)
    yield left  # type: ignore[misc]
    packet._in_c()


@pytest.fixture
def attention_otherwise(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, ...]]:
    """The same of attention."""
    left: list[tuple[Any, ...]] = []
    packet = ops.attention
    assert eager.why_shut() is None

    def call(*args: Any, **kwargs: Any) -> Any:
        left.append((args, kwargs))
        return packet._call(*args, **kwargs)

    quick = eager.attention(call, kgen.ops._attention_apply)
    monkeypatch.setattr(type(packet), "__call__", quick)
    yield left  # type: ignore[misc]
    packet._in_c()


def test_it_is_open() -> None:
    assert eager.why_shut() is None
    for packet in (ops.softmax, ops.attention):
        assert type(packet.__call__).__name__ == "builtin_function_or_method"


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_plain_calls_take_it(otherwise: list[Any], mode: Any) -> None:
    with mode():
        for shape, dim in (((3, 4), 1), ((2, 3, 5), -2), ((0, 4), 1), ((7,), 0)):
            x = torch.randn(shape)
            got = ops.softmax(x, dim)
            torch.testing.assert_close(got, torch.softmax(x, dim))
            assert type(got) is Tensor and not got.requires_grad and got.is_inference() == (mode is torch.inference_mode)
        leaf = torch.randn(3, 4, requires_grad=True)
        assert not ops.softmax(leaf, 1).requires_grad
        view = torch.randn(5, 6).t()[1:, ::2]
        torch.testing.assert_close(ops.softmax(view, 0), torch.softmax(view, 0))
        double = torch.randn(3, 4, dtype=torch.float64)  # no Kernel's: torch's own, called from there
        torch.testing.assert_close(ops.softmax(double, 1), torch.softmax(double, 1))
    assert otherwise == []


def _modes() -> dict[str, Callable[[Callable[[Tensor], Any], Tensor], Any]]:
    class Seen(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            names.append(func.name())
            return func(*args, **(kwargs or {}))

    names: list[str] = []

    def dispatch(f: Any, x: Tensor) -> Any:
        with Seen():
            f(x)
        assert "kgen::_softmax" in names, names

    def profiled(f: Any, x: Tensor) -> Any:
        with torch.profiler.profile() as p:
            f(x)
        assert any(e.name == "kgen::_softmax" for e in p.events()), [e.name for e in p.events()]

    def traced(f: Any, x: Tensor) -> Any:
        assert "softmax" in str(torch.jit.trace(f, (x,)).graph)

    def dual(f: Any, x: Tensor) -> Any:
        with forward_ad.dual_level():
            d = forward_ad.make_dual(x, torch.ones_like(x))
            want = forward_ad.unpack_dual(torch.softmax(d, 1)).tangent
            torch.testing.assert_close(forward_ad.unpack_dual(f(d)).tangent, want)

    def vmapped(f: Any, x: Tensor) -> Any:
        torch.testing.assert_close(torch.vmap(f)(torch.stack([x, 2 * x]))[1], torch.softmax(2 * x, 1))

    def functional(f: Any, x: Tensor) -> Any:
        torch.testing.assert_close(torch.func.functionalize(f)(x), torch.softmax(x, 1))

    def cast(f: Any, x: Tensor) -> Any:
        with torch.autocast("cpu", torch.bfloat16):
            assert f(x).dtype == torch.softmax(x, 1).dtype

    def negative(f: Any, x: Tensor) -> Any:
        torch.testing.assert_close(f(torch._neg_view(x)), torch.softmax(-x, 1))

    def parameter(f: Any, x: Tensor) -> Any:
        torch.testing.assert_close(f(torch.nn.Parameter(x)), torch.softmax(x, 1))

    def meta(f: Any, x: Tensor) -> Any:
        assert f(x.to("meta")).shape == x.shape

    return dict(dispatch=dispatch, profiled=profiled, traced=traced, dual=dual, vmapped=vmapped, functional=functional,
                cast=cast, negative=negative, parameter=parameter, meta=meta)  # fmt: skip


@pytest.mark.parametrize("name", sorted(_modes()))
def test_what_is_not_plain_takes_the_whole_way(otherwise: list[Any], name: str) -> None:
    x = torch.randn(3, 4)
    with torch.no_grad():
        _modes()[name](lambda t: ops.softmax(t, 1), x)
        assert len(otherwise) >= 1
        before = len(otherwise)
        ops.softmax(x, 1)
    assert len(otherwise) == before  # and nothing of it stays


def test_other_arguments_take_the_whole_way(otherwise: list[Any]) -> None:
    x = torch.randn(3, 4)
    with torch.no_grad():
        torch.testing.assert_close(ops.softmax(x, dim=1), torch.softmax(x, 1))
        torch.testing.assert_close(ops.softmax(input=x, dim=1), torch.softmax(x, 1))
        for wrong in ((x,), (x, 1, 2), (x, "1"), (x, 1 << 70), ([1.0], 0), (None, 1)):
            with pytest.raises((TypeError, RuntimeError, OverflowError, ValueError)):
                ops.softmax(*wrong)
        with pytest.raises((IndexError, RuntimeError), match="Dimension out of range"):
            ops.softmax(x, 5)
        with pytest.raises((IndexError, RuntimeError), match="Dimension out of range"):
            ops.softmax.default(x, 5)


def _qkv(*shape: int, **how: Any) -> tuple[Tensor, Tensor, Tensor]:
    q, k, v = (torch.randn(*shape, **how) for _ in range(3))
    return q, k, v


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_plain_attention_takes_it(attention_otherwise: list[Any], mode: Any) -> None:
    with mode():
        for shape in ((1, 1, 2, 16), (2, 3, 65, 64), (1, 2, 0, 16)):
            q, k, v = _qkv(*shape)
            got = ops.attention(q, k, v)
            torch.testing.assert_close(got, sdpa(q, k, v))
            assert type(got) is Tensor and not got.requires_grad and got.is_inference() == (mode is torch.inference_mode)
            torch.testing.assert_close(ops.attention(q, k, v, is_causal=True), sdpa(q, k, v, is_causal=True))
            torch.testing.assert_close(ops.attention(q, k, v, is_causal=False), got)
        q, k, v = _qkv(2, 5, 3, 16)
        views = [t.transpose(1, 2) for t in (q, k, v)]
        torch.testing.assert_close(ops.attention(*views), sdpa(*views))
        for others in (_qkv(3, 8, 16), _qkv(1, 2, 4, 16, dtype=torch.float64)):  # no Kernel's: torch's own, called from there
            torch.testing.assert_close(ops.attention(*others), sdpa(*others))
        leaves = _qkv(1, 1, 2, 16, requires_grad=True)
        assert not ops.attention(*leaves).requires_grad
    assert attention_otherwise == []


def test_gradients_take_it(otherwise: list[Any], attention_otherwise: list[Any]) -> None:
    x = torch.randn(3, 4, requires_grad=True)
    got = ops.softmax(x, -1)
    weight = torch.randn(3, 4)
    (mine,) = torch.autograd.grad((got * weight).sum(), x, create_graph=True)
    (want,) = torch.autograd.grad((torch.softmax(x, -1) * weight).sum(), x, create_graph=True)
    torch.testing.assert_close((got, mine), (torch.softmax(x, -1), want))
    second = [torch.autograd.grad(g.square().sum(), x)[0] for g in (mine, want)]
    torch.testing.assert_close(*second)
    assert got.grad_fn is not None and ops.softmax(torch.exp(x), 1).requires_grad
    for needs in ((True, True, True), (True, False, False), (False, False, True)):
        for causal in ({}, {"is_causal": True}, {"is_causal": False}):
            qkv = [t.requires_grad_(n) for t, n in zip(_qkv(2, 3, 5, 16), needs)]
            leaves = [t for t in qkv if t.requires_grad]
            found = [torch.autograd.grad(f(*qkv, **causal).square().sum(), leaves) for f in (ops.attention, sdpa)]
            torch.testing.assert_close(*found)
    assert otherwise == attention_otherwise == []
    with pytest.raises((IndexError, RuntimeError), match="Dimension out of range"):
        ops.softmax(x, 5)
    with torch.inference_mode():
        old = torch.randn(3, 4)
    assert not ops.softmax(old, 1).requires_grad and not ops.softmax(torch.randn(3, 4), 1).requires_grad
    assert otherwise == []


def test_attention_without_a_function_keeps_second_derivatives(attention_otherwise: list[Any]) -> None:
    """Of what is no Kernel's, torch's own attention is differentiated."""
    for qkv in (_qkv(1, 2, 4, 16, dtype=torch.float64, requires_grad=True), _qkv(2, 4, 16, requires_grad=True)):
        with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
            (first,) = torch.autograd.grad(ops.attention(*qkv).square().sum(), qkv[0], create_graph=True)
            assert torch.autograd.grad(first.square().sum(), qkv[0])[0].shape == qkv[0].shape
    assert len(attention_otherwise) == 2


def test_other_attention_takes_the_whole_way(attention_otherwise: list[Any]) -> None:
    q, k, v = _qkv(1, 2, 4, 16)
    mask = torch.ones(4, 4, dtype=torch.bool).tril()
    calls: list[tuple[tuple[Any, ...], dict[str, Any]]] = [
        ((q, k, v, mask), {}), ((q, k, v), {"attn_mask": mask}), ((q, k, v), {"scale": 0.5}), ((q, k), {"value": v}),
        ((q, k, v), {"is_causal": True, "scale": 0.5}), ((q, k, v, None, 0.0, True), {}),
        ((q, k[:, :1], v[:, :1]), {"enable_gqa": True}), ((torch.nn.Parameter(q), k, v), {}),
    ]  # fmt: skip
    with torch.no_grad():
        for args, kwargs in calls:
            torch.testing.assert_close(ops.attention(*args, **kwargs), sdpa(*args, **kwargs))
        for args, kwargs in (((q, k), {}), ((q, k, None), {}), ((q, k, v), {"is_causal": "yes"}), ((q, k, v), {"causal": True})):
            with pytest.raises((TypeError, RuntimeError)):
                ops.attention(*args, **kwargs)
    assert len(attention_otherwise) == len(calls) + 4
    with torch.autocast("cpu", torch.bfloat16), torch.no_grad():
        assert ops.attention(q, k, v).dtype == sdpa(q, k, v).dtype == torch.bfloat16
    assert len(attention_otherwise) == len(calls) + 5


def test_nothing_of_attention_is_kept(attention_otherwise: list[Any]) -> None:
    q, k, v = _qkv(1, 1, 2, 16)
    flat = _qkv(2, 16)
    with torch.no_grad():
        ops.attention(q, k, v, is_causal=True)
        kept = (*flat, q, k, v)
        before = [sys.getrefcount(o) for o in kept]
        for _ in range(100):
            ops.attention(q, k, v, is_causal=True)
            ops.attention(*flat)
            with pytest.raises(RuntimeError):
                ops.attention(q, k[..., :8], v)
        assert [sys.getrefcount(o) for o in kept] == before
        assert sys.getrefcount(ops.attention(q, k, v)) == sys.getrefcount(sdpa(q, k, v))


def test_nothing_is_kept(otherwise: list[Any]) -> None:
    x = torch.randn(3, 4)
    with torch.no_grad():
        ops.softmax(x, 1)
        one, before = 1000001, sys.getrefcount(x)
        number = sys.getrefcount(one)
        for _ in range(100):
            ops.softmax(x, 1)
            with pytest.raises((IndexError, RuntimeError)):
                ops.softmax(x, one)
    assert (sys.getrefcount(x), sys.getrefcount(one)) == (before, number)
    with torch.no_grad():
        ours, theirs = ops.softmax(x, 1), torch.softmax(x, 1)
    assert sys.getrefcount(ours) == sys.getrefcount(theirs)


def test_a_warning_names_the_callers_line(otherwise: list[Any]) -> None:
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        kgen._native._warn(2, b"something")
    assert [w.filename for w in seen] == [__file__]


SCRIPT = """
import torch
{before}
import kgen
from kgen import eager
x = torch.randn(3, 4)
with torch.no_grad():
    torch.testing.assert_close(torch.ops.kgen.softmax(x, 1), torch.softmax(x, 1))
print(eager.why_shut())
"""


@pytest.mark.parametrize(
    ("before", "env", "why"),
    [
        ("", {}, "None"),
        ("", {"KGEN_EAGER": "0"}, "KGEN_EAGER is 0"),
        ("full = torch._C._dispatch_keyset_full(); torch._C._dispatch_keys = lambda t: full", {}, "where a tensor has its keys"),
        ("torch._C._dispatch_tls_local_exclude_set = torch._C._dispatch_keyset_full", {}, "a thread's keys elsewhere"),
    ],
    ids=["open", "by wish", "keys of tensors", "keys of threads"],
)
def test_where_torch_looks_otherwise_it_stays_shut(kgen_server: Server, before: str, env: dict[str, str], why: str) -> None:
    done = kgen_server.run(code=SCRIPT.format(before=before), env={"KGEN_LOG": "info", **env})
    assert done.code == 0, done.err
    assert why in done.out, done.out
    assert why == "None" or f"kgen: calls from eager code take the dispatcher's way: {done.out.strip()}" in done.err
