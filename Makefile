# make setup | demo [FAULT=name] [OUT=dir] | test | prove [SEEDS=n] | bench | check | coverage | docs | up [PROFILE=sandbox] | down | clean
.DEFAULT_GOAL := help
.PHONY: help setup demo test prove bench check unit e2e coverage docs up down clean

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
OUT ?= out/demo
FAULT ?=
SEEDS ?= 10000
PROFILE ?= cluster
STAMP := $(VENV)/.installed

help:
	@sed -n 's/^## //p' $(MAKEFILE_LIST)

## make setup             .venv with everything installed
setup: $(STAMP)

# uv makes the install some ten times faster; where pip cannot fetch it, pip itself does the work.
$(STAMP): requirements.txt requirements-dev.txt constraints.txt pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt uv || true
	if [ -x $(BIN)/uv ]; then \
	  $(BIN)/uv pip install --quiet --python $(BIN)/python --constraint constraints.txt --requirement requirements-dev.txt --editable .; \
	else \
	  $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --requirement requirements-dev.txt --editable .; \
	fi
	# uv leaves byte code to the first import: processes that start together would each compile, and keep the memory.
	$(BIN)/python -c "import aiohttp, kubernetes, google.cloud.container_v1"
	touch $(STAMP)

## make demo [FAULT=name] a whole migration on the embedded cloud, with users on it
demo: $(STAMP)
	$(BIN)/python -m sandbox.demo --out $(OUT) $(if $(FAULT),--fault $(FAULT))

## make test              every test that must hold for a change to land
test: check unit e2e

## make check             formatting, lint, types, layers, the compose file
check: $(STAMP)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy plugins/tpu_migration dags deployment
	$(BIN)/lint-imports
	$(BIN)/check-jsonschema --builtin-schema vendor.compose-spec docker-compose.yaml

## make unit              unit, simulation, DAG integrity and sandbox tests
unit: $(STAMP)
	$(BIN)/python -m pytest tests --ignore tests/e2e --numprocesses 2

## make coverage          how much of the product the unit and DAG tests reach, which may not fall
coverage: $(STAMP)
	$(BIN)/python -m pytest tests/unit tests/dags --numprocesses 2 --quiet --cov

## make e2e               whole migrations through the real Airflow scheduler
e2e: $(STAMP)
	$(BIN)/python -m pytest tests/e2e -v -m e2e

## make prove [SEEDS=n]   the exhaustive proofs, the judge's errors among them; figures to out/prove.json, where an interrupted run goes on
prove: $(STAMP)
	$(BIN)/python -m tests.prove --seeds $(SEEDS)

## make bench             the measured claims, with their limits; figures to out/bench.json
bench: $(STAMP)
	$(BIN)/python -m tests.bench

## make docs              docs/reference, written anew from the code
docs: $(STAMP)
	$(BIN)/python -m tests.docs.reference

## make up [PROFILE=sandbox]  Airflow on Celery in containers; with the sandbox a whole migration, too (docs/compose.md)
up: .env
	COMPOSE_PROFILES=$(PROFILE) docker compose up --build --detach

## make down              stop the containers; what they keep stays
down:
	COMPOSE_PROFILES=cluster,sandbox docker compose down

.env:
	$(PYTHON) deployment/make_env.py

## make clean             remove what the targets above made
clean:
	rm -rf $(VENV) out build .coverage .hypothesis .pytest_cache .mypy_cache .ruff_cache .import_linter_cache
