# make test        venv, install, lint, format check, the whole suite
# make check       lint, and within a minute tests of what changed since the last commit (SINCE=main: since another)
# make campaign    up to an hour of drawn inputs, kills and full disks; writes experiments/results/campaign.txt
# make reproduce   venv, install, the main experiment on real text with one seed, its report
# make wheels      a source distribution and wheels for x86_64 and aarch64 in dist/
# make versions    those and this checkout installed and used with every JAX that setup.py allows, on PYTHONS
# PYTHON=python3.12 make test   with another interpreter, 3.11 or later

PYTHON ?= python3
PYTHONS ?= python3.11 python3.12 python3.13
VENV := .venv
BIN := $(VENV)/bin
# What the installation compiles.
NATIVE := $(wildcard moe_jax/native/*.cc moe_jax/native/*.h)
SINCE ?= HEAD
RESULTS := runs/switch_vs_dense
# Dozens of processes import the same modules: they are compiled to byte code once.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: test check campaign reproduce wheels versions lint clean

test: $(VENV)/installed-test lint
	$(BIN)/python -m pytest --numprocesses auto --dist worksteal

# Compiled programs are kept for the next check, those of a week.
check: export JAX_COMPILATION_CACHE_DIR := $(CURDIR)/.compiled
check: $(VENV)/installed-test lint
	@mkdir -p .compiled && find .compiled -type f -mtime +7 -delete
	$(BIN)/python -m pytest --numprocesses auto --dist worksteal -q -p tests.changed $$($(BIN)/python -m tests.changed $(SINCE))

lint: $(VENV)/installed-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

campaign: $(VENV)/installed-test
	$(BIN)/python -m tests.campaign

reproduce: $(VENV)/installed
	$(BIN)/python -m experiments.switch_vs_dense --preset laptop --seeds 1 --output $(RESULTS)

wheels: $(VENV)/installed-wheels
	$(BIN)/python -m experiments.native.wheels

versions: wheels
	$(BIN)/python -m experiments.native.versions $(PYTHONS)

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

$(VENV)/installed-wheels: setup.py $(NATIVE) | $(VENV)/bin/python
	$(PIP) --editable '.[wheels]'
	touch $@

clean:
	rm -rf $(VENV) dist *.egg-info .compiled .pytest_cache .ruff_cache .hypothesis
