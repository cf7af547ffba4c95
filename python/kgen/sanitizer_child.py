"""What compute-sanitizer watches (sanitizer.py): one call of a Kernel through torch.ops.kgen, on inputs from a file, and
nothing else on the GPU. Ends with 1 and one line when another Kernel, or torch, served the call."""

from __future__ import annotations

import contextlib
import json
import sys
from pathlib import Path

import torch

import kgen
from kgen import devices
from kgen.baselines import Inputs
from kgen.gate_child import served
from kgen.sanitizer import placed


def main(job: Path) -> int:
    """Calls once and waits."""
    made = torch.load(job, weights_only=True)
    told = json.loads(made["told"])
    case = told["case"]
    device = devices.of_case(case, told["index"])
    args = {n: None if t is None else placed(t, device) for n, t in made["args"].items()}
    inputs = Inputs(args, tuple(placed(t, device) for t in made["captured"]))
    call = served(case, told["names"])
    precision = kgen.precision(case["precision"]) if device.type == "cuda" else contextlib.nullcontext()
    with torch.inference_mode(), precision:
        call(inputs)
        devices.synchronize(device)
        decisions = kgen.why(call, inputs).decisions
    if [d.id for d in decisions] != [told["id"]]:
        print(f"served by {', '.join(d.kernel or d.reason for d in decisions) or 'nobody'}, not by {told['id'][:12]}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
