"""Fixtures of the tests that run kgen as a command, and of those that want no registry but their own."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from kgen_command import Server, serve


@pytest.fixture
def nothing_shipped() -> Iterator[None]:
    """No registry is open in this process but those that the test loads: the shipped one serves almost any call."""
    import kgen

    held = [r["path"] for r in kgen.registry()]
    for path in held:
        kgen.unload(path)
    yield
    for path in reversed(held):
        kgen.load(path)


@pytest.fixture
def no_cxx(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch.compile finds no compiler, and the gate leaves that baseline out: for tests that are not about baselines, since
    what it compiles takes longer than all else."""
    monkeypatch.setenv("CXX", "/nonexistent/c++")


@pytest.fixture(scope="session")
def kgen_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """Runs `python -m kgen ...`; at the end of the session nothing of it is left."""
    with serve(tmp_path_factory.mktemp("commands")) as server:
        yield server
        assert server.left_over() == [], "commands left processes behind"
