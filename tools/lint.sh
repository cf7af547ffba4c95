#!/bin/bash
# Checks what a compiler does not: formatting, who may include and call what, and what the built runtime
# links. Prints file:line and what would be right; exit code 1 when anything was found.
set -uo pipefail
cd "$(dirname "$0")/.."
python=.venv/bin/python
[ -x $python ] || python=python3
build=${KGEN_BUILD:-build}
failed=0

if command -v clang-format >/dev/null 2>&1; then
    git ls-files -co --exclude-standard 'csrc/*.c' 'csrc/*.h' 'csrc/*.cpp' 'tests/c/*.c' 'tests/c/*.h' |
        xargs -r clang-format --dry-run -Werror --style=file 2>&1 |
        awk '/error:/ { sub(/: error:.*/, ": not as .clang-format wants it; run clang-format -i"); print; bad = 1 }
             END { exit bad }' || failed=1
else
    echo "lint: clang-format is not here (Debian package clang-format)" >&2
    failed=1
fi

$python tools/lint_source.py || failed=1
$python tools/lint_binary.py "$build/libkgen_rt.so" || failed=1

if [ $failed = 0 ]; then echo "lint: clean"; fi
exit $failed
