"""What can be wrong with a closed loop's Run, its endpoint, its budget and its answers: one clear message each, the right exit
code, and nothing sent or lost."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from kgen_command import Done, Server, read_only
from llm_server import Step, serve
from test_loop import ENV, MODEL, block, journal, kernel, llm, no_key

from kgen import stages

BIG = 51 << 20


@pytest.fixture(scope="module")
def begun(kgen_server: Server, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A staged Run with one open prompt; tests work on copies."""
    folder = tmp_path_factory.mktemp("begun")
    (folder / "model.py").write_text(MODEL)
    done = kgen_server.run(
        "tune", folder / "model.py", "--run", folder / "run", "--proposer", "files", "--in-flight", 1, "--stages", "--budget", "10m",
        env=ENV,
    )  # fmt: skip
    assert done.code == 0, done.err
    return folder / "run"


@pytest.fixture
def run(begun: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(begun, tmp_path / "run"))


def wrong(done: Done, code: int, *parts: str) -> None:
    assert done.code == code and "Traceback" not in done.err, done.err
    for part in parts:
        assert part in done.message, done.err
    assert done.message.startswith("kgen: ")


def commands(run: Path) -> list[tuple[Any, ...]]:
    return [
        ("advance", run), ("propose", run), ("evaluate", run), ("prompt", run), ("report", run),
        ("export", run, "--trajectories", run.parent / "t.jsonl"), ("mcp", "--run", run),
    ]  # fmt: skip


@pytest.mark.slow
def test_a_journal_that_was_changed(kgen_server: Server, run: Path) -> None:
    path = run / "journal.jsonl"
    good = path.read_bytes()
    lines = good.splitlines(keepends=True)
    at = next(i for i, line in enumerate(lines) if b'"kind":"prompt"' in line)
    flipped = bytearray(lines[at])
    flipped[flipped.index(b"softmax") + 3] ^= 1
    for text, said in (
        (bytes(flipped), "the line was changed"),
        (lines[at].replace(b'"format":1', b'"format":2'), "format 2 is newer than this kgen, which reads format 1"),
        (b'{"half": \n', ""),
    ):
        bad = b"".join([*lines[:at], text, *lines[at + 1 :]])
        path.write_bytes(bad)
        for words in commands(run):
            if words[0] == "mcp":
                continue  # it was not begun by it, which it says first
            done = kgen_server.run(*words, env=ENV)
            wrong(done, 2, f"journal.jsonl line {at + 1}", said)
            assert path.read_bytes() == bad, words
    # A last line that a crash tore is cut off, and the Run goes on.
    path.write_bytes(good + lines[at][:40])
    done = kgen_server.run("advance", run, env=ENV)
    assert done.code == 0 and path.read_bytes().startswith(good), done.err


@pytest.mark.slow
def test_two_processes_on_one_run(kgen_server: Server, run: Path) -> None:
    with stages.Staged(run).open():
        for words in (("advance", run), ("propose", run), ("evaluate", run)):
            wrong(kgen_server.run(*words, env=ENV), 2, "is in use by another kgen process (process ")
        for words in (("prompt", run), ("report", run)):  # whoever only reads disturbs nobody
            assert kgen_server.run(*words, env=ENV).code == 0
    assert kgen_server.run("advance", run, env=ENV).code == 0


@pytest.mark.slow
def test_answers_of_no_use(kgen_server: Server, run: Path) -> None:
    """Too large, control characters, a path where an id or a name is wanted: told to who answered, and the Run goes on."""
    (ident,) = [p.stem for p in _open(kgen_server, run)]
    answers = run / "answers"
    answers.mkdir()
    with open(answers / ".big", "wb") as f:
        f.truncate(BIG)
    (answers / ".big").rename(answers / f"{ident}.md")
    _turn(kgen_server, run)
    assert "cut at its limit" in (run / "verdicts" / f"{ident}.txt").read_text()
    assert max(len(e.get("text", "")) for e in journal(run) if e["kind"] == "answer") == 0
    for text, said in (
        (block("/* kgen\x01 */\n"), "control character"),
        (block("/* kgen\0 */\n"), "control character"),
        ("```edit ../../../etc/passwd\n<<<<<<< SEARCH\nroot\n=======\nx\n>>>>>>> REPLACE\n```\n", "there is no such Candidate"),
        (block(kernel().replace('"op": "softmax"', '"op": "../../softmax"')), "op"),
        ("caf\udce9".encode("utf-8", "surrogateescape").decode("latin-1"), "/* kgen"),
    ):
        (ident,) = [p.stem for p in _open(kgen_server, run)]
        (answers / f".{ident}").write_text(text)
        (answers / f".{ident}").rename(answers / f"{ident}.md")
        _turn(kgen_server, run)
        told = (run / "verdicts" / f"{ident}.txt").read_text()
        assert said in told, (text, told)
    # A link out of the folder is no answer.
    (ident,) = [p.stem for p in _open(kgen_server, run)]
    (answers / f"{ident}.md").symlink_to("/etc/passwd")
    before = len(journal(run))
    (answers / "DONE").touch()
    done = kgen_server.run("propose", run, env=ENV)
    assert done.code == 0 and "root:" not in (run / "journal.jsonl").read_text(), done.err
    assert [e["kind"] for e in journal(run)[before:] if e["kind"] == "answer"] == []


