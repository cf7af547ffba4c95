"""Task folders that were edited by hand: odd references, dtypes, sizes and layouts are judged right or refused in one line."""

from __future__ import annotations

import json
import random
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "judge"))

from kgen import sets, task as tasks  # noqa: E402
from kgen.capture import Capture, from_live  # noqa: E402
from kgen.errors import BadInput, EnvironmentLacks, KgenError  # noqa: E402
from kgen.judge import Judge  # noqa: E402
from kgen.reference import Reference  # noqa: E402
from kgen.judge_command import judge_files  # noqa: E402
from kgen.ui import Progress  # noqa: E402

ELEMENTS = """/* kgen
{ "format": 1, "op": "odd", "target": "cpu",
  "launches": [{"kernel": "elements", "range": "x.numel", "when": "x.numel > 0", "args": ["x", "output"]}] }
*/
#include <stdint.h>
void elements(int64_t begin, int64_t end, const KG_T_x *x, KG_T_output *y) {
    for (int64_t i = begin; i < end; i++)
        y[i] = (KG_T_output)(EXPRESSION);
}
"""


def entry(dtype: str, shape: list[int], stride: list[int] | None = None, **fill: Any) -> dict[str, Any]:
    if stride is None:
        stride = list(torch.empty(shape, device="meta").stride())
    return {"dtype": dtype, "shape": shape, "stride": stride, "align": 64, "fill": fill or {"kind": "normal", "mean": 0.0, "std": 1.0}}


class Folder:
    """A Task folder of one elementwise Op with reference.py, as somebody may write it by hand."""

    def __init__(self, path: Path, body: str = "return x * 2", x: dict[str, Any] | None = None, dtype: str = "float32") -> None:
        self.path = path
        (path / "cases").mkdir(parents=True)
        x = x or entry("float32", [5, 7])
        dims = [f"x_{i}" for i in range(len(x["shape"]))]
        self.op: dict[str, Any] = {
            "format": 1, "op": "odd", "schema": "odd(Tensor x) -> Tensor",
            "args": [{"name": "x", "type": "Tensor", "dtypes": [x["dtype"]], "shape": dims}],
            "dims": [], "dynamic": [], "checks": [],
            "outputs": [{"name": "output", "dtype": dtype, "shape": dims}],
            "holes": [], "reduction": "1", "flops": "0",
            "reference": {"kind": "source", "file": "reference.py", "name": "Model"},
        }  # fmt: skip
        self.case = {"format": 1, "op": "odd", "device": "cpu", "precision": "native", "args": {"x": x}, "count": 1}
        self.text = f"import torch\n\nclass Model(torch.nn.Module):\n    def forward(self, x):\n        {body}\n"

    def write(self) -> Path:
        meta = {
            "format": 1, "op": "odd", "title": "odd", "mode": "eval", "cases": 1, "graph": None, "no_graph": "by hand",
            "share": 1.0, "flags": {}, "source": {"model": "odd.py", "sha256": None}, "torch": "", "kgen": "",
        }  # fmt: skip
        for name, value in (("task.json", meta), ("op.json", self.op), ("cases/0.json", self.case)):
            (self.path / name).write_text(json.dumps(value))
        (self.path / "reference.py").write_text(self.text)
        return self.path

    def judge(self, source: str) -> dict[str, Any]:
        path = self.path / "candidate.c"
        path.write_text(source)
        (record,) = judge_files(tasks.read(self.write()), [path], None, False, Progress(quiet=True))
        return record

    def verdict(self, expression: str) -> str:
        record = self.judge(ELEMENTS.replace("EXPRESSION", expression))
        return f"{record['verdict']} {record['message']}".strip()


@pytest.fixture
def folder(tmp_path: Path) -> Callable[..., Folder]:
    return lambda *a, **k: Folder(tmp_path / "task", *a, **k)


def refused(f: Folder, kind: type[Exception] = BadInput) -> str:
    with pytest.raises(kind) as caught:
        f.verdict("x[i] * 2")
    text = str(caught.value)
    assert "\n" not in text and str(f.path) in text
    return text


def test_the_folder_itself_is_sound(folder: Callable[..., Folder]) -> None:
    f = folder()
    assert f.verdict("x[i] * 2") == "pass"
    assert f.verdict("x[i] * 2.001f").startswith("wrong_values")


