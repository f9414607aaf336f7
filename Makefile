# Needs make and Python 3.11 or newer with venv. Everything else goes into .venv, once; later runs work offline.
# All paths are relative, so the project may lie in a directory with spaces in its name.

VENV := .venv
RUN := $(VENV)/bin/python -m
OLDEST := .venv-oldest
POSTGRESQL_15 := /usr/lib/postgresql/15/bin

# Tests wait for most of their time, so two processes share them; each test file stays in one.
JOBS ?= 2
SHARED := -n $(JOBS) --dist loadfile

export PIP_DISABLE_PIP_VERSION_CHECK := 1
export PIP_NO_INPUT := 1

# A copied or moved project brings a .venv that still means the old place.
MOVED := $(shell for venv in $(VENV) $(OLDEST); do \
	[ ! -e $$venv/place ] || [ "$$(cat $$venv/place)" = "$$(pwd -P)" ] || rm -rf $$venv; done)

.DEFAULT_GOAL := help
.PHONY: help serve test postgres15 matrix bench check chaos lint format clean

help: ## Show this text
	@sed -n 's/^\([a-z0-9]*\):.*## \(.*\)/  make \1|\2/p' Makefile | awk -F'|' '{ printf "%-14s %s\n", $$1, $$2 }'

serve: $(VENV)/installed ## Serve the API at http://127.0.0.1:8000 (PORT=… for another port, ARGS=… for options)
	@exec $(RUN) duetime serve $(ARGS)

test: $(VENV)/tools ## Run the tests, but not those that need Debian packages (ARGS=… for pytest's options, JOBS=0 for one process)
	@$(RUN) pytest $(SHARED) -m 'not debian' $(ARGS)

postgres15: $(VENV)/tools ## Run the tests of the store, the broker, the scheduler, nodes and faults on PostgreSQL 15 (ARGS=…)
	@$(RUN) tests.matrix --programs $(POSTGRESQL_15) $(VENV)/bin/python -m pytest $(SHARED) --matrix versions $(ARGS)

# Any two of server, pooler and versions meet in all combinations, with `make test` (PostgreSQL 18, none, newest) as the
# first of four runs. Each run says what it leaves out, and which tests go past the pooler.
matrix: $(VENV)/tools $(OLDEST)/tools ## Run the tests on PostgreSQL 15, behind PgBouncer, with the oldest versions (ARGS=…)
	@echo '--- PostgreSQL 15 behind PgBouncer, newest versions'
	@$(RUN) tests.matrix --programs $(POSTGRESQL_15) --pooler $(VENV)/bin/python -m pytest $(SHARED) --matrix server $(ARGS)
	@echo '--- PostgreSQL 15, oldest versions'
	@$(RUN) tests.matrix --programs $(POSTGRESQL_15) $(OLDEST)/bin/python -m pytest $(SHARED) --matrix versions $(ARGS)
	@echo '--- PostgreSQL 18 behind PgBouncer, oldest versions'
	@$(RUN) tests.matrix --pooler $(OLDEST)/bin/python -m pytest $(SHARED) --matrix server $(ARGS)

chaos: $(VENV)/tools ## Put five nodes through a storm of ten minutes (CHAOS_SECONDS, _NODES, _SCHEDULES, _SEED=…)
	@CHAOS_SECONDS=$${CHAOS_SECONDS:-600} CHAOS_NODES=$${CHAOS_NODES:-5} CHAOS_SCHEDULES=$${CHAOS_SCHEDULES:-5000} \
		$(RUN) pytest tests/chaos/test_chaos.py -s $(ARGS)

bench: $(VENV)/bench ## Run the short form of all benchmarks, in less than 10 minutes (ARGS=… for other forms: ARGS=--help)
	@$(RUN) benchmarks $(or $(ARGS),--short)

check: lint test ## Run everything that a change has to pass

lint: $(VENV)/tools ## Run the checks that run no tests: ruff, mypy, import-linter
	@$(RUN) ruff check
	@$(RUN) ruff format --check
	@$(RUN) mypy
	@$(VENV)/bin/lint-imports

format: $(VENV)/tools ## Format the code and mend what ruff can mend
	@$(RUN) ruff check --fix
	@$(RUN) ruff format

clean: ## Remove what was installed, built and cached; the embedded database in .duetime stays
	rm -rf $(VENV) $(OLDEST) .bench build dist .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# The oldest versions of other packages may not know the newest Python.
$(VENV)/bin/python: PYTHONS := python3.13 python3.12 python3.11 python3 python
$(OLDEST)/bin/python: PYTHONS := python3.11 python3.12 python3.13 python3 python
$(VENV)/bin/python $(OLDEST)/bin/python:
	@for python in "$$PYTHON" $(PYTHONS); do \
		if [ -n "$$python" ] && "$$python" -c \
			'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then \
			echo "Making $(@:/bin/python=) with $$("$$python" --version)."; \
			exec "$$python" -m venv --clear $(@:/bin/python=); \
		fi; \
	done; \
	echo "Duetime needs Python 3.11 or newer with venv, and found none (tried python3.13, 3.12, 3.11, python3)." >&2; \
	echo "Debian and Ubuntu: apt install python3-venv. Elsewhere: make PYTHON=/path/to/python3.12 ..." >&2; \
	exit 1

$(VENV)/installed: pyproject.toml constraints.txt | $(VENV)/bin/python
	@echo 'Installing Duetime and what it needs into $(VENV).'
	@$(RUN) pip install --quiet 'pip>=25.1'
	@$(RUN) pip install --quiet --constraint constraints.txt --editable '.[all]'
	@pwd -P > $(VENV)/place
	@touch $@

$(VENV)/tools: $(VENV)/installed
	@echo 'Installing the tools for tests and checks into $(VENV).'
	@$(RUN) pip install --quiet --constraint constraints.txt --group dev
	@touch $@

$(VENV)/bench: $(VENV)/installed
	@echo 'Installing what the benchmarks need into $(VENV).'
	@$(RUN) pip install --quiet --constraint constraints.txt --group bench
	@touch $@

$(OLDEST)/tools: pyproject.toml constraints-oldest.txt | $(OLDEST)/bin/python
	@echo 'Installing Duetime with the oldest versions of what it needs into $(OLDEST).'
	@$(OLDEST)/bin/python -m pip install --quiet 'pip>=25.1'
	@$(OLDEST)/bin/python -m pip install --quiet --constraint constraints-oldest.txt --editable '.[all]' --group test
	@pwd -P > $(OLDEST)/place
	@touch $@