def _open(server: Server, run: Path) -> list[Path]:
    """The prompts that wait, as journal has them: in stages they are written down by `advance`."""
    done = server.run("advance", run, env=ENV)
    assert done.code == 0, done.err
    answered = {e["prompt"] for e in journal(run) if e["kind"] == "answer"}
    return [Path(f"{e['id']}.md") for e in journal(run) if e["kind"] == "prompt" and e["id"] not in answered]


def _turn(server: Server, run: Path) -> None:
    for words in (("propose", run), ("evaluate", run)):
        done = server.run(*words, env=ENV)
        assert done.code == 0, done.err


def test_no_endpoint(kgen_server: Server, tmp_path: Path) -> None:
    (tmp_path / "model.py").write_text(MODEL)
    done = kgen_server.run("tune", tmp_path / "model.py", "--run", tmp_path / "run", "--proposer", "llm", "--llm", "m", env={
        **ENV, "OPENAI_API_KEY": None})  # fmt: skip
    wrong(done, 2, "--endpoint")
    assert not (tmp_path / "run" / "run.json").exists()


def test_an_endpoint_out_of_reach(kgen_server: Server, begun: Path, tmp_path: Path) -> None:
    """Said before anything is captured; and what a stage says of it has the same exit code."""
    (tmp_path / "model.py").write_text(MODEL)
    with serve(Step(text="never asked")) as server:
        words = llm(server, "--budget", "20s")
    for command in ("tune", "bench-loop"):
        what = (command, tmp_path / "model.py" if command == "tune" else tmp_path, "--run", tmp_path / "run", *words)
        done = kgen_server.run(*what, env=ENV)
        wrong(done, 3, "http://127.0.0.1:", "cannot be reached")
        assert "running" not in done.err and not (tmp_path / "run" / "run.json").exists(), done.err
    run = Path(shutil.copytree(begun, tmp_path / "staged"))
    kept = json.loads((run / "stages.json").read_text())
    kept["asking"] |= {"proposer": "llm", "llm": {"model": "scripted", "endpoint": server.url}}
    (run / "stages.json").write_text(json.dumps(kept))
    wrong(kgen_server.run("propose", run, env=ENV), 3, "cannot be reached", "`kgen propose` is for a machine with a network")


def test_a_run_directory_that_cannot_be_written(kgen_server: Server, tmp_path: Path) -> None:
    (tmp_path / "model.py").write_text(MODEL)
    locked = tmp_path / "locked"
    locked.mkdir()
    front = read_only(locked)
    with serve(Step(text="never asked")) as server:
        words = ["tune", tmp_path / "model.py", "--run", locked / "run", *llm(server, "--budget", "20s")]
        if front:
            import os
            import subprocess
            import sys

            env = {k: v for k, v in {**os.environ, **ENV}.items() if v is not None}
            ran = subprocess.run(
                [*front, sys.executable, "-m", "kgen", *map(str, words)], capture_output=True, text=True, env=env, check=False
            )
            done = Done(ran.returncode, ran.stdout, ran.stderr)
        else:
            done = kgen_server.run(*words, env=ENV)
        wrong(done, 3, "cannot be written there", "name another folder with --run")
        assert server.seen == []
    no_key(locked, done)


def test_the_document_of_a_report_is_whole(tmp_path: Path) -> None:
    """A journal that lacks what an entry must have is named, not guessed at."""
    from run_files import write_journal

    from kgen import report
    from kgen.errors import BadInput

    (tmp_path / "run.json").write_text(json.dumps({"format": 1, "model": "m.py"}))
    write_journal(tmp_path / "journal.jsonl", [{"format": 1, "n": 0, "kind": "prompt", "t": 1.0, "op": "softmax"}])
    with pytest.raises(BadInput, match="an entry of its journal or result has no"):
        report.page(tmp_path)
