"""The judge's own rates, and the tool that measures them."""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent / "judge"))

import rates  # noqa: E402

# Every way to cheat on a CPU that the field has seen (the README of the corpus tells of each), and a file that does it.
KNOWN_EXPLOITS = {
    "zeros under an absolute tolerance": "zero_and_skip",
    "a constant": "uniform",
    "memcpy": "copies_input",
    "one tile": "one_row",
    "truncated K": "attention_window",
    "narrow arithmetic": "half_exponentials",
    "skipped tail": "tail_left",
    "benign inputs": "no_peak",
    "inputs that never are one": "attention_tells_by_address",
    "the reference's memory": "answer_behind_input",
    "nothing written": "nothing",
    "inputs altered": "input_made_easy",
    "reads out of bounds": "overread_peak",
    "NaN as a wildcard": "nan_swallowed",
    "cache by pointer": "static_memo",
    "cache by shape": "shape_memo",
    "honest for ten calls": "sleeper",
    "work of several calls in the first": "first_call_does_all",
    "work after the window": "late_writer",
    "sleeping in the warm-up": "slow_on_purpose",
    "forged result": "borrowed_syscall",
    "exit(0)": "exit_zero",
    "the clock": "clock_stopped",
    "scanning memory": "expected_from_stack",
    "threads": "late_writer",
    "files": "reads_host_file",
    "environment": "environment_is_test",
    "only some outputs": "attention_lse_left",
}


def test_bounds_are_clopper_and_pearsons() -> None:
    assert rates.clopper_pearson(0, 10) == pytest.approx((0.0, 1 - 0.025 ** (1 / 10)), abs=1e-9)
    assert rates.clopper_pearson(10, 10) == pytest.approx((0.025 ** (1 / 10), 1.0), abs=1e-9)
    # From tables.
    assert rates.clopper_pearson(2, 20) == pytest.approx((0.01235, 0.31698), abs=1e-4)
    assert rates.clopper_pearson(5, 100) == pytest.approx((0.01643, 0.11284), abs=1e-4)
    assert rates.clopper_pearson(0, 0) == (0.0, 1.0)


def made(got: str, verdicts: tuple[str, ...]) -> rates.Outcome:
    entry = rates.Entry(Path("attack/x.c"), verdicts, "softmax_cases", "why", False)
    return rates.outcome(entry, got, "", 0.0)


def test_what_counts_as_what() -> None:
    outcomes = [
        made("policy", ("policy", "crash")), made("timeout", ("policy",)), made("pass", ("policy",)), made("pass", ("pass",)),
        made("wrong_values", ("pass",)), made("pass", ("pass", "wrong_values")), made("pass", ("known_limit", "policy")),
        made("policy", ("known_limit", "policy")), made("error", ("policy",)),
    ]  # fmt: skip
    assert [o.kind for o in outcomes] == [
        "right", "other verdict", "false accept", "right", "false reject", "right", "known limit", "right", "judge failed",
    ]  # fmt: skip
    s = rates.summary(outcomes)
    assert s["table"]["reject"] == {"pass": 2, "reject": 3, "error": 1} and s["table"]["pass"] == {"pass": 1, "reject": 1, "error": 0}
    assert (s["false_accepts"]["count"], s["false_accepts"]["of"]) == (1, 5)
    assert (s["accepts_with_known_limits"]["count"], s["accepts_with_known_limits"]["of"]) == (2, 6)
    assert (s["false_rejects"]["count"], s["false_rejects"]["of"]) == (1, 2)
    assert not rates.passed(s)
    assert rates.passed(rates.summary([made("policy", ("policy",)), made("pass", ("known_limit",)), made("pass", ("pass",))]))
    assert not rates.passed(rates.summary([made("error", ("policy",))]))


