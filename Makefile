# Two commands for a newcomer: make train, make test. Everything else is in `make help` and `python -m launch --help`.

PYTHON ?= python3
BIN := .venv/bin
READY := .venv/.ready

.DEFAULT_GOAL := help
.PHONY: help train test test-slow lint format

help: ## Show this list
	@grep -hE '^[a-z/-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

train: $(READY) data/digits/manifest.json ## Train the digits recipe on a local Ray, two expert-parallel workers, tracked in MLflow
	@$(BIN)/python -m launch train digits

test: $(READY) ## Run all tests that need no root, linters and the type checker among them
	@$(BIN)/python -m pytest -m "not root"

test-slow: $(READY) ## Run what takes minutes and needs root: hosts that are killed, cut off and drained
	@$(BIN)/python -m pytest -m root -s

lint: $(READY) ## Check style and types only
	$(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/mypy

format: $(READY) ## Rewrite files in the project's style
	$(BIN)/ruff format . && $(BIN)/ruff check --fix .

data/digits/manifest.json: | $(READY)
	@$(BIN)/python -m launch pack digits --out data/digits

$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit("Python 3.11 or newer is needed, this is " + sys.version.split()[0] + ": make PYTHON=python3.12 ..." if sys.version_info < (3, 11) else 0)'
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[test]'
	@touch $@
