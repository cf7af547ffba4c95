"""How far an answer may be off because of its inputs: enough for an honest sum in one chain, nothing for a wrong comparison."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from kgen import budget, distributions
from kgen.reference import Drawn, error

SHAPE, EPS = (37, 200), 1e-5


def drawn(seed: int, distribution: str = "rows") -> Drawn:
    g = torch.Generator().manual_seed(seed)
    x = distributions.floats({"kind": "normal", "mean": 0.0, "std": 1.0}, SHAPE, g, distribution, torch.float32).float()
    return Drawn({"x": x}, (), (), None, distribution in ("onehot", "tiny", "rows"), distribution == "large")


def reference(f: Callable[[torch.Tensor], torch.Tensor]) -> Any:
    return SimpleNamespace(reduction=SHAPE[1], operations=frozenset(), wide=lambda d: ((f(d.args["x"].double()),), set()))


def slack_of(f: Callable[[torch.Tensor], torch.Tensor], d: Drawn) -> tuple[float, float]:
    own = f(d.args["x"])
    return budget.settle(reference(f), d, (own,), (f(d.args["x"].double()),))[1][0]


def norm(x: torch.Tensor) -> torch.Tensor:
    return torch.nn.functional.layer_norm(x, SHAPE[1:], eps=EPS)


def chained(x: np.ndarray, chains: int) -> np.ndarray:
    """Sums of rows as a kernel adds them up in float32, in so many chains."""
    parts = [np.add.accumulate(x[:, k::chains], axis=1, dtype=np.float32)[:, -1:] for k in range(chains)]
    return sum(parts[1:], parts[0])


def two_passes(x: torch.Tensor, chains: int) -> torch.Tensor:
    r, n = x.numpy(), np.float32(SHAPE[1])
    rest = r - chained(r, chains) / n
    scale = np.float32(1) / np.sqrt(chained(rest * rest, chains) / n + np.float32(EPS))
    return torch.from_numpy(rest * scale)


@pytest.mark.parametrize("chains", [1, 4])
def test_an_honest_sum_of_equal_terms_is_let_through(chains: int) -> None:
    """On a row that is constant the mean is off by half a rounding a term, and a variance of nothing magnifies that 300 times."""
    worst = 0.0
    for seed in range(20):
        d = drawn(seed)
        off, most = error(two_passes(d.args["x"], chains), norm(d.args["x"].double()))
        allowed, allowed_most = slack_of(norm, d)
        assert off <= allowed and most <= allowed_most, (seed, off, allowed, most, allowed_most)
        worst = max(worst, off)
    assert worst > 1e-5  # or this shows nothing
    assert allowed < 2e-3  # and a mean that is missing is seen


def test_a_chain_that_loses_small_terms_is_let_through() -> None:
    """Next to the largest terms of six decades most others are less than half a rounding of the running sum."""
    def total(x: torch.Tensor) -> torch.Tensor:
        return (x * x).sum()

    g, terms, worst = torch.Generator().manual_seed(3), 16384, 0.0
    for _ in range(40):
        x = distributions.floats({"kind": "normal", "mean": 0.0, "std": 1.0}, (terms,), g, "large", torch.float32).float()
        d = Drawn({"x": x}, (), (), None, False, True)
        of = SimpleNamespace(reduction=terms, operations=frozenset(), wide=lambda d: ((total(d.args["x"].double()),), set()))
        chain = np.add.accumulate(x.numpy() ** 2, dtype=np.float32)[-1]
        off = error(torch.tensor(float(chain)), total(x.double()))[0]
        allowed = budget.settle(of, d, (total(x),), (total(x.double()),))[1][0][0]
        assert off <= allowed < 1e-4, (off, allowed)  # what a product in tf32 costs, 2e-4 and more, is seen
        worst = max(worst, off / allowed)
    assert worst > 0.1  # or this shows nothing


def test_what_does_not_repeat_has_no_more() -> None:
    d = drawn(1, "normal")
    off, most = error(two_passes(d.args["x"], 1), norm(d.args["x"].double()))
    assert max(off, most) < 1e-5 and max(slack_of(norm, d)) < 1e-5


@pytest.mark.parametrize(
    "f",
    [
        lambda x: (x == x.amax(-1, keepdim=True)).to(x.dtype),  # all of a constant row, and one of it when its terms are moved apart
        lambda x: torch.sign(x - x[:, :1]),
        lambda x: torch.round(x * 2),
    ],
    ids=["equal", "sign", "round"],
)
def test_a_comparison_is_not_excused(f: Callable[[torch.Tensor], torch.Tensor]) -> None:
    """Where moving equal numbers apart makes an output jump, that is no measure of rounding."""
    jumped = 0
    for seed in range(10):
        d = drawn(seed)
        moved = budget._moved(d, SHAPE[1] / 2, 0, alike=False).args["x"]
        jumped += bool((f(moved) != f(d.args["x"].double())).any())
        assert budget._apart(reference(f), d, (f(d.args["x"].double()),), SHAPE[1] / 2) == [(0.0, 0.0)], seed
    assert jumped  # or this shows nothing
