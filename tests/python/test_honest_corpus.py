"""The honest corpus: every Candidate in it passes; each of a sample with one thing broken does not.

A file that is refused is a bug of the judge, or no honest file. Most of it is slow; what was refused by mistake once is
judged in every run.
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "judge"))

import corpus_tasks  # noqa: E402

from kgen import task as tasks  # noqa: E402
from kgen.judge_command import judge_files  # noqa: E402
from kgen.ui import Progress  # noqa: E402

HONEST = corpus_tasks.HONEST
EXPECTED = corpus_tasks.expected()
TASKS = sorted({e["task"] for e in EXPECTED.values()})
# What a budget that knew less of reductions, of cancelling sums and of ties refused.
ONCE_REFUSED = ("var_mean", "mse_loss", "topk", "softmax_rows")


@pytest.fixture(scope="module")
def task_of(tmp_path_factory: pytest.TempPathFactory) -> Any:
    base, made = tmp_path_factory.mktemp("tasks"), {}

    def get(name: str) -> tasks.Task:
        if name not in made:
            made[name] = corpus_tasks.write(name, base / name)
        return made[name]

    return get


def records(task: tasks.Task, files: list[Path]) -> list[dict[str, Any]]:
    return list(judge_files(task, files, None, False, Progress(quiet=True)))


def head(path: Path) -> tuple[dict[str, Any], str]:
    """The plan and the sentence behind it."""
    found = re.match(r"/\* kgen\n(.*?)\n\*/\n/\* (.*?) \*/", path.read_text(), re.S)
    assert found, path.name
    return json.loads(found.group(1)), " ".join(found.group(2).replace("\n *", " ").split())


def test_the_table_is_of_the_files_that_are_there() -> None:
    assert set(EXPECTED) == {p.name for p in HONEST.glob("*.c")} and len(EXPECTED) >= 100
    assert set(TASKS) == set(corpus_tasks.names()) and len(TASKS) >= 12
    readme = (HONEST / "README.md").read_text()
    for name, e in EXPECTED.items():
        assert set(e) == {"verdicts", "task", "why", "slow"} and e["verdicts"] == ["pass"]
        plan, sentence = head(HONEST / name)
        assert plan["op"] in (e["task"], "softmax", "attention") and sentence == e["why"], name
        assert f"`{name}`" in readme, name


def test_no_two_are_one() -> None:
    def code(path: Path) -> str:
        return re.sub(r"\s+", "", path.read_text().partition("*/")[2].partition("*/")[2])

    assert len({code(HONEST / n) for n in EXPECTED}) == len(EXPECTED)


def all_pass(task: tasks.Task, name: str) -> None:
    files = [HONEST / n for n, e in EXPECTED.items() if e["task"] == name]
    wrong = [f"{p.name}: {r['verdict']}: {r['message']}" for p, r in zip(files, records(task, files), strict=True) if r["verdict"] != "pass"]
    assert wrong == []


@pytest.mark.parametrize("name", ONCE_REFUSED)
def test_what_was_refused_by_mistake_passes(task_of: Any, name: str) -> None:
    all_pass(task_of(name), name)


@pytest.mark.slow
@pytest.mark.parametrize("name", [t for t in TASKS if t not in ONCE_REFUSED])
def test_every_honest_candidate_passes(task_of: Any, name: str) -> None:
    all_pass(task_of(name), name)


# One thing broken: file, what stood there, what stands there now.
BROKEN = (
    ("var_mean_two_outputs", ("(double)(n - 1)", "(double)n")),
    ("topk_insertion", ("p[i * 4 + at] = k;", "p[i * 4 + at] = k == 17 ? 16 : k;")),
    ("softmax_online", ("sum *= expf(peak - v);", "")),
    ("quantise_reciprocal", ("nearbyintf(x[i * n + k] * back)", "truncf(x[i * n + k] * back)")),
    ("rms_norm_plain", ("1e-6f", "1e-3f")),
    ("layer_norm_two_pass", ("1e-5f", "0.0f")),
    ("group_norm_groups", ("k < n", "k < n - 1")),
    ("matmul_three_loops", ("p < k;", "p < k - 1;")),
    ("matmul_f16_split", ("ah * bl + al * bh", "0 * (bl + al)")),
    ("matmul_tf32_three", ("xh * tf32(y - yh) + tf32(x - xh) * yh", "0")),
    ("matmul_bf16_three_way", ("s0 + (s1 + s2)", "s0 + s1 * (s2 == s2)")),
    ("matmul_int_unsigned", ("uint32_t sum = 0", "uint32_t sum = i == 23")),
    ("gelu_libm", ("erff(x[i] * 0.70710678f)", "tanhf(0.79788456f * (x[i] + 0.044715f * x[i] * x[i] * x[i]))")),
    ("argmax_keys", ("(0xffffffffu - (uint32_t)k)", "(uint32_t)k"), ("0xffffffffu - (uint32_t)best", "(uint32_t)best")),
    ("cumsum_serial", ("sum += x[i * n + k]", "sum += k == 999 ? 0 : x[i * n + k]")),
    ("index_add_buckets", ("i >= 0", "i > 0")),
    ("histogram_slow", ("i < n", "i < n - 1")),
    ("cross_entropy_rows", ("/ (float)m", "/ (float)(m - 1)")),
    ("sum_all_lanes", ("i < n; i++, l++", "i < n - 1; i++, l++")),
    ("scale_subnormal_float", ("x[i * n + k] * s[k]", "x[i * n + k] * s[k] * (x[i * n + k] * s[k] > 0x1p-126f)")),
    ("relu_special_select", ("x[i] <= 0 ? 0.0f : x[i]", "x[i] > 0 ? x[i] : 0.0f")),
    ("compare_plain", ("a[i] > b[i]", "a[i] >= b[i]")),
    ("masked_fill_branch", ("m[i] ?", "m[i] && i < 999 ?")),
    ("embedding_copy", ("at[i] * n", "(at[i] & 127) * n")),
    ("attention_split_keys", ("e % 4 * sk / 4", "(e % 4 * sk + 3) / 4")),
    ("avg_pool_windows", ("1.0f / 9.0f", "1.0f / 8.0f")),
    ("l2_normalise_plain", ("1e-12f", "1e-4f")),
    ("isfinite_bits", ("!= 255", "< 128")),
    ("adamw_fused", ("0.999f * v[i]", "0.99f * v[i]")),
    ("rope_halves", ("b * co + a * si", "b * co - a * si")),
)  # fmt: skip
QUICK = 2


@pytest.mark.parametrize(
    ("name", "changes"),
    [pytest.param(n, c, marks=[] if i < QUICK else pytest.mark.slow, id=n) for i, (n, *c) in enumerate(BROKEN)],
)
def test_with_one_thing_broken_it_is_refused(task_of: Any, tmp_path: Path, name: str, changes: list[tuple[str, str]]) -> None:
    text = (HONEST / f"{name}.c").read_text()
    for old, new in changes:
        assert old in text
        text = text.replace(old, new)
    path = tmp_path / f"{name}.c"
    path.write_text(text)
    (record,) = records(task_of(EXPECTED[path.name]["task"]), [path])
    assert record["verdict"] in ("wrong_values", "nonfinite", "not_all_written", "out_of_bounds"), record["message"]
