# make demo | make test: each sets up what it needs in .venv from nothing (a C++20 compiler is the one thing asked for).
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PARALLEL := --numprocesses logical --maxprocesses 4 --dist loadfile
SOURCES := pyproject.toml setup.py constraints.txt $(shell find csrc -type f)

.PHONY: demo test test-triton test-slow sanitize lint format bench gpu gpu-static install-check clean

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

# Editable, so that a changed Python file needs no reinstallation; changed C++ rebuilds here.
$(VENV)/.installed: $(SOURCES) | $(VENV)/bin/python
	$(BIN)/python -m pip install --quiet --constraint constraints.txt torch
# A CUDA build of torch brings Triton. Elsewhere its interpreter is for the tests, which know this one's ways.
	$(BIN)/python -c "import importlib.util, sys; sys.exit(importlib.util.find_spec('triton') is None)" \
	  || $(BIN)/python -m pip install --quiet triton==3.6.0
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[experiments,test]'
	touch $@

$(VENV)/.lint: pyproject.toml | $(VENV)/.installed
	$(BIN)/python -m pip install --quiet $$($(BIN)/python -c "import tomllib; print(*tomllib.load(open('pyproject.toml','rb'))['project']['optional-dependencies']['lint'])")
	touch $@

demo: $(VENV)/.installed
	$(BIN)/lmser demo --out demo --resume

# Tests take one thread each unless they are about threads; the files are shared out over processes.
test: $(VENV)/.installed
	$(BIN)/python -m pytest --require-native $(PARALLEL)

# The tests of the operations once more, on the Triton kernels in Triton's interpreter.
test-triton: $(VENV)/.installed
	$(BIN)/python -m pytest --require-native --fused triton -m "operators and not slow"

test-slow: $(VENV)/.installed
	$(BIN)/python -m pytest -m slow

# The CPU kernels without Python: bounds, lifetimes and undefined behaviour under every instruction set that runs here,
# then what threads share. Torch is there for its headers.
sanitize: $(VENV)/.installed
	$(MAKE) -C tests/native run PYTHON=$(CURDIR)/$(BIN)/python SANITIZE=address,undefined
	$(MAKE) -C tests/native run PYTHON=$(CURDIR)/$(BIN)/python SANITIZE=thread ISAS=baseline ONLY=thread

lint: $(VENV)/.lint
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/clang-format --dry-run --Werror $$(find csrc tests/native -name Makefile -prune -o -type f -print)

format: $(VENV)/.lint
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/clang-format -i $$(find csrc tests/native -name Makefile -prune -o -type f -print)

bench: $(VENV)/.installed
	$(BIN)/python -m pytest bench --benchmark-only

# With the packages of $(PYTHON) as they are: a machine with a GPU may have no network.
gpu:
	$(PYTHON) -m bench.gpu

# What the GPU kernels compile to, on a machine without a GPU.
gpu-static: $(VENV)/.installed
	$(BIN)/python -m bench.gpu_static

# What a user does: a plain `pip install .` with build isolation into a fresh environment, used from elsewhere.
install-check:
	rm -rf build/install-check && $(PYTHON) -m venv build/install-check
	build/install-check/bin/python -m pip install --quiet --constraint constraints.txt .
	cd / && $(CURDIR)/build/install-check/bin/python -m lmser_kernels.doctor
	cd / && $(CURDIR)/build/install-check/bin/lmser list

clean:
	rm -rf $(VENV) build *.egg-info lmser_kernels/*.so
