"""How many Candidates a closed loop evaluates, and what the engine takes for itself.

    python tests/bench/loop.py [--seconds 900] [--latency 2] [--json]

A scripted model answers each question after the latency with a Candidate of its own of a 10 MB Task (softmax of
(1250, 2048) float32), always right, which is what costs most to judge. Prints Candidates a minute and where the wall clock
went, from the Run's own journal. On a busy machine the shares still tell: the engine's is a part of what is neither waiting,
compiling nor judging.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import subprocess
import sys
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
sys.path[:0] = [str(ROOT / "python"), str(ROOT / "tests" / "python")]

from llm_server import Body, Step, serve  # noqa: E402

MODEL = """
import torch
from torch import nn

class Model(nn.Module):
    def forward(self, x):
        return torch.softmax(x, dim=-1)

def get_init_inputs():
    return []

def get_inputs():
    return [torch.randn(1250, 2048)]
"""

KERNEL = """/* kgen
{ "format": 1, "op": "softmax", "target": "cpu", "specialize": ["N"],
  "launches": [{"kernel": "rows", "range": "M", "grain": 16, "args": ["input", "output", {"i64": "N"}]}] }
*/
#include <math.h>
#include <stdint.h>
#define VARIANT %d
void rows(int64_t begin, int64_t end, const KG_T_input *input, KG_T_output *output, int64_t n) {
    for (int64_t r = begin; r < end; r++) {
        const float *x = input + r * n;
        float *y = output + r * n;
        float top = -INFINITY;
        double sum = 0;
        for (int64_t i = 0; i < n; i++)
            top = x[i] > top ? x[i] : top;
        for (int64_t i = 0; i < n; i++)
            sum += y[i] = expf(x[i] - top);
        for (int64_t i = 0; i < n; i++)
            y[i] = (float)(y[i] / sum);
    }
}
"""


# kgen's command line, but for the rule that ends a search in which nothing gets better.
DRIVER = """
import sys
from kgen import asking, cli
plain = asking.loop_options
asking.loop_options = lambda *args: {**plain(*args), "patience": 1000, "barren": 1000}
sys.exit(cli.main(sys.argv[1:]))
"""


@dataclass(frozen=True)
class Found:
    """seconds of the loop's life, and of it for what (wait: for answers, with nothing to judge); judged: Candidates with a
    verdict; asked: questions; most_open: of them at once."""

    seconds: float
    wait: float
    compile: float
    judge: float
    judged: int
    asked: int
    most_open: int

    @property
    def engine_share(self) -> float:
        return 1 - (self.wait + self.compile + self.judge) / self.seconds

    @property
    def a_minute(self) -> float:
        return self.judged / self.seconds * 60


def measure(seconds: float, latency: float, folder: Path, in_flight: int = 8) -> Found:
    """Runs `kgen tune` with the scripted model and reads its journal. AssertionError with what it said when it fails."""
    number = itertools.count()

    def answer(body: Body) -> Step:
        del body
        return Step(text=f"```c\n{KERNEL % next(number)}```\n", delay=latency)

    (folder / "model.py").write_text(MODEL)
    run = folder / "run"
    with serve(answer) as server:
        env = {k: v for k, v in os.environ.items() if not k.lower().endswith("_proxy")}
        done = subprocess.run(
            [sys.executable, "-c", DRIVER, "tune", folder / "model.py", "--run", run, "--no-promote", "--proposer", "llm",
             "--llm", "scripted", "--endpoint", server.url, "--in-flight", str(in_flight), "--budget", f"{seconds:.0f}s"],
            env={**env, "OPENAI_API_KEY": "none", "CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": str(ROOT / "python"),
                 "KGEN_CACHE": str(folder / "cache")},
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        asked, most = len(server.seen), server.most_busy
    return read(run, asked, most)


def read(run: Path, asked: int, most: int) -> Found:
    entries: list[dict[str, Any]] = [json.loads(line) for line in (run / "journal.jsonl").read_text().splitlines()]
    (clock,) = [e for e in entries if e["kind"] == "clock"]
    judged = {e["id"] for e in entries if e["kind"] == "verdict"}
    return Found(clock["life_s"], clock["wait_s"], clock["compile_s"], clock["judge_s"], len(judged), asked, most)


def main() -> int:
    p = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    p.add_argument("--seconds", type=float, default=900)
    p.add_argument("--latency", type=float, default=2)
    p.add_argument("--json", action="store_true")
    args = p.parse_args()
    with tempfile.TemporaryDirectory(prefix="kgen-loop-") as folder:
        found = measure(args.seconds, args.latency, Path(folder))
    if args.json:
        print(json.dumps({**asdict(found), "engine_share": found.engine_share, "a_minute": found.a_minute}))
        return 0
    print(f"{found.judged} Candidates in {found.seconds:.0f} s, {found.a_minute:.1f} a minute (at least 20); {found.asked} questions")
    for name in ("wait", "compile", "judge"):
        print(f"  {name}: {getattr(found, name):.1f} s, {100 * getattr(found, name) / found.seconds:.1f}%")
    print(f"  engine: {100 * found.engine_share:.2f}% (below 1%)")
    return 0 if found.a_minute >= 20 and found.engine_share < 0.01 else 1


if __name__ == "__main__":
    sys.exit(main())
