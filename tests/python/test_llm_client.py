"""The model client against a server that misbehaves: each answer is taken, repeated or refused as it deserves, the budget
holds whatever comes, the key is nowhere, and nothing hangs."""

from __future__ import annotations

import json
import re
import shutil
import socket
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from llm_server import Body, LlmServer, Seen, Step, self_signed, serve, tokens

from kgen import _libkgen, asking
from kgen._paths import kernels_dir
from kgen.errors import BadInput, EnvironmentLacks, KgenError

KEY = "sk-test-0123456789abcdef"
PRICES = str(kernels_dir() / "prompts" / "prices.json")
GOOD = Step(text="caf\u00e9 " * 20, reasoning="let me see")


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("OPENAI_BASE_URL", "http_proxy", "https_proxy", "all_proxy", "HTTPS_PROXY", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("OPENAI_API_KEY", KEY)


def options(server: LlmServer | None = None, **more: Any) -> dict[str, Any]:
    fast = {"model": "test-model", "backoff_ms": 5, "connect_ms": 2000, "first_byte_ms": 3000, "idle_ms": 2000,
            "total_ms": 20000, "max_tokens": 1000, "retries": 3}  # fmt: skip
    return {**fast, **({"endpoint": server.url} if server else {}), **more}


def ask(server: LlmServer | None, n: int = 1, user: str = "write a kernel", **more: Any) -> dict[str, Any]:
    start = time.monotonic()
    out = _libkgen.llm_ask(
        options(server, **more), [{"id": f"q{i}", "system": "be brief", "user": user} for i in range(n)]
    )
    assert time.monotonic() - start < 25
    assert KEY not in json.dumps(out)
    return out


def one(server: LlmServer, **more: Any) -> dict[str, Any]:
    (reply,) = ask(server, **more)["replies"]
    return reply


# --- answers ---


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("field_name", ["reasoning_content", "reasoning"])
def test_an_answer_its_reasoning_and_what_it_used(stream: bool, field_name: str) -> None:
    usage = {"prompt_tokens": 50, "completion_tokens": 70, "prompt_tokens_details": {"cached_tokens": 30},
             "completion_tokens_details": {"reasoning_tokens": 9}}  # fmt: skip
    with serve(Step(text=GOOD.text, reasoning="hm \u00e9", usage=usage, field_name=field_name)) as server:
        out = ask(server, stream=stream)
    (reply,) = out["replies"]
    assert (reply["end"], reply["answer"], reply["reasoning"]) == ("answered", GOOD.text, "hm \u00e9")
    assert reply["usage"] == {"prompt": 50, "cached": 30, "completion": 70, "reasoning": 9}
    assert reply["finish"] == "stop" and reply["attempt"] == 1
    assert out["spent"] == {"calls": 1, "tokens": 120, "nano_usd": 0}
    (seen,) = server.seen
    assert seen.path == "/v1/chat/completions" and seen.headers["Authorization"] == f"Bearer {KEY}"
    assert seen.body["stream"] is stream and seen.body["max_tokens"] == 1000
    assert [m["role"] for m in seen.body["messages"]] == ["system", "user"]


def test_deepseek_says_cached_tokens_in_its_own_words() -> None:
    usage = {"prompt_tokens": 50, "completion_tokens": 7, "prompt_cache_hit_tokens": 40, "prompt_cache_miss_tokens": 10}
    with serve(Step(text="x", usage=usage)) as server:
        assert one(server)["usage"]["cached"] == 40


@pytest.mark.parametrize(
    ("text", "answer", "reasoning"),
    [
        ("<think>\nhm\n</think>\n\nthe code", "the code", "\nhm\n"),
        ("hm\n</think>the code", "the code", "hm\n"),  # the opening tag is part of the template
        ("<think>never done", "", "never done"),
        ("a < b, and <thinking> is no tag", "a < b, and <thinking> is no tag", ""),
    ],
)
def test_thinking_in_the_text_is_parted_from_the_answer(text: str, answer: str, reasoning: str) -> None:
    with serve(Step(text=text)) as server:
        reply = one(server)
    assert (reply["answer"], reply["reasoning"]) == (answer, reasoning)


@pytest.mark.parametrize(
    "step",
    [
        Step(text="done", dones=0),
        Step(text="done", dones=3),
        Step(text="done", finish=None),  # [DONE] alone
        Step(text="done", content_type="text/html"),
        Step(text="done", content_type="application/json"),
        Step(text="done", chunk=1),
    ],
    ids=["no [DONE]", "three [DONE]", "no finish_reason", "html", "json", "one character a time"],
)
def test_harmless_oddities(step: Step) -> None:
    with serve(step) as server:
        reply = one(server)
    assert (reply["end"], reply["answer"], len(server.seen)) == ("answered", "done", 1)


def test_a_tool_call_is_an_answer_without_text() -> None:
    for stream in (True, False):
        with serve(Step("tools")) as server:
            reply = one(server, stream=stream)
        assert (reply["end"], reply["answer"], reply["tool_calls"]) == ("answered", "", True)


def test_an_answer_that_was_cut_by_its_length_says_so() -> None:
    with serve(Step(text="half", finish="length")) as server:
        assert one(server)["finish"] == "length"


# --- what is repeated ---


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize(
    "bad",
    [
        Step("error", status=408), Step("error", status=409), Step("error", status=429), Step("error", status=500),
        Step("error", status=503), Step("error", status=502, error="<html><h1>Bad gateway</h1>", content_type="text/html"),
        Step("error", status=529), Step("cut", text=GOOD.text), Step("reset", text=GOOD.text),
        Step("garbage", text=GOOD.text, no_usage=True), Step("empty"), Step("stall", text=GOOD.text),
    ],
    ids=lambda s: f"{s.kind} {s.status}",
)  # fmt: skip
def test_what_passes_is_tried_again(bad: Step, stream: bool) -> None:
    with serve(bad, GOOD) as server:
        out = ask(server, stream=stream, idle_ms=300)
    (reply,) = out["replies"]
    assert (reply["end"], reply["answer"], reply["attempt"]) == ("answered", GOOD.text, 2), reply
    assert len(server.seen) == 2 and server.seen[0].body == server.seen[1].body
    (first,) = out["attempts"]
    assert first["end"] == "failed" and first["message"]
    # What may have been billed is taken as billed.
    worst = out["sent"][0]["reserved"]["tokens"]
    billed = bad.status in (502, 504) or bad.kind in ("cut", "reset", "garbage", "empty", "stall")
    assert first["charged"] == {"calls": 1, "tokens": worst if billed else 0, "nano_usd": 0}
    assert out["spent"]["calls"] == 2
    assert out["spent"]["tokens"] == first["charged"]["tokens"] + reply["charged"]["tokens"]


def test_a_stream_that_ends_before_the_model_did() -> None:
    with serve(Step("unfinished", text="half of it"), GOOD) as server:
        assert one(server)["answer"] == GOOD.text


@pytest.mark.alone
def test_retry_after_is_obeyed_by_everybody() -> None:
    with serve(Step("error", status=429, headers=(("Retry-After", "1"),)), GOOD) as server:
        out = ask(server, n=3, in_flight=1)
    assert [r["end"] for r in out["replies"]] == ["answered"] * 3
    first, *rest = [s.at for s in server.seen]
    assert min(rest) - first >= 1.0


def test_backoff_grows_and_ends() -> None:
    with serve(Step("error", status=500)) as server:
        reply = one(server, retries=4, backoff_ms=40)
    assert reply["end"] == "failed" and "HTTP 500" in reply["message"] and len(server.seen) == 5
    at = [s.at for s in server.seen]
    waits = [b - a for a, b in zip(at, at[1:])]
    for i, wait in enumerate(waits):  # half of it is jitter
        assert wait >= 0.04 * 2**i / 2, waits


@pytest.mark.alone
def test_a_wait_beyond_the_deadline_is_not_waited_for() -> None:
    with serve(Step("error", status=429, headers=(("Retry-After", "3600"),))) as server:
        start = time.monotonic()
        reply = one(server, deadline_ms=2000)
    assert reply["end"] == "stopped" and time.monotonic() - start < 1.5


# --- what is not ---


@pytest.mark.parametrize(
    ("status", "error", "part"),
    [
        (401, {"error": {"message": f"Incorrect API key provided: {KEY}."}}, "refused the key (HTTP 401): Incorrect API key"),
        (403, {"error": {"message": "not for you"}}, "refused the key (HTTP 403)"),
        (402, {"error": {"message": "Insufficient Balance"}}, "wants money first"),
        (404, {"error": {"message": "The model `test-model` does not exist"}}, "knows no model test-model"),
        (400, {"error": {"message": "Model Not Exist"}}, "refused the model test-model"),
        (404, "<html>404 page</html>", "no chat completions there"),
        (429, {"error": {"message": "You exceeded your quota", "code": "insufficient_quota"}}, "no credit left"),
        (302, "", "redirects"),
    ],
)
def test_what_no_repetition_mends_ends_all(status: int, error: Body | str, part: str) -> None:
    with serve(Step("error", status=status, error=error)) as server:
        out = ask(server, n=3, in_flight=1)
    assert {r["end"] for r in out["replies"]} == {"fatal"} and len(server.seen) == 1
    assert part in out["replies"][0]["message"] and server.url.rpartition("/")[0] in out["replies"][0]["message"]


def test_a_redirect_does_not_carry_the_key_away() -> None:
    with serve(GOOD) as thief, serve(Step("redirect", text="")) as server:
        server.script[0] = Step("redirect", text=thief.url + "/chat/completions")
        assert one(server)["end"] == "fatal"
        assert thief.seen == []


@pytest.mark.parametrize("page", ["<html><body>Welcome</body></html>", '{"hello": 1}', "plain words"])
def test_an_endpoint_that_is_something_else(page: str) -> None:
    with serve(Step("error", status=200, error=page, content_type="text/html")) as server:
        reply = one(server)
    assert reply["end"] == "fatal" and "does not speak the chat completions protocol" in reply["message"]
    assert page[:12] in reply["message"] and len(server.seen) == 1


def test_200_megabytes_are_not_swallowed() -> None:
    with serve(Step("huge", size=200 << 20)) as server:
        out = ask(server, stream=False)
    (reply,) = out["replies"]
    assert reply["end"] == "failed" and "sent more than" in reply["message"] and len(server.seen) == 1
    assert reply["charged"]["tokens"] == out["sent"][0]["reserved"]["tokens"]


@pytest.mark.parametrize("where", ["content", "reasoning_content"])
def test_a_stream_that_goes_on_past_max_tokens_is_cut(where: str) -> None:
    with serve(Step("runaway", text="x" * 500, field_name=where)) as server:
        out = ask(server, n=2, in_flight=1, tokens=6000)
        time.sleep(0.1)  # it learns of it by its next write
    first, second = out["replies"]
    assert first["end"] == "failed" and len(server.seen) == 1 and out["attempts"] == []
    assert re.search("ignores max_tokens: it was cut at some 5[0-9]{3} tokens, where 1000 were asked for", first["message"])
    # It is spent with what was written beyond the reservation, so nothing more fits into the budget.
    assert first["charged"]["tokens"] >= 5000 > out["sent"][0]["reserved"]["tokens"]
    assert second["end"] == "no_budget" and second["charged"]["calls"] == 0
    assert server.streamed < 40 << 20  # what fits into sockets, and no stream without end


def test_a_server_that_counts_past_max_tokens_while_it_streams_is_cut() -> None:
    usage = {"prompt_tokens": 9, "completion_tokens": 1100}
    with serve(Step("runaway", text="x", usage=usage)) as server:
        reply = one(server)
    assert reply["end"] == "failed" and "cut at some 1100 tokens, where 1000 were asked for" in reply["message"]
    assert reply["charged"]["tokens"] > 1100 and len(server.seen) == 1


@pytest.mark.parametrize("usage", [None, {"prompt_tokens": 9, "completion_tokens": 1200}])
@pytest.mark.parametrize("stream", [True, False])
def test_what_is_whole_is_not_cut(stream: bool, usage: Body | None) -> None:
    """15 bytes a token are more than any text has; and what came to its end is paid for, whatever it was counted at."""
    text = "x" * 15000
    with serve(Step(text=text, usage=usage)) as server:
        reply = one(server, stream=stream)
    assert (reply["end"], reply["answer"]) == ("answered", text)


@pytest.mark.parametrize(
    ("step", "limit", "words"),
    [
        (Step("silent"), {"first_byte_ms": 300}, "no byte of an answer came in time"),
        (Step("stall", text=GOOD.text), {"idle_ms": 300}, "stood still"),
        (Step("slow", text=GOOD.text), {"total_ms": 700}, "longer than its limit"),
        (Step("slow", text=GOOD.text), {"deadline_ms": 700}, "longer than its limit"),
    ],
    ids=["first byte", "between bytes", "in all", "the budget's time"],
)
@pytest.mark.alone
def test_deadlines(step: Step, limit: dict[str, int], words: str) -> None:
    with serve(step) as server:
        start = time.monotonic()
        reply = one(server, retries=0, **limit)
        assert time.monotonic() - start < 3
    assert reply["end"] in ("failed", "stopped") and words in reply["message"], reply


def test_nobody_there() -> None:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    reply = ask(None, endpoint=f"http://127.0.0.1:{port}/v1")["replies"][0]
    assert reply["end"] == "fatal" and f"http://127.0.0.1:{port} cannot be reached" in reply["message"]
    assert reply["charged"] == {"calls": 0, "tokens": 0, "nano_usd": 0}


def test_whether_an_endpoint_is_there_is_seen_without_asking(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OPENAI_API_KEY")  # none is sent, and none is needed
    with serve(GOOD) as server:
        _libkgen.llm_reach(options(server))  # it knows no GET, and answers 404
        assert server.seen == []
        there = server.url
    for url, said in ((there, "cannot be reached"), ("http://nowhere.invalid/v1", "cannot be reached")):
        with pytest.raises(EnvironmentLacks, match=f"{url.rpartition('/')[0]} {said}"):
            _libkgen.llm_reach(options(endpoint=url))


@pytest.mark.alone
def test_a_server_that_is_busy_is_there() -> None:
    """It takes the connection and says nothing, as one that answers somebody else."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        s.listen(4)
        start = time.monotonic()
        _libkgen.llm_reach(options(endpoint=f"http://127.0.0.1:{s.getsockname()[1]}/v1"))
        assert time.monotonic() - start < 4


@pytest.mark.alone
def test_a_connection_that_does_not_come_about() -> None:
    """A host that drops what arrives: a listener whose queue is full."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        s.listen(0)
        waiting = [socket.socket() for _ in range(4)]
        for one in waiting:
            one.setblocking(False)
            one.connect_ex(s.getsockname())
        start = time.monotonic()
        reply = ask(None, endpoint=f"http://127.0.0.1:{s.getsockname()[1]}/v1", connect_ms=300, retries=0)["replies"][0]
        took = time.monotonic() - start
        with pytest.raises(EnvironmentLacks, match="cannot be reached"):
            _libkgen.llm_reach(options(endpoint=f"http://127.0.0.1:{s.getsockname()[1]}/v1", connect_ms=300))
        for one in waiting:
            one.close()
    assert reply["end"] == "fatal" and re.search("timed? ?out", reply["message"], re.IGNORECASE), reply
    assert 0.25 < took < 2 and reply["charged"]["calls"] == 0


@pytest.mark.skipif(not shutil.which("openssl"), reason="no openssl here to make a certificate with")
def test_tls(tmp_path: Path) -> None:
    both, cert = self_signed(tmp_path)
    with serve(GOOD, certificate=both) as server:
        reply = one(server)
        assert reply["end"] == "fatal" and "--ca" in reply["message"] and server.seen == []
        with pytest.raises(BadInput, match="--ca FILE"):
            _libkgen.llm_reach(options(server))
        _libkgen.llm_reach(options(server, ca=str(cert)))
        assert one(server, ca=str(cert))["answer"] == GOOD.text
        plain = ask(None, endpoint=server.url.replace("https", "http"), retries=0)["replies"][0]
        assert plain["end"] != "answered"


# --- what servers differ in ---


def picky(*refusals: tuple[Any, int, str]) -> Any:
    """A server that refuses what a test of the body finds, with a message."""

    def step(body: Body) -> Step:
        for wrong, status, message in refusals:
            if wrong(body):
                return Step("error", status=status, error={"error": {"message": message}})
        return Step(text="at last", usage={"prompt_tokens": 1, "completion_tokens": 1})

    return step


OPENAI_TOKENS = (
    lambda b: "max_tokens" in b, 400,
    "Unsupported parameter: 'max_tokens' is not supported with this model. Use 'max_completion_tokens' instead.",
)  # fmt: skip
OPENAI_TEMPERATURE = (
    lambda b: "temperature" in b, 400,
    "Unsupported value: 'temperature' does not support 0.2 with this model. Only the default (1) value is supported.",
)  # fmt: skip
NO_SYSTEM = (lambda b: b["messages"][0]["role"] == "system", 400, "System role not supported")
NO_EFFORT = (lambda b: "reasoning_effort" in b, 400, "Unrecognized request argument supplied: reasoning_effort")
NO_USAGE = (lambda b: "stream_options" in b, 422, "stream_options: Extra inputs are not permitted")
NO_STREAM = (lambda b: b["stream"], 400, "this model cannot stream")
SMALL = (lambda b: b.get("max_tokens", 0) > 512, 400, "Invalid max_tokens value, the valid range of max_tokens is [1, 512]")

VLLM = (
    lambda b: b.get("max_tokens", 0) > 500, 400,
    "This model's maximum context length is 1000 tokens. However, you requested 1400 tokens (400 in the messages, 1000 in "
    "the completion). Please reduce the length of the messages or completion.",
)  # fmt: skip


@pytest.mark.parametrize(
    "refusals",
    [
        (VLLM,), (OPENAI_TOKENS,), (OPENAI_TEMPERATURE,), (NO_SYSTEM,), (NO_EFFORT,), (NO_USAGE,), (NO_STREAM,), (SMALL,),
        (OPENAI_TOKENS, OPENAI_TEMPERATURE, NO_SYSTEM, NO_EFFORT), (NO_USAGE, SMALL, NO_STREAM, NO_SYSTEM),
    ],
)  # fmt: skip
def test_what_a_server_refuses_by_name_is_left_out(refusals: tuple[Any, ...]) -> None:
    with serve(picky(*refusals)) as server:
        out = ask(server, n=5, in_flight=3, temperature=0.2, effort="high", retries=0)
    assert [(r["end"], r["answer"]) for r in out["replies"]] == [("answered", "at last")] * 5, out["replies"]
    last = server.seen[-1].body
    assert not any(wrong(last) for wrong, _, _ in refusals)
    # What was learnt from one is known to the rest: at most those in flight were refused, once a thing.
    assert len(server.seen) <= 5 + 3 * (len(refusals) + (VLLM in refusals))
    if NO_SYSTEM in refusals:
        assert last["messages"] == [{"role": "user", "content": "be brief\n\nwrite a kernel"}]
    else:
        assert last["messages"][0] == {"role": "system", "content": "be brief"}
    if OPENAI_TOKENS in refusals:
        assert last["max_completion_tokens"] == 1000
    if VLLM in refusals:
        assert last["max_tokens"] == (1000 - 400 - 64) // 2  # what it said is left was too much, so half of it
    if SMALL in refusals:
        assert last["max_tokens"] == 512
    if OPENAI_TEMPERATURE not in refusals:
        assert last["temperature"] == 0.2


def test_a_refusal_of_something_else_is_told() -> None:
    too_long = {"error": {"message": "This prompt is 900000 pieces long, and 131072 fit"}}
    with serve(Step("error", status=400, error=too_long), GOOD) as server:
        out = ask(server, n=2, in_flight=1)
    assert [r["end"] for r in out["replies"]] == ["failed", "answered"]
    assert "900000 pieces" in out["replies"][0]["message"]


# --- the budget ---


@pytest.mark.alone
def test_several_in_flight_and_never_more() -> None:
    with serve(Step(text="x", delay=0.15)) as server:
        start = time.monotonic()
        out = ask(server, n=8, in_flight=4)
        took = time.monotonic() - start
    assert [r["end"] for r in out["replies"]] == ["answered"] * 8
    assert took < 8 * 0.15 and 2 <= max_at_once(server.seen, 0.15) <= 4


def max_at_once(seen: list[Seen], length: float) -> int:
    return max(sum(1 for s in seen if t.at <= s.at < t.at + length * 0.9) for t in seen)


def test_calls_are_counted_before_they_are_sent() -> None:
    with serve(Step("error", status=500), Step(text="x", delay=0.05)) as server:
        out = ask(server, n=10, in_flight=4, calls=5)
    assert len(server.seen) == 5 == out["spent"]["calls"]
    ends = [r["end"] for r in out["replies"]]
    assert set(ends) <= {"answered", "no_budget"} and ends.count("no_budget") >= 6
    refused = next(r for r in out["replies"] if r["end"] == "no_budget")
    assert "the budget has no room for another request" in refused["message"] and "5 of 5 calls" in refused["message"]


@pytest.mark.parametrize("no_usage", [False, True])
def test_tokens_never_pass_the_limit(no_usage: bool) -> None:
    # The dearest answers there can be: every byte of the prompt a token, and all that may be written.
    user = "x" * 500
    worst = {"prompt_tokens": 500 + 8 + 128, "completion_tokens": 1000}
    with serve(Step(text="y" * 50, usage=worst, no_usage=no_usage)) as server:
        out = ask(server, n=20, user=user, in_flight=8, tokens=10_000)
    per = 500 + 8 + 128 + 1000
    assert out["spent"]["tokens"] == per * (10_000 // per) <= 10_000
    assert len(server.seen) == 10_000 // per
    assert {r["end"] for r in out["replies"]} == {"answered", "no_budget"}


def test_what_was_reserved_and_not_used_is_given_back() -> None:
    with serve(Step(text="y", usage={"prompt_tokens": 10, "completion_tokens": 10})) as server:
        out = ask(server, n=20, in_flight=8, tokens=3000)
    assert out["spent"]["tokens"] == 400 and [r["end"] for r in out["replies"]] == ["answered"] * 20


def test_money(tmp_path: Path) -> None:
    mine = tmp_path / "mine.json"
    table = {"format": 1, "models": [{"model": "test-*", "input": 2.0, "cached": 0.5, "output": 8.0}]}
    mine.write_text(json.dumps(table))
    usage = {"prompt_tokens": 100, "completion_tokens": 50, "prompt_tokens_details": {"cached_tokens": 60}}
    with serve(Step(text="y", usage=usage)) as server:
        out = ask(server, n=4, in_flight=2, usd=0.02, prices=[PRICES, str(mine)])
        nano = 40 * 2000 + 60 * 500 + 50 * 8000
        assert out["spent"]["nano_usd"] == 4 * nano
        poor = ask(server, n=1, usd=0.008, prices=[PRICES, str(mine)])  # 1000 tokens alone may cost 0.008
    assert poor["replies"][0]["end"] == "no_budget" and len(server.seen) == 4


def test_the_price_table() -> None:
    def price(model: str) -> dict[str, int]:
        return _libkgen.llm_check({"model": model, "endpoint": "https://x.test/v1", "prices": [PRICES]})["price"]

    dated = json.loads(Path(PRICES).read_text())["as_of"]
    assert re.fullmatch(r"20\d\d-\d\d", dated)
    assert price("gpt-5-mini-2025-08-07") == {"input": 250, "cached": 25, "output": 2000, "as_of": dated}
    assert price("gpt-5")["input"] == 1250 and price("deepseek-reasoner")["cached"] == 28
    assert price("nobody-knows-it") is None
    whom = {"model": "gpt-5-mini", "endpoint": "https://x.test/v1", "prices": [PRICES]}
    said = asking.told(asking.Asking("llm", llm=whom), ["softmax"])
    assert f"counted at 0.25 USD in and 2 USD out for a million tokens as of {dated}: check that, --prices FILE" in said
    assert "counted at" not in asking.told(asking.Asking("llm", llm={**whom, "model": "nobody-knows-it"}), ["softmax"])
    assert "prompts/, where README.md tells an agent how to answer: of softmax" in asking.told(asking.Asking("files"), ["softmax"])


# --- bad input ---


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"model": None}, "no model: name one with --llm NAME"),
        ({"endpoint": "localhost:8000"}, "endpoint localhost:8000: give a URL such as"),
        ({"endpoint": "ftp://x/v1"}, "give a URL such as"),
        ({"endpoint": "https://me:secret@host/v1"}, "put secrets into the environment"),
        ({"endpoint": "https://host/v1 /x"}, "white space"),
        ({"headers": ["no colon"]}, 'give "Name: value"'),
        ({"headers": ["A: b\r\nC: d"]}, "control character"),
        ({"headers": ["A: env:NO_SUCH_VARIABLE"]}, "no variable NO_SUCH_VARIABLE"),
        ({"headers": ["Api-Key: secret"]}, '--header Api-Key: put its value into the environment and give "Api-Key: env:VARIABLE"'),
        ({"key_env": "NO_SUCH_VARIABLE"}, "--key-env NO_SUCH_VARIABLE: the environment has no such variable"),
        ({"usd": 1.0, "endpoint": "https://far.test/v1"}, "needs the price of test-model"),
        ({"in_flight": 0}, "in_flight is 0"),
        ({"prices": ["/nowhere.json"]}, "/nowhere.json"),
        ({"what": 1}, "what"),
    ],
)
def test_bad_options(given: dict[str, Any], message: str) -> None:
    with pytest.raises(KgenError, match=".") as e:
        _libkgen.llm_ask(options(**{"endpoint": "http://localhost:1/v1", **given}), [])
    assert message in str(e.value) and "secret" not in str(e.value).replace("put secrets", "")


