"""What the two processes of the gate share: one allocation, of the host (a memfd) or of a GPU, with tensors one after the
other. The parent makes it and passes the descriptor; the child opens it. Oracles are never in it.
"""

from __future__ import annotations

import fcntl
import mmap
import os
from typing import Any

import torch

from .gpumem import Shared

ALIGN = 256

Spec = dict[str, Any]


def view(memory: torch.Tensor, spec: Spec) -> torch.Tensor:
    """The tensor that a spec names. memory: all bytes, as uint8."""
    raw = memory[spec["offset"] : spec["offset"] + spec["bytes"]]
    return raw.view(getattr(torch, spec["dtype"])).as_strided(spec["shape"], spec["stride"])


def put(target: torch.Tensor, x: torch.Tensor) -> None:
    """Copies x; dims of stride 0 are one element."""
    for d, (n, step) in enumerate(zip(target.shape, target.stride(), strict=True)):
        if step == 0 and n > 1:
            target, x = target.narrow(d, 0, 1), x.narrow(d, 0, 1)
    target.copy_(x)


class Memory:
    """The parent's side. place() each tensor, make() it once, then view()."""

    def __init__(self, device: torch.device):
        self.device, self.size, self.fd = device, 0, -1
        self.shared: Shared | None = None
        self.bytes: torch.Tensor | None = None

    def place(self, x: torch.Tensor) -> Spec:
        """Room for a tensor of this dtype, shape and strides; it may be on the meta device."""
        span = 1 + sum((n - 1) * s for n, s in zip(x.shape, x.stride(), strict=True)) if x.numel() else 0
        spec = {
            "offset": self.size,
            "bytes": span * x.element_size(),
            "dtype": str(x.dtype).removeprefix("torch."),
            "shape": list(x.shape),
            "stride": list(x.stride()),
        }
        self.size = -(-(self.size + spec["bytes"]) // ALIGN) * ALIGN
        return spec

    def make(self) -> None:
        size = max(self.size, ALIGN)
        if self.device.type == "cuda":
            self.shared = Shared(self.device.index or 0, size)
            self.bytes, self.fd = self.shared.bytes, self.shared.export()
            return
        self.fd = os.memfd_create("kgen-gate", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        try:
            os.ftruncate(self.fd, size)
            # Of one that the other process made smaller, this one could not read without dying.
            fcntl.fcntl(self.fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL)
            self.bytes = torch.frombuffer(mmap.mmap(self.fd, size), dtype=torch.uint8)
        except BaseException:
            self.close()
            raise

    def view(self, spec: Spec) -> torch.Tensor:
        assert self.bytes is not None
        return view(self.bytes, spec)

    def close(self) -> None:
        """Lets go of it; safe at any time."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1
        if self.shared is not None:
            self.bytes = None
            self.shared.close()
            self.shared = None


def opened(job: dict[str, Any]) -> torch.Tensor:
    """The child's side: all bytes of the memory that a job names, on the job's device."""
    if job["device"] == "cuda":
        shared = Shared(job["index"], job["bytes"], job["memory"])
        return shared.bytes  # mapped as long as the process lives
    size = os.fstat(job["memory"]).st_size
    return torch.frombuffer(mmap.mmap(job["memory"], size), dtype=torch.uint8)
