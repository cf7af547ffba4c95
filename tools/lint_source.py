"""The rules of the source tree that grep can see: boundaries between modules, banned calls, lengths.

Comments and string literals never count as code.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path

FOLDERS = ("csrc", "python", "kernels", "tests", "tools", "examples")
SUFFIXES = (".c", ".h", ".cu", ".cpp", ".py")
MAX_LINES = 800

LAYERS = ("base", "sys", "runtime", "tune", "worker")
MAY_INCLUDE = {
    "base": ("base",),
    "sys": ("base", "sys"),
    "runtime": ("base", "sys", "runtime"),
    "tune": ("base", "sys", "runtime", "tune"),
    "worker": ("base", "sys", "runtime", "worker"),
}

# Our own declarations of a foreign ABI, and whom they are for: others use the header beside them.
ABI_HEADERS = {
    r"sys/cuda_(abi|internal)\.h": ("csrc/sys/cuda", "csrc/conformance/", "tests/fake/"),
    r"sys/nvrtc_abi\.h": ("csrc/sys/nvrtc", "csrc/conformance/"),
    r"sys/nvml_abi\.h": ("csrc/sys/nvml", "csrc/conformance/", "tests/fake_nvml/"),
}

# The wire format is the one thing of the worker that its other end shares.
SHARED_HEADERS = {"worker/protocol.h": ("tune", "worker")}

# Foreign headers and the one file that may include each.
FOREIGN = {
    r"curl/.*": ("csrc/sys/http.c",),
    r"cuda(_runtime.*)?\.h": ("csrc/conformance/",),
    r"nvrtc\.h": ("csrc/conformance/",),
    r"nvml\.h": ("csrc/conformance/",),
    r"(cjson/)?cJSON\.h": ("csrc/base/json_node.h", "tests/faults/"),
    r"sha2\.h|md5\.h|sha256\.h": ("csrc/base/hash_sha.c",),
    r"(torch|ATen|c10)/.*": ("csrc/conformance/",),
    r"linux/(seccomp|filter|audit|landlock)\.h": ("csrc/sys/sandbox.c",),
    r"Python\.h": (),
}

BANNED = {
    "sprintf": "snprintf or kg_buf_printf",
    "vsprintf": "vsnprintf or kg_buf_vprintf",
    "strcpy": "kg_buf or memcpy of a known length",
    "strcat": "kg_buf_puts",
    "strncpy": "memcpy of a known length",
    "strtok": "strchr or strcspn",
    "atoi": "strtol with its end checked",
    "atof": "strtod with its end checked",
    "system": "kg_proc_run with an argument vector",
    "popen": "kg_proc_run with an argument vector",
    "gets": "getline",
    "setjmp": "a status code",
    "longjmp": "a status code",
}
SPAWN = re.compile(
    r"\b(fork|vfork|clone3?|execl|execle|execlp|execv|execve|execvp|execvpe|execveat|fexecve|"
    r"posix_spawnp?)\s*\("
)
SPAWNERS = ("csrc/sys/proc.c",)
# The library gives errors to its caller; only the worker, a program, may end itself.
LIBRARY_LAYERS = ("base", "sys", "runtime", "tune")
LOUD = re.compile(r"\b(printf|puts|putchar|perror|exit|abort|assert)\s*\(")
INCLUDE = re.compile(r'^\s*#\s*include\s*([<"])([^>"]+)[>"]')

COMMENT_OR_LITERAL = re.compile(
    r"""//[^\n]*|/\*.*?\*/|"(?:\\.|[^"\\\n])*"|'(?:\\.|[^'\\\n])*'""", re.DOTALL
)


def blank(match: re.Match[str]) -> str:
    return re.sub(r"[^\n]", " ", match.group())


def without_comments(text: str) -> str:
    def keep_literals(match: re.Match[str]) -> str:
        return match.group() if match.group()[0] in "\"'" else blank(match)

    return COMMENT_OR_LITERAL.sub(keep_literals, text)


def code_only(text: str) -> str:
    return COMMENT_OR_LITERAL.sub(blank, text)