def test_no_endpoint_at_all(monkeypatch: pytest.MonkeyPatch) -> None:
    assert _libkgen.llm_check({"model": "gpt-5"})["url"] == "https://api.openai.com/v1/chat/completions"
    monkeypatch.delenv("OPENAI_API_KEY")
    with pytest.raises(BadInput, match="no endpoint: give --endpoint URL"):
        _libkgen.llm_check({"model": "gpt-5"})
    monkeypatch.setenv("OPENAI_BASE_URL", "http://localhost:11434")
    assert _libkgen.llm_check({"model": "qwen3"})["url"] == "http://localhost:11434/v1/chat/completions"


def test_headers_of_the_user_and_no_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OPENAI_API_KEY")
    monkeypatch.setenv("MY_SECRET", "hush")
    with serve(GOOD) as server:
        one(server, headers=["X-Title: kgen", "X-Secret: env:MY_SECRET"])
    (seen,) = server.seen
    assert seen.headers["X-Title"] == "kgen" and seen.headers["X-Secret"] == "hush"
    assert "Authorization" not in seen.headers and "Expect" not in seen.headers


def test_a_proxy_is_gone_through() -> None:
    with serve(GOOD) as proxy:
        reply = ask(None, endpoint="http://model.test/v1", proxy=proxy.url.rpartition("/")[0])["replies"][0]
    assert reply["answer"] == GOOD.text
    assert proxy.seen[0].path == "http://model.test/v1/chat/completions"


