"""The baseline file of `kgen check` (docs/formats.md, "Speedups"): what each pin's Kernel gained over torch on one machine, for
later checks to be held against.

A speedup is a ratio to what torch does on the same machine, so a file of another machine is refused, never scaled.
"""

from __future__ import annotations

import json
import math
import os
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from . import _native
from .doctor import cpu_name, cuda_device, machine_arch
from .errors import BadInput, EnvironmentLacks
from .runs import now
from .task import FORMAT, read_json
from .verify import on_cuda

_KEYS = {"format", "created", "kgen", "torch", "machine", "pins"}
_MACHINE_KEYS = {"cpu", "cuda"}
_DEVICE_KEYS = {"cpu": {"name", "arch", "threads"}, "cuda": {"name", "arch"}}
_PIN_KEYS = {"op", "arch", "pin", "kernel", "case", "baseline", "kgen_ns", "speedup"}


@dataclass(frozen=True, slots=True)
class Interval:
    """A ratio with its 95% interval."""

    median: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.median:.2f}x ({self.low:.2f}..{self.high:.2f})"

    def over(self, then: Interval) -> Interval:
        """This ratio over another that was measured on its own. In logarithms the distances from the medians to the ends of
        the two intervals add as independent errors do: in squares."""
        median = self.median / then.median
        down = math.hypot(math.log(self.median / self.low), math.log(then.high / then.median))
        up = math.hypot(math.log(self.high / self.median), math.log(then.median / then.low))
        return Interval(median, median * math.exp(-down), median * math.exp(up))


@dataclass(frozen=True, slots=True)
class Speed:
    """How fast a Kernel is, timed on `case`: ns of one call, of it and of the best baseline."""

    case: str
    speedup: Interval
    baseline: str
    baseline_ns: float
    kgen_ns: float


@dataclass(frozen=True, slots=True)
class Machine:
    """What speedups depend on. cuda: name and architecture, None without a device."""

    cpu: str
    arch: str
    threads: int
    cuda: tuple[str, str] | None = None

    @staticmethod
    def here() -> Machine:
        return Machine(cpu_name(), machine_arch(), torch.get_num_threads(), cuda_device())

    def json(self) -> dict[str, Any]:
        cuda = {"name": self.cuda[0], "arch": self.cuda[1]} if self.cuda else None
        return {"cpu": {"name": self.cpu, "arch": self.arch, "threads": self.threads}, "cuda": cuda}

    def device(self, cuda: bool) -> str:
        """One of its devices in words."""
        if cuda:
            return f"{self.cuda[0]} ({self.cuda[1]})" if self.cuda else "without a CUDA device"
        return f"{self.cpu} ({self.arch}, {self.threads} threads)"


PinName = tuple[str, str, str]  # Op, architecture, the pin's own name


@dataclass(frozen=True, slots=True)
class Speedups:
    """A baseline. pins: by name, the id of the Kernel that was active, and its speed."""

    created: str
    kgen: str
    torch: str
    machine: Machine
    pins: dict[PinName, tuple[str, Speed]]
    path: Path | None = None

    def check_machine(self, here: Machine) -> None:
        """BadInput when a device that pins of it were timed on is not this machine's."""
        for cuda in (False, True):
            timed = any(on_cuda(arch) == cuda for _, arch, _ in self.pins)
            if timed and self.machine.device(cuda) != here.device(cuda):
                raise BadInput(
                    f"{self.path}: was measured on another machine: {self.machine.device(cuda)}; this one is "
                    f"{here.device(cuda)}; `kgen check --write-baseline FILE` makes one here"
                )


def of(pins: Iterable[tuple[PinName, str, Speed]]) -> Speedups:
    """What was measured here and now."""
    found = {name: (kernel, speed) for name, kernel, speed in pins}
    return Speedups(now(), _native.version(), torch.__version__, Machine.here(), found)


# ---- the file ----


def _pin_json(name: PinName, kernel: str, speed: Speed) -> dict[str, Any]:
    op, arch, pin = name
    return {
        "op": op, "arch": arch, "pin": pin, "kernel": kernel, "case": speed.case,
        "baseline": {"name": speed.baseline, "median_ns": speed.baseline_ns}, "kgen_ns": speed.kgen_ns,
        "speedup": asdict(speed.speedup),
    }  # fmt: skip


def text(found: Speedups) -> str:
    """The file's text; pins in order, so that a new one shows in a diff as what changed."""
    pins = [_pin_json(name, kernel, speed) for name, (kernel, speed) in sorted(found.pins.items())]
    head = {"format": FORMAT, "created": found.created, "kgen": found.kgen, "torch": found.torch}
    return json.dumps({**head, "machine": found.machine.json(), "pins": pins}, indent=1, allow_nan=False) + "\n"


