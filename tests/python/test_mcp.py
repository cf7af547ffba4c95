"""`kgen mcp` with the official client: an agent reads what is asked, submits, is told what was wrong, and finishes; within the
budget, as the one writer of its Run."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import sys
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
from kgen_command import Server
from test_loop import MODEL, block, journal, kernel, nothing_twice

NEEDS = pytest.mark.skipif(
    __import__("importlib.util").util.find_spec("mcp") is None, reason="needs the package mcp (pip install mcp)"
)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    path = tmp_path / "model.py"
    path.write_text(MODEL)
    return path


class Agent:
    """A client with one server."""

    def __init__(self, session: Any):
        self.session = session

    async def call(self, tool: str, **args: Any) -> Any:
        """The tool's text, or the JSON in it. AssertionError with what the server said when it refused."""
        found = await self.session.call_tool(tool, args)
        text = found.content[0].text
        assert not getattr(found, "is_error", getattr(found, "isError", False)), text
        return text if tool in ("task", "prompt", "sass") else json.loads(text)

    async def refused(self, tool: str, **args: Any) -> str:
        found = await self.session.call_tool(tool, args)
        assert getattr(found, "is_error", getattr(found, "isError", False)), found
        return str(found.content[0].text)


@contextlib.asynccontextmanager
async def server(*words: object) -> AsyncIterator[Agent]:
    from mcp import ClientSession, StdioServerParameters
    from mcp.client.stdio import stdio_client

    env = {**os.environ, "CUDA_VISIBLE_DEVICES": ""}
    how = StdioServerParameters(command=sys.executable, args=["-m", "kgen", "mcp", *map(str, words)], env=env)
    async with stdio_client(how) as (read, write), ClientSession(read, write) as session:
        await session.initialize()
        yield Agent(session)


def talk(work: Callable[[], Any]) -> None:
    async def within() -> None:
        await asyncio.wait_for(work(), 240)

    asyncio.run(within())


