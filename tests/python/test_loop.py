"""The closed loop with real judging: scripted models and a scripted agent. What a model needed was in its prompt, nothing is
paid twice whatever happens, the key is nowhere, and what is wrong is said once."""

from __future__ import annotations

import json
import re
import signal
import threading
import time
from collections import Counter
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from kgen_command import Done, Server
from llm_server import Body, LlmServer, Step, serve

from kgen import _libkgen, asking, stages
from kgen._paths import kernels_dir
from kgen.errors import BadInput
from kgen.judge import Judge

KEY = "sk-test-9876543210fedcba"
PROMPTS = kernels_dir() / "prompts"

MODEL = """
import torch
from torch import nn

class Model(nn.Module):
    def forward(self, x):
        return torch.softmax(x, dim=-1)

def get_init_inputs():
    return []

def get_inputs():
    return [torch.randn(60, 300)]
"""

KERNEL = """/* kgen
{{ "format": 1, "op": "softmax", "target": "cpu", "tunables": {{"GRAIN": [8, 16]}},
  "launches": [{{"kernel": "sm", "range": "M", "grain": "GRAIN", "args": ["input", "output", {{"i64": "N"}}]}}] }}
*/
#include <math.h>
#include <stdint.h>
/* {note} */
void sm(int64_t begin, int64_t end, const KG_T_input *input, KG_T_output *output, int64_t n) {{
    for (int64_t r = begin; r < end; r++) {{
        const float *x = input + r * n;
        float *y = output + r * n;
        float top = -INFINITY;
        double sum = 0;
        for (int64_t i = 0; i < n; i++)
            top = x[i] > top ? x[i] : top;
        for (int64_t i = 0; i < n; i++)
            sum += expf(x[i] - top);
        for (int64_t i = 0; i < n; i++)
            y[i] = {result};
    }}
}}
"""
RIGHT = "(float)(expf(x[i] - top) / sum)"


def kernel(note: str = "", result: str = RIGHT) -> str:
    return KERNEL.format(note=note, result=result)


def block(text: str) -> str:
    return f"Here it is.\n\n```c\n{text}```\n"


def user_of(body: Body) -> str:
    return "".join(m["content"] for m in body["messages"] if m["role"] == "user")


def learner(body: Body) -> Step:
    """Wrong first, then one that does not compile, then right: each because the prompt said what was wrong."""
    user = user_of(body)
    verdict = user.partition("## Its verdict")[2]
    if "`compile_error`" in verdict and re.search(r"softmax-0002\.1\.c:\d+:\d+: error: .*half", verdict):
        return Step(text=block(kernel()), reasoning="now I see")
    if "`wrong_values`" in verdict and re.search(r"\[0, 0\] expected \d\S* got ", verdict):
        return Step(text=block(kernel(result="half * expf(x[i])")))
    if "`pass`" in verdict:
        return Step(text=block(kernel(note=f"prompt of {len(user)}")))
    return Step(text=block(kernel(result="x[i] * 0.5f")))


@pytest.fixture
def model(tmp_path: Path) -> Path:
    path = tmp_path / "model.py"
    path.write_text(MODEL)
    return path


ENV = {"OPENAI_API_KEY": KEY, "OPENAI_BASE_URL": None, "http_proxy": None, "https_proxy": None, "all_proxy": None}


def tune(server: Server, model: Path, run: Path, *words: object, **how: Any) -> Done:
    return server.run("tune", model, "--run", run, "--no-promote", *words, env={**ENV, **how.pop("env", {})}, **how)


def llm(endpoint: LlmServer, *words: object) -> tuple[object, ...]:
    return ("--proposer", "llm", "--llm", "scripted", "--endpoint", endpoint.url, *words)


def journal(run: Path) -> list[dict[str, Any]]:
    entries = [json.loads(line) for line in (run / "journal.jsonl").read_text().splitlines()]
    assert [e["n"] for e in entries] == list(range(len(entries)))
    return entries


def no_key(run: Path, done: Done) -> None:
    assert KEY not in done.out + done.err
    for path in run.rglob("*"):
        if path.is_file():
            assert KEY.encode() not in path.read_bytes(), path


