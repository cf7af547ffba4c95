"""`kgen mcp`: an agent as the model of a Run, over the Model Context Protocol on stdin and stdout. It reads what is asked,
submits Candidates and gets their verdicts, within the Run's budget.

The protocol is the official package's (`mcp`, 1 or 2), which is optional. Nothing but the protocol goes to stdout.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

from . import _libkgen, asking, capture, mcp_session, registries
from .errors import BadInput, EnvironmentLacks, KgenError
from .interrupts import stoppable
from .mcp_session import Session
from .runs import default_dir
from .stages import Staged
from .ui import Progress

INSTRUCTIONS = """kgen searches for faster kernels of one PyTorch model, and you are the model that writes them. Begin with \
`prompt`, which is whole: what is to be computed, the plan format with an example, this machine, what came of earlier attempts. \
Answer it with `submit`: the text that a chat model would send, with each Candidate in a fenced block that opens with its plan \
comment. The verdict comes back at once, and the next prompt builds on it. Go on until the budget is spent or nothing is asked \
any more; then call `finish`, which tunes the best, holds it against torch and promotes it. Nothing else of kgen needs to be \
read."""


def package() -> tuple[Any, Any]:
    """The official package's server and its error for a tool. EnvironmentLacks where it is not installed."""
    try:
        try:
            from mcp.server.mcpserver import MCPServer
            from mcp.server.mcpserver.exceptions import ToolError
        except ModuleNotFoundError:  # version 1
            from mcp.server.fastmcp import FastMCP as MCPServer
            from mcp.server.fastmcp.exceptions import ToolError
    except ImportError as e:
        raise EnvironmentLacks(f"kgen mcp needs the package mcp ({e}): pip install 'kgen[mcp]', or pip install mcp") from e
    return MCPServer, ToolError


@contextlib.contextmanager
def serve(session: Session) -> Iterator[Any]:
    """A server whose tools are the session's calls, made one at a time on a thread of their own; at the end what is judged
    is let go, and the thread ends, on which the judge's workers hang."""
    one = ThreadPoolExecutor(1, "kgen-mcp")
    try:
        yield _server(session, one)
    finally:
        _libkgen.stop(True)
        one.submit(session.rest).result()
        one.shutdown()
        _libkgen.stop(False)


def _server(session: Session, one: ThreadPoolExecutor) -> Any:
    server_type, tool_error = package()
    server = server_type("kgen", instructions=INSTRUCTIONS)
    ready = one.submit(session.prepare)

    async def call(work: Callable[..., Any], *args: Any) -> str:
        def do() -> Any:
            ready.result()
            return work(*args)

        try:
            found = await asyncio.get_running_loop().run_in_executor(one, do)
        except KgenError as e:
            raise tool_error(str(e)) from e
        except KeyboardInterrupt:
            raise tool_error("kgen was stopped; what was judged is in the Run") from None
        return found if isinstance(found, str) else json.dumps(found, ensure_ascii=False, indent=1)

    @server.tool()
    async def task(op: str | None = None) -> str:
        """The Task as it is in the Run: the Op's contract (op.json), its reference or graph, its Cases. `prompt` has all that
        is needed of it in fewer words. op: one of those that `prompts` lists; default: the first."""
        return await call(session.task, op)

    @server.tool()
    async def prompts() -> str:
        """Which prompts are open, and what is left of the Run's budget."""
        return await call(session.prompts)

    @server.tool()
    async def prompt(id: str | None = None) -> str:
        """A whole prompt, to be answered with `submit`. id: of an open or an earlier one; default: the oldest open one."""
        return await call(session.prompt, id)

    @server.tool()
    async def submit(answer: str, prompt: str | None = None) -> str:
        """Judges an answer to a prompt: text with Candidates (or edits, or a list of ideas, as the prompt says) in fenced
        blocks. Comes back with the verdict on each Candidate and the prompts that are open now. prompt: the id that is
        answered; default: the oldest open one."""
        return await call(session.submit, answer, prompt)

    @server.tool()
    async def best(op: str | None = None) -> str:
        """The fastest Candidate that passes, with its times, the roofline's, and its source."""
        return await call(session.best, op)

    @server.tool()
    async def history(op: str | None = None) -> str:
        """All Candidates so far, with their verdicts and times."""
        return await call(session.history, op)

    @server.tool()
    async def sass(id: str, whole: bool = False) -> str:
        """The machine code that a Candidate was compiled to (SASS on a GPU): its innermost loops, or all of it. Costs no
        answer. id: at least six digits of its id."""
        return await call(session.sass, id, whole)

    @server.tool()
    async def finish() -> str:
        """Ends the Run: tunes the numbers of the best Candidates, holds the winner against torch in a fresh process and
        promotes it if it is faster. Takes a minute or two; nothing can be submitted afterwards."""
        return await call(session.finish)

    return server



def _staged(args: argparse.Namespace, progress: Progress) -> Staged:
    """The Run that is there, or a new one of the model that is named."""
    from .tune import read_options

    if args.model is None:
        if args.run is None:
            raise BadInput("kgen mcp: name a MODEL, or with --run DIR a Run that `kgen mcp` began")
        there = Path(args.run)
        if (there / "run.json").is_file() and not (there / "stages.json").is_file():
            raise BadInput(f"{there} was not begun by `kgen mcp`: name a MODEL for a new Run, or another --run")
        return Staged(there)
    options = read_options(args)
    model = capture.load(args.model, module=args.module, inputs=args.inputs, argv=tuple(args.script_args))
    return mcp_session.begin(model, replace(options, run_dir=options.run_dir or default_dir(model.title)), progress)


def run_mcp(args: argparse.Namespace) -> int:
    """`kgen mcp`."""
    package()
    progress = Progress()
    with stoppable() as stop:
        staged = _staged(args, progress)
        progress.note(f"Run {staged.path}")
        progress.always(asking.told(staged.asking, [j.op for j in staged.jobs]))
        registry = Path(args.registry) if args.registry else registries.promote_to()
        with mcp_session.opened(staged, progress, registry, not args.no_promote, args.device, bool(args.unsafe_cpu)) as session:
            session.stop = stop
            with serve(session) as server:
                server.run()
    return 0