@NEEDS
@pytest.mark.slow
def test_an_agent_over_stdio(kgen_server: Server, model: Path, tmp_path: Path) -> None:
    run, registry = tmp_path / "run", tmp_path / "registry"
    words = (model, "--run", run, "--registry", registry, "--min-speedup", "0.0001", "--budget", "2m,5calls", "--note", "mind it")

    async def first() -> None:
        async with server(*words) as agent:
            tools = {t.name for t in (await agent.session.list_tools()).tools}
            assert tools == {"task", "prompts", "prompt", "submit", "best", "history", "sass", "finish"}
            asked = await agent.call("prompts")
            assert asked["ops"] == ["softmax"] and len(asked["open"]) == 4 and asked["budget"]["answers_left"] == 5
            text = await agent.call("prompt")
            for part in ("You write kernels", "mind it", "roofline: a call takes", "GB/s", "## Now"):
                assert part in text, part
            assert '"op": "softmax"' in await agent.call("task") or '"op":"softmax"' in await agent.call("task")
            assert (await agent.call("best"))["best"] is None

            ident = asked["open"][0]["id"]
            wrong = await agent.call("submit", answer=block(kernel(result="x[i] * 0.5f")), prompt=ident)
            (one,) = wrong["candidates"]
            assert one["verdict"] == "wrong_values" and re.search(r"\[0, 0\] expected \S+ got ", one["message"])
            assert wrong["budget"]["answers_left"] == 4 and "wrong_values" in wrong["told"]
            # The next prompt of that line has the verdict.
            last = await agent.call("prompt", id=wrong["open"][-1])
            assert "## Its verdict" in last and "`wrong_values`" in last and "x[i] * 0.5f" in last

            # One Run has one writer.
            second = kgen_server.run("mcp", *words)
            assert second.code == 2 and "is in use by another kgen process" in second.message, second.err

            useless = await agent.call("submit", answer="I would rather not.", prompt=wrong["open"][-1])
            assert useless["candidates"] == [] and "/* kgen" in useless["told"], useless
            assert "was not asked" in await agent.refused("submit", answer="x", prompt="softmax-9999")
            assert "this Run is about softmax" in await agent.refused("best", op="conv2d")

    async def again() -> None:
        async with server("--run", run, "--registry", registry) as agent:
            asked = await agent.call("prompts")
            assert asked["budget"]["answers_left"] == 3
            right = await agent.call("submit", answer=block(kernel()))
            assert [c["verdict"] for c in right["candidates"]] == ["pass"] and right["candidates"][0]["microseconds"] > 0
            best = await agent.call("best")
            assert best["best"] == right["candidates"][0]["name"] and "expf" in best["source"]
            assert best["roofline_microseconds"][0] > 0
            listing = await agent.call("sass", id=best["id"])
            assert "kg_entry_0: " in listing and "loop of sm:" in listing or "no disassembler" in listing
            assert "six digits" in await agent.refused("sass", id="abcde")
            assert "there is none" in await agent.refused("sass", id="0123456789ab")
            for note in "ab":
                await agent.call("submit", answer=block(kernel(note=note)), prompt=asked["open"][0]["id"])
            assert "budget of answers is spent" in await agent.refused("submit", answer=block(kernel(note="c")))
            told = [h["verdict"] for h in await agent.call("history")]
            assert told == ["wrong_values", "pass", "pass", "pass"]
            result = await agent.call("finish")
            (row,) = [r for r in result["rows"] if r["op"] == "softmax"]
            assert row["state"] == "promoted", row
            assert "is finished" in await agent.refused("submit", answer="x")

    talk(first)
    done = kgen_server.run("propose", run)
    assert done.code == 2 and "serve it with `kgen mcp --run" in done.message, done.err
    talk(again)
    kinds = nothing_twice(run)
    assert kinds["answer"] == 5
    spent = [e["spent_s"] for e in journal(run) if e["kind"] == "answer"]
    assert spent == sorted(spent) and spent[0] > 0
    record = json.loads(next(registry.glob("softmax/*/*/record.json")).read_text())
    assert record["proposer"]["name"] == "mcp" and record["proposer"]["strategy"] == "refine"
    page = kgen_server.run("report", run)
    assert page.code == 0


@NEEDS
def test_what_cannot_be_served(kgen_server: Server, model: Path, tmp_path: Path) -> None:
    done = kgen_server.run("mcp")
    assert done.code == 2 and "name a MODEL, or with --run DIR" in done.message
    done = kgen_server.run("mcp", "--run", tmp_path)
    assert done.code == 2 and "is no Run" in done.message
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "run.json").write_text("{}")
    done = kgen_server.run("mcp", "--run", tmp_path / "other")
    assert done.code == 2 and "was not begun by `kgen mcp`: name a MODEL" in done.message, done.err
    done = kgen_server.run("mcp", model, "--run", tmp_path / "run", "--budget", "2usd")
    assert done.code == 2 and "give a time, calls (answers) or tokens" in done.message
    done = kgen_server.run("mcp", model, "--run", tmp_path / "run", "--budget", "0calls")
    assert done.code == 2 and "above zero" in done.message
    assert not (tmp_path / "run").exists()


def test_without_the_package(kgen_server: Server, model: Path, tmp_path: Path) -> None:
    """A folder in front of the installed packages, whose mcp cannot be imported."""
    (tmp_path / "front" / "mcp").mkdir(parents=True)
    (tmp_path / "front" / "mcp" / "__init__.py").write_text("raise ModuleNotFoundError(\"No module named 'mcp'\")\n")
    done = kgen_server.run("mcp", model, limits=[f"import sys; sys.path.insert(0, {str(tmp_path / 'front')!r})"])
    assert done.code == 3 and "pip install 'kgen[mcp]'" in done.message, done.err
