"""Which Kernel serves: discovery, exact and dynamic pins, policies, evidence, reloading; and what happens when a
registry or a Kernel is broken. Whatever the environment decides runs in a process of its own."""

from __future__ import annotations

import json
import os
import shutil
import sys
import textwrap
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import serving_registry as sr
import torch
import torch.nn.functional as F
from kgen_command import Server

import kgen
from kgen import _native
from kgen.errors import BadInput

pytestmark = pytest.mark.usefixtures("nothing_shipped")
CAUSAL = "program 1\nmask\n%0 = ge bool q kv\nreturn %0\n"
DOUBLE = sr.SOFTMAX.replace("FACTOR 1.0f", "FACTOR 2.0f")  # tells who served by its (wrong) result


@pytest.fixture
def registry(tmp_path: Path) -> Iterator[Path]:
    """An empty folder that tests promote into; whatever was loaded from it is closed again."""
    folder = tmp_path / "generated"
    folder.mkdir()
    yield folder
    try:
        kgen.unload(folder)
    except BadInput:
        pass
    kgen.policy("arch")


def decide(*args: Any, **kwargs: Any) -> kgen.serving.Decision:
    (decision,) = kgen.why(*args, **kwargs).decisions
    return decision


@pytest.fixture
def python(kgen_server: Server) -> Callable[..., str]:
    """Runs code in a new process with torch imported and kgen not; its output, stderr too."""

    def run(code: str, *, fails: bool = False, **env: str) -> str:
        done = kgen_server.run(code="import sys, warnings, torch\n" + textwrap.dedent(code), env=env)
        assert (done.code != 0) == fails, done.out + done.err
        return done.out + done.err

    return run


# ---- which pin ----


def test_exact_before_dynamic(registry: Path) -> None:
    sr.promote(registry, "softmax", sr.SOFTMAX, [sr.softmax_key()])
    sr.promote(registry, "softmax", DOUBLE, [sr.softmax_key(M=4, N=8)])
    kgen.load(registry)
    x = torch.randn(4, 8)
    torch.testing.assert_close(torch.ops.kgen.softmax(x, 1), 2 * torch.softmax(x, 1))
    found = decide("softmax", x, 1)
    assert (found.kind, found.kernel, found.verified) == ("exact", "softmax/v2", True)
    y = torch.randn(5, 8)
    torch.testing.assert_close(torch.ops.kgen.softmax(y, 1), torch.softmax(y, 1))
    assert decide("softmax", y, 1).kernel == "softmax/v1"


def test_the_nearest_dynamic_pin_serves(registry: Path) -> None:
    near, far = {"min": 900, "max": 1100}, {"min": 1, "max": 1 << 20}
    sr.promote(registry, "softmax", sr.SOFTMAX, [sr.softmax_key(N=far)])
    sr.promote(registry, "softmax", DOUBLE, [sr.softmax_key(N=near)])
    kgen.load(registry)
    assert decide("softmax", torch.randn(16, 1000), 1).kernel == "softmax/v2"
    assert decide("softmax", torch.randn(16, 1200), 1).kernel == "softmax/v1"


def test_require_decides(registry: Path) -> None:
    odd = sr.SOFTMAX.replace("K == 1 &&", "K == 1 && N % 2 == 1 &&")
    sr.promote(registry, "softmax", odd, [sr.softmax_key()])
    kgen.load(registry)
    assert decide("softmax", torch.randn(4, 7), 1).kind == "dynamic"
    miss = decide("softmax", torch.randn(4, 8), 1)
    assert miss.kind == "fallback" and "N % 2 == 1" in miss.notes