def sources() -> list[str]:
    found = [Path("setup.py")]
    for folder in FOLDERS:
        found += Path(folder).rglob("*")
    return sorted(str(path) for path in found if path.suffix in SUFFIXES and path.is_file())


def layer_of(name: str) -> str | None:
    parts = name.split("/")
    return parts[1] if parts[0] == "csrc" and len(parts) > 2 and parts[1] in LAYERS else None


def check_length(name: str, text: str) -> Iterator[str]:
    lines = text.count("\n")
    if lines > MAX_LINES:
        yield f"{name}:{lines}: {lines} lines; split it into files of at most {MAX_LINES}"


def check_include(name: str, number: int, quote: str, header: str) -> Iterator[str]:
    for pattern, owners in FOREIGN.items():
        if re.fullmatch(pattern, header) and not any(name.startswith(owner) for owner in owners):
            right = f"only {owners[0]} may" if owners else "nothing may"
            yield f"{name}:{number}: includes {header}; {right}"
    for pattern, owners in ABI_HEADERS.items():
        if re.fullmatch(pattern, header) and not name.startswith(owners):
            yield f"{name}:{number}: includes {header}; only {owners[0]}* may, others its header"
    layer = layer_of(name)
    if layer is None or quote == "<":
        return
    target = header.split("/")[0]
    if layer in SHARED_HEADERS.get(header, ()) or re.fullmatch(r"kgen\w*\.h", header):
        return
    if "/" not in header:
        yield f'{name}:{number}: includes "{header}"; write it from csrc/, as "{layer}/{header}"'
    elif target in LAYERS and target not in MAY_INCLUDE[layer]:
        allowed = ", ".join(MAY_INCLUDE[layer])
        yield f"{name}:{number}: {layer} includes {header}; it may include {allowed}"


def check_calls(name: str, number: int, line: str) -> Iterator[str]:
    for call, instead in BANNED.items():
        if re.search(rf"(?<![\w.>]){call}\s*\(", line):
            yield f"{name}:{number}: {call} is banned; use {instead}"
    spawn = SPAWN.search(line)
    if spawn and name.startswith("csrc/") and name not in SPAWNERS:
        yield f"{name}:{number}: {spawn.group(1)}; only {' and '.join(SPAWNERS)} start processes"
    loud = LOUD.search(line)
    if loud and layer_of(name) in LIBRARY_LAYERS:
        yield f"{name}:{number}: {loud.group(1)}; the library returns a status (kg_fail) or logs (kg_log)"
    if "aoti_torch_" in line and name.startswith("csrc/"):
        if not re.match(r"csrc/(runtime/(torch_abi|shim)|conformance/)", name):
            yield f"{name}:{number}: torch's ABI; it belongs to runtime/torch_abi.* and runtime/shim*"


def check_c(name: str, text: str) -> Iterator[str]:
    for number, line in enumerate(without_comments(text).splitlines(), 1):
        found = INCLUDE.match(line)
        if found:
            yield from check_include(name, number, found.group(1), found.group(2))
    for number, line in enumerate(code_only(text).splitlines(), 1):
        yield from check_calls(name, number, line)


def check_python(name: str, text: str) -> Iterator[str]:
    for number, line in enumerate(text.splitlines(), 1):
        if re.match(r"\s*except\s*:", line):
            yield f"{name}:{number}: bare except; name the exceptions"
    if name.startswith("python/") and text.strip():
        if "from __future__ import annotations" not in text:
            yield f"{name}:1: must open with `from __future__ import annotations`"


def check_file(name: str) -> Iterator[str]:
    text = Path(name).read_text(encoding="utf-8")
    yield from check_length(name, text)
    if name.startswith(("csrc/", "tests/c/", "tests/fake/", "tests/fake_nvml/", "tests/faults/", "tests/fuzz/")):
        yield from check_c(name, text)
    if name.endswith(".py"):
        yield from check_python(name, text)


def main() -> int:
    findings = [finding for name in sources() for finding in check_file(name)]
    for finding in findings:
        print(finding)
    return 1 if findings else 0


if __name__ == "__main__":
    sys.exit(main())
