"""The errors that kgen raises on purpose, each with the exit code that the command line gives for it.

A message says what was wrong and what would be right, in one line unless a stub is shown. Nothing here
prints or exits; the command line does, and shows a traceback only when asked.
"""

from __future__ import annotations


class KgenError(Exception):
    """Base of all of kgen's own errors. `code` is the exit code of the command line."""

    code = 1


class BadInput(KgenError):
    """What the user gave cannot be used: a file, a name, a shape, an option."""

    code = 2


class EnvironmentLacks(KgenError):
    """The machine or the installation lacks something: a compiler, a device, a newer torch."""

    code = 3


class CheckFailed(KgenError):
    """What was asked was done, and the answer is no: a Kernel is wrong or slower."""

    code = 1


class NotATarget(KgenError):
    """A part of the model that kgen leaves alone; the message is the reason that reports show."""

    code = 2
