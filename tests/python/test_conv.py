"""kgen's conv2d against torch's, with and without an epilogue: values, memory formats, errors, gradients, compile, export,
vmap, autocast, recognition and patch; each once served by a kernel that reads every stride and once by torch's own."""

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
from torch import Tensor, nn
from torch.library import opcheck

import kgen
from kgen import _libkgen, convs, graphs, mutants, recognise, reference, rewrite, spread
from kgen.convolution import contract_dims, is_channels_last, user_dims
from kgen.convs import At
from kgen.epilogues import named
from kgen.errors import BadInput
from kgen.task import canonical_contract

ops = torch.ops.kgen
pytestmark = pytest.mark.usefixtures("nothing_shipped")

KERNEL = """/* kgen
{ "format": 1, "op": "conv2d", "target": "cpu", "holes": ["EPILOGUE"],
  "launches": [{"kernel": "image", "range": "N",
    "args": ["input", "weight", "bias", "output", "programs", {"i64": "O"}, {"i64": "CG"}, {"i64": "H"}, {"i64": "W"}, {"i64": "KH"},
             {"i64": "KW"}, {"i64": "SH"}, {"i64": "SW"}, {"i64": "PH"}, {"i64": "PW"}, {"i64": "DH"}, {"i64": "DW"}, {"i64": "G"},
             {"i64": "OW"}, {"i64": "P"}, {"i64": "channels_last"}, {"i64": "input.stride(0)"}, {"i64": "input.stride(1)"},
             {"i64": "input.stride(2)"}, {"i64": "input.stride(3)"}, {"i64": "weight.stride(0)"}, {"i64": "weight.stride(1)"},
             {"i64": "weight.stride(2)"}, {"i64": "weight.stride(3)"}, {"i64": "present(bias) ? bias.stride(0) : 0"}]}] }
*/
#include <stdint.h>
void image(int64_t begin, int64_t end, const KG_T_input *x, const KG_T_weight *w, const KG_T_bias *bias, KG_T_output *out,
           KG_PROGRAMS programs, int64_t o, int64_t cg, int64_t h, int64_t wide, int64_t kh, int64_t kw, int64_t sh, int64_t sw,
           int64_t ph, int64_t pw, int64_t dh, int64_t dw, int64_t g, int64_t ow, int64_t p, int64_t last, int64_t x0, int64_t x1,
           int64_t x2, int64_t x3, int64_t w0, int64_t w1, int64_t w2, int64_t w3, int64_t b0) {
    for (int64_t at = begin * o * p; at < end * o * p; at++) {
        int64_t n = at / (o * p), m = at / (last ? o : p) % (last ? p : o), c = at % (last ? o : p);
        int64_t channel = last ? c : m, pixel = last ? m : c, first = channel / (o / g) * cg;
        double sum = bias ? (double)bias[channel * b0] : 0.0;
        for (int64_t k = 0; k < cg * kh * kw; k++) {
            int64_t i = k / kw % kh, j = k % kw, y = pixel / ow * sh - ph + i * dh, z = pixel % ow * sw - pw + j * dw;
            if (y >= 0 && y < h && z >= 0 && z < wide)
                sum += (double)x[n * x0 + (first + k / (kh * kw)) * x1 + y * x2 + z * x3] *
                       (double)w[channel * w0 + k / (kh * kw) * w1 + i * w2 + j * w3];
        }
        out[at] = kg_epilogue(programs, kg_epilogue_row(programs, (int)n, (int)m), (float)sum, (int)n, (int)m, (int)c);
    }
}
"""


def key(bias: bool, last: bool, program: str | None) -> dict[str, Any]:
    dims = {d: sr.WIDE for d in ("N", "C", "H", "W", "O", "CG", "KH", "KW", "SH", "SW", "DH", "DW", "G")}
    return {
        "op": "conv2d", "device": "cpu", "precision": "native", "dtypes": ["float32", "float32", "float32" if bias else None],
        "layout": ["s", "s", "s" if bias else "-"], "attrs": {"channels_last": last}, "program": program,
        "dims": {**dims, "PH": {"min": 0, "max": 99}, "PW": {"min": 0, "max": 99}},
    }  # fmt: skip


