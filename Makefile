# make demo: set up, then fit the shipped model into a budget.   make test: set up, then run every check.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: setup build demo test check clean

setup: $(VENV)/.ready
$(VENV)/.ready: pyproject.toml constraints.txt CMakeLists.txt $(wildcard native/*.c native/*.h native/python/*.cpp)
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt \
	    scikit-build-core nanobind cmake ninja
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt \
	    --no-build-isolation --editable '.[demo,dev]'
	touch $@

build:
	flock $(VENV)/build.lock $(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps \
	    --no-build-isolation --editable .

clean:
	rm -rf build runs $(VENV)