def nothing_twice(run: Path) -> Counter[str]:
    entries = journal(run)
    answers = Counter(e["name"] for e in entries if e["kind"] == "answer")
    verdicts = Counter((e["id"], e["level"]) for e in entries if e["kind"] == "verdict")
    asked = Counter(e["id"] for e in entries if e["kind"] == "prompt")
    assert max([*answers.values(), *verdicts.values(), *asked.values()], default=1) == 1
    return Counter(e["kind"] for e in entries)


@pytest.mark.slow
def test_feedback_makes_it_right(kgen_server: Server, model: Path, tmp_path: Path) -> None:
    run, note = tmp_path / "run", "mind the tail"
    (tmp_path / "know.md").write_text("an old saying\n")
    with serve(learner) as server:
        done = tune(
            kgen_server, model, run, *llm(server, "--in-flight", 1, "--budget", "40s,6calls", "--note", note),
            "--knowledge", tmp_path / "know.md",
        )  # fmt: skip
        seen = list(server.seen)
    assert done.code == 0, done.err
    assert len(seen) == 6
    system = {s.body["messages"][0]["content"] for s in seen}
    assert len(system) == 1 and system.pop().startswith("You write kernels")
    first = seen[0].user
    for part in (note, "an old saying", "aten.softmax", "float32 (60, 300), strides (300, 1)", "roofline: a call takes", "GB/s"):
        assert part in first, part
    assert "Here it is" not in seen[1].user and "x[i] * 0.5f" in seen[1].user
    entries = journal(run)
    verdicts = [e["verdict"] for e in entries if e["kind"] == "verdict" and e["level"] == 0]
    assert verdicts[:3] == ["wrong_values", "compile_error", "pass"]
    answer = next(e for e in entries if e["kind"] == "answer" and e["prompt"] == "softmax-0003")
    assert answer["reasoning"] == "now I see" and answer["charged"]["tokens"] == sum(
        answer["usage"][k] for k in ("prompt", "completion")
    )
    assert f"sent to scripted at {server.url[:-3]}: of softmax" in done.err and "know.md" in done.err
    assert "6 Candidates from 6 answers to 7 prompts (6 calls" in done.err
    no_key(run, done)
    nothing_twice(run)

    # What would be asked now; and a resumed Run asks nothing more, as its calls are spent.
    shown = kgen_server.run("prompt", run)
    assert shown.code == 0 and shown.out.startswith("You write kernels") and "The best so far" in shown.out
    with serve(learner) as server:
        again = tune(
            kgen_server, model, run, *llm(server, "--in-flight", 1, "--budget", "40s,6calls", "--note", note), "--resume",
            "--json",
        )  # fmt: skip
        assert again.code == 0 and server.seen == [], again.err
    (row,) = [r for r in again.records()[0]["rows"] if r["op"] == "softmax"]
    assert row["gate"] and row["baseline"]


def wait_until(run: Path, kind: str, n: int) -> None:
    end = time.monotonic() + 60
    path = run / "journal.jsonl"
    while not path.exists() or path.read_text().count(f'"kind":"{kind}"') < n:
        assert time.monotonic() < end
        time.sleep(0.02)


def improver(body: Body) -> Step:
    user = user_of(body)
    return Step(text=block(kernel(note=f"{len(user)} {hash(user)}")), delay=0.1)


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["refine", "branch"])
def test_killed_anywhere_it_pays_for_nothing_twice(kgen_server: Server, model: Path, tmp_path: Path, strategy: str) -> None:
    run = tmp_path / "run"

    def scripted(body: Body) -> Step:
        if "Do not write code yet" in user_of(body):
            return Step(text="```ideas\n- one way\n- another way\n```")
        return improver(body)

    with serve(scripted) as server:
        words = llm(server, "--in-flight", 2, "--budget", "60s,8calls", "--strategy", strategy)
        for kind, n in (("answer", 1), ("verdict", 3), ("answer", 5)):
            resume = ("--resume",) if (run / "run.json").exists() else ()
            running = kgen_server.start("tune", model, "--run", run, "--no-promote", *words, *resume, env=ENV)
            wait_until(run, kind, n)
            running.interrupt(signal.SIGKILL)
            running.wait()
        done = tune(kgen_server, model, run, *words, "--resume")
        assert done.code == 0, done.err
        kinds = nothing_twice(run)
        # Each request was written down before it left, and the limit counts those whose answer was lost.
        assert len(server.seen) <= kinds["send"] <= 8
        assert kinds["answer"] >= 5
    assert kgen_server.left_over() == []
    no_key(run, done)


