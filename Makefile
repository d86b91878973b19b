# Every target starts from a bare machine with Python 3.11 or newer, git and make: what it needs, it builds first.
SHELL := /bin/sh
PYTHON ?= $(firstword $(foreach v,3.11 3.12 3.13,$(shell command -v python$(v))) python3)
BIN := .venv/bin
UV := $(BIN)/uv
PYTEST := $(BIN)/python -m pytest

# Airflow and the SDKs are slow to import from source: each process may keep what it has compiled.
unexport PYTHONDONTWRITEBYTECODE

# Behind a company's proxy the registries are signed by what the machine trusts, not by what uv brings.
export UV_SYSTEM_CERTS ?= 1

# The tests write and sync many small files: in memory, where the machine has 8 GB to spare for it.
ROOMY := $(shell df -Pk /dev/shm 2>/dev/null | awk 'NR == 2 && $$4 > 8000000 { print "/dev/shm" }')

.DEFAULT_GOAL := help
.PHONY: help setup emulators demo story scenario airflow quick test e2e fuzz check format docs constraints golden bench scale matrix sdks databases clean

help: ## show this list
	@sed -n 's/^\([a-z0-9]*\):.*## /  make \1|/p' Makefile | awk -F'|' '{ printf "%-20s %s\n", $$1, $$2 }'

setup: .venv/.stamp ## build .venv with the package, every extra and the development tools

.venv/.stamp: pyproject.toml constraints.txt
	@test -x $(BIN)/python || { echo "setup: a virtual environment in .venv, with $(PYTHON)"; $(PYTHON) -m venv .venv; }
	@test -x $(UV) || { echo "setup: the installer (uv)"; $(BIN)/pip install --quiet --disable-pip-version-check uv; }
	@echo "setup: Airflow, the SDKs and the tools, at the versions of constraints.txt"
	@$(UV) pip install --quiet --python $(BIN)/python -c constraints.txt -e '.[all]' --group dev
	@touch $@

emulators: .venv/.stamp ## build .emulators: BigQuery and Cloud Storage on loopback, for the tests
	@$(BIN)/python -m tests.emulators.setup

demo: .venv/.stamp ## label a table of support tickets, from nothing, with no key and no bill
	@$(BIN)/airflow-batch-llm demo

story: .venv/.stamp ## two nights with the package: label, look, measure a better prompt, roll it out, read the bill
	@$(BIN)/airflow-batch-llm story

scenario: .venv/.stamp ## label ROWS tickets (10000) in ways that are cheaper step by step, at three simulated providers
	@$(BIN)/python -m tests.benchmarks.scenario --rows $(or $(ROWS),10000)

airflow: .venv/.stamp ## start Airflow's own UI on loopback, with the example Dags and the simulator
	@$(BIN)/python -m tests.airflow.standalone

QUICK := tests/core tests/test_docs.py tests/stage/test_buying.py tests/stage/test_judging.py \
    tests/providers/anthropic tests/warehouses/test_target.py tests/warehouses/test_plain.py

quick: check ## check a change in under two minutes: lint, types, the core, the docs, a slice of stage and adapters
	@echo "quick: a slice of the tests, in two processes"
	@$(PYTEST) -n 2 --dist load -q -k "not tutorial and not executed" $(QUICK)

test: .venv/.stamp emulators ## run the tests
	@echo "test: everything, in three processes"
	@TMPDIR=$${TMPDIR:-$(ROOMY)} $(PYTEST) -n 3 --dist loadscope --ignore tests/e2e; status=$$?; \
	    $(BIN)/python -m tests.emulators.setup --remind; exit $$status

e2e: .venv/.stamp ## kill, clear and fail what runs in a real Airflow, and look at the bill
	@echo "e2e: a real Airflow on loopback, for about four minutes"
	@$(PYTEST) tests/e2e

fuzz: .venv/.stamp ## judge spoiled result lines for MINUTES minutes (10)
	@$(BIN)/python -m tests.fuzz --minutes $(or $(MINUTES),10)

check: .venv/.stamp ## check format, lint, types and the import rules
	@echo "check: format" && $(BIN)/ruff format --quiet --check .
	@echo "check: lint" && $(BIN)/ruff check --quiet .
	@echo "check: types" && $(BIN)/mypy --no-error-summary
	@echo "check: import rules" && $(BIN)/lint-imports > .import-linter.log || { cat .import-linter.log; exit 1; }

format: .venv/.stamp ## put the code in its format and repair what can be repaired
	@$(BIN)/ruff check --quiet --fix . ; $(BIN)/ruff format --quiet .

docs: .venv/.stamp ## build the documentation into site/; a warning is an error
	@echo "docs: site/" && NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet --strict

golden: .venv/.stamp ## write the golden files from what the code makes now
	@echo "golden: read git diff before you commit"
	@WRITE_GOLDEN_FILES=1 $(PYTEST) -q $$(grep -rl --include='*.py' 'import check_golden' tests | grep -v test_golden)

constraints: .venv/.stamp ## resolve constraints.txt anew, to the newest versions that fit together
	@echo "constraints: constraints.txt"
	@$(UV) pip compile --quiet --upgrade --python-version 3.11.0 --all-extras --group dev \
	    --no-header --no-annotate --no-emit-index-url --no-emit-find-links -o constraints.txt pyproject.toml

bench: .venv/.stamp ## measure rows per second and memory
	@$(BIN)/python -m tests.bench

scale: .venv/.stamp ## run a group over ROWS rows (1000000) on Celery, Redis and PostgreSQL, and kill a worker
	@TMPDIR=$${TMPDIR:-$(ROOMY)} $(BIN)/python -m tests.scale --rows $(or $(ROWS),1000000)

matrix: .venv/.stamp ## run the tests of the Airflow edge on each supported Airflow
	@$(BIN)/python -m tests.matrix

sdks: .venv/.stamp ## run the provider tests on the oldest and the newest SDKs that pyproject.toml admits
	@$(BIN)/python -m tests.sdks

databases: .venv/.stamp ## run the contract of a warehouse on Snowflake's emulator, ClickHouse's engine, and MariaDB where it is installed
	@$(BIN)/python -m tests.databases

clean: ## remove what make has built
	rm -rf .venv .emulators .environments .airflow .demo .story .mypy_cache .pytest_cache .ruff_cache .import_linter_cache site
