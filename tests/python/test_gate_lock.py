"""The gate's process is locked before a Kernel is in it. What no inspection would let through is put into the image cache by
hand, behind the inspection's back, and goes through the real gate: each is a reason, and none a Run that is stuck or gone."""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
from pathlib import Path

import pytest
import serving_registry as sr
import torch
from test_gate import at_gate, gone, promote

from kgen import _libkgen, gate, gate_memory
from kgen.gate import GateError, GateResult

ROOT = Path(__file__).resolve().parents[2]

HEAD = """
#include <fcntl.h>
#include <signal.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>
static void does(void) { %s }
%s
__attribute__((visibility("default"))) void kg_entry_0(int64_t b, int64_t e, void *const *a) {
    (void)b; (void)e; (void)a; %s
}
"""


class Hash(ctypes.Structure):
    _fields_ = (("lo", ctypes.c_uint64), ("hi", ctypes.c_uint64))


@pytest.fixture(scope="module")
def hashed(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    """The hash that an entry of the image cache ends with."""
    so = tmp_path_factory.mktemp("hash") / "hash.so"
    subprocess.run(["cc", "-O1", "-shared", "-fPIC", f"-I{ROOT}/csrc", str(ROOT / "csrc/base/hash_xxh.c"), "-o", str(so)], check=True)
    lib = ctypes.CDLL(str(so))
    lib.kg_xxh128.restype, lib.kg_xxh128.argtypes = Hash, [ctypes.c_char_p, ctypes.c_size_t]
    return lib


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A folder with a registry of a Kernel that is right, and a cache with its image; the Kernel's id."""
    folder = tmp_path_factory.mktemp("lock")
    id_ = promote(folder / "generated", sr.SOFTMAX)
    with at_gate(folder / "generated", cache=folder / "cache") as g:
        assert g.prepare(0) == ""
        assert g.prepared["lock"] == _libkgen.protections()
        assert len(list((folder / "cache/images").rglob("*.so"))) == 1
        assert g.child.locked
    return folder, id_


@pytest.fixture
def dishonest(built: tuple[Path, str], hashed: ctypes.CDLL, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> object:
    """What comes of a Kernel whose image does something else. in_constructor: as soon as it is loaded."""
    monkeypatch.setattr(gate, "_measure_baselines", lambda gate, result: [])

    def run(does: str, in_constructor: bool = False) -> GateResult:
        shutil.copytree(built[0], tmp_path / "there")
        image = next((tmp_path / "there/cache/images").rglob("*.so"))
        code, so = tmp_path / "it.c", tmp_path / "it.so"
        constructor = "__attribute__((constructor)) static void begin(void) { does(); }" if in_constructor else ""
        code.write_text(HEAD % (does, constructor, "" if in_constructor else "does();"))
        subprocess.run(["cc", "-O1", "-shared", "-fPIC", str(code), "-o", str(so)], check=True)
        data = so.read_bytes()
        h = hashed.kg_xxh128(data, len(data))
        image.write_bytes(data + b"KGIMAGE1" + len(data).to_bytes(8, "little") + h.lo.to_bytes(8, "little") + h.hi.to_bytes(8, "little"))
        with at_gate(tmp_path / "there/generated", cache=tmp_path / "there/cache") as g:
            child = g.child.process.pid
            result = gate.run(g, built[1], min_speedup=0.001)
            assert gone(child)
        assert not result.passed and result.rounds == 0
        return result

    return run


LOCKED = "which the gate's process may not with a Candidate in it"


@pytest.mark.parametrize(
    ("does", "call"),
    [
        ("int s = socket(AF_INET, SOCK_STREAM, 0); (void)s;", "(socket)"),
        pytest.param("char *v[] = {(char *)\"/bin/true\", 0}; execve(v[0], v, 0);", "(execve)", marks=pytest.mark.slow),
        ("kill(getppid(), SIGKILL);", "(kill)"),
    ],
)  # fmt: skip
def test_what_violates_the_lock_is_the_reason(dishonest: object, does: str, call: str) -> None:
    result = dishonest(does)
    assert result.reason.startswith("through torch.ops.kgen: made system call ") and call in result.reason, result
    assert LOCKED in result.reason


@pytest.mark.parametrize("early", [False, True])
def test_no_file_is_written(dishonest: object, tmp_path: Path, early: bool) -> None:
    """From the Kernel, and from a constructor of its image."""
    target = tmp_path / "written"
    result = dishonest(f'int f = open("{target}", O_WRONLY | O_CREAT, 0600); (void)f;', early)
    assert "for writing)" in result.reason and LOCKED in result.reason, result
    assert not target.exists()


@pytest.mark.parametrize(
    ("does", "reason"),
    [
        ('for (int f = 3; f < 64; f++) write(f, "{}\\n", 3);', "sent an answer that is not to this request"),
        pytest.param('for (int f = 3; f < 64; f++) write(f, "[1]\\n", 4);', "sent what is no answer", marks=pytest.mark.slow),
        (
            "static char x[1 << 16]; memset(x, 'x', sizeof x); for (int f = 3; f < 64; f++) while (write(f, x, sizeof x) > 0) {}",
            "an answer of more than 1048576 bytes",
        ),
        ("_exit(0);", "ended with exit code 0"),
        pytest.param("raise(SIGABRT);", "killed by signal 6 (SIGABRT)", marks=pytest.mark.slow),
        ("for (int f = 3; f < 64; f++) close(f);", "the gate's process"),
    ],
)
def test_what_it_says_is_not_believed(dishonest: object, does: str, reason: str) -> None:
    result = dishonest(does)
    assert reason in result.reason, result


def test_memory_keeps_its_size() -> None:
    """The other process has the descriptor: it could make the file smaller, and this one would die of reading it."""
    memory = gate_memory.Memory(torch.device("cpu"))
    spec = memory.place(torch.zeros(1000))
    memory.make()
    try:
        for size in (0, 1 << 20):
            with pytest.raises(PermissionError):
                os.ftruncate(memory.fd, size)
        assert memory.view(spec).sum() == 0
    finally:
        memory.close()


def test_baselines_get_a_process_without_a_kernel(built: tuple[Path, str]) -> None:
    """One that is built after the Kernel is built in another process; then the Kernel joins the baseline there."""
    folder, _ = built
    with at_gate(folder / "generated", cache=folder / "cache") as g:
        assert g.prepare(0) == "" and g.child.locked
        first = g.child.process.pid
        assert g.prepare(1) == "" and not g.child.locked and g.child.ready == {1}
        second = g.child.process.pid
        assert second != first and gone(first)
        assert g.prepare(0) == "" and g.child.locked and g.child.ready == {0, 1}
        assert g.prepare(1) == "" and g.child.process.pid == second  # it is there already


def test_a_broken_lock_is_no_pass(built: tuple[Path, str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the lock cannot be closed the Kernel is not loaded: torch serves the call, and that is the reason."""
    folder, id_ = built
    monkeypatch.setattr(gate, "_measure_baselines", lambda gate, result: [])
    environment = gate.environment
    script = folder / "sitecustomize.py"
    script.write_text(
        "import ctypes, kgen._libkgen as k\n"
        "k.gate_lock = lambda socket: ctypes.cast(k.lib().kgen_gate_on_load, ctypes.c_void_p).value\n"  # never armed
    )
    monkeypatch.setattr(gate, "environment", lambda *a: {**(e := environment(*a)), "PYTHONPATH": f"{folder}:{e['PYTHONPATH']}"})
    with at_gate(folder / "generated", cache=folder / "cache") as g:
        result = gate.run(g, id_, min_speedup=0.001)
    assert not result.passed and "served by" in result.reason and "locking the gate's process" in result.reason, result


def test_an_answer_must_be_to_the_request() -> None:
    assert gate._answer(b'{"n": 5, "x": 1}', 5) == {"n": 5, "x": 1}
    assert gate._answer(b'{"error": "it died", "lost": true}', 5)["lost"] is True
    for line in (b'{"n": 4}', b"{}", b"[]", b"5", b"", b"\xff", b'{"n": 5, "error": 7}', b'{"error": "x"}'):
        with pytest.raises(GateError):
            gate._answer(line, 5)
