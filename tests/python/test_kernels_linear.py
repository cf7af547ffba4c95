"""The house kernel for a linear of few rows through the judge: shapes that straddle vectors and items, gaps between rows,
epilogues, every vector width; mutants of the kernel, and schemes that only some inputs tell from a float32 product."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import pytest
from test_kernels_cpu import ARCHES, maybe_slow, source

from kgen import epilogues, mutants, spread
from kgen.epilogues import Product
from kgen.judge import Judge
from kgen.reference import Reference
from kgen.task import canonical_contract

CONTRACT = canonical_contract("linear").decode()
FEW = "matmul/linear_few.c"
BRIEF = ("gelu", "gated", "dropout_mask")
SIZES = (Product(1, 1, 33, 17), Product(1, 3, 19, 130), Product(1, 6, 5, 1), Product(1, 16, 50, 1100), Product(1, 2, 16, 64))


def verdict(text: str, trials: Sequence[Any], arch: str | None = None) -> tuple[str, str]:
    found = spread.judge(CONTRACT, text.encode(), FEW, None, trials, arch=arch)
    return found.verdict, found.message


@pytest.mark.parametrize(
    "arch, dtype", [maybe_slow(a == ARCHES[-1] and d == "float32", a, d) for a in ARCHES for d in ("float32", "float16", "bfloat16")]
)
def test_few_rows(arch: str, dtype: str) -> None:
    trials = epilogues.dense("linear", dtype, SIZES, ("bias",), (64, 4))
    at = Product(1, 5, 35, 40)
    trials += [epilogues.trial("linear", dtype, at, (), p, n) for n, p in epilogues.named("linear", at, dtype) if n in BRIEF]
    trials += [epilogues.trial("linear", dtype, at, ("bias",), p, name) for name, p in epilogues.random_ones(1, at)]
    assert verdict(source(FEW), trials, arch) == ("pass", "")


MUTANTS = {
    "the end of a sum": ("    if (i < k) {", "    if (i < k && 0) {"),
    "the bias": ("bias != NULL && c < count", "bias != NULL && 0"),
    "the epilogue's row": ("kg_epilogue_row(p, 0, (int)m)", "kg_epilogue_row(p, 0, 0)"),
    "the epilogue's column": ("(int)first + c);", "c);"),
    "the last rows of the input": ("if (nrows - m == 1)", "if (nrows - m == 99)"),
    "blocks of K": ("        if (n == nk)\n            break;", "        break;"),
}


@pytest.mark.parametrize("name", MUTANTS)
def test_mutants_fail(name: str) -> None:
    at = Product(1, 5, 35, 1100)
    program = next(p for n, p in epilogues.named("linear", at) if n == "gelu_residual")
    trials = [epilogues.trial("linear", "float32", at, ("bias",), program)]
    assert verdict(source(FEW), trials)[0] == "pass"
    assert verdict(source(FEW, MUTANTS[name]), trials)[0] in ("wrong_values", "nonfinite", "not_all_written")


# Elements as a scheme on tensor cores may have them: two halves under one scale a row, which must leave nothing of a row's
# small elements beside its large ones.
SPLIT = """
static float split(float x, float most) {
    int exponent = 0;
    if (most == 0 || !(most < INFINITY))
        return x;
    frexpf(most, &exponent);
    float y = ldexpf(x, 14 - exponent), high = (float)(_Float16)y, low = (float)(_Float16)(y - high);
    return ldexpf(high + low, exponent - 14);
}
static float row(const float *x, int64_t k, int64_t i) {
    float most = 0;
    for (int64_t j = 0; j < k; j++)
        most = fabsf(x[j]) > most ? fabsf(x[j]) : most;
    return split(x[i], most);
}
"""
NAIVE = """/* kgen
{ "format": 1, "op": "linear", "target": "cpu", "require": "input.contiguous && weight.contiguous",
  "launches": [{"kernel": "all", "range": "M", "args": ["input", "weight", "bias", "output", {"i64": "N"}, {"i64": "K"}]}] }
*/
#include <math.h>
#include <stdint.h>
""" + SPLIT + """
void all(int64_t begin, int64_t end, const float *x, const float *w, const float *bias, float *out, int64_t n, int64_t k) {
    for (int64_t m = begin; m < end; m++)
        for (int64_t j = 0; j < n; j++) {
            float sum = 0;
            for (int64_t i = 0; i < k; i++)
                sum += INPUT * WEIGHT;
            out[m * n + j] = sum + (bias ? bias[j] : 0.0f);
        }
}
"""


def naive(given: str, weight: str) -> str:
    return NAIVE.replace("INPUT", given).replace("WEIGHT", weight)


def judged(text: str) -> dict[str, Any]:
    with Judge(CONTRACT) as judge:
        spread.add(judge, json.loads(CONTRACT), epilogues.trial("linear", "float32", Product(1, 6, 9, 70)))
        return judge.run(text)


def test_a_row_of_one_scale_is_seen_where_its_large_elements_meet_zeros() -> None:
    assert judged(naive("x[m * k + i]", "w[j * k + i]"))["verdict"] == "pass"
    found = judged(naive("row(x + m * k, k, i)", "w[j * k + i]"))
    assert found["verdict"] == "wrong_values" and "shadowed" in found["message"], found["message"]


def test_a_product_of_lower_precision_is_seen_on_any_inputs() -> None:
    found = judged(naive("(float)(_Float16)x[m * k + i]", "w[j * k + i]"))
    assert found["verdict"] in ("wrong_values", "nonfinite"), found["message"]


def test_every_term_of_an_epilogue_has_a_mutant_that_shows() -> None:
    at = Product(1, 6, 9, 20)
    program = next(p for n, p in epilogues.named("linear", at) if n == "gelu_residual")
    trial = epilogues.trial("linear", "float32", at, ("bias",), program)
    reference = Reference.open(trial.task(json.loads(CONTRACT)))
    examiner = mutants.Examiner(reference)
    labels = [m.label for m in examiner.unseen]
    assert any("erf" in label for label in labels) and "linear without the bias" in labels
    for seed, name in enumerate(("captured", "normal", "large")):
        drawn = reference.draw(trial.case, seed, name)
        examiner.look(0, at.k, drawn, reference.expected(drawn))
    found = examiner.found()["mutants"]
    assert found["equivalent"] == [] and found["seen"] == len(labels), found
