"""kgen.patch: same values, and everything about the module that is not its speed stays as it was.

fallback=True puts the Ops in whatever serves them, so that these tests need no promoted Kernel; what would be
served is tested in test_serving.py.
"""

from __future__ import annotations

import copy
import inspect
import io
import pickle
import sys
import warnings
from pathlib import Path

import pytest
import torch
from torch import nn

MODELS = Path(__file__).resolve().parent.parent / "models"
sys.path.insert(0, str(MODELS))
sys.path.insert(0, str(MODELS.parent.parent / "examples"))

import architectures  # noqa: E402
import attentions  # noqa: E402

import kgen  # noqa: E402
import kgen.patch as _load  # noqa: E402, F401
from kgen import learn  # noqa: E402
from kgen.errors import BadInput  # noqa: E402
from kgen.plans import Plan  # noqa: E402

patching = sys.modules["kgen.patch"]


class Net(nn.Module):
    """Four kinds of attention and a softmax, one below another."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = attentions.RelativeTable(), attentions.Causal(), attentions.Grouped()
        self.norm = nn.LayerNorm(attentions.WIDTH)
        self.head = attentions.Classifier()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.c(x + self.b(self.norm(x + self.a(x)))))


@pytest.fixture
def runs(monkeypatch: pytest.MonkeyPatch) -> list[Plan]:
    """The Plans that ran, in order."""
    ran: list[Plan] = []
    run = Plan.run

    def counted(self: Plan, *args):
        ran.append(self)
        return run(self, *args)

    monkeypatch.setattr(Plan, "run", counted)
    return ran


def patched(module: nn.Module, *inputs) -> nn.Module:
    return kgen.patch(module.eval(), inputs, fallback=True, quiet=True)


@pytest.fixture(scope="module")
def first_net() -> tuple[nn.Module, torch.Tensor, torch.Tensor]:
    torch.manual_seed(0)
    module, x = Net().eval(), torch.randn(2, 24, attentions.WIDTH)
    with torch.no_grad():
        want = module(x)
    return patched(module, x), x, want


@pytest.fixture
def net(first_net) -> tuple[nn.Module, torch.Tensor, torch.Tensor]:
    """A patched net, its input, and what it gave before. A copy for each test, patched like the first."""
    module, x, want = first_net
    return copy.deepcopy(module), x, want


ALL = {**attentions.VARIANTS, "classifier": attentions.Classifier}


@pytest.mark.parametrize("name", ALL)
@torch.no_grad()
def test_variant_keeps_its_values(name: str, runs: list[Plan]) -> None:
    torch.manual_seed(1)
    module = ALL[name]().eval()
    inputs = attentions.example(module)
    want = module(*inputs)
    patched(module, *inputs)
    runs.clear()
    torch.testing.assert_close(module(*inputs), want, rtol=1e-4, atol=1e-5)
    assert len(runs) == 1
    names = [str(n) for n in runs[0].code.__code__.co_names]
    assert "kgen" in names and "softmax" not in {n for n in names if name != "classifier"}
    # Other values than the captured ones.
    other = tuple(torch.randn_like(x) if x.is_floating_point() else x for x in inputs)
    kgen.unpatch(again := copy.deepcopy(module))
    torch.testing.assert_close(module(*other), again(*other), rtol=1e-4, atol=1e-5)
    assert len(runs) == 2


@torch.no_grad()
def test_what_the_model_does_not_reach_is_not_called_replaced(runs: list[Plan]) -> None:
    """torch's encoder layer has a fused path of its own, which it leaves when it is hooked."""
    module, x = architectures.encoder().eval(), torch.randn(2, 12, 32)
    want = module(x)
    patched(module, x)
    assert patching.patched_modules(module) == {}
    assert "does not call it when nothing watches" in str(patching.patch_report(module))
    torch.testing.assert_close(module(x), want)


