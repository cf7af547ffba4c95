"""What attention refuses and what it gives for odd inputs, beside FlexAttention: where that computes, the same values (or a
refusal that says what is asked); where that fails, a message that names the matter, or a result that is said here."""

from __future__ import annotations

import itertools
import math
import warnings
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.attention.flex_attention import create_block_mask, flex_attention

from kgen import attention
from kgen.errors import BadInput, KgenError
from kgen.trace import TraceError

Mod = Any
SEEDS = itertools.count()


def made(b: int = 2, h: int = 4, s: int = 24, d: int = 16, dtype: torch.dtype = torch.float32, device: str = "cpu") -> Tensor:
    g = torch.Generator().manual_seed(next(SEEDS))
    return torch.randn(b, h, s, d, generator=g).to(dtype).to(device)


def relative(s: Any, b: Any, h: Any, i: Any, j: Any) -> Any:
    return s + (i - j)


def flex(q: Tensor, k: Tensor, v: Tensor, score: Mod = None, mask: Mod = None, **more: Any) -> tuple[Tensor, Tensor]:
    blocks = None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if mask is not None:
            blocks = create_block_mask(mask, None, None, q.shape[2], k.shape[2], device=q.device.type)
        return flex_attention(q, k, v, score, blocks, return_lse=True, **more)


def refused(what: str, q: Tensor, k: Tensor, v: Tensor, **more: Any) -> None:
    """By every path: plain, with a score function, with a mask, with the log-sum-exp."""
    for way in ({}, {"score_mod": relative}, {"mask_mod": lambda b, h, i, j: i >= j}, {"return_lse": True}):
        with pytest.raises(BadInput, match=what):
            attention(q, k, v, **way, **more)