@pytest.mark.parametrize(
    ("body", "says"),
    [
        ("raise ValueError('no such thing')", "the reference raises ValueError: no such thing"),
        ("return x.view(3, 3)", "the reference raises RuntimeError: shape '[3, 3]' is invalid"),
        ("import sys; sys.exit(3)", "the reference called sys.exit(3)"),
        ("return x + torch.rand_like(x)", "is not deterministic: two runs on the same inputs differ in output"),
        ("Model.n = getattr(Model, 'n', 0) + 1; return x * Model.n", "is not deterministic"),
        ("return None", "gives 0 tensors; op.json has 1 (output)"),
        ("return {'loss': 3.0}", "gives 0 tensors; op.json has 1 (output)"),
        ("return x * 2, x", "gives 2 tensors; op.json has 1 (output)"),
        ("return (x * 2).to('meta')", "gives output on meta; the Case is on cpu"),
        ("return torch.complex(x, x)", "gives complex64 for output; outputs are of float32"),
        ("return x.to(torch.float8_e4m3fn)", "gives float8_e4m3fn for output; outputs are of float32"),
        ("return (x * 2).to_sparse()", "layout torch.sparse_coo for output; expected a dense one"),
        ("return x.mul_(2)", "writes its input x; it must leave its inputs as they are"),
        ("x[0] = 0; return x * 2", "writes its input x"),
        ("return (x * 2).half().to(x.dtype) if x.dtype == torch.float32 else int('x')", "cannot be computed in fp64: ValueError"),
    ],
)  # fmt: skip
def test_a_reference_that_is_none_is_refused_with_the_reason(folder: Callable[..., Folder], body: str, says: str) -> None:
    assert says in refused(folder(body))


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("class Model(:\n", "importing it: SyntaxError"),
        ("import torch\n", "has no global named Model"),
        ("def Model():\n    return 3\n", "gives a int, not a torch.nn.Module"),
        ("import torch\nclass Model(torch.nn.Module):\n    def __init__(self):\n        raise OSError('gone')\n", "making Model: OSError: gone"),
        ("import torch\nclass Model(torch.nn.Module):\n    def forward(self, y):\n        return y\n", "raises TypeError"),
    ],
)  # fmt: skip
def test_a_reference_file_that_makes_no_module_is_named(folder: Callable[..., Folder], text: str, says: str) -> None:
    f = folder()
    f.text = text
    assert says in refused(f)


def test_nested_tuples_and_what_is_no_tensor_beside_the_output(folder: Callable[..., Folder]) -> None:
    assert folder("return {'a': (None, [x * 2]), 'b': 'text'}").verdict("x[i] * 2") == "pass"


def test_the_contract_and_the_reference_disagree(folder: Callable[..., Folder]) -> None:
    said = folder("return x.t() * 2").verdict("x[i]")
    assert said.startswith("wrong_shape_or_dtype")
    assert "output 'output': the contract says float32 (5, 7), the reference gave float32 (7, 5)" in said


def test_outputs_that_alias_the_input(folder: Callable[..., Folder]) -> None:
    f = folder("return x")
    assert f.verdict("x[i]") == "pass"
    assert f.verdict("x[i] * 2").startswith("wrong_values")


def test_an_output_that_is_a_view_of_the_input(folder: Callable[..., Folder]) -> None:
    f = folder("return x[:1]")
    f.op["outputs"][0]["shape"] = ["1", "x_1"]
    assert f.verdict("x[i]").startswith("out_of_bounds")


@pytest.mark.parametrize("shape", [[], [1], [1, 1, 1], [0], [3, 0, 2]])
def test_no_dims_and_no_elements(folder: Callable[..., Folder], shape: list[int]) -> None:
    f = folder(x=entry("float32", shape))
    assert f.verdict("x[i] * 2") == "pass"
    if 0 not in shape:
        assert f.verdict("x[i] * 3").startswith("wrong_values")


@pytest.mark.parametrize("dtype", ["int8", "uint8", "int16", "int32", "int64"])
def test_integers_wrap_and_are_exact(folder: Callable[..., Folder], dtype: str) -> None:
    info = torch.iinfo(getattr(torch, dtype))
    low, high = max(info.min, -(2**52)), min(info.max, 2**52)
    factor = 4099 if dtype == "int64" else 3
    f = folder(f"return x * {factor} + 1", entry(dtype, [40, 9], kind="integers", low=low, high=high), dtype)
    assert f.verdict(f"(uint64_t)x[i] * {factor}u + 1u") == "pass"
    assert f.verdict(f"(uint64_t)x[i] * {factor}u + (i == 359 ? 2u : 1u)").startswith("wrong_values")


