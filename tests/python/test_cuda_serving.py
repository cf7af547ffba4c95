"""Serving on a GPU: streams, graphs, torch.compile with CUDA graphs, devices, threads, autocast, gradients, opcheck. Values
are held against torch's own on the same GPU."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
import threading
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import cuda_registry as cr
import pytest
import serving_registry as sr
import torch
import torch.nn.functional as F
from torch import Tensor

import kgen
from kgen import devices
from kgen.errors import BadInput

pytestmark = [pytest.mark.cuda, pytest.mark.usefixtures("nothing_shipped")]

GPU = torch.device("cuda", 0)
ops = torch.ops.kgen


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return cr.serving(tmp_path_factory.mktemp("serving"))


@pytest.fixture
def served(registry: Path) -> Iterator[None]:
    kgen.load(registry)
    yield
    kgen.unload(registry)


def attention_inputs(seed: int = 0, length: int = 70, device: torch.device = GPU) -> tuple[Tensor, Tensor, Tensor]:
    g = devices.generator(device, seed)
    q, k, v = (torch.randn(2, 4, length, 16, generator=g, device=device) for _ in range(3))
    return q, k, v


def kernel_of(*call: Any, **named: Any) -> str | None:
    (decision,) = kgen.why(*call, **named).decisions
    return decision.kernel


def close(got: Tensor, want: Tensor) -> None:
    torch.testing.assert_close(got, want, rtol=2e-5, atol=2e-5)


def python(code: str, **env: str) -> subprocess.CompletedProcess[str]:
    """Runs code in a new process, with torch, kgen and cuda_registry imported."""
    head = f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r}); import torch, kgen, cuda_registry as cr\n"
    return subprocess.run(
        [sys.executable, "-c", head + textwrap.dedent(code)],
        env={**os.environ, **env}, capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip


# Values


@pytest.mark.parametrize("shape", [(1, 1), (3, 127), (5, 128), (64, 1000), (2, 3, 4099)])
def test_softmax(served: None, shape: tuple[int, ...]) -> None:
    x = torch.randn(shape, device=GPU)
    assert kernel_of("softmax", x, -1) == "softmax/v1"
    close(ops.softmax(x, -1), torch.softmax(x, -1))


def test_attention(served: None) -> None:
    q, k, v = attention_inputs()
    for causal in (False, True):
        assert kernel_of("attention", q, k, v, is_causal=causal) == "attention/v1"
        close(ops.attention(q, k, v, is_causal=causal), F.scaled_dot_product_attention(q, k, v, is_causal=causal))
    slopes = torch.tensor([0.5, 0.25, 0.125, 0.0625], device=GPU)
    got, lse = kgen.attention(
        q, k, v, score_mod=lambda s, b, h, i, j: s - slopes[h] * (i - j), mask_mod=lambda b, h, i, j: i >= j, return_lse=True
    )
    at = torch.arange(70, device=GPU)
    bias = -slopes[:, None, None] * (at[:, None] - at[None, :])
    scores = (q @ k.mT / 4 + bias).masked_fill(at[None, :] > at[:, None], -torch.inf)
    close(got, torch.softmax(scores, -1) @ v)
    close(lse, torch.logsumexp(scores, -1))


def test_what_torch_is_fast_at_is_left_to_it(tmp_path: Path) -> None:
    """A pin for any Program takes what FlexAttention says, and neither is_causal nor a mask, which torch has kernels for."""
    cr.promote(tmp_path, "attention", cr.ATTENTION, [cr.sr.attention_key("*")])
    kgen.load(tmp_path)
    try:
        q, k, v = attention_inputs()
        mask = torch.rand(70, 70, device=GPU) < 0.5
        for named in ({"is_causal": True}, {"attn_mask": mask}, {"attn_mask": mask.float()}):
            assert kernel_of("attention", q, k, v, **named) is None
            close(ops.attention(q, k, v, **named), F.scaled_dot_product_attention(q, k, v, **named))
        causal = {"mask_mod": lambda b, h, i, j: i >= j}
        assert kernel_of(kgen.attention, q, k, v, **causal) is None
        assert kernel_of(kgen.attention, q, k, v, score_mod=lambda s, b, h, i, j: s + 0.5 * (j - i), **causal) == "attention/v1"
    finally:
        kgen.unload(tmp_path)


def test_nothing_serves_a_half_precision_call_that_no_kernel_is_for(served: None) -> None:
    x = torch.randn(8, 64, device=GPU, dtype=torch.float16)
    assert kernel_of("softmax", x, 1) is None
    assert torch.equal(ops.softmax(x, 1), torch.softmax(x, 1))


def test_memory_does_not_grow(served: None) -> None:
    x = torch.randn(64, 1000, device=GPU)
    q, k, v = attention_inputs()
    for _ in range(50):
        ops.softmax(x, 1), ops.attention(q, k, v, is_causal=True)
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    for _ in range(2000):
        ops.softmax(x, 1), ops.attention(q, k, v, is_causal=True)
    torch.cuda.synchronize()
    assert torch.cuda.memory_allocated() == before


# Streams


def test_a_call_is_ordered_by_the_current_stream(served: None) -> None:
    """What it reads is written late on that stream; on any other the call would read zeros."""
    x = torch.zeros(64, 1000, device=GPU)
    value = torch.randn(64, 1000, device=GPU)
    ops.softmax(x, 1)
    torch.cuda.synchronize()
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        torch.cuda._sleep(100_000_000)
        x.copy_(value)
        y = ops.softmax(x, 1)
        z = y * 2
    stream.synchronize()
    close(z, 2 * torch.softmax(value, 1))


def test_eight_threads_on_two_streams(served: None) -> None:
    x = [torch.randn(32 + i, 500, device=GPU) for i in range(8)]
    want = [torch.softmax(t, 1) for t in x]
    streams = [torch.cuda.Stream(), torch.cuda.Stream()]
    torch.cuda.synchronize()
    wrong: list[str] = []

    def work(i: int) -> None:
        try:
            with torch.no_grad(), torch.cuda.stream(streams[i % 2]):
                for _ in range(200):
                    y = ops.softmax(x[i], 1)
                streams[i % 2].synchronize()
                close(y, want[i])
        except Exception as e:  # noqa: BLE001 - it is the test's to show
            wrong.append(f"{i}: {e}")

    threads = [threading.Thread(target=work, args=(i,)) for i in range(8)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert wrong == []


# Graphs


def test_a_graph_after_warming_up(served: None) -> None:
    q, k, v = attention_inputs()
    x = torch.randn(64, 1000, device=GPU)

    def model(q: Tensor, k: Tensor, v: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        return ops.attention(q, k, v, is_causal=True), ops.softmax(x, 1)

    found = kgen.warmup(model, (q, k, v, x))
    assert [d.kernel for d in found.decisions] == ["attention/v1", "softmax/v1"]
    graph = torch.cuda.CUDAGraph()
    with torch.no_grad(), torch.cuda.graph(graph):
        out, soft = model(q, k, v, x)
    for seed in range(3):
        for t, new in zip((q, k, v), attention_inputs(seed + 10), strict=True):
            t.copy_(new)
        x.normal_()
        graph.replay()
        close(out, F.scaled_dot_product_attention(q, k, v, is_causal=True))
        close(soft, torch.softmax(x, 1))


def test_a_graph_without_warming_up_is_one_clear_error(registry: Path, fresh_home: Path) -> None:
    done = python(
        f"""
        kgen.load({str(registry)!r})
        x = torch.randn(8, 64, device="cuda")
        torch.cuda.synchronize()
        try:
            with torch.no_grad(), torch.cuda.graph(torch.cuda.CUDAGraph()):
                torch.ops.kgen.softmax(x, 1)
        except RuntimeError as e:
            print("SAID", str(e).splitlines()[0])
        """,
        KGEN_REGISTRY="",
    )
    assert done.returncode == 0, done.stderr
    assert "SAID" in done.stdout and "warmup" in done.stdout, done.stdout + done.stderr


def test_a_fallback_in_a_graph_compiles_nothing(recwarn: pytest.WarningsRecorder) -> None:
    """Without a Kernel, a long Program: plain torch, which a graph can hold."""
    q, k, v = (torch.randn(1, 2, 3000, 16, device=GPU) for _ in range(3))
    call = lambda: kgen.attention(q, k, v, score_mod=lambda s, b, h, i, j: s + 0.01 * (i - j))  # noqa: E731
    want = dense(q, k, v)
    with torch.no_grad():
        from kgen import _fallback

        _fallback.dense_attention(q, k, v, [], [], PROGRAM, None)  # cuBLAS wants its workspace before
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            out = call()
        graph.replay()
    torch.testing.assert_close(out, want, rtol=1e-4, atol=1e-4)


PROGRAM = "program 1\nscore\n%0 = sub int32 q kv\n%1 = cast float32 %0\n%2 = mul float32 0.01 %1\n%3 = add float32 score %2\nreturn %3\n"


def dense(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    at = torch.arange(q.shape[2], device=q.device)
    scores = q.double() @ k.double().mT / q.shape[-1] ** 0.5 + 0.01 * (at[:, None] - at[None, :])
    return (torch.softmax(scores, -1) @ v.double()).to(q.dtype)


@pytest.mark.slow
def test_flex_attention_serves_a_program_without_a_kernel() -> None:
    q, k, v = (torch.randn(1, 2, 3000, 64, device=GPU) for _ in range(3))
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        got, lse = kgen.attention(q, k, v, score_mod=lambda s, b, h, i, j: s + 0.01 * (i - j), return_lse=True)
    torch.testing.assert_close(got, dense(q, k, v), rtol=2e-3, atol=2e-3)
    assert lse.isfinite().all() and not any("could not be compiled" in str(w.message) for w in said)


# torch.compile


@pytest.mark.slow
@pytest.mark.parametrize("mode", [None, "reduce-overhead"])
def test_compiled(served: None, mode: str | None) -> None:
    def model(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return ops.softmax(ops.attention(q, k, v, is_causal=True).flatten(0, 2) * 3, -1) + 1

    def plain(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return torch.softmax(F.scaled_dot_product_attention(q, k, v, is_causal=True).flatten(0, 2) * 3, -1) + 1

    torch._dynamo.reset()
    compiled = torch.compile(model, mode=mode, fullgraph=True)
    with torch.no_grad():
        kgen.warmup(model, attention_inputs())
        for seed in range(6):
            given = attention_inputs(seed)
            close(compiled(*given).clone(), plain(*given))


@pytest.mark.parametrize("name", ["softmax", "attention", "attention_mod"])
def test_opcheck(served: None, name: str) -> None:
    q, k, v = attention_inputs(length=9)
    table = torch.randn(4, device=GPU)
    program = "program 1\ntensor t0 float32 1\nscore\n%0 = load float32 t0 h\n%1 = add float32 score %0\nreturn %1\n"
    calls: dict[str, tuple[Any, ...]] = {
        "softmax": (torch.randn(3, 8, device=GPU), -1),
        "attention": (q, k, v),
        "attention_mod": (q, k, v, [table], [], program),
    }
    torch.library.opcheck(getattr(ops, name).default, calls[name])
    inner = {"softmax": "_softmax", "attention": "_attention"}.get(name)
    if name == "softmax":
        torch.library.opcheck(getattr(ops, str(inner)).default, calls[name])


# Gradients, autocast


def test_gradients_are_torchs(served: None) -> None:
    def run(f: Callable[..., Tensor]) -> list[Tensor]:
        leaves = [t.requires_grad_() for t in attention_inputs(3)]
        f(*leaves).square().sum().backward()
        return [t.grad for t in leaves]

    ours = run(lambda q, k, v: ops.attention(q, k, v, is_causal=True))
    theirs = run(lambda q, k, v: F.scaled_dot_product_attention(q, k, v, is_causal=True))
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)
    x = torch.randn(5, 33, device=GPU, requires_grad=True)
    (g,) = torch.autograd.grad(ops.softmax(x, 1).square().sum(), x)
    (w,) = torch.autograd.grad(torch.softmax(x, 1).square().sum(), x)
    close(g, w)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("gradients", [True, False])
def test_autocast_is_as_torchs(served: None, dtype: torch.dtype, gradients: bool) -> None:
    q, k, v = attention_inputs()
    x = torch.randn(4, 40, device=GPU, dtype=dtype)
    with torch.autocast("cuda", dtype=dtype), torch.set_grad_enabled(gradients):
        assert ops.attention(q, k, v).dtype == F.scaled_dot_product_attention(q, k, v).dtype == dtype
        assert ops.softmax(x, 1).dtype == torch.softmax(x, 1).dtype == torch.float32
        assert ops.softmax(q, 1).dtype == torch.softmax(q, 1).dtype
        out, _ = ops.attention_mod(q, k, v, [], [], PROGRAM)
        assert out.dtype == dtype
        torch.testing.assert_close(ops.attention(q, k, v), F.scaled_dot_product_attention(q, k, v), rtol=2e-2, atol=2e-2)


# Devices


def test_tensors_on_the_wrong_device(served: None) -> None:
    q, k, v = attention_inputs()
    with pytest.raises(RuntimeError, match=r"(?i)same device|is on cpu|on cpu"):
        ops.attention(q, k.cpu(), v)
    with pytest.raises(RuntimeError, match=r"(?i)same device|another device|on cpu"):
        ops.attention_mod(q, k, v.cpu(), [], [], PROGRAM)
    slopes = torch.ones(4)
    with pytest.raises(BadInput, match=r"captured tensor 0, of shape \(4,\), is on cpu; query is on cuda:0"):
        kgen.attention(q, k, v, score_mod=lambda s, b, h, i, j: s - slopes[h])
    from torch.nn.attention.flex_attention import create_block_mask

    mask = create_block_mask(lambda b, h, i, j: i >= j, None, None, 70, 70, device="cpu")
    with pytest.raises(BadInput, match=r"the block_mask is on cpu; query is on cuda:0: make it there"):
        kgen.attention(q, k, v, block_mask=mask)
    scalar = torch.tensor(0.5)  # one number of the CPU goes with any device, as in torch
    close(kgen.attention(q, k, v, score_mod=lambda s, b, h, i, j: s * scalar), F.scaled_dot_product_attention(q, k, v, scale=0.125))


def two_gpus() -> None:
    if torch.cuda.device_count() < 2:
        pytest.skip(f"needs two GPUs; torch sees {torch.cuda.device_count()}")


def test_the_second_gpu(served: None) -> None:
    """Whichever device is current."""
    two_gpus()
    other = torch.device("cuda", 1)
    for current in (0, 1):
        with torch.cuda.device(current):
            q, k, v = attention_inputs(device=other)
            x = torch.randn(5, 300, device=other)
            assert kernel_of("softmax", x, 1) == "softmax/v1"
            y = ops.softmax(x, 1)
            assert y.device == other
            close(y, torch.softmax(x, 1))
            close(ops.attention(q, k, v), F.scaled_dot_product_attention(q, k, v))
            z = torch.randn(5, 300, device=GPU)
            close(ops.softmax(z, 1), torch.softmax(z, 1))
    with pytest.raises(RuntimeError, match=r"(?i)same device|cuda:0"):
        ops.attention(q, k.to(GPU), v)


def test_a_graph_on_the_second_gpu(served: None) -> None:
    two_gpus()
    with torch.cuda.device(1):
        x = torch.randn(5, 300, device="cuda:1")
        kgen.warmup(lambda x: ops.softmax(x, 1), x)
        graph = torch.cuda.CUDAGraph()
        with torch.no_grad(), torch.cuda.graph(graph):
            y = ops.softmax(x, 1)
        x.normal_()
        graph.replay()
        close(y, torch.softmax(x, 1))


# Kernels that fail


def test_a_fault_is_named_and_the_kernel_is_not_served_again(tmp_path: Path, fresh_home: Path) -> None:
    """In processes of their own: the context is lost with it."""
    folder = tmp_path / "generated"
    cr.promote(folder, "softmax", cr.FAULT, [sr.softmax_key()])
    code = f"""
        kgen.load({str(folder)!r})
        x = torch.randn(4, 64, device="cuda")
        try:
            why = kgen.warmup(lambda x: torch.ops.kgen.softmax(x, 1), x)
            print("SERVED", why)
        except RuntimeError as e:
            print("FAILED", str(e).splitlines()[0])
            try:
                torch.ops.kgen.softmax(x, 1)
            except RuntimeError as e:
                print("AGAIN", str(e).splitlines()[0])
    """
    first = python(code, KGEN_REGISTRY="")
    assert "FAILED" in first.stdout, first.stdout + first.stderr
    second = python(code, KGEN_REGISTRY="")
    assert "SERVED softmax: fallback to torch" in second.stdout, second.stdout + second.stderr
    assert "quarantine" in second.stdout.lower()


def test_what_does_not_compile_falls_back_with_one_warning(tmp_path: Path, fresh_home: Path) -> None:
    folder = tmp_path / "generated"
    cr.promote(folder, "softmax", cr.SOFTMAX.replace("float top =", "flaot top ="), [sr.softmax_key()])
    kgen.load(folder)
    try:
        x = torch.randn(4, 64, device=GPU)
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            for _ in range(3):
                assert torch.equal(ops.softmax(x, 1), torch.softmax(x, 1))
        assert len([w for w in said if "softmax" in str(w.message)]) == 1
    finally:
        kgen.unload(folder)
