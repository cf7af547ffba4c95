"""Fixtures of the tests that run kgen as a command."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from kgen_command import Server, serve


@pytest.fixture(scope="session")
def kgen_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """Runs `python -m kgen ...`; at the end of the session nothing of it is left."""
    with serve(tmp_path_factory.mktemp("commands")) as server:
        yield server
        assert server.left_over() == [], "commands left processes behind"
