"""The C core of Programs under ctypes: parse, lower, compile as a kernel would, evaluate on the host."""

from __future__ import annotations

import ctypes as C
import functools
import subprocess
import tempfile
from pathlib import Path
from typing import Any, Sequence

import numpy as np
import torch

ROOT = Path(__file__).resolve().parent.parent.parent
_DTYPES = ("float32", "float64", "float16", "bfloat16", "int8", "uint8", "int16", "int32", "int64", "bool")
FLAGS = ("-O3", "-std=c17", "-ffp-contract=fast", "-fno-math-errno", "-fno-trapping-math", "-fPIC", "-shared",
         "-Wall", "-Wextra", "-Wno-unused-function", "-Wno-tautological-compare", "-Werror")

_LOOP = """
void run_%(n)d(const void *args, float *s, unsigned char *m, long B, long H, long Q, long K) {
    const struct kg_programs *p = args;
    for (long b = 0, at = 0; b < B; b++) for (long h = 0; h < H; h++) for (long q = 0; q < Q; q++, at += K) {
        struct kg_score_row sr = kg_score_row(p, b, h, q);
        struct kg_mask_row mr = kg_mask_row(p, b, h, q);
        for (int j = 0; j < K; j++) s[at + j] = kg_score(p, sr, s[at + j], b, h, q, j);
        for (int j = 0; j < K; j++) m[at + j] = kg_mask(p, mr, b, h, q, j);
    }
}
int range_%(n)d(const void *p, int b, int h, int q0, int q1, int k0, int k1) {
    return kg_mask_range(p, b, h, q0, q1, k0, k1);
}
unsigned long size_%(n)d(void) { return sizeof(struct kg_programs); }
"""


@functools.lru_cache(maxsize=1)
def _folder() -> tempfile.TemporaryDirectory:
    return tempfile.TemporaryDirectory(prefix="kgen-programs-")


@functools.lru_cache(maxsize=1)
def library() -> C.CDLL:
    out = Path(_folder().name) / "bridge.so"
    sources = [ROOT / "tests/python/program_bridge.c", *sorted((ROOT / "csrc/runtime").glob("program*.c")),
               ROOT / "csrc/runtime/types.c", *(ROOT / "csrc/base" / f for f in ("buf.c", "error.c", "hash_xxh.c"))]
    subprocess.run(["gcc", "-std=c17", "-D_GNU_SOURCE=", "-O1", "-fPIC", "-shared", f"-I{ROOT / 'csrc'}", *map(str, sources),
                    "-o", str(out), "-lm"], check=True)
    lib = C.CDLL(str(out))
    for name in ("bridge_parse", "bridge_lower", "bridge_call"):
        getattr(lib, name).restype = C.c_void_p
    lib.bridge_hash.restype = C.c_char_p
    lib.bridge_args_size.restype = C.c_size_t
    return lib


class Core:
    """A parsed Program. ValueError has the parser's message."""

    def __init__(self, text: str | bytes) -> None:
        data = text.encode() if isinstance(text, str) else text
        err = C.create_string_buffer(512)
        found = library().bridge_parse(data, C.c_size_t(len(data)), err)
        if not found:
            raise ValueError(err.value.decode())
        self.handle = C.c_void_p(found)

    def __del__(self) -> None:
        if hasattr(self, "handle"):
            library().bridge_free(self.handle)

    @property
    def hash(self) -> str:
        return library().bridge_hash(self.handle).decode()

    def lower(self, target: int = 0) -> str:
        text = library().bridge_lower(self.handle, target)
        try:
            return C.string_at(text).decode()
        finally:
            library().bridge_release(C.c_void_p(text))

    def bind(self, captured: Sequence[torch.Tensor], scalars: Sequence[float]) -> Bound:
        return Bound(self, captured, scalars)


