# Every chore has one verb; each makes the virtual environment first when it is missing.
PYTHON ?= python3
BIN := .venv/bin
STAMP := .venv/.installed
DEV := .venv/.installed-dev
LOWEST := .venv-lowest
RELEASE := .venv-release
# More words for pytest (folders, or a selection) and for bench.
ONLY ?=
WORKERS ?= auto

.PHONY: help demo test test-all test-lowest mutation lint type format docs docs-site docs-linkcheck docs-doctest bench bench-compare dist release-check clean

help:            ## list the verbs
	@grep -E '^[a-z-]+: .*##' $(MAKEFILE_LIST) | sed 's/:.*##/\t/'

$(STAMP): pyproject.toml constraints.txt
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable .
	@touch $@

$(DEV): $(STAMP)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	@touch $@

demo: $(STAMP)   ## simulate a scan, train, infer, refine, evaluate; pages and pictures in demo_run/, demo_run_2/, ...
	$(BIN)/ptycho-torch demo

test: $(DEV)   ## run all tests but the slow ones, in less than four minutes on two cores
	$(BIN)/python -m pytest -n auto -m 'not slow' $(ONLY)

test-all: $(DEV)   ## run all tests; ONLY="-m 'not thorough'" leaves out what CI does
	$(BIN)/python -m pytest -n $(WORKERS) --dist worksteal $(ONLY)

# The lowest versions lie over the ordinary environment: a second torch would cost minutes and show nothing.
$(LOWEST)/.installed: constraints-lowest.txt $(DEV)
	@test -x $(LOWEST)/bin/python || $(PYTHON) -m venv $(LOWEST)
	$(LOWEST)/bin/python -m pip install --quiet --no-deps --requirement constraints-lowest.txt
	@for site in $(LOWEST)/lib/python*/site-packages; do \
		echo "import site; site.addsitedir('$(CURDIR)/.venv/$${site#$(LOWEST)/}')" > $$site/ordinary.pth; done
	@touch $@

test-lowest: $(LOWEST)/.installed   ## test settings and facade on the lowest supported versions
	$(LOWEST)/bin/python -m pytest --quiet -n auto tests/exec/trainer tests/exec/test_settings.py \
		tests/exec/sources/test_resolve.py tests/test_settings_act.py tests/test_silent.py \
		--ignore tests/exec/trainer/test_loggers.py --ignore tests/exec/trainer/test_images.py -k 'not compiled' -m 'not slow'

mutation: $(DEV)   ## give every setting its default on the way to its consumer, in turn: a test must go red
	$(BIN)/python -m pytest --cut

lint: $(DEV)   ## check style, formatting, and that imports point down
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports

type: $(DEV)   ## check types
	$(BIN)/mypy

format: $(DEV) ## rewrite formatting
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: $(DEV)   ## regenerate schema, settings reference and .env.example
	$(BIN)/ptycho-exec docs

docs-site: $(DEV)   ## build the documentation site, strictly, its tutorials executed, into docs/_build/html
	$(BIN)/python -m sphinx -n -W --keep-going -c docs . docs/_build/html

docs-linkcheck: $(DEV)   ## ask the net whether the site's links to elsewhere still lead somewhere
	DOCS_EXECUTE=none $(BIN)/python -m sphinx -b linkcheck -c docs . docs/_build/linkcheck

docs-doctest: $(DEV)   ## run the examples of the Python reference
	$(BIN)/python -m pytest --quiet tests/docs_site/test_examples.py

bench: $(STAMP)  ## run the benchmarks, in under ten minutes; each prints its table and writes benchmarks/results/
	$(BIN)/python benchmarks/suite.py $(ONLY)

bench-compare: $(STAMP)   ## run the benchmarks that have a history; exit code 1 where one is slower than the last release
	$(BIN)/python benchmarks/suite.py --only startup training inference stitching refinement
	$(BIN)/python benchmarks/history.py compare

$(RELEASE)/.installed: constraints-release.txt
	@test -x $(RELEASE)/bin/python || $(PYTHON) -m venv $(RELEASE)
	$(RELEASE)/bin/python -m pip install --quiet --constraint constraints-release.txt \
		twine check-wheel-contents cffconvert
	@touch $@

dist: $(DEV) $(RELEASE)/.installed   ## build sdist and wheel in dist/, and check them
	rm -rf dist
	$(BIN)/python -m hatchling build --directory dist
	$(RELEASE)/bin/twine check --strict dist/*
	$(RELEASE)/bin/check-wheel-contents --toplevel ptycho_exec,ptycho_torch dist/*.whl
	$(RELEASE)/bin/cffconvert --validate

release-check: dist   ## install the wheel with all that it needs into new environments, and work with it there
	$(BIN)/python -m tests.release.check

clean:           ## remove the environment, caches and demo results
	rm -rf .venv $(LOWEST) $(RELEASE) dist demo_run demo_run_* docs/_build .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -prune -exec rm -rf {} +