@pytest.mark.parametrize("name", [n for n in architectures.ARCHITECTURES if n != "encoder"])
@torch.no_grad()
def test_architecture_keeps_its_values(name: str, runs: list[Plan]) -> None:
    torch.manual_seed(2)
    module = architectures.ARCHITECTURES[name]().eval()
    inputs = architectures.inputs_of(module)
    want = module(*inputs)
    patched(module, *inputs)
    assert patching.patched_modules(module), str(patching.patch_report(module))
    runs.clear()
    torch.testing.assert_close(module(*inputs), want, rtol=1e-4, atol=1e-5)
    assert runs


@torch.no_grad()
def test_the_example(runs: list[Plan]) -> None:
    import gpt

    torch.manual_seed(3)
    model, tokens = gpt.Model(128, 64, 4, 3).eval(), torch.randint(0, 128, (1, 48))
    want = model(tokens)
    patched(model, tokens)
    norms = {"norm", *(f"blocks.{i}.norm{k}" for i in range(3) for k in (1, 2))}
    assert set(patching.patched_modules(model)) == {"", *(f"blocks.{i}.attention" for i in range(3)), *norms}
    runs.clear()
    torch.testing.assert_close(model(tokens), want, rtol=1e-4, atol=1e-6)
    assert len(runs) == 1  # the softmax at the end takes the whole forward, attention included


# What stays


@torch.no_grad()
def test_smallest_submodules_are_patched(net, runs: list[Plan]) -> None:
    module, x, want = net
    assert patching.patched_modules(module) == {"a": 1, "b": 1, "c": 1, "norm": 1, "head": 1}
    runs.clear()
    torch.testing.assert_close(module(x), want, rtol=1e-4, atol=1e-6)
    assert len(runs) == 5


def test_class_state_dict_and_signature_stay(net) -> None:
    module, _, _ = net
    plain = Net()
    assert type(module.a) is attentions.RelativeTable and isinstance(module.a, attentions.Base)
    assert list(module.state_dict()) == list(plain.state_dict())
    assert [n for n, _ in module.named_modules()] == [n for n, _ in plain.named_modules()]
    assert inspect.signature(module.a.forward) == inspect.signature(plain.a.forward)
    assert module.a.forward.__name__ == "forward"


@torch.no_grad()
def test_deepcopy_is_patched_and_apart(net, runs: list[Plan]) -> None:
    module, x, want = net
    other = copy.deepcopy(module)
    assert other.a.forward.__self__ is other.a
    other.head.linear.weight.zero_()
    runs.clear()
    torch.testing.assert_close(module(x), want, rtol=1e-4, atol=1e-6)
    assert not torch.allclose(other(x), want, rtol=1e-3)
    assert len(runs) == 10
    part = copy.deepcopy(module.a)
    part.out.weight.zero_()
    torch.testing.assert_close(part(x), part.out.bias.expand(2, 24, -1))


@torch.no_grad()
def test_pickle_and_save_hold_the_plain_model(net, runs: list[Plan]) -> None:
    module, x, want = net
    data = pickle.dumps(module)
    assert b"kgen" not in data
    file = io.BytesIO()
    torch.save(module, file)
    file.seek(0)
    runs.clear()
    for loaded in (pickle.loads(data), torch.load(file, weights_only=False)):
        torch.testing.assert_close(loaded(x), want)
        assert not patching.patched_modules(loaded)
    assert runs == []


@torch.no_grad()
def test_new_weights_are_seen(net, runs: list[Plan]) -> None:
    module, x, _ = net
    torch.manual_seed(9)
    plain = Net().eval()
    module.load_state_dict(plain.state_dict())
    runs.clear()
    torch.testing.assert_close(module(x), plain(x), rtol=1e-4, atol=1e-6)
    assert len(runs) == 5
    module.a.qkv.weight = nn.Parameter(plain.a.qkv.weight * 2)
    plain.a.qkv.weight.mul_(2)
    torch.testing.assert_close(module(x), plain(x), rtol=1e-4, atol=1e-6)
    assert len(runs) == 10


