#!/bin/bash
# Sets up what `make demo` and `make test` need on Debian 12 and Ubuntu 24.04: system packages that are
# really absent (the apt line is shown before it runs; without root it is only shown, exit code 3), and
# .venv with a torch (for CUDA where there is a GPU), or with the torch that the present Python already has, offline too.
# Refuses to touch anything outside .venv except through apt lines that it shows.
#   tools/setup.sh demo|test     test adds pytest, xdist, hypothesis, mcp, matplotlib, clang-format, NVRTC, and
#                                Chromium where apt has it
set -euo pipefail
cd "$(dirname "$0")/.."

goal=${1:-demo}
python=${PYTHON:-python3}
venv=.venv
torch_pin=2.13.0
nvrtc_pin=13.0.88

say() { printf 'setup: %s\n' "$*"; }
lack() { printf 'setup: %s\n' "$*" >&2; exit 3; }
have() { command -v "$1" >/dev/null 2>&1; }

# header FILE: is it in a folder where the compiler or cmake looks?
header() {
    local folder
    for folder in /usr/include /usr/include/*-linux-gnu /usr/local/include; do
        [ -e "$folder/$1" ] && return 0
    done
    local IFS=':;'
    for folder in ${CMAKE_PREFIX_PATH:-}; do
        [ -e "$folder/include/$1" ] && return 0
        compgen -G "$folder/include/*-linux-gnu/$1" >/dev/null && return 0
    done
    return 1
}

# torch.compile, one of the baselines, compiles C++ against Python.h. Only the system's Python gets its
# headers from apt.
python_headers() {
    case "$(readlink -f "$(command -v "$python")")" in
    /usr/bin/*)
        "$python" -c 'import os, sysconfig, sys
sys.exit(not os.path.exists(os.path.join(sysconfig.get_paths()["include"], "Python.h")))' ;;
    esac
}

absent_packages() {
    { have cc && have c++ && header stdio.h; } || echo build-essential
    have cmake || echo cmake
    have pkg-config || echo pkg-config
    if have "$python"; then
        "$python" -c 'import venv, ensurepip' 2>/dev/null || echo python3-venv
        python_headers || echo python3-dev
    else
        echo python3 python3-venv python3-dev
    fi
    header cjson/cJSON.h || echo libcjson-dev
    header sha2.h || echo libmd-dev
    header xxhash.h || echo libxxhash-dev
    header curl/curl.h || echo libcurl4-openssl-dev
    if [ "$goal" = test ]; then
        have clang-format || echo clang-format
    fi
}

install_packages() {
    local absent
    absent=$(absent_packages | tr '\n' ' ')
    absent=${absent% }
    [ -n "$absent" ] || return 0
    local line="apt-get install -y --no-install-recommends $absent"
    have apt-get || lack "needed and not here (Debian's names): $absent"
    if [ "$(id -u)" != 0 ]; then
        echo "setup: not here: $absent. Run as root, then make again:" >&2
        lack "  $line"
    fi
    say "not here: $absent. Running: $line"
    export DEBIAN_FRONTEND=noninteractive
    # The lists of a fresh machine are empty or old, so they are fetched first.
    apt-get update -qq || say "apt-get update failed, trying with the lists that are here"
    local log
    log=$(mktemp)
    # shellcheck disable=SC2086
    if ! $line -qq >"$log" 2>&1; then
        tail -n 20 "$log" >&2
        rm -f "$log"
        lack "apt-get failed; run it by hand: $line"
    fi
    rm -f "$log"
    absent=$(absent_packages | tr '\n' ' ')
    [ -z "$absent" ] || lack "still not here after apt-get: $absent"
}

# has_torch PYTHON: does it have torch >= 2.10? (metadata only: importing torch takes seconds)
has_torch() {
    "$1" - <<'PY' 2>/dev/null
import importlib.metadata, importlib.util, sys
if importlib.util.find_spec("torch") is None:
    sys.exit(1)
major, minor = importlib.metadata.version("torch").split(".")[:2]
sys.exit((int(major), int(minor)) < (2, 10))
PY
}

# lacks MODULE...: those that .venv cannot import
lacks() {
    "$venv/bin/python" - "$@" <<'PY'
import importlib.util, sys
print(" ".join(name for name in sys.argv[1:] if importlib.util.find_spec(name) is None))
PY
}

make_venv() {
    "$python" -c 'import sys; sys.exit(sys.version_info < (3, 10))' ||
        lack "kgen needs Python 3.10 or newer, $python is $("$python" -V 2>&1); name another with PYTHON=..."
    if has_torch "$python"; then
        say "making $venv on top of $python, which has torch already"
        "$python" -m venv --system-site-packages "$venv"
        # A Python that is itself a virtual environment gives only its base's packages that way.
        has_torch "$venv/bin/python" || "$python" -c 'import sysconfig
for key in ("purelib", "platlib"): print(sysconfig.get_paths()[key])' | sort -u \
            >"$(site_packages)/outer.pth"
    else
        say "making $venv"
        "$python" -m venv "$venv"
    fi
}

site_packages() { "$venv/bin/python" -c 'import sysconfig; print(sysconfig.get_paths()["purelib"])'; }

pip_install() { "$venv/bin/python" -m pip install -qq --disable-pip-version-check "$@"; }

# NVIDIA's kernel module is loaded.
has_gpu() { [ -e /proc/driver/nvidia/version ]; }

# The default wheel of torch for Linux brings several GB of CUDA packages, so without a GPU the CPU wheel is asked for
# first, by its full name; only an index that has it gives it.
install_torch() {
    if has_gpu; then
        say "installing torch $torch_pin with CUDA (several GB with its packages)"
        pip_install "torch==$torch_pin" && return 0
        lack "pip could not install torch; with no network, name a Python that has it: PYTHON=... make $goal"
    fi
    say "installing torch $torch_pin for the CPU (about 200 MB)"
    pip_install "torch==$torch_pin+cpu" 2>/dev/null && return 0
    say "pip's indexes have no CPU wheel: installing the default one, which is several GB with its packages"
    say "(to avoid that, stop, set PIP_EXTRA_INDEX_URL to PyTorch's index of CPU wheels, and make again)"
    pip_install "torch==$torch_pin" ||
        lack "pip could not install torch; with no network, name a Python that has it: PYTHON=... make $goal"
}

install_python_packages() {
    [ -x "$venv/bin/python" ] || make_venv
    has_torch "$venv/bin/python" || install_torch
    local wanted=(numpy rich) must=(numpy) absent
    if [ "$goal" = test ]; then
        wanted+=(pytest xdist hypothesis setuptools mcp matplotlib)
        must+=(pytest hypothesis)
    fi
    absent=$(lacks "${wanted[@]}")
    [ -n "$absent" ] || return 0
    absent=${absent/xdist/pytest-xdist}  # the module's name is not the package's
    say "installing $absent"
    # shellcheck disable=SC2086
    pip_install $absent && return 0
    absent=$(lacks "${must[@]}")
    [ -z "$absent" ] || lack "pip could not install $absent into $venv"
    say "going on without what pip could not install"
}

# NVRTC compiles the CUDA kernels without a GPU; a torch with CUDA has brought one.
install_nvrtc() {
    "$venv/bin/python" -c 'import glob, sys
sys.exit(not any(glob.glob(p + "/nvidia/*/lib/libnvrtc.so.*") for p in sys.path if p))' && return 0
    say "installing nvidia-cuda-nvrtc $nvrtc_pin (about 90 MB)"
    pip_install "nvidia-cuda-nvrtc==$nvrtc_pin" ||
        say "going on without NVRTC: tests/python/test_cuda_sources.py will be skipped"
}