KEYS = [key(bias, last, p) for bias in (True, False) for last in (True, False) for p in (None, "*")]


@pytest.fixture(scope="session")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("convolutions") / "generated"
    sr.promote(folder, "conv2d", KERNEL, KEYS)
    return folder


@pytest.fixture(params=["kernels", "fallback"])
def served(request: pytest.FixtureRequest, registry: Path) -> Iterator[bool]:
    """Whether a kernel serves fp32 calls of any layout."""
    if request.param == "kernels":
        kgen.load(registry)
    yield request.param == "kernels"
    if request.param == "kernels":
        kgen.unload(registry)


def by_kernel(call: Callable[[], object]) -> bool:
    decisions = kgen.why(call).decisions
    return bool(decisions) and all(d.kernel is not None for d in decisions)


def close(got: Tensor, want: Tensor, tolerance: float = 2e-5) -> None:
    """Values, and where they lie in memory."""
    assert got.stride() == want.stride(), f"{got.stride()} in place of {want.stride()}"
    torch.testing.assert_close(got, want, rtol=tolerance, atol=tolerance, equal_nan=True)


def draw(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape) + len(shape)))


def last(t: Tensor) -> Tensor:
    return t.to(memory_format=torch.channels_last)


def leaf(t: Tensor) -> Tensor:
    return t.clone().requires_grad_()


# Input, weight, bias, and the other arguments; whether they are a call of the contract.
CONVS: dict[str, tuple[Callable[[], tuple[Tensor, Tensor, Tensor | None]], dict[str, Any], bool]] = {
    "plain": (lambda: (draw(2, 3, 9, 8), draw(5, 3, 3, 3), draw(5)), {}, True),
    "no bias": (lambda: (draw(2, 3, 9, 8), draw(5, 3, 3, 3), None), dict(padding=1), True),
    "each number": (lambda: (draw(2, 4, 12, 11), draw(6, 4, 3, 2), draw(6)), dict(stride=(2, 3), padding=(2, 1), dilation=(1, 2)), True),
    "groups": (lambda: (draw(2, 6, 9, 8), draw(9, 2, 3, 3), draw(9)), dict(stride=2, groups=3), True),
    "depthwise": (lambda: (draw(2, 6, 9, 8), draw(12, 1, 3, 3), draw(12)), dict(padding=1, groups=6), True),
    "1 x 1": (lambda: (draw(2, 6, 5, 4), draw(3, 6, 1, 1), draw(3)), {}, True),
    "one image": (lambda: (draw(3, 9, 8), draw(5, 3, 3, 3), draw(5)), dict(padding=1), True),
    "one pixel": (lambda: (draw(1, 1, 1, 1), draw(1, 1, 1, 1), None), {}, True),
    "kernel of all": (lambda: (draw(2, 3, 5, 4), draw(7, 3, 5, 4), draw(7)), {}, True),
    "padding beyond the kernel": (lambda: (draw(1, 2, 3, 3), draw(2, 2, 2, 2), None), dict(padding=4), True),
    "channels last": (lambda: (last(draw(2, 3, 9, 8)), draw(5, 3, 3, 3), draw(5)), dict(padding=1), True),
    "its weight is": (lambda: (draw(2, 3, 9, 8), last(draw(5, 3, 3, 3)), draw(5)), dict(stride=2), True),
    "both are": (lambda: (last(draw(2, 4, 9, 8)), last(draw(6, 2, 3, 3)), draw(6)), dict(groups=2), True),
    "depthwise, channels last": (lambda: (last(draw(2, 6, 9, 8)), draw(12, 1, 3, 3), draw(12)), dict(groups=6), False),
    "one image, weight last": (lambda: (draw(3, 9, 8), last(draw(5, 3, 3, 3)), draw(5)), {}, True),
    "gaps": (lambda: (draw(2, 6, 9, 16)[:, ::2, :, ::2], draw(5, 3, 3, 6)[..., ::2], draw(10)[::2]), {}, True),
    "misaligned": (lambda: (draw(2 * 3 * 9 * 8 + 1)[1:].view(2, 3, 9, 8), draw(5, 3, 3, 3), draw(5)), {}, True),
    "overlapping": (lambda: (draw(40).as_strided((2, 3, 4, 5), (3, 7, 2, 1)), draw(5, 3, 3, 3), draw(5)), {}, True),
    "turned": (lambda: (draw(9, 8, 2, 3).permute(2, 3, 0, 1), draw(5, 3, 3, 3), draw(5)), {}, True),
    "one for all": (lambda: (draw(1, 3, 9, 8).expand(4, 3, 9, 8), draw(5, 3, 3, 3), draw(5)), {}, True),
    "no images": (lambda: (draw(0, 3, 9, 8), draw(5, 3, 3, 3), draw(5)), {}, False),
    "no channels out": (lambda: (draw(2, 3, 9, 8), draw(0, 3, 3, 3), draw(0)), {}, False),
    "double": (lambda: (draw(2, 3, 9, 8).double(), draw(5, 3, 3, 3).double(), None), {}, False),
    "half": (lambda: (draw(2, 3, 9, 8).half(), draw(5, 3, 3, 3).half(), draw(5).half()), {}, False),
    "bfloat16": (lambda: (draw(2, 3, 9, 8).bfloat16(), draw(5, 3, 3, 3).bfloat16(), None), {}, False),
}  # fmt: skip


