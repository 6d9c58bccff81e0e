# Every chore has one verb; each makes the virtual environment first when it is missing.
PYTHON ?= python3
BIN := .venv/bin
STAMP := .venv/.installed
DEV := .venv/.installed-dev
DEMO := demo_run

.PHONY: help demo test lint type format docs bench clean

help:            ## list the verbs
	@grep -E '^[a-z]+: .*##' $(MAKEFILE_LIST) | sed 's/:.*##/\t/'

$(STAMP): pyproject.toml constraints.txt
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable .
	@touch $@

$(DEV): $(STAMP)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	@touch $@

demo: $(STAMP)   ## simulate a scan, train, infer, refine, evaluate; pictures in demo_run/
	$(BIN)/ptycho-torch demo --out $(DEMO)

test: $(DEV)   ## run all tests
	$(BIN)/python -m pytest

lint: $(DEV)   ## check style and formatting
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

type: $(DEV)   ## check types
	$(BIN)/mypy

format: $(DEV) ## rewrite formatting
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: $(DEV)   ## regenerate schema, settings reference and .env.example
	$(BIN)/ptycho-exec docs

bench: $(STAMP)  ## run the benchmarks; each prints its table
	@for file in benchmarks/*.py; do echo "== $$file"; $(BIN)/python $$file || exit 1; done

clean:           ## remove the environment, caches and demo results
	rm -rf .venv $(DEMO) .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -prune -exec rm -rf {} +
