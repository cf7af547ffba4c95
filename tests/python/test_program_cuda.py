"""Programs lowered for CUDA mean what the host evaluator and torch say: compiled for the host by what the emulator knows
of CUDA, on the same Programs and points as the CPU's lowering."""

from __future__ import annotations

import ctypes as C
import re
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import test_program
import torch
from emulator import EMULATE, rewrite
from program_core import Compiled, Core
from test_program import AT, check_all

from kgen.programs import NAMED, random_program
from kgen.trace import Traced, trace

_LOOP = """
extern "C" void run_%(n)d(const void *args, float *s, unsigned char *m, long B, long H, long Q, long K) {
    const kg_programs &p = *static_cast<const kg_programs *>(args);
    for (int b = 0, at = 0; b < B; b++) for (int h = 0; h < H; h++) for (int q = 0; q < Q; q++, at += K) {
        const struct kg_score_row sr = kg_score_row(p, b, h, q);
        const struct kg_mask_row mr = kg_mask_row(p, b, h, q);
        for (int j = 0; j < K; j++) s[at + j] = kg_score(p, sr, s[at + j], b, h, q, j);
        for (int j = 0; j < K; j++) m[at + j] = kg_mask(p, mr, b, h, q, j);
    }
}
extern "C" int range_%(n)d(const void *p, int b, int h, int q0, int q1, int k0, int k1) {
    return kg_mask_range(*static_cast<const kg_programs *>(p), b, h, q0, q1, k0, k1);
}
extern "C" unsigned long size_%(n)d(void) { return sizeof(kg_programs); }
"""


class CompiledForCuda(Compiled):
    """All Programs in one file, each in a namespace of its own."""

    def __init__(self, cores: Sequence[Core], arch: str = "native", extra: Sequence[str] = ()) -> None:
        folder = Path(tempfile.mkdtemp(prefix="kgen-programs-cuda-"))
        parts = ['#include "ptx.h"\n']
        for n, core in enumerate(cores):
            text = rewrite(core.lower(1))
            macros = re.findall(r"^#define (\w+)", text, flags=re.MULTILINE)
            loop, undefine = _LOOP % {"n": n}, "".join(f"#undef {m}\n" for m in macros)
            parts.append(f"namespace program_{n} {{\n{text}{loop}}}\n{undefine}")
        (folder / "all.cpp").write_text("".join(parts))
        command = ["g++", "-std=gnu++17", "-O1", "-fPIC", "-shared", "-w", f"-I{EMULATE}", str(folder / "all.cpp"), "-o",
                   str(folder / "all.so")]  # fmt: skip
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr[:4000]
        self.lib = C.CDLL(str(folder / "all.so"))


@pytest.fixture(autouse=True)
def for_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(test_program, "Compiled", CompiledForCuda)


def test_named_programs_mean_the_same_on_cuda() -> None:
    check_all([(name, trace(*mods(AT))) for name, mods in NAMED.items()], AT)


def test_random_programs_mean_the_same_on_cuda() -> None:
    check_all([(f"seed {s}", random_program(s, AT)) for s in range(40)], AT)


@pytest.mark.slow
def test_more_random_programs_on_cuda() -> None:
    check_all([(f"seed {s}", random_program(s, AT, depth=7)) for s in range(1000, 1100)], AT)


# ---- score sections that are straight lines ----