@pytest.mark.slow
def test_machine_code_on_demand(kgen_server: Server, model: Path, tmp_path: Path) -> None:
    """A model that asks gets what its kernel came to in the next prompt, once."""
    run, shown = tmp_path / "run", []

    def curious(body: Body) -> Step:
        user = user_of(body)
        shown.append(user.partition("## Machine code that was asked for")[2])
        if len(shown) == 2:
            return Step(text=f"```sass {re.search(r'Candidate ([0-9a-f]{12})', user)[1]}\n```\n")  # type: ignore[index]
        return Step(text=block(kernel(note=str(len(shown)))))

    with serve(curious) as server:
        done = tune(kgen_server, model, run, *llm(server, "--in-flight", 1, "--budget", "40s,4calls"))
    assert done.code == 0, done.err
    assert [bool(s) for s in shown] == [False, False, True, False]
    assert "kg_entry_0: " in shown[2] or "no disassembler" in shown[2]
    (listing,) = [e for e in journal(run) if e["kind"] == "listing"]
    assert listing["prompt"] == "softmax-0002" and listing["text"] in shown[2]


@pytest.mark.slow
def test_ctrl_c_while_a_model_thinks(kgen_server: Server, model: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    with serve(Step("silent")) as server:
        words = llm(server, "--in-flight", 1, "--budget", "60s,3calls")
        running = kgen_server.start("tune", model, "--run", run, "--no-promote", *words, env=ENV)
        wait_until(run, "send", 1)
        start = time.monotonic()
        running.interrupt()
        done = running.wait()
        assert time.monotonic() - start < 15
    assert done.code == 130 and "go on with: kgen tune" in done.message, done.err
    assert kgen_server.left_over() == []
    no_key(run, done)
    # What was sent may have been billed: it counts. The same prompt is asked again, under another server.
    with serve(learner) as server:
        words = llm(server, "--in-flight", 1, "--budget", "60s,3calls")
        done = tune(kgen_server, model, run, *words, "--resume")
        assert done.code == 0 and len(server.seen) == 2, done.err
    asked = [e["id"] for e in journal(run) if e["kind"] == "prompt"]
    answered = [e["prompt"] for e in journal(run) if e["kind"] == "answer"]
    assert answered == ["softmax-0001", "softmax-0002"] and asked[:3] == [f"softmax-000{i}" for i in (1, 2, 3)]


# --- files ---


def agent(run: Path, ended: threading.Event, failures: list[BaseException]) -> None:
    """Answers in every way that the README allows; reads nothing but the prompts."""
    try:
        prompts, answers = run / "prompts", run / "answers"
        n = 0
        while not (prompts / "DONE").exists() and not ended.is_set():
            if n == 5:  # and it has nothing more to say
                (answers / "DONE").touch()
                return
            for path in sorted(prompts.glob("*-0*.md")):
                text = block(kernel(note=f"answer {n}"))
                if n == 0:  # in place, with a mark
                    (answers / f"{path.stem}.md").write_text(text)
                    (answers / f"{path.stem}.md.done").touch()
                elif n == 1:  # two answers to one, renamed into place; a path and a control character in the way
                    for k in (1, 2):
                        aside = answers / f".{path.stem}-{k}"
                        aside.write_text(block(kernel(note=f"answer {n} {k}")) if k == 1 else block("/* kgen\x01 */\n"))
                        aside.rename(answers / f"{path.stem}-{k}.md")
                else:  # it simply stands still
                    (answers / f"{path.stem}.md").write_text(text)
                n += 1
                while path.exists() and not ended.is_set() and not (prompts / "DONE").exists():
                    time.sleep(0.02)
            time.sleep(0.02)
    except BaseException as e:  # noqa: BLE001 - told by the test
        failures.append(e)


@pytest.mark.slow
def test_an_agent_answers_with_files(kgen_server: Server, model: Path, tmp_path: Path) -> None:
    run, ended, failures = tmp_path / "run", threading.Event(), []
    running = kgen_server.start(
        "tune", model, "--run", run, "--no-promote", "--proposer", "files", "--in-flight", 1, "--budget", "10m", env=ENV
    )
    end = time.monotonic() + 60
    while not (run / "prompts" / "softmax-0001.md").exists():
        assert time.monotonic() < end
        time.sleep(0.05)
    readme = (run / "prompts" / "README.md").read_text()
    assert str(run / "answers") in readme and "{" not in readme
    prompt = (run / "prompts" / "softmax-0001.md").read_text()
    assert prompt.startswith("You write kernels") and "## Now" in prompt
    thread = threading.Thread(target=agent, args=(run, ended, failures))
    thread.start()
    (run / "answers" / "unknown-0001.md").write_text("not asked")
    done = running.wait()
    ended.set()
    thread.join()
    assert not failures and done.code == 0, (failures, done.err)
    kinds = nothing_twice(run)
    assert kinds["answer"] == 6 and (run / "prompts" / "DONE").read_text().startswith("softmax ")
    assert "it ended because: whoever answers is done" in done.err
    answers = [e["name"] for e in journal(run) if e["kind"] == "answer"]
    assert "softmax-0002-1.md" in answers and "softmax-0002-2.md" in answers and "unknown-0001.md" not in answers
    verdict = (run / "verdicts" / "softmax-0001.txt").read_text()
    assert "softmax-0001.md.1.c" in verdict and "pass" in verdict
    assert (run / "prompts" / "answered" / "softmax-0001.md").exists()
    assert any(r["verdict"] == "pass" for r in journal(run) if r["kind"] == "verdict")


# --- stages ---


@pytest.mark.slow
def test_stages_take_turns(kgen_server: Server, model: Path, tmp_path: Path) -> None:
    run, registry = tmp_path / "run", tmp_path / "registry"

    def stage(*words: object, **how: Any) -> Done:
        return kgen_server.run(*words, env=ENV, **how)

    with serve(learner) as server:
        words = llm(server, "--in-flight", 1, "--budget", "60s,5calls")
        begun = stage("tune", model, "--run", run, *words, "--stages", "--min-speedup", "0.0001")
        assert begun.code == 0 and f"kgen propose {run}" in begun.err and server.seen == []
        model.unlink()  # no stage needs it again
        moved = tmp_path / "moved"
        run.rename(moved)
        run = moved
        for n in range(1, 4):
            asked = stage("propose", run)
            assert asked.code == 0 and len(server.seen) == n, asked.err
            again = stage("propose", run)  # nothing is open: nothing is asked
            assert again.code == 0 and len(server.seen) == n
            judged = stage("evaluate", run)
            assert judged.code == 0 and len(server.seen) == n, judged.err
            assert stage("advance", run, "--json").records()[0][0]["open"] == 1
    # Where there is no network, propose says so.
    lost = stage("propose", run)
    assert lost.code == 3 and "`kgen propose` is for a machine with a network" in lost.message, lost.err
    shown = stage("prompt", run)
    assert shown.code == 0 and "The best so far" in shown.out
    done = stage("evaluate", run, "--finish", "--registry", registry, "--json")
    assert done.code == 0, done.err
    (row,) = [r for r in done.records()[0]["rows"] if r["op"] == "softmax"]
    assert row["state"] == "promoted" and row["verdicts"]["pass"] >= 1
    record = json.loads(next(registry.glob("softmax/*/*/record.json")).read_text())
    assert record["proposer"] == {"name": "llm", "model": "scripted", "strategy": "refine", "answer": "softmax-0003.1.c"}
    verdicts = [e["verdict"] for e in journal(run) if e["kind"] == "verdict" and e["level"] == 0]
    assert verdicts[:3] == ["wrong_values", "compile_error", "pass"]
    no_key(run, done)
    nothing_twice(run)

    out = tmp_path / "t.jsonl"
    exported = stage("export", run, "--trajectories", out)
    assert exported.code == 0 and "1 conversations, 3 turns" in exported.out
    (talk,) = [json.loads(line) for line in out.read_text().splitlines()]
    assert [t["kind"] for t in talk["turns"]] == ["fresh", "refine", "refine"] and talk["system"].startswith("You write")
    rewards = [t["reward"] for t in talk["turns"]]
    assert rewards[:2] == [0, 0] and rewards[2] >= 0.3 - 1e-9
    assert [t["return"] for t in talk["turns"]] == pytest.approx([0.16 * rewards[2], 0.4 * rewards[2], rewards[2]])
    assert talk["turns"][2]["reasoning"] == "now I see" and "`compile_error`" in talk["turns"][2]["user"]

    page = tmp_path / "r.html"
    assert stage("report", run, "-o", page).code == 0
    html = page.read_text()
    for part in ("scripted", "over tokens", "softmax-0002</b> refine, mends softmax-0001.1.c", "now I see", "wrong_values",
                 "+            y[i] = half * expf(x[i]);", "margin-left:2rem"):  # fmt: skip
        assert part in html, part

    # Times of another machine do not compare.
    text = (run / "stages.json").read_text()
    assert KEY not in text
    _libkgen.journal_add(run, "machine", {"op": "softmax", "target": "cpu", "text": "- Another CPU, 3 threads", "cases": []})
    other = stage("evaluate", run)
    assert other.code == 3 and "was evaluated on another machine (Another CPU, 3 threads)" in other.message


@pytest.mark.slow
def test_an_agent_is_told_of_what_the_last_stage_judged(kgen_server: Server, model: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    words = ("--proposer", "files", "--in-flight", 1, "--budget", "30s", "--stages")
    assert kgen_server.run("tune", model, "--run", run, *words, env=ENV).code == 0
    (run / "answers").mkdir()
    (run / "answers" / "softmax-0001.md").write_text(block(kernel()))
    (run / "answers" / "softmax-0001.md.done").touch()
    assert kgen_server.run("propose", run, env=ENV).code == 0
    done = kgen_server.run("evaluate", run, "--finish", "--no-promote", env=ENV)
    assert done.code == 0, done.err
    assert "softmax-0001.md.1.c (Candidate" in (run / "verdicts" / "softmax-0001.txt").read_text()
    assert (run / "prompts" / "DONE").read_text().startswith("softmax ")


def test_stages_of_something_else(kgen_server: Server, tmp_path: Path) -> None:
    for name in ("propose", "evaluate", "advance"):
        done = kgen_server.run(name, tmp_path)
        assert done.code == 2 and "is no Run" in done.message
    (tmp_path / "run.json").write_text("{}")
    done = kgen_server.run("advance", tmp_path)
    assert done.code == 2 and "was not begun with `kgen tune --stages`" in done.message
    done = kgen_server.run("export", tmp_path, "--trajectories", tmp_path / "x")
    assert done.code == 2 and "nobody answered anything" in done.message


def test_a_stage_without_its_device(kgen_server: Server, tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    (run / "run.json").write_text(json.dumps({"format": 1, "model": "model.py", "device": "cuda"}))
    kept = {"format": 1, "asking": asdict(asking.Asking("files", target_share=0.5)), "limits": asdict(asking.Budget()),
            "budget": 60.0, "min_speedup": 1.05}  # fmt: skip
    (run / "stages.json").write_text(json.dumps(kept))
    _libkgen.journal_add(run, "survey", {"jobs": [], "left": []})
    staged = stages.Staged(run)
    assert staged.target == "cuda" and staged.loop("softmax", asking.Budget())["target"] == "cuda"
    assert staged.loop("softmax", asking.Budget())["target_share"] == 0.5
    del kept["asking"]["target_share"]  # as kgen wrote it before there was the option
    (run / "stages.json").write_text(json.dumps(kept))
    assert "target_share" not in stages.Staged(run).loop("softmax", asking.Budget())
    done = kgen_server.run("evaluate", run, "--device", "cpu")
    assert done.code == 2 and f"--device cpu: {run} was captured on cuda" in done.message, done.err
    if not torch.cuda.is_available():
        done = kgen_server.run("evaluate", run)
        assert done.code == 3 and "the Run's device cuda:0: " in done.message, done.err
    (run / "stages.json").write_text("{")
    done = kgen_server.run("evaluate", run)
    assert done.code == 2 and "stages.json" in done.message, done.err


def test_a_gpu_in_words() -> None:
    about = SimpleNamespace(
        name="NVIDIA H100", multi_processor_count=132, major=9, minor=0, shared_memory_per_block_optin=232448,
        regs_per_multiprocessor=65536, L2_cache_size=50 << 20,
    )  # fmt: skip
    first, sizes, rates = asking.gpu_text(about, 3.0e12, {"float32": 6.7e13, "bfloat16": 9.9e14}).splitlines()
    assert first == "- NVIDIA H100, 132 SMs, sm_90"
    assert sizes == "- 227 KiB shared memory a block at most, 65536 registers an SM, 50 MiB L2"
    assert "memory 3000 GB/s" in rates and "float32 67 TFLOP/s, bfloat16 990 TFLOP/s" in rates


# --- Ops of the model's own ---

OWN = """
import torch
from torch import nn

class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(40))

    def forward(self, x):
        return torch.cumsum(torch.relu(x) * self.scale, dim=-1)

def get_init_inputs():
    return []

def get_inputs():
    return [torch.randn(30, 40)]
"""


def own_writer(body: Body) -> Step:
    user = user_of(body)
    op = re.search(r'"op":"(model_\w+)"', user)
    assert op and "aten.cumsum" in user and "aten.relu" in user
    args = re.search(r'"schema":"model_\w+\(Tensor (\w+), Tensor (\w+)\)', user)
    assert args
    x, w = (args[1], args[2]) if args[1] == "x" else (args[2], args[1])
    return Step(text=block(f"""/* kgen
{{ "format": 1, "op": "{op[1]}", "target": "cpu",
  "launches": [{{"kernel": "k", "range": "{x}_0", "args": ["{x}", "{w}", "output", {{"i64": "{x}_1"}}]}}] }}
*/
#include <stdint.h>
void k(int64_t begin, int64_t end, const KG_T_{x} *x, const KG_T_{w} *w, KG_T_output *o, int64_t n) {{
    for (int64_t r = begin; r < end; r++) {{
        double sum = 0;
        for (int64_t i = 0; i < n; i++)
            o[r * n + i] = (float)(sum += x[r * n + i] > 0 ? (double)x[r * n + i] * w[i] : 0);
    }}
}}
"""))


@pytest.mark.slow
def test_the_whole_model_is_an_op(kgen_server: Server, tmp_path: Path) -> None:
    path, run, registry = tmp_path / "own.py", tmp_path / "run", tmp_path / "registry"
    path.write_text(OWN)
    with serve(own_writer) as server:
        done = kgen_server.run(
            "tune", path, "--run", run, "--registry", registry, "--min-speedup", "0.0001", "--json",
            *llm(server, "--in-flight", 1, "--budget", "20s,1call"), env=ENV,
        )  # fmt: skip
    assert done.code == 0, done.err
    (row,) = [r for r in done.records()[0]["rows"] if r["state"] == "promoted"]
    assert row["op"].startswith("model_") and row["kernel"].endswith("/v1")


# --- bad input ---


@pytest.mark.parametrize(
    ("step", "message"),
    [
        (Step("error", status=401, error={"error": {"message": f"bad key {KEY}"}}), "refused the key (HTTP 401): bad key [key]"),
        (Step("error", status=403), "refused the key (HTTP 403)"),
        (Step("error", status=404, error={"error": {"message": "no model scripted"}}), "knows no model scripted"),
        (Step("error", status=200, error="<html>hi</html>", content_type="text/html"), "does not speak the chat completions"),
    ],
)
def test_an_endpoint_that_will_not_do(kgen_server: Server, model: Path, tmp_path: Path, step: Step, message: str) -> None:
    run = tmp_path / "run"
    with serve(step) as server:
        done = tune(kgen_server, model, run, *llm(server, "--in-flight", 1, "--budget", "30s"))
        assert len(server.seen) == 1
    assert done.code == 2 and "Traceback" not in done.err, done.err
    assert done.message.startswith("kgen: http://127.0.0.1") and message in done.message
    no_key(run, done)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--proposer", "llm", "--endpoint", "http://localhost:1"), "no model: name one with --llm NAME"),
        (("--proposer", "llm", "--llm", "m", "--endpoint", "nonsense"), "endpoint nonsense: give a URL"),
        (("--proposer", "llm", "--llm", "m", "--key-env", "NOT_THERE"), "--key-env NOT_THERE: the environment has no such"),
        (("--proposer", "llm", "--llm", "m", "--budget", "0usd"), "--budget 0usd: give a time such as 90s, 15m"),
        (("--proposer", "llm", "--llm", "m", "--budget", "0m"), "above zero"),
        (("--proposer", "llm", "--llm", "m", "--budget", "1m,2m"), "says seconds twice"),
        (("--proposer", "llm", "--llm", "unpriced", "--endpoint", "https://far.test", "--budget", "1usd"), "needs the price of"),
        (("--proposer", "files", "--budget", "2usd"), "costs time alone"),
        (("--llm", "m"), "--llm goes with --proposer llm"),
        (("--strategy", "branch"), "--strategy goes with --proposer llm or files"),
        (("--proposer", "files", "--knowledge", "/nowhere"), "--knowledge /nowhere: No such file"),
        (("--proposer", "files", "--knowledge", "/dev/zero"), "--knowledge /dev/zero: has more than 1 MiB"),
        (("--proposer", "files", "--in-flight", "0"), "--in-flight 0: give 1 to 64"),
        (("--proposer", "files", "--in-flight", "65"), "--in-flight 65: give 1 to 64"),
        (("--target-share", "0.8"), "--target-share goes with --proposer llm or files"),
        (("--proposer", "files", "--target-share", "0"), "--target-share 0: give a share of the roofline, above 0 and at most 1"),
        (("--proposer", "files", "--target-share", "1.01"), "--target-share 1.01: give a share"),
        (("--proposer", "files", "--target-share", "nan"), "--target-share nan: give a share"),
        (("--proposer", "llm", "--llm", "m", "--temperature", "nan"), "--temperature nan: give a number, 0 or more"),
    ],
)
def test_bad_words(kgen_server: Server, model: Path, tmp_path: Path, words: tuple[str, ...], message: str) -> None:
    done = tune(kgen_server, model, tmp_path / "run", *words)
    assert done.code == 2 and message in done.message, done.err
    assert not (tmp_path / "run" / "run.json").exists()


def test_a_run_is_resumed_with_its_own_proposer(kgen_server: Server, model: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    asked = {"format": 1, "model": "model.py", "sha256": None, "module": None, "inputs": None, "argv": [], "patterns": [],
             "mode": None, "proposer": "files", "strategy": "refine"}  # fmt: skip
    import hashlib

    asked["sha256"] = hashlib.sha256(model.read_bytes()).hexdigest()
    (run / "run.json").write_text(json.dumps(asked))
    done = tune(kgen_server, model, run, "--resume")
    assert done.code == 2 and "was begun with --proposer files, not none" in done.message, done.err
    done = tune(kgen_server, model, run, "--resume", "--proposer", "files", "--strategy", "branch")
    assert done.code == 2 and "was begun with --strategy refine, not branch" in done.message, done.err
    done = kgen_server.run("prompt", run)
    assert done.code == 2 and "nobody was asked in this Run yet" in done.message


@pytest.mark.parametrize(
    ("text", "budget"),
    [
        ("15m", asking.Budget(900)),
        ("90s,2usd", asking.Budget(90, usd=2.0)),
        ("40calls", asking.Budget(24 * 3600, calls=40)),
        ("1call,2Mtok", asking.Budget(24 * 3600, calls=1, tokens=2_000_000)),
        ("1.5ktokens, 1h", asking.Budget(3600, tokens=1500)),
    ],
)
def test_budgets(text: str, budget: asking.Budget) -> None:
    assert asking.parse_budget(text) == budget


def test_each_op_gets_its_part_of_what_is_left() -> None:
    whole = asking.Budget(100, calls=10, usd=1.0)
    spent = {"calls": 4, "tokens": 999, "nano_usd": 500_000_000}
    assert asking.part_of(whole, spent, 0.5) == asking.Budget(100, calls=3, usd=0.25)
    assert asking.part_of(whole, {**spent, "calls": 10}, 0.5) is None


# --- the worked examples of the prompts are true ---


def example(target: str) -> tuple[str, str]:
    text = (PROMPTS / f"{target}.md").read_text()
    (source,) = re.findall(r"```(?:c|cuda)\n(/\* kgen.*?)```", text, re.DOTALL)
    contract = {
        "format": 1, "op": "rms", "schema": "rms(Tensor x, Tensor weight) -> Tensor",
        "args": [{"name": "x", "type": "Tensor", "dtypes": ["float32"], "shape": ["M", "N"]},
                 {"name": "weight", "type": "Tensor", "dtype_as": "x", "shape": ["N"]}],
        "dims": [], "dynamic": [], "outputs": [{"name": "output", "dtype_as": "x", "shape": ["M", "N"]}], "holes": [],
        "reduction": "N", "reference": {"kind": "torch", "call": "torch.nn.functional.rms_norm"},
    }  # fmt: skip
    return source, json.dumps(contract)


@pytest.mark.parametrize("shape", [(7, 1000), (64, 256), (3, 1), (1, 4099)])
def test_the_cpu_example_passes(shape: tuple[int, int]) -> None:
    source, contract = example("cpu")

    def tensor(*size: int) -> dict[str, Any]:
        stride = [1] if len(size) == 1 else [size[1], 1]
        fill = {"kind": "normal", "mean": 0.0, "std": 1.0}
        return {"dtype": "float32", "shape": list(size), "stride": stride, "align": 64, "fill": fill}

    case = {"format": 1, "op": "rms", "device": "cpu", "precision": "native", "count": 1,
            "args": {"x": tensor(*shape), "weight": tensor(shape[1])}}  # fmt: skip
    with Judge(contract) as judge:
        judge.add_case(case)
        for seed in range(3):
            torch.manual_seed(seed)
            x, w = torch.randn(shape), torch.randn(shape[1])

            def rms(x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
                return x * torch.rsqrt((x * x).mean(-1, keepdim=True) + 1e-6) * w

            judge.add_set(0, [x, w], [rms(x.double(), w.double())], results=[rms(x, w)])
        for unroll in (2, 4, 8):
            record = judge.run(source, tunables={"UNROLL": unroll})
            assert record["verdict"] == "pass", record["message"]


def test_the_cuda_example_has_a_good_plan() -> None:
    source, contract = example("cuda")
    checked = _libkgen.candidate_check(contract, source.encode(), "rms.cu")
    assert checked["target"] == "cuda" and checked["tunables"] == {"THREADS": 256}


def test_prompts_are_whole() -> None:
    """What code fills in is what the texts name."""
    named = {p.name: set(re.findall(r"\{([A-Z]+)\}", p.read_text())) for p in PROMPTS.glob("*.md")}
    named.pop("README.md")
    assert {k: v for k, v in named.items() if v} == {
        "ideas.md": {"COUNT"},
        "implement.md": {"IDEA"},
        "agent.md": {"PROMPTS", "ANSWERS", "VERDICTS", "QUIET", "DONE"},
    }
    with pytest.raises(BadInput, match="loop: .*nonsense"):
        _libkgen.prompt(example("cpu")[1], ".", {"nonsense": 1})
