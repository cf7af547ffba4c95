"""What the judge grants (budget.py) and what it looks for in a Task (mutants.py), against models whose answers are known."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from kgen import budget, compare, mutants, own, sets, targets, task as tasks
from kgen.capture import Capture, from_live
from kgen.judge import Judge, tolerance
from kgen.reference import Drawn, Reference, error

Function = Callable[..., Any]


def captured(function: Function, *inputs: torch.Tensor, folder: Path, pattern: str | None = None) -> Reference:
    made = Capture(from_live(function, inputs))
    if pattern:
        (target,) = targets.select(targets.survey(made), [pattern])
    else:
        (target,) = [t for t in own.own_targets(made) if "" in t.paths]
    return Reference.open(tasks.read(tasks.write(targets.resolve(made, target), made, folder)))


def examine(reference: Reference) -> dict[str, Any]:
    examiner = mutants.Examiner(reference)
    with Judge((reference.task.folder / "op.json").read_text()) as judge:
        sets.fill(judge, reference.task, reference, 0, examiner)
        return examiner.found(judge)


# Mutants


def test_every_term_of_a_plain_model_shows(tmp_path: Path) -> None:
    def model(x: torch.Tensor, w: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        return torch.relu(torch.nn.functional.linear(x, w, b) * 0.5 + x)

    reference = captured(model, torch.randn(6, 8), torch.randn(8, 8), torch.randn(8), folder=tmp_path / "t")
    labels = [m.label.partition(": ")[2] for m in mutants.of(reference)]
    assert sorted(labels) == [
        "add without its first term", "add without its second term", "linear without bias",
        "linear without the last element of what it goes over", "mul without its second term", "without relu",
    ]  # fmt: skip
    assert examine(reference) == {"mutants": {"seen": 6, "equivalent": []}}


def test_terms_that_no_input_shows_are_listed_and_refuse_nothing(tmp_path: Path) -> None:
    def model(x: torch.Tensor, z: torch.Tensor) -> torch.Tensor:
        return torch.relu(x.abs()) + z * 0.0

    found = examine(captured(model, torch.randn(40), torch.randn(40), folder=tmp_path / "t"))
    assert [e.partition(": ")[2] for e in found["mutants"]["equivalent"]] == ["without relu", "add without its second term"]
    assert any("whether a term is there: relu: without relu" in line for line in mutants.doubts(found))


def test_a_mask_of_nothing_is_equivalent_and_a_causal_one_is_not(tmp_path: Path) -> None:
    sdpa = torch.nn.functional.scaled_dot_product_attention
    q, everything = torch.randn(1, 1, 6, 8), torch.ones(6, 6, dtype=torch.bool)
    causal = captured(lambda q, k, v: sdpa(q, k, v, is_causal=True), q, q + 1, q + 2, folder=tmp_path / "c", pattern="attention")
    assert examine(causal)["mutants"] == {"seen": 4, "equivalent": []}
    idle = captured(lambda q, k, v, m: sdpa(q, k, v, m), q, q + 1, q + 2, everything, folder=tmp_path / "i", pattern="attention")
    assert examine(idle)["mutants"] == {"seen": 3, "equivalent": ["attention without the Program's mask"]}


def test_every_term_of_a_norm_shows_also_where_its_affine_part_does_nothing(tmp_path: Path) -> None:
    """A fresh module's weight is ones and its bias zeros; what the judge draws is neither."""
    F = torch.nn.functional
    x, one, zero = torch.randn(6, 40), torch.ones(40), torch.zeros(40)
    layer = captured(lambda x, w, b: F.layer_norm(x, (40,), w, b), x, one, zero, folder=tmp_path / "l", pattern="layer_norm")
    assert [m.label for m in mutants.of(layer)] == [
        "layer_norm without the last element of a row", "layer_norm without eps", "layer_norm without the mean",
        "layer_norm without the weight", "layer_norm without the bias",
    ]  # fmt: skip
    assert examine(layer)["mutants"] == {"seen": 5, "equivalent": []}
    rms = captured(lambda x, w: F.rms_norm(x, (40,), w), x, one, folder=tmp_path / "r", pattern="rms_norm")
    assert examine(rms)["mutants"] == {"seen": 3, "equivalent": []}


def test_what_was_not_gone_through_is_not_called_equivalent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reference = captured(lambda x: torch.relu(x.abs()) + 1.0, torch.randn(40), folder=tmp_path / "t")
    monkeypatch.setattr(mutants, "MOST_SECONDS", -1.0)
    assert examine(reference)["mutants"] == {"seen": 0, "equivalent": [], "skipped": "sets are gone through for -1 s", "untried": 3}
    monkeypatch.setattr(mutants, "MOST_ELEMENTS", 10)
    assert examine(reference)["mutants"]["untried"] == 3


def test_a_mutant_leaves_the_reference_as_it_was(tmp_path: Path) -> None:
    reference = captured(lambda x: torch.tanh(x) + 1.0, torch.randn(30), folder=tmp_path / "t")
    drawn = reference.draw(reference.task.cases[0], 3)
    before = reference.wide(drawn)[0][0]
    changed = [m.run(drawn)[0] for m in mutants.of(reference)]
    assert len(changed) == 2 and all(not torch.equal(c, before) for c in changed)
    assert torch.equal(reference.wide(drawn)[0][0], before)


