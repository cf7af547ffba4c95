"""References: inputs by seed and distribution, the fp64 oracle against independent formulas, degenerate Tasks."""

from __future__ import annotations

import math
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

MODELS = Path(__file__).resolve().parent.parent / "models"
sys.path.insert(0, str(MODELS))

import attentions  # noqa: E402

from kgen import distributions, oracle, reference, targets, task  # noqa: E402
from kgen.capture import Capture, from_live  # noqa: E402
from kgen.errors import BadInput  # noqa: E402
from kgen.reference import Reference, draw, error, with_strides  # noqa: E402
from kgen.task import Task  # noqa: E402


def make_task(module: nn.Module, inputs: tuple, pattern: str, folder: Path) -> Task:
    made = Capture(from_live(module.eval(), inputs))
    (target,) = targets.select(targets.survey(made), [pattern])
    return task.read(task.write(targets.resolve(made, target), made, folder))


@pytest.fixture(scope="module")
def relative(tmp_path_factory: pytest.TempPathFactory) -> Task:
    torch.manual_seed(0)
    module = attentions.RelativeTable()
    return make_task(module, attentions.example(module), "attention", tmp_path_factory.mktemp("t") / "attention")


# The formula


def test_attention_agrees_with_scaled_dot_product_attention() -> None:
    torch.manual_seed(1)
    q, k, v = (torch.randn(2, 4, n, 8, dtype=torch.float64) for n in (10, 13, 13))
    got, lse = oracle.attention(q, k, v, [], [], None)
    torch.testing.assert_close(got, torch.nn.functional.scaled_dot_product_attention(q, k, v), rtol=1e-12, atol=1e-12)
    scores = torch.einsum("bhqd,bhkd->bhqk", q, k) / math.sqrt(8)
    torch.testing.assert_close(lse, scores.exp().sum(-1).log(), rtol=1e-12, atol=1e-12)
    got, _ = oracle.attention(q, k[:, :2], v[:, :2], [], [], None, enable_gqa=True)
    want = torch.nn.functional.scaled_dot_product_attention(q, k[:, :2], v[:, :2], enable_gqa=True)
    torch.testing.assert_close(got, want, rtol=1e-12, atol=1e-12)


def test_a_row_without_a_key_gives_zero() -> None:
    q = torch.randn(1, 1, 4, 8, dtype=torch.float64)
    out, lse = oracle.attention(q, q, q, [], [], "program 1\nmask\n%0 = gt bool q kv\nreturn %0\n")
    assert torch.equal(out[0, 0, 0], torch.zeros(8, dtype=torch.float64)) and lse[0, 0, 0] == -math.inf
    assert torch.isfinite(out).all() and torch.isfinite(lse[0, 0, 1:]).all()


