"""The judge on a GPU: each verdict by a Candidate of its own, the checking kernels against torch and against the CPU's
comparison, and the speed at which they run."""

from __future__ import annotations

import math
import re
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from kgen import judge as judging
from kgen.judge import Judge
from test_judge import CANDIDATES as CPU_CANDIDATES
from test_judge import SOFTMAX, VERDICTS, case_of, expected_verdict, tensor_spec

pytestmark = pytest.mark.cuda

FOLDER = Path(__file__).resolve().parent.parent / "judge" / "candidates"
CANDIDATES = sorted(FOLDER.glob("*.cu"))
TINY = (64, 100)
GPU = torch.device("cuda", 0)
PLAIN = (FOLDER / "pass_plain.cu").read_text()


def add_softmax(judge: Judge, *inputs: torch.Tensor, precision: str = "native") -> int:
    x = inputs[0]
    case = case_of("softmax", {"input": tensor_spec(x, 256), "dim": -1}) | {"device": "cuda", "precision": precision}
    index = judge.add_case(case)
    for i, x in enumerate(inputs):
        judge.add_set(index, [x], [torch.softmax(x.double(), -1)], results=[torch.softmax(x, -1)], name=f"set {i}")
    return index


def tiny_sets(device: torch.device | str = GPU) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(TINY, generator=generator)
    # The second set is what a kernel without the maximum does not survive.
    return [x.to(device), (1000 + torch.randn(TINY, generator=generator)).to(device)]


def needs_more(path: Path) -> bool:
    wanted = re.search(r'"min_arch": "sm_(\d+)"', path.read_text())
    major, minor = torch.cuda.get_device_capability(GPU)
    return bool(wanted) and int(wanted.group(1)) > 10 * major + minor and not path.stem.startswith("launch_error")


@pytest.fixture(scope="module")
def tiny() -> Iterator[Judge]:
    with Judge(SOFTMAX, timeout_ms=20000, device=GPU) as judge:
        add_softmax(judge, *tiny_sets())
        yield judge


@pytest.mark.parametrize("path", [p for p in CANDIDATES if "timeout" not in p.name], ids=lambda p: p.stem)
def test_candidate_gets_its_verdict(tiny: Judge, path: Path) -> None:
    if needs_more(path):
        pytest.skip(f"{path.name} is for a newer GPU")
    gets_its_verdict(tiny, path)


def test_a_hang_costs_its_limit() -> None:
    with Judge(SOFTMAX, timeout_ms=400, device=GPU) as judge:
        add_softmax(judge, *tiny_sets())
        gets_its_verdict(judge, FOLDER / "timeout_spin.cu")
        start = time.monotonic()
        judge.run((FOLDER / "timeout_spin.cu").read_text())
        assert 0.4 < time.monotonic() - start < 1.6, "the limit, a kill, a proof of health and a worker"


def gets_its_verdict(judge: Judge, path: Path) -> None:
    text = path.read_text()
    record = judge.run(text, name=path.name)
    assert record["verdict"] == expected_verdict(path), record["message"]
    wanted = re.search(r"\* expects: (.*?) \*/", text)
    if wanted:
        assert wanted.group(1) in record["message"]
    if record["verdict"] != "pass":
        assert record["message"]
    # The device is as good as before.
    assert judge.run(PLAIN)["verdict"] == "pass"


def test_every_verdict_has_a_candidate_or_a_test() -> None:
    covered = {expected_verdict(p) for p in CANDIDATES} | {"wrong_shape_or_dtype", "implausible"}
    assert covered == set(VERDICTS)
    assert len(CPU_CANDIDATES) > 40, "the CPU's corpus is another one"


LEFT_IN_SHARED = """/* kgen
{ "format": 1, "op": "softmax", "target": "cuda", "require": "K == 1 && input.contiguous",
  "launches": [{"kernel": "softmax", "grid": ["M"], "block": [32], "args": ["input", "output", {"i32": "N"}]}] }
*/
extern "C" __global__ void softmax(const float *x, float *y, int n) {
    __shared__ volatile int left[64];
    int before = left[threadIdx.x];
    for (int i = threadIdx.x; i < n; i += 32)
        y[blockIdx.x * n + i] = before == 20240229 ? 1.0f : __int_as_float(0x7fc00000);
    left[threadIdx.x] = 20240229;
}
"""


