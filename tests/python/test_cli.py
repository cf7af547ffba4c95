"""The command line as a user meets it: what is wrong with an input is said in one message with the right exit code, and
nothing half-written stays."""

from __future__ import annotations

import importlib
import json
import os
import shlex
import shutil
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

import pytest
import serving_registry as made
from kgen_command import Done, Server

from kgen import _libkgen
from kgen.errors import KgenError

ROOT = Path(__file__).resolve().parent.parent.parent
MODELS = ROOT / "tests" / "models"
CANDIDATES = ROOT / "tests" / "judge" / "candidates"
ROWS = ROOT / "kernels" / "softmax" / "rows.c"

HEAD = """
import random
import torch
from torch import nn

def get_inputs():
    return [torch.randn(96, 64)]
"""


def model_file(folder: Path, text: str, name: str = "model.py", head: str = HEAD) -> Path:
    path = folder / name
    path.write_text(head + textwrap.dedent(text))
    return path


GOOD = """
class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm = nn.GroupNorm(1, 64)

    def forward(self, x):
        return torch.softmax(self.norm(x), dim=-1)
"""


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return model_file(tmp_path_factory.mktemp("good"), GOOD)


@pytest.fixture(scope="module")
def softmax_task(kgen_server: Server, good: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The Task of the model's softmax, captured by the command."""
    folder = tmp_path_factory.mktemp("tasks") / "softmax"
    done = kgen_server.run("capture", good, "-o", folder)
    assert done.code == 0, done.err
    assert done.out == f"softmax: 1 Case in {folder}\n"
    return folder


def refused(done: Done, code: int, *words: str) -> None:
    """One message, all words in it, and no traceback."""
    assert done.code == code, (done.code, done.err)
    assert "Traceback" not in done.err, done.err
    at = done.err.index("kgen: ") if "kgen: " in done.err else done.err.index("kgen needs")
    message = done.err[at:]
    assert "kgen: " not in message[5:], f"more than one message: {message}"
    for word in words:
        assert word in message, (word, message)
    assert done.out == ""


# Models


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("class Model(nn.Module:\n    pass\n", ("model.py:8: importing it: SyntaxError",)),
        ("import no_such_package\n", ("model.py:8: importing it", "No module named 'no_such_package'")),
        ("raise SystemExit(7)\n", ("it called sys.exit(7)",)),
        ("class Model(nn.Module):\n    def forward(self, x):\n        return x.nothing()\n",
         ("model.py:10: the forward: AttributeError",)),
        ("class Model(nn.Module):\n    def forward(self, x):\n        return x.sum().item()\n",
         ("Model returns a float without a tensor", "must return a tensor")),
        ("class Model(nn.Module):\n    def forward(self, x):\n        return x * random.random()\n",
         ("Model is not deterministic", "same random seed")),
    ],
    ids=["syntax", "import", "exit", "raises", "no tensor", "not deterministic"],
)  # fmt: skip
def test_model_that_cannot_be_used(kgen_server: Server, tmp_path: Path, text: str, words: tuple[str, ...]) -> None:
    path = model_file(tmp_path, text)
    refused(kgen_server.run("tune", path, "--run", tmp_path / "run"), 2, *words)
    assert not (tmp_path / "run").exists()  # the command can be given again when the model is mended
    assert sorted(p.name for p in tmp_path.iterdir() if p.name != "__pycache__") == ["model.py"]


def test_debug_shows_the_traceback(kgen_server: Server, tmp_path: Path) -> None:
    done = kgen_server.run("--debug", "capture", model_file(tmp_path, "1 / 0\n"), "-o", tmp_path / "t")
    assert done.code == 2 and "Traceback" in done.err and "ZeroDivisionError" in done.message