def test_blocks_of_rows_are_seamless(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(2)
    q, k, v = (torch.randn(1, 2, 9, 4, dtype=torch.float64) for _ in range(3))
    text = "program 1\nscore\n%0 = sub int32 q kv\n%1 = cast float32 %0\n%2 = add float32 score %1\nreturn %2\n"
    whole = oracle.attention(q, k, v, [], [], text)
    monkeypatch.setattr(oracle, "_BLOCK", 40)
    parts = oracle.attention(q, k, v, [], [], text)
    for a, b in zip(whole, parts, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-13, atol=1e-13)


def test_the_task_of_a_model_gives_what_the_model_computes(relative: Task) -> None:
    """The oracle of the captured Program against the bias and mask written out."""
    d = draw(relative, relative.cases[0], 5)
    e = Reference.open(relative).expected(d)
    q, k, v = (d.args[n].double() for n in ("query", "key", "value"))
    (table,) = d.captured
    i = torch.arange(24)
    bias = table.double()[i[:, None] - i[None, :] + 23].permute(2, 0, 1)
    scores = (q @ k.mT * 8**-0.5 + bias).masked_fill(torch.ones(24, 24).triu(1).bool(), -math.inf)
    torch.testing.assert_close(e.outputs[0], scores.softmax(-1) @ v, rtol=1e-10, atol=1e-10)
    assert e.oracle == "fp64" and e.outputs[0].dtype == torch.float64
    assert e.torch_outputs[0].dtype == torch.float32
    assert 0 < e.norm_err[0] < 1e-6 and 0 < e.max_err[0] < 1e-5


# Inputs


def test_inputs_follow_seed_fill_and_layout(relative: Task) -> None:
    case = relative.cases[0]
    a, b, c = draw(relative, case, 7), draw(relative, case, 7), draw(relative, case, 8)
    for name in ("query", "key", "value"):
        x = a.args[name]
        entry = case["args"][name]
        assert torch.equal(x, b.args[name]) and not torch.equal(x, c.args[name])
        assert list(x.stride()) == entry["stride"] and list(x.shape) == entry["shape"]
        assert float(x.std()) == pytest.approx(entry["fill"]["std"], rel=0.1)
    assert not torch.equal(a.args["query"], a.args["key"])
    # Tables keep their values.
    assert torch.equal(a.captured[0], c.captured[0])


@pytest.mark.parametrize(
    ("name", "check"),
    [
        ("normal", lambda x: abs(x.mean()) < 0.2 and 0.9 < x.std() < 1.1),
        ("uniform", lambda x: 0 <= x.min() and x.max() < 1),
        ("offset", lambda x: 999 < x.min() and x.max() < 1001 and x.std() < 0.2),
        ("heavy", lambda x: x.abs().max() > 5 and abs(x.median()) < 0.2),
        ("tiny", lambda x: 0 < x.abs().max() < 1e-5),
        ("onehot", lambda x: bool(((x == 0) | (x == 1)).all()) and torch.equal(x.sum(-1), torch.ones(x.shape[:-1]))),
        ("large", lambda x: x.abs().max() > 100),
    ],
)
def test_distributions(relative: Task, name: str, check) -> None:
    assert check(draw(relative, relative.cases[0], 3, name).args["query"])


def of_rows(name: str, shape: tuple[int, ...], axis: int = -1, seed: int = 1) -> torch.Tensor:
    g = torch.Generator().manual_seed(seed)
    fill = {"kind": "normal", "mean": 0.0, "std": 1.0}
    return distributions.floats(fill, shape, g, name, torch.float32, axis=axis, steep=distributions.STEEP)


def test_rows_hold_what_shortcuts_are_wrong_on() -> None:
    x = of_rows("rows", (130, 64))
    assert (x == x[:, :1]).all(1).sum() == 10, "constant rows"
    assert (x.amax(1) - x.median(1).values > 88).sum() >= 20, "spikes that overflow an exponential"
    assert (x[:, -1] == distributions.STEEP).sum() >= 10, "spikes at the end"
    assert ((x.amax(1) < -20) & (x.amax(1) - x.amin(1) > 88)).sum() >= 5, "negative and wide"
    begins = {tuple(row[:32].tolist()) for row in x}
    assert len(begins) < 130 - 15, "rows of one begin"
    assert (x[:, :32] == 0).all(1).sum() == 10 and not (x[:, 32:] == 0).all(1).any(), "padded in front"
    assert ((x * 2) == torch.round(x * 2)).all(1).sum() >= 10, "quantised, with ties"
    # One row after the other, whatever the first is.
    assert {float(of_rows("rows", (13, 64), seed=s).amax()) for s in range(5)} == {distributions.STEEP}


def test_rows_lie_along_the_dim_of_the_op() -> None:
    for axis in (0, 1, 2):
        x = of_rows("onehot", (5, 6, 7), axis)
        assert x.shape == (5, 6, 7) and torch.equal(x.sum(axis), torch.ones_like(x.sum(axis)))


def test_masked_rows_keep_one_element() -> None:
    x = of_rows("masked", (600, 40))
    hidden = torch.isinf(x)
    assert not torch.isnan(x).any() and not hidden.all(1).any() and bool((x[hidden] < 0).all())
    assert hidden[:, 0].any() and hidden[:, -1].any() and (hidden.sum(1) == 39).any()
    inner = hidden[:, 1:] & ~hidden[:, :-1]
    assert (inner.sum(1) > 2).any(), "in the middle, too"


def test_specials_are_softmaxes_alone() -> None:
    x = of_rows("specials", (70, 9))
    whole = (x == -math.inf).all(1)
    assert whole.sum() == 10 and torch.isnan(x).any(1).sum() == 30 and (x == math.inf).any(1).sum() == 20
    assert "specials" in distributions.names_for("softmax") and "specials" not in distributions.names_for("relu_1234abcd")


def test_extremes_are_the_largest_of_their_dtype() -> None:
    x = of_rows("extremes", (50, 9)).float()
    most = torch.finfo(torch.float32).max
    assert bool(torch.isfinite(x).all()) and x.max() == most and x.min() == -most and (x == x[:, :1]).all(1).any()


def test_unknown_distribution_is_named(relative: Task) -> None:
    with pytest.raises(BadInput, match="distribution 'odd': expected one of captured, normal"):
        draw(relative, relative.cases[0], 3, "odd")


def test_strides() -> None:
    x = torch.arange(24.0).view(2, 3, 4)
    for stride in ((12, 4, 1), (1, 8, 2), (100, 30, 7), (4, 0, 1)):
        y = with_strides(x, stride)
        assert y.stride() == stride
        assert torch.equal(y[:, 0] if stride[1] == 0 else y, x[:, 0] if stride[1] == 0 else x)
    assert with_strides(torch.empty(0, 3), (3, 1)).shape == (0, 3)


# Ops of a model's own


class CastsInside(nn.Module):
    """RMS norm as Llama has it: in fp32 whatever the model's dtype."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(16))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = x.to(torch.float32)
        y = y * torch.rsqrt(y.pow(2).mean(-1, keepdim=True) + torch.full((1,), 1e-6))
        return self.weight * y.to(x.dtype)


def test_casts_are_lifted_in_the_oracle(tmp_path: Path) -> None:
    t = make_task(CastsInside().bfloat16(), (torch.randn(4, 16).bfloat16(),), "CastsInside", tmp_path / "t")
    d = draw(t, t.cases[0], 1)
    e = Reference.open(t).expected(d)
    x, w = d.args["x"].double(), d.args["weight"].double()
    want = w * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6))
    torch.testing.assert_close(e.outputs[0], want, rtol=1e-12, atol=1e-12)
    assert e.oracle == "fp64" and e.narrow == ()
    assert 1e-4 < e.norm_err[0] < 1e-2  # bfloat16's own


def test_registry_fallback(tmp_path: Path) -> None:
    """load() takes an Op's arguments in order; gradients go through it."""
    torch.manual_seed(3)
    module = nn.Sequential(nn.Linear(6, 5), nn.Tanh())
    t = make_task(module, (torch.randn(4, 6),), "Sequential", tmp_path / "op" / "task")
    folder = t.folder.parent
    (folder / "op.json").write_bytes((t.folder / "op.json").read_bytes())
    f = reference.load(folder)
    x, w, b = torch.randn(4, 6), torch.randn(5, 6, requires_grad=True), torch.randn(5)
    names = [a["name"] for a in t.contract["args"]]
    assert names[0] == "input" and len(names) == 3
    y = f(x, w, b)
    torch.testing.assert_close(y, torch.tanh(x @ w.T + b))
    torch.testing.assert_close(f(x, w, **{names[2]: b}), y)
    y.sum().backward()
    want = torch.autograd.grad(torch.tanh(x @ w.T + b).sum(), w)[0]
    torch.testing.assert_close(w.grad, want)


def test_two_outputs_and_integers(tmp_path: Path) -> None:
    class Top(nn.Module):
        def forward(self, x: torch.Tensor, ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            return torch.sort(x[ids] * 2, dim=-1)

    ids = torch.tensor([3, 1, 1])
    t = make_task(Top(), (torch.randn(4, 6), ids), "Top", tmp_path / "t")
    d = draw(t, t.cases[0], 1)
    assert torch.equal(d.args["ids"], ids)
    e = Reference.open(t).expected(d)
    assert [o.dtype for o in e.outputs] == [torch.float64, torch.int64]
    assert e.norm_err == (0.0, 0.0)
    assert [o["dtype"] for o in t.contract["outputs"]] == ["float32", "int64"]


# Trivial answers


def test_degenerate_tasks_are_found(tmp_path: Path, relative: Task) -> None:
    assert Reference.open(relative).degenerate(relative.cases[0], 1) == []

    class Nothing(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x * 0

    class Same(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x + 0

    t = make_task(Nothing(), (torch.randn(4, 6),), "Nothing", tmp_path / "a")
    assert "zeros" in Reference.open(t).degenerate(t.cases[0], 1)
    t = make_task(Same(), (torch.randn(4, 6),), "Same", tmp_path / "b")
    assert Reference.open(t).degenerate(t.cases[0], 1) == ["a copy of input 0"]


def test_distributions_on_which_torch_fails_are_listed(tmp_path: Path) -> None:
    class Log(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.log(x)

    t = make_task(Log(), (torch.rand(4, 6) * 0.1 + 50,), "Log", tmp_path / "t")
    kept, dropped = Reference.open(t).distributions(t.cases[0], 1)
    assert "captured" in kept and "offset" in kept
    assert "not finite" in dropped["normal"]


@pytest.mark.parametrize("wide", [torch.float32, torch.float64])  # of a GPU and of the CPU
def test_sums_that_overflow_on_the_way_are_no_test_of_what_saturates(wide: torch.dtype) -> None:
    most = torch.finfo(torch.bfloat16).max
    x, other = torch.ones(2, 8, dtype=torch.bfloat16), torch.ones(8, 3, dtype=torch.bfloat16)
    x[0, 0], x[0, 5], x[1, 2] = most, -most, torch.inf
    squares, terms = reference._sums_of_squares({"input": x, "other": other}, wide)
    assert terms == 8 and bool((squares[0] > 1e38).all()), "whose partial sums may be infinite, in this order or that"
    assert torch.equal(squares[1], torch.full((3,), 7.0, dtype=wide)), "an infinity is in the oracle, too"


def test_error() -> None:
    a = torch.tensor([1.0, 2.0, float("nan"), float("inf")])
    assert error(a, a) == (0.0, 0.0)
    assert error(torch.tensor([1.0, 2.0, 3.0, float("inf")]), a) == (math.inf, math.inf)
    assert error(torch.tensor([1.0, float("nan"), float("nan"), float("inf")]), a)[0] == math.inf
    assert error(torch.tensor([1.0, 2.0]), torch.tensor([1.0, 4.0]))[1] == pytest.approx(0.5)
    assert error(torch.ones(3), torch.ones(4)) == (math.inf, math.inf)


def test_a_model_without_a_graph_travels_as_its_file(tmp_path: Path) -> None:
    """Its branch depends on data, which torch.export refuses; the file is the reference, weights are inputs."""
    from kgen.capture import load

    path = tmp_path / "model.py"
    path.write_text(
        "import torch\nfrom torch import nn\n"
        "class Part(nn.Module):\n"
        "    def __init__(self, n):\n        super().__init__()\n        self.linear = nn.Linear(n, n)\n"
        "    def forward(self, x):\n"
        "        y = self.linear(x)\n        return y.tanh() if x.sum().item() > 0 else y\n"
        "class Model(nn.Module):\n"
        "    def __init__(self, n):\n        super().__init__()\n        self.part = Part(n)\n"
        "    def forward(self, x):\n        return self.part(x).softmax(-1)\n"
        "def get_init_inputs(): return [6]\n"
        "def get_inputs(): return [torch.randn(4, 6)]\n"
    )
    made = Capture(load(str(path)))
    (target,) = targets.select(targets.survey(made), ["Part"])
    folder = task.write(targets.resolve(made, target), made, tmp_path / "op" / "task")
    t = task.read(folder)
    assert t.contract["reference"] == {"kind": "source", "file": "reference.py", "name": "Model.part"}
    assert t.meta["graph"] is None and "torch.export" in t.meta["no_graph"]
    d = draw(t, t.cases[0], 1)
    e = Reference.open(t).expected(d)
    x, w, b = (d.args[n].double() for n in ("x", "state_linear_weight", "state_linear_bias"))
    y = x @ w.T + b
    torch.testing.assert_close(e.outputs[0], y.tanh() if x.sum() > 0 else y, rtol=1e-12, atol=1e-12)
    assert e.oracle == "fp64"
    (folder.parent / "op.json").write_bytes((folder / "op.json").read_bytes())
    f = reference.load(folder.parent)
    torch.testing.assert_close(f(*d.args.values()), e.torch_outputs[0])


def test_without_a_graph_or_a_file_it_is_refused_by_name() -> None:
    from kgen.errors import NotATarget

    class Branch(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x if x.sum().item() > 0 else -x

    made = Capture(from_live(Branch(), (torch.randn(3),)))
    (target,) = targets.select(targets.survey(made), ["Branch"])
    with pytest.raises(NotATarget, match="Branch: torch.export: .*no file with a Model"):
        targets.resolve(made, target)


def test_buffers_keep_their_values_and_parameters_do_not(tmp_path: Path) -> None:
    torch.manual_seed(5)
    norm = nn.BatchNorm1d(6)
    norm.running_var.uniform_(0.5, 2.0)
    t = make_task(norm, (torch.randn(4, 6),), "BatchNorm1d", tmp_path / "t")
    d = draw(t, t.cases[0], 1)
    assert torch.equal(d.args["running_var"], norm.running_var)
    assert t.cases[0]["args"]["weight"]["fill"] == {"kind": "normal", "mean": 1.0, "std": 0.25}
    assert not torch.equal(d.args["weight"], norm.weight)
    e = Reference.open(t).expected(d)
    assert torch.isfinite(e.outputs[0]).all()
    assert Reference.open(t).degenerate(t.cases[0], 2) == []
