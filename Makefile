# `make demo` and `make test` do all of their own set-up in .venv; nothing but Python, make and pip is needed.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

.PHONY: demo test lint bench clean

demo: $(READY)
	$(BIN)/latentmill demo --out latentmill-demo

test: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python -m pytest -n 2 --dist loadfile

lint: $(READY)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/mypy

# Everything that docs/performance.md tells, to benchmarks/results.md: 40 minutes, and a quiet machine.
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
	rm -rf $(VENV) latentmill-demo build dist
