"""Programs lowered for CUDA mean what the host evaluator and torch say: compiled for the host by what the emulator knows
of CUDA, on the same Programs and points as the CPU's lowering."""

from __future__ import annotations

import ctypes as C
import re
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

import pytest
import test_program
from emulator import EMULATE, rewrite
from program_core import Compiled, Core
from test_program import AT, check_all

from kgen.programs import NAMED, random_program
from kgen.trace import trace

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
