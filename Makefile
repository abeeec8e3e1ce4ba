# Two commands for a newcomer: make train, make test. Everything else is in `make help` and `python -m launch --help`.

PYTHON ?= python3
BIN := .venv/bin
# Tests side by side; those that start Ray always run one after the other.
TEST_WORKERS ?= 2
READY := .venv/.ready

.DEFAULT_GOAL := help
.PHONY: help train test test-slow lint format browser docs site

help: ## Show this list
	@grep -hE '^[a-z/-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

train: $(READY) data/digits/manifest.json ## Train the digits recipe on a local Ray, two expert-parallel workers, tracked in MLflow
	@$(BIN)/python -m launch train digits

test: $(READY) ## Run all tests that need no root and take no minutes, linters and the type checker among them
	@$(BIN)/python -m pytest -n $(TEST_WORKERS) -m "not root and not long"

test-slow: $(READY) ## Run what takes minutes or needs root: hosts that are killed, cut off and drained; a sweep that is killed
	@$(BIN)/python -m pytest -m "root or long" -s

browser: ## Install Chromium, in which tests open the HTML reports (Debian or Ubuntu, as root; otherwise says what to do)
	@if command -v chromium >/dev/null || command -v google-chrome >/dev/null; then exit 0; fi; \
	if ! command -v apt-get >/dev/null || [ "$$(id -u)" != 0 ]; then \
	  echo "no Chromium here, and only root on Debian or Ubuntu can install it with this: install chromium yourself; without it the tests of HTML reports are skipped" >&2; exit 1; fi; \
	{ apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends chromium >/dev/null; } || \
	{ echo "apt-get could not install chromium (its reason is above): the tests of HTML reports need it" >&2; exit 1; }

lint: $(READY) ## Check style and types only
	$(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/mypy

docs: $(READY) ## Make the pages and figures that are made from the code
	$(BIN)/python -m docs.make_pages
	$(BIN)/python -m docs.figures.make_figures

site: $(READY) ## Build the documentation as a site, in site/; needs no network
	$(BIN)/python -m mkdocs build --strict --quiet --site-dir site

format: $(READY) ## Rewrite files in the project's style
	$(BIN)/ruff format . && $(BIN)/ruff check --fix .

data/digits/manifest.json: | $(READY)
	@$(BIN)/python -m launch pack digits --out data/digits

$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit("Python 3.11 or newer is needed, this is " + sys.version.split()[0] + ": make PYTHON=python3.12 ..." if sys.version_info < (3, 11) else 0)'
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[test]'
	@touch $@
