"""kgen verify, why and build: evidence renewed where it holds, Kernels named that are wrong here, arguments read, and images
built that a process without a compiler serves."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import pytest
import serving_registry as made
import torch
from kgen_command import Done, Server

import kgen
from kgen import _libkgen, cli, registries, spread
from kgen.errors import BadInput
from kgen.trace import trace
from kgen.verify import parse_call

ROOT = made.ROOT
ROWS = (ROOT / "kernels/softmax/rows.c").read_text()
FLASH = (ROOT / "kernels/attention/flash.c").read_text()
SMALL = {"M": {"min": 1, "max": 64}, "N": {"min": 1, "max": 128}}
ELSEWHERE = {"device": "a CPU of another kind", "torch": "2.10.0", "compiler": "cc 1.0", "kgen": "0.0.9"}


@pytest.fixture
def registry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty registry, the only one that there is."""
    root = tmp_path / "generated"
    root.mkdir()
    monkeypatch.setattr(registries, "shipped_registry", lambda: tmp_path / "none")
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    monkeypatch.setenv("KGEN_REGISTRY", str(root))
    return root


def record_of(root: Path, op: str = "softmax") -> dict[str, Any]:
    kernel = next(k for k in _libkgen.registry_list(root) if k["op"] == op)
    return json.loads((Path(kernel["path"]) / "record.json").read_text())


def relative_case() -> tuple[spread.Trial, dict[str, Any], str]:
    """An exact attention Case with a Program that looks a table up, its key and hash."""
    table = torch.randn(2, 64)
    t = trace(lambda score, b, h, q, kv: score + table[h, q - kv + 32], None)
    at = spread.Sizes(1, 2, 24, 16, 2, 24, 16)
    trial = spread.attention_trial("float32", at, (t.text, t.captured, t.scalars), "table")
    key, name = _libkgen.case_key(made.contract("attention"), trial.case)
    return trial, key, name


def promote_with_recipe(root: Path, with_recipe: bool) -> str:
    """flash.c for the exact Case, as tune promotes it; the name of its pin."""
    trial, key, name = relative_case()
    contract = made.contract("attention")
    _, ident = made.promote(root, "attention", FLASH, [key])
    kernel = _libkgen.registry_find(root, f"attention/{ident}")
    record = {**record_of(root, "attention"), "cases": [{"case": name, "verdict": "pass"}]}
    if with_recipe:
        task = trial.task(json.loads(contract))
        record = spread.attach(record, task, {name: 0})
    _libkgen.registry_promote(root, contract, None, FLASH.encode(), record, [key])
    assert kernel["id"] == ident
    return name


@pytest.mark.parametrize("field", ["device", "torch", "compiler", "kgen", "all"])
def test_evidence_of_another_environment_is_renewed(
    registry: Path, nothing_shipped: None, capsys: pytest.CaptureFixture[str], field: str
) -> None:
    """strict refuses it before `kgen verify` and serves it after; arch and off serve it all the time."""
    other = ELSEWHERE if field == "all" else {field: ELSEWHERE[field]}
    _, ident = made.promote(registry, "softmax", ROWS, [made.softmax_key(**SMALL)], **other)
    kgen.load(registry)
    before = kgen.policy()
    try:
        for verified in (False, True):
            for policy in ("strict", "arch", "off"):
                kgen.policy(policy)
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")  # that strict refuses it, which is asked for here
                    decision = kgen.why("softmax", torch.zeros(3, 100), 1).decisions[0]
                served = verified or policy != "strict"
                assert (decision.kind, decision.id) == (("dynamic", ident) if served else ("fallback", None)), policy
                assert not served or decision.verified == verified
            if not verified:
                assert cli.main(["verify"]) == 0
                assert f"softmax/v1 {made.ARCH} {ident[:12]} pass" in capsys.readouterr().out
                kgen.reload()
    finally:
        kgen.policy(before)
        kgen.unload(registry)
    record = record_of(registry)
    assert record["version"] == 1 and record["tunables"] and record["environment"]["device"] == made.device_name()