@pytest.mark.parametrize("name", CONVS)
def test_conv2d_is_torchs(served: bool, name: str) -> None:
    make, rest, ours = CONVS[name]
    x, w, b = make()
    try:
        want = F.conv2d(x, w, b, **rest)
    except RuntimeError as e:  # a torch that refuses what another takes
        with pytest.raises(RuntimeError, match=str(e).splitlines()[0][:40].replace("(", ".").replace("[", ".")):
            ops.conv2d(x, w, b, **rest)
        return
    close(ops.conv2d(x, w, b, **rest), want)
    assert by_kernel(lambda: ops.conv2d(x, w, b, **rest)) == (served and ours)
    if want.dtype != torch.float32 or not want.numel():
        return
    close(kgen.conv2d(x, w, b, **rest, epilogue=lambda v: torch.relu(v) * 3.0), torch.relu(want) * 3.0)
    full, channel, row = draw(*want.shape), draw(want.shape[-3], 1, 1), draw(want.shape[-1])
    close(kgen.conv2d(x, w, b, **rest, epilogue=lambda v, r, c: F.gelu(v) * r + c, captures=(full, channel)), F.gelu(want) * full + channel)
    got = kgen.conv2d(x, w, b, **rest, epilogue=lambda v, r: v - r, captures=(row,))  # whose pixels do not fold
    close(got, want - row)


@pytest.mark.parametrize("padding, kernel, dilation", [("same", (3, 3), 1), ("same", (2, 4), 1), ("same", (3, 2), (2, 3)), ("valid", (3, 3), 1)])
def test_padding_by_word(served: bool, padding: str, kernel: tuple[int, int], dilation: Any) -> None:
    x, w = draw(2, 3, 9, 8), draw(5, 3, *kernel)
    close(kgen.conv2d(x, w, padding=padding, dilation=dilation), F.conv2d(x, w, padding=padding, dilation=dilation))


