"""Recognition by graph: each spelling gives the Program that it means, and a wrong Program is refused."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "models"))

import architectures  # noqa: E402
import attentions  # noqa: E402

from kgen import graphs, recognise, rewrite  # noqa: E402
from kgen.contents import formula  # noqa: E402
from kgen.recognise import CAUSAL, Attention, Norm, Softmax  # noqa: E402
from kgen.symbolic import F32, I32, Space, density, keeps_a_key, split_mask  # noqa: E402

PLAIN = None
WINDOW = """program 1
scalar s0 int32
mask
%0 = ge bool q kv
%1 = add int32 kv s0
%2 = {cmp} bool q %1
%3 = and bool %0 %2
return %3
"""
BIAS = """program 1
tensor t0 float32 3
score
%0 = load float32 t0 h q kv
%1 = add float32 score %0
return %1
"""
# variant: Program, scale, lifted scalars
SCALE = 8**-0.5
PROGRAMS = {
    "plain": (PLAIN, SCALE, ()),
    "relative_table": (
        "program 1\ntensor t0 float32 2\nscalar s0 int32\nscore\n%0 = sub int32 q kv\n%1 = add int32 %0 s0\n"
        "%2 = load float32 t0 %1 h\n%3 = add float32 score %2\nreturn %3\nmask\n%0 = ge bool q kv\nreturn %0\n",
        SCALE,
        (23,),
    ),
    "alibi": (
        "program 1\ntensor t0 float32 1\nscore\n%0 = load float32 t0 h\n%1 = neg float32 %0\n%2 = sub int32 q kv\n"
        "%3 = abs int32 %2\n%4 = cast float32 %3\n%5 = mul float32 %1 %4\n%6 = add float32 score %5\nreturn %6\n",
        SCALE,
        (),
    ),
    "causal": (CAUSAL, SCALE, ()),
    "additive_causal": (CAUSAL, SCALE, ()),
    "softcap": (
        "program 1\nscore\n%0 = tanh float32 score\n%1 = mul float32 %0 20.0\nreturn %1\n",
        SCALE / 20,
        (),
    ),
    "window": (WINDOW.format(cmp="le"), SCALE, (7,)),
    "bucketed": (BIAS, 1.0, ()),
    "scaled_query": (CAUSAL, 1.0, ()),
    "einsum": (PLAIN, SCALE, ()),
    "grouped_expand": (CAUSAL, SCALE, ()),
    "grouped_interleave": (CAUSAL, SCALE, ()),
    "sdpa": (PLAIN, SCALE, ()),
    "sdpa_causal": (CAUSAL, SCALE, ()),
    "sdpa_mask": (WINDOW.format(cmp="lt"), 0.3, (6,)),
    "sdpa_bias": (WINDOW.format(cmp="lt"), 0.3, (6,)),
    "documents": (
        "program 1\ntensor t0 int64 2\nmask\n%0 = load int32 t0 b q\n%1 = load int32 t0 b kv\n%2 = eq bool %0 %1\n"
        "%3 = ge bool q kv\n%4 = and bool %2 %3\nreturn %4\n",
        SCALE,
        (),
    ),
    "padded": (
        "program 1\ntensor t0 int64 2\nscore\n%0 = load int32 t0 b kv\n%1 = cast float32 %0\n%2 = sub float32 1.0 %1\n"
        "%3 = mul float32 %2 -3.4028235e+38\n%4 = add float32 score %3\nreturn %4\n",
        SCALE,
        (),
    ),
    "computed": (BIAS, SCALE, ()),
}


def analyse(module: nn.Module, *args: torch.Tensor) -> tuple[graphs.Graph, recognise.Found, dict]:
    """The graph, what was found in it, and the values of all nodes in a run."""
    module.eval()
    graph = graphs.export(module, args, {})
    found = recognise.find(graph)
    recorder = graphs.Recorder(graph.module, set(graph.module.graph.nodes))
    with torch.no_grad():
        recorder.run(*graphs.flat_inputs(graph, module, args, {}))
    return graph, found, recorder.kept


def only(found: recognise.Found) -> recognise.Match:
    """The one attention; the products around it are other Matches."""
    others = [m for m in found.matches if m.op not in recognise.PRODUCTS]
    assert [m.op for m in others] == ["attention"], found
    assert found.misses == []
    return others[0]


@pytest.mark.parametrize("name", attentions.VARIANTS)
def test_variant_is_the_program_it_means(name: str) -> None:
    torch.manual_seed(1)
    module = attentions.VARIANTS[name]()
    _, found, values = analyse(module, *attentions.example(module))
    match = only(found)
    text, scale, scalars = PROGRAMS[name]
    assert match.detail.program == text
    assert match.detail.scale == pytest.approx(scale, rel=1e-12)
    assert match.detail.scalars == scalars
    assert rewrite.verify(match, values) is None
    assert match.detail.enable_gqa == name.startswith("grouped")


@pytest.mark.parametrize("name", architectures.ARCHITECTURES)
def test_architecture_is_recognised_and_right(name: str) -> None:
    torch.manual_seed(2)
    module = architectures.ARCHITECTURES[name]()
    _, found, values = analyse(module, *architectures.inputs_of(module))
    assert any(m.op == "attention" for m in found.matches), found.misses
    for match in found.matches:
        assert match.op in ("attention", "layer_norm", *recognise.PRODUCTS)
        assert rewrite.verify(match, values) is None


def test_grouped_heads_are_read_without_the_copies() -> None:
    for interleave in (False, True):
        module = attentions.Grouped(interleave)
        _, found, _ = analyse(module, *attentions.example(module))
        detail = only(found).detail
        assert detail.key.shape == (2, 2, 24, 8)
        assert detail.value.shape == (2, 2, 24, 8)


@pytest.mark.parametrize(
    ("old", "new"),
    [("ge bool", "gt bool"), ("sub int32 q kv", "sub int32 kv q"), ("add float32 score", "sub float32 score")],
)
def test_a_wrong_program_is_refused(old: str, new: str) -> None:
    torch.manual_seed(3)
    module = attentions.RelativeTable()
    _, found, values = analyse(module, *attentions.example(module))
    match = only(found)
    assert old in match.detail.program
    wrong = dataclasses.replace(match.detail, program=match.detail.program.replace(old, new))
    reason = rewrite.verify(dataclasses.replace(match, detail=wrong), values)
    assert reason is not None and "differs from the original" in reason


@pytest.mark.parametrize("change", ["scale", "too little", "too much", "key"])
def test_wrong_operands_are_refused(change: str) -> None:
    torch.manual_seed(4)
    module = attentions.RelativeTable()
    _, found, values = analyse(module, *attentions.example(module))
    d: Attention = only(found).detail
    wrong = {
        "scale": dataclasses.replace(d, scale=d.scale * 1.001),
        "too little": dataclasses.replace(d, scalars=(22,)),
        "too much": dataclasses.replace(d, scalars=(24,)),
        "key": dataclasses.replace(d, key=d.query),
    }[change]
    assert rewrite.verify(dataclasses.replace(only(found), detail=wrong), values) is not None


def test_the_rewritten_graph_equals_the_original() -> None:
    torch.manual_seed(5)
    module = architectures.Swin()
    args = architectures.inputs_of(module)
    graph, found, _ = analyse(module, *args)
    code = rewrite.apply(graph, found.matches, rewrite._reference_node)
    names = [str(n.target) for n in code.graph.nodes]
    assert not any("softmax" in n or "matmul" in n for n in names)
    with torch.no_grad():
        got = code(*graphs.flat_inputs(graph, module, args, {}))[0]
        torch.testing.assert_close(got, module(*args), rtol=1e-5, atol=1e-5)


def test_weights_that_are_used_elsewhere_stay() -> None:
    module = architectures.WithWeights()
    _, found, _ = analyse(module, torch.randn(2, 12, 32))
    # The scores' product has the scaling behind it alone, so that the two are a matmul with an epilogue.
    assert [m.op for m in found.matches] == ["matmul", "softmax"]
    assert "used elsewhere" in found.misses[0].reason


def test_softmax_alone() -> None:
    module = attentions.Classifier()
    _, found, values = analyse(module, *attentions.example(module))
    (match,) = found.matches
    assert match.op == "softmax" and isinstance(match.detail, Softmax) and match.detail.dim == 1
    assert rewrite.verify(match, values) is None


class Spelled(nn.Module):
    """RMSNorm as Llama has it."""

    def __init__(self, dtype: torch.dtype = torch.float32, cast: bool = True, weighted: bool = True, root: bool = False) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(16).to(dtype)) if weighted else None
        self.cast, self.root = cast, root

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        wide = x.float() if self.cast else x
        power = wide.pow(2).mean(-1, keepdim=True) + 1e-6
        y = (wide / torch.sqrt(power) if self.root else wide * torch.rsqrt(power)).to(x.dtype)
        return y if self.weight is None else self.weight * y


NORMS = {
    "LayerNorm": (nn.LayerNorm(16), "layer_norm", (16,), True, True, 1e-5),
    "LayerNorm without affine": (nn.LayerNorm((3, 16), elementwise_affine=False, eps=0.1), "layer_norm", (3, 16), False, False, 0.1),
    "LayerNorm without bias": (nn.LayerNorm(16, bias=False), "layer_norm", (16,), True, False, 1e-5),
    "RMSNorm": (nn.RMSNorm(16), "rms_norm", (16,), True, False, None),
    "RMSNorm with eps": (nn.RMSNorm((3, 16), eps=0.1, elementwise_affine=False), "rms_norm", (3, 16), False, False, 0.1),
    "spelled": (Spelled(), "rms_norm", (16,), True, False, 1e-6),
    "spelled without weight": (Spelled(cast=False, weighted=False), "rms_norm", (16,), False, False, 1e-6),
    "spelled with a quotient": (Spelled(root=True), "rms_norm", (16,), True, False, 1e-6),
    "spelled in half": (Spelled(torch.bfloat16), "rms_norm", (16,), True, False, 1e-6),
}


@pytest.mark.parametrize("name", NORMS)
def test_norms(name: str) -> None:
    module, op, shape, weight, bias, eps = NORMS[name]
    dtype = torch.bfloat16 if "half" in name else torch.float32
    _, found, values = analyse(module, torch.randn(5, 3, 16).to(dtype))
    (match,), d = found.matches, found.matches[0].detail
    assert isinstance(d, Norm) and match.op == op and d.shape == shape and d.eps == eps and d.dtype == dtype
    assert (d.weight is not None, d.bias is not None) == (weight, bias)
    assert rewrite.verify(match, values) is None
    wrong = dataclasses.replace(match, detail=dataclasses.replace(d, eps=(eps or 0) + 0.5))
    assert "differs" in (rewrite.verify(wrong, values) or "")


NO_NORMS = {
    "over another dim": lambda x: x * torch.rsqrt(x.pow(2).mean(1, keepdim=True) + 1e-6),
    "not of x": lambda x: (x + 1) * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6),
    "the mean is used elsewhere": lambda x: x * torch.rsqrt((m := x.pow(2).mean(-1, keepdim=True)) + 1e-6) + m,
    "a cube": lambda x: x * torch.rsqrt(x.pow(3).mean(-1, keepdim=True) + 1e-6),
}


@pytest.mark.parametrize("name", NO_NORMS)
def test_what_is_no_rms_norm(name: str) -> None:
    _, found, _ = analyse(Shape(NO_NORMS[name]), torch.randn(5, 3, 16))
    assert not found.matches and not found.misses


def test_norms_that_are_left_alone() -> None:
    for module, x, reason in (
        (nn.LayerNorm(16).double(), torch.randn(2, 16).double(), "float64"),
        (nn.LayerNorm(16), torch.randn(2, 16).bfloat16(), "its weight or bias is not"),
        (Shape(lambda x: nn.functional.rms_norm(x.transpose(0, 1), [16])), torch.randn(3, 2, 16), "not contiguous"),
    ):
        _, found, _ = analyse(module, x)
        assert not found.matches and reason in found.misses[0].reason


class Shape(nn.Module):
    def __init__(self, f) -> None:
        super().__init__()
        self.f = f

    def forward(self, *args: torch.Tensor) -> torch.Tensor:
        return self.f(*args)


Q = torch.randn(2, 4, 10, 8)
REFUSED = {
    "softmax over the queries": (lambda q: (q @ q.mT).softmax(-2) @ q, "not over the last dim"),
    "a sort of the scores": (lambda q: (q @ q.mT).sort(-1).values.softmax(-1) @ q, "no product of query and key"),
    "weights that are changed": (lambda q: torch.relu((q @ q.mT).softmax(-1) - 0.1) @ q, "no product with the values"),
    "float64": (lambda q: (q.double() @ q.double().mT).softmax(-1) @ q.double(), "float64"),
    "scores cut off by themselves": (
        lambda q: ((s := q @ q.mT).masked_fill(s < 0, float("-inf"))).softmax(-1) @ q,
        "the mask depends on the scores",
    ),
    "all masked": (
        lambda q: (q @ q.mT).masked_fill(torch.ones(10, 10, dtype=torch.bool), float("-inf")).softmax(-1) @ q,
        "everything is masked",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_no_attention_is_named(name: str) -> None:
    f, reason = REFUSED[name]
    graph = graphs.export(Shape(f), (Q,), {})
    found = recognise.find(graph)
    assert all(m.op == "softmax" for m in found.matches)
    assert any(reason in m.reason for m in found.misses) or (not found.misses and reason.startswith("no product"))


def test_a_large_negative_mask_of_data_stays_in_the_scores() -> None:
    """A finite mask of padding gives equal weights where all is padding; as a mask it would give zeros."""
    torch.manual_seed(6)
    module = attentions.Padded()
    x, mask = attentions.example(module)
    mask[1] = 0
    _, found, values = analyse(module, x, mask)
    match = only(found)
    assert "mask" not in match.detail.program.split("\n")
    assert rewrite.verify(match, values) is None


def test_two_layers_differ_by_path_and_share_a_program() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = attentions.Alibi(), attentions.Alibi()

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.second(self.first(x))

    _, found, _ = analyse(Two(), torch.randn(2, 24, 32))
    assert [m.path for m in found.matches] == ["first", "second"]
    assert found.matches[0].detail.program == found.matches[1].detail.program


# Expressions


def space(**sizes: int) -> Space:
    return Space({"b": 2, "h": 4, "q": 16, "kv": 24, **sizes})


def test_views_cancel() -> None:
    s = space()
    flat = s.add(s.mul(s.var("b"), s.int(4)), s.var("h"))
    assert s.floordiv(flat, s.int(4)) is s.var("b")
    assert s.rem(flat, s.int(4)) is s.var("h")
    q, n = s.var("q"), s.int(5)
    assert s.add(s.mul(s.floordiv(q, n), n), s.rem(q, n)) is q


def test_comparisons_of_known_ranges_fold() -> None:
    s = space()
    q, kv = s.var("q"), s.var("kv")
    assert s.compare("lt", q, s.int(16)) is s.bool(True)
    assert s.compare("gt", s.sub(q, kv), s.int(15)) is s.bool(False)
    assert s.compare("lt", kv, s.add(q, s.int(1))) is s.compare("ge", q, kv)
    assert s.not_(s.compare("gt", kv, q)) is s.compare("ge", q, kv)


def test_masks_split_off() -> None:
    s = space(q=24)
    q, kv, dot = s.var("q"), s.var("kv"), s.var("dot")
    causal = s.compare("ge", q, kv)
    e = s.add(s.where(causal, dot, s.float(float("-inf"))), s.float(2.0))
    split = split_mask(s, e, finite=False)
    assert split.keep is causal and split.score is s.add(dot, s.float(2.0)) and not split.finite
    low = s.add(dot, s.where(causal, s.float(0.0), s.float(-1e9)))
    assert split_mask(s, low, finite=False).keep is None
    assert split_mask(s, low, finite=True).keep is causal


def test_rows_without_a_key_are_seen() -> None:
    s = space(q=24)
    q, kv = s.var("q"), s.var("kv")
    assert keeps_a_key(s.compare("ge", q, kv), s.sizes)
    assert not keeps_a_key(s.compare("gt", q, kv), s.sizes)
    assert density(s.compare("ge", q, kv), s.sizes) == pytest.approx(25 / 48)


def test_buffers_become_formulas() -> None:
    s = space(q=24)
    q, kv = s.var("q"), s.var("kv")
    ones = torch.ones(30, 30)
    assert s.compare("ne", formula(s, ones.tril(), (q, kv)), s.float(0.0)) is s.compare("ge", q, kv)
    i = torch.arange(30)
    relative = formula(s, i[:, None] - i[None, :] + 29, (q, kv))
    assert relative is s.add(s.sub(q, kv), s.int(29)) and relative.type == I32
    assert formula(s, torch.full((1, 1), -1e9), (s.int(0), s.int(0))) is s.const(F32, -1e9)
    assert formula(s, torch.randn(30, 30), (q, kv)) is None
    broken = ones.tril()
    broken[7, 9] = 1
    assert formula(s, broken, (q, kv)) is None
    # Only what can be read counts.
    broken = ones.tril()
    broken[27, 29] = 1
    assert formula(s, broken, (q, kv)) is not None


def test_a_bias_from_deep_in_the_network_is_captured() -> None:
    """A bias on the keys that is read off the residual stream: hundreds of additions of other layers' values."""

    class Deep(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.ModuleList(nn.Linear(32, 32) for _ in range(150))
            self.attention = attentions.Plain()

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            for layer in self.layers:
                x = x + 0.01 * layer(x)
            q, k, v = self.attention.split(x)
            scores = self.attention.scores(q, k) + x[:, None, None, :, 0]
            return (scores.softmax(-1) @ v).transpose(1, 2).reshape(x.shape)

    torch.manual_seed(7)
    _, found, values = analyse(Deep(), torch.randn(2, 24, 32))
    match = only(found)
    assert len(match.detail.captured) == 1
    assert "%0 = load float32 t0 b kv 0\n" in match.detail.program
    assert rewrite.verify(match, values) is None