def test_a_script_without_names_shows_a_stub_of_six_lines(kgen_server: Server, tmp_path: Path) -> None:
    path = model_file(tmp_path, "net = nn.Linear(4, 4)\n", head="from torch import nn\n")
    done = kgen_server.run("tune", path)
    refused(done, 2, "defines no Model with get_inputs, so --module and --inputs must name its globals")
    _, *stub = done.err.strip().splitlines()
    assert len(stub) == 6 and "tune model.py --module model --inputs inputs" in stub[-1]
    # The stub is what it says: pasted at the end of the file, with the model's name, it runs.
    path.write_text(path.read_text() + "\n" + textwrap.dedent("\n".join(stub)).replace("MyModel()", "nn.Softmax(-1)") + "\n")
    done = kgen_server.run("capture", path, "--module", "model", "--inputs", "inputs", "-o", tmp_path / "task")
    assert done.code == 0, done.err
    assert json.loads((tmp_path / "task" / "cases" / "0.json").read_text())["args"]["input"]["shape"] == [1, 128, 512]


def test_other_words_that_name_no_model(kgen_server: Server, tmp_path: Path) -> None:
    refused(kgen_server.run("tune", tmp_path / "none.py"), 2, "none.py: No such file")
    refused(kgen_server.run("tune", "nonsense"), 2, "nonsense: no such file; give a Python file, or package.module:callable")
    model_file(tmp_path, "class Model(nn.Module):\n    pass\n", head="from torch import nn\n")
    refused(kgen_server.run("tune", tmp_path / "model.py"), 2, "defines Model but no get_inputs(); add one")
    for inputs in ("[]", "[3.0]", "{'x': None}"):
        head = f"import torch\nfrom torch import nn\n\ndef get_inputs():\n    return {inputs}\n"
        text = "class Model(nn.Module):\n    def forward(self, x=1.0):\n        return torch.softmax(torch.ones(3, 4) * x, -1)\n"
        path = model_file(tmp_path, text, head=head)
        refused(kgen_server.run("tune", path, "--run", tmp_path / "run"), 2, "model.py: has no inputs: there is no tensor in")
    assert not (tmp_path / "run").exists()


def test_target_that_matches_nothing(kgen_server: Server, good: Path, tmp_path: Path) -> None:
    done = kgen_server.run("tune", good, "--target", "atention", "--run", tmp_path / "run")
    refused(done, 2, "--target atention matches nothing", "group_norm", "softmax")
    assert not (tmp_path / "run").exists()


UNSUPPORTED = """
class Inner(nn.Module):
    def forward(self, z):
        return (z.abs() if z.is_complex() else z.float()) * 2

class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = Inner()

    def forward(self, x):
        return self.inner({what}).sum(0)
"""


@pytest.mark.parametrize(
    ("what", "name"), [("torch.fft.fft(x)", "complex64"), ("x.to(torch.float8_e4m3fn)", "float8_e4m3fn")]
)
def test_unsupported_dtype_is_refused_by_name(kgen_server: Server, tmp_path: Path, what: str, name: str) -> None:
    path = model_file(tmp_path, UNSUPPORTED.format(what=what))
    done = kgen_server.run("capture", path, "--target", "inner", "-o", tmp_path / "task")
    refused(done, 2, f"z is {name}, which no Op takes (they take float32, float64")
    assert not (tmp_path / "task").exists()


@pytest.mark.parametrize(
    ("what", "name"), [("torch.fft.fft(x)", "complex64"), ("x.to(torch.float8_e4m3fn)", "float8_e4m3fn")]
)
def test_unsupported_dtype_of_an_output_is_left_alone_by_name(
    kgen_server: Server, tmp_path: Path, what: str, name: str
) -> None:
    path = model_file(tmp_path, f"class Model(nn.Module):\n    def forward(self, x):\n        return {what}\n")
    done = kgen_server.run("tune", path, "--proposer", "files", "--run", tmp_path / "run", "--budget", "1s")
    assert done.code == 0 and f"its output is {name}, which no Op gives (they give float32, float64" in done.out, done.err


def test_no_elements_are_left_alone_by_name(kgen_server: Server, tmp_path: Path) -> None:
    path = model_file(tmp_path, "class Model(nn.Module):\n    def forward(self, x):\n        return torch.softmax(x[:0], -1)\n")
    done = kgen_server.run("tune", path, "--run", tmp_path / "run", "--budget", "1s")
    assert done.code == 0 and "the captured inputs have no element to compare by" in done.out, done.err


