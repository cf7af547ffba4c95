"""A server that speaks the chat completions protocol as OpenAI, DeepSeek, vLLM, llama.cpp and Ollama do, and misbehaves on
request.

What it does is scripted: a list of steps, one a request; the last one is for all that follow. A step is what is answered and
how. A function in a step's place gets the request's body and returns the step, for models that read their prompt.
"""

from __future__ import annotations

import json
import socket
import ssl
import subprocess
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

Body = dict[str, Any]


@dataclass(frozen=True)
class Step:
    """One answer. kind: "answer", or how it misbehaves (Handler.do_POST has the list)."""

    kind: str = "answer"
    text: str = ""
    reasoning: str = ""
    status: int = 200
    headers: tuple[tuple[str, str], ...] = ()
    usage: Body | None = None  # None: counted from the texts
    no_usage: bool = False
    finish: str | None = "stop"
    dones: int = 1  # how often [DONE] is said
    delay: float = 0.0  # before anything is said
    field_name: str = "reasoning_content"
    error: Body | str | None = None
    content_type: str | None = None
    chunk: int = 7  # characters a delta
    size: int = 0  # bytes, for what is large


Script = Sequence["Step | Callable[[Body], Step]"]


@dataclass
class Seen:
    """A request as it came."""

    body: Body
    headers: dict[str, str]
    path: str
    at: float = field(default_factory=time.monotonic)

    @property
    def user(self) -> str:
        return "".join(m["content"] for m in self.body["messages"] if m["role"] == "user")


