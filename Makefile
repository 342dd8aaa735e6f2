# `make demo` and `make test` each do all of their set-up: a virtual environment with the exact versions of
# constraints.txt, and this package in it. They need Python >= 3.11 with venv, make and git.

PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
READY  := $(VENV)/.installed

.PHONY: install demo test pytest check fuzz wheel minimum lint docs clean

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

# Tests that use Ray mostly wait for its processes: they share one of two processes, the others and lint run beside them.
test: $(READY)
	$(MAKE) --no-print-directory -j 2 lint pytest

pytest: $(READY)
	$(BIN)/python -m pytest -n 2

# A thousand damaged inputs for every reader; `make test` reads a few of each.
fuzz: $(READY)
	$(BIN)/python tests/fuzz --inputs 1000 --out experiments/results/fuzz/readers.csv

# The documentation, into site/index.html. Its packages are no part of what the tests need.
docs: $(READY)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[docs]'
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict --quiet

# What to run all day: lint, types and the quick tests, without Ray.
check: lint
	$(BIN)/python -m pytest -n 2 --ignore tests/experiments --ignore tests/integrations \
	  -m "not ray and not own_ray and not slow and not browser"

# The wheel, in an empty environment and away from the sources: its commands, its data, and a run.
wheel:
	rm -rf build dist .venv-wheel
	$(PYTHON) -m venv .venv-wheel
	.venv-wheel/bin/python -m pip wheel --quiet --no-deps --wheel-dir dist .
	.venv-wheel/bin/python -m pip install --quiet --constraint constraints.txt dist/*.whl
	cd .venv-wheel && bin/tune-stn --help && bin/tune-stn methods && bin/python -m tune_stn --version
	cd .venv-wheel && bin/python -c 'from importlib.resources import files; root = files("tune_stn"); \
	  missing = [one for one in ("py.typed", "study/report.html") if not root.joinpath(one).is_file()]; \
	  texts = [one.name for one in root.joinpath("data/texts").iterdir() if one.name.endswith(".txt")]; \
	  assert not missing and texts, (missing, texts)'
	cd .venv-wheel && bin/tune-stn run --task digits-mlp --algorithm stn --epochs 8 --out run

# The lowest versions that pyproject.toml allows: old releases warn, so that is no error here. Those of torch carry CUDA
# libraries: several GB.
minimum:
	$(PYTHON) -m venv .venv-minimum
	.venv-minimum/bin/python -m pip install --quiet uv
	.venv-minimum/bin/uv pip install --python .venv-minimum/bin/python --resolution lowest-direct --editable '.[dev]'
	.venv-minimum/bin/python -m pytest -n 2 -W default -m "not ray and not own_ray and not slow"

clean:
	rm -rf $(VENV) .venv-wheel .venv-minimum build dist runs site .pytest_cache .mypy_cache .ruff_cache
