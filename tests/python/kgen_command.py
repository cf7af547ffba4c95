"""`python -m kgen ...` as a shell runs it: a process with its own arguments, environment, folder, streams, signals and exit
code.

Importing torch takes seconds, so a server process imports it once, and nothing of kgen, and forks for each command;
the fork runs the package as `python -m kgen` does, or code as `python -c` does. The server adopts what a command leaves behind, so that a test
can see that nothing is.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

_SERVER = r"""
import ctypes, json, os, signal, sys
import torch, torch._dynamo, torch.export, torch.utils.flop_counter, torch.fx.experimental.proxy_tensor  # noqa: F401
ctypes.CDLL(None).prctl(36, 1)  # PR_SET_CHILD_SUBREAPER


def start(r):
    pid = os.fork()
    if pid:
        return pid
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.setpgid(0, 0)
    for number, path in ((1, r["out"]), (2, r["err"])):
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        os.dup2(fd, number)
        os.close(fd)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.environ.clear()
    os.environ.update(r["env"])
    os.chdir(r["cwd"])
    sys.path[:0] = [p for p in os.environ.get("PYTHONPATH", "").split(":") if p and p not in sys.path]
    sys.stdin = open(0)
    sys.stdout, sys.stderr = open(1, "w"), open(2, "w", buffering=1)
    sys.argv = ["-m" if r["code"] is None else "-c", *r["argv"]]
    sys.orig_argv = [sys.executable, "-m", "kgen", *r["argv"]]
    for code in r["limits"]:
        exec(code)
    return 0


link = os.fdopen(int(sys.argv[1]), "r")
reply = os.fdopen(int(sys.argv[2]), "w", buffering=1)
for line in link:
    request = json.loads(line)
    if "argv" in request:
        pid = start(request)
        if not pid:
            break
        reply.write(json.dumps(pid) + "\n")
    elif "wait" in request:
        _, status = os.waitpid(request["wait"], 0)
        reply.write(json.dumps(os.waitstatus_to_exitcode(status)) + "\n")
    else:
        while True:
            try:
                if os.waitpid(-1, os.WNOHANG)[0] == 0:
                    break
            except ChildProcessError:
                break
        own = str(os.getpid())
        left = []
        for pid in filter(str.isdigit, os.listdir("/proc")):
            try:
                with open(f"/proc/{pid}/stat") as f:
                    name, rest = f.read().rsplit(")", 1)
            except OSError:
                continue
            if rest.split()[1] == own:
                left.append(name.split("(", 1)[1])
        reply.write(json.dumps(left) + "\n")
else:
    sys.exit(0)
link.close()
reply.close()
import runpy, traceback, types
code = 0
try:
    if request["code"] is None:
        runpy.run_module("kgen", run_name="__main__", alter_sys=True)
    else:
        sys.modules["__main__"] = types.ModuleType("__main__")
        exec(compile(request["code"], "<string>", "exec"), sys.modules["__main__"].__dict__)
except SystemExit as e:
    code = e.code if isinstance(e.code, int) else int(e.code is not None)
except BaseException:
    traceback.print_exc()
    code = 1