# What inputs allow


def test_slack_is_what_backward_error_does(tmp_path: Path) -> None:
    """A variance of numbers with an offset is known to about offset / deviation roundings, not to one."""
    reference = captured(lambda x: torch.var(x, -1), torch.randn(40, 400), folder=tmp_path / "t")
    assert reference.reduction == 400
    case = reference.task.cases[0]
    plain, offset = (reference.expected(reference.draw(case, 1, name)) for name in ("normal", "offset"))
    unit = 2.0**-24
    assert plain.slack[0][0] < 40 * unit
    assert 1e3 * unit < offset.slack[0][0] < 1e6 * unit
    # E[x^2] - E[x]^2 in fp32 is no honest way to it.
    x = reference.draw(case, 1, "offset").args["x"]
    naive = ((x * x).mean(-1) - x.mean(-1) ** 2) * 400 / 399
    allowed = tolerance(torch.float32, 400, (offset.norm_err[0], offset.max_err[0]))[0] + offset.slack[0][0]
    assert error(naive, offset.outputs[0])[0] > 10 * allowed


def test_canonical_ops_have_slack_for_chains_of_equal_terms_alone(tmp_path: Path) -> None:
    reference = captured(lambda x: torch.softmax(x, -1), torch.randn(7, 300), folder=tmp_path / "t", pattern="softmax")
    slack = {n: reference.expected(reference.draw(reference.task.cases[0], 1, n)).slack for n in ("normal", "offset", "tiny")}
    assert slack["normal"] == slack["offset"] == ((0.0, 0.0),)
    assert slack["tiny"][0][0] == pytest.approx(150 * 2.0**-24)


def test_equals_stay_equal_when_inputs_move() -> None:
    x = torch.tensor([1.5, -2.0, 1.5, 0.0, -0.0, math.inf, -2.0, 1.5000001])
    moved = budget._moved(Drawn({"x": x}, (), (), None), 1000.0, 5).args["x"]
    assert moved[0] == moved[2] != 1.5 and moved[1] == moved[6] != -2.0 and moved[3] == moved[4] == 0 and moved[5] == math.inf
    assert 0 < abs(moved[0] - 1.5) <= 1.5 * 1000 * 2.0**-24
    noise = budget._noise(torch.randn(100000, dtype=torch.float64), 1)
    assert -1 <= float(noise.min()) < -0.99 and 0.99 < float(noise.max()) <= 1 and abs(float(noise.mean())) < 0.02


def test_integers_that_rounding_decides_are_open_and_no_others(tmp_path: Path) -> None:
    quantise = captured(lambda x: torch.round(x * 8).to(torch.int32), torch.randn(4), folder=tmp_path / "q")
    tie = (2.5 + 1e-7) / 8  # fp32 may put its product on either side
    x = torch.tensor([0.1, tie, -0.9, 0.3])
    e = quantise.expected(Drawn({"x": x}, (), (), None))
    assert e.outputs[0].tolist() == [1, compare.ANY, -7, 2]
    assert budget.open_share(e.outputs) == 0.25 and e.norm_err == (0.0,)
    # torch says that argmax takes the first of equals; which of equals topk takes it does not say.
    x = torch.tensor([[1.0, 3.0, 3.0, 0.0], [5.0, 1.0, 2.0, 0.5]])
    first = captured(lambda x: torch.argmax(x, -1), x, folder=tmp_path / "a")
    assert first.expected(Drawn({"x": x}, (), (), None)).outputs[0].tolist() == [1, 0]
    top = captured(lambda x: torch.topk(x, 2)[1], x, folder=tmp_path / "k")
    assert top.expected(Drawn({"x": x}, (), (), None)).outputs[0].tolist() == [[compare.ANY] * 2, [0, 2]]


def test_errors_on_both_devices_leave_open_integers_out() -> None:
    out, oracle = torch.tensor([1, 7, 3]), torch.tensor([1, compare.ANY, 4])
    assert compare.errors(out, oracle) == pytest.approx((1 / 17**0.5, 0.25, 1))
    from kgen.judge import errors

    assert errors(out, oracle) == pytest.approx((1 / 17**0.5, 0.25, 1))


@pytest.mark.parametrize(
    ("model", "shape", "terms"),
    [
        (lambda x: torch.var_mean(x, -1), (3, 40), 40),
        (lambda x: torch.nn.functional.mse_loss(x, x + 1), (3, 40), 120),
        (lambda x: torch.nn.functional.group_norm(x, 2), (3, 6, 5), 15),
        (lambda x: torch.zeros(4, 7).index_add(0, torch.arange(20) % 4, x), (20, 7), 20),
        (lambda x: torch.nn.functional.normalize(x, dim=-1), (3, 40), 40),
        (lambda x: torch.nn.functional.avg_pool2d(x, 4), (1, 2, 8, 8), 16),
        (lambda x: torch.einsum("ik,jk->ij", x, x), (3, 40), 40),
        (lambda x: x * 2, (3, 40), 1),
    ],
)
def test_reductions_of_many_kinds_are_counted(tmp_path: Path, model: Function, shape: tuple[int, ...], terms: int) -> None:
    assert captured(model, torch.randn(shape), folder=tmp_path / "t").reduction == terms
