"""`kgen demo`: tunes the example model for real on this machine, then runs it beside itself with the new Kernels.

The Kernels go into the demo's own Run, never into the user's registry. The comparison runs in a process of its own, which
knows the Kernels only through the registry. Nothing here is canned.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from ._paths import checkout, kernels_dir
from .errors import EnvironmentLacks

# Pairs of plain and patched runs.
ROUNDS = 15
# By kind of device: time for the search, and seconds for compiling the baselines of an Op. A GPU judges faster, and has more
# baselines that take minutes to compile; all of the demo is to end within four minutes.
BUDGET = {"cpu": "2m", "cuda": "1m"}
BASELINES = {"cpu": 120.0, "cuda": 45.0}


def example() -> Path:
    """examples/gpt.py of the checkout, or the copy in the wheel."""
    root = checkout()
    path = (root / "examples" if root else kernels_dir().parent / "examples") / "gpt.py"
    if not path.is_file():
        raise EnvironmentLacks(f"{path} is not there: run the demo from a checkout, or install kgen again")
    return path


def compare(model_path: str, device: str = "cpu", rounds: int = ROUNDS) -> dict[str, Any]:
    """The model plain and patched, in turn, on a device: median seconds, speedup with interval, largest error."""
    import copy

    import torch

    import kgen
    from kgen import _libkgen, capture, devices
    from kgen.patch import patch_report

    model, where = capture.load(model_path), devices.parse(device)
    capture.place(model, where)
    plain, args, kwargs = model.module.eval(), model.args, model.kwargs
    patched = kgen.patch(copy.deepcopy(plain), (args, kwargs), quiet=True)
    times: dict[str, list[float]] = {"plain": [], "patched": []}
    with torch.inference_mode(), devices.alone(where):
        want, got = plain(*args, **kwargs), patched(*args, **kwargs)
        for _ in range(rounds):
            for name, f in (("plain", plain), ("patched", patched)):
                devices.synchronize(where)
                start = time.perf_counter()
                f(*args, **kwargs)
                devices.synchronize(where)
                times[name].append(time.perf_counter() - start)
    median, low, high = _libkgen.ratio(times["plain"], times["patched"])
    worst = (got.double() - want.double()).abs().max()
    return {
        "plain_s": sorted(times["plain"])[rounds // 2],
        "patched_s": sorted(times["patched"])[rounds // 2],
        "speedup": {"median": median, "low": low, "high": high},
        "largest_error": float(worst),
        "largest_output": float(want.double().abs().max()),
        "report": str(patch_report(patched)),
    }


def _compare_elsewhere(model_path: Path, registry: Path, device: str) -> dict[str, Any]:
    env = dict(os.environ, KGEN_REGISTRY=str(registry))
    package = str(Path(__file__).resolve().parent.parent)
    env["PYTHONPATH"] = os.pathsep.join(filter(None, [package, env.get("PYTHONPATH", "")]))
    done = subprocess.run(
        [sys.executable, "-m", "kgen.demo", str(model_path), device],
        env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, check=False,
    )  # fmt: skip
    if done.returncode:
        raise EnvironmentLacks(f"the patched model did not run in a new process:\n{done.stderr.strip()}")
    print(done.stderr, end="", file=sys.stderr)  # warnings: why a Kernel is not served, say
    return json.loads(done.stdout.splitlines()[-1])


def run_demo(args: argparse.Namespace) -> int:
    """Tunes, shows the table, and compares the whole model. A demo that was stopped goes on when --run names its Run."""
    from . import capture, devices
    from .runs import default_dir
    from .tune import Options, parse_budget, tune_model
    from .ui import Progress, show_result

    if args.budget is not None:
        parse_budget(args.budget)  # refused before anything is loaded
    model_path = example()
    run_dir = Path(args.run) if args.run else default_dir("demo")
    args.resume_with = (run_dir, shlex.join(["kgen", "demo", "--run", str(run_dir)]))
    registry = run_dir / "generated"
    model = capture.load(str(model_path))
    device = capture.device_for(model, args.device)
    options = Options(
        budget=parse_budget(args.budget or BUDGET[device.type]), baselines=BASELINES[device.type], registry=registry, run_dir=run_dir, resume=(run_dir / "run.json").is_file(), device=args.device or str(device), sanitize=False
    )
    progress = Progress()
    progress.note(f"tuning {model_path} on {devices.name_of(device)}: plain torch, no line of kgen")
    report = tune_model(model, options, progress)
    show_result(report)
    if not report.promoted:
        return 0
    with progress.step("the whole model, plain and patched, in a new process"):
        found = _compare_elsewhere(model_path, registry, str(device))
    s = found["speedup"]
    print(f"\n{found['report']}\n")
    print(
        f"whole model: {found['plain_s'] * 1e3:.1f} ms plain, {found['patched_s'] * 1e3:.1f} ms patched: "
        f"{s['median']:.2f}x ({s['low']:.2f}..{s['high']:.2f})\n"
        f"largest error {found['largest_error']:.2g}, where outputs reach {found['largest_output']:.2g}"
    )
    print("\nin your own code:\n")
    print(f"    import kgen; kgen.load({str(registry)!r})")
    print("    model = kgen.patch(model)")
    return 0


if __name__ == "__main__":
    print(json.dumps(compare(*sys.argv[1:])))
