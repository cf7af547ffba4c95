"""The kernels of conv2d on a GPU, through the judge: every template and the builds that make another kernel of it, over sizes
that hang over tiles, with strides, paddings, dilations, groups, both memory formats, gaps and alignments, with epilogues; and
that a convolution served is the one that was judged, in torch's memory format, and patched into a model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from kgen import _libkgen, convs, epilogues, spread
from kgen._paths import kernels_dir
from kgen.convs import At
from kgen.task import canonical_contract

pytestmark = pytest.mark.cuda
GPU = torch.device("cuda", 0)
HALVES, SINGLE = ("bfloat16", "float16"), ("float32",)

# Template, tunables, dtypes, layouts.
BUILDS: dict[str, tuple[str, dict[str, int], tuple[str, ...], str]] = {
    "fma": ("fma", {}, SINGLE, "cis"),
    "fma, last": ("fma", {"LAST": 1}, SINGLE, "l"),
    "fma, small": ("fma", {"BLOCK_O": 32, "BLOCK_P": 64, "SIDE": 4}, SINGLE, "c"),
    "split": ("split", {}, SINGLE, "cis"),
    "split, last": ("split", {"LAST": 1}, SINGLE, "l"),
    "split, 128": ("split", {"BLOCK_N": 128}, SINGLE, "c"),
    "split, 64 last": ("split", {"BLOCK_N": 64, "LAST": 1}, SINGLE, "l"),
    "few": ("few", {}, SINGLE, "cis"),
    "few, wide": ("few", {"TAP_W": 2, "TILES": 2, "BLOCK_N": 64}, SINGLE, "c"),
    "few, last": ("few", {"LEFT": 1, "LAST": 1}, SINGLE, "l"),
    "mma": ("mma", {}, HALVES, "cis"),
    "mma, last": ("mma", {"LAST": 1}, HALVES, "l"),
    "mma, large": ("mma", {"BLOCK_O": 128, "WARPS_P": 4}, HALVES, "c"),
    "mma, large last": ("mma", {"BLOCK_O": 128, "WARPS_P": 4, "STAGES": 4, "LAST": 1}, HALVES, "l"),
}  # fmt: skip
DEPTHWISE = (
    At(1, 1, 1, 1, 1, 1, 1), At(2, 1, 14, 14, 32, ph=1, pw=1, g=32), At(2, 1, 57, 31, 48, 3, 3, 2, 2, 1, 1, g=24), At(1, 1, 40, 29, 8, 7, 5, 1, 3, 3, 2, 2, 1, 8),
    At(3, 1, 7, 7, 120, 5, 5, ph=2, pw=2, g=120), At(1, 1, 130, 200, 6, 11, 11, 4, 4, 5, 5, g=3),
)  # fmt: skip
SIZES = (
    At(1, 1, 1, 1, 1, 1, 1), At(2, 3, 17, 19, 8, ph=1, pw=1), At(1, 16, 15, 33, 40, 5, 3, 2, 2, 2, 1), At(2, 8, 20, 20, 16, 3, 3, 1, 1, 2, 2, 2, 2),
    At(3, 4, 13, 9, 24, 3, 3, 1, 2, 1, 1, 1, 1, 4), At(2, 1, 14, 14, 32, ph=1, pw=1, g=32), At(4, 64, 28, 28, 130, ph=1, pw=1),
    At(1, 3, 112, 112, 96, 11, 11, 4, 4, 2, 2), At(2, 256, 7, 7, 512, 1, 1), At(2, 40, 31, 29, 65, 2, 4, 3, 1, 0, 3),
)  # fmt: skip


def judged(build: str, trials: list[Any], **how: Any) -> spread.Evidence:
    name, chosen, _, _ = BUILDS[build]
    if name in ("split", "few") and torch.cuda.get_device_capability(GPU)[0] != 9:
        pytest.skip("for sm_90")
    path, contract = kernels_dir() / "conv" / f"{name}.cu", canonical_contract("conv2d").decode()
    about = _libkgen.candidate_check(contract, path.read_bytes(), path.name)["tunables"]
    defaults = {n: v[0] if isinstance(v, list) else v for n, v in about.items()}
    found = spread.judge(contract, path.read_bytes(), path.name, defaults | chosen, [t.on("cuda") for t in trials], **how)
    assert found.verdict == "pass", found.message
    return found


@pytest.mark.parametrize("build", BUILDS)
def test_values(build: str) -> None:
    _, _, dtypes, layouts = BUILDS[build]
    aligns = (64, 16, 4)
    trials = [
        convs.trial("conv2d", dtypes[i % len(dtypes)], at, ("bias",) if i % 2 else (), layout=layouts[i % len(layouts)], align=aligns[i % 3])
        for i, at in enumerate(SIZES if not build.startswith("few") else convs.gpu_first_sizes())
    ]
    found = judged(build, trials)
    # Those that torch does not take for channels last, of split.cu those with groups and of a single term, and of few.cu those
    # that do not fit or are not as wide as its places.
    assert len(found.skipped) <= (6 if not build.startswith("few") else len(trials) - 10), found.skipped


@pytest.mark.parametrize("rows", [4, 1])
def test_depthwise(rows: int) -> None:
    path, contract = kernels_dir() / "conv" / "depthwise.cu", canonical_contract("conv2d").decode()
    trials = [
        convs.trial("conv2d", (*SINGLE, *HALVES)[i % 3], at, ("bias",) if i % 2 else (), layout="cis"[i % 3]).on("cuda")
        for i, at in enumerate(DEPTHWISE)
    ]
    found = spread.judge(contract, path.read_bytes(), path.name, {"ROWS": rows}, trials)
    assert found.verdict == "pass" and not found.skipped, found.message


@pytest.mark.parametrize("build", ["fma", "fma, last", "mma", "mma, last", "split", "split, last", "few", "few, last"])
def test_epilogues(build: str) -> None:
    _, _, dtypes, layouts = BUILDS[build]
    at, layout = At(2, 12, 13, 10, 24, 3, 3, 1, 2, 1, 1), layouts[0]
    product = at.output(layout == "l")
    programs = [*epilogues.named("conv2d", product, dtypes[0]), *epilogues.random_ones(8, product)]
    found = judged(build, [convs.trial("conv2d", dtypes[0], at, ("bias",), p, name, layout) for name, p in programs])
    assert not found.skipped and len(found.programs) >= 12


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Kernels for one size, with and without relu behind it, in both memory formats."""
    import kgen

    contract, folders = canonical_contract("conv2d").decode(), []
    at = At(4, 32, 28, 28, 48, ph=1, pw=1)
    for build in ("fma", "fma, last", "mma", "mma, last"):
        name, chosen, dtypes, layouts = BUILDS[build]
        for relu in (False, True):
            product = at.output(layouts[0] == "l")
            program = next(p for n, p in epilogues.named("conv2d", product) if n == "relu") if relu else None
            trial = convs.trial("conv2d", dtypes[0], at, ("bias",), program, layout=layouts[0]).on("cuda")
            found = judged(build, [trial], any_size=False, reps=5)
            key, _ = _libkgen.case_key(contract, trial.case)
            record = {**found.record, "source": "kernel.cu"}
            record["environment"]["torch"] = torch.__version__
            folders.append(Path(tmp_path_factory.mktemp("registry")))
            _libkgen.registry_promote(folders[-1], contract, None, (kernels_dir() / "conv" / f"{name}.cu").read_bytes(), record, [key])
            kgen.load(folders[-1])
    yield at
    for one in folders:
        kgen.unload(one)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("last", [False, True])
