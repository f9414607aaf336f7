# Needs make and Python 3.11 or newer with venv. Everything else goes into .venv, once; later runs work offline.
# All paths are relative, so the project may lie in a directory with spaces in its name.

VENV := .venv
RUN := $(VENV)/bin/python -m

export PIP_DISABLE_PIP_VERSION_CHECK := 1
export PIP_NO_INPUT := 1

# A copied or moved project brings a .venv that still means the old place.
MOVED := $(shell [ ! -e $(VENV)/place ] || [ "$$(cat $(VENV)/place)" = "$$(pwd -P)" ] || { rm -rf $(VENV); echo yes; })

.DEFAULT_GOAL := help
.PHONY: help serve test bench check chaos lint format clean

help: ## Show this text
	@sed -n 's/^\([a-z]*\):.*## \(.*\)/  make \1|\2/p' Makefile | awk -F'|' '{ printf "%-14s %s\n", $$1, $$2 }'

serve: $(VENV)/installed ## Serve the API at http://127.0.0.1:8000 (PORT=… for another port, ARGS=… for options)
	@exec $(RUN) duetime serve $(ARGS)

test: $(VENV)/tools ## Run the tests, but not the storm and those that need Debian packages (ARGS=… for pytest's options)
	@$(RUN) pytest -m 'not debian and not chaos' $(ARGS)

chaos: $(VENV)/tools ## Put five nodes through a storm of ten minutes (CHAOS_SECONDS, _NODES, _SCHEDULES, _SEED=…)
	@CHAOS_SECONDS=$${CHAOS_SECONDS:-600} CHAOS_NODES=$${CHAOS_NODES:-5} CHAOS_SCHEDULES=$${CHAOS_SCHEDULES:-5000} \
		$(RUN) pytest -m chaos tests/chaos -s $(ARGS)

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
	rm -rf $(VENV) .bench build dist .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(VENV)/bin/python:
	@for python in "$$PYTHON" python3.13 python3.12 python3.11 python3 python; do \
		if [ -n "$$python" ] && "$$python" -c \
			'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then \
			echo "Making $(VENV) with $$("$$python" --version)."; \
			exec "$$python" -m venv --clear $(VENV); \
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