def test_unsupported_dtype_of_a_canonical_op_is_left_alone(kgen_server: Server, tmp_path: Path) -> None:
    path = model_file(tmp_path, "class Model(nn.Module):\n    def forward(self, x):\n        return torch.softmax(x.double(), -1)\n")
    done = kgen_server.run("tune", path, "--run", tmp_path / "run", "--json")
    assert done.code == 0 and done.err == "", done.err
    rows = {r["op"]: r for r in done.records()[0]["rows"]}
    assert rows["softmax"]["state"] == "left"
    assert rows["softmax"]["reason"] == "dtype torch.float64 is not one that softmax has kernels for"


# Options


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--budget", "5x"), "--budget 5x: give a time such as 90s, 15m or 1h"),
        (("--budget", "0m"), "--budget 0m: give a time"),
        (("--budget", "-3s"), "--budget"),
        (("--min-speedup", "nan"), "--min-speedup nan: give a ratio"),
        (("--device", "gpu"), "--device gpu: give cpu, cuda or cuda:N"),
        (("--device", "cuda:x"), "--device cuda:x: give cpu, cuda or cuda:N"),
        (("--precision", "tf32"), "--precision tf32: a CPU computes float32 as float32 alone"),
        (("--resume",), "--resume: say which Run with --run DIR"),
        (("--resume", "--run", "none"), "none is no Run: there is no run.json to resume from"),
    ],
    ids=lambda x: " ".join(x) if isinstance(x, tuple) else "",
)
def test_option_that_cannot_be_used(kgen_server: Server, good: Path, words: tuple[str, ...], said: str) -> None:
    done = kgen_server.run("tune", good, *words)
    assert done.code == 2 and said in done.err and "Traceback" not in done.err, done.err


def test_a_gpu_that_is_not_there(kgen_server: Server, good: Path) -> None:
    for command in ("tune", "capture"):
        rest = ("-o", "task") if command == "capture" else ()
        done = kgen_server.run(command, good, "--device", "cuda", *rest)
        assert done.code == 3 and "Traceback" not in done.err, done.err
        assert "built without CUDA: install one that is" in done.message or "`kgen doctor` tells" in done.message, done.err


def test_usage(kgen_server: Server) -> None:
    """Once as a shell starts it, without the server of commands."""
    done = subprocess.run([sys.executable, "-m", "kgen", "tnue", "x"], capture_output=True, text=True, check=False)
    assert done.returncode == 2 and "invalid choice: 'tnue'" in done.stderr
    done = kgen_server.run()
    assert done.code == 2 and done.out.startswith("usage: kgen")
    done = kgen_server.run("--version")
    assert done.code == 0 and done.out.startswith("kgen 0.")


def test_help_lists_only_what_works(capsys: pytest.CaptureFixture[str]) -> None:
    """Every command has its help and a function behind it."""
    from kgen import cli

    commands = cli.parser()._subparsers._group_actions[0].choices  # type: ignore[union-attr]
    for name, parser in commands.items():
        assert cli.main([name, "--help"]) == 0
        for example in cli._MORE.get(name, ("",))[1:]:
            given = cli.parser().parse_args(cli._split(shlex.split(example))[0])
            assert given.command == name, f"the example does not parse: {example}"
        assert capsys.readouterr().out.startswith(f"usage: kgen {name}"), name
        module, function = parser.get_default("run_command").target
        assert callable(getattr(importlib.import_module(f"kgen.{module}"), function)), name


# Candidates

# Each with what its message must say.
BAD = {
    "plan_error_key": 'unknown key "requires"; known are: format, op',
    "plan_error_range": "M / 100 is 0 (M = 96)",
    "plan_error_overflow": "column 16: 96000000000 * 1000000000 does not fit 64 bits",
    "compile_error_undeclared": "implicit declaration of function 'helper'",
    "timeout_spin": "a call did not end within",
    "illegal_access_null": "",
    "out_of_bounds_before": "wrote 'output' 4 bytes before its begin",
}