def test_a_kernel_that_is_wrong_here_is_named(registry: Path, capsys: pytest.CaptureFixture[str]) -> None:
    wrong = ROWS.replace("#define LOG2E 1.44269504088896341f", "#define LOG2E 1.4427f")
    assert wrong != ROWS
    made.promote(registry, "softmax", wrong, [made.softmax_key(**SMALL)], **ELSEWHERE)
    before = record_of(registry)
    assert cli.main(["verify", "softmax"]) == 1
    out = capsys.readouterr().out
    assert "softmax/v1" in out and "fail" in out and "wrong_values" in out
    assert record_of(registry) == before, "its Record stays as it was"


@pytest.mark.slow
def test_an_interrupt_leaves_the_record_as_it_was(registry: Path, kgen_server: Server) -> None:
    made.promote(registry, "attention", FLASH, [made.attention_key(None), made.attention_key("*")], **ELSEWHERE)
    before = record_of(registry, "attention")
    running = kgen_server.start("verify", "--registry", registry)
    running.wait_for("Cases, pass")  # the first group of several
    running.interrupt()
    done = running.wait()
    assert (done.code, done.message, done.out) == (130, "kgen: interrupted", "")
    assert kgen_server.left_over() == [] and record_of(registry, "attention") == before


def test_rows_as_json(registry: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made.promote(registry, "softmax", ROWS, [made.softmax_key(**SMALL)])
    assert cli.main(["verify", "--json", "--registry", str(registry)]) == 0
    (row,) = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert row["state"] == "pass" and row["cases"] > 1 and row["sets"] > row["cases"]
    assert row["registry"] == str(registry)


def test_an_exact_case_is_judged_as_it_was(registry: Path) -> None:
    promote_with_recipe(registry, True)
    (row,) = kgen.verify("attention", registry=registry)
    assert (row.state, row.cases, row.programs, row.left_out) == ("pass", 1, 1, [])


def test_a_program_that_nobody_has_is_said(registry: Path, capsys: pytest.CaptureFixture[str]) -> None:
    promote_with_recipe(registry, False)
    assert cli.main(["verify"]) == 0
    out = capsys.readouterr().out
    assert "skipped" in out and "not judged" in out and "Program" in out


def test_a_recipe_keeps_small_values_and_sums_up_large_ones() -> None:
    small, large = torch.arange(8, dtype=torch.int32), torch.randint(3, 9, (5000,))
    case = spread.case_of("x", {"a": spread.entry("float32", [2, 3])})
    entries, blobs = spread.captured_entries([small, large, torch.randn(5000) + 7])
    case["program"] = {"text": "t", "captured": entries, "scalars": []}
    recipe = spread.recipe(spread.Trial("x", case, blobs).task({}), 0)
    back = spread.from_recipe(recipe, "x")
    kinds = [e["fill"]["kind"] for e in back.case["program"]["captured"]]
    assert kinds == ["values", "integers", "normal"]
    assert back.blobs["captured0.bin"] == small.numpy().tobytes()
    assert back.case["program"]["captured"][1]["fill"] == {"kind": "integers", "low": 3, "high": 8}
    assert abs(back.case["program"]["captured"][2]["fill"]["mean"] - 7) < 0.2
    json.dumps(recipe)


def test_why_reads_tensors_and_attributes(registry: Path, nothing_shipped: None, capsys: pytest.CaptureFixture[str]) -> None:
    made.promote(registry, "attention", FLASH, [made.attention_key(None), made.attention_key("*")])
    kgen.load(registry)
    try:
        tensors = ["float32[1,4,8,16]", "float32[1,2,8,16]", "float32[1,2,8,16]"]
        assert cli.main(["why", "attention", *tensors, "enable_gqa=True", "scale=0.5", "is_causal=True"]) == 0
        assert capsys.readouterr().out.startswith("attention: attention/v1 (")
        assert cli.main(["why", "attention", *["float32[1,4,8,24]"] * 3]) == 0
        assert "fallback to torch" in capsys.readouterr().out
    finally:
        kgen.unload(registry)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["float32[1,2"], "a tensor such as"),
        (["float33[1]"], "a tensor such as"),
        (["dim=1", "float32[2]"], "comes after a named argument"),
        (["float32[9223372036854775807,9]"], "float32["),
        (["1.5.5"], "an argument is"),
    ],
)
def test_arguments_that_are_none(words: list[str], said: str) -> None:
    with pytest.raises(BadInput, match=said.replace("[", r"\[")):
        parse_call(words)


