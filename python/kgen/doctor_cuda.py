"""What `kgen doctor` says of CUDA: driver, GPUs, NVRTC with what a compile takes, headers. Without any of it kgen works on
the CPU, so nothing here is needed unless a GPU is there.
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Iterator

from . import cuda_packages, profiler, sanitizer
from .cuda_packages import Driver, Gpu, Nvrtc
from .doctor import Finding
from .errors import KgenError

OLDEST = 80
# One output element a thread; enough for NVRTC to load all of itself.
_PROBE = """/* kgen
{ "format": 1, "op": "softmax", "target": "cuda", "min_arch": "sm_80", "require": "K == 1",
  "launches": [{"kernel": "probe", "grid": ["M"], "block": [32], "args": ["input", "output", {"i64": "N"}]}] }
*/
extern "C" __global__ void probe(const KG_T_input *input, KG_T_output *output, long long N) {
    float top = -1e30f, sum = 0;
    for (long long i = 0; i < N; i++) top = fmaxf(top, input[blockIdx.x * N + i]);
    for (long long i = 0; i < N; i++) sum += expf(input[blockIdx.x * N + i] - top);
    for (long long i = threadIdx.x; i < N; i += 32) output[blockIdx.x * N + i] = expf(input[blockIdx.x * N + i] - top) / sum;
}
"""


def _driver(found: Driver | None) -> Finding:
    if found is None:
        return Finding("CUDA driver", False, "no libcuda.so.1", "kgen works on the CPU; for a GPU install NVIDIA's driver", False)
    text = f"{found.name}, runs CUDA {found.cuda[0]}.{found.cuda[1]}"
    if found.failed:
        return Finding("CUDA driver", False, f"{text}; {found.failed}", "see dmesg and nvidia-smi; in a container, give it the GPUs", False)
    if not found.gpus:
        return Finding("CUDA driver", False, f"{text}; no GPU", "is CUDA_VISIBLE_DEVICES empty, or the container without GPUs?", False)
    return Finding("CUDA driver", True, text, needed=False)


def _free(gpu: Gpu) -> str:
    """What is free of a GPU, where torch can tell; asking makes a context."""
    import torch

    from .devices import gib

    try:
        if torch.version.cuda is not None and torch.cuda.is_available():
            free, total = torch.cuda.mem_get_info(gpu.index)
            return f"{gib(free)} of {gib(total)} free"
    except RuntimeError as e:
        return (str(e).strip().splitlines() or ["?"])[0][:100]
    return gib(gpu.memory)


def _gpu(gpu: Gpu) -> Finding:
    arch = int(gpu.arch.removeprefix("sm_"))
    text = f"{gpu.name}, {gpu.arch}, {_free(gpu)}"
    if arch < OLDEST:
        return Finding(f"cuda:{gpu.index}", False, text, "kgen's kernels need sm_80 or newer", False)
    return Finding(f"cuda:{gpu.index}", True, text, needed=False)


def _torch(found: Driver) -> Finding:
    import torch

    cuda = torch.version.cuda
    if cuda is None:
        return Finding("torch's CUDA", False, f"torch {torch.__version__} is built without", "pip install torch (a CUDA build)", False)
    if not torch.cuda.is_available():
        todo = f"the driver runs CUDA {found.cuda[0]}.{found.cuda[1]}: a newer driver, or a torch for that CUDA"
        return Finding("torch's CUDA", False, f"{cuda}, and torch sees no GPU", todo, False)
    return Finding("torch's CUDA", True, f"{cuda}, {torch.cuda.device_count()} GPUs", needed=False)


def _nvrtc(found: Nvrtc | None, driver: Driver) -> Finding:
    package = "nvidia-cuda-nvrtc" if driver.cuda[0] >= 13 else "nvidia-cuda-nvrtc-cu12"
    if found is None:
        todo = f"pip install {package}, or name one with KGEN_NVRTC; without it only cached images are served"
        return Finding("NVRTC", False, "none beside torch, in a toolkit or on the loader's path", todo, False)
    text = f"{found.version[0]}.{found.version[1]}, {found.path}"
    if found.version[0] > driver.cuda[0]:
        todo = f"the driver runs CUDA {driver.cuda[0]}.{driver.cuda[1]}: a newer driver, or pip install {package}"
        return Finding("NVRTC", False, f"{text}; newer than the driver", todo, False)
    return Finding("NVRTC", True, text, needed=False)


def _headers(found: Nvrtc) -> Finding:
    if found.include:
        return Finding("CUDA headers", True, found.include, needed=False)
    todo = "kgen's own substitutes serve; pip install nvidia-cuda-runtime for all of cuda_fp16.h, cuda_bf16.h and mma.h"
    return Finding("CUDA headers", False, "none beside NVRTC", todo, False)


def compile_times(arch: str) -> tuple[float, float]:
    """Seconds that a first compile of a small kernel takes in this process with an empty cache, and that the image takes
    out of the cache. KgenError says why there are none."""
    from . import _libkgen, spread
    from .task import canonical_contract

    contract = canonical_contract("softmax").decode()
    case = {**spread.softmax_trial("float32", 4, 64).case, "device": "cuda"}
    before = os.environ.get("KGEN_CACHE")
    with tempfile.TemporaryDirectory(prefix="kgen-doctor-") as cache:
        os.environ["KGEN_CACHE"] = cache
        try:
            times = []
            for _ in range(2):
                start = time.perf_counter()
                _libkgen.build_image(contract, case, _PROBE.encode(), {}, arch, False)
                times.append(time.perf_counter() - start)
        finally:
            if before is None:
                del os.environ["KGEN_CACHE"]
            else:
                os.environ["KGEN_CACHE"] = before
    return times[0], times[1]


def _compile(arch: str) -> Finding:
    try:
        cold, warm = compile_times(arch)
    except KgenError as e:
        return Finding("CUDA compile", False, str(e), "see the lines above", False)
    return Finding("CUDA compile", True, f"{cold * 1e3:.0f} ms cold, {warm * 1e3:.2f} ms from the cache ({arch})", needed=False)


def _sanitizer() -> Finding:
    found = sanitizer.find()
    if found is None:
        todo = "CUDA's toolkit has it, or name one with KGEN_SANITIZER; without it Records of Kernels say nothing of races"
        return Finding("compute-sanitizer", False, "not found, or switched off", todo, False)
    return Finding("compute-sanitizer", True, str(found), needed=False)


def _profiler() -> Finding:
    found = profiler.find()
    if found is None:
        todo = "Nsight Compute has it, or name one with KGEN_NCU; without it a closed loop's prompts have no counters of a GPU"
        return Finding("ncu", False, "not found, or switched off", todo, False)
    return Finding("ncu", True, str(found), needed=False)


def findings() -> Iterator[Finding]:
    """One line each, in the order in which one stands on the other."""
    driver = cuda_packages.driver()
    yield _driver(driver)
    if driver is None or not driver.gpus:
        return
    yield from map(_gpu, driver.gpus)
    yield _torch(driver)
    nvrtc = cuda_packages.nvrtc()
    yield _nvrtc(nvrtc, driver)
    if nvrtc is None:
        return
    yield _headers(nvrtc)
    yield _sanitizer()
    yield _profiler()
    usable = [g for g in driver.gpus if int(g.arch.removeprefix("sm_")) >= OLDEST]
    if usable and nvrtc.version[0] <= driver.cuda[0]:
        yield _compile(usable[0].arch)
