# Everything runs from one environment in .venv. `serve` installs only what serving needs; `test` and the rest add
# training and development on top, after which `serve` uses that. A stamp file per set makes repeated calls instant;
# a change of pyproject.toml or constraints.txt installs again.

VENV := .venv
BIN := $(VENV)/bin
PYTHON ?= $(shell for p in python3.11 python3.12 python3.13 python3; do \
	$$p -c 'import ensurepip, sys, venv; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$p && break; done)

# onnxruntime and onnxruntime-gpu install the same module, so an environment holds one of them.
ifndef RUNTIME
RUNTIME := $(shell nvidia-smi >/dev/null 2>&1 && echo gpu || echo cpu)
endif
OTHER_RUNTIME := $(if $(filter gpu,$(RUNTIME)),onnxruntime,onnxruntime-gpu)

SERVING := $(VENV)/.serving-$(RUNTIME)
DEVELOPMENT := $(VENV)/.development-$(RUNTIME)
# Serving is satisfied by an environment that already holds more.
SERVABLE := $(if $(wildcard $(DEVELOPMENT)),$(DEVELOPMENT),$(SERVING))

# Training data that is already on this machine, else downloaded where it is needed.
ifneq ($(wildcard ../shared/data),)
export SEQSERVE_DATA ?= $(abspath ../shared/data)
endif

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help install serve test check lint layout types imports format hooks train evaluate floors export models bench load clean

help: ## Show this list
	@sed -n 's/^\([a-z]*\):.*## \(.*\)/  make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 18

serve: $(SERVABLE) ## Serve exported/ on 127.0.0.1:8000
	exec $(BIN)/seqserve serve $(ARGS)

install: $(DEVELOPMENT) ## Install everything: serving, training, development

# Several files of tests at once: most of them wait for processes, clocks and each other. All of one file stay together.
test: $(DEVELOPMENT) ## Run the tests
	$(BIN)/python -m pytest -n auto --maxprocesses 4 --dist loadfile $(ARGS)

check: lint layout types imports ## Run ruff, mypy and import-linter

lint: $(DEVELOPMENT)
	$(BIN)/ruff check

layout: $(DEVELOPMENT)
	$(BIN)/ruff format --check

types: $(DEVELOPMENT)
	$(BIN)/mypy

imports: $(DEVELOPMENT)
	$(BIN)/lint-imports --no-logo

format: $(DEVELOPMENT) ## Lay out the code and mend what ruff can mend
	$(BIN)/ruff format
	$(BIN)/ruff check --fix

hooks: $(DEVELOPMENT) ## Run the checks before every commit
	$(BIN)/pre-commit install

train: $(DEVELOPMENT) ## Train a model: make train CONFIG=training/configs/NAME.toml
	$(BIN)/seqtrain fit $(call config) $(ARGS)

evaluate: $(DEVELOPMENT) ## Evaluate a trained model: make evaluate CONFIG=...
	$(BIN)/seqtrain evaluate $(call config) $(ARGS)

floors: $(DEVELOPMENT) ## Compute what a model has to beat: make floors CONFIG=...
	$(BIN)/seqtrain floors $(call config) $(ARGS)

export: $(DEVELOPMENT) ## Export a trained model to exported/: make export CONFIG=...
	$(BIN)/seqtrain export $(call config) $(ARGS)

# Every model of exported/, in the order of what they build on.
SHIPPED := weekend_planner next_word_lstm next_word_transformer next_character_gru \
	sentiment_bidirectional sentiment_gru ner_bidirectional ner_lstm \
	forecast_gru forecast_transformer forecast_etth1_96 forecast_etth1_univariate

models: $(DEVELOPMENT) ## Train and export every model of exported/ again; takes hours
	@set -e; for name in $(SHIPPED); do config=training/configs/$$name.toml; \
		$(BIN)/seqtrain floors $$config; \
		if grep -q '^\[training\]' $$config; then $(BIN)/seqtrain fit $$config $(ARGS); fi; \
		$(BIN)/seqtrain export $$config $(ARGS); done

bench: $(DEVELOPMENT) ## Measure; writes benchmarks/results/
	$(BIN)/python -m benchmarks $(ARGS)

load: $(DEVELOPMENT) ## Load a service of its own for 30 s and compare its answers
	PATH="$(abspath $(BIN)):$$PATH" tests/load/run $(ARGS)

clean: ## Remove the environment and all caches
	rm -rf $(VENV) build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis

config = $(or $(CONFIG),$(error name a configuration: make $@ CONFIG=training/configs/NAME.toml))

$(SERVING): pyproject.toml constraints.txt
	$(call install,$(RUNTIME))

# Compiling all of torch to bytecode would cost a minute; Python compiles what is imported.
$(DEVELOPMENT): pyproject.toml constraints.txt
	$(call install,$(RUNTIME)$(,)training$(,)dev,--no-compile)

, := ,
define install
@test -n "$(PYTHON)" || { echo "seqserve needs Python 3.11 or newer with its venv module" \
	"(Debian: apt-get install python3.11-venv). To name one: make $(MAKECMDGOALS) PYTHON=/path/to/python" >&2; exit 1; }
test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
@rm -f $(VENV)/.serving-* $(VENV)/.development-*
@if $(BIN)/python -m pip show -q $(OTHER_RUNTIME) 2>/dev/null; then $(BIN)/python -m pip uninstall -y $(OTHER_RUNTIME); fi
$(BIN)/python -m pip install --disable-pip-version-check $2 -c constraints.txt -e '.[$1]'
@$(BIN)/python -m compileall -q service
@touch $@
endef