BAD: dict[str, Callable[[Any], object]] = {
    "channels": lambda conv: conv(draw(2, 4, 9, 8), draw(5, 3, 3, 3)),
    "groups that do not divide": lambda conv: conv(draw(2, 4, 9, 8), draw(6, 1, 3, 3), None, 1, 0, 1, 3),
    "outputs that groups do not divide": lambda conv: conv(draw(2, 4, 9, 8), draw(5, 2, 3, 3), None, 1, 0, 1, 2),
    "no groups": lambda conv: conv(draw(2, 4, 9, 8), draw(5, 4, 3, 3), None, 1, 0, 1, 0),
    "negative groups": lambda conv: conv(draw(2, 4, 9, 8), draw(5, 4, 3, 3), None, 1, 0, 1, -1),
    "negative padding": lambda conv: conv(draw(2, 3, 9, 8), draw(5, 3, 3, 3), None, 1, -1),
    "stride of 0": lambda conv: conv(draw(2, 3, 9, 8), draw(5, 3, 3, 3), None, 0),
    "negative stride": lambda conv: conv(draw(2, 3, 9, 8), draw(5, 3, 3, 3), None, -1),
    "dilation of 0": lambda conv: conv(draw(2, 3, 9, 8), draw(5, 3, 3, 3), None, 1, 0, 0),
    "no output": lambda conv: conv(draw(2, 3, 2, 8), draw(5, 3, 3, 3)),
    "no output of a dilated kernel": lambda conv: conv(draw(2, 3, 9, 8), draw(5, 3, 3, 3), None, 1, 0, 5),
    "empty kernel": lambda conv: conv(draw(2, 3, 9, 8), draw(5, 3, 0, 3)),
    "no rows": lambda conv: conv(draw(2, 3, 0, 8), draw(5, 3, 3, 3)),
    "three strides": lambda conv: conv(draw(2, 3, 9, 8), draw(5, 3, 3, 3), None, [1, 1, 1]),
    "bias": lambda conv: conv(draw(2, 3, 9, 8), draw(5, 3, 3, 3), draw(4)),
    "bias of two dims": lambda conv: conv(draw(2, 3, 9, 8), draw(5, 3, 3, 3), draw(5, 1)),
    "dtypes": lambda conv: conv(draw(2, 3, 9, 8), draw(5, 3, 3, 3).double()),
    "bias's dtype": lambda conv: conv(draw(2, 3, 9, 8), draw(5, 3, 3, 3), draw(5).half()),
    "two dims": lambda conv: conv(draw(9, 8), draw(5, 3, 3, 3)),
    "five dims": lambda conv: conv(draw(1, 2, 3, 9, 8), draw(5, 3, 3, 3)),
    "weight of three dims": lambda conv: conv(draw(2, 3, 9, 8), draw(5, 3, 3)),
}


@pytest.mark.parametrize("bad", BAD)
@pytest.mark.parametrize("grad", [False, True])
def test_errors_are_torchs(served: bool, bad: str, grad: bool) -> None:
    with torch.set_grad_enabled(grad):
        with pytest.raises(Exception) as want:  # noqa: B017
            BAD[bad](F.conv2d)
        with pytest.raises(type(want.value)) as got:
            BAD[bad](ops.conv2d)
    if tuple(int(v) for v in torch.__version__.split(".")[:2]) >= (2, 13):
        assert str(want.value).splitlines()[0] in str(got.value)


def test_huge_views_are_only_seen(served: bool) -> None:
    """Sizes of 2^31 and more overflow nothing; torch's own error is told."""
    huge = torch.zeros(1).expand(1 << 19, 3, 1 << 20, 1 << 20)
    for weight, padding in ((draw(5, 3, 3, 3), 0), (draw(5, 3, 3, 3), 1 << 62)):
        with pytest.raises(RuntimeError):
            ops.conv2d(huge, weight, None, 1, padding)


def test_special_numbers_spread_as_torchs(served: bool) -> None:
    x, w = draw(2, 3, 9, 8), draw(5, 3, 3, 3)
    x[0, 1, 2, 3], x[0, 2, 5, 6], x[1, 0, 0, 0], x[1, 1] = torch.nan, torch.inf, -torch.inf, 1e-40
    close(ops.conv2d(x, w), F.conv2d(x, w))
    close(kgen.conv2d(x, w, epilogue=torch.relu), torch.relu(F.conv2d(x, w)))


PROGRAM = "program 1\ntensor t0 float32 3\nepilogue\n%0 = load float32 t0 {at}\n%1 = add float32 acc %0\nreturn %1\n"
INDICES = ("program 1\ntensor t0 float32 3\nscalar s0 float32\nepilogue\n%0 = rem int32 n 2\n%1 = load float32 t0 b m %0\n%2 = mul float32 %1 s0\n"
           "%3 = cast float32 m\n%4 = add float32 %2 %3\n%5 = add float32 acc %4\nreturn %5\n")  # fmt: skip


