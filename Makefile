# Two targets do everything: `make demo` and `make test`. Both set up .venv on first use.
# `make test-slow` is for what takes long for a reason: trainings, gallery pages, groups of processes.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
# A worker a core, each with one thread; a worker holds a few hundred MB. Compiled files are kept whatever the user's
# environment says: pytest would rewrite the assertions of every test file anew in each worker.
PYTEST := PYTHONDONTWRITEBYTECODE= OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n logical --maxprocesses 8 --dist worksteal

.PHONY: demo test test-slow suite format lint order types docs clean

demo: $(READY)
	$(BIN)/pullback demo --out runs/demo --force

# Types are checked beside the tests, as that keeps one core busy for half a minute.
test: order
	@$(MAKE) --no-print-directory --jobs=2 types suite

suite: $(READY)
	$(PYTEST) -m "not slow"

test-slow: $(READY)
	$(PYTEST) -m slow

lint: order types

# Cheapest first: format, lint, import directions.
order: $(READY)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/lint-imports

types: $(READY)
	$(BIN)/mypy

# Strict: a link that leads nowhere, a public name that cannot be documented, or a page of the gallery whose small run does not
# hold ends it. Small runs take minutes, and are kept in .small_runs until their code changes. The theme's advertisement is left out.
docs: $(READY)
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict

format: $(READY)
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade --constraint constraints.txt torch
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[demo,dev]'
	touch $(READY)

clean:
	rm -rf $(VENV) site .small_runs .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
