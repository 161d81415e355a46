# make test        venv, install, lint, format check, the whole suite
# make check       lint, and the tests of what changed since the last commit (make check SINCE=main: since another)
# make reproduce   venv, install, the main experiment on real text with one seed, its report
# PYTHON=python3.12 make test   with another interpreter, 3.11 or later

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# What the installation compiles.
NATIVE := $(wildcard moe_jax/native/*.cc moe_jax/native/*.h)
SINCE ?= HEAD
RESULTS := runs/switch_vs_dense

.PHONY: test check reproduce lint clean

test: $(VENV)/installed-test lint
	$(BIN)/python -m pytest --numprocesses auto --dist worksteal

check: $(VENV)/installed-test lint
	$(BIN)/python -m pytest --numprocesses auto --dist worksteal -q $$($(BIN)/python -m tests.changed $(SINCE))

lint: $(VENV)/installed-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

reproduce: $(VENV)/installed
	$(BIN)/python -m experiments.switch_vs_dense --preset laptop --seeds 1 --output $(RESULTS)

# Byte code is left to whoever imports a module: most of what is installed nobody does.
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --no-compile

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit("Python 3.11 or later is needed: PYTHON=python3.12 make ...") if sys.version_info < (3, 11) else 0'
	$(PYTHON) -m venv $(VENV)

$(VENV)/installed: setup.py $(NATIVE) | $(VENV)/bin/python
	$(PIP) --editable .
	touch $@

$(VENV)/installed-test: setup.py $(NATIVE) | $(VENV)/bin/python
	$(PIP) --editable '.[test]'
	touch $@

clean:
	rm -rf $(VENV) *.egg-info .pytest_cache .ruff_cache .hypothesis
