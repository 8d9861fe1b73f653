# make quickstart   environment, installation, then two small networks trained and audited
# make test         environment, installation with the test extra, the whole suite
# make check        ruff and mypy --strict
# make bench        the benchmark of PGD, side by side with peers where those are installed

PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
PIP    := $(BIN)/python -m pip --disable-pip-version-check
# One worker a core, each with one thread: two programs that share cores through OpenMP barriers crawl.
WORKERS ?= auto

.PHONY: quickstart test check bench clean

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed: pyproject.toml constraints.txt | $(BIN)/python
	$(PIP) install --quiet --constraint constraints.txt --editable .
	@touch $@

$(VENV)/.installed-test: pyproject.toml constraints.txt | $(BIN)/python
	$(PIP) install --quiet --constraint constraints.txt --editable '.[test]'
	@touch $@ $(VENV)/.installed

quickstart: $(VENV)/.installed
	$(BIN)/holdfast quickstart

test: $(VENV)/.installed-test
	$(BIN)/python -m pytest -n $(WORKERS) --durations=10

check: $(VENV)/.installed-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: $(VENV)/.installed-test
	$(BIN)/python benchmarks/pgd.py

clean:
	rm -rf $(VENV) build dist .mypy_cache .pytest_cache .ruff_cache
