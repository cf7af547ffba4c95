"""Input sets: secret, different each time, with an oracle that is fp64's, and none on which torch itself cannot be right."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from kgen import capture, own, sets, targets, task
from kgen.distributions import SHARED, names_for
from kgen.judge import Judge
from kgen.reference import Reference


class Softmax(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.softmax(x, dim=-1)


class Biased(nn.Module):
    """Attention with a learned bias by head: a captured tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.slopes = nn.Parameter(torch.tensor([0.5, -0.25]))

    def forward(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        at = torch.arange(q.shape[2])
        scores = q @ k.transpose(-2, -1) / 4 + self.slopes[:, None, None] * (at[None, :] - at[:, None])
        return torch.softmax(scores.masked_fill(at[None, :] > at[:, None], -torch.inf), -1) @ v


def task_of(folder: Path, module: nn.Module, *args: torch.Tensor) -> task.Task:
    captured = capture.Capture(capture.from_live(module, args))
    target = next(t for t in targets.survey(captured, own=False).targets if t.canonical)
    return task.read(task.write(targets.resolve(captured, target), captured, folder / target.op))


@pytest.fixture(scope="module")
def softmax(tmp_path_factory: pytest.TempPathFactory) -> task.Task:
    return task_of(tmp_path_factory.mktemp("softmax"), Softmax(), torch.randn(20, 30) * 3 + 1)


@pytest.fixture(scope="module")
def attention(tmp_path_factory: pytest.TempPathFactory) -> task.Task:
    torch.manual_seed(0)
    q, k, v = (torch.randn(1, 2, 40, 16) for _ in range(3))
    return task_of(tmp_path_factory.mktemp("attention"), Biased(), q, k, v)


def test_seeds_are_not_repeated() -> None:
    seeds = {sets.secret_seed() for _ in range(200)}
    assert len(seeds) == 200 and max(seeds) > 1 << 60 and all(0 <= s < 1 << 62 for s in seeds)


def test_what_a_case_is_judged_on(softmax: task.Task) -> None:
    made = sets.for_judge(softmax, Reference.open(softmax), 0)
    names = [name for name, _, _ in made.sets]
    assert names[: sets.CAPTURED_SETS] == ["captured"] * sets.CAPTURED_SETS
    assert set(names) | set(made.dropped) == set(names_for("softmax")) and not set(names) & set(made.dropped)
    seen: list[torch.Tensor] = []
    for name, drawn, expected in made.sets:
        x = drawn.args["input"]
        assert x.dtype == torch.float32 and x.shape == (20, 30)
        (oracle,) = expected.outputs
        assert oracle.dtype == torch.float64
        torch.testing.assert_close(oracle, torch.softmax(x.double(), -1), rtol=1e-12, atol=1e-300, equal_nan=True)
        torch.testing.assert_close(expected.torch_outputs[0], torch.softmax(x, -1), rtol=0, atol=0, equal_nan=True)
        assert not any(torch.equal(x, other) for other in seen), name
        seen.append(x)
    captured = torch.stack(seen[: sets.CAPTURED_SETS])
    assert captured.mean() == pytest.approx(1.0, abs=0.5) and captured.std() == pytest.approx(3.0, abs=0.5)


def test_the_judge_takes_them(softmax: task.Task) -> None:
    with Judge((softmax.folder / "op.json").read_text()) as judge:
        dropped = sets.fill(judge, softmax, Reference.open(softmax), 0)
        assert all(isinstance(reason, str) and reason for reason in dropped.values())
        assert judge.describe(0)["reduction"] == 30
        assert judge.trivial(0) == []


def test_what_goes_to_the_gate(attention: task.Task) -> None:
    """New seeds, the captured distribution, its captured tensor by value, and limits that torch itself keeps and that
    a thousandth off does not."""
    reference = Reference.open(attention)
    with Judge((attention.folder / "op.json").read_text()) as judge:
        judge.add_case(attention.cases[0])
        made = sets.for_gate(judge, attention, reference, 0)
    assert len(made) == sets.GATE_SETS
    for i, one in enumerate(made):
        assert list(one.args) == ["query", "key", "value"]
        assert torch.equal(one.captured[0], torch.tensor([0.5, -0.25]))
        assert [o.dtype for o in one.oracles] == [torch.float64]  # no log-sum-exp: a model does not use it
        assert one.dtypes == (torch.float32,)
        for norm, worst in one.limits:
            assert 0 < norm <= worst < 1e-4
        for other in made[:i]:
            assert not torch.equal(one.args["query"], other.args["query"])
    q, k, v = (made[0].args[n] for n in ("query", "key", "value"))
    with torch.no_grad():
        own = Biased()(q.double(), k.double(), v.double())
    torch.testing.assert_close(made[0].oracles[0], own, rtol=1e-6, atol=1e-9)  # the slopes are float32
    assert _error(Biased()(q, k, v).detach(), own) <= made[0].limits[0][0] < _error(own * 1.001, own)


def _error(got: torch.Tensor, want: torch.Tensor) -> float:
    return float((got.double() - want).norm() / want.norm())


def test_optional_tensors_keep_their_place() -> None:
    class Fake:
        contract: dict[str, Any] = {
            "args": [{"name": "input", "type": "Tensor"}, {"name": "bias", "type": "Tensor?"}, {"name": "n", "type": "int"}]
        }

    class Drawn:
        args = {"input": torch.ones(2), "n": 3}

    found = sets.tensors(Fake(), Drawn())  # type: ignore[arg-type]
    assert list(found) == ["input", "bias"] and found["bias"] is None


class Difference(nn.Module):
    def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.mse_loss(x, y)


class Blend(nn.Module):
    def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return torch.sigmoid(x) * y


def own_task(folder: Path, module: nn.Module, *args: torch.Tensor) -> task.Task:
    captured = capture.Capture(capture.from_live(module, args))
    whole = next(t for t in own.own_targets(captured) if t.reason is None and "" in t.paths)
    return task.read(task.write(targets.resolve(captured, whole), captured, folder / "own"))


def test_tensors_that_could_be_one_are_one_once(attention: task.Task, softmax: task.Task) -> None:
    made = sets.for_judge(attention, Reference.open(attention), 0)
    (drawn, expected), = ((d, e) for name, d, e in made.sets if name == SHARED)
    q, k, v = (drawn.args[n] for n in ("query", "key", "value"))
    assert q is k and k is v and made.sets[-1][0] == SHARED
    scores = q.double() @ q.double().mT / 4
    assert torch.isfinite(expected.outputs[0]).all() and scores.diagonal(dim1=-2, dim2=-1).min() > 0
    assert all(len({d.args[n].data_ptr() for n in ("query", "key", "value")}) == 3 for name, d, _ in made.sets if name != SHARED)
    assert SHARED not in sets.distributions(softmax, 0)


def test_what_cancels_out_is_not_judged_as_one(tmp_path: Path) -> None:
    loss = own_task(tmp_path / "a", Difference(), torch.randn(20, 30), torch.randn(20, 30))
    assert "cancel" in sets.for_judge(loss, Reference.open(loss), 0).dropped[SHARED]
    blend = own_task(tmp_path / "b", Blend(), torch.randn(20, 30), torch.randn(20, 30))
    assert SHARED in [name for name, _, _ in sets.for_judge(blend, Reference.open(blend), 0).sets]
    apart = own_task(tmp_path / "c", Blend(), torch.randn(20, 30), torch.randn(30))
    assert SHARED not in sets.distributions(apart, 0)


def test_one_tensor_stays_one_where_it_is_kept() -> None:
    class OnGpu:
        is_cuda = True

        def numel(self) -> int:
            return 8

        def element_size(self) -> int:
            return 4

        def cpu(self) -> object:
            return object()

    a, b = OnGpu(), OnGpu()
    kept = sets.Placing(0, 0, room=64)
    assert kept.put([a, a, None, b]) == [a, a, None, b] and kept.room == 0  # type: ignore[list-item, comparison-overlap]
    first, second, none, other = kept.put([a, a, None, b])  # type: ignore[list-item]
    assert first is second and none is None and other is not first and first is not a