class _Reader:
    """Takes typed values out of the JSON; BadInput names the file and the key path."""

    def __init__(self, path: Path):
        self.path = path

    def fail(self, where: str, what: str) -> BadInput:
        return BadInput(f"{self.path}: {where}{' ' if where else ''}{what}; `kgen check --write-baseline FILE` makes a new one")

    def object(self, value: Any, where: str, keys: set[str]) -> dict[str, Any]:
        if not isinstance(value, dict):
            raise self.fail(where, f"is {value!r}, expected an object")
        for key in sorted(keys - set(value)):
            raise self.fail(where, f"lacks the key {key}")
        for key in sorted(set(value) - keys):
            raise self.fail(where, f"has the unknown key {key}; known are {', '.join(sorted(keys))}")
        return value

    def text(self, value: Any, where: str) -> str:
        if not isinstance(value, str):
            raise self.fail(where, f"is {value!r}, expected a string")
        return value

    def number(self, value: Any, where: str) -> float:
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < 1e300:
            raise self.fail(where, f"is {value!r}, expected a number above 0")
        return float(value)

    def device(self, value: Any, kind: str) -> dict[str, Any]:
        made = self.object(value, f"machine.{kind}", _DEVICE_KEYS[kind])
        for key in ("name", "arch"):
            self.text(made[key], f"machine.{kind}.{key}")
        if kind == "cpu":
            self.number(made["threads"], "machine.cpu.threads")
        return made

    def machine(self, value: Any) -> Machine:
        made = self.object(value, "machine", _MACHINE_KEYS)
        cpu = self.device(made["cpu"], "cpu")
        cuda = self.device(made["cuda"], "cuda") if made["cuda"] is not None else None
        return Machine(cpu["name"], cpu["arch"], int(cpu["threads"]), (cuda["name"], cuda["arch"]) if cuda else None)

    def interval(self, value: Any, where: str) -> Interval:
        made = self.object(value, where, {"median", "low", "high"})
        found = Interval(*(self.number(made[k], f"{where}.{k}") for k in ("median", "low", "high")))
        if not found.low <= found.median <= found.high:
            raise self.fail(where, "is no interval: low <= median <= high does not hold")
        return found

    def pin(self, value: Any, where: str) -> tuple[PinName, tuple[str, Speed]]:
        made = self.object(value, where, _PIN_KEYS)
        op, arch, pin, kernel, case = (
            self.text(made[k], f"{where}.{k}") for k in ("op", "arch", "pin", "kernel", "case")
        )
        base = self.object(made["baseline"], f"{where}.baseline", {"name", "median_ns"})
        speed = Speed(
            case,
            self.interval(made["speedup"], f"{where}.speedup"),
            self.text(base["name"], f"{where}.baseline.name"),
            self.number(base["median_ns"], f"{where}.baseline.median_ns"),
            self.number(made["kgen_ns"], f"{where}.kgen_ns"),
        )
        return (op, arch, pin), (kernel, speed)


def read(path: str | Path) -> Speedups:
    """A baseline file. BadInput says what is wrong with it, and what to do when it is not there."""
    path = Path(path)
    if not path.exists():
        raise BadInput(f"{path}: no such file; `kgen check --write-baseline {path}` makes it on this machine")
    made, reader = read_json(path, _KEYS), _Reader(path)
    reader.object(made, "", _KEYS)
    if not isinstance(made["pins"], list):
        raise reader.fail("pins", f"is {made['pins']!r}, expected a list")
    pins: dict[PinName, tuple[str, Speed]] = {}
    for i, value in enumerate(made["pins"]):
        name, found = reader.pin(value, f"pins[{i}]")
        if name in pins:
            raise reader.fail(f"pins[{i}]", f"is {' '.join(name)} again")
        pins[name] = found
    created, kgen, torch_ = (reader.text(made[k], k) for k in ("created", "kgen", "torch"))
    return Speedups(created, kgen, torch_, reader.machine(made["machine"]), pins, path)


# ---- writing ----


def check_output(path: str | Path, option: str) -> None:
    """Raises before any work is done when a file could not be written there. Makes nothing."""
    path = Path(path)
    if path.is_dir():
        raise BadInput(f"{option} {path}: is a folder; name a file")
    if not path.absolute().parent.is_dir():
        raise BadInput(f"{option} {path}: there is no folder {path.parent}")
    if not os.access(path.absolute().parent, os.W_OK | os.X_OK):
        raise EnvironmentLacks(f"{option} {path}: the folder cannot be written; name a file elsewhere")


def write(path: str | Path, what: str, option: str) -> None:
    """Puts a text in place at once, or leaves what was there."""
    path, aside = Path(path), None
    try:
        with tempfile.NamedTemporaryFile("w", dir=path.absolute().parent, prefix=".tmp-check-", delete=False) as f:
            aside = Path(f.name)
            f.write(what)
            f.flush()
            os.fsync(f.fileno())
        aside.chmod(0o644)
        os.replace(aside, path)
    except OSError as e:
        if aside is not None:
            aside.unlink(missing_ok=True)
        raise EnvironmentLacks(f"{option} {path}: cannot be written: {e.strerror or e}") from e


def missing(baseline: Speedups, seen: Sequence[PinName], op: str | None = None) -> list[str]:
    """Pins of a baseline (of one Op) that are not among these, in words."""
    gone = [name for name in sorted(baseline.pins) if name not in set(seen) and op in (None, name[0])]
    return [f"{baseline.pins[name][1].case} ({name[1]})" for name in gone]
