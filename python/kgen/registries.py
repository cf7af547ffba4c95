"""Which registries there are, for the command line: the same folders, in the same order, as `import kgen` reads.

Nothing is ever found through the working directory.
"""

from __future__ import annotations

import os
from pathlib import Path

from . import _libkgen
from ._paths import shipped_registry
from .errors import BadInput, EnvironmentLacks


def user_registry() -> Path:
    """$XDG_DATA_HOME/kgen/generated, else ~/.local/share/kgen/generated."""
    data = os.environ.get("XDG_DATA_HOME")
    base = Path(data) if data else Path.home() / ".local" / "share"
    return base / "kgen" / "generated"


def roots(only: str | None = None) -> list[Path]:
    """Folders of registries, first wins. `only`: a registry that was named; BadInput when it is not there."""
    if only is not None:
        path = Path(only)
        if not path.is_dir():
            raise BadInput(f"registry {only}: no such folder")
        return [path]
    named = os.environ.get("KGEN_REGISTRY", "")
    folders = [Path(p) for p in named.split(os.pathsep) if p]
    folders += [user_registry(), shipped_registry()]
    return [p for i, p in enumerate(folders) if p.is_dir() and p not in folders[:i]]


def promote_to(only: str | None = None) -> Path:
    """Where tune promotes: the one that was named, else the first of KGEN_REGISTRY, else the user's."""
    if only is not None:
        return Path(only)
    named = [p for p in os.environ.get("KGEN_REGISTRY", "").split(os.pathsep) if p]
    return Path(named[0]) if named else user_registry()


def check_writable(path: Path) -> None:
    """Raises before any work is done when nothing could be promoted there. Makes nothing."""
    there = path
    while not there.exists() and there != there.parent:
        there = there.parent
    if not there.is_dir():
        raise BadInput(f"registry {path}: {there} is a file; name a folder with --registry")
    if not os.access(there, os.W_OK | os.X_OK):
        raise EnvironmentLacks(f"registry {path}: {there} cannot be written; name another with --registry, or --no-promote")


def find(name: str, only: str | None = None) -> tuple[Path, dict]:
    """The registry that has OP/vN, and the Kernel. BadInput lists where it was looked for."""
    tried: list[str] = []
    for root in roots(only):
        try:
            return root, _libkgen.registry_find(root, name)
        except BadInput as e:
            tried.append(str(e))
    raise BadInput("; ".join(tried) if tried else f"{name}: there is no registry (see `kgen doctor`)")