@pytest.mark.parametrize("of_last", [False, True])
def test_an_epilogue_reads_the_indices_of_the_contracts_output(served: bool, of_last: bool) -> None:
    x, w, r = draw(2, 3, 5, 6), draw(4, 3, 2, 3), draw(2, 4, 4, 4)
    x = last(x) if of_last else x
    y, table = (contract_dims(t, of_last) for t in (F.conv2d(x, w), r))
    want = y + 0.5 * table[:, :, torch.arange(y.shape[2]) % 2] + torch.arange(float(y.shape[1]))[:, None]
    close(ops.conv2d_mod(x, w, None, [1, 1], [0, 0], [1, 1], 1, [last(r) if of_last else r], [0.5], INDICES),
          user_dims(want, r.shape, of_last))  # fmt: skip


def test_programs_that_do_not_fit_are_refused(served: bool) -> None:
    x, w, rest = draw(2, 3, 5, 6), draw(4, 3, 2, 3), ([1, 1], [0, 0], [1, 1], 1)
    with pytest.raises(RuntimeError, match="no epilogue section"):
        ops.conv2d_mod(x, w, None, *rest, [], [], "program 1\nmask\n%0 = ge bool q kv\nreturn %0\n")
    with pytest.raises(RuntimeError, match="takes no captured tensors"):
        ops.conv2d_mod(x, w, None, *rest, [draw(4, 1, 1)], [], "")
    with pytest.raises(RuntimeError, match="does not broadcast to the output"):
        ops.conv2d_mod(x, w, None, *rest, [draw(3, 1, 1)], [], PROGRAM.format(at="b m n"))
    with pytest.raises(RuntimeError, match="with 1 indices; it has 3"):
        ops.conv2d_mod(x, w, None, *rest, [draw(4)], [], PROGRAM.format(at="n").replace("float32 3", "float32 1"))
    with pytest.raises(BadInput, match="captures are for an epilogue"):
        kgen.conv2d(x, w, captures=(draw(4),))


def test_a_program_that_was_applied_wrongly_is_seen(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """The first call with a Program that a Kernel was not judged on is compared; a wrong result never leaves."""
    wrong = KERNEL.replace("(float)sum, (int)n", "(float)sum * 1.01f, (int)n")
    sr.promote(tmp_path / "wrong", "conv2d", wrong, KEYS)
    kgen.load(tmp_path / "wrong")
    try:
        x, w = last(draw(2, 3, 9, 8)), draw(5, 3, 3, 3)
        with pytest.warns(UserWarning, match="in place of"):
            close(kgen.conv2d(x, w, padding=1, stride=2, epilogue=torch.tanh), torch.tanh(F.conv2d(x, w, padding=1, stride=2)))
    finally:
        kgen.unload(tmp_path / "wrong")


# ---- gradients, compile, export, vmap, autocast ----


def tensors(of_last: bool) -> list[Tensor]:
    x, w, b, r = draw(2, 4, 7, 6), draw(6, 2, 3, 3), draw(6), draw(2, 6, 4, 3)
    return [last(x), last(w), b, r] if of_last else [x, w, b, r]


REST = ([2, 2], [1, 1], [1, 1], 2)
CALLS: dict[str, tuple[Callable[..., Tensor], Callable[..., Tensor]]] = {
    "plain": (lambda x, w, b, r: ops.conv2d(x, w, b, *REST) * r, lambda x, w, b, r: F.conv2d(x, w, b, *REST) * r),
    "one image": (lambda x, w, b, r: ops.conv2d(x[0], w, b, *REST) * r, lambda x, w, b, r: F.conv2d(x[0], w, b, *REST) * r),
    "epilogue": (lambda x, w, b, r: kgen.conv2d(x, w, b, *REST, epilogue=lambda y, t: F.gelu(y) * t + 0.5, captures=(r,)),
                 lambda x, w, b, r: F.gelu(F.conv2d(x, w, b, *REST)) * r + 0.5),
}  # fmt: skip


@pytest.mark.parametrize("of_last", [False, True])
@pytest.mark.parametrize("name", CALLS)
def test_gradients_are_torchs(served: bool, name: str, of_last: bool) -> None:
    ours, theirs = CALLS[name]

    def grads(f: Callable[..., Tensor]) -> tuple[Tensor, ...]:
        leaves = [leaf(t) for t in tensors(of_last)]
        return torch.autograd.grad(f(*leaves).sin().sum(), leaves)

    for got, want in zip(grads(ours), grads(theirs), strict=True):
        torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-5)