def test_a_call_that_torch_refuses_is_one_message(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["why", "softmax", "float32[2,3]", "7"]) == 2
    err = capsys.readouterr().err
    assert err.startswith("kgen: softmax: ") and err.count("\n") == 1


def without_compiler(server: Server, registry: Path, cache: Path, tmp_path: Path, code: str) -> Done:
    """A new process whose PATH has no compiler."""
    env = {"KGEN_REGISTRY": str(registry), "KGEN_CACHE": str(cache), "PATH": str(tmp_path / "nothing"), "KGEN_CC": None, "CC": None}
    return server.run(code=code, env=env)


SERVE = """
import torch, kgen
q = torch.randn(1, 2, 30, 16)
x = torch.randn(5, 77)
for name, call in (("softmax", lambda: torch.ops.kgen.softmax(x, 1)), ("plain", lambda: torch.ops.kgen.attention(q, q, q)),
                   ("causal", lambda: torch.ops.kgen.attention(q, q, q, is_causal=True))):
    print(name, kgen.why(call).decisions[0].kind)
torch.testing.assert_close(torch.ops.kgen.softmax(x, 1), torch.softmax(x, 1))
want = torch.nn.functional.scaled_dot_product_attention(q, q, q, is_causal=True)
torch.testing.assert_close(torch.ops.kgen.attention(q, q, q, is_causal=True), want)
"""


@pytest.mark.slow
def test_what_was_built_serves_without_a_compiler(
    kgen_server: Server, registry: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    cache = tmp_path / "cache"
    monkeypatch.setenv("KGEN_CACHE", str(cache))
    made.promote(registry, "softmax", ROWS, [made.softmax_key(**SMALL)])
    made.promote(registry, "attention", FLASH, [made.attention_key(None), made.attention_key("*")])
    promote_with_recipe(registry, True)
    assert cli.main(["build", "--arch", made.ARCH]) == 0
    out = capsys.readouterr().out
    assert "0 failed" not in out and "failed" not in out
    assert str(cache) in out
    first = out.count("built ")
    assert first > 20, "softmax, plain attention and the Programs by name"
    assert cli.main(["build", "--arch", made.ARCH]) == 0
    again = capsys.readouterr().out
    assert "built " not in again and again.count("there ") >= first
    done = without_compiler(kgen_server, registry, cache, tmp_path, SERVE)
    assert done.code == 0, done.err
    assert dict(line.split() for line in done.out.splitlines()) == {
        "softmax": "dynamic", "plain": "dynamic", "causal": "instantiated",
    }  # fmt: skip


def test_without_images_and_compiler_torch_serves_and_says_what_to_do(kgen_server: Server, registry: Path, tmp_path: Path) -> None:
    made.promote(registry, "softmax", ROWS, [made.softmax_key(**SMALL)])
    code = "import torch, kgen\nx = torch.randn(5, 77)\ntorch.testing.assert_close(torch.ops.kgen.softmax(x, 1), torch.softmax(x, 1))"
    done = without_compiler(kgen_server, registry, tmp_path / "empty", tmp_path, code)
    assert done.code == 0, done.err
    assert done.err.count("UserWarning") == 1 and "run `kgen build`" in done.err


def test_building_without_a_compiler_lacks_something(kgen_server: Server, registry: Path, tmp_path: Path) -> None:
    made.promote(registry, "softmax", ROWS, [made.softmax_key(**SMALL)])
    code = "import sys\nfrom kgen import cli\nsys.exit(cli.main(['build']))"
    done = without_compiler(kgen_server, registry, tmp_path / "empty", tmp_path, code)
    assert done.code == 3
    assert "no C compiler" in done.err and "Traceback" not in done.err


def test_an_image_is_built_for_another_architecture(
    registry: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("KGEN_CACHE", str(tmp_path / "cache"))
    made.promote(registry, "softmax", ROWS, [made.softmax_key(**SMALL)], arch="x86-64-v4")
    assert cli.main(["build", "--arch", "x86-64-v3"]) == 0
    assert "0 images for x86-64-v3" in capsys.readouterr().out
    assert cli.main(["build", "--arch", "x86-64-v4"]) == 0
    assert "1 images for x86-64-v4: 1 built" in capsys.readouterr().out
    assert len(list((tmp_path / "cache").rglob("*.so"))) == 1
