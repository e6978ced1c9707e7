# Every target sets up what it needs: a virtual environment in .venv with the pinned versions.
#
#   make demo                          the main job on real input
#   make demo ARGS="--layers 2"        with options (ARGS=--help lists them)
#   make test                          the whole test suite
#   make test ARGS="-k notation -x"    a part of it
#   make test JOBS=8                   in more processes than two
#   make fuzz ARGS="--minutes 30"      the suite's properties, of fresh examples; --hours for longer
#   make mutants ARGS="--count 300"   faults planted in the reader, and what finds each
#   make lint | types | bench | clean
#
# PYTHON lists the interpreters to try for a new .venv. TORCH is what pip installs first: name another build here,
# CPU-only or for your CUDA, e.g. TORCH="torch==2.13.0 --index-url <one of PyTorch's wheel indexes>".

JOBS ?= 2
PYTHON ?= python3 python3.14 python3.13 python3.12 python3.11 python3.10 python
TORCH ?= $(shell grep '^torch==' constraints.txt)

BIN := .venv/bin
READY := .venv/ready
BENCH_READY := .venv/bench-ready
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.PHONY: demo test fuzz mutants lint types bench clean

demo: $(READY)
	$(BIN)/python -m mhf_compile demo $(ARGS)

test: $(READY)
	$(BIN)/python -m pytest -n $(JOBS) $(ARGS)

fuzz: $(READY)
	$(BIN)/python -m tests.fuzz $(ARGS)

mutants: $(READY)
	$(BIN)/python -m tests.mutation $(ARGS)

lint: $(READY)
	$(BIN)/ruff check .

types: $(READY)
	$(BIN)/mypy

bench: $(BENCH_READY)
	$(BIN)/python -m benchmarks $(ARGS)

# Debian ships a python3 without venv, pyenv a python3.x that only complains: ask each candidate to run.
USABLE := import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 10))

# torch goes first and alone, so that no dependency chooses its build. `ready` is written last: an interrupted
# set-up starts over.
$(READY): pyproject.toml constraints.txt
	@for python in $(PYTHON); do \
	  if $$python -c "$(USABLE)" 2>/dev/null; then \
	    echo "Setting up .venv with $$($$python --version): about a minute, once."; \
	    exec $$python -m venv .venv; \
	  fi; \
	done; \
	echo "error: no Python >= 3.10 with venv and ensurepip among: $(PYTHON)." >&2; \
	echo "Install one (Debian, Ubuntu: apt install python3-venv) or name it: make PYTHON=/path/to/python" >&2; \
	exit 1
	$(BIN)/python -m pip install --quiet $(TORCH)
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[dev]'
	@touch $@

$(BENCH_READY): $(READY)
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[bench]'
	@touch $@

clean:
	rm -rf .venv build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
