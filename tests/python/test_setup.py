"""tools/setup.sh: a browser is fetched where apt has one and nothing else is there, and never stands in the way."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import browser
import pytest

ROOT = Path(__file__).resolve().parents[2]
HERE = """set -euo pipefail
say() { printf '%s\\n' "$*"; }
have() { command -v "$1" >/dev/null 2>&1; }
"""


def install(folder: Path, programs: dict[str, str]) -> str:
    """What install_browser says where the path has these programs alone, as bash texts, and what is in their log."""
    text = (ROOT / "tools" / "setup.sh").read_text()
    function = text[text.index("install_browser() {") :].partition("\n}\n")[0] + "\n}\n"
    for name in ("grep", "timeout"):
        os.symlink(next(p for p in (Path("/usr/bin") / name, Path("/bin") / name) if p.exists()), folder / name)
    for name, body in programs.items():
        path = folder / name
        path.write_text(f'#!/bin/bash\n{body}\n')
        path.chmod(0o755)
    done = subprocess.run(
        ["/bin/bash", "-c", HERE + function + "install_browser"], capture_output=True, text=True, check=True,
        env={"PATH": str(folder), "LOG": str(folder / "log")}, cwd=folder,
    )  # fmt: skip
    assert done.stderr == ""
    return done.stdout + ((folder / "log").read_text() if (folder / "log").exists() else "")


APT = 'echo "ran $*" >>"$LOG"'
POLICY = "echo chromium:; echo '  Candidate: 156.0-1'"
FETCHED = ["ran install -y --no-install-recommends chromium -qq --download-only", "ran install -y --no-install-recommends chromium -qq"]


@pytest.mark.parametrize("name", browser.NAMES)
def test_one_that_is_there_is_enough(tmp_path: Path, name: str) -> None:
    assert install(tmp_path, {name: "", "apt-get": APT, "apt-cache": POLICY, "id": "echo 0"}) == ""


def test_it_is_fetched_and_then_installed(tmp_path: Path) -> None:
    said = install(tmp_path, {"apt-get": APT, "apt-cache": POLICY, "id": "echo 0"}).splitlines()
    assert "Running: apt-get install -y --no-install-recommends chromium" in said[0] and said[1:] == FETCHED


@pytest.mark.parametrize(
    ("programs", "words"),
    [
        ({}, "apt has none"),
        ({"apt-get": APT, "apt-cache": "echo '  Candidate: (none)'", "id": "echo 0"}, "apt has none"),
        ({"apt-get": APT, "apt-cache": POLICY, "id": "echo 1000"}, "as root: apt-get install"),
        ({"apt-get": "exit 100", "apt-cache": POLICY, "id": "echo 0"}, "going on without Chromium"),
    ],
)
def test_without_it_all_goes_on(tmp_path: Path, programs: dict[str, str], words: str) -> None:
    said = install(tmp_path, programs)
    assert words in said and "the screenshot test of the report will be skipped" in said and "ran" not in said.split()
