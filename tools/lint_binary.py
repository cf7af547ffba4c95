"""What libkgen_rt.so links and exports: it must load into any torch >= 2.10 and any Python, so it may
need libc alone and may export nothing but kgen_*.

usage: lint_binary.py build/libkgen_rt.so
"""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

MAY_NEED = re.compile(r"(libc|libm|libdl|libpthread)\.so\.\d+|ld-linux[\w-]*\.so\.\d+")
FOREIGN = re.compile(r"_Z|aoti_|torch|c10|Py[A-Z_]|_Py|cu[A-Z]|cuda|nvrtc|nvml|curl_|cJSON|SHA256|MD5")


def output_of(*command: str) -> list[str]:
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    if result.returncode != 0:
        sys.exit(f"lint: {' '.join(command)}: {result.stderr.strip()}")
    return result.stdout.splitlines()


def check(library: str) -> Iterator[str]:
    for line in output_of("readelf", "-dW", library):
        found = re.search(r"\(NEEDED\).*\[(.*)\]", line)
        if found and not MAY_NEED.fullmatch(found.group(1)):
            yield f"{library}: needs {found.group(1)}; the runtime may need libc alone (find it with dlopen)"
    for line in output_of("nm", "-D", "--undefined-only", library):
        name = line.split()[-1]
        if FOREIGN.match(name):
            yield f"{library}: undefined symbol {name}; the runtime finds foreign functions with dlsym"
    exported = [line.split()[-1] for line in output_of("nm", "-D", "--defined-only", library)]
    for name in exported:
        if not name.startswith("kgen_"):
            yield f"{library}: exports {name}; only kgen_* may be exported"
    if not exported:
        yield f"{library}: exports nothing; its functions for Python are named kgen_*"


def main(library: str) -> int:
    if not Path(library).is_file():
        print(f"{library}: not there; make build first")
        return 1
    findings = list(check(library))
    for finding in findings:
        print(finding)
    return 1 if findings else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]) if len(sys.argv) == 2 else __doc__)
