"""list, show, diff, rollback, gc, promote: the registry as the command line and libkgen show and change it, whole, merged,
torn and forged."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import serving_registry as made
from kgen_command import Server, read_only

from kgen import _libkgen, cli, registries

HERE = "x86-64-v2"


@pytest.fixture
def registry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Three versions of softmax for one pin, v3 active, and one of attention; the only registry that there is."""
    root = tmp_path / "generated"
    for way, mark in ((0, "first"), (1, "second"), (0, "third")):
        source = made.SOFTMAX.replace("FACTOR is", f"{mark}: FACTOR is")
        made.promote(root, "softmax", source, [made.softmax_key()], tunables={"WAY": way})
    made.promote(root, "attention", made.ATTENTION, [made.attention_key(None), made.attention_key("*")])
    monkeypatch.setattr(registries, "shipped_registry", lambda: tmp_path / "none")
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    monkeypatch.setenv("KGEN_REGISTRY", str(root))
    return root


def kernels(root: Path, op: str = "softmax") -> dict[int, dict[str, Any]]:
    return {k["version"]: k for k in _libkgen.registry_list(root) if k["op"] == op}


def pin(root: Path, op: str = "softmax") -> Path:
    return next((root / op / HERE / "pins").iterdir())


def served(root: Path) -> str:
    """The Kernel that the pin names."""
    return json.loads(pin(root).read_text())["kernel"]


def run(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str, str]:
    """A command's exit code, stdout and stderr; a traceback is a failure."""
    code = cli.main(list(words))
    out, err = capsys.readouterr()
    assert "Traceback" not in err
    return code, out, err


def test_list_names_each_kernel_with_its_pins(registry: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capsys, "list")
    assert code == 0
    rows = {line.split()[0]: line.split() for line in out.splitlines() if "/v" in line}
    assert set(rows) == {"softmax/v1", "softmax/v2", "softmax/v3", "attention/v1"}
    assert rows["softmax/v3"][1] == HERE
    assert [rows[f"softmax/v{v}"][3] for v in (1, 2, 3)] == ["0", "0", "1"]
    assert rows["attention/v1"][3] == "2"
    assert f"# {registry}" in out


def test_list_as_json_is_an_object_a_line(registry: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capsys, "list", "--json")
    rows = [json.loads(line) for line in out.splitlines()]
    assert code == 0
    assert {(r["op"], r["version"], r["pins"]) for r in rows} == {
        ("softmax", 1, 0), ("softmax", 2, 0), ("softmax", 3, 1), ("attention", 1, 2),
    }  # fmt: skip
    assert all(r["registry"] == str(registry) and len(r["id"]) == 64 for r in rows)


def test_list_of_nothing_says_how_to_make_some(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    code, out, _ = run(capsys, "list", "--registry", str(empty))
    assert code == 0
    assert "no kernels" in out and "kgen tune" in out


def test_the_version_is_printed_and_nothing_else(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capsys, "--version")
    assert code == 0 and out.startswith("kgen 0.")


def test_a_registry_that_is_not_there_is_named(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    code, out, err = run(capsys, "list", "--registry", str(tmp_path / "nowhere"))
    assert (code, out) == (2, "")
    assert f"{tmp_path}/nowhere: no such folder" in err


def test_show_an_op(registry: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capsys, "show", "softmax")
    assert code == 0
    assert "softmax(Tensor input, int dim) -> Tensor" in out
    assert "softmax/v3" in out and "N=1..1048576" in out


def test_show_a_kernel_by_version_and_by_id(registry: Path, capsys: pytest.CaptureFixture[str]) -> None:
    second = kernels(registry)[2]
    code, out, _ = run(capsys, "show", "softmax/v2")
    assert code == 0
    assert second["id"] in out and '"WAY": 1' in out
    _, by_id, _ = run(capsys, "show", f"softmax/{second['id'][:8]}")
    assert by_id == out
    _, text, _ = run(capsys, "show", "softmax/v2", "--source")
    assert "second: FACTOR is" in text
    _, record, _ = run(capsys, "show", "softmax/v2", "--json")
    assert json.loads(record)["id"] == second["id"]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["show", "sofmax"], "sofmax: no registry has a kernel of that Op"),
        (["show", "softmax/v9"], "v9"),
        (["show", "softmax/zz"], "softmax/zz"),
        (["show", "softmax/"], "softmax/"),
        (["diff", "softmax", "v1", "v7"], "v7"),
        (["rollback", "softmax", "v7"], "v7"),
        (["rollback", "nosuch", "v1"], "nosuch"),
        (["verify", "nosuch"], "nosuch: no registry has an active kernel"),
        (["why", "nosuch", "float32[2]"], "no open registry has the Op nosuch"),
        (["build", "--arch", "z80"], "architecture z80"),
    ],
)
def test_a_bad_name_is_one_message(
    registry: Path, capsys: pytest.CaptureFixture[str], words: list[str], said: str
) -> None:
    code, _, err = run(capsys, *words)
    assert code == 2
    assert err.startswith("kgen: ") and said in err
    assert err.count("\n") == 1


