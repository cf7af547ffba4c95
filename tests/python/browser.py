"""A headless Chromium for one page, spoken to over its debugging pipe: what the page logs, what it shows, how it looks. Needs
nothing but the browser."""

from __future__ import annotations

import base64
import json
import os
import select
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome", "headless_shell")


def found() -> str | None:
    """The browser: KGEN_CHROMIUM, or what the path has."""
    return os.environ.get("KGEN_CHROMIUM") or next((p for n in NAMES if (p := shutil.which(n))), None)


class Browser:
    """Requests and events are JSON, each ended by a NUL; descriptors 3 and 4 of the browser."""

    def __init__(self, write: int, read: int):
        self.write, self.read = write, read
        self.rest, self.number = b"", 0
        self.events: list[dict[str, Any]] = []
        self.session: str | None = None

    def _message(self, seconds: float) -> dict[str, Any]:
        end = time.monotonic() + seconds
        while b"\0" not in self.rest:
            ready, _, _ = select.select([self.read], [], [], max(0.0, end - time.monotonic()))
            assert ready, "the browser says nothing"
            data = os.read(self.read, 1 << 20)
            assert data, "the browser ended"
            self.rest += data
        text, _, self.rest = self.rest.partition(b"\0")
        return dict(json.loads(text))

    def ask(self, method: str, **params: Any) -> dict[str, Any]:
        self.number += 1
        request = {"id": self.number, "method": method, "params": params}
        if self.session:
            request["sessionId"] = self.session
        os.write(self.write, json.dumps(request).encode() + b"\0")
        while True:
            message = self._message(60)
            if message.get("id") == self.number:
                assert "error" not in message, message
                return dict(message["result"])
            self.events.append(message)

    def wait_for(self, event: str) -> None:
        while not any(e.get("method") == event for e in self.events):
            self.events.append(self._message(60))

    def open(self, url: str, width: int = 1000, height: int = 1400) -> None:
        target = self.ask("Target.createTarget", url="about:blank")["targetId"]
        self.session = self.ask("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log"):
            self.ask(f"{domain}.enable")
        self.ask("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False)
        self.ask("Page.navigate", url=url)
        self.wait_for("Page.loadEventFired")

    def value(self, expression: str) -> Any:
        """Of JavaScript, as JSON has it."""
        got = self.ask("Runtime.evaluate", expression=expression, returnByValue=True)
        assert "exceptionDetails" not in got, got
        return got["result"].get("value")

    def until(self, expression: str, wanted: Any, seconds: float = 30) -> None:
        """Waits for what the page shows only once it was laid out again, which is a frame or more later than what asked for it."""
        end = time.monotonic() + seconds
        while (got := self.value(expression)) != wanted:
            assert time.monotonic() < end, (expression, got)
            time.sleep(0.02)

    def errors(self) -> list[Any]:
        """What the page logged as an error or a warning, and exceptions that nobody caught."""
        self.value("1")
        said = []
        for e in self.events:
            params = e.get("params", {})
            if e.get("method") == "Runtime.exceptionThrown":
                said.append(params)
            if e.get("method") == "Runtime.consoleAPICalled" and params["type"] in ("error", "warning", "assert"):
                said.append(params)
            if e.get("method") == "Log.entryAdded" and params["entry"]["level"] in ("error", "warning"):
                said.append(params["entry"])
        return said

    def png(self) -> bytes:
        """The whole page as it looks."""
        got = self.ask("Page.captureScreenshot", format="png", captureBeyondViewport=True)
        return base64.b64decode(got["data"])


@contextmanager
def browser(program: str) -> Iterator[Browser]:
    to_read, to_write = os.pipe()
    from_read, from_write = os.pipe()

    def place() -> None:  # descriptors 3 and 4, whatever numbers the pipes have
        a, b = os.dup(to_read), os.dup(from_write)
        os.dup2(a, 3)
        os.dup2(b, 4)

    with tempfile.TemporaryDirectory(prefix="kgen-browser-", ignore_cleanup_errors=True) as profile:
        process = subprocess.Popen(
            [program, "--headless=new", "--remote-debugging-pipe", "--no-sandbox", "--disable-gpu", "--no-first-run",
             "--hide-scrollbars", "--disable-dev-shm-usage", f"--user-data-dir={Path(profile)}", "about:blank"],
            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, close_fds=False, preexec_fn=place,
        )  # fmt: skip
        os.close(to_read)
        os.close(from_write)
        try:
            yield Browser(to_write, from_read)
        finally:
            process.terminate()
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
            os.close(to_write)
            os.close(from_read)
