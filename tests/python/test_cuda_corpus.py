"""The corpus for GPUs (tests/judge/corpus/*_cuda), as far as it can be held to its word without one: every file compiles by
NVRTC or is refused for what its table says; what is decided before anything runs gets its verdict from the judge; and what
the emulator can run is judged on it, values, guards, poison and all. On a GPU tests/judge/rates.py --device cuda judges it."""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import nvrtc
import pytest

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent / "judge"))

import rates  # noqa: E402
from emulated_gpu import Job, build, cuda_case, judge  # noqa: E402
from emulator import kernels_of  # noqa: E402
from kgen import _libkgen, cuda_packages, task as tasks  # noqa: E402
from kgen.errors import KgenError  # noqa: E402

ATTACK, HONEST = (rates.read_folder(rates.CORPUS / name) for name in rates.FOLDERS["cuda"])
ALL = {e.path.stem: e for e in (*ATTACK, *HONEST)}
# Verdicts that fall before a kernel runs.
EARLY = {"compile_error", "policy", "plan_error", "launch_error", "out_of_resources"}
# Tasks that every run makes; to capture all of them takes too long. Of what the emulator runs a sample of theirs.
QUICK_TASKS = {"softmax_rows", "softmax_views", "softmax_f16", "softmax_f64"}

# What only a GPU does, by why.
NOT_EMULATED = {
    "hangs until it is killed": "hang hang_everywhere barrier_never_met grid_barrier_unscheduled",
    "its fault is a GPU's": "looks_behind writes_far null_pointer outside_shared misaligned_vector output_of_another_type trap",
    "inputs are mapped for reading alone, and a write ends the worker":
        "zeroes_input input_restored input_made_easy",
    "limits of the device": "half_gigabyte_of_stack block_beyond_bounds",
    "clocks, sleep and races": "clock_decides slow_on_purpose early_dependent racing_buckets missing_barrier",
    "instructions that the emulator has not": "prefetches_for_next softmax_keep_in_l2 softmax_tensor_map",
    "headers of CUDA's": "softmax_header",
}  # fmt: skip

# Every way to cheat on a GPU that the field has seen, and a file that does it.
KNOWN_EXPLOITS = {
    "zeros under an absolute tolerance": "zeros", "memcpy as a norm with the default affine map": "copies_input", "a constant": "constant_loss",
    "one tile": "one_tile", "truncated K": "truncated_k", "fp16 in place of fp32": "half_inputs", "narrow sums": "half_accumulator",
    "TF32 in place of fp32": "tf32_once", "skipped tail": "skipped_tail", "benign inputs": "no_peak", "not writing": "nothing",
    "inputs altered": "zeroes_input", "reads out of bounds": "reads_guards", "looking for the expected values": "looks_behind",
    "NaN as a wildcard": "nan_swallowed", "device globals": "device_global", "cache in the workspace": "workspace_memo",
    "cache in the output": "looks_finished", "honest for some calls": "workspace_sleeper", "recognises poison": "poison_probe",
    "cache by content": "prefix_rows", "sampled rows": "sampled_rows", "work behind the event": "early_dependent", "persisting L2": "prefetches_for_next",
    "sleeping clocks down": "slow_on_purpose", "the clock": "clock_decides", "hang": "hang", "sticky error": "writes_far", "trap": "trap",
    "printf": "prints", "malloc": "allocates", "dynamic parallelism": "launches", "cluster launch failure": "cluster_does_not_divide",
    "local memory": "half_gigabyte_of_stack", "uninitialised memory": "assumes_zero_workspace", "only some outputs": "first_output_only",
    "host files": "includes_host", "one size": "one_size", "strides": "strides_ignored", "race": "racing_buckets", "this machine only": "this_gpu_only",
    "casts below the dtype": "float_for_double", "cut off bits": "bfloat_cut", "subnormal numbers": "flushes_subnormals",
}  # fmt: skip


def not_emulated() -> set[str]:
    names = [n for line in NOT_EMULATED.values() for n in line.split()]
    assert len(names) == len(set(names)) and set(names) <= set(ALL)
    return set(names)


def decided_early(e: rates.Entry) -> bool:
    return set(e.verdicts) <= EARLY


def emulated(entries: list[rates.Entry]) -> list[rates.Entry]:
    left_out = not_emulated()
    return [e for e in entries if e.path.stem not in left_out and not decided_early(e)]


def head(path: Path) -> tuple[dict[str, object], str]:
    found = re.match(r"/\* kgen\n(.*?)\n\*/\n/\* (.*?) \*/\n", path.read_text(), re.S)
    assert found, f"{path.name}: a plan, then one sentence"
    return json.loads(found.group(1)), " ".join(found.group(2).replace("\n *", " ").split())


def test_tables_are_of_the_files_that_are_there() -> None:
    assert len(ATTACK) >= 40 and len(HONEST) >= 60
    assert len({head(e.path)[0]["op"] for e in HONEST}) >= 12 and len({head(e.path)[0]["op"] for e in ATTACK}) >= 5
    for entries, folder in ((ATTACK, "attack_cuda"), (HONEST, "honest_cuda")):
        readme = (rates.CORPUS / folder / "README.md").read_text()
        for e in entries:
            plan, sentence = head(e.path)
            assert plan["target"] == "cuda" and sentence == e.why and f"`{e.path.name}` | {e.why}" in readme, e.path.name
            assert e.task in rates.recipes(), e.path.name
    assert all(e.expected == "pass" or "nondeterministic" in e.verdicts for e in HONEST)
    assert sum(e.expected == "reject" for e in ATTACK) >= 60


