"""Where kgen's own files are: in an installed wheel beside this file, in a checkout under its root.

An editable install and a checkout on PYTHONPATH are the same thing here. Refuses to look anywhere else,
the working directory above all.
"""

from __future__ import annotations

import os
from pathlib import Path

_PACKAGE = Path(__file__).resolve().parent


def checkout() -> Path | None:
    """The root of the source tree that this package runs from; None for an installed wheel."""
    root = _PACKAGE.parent.parent
    if (_PACKAGE / "_lib").is_dir() or not (root / "csrc" / "base").is_dir():
        return None
    return root


def lib_dir() -> Path:
    """The folder of libkgen_rt.so, libkgen.so and kgen-worker. Nothing is promised about what is in it.

    KGEN_BUILD names another build folder, for tests.
    """
    build = os.environ.get("KGEN_BUILD")
    if build:
        return Path(build).resolve()
    root = checkout()
    return root / "build" if root else _PACKAGE / "_lib"


def binary(name: str) -> Path:
    """The path of one of the binaries; FileNotFoundError that says how to get it when it is not there."""
    path = lib_dir() / name
    if path.is_file():
        return path
    todo = "run `make build`" if checkout() else "the installation is not whole: install kgen again"
    raise FileNotFoundError(f"{path} is not there; {todo}")


def kernels_dir() -> Path:
    """The house kernels and templates, kernels/<family>/."""
    root = checkout()
    return root / "kernels" if root else _PACKAGE / "_data" / "kernels"


def shipped_registry() -> Path:
    """The registry that comes with kgen, generated/."""
    root = checkout()
    return root / "generated" if root else _PACKAGE / "_data" / "generated"
