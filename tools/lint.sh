#!/bin/bash
# Checks what a compiler does not: formatting, who may include and call what, and what the built runtime
# links. Prints file:line and what would be right; exit code 1 when anything was found. --fix lets
# clang-format rewrite the files and checks nothing.
set -uo pipefail
cd "$(dirname "$0")/.."
python=.venv/bin/python
[ -x $python ] || python=python3
build=${KGEN_BUILD:-build}
failed=0

c_files() {
    find csrc tests/c tests/fake tests/fake_nvml tests/faults tests/fuzz \( -name '*.[ch]' -o -name '*.cpp' \) 2>/dev/null
}

if [ "${1:-}" = --fix ]; then
    c_files | xargs -r clang-format -i --style=file
    exit
fi

if command -v clang-format >/dev/null 2>&1; then
    c_files | xargs -r clang-format --dry-run -Werror --style=file 2>&1 |
        awk -F: '/: error: code should be clang-formatted/ && !seen[$1]++ { print $1 ":" $2 ": not as .clang-format wants it; run `make format`"; bad = 1 }
             END { exit bad }' || failed=1
else
    echo "lint: clang-format is not here (Debian package clang-format)" >&2
    failed=1
fi

$python tools/lint_source.py || failed=1
$python tools/lint_binary.py "$build/libkgen_rt.so" || failed=1

if [ $failed = 0 ]; then echo "lint: clean"; fi
exit $failed
