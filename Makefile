# `make demo` and `make test` set up everything they need and can be run again; `make help` lists the rest.

PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
ARGS   ?=

.PHONY: help demo test lint unit overhead report-speed clean

help:
	@echo 'make demo          install what is missing, run the demo (ARGS="--seconds 20 --transport tcp")'
	@echo 'make test          install what is missing, lint, check types, run all tests'
	@echo 'make unit          the tests that need no servers, in seconds'
	@echo 'make overhead      measure what reqpath costs a request, beside OpenTelemetry'
	@echo 'make report-speed  measure a report over a million requests'
	@echo 'make clean         remove the virtual environment and caches'

demo: $(VENV)/demo.stamp
	./bootstrap demo
	$(BIN)/reqpath demo $(ARGS)

test: $(VENV)/dev.stamp
	./bootstrap test
	$(MAKE) --no-print-directory lint
	$(BIN)/python -m pytest $(ARGS)

lint: $(VENV)/dev.stamp
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

unit: $(VENV)/dev.stamp
	$(BIN)/python -m pytest -m 'not live' $(ARGS)

overhead: $(VENV)/dev.stamp
	./bootstrap demo
	$(BIN)/python benchmarks/overhead.py $(ARGS)

report-speed: $(VENV)/dev.stamp
	$(BIN)/python benchmarks/report.py $(ARGS)

# One stamp an extra: the demo must not wait for what only the tests need.
$(VENV)/%.stamp: pyproject.toml bootstrap
	./bootstrap venv
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[$*]'
	touch $@

clean:
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis dist build