def test_candidates_that_are_wrong(kgen_server: Server, softmax_task: Path) -> None:
    """Each gets its verdict in its own Record, after the others as before them; the hang costs its limit once."""
    files = [*(CANDIDATES / f"{name}.c" for name in BAD), ROWS]
    done = kgen_server.run("judge", softmax_task, *files, "--json", "--no-timing")
    assert done.code == 1 and done.err == "", done.err
    records = done.records()
    assert [r["source"] for r in records] == [f.name for f in files]
    for (name, said), record in zip(BAD.items(), records, strict=False):
        if name == "illegal_access_null":  # it may read where this Case ends before it does
            assert record["verdict"] in ("illegal_access", "wrong_values"), record["verdict"]
            continue
        assert name.startswith(record["verdict"]), (name, record["verdict"], record["message"])
        assert said in record["message"], (name, record["message"])
        assert all("time_ns" not in c for c in record["cases"])
    good = records[-1]
    assert good["verdict"] == "pass" and good["cases"][0]["norm_err"] < 1e-6
    assert good["environment"]["torch"] and len(good["id"]) == 64


def test_a_file_that_passes_and_one_that_does_not(kgen_server: Server, softmax_task: Path) -> None:
    done = kgen_server.run("judge", softmax_task, ROWS)
    assert done.code == 0, done.err
    first, case = done.out.splitlines()
    assert first == f"{ROWS}: pass" and "floor" in case and "torch's own" in case
    wrong = CANDIDATES / "wrong_values_zeros.c"
    done = kgen_server.run("judge", softmax_task, wrong, ROWS, "--no-timing")
    assert done.code == 1 and done.message == "kgen: 1 of 2 did not pass"
    assert done.out.startswith(f"{wrong}: wrong_values: case 0") and f"{ROWS}: pass" in done.out


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{BLOCK", "not JSON"),
        ("[1]", "give an object of integers"),
        ('{"UNROLL": "4"}', "give an object of integers"),
    ],
)
def test_tunables_that_are_no_numbers(kgen_server: Server, softmax_task: Path, text: str, said: str) -> None:
    refused(kgen_server.run("judge", softmax_task, ROWS, "--tunables", text), 2, f"--tunables {text}", said)


def test_tunables_that_the_plan_does_not_have(kgen_server: Server, softmax_task: Path) -> None:
    words = ("judge", softmax_task, ROWS, "--no-timing", "--json", "--tunables")
    for values, said in (('{"WIDTH": 4}', "WIDTH"), ('{"UNROLL": 5}', "UNROLL")):
        done = kgen_server.run(*words, values)
        record = done.records()[0]
        assert done.code == 1 and record["verdict"] == "plan_error" and said in record["message"], record
    done = kgen_server.run(*words, '{"UNROLL": 2}')
    assert done.code == 0 and done.records()[0]["tunables"]["UNROLL"] == 2
    assert done.records()[0]["tunables"]["AHEAD"] == 1  # the first of those that were not named


def test_what_is_no_task_folder(kgen_server: Server, softmax_task: Path, tmp_path: Path) -> None:
    refused(kgen_server.run("judge", tmp_path / "none", ROWS), 2, "no such folder")
    refused(kgen_server.run("judge", tmp_path, ROWS), 2, "is no Task folder, it has no task.json")
    refused(kgen_server.run("judge", softmax_task.parent, ROWS), 2, "holds several Tasks; name one: ", str(softmax_task))
    refused(kgen_server.run("judge", softmax_task, tmp_path / "none.c"), 2, "none.c: no such file")
    torn = tmp_path / "torn"
    shutil.copytree(softmax_task, torn)
    (torn / "task.json").write_text('{"format": 1, "op"')
    refused(kgen_server.run("judge", torn, ROWS), 2, "task.json")
    (torn / "task.json").write_text((softmax_task / "task.json").read_text().replace('"format": 1', '"format": 2'))
    refused(kgen_server.run("judge", torn, ROWS), 2, "format 2 is newer than this kgen, which reads format 1")