class Bound:
    """A Program with the tensors and scalars of one call: args are the bytes of `struct kg_programs`."""

    def __init__(self, core: Core, captured: Sequence[torch.Tensor], scalars: Sequence[float]) -> None:
        n = len(captured)
        self.core, self.keep = core, list(captured)
        sizes, strides = (C.c_int64 * (8 * n + 1))(), (C.c_int64 * (8 * n + 1))()
        for i, t in enumerate(captured):
            for d in range(t.dim()):
                sizes[8 * i + d], strides[8 * i + d] = t.shape[d], t.stride(d)
        dtypes = [_DTYPES.index(str(t.dtype)[6:]) for t in captured]
        self.call = C.c_void_p(library().bridge_call(
            C.c_size_t(n), (C.c_void_p * (n + 1))(*[t.data_ptr() for t in captured]), (C.c_int * (n + 1))(*dtypes),
            (C.c_int * (n + 1))(*[t.dim() for t in captured]), sizes, strides, C.c_size_t(len(scalars)),
            (C.c_double * (len(scalars) + 1))(*scalars)))
        self.size = library().bridge_args_size(core.handle)
        self.args = C.create_string_buffer(self.size)
        err = C.create_string_buffer(512)
        if library().bridge_args(core.handle, self.call, self.args, C.c_size_t(self.size), err) != 0:
            raise ValueError(err.value.decode())

    def __del__(self) -> None:
        library().bridge_call_free(self.call)

    def evaluate(self, scores: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The host evaluator at every point of scores, (B, H, Q, K): scores in double, and the mask."""
        out = np.ascontiguousarray(scores, dtype=np.float64).copy()
        mask = np.zeros(out.shape, dtype=np.uint8)
        rc = library().bridge_evaluate(self.core.handle, self.call, (C.c_int64 * 4)(*out.shape),
                                       out.ctypes.data_as(C.c_void_p), mask.ctypes.data_as(C.c_void_p))
        assert rc == 0, rc
        return out, mask.astype(bool)


class Compiled:
    """Programs as a kernel gets them, many in one shared object: index i is the i-th."""

    def __init__(self, cores: Sequence[Core], arch: str = "native", extra: Sequence[str] = ()) -> None:
        self.folder = tempfile.mkdtemp(dir=_folder().name)
        paths = []
        for n, core in enumerate(cores):
            path = Path(self.folder) / f"p{n}.c"
            path.write_text(core.lower() + _LOOP % {"n": n})
            paths.append(str(path))
        out = f"{self.folder}/all.so"
        done = subprocess.run(["gcc", *FLAGS, f"-march={arch}", *extra, *paths, "-o", out], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        self.messages = done.stderr
        self.lib: Any = C.CDLL(out)

    def run(self, i: int, bound: Bound, scores: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        getattr(self.lib, f"size_{i}").restype = C.c_ulong
        assert getattr(self.lib, f"size_{i}")() == bound.size
        out = np.ascontiguousarray(scores, dtype=np.float32).copy()
        mask = np.zeros(out.shape, dtype=np.uint8)
        getattr(self.lib, f"run_{i}")(bound.args, out.ctypes.data_as(C.c_void_p), mask.ctypes.data_as(C.c_void_p),
                                      *[C.c_long(n) for n in out.shape])
        return out, mask.astype(bool)

    def range(self, i: int, bound: Bound, *tile: int) -> int:
        return getattr(self.lib, f"range_{i}")(bound.args, *tile)


_ROWS = """
void score_row(const struct kg_programs *p, float *s, int n, int b, int h, int q, int k0) {
    struct kg_score_row row = kg_score_row(p, b, h, q);
    for (int j = 0; j < n; j++) s[j] = kg_score(p, row, s[j], b, h, q, k0 + j); /* SCORE */
}
void mask_row(const struct kg_programs *p, float *s, int n, int b, int h, int q, int k0) {
    struct kg_mask_row row = kg_mask_row(p, b, h, q);
    for (int j = 0; j < n; j++) s[j] = kg_mask(p, row, b, h, q, k0 + j) ? s[j] : -__builtin_inff(); /* MASK */
}
"""


def vectorised(core: Core, arch: str) -> set[str]:
    """Which of "SCORE" and "MASK" the compiler turns into vector code in a loop over kv."""
    source = core.lower() + _ROWS
    path = Path(tempfile.mkdtemp(dir=_folder().name)) / "rows.c"
    path.write_text(source)
    done = subprocess.run(["gcc", *FLAGS, f"-march={arch}", "-fopt-info-vec-optimized", str(path), "-o", f"{path}.so"],
                          capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    lines = {i: mark for i, line in enumerate(source.splitlines(), 1) for mark in ("SCORE", "MASK") if f"/* {mark} */" in line}
    return {mark for i, mark in lines.items() if f"rows.c:{i}:" in done.stderr}