# The report's page is looked at in a browser (tests/python/browser.py has the same names). Nothing else needs it, so
# nothing is said to be lacking. Ubuntu has it as a snap alone, and apt no candidate.
install_browser() {
    local name without="the screenshot test of the report will be skipped"
    [ -z "${KGEN_CHROMIUM:-}" ] || return 0
    for name in chromium chromium-browser google-chrome chrome headless_shell; do
        have "$name" && return 0
    done
    if ! have apt-get || ! apt-cache policy chromium 2>/dev/null | grep -q 'Candidate: [0-9]'; then
        say "no Chromium is here, and apt has none: $without"
        return 0
    fi
    local line="apt-get install -y --no-install-recommends chromium"
    if [ "$(id -u)" != 0 ]; then
        say "no Chromium is here: $without; as root: $line"
        return 0
    fi
    say "not here: chromium (120 MB to fetch, 400 MB then). Running: $line"
    # Only what fetches it is ended after a minute: dpkg would leave a half behind.
    # shellcheck disable=SC2086
    if ! { timeout 60 $line -qq --download-only && $line -qq; } >/dev/null 2>&1; then
        say "going on without Chromium: $without"
    fi
}

# A path file, not pip install -e: it needs no network and no build.
install_kgen() {
    echo "$PWD/python" >"$(site_packages)/kgen.pth"
    cat >"$venv/bin/kgen" <<PY
#!$PWD/$venv/bin/python
import sys

from kgen.__main__ import main

sys.exit(main())
PY
    chmod +x "$venv/bin/kgen"
}

case $goal in demo | test) ;; *) echo "usage: tools/setup.sh demo|test" >&2; exit 2 ;; esac
install_packages
install_python_packages
[ "$goal" = demo ] || install_nvrtc
[ "$goal" = demo ] || install_browser
install_kgen
touch "$venv/.kgen-$goal"
[ "$goal" = demo ] || touch "$venv/.kgen-demo"
