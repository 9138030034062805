# `make demo` and `make test` do all of their own set-up; they need Python >= 3.11, make and pip.
.DEFAULT_GOAL := help
.PHONY: help venv demo test lint format bench bench-fast dist clean

VENV ?= .venv
BIN := $(VENV)/bin
INPUTS := pyproject.toml constraints.txt
# Without compiled files every process would compile torch and the like again: twenty seconds instead of seven.
unexport PYTHONDONTWRITEBYTECODE
# Python compiles what it imports; compiling every file of every package would take longer than the tests.
PIP_INSTALL := $(BIN)/python -m pip install --disable-pip-version-check --no-compile -c constraints.txt

# The first interpreter that runs and is new enough; override with `make PYTHON=...`.
PYTHON ?= $(shell for p in python3 python3.11 python3.12 python3.13 python3.14 python; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$p && break; done)

help:
	@echo 'make demo        install, then fit, score and explain real episodes'
	@echo 'make test        install everything the tests need, then run the whole suite'
	@echo 'make lint        ruff and mypy'
	@echo 'make format      let ruff rewrite the sources'
	@echo 'make bench       every benchmark (make bench-fast: a smoke version)'
	@echo 'make dist        build the wheel and the source archive into dist/'

# One stamp per set of packages, so that the demo never waits for hosts that only the tests use.
$(VENV)/.created:
	@test -n "$(PYTHON)" || { echo 'valuegraph needs Python >= 3.11 on PATH (or make PYTHON=/path/to/python)' >&2; exit 1; }
	$(PYTHON) -m venv $(VENV) || { $(PYTHON) -m venv --clear --without-pip $(VENV) && \
		$(PYTHON) -m pip --python $(VENV)/bin/python install pip; }
	@touch $@

$(VENV)/.core: $(VENV)/.created $(INPUTS)
	$(PIP_INSTALL) -e .
	@touch $@

$(VENV)/.test: $(VENV)/.created $(INPUTS)
	$(PIP_INSTALL) -e '.[test]'
	@touch $(VENV)/.core $@

$(VENV)/.bench: $(VENV)/.created $(INPUTS)
	$(PIP_INSTALL) -e '.[test,bench]'
	@touch $(VENV)/.core $(VENV)/.test $@

venv: $(VENV)/.test

demo: $(VENV)/.core
	$(BIN)/valuegraph demo

test: $(VENV)/.test
	$(BIN)/python -m pytest -q

lint: $(VENV)/.test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy valuegraph

format: $(VENV)/.test
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(VENV)/.bench
	$(BIN)/python -m benchmarks.run --full

bench-fast: $(VENV)/.bench
	$(BIN)/python -m benchmarks.run --fast

dist: $(VENV)/.test
	$(BIN)/python -m build

clean:
	rm -rf build dist .pytest_cache .mypy_cache .ruff_cache
