# `make demo` and `make test` do all of their own set-up in .venv; nothing but Python, make and pip is needed.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

.PHONY: demo test lint bench docs check-dist clean

demo: $(READY)
	$(BIN)/latentmill demo --out latentmill-demo

test: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python -m pytest -n 2 --dist worksteal

lint: $(READY)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/mypy

# The documentation, to site/; every warning is an error
docs: $(READY)
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

# Wheel and sdist, to dist/: built, looked into, installed where there is nothing else, and used there.
# make check-dist EXTRAS=all does so with each extra too
check-dist: $(READY)
	$(BIN)/python tools/check_dist.py --extras "$(EXTRAS)"

# Everything that docs/performance.md tells, to benchmarks/results.md: 30 to 40 minutes, and a quiet machine.
# make bench BENCH="--quick" takes some minutes; other arguments: benchmarks/run.py --help
bench: $(READY)
	$(BIN)/python benchmarks/run.py $(BENCH)

# constraints.txt pins the CPU build of PyTorch: an unpinned one brings gigabytes of CUDA
$(READY): pyproject.toml setup.py constraints.txt $(wildcard native/*)
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $(READY)

clean:
	rm -rf $(VENV) site latentmill-demo build dist