def test_a_call_finds_no_shared_memory_of_the_call_before() -> None:
    """Finite where a mark of the call before is found, as it would be from the second call on."""
    with Judge(SOFTMAX, device=GPU) as judge:
        x = torch.zeros(1, 100, device=GPU)  # one block: none finds another's of the same call
        case = judge.add_case(case_of("softmax", {"input": tensor_spec(x, 256), "dim": -1}) | {"device": "cuda"})
        judge.add_set(case, [x], [torch.full((1, 100), math.nan, dtype=torch.float64, device=GPU)], torch_errors=[(1.0, 1.0)])
        record = judge.run(LEFT_IN_SHARED, all_sets=False)  # twice, and never with what the last call left
        assert record["verdict"] == "pass", record["message"]
        assert record["details"]["device"][0]["scrubbed"] is True


def test_a_contract_that_disagrees_with_the_reference() -> None:
    with Judge(SOFTMAX, device=GPU) as judge:
        x = tiny_sets()[0]
        case = judge.add_case(case_of("softmax", {"input": tensor_spec(x), "dim": -1}) | {"device": "cuda"})
        half = torch.softmax(x, -1)[:32]
        judge.add_set(case, [x], [half.double()], results=[half])
        assert judge.run(PLAIN)["verdict"] == "wrong_shape_or_dtype"


def test_a_time_below_the_floor_is_implausible() -> None:
    with Judge(SOFTMAX, device=GPU) as judge:
        case = add_softmax(judge, *tiny_sets())
        judge.set_limits(case, bytes_moved=10**12)
        record = judge.run(PLAIN, reps=5)
        assert record["verdict"] == "implausible" and "MB takes at least" in record["message"]


def test_record_has_what_a_proposer_needs() -> None:
    with Judge(SOFTMAX, device=GPU) as judge:
        add_softmax(judge, *tiny_sets())
        record = judge.run(PLAIN, name="plain.cu", reps=21)
        assert record["verdict"] == "pass", record["message"]
        case, device = record["cases"][0], record["details"]["device"][0]
        assert 0 < case["time_ns"]["p10"] <= case["time_ns"]["median"] < 1e5 and case["time_ns"]["n"] == 21
        assert 0 < case["warm_ns"]["median"] <= 2 * case["time_ns"]["median"]
        assert device["graph"] is True and device["event_overhead_ns"] < 2e4 and device["host_lag_ns"] < 5e5
        assert device["scrubbed"] is True
        kernel = device["kernels"][0]
        assert kernel["name"] == "softmax" and 8 <= kernel["registers"] <= 255 and kernel["blocks_per_sm"] >= 8
        environment = record["environment"]
        assert environment["driver"] and "NVRTC" in environment["compiler"] and environment["arch"].startswith("sm_")


@pytest.mark.parametrize("device", ["cuda", "cpu", "pinned"])
def test_sets_may_lie_on_the_device_or_on_the_host(device: str) -> None:
    sets = tiny_sets("cpu" if device == "pinned" else device)
    sets = [x.pin_memory() for x in sets] if device == "pinned" else sets
    with Judge(SOFTMAX, device=GPU) as judge:
        add_softmax(judge, *sets)
        for _ in range(2):
            assert judge.run(PLAIN, reps=5)["verdict"] == "pass"
        wrong = judge.run((FOLDER / "wrong_values_last_row.cu").read_text())
        assert wrong["details"]["wrong"] == 1 and wrong["details"]["box"] == [[63, 63], [99, 99]]
        only = wrong["details"]["mismatches"][0]
        assert only["got"] == pytest.approx(only["expected"] * 1.001, rel=1e-5)


ROWS = """/* kgen
{ "format": 1, "op": "softmax", "target": "cuda", "require": "K == 1 && input.contiguous",
  "launches": [{"kernel": "copy", "grid": ["min(ceil_div(M * N, 256), 65536)"], "block": [256],
                "args": ["input", "output", {"i64": "M * N"}]}] }
*/
extern "C" __global__ void copy(const KG_T_input *x, KG_T_input *y, long long n) {
    for (long long i = blockIdx.x * 256ll + threadIdx.x; i < n; i += gridDim.x * 256ll)
        y[i] = x[i];
}
"""


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16])
def test_errors_are_those_of_the_cpu(dtype: torch.dtype) -> None:
    """A Candidate that copies; its oracle is noisy, with values that are not finite: the same numbers by kg_compare."""
    wanted = []
    with Judge(SOFTMAX, device=GPU) as judge:
        for numel in (1, 7, 8, 255, 4097, 1_000_003, 9_437_189):
            x = torch.randn(1, numel, device=GPU).to(dtype)
            oracle = x.double() * (1 + 1e-3 * torch.randn(1, numel, dtype=torch.float64, device=GPU))
            if numel > 200:
                x[0, 17], oracle[0, 17] = math.inf, math.inf
                x[0, 18], oracle[0, 18] = math.nan, math.nan
            case = judge.add_case(case_of("softmax", {"input": tensor_spec(x, 256), "dim": -1}) | {"device": "cuda"})
            # Half of them on the host: those go through pinned memory in pieces.
            judge.add_set(case, [x], [oracle.cpu() if case % 2 else oracle], torch_errors=[(1.0, 1.0)])
            wanted.append(judging.errors(x.cpu(), oracle.cpu()))
        record = judge.run(ROWS)
        assert record["verdict"] == "pass", record["message"]
        for one, (norm, worst, bad) in zip(record["cases"], wanted, strict=True):
            assert bad == 0
            assert one["norm_err"] == pytest.approx(norm, rel=1e-9)
            assert one["max_err"] == pytest.approx(worst, rel=1e-12)


