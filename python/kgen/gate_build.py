"""Baselines that torch's compiler must build first, under a limit of time, before the gate measures anything.

max-autotune compiles and times dozens of kernels, for minutes. Each such baseline is built in a process of its own, several
at a time where there are CPUs for it. A process that has built what it was asked for is kept, for the gate to measure it there:
building it again takes long even from the compiler's cache. One that outlasts its limit costs its own process and is
reported as not measured, with the limit.
On a GPU the kernels that the compiler times are timed alone, by the lock that all of kgen honours.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar

# Seconds that one baseline may compile, and all those of an Op together, unless the caller says otherwise.
EACH, TOTAL = 120.0, 300.0
# CPUs that one build is worth: the compiler runs its own workers beside it.
CPUS_PER_BUILD, MOST_BUILDS = 4, 4


@dataclass
class Patience:
    """How long the baselines of an Op may compile: one of them, and all together, over all Cases of the Op. In seconds."""

    each: float = EACH
    total: float = TOTAL
    spent: float = 0.0

    @property
    def left(self) -> float:
        return max(0.0, self.total - self.spent)

    @property
    def limit(self) -> float:
        """What the next one may take."""
        return min(self.each, self.left)

    def outlasted(self, limit: float) -> str:
        """The reason of one that was stopped after so long."""
        if limit >= self.each:
            return f"not measured: compile outlasted {limit:.0f} s"
        return f"not measured: compile outlasted what was left of {self.total:.0f} s for the baselines of this Op, {limit:.0f} s"

    def used_up(self) -> str:
        return f"not measured: the {self.total:.0f} s for compiling baselines of this Op were used up"


NOT_MEASURED = "not measured: "


class Builder(Protocol):
    """A process that can build contenders (gate._Child)."""

    def send(self, message: dict[str, Any], seconds: float) -> dict[str, Any]: ...

    def close(self) -> None: ...


B = TypeVar("B", bound=Builder)


def builds_at_once() -> int:
    """How many processes may build beside each other on this machine; 1 means that it is no use to have more."""
    return max(1, min(MOST_BUILDS, len(os.sched_getaffinity(0)) // CPUS_PER_BUILD))


class Ahead(Generic[B]):
    """Builds contenders in processes that `open_` starts, given how many CPUs each has. failed: what send raises when its
    limit passed ("no answer ...") or the process died. kept: by contender the process that it was built in, for the caller
    to use until close."""

    def __init__(
        self, open_: Callable[[int], B], failed: type[Exception], patience: Patience, at_once: int,
        say: Callable[[str], None] = lambda _: None,
    ):  # fmt: skip
        self.open, self.failed, self.patience, self.at_once, self.say = open_, failed, patience, at_once, say
        self.live: set[B] = set()
        self.lock, self.stopped = threading.Lock(), False
        self.done: dict[int, str] = {}
        self.kept: dict[int, B] = {}
        # A process that is to end with its parent ends with the thread that started it, so the threads stay until close.
        self.pool = ThreadPoolExecutor(at_once)

    def build(self, groups: Sequence[Sequence[int]], names: dict[int, str]) -> dict[int, str]:
        """Of each contender "" when it is built, else why not. Those of a group are built in turn, by one process."""
        started = time.monotonic()
        until = started + self.patience.left
        cpus = max(1, len(os.sched_getaffinity(0)) // max(1, min(self.at_once, len(groups))))
        self.say(f"compiling {_count(names)} within {self.patience.left:.0f} s: {', '.join(names.values())}")
        futures = {self.pool.submit(self._group, list(g), cpus, until) for g in groups}
        try:
            self._follow(futures, names)
        except BaseException:
            self._stop()
            self.close()
            raise
        self._stop()
        self.patience.spent += time.monotonic() - started
        return self.done

    def _follow(self, futures: set[Future[None]], names: dict[int, str]) -> None:
        told: set[int] = set()
        while futures:
            ended, futures = wait(futures, timeout=0.5, return_when=FIRST_COMPLETED)
            for who in [w for w in list(self.done) if w not in told]:
                told.add(who)
                outcome = self.done[who] or "compiled"
                self.say(f"{names[who]}: {outcome} ({len(told)} of {len(names)})")
            for f in ended:
                f.result()

    def close(self) -> None:
        """Ends the processes that were kept."""
        with self.lock:
            kept, self.kept = set(self.kept.values()), {}
        for builder in kept:
            builder.close()
        self.pool.shutdown()

    def _stop(self) -> None:
        """Ends what still builds: those that wait for it see their process gone."""
        with self.lock:
            self.stopped = True
            live, self.live = list(self.live), set()
        for builder in live:
            builder.close()

    def _group(self, group: list[int], cpus: int, until: float) -> None:
        builder: B | None = None
        built: list[int] = []
        try:
            for who in group:
                limit = min(self.patience.each, until - time.monotonic())
                if limit <= 0 or self.stopped:
                    self.done[who] = self.patience.used_up()
                    continue
                try:
                    builder = builder or self._start(cpus)
                    limit = min(self.patience.each, max(0.1, until - time.monotonic()))
                    reply = builder.send({"do": "prepare", "who": who}, limit)
                    lost, self.done[who] = bool(reply.get("lost")), str(reply.get("error", ""))
                except self.failed as e:
                    lost = True
                    self.done[who] = self.patience.outlasted(limit) if "no answer" in str(e) else str(e)
                if lost and builder is not None:
                    self._end(builder)
                    builder, built = None, []
                elif not self.done[who]:
                    built.append(who)
        except BaseException:
            if builder is not None:
                self._end(builder)
            raise
        if builder is not None:
            self._keep(builder, built)

    def _keep(self, builder: B, built: list[int]) -> None:
        with self.lock:
            ours = builder in self.live and not self.stopped
            if ours and built:
                self.live.discard(builder)
                self.kept.update(dict.fromkeys(built, builder))
                return
        self._end(builder)

    def _start(self, cpus: int) -> B:
        builder = self.open(cpus)
        with self.lock:
            if not self.stopped:
                self.live.add(builder)
                return builder
        builder.close()
        raise self.failed("stopped")

    def _end(self, builder: B) -> None:
        with self.lock:
            ours = builder in self.live
            self.live.discard(builder)
        if ours:
            builder.close()


def _count(names: dict[int, str]) -> str:
    return f"{len(names)} baseline{'s' * (len(names) != 1)}"