_LINE = """
extern "C" void line(const void *args, float *out, long B, long H, long Q, long K, long first) {
    const kg_programs &p = *static_cast<const kg_programs *>(args);
    for (int b = 0, at = 0; b < B; b++) for (int h = 0; h < H; h++) for (int q = 0; q < Q; q++) {
        const struct kg_score_row row = kg_score_row(p, b, h, q);
        const struct kg_line l = kg_score_line(p, b, h, q);
        for (int j = 0; j < K; j++, at += 3) {
            const float score = out[at];
            out[at + 1] = kg_score(p, row, score, b, h, q, j);
            out[at + 2] = l.mul * score + (kg_score(p, row, 0.0f, b, h, q, (int)first) + l.slope * (float)(j - first));
        }
    }
}
"""
_SLOPES = torch.linspace(-2, 3, 4)
LINES = {
    "relative": lambda s, b, h, q, kv: s + (q - kv),
    "alibi": lambda s, b, h, q, kv: s + _SLOPES[h] * (kv - q),
    "scaled": lambda s, b, h, q, kv: 0.5 * s - 0.125 * (2 * kv - q + 7) / (h + 1.5),
    "scored by row": lambda s, b, h, q, kv: (-s) * _SLOPES[b] + 3.0,
    "by head": lambda s, b, h, q, kv: torch.where(h % 2 == 0, s + 0.25 * (kv - q), s),
    "one head is not scored": lambda s, b, h, q, kv: torch.where(h == 1, s * 2.0, (q - kv) * 0.5),
}
NO_LINES = {
    "softcap": lambda s, b, h, q, kv: 20.0 * torch.tanh(s / 20.0),
    "square": lambda s, b, h, q, kv: s + 0.01 * ((q - kv) * (q - kv)),
    "product of both": lambda s, b, h, q, kv: s * (q - kv),
    "look-up": lambda s, b, h, q, kv: s + _SLOPES[kv % 4],
    "distance": lambda s, b, h, q, kv: s - 0.1 * (q - kv).abs(),
    "choice by key": lambda s, b, h, q, kv: torch.where(kv > 3, s, s + 1.0),
    "more than 2^24": lambda s, b, h, q, kv: s + 0.01 * (9 * (q - kv)),
    "division": lambda s, b, h, q, kv: s + 1.0 / (kv + 1.0),
    "whole numbers": lambda s, b, h, q, kv: s + (kv // 2),
}


def _line_errors(core: Core, t: Traced, first: int) -> np.ndarray:
    """By how much the line and the function differ, in units of what fp32 loses on the way."""
    folder = Path(tempfile.mkdtemp(prefix="kgen-lines-"))
    (folder / "line.cpp").write_text('#include "ptx.h"\n' + rewrite(core.lower(1)) + _LINE)
    command = ["g++", "-std=gnu++17", "-O1", "-fPIC", "-shared", "-w", f"-I{EMULATE}", str(folder / "line.cpp"), "-o", str(folder / "l.so")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[:4000]
    values = np.zeros((AT.b, AT.h, AT.q, AT.kv, 3), dtype=np.float32)
    values[..., 0] = np.random.default_rng(0).normal(size=values.shape[:-1]) * 10
    bound = core.bind(t.captured, t.scalars)
    C.CDLL(str(folder / "l.so")).line(
        bound.args, values.ctypes.data_as(C.c_void_p), *[C.c_long(n) for n in (*values.shape[:-1], first)])  # fmt: skip
    return np.abs(values[..., 1] - values[..., 2]) / (1e-5 + 2e-6 * np.abs(values).sum(axis=-1))


def is_line(text: str) -> bool:
    return "#define KG_SCORE_LINE 1\n" in text


@pytest.mark.parametrize("name", LINES)
def test_lines_are_what_the_function_gives(name: str) -> None:
    t = trace(LINES[name], None)
    core = Core(t.text)
    text = core.lower(1)
    assert is_line(text), text
    assert ("#define KG_SCORE_UNIT 1\n" in text) == (name in ("relative", "alibi", "by head"))
    for first in (0, 17):
        errors = _line_errors(core, t, first)
        assert errors.max() < 1, f"{name}: {errors.max()} times what rounding explains"


@pytest.mark.parametrize("name", NO_LINES)
def test_what_is_no_line_is_not_taken_for_one(name: str) -> None:
    assert not is_line(Core(trace(NO_LINES[name], None).text).lower(1))


@pytest.mark.slow
def test_random_lines() -> None:
    """Of random Programs, those that are taken for lines are lines."""
    found = 0
    for seed in range(600):
        t = random_program(seed, AT, depth=2)
        if t.text and "score\n" in t.text:
            core = Core(t.text)
            if is_line(core.lower(1)):
                found += 1
                errors = _line_errors(core, t, 5)
                assert errors.max() < 1, f"seed {seed}: {errors.max()}\n{t.text}"
        if found == 12:
            break
    assert found >= 6, found


def test_which_heads_a_mask_reads() -> None:
    for mask, b, h in ((lambda b, h, q, kv: q >= kv, 0, 0), (lambda b, h, q, kv: (q >= kv) | (h == 1), 0, 1),
                       (lambda b, h, q, kv: kv < 3 + b, 1, 0)):  # fmt: skip
        text = Core(trace(None, mask).text).lower(1)
        assert f"#define KG_MASK_OF_B {b}\n#define KG_MASK_OF_H {h}\n" in text, text