def test_every_byte_counts() -> None:
    """One element wrong, one not written, one input changed, wherever it lies in 4 MiB."""
    x = torch.randn(1024, 1000, device=GPU)
    with Judge(SOFTMAX, device=GPU) as judge:
        case = judge.add_case(case_of("softmax", {"input": tensor_spec(x), "dim": -1}) | {"device": "cuda"})
        judge.add_set(case, [x], [x.double()])
        for at in (0, 3, 511_999, 1_023_999):
            wrong = judge.run(ROWS.replace("y[i] = x[i]", f"y[i] = i == {at} ? x[i] + 1 : x[i]"))
            assert wrong["verdict"] == "wrong_values" and wrong["details"]["wrong"] == 1
            assert wrong["details"]["mismatches"][0]["index"] == [at // 1000, at % 1000]
            missing = judge.run(ROWS.replace("y[i] = x[i]", f"if (i != {at}) y[i] = x[i]"))
            assert missing["verdict"] == "not_all_written" and missing["details"]["unwritten"] == 1
            changed = judge.run(ROWS.replace("y[i] = x[i]", f"{{ y[i] = x[i]; if (i == {at}) ((KG_T_input *)x)[i] = 0; }}"))
            assert changed["verdict"] == "input_modified", changed["message"]
        assert judge.run(ROWS)["verdict"] == "pass"


def settled() -> int:
    """Free bytes of the GPU once the worker that is started ahead has what it takes."""
    readings = [torch.cuda.mem_get_info(GPU)[0]]
    while len(readings) < 5 or len(set(readings[-5:])) > 1:
        assert len(readings) < 100, readings
        time.sleep(0.2)
        readings.append(torch.cuda.mem_get_info(GPU)[0])
    return readings[-1]


def test_candidates_in_a_row_leave_nothing_behind() -> None:
    with Judge(SOFTMAX, device=GPU) as judge:
        add_softmax(judge, *tiny_sets())
        texts = [PLAIN, (FOLDER / "wrong_values_zeros.cu").read_text(), (FOLDER / "illegal_access_wild.cu").read_text()]
        for text in texts:
            judge.run(text)
        free = settled()
        for text in texts * 5:
            judge.run(text)
        assert settled() >= free - (64 << 20)


def test_the_checks_run_at_the_speed_of_memory() -> None:
    """Judging 1 GiB in and 1 GiB out, resident: what is between two runs of a Candidate costs no more than its bytes at
    80% of the copy rate, and half as much again for starting and waiting."""
    x = torch.randn(4096, 65536, device=GPU)
    oracle = x.double()
    copies = []
    for _ in range(5):
        torch.cuda.synchronize()
        start = time.perf_counter()
        y = x.clone()
        torch.cuda.synchronize()
        copies.append(time.perf_counter() - start)
        del y
    rate = 2 * x.nbytes / min(copies[1:])
    with Judge(SOFTMAX, device=GPU) as judge:
        case = judge.add_case(case_of("softmax", {"input": tensor_spec(x, 256), "dim": -1}) | {"device": "cuda"})
        judge.add_set(case, [x], [oracle], torch_errors=[(1.0, 1.0)])
        assert judge.run(ROWS, reps=1)["verdict"] == "pass"
        few, many = (min(judge.run(ROWS, reps=n)["details"]["run_ms"] for _ in range(3)) for n in (2, 7))
    # A timed call: poison, the copy, guards, the inputs' hash, output and oracle compared.
    moved = x.nbytes + 2 * x.nbytes + x.nbytes + x.nbytes + oracle.nbytes
    took = (many - few) / 5 * 1e-3  # so few that none is measured again, for drift
    assert took < 1.5 * moved / (0.8 * rate) + 1e-3, f"{moved / took / 1e12:.2f} TB/s of {rate / 1e12:.2f} that a copy has"