def test_bools_in_and_out(folder: Callable[..., Folder]) -> None:
    f = folder("return ~x", entry("bool", [6, 5], kind="integers", low=0, high=1), "bool")
    assert f.verdict("!x[i]") == "pass"
    assert f.verdict("x[i]").startswith("wrong_values")


@pytest.mark.parametrize("dtype", ["complex64", "float8_e4m3fn", "uint32", "qint8"])
def test_dtypes_that_no_op_takes_are_named_with_those_it_does(folder: Callable[..., Folder], dtype: str) -> None:
    x = entry("float32", [2, 2])
    f = folder(x=x)
    x["dtype"] = dtype
    assert f"args.x.dtype is '{dtype}', expected one of float32, float64" in refused(f)


@pytest.mark.parametrize("dtype", ["complex64", "float8_e4m3fn"])
def test_contracts_of_such_dtypes_are_refused(folder: Callable[..., Folder], dtype: str) -> None:
    f = folder()
    f.op["outputs"][0]["dtype"] = dtype
    with pytest.raises(BadInput, match="dtype"):
        f.verdict("x[i]")


def test_an_input_that_is_all_nan(folder: Callable[..., Folder]) -> None:
    f = folder(x=entry("float32", [8], kind="values", file="x.bin"))
    (f.path / "cases" / "x.bin").write_bytes(torch.full((8,), float("nan")).numpy().tobytes())
    assert f.verdict("x[i] * 2") == "pass"
    assert f.verdict("0").startswith("wrong_values")


# 2^31 elements and more


BIG = (1 << 31) + 8
PICK = """/* kgen
{ "format": 1, "op": "odd", "target": "cpu",
  "launches": [{"kernel": "pick", "range": "x_0", "args": ["x", "output", {"i64": "x.stride(0)"}, {"TYPE": "x_1"}]}] }
*/
#include <stdint.h>
void pick(int64_t begin, int64_t end, const KG_T_x *x, KG_T_output *y, int64_t step, TYPE_t n) {
    for (int64_t i = begin; i < end; i++)
        y[i] = x[i * step] + (n == 2147483656 ? 1.0f : 0.0f);
}
"""


def test_more_than_two_to_the_31_elements_of_few_bytes(folder: Callable[..., Folder]) -> None:
    f = folder("return x[:, -1] + 1", entry("float32", [3, BIG], [1, 0]))
    f.op["outputs"][0]["shape"] = ["x_0"]
    assert f.judge(PICK.replace("TYPE_t", "int64_t").replace("TYPE", "i64"))["verdict"] == "pass"
    wrong = f.judge(PICK.replace("TYPE_t", "int32_t").replace("TYPE", "i32"))
    assert wrong["verdict"] == "plan_error" and "2147483656" in wrong["message"]


@pytest.mark.parametrize("shape", [[BIG], [1 << 39, 1 << 39]])
def test_what_does_not_fit_is_refused_with_its_size(
    folder: Callable[..., Folder], monkeypatch: pytest.MonkeyPatch, shape: list[int]
) -> None:
    monkeypatch.setattr(sets, "_host_free", lambda: 8 << 30)
    f = folder(x=entry("float32", shape, [1 << 39, 1][-len(shape) :]))
    if len(shape) == 1:
        text = refused(f, EnvironmentLacks)
        assert "4294967312 elements of inputs and outputs, as they are laid out, take 80.0 GiB in fp64, and 8.0 GiB are free" in text
    else:
        with pytest.raises(BadInput, match="elements|bytes|overflow"):
            f.verdict("x[i]")


# Any key, anything in it


ODD: tuple[Any, ...] = (
    None, -1, 0, 3, "", "abc", "../x", [], {}, True, 2**52, 1.5, ["x"], [-1, 2], [2**39, 2**39],
    {"kind": "values", "file": "../../x"}, {"kind": "normal", "mean": "a", "std": None}, {"kind": "integers", "low": 5, "high": 1},
    "DELETE",
)  # fmt: skip