@torch.no_grad()
def test_hooks_fire(net, runs: list[Plan]) -> None:
    module, x, want = net
    seen: list[str] = []
    handle = module.a.register_forward_hook(lambda *_: seen.append("own"))
    runs.clear()
    module(x)
    handle.remove()
    assert seen == ["own"] and len(runs) == 5
    # One below would be missed by the rewritten graph.
    handle = module.a.qkv.register_forward_pre_hook(lambda *_: seen.append("below"))
    runs.clear()
    torch.testing.assert_close(module(x), want, rtol=1e-4, atol=1e-6)
    assert seen == ["own", "below"] and len(runs) == 4
    handle.remove()
    module(x)
    assert len(runs) == 9


@torch.no_grad()
def test_nothing_is_left_behind(net) -> None:
    torch.manual_seed(4)
    module = Net().eval()
    buffers = {k: v.clone() for k, v in module.named_buffers()}
    x = torch.randn(2, 24, attentions.WIDTH)
    copy_of_x, state = x.clone(), torch.get_rng_state()
    patched(module, x)
    assert torch.equal(state, torch.get_rng_state()) and torch.equal(x, copy_of_x)
    assert all(torch.equal(v, buffers[k]) for k, v in module.named_buffers())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in module.modules())
    assert all(p.grad is None and p.requires_grad for p in module.parameters())
    kgen.unpatch(module)
    assert not any("forward" in m.__dict__ for m in module.modules())
    assert all(m.__dict__.keys() == n.__dict__.keys() for m, n in zip(module.modules(), Net().modules(), strict=True))


# Calls that run the original


DIFFERENT = {
    "length": lambda m, x: x[:, :16],
    "batch": lambda m, x: x[:1],
    "strides": lambda m, x: x.transpose(0, 1).contiguous().transpose(0, 1),
    "dtype": lambda m, x: (m.double(), x.double())[1],
}


@pytest.mark.parametrize("name", DIFFERENT)
@torch.no_grad()
def test_other_inputs_run_the_original(name: str, runs: list[Plan]) -> None:
    torch.manual_seed(5)
    module = attentions.RelativeTable().eval()
    x = torch.randn(2, 24, attentions.WIDTH)
    patched(module, x)
    y = DIFFERENT[name](module, x)
    runs.clear()
    got = module(y)
    assert runs == []
    kgen.unpatch(module)
    assert torch.equal(got, module(y))


@torch.no_grad()
def test_mode_and_attributes_run_the_original(runs: list[Plan]) -> None:
    module = attentions.Sdpa(False).eval()
    x = torch.randn(2, 24, attentions.WIDTH)
    patched(module, x)
    runs.clear()
    module.is_causal = True
    causal = module(x)
    assert runs == []
    module.is_causal = False
    assert not torch.allclose(module(x), causal, atol=1e-3) and len(runs) == 1
    module.train()
    module(x)
    assert len(runs) == 1
    module.eval()
    module.drop.p = 0.3
    module(x)
    assert len(runs) == 1
    module.drop.p = 0.1
    module.out = nn.Sequential(module.out)
    module(x)
    assert len(runs) == 1