@pytest.mark.parametrize(
    ("told", "says"),
    [
        ({}, "a.c is not told of"),
        ({"a.c": {"verdicts": ["pass"], "why": "x"}, "b.c": {"verdicts": ["pass"], "why": "x"}}, "b.c is told of and not there"),
        ({"a.c": {"verdicts": ["wrong"], "why": "x"}}, "verdicts is"),
        ({"a.c": {"verdicts": ["pass"]}}, "why is missing"),
        ({"a.c": {"verdicts": ["pass"], "why": "x", "odd": 1}}, "expected an object with"),
    ],
)
def test_a_corpus_that_is_wrong_is_named(tmp_path: Path, told: dict, says: str) -> None:
    (tmp_path / "a.c").write_text("/* kgen\n{}\n*/\n")
    (tmp_path / "expect.json").write_text(json.dumps(told))
    with pytest.raises(rates.BadCorpus, match=says):
        rates.read_folder(tmp_path)


def test_every_known_exploit_has_a_file_and_the_readme_every_file() -> None:
    entries = {e.path.stem: e for e in rates.read_folder(rates.CORPUS / "attack")}
    for exploit, name in KNOWN_EXPLOITS.items():
        assert name in entries and entries[name].expected == "reject", f"{exploit}: {name}"
    readme = (rates.CORPUS / "attack" / "README.md").read_text()
    untold = [name for name in entries if f"`{name}.c`" not in readme]
    assert untold == []
    known = rates.recipes()
    assert {e.task for e in entries.values()} <= set(known)


def entry(name: str, task: str, text: str = "x") -> rates.Entry:
    return rates.Entry(Path(f"attack/{name}.c"), ("policy",), task, "why", False, text)


def test_shards_are_a_partition_and_keep_tasks_whole() -> None:
    entries = [entry(f"{t}{i}", t) for t in "abcde" for i in range(3)]
    found = [rates.shard(entries, f"{i}/3") for i in (1, 2, 3)]
    assert sorted((e.path for part in found for e in part), key=str) == [e.path for e in entries]
    assert all(not {e.task for e in a} & {e.task for e in b} for a in found for b in found if a is not b)
    for text in ("0/3", "4/3", "1", "1/0", "a/b"):
        with pytest.raises(rates.BadCorpus, match="give I/N"):
            rates.shard(entries, text)


def test_results_are_continued(tmp_path: Path) -> None:
    """What was judged stays, unless the file, its Task or what is known of it changed; a torn line is judged again."""
    path, e, other = tmp_path / "results.jsonl", entry("x", "a"), entry("y", "a")
    assert rates.read_results(path, [e]) == []
    rates.write_result(path, rates.outcome(e, "policy", "said", 1.0))
    rates.write_result(path, rates.outcome(other, "error", "the judge failed", 1.0))
    (found,) = rates.read_results(path, [e, other])
    assert (found.file, found.got, found.message, found.kind) == ("x.c", "policy", "said", "right")
    assert rates.read_results(path, [entry("x", "a", "another text")]) == rates.read_results(path, [entry("x", "b")]) == []
    passes = rates.Entry(e.path, ("pass",), "a", "why", False, "x")
    assert rates.read_results(path, [passes])[0].kind == "false reject", "held against what is expected now"
    with path.open("ab") as f:
        f.write(b'{"folder": "attack", "fi')
    assert len(rates.read_results(path, [e])) == 1
    rates.write_result(path, rates.outcome(other, "policy", "", 1.0))
    assert len(rates.read_results(path, [e, other])) == 2
    path.write_text("no JSON\n")
    with pytest.raises(rates.BadCorpus, match="line 1 is no result"):
        rates.read_results(path, [e])


SOFTMAX_OF_ONE = """/* kgen
{ "format": 1, "op": "softmax", "target": "cpu", "require": "input.contiguous",
  "launches": [{"kernel": "rows", "range": "M * K", "args": ["output"]}] }
*/
/* One, for whatever there is: %s. */
#include <stdint.h>
void rows(int64_t begin, int64_t end, KG_T_output *y) {
    for (int64_t i = begin; i < end; i++)
        y[i] = 1;
}
"""