def test_plain_gradients_are_differentiated_again(served: bool) -> None:
    x, w = leaf(draw(1, 2, 4, 4).double()), leaf(draw(2, 2, 3, 3).double())
    assert torch.autograd.gradgradcheck(lambda x, w: ops.conv2d(x, w, None, 1, 1), (x, w))


OPCHECKED: dict[str, Callable[[], tuple[Any, tuple[Any, ...]]]] = {
    "_conv2d": lambda: (ops._conv2d.default, (*tensors(False)[:3], *REST)),
    "_conv2d, last": lambda: (ops._conv2d.default, (*tensors(True)[:3], *REST)),
    "_conv2d_train": lambda: (ops._conv2d_train.default, (*(leaf(t) for t in tensors(True)[:3]), *REST)),
    "conv2d_mod": lambda: (ops.conv2d_mod.default, (*tensors(True)[:3], *REST, [tensors(False)[3]], [], PROGRAM.format(at="b m n"))),
    "conv2d_mod_train": lambda: (
        ops.conv2d_mod_train.default, (*(leaf(t) for t in tensors(False)[:3]), *REST, [leaf(draw(6, 1, 1))], [], PROGRAM.format(at="b m n"))),
}  # fmt: skip


@pytest.mark.parametrize("name", [n if "train" not in n else pytest.param(n, marks=pytest.mark.slow) for n in OPCHECKED])
def test_opcheck(served: bool, name: str) -> None:
    op, args = OPCHECKED[name]()
    opcheck(op, args)


@pytest.mark.parametrize("backend", ["aot_eager", pytest.param("inductor", marks=pytest.mark.slow)])
@pytest.mark.parametrize("of_last", [False, True])
def test_compile_fullgraph_of_changing_sizes(served: bool, backend: str, of_last: bool) -> None:
    torch._dynamo.reset()
    f = torch.compile(lambda x, w, b: kgen.conv2d(x, w, b, 2, 1, epilogue=torch.relu) + ops.conv2d(x, w, b, 2, 1), fullgraph=True,
                      backend=backend, dynamic=True)  # fmt: skip
    for n in (5, 9):
        x, w, b = draw(2, 3, n, 7), leaf(draw(4, 3, 3, 3)), draw(4)
        x = last(x) if of_last else x
        y = F.conv2d(x, w, b, 2, 1)
        got, want = f(x, w, b), torch.relu(y) + y
        torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(torch.autograd.grad(got.sum(), w)[0], torch.autograd.grad(want.sum(), w)[0], rtol=1e-4, atol=1e-4)


def test_export_save_and_load(served: bool) -> None:
    class Model(nn.Module):
        def forward(self, x: Tensor, w: Tensor) -> Tensor:
            return ops.conv2d(x, w, None, [2, 1]) + kgen.conv2d(x, w, stride=(2, 1), epilogue=torch.relu)

    x, w = draw(2, 3, 9, 8), draw(5, 3, 3, 3)
    buffer = io.BytesIO()
    torch.export.save(torch.export.export(Model(), (x, w)), buffer)
    buffer.seek(0)
    y = F.conv2d(x, w, None, (2, 1))
    close(torch.export.load(buffer).module()(x, w), y + torch.relu(y))


