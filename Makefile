# Every target sets up what it needs: `make demo` and `make test` work on a fresh clone with nothing but Python 3.11+.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
TORCH := torch==2.13.0
# The tests and the demo run small models: more threads than cores, or than are free, only make them wait.
export OMP_NUM_THREADS ?= $(shell nproc 2>/dev/null || echo 2)
export TOKENIZERS_PARALLELISM := false

.PHONY: help install demo test quality benchmark clean

help:
	@echo "make demo       train a small teacher and student from nothing, then distil (a few minutes on two CPU cores)"
	@echo "make test       every test"
	@echo "make quality    ruff and mypy"
	@echo "make benchmark  time and memory of the fused loss against dense and TRL"
	@echo "make install    only the set-up, into $(VENV)"

install: $(STAMP)

# torch first: with none installed, an open range brings a CUDA build of several GB to machines without a GPU.
$(STAMP): setup.cfg pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
	  || { echo "error: Python 3.11 or newer is needed; try make PYTHON=python3.11 $(MAKECMDGOALS)"; exit 1; }
	@echo "Setting up $(VENV) (a minute or two, 2 GB) ..."
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@if command -v nvidia-smi >/dev/null 2>&1 && nvidia-smi -L >/dev/null 2>&1; then \
	  echo "  GPU found: torch with CUDA"; flags=""; \
	else \
	  echo "  no GPU found: torch for CPU"; flags="$(CPU_TORCH_FLAGS)"; \
	fi; \
	$(BIN)/python -m pip install --quiet --disable-pip-version-check $$flags "$(TORCH)" \
	  && $(BIN)/python -m pip install --quiet --disable-pip-version-check -e ".[eval,dev]" \
	  || { echo "error: pip could not install the packages (see above); is the network up? Then run make again"; exit 1; }
	@$(BIN)/python -m pip check
	@touch $(STAMP)

demo: $(STAMP)
	@echo "1/4  Training a teacher and a student from nothing"
	$(BIN)/python scripts/build_tiny_pair.py data/tiny-arithmetic
	@echo "2/4  Distilling with vOPD"
	$(BIN)/accelerate launch scripts/run_vopd.py recipes/tiny-arithmetic/vopd.yaml
	@echo "3/4  Distilling with OPD, the same without the baseline"
	$(BIN)/accelerate launch scripts/run_vopd.py recipes/tiny-arithmetic/opd.yaml
	@echo "4/4  What came of it"
	$(BIN)/python scripts/summarize.py data/runs/tiny-arithmetic-vopd data/runs/tiny-arithmetic-opd \
	  --pair data/tiny-arithmetic/pair.json --picture data/runs/tiny-arithmetic.png

test: $(STAMP)
	$(BIN)/python -m pytest

quality: $(STAMP)
	$(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/mypy

benchmark: $(STAMP)
	@$(BIN)/python -c 'import trl' 2>/dev/null || $(BIN)/python -m pip install --quiet --no-deps "trl==1.16.0"
	$(BIN)/python scripts/benchmark_loss.py

clean:
	rm -rf $(VENV) build src/*.egg-info .pytest_cache .mypy_cache .ruff_cache