@torch.no_grad()
def test_a_branch_by_argument_runs_the_original(runs: list[Plan]) -> None:
    class Flagged(attentions.Base):
        def forward(self, x: torch.Tensor, causal: bool = False, *, bias: torch.Tensor | None = None) -> torch.Tensor:
            q, k, v = self.split(x)
            s = self.scores(q, k)
            if causal:
                s = s.masked_fill(torch.ones(24, 24).triu(1).bool(), float("-inf"))
            if bias is not None:
                s = s + bias
            return self.out((s.softmax(-1) @ v).transpose(1, 2).reshape(x.shape))

    torch.manual_seed(6)
    module, x, bias = Flagged().eval(), torch.randn(2, 24, 32), torch.randn(24, 24)
    plain = copy.deepcopy(module)
    kgen.patch(module, ((x, True), {"bias": bias}), fallback=True, quiet=True)
    runs.clear()
    torch.testing.assert_close(module(x, True, bias=bias), plain(x, True, bias=bias), rtol=1e-4, atol=1e-5)
    assert len(runs) == 1
    assert torch.equal(module(x, False, bias=bias), plain(x, False, bias=bias))
    assert torch.equal(module(x, True), plain(x, True))
    assert torch.equal(module(x), plain(x))
    assert torch.equal(module(x, causal=True, bias=bias), plain(x, causal=True, bias=bias))
    assert len(runs) == 1
    # A second patch adds the other call.
    kgen.patch(module, (x,), fallback=True, quiet=True)
    runs.clear()
    torch.testing.assert_close(module(x), plain(x), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(module(x, True, bias=bias), plain(x, True, bias=bias), rtol=1e-4, atol=1e-5)
    assert len(runs) == 2


@torch.no_grad()
def test_a_buffer_with_other_values_runs_the_original(net, runs: list[Plan]) -> None:
    module, x, _ = net
    module.b.bias[0, 0, 3, 7] = 1.0
    plain = kgen.unpatch(copy.deepcopy(module))
    runs.clear()
    torch.testing.assert_close(module(x), plain(x), rtol=1e-4, atol=1e-6)
    assert len(runs) == 4
    module.b.bias[0, 0, 3, 7] = 0.0
    module(x)
    assert len(runs) == 9


def test_gradients_come_from_the_original_and_are_mentioned_once(net, runs: list[Plan]) -> None:
    module, x, _ = net
    plain = kgen.unpatch(copy.deepcopy(module))
    kgen.patch(module, (x,), fallback=True, quiet=True)
    runs.clear()
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        for m in (module, plain, module):
            m.zero_grad()
            m(x)[:, 0].sum().backward()
    assert runs == []
    for p, q in zip(module.parameters(), plain.parameters(), strict=True):
        assert torch.equal(p.grad, q.grad)
    assert len([w for w in said if "no backward Kernel" in str(w.message)]) == 1
    for p in module.parameters():
        p.requires_grad_(False)
    module(x)
    assert len(runs) == 5
    with torch.inference_mode():
        module(x)
    assert len(runs) == 10


# Around it


@torch.no_grad()
def test_compiles_whole(net) -> None:
    module, x, want = net
    seen: list[str] = []

    def backend(gm, example_inputs):
        seen.extend(str(n.target) for n in gm.graph.nodes)
        return gm.forward

    torch._dynamo.reset()
    compiled = torch.compile(module, fullgraph=True, backend=backend)
    torch.testing.assert_close(compiled(x), want, rtol=1e-4, atol=1e-6)
    ops = [s for s in seen if s.startswith("kgen.")]
    assert len(ops) == 5 and not any("matmul" in s for s in seen)
    # Another shape compiles to the original.
    seen.clear()
    y = x[:, :16].contiguous()
    torch.testing.assert_close(compiled(y), kgen.unpatch(copy.deepcopy(module))(y), rtol=1e-4, atol=1e-6)
    assert not any(s.startswith("kgen.") for s in seen)


@pytest.mark.usefixtures("nothing_shipped")
@torch.no_grad()
def test_lazy_patch_learns_at_the_first_call(runs: list[Plan], capsys: pytest.CaptureFixture[str]) -> None:
    torch.manual_seed(7)
    module = Net().eval()
    plain = copy.deepcopy(module)
    assert kgen.patch(module, fallback=True) is module
    assert "first called" in capsys.readouterr().out
    for length in (24, 16, 24):
        x = torch.randn(2, length, attentions.WIDTH)
        torch.testing.assert_close(module(x), plain(x), rtol=1e-4, atol=1e-6)
    out = capsys.readouterr().out
    assert "attention in a, b, c ->" in out and "softmax in head ->" in out
    assert patching.patched_modules(module) == {"a": 2, "b": 2, "c": 2, "norm": 2, "head": 2}
    kgen.unpatch(module)
    assert patching.patched_modules(module) == {} and "forward" not in module.__dict__


@torch.no_grad()
def test_without_a_kernel_nothing_is_replaced_and_that_is_said(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(learn, "served", lambda match, values: ("fallback: none", False))
    module, x = Net().eval(), torch.randn(2, 24, attentions.WIDTH)
    kgen.patch(module, (x,))
    assert patching.patched_modules(module) == {}
    assert "left alone: attention in a, b, c: no Kernel serves it (fallback: none)" in capsys.readouterr().out


@torch.no_grad()
def test_what_cannot_be_patched_says_why() -> None:
    class Counts(attentions.Plain):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("calls", torch.zeros(()))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            self.calls += 1
            return super().forward(x)

    module, x = Counts().eval(), torch.randn(2, 24, attentions.WIDTH)
    patched(module, x)
    assert "writes the buffer calls" in str(patching.patch_report(module))
    assert module.calls == 0
    module = attentions.Plain().train()
    kgen.patch(module, (x,), fallback=True, quiet=True)
    assert "draws random numbers" in str(patching.patch_report(module))
    assert patching.patched_modules(module) == {}
    with pytest.raises(BadInput, match="takes a torch.nn.Module, not a function"):
        kgen.patch(lambda x: x)


@torch.no_grad()
def test_weights_dropped_one_level_up(runs: list[Plan]) -> None:
    """A module that returns its weights is patched where they are dropped, and keeps giving them when asked."""
    torch.manual_seed(8)
    module, x = architectures.DropsWeights().eval(), torch.randn(2, 12, 32)
    plain = copy.deepcopy(module)
    patched(module, x)
    assert "" in patching.patched_modules(module)
    runs.clear()
    torch.testing.assert_close(module(x), plain(x), rtol=1e-4, atol=1e-5)
    assert len(runs) == 1
    assert torch.equal(module.attention(x)[1], plain.attention(x)[1])


def test_inference_mode_from_the_first_call_on(runs: list[Plan]) -> None:
    torch.manual_seed(10)
    module = attentions.Alibi().eval()
    plain = copy.deepcopy(module)
    kgen.patch(module, fallback=True, quiet=True)
    with torch.inference_mode():
        x = torch.randn(2, 24, attentions.WIDTH)
        for _ in range(2):
            torch.testing.assert_close(module(x), plain(x), rtol=1e-4, atol=1e-5)
    assert patching.patched_modules(module) == {"": 1} and len(runs) >= 2


@torch.no_grad()
def test_autocast_is_part_of_the_call(runs: list[Plan]) -> None:
    torch.manual_seed(11)
    module, x = attentions.Alibi().eval(), torch.randn(2, 24, attentions.WIDTH)
    plain = copy.deepcopy(module)
    patched(module, x)
    runs.clear()
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(module(x), plain(x)) and runs == []
        kgen.patch(module, (x,), fallback=True, quiet=True)
        runs.clear()
        got, want = module(x), plain(x)
        assert got.dtype == want.dtype == torch.bfloat16
    ran = len(runs)
    if ran:
        torch.testing.assert_close(got, want, rtol=5e-2, atol=5e-2)
    torch.testing.assert_close(module(x), plain(x), rtol=1e-4, atol=1e-5)
    assert len(runs) == ran + 1


@torch.no_grad()
def test_strided_dtype_and_half_models(runs: list[Plan]) -> None:
    torch.manual_seed(12)
    for dtype, bound in ((torch.bfloat16, 4e-2), (torch.float16, 6e-3)):
        module, x = attentions.RelativeTable().eval().to(dtype), torch.randn(2, 24, attentions.WIDTH).to(dtype)
        plain = copy.deepcopy(module)
        patched(module, x)
        runs.clear()
        torch.testing.assert_close(module(x), plain(x), rtol=bound, atol=bound)
        assert len(runs) == 1


@torch.no_grad()
def test_threads(net) -> None:
    from concurrent.futures import ThreadPoolExecutor

    module, x, want = net

    def call(_: int) -> bool:
        with torch.no_grad():
            return bool(torch.allclose(module(x), want, rtol=1e-4, atol=1e-6))

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(call, range(64)))
