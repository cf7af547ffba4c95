"""tools/keep_run.py: what is kept of a Run is whole and names nothing of the machine; and what is kept in docs/runs reads."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import test_report_screen
from kgen_command import Done, Server
from run_files import write_journal

ROOT = Path(__file__).resolve().parents[2]
KEPT = sorted(p.parent for p in (ROOT / "docs" / "runs").glob("*/provenance.json"))


@pytest.fixture
def keep(kgen_server: Server) -> Callable[..., Done]:
    tool = f"import runpy; runpy.run_path({str(ROOT / 'tools' / 'keep_run.py')!r}, run_name='__main__')"
    return lambda *words: kgen_server.run(*words, "--answered-by", "a script", "--saw", "nothing", code=tool)


def finished(path: Path, prompt: str = "give ideas") -> Path:
    path.mkdir()
    asked = {"format": 1, "model": "m.py", "sha256": None, "torch": "2.13.0", "created": "2026-01-31T12:00:00Z", "proposer": "llm",
             "strategy": "branch"}  # fmt: skip
    (path / "run.json").write_text(json.dumps(asked))
    (path / "result.json").write_text(json.dumps({"format": 1, "model": "m", "run": "r", "registry": "r", "seconds": 1.0, "rows": []}))
    entries: list[dict[str, Any]] = test_report_screen.entries()
    for e in entries:
        if e["kind"] == "prompt" and e["prompt_kind"] == "ideas":
            e["user"] = prompt
        if e["kind"] == "gate":
            e |= {"rounds": 9, "noisy": False, "baselines": [{"name": "eager", "median_ns": 3.0e6}]}
    write_journal(path / "journal.jsonl", entries)
    return path


def test_what_is_kept(keep: Callable[..., Done], tmp_path: Path) -> None:
    done = keep(finished(tmp_path / "run"), "mine", "--to", tmp_path / "kept")
    assert done.code == 0, done.err
    kept = tmp_path / "kept" / "mine"
    about = json.loads((kept / "provenance.json").read_text())
    assert about["answered_by"] == "a script" and about["candidates"] == 3 and about["verdicts"] == {"pass": 2, "wrong_values": 1}
    assert about["tokens"] == 3600 and about["gate"][0]["speedup"]["median"] == 2.5
    assert "softmax-0002" in gzip.decompress((kept / "report.html.gz").read_bytes()).decode()
    talks = gzip.decompress((kept / "trajectories.jsonl.gz").read_bytes()).decode().splitlines()
    assert any(t["prompt"] == "softmax-0004" for line in talks for t in json.loads(line)["turns"])


def test_one_that_is_not_finished_is_kept_on_request(keep: Callable[..., Done], tmp_path: Path) -> None:
    unfinished = finished(tmp_path / "b")
    (unfinished / "result.json").unlink()
    done = keep(unfinished, "x", "--to", tmp_path / "kept", "--unfinished")
    assert done.code == 0, done.err
    about = json.loads((tmp_path / "kept" / "x" / "provenance.json").read_text())
    assert not about["finished"] and about["best_ns"] and about["first_right"] == 1


def test_the_round_of_the_first_right_answer(keep: Callable[..., Done], tmp_path: Path) -> None:
    """Answers of a first round that passed what they were judged by, and the third alone on every set; then a first round
    of which one passed quickly and was wrong on another set, and a second that is right."""
    for name, verdicts, want in (
        ("bestof", [(0, 0, "pass"), (0, 0, "pass"), (0, 2, "pass")], 1),
        ("later", [(0, 2, "nonfinite"), (0, 0, "wrong_values"), (1, 0, "pass"), (2, 2, "pass")], 2),
        ("never", [(0, 0, "wrong_values")], None),
    ):
        run = finished(tmp_path / name)
        made: list[dict[str, Any]] = [{"kind": "loop", "proposer": "files", "strategy": "refine", "model": None, "host": None,
                                       "options": {}}]  # fmt: skip
        for i, (turn, level, verdict) in enumerate(verdicts):
            ident = f"softmax-{i:04}"
            made += [
                {"kind": "prompt", "id": ident, "prompt_kind": "refine" if turn else "fresh", "line": i if not turn else 0,
                 "turn": turn, "parent": None, "idea": -1, "system": "s", "user": "u"},
                {"kind": "answer", "prompt": ident, "name": f"{ident}.md", "text": "t"},
                {"kind": "candidate", "prompt": ident, "name": f"{ident}.md.1.c", "id": ident, "parent": None, "text": "x"},
                *({"kind": "verdict", "id": ident, "source": f"{ident}.md.1.c", "tunables": {}, "level": at, "message": "",
                   "verdict": verdict if at == level else "pass", "took_s": 1.0, "spent_s": 1.0, "time_ns": [2.0]}
                  for at in {0, level}),
            ]  # fmt: skip
        write_journal(run / "journal.jsonl", [{"format": 1, "n": n, "t": 1.0 + n, "op": "softmax", **e} for n, e in enumerate(made)])
        done = keep(run, name, "--to", tmp_path / "kept")
        assert done.code == 0, done.err
        assert json.loads((tmp_path / "kept" / name / "provenance.json").read_text())["first_right"] == want, name


def test_what_is_not_kept(keep: Callable[..., Done], tmp_path: Path) -> None:
    done = keep(finished(tmp_path / "a", "look at /home/somebody/secret.txt"), "x", "--to", tmp_path / "kept")
    assert done.code == 2 and "names a folder of this machine: /home/somebody" in done.err
    unfinished = finished(tmp_path / "b")
    (unfinished / "result.json").unlink()
    done = keep(unfinished, "x", "--to", tmp_path / "kept")
    assert done.code == 2 and "no finished Run" in done.err
    assert not (tmp_path / "kept").exists()


@pytest.mark.parametrize("folder", KEPT, ids=[p.name for p in KEPT])
def test_kept_runs_read(folder: Path) -> None:
    about = json.loads((folder / "provenance.json").read_text())
    assert about["answered_by"] and about["saw"] and (ROOT / "docs" / "runs" / "tasks" / about["task"]).is_file()
    assert sum(f.stat().st_size for f in folder.iterdir()) <= 200_000
    for line in gzip.decompress((folder / "trajectories.jsonl.gz").read_bytes()).decode().splitlines():
        assert json.loads(line)["turns"]
