# Two commands on a fresh machine with Python 3.11 or newer: `make demo` and `make test`. Everything goes into .venv.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# Pins apply to everything that pip takes. --no-compile halves the time: Python compiles what it imports, not all of torch.
INSTALL := $(BIN)/python -m pip install --quiet --no-compile --disable-pip-version-check -c constraints.txt

.PHONY: help install demo test quick clean

help:
	@echo "make demo   plan the built-in head-and-neck phantom, nine scenarios, no data needed (under 3 minutes with the install)"
	@echo "make test   every test, as CI runs them"
	@echo "make quick  the tests that take seconds"
	@echo "make clean  remove .venv, caches and runs/"

install: $(VENV)/.installed

demo: $(VENV)/.installed
	$(BIN)/torchimpt plan experiments/cases/hn.toml --out runs/demo

test: $(VENV)/.installed-test
	$(BIN)/python -m pytest -m "not slow" --durations=10
	$(BIN)/python -m pytest -m slow --durations=10
	$(BIN)/python -m pytest --nbmake notebooks

quick: $(VENV)/.installed-test
	$(BIN)/python -m pytest -m "not slow"

clean:
	rm -rf $(VENV) runs .pytest_cache .ruff_cache .hypothesis
	find torchimpt tests experiments benchmarks -name __pycache__ -type d -prune -exec rm -rf {} +

# Installed anew only when what is installed changes.
$(VENV)/.installed: pyproject.toml constraints.txt
	@echo "Installing into $(VENV): the first time takes half a minute to a minute"
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(INSTALL) -e .
	@touch $@

$(VENV)/.installed-test: $(VENV)/.installed
	@echo "Installing the test extras into $(VENV)"
	$(INSTALL) -e '.[test]'
	@touch $@
