# `make demo` and `make test` each do all of their set-up: a virtual environment with the exact versions of
# constraints.txt, and this package in it. They need Python >= 3.11 with venv, make and git.

PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
READY  := $(VENV)/.installed

.PHONY: install demo test fuzz lint docs clean

install: $(READY)

$(READY): pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else "tune_stn needs Python 3.11 or newer; set PYTHON=")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	touch $(READY)

# The main job at its smallest: six methods at equal cost on embedded data.
# A demo shows the whole way, so it starts afresh each time.
demo: $(READY)
	rm -rf runs/demo
	$(BIN)/tune-stn compare --task digits-mlp --methods auto,stn,fixed,random,gp-bo,pbt \
	  --budget 100 --set epochs=40 --seeds 2 --out runs/demo

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# Tests that use Ray mostly wait for its processes: they share one of two processes, the others run beside them.
test: lint
	$(BIN)/python -m pytest -n 2

# A thousand damaged inputs for every reader; `make test` reads a few of each.
fuzz: $(READY)
	$(BIN)/python tests/fuzz --inputs 1000 --out experiments/results/fuzz/readers.csv

# The documentation, into site/index.html. Its packages are no part of what the tests need.
docs: $(READY)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[docs]'
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict --quiet

clean:
	rm -rf $(VENV) runs site .pytest_cache .mypy_cache .ruff_cache