def tokens(text: str) -> int:
    return (len(text.encode()) + 3) // 4


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: LlmServer

    def log_message(self, *_: Any) -> None:
        pass

    def do_GET(self) -> None:
        self.plain(404, b"no such thing")

    def plain(self, status: int, data: bytes, kind: str = "text/plain", headers: Sequence[tuple[str, str]] = ()) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(data)))
        for name, value in headers:
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(data)

    def do_POST(self) -> None:
        raw = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        seen = Seen(json.loads(raw), dict(self.headers.items()), self.path)
        step = self.server.take(seen)
        if step.delay:
            self.server.ended.wait(step.delay)
        try:
            getattr(self, f"do_{step.kind}")(step, seen)
        except (BrokenPipeError, ConnectionResetError, ssl.SSLError):
            self.close_connection = True

    # --- answers ---

    def usage(self, step: Step, seen: Seen) -> Body | None:
        if step.no_usage:
            return None
        if step.usage is not None:
            return step.usage
        prompt = sum(tokens(m["content"]) for m in seen.body["messages"])
        answer = tokens(step.text) + tokens(step.reasoning)
        return {"prompt_tokens": prompt, "completion_tokens": answer, "total_tokens": prompt + answer}

    def document(self, step: Step, seen: Seen) -> bytes:
        message: Body = {"role": "assistant", "content": step.text}
        if step.reasoning:
            message[step.field_name] = step.reasoning
        choice = {"index": 0, "message": message, "finish_reason": step.finish}
        out: Body = {"id": "x", "object": "chat.completion", "model": seen.body["model"], "choices": [choice]}
        if (u := self.usage(step, seen)) is not None:
            out["usage"] = u
        return json.dumps(out, ensure_ascii=False).encode()

    def events(self, step: Step, seen: Seen) -> bytes:
        def event(choices: list[Body], **more: Any) -> bytes:
            data = {"id": "x", "object": "chat.completion.chunk", "choices": choices, **more}
            return b"data: " + json.dumps(data, ensure_ascii=False).encode() + b"\n\n"

        parts = [b": keep-alive\n\n", event([{"index": 0, "delta": {"role": "assistant", "content": ""}}])]
        for name, text in ((step.field_name, step.reasoning), ("content", step.text)):
            for i in range(0, len(text), step.chunk):
                parts.append(event([{"index": 0, "delta": {name: text[i : i + step.chunk]}, "finish_reason": None}]))
        if step.finish:
            parts.append(event([{"index": 0, "delta": {}, "finish_reason": step.finish}]))
        u = self.usage(step, seen)
        if u is not None and seen.body.get("stream_options", {}).get("include_usage"):
            parts.append(event([], usage=u))
        return b"".join(parts) + b"data: [DONE]\n\n" * step.dones

    def rendered(self, step: Step, seen: Seen) -> tuple[bytes, str]:
        if seen.body.get("stream"):
            return self.events(step, seen), step.content_type or "text/event-stream"
        return self.document(step, seen), step.content_type or "application/json"

    def do_answer(self, step: Step, seen: Seen) -> None:
        data, kind = self.rendered(step, seen)
        self.plain(200, data, kind, step.headers)

    def do_error(self, step: Step, seen: Seen) -> None:
        """A status with an error object, a text or an HTML page."""
        del seen
        error = step.error if step.error is not None else {"error": {"message": f"status {step.status}", "code": None}}
        data = error.encode() if isinstance(error, str) else json.dumps(error).encode()
        self.plain(step.status, data, step.content_type or "application/json", step.headers)

    # --- misbehaviour ---

    def raw(self, data: bytes, kind: str = "text/event-stream", length: int | None = None) -> None:
        self.send_response(200)
        self.send_header("Content-Type", kind)
        if length is not None:
            self.send_header("Content-Length", str(length))
        self.send_header("Connection", "close")
        self.end_headers()
        self.wfile.write(data)
        self.wfile.flush()
        self.close_connection = True

    def do_cut(self, step: Step, seen: Seen) -> None:
        """The stream ends inside a character."""
        data, kind = self.rendered(step, seen)
        at = data.index("é".encode()) + 1
        self.raw(data[:at], kind, len(data))

    def do_unfinished(self, step: Step, seen: Seen) -> None:
        """The stream ends cleanly, as HTTP goes, before the model was done."""
        data, kind = self.rendered(step, seen)
        self.raw(data[: data.index(b'"finish_reason": "stop"')].rpartition(b"data:")[0], kind)

    def do_garbage(self, step: Step, seen: Seen) -> None:
        data, kind = self.rendered(step, seen)
        half = len(data) // 2
        self.raw(data[:half] + b"\n\n\x00\xff<<<garbage>>>\n\ndata: {not json\n\n" + data[half:], kind)

    def do_huge(self, step: Step, seen: Seen) -> None:
        """One JSON document without end, as it seems."""
        del seen
        self.raw(b'{"id": "', "application/json", step.size)
        block = b"x" * (1 << 20)
        for _ in range(step.size >> 20):
            self.wfile.write(block)

    def do_slow(self, step: Step, seen: Seen) -> None:
        """A byte now and then."""
        data, kind = self.rendered(step, seen)
        self.raw(b"", kind)
        for i in range(len(data)):
            self.wfile.write(data[i : i + 1])
            self.wfile.flush()
            if self.server.ended.wait(0.1):
                return

    def do_stall(self, step: Step, seen: Seen) -> None:
        """Half an answer, and then nothing."""
        data, kind = self.rendered(step, seen)
        self.raw(data[: len(data) // 2], kind, len(data))
        self.server.ended.wait(30)

    def do_runaway(self, step: Step, seen: Seen) -> None:
        """A stream that no max_tokens ends; step.usage goes with each delta."""
        del seen
        choice = {"index": 0, "delta": {step.field_name: step.text}, "finish_reason": None}
        more = {} if step.usage is None else {"usage": step.usage}
        data = b"data: " + json.dumps({"id": "x", "choices": [choice], **more}).encode() + b"\n\n"
        self.raw(b"")
        while not self.server.ended.is_set():
            self.wfile.write(data)
            self.server.streamed += len(step.text)

    def do_silent(self, step: Step, seen: Seen) -> None:
        """Not a byte."""
        del step, seen
        self.server.ended.wait(30)
        self.close_connection = True

    def do_reset(self, step: Step, seen: Seen) -> None:
        """A reset in the middle of an answer."""
        data, kind = self.rendered(step, seen)
        self.raw(data[: len(data) // 2], kind, len(data))
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\0\0\0\0\0\0\0")
        self.connection.close()

    def do_empty(self, step: Step, seen: Seen) -> None:
        """No choices."""
        body = {"id": "x", "object": "chat.completion", "choices": []}
        if seen.body.get("stream"):
            self.raw(b"data: " + json.dumps(body).encode() + b"\n\ndata: [DONE]\n\n")
        else:
            self.plain(200, json.dumps(body).encode(), "application/json")

    def do_tools(self, step: Step, seen: Seen) -> None:
        """A tool call in the place of an answer."""
        call = {"index": 0, "id": "c", "type": "function", "function": {"name": "run", "arguments": "{}"}}
        name = "delta" if seen.body.get("stream") else "message"
        choice = {"index": 0, name: {"content": None, "tool_calls": [call]}, "finish_reason": "tool_calls"}
        data = json.dumps({"id": "x", "choices": [choice], "usage": self.usage(step, seen)}).encode()
        if seen.body.get("stream"):
            self.raw(b"data: " + data + b"\n\ndata: [DONE]\n\n")
        else:
            self.plain(200, data, "application/json")

    def do_redirect(self, step: Step, seen: Seen) -> None:
        del seen
        self.plain(302, b"", headers=(("Location", step.text),))


class LlmServer(ThreadingHTTPServer):
    """Use with `serve`. seen: every request, in the order in which they came."""

    daemon_threads = True
    request_queue_size = 64

    def __init__(self, script: Script, certificate: Path | None = None):
        super().__init__(("127.0.0.1", 0), Handler)
        self.script, self.seen, self.lock = list(script), [], threading.Lock()
        self.ended = threading.Event()
        self.busy = self.most_busy = 0
        self.streamed = 0  # characters of streams without end
        self.scheme = "http"
        if certificate:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(certificate)
            self.socket = context.wrap_socket(self.socket, server_side=True)
            self.scheme = "https"

    @property
    def url(self) -> str:
        return f"{self.scheme}://127.0.0.1:{self.server_address[1]}/v1"

    def take(self, seen: Seen) -> Step:
        with self.lock:
            step = self.script[min(len(self.seen), len(self.script) - 1)]
            self.seen.append(seen)
        return step if isinstance(step, Step) else step(seen.body)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        with self.lock:
            self.busy += 1
            self.most_busy = max(self.most_busy, self.busy)
        try:
            super().process_request_thread(request, client_address)
        finally:
            with self.lock:
                self.busy -= 1

    def handle_error(self, *_: Any) -> None:
        pass


@contextmanager
def serve(*script: Step | Callable[[Body], Step], certificate: Path | None = None) -> Any:
    server = LlmServer(script, certificate)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.ended.set()
        server.shutdown()
        server.server_close()
        thread.join()


def self_signed(folder: Path) -> tuple[Path, Path]:
    """A certificate of 127.0.0.1 that nobody trusts: key and certificate in one file, and the certificate alone."""
    both, cert, key = folder / "both.pem", folder / "cert.pem", folder / "key.pem"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=127.0.0.1",
         "-addext", "subjectAltName=IP:127.0.0.1", "-keyout", key, "-out", cert],
        check=True, capture_output=True,
    )  # fmt: skip
    both.write_bytes(key.read_bytes() + cert.read_bytes())
    return both, cert
