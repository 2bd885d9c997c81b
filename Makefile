# Everything runs in .venv, which `make install` builds from the hashed requirements. Nothing but make, git, a Python of
# 3.11 or later with its venv module, and a package index is needed; uv comes along in .uv.
#
#   make install PYTHON=/path/to/python3.12      another interpreter
#   make test ARGS="-k ledger -x"                anything after the command

PYTHON ?=
ARGS ?=

UV := .uv/bin/uv
BIN := .venv/bin
INSTALLED := .venv/.installed
OLDEST := .venv-oldest
INTEGRATIONS := .venv-integrations
LOCK = $(UV) pip compile pyproject.toml --quiet --universal --python-version 3.11 --generate-hashes --no-annotate \
	--no-emit-index-url --no-emit-find-links --custom-compile-command "make lock"

# Which tests make up `quick` and `test-oldest`; the markers are explained in pyproject.toml.
FAST := not (slow or server or kill or s3)
NOT_QUICK := integrations store cli download sandbox benchmarks upkeep purchase promises/test_recipes.py promises/test_tables.py \
	promises/test_shell_lines.py \
	campaign/test_frames.py campaign/test_source.py api/test_poller.py api/test_client.py
MEETS_PREFECT := server or prefect

# No prompts, no progress bars, no interpreter from elsewhere; whoever runs this may have neither a home nor a terminal.
export PIP_DISABLE_PIP_VERSION_CHECK := 1
export PIP_NO_INPUT := 1
export PIP_PROGRESS_BAR := off
export PIP_ROOT_USER_ACTION := ignore
export UV_NO_PROGRESS := 1
# Trust what the machine trusts (a company's proxy has its own authority), where it has a bundle at all.
export UV_SYSTEM_CERTS ?= $(if $(wildcard /etc/ssl/certs/ca-certificates.crt /etc/ssl/cert.pem /etc/pki/tls/certs/ca-bundle.crt),1,0)
export UV_PYTHON_DOWNLOADS := never
export PYTHONUNBUFFERED := 1

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help install demo quick check lint format types architecture test test-oldest test-integrations bench docs docs-serve pictures \
	settings build smoke lock clean distclean

help: ## what there is to make
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-14s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

# --- environment -----------------------------------------------------------------------------------------------------

install: $(INSTALLED) ## .venv with the project, editable, and all it needs

$(UV): requirements/uv.txt
	@for python in $(PYTHON) python3.13 python3.12 python3.11 python3; do \
	    if "$$python" -c 'import ensurepip, sys, venv; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1; then \
	        "$$python" -m venv --clear .uv && \
	        .uv/bin/python -m pip install -qq --require-hashes -r requirements/uv.txt; \
	        exit $$?; \
	    fi; \
	done; \
	echo "No Python 3.11 or later with the venv module was found (tried: $(PYTHON) python3.13 python3.12 python3.11 python3)." >&2; \
	echo "Install one (on Debian and Ubuntu: python3 and python3-venv), or: make install PYTHON=/path/to/python3.12" >&2; \
	exit 1
	@touch $@

$(INSTALLED): $(UV) requirements/dev.txt pyproject.toml
	@$(BIN)/python -c '' 2>/dev/null || $(UV) venv --quiet --clear --python .uv/bin/python .venv
	@$(UV) pip sync --quiet --python $(BIN)/python --require-hashes requirements/dev.txt
	@$(UV) pip install --quiet --python $(BIN)/python --no-deps --no-build-isolation --editable .
	@touch $@

# The oldest Prefect that pyproject.toml admits, with everything else as in .venv where that Prefect allows it.
$(OLDEST)/.installed: $(UV) requirements/oldest.txt pyproject.toml
	@$(OLDEST)/bin/python -c '' 2>/dev/null || $(UV) venv --quiet --clear --python .uv/bin/python $(OLDEST)
	@$(UV) pip sync --quiet --python $(OLDEST)/bin/python --require-hashes requirements/oldest.txt
	@$(UV) pip install --quiet --python $(OLDEST)/bin/python --no-deps --no-build-isolation --editable .
	@touch $@

# With the other packages of Prefect's that this one works with, one of which needs another botocore than .venv has.
$(INTEGRATIONS)/.installed: $(UV) requirements/integrations.txt pyproject.toml
	@$(INTEGRATIONS)/bin/python -c '' 2>/dev/null || $(UV) venv --quiet --clear --python .uv/bin/python $(INTEGRATIONS)
	@$(UV) pip sync --quiet --python $(INTEGRATIONS)/bin/python --require-hashes requirements/integrations.txt
	@$(UV) pip install --quiet --python $(INTEGRATIONS)/bin/python --no-deps --no-build-isolation --editable .
	@touch $@

