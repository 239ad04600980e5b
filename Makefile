# `make demo` and `make test` each work alone on a machine that has only Python 3.11 or 3.12 with pip.
# The first one called makes .venv (about 7 GB with the CUDA build of PyTorch). For the much smaller CPU build on Linux:
#   PIP_EXTRA_INDEX_URL=https://download.pytorch.org/whl/cpu make test
# Choose an interpreter with `make test PYTHON=/path/to/python3.12`.

VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
PIP := $(BIN)/python -m pip
PYTEST_ARGS ?=
PYTEST_WORKERS ?= 2

# Answers "yes" only to a Python that runs (version-manager shims may not) and that BasicSR 1.4.2 supports.
RIGHT_PYTHON := -c 'import sys, venv; sys.exit(sys.version_info[:2] not in ((3, 11), (3, 12)))'

# The first right Python on PATH, by name and then by folder.
PYTHON ?= $(shell IFS=:; for name in python3.11 python3.12 python3; do for dir in $$PATH; do \
	if [ -x "$$dir/$$name" ] && "$$dir/$$name" $(RIGHT_PYTHON) >/dev/null 2>&1; then echo "$$dir/$$name"; exit; fi; \
	done; done)

.DEFAULT_GOAL := help
.PHONY: help install demo test lint types pytest docs format clean

help:
	@echo "make demo     run examples/demo.py"
	@echo "make test     lint, types and tests, as CI runs them"
	@echo "make install  only make $(VENV)"
	@echo "make docs     the documentation, in build/site"
	@echo "make lint | types | pytest | format | clean"
	@echo "make pytest PYTEST_ARGS='-m slow tests/speedup'   some of the tests"

install: $(STAMP)

# BasicSR's setup.py wants torch and wheel in sight, so torch goes in first and build isolation is off.
# Where the interpreter has no ensurepip (Debian without python3-venv), its own pip puts pip into the new venv.
$(STAMP): pyproject.toml constraints.txt
	@python="$(PYTHON)"; \
	if [ -z "$$python" ]; then \
		echo "error: no Python 3.11 or 3.12 found on PATH; install one or name it: make PYTHON=/path/to/python3.12" >&2; exit 1; \
	fi; \
	if ! "$$python" $(RIGHT_PYTHON); then \
		echo "error: $$python is not a working Python 3.11 or 3.12 (BasicSR 1.4.2 does not install on 3.13)" >&2; exit 1; \
	fi; \
	if ! $(PIP) --version >/dev/null 2>&1; then \
		echo "making $(VENV) with $$python"; \
		if "$$python" -c 'import ensurepip' 2>/dev/null; then "$$python" -m venv --clear $(VENV); \
		else "$$python" -m venv --clear --without-pip $(VENV) && "$$python" -m pip --python $(BIN)/python install pip; fi; \
	fi
	$(PIP) install -c constraints.txt --upgrade pip setuptools wheel
	$(PIP) install -c constraints.txt torch torchvision
	$(PIP) install -c constraints.txt --no-build-isolation --use-pep517 "basicsr==1.4.2"
	$(PIP) install -c constraints.txt --no-build-isolation -e ".[all,dev]"
	@touch $@

demo: $(STAMP)
	$(BIN)/python examples/demo.py

test: lint types pytest

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(STAMP)
	$(BIN)/mypy srq_nni

# One thread a worker: two workers with a thread pool each slow one another down.
pytest: $(STAMP)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(PYTEST_WORKERS) $(PYTEST_ARGS)

docs: $(STAMP)
	$(BIN)/mkdocs build --strict

format: $(STAMP)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis demo_run
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
