"""`python -m kgen`."""

from __future__ import annotations

import signal
import sys


def main() -> int:
    """Runs the command that the process was started with; its exit code."""
    try:
        from .cli import main as command

        return command()
    except KeyboardInterrupt:
        print("kgen: interrupted", file=sys.stderr)
        return 130
    finally:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # nothing is left to interrupt
        # An interrupt within exec(text), where dataclasses are made, leaves a note in CPython that `python -m` ends by, as
        # if nobody had caught it. The next exec takes the note away.
        exec("")


if __name__ == "__main__":
    sys.exit(main())