def paths(value: Any, at: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The places in a JSON value, its own apart."""
    if at:
        yield at
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, v in inner:
        yield from paths(v, (*at, key))


def edited(value: Any, at: tuple[Any, ...], to: Any) -> Any:
    copy = json.loads(json.dumps(value))
    place = copy
    for key in at[:-1]:
        place = place[key]
    if to == "DELETE":
        del place[at[-1]]
    else:
        place[at[-1]] = to
    return copy


def edits(path: Path) -> Iterator[tuple[Path, str]]:
    for name in ("task.json", "op.json", "cases/0.json"):
        text = (path / name).read_text()
        value = json.loads(text)
        for at in paths(value):
            for to in ODD:
                yield path / name, json.dumps(edited(value, at, to))
        (path / name).write_text(text)


def survives(path: Path, every: int, seed: int) -> int:
    """Fills a judge from edited copies of a folder; anything but kgen's own errors is let out. How many were refused."""
    chosen, refused_ones = random.Random(seed), 0
    for file, text in edits(path):
        if chosen.randrange(every):
            continue
        file.write_text(text)
        try:
            task = tasks.read(path)
            reference = Reference.open(task)
            with Judge((path / "op.json").read_text()) as judge:
                sets.fill(judge, task, reference, 0)
        except KgenError as e:
            refused_ones += 1
            assert "\n" not in str(e)
    return refused_ones


def test_whatever_stands_in_a_key_is_judged_or_refused_in_one_line(folder: Callable[..., Folder]) -> None:
    assert survives(folder().write(), 12, 1) > 30


@pytest.mark.slow
@pytest.mark.parametrize("name", ["softmax_special", "embedding_bf16", "attention_causal"])
def test_so_it_is_in_captured_tasks(tmp_path: Path, name: str) -> None:
    import corpus_tasks

    corpus_tasks.write(name, tmp_path / "t")
    assert survives(tmp_path / "t", 30, 2) > 30


# Captured models


def capture(module: Callable[..., Any], inputs: tuple[torch.Tensor, ...], folder: Path) -> tasks.Task:
    from kgen import own, targets

    captured = Capture(from_live(module, inputs))
    (target,) = [t for t in own.own_targets(captured) if "" in t.paths]
    return tasks.read(tasks.write(targets.resolve(captured, target), captured, folder))


def judged(task: tasks.Task, source: str, folder: Path) -> dict[str, Any]:
    path = folder / "candidate.c"
    path.write_text(source.replace("OP", task.op))
    (record,) = judge_files(task, [path], None, False, Progress(quiet=True))
    return record


def test_a_degenerate_task_is_told(tmp_path: Path) -> None:
    def constant(x: torch.Tensor) -> torch.Tensor:
        return torch.softmax(x, 1) * 1.0

    task = capture(constant, (torch.randn(50, 1),), tmp_path / "t")
    source = ELEMENTS.replace('"odd"', '"OP"').replace("EXPRESSION", "x[i] - x[i] + 1")
    record = judged(task, source, tmp_path)
    assert record["verdict"] == "pass"
    assert {t["answer"] for t in record["details"]["degenerate"]} >= {"ones", "the mean"}


def test_one_number_and_fixed_inputs_are_not_degenerate(tmp_path: Path) -> None:
    task = capture(lambda x, i: torch.nn.functional.cross_entropy(x, i), (torch.randn(9, 5), torch.randint(0, 5, (9,))), tmp_path / "t")
    source = """/* kgen
{ "format": 1, "op": "OP", "target": "cpu", "launches": [{"kernel": "f", "range": "1", "args": ["output"]}] }
*/
#include <stdint.h>
void f(int64_t b, int64_t e, KG_T_output *y) { for (; b < e; b++) *y = 1.5f; }
"""
    record = judged(task, source, tmp_path)
    assert record["verdict"] == "wrong_values" and "degenerate" not in record["details"]


def test_a_kernel_that_knows_the_captured_integers_is_found_out(tmp_path: Path) -> None:
    """Integers are captured with their values; an answer to those alone is none."""
    x = torch.tensor([5, 3, 9, 1, 7, 2, 8], dtype=torch.int64)
    task = capture(lambda x: x * x, (x,), tmp_path / "t")
    known = ", ".join(str(v * v) for v in x.tolist())
    knows = f"((const int64_t[]){{{known}}})[i]"
    source = ELEMENTS.replace('"odd"', '"OP"')
    assert judged(task, source.replace("EXPRESSION", knows), tmp_path)["verdict"] == "wrong_values"
    assert judged(task, source.replace("EXPRESSION", "x[i] * x[i]"), tmp_path)["verdict"] == "pass"


def test_offsets_keep_their_order(tmp_path: Path) -> None:
    """What rises is not shuffled: it may be offsets, of which another order is no input."""
    task = capture(lambda x: x.diff(), (torch.tensor([0, 3, 7, 12]),), tmp_path / "t")
    assert sets.distributions(task, 0) == ["captured"]

