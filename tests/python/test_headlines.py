"""tests/bench/headlines.py as far as a CPU goes: each row has a template at its default tunables, the random products are the
same each time, errors against fp64 are those of torch, and what --plot says."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from kgen import baselines
from kgen._paths import kernels_dir
from kgen.baselines import Inputs
from kgen.task import canonical_contract

BENCH = Path(__file__).resolve().parents[1] / "bench"


@pytest.fixture(scope="module")
def headlines() -> Any:
    sys.path.insert(0, str(BENCH))
    try:
        import headlines as found
    finally:
        sys.path.remove(str(BENCH))
    return found


def test_every_row_has_a_template(headlines: Any) -> None:
    sources = [p.read_bytes() for p in sorted(kernels_dir().rglob("*.cu"))]
    for name, work in headlines.WORKS.items():
        case = work.trial().on("cuda").case
        contract = canonical_contract(case["op"]).decode()
        own = [t for t in sources if headlines.plan_of(t)["op"] == case["op"]]
        assert any(headlines.choices(contract, case, t, 1) == (1, 1) for t in own), name


def test_random_products(headlines: Any) -> None:
    for dtype in ("float32", "bfloat16"):
        shapes = headlines.random_shapes(dtype)
        assert len(shapes) == 30 == len(set(shapes)) and shapes == headlines.random_shapes(dtype)
        assert {s[4] for s in shapes} == {"c", "t"} and any(s[0] > 1 for s in shapes) and any(s[1] <= 33 for s in shapes)
        assert sum(f"random-{dtype}" in p for p in headlines.PARTS) * headlines.GRID == 30
    assert set(headlines.PARTS) == set(headlines.TAKES) and max(headlines.TAKES.values()) < 480


SMALL = {
    "matmul": ("matmul", ("float32", 40, 24, 72)), "batched": ("matmul", ("bfloat16", 40, 24, 72, 3, "t")),
    "linear": ("linear", ("float32", 40, 24, 72, "gelu")), "layer_norm": ("norm", ("layer_norm", "float32", 9, 40, ("weight", "bias"))),
    "rms_norm": ("norm", ("rms_norm", "float32", 300, 40, ("weight",))), "softmax": ("softmax", ("float32", 600, 40)),
}  # fmt: skip


@pytest.mark.parametrize("what", SMALL)
def test_errors_are_torchs(headlines: Any, what: str) -> None:
    torch.manual_seed(0)
    make, arguments = SMALL[what]
    case = getattr(headlines, make)(*arguments)().case
    args = headlines.drawn(case, torch.device("cpu"))
    (got,) = baselines.of(case)[0].build()(Inputs(args, ()))
    rounding = 2.0**-8 if args["input"].dtype == torch.bfloat16 else 2.0**-23
    assert headlines.error(case, args, (), got) < 8 * rounding
    assert 0.5 < headlines.error(case, args, (), -got) / 2 < 1.5
    assert (headlines.flops(case["op"], args) > 0) == (what in ("matmul", "batched", "linear"))


def test_plot(headlines: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    state = tmp_path / "state.json"
    assert headlines.plot(state, tmp_path / "p.png") == 2 and "has no measured row" in capsys.readouterr().err
    row = {"name": "matmul float32, over torch's best", "value": 4.4, "unit": "x", "limit": 4.2, "least": True, "note": ""}
    state.write_text(json.dumps({"machine": {"gpu": "G", "torch": "2"}, "parts": {"a": {"rows": [row], "notes": []}}}))
    code = headlines.plot(state, tmp_path / "p.png")
    if importlib.util.find_spec("matplotlib"):
        assert code == 0 and (tmp_path / "p.png").read_bytes().startswith(b"\x89PNG")
    else:
        assert code == 3 and "pip install matplotlib" in capsys.readouterr().err
