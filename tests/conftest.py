"""Paths, marks and fixtures that every Python test shares.

A test run has a cache and a user's registry of its own, made before anything imports kgen, so that no test
reads what a user's kgen left behind or writes into it. Tests share them, since compiled images are slow to
make; `fresh_home` gives one test its own.
"""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
if str(ROOT / "python") not in sys.path:
    sys.path.insert(0, str(ROOT / "python"))

# Child processes, `python -m kgen` above all, must import the same kgen.
os.environ["PYTHONPATH"] = os.pathsep.join(
    [str(ROOT / "python"), *filter(None, [os.environ.get("PYTHONPATH")])]
)

for _name in ("KGEN_REGISTRY", "KGEN_POLICY", "KGEN_PRECISION", "KGEN_DISABLE", "KGEN_LOG"):
    os.environ.pop(_name, None)


def _home(folder: Path, setenv: Callable[[str, str], None]) -> None:
    setenv("KGEN_CACHE", str(folder / "cache"))
    setenv("KGEN_LOCKS", str(folder / "locks"))  # tests wait for each other alone
    setenv("XDG_CACHE_HOME", str(folder / "xdg-cache"))
    setenv("XDG_DATA_HOME", str(folder / "xdg-data"))


# Processes that pytest-xdist starts have the home of the one that started them in their environment.
_SESSION_HOME = None if "PYTEST_XDIST_WORKER" in os.environ else tempfile.TemporaryDirectory(prefix="kgen-tests-")
if _SESSION_HOME is not None:
    _home(Path(_SESSION_HOME.name), os.environ.__setitem__)


def pytest_unconfigure() -> None:
    if _SESSION_HOME is not None:
        _SESSION_HOME.cleanup()


def _cuda_reason() -> str | None:
    import torch

    if not torch.cuda.is_available():
        return f"needs a CUDA device; torch {torch.__version__} finds none"
    return None


# Modules whose tests hold times against each other or against a limit. `make test` runs the others beside each other, and
# these, with what uses a GPU, one after the other; a test of theirs whose times matter to nobody is marked `beside`.
# A test of another module that holds times is marked `alone` itself.
ALONE = {
    "test_overhead", "test_bench_ratios", "test_import", "test_gate", "test_gate_build", "test_resolution",
}  # fmt: skip


@pytest.hookimpl(tryfirst=True)  # before -m selects by the marks
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    cuda = [item for item in items if item.get_closest_marker("cuda")]
    for item in items:
        if item in cuda or item.path.stem in ALONE and not item.get_closest_marker("beside"):
            item.add_marker(pytest.mark.alone)
    reason = _cuda_reason() if cuda else None
    if reason:
        for item in cuda:
            item.add_marker(pytest.mark.skip(reason=reason))


@pytest.fixture(autouse=True)
def cpu_unless_marked(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a machine with a GPU a model would be tuned there by itself; tests without the mark are about the CPU."""
    if "kgen" in sys.modules and not request.node.get_closest_marker("cuda"):
        from kgen import devices

        monkeypatch.setattr(devices, "first_gpu", lambda: None)


@pytest.fixture(scope="session")
def root() -> Path:
    """The root of the source tree."""
    return ROOT


@pytest.fixture(scope="session")
def golden() -> Path:
    """tests/golden: one file of every format."""
    return ROOT / "tests" / "golden"


@pytest.fixture(scope="session")
def build_dir() -> Path:
    """The folder of the binaries under test."""
    return Path(os.environ.get("KGEN_BUILD") or ROOT / "build")


@pytest.fixture
def fresh_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache and a user's registry that no other test has touched; the folder that holds both."""
    _home(tmp_path / "home", monkeypatch.setenv)
    return tmp_path / "home"


# Modules whose tests are about the registry that ships with kgen.
SHIPPED = {"test_ship", "test_bench_ratios", "test_verify", "test_registry_commands"}


@pytest.fixture(scope="module", autouse=True)
def only_what_the_test_loads(request: pytest.FixtureRequest) -> Iterator[None]:
    """Takes the shipped registry out of this process, so that a test's calls meet the Kernels it loads and no others."""
    if "kgen" not in sys.modules or request.module.__name__.rsplit(".", 1)[-1] in SHIPPED:
        yield
        return
    import kgen

    paths = [r["path"] for r in kgen.registry()]
    for path in paths:
        kgen.unload(path)
    yield
    for path in reversed(paths):
        kgen.load(path)
