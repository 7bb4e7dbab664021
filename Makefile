# `make demo` and `make test` set up everything they need and can be run again; `make help` lists the rest.

PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
ARGS   ?=

.PHONY: help demo bench test lint unit overhead latency collector-speed load-check bench-check-aa bench-check-planted report-speed page-speed clean packages-demo packages-bench packages-test mysql jaeger jaeger-program
# What a target needs is installed in the order it is listed in.
.NOTPARALLEL:

help:
	@echo 'make demo                 install what is missing, run the demo'
	@echo 'make demo JAEGER=1        the same, and have its traces in Jaeger'
	@echo 'make bench                compare sockets and workers; ARGS=--quick: the sockets'
	@echo 'make jaeger               have a Jaeger on this machine until Ctrl-C'
	@echo
	@echo 'make test                 install what is missing; lint, types, and all tests'
	@echo 'make unit                 the tests that need no servers and no browser'
	@echo 'make lint                 format, lint and types alone'
	@echo 'make clean                remove the virtual environment and caches'
	@echo
	@echo 'make overhead             measure what reqpath costs, beside OpenTelemetry'
	@echo 'make latency              measure how much longer a client waits'
	@echo 'make collector-speed      measure what the collector costs, beside OpenTelemetry'
	@echo 'make report-speed         measure a report over a million requests'
	@echo 'make page-speed           measure the report as a page, in a browser'
	@echo 'make load-check           check the load generator against wrk and h2load'
	@echo 'make bench-check-aa       have the benchmark compare a set-up with itself'
	@echo 'make bench-check-planted  have it find delays that are planted'
	@echo
	@echo 'ARGS are options of what is run: make demo ARGS="--seconds 20 --transport tcp"'

demo: packages-demo $(VENV)/demo.stamp $(if $(JAEGER),$(VENV)/otlp.stamp)
	$(BIN)/reqpath demo$(if $(JAEGER), --jaeger) $(ARGS)

jaeger: $(VENV)/demo.stamp
	$(BIN)/reqpath jaeger $(ARGS)

bench: packages-bench $(VENV)/bench.stamp
	$(BIN)/reqpath bench $(ARGS)

test: packages-test $(VENV)/dev.stamp lint mysql jaeger-program
	$(BIN)/python -m pytest $(ARGS)

lint: $(VENV)/dev.stamp
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

unit: $(VENV)/dev.stamp
	$(BIN)/python -m pytest -m 'not live and not browser' $(ARGS)

overhead: packages-bench $(VENV)/dev.stamp
	$(BIN)/python benchmarks/overhead.py $(ARGS)

latency: packages-bench $(VENV)/dev.stamp
	$(BIN)/python benchmarks/latency.py $(ARGS)

collector-speed: packages-bench $(VENV)/dev.stamp
	$(BIN)/python benchmarks/collector.py $(ARGS)

load-check: packages-bench $(VENV)/dev.stamp
	$(BIN)/python benchmarks/load.py $(ARGS)

bench-check-aa bench-check-planted: packages-bench $(VENV)/dev.stamp
	$(BIN)/python benchmarks/bench_check.py $(@:bench-check-%=%) $(ARGS)

report-speed: $(VENV)/dev.stamp
	$(BIN)/python benchmarks/report.py $(ARGS)

page-speed: packages-test $(VENV)/dev.stamp
	$(BIN)/python -m benchmarks.page $(ARGS)

packages-demo packages-bench packages-test:
	@./bootstrap $(@:packages-%=%)

mysql: $(VENV)/dev.stamp
	@echo 'make: finding the MySQL server of the tests'
	@$(BIN)/python tests/mysql_tree.py || echo 'make: no MySQL server; its tests will be skipped' >&2

jaeger-program: $(VENV)/dev.stamp
	@echo 'make: finding the Jaeger of the tests'
	@$(BIN)/python tests/jaeger_program.py || echo 'make: no Jaeger; its tests will be skipped' >&2

# One stamp an extra: the demo must not wait for what only the tests need.
$(VENV)/%.stamp: pyproject.toml
	@./bootstrap venv
	@echo 'make: installing reqpath[$*] into $(VENV), which takes a while the first time'
	@# Begun anew when it was not finished, or when its interpreter has gone.
	@$(BIN)/python -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv --clear $(VENV)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[$*]'
	@touch $@

clean:
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis dist build