@pytest.mark.parametrize("dims", [(0, None, None), (0, 0, None), (None, 0, None), (1, 2, 0), (0, None, 1), (None, None, 0)])
@pytest.mark.parametrize("single", [False, True])
def test_vmap(served: bool, dims: tuple[int | None, ...], single: bool) -> None:
    shapes = ((4, 9, 8) if single else (2, 4, 9, 8), (6, 2, 3, 3), (6,))
    args = [draw(*s) if d is None else draw(*s[:d], 3, *s[d:]) for s, d in zip(shapes, dims, strict=True)]

    def of(conv: Any) -> Tensor:
        return torch.vmap(lambda x, w, b: conv(x, w, b, (2, 1), 1, 1, 2), dims)(*args)

    torch.testing.assert_close(of(ops.conv2d), of(F.conv2d), rtol=1e-4, atol=1e-5)


def test_torch_func(served: bool) -> None:
    x, w = draw(2, 3, 6, 5), draw(4, 3, 3, 3)
    for ours, theirs in (
        (lambda w: ops.conv2d(x, w).sin().sum(), lambda w: F.conv2d(x, w).sin().sum()),
        (lambda w: kgen.conv2d(x, w, epilogue=F.gelu).sum(), lambda w: F.gelu(F.conv2d(x, w)).sum()),
    ):
        torch.testing.assert_close(torch.func.grad(ours)(w), torch.func.grad(theirs)(w), rtol=1e-4, atol=1e-5)
    with torch.no_grad(), torch.autograd.forward_ad.dual_level():
        y = ops.conv2d(x, torch.autograd.forward_ad.make_dual(w, w))
        torch.testing.assert_close(torch.autograd.forward_ad.unpack_dual(y).tangent, F.conv2d(x, w), rtol=1e-4, atol=1e-5)


def test_autocast_is_as_torchs(served: bool) -> None:
    x, w, b = draw(2, 3, 9, 8), draw(5, 3, 3, 3), draw(5)
    with torch.autocast("cpu", torch.bfloat16):
        for grad in (False, True):
            with torch.set_grad_enabled(grad):
                got, want = ops.conv2d(x, w, b), F.conv2d(x, w, b)
                assert got.dtype == want.dtype == torch.bfloat16
                assert kgen.conv2d(x, w, b, epilogue=F.gelu).dtype == torch.bfloat16
                torch.testing.assert_close(got, want)


# ---- recognition ----