# Inputs, what kgen says, and whether FlexAttention refuses too (in eager mode it computes some by promotion).
REFUSED: dict[str, tuple[tuple[Tensor, Tensor, Tensor], dict[str, Any], str, bool]] = {
    "dtype of key": ((made(), made(dtype=torch.float16), made()), {}, "one dtype.*float32.*float16", False),
    "dtype of value": ((made(), made(), made(dtype=torch.bfloat16)), {}, "one dtype.*bfloat16", False),
    "device": ((made(), made(device="meta"), made()), {}, "one device.*cpu, meta, cpu", True),
    "shared heads unasked": ((made(), made(h=2), made(h=2)), {}, "4 heads of queries and 2 of keys: enable_gqa", True),
    "heads that do not divide": ((made(), made(h=3), made(h=3)), {"enable_gqa": True}, "4 heads of queries cannot share 3", True),
    "more heads of keys": ((made(h=2), made(), made()), {"enable_gqa": True}, "2 heads of queries cannot share 4", True),
    "heads of value": ((made(), made(h=2), made(h=4)), {"enable_gqa": True}, "do not go together.*value", True),
    "head dim": ((made(), made(d=8), made()), {}, r"do not go together.*key \(2, 4, 24, 8\)", True),
    "batch": ((made(), made(b=1), made(b=1)), {}, "do not go together", True),
    "another batch": ((made(), made(b=3), made(b=3)), {}, "do not go together", True),
    "length of value": ((made(), made(s=20), made(s=21)), {}, r"do not go together.*value \(2, 4, 21, 16\)", True),
    "three dims": ((made()[0], made()[0], made()[0]), {}, r"\(B, H, S, D\); their sizes are \(4, 24, 16\)", True),
    "no heads": ((made(h=0), made(h=0), made(h=0)), {}, "0 heads of queries", True),
    "head dim 0": ((made(d=0), made(d=0), made()), {}, "head dim of 0 has no usual scale", True),
    "fp8": ((*(made().to(torch.float8_e4m3fn) for _ in range(3)),), {}, "not torch.float8_e4m3fn: convert", True),
    "integers": ((*(made().to(torch.int32) for _ in range(3)),), {}, "not torch.int32", False),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_inputs_that_do_not_go_together(name: str) -> None:
    (q, k, v), more, said, theirs = REFUSED[name]
    refused(said, q, k, v, **more)
    if theirs:
        with pytest.raises(Exception):  # noqa: B017 - of any kind: that theirs is an error is the point
            flex(q, k, v, **more)
    else:
        flex(q, k, v, **more)


# Inputs that FlexAttention computes too, unless said: the values agree.
COMPUTED: dict[str, tuple[Tensor, Tensor, Tensor]] = {
    "head dim 300": (made(d=300), made(d=300), made(d=300)),
    "other width of values": (made(), made(), made(d=40)),
    "width of values 0": (made(), made(), made(d=0)),
    "one query, one key": (made(s=1), made(s=1), made(s=1)),
    "empty batch": (made(b=0), made(b=0), made(b=0)),
    "fp64": (made(dtype=torch.float64), made(dtype=torch.float64), made(dtype=torch.float64)),
}


@pytest.mark.parametrize("name", COMPUTED)
@pytest.mark.parametrize("score", [None, relative])
def test_odd_inputs_are_flex_attentions(name: str, score: Mod) -> None:
    q, k, v = COMPUTED[name]
    got, want = attention(q, k, v, score), flex(q, k, v, score)[0]
    assert got.dtype == want.dtype and got.shape == want.shape
    torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("score", [None, relative])
def test_empty_sequences(score: Mod) -> None:
    """No queries: no rows. No keys: no allowed key, so zeros and -inf, where FlexAttention fails."""
    full, none = made(), made(s=0)
    out, lse = attention(none, full, full, score, return_lse=True)
    assert out.shape == (2, 4, 0, 16) and lse.shape == (2, 4, 0)
    out, lse = attention(full, none, none, score, return_lse=True)
    assert torch.equal(out, torch.zeros_like(full)) and (lse == -math.inf).all() and lse.shape == (2, 4, 24)
    assert torch.equal(attention(full, none, none, score), torch.zeros_like(full))
    with pytest.raises(Exception):  # noqa: B017
        flex(full, none, none, score)
    grads = torch.autograd.grad(attention(*(t.requires_grad_() for t in (full, none, none)), score).sum(), full)
    assert torch.equal(grads[0], torch.zeros_like(full))


@pytest.mark.parametrize("score", [None, relative])
def test_no_allowed_key_at_all(score: Mod) -> None:
    q, k, v = made(), made(s=40), made(s=40)
    nobody: Mod = lambda b, h, i, j: i < -5  # noqa: E731
    out, lse = attention(q, k, v, score, mask_mod=nobody, return_lse=True)
    want, _ = flex(q, k, v, score, nobody)
    assert torch.equal(out, torch.zeros_like(out)) and (lse == -math.inf).all()
    torch.testing.assert_close(out, want)


# Results of a score function other than a float: those that FlexAttention takes have its values.
@pytest.mark.parametrize("score", [
    lambda s, b, h, i, j: i >= j, lambda s, b, h, i, j: i - j, lambda s, b, h, i, j: torch.where(i >= j, i, j),
])  # fmt: skip
def test_scores_that_are_no_floats(score: Mod) -> None:
    q, k, v = made(), made(), made()
    torch.testing.assert_close(attention(q, k, v, score), flex(q, k, v, score)[0], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("score", "said"), [
    (lambda s, b, h, i, j: None, "must return a number of 0 dims, not NoneType"),
    (lambda s, b, h, i, j: (s, s), "must return a number of 0 dims, not tuple"),
    (lambda s, b, h, i, j: "s", "must return a number of 0 dims, not str"),
    (lambda s, b, h, i, j: s + torch.arange(3), r"tensor of shape \(3,\)"),
    (lambda s: s, "takes 1 positional argument but 5 were given"),
    (lambda s, b, h, i, j: s if i >= j else -s, "Python branch"),
    (lambda s, b, h, i, j: s * s.item(), "item"),
    (lambda s, b, h, i, j: torch.erfinv(s), "torch.erfinv"),
])  # fmt: skip
def test_score_functions_that_cannot_be_served(score: Mod, said: str) -> None:
    q, k, v = made(), made(), made()
    with pytest.raises(TraceError, match=said):
        attention(q, k, v, score)
    if "erfinv" not in said:
        with pytest.raises(Exception):  # noqa: B017
            flex(q, k, v, score)


@pytest.mark.parametrize(("mask", "said"), [
    (lambda b, h, i, j: (i - j) * 1.0, "must return a bool, not a float"),
    (lambda b, h, i, j: None, "must return a bool of 0 dims, not NoneType"),
])  # fmt: skip
def test_masks_that_are_no_bools(mask: Mod, said: str) -> None:
    q, k, v = made(), made(), made()
    with pytest.raises(TraceError, match=said):
        attention(q, k, v, mask_mod=mask)
    with pytest.raises(Exception):  # noqa: B017
        flex(q, k, v, None, mask)


@pytest.mark.cuda
def test_captured_tensors_of_another_device() -> None:
    q, k, v = (made(device="cuda") for _ in range(3))
    slopes = torch.linspace(0.1, 1, 4)
    biased: Mod = lambda s, b, h, i, j: s + slopes[h] * (i - j)  # noqa: E731
    with pytest.raises(KgenError, match=r"captured tensor 0, of shape \(4,\), is on cpu; query is on cuda"):
        attention(q, k, v, biased)
    with pytest.raises(Exception):  # noqa: B017
        flex(q, k, v, biased)
    refused("one device.*cuda:0, cpu, cpu", q, made(), made())
    number = torch.tensor(2.0)
    scaled: Mod = lambda s, b, h, i, j: s * number  # noqa: E731
    torch.testing.assert_close(attention(q, k, v, scaled).cpu(), attention(q.cpu(), k.cpu(), v.cpu(), scaled), rtol=1e-3, atol=1e-3)