# Disks and folders


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 64 KiB."""
    folder = tmp_path / "small"
    folder.mkdir()
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "none", folder], capture_output=True, check=False)
    if done.returncode:
        pytest.skip("a tmpfs cannot be mounted here (not root?); test_a_file_that_cannot_grow stands for it")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", folder], check=True)


def test_full_disk_while_a_task_is_written(kgen_server: Server, tmp_path: Path, small_disk: Path) -> None:
    text = "class Model(nn.Module):\n    def forward(self, x):\n        return torch.softmax(x, -1)\n"
    head = HEAD.replace("torch.randn(96, 64)", "torch.full((256, 512), -torch.inf).tril(400)")  # kept by value: 512 KiB
    path = model_file(tmp_path, text, head=head)
    done = kgen_server.run("capture", path, "-o", small_disk / "task")
    refused(done, 3, "cannot write the Task: No space left on device")
    assert list(small_disk.iterdir()) == []


def test_full_disk_while_a_run_is_written(kgen_server: Server, good: Path, small_disk: Path, no_cxx: None) -> None:
    """The journal outgrows the disk. What is in it stays whole, and the Run goes on when there is room again."""
    filler, run = small_disk / "filler", small_disk / "run"
    filler.write_bytes(b"x" * (20 << 10))
    words = ("tune", good, "--run", run, "--budget", "1s", "--no-promote", "--min-speedup", "1000")
    refused(kgen_server.run(*words), 3, str(run), "No space left on device")
    kinds = [json.loads(line)["kind"] for line in (run / "journal.jsonl").read_text().splitlines()]
    assert kinds[0] == "survey" and "verdict" in kinds
    filler.unlink()
    subprocess.run(["mount", "-o", "remount,size=4m", small_disk], check=True)
    done = kgen_server.run(*words, "--resume", "--json")
    assert done.code == 0, done.err
    after = [json.loads(line) for line in (run / "journal.jsonl").read_text().splitlines()]
    assert [e["n"] for e in after] == list(range(len(after))) and after[-1]["kind"] == "gate"
    judged = [(e["id"], e["level"]) for e in after if e["kind"] == "verdict"]
    assert len(judged) == len(set(judged))


def test_full_disk_while_a_kernel_is_promoted(small_disk: Path) -> None:
    """Whatever there was room for, the registry serves what it served and nothing is half-written: a Kernel is there whole
    (and unpinned, so that promoting it again needs its pin alone) or not at all."""
    registry, filler = small_disk / "registry", small_disk / "filler"
    made.promote(registry, "softmax", made.SOFTMAX, [made.softmax_key()])
    before = {p: p.read_bytes() for p in registry.rglob("*") if p.is_file() and p.name != ".lock"}
    other = made.SOFTMAX.replace("FACTOR is", "other: FACTOR is")
    failed = 0
    for room in range(0, 20 << 10, 4 << 10):
        filler.write_bytes(b"")
        free = os.statvfs(small_disk)
        filler.write_bytes(b"x" * max(0, free.f_bavail * free.f_bsize - room))
        try:
            made.promote(registry, "softmax", other, [made.softmax_key()])
        except KgenError as e:
            assert e.code == 3 and "No space left on device" in str(e) and str(registry) in str(e)
            failed += 1
        else:
            break
        now = {p: p.read_bytes() for p in registry.rglob("*") if p.is_file() and p.name != ".lock"}
        assert before.items() <= now.items() and not list(registry.rglob(".tmp*"))
        more = sorted(p.name for p in now.keys() - before.keys())
        assert more in ([], ["kernel.c", "record.json"]) and len(_libkgen.registry_list(registry)) == 1 + len(more) // 2
    assert failed >= 2 and [k["version"] for k in _libkgen.registry_list(registry)] == [1, 2]


def test_a_file_that_cannot_grow(kgen_server: Server, good: Path, tmp_path: Path) -> None:
    limit = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (600, 600))"
    done = kgen_server.run("capture", good, "-o", tmp_path / "task", env={"PYTHONDONTWRITEBYTECODE": "1"}, limits=[limit])
    assert done.code == 3, (done.code, done.err[-300:])
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def read_only(tmp_path: Path) -> Iterator[Path]:
    """A folder that nobody can write, root either."""
    folder = tmp_path / "read-only"
    folder.mkdir()
    bound = subprocess.run(["mount", "--bind", folder, folder], capture_output=True, check=False).returncode == 0
    if bound:
        subprocess.run(["mount", "-o", "remount,ro,bind", folder], check=True)
    elif os.getuid() == 0:
        pytest.skip("root may write everywhere, and nothing can be mounted here")
    else:
        folder.chmod(0o555)
    try:
        yield folder
    finally:
        if bound:
            subprocess.run(["umount", "-l", folder], check=True)
        folder.chmod(0o755)


def test_read_only_folders(kgen_server: Server, good: Path, read_only: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    done = kgen_server.run("tune", good, "--run", read_only / "run")
    refused(done, 3, "a Run cannot be written there: Read-only file system; name another folder with --run")
    done = kgen_server.run("tune", good, "--registry", read_only / "registry", "--run", run)
    refused(done, 3, f"{read_only} cannot be written; name another with --registry, or --no-promote")
    done = kgen_server.run("capture", good, "-o", read_only / "task")
    refused(done, 3, "cannot write the Task: Read-only file system")
    assert not run.exists() and list(read_only.iterdir()) == []


def test_files_in_the_place_of_folders(kgen_server: Server, good: Path, tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("mine")
    full = tmp_path / "full"
    full.mkdir()
    (full / "thesis.txt").write_text("mine")
    refused(kgen_server.run("tune", good, "--run", file), 2, "is a file: name an empty or a new folder")
    refused(kgen_server.run("tune", good, "--run", full), 2, "is not empty and no Run")
    refused(kgen_server.run("tune", good, "--registry", file), 2, f"{file} is a file; name a folder with --registry")
    refused(kgen_server.run("capture", good, "-o", file), 2, "is a file; name a folder with -o")
    refused(kgen_server.run("capture", good, "-o", full), 2, "exists and is no Task folder")
    assert file.read_text() == "mine" and [p.name for p in full.iterdir()] == ["thesis.txt"]


# What the machine lacks


def test_output_on_a_full_disk(kgen_server: Server) -> None:
    """/dev/full takes nothing."""
    full = "import os; os.dup2(os.open('/dev/full', os.O_WRONLY), 1)"
    for words in (("list",), ("doctor",)):
        done = kgen_server.run(*words, limits=[full])
        refused(done, 3, "No space left on device, for the output or a temporary file")


def test_without_a_compiler(kgen_server: Server, good: Path, softmax_task: Path, tmp_path: Path) -> None:
    """Nothing is in the cache, and there is no cc: tune and judge say what to install."""
    (tmp_path / "bin").mkdir()
    env = {"PATH": str(tmp_path / "bin"), "KGEN_CACHE": str(tmp_path / "cache"), "KGEN_CC": None, "CC": None}
    done = kgen_server.run("tune", good, "--run", tmp_path / "run", "--budget", "1s", env=env)
    refused(done, 3, "compiler", "Debian package gcc")
    done = kgen_server.run("judge", softmax_task, ROWS, "--json", env=env)
    refused(done, 3, "compiler", "Debian package gcc")
    done = kgen_server.run("doctor", env=env)
    assert done.code == 3 and "MISSING  C compiler" in done.out


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('__version__ = "2.4.1+cpu"\n', "kgen needs torch 2.10 or newer, and this is 2.4.1+cpu"),
        ("raise ModuleNotFoundError(\"No module named 'torch'\")\n", "kgen needs torch 2.10 or newer, and it does not import"),
    ],
    ids=["too old", "missing"],
)
def test_torch_that_is_too_old_or_missing(good: Path, tmp_path: Path, text: str, said: str) -> None:
    """A stub stands for it, so this starts as a shell starts it. Commands that need no torch go on working."""
    stub = tmp_path / "stub" / "torch"
    stub.mkdir(parents=True)
    (stub / "__init__.py").write_text(text)
    env = dict(os.environ, PYTHONPATH=os.pathsep.join([str(stub.parent), os.environ["PYTHONPATH"]]))

    def run(*words: object) -> subprocess.CompletedProcess[str]:
        argv = [sys.executable, "-m", "kgen", *map(str, words)]
        return subprocess.run(argv, capture_output=True, text=True, check=False, env=env)

    done = run("tune", good)
    assert done.returncode == 3 and done.stdout == ""
    assert done.stderr.startswith(said) and "pip install" in done.stderr and len(done.stderr.splitlines()) == 1
    assert run("list").returncode == 0
    done = run("doctor")
    assert done.returncode == 3 and "MISSING  torch" in done.stdout
    done = subprocess.run([sys.executable, "-c", "import kgen"], capture_output=True, text=True, check=False, env=env)
    assert done.returncode == 1 and f"ImportError: {said}" in done.stderr
