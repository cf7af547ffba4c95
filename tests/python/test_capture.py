"""Capture: where models come from, what is recorded, what is refused and how, and the Task folders."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

MODELS = Path(__file__).resolve().parent.parent / "models"
sys.path.insert(0, str(MODELS))

import attentions  # noqa: E402

from kgen import capture, own, targets, task  # noqa: E402
from kgen.capture import Capture, from_live, load  # noqa: E402
from kgen.errors import BadInput, KgenError, NotATarget  # noqa: E402

ROOT = MODELS.parent.parent


# Sources


def test_kernelbench_file() -> None:
    model = load(str(MODELS / "kernelbench.py"))
    assert model.title == "Model" and len(model.module.layers) == 2
    assert [tuple(a.shape) for a in model.args] == [(4, 16)]
    again = load(str(MODELS / "kernelbench.py"))
    torch.testing.assert_close(model.args[0], again.args[0])
    torch.testing.assert_close(model.module.layers[0].weight, again.module.layers[0].weight)
    assert len(model.source.sha256) == 64


def test_script_sees_its_arguments_and_not_main() -> None:
    path = str(MODELS / "script.py")
    model = load(path, module="model", inputs="pair", argv=("12",))
    assert model.module[0].in_features == 12 and model.args[0].shape == (3, 12)
    model = load(path, module="build", inputs="batch")
    assert model.module[0].out_features == 16 and model.kwargs["input"].shape == (3, 8)
    assert sys.argv[0] != path


@pytest.mark.parametrize(
    ("module", "inputs", "missing"),
    [(None, None, "--module and --inputs"), ("model", None, "--inputs"), (None, "pair", "--module")],
)
def test_script_without_names_shows_a_stub(module: str | None, inputs: str | None, missing: str) -> None:
    with pytest.raises(BadInput) as e:
        load(str(MODELS / "script.py"), module=module, inputs=inputs)
    first, *stub = str(e.value).splitlines()
    assert missing in first and len(stub) == 6
    assert "__kgen__" in stub[0] and "--module model --inputs inputs" in stub[-1]


def test_script_without_the_global_names_it() -> None:
    with pytest.raises(BadInput, match="no global named modle"):
        load(str(MODELS / "script.py"), module="modle", inputs="pair")


def test_dotted_function_module_and_factory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "dotted_models.py").write_text(
        "import torch\nfrom torch import nn\n"
        "def f(x, y): return torch.softmax(x + y, -1)\n"
        "def get_inputs(): return [torch.randn(2, 3), torch.randn(2, 3)]\n"
        "def make(): return nn.Linear(3, 4)\n"
        "def both(): return nn.Linear(5, 4), (torch.randn(2, 5),)\n"
        "one = lambda: torch.randn(2, 3)\n"
        "number = 3\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    assert len(load("dotted_models:f").args) == 2
    assert load("dotted_models:f").title == "f"
    assert load("dotted_models:make", inputs="one").args[0].shape == (2, 3)
    monkeypatch.setattr(sys.modules["dotted_models"], "get_inputs", None)
    assert load("dotted_models:both").args[0].shape == (2, 5)
    for spec, said in (
        ("dotted_models:number", "is a int"),
        ("dotted_models:nothing", "no attribute nothing"),
        ("dotted_models:f", "no inputs"),
    ):
        with pytest.raises(BadInput, match=said):
            load(spec)
    with pytest.raises(BadInput, match="ModuleNotFoundError"):
        load("no_such_module_anywhere:f")


def test_live_module_and_function() -> None:
    module = nn.Linear(3, 4)
    assert from_live(module, torch.randn(2, 3)).module is module
    made = Capture(from_live(lambda x: torch.softmax(x, 0), (torch.randn(4),)))
    found = targets.survey(made).targets
    assert [t.op for t in found if t.canonical] == ["softmax"]
    with pytest.raises(BadInput, match="module or a function"):
        from_live(3, (torch.randn(4),))


# Bad models: one line, the file and the line number


BAD = {
    "does not import": ("import torch\nimport no_such_package_here\n", r"model.py:2: importing it: ModuleNotFoundError"),
    "syntax": ("import torch\ndef f(:\n", r"model.py:2: importing it: SyntaxError"),
    "exits": ("import sys\nsys.exit(4)\n", r"model.py:2: importing it: it called sys.exit\(4\)"),
    "no inputs": ("import torch\nclass Model(torch.nn.Module):\n    pass\n", r"no get_inputs\(\)"),
    "fails to build": (
        "import torch\nclass Model(torch.nn.Module):\n    def __init__(self, n): super().__init__()\n"
        "def get_inputs(): return []\n",
        r"Model\(...\): TypeError",
    ),
    "no module": ("def Model(): return 3\ndef get_inputs(): return []\n", "gives a int, not a torch.nn.Module"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_file(name: str, tmp_path: Path) -> None:
    text, said = BAD[name]
    path = tmp_path / "model.py"
    path.write_text(text)
    with pytest.raises(BadInput, match=said) as e:
        load(str(path))
    assert "\n" not in str(e.value) and e.value.code == 2


def test_missing_file() -> None:
    with pytest.raises(BadInput, match="no such file"):
        load("nowhere")
    with pytest.raises(BadInput, match="No such file"):
        load("nowhere.py")


def test_forward_that_fails_names_its_line(tmp_path: Path) -> None:
    path = tmp_path / "model.py"
    path.write_text(
        "import torch\nclass Model(torch.nn.Module):\n    def forward(self, x):\n        return x @ x\n"
        "def get_inputs(): return [torch.randn(2, 3)]\n"
    )
    with pytest.raises(BadInput, match=r"model.py:4: the forward: RuntimeError"):
        Capture(load(str(path)))


class Says(nn.Module):
    def __init__(self, f) -> None:
        super().__init__()
        self.f = f

    def forward(self, x: torch.Tensor):
        return self.f(x)


def test_no_tensor_and_not_deterministic() -> None:
    with pytest.raises(BadInput, match="returns a int without a tensor"):
        Capture(from_live(Says(lambda x: 3), (torch.ones(2),)))
    count = iter(range(100))
    with pytest.raises(BadInput, match="Says is not deterministic"):
        Capture(from_live(Says(lambda x: x + next(count)), (torch.ones(2),)))


# What is recorded


class Noisy(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.drop = nn.Dropout(0.5)
        self.norm = nn.BatchNorm1d(6)
        self.linear = nn.Linear(6, 6)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.linear(self.norm(self.drop(x))).softmax(-1)


def test_random_and_buffers_are_no_targets_and_nothing_changes() -> None:
    module = Noisy().train()
    before = {k: v.clone() for k, v in module.state_dict().items()}
    x = torch.randn(4, 6)
    state = torch.get_rng_state()
    made = Capture(from_live(module, (x,)))
    assert made.mode == "train"
    assert made.parts["drop"].refusal == "its forward draws random numbers"
    assert "writes the buffer" in made.parts["norm"].refusal
    assert "writes the buffer" in made.parts[""].refusal
    assert made.parts["linear"].refusal is None
    assert module.training and torch.equal(state, torch.get_rng_state())
    for k, v in module.state_dict().items():
        assert torch.equal(v, before[k]), k
    quiet = Capture(from_live(module, (torch.randn(4, 6),)), train=False)
    assert all(p.refusal is None for p in quiet.parts.values()) and module.training


def test_calls_of_different_shapes_become_cases_and_equal_layers_merge() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = attentions.Causal(), attentions.Causal()

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.b(self.a(x)[:, :10]) + self.a(x)[:, :10]

    made = Capture(from_live(Two().eval(), (torch.randn(2, 24, 32),)))
    found = targets.survey(made)
    (attention,) = [t for t in found.targets if t.op == "attention"]
    counts = {tuple(c.args["query"].shape): c.count for c in attention.cases}
    assert counts == {(2, 4, 24, 8): 2, (2, 4, 10, 8): 1}
    assert 0 < attention.share <= 1 and attention.floor > 0
    assert sorted(set(attention.paths)) == ["a", "b"]


def test_a_part_without_a_graph_is_walked_into() -> None:
    class Branch(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = attentions.Alibi()

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y = self.inner(x)
            return y if y.sum().item() > -1e30 else x

    made = Capture(from_live(Branch().eval(), (torch.randn(2, 24, 32),)))
    found = targets.survey(made)
    assert [t.op for t in found.targets if t.canonical] == ["attention"]
    assert found.targets[0].paths == ["inner"]
    assert found.no_graph and found.no_graph[0][0] == ""


def test_copies_keep_strides_and_share_nothing() -> None:
    base = torch.arange(24.0).view(2, 3, 4)
    for x in (base, base.transpose(0, 2), base[:, ::2], base[:, :1].expand(2, 5, 4), torch.ones(()).expand(3, 3)):
        y = capture.copy_of(x)
        assert y.stride() == x.stride() and torch.equal(x, y) and y.data_ptr() != x.data_ptr()


def test_a_forward_that_writes_its_input_is_no_target() -> None:
    x = torch.ones(4)
    made = Capture(from_live(Says(lambda x: x.add_(1).softmax(0)), (x,)))
    assert torch.equal(x, torch.ones(4))
    assert "writes its input" in targets.survey(made).no_graph[0][1]


# Tasks


@pytest.fixture
def survey(tmp_path: Path) -> tuple[Capture, targets.Survey]:
    made = Capture(load(str(MODELS / "kernelbench.py")))
    return made, targets.survey(made)


def test_own_ops_have_names_by_graph_and_patterns_select(survey) -> None:
    made, found = survey
    (whole,) = targets.select(found, ["Model"])
    targets.resolve(made, whole)
    assert whole.op.startswith("model_") and len(whole.op) == len("model_") + 8
    again = Capture(load(str(MODELS / "kernelbench.py")))
    (other,) = targets.select(targets.survey(again), ["Model"])
    assert targets.resolve(again, other).op == whole.op
    with pytest.raises(BadInput, match="--target nope matches nothing"):
        targets.select(found, ["nope"])


def test_task_folder_round_trip(survey, tmp_path: Path) -> None:
    made, found = survey
    (whole,) = targets.select(found, ["Model"])
    folder = task.write(targets.resolve(made, whole), made, tmp_path / "t")
    read = task.read(folder)
    assert read.op == whole.op and read.meta["mode"] == "train" and read.meta["cases"] == 1
    assert list(read.cases[0]["args"])[0] == "x"
    assert read.contract["args"][0]["shape"] == ["x_0", "x_1"]
    assert read.contract["outputs"] == [{"name": "output", "dtype": "float32", "shape": ["4", "16"]}]
    assert read.contract["reduction"] == "16"
    assert int(read.contract["flops"]) == 2 * 2 * 4 * 16 * 16
    assert {p.name for p in folder.iterdir()} == {"task.json", "op.json", "cases", "graph.txt", "reference.pt2", "source.txt"}
    # Written again in place, and nothing is left beside it.
    task.write(whole, made, folder)
    assert [p.name for p in tmp_path.iterdir()] == ["t"]


def test_weights_do_not_travel(survey, tmp_path: Path) -> None:
    made, found = survey
    (whole,) = targets.select(found, ["Model"])
    folder = task.write(targets.resolve(made, whole), made, tmp_path / "t")
    secret = made.model.module.layers[0].weight.detach().numpy().tobytes()[:64]
    assert secret not in (folder / "reference.pt2").read_bytes()


def test_what_is_no_task_folder_is_not_overwritten(survey, tmp_path: Path) -> None:
    made, found = survey
    (whole,) = targets.select(found, ["Model"])
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("precious")
    with pytest.raises(BadInput, match="no Task folder"):
        task.write(targets.resolve(made, whole), made, tmp_path / "mine")
    assert (tmp_path / "mine" / "thesis.txt").read_text() == "precious"


def test_a_write_that_fails_leaves_the_old_task(survey, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made, found = survey
    (whole,) = targets.select(found, ["Model"])
    folder = task.write(targets.resolve(made, whole), made, tmp_path / "t")
    before = sorted(p.name for p in folder.rglob("*"))

    def full(fd: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(task.os, "fsync", full)
    with pytest.raises(KgenError, match="No space left on device") as e:
        task.write(whole, made, folder)
    assert e.value.code == 3
    assert sorted(p.name for p in folder.rglob("*")) == before
    assert [p.name for p in tmp_path.iterdir()] == ["t"]


def test_too_many_tensors_is_said() -> None:
    module = nn.Sequential(*[nn.Linear(4, 4) for _ in range(13)])
    made = Capture(from_live(module, (torch.randn(2, 4),)))
    (whole,) = targets.select(targets.survey(made), ["Sequential"])
    with pytest.raises(NotATarget, match="27 tensors; an Op takes at most 24"):
        own.contract(whole, own.lift(targets.resolve(made, whole)))


BROKEN = {
    "cases/0.json": [
        (lambda c: c.update(color=1), "unknown key color"),
        (lambda c: c.update(format=2), "format 2 is newer"),
        (lambda c: c["args"]["x"].update(dtype="float8"), "args.x.dtype is 'float8'"),
        (lambda c: c["args"]["x"].pop("align"), "key align is missing"),
        (lambda c: c["args"]["x"]["fill"].update(kind="zeros"), "fill.kind is 'zeros'"),
        (lambda c: c["args"]["x"].update(stride=[1]), "stride has 1 entries, shape 2"),
        (lambda c: c.update(op="other"), "op is 'other'"),
    ],
    "task.json": [
        (lambda c: c.update(cases=0), "cases is 0"),
        (lambda c: c.update(op="other"), "task.json is of other"),
    ],
}


def test_broken_tasks_are_named(survey, tmp_path: Path) -> None:
    made, found = survey
    (whole,) = targets.select(found, ["Model"])
    folder = task.write(targets.resolve(made, whole), made, tmp_path / "t")
    for name, changes in BROKEN.items():
        for i, (change, said) in enumerate(changes):
            copy = tmp_path / f"{Path(name).stem}{i}"
            shutil.copytree(folder, copy)
            value = json.loads((copy / name).read_text())
            change(value)
            (copy / name).write_text(json.dumps(value))
            with pytest.raises(BadInput, match=said):
                task.read(copy)
    (folder / "task.json").write_text('{"format": 1, "format": 1}')
    with pytest.raises(BadInput, match="format is given twice"):
        task.read(folder)


def test_the_example_model() -> None:
    """examples/gpt.py: three layers are one Case, and the softmax at the end is found."""
    model = load(str(ROOT / "examples" / "gpt.py"))
    small = type(model.module)(128, 64, 4, 3)
    made = Capture(from_live(small, (torch.randint(0, 128, (1, 48)),)))
    found = targets.survey(made, own=False)
    by_op = {t.op: t for t in found.targets}
    assert set(by_op) == {"attention", "softmax", "layer_norm", "linear"} and not found.left
    assert sum(c.count for c in by_op["linear"].cases) == 9  # a layer: with GELU, and two with the residual behind it
    assert [c.count for c in by_op["layer_norm"].cases] == [7]
    (case,) = by_op["attention"].cases
    assert case.count == 3 and tuple(case.args["query"].shape) == (1, 4, 48, 16)
    assert case.density == pytest.approx(0.5, abs=0.02)
    text, captured, scalars = case.program
    assert "mask\n%0 = ge bool q kv" in text and len(captured) == 1 and captured[0].shape == (4,)
    assert capture.signature_of((torch.ones(2),), {}) == capture.signature_of((torch.zeros(2),), {})


class Project(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(6, 6)

    def forward(self, x: torch.Tensor, *, gain: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        y = torch.relu(self.linear(x)) * gain
        return y, y.flatten(0, 1).sum(-1)


class Thrice(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = Project()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        gain = torch.ones(6)
        a, s = self.inner(x, gain=gain)
        b, t = self.inner(x[:, :5], gain=gain)
        return a.sum() + b.sum() + s.sum() + t.sum() + self.inner(x, gain=gain)[1].sum()


def test_an_own_op_with_several_shapes_leaves_the_varying_sizes_open(tmp_path: Path) -> None:
    from kgen.reference import Reference, draw

    made = Capture(from_live(Thrice().eval(), (torch.randn(3, 8, 6),)))
    (target,) = targets.select(targets.survey(made), ["Project"])
    read = task.read(task.write(targets.resolve(made, target), made, tmp_path / "t"))
    assert not target.notes
    names = [a["name"] for a in read.contract["args"]]
    assert names == ["x", "gain", "linear_weight", "linear_bias"]
    assert [c["args"]["x"]["shape"] for c in read.cases] == [[3, 8, 6], [3, 5, 6]]
    assert [c["count"] for c in read.cases] == [2, 1]
    assert read.contract["dynamic"] == ["x_1"]
    assert not any(c["expr"].startswith("x_1 ") for c in read.contract["checks"])
    assert [o["shape"] for o in read.contract["outputs"]] == [["3", "x_1", "6"], ["x_1 * 3"]]
    reference = Reference.open(read)
    for case in read.cases:
        d = draw(read, case, 1)
        e = reference.expected(d)
        x, gain, w, b = (d.args[n].double() for n in names)
        y = torch.relu(x @ w.T + b) * gain
        torch.testing.assert_close(e.outputs[0], y, rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(e.outputs[1], y.flatten(0, 1).sum(-1), rtol=1e-12, atol=1e-12)
        assert e.oracle == "fp64" and e.norm_err[0] < 1e-6


def test_a_shape_that_the_code_depends_on_is_said(tmp_path: Path) -> None:
    class Fixed(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x.softmax(-1) if x.shape[0] == 4 else x * 2

    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = Fixed()

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.inner(x).sum() + self.inner(x[:3]).sum()

    made = Capture(from_live(Twice(), (torch.randn(4, 6),)))
    (target,) = targets.select(targets.survey(made), ["Fixed"])
    targets.resolve(made, target)
    assert len(target.cases) == 1 and "1 other shapes are left out" in target.notes[0]
    assert task.read(task.write(target, made, tmp_path / "t")).contract["dynamic"] == []
