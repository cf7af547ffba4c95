"""What compute-sanitizer watches (sanitizer.py): one call of a Kernel through torch.ops.kgen, on inputs from a file, and
nothing else on the GPU. Ends with 1 and one line when another Kernel, or torch, served the call."""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Iterator
from pathlib import Path

import torch

import kgen
from kgen import devices
from kgen.baselines import Inputs
from kgen.gate_child import served
from kgen.sanitizer import placed


class Call:
    """One call of a Kernel on the inputs of a job (sanitizer.write_job)."""

    def __init__(self, job: Path):
        made = torch.load(job, weights_only=True)
        told = json.loads(made["told"])
        self.case, self.id = told["case"], told["id"]
        self.device = devices.of_case(self.case, told["index"])
        args = {n: None if t is None else placed(t, self.device) for n, t in made["args"].items()}
        self.inputs = Inputs(args, tuple(placed(t, self.device) for t in made["captured"]))
        self.function = served(self.case, told["names"])

    @contextlib.contextmanager
    def within(self) -> Iterator[None]:
        """The modes that it is called in."""
        precision = kgen.precision(self.case["precision"]) if self.device.type == "cuda" else contextlib.nullcontext()
        with torch.inference_mode(), precision:
            yield

    def __call__(self) -> None:
        """Calls and waits."""
        self.function(self.inputs)
        devices.synchronize(self.device)

    def complaint(self) -> str:
        """Who else served the call; "" when it was the Kernel."""
        decisions = kgen.why(self.function, self.inputs).decisions
        if [d.id for d in decisions] == [self.id]:
            return ""
        return f"served by {', '.join(d.kernel or d.reason for d in decisions) or 'nobody'}, not by {self.id[:12]}"


def main(job: Path) -> int:
    """Calls once and waits."""
    call = Call(job)
    with call.within():
        call()
        complaint = call.complaint()
    if complaint:
        print(complaint, file=sys.stderr)
    return int(bool(complaint))


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
