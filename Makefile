# The commands of this repository. Each sets up what it needs first (tools/setup.sh says what it installs
# before it does), so a bare clone needs nothing but make and a network.
VENV := .venv
PY := $(VENV)/bin/python
JOBS ?= $(shell nproc)
PYTEST := $(PY) -m pytest -q
# Tests of one file stay together. Without pytest-xdist one after the other.
BESIDE = $$($(PY) -c 'import xdist' 2>/dev/null && echo '-n $(JOBS) --dist loadfile')

.PHONY: demo test test-all build lint format bench fuzz wheel clean help ctest

help:
	@echo "make demo      tune a small GPT on this machine's GPU, else its CPU, and show what came of it (about 4 minutes)"
	@echo "make test      C tests under sanitizers, lint, Python tests without the slow ones"
	@echo "make test-all  the same with the slow ones"
	@echo "make build     build/libkgen_rt.so, build/libkgen.so, build/kgen-worker"
	@echo "make lint      formatting, boundaries between modules, what the runtime links"
	@echo "make format    let clang-format rewrite the C sources"
	@echo "make bench     the numbers of the README, asserted (of a GPU: tests/bench/gpu.py, in parts)"
	@echo "make fuzz      the parsers under libFuzzer, FUZZ_SECONDS=60 each (needs clang)"
	@echo "make wheel     dist/*.whl"
	@echo "make clean     remove build folders"

# Set-up leaves a stamp, so that it takes no time when nothing changed.
$(VENV)/.kgen-demo: tools/setup.sh
	@tools/setup.sh demo
$(VENV)/.kgen-test: tools/setup.sh
	@tools/setup.sh test

# $(call configure,PRESET,FOLDER)
configure = [ -f $(2)/Makefile -o -f $(2)/build.ninja ] || cmake --preset $(1) --log-level=WARNING >/dev/null

build: $(VENV)/.kgen-demo
	@$(call configure,release,build)
	@cmake --build build -j$(JOBS) -- --no-print-directory -s

demo: build
	@$(PY) -m kgen demo

ctest: $(VENV)/.kgen-test
	@$(call configure,ci,build-ci)
	@cmake --build build-ci -j$(JOBS) -- --no-print-directory -s
	@KGEN_TEST_NVRTC="$$($(PY) -c 'import sysconfig; print(sysconfig.get_path("purelib"))')" build-ci/kgen-ctests --beside=$(JOBS)
	@build-ci/kgen-faults --beside=$(JOBS)

lint: $(VENV)/.kgen-test build
	@tools/lint.sh

format: $(VENV)/.kgen-test
	@tools/lint.sh --fix

test: $(VENV)/.kgen-test build ctest lint
	@cmake --build build --target kgen-conformance -- --no-print-directory -s
	@$(PYTEST) -m "alone and not slow" tests
	@$(PYTEST) $(BESIDE) -m "not alone and not slow" tests

test-all: export KGEN_FAULTS = all
test-all: $(VENV)/.kgen-test build ctest lint
	@cmake --build build --target kgen-conformance -- --no-print-directory -s
	@$(PYTEST) -m alone tests
	@$(PYTEST) $(BESIDE) -m "not alone" tests

bench: $(VENV)/.kgen-test build
	@$(PY) tests/bench/run.py

# Each fuzzer starts from the golden files; a finding ends it and leaves crash-* in build-fuzz/.
FUZZ_SECONDS ?= 60
fuzz: $(VENV)/.kgen-demo
	@$(call configure,fuzz,build-fuzz)
	@cmake --build build-fuzz -j$(JOBS) --target kgen-fuzz -- --no-print-directory -s
	@cd build-fuzz && seeds=$$(find ../tests/golden ../kernels -mindepth 1 -type d) && for one in ../tests/fuzz/*.c; do \
	    name=$$(basename $$one .c); mkdir -p corpus-$$name; echo "$$name, $(FUZZ_SECONDS) s"; \
	    ./$$name -max_total_time=$(FUZZ_SECONDS) -max_len=8192 -verbosity=0 \
	        corpus-$$name $$seeds >$$name.log 2>&1 || { tail -n 30 $$name.log; exit 1; }; \
	done

wheel: $(VENV)/.kgen-test
	@$(PY) -m pip wheel --quiet --disable-pip-version-check --no-deps --no-build-isolation -w dist .
	@ls dist/*.whl

clean:
	rm -rf build build-debug build-ci build-fuzz dist