def test_kernels_have_a_name_of_their_own() -> None:
    named = [k for e in ALL.values() for k in kernels_of(e.path.read_text())]
    assert len(named) == len(set(named)), sorted({k for k in named if named.count(k) > 1})


def test_every_known_exploit_has_a_file() -> None:
    for exploit, name in KNOWN_EXPLOITS.items():
        assert name in ALL and (ALL[name].expected == "reject" or name == "prefetches_for_next"), f"{exploit}: {name}"


@pytest.fixture(scope="module")
def folder_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    base, made = tmp_path_factory.mktemp("cuda_corpus"), set()

    def get(name: str) -> Path:
        if name not in made:
            rates.make_task(rates.recipes()[name], "cpu", False, base / name)
            made.add(name)
        return base / name

    return get


def parts(entries: list[rates.Entry], n: int, kind: str, most: int = len(ALL)) -> list[object]:
    """At most so many of the quick Tasks, then n parts of the rest, which are slow; Tasks stay whole there."""
    quick = rates.spread_out([e for e in entries if e.task in QUICK_TASKS], most)
    rest = [e for e in entries if e not in quick]
    names = sorted({e.task for e in rest})
    made = [pytest.param(quick, id=f"{kind}-quick")]
    for i in range(n):
        mine = set(names[i::n])
        made.append(pytest.param([e for e in rest if e.task in mine], id=f"{kind}-{i}", marks=pytest.mark.slow))
    return made


def jobs_of(entries: list[rates.Entry], folder_of: Callable[[str], Path]) -> list[Job]:
    by_task: dict[str, list[Path]] = {}
    for e in entries:
        by_task.setdefault(e.task, []).append(e.path)
    return [Job(folder_of(name), tuple(files)) for name, files in by_task.items()]


# Without the stand-in: compiling

needs_nvrtc = pytest.mark.skipif(nvrtc.folder() is None, reason=f"no NVRTC from pip; pip install {nvrtc.PIN}")


def compiled(e: rates.Entry, folder: Path) -> str:
    """Compiles and inspects an image for each Case that its plan is for; what was wrong."""
    task, built = tasks.read(folder), 0
    for case in task.cases:
        try:
            _libkgen.build_image((folder / "op.json").read_text(), cuda_case(case), e.path.read_bytes(), {}, "sm_90", False)
            built += 1
        except KgenError as error:
            if not str(error).startswith("require"):
                return str(error)
    return "" if built else "its `require` takes no Case of its Task"


@needs_nvrtc
@pytest.mark.parametrize("entries", parts(list(ALL.values()), 4, "all", 24))
def test_what_is_to_run_compiles(entries: list[rates.Entry], folder_of: Callable[[str], Path]) -> None:
    wanted = [e for e in entries if not decided_early(e)]
    folders = {e.task: folder_of(e.task) for e in wanted}
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        said = pool.map(lambda e: compiled(e, folders[e.task]), wanted)
        assert [(e.path.name, s) for e, s in zip(wanted, said, strict=True) if s] == []


# With it: the judge


@pytest.fixture(scope="module")
def stand_in(build_dir: Path) -> Path:
    if not (build_dir / "libkgen_fakecuda.so").is_file() or cuda_packages.nvrtc() is None:
        pytest.skip(f"needs {build_dir / 'libkgen_fakecuda.so'}, which the build makes with its tests, and NVRTC (pip install {nvrtc.PIN})")
    return build_dir


def other_verdicts(entries: list[rates.Entry], got: dict[str, dict[str, object]]) -> list[str]:
    assert set(got) == {e.path.name for e in entries}
    judged = [(e, got[e.path.name]) for e in entries]
    return [f"{e.path.name}: {g['verdict']}, expected {' | '.join(e.verdicts)}: {g['message']}" for e, g in judged
            if rates.kind_of(e, str(g["verdict"])) not in ("right", "known limit")]  # fmt: skip


def test_what_is_refused_before_it_runs(stand_in: Path, folder_of: Callable[[str], Path], tmp_path: Path) -> None:
    # How many registers a block may have, and how much local memory there is, a GPU alone says.
    wanted = [e for e in ATTACK if decided_early(e) and e.path.stem not in not_emulated()]
    assert len(wanted) >= 18
    assert other_verdicts(wanted, judge(jobs_of(wanted, folder_of), stand_in, tmp_path)) == []


@pytest.mark.parametrize("entries", [*parts(emulated(ATTACK), 2, "attack", 4), *parts(emulated(HONEST), 4, "honest", 4)])
def test_verdicts_on_an_emulated_gpu(entries: list[rates.Entry], stand_in: Path, folder_of: Callable[[str], Path], tmp_path: Path) -> None:
    jobs = jobs_of(entries, folder_of)
    library = build(jobs, stand_in, tmp_path)
    got = judge(jobs, stand_in, tmp_path, library)
    assert other_verdicts(entries, got) == []


@pytest.mark.slow
def test_a_kernel_that_the_emulator_cannot_end_is_a_crash(stand_in: Path, folder_of: Callable[[str], Path], tmp_path: Path) -> None:
    """A barrier that half of the threads miss, and an honest one after it: the judge goes on."""
    plain = ALL["softmax_block"]
    broken = tmp_path / "broken.cu"
    broken.write_text(plain.path.read_text().replace("softmax_block", "broken").replace("    __syncthreads();\n", "    if (threadIdx.x < 64)\n        __syncthreads();\n", 1))
    jobs = [Job(folder_of(plain.task), (broken, plain.path))]
    got = judge(jobs, stand_in, tmp_path, build(jobs, stand_in, tmp_path))
    assert [got["broken.cu"]["verdict"], got[plain.path.name]["verdict"]] == ["crash", "pass"]