class Model(nn.Module):
    """Convolutions with and without something behind them, and those that are none of conv2d's."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, stride=2, groups=4, bias=False)
        self.alone, self.same = nn.Conv2d(8, 4, 1), nn.Conv2d(8, 8, 3, padding="same")
        self.line, self.up = nn.Conv1d(4, 4, 3), nn.ConvTranspose2d(8, 3, 2)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        y = F.relu(self.first(x), inplace=True)
        z = self.second(y)
        return F.silu(z) * z.mean(), self.alone(z), torch.tanh(self.alone(z) + 1) * 2, self.same(y), self.up(y), self.line(z.flatten(2)[:, :4])


def test_convolutions_are_recognised_with_what_follows_them() -> None:
    model, x = Model().eval(), draw(2, 3, 9, 8)
    graph = graphs.export(model, (x,), {})
    found = recognise.find(graph)
    assert not found.misses
    parts = [(m.op, [graphs.op_name(n) for n in m.core], m.detail.attributes) for m in found.matches]
    one, none = (1, 1), (0, 0)
    assert parts == [
        ("conv2d", ["conv2d", "relu"], (one, one, one, 1)), ("conv2d", ["conv2d"], ((2, 2), none, one, 4)),
        ("conv2d", ["conv2d"], (one, none, one, 1)), ("conv2d", ["conv2d", "add", "tanh", "mul"], (one, none, one, 1)),
    ]  # fmt: skip
    recorder = graphs.Recorder(graph.module, set(graph.module.graph.nodes))
    with torch.no_grad():
        recorder.run(*graphs.flat_inputs(graph, model, (x,), {}))
        assert [rewrite.verify(m, recorder.kept) for m in found.matches] == [None] * 4
        code = rewrite.apply(graph, found.matches, rewrite.torch_ops)
        for got, want in zip(code(*graphs.flat_inputs(graph, model, (x,), {})), model(x), strict=True):
            torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-5)


def test_patch_takes_what_a_kernel_serves(registry: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model, x = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(8, 4, 3)).eval(), draw(2, 3, 9, 8)
    want = model(x).detach()
    kgen.patch(model, x, fallback=True)
    assert "no Kernel serves it" in capsys.readouterr().out
    kgen.load(registry)
    try:
        kgen.patch(model, x)
        assert "conv2d" in capsys.readouterr().out
        with torch.no_grad():
            torch.testing.assert_close(model(x), want, rtol=1e-4, atol=1e-5)
            decisions = kgen.why(lambda: model(x)).decisions
        assert len(decisions) == 2 and all(d.kernel is not None for d in decisions)
    finally:
        kgen.unload(registry)


# ---- what it is judged on ----


def trials() -> list[Any]:
    at = At(2, 8, 11, 7, 6, 3, 2, 2, 1, 1, 0, 2, 2, 2)
    made = [convs.trial("conv2d", "float32", at, ("bias",) * (i % 2), layout=x) for i, x in enumerate(convs.LAYOUTS)]
    for layout in "cl":
        made += [convs.trial("conv2d", "float32", at, ("bias",), p, name, layout) for name, p in named("conv2d", at.output(layout == "l"))]
    return made


@pytest.mark.parametrize("every", [4, pytest.param(1, marks=pytest.mark.slow)])
def test_a_sound_kernel_passes(every: int) -> None:
    found = spread.judge(canonical_contract("conv2d").decode(), KERNEL.encode(), "kernel.c", None, trials()[::every])
    assert found.verdict == "pass" and not found.skipped, found.message


@pytest.mark.parametrize("old, new", [
    ("i * dh", "i"), ("? (double)bias[channel * b0]", "? (double)bias[0]"), ("double sum", "_Float16 sum"),
    *(pytest.param(old, new, marks=pytest.mark.slow) for old, new in [
        ("- pw", "- ph"), ("first +", "0 * first +"), ("y >= 0 && ", "y >= -1 && "), ("k < cg * kh * kw", "k < cg * kh * kw - 1")]),
])  # fmt: skip
def test_a_wrong_kernel_fails(old: str, new: str) -> None:
    assert old in KERNEL
    found = spread.judge(canonical_contract("conv2d").decode(), KERNEL.replace(old, new).encode(), "kernel.c", None, trials()[:4])
    assert found.verdict not in ("pass", "compile_error"), found.message


def test_distributions_mutants_and_ranges() -> None:
    contract = canonical_contract("conv2d")
    (trial,) = [t for t in trials() if t.label.endswith("l bias+gated")]
    task = trial.task(json.loads(contract))
    made = reference._canonical(task)
    kept, dropped = made.distributions(trial.case, 1)
    assert {"shadowed", "specials", "onehot", "heavy"} <= set(kept), dropped
    special = made.expected(made.draw(trial.case, 1, "specials")).outputs[0]
    assert 0.2 < float(special.isfinite().double().mean()) < 1.0
    x, w = (made.draw(trial.case, 1, "shadowed").args[n] for n in ("input", "weight"))
    assert x[:, [3, 11]].abs().median() > 1e17 and not w[:, 3].any() and x[:, :3].abs().max() < 100
    assert {"conv2d without the last element of its sum", "conv2d without the bias"} <= {m.label for m in mutants.of(made)}
    for k in KEYS[::2]:
        for t in (*spread.range_trials(k), *spread.timing_trials(k)):
            found, _ = _libkgen.case_key(contract.decode(), t.case)
            assert found["dims"]["O"] % found["dims"]["G"] == 0
    assert all(is_channels_last(torch.empty_strided(t.case["args"]["input"]["shape"], t.case["args"]["input"]["stride"])) ==
               t.case["args"]["channels_last"] for t in trials())  # fmt: skip
