# Two commands on a fresh machine with Python 3.11 or newer: `make demo` and `make test`. Everything goes into .venv.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# Pins apply to everything that pip takes. --no-compile halves the time: Python compiles what it imports, not all of torch.
INSTALL := $(BIN)/python -m pip install --quiet --no-compile --disable-pip-version-check -c constraints.txt

# Where bytecode is not kept (some containers say so), every command that a test starts would compile torch, matplotlib and all else anew.
unexport PYTHONDONTWRITEBYTECODE

# One process a core, each with one thread (tests/conftest.py); more than eight would want more memory than they save time.
PYTEST := $(BIN)/python -m pytest -n auto --maxprocesses=8

.PHONY: help install demo test check quick docs lowest wheel clean

help:
	@echo "make demo   plan the built-in head-and-neck phantom, nine scenarios, no data needed (under 3 minutes with the install)"
	@echo "make test   every test, as CI runs them"
	@echo "make check  lint, format, types and the docstrings' examples"
	@echo "make quick  the tests that take seconds"
	@echo "make docs   the documentation's site, into site/; warnings are errors"
	@echo "make lowest the quick tests with the oldest versions that pyproject.toml allows (downloads an old torch)"
	@echo "make wheel  a built wheel in a clean environment: installed, timed, a small plan made"
	@echo "make clean  remove .venv, caches and runs/"

install: $(VENV)/.installed

demo: $(VENV)/.installed
	$(BIN)/torchimpt plan experiments/cases/hn.toml --out runs/demo

test: check
	$(PYTEST) -m "not slow" --durations=10 --cov=torchimpt --cov-report=
	$(PYTEST) -m slow --durations=10 --cov=torchimpt --cov-append --cov-report=term:skip-covered
	$(BIN)/python -m pytest --nbmake notebooks

check: $(VENV)/.installed-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python -m pytest --doctest-modules torchimpt -q

quick: $(VENV)/.installed-test
	$(PYTEST) -m "not slow"

# The theme's notice of MkDocs 2 is no warning of ours.
docs: $(VENV)/.installed-test
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict --quiet
	@echo "site/index.html; to search in it: $(BIN)/python -m http.server --directory site"

lowest:
	$(PYTHON) .ci/lowest.py

wheel:
	$(PYTHON) .ci/wheel.py

clean:
	rm -rf $(VENV) .venv-lowest runs site .pytest_cache .ruff_cache .mypy_cache .hypothesis .coverage*
	find torchimpt tests experiments benchmarks docs -name __pycache__ -type d -prune -exec rm -rf {} +

# Installed anew only when what is installed changes.
$(VENV)/.installed: pyproject.toml constraints.txt
	@echo "Installing into $(VENV): the first time takes half a minute to a minute"
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(INSTALL) -e .
	@touch $@

$(VENV)/.installed-test: $(VENV)/.installed
	@echo "Installing the test and docs extras into $(VENV)"
	$(INSTALL) -e '.[test,docs]'
	@touch $@