def test_diff_shows_tunables_and_source(registry: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capsys, "diff", "softmax", "v1", "v2")
    assert code == 0
    assert "--- softmax/v1" in out and "+++ softmax/v2" in out
    assert "-tunable WAY = 0" in out and "+tunable WAY = 1" in out
    assert "-/* first: FACTOR is" in out and "+/* second: FACTOR is" in out
    _, same, _ = run(capsys, "diff", "softmax", "v1", "v1")
    assert same == "the two are the same\n"


def test_rollback_moves_the_pin_and_back(registry: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first, third = kernels(registry)[1]["id"], kernels(registry)[3]["id"]
    assert served(registry) == third
    code, out, _ = run(capsys, "rollback", "softmax", "v1")
    assert code == 0
    assert "softmax/v1 is active again: 1 pin moved" in out
    assert served(registry) == first
    assert json.loads(pin(registry).read_text())["replaced"] == third
    _, again, _ = run(capsys, "rollback", "softmax", "v1")
    assert "was active already" in again
    run(capsys, "rollback", "softmax", third[:10])
    assert served(registry) == third


def test_gc_removes_only_what_nothing_needs(registry: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first = kernels(registry)[1]
    code, out, _ = run(capsys, "gc", "--dry-run")
    assert code == 0
    assert f"would remove softmax/v1 {HERE} {first['id'][:12]}" in out
    assert Path(first["path"]).is_dir()
    _, out, _ = run(capsys, "gc")
    assert f"removed softmax/v1 {HERE}" in out
    assert not Path(first["path"]).exists()
    assert set(kernels(registry)) == {2, 3}, "v3 is active, v2 is what it replaced"
    _, out, _ = run(capsys, "gc")
    assert out.startswith("nothing to remove")


def test_a_merge_makes_a_number_ambiguous(
    registry: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = tmp_path / "branch"
    _, ident = made.promote(other, "softmax", made.SOFTMAX.replace("FACTOR is", "branch: FACTOR is"), [made.softmax_key(N=7)])
    shutil.copytree(other, registry, dirs_exist_ok=True)
    first = kernels(registry)[1]
    rows = [k for k in _libkgen.registry_list(registry) if k["op"] == "softmax" and k["version"] == 1]
    assert len(rows) == 2 and all(k["ambiguous"] for k in rows)
    code, _, err = run(capsys, "show", "softmax/v1")
    assert code == 2
    assert all(f"v1-{k['id'][:4]}" in err for k in rows), err
    code, out, _ = run(capsys, "show", f"softmax/v1-{ident[:4]}")
    assert code == 0 and ident in out
    _, out, _ = run(capsys, "list")
    assert f"softmax/v1-{first['id'][:4]}" in out


def test_promotion_of_the_same_candidate_keeps_its_number(registry: Path) -> None:
    source = made.SOFTMAX.replace("FACTOR is", "second: FACTOR is")
    version, ident = made.promote(registry, "softmax", source, [made.softmax_key(N=5)], tunables={"WAY": 1})
    assert (version, ident) == (2, kernels(registry)[2]["id"])
    record = json.loads((Path(kernels(registry)[2]["path"]) / "record.json").read_text())
    assert record["version"] == 2 and len(record["pins"]) >= 1


def test_promotion_refuses_what_did_not_pass_and_another_contract(registry: Path) -> None:
    contract = made.contract("softmax")
    record = json.loads((Path(kernels(registry)[1]["path"]) / "record.json").read_text())
    source = (Path(kernels(registry)[1]["path"]) / "kernel.c").read_bytes()
    before = served(registry)
    with pytest.raises(Exception, match="wrong_values"):
        _libkgen.registry_promote(registry, contract, None, source, {**record, "verdict": "wrong_values"}, [made.softmax_key()])
    other = contract.replace('"reduction": "N"', '"reduction": "M"')
    assert other != contract
    with pytest.raises(Exception, match="differs from the contract"):
        _libkgen.registry_promote(registry, other, None, source, record, [made.softmax_key()])
    assert served(registry) == before


def decide(server: Server, registry: Path, tmp_path: Path, *call: str) -> tuple[str, str]:
    """What serves a call in a new process that knows this registry alone: `kgen why`'s line and its warnings."""
    env = {"KGEN_REGISTRY": str(registry), "XDG_DATA_HOME": str(tmp_path / "data")}
    code = (
        "import sys, kgen\nfrom kgen import _paths, cli\nkgen.unload(_paths.shipped_registry())\n"
        "sys.exit(cli.main(['why', *sys.argv[1:]]))"
    )
    done = server.run(*call, code=code, env=env)
    assert done.code == 0, done.err
    assert "Traceback" not in done.err
    return done.out, done.err


def test_a_source_that_was_changed_is_not_served(kgen_server: Server, registry: Path, tmp_path: Path) -> None:
    path = Path(kernels(registry)[3]["path"]) / "kernel.c"
    path.write_text(path.read_text().replace("#define FACTOR 1.0f", "#define FACTOR 2.0f"))
    out, err = decide(kgen_server, registry, tmp_path, "softmax", "float32[3,5]", "1")
    assert "fallback to torch" in out.splitlines()[0] or "softmax/v3" not in out.splitlines()[0]
    assert "do not give the id" in err, "the index says what it left out"


def test_a_source_that_changes_behind_the_index_is_not_served(kgen_server: Server, registry: Path, tmp_path: Path) -> None:
    decide(kgen_server, registry, tmp_path, "softmax", "float32[3,5]", "1")
    path = Path(kernels(registry)[3]["path"]) / "kernel.c"
    path.write_text(path.read_text().replace("#define FACTOR 1.0f", "#define FACTOR 3.0f"))
    out, err = decide(kgen_server, registry, tmp_path, "softmax", "float32[3,6]", "1")
    assert "fallback to torch" in out.splitlines()[0]
    assert "is not what was promoted" in out + err


def test_a_torn_registry_serves_what_is_whole(
    kgen_server: Server, registry: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], recwarn: pytest.WarningsRecorder
) -> None:
    record = Path(kernels(registry)[1]["path"]) / "record.json"
    record.write_text(record.read_text()[:40])
    (registry / "attention" / "op.json").write_text("{")
    (registry / "softmax" / HERE / "pins" / ("0" * 32)).write_text('{"format": 1, "key"')
    (registry / "softmax" / HERE / ".tmp-1234").mkdir()
    out, _ = decide(kgen_server, registry, tmp_path, "softmax", "float32[3,5]", "1")
    assert out.startswith("softmax: softmax/v3 (dynamic")
    out, _ = decide(kgen_server, registry, tmp_path, "attention", *["float32[1,2,8,16]"] * 3)
    assert "fallback to torch" in out
    code, out, _ = run(capsys, "list")
    assert code == 0
    assert "softmax/v3" in out and "softmax/v1" not in out
    assert any("record.json" in str(w.message) for w in recwarn)


def test_a_kernel_for_another_architecture_is_listed_and_not_served(
    kgen_server: Server, registry: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = tmp_path / "elsewhere"
    made.promote(root, "softmax", made.SOFTMAX.replace('"min_arch": "x86-64-v2",', ""), [made.softmax_key()], arch="aarch64")
    code, out, _ = run(capsys, "list", "--registry", str(root))
    assert code == 0 and "aarch64" in out
    out, _ = decide(kgen_server, root, tmp_path, "softmax", "float32[3,5]", "1")
    assert "fallback to torch" in out
    assert "is for aarch64, which this machine is not" in out
    code, out, _ = run(capsys, "verify", "--registry", str(root))
    assert code == 0
    assert "skipped: is for aarch64" in out


@pytest.mark.parametrize("words", [["rollback", "softmax", "v1"], ["gc"]])
def test_a_read_only_registry_is_one_message_and_stays_whole(registry: Path, words: list[str]) -> None:
    before = {p: p.read_bytes() for p in registry.rglob("*") if p.is_file() and p.name != ".lock"}
    front = read_only(registry)
    done = subprocess.run(
        [*front, sys.executable, "-m", "kgen", *words, "--registry", str(registry)],
        env={**os.environ, "KGEN_REGISTRY": str(registry)}, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode not in (0, 2), done.stdout
    assert "Traceback" not in done.stderr
    assert "ead-only" in done.stdout + done.stderr or "ermission denied" in done.stdout + done.stderr
    assert {p: p.read_bytes() for p in before} == before


def test_a_read_only_registry_serves(registry: Path, tmp_path: Path) -> None:
    front = read_only(registry)
    done = subprocess.run(
        [*front, sys.executable, "-m", "kgen", "why", "softmax", "float32[3,5]", "1"],
        env={**os.environ, "KGEN_REGISTRY": str(registry)}, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.stdout.startswith("softmax: softmax/v3 (dynamic"), done.stderr


def test_a_candidate_that_wins_twice_keeps_what_was_known_of_it(
    registry: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = made.SOFTMAX.replace("FACTOR is", "second: FACTOR is")
    contract, second = made.contract("softmax"), kernels(registry)[2]
    fresh = {k: v for k, v in json.loads((Path(second["path"]) / "record.json").read_text()).items() if k != "pins"}
    for n in (5, 9):
        given = {**fresh, "cases": [{"case": f"{n:032x}", "verdict": "pass", "sets": n}]}
        _libkgen.registry_promote(registry, contract, None, source.encode(), given, [made.softmax_key(N=n)])
    record = json.loads((Path(second["path"]) / "record.json").read_text())
    assert {c["case"]: c["sets"] for c in record["cases"]} == {f"{5:032x}": 5, f"{9:032x}": 9}
    assert len(record["pins"]) == 3, "the fixture's and the two"
    made.promote(registry, "softmax", made.SOFTMAX.replace("FACTOR is", "other: FACTOR is"), [made.softmax_key(N=5)])
    code, out, _ = run(capsys, "rollback", "softmax", "v2")
    assert code == 0 and "2 pins moved" in out, "of N=5 and the one that all of them share"
