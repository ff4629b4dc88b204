# make run: set everything up, then the main job. make test: set everything up, then all tests.
.DELETE_ON_ERROR:
.PHONY: run test lint resume report clean-results

VENV := .venv
ARGS ?= # more for snakemake, such as --configfile my-run.yaml
BIN := $(VENV)/bin
READY := $(VENV)/.ready
PYTHON ?= python3
export PATH := $(CURDIR)/$(BIN):$(PATH)

run: $(READY)
	snakemake --cores all $(ARGS)

test: $(READY)
	pytest

lint: $(READY)
	ruff check .
	ruff format --check .
	mypy
	snakefmt --check --compact-diff Snakefile rules
	snakemake --lint

resume: $(READY)
	snakemake --unlock $(ARGS)
	snakemake --cores all --rerun-incomplete $(ARGS)

report: $(READY)
	snakemake --report results/report.html $(ARGS)

clean-results:
	rm -rf results logs benchmarks

$(READY): requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "paramscope needs Python 3.11 or later; name one: make PYTHON=python3.11")'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --disable-pip-version-check --quiet --constraint requirements.lock torch
	$(BIN)/python -m pip install --disable-pip-version-check --quiet --no-deps --requirement requirements.lock
	$(BIN)/python -m pip install --disable-pip-version-check --quiet --no-deps --editable .
	touch $@
