# make quickstart            train, evaluate, probe, analyse and export a small ProtBert
# make quickstart MODEL=t5   the same with a small ProtT5
# make test                  lint, types and the fast tests;  make test-all adds slow and long ones
# make test-exact            tests that claim exact results, with the compiler's default flags
# make docs                  the documentation site, in site/;  open site/index.html
# make fuzz                  give a million malformed inputs to all readers;  FUZZ_INPUTS=20000 fewer
# make test-wheel            build sdist and wheel, install them into fresh environments, train
# make test-t5x T5X=PATH     all tests of the bridge with this clone of T5X; none may be skipped
# make test-pods             compile every family's published recipe for the pod of its paper
PYTHON ?= python3
VENV ?= .venv
MODEL ?= bert
ARGS ?=
WORKERS ?= 2

BIN := $(VENV)/bin
RUN_PINS := requirements/core.txt requirements/hf.txt requirements/probe.txt requirements/report.txt
TEST_PINS := $(RUN_PINS) requirements/data.txt requirements/beam.txt requirements/dev.txt requirements/docs.txt requirements/plan.txt
PIP := $(BIN)/python -m pip install --disable-pip-version-check --progress-bar off --quiet
PYTEST := $(BIN)/python -m pytest -n $(WORKERS)
# What is exact runs once, with the compiler's default flags.
PYTEST_FAST := $(PYTEST) -m "not exact and not slow and not long and not pods"
PYTEST_EXACT := XLA_FLAGS= $(PYTEST) -m "exact and not slow and not long" tests/models tests/training

.DEFAULT_GOAL := help
.PHONY: help quickstart check test test-exact test-slow test-all test-wheel test-t5x fuzz test-pods \
	docs clean

help:
	@sed -n 's/^# make/make/p' Makefile

quickstart: $(VENV)/.installed
	$(BIN)/protlm quickstart $(MODEL) $(ARGS)

check: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

test: check
	$(PYTEST_FAST)
	$(PYTEST_EXACT)

test-exact: $(VENV)/.installed-dev
	$(PYTEST_EXACT)

test-slow: $(VENV)/.installed-dev
	$(PYTEST) -m slow

test-all: check
	$(PYTEST) -m "not exact and not pods"
	$(PYTEST_EXACT)

test-wheel: $(VENV)/.installed-dev
	$(BIN)/python -m pytest -m "slow or long" tests/test_wheel.py

test-t5x: $(VENV)/.installed-dev
	@test -d "$(T5X)/t5x" || { echo "error: name a clone of T5X: make test-t5x T5X=path/to/t5x" >&2; \
	exit 1; }
	PYTHONPATH=$(T5X) $(BIN)/python -c "import t5x.train"
	PYTHONPATH=$(T5X) $(BIN)/python -m pytest -rs tests/t5x_bridge > .t5x.log; status=$$?; \
	cat .t5x.log; ! grep -q SKIPPED .t5x.log && rm .t5x.log && exit $$status

fuzz: $(VENV)/.installed-dev
	PYTHONPATH=tests $(BIN)/python -m fuzz.runner --workers $(WORKERS) $(ARGS)

test-pods: $(VENV)/.installed-dev
	$(PYTEST) -m pods

# An environment is up to date when its stamp is newer than what it was made from.
$(VENV)/.installed: $(RUN_PINS) pyproject.toml | $(BIN)/python
	@echo "Installing protlm_jax and $(RUN_PINS) into $(VENV): a few minutes the first time"
	$(PIP) $(addprefix -r ,$(RUN_PINS))
	$(PIP) --no-deps --editable .
	@touch $@

$(VENV)/.installed-dev: $(TEST_PINS) pyproject.toml | $(BIN)/python
	@echo "Installing protlm_jax and $(TEST_PINS) into $(VENV): a few minutes the first time"
	$(PIP) $(addprefix -r ,$(TEST_PINS))
	$(PIP) --no-deps --editable .
	@touch $@ $(VENV)/.installed

$(BIN)/python:
	@command -v $(PYTHON) >/dev/null || { echo "error: no $(PYTHON) here; install Python 3.11, \
	3.12 or 3.13, or name one: make PYTHON=/path/to/python" >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' || { \
	echo "error: $$($(PYTHON) --version) cannot run the pinned packages; install Python 3.11, 3.12 \
	or 3.13, or name one: make PYTHON=/path/to/python3.12" >&2; exit 1; }
	@echo "Making a virtual environment in $(VENV) with $$($(PYTHON) --version)"
	@$(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); echo "error: $(PYTHON) cannot make virtual \
	environments; install its venv module (Debian: apt install python3-venv)" >&2; exit 1; }

docs: $(VENV)/.installed-dev
	$(BIN)/mkdocs build --strict --quiet
	@echo "open site/index.html"

clean:
	rm -rf $(VENV) build dist site *.egg-info .cache .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
