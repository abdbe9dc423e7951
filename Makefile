# make demo | make test: each sets up what it needs in .venv from nothing (a C++20 compiler is the one thing asked for).
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
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

test: $(VENV)/.installed
	$(BIN)/python -m pytest --require-native

# The tests of the operations once more, on the Triton kernels in Triton's interpreter.
test-triton: $(VENV)/.installed
	$(BIN)/python -m pytest --require-native --fused triton -m "operators and not slow"

test-slow: $(VENV)/.installed
	$(BIN)/python -m pytest -m slow

# The compiled CPU kernels with bounds, lifetimes and undefined behaviour watched, in a tree of their own. Python and
# PyTorch leak by design, and a sanitizer's runtime must come before theirs.
SANITIZED := build/sanitize
SANITIZED_TESTS := $(addprefix tests/test_,conv2d_add_act.py conv_transpose2d_add_act.py tied_conv2d.py gradients.py \
  winograd.py isa.py add_act.py max_pool.py settle.py settle_step.py rows.py output_store.py large_batches.py)
sanitize: $(VENV)/.installed
	$(BIN)/python -m pip install --quiet ninja pybind11
	mkdir -p $(SANITIZED)
	cp -r csrc lmser lmser_kernels bench tests conftest.py pyproject.toml setup.py README.md LICENSE $(SANITIZED)
	rm -f $(SANITIZED)/lmser_kernels/*.so
	cd $(SANITIZED) && LMSER_CUDA=0 LMSER_SANITIZE=address,undefined $(CURDIR)/$(BIN)/python setup.py -q build_ext --inplace
	cd $(SANITIZED) && LD_PRELOAD="$$(g++ -print-file-name=libasan.so) $$(g++ -print-file-name=libubsan.so)" \
	  ASAN_OPTIONS=detect_leaks=0:alloc_dealloc_mismatch=0 UBSAN_OPTIONS=print_stacktrace=1 \
	  $(CURDIR)/$(BIN)/python -m pytest -x --require-native -m "not slow" $(SANITIZED_TESTS)

lint: $(VENV)/.lint
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/clang-format --dry-run --Werror $$(find csrc -type f)

format: $(VENV)/.lint
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/clang-format -i $$(find csrc -type f)

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
