# make quickstart | test | check | bench | clean. Needs Python 3.11-3.13 (with venv and headers), make and a C compiler.
SHELL := /bin/bash
.SHELLFLAGS := -o pipefail -c
.DEFAULT_GOAL := help
BIN := .venv/bin
RECIPE ?= recipes/cpu/quickstart.yaml
TORCH_CPU_INDEX ?= https://download.pytorch.org/whl/cpu
# --no-compile: bytecode is written on first import instead, for the fifth of the modules that are used.
PIP = $(BIN)/python -m pip install -q --disable-pip-version-check --no-deps --no-compile --no-build-isolation
hash = $(shell cat $(1) 2>/dev/null | cksum | cut -d' ' -f1)
RUNTIME := .venv/.runtime-$(call hash,pyproject.toml requirements/torch.txt requirements/cpu.txt requirements/cpu-vllm.txt)
DEV := .venv/.dev-$(call hash,requirements/dev.txt)
unexport PYTHONDONTWRITEBYTECODE PYTHONPATH PYTHONHOME
export PIP_NO_INPUT := 1

SUITABLE := import os, sys, sysconfig, venv, ensurepip; \
	headers = os.path.exists(os.path.join(sysconfig.get_path("include"), "Python.h")); \
	sys.exit(not ((3, 11) <= sys.version_info[:2] <= (3, 13) and headers))

# Two files of tests at a time on two cores: half of a test's time is one process's start.
CORES := from rlhf.machine import usable_cores; print(max(1, min(4, usable_cores())))

.PHONY: help quickstart test test-long check bench clean
help:
	@echo "make quickstart   create .venv, install, train a small model with RL, write its report (under 8 min on 2 cores)"
	@echo "make test         every test that needs no GPU, but the long ones"
	@echo "make test-long    the long ones: variants of whole runs"
	@echo "make check        format, lint, types, import contracts, budgets (under 60 s)"
	@echo "make bench        the loop against its floor"
	@echo "make clean        remove .venv and caches (runs/ stays)"

quickstart: $(RUNTIME)
	@echo "[3/3] training $(RECIPE)"
	@$(BIN)/rlhf train $(RECIPE)

test: $(RUNTIME) $(DEV)
	@$(BIN)/python -m pytest -n $${WORKERS:-$$($(BIN)/python -c '$(CORES)')} --dist loadfile --no-loadscope-reorder -m "$(or $(MARKS),not long)"

test-long: MARKS = long
test-long: test

check: $(RUNTIME) $(DEV)
	@$(BIN)/ruff format --check .
	@$(BIN)/ruff check .
	@$(BIN)/python -m mypy
	@$(BIN)/python -m pytest -q tests/architecture

bench: $(RUNTIME)
	@$(BIN)/python benchmarks/loop.py

$(RUNTIME):
	@python=$(PYTHON); \
	for p in python3 python3.12 python3.11 python3.13; do \
	  if [ -z "$$python" ] && $$p -c '$(SUITABLE)' 2>/dev/null; then python=$$p; fi; \
	done; \
	if [ -z "$$python" ]; then echo "No Python 3.11-3.13 with venv and headers found (Debian: apt install python3-venv" \
	  "python3-dev). Name one: make PYTHON=/path/to/python3.12"; exit 2; fi; \
	echo "[1/3] creating .venv with $$($$python --version)"; rm -rf .venv && $$python -m venv .venv
	@echo "[2/3] installing torch"
	@$(PIP) $$(grep ^setuptools== requirements/cpu.txt) 2>&1 | { grep -v '^WARNING: Location' || true; }
	@$(PIP) -r requirements/torch.txt >.venv/torch.log 2>&1 || { \
	  echo "      not at the configured index; taking it from $(TORCH_CPU_INDEX)"; \
	  $(PIP) -r requirements/torch.txt --index-url $(TORCH_CPU_INDEX) --retries 1 || { \
	  echo "No CPU build of torch was found. Configure pip with an index that has one, or set TORCH_CPU_INDEX."; exit 2; }; }
	@echo "[2/3] installing Ray, transformers, TRL and the rest"
	@$(PIP) -r requirements/cpu.txt 2>&1 | { grep -v '^WARNING: Location' || true; }
	@echo "[2/3] installing vLLM"
	@$(PIP) --only-binary=:all: -r requirements/cpu-vllm.txt >.venv/vllm.log 2>&1 || \
	  echo "      vLLM cannot be installed here (.venv/vllm.log says why): the slower hf engine will generate."
	@$(PIP) -e .
	@# Compiled here because its sources warn, which a user would otherwise see at first import.
	@$(BIN)/python -W ignore -m compileall -q .venv/lib/python3.*/site-packages/cellpylib
	@touch $@

$(DEV): $(RUNTIME)
	@echo "[+] installing test and check tools"
	@$(PIP) -r requirements/dev.txt 2>&1 | { grep -v '^WARNING: Location' || true; }
	@touch $@

clean:
	rm -rf .venv build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis
