"""What ncu watches (profiler.py): one call of a Kernel through torch.ops.kgen, on inputs from a file, after one that is not
counted. Ends with 1 and one line when another Kernel, or torch, served it."""

from __future__ import annotations

import sys
from pathlib import Path

import torch

from kgen.sanitizer_child import Call


def main(job: Path) -> int:
    """Calls once to be ready, and once between the marks that ncu waits for (--profile-from-start off)."""
    call = Call(job)
    with call.within():
        call()
        complaint = call.complaint()
        if complaint:
            print(complaint, file=sys.stderr)
            return 1
        marked = call.device.type == "cuda"
        if marked:
            torch.cuda.profiler.start()
        call()
        if marked:
            torch.cuda.profiler.stop()
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