def test_a_run_that_was_cut_short_goes_on(tmp_path: Path, fresh_home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder, results = tmp_path / "attack", tmp_path / "results.jsonl"
    folder.mkdir()
    for name in ("a", "b"):
        (folder / f"{name}.c").write_text(SOFTMAX_OF_ONE % name)
    told = {f"{n}.c": {"verdicts": ["wrong_values", "not_all_written"], "why": "ones", "task": "softmax_rows"} for n in "ab"}
    (folder / "expect.json").write_text(json.dumps(told))
    argv = [str(folder), "--results", str(results)]
    assert rates.main([*argv, "--seconds", "0"]) == rates.UNFINISHED
    assert "1 of 2 have no verdict yet" in capsys.readouterr().out and len(results.read_text().splitlines()) == 1
    assert rates.main(argv) == 0
    assert "2 Candidates, 1 of them in these" in capsys.readouterr().out
    assert rates.main([*argv, "--json", str(tmp_path / "out.json")]) == 0
    found = json.loads((tmp_path / "out.json").read_text())
    assert found["false_accepts"]["of"] == 2 and found["table"]["reject"]["reject"] == 2


def test_a_judge_that_fails_is_told_and_the_rest_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A Task that cannot be made, a judge that never opens, and one that fails at its second file."""
    import kgen.judge_command as command
    from kgen.errors import BadInput, KgenError

    def make(recipe: rates.Recipe, device: str, quick: bool, folder: Path) -> Path:
        if recipe.name == "adamw":
            raise BadInput("no such model")
        return folder

    def judge(task: Path, files: list[Path], *args: object, **more: object) -> object:
        if task.name == "gelu":
            raise RuntimeError("the device is lost")
        for path in files:
            if path.stem == "b":
                raise KgenError("out of memory")
            yield {"verdict": "policy", "message": ""}

    monkeypatch.setattr(rates, "make_task", make)
    monkeypatch.setattr(command, "judge_files", judge)
    monkeypatch.setattr("kgen.task.read", lambda folder: folder)
    entries = [entry(n, t) for t in ("adamw", "gelu", "matmul") for n in "abc"]
    got = list(rates.judge_all(entries, rates.parse([]), tmp_path))
    assert [o.got for o in got] == ["error"] * 6 + ["policy", "error", "policy"]
    assert "no such model" in got[0].message and "the device is lost" in got[3].message and "out of memory" in got[7].message
    assert not rates.passed(rates.summary(got))


def test_a_device_that_is_not_there(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    assert rates.main(["--device", "gpu"]) == 2 and "give cpu, cuda or cuda:N" in capsys.readouterr().err
    import torch

    monkeypatch.setattr(torch.version, "cuda", None)
    assert rates.main(["--device", "cuda"]) == 3 and "rates: --device cuda:0: " in capsys.readouterr().err


def run(tmp_path: Path, *args: str) -> dict:
    out = tmp_path / "rates.json"
    code = rates.main([*args, "--json", str(out)])
    found = json.loads(out.read_text())
    bad = [(o["file"], o["got"], o["message"][:300]) for o in found["outcomes"]
           if o["kind"] in ("false accept", "false reject", "judge failed")]  # fmt: skip
    assert code == 0 and not bad, bad
    assert math.isfinite(found["seconds"])
    return found


def test_the_judge_errs_on_none_of_a_part_of_the_corpus(tmp_path: Path, fresh_home: Path) -> None:
    found = run(tmp_path, "--quick")
    assert found["false_accepts"]["of"] > 3 and found["false_rejects"]["of"] > 3


@pytest.mark.slow
def test_the_judge_errs_on_none_of_the_corpus(tmp_path: Path, fresh_home: Path) -> None:
    found = run(tmp_path)
    assert found["false_accepts"]["of"] > 190 and found["false_rejects"]["of"] > 100
    assert found["kinds"]["known limit"] <= 6


@pytest.mark.cuda
@pytest.mark.slow
def test_the_judge_errs_on_none_of_the_corpus_on_a_gpu(tmp_path: Path, fresh_home: Path) -> None:
    found = run(tmp_path, "--device", "cuda")
    assert found["false_accepts"]["of"] >= 80 and found["false_rejects"]["of"] > 100
    assert found["kinds"]["known limit"] <= 1