sys.stdout.flush()
os._exit(code)  # a torch that is torn down takes a while
"""


@dataclass(frozen=True)
class Done:
    """How a command ended."""

    code: int
    out: str
    err: str

    @property
    def message(self) -> str:
        """The last thing that was said."""
        return self.err.strip().splitlines()[-1] if self.err.strip() else ""

    def records(self) -> list[dict[str, Any]]:
        """stdout as JSON lines."""
        return [json.loads(line) for line in self.out.splitlines()]


@dataclass
class Running:
    """A command that was started."""

    server: Server
    pid: int
    out: Path
    err: Path

    def interrupt(self, number: int = signal.SIGINT) -> None:
        """As a terminal does it: to the whole process group."""
        os.killpg(self.pid, number)

    def wait_for(self, text: str, seconds: float = 120.0) -> None:
        """Until stderr has the text."""
        end = time.monotonic() + seconds
        while text not in self.err.read_text():
            assert time.monotonic() < end, f"{text!r} was not said within {seconds} s:\n{self.err.read_text()}"
            assert os.path.exists(f"/proc/{self.pid}/status"), self.err.read_text()
            with open(f"/proc/{self.pid}/stat") as f:
                assert f.read().rsplit(")", 1)[1].split()[0] != "Z", f"it ended:\n{self.err.read_text()}"
            time.sleep(0.01)

    def wait(self) -> Done:
        code = self.server.ask({"wait": self.pid})
        return Done(code, self.out.read_text(), self.err.read_text())


class Server:
    """The process that forks commands."""

    def __init__(self, folder: Path):
        self.folder, self.n = folder, 0
        folder.mkdir(parents=True, exist_ok=True)
        in_r, in_w = os.pipe()
        out_r, out_w = os.pipe()
        self.process = subprocess.Popen(
            [sys.executable, "-c", _SERVER, str(in_r), str(out_w)], pass_fds=(in_r, out_w), stdin=subprocess.DEVNULL
        )
        os.close(in_r)
        os.close(out_w)
        self.link, self.reply = os.fdopen(in_w, "w", buffering=1), os.fdopen(out_r)

    def ask(self, request: dict[str, Any]) -> Any:
        self.link.write(json.dumps(request) + "\n")
        line = self.reply.readline()
        assert line, "the server of commands ended"
        return json.loads(line)

    def start(
        self, *argv: object, env: dict[str, str | None] | None = None, cwd: Path | None = None, limits: Sequence[str] = (),
        code: str | None = None,
    ) -> Running:  # fmt: skip
        """env: changes to this process's; None takes one away. limits: code that runs before the command. code: runs in its
        place; torch is imported there, kgen is not. No GPU is seen unless env names CUDA_VISIBLE_DEVICES: what a command
        does by itself must not depend on the machine."""
        self.n += 1
        out, err = self.folder / f"{self.n}.out", self.folder / f"{self.n}.err"
        changed = {**os.environ, "CUDA_VISIBLE_DEVICES": "", **(env or {})}
        request = {
            "argv": [str(a) for a in argv], "env": {k: v for k, v in changed.items() if v is not None},
            "cwd": str(cwd or self.folder), "out": str(out), "err": str(err), "limits": list(limits), "code": code,
        }  # fmt: skip
        out.touch()
        err.touch()
        return Running(self, self.ask(request), out, err)

    def run(self, *argv: object, **how: Any) -> Done:
        return self.start(*argv, **how).wait()

    def left_over(self, seconds: float = 5.0) -> list[str]:
        """Names of processes that ended commands have left behind; killed ones may take a moment to go."""
        end = time.monotonic() + seconds
        while left := self.ask({"left": True}):
            if time.monotonic() > end:
                return left
            time.sleep(0.05)
        return []

    def close(self) -> None:
        self.link.close()
        self.reply.close()
        self.process.wait()


@contextmanager
def serve(folder: Path) -> Iterator[Server]:
    server = Server(folder)
    try:
        yield server
    finally:
        server.close()


def read_only(folder: Path) -> list[str]:
    """Words in front of a command for which the folder is read-only, also to root. Skips where there is no way."""
    if os.geteuid() != 0:
        for path in [folder, *folder.rglob("*")]:
            path.chmod(0o555 if path.is_dir() else 0o444)
        return []
    script = 'mount --bind "$0" "$0" && mount -o remount,ro,bind "$0" && exec "$@"'
    front = ["unshare", "--mount", "sh", "-c", script, str(folder)]
    try:
        tried = subprocess.run([*front, "true"], capture_output=True, text=True, timeout=30)
    except FileNotFoundError:
        pytest.skip("root writes everywhere, and there is no unshare to mount a folder read-only")
    if tried.returncode != 0:
        pytest.skip(f"root writes everywhere, and a read-only mount is refused: {tried.stderr.strip()}")
    return front