def test_why_names_the_nearest_and_the_field(registry: Path) -> None:
    sr.promote(registry, "softmax", sr.SOFTMAX, [sr.softmax_key(N={"min": 1, "max": 100})])
    kgen.load(registry)
    miss = decide("softmax", torch.randn(2, 128), 1)
    assert miss.nearest == "softmax/v1" and miss.differs == "dims.N is 128, the pin has 1..100"
    assert "nearest is softmax/v1: dims.N is 128, the pin has 1..100" in str(miss)
    assert "float64" in decide("softmax", torch.randn(2, 12).double(), 1).differs
    with pytest.raises(BadInput, match="no open registry has the Op swish"):
        kgen.why("swish", torch.randn(2))
    assert str(kgen.why(torch.relu, torch.randn(2))).startswith("no kgen op was reached")


def test_the_first_registry_wins(registry: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    sr.promote(registry, "softmax", sr.SOFTMAX, [sr.softmax_key()])
    sr.promote(other, "softmax", DOUBLE, [sr.softmax_key()])
    x = torch.randn(3, 4)
    kgen.load(other)
    assert decide("softmax", x, 1).registry == str(other)
    kgen.load(registry)  # what is loaded last comes first
    assert decide("softmax", x, 1).registry == str(registry)
    kgen.unload(registry)
    assert decide("softmax", x, 1).registry == str(other)
    kgen.unload(other)
    with pytest.raises(BadInput, match="is not open"):
        kgen.unload(other)


def test_promotion_and_rollback_take_effect_on_reload(registry: Path) -> None:
    from kgen import _libkgen

    sr.promote(registry, "softmax", sr.SOFTMAX, [sr.softmax_key()])
    kgen.load(registry)
    x = torch.randn(6, 4)
    torch.ops.kgen.softmax(x, 1)
    sr.promote(registry, "softmax", DOUBLE, [sr.softmax_key()])
    assert decide("softmax", x, 1).kernel == "softmax/v1"  # a process changes when it says so
    kgen.reload()
    assert decide("softmax", x, 1).kernel == "softmax/v2"
    torch.testing.assert_close(torch.ops.kgen.softmax(x, 1), 2 * torch.softmax(x, 1))
    _libkgen.registry_rollback(registry, "softmax", "v1")
    kgen.reload()
    assert decide("softmax", x, 1).kernel == "softmax/v1"


def test_registry_lists_what_is_open(registry: Path) -> None:
    _, id_ = sr.promote(registry, "softmax", sr.SOFTMAX, [sr.softmax_key(M=4)])
    kgen.load(registry)
    first = kgen.registry()[0]
    assert first["path"] == str(registry)
    (kernel,) = first["ops"][0]["kernels"]
    assert (kernel["name"], kernel["id"], kernel["arch"]) == ("softmax/v1", id_, sr.ARCH)
    assert kernel["pins"] == [
        {"kind": "dynamic", "dtypes": ["float32"], "program": None, "dims": {"M": 4, "N": [1, 1 << 20], "K": 1}}
    ]


def test_many_shapes_start_the_cache_anew(registry: Path) -> None:
    sr.promote(registry, "softmax", sr.SOFTMAX, [sr.softmax_key()])
    kgen.load(registry)
    buffer = torch.randn(1 << 14)
    for n in range(1, 4200):
        x = buffer[: 2 * n].view(2, n)
        if n % 500 == 0:
            torch.testing.assert_close(torch.ops.kgen.softmax(x, 1), torch.softmax(x, 1))
        else:
            torch.ops.kgen.softmax(x, 1)
    assert _native.counters()["classes"] <= 4096
    x = torch.randn(2, 3)
    torch.testing.assert_close(torch.ops.kgen.softmax(x, 1), torch.softmax(x, 1))


# ---- Programs that the judge did not see ----


def test_an_instantiated_program_is_compared_and_remembered(registry: Path, fresh_home: Path) -> None:
    # Another Kernel than other tests', so that this process has not compared it yet.
    source = sr.ATTENTION + "/* compared */\n"
    sr.promote(registry, "attention", source, [sr.attention_key(None), sr.attention_key("*")])
    kgen.load(registry)
    q = torch.randn(1, 2, 40, 16)
    assert decide("attention", q, q, q).kind == "dynamic"
    assert decide("attention_mod", q, q, q, [], [], CAUSAL).kind == "instantiated"
    assert len(list((fresh_home / "cache" / "instantiated").iterdir())) == 1


def test_a_wrong_instantiated_program_never_gets_out(registry: Path, fresh_home: Path) -> None:
    forgets = sr.ATTENTION.replace("#define MASKED 1", "#define MASKED 0")
    sr.promote(registry, "attention", forgets, [sr.attention_key(None), sr.attention_key("*")])
    kgen.load(registry)
    q = torch.randn(1, 2, 41, 16)
    with pytest.warns(UserWarning, match=r"attention/v1 is wrong on a Program that it was not judged on"):
        output, _ = torch.ops.kgen.attention_mod(q, q, q, [], [], CAUSAL)
    want = F.scaled_dot_product_attention(q, q, q, is_causal=True)
    torch.testing.assert_close(output, want, atol=2e-5, rtol=2e-5)
    torch.testing.assert_close(torch.ops.kgen.attention(q, q, q, is_causal=True), want, atol=2e-5, rtol=2e-5)
    assert decide("attention_mod", q, q, q, [], [], CAUSAL).kind == "fallback"
    assert decide("attention", q, q, q).kind == "dynamic"  # without a mask it is right
    assert not (fresh_home / "cache" / "instantiated").exists()


def test_a_pin_judged_without_an_output_serves_calls_without_it(registry: Path) -> None:
    """And a pin judged on all outputs serves both, but after one that was judged on no more than is wanted."""
    any_program = sr.attention_key("*")
    sr.promote(registry, "attention", sr.ATTENTION, [{**any_program, "skip": ["lse"]}])
    kgen.load(registry)
    q = torch.randn(1, 2, 43, 16)
    call = q, q, q, [], [], CAUSAL
    assert decide("attention_mod_output", *call).kernel == "attention/v1"
    refused = decide("attention_mod", *call)
    assert refused.kind == "fallback" and "lse is wanted, the pin leaves it out" in refused.notes
    sr.promote(registry, "attention", sr.ATTENTION + "/* with lse */\n", [any_program])
    kgen.reload()
    assert decide("attention_mod", *call).kernel == "attention/v2"
    assert decide("attention_mod_output", *call).kernel == "attention/v1"
    want = F.scaled_dot_product_attention(q, q, q, is_causal=True)
    torch.testing.assert_close(torch.ops.kgen.attention_mod_output(*call), want, atol=2e-5, rtol=2e-5)


def test_policies(registry: Path) -> None:
    keys = [sr.attention_key(None), sr.attention_key("*")]
    sr.promote(registry, "attention", sr.ATTENTION, keys)
    sr.promote(registry, "softmax", sr.SOFTMAX, [sr.softmax_key()], torch="2.1.0")
    kgen.load(registry)
    q, x = torch.randn(1, 2, 42, 16), torch.randn(3, 4)
    assert kgen.policy() == "arch"
    found = decide("softmax", x, 1)
    assert found.kind == "dynamic" and not found.verified and "judged with torch 2.1.0" in found.unverified
    kgen.policy("strict")
    with pytest.warns(UserWarning, match="softmax/v1 is not served under the policy strict: judged with torch 2.1.0"):
        torch.ops.kgen.softmax(x, 1)
    assert decide("softmax", x, 1).kind == "fallback"
    assert decide("attention", q, q, q).kind == "dynamic"
    refused = decide("attention_mod", q, q, q, [], [], CAUSAL)
    assert refused.kind == "fallback" and "not judged on this Program" in refused.notes
    kgen.policy("off")
    assert decide("softmax", x, 1).kind == "dynamic"
    with pytest.raises(BadInput, match='policy "lax"; it is strict, arch or off'):
        kgen.policy("lax")


def other_compilers() -> list[str]:
    """This compiler's line with another release, another build of it, another kind, and a number that ends in ours."""
    name, _, rest = sr.compiler().partition(" ")
    number = rest.rpartition(" ")[2]
    clang = rest if "clang" in f"{name} {rest}" else f"clang version {number}"
    return [
        f"{name} {rest.replace(number, '1.2.3')}", f"{name} (another build) {number}", f"{name} {number[1:]}", f"{name} 1{number}",
        f"gcc {number}" if clang == rest else clang, "",
    ]  # fmt: skip


@pytest.mark.parametrize(
    "other",
    [{"torch": "2.1.0"}, {"torch": "2"}, {"device": "a CPU of another kind"}, {"kgen": "0.0.9"}, {"device": ""}]
    + [{"compiler": c} for c in other_compilers()],
    ids=lambda o: " ".join(*o.items()),
)
def test_evidence_of_another_environment_under_each_policy(registry: Path, other: dict[str, str]) -> None:
    """strict serves nothing of it and says which field differs; arch serves it and says so when asked; off serves it."""
    ((field, value),) = other.items()
    sr.promote(registry, "softmax", sr.SOFTMAX, [sr.softmax_key()], **other)
    kgen.load(registry)
    x = torch.randn(3, 4)
    for policy, kind in (("strict", "fallback"), ("arch", "dynamic"), ("off", "dynamic"), ("strict", "fallback")):
        kgen.policy(policy)
        with warnings.catch_warnings(record=True):
            warnings.simplefilter("always")
            found = decide("softmax", x, 1)
        assert (found.kind, found.policy) == (kind, policy)
        said = f"judged with {field} {value or 'unknown'}, here is "
        if kind == "fallback":
            assert said in found.notes
        else:
            assert not found.verified and (found.unverified or "").startswith(said) and "unverified: judged with" in str(found)
        torch.testing.assert_close(torch.ops.kgen.softmax(x, 1), torch.softmax(x, 1))


@pytest.mark.parametrize("same", [{}, {"torch": "2.13.0+cu130"}, {"compiler": "as another name"}, {"compiler": "short"}], ids=str)
def test_evidence_of_this_environment_is_served_under_each_policy(registry: Path, same: dict[str, str]) -> None:
    name, _, rest = sr.compiler().partition(" ")
    spelled = {"as another name": f"{'cc' if name == 'gcc' else 'gcc'} {rest}", "short": f"{name} {rest.rpartition(' ')[2]}"}
    given = {k: spelled.get(v, v) for k, v in same.items()}
    if "torch" in given:
        given["torch"] = torch.__version__.split("+")[0] + "+cu130"
    if "clang" in sr.compiler() and "compiler" in given:
        pytest.skip("clang names itself in its version, whatever it was called as")
    sr.promote(registry, "softmax", sr.SOFTMAX, [sr.softmax_key()], **given)
    kgen.load(registry)
    for policy in ("strict", "arch", "off"):
        kgen.policy(policy)
        found = decide("softmax", torch.randn(3, 4), 1)
        assert (found.kind, found.verified, found.unverified) == ("dynamic", True, None), found


def test_the_policy_off_compares_no_program(registry: Path, fresh_home: Path) -> None:
    """It serves what arch finds out: a Kernel that forgets the mask, on a Program that it was not judged on."""
    forgets = sr.ATTENTION.replace("#define MASKED 1", "#define MASKED 0") + "/* off */\n"
    sr.promote(registry, "attention", forgets, [sr.attention_key(None), sr.attention_key("*")])
    kgen.load(registry)
    kgen.policy("off")
    q = torch.randn(1, 2, 43, 16)
    assert decide("attention_mod", q, q, q, [], [], CAUSAL).kind == "instantiated"
    output, _ = torch.ops.kgen.attention_mod(q, q, q, [], [], CAUSAL)
    torch.testing.assert_close(output, F.scaled_dot_product_attention(q, q, q), atol=2e-5, rtol=2e-5)
    assert not (fresh_home / "cache" / "instantiated").exists()


def test_precision_is_part_of_the_key(registry: Path) -> None:
    sr.promote(registry, "softmax", sr.SOFTMAX, [{**sr.softmax_key(), "precision": "tf32"}])
    kgen.load(registry)
    x = torch.randn(3, 4)
    assert decide("softmax", x, 1).kind == "fallback"
    with kgen.precision("tf32"):
        assert decide("softmax", x, 1).kind == "dynamic"
    assert decide("softmax", x, 1).kind == "fallback"
    with pytest.raises(BadInput, match="precision 'fp8'"), kgen.precision("fp8"):
        pass


def test_another_architecture_is_passed_over(registry: Path) -> None:
    sr.promote(registry, "softmax", sr.SOFTMAX.replace('"min_arch": "x86-64-v2",', ""), [sr.softmax_key()], arch="aarch64")
    kgen.load(registry)
    miss = decide("softmax", torch.randn(3, 4), 1)
    assert miss.kind == "fallback" and "is for aarch64, which this machine is not" in miss.notes


# ---- broken things ----


def kernel_file(registry: Path, name: str = "kernel.c") -> Path:
    return next(registry.rglob(name))


def test_a_tampered_source_is_a_miss_with_a_warning(registry: Path, fresh_home: Path) -> None:
    sr.promote(registry, "softmax", sr.SOFTMAX, [sr.softmax_key()])
    kgen.load(registry)
    source = kernel_file(registry)
    source.write_text(source.read_text().replace("FACTOR 1.0f", "FACTOR 3.0f"))
    x = torch.randn(3, 4)
    with pytest.warns(UserWarning, match="softmax/v1 is not what was promoted"):
        torch.testing.assert_close(torch.ops.kgen.softmax(x, 1), torch.softmax(x, 1))


def test_a_missing_source_is_a_miss_with_a_warning(registry: Path, fresh_home: Path) -> None:
    sr.promote(registry, "softmax", sr.SOFTMAX, [sr.softmax_key()])
    kgen.load(registry)
    kernel_file(registry).unlink()
    x = torch.randn(3, 4)
    with pytest.warns(UserWarning, match="the source of softmax/v1"):
        torch.testing.assert_close(torch.ops.kgen.softmax(x, 1), torch.softmax(x, 1))


def test_what_does_not_compile_is_a_miss_with_one_warning(registry: Path, fresh_home: Path) -> None:
    sr.promote(registry, "softmax", sr.SOFTMAX.replace("float top", "flaot top"), [sr.softmax_key()])
    kgen.load(registry)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for n in (4, 5, 6):
            x = torch.randn(3, n)
            torch.testing.assert_close(torch.ops.kgen.softmax(x, 1), torch.softmax(x, 1))
    texts = [str(w.message) for w in caught if "kgen" in str(w.message)]
    assert len(texts) == 1 and "softmax/v1 could not be built" in texts[0] and "flaot" in texts[0]


@pytest.mark.parametrize("damage", ["cut", "flip", "empty", "other"])
def test_a_damaged_index_is_derived_again(registry: Path, fresh_home: Path, damage: str) -> None:
    sr.promote(registry, "softmax", sr.SOFTMAX, [sr.softmax_key()])
    kgen.load(registry)
    kgen.unload(registry)
    (index,) = (fresh_home / "cache" / "index").iterdir()
    sound = index.read_bytes()
    bad = {
        "cut": sound[: len(sound) // 2],
        "flip": sound[:200] + bytes([sound[200] ^ 1]) + sound[201:],
        "empty": b"",
        "other": b"not an index at all, but long enough to hold a header" * 2,
    }[damage]
    index.write_bytes(bad)
    kgen.load(registry)
    assert decide("softmax", torch.randn(3, 4), 1).kind == "dynamic"
    assert index.read_bytes() == sound


def test_a_read_only_cache_is_only_slower(registry: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sr.promote(registry, "softmax", sr.SOFTMAX, [sr.softmax_key()])
    blocked = tmp_path / "file"
    blocked.write_text("no folder can be made here")
    monkeypatch.setenv("KGEN_CACHE", str(blocked / "cache"))
    kgen.load(registry)
    x = torch.randn(3, 9)
    assert decide("softmax", x, 1).kind == "dynamic"
    torch.testing.assert_close(torch.ops.kgen.softmax(x, 1), torch.softmax(x, 1))


def test_no_compiler_names_kgen_build(registry: Path, fresh_home: Path, python: Callable[..., str]) -> None:
    sr.promote(registry, "softmax", sr.SOFTMAX, [sr.softmax_key()])
    out = python(
        """
        import kgen
        for shipped in kgen.registry()[1:]:
            kgen.unload(shipped["path"])
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            x = torch.randn(3, 4)
            torch.testing.assert_close(torch.ops.kgen.softmax(x, 1), torch.softmax(x, 1))
            torch.ops.kgen.softmax(torch.randn(3, 5), 1)
        print(len(caught), caught[0].message)
        """,
        KGEN_REGISTRY=str(registry), KGEN_CC="/nowhere/cc", CC="/nowhere/cc", PATH="/nowhere",
    )  # fmt: skip
    assert out.startswith("1 kgen: softmax falls back to torch") and "no C compiler" in out and "kgen build" in out


def test_a_cache_that_was_shipped_needs_no_compiler(registry: Path, fresh_home: Path, python: Callable[..., str]) -> None:
    sr.promote(registry, "softmax", sr.SOFTMAX, [sr.softmax_key()])
    code = "import kgen\nprint(kgen.why('softmax', torch.randn(3, 4), 1).decisions[0].kind)"
    assert python(code, KGEN_REGISTRY=str(registry)).strip() == "dynamic"
    env = {"KGEN_REGISTRY": str(registry), "KGEN_CC": "/nowhere/cc", "CC": "/nowhere/cc", "PATH": "/nowhere"}
    assert python(code, **env).strip() == "dynamic"


# ---- the process ----


def test_environment(registry: Path, tmp_path: Path, fresh_home: Path, python: Callable[..., str]) -> None:
    sr.promote(registry, "softmax", sr.SOFTMAX, [sr.softmax_key()])
    code = """
        import kgen
        print([r["path"] for r in kgen.registry()], kgen.policy())
        d = kgen.why("softmax", torch.randn(3, 4), 1).decisions[0]
        print(d.kind, d.reason)
    """
    user = Path(os.environ["XDG_DATA_HOME"]) / "kgen" / "generated"
    shutil.copytree(registry, user)
    out = python(code, KGEN_REGISTRY=f"{registry}{os.pathsep}{tmp_path / 'absent'}", KGEN_POLICY="off")
    assert f"['{registry}', '{user}'" in out and "] off" in out and "dynamic" in out
    assert f"KGEN_REGISTRY: registry {tmp_path / 'absent'}: there is no such folder" in out
    assert "fallback KGEN_DISABLE is set" in python(code, KGEN_REGISTRY=str(registry), KGEN_DISABLE="1")
    bad = python("import kgen", fails=True, KGEN_POLICY="lax")
    assert 'ImportError: kgen: KGEN_POLICY: policy "lax"; it is strict, arch or off' in bad
    bad = python("import kgen", fails=True, KGEN_PRECISION="fp8")
    assert "KGEN_PRECISION=fp8; it is fp32, tf32 or bf16" in bad


def test_nothing_is_found_through_the_working_directory(registry: Path, fresh_home: Path, python: Callable[..., str]) -> None:
    sr.promote(registry, "softmax", sr.SOFTMAX, [sr.softmax_key()])
    out = python(f"import os; os.chdir({str(registry.parent)!r})\nimport kgen\nprint([r['path'] for r in kgen.registry()])")
    assert str(registry) not in out


def test_a_forked_process_serves(registry: Path, python: Callable[..., str]) -> None:
    sr.promote(registry, "softmax", sr.SOFTMAX, [sr.softmax_key()])
    code = """
        import os, kgen
        x = torch.randn(3, 4)
        torch.set_num_threads(1)
        torch.ops.kgen.softmax(x, 1)
        pid = os.fork()
        if pid == 0:
            y = torch.randn(3, 11)
            torch.testing.assert_close(torch.ops.kgen.softmax(y, 1), torch.softmax(y, 1))
            os._exit(0 if kgen.why("softmax", y, 1).fallbacks == 0 else 1)
        print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
    """
    assert python(code, KGEN_REGISTRY=str(registry)).strip() == "0"


def test_warmup_takes_what_models_take(registry: Path) -> None:
    sr.promote(registry, "softmax", sr.SOFTMAX, [sr.softmax_key()])
    kgen.load(registry)

    def model(x: torch.Tensor, dim: int = 1) -> torch.Tensor:
        return torch.ops.kgen.softmax(torch.ops.kgen.softmax(x, dim), dim)

    x = torch.randn(4, 6)
    for inputs in (x, (x,), [x, 1], {"x": x, "dim": 1}):
        found = kgen.warmup(model, inputs)
        assert [d.kind for d in found.decisions] == ["dynamic", "dynamic"]


# ---- a model's own Ops ----

OWN = {
    "format": 1, "op": "scaled_0badcafe",
    "schema": "scaled_0badcafe(Tensor x, Tensor? bias=None, int times=2, *, float slope=1.0, int[] pad=[]) -> (Tensor, Tensor)",
    "args": [
        {"name": "x", "type": "Tensor", "dtypes": ["float32"], "shape": ["M", "N"]},
        {"name": "bias", "type": "Tensor?", "dtype_as": "x", "shape": ["N"]},
        {"name": "times", "type": "int"}, {"name": "slope", "type": "float"}, {"name": "pad", "type": "int[]"},
    ],
    "dims": [{"name": "W", "expr": "times > 1 ? N / 2 + pad[0] : N + pad[0]"}],
    "dynamic": ["M", "N"], "checks": [],
    "outputs": [{"name": "y", "like": "x"}, {"name": "s", "dtype_as": "x", "shape": ["M", "max(W, 1)"]}],
    "holes": [], "reference": {"kind": "source", "file": "reference.py", "name": "Model"},
}  # fmt: skip


@pytest.fixture
def own(registry: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An Op of the model's own whose only Kernel is for another shape, with a reference of plain torch."""
    source = """/* kgen
{ "format": 1, "op": "scaled_0badcafe", "target": "cpu", "min_arch": "x86-64-v2",
  "launches": [{"kernel": "run", "range": "M", "args": ["x", "bias", "y", "s", {"i64": "N"}, {"i64": "W"}, {"f32": "slope"}]}] }
*/
#include <stdint.h>
void run(int64_t begin, int64_t end, const KG_T_x *x, const KG_T_bias *bias, KG_T_y *y, KG_T_s *s, int64_t n,
         int64_t w, float slope) {
    for (int64_t m = begin; m < end; m++) {
        for (int64_t i = 0; i < n; i++)
            y[m * n + i] = x[m * n + i] * slope + (bias ? bias[i] : 0.0f);
        for (int64_t i = 0; i < w; i++)
            s[m * w + i] = 7.0f;
    }
}
"""
    key = {
        "op": OWN["op"], "device": "cpu", "precision": "native", "dtypes": ["float32", "float32"], "layout": ["c", "c"],
        "attrs": {"times": 2, "slope": 3.0, "pad": [0]}, "program": None, "dims": {"M": sr.WIDE, "N": 8, "W": 4},
    }  # fmt: skip
    sr.promote(registry, OWN["op"], source, [key], contract_text=json.dumps(OWN))
    import kgen.reference

    def reference(x: Any, bias: Any, times: int, slope: float, pad: list[int]) -> Any:
        width = max((x.shape[1] // 2 if times > 1 else x.shape[1]) + pad[0], 1)
        y = x * slope if bias is None else x * slope + bias
        return y, y.sum(1, keepdim=True).expand(-1, width) * 1.0

    monkeypatch.setattr(sys.modules["kgen.reference"], "load", lambda folder: reference)
    kgen._fallback._reference.cache_clear() if hasattr(kgen, "_fallback") else None
    kgen.load(registry)
    return registry


def test_own_op(own: Path) -> None:
    op = torch.ops.kgen.scaled_0badcafe
    x, bias = torch.randn(3, 8), torch.randn(8)
    y, s = op(x, bias, 2, slope=3.0, pad=[0])
    torch.testing.assert_close(y, x * 3 + bias)
    assert s.shape == (3, 4) and (s == 7).all()  # the Kernel's mark
    assert decide(OWN["op"], x, bias, 2, slope=3.0, pad=[0]).kind == "dynamic"
    y, s = op(x, None, 1, slope=0.5, pad=[1])  # no Kernel: the reference
    torch.testing.assert_close(y, x * 0.5)
    torch.testing.assert_close(s, y.sum(1, keepdim=True).expand(-1, 9))
    with torch.device("meta"):
        y, s = op(torch.empty(3, 10), None, 2, slope=1.0, pad=[2])
    assert y.shape == (3, 10) and s.shape == (3, 7)


def test_own_op_gradients_and_compile(own: Path) -> None:
    torch._dynamo.reset()
    op = torch.ops.kgen.scaled_0badcafe

    def f(x: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
        y, s = op(x, bias, 1, slope=0.5, pad=[0])
        return (y * y).sum() + s.sum()

    for g in (f, torch.compile(f, fullgraph=True, backend="aot_eager")):
        x, bias = torch.randn(3, 8, requires_grad=True), torch.randn(8, requires_grad=True)
        g(x, bias).backward()
        y = (x * 0.5 + bias).detach()
        torch.testing.assert_close(x.grad, (2 * y + 8) * 0.5)
        torch.testing.assert_close(bias.grad, (2 * y + 8).sum(0))
    from torch.library import opcheck

    found = opcheck(op.default, (torch.randn(3, 8, requires_grad=True), None, 2), {"slope": 2.0, "pad": [0]})
    assert set(found.values()) == {"SUCCESS"}


def test_an_unknown_op_names_what_there_is(own: Path) -> None:
    with pytest.raises(AttributeError, match="no open registry has the Op nosuch; they have: .*scaled_0badcafe"):
        torch.ops.kgen.nosuch
    assert not hasattr(torch.ops.kgen, "_nosuch_train")


def test_another_contract_of_a_canonical_op_is_not_served(registry: Path) -> None:
    other = json.loads(sr.contract("softmax"))
    other["schema"] = "softmax(Tensor input, int dim, bool extra=False) -> Tensor"
    other["args"].append({"name": "extra", "type": "bool", "key": False})
    sr.promote(registry, "softmax", sr.SOFTMAX, [sr.softmax_key()], contract_text=json.dumps(other))
    kgen.load(registry)
    x = torch.randn(3, 4)
    with pytest.warns(UserWarning, match="its contract of softmax is another than this kgen's"):
        torch.testing.assert_close(torch.ops.kgen.softmax(x, 1), torch.softmax(x, 1))


def test_why_inside_of_why() -> None:
    """As a patched model does at its first call: each says what happened within it."""
    x = torch.randn(3, 5)
    inner: list[Any] = []

    def calls() -> None:
        torch.ops.kgen.softmax(x, -1)
        inner.append(kgen.why("softmax", x, 0))
        torch.ops.kgen.softmax(x, 1)

    outer = kgen.why(calls)
    assert [d.op for d in outer.decisions] == ["softmax"] * 3 and len(inner[0].decisions) == 1
    assert len(kgen.why("softmax", x, -1).decisions) == 1