lock: $(UV) ## take the newest versions into requirements/
	@$(LOCK) --upgrade --extra sandbox --group dev --output-file requirements/dev.txt
	@$(LOCK) --upgrade --constraint requirements/dev.txt --output-file requirements/runtime.txt
	@cp requirements/dev.txt requirements/oldest.txt # uv keeps the versions it finds there
	@sed -nE 's/^ *"prefect>=([0-9.]+),.*/prefect==\1/p' pyproject.toml | \
	    $(LOCK) --constraint - --extra sandbox --group dev --output-file requirements/oldest.txt
	@grep -vE '^(boto|s3transfer|ministack)' requirements/dev.txt | sed -nE 's/^([a-z][^ ]*==[^\\]*).*/\1/p' | \
	    $(LOCK) --upgrade --constraint - --extra sandbox --group integrations --output-file requirements/integrations.txt
	@echo uv | $(UV) pip compile - --quiet --upgrade --universal --python-version 3.11 --generate-hashes --no-annotate \
	    --no-emit-index-url --no-emit-find-links --custom-compile-command "make lock" --output-file requirements/uv.txt

# --- use -------------------------------------------------------------------------------------------------------------

demo: install ## image, then video, on the sandbox: no account, no money, no network
	@$(BIN)/prefect-veogen demo $(ARGS)

# --- gates -----------------------------------------------------------------------------------------------------------

quick: lint ## after each change: style, who imports whom, the fast tests
	@$(BIN)/python -m pytest -q -n 2 --dist loadfile -m '$(FAST)' \
	    $(NOT_QUICK:%=--ignore tests/%) $(ARGS)
	@echo "Left out: make types; tests/ of $(NOT_QUICK); what is slow, kills, or needs S3 or a"
	@echo "Prefect server. Run what belongs to your change, e.g. make test ARGS=tests/store; make check runs all."

check: lint types architecture test test-oldest test-integrations ## all gates

lint: install ## style and mistakes
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .

format: install ## repair what lint can repair
	@$(BIN)/ruff check --fix-only --quiet .
	@$(BIN)/ruff format .

types: install ## mypy, strict
	@$(BIN)/mypy $(wildcard prefect_veogen flows tests benchmarks)

architecture: install ## who may import whom
	@$(BIN)/python -m pytest -q tests/promises/test_architecture.py

test: install ## all tests; no network, no account
	@$(BIN)/python -m pytest -n 2 --dist loadfile --ignore tests/integrations $(ARGS)

test-oldest: install ## what meets Prefect, on the oldest supported one
	@if cmp -s requirements/oldest.txt requirements/dev.txt; then \
	    echo "The oldest supported Prefect is the locked one: make test runs on it."; \
	else \
	    $(MAKE) --no-print-directory $(OLDEST)/.installed && \
	    $(OLDEST)/bin/python -m pytest -n 2 --dist loadfile --ignore tests/benchmarks -m '$(MEETS_PREFECT)' $(ARGS); \
	fi

test-integrations: $(INTEGRATIONS)/.installed ## with prefect-aws, and on other engines: Dask, Ray, PostgreSQL and Redis
	@$(INTEGRATIONS)/bin/python -m pytest $(or $(ARGS),tests/integrations)

bench: install ## the figures the documentation claims
	@$(BIN)/python -m benchmarks $(ARGS)

# Never with --quiet: warnings that are not shown are not counted as errors either.
docs: install ## the site of docs/, in build/site; every warning is an error
	@NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

docs-serve: install ## ... served at http://127.0.0.1:8000 while you write
	@NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs serve

pictures: install ## take the pictures of docs/images/ again, by the tests that drive what they show (needs Chromium)
	@DOCS_IMAGES=$(abspath docs/images) $(BIN)/python -m pytest -q $(shell grep -rl save_picture tests/flows) $(ARGS)

settings: install ## write the table of docs/settings.md from the code
	@$(BIN)/python -m tests.support.settings_page

build: install ## wheel and sdist in dist/
	@rm -rf dist
	@$(UV) build --quiet --python $(BIN)/python --no-build-isolation --out-dir dist

smoke: build ## does a plain install of the newest of everything give a Prefect that starts and schedules?
	@.ci/smoke dist/*.whl

# --- tidying ---------------------------------------------------------------------------------------------------------

clean: ## remove caches and builds
	@rm -rf dist build .mypy_cache .pytest_cache .ruff_cache .hypothesis .schemathesis .benchmarks
	@find . -name __pycache__ -type d -not -path './.venv*' -not -path './.uv/*' -prune -exec rm -rf {} +

distclean: clean ## ... and the environment
	@rm -rf .venv $(OLDEST) $(INTEGRATIONS) .uv
