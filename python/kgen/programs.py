"""Programs to judge and to test with: the variants that people write, as the functions they write, and random ones.

Random Programs are drawn so that fp32 can be held to an fp64 oracle: integers and bools are free (they are exact),
floats stay small and continuous in the score, and no comparison hangs on a rounded float.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Any, Callable

import torch
from torch import Tensor

from .program import BOOL, F32, I32, canonical, dtype_name, f32_text
from .trace import Traced

Mods = tuple[Callable[..., Any] | None, Callable[..., Any] | None]


@dataclass(frozen=True, slots=True)
class Extent:
    """The sizes that indices run over: b < B, h < H, q < SQ, kv < SK."""

    b: int
    h: int
    q: int
    kv: int


# ---- the variants by name ----


def _generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def relative_position(at: Extent) -> Mods:
    return lambda score, b, h, q, kv: score + (q - kv), None


def causal(at: Extent) -> Mods:
    return None, lambda b, h, q, kv: q >= kv


def causal_relative_position(at: Extent) -> Mods:
    return lambda score, b, h, q, kv: score + 0.125 * (kv - q), lambda b, h, q, kv: q >= kv


def alibi(at: Extent) -> Mods:
    slopes = torch.exp2(-torch.arange(1, at.h + 1, dtype=torch.float32) * 8.0 / at.h)
    return lambda score, b, h, q, kv: score + slopes[h] * (kv - q), lambda b, h, q, kv: q >= kv


def softcap(at: Extent) -> Mods:
    cap = 20.0
    return lambda score, b, h, q, kv: cap * torch.tanh(score / cap), lambda b, h, q, kv: q >= kv


def sliding_window(at: Extent) -> Mods:
    window = max(1, at.kv // 4)
    return None, lambda b, h, q, kv: (q >= kv) & (q - kv <= window)


def prefix_lm(at: Extent) -> Mods:
    length = torch.randint(1, at.kv + 1, (at.b,), generator=_generator(1), dtype=torch.int32)
    return None, lambda b, h, q, kv: (kv < length[b]) | (q >= kv)


def documents(at: Extent) -> Mods:
    n = max(at.q, at.kv)
    document = torch.randint(0, 5, (n,), generator=_generator(2)).sort().values
    return None, lambda b, h, q, kv: (document[q] == document[kv]) & (q >= kv)


def padding(at: Extent) -> Mods:
    length = torch.randint(0, at.kv + 1, (at.b,), generator=_generator(3))
    return None, lambda b, h, q, kv: kv < length[b]


def neighbourhood(at: Extent) -> Mods:
    width = max(2, int(at.kv**0.5))

    def mask(b: Any, h: Any, q: Any, kv: Any) -> Any:
        rows = (q // width - kv // width).abs() <= 2
        return rows & ((q % width - kv % width).abs() <= 2)

    return None, mask


def gaussian(at: Extent) -> Mods:
    sigma = 0.3 * at.kv + 1.0
    return lambda score, b, h, q, kv: score + torch.exp(-((q - kv) / sigma) ** 2), None


def learned_bias(at: Extent) -> Mods:
    n = max(at.q, at.kv)
    table = torch.randn(at.h, 2 * n, generator=_generator(4)).to(torch.bfloat16)
    return lambda score, b, h, q, kv: score + table[h, q - kv + n], None


def t5_buckets(at: Extent) -> Mods:
    table = torch.randn(16, at.h, generator=_generator(5))

    def score_mod(score: Any, b: Any, h: Any, q: Any, kv: Any) -> Any:
        near = torch.minimum((q - kv).abs(), torch.full_like(q, 15))
        return score + table[near, h]

    return score_mod, None


def dense_bias(at: Extent) -> Mods:
    bias = torch.randn(at.b, at.h, at.q, at.kv, generator=_generator(6)).to(torch.float16)
    return lambda score, b, h, q, kv: score + bias[b, h, q, kv], None


def dense_mask(at: Extent) -> Mods:
    keep = torch.rand(at.b, at.q, at.kv, generator=_generator(7)) < 0.7
    return None, lambda b, h, q, kv: keep[b, q, kv]


def strided(at: Extent) -> Mods:
    every = 3
    return None, lambda b, h, q, kv: (kv % every == 0) | ((q - kv).abs() < every)


def per_head_window(at: Extent) -> Mods:
    window = torch.arange(1, at.h + 1, dtype=torch.int64) * 5
    return None, lambda b, h, q, kv: (q - kv).abs() <= window[h]


def everything(at: Extent) -> Mods:
    cap, scale = 8.0, torch.tensor(0.5)
    slopes = torch.rand(at.h, generator=_generator(8))
    document = torch.randint(0, 3, (at.b, max(at.q, at.kv)), generator=_generator(9)).sort(dim=1).values

    def score_mod(score: Any, b: Any, h: Any, q: Any, kv: Any) -> Any:
        biased = score * scale + slopes[h] * torch.log(1.0 + (q - kv).abs())
        return torch.where(h % 2 == 0, cap * torch.tanh(biased / cap), biased)

    def mask_mod(b: Any, h: Any, q: Any, kv: Any) -> Any:
        same = document[b, q] == document[b, kv]
        return (same & (q >= kv)) | (kv < 2)

    return score_mod, mask_mod


NAMED: dict[str, Callable[[Extent], Mods]] = {f.__name__: f for f in (
    relative_position, causal, causal_relative_position, alibi, softcap, sliding_window, prefix_lm, documents, padding,
    neighbourhood, gaussian, learned_bias, t5_buckets, dense_bias, dense_mask, strided, per_head_window, everything)}


# ---- random ones ----


class _Draw:
    """Draws expressions as raw instructions. depth bounds how deep an expression goes."""

    def __init__(self, rng: random.Random, at: Extent) -> None:
        self.rng = rng
        self.at = at
        self.raw: list[tuple[str, ...]] = []
        self.tensors: list[Tensor] = []
        self.scalars: list[tuple[float, str]] = []

    def emit(self, op: str, kind: str, *args: str) -> str:
        self.raw.append((op, kind, *args))
        return f"%{len(self.raw) - 1}"

    def scalar(self, value: float, kind: str) -> str:
        if len(self.scalars) >= 8:
            return str(int(value)) if kind == I32 else f32_text(value)
        self.scalars.append((value, kind))
        return f"s{len(self.scalars) - 1}"

    def load(self, dtypes: tuple[torch.dtype, ...], low: int, high: int, depth: int) -> str:
        """An element of a table of rank 0 to 3, its indices near its sizes: some count from the end or stick out."""
        rng = self.rng
        known = [i for i, t in enumerate(self.tensors) if t.dtype in dtypes]
        if known and (len(self.tensors) >= 6 or rng.random() < 0.3):
            k = rng.choice(known)
        else:
            shape = [rng.choice((self.at.h, self.at.kv, 7, 2 * self.at.kv + 1)) for _ in range(rng.choice((0, 1, 1, 1, 2, 2, 3)))]
            k = len(self.tensors)
            self.tensors.append(self.table(rng.choice(dtypes), shape, low, high))
        t = self.tensors[k]
        kind = BOOL if t.dtype == torch.bool else F32 if t.dtype.is_floating_point else I32
        return self.emit("load", kind, f"t{k}", *[self.index(n, depth - 1) for n in t.shape])

    def table(self, dtype: torch.dtype, shape: list[int], low: int, high: int) -> Tensor:
        g = torch.Generator().manual_seed(self.rng.getrandbits(31))
        if dtype == torch.bool:
            t = torch.rand(shape, generator=g) < 0.6
        elif dtype.is_floating_point:
            t = torch.randn(shape, generator=g).clamp(-3, 3).to(dtype)
        else:
            low, high = max(low, torch.iinfo(dtype).min), min(high, torch.iinfo(dtype).max)
            t = torch.randint(low, high + 1, shape, generator=g).to(dtype)
        if len(shape) > 1 and self.rng.random() < 0.4:  # not contiguous
            t = t.transpose(0, -1).contiguous().transpose(0, -1)
        if shape and self.rng.random() < 0.2:  # the same row again and again
            t = t[:1].expand(t.shape)
        return t

    def index(self, size: int, depth: int) -> str:
        choice = self.rng.random()
        if choice < 0.6 or depth <= 0:
            return self.rng.choice(("h", "q", "kv", "kv"))
        if choice < 0.7:
            return str(self.rng.randrange(-size, size))
        return self.integer(depth)

    def integer(self, depth: int) -> str:
        rng = self.rng
        if depth <= 0 or rng.random() < 0.15:
            leaf = rng.randrange(8)
            if leaf < 6:
                return ("q", "kv", "kv", "q", "h", "b")[leaf]
            value = rng.choice((-3, -1, 0, 1, 2, 3, 5, 16, 31, 100))
            return str(value) if leaf == 6 else self.scalar(value, I32)
        op = rng.choice(("add", "sub", "sub", "mul", "floordiv", "rem", "truncdiv", "neg", "abs", "min", "max", "and", "or",
                         "xor", "not", "shl", "shr", "where", "cast", "load", "floordiv", "rem"))
        if op == "load":
            return self.load((torch.int8, torch.uint8, torch.int16, torch.int32, torch.int64), -40, 200, depth)
        if op == "where":
            return self.emit(op, I32, self.boolean(depth - 1), self.integer(depth - 1), self.integer(depth - 1))
        if op == "cast":
            return self.emit(op, I32, self.boolean(depth - 1))
        if op in ("neg", "abs", "not"):
            return self.emit(op, I32, self.integer(depth - 1))
        if op in ("shl", "shr"):
            return self.emit(op, I32, self.integer(depth - 1), str(rng.randrange(-1, 34) if rng.random() < 0.2 else rng.randrange(5)))
        if op in ("floordiv", "rem", "truncdiv") and rng.random() < 0.7:
            by = rng.choice((1, 2, 3, 4, 7, 8, 24, 64, -3, 0))
            return self.emit(op, I32, self.integer(depth - 1), str(by) if rng.random() < 0.6 else self.scalar(by, I32))
        return self.emit(op, I32, self.integer(depth - 1), self.integer(depth - 1))

    def boolean(self, depth: int) -> str:
        rng = self.rng
        if depth <= 0 or rng.random() < 0.1:
            return self.emit("ge", BOOL, "q", "kv") if rng.random() < 0.8 else rng.choice(("true", "false"))
        op = rng.choice(("eq", "ne", "lt", "le", "gt", "ge", "ge", "lt", "and", "and", "or", "or", "xor", "not", "where", "load",
                         "cast", "table"))
        if op == "load":
            return self.load((torch.bool,), 0, 1, depth)
        if op == "cast":
            return self.emit(op, BOOL, self.integer(depth - 1))
        if op == "not":
            return self.emit(op, BOOL, self.boolean(depth - 1))
        if op == "where":
            return self.emit(op, BOOL, *[self.boolean(depth - 1) for _ in range(3)])
        if op in ("and", "or", "xor"):
            return self.emit(op, BOOL, self.boolean(depth - 1), self.boolean(depth - 1))
        if op == "table":  # exact whatever the precision: loaded, never computed
            return self.emit(rng.choice(("lt", "ge")), BOOL, self.load((torch.float16, torch.bfloat16), 0, 0, depth), "0.25")
        return self.emit(op, BOOL, self.integer(depth - 1), self.integer(depth - 1))

    def small(self, depth: int) -> str:
        """A float of the indices, at most about 20 and well conditioned."""
        rng = self.rng
        op = rng.choice(("load", "cast", "tanh", "sigmoid", "exp", "exp2", "log", "log2", "sqrt", "rsqrt", "sin", "cos", "pow",
                         "floor", "ceil", "add", "mul", "min", "max", "where", "div", "rem", "floordiv"))
        if depth <= 0 or op == "load":
            return self.load((torch.float32, torch.float16, torch.bfloat16, torch.float64), 0, 0, depth)
        if op == "cast":
            return self.emit("mul", F32, self.count(depth), f32_text(rng.choice((0.0625, 0.1, -0.125))))
        if op in ("floor", "ceil"):  # halves are exact, so that the step is the same in any precision
            return self.emit(op, F32, self.emit("mul", F32, self.count(depth), "0.5"))
        if op in ("rem", "floordiv"):
            return self.emit(op, F32, self.count(depth), f32_text(rng.choice((4.0, 3.0, -5.0, 2.5))))
        x = self.small(depth - 1)
        size = self.emit("abs", F32, x)
        if op in ("tanh", "sigmoid", "sin", "cos"):
            return self.emit(op, F32, x)
        if op in ("exp", "exp2"):
            return self.emit(op, F32, self.emit("neg", F32, size))
        above = self.emit("add", F32, size, "1.0")
        if op in ("log", "log2", "sqrt", "rsqrt"):
            return self.emit(op, F32, above)
        if op == "pow":
            return self.emit(op, F32, above, f32_text(rng.choice((0.5, -1.5, 0.75))))
        y = self.small(depth - 1)
        if op == "div":
            return self.emit(op, F32, y, above)
        if op == "where":
            return self.emit(op, F32, self.boolean(depth - 1), x, y)
        if op == "mul":
            return self.emit(op, F32, self.emit("tanh", F32, x), y)
        return self.emit(op, F32, x, y)

    def count(self, depth: int) -> str:
        """0 to 31, as a float."""
        return self.emit("cast", F32, self.emit("rem", I32, self.integer(depth - 1), "32"))

    def score(self, depth: int) -> str:
        """A function of the score whose slope is at most about 2."""
        rng = self.rng
        if depth <= 0:
            return "score"
        op = rng.choice(("bias", "bias", "scale", "cap", "where", "min", "max", "abs", "neg", "sigmoid", "decay", "log", "sin"))
        x = self.score(depth - 1)
        if op == "bias":
            return self.emit(rng.choice(("add", "sub")), F32, x, self.small(depth - 1))
        if op == "scale":
            return self.emit("mul", F32, x, self.emit("tanh", F32, self.small(depth - 1)))
        if op == "cap":
            cap = self.scalar(rng.choice((5.0, 20.0, 30.5)), F32)
            return self.emit("mul", F32, self.emit("tanh", F32, self.emit("div", F32, x, cap)), cap)
        if op == "where":
            return self.emit(op, F32, self.boolean(depth - 1), x, self.score(depth - 1))
        if op in ("min", "max"):
            return self.emit(op, F32, x, self.small(depth - 1))
        if op in ("abs", "neg", "sin"):
            return self.emit(op, F32, x)
        if op == "sigmoid":
            return self.emit("mul", F32, self.emit(op, F32, x), "4.0")
        size = self.emit("abs", F32, x)
        if op == "decay":
            return self.emit("exp", F32, self.emit("neg", F32, size))
        return self.emit("log", F32, self.emit("add", F32, size, "1.0"))


def random_program(seed: int, at: Extent = Extent(2, 4, 32, 48), depth: int = 5) -> Traced:
    """The Program of this seed, with its captured tensors (on the CPU) and scalars: a score, a mask or both."""
    for attempt in range(100):
        rng = random.Random(f"{seed}:{attempt}")
        draw = _Draw(rng, at)
        sections: list[tuple[list[tuple[str, ...]], str] | None] = []
        which = rng.choice(("score", "mask", "both", "both"))
        for name in ("score", "mask"):
            if which not in (name, "both"):
                sections.append(None)
                continue
            draw.raw = []
            deep = rng.randrange(1, depth + 1)
            result = draw.score(deep) if name == "score" else draw.boolean(deep)
            sections.append((draw.raw, result))
        described = [(dtype_name(t.dtype), t.dim()) for t in draw.tensors]
        form = canonical(sections[0], sections[1], described, [k for _, k in draw.scalars])
        if form.text and form.text.count("\n") < 300:
            return Traced(form.text, [draw.tensors[i] for i in form.tensors], [draw.scalars[i][0] for i in form.scalars])
    raise AssertionError(f"no Program came of seed {seed}")
