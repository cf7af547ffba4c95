"""What keeps a Candidate from the rest of the machine, as far as this kernel has it: landlock and seccomp, in the worker that judges
it and in the gate's process (csrc/sys/sandbox.h). `kgen doctor` names what is missing; a model's Candidates for a CPU, which
are native code that nobody has read, are not run without it unless the user says so.
"""

from __future__ import annotations

from . import _libkgen
from .errors import EnvironmentLacks

# What is not kept from a Candidate without each.
WITHOUT = {
    "landlock": "files are kept from a Candidate by seccomp alone, and not while its image is loaded or its text is compiled",
    "seccomp": "nothing keeps a Candidate from the network, from other processes and from starting some; the worker does not run",
}


def missing() -> dict[str, str]:
    """Each protection that this kernel lacks, with what that means."""
    found = _libkgen.protections()
    return {name: what for name, what in WITHOUT.items() if not found[name]}


def require() -> None:
    """EnvironmentLacks when a model's Candidates for the CPU must not run here."""
    if lacking := missing():
        raise EnvironmentLacks(
            f"this kernel has no {' and no '.join(lacking)} ({'; '.join(lacking.values())}): a model's Candidates for the CPU are "
            "not run here; take a kernel that has it, tune on a GPU, or accept the risk with --unsafe-cpu"
        )