def test_the_key_is_taken_out_of_what_a_model_says() -> None:
    with serve(Step(text=f"your key is {KEY}, {KEY}", reasoning=KEY)) as server:
        reply = one(server)
    assert reply["answer"] == "your key is [key], [key]" and reply["reasoning"] == "[key]"


@pytest.mark.parametrize(("value", "told"), [("hushhush-1234", "hushhush-1234"), ("Bearer hushhush-1234", "hushhush-1234")])
def test_a_secret_header_is_taken_out_as_well(monkeypatch: pytest.MonkeyPatch, value: str, told: str) -> None:
    """A server that repeats what it refuses: nothing of it reaches a message, which the journal and the terminal have."""
    monkeypatch.delenv("OPENAI_API_KEY")
    monkeypatch.setenv("MY_SECRET", value)
    with serve(Step("error", status=401, error={"error": {"message": f"bad key {told}"}})) as server:
        out = ask(server, headers=["api-key: env:MY_SECRET"])
    (reply,) = out["replies"]
    assert reply["end"] == "fatal" and "refused the key (HTTP 401): bad key [key]" in reply["message"], reply
    assert "hushhush" not in json.dumps(out)
    assert server.seen[0].headers["api-key"] == value


@pytest.mark.alone
def test_a_stop_ends_the_wait() -> None:
    with serve(Step("silent")) as server:
        threading.Timer(0.3, _libkgen.lib().kgen_stop, [1]).start()
        start = time.monotonic()
        try:
            with pytest.raises(_libkgen.Interrupted):
                ask(server)
        finally:
            _libkgen.lib().kgen_stop(0)
        assert time.monotonic() - start < 2


def test_the_servers_own_count() -> None:
    assert tokens("caf\u00e9") == 2
