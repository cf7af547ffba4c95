"""The registry that comes with kgen: what it claims, that no call in its ranges falls back, and how it is made."""

from __future__ import annotations

import collections
import dataclasses
import functools
import json
import math
import os
import random
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F

import kgen
from kgen import _libkgen, ship, ship_house, ship_ranges, spread
from kgen.doctor import machine_arch
from kgen.errors import KgenError
from kgen.verify import runs_on

ROOT = Path(__file__).resolve().parents[2]
SHIPPED = ROOT / "generated"
DTYPES = {"float32": 1e-4, "float16": 2e-2, "bfloat16": 5e-2}
ops = torch.ops.kgen
RUNNABLE = [a for a in ship.ARCHS if runs_on(a, machine_arch())]
SEED = random.SystemRandom().getrandbits(32)


def pins(op: str, arch: str) -> list[dict[str, Any]]:
    return [json.loads(p.read_text()) for p in sorted((SHIPPED / op / arch / "pins").iterdir())]


def records() -> list[tuple[Path, dict[str, Any]]]:
    return [(p.parent, json.loads(p.read_text())) for p in sorted(SHIPPED.glob("*/*/*/record.json"))]


@pytest.fixture(params=RUNNABLE)
def only(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """One architecture's Kernels as the only registry: a richer machine serves the poorer one's too."""
    root = tmp_path / "generated"
    for op in ("softmax", "attention", "layer_norm", "rms_norm", "linear"):
        (root / op).mkdir(parents=True)
        shutil.copy(SHIPPED / op / "op.json", root / op)
        shutil.copytree(SHIPPED / op / request.param, root / op / request.param)
    held = [r["path"] for r in kgen.registry()]
    for path in held:
        kgen.unload(path)
    kgen.load(root)
    yield request.param
    kgen.unload(root)
    for path in reversed(held):
        kgen.load(path)


def min_arch(house: ship.House) -> str | None:
    source = (ship.kernels_dir() / house.file).read_bytes()
    return _libkgen.candidate_check(ship.canonical_contract(house.op).decode(), source, house.file)["min_arch"]


# ---- what it is ----


@pytest.mark.parametrize("arch", ship.ARCHS)
def test_every_dtype_has_pins_for_any_length(arch: str) -> None:
    softmax = {(p["key"]["dtypes"][0], p["key"]["dims"]["K"] == 1) for p in pins("softmax", arch)}
    assert softmax == {(d, rows) for d in DTYPES for rows in (True, False)}
    for op, choices in (("layer_norm", 4), ("rms_norm", 2)):
        made = [tuple(d is not None for d in p["key"]["dtypes"]) for p in pins(op, arch)]
        assert len(made) == 3 * choices and len(set(made)) == choices, "weight and bias there or not, in every dtype"
        assert all(p["key"]["dims"]["N"] == {"min": 1, "max": 1 << 21} for p in pins(op, arch))
    linear = [p["key"] for p in pins("linear", arch)]
    assert {(k["dtypes"][2], k["program"]) for k in linear} == {(b, p) for b in ("float32", None) for p in (None, "*")}
    assert all(k["dtypes"][:2] == ["float32"] * 2 and k["dims"]["M"] == {"min": 1, "max": 16} for k in linear)
    attention = [p["key"] for p in pins("attention", arch)]
    assert {(k["dtypes"][0], k["program"]) for k in attention} == {(d, p) for d in DTYPES for p in (None, "*")}
    for key in attention:
        longest = max(k["dims"]["SK"]["max"] for k in attention if k["program"] == key["program"])
        assert longest >= 1 << 20 and key["dims"]["D"] == {"min": 1, "max": 256}


def test_the_record_says_what_it_was_judged_on() -> None:
    made = collections.Counter(r["arch"] for _, r in records())
    assert sum(made[a] for a in ship.ARCHS) == len(ship.HOUSE) * len(ship.ARCHS)
    for arch in set(made) - set(ship.ARCHS):
        assert arch in ship.GPU_ARCHS and made[arch] <= sum(ship._is_for(min_arch(h), arch) for h in ship.GPU_HOUSE)
    for folder, record in records():
        named = sorted(p["key"]["program"] or "" for p in pins(record["op"], record["arch"]) if p["kernel"] == record["id"])
        entries = record["cases"]
        assert record["verdict"] == "pass" and all(e["verdict"] == "pass" for e in entries), folder
        assert {e["case"] for e in entries} == set(record["pins"]) and len(entries) == len(named)
        if record["arch"] in ship.ARCHS:
            assert all(e["sets"] > e["cases"] > 5 for e in entries)
        else:  # --most; of rows longer than spread.LARGE torch bears one distribution alone
            assert all(e["sets"] >= e["cases"] > 4 for e in entries)
        if "*" in named and record["arch"] in ship.ARCHS and record["op"] == "attention":
            assert sum(e["random_programs"] for e in entries) >= ship.PROGRAMS
            assert len(record["programs"]) >= 20, "the variants by name, in every dtype"
        elif "*" in named and record["arch"] in ship.GPU_ARCHS:  # --most
            assert sum(e["random_programs"] for e in entries) > 3 and len(record["programs"]) > 8


def test_a_gpus_pins_are_where_its_kernels_are_ahead() -> None:
    """Attention with a Program, of one class of heads and up to long contexts, on an sm_90 long plain and causal calls, too; rows
    of the size that the tunables are for. Anything else is torch's."""
    below = {64: 0, 128: 64, 256: 128}
    for folder, record in records():
        if record["arch"] not in ship.GPU_ARCHS:
            continue
        op, tunables = record["op"], record["tunables"]
        keys = [p["key"] for p in pins(op, record["arch"]) if p["kernel"] == record["id"]]
        houses = [h for h in ship.GPU_HOUSE if h.file == record["proposer"]["template"] and (h.tunables or {}).items() <= tunables.items()]
        assert keys and houses, folder
        assert all(k["device"] == "cuda" and k["precision"] == "native" for k in keys)
        if op == "attention":
            for dims in (k["dims"] for k in keys):
                assert below[tunables["HEAD"]] < dims["D"]["min"] and dims["D"]["max"] == dims["DV"]["max"] == tunables["HEAD"], folder
                assert dims["SK"]["max"] >= ship_house.LONG and dims["B"]["max"] >= 1024 and dims["HQ"]["max"] >= 256, folder
            assert {k["dtypes"][0] for k in keys} == set(houses[0].dtypes)
            own = [k["dims"] for k in keys if k["program"] != "*"]  # plain and causal
            assert all(d[n]["min"] >= 1024 for d in own for n in ("SQ", "SK")) and (not own or "hopper" in houses[0].file), folder
        for key in keys if op in ("softmax", "layer_norm", "rms_norm") and houses[0].row_bytes else ():
            n, size = key["dims"]["N"], 4 if key["dtypes"][0] == "float32" else 2
            low, high = (n["min"], n["max"]) if isinstance(n, dict) else (n, n)
            assert any(h.row_bytes and h.row_bytes[0] < low * size <= high * size <= h.row_bytes[1] for h in houses), (folder, n)
            assert key["dims"]["M"]["max"] > 500, folder


def test_it_is_text_and_small_and_of_no_machine() -> None:
    files = [p for p in SHIPPED.rglob("*") if p.is_file() and p.name != ".lock"]
    assert sum(p.stat().st_size for p in files) < 4 << 20
    for path in files:
        text = path.read_text("utf-8")
        assert not re.search(r"(^|[\s\"])/(home|root|tmp|work|usr)/", text), path


def test_every_kernel_is_what_its_id_says() -> None:
    for folder, record in records():
        source = (folder / record["source"]).read_bytes()
        contract = (SHIPPED / record["op"] / "op.json").read_text()
        found = _libkgen.candidate_check(contract, source, "kernel.c", record["tunables"])
        assert found["id"] == record["id"] == folder.name
    kernels = _libkgen.registry_list(SHIPPED)
    assert len(kernels) == len(records()) and all(k["pins"] > 0 for k in kernels), "nothing is dead weight"


# ---- what it serves ----


def sizes() -> list[int]:
    rng = random.Random(SEED)
    return [rng.randrange(1, 40), rng.randrange(40, 400), rng.randrange(400, 1500)]


def check(why: Any, arch: str, kinds: tuple[str, ...] = ("dynamic",)) -> None:
    assert why.fallbacks == 0 and why.decisions, str(why)
    assert all(d.kind in kinds and d.arch == arch for d in why.decisions), str(why)


@pytest.mark.parametrize("dtype", sorted(DTYPES))
def test_softmax_of_random_sizes_never_falls_back(only: str, dtype: str) -> None:
    for n in sizes():
        for shape, dim in (((3, n), 1), ((2, n, 5), 1), ((n,), 0), ((2, 3, n), -1)):
            x = torch.randn(shape).to(getattr(torch, dtype))
            check(kgen.why("softmax", x, dim), only)
            want = torch.softmax(x.double(), dim)
            got = torch.ops.kgen.softmax(x, dim).double()
            assert float((got - want).abs().max()) < DTYPES[dtype], (SEED, shape)


@pytest.mark.parametrize("dtype", sorted(DTYPES))
def test_norms_of_random_sizes_never_fall_back(only: str, dtype: str) -> None:
    torch.manual_seed(SEED)
    for n in sizes():
        x, w, b = (torch.randn(s).to(getattr(torch, dtype)) for s in ((2, 3, n), (n,), (n,)))
        for name, choices in (("layer_norm", ((), (w,), (w, b), (None, b))), ("rms_norm", ((), (w,)))):
            for affine in choices:
                check(kgen.why(name, x, [n], *affine), only)
                wide = [None if t is None else t.double() for t in affine]
                f = getattr(torch.nn.functional, name)
                eps = {} if name == "layer_norm" else {"eps": 2.0**-23}
                want = f(x.double(), [n], *wide, **eps)
                got = getattr(torch.ops.kgen, name)(x, [n], *affine).double()
                # A row of one element without a bias is nothing but zeros.
                assert float((got - want).abs().max()) <= DTYPES[dtype] * float(want.abs().max()), (SEED, name, n)


def test_a_linear_of_few_rows_never_falls_back_and_of_many_is_torchs(only: str) -> None:
    torch.manual_seed(SEED)
    for n in sizes():
        x, w, b, r = torch.randn(2, 3, n + 3)[:, :, :n], torch.randn(37, n), torch.randn(37), torch.randn(2, 3, 37)
        wide = [t.double() for t in (x, w, b, r)]
        for bias in (b, None):
            check(kgen.why("linear", x, w, bias), only)
            want = F.linear(wide[0], wide[1], None if bias is None else wide[2])
            assert float((ops.linear(x, w, bias).double() - want).abs().max()) < 1e-4 * n**0.5, (SEED, n)
        call = functools.partial(kgen.linear, x, w, b, epilogue=lambda y, t: F.gelu(y) + t, captures=(r,))
        check(kgen.why(call), only, ("dynamic", "instantiated"))
        want = F.gelu(F.linear(*wide[:3])) + wide[3]
        assert float((call().double() - want).abs().max()) < 1e-4 * n**0.5, (SEED, n)
    assert kgen.why("linear", torch.randn(17, 20), torch.randn(5, 20)).fallbacks == 1
    assert kgen.why("linear", torch.randn(3, 20), torch.randn(20, 5).t()).fallbacks == 1


@pytest.mark.parametrize("dtype", [pytest.param(d, marks=() if d == "float32" else pytest.mark.slow) for d in sorted(DTYPES)])
def test_attention_of_random_sizes_never_falls_back(only: str, dtype: str) -> None:
    rng = random.Random(SEED)
    for n in sizes():
        b, g, hkv, d = rng.randrange(1, 3), rng.randrange(1, 4), rng.randrange(1, 3), rng.randrange(1, 257)
        q = torch.randn(b, g * hkv, n, d).to(getattr(torch, dtype))
        k, v = (torch.randn(b, hkv, n, d).to(q.dtype) for _ in range(2))
        for causal in (False, True):
            more = {"is_causal": causal, "enable_gqa": True}
            check(kgen.why("attention", q, k, v, **more), only)
            want = F.scaled_dot_product_attention(q.double(), k.double(), v.double(), **more)
            got = torch.ops.kgen.attention(q, k, v, **more).double()
            assert float((got - want).abs().max()) < 4 * DTYPES[dtype], (SEED, q.shape)


def test_a_score_function_never_falls_back(only: str) -> None:
    for n in sizes():
        q = torch.randn(1, 2, n, 48)

        def relative(score: Any, b: Any, h: Any, i: Any, j: Any) -> Any:
            return score + 0.125 * (j - i)

        def causal(b: Any, h: Any, i: Any, j: Any) -> Any:
            return i >= j

        def unheard(score: Any, b: Any, h: Any, i: Any, j: Any) -> Any:
            return torch.where((i + 3 * j) % 7 == 0, score * 0.5, score - 0.01 * j)

        check(kgen.why(kgen.attention, q, q, q, score_mod=relative, mask_mod=causal), only)
        check(kgen.why(kgen.attention, q, q, q, score_mod=unheard), only, ("instantiated",))
        i, j = torch.arange(n).view(-1, 1), torch.arange(n)
        score = q.double() @ q.double().transpose(2, 3) / math.sqrt(48) + 0.125 * (j - i)
        want = torch.softmax(score.masked_fill(i < j, -math.inf), -1) @ q.double()
        got = kgen.attention(q, q, q, score_mod=relative, mask_mod=causal)
        assert float((got.double() - want).abs().max()) < 1e-4, (SEED, n)


def test_few_queries_and_few_rows_have_kernels_of_their_own(only: str) -> None:
    def record(why: Any) -> dict[str, Any]:
        found = _libkgen.registry_find(why.decisions[0].registry, f"{why.decisions[0].op}/{why.decisions[0].id}")
        return json.loads((Path(found["path"]) / "record.json").read_text())

    def template(why: Any) -> str:
        return record(why)["proposer"]["template"]

    q, k = torch.randn(1, 4, 1, 64), torch.randn(1, 4, 700, 64)
    assert template(kgen.why("attention", q, k, k)) == "attention/decode.c"
    for n, block in ((4, None), (7, 16), (16, 16), (17, 64), (700, 64)):  # nearest to the middle of a range
        found = record(kgen.why("attention", k[:, :, :n].contiguous(), k, k))
        assert found["proposer"]["template"] == f"attention/{'flash' if block else 'decode'}.c", n
        assert found["tunables"].get("BLOCK_M") == block, n
    if torch.get_num_threads() > 1:
        assert template(kgen.why("softmax", torch.randn(1, 50257), 1)) == "softmax/split.c"
    assert template(kgen.why("softmax", torch.randn(64, 100), 1)) == "softmax/rows.c"
    assert template(kgen.why("softmax", torch.randn(64, 100, 3), 1)) == "softmax/columns.c"
    assert template(kgen.why("layer_norm", torch.randn(64, 100), [100])) == "norm/layer_rows.c"
    assert template(kgen.why("rms_norm", torch.randn(64, 100), [100])) == "norm/rms_rows.c"
    assert template(kgen.why("linear", torch.randn(4, 100), torch.randn(7, 100))) == "matmul/linear_few.c"


@pytest.mark.cuda
@pytest.mark.parametrize("dtype", sorted(DTYPES))
def test_on_a_gpu_a_score_function_is_served_and_a_plain_call_is_torchs(dtype: str) -> None:
    rng = random.Random(SEED)
    for d, sq in ((64, rng.randrange(17, 600)), (128, rng.randrange(17, 600)), (256, 3), (64, 1)):
        q, k, v = (torch.randn(2, 4, n, d, device="cuda", dtype=getattr(torch, dtype)) for n in (sq, 700, 700))
        said = kgen.why(kgen.attention, q, k, v, score_mod=lambda s, b, h, i, j: s + 0.125 * (j - i))
        assert all(found.arch in ship.GPU_ARCHS and Path(found.registry) == SHIPPED for found in said.decisions) and said.decisions, str(said)
        for causal in (False, True):
            assert kgen.why("attention", q, k, v, is_causal=causal).fallbacks == 1
        at = 0.125 * (torch.arange(700, device="cuda") - torch.arange(sq, device="cuda").view(-1, 1))
        want = torch.softmax(q.double() @ k.double().mT / math.sqrt(d) + at, -1) @ v.double()
        got = kgen.attention(q, k, v, score_mod=lambda s, b, h, i, j: s + 0.125 * (j - i)).double()
        assert float((got - want).abs().max()) < 4 * DTYPES[dtype], (SEED, d, sq)


# ---- how it is made ----


def test_a_range_is_what_was_judged() -> None:
    contract = ship.canonical_contract("softmax").decode()
    trials = [spread.softmax_trial("float32", m, n) for m, n in ((2, 7), (5, 3), (4, 900))]
    key = ship.judged_key(contract, trials, (), False)
    assert key["dims"] == {"M": {"min": 2, "max": 5}, "N": {"min": 3, "max": 900}, "K": 1}
    skipped = ship.judged_key(contract, trials, {trials[2].label: "not for it"}, False)
    assert skipped["dims"]["N"] == {"min": 3, "max": 7}, "what the plan refused was not judged"


def test_plain_and_causal_attention_ships_for_long_calls_alone() -> None:
    key = {"dims": {"SQ": {"min": 1, "max": 4099}, "SK": {"min": 1, "max": 1024}, "D": 64}}
    assert ship.at_least(key, {}) == key
    assert ship.at_least(key, {"SQ": 1024, "SK": 1024, "D": 64})["dims"] == {"SQ": {"min": 1024, "max": 4099}, "SK": 1024, "D": 64}
    with pytest.raises(KgenError, match="SK of at most 1024 was judged, none of 1025"):
        ship.at_least(key, {"SK": 1025})
    kinds: dict[str, list[int]] = {}
    for house in ship.GPU_HOUSE:
        if house.file == "attention/hopper.cu":
            one = ship.Shipping(house, "sm_90", SHIPPED, 3, lambda _: None)
            for kind, trials in one.groups(("float16", ())):
                kinds.setdefault(kind, []).append((house.tunables or {})["HEAD"])
                of = {t.case["program"]["text"] if t.case.get("program") else None for t in trials}
                wanted = {ship.PLAIN: {None}, ship.CAUSAL: {"program 1\nmask\n%0 = ge bool q kv\nreturn %0\n"}}
                assert of == wanted.get(kind, of)
                alone = kind == ship.OUTPUT
                assert all(t.case.get("skip", []) == ["lse"] * alone for t in trials) and (not alone or all(" = tanh " in x for x in of))
    all_kinds = (ship.PLAIN, ship.CAUSAL, ship.ANY, ship.OUTPUT)
    assert {kind: sorted(heads) for kind, heads in kinds.items()} == dict.fromkeys(all_kinds, [64, 128, 256])


def test_a_pin_is_for_the_rows_that_its_tunables_are_for() -> None:
    key = {"dtypes": ["bfloat16"], "dims": {"M": {"min": 1, "max": 9}, "N": {"min": 1, "max": 4099}, "K": 1}}
    assert ship.narrowed(key, None) == key
    assert ship.narrowed(key, (2048, 16384))["dims"] == {**key["dims"], "N": {"min": 1025, "max": 4099}}
    assert ship.narrowed({**key, "dtypes": ["float32"]}, (0, 2048))["dims"]["N"] == {"min": 1, "max": 512}
    for op in ("softmax", "layer_norm", "rms_norm"):
        rows = [h.row_bytes for h in ship.GPU_HOUSE if h.op == op and "columns" not in h.file]
        assert all(rows) and min(r[0] for r in rows if r) == 0


def test_a_stretch_of_lengths_is_where_the_kernel_holds() -> None:
    at = ship_ranges.lengths(1, 1000)
    assert at[0] == 1 and at[-1] == 1000 and len(at) <= ship_ranges.LENGTHS and any(n % 2 for n in at[1:-1]) and any(n % 8 == 0 for n in at)
    assert ship_ranges.lengths(7, 7) == [7] and ship_ranges.lengths(3, 4) == [3, 4]
    # One loss with one number of rows ends a stretch; of two stretches the wider one is taken.
    found = ship_ranges.stretch(1, 1000, lambda m, n: 0.5 if n == 75 and m < 10_000 else 1.0, (1 << 16, 1 << 21))
    assert found == (1, 24)

    def multiples(m: int, n: int) -> float:
        if n % 8:
            raise ship_ranges.NotServed("not for it")
        return 1.0 if n < 100 else 0.5

    (low, high) = ship_ranges.stretch(1, 1000, multiples) or (0, 0)
    assert low == 1 and high < 1000, "what it is not for is no loss"
    assert ship_ranges.stretch(1, 7, multiples) is None
    assert ship_ranges.stretch(1, 1000, lambda m, n: 1.0) == (1, 1000) and ship_ranges.stretch(1, 1000, lambda m, n: 0.9) is None


@pytest.mark.slow
def test_rows_that_torch_is_faster_for_get_no_pin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A shipped Kernel of rows, beside torch at two lengths for real and at others by word."""
    house = dataclasses.replace(next(h for h in ship.HOUSE if h.file == "softmax/rows.c"), row_bytes=(0, 4000), dtypes=("float32",))
    one = ship.Shipping(house, RUNNABLE[0], tmp_path / "g", 1, lambda _: None, most=4)
    evidence = {v: one.evidence(v) for v in one.variants()}
    real, asked = ship_ranges.beside_torch, []

    def beside(registry: Path, *rest: Any) -> ship_ranges.Ratio:
        measured = real(registry, *rest)

        def ratio(m: int, n: int) -> float:
            asked.append(n)
            assert n not in (1, 1000) or measured(3, n) > 0
            return 1.0 if 3 <= n <= 500 else 0.5

        return ratio

    monkeypatch.setattr(ship_ranges, "beside_torch", beside)
    ranges = one.faster(evidence)
    assert {1, 1000} <= set(asked)
    ((low, high),) = ranges.values()
    assert 1 < low <= 16 and 300 <= high <= 500
    one.promote(evidence, {}, ranges)
    (pin,) = (json.loads(p.read_text()) for p in (tmp_path / "g").rglob("pins/*"))
    assert pin["key"]["dims"]["N"] == {"min": low, "max": high}
    with pytest.raises(KgenError, match="nowhere as fast as torch"):
        one.promote(evidence, {}, dict.fromkeys(ranges))
    with pytest.raises(KgenError, match="not served by the Kernel"):
        real(tmp_path / "empty", "softmax", "float32", (), torch.device("cpu"))(2, 40)


def test_thinned_a_range_keeps_its_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    house = next(h for h in ship.HOUSE if h.file == "softmax/columns.c")
    all_of, few = (ship.Shipping(house, ship.ARCHS[0], SHIPPED, 1, lambda _: None, most=most) for most in (0, 5))
    variant = all_of.variants()[0]
    whole, thin = all_of.dense(variant), few.dense(variant)
    assert 5 <= len(thin) <= 11 < len(whole) and {t.label for t in thin} < {t.label for t in whole}
    assert ship.judged_key(few.contract, thin, (), False) == ship.judged_key(all_of.contract, whole, (), False)
    monkeypatch.setattr(ship.devices, "limits", lambda device: (132, 227 << 10))
    short = next(h for h in ship.GPU_HOUSE if h.file == "softmax/rows.cu")
    asked = ship.Shipping(short, "sm_90", SHIPPED, 1, lambda _: None, most=3)
    trials = [spread.softmax_trial("float32", 1, n).on("cuda") for n in (7, 1 << 17, 9, 1 << 18, 11)]
    assert [t.label for t in asked._thinned(trials, 3)] == [trials[i].label for i in (0, 2, 4)], "what the plan is not for is left out"


def test_a_wait_has_an_end_or_none() -> None:
    assert ship._left(float("inf")) is None and ship._left(0.0) == 0.0


def test_what_is_not_judged_in_time_is_left_for_another_call(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--registry", str(tmp_path / "g"), "--arch", RUNNABLE[0], "--only", "softmax/columns.c", "--jobs", "2"]
    assert ship.main([*words, "--seconds", "0.1"]) == ship.LEFT
    assert "softmax/columns.c: not judged within 0 s" in capsys.readouterr().out
    assert not list((tmp_path / "g").rglob("record.json"))


def test_only_programs_of_every_dtype_are_evidence() -> None:
    assert ship._in_all([["a", "b", "c"], ["c", "a"], ["a", "c", "d"]]) == ["a", "c"]
    assert ship._in_all([]) == []


def test_the_tool_refuses_a_kernel_that_is_wrong(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kernels = tmp_path / "kernels"
    (kernels / "softmax").mkdir(parents=True)
    text = (ROOT / "kernels/softmax/rows.c").read_text()
    (kernels / "softmax/rows.c").write_text(text.replace("#define LOG2E 1.44269504088896341f", "#define LOG2E 1.4427f"))
    monkeypatch.setattr(ship, "kernels_dir", lambda: kernels)
    assert ship.main(["--registry", str(tmp_path / "g"), "--only", "softmax/rows.c", "--arch", RUNNABLE[0]]) == 1
    assert not list((tmp_path / "g").rglob("record.json"))


def test_the_command_line_serves_the_shipped_registry(tmp_path: Path) -> None:
    env = {**os.environ, "XDG_DATA_HOME": str(tmp_path)}
    env.pop("KGEN_REGISTRY", None)
    words = ["why", "attention", *["float32[1,2,33,20]"] * 3]
    done = subprocess.run([sys.executable, "-m", "kgen", *words], env=env, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"attention: attention/v") and str(SHIPPED) in done.stdout


def test_sizes_that_the_plan_is_not_for_may_fill_a_group(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spread, "_groups", lambda trials: ([t] for t in trials))
    contract = ship.canonical_contract("softmax").decode()
    source = (ship.kernels_dir() / "softmax/split.c").read_bytes()
    short, long = (spread.softmax_trial("float32", 1, n) for n in (7, 32768))
    for trials in ([short, long], [long, short]):
        found = spread.judge(contract, source, "split.c", None, trials, threads=8)
        assert (found.verdict, list(found.skipped), found.cases) == ("pass", [short.label], 1)
        assert found.record["verdict"] == "pass"
    none = spread.judge(contract, source, "split.c", None, [short], threads=8)
    assert none.verdict == "plan_error" and "none of the Cases" in none.message
