"""The kernels of matmul and linear on a GPU, through the judge: every template and the builds that make another kernel of it,
over sizes that hang over tiles, layouts and alignments, with epilogues; lines that two planes of float16 cannot hold; and
that a product served is the one that was judged."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from kgen import _libkgen, epilogues, spread
from kgen._paths import kernels_dir
from kgen.epilogues import Product
from kgen.judge import Judge
from kgen.task import canonical_contract

pytestmark = pytest.mark.cuda
GPU = torch.device("cuda", 0)
HALVES, SINGLE = ("bfloat16", "float16"), ("float32",)

# Template without its Op, tunables, dtypes, layouts (of the right operand: c row-major for matmul, t transposed).
BUILDS: dict[str, tuple[str, dict[str, int], tuple[str, ...], str]] = {
    "hopper": ("hopper", {}, HALVES, "c"),
    "hopper, 256 rows": ("hopper", {"BLOCK_M": 256, "BLOCK_N": 128, "CLUSTER_M": 1, "CLUSTER_N": 2}, HALVES, "c"),
    "hopper, in turn": ("hopper", {"PINGPONG": 1, "BLOCK_N": 128, "STAGES": 6}, HALVES, "c"),
    "hopper, narrow in turn": ("hopper", {"PINGPONG": 1, "BLOCK_M": 64, "STAGES": 4}, HALVES, "c"),
    "hopper, alone": ("hopper", {"BLOCK_N": 64, "CLUSTER_M": 1, "STAGES": 8}, HALVES, "c"),
    "hopper, split": ("hopper", {"BLOCK_N": 64, "CLUSTER_M": 1, "STAGES": 8, "SPLIT": 2}, HALVES, "c"),
    "hopper, behind": ("hopper", {"LAG": 2, "BACK": 1}, HALVES, "c"),
    "hopper, transposed": ("hopper", {"RIGHT_TURNED": 1}, HALVES, "t"),
    "split": ("split", {}, SINGLE, "c"),
    "split, transposed": ("split", {"CLUSTER_M": 1, "CLUSTER_N": 2}, SINGLE, "t"),
    "split, behind": ("split", {"LAG": 1, "BACK": 1}, SINGLE, "c"),
    "split, late": ("split", {"LATE": 1, "GROUP": 4}, SINGLE, "c"),
    "split, late, transposed": ("split", {"LATE": 1, "GROUP": 4, "CLUSTER_M": 1, "LAG": 1}, SINGLE, "t"),
    "split, split": ("split", {"SPLIT": 2}, SINGLE, "c"),
    "mma": ("mma", {}, HALVES, "c"),
    "mma, transposed": ("mma", {"RIGHT_TURNED": 1, "STAGES": 4}, HALVES, "t"),
    "mma, few rows": ("mma", {"BLOCK_M": 16, "WARPS_M": 1, "SPLIT": 2}, HALVES, "c"),
    "fma": ("fma", {}, SINGLE, "c"),
    "fma, transposed": ("fma", {"RIGHT_TURNED": 1, "BLOCK_M": 64, "BLOCK_N": 64, "SIDE": 4}, SINGLE, "t"),
    "skinny": ("skinny", {}, (*SINGLE, *HALVES), "c"),
    "skinny, transposed": ("skinny", {"ACROSS": 0}, (*SINGLE, *HALVES), "t"),
}  # fmt: skip
# Multiples of 8 where TMA must address rows; any for the others.
EVEN = (Product(1, 8, 8, 8), Product(1, 128, 256, 64), Product(2, 136, 264, 72), Product(1, 1000, 776, 1032), Product(3, 300, 2048, 40),
        Product(1, 2, 520, 4096), Product(1, 513, 264, 4096))  # fmt: skip
ODD = (Product(1, 1, 1, 1), Product(1, 127, 129, 33), Product(2, 130, 67, 45), Product(1, 257, 1, 100), Product(4, 31, 300, 7),
       Product(1, 513, 770, 1001), Product(1, 3, 129, 4097))  # fmt: skip
TALL = (Product(1, 1025, 129, 33), Product(1, 2000, 520, 1001), Product(1, 4096, 1000, 4097), Product(1, 9000, 64, 300))
FEW = (Product(1, 1, 1, 1), Product(1, 8, 129, 33), Product(2, 7, 300, 1000), Product(1, 1, 4096, 4096), Product(3, 5, 67, 4097))


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


def judged(op: str, build: str, trials: list[Any]) -> spread.Evidence:
    name, chosen, _, _ = BUILDS[build]
    if name in ("hopper", "split") and torch.cuda.get_device_capability(GPU)[0] != 9:
        pytest.skip("for sm_90")
    path = kernels_dir() / "matmul" / (f"{name}.cu" if op == "matmul" else f"linear_{name}.cu")
    contract = canonical_contract(op).decode()
    about = _libkgen.candidate_check(contract, path.read_bytes(), path.name)["tunables"]
    defaults = {n: v[0] if isinstance(v, list) else v for n, v in about.items()}
    # linear's weight is the transposed right operand.
    turned = {} if op == "matmul" else {n: {"RIGHT_TURNED": 1, "ACROSS": 0}[n] for n in ("RIGHT_TURNED", "ACROSS") if n in defaults}
    found = spread.judge(contract, path.read_bytes(), path.name, defaults | chosen | turned, [t.on("cuda") for t in trials])
    assert found.verdict == "pass", found.message
    return found


def sizes_of(build: str) -> tuple[Product, ...]:
    name, chosen, _, _ = BUILDS[build]
    if "LATE" in chosen:
        return TALL
    sizes = EVEN if name == "hopper" else FEW if name == "skinny" else (*EVEN, *ODD)
    step = 64 if name in ("hopper", "split") else 32
    return tuple(s for s in sizes if s.k > step) if "SPLIT" in chosen else sizes


@pytest.mark.parametrize("build", BUILDS)
def test_matmul(build: str) -> None:
    name, _, dtypes, layout = BUILDS[build]
    aligns = (64,) if name == "hopper" else (64, 16, 4)
    trials = [
        epilogues.trial("matmul", dtypes[i % len(dtypes)], at, layout=layout, align=aligns[i % len(aligns)])
        for i, at in enumerate(sizes_of(build))
    ]
    found = judged("matmul", build, trials)
    assert len(found.skipped) <= len(trials) // 2, found.skipped


@pytest.mark.parametrize("build", [b for b in BUILDS if BUILDS[b][3] == "c"])
def test_linear(build: str) -> None:
    name, _, dtypes, _ = BUILDS[build]
    trials = [
        epilogues.trial("linear", dtypes[i % len(dtypes)], Product(1, at.m, at.n, at.k), ("bias",) if i % 2 else ())
        for i, at in enumerate(sizes_of(build))
    ]
    found = judged("linear", build, trials)
    assert len(found.skipped) <= len(trials) // 2, found.skipped


@pytest.mark.parametrize("build", ["hopper", "hopper, in turn", "hopper, split", "split", "mma", "fma", "skinny"])
def test_epilogues(build: str) -> None:
    _, _, dtypes, _ = BUILDS[build]
    at = Product(1, 7 if build == "skinny" else 130, 264, 200)
    trials = [epilogues.trial("linear", dtypes[0], at, ("bias",), p, name) for name, p in epilogues.named("linear", at, dtypes[0])]
    trials += [epilogues.trial("linear", dtypes[0], at, ("bias",), p, name) for name, p in epilogues.random_ones(12, at)]
    found = judged("linear", build, trials)
    assert not found.skipped and len(found.programs) >= 12


def test_strays_are_exact() -> None:
    """Sizes of columns that make up for each other over more than the planes hold, tiny rows, Inf and NaN; each element by
    itself, and NaN and Inf where torch has them."""
    if torch.cuda.get_device_capability(GPU)[0] != 9:
        pytest.skip("for sm_90")
    left, right = torch.randn(1, 700, 1300), torch.randn(1, 1300, 660)
    for line in (9, 400, 699):
        left[0, line] *= torch.logspace(-18, 18, 1300)
    for line in (9, 659):
        right[0, :, line] *= torch.logspace(17, -17, 1300)
    left[0, 7] *= 1e-36
    left[0, 3, 4], left[0, 5, 5], right[0, 4, 7] = torch.inf, torch.nan, -torch.inf
    right[0, :, 11] = 0
    left, right = left.to(GPU), right.to(GPU)
    contract, text = canonical_contract("matmul").decode(), (kernels_dir() / "matmul" / "split.cu").read_bytes()
    with Judge(contract, device=GPU) as judge:
        case = judge.add_case(epilogues.trial("matmul", "float32", Product(1, 700, 660, 1300)).on("cuda").case)
        wide = left.double() @ right.double()
        judge.add_set(case, [left, right], [wide], results=[torch.matmul(left, right)])
        record = judge.run(text, name="split.cu", all_sets=True)
        assert record["verdict"] == "pass", record["message"]


def test_twenty_calls_are_bit_equal(tmp_path: Any) -> None:
    """Through torch.ops: promoted into a registry of its own, served, the same bits each time, and torch's values."""
    import kgen

    if torch.cuda.get_device_capability(GPU)[0] != 9:
        pytest.skip("for sm_90")
    for name, dtype in (("hopper", "bfloat16"), ("split", "float32")):
        at = Product(1, 1000, 776, 1032)
        trial = epilogues.trial("matmul", dtype, at).on("cuda")
        contract = canonical_contract("matmul").decode()
        text = (kernels_dir() / "matmul" / f"{name}.cu").read_bytes()
        found = spread.judge(contract, text, f"{name}.cu", None, [trial], any_size=False, reps=5)
        assert found.verdict == "pass", found.message
        key, _ = _libkgen.case_key(contract, trial.case)
        record = {**found.record, "source": "kernel.cu"}
        record["environment"]["torch"] = torch.__version__
        _libkgen.registry_promote(tmp_path / name, contract, None, text, record, [key])
        kgen.load(tmp_path / name)
        try:
            a, b = (torch.randn(1, *s, device=GPU, dtype=getattr(torch, dtype)) for s in ((at.m, at.k), (at.k, at.n)))
            assert kgen.why("matmul", a, b).fallbacks == 0
            first = torch.ops.kgen.matmul(a, b)
            assert all(torch.equal(torch.ops.kgen.matmul(a, b), first) for _ in range(20))
            assert (first.double() - a.double() @ b.double()).norm() <= 1.1 * (torch.matmul(a, b).double() - a.double() @ b.double()).norm()
        finally:
            kgen.unload(tmp_path / name)