def test_served(served: At, dtype: str, last: bool) -> None:
    """The same bits each time, torch's values and torch's memory format."""
    import kgen

    torch.manual_seed(0)
    form = torch.channels_last if last else torch.contiguous_format
    x = torch.randn(served.n, served.c, served.h, served.w, device=GPU, dtype=getattr(torch, dtype)).to(memory_format=form)
    w = torch.randn(served.o, served.cg, 3, 3, device=GPU, dtype=x.dtype).to(memory_format=form)
    b = torch.randn(served.o, device=GPU, dtype=x.dtype)
    assert kgen.why("conv2d", x, w, b, [1, 1], [1, 1]).fallbacks == 0
    first, want = torch.ops.kgen.conv2d(x, w, b, padding=1), F.conv2d(x, w, b, padding=1)
    assert all(torch.equal(torch.ops.kgen.conv2d(x, w, b, padding=1), first) for _ in range(20))
    exact = F.conv2d(x.double(), w.double(), b.double(), padding=1)
    assert first.stride() == want.stride()
    assert (first.double() - exact).norm() <= 1.5 * (want.double() - exact).norm() + 2.0**-23 * exact.norm()
    assert torch.equal(kgen.conv2d(x, w, b, padding=1, epilogue=torch.relu), torch.relu(first))


def test_patched(served: At) -> None:
    import kgen

    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Conv2d(served.c, served.o, 3, padding=1), torch.nn.ReLU(), torch.nn.MaxPool2d(2)).to(GPU).eval()
    x = torch.randn(served.n, served.c, served.h, served.w, device=GPU)
    with torch.no_grad():
        want = model(x)
        patched = kgen.patch(model, (x,))
        assert "conv2d" in str(kgen.patch_report(patched))
        torch.testing.assert_close(patched(x), want, rtol=1e-4, atol=1e-4)
